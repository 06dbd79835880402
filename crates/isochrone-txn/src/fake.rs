//! A store in memory with the face of the real one, for tests of the layers above: [`FakeStore`].
//!
//! One map of versions under one mutex. Transactions read at a snapshot, buffer their writes, and are validated at
//! commit: written keys that were read (first committer wins) at every level, locked rows, and everything read at
//! SERIALIZABLE. Locks wait for each other; a cycle answers [`Error::Deadlock`].
//!
//! What it does not do: wait with a bound (`lock_wait_max` is ignored), forget old versions, lose anything in a
//! crash, or answer [`Error::Unknown`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId, Value, keyspace};
use tokio::sync::Notify;

use crate::buffer::{WriteBuffer, covered, range_of, rest_after};
use crate::kv::{
    BoxFuture, Error, Isolation, KvStore, KvTxn, Lock, Page, Savepoint, ScanOptions, ShardInfo, TxnInfo,
    TxnOptions, WalRow,
};

/// Log rows the fake keeps; the oldest go first.
const WAL_ROWS_MAX: usize = 10_000;

/// See the module. Cloning shares it.
#[derive(Clone, Default)]
pub struct FakeStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    unlocked: Notify,
}

struct State {
    clock: Timestamp,
    next_txn: u128,
    rows: BTreeMap<Key, Vec<(Timestamp, Option<Value>)>>,
    locks: BTreeMap<Key, TxnId>,
    waits: BTreeMap<TxnId, Key>,
    active: BTreeMap<TxnId, Timestamp>,
    splits: BTreeSet<Key>,
    wal: VecDeque<WalRow>,
    wal_next: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            clock: Timestamp::from_micros(1_700_000_000_000_000),
            next_txn: 0,
            rows: BTreeMap::new(),
            locks: BTreeMap::new(),
            waits: BTreeMap::new(),
            active: BTreeMap::new(),
            splits: BTreeSet::from([Key::new(), keyspace::first_user_key()]),
            wal: VecDeque::new(),
            wal_next: 1,
        }
    }
}

impl State {
    fn tick(&mut self) -> Timestamp {
        self.clock = self.clock.plus_micros(1);
        self.clock
    }

    fn get(&self, key: &[u8], ts: Timestamp) -> Option<Value> {
        let versions = self.rows.get(key)?;
        versions.iter().rev().find(|(at, _)| *at <= ts).and_then(|(_, v)| v.clone())
    }

    fn newest(&self, key: &[u8]) -> Timestamp {
        self.rows.get(key).and_then(|v| v.last()).map_or(Timestamp::MIN, |(at, _)| *at)
    }

    fn changed(&self, range: &KeyRange, seen: Timestamp) -> bool {
        range_of(&self.rows, range).any(|(_, v)| v.last().is_some_and(|(at, _)| *at > seen))
    }

    fn scan(&self, range: &KeyRange, ts: Timestamp, options: ScanOptions) -> Page {
        let rows_max = options.rows_max.max(1);
        let all = range_of(&self.rows, range);
        let mut rows = Vec::new();
        let mut take = |key: &Key| {
            if let Some(value) = self.get(key, ts) {
                rows.push((Bytes::copy_from_slice(key), value));
            }
            rows.len() <= rows_max
        };
        if options.reverse {
            let _ = all.rev().all(|(k, _)| take(k));
        } else {
            let _ = { all }.all(|(k, _)| take(k));
        }
        if rows.len() <= rows_max {
            return Page { rows, rest: None };
        }
        rows.truncate(rows_max);
        let rest = rows.last().and_then(|(last, _)| rest_after(range, last, options.reverse));
        Page { rows, rest }
    }

    fn write(&mut self, writes: BTreeMap<Key, Option<Value>>, ts: Timestamp, txn: Option<TxnId>) {
        let keys = writes.len() as u32;
        let mut bytes = 0;
        for (key, value) in writes {
            bytes += (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
            self.rows.entry(key).or_default().push((ts, value));
        }
        if self.wal.len() == WAL_ROWS_MAX {
            self.wal.pop_front();
        }
        self.wal.push_back(WalRow {
            node: NodeId(1),
            shard: ShardId(1),
            log_index: self.wal_next,
            term: 1,
            file: "00000001.log".to_string(),
            offset: self.wal_next * 512,
            kind: "commit1",
            txn,
            commit_ts: Some(ts),
            keys,
            bytes,
        });
        self.wal_next += 1;
    }

    /// Would `txn` waiting for `key` close a cycle?
    fn deadlocks(&self, txn: TxnId, key: &[u8]) -> bool {
        let mut key = key;
        // Each transaction waits for at most one key, so the walk ends after at most that many steps.
        for _ in 0..=self.waits.len() {
            let Some(owner) = self.locks.get(key) else { return false };
            if *owner == txn {
                return true;
            }
            let Some(next) = self.waits.get(owner) else { return false };
            key = next;
        }
        false
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for map operations only, never across an await; a panicking test poisons it, which must not hide why.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn finish(&self, txn: TxnId) {
        let mut state = self.lock();
        state.locks.retain(|_, owner| *owner != txn);
        state.waits.remove(&txn);
        state.active.remove(&txn);
        drop(state);
        self.unlocked.notify_waiters();
    }
}

impl FakeStore {
    /// An empty store.
    pub fn new() -> FakeStore {
        FakeStore::default()
    }

    /// The newest committed rows of a range, for assertions.
    pub fn rows(&self, range: &KeyRange) -> Vec<(Key, Value)> {
        let state = self.shared.lock();
        range_of(&state.rows, range)
            .filter_map(|(k, v)| v.last().and_then(|(_, v)| v.clone()).map(|v| (k.clone(), v)))
            .collect()
    }
}

struct FakeTxn {
    shared: Arc<Shared>,
    id: TxnId,
    options: TxnOptions,
    read_ts: Timestamp,
    buffer: WriteBuffer,
    points: BTreeMap<Key, Timestamp>,
    spans: Vec<(KeyRange, Timestamp)>,
    locked: BTreeSet<Key>,
}

impl FakeTxn {
    fn seen(&self, key: &[u8]) -> Option<Timestamp> {
        let spans = self.spans.iter().filter(|(r, _)| r.contains(key)).map(|(_, ts)| *ts);
        self.points.get(key).copied().into_iter().chain(spans).max()
    }

    fn validate(&self, state: &State) -> Result<(), Error> {
        let fail =
            |key: &[u8]| Err(Error::Serialization(format!("key {key:02x?} changed since it was read")));
        for key in self.buffer.writes().keys().chain(&self.locked) {
            if self.seen(key).is_some_and(|seen| state.newest(key) > seen) {
                return fail(key);
            }
        }
        if self.options.isolation == Isolation::Serializable {
            for (key, seen) in &self.points {
                if state.newest(key) > *seen {
                    return fail(key);
                }
            }
            for (range, seen) in &self.spans {
                if state.changed(range, *seen) {
                    return fail(&range.start);
                }
            }
        }
        Ok(())
    }

    async fn lock(&mut self, key: &[u8]) -> Result<(), Error> {
        loop {
            let notified = self.shared.unlocked.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.shared.lock();
                state.waits.remove(&self.id);
                match state.locks.get(key) {
                    Some(owner) if *owner != self.id => {
                        if state.deadlocks(self.id, key) {
                            return Err(Error::Deadlock);
                        }
                        state.waits.insert(self.id, key.to_vec());
                    }
                    _ => {
                        state.locks.insert(key.to_vec(), self.id);
                        self.locked.insert(key.to_vec());
                        return Ok(());
                    }
                }
            }
            notified.await;
        }
    }
}

impl Drop for FakeTxn {
    fn drop(&mut self) {
        self.shared.finish(self.id);
    }
}

impl KvTxn for FakeTxn {
    fn id(&self) -> TxnId {
        self.id
    }

    fn read_ts(&self) -> Timestamp {
        self.read_ts
    }

    fn begin_statement(&mut self) {
        if self.options.isolation == Isolation::ReadCommitted {
            self.read_ts = self.shared.lock().tick();
        }
    }

    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(async move {
            if lock == Lock::Exclusive {
                if self.options.read_only {
                    return Err(Error::ReadOnly);
                }
                self.lock(key).await?;
                let mut state = self.shared.lock();
                if state.newest(key) > self.read_ts {
                    if self.options.isolation != Isolation::ReadCommitted {
                        return Err(Error::Serialization(
                            "row changed since the snapshot was taken".to_string(),
                        ));
                    }
                    self.read_ts = state.tick();
                }
            }
            if let Some(own) = self.buffer.get(key) {
                return Ok(own.clone());
            }
            self.points.insert(key.to_vec(), self.read_ts);
            Ok(self.shared.lock().get(key, self.read_ts))
        })
    }

    fn scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            let mut range = range.clone();
            loop {
                let page = self.shared.lock().scan(&range, self.read_ts, options);
                let page = self.buffer.overlay(&range, page, options);
                let read = covered(&range, page.rest.as_ref(), options.reverse);
                match self.spans.last_mut() {
                    Some((last, ts))
                        if *ts == self.read_ts && !last.end.is_empty() && last.end == read.start =>
                    {
                        last.end = read.end;
                    }
                    _ => self.spans.push((read, self.read_ts)),
                }
                match (page.rows.is_empty(), &page.rest) {
                    (true, Some(rest)) => range = rest.clone(),
                    _ => return Ok(page),
                }
            }
        })
    }

    fn put(&mut self, key: Key, value: Option<Value>) -> Result<(), Error> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        self.buffer.put(key, value)
    }

    fn buffered_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    fn savepoint(&mut self) -> Savepoint {
        self.buffer.savepoint()
    }

    fn rollback_to(&mut self, savepoint: Savepoint) {
        self.buffer.rollback_to(savepoint);
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<Timestamp, Error>> {
        Box::pin(async move {
            let mut state = self.shared.lock();
            if self.buffer.is_empty() && self.locked.is_empty() {
                return Ok(self.read_ts);
            }
            self.validate(&state)?;
            let ts = state.tick();
            if ts > self.options.max_ts {
                return Err(Error::Serialization(format!(
                    "commit timestamp {ts} is above {}",
                    self.options.max_ts
                )));
            }
            let writes = self.buffer.take();
            if !writes.is_empty() {
                state.write(writes, ts, Some(self.id));
            }
            drop(state);
            Ok(ts)
        })
    }

    fn rollback(self: Box<Self>) {}
}

impl KvStore for FakeStore {
    fn begin(&self, options: TxnOptions) -> Box<dyn KvTxn> {
        let mut state = self.shared.lock();
        state.next_txn += 1;
        let id = TxnId(state.next_txn);
        let read_ts = state.tick();
        state.active.insert(id, read_ts);
        Box::new(FakeTxn {
            shared: self.shared.clone(),
            id,
            options,
            read_ts,
            buffer: WriteBuffer::default(),
            points: BTreeMap::new(),
            spans: Vec::new(),
            locked: BTreeSet::new(),
        })
    }

    fn now(&self) -> Timestamp {
        self.shared.lock().tick()
    }

    fn bulk_write<'a>(&'a self, rows: Vec<(Key, Value)>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut state = self.shared.lock();
            let ts = state.tick();
            state.write(rows.into_iter().map(|(k, v)| (k, Some(v))).collect(), ts, None);
            Ok(())
        })
    }

    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.shared.lock().rows.retain(|k, _| !range.contains(k));
            Ok(())
        })
    }

    fn add_counter<'a>(&'a self, key: Key, n: u64) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let mut state = self.shared.lock();
            let before = crate::store::counter_value(state.get(&key, Timestamp::MAX).as_ref())?;
            let after =
                before.checked_add(n).ok_or_else(|| Error::TooLarge("counter is exhausted".to_string()))?;
            let ts = state.tick();
            state.write(BTreeMap::from([(key, Some(crate::store::counter_bytes(after)))]), ts, None);
            Ok(before)
        })
    }

    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.shared.lock().splits.extend(keys);
            Ok(())
        })
    }

    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>> {
        Box::pin(async move {
            let state = self.shared.lock();
            let starts: Vec<&Key> = state.splits.iter().collect();
            let ends = starts.iter().skip(1).map(|k| (*k).clone()).chain([Key::new()]);
            let all = starts.iter().zip(ends).enumerate().map(|(i, (start, end))| {
                let range = KeyRange { start: (*start).clone(), end };
                let bytes = range_of(&state.rows, &range)
                    .map(|(k, v)| {
                        v.iter().map(|(_, v)| k.len() + v.as_ref().map_or(0, Bytes::len)).sum::<usize>()
                    })
                    .sum::<usize>() as u64;
                ShardInfo {
                    shard: ShardId(i as u64 + 1),
                    range,
                    leader: Some(NodeId(1)),
                    replicas: vec![NodeId(1)],
                    first_index: 1,
                    last_index: state.wal_next - 1,
                    bytes,
                }
            });
            Ok(all.filter(|s| s.range.overlaps(&range)).collect())
        })
    }

    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>> {
        Box::pin(async move {
            let state = self.shared.lock();
            Ok(state.wal.iter().skip(state.wal.len().saturating_sub(max)).cloned().collect())
        })
    }

    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>> {
        Box::pin(async move {
            let state = self.shared.lock();
            let info = |(txn, started): (&TxnId, &Timestamp)| TxnInfo {
                txn: *txn,
                state: "active",
                pieces: 0,
                anchor: None,
                started: Some(*started),
            };
            Ok(state.active.iter().map(info).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(store: &FakeStore, isolation: Isolation) -> Box<dyn KvTxn> {
        store.begin(TxnOptions { isolation, ..TxnOptions::default() })
    }

    fn v(s: &str) -> Option<Value> {
        Some(Bytes::copy_from_slice(s.as_bytes()))
    }

    #[tokio::test]
    async fn first_committer_wins() {
        let store = FakeStore::new();
        for isolation in [Isolation::Serializable, Isolation::RepeatableRead, Isolation::ReadCommitted] {
            let (mut a, mut b) = (begin(&store, isolation), begin(&store, isolation));
            a.get(b"k", Lock::None).await.unwrap();
            b.get(b"k", Lock::None).await.unwrap();
            a.put(b"k".to_vec(), v("a")).unwrap();
            b.put(b"k".to_vec(), v("b")).unwrap();
            a.commit().await.unwrap();
            assert!(matches!(b.commit().await, Err(Error::Serialization(_))));
            assert_eq!(store.rows(&KeyRange::all()), [(b"k".to_vec(), v("a").unwrap())]);
        }
    }

    #[tokio::test]
    async fn write_skew_only_below_serializable() {
        for (isolation, ok) in [(Isolation::Serializable, false), (Isolation::RepeatableRead, true)] {
            let store = FakeStore::new();
            let (mut a, mut b) = (begin(&store, isolation), begin(&store, isolation));
            let all = KeyRange::all();
            let options = ScanOptions { reverse: false, rows_max: 10 };
            assert!(a.scan(&all, options).await.unwrap().rows.is_empty());
            assert!(b.scan(&all, options).await.unwrap().rows.is_empty());
            a.put(b"a".to_vec(), v("1")).unwrap();
            b.put(b"b".to_vec(), v("1")).unwrap();
            a.commit().await.unwrap();
            // Written keys were read by the scan, but nobody else wrote them.
            assert_eq!(b.commit().await.is_ok(), ok);
        }
    }

    #[tokio::test]
    async fn locks_wait_and_deadlocks_break() {
        let store = FakeStore::new();
        let (mut a, mut b) =
            (begin(&store, Isolation::ReadCommitted), begin(&store, Isolation::ReadCommitted));
        a.get(b"x", Lock::Exclusive).await.unwrap();
        b.get(b"y", Lock::Exclusive).await.unwrap();
        let waiter = tokio::spawn(async move {
            let got = b.get(b"x", Lock::Exclusive).await;
            (b, got)
        });
        tokio::task::yield_now().await;
        assert_eq!(a.get(b"y", Lock::Exclusive).await, Err(Error::Deadlock));
        a.rollback();
        let (b, got) = waiter.await.unwrap();
        assert_eq!(got, Ok(None));
        b.commit().await.unwrap();
    }

    #[tokio::test]
    async fn counters_splits_and_log() {
        let store = FakeStore::new();
        assert_eq!(store.add_counter(b"c".to_vec(), 5).await, Ok(0));
        assert_eq!(store.add_counter(b"c".to_vec(), 1).await, Ok(5));
        store.split_at(vec![b"m".to_vec()]).await.unwrap();
        let shards = store.shards(KeyRange::all()).await.unwrap();
        assert_eq!(shards.len(), 3);
        assert_eq!(shards[1].range.end, shards[2].range.start);
        assert_eq!(store.wal(1).await.unwrap().len(), 1);
        store.clear_range(KeyRange::all()).await.unwrap();
        assert!(store.rows(&KeyRange::all()).is_empty());
    }
}
