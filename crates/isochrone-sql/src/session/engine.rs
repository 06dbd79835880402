//! The bridge to planner and executor: plans under a view of the catalog, runs under table locks, inside the
//! session's transaction.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use isochrone_txn::kv::{Isolation, KvTxn};
use isochrone_types::{Datum, Error, EvalContext, SessionInfo, Settings, SqlState, Type};
use sqlparser::ast;

use super::as_of::{self, AsOf};
use super::plans::{PlanRef, Prepared};
use super::portal::{Portal, PortalState};
use super::utility::{self, Explain, Statement};
use super::{CancelHandle, Database, Session, cursor, run};
use crate::catalog::sequences::SessionSequences;
use crate::catalog::{self, CatalogSnapshot, SessionView};
use crate::exec::{Cursor, ExecContext, run_to_sink};
use crate::face::{Outcome, RowSink};
use crate::pg_catalog::SessionShared;
use crate::plan::{self, Plan, PlanKind};

/// How often a statement is planned again because the catalog changed while it waited for its tables.
const REPLANS_MAX: usize = 100;

/// A plan, and what the session wants to know of it.
pub struct Planned {
    pub plan: Arc<Plan>,
    /// The table it writes.
    pub writes: Option<u32>,
    /// The time that it asks for.
    pub as_of: Option<AsOf>,
}

impl std::ops::Deref for Planned {
    type Target = Plan;
    fn deref(&self) -> &Plan {
        &self.plan
    }
}

/// A query that gave some of its rows.
pub struct Running {
    cursor: Cursor,
    planned: Arc<Planned>,
    /// The transaction it belongs to.
    owner: u64,
}

/// How a run ended.
pub enum Ran {
    Complete(String),
    Suspended,
}

/// Binds and plans.
pub fn make_plan(
    tree: &ast::Statement,
    text: &str,
    view: &SessionView,
    declared: &[Option<Type>],
    settings: &Settings,
) -> Result<Arc<Planned>, Error> {
    let plan = plan::prepare(tree, text, view, declared, settings)?;
    let writes = match &plan.kind {
        PlanKind::Query { .. } => None,
        PlanKind::Insert(p) => Some(p.writer.table.oid),
        PlanKind::Update(p) => Some(p.writer.table.oid),
        PlanKind::Delete(p) => Some(p.writer.table.oid),
    };
    // The parser's tree comes from the text without the clause.
    let as_of = as_of::find(text)?.map(|(as_of, _)| as_of);
    Ok(Arc::new(Planned { plan, writes, as_of }))
}

/// Does the text mean something?
pub fn check(sql: &str, view: &SessionView, settings: &Settings) -> Result<(), Error> {
    match utility::parse_statement(sql)? {
        Statement::Query(tree) => make_plan(&tree, sql, view, &[], settings).map(|_| ()),
        _ => Err(Error::syntax("not a query")),
    }
}

/// Runs `work` unless it is broken off. What runs without ever waiting looks at the flag by itself; so that a timeout
/// reaches it, the timer runs in a task of its own.
pub async fn guarded<R>(
    cancel: &Arc<CancelHandle>,
    timeout: Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
    work: impl Future<Output = Result<R, Error>>,
) -> Result<R, Error> {
    let _timer = timeout.map(|timeout| {
        let cancel = cancel.clone();
        Timer(tokio::spawn(async move {
            timeout.await;
            cancel.time_out();
        }))
    });
    tokio::pin!(work);
    let result = tokio::select! {
        biased;
        result = &mut work => result,
        () = cancel.asked() => Err(cancel.error()),
    };
    result.map_err(|e| if e.sqlstate == SqlState::QUERY_CANCELED { cancel.error() } else { e })
}

/// A task that ends with its statement.
struct Timer(tokio::task::JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs queries of our own for DDL.
pub struct Internal {
    pub(super) db: Arc<Database>,
    pub(super) path: Arc<[String]>,
    pub(super) shared: Arc<SessionShared>,
    pub(super) info: SessionInfo,
    pub(super) sequences: Arc<SessionSequences>,
    pub(super) cancel: Arc<CancelHandle>,
}

impl Internal {
    /// The rows of a query under this catalog, in this transaction.
    pub async fn rows(
        &self,
        sql: &str,
        catalog: &Arc<CatalogSnapshot>,
        txn: &mut dyn KvTxn,
        settings: &Settings,
        max: usize,
    ) -> Result<Vec<Vec<Datum>>, Error> {
        let view = SessionView::new(self.db.clone(), catalog.clone(), self.path.clone(), self.shared.clone());
        let Statement::Query(tree) = utility::parse_statement(sql)? else {
            return Err(Error::syntax("not a query"));
        };
        let planned = make_plan(&tree, sql, &view, &[], settings)?;
        self.sequences.set_catalog(catalog);
        let mut rows = cursor::Rows { max, ..Default::default() };
        let now = self.db.now();
        let db = self.db.clone();
        let (clock, random) = (|| db.now(), || db.env().random.next_u64());
        let eval = EvalContext {
            settings,
            session: &self.info,
            statement_time: now,
            clock: &clock,
            random: &random,
        };
        let mut context = ExecContext {
            txn,
            store: self.db.store(),
            catalog: &view,
            eval: &eval,
            sequences: &*self.sequences,
            cancel: self.cancel.flag(),
        };
        run_to_sink(&planned.plan, Vec::new(), &mut context, &mut rows).await?;
        Ok(rows.rows)
    }
}

impl Session {
    /// Plans a statement under the session's catalog. The second: it is for this session alone.
    pub(super) fn plan(
        &mut self,
        tree: &ast::Statement,
        text: &str,
        declared: &[Option<Type>],
    ) -> Result<(PlanRef, bool), Error> {
        let view = self.new_view(self.snapshot());
        let stamp = crate::relation::CatalogView::version(&view);
        if self.txn.is_none() && self.status == crate::face::TxnStatus::Idle {
            // Literals such as 'now' are read while binding.
            self.settings.set_transaction_time(self.db.now());
        }
        let planned = make_plan(tree, text, &view, declared, self.settings.eval())?;
        let bound = view.is_session_bound() || planned.depends_on_settings();
        let reference = PlanRef { plan: planned, stamp, fingerprint: self.settings.fingerprint() };
        Ok((reference, bound))
    }

    /// The portal's plan, made again if catalog or settings have changed since.
    fn current_plan(&mut self, prepared: &Arc<Prepared>) -> Result<PlanRef, Error> {
        let (stamp, fingerprint) = (self.stamp(), self.settings.fingerprint());
        if let Some(p) = &prepared.plan
            && p.stamp == stamp
            && p.fingerprint == fingerprint
        {
            return Ok(p.clone());
        }
        let found = self.db.plans().get(&prepared.text, &prepared.declared, stamp, fingerprint);
        if let Some(found) = found
            && let Some(p) = &found.plan
        {
            check_same(prepared, &p.plan)?;
            return Ok(p.clone());
        }
        let Some(Statement::Query(tree)) = prepared.statement.as_deref() else {
            // It was found by its text, without its tree.
            let Statement::Query(tree) = utility::parse_statement(&prepared.text)? else {
                return Err(Error::internal("a plan of something that is not a query"));
            };
            return self.plan(&tree, &prepared.text, &prepared.declared).map(|(p, _)| p);
        };
        let declared: Vec<Option<Type>> = if prepared.params.is_empty() {
            prepared.declared.clone()
        } else {
            // Parameters were told to the client: they stay.
            prepared.params.iter().map(|t| Some(*t)).collect()
        };
        let (p, bound) = self.plan(tree, &prepared.text, &declared)?;
        check_same(prepared, &p.plan)?;
        if !bound
            && declared == prepared.declared
            && self.txn.as_ref().is_none_or(|t| t.ddl.overlay.is_none())
        {
            self.db.plans().put(&Arc::new(Prepared {
                text: prepared.text.clone(),
                statement: prepared.statement.clone(),
                declared,
                params: p.plan.params().to_vec(),
                columns: p.plan.columns().map(<[_]>::to_vec),
                plan: Some(p.clone()),
            }));
        }
        Ok(p)
    }

    /// X1: the plan, with its tables locked, under the catalog that holds now.
    pub(super) async fn lock_plan(&mut self, prepared: &Arc<Prepared>) -> Result<Arc<Planned>, Error> {
        for _ in 0..REPLANS_MAX {
            let losses = self.db.catalog().losses();
            self.db.settle().await?;
            let reference = self.current_plan(prepared)?;
            let wait = self.table_lock_wait();
            let db = self.db.clone();
            let owner = self.owner();
            // The transaction begins, and takes its snapshot, only when the tables are locked.
            for oid in reference.plan.tables() {
                if !self.holds(*oid) {
                    db.locks().shared(*oid, owner, wait, db.timer()).await?;
                    self.keep_locks(*oid);
                }
            }
            // Doubtful: what froze the table was let go without a word of what became of it.
            if reference.stamp == self.stamp() && !self.db.catalog().is_doubtful() {
                self.same_lease(losses)?;
                return Ok(reference.plan);
            }
            // DDL came in between; what was locked stays locked.
        }
        Err(Error::new(SqlState::SERIALIZATION_FAILURE, "the catalog changes too fast for this statement"))
    }

    /// Checks that need the transaction: levels, snapshots, tables loaded in bulk.
    pub(super) async fn admit(&mut self, planned: &Planned, loading: bool) -> Result<(), Error> {
        self.choose_snapshot(planned)?;
        let snapshot = self.view();
        let snapshot = crate::relation::CatalogView::snapshot(&*snapshot)
            .cloned()
            .ok_or_else(|| Error::internal("a session's view has a snapshot"))?;
        let lock_wait = self.settings.lock_timeout().unwrap_or(isochrone_txn::kv::LOCK_WAIT_MAX);
        let txn = self.transaction();
        if txn.read_only && planned.writes.is_some() {
            return Err(Error::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                format!("cannot execute {} in a read-only transaction", planned.tag()),
            ));
        }
        txn.kv.begin_statement();
        let window_end = txn.kv.uncertain_to();
        let window_end = *self.window_end.get_or_insert(window_end);
        let txn = self.transaction();
        txn.kv.cap_uncertainty(window_end);
        txn.kv.set_lock_wait_max(lock_wait);
        let read_ts = txn.kv.read_ts();
        for oid in planned.tables() {
            let Some(entry) = snapshot.table_by_oid(*oid) else { continue };
            if read_ts < entry.valid_from && txn.fixed {
                // Rows of then may have other columns. The descriptor of then says whether they have.
                if !catalog::store::was_the_same(&mut *txn.kv, &entry.table).await? {
                    return Err(Error::unsupported(format!(
                        "reading table \"{}\" as of before its last change by DDL",
                        entry.table.name
                    )));
                }
            } else if read_ts < entry.valid_from {
                return Err(Error::new(
                    SqlState::SERIALIZATION_FAILURE,
                    format!(
                        "could not serialize access: table \"{}\" was changed after the transaction's snapshot",
                        entry.table.name
                    ),
                )
                .with_hint("The transaction might succeed if retried."));
            }
            let loaded = txn.ddl.loaded.contains(&entry.table.table_id);
            if loaded && !loading && txn.isolation != Isolation::ReadCommitted {
                return Err(Error::unsupported(format!(
                    "using table \"{}\" in the transaction that loaded or rewrote it, above READ COMMITTED,",
                    entry.table.name
                ))
                .with_hint("Commit first."));
            }
        }
        if let Some(oid) = planned.writes {
            txn.ddl.dirty.insert(oid);
        }
        self.shared.set_snapshot(read_ts);
        Ok(())
    }

    /// Runs a query's portal: all rows, or `rows_max` of them.
    pub(super) async fn run_query(
        &mut self,
        portal: &mut Portal,
        rows_max: usize,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        if let PortalState::Rows(rows, at, _) = &mut portal.state {
            let most = if rows_max == 0 { usize::MAX } else { rows_max };
            let end = rows.len().min(at.saturating_add(most));
            let given = end - *at;
            for row in &rows[*at..end] {
                sink.row(row)?;
            }
            *at = end;
            return Ok(Outcome::Complete(format!("SELECT {given}")));
        }
        let prepared = portal.prepared.clone();
        let mut running = match std::mem::replace(&mut portal.state, PortalState::Done) {
            PortalState::Start => {
                let planned = self.lock_plan(&prepared).await?;
                self.admit(&planned, false).await?;
                if rows_max == 0 {
                    let ran = self.run_whole(&planned, portal.params.to_vec(), sink).await?;
                    self.count_statement();
                    return Ok(run::outcome(ran));
                }
                let cursor = Cursor::new(planned.plan.clone(), portal.params.to_vec());
                Box::new(Running { cursor, planned, owner: self.owner() })
            }
            PortalState::Running(r) => r,
            PortalState::Done | PortalState::Rows(..) => {
                return Ok(Outcome::Complete(format!("{} 0", "SELECT")));
            }
        };
        let ran = self.resume(&mut running, rows_max, sink).await?;
        if matches!(ran, Ran::Suspended) {
            portal.state = PortalState::Running(running);
        }
        self.count_statement();
        Ok(run::outcome(ran))
    }

    fn count_statement(&mut self) {
        if let Some(txn) = &mut self.txn {
            txn.statements += 1;
        }
    }

    async fn run_whole(
        &mut self,
        planned: &Planned,
        params: Vec<Datum>,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, Error> {
        let view = self.view();
        let db = self.db.clone();
        let cancel = self.cancel.clone();
        let timeout = self.settings.statement_timeout().map(|d| db.timer().sleep(d));
        let (clock, random) = (|| db.now(), || db.env().random.next_u64());
        let eval = EvalContext {
            settings: self.settings.eval(),
            session: &self.info,
            statement_time: db.now(),
            clock: &clock,
            random: &random,
        };
        let txn = self.txn.as_mut().ok_or_else(|| Error::internal("a query runs in a transaction"))?;
        let mut context = ExecContext {
            txn: &mut *txn.kv,
            store: db.store(),
            catalog: &*view,
            eval: &eval,
            sequences: &*self.sequences,
            cancel: cancel.flag(),
        };
        let work = run_to_sink(&planned.plan, params, &mut context, sink);
        let outcome = guarded(&cancel, timeout, work).await?;
        self.after_query();
        Ok(Ran::Complete(planned.command_tag(outcome.rows)))
    }

    async fn resume(
        &mut self,
        running: &mut Running,
        rows_max: usize,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, Error> {
        let view = self.view();
        let db = self.db.clone();
        let cancel = self.cancel.clone();
        let timeout = self.settings.statement_timeout().map(|d| db.timer().sleep(d));
        let (clock, random) = (|| db.now(), || db.env().random.next_u64());
        let eval = EvalContext {
            settings: self.settings.eval(),
            session: &self.info,
            statement_time: db.now(),
            clock: &clock,
            random: &random,
        };
        let txn = self.txn.as_mut().filter(|t| t.owner == running.owner).ok_or_else(|| {
            Error::new(SqlState::INVALID_CURSOR_STATE, "the portal's transaction has ended")
        })?;
        let mut context = ExecContext {
            txn: &mut *txn.kv,
            store: db.store(),
            catalog: &*view,
            eval: &eval,
            sequences: &*self.sequences,
            cancel: cancel.flag(),
        };
        let work = running.cursor.run_to_sink(&mut context, sink, rows_max as u64);
        let outcome = guarded(&cancel, timeout, work).await?;
        self.after_query();
        if !outcome.complete {
            return Ok(Ran::Suspended);
        }
        Ok(Ran::Complete(running.planned.command_tag(outcome.rows)))
    }

    /// set_config may have been called.
    fn after_query(&mut self) {
        for (name, value, local) in self.shared.take_changes() {
            // It was checked when it was set.
            let _ = self.settings.set(&name, Some(&value), local);
            self.settings_changed();
        }
        if self.cancel.flag().load(Ordering::Relaxed) {
            self.cancel.clear();
        }
    }

    /// EXPLAIN's lines.
    pub(super) async fn explain_plan(
        &mut self,
        prepared: &Arc<Prepared>,
        explain: &Explain,
    ) -> Result<Vec<String>, Error> {
        let planned = self.lock_plan(prepared).await?;
        if !explain.analyze {
            return Ok(without_costs(plan::explain(&planned.plan), explain.costs));
        }
        self.admit(&planned, false).await?;
        let began = self.db.env().clock.monotonic_ns();
        let cursor = Cursor::new(planned.plan.clone(), Vec::new());
        let mut running = Running { cursor, planned: planned.clone(), owner: self.owner() };
        running.cursor.analyze();
        let mut nothing = Nothing;
        self.resume(&mut running, 0, &mut nothing).await?;
        let elapsed = self.db.env().clock.monotonic_ns().saturating_sub(began);
        let stats = running.cursor.stats().unwrap_or_default();
        let mut text = without_costs(plan::explain_analyze(&planned.plan, stats), explain.costs);
        if let Some(waits) = self.txn.as_ref().and_then(|t| t.waits.as_ref()) {
            text.push(format!("Read Wait: {:.3} ms", waits.reads_us() as f64 / 1e3));
        }
        if explain.timing {
            text.push(format!("Execution Time: {:.3} ms", elapsed as f64 / 1e6));
        }
        Ok(text)
    }
}

/// EXPLAIN (COSTS OFF): the estimates go.
fn without_costs(lines: Vec<String>, costs: bool) -> Vec<String> {
    if costs {
        return lines;
    }
    lines.into_iter().map(|l| l.split("  (rows=").next().unwrap_or_default().to_string()).collect()
}

/// 0A000 when a new plan gives other columns than the client was told.
fn check_same(prepared: &Prepared, plan: &Plan) -> Result<(), Error> {
    let types = |c: Option<&[crate::face::OutputColumn]>| -> Option<Vec<Type>> {
        c.map(|c| c.iter().map(|c| c.ty).collect())
    };
    if types(prepared.columns()) != types(plan.columns()) {
        return Err(Error::new(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type"));
    }
    Ok(())
}

/// Takes rows and forgets them.
struct Nothing;

impl RowSink for Nothing {
    fn row(&mut self, _: &[Datum]) -> Result<(), Error> {
        Ok(())
    }
    fn copy_data(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn copy_out(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }
    fn ready<'a>(&'a mut self) -> isochrone_txn::kv::BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn sent(&self) -> bool {
        false
    }
    fn reset(&mut self) {}
}
