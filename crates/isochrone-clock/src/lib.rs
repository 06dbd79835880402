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
//!   H6  A guarded clock ([`Hlc::guard`]) does not follow a wall clock that leaps against the monotonic one, either way: it
//!       goes on from where it stood until the leap is taken back, or somebody who compared it with other clocks says that
//!       the wall clock is right now ([`Hlc::follow_wall`]). So a clock that is set far ahead on a running node gets into
//!       no timestamp, from where it would be in every node's clock. `follow_wall` is the one exception to H3; H1 and H2
//!       hold over it.
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
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

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
    /// H6: how far the wall clock may leap; 0: as far as it likes.
    leap_max_us: AtomicU64,
    /// What the wall clock showed when it was last followed, less what the monotonic clock had gone on by then.
    followed_us: AtomicI64,
}

/// Of a clock that is followed, what it showed is noted when it has moved by this much, so that not every reading writes.
const NOTE_US: u64 = 1_000;
/// Two looks at the clocks that lie further apart are not of one moment.
const MOMENT_NS: u64 = 5_000_000;
/// Looks for two of one moment; on a machine that is so busy the last two must do.
const LOOKS_MAX: u32 = 10;

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
            leap_max_us: AtomicU64::new(0),
            followed_us: AtomicI64::new(base_wall_us.cast_signed()),
        }
    }

    /// From now on leaps of the wall clock beyond this are not followed (H6).
    pub fn guard(&self, leap_max: Duration) {
        self.follow_wall();
        self.leap_max_us.store(u64::try_from(leap_max.as_micros()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// The wall clock is right as it is now, whatever it was before. Timestamps still only go up (H1).
    pub fn follow_wall(&self) {
        let (reading, elapsed_us) = self.look();
        let shown = reading.now_us.saturating_sub(elapsed_us);
        self.followed_us.store(shown.cast_signed(), Ordering::Release);
        self.base_wall_us.store(shown, Ordering::Release);
    }

    /// How far the wall clock is from this clock's physical time; more than the guard's bound, when it leapt, or when this
    /// clock began with one that was wrong.
    pub fn wall_off_us(&self) -> i64 {
        let (reading, elapsed_us) = self.look();
        let physical = self.physical_at(reading.now_us, elapsed_us);
        reading.now_us.cast_signed().saturating_sub(physical.cast_signed())
    }

    /// What the wall clock shows, less what the monotonic clock has gone on by: the same as long as neither is touched.
    pub fn wall_shown_us(&self) -> i64 {
        let (reading, elapsed_us) = self.look();
        reading.now_us.cast_signed().saturating_sub(elapsed_us.cast_signed())
    }

    /// Both clocks at one moment: what lies between two looks is no leap.
    fn look(&self) -> (isochrone_env::ClockReading, u64) {
        let mut before_ns = self.clock.monotonic_ns();
        for _ in 1..LOOKS_MAX {
            let reading = self.clock.wall();
            let after_ns = self.clock.monotonic_ns();
            if after_ns.saturating_sub(before_ns) <= MOMENT_NS {
                return (reading, self.elapsed_us(before_ns));
            }
            before_ns = after_ns;
        }
        (self.clock.wall(), self.elapsed_us(self.clock.monotonic_ns()))
    }

    /// What the monotonic clock had gone on by at a reading of it.
    pub fn elapsed_us(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.base_monotonic_ns) / 1_000
    }

    /// As if the clock had been started above `floor` now: what replaying the logs found. Unlike [`Hlc::update`],
    /// physical time goes on from there, so that commits do not wait for a wall clock that was set back (R23).
    pub fn raise(&self, floor: Timestamp) {
        self.update(floor);
        let elapsed_us = self.elapsed_us(self.clock.monotonic_ns());
        self.base_wall_us.fetch_max(floor.micros().saturating_sub(elapsed_us), Ordering::AcqRel);
    }

    /// Physical time in microseconds: the wall clock, or the monotonic clock's continuation where that is ahead (H3).
    fn physical_us(&self) -> (u64, u64) {
        let reading = self.clock.wall();
        let elapsed_us = self.elapsed_us(self.clock.monotonic_ns());
        (self.physical_at(reading.now_us, elapsed_us), reading.error_us)
    }

    fn physical_at(&self, wall_us: u64, elapsed_us: u64) -> u64 {
        let floor = self.base_wall_us.load(Ordering::Relaxed).saturating_add(elapsed_us);
        let leap_max = self.leap_max_us.load(Ordering::Relaxed);
        if leap_max == 0 {
            return wall_us.max(floor);
        }
        let shown = wall_us.cast_signed().saturating_sub(elapsed_us.cast_signed());
        let followed = self.followed_us.load(Ordering::Relaxed);
        let leap = shown.abs_diff(followed);
        if leap > leap_max {
            return followed.saturating_add_unsigned(elapsed_us).max(0).cast_unsigned().max(floor);
        }
        if leap > NOTE_US {
            self.followed_us.store(shown, Ordering::Relaxed);
        }
        wall_us.max(floor)
    }

    /// This clock's own best guess of the time, without issuing a timestamp.
    pub fn physical(&self) -> Timestamp {
        Timestamp::from_micros(self.physical_us().0)
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

    /// The monotonic clock: nanoseconds since some fixed moment of this process. What leases are measured by (D9).
    pub fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
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
        assert_eq!((hlc.latest().micros(), hlc.monotonic_ns()), (1_005, 5_000));
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

    #[test]
    fn a_leap_is_not_followed() {
        let clock = Arc::new(ManualClock::new(10_000_000));
        let hlc = Hlc::new(clock.clone(), Timestamp::MIN);
        hlc.guard(Duration::from_millis(250));
        clock.advance(Duration::from_secs(1));
        // Small steps are, either way; physical time does not run back for them.
        clock.set_wall_us(11_250_000);
        assert_eq!((hlc.now().micros(), hlc.wall_off_us()), (11_250_000, 0));
        clock.set_wall_us(11_000_000);
        assert_eq!(hlc.physical().micros(), 11_000_000);
        for wrong in [3_600_000_000, 1] {
            clock.set_wall_us(wrong);
            assert_eq!(hlc.physical().micros(), 11_000_000, "it goes on from where it stood");
            assert_eq!(hlc.wall_off_us(), wrong as i64 - 11_000_000);
            assert!(hlc.now().micros() < 11_300_000);
        }
        clock.advance(Duration::from_secs(1));
        assert_eq!(hlc.physical().micros(), 12_000_000);
        // It is set right again.
        clock.set_wall_us(12_100_000);
        assert_eq!((hlc.physical().micros(), hlc.wall_off_us()), (12_100_000, 0));
        // A machine slept, and others say that its wall clock is right.
        clock.set_wall_us(99_000_000);
        hlc.follow_wall();
        assert_eq!((hlc.physical().micros(), hlc.wall_off_us()), (99_000_000, 0));
        let last = hlc.now();
        // The same the other way: timestamps still go up.
        clock.set_wall_us(50_000_000);
        hlc.follow_wall();
        assert_eq!(hlc.physical().micros(), 50_000_000);
        assert!(hlc.now() > last);
    }

    proptest! {
        #[test]
        fn monotone_whatever_happens(
            guarded: bool,
            steps in proptest::collection::vec((0u8..4, 0u64..10_000_000), 1..50),
        ) {
            let clock = Arc::new(ManualClock::new(1_000_000));
            let hlc = Hlc::new(clock.clone(), Timestamp::MIN);
            if guarded {
                hlc.guard(Duration::from_millis(250));
            }
            let mut last = Timestamp::MIN;
            for (what, n) in steps {
                match what {
                    0 => clock.advance(Duration::from_micros(n)),
                    1 => clock.set_wall_us(n),
                    2 => hlc.follow_wall(),
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
