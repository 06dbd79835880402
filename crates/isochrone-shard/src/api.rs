//! What a transaction says to a shard and what it hears, as plain data: the same whether the shard's leaseholder is
//! in this process or behind the network. Rule numbers are those of the commit protocol.
//!
//! A request names keys, never shards: [`ShardClient`] routes by key, and a piece is found by its first key, so that
//! splits between prepare and resolve do no harm (commit protocol, section 11, "Routing").

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, PieceNo, ShardId, Timestamp, TxnId, Value};

/// A boxed future, as trait objects need it. Ready at once when nothing has to be waited for.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who reads, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadAs {
    /// The reading transaction: its own locks, prepares and cache entries do not stand in its way.
    pub txn: TxnId,
    /// The timestamp of the snapshot.
    pub ts: Timestamp,
    /// Upper end of the uncertainty window (R5): a foreign version or prepare in `(ts, uncertain_to]` answers
    /// [`Error::Uncertain`]. Equal to `ts`: no window.
    pub uncertain_to: Timestamp,
}

/// One version as a reader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The value.
    pub value: Value,
    /// When it was committed.
    pub ts: Timestamp,
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Rows in the order of the scan.
    pub rows: Vec<(Bytes, Value)>,
    /// The part of the range that was not looked at yet; `None` when the page ends the range. The part before it was
    /// recorded as read at the transaction's timestamp (R4).
    pub rest: Option<KeyRange>,
    /// Nothing in this page, deletions included, was committed above this; at or below the reader's timestamp (R24).
    pub newest: Timestamp,
}

/// A span that was read, and up to when its reader knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadSpan {
    /// The keys.
    pub range: KeyRange,
    /// The timestamp up to which the reader knows them.
    pub seen: Timestamp,
}

/// One buffered write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The key.
    pub key: Key,
    /// The new value, or `None` for a deletion.
    pub value: Option<Value>,
    /// The timestamp up to which the writer knows the row; `None` when it writes blindly.
    pub seen: Option<Timestamp>,
}

/// When a transaction of several pieces is committed without a word from its coordinator (R14).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Every validated item is a point key that is also written: commits at the maximum of the pieces' timestamps.
    AtMax,
    /// Commits by itself only when every piece was prepared exactly at the candidate timestamp.
    AtCandidate,
}

/// One piece of a transaction in the list that every prepare carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PieceRef {
    /// Its number.
    pub piece: PieceNo,
    /// The key that finds it: its first written key.
    pub key: Key,
}

/// Everything a shard needs to prepare (R11) or commit in one step (R13) one piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The transaction attempt.
    pub txn: TxnId,
    /// This piece.
    pub piece: PieceNo,
    /// All pieces; fixed when the first prepare leaves.
    pub pieces: Vec<PieceRef>,
    /// The piece whose record decides.
    pub anchor: PieceNo,
    /// Candidate commit timestamp C.
    pub candidate: Timestamp,
    /// See [`Mode`].
    pub mode: Mode,
    /// At or below a shard's floor this piece is never prepared any more.
    pub deadline: Timestamp,
    /// The piece may not be pushed above this (schema validity, R11.6).
    pub max_ts: Timestamp,
    /// W, sorted by key, within one shard.
    pub writes: Vec<Write>,
    /// The part of V that lies on this shard.
    pub validate: Vec<ReadSpan>,
    /// V has keys on other shards (R13: then a one-piece commit may not be pushed).
    pub validated_elsewhere: bool,
}

/// The state of a piece's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// Nothing is known of it.
    None,
    /// Prepared at p.
    Prepared(Timestamp),
    /// Committed at c.
    Committed(Timestamp),
    /// Aborted, or blocked before it was prepared.
    Aborted,
}

/// A decision about a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Commit at this timestamp.
    Commit(Timestamp),
    /// Abort.
    Abort,
}

/// What a prepare answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// Prepared at p (now or before).
    At(Timestamp),
    /// Committed at c: as one piece just now, or decided already.
    Committed(Timestamp),
    /// Refused for good: `aborted` stands in the log (R12).
    Refused(String),
    /// Refused for good: the piece is not wholly in one shard. What its sender knows of where keys live is old.
    OutOfRange,
    /// Refused for good, for this reason alone: its timestamp would be this, and what it validated on other shards was
    /// validated only up to its candidate (R13). A new attempt that validates everything anew may succeed.
    Pushed(Timestamp),
    /// The deadline is at or below the floor: not final, the tombstone may be gone (R11.2).
    PastDeadline,
}

/// What the anchor answers to a decision or a question (R16).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnchorReply {
    /// The outcome, whatever was proposed.
    Decided(Decision),
    /// Prepared and undecided (only answers a question).
    Undecided,
    /// No record, deadline above the floor (only answers a question).
    Unknown,
    /// No record, deadline at or below the floor: the outcome cannot be known here any more.
    Gone,
}

/// Names a piece to its shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PieceId {
    /// The transaction attempt.
    pub txn: TxnId,
    /// The piece.
    pub piece: PieceNo,
    /// The key that finds it.
    pub key: Key,
    /// Its deadline.
    pub deadline: Timestamp,
}

/// How strongly a row is locked, as PostgreSQL has it. Each mode conflicts with all that the weaker ones conflict with.
///
/// | | KEY SHARE | SHARE | NO KEY UPDATE | UPDATE |
/// |---|---|---|---|---|
/// | KEY SHARE | | | | X |
/// | SHARE | | | X | X |
/// | NO KEY UPDATE | | X | X | X |
/// | UPDATE | X | X | X | X |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LockMode {
    /// The row stays, and keeps its key: what a foreign key needs of its parent.
    KeyShare,
    /// The row stays as it is.
    Share,
    /// It is about to be changed, but for its key.
    NoKeyUpdate,
    /// It is about to be deleted, or to get another key.
    Update,
}

impl LockMode {
    /// All, the weakest first.
    pub const ALL: [LockMode; 4] =
        [LockMode::KeyShare, LockMode::Share, LockMode::NoKeyUpdate, LockMode::Update];

    /// May two transactions not hold these at a time?
    pub const fn conflicts_with(self, other: LockMode) -> bool {
        self as u8 + other as u8 >= 3
    }
}

/// How a lock request ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Locked {
    /// The request had to wait, or the newest version may be newer than the reader's timestamp: the reader must move
    /// its timestamp up (R5, last sentence).
    pub waited: bool,
}

/// Why a shard did not answer a request. Each kind says what the caller does.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Read again at this timestamp or above, after validating what was read before (R5).
    #[error("uncertain: a version or prepare at {0}")]
    Uncertain(Timestamp),
    /// What was read has changed: start a new attempt. Certain: nothing of this attempt committed (R22).
    #[error("{0}")]
    Conflict(String),
    /// A cycle of waiting transactions; this one was chosen to give way.
    #[error("deadlock detected")]
    Deadlock,
    /// A lock was not granted in time.
    #[error("lock not granted within {0:?}")]
    LockTimeout(Duration),
    /// Below the garbage collection threshold.
    #[error("timestamp {ts} is below the garbage collection threshold {threshold}")]
    BelowThreshold {
        /// The timestamp that was asked for.
        ts: Timestamp,
        /// The lowest that can be read.
        threshold: Timestamp,
    },
    /// Not here, or not yet: route again and retry. Nothing was done.
    #[error("not served here: {0}")]
    NotServed(String),
    /// This node has a replica of the shard and does not lead it. Nothing was done; ask the leader.
    #[error("shard {shard} is not led by this node{}", led_by(*leader))]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// Who leads it, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The request was logged, or may have been, but no answer can be had: whether it takes effect is not known.
    #[error("outcome unknown: {0}")]
    Ambiguous(String),
    /// The request is wrong (too large, spans two shards, ...): do not repeat it.
    #[error("{0}")]
    Invalid(String),
    /// The node's storage has stopped; nothing more will be acknowledged until it is restarted.
    #[error("storage stopped: {0}")]
    Stopped(String),
}

fn led_by(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |n| format!(" but by node {n}"))
}

/// The way to the leaseholders, by key. Calls may be repeated: every one of them is idempotent.
pub trait ShardClient: Send + Sync {
    /// R4, R5: the version of a key at a timestamp. Waits for prepares at or below it.
    fn get<'a>(&'a self, who: ReadAs, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Seen>, Error>>;

    /// R4, R5: rows of a range within one or more shards; stops at `rows_max` rows, about `bytes_max` bytes, or the
    /// end of a shard.
    fn scan<'a>(
        &'a self,
        who: ReadAs,
        range: &'a KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> BoxFuture<'a, Result<Page, Error>>;

    /// Takes the lock of a key in the leaseholder's memory, waiting in a fair queue. `read_ts` is the timestamp at which
    /// the caller knows the row. With a `wait_max` of zero nobody is waited for: neither holders of the lock, nor who has
    /// prepared a write of the key; the answer is `LockTimeout(0)` then.
    fn lock<'a>(
        &'a self,
        txn: TxnId,
        key: &'a [u8],
        mode: LockMode,
        read_ts: Timestamp,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Locked, Error>>;

    /// Gives back locks, by key. Never fails: locks are memory.
    fn unlock(&self, txn: TxnId, keys: &[Key]);

    /// R10: are these spans unchanged up to `ts`? Raises the cache. `Err(Conflict)`: they changed.
    fn validate<'a>(
        &'a self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// R11, R12.
    fn prepare<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>>;

    /// R13. Answers `Committed`, `Refused`, `Pushed` or `PastDeadline`.
    fn commit1<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>>;

    /// R16, at the anchor.
    fn decide<'a>(&'a self, anchor: PieceId, decision: Decision)
    -> BoxFuture<'a, Result<AnchorReply, Error>>;

    /// R18.1: what does the anchor know? Logs nothing.
    fn ask<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<AnchorReply, Error>>;

    /// R17. `Ok` means applied: this piece can never be prepared again.
    fn resolve<'a>(&'a self, piece: PieceId, decision: Decision) -> BoxFuture<'a, Result<(), Error>>;

    /// R18.2: one logged step; blocks the piece when it is absent, never touches a prepare.
    fn probe<'a>(&'a self, piece: PieceId) -> BoxFuture<'a, Result<Record, Error>>;

    /// R21: all pieces acknowledged; the anchor's tombstone may go when the floor passes.
    fn acked<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<(), Error>>;

    /// The shards of a key range, in key order: the ranges to cut pieces by.
    fn route(&self, range: &KeyRange) -> Vec<KeyRange>;

    /// The range of the shard that a key lives on.
    fn route_key(&self, key: &[u8]) -> KeyRange;
}

/// What a shard's own scan, or a reader that waited too long, asks of the transaction layer (R18): recover this
/// transaction. One flight per transaction and node; calling it again is harmless.
pub trait Recover: Send + Sync {
    /// Starts recovery in the background.
    fn recover(&self, suspect: Suspect);
}

/// A prepare that stands in the way: what a recoverer needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspect {
    /// The transaction attempt.
    pub txn: TxnId,
    /// All pieces.
    pub pieces: Vec<PieceRef>,
    /// The anchor among them.
    pub anchor: PieceNo,
    /// Candidate commit timestamp.
    pub candidate: Timestamp,
    /// See [`Mode`].
    pub mode: Mode,
    /// The deadline of all pieces.
    pub deadline: Timestamp,
}
