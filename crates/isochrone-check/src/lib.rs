//! Checkers of histories: what clients asked and what they heard goes in, verdicts come out.
//!
//! * [`append`] judges transactions over lists: serializability and the weaker and stricter levels around it.
//! * [`register`] judges single operations on single keys: linearizability.
//! * [`acked`] judges a set: whatever was acknowledged is present at the end.
//! * [`lists`] keeps the book of a workload for [`append`] and [`acked`].
//!
//! The first three are plain state machines. Times are numbers that the caller took from one clock that every client shares (true
//! time in a simulation, the monotonic clock of one machine otherwise), in a unit of the caller's choice. They work
//! online, in memory with a bound that each module states, and give the same verdicts for the same calls in the same order.
//! A verdict is never a guess: whatever is reported cannot have happened at the level asked for. What may go unreported
//! is written at the head of each module.
//!
//! A finding carries the id of the invariant that broke. T1 to T13 are those of the commit protocol
//! (`docs/commit-protocol.md`, section 9); these come on top of them:
//!
//!   CH1  A transaction sees its own writes, and no key changes under it (the latter from snapshot isolation up).
//!   CH2  Every value that was read had been written by somebody.
//!   CH3  All reads of a key agree on one order of its writes.
//!   CH4  A session sees what it has seen and done before (from snapshot isolation up).
//!   CH5  A transaction sees everything that was acknowledged before it began (strict serializability).
//!   CH6  Operations on one key take effect at one instant between their call and their answer.
//!   CH7  The workload keeps its own promises (values written once per key, and so on): not the database's fault.
#![forbid(unsafe_code)]

pub mod acked;
pub mod append;
mod finding;
mod intervals;
pub mod lists;
pub mod register;

pub use finding::{Anomaly, Finding, Findings, Level, Via};

/// A moment on the clock that all clients share; the unit is the caller's.
pub type Time = u64;

/// How a transaction or an operation ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client heard that it committed.
    Committed,
    /// The client heard that it did not, and never will.
    Aborted,
    /// The client heard neither: it may have committed, and an operation in flight may yet.
    Unknown,
}
