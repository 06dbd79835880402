//! The same seed twice gives the same run, and nothing acknowledged is lost in it.

use isochrone_sim::{Options, run};

#[test]
fn a_seed_is_a_run() {
    let seed = 1;
    let first = run(Options::new(seed)).unwrap();
    println!("{first:?}");
    assert!(first.crashes >= 5, "{first:?}");
    assert!(first.committed > 1_000, "{first:?}");
    assert!(first.audits > 100, "{first:?}");
    let second = run(Options::new(seed)).unwrap();
    assert_eq!(first, second, "SIM5");
    let other = run(Options::new(seed + 1)).unwrap();
    assert_ne!(first.trace, other.trace, "the seed decides");
}

/// 12 seeds; `ISOCHRONE_SEEDS=n` runs more of them.
#[test]
fn many_short_runs() {
    let n: u64 = std::env::var("ISOCHRONE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    for seed in 100..100 + n {
        let report = run(Options { seconds: 5, ..Options::new(seed) }).unwrap();
        assert!(report.committed > 0, "{report:?}");
    }
}
