//! A session's transaction: begun at its first statement, retried, committed, rolled back, marked by savepoints.
//!
//! At COMMIT it gets the highest timestamp it may commit at: the end of the schema lease as it is then, if the lease
//! was never lost since the transaction's first plan was made, and for DDL the end of what other gateways keep for it.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isochrone_base::keyspace::{index_prefix, table_range};
use isochrone_base::{KeyRange, Timestamp};
use isochrone_txn::kv::{self, BoxFuture, ClockWaits, Isolation, KvTxn, Savepoint, Snapshot, TxnOptions};
use isochrone_types::{Error, SqlState};

use super::engine::Planned;
use super::{AsOf, Database, Session, kv_error, survives_savepoint};
use crate::catalog::gateways::{self, FREEZE_FOR};
use crate::catalog::locks::{Owner, TABLE_LOCK_WAIT_MAX};
use crate::ddl::{Action, DdlMark, DdlState};
use crate::face::TxnStatus;
use crate::session::utility::Modes;
use crate::settings::{Freshness, Mark, isolation_name};

/// How often a statement is run again after a conflict, before the client hears of it: with the waits below about
/// two seconds. With 12, 14 of about 420 updates of the same eleven rows by six clients failed.
pub const RETRIES_MAX: u32 = 40;
/// The first wait before a retry; doubled each time up to [`BACKOFF_MAX`], and cut by a random factor.
const BACKOFF_MIN: Duration = Duration::from_micros(500);
/// The longest wait before a retry.
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Savepoints of one transaction; one more is refused with 54000.
const SAVEPOINTS_MAX: usize = 10_000;

/// Locks of a transaction whose outcome is unknown are kept no longer than this; above the time that a prepare may be
/// under way. Matters in a cluster of one, where nothing else bounds its commit timestamp.
const UNKNOWN_HOLD_MAX: Duration = Duration::from_secs(20);

/// What a block asks for beside its level and whether it is read-only.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct BlockModes {
    deferrable: bool,
    /// AS OF SYSTEM TIME, as it was written, and what it meant when it was said.
    as_of: Option<(AsOf, Timestamp)>,
}

struct Save {
    name: String,
    kv: Savepoint,
    ddl: DdlMark,
    settings: Mark,
    /// Advisory locks.
    claims: usize,
}

/// What a transaction holds.
pub(super) struct Txn {
    pub kv: Box<dyn KvTxn>,
    pub isolation: Isolation,
    pub read_only: bool,
    pub owner: Owner,
    /// How often the schema lease had been lost when the transaction's first plan was made.
    pub losses: u64,
    /// Tables it holds locks on.
    pub locked: BTreeSet<u32>,
    pub ddl: DdlState,
    /// R24: how long it waited for the clock.
    pub waits: Option<ClockWaits>,
    /// It reads at a given timestamp, and the schema must be the one of then.
    pub fixed: bool,
    /// An implicit transaction of one statement, which asked for what it reads; with its AS OF SYSTEM TIME, if it had one.
    own: Option<Option<AsOf>>,
    saves: Vec<Save>,
    /// Statements that ran to their end.
    pub statements: u32,
    /// The store has given up on it.
    dead: bool,
}

impl Session {
    pub(super) fn isolation(&self) -> Isolation {
        match self.status {
            TxnStatus::Idle => self.settings.default_isolation(),
            _ => self.modes.0,
        }
    }

    /// Is the transaction, or the next one, read-only?
    pub(super) fn read_only(&self) -> bool {
        match self.status {
            TxnStatus::Idle => self.settings.default_read_only(),
            _ => self.modes.1,
        }
    }

    fn set_block_modes(&mut self, isolation: Isolation, read_only: bool) {
        self.modes = (isolation, read_only);
        self.shared.set_isolation(isolation_name(isolation));
    }

    /// The transaction, begun if there is none.
    pub(super) fn transaction(&mut self) -> &mut Txn {
        if self.txn.is_none() {
            let isolation = self.isolation();
            let snapshot = self.snapshot_to_read(isolation);
            let fixed = matches!(snapshot, Snapshot::At(_));
            let read_only = self.read_only() || fixed;
            let waits = (!fixed && self.settings.externally_consistent()).then(ClockWaits::default);
            let losses = self.next_losses.take().unwrap_or_else(|| self.db.catalog().losses());
            let max_ts = self.db.store().schema_lease();
            let mut options = TxnOptions {
                isolation,
                read_only,
                max_ts,
                snapshot,
                external: waits.clone(),
                ..TxnOptions::default()
            };
            if let Some(wait) = self.settings.lock_timeout() {
                options.lock_wait_max = wait;
            }
            if self.status == TxnStatus::Idle {
                self.settings.set_transaction_time(self.db.now());
            }
            self.txn = Some(Txn {
                kv: self.db.store().begin(options),
                isolation,
                read_only,
                owner: self.next_owner.take().unwrap_or_else(|| self.db.next_owner()),
                losses,
                locked: std::mem::take(&mut self.early_locks),
                ddl: DdlState { isolation, ..DdlState::default() },
                waits,
                fixed,
                own: self.next_own.take(),
                saves: Vec::new(),
                statements: 0,
                dead: false,
            });
        }
        self.txn.as_mut().expect("it was just begun")
    }

    /// What the transaction that begins now reads.
    fn snapshot_to_read(&mut self, isolation: Isolation) -> Snapshot {
        if let Some(chosen) = self.next_snapshot.take() {
            return chosen;
        }
        if let Some((_, ts)) = self.block.as_of {
            return Snapshot::At(ts);
        }
        let deferrable = match self.status {
            TxnStatus::Idle => self.settings.default_deferrable(),
            _ => self.block.deferrable,
        };
        match deferrable && self.read_only() && isolation == Isolation::Serializable {
            true => Snapshot::Settled,
            false => Snapshot::Now,
        }
    }

    /// Before a statement's transaction begins, or goes on: what AS OF SYSTEM TIME and `read_freshness` mean for it.
    pub(super) fn choose_snapshot(&mut self, planned: &Planned) -> Result<(), Error> {
        let in_block = self.status != TxnStatus::Idle;
        if let Some(as_of) = planned.as_of {
            let now = self.db.store().now();
            let (exact, ts) = match as_of {
                AsOf::Exact(moment) => (true, moment.resolve(now)?),
                AsOf::Since(moment) => (false, moment.resolve(now)?),
            };
            let same = match (&self.txn, in_block) {
                (_, true) => self.block.as_of.is_some_and(|(b, at)| b == as_of || (exact && at == ts)),
                (Some(txn), false) => txn.own == Some(Some(as_of)),
                (None, false) => {
                    self.next_own = Some(Some(as_of));
                    let chosen = match exact {
                        true => ts,
                        false => self.newest_here(planned, ts).unwrap_or(ts),
                    };
                    self.next_snapshot = Some(Snapshot::At(chosen));
                    true
                }
            };
            if !same {
                return Err(Error::unsupported(
                    "AS OF SYSTEM TIME in a transaction that reads at another time",
                )
                .with_hint("Use BEGIN AS OF SYSTEM TIME, or SET TRANSACTION AS OF SYSTEM TIME."));
            }
        }
        if let Some(txn) = &self.txn {
            if !in_block && txn.own.is_some() && planned.as_of.is_none() {
                return Err(Error::unsupported(
                    "a statement in the implicit transaction of one that reads AS OF SYSTEM TIME",
                ));
            }
            return Ok(());
        }
        if self.next_snapshot.is_some() {
            return Ok(());
        }
        if let Some((as_of, ts)) = self.block.as_of {
            if let AsOf::Since(_) = as_of
                && let Some(newest) = self.newest_here(planned, ts)
            {
                self.next_snapshot = Some(Snapshot::At(newest));
            }
            return Ok(());
        }
        let freshness = self.settings.read_freshness();
        let may = planned.is_read_only() && !planned.tables().is_empty() && (!in_block || self.read_only());
        if freshness == Freshness::Strong || !may || (in_block && self.block.deferrable) {
            return Ok(());
        }
        let since = match freshness {
            Freshness::Bounded(by) => self.db.store().now().minus_micros(by.as_micros() as u64),
            Freshness::Strong | Freshness::Any => Timestamp::MIN,
        };
        // What this session wrote, or has read in this way before, stays seen. A strong read is as far away as an old one.
        if let Some(newest) = self.newest_here(planned, since.max(self.seen)) {
            self.seen = newest;
            self.next_snapshot = Some(Snapshot::At(newest));
            if !in_block {
                self.next_own = Some(None);
            }
        }
        Ok(())
    }

    /// The newest timestamp at which this node can read the statement's tables by itself, if that is not below `since`.
    fn newest_here(&self, planned: &Planned, since: Timestamp) -> Option<Timestamp> {
        let snapshot = self.snapshot();
        let entries = planned.tables().iter().map(|oid| snapshot.table_by_oid(*oid));
        let ranges: Option<Vec<KeyRange>> =
            entries.map(|entry| entry.map(|e| table_range(e.table.table_id))).collect();
        let store = self.db.store();
        store.readable_here(&ranges?).map(|ts| ts.min(store.now())).filter(|ts| *ts >= since)
    }

    /// Is the running transaction over with the statement that began it?
    pub(super) fn ends_with_its_statement(&self) -> bool {
        self.status == TxnStatus::Idle && self.txn.as_ref().is_some_and(|t| t.own.is_some())
    }

    /// The owner of the locks of the transaction that runs, or of the one that begins next.
    pub(super) fn owner(&mut self) -> Owner {
        match &self.txn {
            Some(txn) => txn.owner,
            None => *self.next_owner.get_or_insert_with(|| self.db.next_owner()),
        }
    }

    /// Does the transaction hold a lock on this table?
    pub(super) fn holds(&self, oid: u32) -> bool {
        match &self.txn {
            Some(txn) => txn.locked.contains(&oid),
            None => self.early_locks.contains(&oid),
        }
    }

    /// Locks that were got, for the transaction that runs or begins next.
    pub(super) fn keep_locks(&mut self, oid: u32) {
        match &mut self.txn {
            Some(txn) => txn.locked.insert(oid),
            None => self.early_locks.insert(oid),
        };
    }

    /// X1: the running transaction, or the next one, uses plans made when the lease had been lost so often.
    pub(super) fn same_lease(&mut self, losses: u64) -> Result<(), Error> {
        match &self.txn {
            Some(txn) if txn.losses != losses => Err(Error::new(
                SqlState::SERIALIZATION_FAILURE,
                "could not serialize access: the node lost contact with the cluster during the transaction",
            )),
            Some(_) => Ok(()),
            None => {
                self.next_losses = Some(losses);
                Ok(())
            }
        }
    }

    /// The session waits for its client from now on; resolves with the reason when it has waited for too long:
    /// `idle_in_transaction_session_timeout`, or `idle_session_timeout` outside of a transaction.
    pub fn idle_end(&self) -> Option<isochrone_txn::kv::BoxFuture<'static, Error>> {
        let (limit, state, text) = match self.status {
            TxnStatus::Idle => (
                self.settings.idle_session_timeout()?,
                SqlState::IDLE_SESSION_TIMEOUT,
                "terminating connection due to idle-session timeout",
            ),
            TxnStatus::InBlock | TxnStatus::Failed => (
                self.settings.idle_in_transaction_timeout()?,
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            ),
        };
        let sleep = self.db.timer().sleep(limit);
        Some(Box::pin(async move {
            sleep.await;
            Error::new(state, text)
        }))
    }

    /// The longest wait for a table's lock.
    pub(super) fn table_lock_wait(&self) -> Duration {
        self.settings.lock_timeout().unwrap_or(TABLE_LOCK_WAIT_MAX)
    }

    /// BEGIN.
    pub(super) fn begin_block(&mut self, modes: Modes) -> Result<(), Error> {
        if self.status != TxnStatus::Idle {
            self.warn(SqlState::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress");
            return self.set_modes(modes);
        }
        if self.txn.is_none() {
            self.settings.set_transaction_time(self.db.now());
        }
        let (isolation, read_only) = (self.settings.default_isolation(), self.settings.default_read_only());
        self.status = TxnStatus::InBlock;
        self.block = BlockModes { deferrable: self.settings.default_deferrable(), as_of: None };
        // Within a script, the implicit transaction becomes the block's.
        let running = self.txn.as_ref().map(|t| (t.isolation, t.read_only));
        let (isolation, read_only) = running.unwrap_or((isolation, read_only));
        self.set_block_modes(isolation, read_only);
        self.set_modes(modes)
    }

    /// SET TRANSACTION: before the first query of the block.
    pub(super) fn set_modes(&mut self, modes: Modes) -> Result<(), Error> {
        if modes == Modes::default() {
            return Ok(());
        }
        let began = self.txn.is_some();
        if let Some(isolation) = modes.isolation {
            if began && isolation != self.isolation() {
                return Err(Error::new(
                    SqlState::ACTIVE_SQL_TRANSACTION,
                    "SET TRANSACTION ISOLATION LEVEL must be called before any query",
                ));
            }
            self.set_block_modes(isolation, self.modes.1);
        }
        if let Some(deferrable) = modes.deferrable {
            if began && deferrable != self.block.deferrable {
                return Err(Error::new(
                    SqlState::ACTIVE_SQL_TRANSACTION,
                    "SET TRANSACTION [NOT] DEFERRABLE must be called before any query",
                ));
            }
            self.block.deferrable = deferrable;
        }
        if let Some(as_of) = modes.as_of {
            if began {
                return Err(Error::new(
                    SqlState::ACTIVE_SQL_TRANSACTION,
                    "AS OF SYSTEM TIME must be set before any query",
                ));
            }
            let (AsOf::Exact(moment) | AsOf::Since(moment)) = as_of;
            self.block.as_of = Some((as_of, moment.resolve(self.db.store().now())?));
            self.set_block_modes(self.modes.0, true);
        }
        if modes.read_only == Some(false) && self.block.as_of.is_some() {
            return Err(Error::syntax("AS OF SYSTEM TIME specified with READ WRITE mode"));
        }
        if let Some(read_only) = modes.read_only {
            if began && !read_only && self.read_only() {
                return Err(Error::new(
                    SqlState::ACTIVE_SQL_TRANSACTION,
                    "transaction read-write mode must be set before any query",
                ));
            }
            if let (true, Some(txn)) = (read_only, &mut self.txn) {
                txn.read_only = true;
            }
            self.set_block_modes(self.modes.0, read_only);
        }
        Ok(())
    }

    /// COMMIT, or the end of an implicit transaction. Gives the tag's first word: a failed block is rolled back.
    pub(super) async fn commit(&mut self) -> Result<&'static str, Error> {
        // A3.
        if let Err(e) = self.claims.check() {
            self.rollback();
            return Err(e);
        }
        let result = self.commit_transaction().await;
        self.claims.back_to(0);
        self.claims.settled().await;
        result
    }

    async fn commit_transaction(&mut self) -> Result<&'static str, Error> {
        if self.status == TxnStatus::Failed {
            self.rollback();
            return Ok("ROLLBACK");
        }
        self.status = TxnStatus::Idle;
        self.block = BlockModes::default();
        self.close_cursors_of_transaction();
        self.drop_early_locks();
        let Some(txn) = self.txn.take() else {
            self.settings.commit();
            self.settings_changed_if_needed();
            return Ok("COMMIT");
        };
        let mut txn = txn;
        let result = match crate::ddl::finish_pending(&mut *txn.kv, &mut txn.ddl) {
            Ok(()) => finish(self.db.clone(), txn).await,
            Err(e) => {
                txn.kv.rollback();
                self.db.locks().release(txn.owner, txn.locked);
                run_actions(&self.db, txn.ddl.on_rollback);
                Err(e)
            }
        };
        match &result {
            Ok(_) => self.settings.commit(),
            Err(_) => self.settings.rollback(),
        }
        if let Ok((_, Some(c))) = result {
            self.seen = self.seen.max(c);
        }
        if let Ok((Heard::Late, _)) = result {
            self.warn(SqlState::WARNING, "the change is committed, but not every node has heard of it yet");
        }
        self.settings_changed_if_needed();
        result.map(|_| "COMMIT")
    }

    /// SET LOCAL and what was rolled back may be over.
    fn settings_changed_if_needed(&mut self) {
        if self.shared.is_stale(&self.settings) {
            self.settings_changed();
        }
    }

    /// ROLLBACK, or after an error outside of a block.
    pub(super) fn rollback(&mut self) {
        self.abandon();
        self.status = TxnStatus::Idle;
        self.block = BlockModes::default();
        self.settings.rollback();
        self.settings_changed_if_needed();
    }

    /// Gives up the transaction, if there is one, and everything that hangs on it.
    pub(super) fn abandon(&mut self) {
        self.copy = None;
        self.cursors.retain(|_, c| c.outlives());
        self.claims.back_to(0);
        self.drop_early_locks();
        if let Some(txn) = self.txn.take() {
            txn.kv.rollback();
            self.db.locks().release(txn.owner, txn.locked);
            run_actions(&self.db, txn.ddl.on_rollback);
        }
    }

    /// X3: a statement failed with this error.
    pub(super) fn failed(&mut self, e: &Error) {
        self.copy = None;
        // A3: there is nothing to come back to.
        if self.claims.check().is_err() {
            return self.rollback();
        }
        match self.status {
            TxnStatus::Idle => self.rollback(),
            TxnStatus::InBlock | TxnStatus::Failed => {
                self.status = TxnStatus::Failed;
                match &mut self.txn {
                    Some(txn) if !txn.saves.is_empty() => txn.dead |= !survives_savepoint(e),
                    // Nothing to come back to: locks go now.
                    _ => self.abandon(),
                }
            }
        }
    }

    /// SAVEPOINT.
    pub(super) fn savepoint(&mut self, name: &str) -> Result<(), Error> {
        self.need_block("SAVEPOINT")?;
        let mark = self.settings.mark();
        let claims = self.claims.mark();
        let txn = self.transaction();
        if txn.saves.len() >= SAVEPOINTS_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many savepoints"));
        }
        let kv = txn.kv.savepoint();
        txn.saves.push(Save { name: name.to_string(), kv, ddl: txn.ddl.mark(), settings: mark, claims });
        Ok(())
    }

    fn find_savepoint(&mut self, name: &str) -> Result<usize, Error> {
        self.txn.as_ref().and_then(|t| t.saves.iter().rposition(|s| s.name == name)).ok_or_else(|| {
            Error::new(
                SqlState::INVALID_SAVEPOINT_SPECIFICATION,
                format!("savepoint \"{name}\" does not exist"),
            )
        })
    }

    /// RELEASE SAVEPOINT.
    pub(super) fn release(&mut self, name: &str) -> Result<(), Error> {
        self.need_block("RELEASE SAVEPOINT")?;
        let at = self.find_savepoint(name)?;
        self.transaction().saves.truncate(at);
        Ok(())
    }

    /// ROLLBACK TO SAVEPOINT.
    pub(super) fn rollback_to(&mut self, name: &str) -> Result<(), Error> {
        self.need_block("ROLLBACK TO SAVEPOINT")?;
        let at = self.find_savepoint(name)?;
        let txn = self.txn.as_mut().expect("it has savepoints");
        if txn.dead {
            return Err(Error::new(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was aborted by a conflict and cannot go back to a savepoint",
            )
            .with_hint("Roll back and run the transaction again."));
        }
        txn.saves.truncate(at + 1);
        let save = &txn.saves[at];
        txn.kv.rollback_to(save.kv);
        self.claims.back_to(save.claims);
        let (ddl, settings) = (save.ddl.clone(), save.settings.clone());
        txn.ddl.restore(ddl);
        self.settings.restore(&settings);
        self.settings_changed();
        self.status = TxnStatus::InBlock;
        Ok(())
    }

    fn need_block(&self, what: &str) -> Result<(), Error> {
        if self.status == TxnStatus::Idle {
            return Err(Error::new(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                format!("{what} can only be used in transaction blocks"),
            ));
        }
        Ok(())
    }

    /// X2: may a statement that ended with this error be run again?
    pub(super) fn may_retry(&self, e: &Error, attempt: u32, sent: bool, first: bool) -> bool {
        first
            && !sent
            && e.is_retryable()
            && attempt < RETRIES_MAX
            && self.status != TxnStatus::Failed
            && self.claims.may_retry()
    }

    fn drop_early_locks(&mut self) {
        self.next_losses = None;
        if let Some(owner) = self.next_owner.take() {
            self.db.locks().release(owner, std::mem::take(&mut self.early_locks));
        }
    }

    /// Throws the attempt away and waits a little.
    pub(super) async fn before_retry(&mut self, attempt: u32) {
        self.claims.undo_statement().await;
        self.drop_early_locks();
        if let Some(txn) = self.txn.take() {
            txn.kv.rollback();
            self.db.locks().release(txn.owner, txn.locked);
            run_actions(&self.db, txn.ddl.on_rollback);
        }
        let most = BACKOFF_MIN.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX).as_micros() as u64;
        let wait = self.db.env().random.next_u64() % (most + 1);
        if attempt > 0 {
            self.db.timer().sleep(Duration::from_micros(wait)).await;
        }
    }

    /// An error of a statement as the client should hear it: positions and all stay.
    pub(super) fn in_failed_block() -> Error {
        Error::new(
            SqlState::IN_FAILED_SQL_TRANSACTION,
            "current transaction is aborted, commands ignored until end of transaction block",
        )
    }
}

/// Things to do after the end of a transaction. Rows nobody can see are removed in the background: what a crash
/// leaves behind is garbage, not damage.
pub(super) fn run_actions(db: &Arc<Database>, actions: Vec<Action>) {
    if actions.is_empty() {
        return;
    }
    let db = db.clone();
    let work = async move {
        for action in actions {
            let range = match action {
                Action::ClearTable(id) => table_range(id),
                Action::ClearIndex(table, index) => KeyRange::prefix(&index_prefix(table, index)),
                Action::ForgetSequence(oid) => {
                    db.sequences().forget(oid);
                    continue;
                }
                Action::RestartSequence(_) => continue,
            };
            if let Err(e) = db.store().clear_range(range).await {
                tracing::warn!(error = %e, "rows of a dropped table or index were not removed");
            }
        }
    };
    match tokio::runtime::Handle::try_current() {
        Ok(handle) => drop(handle.spawn(work)),
        Err(_) => tracing::warn!("no runtime: rows of a dropped table or index were not removed"),
    }
}

/// Have all other gateways heard of what was committed?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    /// Yes, or there was nothing to tell.
    All,
    /// Not yet.
    Late,
}

/// A commit that goes on when its session is gone: locks must not be given back, nor the catalog be left stale, while
/// the outcome is open.
struct Finish(Option<BoxFuture<'static, Result<Finished, Error>>>);

/// Who has heard of it, and the commit timestamp of what was written.
type Finished = (Heard, Option<Timestamp>);

impl Future for Finish {
    type Output = Result<Finished, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(inner) = &mut self.0 else { return Poll::Pending };
        let ready = inner.as_mut().poll(cx);
        if ready.is_ready() {
            self.0 = None;
        }
        ready
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take()
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            drop(handle.spawn(rest));
        }
    }
}

/// The highest timestamp the transaction may commit at (X1, and G2 for DDL).
async fn bound(db: &Arc<Database>, losses: u64, ddl: &DdlState) -> Result<Timestamp, Error> {
    // First, because a freeze may have to be prolonged, while the lease is prolonged by itself.
    let held = match &ddl.hold {
        Some(hold) => hold.seal().await?,
        None if ddl.overlay.is_some() => after(db, FREEZE_FOR),
        None => Timestamp::MAX,
    };
    Ok(db.lease_of(losses).await?.min(held))
}

fn after(db: &Arc<Database>, by: Duration) -> Timestamp {
    db.store().now().plus_micros(by.as_micros() as u64)
}

fn finish(db: Arc<Database>, txn: Txn) -> Finish {
    Finish(Some(Box::pin(async move {
        let Txn { mut kv, owner, losses, locked, mut ddl, .. } = txn;
        let max_ts = match bound(&db, losses, &ddl).await {
            Ok(max_ts) => max_ts,
            Err(e) => {
                kv.rollback();
                db.locks().release(owner, locked);
                run_actions(&db, ddl.on_rollback);
                return Err(e);
            }
        };
        kv.set_max_ts(max_ts);
        let (id, writes) = (kv.id(), kv.buffered_bytes() > 0);
        let result = kv.commit().await;
        let overlay = ddl.overlay.take();
        let hold = ddl.hold.take();
        let mut heard = Heard::All;
        match &result {
            Ok(ts) => {
                if let Some(overlay) = &overlay {
                    publish(&db, overlay, &ddl, *ts);
                }
                for action in &ddl.on_commit {
                    if let Action::RestartSequence(oid) = action {
                        restart_sequence(&db, *oid).await;
                    }
                }
                if let Some(overlay) = &overlay
                    && !gateways::publish(&db, id, overlay.version).await
                {
                    heard = Heard::Late;
                }
                if let Some(hold) = hold {
                    hold.forget();
                }
                db.locks().release(owner, locked);
                run_actions(&db, ddl.on_commit);
            }
            // It may have been committed, and may still be, but not above `max_ts`: until that is past nobody may
            // change the tables it wrote, or use those it changed. What must go depends on what is not known: it stays.
            Err(kv::Error::Unknown(_)) => {
                if let Some(hold) = hold {
                    hold.forget();
                }
                if overlay.is_some() {
                    db.catalog().mark_doubtful();
                }
                drop(tokio::spawn(release_after(db, max_ts, owner, locked, overlay.is_some())));
            }
            Err(_) => {
                db.locks().release(owner, locked);
                run_actions(&db, ddl.on_rollback);
            }
        }
        result.map(|c| (heard, writes.then_some(c))).map_err(kv_error)
    })))
}

/// Gives back the locks of a transaction whose outcome is unknown when it cannot be committed any more.
async fn release_after(
    db: Arc<Database>,
    max_ts: Timestamp,
    owner: Owner,
    locked: BTreeSet<u32>,
    changed_catalog: bool,
) {
    let end = max_ts.min(after(&db, UNKNOWN_HOLD_MAX));
    loop {
        let now = db.store().now();
        if now > end {
            break;
        }
        let left = end.micros().saturating_sub(now.micros()) + 1_000;
        db.timer().sleep(Duration::from_micros(left)).await;
    }
    if changed_catalog {
        db.catalog().mark_doubtful();
    }
    db.locks().release(owner, locked);
}

/// C3, here: the overlay becomes the gateway's catalog.
fn publish(
    db: &Arc<Database>,
    overlay: &Arc<crate::catalog::CatalogSnapshot>,
    ddl: &DdlState,
    ts: Timestamp,
) {
    let mut next = overlay.edit();
    let changed: Vec<u32> = ddl.changed.iter().copied().collect();
    next.set_valid_from(&changed, ts);
    db.catalog().publish(Arc::new(next));
}

async fn restart_sequence(db: &Arc<Database>, oid: u32) {
    let Some(sequence) = db.catalog().current().sequence_by_oid(oid).cloned() else { return };
    if let Err(e) = db.sequences().restart(&sequence).await {
        tracing::warn!(error = %e, sequence = %sequence.name, "a sequence was not restarted");
    }
}
