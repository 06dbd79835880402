//! What a node can do beside transactions: split and clear ranges, and tell what it holds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{OnceLock, Weak};

use std::sync::Arc;

use isochrone_base::{Key, KeyRange, NodeId, ShardId, TxnId, keyspace};
use isochrone_consensus::Handle;
use isochrone_shard::api::{BoxFuture, Error as ShardError, Record};
use isochrone_shard::{LocalShards, command};
use isochrone_txn::kv::{Error, KvStore, ShardInfo, TxnInfo, WalRow};
use isochrone_txn::{NodeServices, Store};
use isochrone_wal::{Kind, LogReader};

use crate::node::write_meta;

/// Ids below are the shards of a new cluster.
const FIRST_SPLIT_SHARD: u64 = 3;
/// Attempts at a split point that an unresolved prepare lies across; between them it is being recovered.
const SPLIT_ATTEMPTS_MAX: usize = 50;
/// Records shown by `isochrone.transactions`.
const TRANSACTIONS_MAX: usize = 10_000;

/// See the module.
pub struct Services {
    node: NodeId,
    local: Arc<LocalShards>,
    log: LogReader,
    groups: Handle,
    store: OnceLock<Weak<Store>>,
}

/// A shard's answer in the words of the transaction layer.
fn error(e: ShardError) -> Error {
    match e {
        ShardError::Stopped(why) => Error::Stopped(why),
        ShardError::NotServed(why) | ShardError::Ambiguous(why) => Error::Unavailable(why),
        ShardError::Conflict(why) => Error::Serialization(why),
        other => Error::Internal(other.to_string()),
    }
}

impl Services {
    /// For a node's shards, log and store loop.
    pub fn new(node: NodeId, local: Arc<LocalShards>, log: LogReader, groups: Handle) -> Services {
        Services { node, local, log, groups, store: OnceLock::new() }
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

    async fn split_one(&self, store: &Store, key: &Key) -> Result<(), Error> {
        if self.local.shards().list().iter().any(|m| m.range.start == *key) {
            return Ok(());
        }
        let mut counter = keyspace::COUNTER.to_vec();
        counter.extend_from_slice(b"shard");
        let right = ShardId(FIRST_SPLIT_SHARD + store.add_counter(counter, 1).await?);
        for attempt in 0.. {
            match self.local.split(key, right).await {
                Ok(_) => return Ok(()),
                Err(ShardError::Conflict(_)) if attempt < SPLIT_ATTEMPTS_MAX => {
                    store.coordinator().backoff().wait(attempt as u32).await;
                }
                Err(e) => return Err(error(e)),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

impl NodeServices for Services {
    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.local.clear_range(&range).await.map_err(error) })
    }

    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let store = self.store()?;
            for key in &keys {
                self.split_one(&store, key).await?;
            }
            write_meta(&store, &self.local, self.node).await
        })
    }

    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>> {
        Box::pin(async move {
            let status = self.groups.status().await;
            let status = status.map_err(|_| Error::Unavailable("the store loop has ended".into()))?;
            let mut states = self.local.shards().states();
            states.retain(|s| s.range.overlaps(&range));
            states.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            let info = |s: isochrone_shard::ShardState| {
                let group = status.get(&s.shard).copied().unwrap_or_default();
                ShardInfo {
                    shard: s.shard,
                    range: s.range,
                    leader: group.leader,
                    replicas: vec![self.node],
                    first_index: group.first_index,
                    last_index: group.last_index,
                    bytes: s.bytes,
                }
            };
            Ok(states.into_iter().map(info).collect())
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
                let info = found.entry(r.txn).or_insert(TxnInfo {
                    txn: r.txn,
                    state,
                    pieces: 0,
                    anchor: None,
                    started,
                });
                info.pieces = info.pieces.max(r.pieces.len() as u32).max(1);
                info.started = info.started.or(started);
                if anchor_here {
                    // The anchor's record decides.
                    (info.anchor, info.state) = (Some(r.shard), state);
                }
            }
            for lock in self.local.locks().list() {
                found.entry(lock.owner).or_insert(TxnInfo {
                    txn: lock.owner,
                    state: "active",
                    pieces: 0,
                    anchor: None,
                    started: None,
                });
            }
            Ok(found.into_values().collect())
        })
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
