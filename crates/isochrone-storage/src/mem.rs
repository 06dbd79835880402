//! An engine in memory, for the simulator and `--storage memory`.
//!
//! A map from key to its versions, each with the number of the batch that wrote it. A snapshot pins a number. The
//! flushed image is such a pin too: a flush moves it to the newest batch at once, a crash throws away every version
//! above it. So a flush copies nothing, and a simulated crash loses exactly what was not flushed.
//!
//! Invariants:
//! 1. A version is kept while it is the newest of its key, or the newest at some pinned number.
//! 2. `pins` always holds the flushed number.
//!
//! It has no threads and uses no time: the same calls give the same state. Lock order: `state`, then `pins`.
//!
//! Bounds: memory is the caller's concern. Overwritten versions that no pin needs go when their key is written again,
//! at a flush, or in a sweep once there are more than [`SWEEP_KEYS_MIN`] of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use isochrone_base::{Bytes, KeyRange};

use crate::{Engine, EngineStats, FlushCallback, Reader, Result, ScanIter, Snapshot, WriteBatch};

/// Keys with overwritten versions below which no sweep is worth its time.
const SWEEP_KEYS_MIN: usize = 4_096;
/// Rows a scan copies at first under the lock, and at most: small so that a seek is cheap, growing so that a long scan is.
const SCAN_ROWS_FIRST: usize = 4;
const SCAN_ROWS_MAX: usize = 256;
/// Bytes written since the last flush at which the engine asks for one.
const FLUSH_BYTES: u64 = 64 << 20;

/// The engine in memory. Clones share it, so that it can outlive the program that crashed.
#[derive(Clone)]
pub struct MemEngine(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: RwLock<State>,
    /// How often each batch number is pinned.
    pins: Mutex<Pins>,
    callbacks: Mutex<Vec<FlushCallback>>,
}

#[derive(Default)]
struct Pins {
    counts: BTreeMap<u64, usize>,
    /// Crashes so far: a pin from before one is void, and must not take back a pin from after it.
    crashes: u64,
}

impl Pins {
    fn pin(&mut self, seq: u64) {
        *self.counts.entry(seq).or_insert(0) += 1;
    }

    fn unpin(&mut self, seq: u64) {
        if let Some(n) = self.counts.get_mut(&seq) {
            *n -= 1;
            if *n == 0 {
                self.counts.remove(&seq);
            }
        }
    }
}

#[derive(Default)]
struct State {
    map: BTreeMap<Bytes, Versions>,
    /// Keys that have more than one version, or a removal.
    untidy: BTreeSet<Bytes>,
    /// Size of `untidy` after the last sweep.
    untidy_after_sweep: usize,
    written: u64,
    flushed: u64,
    bytes_since_flush: u64,
    stats: EngineStats,
}

/// The versions of a key; `None` is a removal.
struct Versions {
    seq: u64,
    value: Option<Bytes>,
    /// Older ones, oldest first.
    older: Vec<(u64, Option<Bytes>)>,
}

impl Versions {
    fn at(&self, seq: u64) -> Option<&Bytes> {
        if self.seq <= seq {
            return self.value.as_ref();
        }
        self.older.iter().rev().find(|(s, _)| *s <= seq).and_then(|(_, v)| v.as_ref())
    }

    /// Drops what no pin needs. Returns whether anything but one value is left.
    fn tidy(&mut self, pins: &Pins) -> Left {
        let mut next = self.seq;
        for i in (0..self.older.len()).rev() {
            let seq = self.older[i].0;
            if pins.counts.range(seq..next).next().is_none() {
                self.older.remove(i);
            }
            next = seq;
        }
        // A removal with nothing older below it says the same as no version.
        while self.older.first().is_some_and(|(_, v)| v.is_none()) {
            self.older.remove(0);
        }
        match (self.older.is_empty(), &self.value) {
            (true, None) => Left::Nothing,
            (true, Some(_)) => Left::Value,
            (false, _) => Left::More,
        }
    }
}

enum Left {
    Nothing,
    Value,
    More,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no panic while the state is locked")
    }
    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no panic while the state is locked")
    }
    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().expect("no panic while the pins are locked")
    }
}

impl State {
    fn sweep(&mut self, pins: &Pins) {
        let State { map, untidy, .. } = self;
        untidy.retain(|key| {
            let Some(versions) = map.get_mut(key) else { return false };
            match versions.tidy(pins) {
                Left::More => true,
                Left::Value => false,
                Left::Nothing => {
                    map.remove(key);
                    false
                }
            }
        });
        self.untidy_after_sweep = self.untidy.len();
    }

    fn flush(&mut self, pins: &mut Pins) {
        pins.unpin(self.flushed);
        self.flushed = self.written;
        pins.pin(self.flushed);
        self.stats.flushes += 1;
        self.stats.flushed_bytes += std::mem::take(&mut self.bytes_since_flush);
        self.sweep(pins);
    }
}

impl Default for MemEngine {
    fn default() -> MemEngine {
        MemEngine::new()
    }
}

impl MemEngine {
    /// An empty engine, whose flushed image is empty too.
    pub fn new() -> MemEngine {
        let engine = MemEngine(Arc::default());
        engine.0.pins().pin(0);
        engine
    }

    /// What a power cut does: everything written after the last flush is gone. Snapshots, scans and callbacks from before are
    /// void: drop them first. Batch numbers go on from the flushed one.
    pub fn crash(&self) {
        let mut state = self.0.write();
        let flushed = state.flushed;
        state.map.retain(|_, v| {
            while v.seq > flushed {
                let Some((seq, value)) = v.older.pop() else { return false };
                (v.seq, v.value) = (seq, value);
            }
            v.value.is_some()
        });
        for v in state.map.values_mut() {
            v.older.clear();
        }
        state.untidy.clear();
        state.untidy_after_sweep = 0;
        state.written = flushed;
        state.bytes_since_flush = 0;
        let mut pins = self.0.pins();
        pins.crashes += 1;
        pins.counts = BTreeMap::from([(flushed, 1)]);
        drop(pins);
        self.0.callbacks.lock().expect("no panic in a callback").clear();
    }

    fn pin(&self) -> MemSnapshot {
        let state = self.0.read();
        let seq = state.written;
        let mut pins = self.0.pins();
        pins.pin(seq);
        MemSnapshot(Arc::new(Pin { shared: self.0.clone(), seq, crashes: pins.crashes }))
    }
}

impl std::fmt::Debug for MemEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemEngine").field("stats", &self.stats()).finish()
    }
}

struct Pin {
    shared: Arc<Shared>,
    seq: u64,
    crashes: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins();
        if pins.crashes == self.crashes {
            pins.unpin(self.seq);
        }
    }
}

struct MemSnapshot(Arc<Pin>);

impl Reader for MemSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.shared.read().map.get(key).and_then(|v| v.at(self.0.seq)).cloned())
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        let start = Bound::Included(Bytes::copy_from_slice(&range.start));
        let end = match range.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(Bytes::copy_from_slice(&range.end)),
        };
        Box::new(MemScan {
            pin: self.0.clone(),
            reverse,
            rest: (!range.is_empty()).then_some((start, end)),
            rows: Vec::new().into_iter(),
            next_rows: SCAN_ROWS_FIRST,
        })
    }
}

impl Snapshot for MemSnapshot {}

struct MemScan {
    pin: Arc<Pin>,
    reverse: bool,
    /// The keys not looked at yet; `None`: all were.
    rest: Option<(Bound<Bytes>, Bound<Bytes>)>,
    rows: std::vec::IntoIter<(Bytes, Bytes)>,
    next_rows: usize,
}

impl MemScan {
    fn refill(&mut self) {
        let Some((start, end)) = self.rest.take() else { return };
        let state = self.pin.shared.read();
        let seq = self.pin.seq;
        let limit = self.next_rows;
        self.next_rows = (limit * 2).min(SCAN_ROWS_MAX);
        let row = |(k, v): (&Bytes, &Versions)| v.at(seq).map(|value| (k.clone(), value.clone()));
        let range = state.map.range::<Bytes, _>((start.as_ref(), end.as_ref()));
        let rows: Vec<_> = match self.reverse {
            false => range.filter_map(row).take(limit).collect(),
            true => range.rev().filter_map(row).take(limit).collect(),
        };
        if rows.len() == limit {
            let last = rows[limit - 1].0.clone();
            // `last` lies between the bounds, so what is left of them is a valid range.
            self.rest = Some(match self.reverse {
                false => (Bound::Excluded(last), end),
                true => (start, Bound::Excluded(last)),
            });
        }
        self.rows = rows.into_iter();
    }
}

impl Iterator for MemScan {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rows.len() == 0 {
            self.refill();
        }
        self.rows.next().map(Ok)
    }
}

impl Reader for MemEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        // A batch is written under the lock, so the newest version is a published one.
        Ok(self.0.read().map.get(key).and_then(|v| v.value.clone()))
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        self.pin().scan(range, reverse)
    }
}

impl Engine for MemEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.pin())
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        batch.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = batch.bytes() as u64;
        let mut state = self.0.write();
        let pins = self.0.pins();
        let state = &mut *state;
        let seq = state.written + 1;
        for (key, value) in batch.into_ops() {
            let removal = value.is_none();
            match state.map.get_mut(key.as_slice()) {
                None if removal => {}
                None => {
                    state.map.insert(key.into(), Versions { seq, value, older: Vec::new() });
                }
                Some(v) => {
                    let old = (v.seq, std::mem::replace(&mut v.value, value));
                    v.older.push(old);
                    v.seq = seq;
                    match v.tidy(&pins) {
                        Left::Value => {}
                        Left::Nothing => {
                            state.map.remove(key.as_slice());
                        }
                        Left::More => {
                            state.untidy.insert(key.into());
                        }
                    }
                }
            }
        }
        state.written = seq;
        state.bytes_since_flush += bytes;
        state.stats.batches += 1;
        state.stats.bytes_written += bytes;
        if state.untidy.len() > SWEEP_KEYS_MIN && state.untidy.len() > 2 * state.untidy_after_sweep {
            state.sweep(&pins);
        }
        Ok(())
    }

    fn written_seq(&self) -> u64 {
        self.0.read().written
    }

    fn flushed_seq(&self) -> u64 {
        self.0.read().flushed
    }

    fn request_flush(&self) -> Result<u64> {
        let flushed = {
            let mut state = self.0.write();
            if state.flushed == state.written {
                return Ok(state.flushed);
            }
            state.flush(&mut self.0.pins());
            state.flushed
        };
        for callback in self.0.callbacks.lock().expect("no panic in a callback").iter() {
            callback(flushed);
        }
        Ok(flushed)
    }

    fn flush(&self) -> Result<()> {
        self.request_flush().map(drop)
    }

    fn on_flush(&self, callback: FlushCallback) {
        self.0.callbacks.lock().expect("no panic in a callback").push(callback);
    }

    fn memtable_bytes(&self) -> u64 {
        self.0.read().bytes_since_flush
    }

    fn needs_flush(&self) -> bool {
        self.memtable_bytes() >= FLUSH_BYTES
    }

    fn approximate_bytes(&self, range: &KeyRange) -> u64 {
        // Exact, and linear in the number of keys.
        if range.is_empty() {
            return 0;
        }
        let end = match range.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(range.end.as_slice()),
        };
        let state = self.0.read();
        let keys = state.map.range::<[u8], _>((Bound::Included(range.start.as_slice()), end));
        keys.map(|(k, v)| (k.len() + v.value.as_ref().map_or(0, Bytes::len)) as u64).sum()
    }

    fn stats(&self) -> EngineStats {
        let state = self.0.read();
        let held: usize = self.0.pins().counts.values().sum();
        EngineStats {
            memtable_bytes: state.bytes_since_flush,
            snapshots: held as u64 - 1,
            ..state.stats.clone()
        }
    }
}
