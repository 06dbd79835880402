//! Whole clusters under one seed: virtual time, simulated disks, networks and clocks, trouble, workloads, checkers.
//!
//! The nodes are those that ship ([`isochrone_server::Node`]): shards, coordinator, routing, consensus core, log and SQL
//! sessions are the same code, run as tasks of one thread. Each life of a node has a paused tokio runtime of its own, whose
//! clock jumps to the next timer whenever everything waits; dropping it is the kill. The world runs the nodes one after the
//! other, a step of [`STEP`] each, and delivers in between what they sent (`net`). The disk under a log is
//! [`isochrone_env::fake::MemDisk`], which loses unsynced writes in a power cut; rows live in
//! [`isochrone_storage::MemEngine`], which falls back to its last flush.
//!
//! A run has four phases. *Set-up*: tables are made. *Chaos*: load and trouble, with the checks below all the time. *Core*: no new load; a majority is
//! healed and the others stay down; everything that was begun must end, and new transactions succeed, within 30 virtual
//! seconds. *Last*: every node starts once more from what is durable, and everything is looked at.
//!
//! Checks, beside T1 to T13 of the commit protocol and CH1 to CH7 of [`isochrone_check`]
//!   SIM0   Nobody sees an error that cannot happen.
//!   SIM1   At every snapshot the total of all balances is what it was (atomicity; T1).
//!   SIM2   At the end every transfer that was acknowledged is in the ledger (T2), and every balance is the sum of the
//!          ledger's rows: nothing by half, nothing twice (T8).
//!   SIM3   A transfer that was reported as aborted is not in the ledger (T3).
//!   SIM4   Every restart comes up by itself.
//!   SIM5   The same seed gives the same trace.
//!   SIM6   When faults stop, all replicas of a shard come to the same versions and records, where the group's members are and
//!          nowhere else; all groups have the same members, and no change of them stays under way.
//!   SIM7   No assertion of the product fires.
//!   SIM8   With a majority whole, what was begun ends within 30 virtual seconds and leaves no prepare and no lock (T11),
//!          and new transactions on every shard succeed.
//!   SIM10  A shard has one leader in a term (election safety).
//!   SIM11  A shard has one serving leaseholder at any true time, while clocks keep their bound.
//!   SIM12  Applied entries are the same on all replicas (log matching).
//!   SIM13  A leader that serves has applied what anybody applied in earlier terms (leader completeness).
//!   SIM14  Replicas that applied the same entries have the same newest versions and the same records.
//!   SIM15  Every key belongs to exactly one shard.
//!   SIM16  The timestamps of a process go up.
//!   SIM17  A damaged log is found damaged, or cut and said to be, when it is opened.
//!   SIM20  No entry writes at or below what a replica before it was told to be closed (T7).
//!   SIM18  What a user's workload calls an invariant holds at every snapshot.
//!   SIM19  A node whose clock is beyond its bound, while most clocks are not and it can measure them, is out of service
//!          within 5 virtual seconds, and nobody is at the end.
//!   SIM21  No queue or table of a node holds more than its bound.
//!   SIM22  What a node keeps in memory beside rows, and beside queues with a bound in bytes (SIM21), stays small, however long
//!          the run.
//!
//! Beside these runs: [`script`] kills a node at a chosen step of one transaction, and changes leaders under clients of single
//! keys.
#![forbid(unsafe_code)]

mod bounds;
pub mod bugs;
mod checks;
pub mod command;
mod fleet;
mod life;
mod nemesis;
mod net;
mod operator;
mod options;
mod panics;
mod replicas;
mod rot;
pub mod script;
pub mod shrink;
mod skew;
mod workload;
mod world;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_env::SplitMix64;
use isochrone_server::Node;

use bounds::Bounds;
use checks::Checks;
use fleet::Fleet;
use nemesis::Nemesis;
pub use options::{Fault, Level, Options, Tuning, Wanted, Workload};
pub use world::{Found, Sink};
use world::{Phase, World};

/// The cluster's id.
pub(crate) const CLUSTER: u128 = 0x150c;
/// How far a node runs before the next one's turn; messages take at least this long.
pub(crate) const STEP: Duration = Duration::from_millis(1);
/// Virtual time within which everything that was begun must end, once a majority is whole (T11).
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(30);
/// The load begins after this at the latest; with trouble from the beginning tables may not be there by then.
const SET_UP_MAX: Duration = Duration::from_secs(30);
/// Virtual time that the last checks may take.
const LAST_MAX: Duration = Duration::from_secs(120);
/// How often the state of all nodes is looked at, how often closely, and how often rows are compared.
const LOOK_EVERY_MS: u128 = 20;
const LOOK_CLOSELY_EVERY_MS: u128 = 500;
const LOOK_AT_CONTENTS_EVERY_MS: u128 = 2_000;

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Virtual time that passed.
    pub simulated: Duration,
    /// Operations of clients.
    pub ops: u64,
    /// Faults injected at their own times, power cuts included; messages lost or late are not counted.
    pub faults: u64,
    /// Hash of everything that happened, in order.
    pub trace: u64,
    /// Transactions acknowledged.
    pub committed: u64,
    /// Transactions reported as aborted.
    pub aborted: u64,
    /// Transactions whose outcome was reported as unknown.
    pub unknown: u64,
    /// Ends of processes, by power cut or kill.
    pub crashes: u64,
    /// Times that nodes were cut off from each other.
    pub partitions: u64,
    /// Snapshots of everything that added up.
    pub audits: u64,
    /// Operations on the simulated disks.
    pub disk_operations: u64,
}

/// A check that failed, and what led to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Virtual time since the run began.
    pub at: Duration,
    /// The invariant, and what was seen.
    pub found: Found,
    /// The last events before it, oldest first.
    pub recent: Vec<String>,
    /// As in [`Report`], up to here.
    pub ops: u64,
    /// As in [`Report`], up to here.
    pub faults: u64,
    /// As in [`Report`], up to here.
    pub trace: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, at {:?}: {}: {}", self.seed, self.at, self.found.id, self.found.what)
    }
}

struct Run {
    fleet: Fleet,
    nemesis: Nemesis,
    checks: Checks,
    bounds: Bounds,
    choice: SplitMix64,
    /// Trouble does not begin any more.
    is_over: bool,
}

impl Run {
    /// One step of everything, and a look at it.
    fn step(&mut self) -> Result<(), Found> {
        let world = self.fleet.world.clone();
        if world.in_trouble() && !self.is_over {
            self.nemesis.act(&mut self.fleet);
        }
        for node in self.fleet.step()? {
            self.checks.forget_process(node);
        }
        let ms = self.fleet.now.as_millis();
        if ms.is_multiple_of(LOOK_EVERY_MS) {
            let moving: Vec<_> =
                self.fleet.moving().map(|life| (life.node.clone(), life.monotonic_ns())).collect();
            self.checks.look(&moving)?;
            self.bounds.look(&self.fleet)?;
            self.fleet.note_replicas();
            let nodes = self.nodes();
            if ms.is_multiple_of(LOOK_CLOSELY_EVERY_MS) {
                let whole: Vec<_> = self
                    .fleet
                    .moving()
                    .filter(|life| life.is_whole())
                    .map(|life| life.node.clone())
                    .collect();
                self.checks.look_closely(&nodes, &whole)?;
            }
            if ms.is_multiple_of(LOOK_AT_CONTENTS_EVERY_MS) {
                self.checks.look_at_contents(&nodes)?;
            }
        }
        Ok(())
    }

    /// Running nodes, which do not stand still.
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.fleet.moving().map(|life| life.node.clone()).collect()
    }

    fn chaos(&mut self) -> Result<(), Found> {
        let world = self.fleet.world.clone();
        while !world.books.are_set_up() && self.fleet.now < SET_UP_MAX {
            self.step()?;
        }
        world.enter(Phase::Chaos);
        for node in world.nodes() {
            self.fleet.arm(node);
        }
        let until = self.fleet.now + Duration::from_secs(world.options.seconds);
        while self.fleet.now < until {
            self.step()?;
        }
        self.is_over = true;
        if self.fleet.is_hurt() || self.fleet.is_vacant() {
            self.fleet.calm();
        }
        // A node that has lost something is one copy less: the core may not be without what only the others have.
        while self.fleet.is_hurt() || self.fleet.is_vacant() {
            self.step()?;
            if self.fleet.now > until + LAST_MAX {
                let what = if self.fleet.is_hurt() {
                    "a node whose log was cut"
                } else {
                    "who takes a lost node's place"
                };
                return Err(Found::new("SIM4", format!("{what} does not catch up; {}", self.fleet.stages())));
            }
        }
        Ok(())
    }

    /// A majority is healed, the others are down.
    fn core(&mut self) -> Result<(), Found> {
        let world = self.fleet.world.clone();
        let mut core = self.fleet.voting();
        // A replica that waits to be filled is no part of a majority. If two may be such, nobody is left out.
        let mut left: Vec<NodeId> = core.iter().copied().collect();
        while !left.is_empty() {
            let out = left.swap_remove(self.choice.below(left.len() as u64) as usize);
            core.remove(&out);
            if !self.fleet.are_a_majority(&core) {
                core.insert(out);
            }
        }
        world.enter(Phase::Core);
        world.net.heal();
        world.put_clocks_right();
        self.end_doubts(&core)?;
        let core: Vec<NodeId> = core.into_iter().collect();
        for node in world.nodes() {
            if core.contains(&node) {
                self.fleet.heal(node);
            } else {
                self.fleet.end_for_good(node);
            }
        }
        let until = self.fleet.now + SETTLE_MAX;
        while !self.fleet.all(&core, life::Life::is_settled) {
            self.step()?;
            if self.fleet.now > until {
                return Err(Found::new(
                    "SIM8",
                    format!("no end after {SETTLE_MAX:?}; {}", self.fleet.stages()),
                ));
            }
        }
        Ok(())
    }

    /// While a log is in doubt, or may be when its node starts, elections may need every voter (C9 of the crate consensus):
    /// nobody is left out before that is over.
    fn end_doubts(&mut self, core: &BTreeSet<NodeId>) -> Result<(), Found> {
        core.iter().filter_map(|n| self.fleet.life(*n)).for_each(life::Life::look_again);
        let looked = self.fleet.now + life::DOUBT_EVERY + STEP;
        while self.fleet.now < looked {
            self.step()?;
        }
        // A split may have committed without one of them, which then got the left half in a snapshot: it has no vote in
        // the right half before somebody has filled it.
        let all: Vec<NodeId> = core.iter().copied().collect();
        let ready = |fleet: &Fleet| fleet.all(&all, life::Life::is_whole) && fleet.are_a_majority(core);
        if ready(&self.fleet) {
            return Ok(());
        }
        for node in self.fleet.world.nodes() {
            self.fleet.heal(node);
        }
        let until = self.fleet.now + SETTLE_MAX;
        while !ready(&self.fleet) {
            self.step()?;
            if self.fleet.now > until {
                let what = format!("with all nodes up a replica is in doubt or missing after {SETTLE_MAX:?}");
                return Err(Found::new("SIM8", format!("{what}; {}", self.fleet.stages())));
            }
        }
        Ok(())
    }

    /// Every node starts once more from what is durable.
    fn last(&mut self) -> Result<(), Found> {
        let world = self.fleet.world.clone();
        world.enter(Phase::Last);
        let all = world.nodes();
        for node in &all {
            self.fleet.end(*node, true);
            self.fleet.heal(*node);
        }
        let until = self.fleet.now + LAST_MAX;
        while !self.fleet.all(&all, life::Life::is_checked) {
            self.step()?;
            if self.fleet.now > until {
                return Err(Found::new("SIM4", "the last checks do not end"));
            }
        }
        while !checks::level(&self.nodes()) {
            self.step()?;
            if self.fleet.now > until {
                return Err(Found::new(
                    "SIM6",
                    format!("some replicas stay behind; {}", self.fleet.stages()),
                ));
            }
        }
        bounds::at_the_end(&self.fleet)?;
        checks::at_the_end(&self.nodes())
    }
}

/// Runs one simulation. `Err`: a check failed.
pub fn run(options: Options) -> Result<Report, Box<Failure>> {
    run_with(options, None)
}

/// Like [`run`]; every event goes to `sink` as a line of text.
pub fn run_with(options: Options, sink: Option<Sink>) -> Result<Report, Box<Failure>> {
    let _watch = panics::watch();
    let world = Arc::new(World::new(options, sink));
    let mut run = Run {
        fleet: Fleet::new(&world),
        nemesis: Nemesis::new(&world.options),
        checks: Checks::default(),
        bounds: Bounds::default(),
        choice: SplitMix64::split(world.options.seed, "choice"),
        is_over: false,
    };
    let ended = run.chaos().and_then(|()| run.core()).and_then(|()| run.last());
    let seed = world.options.seed;
    if let Err(found) = ended {
        return Err(Box::new(Failure {
            seed,
            at: run.fleet.now,
            found,
            recent: world.recent(),
            ops: world.ops(),
            faults: world.faults(),
            trace: world.hash(),
        }));
    }
    let counts = world.books.counts();
    Ok(Report {
        seed,
        simulated: run.fleet.now,
        ops: world.ops(),
        faults: world.faults(),
        trace: world.hash(),
        committed: counts.committed,
        aborted: counts.aborted,
        unknown: counts.unknown,
        crashes: run.fleet.crashes,
        partitions: run.nemesis.partitions,
        audits: counts.audits,
        disk_operations: world.machines.values().map(|m| m.disk.operations()).sum(),
    })
}
