//! Prepared statements, and the node's bounded cache of them.
//!
//! A plan holds for one snapshot of the catalog (its stamp) and for settings that mean the same (their fingerprint);
//! both are part of its key, so that a change of the catalog makes old plans unreachable, and they go as the least
//! recently used.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use isochrone_base::hash::Fnv64;
use isochrone_types::Type;
use rustc_hash::FxHashMap;

use super::utility::Statement;
use crate::face::OutputColumn;

/// Plans a node keeps; past it the least recently used eighth goes.
pub const PLANS_MAX: usize = 4_096;
/// Longer statements (bulk inserts) are not worth keeping.
pub const CACHED_TEXT_BYTES_MAX: usize = 16 << 10;

/// A plan and what it holds for.
#[derive(Clone)]
pub struct PlanRef {
    /// The plan.
    pub plan: Arc<super::engine::Planned>,
    /// Stamp of the catalog.
    pub stamp: u64,
    /// Fingerprint of the settings.
    pub fingerprint: u64,
}

/// A prepared statement. Never changes: a new plan makes a new one.
pub struct Prepared {
    /// Its text.
    pub text: Arc<str>,
    /// What it is; `None`: nothing at all.
    pub statement: Option<Arc<Statement>>,
    /// Types the client gave its parameters.
    pub declared: Vec<Option<Type>>,
    /// Types of its parameters.
    pub params: Vec<Type>,
    /// Columns of its result, if it has rows.
    pub columns: Option<Vec<OutputColumn>>,
    /// The plan of a query.
    pub plan: Option<PlanRef>,
}

impl Prepared {
    /// The types of its parameters.
    pub fn params(&self) -> &[Type] {
        &self.params
    }

    /// The columns of its result; `None` when it has no rows.
    pub fn columns(&self) -> Option<&[OutputColumn]> {
        self.columns.as_deref()
    }
}

struct Entry {
    prepared: Arc<Prepared>,
    used: u64,
}

/// See the file's head.
#[derive(Default)]
pub struct PlanCache {
    entries: Mutex<FxHashMap<u64, Entry>>,
    clock: AtomicU64,
}

fn key(text: &str, declared: &[Option<Type>], stamp: u64, fingerprint: u64) -> u64 {
    let mut h = Fnv64::default();
    h.update(text.as_bytes());
    h.update(&stamp.to_le_bytes());
    h.update(&fingerprint.to_le_bytes());
    for t in declared {
        h.update(&t.map_or(0, Type::oid).to_le_bytes());
    }
    h.finish()
}

impl PlanCache {
    /// The statement with this text, planned for this catalog and these settings.
    pub fn get(
        &self,
        text: &str,
        declared: &[Option<Type>],
        stamp: u64,
        fingerprint: u64,
    ) -> Option<Arc<Prepared>> {
        if text.len() > CACHED_TEXT_BYTES_MAX {
            return None;
        }
        let key = key(text, declared, stamp, fingerprint);
        let mut entries = self.entries.lock().expect("no panic while the lock is held");
        let entry = entries.get_mut(&key)?;
        let p = &entry.prepared;
        let same = *p.text == *text
            && p.declared == declared
            && p.plan.as_ref().is_some_and(|r| r.stamp == stamp && r.fingerprint == fingerprint);
        if !same {
            return None;
        }
        entry.used = self.clock.fetch_add(1, Ordering::Relaxed);
        Some(entry.prepared.clone())
    }

    /// Keeps a statement.
    pub fn put(&self, prepared: &Arc<Prepared>) {
        let Some(plan) = &prepared.plan else { return };
        if prepared.text.len() > CACHED_TEXT_BYTES_MAX {
            return;
        }
        let key = key(&prepared.text, &prepared.declared, plan.stamp, plan.fingerprint);
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.entries.lock().expect("no panic while the lock is held");
        if entries.len() >= PLANS_MAX {
            let mut ages: Vec<u64> = entries.values().map(|e| e.used).collect();
            let (_, limit, _) = ages.select_nth_unstable(PLANS_MAX / 8);
            let limit = *limit;
            entries.retain(|_, e| e.used > limit);
        }
        entries.insert(key, Entry { prepared: prepared.clone(), used });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.lock().expect("no panic while the lock is held").len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// DISCARD PLANS.
    pub fn clear(&self) {
        self.entries.lock().expect("no panic while the lock is held").clear();
    }
}
