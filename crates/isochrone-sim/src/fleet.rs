//! The nodes of a run: which are up, and a step of virtual time for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{LogIndex, NodeId, ShardId};
use isochrone_env::SplitMix64;
use isochrone_env::fake;

use crate::life::Life;
use crate::options::Fault;
use crate::replicas::{Replicas, is_majority};
use crate::rot::{self, Rotten};
use crate::world::{Found, World};
use crate::{STEP, panics};

/// A node stays down for at most this long after a crash.
const DOWN_MS_MAX: u64 = 3_000;

/// A process whose disk has failed is ended by somebody after at most this.
const NOTICED_MS_MAX: u64 = 2_000;
/// Entries by which replicas may differ and still count as level.
const LEVEL_MAX: LogIndex = 20;
/// With all nodes up, a node whose log is not in doubt any more counts as having caught up after this at the latest.
const HURT_MAX: Duration = Duration::from_secs(20);
/// How disks fail without the power going.
const FAILURES: &[(Fault, fake::Fault)] = &[
    (Fault::Eio, fake::Fault::Eio),
    (Fault::Enospc, fake::Fault::Enospc),
    (Fault::SyncFails, fake::Fault::SyncFails),
];

/// A node's place in the world.
pub(crate) enum Place {
    /// Runs; or stands still until some moment.
    Up(Box<Life>, Option<Duration>),
    /// Is down, until some moment or for good.
    Down(Option<Duration>),
}

/// A node that has to catch up.
struct Hurt {
    node: NodeId,
    /// What all logs held together, each when its node was up for the first time since; which these were; and when the last
    /// of them was seen.
    target: BTreeMap<ShardId, LogIndex>,
    seen: BTreeSet<NodeId>,
    since: Option<Duration>,
}

/// See the module.
pub(crate) struct Fleet {
    pub(crate) world: Arc<World>,
    pub(crate) now: Duration,
    places: BTreeMap<NodeId, Place>,
    lives: u64,
    power: SplitMix64,
    /// Where and when disks fail, each kind by itself.
    failures: Vec<(Fault, fake::Fault, SplitMix64)>,
    /// Nodes whose disk has failed, and when somebody ends their processes.
    failed: BTreeMap<NodeId, Duration>,
    supervisor: SplitMix64,
    /// Nodes that are down, and whose logs are damaged before they start.
    rotting: BTreeMap<NodeId, Fault>,
    rot: SplitMix64,
    replicas: Replicas,
    /// The node whose log has lost something, until it has caught up.
    hurt: Option<Hurt>,
    /// The node whose disk is gone, until others have its place in every shard.
    vacant: Option<NodeId>,
    pub(crate) crashes: u64,
}

impl Fleet {
    /// Every node starts with the first step.
    pub(crate) fn new(world: &Arc<World>) -> Fleet {
        Fleet {
            world: world.clone(),
            now: Duration::ZERO,
            places: world.nodes().into_iter().map(|n| (n, Place::Down(Some(Duration::ZERO)))).collect(),
            lives: 0,
            power: SplitMix64::split(world.options.seed, "power"),
            failures: FAILURES
                .iter()
                .filter(|(kind, _)| world.options.rate(*kind) > 0)
                .map(|(kind, fault)| {
                    (*kind, *fault, SplitMix64::split(world.options.seed, &format!("disk {}", kind.name())))
                })
                .collect(),
            failed: BTreeMap::new(),
            supervisor: SplitMix64::split(world.options.seed, "supervisor"),
            rotting: BTreeMap::new(),
            rot: SplitMix64::split(world.options.seed, "rot"),
            replicas: Replicas::default(),
            hurt: None,
            vacant: None,
            crashes: 0,
        }
    }

    /// One step of every node, after what is due has been delivered. Says which processes began.
    pub(crate) fn step(&mut self) -> Result<Vec<NodeId>, Found> {
        let mut begun = Vec::new();
        self.now += STEP;
        self.world.set_now(self.now);
        self.world.net.deliver(self.now);
        self.end_failed();
        self.look_after_hurt();
        let nodes: Vec<NodeId> = self.places.keys().copied().collect();
        for node in nodes {
            let place = self.places.get_mut(&node).expect("every node has a place");
            match place {
                Place::Up(_, Some(until)) if *until > self.now => {}
                Place::Up(life, pause) => {
                    *pause = None;
                    let found = life.step(self.now);
                    let panicked = panics::take();
                    if self.world.machines[&node].disk.is_dead() {
                        // Whatever else a dying node reports is not a finding.
                        self.world.fault("power cut", &[u64::from(node.0)]);
                        self.end(node, true);
                    } else if self.has_failed(node) {
                        // It may refuse to go on, in whatever way; what it says of anything else counts.
                        if let Err(found) = found
                            && found.id != "SIM4"
                        {
                            return Err(found);
                        }
                    } else {
                        found?;
                        if let Some(message) = panicked {
                            return Err(Found::new("SIM7", format!("node {node}: {message}")));
                        }
                    }
                }
                Place::Down(Some(until)) if *until <= self.now => {
                    self.begin(node)?;
                    begun.push(node);
                }
                Place::Down(_) => {}
            }
        }
        Ok(begun)
    }

    fn begin(&mut self, node: NodeId) -> Result<(), Found> {
        self.lives += 1;
        self.damage(node)?;
        self.arm(node);
        let machine = &self.world.machines[&node];
        match Life::begin(&self.world, node, self.lives, self.now) {
            Ok(life) => {
                self.world.note("start", &[u64::from(node.0), self.lives]);
                self.places.insert(node, Place::Up(Box::new(life), None));
                Ok(())
            }
            // The power went before the node was up.
            Err(_) if machine.disk.is_dead() => {
                let _of_a_dying_node = panics::take();
                machine.disk.crash(&self.power);
                machine.engine.crash();
                Ok(())
            }
            // The disk failed before the node was up; somebody tries again.
            Err(_) if self.has_failed(node) => {
                let _of_a_failed_start = panics::take();
                let machine = &self.world.machines[&node];
                machine.engine.crash();
                machine.disk.heal();
                let again = self.failed.remove(&node).unwrap_or(self.now);
                self.places.insert(node, Place::Down(Some(again)));
                Ok(())
            }
            Err(found) => Err(found),
        }
    }

    /// Takes the power from a node, and lets its log rot while it is down. Of several nodes only one at a time.
    pub(crate) fn rot(&mut self, node: NodeId, fault: Fault) {
        if self.is_complete() && self.rotting.is_empty() && self.replicas.has_some(node) {
            self.end(node, true);
            self.rotting.insert(node, fault);
        }
    }

    /// Takes a node's disk for good, and lets another node come in its place, if everybody else is whole.
    pub(crate) fn wipe(&mut self, node: NodeId) {
        let world = self.world.clone();
        if !self.is_complete() || !self.rotting.is_empty() || !self.others_are_whole(node) {
            return;
        }
        let Some(new) = world.lose(node) else { return };
        world.fault("wipe", &[u64::from(node.0), u64::from(new.0)]);
        self.end(node, true);
        self.places.insert(node, Place::Down(None));
        self.replicas.forget(node);
        self.vacant = Some(node);
        // What it has acknowledged, one other node may be the only one to have.
        world.nodes().iter().for_each(|other| world.machines[other].disk.disarm());
        let down = Duration::from_millis(1 + self.power.below(DOWN_MS_MAX));
        self.places.insert(new, Place::Down(Some(self.now + down)));
    }

    /// Takes the power from two nodes, and starts each disk in the other's machine.
    pub(crate) fn swap(&mut self, a: NodeId, b: NodeId) {
        if self.is_complete() && a != b {
            self.world.fault("swap", &[u64::from(a.0), u64::from(b.0)]);
            self.end(a, true);
            self.end(b, true);
            self.world.swap(a, b);
        }
    }

    /// Is nobody's log or disk lost, as far as is known?
    fn is_complete(&self) -> bool {
        self.hurt.is_none() && self.vacant.is_none()
    }

    /// What was to happen to a log while its node was down.
    fn damage(&mut self, node: NodeId) -> Result<(), Found> {
        let Some(fault) = self.rotting.remove(&node) else { return Ok(()) };
        // Somebody else may have lost something meanwhile, and nothing happens when the trouble is over.
        if !self.world.in_trouble() || !self.is_complete() {
            return Ok(());
        }
        let world = self.world.clone();
        let alone = world.founders().len() < 3;
        if !alone && !self.others_are_whole(node) {
            return Ok(());
        }
        let disk = &world.machines[&node].disk;
        let came = rot::strike(disk, &world.options.tuning, fault, &self.rot, alone)?;
        let what = match came {
            Rotten::Nothing => 0,
            Rotten::Refused => 1,
            Rotten::Cut => 2,
        };
        world.fault(fault.name(), &[u64::from(node.0), what]);
        if came == Rotten::Cut {
            self.hurt = Some(Hurt { node, target: BTreeMap::new(), seen: BTreeSet::new(), since: None });
            // What it has lost, one other node may be the only one to have.
            world.machines.values().for_each(|machine| machine.disk.disarm());
        }
        Ok(())
    }

    /// Are all others up, and in every shard whose members change no more, level with each other? Otherwise what this one
    /// holds may be the last good copy of something.
    fn others_are_whole(&self, node: NodeId) -> bool {
        let mut applied: BTreeMap<ShardId, BTreeMap<NodeId, LogIndex>> = BTreeMap::new();
        for other in self.world.nodes().into_iter().filter(|n| *n != node) {
            let Some(life) = self.life(other).filter(|life| life.is_whole()) else { return false };
            // Whoever ends a process whose disk has failed may do so with the machine's power, and cut its log.
            if self.failed.contains_key(&other) || self.world.machines[&other].disk.failed().is_some() {
                return false;
            }
            for meta in life.node.local.shards().list() {
                applied.entry(meta.shard).or_default().insert(other, meta.applied);
            }
        }
        self.replicas.groups().into_iter().all(|(shard, members)| {
            let others = members.voters.iter().filter(|n| **n != node);
            let of: Option<Vec<_>> = others.map(|n| applied.get(&shard)?.get(n)).collect();
            let near = |of: Vec<&LogIndex>| {
                of.iter().max().zip(of.iter().min()).is_none_or(|(a, b)| **a - **b <= LEVEL_MAX)
            };
            self.replicas.is_settled(shard, members, Some(node)) && of.is_some_and(near)
        })
    }

    /// Is there a node that has lost something, and has not yet caught up?
    pub(crate) fn is_hurt(&self) -> bool {
        self.hurt.is_some()
    }

    /// Once the node has caught up with what all held together, trouble goes on.
    fn look_after_hurt(&mut self) {
        let Some(mut hurt) = self.hurt.take() else { return };
        self.see_what_is_left(&mut hurt);
        let hurt = self.hurt.insert(hurt);
        let (target, Some(since)) = (&hurt.target, hurt.since) else { return };
        let Some(Place::Up(life, None)) = self.places.get(&hurt.node) else { return };
        let applied: BTreeMap<ShardId, LogIndex> =
            life.node.local.shards().list().into_iter().map(|m| (m.shard, m.applied)).collect();
        let groups = self.replicas.groups();
        let level = target.iter().all(|(shard, upto)| {
            let takes_part = groups.get(shard).is_some_and(|members| members.contains(hurt.node));
            applied.get(shard).map_or(!takes_part, |at| at >= upto)
        });
        // An entry that was in one log only, and was never committed, may have no successor for a long time.
        if life.is_whole() && (level || self.now > since + HURT_MAX) {
            self.world.note("caught up", &[u64::from(hurt.node.0), u64::from(level)]);
            self.hurt = None;
            self.world.nodes().into_iter().for_each(|node| self.arm(node));
        }
    }

    /// What the logs hold of nodes that are up for the first time since one of them was cut.
    fn see_what_is_left(&self, hurt: &mut Hurt) {
        let nodes = self.world.nodes();
        for life in nodes.iter().filter_map(|n| self.life(*n)) {
            if !hurt.seen.insert(life.node.id) {
                continue;
            }
            for meta in life.node.local.shards().list() {
                let last = life.node.log.last_index(meta.shard).unwrap_or_default();
                let highest = hurt.target.entry(meta.shard).or_default();
                *highest = last.max(*highest);
            }
            if nodes.iter().all(|n| hurt.seen.contains(n)) {
                hurt.since = Some(self.now);
            }
        }
    }

    /// Once others have a lost node's place everywhere, disks fail again.
    fn look_after_vacancy(&mut self) {
        let Some(gone) = self.vacant else { return };
        if self.replicas.are_complete_without(gone) {
            self.world.note("place filled", &[u64::from(gone.0)]);
            self.vacant = None;
            self.world.nodes().into_iter().for_each(|node| self.arm(node));
        }
    }

    /// Is a lost node's place still to be filled?
    pub(crate) fn is_vacant(&self) -> bool {
        self.vacant.is_some()
    }

    /// Nothing is in anybody's way any more.
    pub(crate) fn calm(&mut self) {
        self.world.net.heal();
        self.world.put_clocks_right();
        for place in self.places.values_mut() {
            if let Place::Up(_, pause) = place {
                *pause = None;
            }
        }
    }

    /// Has a node's disk failed? Takes note of it.
    fn has_failed(&mut self, node: NodeId) -> bool {
        if self.failed.contains_key(&node) {
            return true;
        }
        let Some(fault) = self.world.machines[&node].disk.failed() else { return false };
        let name = FAILURES.iter().find(|(_, f)| *f == fault).map_or("?", |(kind, _)| kind.name());
        self.world.fault(name, &[u64::from(node.0)]);
        let noticed = Duration::from_millis(1 + self.supervisor.below(NOTICED_MS_MAX));
        self.failed.insert(node, self.now + noticed);
        true
    }

    /// Ends processes whose disk has failed: by a kill, which leaves what a failed sync marked clean in the page cache, or
    /// by a restart of the machine.
    fn end_failed(&mut self) {
        let due: Vec<NodeId> =
            self.failed.iter().filter(|(_, at)| **at <= self.now).map(|(node, _)| *node).collect();
        for node in due {
            let power = self.supervisor.below(2) == 0;
            self.world.note("ended", &[u64::from(node.0), u64::from(power)]);
            self.end(node, power);
        }
    }

    /// Draws the I/Os at which a node loses power, or its disk fails.
    pub(crate) fn arm(&mut self, node: NodeId) {
        if !self.world.in_trouble() || !self.is_complete() {
            return;
        }
        let disk = &self.world.machines[&node].disk;
        let rate = self.world.options.rate(Fault::Power);
        if rate > 0 {
            disk.fail_at(disk.operations() + 1 + self.power.below(3 * rate), fake::Fault::PowerCut);
        }
        for (kind, fault, random) in &self.failures {
            let rate = self.world.options.rate(*kind);
            disk.fail_at(disk.operations() + 1 + random.below(3 * rate), *fault);
        }
    }

    /// Ends a node's process, if there is one. `power`: of the whole machine. It comes back after a while.
    pub(crate) fn end(&mut self, node: NodeId, power: bool) {
        let machine = &self.world.machines[&node];
        let place = self.places.get_mut(&node).expect("every node has a place");
        if let Place::Up(..) = place {
            self.crashes += 1;
            let down = Duration::from_millis(1 + self.power.below(DOWN_MS_MAX));
            // First: what its tasks still say when they are dropped is heard by nobody.
            self.world.net.leave(node);
            *place = Place::Down(Some(self.now + down));
            machine.engine.crash();
        }
        if self.failed.remove(&node).is_some() {
            machine.disk.heal();
        }
        if power {
            machine.disk.crash(&self.power);
        }
    }

    /// Ends a node, and leaves it down.
    pub(crate) fn end_for_good(&mut self, node: NodeId) {
        self.end(node, true);
        self.places.insert(node, Place::Down(None));
    }

    /// Nothing fails any more on this node; if it is down, it starts now.
    pub(crate) fn heal(&mut self, node: NodeId) {
        if self.has_failed(node) {
            self.end(node, false);
        }
        self.world.machines[&node].disk.heal();
        let place = self.places.get_mut(&node).expect("every node has a place");
        match place {
            Place::Down(until) => *until = Some(self.now),
            Place::Up(_, pause) => *pause = None,
        }
    }

    /// Lets a node stand still.
    pub(crate) fn pause(&mut self, node: NodeId, long: Duration) {
        if let Some(Place::Up(_, pause)) = self.places.get_mut(&node) {
            *pause = Some(self.now + long);
        }
    }

    /// The nodes that run and do not stand still.
    pub(crate) fn moving(&self) -> impl Iterator<Item = &Life> {
        self.places.values().filter_map(|place| match place {
            Place::Up(life, None) => Some(&**life),
            _ => None,
        })
    }

    /// A node's process, if it runs and does not stand still.
    pub(crate) fn life(&self, node: NodeId) -> Option<&Life> {
        match self.places.get(&node) {
            Some(Place::Up(life, None)) => Some(life),
            _ => None,
        }
    }

    /// Takes note of which replicas are where.
    pub(crate) fn note_replicas(&mut self) {
        for place in self.places.values() {
            if let Place::Up(life, None) = place {
                self.replicas.see(&life.node);
            }
        }
        self.look_after_vacancy();
        self.look_after_wishes();
    }

    /// What was wished for before counts no more once every shard has the voters that were wished for last.
    fn look_after_wishes(&mut self) {
        let wishes = self.world.wishes();
        if let [_, .., last] = &wishes[..]
            && self.replicas.have_all(last)
        {
            self.world.wish_came_true(last);
        }
    }

    /// Everybody who votes, or may soon.
    pub(crate) fn voting(&self) -> BTreeSet<NodeId> {
        let mut all = self.replicas.voting();
        all.extend(self.world.wishes().into_iter().flatten());
        if all.is_empty() {
            all.extend(self.world.founders());
        }
        all.retain(|n| self.world.is_present(*n));
        all
    }

    /// Are these a majority of every shard that anybody has, with replicas as far as was seen, whatever change of its
    /// members may be under way?
    pub(crate) fn are_a_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let wishes = self.world.wishes();
        self.replicas.have_a_majority(nodes) && wishes.iter().all(|wish| is_majority(nodes, wish))
    }

    /// Where all nodes stand, for a report.
    pub(crate) fn stages(&self) -> String {
        let stage = |(node, place): (&NodeId, &Place)| match place {
            Place::Up(life, _) => format!("node {node}: {}", life.stage()),
            Place::Down(_) if self.world.is_present(*node) => format!("node {node}: down"),
            Place::Down(_) => format!("node {node}: gone"),
        };
        let all: Vec<_> = self.places.iter().map(stage).collect();
        format!("wishes {:?}\n  {}", self.world.wishes(), all.join("\n  "))
    }

    /// Are all of these up, and say so of themselves?
    pub(crate) fn all(&self, nodes: &[NodeId], is: impl Fn(&Life) -> bool) -> bool {
        nodes.iter().all(|n| matches!(&self.places[n], Place::Up(life, None) if is(life)))
    }
}
