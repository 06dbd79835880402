//! A node among others: leadership that comes and goes, leases (D9), the uncertainty window's end (R5), graceful
//! hand-over (R1), and what several replicas do with one log.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use isochrone_base::ids::{INIT_INDEX, INIT_TERM};
use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId};
use isochrone_env::Clock;
use isochrone_storage::MemEngine;

use super::harness::*;
use crate::api::*;
use crate::command::Command;
use crate::wire::{Request, Response};
use crate::{Config, HAND_OVER_MAX, NewShard, ShardState, Shards};

fn state(w: &World, shard: ShardId) -> ShardState {
    w.shards.get(shard).unwrap().state()
}

fn not_led(shard: ShardId, leader: Option<NodeId>) -> Error {
    Error::NotLeader { shard, leader }
}

// Leadership.

#[test]
fn who_does_not_lead_says_so_at_once_and_who_does() {
    let w = World::in_cluster(Config { serve_wait_max: Duration::from_secs(5), ..config() });
    w.put(1, "a", "x");
    let t = w.now();
    w.shards.follow(LEFT, Some(OTHER));
    let no = || not_led(LEFT, Some(OTHER));
    let p = one(2, &[("a", "y")], None, w.now());
    assert_eq!(w.get(2, "a", t), Err(no()));
    assert_eq!(now(w.client.scan(as_of(2, t), &KeyRange::new("a", "c"), false, 9, 99)), Err(no()));
    assert_eq!(now(w.client.lock(TxnId(2), b"a", LockMode::Update, t, Duration::from_secs(1))), Err(no()));
    assert_eq!(now(w.client.validate(TxnId(2), vec![span("a", "", t)], t)), Err(no()));
    assert_eq!(now(w.client.prepare(p.clone())), Err(no()));
    assert_eq!(now(w.client.commit1(p.clone())), Err(no()));
    assert_eq!(w.decide(&p, Decision::Abort), Err(no()));
    assert_eq!(now(w.client.ask(id(&p, 0))), Err(no()));
    assert_eq!(w.resolve(&p, Decision::Abort), Err(no()));
    assert_eq!(w.probe(&p), Err(no()));
    assert_eq!(now(w.client.acked(id(&p, 0))), Err(no()));
    assert_eq!(now(w.client.split(b"c", ShardId(9))), Err(no()));
    assert_eq!(now(w.client.propose_truncate(LEFT, 11)), Err(no()));
    assert_eq!(now(w.client.hand_over(LEFT)), Err(no()));
    assert_eq!(now(w.client.resume(LEFT)), Err(no()));
    assert_eq!(now(w.client.raise_gc_threshold(Timestamp(9))), Ok(()), "of what it leads");
    assert_eq!(state(&w, RIGHT).gc_threshold, Timestamp(9));
    assert_eq!((state(&w, LEFT).leader, w.shards.leading().len()), (Some(OTHER), 1));
    // The right shard goes on.
    w.put(3, "z", "x");
    // A leader without an entry of its own term is waited for.
    w.shards.lead(LEFT, 9);
    w.shards.lease(LEFT, 9, u64::MAX);
    w.log.state().terms.insert(LEFT, 9);
    let mut read = w.client.get(as_of(2, t), b"a");
    assert!(poll(&mut read).is_pending());
    w.log_command(LEFT, Command::Close);
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(_)))));
}

#[test]
fn a_proposal_that_the_log_refuses_names_no_leader_it_does_not_know() {
    let w = World::in_cluster(config());
    // Consensus knows already, this layer does not.
    w.log.state().terms.insert(LEFT, 77);
    let p = one(2, &[("a", "y")], None, w.now());
    assert_eq!(now(w.client.commit1(p)), Err(not_led(LEFT, None)));
    assert_eq!(state(&w, LEFT).inflight, 0, "certainly not logged");
}

#[test]
fn keys_that_are_not_here_are_not_served_nor_passed_over() {
    let engine = MemEngine::new();
    let ranges = [KeyRange::new("b", "f"), KeyRange::new("k", "p")];
    let new =
        |(i, range)| NewShard { shard: ShardId(i), range, voters: VOTERS.to_vec(), applied: INIT_INDEX };
    let new: Vec<NewShard> = (1..).zip(ranges).map(new).collect();
    Shards::bootstrap(&engine, &new).unwrap();
    let mut w = World::in_cluster(config());
    w.reopen_on(engine);
    let t = w.now();
    assert!(matches!(w.get(1, "a", t), Err(Error::NotServed(_))));
    assert_eq!(w.get(1, "c", t), Ok(None));
    let whole = span("c", "n", t.prev());
    assert!(matches!(now(w.client.validate(TxnId(1), vec![whole], t)), Err(Error::NotServed(_))), "T6");
    let all = KeyRange::new("c", "n");
    assert!(matches!(now(w.client.clear_range(&all)), Err(Error::NotServed(_))));
    let page = now(w.client.scan(as_of(1, t), &all, false, 9, 99)).unwrap();
    assert_eq!(page.rest, Some(KeyRange::new("f", "n")), "a scan ends with its shard");
}

#[test]
fn locks_of_a_leadership_that_was_lost_are_forgotten() {
    let w = World::in_cluster(config());
    let t = w.now();
    let wait = Duration::from_secs(1);
    assert!(now(w.client.lock(TxnId(1), b"a", LockMode::Update, t, wait)).is_ok());
    assert!(now(w.client.lock(TxnId(1), b"z", LockMode::Update, t, wait)).is_ok());
    let mut waiter = w.client.lock(TxnId(2), b"a", LockMode::Update, t, wait);
    assert!(poll(&mut waiter).is_pending());
    w.shards.follow(LEFT, Some(OTHER));
    now(w.client.tick()).unwrap();
    assert!(matches!(poll(&mut waiter), Poll::Ready(Err(Error::NotServed(_)))));
    let left: Vec<Key> = w.client.locks().list().into_iter().map(|l| l.key).collect();
    assert_eq!(left, [Key::from("z")]);
}

#[test]
fn requests_from_afar_do_what_calls_do() {
    let w = World::in_cluster(config());
    let run = |request: Request| {
        let request = Request::decode(request.encode()).unwrap();
        Response::decode(now(request.run(&*w.client)).encode()).unwrap()
    };
    let (a, z) = pair(1, w.now(), Mode::AtMax);
    assert_eq!(Request::Prepare(z.clone()).key(), b"z");
    assert_eq!(run(Request::Prepare(a.clone())), Response::Prepared(Prepared::At(a.candidate)));
    assert_eq!(run(Request::Probe(id(&z, 1))), Response::Record(Record::Aborted));
    assert_eq!(run(Request::Ask(id(&a, 0))), Response::Anchor(AnchorReply::Undecided));
    let decide = Request::Decide { anchor: id(&a, 0), decision: Decision::Abort };
    assert_eq!(run(decide), Response::Anchor(AnchorReply::Decided(Decision::Abort)));
    assert_eq!(run(Request::Resolve { piece: id(&z, 1), decision: Decision::Abort }), Response::Done);
    assert_eq!(run(Request::Acked(id(&a, 0))), Response::Done);
    let row = one(2, &[("b", "x")], None, w.now());
    assert_eq!(run(Request::Commit1(row.clone())), Response::Prepared(Prepared::Committed(row.candidate)));
    let who = as_of(3, w.now());
    let seen = Seen { value: Bytes::from_static(b"x"), ts: row.candidate };
    assert_eq!(run(Request::Get { who, key: Key::from("b") }), Response::Seen(Some(seen)));
    let range = KeyRange::new("a", "c");
    let scan = Request::Scan { who, range, reverse: true, rows_max: u64::MAX, bytes_max: u64::MAX };
    let rows = vec![(Bytes::from_static(b"b"), Bytes::from_static(b"x"))];
    assert_eq!(run(scan), Response::Page(Page { rows, rest: None, newest: row.candidate }));
    let (txn, key, wait_max) = (TxnId(3), Key::from("b"), Duration::from_secs(1));
    let mode = LockMode::Update;
    let lock = Request::Lock { txn, key: key.clone(), mode, read_ts: who.ts, wait_max };
    assert_eq!(run(lock), Response::Locked(Locked { waited: false }));
    assert_eq!(w.client.locks().list().len(), 1);
    assert_eq!(run(Request::Unlock { txn, keys: vec![key] }), Response::Done);
    assert_eq!(w.client.locks().list(), []);
    let stale = Request::Validate { txn, spans: vec![span("b", "", Timestamp::MIN)], ts: who.ts };
    assert!(matches!(run(stale), Response::Error(Error::Conflict(_))));
    w.shards.follow(LEFT, Some(OTHER));
    let get = Request::Get { who, key: Key::from("b") };
    assert_eq!(run(get), Response::Error(not_led(LEFT, Some(OTHER))));
}

// Leases.

#[test]
fn d9_nothing_is_read_or_validated_without_a_lease() {
    let w = World::in_cluster(Config { serve_wait_max: Duration::from_secs(5), ..config() });
    w.put(1, "a", "x");
    let t = w.now();
    w.get(9, "b", t).unwrap();
    let term = w.log.state().terms[&LEFT];
    w.shards.lease(LEFT, term, w.clock.monotonic_ns() + 1_000_000);
    assert_eq!(w.get(1, "a", t), Ok(Some("x".into())));
    w.pass(1);
    let all = KeyRange::new("a", "k");
    let mut get = w.client.get(as_of(2, t), b"a");
    let mut scan = w.client.scan(as_of(2, t), &all, false, 9, 999);
    let mut validate = w.client.validate(TxnId(2), vec![span("a", "k", t)], t);
    assert!(poll(&mut get).is_pending() && poll(&mut scan).is_pending() && poll(&mut validate).is_pending());
    w.shards.lease(LEFT, term + 1, u64::MAX);
    assert!(poll(&mut get).is_pending(), "of a term that this node does not lead in");
    let p = one(3, &[("b", "y")], None, w.now());
    assert!(matches!(w.commit1(&p), Prepared::Committed(_)), "the log is the lease of a write");
    w.shards.lease(LEFT, term, w.clock.monotonic_ns() + 1_000_000);
    assert!(matches!(poll(&mut get), Poll::Ready(Ok(Some(_)))));
    assert!(matches!(poll(&mut scan), Poll::Ready(Ok(_))));
    assert_eq!(poll(&mut validate), Poll::Ready(Ok(())));
    // Given up before a transfer.
    w.shards.lease(LEFT, term, 0);
    assert!(poll(&mut w.client.get(as_of(2, t), b"a")).is_pending());
    // A new term begins without one.
    w.shards.lease(LEFT, term, u64::MAX);
    w.shards.lead(LEFT, term + 1);
    w.log.state().terms.insert(LEFT, term + 1);
    w.log_command(LEFT, Command::Close);
    let mut get = w.client.get(as_of(2, t), b"a");
    assert!(poll(&mut get).is_pending() && state(&w, LEFT).lease_until_ns == 0);
    w.shards.follow(LEFT, Some(OTHER));
    assert_eq!(poll(&mut get), Poll::Ready(Err(not_led(LEFT, Some(OTHER)))));
    w.shards.lease(LEFT, 0, u64::MAX);
    assert_eq!(state(&w, LEFT).lease_until_ns, 0);
}

#[test]
fn d9_a_lease_that_is_not_renewed_is_not_waited_for_without_a_bound() {
    let w = World::with(Config { serve_wait_max: Duration::from_secs(5), ..config() }, true);
    let t = w.now();
    w.shards.lease(LEFT, 1, 1);
    w.pass(1);
    assert!(matches!(w.get(1, "a", t), Err(Error::NotServed(_))));
    assert_eq!(w.get(1, "z", t), Ok(None));
}

#[test]
fn d9_the_lease_is_looked_at_again_after_the_read() {
    for scan in [false, true] {
        let w = World::in_cluster(Config { serve_wait_max: Duration::from_secs(5), ..config() });
        w.put(1, "a", "x");
        let t = w.now();
        w.get(9, "b", t).unwrap();
        let term = w.log.state().terms[&LEFT];
        w.shards.lease(LEFT, term, w.clock.monotonic_ns() + 50_000_000);
        // The process pauses while it reads, and the lease runs out.
        let clock = w.clock.clone();
        w.hooked.at_read(1, move || clock.advance(Duration::from_millis(60)));
        let all = KeyRange::new("a", "k");
        let mut read: std::pin::Pin<Box<dyn Future<Output = bool> + Send>> = match scan {
            true => {
                let read = w.client.scan(as_of(2, t), &all, false, 9, 999);
                Box::pin(async { read.await.is_ok() })
            }
            false => {
                let read = w.client.get(as_of(2, t), b"a");
                Box::pin(async { read.await.is_ok() })
            }
        };
        assert!(poll(&mut read).is_pending() && w.hooked.fired());
        w.shards.lease(LEFT, term, w.clock.monotonic_ns() + 50_000_000);
        assert_eq!(poll(&mut read), Poll::Ready(true));
    }
}

// R5.

/// A reader with a wide window.
fn unsure(txn: u128, ts: Timestamp) -> ReadAs {
    ReadAs { txn: TxnId(txn), ts, uncertain_to: ts.plus_micros(500_000) }
}

#[test]
fn r5_the_window_ends_at_the_leaseholders_clock() {
    let w = World::new();
    let c = w.put(1, "a", "1");
    let t = w.now();
    // Written ahead of the clock, by somebody whose proposal nobody has heard of yet.
    w.get(9, "a", t).unwrap();
    w.hold();
    let late = one(2, &[("a", "2")], None, t.plus_micros(1_000));
    let mut f = w.client.commit1(late.clone());
    assert!(poll(&mut f).is_pending());
    let seen = now(w.client.get(unsure(3, t), b"a")).unwrap().unwrap();
    assert_eq!(seen.ts, c, "not acknowledged before the read began");
    let all = KeyRange::new("a", "k");
    assert_eq!(now(w.client.scan(unsure(3, t), &all, false, 9, 999)).unwrap().rows.len(), 1);
    w.land(0);
    assert_eq!(poll(&mut f), Poll::Ready(Ok(Prepared::Committed(late.candidate))));
    assert_eq!(now(w.client.get(unsure(3, t), b"a")), Err(Error::Uncertain(late.candidate)));
    assert_eq!(now(w.client.scan(unsure(3, t), &all, false, 9, 999)), Err(Error::Uncertain(late.candidate)));
}

#[test]
fn r5_the_clock_has_seen_what_is_told() {
    // S6: whoever waits for an entry, and looks at the clock when it hears, finds the entry below.
    let w = World::new();
    w.hold();
    let ahead = one(1, &[("a", "1")], None, w.now().plus_micros(9_000));
    let mut f = w.client.commit1(ahead.clone());
    assert!(poll(&mut f).is_pending());
    assert!(w.hlc.last() < ahead.candidate);
    w.land(0);
    assert!(w.hlc.last() >= ahead.candidate);
    assert!(poll(&mut f).is_ready());
}

#[test]
fn r5_a_decision_far_above_its_prepare_is_met() {
    // Acknowledged when both pieces were prepared: here at p, elsewhere at a higher one, which became c.
    for nth in [None, Some(1)] {
        let w = World::new();
        w.get(9, "a", w.now()).unwrap();
        let (a, _) = pair(1, w.now(), Mode::AtMax);
        let p = a.candidate;
        w.prepare(&a);
        let c = p.plus_micros(300_000);
        let t = w.now().max(p.next());
        assert!(w.hlc.last() < c, "this node has heard of p only");
        let mut read = w.client.get(unsure(2, t), b"a");
        let decided = {
            let (client, a) = (w.client.clone(), a.clone());
            move || {
                assert!(now(client.decide(id(&a, 0), Decision::Commit(c))).is_ok());
            }
        };
        match nth {
            None => {
                assert!(poll(&mut read).is_pending(), "R4");
                decided();
                assert_eq!(poll(&mut read), Poll::Ready(Err(Error::Uncertain(c))));
            }
            Some(nth) => {
                // While a scan is between its two looks.
                drop(read);
                w.hooked.at_read(nth, decided);
                let all = KeyRange::new("a", "k");
                assert_eq!(now(w.client.scan(unsure(2, t), &all, false, 9, 999)), Err(Error::Uncertain(c)));
                assert!(w.hooked.fired());
            }
        }
    }
}

#[test]
fn r5_followers_move_their_clocks_too() {
    let w = World::new();
    let ahead = one(1, &[("a", "1")], None, w.now().plus_micros(9_000));
    assert!(matches!(w.commit1(&ahead), Prepared::Committed(_)));
    let f = follower(&w);
    let entries = w.log.state().logs[&LEFT].clone();
    f.shards.apply_entries(LEFT, &entries).unwrap();
    assert!(f.hlc.last() >= ahead.candidate, "it may lead next");
}

// Hand-over.

#[test]
fn r1_a_hand_over_leaves_the_true_highest_read_as_the_limit() {
    let mut w = World::in_cluster(config());
    w.put(1, "a", "x");
    let read = w.now();
    w.get(2, "a", read).unwrap();
    let ahead = state(&w, LEFT).read_limit;
    assert!(ahead >= read.plus_micros(100_000));
    assert_eq!(now(w.client.hand_over(LEFT)), Ok(()));
    assert_eq!((state(&w, LEFT).read_limit, state(&w, LEFT).holder), (read, NodeId(0)));
    assert_eq!(w.get(2, "a", read), Err(not_led(LEFT, None)), "not even what was read before");
    assert_eq!(now(w.client.hand_over(LEFT)), Err(not_led(LEFT, None)), "one at a time");
    now(w.client.tick()).unwrap();
    assert_eq!(state(&w, LEFT).read_limit, read, "nothing is renewed meanwhile");
    // The next leaseholder writes just above the read.
    w.new_term(LEFT, &[]);
    let p = one(3, &[("a", "y")], None, read.prev());
    assert_eq!(w.commit1(&p), Prepared::Committed(read.next()));
    assert_eq!(w.get(2, "a", read), Ok(Some("x".into())), "T5");
}

#[test]
fn r1_a_hand_over_counts_what_was_validated() {
    let w = World::in_cluster(config());
    let seen = w.now();
    w.get(9, "a", seen).unwrap();
    let validated = w.now();
    assert_eq!(now(w.client.validate(TxnId(1), vec![span("a", "c", seen)], validated)), Ok(()));
    let mut p = one(2, &[("e", "x")], None, w.now());
    p.validate = vec![span("f", "h", seen)];
    assert!(matches!(w.prepare(&p), Prepared::At(_)));
    assert!(p.candidate > validated);
    assert_eq!(now(w.client.hand_over(LEFT)), Ok(()));
    assert_eq!(state(&w, LEFT).read_limit, p.candidate);
}

#[test]
fn a_hand_over_waits_for_what_is_in_flight() {
    let w = World::in_cluster(config());
    w.hold();
    let p = one(1, &[("a", "x")], None, w.now());
    let mut f = w.client.commit1(p.clone());
    assert!(poll(&mut f).is_pending());
    let mut over: BoxFuture<'_, _> = Box::pin(w.client.hand_over(LEFT));
    assert!(poll(&mut over).is_pending());
    assert_eq!(w.held(), ["commit1"]);
    let mut blocked = w.client.get(as_of(2, w.now()), b"a");
    assert_eq!(poll(&mut blocked), Poll::Ready(Err(not_led(LEFT, None))));
    w.land(0);
    assert_eq!(poll(&mut f), Poll::Ready(Ok(Prepared::Committed(p.candidate))));
    assert!(poll(&mut over).is_pending());
    assert_eq!(w.held(), ["lease"]);
    w.land(0);
    assert_eq!(poll(&mut over), Poll::Ready(Ok(())));
}

#[test]
fn readers_that_wait_are_sent_away_by_a_hand_over() {
    let w = World::in_cluster(config());
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    let mut read = w.client.get(as_of(2, w.now()), b"a");
    assert!(poll(&mut read).is_pending());
    assert_eq!(now(w.client.hand_over(LEFT)), Ok(()));
    assert_eq!(poll(&mut read), Poll::Ready(Err(not_led(LEFT, None))));
}

#[test]
fn a_hand_over_that_is_given_up_changes_nothing() {
    // Something stays in flight.
    let w = World::with(config(), true);
    let read = w.now();
    w.get(9, "b", read).unwrap();
    w.hold();
    let mut f = w.client.commit1(one(1, &[("a", "x")], None, w.now()));
    assert!(poll(&mut f).is_pending());
    assert!(matches!(now(w.client.hand_over(LEFT)), Err(Error::NotServed(_))));
    assert!(!state(&w, LEFT).handing_over && state(&w, LEFT).serving);
    w.land(0);
    assert!(poll(&mut f).is_ready());
    // The Release is refused by the log.
    let mut over: BoxFuture<'_, _> = Box::pin(w.client.hand_over(LEFT));
    assert!(poll(&mut over).is_pending());
    w.refuse(0);
    assert!(matches!(poll(&mut over), Poll::Ready(Err(Error::NotServed(_)))));
    drop(over);
    assert_eq!(w.get(9, "b", read), Ok(None));
    // It is dropped while it waits.
    let mut f = w.client.commit1(one(2, &[("c", "x")], None, w.now()));
    assert!(poll(&mut f).is_pending());
    let w2 = World::in_cluster(config());
    w2.hold();
    let mut f2 = w2.client.commit1(one(2, &[("c", "x")], None, w2.now()));
    let mut over: BoxFuture<'_, _> = Box::pin(w2.client.hand_over(LEFT));
    assert!(poll(&mut f2).is_pending() && poll(&mut over).is_pending());
    drop(over);
    assert!(state(&w2, LEFT).serving);
}

#[test]
fn resumed_behind_an_entry_of_its_own() {
    let w = World::in_cluster(config());
    w.put(1, "a", "x");
    let read = w.now();
    w.get(2, "a", read).unwrap();
    assert_eq!(now(w.client.resume(LEFT)), Ok(()), "harmless");
    assert_eq!(now(w.client.hand_over(LEFT)), Ok(()));
    w.hold();
    let mut back: BoxFuture<'_, _> = Box::pin(w.client.resume(LEFT));
    assert!(poll(&mut back).is_pending());
    assert_eq!(w.get(2, "a", read), Err(not_led(LEFT, None)));
    w.land(0);
    assert_eq!(poll(&mut back), Poll::Ready(Ok(())));
    w.unhold();
    assert_eq!(state(&w, LEFT).holder, NodeId(1));
    let later = w.now();
    assert_eq!(w.get(2, "a", later), Ok(Some("x".into())));
    // What was read before and after still pushes (the cache was kept).
    let p = one(3, &[("a", "y")], None, read.prev());
    assert_eq!(w.commit1(&p), Prepared::Committed(later.next()));
}

#[test]
fn g2_a_release_of_unknown_fate_is_not_overtaken() {
    let w = World::in_cluster(config());
    w.get(2, "a", w.now()).unwrap();
    w.hold();
    let mut over: BoxFuture<'_, _> = Box::pin(w.client.hand_over(LEFT));
    assert!(poll(&mut over).is_pending());
    drop(over); // nobody hears what becomes of it
    let mut back: BoxFuture<'_, _> = Box::pin(w.client.resume(LEFT));
    assert!(poll(&mut back).is_pending());
    assert_eq!(w.held(), ["lease"], "the Release; nothing behind it yet");
    w.land(0);
    assert!(poll(&mut back).is_pending());
    assert_eq!(w.held(), ["lease"], "the Lease");
    w.land(0);
    assert_eq!(poll(&mut back), Poll::Ready(Ok(())));
    assert!(state(&w, LEFT).serving);
}

#[test]
fn a_transfer_that_never_happens_is_taken_back_by_a_tick() {
    let w = World::in_cluster(config());
    assert_eq!(now(w.client.hand_over(LEFT)), Ok(()));
    w.pass(HAND_OVER_MAX.as_millis() as u64 - 1);
    now(w.client.tick()).unwrap();
    assert!(state(&w, LEFT).handing_over);
    w.pass(1);
    now(w.client.tick()).unwrap();
    assert!(!state(&w, LEFT).handing_over && state(&w, LEFT).serving);
    assert!(w.get(1, "a", w.now()).is_ok());
}

#[test]
fn a_read_that_is_under_way_when_the_hand_over_begins() {
    // It has recorded itself; the Release counts it; it is not answered any more.
    let w = World::in_cluster(config());
    w.put(1, "a", "x");
    w.get(9, "b", w.now()).unwrap();
    let t = w.now();
    let client = w.client.clone();
    w.hooked.at_read(1, move || assert_eq!(now(client.hand_over(LEFT)), Ok(())));
    assert_eq!(w.get(2, "a", t), Err(not_led(LEFT, None)));
    assert!(w.hooked.fired() && state(&w, LEFT).read_limit >= t);
    // An evaluation between its steps leaves nothing behind: the hand-over waits for it.
    let w = World::in_cluster(config());
    let client = w.client.clone();
    let over: Arc<std::sync::Mutex<Option<BoxFuture<'static, _>>>> = Arc::default();
    let begun = over.clone();
    w.hooked.at_read(1, move || {
        let mut f: BoxFuture<'static, _> = Box::pin(async move { client.hand_over(LEFT).await });
        assert!(poll(&mut f).is_pending());
        *begun.lock().unwrap() = Some(f);
    });
    let p = one(1, &[("a", "x")], None, w.now());
    assert!(matches!(now(w.client.commit1(p)), Err(Error::NotServed(_))));
    let mut over = over.lock().unwrap().take().unwrap();
    assert_eq!(poll(&mut over), Poll::Ready(Ok(())));
    assert_eq!(w.versions("a").len(), 0);
}

#[test]
fn a_release_of_an_old_term_takes_no_limit_back() {
    let mut w = World::in_cluster(config());
    w.hold();
    let mut over: BoxFuture<'_, _> = Box::pin(w.client.hand_over(LEFT));
    assert!(poll(&mut over).is_pending());
    let release = w.log.state().held[0].payload.clone();
    drop(over);
    w.new_term(LEFT, &[]);
    w.unhold();
    let t = w.now();
    w.get(1, "a", t).unwrap();
    let limit = state(&w, LEFT).read_limit;
    let entry = crate::command::Entry::decode(&release).unwrap().unwrap();
    w.log_command_of(LEFT, entry.term, entry.command, Timestamp::MIN);
    assert_eq!(state(&w, LEFT).read_limit, limit);
}

// Truncation.

#[test]
fn truncation_is_agreed_on_and_monotone() {
    let mut w = World::in_cluster(config());
    for i in 0..10 {
        w.put(i, "a", "x");
    }
    let last = state(&w, LEFT).applied;
    assert_eq!(state(&w, LEFT).truncate_to, INIT_INDEX);
    assert_eq!(now(w.client.propose_truncate(LEFT, last - 3)), Ok(()));
    let entries = w.log.state().logs[&LEFT].len();
    for upto in [last - 3, last - 5] {
        assert_eq!(now(w.client.propose_truncate(LEFT, upto)), Ok(()));
    }
    assert_eq!(w.log.state().logs[&LEFT].len(), entries, "says nothing new");
    w.log_command(LEFT, Command::Truncate { upto: 3 });
    for lose in [false, true] {
        assert_eq!(state(&w, LEFT).truncate_to, last - 3);
        let meta = w.shards.list().into_iter().find(|m| m.shard == LEFT).unwrap();
        assert_eq!((meta.truncate_to, meta.members), (last - 3, VOTERS.to_vec().into()));
        w.restart(lose, &[]);
    }
    let at = state(&w, LEFT).applied + 1;
    w.log_command(LEFT, Command::Truncate { upto: u64::MAX });
    assert_eq!(state(&w, LEFT).truncate_to, at - 1, "what is applied when it is");
    let shown = w.log.state().logs[&LEFT].last().unwrap().2.clone();
    assert_eq!(crate::command::show(&shown).kind, "truncate");
}

// Several replicas.

#[test]
fn splits_look_the_same_on_every_replica() {
    let mut w = World::in_cluster(config());
    for k in ["b", "f", "h"] {
        w.put(1, k, "x");
    }
    let mut both = pieces(2, &[&[("c", "1")], &[("g", "1")]], None, w.now(), Mode::AtMax);
    let (g, c) = (both.remove(1), both.remove(0));
    w.prepare(&c);
    w.prepare(&g);
    assert!(matches!(now(w.client.split(b"e", RIGHT)), Err(Error::Invalid(_))), "an id that is taken");
    assert_eq!(now(w.client.split(b"e", ShardId(3))), Ok(true));
    let log = w.log.state().logs[&LEFT].clone();

    let f = follower(&w);
    let created = f.shards.apply_entries(LEFT, &log).unwrap();
    assert_eq!(created.len(), 1);
    let new = &created[0];
    assert_eq!((new.shard, &new.range, new.epoch), (ShardId(3), &KeyRange::new("e", "m"), 2));
    assert_eq!((new.applied, &new.members.voters[..], new.campaign), (INIT_INDEX, &VOTERS[..], false));
    assert_eq!(f.shards.get(ShardId(3)).unwrap().state().applied_term, INIT_TERM);
    let left = |engine: &MemEngine| {
        let mine = |key: &[u8]| {
            let shard = |id: ShardId| key.get(1..9) == Some(&id.0.to_be_bytes()[..]);
            matches!(key[0], b'a' | b'r') && shard(LEFT)
        };
        everything(engine).into_iter().filter(|(k, _)| mine(k)).collect::<Vec<_>>()
    };
    assert_eq!(left(&f.engine), left(&w.engine));

    // A replica that has the right half already, further on, by snapshot.
    w.new_term(ShardId(3), &[]);
    let later = w.put(9, "f", "later");
    let f = follower(&w);
    let split = log.iter().position(|e| crate::command::show(&e.2).kind == "split").unwrap();
    f.shards.apply_entries(LEFT, &log[..split]).unwrap();
    f.plant(&w, ShardId(3));
    let f = f.reopened(&w);
    let before = f.shards.get(ShardId(3)).unwrap().state();
    assert_eq!(f.shards.apply_entries(LEFT, &log[split..]).unwrap(), []);
    assert_eq!(left(&f.engine), left(&w.engine), "the same replicated state of the left half");
    assert_eq!(f.shards.get(ShardId(3)).unwrap().state(), before);
    assert_eq!(f.shards.of_key(b"f").unwrap().id(), ShardId(3));
    assert_eq!(f.shards.of_key(b"b").unwrap().range(), KeyRange::new("", "e"));
    assert_eq!(isochrone_storage::mvcc::newest_ts(&f.engine, b"f").unwrap(), Some(later));
    // An id that another shard has stops the replica: it is never guessed.
    let f = follower(&w);
    let bad = Command::Split { at: Key::from("e"), right: RIGHT, born_at: INIT_INDEX };
    let entry = crate::command::Entry {
        term: 1,
        seq: 1,
        closed: Timestamp::MIN,
        read_limit: Timestamp::MIN,
        command: bad,
    };
    assert!(f.shards.apply_entries(LEFT, &[(INIT_INDEX + 1, 1, entry.encode())]).is_err());
}

#[test]
fn the_right_half_is_campaigned_for_where_the_left_one_is_led() {
    let w = World::in_cluster(config());
    w.hold();
    let mut split: BoxFuture<'_, _> = Box::pin(w.client.split(b"e", ShardId(3)));
    assert!(poll(&mut split).is_pending());
    let held = w.log.state().held.remove(0);
    let at = state(&w, LEFT).applied + 1;
    let created = w.shards.apply_entries(LEFT, &[(at, held.term, held.payload)]).unwrap();
    assert!(created[0].campaign);
    assert!(w.shards.list().iter().all(|m| !m.campaign), "said once");
}

#[test]
fn shards_of_the_first_builds_split_as_they_did() {
    // Their logs begin at the first index, and so do those of the right halves that their logs create.
    let f = follower(&World::new());
    let old = Command::Split { at: Key::from("e"), right: ShardId(3), born_at: 0 };
    let entry = crate::command::Entry {
        term: 1,
        seq: 1,
        closed: Timestamp::MIN,
        read_limit: Timestamp::MIN,
        command: old,
    };
    let created = f.shards.apply_entries(LEFT, &[(INIT_INDEX + 1, 1, entry.encode())]).unwrap();
    assert_eq!((created[0].applied, created[0].truncate_to), (0, 0));
    assert_eq!(f.shards.get(ShardId(3)).unwrap().state().applied_term, 0);
}
