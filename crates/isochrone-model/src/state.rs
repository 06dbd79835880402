//! A state of the model: plain bytes, cheap to copy, to hash and to compare.
//!
//! Three kinds of fields:
//! * what a shard replicates (records, floor, closed, read limit, versions) and keeps in memory (timestamp cache, low,
//!   proposals in flight), and how far a coordinator is;
//! * *facts*: answers that were given. Like the messages they came in, they are never lost again: whoever waits for
//!   one may hear it at any later moment, or never. All answers of the protocol stay true, so one set serves all
//!   coordinators and recoverers;
//! * *ghosts*: what nobody in the protocol remembers and only the invariants look at (what was served, what was ever
//!   committed, which invariants a step has broken).

use isochrone_base::Timestamp;
use isochrone_shard::api::Record;

use crate::invariants::Set;

/// Transactions that a state has room for.
pub const TXNS_MAX: usize = 2;
/// Pieces of one transaction.
pub const PIECES_MAX: usize = 3;
/// Shards.
pub const SHARDS_MAX: usize = 3;
/// Keys.
pub const KEYS_MAX: usize = 4;
/// Proposals in flight at once.
pub const IN_FLIGHT_MAX: usize = 3;
/// The owner of cache entries and served reads that belong to no transaction of the model.
pub const READER: usize = TXNS_MAX;

/// A timestamp of the model, at most 63; 0 is "none".
pub type Ts = u8;
/// When the first version of every key was written.
pub const INITIAL: Ts = 1;
/// Above every timestamp that occurs.
pub const TS_MAX: Ts = 63;

/// The timestamp as the real code has it.
pub fn real(ts: Ts) -> Timestamp {
    Timestamp(u64::from(ts))
}

/// Back from [`real`].
pub fn small(ts: Timestamp) -> Ts {
    Ts::try_from(ts.0).ok().filter(|t| *t <= TS_MAX).expect("all timestamps of the model are small")
}

/// A set of keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Keys(pub u8);

impl Keys {
    /// No key.
    pub const NONE: Keys = Keys(0);

    /// Is the key in it?
    pub fn has(self, key: usize) -> bool {
        self.0 & (1 << key) != 0
    }

    /// The keys in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..KEYS_MAX).filter(move |k| self.has(*k))
    }

    /// Union.
    pub fn and(self, other: Keys) -> Keys {
        Keys(self.0 | other.0)
    }

    /// Those that are not in `other`.
    pub fn but(self, other: Keys) -> Keys {
        Keys(self.0 & !other.0)
    }
}

/// A [`Record`] in one byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Packed(u8);

impl Packed {
    /// Packs a record.
    pub fn of(record: Record) -> Packed {
        Packed(match record {
            Record::None => 0,
            Record::Aborted => 1,
            Record::Prepared(p) => 0x40 | small(p),
            Record::Committed(c) => 0x80 | small(c),
        })
    }

    /// Unpacks it.
    pub fn get(self) -> Record {
        match (self.0 >> 6, self.0 & 0x3f) {
            (0, 0) => Record::None,
            (0, _) => Record::Aborted,
            (1, p) => Record::Prepared(real(p)),
            (_, c) => Record::Committed(real(c)),
        }
    }
}

/// Bits of [`PieceState::flags`].
pub mod piece {
    /// Fact: refused for good, `aborted` stands in the log (R12).
    pub const REFUSED: u8 = 1;
    /// Fact, used by a mistake only: refused without a record (R12).
    pub const REFUSED_UNRECORDED: u8 = 2;
    /// Fact, used by a mistake only: "past deadline" (R11.2).
    pub const PAST_DEADLINE: u8 = 4;
    /// Fact: a probe answered `aborted`.
    pub const PROBED_ABORT: u8 = 8;
    /// Fact: a resolve was acknowledged (R17).
    pub const ACKED: u8 = 16;
    /// Replicated: an anchor's tombstone that waits for acknowledgements (R21).
    pub const KEEP: u8 = 32;
    /// Ghost: its record was `aborted` once.
    pub const ABORTED: u8 = 64;
    /// Ghost: decided, probed absent or acknowledged; T10 says it is never prepared from here on.
    pub const OVER: u8 = 128;
}

/// A piece: its record at its shard, what its coordinator and recoverers know, and ghosts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PieceState {
    /// Replicated: the record.
    pub record: Packed,
    /// Fact: the first answer to a prepare that said `prepared` or `committed`.
    pub answer: Packed,
    /// Fact: the p that a probe answered; 0: none did.
    pub probed: Ts,
    /// Ghost: the p of its first prepare.
    pub p: Ts,
    /// Ghost: the c at which it was committed first.
    pub c: Ts,
    /// Bits of [`piece`].
    pub flags: u8,
}

impl PieceState {
    /// Is the bit set?
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// How far a coordinator is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Nothing happened yet.
    #[default]
    Idle,
    /// It has read; R9.2 validates V where nothing is written.
    Validating,
    /// The prepares (or the commit in one step) have left.
    Preparing,
    /// R15: pushed; V is validated again at `c`.
    Revalidating,
    /// R15: validated; `decide(commit c)` has left.
    Deciding,
    /// R14: committed at `c`; `decide(commit c)` has left.
    Committed,
    /// R19: `decide(abort)` has left.
    GivenUp,
    /// Failed before any prepare left.
    Failed,
}

/// Bits of [`TxnState::flags`].
pub mod txn {
    /// `decide(commit c)` of the coordinator has left.
    pub const COMMIT_SENT: u8 = 1;
    /// Fact: the anchor answered `aborted`.
    pub const TOLD_ABORT: u8 = 2;
    /// Fact: the anchor answered "gone".
    pub const TOLD_GONE: u8 = 4;
    /// Fact, used by a mistake only: the anchor answered "no record" above its floor.
    pub const TOLD_NONE: u8 = 8;
    /// Ghost: the anchor's record was gone, its floor past the deadline, and a piece prepared (T12).
    pub const NEVER: u8 = 16;
}

/// A transaction attempt: its coordinator, and what is known of its anchor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TxnState {
    /// The coordinator.
    pub phase: Phase,
    /// Keys of V that the present round (R9.2 or R15) has validated.
    pub validated: Keys,
    /// The commit timestamp that the coordinator has chosen.
    pub c: Ts,
    /// Fact: the anchor answered `committed` at this; 0: it did not.
    pub told: Ts,
    /// What the client heard: nothing, COMMIT at c, or ABORT. (40003 promises nothing: it is as hearing nothing.)
    pub heard: Packed,
    /// Bits of [`txn`].
    pub flags: u8,
}

impl TxnState {
    /// Is the bit set?
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A shard and its leaseholder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ShardState {
    /// Replicated: deadlines up to here are past (a transaction's deadline is its number + 1).
    pub floor: u8,
    /// Replicated.
    pub closed: Ts,
    /// Replicated: the highest timestamp at which anything was served or validated here (R1).
    pub read_limit: Ts,
    /// Volatile: what the leaseholder started with (R1).
    pub low: Ts,
    /// Ghost: the highest `resolved` that was published.
    pub published: Ts,
}

/// A key: its versions, the timestamp cache over it, and what was served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KeyState {
    /// Replicated: when each transaction's version was written; 0: it has none. [`INITIAL`] is always there.
    pub versions: [Ts; TXNS_MAX],
    /// Volatile: the timestamp cache.
    pub cache: Ts,
    /// Volatile: who read at `cache`: a transaction, or [`READER`] if it was nobody's, or several'.
    pub owner: u8,
    /// Ghost: the highest timestamp at which each transaction, and the reader, was served or validated it.
    pub served: [Ts; TXNS_MAX + 1],
}

impl KeyState {
    /// The newest version.
    pub fn newest(&self) -> Ts {
        self.versions.into_iter().fold(INITIAL, Ts::max)
    }
}

/// What a proposal does when it is applied; names as in `isochrone_shard::command::Command`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// No proposal.
    #[default]
    Empty,
    /// R11.8, at `ts`.
    Prepare,
    /// R13, at `ts`.
    Commit1,
    /// R12.
    Refuse,
    /// R16: commit at `ts`, or abort if it is 0.
    Decide,
    /// R17: commit at `ts`, or abort if it is 0.
    Resolve,
    /// R18.2.
    Probe,
}

/// A proposal: evaluated at the leaseholder, not applied yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct Proposal {
    /// What it does.
    pub kind: Kind,
    /// Of which transaction.
    pub txn: u8,
    /// To which piece.
    pub piece: u8,
    /// See [`Kind`].
    pub ts: Ts,
    /// Evaluated by a predecessor of the present leaseholder (only a mistake lets it live that long).
    pub old: bool,
}

/// A state of the whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// By transaction and piece.
    pub pieces: [[PieceState; PIECES_MAX]; TXNS_MAX],
    /// By transaction.
    pub txns: [TxnState; TXNS_MAX],
    /// By shard.
    pub shards: [ShardState; SHARDS_MAX],
    /// By key.
    pub keys: [KeyState; KEYS_MAX],
    /// In order; empty ones first.
    pub in_flight: [Proposal; IN_FLIGHT_MAX],
    /// Lease changes so far.
    pub leases: u8,
    /// The second shard has become part of the first.
    pub merged: bool,
    /// Ghost: invariants that a step has broken.
    pub broken: Set,
}

impl State {
    /// Where what was placed on a shard is now.
    pub fn home(&self, shard: usize) -> usize {
        if self.merged && shard == 1 { 0 } else { shard }
    }

    /// The record of a piece.
    pub fn record(&self, txn: usize, piece: usize) -> Record {
        self.pieces[txn][piece].record.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing() {
        for record in [
            Record::None,
            Record::Aborted,
            Record::Prepared(real(1)),
            Record::Prepared(real(TS_MAX)),
            Record::Committed(real(2)),
        ] {
            assert_eq!(Packed::of(record).get(), record);
        }
        assert!(size_of::<State>() <= 192, "the frontier holds many of these: {}", size_of::<State>());
    }
}
