//! Row locks, in memory, with fair queues: they save retries and are never trusted for correctness (D6, T13).
//!
//!     key ──▶ holder, holder ... ◀── waiter 1 ◀── waiter 2 ...      a waiter waits for every holder, and every waiter
//!                                                                   before it, whose mode conflicts with its own
//!
//! The four modes and their conflicts are PostgreSQL's ([`LockMode`]). One table for all shards of a node, so that
//! cycles over several shards of the node are seen at once. Cycles over several nodes are found by whoever walks the
//! tables of all ([`LockManager::waiting`], [`LockManager::obstacles`]) and broken with [`LockManager::give_way`].
//!
//! Invariants
//!   L1  A request is granted when its mode conflicts with no other holder's, and with no mode that an earlier waiter
//!       asks for. Who holds the key already and asks for more (an upgrade) stands before those who hold nothing.
//!       A transaction holds a key once, in the strongest mode it was granted.
//!   L2  Within this table the graph of waiting is free of cycles: a request that would close one answers
//!       [`Error::Deadlock`]. Only a request adds edges (its own, and those of waiters that an upgrade passes, which
//!       lead to it), so it is enough to look for cycles through it.
//!   L3  A waiter whose future was dropped leaves the queue; if it was granted meanwhile, the lock goes on to the next
//!       (an upgrade goes back to the mode that was held before).
//!   L4  A transaction waits at most once in a queue: a second request takes the place of the first, whose caller (a
//!       copy of a message, or somebody who has given up) hears `NotServed`.
//!
//! When the leadership of a shard moves, nothing of this goes with it. The old leaseholder forgets its locks at its next
//! tick ([`LockManager::forget`]): who waits there hears `NotServed`, asks the new leaseholder, where the queue begins anew, and
//! reads the row again. Who held a lock is not told. If somebody else gets the lock at the new leaseholder and changes the
//! row, the holder's COMMIT finds that out: a locked row is in V, a written one has its `seen_ts` (R11.5, R11.7). So two
//! transactions may believe for a while that they hold one row; only one of them commits.
//!
//! Bounds: a queue holds [`QUEUE_MAX`] waiters, one more is answered `LockTimeout(0)`, and so is who asks when a key has
//! that many holders (those who wait then may still become holders);
//! a transaction holds any number of locks, its buffer bounds them. Locks of a gateway that died are given back by whoever
//! notices; those of a shard whose leadership was lost by the next tick.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::{Key, KeyRange, NodeId, Timestamp, TxnId, held};
use isochrone_env::Timer;
use metrics::Counter;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{Notify, oneshot};

use crate::api::{Error, LockMode};

/// Longest queue of one key, and most holders of one key; one more is refused at once.
pub const QUEUE_MAX: usize = 4_096;
/// Obstacles of one waiter that are told ([`LockManager::obstacles`]), of either kind. A cycle through one that is not
/// told is found when there are fewer, or ends with the wait.
pub const OBSTACLES_MAX: usize = 1_024;

/// Whose lock it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The transaction attempt.
    pub txn: TxnId,
    /// The node that coordinates it, which knows whether it still runs and what it waits for.
    pub gateway: NodeId,
}

/// How a request that does not wait ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TryLock {
    /// Granted now.
    Granted,
    /// It was held in this mode or a stronger one already.
    Held,
    /// Somebody stands in the way.
    Busy,
}

/// How a waiter hears of the end of its wait.
type Heard = oneshot::Receiver<Result<(), Error>>;

struct Waiter {
    ticket: u64,
    owner: Owner,
    mode: LockMode,
    since: Timestamp,
    granted: oneshot::Sender<Result<(), Error>>,
}

struct Holder {
    owner: Owner,
    mode: LockMode,
    /// The ticket by which it was granted to a waiter that has not looked yet; 0: taken.
    ticket: u64,
    /// What it held before that grant; `None`: nothing.
    before: Option<LockMode>,
}

#[derive(Default)]
struct Held {
    /// Nearly always there is one: no list is made for it.
    first: Option<Holder>,
    more: Vec<Holder>,
    queue: VecDeque<Waiter>,
}

impl Held {
    fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.first.iter().chain(&self.more)
    }

    fn holder_mut(&mut self, txn: TxnId) -> Option<&mut Holder> {
        self.first.iter_mut().chain(&mut self.more).find(|h| h.owner.txn == txn)
    }

    fn mode_of(&self, txn: TxnId) -> Option<LockMode> {
        self.holders().find(|h| h.owner.txn == txn).map(|h| h.mode)
    }

    /// Does no other holder conflict?
    fn allows(&self, txn: TxnId, mode: LockMode) -> bool {
        !self.holders().any(|h| h.owner.txn != txn && h.mode.conflicts_with(mode))
    }

    fn add(&mut self, owner: Owner, mode: LockMode, ticket: u64) {
        if let Some(h) = self.holder_mut(owner.txn) {
            (h.before, h.ticket) = (Some(h.mode), ticket);
            h.mode = h.mode.max(mode);
            return;
        }
        let holder = Holder { owner, mode, ticket, before: None };
        if self.first.is_none() {
            self.first = Some(holder);
        } else {
            self.more.push(holder);
        }
    }

    fn remove(&mut self, txn: TxnId) -> bool {
        if self.first.as_ref().is_some_and(|h| h.owner.txn == txn) {
            self.first = self.more.pop();
            return true;
        }
        match self.more.iter().position(|h| h.owner.txn == txn) {
            Some(at) => {
                self.more.swap_remove(at);
                true
            }
            None => false,
        }
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.queue.iter().position(|w| w.ticket == ticket)
    }

    fn position_of(&self, txn: TxnId) -> Option<usize> {
        self.queue.iter().position(|w| w.owner.txn == txn)
    }
}

#[derive(Default)]
struct Table {
    held: FxHashMap<Key, Held>,
    /// What each waiting transaction waits for.
    waits: FxHashMap<TxnId, Vec<Key>>,
    next_ticket: u64,
}

impl Table {
    /// L2: does `txn`, which has just begun to wait, wait for itself?
    fn closes_cycle(&self, txn: TxnId) -> bool {
        let mut seen = FxHashSet::default();
        let mut todo = vec![txn];
        // How far a queue was looked through, and for which mode: less than that is not looked at again.
        let mut looked: FxHashMap<&[u8], (usize, LockMode)> = FxHashMap::default();
        while let Some(t) = todo.pop() {
            for key in self.waits.get(&t).into_iter().flatten() {
                let Some(h) = self.held.get(key) else { continue };
                let Some(at) = h.position_of(t) else { continue };
                let mode = h.queue[at].mode;
                if looked.get(key.as_slice()).is_some_and(|(upto, m)| *upto >= at && *m >= mode) {
                    continue;
                }
                looked.insert(key, (at, mode));
                // Backwards through the queue: whom `t` waits for, whom those wait for in turn, and so on. Modes that
                // conflict with a weaker one conflict with a stronger one, too, so the strongest found speaks for all.
                let mut strongest = mode;
                let mut others = (t != txn).then_some(mode);
                for w in h.queue.range(..at).rev() {
                    if !w.mode.conflicts_with(strongest) {
                        continue;
                    }
                    if w.owner.txn == txn {
                        return true;
                    }
                    strongest = strongest.max(w.mode);
                    others = others.max(Some(w.mode));
                    // What it waits for here is being looked at.
                    if self.waits.get(&w.owner.txn).is_some_and(|keys| keys.len() > 1)
                        && seen.insert(w.owner.txn)
                    {
                        todo.push(w.owner.txn);
                    }
                }
                for holder in h.holders() {
                    if holder.owner.txn == txn {
                        if others.is_some_and(|m| m.conflicts_with(holder.mode)) {
                            return true;
                        }
                    } else if holder.mode.conflicts_with(strongest) && seen.insert(holder.owner.txn) {
                        todo.push(holder.owner.txn);
                    }
                }
            }
        }
        false
    }

    fn stop_waiting(&mut self, txn: TxnId, key: &[u8]) {
        if let Some(keys) = self.waits.get_mut(&txn) {
            if let Some(at) = keys.iter().position(|k| k == key) {
                keys.swap_remove(at);
            }
            if keys.is_empty() {
                self.waits.remove(&txn);
            }
        }
    }

    /// Somebody left: grants what can be granted now (L1), and drops the key when nobody has it.
    fn settle(&mut self, key: &[u8]) {
        let Some(mut held) = self.held.remove(key) else { return };
        let mut ahead: Option<LockMode> = None;
        let mut at = 0;
        while at < held.queue.len() && ahead != Some(LockMode::Update) {
            let w = &held.queue[at];
            if ahead.is_some_and(|m| m.conflicts_with(w.mode)) || !held.allows(w.owner.txn, w.mode) {
                ahead = ahead.max(Some(w.mode));
                at += 1;
                continue;
            }
            let w = held.queue.remove(at).expect("it was just looked at");
            self.stop_waiting(w.owner.txn, key);
            if w.granted.send(Ok(())).is_ok() {
                held.add(w.owner, w.mode, w.ticket);
            }
        }
        if held.first.is_some() {
            self.held.insert(key.to_vec(), held);
        }
    }

    fn release(&mut self, txn: TxnId, key: &[u8]) {
        let Some(held) = self.held.get_mut(key) else { return };
        let had = held.remove(txn);
        let waited = held.position_of(txn).and_then(|at| held.queue.remove(at)).is_some();
        if held.queue.is_empty() && held.first.is_none() {
            self.held.remove(key);
        } else if (had || waited) && !held.queue.is_empty() {
            self.settle(key);
        }
        if waited {
            self.stop_waiting(txn, key);
        }
    }
}

/// What inspection shows of one lock, held or waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockInfo {
    /// The key.
    pub key: Key,
    /// Who holds it, or waits.
    pub owner: Owner,
    /// Held, or wished for.
    pub mode: LockMode,
    /// Waits since then; `None`: it is held.
    pub waiting_since: Option<Timestamp>,
}

/// Who stands in the way of one waiter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacles {
    /// Names this wait: another one, even of the same transaction for the same key, has another.
    pub ticket: u64,
    /// Holders.
    pub holders: Vec<Owner>,
    /// Earlier waiters.
    pub earlier: Vec<Owner>,
}

/// The locks of all shards that this node leads. See the module.
pub struct LockManager {
    table: Mutex<Table>,
    timer: Arc<dyn Timer>,
    /// Somebody begins to wait.
    contended: Notify,
    waits: Counter,
    deadlocks: Counter,
}

/// Takes its waiter out of the queue when the future that waits is dropped (L3).
struct Queued<'a> {
    locks: &'a LockManager,
    txn: TxnId,
    key: &'a [u8],
    ticket: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut t = self.locks.lock_table();
        let Some(held) = t.held.get_mut(self.key) else { return };
        if let Some(h) = held.holder_mut(self.txn).filter(|h| h.ticket == self.ticket) {
            match h.before {
                Some(before) => (h.mode, h.ticket, h.before) = (before, 0, None),
                None => _ = held.remove(self.txn),
            }
            t.settle(self.key);
        } else if let Some(at) = held.position(self.ticket) {
            held.queue.remove(at);
            t.stop_waiting(self.txn, self.key);
            t.settle(self.key);
        }
    }
}

impl LockManager {
    /// No locks yet.
    pub fn new(timer: Arc<dyn Timer>) -> LockManager {
        metrics::describe_counter!("isochrone_lock_waits_total", "row locks that had to be waited for");
        metrics::describe_counter!(
            "isochrone_deadlocks_total",
            "waits for row locks that ended because of a deadlock"
        );
        LockManager {
            table: Mutex::new(Table { next_ticket: 1, ..Table::default() }),
            timer,
            contended: Notify::new(),
            waits: metrics::counter!("isochrone_lock_waits_total"),
            deadlocks: metrics::counter!("isochrone_deadlocks_total"),
        }
    }

    fn lock_table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while the lock table is held")
    }

    /// Takes the lock if nobody stands in the way. Never waits.
    pub fn try_lock(&self, owner: Owner, key: &[u8], mode: LockMode) -> TryLock {
        let mut t = self.lock_table();
        let Some(held) = t.held.get_mut(key) else {
            let first = Some(Holder { owner, mode, ticket: 0, before: None });
            t.held.insert(key.to_vec(), Held { first, ..Held::default() });
            return TryLock::Granted;
        };
        let has = held.mode_of(owner.txn);
        if has.is_some_and(|m| m >= mode) {
            return TryLock::Held;
        }
        let ahead = has.is_none() && held.queue.iter().any(|w| w.mode.conflicts_with(mode));
        let full = has.is_none() && held.more.len() >= QUEUE_MAX;
        if ahead || full || !held.allows(owner.txn, mode) {
            return TryLock::Busy;
        }
        held.add(owner, mode, 0);
        TryLock::Granted
    }

    /// Takes the lock; says whether it had to wait for it. `now`: since when it waits, for whoever looks.
    ///
    /// # Errors
    /// `Deadlock` when waiting would close a cycle, or when it was told to give way; `LockTimeout` after `wait_max`, or
    /// at once when the queue is full; `NotServed` when the shard's leaseholder changed.
    pub async fn lock(
        &self,
        owner: Owner,
        key: &[u8],
        mode: LockMode,
        wait_max: Duration,
        now: Timestamp,
    ) -> Result<bool, Error> {
        if self.try_lock(owner, key, mode) != TryLock::Busy {
            return Ok(false);
        }
        let Some((ticket, granted)) = self.enqueue(owner, key, mode, wait_max, now)? else { return Ok(true) };
        let queued = Queued { locks: self, txn: owner.txn, key, ticket };
        let outcome = tokio::select! {
            biased;
            granted = granted => {
                granted.unwrap_or_else(|_| Err(Error::NotServed("the leaseholder changed".into())))
            }
            () = self.timer.sleep(wait_max) => Err(Error::LockTimeout(wait_max)),
        };
        if outcome.is_ok() {
            let mut t = self.lock_table();
            let held = t.held.get_mut(key).and_then(|h| h.holder_mut(owner.txn));
            if let Some(h) = held.filter(|h| h.ticket == ticket) {
                (h.ticket, h.before) = (0, None);
            }
        }
        drop(queued);
        outcome.map(|()| true)
    }

    /// Begins to wait; `None`: it need not, what stood in the way has gone.
    fn enqueue(
        &self,
        owner: Owner,
        key: &[u8],
        mode: LockMode,
        wait_max: Duration,
        now: Timestamp,
    ) -> Result<Option<(u64, Heard)>, Error> {
        if wait_max.is_zero() {
            return Err(Error::LockTimeout(Duration::ZERO));
        }
        let mut t = self.lock_table();
        let t = &mut *t;
        let Some(held) = t.held.get_mut(key) else {
            let first = Some(Holder { owner, mode, ticket: 0, before: None });
            t.held.insert(key.to_vec(), Held { first, ..Held::default() });
            return Ok(None);
        };
        let ticket = t.next_ticket;
        let (granted, rx) = oneshot::channel();
        let mut waiter = Waiter { ticket, owner, mode, since: now, granted };
        match held.position_of(owner.txn) {
            // L4. Stronger than the first, it waits for more, and nobody behind it for less than before.
            Some(at) => {
                let first = &mut held.queue[at];
                (waiter.mode, waiter.since) = (mode.max(first.mode), first.since);
                *first = waiter;
            }
            None if held.queue.len() >= QUEUE_MAX || held.more.len() >= QUEUE_MAX => {
                return Err(Error::LockTimeout(Duration::ZERO));
            }
            None => {
                // L1: upgrades in front, in the order of asking.
                let at = match held.mode_of(owner.txn) {
                    Some(_) => held.queue.iter().take_while(|w| held.mode_of(w.owner.txn).is_some()).count(),
                    None => held.queue.len(),
                };
                held.queue.insert(at, waiter);
                t.waits.entry(owner.txn).or_default().push(key.to_vec());
            }
        }
        t.next_ticket += 1;
        if t.closes_cycle(owner.txn) {
            if let Some(held) = t.held.get_mut(key)
                && let Some(at) = held.position(ticket)
            {
                held.queue.remove(at);
            }
            t.stop_waiting(owner.txn, key);
            t.settle(key);
            self.deadlocks.increment(1);
            return Err(Error::Deadlock);
        }
        // What stood in the way may have gone since it was tried.
        t.settle(key);
        self.waits.increment(1);
        self.contended.notify_one();
        Ok(Some((ticket, rx)))
    }

    /// Gives locks back. Keys that the transaction does not hold are passed over; where it still waits (a request that
    /// was given up), it leaves the queue.
    pub fn unlock(&self, txn: TxnId, keys: &[Key]) {
        let mut t = self.lock_table();
        for key in keys {
            t.release(txn, key);
        }
    }

    /// Nobody waits any more for the transactions of a gateway that has gone. (What they hold is given back by key.)
    pub fn leave(&self, gateway: NodeId) {
        let mut t = self.lock_table();
        let gone = |w: &Waiter| w.owner.gateway == gateway;
        let mut keys: Vec<Key> =
            t.held.iter().filter(|(_, h)| h.queue.iter().any(gone)).map(|(key, _)| key.clone()).collect();
        keys.sort_unstable(); // others are woken in an order that can be repeated
        for key in keys {
            let Some(held) = t.held.get_mut(&key) else { continue };
            let left: Vec<TxnId> = held.queue.iter().filter(|w| gone(w)).map(|w| w.owner.txn).collect();
            held.queue.retain(|w| !gone(w));
            for txn in left {
                t.stop_waiting(txn, &key);
            }
            t.settle(&key);
        }
    }

    /// Forgets every lock of a range, because its leaseholder changed; waiters hear `NotServed`.
    pub fn forget(&self, range: &KeyRange) {
        let mut t = self.lock_table();
        let gone: Vec<Key> = t.held.keys().filter(|k| range.contains(k)).cloned().collect();
        for key in gone {
            if let Some(held) = t.held.remove(&key) {
                for w in &held.queue {
                    t.stop_waiting(w.owner.txn, &key);
                }
            }
        }
    }

    /// Resolves when somebody waits for a lock.
    pub async fn contended(&self) {
        loop {
            let notified = self.contended.notified();
            if !self.lock_table().waits.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Those who have waited since `before` or longer, for what, and since when; in the order of transaction and key.
    pub fn waiting(&self, before: Timestamp) -> Vec<(Owner, Key, Timestamp)> {
        let t = self.lock_table();
        let mut out = Vec::new();
        for (txn, keys) in &t.waits {
            for key in keys {
                let waiter = t.held.get(key).and_then(|h| h.queue.iter().find(|w| w.owner.txn == *txn));
                if let Some(w) = waiter.filter(|w| w.since <= before) {
                    out.push((w.owner, key.clone(), w.since));
                }
            }
        }
        out.sort_by(|a, b| (a.0.txn, &a.1).cmp(&(b.0.txn, &b.1)));
        out
    }

    /// What a transaction waits for here.
    pub fn waits_of(&self, txn: TxnId) -> Vec<Key> {
        self.lock_table().waits.get(&txn).cloned().unwrap_or_default()
    }

    /// Who stands in a waiter's way; `None`: it does not wait (any more).
    pub fn obstacles(&self, txn: TxnId, key: &[u8]) -> Option<Obstacles> {
        let t = self.lock_table();
        let held = t.held.get(key)?;
        let at = held.position_of(txn)?;
        let (ticket, mode) = (held.queue[at].ticket, held.queue[at].mode);
        let holders = held.holders().filter(|h| h.owner.txn != txn && h.mode.conflicts_with(mode));
        let earlier = held.queue.range(..at).rev().filter(|w| w.mode.conflicts_with(mode));
        Some(Obstacles {
            ticket,
            holders: holders.map(|h| h.owner).take(OBSTACLES_MAX).collect(),
            earlier: earlier.map(|w| w.owner).take(OBSTACLES_MAX).collect(),
        })
    }

    /// Ends a wait with `Deadlock`: its transaction is the one of a cycle that gives way. False: that wait is over.
    pub fn give_way(&self, txn: TxnId, key: &[u8], ticket: u64) -> bool {
        let mut t = self.lock_table();
        let Some(held) = t.held.get_mut(key) else { return false };
        let Some(waiter) = held.position(ticket).and_then(|at| held.queue.remove(at)) else { return false };
        t.stop_waiting(txn, key);
        t.settle(key);
        self.deadlocks.increment(1);
        waiter.granted.send(Err(Error::Deadlock)).is_ok()
    }

    /// The locks, and the longest queue ([`isochrone_base::held::Held`]).
    pub fn held(&self) -> [held::Held; 2] {
        let t = self.lock_table();
        let bytes = t.held.keys().map(|key| key.len() + size_of::<(Key, Held)>()).sum();
        let longest = t.held.values().map(|h| h.queue.len().max(h.more.len())).max().unwrap_or(0);
        let locks = held::Held::counted("shard.locks", t.held.len(), usize::MAX, 0);
        let queue = held::Held::counted("shard.lock_queue", longest, QUEUE_MAX, 0);
        [held::Held { bytes, ..locks }, held::Held { bytes: t.waits.len() * size_of::<Waiter>(), ..queue }]
    }

    /// All locks by key: holders, then waiters in order.
    pub fn list(&self) -> Vec<LockInfo> {
        let t = self.lock_table();
        let mut out: Vec<LockInfo> = Vec::new();
        for (key, h) in &t.held {
            let info = |owner, mode, waiting_since| LockInfo { key: key.clone(), owner, mode, waiting_since };
            let mut holders: Vec<LockInfo> = h.holders().map(|h| info(h.owner, h.mode, None)).collect();
            holders.sort_by_key(|l| l.owner.txn);
            out.extend(holders);
            out.extend(h.queue.iter().map(|w| info(w.owner, w.mode, Some(w.since))));
        }
        out.sort_by(|a, b| a.key.cmp(&b.key)); // stable: the order within a key stays
        out
    }
}

#[cfg(test)]
mod tests;
