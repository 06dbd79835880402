//! One node: the layers between the log and the key-value face, joined. Threads and sockets are elsewhere, so that a
//! simulation builds the same node on its own disk and clock.
//!
//! Starting a node
//!   1. [`Node::assemble`] opens the shards that the engine's last flush holds (an empty engine gets the first two)
//!      and makes the store with a group for each.
//!   2. The caller runs the store ([`isochrone_consensus::shell`], or a task). Every group of one elects itself and
//!      applies the rest of its log; splits in it create their shards again.
//!   3. [`Node::serve`] waits until every shard serves, and brings the meta range up to date.
//!
//! Invariant N1: a shard's log is truncated only up to an index whose effects a finished flush holds.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use isochrone_base::codec::{put_bytes, put_u64};
use isochrone_base::{Bytes, Key, KeyRange, LogIndex, NodeId, ShardId, Timestamp, keyspace};
use isochrone_clock::Hlc;
use isochrone_consensus::wal_log::WalLog;
use isochrone_consensus::{Handle, NewGroup, Store as Groups, StoreConfig};
use isochrone_env::Env;
use isochrone_shard::api::{BoxFuture, Recover, ShardClient, Suspect};
use isochrone_shard::{LocalShards, Shards};
use isochrone_storage::Engine;
use isochrone_txn::kv::{Error, TxnOptions};
use isochrone_txn::{Coordinator, RecoverInBackground, Recoverer, Store};
use isochrone_wal::LogReader;

use crate::machine::{Machine, ToConsensus};
use crate::services::Services;

/// Shards that one pass of garbage collection visits before it lets others in; each visit is bounded by itself.
const GC_STEPS_MAX: usize = 10_000;
/// Longest wait for all shards to serve at start. Replay is part of it.
const SERVE_WAIT_MAX: Duration = Duration::from_secs(600);
/// The pause between two looks while waiting for it.
const SERVE_POLL: Duration = Duration::from_millis(2);

/// See the module.
pub struct Node {
    /// This node's id.
    pub id: NodeId,
    /// Its world.
    pub env: Env,
    /// Its clock.
    pub clock: Arc<Hlc>,
    /// Where rows live.
    pub engine: Arc<dyn Engine>,
    /// The durable part of its log.
    pub log: LogReader,
    /// Its shards.
    pub local: Arc<LocalShards>,
    /// Transactions and services: what the query layer sees.
    pub store: Arc<Store>,
    /// The store loop.
    pub groups: Handle,
    machine: Arc<Machine>,
    flushes: Mutex<Option<Flush>>,
}

/// A flush that was asked for, and what it lets the logs forget.
struct Flush {
    seq: u64,
    applied: Vec<(ShardId, LogIndex)>,
}

/// Holds the recoverer without keeping shards and coordinator alive in a circle.
struct WeakRecover(OnceLock<Weak<Recoverer>>);

impl Recover for WeakRecover {
    fn recover(&self, suspect: Suspect) {
        if let Some(recoverer) = self.0.get().and_then(Weak::upgrade) {
            RecoverInBackground(recoverer).recover(suspect);
        }
    }
}

/// A node that is joined and not yet running.
pub struct Assembled {
    /// The node.
    pub node: Arc<Node>,
    /// Its groups, to be run by the caller.
    pub groups: Groups,
    /// Recovery goes on while this is held.
    pub recoverer: Arc<Recoverer>,
}

impl Node {
    /// Joins the layers. Must be called inside the tokio runtime that shall carry the node's tasks.
    pub fn assemble(
        env: Env,
        id: NodeId,
        engine: Arc<dyn Engine>,
        log: LogReader,
        groups: Handle,
    ) -> anyhow::Result<Assembled> {
        let clock = Arc::new(Hlc::new(env.clock.clone(), Timestamp::MIN));
        let open = || Shards::open(engine.clone(), id, clock.clone(), isochrone_shard::Config::default());
        let mut shards = open()?;
        if shards.list().is_empty() {
            Shards::bootstrap(&*engine, &Shards::initial())?;
            // The first descriptors are in no log: they must outlive a crash before anything is logged on them.
            engine.flush()?;
            shards = open()?;
        }
        let machine = Arc::new(Machine::new(shards.clone(), id));
        let mut store = Groups::new(
            StoreConfig::new(id),
            Arc::new(WalLog(log.clone())),
            machine.clone(),
            env.random.clone(),
        )
        .map_err(anyhow::Error::msg)?;
        for meta in shards.list() {
            let group = NewGroup { shard: meta.shard, voters: vec![id], applied: meta.applied };
            store.create_group(group).map_err(anyhow::Error::msg)?;
        }
        let local =
            Arc::new(LocalShards::new(shards, Arc::new(ToConsensus(groups.clone())), env.timer.clone()));
        let client: Arc<dyn ShardClient> = local.clone();
        let coordinator = Coordinator::new(
            client,
            clock.clone(),
            env.random.clone(),
            env.timer.clone(),
            isochrone_txn::Config::default(),
        )?;
        let recoverer = Recoverer::new(coordinator.clone());
        let recover = WeakRecover(OnceLock::new());
        let _first = recover.0.set(Arc::downgrade(&recoverer));
        local.set_recover(Arc::new(recover));
        let services = Arc::new(Services::new(id, local.clone(), log.clone(), groups.clone()));
        let store_face = Arc::new(Store::new(coordinator, services.clone()));
        services.set_store(Arc::downgrade(&store_face));
        let node = Arc::new(Node {
            id,
            env,
            clock,
            engine,
            log,
            local,
            store: store_face,
            groups,
            machine,
            flushes: Mutex::new(None),
        });
        Ok(Assembled { node, groups: store, recoverer })
    }

    /// Waits until every shard serves, then brings the meta range up to date. Returns the number of shards.
    pub async fn serve(&self) -> anyhow::Result<usize> {
        let mut waited = Duration::ZERO;
        loop {
            let states = self.local.shards().states();
            if let Some(reason) = states.iter().find_map(|s| s.stopped.clone()) {
                anyhow::bail!("the node cannot serve: {reason}");
            }
            if states.iter().all(|s| s.serving) && leave_no_gap(&states) {
                // ADR 3: time goes on above everything that an earlier life may have served or written.
                let floor = states.iter().map(|s| s.read_limit.max(s.closed)).max().unwrap_or_default();
                self.clock.raise(floor);
                self.write_meta().await?;
                return Ok(states.len());
            }
            if waited >= SERVE_WAIT_MAX {
                anyhow::bail!("some shards did not begin to serve within {SERVE_WAIT_MAX:?}");
            }
            self.env.timer.sleep(SERVE_POLL).await;
            waited += SERVE_POLL;
        }
    }

    /// Writes the descriptors of this node's shards into the meta range, where they differ.
    async fn write_meta(&self) -> Result<(), Error> {
        write_meta(&self.store, &self.local, self.id).await
    }

    /// What is due now and then: leases, floors, recovery (the shards' own duties), flushes and truncation. To be
    /// called every 50 to 250 ms.
    pub async fn tick(&self, wal_bytes_max: u64, durable_engine: bool) -> anyhow::Result<()> {
        self.local.tick().await.map_err(|e| anyhow::anyhow!("a shard's own duties: {e}"))?;
        if durable_engine {
            let wal_bytes: u64 = self.log.segments().iter().map(|s| s.live_bytes).sum();
            self.flush_step(wal_bytes > wal_bytes_max)?;
        }
        Ok(())
    }

    /// Starts a flush when it is time, and truncates logs when one has finished (N1). Never waits.
    fn flush_step(&self, force: bool) -> anyhow::Result<()> {
        let mut flush = self.flushes.lock().expect("nothing panics while it is held");
        if let Some(f) = flush.take_if(|f| self.engine.flushed_seq() >= f.seq) {
            self.groups.truncate(f.applied);
        }
        if flush.is_none() && (force || self.engine.needs_flush()) {
            let applied = self.machine.written(); // before the request: the flush holds at least this
            let seq = self.engine.request_flush()?;
            *flush = Some(Flush { seq, applied });
        }
        Ok(())
    }

    /// Makes everything applied durable in the engine and lets the logs forget it: a clean stop, after which a start
    /// has nothing to replay. Blocks.
    pub fn flush_and_truncate(&self) -> anyhow::Result<()> {
        let applied = self.machine.written();
        self.engine.flush()?;
        self.groups.truncate(applied);
        Ok(())
    }

    /// Drops versions that nobody can read any more: raises every shard's threshold to `ttl` ago and removes what lies
    /// below, in bounded steps.
    pub async fn collect_garbage(&self, ttl: Duration) -> anyhow::Result<()> {
        let to = self.clock.latest().minus_micros(u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX));
        if to == Timestamp::MIN {
            return Ok(());
        }
        self.local.raise_gc_threshold(to).await?;
        for state in self.local.shards().states() {
            let mut resume = None;
            for _ in 0..GC_STEPS_MAX {
                resume = self.local.shards().collect_garbage(state.shard, resume)?;
                if resume.is_none() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// This node holds every shard. A gap between them is a split in the log that is just being applied again: the left side
/// may serve a moment before the right one can be seen.
fn leave_no_gap(states: &[isochrone_shard::ShardState]) -> bool {
    let mut ranges: Vec<&KeyRange> = states.iter().map(|s| &s.range).collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return false };
    first.start.is_empty()
        && last.end.is_empty()
        && ranges.windows(2).all(|pair| !pair[0].end.is_empty() && pair[0].end == pair[1].start)
}

/// A shard's descriptor as the meta range holds it: id, range, epoch, replicas.
pub(crate) fn encode_descriptor(shard: ShardId, range: &KeyRange, epoch: u64, replicas: &[NodeId]) -> Bytes {
    let mut out = vec![1]; // version of this encoding
    put_u64(&mut out, shard.0);
    put_bytes(&mut out, &range.start);
    put_bytes(&mut out, &range.end);
    put_u64(&mut out, epoch);
    put_u64(&mut out, replicas.len() as u64);
    for node in replicas {
        put_u64(&mut out, u64::from(node.0));
    }
    out.into()
}

/// See [`Node::write_meta`]; also after a split.
pub(crate) fn write_meta<'a>(
    store: &'a Store,
    local: &'a LocalShards,
    node: NodeId,
) -> BoxFuture<'a, Result<(), Error>> {
    Box::pin(async move {
        let wanted: Vec<(Key, Bytes)> = local
            .shards()
            .list()
            .into_iter()
            .map(|m| {
                (keyspace::meta_key(&m.range.start), encode_descriptor(m.shard, &m.range, m.epoch, &[node]))
            })
            .collect();
        let backoff = store.coordinator().backoff();
        isochrone_txn::retry::retry(store, backoff, &TxnOptions::default(), 100, |mut txn| {
            let wanted = &wanted;
            async move {
                let mut changed = false;
                for (key, value) in wanted {
                    if txn.get(key, isochrone_txn::kv::Lock::None).await?.as_ref() != Some(value) {
                        txn.put(key.clone(), Some(value.clone()))?;
                        changed = true;
                    }
                }
                if changed {
                    txn.commit().await?;
                } else {
                    txn.rollback();
                }
                Ok(())
            }
        })
        .await
    })
}
