//! What is wrong with a node's clock. True time is known to the world only.
//!
//! Clocks stay inside the bound that nodes assume of themselves ([`CLOCK_ERROR_MAX`]): what they read may be anything in it,
//! and what they do with it must be right. Where they run slow, so does the monotonic clock beside them: by up to five
//! in a hundred, of the twenty that leases leave room for (L1).

use std::sync::{Arc, Mutex, MutexGuard};

use isochrone_env::fake::TokioClock;
use isochrone_env::{Clock, ClockReading, SplitMix64};
use isochrone_server::cluster::CLOCK_ERROR_MAX;

/// Offsets stay this far inside the bound, which leaves room for what a reading takes.
const MARGIN_US: i64 = 5_000;
/// Clocks beyond the bound are off by at most this much more.
const BEYOND_US_MAX: u64 = 3_000_000;
const OFF_US_MAX: i64 = CLOCK_ERROR_MAX.as_micros() as i64 - MARGIN_US;

#[derive(Debug, Default)]
struct State {
    /// Offset at `since_us` of true wall time, and how fast it changes.
    off_us: i64,
    since_us: u64,
    drift_ppm: i64,
    /// It may be off by more than the bound.
    beyond: bool,
    /// What it shows, and up to when of true time.
    frozen: Option<(u64, u64)>,
}

/// The faults of one clock; they outlive the process that reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skew(Arc<Mutex<State>>);

impl Skew {
    /// Off by up to 40 ms, among others.
    pub(crate) fn new(random: &SplitMix64, several: bool) -> Skew {
        let off_us = if several { random.below(80_000) as i64 - 40_000 } else { 0 };
        Skew(Arc::new(Mutex::new(State { off_us, ..State::default() })))
    }

    /// Sets by how much the clock is off, before it is read.
    pub(crate) fn set(&self, off_us: i64) {
        self.state().off_us = off_us.clamp(-OFF_US_MAX, OFF_US_MAX);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("one thread")
    }

    /// What the clock shows at a true time.
    fn shows(&self, true_us: u64) -> u64 {
        let mut s = self.state();
        match s.frozen {
            Some((shown, until)) if true_us < until => return shown,
            Some(_) => s.frozen = None,
            None => {}
        }
        true_us.saturating_add_signed(s.off_us(true_us))
    }

    /// Sets the clock to be off by something else; returns by how much it is.
    pub(crate) fn step(&self, true_us: u64, random: &SplitMix64) -> i64 {
        let mut s = self.state();
        s.off_us = random.below(2 * OFF_US_MAX as u64) as i64 - OFF_US_MAX;
        s.since_us = true_us;
        s.frozen = None;
        s.beyond = false;
        s.off_us
    }

    /// Sets the clock far beyond its bound; returns by how much it is off.
    pub(crate) fn beyond(&self, true_us: u64, random: &SplitMix64) -> i64 {
        let mut s = self.state();
        let far = OFF_US_MAX + random.below(BEYOND_US_MAX) as i64;
        s.off_us = if random.below(2) == 0 { far } else { -far };
        s.since_us = true_us;
        s.frozen = None;
        s.beyond = true;
        s.off_us
    }

    /// By how much the clock is off at a true time.
    pub(crate) fn off_us(&self, true_us: u64) -> i64 {
        let shown = self.shows(true_us);
        shown.cast_signed() - true_us.cast_signed()
    }

    /// Somebody puts a clock right that is beyond its bound.
    pub(crate) fn put_right(&self) {
        let mut s = self.state();
        s.beyond = false;
    }

    /// Lets it run fast or slow from now on.
    pub(crate) fn drift(&self, true_us: u64, random: &SplitMix64) -> i64 {
        let mut s = self.state();
        s.off_us = s.off_us(true_us);
        s.since_us = true_us;
        s.drift_ppm = random.below(100_000) as i64 - 50_000;
        s.drift_ppm
    }

    /// How much slower than true time a monotonic clock runs, in millionths: the same crystal. Where the wall clock is fast, it is
    /// right: wall clocks are held inside their bound here, and physical time goes on with the monotonic one (H3), which would
    /// take it out of that bound.
    fn slow_ppm(&self) -> i64 {
        self.state().drift_ppm.min(0)
    }

    /// Lets it stand still for as long as it stays inside the bound.
    pub(crate) fn freeze(&self, true_us: u64) -> u64 {
        let mut s = self.state();
        let ahead = s.off_us(true_us);
        let shown = true_us.saturating_add_signed(ahead);
        let long = (ahead + OFF_US_MAX).max(0) as u64;
        s.frozen = Some((shown, true_us + long));
        long
    }
}

impl State {
    fn off_us(&self, true_us: u64) -> i64 {
        let since = true_us.saturating_sub(self.since_us) as i64;
        let off = i128::from(self.off_us) + i128::from(since) * i128::from(self.drift_ppm) / 1_000_000;
        if self.beyond {
            return off as i64;
        }
        off.clamp(i128::from(-OFF_US_MAX), i128::from(OFF_US_MAX)) as i64
    }
}

/// A node's clock: virtual time, shown as its skew says.
pub(crate) struct SkewedClock {
    clock: TokioClock,
    skew: Skew,
    error_us: u64,
    /// When the monotonic clock was read last, in true time, and what it showed.
    monotonic: Mutex<(u64, u64)>,
}

impl SkewedClock {
    /// The clock of a process that begins now.
    pub(crate) fn new(clock: TokioClock, skew: Skew, error_us: u64) -> SkewedClock {
        let now = clock.monotonic_ns();
        SkewedClock { clock, skew, error_us, monotonic: Mutex::new((now, now)) }
    }
}

impl Clock for SkewedClock {
    fn wall(&self) -> ClockReading {
        let reading = self.clock.wall();
        ClockReading { now_us: self.skew.shows(reading.now_us), error_us: self.error_us }
    }

    fn monotonic_ns(&self) -> u64 {
        let now = self.clock.monotonic_ns();
        let (read, shown) = &mut *self.monotonic.lock().expect("one thread");
        let passed =
            i128::from(now.saturating_sub(*read)) * i128::from(1_000_000 + self.skew.slow_ppm()) / 1_000_000;
        (*read, *shown) = (now, *shown + passed as u64);
        *shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_inside_the_bound() {
        let random = SplitMix64::new(7);
        let skew = Skew::new(&random, true);
        let mut now = 1_000_000_000;
        for i in 0..1_000 {
            match i % 3 {
                0 => _ = skew.step(now, &random),
                1 => _ = skew.drift(now, &random),
                _ => _ = skew.freeze(now),
            }
            for _ in 0..20 {
                now += random.below(50_000);
                let off = skew.shows(now).abs_diff(now);
                assert!(off < CLOCK_ERROR_MAX.as_micros() as u64, "{off}");
            }
        }
    }
}
