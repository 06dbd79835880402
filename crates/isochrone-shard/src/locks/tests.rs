//! The lock table by itself: futures are polled by hand, nothing sleeps.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use isochrone_env::fake::NoWait;
use proptest::prelude::*;

use super::LockMode::{KeyShare, NoKeyUpdate, Share, Update};
use super::*;

struct Never;
impl Timer for Never {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

const WAIT: Duration = Duration::from_secs(1);
const T: [TxnId; 6] = [TxnId(0), TxnId(1), TxnId(2), TxnId(3), TxnId(4), TxnId(5)];

type Fut<'a> = Pin<Box<dyn Future<Output = Result<bool, Error>> + Send + 'a>>;

fn owner(txn: TxnId) -> Owner {
    Owner { txn, gateway: NodeId(1) }
}

fn ask_for<'a>(m: &'a LockManager, txn: TxnId, key: &'a [u8], mode: LockMode) -> Fut<'a> {
    Box::pin(m.lock(owner(txn), key, mode, WAIT, Timestamp(7)))
}

fn ask<'a>(m: &'a LockManager, txn: TxnId, key: &'a [u8]) -> Fut<'a> {
    ask_for(m, txn, key, Update)
}

fn take(m: &LockManager, txn: TxnId, key: &[u8]) -> bool {
    m.try_lock(owner(txn), key, Update) != TryLock::Busy
}

fn poll(f: &mut Fut<'_>) -> Poll<Result<bool, Error>> {
    f.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn empty(m: &LockManager) -> bool {
    m.list().is_empty() && m.lock_table().waits.is_empty()
}

fn holders(m: &LockManager, key: &[u8]) -> Vec<(TxnId, LockMode)> {
    let list = m.list().into_iter().filter(|l| l.key == key && l.waiting_since.is_none());
    list.map(|l| (l.owner.txn, l.mode)).collect()
}

#[test]
fn modes_conflict_as_in_postgresql() {
    let conflicts = [
        (KeyShare, vec![Update]),
        (Share, vec![NoKeyUpdate, Update]),
        (NoKeyUpdate, vec![Share, NoKeyUpdate, Update]),
        (Update, LockMode::ALL.to_vec()),
    ];
    for (a, with) in conflicts {
        for b in LockMode::ALL {
            assert_eq!(a.conflicts_with(b), with.contains(&b), "{a:?} {b:?}");
            let m = LockManager::new(Arc::new(Never));
            assert_eq!(m.try_lock(owner(T[0]), b"k", a), TryLock::Granted);
            let busy = m.try_lock(owner(T[1]), b"k", b) == TryLock::Busy;
            assert_eq!(busy, with.contains(&b), "{a:?} {b:?}");
        }
    }
}

#[test]
fn fair_and_reentrant() {
    let m = LockManager::new(Arc::new(Never));
    assert_eq!(poll(&mut ask(&m, T[0], b"k")), Poll::Ready(Ok(false)));
    assert_eq!(poll(&mut ask(&m, T[0], b"k")), Poll::Ready(Ok(false)));
    let (mut one, mut two) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    m.unlock(T[3], &[b"k".to_vec()]);
    assert!(poll(&mut one).is_pending(), "only the owner gives back");
    m.unlock(T[0], &[b"k".to_vec()]);
    assert!(poll(&mut two).is_pending());
    assert_eq!(poll(&mut one), Poll::Ready(Ok(true)));
    m.unlock(T[1], &[b"k".to_vec()]);
    assert_eq!(poll(&mut two), Poll::Ready(Ok(true)));
    m.unlock(T[2], &[b"k".to_vec()]);
    assert!(empty(&m));
}

#[test]
fn shared_locks_do_not_pass_a_waiting_update() {
    let m = LockManager::new(Arc::new(Never));
    assert_eq!(m.try_lock(owner(T[0]), b"k", Share), TryLock::Granted);
    assert_eq!(m.try_lock(owner(T[1]), b"k", Share), TryLock::Granted);
    let mut update = ask_for(&m, T[2], b"k", NoKeyUpdate);
    assert!(poll(&mut update).is_pending());
    // It conflicts with no holder, but with who waits before it; the weakest mode conflicts with neither.
    let mut share = ask_for(&m, T[3], b"k", Share);
    assert!(poll(&mut share).is_pending());
    assert_eq!(m.try_lock(owner(T[4]), b"k", KeyShare), TryLock::Granted);
    m.unlock(T[0], &[b"k".to_vec()]);
    assert!(poll(&mut update).is_pending());
    m.unlock(T[1], &[b"k".to_vec()]);
    assert_eq!(poll(&mut update), Poll::Ready(Ok(true)));
    assert!(poll(&mut share).is_pending());
    assert_eq!(holders(&m, b"k"), [(T[2], NoKeyUpdate), (T[4], KeyShare)]);
    m.unlock(T[2], &[b"k".to_vec()]);
    assert_eq!(poll(&mut share), Poll::Ready(Ok(true)));
}

#[test]
fn upgrades_go_ahead_of_the_queue() {
    let m = LockManager::new(Arc::new(Never));
    for t in &T[..2] {
        assert_eq!(m.try_lock(owner(*t), b"k", KeyShare), TryLock::Granted);
    }
    let mut other = ask(&m, T[2], b"k");
    assert!(poll(&mut other).is_pending());
    // Nobody conflicts with it: at once, past the queue.
    assert_eq!(m.try_lock(owner(T[0]), b"k", Share), TryLock::Granted);
    let mut up = ask(&m, T[0], b"k");
    assert!(poll(&mut up).is_pending());
    // The other holder cannot upgrade as well: each would wait for the other.
    assert_eq!(poll(&mut ask(&m, T[1], b"k")), Poll::Ready(Err(Error::Deadlock)));
    m.unlock(T[1], &[b"k".to_vec()]);
    assert_eq!(poll(&mut up), Poll::Ready(Ok(true)));
    assert_eq!(holders(&m, b"k"), [(T[0], Update)]);
    assert!(poll(&mut other).is_pending());
    m.unlock(T[0], &[b"k".to_vec()]);
    assert_eq!(poll(&mut other), Poll::Ready(Ok(true)));
}

#[test]
fn an_upgrade_that_nobody_looks_at_is_taken_back() {
    let m = LockManager::new(Arc::new(Never));
    for t in &T[..2] {
        assert_eq!(m.try_lock(owner(*t), b"k", Share), TryLock::Granted);
    }
    let mut up = ask(&m, T[0], b"k");
    assert!(poll(&mut up).is_pending());
    m.unlock(T[1], &[b"k".to_vec()]);
    assert_eq!(holders(&m, b"k"), [(T[0], Update)]);
    drop(up);
    assert_eq!(holders(&m, b"k"), [(T[0], Share)]);
    assert_eq!(m.try_lock(owner(T[2]), b"k", Share), TryLock::Granted);
}

#[test]
fn dropped_waiters_leave_even_when_granted() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k") && !take(&m, T[1], b"k"));
    let (mut one, mut two, mut three) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"), ask(&m, T[3], b"k"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending() && poll(&mut three).is_pending());
    drop(one);
    m.unlock(T[0], &[b"k".to_vec()]);
    // Granted to the second, which never looks.
    drop(two);
    assert_eq!(poll(&mut three), Poll::Ready(Ok(true)));
    m.unlock(T[3], &[b"k".to_vec()]);
    assert!(empty(&m));
}

#[test]
fn who_has_given_up_leaves_the_queue() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k"));
    let (mut one, mut two) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    // Its transaction is over, and a copy of its request is still here.
    m.unlock(T[1], &[b"k".to_vec()]);
    assert!(matches!(poll(&mut one), Poll::Ready(Err(Error::NotServed(_)))));
    m.unlock(T[0], &[b"k".to_vec()]);
    assert_eq!(poll(&mut two), Poll::Ready(Ok(true)));
}

#[test]
fn a_second_request_takes_the_place_of_the_first() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k"));
    let (mut first, mut behind) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"));
    assert!(poll(&mut first).is_pending() && poll(&mut behind).is_pending());
    let mut second = ask(&m, T[1], b"k");
    assert!(poll(&mut second).is_pending());
    assert!(matches!(poll(&mut first), Poll::Ready(Err(Error::NotServed(_)))));
    m.unlock(T[0], &[b"k".to_vec()]);
    assert_eq!(poll(&mut second), Poll::Ready(Ok(true)));
    m.unlock(T[1], &[b"k".to_vec()]);
    assert_eq!(poll(&mut behind), Poll::Ready(Ok(true)));
    m.unlock(T[2], &[b"k".to_vec()]);
    assert!(empty(&m));
}

#[test]
fn cycles_over_several_keys_are_broken() {
    let m = LockManager::new(Arc::new(Never));
    for (t, k) in [(T[0], b"a"), (T[1], b"b"), (T[2], b"c")] {
        assert!(take(&m, t, k));
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
    assert!(take(&m, T[0], b"a") && take(&m, T[1], b"b"));
    let mut two = ask(&m, T[2], b"a");
    assert!(poll(&mut two).is_pending());
    let mut one = ask(&m, T[1], b"a");
    assert!(poll(&mut one).is_pending());
    // T2 waits for a; T1 waits behind it. T2 asking for b, which T1 holds, would close the cycle.
    assert_eq!(poll(&mut ask(&m, T[2], b"b")), Poll::Ready(Err(Error::Deadlock)));
}

#[test]
fn a_long_queue_is_looked_through_once() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, TxnId(0), b"k"));
    let mut all: Vec<Fut<'_>> = (1..=QUEUE_MAX as u128).map(|n| ask(&m, TxnId(n), b"k")).collect();
    assert!(all.iter_mut().all(|f| poll(f).is_pending()));
    let more = poll(&mut ask(&m, TxnId(9_999), b"k"));
    assert_eq!(more, Poll::Ready(Err(Error::LockTimeout(Duration::ZERO))));
    assert!(take(&m, TxnId(4_000), b"other"));
    assert_eq!(poll(&mut ask(&m, TxnId(0), b"other")), Poll::Ready(Err(Error::Deadlock)));
    for n in 0..QUEUE_MAX as u128 {
        m.unlock(TxnId(n), &[b"k".to_vec()]);
        assert_eq!(poll(&mut all[n as usize]), Poll::Ready(Ok(true)));
    }
}

#[test]
fn a_waiter_can_be_told_to_give_way() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k"));
    let (mut one, mut two) = (ask(&m, T[1], b"k"), ask(&m, T[2], b"k"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    assert_eq!(m.waiting(Timestamp(6)), []);
    assert_eq!(m.waiting(Timestamp(7)).len(), 2);
    let of_two = m.obstacles(T[2], b"k").unwrap();
    assert_eq!((&of_two.holders[..], &of_two.earlier[..]), (&[owner(T[0])][..], &[owner(T[1])][..]));
    assert_eq!(m.obstacles(T[0], b"k"), None);
    let ticket = m.obstacles(T[1], b"k").unwrap().ticket;
    assert!(!m.give_way(T[1], b"k", ticket + 100), "another wait");
    assert!(m.give_way(T[1], b"k", ticket));
    assert_eq!(poll(&mut one), Poll::Ready(Err(Error::Deadlock)));
    assert!(!m.give_way(T[1], b"k", ticket));
    m.unlock(T[0], &[b"k".to_vec()]);
    assert_eq!(poll(&mut two), Poll::Ready(Ok(true)));
}

#[test]
fn who_waits_for_a_lost_gateway_leaves() {
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k"));
    let elsewhere = |txn| Owner { txn, gateway: NodeId(2) };
    let lost = |txn| -> Fut<'_> { Box::pin(m.lock(elsewhere(txn), b"k", Update, WAIT, Timestamp(7))) };
    let (mut one, mut two, mut three) = (lost(T[1]), lost(T[2]), ask(&m, T[3], b"k"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending() && poll(&mut three).is_pending());
    m.leave(NodeId(2));
    assert!(matches!(poll(&mut one), Poll::Ready(Err(Error::NotServed(_)))));
    assert!(matches!(poll(&mut two), Poll::Ready(Err(Error::NotServed(_)))));
    m.unlock(T[0], &[b"k".to_vec()]);
    assert_eq!(poll(&mut three), Poll::Ready(Ok(true)));
    m.unlock(T[3], &[b"k".to_vec()]);
    assert!(empty(&m));
}

#[test]
fn timeout_and_leaseholder_change() {
    let m = LockManager::new(Arc::new(NoWait));
    assert!(take(&m, T[0], b"k"));
    assert_eq!(poll(&mut ask(&m, T[1], b"k")), Poll::Ready(Err(Error::LockTimeout(WAIT))));
    assert!(m.list().len() == 1 && m.lock_table().waits.is_empty());
    let m = LockManager::new(Arc::new(Never));
    assert!(take(&m, T[0], b"k"));
    let mut one = ask(&m, T[1], b"k");
    assert!(poll(&mut one).is_pending());
    m.forget(&KeyRange::all());
    assert!(matches!(poll(&mut one), Poll::Ready(Err(Error::NotServed(_)))));
    assert!(take(&m, T[2], b"k"));
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn cost_of_a_lock_that_nobody_else_wants() {
    let m = LockManager::new(Arc::new(Never));
    let keys: Vec<Key> =
        (0..1_000u32).map(|i| [b"/table/index/".as_slice(), &i.to_be_bytes()].concat()).collect();
    for _ in 0..5 {
        let began = std::time::Instant::now();
        for _ in 0..500 {
            for key in &keys {
                assert_eq!(m.try_lock(owner(T[0]), key, Update), TryLock::Granted);
            }
            m.unlock(T[0], &keys);
        }
        println!("{} ns for lock and unlock", began.elapsed().as_nanos() / 500_000);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(usize, usize, LockMode),
    Drop(usize),
    Unlock(usize, usize),
    End(usize),
    Poll(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let mode = (0..4usize).prop_map(|m| LockMode::ALL[m]);
    prop_oneof![
        6 => (0..6usize, 0..3usize, mode).prop_map(|(t, k, m)| Step::Ask(t, k, m)),
        1 => (0..6usize).prop_map(Step::Drop),
        1 => (0..6usize, 0..3usize).prop_map(|(t, k)| Step::Unlock(t, k)),
        2 => (0..6usize).prop_map(Step::End),
        2 => (0..6usize).prop_map(Step::Poll),
    ]
}

/// L1 and L2 of the whole table, the slow and obvious way.
fn check(m: &LockManager) {
    let t = m.lock_table();
    let mut edges: Vec<(TxnId, TxnId)> = Vec::new();
    for held in t.held.values() {
        let holders: Vec<(TxnId, LockMode)> = held.holders().map(|h| (h.owner.txn, h.mode)).collect();
        assert!(!holders.is_empty(), "a key without holders is dropped");
        for (i, (a, m)) in holders.iter().enumerate() {
            assert!(holders[i + 1..].iter().all(|(b, n)| a != b && !m.conflicts_with(*n)), "{holders:?}");
        }
        for (i, w) in held.queue.iter().enumerate() {
            let mut stopped = false;
            for (other, mode) in
                holders.iter().copied().chain(held.queue.range(..i).map(|e| (e.owner.txn, e.mode)))
            {
                if other != w.owner.txn && mode.conflicts_with(w.mode) {
                    stopped = true;
                    edges.push((w.owner.txn, other));
                }
            }
            assert!(stopped, "somebody waits for nobody");
        }
    }
    for start in T {
        let (mut seen, mut todo) = (Vec::new(), vec![start]);
        while let Some(at) = todo.pop() {
            for (_, to) in edges.iter().filter(|(from, _)| *from == at) {
                assert_ne!(*to, start, "a cycle: {edges:?}");
                if !seen.contains(to) {
                    seen.push(*to);
                    todo.push(*to);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_table_keeps_its_invariants(steps in proptest::collection::vec(step(), 1..80)) {
        let m = LockManager::new(Arc::new(Never));
        let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
        let mut waiting: Vec<Option<Fut<'_>>> = (0..6).map(|_| None).collect();
        let mut deadlocks = 0;
        for s in steps {
            match s {
                Step::Ask(t, k, mode) if waiting[t].is_none() => {
                    let mut f = ask_for(&m, T[t], keys[k], mode);
                    match poll(&mut f) {
                        Poll::Pending => waiting[t] = Some(f),
                        Poll::Ready(Ok(_)) => prop_assert!(holders(&m, keys[k]).iter().any(|(h, n)| *h == T[t] && *n >= mode)),
                        Poll::Ready(Err(e)) => {
                            prop_assert_eq!(e, Error::Deadlock);
                            deadlocks += 1;
                        }
                    }
                }
                Step::Ask(..) => {}
                Step::Drop(t) => waiting[t] = None,
                Step::Unlock(t, k) if waiting[t].is_none() => m.unlock(T[t], &[keys[k].to_vec()]),
                Step::Unlock(..) => {}
                Step::End(t) => {
                    waiting[t] = None;
                    m.unlock(T[t], &keys.map(<[u8]>::to_vec));
                }
                Step::Poll(t) => {
                    if let Some(f) = &mut waiting[t] && poll(f).is_ready() {
                        waiting[t] = None;
                    }
                }
            }
            check(&m);
        }
        drop(waiting);
        for t in T {
            m.unlock(t, &keys.map(<[u8]>::to_vec));
        }
        prop_assert!(empty(&m), "{deadlocks} deadlocks");
    }
}
