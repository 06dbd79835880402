//! The mistakes of section 13 of the commit protocol that a shard can make, and the test that would catch each.
//!
//! | mistake | test |
//! |---|---|
//! | resolved participant keeps no tombstone | `late_copies_find_the_tombstone` |
//! | anchor forgets on the last ack, or at the deadline | `r21_the_anchor_goes_after_acks_and_floor`, `an_anchor_that_forgot_decides_nothing_new` |
//! | application does not check record and floor again | `prepare_probe_and_decide_in_flight_together`, `a_floor_that_rises_under_a_prepare` |
//! | reads do not wait for a proposal in flight | `r3_a_proposal_in_flight_counts_as_a_prepare` |
//! | an old term's proposal is applied by the new leaseholder | `r2_an_entry_of_another_term_does_nothing`, `what_landed_before_the_term_is_seen` |
//! | tombstones dropped by a clock | `no_clock_drops_or_refuses_anything` |
//! | prepare dropped when its deadline passes | `r20_the_floor_drops_tombstones_but_no_prepare_and_no_anchor` |
//! | refusal without record (also commit1) | `r12_a_refusal_is_final_when_it_stands_in_the_log` |
//! | later decision overwrites the first | `r16_the_first_decision_wins`, `r16_two_decisions_in_flight_together` |
//! | absence read as abort without blocking; block or probe removes a prepare | `r18_probe_blocks_the_absent_and_leaves_the_prepared`, `no_marker_removes_a_prepare` |
//! | repeated prepare evaluated again | `r11_1_a_record_is_answered_and_never_evaluated_again`, `two_copies_in_flight_are_evaluated_once` |
//! | commit1 leaves no record; commit1 pushed after validation elsewhere | `r13_commit1` |
//! | at-max validates only up to C; validation ignores foreign prepares, or raises no cache | `r11_7_validation_of_the_piece`, `r10_validate` |
//! | snapshot isolation pushes over a newer version | `r11_5_first_committer_wins` |
//! | row read and written not validated (lock trusted) | `a_lock_lost_with_the_lease_loses_no_update` |
//! | new leaseholder without low-water mark | `r1_low_is_the_highest_read_limit` |
//! | reader ignores a prepare at or below T | `r4_reads_are_recorded_and_wait_for_prepares` |
//! | `resolved` ignores prepares; prepare not pushed above closed | `resolved_stays_below_prepares`, `r11_6_p_lies_above_everything` |
//! | uncertainty window looks at versions only | `r5_versions_and_prepares_in_the_window_move_the_reader` |
//! | own cache entries push own prepare | `r11_6_p_lies_above_everything` |
//! | resolve(abort) on none leaves no marker | `r17_resolve` |

use std::task::Poll;
use std::time::Duration;

use isochrone_base::{Timestamp, TxnId};

use super::harness::*;
use crate::api::*;
use crate::command::Command;

#[test]
fn late_copies_find_the_tombstone() {
    let mut w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    w.resolve(&b, Decision::Commit(c)).unwrap();
    let newer = w.put(2, "z", "2");
    for lose in [false, true] {
        assert_eq!(w.prepare(&b), Prepared::Committed(c));
        assert_eq!(w.prepare(&a), Prepared::Committed(c));
        assert_eq!(w.probe(&b), Ok(Record::Committed(c)));
        assert_eq!(w.versions("z"), [(newer, Some("2".into())), (c, Some("1".into()))], "T8");
        w.restart(lose, &[]);
    }
}

#[test]
fn an_anchor_that_forgot_decides_nothing_new() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    w.resolve(&b, Decision::Commit(c)).unwrap();
    now(w.client.acked(id(&a, 0))).unwrap();
    // All acknowledged, the floor has not passed: the decision stands.
    assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Decided(Decision::Commit(c))));
    w.raise_floor(LEFT, a.deadline);
    assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Gone), "not ABORT");
    assert_eq!(w.prepare(&a), Prepared::PastDeadline);
}

#[test]
fn prepare_probe_and_decide_in_flight_together() {
    // In every order of landing the answers fit each other, and the record says the same.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let w = World::new();
        let (a, _) = pair(1, w.now(), Mode::AtMax);
        w.hold();
        let mut prepare = w.client.prepare(a.clone());
        let mut probe = w.client.probe(id(&a, 0));
        let mut decide = w.client.decide(id(&a, 0), Decision::Abort);
        assert!(
            poll(&mut prepare).is_pending()
                && poll(&mut probe).is_pending()
                && poll(&mut decide).is_pending()
        );
        assert_eq!(w.held(), ["prepare", "probe", "abort"]);
        let mut left = vec![0, 1, 2];
        for x in order {
            let at = left.iter().position(|l| *l == x).unwrap();
            left.remove(at);
            w.land(at);
        }
        assert_eq!(poll(&mut decide), Poll::Ready(Ok(AnchorReply::Decided(Decision::Abort))));
        assert_eq!(w.record(&a), Record::Aborted);
        let first = order[0] == 0;
        match poll(&mut prepare) {
            Poll::Ready(Ok(Prepared::At(_))) => assert!(first),
            Poll::Ready(Ok(Prepared::Refused(_))) => assert!(!first),
            other => panic!("{other:?}"),
        }
        let seen = poll(&mut probe);
        match order {
            [0, 1, 2] => assert_eq!(seen, Poll::Ready(Ok(Record::Prepared(a.candidate)))),
            _ => assert_eq!(seen, Poll::Ready(Ok(Record::Aborted))),
        }
        assert_eq!(w.versions("a"), []);
        w.unhold();
        assert_eq!(w.get(2, "a", w.now()), Ok(None), "nothing is left standing");
    }
}

#[test]
fn a_floor_that_rises_under_a_prepare() {
    for one_step in [false, true] {
        let w = World::new();
        let p = one(1, &[("a", "x")], None, w.now());
        w.hold();
        let mut f = if one_step { w.client.commit1(p.clone()) } else { w.client.prepare(p.clone()) };
        assert!(poll(&mut f).is_pending());
        w.raise_floor(LEFT, p.deadline);
        w.land(0);
        assert_eq!(poll(&mut f), Poll::Ready(Ok(Prepared::PastDeadline)));
        assert_eq!((w.record(&p), w.versions("a").len()), (Record::None, 0));
    }
}

#[test]
fn what_landed_before_the_term_is_seen() {
    for land in [true, false] {
        let mut w = World::new();
        w.hold();
        let p = one(1, &[("b", "x")], None, w.now());
        let client = w.client.clone();
        let mut f = client.commit1(p.clone());
        assert!(poll(&mut f).is_pending());
        let read = w.now();
        w.new_term(LEFT, if land { &[0] } else { &[] });
        w.unhold();
        let found = w.get(2, "b", read);
        assert_eq!(found, Ok(land.then(|| "x".to_string())));
        assert!(matches!(poll(&mut f), Poll::Ready(Err(Error::Ambiguous(_)))), "R22: nothing is certain");
        match w.commit1(&p) {
            Prepared::Committed(c) if land => assert_eq!(c, p.candidate),
            Prepared::Committed(c) => assert!(c > read, "T5"),
            other => panic!("{other:?}"),
        }
        assert_eq!(w.versions("b").len(), 1, "T8");
    }
}

#[test]
fn a_lost_answer_leaves_the_proposal_in_the_way() {
    let w = World::new();
    w.get(9, "a", w.now()).unwrap();
    w.hold();
    let p = one(1, &[("a", "x")], None, w.now());
    let mut f = w.client.commit1(p.clone());
    assert!(poll(&mut f).is_pending());
    drop(f);
    let mut read = w.client.get(as_of(2, w.now()), b"a");
    assert!(poll(&mut read).is_pending(), "S3: the client is gone, the entry is not");
    w.land(0);
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(_)))));
    // Certainly not logged: out of the way at once.
    let mut f = w.client.commit1(one(3, &[("a", "y")], None, w.now()));
    assert!(poll(&mut f).is_pending());
    let mut read = w.client.get(as_of(2, w.now()), b"a");
    assert!(poll(&mut read).is_pending());
    w.refuse(0);
    assert!(matches!(poll(&mut f), Poll::Ready(Err(Error::NotServed(_)))));
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(_)))));
}

#[test]
fn no_clock_drops_or_refuses_anything() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.decide(&a, Decision::Abort).unwrap();
    w.pass(3_600_000);
    assert_eq!(w.record(&a), Record::Aborted);
    assert!(matches!(w.prepare(&a), Prepared::Refused(_)));
    assert!(matches!(w.prepare(&b), Prepared::At(_)), "the floor decides, not the deadline against a clock");
}

#[test]
fn no_marker_removes_a_prepare() {
    let w = World::new();
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.log_command(LEFT, Command::Refuse { id: id(&a, 0) });
    w.log_command(LEFT, Command::Probe { id: id(&a, 0) });
    w.raise_floor(LEFT, a.deadline.next());
    assert_eq!(w.record(&a), Record::Prepared(a.candidate));
    assert_eq!(w.prepare(&a), Prepared::At(a.candidate));
    let c = w.now();
    assert_eq!(w.decide(&a, Decision::Commit(c)), Ok(AnchorReply::Decided(Decision::Commit(c))));
}

#[test]
fn two_copies_in_flight_are_evaluated_once() {
    let w = World::new();
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.get(5, "b", w.now()).unwrap();
    w.hold();
    let (mut one, mut two) = (w.client.prepare(a.clone()), w.client.prepare(a.clone()));
    assert!(poll(&mut one).is_pending());
    w.pass(10);
    assert_eq!(w.get(5, "b", w.now()), Ok(None));
    assert!(poll(&mut two).is_pending());
    assert_eq!(w.held().iter().filter(|k| **k == "prepare").count(), 1);
    w.land(0);
    assert_eq!(poll(&mut two), Poll::Ready(Ok(Prepared::At(a.candidate))));
    assert_eq!(poll(&mut one), Poll::Ready(Ok(Prepared::At(a.candidate))));
}

#[test]
fn a_lock_lost_with_the_lease_loses_no_update() {
    let mut w = World::new();
    w.put(1, "a", "1");
    let t = w.now();
    let locked = now(w.client.lock(TxnId(2), b"a", LockMode::Update, t, Duration::from_secs(1)));
    assert_eq!(locked, Ok(Locked { waited: false }));
    assert_eq!(w.get(2, "a", t), Ok(Some("1".into())));
    w.restart(false, &[]);
    let other = one(3, &[("a", "3")], Some(w.now()), w.now());
    assert!(matches!(w.commit1(&other), Prepared::Committed(_)));
    let mine = one(2, &[("a", "2")], Some(t), w.now());
    assert!(matches!(w.commit1(&mine), Prepared::Refused(_)));
}

#[test]
fn resolved_stays_below_prepares() {
    let w = World::new();
    let p = one(1, &[("a", "x")], None, w.now());
    w.prepare(&p);
    w.pass(60_000);
    now(w.client.tick()).unwrap();
    let s = w.shards.get(LEFT).unwrap().state();
    assert!(s.closed > p.candidate, "closed goes on");
    assert_eq!(s.resolved, p.candidate.prev());
    w.decide(&p, Decision::Commit(p.candidate)).unwrap();
    let s = w.shards.get(LEFT).unwrap().state();
    assert_eq!(s.resolved, s.closed);
    assert!(s.resolved > Timestamp::MIN);
}
