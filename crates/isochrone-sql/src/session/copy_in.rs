//! COPY FROM STDIN: data as the client sends it, rows into the table.
//!
//! Rows whose missing columns are constants, NULL or sequence values go through a [`Loader`]; a table with CHECK
//! constraints or other defaults takes them one by one through an INSERT's plan.

use std::sync::Arc;

use isochrone_types::{Datum, Error, EvalContext, SqlState};

use super::engine::Planned;
use super::utility::{self, Copy, CopySource};
use super::{Session, cursor};
use crate::copy::{CopyReader, Fields, check_count, check_header};
use crate::ddl::{Loader, Target};
use crate::descriptor::{ColumnDescriptor, TableDescriptor};
use crate::exec::{ExecContext, run_to_sink};
use crate::face::{Outcome, TxnStatus};
use crate::relation::{CatalogView, Sequences};

/// Where a column that COPY does not name gets its value.
enum Fill {
    Constant(Datum),
    Sequence(u32),
}

enum Way {
    Load { loader: Box<Loader>, fill: Vec<(usize, Fill)> },
    Insert(Arc<Planned>),
}

/// A COPY FROM STDIN that takes data.
pub struct CopyIn {
    table: Arc<TableDescriptor>,
    /// Positions of the columns that the data has.
    columns: Vec<usize>,
    reader: CopyReader,
    fields: Fields,
    header: Option<bool>,
    way: Way,
    rows: u64,
    last: bool,
}

fn not_null(table: &TableDescriptor, column: &ColumnDescriptor, line: u64) -> Error {
    Error::new(
        SqlState::NOT_NULL_VIOLATION,
        format!(
            "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
            column.name, table.name
        ),
    )
    .with_detail(format!("COPY {}, line {line}", table.name))
    .with_table(table.schema.clone(), table.name.clone())
    .with_column(column.name.clone())
}

impl Session {
    pub(super) async fn copy_from(&mut self, copy: &Copy, last: bool) -> Result<Outcome, Error> {
        let CopySource::Table(name, names) = &copy.source else {
            return Err(Error::syntax("a query cannot be copied into"));
        };
        let table = self.table_named(name)?;
        let quote = |n: &str| format!("\"{}\"", n.replace('"', "\"\""));
        let names: Vec<String> = if names.is_empty() {
            table.columns.iter().filter(|c| !c.hidden).map(|c| c.name.clone()).collect()
        } else {
            names.clone()
        };
        for (i, n) in names.iter().enumerate() {
            if names[..i].contains(n) {
                return Err(Error::new(
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{n}\" specified more than once"),
                ));
            }
        }
        // The INSERT that this COPY means: names are checked, tables locked, the transaction begun as for one.
        let list: Vec<String> = names.iter().map(|n| quote(n)).collect();
        let marks: Vec<String> = (1..=names.len()).map(|i| format!("${i}")).collect();
        let sql = if names.is_empty() {
            format!("INSERT INTO public.{} DEFAULT VALUES", quote(&table.name))
        } else {
            format!(
                "INSERT INTO public.{} ({}) VALUES ({})",
                quote(&table.name),
                list.join(", "),
                marks.join(", ")
            )
        };
        let statement = utility::parse_statement(&sql)?;
        let prepared = self.prepare_statement(sql.as_str().into(), Some(Arc::new(statement)), Vec::new())?;
        let planned = self.lock_plan(&prepared).await?;
        let dirty = self.transaction().ddl.dirty.contains(&table.oid);
        self.admit(&planned, true).await?;
        let table = self.table_named(name)?;
        let columns: Vec<usize> = names.iter().filter_map(|n| table.position_of(n)).collect();
        let fill = self.fill(&table, &columns).await?;
        let settings = self.settings.eval().clone();
        let ddl = &mut self.transaction().ddl;
        let fresh = ddl.fresh.contains(&table.table_id);
        let loaded = ddl.loaded.contains(&table.table_id);
        let way = match fill {
            Some(fill) => {
                if !dirty {
                    ddl.dirty.remove(&table.oid);
                }
                let target = if fresh && !dirty { Target::Fresh { empty: !loaded } } else { Target::Visible };
                let mut loader = Box::new(Loader::new(&table, target, &settings)?);
                if loaded && !dirty {
                    loader.go_bulk();
                }
                Way::Load { loader, fill }
            }
            None if loaded => {
                return Err(Error::unsupported(
                    "COPY into a table with such constraints or defaults that the same transaction has loaded",
                ));
            }
            None => Way::Insert(planned),
        };
        let n = columns.len();
        self.copy = Some(Box::new(CopyIn {
            table,
            columns,
            reader: CopyReader::new(copy.options.clone()),
            fields: Fields::default(),
            header: copy.options.header.then_some(copy.options.header_match),
            way,
            rows: 0,
            last,
        }));
        Ok(Outcome::CopyIn { columns: n })
    }

    /// What to put into the columns that the data lacks; `None`: only an INSERT can say.
    async fn fill(
        &mut self,
        table: &Arc<TableDescriptor>,
        columns: &[usize],
    ) -> Result<Option<Vec<(usize, Fill)>>, Error> {
        if !table.checks.is_empty() {
            return Ok(None);
        }
        let mut fill = Vec::new();
        for (at, column) in table.columns.iter().enumerate().filter(|(at, _)| !columns.contains(at)) {
            let Some(default) = &column.default else {
                fill.push((at, Fill::Constant(Datum::Null)));
                continue;
            };
            let snapshot = self.snapshot();
            let owned = snapshot.sequences().find(|s| s.owned_by == Some((table.oid, column.id)));
            match owned {
                Some(s) if default.starts_with("nextval(") && default.contains(s.name.as_str()) => {
                    fill.push((at, Fill::Sequence(s.oid)));
                }
                _ if default.contains('(') => return Ok(None),
                _ => {
                    let sql = format!("SELECT CAST(({default}) AS {})", column.ty.sql_name());
                    let rows = self.query_rows(&sql).await?;
                    let value = rows.into_iter().next().and_then(|r| r.into_iter().next());
                    fill.push((at, Fill::Constant(value.unwrap_or_default())));
                }
            }
        }
        Ok(Some(fill))
    }

    /// COPY FROM STDIN: some bytes, cut anywhere.
    pub async fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        let Some(mut copy) = self.copy.take() else {
            return Err(Error::new(SqlState::PROTOCOL_VIOLATION, "no COPY is in progress"));
        };
        copy.reader.feed(data);
        let result = self.take_rows(&mut copy, false).await;
        match result {
            Ok(()) => self.copy = Some(copy),
            Err(ref e) => self.failed(e),
        }
        result
    }

    /// COPY FROM STDIN: the end.
    pub async fn copy_done(&mut self) -> Result<Outcome, Error> {
        let Some(mut copy) = self.copy.take() else {
            return Err(Error::new(SqlState::PROTOCOL_VIOLATION, "no COPY is in progress"));
        };
        let last = copy.last;
        let mut result = self.finish_copy(&mut copy).await;
        if result.is_ok() && last && self.status == TxnStatus::Idle {
            result = self.commit().await.map(|_| copy.rows);
        }
        match result {
            Ok(rows) => Ok(Outcome::Complete(format!("COPY {rows}"))),
            Err(e) => {
                self.failed(&e);
                Err(e)
            }
        }
    }

    /// COPY FROM STDIN: the client gives up.
    pub fn copy_fail(&mut self, reason: &str) -> Error {
        self.copy = None;
        let e = Error::new(SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {reason}"));
        self.failed(&e);
        e
    }

    async fn finish_copy(&mut self, copy: &mut CopyIn) -> Result<u64, Error> {
        self.take_rows(copy, true).await?;
        if let Way::Load { loader, .. } = &mut copy.way {
            self.flush(loader, true).await?;
            let bulk = loader.is_bulk();
            let ddl = &mut self.transaction().ddl;
            if bulk {
                ddl.loaded.insert(copy.table.table_id);
            } else {
                ddl.dirty.insert(copy.table.oid);
            }
        }
        if let Some(txn) = &mut self.txn {
            txn.statements += 1;
        }
        Ok(copy.rows)
    }

    async fn flush(&mut self, loader: &mut Loader, last: bool) -> Result<(), Error> {
        let db = self.db.clone();
        let cancel = self.cancel.clone();
        let txn = self.txn.as_mut().ok_or_else(|| Error::internal("COPY has a transaction"))?;
        super::engine::guarded(&cancel, None, loader.flush(db.store(), &mut *txn.kv, last)).await
    }

    async fn take_rows(&mut self, copy: &mut CopyIn, finished: bool) -> Result<(), Error> {
        let names: Vec<String> = copy.columns.iter().map(|at| copy.table.columns[*at].name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let settings = self.settings.eval().clone();
        let mut fields = std::mem::take(&mut copy.fields);
        while copy.reader.next(finished, &mut fields).map_err(|e| at_line(e, copy, 1))? {
            if let Some(must_match) = copy.header.take() {
                if must_match {
                    check_header(&fields, &names).map_err(|e| at_line(e, copy, 0))?;
                }
                continue;
            }
            // A line of no columns for a table of no columns, as PostgreSQL writes it.
            if !(copy.columns.is_empty() && fields.len() == 1) {
                check_count(&fields, &names).map_err(|e| at_line(e, copy, 0))?;
            }
            let mut values = Vec::with_capacity(copy.columns.len());
            for (i, at) in copy.columns.iter().enumerate() {
                let column = &copy.table.columns[*at];
                let value = match fields.get(i).map_err(|e| at_line(e, copy, 0))? {
                    None => Datum::Null,
                    Some(text) => {
                        isochrone_types::text::parse_text(&column.ty, text, &settings).map_err(|e| {
                            let short: String = text.chars().take(100).collect();
                            let line = copy.reader.line();
                            let place = format!(
                                "COPY {}, line {line}, column {}: \"{short}\"",
                                copy.table.name, column.name
                            );
                            if e.detail.is_none() { e.with_detail(place) } else { e }
                        })?
                    }
                };
                values.push(value);
            }
            self.take_row(copy, values).await?;
            copy.rows += 1;
        }
        copy.fields = fields;
        Ok(())
    }

    async fn take_row(&mut self, copy: &mut CopyIn, values: Vec<Datum>) -> Result<(), Error> {
        match &mut copy.way {
            Way::Insert(planned) => {
                let planned = planned.clone();
                self.insert_row(&planned, values).await
            }
            Way::Load { loader, fill } => {
                let mut row = vec![Datum::Null; copy.table.columns.len()];
                for (at, value) in copy.columns.iter().zip(values) {
                    row[*at] = value;
                }
                for (at, how) in fill {
                    row[*at] = match how {
                        Fill::Constant(d) => d.clone(),
                        Fill::Sequence(oid) => {
                            self.sequences.reserve(*oid, 1).await?;
                            sequence_value(self.sequences.take(*oid)?, &copy.table.columns[*at])?
                        }
                    };
                }
                let wrong = copy.table.columns.iter().zip(&row).find(|(c, d)| c.not_null && d.is_null());
                if let Some((column, _)) = wrong {
                    return Err(not_null(&copy.table, column, copy.reader.line()));
                }
                if loader.push(row) {
                    if self.cancel.is_asked() {
                        return Err(Error::new(
                            SqlState::QUERY_CANCELED,
                            "canceling statement due to user request",
                        ));
                    }
                    self.flush(loader, false).await?;
                }
                Ok(())
            }
        }
    }

    async fn insert_row(&mut self, planned: &Planned, values: Vec<Datum>) -> Result<(), Error> {
        let view = self.view();
        let db = self.db.clone();
        let cancel = self.cancel.clone();
        let (clock, random) = (|| db.now(), || db.env().random.next_u64());
        let eval = EvalContext {
            settings: self.settings.eval(),
            session: &self.info,
            statement_time: db.now(),
            clock: &clock,
            random: &random,
        };
        let txn = self.txn.as_mut().ok_or_else(|| Error::internal("COPY has a transaction"))?;
        let catalog: &dyn CatalogView = &*view;
        let mut context = ExecContext {
            txn: &mut *txn.kv,
            store: db.store(),
            catalog,
            eval: &eval,
            sequences: &*self.sequences,
            cancel: cancel.flag(),
        };
        let mut sink = cursor::Rows::default();
        run_to_sink(&planned.plan, values, &mut context, &mut sink).await.map(|_| ())
    }
}

/// A sequence's value in the column's integer type.
fn sequence_value(v: i64, column: &ColumnDescriptor) -> Result<Datum, Error> {
    use isochrone_types::Type;
    let out_of_range = |name: &str| Error::out_of_range(name);
    Ok(match column.ty {
        Type::Int2 => Datum::Int2(i16::try_from(v).map_err(|_| out_of_range("smallint"))?),
        Type::Int4 => Datum::Int4(i32::try_from(v).map_err(|_| out_of_range("integer"))?),
        _ => Datum::Int8(v),
    })
}

/// Says which line an error is about.
fn at_line(e: Error, copy: &CopyIn, ahead: u64) -> Error {
    let place = format!("COPY {}, line {}", copy.table.name, copy.reader.line() + ahead);
    if e.detail.is_none() { e.with_detail(place) } else { e }
}
