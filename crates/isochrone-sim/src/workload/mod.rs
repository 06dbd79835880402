//! What clients do, what they were told, and what is asked when the trouble is over.
//!
//! Every workload has a book of what its clients were told, which outlives nodes. Clients belong to a life of a node and end
//! with it: what they were doing then, they were told nothing about.

mod append;
mod bank;
pub mod custom;
mod register;
mod split;
mod sql;
mod transfers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isochrone_base::ShardId;
use isochrone_env::SplitMix64;
use isochrone_server::Node;
use isochrone_sql::session::Database;
use isochrone_txn::kv::KvStore;

use crate::options::{Fault, Options, Workload};
use crate::world::{Found, Phase, World};

/// The pause before something is tried again that was refused.
const RETRY: Duration = Duration::from_millis(100);
/// Longest wait for a lock: what breaks deadlocks between leaders on different nodes.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// The pause between two looks at whether something is over.
const LOOK: Duration = Duration::from_millis(10);

/// What the clients of all workloads were told.
pub(crate) struct Books {
    transfers: transfers::Book,
    bank: bank::Book,
    append: append::Book,
    register: register::Book,
    custom: custom::Book,
    /// How many workloads are set up, in the order of [`Workload::ALL`]; the user's own comes last.
    set_up: AtomicUsize,
}

/// Sums over all workloads.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) committed: u64,
    pub(crate) aborted: u64,
    pub(crate) unknown: u64,
    pub(crate) audits: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.unknown += other.unknown;
        self.audits += other.audits;
    }
}

impl Books {
    pub(crate) fn new(options: &Options) -> Books {
        Books {
            transfers: transfers::Book::new(options.accounts),
            bank: bank::Book::new(options.accounts),
            append: append::Book::new(options),
            register: register::Book::new(options),
            custom: custom::Book::default(),
            set_up: AtomicUsize::new(0),
        }
    }

    pub(crate) fn are_set_up(&self) -> bool {
        self.set_up.load(Ordering::Relaxed) > Workload::ALL.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        sum += self.transfers.counts();
        sum += self.bank.counts();
        sum += self.append.counts();
        sum += self.register.counts();
        sum += self.custom.counts();
        sum
    }
}

/// A node as clients see it. Its SQL side is opened once a life: other nodes' schema changes wait for it.
pub(crate) struct Gateway {
    node: Arc<Node>,
    database: Arc<Database>,
}

impl Gateway {
    pub(crate) fn new(node: &Arc<Node>) -> Arc<Gateway> {
        let database = Database::new(node.store.clone(), node.env.clone(), "isochrone");
        Arc::new(Gateway { node: node.clone(), database })
    }
}

impl std::ops::Deref for Gateway {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// How an attempt ended, as its client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// Certainly not committed.
    Aborted,
    /// Nobody can say.
    Unknown,
    /// The node goes down; this life ends soon.
    Down,
}

/// What a client waits for whose node goes down.
async fn gone<T>() -> T {
    std::future::pending().await
}

/// Is there still to be load?
fn goes_on(world: &World) -> bool {
    world.phase() <= Phase::Chaos
}

async fn pause(world: &World, random: &SplitMix64) {
    tokio::time::sleep(Duration::from_micros(random.below(world.options.pause_us_max))).await;
}

/// A pause of somebody who comes rarely: no longer than there is load.
async fn rest(world: &World, long: Duration) {
    tokio::select! {
        biased;
        () = over(world) => {}
        () = tokio::time::sleep(long) => {}
    }
}

type Task = Pin<Box<dyn Future<Output = Result<(), Found>> + Send>>;

/// Sets up what is not yet, and works until the load is over.
pub(crate) async fn load(world: &Arc<World>, node: &Arc<Gateway>, life: u64) -> Result<(), Found> {
    set_up(world, node).await?;
    let mut tasks: Vec<Task> = Vec::new();
    for workload in &world.options.workloads {
        match workload {
            Workload::Bank => {
                for id in 0..world.options.clients {
                    tasks.push(Box::pin(transfers::client(world.clone(), node.clone(), life, id)));
                    tasks.push(Box::pin(bank::client(world.clone(), node.clone(), life, id)));
                }
                tasks.push(Box::pin(transfers::auditor(world.clone(), node.clone())));
                tasks.push(Box::pin(bank::auditor(world.clone(), node.clone())));
            }
            Workload::Append => {
                for id in 0..world.options.clients {
                    tasks.push(Box::pin(append::client(world.clone(), node.clone(), life, id)));
                }
            }
            Workload::Register => {
                for id in 0..world.options.clients {
                    tasks.push(Box::pin(register::client(world.clone(), node.clone(), life, id)));
                }
            }
        }
    }
    if let Some(script) = &world.options.custom {
        for id in 0..world.options.clients {
            let client = custom::client(world.clone(), script.clone(), node.clone(), life, id);
            tasks.push(Box::pin(client));
        }
        tasks.push(Box::pin(custom::auditor(world.clone(), script.clone(), node.clone())));
    }
    if world.options.rate(Fault::Transfer) > 0 {
        tasks.push(Box::pin(mover(world.clone(), node.clone(), life)));
    }
    if world.options.rate(Fault::Split) > 0 {
        tasks.push(Box::pin(split::splitter(world.clone(), node.clone(), life)));
    }
    let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap_or_else(|e| Err(Found::from(e.to_string())))?;
    }
    over(world).await;
    Ok(())
}

/// Whichever life of the first node comes far enough sets up; the other nodes wait for it. Every step may be repeated.
async fn set_up(world: &Arc<World>, node: &Arc<Gateway>) -> Result<(), Found> {
    tokio::select! {
        biased;
        done = set_up_all(world, node) => done,
        () = over(world) => Ok(()),
    }
}

async fn over(world: &World) {
    while goes_on(world) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn set_up_all(world: &Arc<World>, node: &Arc<Gateway>) -> Result<(), Found> {
    loop {
        let done = world.books.set_up.load(Ordering::Relaxed);
        if done > Workload::ALL.len() {
            return Ok(());
        }
        if node.id != world.first() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let next = Workload::ALL.get(done).map(|(workload, _)| workload);
        if next.is_none()
            && let Some(script) = &world.options.custom
        {
            custom::set_up(script, node).await?;
        }
        if let Some(workload) = next.filter(|w| world.options.workloads.contains(w)) {
            match workload {
                Workload::Bank => {
                    transfers::set_up(world, node).await?;
                    bank::set_up(world, node).await?;
                }
                Workload::Append => append::set_up(world, node).await?,
                Workload::Register => register::set_up(world, node).await?,
            }
        }
        world.books.set_up.store(done + 1, Ordering::Relaxed);
        world.note("set up", &[done as u64]);
    }
}

/// Is this workload part of the run, and was it set up?
fn is_there(world: &World, workload: Workload) -> bool {
    let place = Workload::ALL.iter().position(|(w, _)| *w == workload).unwrap_or_default();
    world.options.workloads.contains(&workload) && world.books.set_up.load(Ordering::Relaxed) > place
}

/// SIM8: waits until everything that was begun has ended, then touches every row once.
pub(crate) async fn settle(
    world: &Arc<World>,
    node: &Arc<Gateway>,
    at: &(dyn Fn(&'static str) + Sync),
) -> Result<(), Found> {
    at("waits for prepares to go");
    no_prepares(node).await;
    if is_there(world, Workload::Bank) {
        at("writes all accounts");
        transfers::touch_all(world, node).await?;
        at("writes all SQL accounts");
        bank::touch_all(world, node).await?;
    }
    if is_there(world, Workload::Append) {
        at("writes all lists");
        append::touch_all(node).await?;
        world.books.append.check()?;
    }
    if is_there(world, Workload::Register) {
        at("writes all registers");
        register::touch_all(world, node).await?;
    }
    at("waits for its own prepares to go");
    no_prepares(node).await;
    Ok(())
}

async fn no_prepares(node: &Gateway) {
    while node.local.shards().states_light().iter().any(|s| s.prepared > 0) {
        tokio::time::sleep(LOOK).await;
    }
}

/// When every node has started once more. The first one looks at everything.
pub(crate) async fn last_checks(world: &Arc<World>, node: &Arc<Gateway>) -> Result<(), Found> {
    no_prepares(node).await;
    if node.id != world.first() {
        return Ok(());
    }
    if is_there(world, Workload::Bank) {
        transfers::last_checks(world, node).await?;
        bank::last_checks(world, node).await?;
    }
    if is_there(world, Workload::Append) {
        append::last_checks(world, node).await?;
    }
    if is_there(world, Workload::Register) {
        register::last_checks(world, node).await?;
    }
    if let Some(script) = world.options.custom.as_ref().filter(|_| world.books.are_set_up()) {
        custom::last_checks(script, node).await?;
    }
    Ok(())
}

/// Moves leaderships about, as an operator might.
async fn mover(world: Arc<World>, node: Arc<Gateway>, life: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("mover {}.{life}", node.id));
    while goes_on(&world) {
        rest(&world, Duration::from_millis(1 + random.below(2 * world.options.rate(Fault::Transfer)))).await;
        let shards = node.local.shards().list().len().max(1) as u64;
        let shard = ShardId(1 + random.below(shards));
        let nodes = world.nodes();
        let to = nodes[random.below(nodes.len() as u64) as usize];
        let moved = node.store.transfer_leader(shard, to).await;
        world.fault("move leader", &[shard.0, u64::from(to.0), u64::from(moved.is_ok())]);
    }
    Ok(())
}
