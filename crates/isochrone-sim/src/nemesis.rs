//! Trouble that comes at its own times. Each kind has its own stream of the seed, so that turning one off leaves the times
//! of the others as they are.
//!
//! Whatever is done here leaves the last good copy alone: a loss is a bug.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_env::SplitMix64;

use crate::fleet::Fleet;
use crate::life::EPOCH_US;
use crate::options::{Fault, Options};

/// Shortest partition or clog.
const CUT_MS_MIN: u64 = 100;
/// How often that may double: as often short as long, up to 13 s, over requests' and blank replicas' patience.
const CUT_DOUBLINGS: u64 = 7;
/// Longest pause: over leases and elections, up to the liveness lease.
const PAUSE_MS_MAX: u64 = 8_000;

enum Undo {
    Isolate(NodeId),
    Block(NodeId, NodeId),
}

/// See the module.
pub(crate) struct Nemesis {
    /// When each kind comes next.
    next: BTreeMap<Fault, (Duration, Arc<SplitMix64>)>,
    undo: Vec<(Duration, Undo)>,
    pub(crate) partitions: u64,
}

const KINDS: &[Fault] = &[
    Fault::Kill,
    Fault::Pause,
    Fault::Rot,
    Fault::Stale,
    Fault::Misdirected,
    Fault::Clog,
    Fault::OneWay,
    Fault::Partial,
    Fault::Isolate,
    Fault::Drift,
    Fault::ClockStep,
    Fault::ClockFreeze,
    Fault::ClockBeyond,
    Fault::Replace,
    Fault::Wipe,
    Fault::Swap,
];
/// What takes nothing from any disk. The others wait until a node whose log was cut has caught up.
const SPARES_DISKS: &[Fault] = &[
    Fault::Kill,
    Fault::Pause,
    Fault::Clog,
    Fault::OneWay,
    Fault::Partial,
    Fault::Isolate,
    Fault::Drift,
    Fault::ClockStep,
    Fault::ClockFreeze,
    Fault::ClockBeyond,
];
/// How often a clock's speed changes.
const DRIFT_EVERY_MS: u64 = 5_000;

impl Nemesis {
    pub(crate) fn new(options: &Options) -> Nemesis {
        let on = KINDS.iter().filter(|f| options.faults.contains_key(f));
        let next = on.map(|f| {
            let random = Arc::new(SplitMix64::split(options.seed, &format!("nemesis {}", f.name())));
            (*f, (wait(&random, mean(options, *f)), random))
        });
        Nemesis { next: next.collect(), undo: Vec::new(), partitions: 0 }
    }

    /// Does what is due.
    pub(crate) fn act(&mut self, fleet: &mut Fleet) {
        let now = fleet.now;
        let mut over = Vec::new();
        self.undo.retain_mut(|(until, undo)| {
            let is_over = *until <= now;
            if is_over {
                over.push(match undo {
                    Undo::Isolate(n) => Undo::Isolate(*n),
                    Undo::Block(a, b) => Undo::Block(*a, *b),
                });
            }
            !is_over
        });
        for undo in over {
            match undo {
                Undo::Isolate(node) => fleet.world.net.cut_off(node, false),
                Undo::Block(from, to) => fleet.world.net.block(from, to, false),
            }
        }
        let due: Vec<Fault> = self.next.iter().filter(|(_, (at, _))| *at <= now).map(|(f, _)| *f).collect();
        for fault in due {
            if fleet.is_hurt() && !SPARES_DISKS.contains(&fault) {
                continue;
            }
            let (at, random) = self.next.get_mut(&fault).expect("it is due");
            *at = now + wait(random, mean(&fleet.world.options, fault));
            let random = random.clone();
            self.strike(fault, &random, fleet);
        }
    }

    fn strike(&mut self, fault: Fault, random: &SplitMix64, fleet: &mut Fleet) {
        let world = fleet.world.clone();
        let nodes = world.nodes();
        let many = nodes.len() as u64;
        let first = random.below(many);
        let second = (first + 1 + random.below((many - 1).max(1))) % many;
        let (node, other) = (nodes[first as usize], nodes[second as usize]);
        let (a, b) = (u64::from(node.0), u64::from(other.0));
        let shortest = CUT_MS_MIN << random.below(CUT_DOUBLINGS);
        let long = Duration::from_millis(shortest + random.below(shortest));
        let until = fleet.now + long;
        let true_us = EPOCH_US + fleet.now.as_micros() as u64;
        let skew = world.skew(node);
        match fault {
            Fault::Kill => {
                world.fault("kill", &[a]);
                fleet.end(node, false);
            }
            Fault::Pause => {
                let long =
                    Duration::from_millis(10 << random.below(10)).min(Duration::from_millis(PAUSE_MS_MAX));
                world.fault("pause", &[a, long.as_millis() as u64]);
                fleet.pause(node, long);
            }
            Fault::Rot | Fault::Stale | Fault::Misdirected => fleet.rot(node, fault),
            Fault::Clog => {
                world.fault("clog", &[a, b, long.as_millis() as u64]);
                world.net.clog(node, other, until);
            }
            Fault::OneWay | Fault::Partial => {
                world.fault(fault.name(), &[a, b, long.as_millis() as u64]);
                self.partitions += 1;
                let back = (fault == Fault::Partial).then_some((other, node));
                for (from, to) in [(node, other)].into_iter().chain(back) {
                    world.net.block(from, to, true);
                    self.undo.push((until, Undo::Block(from, to)));
                }
            }
            // One at a time: two would be no majority, which is another kind of trouble.
            Fault::Isolate if !self.undo.iter().any(|(_, u)| matches!(u, Undo::Isolate(_))) => {
                world.fault("isolate", &[a, long.as_millis() as u64]);
                self.partitions += 1;
                world.net.cut_off(node, true);
                self.undo.push((until, Undo::Isolate(node)));
            }
            Fault::Replace => {
                world.fault("replace a node", &[]);
                world.order(random.below(u64::MAX));
            }
            Fault::Wipe => fleet.wipe(node),
            Fault::Swap => fleet.swap(node, other),
            Fault::Drift => world.fault("drift", &[a, skew.drift(true_us, random) as u64]),
            Fault::ClockStep => world.fault("clock step", &[a, skew.step(true_us, random) as u64]),
            Fault::ClockFreeze => world.fault("clock freeze", &[a, skew.freeze(true_us)]),
            Fault::ClockBeyond => world.fault("clock beyond", &[a, skew.beyond(true_us, random) as u64]),
            _ => {}
        }
    }
}

fn mean(options: &Options, fault: Fault) -> u64 {
    if fault == Fault::Drift { DRIFT_EVERY_MS } else { options.rate(fault) }
}

fn wait(random: &SplitMix64, mean_ms: u64) -> Duration {
    Duration::from_millis(1 + random.below(2 * mean_ms))
}
