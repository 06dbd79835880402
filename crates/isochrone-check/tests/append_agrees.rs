//! The list checker against a search of all orders, and against itself without a window.

mod common;

use common::{History, Mode, Rng, Shape, generate, mutate, options, possible};
use isochrone_check::Level;
use isochrone_check::append::{AppendChecker, Options};

const LEVELS: [Level; 4] =
    [Level::ReadCommitted, Level::SnapshotIsolation, Level::Serializable, Level::StrictSerializable];

fn small(rng: &mut Rng, txns: u64) -> History {
    let shape = Shape {
        txns: 2 + rng.below(txns - 2) as usize,
        processes: 1 + rng.below(4),
        keys: 1 + rng.below(3),
        ops_max: 1 + rng.below(4),
        mode: [Mode::Atomic, Mode::Snapshot, Mode::Mess][rng.below(3) as usize],
        aborted: rng.below(20),
        unknown: rng.below(30),
        appends_per_key: 0,
        stale: [0, 0, 30][rng.below(3) as usize],
        final_read: 50,
    };
    let mut h = generate(rng, &shape);
    if rng.chance(40) {
        mutate(rng, &mut h);
    }
    h
}

/// Seeds of the agreement test per level; `CHECK_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("CHECK_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4_000)
}

#[test]
fn verdicts_are_those_of_a_search_of_all_orders() {
    for level in LEVELS {
        let (mut good, mut bad, mut guesses) = (0, 0, 0);
        for seed in 0..seeds() {
            let mut rng = Rng(seed ^ (level as u64) << 40);
            let h = small(&mut rng, if level == Level::SnapshotIsolation { 5 } else { 6 });
            let found = h.check(level);
            let possible = possible(&h, level);
            let guess = level == Level::SnapshotIsolation && found.is_empty() && h.guesses_needed();
            let agrees = found.is_empty() == possible || guess;
            assert!(agrees, "{level:?} seed {seed}: possible {possible}, found {found:#?}\n{:#?}", h.txns);
            for f in &found {
                assert!(level.forbids(f.anomaly), "{level:?} seed {seed}: {f}");
            }
            good += u64::from(possible);
            bad += u64::from(!possible);
            guesses += u64::from(guess && !possible);
        }
        println!("{level:?}: {good} possible, {bad} not, {guesses} of them only by a guess");
        assert!(
            good > seeds() / 10 && bad > seeds() / 10 && guesses < seeds() / 50,
            "{good} {bad} {guesses}"
        );
    }
}

#[test]
fn the_window_misses_nothing() {
    let (mut found_some, mut peak, mut total) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let shape = Shape {
            txns: 300,
            processes: 1 + rng.below(6),
            keys: 2 + rng.below(3),
            ops_max: 1 + rng.below(4),
            mode: Mode::Atomic,
            aborted: 5,
            unknown: [0, 10][rng.below(2) as usize],
            appends_per_key: 3 + rng.below(6),
            stale: 0,
            final_read: 0,
        };
        let mut h = generate(&mut rng, &shape);
        if rng.chance(70) {
            mutate(&mut rng, &mut h);
        }
        for level in LEVELS {
            let whole = h.check(level);
            let mut windowed = AppendChecker::new(Options {
                key_appends_max: shape.appends_per_key as u32,
                ..options(level)
            });
            h.feed(&mut windowed);
            windowed.end();
            let found = windowed.findings().take();
            let stats = windowed.stats();
            assert_eq!(stats.evicted + stats.keys_forced + stats.ignored_ops, 0);
            assert_eq!(found.is_empty(), whole.is_empty(), "{level:?} seed {seed}: {found:#?} {whole:#?}");
            found_some += u64::from(!found.is_empty());
            (peak, total) = (peak + stats.window_txns_peak, total + h.txns.len());
        }
    }
    assert!(found_some > 200, "{found_some}");
    assert!(peak < total * 2 / 3, "the window is smaller than the history: {peak} of {total}");
}
