//! Reading the log while it is written, from any thread. Everything a reader sees is durable.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use isochrone_base::{LogIndex, ShardId, Term};
use isochrone_env::DiskFile;

use crate::Error;
use crate::batch::{HardState, Kind, Record};
use crate::format::{self, Position};
use crate::index::{Segment, ShardIndex, Slot, State};
use crate::inspect::{Records, SegmentInfo};
use crate::metrics::{Counters, Stats};

/// Adjacent entries are read with one call, up to this many bytes.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes of other shards between two entries that are read along rather than skipped.
const READ_GAP_MAX: u64 = 4 << 10;

/// What writer and readers share. The lock is held for memory operations only, never across I/O.
pub(crate) struct Shared {
    state: RwLock<State>,
    pub counters: Counters,
}

impl Shared {
    pub(crate) fn new(state: State) -> Shared {
        Shared { state: RwLock::new(state), counters: Counters::default() }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no panic while the index is locked")
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no panic while the index is locked")
    }
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term it was proposed in.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
    /// What the owner stored: a view into a shared buffer.
    pub payload: Bytes,
}

/// Where an entry lies, for inspection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPosition {
    /// The segment file.
    pub file: PathBuf,
    /// Segment number and byte offset of the record.
    pub at: Position,
    /// Bytes of the whole record.
    pub bytes: u64,
    /// The entry's term.
    pub term: Term,
}

/// Reads the durable part of a log. Cloning is cheap and shares it.
#[derive(Clone)]
pub struct LogReader(pub(crate) Arc<Shared>);

impl LogReader {
    fn with<T>(
        &self,
        shard: ShardId,
        f: impl FnOnce(&State, &ShardIndex) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let state = self.0.read();
        f(&state, state.shards.get(&shard).ok_or(Error::UnknownShard(shard))?)
    }

    /// The shards that have a log, in order.
    pub fn shards(&self) -> Vec<ShardId> {
        self.0.read().shards.keys().copied().collect()
    }

    /// First index of a shard's log: 1, or what it was truncated or reset to; the log may be empty.
    pub fn first_index(&self, shard: ShardId) -> Result<LogIndex, Error> {
        self.with(shard, |_, s| Ok(s.first()))
    }

    /// Last index of a shard's log; the first minus one if it is empty.
    pub fn last_index(&self, shard: ShardId) -> Result<LogIndex, Error> {
        self.with(shard, |_, s| Ok(s.last()))
    }

    /// The shard's hard state; none if it never had one.
    pub fn hard_state(&self, shard: ShardId) -> Result<Option<HardState>, Error> {
        self.with(shard, |_, s| Ok(s.hard.map(|(hs, _)| hs)))
    }

    /// Bytes that the shard's live entries take.
    pub fn entry_bytes(&self, shard: ShardId) -> Result<u64, Error> {
        self.with(shard, |_, s| Ok(s.entries.values().map(Slot::record_bytes).sum()))
    }

    /// The term of an entry, also of the one before the first, if known: 0 at index 0, and after a truncation
    /// beyond the end that did not say it.
    pub fn term(&self, shard: ShardId, index: LogIndex) -> Result<Term, Error> {
        self.with(shard, |_, s| {
            if index + 1 == s.first() {
                return Ok(s.prev_term);
            }
            Ok(slot(shard, s, index)?.term)
        })
    }

    /// Where an entry lies.
    pub fn position(&self, shard: ShardId, index: LogIndex) -> Result<EntryPosition, Error> {
        self.with(shard, |state, s| {
            let slot = slot(shard, s, index)?;
            let segment = segment_of(state, slot);
            Ok(EntryPosition {
                file: segment.path.clone(),
                at: slot.position(),
                bytes: slot.record_bytes(),
                term: slot.term,
            })
        })
    }

    /// The entries of `range`, in order, until their payloads exceed `bytes_max`; at least one if the range is not
    /// empty. [`Error::Compacted`] below the first index, [`Error::Unavailable`] when the range ends beyond the last
    /// plus one, [`Error::Damaged`] if what is on disk is not what was written.
    pub fn entries(
        &self,
        shard: ShardId,
        range: Range<LogIndex>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, Error> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut wanted: Vec<(LogIndex, Slot)> = Vec::new();
        let mut segments: Vec<(u64, Segment)> = Vec::new();
        self.with(shard, |state, s| {
            slot(shard, s, range.start)?;
            slot(shard, s, range.end - 1)?;
            let mut bytes = 0;
            for (&index, slot) in s.entries.range(range) {
                bytes += slot.payload_bytes as usize;
                if !wanted.is_empty() && bytes > bytes_max {
                    break;
                }
                wanted.push((index, *slot));
                if segments.iter().all(|(g, _)| *g != slot.generation) {
                    segments.push((slot.generation, segment_of(state, slot).clone()));
                }
            }
            Ok(())
        })?;
        let mut out = Vec::with_capacity(wanted.len());
        let mut rest = &wanted[..];
        while let Some((_, first)) = rest.first() {
            let (start, mut end) = (u64::from(first.offset), u64::from(first.offset) + first.record_bytes());
            let mut n = 1;
            while let Some((_, next)) = rest.get(n) {
                let (from, to) = (u64::from(next.offset), u64::from(next.offset) + next.record_bytes());
                if next.generation != first.generation
                    || from < end
                    || from - end > READ_GAP_MAX
                    || to - start > READ_BYTES_MAX
                {
                    break;
                }
                end = to;
                n += 1;
            }
            let (_, segment) = segments
                .iter()
                .find(|(g, _)| *g == first.generation)
                .expect("every wanted entry's segment was noted");
            let bytes = read_range(&*segment.file, &segment.path, start, end)?;
            for (index, slot) in &rest[..n] {
                let from = (u64::from(slot.offset) - start) as usize;
                let r = check(&bytes.slice(from..), &segment.path, slot, shard, *index)?;
                out.push(Entry { term: r.term, index: r.index, payload: r.payload });
            }
            rest = &rest[n..];
        }
        Ok(out)
    }

    /// Every durable record of the log, in log order, also those that later ones outdate.
    pub fn scan(&self) -> Records {
        Records::of(self.0.read().segments.iter().map(|(g, s)| (*g, s.clone())).collect())
    }

    /// The segments in use.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let state = self.0.read();
        let usage = |g: u64| state.usage.get(&g).map_or(0, |u| u.live_bytes);
        let info = |(g, s): (&u64, &Segment)| SegmentInfo {
            file: s.path.clone(),
            generation: *g,
            bytes: s.bytes,
            end: s.end,
            live_bytes: usage(*g),
        };
        state.segments.iter().map(info).collect()
    }

    /// Live entries of all shards.
    pub fn entry_count(&self) -> u64 {
        self.0.read().entries
    }

    /// Counters since opening.
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }
}

fn slot(shard: ShardId, s: &ShardIndex, index: LogIndex) -> Result<&Slot, Error> {
    if index < s.first() {
        return Err(Error::Compacted { shard, index, first: s.first() });
    }
    s.entries.get(&index).ok_or(Error::Unavailable { shard, index, last: s.last() })
}

fn segment_of<'a>(state: &'a State, slot: &Slot) -> &'a Segment {
    state.segments.get(&slot.generation).expect("a segment with a live entry is not freed (W7)")
}

fn read_range(file: &dyn DiskFile, path: &Path, start: u64, end: u64) -> Result<Bytes, Error> {
    let mut buf = vec![0; (end - start) as usize];
    file.read_exact_at(&mut buf, start).map_err(|e| Error::io("read", path, e))?;
    Ok(buf.into())
}

/// Reads one entry's record and checks that it is the one that was written there.
pub(crate) fn read_record(
    file: &dyn DiskFile,
    path: &Path,
    slot: &Slot,
    shard: ShardId,
    index: LogIndex,
) -> Result<Record, Error> {
    let start = u64::from(slot.offset);
    let bytes = read_range(file, path, start, start + slot.record_bytes())?;
    check(&bytes, path, slot, shard, index)
}

fn check(bytes: &Bytes, path: &Path, slot: &Slot, shard: ShardId, index: LogIndex) -> Result<Record, Error> {
    let damaged = |what: &str| Error::Damaged {
        file: path.to_path_buf(),
        offset: u64::from(slot.offset),
        what: what.into(),
    };
    let r = format::get_record(bytes, slot.position()).map_err(damaged)?;
    let same = matches!(r.kind, Kind::Entry | Kind::MovedEntry)
        && (r.shard, r.index, r.term) == (shard, index, slot.term)
        && r.payload.len() as u64 == u64::from(slot.payload_bytes);
    if same { Ok(r) } else { Err(damaged("another record lies there")) }
}
