//! The hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014; design D8).
//!
//! A timestamp is wall-clock microseconds with a logical counter below. The clock never issues a timestamp twice and
//! never one below what it was told of by [`Hlc::update`], so causes have lower timestamps than their effects
//! even where clocks disagree; while clocks agree, timestamps are close to true time.
//!
//! Invariants
//!   H1  [`Hlc::now`] is strictly increasing over the life of the process, on all threads.
//!   H2  After `update(t)`, every `now()` is above `t`.
//!   H3  The physical part never runs backwards: when the wall clock is set back, time goes on with the
//!       monotonic clock from where it stood.
//!
//! Over restarts: the caller starts the clock with the highest timestamp that the node's logs hold (leases' read
//! limits, commit and prepare timestamps, closed timestamps). That is the persisted upper bound: a timestamp above
//! every logged read limit was never served to anyone, and one above every logged write was never written, so issuing it
//! again repeats nothing (commit protocol R1; see docs/adr/0003).
//!
//! What breaks if the clock's error bound is wrong: freshness (a reader may miss a commit acknowledged elsewhere
//! just before). Serializability, atomicity and durability do not depend on it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isochrone_base::Timestamp;
use isochrone_env::Clock;

/// A node's clock. Shared by reference counting; all calls are wait-free but for a compare-and-swap.
pub struct Hlc {
    clock: Arc<dyn Clock>,
    /// The highest timestamp issued or observed.
    last: AtomicU64,
    /// Physical time is never below this plus what the monotonic clock has gone on since `base_monotonic_ns`.
    base_wall_us: AtomicU64,
    base_monotonic_ns: u64,
}

impl Hlc {
    /// Starts above `floor`, the highest timestamp that the node's logs hold.
    pub fn new(clock: Arc<dyn Clock>, floor: Timestamp) -> Hlc {
        let base_wall_us = clock.wall().now_us.max(floor.micros());
        let base_monotonic_ns = clock.monotonic_ns();
        Hlc {
            clock,
            last: AtomicU64::new(floor.0),
            base_wall_us: AtomicU64::new(base_wall_us),
            base_monotonic_ns,
        }
    }

    /// As if the clock had been started above `floor` now: what replaying the logs found. Unlike [`Hlc::update`],
    /// physical time goes on from there, so that commits do not wait for a wall clock that was set back (R23).
    pub fn raise(&self, floor: Timestamp) {
        self.update(floor);
        let elapsed_us = self.clock.monotonic_ns().saturating_sub(self.base_monotonic_ns) / 1_000;
        self.base_wall_us.fetch_max(floor.micros().saturating_sub(elapsed_us), Ordering::AcqRel);
    }

    /// Physical time in microseconds: the wall clock, or the monotonic clock's continuation where that is ahead (H3).
    fn physical_us(&self) -> (u64, u64) {
        let reading = self.clock.wall();
        let elapsed_us = self.clock.monotonic_ns().saturating_sub(self.base_monotonic_ns) / 1_000;
        (reading.now_us.max(self.base_wall_us.load(Ordering::Relaxed) + elapsed_us), reading.error_us)
    }

    /// A new timestamp, above all before (H1, H2).
    pub fn now(&self) -> Timestamp {
        let physical = Timestamp::from_micros(self.physical_us().0).0;
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = physical.max(last + 1);
            match self.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Timestamp(next),
                Err(seen) => last = seen,
            }
        }
    }

    /// Takes note of a timestamp from elsewhere (H2).
    pub fn update(&self, seen: Timestamp) {
        self.last.fetch_max(seen.0, Ordering::AcqRel);
    }

    /// The highest timestamp issued or observed so far, without issuing one.
    pub fn last(&self) -> Timestamp {
        Timestamp(self.last.load(Ordering::Acquire))
    }

    /// The latest that true time can be now: physical time plus the clock's error bound. Commits above it are answered
    /// only when it has caught up (R23).
    pub fn latest(&self) -> Timestamp {
        let (now, error) = self.physical_us();
        Timestamp::from_micros(now + error)
    }

    /// The earliest that true time can be now.
    pub fn earliest(&self) -> Timestamp {
        let (now, error) = self.physical_us();
        Timestamp::from_micros(now.saturating_sub(error))
    }

    /// The width of the uncertainty window of a reader here, in microseconds (R5): how far ahead of this node's clock
    /// a timestamp can be that was already acknowledged elsewhere. 0 where this node's clock is the only one.
    pub fn uncertainty_us(&self) -> u64 {
        2 * self.clock.wall().error_us
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isochrone_env::fake::ManualClock;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stands_still_and_still_counts() {
        let clock = Arc::new(ManualClock::new(1_000));
        let hlc = Hlc::new(clock.clone(), Timestamp::MIN);
        let (a, b) = (hlc.now(), hlc.now());
        assert!(a < b && a.micros() == 1_000 && b.micros() == 1_000);
        clock.advance(Duration::from_micros(5));
        assert_eq!(hlc.now().micros(), 1_005);
        assert_eq!(hlc.latest().micros(), 1_005);
        clock.set_error_us(10);
        assert_eq!((hlc.earliest().micros(), hlc.latest().micros()), (995, 1_015));
        assert_eq!(hlc.uncertainty_us(), 20);
    }

    #[test]
    fn a_clock_set_back_repeats_nothing() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let hlc = Hlc::new(clock.clone(), Timestamp::from_micros(5_000_000));
        let a = hlc.now();
        assert!(a > Timestamp::from_micros(5_000_000));
        clock.set_wall_us(10);
        clock.advance(Duration::from_secs(1));
        assert_eq!(hlc.now().micros(), 6_000_000, "time goes on with the monotonic clock");
    }

    #[test]
    fn a_floor_found_later_counts_the_same() {
        let clock = Arc::new(ManualClock::new(10));
        let hlc = Hlc::new(clock.clone(), Timestamp::MIN);
        clock.advance(Duration::from_secs(1));
        hlc.raise(Timestamp::from_micros(5_000_000));
        assert!(hlc.now() > Timestamp::from_micros(5_000_000));
        clock.advance(Duration::from_secs(1));
        assert_eq!(hlc.latest().micros(), 6_000_000);
    }

    proptest! {
        #[test]
        fn monotone_whatever_happens(steps in proptest::collection::vec((0u8..3, 0u64..10_000_000), 1..50)) {
            let clock = Arc::new(ManualClock::new(1_000_000));
            let hlc = Hlc::new(clock.clone(), Timestamp::MIN);
            let mut last = Timestamp::MIN;
            for (what, n) in steps {
                match what {
                    0 => clock.advance(Duration::from_micros(n)),
                    1 => clock.set_wall_us(n),
                    _ => {
                        let seen = Timestamp::from_micros(n);
                        hlc.update(seen);
                        prop_assert!(hlc.now() > seen);
                    }
                }
                let now = hlc.now();
                prop_assert!(now > last);
                last = now;
            }
        }
    }
}
