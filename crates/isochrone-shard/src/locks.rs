//! Exclusive locks on keys, in memory, with fair queues: they save retries and are never trusted for correctness (D6).
//!
//!     key ──▶ owner ◀── waiter 1 ◀── waiter 2 ...      a waiter waits for the owner and for everyone before it
//!
//! One table for all shards of a node, so that cycles over several shards of the node are seen.
//!
//! Invariants
//!   L1  A key has at most one owner; it is granted in the order of asking.
//!   L2  The graph of waiting is free of cycles: a request that would close one answers [`Error::Deadlock`]. Only a new
//!       request adds an edge, because whoever is granted next stood before everyone that now waits for it.
//!   L3  A waiter whose future was dropped leaves the queue; if it was granted meanwhile, the lock goes on to the next.
//!
//! Bounds: a queue holds [`QUEUE_MAX`] waiters, one more is answered `LockTimeout(0)`; a transaction holds any
//! number of locks, its buffer bounds them. Missing: expiry of locks whose gateway died without giving them back
//! (gateways are in this process today).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::{Key, KeyRange, TxnId};
use isochrone_env::Timer;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::oneshot;

use crate::api::Error;

/// Longest queue of one key; one more waiter is refused at once.
pub const QUEUE_MAX: usize = 4_096;

struct Waiter {
    ticket: u64,
    txn: TxnId,
    granted: oneshot::Sender<()>,
}

struct Held {
    owner: TxnId,
    /// The ticket by which it was granted to a waiter that has not looked yet; 0: taken.
    ticket: u64,
    queue: VecDeque<Waiter>,
}

#[derive(Default)]
struct Table {
    held: FxHashMap<Key, Held>,
    /// What each waiting transaction waits for.
    waits: FxHashMap<TxnId, Vec<Key>>,
    next_ticket: u64,
}

impl Table {
    /// Would `txn`, waiting at the end of this key's queue, wait for itself?
    fn closes_cycle(&self, txn: TxnId, key: &[u8]) -> bool {
        let mut seen = FxHashSet::default();
        let mut todo: Vec<TxnId> = Vec::new();
        let before = |key: &[u8], who: Option<TxnId>, todo: &mut Vec<TxnId>| {
            if let Some(h) = self.held.get(key) {
                todo.push(h.owner);
                todo.extend(h.queue.iter().map(|w| w.txn).take_while(|t| Some(*t) != who));
            }
        };
        before(key, None, &mut todo);
        while let Some(t) = todo.pop() {
            if t == txn {
                return true;
            }
            if seen.insert(t)
                && let Some(keys) = self.waits.get(&t)
            {
                for k in keys {
                    before(k, Some(t), &mut todo);
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

    /// The lock of a key is free: to the next waiter, or away with it.
    fn pass_on(&mut self, key: &[u8]) {
        loop {
            let Some(held) = self.held.get_mut(key) else { return };
            let Some(next) = held.queue.pop_front() else {
                self.held.remove(key);
                return;
            };
            held.owner = next.txn;
            held.ticket = next.ticket;
            self.stop_waiting(next.txn, key);
            if next.granted.send(()).is_ok() {
                return;
            }
        }
    }

    fn release(&mut self, txn: TxnId, key: &[u8]) {
        if self.held.get(key).is_some_and(|h| h.owner == txn) {
            self.pass_on(key);
        }
    }
}

/// What inspection shows of one lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockInfo {
    /// The key.
    pub key: Key,
    /// Who holds it.
    pub owner: TxnId,
    /// Who waits, in order.
    pub waiting: Vec<TxnId>,
}

/// The locks of all shards that this node leads. See the module.
pub struct LockManager {
    table: Mutex<Table>,
    timer: Arc<dyn Timer>,
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
        if held.ticket == self.ticket {
            t.pass_on(self.key);
        } else if let Some(at) = held.queue.iter().position(|w| w.ticket == self.ticket) {
            held.queue.remove(at);
            t.stop_waiting(self.txn, self.key);
        }
    }
}

impl LockManager {
    /// No locks yet.
    pub fn new(timer: Arc<dyn Timer>) -> LockManager {
        LockManager { table: Mutex::new(Table { next_ticket: 1, ..Table::default() }), timer }
    }

    fn lock_table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while the lock table is held")
    }

    /// Takes the lock if nobody has it (or this transaction has it already). Never waits.
    pub fn try_lock(&self, txn: TxnId, key: &[u8]) -> bool {
        let mut t = self.lock_table();
        match t.held.get(key) {
            Some(h) => h.owner == txn,
            None => {
                t.held.insert(key.to_vec(), Held { owner: txn, ticket: 0, queue: VecDeque::new() });
                true
            }
        }
    }

    /// Takes the lock; says whether it had to wait for it.
    ///
    /// # Errors
    /// `Deadlock` when waiting would close a cycle; `LockTimeout` after `wait_max`, or at once when the queue is full;
    /// `NotServed` when the shard's leaseholder changed.
    pub async fn lock(&self, txn: TxnId, key: &[u8], wait_max: Duration) -> Result<bool, Error> {
        let (ticket, granted) = {
            let mut t = self.lock_table();
            match t.held.get(key) {
                None => {
                    t.held.insert(key.to_vec(), Held { owner: txn, ticket: 0, queue: VecDeque::new() });
                    return Ok(false);
                }
                Some(h) if h.owner == txn => return Ok(false),
                Some(h) if h.queue.len() >= QUEUE_MAX || wait_max.is_zero() => {
                    return Err(Error::LockTimeout(Duration::ZERO));
                }
                Some(_) => {}
            }
            if t.closes_cycle(txn, key) {
                return Err(Error::Deadlock);
            }
            let ticket = t.next_ticket;
            t.next_ticket += 1;
            let (granted, rx) = oneshot::channel();
            t.held.get_mut(key).expect("found above").queue.push_back(Waiter { ticket, txn, granted });
            t.waits.entry(txn).or_default().push(key.to_vec());
            (ticket, rx)
        };
        let queued = Queued { locks: self, txn, key, ticket };
        let outcome = tokio::select! {
            biased;
            granted = granted => granted.map_err(|_| Error::NotServed("the leaseholder changed".into())),
            () = self.timer.sleep(wait_max) => Err(Error::LockTimeout(wait_max)),
        };
        if outcome.is_ok() {
            let mut t = self.lock_table();
            if let Some(h) = t.held.get_mut(key)
                && h.ticket == ticket
            {
                h.ticket = 0;
            }
        }
        drop(queued);
        outcome.map(|()| true)
    }

    /// Gives locks back. Keys that the transaction does not hold are passed over.
    pub fn unlock(&self, txn: TxnId, keys: &[Key]) {
        let mut t = self.lock_table();
        for key in keys {
            t.release(txn, key);
        }
    }

    /// Forgets every lock of a range, because its leaseholder changed; waiters hear `NotServed`.
    pub fn forget(&self, range: &KeyRange) {
        let mut t = self.lock_table();
        let gone: Vec<Key> = t.held.keys().filter(|k| range.contains(k)).cloned().collect();
        for key in gone {
            if let Some(held) = t.held.remove(&key) {
                for w in &held.queue {
                    t.stop_waiting(w.txn, &key);
                }
            }
        }
    }

    /// All locks, by key.
    pub fn list(&self) -> Vec<LockInfo> {
        let t = self.lock_table();
        let mut out: Vec<LockInfo> = t
            .held
            .iter()
            .map(|(key, h)| LockInfo {
                key: key.clone(),
                owner: h.owner,
                waiting: h.queue.iter().map(|w| w.txn).collect(),
            })
            .collect();
        out.sort_by(|a, b| a.key.cmp(&b.key));
        out
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use isochrone_env::fake::NoWait;

    use super::*;

    struct Never;
    impl Timer for Never {
        fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(std::future::pending())
        }
    }

    const WAIT: Duration = Duration::from_secs(1);
    const T: [TxnId; 4] = [TxnId(0), TxnId(1), TxnId(2), TxnId(3)];

    type Fut<'a> = Pin<Box<dyn Future<Output = Result<bool, Error>> + Send + 'a>>;

    fn ask<'a>(m: &'a LockManager, txn: TxnId, key: &'a [u8]) -> Fut<'a> {
        Box::pin(m.lock(txn, key, WAIT))
    }

    fn poll(f: &mut Fut<'_>) -> Poll<Result<bool, Error>> {
        f.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn fair_and_reentrant() {
        let m = LockManager::new(Arc::new(Never));
        assert_eq!(poll(&mut ask(&m, T[0], b"k")), Poll::Ready(Ok(false)));
        assert_eq!(poll(&mut ask(&m, T[0], b"k")), Poll::Ready(Ok(false)));
        let (mut one, mut two) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"));
        assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
        m.unlock(T[2], &[b"k".to_vec()]);
        assert!(poll(&mut one).is_pending(), "only the owner gives back");
        m.unlock(T[0], &[b"k".to_vec()]);
        assert!(poll(&mut two).is_pending());
        assert_eq!(poll(&mut one), Poll::Ready(Ok(true)));
        m.unlock(T[1], &[b"k".to_vec()]);
        assert_eq!(poll(&mut two), Poll::Ready(Ok(true)));
        m.unlock(T[2], &[b"k".to_vec()]);
        assert!(m.list().is_empty() && m.lock_table().waits.is_empty());
    }

    #[test]
    fn dropped_waiters_leave_even_when_granted() {
        let m = LockManager::new(Arc::new(Never));
        assert!(m.try_lock(T[0], b"k") && !m.try_lock(T[1], b"k"));
        let (mut one, mut two, mut three) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"), ask(&m, T[3], b"k"));
        assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending() && poll(&mut three).is_pending());
        drop(one);
        m.unlock(T[0], &[b"k".to_vec()]);
        // Granted to the second, which never looks.
        drop(two);
        assert_eq!(poll(&mut three), Poll::Ready(Ok(true)));
        m.unlock(T[3], &[b"k".to_vec()]);
        assert!(m.list().is_empty() && m.lock_table().waits.is_empty());
    }

    #[test]
    fn cycles_over_several_keys_are_broken() {
        let m = LockManager::new(Arc::new(Never));
        for (t, k) in [(T[0], b"a"), (T[1], b"b"), (T[2], b"c")] {
            assert!(m.try_lock(t, k));
        }
        let mut ab = ask(&m, T[0], b"b");
        let mut bc = ask(&m, T[1], b"c");
        let mut d = ask(&m, T[3], b"a");
        assert!(poll(&mut ab).is_pending() && poll(&mut bc).is_pending() && poll(&mut d).is_pending());
        assert_eq!(poll(&mut ask(&m, T[2], b"a")), Poll::Ready(Err(Error::Deadlock)));
        m.unlock(T[2], &[b"c".to_vec()]);
        assert_eq!(poll(&mut bc), Poll::Ready(Ok(true)));
    }

    #[test]
    fn a_waiter_ahead_counts_as_an_edge() {
        let m = LockManager::new(Arc::new(Never));
        assert!(m.try_lock(T[0], b"a") && m.try_lock(T[1], b"b"));
        let mut two = ask(&m, T[2], b"a");
        assert!(poll(&mut two).is_pending());
        let mut one = ask(&m, T[1], b"a");
        assert!(poll(&mut one).is_pending());
        // T2 waits for a; T1 waits behind it. T2 asking for b, which T1 holds, would close the cycle.
        assert_eq!(poll(&mut ask(&m, T[2], b"b")), Poll::Ready(Err(Error::Deadlock)));
    }

    #[test]
    fn timeout_and_leaseholder_change() {
        let m = LockManager::new(Arc::new(NoWait));
        assert!(m.try_lock(T[0], b"k"));
        assert_eq!(poll(&mut ask(&m, T[1], b"k")), Poll::Ready(Err(Error::LockTimeout(WAIT))));
        assert!(m.list()[0].waiting.is_empty() && m.lock_table().waits.is_empty());
        let m = LockManager::new(Arc::new(Never));
        assert!(m.try_lock(T[0], b"k"));
        let mut one = ask(&m, T[1], b"k");
        assert!(poll(&mut one).is_pending());
        m.forget(&KeyRange::all());
        assert!(matches!(poll(&mut one), Poll::Ready(Err(Error::NotServed(_)))));
        assert!(m.try_lock(T[2], b"k"));
    }
}
