//! The log as consensus sees it: entries and hard states by shard. The node log (crate wal) implements it; a test
//! implements it over a map.

use std::collections::BTreeMap;

use isochrone_base::{Bytes, LogIndex, ShardId, Term};

/// What Raft must remember besides entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Node voted for in it, 0 for none.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: LogIndex,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Index.
    pub index: LogIndex,
    /// Term.
    pub term: Term,
    /// Payload; empty for a leader's first entry, first byte [`CONF_CHANGE`] for a membership change.
    pub payload: Bytes,
}

/// First byte of a membership change. The state machine's payloads never begin with it.
pub const CONF_CHANGE: u8 = 0xcc;

impl LogEntry {
    /// Does it change the members of its group?
    pub fn is_change(&self) -> bool {
        self.payload.first() == Some(&CONF_CHANGE)
    }
}

/// A word of a [`LogBatch`], as it goes to disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The log becomes empty and begins at this index; the term is that of the entry before it.
    Reset(ShardId, LogIndex, Term),
    /// A new hard state.
    HardState(ShardId, HardState),
    /// A new entry.
    Entry(ShardId, LogEntry),
    /// Entries below this index are not needed any more.
    Truncate(ShardId, LogIndex),
}

/// What one step wants on durable storage, for all groups that had work.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogBatch {
    /// Logs that become empty and begin at this index; the term is that of the entry before it. These come first:
    /// whatever else the batch says of the shard is said of the new log.
    pub resets: Vec<(ShardId, LogIndex, Term)>,
    /// New entries; an index that is there already replaces it and everything behind it.
    pub entries: Vec<(ShardId, LogEntry)>,
    /// New hard states.
    pub hard_states: Vec<(ShardId, HardState)>,
    /// Entries below this index are not needed any more.
    pub truncate: Vec<(ShardId, LogIndex)>,
}

impl LogBatch {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.hard_states.is_empty()
            && self.truncate.is_empty()
            && self.resets.is_empty()
    }

    /// The batch in the order in which it goes to disk. The disk may hold any part of it from the beginning: a log may cut what
    /// it is given into several writes, and end between them. So
    ///   * a term and a vote come before the entries of that term;
    ///   * a commit index never comes before the entries that it speaks of: what stands in their place may be another leader's;
    ///   * and C10: no change of members is there without the word that all before it are committed, as far as that is known.
    pub fn into_records(self) -> Vec<Record> {
        let mut firsts = BTreeMap::new();
        for (shard, entry) in &self.entries {
            let first = firsts.entry(*shard).or_insert(entry.index);
            *first = entry.index.min(*first);
        }
        let mut records: Vec<_> = self.resets.into_iter().map(|(s, i, t)| Record::Reset(s, i, t)).collect();
        let mut newest = BTreeMap::new();
        for (shard, hs) in self.hard_states {
            newest.insert(shard, hs);
            let commit = firsts.get(&shard).map_or(hs.commit, |first| hs.commit.min(first.saturating_sub(1)));
            records.push(Record::HardState(shard, HardState { commit, ..hs }));
        }
        for (shard, entry) in self.entries {
            if entry.is_change()
                && let Some(hs) = newest.get(&shard)
            {
                let commit = hs.commit.min(entry.index.saturating_sub(1));
                records.push(Record::HardState(shard, HardState { commit, ..*hs }));
            }
            records.push(Record::Entry(shard, entry));
        }
        records.extend(self.truncate.into_iter().map(|(shard, first)| Record::Truncate(shard, first)));
        records
    }
}

/// Reading what was written.
pub trait GroupLog: Send + Sync {
    /// Where a shard's log begins, also when it is empty: its first index, and the term of the entry before that (0:
    /// not known, or the log begins at 1). `None`: nothing was ever written for the shard.
    fn begin(&self, shard: ShardId) -> Option<(LogIndex, Term)>;
    /// First and last index held for a shard; `None`: no entries.
    fn bounds(&self, shard: ShardId) -> Option<(LogIndex, LogIndex)>;
    /// The term of an entry that is held.
    fn term(&self, shard: ShardId, index: LogIndex) -> Option<Term>;
    /// Entries `low <= index < high`, at least one, then until `bytes_max` is passed.
    fn entries(
        &self,
        shard: ShardId,
        low: LogIndex,
        high: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, String>;
    /// The last hard state.
    fn hard_state(&self, shard: ShardId) -> Option<HardState>;
}
