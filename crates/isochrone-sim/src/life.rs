//! One life of a node: from opening its log to a power cut, or to the end of the run.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_consensus::shell::Transport;
use isochrone_consensus::wal_log::to_wal_batch;
use isochrone_consensus::{Event, Handle, Inbox, LogBatch, Output, Store};
use isochrone_env::fake::TokioClock;
use isochrone_env::os::TokioTimer;
use isochrone_env::{Clock, Env, SplitMix64};
use isochrone_server::cluster::liveness::RENEW_EVERY;
use isochrone_server::cluster::snapshots::ToPeers;
use isochrone_server::cluster::{CLOCK_ERROR_MAX, NEWS_EVERY};
use isochrone_server::datadir::{self, Identity};
use isochrone_server::{Assembled, Node, NodeParts};
use isochrone_wal::{Log, Tail};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};

use crate::net::{Mailbox, Port, receive};
use crate::operator::operator;
use crate::options::{Fault, Tuning};
use crate::skew::SkewedClock;
use crate::workload::Gateway;
use crate::world::{Found, Phase, World};
use crate::{CLUSTER, STEP, workload};

/// Wall time at which every run begins: 2024-01-01.
pub(crate) const EPOCH_US: u64 = 1_704_067_200_000_000;
/// Log batches on their way to the disk; the store holds back more by itself.
const BATCHES_MAX: usize = 64;
/// What a node keeps beside its log.
const DIR: &str = "/data";
/// How often a node looks whether its log holds everything again.
pub(crate) const DOUBT_EVERY: Duration = Duration::from_secs(1);
/// How often a node looks at who leads and who holds shards.
const PLACE_EVERY: Duration = Duration::from_secs(1);
/// Raft's tick.
const TICK: Duration = Duration::from_millis(100);

/// How a node opens its log.
pub(crate) fn log_config(tuning: &Tuning) -> isochrone_wal::Config {
    let mut config = isochrone_wal::Config::new("/wal");
    config.segment_bytes = tuning.segment_bytes;
    config.batch_bytes_max = tuning.batch_bytes_max;
    config.preallocate_bytes = 64 << 10;
    config
}

/// A running node. Dropping it is the kill.
pub(crate) struct Life {
    pub(crate) node: Arc<Node>,
    state: Arc<State>,
    /// The runtime's clock when the life began, and the run's.
    began: (tokio::time::Instant, Duration),
    runtime: Runtime,
}

/// How far a life has come.
#[derive(Default)]
struct State {
    /// What a check found.
    found: Mutex<Option<Found>>,
    /// What it is about.
    stage: Mutex<&'static str>,
    /// What was begun has ended, and new work succeeds.
    settled: AtomicBool,
    /// The last checks have passed.
    checked: AtomicBool,
    /// Its log is not in doubt.
    whole: AtomicBool,
}

impl Life {
    /// Opens the node's log and starts its tasks.
    pub(crate) fn begin(world: &Arc<World>, id: NodeId, life: u64, now: Duration) -> Result<Life, Found> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|e| e.to_string())?;
        let entered = runtime.enter();
        #[expect(clippy::disallowed_methods, reason = "virtual time of a paused runtime")]
        let began = (tokio::time::Instant::now(), now);
        let machine = &world.machines[&id];
        let several = world.options.nodes > 1;
        let wall_us = EPOCH_US + now.as_micros() as u64;
        let error_us = if several { CLOCK_ERROR_MAX.as_micros() as u64 } else { 0 };
        let seed = world.options.seed;
        let clock = SkewedClock::new(TokioClock::new(wall_us), world.skew(id).clone(), error_us);
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let env = Env {
            disk: Arc::new(machine.disk.clone()),
            clock: clock.clone(),
            random: Arc::new(SplitMix64::split(seed, &format!("node {id}.{life}"))),
            timer: Arc::new(TokioTimer),
        };
        let draw = SplitMix64::split(seed, &format!("life {id}.{life}"));
        let tuning = &world.options.tuning;
        // The doubt outlives the process, as in a server.
        let dir = Path::new(DIR);
        let mut before_a_cut = |tail: &Tail| match tail {
            Tail::Cut { .. } if several => datadir::set_doubt(&env, dir).map_err(std::io::Error::other),
            _ => Ok(()),
        };
        let (log, report) = Log::open_telling(env.disk.clone(), log_config(tuning), &mut before_a_cut)
            .map_err(|e| Found::new("SIM4", format!("the log of node {id} does not open: {e}")))?;
        let log_was_cut = matches!(report.tail, Tail::Cut { .. });
        world.note("log opened", &[u64::from(id.0), life, u64::from(log_was_cut)]);
        let doubtful = datadir::is_doubtful(&env, dir)
            .map_err(|e| Found::new("SIM4", format!("node {id} does not come up: {e}")))?;
        let log_was_cut = several && (log_was_cut || doubtful);

        let notify = Arc::new(Notify::new());
        let wake = notify.clone();
        let inbox = Inbox::with_room(Box::new(move || wake.notify_one()), tuning.proposals_max);
        let handle = Handle::new(inbox.clone());
        let mailbox = Arc::new(Mailbox::default());
        let port = Arc::new(Port { world: world.clone(), node: id, mailbox: mailbox.clone() });
        let Assembled { node, groups, recoverer } = Node::assemble(NodeParts {
            env,
            identity: Identity { cluster: CLUSTER, node: id, voters: world.founders() },
            engine: Arc::new(machine.engine.clone()),
            log: log.reader(),
            log_was_cut,
            groups: handle.clone(),
            network: port.clone(),
            address: world.address(id),
            sql: String::new(),
            snapshots: "/snapshots".into(),
            tuning: tuning.of_a_node(),
        })
        .map_err(|e| Found::new("SIM4", format!("node {id} does not come up: {e:#}")))?;
        let (to_disk, batches) = mpsc::channel(BATCHES_MAX);
        let latency = SplitMix64::split(seed, &format!("disk {id}.{life}"));
        let slowest_us = if world.options.rate(Fault::SlowDisk) > 0 { 50_000 } else { 1_000 };
        tokio::spawn(disk_task(log, batches, inbox.clone(), latency, slowest_us));
        let to_peers = ToPeers::new(port, handle);
        tokio::spawn(store_task(world.clone(), groups, inbox, notify, to_disk, to_peers, clock));
        tokio::spawn(receive(world.clone(), id, mailbox.clone(), node.cluster.clone()));
        let state = Arc::new(State { whole: AtomicBool::new(!log_was_cut), ..State::default() });
        for duty in [
            ticks(world.clone(), node.clone(), draw),
            news(node.clone(), several),
            places(node.clone(), several),
            retirements(node.clone(), several),
            Box::pin(operator(world.clone(), node.clone(), life)),
            deadlocks(node.clone(), several),
            doubts(node.clone(), state.clone(), log_was_cut),
        ] {
            tokio::spawn(duty);
        }
        tokio::spawn({
            let (world, node, state) = (world.clone(), node.clone(), state.clone());
            async move {
                let _recoverer = recoverer;
                if let Err(found) = work(&world, &node, life, &state).await {
                    *state.found.lock().expect("one thread") = Some(found);
                }
                std::future::pending::<()>().await;
            }
        });
        drop(entered);
        world.net.join(id, mailbox);
        Ok(Life { node, state, began, runtime })
    }

    /// Lets the node run up to a moment of the run. `Err`: a check failed.
    pub(crate) fn step(&mut self, now: Duration) -> Result<(), Found> {
        // To a fixed moment: sleeps are rounded up, and the nodes' clocks would drift apart.
        let until = self.began.0 + (now - self.began.1);
        self.runtime.block_on(async move {
            #[expect(clippy::disallowed_methods, reason = "virtual time of a paused runtime")]
            let behind = until.saturating_duration_since(tokio::time::Instant::now());
            if behind > STEP {
                // It stood still: time has passed before it does anything.
                tokio::time::advance(behind - STEP).await;
            }
            tokio::time::sleep_until(until).await;
        });
        match self.state.found.lock().expect("one thread").take() {
            Some(found) => Err(found),
            None => Ok(()),
        }
    }

    /// Runs a part of a script as one of the node's tasks; it ends with the node.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _ends_by_itself = self.runtime.spawn(task);
    }

    /// When it began.
    pub(crate) fn began(&self) -> Duration {
        self.began.1
    }

    /// Its monotonic clock.
    pub(crate) fn monotonic_ns(&self) -> u64 {
        let _virtual = self.runtime.enter();
        self.node.env.clock.monotonic_ns()
    }

    /// What it is about, for a report.
    pub(crate) fn stage(&self) -> String {
        let states = self.node.local.shards().states_light();
        let prepared: usize = states.iter().map(|s| s.prepared).sum();
        let leading = states.iter().filter(|s| s.serving).count();
        let stage = *self.state.stage.lock().expect("one thread");
        // Of each shard: who takes part, what it has applied, and what its log holds; the leader's is marked.
        let shards: Vec<_> = states
            .iter()
            .map(|s| {
                let last = self.node.log.last_index(s.shard).unwrap_or_default();
                let mark = if s.leads.is_some() { "*" } else { "" };
                format!("{}{mark} of {} at {} of {last}", s.shard, s.members, s.applied)
            })
            .collect();
        let doubt = if self.is_whole() { "" } else { "in doubt, " };
        format!(
            "{stage}, {doubt}{prepared} prepares, serves {leading} of {} shards ({})",
            states.len(),
            shards.join(", ")
        )
    }

    /// Has everything ended that was begun, and does new work succeed?
    pub(crate) fn is_settled(&self) -> bool {
        self.state.settled.load(Ordering::Relaxed)
    }

    /// Asks anew whether its log is whole: a look at it may be a second old.
    pub(crate) fn look_again(&self) {
        self.state.whole.store(false, Ordering::Relaxed);
    }

    /// Does its log lack nothing that it may have acknowledged, as far as is known?
    pub(crate) fn is_whole(&self) -> bool {
        self.state.whole.load(Ordering::Relaxed)
    }

    /// Have its last checks passed?
    pub(crate) fn is_checked(&self) -> bool {
        self.state.checked.load(Ordering::Relaxed)
    }
}

type Duty = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a server does every 100 ms; where the seed says so, with more flushes and collections than it would.
fn ticks(world: Arc<World>, node: Arc<Node>, draw: SplitMix64) -> Duty {
    let often = world.options.rate(Fault::Flush) > 0;
    let collect = world.options.rate(Fault::Collect) > 0;
    let ttl = Duration::from_millis(world.options.tuning.ttl_ms);
    Box::pin(async move {
        loop {
            tokio::time::sleep(TICK).await;
            // A tick may fail on a shard that is splitting, moving or going down; the next one goes on.
            let _ = node.tick(if often && draw.below(4) == 0 { 0 } else { u64::MAX }, true).await;
            if draw.below(if often { 20 } else { 600 }) == 0 {
                let _ = node.flush_and_truncate();
            }
            if collect && draw.below(100) == 0 {
                let _ = node.collect_garbage(ttl).await;
            }
        }
    })
}

/// What a server says to others, and its lease.
fn news(node: Arc<Node>, several: bool) -> Duty {
    Box::pin(async move {
        if !several {
            return;
        }
        let mut lease = Duration::ZERO;
        loop {
            node.cluster.exchange_news().await;
            if lease >= RENEW_EVERY {
                lease = Duration::ZERO;
                let _ = node.keep_lease().await;
            }
            tokio::time::sleep(NEWS_EVERY).await;
            lease += NEWS_EVERY;
        }
    })
}

/// What a server does about who leads shards, and who holds them.
fn places(node: Arc<Node>, several: bool) -> Duty {
    Box::pin(async move {
        if !several {
            return;
        }
        loop {
            tokio::time::sleep(PLACE_EVERY).await;
            node.cluster.release_orphans().await;
            // What does not work now is tried again.
            let _ = node.cluster.place_leaders().await;
            if !node.cluster.clocks().is_out() {
                let _ = node.cluster.place_replicas().await;
            }
        }
    })
}

/// What a server does about replicas that left their groups.
fn retirements(node: Arc<Node>, several: bool) -> Duty {
    Box::pin(async move {
        if !several {
            return;
        }
        loop {
            tokio::time::sleep(PLACE_EVERY).await;
            if !node.cluster.clocks().is_out() {
                node.cluster.retire_replicas().await;
            }
        }
    })
}

/// What a server does about deadlocks over several nodes.
fn deadlocks(node: Arc<Node>, several: bool) -> Duty {
    Box::pin(async move {
        if several {
            node.cluster.watch_deadlocks().await;
        }
    })
}

/// Forgets that the log was cut when every group has got back what it may have lost. Looks on afterwards: a group may
/// find by itself that it lacks something.
fn doubts(node: Arc<Node>, state: Arc<State>, mut doubtful: bool) -> Duty {
    Box::pin(async move {
        loop {
            tokio::time::sleep(DOUBT_EVERY).await;
            let Some(whole) = node.is_whole().await else { return };
            state.whole.store(whole, Ordering::Relaxed);
            if whole && doubtful {
                // If it cannot be forgotten, the next life doubts again.
                let _ = datadir::clear_doubt(&node.env, Path::new(DIR));
                doubtful = false;
            }
        }
    })
}

async fn work(world: &Arc<World>, node: &Arc<Node>, life: u64, state: &State) -> Result<(), Found> {
    let node = &Gateway::new(node);
    let at = |stage| *state.stage.lock().expect("one thread") = stage;
    at("begins to serve");
    node.serve().await.map_err(|e| Found::new("SIM4", format!("node {} does not serve: {e:#}", node.id)))?;
    at("has clients");
    if world.phase() <= Phase::Chaos {
        workload::load(world, node, life).await?;
    }
    if world.phase() == Phase::Core {
        workload::settle(world, node, &at).await?;
        at("has settled");
        state.settled.store(true, Ordering::Relaxed);
        // The next thing that happens to this life is its end.
        return std::future::pending().await;
    }
    at("looks at everything");
    workload::last_checks(world, node).await?;
    state.checked.store(true, Ordering::Relaxed);
    Ok(())
}

/// The store loop, as `isochrone_consensus::shell` runs it on a thread.
async fn store_task(
    world: Arc<World>,
    mut groups: Store,
    inbox: Arc<Inbox>,
    notify: Arc<Notify>,
    to_disk: mpsc::Sender<(u64, LogBatch)>,
    mut to_peers: ToPeers,
    clock: Arc<dyn Clock>,
) {
    let mut events = Vec::new();
    let mut tick = tokio::time::interval(groups.tick());
    loop {
        if !groups.has_work() {
            tokio::select! {
                biased;
                () = notify.notified() => {}
                _ = tick.tick(), if groups.needs_ticks() => events.push(Event::Tick),
            }
        }
        inbox.drain(&mut events);
        let mut out = Output::default();
        if let Err(e) = groups.step(clock.monotonic_ns(), &mut events, &mut out) {
            panic!("a state machine could not apply: {e}");
        }
        for (to, messages) in out.messages {
            to_peers.send(to, messages);
        }
        if let Some((number, batch)) = out.log {
            world.note("batch", &[number, batch.entries.len() as u64]);
            if to_disk.send((number, batch)).await.is_err() {
                return;
            }
        }
        for snapshot in out.snapshots {
            to_peers.send_snapshot(snapshot);
        }
        for install in out.installs {
            install.start(&inbox);
        }
        for removal in out.removals {
            removal.start(&inbox);
        }
        if out.stop {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// The log writer, as `isochrone_wal::writer` runs it on a thread: everything that waits, one write, one sync.
async fn disk_task(
    mut log: Log,
    mut batches: mpsc::Receiver<(u64, LogBatch)>,
    inbox: Arc<Inbox>,
    latency: SplitMix64,
    slowest_us: u64,
) {
    while let Some((mut number, batch)) = batches.recv().await {
        let mut all = vec![to_wal_batch(batch)];
        while let Ok((next, batch)) = batches.try_recv() {
            number = next;
            all.push(to_wal_batch(batch));
        }
        tokio::time::sleep(Duration::from_micros(100 + latency.below(slowest_us - 100))).await;
        let result = log.append(&all).and_then(|()| log.sync());
        match result {
            Ok(()) => inbox.push(Event::Durable(Ok(number))),
            Err(e) => {
                inbox.close(&e.to_string());
                inbox.push(Event::Durable(Err(e.to_string())));
                return;
            }
        }
    }
}
