//! A session's transaction: begun at its first statement, retried, committed, rolled back, marked by savepoints.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isochrone_base::keyspace::{index_prefix, table_range};
use isochrone_base::{KeyRange, Timestamp};
use isochrone_txn::kv::{self, BoxFuture, Isolation, KvTxn, Savepoint, TxnOptions};
use isochrone_types::{Error, SqlState};

use super::{Database, Session, kv_error, survives_savepoint};
use crate::catalog::locks::{Owner, TABLE_LOCK_WAIT_MAX};
use crate::ddl::{Action, DdlMark, DdlState};
use crate::face::TxnStatus;
use crate::session::utility::Modes;
use crate::settings::{Mark, isolation_name};

/// How often a statement is run again after a conflict, before the client hears of it: with the waits below about
/// two seconds. With 12, 14 of about 420 updates of the same eleven rows by six clients failed.
pub const RETRIES_MAX: u32 = 40;
/// The first wait before a retry; doubled each time up to [`BACKOFF_MAX`], and cut by a random factor.
const BACKOFF_MIN: Duration = Duration::from_micros(500);
/// The longest wait before a retry.
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Savepoints of one transaction; one more is refused with 54000.
const SAVEPOINTS_MAX: usize = 10_000;

struct Save {
    name: String,
    kv: Savepoint,
    ddl: DdlMark,
    settings: Mark,
}

/// What a transaction holds.
pub(super) struct Txn {
    pub kv: Box<dyn KvTxn>,
    pub isolation: Isolation,
    pub read_only: bool,
    pub owner: Owner,
    /// Tables it holds locks on.
    pub locked: BTreeSet<u32>,
    pub ddl: DdlState,
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
            let read_only = self.read_only();
            let mut options = TxnOptions { isolation, read_only, ..TxnOptions::default() };
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
                locked: std::mem::take(&mut self.early_locks),
                ddl: DdlState { isolation, ..DdlState::default() },
                saves: Vec::new(),
                statements: 0,
                dead: false,
            });
        }
        self.txn.as_mut().expect("it was just begun")
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
        if self.status == TxnStatus::Failed {
            self.rollback();
            return Ok("ROLLBACK");
        }
        self.status = TxnStatus::Idle;
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
        match result {
            Ok(()) => self.settings.commit(),
            Err(_) => self.settings.rollback(),
        }
        self.settings_changed_if_needed();
        result.map(|()| "COMMIT")
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
        self.settings.rollback();
        self.settings_changed_if_needed();
    }

    /// Gives up the transaction, if there is one, and everything that hangs on it.
    pub(super) fn abandon(&mut self) {
        self.copy = None;
        self.cursors.retain(|_, c| c.outlives());
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
        let txn = self.transaction();
        if txn.saves.len() >= SAVEPOINTS_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many savepoints"));
        }
        let kv = txn.kv.savepoint();
        txn.saves.push(Save { name: name.to_string(), kv, ddl: txn.ddl.mark(), settings: mark });
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
        first && !sent && e.is_retryable() && attempt < RETRIES_MAX && self.status != TxnStatus::Failed
    }

    fn drop_early_locks(&mut self) {
        if let Some(owner) = self.next_owner.take() {
            self.db.locks().release(owner, std::mem::take(&mut self.early_locks));
        }
    }

    /// Throws the attempt away and waits a little.
    pub(super) async fn before_retry(&mut self, attempt: u32) {
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

/// A commit that goes on when its session is gone: locks must not be given back, nor the catalog be left stale, while
/// the outcome is open.
struct Finish(Option<BoxFuture<'static, Result<(), Error>>>);

impl Future for Finish {
    type Output = Result<(), Error>;

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

fn finish(db: Arc<Database>, txn: Txn) -> Finish {
    Finish(Some(Box::pin(async move {
        let Txn { kv, owner, locked, mut ddl, .. } = txn;
        let result = kv.commit().await;
        if let Some(overlay) = ddl.overlay.take() {
            match &result {
                Ok(ts) => publish(&db, &overlay, &ddl, *ts),
                // It may have been committed: the catalog must be read again.
                Err(kv::Error::Unknown(_)) => db.catalog().mark_doubtful(),
                Err(_) => {}
            }
        }
        let actions = match &result {
            Ok(_) => ddl.on_commit,
            // What must go depends on what is not known: it stays as garbage.
            Err(kv::Error::Unknown(_)) => Vec::new(),
            Err(_) => ddl.on_rollback,
        };
        for action in &actions {
            if let Action::RestartSequence(oid) = action {
                restart_sequence(&db, *oid).await;
            }
        }
        db.locks().release(owner, locked);
        run_actions(&db, actions);
        result.map(|_| ()).map_err(kv_error)
    })))
}

/// C3: the overlay becomes the node's catalog.
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
