//! One node among others: what it asks of them and what it does for them.
//!
//!     message    what is said, and how it is encoded
//!     bootstrap  how a node gets its identity (init, join)
//!     door       the cluster port: who is let in, and to whom what arrives belongs
//!     router     requests for keys, to the leaders of their shards
//!     liveness   records of nodes in the system keys; schema leases
//!     snapshots  snapshots of shards, sent and received
//!     leaders    leaderships: moved, spread evenly, given away before a stop
//!     members    which nodes hold the shards: one takes another's place
//!     deadlocks  cycles of transactions that wait for each other at several nodes
//!     clocks     clocks of other nodes, measured; out of service with a wrong one
//!
//! [`Cluster`] is the node's side of every call that arrives. A simulation hands it messages by itself; a server has
//! [`isochrone_net::Transport`] between.
//!
//! Time: requests to shards and news carry the sender's clock. A timestamp further ahead than [`OFFSET_MAX`] and one more
//! clock error ([`CLOCK_ERROR_MAX`]: commit timestamps run ahead by it, R23) is refused and not taken in (design D8): a node
//! with a wrong clock is of no use to others, and does them no harm.

pub mod bootstrap;
pub mod clocks;
pub mod deadlocks;
pub mod door;
pub mod leaders;
pub mod liveness;
pub mod members;
pub mod message;
pub mod router;
pub mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use isochrone_base::codec::{Reader, put_ts};
use isochrone_base::{Bytes, Key, NodeId, Timestamp, TxnId, keyspace};
use isochrone_clock::Hlc;
use isochrone_consensus::Handle;
use isochrone_env::Env;
use isochrone_net::{BoxFuture, Hello, Network};
use isochrone_shard::api::ShardClient;
use isochrone_shard::locks::Owner;
use isochrone_shard::wire::{Request, Response};
use isochrone_shard::{ClosedNews, LocalShards};
use isochrone_txn::Store;
use isochrone_txn::kv::{Error, KvStore, NodeInfo};

use self::clocks::Clocks;
use self::leaders::Pins;
use self::liveness::Liveness;
use self::message::{Address, Answer, Ask, HeldLock, Kind, Membership, Message, News};
use self::router::Router;
use self::snapshots::Incoming;
use crate::datadir::Identity;
use crate::services::Services;

/// The widest difference between the clocks of two nodes (design D8). Timestamps from further ahead are refused.
pub const OFFSET_MAX: Duration = Duration::from_millis(250);
/// How far each node's clock may be from true time, either way: half of it.
pub const CLOCK_ERROR_MAX: Duration = Duration::from_micros(OFFSET_MAX.as_micros() as u64 / 2);
/// How far ahead of a reader's clock a commit can be that was acknowledged elsewhere before the reader began (R5, R23): the
/// reader's clock may be behind by the error, the coordinator's ahead by it, and it answers up to its `latest`, once
/// more the error. (Twice the error would do if readers read at their `latest`; they read at their `now`.)
pub const UNCERTAINTY: Duration = Duration::from_micros(3 * CLOCK_ERROR_MAX.as_micros() as u64);
/// How often news are exchanged.
pub const NEWS_EVERY: Duration = Duration::from_millis(500);
/// A peer that was not heard for this long is not there.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for an answer to news.
const NEWS_WAIT_MAX: Duration = Duration::from_secs(2);
/// Locks of a gateway that cannot be reached any more are kept this long: others wait for them, and what they save is
/// retries only (T13).
const LOCKS_KEPT: Duration = Duration::from_millis(300);
/// Locks of other nodes' transactions are asked about when they are this old.
const LOCKS_ASKED_AFTER: Duration = Duration::from_secs(1);
/// Locks asked about in one round and node; the others follow.
const LOCKS_ASKED_MAX: usize = 1_000;
/// Counter of node ids beyond the first.
const NODE_COUNTER: &[u8] = b"node";

/// Splits the sender's clock off a message.
pub(crate) fn take_stamp(bytes: Bytes) -> Result<(Timestamp, Bytes), String> {
    let mut r = Reader::new(bytes);
    let ts = r.ts().map_err(|e| e.to_string())?;
    let n = r.remaining();
    Ok((ts, r.take(n).map_err(|e| e.to_string())?))
}

/// Takes in a peer's clock, unless it is out of bounds.
pub(crate) fn hear_clock(clock: &Hlc, theirs: Timestamp) -> Result<(), String> {
    // Commit timestamps run up to their coordinator's `latest` (R23, R24): ahead of this clock by once more its error.
    let ahead = OFFSET_MAX + CLOCK_ERROR_MAX;
    let bound = clock.physical().plus_micros(ahead.as_micros() as u64);
    if theirs > bound {
        metrics::counter!("isochrone_clock_refused_total").increment(1);
        return Err(format!(
            "the sender's clock is {} ms ahead of this node's, more than {} ms: check both clocks",
            (theirs.micros().saturating_sub(clock.physical().micros())) / 1_000,
            ahead.as_millis()
        ));
    }
    clock.update(theirs);
    Ok(())
}

/// What is known of a peer from its news.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it said last.
    pub news: News,
    /// When, by this node's monotonic clock.
    pub heard_ns: u64,
}

/// See the module.
pub struct Cluster {
    pub(crate) identity: Identity,
    pub(crate) address: String,
    pub(crate) sql: String,
    pub(crate) env: Env,
    pub(crate) clock: Arc<Hlc>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) local: Arc<LocalShards>,
    pub(crate) router: Arc<Router>,
    pub(crate) groups: Handle,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) incoming: Incoming,
    pub(crate) pins: Pins,
    pub(crate) clocks: Clocks,
    /// Who shall hold the shards, as it was read last where the meta range is led.
    wished: Mutex<Option<Vec<NodeId>>>,
    pub(crate) services: OnceLock<Weak<Services>>,
    store: OnceLock<Weak<Store>>,
    runtime: tokio::runtime::Handle,
    started_ns: u64,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// Locks that other nodes' transactions hold here, and since when.
    remote_locks: Mutex<BTreeMap<NodeId, BTreeMap<HeldLock, u64>>>,
}

/// What a [`Cluster`] is made of.
pub(crate) struct Parts {
    pub identity: Identity,
    pub address: String,
    pub sql: String,
    pub env: Env,
    pub clock: Arc<Hlc>,
    pub network: Arc<dyn Network>,
    pub local: Arc<LocalShards>,
    pub router: Arc<Router>,
    pub groups: Handle,
    pub liveness: Arc<Liveness>,
    pub incoming: Incoming,
    pub clocks: Clocks,
}

impl Cluster {
    /// Must be called inside the runtime that shall carry the node's tasks.
    pub(crate) fn new(parts: Parts) -> Cluster {
        let started_ns = parts.env.clock.monotonic_ns();
        Cluster {
            identity: parts.identity,
            address: parts.address,
            sql: parts.sql,
            env: parts.env,
            clock: parts.clock,
            network: parts.network,
            local: parts.local,
            router: parts.router,
            groups: parts.groups,
            liveness: parts.liveness,
            incoming: parts.incoming,
            pins: Pins::default(),
            clocks: parts.clocks,
            wished: Mutex::default(),
            services: OnceLock::new(),
            store: OnceLock::new(),
            runtime: tokio::runtime::Handle::current(),
            started_ns,
            peers: Mutex::new(BTreeMap::new()),
            remote_locks: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn set_store(&self, store: Weak<Store>, services: Weak<Services>) {
        let _second = (self.store.set(store), self.services.set(services));
    }

    fn store(&self) -> Result<Arc<Store>, Error> {
        let store = self.store.get().and_then(Weak::upgrade);
        store.ok_or_else(|| Error::Unavailable("the node is starting or going down".into()))
    }

    fn services(&self) -> Result<Arc<Services>, Error> {
        let services = self.services.get().and_then(Weak::upgrade);
        services.ok_or_else(|| Error::Unavailable("the node is starting or going down".into()))
    }

    /// This node's lease, and the records of all nodes.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// Is this node's clock fit to serve with?
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    fn peers_lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().expect("nothing panics while it is held")
    }

    /// What the other nodes said last.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        self.peers_lock().clone()
    }

    /// The nodes that were heard just now, this one included.
    pub fn live(&self) -> BTreeSet<NodeId> {
        let now = self.env.clock.monotonic_ns();
        let fresh = |p: &Peer| now.saturating_sub(p.heard_ns) < SILENT_AFTER.as_nanos() as u64;
        let mut live: BTreeSet<NodeId> =
            self.peers_lock().iter().filter(|(_, p)| fresh(p)).map(|(n, _)| *n).collect();
        live.insert(self.identity.node);
        live
    }

    /// This node's news.
    pub fn news(&self) -> News {
        let known = self.network.peers();
        let mut peers: Vec<Address> =
            known.into_iter().map(|p| Address { node: p.node, address: p.address }).collect();
        peers.push(Address { node: self.identity.node, address: self.address.clone() });
        let (leaders, replicas) = (self.led(), self.local.shards().list().len());
        News {
            node: self.identity.node,
            now: self.clock.last(),
            sql: self.sql.clone(),
            draining: self.liveness.draining(),
            leaders: leaders as u32,
            replicas: replicas as u32,
            uptime_s: self.env.clock.monotonic_ns().saturating_sub(self.started_ns) / 1_000_000_000,
            peers,
            wall_us: self.clocks.wall_us(),
            out_of_service: self.clocks.is_out(),
        }
    }

    /// How many shards this node leads.
    pub(crate) fn led(&self) -> usize {
        self.local.shards().leading().len()
    }

    /// Takes in a peer's news: it is there, and where it saw others.
    fn hear(&self, news: News) -> Result<(), String> {
        hear_clock(&self.clock, news.now)?;
        let known: BTreeMap<NodeId, String> =
            self.network.peers().into_iter().map(|p| (p.node, p.address)).collect();
        for peer in news.peers.iter().filter(|p| p.node != self.identity.node && p.node.0 != 0) {
            // A node's own word about its address counts; what others say only helps to find it.
            if (peer.node == news.node && known.get(&peer.node) != Some(&peer.address))
                || !known.contains_key(&peer.node)
            {
                self.network.set_peer(peer.node, &peer.address);
            }
        }
        let heard_ns = self.env.clock.monotonic_ns();
        self.peers_lock().insert(news.node, Peer { news, heard_ns });
        Ok(())
    }

    /// Exchanges news with every peer, and judges this node's clock by theirs; to be called every [`NEWS_EVERY`]. Returns when
    /// all have answered or not.
    pub async fn exchange_news(&self) {
        self.exchange_once().await;
        if self.clocks.judge() {
            // Nobody shall give it a leadership that it has to give away.
            self.exchange_once().await;
        }
    }

    async fn exchange_once(&self) {
        let payload = Kind::News.wrap(&self.news().encode());
        let peers = self.network.peers();
        let calls = peers.iter().map(|p| {
            let call = self.network.call(p.node, isochrone_net::Lane::Main, payload.clone(), NEWS_WAIT_MAX);
            async move {
                let sent_ns = self.env.clock.monotonic_ns();
                let answer = call.await.map_err(|e| e.to_string());
                let news = answer.and_then(|bytes| News::decode(bytes).map_err(|e| e.to_string()));
                if let Ok(news) = &news {
                    self.clocks.measure(news, sent_ns);
                }
                (p.node, news)
            }
        });
        for (node, news) in futures_util::future::join_all(calls).await {
            if let Err(error) = news.and_then(|news| self.hear(news)) {
                tracing::debug!(%node, error, "no news");
            }
        }
    }

    /// Tells other nodes what is closed on the shards that this one leads (R6). To be called every 50 to 100 ms.
    pub fn tell_closed(&self) {
        for (node, news) in self.local.closed_news() {
            // Lost: a later one says more.
            let _sent = self.network.send(node, Kind::Closed.wrap(&news.encode()));
        }
    }

    /// A message without an answer.
    pub fn message(&self, from: NodeId, payload: Bytes) {
        match Kind::split(&payload) {
            Ok((Kind::Raft, body)) => {
                if let Err(error) = self.groups.deliver(from, body) {
                    tracing::warn!(%from, %error, "a batch of Raft messages that cannot be read was dropped");
                }
            }
            Ok((Kind::Unlock, body)) => match Request::decode(body) {
                Ok(Request::Unlock { txn, keys }) => self.unlock(from, txn, &keys),
                _ => tracing::warn!(%from, "an unlock that cannot be read was dropped"),
            },
            Ok((Kind::Closed, body)) => match ClosedNews::decode(body) {
                Ok(news) => self.local.hear_closed(&news),
                Err(error) => {
                    tracing::warn!(%from, %error, "closed timestamps that cannot be read were dropped")
                }
            },
            Ok((kind, _)) => tracing::warn!(%from, ?kind, "a message that should be a call was dropped"),
            Err(error) => tracing::warn!(%from, %error, "a message that cannot be read was dropped"),
        }
    }

    /// A call from another node, or from an operator's program (node 0).
    pub fn call(
        self: &Arc<Cluster>,
        from: Hello,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let this = self.clone();
        Box::pin(async move {
            let (kind, body) = Kind::split(&payload).map_err(|e| e.to_string())?;
            if from.node.0 == 0 && !matches!(kind, Kind::Admin | Kind::Register) {
                return Err("only members of the cluster may ask this".into());
            }
            match kind {
                Kind::Shard => this.shard_request(from.node, body).await,
                Kind::News => {
                    // Who sends a time that is refused is answered all the same: how else would it learn what time it is?
                    if let Err(error) = this.hear(News::decode(body).map_err(|e| e.to_string())?) {
                        tracing::debug!(node = %from.node, error, "news were not taken in");
                    }
                    Ok(this.news().encode().into())
                }
                Kind::Snapshot => snapshots::receive(&this, from.node, body).await,
                Kind::Gateway => match this.liveness.gateway() {
                    Some(gateway) => gateway.told(from.node, body).await,
                    None => Err("this node is starting".into()),
                },
                Kind::Register => {
                    let asks = Address::decode(body).map_err(|e| e.to_string())?;
                    let membership = this.register(asks.address).await.map_err(|e| e.to_string())?;
                    Ok(membership.encode().into())
                }
                Kind::Ask => {
                    let ask = Ask::decode(body).map_err(|e| e.to_string())?;
                    Ok(this.answer(ask).await)
                }
                Kind::Admin | Kind::Adopt | Kind::Raft | Kind::Unlock | Kind::Closed => {
                    Err(format!("{kind:?} is not answered here"))
                }
            }
        })
    }

    async fn shard_request(&self, from: NodeId, body: Bytes) -> Result<Bytes, String> {
        let (now, body) = take_stamp(body)?;
        hear_clock(&self.clock, now)?;
        let request = Request::decode(body).map_err(|e| format!("a request that cannot be read: {e}"))?;
        let response = self.serve(from, request).await;
        let response = response.encode();
        let mut out = Vec::with_capacity(8 + response.len());
        put_ts(&mut out, self.clock.last());
        out.extend_from_slice(&response);
        Ok(out.into())
    }

    async fn serve(&self, from: NodeId, request: Request) -> Response {
        match &request {
            Request::Lock { txn, key, mode, read_ts, wait_max } => {
                let owner = Owner { txn: *txn, gateway: from };
                match self.local.lock_for(owner, key, *mode, *read_ts, *wait_max).await {
                    Ok(locked) => {
                        let now = self.env.clock.monotonic_ns();
                        let held = HeldLock { txn: *txn, key: key.clone() };
                        self.remote_locks().entry(from).or_default().insert(held, now);
                        Response::Locked(locked)
                    }
                    Err(e) => Response::Error(e),
                }
            }
            Request::Unlock { txn, keys } => {
                self.unlock(from, *txn, keys);
                Response::Done
            }
            _ => request.run(&*self.local).await,
        }
    }

    fn remote_locks(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<HeldLock, u64>>> {
        self.remote_locks.lock().expect("nothing panics while it is held")
    }

    fn unlock(&self, from: NodeId, txn: TxnId, keys: &[Key]) {
        if let Some(held) = self.remote_locks().get_mut(&from) {
            for key in keys {
                held.remove(&HeldLock { txn, key: key.clone() });
            }
        }
        self.local.unlock(txn, keys);
    }

    /// A stream to this node is open.
    pub fn connected(&self, node: NodeId) {
        tracing::info!(%node, "connected");
    }

    /// The stream to this node has ended.
    pub fn disconnected(self: &Arc<Cluster>, node: NodeId) {
        tracing::info!(%node, "disconnected");
        self.groups.unreachable(node);
        self.groups.peer_lost(node);
        // Its transactions' locks go if it does not come back: they are memory, and nobody would give them back.
        let this = self.clone();
        let _ends_by_itself = self.runtime.spawn(async move {
            this.env.timer.sleep(LOCKS_KEPT).await;
            if !this.is_connected(node) {
                this.local.locks().leave(node);
                let held = this.remote_locks().remove(&node).unwrap_or_default();
                for HeldLock { txn, key } in held.into_keys() {
                    this.local.unlock(txn, &[key]);
                }
            }
        });
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.network.peers().iter().any(|p| p.node == node && p.connected)
    }

    /// Asks other nodes for locks that their transactions have held here for long: an unlock may have been lost, or a lock
    /// granted to who had given up. A node that cannot be reached is not asked. To be called about once a second.
    pub async fn release_orphans(&self) {
        let now = self.env.clock.monotonic_ns();
        let old = |since: &u64| now.saturating_sub(*since) > LOCKS_ASKED_AFTER.as_nanos() as u64;
        let suspects: Vec<(NodeId, Vec<HeldLock>)> = self
            .remote_locks()
            .iter()
            .map(|(node, held)| {
                let locks = held.iter().filter(|(_, since)| old(since)).map(|(lock, _)| lock.clone());
                (*node, locks.take(LOCKS_ASKED_MAX).collect())
            })
            .collect();
        for (node, locks) in suspects.into_iter().filter(|(_, locks)| !locks.is_empty()) {
            // Its request may have waited in a queue and been granted after the stream had ended, and what it held gone.
            let orphans = if self.is_connected(node) {
                let asked = self.ask::<Vec<HeldLock>>(node, &Ask::Orphans { locks }, NEWS_WAIT_MAX).await;
                asked.unwrap_or_default()
            } else {
                locks
            };
            for HeldLock { txn, key } in orphans {
                self.unlock(node, txn, &[key]);
            }
        }
    }

    /// A new node wants to join: it gets the next id.
    async fn register(&self, address: String) -> Result<Membership, Error> {
        let store = self.store()?;
        self.liveness.leave_alone().await?;
        let counter = [&keyspace::COUNTER[..], NODE_COUNTER].concat();
        let first = self.identity.voters.iter().map(|n| n.0).max().unwrap_or(0) + 1;
        let n = u32::try_from(store.add_counter(counter, 1).await?)
            .map_err(|_| Error::TooLarge("out of node ids".into()))?;
        let node = NodeId(first + n);
        tracing::info!(%node, address, "a node joins");
        self.network.set_peer(node, &address);
        Ok(Membership {
            cluster: self.identity.cluster,
            node,
            voters: self.identity.voters.clone(),
            peers: self.news().peers,
        })
    }

    async fn answer(self: &Arc<Cluster>, ask: Ask) -> Bytes {
        fn encode<T: Message>(result: Result<T, Error>) -> Bytes {
            Answer(result).encode().into()
        }
        let services = match self.services() {
            Ok(services) => services,
            Err(e) => return encode::<()>(Err(e)),
        };
        match ask {
            Ask::Replicas { bytes } => encode(services.replicas_here(bytes).await),
            Ask::Transactions => encode(Ok(services.transactions_here())),
            Ask::Split { at, right } => {
                encode(self.local.split(&at, right).await.map(drop).map_err(crate::services::error))
            }
            Ask::ClearRange { range } => {
                encode(self.local.clear_range(&range).await.map_err(crate::services::error))
            }
            Ask::Transfer { shard, to } => encode(self.transfer_here(shard, to).await),
            Ask::ChangeMembers { shard, voters } => encode(self.change_members_here(shard, voters).await),
            Ask::Standing { shards } => encode(self.standing(&shards).await),
            Ask::Pin { shard } => {
                self.pins.pin(shard, self.env.clock.monotonic_ns());
                encode(Ok(()))
            }
            Ask::Orphans { locks } => encode(Ok(self.router.orphans(locks))),
            Ask::Locks => encode(Ok(services.locks_here())),
            Ask::Waits { txns } => encode(Ok(self.router.waits(&txns))),
            Ask::InTheWay { waits } => encode(Ok(self.in_the_way(&waits))),
            Ask::GiveWay { lock, ticket } => {
                self.gives_way(&lock, ticket);
                encode(Ok(()))
            }
            Ask::Clocks => encode(Ok(self.clocks.rows())),
            Ask::Drain => {
                self.liveness.set_draining();
                encode(Ok(()))
            }
        }
    }

    /// The nodes of the cluster: their records, and what they said themselves.
    pub(crate) async fn node_infos(&self) -> Result<Vec<NodeInfo>, Error> {
        let (now, records) = self.liveness.records().await?;
        let mut all: BTreeMap<NodeId, NodeInfo> = BTreeMap::new();
        for r in records {
            let info = NodeInfo {
                node: r.node,
                address: r.address,
                sql_address: r.sql,
                live: r.expires > now,
                epoch: r.epoch,
                expires: Some(r.expires),
                lease_before: r.before > now,
                leaders: 0,
                replicas: 0,
                draining: r.draining,
                uptime: None,
            };
            all.insert(r.node, info);
        }
        let mine = self.news();
        let alone = || NodeInfo {
            node: mine.node,
            address: self.address.clone(),
            sql_address: mine.sql.clone(),
            live: true,
            epoch: 1,
            expires: None,
            lease_before: false,
            leaders: 0,
            replicas: 0,
            draining: false,
            uptime: None,
        };
        all.entry(mine.node).or_insert_with(alone);
        let live = self.live();
        let heard = self.peers().into_values().map(|p| p.news).filter(|n| live.contains(&n.node));
        for news in heard.chain([mine.clone()]) {
            if let Some(info) = all.get_mut(&news.node) {
                (info.leaders, info.replicas) = (news.leaders, news.replicas);
                info.draining |= news.draining;
                info.uptime = Some(Duration::from_secs(news.uptime_s));
            }
        }
        Ok(all.into_values().collect())
    }

    /// Asks another node.
    pub(crate) async fn ask<T: Message>(
        &self,
        node: NodeId,
        ask: &Ask,
        wait_max: Duration,
    ) -> Result<T, Error> {
        let payload = Kind::Ask.wrap(&ask.encode());
        let answer = self
            .network
            .call(node, isochrone_net::Lane::Main, payload, wait_max)
            .await
            .map_err(|e| Error::Unavailable(format!("node {node}: {e}")))?;
        match Answer::<T>::decode(answer)
            .map_err(|e| Error::Internal(format!("an answer of node {node}: {e}")))?
            .0
        {
            // Its storage has failed, not this node's.
            Err(Error::Stopped(why)) => Err(Error::Unavailable(format!("node {node} has stopped: {why}"))),
            answer => answer,
        }
    }
}
