//! A store in memory with the face of the real one, for tests of the layers above: [`FakeStore`].
//!
//! One map of versions under one mutex. Transactions read at a snapshot, buffer their writes, and are validated at
//! commit: written keys that were read (first committer wins) at every level, locked rows, and everything read at
//! SERIALIZABLE. Locks wait for each other; a cycle answers [`Error::Deadlock`].
//!
//! [`FakeStore::cluster`] gives the faces of several nodes on one such store: rows and locks are common, each node has
//! its schema lease, prolonged whenever it is asked for, and hears what others tell. [`FakeStore::set_reachable`] cuts
//! a node off from the others (not from the rows), [`FakeStore::fail_tells`] makes its messages fail.
//!
//! What it does not do: forget old versions, lose anything in a crash, or answer [`Error::Unknown`]; and outside of a
//! cluster, wait with a bound (`lock_wait_max` is ignored) or know the time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId, Value, keyspace};
use isochrone_env::{Clock, Timer};
use tokio::sync::Notify;

use crate::buffer::{WriteBuffer, covered, range_of, rest_after};
use crate::kv::{
    BoxFuture, Error, Gateway, Isolation, KvStore, KvTxn, Lock, LockMode, LockRow, NodeInfo, Page,
    ReplicaInfo, Savepoint, ScanOptions, ShardInfo, Snapshot, Told, TxnInfo, TxnOptions, WalRow,
};

/// Log rows the fake keeps; the oldest go first.
const WAL_ROWS_MAX: usize = 10_000;

/// How long a schema lease in a cluster of fakes is from the moment it was last asked for.
pub const LEASE: Duration = Duration::from_secs(3);
/// Others get that many turns while a message between fakes is under way, and as many while its answer is.
const TRAVEL_TURNS: usize = 3;
/// Between two looks at the clock while a lease is waited out.
const LEASE_POLL: Duration = Duration::from_millis(100);

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct FakeStore {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Default for FakeStore {
    fn default() -> FakeStore {
        FakeStore { shared: Arc::default(), node: NodeId(1) }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    unlocked: Notify,
    /// Empty in a cluster of one.
    nodes: Mutex<BTreeMap<NodeId, Member>>,
    timer: Option<Arc<dyn Timer>>,
}

/// A node of a cluster of fakes.
#[derive(Default)]
struct Member {
    gateway: Option<Arc<dyn Gateway>>,
    lease: Timestamp,
    cut_off: bool,
    /// Its lease was waited out by another node.
    revoked: bool,
    epoch: u64,
    failing_tells: usize,
}

struct State {
    wall: Option<Arc<dyn Clock>>,
    clock: Timestamp,
    /// See [`FakeStore::keep_here_until`].
    here_until: Option<Timestamp>,
    leaders: BTreeMap<ShardId, NodeId>,
    next_txn: u128,
    rows: BTreeMap<Key, Vec<(Timestamp, Option<Value>)>>,
    locks: BTreeMap<Key, BTreeMap<TxnId, LockMode>>,
    waits: BTreeMap<TxnId, (Key, LockMode)>,
    active: BTreeMap<TxnId, Timestamp>,
    splits: BTreeSet<Key>,
    wal: VecDeque<WalRow>,
    wal_next: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            wall: None,
            here_until: None,
            leaders: BTreeMap::new(),
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
        let wall = self.wall.as_ref().map_or(Timestamp::MIN, |c| Timestamp::from_micros(c.wall().now_us));
        self.clock = self.clock.plus_micros(1).max(wall);
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

    fn leader(&self, shard: ShardId) -> NodeId {
        self.leaders.get(&shard).copied().unwrap_or(NodeId(1))
    }

    /// Who holds a key so that `txn` may not have it in this mode?
    fn in_the_way(&self, txn: TxnId, key: &[u8], mode: LockMode) -> impl Iterator<Item = TxnId> {
        let holders = self.locks.get(key).into_iter().flatten();
        holders.filter(move |(t, m)| **t != txn && m.conflicts_with(mode)).map(|(t, _)| *t)
    }

    /// Would `txn` waiting for `key` close a cycle?
    fn deadlocks(&self, txn: TxnId, key: &[u8], mode: LockMode) -> bool {
        let mut seen = BTreeSet::new();
        let mut todo: Vec<TxnId> = self.in_the_way(txn, key, mode).collect();
        while let Some(t) = todo.pop() {
            if t == txn {
                return true;
            }
            if seen.insert(t)
                && let Some((key, mode)) = self.waits.get(&t)
            {
                todo.extend(self.in_the_way(t, key, *mode));
            }
        }
        false
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for map operations only, never across an await; a panicking test poisons it, which must not hide why.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Member>> {
        // Taken before `state` where both are needed; otherwise as there.
        self.nodes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// When a lease that is prolonged now ends.
    fn lease_from_now(&self) -> Timestamp {
        self.lock().tick().plus_micros(LEASE.as_micros() as u64)
    }

    fn timer(&self) -> &Arc<dyn Timer> {
        self.timer.as_ref().expect("a cluster of fakes has a timer")
    }

    fn finish(&self, txn: TxnId) {
        let mut state = self.lock();
        state.locks.retain(|_, holders| {
            holders.remove(&txn);
            !holders.is_empty()
        });
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

    /// The faces of nodes 1 to `n` on one store, with this time.
    pub fn cluster(n: u32, clock: Arc<dyn Clock>, timer: Arc<dyn Timer>) -> Vec<FakeStore> {
        let shared = Shared {
            state: Mutex::new(State { wall: Some(clock), ..State::default() }),
            nodes: Mutex::new((1..=n).map(|id| (NodeId(id), Member::default())).collect()),
            timer: Some(timer),
            ..Shared::default()
        };
        let shared = Arc::new(shared);
        (1..=n).map(|id| FakeStore { shared: shared.clone(), node: NodeId(id) }).collect()
    }

    /// Cuts this node off from the others, so that it hears nothing, tells nothing and its lease is not prolonged; or
    /// joins it again: if its lease was ended meanwhile, it hears of that and has a new one.
    pub fn set_reachable(&self, reachable: bool) {
        let lost = {
            let mut nodes = self.shared.nodes();
            let Some(member) = nodes.get_mut(&self.node) else { return };
            member.cut_off = !reachable;
            if reachable && member.revoked { member.gateway.clone() } else { None }
        };
        if let Some(gateway) = lost {
            gateway.lease_lost();
        }
        if reachable && let Some(member) = self.shared.nodes().get_mut(&self.node) {
            member.revoked = false;
        }
    }

    /// From now on nodes have by themselves what was committed up to this timestamp ([`KvStore::readable_here`]).
    pub fn keep_here_until(&self, ts: Timestamp) {
        self.shared.lock().here_until = Some(ts);
    }

    /// The next `n` calls of this node to `tell_gateways` reach nobody and fail.
    pub fn fail_tells(&self, n: usize) {
        if let Some(member) = self.shared.nodes().get_mut(&self.node) {
            member.failing_tells = n;
        }
    }

    fn members(&self) -> Vec<NodeId> {
        let nodes = self.shared.nodes();
        if nodes.is_empty() { vec![self.node] } else { nodes.keys().copied().collect() }
    }

    /// Delivers to one node; `None`: it has no lease (any more).
    async fn tell(
        &self,
        to: NodeId,
        message: Bytes,
        wait_max: Duration,
    ) -> Option<Result<(NodeId, Result<Bytes, String>), Error>> {
        let mut timeout = self.shared.timer().sleep(wait_max);
        loop {
            let gateway = {
                let mut nodes = self.shared.nodes();
                let member = nodes.get_mut(&to)?;
                let gateway = member.gateway.clone()?;
                if member.revoked {
                    return None;
                }
                if member.cut_off {
                    if self.shared.lock().tick() > member.lease {
                        (member.revoked, member.epoch) = (true, member.epoch + 1);
                        return None;
                    }
                    None
                } else {
                    Some(gateway)
                }
            };
            let pause = self.shared.timer().sleep(LEASE_POLL);
            let work = async {
                match gateway {
                    Some(gateway) => {
                        travel().await;
                        let answer = gateway.told(self.node, message.clone()).await;
                        travel().await;
                        Some(answer)
                    }
                    None => {
                        pause.await;
                        None
                    }
                }
            };
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                () = &mut timeout => return Some(Err(Error::Unavailable(format!("node {to} does not answer")))),
            };
            if let Some(answer) = answer {
                return Some(Ok((to, answer)));
            }
        }
    }

    /// The newest committed rows of a range, for assertions.
    pub fn rows(&self, range: &KeyRange) -> Vec<(Key, Value)> {
        let state = self.shared.lock();
        range_of(&state.rows, range)
            .filter_map(|(k, v)| v.last().and_then(|(_, v)| v.clone()).map(|v| (k.clone(), v)))
            .collect()
    }
}

async fn travel() {
    for _ in 0..TRAVEL_TURNS {
        tokio::task::yield_now().await;
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

    async fn lock(&mut self, key: &[u8], mode: LockMode, wait_max: Duration) -> Result<(), Error> {
        let mut timeout: BoxFuture<'static, ()> = match &self.shared.timer {
            Some(timer) => timer.sleep(wait_max),
            None => Box::pin(std::future::pending()),
        };
        loop {
            let notified = self.shared.unlocked.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.shared.lock();
                state.waits.remove(&self.id);
                if state.in_the_way(self.id, key, mode).next().is_none() {
                    let holders = state.locks.entry(key.to_vec()).or_default();
                    let held = holders.entry(self.id).or_insert(mode);
                    *held = mode.max(*held);
                    self.locked.insert(key.to_vec());
                    return Ok(());
                }
                if wait_max.is_zero() {
                    return Err(Error::LockTimeout(wait_max));
                }
                if state.deadlocks(self.id, key, mode) {
                    return Err(Error::Deadlock);
                }
                state.waits.insert(self.id, (key.to_vec(), mode));
            }
            tokio::select! {
                biased;
                () = &mut notified => {}
                () = &mut timeout => {
                    self.shared.lock().waits.remove(&self.id);
                    return Err(Error::LockTimeout(wait_max));
                }
            }
        }
    }

    async fn get_locked(
        &mut self,
        key: &[u8],
        lock: Lock,
        wait_max: Duration,
    ) -> Result<Option<Value>, Error> {
        if let Some(mode) = lock.mode() {
            if self.options.read_only {
                return Err(Error::ReadOnly);
            }
            self.lock(key, mode, wait_max).await?;
            let mut state = self.shared.lock();
            if state.newest(key) > self.read_ts {
                if self.options.isolation != Isolation::ReadCommitted
                    && !(wait_max.is_zero() && self.unchanged(&state))
                {
                    return Err(Error::Serialization("row changed since the snapshot was taken".to_string()));
                }
                self.read_ts = state.tick();
                if self.options.isolation != Isolation::ReadCommitted {
                    self.points.values_mut().for_each(|seen| *seen = self.read_ts);
                    self.spans.iter_mut().for_each(|(_, seen)| *seen = self.read_ts);
                }
            }
        }
        if let Some(own) = self.buffer.get(key) {
            return Ok(own.clone());
        }
        let value = self.shared.lock().get(key, self.read_ts);
        if value.is_none() && lock != Lock::None && wait_max.is_zero() {
            if let Some(holders) = self.shared.lock().locks.get_mut(key) {
                holders.remove(&self.id);
            }
            self.locked.remove(key);
            self.shared.unlocked.notify_waiters();
            return Ok(None);
        }
        self.points.insert(key.to_vec(), self.read_ts);
        Ok(value)
    }

    /// Is everything that was read still so?
    fn unchanged(&self, state: &State) -> bool {
        self.points.iter().all(|(key, seen)| state.newest(key) <= *seen)
            && self.spans.iter().all(|(range, seen)| !state.changed(range, *seen))
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
        if self.options.isolation == Isolation::ReadCommitted && self.options.snapshot == Snapshot::Now {
            self.read_ts = self.shared.lock().tick();
        }
    }

    fn set_max_ts(&mut self, max_ts: Timestamp) {
        self.options.max_ts = max_ts;
    }

    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(self.get_locked(key, lock, self.options.lock_wait_max))
    }

    fn try_get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(self.get_locked(key, lock, Duration::ZERO))
    }

    fn peek<'a>(&'a mut self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        let own = self.buffer.get(key).cloned();
        let value = own.unwrap_or_else(|| self.shared.lock().get(key, self.read_ts));
        Box::pin(std::future::ready(Ok(value)))
    }

    fn peek_scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        let page = self.shared.lock().scan(range, self.read_ts, options);
        Box::pin(std::future::ready(Ok(self.buffer.overlay(range, page, options))))
    }

    fn set_lock_wait_max(&mut self, wait_max: Duration) {
        self.options.lock_wait_max = wait_max;
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
        let now = state.tick();
        let read_ts = match options.snapshot {
            Snapshot::At(ts) => ts,
            Snapshot::Now | Snapshot::Settled => now,
        };
        let options = TxnOptions { read_only: options.refuses_writes(), ..options };
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

    fn readable_here(&self, _ranges: &[KeyRange]) -> Option<Timestamp> {
        let state = self.shared.lock();
        Some(state.here_until.unwrap_or(state.clock))
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
            let replicas = self.members();
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
                let shard = ShardId(i as u64 + 1);
                ShardInfo {
                    shard,
                    range,
                    leader: Some(state.leader(shard)),
                    replicas: replicas.clone(),
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

    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>> {
        Box::pin(async move {
            let state = self.shared.lock();
            let row = |key: &Key, txn: &TxnId, mode: &LockMode, waiting_since| LockRow {
                node: NodeId(1),
                shard: Some(ShardId(1)),
                key: key.clone(),
                txn: *txn,
                gateway: self.node,
                mode: *mode,
                waiting_since,
            };
            let held = state.locks.iter().flat_map(|(k, all)| all.iter().map(|(t, m)| row(k, t, m, None)));
            let waits = state.waits.iter().map(|(t, (k, m))| row(k, t, m, Some(state.clock)));
            Ok(held.chain(waits).collect())
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

    fn node(&self) -> NodeId {
        self.node
    }

    fn schema_lease(&self) -> Timestamp {
        let mut nodes = self.shared.nodes();
        let Some(member) = nodes.get_mut(&self.node) else { return Timestamp::MAX };
        if !member.cut_off && !member.revoked {
            member.lease = self.shared.lease_from_now();
        }
        member.lease
    }

    fn lease_epoch(&self) -> u64 {
        // As `nodes` shows it.
        self.shared.nodes().get(&self.node).map_or(0, |m| m.epoch + 1)
    }

    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>> {
        Box::pin(async move {
            let shards = self.shards(KeyRange::all()).await?;
            let of_shard = |s: ShardInfo| {
                let role = move |n: NodeId| if s.leader == Some(n) { "leader" } else { "follower" };
                s.replicas.clone().into_iter().map(move |node| ReplicaInfo {
                    shard: s.shard,
                    node,
                    role: role(node),
                    applied: s.last_index,
                    lag: 0,
                    last_index: s.last_index,
                })
            };
            Ok(shards.into_iter().flat_map(of_shard).collect())
        })
    }

    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>> {
        Box::pin(async move {
            let shards = self.shards(KeyRange::all()).await?;
            let members = self.members();
            let mut nodes = self.shared.nodes();
            // A lease that somebody may take for ended is not prolonged any more.
            for member in nodes.values_mut() {
                if member.cut_off && !member.revoked && self.shared.lock().tick() > member.lease {
                    (member.revoked, member.epoch) = (true, member.epoch + 1);
                }
            }
            let info = |node: NodeId| {
                let member = nodes.get(&node);
                NodeInfo {
                    node,
                    address: format!("node{node}:26257"),
                    sql_address: format!("node{node}:5432"),
                    live: member.is_none_or(|m| !m.revoked),
                    epoch: member.map_or(1, |m| m.epoch + 1),
                    expires: member.map(|m| m.lease),
                    lease_before: false,
                    leaders: shards.iter().filter(|s| s.leader == Some(node)).count() as u32,
                    replicas: shards.len() as u32,
                    draining: false,
                    uptime: Some(Duration::from_secs(1)),
                }
            };
            Ok(members.into_iter().map(info).collect())
        })
    }

    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if !self.shared.nodes().contains_key(&to) {
                return Err(Error::Unavailable(format!("node {to} has no replica of shard {shard}")));
            }
            self.shared.lock().leaders.insert(shard, to);
            Ok(())
        })
    }

    fn tell_gateways<'a>(&'a self, message: Bytes, wait_max: Duration) -> BoxFuture<'a, Result<Told, Error>> {
        Box::pin(async move {
            let others: Vec<NodeId> = {
                let mut nodes = self.shared.nodes();
                if let Some(me) = nodes.get_mut(&self.node)
                    && (me.cut_off || me.failing_tells > 0)
                {
                    me.failing_tells = me.failing_tells.saturating_sub(1);
                    return Err(Error::Unavailable("the other nodes cannot be reached".to_string()));
                }
                nodes.keys().copied().filter(|n| *n != self.node).collect()
            };
            let all = others.into_iter().map(|to| self.tell(to, message.clone(), wait_max));
            join_all(all).await.into_iter().flatten().collect()
        })
    }

    fn set_gateway(&self, handler: Arc<dyn Gateway>) {
        if let Some(member) = self.shared.nodes().get_mut(&self.node) {
            member.gateway = Some(handler);
        }
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
