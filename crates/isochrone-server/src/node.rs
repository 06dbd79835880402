//! One node: the layers between the log and the key-value face, joined. Threads and sockets are elsewhere, so that a
//! simulation builds the same node on its own disk, clock and network.
//!
//! Starting a node
//!   1. [`Node::assemble`] finishes installs that a crash interrupted, opens the shards that the engine's last flush holds
//!      (an empty engine of one of the first voters gets the first two) and makes the store with a group for each.
//!   2. The caller runs the store ([`isochrone_consensus::shell`], or a task), and lets the network's messages in
//!      ([`Node::cluster`]). Groups elect leaders and apply the rest of their logs; splits in it create their shards again.
//!   3. [`Node::serve`] waits until this node can be of use: alone, when every shard serves; among others, when its lease has
//!      begun, for which the system keys must be reached.
//!
//! Invariant N1: a shard's log is truncated only up to an index whose effects a finished flush holds; with several
//! replicas also only as far as the log itself says (command `truncate`), which its leader decides by how far the followers are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};
use isochrone_base::held::Held;
use isochrone_base::{Bytes, Key, KeyRange, LogIndex, NodeId, ShardId, Timestamp, bank, keyspace};
use isochrone_clock::Hlc;
use isochrone_consensus::wal_log::WalLog;
use isochrone_consensus::{GroupStatus, Handle, Progress, Store as Groups, StoreConfig};
use isochrone_env::Env;
use isochrone_net::Network;
use isochrone_shard::api::{Error as ShardError, Recover, ShardClient, Suspect};
use isochrone_shard::{LocalShards, Routing, ShardMeta, Shards, SnapshotError, StagedReader};
use isochrone_storage::Engine;
use isochrone_txn::kv::{Error, TxnOptions};
use isochrone_txn::{Coordinator, RecoverInBackground, Recoverer, Store};
use isochrone_wal::LogReader;

use crate::cluster::clocks::Clocks;
use crate::cluster::liveness::Liveness;
use crate::cluster::message::{Ask, ReplicaStatus};
use crate::cluster::router::Router;
use crate::cluster::snapshots::Incoming;
use crate::cluster::{self, Cluster, Parts};
use crate::datadir::Identity;
use crate::machine::{Machine, Staging, ToConsensus, group};
use crate::services::Services;

/// Shards that one pass of garbage collection visits before it lets others in; each visit is bounded by itself.
const GC_STEPS_MAX: usize = 10_000;
/// Longest wait for all shards of a node that is alone to serve at start. Replay is part of it.
const SERVE_WAIT_MAX: Duration = Duration::from_secs(600);
/// The pause between two looks while waiting for it.
const SERVE_POLL: Duration = Duration::from_millis(2);
/// The pause between two tries to reach the system keys at start, which need a quorum of nodes.
const QUORUM_POLL: Duration = Duration::from_millis(100);
/// How often a start without a quorum says that it waits.
const QUORUM_SAY_EVERY: u32 = 50;
/// A truncation is worth an entry when it drops this many, or when the log is too large.
const TRUNCATE_STEP: u64 = 1_000;

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
    /// Its place among others: where what they send goes.
    pub cluster: Arc<Cluster>,
    tuning: Tuning,
    machine: Arc<Machine>,
    services: Arc<Services>,
    flushes: Mutex<Flushes>,
}

/// What was asked to be flushed, and what flushes hold.
#[derive(Default)]
struct Flushes {
    /// A flush that was asked for: its number, and what it will hold.
    asked: Option<(u64, Vec<(ShardId, LogIndex)>)>,
    /// What finished flushes hold.
    held: BTreeMap<ShardId, LogIndex>,
    /// Up to where each log was truncated here.
    truncated: BTreeMap<ShardId, LogIndex>,
}

/// Constants that a simulation draws anew; the default is what ships.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Entries that the log of a shard keeps for a follower that is not there; what is behind further gets a snapshot.
    pub keep_for_absent: u64,
    /// Log batches written but not yet durable ([`StoreConfig::batches_in_flight_max`]).
    pub batches_in_flight_max: usize,
    /// The times that shards live by.
    pub shard: isochrone_shard::Config,
    /// The largest error bound of this node's clock with which it serves; at most [`cluster::CLOCK_ERROR_MAX`].
    pub clock_error_max: Duration,
    /// The times that commits live by. How wide the uncertainty window is, the node says itself.
    pub txn: isochrone_txn::Config,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            keep_for_absent: 100_000,
            batches_in_flight_max: 8,
            clock_error_max: cluster::CLOCK_ERROR_MAX,
            shard: isochrone_shard::Config::default(),
            txn: isochrone_txn::Config::default(),
        }
    }
}

/// What a node is made of.
pub struct NodeParts {
    /// Its world.
    pub env: Env,
    /// Who it is.
    pub identity: Identity,
    /// Where rows live.
    pub engine: Arc<dyn Engine>,
    /// Its log.
    pub log: LogReader,
    /// The log was cut at its end when it was opened: see [`StoreConfig::recovering`].
    pub log_was_cut: bool,
    /// The store loop's inbox.
    pub groups: Handle,
    /// The way to other nodes.
    pub network: Arc<dyn Network>,
    /// Where others reach it.
    pub address: String,
    /// Where SQL clients reach it.
    pub sql: String,
    /// Where arriving snapshots are kept.
    pub snapshots: PathBuf,
    /// Its constants.
    pub tuning: Tuning,
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

/// Finishes what a crash interrupted, and removes what is not needed.
fn reinstall(shards: &Shards, staging: &Staging, log: &LogReader) -> anyhow::Result<()> {
    let mut waiting = Vec::new();
    for path in staging.files()? {
        let meta = match StagedReader::open(&*staging.disk, &path) {
            Ok(reader) => reader.meta().clone(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a staged snapshot cannot be read; another one will come");
                staging.discard(&path);
                continue;
            }
        };
        let applied = shards.list().into_iter().find(|m| m.shard == meta.shard).map_or(0, |m| m.applied);
        // The log begins behind the snapshot: Raft took it, and the rows may be there by half.
        let taken = log.first_index(meta.shard).is_ok_and(|first| first == meta.index + 1);
        // Also when the engine itself says that an install of it was interrupted.
        let interrupted = shards.interrupted().contains(&meta.shard);
        if (taken && applied < meta.index) || interrupted {
            tracing::info!(shard = %meta.shard, index = meta.index, "installing a snapshot again");
            waiting.push(path);
        } else {
            staging.discard(&path);
        }
    }
    // What was flushed may be from before a split: the left half still covers the right one's keys, until a snapshot of it
    // is installed, too, or its log is applied again.
    loop {
        let (before, mut refused) = (waiting.len(), Vec::new());
        for path in waiting {
            match staging.install(shards, &path) {
                Ok(_) => {}
                Err(SnapshotError::Refused(why)) => refused.push((path, why)),
                Err(e) => return Err(e.into()),
            }
        }
        if refused.len() == before {
            for (path, why) in refused {
                tracing::warn!(path = %path.display(), why, "a staged snapshot has to wait; its peers fill the replica");
            }
            return Ok(());
        }
        waiting = refused.into_iter().map(|(path, _)| path).collect();
    }
}

impl Node {
    /// Joins the layers. Must be called inside the tokio runtime that shall carry the node's tasks.
    pub fn assemble(parts: NodeParts) -> anyhow::Result<Assembled> {
        let NodeParts {
            env,
            identity,
            engine,
            log,
            log_was_cut,
            groups,
            network,
            address,
            sql,
            snapshots,
            tuning,
        } = parts;
        let id = identity.node;
        let alone = identity.is_alone();
        let clock = Arc::new(Hlc::new(env.clock.clone(), Timestamp::MIN));
        let open = || Shards::open(engine.clone(), id, clock.clone(), tuning.shard.clone());
        let mut shards = open()?;
        let staging = Staging { disk: env.disk.clone(), dir: snapshots.clone() };
        reinstall(&shards, &staging, &log)?;
        shards.finish_removals()?;
        let blank =
            shards.list().is_empty() && shards.interrupted().is_empty() && shards.removed().is_empty();
        if blank && identity.voters.contains(&id) {
            Shards::bootstrap(&*engine, &Shards::initial(&identity.voters))?;
            // The first descriptors are in no log: they must outlive a crash before anything is logged on them.
            engine.flush()?;
            shards = open()?;
        }
        let machine = Arc::new(Machine::new(shards.clone(), staging));
        let config = StoreConfig {
            recovering: log_was_cut && !bank::has("cut-log-not-doubted"),
            batches_in_flight_max: tuning.batches_in_flight_max,
            ..StoreConfig::new(id)
        };
        let mut store =
            Groups::new(config, Arc::new(WalLog(log.clone())), machine.clone(), env.random.clone())
                .map_err(anyhow::Error::msg)?;
        for meta in shards.list() {
            store.create_group(group(meta)).map_err(anyhow::Error::msg)?;
        }
        let routing = if alone { Routing::Alone } else { Routing::Cluster };
        let proposer = Arc::new(ToConsensus(groups.clone()));
        let local = Arc::new(LocalShards::new(shards, proposer, env.timer.clone(), routing));
        let router = Arc::new(Router::new(id, local.clone(), clock.clone(), network.clone()));
        // Where all shards are here, nothing stands between the coordinator and them.
        let client: Arc<dyn ShardClient> = if alone { local.clone() } else { router.clone() };
        let config = isochrone_txn::Config {
            uncertainty: if alone { Duration::ZERO } else { cluster::UNCERTAINTY },
            ..tuning.txn.clone()
        };
        let coordinator =
            Coordinator::new(client, clock.clone(), env.random.clone(), env.timer.clone(), config)?;
        let recoverer = Recoverer::new(coordinator.clone());
        let recover = WeakRecover(OnceLock::new());
        let _first = recover.0.set(Arc::downgrade(&recoverer));
        local.set_recover(Arc::new(recover));
        let liveness = Arc::new(Liveness::new(
            id,
            address.clone(),
            sql.clone(),
            alone,
            network.clone(),
            env.timer.clone(),
        ));
        let clocks = Clocks::new(id, alone, tuning.clock_error_max, env.clock.clone(), clock.clone());
        let cluster = Arc::new(Cluster::new(Parts {
            identity,
            address,
            sql,
            env: env.clone(),
            clock: clock.clone(),
            network,
            local: local.clone(),
            router,
            groups: groups.clone(),
            liveness: liveness.clone(),
            incoming: Incoming::new(snapshots),
            clocks,
        }));
        let services = Arc::new(Services::new(local.clone(), log.clone(), groups.clone(), cluster.clone()));
        let store_face = Arc::new(Store::new(coordinator, services.clone()));
        services.set_store(Arc::downgrade(&store_face));
        cluster.set_store(Arc::downgrade(&store_face), Arc::downgrade(&services));
        liveness.set_store(Arc::downgrade(&store_face));
        let node = Arc::new(Node {
            id,
            env,
            clock,
            engine,
            log,
            local,
            store: store_face,
            groups,
            cluster,
            tuning,
            machine,
            services,
            flushes: Mutex::new(Flushes::default()),
        });
        Ok(Assembled { node, groups: store, recoverer })
    }

    /// Waits until this node can be of use (see the module), then brings the meta range up to date. Returns the number of
    /// shards that have a replica here.
    pub async fn serve(&self) -> anyhow::Result<usize> {
        if self.cluster.identity.is_alone() {
            self.serve_alone().await?;
            // ADR 3: time goes on above everything that an earlier life may have served or written. Among others it does
            // not: read limits lie ahead of time, and this clock would stay ahead of the others' by that much.
            let states = self.local.shards().states_light();
            let floor = states.iter().map(|s| s.read_limit.max(s.closed)).max().unwrap_or_default();
            self.clock.raise(floor);
        } else {
            self.serve_among_others().await?;
        }
        if self.joined_by_others().await? {
            self.cluster.liveness.leave_alone().await?;
        }
        // The quorum may go again at any moment: that is no reason not to start.
        loop {
            let replicas = self.services.replicas_here(false).await?;
            let shards = replicas.len();
            match write_meta(&self.store, replicas).await {
                Ok(()) => return Ok(shards),
                Err(error @ (Error::Stopped(_) | Error::Internal(_))) => return Err(error.into()),
                Err(error) => tracing::info!(%error, "the meta range was not brought up to date yet"),
            }
            self.stopped()?;
            self.env.timer.sleep(QUORUM_POLL).await;
        }
    }

    fn stopped(&self) -> anyhow::Result<()> {
        match self.local.shards().states_light().into_iter().find_map(|s| s.stopped) {
            Some(reason) => anyhow::bail!("the node cannot serve: {reason}"),
            None => Ok(()),
        }
    }

    async fn serve_alone(&self) -> anyhow::Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            self.stopped()?;
            let states = self.local.shards().states_light();
            if states.iter().all(|s| s.serving) && leave_no_gap(states.iter().map(|s| &s.range)) {
                return Ok(());
            }
            if waited >= SERVE_WAIT_MAX {
                anyhow::bail!("some shards did not begin to serve within {SERVE_WAIT_MAX:?}");
            }
            self.env.timer.sleep(SERVE_POLL).await;
            waited += SERVE_POLL;
        }
    }

    /// Has this node, which holds all shards, given out ids to others?
    async fn joined_by_others(&self) -> Result<bool, Error> {
        if !self.cluster.liveness.is_alone() {
            return Ok(false);
        }
        let (_, records) = self.cluster.liveness.records().await?;
        // Its own record is there because an id was about to be given out, whether or not anybody has used it yet.
        Ok(!records.is_empty())
    }

    async fn serve_among_others(&self) -> anyhow::Result<()> {
        for attempt in 0u32.. {
            self.stopped()?;
            self.cluster.exchange_news().await;
            self.complete_routes().await;
            match self.cluster.liveness.keep().await {
                Ok(()) => match self.cluster.clocks.trouble() {
                    None => return Ok(()),
                    Some(why) if attempt % QUORUM_SAY_EVERY == 0 => {
                        tracing::warn!(why, "out of service");
                    }
                    Some(_) => {}
                },
                Err(error) if attempt % QUORUM_SAY_EVERY == 0 => {
                    let live = self.cluster.live().len();
                    let clock = self.cluster.clocks.trouble();
                    tracing::info!(%error, nodes_heard = live, ?clock, "waiting for a quorum of the cluster");
                }
                Err(_) => {}
            }
            self.env.timer.sleep(QUORUM_POLL).await;
        }
        unreachable!("the loop ends by returning")
    }

    /// Renews the lease, and asks others where keys live if that is not clear; to be called every
    /// [`RENEW_EVERY`](crate::cluster::liveness::RENEW_EVERY). Both at once: the lease may need a way that is not known any
    /// more, and does not wait for those who do not answer.
    pub async fn keep_lease(&self) -> Result<(), Error> {
        futures_util::future::join(self.cluster.liveness.keep(), self.complete_routes()).await.0
    }

    /// Asks others where keys live, if there are any of which this node does not know; to be called now and then.
    async fn complete_routes(&self) {
        if !self.cluster.router.knows_everything() {
            self.learn_routes().await;
        }
    }

    /// A node without replicas asks others where every key lives.
    async fn learn_routes(&self) {
        let heard = self.services.ask_all::<Vec<ReplicaStatus>>(Ask::Replicas { bytes: false }).await;
        self.cluster.router.hear(heard.into_iter().flat_map(|(_, replicas)| replicas).collect());
    }

    /// What is due now and then: leases, floors, recovery (the shards' own duties), flushes and truncation. To be
    /// called every 50 to 250 ms.
    pub async fn tick(&self, wal_bytes_max: u64, durable_engine: bool) -> anyhow::Result<()> {
        self.cluster.tell_closed();
        match self.local.tick().await {
            // A leadership that has just gone took the duty with it.
            Ok(()) | Err(ShardError::NotLeader { .. } | ShardError::NotServed(_)) => {}
            Err(e) => anyhow::bail!("a shard's own duties: {e}"),
        }
        if durable_engine {
            let wal_bytes: u64 = self.log.segments().iter().map(|s| s.live_bytes).sum();
            self.flush_step(wal_bytes > wal_bytes_max)?;
            self.truncate_step(wal_bytes > wal_bytes_max).await?;
        }
        Ok(())
    }

    /// Starts a flush when it is time, and takes note of one that has finished. Never waits.
    fn flush_step(&self, force: bool) -> anyhow::Result<()> {
        let mut flushes = self.flushes.lock().expect("nothing panics while it is held");
        let done = flushes.asked.take_if(|(seq, _)| self.engine.flushed_seq() >= *seq);
        if let Some((_, applied)) = done {
            flushes.held.extend(applied);
        }
        if flushes.asked.is_none() && (force || self.engine.needs_flush()) {
            let applied = self.machine.written(); // before the request: the flush holds at least this
            if bank::has("log-truncated-unflushed") {
                flushes.held.extend(applied);
                return Ok(());
            }
            let seq = self.engine.request_flush()?;
            flushes.asked = Some((seq, applied));
        }
        Ok(())
    }

    /// Do all replicas hold what they may have acknowledged before the log was cut (C9 of the crate consensus)? A shard that
    /// has a log and no replica yet does not: what created it was lost, and its leader will speak up. `None`: the
    /// store loop has ended.
    pub async fn is_whole(&self) -> Option<bool> {
        let status = self.groups.status().await.ok()?;
        // What left its group has nothing to catch up with.
        let removed = self.local.shards().removed();
        let known = |shard: &ShardId| status.contains_key(shard) || removed.contains(shard);
        let known = self.log.shards().iter().all(known);
        Some(known && !status.values().any(|s| s.doubtful))
    }

    /// N1: truncates logs as far as may be, and lets the leaders of shards with followers decide how far that is.
    async fn truncate_step(&self, force: bool) -> anyhow::Result<()> {
        let (held, done) = {
            let flushes = self.flushes.lock().expect("nothing panics while it is held");
            (flushes.held.clone(), flushes.truncated.clone())
        };
        let done = |shard: &ShardId| done.get(shard).copied().unwrap_or(0);
        let open = |m: &ShardMeta| held.get(&m.shard).copied().unwrap_or(0) > done(&m.shard);
        let behind: Vec<ShardMeta> = self.local.shards().list().into_iter().filter(open).collect();
        if behind.is_empty() {
            return Ok(());
        }
        let several = behind.iter().any(|m| !m.members.is_only(self.id));
        let status = match several {
            true => self.groups.status().await.map_err(|_| anyhow::anyhow!("the store loop has ended"))?,
            false => BTreeMap::new(),
        };
        let (mut now, mut proposals) = (Vec::new(), Vec::new());
        for meta in behind {
            let flushed = held[&meta.shard];
            if meta.members.is_only(self.id) {
                now.push((meta.shard, flushed));
                continue;
            }
            let allowed = flushed.min(meta.truncate_to);
            if allowed > done(&meta.shard) {
                now.push((meta.shard, allowed));
            }
            let Some(group) = status.get(&meta.shard).filter(|s| s.leader == Some(self.id)) else { continue };
            let upto = truncate_to(group, flushed, force, self.tuning.keep_for_absent);
            if upto > meta.truncate_to && (force || upto >= meta.truncate_to + TRUNCATE_STEP) {
                proposals.push((meta.shard, upto));
            }
        }
        self.flushes.lock().expect("nothing panics while it is held").truncated.extend(now.iter().copied());
        self.groups.truncate(now);
        for (shard, upto) in proposals {
            match self.local.propose_truncate(shard, upto).await {
                Ok(()) | Err(ShardError::NotLeader { .. } | ShardError::NotServed(_)) => {}
                Err(e) => anyhow::bail!("truncating the log of shard {shard}: {e}"),
            }
        }
        Ok(())
    }

    /// What this node's queues, caches and tables hold. Not here: the log entries that the store loop caches (bounded for
    /// each group), what streams have not sent yet (bounded by the network), and the memory of SQL statements.
    pub fn held(&self) -> Vec<Held> {
        let mut all = self.local.held();
        all.extend(self.groups.held());
        all.extend(self.cluster.router.held());
        all.push(self.cluster.incoming.held());
        all.push(self.store.coordinator().held());
        all
    }

    /// Makes everything applied durable in the engine and lets the logs forget it, as far as they may: a clean stop, after
    /// which a start has little to replay. Blocks.
    pub fn flush_and_truncate(&self) -> anyhow::Result<()> {
        let applied: BTreeMap<ShardId, LogIndex> = self.machine.written().into_iter().collect();
        self.engine.flush()?;
        let upto = |m: ShardMeta| {
            let flushed = *applied.get(&m.shard)?;
            Some((m.shard, if m.members.is_only(self.id) { flushed } else { flushed.min(m.truncate_to) }))
        };
        self.groups.truncate(self.local.shards().list().into_iter().filter_map(upto).collect());
        self.flushes.lock().expect("nothing panics while it is held").held.extend(applied);
        Ok(())
    }

    /// Drops versions that nobody can read any more: raises the threshold of every shard led here to `ttl` ago and removes
    /// what lies below, in bounded steps.
    pub async fn collect_garbage(&self, ttl: Duration) -> anyhow::Result<()> {
        let to = self.clock.latest().minus_micros(u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX));
        if to == Timestamp::MIN {
            return Ok(());
        }
        self.local.raise_gc_threshold(to).await?;
        for state in self.local.shards().states_light() {
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

/// How far a leader lets the log go: not beyond what a follower that is there still needs; one that is not there is waited
/// for within bounds, and gets a snapshot when it comes back later. Who waits for a snapshot needs nothing of what is in it.
fn truncate_to(group: &GroupStatus, flushed: LogIndex, force: bool, keep_for_absent: u64) -> LogIndex {
    let needs = |f: &Progress| match f.matched {
        // Nothing of it is known yet, or where its snapshot ends.
        0 => f.pending_snapshot.unwrap_or(f.next - 1),
        matched => matched.max(f.pending_snapshot.unwrap_or(0)),
    };
    let waits_for = |f: &&Progress| {
        let from_the_log = needs(f) + 1 >= group.first_index;
        from_the_log && (f.recently_active || (!force && needs(f) + keep_for_absent > group.last_index))
    };
    let needed = group.followers.iter().filter(waits_for).map(needs).min();
    needed.map_or(flushed, |n| n.min(flushed))
}

/// Do these hold every key? On a node that holds every shard, a gap between them is a split in the log that is just being
/// applied again: the left side may serve a moment before the right one can be seen.
pub(crate) fn leave_no_gap<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> bool {
    let mut ranges: Vec<&KeyRange> = ranges.collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return false };
    first.start.is_empty()
        && last.end.is_empty()
        && ranges.windows(2).all(|pair| !pair[0].end.is_empty() && pair[0].end == pair[1].start)
}

/// Version of the encoding of descriptors in the meta range.
const DESCRIPTOR_VERSION: u8 = 1;

/// A shard's descriptor as the meta range holds it: id, range, epoch, replicas.
fn encode_descriptor(r: &ReplicaStatus) -> Bytes {
    let mut out = vec![DESCRIPTOR_VERSION];
    put_u64(&mut out, r.shard.0);
    put_bytes(&mut out, &r.range.start);
    put_bytes(&mut out, &r.range.end);
    put_u64(&mut out, r.epoch);
    put_u64(&mut out, r.members.voters.len() as u64);
    for node in &r.members.voters {
        put_u64(&mut out, u64::from(node.0));
    }
    out.into()
}

/// The epoch of a descriptor.
fn epoch_of(descriptor: &Bytes) -> Result<u64, DecodeError> {
    let mut r = Reader::new(descriptor.clone());
    let _ = (r.u8()?, r.u64()?, r.key()?, r.key()?);
    r.u64()
}

/// Writes descriptors into the meta range where they are newer than what it holds: at start, and after a split.
pub(crate) async fn write_meta(store: &Store, replicas: Vec<ReplicaStatus>) -> Result<(), Error> {
    let wanted: Vec<(Key, u64, Bytes)> = replicas
        .iter()
        .map(|r| (keyspace::meta_key(&r.range.start), r.epoch, encode_descriptor(r)))
        .collect();
    let backoff = store.coordinator().backoff();
    isochrone_txn::retry::retry(store, backoff, &TxnOptions::default(), 100, |mut txn| {
        let wanted = &wanted;
        async move {
            let mut changed = false;
            for (key, epoch, value) in wanted {
                let there = txn.get(key, isochrone_txn::kv::Lock::None).await?;
                let known = there.as_ref().and_then(|d| epoch_of(d).ok());
                if known.is_none_or(|known| known < *epoch) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_kept_for_those_who_get_entries_from_it() {
        let follower = |matched, next, pending_snapshot| Progress {
            node: NodeId(2),
            matched,
            next,
            recently_active: true,
            pending_snapshot,
        };
        let upto = |followers: &[Progress], force| {
            let group = GroupStatus {
                term: 6,
                leader: Some(NodeId(1)),
                leading: true,
                members: isochrone_base::Members::default(),
                first_index: 50,
                last_index: 100,
                commit: 100,
                applied: 100,
                followers: followers.to_vec(),
                lease_until_ns: 0,
                installing: false,
                doubtful: false,
                votes: true,
            };
            truncate_to(&group, 90, force, 30)
        };
        for force in [false, true] {
            assert_eq!(upto(&[], force), 90);
            assert_eq!(upto(&[follower(100, 101, None), follower(70, 101, None)], force), 70);
            // One that has nothing waits for a snapshot, and then for what comes behind it.
            assert_eq!(upto(&[follower(0, 1, None)], force), 90);
            assert_eq!(upto(&[follower(0, 1, Some(80))], force), 80);
            assert_eq!(upto(&[follower(0, 81, None)], force), 80);
            assert_eq!(upto(&[follower(40, 41, None)], force), 90);
            assert_eq!(upto(&[follower(40, 41, Some(85))], force), 85);
        }
        // Who is not there is waited for within bounds.
        let away = |matched| Progress { recently_active: false, ..follower(matched, matched + 1, None) };
        assert_eq!((upto(&[away(75)], false), upto(&[away(75)], true)), (75, 90));
        assert_eq!(upto(&[away(60)], false), 90);
    }
}
