//! What a run is made of: drawn from the seed, or said one by one.
//!
//! Swarm testing (Groce et al., ISSTA 2012): each seed turns on some kinds of trouble and not others, at rates of its own,
//! and draws the constants of the product anew, so that runs differ in kind and not only in luck.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isochrone_env::SplitMix64;

use crate::workload::custom::Script;

/// A kind of trouble.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// A node loses power at one of its I/Os; what was not synced survives in any subset of sectors and names.
    Power,
    /// A node's process is killed; what it wrote stays in the page cache.
    Kill,
    /// A node's process stands still for a while, as under SIGSTOP, and goes on with all its timers late.
    Pause,
    /// A node's disk takes up to 50 ms for each sync.
    SlowDisk,
    /// A node's disk fails one I/O with EIO. Whoever runs the node ends its process, which has stopped by itself, and starts
    /// it again: the process, or the machine.
    Eio,
    /// A node's disk is full from some I/O on; there is space again after the restart.
    Enospc,
    /// A sync fails, and the pages count as clean although they are not on the disk.
    SyncFails,
    /// A node loses power, and bits of its log flip while it is down.
    Rot,
    /// The same, and a sector of its log holds what it held before.
    Stale,
    /// The same, and a sector of its log was written to another place of the file.
    Misdirected,
    /// A message is dropped, a call breaks.
    Drop,
    /// A one-way message arrives twice.
    Duplicate,
    /// A message takes up to half a second longer, and others overtake it.
    Delay,
    /// A one-way message arrives once more, seconds later.
    Replay,
    /// A call arrives twice, the second time up to seconds later, and perhaps at the next process of that node; or a lost one
    /// arrives late. Nobody hears the answer.
    CallAgain,
    /// One direction of one link holds everything back for a while, and lets it through at once.
    Clog,
    /// One direction of one link loses everything for a while.
    OneWay,
    /// Two nodes do not reach each other for a while, in a cluster that does.
    Partial,
    /// A node is cut off from all others for a while.
    Isolate,
    /// Clocks run fast or slow, inside their bound.
    Drift,
    /// A clock is set, forwards or back, inside its bound.
    ClockStep,
    /// A clock stands still for a while, inside its bound.
    ClockFreeze,
    /// A clock is set far beyond its bound, either way. What clients saw may then be old (CH5, CH6), and is not judged; nothing
    /// is lost and nothing is done by half all the same. Only where it is asked for by name.
    ClockBeyond,
    /// Leaders are moved.
    Transfer,
    /// Shards are split.
    Split,
    /// Rows are flushed and logs are truncated far more often than a server would.
    Flush,
    /// Old versions are collected far more often than a server would.
    Collect,
    /// Constants of the product are drawn anew.
    Tuning,
    /// A node's place among the voters is given to another one, which is there; often before the last such change is over.
    Replace,
    /// A node's disk is gone for good, and another node, new to the cluster, takes its place. Never that with the last good copy:
    /// only when everybody else is whole; and until every shard has moved no disk fails, and no power.
    Wipe,
    /// Two nodes lose power, and each disk starts again in the other's machine: with its clock, and at its address.
    Swap,
}

/// What the number of a fault counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rate {
    /// Messages in a thousand.
    PerMille,
    /// Milliseconds between two, on average.
    Every,
    /// Is on.
    On,
}

impl Fault {
    /// Every kind, with its name on the command line.
    pub const ALL: &[(Fault, &str)] = &[
        (Fault::Power, "power"),
        (Fault::Kill, "kill"),
        (Fault::Pause, "pause"),
        (Fault::SlowDisk, "slow-disk"),
        (Fault::Eio, "eio"),
        (Fault::Enospc, "enospc"),
        (Fault::SyncFails, "fsync-fails"),
        (Fault::Rot, "rot"),
        (Fault::Stale, "stale"),
        (Fault::Misdirected, "misdirected"),
        (Fault::Drop, "drop"),
        (Fault::Duplicate, "duplicate"),
        (Fault::Delay, "delay"),
        (Fault::Replay, "replay"),
        (Fault::CallAgain, "call-again"),
        (Fault::Clog, "clog"),
        (Fault::OneWay, "one-way"),
        (Fault::Partial, "partial"),
        (Fault::Isolate, "isolate"),
        (Fault::Drift, "drift"),
        (Fault::ClockStep, "clock-step"),
        (Fault::ClockFreeze, "clock-freeze"),
        (Fault::ClockBeyond, "clock-beyond"),
        (Fault::Transfer, "transfer"),
        (Fault::Split, "split"),
        (Fault::Flush, "flush"),
        (Fault::Collect, "collect"),
        (Fault::Tuning, "tuning"),
        (Fault::Replace, "replace"),
        (Fault::Wipe, "wipe"),
        (Fault::Swap, "swap"),
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Fault::ALL.iter().find(|(f, _)| *f == self).map_or("?", |(_, name)| name)
    }

    /// The kind of that name.
    pub fn find(name: &str) -> Option<Fault> {
        Fault::ALL.iter().find(|(_, n)| *n == name).map(|(f, _)| *f)
    }

    fn rate(self) -> Rate {
        match self {
            Fault::Drop | Fault::Duplicate | Fault::Delay | Fault::Replay | Fault::CallAgain => {
                Rate::PerMille
            }
            Fault::SlowDisk | Fault::Flush | Fault::Collect | Fault::Drift | Fault::Tuning => Rate::On,
            _ => Rate::Every,
        }
    }

    /// Does it need other nodes?
    fn of_a_cluster(self) -> bool {
        !matches!(
            self,
            Fault::Power
                | Fault::Kill
                | Fault::Pause
                | Fault::SlowDisk
                | Fault::Eio
                | Fault::Enospc
                | Fault::SyncFails
                | Fault::Rot
                | Fault::Stale
                | Fault::Misdirected
                | Fault::Split
                | Fault::Flush
                | Fault::Collect
                | Fault::Tuning
        )
    }

    fn draw(self, random: &SplitMix64) -> u64 {
        match self.rate() {
            // There are far fewer calls than messages.
            Rate::PerMille if self == Fault::CallAgain => 10 << random.below(5),
            Rate::PerMille => 1 + random.below(10),
            Rate::Every => 1_000 << random.below(5),
            Rate::On => 1,
        }
    }
}

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Workload {
    /// Money moves between accounts, with a ledger: through SQL sessions, and through key-value transactions.
    Bank,
    /// Lists are appended to and read, by SQL transactions of several statements.
    Append,
    /// Single rows are read, written and compared-and-set, by key-value transactions.
    Register,
}

impl Workload {
    /// Every one, with its name on the command line.
    pub const ALL: &[(Workload, &str)] =
        &[(Workload::Bank, "bank"), (Workload::Append, "append"), (Workload::Register, "register")];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Workload::ALL.iter().find(|(w, _)| *w == self).map_or("?", |(_, name)| name)
    }
}

/// The isolation level of the transactions that append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// The default.
    Serializable,
    /// The same, and in the order of real time (R24).
    External,
    /// Snapshot isolation.
    RepeatableRead,
    /// A snapshot for each statement.
    ReadCommitted,
}

impl Level {
    /// Every one, with its name on the command line.
    pub const ALL: &[(Level, &str)] = &[
        (Level::Serializable, "serializable"),
        (Level::External, "external"),
        (Level::RepeatableRead, "repeatable-read"),
        (Level::ReadCommitted, "read-committed"),
    ];

    /// As SQL says it.
    pub fn sql(self) -> &'static str {
        match self {
            Level::Serializable | Level::External => "SERIALIZABLE",
            Level::RepeatableRead => "REPEATABLE READ",
            Level::ReadCommitted => "READ COMMITTED",
        }
    }
}

/// The product's constants, as this run has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Most bytes of one batch of the log.
    pub batch_bytes_max: usize,
    /// Log batches written and not yet durable.
    pub batches_in_flight_max: usize,
    /// Entries kept for a follower that is not there; what is further behind gets a snapshot.
    pub keep_for_absent: u64,
    /// How far behind the clock shards forget how transactions ended (R20), in milliseconds.
    pub floor_lag_ms: u64,
    /// From a commit's beginning to when its prepares come too late (R11.2), in milliseconds.
    pub deadline_ms: u64,
    /// When a request is given up, in thousandths of that; below 1,000.
    pub answer_wait_permille: u32,
    /// A prepare older than this is suspected (R18), in milliseconds.
    pub recover_after_ms: u64,
    /// How far behind the clock closed timestamps follow, in milliseconds.
    pub closed_lag_ms: u64,
    /// Versions older than this are collected, in milliseconds.
    pub ttl_ms: u64,
    /// Proposals that may wait for the store loop.
    pub proposals_max: usize,
}

impl Tuning {
    /// As shipped, but for smaller segments: a run writes little.
    pub const USUAL: Tuning = Tuning {
        segment_bytes: 1 << 20,
        batch_bytes_max: 4 << 20,
        batches_in_flight_max: 8,
        keep_for_absent: 100_000,
        floor_lag_ms: 60_000,
        deadline_ms: 10_000,
        answer_wait_permille: 600,
        recover_after_ms: 1_000,
        closed_lag_ms: 700,
        ttl_ms: 5_000,
        proposals_max: isochrone_consensus::PROPOSALS_MAX,
    };

    fn draw(random: &SplitMix64) -> Tuning {
        let pick = |of: &[u64]| of[random.below(of.len() as u64) as usize];
        Tuning {
            segment_bytes: pick(&[8 << 10, 64 << 10, 1 << 20]),
            batch_bytes_max: pick(&[512, 4 << 10, 4 << 20]) as usize,
            batches_in_flight_max: pick(&[1, 2, 8]) as usize,
            keep_for_absent: pick(&[1, 50, 1_000, 100_000]),
            floor_lag_ms: pick(&[500, 2_000, 10_000, 60_000]),
            deadline_ms: pick(&[1_000, 3_000, 10_000]),
            answer_wait_permille: 600,
            recover_after_ms: pick(&[50, 1_000]),
            closed_lag_ms: pick(&[100, 700]),
            ttl_ms: pick(&[1_000, 5_000, 60_000]),
            proposals_max: pick(&[1, 8, 16_384]) as usize,
        }
    }

    /// As a node takes it.
    pub(crate) fn of_a_node(&self) -> isochrone_server::Tuning {
        let usual = isochrone_server::Tuning::default();
        let deadline = Duration::from_millis(self.deadline_ms);
        isochrone_server::Tuning {
            keep_for_absent: self.keep_for_absent,
            batches_in_flight_max: self.batches_in_flight_max,
            clock_error_max: usual.clock_error_max,
            shard: isochrone_shard::Config {
                floor_lag: Duration::from_millis(self.floor_lag_ms),
                recover_after: Duration::from_millis(self.recover_after_ms),
                closed_lag: Duration::from_millis(self.closed_lag_ms),
                ..usual.shard
            },
            txn: isochrone_txn::Config {
                deadline,
                answer_wait_max: deadline * self.answer_wait_permille / 1_000,
                ..usual.txn
            },
        }
    }
}

/// What a run is made of. Everything else follows from the seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Nodes: 1, or 3 and more, with three replicas of every shard, on the first three to begin with.
    pub nodes: u32,
    /// Virtual seconds under load.
    pub seconds: u64,
    /// What the clients do.
    pub workloads: BTreeSet<Workload>,
    /// What a user's clients do.
    pub custom: Option<Arc<Script>>,
    /// The level of the transactions that append.
    pub level: Level,
    /// Clients of each workload, per node.
    pub clients: u64,
    /// Longest pause of a client between two transactions, in microseconds.
    pub pause_us_max: u64,
    /// Accounts, and keys of other workloads in use at a time; spread over the shards.
    pub accounts: u64,
    /// Things go wrong from the beginning, also while tables are made.
    pub early: bool,
    /// What goes wrong, and how often: messages in a thousand, or milliseconds between two.
    pub faults: BTreeMap<Fault, u64>,
    /// The product's constants.
    pub tuning: Tuning,
}

impl Options {
    /// One node, money moving for 60 virtual seconds, nothing going wrong.
    pub fn quiet(seed: u64) -> Options {
        Options {
            seed,
            nodes: 1,
            seconds: 60,
            workloads: BTreeSet::from([Workload::Bank]),
            custom: None,
            level: Level::Serializable,
            clients: 2,
            pause_us_max: 5_000,
            accounts: 40,
            early: false,
            faults: BTreeMap::new(),
            tuning: Tuning::USUAL,
        }
    }

    /// One node that loses power over and over.
    pub fn one_node(seed: u64) -> Options {
        let faults = BTreeMap::from([(Fault::Power, 1_000), (Fault::Flush, 1), (Fault::Collect, 1)]);
        Options { faults, ..Options::quiet(seed) }
    }

    /// Three nodes that lose power, and a network that drops, repeats, delays and parts; leaders move.
    pub fn cluster(seed: u64) -> Options {
        let faults = BTreeMap::from([
            (Fault::Power, 1_000),
            (Fault::Drop, 5),
            (Fault::Duplicate, 5),
            (Fault::Delay, 5),
            (Fault::Isolate, 8_000),
            (Fault::Transfer, 2_500),
            (Fault::Flush, 1),
            (Fault::Collect, 1),
        ]);
        Options { nodes: 3, clients: 1, faults, ..Options::quiet(seed) }
    }

    /// Draws a run from a seed: of the workloads and the kinds of trouble that are wanted, some. With `exactly`, all. What is not
    /// wanted leaves the draws of everything else as they are.
    pub fn draw(seed: u64, nodes: u32, seconds: u64, wanted: &Wanted) -> Options {
        let random = SplitMix64::split(seed, "options");
        let mut options = Options { nodes, seconds, ..Options::quiet(seed) };
        let picked = Workload::ALL.iter().filter(|_| random.below(2) == 0).map(|(w, _)| *w);
        options.workloads = picked.filter(|w| wanted.workloads.contains(w)).collect();
        if options.workloads.is_empty() || wanted.exactly || wanted.every_workload {
            options.workloads = wanted.workloads.clone();
        }
        if let Some(script) = &wanted.custom {
            (options.workloads, options.custom) = (BTreeSet::new(), Some(script.clone()));
        }
        options.clients = 1 + random.below(3);
        options.clients = wanted.clients.unwrap_or(options.clients);
        options.pause_us_max = [5_000, 50_000, 500_000][random.below(3) as usize];
        let levels = [Level::Serializable, Level::Serializable, Level::RepeatableRead, Level::ReadCommitted];
        options.level = levels[random.below(4) as usize];
        options.level = wanted.level.unwrap_or(options.level);
        options.accounts = [4, 12, 40][random.below(3) as usize];
        options.early = random.below(4) == 0 && !wanted.late;
        for (fault, name) in Fault::ALL {
            let random = SplitMix64::split(seed, &format!("fault {name}"));
            let (on, number) = (random.below(2) == 0, fault.draw(&random));
            let possible = nodes > 1 || !fault.of_a_cluster();
            if wanted.faults.contains(fault) && possible && (on || wanted.exactly) {
                options.faults.insert(*fault, number);
            }
        }
        let tuning = Tuning::draw(&random);
        if options.faults.contains_key(&Fault::Tuning) {
            options.tuning = tuning;
        }
        options
    }

    /// Invariants that nobody promises in this run.
    pub(crate) fn muted(&self) -> &'static [&'static str] {
        if self.rate(Fault::ClockBeyond) > 0 { &["CH5", "CH6"] } else { &[] }
    }

    /// Nodes beside [`Options::nodes`], so that there is one that can take another's place.
    pub fn spares(&self) -> u32 {
        u32::from(self.nodes == 3 && self.rate(Fault::Replace) + self.rate(Fault::Wipe) > 0)
    }

    /// The number of a fault; 0 if it is not on.
    pub fn rate(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }
}

/// What a run may be made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// What clients may do.
    pub workloads: BTreeSet<Workload>,
    /// What may go wrong.
    pub faults: BTreeSet<Fault>,
    /// All of it, instead of what the seed picks.
    pub exactly: bool,
    /// All workloads, whatever the seed picks.
    pub every_workload: bool,
    /// So many clients of each, instead of what the seed picks.
    pub clients: Option<u64>,
    /// No trouble while tables are made.
    pub late: bool,
    /// A user's workload, instead.
    pub custom: Option<Arc<Script>>,
    /// The level of the transactions that append; `None`: each seed picks, but not [`Level::External`], where a COMMIT
    /// waits for clocks and little happens.
    pub level: Option<Level>,
}

impl Wanted {
    /// Everything there is, as each seed picks; but for clocks beyond their bound, under which less is promised.
    pub fn all() -> Wanted {
        Wanted {
            workloads: Workload::ALL.iter().map(|(w, _)| *w).collect(),
            faults: Fault::ALL.iter().map(|(f, _)| *f).filter(|f| *f != Fault::ClockBeyond).collect(),
            exactly: false,
            every_workload: false,
            clients: None,
            late: false,
            custom: None,
            level: None,
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut workloads: Vec<_> = self.workloads.iter().map(|w| w.name()).collect();
        workloads.extend(self.custom.as_ref().map(|_| "of a file"));
        let spare = if self.spares() > 0 { " and one to spare" } else { "" };
        writeln!(f, "  nodes {}{spare}, virtual seconds {}", self.nodes, self.seconds)?;
        writeln!(
            f,
            "  workloads {} ({}); {} clients of each per node, pauses up to {} us, {} accounts",
            workloads.join(","),
            if self.level == Level::External { "EXTERNAL" } else { self.level.sql() },
            self.clients,
            self.pause_us_max,
            self.accounts
        )?;
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(fault, n)| match fault.rate() {
                Rate::PerMille => format!("{} {n}/1000", fault.name()),
                Rate::Every => format!("{} every {n} ms", fault.name()),
                Rate::On => fault.name().to_string(),
            })
            .collect();
        let from = if self.early { " from the beginning:" } else { "" };
        writeln!(f, "  faults{from} {}", if faults.is_empty() { "none".into() } else { faults.join(", ") })?;
        write!(f, "  {:?}", self.tuning)
    }
}
