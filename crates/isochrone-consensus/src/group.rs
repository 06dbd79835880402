//! One Raft group: raft-rs's node over our log, with a cache of the entries that are not durable yet or were
//! appended last.
//!
//! The log keeps one entry more than Raft needs: the entry at Raft's "truncated index" stays for its term, so that
//! `term(first_index - 1)` can be answered without a record of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use isochrone_base::{LogIndex, NodeId, ShardId, Term};
use raft::eraftpb::{ConfState, Entry, EntryType, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::log::{CONF_CHANGE, GroupLog, HardState, LogEntry};

/// Entries kept in memory behind the durable end, so that applying and sending need not read the log.
pub(crate) const CACHED_ENTRIES_MAX: usize = 1_024;
/// Bytes of such entries.
pub(crate) const CACHED_BYTES_MAX: usize = 4 << 20;

/// Where a group stands, for inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupStatus {
    /// The term.
    pub term: Term,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// First index in the log.
    pub first_index: LogIndex,
    /// Last index in the log.
    pub last_index: LogIndex,
    /// Committed up to here.
    pub commit: LogIndex,
    /// Applied up to here.
    pub applied: LogIndex,
}

pub(crate) fn to_log_entry(entry: &Entry) -> LogEntry {
    let payload = match entry.get_entry_type() {
        EntryType::EntryNormal => entry.data.clone(),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            let mut out = Vec::with_capacity(entry.data.len() + 1);
            out.push(CONF_CHANGE);
            out.extend_from_slice(&entry.data);
            out.into()
        }
    };
    LogEntry { index: entry.index, term: entry.term, payload }
}

pub(crate) fn to_raft_entry(entry: LogEntry) -> Entry {
    let mut out = Entry { index: entry.index, term: entry.term, ..Entry::default() };
    if entry.payload.first() == Some(&CONF_CHANGE) {
        out.set_entry_type(EntryType::EntryConfChangeV2);
        out.data = entry.payload.slice(1..);
    } else {
        out.data = entry.payload;
    }
    out
}

/// raft-rs's view of a group's log.
pub(crate) struct GroupStorage {
    shard: ShardId,
    log: Arc<dyn GroupLog>,
    conf: ConfState,
    hard_state: HardState,
    /// Raft's first index; the entry before it may still be in the log, for its term.
    first: LogIndex,
    last: LogIndex,
    /// A tail of the log: contiguous, ends at `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
}

impl GroupStorage {
    pub(crate) fn open(
        shard: ShardId,
        voters: &[NodeId],
        applied: LogIndex,
        log: Arc<dyn GroupLog>,
    ) -> GroupStorage {
        let mut hard_state = log.hard_state(shard).unwrap_or_default();
        let (first, last) = match log.bounds(shard) {
            None => (1, 0),
            Some((1, last)) => (1, last),
            Some((first, last)) => (first + 1, last),
        };
        // The commit index is written only along with entries; what was applied was committed.
        hard_state.commit = hard_state.commit.max(applied).min(last);
        let conf =
            ConfState { voters: voters.iter().map(|n| u64::from(n.0)).collect(), ..ConfState::default() };
        GroupStorage { shard, log, conf, hard_state, first, last, cache: VecDeque::new(), cache_bytes: 0 }
    }

    pub(crate) fn first(&self) -> LogIndex {
        self.first
    }

    pub(crate) fn last(&self) -> LogIndex {
        self.last
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Takes entries that are on their way to the log. They may replace a tail that was never committed.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(from) = entries.first().map(|e| e.index) else { return };
        assert!(from > 0 && from <= self.last + 1, "shard {}: a gap before entry {from}", self.shard);
        while self.cache.back().is_some_and(|e| e.index >= from) {
            let gone = self.cache.pop_back().expect("back was there");
            self.cache_bytes -= gone.data.len();
        }
        for entry in entries {
            self.cache_bytes += entry.data.len();
            self.last = entry.index;
            self.cache.push_back(entry.clone());
        }
    }

    /// Entries up to `durable` can be read from the log: the cache may shrink to its bound.
    pub(crate) fn trim_cache(&mut self, durable: LogIndex) {
        while self.cache.len() > CACHED_ENTRIES_MAX || self.cache_bytes > CACHED_BYTES_MAX {
            match self.cache.front() {
                Some(e) if e.index <= durable => {
                    let gone = self.cache.pop_front().expect("front was there");
                    self.cache_bytes -= gone.data.len();
                }
                _ => break,
            }
        }
    }

    /// Raft needs nothing at or below `upto`. Returns the first index that the log must keep.
    pub(crate) fn truncate(&mut self, upto: LogIndex) -> LogIndex {
        self.first = self.first.max(upto.min(self.last) + 1);
        while self.cache.front().is_some_and(|e| e.index + 1 < self.first) {
            let gone = self.cache.pop_front().expect("front was there");
            self.cache_bytes -= gone.data.len();
        }
        self.first - 1
    }

    fn cached(&self, index: LogIndex) -> Option<&Entry> {
        let first = self.cache.front()?.index;
        self.cache.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hs = raft::eraftpb::HardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            commit: self.hard_state.commit,
            ..Default::default()
        };
        Ok(RaftState::new(hs, self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut out = Vec::new();
        let mut bytes = 0u64;
        let cache_first = self.cache.front().map_or(self.last + 1, |e| e.index);
        if low < cache_first {
            let upto = high.min(cache_first);
            let read = self.log.entries(self.shard, low, upto, bytes_max);
            let read = read.map_err(|e| raft::Error::Store(StorageError::Other(e.into())))?;
            let complete = read.last().is_some_and(|e| e.index + 1 == upto);
            bytes = read.iter().map(|e| e.payload.len() as u64).sum();
            out.extend(read.into_iter().map(to_raft_entry));
            if !complete {
                return Ok(out);
            }
        }
        for index in low.max(cache_first)..high {
            let entry = self.cached(index).ok_or(raft::Error::Store(StorageError::Unavailable))?;
            bytes += entry.data.len() as u64;
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == 0 {
            return Ok(0);
        }
        if index + 1 < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.cached(index) {
            Some(entry) => Ok(entry.term),
            None => self.log.term(self.shard, index).ok_or(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Snapshots travel between nodes; with one replica nobody asks.
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
