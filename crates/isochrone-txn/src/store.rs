//! The face to the query layer, as one node has it: [`Store`].
//!
//! Transactions, bulk writes and counters are made here, on the coordinator; what needs the node's shards and log
//! themselves is asked of [`NodeServices`], which the server implements.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, iter};
use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, Value};

use crate::commit::{Request, commit_request};
use crate::coordinator::Coordinator;
use crate::kv::{
    BoxFuture, ClockInfo, Error, Gateway, Isolation, KvStore, KvTxn, Lock, LockRow, NodeInfo, ReplicaInfo,
    ShardInfo, Told, TxnInfo, TxnOptions, WalRow,
};
use crate::retry::{Retriable, retry};

/// Bytes of keys and values in one batch of a bulk write, about.
pub const BULK_BYTES_MAX: usize = 4 << 20;
/// Batches of one bulk write under way at once.
const BULK_PARALLEL: usize = 4;

/// What a node can do beside transactions. Errors as in [`Error`].
pub trait NodeServices: Send + Sync {
    /// See [`KvStore::clear_range`].
    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>>;
    /// See [`KvStore::split_at`].
    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>>;
    /// See [`KvStore::shards`].
    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>>;
    /// See [`KvStore::wal`].
    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>>;
    /// See [`KvStore::transactions`].
    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>>;
    /// See [`KvStore::locks`].
    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>>;
    /// See [`KvStore::node`].
    fn node(&self) -> NodeId;
    /// See [`KvStore::readable_here`].
    fn readable_here(&self, ranges: &[KeyRange]) -> Option<Timestamp> {
        let _ = ranges;
        None
    }
    /// See [`KvStore::schema_lease`].
    fn schema_lease(&self) -> Timestamp;
    /// See [`KvStore::replicas`].
    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>>;
    /// See [`KvStore::nodes`].
    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>>;
    /// See [`KvStore::lease_epoch`].
    fn lease_epoch(&self) -> u64 {
        0
    }
    /// See [`KvStore::clocks`].
    fn clocks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ClockInfo>, Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// See [`KvStore::out_of_service`].
    fn out_of_service(&self) -> Option<String> {
        None
    }
    /// See [`KvStore::transfer_leader`].
    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), Error>>;
    /// See [`KvStore::tell_gateways`].
    fn tell_gateways<'a>(&'a self, message: Bytes, wait_max: Duration) -> BoxFuture<'a, Result<Told, Error>>;
    /// See [`KvStore::set_gateway`].
    fn set_gateway(&self, handler: Arc<dyn Gateway>);
}

/// See the module.
pub struct Store {
    coordinator: Arc<Coordinator>,
    services: Arc<dyn NodeServices>,
}

impl Store {
    /// From the node's coordinator and its services.
    pub fn new(coordinator: Arc<Coordinator>, services: Arc<dyn NodeServices>) -> Store {
        Store { coordinator, services }
    }

    /// The coordinator below.
    pub fn coordinator(&self) -> &Arc<Coordinator> {
        &self.coordinator
    }

    /// One batch, which lies in one shard unless that is split meanwhile. A new attempt starts only when the last one
    /// is known to be aborted: a copy of it that arrives late would otherwise write over what came after.
    async fn write_batch(&self, rows: Vec<(Key, Value)>) -> Result<(), Error> {
        let mut attempt = 0;
        loop {
            let request = Request::blind(self.coordinator.new_txn_id(), rows.iter().cloned());
            match commit_request(self.coordinator.clone(), request).await {
                Err(e) if e.retriable() && attempt + 1 < self.coordinator.config.own_attempts_max => {
                    self.coordinator.backoff.wait(attempt).await;
                    attempt += 1;
                }
                other => return other.map(|_| ()),
            }
        }
    }
}

/// Sorts rows (of equal keys the last one stays) and cuts them by shard and size.
fn batches(coordinator: &Coordinator, mut rows: Vec<(Key, Value)>) -> Vec<Vec<(Key, Value)>> {
    // Stable, so that the last of several equal keys comes last.
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out: Vec<Vec<(Key, Value)>> = Vec::new();
    let mut shard: Option<KeyRange> = None;
    let mut bytes = 0;
    for (key, value) in rows {
        if let Some(last) = out.last_mut().and_then(|b| b.last_mut())
            && last.0 == key
        {
            last.1 = value;
            continue;
        }
        let same_shard = shard.as_ref().is_some_and(|s| s.contains(&key));
        if !same_shard {
            shard = Some(coordinator.client.route_key(&key));
        }
        let more = key.len() + value.len();
        match out.last_mut() {
            Some(batch) if same_shard && bytes + more <= BULK_BYTES_MAX => {
                bytes += more;
                batch.push((key, value));
            }
            _ => {
                bytes = more;
                out.push(vec![(key, value)]);
            }
        }
    }
    out
}

impl KvStore for Store {
    fn begin(&self, options: TxnOptions) -> Box<dyn KvTxn> {
        self.coordinator.begin(options)
    }

    fn now(&self) -> Timestamp {
        self.coordinator.clock.now()
    }

    fn readable_here(&self, ranges: &[KeyRange]) -> Option<Timestamp> {
        self.services.readable_here(ranges)
    }

    fn bulk_write<'a>(&'a self, rows: Vec<(Key, Value)>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let batches = batches(&self.coordinator, rows);
            let writes: Vec<_> = batches.into_iter().map(|batch| self.write_batch(batch)).collect();
            let mut answers = iter(writes).buffer_unordered(BULK_PARALLEL);
            let mut result = Ok(());
            while let Some(answer) = answers.next().await {
                result = result.and(answer);
            }
            result
        })
    }

    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>> {
        self.services.clear_range(range)
    }

    fn add_counter<'a>(&'a self, key: Key, n: u64) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let options = TxnOptions { isolation: Isolation::ReadCommitted, ..TxnOptions::default() };
            let attempts_max = self.coordinator.config.own_attempts_max;
            // An attempt whose outcome is unknown may have taken its numbers: a new one takes others, none comes twice.
            for _ in 0..attempts_max {
                let added = retry(self, &self.coordinator.backoff, &options, attempts_max, |mut txn| {
                    let key = &key;
                    async move {
                        let before = counter_value(txn.get(key, Lock::Exclusive).await?.as_ref())?;
                        let exhausted = || Error::TooLarge("counter is exhausted".to_string());
                        let after = before.checked_add(n).ok_or_else(exhausted)?;
                        txn.put(key.clone(), Some(counter_bytes(after)))?;
                        txn.commit().await?;
                        Ok(before)
                    }
                });
                match added.await {
                    Err(Error::Unknown(_)) => {}
                    other => return other,
                }
            }
            Err(Error::Unavailable("counter cannot be written".to_string()))
        })
    }

    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>> {
        self.services.split_at(keys)
    }

    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>> {
        self.services.shards(range)
    }

    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>> {
        self.services.wal(max)
    }

    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>> {
        self.services.transactions()
    }

    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>> {
        self.services.locks()
    }

    fn node(&self) -> NodeId {
        self.services.node()
    }

    fn schema_lease(&self) -> Timestamp {
        self.services.schema_lease()
    }

    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>> {
        self.services.replicas()
    }

    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>> {
        self.services.nodes()
    }

    fn lease_epoch(&self) -> u64 {
        self.services.lease_epoch()
    }

    fn clocks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ClockInfo>, Error>> {
        self.services.clocks()
    }

    fn out_of_service(&self) -> Option<String> {
        self.services.out_of_service()
    }

    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), Error>> {
        self.services.transfer_leader(shard, to)
    }

    fn tell_gateways<'a>(&'a self, message: Bytes, wait_max: Duration) -> BoxFuture<'a, Result<Told, Error>> {
        self.services.tell_gateways(message, wait_max)
    }

    fn set_gateway(&self, handler: Arc<dyn Gateway>) {
        self.services.set_gateway(handler);
    }
}

/// The value of a counter: eight bytes, most significant first; an absent row is 0.
pub fn counter_value(value: Option<&Value>) -> Result<u64, Error> {
    match value {
        None => Ok(0),
        Some(bytes) => <[u8; 8]>::try_from(bytes.as_ref())
            .map(u64::from_be_bytes)
            .map_err(|_| Error::Internal(format!("a counter has {} bytes instead of 8", bytes.len()))),
    }
}

/// The inverse of [`counter_value`].
pub fn counter_bytes(n: u64) -> Value {
    Bytes::copy_from_slice(&n.to_be_bytes())
}
