//! The commit protocol (`docs/commit-protocol.md`) as an explicit-state model, searched breadth first.
//!
//!     Config ──▶ Model ── successors ──▶ search ──▶ Report: all states hold T1 to T12, or the shortest trace to one
//!     (bounds)     │                                that does not
//!                Mistake: one row of the protocol's section 13, to see that the invariants bite
//!
//! What is here, by the protocol's numbers:
//! * [`rules`] R12, R14, R16 to R18: what a record becomes and what follows from answers, as pure functions over the real
//!   state machine's own types;
//! * `shard` R1 to R4, R6, R10 to R13, R16, R17, R20, R21; `coordinator` R9, R14, R15, R19, R22; `recovery` R18;
//! * [`invariants`] T1 to T12; [`mistake`] section 13; [`config`] the bounds; [`suite`] those that CI and the command search;
//! * [`model`] the steps; [`state`] what a state holds; [`mod@search`] the search.
//!
//! Messages are lost, duplicated and late; coordinator and recoverers crash at any step; leases move; floors pass. What is
//! not modelled is listed in `docs/model.md`.
#![forbid(unsafe_code)]

pub mod config;
mod coordinator;
pub mod invariants;
pub mod mistake;
pub mod model;
mod recovery;
pub mod rules;
pub mod search;
mod shard;
pub mod state;
pub mod suite;

pub use config::Config;
pub use invariants::Invariant;
pub use mistake::Mistake;
pub use model::Model;
pub use search::{Report, search};
