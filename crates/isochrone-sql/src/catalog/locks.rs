//! Table locks of a gateway: what keeps its transactions from committing on a table that has changed under them.
//!
//! Every transaction holds a shared lock on every table it used, until it ends; DDL that changes a table holds the
//! exclusive lock, on every gateway ([`super::gateways`]), until its transaction ends and its snapshot is published
//! (PostgreSQL's ACCESS EXCLUSIVE; all weaker modes are one here). They live in memory only: a crash ends all
//! transactions of the gateway anyway.
//!
//! Invariants
//!   L1  Exclusive excludes every other owner. An owner may hold both.
//!   L2  While somebody waits for exclusive, no new owner gets shared: DDL is not starved.
//!
//! Failure: a wait ends with 55P03 at its bound; two owners of shared who both want exclusive cannot both get it, and
//! the second is told so at once (40P01). Missing: cycles through row locks; the bound breaks them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_env::Timer;
use isochrone_types::{Error, SqlState};
use tokio::sync::Notify;

/// Longest wait for a table lock when `lock_timeout` says nothing.
pub const TABLE_LOCK_WAIT_MAX: Duration = Duration::from_secs(30);

/// A transaction of a session, as the lock table names it.
pub type Owner = u64;

#[derive(Default, Debug)]
struct State {
    /// Owners and how often each took it.
    shared: BTreeMap<Owner, u32>,
    exclusive: Option<Owner>,
    /// Owners that wait for exclusive.
    waiting: Vec<Owner>,
}

/// The lock table.
#[derive(Default, Debug)]
pub struct TableLocks {
    tables: Mutex<BTreeMap<u32, State>>,
    changed: Notify,
}

impl TableLocks {
    fn with<R>(&self, oid: u32, f: impl FnOnce(&mut State) -> R) -> R {
        // Short, never held across an await.
        f(self.tables.lock().expect("no panic while the lock is held").entry(oid).or_default())
    }

    fn try_shared(&self, oid: u32, owner: Owner) -> bool {
        self.with(oid, |s| {
            let mine = s.shared.contains_key(&owner) || s.exclusive == Some(owner);
            let free = s.exclusive.is_none() && s.waiting.is_empty();
            if mine || free {
                *s.shared.entry(owner).or_default() += 1;
            }
            mine || free
        })
    }

    fn try_exclusive(&self, oid: u32, owner: Owner) -> Result<bool, Error> {
        self.with(oid, |s| {
            if s.exclusive == Some(owner) {
                return Ok(true);
            }
            if s.exclusive.is_none() && s.shared.keys().all(|o| *o == owner) {
                s.exclusive = Some(owner);
                s.waiting.retain(|o| *o != owner);
                return Ok(true);
            }
            if s.shared.contains_key(&owner)
                && s.waiting.iter().any(|w| *w != owner && s.shared.contains_key(w))
            {
                s.waiting.retain(|o| *o != owner);
                return Err(Error::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
                    .with_detail("Two transactions that use a table both want to change it."));
            }
            if !s.waiting.contains(&owner) {
                s.waiting.push(owner);
            }
            Ok(false)
        })
    }

    fn stop_waiting(&self, oid: u32, owner: Owner) {
        self.with(oid, |s| s.waiting.retain(|o| *o != owner));
        self.changed.notify_waiters();
    }

    /// Takes the shared lock; waits while the table is being changed.
    pub async fn shared(
        &self,
        oid: u32,
        owner: Owner,
        wait_max: Duration,
        timer: &Arc<dyn Timer>,
    ) -> Result<(), Error> {
        if self.try_shared(oid, owner) {
            return Ok(());
        }
        let mut timeout = timer.sleep(wait_max);
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.try_shared(oid, owner) {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = &mut notified => {}
                () = &mut timeout => return Err(timed_out()),
            }
        }
    }

    /// Takes the exclusive lock; waits for the transactions that use the table.
    pub async fn exclusive(
        &self,
        oid: u32,
        owner: Owner,
        wait_max: Duration,
        timer: &Arc<dyn Timer>,
    ) -> Result<(), Error> {
        if self.try_exclusive(oid, owner)? {
            return Ok(());
        }
        // Dropped at any await (cancel), the wish must not stand in the others' way.
        let guard = Waiting { locks: self, oid, owner };
        let mut timeout = timer.sleep(wait_max);
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.try_exclusive(oid, owner)? {
                std::mem::forget(guard);
                return Ok(());
            }
            tokio::select! {
                biased;
                () = &mut notified => {}
                () = &mut timeout => return Err(timed_out()),
            }
        }
    }

    /// Gives back everything an owner holds on these tables.
    pub fn release(&self, owner: Owner, oids: impl IntoIterator<Item = u32>) {
        let mut wake = false;
        {
            let mut tables = self.tables.lock().expect("no panic while the lock is held");
            for oid in oids {
                let Some(s) = tables.get_mut(&oid) else { continue };
                s.shared.remove(&owner);
                wake |= !s.waiting.is_empty() || s.exclusive == Some(owner);
                if s.exclusive == Some(owner) {
                    s.exclusive = None;
                }
                if s.shared.is_empty() && s.exclusive.is_none() && s.waiting.is_empty() {
                    tables.remove(&oid);
                }
            }
        }
        if wake {
            self.changed.notify_waiters();
        }
    }
}

struct Waiting<'a> {
    locks: &'a TableLocks,
    oid: u32,
    owner: Owner,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.locks.stop_waiting(self.oid, self.owner);
    }
}

/// 55P03.
pub(super) fn timed_out() -> Error {
    Error::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout")
}
