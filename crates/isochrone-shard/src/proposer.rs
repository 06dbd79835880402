//! How a shard gets an entry into its log: the trait that the consensus layer implements.

use isochrone_base::{Bytes, LogIndex, ShardId, Term};

use crate::api::BoxFuture;

/// An entry was applied here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Its index in the shard's log.
    pub index: LogIndex,
}

/// Why a proposal was not seen to be applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the shard in that term: the entry is in no log and never will be.
    #[error("not the leader of the shard in that term")]
    NotLeader,
    /// Too much is waiting: the entry is in no log and never will be.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// The entry may be in the log: leadership was lost, or the node goes down.
    #[error("whether the entry was logged is not known: {0}")]
    Ambiguous(String),
    /// The node's log has failed. Nothing will be applied any more.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// Appends entries to shards' logs.
///
/// Contract
/// 1. The payload is handed over by the call itself; the future only waits, and may be polled from anywhere. Dropping it
///    takes nothing back.
/// 2. An entry is logged in the term given or not at all; it is never proposed again under another term (R2).
/// 3. `Ok` comes after [`crate::Shards::after_write`] of the entry. `Ambiguous` means that this node has lost the
///    leadership of that term, or stops: what was in flight stays in the way until the next change of leadership.
pub trait Proposer: Send + Sync {
    /// Proposes an entry.
    fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Applied, ProposeError>>;
}
