//! What happens between the steps of a read or an evaluation, while the engine is asked and no mutex is held.

use std::sync::Arc;

use isochrone_base::{KeyRange, Timestamp, TxnId};

use super::harness::*;
use crate::LocalShards;
use crate::api::*;

fn commit(client: &Arc<LocalShards>, piece: Piece) -> impl FnOnce() + Send + 'static {
    let client = client.clone();
    move || {
        now(client.commit1(piece)).unwrap();
    }
}

#[test]
fn a_row_committed_while_a_scan_reads_is_seen_or_pushed() {
    // The scan has its snapshot; a row at or below T is committed before the span is recorded (D1).
    let w = World::new();
    w.put(1, "b", "1");
    w.get(9, "z", w.now()).unwrap();
    let t = w.now().plus_micros(100);
    w.get(9, "k", t).unwrap();
    let row = one(2, &[("c", "2")], None, w.now());
    let c = row.candidate;
    w.hooked.at_read(1, commit(&w.client, row));
    let page = now(w.client.scan(as_of(3, t), &KeyRange::new("a", "e"), false, 10, 1000)).unwrap();
    assert!(w.hooked.fired() && c < t);
    assert_eq!(w.versions("c")[0].0, c, "nothing had pushed it");
    assert_eq!(page.rows.len(), 2, "T5: the scan at T must see it");
    // Short pages keep their bounds when they are read again.
    let row = one(4, &[("bb", "2")], None, c.next());
    w.get(9, "k", t.plus_micros(50)).unwrap();
    w.hooked.at_read(1, commit(&w.client, row));
    let t = w.now().plus_micros(500);
    let page = now(w.client.scan(as_of(5, t), &KeyRange::new("a", "e"), false, 2, 1000)).unwrap();
    assert_eq!(page.rows.len(), 2);
    assert_eq!((&page.rows[1].0[..], page.rest), (&b"bb"[..], Some(KeyRange::new("bb\0", "e"))));
    let row = one(6, &[("d", "2")], None, w.now());
    w.hooked.at_read(1, commit(&w.client, row));
    let t = w.now().plus_micros(5000);
    let page = now(w.client.scan(as_of(7, t), &KeyRange::new("a", "e"), true, 2, 1000)).unwrap();
    assert_eq!((&page.rows[0].0[..], &page.rows[1].0[..]), (&b"d"[..], &b"c"[..]));
    assert_eq!(page.rest, Some(KeyRange::new("a", "c")));
}

#[test]
fn a_point_read_keeps_what_comes_after_it_above() {
    let w = World::new();
    let c1 = w.put(1, "a", "1");
    let t = w.now();
    w.get(9, "b", t).unwrap();
    let row = one(2, &[("a", "2")], None, c1.next());
    w.hooked.at_read(1, commit(&w.client, row));
    assert_eq!(w.get(3, "a", t), Ok(Some("1".into())));
    assert!(w.hooked.fired() && w.versions("a")[0].0 > t, "T5");
}

#[test]
fn a_read_is_not_answered_by_who_has_lost_the_lease() {
    let w = World::new();
    w.put(1, "a", "1");
    w.get(2, "a", w.now()).unwrap();
    let shards = w.shards.clone();
    w.hooked.at_read(1, move || shards.follow(LEFT, None));
    assert!(matches!(w.get(2, "a", w.now()), Err(Error::NotServed(_))), "D9");
}

#[test]
fn a_read_during_an_evaluation_pushes_it() {
    for (nth, pushed) in [(1, true), (2, false)] {
        let w = World::new();
        w.get(9, "a", w.now()).unwrap();
        let mut p = one(1, &[("a", "x")], None, w.now());
        p.validate = vec![span("b", "d", p.candidate.prev())];
        let t = w.now();
        let client = w.client.clone();
        // The first engine call looks for the newest version of "a"; the second, p being chosen, for changes of V.
        w.hooked.at_read(nth, move || {
            let mut read = client.get(as_of(2, t), b"a");
            match poll(&mut read) {
                std::task::Poll::Ready(seen) => assert!(pushed && seen == Ok(None)),
                std::task::Poll::Pending => assert!(!pushed, "R3: waits for the proposal"),
            }
        });
        match w.prepare(&p) {
            Prepared::At(at) => assert_eq!(at > t, pushed, "{nth}"),
            other => panic!("{other:?}"),
        }
        assert!(w.hooked.fired());
    }
}

#[test]
fn a_write_to_what_is_validated_meanwhile() {
    // Before V is recorded: it is found. After: it is pushed above.
    for (nth, refused) in [(1, true), (2, false)] {
        let w = World::new();
        let seen = w.now();
        w.get(9, "k", seen).unwrap();
        let row = one(2, &[("c", "y")], None, w.now());
        let mut p = one(1, &[("a", "x")], None, w.now());
        p.validate = vec![span("b", "d", seen)];
        w.hooked.at_read(nth, commit(&w.client, row));
        let answer = w.commit1(&p);
        assert!(w.hooked.fired());
        assert_eq!(matches!(answer, Prepared::Refused(_)), refused, "{nth} {answer:?}");
        assert_eq!(w.versions("c")[0].0 > p.candidate, !refused, "T6");
    }
}

#[test]
fn two_writers_of_one_key_are_latched_apart() {
    let w = World::new();
    let seen = w.now();
    let other = one(2, &[("a", "y")], Some(seen), w.now());
    let client = w.client.clone();
    w.hooked.at_read(1, move || {
        let mut f = client.commit1(other);
        assert!(poll(&mut f).is_pending(), "R11.4: the key is latched");
    });
    assert!(matches!(w.commit1(&one(1, &[("a", "x")], Some(seen), w.now())), Prepared::Committed(_)));
    assert!(w.hooked.fired());
    assert_eq!(w.versions("a").len(), 1);
}

#[test]
fn an_evaluation_that_loses_its_term_leaves_nothing_behind() {
    let w = World::new();
    let shards = w.shards.clone();
    w.hooked.at_read(1, move || {
        shards.follow(LEFT, None);
        shards.lead(LEFT, 1);
        shards.lease(LEFT, 1, u64::MAX);
    });
    let r = now(w.client.commit1(one(1, &[("a", "x")], None, w.now())));
    assert!(matches!(r, Err(Error::NotServed(_))), "{r:?}");
    w.log_command(LEFT, crate::command::Command::Close);
    w.put(2, "a", "y");
    assert_eq!(w.shards.get(LEFT).unwrap().state().inflight, 0);
}

#[test]
fn a_prepare_carries_the_read_limit_that_its_validation_needs() {
    let mut w = World::new();
    let seen = w.now();
    w.pass(1_000);
    let mut p = one(1, &[("a", "x")], None, w.now());
    p.validate = vec![span("b", "d", seen)];
    assert!(matches!(w.prepare(&p), Prepared::At(_)));
    assert!(w.shards.get(LEFT).unwrap().state().read_limit >= p.candidate, "R1");
    w.restart(true, &[]);
    let late = one(2, &[("c", "y")], None, seen);
    assert!(matches!(w.prepare(&late), Prepared::At(at) if at > p.candidate), "T5 across the lease change");
    // Also when a renewal in flight would cover it: that one may be lost.
    w.hold();
    w.pass(1_000);
    let t = w.now();
    let client = w.client.clone();
    let mut read = client.get(as_of(3, t), b"k");
    assert!(poll(&mut read).is_pending());
    let mut p = one(4, &[("e", "x")], None, t);
    p.validate = vec![span("f", "g", t.prev())];
    let mut f = client.prepare(p);
    assert!(poll(&mut f).is_pending());
    assert_eq!(w.held(), ["lease", "prepare"]);
    w.refuse(0);
    w.land(0);
    assert!(matches!(poll(&mut f), std::task::Poll::Ready(Ok(Prepared::At(_)))));
    assert!(w.shards.get(LEFT).unwrap().state().read_limit >= t);
}

#[test]
fn validation_is_recorded_before_it_looks() {
    let w = World::new();
    let seen = w.now();
    w.get(9, "k", seen).unwrap();
    let ts = w.now();
    let row = one(2, &[("c", "y")], None, seen.next());
    w.hooked.at_read(1, commit(&w.client, row));
    assert_eq!(now(w.client.validate(TxnId(1), vec![span("b", "d", seen)], ts)), Ok(()));
    assert!(w.hooked.fired() && w.versions("c")[0].0 > ts, "T5");
    assert!(w.versions("c")[0].0 > Timestamp::MIN);
}

/// What was read is deleted, and collected while somebody validates: nothing is left to see that it changed.
#[test]
fn versions_collected_while_they_are_validated_count_as_changed() {
    for one_step in [false, true] {
        let w = World::new();
        let seen = w.put(1, "c", "1");
        let mut gone = one(2, &[("c", "")], None, w.now());
        gone.writes[0].value = None;
        now(w.client.commit1(gone)).unwrap();
        let (client, shards) = (w.client.clone(), w.shards.clone());
        let to = w.now();
        let collect = move || {
            now(client.raise_gc_threshold(to)).unwrap();
            shards.collect_garbage(LEFT, None).unwrap();
        };
        let mut piece = one(3, &[("a", "x")], None, w.now());
        piece.validate = vec![span("c", "d", seen)];
        let ts = w.now();
        if one_step {
            w.hooked.at_read(1, collect);
            assert!(matches!(now(w.client.commit1(piece)), Ok(Prepared::Refused(_))));
        } else {
            w.get(9, "z", ts).unwrap();
            w.hooked.at_read(1, collect);
            let ended = now(w.client.validate(TxnId(3), piece.validate, ts));
            assert!(matches!(ended, Err(Error::Conflict(_))), "{ended:?}");
        }
        assert!(w.hooked.fired() && w.versions("c").is_empty());
    }
}
