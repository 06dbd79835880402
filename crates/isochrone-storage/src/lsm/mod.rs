//! The engine on disk: one `lsm-tree` per store, which has neither log nor write batch.
//!
//! How a batch is atomic: all writers take the gate; a batch inserts under one sequence number and then raises the
//! published one, which is what readers read at. Memtables rotate only under the gate, so a flush holds whole
//! batches, and the tree registers all tables of a flush at once.
//!
//! Invariants:
//! 1. `published` rises only under the gate, to a number above every finished batch and at most the number of the
//!    next one. The tree takes numbers from the same counter for its versions, so we never use the tree's own
//!    "visible" counter: it would rise in the middle of a batch.
//! 2. The tree keeps a version for every number that somebody scans at: versions are dropped only below the
//!    watermark, the minimum of `published` and of all pinned numbers. Point reads use a [`View`] instead, which
//!    keeps alive what it shows.
//! 3. `flushed <= sealed <= written`, in batches.
//!
//! Threads: `storage-flush` and `storage-compact`, one each per engine. Lock order: gate, then the tree's locks, then
//! view; pins alone.
//!
//! Bounds: a flush begins by itself at [`LsmConfig::memtable_bytes`] times 1.5; at 3 times, or with
//! [`L0_RUNS_MAX`] runs in level 0, writes wait. So memory holds at most 3 + 3 times that (one memtable being
//! written, one being flushed), plus one batch each, plus what snapshots hold.
//!
//! How it fails: the first error of a flush or compaction is kept and repeated (`Poisoned`); data written after the
//! last flush stays readable until the engine is closed. A read error is returned to its reader only.
//!
//! Missing: the tree syncs its manifest under a lock that opening a scan takes for a moment, so a scan can wait for
//! one sync when a flush or compaction ends. Point reads and writes do not.

mod dir;
mod view;
mod worker;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};

use isochrone_base::{Bytes, KeyRange};
use lsm_tree::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy};
use lsm_tree::{AbstractTree, AnyTree, Cache, Guard, InternalValue, SequenceNumberCounter, Tree, ValueType};

use self::view::View;
use crate::{
    ENGINE_KEY_BYTES_MAX, Engine, EngineStats, Error, FlushCallback, Reader, Result, ScanIter, Snapshot,
    WriteBatch,
};

/// Runs in level 0 at which writes wait for the compaction. Compaction begins at 4.
pub const L0_RUNS_MAX: u64 = 16;
/// Smallest [`LsmConfig::memtable_bytes`]; smaller ones are raised to it, so that a write never waits for ever.
pub const MEMTABLE_BYTES_MIN: u64 = 4 << 10;
/// Rows of one table or memtable that [`Engine::approximate_bytes`] looks at.
const ESTIMATE_ROWS_MAX: usize = 1_024;

/// How an engine on disk is set up.
#[derive(Clone, Debug)]
pub struct LsmConfig {
    /// Block cache, in bytes. Default 128 MiB: a quarter of the smallest machine we aim at.
    pub cache_bytes: u64,
    /// Memory written since the last flush at which the engine asks for one, in bytes, at least [`MEMTABLE_BYTES_MIN`].
    /// Default 32 MiB: a restart applies at most a few times that again from the log.
    pub memtable_bytes: u64,
    /// Bits per key of the bloom filters. Default 10: 1 % of lookups of absent keys read a block in vain.
    pub bloom_bits_per_key: f32,
}

impl Default for LsmConfig {
    fn default() -> LsmConfig {
        LsmConfig { cache_bytes: 128 << 20, memtable_bytes: 32 << 20, bloom_bits_per_key: 10.0 }
    }
}

impl LsmConfig {
    fn flush_bytes(&self) -> u64 {
        self.memtable_bytes.saturating_add(self.memtable_bytes / 2)
    }
    fn stall_bytes(&self) -> u64 {
        self.memtable_bytes.saturating_mul(3)
    }
}

/// The engine on disk. Dropping it waits for a running flush, but flushes nothing by itself: the log has it.
pub struct LsmEngine {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    tree: Tree,
    config: LsmConfig,
    /// Hands out the numbers of batches and of the tree's versions.
    seq: SequenceNumberCounter,
    /// Readers see everything below it.
    published: AtomicU64,
    /// What point reads look at; exchanged as a whole.
    view: RwLock<Arc<View>>,
    /// Held while new tables are put into the view, so that it never goes back to older ones.
    tables: Mutex<()>,
    /// How often each number is pinned by snapshots and scans.
    pins: Mutex<BTreeMap<u64, usize>>,
    gate: Mutex<Gate>,
    /// Work for the flush thread.
    flush_work: Condvar,
    /// Work for the compaction thread.
    compact_work: Condvar,
    /// A flush or compaction ended: waiting writers and flushers look again.
    progress: Condvar,
    callbacks: Mutex<Vec<FlushCallback>>,
    stopping: Arc<AtomicBool>,
    l0_runs: AtomicU64,
    _lock: dir::DirLock,
}

#[derive(Default)]
struct Gate {
    /// Batches written, in sealed memtables or tables, and in tables.
    written: u64,
    sealed: u64,
    flushed: u64,
    /// Flush at least up to this batch.
    wanted: u64,
    compact_wanted: bool,
    active_bytes: u64,
    sealed_bytes: u64,
    poison: Option<Arc<Error>>,
    stats: EngineStats,
}

impl Gate {
    fn check(&self) -> Result<()> {
        match &self.poison {
            Some(e) => Err(Error::Poisoned(e.clone())),
            None => Ok(()),
        }
    }
}

fn map_error(doing: &'static str, e: lsm_tree::Error) -> Error {
    match e {
        lsm_tree::Error::Io(e) => Error::io(doing, e),
        e => Error::Corruption(format!("{doing}: {e:?}")),
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("no panic while the gate is held")
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.pins.lock().expect("no panic while the pins are held")
    }

    /// Below this number nobody reads, now or later.
    fn watermark(&self) -> u64 {
        let published = self.published.load(Ordering::Acquire);
        // Who pins after we looked pins a number not below `published`.
        self.pins().keys().next().map_or(published, |oldest| published.min(*oldest))
    }

    fn view(&self) -> Arc<View> {
        self.view.read().expect("no panic while the view is exchanged").clone()
    }

    fn change_view(&self, change: impl FnOnce(&View) -> View) {
        let _old = {
            let mut view = self.view.write().expect("no panic while the view is exchanged");
            let new = Arc::new(change(&view));
            std::mem::replace(&mut *view, new)
        };
        // Dropped here, after the lock: it may hold the last reference to much.
    }

    fn pin(self: &Arc<Shared>) -> Arc<Pin> {
        let mut view = self.view();
        loop {
            let seqno = {
                let mut pins = self.pins();
                let seqno = self.published.load(Ordering::Acquire);
                *pins.entry(seqno).or_insert(0) += 1;
                seqno
            };
            let pin = Pin { shared: self.clone(), seqno, view };
            // Still current after the number was taken: then every batch below the number is in the view.
            view = self.view();
            if Arc::ptr_eq(&view, &pin.view) {
                return Arc::new(pin);
            }
        }
    }
}

struct Pin {
    shared: Arc<Shared>,
    seqno: u64,
    view: Arc<View>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins();
        if let Some(n) = pins.get_mut(&self.seqno) {
            *n -= 1;
            if *n == 0 {
                pins.remove(&self.seqno);
            }
        }
    }
}

struct LsmSnapshot(Arc<Pin>);

/// The tree's bounds of a range. The tree refuses long keys, as bounds too; there are none, so a long bound means the
/// same as its beginning, with the key that equals the beginning below it.
fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let start = match range.start.get(..ENGINE_KEY_BYTES_MAX) {
        Some(cut) if range.start.len() > cut.len() => Bound::Excluded(cut),
        _ => Bound::Included(range.start.as_slice()),
    };
    let end = match range.end.get(..ENGINE_KEY_BYTES_MAX) {
        _ if range.end.is_empty() => Bound::Unbounded,
        Some(cut) if range.end.len() > cut.len() => Bound::Included(cut),
        _ => Bound::Excluded(range.end.as_slice()),
    };
    (start, end)
}

impl Reader for LsmSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if key.len() > ENGINE_KEY_BYTES_MAX {
            return Ok(None);
        }
        self.0.view.get(key, self.0.seqno)
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let rows = self.0.shared.tree.range::<&[u8], _>(bounds(range), self.0.seqno, None);
        Box::new(LsmScan { rows: Some(rows), reverse, _pin: self.0.clone() })
    }
}

impl Snapshot for LsmSnapshot {}

type Rows = Box<dyn DoubleEndedIterator<Item = lsm_tree::IterGuardImpl> + Send>;

struct LsmScan {
    rows: Option<Rows>,
    reverse: bool,
    _pin: Arc<Pin>,
}

impl Iterator for LsmScan {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        let row = if self.reverse { rows.next_back() } else { rows.next() }?;
        match row.into_inner() {
            Ok((key, value)) => Some(Ok((key.into(), value.into()))),
            Err(e) => {
                self.rows = None;
                Some(Err(map_error("scan", e)))
            }
        }
    }
}

impl LsmEngine {
    /// Opens the directory, or makes it if it is missing or empty. The state is that of the last flush.
    ///
    /// # Errors
    /// `NotOurs`, `Format`, `Locked`, `Io`, `Corruption`: nothing in the directory was changed, except that files of an
    /// interrupted creation or flush may have been removed.
    pub fn open(path: &Path, mut config: LsmConfig) -> Result<LsmEngine> {
        config.memtable_bytes = config.memtable_bytes.max(MEMTABLE_BYTES_MIN);
        let lock = dir::prepare(path)?;
        let seq = SequenceNumberCounter::default();
        let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(config.bloom_bits_per_key));
        let stopping = Arc::new(AtomicBool::new(false));
        // The tree's "visible" counter is its own: see invariant 1.
        let tree = lsm_tree::Config::new(dir::tree_path(path), seq.clone(), SequenceNumberCounter::default())
            .use_cache(Arc::new(Cache::with_capacity_bytes(config.cache_bytes)))
            .filter_policy(FilterPolicy::all(bloom))
            .filter_block_pinning_policy(PinningPolicy::all(true))
            .index_block_pinning_policy(PinningPolicy::all(true))
            .filter_block_partitioning_policy(PinningPolicy::all(false))
            .index_block_partitioning_policy(PinningPolicy::all(false))
            .with_compaction_filter_factory(Some(Arc::new(worker::StopFilter(stopping.clone()))))
            .open()
            .map_err(|e| map_error("open", e))?;
        let AnyTree::Standard(tree) = tree else {
            return Err(Error::Corruption("the tree keeps values apart from keys".into()));
        };
        dir::finish(path)?;
        let first = tree.get_highest_persisted_seqno().map_or(1, |s| s + 1);
        seq.fetch_max(first);
        let shared = Arc::new(Shared {
            l0_runs: AtomicU64::new(tree.l0_run_count() as u64),
            view: RwLock::new(Arc::new(View::of(&tree))),
            tables: Mutex::new(()),
            tree,
            config,
            published: AtomicU64::new(seq.get()),
            seq,
            pins: Mutex::default(),
            gate: Mutex::new(Gate { compact_wanted: true, ..Gate::default() }),
            flush_work: Condvar::new(),
            compact_work: Condvar::new(),
            progress: Condvar::new(),
            callbacks: Mutex::default(),
            stopping,
            _lock: lock,
        });
        let mut engine = LsmEngine { shared, threads: Vec::new() };
        engine.start("storage-flush", worker::flush_loop)?;
        engine.start("storage-compact", worker::compact_loop)?;
        Ok(engine)
    }

    fn start(&mut self, name: &'static str, body: fn(&Shared) -> Result<()>) -> Result<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || worker::guarded(&shared, name, body))
            .map_err(|e| Error::io("start a thread", e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where the tree keeps its files, for tools.
    pub fn tree_path(path: &Path) -> PathBuf {
        dir::tree_path(path)
    }

    /// Merges everything into the last level, and waits for it: for tests and tools.
    pub fn compact(&self) -> Result<()> {
        let shared = &self.shared;
        let res = shared.tree.major_compact(64 << 20, shared.watermark());
        res.map_err(|e| map_error("compact", e))?;
        worker::publish_and_tidy(shared, false)
    }
}

impl std::fmt::Debug for LsmEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LsmEngine")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Drop for LsmEngine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        {
            // Under the gate, so that no thread is between its look at `stopping` and its wait.
            let _gate = self.shared.gate();
            self.shared.flush_work.notify_all();
            self.shared.compact_work.notify_all();
            self.shared.progress.notify_all();
        }
        for thread in self.threads.drain(..) {
            // Panics were turned into poison by `guarded`.
            let _ = thread.join();
        }
    }
}

impl Reader for LsmEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if key.len() > ENGINE_KEY_BYTES_MAX {
            return Ok(None);
        }
        // In this order: invariant 2 of `view`.
        let view = self.shared.view();
        view.get(key, self.shared.published.load(Ordering::Acquire))
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        LsmSnapshot(self.shared.pin()).scan(range, reverse)
    }
}

impl Engine for LsmEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(LsmSnapshot(self.shared.pin()))
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        batch.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let shared = &*self.shared;
        let bytes = batch.bytes() as u64;
        let mut gate = shared.gate();
        let mut waited = false;
        while gate.active_bytes >= shared.config.stall_bytes()
            || shared.l0_runs.load(Ordering::Acquire) >= L0_RUNS_MAX
        {
            gate.check()?;
            if shared.stopping.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            gate.stats.stalls += u64::from(!waited);
            waited = true;
            gate.wanted = gate.written;
            shared.flush_work.notify_one();
            gate = shared.progress.wait(gate).expect("no panic while the gate is held");
        }
        let seqno = shared.seq.next();
        // Rotation needs the gate, so this stays the active memtable for the whole batch.
        let memtable = shared.view().active.clone();
        for (key, value) in batch.into_ops() {
            let item = match value {
                Some(value) => InternalValue::from_components(key, value, seqno, ValueType::Value),
                None => InternalValue::new_tombstone(key, seqno),
            };
            gate.active_bytes = memtable.insert(item).1;
        }
        gate.written += 1;
        gate.stats.batches += 1;
        gate.stats.bytes_written += bytes;
        shared.published.store(seqno + 1, Ordering::Release);
        if gate.active_bytes >= shared.config.flush_bytes() && gate.wanted <= gate.sealed {
            gate.wanted = gate.written;
            shared.flush_work.notify_one();
        }
        Ok(())
    }

    fn written_seq(&self) -> u64 {
        self.shared.gate().written
    }

    fn flushed_seq(&self) -> u64 {
        self.shared.gate().flushed
    }

    fn request_flush(&self) -> Result<u64> {
        let mut gate = self.shared.gate();
        gate.check()?;
        gate.wanted = gate.written;
        self.shared.flush_work.notify_one();
        Ok(gate.written)
    }

    fn flush(&self) -> Result<()> {
        let target = self.request_flush()?;
        let mut gate = self.shared.gate();
        while gate.flushed < target {
            gate.check()?;
            if self.shared.stopping.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            gate = self.shared.progress.wait(gate).expect("no panic while the gate is held");
        }
        Ok(())
    }

    fn on_flush(&self, callback: FlushCallback) {
        self.shared.callbacks.lock().expect("no panic in a callback").push(callback);
    }

    fn memtable_bytes(&self) -> u64 {
        let gate = self.shared.gate();
        gate.active_bytes + gate.sealed_bytes
    }

    fn needs_flush(&self) -> bool {
        let gate = self.shared.gate();
        gate.active_bytes >= self.shared.config.memtable_bytes && gate.wanted <= gate.sealed
    }

    fn approximate_bytes(&self, range: &KeyRange) -> u64 {
        worker::approximate_bytes(&self.shared.tree, range)
    }

    fn stats(&self) -> EngineStats {
        let tree = &self.shared.tree;
        let (l0_runs, tables, disk_bytes) = (tree.l0_run_count(), tree.table_count(), tree.disk_space());
        let snapshots: usize = self.shared.pins().values().sum();
        let gate = self.shared.gate();
        EngineStats {
            l0_runs: l0_runs as u64,
            tables: tables as u64,
            disk_bytes,
            memtable_bytes: gate.active_bytes + gate.sealed_bytes,
            snapshots: snapshots as u64,
            poisoned: gate.poison.as_ref().map(|e| e.to_string()),
            ..gate.stats.clone()
        }
    }
}
