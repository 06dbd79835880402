//! Shards as Raft groups. raft-rs lives here and nowhere else; so does the drive loop around it (design D3).
//!
//!     gateways ── propose ──▶ inbox ──▶ Store::step ──▶ one log batch for all groups ──▶ log writer (fsync)
//!     peers ──── messages ──▶   │            │  ▲                                             │
//!     snapshots ─ received ─▶   │            │  └───────────────── durable ──────────────────┘
//!                               │            ├──▶ messages to peers, one batch each (leaders send before their own fsync)
//!                               │            ├──▶ snapshots to followers that fell behind; installs, in the background
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
//!   C5  Entries reach the state machine in index order without gaps, each exactly once per life of the process; a
//!       snapshot stands for all entries up to its index.
//!   C6  After the log failed nothing more is acknowledged: every proposal from then on, and every one in flight,
//!       hears `Stopped` or `Ambiguous` (which of the two: what it can be sure of, see C3).
//!   C7  At no moment do two nodes hold a lease of one shard (see the module `lease`, L1 to L3).
//!   C8  A replica acknowledges a snapshot only when it is installed, and takes no part in the group before.
//!   C9  A vote never helps a candidate who lacks what this replica acknowledged, even if the replica lacks it itself. It
//!       knows how much that was (a blank replica over a log that it cannot use): candidates are held against that. It
//!       does not (its log was cut at recovery): its vote counts only together with those of all other voters, and it takes
//!       nothing from a leader that has not proved to be one, until it holds again everything up to where the
//!       leader's log ended then (see the module `doubt`).
//!
//!   C10, L4  Members change one step at a time (see the module `membership`).
//!
//! How it fails: C9's doubt is not in the log; a node that is started again before it is over has to be told again
//! ([`GroupStatus::doubtful`]). A group without a leader gets none while one voter is missing and another in doubt.
//!
//! Not here: what an entry means (crate shard), where bytes go (crate wal), streams between nodes and snapshot chunks
//! (crates net, server), who wants which voters (crate server).
#![forbid(unsafe_code)]

mod doubt;
mod group;
mod held;
mod inbox;
mod lease;
pub mod log;
mod membership;
pub mod metrics;
mod replica;
pub mod shell;
mod store;
#[cfg(test)]
mod tests;
pub mod wal_log;
pub mod wire;

pub use group::{GroupStatus, Progress};
pub use inbox::{Handle, Inbox, PROPOSALS_MAX, ProposeError};
pub use log::{GroupLog, HardState, LogBatch, LogEntry, Record};
pub use membership::Step;
pub use raft::eraftpb::Message as RaftMessage;
pub use replica::LogEnd;
pub use store::{Event, Install, Output, Removal, Store, StoreConfig};

use isochrone_base::{Bytes, LogIndex, Members, NodeId, ShardId, Term};

/// A committed entry on its way to the state machine. An empty payload is the first entry of a leader's term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedEntry {
    /// Index in the shard's log.
    pub index: LogIndex,
    /// Term of the leader that proposed it.
    pub term: Term,
    /// What was proposed.
    pub payload: Bytes,
    /// The entry changed the group's members, to these. Its payload is Raft's.
    pub members: Option<Members>,
}

/// A Raft group to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewGroup {
    /// The shard.
    pub shard: ShardId,
    /// Its members.
    pub members: Members,
    /// Everything up to here is in the state machine already. A group that is born begins at
    /// [`isochrone_base::INIT_INDEX`].
    pub applied: LogIndex,
    /// The term of that entry; 0: not known.
    pub applied_term: Term,
    /// The right half of a split whose left half is led here: it campaigns at once.
    pub campaign: bool,
}

/// Which state of a shard a snapshot holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMeta {
    /// The last entry whose effects it holds.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The group's members.
    pub members: Members,
}

/// A snapshot's contents, piece by piece. Taken from a thread of the sender's own.
pub trait SnapshotSource: Send {
    /// The next piece, of about so many bytes at most; `None` at the end.
    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, String>;
}

/// A snapshot to be sent: chunks first, then `message` (see [`wire::encode_snapshot_message`]), which the receiver hands
/// to [`Handle::snapshot_received`] when it holds all chunks. The sender reports by [`Handle::snapshot_sent`], always.
pub struct OutgoingSnapshot {
    /// The follower.
    pub to: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// What it holds.
    pub meta: SnapshotMeta,
    /// What the follower's group has to hear in the end.
    pub message: RaftMessage,
    /// The contents.
    pub source: Box<dyn SnapshotSource>,
}

/// How [`StateMachine::install`] tells that it is done: the group as it is now, at the snapshot's index.
pub type InstallDone = Box<dyn FnOnce(Result<NewGroup, String>) + Send>;

/// How [`StateMachine::remove`] tells that it is done, durably.
pub type RemoveDone = Box<dyn FnOnce(Result<(), String>) + Send>;

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

    /// Reads may be served until this moment of the monotonic clock, as long as the shard is led here in this term.
    /// Single voter: `u64::MAX`, right after the role. 0: the lease is given up, before a transfer; every read that
    /// looks again after this call must not be answered.
    fn lease(&self, shard: ShardId, term: Term, until_ns: u64);

    /// A snapshot of everything applied so far, for a follower. Called on the store loop between applications; quick.
    fn snapshot(&self, shard: ShardId) -> Result<Box<dyn SnapshotSource>, String>;

    /// Begins to replace the shard's state by a received snapshot, in the background; the log is reset already. Nothing
    /// is applied to the shard until `done` is called. After an error the replica is blank: its state counts for
    /// nothing until another snapshot is installed.
    fn install(&self, shard: ShardId, snapshot: SnapshotMeta, done: InstallDone);

    /// The replica is no part of its group any more: begins to remove its state, in the background. Nothing is applied to
    /// it again, unless a snapshot brings it back.
    fn remove(&self, shard: ShardId, done: RemoveDone);

    /// A received snapshot is not wanted.
    fn discard(&self, shard: ShardId, snapshot: SnapshotMeta);

    /// The node's log has failed: nothing will be acknowledged any more.
    fn stopped(&self, reason: &str);
}
