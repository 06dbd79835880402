//! What the query layer sees of the layers below: transactions over an ordered key space, and a few services.
//!
//! [`KvTxn`] and [`KvStore`] are small enough to be faked in a test; the real ones stand in this crate, on shards.

use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp, TxnId, Value};
pub use isochrone_shard::api::BoxFuture;

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
}

impl Default for TxnOptions {
    fn default() -> TxnOptions {
        TxnOptions {
            isolation: Isolation::default(),
            read_only: false,
            lock_wait_max: Duration::from_secs(50),
            max_ts: Timestamp::MAX,
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
    /// XX000: we broke a promise.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Does a read also lock the row for a write?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// No.
    None,
    /// Takes the exclusive lock first, waiting for it; the value returned is the newest committed one. Above READ
    /// COMMITTED, a row that changed since the snapshot ends in [`Error::Serialization`].
    Exclusive,
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
    /// The value of a key.
    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>>;
    /// Some rows of a range, without locks. Call again with `rest` for more.
    fn scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>>;
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

/// A transaction that has records on this node, for `isochrone.transactions`.
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

/// The services of the layers below, for one node.
pub trait KvStore: Send + Sync {
    /// Begins a transaction; its snapshot is now, above everything this node has acknowledged (R25).
    fn begin(&self, options: TxnOptions) -> Box<dyn KvTxn>;
    /// The clock.
    fn now(&self) -> Timestamp;
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
    /// The transactions with records or locks on this node.
    fn transactions<'a>(&'a self) -> BoxFuture<'a, Result<Vec<TxnInfo>, Error>>;
}
