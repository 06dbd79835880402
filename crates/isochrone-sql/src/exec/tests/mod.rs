//! The query engine against a store in memory: statements in, rows as text out.

mod dml;
mod limits;
mod plans;
mod queries;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use isochrone_txn::fake::FakeStore;
use isochrone_txn::kv::{BoxFuture, Isolation, KvStore, KvTxn, TxnOptions};
use isochrone_types::{Datum, Error, EvalContext, Settings, Type, text};
use sqlparser::ast::{self, ColumnOption, TableConstraint};

use super::{Cursor, ExecContext, run_to_sink};
use crate::bind::{ident, types::data_type};
use crate::descriptor::{
    CheckDescriptor, ColumnDescriptor, IndexDescriptor, IndexState, ROW_ID, SequenceDescriptor,
    TableDescriptor,
};
use crate::face::RowSink;
use crate::plan::{Plan, explain, explain_analyze, prepare};
use crate::relation::{CatalogView, Relation, Sequences, SessionFunction};

#[derive(Default)]
struct MapCatalog {
    tables: BTreeMap<String, Arc<TableDescriptor>>,
    sequences: BTreeMap<String, Arc<SequenceDescriptor>>,
}

impl CatalogView for MapCatalog {
    fn version(&self) -> u64 {
        1
    }
    fn relation(&self, _: Option<&str>, name: &str) -> Option<Relation> {
        self.tables.get(name).map(|t| Relation::Table(t.clone()))
    }
    fn sequence(&self, _: Option<&str>, name: &str) -> Option<Arc<SequenceDescriptor>> {
        self.sequences.get(name).cloned()
    }
    fn function(&self, _: &str, _: &[Type]) -> Option<Arc<SessionFunction>> {
        None
    }
}

#[derive(Default)]
struct MapSequences {
    state: Mutex<BTreeMap<u32, (i64, usize)>>,
}

impl Sequences for MapSequences {
    fn reserve<'a>(&'a self, sequence: u32, n: usize) -> BoxFuture<'a, Result<(), Error>> {
        self.state.lock().unwrap().entry(sequence).or_default().1 += n;
        Box::pin(async { Ok(()) })
    }
    fn take(&self, sequence: u32) -> Result<i64, Error> {
        let mut state = self.state.lock().unwrap();
        let (value, reserved) = state.entry(sequence).or_default();
        assert!(*reserved > 0, "a value was taken that was not reserved");
        *reserved -= 1;
        *value += 1;
        Ok(*value)
    }
    fn current(&self, sequence: u32) -> Result<i64, Error> {
        Ok(self.state.lock().unwrap().get(&sequence).map_or(0, |s| s.0))
    }
    fn last(&self) -> Result<i64, Error> {
        Ok(0)
    }
    fn set<'a>(&'a self, sequence: u32, value: i64, _: bool) -> BoxFuture<'a, Result<(), Error>> {
        self.state.lock().unwrap().entry(sequence).or_default().0 = value;
        Box::pin(async { Ok(()) })
    }
}

/// Rows as text.
#[derive(Default)]
struct TextSink {
    rows: Vec<Vec<Datum>>,
}

impl RowSink for TextSink {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        self.rows.push(row.to_vec());
        Ok(())
    }
    fn copy_data(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn copy_out(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }
    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn sent(&self) -> bool {
        false
    }
    fn reset(&mut self) {
        self.rows.clear();
    }
}

pub(super) struct Db {
    store: Arc<dyn KvStore>,
    catalog: MapCatalog,
    sequences: MapSequences,
    settings: Settings,
    next: u32,
}

impl Db {
    fn new() -> Db {
        Db {
            store: Arc::new(FakeStore::new()),
            catalog: MapCatalog::default(),
            sequences: MapSequences::default(),
            settings: Settings::default(),
            next: 100,
        }
    }

    /// CREATE TABLE and CREATE INDEX, as far as tests need them. Other statements run.
    async fn script(sql: &str) -> Db {
        let mut db = Db::new();
        for p in crate::parse::parse(sql).unwrap() {
            match &p.statement {
                ast::Statement::CreateTable(t) => db.create_table(t),
                ast::Statement::CreateIndex(i) => db.create_index(i),
                _ => {
                    let sql = &sql[p.range.clone()];
                    db.run(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
                }
            }
        }
        db
    }

    fn create_table(&mut self, t: &ast::CreateTable) {
        let name = ident(t.name.0[0].as_ident().unwrap());
        let oid = self.next;
        self.next += 1;
        let mut columns = Vec::new();
        let mut primary: Vec<u32> = Vec::new();
        let mut unique: Vec<Vec<u32>> = Vec::new();
        let mut checks = Vec::new();
        for (i, c) in t.columns.iter().enumerate() {
            let id = i as u32 + 1;
            let mut column = ColumnDescriptor {
                id,
                name: ident(&c.name),
                ty: data_type(&c.data_type).unwrap(),
                not_null: false,
                default: None,
                missing: None,
                hidden: false,
            };
            for o in &c.options {
                match &o.option {
                    ColumnOption::NotNull => column.not_null = true,
                    ColumnOption::Default(e) => column.default = Some(e.to_string()),
                    ColumnOption::PrimaryKey(_) => primary.push(id),
                    ColumnOption::Unique(_) => unique.push(vec![id]),
                    ColumnOption::Check(e) => checks.push(CheckDescriptor {
                        name: format!("{name}_{}_check", column.name),
                        expr: e.expr.to_string(),
                    }),
                    _ => {}
                }
            }
            columns.push(column);
        }
        let find = |columns: &[ColumnDescriptor], c: &ast::IndexColumn| {
            let n = c.column.expr.to_string();
            columns.iter().find(|c| c.name == n).unwrap().id
        };
        for c in &t.constraints {
            match c {
                TableConstraint::PrimaryKey(k) => {
                    primary = k.columns.iter().map(|c| find(&columns, c)).collect();
                }
                TableConstraint::Unique(k) => {
                    unique.push(k.columns.iter().map(|c| find(&columns, c)).collect());
                }
                _ => {}
            }
        }
        if primary.is_empty() {
            let id = columns.len() as u32 + 1;
            let sequence = format!("{name}_rowid_seq");
            self.sequence(&sequence);
            columns.push(ColumnDescriptor {
                id,
                name: ROW_ID.into(),
                ty: Type::Int8,
                not_null: true,
                default: Some(format!("nextval('{sequence}')")),
                missing: None,
                hidden: true,
            });
            primary.push(id);
        }
        let index = |id: u32, name: String, columns: Vec<u32>| IndexDescriptor {
            id,
            name,
            unique: true,
            columns: columns.into_iter().map(|c| (c, false)).collect(),
            state: IndexState::Public,
            constraint: true,
        };
        let table = TableDescriptor {
            oid,
            table_id: oid,
            schema: "public".into(),
            name: name.clone(),
            version: 1,
            next_column_id: columns.len() as u32 + 1,
            primary: index(0, format!("{name}_pkey"), primary),
            indexes: unique
                .into_iter()
                .enumerate()
                .map(|(i, c)| {
                    let column = columns.iter().find(|x| x.id == c[0]).unwrap().name.clone();
                    index(i as u32 + 1, format!("{name}_{column}_key"), c)
                })
                .collect(),
            columns,
            checks,
            next_index_id: 100,
            row_estimate: 0,
        };
        self.catalog.tables.insert(name, Arc::new(table));
    }

    fn create_index(&mut self, i: &ast::CreateIndex) {
        let name = ident(i.table_name.0[0].as_ident().unwrap());
        let mut table = (*self.catalog.tables[&name]).clone();
        let columns = i
            .columns
            .iter()
            .map(|c| {
                let n = c.column.expr.to_string();
                let id = table.columns.iter().find(|c| c.name == n).unwrap().id;
                (id, c.column.options.sort == Some(ast::OrderBySort::Desc))
            })
            .collect();
        table.indexes.push(IndexDescriptor {
            id: table.next_index_id,
            name: i.name.as_ref().unwrap().to_string(),
            unique: i.unique,
            columns,
            state: IndexState::Public,
            constraint: false,
        });
        table.next_index_id += 1;
        self.catalog.tables.insert(name, Arc::new(table));
    }

    fn sequence(&mut self, name: &str) {
        let oid = self.next;
        self.next += 1;
        let s = SequenceDescriptor {
            oid,
            schema: "public".into(),
            name: name.into(),
            start: 1,
            increment: 1,
            min: 1,
            max: i64::MAX,
            cache: 1,
            owned_by: None,
        };
        self.catalog.sequences.insert(name.into(), Arc::new(s));
    }

    /// Says how many rows a table has, for the planner.
    fn estimate(&mut self, table: &str, rows: u64) {
        let mut t = (*self.catalog.tables[table]).clone();
        t.row_estimate = rows;
        self.catalog.tables.insert(table.into(), Arc::new(t));
    }

    fn plan_typed(&self, sql: &str, types: &[Option<Type>]) -> Result<Arc<Plan>, Error> {
        let parsed = crate::parse::parse(sql)?;
        prepare(&parsed[0].statement, sql, &self.catalog, types, &self.settings)
    }

    fn plan(&self, sql: &str) -> Result<Arc<Plan>, Error> {
        self.plan_typed(sql, &[])
    }

    fn begin(&self, isolation: Isolation) -> Box<dyn KvTxn> {
        self.store.begin(TxnOptions { isolation, ..TxnOptions::default() })
    }

    /// Runs a plan in a transaction; the answer is its rows as text, or its tag.
    async fn run_in(
        &self,
        txn: &mut dyn KvTxn,
        plan: &Arc<Plan>,
        params: Vec<Datum>,
    ) -> Result<String, Error> {
        txn.begin_statement();
        let session = isochrone_types::SessionInfo::default();
        let random = || 7;
        let clock = || 1_000_000;
        let eval = EvalContext {
            settings: &self.settings,
            session: &session,
            statement_time: 0,
            clock: &clock,
            random: &random,
        };
        let cancel = AtomicBool::new(false);
        let mut sink = TextSink::default();
        let mut context = ExecContext {
            txn,
            store: &self.store,
            catalog: &self.catalog,
            eval: &eval,
            sequences: &self.sequences,
            cancel: &cancel,
        };
        let outcome = run_to_sink(plan, params, &mut context, &mut sink).await?;
        let Some(columns) = plan.columns() else { return Ok(plan.command_tag(outcome.rows)) };
        let mut lines = Vec::new();
        for row in &sink.rows {
            assert_eq!(row.len(), columns.len());
            let cells: Vec<String> =
                row.iter()
                    .zip(columns)
                    .map(|(d, c)| {
                        if d.is_null() { "NULL".to_owned() } else { text::to_text(d, &c.ty, &self.settings) }
                    })
                    .collect();
            lines.push(cells.join("|"));
        }
        Ok(lines.join("\n"))
    }

    async fn run_with(&self, sql: &str, params: Vec<Datum>) -> Result<String, Error> {
        let plan = self.plan(sql)?;
        let mut txn = self.begin(Isolation::Serializable);
        let answer = self.run_in(txn.as_mut(), &plan, params).await?;
        txn.commit().await.map_err(super::kv_error)?;
        Ok(answer)
    }

    async fn run(&self, sql: &str) -> Result<String, Error> {
        self.run_with(sql, Vec::new()).await
    }

    /// The answer, rows sorted.
    async fn sorted(&self, sql: &str) -> String {
        let answer = self.run(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let mut lines: Vec<&str> = answer.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    async fn check(&self, sql: &str, expected: &str) {
        let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        match self.run(sql).await {
            Ok(answer) => {
                assert_eq!(answer.lines().collect::<Vec<_>>(), expected, "{sql}\n{}", self.explain(sql))
            }
            Err(e) => panic!("{sql}: {e:?}"),
        }
    }

    async fn fails(&self, sql: &str, code: &str) -> Error {
        match self.run(sql).await {
            Ok(answer) => panic!("{sql}: should fail with {code}, but answers {answer}"),
            Err(e) => {
                assert_eq!(e.sqlstate.code(), code, "{sql}: {e:?}");
                e
            }
        }
    }

    fn explain(&self, sql: &str) -> String {
        match self.plan(sql) {
            Ok(p) => explain(&p).join("\n"),
            Err(e) => e.to_string(),
        }
    }

    /// Runs a plan a few rows at a time and counts.
    async fn analyzed(&self, sql: &str) -> String {
        let plan = self.plan(sql).unwrap();
        let mut txn = self.begin(Isolation::Serializable);
        let session = isochrone_types::SessionInfo::default();
        let eval = EvalContext {
            settings: &self.settings,
            session: &session,
            statement_time: 0,
            clock: &|| 0,
            random: &|| 7,
        };
        let cancel = AtomicBool::new(false);
        let mut cursor = Cursor::new(plan.clone(), Vec::new());
        cursor.analyze();
        let mut context = ExecContext {
            txn: txn.as_mut(),
            store: &self.store,
            catalog: &self.catalog,
            eval: &eval,
            sequences: &self.sequences,
            cancel: &cancel,
        };
        let mut sink = TextSink::default();
        while !cursor.run_to_sink(&mut context, &mut sink, 3).await.unwrap().complete {}
        explain_analyze(&plan, cursor.stats().unwrap()).join("\n")
    }
}
