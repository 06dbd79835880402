//! What point reads look at: the memtables and tables of one moment, without the tree's locks.
//!
//! The tree guards its current version with a lock that it holds while it syncs a manifest. A point read through the
//! tree would wait for that, milliseconds, whenever a flush or compaction ends. So we keep the parts ourselves and
//! exchange them in one step.
//!
//! Invariants:
//! 1. A batch goes to the active memtable of the view that is current when it is written: rotation exchanges the view
//!    under the gate.
//! 2. Whatever lies in a table of a view was published before the view became current. So a reader that takes the
//!    view first and the published number second sees the newest row of each key in the tables; older ones, which
//!    flushes and compactions drop, it never needs. Memtables drop nothing.

use std::sync::Arc;

use isochrone_base::Bytes;
use lsm_tree::table::filter::standard_bloom::Builder;
use lsm_tree::{AbstractTree, Memtable, Table, Tree};

use super::map_error;
use crate::Result;

/// Memtables and tables of one moment.
pub(super) struct View {
    pub(super) active: Arc<Memtable>,
    /// Newest first.
    pub(super) sealed: Vec<Arc<Memtable>>,
    runs: Runs,
}

/// Sorted runs in the order to look at them, each with its tables in key order.
type Runs = Arc<Vec<Vec<Table>>>;

fn runs_of(tree: &Tree) -> Runs {
    let version = tree.current_version();
    let runs = version.iter_levels().flat_map(|level| level.iter());
    Arc::new(runs.map(|run| run.iter().cloned().collect()).collect())
}

impl View {
    /// The view of a tree that was just opened.
    pub(super) fn of(tree: &Tree) -> View {
        View { active: tree.active_memtable(), sealed: Vec::new(), runs: runs_of(tree) }
    }

    /// The active memtable was sealed.
    pub(super) fn rotated(&self, active: Arc<Memtable>) -> View {
        let mut sealed = vec![self.active.clone()];
        sealed.extend(self.sealed.iter().cloned());
        View { active, sealed, runs: self.runs.clone() }
    }

    /// The tree has other tables now; if a flush made them, they hold the sealed memtables.
    pub(super) fn with_tables(&self, tables: &View, flushed: bool) -> View {
        let sealed = if flushed { Vec::new() } else { self.sealed.clone() };
        View { active: self.active.clone(), sealed, runs: tables.runs.clone() }
    }

    /// The newest value of the key below the number.
    pub(super) fn get(&self, key: &[u8], seqno: u64) -> Result<Option<Bytes>> {
        let memtables = std::iter::once(&self.active).chain(&self.sealed);
        for memtable in memtables {
            if let Some(row) = memtable.get(key, seqno) {
                return Ok((!row.is_tombstone()).then(|| row.value.into()));
            }
        }
        let hash = Builder::get_hash(key);
        for run in self.runs.iter() {
            let at = run.partition_point(|t| **t.metadata.key_range.max() < *key);
            let Some(table) = run.get(at).filter(|t| **t.metadata.key_range.min() <= *key) else { continue };
            if let Some(row) = table.get(key, seqno, hash).map_err(|e| map_error("read", e))? {
                return Ok((!row.is_tombstone()).then(|| row.value.into()));
            }
        }
        Ok(None)
    }
}
