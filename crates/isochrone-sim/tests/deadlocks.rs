//! Row locks over several leaders: deadlocks end within a second with one victim, queues have none, and a lock that its
//! leaseholder forgot does no harm. See `isochrone_sim::script::deadlocks`.

use std::time::Duration;

use isochrone_sim::script::deadlocks::{BROKEN_WITHIN, Report, cycle, moved, queue};
use isochrone_txn::kv::Error;

fn broken(n: usize) {
    let mut longest = Duration::ZERO;
    for shift in 0..3 {
        for seed in 0..3 {
            let Report { victims, committed, broken_after } =
                cycle(seed, n, shift).unwrap_or_else(|e| panic!("seed {seed}, shift {shift}: {e}"));
            assert_eq!((victims, committed), (1, n - 1), "seed {seed}, shift {shift}");
            assert!(broken_after < BROKEN_WITHIN, "seed {seed}, shift {shift}: {broken_after:?}");
            longest = longest.max(broken_after);
        }
    }
    println!("{n} transactions: broken after {longest:?} at the latest");
}

#[test]
fn two_transactions_over_two_leaders() {
    broken(2);
}

#[test]
fn three_transactions_over_three_leaders() {
    broken(3);
}

#[test]
fn a_long_queue_has_no_victims() {
    let report = queue(1, 24, Duration::from_secs(3)).unwrap();
    assert_eq!((report.victims, report.committed), (0, 25));
}

#[test]
fn a_lock_that_was_forgotten_is_found_out_at_commit() {
    let (holder, waiter) = moved(2).unwrap();
    assert_eq!(waiter, Ok(()));
    assert!(matches!(holder, Err(Error::Serialization(_))), "{holder:?}");
}
