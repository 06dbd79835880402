//! What application found (R2), and how a shard fails.

use isochrone_base::{Key, LogIndex, ShardId, Term};

use crate::api::Record;

/// What an applied entry did, as the proposer hears it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The piece's record after the entry.
    Record(Record),
    /// No record, and the deadline is at or below the floor: nothing was done (R11.2, R16 "gone").
    PastDeadline,
    /// What evaluation assumed no longer holds: nothing was done; evaluate again.
    Rejected(&'static str),
    /// Evaluated under another term: nothing was done (R2).
    StaleTerm,
    /// The request makes no sense here: nothing was done.
    Illegal(&'static str),
    /// Done.
    Done,
    /// Some of a range was cleared.
    Cleared {
        /// Where to go on; `None`: nothing is left.
        rest: Option<Key>,
    },
}

/// What [`crate::Shards::apply`] did with an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyResult {
    /// It is in the batch.
    Applied {
        /// A shard that this entry creates: it is open once `after_write` was called, and needs a group.
        created: Option<ShardId>,
        /// The shard that it is split from is led by this node.
        led_here: bool,
    },
    /// Nothing was done: this entry must see the effects of earlier ones in the engine. Write the batch, call
    /// `after_write`, and apply it again with an empty batch.
    Cut,
}

/// A shard cannot go on: its node stops rather than guess. The entry is in the log and will be met again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot apply entry {index} (term {term}) of shard {shard}: {reason}")]
pub struct ApplyError {
    /// The shard.
    pub shard: ShardId,
    /// The entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Why; names the invariant (T..) or rule (R..) that is broken.
    pub reason: String,
}

/// Why the shards of a node could not be opened or created.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] isochrone_storage::Error),
    /// What the engine holds is not what was written.
    #[error("state of shard {0} is damaged: {1}")]
    Damaged(ShardId, String),
    /// There are shards already.
    #[error("the engine holds shards already")]
    NotEmpty,
}
