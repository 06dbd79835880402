//! Shards as Raft groups. raft-rs lives here and nowhere else; so does the drive loop around it (design D3).
//!
//!     gateways ── propose ──▶ inbox ──▶ Store::step ──▶ one log batch for all groups ──▶ log writer (fsync)
//!     peers ──── messages ──▶   │            │  ▲                                             │
//!                               │            │  └───────────────── durable ──────────────────┘
//!                               │            ├──▶ messages to peers (leaders send before their own fsync)
//!                               │            └──▶ StateMachine::apply, then the proposer's answer
//!
//! [`Store`] is the core: a state machine without I/O of its own. `step(now, events, out)` takes what happened and
//! says what to write and send. [`shell`] runs it on a thread with a log writer beside it; a simulation runs the same
//! core as a task.
//!
//! Invariants
//!   C1  An entry is applied only when it is durable here and committed (raft-rs: committed and persisted).
//!   C2  A proposer hears `Ok` only after the entry it proposed, with the term it was proposed under, was applied.
//!   C3  A proposer hears `NotLeader` or `Overloaded` only if its entry is in no log and never will be.
//!   C4  A vote or an append acknowledgement leaves only after what it promises is durable.
//!   C5  Entries reach the state machine in index order without gaps, each exactly once per life of the process.
//!   C6  After the log failed nothing more is acknowledged: every proposal from then on, and every one in flight,
//!       hears `Stopped` or `Ambiguous` (which of the two: what it can be sure of, see C3).
//!
//! Not here: what an entry means (crate shard), where bytes go (crate wal), snapshots between nodes and membership
//! changes (they need peers; the core leaves room for both).
#![forbid(unsafe_code)]

mod group;
mod inbox;
pub mod log;
pub mod metrics;
pub mod shell;
mod store;
#[cfg(test)]
mod tests;
pub mod wal_log;

pub use group::GroupStatus;
pub use inbox::{Handle, Inbox, ProposeError};
pub use log::{GroupLog, HardState, LogBatch, LogEntry};
pub use raft::eraftpb::Message as RaftMessage;
pub use store::{Event, Output, Store, StoreConfig};

use isochrone_base::{Bytes, LogIndex, NodeId, ShardId, Term};

/// A committed entry on its way to the state machine. An empty payload is the first entry of a leader's term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedEntry {
    /// Index in the shard's log.
    pub index: LogIndex,
    /// Term of the leader that proposed it.
    pub term: Term,
    /// What was proposed.
    pub payload: Bytes,
}

/// A Raft group to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewGroup {
    /// The shard.
    pub shard: ShardId,
    /// Its voters.
    pub voters: Vec<NodeId>,
    /// Everything up to here is in the state machine already.
    pub applied: LogIndex,
}

/// Why a state machine cannot go on. The node stops: what was applied is on the log and will be applied again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot apply entry {index} of shard {shard}: {reason}")]
pub struct ApplyError {
    /// The shard.
    pub shard: ShardId,
    /// The entry.
    pub index: LogIndex,
    /// Why.
    pub reason: String,
}

/// What a shard's leadership on this node is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Leads in this term. It serves only once an entry of this term was applied (R1).
    Leader(Term),
    /// Follows the given leader, if one is known.
    Follower(Term, Option<NodeId>),
}

/// What the groups replicate. One object for all shards of a node, so that it can share an engine and create shards.
pub trait StateMachine: Send + Sync {
    /// Applies entries of one shard, in order; each atomically with the applied index. What they did is visible to
    /// readers when this returns. Returns groups that these entries created (splits).
    fn apply(&self, shard: ShardId, entries: &[CommittedEntry]) -> Result<Vec<NewGroup>, ApplyError>;

    /// Leadership of a shard changed. Called before any entry of that term is applied.
    fn role(&self, shard: ShardId, role: Role);

    /// The node's log has failed: nothing will be acknowledged any more.
    fn stopped(&self, reason: &str);
}
