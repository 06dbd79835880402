//! A node with its threads: what the embedded library opens, and the server serves.
//!
//! Opening takes the directory's lock, opens log and engine, starts the store loop and the log writer, and returns
//! when every shard serves. Closing flushes, stops the loop, and writes a last durable-end mark, so that the next
//! start has nothing to replay.
//!
//! How it fails: after a failed write or fsync the node goes on refusing ([`Running::failure`] says why); only a restart
//! helps. A state machine that cannot apply an entry ends the store loop, which looks the same from outside.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use isochrone_base::held::Held;
use isochrone_base::{Bytes, NodeId};
use isochrone_consensus::shell::{self, Wiring};
use isochrone_consensus::wal_log::WalSink;
use isochrone_env::Env;
use isochrone_net::{BoxFuture, CallError, Lane, Network, PeerStatus};
use isochrone_storage::metrics::{Kind, METRICS};
use isochrone_storage::{Engine, LsmConfig, LsmEngine, MemEngine};
use isochrone_txn::Recoverer;
use isochrone_wal::writer::{self, LogWriter};
use isochrone_wal::{Log, Tail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::NEWS_EVERY;
use crate::cluster::liveness::RENEW_EVERY;
use crate::cluster::snapshots::ToPeers;
use crate::config::{NodeConfig, Storage};
use crate::datadir::{self, DirLock, Identity};
use crate::http::Health;
use crate::node::{Assembled, Node, NodeParts, Tuning};

/// A node's place in the world.
pub struct Place {
    /// Who it is.
    pub identity: Identity,
    /// The way to others.
    pub network: Arc<dyn Network>,
    /// Where others reach it; empty if they cannot.
    pub address: String,
    /// Where SQL clients reach it; empty if they cannot.
    pub sql: String,
}

/// Nobody else is there.
struct NoNetwork;

impl Network for NoNetwork {
    fn send(&self, _to: NodeId, _payload: Bytes) -> bool {
        false
    }

    fn call(
        &self,
        to: NodeId,
        _lane: Lane,
        _payload: Bytes,
        _wait_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let error = CallError::NotSent(format!("node {to} cannot be reached: this node has no network"));
        Box::pin(std::future::ready(Err(error)))
    }

    fn set_peer(&self, _node: NodeId, _address: &str) {}

    fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }
}

/// How often old versions are collected.
const GC_EVERY: Duration = Duration::from_secs(60);

/// How often a node whose log was cut looks whether it has got back what it may have lost.
const DOUBT_EVERY: Duration = Duration::from_secs(2);
/// How often leaderships are looked at.
const PLACE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the engine of a node that was dropped in this process.
const ENGINE_WAIT_MAX: Duration = Duration::from_secs(5);
/// The pause between two tries.
const ENGINE_POLL: Duration = Duration::from_millis(5);

/// See the module.
pub struct Running {
    node: Arc<Node>,
    identity: Identity,
    durable_engine: bool,
    stop: watch::Sender<bool>,
    duties: Vec<JoinHandle<()>>,
    loop_thread: Option<shell::Running>,
    writer: Arc<LogWriter>,
    failure: Arc<Mutex<Option<String>>>,
    _recoverer: Arc<Recoverer>,
    // Last: the directory is free when everything else is gone.
    _lock: DirLock,
}

impl Running {
    /// Opens the node in a directory, without a network. Must be called inside a tokio runtime with timers.
    ///
    /// # Errors
    /// Also when the directory belongs to a cluster of several nodes.
    pub async fn open(config: &NodeConfig) -> anyhow::Result<Running> {
        let env = isochrone_env::os::env(0).context("cannot read entropy")?;
        let lock = datadir::lock(&config.data_dir)?;
        let identity = datadir::create_alone(&env, &config.data_dir)?;
        if !identity.is_alone() {
            anyhow::bail!(
                "{} is the directory of node {} of a cluster of several nodes: run it with `isochrone start`",
                config.data_dir.display(),
                identity.node
            );
        }
        let place =
            Place { identity, network: Arc::new(NoNetwork), address: String::new(), sql: String::new() };
        let opened = Running::prepare(config, env, lock, place).await?;
        opened.serve().await
    }

    /// Opens the node in a directory that is locked: it takes part in the cluster, and does not serve yet. What other nodes
    /// send must reach [`Node::cluster`] from now on.
    pub async fn prepare(
        config: &NodeConfig,
        env: Env,
        lock: DirLock,
        place: Place,
    ) -> anyhow::Result<Opened> {
        let dir = &config.data_dir;
        let (log, log_was_cut) = open_log(&env, config, !place.identity.is_alone())?;
        let doubted = datadir::is_doubtful(&env, dir)?;
        if (log_was_cut || doubted) && config.trust_cut_log {
            tracing::warn!(
                "the end of the log was cut, and is trusted as --trust-cut-log says: what this node had acknowledged may be lost"
            );
            if doubted {
                datadir::clear_doubt(&env, dir)?;
            }
        }
        let log_was_cut = (log_was_cut || doubted) && !config.trust_cut_log;
        let engine: Arc<dyn Engine> = match config.storage {
            Storage::Memory => Arc::new(MemEngine::new()),
            Storage::Lsm => {
                let path = config.data_dir.join("store");
                let opened = open_engine(&env, config, &path).await;
                Arc::new(opened.with_context(|| format!("cannot open the rows in {}", path.display()))?)
            }
        };
        let (wiring, handle) = Wiring::new();
        let Assembled { node, groups, recoverer } = Node::assemble(NodeParts {
            env: env.clone(),
            identity: place.identity.clone(),
            engine,
            log: log.reader(),
            log_was_cut,
            groups: handle.clone(),
            network: place.network.clone(),
            address: place.address,
            sql: place.sql,
            snapshots: config.data_dir.join("snapshots"),
            tuning: Tuning { clock_error_max: config.clock_error_max, ..Tuning::default() },
        })?;
        let writer = Arc::new(writer::spawn(log).context("cannot start the log writer")?);
        let failure = Arc::new(Mutex::new(None));
        let on_fatal = {
            let (failure, local) = (failure.clone(), node.local.clone());
            Box::new(move |reason: String| {
                tracing::error!(reason, "the store loop has ended");
                local.shards().stop(&reason);
                *failure.lock().expect("nothing panics while it is held") = Some(reason);
            })
        };
        let sink = Box::new(WalSink(writer.clone()));
        let to_peers = Box::new(ToPeers::new(place.network, handle));
        let loop_thread = shell::run(groups, wiring, sink, to_peers, env.clock.clone(), on_fatal)
            .context("cannot start the store loop")?;
        let (stop, stopping) = watch::channel(false);
        let durable_engine = config.storage == Storage::Lsm;
        let running_node = node.clone();
        let running = Running {
            node: node.clone(),
            identity: place.identity,
            durable_engine,
            stop,
            // Leases of shards are due at once: others wait for what this node leads.
            duties: vec![
                tokio::spawn(duties(node.clone(), config.clone(), durable_engine, stopping.clone())),
                tokio::spawn(exchange_news(node.clone(), stopping.clone())),
                tokio::spawn(leave_service(node, stopping.clone())),
                tokio::spawn(settle_doubt(
                    running_node,
                    config.data_dir.clone(),
                    log_was_cut,
                    stopping.clone(),
                )),
            ],
            loop_thread: Some(loop_thread),
            writer,
            failure,
            _recoverer: recoverer,
            _lock: lock,
        };
        Ok(Opened { running, gc_ttl: config.gc_ttl, stopping })
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Whose directory it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What `/health` asks.
    pub fn health(&self) -> Arc<dyn Health> {
        Arc::new(NodeHealth {
            node: self.node.clone(),
            writer: self.writer.clone(),
            failure: self.failure.clone(),
        })
    }

    /// Stops the node. What was acknowledged is durable with or without this; it makes the next start quick.
    pub async fn close(mut self) -> anyhow::Result<()> {
        let _ = self.stop.send(true);
        for duty in std::mem::take(&mut self.duties) {
            duty.await.context("the node's duties panicked")?;
        }
        let (node, durable) = (self.node.clone(), self.durable_engine && self.writer.failed().is_none());
        let loop_thread = self.loop_thread.take();
        let writer = self.writer.clone();
        // Flushing and joining threads block.
        tokio::task::spawn_blocking(move || {
            let flushed = if durable { node.flush_and_truncate() } else { Ok(()) };
            drop(loop_thread);
            let closed = writer.shutdown();
            flushed.context("the last flush")?;
            closed.context("closing the log")
        })
        .await
        .context("stopping")?
    }
}

/// A node that takes part in its cluster and does not serve clients yet.
pub struct Opened {
    running: Running,
    gc_ttl: Duration,
    stopping: watch::Receiver<bool>,
}

impl Opened {
    /// The node: where what others send goes.
    pub fn node(&self) -> &Arc<Node> {
        self.running.node()
    }

    /// Waits until the node can be of use to clients.
    pub async fn serve(self) -> anyhow::Result<Running> {
        let Opened { mut running, gc_ttl, stopping } = self;
        let node = running.node.clone();
        let shards = node.serve().await?;
        tracing::info!(shards, "serving");
        running.duties.extend([
            tokio::spawn(collect_garbage(node.clone(), gc_ttl, stopping.clone())),
            tokio::spawn(keep_lease(node.clone(), stopping.clone())),
            tokio::spawn(break_deadlocks(node.clone(), stopping.clone())),
            tokio::spawn(retire_replicas(node.clone(), stopping.clone())),
            tokio::spawn(place_leaders(node, stopping)),
        ]);
        Ok(running)
    }
}

/// Repeats a duty until the node stops.
async fn every<F: Future<Output = ()>>(
    period: Duration,
    mut stopping: watch::Receiver<bool>,
    mut duty: impl FnMut() -> F,
) {
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = tokio::time::sleep(period) => {}
        }
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = duty() => {}
        }
    }
}

async fn exchange_news(node: Arc<Node>, stopping: watch::Receiver<bool>) {
    every(NEWS_EVERY, stopping, || node.cluster.exchange_news()).await;
}

/// Forgets the doubt about the log when every group has got back what it may have lost.
async fn settle_doubt(node: Arc<Node>, dir: PathBuf, doubtful: bool, mut stopping: watch::Receiver<bool>) {
    if !doubtful {
        return;
    }
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = tokio::time::sleep(DOUBT_EVERY) => {}
        }
        match node.is_whole().await {
            None => return,
            Some(false) => continue,
            Some(true) => {}
        }
        if let Err(error) = datadir::clear_doubt(&node.env, &dir) {
            tracing::warn!(%error, "the doubt about the log is over, and could not be cleared; the next start doubts again");
        }
        return;
    }
}

async fn keep_lease(node: Arc<Node>, stopping: watch::Receiver<bool>) {
    every(RENEW_EVERY, stopping, || async {
        if let Err(error) = node.keep_lease().await {
            tracing::warn!(%error, "this node's lease was not renewed; tried again");
        }
    })
    .await;
}

async fn break_deadlocks(node: Arc<Node>, mut stopping: watch::Receiver<bool>) {
    tokio::select! {
        biased;
        _ = stopping.changed() => {}
        () = node.cluster.watch_deadlocks() => {}
    }
}

async fn place_leaders(node: Arc<Node>, stopping: watch::Receiver<bool>) {
    every(PLACE_EVERY, stopping, || async {
        node.cluster.release_orphans().await;
        if node.cluster.clocks().is_out() {
            return;
        }
        if let Err(error) = node.cluster.place_leaders().await {
            tracing::debug!(%error, "a leadership was not moved; tried again");
        }
        if let Err(error) = node.cluster.place_replicas().await {
            tracing::debug!(%error, "no replica was moved; tried again");
        }
    })
    .await;
}

/// By itself: it waits for nodes that do not answer, and leaderships shall not wait for those.
async fn retire_replicas(node: Arc<Node>, stopping: watch::Receiver<bool>) {
    every(PLACE_EVERY, stopping, || async {
        if !node.cluster.clocks().is_out() {
            node.cluster.retire_replicas().await;
        }
    })
    .await;
}

/// A node with a wrong clock can be elected before it serves, and then leads nothing for long either.
async fn leave_service(node: Arc<Node>, stopping: watch::Receiver<bool>) {
    every(PLACE_EVERY, stopping, || async {
        if node.cluster.clocks().is_out()
            && let Err(error) = node.cluster.place_leaders().await
        {
            tracing::debug!(%error, "a leadership was not given away; tried again");
        }
    })
    .await;
}

/// The directory's lock is ours: whoever still has the engine open is a node of this process that was dropped, and
/// whose last tasks are about to end.
async fn open_engine(env: &Env, config: &NodeConfig, path: &Path) -> isochrone_storage::Result<LsmEngine> {
    let mut waited = Duration::ZERO;
    loop {
        let lsm = LsmConfig { cache_bytes: config.cache_bytes, ..LsmConfig::default() };
        match LsmEngine::open(path, lsm) {
            Err(isochrone_storage::Error::Locked(..)) if waited < ENGINE_WAIT_MAX => {
                env.timer.sleep(ENGINE_POLL).await;
                waited += ENGINE_POLL;
            }
            other => return other,
        }
    }
}

/// The log, and whether its end was cut. Among several nodes the doubt that follows is durable before the cut.
fn open_log(env: &Env, config: &NodeConfig, several: bool) -> anyhow::Result<(Log, bool)> {
    let dir = config.data_dir.join("wal");
    let mut wal = isochrone_wal::Config::new(&dir);
    wal.segment_bytes = config.wal_segment_bytes;
    let mut before_a_cut = |tail: &Tail| match tail {
        Tail::Cut { .. } if several => {
            datadir::set_doubt(env, &config.data_dir).map_err(std::io::Error::other)
        }
        _ => Ok(()),
    };
    let (mut log, report) = Log::open_telling(env.disk.clone(), wal, &mut before_a_cut)
        .with_context(|| format!("cannot open the log in {}", dir.display()))?;
    log.set_clock(env.clock.clone());
    if let Tail::Cut { file, offset, what } = &report.tail {
        tracing::warn!(file = %file.display(), offset, what, "the log ended in a torn write, which was cut");
    }
    Ok((log, matches!(report.tail, Tail::Cut { .. })))
}

/// The node's own duties, in time for leases.
async fn duties(
    node: Arc<Node>,
    config: NodeConfig,
    durable_engine: bool,
    mut stopping: watch::Receiver<bool>,
) {
    let (mut warned, mut ticks) = (false, 0u64);
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = tokio::time::sleep(config.tick) => {}
        }
        // Without a quorum a tick waits for its entries, and the stop does not wait for it.
        let ticked = tokio::select! {
            biased;
            _ = stopping.changed() => return,
            ticked = node.tick(config.wal_bytes_max, durable_engine) => ticked,
        };
        match ticked {
            Ok(()) => warned = false,
            Err(error) if !warned => {
                // Repeated ticks meet the same trouble: say it once.
                tracing::warn!(%error, "some duties could not be done; they are tried again");
                warned = true;
            }
            Err(_) => {}
        }
        export(&*node.engine);
        // Goes through every lock that is held: not at each tick.
        if ticks.is_multiple_of(TICKS_PER_LOOK) {
            export_held(&node.held());
        }
        ticks += 1;
    }
}

/// Garbage collection, which may take long and must not hold up leases.
async fn collect_garbage(node: Arc<Node>, ttl: Duration, stopping: watch::Receiver<bool>) {
    every(GC_EVERY, stopping, || async {
        if let Err(error) = node.collect_garbage(ttl).await {
            tracing::warn!(%error, "old versions could not be collected; tried again in a minute");
        }
    })
    .await;
}

/// What a queue or a table of the node holds, and its bound.
const HELD: &str = "isochrone_held_entries";
const HELD_MAX: &str = "isochrone_held_entries_max";
const HELD_BYTES: &str = "isochrone_held_bytes";

/// Ticks from one look at queues and tables to the next.
const TICKS_PER_LOOK: u64 = 10;

/// What queues and tables in memory hold, as metrics.
fn export_held(all: &[Held]) {
    for held in all {
        metrics::gauge!(HELD, "of" => held.what).set(held.entries as f64);
        metrics::gauge!(HELD_BYTES, "of" => held.what).set(held.bytes as f64);
        if held.entries_max < usize::MAX {
            metrics::gauge!(HELD_MAX, "of" => held.what).set(held.entries_max as f64);
        }
    }
}

/// The engine's figures as metrics.
fn export(engine: &dyn Engine) {
    let stats = engine.stats();
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::counter!(metric.name).absolute((metric.read)(&stats)),
            Kind::Gauge => metrics::gauge!(metric.name).set((metric.read)(&stats) as f64),
        }
    }
}

/// What these metrics mean, for the recorder.
pub(crate) fn describe_metrics() {
    metrics::describe_gauge!(
        HELD,
        "entries of a queue or table in memory; of queues, the most since the start"
    );
    metrics::describe_gauge!(HELD_MAX, "the bound of a queue or table in memory");
    metrics::describe_gauge!(HELD_BYTES, metrics::Unit::Bytes, "about what a queue or table in memory takes");
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
        }
    }
}

struct NodeHealth {
    node: Arc<Node>,
    writer: Arc<LogWriter>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Health for NodeHealth {
    fn health(&self) -> Result<(), String> {
        if let Some(error) = self.writer.failed() {
            return Err(format!("the log has failed: {error}"));
        }
        if let Some(reason) = &*self.failure.lock().expect("nothing panics while it is held") {
            return Err(reason.clone());
        }
        if let Some(why) = self.node.cluster.clocks().trouble() {
            return Err(format!("out of service: {why}"));
        }
        // The rows stay readable and the log has them; but no flush will end any more.
        if let Some(error) = self.node.engine.stats().poisoned {
            return Err(format!("the storage engine has failed: {error}"));
        }
        let states = self.node.local.shards().states_light();
        match states.into_iter().find_map(|s| s.stopped.map(|why| (s.shard, why))) {
            Some((shard, why)) => Err(format!("shard {shard} has stopped: {why}")),
            None => Ok(()),
        }
    }
}
