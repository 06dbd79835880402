//! The first sessions of a node arrive together, while its catalog is being read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, Value};
use isochrone_txn::kv::{
    Error as KvError, Gateway, KvStore, KvTxn, Lock, LockRow, NodeInfo, Page, ReplicaInfo, Savepoint,
    ScanOptions, ShardInfo, Told, TxnInfo, TxnOptions, WalRow,
};

use super::*;

/// A store whose reads take a while, as those of a real one do, and whose commits take this many
/// milliseconds once they were asked for.
pub(super) struct Slow(pub Arc<dyn KvStore>, pub Arc<AtomicU64>);

struct SlowTxn(Box<dyn KvTxn>, Arc<AtomicU64>);

impl KvStore for Slow {
    fn begin(&self, options: TxnOptions) -> Box<dyn KvTxn> {
        Box::new(SlowTxn(self.0.begin(options), self.1.clone()))
    }
    fn now(&self) -> Timestamp {
        self.0.now()
    }
    fn bulk_write<'a>(&'a self, rows: Vec<(Key, Value)>) -> BoxFuture<'a, Result<(), KvError>> {
        self.0.bulk_write(rows)
    }
    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), KvError>> {
        self.0.clear_range(range)
    }
    fn add_counter<'a>(&'a self, key: Key, n: u64) -> BoxFuture<'a, Result<u64, KvError>> {
        self.0.add_counter(key, n)
    }
    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), KvError>> {
        self.0.split_at(keys)
    }
    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, KvError>> {
        self.0.shards(range)
    }
    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, KvError>> {
        self.0.wal(max)
    }
    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, KvError>> {
        self.0.transactions()
    }
    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, KvError>> {
        self.0.locks()
    }
    fn node(&self) -> NodeId {
        self.0.node()
    }
    fn schema_lease(&self) -> Timestamp {
        self.0.schema_lease()
    }
    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, KvError>> {
        self.0.replicas()
    }
    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, KvError>> {
        self.0.nodes()
    }
    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), KvError>> {
        self.0.transfer_leader(shard, to)
    }
    fn tell_gateways<'a>(
        &'a self,
        message: Bytes,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Told, KvError>> {
        self.0.tell_gateways(message, wait_max)
    }
    fn set_gateway(&self, handler: Arc<dyn Gateway>) {
        self.0.set_gateway(handler);
    }
}

impl KvTxn for SlowTxn {
    fn id(&self) -> isochrone_base::TxnId {
        self.0.id()
    }
    fn read_ts(&self) -> Timestamp {
        self.0.read_ts()
    }
    fn begin_statement(&mut self) {
        self.0.begin_statement();
    }
    fn set_max_ts(&mut self, max_ts: Timestamp) {
        self.0.set_max_ts(max_ts);
    }
    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, KvError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.get(key, lock).await
        })
    }
    fn scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, KvError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.scan(range, options).await
        })
    }
    fn try_get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, KvError>> {
        self.0.try_get(key, lock)
    }
    fn peek<'a>(&'a mut self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Value>, KvError>> {
        self.0.peek(key)
    }
    fn peek_scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, KvError>> {
        self.0.peek_scan(range, options)
    }
    fn set_lock_wait_max(&mut self, wait_max: Duration) {
        self.0.set_lock_wait_max(wait_max);
    }
    fn put(&mut self, key: Key, value: Option<Value>) -> Result<(), KvError> {
        self.0.put(key, value)
    }
    fn buffered_bytes(&self) -> usize {
        self.0.buffered_bytes()
    }
    fn savepoint(&mut self) -> Savepoint {
        self.0.savepoint()
    }
    fn rollback_to(&mut self, savepoint: Savepoint) {
        self.0.rollback_to(savepoint);
    }
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Timestamp, KvError>> {
        Box::pin(async move {
            match self.1.load(Ordering::Relaxed) {
                0 => {}
                ms => tokio::time::sleep(Duration::from_millis(ms)).await,
            }
            self.0.commit().await
        })
    }
    fn rollback(self: Box<Self>) {
        self.0.rollback();
    }
}

#[tokio::test]
async fn the_first_sessions_all_see_the_tables() {
    let store: Arc<dyn KvStore> = Arc::new(FakeStore::default());
    let before = database_over(store.clone());
    Client::new(&before).await.ok("create table t (id int primary key); insert into t values (1)").await;

    let db = database_over(Arc::new(Slow(store, Arc::default())));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let db = db.clone();
        tasks.push(tokio::spawn(async move { Client::new(&db).await.rows("select id from t").await }));
    }
    for t in tasks {
        assert_eq!(t.await.unwrap(), ["1"]);
    }
    assert!(!db.catalog().is_doubtful());

    // A doubt that is raised while the catalog is read outlives that reading.
    db.catalog().mark_doubtful();
    let (read, ()) = tokio::join!(db.catalog().refresh(db.store()), async { db.catalog().mark_doubtful() });
    read.unwrap();
    assert!(db.catalog().is_doubtful());
    db.catalog().refresh(db.store()).await.unwrap();
    assert!(!db.catalog().is_doubtful());
}
