//! Sessions: statements in, rows and outcomes out, transactions around them.
//!
//! A statement's way: [`script`] cuts the text; a cached plan is found by it, or [`utility`] and the parser say what
//! it is; `engine` plans and runs queries; `run` runs everything else; `transaction` begins, retries, commits.
//! Clients drive a session through `portal`: parse, bind, execute, sync, or a script step by step.
//!
//! Invariants
//!   X1  A transaction holds a shared lock on every table it used until it has ended, and its plans were made under
//!       a catalog that still holds when the lock was got ([`crate::catalog::locks`]), under a schema lease that is
//!       unbroken from before those plans to the transaction's commit timestamp ([`crate::catalog::gateways`]).
//!   X2  A statement is run again by the session only while nothing of it can have reached the client, and nothing
//!       ran before it in its transaction.
//!   X3  Whatever fails in a block leaves the session in [`TxnStatus::Failed`] until ROLLBACK (or to a savepoint).
//!
//! Failure: every error is an SQL error with its SQLSTATE (`error` for those of the store); dropping a session, or a
//! future of it half-way, rolls back what is open and gives back its locks.

mod as_of;
mod copy_in;
mod cursor;
mod database;
mod engine;
mod error;
mod plans;
mod portal;
mod run;
pub mod script;
mod transaction;
pub mod utility;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use as_of::{AsOf, FOLLOWER_READ_LAG_US, Moment};
pub use copy_in::CopyIn;
pub use database::{CancelHandle, Database, EPOCH_2000_US, LEASE_WAIT_MAX, SESSIONS_MAX, SessionEntry};
pub use engine::Internal;
pub use error::{kv_error, survives_savepoint};
use isochrone_types::{Error, SessionInfo, SqlState};
pub use plans::{PLANS_MAX, PlanCache, Prepared};
pub use portal::{Portal, Step};

use crate::catalog::advisory::{Claims, SessionAdvisory};
use crate::catalog::sequences::SessionSequences;
use crate::catalog::{CatalogSnapshot, SessionView};
use crate::face::{Notice, TxnStatus};
use crate::pg_catalog::SessionShared;
use crate::settings::Settings;
use transaction::Txn;

/// Statements a session may PREPARE, and cursors it may DECLARE; one more is refused with 53000.
pub const NAMED_MAX: usize = 10_000;
/// Notices kept for the client; later ones are dropped.
const NOTICES_MAX: usize = 1_000;

/// One client's session. Not shared: one call at a time.
pub struct Session {
    db: Arc<Database>,
    pid: i32,
    cancel: Arc<CancelHandle>,
    settings: Settings,
    info: SessionInfo,
    shared: Arc<SessionShared>,
    sequences: Arc<SessionSequences>,
    claims: Arc<Claims>,
    advisory: Arc<SessionAdvisory>,
    txn: Option<Txn>,
    /// Locks got before the transaction that they are for has begun, and their owner.
    early_locks: std::collections::BTreeSet<u32>,
    next_owner: Option<crate::catalog::locks::Owner>,
    /// Of the next transaction: see [`Txn::losses`].
    next_losses: Option<u64>,
    /// In a transaction block (BEGIN), and whether it failed.
    status: TxnStatus,
    /// The block's level, and whether it is read-only.
    modes: (isochrone_txn::kv::Isolation, bool),
    /// What else the block asks for.
    block: transaction::BlockModes,
    /// What the next transaction reads, where its first statement decides that.
    next_snapshot: Option<isochrone_txn::kv::Snapshot>,
    /// Where the uncertainty window of the running statement's first attempt ended: later attempts keep to it.
    window_end: Option<isochrone_base::Timestamp>,
    /// See `Txn::own`, of the next transaction.
    next_own: Option<Option<AsOf>>,
    /// The highest timestamp of what this session has committed or read (R25, and for reads of replicas).
    seen: isochrone_base::Timestamp,
    prepared: BTreeMap<String, Arc<Prepared>>,
    cursors: BTreeMap<String, cursor::Cursor>,
    copy: Option<Box<CopyIn>>,
    notices: Vec<Notice>,
    /// The view that plans are made with, while neither catalog nor path change.
    view: Option<Arc<SessionView>>,
}

impl Session {
    pub(super) fn new(db: Arc<Database>, pid: i32, user: &str, cancel: Arc<CancelHandle>) -> Session {
        let mut settings = Settings::default();
        settings.set_fixed("session_authorization", user);
        let info = SessionInfo {
            current_user: user.to_string(),
            session_user: user.to_string(),
            current_database: db.name().to_string(),
            current_schema: crate::catalog::snapshot::PUBLIC.to_string(),
        };
        let shared = Arc::new(SessionShared::new(pid, &settings));
        let claims = db.advisory().session(cancel.clone());
        let advisory = Arc::new(SessionAdvisory::new(claims.clone()));
        Session {
            sequences: Arc::new(SessionSequences::new(db.sequences().clone(), advisory.clone())),
            claims,
            advisory,
            db,
            pid,
            cancel,
            settings,
            info,
            shared,
            txn: None,
            early_locks: Default::default(),
            next_owner: None,
            next_losses: None,
            status: TxnStatus::Idle,
            modes: Default::default(),
            block: Default::default(),
            next_snapshot: None,
            window_end: None,
            next_own: None,
            seen: isochrone_base::Timestamp::MIN,
            prepared: BTreeMap::new(),
            cursors: BTreeMap::new(),
            copy: None,
            notices: Vec::new(),
            view: None,
        }
    }

    /// The number of the session, as `pg_backend_pid()` says it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The node's database.
    pub fn database(&self) -> &Arc<Database> {
        &self.db
    }

    /// Breaks off the running statement, from anywhere.
    pub fn cancel_handle(&self) -> Arc<CancelHandle> {
        self.cancel.clone()
    }

    /// Where the session stands, for ReadyForQuery.
    pub fn status(&self) -> TxnStatus {
        self.status
    }

    /// The settings that text forms depend on.
    pub fn settings(&self) -> &isochrone_types::Settings {
        self.settings.eval()
    }

    /// The value of a setting, as SHOW says it.
    pub fn setting(&self, name: &str) -> Result<String, Error> {
        self.show(name)
    }

    /// A setting of the start-up packet.
    pub fn set_initial(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.settings.set_initial(name, value)?;
        self.settings_changed();
        Ok(())
    }

    /// All settings clients are told of.
    pub fn parameters(&mut self) -> Vec<(String, String)> {
        self.settings.report_all()
    }

    /// Those that changed since they were told.
    pub fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        self.settings.report_changes()
    }

    /// Notices since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn warn(&mut self, sqlstate: SqlState, message: &str) {
        if self.notices.len() < NOTICES_MAX {
            let notice =
                Notice { severity: "WARNING", sqlstate: sqlstate.code(), message: message.to_string() };
            self.notices.push(notice);
        }
    }

    /// After any change of settings: what depends on them.
    fn settings_changed(&mut self) {
        self.shared.set_settings(&self.settings);
        self.view = None;
        self.advisory.set_wait_max(self.settings.lock_timeout());
        let schema = self
            .settings
            .path()
            .iter()
            .find(|p| *p == crate::catalog::snapshot::PUBLIC || self.db.virtual_tables().has_schema(p))
            .cloned();
        self.info.current_schema = schema.unwrap_or_default();
        let application = self.settings.get("application_name").unwrap_or_default();
        self.db.update_session(self.pid, |s| s.application = application);
    }

    /// The catalog as this session sees it now: its own changes, or the committed one.
    fn snapshot(&self) -> Arc<CatalogSnapshot> {
        match self.txn.as_ref().and_then(|t| t.ddl.overlay.clone()) {
            Some(overlay) => overlay,
            None => self.db.catalog().current(),
        }
    }

    fn stamp(&self) -> u64 {
        match self.txn.as_ref().and_then(|t| t.ddl.overlay.as_ref()) {
            Some(overlay) => overlay.stamp,
            None => self.db.catalog().stamp(),
        }
    }

    /// A view for one planning.
    fn new_view(&self, snapshot: Arc<CatalogSnapshot>) -> SessionView {
        SessionView::new(self.db.clone(), snapshot, self.settings.path().clone(), self.shared.clone())
    }

    /// The view that execution uses.
    fn view(&mut self) -> Arc<SessionView> {
        let stamp = self.stamp();
        use crate::relation::CatalogView;
        match &self.view {
            Some(view) if view.version() == stamp => view.clone(),
            _ => {
                let snapshot = self.snapshot();
                self.sequences.set_catalog(&snapshot);
                let view = Arc::new(self.new_view(snapshot));
                self.view = Some(view.clone());
                view
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.abandon();
        self.claims.end();
        self.db.forget_session(self.pid);
    }
}
