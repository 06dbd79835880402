//! The store's own work on the model: counters, bulk writes.

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp};
use isochrone_txn::kv::{
    BoxFuture, Error, Gateway, KvStore, LockRow, NodeInfo, ReplicaInfo, ShardInfo, Told, TxnInfo, WalRow,
};
use isochrone_txn::store::counter_value;
use isochrone_txn::{Config, NodeServices, Store};

use crate::net::{Action, Kind, World, node};

struct NoServices;

impl NodeServices for NoServices {
    fn clear_range<'a>(&'a self, _range: KeyRange) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn split_at<'a>(&'a self, _keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn shards<'a>(&'a self, _range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn wal<'a>(&'a self, _max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn node(&self) -> NodeId {
        NodeId(1)
    }
    fn schema_lease(&self) -> Timestamp {
        Timestamp::MAX
    }
    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn transfer_leader<'a>(&'a self, _: ShardId, _: NodeId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Err(Error::Unavailable("a cluster of one".to_string())) })
    }
    fn tell_gateways<'a>(&'a self, _: Bytes, _: Duration) -> BoxFuture<'a, Result<Told, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn set_gateway(&self, _: Arc<dyn Gateway>) {}
}

#[tokio::test(start_paused = true)]
async fn counters_never_repeat() {
    let world = World::new(&[]);
    // Also when answers are lost: the anchor's word, or a new attempt with other numbers.
    world.script(Kind::Commit1, None, 40, Action::LoseAnswer);
    let store = Arc::new(Store::new(node(&world, 1, Config::default()).coordinator, Arc::new(NoServices)));
    let adders: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut got = Vec::new();
                for _ in 0..5 {
                    got.push(store.add_counter(b"c".to_vec(), 3).await.unwrap());
                }
                got
            })
        })
        .collect();
    let mut all = Vec::new();
    for adder in adders {
        all.extend(adder.await.unwrap());
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 40);
    assert!(all.iter().all(|n| n % 3 == 0));
    let last = world.state().value_at(b"c", isochrone_base::Timestamp::MAX).map(|s| s.value);
    assert!(counter_value(last.as_ref()).unwrap() >= 120);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn bulk_writes_are_cut_by_shard_and_size() {
    let world = World::new(&[b"m"]);
    let store = Store::new(node(&world, 1, Config::default()).coordinator, Arc::new(NoServices));
    world.script(Kind::Commit1, None, 1, Action::Lose);
    let big = Bytes::from(vec![7; 3 << 20]);
    let mut rows: Vec<(Key, Bytes)> = [b"a", b"b", b"x"].map(|k| (k.to_vec(), big.clone())).to_vec();
    rows.push((b"y".to_vec(), Bytes::from_static(b"old")));
    rows.push((b"y".to_vec(), Bytes::from_static(b"new")));
    store.bulk_write(rows).await.unwrap();
    assert_eq!(world.value(b"y").as_deref(), Some("new"));
    assert_eq!(world.state().rows.len(), 4);
    let mut keys: Vec<Vec<Key>> = world
        .sent(Kind::Commit1)
        .iter()
        .map(|s| s.body.as_ref().unwrap().writes.iter().map(|w| w.key.clone()).collect())
        .collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys, [vec![b"a".to_vec()], vec![b"b".to_vec()], vec![b"x".to_vec(), b"y".to_vec()]]);
    world.assert_clean();
}
