//! What all sessions of a gateway share: the store, the cached catalog, table locks, sequences, plans, and the list of
//! sessions (for cancel requests and `pg_stat_activity`); and whether it may serve at all ([`Database::settle`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::Timestamp;
use isochrone_env::{Env, Timer};
use isochrone_txn::kv::KvStore;
use isochrone_types::{Error, SqlState};
use tokio::sync::Notify;

use super::Session;
use super::plans::PlanCache;
use crate::catalog::advisory::NodeAdvisory;
use crate::catalog::defaults::Defaults;
use crate::catalog::gateways::{DatabaseGateway, Freezes};
use crate::catalog::locks::{Owner, TableLocks};
use crate::catalog::sequences::NodeSequences;
use crate::catalog::store::CatalogCache;
use crate::pg_catalog::VirtualTables;

/// How long a statement waits for a schema lease before it fails with 57P03.
pub const LEASE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two looks at the lease meanwhile: the store can only be asked.
const LEASE_POLL: Duration = Duration::from_millis(20);
/// Sessions of one node; one more is refused with 53300.
pub const SESSIONS_MAX: usize = 10_000;
/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
pub const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// Breaks off the running statement of a session.
#[derive(Default, Debug)]
pub struct CancelHandle {
    asked: AtomicBool,
    /// It was `statement_timeout` that asked.
    by_timeout: AtomicBool,
    notify: Notify,
}

impl CancelHandle {
    /// Asks; without effect when no statement runs.
    pub fn cancel(&self) {
        self.asked.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// `statement_timeout` asks.
    pub(super) fn time_out(&self) {
        self.by_timeout.store(true, Ordering::Release);
        self.cancel();
    }

    /// 57014, with the reason.
    pub(super) fn error(&self) -> Error {
        let why = if self.by_timeout.load(Ordering::Acquire) { "statement timeout" } else { "user request" };
        Error::new(SqlState::QUERY_CANCELED, format!("canceling statement due to {why}"))
    }

    /// Was it asked for since the statement began?
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// The flag itself, for loops that never wait.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// A statement begins: what was asked before does not concern it.
    pub(super) fn clear(&self) {
        self.by_timeout.store(false, Ordering::Release);
        self.asked.store(false, Ordering::Release);
    }

    /// Resolves when it is asked for.
    pub(super) async fn asked(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.is_asked() {
                return;
            }
            notified.await;
        }
    }
}

/// What others may know of a session.
#[derive(Clone, Debug)]
pub struct SessionEntry {
    /// Its number, as clients see it.
    pub pid: i32,
    /// User.
    pub user: String,
    /// `application_name`.
    pub application: String,
    /// `idle`, `active`, `idle in transaction`, ...
    pub state: &'static str,
    /// The statement that runs or ran last.
    pub query: Arc<str>,
    /// When the session began, in microseconds since 2000.
    pub started: i64,
    /// How to break off its statement.
    pub cancel: Arc<CancelHandle>,
}

/// The database as one gateway has it. See the file's head.
pub struct Database {
    store: Arc<dyn KvStore>,
    env: Env,
    name: String,
    catalog: CatalogCache,
    defaults: Defaults,
    locks: TableLocks,
    freezes: Freezes,
    sequences: Arc<NodeSequences>,
    advisory: Arc<NodeAdvisory>,
    plans: PlanCache,
    virtual_tables: VirtualTables,
    sessions: Mutex<BTreeMap<i32, SessionEntry>>,
    next_owner: AtomicU64,
    next_pid: Mutex<i32>,
    started: i64,
}

impl Database {
    /// A database over a store. `name` is what `current_database()` says.
    pub fn new(store: Arc<dyn KvStore>, env: Env, name: &str) -> Arc<Database> {
        let started = env.clock.wall().now_us as i64 - EPOCH_2000_US;
        let db = Arc::new_cyclic(|this| Database {
            sequences: Arc::new(NodeSequences::new(store.clone())),
            advisory: Arc::new(NodeAdvisory::new(store.clone(), env.timer.clone(), env.random.clone())),
            store,
            env,
            name: name.to_string(),
            catalog: CatalogCache::default(),
            defaults: Defaults::default(),
            locks: TableLocks::default(),
            freezes: Freezes::default(),
            plans: PlanCache::default(),
            virtual_tables: VirtualTables::new(this),
            sessions: Mutex::default(),
            next_owner: AtomicU64::new(1),
            next_pid: Mutex::new(1),
            started,
        });
        db.store.set_gateway(Arc::new(DatabaseGateway(Arc::downgrade(&db))));
        db
    }

    fn lease_holds(&self) -> bool {
        let lease = self.store.schema_lease();
        lease == Timestamp::MAX || lease > self.store.now()
    }

    /// Before the catalog is used: this gateway has a schema lease, and the catalog is beyond doubt. Costs two atomic
    /// loads and a look at the clock when all is well, without the clock in a cluster of one.
    ///
    /// 57P03 while this node is out of service.
    pub async fn settle(&self) -> Result<(), Error> {
        if let Some(why) = self.store.out_of_service() {
            return Err(Error::new(
                SqlState::CANNOT_CONNECT_NOW,
                format!("this node is out of service: {why}"),
            )
            .with_hint("Use another node, or put this node's clock right: it comes back by itself."));
        }
        if !self.catalog.is_doubtful() && self.lease_holds() {
            return Ok(());
        }
        let mut timeout = self.env.timer.sleep(LEASE_WAIT_MAX);
        loop {
            if self.lease_holds() && self.catalog.refresh(&self.store).await? {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.env.timer.sleep(LEASE_POLL) => {}
                () = &mut timeout => return Err(lost_contact()),
            }
        }
    }

    /// The schema lease that a transaction may commit under which began when the lease had been lost `losses` times:
    /// waits for it to be prolonged; 40001 when it was lost since.
    pub async fn lease_of(&self, losses: u64) -> Result<Timestamp, Error> {
        let mut timeout = None;
        loop {
            // In this order: what the store shows after a loss, it shows after it has told us of the loss.
            let lease = self.store.schema_lease();
            if self.catalog.losses() != losses {
                return Err(Error::new(
                    SqlState::SERIALIZATION_FAILURE,
                    "could not serialize access: the node lost contact with the cluster, and tables may have changed",
                )
                .with_hint("The transaction might succeed if retried."));
            }
            if lease == Timestamp::MAX || lease > self.store.now() {
                return Ok(lease);
            }
            let timeout = timeout.get_or_insert_with(|| self.env.timer.sleep(LEASE_WAIT_MAX));
            tokio::select! {
                biased;
                () = self.env.timer.sleep(LEASE_POLL) => {}
                () = timeout => return Err(lost_contact()),
            }
        }
    }

    /// Opens a session for a user; 3D000 for another database, 53300 when there are too many.
    pub async fn connect(self: &Arc<Database>, user: &str, database: &str) -> Result<Session, Error> {
        if database != self.name {
            return Err(Error::new(
                SqlState::INVALID_CATALOG_NAME,
                format!("database \"{database}\" does not exist"),
            ));
        }
        self.settle().await?;
        let (defaults, stale) = self.defaults.now(&self.store).await?;
        let pid = {
            let sessions = self.sessions.lock().expect("no panic while the lock is held");
            if sessions.len() >= SESSIONS_MAX {
                return Err(Error::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already"));
            }
            let mut next = self.next_pid.lock().expect("no panic while the lock is held");
            while sessions.contains_key(&next) {
                *next = next.checked_add(1).unwrap_or(1);
            }
            let pid = *next;
            *next = next.checked_add(1).unwrap_or(1);
            pid
        };
        let cancel = Arc::new(CancelHandle::default());
        let entry = SessionEntry {
            pid,
            user: user.to_string(),
            application: String::new(),
            state: "idle",
            query: "".into(),
            started: self.now(),
            cancel: cancel.clone(),
        };
        self.sessions.lock().expect("no panic while the lock is held").insert(pid, entry);
        let mut session = Session::new(self.clone(), pid, user, cancel);
        for (name, value) in defaults {
            // A newer version may have set what this one does not know.
            if let Err(error) = session.set_initial(&name, &value) {
                tracing::warn!(name, value, %error, "a default of the database is not used");
            }
        }
        if let Some(e) = stale {
            session.warn(
                SqlState::WARNING,
                &format!(
                    "the defaults of the database could not be read, those read last are used: {}",
                    e.message
                ),
            );
        }
        Ok(session)
    }

    /// The layers below.
    pub fn store(&self) -> &Arc<dyn KvStore> {
        &self.store
    }

    /// The outside world.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Waits.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        &self.env.timer
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cached catalog.
    pub fn catalog(&self) -> &CatalogCache {
        &self.catalog
    }

    /// Table locks.
    pub fn locks(&self) -> &TableLocks {
        &self.locks
    }

    /// What other gateways have frozen here.
    pub fn freezes(&self) -> &Freezes {
        &self.freezes
    }

    /// Sequences.
    pub fn sequences(&self) -> &Arc<NodeSequences> {
        &self.sequences
    }

    /// Advisory locks.
    pub fn advisory(&self) -> &Arc<NodeAdvisory> {
        &self.advisory
    }

    /// Tables made of what the node knows.
    pub fn virtual_tables(&self) -> &VirtualTables {
        &self.virtual_tables
    }

    pub(super) fn plans(&self) -> &PlanCache {
        &self.plans
    }

    /// A name for a transaction in the lock table, never given before.
    pub fn next_owner(&self) -> Owner {
        self.next_owner.fetch_add(1, Ordering::Relaxed)
    }

    /// The clock, in microseconds since 2000.
    pub fn now(&self) -> i64 {
        self.env.clock.wall().now_us as i64 - EPOCH_2000_US
    }

    /// When the node began to serve, in microseconds since 2000.
    pub fn started(&self) -> i64 {
        self.started
    }

    /// The sessions there are, by number.
    pub fn sessions(&self) -> Vec<SessionEntry> {
        self.sessions.lock().expect("no panic while the lock is held").values().cloned().collect()
    }

    /// Asks a session to break off its statement; false: there is no such session.
    pub fn cancel(&self, pid: i32) -> bool {
        let sessions = self.sessions.lock().expect("no panic while the lock is held");
        sessions.get(&pid).map(|s| s.cancel.cancel()).is_some()
    }

    pub(super) fn update_session(&self, pid: i32, f: impl FnOnce(&mut SessionEntry)) {
        if let Some(s) = self.sessions.lock().expect("no panic while the lock is held").get_mut(&pid) {
            f(s);
        }
    }

    pub(super) fn forget_session(&self, pid: i32) {
        self.sessions.lock().expect("no panic while the lock is held").remove(&pid);
    }
}

/// 57P03.
fn lost_contact() -> Error {
    Error::new(SqlState::CANNOT_CONNECT_NOW, "this node has lost contact with the cluster")
}
