//! What all nodes of a run share: their machines, the network, what clients know, and the trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_base::hash::Fnv64;
use isochrone_env::SplitMix64;
use isochrone_env::fake::MemDisk;
use isochrone_storage::MemEngine;

use crate::net::SimNet;
use crate::skew::Skew;
use crate::workload::Books;
use crate::{Fault, Options};

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

/// Nodes that may lose their disks in one run; each needs another one to take its place.
const WIPES_MAX: u32 = 4;
/// A wish for other voters may still be under way for so long after another one.
const WISHED_MAX: Duration = Duration::from_secs(30);

/// Voters that an operator wished for, and when.
struct Wish {
    at: Duration,
    voters: Vec<NodeId>,
    /// The operator was told that it is written down.
    is_taken: bool,
}

/// What outlives a crash of a node: its disk, its engine's flushed image, and its clock's faults as long as the disk is not
/// put into another machine.
pub(crate) struct Machine {
    pub(crate) disk: MemDisk,
    pub(crate) engine: MemEngine,
    skew: Skew,
}

/// Who is there, where, and who was asked to vote.
struct Seats {
    /// Nodes that are part of the cluster, up or not: their disks exist.
    present: BTreeSet<NodeId>,
    /// Nodes that have not been there yet.
    to_come: BTreeSet<NodeId>,
    /// The machine that a node's disk is in, by the node that began there; its own if it is not named.
    moved: BTreeMap<NodeId, NodeId>,
    /// What operators wished for.
    wishes: Vec<Wish>,
    /// An operator is to give one node's place to another one; which, follows from the number.
    order: Option<u64>,
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
    seats: Mutex<Seats>,
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
        let there = options.nodes + options.spares();
        let all = there + if options.rate(Fault::Wipe) > 0 { WIPES_MAX } else { 0 };
        let seats = Seats {
            present: (1..=there).map(NodeId).collect(),
            to_come: (there + 1..=all).map(NodeId).collect(),
            moved: BTreeMap::new(),
            wishes: Vec::new(),
            order: None,
        };
        World {
            machines: (1..=all).map(machine).collect(),
            seats: Mutex::new(seats),
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

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().expect("one thread")
    }

    /// The nodes that are part of the cluster, up or not.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.seats().present.iter().copied().collect()
    }

    /// Is this node part of the cluster?
    pub(crate) fn is_present(&self, node: NodeId) -> bool {
        self.seats().present.contains(&node)
    }

    /// The node that does what one node has to do for all.
    pub(crate) fn first(&self) -> NodeId {
        *self.seats().present.first().expect("a cluster has nodes")
    }

    /// The nodes that hold the replicas when the cluster begins.
    pub(crate) fn founders(&self) -> Vec<NodeId> {
        (1..=if self.options.nodes < 3 { 1 } else { 3 }).map(NodeId).collect()
    }

    /// A node's disk is gone for good. Says who comes in its place; `None`: nobody can, and nothing is gone.
    pub(crate) fn lose(&self, node: NodeId) -> Option<NodeId> {
        let seats = &mut *self.seats();
        let new = seats.to_come.pop_first()?;
        seats.present.remove(&node);
        seats.present.insert(new);
        // Nobody gets to voters of whom one is gone: it does not answer.
        seats.wishes.retain(|wish| !wish.voters.contains(&node));
        Some(new)
    }

    fn machine_of(&self, node: NodeId) -> NodeId {
        *self.seats().moved.get(&node).unwrap_or(&node)
    }

    /// Puts the disks of two nodes into each other's machines.
    pub(crate) fn swap(&self, a: NodeId, b: NodeId) {
        let (of_a, of_b) = (self.machine_of(a), self.machine_of(b));
        self.seats().moved.extend([(a, of_b), (b, of_a)]);
    }

    /// What a node's clock does: that of the machine which its disk is in.
    pub(crate) fn skew(&self, node: NodeId) -> &Skew {
        &self.machines[&self.machine_of(node)].skew
    }

    /// Where a node is reached: at the machine which its disk is in.
    pub(crate) fn address(&self, node: NodeId) -> String {
        format!("machine{}:7433", self.machine_of(node))
    }

    /// All clocks are right from now on.
    pub(crate) fn put_clocks_right(&self) {
        self.machines.values().for_each(|machine| machine.skew.put_right());
    }

    /// An operator wishes for these voters. Of no account when one of them is gone.
    pub(crate) fn wished(&self, voters: Vec<NodeId>) {
        let now = Duration::from_micros(self.now_us());
        let Seats { wishes, present, .. } = &mut *self.seats();
        if !voters.iter().all(|n| present.contains(n)) {
            return;
        }
        let last = wishes.pop();
        wishes.retain(|wish| wish.at + WISHED_MAX > now);
        wishes.extend(last);
        wishes.push(Wish { at: now, voters, is_taken: false });
    }

    /// What became of the last wish for these voters: it is written down; or it certainly is not, and counts for nothing.
    pub(crate) fn wish_ended(&self, voters: &[NodeId], is_taken: bool) {
        let wishes = &mut self.seats().wishes;
        let Some(at) = wishes.iter().rposition(|wish| wish.voters == voters) else { return };
        match is_taken {
            true => wishes[at].is_taken = true,
            false => _ = wishes.remove(at),
        }
    }

    /// Every shard has these voters. If that was wished for last, and written down, what was wished for before counts no more.
    pub(crate) fn wish_came_true(&self, voters: &[NodeId]) {
        let wishes = &mut self.seats().wishes;
        if wishes.last().is_some_and(|wish| wish.is_taken && wish.voters == voters) {
            wishes.drain(..wishes.len() - 1);
        }
    }

    /// Voters that shards may be on their way to.
    pub(crate) fn wishes(&self) -> Vec<Vec<NodeId>> {
        self.seats().wishes.iter().map(|wish| wish.voters.clone()).collect()
    }

    /// Asks an operator to give a node's place to another one.
    pub(crate) fn order(&self, number: u64) {
        self.seats().order = Some(number);
    }

    /// What an operator is asked for; it is asked once.
    pub(crate) fn take_order(&self) -> Option<u64> {
        self.seats().order.take()
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
