//! A transaction at the gateway: reads at a snapshot, buffered writes, and what has to be validated at COMMIT.
//!
//!     get, scan ──▶ shards at T ──▶ overlay of own writes (R7) ──▶ caller
//!        │            │ Uncertain, or a lock that waited
//!        ▼            ▼
//!     read set ◀── T moves up: what was read is validated up to the new T (R5)
//!
//! | level | snapshot | `seen` of a write | V at COMMIT |
//! |---|---|---|---|
//! | READ COMMITTED | each statement | the newest read of the row, or the one under its lock | locked rows |
//! | REPEATABLE READ | one | the snapshot, where the row was read | locked rows |
//! | SERIALIZABLE | one | the same | everything read |
//!
//! Invariants
//!   X1  A read is in the read set before its request leaves; abandoned, it stays there (R7).
//!   X2  Above READ COMMITTED everything in the read set is unchanged up to `read_ts`.
//!   X3  A key is in `locks` before its lock is asked for, and every key in `locks` is unlocked once: by the commit,
//!       or when the transaction is dropped.
//!   X4  After an error that breaks X2 or leaves the transaction half read, COMMIT answers that error.
//!   X5  A transaction at a given timestamp ([`Snapshot::At`], [`Snapshot::Settled`]) reads at that timestamp only, has no
//!       window, and neither writes nor locks: so nothing can move or abort it (R8).
//!   X6  An external transaction reads at or above its clock's `latest`, without a window, and nothing that was committed
//!       at or above its clock's `earliest` is in an answer (R24): the wait is here, below everything that could send it.
//!
//! SKIP LOCKED looks for rows without recording what it read (`peek`, `peek_scan`): gaps and rows that were skipped are not
//! in V, at no level; a row that is returned is, by its lock. With a wait of zero a row that is gone when its lock is
//! granted is given back and forgotten as well.
//!
//! Every locked row is in V, whatever the mode. KEY SHARE lets others change the row (but for its key): who changes it and
//! who holds it do not wait for each other, and if the change is committed first, the holder's COMMIT is a conflict.
//!
//! At READ COMMITTED a row read under its lock is read at a timestamp of its own, while the statement's snapshot stays:
//! as in PostgreSQL, an UPDATE sees the newest version of the rows it waited for, and no new rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Key, KeyRange, Timestamp, TxnId, Value, bank};
use isochrone_shard::api::{self, BoxFuture, LockMode, ReadAs, Seen};

use crate::buffer::{WriteBuffer, covered};
use crate::coordinator::{Coordinator, not_committed};
use crate::kv::{Error, Isolation, KvTxn, Lock, Page, Savepoint, ScanOptions, Snapshot, TxnOptions};
use crate::readset::ReadSet;

/// About how many bytes of rows one page of a scan carries.
const SCAN_BYTES_MAX: usize = 1 << 20;
/// Rows one transaction may lock; the next lock answers [`Error::TooLarge`].
pub const LOCKS_MAX: usize = 4 << 20;
/// How often one read may move its timestamp before the transaction gives up with [`Error::Serialization`].
const MOVES_MAX: u32 = 100;

/// See the module.
pub(crate) struct Txn {
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) id: TxnId,
    pub(crate) options: TxnOptions,
    pub(crate) read_ts: Timestamp,
    uncertain_to: Timestamp,
    /// Where the running statement of READ COMMITTED began; its reads are those known at or above this.
    statement_ts: Timestamp,
    pub(crate) buffer: WriteBuffer,
    pub(crate) reads: ReadSet,
    /// Asked for (X3), and the strongest mode granted.
    pub(crate) locks: BTreeMap<Key, Option<LockMode>>,
    failed: Option<Error>,
    /// The first read waits until the clock shows this ([`Snapshot::Settled`]).
    not_before: Option<Timestamp>,
}

/// R24: a snapshot above everything that was acknowledged to external transactions; it needs no window.
fn external_now(coordinator: &Coordinator, now: Timestamp) -> (Timestamp, Timestamp) {
    let ts = now.max(coordinator.clock.latest());
    (ts, ts)
}

impl Txn {
    pub(crate) fn new(coordinator: Arc<Coordinator>, options: TxnOptions) -> Txn {
        // R25: the clock was told of every commit this node acknowledged, so now is above them.
        let now = coordinator.clock.now();
        let (mut not_before, mut failed) = (None, None);
        let (read_ts, uncertain_to) = match options.snapshot {
            Snapshot::Now if options.external.is_some() => external_now(&coordinator, now),
            Snapshot::Now => (now, coordinator.uncertain_to(now)),
            Snapshot::At(ts) => {
                // Of another node's clock, maybe: then it is past soon.
                not_before = (ts > now).then_some(ts);
                if ts > coordinator.uncertain_to(now) {
                    failed = Some(Error::Internal(format!("a snapshot at {ts}, which is in the future")));
                }
                (ts, ts)
            }
            Snapshot::Settled => {
                let settled = coordinator.uncertain_to(now);
                not_before = (settled > now).then_some(settled);
                (settled, settled)
            }
        };
        let mut options = TxnOptions { read_only: options.refuses_writes(), ..options };
        if matches!(options.snapshot, Snapshot::At(_)) {
            options.external = None;
        }
        Txn {
            id: coordinator.new_txn_id(),
            uncertain_to,
            coordinator,
            options,
            read_ts,
            statement_ts: read_ts,
            buffer: WriteBuffer::default(),
            reads: ReadSet::default(),
            locks: BTreeMap::new(),
            failed,
            not_before,
        }
    }

    /// A new snapshot for a statement, and the end of its uncertainty window.
    fn now(&self) -> (Timestamp, Timestamp) {
        let now = self.coordinator.clock.now();
        match self.options.external {
            Some(_) => external_now(&self.coordinator, now),
            None => (now, self.coordinator.uncertain_to(now)),
        }
    }

    /// R24: an answer of an external transaction leaves only when everything in it lies certainly in the past: who begins
    /// after the answer was heard reads above it.
    async fn seen(&self, newest: Timestamp) {
        if let Some(waits) = &self.options.external
            && !bank::has("external-readers-do-not-wait")
        {
            waits.add_read(self.coordinator.wait_past(newest).await);
        }
    }

    fn above_read_committed(&self) -> bool {
        self.options.isolation != Isolation::ReadCommitted
    }

    /// A read-only transaction writes and locks nothing, and without a window its timestamp never moves (R8): nobody
    /// will ask what it has read.
    fn tracks_reads(&self) -> bool {
        !self.options.read_only || self.uncertain_to > self.read_ts
    }

    fn who(&self, ts: Timestamp, uncertain_to: Timestamp) -> ReadAs {
        ReadAs { txn: self.id, ts, uncertain_to: uncertain_to.max(ts) }
    }

    /// An operation begins: a read that was abandoned before it goes into V (R7). At READ COMMITTED V holds locked
    /// rows only, and an unanswered read tells the writer nothing.
    fn fold_abandoned(&mut self) {
        if self.above_read_committed() {
            self.reads.keep_abandoned(self.read_ts);
        } else {
            self.reads.forget_pending();
        }
    }

    async fn start(&mut self) -> Result<(), Error> {
        self.fold_abandoned();
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if let Some(ts) = self.not_before {
            self.coordinator.wait_physical(ts).await;
            self.not_before = None;
        }
        Ok(())
    }

    /// X4.
    fn fail(&mut self, error: Error) -> Error {
        let harmless = matches!(error, Error::ReadOnly | Error::TooLarge(_) | Error::LockTimeout(_));
        if !harmless && self.failed.is_none() {
            self.failed = Some(error.clone());
        }
        error
    }

    /// R5: T moves up to `to`; what was read before is validated up to it. The read under way is not part of that:
    /// nobody has seen its answer.
    async fn move_up(&mut self, to: Timestamp) -> Result<(), Error> {
        if to <= self.read_ts {
            return Ok(());
        }
        self.coordinator.metrics.moved_up.increment(1);
        self.coordinator.clock.update(to);
        let from = if self.above_read_committed() { Timestamp::MIN } else { self.statement_ts };
        let mut spans = self.reads.stale(from, to);
        spans.retain(|_| !bank::has("moved-up-without-validation"));
        if let Err(e) = self.coordinator.validate(self.id, spans, to).await {
            self.coordinator.metrics.moved_up_failed.increment(1);
            return Err(not_committed(e));
        }
        if self.above_read_committed() {
            self.reads.validated(to);
        } else {
            self.reads.validated_from(self.statement_ts, to);
        }
        self.read_ts = to;
        Ok(())
    }

    async fn get_at(
        &mut self,
        key: &[u8],
        mode: Option<LockMode>,
        wait_max: Duration,
    ) -> Result<Option<Value>, Error> {
        if mode.is_some() && self.options.read_only {
            return Err(Error::ReadOnly);
        }
        if let Some(own) = self.buffer.get(key) {
            let own = own.clone();
            // A row of its own (an INSERT) nobody else can lock; one that was changed is locked, perhaps not so strongly.
            if let Some(mode) = mode
                && self.locks.contains_key(key)
            {
                self.lock(key, mode, wait_max).await?;
            }
            return Ok(own);
        }
        let tracked = self.tracks_reads();
        if tracked {
            self.reads.begin(KeyRange::point(key)); // X1
        }
        let held = self.locks.get(key).copied().flatten();
        let (seen, at) = match mode {
            None => self.read_at_snapshot(key).await?,
            Some(mode) => {
                self.lock(key, mode, wait_max).await?;
                match self.above_read_committed() {
                    true => self.read_at_snapshot(key).await?,
                    false => self.read_newest(key).await?,
                }
            }
        };
        if seen.is_none() && mode.is_some() && held.is_none() && wait_max.is_zero() {
            self.reads.forget_pending();
            self.locks.remove(key);
            self.coordinator.client.unlock(self.id, &[key.to_vec()]);
            return Ok(None);
        }
        if tracked {
            self.reads.point(key.to_vec(), at, mode.is_some());
            // Under KEY SHARE others may have changed the row, which is there still.
            if held == Some(LockMode::KeyShare) && mode > held && seen.is_some() {
                self.reads.relocked(key, at);
            }
        }
        // When an absent row was deleted is not told.
        self.seen(seen.as_ref().map_or(at, |s| s.ts)).await;
        Ok(seen.map(|s| s.value))
    }

    async fn read_at_snapshot(&mut self, key: &[u8]) -> Result<(Option<Seen>, Timestamp), Error> {
        for _ in 0..MOVES_MAX {
            let who = self.who(self.read_ts, self.uncertain_to);
            let client = &self.coordinator.client;
            match client.get(who, key).await {
                Ok(seen) => return Ok((seen, self.read_ts)),
                Err(api::Error::Uncertain(ts)) => self.move_up(ts.max(self.read_ts.next())).await?,
                Err(api::Error::NotServed(_) | api::Error::NotLeader { .. } | api::Error::Ambiguous(_)) => {
                    match self.coordinator.attempts(|| client.get(who, key), || false).await {
                        Ok(seen) => return Ok((seen, self.read_ts)),
                        Err(api::Error::Uncertain(ts)) => self.move_up(ts.max(self.read_ts.next())).await?,
                        Err(e) => return Err(not_committed(e)),
                    }
                }
                Err(e) => return Err(not_committed(e)),
            }
        }
        Err(Error::Serialization("the row changed again and again while it was read".to_string()))
    }

    /// READ COMMITTED under a lock: the newest version, at a timestamp of its own.
    async fn read_newest(&mut self, key: &[u8]) -> Result<(Option<Seen>, Timestamp), Error> {
        let (mut ts, uncertain_to) = self.now();
        for _ in 0..MOVES_MAX {
            let who = self.who(ts, uncertain_to);
            match self.coordinator.attempts(|| self.coordinator.client.get(who, key), || false).await {
                Ok(seen) => return Ok((seen, ts)),
                Err(api::Error::Uncertain(at)) => {
                    ts = at.max(ts.next());
                    self.coordinator.clock.update(ts);
                }
                Err(e) => return Err(not_committed(e)),
            }
        }
        Err(Error::Serialization("the row changed again and again while it was read".to_string()))
    }

    async fn lock(&mut self, key: &[u8], mode: LockMode, wait_max: Duration) -> Result<(), Error> {
        let granted = self.locks.get(key).copied().flatten();
        if granted.is_some_and(|m| m >= mode) {
            return Ok(());
        }
        if self.locks.len() >= LOCKS_MAX {
            self.reads.forget_pending();
            return Err(Error::TooLarge(format!("transaction locks more than {LOCKS_MAX} rows")));
        }
        self.locks.insert(key.to_vec(), granted); // X3
        let (id, ts) = (self.id, self.read_ts);
        let client = &self.coordinator.client;
        let ask = || client.lock(id, key, mode, ts, wait_max);
        let locked = match self.coordinator.attempts(ask, || false).await {
            Ok(locked) => locked,
            Err(e) => {
                if matches!(e, api::Error::LockTimeout(_)) {
                    // Nothing happened: the row was not read. It stays in `locks`, in case a copy of the request is
                    // granted later.
                    self.reads.forget_pending();
                }
                return Err(not_committed(e));
            }
        };
        self.locks.insert(key.to_vec(), Some(mode));
        if locked.waited && self.above_read_committed() {
            let (now, _) = self.now();
            self.move_up(now).await?;
        }
        Ok(())
    }

    async fn peek_at(&mut self, key: &[u8]) -> Result<Option<Value>, Error> {
        if let Some(own) = self.buffer.get(key) {
            return Ok(own.clone());
        }
        Ok(self.read_at_snapshot(key).await?.0.map(|s| s.value))
    }

    async fn scan_at(
        &mut self,
        range: &KeyRange,
        options: ScanOptions,
        validated: bool,
    ) -> Result<Page, Error> {
        let rows_max = options.rows_max.max(1);
        let mut range = range.clone();
        if range.is_empty() {
            return Ok(Page::default());
        }
        loop {
            let tracked = validated && self.tracks_reads();
            if tracked {
                self.reads.begin(range.clone()); // X1
            }
            let page = self.scan_page(&range, options.reverse, rows_max).await?;
            self.seen(page.newest).await;
            let page = self.buffer.overlay(&range, Page { rows: page.rows, rest: page.rest }, options);
            if tracked {
                // Rows that were looked at but are left for the next page are not read yet.
                let covered = covered(&range, page.rest.as_ref(), options.reverse);
                if !self.above_read_committed() {
                    for (key, _) in self.buffer.range(&covered) {
                        self.reads.keep_as_known(key);
                    }
                }
                self.reads.span(covered, self.read_ts);
            }
            match page.rest {
                Some(rest) if page.rows.is_empty() => range = rest,
                _ => return Ok(page),
            }
        }
    }

    async fn scan_page(
        &mut self,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
    ) -> Result<api::Page, Error> {
        for _ in 0..MOVES_MAX {
            let who = self.who(self.read_ts, self.uncertain_to);
            let client = &self.coordinator.client;
            let page = self
                .coordinator
                .attempts(|| client.scan(who, range, reverse, rows_max, SCAN_BYTES_MAX), || false)
                .await;
            match page {
                Ok(page) => return Ok(page),
                Err(api::Error::Uncertain(ts)) => self.move_up(ts.max(self.read_ts.next())).await?,
                Err(e) => return Err(not_committed(e)),
            }
        }
        Err(Error::Serialization("rows changed again and again while they were read".to_string()))
    }

    /// The error that ended this transaction before COMMIT, if one did.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failed.clone()
    }

    /// X3: gives back what is still locked.
    fn unlock_all(&mut self) {
        if !self.locks.is_empty() {
            let keys: Vec<Key> = std::mem::take(&mut self.locks).into_keys().collect();
            self.coordinator.client.unlock(self.id, &keys);
        }
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        self.unlock_all();
    }
}

impl KvTxn for Txn {
    fn id(&self) -> TxnId {
        self.id
    }

    fn read_ts(&self) -> Timestamp {
        self.read_ts
    }

    fn begin_statement(&mut self) {
        self.fold_abandoned();
        if !self.above_read_committed() && self.options.snapshot == Snapshot::Now {
            (self.read_ts, self.uncertain_to) = self.now();
            self.statement_ts = self.read_ts;
        }
    }

    fn uncertain_to(&self) -> Timestamp {
        self.uncertain_to.max(self.read_ts)
    }

    fn cap_uncertainty(&mut self, to: Timestamp) {
        self.uncertain_to = self.uncertain_to.min(to).max(self.read_ts);
    }

    fn set_max_ts(&mut self, max_ts: Timestamp) {
        self.options.max_ts = max_ts;
    }

    fn get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(async move {
            self.start().await?;
            let wait_max = self.options.lock_wait_max;
            self.get_at(key, lock.mode(), wait_max).await.map_err(|e| self.fail(e))
        })
    }

    fn try_get<'a>(&'a mut self, key: &'a [u8], lock: Lock) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(async move {
            self.start().await?;
            self.get_at(key, lock.mode(), Duration::ZERO).await.map_err(|e| self.fail(e))
        })
    }

    fn peek<'a>(&'a mut self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        Box::pin(async move {
            self.start().await?;
            self.peek_at(key).await.map_err(|e| self.fail(e))
        })
    }

    fn scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            self.start().await?;
            self.scan_at(range, options, true).await.map_err(|e| self.fail(e))
        })
    }

    fn peek_scan<'a>(
        &'a mut self,
        range: &'a KeyRange,
        options: ScanOptions,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            self.start().await?;
            self.scan_at(range, options, false).await.map_err(|e| self.fail(e))
        })
    }

    fn set_lock_wait_max(&mut self, wait_max: Duration) {
        self.options.lock_wait_max = wait_max;
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
        self.fold_abandoned();
        self.buffer.rollback_to(savepoint);
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<Timestamp, Error>> {
        self.fold_abandoned();
        if let Some(error) = self.failure() {
            return Box::pin(std::future::ready(Err(error)));
        }
        if self.reads.joins() > 0 {
            self.coordinator.metrics.widened.increment(self.reads.joins());
        }
        if self.buffer.is_empty() && !self.locks.values().any(Option::is_some) {
            return Box::pin(std::future::ready(Ok(self.read_ts))); // R8
        }
        crate::commit::commit(self)
    }

    fn rollback(self: Box<Self>) {}
}
