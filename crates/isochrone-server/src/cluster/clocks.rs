//! Is this node's clock fit to serve with? (design D8)
//!
//!     exchange of news, every 500 ms                what it is judged by
//!       my monotonic   sent ─────────── received    the source's own error bound       --clock-error-max
//!       the peer's wall clock   ▲                   its own wall clock against its monotonic one (H6)
//!       offset = my wall clock at received - half the round trip - the peer's, give or take half the round trip
//!                                                   its offset from the other nodes
//!
//! Invariants
//!   N6  A node whose clock is further than [`OFFSET_MAX`] from most of the clocks it can measure, beyond the error of
//!       measuring, or whose source's bound is above the maximum, is out of service: its sessions' statements end with
//!       57P03, it leads no shard as soon as others can, and none is given to it. It does not end, and comes back by itself.
//!   N7  Among others a node serves nothing before its clock was found to agree with most of those measured, itself
//!       counted. Later, a tie changes nothing: of two clocks nobody knows which one is right.
//!   N8  Who is out of service gets nobody else out: its clock counts where it agrees, and not where it differs.
//!
//! Why that is enough: no rule of the commit protocol but R5, R23 and R24 trusts a clock, so a bad one costs freshness or
//! availability. In the time until it is noticed a clock that leaps is not followed (H6), and a clock that was wrong from the
//! start serves nothing (N7).
//!
//! The maximum of the bound is at most [`super::CLOCK_ERROR_MAX`], whatever a source says: the window of uncertainty of a reader
//! (R5) spans the widest interval that any node of the cluster may have (R23), not the one that this node happens to have. A
//! better source makes commits wait less (R23, R24); it does not let this node look less far ahead for what others answered.
//!
//! How it fails: a node that is alone has nobody to compare with, and believes its source. Where most clocks are wrong in the
//! same way, the right ones are out of service.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::{NodeId, bank};
use isochrone_clock::Hlc;
use isochrone_env::{Clock, ClockState};
use isochrone_txn::kv::ClockInfo;

use super::OFFSET_MAX;
use super::message::News;

/// A measurement counts for this long.
const COUNTS_FOR_NS: u64 = 3_000_000_000;
/// A measurement stays for this long when the next ones are much less exact.
const STAYS_FOR_NS: u64 = 1_500_000_000;
const OFFSET_MAX_US: u64 = OFFSET_MAX.as_micros() as u64;

/// A peer's wall clock, as it was measured: against this node's monotonic clock, so that a measurement from before this
/// node's wall clock was set says the right thing after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Measured {
    /// What it showed, less what this node's monotonic clock had gone on by.
    shown_us: i64,
    /// Either way.
    error_us: u64,
    at_ns: u64,
    /// The peer is out of service.
    out: bool,
}

/// How far this node's wall clock is ahead of a peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offset {
    offset_us: i64,
    /// Either way.
    error_us: u64,
    /// The peer is out of service.
    out: bool,
}

impl Measured {
    /// `wall_shown_us`: of this node's own wall clock.
    fn offset(&self, wall_shown_us: i64) -> Offset {
        let offset_us = wall_shown_us.saturating_sub(self.shown_us);
        Offset { offset_us, error_us: self.error_us, out: self.out }
    }
}

impl Offset {
    fn differs(&self) -> bool {
        self.offset_us.unsigned_abs() > OFFSET_MAX_US.saturating_add(self.error_us)
    }
}

/// What the others' clocks say of this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Agree,
    Differ,
    /// As many say so as the other thing, or nobody says anything.
    Unknown,
}

/// N6, N7, N8: each clock that counts has a voice, this one included.
fn verdict(offsets: impl Iterator<Item = Offset>) -> Verdict {
    let (mut agree, mut differ) = (1, 0);
    for offset in offsets {
        match offset.differs() {
            false => agree += 1,
            true if offset.out => {}
            true => differ += 1,
        }
    }
    match (agree, differ) {
        (1, 0) => Verdict::Unknown,
        (a, d) if a > d => Verdict::Agree,
        (a, d) if a < d => Verdict::Differ,
        _ => Verdict::Unknown,
    }
}

struct State {
    measured: BTreeMap<NodeId, Measured>,
    /// Why it is out of service.
    trouble: Option<String>,
}

/// See the module.
pub struct Clocks {
    node: NodeId,
    alone: bool,
    error_max: Duration,
    wall: Arc<dyn Clock>,
    clock: Arc<Hlc>,
    out: AtomicBool,
    state: Mutex<State>,
}

impl Clocks {
    /// `alone`: no other node's clock is as good as this one's.
    pub(crate) fn new(
        node: NodeId,
        alone: bool,
        error_max: Duration,
        wall: Arc<dyn Clock>,
        clock: Arc<Hlc>,
    ) -> Clocks {
        let trouble =
            (!alone).then(|| "its clock was not compared with those of most other nodes yet".to_string());
        if !alone {
            clock.guard(OFFSET_MAX);
        }
        let clocks = Clocks {
            node,
            alone,
            error_max,
            wall,
            clock,
            out: AtomicBool::new(trouble.is_some()),
            state: Mutex::new(State { measured: BTreeMap::new(), trouble }),
        };
        let _nobody_to_tell_yet = clocks.judge();
        clocks
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// Is this node out of service? An atomic load.
    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// Why it is out of service.
    pub fn trouble(&self) -> Option<String> {
        if self.is_out() { self.lock().trouble.clone() } else { None }
    }

    /// This node's wall clock now, in microseconds.
    pub(crate) fn wall_us(&self) -> u64 {
        self.wall.wall().now_us
    }

    /// A peer has answered a call; by the monotonic clock. To be told at once.
    pub(crate) fn measure(&self, peer: &News, sent_ns: u64) {
        let now_ns = self.wall.monotonic_ns();
        let half_ns = now_ns.saturating_sub(sent_ns) / 2;
        let between_us = self.clock.elapsed_us(sent_ns + half_ns);
        let new = Measured {
            shown_us: peer.wall_us.cast_signed().saturating_sub(between_us.cast_signed()),
            error_us: half_ns / 1_000 + 1,
            at_ns: now_ns,
            out: peer.out_of_service,
        };
        let mut state = self.lock();
        let better = |old: &Measured| {
            new.error_us <= old.error_us.saturating_mul(2)
                || now_ns.saturating_sub(old.at_ns) > STAYS_FOR_NS
                || new.out != old.out
        };
        if state.measured.get(&peer.node).is_none_or(better) {
            state.measured.insert(peer.node, new);
        }
    }

    /// Looks at everything that is known of the clock, and takes the node out of service or brings it back: then true. To be
    /// called after every exchange of news.
    pub(crate) fn judge(&self) -> bool {
        let source = self.wall.state();
        let now_ns = self.wall.monotonic_ns();
        let mut state = self.lock();
        state.measured.retain(|_, o| now_ns.saturating_sub(o.at_ns) <= COUNTS_FOR_NS);
        let was = state.trouble.take();
        if bank::has("wrong-clock-serves") {
            return self.out.swap(false, Ordering::AcqRel);
        }
        let now =
            self.error_trouble(&source).or_else(|| self.trouble_among_others(&state.measured, was.clone()));
        match (&was, &now) {
            (None, Some(why)) => tracing::warn!(node = %self.node, why, "this node is out of service"),
            (Some(_), None) => {
                tracing::info!(node = %self.node, "this node's clock is within its bound: it is in service");
            }
            _ => {}
        }
        metrics::gauge!("isochrone_clock_error_us").set(source.error_us as f64);
        metrics::gauge!("isochrone_clock_in_service").set(if now.is_none() { 1.0 } else { 0.0 });
        let changed = was.is_some() != now.is_some();
        self.out.store(now.is_some(), Ordering::Release);
        state.trouble = now;
        changed
    }

    fn error_trouble(&self, source: &ClockState) -> Option<String> {
        let error = Duration::from_micros(source.error_us);
        (error > self.error_max).then(|| {
            let silent = source.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            format!(
                "its clock may be off by {} ms, more than the {} ms of --clock-error-max, says its source {}{silent}",
                error.as_millis(),
                self.error_max.as_millis(),
                source.source
            )
        })
    }

    fn trouble_among_others(
        &self,
        measured: &BTreeMap<NodeId, Measured>,
        was: Option<String>,
    ) -> Option<String> {
        if self.alone {
            return None;
        }
        let shown_us = self.clock.wall_shown_us();
        let offsets: Vec<Offset> = measured.values().map(|m| m.offset(shown_us)).collect();
        let verdict = verdict(offsets.iter().copied());
        // H6: its own wall clock is the first that can tell.
        let off_us = self.clock.wall_off_us();
        let leapt = off_us.unsigned_abs() > OFFSET_MAX_US;
        match verdict {
            Verdict::Agree if leapt => {
                tracing::warn!(node = %self.node, off_us, "this node's clock was set, and agrees with the others': it is followed");
                self.clock.follow_wall();
                None
            }
            Verdict::Agree => None,
            Verdict::Differ => {
                let mut differ: Vec<i64> =
                    offsets.iter().filter(|o| o.differs()).map(|o| o.offset_us).collect();
                differ.sort_unstable();
                let typical = differ[differ.len() / 2];
                let way = if typical > 0 { "ahead of" } else { "behind" };
                Some(format!(
                    "its clock is {} ms {way} those of {} of the {} other nodes it could measure, more than {} ms",
                    typical.unsigned_abs() / 1_000,
                    differ.len(),
                    offsets.len(),
                    OFFSET_MAX.as_millis()
                ))
            }
            Verdict::Unknown if leapt => Some(format!(
                "its clock was set by {} ms while it ran, and other nodes' clocks do not agree with it",
                off_us / 1_000
            )),
            Verdict::Unknown => was,
        }
    }

    /// `isochrone.clocks`: what this node knows.
    pub(crate) fn rows(&self) -> Vec<ClockInfo> {
        let source = self.wall.state();
        let now_ns = self.wall.monotonic_ns();
        let shown_us = self.clock.wall_shown_us();
        let state = self.lock();
        let row = |peer: Option<(NodeId, Offset)>| ClockInfo {
            node: self.node,
            source: source.source.to_string(),
            error_us: source.error_us,
            peer: peer.as_ref().map(|(node, _)| *node),
            offset_us: peer.as_ref().map(|(_, o)| o.offset_us),
            offset_error_us: peer.as_ref().map(|(_, o)| o.error_us),
            in_service: state.trouble.is_none(),
            reason: state.trouble.clone().or_else(|| source.trouble.clone()),
        };
        let fresh = state.measured.iter().filter(|(_, m)| now_ns.saturating_sub(m.at_ns) <= COUNTS_FOR_NS);
        let rows: Vec<ClockInfo> = fresh.map(|(node, m)| row(Some((*node, m.offset(shown_us))))).collect();
        if rows.is_empty() { vec![row(None)] } else { rows }
    }
}

#[cfg(test)]
mod tests {
    use isochrone_base::Timestamp;
    use isochrone_env::fake::ManualClock;

    use super::*;

    fn offset(ms: i64, error_ms: u64, out: bool) -> Offset {
        Offset { offset_us: ms * 1_000, error_us: error_ms * 1_000, out }
    }

    #[test]
    fn most_clocks_decide() {
        let of = |list: &[Offset]| verdict(list.iter().copied());
        assert_eq!(of(&[]), Verdict::Unknown);
        assert_eq!(of(&[offset(100, 1, false), offset(-249, 1, false)]), Verdict::Agree);
        assert_eq!(of(&[offset(300, 1, false), offset(400, 1, false)]), Verdict::Differ);
        assert_eq!(
            of(&[offset(300, 1, false), offset(0, 1, false)]),
            Verdict::Agree,
            "the other one is wrong"
        );
        assert_eq!(of(&[offset(300, 1, false)]), Verdict::Unknown, "one of two is wrong");
        assert_eq!(
            of(&[offset(300, 60, false), offset(-300, 60, false)]),
            Verdict::Agree,
            "within the error"
        );
        assert_eq!(of(&[offset(300, 1, true)]), Verdict::Unknown, "N8");
        assert_eq!(of(&[offset(10, 1, true), offset(300, 1, true)]), Verdict::Agree, "N8");
        assert_eq!(
            of(&[offset(900, 1, false), offset(900, 1, false), offset(0, 1, true), offset(1, 1, true)]),
            Verdict::Agree
        );
    }

    struct Two {
        wall: Arc<ManualClock>,
        clocks: Clocks,
        true_us: u64,
    }

    impl Two {
        fn new(alone: bool) -> Two {
            let wall = Arc::new(ManualClock::new(50_000_000));
            let hlc = Arc::new(Hlc::new(wall.clone(), Timestamp::MIN));
            let clocks = Clocks::new(NodeId(1), alone, Duration::from_millis(125), wall.clone(), hlc);
            Two { wall, clocks, true_us: 50_000_000 }
        }

        /// Two peers that are right answer after 10 ms; this clock is off by so much.
        fn round(&mut self, off_us: i64) {
            let sent_ns = self.wall.monotonic_ns();
            self.wall.advance(Duration::from_millis(10));
            self.true_us += 10_000;
            self.wall.set_wall_us(self.true_us.saturating_add_signed(off_us));
            for node in [NodeId(2), NodeId(3)] {
                let news = News { node, wall_us: self.true_us - 5_000, ..News::default() };
                self.clocks.measure(&news, sent_ns);
            }
            self.clocks.judge();
        }
    }

    #[test]
    fn it_goes_out_and_comes_back() {
        let mut two = Two::new(false);
        assert!(two.clocks.trouble().unwrap().contains("not compared"), "N7");
        two.round(100_000);
        assert_eq!(two.clocks.trouble(), None);
        let rows = two.clocks.rows();
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|r| r.in_service && (r.offset_us.unwrap() - 100_000).abs() <= 1), "{rows:?}");
        for off_us in [10_000_000, -10_000_000, 300_000] {
            two.round(off_us);
            let why = two.clocks.trouble().unwrap();
            let way = if off_us > 0 { "ahead of" } else { "behind" };
            assert!(why.contains(&format!("{way} those of 2 of the 2")), "{why}");
            let ahead_us = two.clocks.clock.now().micros().cast_signed() - two.true_us.cast_signed();
            assert!((0..=400_000).contains(&ahead_us), "not followed: {ahead_us}");
            two.round(0);
            assert_eq!(two.clocks.trouble(), None);
        }
    }

    #[test]
    fn a_leap_that_others_agree_with_is_followed() {
        let mut two = Two::new(false);
        two.round(0);
        // The machine slept for a minute: its monotonic clock did not go on.
        two.true_us += 60_000_000;
        two.wall.set_wall_us(two.true_us);
        two.clocks.judge();
        assert!(two.clocks.trouble().is_some(), "until it has heard the others");
        two.round(0);
        assert_eq!(two.clocks.trouble(), None);
        assert!(two.clocks.clock.now().micros() >= two.true_us);
    }

    #[test]
    fn a_silent_source_ends_in_no_service() {
        for alone in [true, false] {
            let mut two = Two::new(alone);
            two.round(0);
            assert_eq!(two.clocks.trouble(), None);
            two.wall.set_error_us(125_001);
            two.round(0);
            assert!(two.clocks.trouble().unwrap().contains("--clock-error-max"));
            two.wall.set_error_us(125_000);
            two.round(0);
            assert_eq!(two.clocks.trouble(), None);
        }
    }

    #[test]
    fn alone_nobody_can_tell() {
        let mut two = Two::new(true);
        two.round(10_000_000);
        assert_eq!(two.clocks.trouble(), None);
    }
}
