//! A whole node under one seed: virtual time, simulated disk, crashes, checkers.
//!
//! The node is the one that ships ([`isochrone_server::Node`]): shards, coordinator, consensus core and log are the
//! same code, run as tasks of one thread on a paused tokio runtime, whose clock jumps to the next timer whenever
//! everything waits. The disk under the log is [`MemDisk`], which loses unsynced writes in a crash; rows live in
//! [`MemEngine`], which falls back to its last flush. Each life of the node has a runtime of its own: dropping it is
//! the kill.
//!
//! Workload: clients move money between accounts on several shards and write a ledger row with each transfer; an
//! auditor reads everything at one snapshot; flushes, truncations and crashes happen at random moments.
//!
//! Checks
//!   SIM1  At every snapshot the total of all balances is what it was (atomicity; T1).
//!   SIM2  At the end every transfer that was acknowledged is in the ledger (T2), and every balance is the sum of the
//!         ledger's rows: nothing by half, nothing twice (T8).
//!   SIM3  A transfer that was reported as aborted is not in the ledger (T3).
//!   SIM4  When crashes stop, no prepare stays for 30 virtual seconds (T11), and every restart comes up by itself.
//!   SIM5  The same seed gives the same trace.
#![forbid(unsafe_code)]

mod life;
mod workload;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::hash::Fnv64;
use isochrone_env::fake::MemDisk;
use isochrone_env::{Random, SplitMix64};
use isochrone_storage::MemEngine;

use workload::Book;

/// What a run is made of. Everything else follows from the seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Virtual seconds under load.
    pub seconds: u64,
    /// Clients that transfer.
    pub clients: u64,
    /// Accounts, spread over the shards.
    pub accounts: u64,
    /// Lose power at random I/Os.
    pub crashes: bool,
}

impl Options {
    /// The defaults for a seed: 60 virtual seconds, 5 clients, 40 accounts, with crashes.
    pub fn new(seed: u64) -> Options {
        Options { seed, seconds: 60, clients: 5, accounts: 40, crashes: true }
    }
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash of everything that happened, in order.
    pub trace: u64,
    /// Transfers acknowledged.
    pub committed: u64,
    /// Transfers reported as aborted.
    pub aborted: u64,
    /// Transfers whose outcome was reported as unknown.
    pub unknown: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Audits that passed.
    pub audits: u64,
    /// Operations on the simulated disk.
    pub disk_operations: u64,
}

/// What outlives a crash: the disk, the engine's flushed image, and what the clients know.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) disk: MemDisk,
    pub(crate) engine: MemEngine,
    pub(crate) book: Mutex<Book>,
    pub(crate) trace: Mutex<Fnv64>,
}

impl World {
    /// Takes an event into the trace.
    pub(crate) fn note(&self, what: &str, numbers: &[u64]) {
        let mut trace = self.trace.lock().expect("one thread");
        trace.update(what.as_bytes());
        for n in numbers {
            trace.update(&n.to_be_bytes());
        }
    }
}

/// Runs one simulation. `Err` says which check failed.
pub fn run(options: Options) -> Result<Report, String> {
    let seed = options.seed;
    let world = Arc::new(World {
        disk: MemDisk::new(),
        engine: MemEngine::new(),
        book: Mutex::new(Book::new(&options)),
        trace: Mutex::new(Fnv64::default()),
        options,
    });
    let power = SplitMix64::split(seed, "power");
    let mut elapsed = Duration::ZERO;
    let goal = Duration::from_secs(world.options.seconds);
    let mut crashes = 0;
    for life in 0.. {
        let last = elapsed >= goal;
        let cut_after = (world.options.crashes && !last).then(|| 1 + power.below(3_000));
        let end = life::live(&world, life, elapsed, goal.saturating_sub(elapsed), cut_after, last)
            .map_err(|e| format!("seed {seed}, life {life}: {e}"))?;
        elapsed += end.lasted;
        world.note("life", &[life, end.lasted.as_nanos() as u64, u64::from(end.crashed)]);
        if last {
            break;
        }
        // Also at the end of the load: the last life starts from what was durable.
        world.disk.crash(&power);
        world.engine.crash();
        crashes += u64::from(end.crashed);
        // A life that ended before it did anything still takes time, so that a run ends.
        elapsed += Duration::from_millis(1 + power.next_u64() % 10);
    }
    let book = world.book.lock().expect("one thread");
    Ok(Report {
        seed,
        trace: world.trace.lock().expect("one thread").finish(),
        committed: book.committed.len() as u64,
        aborted: book.aborted.len() as u64,
        unknown: book.unknown,
        crashes,
        audits: book.audits,
        disk_operations: world.disk.operations(),
    })
}
