//! Every anomaly of lists as the smallest history that shows it, and the levels that exclude it.

mod common;

use std::collections::BTreeSet;

use common::{History, Txn, options, possible};
use isochrone_check::append::{AppendChecker, NO_SESSION, Op, Options};
use isochrone_check::{Anomaly, Level, Outcome, Via};

use Level::*;
use Outcome::*;
use Via::*;

const LEVELS: [Level; 4] = [ReadCommitted, SnapshotIsolation, Serializable, StrictSerializable];

fn a(key: u64, value: u64) -> Op {
    Op::Append { key, value }
}

fn r(key: u64, list: &[u64]) -> Op {
    Op::Read { key, list: list.to_vec() }
}

/// A transaction of a session of its own that runs beside all others.
fn t(outcome: Outcome, ops: &[Op]) -> Txn {
    Txn { process: NO_SESSION, invoked: 0, completed: 100, outcome, ops: ops.to_vec() }
}

fn at(process: u64, invoked: u64, completed: u64, ops: &[Op]) -> Txn {
    Txn { process, invoked, completed, outcome: Committed, ops: ops.to_vec() }
}

/// The anomalies at each level; sessions are told apart by number, for `NO_SESSION` has no order.
fn expect(txns: Vec<Txn>, by_level: [&[Anomaly]; 4]) {
    let h = History::of(txns);
    for (level, expected) in LEVELS.into_iter().zip(by_level) {
        let expected: BTreeSet<Anomaly> = expected.iter().copied().collect();
        assert_eq!(h.anomalies(level), expected, "{level:?}: {:#?}", h.check(level));
        let mut numbered = h.clone();
        for (i, t) in numbered.txns.iter_mut().enumerate().filter(|(_, t)| t.process == NO_SESSION) {
            t.process = 1_000 + i as u64;
        }
        assert_eq!(possible(&numbered, level), expected.is_empty(), "{level:?}: the search of all orders");
    }
}

#[test]
fn g0_dirty_write() {
    let txns = vec![
        t(Committed, &[a(1, 1), a(2, 1)]),
        t(Committed, &[a(1, 2), a(2, 2)]),
        t(Committed, &[r(1, &[1, 2])]),
        t(Committed, &[r(2, &[2, 1])]),
    ];
    let g0: &[Anomaly] = &[Anomaly::G0(Data)];
    expect(txns, [g0; 4]);
}

#[test]
fn g1a_aborted_read_whichever_ends_first() {
    for completed in [50, 150] {
        let mut reader = t(Committed, &[r(1, &[1])]);
        reader.completed = completed;
        let g1a: &[Anomaly] = &[Anomaly::G1a];
        expect(vec![t(Aborted, &[a(1, 1)]), reader], [g1a; 4]);
    }
}

#[test]
fn g1b_intermediate_read_whichever_ends_first() {
    for completed in [50, 150] {
        let mut reader = t(Committed, &[r(1, &[1])]);
        reader.completed = completed;
        // From snapshot isolation up the half that was not read is read skew, too.
        let (g1b, skew): (&[Anomaly], &[Anomaly]) =
            (&[Anomaly::G1b], &[Anomaly::G1b, Anomaly::GSingle(Data)]);
        expect(vec![t(Committed, &[a(1, 1), a(1, 2)]), reader], [g1b, skew, skew, skew]);
    }
}

#[test]
fn g1c_circular_information_flow() {
    let txns = vec![t(Committed, &[a(1, 1), r(2, &[2])]), t(Committed, &[a(2, 2), r(1, &[1])])];
    let g1c: &[Anomaly] = &[Anomaly::G1c(Data)];
    expect(txns, [g1c; 4]);
}

#[test]
fn lost_update() {
    let lost: &[Anomaly] = &[Anomaly::LostUpdate];
    let two = [t(Committed, &[r(1, &[]), a(1, 1)]), t(Committed, &[r(1, &[]), a(1, 2)])];
    expect(two.to_vec(), [&[], lost, lost, lost]);
    // Also when only one of them had read.
    let one =
        vec![t(Committed, &[r(1, &[]), a(1, 1)]), t(Committed, &[a(1, 2)]), t(Committed, &[r(1, &[2, 1])])];
    expect(one, [&[], lost, lost, lost]);
}

#[test]
fn g_single_read_skew() {
    let txns = vec![t(Committed, &[a(1, 1), a(2, 1)]), t(Committed, &[r(1, &[]), r(2, &[1])])];
    let g: &[Anomaly] = &[Anomaly::GSingle(Data)];
    expect(txns, [&[], g, g, g]);
}

#[test]
fn g_nonadjacent_long_fork() {
    let txns = vec![
        t(Committed, &[a(1, 1)]),
        t(Committed, &[a(2, 1)]),
        t(Committed, &[r(1, &[1]), r(2, &[])]),
        t(Committed, &[r(1, &[]), r(2, &[1])]),
    ];
    let g: &[Anomaly] = &[Anomaly::GNonadjacent(Data)];
    expect(txns, [&[], g, g, g]);
}

#[test]
fn g2_item_write_skew() {
    let txns = vec![t(Committed, &[r(1, &[]), a(2, 1)]), t(Committed, &[r(2, &[]), a(1, 1)])];
    let g: &[Anomaly] = &[Anomaly::G2Item(Data)];
    expect(txns, [&[], &[], g, g]);
}

#[test]
fn sessions_see_their_past() {
    // A session reads what it wrote before: not.
    let txns = vec![at(1, 0, 10, &[a(1, 1)]), at(1, 10, 20, &[r(1, &[])])];
    let g: &[Anomaly] = &[Anomaly::GSingle(Process)];
    expect(txns, [&[], g, g, g]);
    let txns = vec![
        at(1, 0, 10, &[a(1, 1)]),
        at(1, 10, 20, &[a(2, 1)]),
        at(2, 0, 20, &[r(1, &[]), r(2, &[])]),
        at(2, 20, 30, &[r(2, &[1]), r(1, &[])]),
    ];
    expect(txns, [&[], g, g, g]);
    // Writes of one session in the wrong order, and two sessions that read past each other.
    let g0: &[Anomaly] = &[Anomaly::G0(Process)];
    let wrong = vec![at(1, 0, 10, &[a(1, 1)]), at(1, 10, 20, &[a(1, 2)]), at(2, 0, 30, &[r(1, &[2, 1])])];
    expect(wrong, [&[], g0, g0, g0]);
    let g1c: &[Anomaly] = &[Anomaly::G1c(Process)];
    let around =
        vec![at(1, 0, 10, &[r(1, &[1])]), at(1, 10, 20, &[a(2, 1)]), at(2, 0, 30, &[r(2, &[1]), a(1, 1)])];
    expect(around, [&[], g1c, g1c, g1c]);
    let skew = vec![
        at(1, 0, 10, &[a(1, 1)]),
        at(1, 10, 20, &[r(2, &[])]),
        at(2, 0, 10, &[a(2, 1)]),
        at(2, 10, 20, &[r(1, &[])]),
    ];
    let fork: &[Anomaly] = &[Anomaly::GNonadjacent(Process)];
    expect(skew, [&[], fork, fork, fork]);
}

#[test]
fn real_time_is_for_the_strict_level() {
    let stale = vec![at(1, 0, 10, &[a(1, 1)]), at(2, 11, 20, &[r(1, &[])])];
    expect(stale, [&[], &[], &[], &[Anomaly::GSingle(Realtime)]]);
    // Equal times are no order.
    let beside = vec![at(1, 0, 10, &[a(1, 1)]), at(2, 10, 20, &[r(1, &[])])];
    expect(beside, [&[]; 4]);
    // Causal reverse: the second write is seen without the first.
    let reverse =
        vec![at(1, 0, 10, &[a(1, 1)]), at(2, 11, 20, &[a(2, 1)]), at(3, 5, 30, &[r(1, &[]), r(2, &[1])])];
    expect(reverse, [&[], &[], &[], &[Anomaly::GSingle(Realtime)]]);
    let writes = vec![at(1, 0, 10, &[a(1, 1)]), at(2, 11, 20, &[a(1, 2)]), at(3, 0, 30, &[r(1, &[2, 1])])];
    expect(writes, [&[], &[], &[], &[Anomaly::G0(Realtime)]]);
    let flow =
        vec![at(1, 0, 10, &[r(1, &[1])]), at(2, 11, 20, &[a(2, 1)]), at(3, 0, 30, &[r(2, &[1]), a(1, 1)])];
    expect(flow, [&[], &[], &[], &[Anomaly::G1c(Realtime)]]);
    let skew = vec![
        at(1, 0, 10, &[r(1, &[]), a(2, 1)]),
        at(2, 11, 20, &[r(3, &[])]),
        at(3, 0, 30, &[r(2, &[]), a(3, 1), a(4, 1)]),
    ];
    expect(skew, [&[], &[], &[], &[Anomaly::G2Item(Realtime)]]);
    let fork =
        vec![at(1, 0, 10, &[a(1, 1)]), at(2, 0, 10, &[a(2, 1)]), at(3, 11, 20, &[r(1, &[1]), r(2, &[])])];
    expect(fork, [&[], &[], &[], &[Anomaly::GSingle(Realtime)]]);
    let forks =
        vec![at(1, 0, 10, &[a(1, 1)]), at(2, 11, 40, &[r(2, &[])]), at(3, 0, 10, &[a(2, 1), r(1, &[])])];
    expect(forks, [&[], &[], &[], &[Anomaly::GSingle(Realtime)]]);
}

#[test]
fn g2_item_process_and_realtime() {
    // T0 -rw-> T1 -rw-> T2 -order-> T0, where T2 and T0 stand in a session or in real time only.
    let txns = |process| {
        vec![at(process, 11, 20, &[r(1, &[])]), at(2, 0, 30, &[a(1, 1), r(2, &[])]), at(1, 0, 10, &[a(2, 1)])]
    };
    let process: &[Anomaly] = &[Anomaly::G2Item(Process)];
    expect(txns(1), [&[], &[], process, process]);
    expect(txns(3), [&[], &[], &[], &[Anomaly::G2Item(Realtime)]]);
}

#[test]
fn g_nonadjacent_realtime() {
    // T0 -rw-> T1 -wr-> T2 -rw-> T3 -realtime-> T0. (With two edges of real time there is always a shorter cycle.)
    let txns = vec![
        at(1, 11, 20, &[r(1, &[])]),
        at(2, 0, 30, &[a(1, 1)]),
        at(3, 0, 30, &[r(1, &[1]), r(2, &[])]),
        at(4, 0, 10, &[a(2, 1)]),
    ];
    expect(txns, [&[], &[], &[], &[Anomaly::GNonadjacent(Realtime)]]);
}

#[test]
fn internal_inconsistency() {
    let internal: &[Anomaly] = &[Anomaly::Internal];
    expect(vec![t(Committed, &[a(1, 1), r(1, &[])])], [internal; 4]);
    // At read committed a key may change between two reads.
    let again = vec![t(Committed, &[a(1, 1)]), t(Committed, &[r(1, &[]), r(1, &[1])])];
    expect(again, [&[], internal, internal, internal]);
    // Not after it was written to.
    let after = vec![t(Committed, &[a(1, 1)]), t(Committed, &[a(1, 2), r(1, &[2]), r(1, &[1, 2])])];
    let h = History::of(after);
    for level in LEVELS {
        assert!(h.anomalies(level).contains(&Anomaly::Internal), "{level:?}");
    }
    expect(vec![t(Committed, &[r(1, &[1]), a(1, 1)])], [internal; 4]);
}

#[test]
fn duplicates_orders_garbage() {
    let duplicate: &[Anomaly] = &[Anomaly::Duplicate];
    expect(vec![t(Committed, &[a(1, 1)]), t(Committed, &[r(1, &[1, 1])])], [duplicate; 4]);
    let later = vec![
        t(Committed, &[a(1, 1)]),
        t(Committed, &[a(1, 2)]),
        t(Committed, &[r(1, &[1, 2])]),
        t(Committed, &[r(1, &[1, 2, 1])]),
    ];
    expect(later, [duplicate; 4]);
    let order: &[Anomaly] = &[Anomaly::IncompatibleOrder];
    let forked = vec![
        t(Committed, &[a(1, 1)]),
        t(Committed, &[a(1, 2)]),
        t(Committed, &[r(1, &[1, 2])]),
        t(Committed, &[r(1, &[2])]),
    ];
    expect(forked, [order; 4]);
    let turned = History::of(vec![t(Committed, &[a(1, 1), a(1, 2)]), t(Committed, &[r(1, &[2, 1])])]);
    LEVELS
        .into_iter()
        .for_each(|l| assert!(turned.anomalies(l).contains(&Anomaly::IncompatibleOrder), "{l:?}"));
    let half = History::of(vec![t(Committed, &[a(1, 1), a(1, 2)]), t(Committed, &[r(1, &[2])])]);
    LEVELS
        .into_iter()
        .for_each(|l| assert!(half.anomalies(l).contains(&Anomaly::IncompatibleOrder), "{l:?}"));
    let garbage: &[Anomaly] = &[Anomaly::Garbage];
    expect(vec![t(Committed, &[r(1, &[7])])], [garbage; 4]);
    // A writer that begins after the read ended is none.
    let future = vec![at(1, 0, 10, &[r(1, &[1])]), at(2, 20, 30, &[a(1, 1)])];
    let h = History::of(future);
    LEVELS.into_iter().for_each(|l| assert!(h.anomalies(l).contains(&Anomaly::Garbage), "{l:?}"));
    // One in flight may be; a later one that ended is.
    expect(vec![at(1, 0, 10, &[r(1, &[1])]), at(2, 5, 30, &[a(1, 1)])], [&[]; 4]);
}

#[test]
fn unknown_outcomes_count_when_they_are_seen() {
    let skew = [r(1, &[]), a(2, 1)];
    let other = t(Committed, &[r(2, &[]), a(1, 1)]);
    let unknown = t(Unknown, &skew);
    expect(vec![unknown.clone(), other.clone()], [&[]; 4]);
    let seen = vec![unknown, other, t(Committed, &[r(2, &[1])])];
    let g: &[Anomaly] = &[Anomaly::G2Item(Data)];
    expect(seen, [&[], &[], g, g]);
    // Seen by one that is itself known only because it was seen.
    let chain = vec![
        t(Unknown, &[a(1, 1), a(2, 1)]),
        t(Unknown, &[r(1, &[1]), r(2, &[]), a(3, 1)]),
        t(Committed, &[r(3, &[1])]),
    ];
    let g: &[Anomaly] = &[Anomaly::GSingle(Data)];
    expect(chain, [&[], g, g, g]);
}

#[test]
fn a_final_read_finds_what_was_lost() {
    for level in LEVELS {
        let mut checker = AppendChecker::new(options(level));
        let go = |checker: &mut AppendChecker, outcome, ops: &[Op], at| {
            let no = checker.begin(1, at);
            checker.finish(no, outcome, ops.to_vec(), at + 1);
        };
        go(&mut checker, Committed, &[a(1, 1), a(2, 1)], 0);
        go(&mut checker, Unknown, &[a(1, 2), a(2, 2)], 10);
        go(&mut checker, Committed, &[a(1, 3)], 20);
        checker.final_read(2, vec![1], 30);
        assert_eq!(checker.findings().take(), []);
        checker.final_read(1, vec![1], 30);
        let mut found = checker.findings().take();
        // At the strict level a read that misses what was acknowledged is one more finding.
        found.retain(|f| f.anomaly != Anomaly::GSingle(Realtime));
        assert_eq!(found.iter().map(|f| f.anomaly).collect::<Vec<_>>(), [Anomaly::Lost], "{level:?}");
        assert_eq!(found[0].txns, [2]);
        assert_eq!(found[0].to_string(), "T2 lost-write: key 1 value 3 of T2, committed, is not in [1]");
    }
}

#[test]
fn a_final_read_finds_what_had_been_read_and_is_gone() {
    let mut checker = AppendChecker::new(options(ReadCommitted));
    let no = checker.begin(1, 0);
    checker.finish(no, Committed, vec![a(1, 1), r(1, &[1])], 1);
    checker.final_read(1, vec![], 10);
    assert_eq!(checker.findings().take()[0].anomaly, Anomaly::Lost);
}

#[test]
fn a_finding_fits_a_screen() {
    let txns = vec![at(1, 0, 10, &[r(1, &[]), a(2, 1)]), at(2, 5, 12, &[r(2, &[]), a(1, 1)])];
    let found = History::of(txns).check(Serializable);
    assert_eq!(
        found[0].to_string(),
        "T6 G2-item: T0 -rw key 1 before 1-> T1 -rw key 2 before 1-> T0\
         \n  T0 process 1 [0..10]  read 1 []  append 2 1\
         \n  T1 process 2 [5..12]  read 2 []  append 1 1"
    );
    let stale = vec![at(1, 0, 10, &[a(1, 1)]), at(2, 11, 20, &[r(1, &[])])];
    let found = History::of(stale).check(StrictSerializable);
    assert_eq!(
        found[0].to_string(),
        "CH5 G-single-realtime: T0 -realtime-> T1 -rw key 1 before 1-> T0\
         \n  T0 process 1 [0..10]  append 1 1\
         \n  T1 process 2 [11..20]  read 1 []"
    );
}

#[test]
fn a_value_appended_twice_is_the_workloads_fault() {
    let h = History::of(vec![t(Committed, &[a(1, 1)]), t(Committed, &[a(1, 1)])]);
    let found = h.check(ReadCommitted);
    assert_eq!((found[0].anomaly, found[0].invariant()), (Anomaly::Malformed, "CH7"));
}

#[test]
fn one_sickness_is_not_reported_for_ever() {
    let mut checker = AppendChecker::new(Options { check_every: 1, ..Options::new(Serializable) });
    let (one, two) = (checker.begin(1, 0), checker.begin(2, 0));
    checker.finish(one, Committed, vec![r(1, &[]), a(2, 1)], 10);
    checker.finish(two, Committed, vec![r(2, &[]), a(1, 1)], 10);
    for i in 0..100 {
        let no = checker.begin(1, 20 + i);
        checker.finish(no, Committed, vec![r(1, &[1]), r(2, &[1])], 21 + i);
    }
    assert_eq!(checker.findings().total(), 1);
}
