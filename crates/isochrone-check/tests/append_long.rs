//! Long histories: valid ones are never flagged, memory is bounded, planted anomalies are found.

mod common;

use common::{History, Mode, Rng, Shape, generate};
use isochrone_check::append::{AppendChecker, Op, Options};
use isochrone_check::{Anomaly, Level, Outcome};

const LEVELS: [Level; 4] =
    [Level::ReadCommitted, Level::SnapshotIsolation, Level::Serializable, Level::StrictSerializable];

fn shape(txns: usize) -> Shape {
    Shape {
        txns,
        processes: 10,
        keys: 10,
        ops_max: 6,
        mode: Mode::Atomic,
        aborted: 5,
        unknown: 5,
        appends_per_key: 50,
        stale: 0,
        final_read: 0,
    }
}

fn windowed(level: Level) -> Options {
    Options { key_appends_max: 50, ..Options::new(level) }
}

fn run(h: &History, options: Options) -> AppendChecker {
    let mut checker = AppendChecker::new(options);
    h.feed(&mut checker);
    checker.end();
    checker
}

#[test]
fn valid_histories_are_never_flagged_and_the_window_stays_small() {
    for seed in 0..5 {
        let h = generate(&mut Rng(seed), &shape(10_000));
        for level in LEVELS {
            let mut checker = run(&h, windowed(level));
            assert_eq!(checker.findings().take(), [], "{level:?} seed {seed}");
            let stats = checker.stats();
            assert_eq!((stats.txns, stats.evicted, stats.ignored_ops), (10_000, 0, 0));
            assert!(stats.window_txns_peak < 3_000, "{level:?} seed {seed}: {}", stats.window_txns_peak);
        }
    }
}

#[test]
fn the_hard_bounds_invent_nothing() {
    for seed in 0..20 {
        let h = generate(&mut Rng(seed), &shape(3_000));
        for level in LEVELS {
            for (window_txns_max, live_keys_max) in [(20, 10_000), (200_000, 4), (20, 4), (1, 1)] {
                let bounds = Options { window_txns_max, live_keys_max, check_every: 8, ..windowed(level) };
                let mut checker = run(&h, bounds);
                assert_eq!(checker.findings().take(), [], "{level:?} seed {seed}");
                let stats = checker.stats();
                assert!(stats.evicted + stats.keys_forced > 100);
                assert!(window_txns_max != 20 || stats.window_txns_peak <= 28);
            }
        }
    }
}

#[test]
fn a_key_that_is_used_after_its_retirement_is_ignored() {
    let mut checker = AppendChecker::new(Options::new(Level::StrictSerializable));
    let slow = checker.begin(1, 0);
    let first = checker.begin(2, 0);
    checker.finish(first, Outcome::Committed, vec![Op::Append { key: 1, value: 1 }], 1);
    checker.retire(1);
    let late = checker.begin(2, 2);
    checker.finish(late, Outcome::Committed, vec![Op::Read { key: 1, list: vec![9] }], 3);
    // One that began before still counts.
    checker.finish(slow, Outcome::Committed, vec![Op::Read { key: 1, list: vec![1, 7] }], 4);
    checker.end();
    assert_eq!(checker.stats().ignored_ops, 1);
    let found = checker.findings().take();
    assert_eq!(found.iter().map(|f| f.anomaly).collect::<Vec<_>>(), [Anomaly::Garbage]);
}

#[test]
fn planted_anomalies_are_found_at_once() {
    // Two transactions of write skew on fresh keys, in the middle of a long valid history.
    for seed in 0..10 {
        let mut h = generate(&mut Rng(seed), &shape(4_000));
        let (x, y) = (1_000_000, 1_000_001);
        let skew = |from, to| vec![Op::Read { key: from, list: vec![] }, Op::Append { key: to, value: 1 }];
        let i = h.txns.len();
        let middle = h.events.len() / 2;
        let time = match h.events[middle] {
            common::Event::Begin(i) => h.txns[i].invoked,
            common::Event::Finish(i) => h.txns[i].completed,
        };
        for (process, ops) in [(100, skew(x, y)), (101, skew(y, x))] {
            h.txns.push(common::Txn {
                process,
                invoked: time,
                completed: time,
                outcome: Outcome::Committed,
                ops,
            });
        }
        let planted = [
            common::Event::Begin(i),
            common::Event::Begin(i + 1),
            common::Event::Finish(i),
            common::Event::Finish(i + 1),
        ];
        h.events.splice(middle..middle, planted);
        for level in LEVELS {
            let mut checker = run(&h, windowed(level));
            let found = checker.findings().take();
            let expected = u64::from(level >= Level::Serializable);
            assert_eq!(found.len() as u64, expected, "{level:?} seed {seed}: {found:?}");
        }
    }
}

#[test]
fn the_same_calls_give_the_same_findings() {
    let shape = Shape { mode: Mode::Mess, unknown: 10, ..shape(3_000) };
    let h = generate(&mut Rng(7), &shape);
    let once = run(&h, windowed(Level::Serializable)).findings().take();
    assert!(once.len() > 10);
    assert_eq!(once, run(&h, windowed(Level::Serializable)).findings().take());
}
