//! A node with its threads: what the embedded library opens, and the server serves.
//!
//! Opening takes the directory's lock, opens log and engine, starts the store loop and the log writer, and returns
//! when every shard serves. Closing flushes, stops the loop, and writes a last durable-end mark, so that the next
//! start has nothing to replay.
//!
//! How it fails: after a failed write or fsync the node goes on refusing ([`Running::failure`] says why); only a restart
//! helps. A state machine that cannot apply an entry ends the store loop, which looks the same from outside.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use isochrone_consensus::shell::{self, NoPeers, Wiring};
use isochrone_consensus::wal_log::WalSink;
use isochrone_env::Env;
use isochrone_storage::metrics::{Kind, METRICS};
use isochrone_storage::{Engine, LsmConfig, LsmEngine, MemEngine};
use isochrone_txn::Recoverer;
use isochrone_wal::writer::{self, LogWriter};
use isochrone_wal::{Log, Tail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{NodeConfig, Storage};
use crate::datadir::{self, DirLock, Identity};
use crate::http::Health;
use crate::node::{Assembled, Node};

/// How often old versions are collected.
const GC_EVERY: Duration = Duration::from_secs(60);

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
    /// Opens the node in a directory. Must be called inside a tokio runtime with timers.
    pub async fn open(config: &NodeConfig) -> anyhow::Result<Running> {
        let env = isochrone_env::os::env(0).context("cannot read entropy")?;
        let lock = datadir::lock(&config.data_dir)?;
        let identity = datadir::identity(&env, &config.data_dir)?;
        let log = open_log(&env, config)?;
        let engine: Arc<dyn Engine> = match config.storage {
            Storage::Memory => Arc::new(MemEngine::new()),
            Storage::Lsm => {
                let path = config.data_dir.join("store");
                let opened = open_engine(&env, config, &path).await;
                Arc::new(opened.with_context(|| format!("cannot open the rows in {}", path.display()))?)
            }
        };
        let reader = log.reader();
        let (wiring, handle) = Wiring::new();
        let Assembled { node, groups, recoverer } =
            Node::assemble(env.clone(), identity.node, engine, reader, handle)?;
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
        let tick = Duration::from_millis(100);
        let sink = Box::new(WalSink(writer.clone()));
        let loop_thread =
            shell::run(groups, wiring, sink, Box::new(NoPeers), tick, env.clock.clone(), on_fatal)
                .context("cannot start the store loop")?;
        let (stop, stopping) = watch::channel(false);
        let durable_engine = config.storage == Storage::Lsm;
        let mut running = Running {
            node: node.clone(),
            identity,
            durable_engine,
            stop,
            duties: Vec::new(),
            loop_thread: Some(loop_thread),
            writer,
            failure,
            _recoverer: recoverer,
            _lock: lock,
        };
        let shards = node.serve().await?;
        tracing::info!(shards, "serving");
        running.duties = vec![
            tokio::spawn(collect_garbage(node.clone(), config.gc_ttl, stopping.clone())),
            tokio::spawn(duties(node, config.clone(), durable_engine, stopping)),
        ];
        Ok(running)
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Whose directory it is.
    pub fn identity(&self) -> Identity {
        self.identity
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

fn open_log(env: &Env, config: &NodeConfig) -> anyhow::Result<Log> {
    let dir = config.data_dir.join("wal");
    let mut wal = isochrone_wal::Config::new(&dir);
    wal.segment_bytes = config.wal_segment_bytes;
    let (mut log, report) = Log::open(env.disk.clone(), wal)
        .with_context(|| format!("cannot open the log in {}", dir.display()))?;
    log.set_clock(env.clock.clone());
    if let Tail::Cut { file, offset, what } = &report.tail {
        tracing::warn!(file = %file.display(), offset, what, "the log ended in a torn write, which was cut");
    }
    Ok(log)
}

/// The node's own duties, in time for leases.
async fn duties(
    node: Arc<Node>,
    config: NodeConfig,
    durable_engine: bool,
    mut stopping: watch::Receiver<bool>,
) {
    let mut warned = false;
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = tokio::time::sleep(config.tick) => {}
        }
        match node.tick(config.wal_bytes_max, durable_engine).await {
            Ok(()) => warned = false,
            Err(error) if !warned => {
                // Repeated ticks meet the same trouble: say it once.
                tracing::warn!(%error, "some duties could not be done; they are tried again");
                warned = true;
            }
            Err(_) => {}
        }
        export(&*node.engine);
    }
}

/// Garbage collection, which may take long and must not hold up leases.
async fn collect_garbage(node: Arc<Node>, ttl: Duration, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            () = tokio::time::sleep(GC_EVERY) => {}
        }
        tokio::select! {
            biased;
            _ = stopping.changed() => return,
            result = node.collect_garbage(ttl) => if let Err(error) = result {
                tracing::warn!(%error, "old versions could not be collected; tried again in a minute");
            },
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

/// What the engine's metrics mean, for the recorder.
pub(crate) fn describe_metrics() {
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
        // The rows stay readable and the log has them; but no flush will end any more.
        if let Some(error) = self.node.engine.stats().poisoned {
            return Err(format!("the storage engine has failed: {error}"));
        }
        match self.node.local.shards().states().into_iter().find_map(|s| s.stopped.map(|why| (s.shard, why)))
        {
            Some((shard, why)) => Err(format!("shard {shard} has stopped: {why}")),
            None => Ok(()),
        }
    }
}
