//! One test per rule, named after it.

use std::task::Poll;
use std::time::Duration;

use isochrone_base::{Key, KeyRange, ShardId, Timestamp, TxnId};

use super::harness::*;
use crate::api::*;
use crate::command::Command;
use crate::{Config, ShardState};

fn state(w: &World, shard: ShardId) -> ShardState {
    w.shards.get(shard).unwrap().state()
}

#[test]
fn r1_serves_only_after_an_entry_of_the_own_term() {
    let w = World::new();
    w.put(1, "a", "x");
    w.shards.follow(LEFT, None);
    assert!(matches!(w.get(2, "a", w.now()), Err(Error::NotServed(_))));
    w.shards.lead(LEFT, 7);
    w.shards.lease(LEFT, 7, u64::MAX);
    w.log.state().terms.insert(LEFT, 7);
    let (mut read, mut again) =
        (w.client.get(as_of(2, w.now()), b"a"), w.client.get(as_of(2, w.now()), b"a"));
    assert!(poll(&mut read).is_pending() && poll(&mut again).is_pending());
    w.log_command(LEFT, Command::Close);
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(_)))));
    assert!(matches!(poll(&mut again), Poll::Ready(Ok(Some(_)))));
}

#[test]
fn r1_low_is_the_highest_read_limit() {
    let mut w = World::new();
    let t = w.now();
    assert_eq!(w.get(1, "a", t), Ok(None));
    let limit = state(&w, LEFT).read_limit;
    assert!(limit >= t && limit <= w.hlc.latest().plus_micros(300_000));
    for lose in [false, true] {
        w.restart(lose, &[]);
        assert_eq!(state(&w, LEFT).read_limit, limit, "a fact in the log");
        let p = one(9 + u128::from(lose), &[("a", "x")], None, t);
        match w.prepare(&p) {
            Prepared::At(at) => assert!(at > limit, "{at} {limit}"),
            other => panic!("{other:?}"),
        }
        w.decide(&p, Decision::Abort).unwrap();
    }
}

#[test]
fn r1_nothing_is_served_above_the_read_limit() {
    let w = World::new();
    assert_eq!(w.get(1, "a", w.now()), Ok(None));
    w.hold();
    w.pass(400);
    let t = w.now();
    assert!(t > state(&w, LEFT).read_limit);
    let (mut one, mut two) = (w.client.get(as_of(1, t), b"a"), w.client.get(as_of(2, t), b"b"));
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    assert_eq!(w.held(), ["lease"], "one renewal for both");
    w.land(0);
    assert_eq!(poll(&mut one), Poll::Ready(Ok(None)));
    assert_eq!(poll(&mut two), Poll::Ready(Ok(None)));
    assert_eq!(w.get(1, "c", t), Ok(None), "and for whoever follows");
    let far = w.now().plus_micros(3_600_000_000);
    assert!(matches!(w.get(1, "a", far), Err(Error::Invalid(_))), "the far future is not cached");
}

#[test]
fn r1_a_lost_renewal_does_not_stop_reads() {
    let w = World::with(config(), true);
    w.hold();
    let mut read = w.client.get(as_of(1, w.now()), b"a");
    assert!(poll(&mut read).is_pending());
    drop(read);
    assert_eq!(w.held(), ["lease"]);
    w.refuse(0);
    w.unhold();
    assert_eq!(w.get(2, "a", w.now()), Ok(None));
}

#[test]
fn r2_an_entry_of_another_term_does_nothing() {
    let mut w = World::new();
    w.hold();
    let p = one(1, &[("a", "x")], None, w.now());
    let mut f = w.client.commit1(p.clone());
    assert!(poll(&mut f).is_pending());
    let payload = w.log.state().held[0].payload.clone();
    drop(f);
    w.new_term(LEFT, &[]);
    // The old term's proposal, logged under the new term all the same.
    let entry = crate::command::Entry::decode(&payload).unwrap().unwrap();
    w.log_command_of(LEFT, entry.term, entry.command, Timestamp::MIN);
    assert_eq!((w.record(&p), w.versions("a").len()), (Record::None, 0));
}

#[test]
fn r2_application_checks_closed_and_bounds_again() {
    let w = World::new();
    w.hold();
    let p = one(1, &[("c", "x")], None, w.now());
    let mut f = w.client.prepare(p.clone());
    assert!(poll(&mut f).is_pending());
    // Something closes p before the proposal lands (a duty would not).
    let closed = w.now().plus_micros(50);
    let term = w.log.state().terms[&LEFT];
    w.log_command_of(LEFT, term, Command::Close, closed);
    w.land(0);
    assert!(poll(&mut f).is_pending(), "evaluated again");
    assert_eq!(w.held(), ["prepare"]);
    w.land(0);
    match poll(&mut f) {
        Poll::Ready(Ok(Prepared::At(at))) => assert!(at > closed),
        other => panic!("{other:?}"),
    }
    // A split cuts the piece in two before it lands.
    let p = one(2, &[("d", "x"), ("f", "x")], None, w.now());
    let mut f = w.client.prepare(p.clone());
    assert!(poll(&mut f).is_pending());
    w.log_command(LEFT, Command::Split { at: Key::from("e"), right: ShardId(7), born_at: 10 });
    w.land(0);
    assert!(poll(&mut f).is_pending());
    assert_eq!(w.held(), ["refuse"], "R11.3");
    w.land(0);
    assert!(matches!(poll(&mut f), Poll::Ready(Ok(Prepared::OutOfRange))));
    assert_eq!(w.record(&p), Record::Aborted);
}

/// A split is logged between the evaluation of a piece and its entry: who reads and writes in the right half from then on
/// knows nothing of what was validated there.
#[test]
fn r2_what_was_validated_is_still_in_the_shard() {
    for (one_step, seen, is_left) in [
        (true, span("c", "d", Timestamp(1)), true),
        (true, span("g", "h", Timestamp(1)), false),
        (false, span("g", "h", Timestamp(1)), false),
    ] {
        let w = World::new();
        w.hold();
        let mut p = one(1, &[("b", "x")], None, w.now());
        p.validate = vec![seen];
        let mut f = if one_step { w.client.commit1(p.clone()) } else { w.client.prepare(p.clone()) };
        assert!(poll(&mut f).is_pending());
        w.log_command(LEFT, Command::Split { at: Key::from("e"), right: ShardId(7), born_at: 10 });
        w.land(0);
        if is_left {
            assert!(matches!(poll(&mut f), Poll::Ready(Ok(Prepared::Committed(_)))));
            continue;
        }
        assert!(poll(&mut f).is_pending());
        assert_eq!((w.held(), w.record(&p)), (vec!["refuse"], Record::None));
        w.land(0);
        assert!(matches!(poll(&mut f), Poll::Ready(Ok(Prepared::OutOfRange))));
    }
}

#[test]
fn r3_a_proposal_in_flight_counts_as_a_prepare() {
    let w = World::new();
    w.get(9, "b", w.now()).unwrap();
    w.get(9, "z", w.now()).unwrap();
    w.hold();
    let c = w.now();
    let mut write = w.client.commit1(one(1, &[("b", "x")], None, c));
    assert!(poll(&mut write).is_pending());
    let t = w.now();
    let mut read = w.client.get(as_of(2, t), b"b");
    let all = KeyRange::new("a", "k");
    let mut scan = w.client.scan(as_of(2, t), &all, false, 10, 1000);
    assert!(poll(&mut read).is_pending() && poll(&mut scan).is_pending());
    assert_eq!(w.get(2, "b", c.prev()), Ok(None), "p > T is ignored");
    let validated = now(w.client.validate(TxnId(3), vec![span("a", "k", c.prev())], t));
    assert!(matches!(validated, Err(Error::Conflict(_))));
    let mut other = w.client.commit1(one(4, &[("b", "y")], Some(c.prev()), w.now()));
    assert!(poll(&mut other).is_pending());
    w.land(0);
    assert_eq!(poll(&mut write), Poll::Ready(Ok(Prepared::Committed(c))));
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(seen))) if seen.ts == c));
    match poll(&mut scan) {
        Poll::Ready(Ok(page)) => assert_eq!(page.rows.len(), 1),
        other => panic!("{other:?}"),
    }
    assert!(poll(&mut other).is_pending());
    w.land_all();
    assert!(matches!(poll(&mut other), Poll::Ready(Ok(Prepared::Refused(_)))), "first committer wins");
}

/// S3: the request is dropped first, and its proposal is refused then.
#[test]
fn r3_what_was_refused_when_nobody_waited_is_in_nobodys_way() {
    let w = World::new();
    w.hold();
    let c = w.now();
    let mut lost = w.client.prepare(one(1, &[("b", "x")], None, c));
    assert!(poll(&mut lost).is_pending());
    drop(lost);
    w.unhold_refusing();
    let mut read = w.client.get(as_of(2, w.now()), b"b");
    assert!(poll(&mut read).is_pending(), "nobody knows yet");
    now(w.client.tick()).unwrap();
    assert_eq!(poll(&mut read), Poll::Ready(Ok(None)));
    // One that is logged stays in the way until it is applied.
    w.hold();
    let kept = one(3, &[("b", "y")], None, w.now());
    let mut left = w.client.prepare(kept.clone());
    assert!(poll(&mut left).is_pending());
    drop(left);
    let mut tick: BoxFuture<'_, _> = Box::pin(w.client.tick());
    let _may_propose = poll(&mut tick);
    let mut read = w.client.get(as_of(4, w.now()), b"b");
    assert!(poll(&mut read).is_pending());
    w.land_all();
    assert!(matches!(w.record(&kept), Record::Prepared(_)));
}

#[test]
fn r3_closed_stays_below_what_is_in_flight() {
    let w = World::new();
    w.put(8, "a", "x");
    w.hold();
    let c = w.now();
    let mut f = w.client.commit1(one(1, &[("b", "x")], None, c));
    assert!(poll(&mut f).is_pending());
    w.pass(10_000);
    let mut tick: BoxFuture<'_, _> = Box::pin(w.client.tick());
    assert!(poll(&mut tick).is_pending());
    assert_eq!(w.held(), ["commit1", "closed"]);
    w.land(1);
    assert!(state(&w, LEFT).closed < c && state(&w, LEFT).closed > Timestamp::MIN);
    w.land(0);
    assert_eq!(poll(&mut f), Poll::Ready(Ok(Prepared::Committed(c))));
}

#[test]
fn r4_reads_are_recorded_and_wait_for_prepares() {
    let w = World::new();
    let c1 = w.put(1, "a", "1");
    let t = w.now();
    assert_eq!(w.get(2, "a", t), Ok(Some("1".into())));
    assert_eq!(w.get(2, "a", c1.prev()), Ok(None));
    let (a, _) = pair(3, c1.next(), Mode::AtMax);
    let p = match w.prepare(&a) {
        Prepared::At(p) => p,
        other => panic!("{other:?}"),
    };
    assert!(p > t, "pushed above the read");
    assert_eq!(w.get(2, "a", p.prev()), Ok(Some("1".into())), "p > T is ignored");
    let mut read = w.client.get(as_of(2, p), b"a");
    assert!(poll(&mut read).is_pending());
    let own = now(w.client.get(as_of(3, p), b"a")).unwrap().unwrap();
    assert_eq!(own.ts, c1, "own prepares do not stand in the way");
    let c = p.plus_micros(5);
    assert_eq!(w.decide(&a, Decision::Commit(c)), Ok(AnchorReply::Decided(Decision::Commit(c))));
    assert!(matches!(poll(&mut read), Poll::Ready(Ok(Some(seen))) if seen.ts == c1), "committed above T");
}

#[test]
fn r4_spans_are_recorded_up_to_where_they_were_read() {
    let w = World::new();
    for (i, k) in ["a", "b", "c", "d"].iter().enumerate() {
        w.put(10 + i as u128, k, "x");
    }
    let t = w.now();
    let range = KeyRange::new("a", "zz");
    let page = now(w.client.scan(as_of(1, t), &range, false, 2, 1000)).unwrap();
    assert_eq!(page.rows.iter().map(|r| &r.0[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(page.rest, Some(KeyRange::new("b\0", "zz")));
    let p_of = |w: &World, txn, key| match w.prepare(&one(txn, &[(key, "y")], None, t.prev())) {
        Prepared::At(p) => p,
        other => panic!("{other:?}"),
    };
    assert!(p_of(&w, 20, "aa") > t && p_of(&w, 21, "b") > t);
    assert_eq!(p_of(&w, 22, "bb"), t.prev(), "not read yet");
    let back = now(w.client.scan(as_of(1, t), &KeyRange::new("c", "zz"), true, 1, 1000)).unwrap();
    assert_eq!((back.rows.len(), back.rest), (0, Some(KeyRange::new("c", "m"))), "ends with the shard");
    let back = now(w.client.scan(as_of(1, t), &KeyRange::new("c", "m"), true, 1, 1000)).unwrap();
    assert_eq!((&back.rows[0].0[..], back.rest), (&b"d"[..], Some(KeyRange::new("c", "d"))));
}

#[test]
fn r5_versions_and_prepares_in_the_window_move_the_reader() {
    let w = World::new();
    let t = w.now();
    let c = w.put(1, "a", "1");
    let who = ReadAs { txn: TxnId(2), ts: t, uncertain_to: w.now().plus_micros(1000) };
    assert_eq!(now(w.client.get(who, b"a")), Err(Error::Uncertain(c)));
    let all = KeyRange::new("", "m");
    assert_eq!(now(w.client.scan(who, &all, false, 9, 999)), Err(Error::Uncertain(c)));
    let b = one(3, &[("b", "1")], None, w.now());
    assert_eq!(w.prepare(&b), Prepared::At(b.candidate));
    assert_eq!(now(w.client.get(who, b"b")), Err(Error::Uncertain(b.candidate)));
    assert_eq!(now(w.client.get(ReadAs { uncertain_to: t, ..who }, b"b")), Ok(None));
}

#[test]
fn r10_validate() {
    let w = World::new();
    let seen = w.now();
    let v = |from, to, seen, ts| now(w.client.validate(TxnId(1), vec![span(from, to, seen)], ts));
    let ts = w.now();
    assert_eq!(v("b", "d", seen, ts), Ok(()));
    let p = one(2, &[("c", "x")], None, seen);
    assert!(matches!(w.prepare(&p), Prepared::At(p) if p > ts), "the cache was raised");
    assert_eq!(v("b", "d", seen, ts), Ok(()), "a prepare above ts does no harm");
    let later = w.now();
    assert!(matches!(v("b", "d", seen, later), Err(Error::Conflict(_))), "a foreign prepare");
    w.decide(&p, Decision::Abort).unwrap();
    assert_eq!(v("b", "d", seen, later), Ok(()));
    let c = w.put(3, "c", "y");
    assert!(matches!(v("b", "d", seen, w.now()), Err(Error::Conflict(_))), "a foreign version");
    assert_eq!(v("b", "d", c, w.now()), Ok(()));
    now(w.client.raise_gc_threshold(w.now())).unwrap();
    assert!(matches!(v("b", "d", c, w.now()), Err(Error::Conflict(_))), "below the GC threshold");
    // Several shards in one request.
    let seen = w.now();
    assert_eq!(v("a", "zz", seen, w.now()), Ok(()));
}

#[test]
fn r11_1_a_record_is_answered_and_never_evaluated_again() {
    let mut w = World::new();
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    let at = w.prepare(&a);
    w.pass(1000);
    w.get(2, "b", w.now()).unwrap();
    assert_eq!(w.prepare(&a), at);
    w.restart(true, &[]);
    assert_eq!(w.prepare(&a), at, "T4: also under another leaseholder");
    w.decide(&a, Decision::Commit(a.candidate)).unwrap();
    assert_eq!(w.prepare(&a), Prepared::Committed(a.candidate));
    let (b, _) = pair(2, w.now(), Mode::AtMax);
    assert_eq!(w.probe(&b), Ok(Record::Aborted));
    assert!(matches!(w.prepare(&b), Prepared::Refused(_)));
}

#[test]
fn r11_2_past_the_deadline() {
    let w = World::new();
    let p = one(1, &[("a", "x")], None, w.now());
    w.raise_floor(LEFT, p.deadline);
    assert_eq!(w.prepare(&p), Prepared::PastDeadline);
    assert_eq!(w.commit1(&p), Prepared::PastDeadline);
    assert_eq!(w.record(&p), Record::None);
}

#[test]
fn r11_3_not_wholly_in_one_shard() {
    let w = World::new();
    let p = one(1, &[("a", "x"), ("z", "x")], None, w.now());
    assert_eq!(w.prepare(&p), Prepared::OutOfRange);
    assert_eq!(w.record(&p), Record::Aborted);
}

#[test]
fn r11_4_a_foreign_prepare_on_a_written_key() {
    let w = World::new();
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    let other = one(2, &[("a", "y")], None, w.now());
    assert!(matches!(w.prepare(&other), Prepared::Refused(_)), "no patience configured");
    assert_eq!(w.record(&other), Record::Aborted);
    // With patience it waits, and suspects (R18).
    let w = World::with(Config { prepare_wait_max: Duration::from_secs(5), ..config() }, false);
    w.prepare(&a);
    let mut f = w.client.prepare(other.clone());
    assert!(poll(&mut f).is_pending());
    w.decide(&a, Decision::Abort).unwrap();
    assert!(matches!(poll(&mut f), Poll::Ready(Ok(Prepared::At(_)))));
    let w = World::with(Config { prepare_wait_max: Duration::from_secs(5), ..config() }, true);
    w.prepare(&a);
    assert!(matches!(w.prepare(&other), Prepared::Refused(_)), "never without a bound");
    assert!(w.suspected().contains(&TxnId(1)));
}

#[test]
fn r11_5_first_committer_wins() {
    let w = World::new();
    let seen = w.now();
    w.put(1, "a", "1");
    let p = one(2, &[("a", "2")], Some(seen), w.now());
    assert!(matches!(w.prepare(&p), Prepared::Refused(_)));
    let p = one(3, &[("a", "2")], Some(seen), w.now());
    assert!(matches!(w.commit1(&p), Prepared::Refused(_)));
    let p = one(4, &[("a", "2")], None, w.now());
    assert!(matches!(w.commit1(&p), Prepared::Committed(_)), "blind");
}

#[test]
fn r11_6_p_lies_above_everything() {
    let w = World::new();
    let c = w.now();
    let newest = w.put(1, "a", "1");
    let p = one(2, &[("a", "2")], None, c);
    assert_eq!(w.prepare(&p), Prepared::At(newest.next()));
    let read = w.now();
    w.get(7, "b", read).unwrap();
    let p = one(3, &[("b", "2")], None, c);
    assert_eq!(w.prepare(&p), Prepared::At(read.next()));
    let term = w.log.state().terms[&LEFT];
    let closed = w.now();
    w.log_command_of(LEFT, term, Command::Close, closed);
    let p = one(4, &[("c", "2")], None, c);
    assert_eq!(w.prepare(&p), Prepared::At(closed.next()));
    let mut p = one(5, &[("d", "2")], None, c);
    p.max_ts = closed;
    assert!(matches!(w.prepare(&p), Prepared::Refused(_)));
    let own = w.now();
    w.get(6, "e", own).unwrap();
    let p = one(6, &[("e", "2")], None, own);
    assert_eq!(w.prepare(&p), Prepared::At(own), "own entries do not push");
}

#[test]
fn r11_7_validation_of_the_piece() {
    let w = World::new();
    let seen = w.now();
    let read = |txn, mode, at| {
        let mut p = one(txn, &[("a", "x")], None, at);
        p.mode = mode;
        p.validate = vec![span("b", "d", seen)];
        p
    };
    // A version between C and p fails at-max, which validates up to p, and passes at-candidate.
    let c = w.now();
    w.put(1, "c", "y");
    w.get(9, "a", w.now()).unwrap();
    assert!(matches!(w.prepare(&read(2, Mode::AtMax, c)), Prepared::Refused(_)));
    let p = read(3, Mode::AtCandidate, c);
    assert!(matches!(w.prepare(&p), Prepared::At(at) if at > c));
    w.decide(&p, Decision::Abort).unwrap();
    assert!(matches!(w.prepare(&read(4, Mode::AtCandidate, w.now())), Prepared::Refused(_)));
    // A foreign prepare at or below it fails as well.
    let seen = w.now();
    let other = one(5, &[("c", "z")], None, w.now());
    w.prepare(&other);
    let mut p = one(6, &[("a", "x")], None, w.now());
    p.validate = vec![span("b", "d", seen)];
    assert!(matches!(w.commit1(&p), Prepared::Refused(_)));
    w.decide(&other, Decision::Abort).unwrap();
    // And the cache is raised in the same step.
    let mut p = one(7, &[("a", "x")], None, w.now());
    p.validate = vec![span("b", "d", seen)];
    assert_eq!(w.prepare(&p), Prepared::At(p.candidate));
    let late = one(8, &[("c", "z")], None, seen);
    assert!(matches!(w.prepare(&late), Prepared::At(at) if at > p.candidate));
    assert!(state(&w, LEFT).read_limit >= p.candidate, "R1: nothing is validated above the limit");
}

#[test]
fn r12_a_refusal_is_final_when_it_stands_in_the_log() {
    let mut w = World::new();
    let seen = w.now();
    w.put(1, "a", "1");
    let p = one(2, &[("a", "2")], Some(seen), w.now());
    w.hold();
    let mut f = w.client.commit1(p.clone());
    assert!(poll(&mut f).is_pending(), "the refusal is not told before it is logged");
    assert_eq!(w.held(), ["refuse"]);
    w.land(0);
    assert!(matches!(poll(&mut f), Poll::Ready(Ok(Prepared::Refused(_)))));
    drop(f);
    w.unhold();
    w.restart(true, &[]);
    let mut again = p.clone();
    again.writes[0].seen = None;
    assert!(matches!(w.commit1(&again), Prepared::Refused(_)), "a second copy, which would succeed");
}

#[test]
fn r13_commit1() {
    let mut w = World::new();
    let mut p = one(1, &[("a", "1"), ("b", "")], None, w.now());
    p.validated_elsewhere = true;
    assert_eq!(w.commit1(&p), Prepared::Committed(p.candidate));
    w.restart(true, &[]);
    assert_eq!(w.commit1(&p), Prepared::Committed(p.candidate), "a resend finds the record");
    assert_eq!(w.versions("a"), [(p.candidate, Some("1".into()))]);
    assert_eq!(w.versions("b"), [(p.candidate, None)]);
    let c = w.now();
    w.get(9, "c", w.now()).unwrap();
    let mut p = one(2, &[("c", "1")], None, c);
    p.validated_elsewhere = true;
    assert!(matches!(w.commit1(&p), Prepared::Pushed(at) if at > c));
    assert!(matches!(w.commit1(&p), Prepared::Refused(_)), "it stands in the log");
    p.txn = TxnId(3);
    p.validated_elsewhere = false;
    assert!(matches!(w.commit1(&p), Prepared::Committed(at) if at > c));
}

#[test]
fn r16_the_first_decision_wins() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    assert!(matches!(w.decide(&a, Decision::Commit(w.now())), Err(Error::Invalid(_))), "commit of nothing");
    w.prepare(&a);
    w.prepare(&b);
    assert!(matches!(w.decide(&a, Decision::Commit(a.candidate.prev())), Err(Error::Invalid(_))), "T4");
    assert_eq!(now(w.client.ask(id(&a, 0))), Ok(AnchorReply::Undecided));
    let c = w.now();
    let committed = Ok(AnchorReply::Decided(Decision::Commit(c)));
    assert_eq!(w.decide(&a, Decision::Commit(c)), committed);
    assert_eq!(w.versions("a"), [(c, Some("1".into()))], "in the same entry");
    assert_eq!(w.decide(&a, Decision::Abort), committed);
    assert_eq!(w.decide(&a, Decision::Commit(c.next())), committed);
    assert_eq!(now(w.client.ask(id(&a, 0))), committed);
    assert!(
        matches!(now(w.client.decide(id(&b, 1), Decision::Abort)), Err(Error::Invalid(_))),
        "not the anchor"
    );
    let (a, _) = pair(2, w.now(), Mode::AtMax);
    assert_eq!(now(w.client.ask(id(&a, 0))), Ok(AnchorReply::Unknown));
    assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Decided(Decision::Abort)));
    assert_eq!(w.record(&a), Record::Aborted);
    let (a, _) = pair(3, w.now(), Mode::AtMax);
    w.raise_floor(LEFT, a.deadline);
    assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Gone));
    assert_eq!(w.decide(&a, Decision::Commit(c)), Ok(AnchorReply::Gone));
    assert_eq!(now(w.client.ask(id(&a, 0))), Ok(AnchorReply::Gone));
}

/// A leader that is one no more lacks what was prepared under the next one: it is not the one to say that nothing is.
#[test]
fn r16_a_leader_of_before_does_not_judge_a_commit() {
    let w = World::new();
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.hold();
    let mut commit = w.client.decide(id(&a, 0), Decision::Commit(w.now()));
    assert!(poll(&mut commit).is_pending());
    assert_eq!(w.held(), ["commit"]);
    w.refuse(0);
    assert!(!matches!(poll(&mut commit), Poll::Ready(Err(Error::Invalid(_)))));
}

#[test]
fn r16_two_decisions_in_flight_together() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    w.hold();
    let c = w.now();
    let mut commit = w.client.decide(id(&a, 0), Decision::Commit(c));
    let mut abort = w.client.decide(id(&a, 0), Decision::Abort);
    assert!(poll(&mut commit).is_pending() && poll(&mut abort).is_pending());
    w.land(1);
    w.land(0);
    assert_eq!(poll(&mut commit), Poll::Ready(Ok(AnchorReply::Decided(Decision::Abort))));
    assert_eq!(poll(&mut abort), Poll::Ready(Ok(AnchorReply::Decided(Decision::Abort))));
    assert_eq!(w.versions("a"), []);
}

#[test]
fn r17_resolve() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    assert!(matches!(w.resolve(&a, Decision::Abort), Err(Error::Invalid(_))), "the anchor decides first");
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    assert_eq!(w.resolve(&b, Decision::Commit(c)), Ok(()));
    assert_eq!(w.resolve(&b, Decision::Commit(c)), Ok(()));
    assert_eq!(w.resolve(&a, Decision::Commit(c)), Ok(()));
    assert_eq!(w.versions("z"), [(c, Some("1".into()))], "T8");
    assert_eq!(w.resolve(&b, Decision::Abort), Ok(()), "nothing, ack");
    assert_eq!(w.record(&b), Record::Committed(c));
    let (_, b) = pair(2, w.now(), Mode::AtMax);
    assert!(matches!(w.resolve(&b, Decision::Commit(c)), Err(Error::Invalid(_))));
    assert_eq!(w.resolve(&b, Decision::Abort), Ok(()));
    assert!(matches!(w.prepare(&b), Prepared::Refused(_)), "an ack: never prepared again");
    assert!(
        matches!(w.resolve(&b, Decision::Commit(c)), Err(Error::Stopped(_))),
        "impossible: the shard stops"
    );
    assert!(matches!(w.get(5, "z", w.now()), Err(Error::Stopped(_))));
    assert!(w.get(5, "a", w.now()).is_ok());
}

#[test]
fn r17_impossible_entries_stop_the_shard() {
    let w = World::new();
    let (_, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&b);
    let bad = Command::Resolve { id: id(&b, 1), decision: Decision::Commit(b.candidate.prev()) };
    let e = crate::command::Entry {
        term: 1,
        seq: 1,
        closed: Timestamp::MIN,
        read_limit: Timestamp::MIN,
        command: bad,
    };
    let next = isochrone_base::ids::INIT_INDEX + w.log.state().logs[&RIGHT].len() as u64 + 1;
    let err = w.shards.apply_entries(RIGHT, &[(next, 1, e.encode())]).unwrap_err();
    assert!(err.reason.starts_with("T4"), "{err}");
    assert!(matches!(w.get(5, "z", w.now()), Err(Error::Stopped(_))));
    let garbage = w.shards.apply_entries(LEFT, &[(99, 1, isochrone_base::Bytes::from_static(b"garbage"))]);
    assert!(garbage.unwrap_err().reason.contains("unreadable"));
}

#[test]
fn r18_probe_blocks_the_absent_and_leaves_the_prepared() {
    let w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    assert_eq!(w.probe(&a), Ok(Record::Prepared(a.candidate)));
    assert_eq!(w.record(&a), Record::Prepared(a.candidate));
    w.hold();
    // The prepare of b is in flight when the probe comes: what is logged first wins.
    let mut prepare = w.client.prepare(b.clone());
    let mut probe = w.client.probe(id(&b, 1));
    assert!(poll(&mut prepare).is_pending() && poll(&mut probe).is_pending());
    w.land(1);
    w.land(0);
    assert_eq!(poll(&mut probe), Poll::Ready(Ok(Record::Aborted)));
    assert!(matches!(poll(&mut prepare), Poll::Ready(Ok(Prepared::Refused(_)))));
    w.unhold();
    let (_, b) = pair(2, w.now(), Mode::AtMax);
    w.raise_floor(RIGHT, b.deadline);
    assert_eq!(w.probe(&b), Ok(Record::Aborted));
    assert_eq!(w.record(&b), Record::None, "the floor blocks it");
}

#[test]
fn r18_old_prepares_are_suspected() {
    let w = World::with(config(), true);
    let (a, _) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    now(w.client.tick()).unwrap();
    assert_eq!(w.suspected(), []);
    // A reader waits a while, asks for recovery, goes on waiting, and gives up in the end.
    assert!(matches!(w.get(2, "a", w.now()), Err(Error::NotServed(_))));
    assert!(w.suspected().contains(&TxnId(1)));
    w.pass(1_100);
    now(w.client.tick()).unwrap();
    assert_eq!(w.suspected(), [TxnId(1)]);
}

#[test]
fn r19_decide_abort_after_a_lost_prepare() {
    let mut w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.hold();
    let (mut fa, mut fb) = (w.client.prepare(a.clone()), w.client.prepare(b.clone()));
    assert!(poll(&mut fa).is_pending() && poll(&mut fb).is_pending());
    drop((fa, fb));
    w.new_term(LEFT, &[0]);
    w.unhold();
    assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Decided(Decision::Abort)));
    assert_eq!(w.resolve(&b, Decision::Abort), Ok(()));
    assert_eq!((w.record(&a), w.record(&b)), (Record::Aborted, Record::Aborted));
}

#[test]
fn r20_the_floor_drops_tombstones_but_no_prepare_and_no_anchor() {
    let mut w = World::new();
    let (a, b) = pair(1, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    w.resolve(&b, Decision::Commit(c)).unwrap();
    let single = one(2, &[("c", "x")], None, w.now());
    w.commit1(&single);
    let (_, open) = pair(3, w.now(), Mode::AtMax);
    let open = Piece { writes: vec![Write { key: Key::from("y"), ..open.writes[0].clone() }], ..open };
    w.prepare(&open);
    now(w.client.tick()).unwrap();
    assert_eq!(state(&w, LEFT).floor, Timestamp::MIN, "nothing to drop yet");
    w.pass(71_000);
    now(w.client.tick()).unwrap();
    for lose in [false, true] {
        assert!(state(&w, LEFT).floor >= single.deadline && state(&w, RIGHT).floor >= b.deadline);
        assert_eq!(w.record(&a), Record::Committed(c), "the anchor");
        assert_eq!((w.record(&b), w.record(&single)), (Record::None, Record::None));
        assert!(matches!(w.record(&open), Record::Prepared(_)));
        assert_eq!(w.prepare(&b), Prepared::PastDeadline);
        assert_eq!(w.resolve(&b, Decision::Commit(c)), Ok(()), "still an ack");
        w.restart(lose, &[]);
    }
    let logged = w.log.state().logs[&LEFT].len();
    now(w.client.tick()).unwrap();
    now(w.client.tick()).unwrap();
    assert!(w.log.state().logs[&LEFT].len() <= logged + 1, "an idle shard writes nothing");
}

#[test]
fn r21_the_anchor_goes_after_acks_and_floor() {
    let w = World::new();
    for acked_first in [true, false] {
        let (a, b) = pair(1 + u128::from(acked_first), w.now(), Mode::AtMax);
        w.prepare(&a);
        w.prepare(&b);
        let c = w.now();
        w.decide(&a, Decision::Commit(c)).unwrap();
        w.resolve(&b, Decision::Commit(c)).unwrap();
        if acked_first {
            now(w.client.acked(id(&a, 0))).unwrap();
            assert_eq!(w.record(&a), Record::Committed(c), "the floor is missing");
            w.raise_floor(LEFT, a.deadline);
        } else {
            w.raise_floor(LEFT, a.deadline);
            assert_eq!(w.record(&a), Record::Committed(c), "the acks are missing");
            now(w.client.tick()).unwrap();
            assert!(w.suspected().contains(&a.txn), "somebody is sent to finish");
            now(w.client.acked(id(&a, 0))).unwrap();
        }
        assert_eq!(w.record(&a), Record::None);
        assert_eq!(w.decide(&a, Decision::Abort), Ok(AnchorReply::Gone));
        now(w.client.acked(id(&a, 0))).unwrap();
    }
}

#[test]
fn splits_take_records_prepares_and_limits_along() {
    let mut w = World::new();
    let mut both = pieces(1, &[&[("b", "1")], &[("f", "1")]], None, w.now(), Mode::AtMax);
    let (f, b) = (both.remove(1), both.remove(0));
    w.prepare(&b);
    w.prepare(&f);
    let wide = one(2, &[("c", "1"), ("g", "1")], None, w.now());
    w.prepare(&wide);
    let read = w.now();
    w.get(9, "h", read).unwrap();
    let split = now(w.client.split(b"e", ShardId(3)));
    assert!(matches!(split, Err(Error::Conflict(_))), "{split:?}");
    assert_eq!(w.suspected(), [TxnId(2)], "recovered, not waited for");
    w.decide(&wide, Decision::Abort).unwrap();
    assert_eq!(now(w.client.split(b"e", ShardId(3))), Ok(true));
    w.new_term(ShardId(3), &[]);
    assert_eq!(now(w.client.split(b"e", ShardId(4))), Ok(false), "starts a shard already");
    assert_eq!(w.client.route(&KeyRange::new("a", "n")).len(), 3);
    assert_eq!(w.client.route_key(b"f"), KeyRange::new("e", "m"));
    for lose in [false, true] {
        assert_eq!(w.prepare(&f), Prepared::At(f.candidate));
        assert_eq!(w.prepare(&b), Prepared::At(b.candidate));
        let late = one(10 + u128::from(lose), &[("h", "1")], None, read.prev());
        assert!(matches!(w.prepare(&late), Prepared::At(p) if p > read));
        w.decide(&late, Decision::Abort).unwrap();
        assert!(matches!(w.prepare(&wide), Prepared::Refused(_)));
        isochrone_storage::Engine::flush(&w.engine).unwrap();
        w.restart(lose, &[]);
    }
    let c = w.now();
    assert_eq!(w.decide(&b, Decision::Commit(c)), Ok(AnchorReply::Decided(Decision::Commit(c))));
    assert_eq!(w.resolve(&f, Decision::Commit(c)), Ok(()));
    assert_eq!(w.get(5, "f", w.now()), Ok(Some("1".into())));
    let page = now(w.client.scan(as_of(5, w.now()), &KeyRange::new("a", "m"), false, 10, 1000)).unwrap();
    assert_eq!((page.rows.len(), page.rest), (1, Some(KeyRange::new("e", "m"))));
    let mut bad = one(20, &[("d", "1"), ("f", "1")], None, w.now());
    bad.pieces[0].key = Key::from("d");
    assert_eq!(w.prepare(&bad), Prepared::OutOfRange);
}

#[test]
fn clearing_and_collecting() {
    let w = World::new();
    for i in 0..5u128 {
        w.put(i, "a", &i.to_string());
        w.put(100 + i, "b", &i.to_string());
    }
    now(w.client.clear_range(&KeyRange::new("b", "c"))).unwrap();
    assert_eq!((w.versions("a").len(), w.versions("b").len()), (5, 0));
    let open = one(200, &[("k", "x")], None, w.now());
    w.prepare(&open);
    now(w.client.raise_gc_threshold(w.now())).unwrap();
    assert_eq!(state(&w, LEFT).gc_threshold, open.candidate.prev(), "not past an unresolved p");
    assert!(matches!(w.get(1, "a", Timestamp(5)), Err(Error::BelowThreshold { .. })));
    assert_eq!(w.shards.collect_garbage(LEFT, None).unwrap(), None);
    assert_eq!(w.versions("a").len(), 1);
    assert_eq!(w.get(1, "a", open.candidate.prev()), Ok(Some("4".into())));
}

#[test]
fn locks_say_when_the_reader_must_look_again() {
    let w = World::new();
    let t = w.now();
    assert_eq!(
        now(w.client.lock(TxnId(1), b"a", LockMode::Update, t, Duration::from_secs(1))),
        Ok(Locked { waited: false })
    );
    let mut second = w.client.lock(TxnId(2), b"a", LockMode::Update, w.now(), Duration::from_secs(1));
    assert!(poll(&mut second).is_pending());
    w.put(1, "a", "x");
    assert_eq!(
        now(w.client.lock(TxnId(1), b"a", LockMode::Update, t, Duration::from_secs(1))),
        Ok(Locked { waited: true })
    );
    w.client.unlock(TxnId(1), &[Key::from("a")]);
    assert_eq!(poll(&mut second), Poll::Ready(Ok(Locked { waited: true })));
    w.shards.follow(LEFT, None);
    assert!(matches!(
        now(w.client.lock(TxnId(3), b"b", LockMode::Update, t, Duration::ZERO)),
        Err(Error::NotServed(_))
    ));
    assert_eq!(w.client.locks().list().len(), 1, "a failed request leaves no lock");
}

#[test]
fn several_entries_in_one_batch() {
    let mut w = World::new();
    // Everything is replayed in one call after the engine lost all: put, overwrite, prepare, decide, split, clear.
    w.put(1, "a", "1");
    w.put(2, "a", "2");
    let (a, b) = pair(3, w.now(), Mode::AtMax);
    w.prepare(&a);
    w.prepare(&b);
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    w.put(4, "a", "4");
    w.put(5, "k", "5");
    now(w.client.clear_range(&KeyRange::new("k", "l"))).unwrap();
    w.put(6, "k", "6");
    let before: Vec<_> = ["a", "k"].iter().map(|k| w.versions(k)).collect();
    w.restart(true, &[]);
    assert_eq!(["a", "k"].iter().map(|k| w.versions(k)).collect::<Vec<_>>(), before);
    assert_eq!(w.get(9, "a", w.now()), Ok(Some("4".into())));
    assert!(matches!(w.record(&b), Record::Prepared(_)));
    assert_eq!(before[0].len(), 4);
}

/// Figures, not a check: `cargo test -p isochrone-shard -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_point_read_and_of_a_commit() {
    use isochrone_env::Clock;
    let w = World::new();
    let keys: Vec<Key> = (0..1_000).map(|i| format!("a{i:06}").into_bytes()).collect();
    for (i, k) in keys.iter().enumerate() {
        w.put(i as u128, std::str::from_utf8(k).unwrap(), "some value of a usual length, about 40 bytes");
    }
    let clock = isochrone_env::os::OsClock::new(0);
    const N: usize = 1_000_000;
    let t = w.now();
    w.get(1, "a", t).unwrap();
    let per = |from: u64, n: usize| (clock.monotonic_ns() - from) / n as u64;
    let from = clock.monotonic_ns();
    for i in 0..N {
        let who = ReadAs { txn: TxnId(i as u128), ts: t, uncertain_to: t };
        assert!(now_boxed(w.client.get(who, &keys[i % 1_000])).is_some());
    }
    let whole = per(from, N);
    let from = clock.monotonic_ns();
    for i in 0..N {
        let v = isochrone_storage::mvcc::get_at(&w.engine, &keys[i % 1_000], t).unwrap();
        assert!(v.is_some());
    }
    let engine = per(from, N);
    let from = clock.monotonic_ns();
    for i in 0..20_000u128 {
        let key = std::str::from_utf8(&keys[i as usize % 1_000]).unwrap();
        w.commit1(&one(1_000_000 + i, &[(key, "x")], None, w.now()));
    }
    println!(
        "get {whole} ns, of it the engine {engine} ns; commit1 with application {} ns",
        per(from, 20_000)
    );
}

fn now_boxed(mut f: BoxFuture<'_, Result<Option<Seen>, Error>>) -> Option<Seen> {
    match poll(&mut f) {
        Poll::Ready(r) => r.unwrap(),
        Poll::Pending => panic!("the fast path waits"),
    }
}
