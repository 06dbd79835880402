//! Proves the checkers: each bug of the bank ([`isochrone_base::bank`]) is put back and must be found by a checker named for
//! it, and the same run without the bug must be clean.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use isochrone_base::bank::{self, Bug};

use crate::{Failure, Fault, Level, Options, Tuning, Wanted, Workload, run};

/// CPU time for which a bug is looked for at most, if nobody says otherwise.
pub const CPU_MAX: Duration = Duration::from_secs(60);

/// What kind of run a bug is looked for in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arena {
    /// Power cuts, a bad network, a busy bank ([`Options::cluster`]).
    Cluster,
    /// A few lists that everybody appends to, while leaders move, die and are cut off.
    Hot,
    /// A few single rows, clocks that are set and stand still, leaders that move.
    Registers,
    /// Everything there is, as the seed picks it ([`Options::draw`]).
    Swarm,
    /// Deadlines and floors that pass within seconds, calls that come again, nodes that are away for longer.
    Times,
    /// Lists in the order of real time, over clocks that are set and drift.
    External,
    /// Clocks that are set far beyond their bounds, and stay there.
    Clocks,
    /// Disks that fail, rot and lose power.
    Disks,
    /// Everything about commits is over within a second: prepares are suspected at once, answers come late or never, nodes
    /// without replicas die, and who forgets does so while others still ask.
    Hurry,
    /// Leases move all the time, over clocks that are set, and little is ever closed in time.
    Leases,
    /// Requests are repeated until their deadline, which is near, and the floor is close behind.
    Late,
    /// Transactions are pushed above their candidates all the time, and suspected at once.
    Pushed,
    /// Calls arrive again after their caller has given up, long before their deadline.
    Again,
    /// A log is cut, while nodes that hold what it lost are away.
    Hurt,
    /// Nodes that are replaced all the time, while links break and leaders move.
    Members,
    /// One node that loses power ([`Options::one_node`]).
    OneNode,
}

impl Arena {
    const ALL: [Arena; 16] = [
        Arena::Cluster,
        Arena::Hot,
        Arena::Registers,
        Arena::Swarm,
        Arena::Times,
        Arena::External,
        Arena::Clocks,
        Arena::Disks,
        Arena::Members,
        Arena::Hurry,
        Arena::Leases,
        Arena::Late,
        Arena::Pushed,
        Arena::Again,
        Arena::Hurt,
        Arena::OneNode,
    ];

    /// The run of a seed.
    pub fn options(self, seed: u64) -> Options {
        let cluster = Options { seconds: 20, ..Options::cluster(seed) };
        let with = |faults: &[(Fault, u64)]| BTreeMap::from_iter(faults.iter().copied());
        match self {
            Arena::Cluster => Options::cluster(seed),
            Arena::Swarm => Options::draw(seed, 3, 20, &Wanted::all()),
            Arena::OneNode => Options::one_node(seed),
            Arena::Hot => Options {
                accounts: 4,
                clients: 3,
                workloads: BTreeSet::from([Workload::Append]),
                faults: with(&[
                    (Fault::Delay, 10),
                    (Fault::Isolate, 2_000),
                    (Fault::Partial, 2_000),
                    (Fault::Transfer, 1_000),
                    (Fault::Kill, 4_000),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 2_000),
                ]),
                ..cluster
            },
            Arena::Registers => Options {
                accounts: 3,
                clients: 2,
                pause_us_max: 50_000,
                workloads: BTreeSet::from([Workload::Register]),
                faults: with(&[
                    (Fault::Delay, 10),
                    (Fault::Drop, 5),
                    (Fault::Isolate, 4_000),
                    (Fault::Transfer, 1_000),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 1_000),
                    (Fault::ClockFreeze, 2_000),
                ]),
                ..cluster
            },
            // Nodes without replicas hear of timestamps by what they ask only: their clocks are the most naive.
            Arena::External => Options {
                nodes: 5,
                accounts: 3,
                clients: 3,
                level: Level::External,
                pause_us_max: 20_000,
                workloads: BTreeSet::from([Workload::Append]),
                faults: with(&[
                    (Fault::Delay, 10),
                    (Fault::Transfer, 2_000),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 1_000),
                ]),
                ..cluster
            },
            Arena::Times => Options {
                accounts: 4,
                clients: 2,
                workloads: BTreeSet::from([Workload::Bank, Workload::Append]),
                faults: with(&[
                    (Fault::Delay, 10),
                    (Fault::Drop, 20),
                    (Fault::CallAgain, 100),
                    (Fault::Isolate, 2_000),
                    (Fault::Clog, 2_000),
                    (Fault::Pause, 2_000),
                    (Fault::Kill, 4_000),
                    (Fault::Tuning, 1),
                ]),
                tuning: Tuning { floor_lag_ms: 500, deadline_ms: 1_000, ..Tuning::USUAL },
                ..cluster
            },
            Arena::Hurry => Options {
                nodes: 5,
                accounts: 4,
                clients: 2,
                workloads: BTreeSet::from([Workload::Bank, Workload::Append]),
                faults: with(&[
                    (Fault::Delay, 50),
                    (Fault::Drop, 20),
                    (Fault::CallAgain, 100),
                    (Fault::Partial, 700),
                    (Fault::Clog, 1_000),
                    (Fault::Isolate, 2_000),
                    (Fault::Kill, 3_000),
                    (Fault::Drift, 1),
                ]),
                tuning: Tuning {
                    floor_lag_ms: 20,
                    deadline_ms: 1_000,
                    answer_wait_permille: 950,
                    recover_after_ms: 20,
                    ..Tuning::USUAL
                },
                ..cluster
            },
            Arena::Leases => Options {
                nodes: 5,
                accounts: 4,
                clients: 2,
                pause_us_max: 20_000,
                workloads: BTreeSet::from([Workload::Append, Workload::Register]),
                faults: with(&[
                    (Fault::Delay, 10),
                    (Fault::Transfer, 200),
                    (Fault::Partial, 2_000),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 300),
                    (Fault::ClockFreeze, 2_000),
                    (Fault::Split, 4_000),
                ]),
                tuning: Tuning { closed_lag_ms: 10, ..Tuning::USUAL },
                ..cluster
            },
            Arena::Late => Options {
                nodes: 5,
                accounts: 4,
                clients: 2,
                pause_us_max: 20_000,
                workloads: BTreeSet::from([Workload::Append, Workload::Register]),
                faults: with(&[
                    (Fault::Drop, 150),
                    (Fault::Delay, 30),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 1_000),
                ]),
                tuning: Tuning {
                    deadline_ms: 250,
                    floor_lag_ms: 1,
                    answer_wait_permille: 999,
                    ..Tuning::USUAL
                },
                ..cluster
            },
            Arena::Pushed => Options {
                nodes: 5,
                accounts: 4,
                clients: 3,
                workloads: BTreeSet::from([Workload::Append]),
                faults: with(&[
                    (Fault::Delay, 100),
                    (Fault::Partial, 500),
                    (Fault::Kill, 3_000),
                    (Fault::Drift, 1),
                    (Fault::ClockStep, 300),
                ]),
                tuning: Tuning { closed_lag_ms: 10, recover_after_ms: 1, ..Tuning::USUAL },
                ..cluster
            },
            Arena::Again => Options {
                nodes: 5,
                accounts: 4,
                clients: 3,
                workloads: BTreeSet::from([Workload::Append, Workload::Bank]),
                faults: with(&[
                    (Fault::CallAgain, 500),
                    (Fault::Drop, 20),
                    (Fault::Delay, 30),
                    (Fault::Partial, 400),
                    (Fault::Isolate, 1_500),
                    (Fault::Drift, 1),
                ]),
                tuning: Tuning {
                    answer_wait_permille: 50,
                    floor_lag_ms: 10_000,
                    recover_after_ms: 3_000,
                    ..Tuning::USUAL
                },
                ..cluster
            },
            Arena::Hurt => Options {
                seconds: 40,
                pause_us_max: 50_000,
                faults: with(&[
                    (Fault::Rot, 1_500),
                    (Fault::Stale, 2_000),
                    (Fault::Isolate, 700),
                    (Fault::Partial, 500),
                    (Fault::Kill, 1_500),
                    (Fault::Delay, 10),
                    (Fault::Flush, 1),
                ]),
                ..cluster
            },
            Arena::Clocks => Options {
                seconds: 40,
                faults: with(&[(Fault::ClockBeyond, 9_000), (Fault::Kill, 10_000)]),
                ..cluster
            },
            Arena::Members => Options {
                seconds: 40,
                accounts: 12,
                pause_us_max: 50_000,
                faults: with(&[
                    (Fault::Replace, 1_000),
                    (Fault::Wipe, 16_000),
                    (Fault::Partial, 500),
                    (Fault::Isolate, 1_500),
                    (Fault::Kill, 6_000),
                    (Fault::Delay, 5),
                    (Fault::Transfer, 4_000),
                    (Fault::Drift, 1),
                ]),
                ..cluster
            },
            Arena::Disks => Options {
                faults: with(&[
                    (Fault::Power, 4_000),
                    (Fault::SyncFails, 1_000),
                    (Fault::Eio, 4_000),
                    (Fault::Rot, 1_000),
                    (Fault::Stale, 2_000),
                    (Fault::Misdirected, 4_000),
                    (Fault::Flush, 1),
                ]),
                ..cluster
            },
        }
    }
}

/// Where bugs were found when somebody last looked: the first place to look again. What is not here was never found.
pub const SEEDS: &[(&str, Arena, u64)] = &[
    ("acked-before-fsync", Arena::Cluster, 1),
    ("anchor-forgets-on-acks", Arena::Cluster, 1),
    ("append-acked-before-fsync", Arena::Cluster, 2),
    ("applied-index-apart", Arena::Hot, 2),
    ("at-max-despite-reads", Arena::Hot, 1),
    ("batch-checksum-ignored", Arena::Cluster, 1),
    ("external-readers-do-not-wait", Arena::External, 3),
    ("follower-ignores-closed", Arena::Cluster, 4),
    ("commit-at-own-p", Arena::Cluster, 1),
    ("leader-counts-unsynced", Arena::OneNode, 1),
    ("lease-does-not-end", Arena::Cluster, 1),
    ("lock-trusted", Arena::Cluster, 1),
    ("log-truncated-unflushed", Arena::Swarm, 1),
    ("moved-up-without-validation", Arena::Cluster, 1),
    ("no-record-is-abort", Arena::Cluster, 10),
    ("one-step-commit-leaves-no-record", Arena::Registers, 1),
    ("one-step-pushed-after-validation", Arena::Hot, 3),
    ("prepare-evaluated-again", Arena::Cluster, 2),
    ("prepares-forgotten-at-start", Arena::Swarm, 12),
    ("probe-does-not-block", Arena::Swarm, 1),
    ("probe-removes-a-prepare", Arena::Cluster, 1),
    ("pushed-not-validated-again", Arena::Hot, 1),
    ("pushed-over-newer-version", Arena::Cluster, 1),
    ("read-not-remembered", Arena::Cluster, 2),
    ("reader-ignores-in-flight", Arena::Cluster, 1),
    ("reader-ignores-prepares", Arena::Cluster, 1),
    ("record-not-checked-again", Arena::Swarm, 1),
    ("recovery-commits-at-first-p", Arena::Cluster, 15),
    ("rename-without-directory-sync", Arena::Swarm, 2),
    ("resolved-before-decided", Arena::Hot, 1),
    ("serves-before-its-first-entry", Arena::Cluster, 1),
    ("snapshot-without-records", Arena::Cluster, 1),
    ("split-loses-records", Arena::Swarm, 33),
    ("tombstone-not-kept", Arena::Cluster, 3),
    ("uncertainty-ignored", Arena::Registers, 1),
    ("unknown-retried-under-a-new-id", Arena::Swarm, 9),
    ("validation-ignores-prepares", Arena::Swarm, 1),
    ("validation-not-remembered", Arena::Swarm, 3),
    ("vote-not-durable", Arena::Cluster, 1),
    ("wrong-clock-serves", Arena::Clocks, 1),
    ("silence-is-abort", Arena::Times, 1),
    ("later-decision-wins", Arena::Cluster, 4),
    ("deadline-not-checked", Arena::Times, 7),
    ("acked-although-unresolved", Arena::Times, 7),
    ("validated-to-candidate", Arena::External, 11),
    ("follower-believes-early", Arena::Cluster, 2),
    ("fsync-retried", Arena::Disks, 1),
    ("inbox-has-no-bound", Arena::Swarm, 6),
    ("anchor-forgets-at-deadline", Arena::Hurry, 1),
    ("gone-is-abort", Arena::Hurry, 31),
    ("recovery-trusts-its-verdict", Arena::Hurry, 6),
    ("floor-drops-prepares", Arena::Hurry, 4),
    ("pushed-answered-early", Arena::Hurry, 7),
    ("closed-ignored", Arena::Leases, 98),
    ("no-low-water-mark", Arena::Leases, 51),
    ("uncertainty-ignores-prepares", Arena::Registers, 1),
    ("past-deadline-is-abort", Arena::Late, 1),
    ("recovery-commits-pushed", Arena::Pushed, 5),
    ("torn-middle-is-a-tail", Arena::Disks, 1),
    ("cut-log-not-doubted", Arena::Hurt, 27),
];

/// Was it ever found?
pub fn is_known(bug: &Bug) -> bool {
    SEEDS.iter().any(|(name, ..)| *name == bug.name)
}

/// What became of a bug.
pub struct Verdict {
    /// The bug.
    pub bug: &'static Bug,
    /// The run in which it was found, or the last one tried.
    pub place: (Arena, u64),
    /// How; `None`: not at all.
    pub found: Option<Box<Failure>>,
    /// The same run without the bug, if that fails.
    pub not_clean: Option<Box<Failure>>,
    /// Runs that it took.
    pub tries: u64,
    /// CPU time that it took to find it.
    pub cpu: Duration,
}

impl Verdict {
    /// Found by a checker named for it, in a run that is clean without it.
    pub fn holds(&self) -> bool {
        let by = self.found.as_ref().map_or("", |f| f.found.id);
        self.bug.found_by.contains(&by) && self.not_clean.is_none()
    }
}

/// CPU time of this thread; zero where the system does not tell.
pub(crate) fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// Seeds of the kind of run in which a bug was found before that are tried before other kinds: with each change of the
/// product seeds mean other runs, and the kind still suits the bug.
const NEAR: u64 = 120;

/// Looks for a bug on this thread, for as much CPU time at most: where it was found before, then near there, then elsewhere.
pub fn prove(bug: &'static Bug, cpu_max: Duration) -> Verdict {
    let known = SEEDS.iter().find(|(name, ..)| *name == bug.name).map(|(_, arena, seed)| (*arena, *seed));
    let others = (1..).flat_map(|seed| Arena::ALL.map(|arena| (arena, seed)));
    let began = cpu_time();
    let mut verdict = Verdict {
        bug,
        place: (Arena::Cluster, 0),
        found: None,
        not_clean: None,
        tries: 0,
        cpu: Duration::ZERO,
    };
    let near = known.into_iter().flat_map(|(arena, _)| (1..=NEAR).map(move |seed| (arena, seed)));
    for place in known.into_iter().chain(near).chain(others) {
        verdict.place = place;
        verdict.tries += 1;
        bank::put_back(Some(bug));
        let ended = run(place.0.options(place.1));
        bank::put_back(None);
        verdict.cpu = cpu_time().saturating_sub(began);
        if let Err(failure) = ended {
            // A run may also break something that no checker named for the bug guards: another run shows it better.
            let named = bug.found_by.contains(&failure.found.id);
            verdict.found = Some(failure);
            if named {
                break;
            }
        }
        if verdict.cpu > cpu_max {
            break;
        }
    }
    verdict.not_clean = run(verdict.place.0.options(verdict.place.1)).err();
    verdict
}
