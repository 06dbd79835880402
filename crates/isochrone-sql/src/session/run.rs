//! Running a statement: queries through the engine, with retries around them, and everything else by hand.

use std::sync::Arc;

use isochrone_base::{NodeId, ShardId};
use isochrone_types::{Datum, Error, SqlState, Type};
use sqlparser::ast;

use super::engine::{self, Ran};
use super::plans::Prepared;
use super::portal::{Portal, PortalState};
use super::utility::{Copy, CopySource, Discard, Explain, Modes, Name, Statement};
use super::{NAMED_MAX, Session, utility};
use crate::copy::CopyWriter;
use crate::ddl::{self, DdlContext};
use crate::descriptor::TableDescriptor;
use crate::face::{Outcome, OutputColumn, RowSink, TxnStatus};
use crate::settings::isolation_name;

/// Rows that SHOW, EXPLAIN and their like may have.
const SMALL_ROWS_MAX: usize = 100_000;

fn text_column(name: &str) -> OutputColumn {
    OutputColumn { name: name.to_string(), ty: Type::Text, table_oid: 0, attnum: 0 }
}

fn column(name: &str, ty: Type) -> OutputColumn {
    OutputColumn { name: name.to_string(), ty, table_oid: 0, attnum: 0 }
}

fn shard_columns() -> Vec<OutputColumn> {
    vec![
        column("shard", Type::Int8),
        column("start_key", Type::Text),
        column("end_key", Type::Text),
        column("leader", Type::Int4),
        column("replicas", Type::Text),
        column("first_index", Type::Int8),
        column("last_index", Type::Int8),
        column("bytes", Type::Int8),
    ]
}

impl Session {
    /// The columns of a statement that is not for the planner.
    pub(super) fn describe(&self, statement: &Statement) -> Result<Option<Vec<OutputColumn>>, Error> {
        Ok(match statement {
            Statement::Show(name) => {
                let name = crate::settings::Settings::canonical_name(name).unwrap_or(name);
                Some(vec![text_column(name)])
            }
            Statement::ShowAll => {
                Some(vec![text_column("name"), text_column("setting"), text_column("description")])
            }
            Statement::ShowShards(_) => Some(shard_columns()),
            Statement::Explain(_) => Some(vec![text_column("QUERY PLAN")]),
            Statement::Execute { name, .. } => self.prepared.get(name).and_then(|p| p.columns.clone()),
            Statement::Fetch { name, skip: false, .. } => self.cursor_columns(name)?,
            _ => None,
        })
    }

    pub(super) fn named(&self, name: &str) -> Result<Arc<Prepared>, Error> {
        self.prepared.get(name).cloned().ok_or_else(|| {
            Error::new(
                SqlState::INVALID_SQL_STATEMENT_NAME,
                format!("prepared statement \"{name}\" does not exist"),
            )
        })
    }

    /// Runs a portal, whatever it holds.
    pub(super) async fn run_portal(
        &mut self,
        portal: &mut Portal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        let prepared = portal.prepared.clone();
        let Some(statement) = prepared.statement.as_deref() else {
            return Ok(Outcome::Empty);
        };
        self.check_failed(Some(statement))?;
        if let PortalState::Rows(rows, at, tag) = &mut portal.state {
            return give_rows(rows, at, tag, rows_max, sink).await;
        }
        if matches!(portal.state, PortalState::Done) {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "portal has been run to its end",
            ));
        }
        self.cancel.clear();
        self.claims.check()?;
        self.claims.begin_statement();
        self.window_end = None;
        self.db.update_session(self.pid, |s| {
            s.state = "active";
            s.query = prepared.text.clone();
        });
        let result = self.run_guarded(portal, &prepared, statement, rows_max, last, sink).await;
        // Its statement was broken off because its locks are gone.
        let result = if result.is_err() { self.claims.check().and(result) } else { result };
        for message in self.claims.take_warnings() {
            self.warn(SqlState::WARNING, &message);
        }
        let state = match self.status {
            TxnStatus::Idle => "idle",
            TxnStatus::InBlock => "idle in transaction",
            TxnStatus::Failed => "idle in transaction (aborted)",
        };
        self.db.update_session(self.pid, |s| s.state = state);
        result
    }

    async fn run_guarded(
        &mut self,
        portal: &mut Portal,
        prepared: &Arc<Prepared>,
        statement: &Statement,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        if let Statement::Query(_) = statement {
            let fresh = matches!(portal.state, PortalState::Start);
            let first = fresh && self.txn.as_ref().is_none_or(|t| t.statements == 0);
            let mut attempt = 0;
            loop {
                let result = self.run_query(portal, rows_max, sink).await;
                let result = match result {
                    Ok(outcome)
                        if (last || self.ends_with_its_statement())
                            && self.status == TxnStatus::Idle
                            && outcome != Outcome::Suspended =>
                    {
                        self.commit().await.map(|_| outcome)
                    }
                    other => other,
                };
                match result {
                    Err(e) if self.may_retry(&e, attempt, sink.sent(), first) => {
                        sink.reset();
                        portal.state = PortalState::Start;
                        self.before_retry(attempt).await;
                        attempt += 1;
                    }
                    other => return other,
                }
            }
        }
        let first = self.txn.as_ref().is_none_or(|t| t.statements == 0);
        let mut attempt = 0;
        loop {
            let result = self.run_utility(portal, prepared, statement, rows_max, last, sink).await;
            let ends_here = (last || self.ends_with_its_statement())
                && self.status == TxnStatus::Idle
                && !matches!(result, Ok(Outcome::CopyIn { .. }));
            let result = match result {
                Ok(outcome) if ends_here && self.txn.is_some() => self.commit().await.map(|_| outcome),
                other => other,
            };
            match result {
                // COPY and EXPLAIN ANALYZE, too, may meet a conflict before anything was sent.
                Err(e) if retryable(statement) && self.may_retry(&e, attempt, sink.sent(), first) => {
                    sink.reset();
                    portal.state = PortalState::Start;
                    self.before_retry(attempt).await;
                    attempt += 1;
                }
                Ok(outcome) => {
                    if let Some(txn) = &mut self.txn {
                        txn.statements += 1;
                    }
                    return Ok(outcome);
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn run_utility(
        &mut self,
        portal: &mut Portal,
        prepared: &Arc<Prepared>,
        statement: &Statement,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        let tag = |s: &str| Ok(Outcome::Complete(s.to_string()));
        match statement {
            Statement::Query(_) => Err(Error::internal("queries do not come here")),
            Statement::Ddl(tree) => self.run_ddl(tree, last).await.map(Outcome::Complete),
            Statement::Begin(modes, word) => {
                self.begin_block(*modes)?;
                tag(word)
            }
            Statement::Commit { chain } => {
                let modes = self.chain_modes(*chain)?;
                if self.status == TxnStatus::Idle {
                    self.warn(SqlState::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress");
                }
                let word = self.commit().await?;
                self.begin_chained(modes)?;
                tag(word)
            }
            Statement::Rollback { chain } => {
                let modes = self.chain_modes(*chain)?;
                if self.status == TxnStatus::Idle {
                    self.warn(SqlState::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress");
                }
                self.rollback();
                self.claims.settled().await;
                self.begin_chained(modes)?;
                tag("ROLLBACK")
            }
            Statement::Savepoint(name) => {
                self.savepoint(name)?;
                tag("SAVEPOINT")
            }
            Statement::Release(name) => {
                self.release(name)?;
                tag("RELEASE")
            }
            Statement::RollbackTo(name) => {
                self.rollback_to(name)?;
                self.claims.settled().await;
                tag("ROLLBACK")
            }
            Statement::SetTransaction(modes) => {
                if self.status == TxnStatus::Idle {
                    self.warn(
                        SqlState::NO_ACTIVE_SQL_TRANSACTION,
                        "SET TRANSACTION can only be used in transaction blocks",
                    );
                } else {
                    self.set_modes(*modes)?;
                }
                tag("SET")
            }
            Statement::SetCharacteristics(modes) => {
                if let Some(level) = modes.isolation {
                    let name = isolation_name(level);
                    self.settings.set("default_transaction_isolation", Some(name), false)?;
                }
                if modes.as_of.is_some() {
                    return Err(Error::unsupported("AS OF SYSTEM TIME for a whole session"));
                }
                if let Some(deferrable) = modes.deferrable {
                    let v = if deferrable { "on" } else { "off" };
                    self.settings.set("default_transaction_deferrable", Some(v), false)?;
                }
                if let Some(read_only) = modes.read_only {
                    let v = if read_only { "on" } else { "off" };
                    self.settings.set("default_transaction_read_only", Some(v), false)?;
                }
                self.after_set();
                tag("SET")
            }
            Statement::Set { name, value, local } => {
                self.set(name, value.as_deref(), *local)?;
                tag("SET")
            }
            Statement::Reset(name) => {
                match name {
                    None => self.settings.reset_all(),
                    Some(name) => self.settings.set(name, None, false)?,
                }
                self.after_set();
                tag("RESET")
            }
            Statement::AlterDatabase { name, change } => {
                if name != self.db.name() {
                    return Err(Error::new(
                        SqlState::INVALID_CATALOG_NAME,
                        format!("database \"{name}\" does not exist"),
                    ));
                }
                crate::catalog::defaults::change(&mut *self.transaction().kv, change).await?;
                tag("ALTER DATABASE")
            }
            Statement::Show(name) => {
                let rows = vec![vec![Datum::from(self.show(name)?)]];
                self.start_rows(portal, rows, "SHOW", rows_max, sink).await
            }
            Statement::ShowAll => {
                let rows = self
                    .settings
                    .all()
                    .into_iter()
                    .map(|(n, v)| vec![n.into(), v.into(), "".into()])
                    .collect();
                self.start_rows(portal, rows, "SHOW", rows_max, sink).await
            }
            Statement::ShowShards(name) => {
                let rows = self.shards_of(name).await?;
                self.start_rows(portal, rows, "SHOW SHARDS", rows_max, sink).await
            }
            Statement::SplitAt(name, rows) => {
                self.split_at(name, rows).await?;
                tag("ALTER TABLE")
            }
            Statement::TransferLeader { shard, to } => {
                self.transfer_leader(*shard, *to).await?;
                tag("ALTER SHARD")
            }
            Statement::Prepare { name, types, body } => {
                self.prepare_named(name, types, body)?;
                tag("PREPARE")
            }
            Statement::Execute { name, args } => {
                let prepared = self.named(name)?;
                let params = self.arguments(&prepared, args).await?;
                let mut inner = self.bind_quietly(prepared, params)?;
                let outcome = Box::pin(self.run_inner(&mut inner, rows_max, last, sink)).await?;
                if outcome == Outcome::Suspended {
                    portal.state = inner.state;
                }
                Ok(outcome)
            }
            Statement::Deallocate(name) => match name {
                None => {
                    self.prepared.clear();
                    tag("DEALLOCATE ALL")
                }
                Some(name) => {
                    self.named(name)?;
                    self.prepared.remove(name);
                    tag("DEALLOCATE")
                }
            },
            Statement::Discard(what) => {
                let tag = self.discard(*what)?;
                self.claims.settled().await;
                Ok(Outcome::Complete(tag.to_string()))
            }
            Statement::Explain(explain) => {
                let rows = self.explain(explain, last).await?;
                self.start_rows(portal, rows, "EXPLAIN", rows_max, sink).await
            }
            Statement::Vacuum { analyze, tables } => {
                if self.status != TxnStatus::Idle || !last {
                    return Err(Error::new(
                        SqlState::ACTIVE_SQL_TRANSACTION,
                        "VACUUM cannot run inside a transaction block",
                    ));
                }
                self.check_tables(tables)?;
                if *analyze {
                    self.analyze(tables).await?;
                }
                tag("VACUUM")
            }
            Statement::Analyze(tables) => {
                self.check_tables(tables)?;
                if self.status == TxnStatus::Idle && last {
                    self.analyze(tables).await?;
                }
                tag("ANALYZE")
            }
            Statement::Copy(copy) if copy.from => self.copy_from(copy, last).await,
            Statement::Copy(copy) => self.copy_to(copy, sink).await,
            Statement::Declare { name, hold, body } => {
                self.declare(name, *hold, body).await?;
                tag("DECLARE CURSOR")
            }
            Statement::Fetch { name, fetch, skip } => {
                let rows = Box::pin(self.fetch(name, *fetch, *skip, sink)).await?;
                Ok(Outcome::Complete(format!("{} {rows}", if *skip { "MOVE" } else { "FETCH" })))
            }
            Statement::Close(name) => {
                self.close(name.as_deref())?;
                tag(if name.is_some() { "CLOSE CURSOR" } else { "CLOSE CURSOR ALL" })
            }
            Statement::Accepted(word) => {
                let _ = prepared;
                tag(word)
            }
        }
    }

    fn bind_quietly(&mut self, prepared: Arc<Prepared>, params: Vec<Datum>) -> Result<Portal, Error> {
        Ok(Portal { prepared, params: params.into(), state: PortalState::Start })
    }

    /// What EXECUTE runs; its retry and commit are those of the EXECUTE.
    async fn run_inner(
        &mut self,
        portal: &mut Portal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        let prepared = portal.prepared.clone();
        match prepared.statement.as_deref() {
            None => Ok(Outcome::Empty),
            Some(Statement::Query(_)) => self.run_query(portal, rows_max, sink).await,
            Some(statement) => self.run_utility(portal, &prepared, statement, rows_max, last, sink).await,
        }
    }

    fn chain_modes(&self, chain: bool) -> Result<Option<Modes>, Error> {
        if !chain {
            return Ok(None);
        }
        if self.status == TxnStatus::Idle {
            return Err(Error::new(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                "COMMIT AND CHAIN can only be used in transaction blocks",
            ));
        }
        Ok(Some(Modes {
            isolation: Some(self.isolation()),
            read_only: Some(self.read_only()),
            ..Modes::default()
        }))
    }

    fn begin_chained(&mut self, modes: Option<Modes>) -> Result<(), Error> {
        match modes {
            Some(modes) => self.begin_block(modes),
            None => Ok(()),
        }
    }

    pub(super) fn show(&self, name: &str) -> Result<String, Error> {
        if name.eq_ignore_ascii_case("transaction_isolation") {
            return Ok(isolation_name(self.isolation()).to_string());
        }
        if name.eq_ignore_ascii_case("transaction_read_only") {
            return Ok(if self.read_only() { "on" } else { "off" }.to_string());
        }
        self.settings.get(name)
    }

    fn after_set(&mut self) {
        if self.status == TxnStatus::Idle && self.txn.is_none() {
            self.settings.commit();
        }
        self.settings_changed();
    }

    fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), Error> {
        let lower = name.to_ascii_lowercase();
        if lower == "transaction_isolation" || lower == "transaction_read_only" {
            let mut modes = Modes::default();
            if lower == "transaction_isolation" {
                let level = value.and_then(crate::settings::parse_isolation);
                modes.isolation = Some(level.unwrap_or(self.settings.default_isolation()));
            } else {
                modes.read_only = Some(value.and_then(crate::settings::parse_bool).unwrap_or(false));
            }
            if self.status != TxnStatus::Idle {
                return self.set_modes(modes);
            }
            return Ok(());
        }
        if local && self.status == TxnStatus::Idle {
            self.warn(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                "SET LOCAL can only be used in transaction blocks",
            );
            return Ok(());
        }
        self.settings.set(name, value, local)?;
        self.after_set();
        Ok(())
    }

    fn discard(&mut self, what: Discard) -> Result<&'static str, Error> {
        match what {
            Discard::All => {
                if self.status != TxnStatus::Idle {
                    return Err(Error::new(
                        SqlState::ACTIVE_SQL_TRANSACTION,
                        "DISCARD ALL cannot run inside a transaction block",
                    ));
                }
                self.cursors.clear();
                self.prepared.clear();
                self.sequences.discard();
                self.claims.unlock_all();
                self.settings.reset_all();
                self.after_set();
                Ok("DISCARD ALL")
            }
            Discard::Plans => Ok("DISCARD PLANS"),
            Discard::Sequences => {
                self.sequences.discard();
                Ok("DISCARD SEQUENCES")
            }
            Discard::Temp => Ok("DISCARD TEMP"),
        }
    }

    fn prepare_named(&mut self, name: &str, types: &[Type], body: &str) -> Result<(), Error> {
        if self.prepared.contains_key(name) {
            return Err(Error::new(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            ));
        }
        if self.prepared.len() >= NAMED_MAX {
            return Err(Error::new(SqlState::INSUFFICIENT_RESOURCES, "too many prepared statements"));
        }
        let statement = utility::parse_statement(body)?;
        if !matches!(statement, Statement::Query(_)) {
            return Err(Error::syntax("PREPARE needs a query, INSERT, UPDATE or DELETE"));
        }
        let declared = types.iter().map(|t| Some(*t)).collect();
        let prepared = self.prepare_statement(body.into(), Some(Arc::new(statement)), declared)?;
        self.prepared.insert(name.to_string(), prepared);
        Ok(())
    }

    /// The values of EXECUTE's arguments.
    async fn arguments(&mut self, prepared: &Prepared, args: &[String]) -> Result<Vec<Datum>, Error> {
        if args.len() != prepared.params.len() {
            return Err(Error::syntax("wrong number of parameters for prepared statement").with_detail(
                format!("Expected {} parameters but got {}.", prepared.params.len(), args.len()),
            ));
        }
        if args.is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<String> = args
            .iter()
            .zip(&prepared.params)
            .map(|(a, ty)| format!("CAST(({a}) AS {})", ty.sql_name()))
            .collect();
        let rows = self.query_rows(&format!("SELECT {}", list.join(", "))).await?;
        rows.into_iter().next().ok_or_else(|| Error::internal("SELECT without FROM gave no row"))
    }

    /// Runs a query of our own in the session's transaction and keeps its rows.
    pub(super) async fn query_rows(&mut self, sql: &str) -> Result<Vec<Vec<Datum>>, Error> {
        let statement = utility::parse_statement(sql)?;
        let prepared = self.prepare_statement(sql.into(), Some(Arc::new(statement)), Vec::new())?;
        let mut portal = Portal { prepared, params: Arc::from([]), state: PortalState::Start };
        let mut rows = super::cursor::Rows { max: SMALL_ROWS_MAX, ..Default::default() };
        Box::pin(self.run_query(&mut portal, 0, &mut rows)).await?;
        Ok(rows.rows)
    }

    async fn start_rows(
        &mut self,
        portal: &mut Portal,
        rows: Vec<Vec<Datum>>,
        tag: &str,
        rows_max: usize,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        portal.state = PortalState::Rows(rows, 0, tag.to_string());
        let PortalState::Rows(rows, at, tag) = &mut portal.state else {
            return Err(Error::internal("the state was just set"));
        };
        give_rows(rows, at, tag, rows_max, sink).await
    }

    /// The table of that name in this session's catalog.
    pub(super) fn table_named(&self, name: &Name) -> Result<Arc<TableDescriptor>, Error> {
        if let Some(schema) = &name.schema {
            ddl::check_schema(schema)?;
        }
        let snapshot = self.snapshot();
        match snapshot.table(&name.name) {
            Some(entry) => Ok(entry.table.clone()),
            None if snapshot.object(&name.name).is_some() => {
                Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", name.name)))
            }
            None => Err(Error::new(
                SqlState::UNDEFINED_TABLE,
                format!("relation \"{}\" does not exist", name.name),
            )),
        }
    }

    fn check_tables(&self, tables: &[Name]) -> Result<(), Error> {
        tables
            .iter()
            .filter(|t| t.schema.as_deref() != Some("pg_catalog"))
            .try_for_each(|t| self.table_named(t).map(|_| ()))
    }

    /// DDL in the session's transaction; an index outside of a block is built online.
    async fn run_ddl(&mut self, tree: &ast::Statement, last: bool) -> Result<String, Error> {
        if let ast::Statement::CreateTable(create) = tree
            && create.query.is_some()
        {
            return self.create_table_as(create).await;
        }
        if let ast::Statement::CreateIndex(create) = tree
            && last
            && self.status == TxnStatus::Idle
            && self.txn.is_none()
        {
            return self.create_index_online(create).await;
        }
        self.with_ddl(tree, Job::Statement(tree)).await.map(Made::tag)
    }

    /// Gives a piece of DDL what it works on.
    async fn with_ddl(&mut self, tree: &ast::Statement, job: Job<'_>) -> Result<Made, Error> {
        let lock_wait = self.table_lock_wait();
        let path = self.settings.path().clone();
        self.transaction();
        let mut notices = Vec::new();
        let (db, shared, eval) = (self.db.clone(), self.shared.clone(), self.settings.eval().clone());
        let check_db = db.clone();
        let check_eval = eval.clone();
        let check_shared = shared.clone();
        let check = move |catalog: &Arc<crate::catalog::CatalogSnapshot>, sql: &str| {
            let view = crate::catalog::SessionView::new(
                check_db.clone(),
                catalog.clone(),
                path.clone(),
                check_shared.clone(),
            );
            engine::check(sql, &view, &check_eval)
        };
        let query = engine::Internal {
            db: db.clone(),
            path: self.settings.path().clone(),
            shared,
            info: self.info.clone(),
            sequences: self.sequences.clone(),
            cancel: self.cancel.clone(),
        };
        let txn = self.txn.as_mut().expect("it was just begun");
        if txn.read_only {
            let word = ddl::unsupported(tree).message.replace(" is not supported", "");
            return Err(Error::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                format!("cannot execute {word} in a read-only transaction"),
            ));
        }
        if txn.isolation == isochrone_txn::kv::Isolation::ReadCommitted {
            txn.kv.begin_statement();
        }
        let mut ctx = DdlContext {
            db: &db,
            txn: &mut *txn.kv,
            state: &mut txn.ddl,
            owner: txn.owner,
            locked: &mut txn.locked,
            lock_wait,
            notices: &mut notices,
            check: &check,
            settings: &eval,
            query: &query,
        };
        let result = job.run(&mut ctx).await;
        self.notices.extend(notices);
        self.view = None;
        result
    }

    async fn create_table_as(&mut self, create: &ast::CreateTable) -> Result<String, Error> {
        let Some(query) = &create.query else { return Err(Error::internal("there is a query")) };
        let source = query.to_string();
        let statement = utility::parse_statement(&source)?;
        let prepared =
            self.prepare_statement(source.as_str().into(), Some(Arc::new(statement)), Vec::new())?;
        let columns = prepared
            .columns
            .as_ref()
            .ok_or_else(|| Error::syntax("CREATE TABLE AS needs a query"))?
            .iter()
            .map(|c| (c.name.clone(), c.ty))
            .collect();
        let tree = ast::Statement::CreateTable(create.clone());
        let made = self.with_ddl(&tree, Job::CreateAs(create, columns)).await?.is_made();
        let no_data = create.with_data.as_ref().is_some_and(|w| !w.data);
        if !made || no_data {
            return Ok("CREATE TABLE AS".to_string());
        }
        let name = ddl::object_name(&create.name)?.replace('"', "\"\"");
        let insert = format!("INSERT INTO public.\"{name}\" {source}");
        let statement = utility::parse_statement(&insert)?;
        let prepared =
            self.prepare_statement(insert.as_str().into(), Some(Arc::new(statement)), Vec::new())?;
        let mut portal = Portal { prepared, params: Arc::from([]), state: PortalState::Start };
        let mut rows = super::cursor::Rows { max: 0, ..Default::default() };
        match Box::pin(self.run_query(&mut portal, 0, &mut rows)).await? {
            Outcome::Complete(tag) => Ok(format!("SELECT {}", tag.rsplit(' ').next().unwrap_or("0"))),
            _ => Err(Error::internal("an INSERT did not complete")),
        }
    }

    /// One transaction of its own for a step of an online statement.
    async fn ddl_step(&mut self, tree: &ast::Statement, job: Job<'_>) -> Result<Made, Error> {
        let mut attempt = 0;
        loop {
            let result = self.with_ddl(tree, job.clone()).await;
            let result = match result {
                Ok(value) => self.commit().await.map(|_| value),
                Err(e) => Err(e),
            };
            match result {
                Err(e) if self.may_retry(&e, attempt, false, true) => {
                    self.before_retry(attempt).await;
                    attempt += 1;
                }
                Err(e) => {
                    self.rollback();
                    return Err(e);
                }
                Ok(value) => return Ok(value),
            }
        }
    }

    async fn create_index_online(&mut self, create: &ast::CreateIndex) -> Result<String, Error> {
        let tree = ast::Statement::CreateIndex(create.clone());
        let tag = "CREATE INDEX".to_string();
        let Made::Index(Some(online)) = self.ddl_step(&tree, Job::StartIndex(create)).await? else {
            return Ok(tag);
        };
        let eval = self.settings.eval().clone();
        let built = self.guarded(ddl::build_index_online(&self.db.clone(), &online, &eval)).await;
        let built = match built {
            Ok(()) => self.ddl_step(&tree, Job::FinishIndex(&online)).await.map(|_| ()),
            Err(e) => Err(e),
        };
        if let Err(e) = built {
            let gone = self.ddl_step(&tree, Job::AbandonIndex(&online)).await;
            if let Err(gone) = gone {
                tracing::warn!(error = %gone, "an index that could not be built was not removed");
            }
            return Err(e);
        }
        Ok(tag)
    }

    /// A future that can be broken off by cancel and `statement_timeout`.
    pub(super) fn guarded<R, F: Future<Output = Result<R, Error>>>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<R, Error>> + use<R, F> {
        let timeout = self.settings.statement_timeout().map(|d| self.db.timer().sleep(d));
        let cancel = self.cancel.clone();
        async move { engine::guarded(&cancel, timeout, work).await }
    }

    async fn explain(&mut self, explain: &Explain, last: bool) -> Result<Vec<Vec<Datum>>, Error> {
        let statement = utility::parse_statement(&explain.body)?;
        let Statement::Query(_) = &statement else {
            return Err(Error::unsupported("EXPLAIN of this statement"));
        };
        let prepared =
            self.prepare_statement(explain.body.as_str().into(), Some(Arc::new(statement)), Vec::new())?;
        if !prepared.params.is_empty() {
            return Err(Error::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"));
        }
        let mut lines = Box::pin(self.explain_plan(&prepared, explain)).await?;
        // Where COMMIT waits for the clock (R24), it belongs to what the statement costs: it comes before the answer.
        let waits = self.txn.as_ref().and_then(|t| t.waits.clone());
        if let Some(waits) = waits.filter(|_| explain.analyze && last && self.status == TxnStatus::Idle) {
            self.commit().await?;
            lines.push(format!("Commit Wait: {:.3} ms", waits.commit_us() as f64 / 1e3));
        }
        Ok(lines.iter().map(|l| vec![Datum::text(l)]).collect())
    }

    async fn shards_of(&mut self, name: &Name) -> Result<Vec<Vec<Datum>>, Error> {
        let table = self.table_named(name)?;
        let range = isochrone_base::keyspace::table_range(table.table_id);
        let shards = self.db.store().shards(range).await.map_err(super::kv_error)?;
        let snapshot = self.snapshot();
        let show = |key: &[u8]| crate::pg_catalog::keys::show(key, &snapshot, self.settings.eval());
        Ok(shards
            .iter()
            .map(|s| {
                let replicas: Vec<String> = s.replicas.iter().map(|r| r.to_string()).collect();
                vec![
                    Datum::Int8(s.shard.0 as i64),
                    show(&s.range.start).into(),
                    if s.range.end.is_empty() { Datum::text("/max") } else { show(&s.range.end).into() },
                    s.leader.map_or(Datum::Null, |n| Datum::Int4(n.0 as i32)),
                    format!("{{{}}}", replicas.join(",")).into(),
                    Datum::Int8(s.first_index as i64),
                    Datum::Int8(s.last_index as i64),
                    Datum::Int8(s.bytes as i64),
                ]
            })
            .collect())
    }

    /// Returns when the other node leads. Not part of the transaction, as SPLIT AT.
    async fn transfer_leader(&mut self, shard: ShardId, to: NodeId) -> Result<(), Error> {
        let store = self.db.store().clone();
        let shards = store.shards(isochrone_base::KeyRange::all()).await.map_err(super::kv_error)?;
        let Some(found) = shards.iter().find(|s| s.shard == shard) else {
            return Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("shard {shard} does not exist")));
        };
        if !found.replicas.contains(&to) {
            let missing = format!("node {to} has no replica of shard {shard}");
            return Err(Error::new(SqlState::UNDEFINED_OBJECT, missing));
        }
        if found.leader == Some(to) {
            return Ok(());
        }
        self.guarded(async move { store.transfer_leader(shard, to).await.map_err(super::kv_error) }).await
    }

    async fn split_at(&mut self, name: &Name, rows: &[Vec<String>]) -> Result<(), Error> {
        let table = self.table_named(name)?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let columns: Vec<_> = table
                .primary
                .columns
                .iter()
                .filter_map(|(id, desc)| table.position(*id).map(|at| (&table.columns[at], *desc)))
                .collect();
            if row.len() > columns.len() {
                return Err(Error::syntax(format!(
                    "SPLIT AT has {} values, but the primary key of \"{}\" has {} columns",
                    row.len(),
                    table.name,
                    columns.len()
                )));
            }
            let list: Vec<String> = row
                .iter()
                .zip(&columns)
                .map(|(v, (c, _))| format!("CAST(({v}) AS {})", c.ty.sql_name()))
                .collect();
            let values = self.query_rows(&format!("SELECT {}", list.join(", "))).await?;
            let values = values.into_iter().next().ok_or_else(|| Error::internal("no row"))?;
            let mut key = isochrone_base::keyspace::index_prefix(table.table_id, 0);
            for (value, (column, descending)) in values.iter().zip(&columns) {
                if value.is_null() {
                    return Err(Error::new(SqlState::NULL_VALUE_NOT_ALLOWED, "SPLIT AT takes no NULL"));
                }
                isochrone_types::key::encode_key(value, &column.ty, *descending, &mut key)?;
            }
            keys.push(key);
        }
        self.db.store().split_at(keys).await.map_err(super::kv_error)
    }

    /// ANALYZE: counts rows, in the transaction-free way of a background job, and keeps the estimate.
    async fn analyze(&mut self, names: &[Name]) -> Result<(), Error> {
        let tables: Vec<Arc<TableDescriptor>> = if names.is_empty() {
            self.snapshot().tables().cloned().collect()
        } else {
            names
                .iter()
                .filter(|n| n.schema.as_deref() != Some("pg_catalog"))
                .map(|n| self.table_named(n))
                .collect::<Result<_, _>>()?
        };
        for table in tables {
            let db = self.db.clone();
            let rows = self.guarded(ddl::estimate_rows(&db, &table)).await?;
            if rows.abs_diff(table.row_estimate) * 10 <= table.row_estimate {
                continue;
            }
            let tree = ast::Statement::Analyze(ast::Analyze {
                table_name: None,
                partitions: None,
                for_columns: false,
                columns: Vec::new(),
                cache_metadata: false,
                noscan: false,
                compute_statistics: false,
                has_table_keyword: false,
            });
            let name = table.name.clone();
            self.ddl_step(&tree, Job::RowEstimate(&name, rows)).await?;
        }
        Ok(())
    }

    /// COPY TO STDOUT.
    async fn copy_to(&mut self, copy: &Copy, sink: &mut dyn RowSink) -> Result<Outcome, Error> {
        let sql = match &copy.source {
            CopySource::Query(text) => text.clone(),
            CopySource::Table(name, columns) => {
                let table = self.table_named(name)?;
                let quote = |n: &str| format!("\"{}\"", n.replace('"', "\"\""));
                let list: Vec<String> = if columns.is_empty() {
                    table.columns.iter().filter(|c| !c.hidden).map(|c| quote(&c.name)).collect()
                } else {
                    columns.iter().map(|c| quote(c)).collect()
                };
                format!("SELECT {} FROM public.{}", list.join(", "), quote(&table.name))
            }
        };
        let statement = utility::parse_statement(&sql)?;
        if !matches!(statement, Statement::Query(_)) {
            return Err(Error::syntax("COPY needs a query"));
        }
        let prepared = self.prepare_statement(sql.as_str().into(), Some(Arc::new(statement)), Vec::new())?;
        let columns =
            prepared.columns.as_ref().ok_or_else(|| Error::unsupported("COPY of a query without rows"))?;
        let types: Vec<Type> = columns.iter().map(|c| c.ty).collect();
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        sink.copy_out(types.len())?;
        let mut writer = CopyWriter::new(copy.options.clone(), types);
        let mut out = Vec::new();
        writer.header(&names, &mut out);
        if !out.is_empty() {
            sink.copy_data(&out)?;
            out.clear();
        }
        let mut portal =
            Portal { prepared: prepared.clone(), params: Arc::from([]), state: PortalState::Start };
        let settings = self.settings.eval().clone();
        let mut lines = Lines { writer, settings, out, rows: 0, sink };
        Box::pin(self.run_query(&mut portal, 0, &mut lines)).await?;
        let rows = lines.rows;
        lines.flush()?;
        Ok(Outcome::Complete(format!("COPY {rows}")))
    }
}

/// A piece of DDL; closures over a context of many lifetimes would make futures that cannot be sent to other threads.
#[derive(Clone)]
enum Job<'a> {
    Statement(&'a ast::Statement),
    CreateAs(&'a ast::CreateTable, Vec<(String, Type)>),
    StartIndex(&'a ast::CreateIndex),
    FinishIndex(&'a ddl::OnlineIndex),
    AbandonIndex(&'a ddl::OnlineIndex),
    RowEstimate(&'a str, u64),
}

/// What a [`Job`] gives.
enum Made {
    Tag(String),
    Table(bool),
    Index(Option<ddl::OnlineIndex>),
    Nothing,
}

impl Job<'_> {
    async fn run(self, ctx: &mut DdlContext<'_>) -> Result<Made, Error> {
        Ok(match self {
            Job::Statement(tree) => Made::Tag(ddl::run(ctx, tree).await?),
            Job::CreateAs(create, columns) => Made::Table(ddl::create_as(ctx, create, columns).await?),
            Job::StartIndex(create) => Made::Index(ddl::start_index(ctx, create).await?),
            Job::FinishIndex(online) => {
                ddl::finish_index(ctx, online).await?;
                Made::Nothing
            }
            Job::AbandonIndex(online) => {
                ddl::abandon_index(ctx, online).await?;
                Made::Nothing
            }
            Job::RowEstimate(name, rows) => {
                ddl::set_row_estimate(ctx, name, rows).await?;
                Made::Nothing
            }
        })
    }
}

impl Made {
    fn tag(self) -> String {
        match self {
            Made::Tag(tag) => tag,
            _ => String::new(),
        }
    }

    fn is_made(&self) -> bool {
        matches!(self, Made::Table(true))
    }
}

/// May this statement be run again after a conflict? Not when it steers transactions.
fn retryable(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Ddl(_)
            | Statement::Copy(_)
            | Statement::Explain(_)
            | Statement::Execute { .. }
            | Statement::SplitAt(..)
    )
}

async fn give_rows(
    rows: &[Vec<Datum>],
    at: &mut usize,
    tag: &str,
    rows_max: usize,
    sink: &mut dyn RowSink,
) -> Result<Outcome, Error> {
    let mut given = 0;
    while *at < rows.len() {
        if rows_max > 0 && given == rows_max {
            return Ok(Outcome::Suspended);
        }
        sink.row(&rows[*at])?;
        *at += 1;
        given += 1;
        if given % 1_024 == 0 {
            sink.ready().await?;
        }
    }
    let tag = if tag.is_empty() { format!("SELECT {given}") } else { tag.to_string() };
    Ok(Outcome::Complete(tag))
}

/// Turns rows into COPY lines on their way.
struct Lines<'a> {
    writer: CopyWriter,
    settings: isochrone_types::Settings,
    out: Vec<u8>,
    rows: u64,
    sink: &'a mut dyn RowSink,
}

/// Bytes of lines given to the client at once.
const COPY_CHUNK_BYTES: usize = 32 << 10;

impl Lines<'_> {
    fn flush(&mut self) -> Result<(), Error> {
        if !self.out.is_empty() {
            self.sink.copy_data(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}

impl RowSink for Lines<'_> {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        self.writer.row(row, &self.settings, &mut self.out);
        self.rows += 1;
        if self.out.len() >= COPY_CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn copy_data(&mut self, _: &[u8]) -> Result<(), Error> {
        Err(Error::internal("COPY within COPY"))
    }

    fn copy_out(&mut self, _: usize) -> Result<(), Error> {
        Err(Error::internal("COPY within COPY"))
    }

    fn ready<'a>(&'a mut self) -> isochrone_txn::kv::BoxFuture<'a, Result<(), Error>> {
        self.sink.ready()
    }

    fn sent(&self) -> bool {
        self.sink.sent()
    }

    fn reset(&mut self) {
        self.out.clear();
        self.rows = 0;
        self.sink.reset();
    }
}

/// How a query of the engine ended, for [`Session::run_query`].
pub(super) fn outcome(ran: Ran) -> Outcome {
    match ran {
        Ran::Complete(tag) => Outcome::Complete(tag),
        Ran::Suspended => Outcome::Suspended,
    }
}
