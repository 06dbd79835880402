//! What a node can do beside transactions: split and clear ranges, tell what the cluster holds, move leaderships, reach
//! other gateways. Requests go to where the shard in question is led; what concerns all nodes is asked of all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId, keyspace};
use isochrone_consensus::Handle;
use isochrone_shard::api::{BoxFuture, Error as ShardError, Record, ShardClient};
use isochrone_shard::locks::LockInfo;
use isochrone_shard::{LocalShards, command};
use isochrone_txn::kv::{
    ClockInfo, Error, Gateway, KvStore, LockRow, NodeInfo, ReplicaInfo, ShardInfo, TxnInfo, WalRow,
};
use isochrone_txn::{NodeServices, Store};
use isochrone_wal::{Kind, LogReader};

use crate::cluster::Cluster;
use crate::cluster::members::freshest;
use crate::cluster::message::{Ask, ReplicaStatus};
use crate::node::{leave_no_gap, write_meta};

/// Ids below are the shards of a new cluster.
const FIRST_SPLIT_SHARD: u64 = 3;
/// Attempts at a split point that an unresolved prepare lies across, or whose shard moves; in between it is being recovered.
const SPLIT_ATTEMPTS_MAX: u32 = 50;
/// Attempts to clear one shard's part of a range; what was cleared stays cleared.
const CLEAR_ATTEMPTS_MAX: u32 = 50;
/// Records shown by `isochrone.transactions`, and locks by `isochrone.locks`, per node.
const TRANSACTIONS_MAX: usize = 10_000;
/// Longest wait for another node's answer to a question that it answers from memory.
const ASK_WAIT_MAX: Duration = Duration::from_secs(3);
/// Longest wait for another node to do something with a shard.
const WORK_WAIT_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub struct Services {
    node: NodeId,
    local: Arc<LocalShards>,
    log: LogReader,
    groups: Handle,
    cluster: Arc<Cluster>,
    store: OnceLock<Weak<Store>>,
}

/// A shard's answer in the words of the transaction layer.
pub(crate) fn error(e: ShardError) -> Error {
    match e {
        ShardError::Stopped(why) => Error::Stopped(why),
        ShardError::NotServed(why) | ShardError::Ambiguous(why) => Error::Unavailable(why),
        e @ ShardError::NotLeader { .. } => Error::Unavailable(e.to_string()),
        ShardError::Conflict(why) => Error::Serialization(why),
        other => Error::Internal(other.to_string()),
    }
}

impl Services {
    /// For a node's shards, log and store loop, and its place among others.
    pub fn new(local: Arc<LocalShards>, log: LogReader, groups: Handle, cluster: Arc<Cluster>) -> Services {
        Services { node: cluster.identity.node, local, log, groups, cluster, store: OnceLock::new() }
    }

    /// The store above, which splits use for ids and the meta range. Once.
    pub fn set_store(&self, store: Weak<Store>) {
        let _second = self.store.set(store);
    }

    fn store(&self) -> Result<Arc<Store>, Error> {
        self.store
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| Error::Unavailable("the node is going down".into()))
    }

    /// Asks the leader of a key's shard, which may be this node.
    async fn at_leader(&self, key: &[u8], ask: Ask) -> Result<(), Error> {
        let leader = self.cluster.router.leader(key);
        match leader {
            Some(node) if node != self.node => self.cluster.ask(node, &ask, WORK_WAIT_MAX).await,
            _ => match ask {
                Ask::Split { at, right } => self.local.split(&at, right).await.map(drop).map_err(error),
                Ask::ClearRange { range } => self.local.clear_range(&range).await.map_err(error),
                other => Err(Error::Internal(format!("{other:?} is not for a shard's leader"))),
            },
        }
    }

    async fn split_one(&self, store: &Store, key: &Key) -> Result<(), Error> {
        let mut right = None;
        for attempt in 0.. {
            if self.cluster.router.route_key(key).start == *key {
                return Ok(());
            }
            let right = match right {
                Some(id) => id,
                None => {
                    let counter = [&keyspace::COUNTER[..], b"shard"].concat();
                    let id = ShardId(FIRST_SPLIT_SHARD + store.add_counter(counter, 1).await?);
                    *right.insert(id)
                }
            };
            match self.at_leader(key, Ask::Split { at: key.clone(), right }).await {
                Ok(()) => return Ok(()),
                Err(Error::Serialization(_) | Error::Unavailable(_)) if attempt < SPLIT_ATTEMPTS_MAX => {
                    store.coordinator().backoff().wait(attempt).await;
                }
                Err(e) => return Err(e),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Waits until this node knows of a split that was made elsewhere.
    async fn see_split(&self, store: &Store, key: &Key) -> Result<(), Error> {
        for attempt in 0..SPLIT_ATTEMPTS_MAX {
            if self.cluster.router.route_key(key).start == *key {
                return Ok(());
            }
            if self.local.shards().of_key(key).is_none() {
                let replicas = self.replicas_anywhere().await?;
                self.cluster.router.hear(replicas);
            }
            store.coordinator().backoff().wait(attempt).await;
        }
        Err(Error::Unavailable("the shard was split, and this node has not heard of it yet".into()))
    }

    async fn clear_part(&self, store: &Store, part: KeyRange) -> Result<(), Error> {
        for attempt in 0.. {
            match self.at_leader(&part.start, Ask::ClearRange { range: part.clone() }).await {
                Err(Error::Unavailable(_)) if attempt < CLEAR_ATTEMPTS_MAX => {
                    store.coordinator().backoff().wait(attempt).await;
                }
                other => return other,
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The replicas of this node.
    pub(crate) async fn replicas_here(&self, bytes: bool) -> Result<Vec<ReplicaStatus>, Error> {
        let status = self.groups.status().await;
        let status = status.map_err(|_| Error::Unavailable("the store loop has ended".into()))?;
        let sizes: BTreeMap<ShardId, u64> = match bytes {
            true => self.local.shards().states().into_iter().map(|s| (s.shard, s.bytes)).collect(),
            false => BTreeMap::new(),
        };
        let replica = |m: isochrone_shard::ShardMeta| {
            let group = status.get(&m.shard).cloned().unwrap_or_default();
            ReplicaStatus {
                shard: m.shard,
                range: m.range,
                epoch: m.epoch,
                members: m.members,
                leader: group.leader,
                term: group.term,
                first_index: group.first_index,
                last_index: group.last_index,
                applied: m.applied,
                bytes: sizes.get(&m.shard).copied().unwrap_or(0),
            }
        };
        Ok(self.local.shards().list().into_iter().map(replica).collect())
    }

    /// Asks all nodes that are there; who does not answer is left out.
    pub(crate) async fn ask_all<T: crate::cluster::message::Message>(&self, ask: Ask) -> Vec<(NodeId, T)> {
        let others = self.cluster.live().into_iter().filter(|n| *n != self.node);
        let asked = others.map(|node| {
            let ask = &ask;
            async move { (node, self.cluster.ask::<T>(node, ask, ASK_WAIT_MAX).await) }
        });
        let mut out = Vec::new();
        for (node, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(answer) => out.push((node, answer)),
                Err(error) => tracing::debug!(%node, %error, "a node does not say what it holds"),
            }
        }
        out
    }

    /// One or more replicas of every shard, from wherever they can be heard.
    pub(crate) async fn replicas_anywhere(&self) -> Result<Vec<ReplicaStatus>, Error> {
        let here = self.replicas_here(false).await?;
        if leave_no_gap(here.iter().map(|r| &r.range)) {
            return Ok(here);
        }
        self.replicas_of_all().await
    }

    /// The replicas of all nodes that are there, this one included.
    pub(crate) async fn replicas_of_all(&self) -> Result<Vec<ReplicaStatus>, Error> {
        let here = self.replicas_here(false).await?;
        let others = self.ask_all::<Vec<ReplicaStatus>>(Ask::Replicas { bytes: false }).await;
        Ok(here.into_iter().chain(others.into_iter().flat_map(|(_, r)| r)).collect())
    }

    /// The shards that this node's log holds something of.
    pub(crate) fn logged(&self) -> Vec<ShardId> {
        self.log.shards()
    }

    /// The transactions with records or locks on this node.
    pub(crate) fn transactions_here(&self) -> Vec<TxnInfo> {
        let mut found: BTreeMap<TxnId, TxnInfo> = BTreeMap::new();
        for r in self.local.shards().records(TRANSACTIONS_MAX) {
            let state = match r.record {
                Record::None => continue,
                Record::Prepared(_) => "prepared",
                Record::Committed(_) => "committed",
                Record::Aborted => "aborted",
            };
            let anchor_here = r.anchor == Some(r.piece);
            let started = r.candidate;
            let info =
                found.entry(r.txn).or_insert(TxnInfo { txn: r.txn, state, pieces: 0, anchor: None, started });
            info.pieces = info.pieces.max(r.pieces.len() as u32).max(1);
            info.started = info.started.or(started);
            if anchor_here {
                // The anchor's record decides.
                (info.anchor, info.state) = (Some(r.shard), state);
            }
        }
        for lock in self.local.locks().list() {
            found.entry(lock.owner.txn).or_insert(TxnInfo {
                txn: lock.owner.txn,
                state: "active",
                pieces: 0,
                anchor: None,
                started: None,
            });
        }
        found.into_values().collect()
    }
}

impl Services {
    /// The row locks held and waited for at this node, the first [`TRANSACTIONS_MAX`] by key.
    pub(crate) fn locks_here(&self) -> Vec<LockRow> {
        let row = |l: LockInfo| LockRow {
            node: self.node,
            shard: self.local.shards().of_key(&l.key).map(|s| s.id()),
            key: l.key,
            txn: l.owner.txn,
            gateway: l.owner.gateway,
            mode: l.mode,
            waiting_since: l.waiting_since,
        };
        self.local.locks().list().into_iter().take(TRANSACTIONS_MAX).map(row).collect()
    }
}

/// Two nodes' accounts of one transaction: the anchor's record decides.
fn merge(into: &mut TxnInfo, other: TxnInfo) {
    if into.anchor.is_none() && (other.anchor.is_some() || into.state == "active") {
        (into.anchor, into.state) = (other.anchor, other.state);
    }
    into.pieces = into.pieces.max(other.pieces);
    into.started = into.started.or(other.started);
}

impl NodeServices for Services {
    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let store = self.store()?;
            for shard in self.cluster.router.route(&range) {
                let part = shard.intersect(&range);
                if !part.is_empty() {
                    self.clear_part(&store, part).await?;
                }
            }
            Ok(())
        })
    }

    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let store = self.store()?;
            for key in &keys {
                self.split_one(&store, key).await?;
            }
            for key in &keys {
                self.see_split(&store, key).await?;
            }
            write_meta(&store, self.replicas_anywhere().await?).await
        })
    }

    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>> {
        Box::pin(async move {
            let mut all = self.replicas_here(true).await?;
            if !leave_no_gap(all.iter().map(|r| &r.range)) {
                let others = self.ask_all::<Vec<ReplicaStatus>>(Ask::Replicas { bytes: true }).await;
                all.extend(others.into_iter().flat_map(|(_, r)| r));
            }
            let mut shards: Vec<ReplicaStatus> =
                freshest(all).into_values().filter(|r| r.range.overlaps(&range)).collect();
            shards.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            let info = |r: ReplicaStatus| ShardInfo {
                shard: r.shard,
                range: r.range,
                leader: r.leader,
                replicas: r.members.all(),
                first_index: r.first_index,
                last_index: r.last_index,
                bytes: r.bytes,
            };
            Ok(shards.into_iter().map(info).collect())
        })
    }

    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>> {
        let (log, node) = (self.log.clone(), self.node);
        Box::pin(async move {
            // Reads whole segments: not on a thread that serves others.
            let read = tokio::task::spawn_blocking(move || newest_records(&log, node, max)).await;
            read.map_err(|e| Error::Internal(e.to_string()))?
        })
    }

    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>> {
        Box::pin(async move {
            let mut all: BTreeMap<TxnId, TxnInfo> =
                self.transactions_here().into_iter().map(|t| (t.txn, t)).collect();
            for (_, list) in self.ask_all::<Vec<TxnInfo>>(Ask::Transactions).await {
                for t in list {
                    match all.get_mut(&t.txn) {
                        Some(known) => merge(known, t),
                        None => _ = all.insert(t.txn, t),
                    }
                }
            }
            Ok(all.into_values().collect())
        })
    }

    fn readable_here(&self, ranges: &[KeyRange]) -> Option<Timestamp> {
        self.local.readable_here(ranges)
    }

    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>> {
        Box::pin(async move {
            let mut all = self.locks_here();
            for (_, rows) in self.ask_all::<Vec<LockRow>>(Ask::Locks).await {
                all.extend(rows);
            }
            all.sort_by(|a, b| a.key.cmp(&b.key)); // stable: holders first, then waiters in order
            Ok(all)
        })
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn schema_lease(&self) -> Timestamp {
        self.cluster.liveness.lease()
    }

    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>> {
        Box::pin(async move {
            let mut all: Vec<(NodeId, ReplicaStatus)> =
                self.replicas_here(false).await?.into_iter().map(|r| (self.node, r)).collect();
            for (node, list) in self.ask_all::<Vec<ReplicaStatus>>(Ask::Replicas { bytes: false }).await {
                all.extend(list.into_iter().map(|r| (node, r)));
            }
            all.sort_by_key(|(node, r)| (r.shard, *node));
            let mut last: BTreeMap<ShardId, u64> = BTreeMap::new();
            for (_, r) in &all {
                let end = last.entry(r.shard).or_default();
                *end = (*end).max(r.last_index);
            }
            let info = |(node, r): (NodeId, ReplicaStatus)| ReplicaInfo {
                shard: r.shard,
                node,
                role: if r.leader == Some(node) { "leader" } else { "follower" },
                applied: r.applied,
                lag: last[&r.shard].saturating_sub(r.applied),
                last_index: r.last_index,
            };
            Ok(all.into_iter().map(info).collect())
        })
    }

    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>> {
        Box::pin(self.cluster.node_infos())
    }

    fn lease_epoch(&self) -> u64 {
        self.cluster.liveness.epoch()
    }

    fn clocks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ClockInfo>, Error>> {
        Box::pin(async move {
            let mut all = self.cluster.clocks.rows();
            for (_, rows) in self.ask_all::<Vec<ClockInfo>>(Ask::Clocks).await {
                all.extend(rows);
            }
            all.sort_by_key(|c| (c.node, c.peer));
            Ok(all)
        })
    }

    fn out_of_service(&self) -> Option<String> {
        self.cluster.clocks.trouble()
    }

    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.cluster.transfer(shard, to))
    }

    fn tell_gateways<'a>(
        &'a self,
        message: Bytes,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Vec<(NodeId, Result<Bytes, String>)>, Error>> {
        Box::pin(self.cluster.liveness.tell(message, wait_max))
    }

    fn set_gateway(&self, gateway: Arc<dyn Gateway>) {
        self.cluster.liveness.set_gateway(gateway);
    }
}

fn newest_records(log: &LogReader, node: NodeId, max: usize) -> Result<Vec<WalRow>, Error> {
    let mut rows: VecDeque<WalRow> = VecDeque::new();
    for record in log.scan() {
        let record = record.map_err(|e| Error::Stopped(e.to_string()))?;
        let shown = match record.kind {
            Kind::Entry | Kind::MovedEntry => command::show(&record.payload),
            kind => command::Shown { kind: kind.name(), txn: None, commit_ts: None, keys: 0 },
        };
        if rows.len() == max {
            rows.pop_front();
        }
        rows.push_back(WalRow {
            node,
            shard: record.shard,
            log_index: record.index,
            term: record.term,
            file: record.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            offset: record.at.offset,
            kind: shown.kind,
            txn: shown.txn,
            commit_ts: shown.commit_ts,
            keys: shown.keys,
            bytes: record.payload.len() as u64,
        });
    }
    Ok(rows.into())
}
