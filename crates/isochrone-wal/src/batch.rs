//! Records on their way to the log.
//!
//! A [`Batch`] that fits `batch_bytes_max` is recovered whole or not at all; a larger one is cut at record
//! boundaries, in order.

use bytes::Bytes;
use isochrone_base::{LogIndex, ShardId, Term};

use crate::format::RECORD_HEADER_BYTES;

/// What a shard must remember of Raft besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Who got the vote in that term; 0: nobody.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: LogIndex,
}

/// What a record on disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// An entry of a shard's log. One at or below the last index replaces it and everything behind it.
    Entry = 1,
    /// A copy of a live entry, made to free an old segment. Replaces only itself.
    MovedEntry = 2,
    /// Term, vote and commit of a shard; the latest counts.
    HardState = 3,
    /// The shard's log begins at this index from here on. The term is that of the entry before it.
    TruncatePrefix = 4,
    /// The shard's log is empty and begins at this index (a snapshot was installed). The term is that of the entry before it.
    Reset = 5,
    /// The shard is not on this node any more.
    RemoveShard = 6,
}

impl Kind {
    /// The word used in inspection.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Entry => "entry",
            Kind::MovedEntry => "moved_entry",
            Kind::HardState => "hard_state",
            Kind::TruncatePrefix => "truncate",
            Kind::Reset => "reset",
            Kind::RemoveShard => "remove_shard",
        }
    }

    pub(crate) fn from_u8(b: u8) -> Option<Kind> {
        [Kind::Entry, Kind::MovedEntry, Kind::HardState, Kind::TruncatePrefix, Kind::Reset, Kind::RemoveShard]
            .into_iter()
            .find(|k| *k as u8 == b)
    }
}

/// The term of a truncation mark that the log fills in from its own index.
pub(crate) const TERM_FROM_INDEX: Term = Term::MAX;

/// One record, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub kind: Kind,
    pub shard: ShardId,
    pub term: Term,
    pub index: LogIndex,
    pub payload: Bytes,
}

impl Record {
    pub(crate) fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.len()
    }

    pub(crate) fn hard_state(shard: ShardId, hs: HardState) -> Record {
        let payload = Bytes::copy_from_slice(&hs.vote.to_le_bytes());
        Record { kind: Kind::HardState, shard, term: hs.term, index: hs.commit, payload }
    }

    pub(crate) fn mark(kind: Kind, shard: ShardId, first_index: LogIndex, prev_term: Term) -> Record {
        Record { kind, shard, term: prev_term, index: first_index, payload: Bytes::new() }
    }
}

/// Records that belong together, of any number of shards, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) records: Vec<Record>,
    pub(crate) bytes: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    fn push(&mut self, record: Record) -> &mut Batch {
        self.bytes += record.bytes();
        self.records.push(record);
        self
    }

    /// An entry. Its index is at most one above the shard's last; at or below it, it replaces that entry and all
    /// behind it. A shard not seen before begins at index 1: [`Batch::reset`] it first to begin elsewhere.
    pub fn entry(
        &mut self,
        shard: ShardId,
        term: Term,
        index: LogIndex,
        payload: impl Into<Bytes>,
    ) -> &mut Batch {
        self.push(Record { kind: Kind::Entry, shard, term, index, payload: payload.into() })
    }

    /// The shard's hard state from here on.
    pub fn hard_state(&mut self, shard: ShardId, hard_state: HardState) -> &mut Batch {
        self.push(Record::hard_state(shard, hard_state))
    }

    /// Entries below `first_index` are not needed any more. At or below the present first index this does nothing.
    /// Beyond the end, the log is empty and goes on at `first_index`. The term of `first_index - 1` stays readable.
    pub fn truncate_prefix(&mut self, shard: ShardId, first_index: LogIndex) -> &mut Batch {
        self.push(Record::mark(Kind::TruncatePrefix, shard, first_index, TERM_FROM_INDEX))
    }

    /// The shard's log becomes empty and begins at `first_index` (1 or more): a snapshot up to `first_index - 1`,
    /// whose term is `prev_term`, was installed. The hard state stays.
    pub fn reset(&mut self, shard: ShardId, first_index: LogIndex, prev_term: Term) -> &mut Batch {
        self.push(Record::mark(Kind::Reset, shard, first_index.max(1), prev_term.min(TERM_FROM_INDEX - 1)))
    }

    /// Forgets the shard: entries, hard state, marks.
    pub fn remove_shard(&mut self, shard: ShardId) -> &mut Batch {
        self.push(Record::mark(Kind::RemoveShard, shard, 0, 0))
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Is nothing in it?
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes its records take on disk.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the records of another batch.
    pub fn merge(&mut self, mut other: Batch) {
        self.bytes += other.bytes;
        self.records.append(&mut other.records);
    }
}
