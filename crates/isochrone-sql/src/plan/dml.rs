//! Plans of INSERT, UPDATE and DELETE.
//!
//! Invariant: expressions over a table's row refer to its columns by position; what a join or FROM adds comes after.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_txn::kv::Lock;
use isochrone_types::Error;

use super::build::{Hint, Planner, slot};
use super::expr::{ColId, Expr, Kind};
use super::node::{Exprs, Node, NodeOp};
use super::rel::Rel;
use crate::bind::{BoundConflictAction, BoundDelete, BoundInsert, BoundUpdate};
use crate::descriptor::TableDescriptor;
use crate::exec::table::TableWriter;
use crate::face::OutputColumn;

/// Where a column of a new row comes from.
#[derive(Debug)]
pub enum InsertColumn {
    /// A slot of the source.
    Source(usize),
    /// The n-th default.
    Default(usize),
}

/// INSERT.
#[derive(Debug)]
pub struct InsertPlan {
    /// The table's codecs.
    pub writer: TableWriter,
    /// Rows.
    pub source: Node,
    /// For each column.
    pub columns: Vec<InsertColumn>,
    /// Defaults.
    pub defaults: Exprs,
    /// CHECK constraints, over the new row.
    pub checks: Vec<(String, Expr)>,
    /// ON CONFLICT.
    pub conflict: Option<ConflictPlan>,
    /// RETURNING, over the new row.
    pub returning: Option<Exprs>,
    /// The source reads the table: it must be read to its end first.
    pub source_reads_table: bool,
}

/// ON CONFLICT.
#[derive(Debug)]
pub struct ConflictPlan {
    /// Which unique index: 0 the primary key, n the n-th secondary one; `None`: any.
    pub index: Option<usize>,
    /// What to do.
    pub action: ConflictAction,
    /// How the old row is locked for that.
    pub lock: Lock,
}

/// What ON CONFLICT does.
#[derive(Debug)]
pub enum ConflictAction {
    /// Nothing.
    Nothing,
    /// Changes the old row; expressions see the old row and then the proposed one.
    Update {
        /// Positions of the columns set.
        set: Vec<usize>,
        /// Their values, and last the filter if there is one.
        exprs: Exprs,
        /// Is the last expression a filter?
        filtered: bool,
    },
}

/// UPDATE.
#[derive(Debug)]
pub struct UpdatePlan {
    /// The table's codecs.
    pub writer: TableWriter,
    /// Rows to change.
    pub input: Node,
    /// Slots of the table's columns in the input.
    pub slots: Vec<usize>,
    /// The rows are locked by the scan.
    pub locked: bool,
    /// How they are locked.
    pub lock: Lock,
    /// What must still hold for a row that changed meanwhile, over the input.
    pub recheck: Exprs,
    /// Positions set.
    pub set: Vec<usize>,
    /// Their values, over the input.
    pub values: Exprs,
    /// CHECK constraints over the new row.
    pub checks: Vec<(String, Expr)>,
    /// RETURNING over the input with the new row in place of the old.
    pub returning: Option<Exprs>,
    /// Writes may happen while the input is still read.
    pub streaming: bool,
    /// Indexes (n: the n-th secondary one) whose entries can change.
    pub indexes: Vec<usize>,
    /// Primary key columns are set.
    pub moves: bool,
    /// One input row per row of the table at most.
    pub distinct_rows: bool,
}

/// DELETE.
#[derive(Debug)]
pub struct DeletePlan {
    /// The table's codecs.
    pub writer: TableWriter,
    /// Rows to delete.
    pub input: Node,
    /// Slots of the table's columns in the input.
    pub slots: Vec<usize>,
    /// The rows are locked by the scan.
    pub locked: bool,
    /// What must still hold.
    pub recheck: Exprs,
    /// RETURNING over the input.
    pub returning: Option<Exprs>,
    /// One input row per row of the table at most.
    pub distinct_rows: bool,
    /// Writes may happen while the input is still read.
    pub streaming: bool,
}

pub(crate) fn returning_columns(
    planner: &Planner,
    returning: Option<&[(String, Expr)]>,
) -> Option<Vec<OutputColumn>> {
    returning.map(|items| {
        items
            .iter()
            .map(|(name, e)| {
                let info = match e.kind {
                    Kind::Col(c) => planner.binder.cols.get(c as usize),
                    _ => None,
                };
                OutputColumn {
                    name: name.clone(),
                    ty: e.ty,
                    table_oid: info.map_or(0, |i| i.table_oid),
                    attnum: info.map_or(0, |i| i.attnum),
                }
            })
            .collect()
    })
}

fn reads(rel: &Rel, table: &TableDescriptor) -> bool {
    let mut found = false;
    rel.visit_rels(&mut |r| {
        found |=
            matches!(r, Rel::Table { table: t, .. } if t.oid == table.oid) || matches!(r, Rel::Cte { .. });
    });
    found
}

fn subquery_reads<'e>(exprs: impl Iterator<Item = &'e Expr>, table: &TableDescriptor) -> bool {
    let mut found = false;
    for e in exprs {
        e.visit(&mut |e| {
            if let Kind::Sub(s) = &e.kind {
                found |= reads(&s.rel, table);
            }
        });
    }
    found
}

/// How an UPDATE of these columns locks its rows: NO KEY UPDATE, unless the primary key or a unique index has one of them.
fn update_lock(table: &TableDescriptor, mut changed: impl FnMut(usize) -> bool) -> Lock {
    let unique = table.indexes.iter().filter(|i| i.unique).flat_map(|i| &i.columns);
    let mut keys = table.primary.columns.iter().chain(unique);
    match keys.any(|(id, _)| table.position(*id).is_some_and(&mut changed)) {
        true => Lock::Exclusive,
        false => Lock::NoKeyUpdate,
    }
}

/// Is the input one scan of the table, at most filtered? Does the scan lock its rows?
fn scan_of(node: &Node) -> Option<&super::node::Scan> {
    match &node.op {
        NodeOp::Scan(s) => Some(s),
        NodeOp::Filter { input, .. } | NodeOp::Apply { input, .. } => scan_of(input),
        _ => None,
    }
}

impl Planner<'_, '_> {
    fn checks(&mut self, checks: Vec<(String, Expr)>, cols: &[ColId]) -> Result<Vec<(String, Expr)>, Error> {
        checks.into_iter().map(|(n, e)| Ok((n, self.physical(e, cols)?))).collect()
    }

    pub(crate) fn insert(&mut self, i: BoundInsert) -> Result<InsertPlan, Error> {
        let source_reads_table = reads(&i.source, &i.table);
        let source = self.plan(i.source, Vec::new(), &Hint::default())?;
        let mut defaults = Vec::new();
        let mut columns = Vec::new();
        for p in 0..i.table.columns.len() {
            if let Some(t) = i.targets.iter().position(|x| *x == p) {
                columns.push(InsertColumn::Source(slot(&source.cols, i.source_cols[t])?));
            } else if let Some((_, e)) = i.defaults.iter().find(|(x, _)| *x == p) {
                defaults.push(e.clone());
                columns.push(InsertColumn::Default(defaults.len() - 1));
            } else {
                return Err(Error::internal(format!("column \"{}\" has no value", i.table.columns[p].name)));
            }
        }
        let defaults = self.exprs(defaults, &[])?;
        let checks = self.checks(i.checks, &i.cols)?;
        let conflict = match i.conflict {
            None => None,
            Some(c) => Some(ConflictPlan {
                index: c.index,
                lock: match &c.action {
                    BoundConflictAction::Nothing => Lock::None,
                    BoundConflictAction::Update { set, .. } => {
                        update_lock(&i.table, |p| set.iter().any(|(s, _)| *s == p))
                    }
                },
                action: match c.action {
                    BoundConflictAction::Nothing => ConflictAction::Nothing,
                    BoundConflictAction::Update { excluded, set, filter } => {
                        let mut cols = i.cols.clone();
                        cols.extend(excluded);
                        let (set, mut exprs): (Vec<usize>, Vec<Expr>) = set.into_iter().unzip();
                        let filtered = filter.is_some();
                        exprs.extend(filter);
                        ConflictAction::Update { set, exprs: self.exprs(exprs, &cols)?, filtered }
                    }
                },
            }),
        };
        let returning = match i.returning {
            None => None,
            Some(items) => Some(self.exprs(items.into_iter().map(|(_, e)| e).collect(), &i.cols)?),
        };
        Ok(InsertPlan {
            writer: TableWriter::new(&i.table)?,
            source,
            columns,
            defaults,
            checks,
            conflict,
            returning,
            source_reads_table,
        })
    }

    pub(crate) fn update(&mut self, u: BoundUpdate) -> Result<UpdatePlan, Error> {
        let table: Arc<TableDescriptor> = u.table.clone();
        let joined = !is_plain(&u.rel);
        let self_reading = subquery_reads(
            u.set
                .iter()
                .map(|(_, e)| e)
                .chain(&u.predicates)
                .chain(u.returning.iter().flatten().map(|(_, e)| e)),
            &table,
        );
        let changed: BTreeSet<usize> = u.set.iter().map(|(p, _)| *p).collect();
        let lock = update_lock(&table, |p| changed.contains(&p));
        let input = self.plan(u.rel, Vec::new(), &Hint { lock, ..Hint::default() })?;
        let slots = u.cols.iter().map(|c| slot(&input.cols, *c)).collect::<Result<Vec<_>, _>>()?;
        let touches = |columns: &[(u32, bool)]| {
            columns.iter().any(|(id, _)| table.position(*id).is_some_and(|p| changed.contains(&p)))
        };
        let moves = touches(&table.primary.columns);
        let indexes: Vec<usize> = (0..table.indexes.len())
            .filter(|n| moves || touches(&table.indexes[*n].columns))
            .map(|n| n + 1)
            .collect();
        let scan = scan_of(&input);
        let locked = scan.is_some_and(|s| s.lock != Lock::None);
        let streaming = !joined
            && !moves
            && !self_reading
            && scan.is_some_and(|s| s.index == 0 || !indexes.contains(&s.index));
        let recheck = self.exprs(u.predicates, &input.cols)?;
        let (set, values): (Vec<usize>, Vec<Expr>) = u.set.into_iter().unzip();
        let values = self.exprs(values, &input.cols)?;
        let checks = self.checks(u.checks, &u.cols)?;
        let returning = match u.returning {
            None => None,
            Some(items) => Some(self.exprs(items.into_iter().map(|(_, e)| e).collect(), &input.cols)?),
        };
        Ok(UpdatePlan {
            writer: TableWriter::new(&table)?,
            input,
            slots,
            locked,
            lock,
            recheck,
            set,
            values,
            checks,
            returning,
            streaming,
            indexes,
            moves,
            distinct_rows: !joined,
        })
    }

    pub(crate) fn delete(&mut self, d: BoundDelete) -> Result<DeletePlan, Error> {
        let table = d.table.clone();
        let joined = !is_plain(&d.rel);
        let self_reading =
            subquery_reads(d.predicates.iter().chain(d.returning.iter().flatten().map(|(_, e)| e)), &table);
        let input = self.plan(d.rel, Vec::new(), &Hint { lock: Lock::Exclusive, ..Hint::default() })?;
        let slots = d.cols.iter().map(|c| slot(&input.cols, *c)).collect::<Result<Vec<_>, _>>()?;
        let locked = scan_of(&input).is_some_and(|s| s.lock != Lock::None);
        let recheck = self.exprs(d.predicates, &input.cols)?;
        let returning = match d.returning {
            None => None,
            Some(items) => Some(self.exprs(items.into_iter().map(|(_, e)| e).collect(), &input.cols)?),
        };
        Ok(DeletePlan {
            writer: TableWriter::new(&table)?,
            input,
            slots,
            locked,
            recheck,
            returning,
            distinct_rows: !joined,
            streaming: !joined && !self_reading,
        })
    }
}

fn is_plain(rel: &Rel) -> bool {
    match rel {
        Rel::Table { .. } => true,
        Rel::Filter { input, .. } => is_plain(input),
        _ => false,
    }
}
