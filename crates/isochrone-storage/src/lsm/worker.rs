//! The two threads of an engine on disk: one flushes, one compacts.
//!
//! Each loop returns when the engine is closed, or with the error that poisons it. A panic inside the tree poisons
//! too, rather than leaving writers waiting for ever.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isochrone_base::KeyRange;
use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, Factory, ItemAccessor, Leveled, Verdict};
use lsm_tree::{AbstractTree, InternalValue, Memtable, Tree, ValueType};

use super::view::View;
use super::{ESTIMATE_ROWS_MAX, Shared, map_error};
use crate::{ENGINE_KEY_BYTES_MAX, Error, Result};

/// Runs a thread's body and keeps its error.
pub(super) fn guarded(shared: &Shared, name: &'static str, body: fn(&Shared) -> Result<()>) {
    let error = match std::panic::catch_unwind(AssertUnwindSafe(|| body(shared))) {
        Ok(Ok(())) => return,
        Ok(Err(e)) => e,
        Err(_) => Error::Corruption(format!("{name} panicked")),
    };
    let mut gate = shared.gate();
    if gate.poison.is_none() {
        gate.poison = Some(Arc::new(error));
    }
    shared.progress.notify_all();
}

pub(super) fn flush_loop(shared: &Shared) -> Result<()> {
    // Freeing a memtable takes some hundred milliseconds. The last reference to one stays here, so that neither a
    // reader nor the tree, which would do it under its lock, has to. One that is still read stays until the next flush.
    let mut flushed_memtables: Vec<Arc<Memtable>> = Vec::new();
    loop {
        flushed_memtables.retain(|memtable| Arc::strong_count(memtable) > 1);
        let sealed = {
            let mut gate = shared.gate();
            loop {
                if shared.stopping.load(Ordering::Acquire) || gate.poison.is_some() {
                    return Ok(());
                }
                if gate.wanted > gate.sealed {
                    break;
                }
                gate = shared.flush_work.wait(gate).expect("no panic while the gate is held");
            }
            if let Some(memtable) = shared.tree.rotate_memtable() {
                flushed_memtables.push(memtable);
                let active = shared.tree.active_memtable();
                shared.change_view(|view| view.rotated(active));
            }
            gate.sealed = gate.written;
            gate.sealed_bytes = std::mem::take(&mut gate.active_bytes);
            // Writers that waited for room in the active memtable go on now.
            shared.progress.notify_all();
            gate.sealed
        };
        let watermark = shared.watermark();
        {
            let lock = shared.tree.get_flush_lock();
            shared.tree.flush(&lock, watermark).map_err(|e| map_error("flush", e))?;
        }
        publish_and_tidy(shared, true)?;
        {
            let mut gate = shared.gate();
            gate.flushed = sealed;
            gate.stats.flushes += 1;
            gate.stats.flushed_bytes += std::mem::take(&mut gate.sealed_bytes);
            gate.compact_wanted = true;
            shared.compact_work.notify_one();
            shared.progress.notify_all();
        }
        for callback in shared.callbacks.lock().expect("no panic in a callback").iter() {
            callback(sealed);
        }
    }
}

pub(super) fn compact_loop(shared: &Shared) -> Result<()> {
    let strategy = Arc::new(Leveled::default());
    loop {
        {
            let mut gate = shared.gate();
            loop {
                if shared.stopping.load(Ordering::Acquire) || gate.poison.is_some() {
                    return Ok(());
                }
                if std::mem::take(&mut gate.compact_wanted) {
                    break;
                }
                gate = shared.compact_work.wait(gate).expect("no panic while the gate is held");
            }
        }
        loop {
            let before = shared.tree.current_version().id();
            if let Err(e) = shared.tree.compact(strategy.clone(), shared.watermark()) {
                if shared.stopping.load(Ordering::Acquire) {
                    return Ok(());
                }
                return Err(map_error("compact", e));
            }
            // A flush may have made the new version; then one more look does no harm.
            if shared.tree.current_version().id() == before {
                break;
            }
            publish_and_tidy(shared, false)?;
            let mut gate = shared.gate();
            gate.stats.compactions += 1;
            shared.progress.notify_all();
        }
    }
}

/// Lets readers use the tree's newest version (which holds the sealed memtables, after a flush), and drops the versions
/// with their memtables and files that nobody reads any more.
pub(super) fn publish_and_tidy(shared: &Shared, flushed: bool) -> Result<()> {
    {
        let _tables = shared.tables.lock().expect("no panic while tables are exchanged");
        let tables = View::of(&shared.tree);
        shared.change_view(|view| view.with_tables(&tables, flushed));
    }
    {
        let _gate = shared.gate();
        // No batch is half written while we hold the gate.
        shared.published.store(shared.seq.get(), Ordering::Release);
    }
    shared.l0_runs.store(shared.tree.l0_run_count() as u64, Ordering::Release);
    let watermark = shared.watermark();
    let path = shared.tree.tree_config().path.clone();
    let mut versions = shared.tree.get_version_history_lock();
    versions.maintenance(&path, watermark).map_err(|e| map_error("drop old versions", e))
}

/// Whole tables and memtables inside the range count in full; of those that reach over its ends up to
/// [`ESTIMATE_ROWS_MAX`] rows are looked at, and when that is not all, half of the table counts.
pub(super) fn approximate_bytes(tree: &Tree, range: &KeyRange) -> u64 {
    if range.is_empty() {
        return 0;
    }
    let inside = |key: &[u8]| range.contains(key);
    // The tree has no empty keys (this is the smallest there can be), and no long ones.
    let start = match range.start.as_slice() {
        [] => &[0],
        start => &start[..start.len().min(ENGINE_KEY_BYTES_MAX)],
    };
    let mut bytes = 0;
    for table in tree.current_version().iter_tables() {
        let (min, max) = (table.metadata.key_range.min(), table.metadata.key_range.max());
        if &**max < range.start.as_slice() || (!range.end.is_empty() && &**min >= range.end.as_slice()) {
            continue;
        }
        let size = table.metadata.file_size;
        if inside(min) && inside(max) {
            bytes += size;
            continue;
        }
        let mut part = 0;
        let mut rows = 0;
        for row in table.range(lsm_tree::Slice::from(start)..) {
            let Ok(row) = row else { break };
            let key = &row.key.user_key;
            if !inside(key) && **key >= *range.start {
                break;
            }
            part += (row.key.user_key.len() + row.value.len()) as u64;
            rows += 1;
            if rows == ESTIMATE_ROWS_MAX {
                part = part.max(size / 2);
                break;
            }
        }
        bytes += part;
    }
    let memtable = tree.active_memtable();
    let from = InternalValue::from_components(start, [], u64::MAX, ValueType::Value);
    let mut part = 0;
    let mut rows = 0;
    for row in memtable.items.range(from.key..) {
        let key = &row.key().user_key;
        if !inside(key) && **key >= *range.start {
            break;
        }
        part += (row.key().user_key.len() + row.value().len()) as u64;
        rows += 1;
        if rows == ESTIMATE_ROWS_MAX {
            part = part.max(memtable.size() / 2);
            break;
        }
    }
    bytes + part
}

/// Ends a running compaction when the engine is closed; otherwise keeps everything.
pub(super) struct StopFilter(pub(super) Arc<AtomicBool>);

impl Factory for StopFilter {
    fn name(&self) -> &str {
        "stop"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(StopFilter(self.0.clone()))
    }
}

impl CompactionFilter for StopFilter {
    fn filter_item(&mut self, _: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(lsm_tree::Error::Io(std::io::ErrorKind::Interrupted.into())),
            false => Ok(Verdict::Keep),
        }
    }
}
