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

#[test]
fn many_short_runs() {
    for seed in 100..112 {
        let report = run(Options { seconds: 5, ..Options::new(seed) }).unwrap();
        assert!(report.committed > 0, "{report:?}");
    }
}
