//! One Raft group's log as raft-rs sees it: over the node log, with a cache of the entries that are not durable yet or
//! were appended last; and where its snapshots come from.
//!
//! The log keeps one entry more than Raft needs when it is truncated, so that the term before the first entry can be
//! answered; a log that was reset knows that term by itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isochrone_base::{INIT_INDEX, INIT_TERM, LogIndex, Members, NodeId, ShardId, Term};
use raft::eraftpb::{Entry, EntryType, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::log::{CONF_CHANGE, GroupLog, HardState, LogEntry};
use crate::membership::{conf_of, members_of};
use crate::{NewGroup, SnapshotMeta, SnapshotSource, StateMachine};

/// Entries kept in memory behind the durable end, so that applying and sending need not read the log.
pub(crate) const CACHED_ENTRIES_MAX: usize = 1_024;
/// Bytes of such entries.
pub(crate) const CACHED_BYTES_MAX: usize = 4 << 20;
/// Snapshots on their way to followers, of all groups: each holds the engine's files of its moment. At the bound a
/// follower waits; its leader tries again at the next heartbeat.
pub(crate) const SNAPSHOTS_OUT_MAX: usize = 4;

/// How far a follower is, as its leader knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The follower.
    pub node: NodeId,
    /// Its log agrees with the leader's up to here.
    pub matched: LogIndex,
    /// The next entry to be sent.
    pub next: LogIndex,
    /// It was heard of lately.
    pub recently_active: bool,
    /// The index of the snapshot that is on its way to it.
    pub pending_snapshot: Option<LogIndex>,
}

/// Where a group stands, for inspection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupStatus {
    /// The term.
    pub term: Term,
    /// The leader, if it was heard of within an election timeout.
    pub leader: Option<NodeId>,
    /// This node leads.
    pub leading: bool,
    /// The members; none on a blank replica.
    pub members: Members,
    /// First index in the log.
    pub first_index: LogIndex,
    /// Last index in the log.
    pub last_index: LogIndex,
    /// Committed up to here.
    pub commit: LogIndex,
    /// Applied up to here.
    pub applied: LogIndex,
    /// On the leader: the other members.
    pub followers: Vec<Progress>,
    /// On the leader: until when it may serve reads, on its monotonic clock; 0: not at all.
    pub lease_until_ns: u64,
    /// A snapshot is being installed.
    pub installing: bool,
    /// The log may lack what was acknowledged (C9). While some group of a node is in doubt, the node's next start has to
    /// be told so again ([`crate::StoreConfig::recovering`]): the doubt itself is not in the log.
    pub doubtful: bool,
    /// May vote. Not while a snapshot is installed, or while it doubts its log.
    pub votes: bool,
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

/// What the node log holds of a shard, in Raft's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// Raft's first index.
    pub(crate) first: LogIndex,
    pub(crate) last: LogIndex,
    /// Term of the entry before the first.
    pub(crate) base_term: Term,
}

impl Extent {
    const EMPTY: Extent = Extent { first: 1, last: 0, base_term: 0 };

    pub(crate) fn of(log: &dyn GroupLog, shard: ShardId) -> Extent {
        let Some((first, prev_term)) = log.begin(shard) else { return Extent::EMPTY };
        let last = log.bounds(shard).map_or(first - 1, |(_, last)| last);
        if first == 1 || prev_term != 0 || last < first {
            return Extent { first, last, base_term: prev_term };
        }
        // The term before the first entry is not known: that entry stands for it.
        Extent { first: first + 1, last, base_term: log.term(shard, first).unwrap_or(0) }
    }

    /// Term and index of the last entry.
    pub(crate) fn end(&self, log: &dyn GroupLog, shard: ShardId) -> (Term, LogIndex) {
        let term = if self.last < self.first { Some(self.base_term) } else { log.term(shard, self.last) };
        (term.unwrap_or(self.base_term), self.last)
    }

    /// Is the entry that the state machine applied last the one that stands in the log? A log that was cut may show again what
    /// had been replaced.
    pub(crate) fn is_of(&self, new: &NewGroup, log: &dyn GroupLog) -> bool {
        let held = match new.applied + 1 == self.first {
            true => self.base_term,
            false => log.term(new.shard, new.applied).unwrap_or(0),
        };
        held == new.applied_term || held == 0 || new.applied_term == 0
    }

    /// Nothing was ever logged.
    pub(crate) fn is_untouched(&self) -> bool {
        *self == Extent::EMPTY
    }
}

/// One of the places of [`SNAPSHOTS_OUT_MAX`]; free again when dropped.
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Slot> {
        // One thread takes: the store loop.
        (taken.load(Ordering::Relaxed) < SNAPSHOTS_OUT_MAX).then(|| {
            taken.fetch_add(1, Ordering::Relaxed);
            Slot(taken.clone())
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A snapshot whose message raft-rs has made and not handed out yet.
pub(crate) struct Begun {
    pub(crate) to: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) source: Box<dyn SnapshotSource>,
    pub(crate) slot: Slot,
}

/// What all groups of a store share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn GroupLog>,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) snapshots_out: Arc<AtomicUsize>,
}

/// raft-rs's view of a group's log.
pub(crate) struct GroupStorage {
    shard: ShardId,
    shared: Shared,
    members: Members,
    hard_state: HardState,
    /// Raft's first index; the entry before it may still be in the log, for its term.
    first: LogIndex,
    last: LogIndex,
    base_term: Term,
    applied: LogIndex,
    /// A tail of the log: contiguous, ends at `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    begun: RefCell<Vec<Begun>>,
}

impl GroupStorage {
    /// Over the log as it is. The caller has seen that the log reaches back to what was applied.
    pub(crate) fn open(shard: ShardId, members: &Members, applied: LogIndex, shared: Shared) -> GroupStorage {
        let extent = Extent::of(&*shared.log, shard);
        GroupStorage::new(shard, members, applied, extent, shared)
    }

    /// The log of a group that is being born (CS2): the caller writes a reset.
    pub(crate) fn born(shard: ShardId, members: &Members, shared: Shared) -> GroupStorage {
        let extent = Extent { first: INIT_INDEX + 1, last: INIT_INDEX, base_term: INIT_TERM };
        GroupStorage::new(shard, members, INIT_INDEX, extent, shared)
    }

    /// An empty log, whatever the node log holds of the shard: only the hard state counts.
    pub(crate) fn blank(shard: ShardId, shared: Shared) -> GroupStorage {
        GroupStorage::new(shard, &Members::default(), 0, Extent::EMPTY, shared)
    }

    fn new(
        shard: ShardId,
        members: &Members,
        applied: LogIndex,
        extent: Extent,
        shared: Shared,
    ) -> GroupStorage {
        let Extent { first, last, base_term } = extent;
        let mut hard_state = shared.log.hard_state(shard).unwrap_or_default();
        if hard_state.term < base_term {
            // The hard state of a group that was just born, or just filled, may not be written yet.
            hard_state = HardState { term: base_term, vote: 0, ..hard_state };
        }
        // The commit index is written only along with entries; what was applied was committed.
        hard_state.commit = hard_state.commit.max(applied).max(first - 1).min(last);
        GroupStorage {
            shard,
            shared,
            members: members.clone(),
            hard_state,
            first,
            last,
            base_term,
            applied,
            cache: VecDeque::new(),
            cache_bytes: 0,
            begun: RefCell::default(),
        }
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn base(&self) -> (LogIndex, Term) {
        (self.first - 1, self.base_term)
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn set_members(&mut self, members: Members) {
        self.members = members;
    }

    pub(crate) fn set_applied(&mut self, applied: LogIndex) {
        self.applied = applied;
    }

    /// The snapshot that goes with a message to this peer.
    pub(crate) fn take_begun(&mut self, to: u64) -> Option<Begun> {
        let begun = self.begun.get_mut();
        let at = begun.iter().position(|b| b.to == to)?;
        Some(begun.remove(at))
    }

    /// The log is empty and goes on behind a snapshot: the caller writes a reset.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) {
        self.first = meta.index + 1;
        self.last = meta.index;
        self.base_term = meta.term;
        self.members.clone_from(&meta.members);
        self.cache.clear();
        self.cache_bytes = 0;
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

    /// Raft needs nothing at or below `upto`. Returns the first index that the log must keep; `None`: nothing to do.
    pub(crate) fn truncate(&mut self, upto: LogIndex) -> Option<LogIndex> {
        let upto = upto.min(self.last);
        if upto < self.first {
            return None;
        }
        self.base_term = Storage::term(self, upto).ok()?;
        self.first = upto + 1;
        while self.cache.front().is_some_and(|e| e.index + 1 < self.first) {
            let gone = self.cache.pop_front().expect("front was there");
            self.cache_bytes -= gone.data.len();
        }
        Some(upto)
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
        Ok(RaftState::new(hs, conf_of(&self.members)))
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
            let read = self.shared.log.entries(self.shard, low, upto, bytes_max);
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
        if index + 1 == self.first {
            return Ok(self.base_term);
        }
        if index < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.cached(index) {
            Some(entry) => Ok(entry.term),
            None => {
                self.shared.log.term(self.shard, index).ok_or(raft::Error::Store(StorageError::Unavailable))
            }
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// Of everything applied so far: called on the store loop, between applications.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        const LATER: raft::Error = raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        if self.applied == 0 {
            return Err(LATER);
        }
        let term = Storage::term(self, self.applied)?;
        let slot = Slot::take(&self.shared.snapshots_out).ok_or(LATER)?;
        let source = self.shared.machine.snapshot(self.shard).map_err(|reason| {
            tracing::warn!(shard = %self.shard, to, reason, "no snapshot for a follower; it is tried again");
            LATER
        })?;
        let meta = SnapshotMeta { index: self.applied, term, members: self.members.clone() };
        let snapshot = meta.to_raft();
        let mut begun = self.begun.borrow_mut();
        begun.retain(|b| b.to != to);
        begun.push(Begun { to, meta, source, slot });
        Ok(snapshot)
    }
}

impl SnapshotMeta {
    pub(crate) fn to_raft(&self) -> Snapshot {
        let mut meta = SnapshotMetadata { index: self.index, term: self.term, ..SnapshotMetadata::default() };
        meta.set_conf_state(conf_of(&self.members));
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(meta);
        snapshot
    }

    pub(crate) fn of_raft(snapshot: &Snapshot) -> SnapshotMeta {
        let meta = snapshot.get_metadata();
        // A group that nobody here proposes is one without this node: such a snapshot is refused.
        let members = members_of(meta.get_conf_state()).unwrap_or_default();
        SnapshotMeta { index: meta.index, term: meta.term, members }
    }
}
