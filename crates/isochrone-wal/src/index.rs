//! What the log knows in memory: per shard, where each entry lies; per segment, how much of it is still needed.
//!
//! The index takes about 60 bytes per live entry, so its size is bounded by what the shards keep: truncation is the
//! owner's duty. The same [`State::apply`] builds it at recovery and keeps it up to date while writing, so both
//! give the same answer. While records are replayed, a shard may have holes (its older entries were moved to the
//! head of the log, behind newer ones): [`ShardIndex::missing`] tells at the end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use isochrone_base::{LogIndex, ShardId, Term};
use isochrone_env::DiskFile;
use rustc_hash::FxHashMap;

use crate::batch::{HardState, Kind, Record};
use crate::format::{self, Position, RECORD_HEADER_BYTES};

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub generation: u64,
    /// Fits: a segment is smaller than 4 GiB.
    pub offset: u32,
    pub payload_bytes: u32,
    pub term: Term,
}

impl Slot {
    pub(crate) fn position(&self) -> Position {
        Position { generation: self.generation, offset: u64::from(self.offset) }
    }

    pub(crate) fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }
}

/// A record without its payload: what the index needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub kind: Kind,
    pub shard: ShardId,
    pub term: Term,
    pub index: LogIndex,
    pub vote: u64,
    pub payload_bytes: u32,
    pub at: Position,
}

impl Applied {
    pub(crate) fn new(record: &Record, at: Position) -> Applied {
        Applied {
            kind: record.kind,
            shard: record.shard,
            term: record.term,
            index: record.index,
            vote: format::vote_of(record),
            payload_bytes: record.payload.len() as u32,
            at,
        }
    }
}

/// One shard's log.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardIndex {
    pub entries: BTreeMap<LogIndex, Slot>,
    /// First index of the log; 0 stands for 1, a log that was never truncated.
    first: LogIndex,
    /// Term of the entry before the first.
    pub prev_term: Term,
    /// Generation of the latest truncation mark.
    pub mark: Option<u64>,
    /// The latest hard state and the generation it lies in.
    pub hard: Option<(HardState, u64)>,
}

impl ShardIndex {
    pub(crate) fn first(&self) -> LogIndex {
        self.first.max(1)
    }

    pub(crate) fn last(&self) -> LogIndex {
        self.entries.last_key_value().map_or(self.first() - 1, |(&i, _)| i)
    }

    /// An index between first and last that has no entry: only damage can make one.
    pub(crate) fn missing(&self) -> Option<LogIndex> {
        let (first, last) = (self.first(), self.last());
        if self.entries.len() as u64 == (last + 1).saturating_sub(first)
            && self.entries.first_key_value().is_none_or(|(&i, _)| i == first)
        {
            return None;
        }
        (first..)
            .zip(self.entries.keys())
            .find(|(expected, i)| expected != *i)
            .map(|(expected, &i)| expected.min(i))
    }
}

/// A segment file that is part of the log.
#[derive(Clone)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// Length of the file.
    pub bytes: u64,
    /// Where its batches end: of the active segment, as far as durable.
    pub end: u64,
}

/// What is still needed of a segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    pub live_bytes: u64,
    /// Live records per shard; shards without any are absent. Order is never observed.
    pub live: FxHashMap<ShardId, u32>,
}

/// Everything in memory about what is durable.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub shards: BTreeMap<ShardId, ShardIndex>,
    pub segments: BTreeMap<u64, Segment>,
    /// By generation; absent where nothing is live.
    pub usage: BTreeMap<u64, Usage>,
    pub entries: u64,
}

const MARK_BYTES: u64 = RECORD_HEADER_BYTES as u64;
const HARD_STATE_BYTES: u64 = RECORD_HEADER_BYTES as u64 + 8;

/// Books live records on and off their segments' accounts.
struct Accounts<'a>(&'a mut BTreeMap<u64, Usage>);

impl Accounts<'_> {
    fn free(&mut self, generation: u64, shard: ShardId, bytes: u64) {
        let Some(usage) = self.0.get_mut(&generation) else { return };
        usage.live_bytes = usage.live_bytes.saturating_sub(bytes);
        if let Some(n) = usage.live.get_mut(&shard) {
            *n -= 1;
            if *n == 0 {
                usage.live.remove(&shard);
            }
        }
        if usage.live.is_empty() {
            debug_assert_eq!(usage.live_bytes, 0, "no live record, no live byte");
            self.0.remove(&generation);
        }
    }

    fn keep(&mut self, generation: u64, shard: ShardId, bytes: u64) {
        let usage = self.0.entry(generation).or_default();
        usage.live_bytes += bytes;
        *usage.live.entry(shard).or_insert(0) += 1;
    }
}

impl State {
    /// Takes in one record, in log order. Returns whether something became unneeded.
    pub(crate) fn apply(&mut self, r: &Applied) -> bool {
        let State { shards, usage, entries, .. } = self;
        let mut usage = Accounts(usage);
        let (shard, generation) = (r.shard, r.at.generation);
        if r.kind == Kind::RemoveShard {
            // The record itself is needed only while older segments exist; they go first, in order (W7).
            let Some(gone) = shards.remove(&shard) else { return false };
            *entries -= gone.entries.len() as u64;
            gone.entries.values().for_each(|s| usage.free(s.generation, shard, s.record_bytes()));
            gone.mark.iter().for_each(|&g| usage.free(g, shard, MARK_BYTES));
            gone.hard.iter().for_each(|&(_, g)| usage.free(g, shard, HARD_STATE_BYTES));
            return true;
        }
        let s = shards.entry(shard).or_default();
        let mut freed = false;
        match r.kind {
            Kind::Entry | Kind::MovedEntry => {
                if r.index < s.first() {
                    return false;
                }
                let slot = Slot {
                    generation,
                    offset: r.at.offset as u32,
                    payload_bytes: r.payload_bytes,
                    term: r.term,
                };
                if r.kind == Kind::Entry && s.last() >= r.index {
                    let gone = s.entries.split_off(&r.index);
                    *entries -= gone.len() as u64;
                    freed = !gone.is_empty();
                    gone.values().for_each(|o| usage.free(o.generation, shard, o.record_bytes()));
                }
                usage.keep(generation, shard, slot.record_bytes());
                match s.entries.insert(r.index, slot) {
                    Some(old) => {
                        usage.free(old.generation, shard, old.record_bytes());
                        freed = true;
                    }
                    None => *entries += 1,
                }
            }
            Kind::HardState => {
                let hs = HardState { term: r.term, vote: r.vote, commit: r.index };
                usage.keep(generation, shard, HARD_STATE_BYTES);
                if let Some((_, old)) = s.hard.replace((hs, generation)) {
                    usage.free(old, shard, HARD_STATE_BYTES);
                    freed = old != generation;
                }
            }
            Kind::TruncatePrefix | Kind::Reset => {
                let gone = if r.kind == Kind::Reset {
                    std::mem::take(&mut s.entries)
                } else {
                    let kept = s.entries.split_off(&r.index);
                    std::mem::replace(&mut s.entries, kept)
                };
                *entries -= gone.len() as u64;
                freed = true;
                gone.values().for_each(|o| usage.free(o.generation, shard, o.record_bytes()));
                s.first = r.index;
                s.prev_term = r.term;
                usage.keep(generation, shard, MARK_BYTES);
                if let Some(old) = s.mark.replace(generation) {
                    usage.free(old, shard, MARK_BYTES);
                }
            }
            Kind::RemoveShard => {}
        }
        freed
    }
}
