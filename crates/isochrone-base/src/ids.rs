//! Numbers that must not be mixed up with each other.

use std::fmt;

/// An index in a shard's log. The first entry of a log has index 1.
pub type LogIndex = u64;
/// A Raft term.
pub type Term = u64;
/// A shard is born with everything up to here applied, on every replica: its first entry is the next one. So a replica
/// that holds nothing can never be fed from the log alone, which would miss what the shard was born with.
pub const INIT_INDEX: LogIndex = 10;
/// The term of the (imagined) entry at [`INIT_INDEX`]; nobody ever led in it.
pub const INIT_TERM: Term = 5;
/// The number of a piece within its transaction, from 0.
pub type PieceNo = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A node of the cluster, from 1.
    NodeId, u32
);
id!(
    /// A shard: one key range, one log, one Raft group. Never reused.
    ShardId, u64
);

/// A transaction attempt, never used again: 128 random bits (commit-protocol.md, section 1). A retry is a new attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TxnId(pub u128);

impl TxnId {
    /// The sixteen bytes of the id, most significant first, so that byte order is id order.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`TxnId::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> TxnId {
        TxnId(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxnId({:032x})", self.0)
    }
}
