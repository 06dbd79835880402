//! What all nodes of a run share: their machines, the network, what clients know, and the trace.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_base::hash::Fnv64;
use isochrone_env::SplitMix64;
use isochrone_env::fake::MemDisk;
use isochrone_storage::MemEngine;

use crate::Options;
use crate::net::SimNet;
use crate::skew::Skew;
use crate::workload::Books;

/// Events kept to be shown around a finding.
const RECENT_MAX: usize = 400;

/// Where the events of a run go, a line each.
pub type Sink = Box<dyn FnMut(&str) + Send>;

/// A check that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The invariant that does not hold.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
}

impl Found {
    pub(crate) fn new(id: &'static str, what: impl Into<String>) -> Found {
        Found { id, what: what.into() }
    }
}

/// Anything without an id of its own is something that cannot happen.
impl From<String> for Found {
    fn from(what: String) -> Found {
        Found { id: "SIM0", what }
    }
}

/// What goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Tables are made; no trouble yet, unless the seed says so.
    SetUp,
    /// Load and trouble.
    Chaos,
    /// No new load; a majority is whole, the others are down: what was begun must end.
    Core,
    /// Every node starts once more, and everything is looked at.
    Last,
}

/// What outlives a crash of a node: its disk, its engine's flushed image, its clock's faults.
pub(crate) struct Machine {
    pub(crate) disk: MemDisk,
    pub(crate) engine: MemEngine,
    pub(crate) skew: Skew,
}

#[derive(Clone, Copy)]
struct Event {
    at_us: u64,
    what: &'static str,
    numbers: [u64; 4],
    used: usize,
}

#[derive(Default)]
struct Trace {
    hash: Fnv64,
    recent: VecDeque<Event>,
    /// Everything, as text, where somebody wants it.
    sink: Option<Sink>,
}

/// See the module.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    pub(crate) net: SimNet,
    pub(crate) books: Books,
    trace: Mutex<Trace>,
    phase: AtomicU8,
    /// True time since the run began, in microseconds.
    now_us: AtomicU64,
    faults: AtomicU64,
    ops: AtomicU64,
}

impl World {
    pub(crate) fn new(options: Options, sink: Option<Sink>) -> World {
        let machine = |n: u32| {
            let skew = Skew::new(&SplitMix64::split(options.seed, &format!("clock {n}")), options.nodes > 1);
            (NodeId(n), Machine { disk: MemDisk::new(), engine: MemEngine::new(), skew })
        };
        World {
            machines: (1..=options.nodes).map(machine).collect(),
            net: SimNet::new(&options),
            books: Books::new(&options),
            trace: Mutex::new(Trace { sink, ..Trace::default() }),
            phase: AtomicU8::new(0),
            now_us: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            options,
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.machines.keys().copied()
    }

    /// The nodes that hold replicas.
    pub(crate) fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes().take(if self.options.nodes < 3 { 1 } else { 3 })
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::SetUp,
            1 => Phase::Chaos,
            2 => Phase::Core,
            _ => Phase::Last,
        }
    }

    /// Do things go wrong by themselves now?
    pub(crate) fn in_trouble(&self) -> bool {
        match self.phase() {
            Phase::SetUp => self.options.early,
            Phase::Chaos => true,
            Phase::Core | Phase::Last => false,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        // Messages may get lost as long as there are nodes, but for the core: it is whole.
        self.net.set_troubled(self.in_trouble());
        self.note("phase", &[phase as u64]);
    }

    /// True time since the run began.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }

    pub(crate) fn set_now(&self, now: Duration) {
        self.now_us.store(now.as_micros() as u64, Ordering::Relaxed);
    }

    /// A fault was injected.
    pub(crate) fn fault(&self, what: &'static str, numbers: &[u64]) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.note(what, numbers);
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// A client's operation ended, in whatever way.
    pub(crate) fn op(&self) {
        self.ops.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }

    /// Takes an event into the trace; of the numbers, the first four can be read later.
    pub(crate) fn note(&self, what: &'static str, numbers: &[u64]) {
        let trace = &mut *self.trace.lock().expect("one thread");
        let at_us = self.now_us.load(Ordering::Relaxed);
        trace.hash.update(what.as_bytes());
        trace.hash.update(&at_us.to_be_bytes());
        let mut event = Event { at_us, what, numbers: [0; 4], used: numbers.len().min(4) };
        for (i, n) in numbers.iter().enumerate() {
            trace.hash.update(&n.to_be_bytes());
            if let Some(place) = event.numbers.get_mut(i) {
                *place = *n;
            }
        }
        if let Some(sink) = &mut trace.sink {
            sink(&line(&event));
        }
        if trace.recent.len() == RECENT_MAX {
            trace.recent.pop_front();
        }
        trace.recent.push_back(event);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.trace.lock().expect("one thread").hash.finish()
    }

    /// The last events, oldest first.
    pub(crate) fn recent(&self) -> Vec<String> {
        self.trace.lock().expect("one thread").recent.iter().map(line).collect()
    }
}

fn line(event: &Event) -> String {
    let mut out = format!("{:>12.6}  {}", event.at_us as f64 / 1e6, event.what);
    for n in &event.numbers[..event.used] {
        let _ = write!(out, " {n}");
    }
    out
}
