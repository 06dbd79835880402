//! What the query layer sees of the layers below: transactions over an ordered key space, and a few services.
//!
//! [`KvTxn`] and [`KvStore`] are small enough to be faked in a test; the real ones stand in this crate, on shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId, Value};
pub use isochrone_shard::api::{BoxFuture, LockMode};

/// Isolation levels (design D7). READ UNCOMMITTED is READ COMMITTED.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Isolation {
    /// A new snapshot for every statement.
    ReadCommitted,
    /// Snapshot isolation: one snapshot, first committer wins.
    RepeatableRead,
    /// Everything read is validated at commit. The default.
    #[default]
    Serializable,
}

/// Which state of the database a transaction reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Snapshot {
    /// The state now; what was acknowledged anywhere before the transaction began is in it (R5).
    #[default]
    Now,
    /// The state at this timestamp, which is not in the future: one fixed timestamp, no uncertainty window, no writes, no
    /// locks (R8). Any replica may answer (R6).
    At(Timestamp),
    /// The state at a timestamp that nothing can be acknowledged below any more when the first read runs: it has all that
    /// [`Snapshot::Now`] has, the first read waits for it, and no read moves it. No writes, no locks. (READ ONLY DEFERRABLE.)
    Settled,
}

/// How long external consistency made a transaction wait for the clock (R24). Shared with who wants to show it.
#[derive(Clone, Debug, Default)]
pub struct ClockWaits(Arc<WaitedUs>);

#[derive(Debug, Default)]
struct WaitedUs {
    reads: AtomicU64,
    commit: AtomicU64,
}

impl ClockWaits {
    pub(crate) fn add_read(&self, us: u64) {
        self.0.reads.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn add_commit(&self, us: u64) {
        self.0.commit.fetch_add(us, Ordering::Relaxed);
    }

    /// Microseconds that answers to reads were held back.
    pub fn reads_us(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// Microseconds that the answer to COMMIT was held back.
    pub fn commit_us(&self) -> u64 {
        self.0.commit.load(Ordering::Relaxed)
    }
}

/// Longest wait of a SQL statement for one lock where `lock_timeout` says nothing. Deadlocks end before; what is left waits
/// for somebody who works or is idle (in PostgreSQL without bound).
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// How a transaction is begun.
#[derive(Clone, Debug)]
pub struct TxnOptions {
    /// The level.
    pub isolation: Isolation,
    /// Refuses writes and locks.
    pub read_only: bool,
    /// Longest wait for one lock.
    pub lock_wait_max: Duration,
    /// The commit timestamp may not pass this (validity of the schema versions used).
    pub max_ts: Timestamp,
    /// What it reads.
    pub snapshot: Snapshot,
    /// R24: strictly serializable among the transactions that ask for it. Without effect on [`Snapshot::At`].
    pub external: Option<ClockWaits>,
}

impl TxnOptions {
    /// Does the transaction refuse writes and locks?
    pub fn refuses_writes(&self) -> bool {
        self.read_only || self.snapshot != Snapshot::Now
    }
}

impl Default for TxnOptions {
    fn default() -> TxnOptions {
        TxnOptions {
            isolation: Isolation::default(),
            read_only: false,
            lock_wait_max: Duration::from_secs(50),
            max_ts: Timestamp::MAX,
            snapshot: Snapshot::Now,
            external: None,
        }
    }
}

/// Why a transaction could not go on; each kind has one SQLSTATE and says what the caller may do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// 40001: certainly aborted (R22); a new attempt may succeed.
    #[error("could not serialize access: {0}")]
    Serialization(String),
    /// 40P01: certainly aborted; a new attempt may succeed.
    #[error("deadlock detected")]
    Deadlock,
    /// 55P03: a lock was not granted in time.
    #[error("could not obtain lock within {0:?}")]
    LockTimeout(Duration),
    /// 40003: COMMIT was sent and its outcome cannot be known (R22).
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// 54000: a published limit was passed.
    #[error("{0}")]
    TooLarge(String),
    /// 25006: a write in a read-only transaction.
    #[error("cannot write in a read-only transaction")]
    ReadOnly,
    /// 72000: the snapshot is below the garbage collection threshold.
    #[error("{0}")]
    SnapshotTooOld(String),
    /// 57P03: the shard cannot be reached now; nothing was committed.
    #[error("not available: {0}")]
    Unavailable(String),
    /// 58030: the node's storage has stopped (disk full, I/O error); nothing more is acknowledged.
    #[error("storage stopped: {0}")]
    Stopped(String),
    /// 42704: it names a node or a shard that does not exist.
    #[error("{0}")]
    NoSuch(String),
    /// XX000: we broke a promise.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Does a read also lock the row, and how strongly?
///
/// A lock is taken first, waiting for it; the value returned is the newest committed one. Above READ COMMITTED, a row
/// that changed since the snapshot ends in [`Error::Serialization`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Lock {
    /// No.
    #[default]
    None,
    /// FOR KEY SHARE.
    KeyShare,
    /// FOR SHARE.
    Share,
    /// FOR NO KEY UPDATE.
    NoKeyUpdate,
    /// FOR UPDATE.
    Exclusive,
}

impl Lock {
    /// The mode at the leaseholder.
    pub fn mode(self) -> Option<LockMode> {
        match self {
            Lock::None => None,
            Lock::KeyShare => Some(LockMode::KeyShare),
            Lock::Share => Some(LockMode::Share),
            Lock::NoKeyUpdate => Some(LockMode::NoKeyUpdate),
            Lock::Exclusive => Some(LockMode::Update),
        }
    }
}

/// One page of a scan: the reader's own writes are laid over it (R7).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Rows in the order of the scan.
    pub rows: Vec<(Bytes, Value)>,
    /// Where to go on; `None`: the range is finished.
    pub rest: Option<KeyRange>,
}

/// What one scan call may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanOptions {
    /// From the end of the range to its start.
    pub reverse: bool,
    /// At most this many rows.
    pub rows_max: usize,
}

/// A position in a transaction's write buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Savepoint(pub usize);

/// A transaction. Dropping it unfinished rolls it back. After an error other than from `rollback_to`, only
/// `rollback` makes sense (except where the error says that nothing happened: `ReadOnly`, `TooLarge`, `LockTimeout`).
pub trait KvTxn: Send {
    /// The attempt's id.
    fn id(&self) -> TxnId;
    /// The timestamp reads run at now.
    fn read_ts(&self) -> Timestamp;
    /// A statement begins: at READ COMMITTED the snapshot moves to now.
    fn begin_statement(&mut self);
    /// From now on the commit timestamp may not pass this ([`TxnOptions::max_ts`]): at COMMIT the query layer raises it
    /// to the end of a schema lease that was prolonged meanwhile, or lowers it to the end of what a schema change holds.
    fn set_max_ts(&mut self, max_ts: Timestamp);
    /// The value of a key.
    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>>;
    /// The same, but nobody is waited for: neither who holds the lock, nor who has prepared a write of the row. Then it
    /// is [`Error::LockTimeout`], and nothing happened. A row that is not there (any more) is not kept locked.
    fn try_get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>>;
    /// As [`KvTxn::get`] without a lock, and not validated at any level: what SKIP LOCKED looks at before it locks.
    fn peek<'a>(&'a mut self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Value>, Error>>;
    /// Some rows of a range, without locks. Call again with `rest` for more.
    fn scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>>;
    /// As [`KvTxn::scan`], and not validated at any level.
    fn peek_scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>>;
    /// Where the uncertainty window of the snapshot ends (R5): nothing above it was acknowledged before the snapshot was
    /// taken. Without a window, the snapshot itself.
    fn uncertain_to(&self) -> Timestamp {
        self.read_ts()
    }
    /// What runs now was begun before and is tried again: it must see what was acknowledged before it began first, and so
    /// its window ends at `to`, where the first attempt's did. Attempts that read a hot range come to an end by that: the
    /// snapshot of a later one is above the window. To be called before anything is read.
    fn cap_uncertainty(&mut self, _to: Timestamp) {}
    /// Locks asked for from now on are waited for so long at most.
    fn set_lock_wait_max(&mut self, wait_max: Duration);
    /// Buffers a write; `None` deletes. Sent only at commit. A key that this transaction read before (point or scan)
    /// is validated at commit: first committer wins.
    fn put(&mut self, key: Key, value: Option<Value>) -> Result<(), Error>;
    /// Bytes buffered so far.
    fn buffered_bytes(&self) -> usize;
    /// Marks the buffer.
    fn savepoint(&mut self) -> Savepoint;
    /// Drops writes since the mark. Reads stay in the read set.
    fn rollback_to(&mut self, savepoint: Savepoint);
    /// Commits: durable at a quorum when it returns. The commit goes on in the background if the future is dropped.
    /// A transaction without writes and locks returns at once (R8).
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Timestamp, Error>>;
    /// Gives up: nothing was sent, locks go.
    fn rollback(self: Box<Self>);
}

/// One shard, for `SHOW SHARDS` and `isochrone.shards`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardInfo {
    /// Its id.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// The node that leads it, if known.
    pub leader: Option<NodeId>,
    /// The nodes that have a replica.
    pub replicas: Vec<NodeId>,
    /// First index still in its log.
    pub first_index: u64,
    /// Last index in its log.
    pub last_index: u64,
    /// About how many bytes its rows take.
    pub bytes: u64,
}

/// One record of the node log, for `isochrone.wal`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalRow {
    /// The node.
    pub node: NodeId,
    /// The shard whose log it belongs to.
    pub shard: ShardId,
    /// Index in that log.
    pub log_index: u64,
    /// Raft term.
    pub term: u64,
    /// Segment file.
    pub file: String,
    /// Offset in the file.
    pub offset: u64,
    /// `commit1`, `prepare`, `commit`, `abort`, `split`, `conf_change`, `truncate`, `snapshot`, `lease`, `noop`, ...
    pub kind: &'static str,
    /// The transaction, where the kind has one.
    pub txn: Option<TxnId>,
    /// The commit timestamp, where it is known from this record.
    pub commit_ts: Option<Timestamp>,
    /// How many keys it writes.
    pub keys: u32,
    /// Bytes in the log.
    pub bytes: u64,
}

/// A transaction that has records or locks somewhere in the cluster, for `isochrone.transactions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnInfo {
    /// Its id.
    pub txn: TxnId,
    /// `active`, `prepared`, `committed`, `aborted`.
    pub state: &'static str,
    /// How many pieces.
    pub pieces: u32,
    /// The shard of the anchor, where known.
    pub anchor: Option<ShardId>,
    /// Its candidate timestamp, while a record still has it: neither a lock nor a tombstone says when it began.
    pub started: Option<Timestamp>,
}

/// A row lock in the memory of a leaseholder, held or waited for, for `isochrone.locks`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockRow {
    /// The leaseholder.
    pub node: NodeId,
    /// The shard of the key, where known.
    pub shard: Option<ShardId>,
    /// The key.
    pub key: Key,
    /// Who holds it, or waits.
    pub txn: TxnId,
    /// The node that coordinates the transaction.
    pub gateway: NodeId,
    /// Held, or wished for.
    pub mode: LockMode,
    /// Since when it is waited for; `None`: it is held.
    pub waiting_since: Option<Timestamp>,
}

/// A replica of a shard, for `isochrone.replicas`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaInfo {
    /// The shard.
    pub shard: ShardId,
    /// The node that has the replica.
    pub node: NodeId,
    /// `leader`, `follower`, `learner`.
    pub role: &'static str,
    /// Applied up to this index.
    pub applied: u64,
    /// Entries that the leader has and this replica has not applied, as far as is known.
    pub lag: u64,
    /// Last index in the replica's log.
    pub last_index: u64,
}

/// A node of the cluster, for `isochrone.nodes`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Its id.
    pub node: NodeId,
    /// Where other nodes reach it; empty where there are none.
    pub address: String,
    /// Where SQL clients reach it; empty if it did not say.
    pub sql_address: String,
    /// Its liveness record has not expired.
    pub live: bool,
    /// The epoch of its liveness record: raised whenever it was given up as dead.
    pub epoch: u64,
    /// When its liveness record expires; `None`: never.
    pub expires: Option<Timestamp>,
    /// The lease before this one has not ended: what an earlier process of the node sent off may still be done.
    pub lease_before: bool,
    /// Shards it leads.
    pub leaders: u32,
    /// Replicas it has.
    pub replicas: u32,
    /// It gives its leaderships away, to be stopped.
    pub draining: bool,
    /// For how long it has run; `None`: it does not answer.
    pub uptime: Option<Duration>,
}

/// A node's clock, and how far it is from another one's, for `isochrone.clocks`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClockInfo {
    /// The node that says so.
    pub node: NodeId,
    /// Where its error bound comes from: `fixed`, `ntp`, `clockbound`.
    pub source: String,
    /// Its error bound now, in microseconds either way.
    pub error_us: u64,
    /// The other node; `None`: it has measured nobody lately.
    pub peer: Option<NodeId>,
    /// How far its wall clock is ahead of that node's, in microseconds.
    pub offset_us: Option<i64>,
    /// How far that measurement can be off, either way.
    pub offset_error_us: Option<u64>,
    /// It serves.
    pub in_service: bool,
    /// Why not, or what is wrong with its source.
    pub reason: Option<String>,
}

/// What every gateway that was told answered.
pub type Told = Vec<(NodeId, Result<Bytes, String>)>;

/// The query layer of a node, as the others' reach it.
pub trait Gateway: Send + Sync {
    /// A message of another gateway ([`KvStore::tell_gateways`]), and the answer to it. May come more than once. Waits a
    /// second or two at most. `Err`: it could not be done, in words for the log of the other side.
    fn told(&self, from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
    /// The schema lease was lost: another node has waited for its end, and may have changed the catalog since. Called
    /// before [`KvStore::schema_lease`] answers with a new one. Quick: the catalog is read again later.
    fn lease_lost(&self);
}

/// The services of the layers below, as one node sees them.
///
/// The schema lease (design D16) is what lets a gateway use the catalog it remembers. Three promises hold it together:
/// nothing is committed above its end ([`TxnOptions::max_ts`]); who changes the catalog tells every other holder of a
/// lease, or waits until that lease has ended *and* sees to it that it cannot be prolonged; and a node whose lease was
/// ended in that way hears [`Gateway::lease_lost`] before it gets another one.
pub trait KvStore: Send + Sync {
    /// Begins a transaction; its snapshot is now, above everything this node has acknowledged (R25).
    fn begin(&self, options: TxnOptions) -> Box<dyn KvTxn>;
    /// The clock.
    fn now(&self) -> Timestamp;
    /// Up to which timestamp this node can answer reads of these ranges by itself, without waiting (R6): the lowest resolved
    /// timestamp of its replicas. `None`: it does not have all of them.
    fn readable_here(&self, ranges: &[KeyRange]) -> Option<Timestamp> {
        let _ = ranges;
        None
    }
    /// This node.
    fn node(&self) -> NodeId;
    /// Until when this node may use its cached catalog; [`Timestamp::MAX`] in a cluster of one. Cheap: an atomic load.
    fn schema_lease(&self) -> Timestamp;
    /// The epoch of the lease, as the node's record has it; 0 in a cluster of one. A new epoch is told before its lease, and
    /// after [`Gateway::lease_lost`].
    fn lease_epoch(&self) -> u64 {
        0
    }
    /// Writes rows outside any transaction: for tables nobody can see yet (bulk loads, index backfill of a new id).
    /// Durable when it returns; atomic per shard only; may be repeated.
    fn bulk_write<'a>(&'a self, rows: Vec<(Key, Value)>) -> BoxFuture<'a, Result<(), Error>>;
    /// Removes all rows of a range that nobody can see any more (dropped tables), in bounded steps.
    fn clear_range<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<(), Error>>;
    /// Adds `n` to a counter in a transaction of its own and returns its value before: sequences, ids. Never repeats.
    fn add_counter<'a>(&'a self, key: Key, n: u64) -> BoxFuture<'a, Result<u64, Error>>;
    /// Cuts shards so that each key starts one. Harmless where one starts already.
    fn split_at<'a>(&'a self, keys: Vec<Key>) -> BoxFuture<'a, Result<(), Error>>;
    /// The shards that overlap a range, in key order.
    fn shards<'a>(&'a self, range: KeyRange) -> BoxFuture<'a, Result<Vec<ShardInfo>, Error>>;
    /// The records of this node's log, at most `max` (the newest), in log order.
    fn wal<'a>(&'a self, max: usize) -> BoxFuture<'a, Result<Vec<WalRow>, Error>>;
    /// The transactions with records or locks anywhere in the cluster, as far as its nodes answer.
    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>>;
    /// The row locks held and waited for anywhere in the cluster, as far as its nodes answer.
    fn locks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<LockRow>, Error>>;
    /// The replicas of all shards; every node is asked.
    fn replicas<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ReplicaInfo>, Error>>;
    /// The nodes of the cluster.
    fn nodes<'a>(&'a self) -> BoxFuture<'a, Result<Vec<NodeInfo>, Error>>;
    /// The clocks of the cluster's nodes, as far as they answer.
    fn clocks<'a>(&'a self) -> BoxFuture<'a, Result<Vec<ClockInfo>, Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// Why this node must not serve, if so: its clock is out of bounds (design D8). An atomic load while all is well.
    fn out_of_service(&self) -> Option<String> {
        None
    }
    /// Makes another replica the leader of a shard; returns when it is.
    fn transfer_leader<'a>(&'a self, shard: ShardId, to: NodeId) -> BoxFuture<'a, Result<(), Error>>;
    /// Delivers a message to every *other* node that holds a schema lease at some moment after this call began, and
    /// returns their answers ([`Gateway::told`]). A node that cannot be reached has its lease waited out and revoked
    /// first, after which it is not in the list: it reads the catalog again before it serves. `Err`: neither was
    /// possible within `wait_max`, and some may have heard it.
    fn tell_gateways<'a>(&'a self, message: Bytes, wait_max: Duration) -> BoxFuture<'a, Result<Told, Error>>;
    /// Who answers `tell_gateways` of other nodes. Once, before anything is served.
    fn set_gateway(&self, handler: Arc<dyn Gateway>);
}
