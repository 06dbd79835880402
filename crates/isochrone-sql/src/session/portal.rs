//! What clients do with a session: parse, bind, execute, sync; or a script, step by step.

use std::sync::Arc;

use isochrone_types::{Datum, Error, SqlState, Type};

use super::engine::Running;
use super::plans::Prepared;
use super::utility::{self, Statement};
use super::{Session, script};
use crate::face::{Outcome, OutputColumn, RowSink, ScriptSink, TxnStatus};

/// How often a query of a script is prepared again because its columns changed while it waited for its tables; then the
/// client hears that they did (0A000).
const COLUMNS_ATTEMPTS_MAX: usize = 10;

/// A statement with its parameters, on its way.
pub struct Portal {
    pub(super) prepared: Arc<Prepared>,
    pub(super) params: Arc<[Datum]>,
    pub(super) state: PortalState,
}

/// How far a portal is.
pub(super) enum PortalState {
    /// Not begun.
    Start,
    /// A query that gave some of its rows.
    Running(Box<Running>),
    /// Rows that were computed at once: the next one and the tag.
    Rows(Vec<Vec<Datum>>, usize, String),
    /// Complete.
    Done,
}

impl Portal {
    /// The statement.
    pub fn prepared(&self) -> &Arc<Prepared> {
        &self.prepared
    }

    /// The columns of its result.
    pub fn columns(&self) -> Option<&[OutputColumn]> {
        self.prepared.columns()
    }
}

/// One statement of a script.
pub struct Step {
    pub(super) text: Arc<str>,
    /// `None`: a query whose plan is cached.
    pub(super) statement: Option<Arc<Statement>>,
}

impl Session {
    /// Prepares one statement (Parse). Types: what the client said of its parameters.
    pub async fn parse(&mut self, sql: &str, param_types: &[Option<Type>]) -> Result<Arc<Prepared>, Error> {
        let pieces = script::split(sql);
        let text = match pieces.as_slice() {
            [] => "",
            [range] => &sql[range.clone()],
            _ => {
                return Err(self
                    .fail_with(Error::syntax("cannot insert multiple commands into a prepared statement")));
            }
        };
        match self.prepare_text(text, param_types).await {
            Ok(prepared) => Ok(prepared),
            Err(e) => Err(self.fail_with(e)),
        }
    }

    /// An error of the client's loop, or of ours outside of a statement: an open block fails.
    pub fn fail(&mut self) {
        self.failed(&Error::new(SqlState::PROTOCOL_VIOLATION, "the client's message could not be used"));
    }

    fn fail_with(&mut self, e: Error) -> Error {
        self.failed(&e);
        e
    }

    async fn prepare_text(&mut self, text: &str, declared: &[Option<Type>]) -> Result<Arc<Prepared>, Error> {
        let is_query = script::is_query(text);
        if is_query {
            self.db.settle().await?;
            let found = self.db.plans().get(text, declared, self.stamp(), self.settings.fingerprint());
            if let Some(found) = found {
                if self.status == TxnStatus::Failed {
                    return Err(Session::in_failed_block());
                }
                return Ok(found);
            }
        }
        let statement = if text.is_empty() { None } else { Some(Arc::new(utility::parse_statement(text)?)) };
        self.check_failed(statement.as_deref())?;
        if statement.as_ref().is_some_and(|s| s.needs_catalog()) {
            self.db.settle().await?;
        }
        self.prepare_statement(text.into(), statement, declared.to_vec())
    }

    /// Only statements that end the block may run in a failed one.
    pub(super) fn check_failed(&self, statement: Option<&Statement>) -> Result<(), Error> {
        if self.status != TxnStatus::Failed {
            return Ok(());
        }
        match statement {
            None | Some(Statement::Commit { .. } | Statement::Rollback { .. } | Statement::RollbackTo(_)) => {
                Ok(())
            }
            _ => Err(Session::in_failed_block()),
        }
    }

    /// Plans (queries) or describes (everything else) a statement.
    pub(super) fn prepare_statement(
        &mut self,
        text: Arc<str>,
        statement: Option<Arc<Statement>>,
        declared: Vec<Option<Type>>,
    ) -> Result<Arc<Prepared>, Error> {
        let mut prepared =
            Prepared { text, statement, declared, params: Vec::new(), columns: None, plan: None };
        let mut shareable = false;
        match prepared.statement.as_deref() {
            Some(Statement::Query(tree)) => {
                let (plan, bound) = self.plan(tree, &prepared.text, &prepared.declared)?;
                prepared.params = plan.plan.params().to_vec();
                prepared.columns = plan.plan.columns().map(<[OutputColumn]>::to_vec);
                prepared.plan = Some(plan);
                let overlay = self.txn.as_ref().is_some_and(|t| t.ddl.overlay.is_some());
                shareable = !bound && !overlay;
            }
            Some(other) => prepared.columns = self.describe(other)?,
            None => {}
        }
        let prepared = Arc::new(prepared);
        if shareable {
            self.db.plans().put(&prepared);
        }
        Ok(prepared)
    }

    /// Gives a statement its parameters (Bind).
    pub fn bind(&mut self, prepared: &Arc<Prepared>, params: Vec<Datum>) -> Result<Portal, Error> {
        if params.len() != prepared.params.len() {
            let e = Error::new(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {} parameters, but prepared statement requires {}",
                    params.len(),
                    prepared.params.len()
                ),
            );
            return Err(self.fail_with(e));
        }
        Ok(Portal { prepared: prepared.clone(), params: params.into(), state: PortalState::Start })
    }

    /// Runs a portal until it is complete or gave `rows_max` rows (0: all). `last`: nothing but Sync follows, so that
    /// an implicit transaction is committed here, and the statement can be run again after a conflict.
    pub async fn execute(
        &mut self,
        portal: &mut Portal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        let result = self.run_portal(portal, rows_max, last, sink).await;
        if let Err(e) = &result {
            self.failed(e);
            self.claims.settled().await;
        }
        result
    }

    /// Sync: the implicit transaction of a pipeline ends.
    pub async fn sync(&mut self) -> Result<(), Error> {
        if self.status == TxnStatus::Idle && self.txn.is_some() {
            return self.commit().await.map(|_| ());
        }
        Ok(())
    }

    /// Cuts a script into its statements; an error of syntax anywhere means that none runs.
    pub fn script(&mut self, sql: &str) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for range in script::split(sql) {
            let text = &sql[range.clone()];
            let cached = script::is_query(text)
                && self.db.plans().get(text, &[], self.stamp(), self.settings.fingerprint()).is_some();
            let statement = if cached {
                None
            } else {
                let parsed = utility::parse_statement(text).map_err(|mut e| {
                    // The position is one of the statement; the client knows the script.
                    if let Some(p) = e.position.take() {
                        let before = sql[..range.start].chars().count() as u32;
                        e.position = Some(p + before);
                    }
                    e
                });
                match parsed {
                    Ok(s) => Some(Arc::new(s)),
                    Err(e) => return Err(self.fail_with(e)),
                }
            };
            steps.push(Step { text: text.into(), statement });
        }
        Ok(steps)
    }

    /// Runs the next statement of a script; `last`: an implicit transaction is committed before this returns.
    pub async fn step(
        &mut self,
        step: Step,
        last: bool,
        sink: &mut dyn ScriptSink,
    ) -> Result<Outcome, Error> {
        let result = self.run_step(step, last, sink).await;
        if let Err(e) = &result {
            self.failed(e);
            self.claims.settled().await;
        }
        result
    }

    async fn run_step(
        &mut self,
        step: Step,
        last: bool,
        sink: &mut dyn ScriptSink,
    ) -> Result<Outcome, Error> {
        let statement = match step.statement {
            Some(s) => {
                self.check_failed(Some(&s))?;
                if s.needs_catalog() {
                    self.db.settle().await?;
                }
                s
            }
            None => {
                self.db.settle().await?;
                let found = self.db.plans().get(&step.text, &[], self.stamp(), self.settings.fingerprint());
                if let (Some(prepared), true) = (found, self.status != TxnStatus::Failed) {
                    return self.run_prepared(prepared, last, sink).await;
                }
                let s = Arc::new(utility::parse_statement(&step.text)?);
                self.check_failed(Some(&s))?;
                s
            }
        };
        let prepared = self.prepare_statement(step.text, Some(statement), Vec::new())?;
        if !prepared.params.is_empty() {
            return Err(Error::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"));
        }
        self.run_prepared(prepared, last, sink).await
    }

    async fn run_prepared(
        &mut self,
        prepared: Arc<Prepared>,
        last: bool,
        sink: &mut dyn ScriptSink,
    ) -> Result<Outcome, Error> {
        let prepared = self.settle_columns(prepared).await?;
        // EXECUTE and FETCH have the columns of what they run: known only now.
        let columns = match prepared.statement.as_deref() {
            Some(Statement::Execute { name, .. }) => self.named(name)?.columns.clone(),
            Some(Statement::Fetch { name, skip: false, .. }) => self.cursor_columns(name)?,
            _ => prepared.columns.clone(),
        };
        if let Some(columns) = &columns {
            sink.columns(columns)?;
        }
        let mut portal = Portal { prepared, params: Arc::from([]), state: PortalState::Start };
        self.run_portal(&mut portal, 0, last, sink).await
    }

    /// Before a client is told what columns a query has: its tables are locked, so that DDL that we would have to wait
    /// for changes them before, and not under, the running query.
    async fn settle_columns(&mut self, mut prepared: Arc<Prepared>) -> Result<Arc<Prepared>, Error> {
        for _ in 0..COLUMNS_ATTEMPTS_MAX {
            if prepared.plan.is_none() || prepared.columns.is_none() {
                break;
            }
            match self.lock_plan(&prepared).await {
                Err(e) if e.sqlstate == SqlState::FEATURE_NOT_SUPPORTED => {
                    let statement = utility::parse_statement(&prepared.text)?;
                    let text = prepared.text.clone();
                    prepared = self.prepare_statement(text, Some(Arc::new(statement)), Vec::new())?;
                }
                // The run meets it again, and tries again.
                Err(e) if e.is_retryable() => break,
                Err(e) => return Err(e),
                Ok(_) => break,
            }
        }
        Ok(prepared)
    }

    /// Runs a whole script and gives every result's rows as text: for tools and tests.
    pub async fn run_script(&mut self, sql: &str, sink: &mut dyn ScriptSink) -> Result<Vec<Outcome>, Error> {
        let steps = self.script(sql)?;
        let n = steps.len();
        let mut out = Vec::with_capacity(n);
        for (i, step) in steps.into_iter().enumerate() {
            out.push(self.step(step, i + 1 == n, sink).await?);
        }
        Ok(out)
    }
}
