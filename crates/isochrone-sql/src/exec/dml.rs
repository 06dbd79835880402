//! INSERT, UPDATE and DELETE.
//!
//! Rows are locked and computed first and written afterwards (X3); where the input cannot meet what is written, a
//! batch at a time. A row that changed between being found and being locked is judged again by what it is now
//! (READ COMMITTED; above it the transaction itself refuses).
//!
//! Uniqueness is checked by reading the key: the read is validated at commit. Rows of tables with a hidden row id
//! need no check: their ids never repeat.

use std::collections::VecDeque;

use isochrone_base::{Key, Value};
use isochrone_txn::kv::Lock;
use isochrone_types::{Datum, Error, SqlState, text};
use rustc_hash::FxHashSet;

use super::batch::{BATCH_ROWS, Batch};
use super::eval::{RowRef, eval};
use super::ops::Op;
use super::table::TableWriter;
use super::{Exec, collect, kv_error};
use crate::descriptor::TableDescriptor;
use crate::plan::expr::Expr;
use crate::plan::node::Exprs;
use crate::plan::{
    ConflictAction, ConflictPlan, DeletePlan, InsertColumn, InsertPlan, Plan, PlanKind, UpdatePlan,
};
use crate::rows::unique_violation;

/// Rows of RETURNING, in batches.
struct Returned {
    batches: VecDeque<Batch>,
    batch: Option<Batch>,
}

impl Returned {
    fn new(returning: Option<&Exprs>) -> Returned {
        Returned { batches: VecDeque::new(), batch: returning.map(|r| Batch::empty(r.exprs.len())) }
    }

    async fn add(&mut self, returning: Option<&Exprs>, row: &[Datum], x: &mut Exec<'_>) -> Result<(), Error> {
        let (Some(r), Some(batch)) = (returning, &mut self.batch) else { return Ok(()) };
        let values = x.exprs(r, row).await?;
        x.state.charge(values.iter().map(Datum::memory_bytes).sum())?;
        batch.push_row(values);
        if batch.len() == BATCH_ROWS {
            let width = batch.width();
            self.batches.push_back(std::mem::replace(batch, Batch::empty(width)));
        }
        Ok(())
    }

    fn finish(mut self) -> VecDeque<Batch> {
        self.batches.extend(self.batch.filter(|b| !b.is_empty()));
        self.batches
    }
}

/// Runs a changing statement: rows changed, and what RETURNING gives.
pub(crate) async fn run(plan: &Plan, x: &mut Exec<'_>) -> Result<(u64, VecDeque<Batch>), Error> {
    match &plan.kind {
        PlanKind::Insert(i) => insert(i, x).await,
        PlanKind::Update(u) => update(u, x).await,
        PlanKind::Delete(d) => delete(d, x).await,
        PlanKind::Query { .. } => Err(Error::internal("a query changes nothing")),
    }
}

/// `Failing row contains (..)`.
fn failing_row(row: &[Datum], table: &TableDescriptor, x: &Exec<'_>) -> String {
    let values: Vec<String> = row
        .iter()
        .zip(&table.columns)
        .filter(|(_, c)| !c.hidden)
        .map(|(d, c)| {
            if d.is_null() {
                return "null".to_owned();
            }
            let s = text::to_text(d, &c.ty, x.eval.settings);
            if s.chars().count() > 64 { s.chars().take(64).chain("...".chars()).collect() } else { s }
        })
        .collect();
    format!("Failing row contains ({}).", values.join(", "))
}

/// NOT NULL and CHECK.
pub(crate) fn check_row(
    writer: &TableWriter,
    checks: &[(String, Expr)],
    row: &[Datum],
    x: &Exec<'_>,
) -> Result<(), Error> {
    let table = &writer.table;
    for p in &writer.not_null {
        if row[*p].is_null() {
            let column = &table.columns[*p].name;
            return Err(Error::new(
                SqlState::NOT_NULL_VIOLATION,
                format!(
                    "null value in column \"{column}\" of relation \"{}\" violates not-null constraint",
                    table.name
                ),
            )
            .with_detail(failing_row(row, table, x))
            .with_table(table.schema.clone(), table.name.clone())
            .with_column(column.clone()));
        }
    }
    for (name, e) in checks {
        if eval(e, RowRef::Slice(row), &x.cx())?.as_bool() == Some(false) {
            return Err(Error::new(
                SqlState::CHECK_VIOLATION,
                format!("new row for relation \"{}\" violates check constraint \"{name}\"", table.name),
            )
            .with_detail(failing_row(row, table, x))
            .with_table(table.schema.clone(), table.name.clone())
            .with_constraint(name.clone()));
        }
    }
    Ok(())
}

/// Writes a new row and its index entries. The primary key was checked by the caller.
async fn put_row(writer: &TableWriter, key: Key, row: &[Datum], x: &mut Exec<'_>) -> Result<(), Error> {
    for (n, codec) in writer.indexes.iter().enumerate() {
        let (entry, value, unique) = codec.entry(&writer.rows, row)?;
        if unique && x.txn.get(&entry, Lock::None).await.map_err(kv_error)?.is_some() {
            return Err(unique_violation(
                &writer.table,
                &writer.table.indexes[n],
                row,
                x.eval.settings,
                false,
            ));
        }
        x.txn.put(entry, Some(value)).map_err(kv_error)?;
    }
    x.txn.put(key, Some(writer.rows.value(row))).map_err(kv_error)
}

/// Inserts a row; the error says what it conflicts with.
pub(crate) async fn insert_row(writer: &TableWriter, row: &[Datum], x: &mut Exec<'_>) -> Result<(), Error> {
    let key = writer.rows.key(row)?;
    if !writer.table.has_row_id() && x.txn.get(&key, Lock::None).await.map_err(kv_error)?.is_some() {
        return Err(unique_violation(&writer.table, &writer.table.primary, row, x.eval.settings, false));
    }
    put_row(writer, key, row, x).await
}

/// The key of the row that a new row conflicts with, in the index that ON CONFLICT speaks of (or any).
async fn conflicting(
    writer: &TableWriter,
    conflict: &ConflictPlan,
    row: &[Datum],
    x: &mut Exec<'_>,
) -> Result<Option<Key>, Error> {
    if conflict.index.is_none_or(|i| i == 0) && !writer.table.has_row_id() {
        let key = writer.rows.key(row)?;
        if x.txn.get(&key, Lock::None).await.map_err(kv_error)?.is_some() {
            return Ok(Some(key));
        }
    }
    for (n, codec) in writer.indexes.iter().enumerate() {
        if conflict.index.is_some_and(|i| i != n + 1) {
            continue;
        }
        let (entry, _, unique) = codec.entry(&writer.rows, row)?;
        if !unique {
            continue;
        }
        if let Some(suffix) = x.txn.get(&entry, Lock::None).await.map_err(kv_error)? {
            return Ok(Some(primary_key(&writer.table, &suffix)));
        }
    }
    Ok(None)
}

fn primary_key(table: &TableDescriptor, suffix: &Value) -> Key {
    let mut key = isochrone_base::keyspace::index_prefix(table.table_id, 0);
    key.extend_from_slice(suffix);
    key
}

async fn insert(p: &InsertPlan, x: &mut Exec<'_>) -> Result<(u64, VecDeque<Batch>), Error> {
    let mut returned = Returned::new(p.returning.as_ref());
    let mut changed = 0;
    let mut touched: FxHashSet<Key> = FxHashSet::default();
    let mut stored: VecDeque<Batch> = VecDeque::new();
    let mut op = Op::new(&p.source);
    if p.source_reads_table {
        stored = collect(&p.source, x).await?.into();
    }
    loop {
        let next = if p.source_reads_table { stored.pop_front() } else { op.next(&p.source, x).await? };
        let Some(b) = next else { break };
        for r in 0..b.len() {
            x.pause(1).await?;
            let defaults =
                if p.defaults.exprs.is_empty() { Vec::new() } else { x.exprs(&p.defaults, &[]).await? };
            let row: Vec<Datum> = p
                .columns
                .iter()
                .map(|c| match c {
                    InsertColumn::Source(s) => b.get(*s, r).clone(),
                    InsertColumn::Default(n) => defaults[*n].clone(),
                })
                .collect();
            check_row(&p.writer, &p.checks, &row, x)?;
            if let Some(c) = &p.conflict
                && let Some(key) = conflicting(&p.writer, c, &row, x).await?
            {
                match &c.action {
                    ConflictAction::Nothing => {}
                    ConflictAction::Update { set, exprs, filtered } => {
                        if let Some(new) =
                            update_conflicting(p, key, &row, (set, exprs, *filtered), &mut touched, x).await?
                        {
                            changed += 1;
                            returned.add(p.returning.as_ref(), &new, x).await?;
                        }
                    }
                }
                continue;
            }
            if p.conflict.is_some() {
                touched.insert(p.writer.rows.key(&row)?);
            }
            insert_row(&p.writer, &row, x).await?;
            changed += 1;
            returned.add(p.returning.as_ref(), &row, x).await?;
        }
    }
    Ok((changed, returned.finish()))
}

/// ON CONFLICT DO UPDATE of one row; `None`: its WHERE says no.
async fn update_conflicting(
    p: &InsertPlan,
    key: Key,
    proposed: &[Datum],
    (set, exprs, filtered): (&[usize], &Exprs, bool),
    touched: &mut FxHashSet<Key>,
    x: &mut Exec<'_>,
) -> Result<Option<Vec<Datum>>, Error> {
    if !touched.insert(key.clone()) {
        return Err(Error::new(
            SqlState::CARDINALITY_VIOLATION,
            "ON CONFLICT DO UPDATE command cannot affect row a second time",
        )
        .with_hint(
            "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
        ));
    }
    let lock = p.conflict.as_ref().map_or(Lock::Exclusive, |c| c.lock);
    let Some(value) = x.txn.get(&key, lock).await.map_err(kv_error)? else {
        return Err(Error::new(
            SqlState::SERIALIZATION_FAILURE,
            "could not serialize access due to concurrent delete",
        ));
    };
    let old = p.writer.rows.decode(&key, &value)?;
    let mut both = old.clone();
    both.extend_from_slice(proposed);
    let mut values = x.exprs(exprs, &both).await?;
    if filtered && !values.pop().is_some_and(|v| v.is_true()) {
        return Ok(None);
    }
    let mut new = old.clone();
    for (at, v) in set.iter().zip(values) {
        new[*at] = v;
    }
    check_row(&p.writer, &p.checks, &new, x)?;
    let all: Vec<usize> = (1..=p.writer.indexes.len()).collect();
    replace_row(&p.writer, &all, true, &key, &old, &new, x).await?;
    Ok(Some(new))
}

/// Locks the index entries of a row that changed after the statement's snapshot: they may lie in a range that was
/// read before the change, and count as read now, by whoever holds the row.
async fn refresh_entries(
    writer: &TableWriter,
    indexes: impl Iterator<Item = usize>,
    row: &[Datum],
    x: &mut Exec<'_>,
) -> Result<(), Error> {
    for n in indexes {
        let (entry, _, _) = writer.indexes[n - 1].entry(&writer.rows, row)?;
        x.txn.get(&entry, Lock::Exclusive).await.map_err(kv_error)?;
    }
    Ok(())
}

/// Writes a changed row over the old one.
pub(crate) async fn replace_row(
    writer: &TableWriter,
    indexes: &[usize],
    moves: bool,
    old_key: &[u8],
    old: &[Datum],
    new: &[Datum],
    x: &mut Exec<'_>,
) -> Result<(), Error> {
    let mut new_key = None;
    if moves {
        let key = writer.rows.key(new)?;
        if key != old_key {
            if x.txn.get(&key, Lock::None).await.map_err(kv_error)?.is_some() {
                return Err(unique_violation(
                    &writer.table,
                    &writer.table.primary,
                    new,
                    x.eval.settings,
                    false,
                ));
            }
            x.txn.put(old_key.to_vec(), None).map_err(kv_error)?;
            new_key = Some(key);
        }
    }
    for n in indexes {
        let codec = &writer.indexes[n - 1];
        let (old_entry, old_value, _) = codec.entry(&writer.rows, old)?;
        let (entry, value, unique) = codec.entry(&writer.rows, new)?;
        if old_entry == entry {
            if old_value != value {
                x.txn.put(entry, Some(value)).map_err(kv_error)?;
            }
            continue;
        }
        if unique && x.txn.get(&entry, Lock::None).await.map_err(kv_error)?.is_some() {
            return Err(unique_violation(
                &writer.table,
                &writer.table.indexes[n - 1],
                new,
                x.eval.settings,
                false,
            ));
        }
        x.txn.put(old_entry, None).map_err(kv_error)?;
        x.txn.put(entry, Some(value)).map_err(kv_error)?;
    }
    x.txn.put(new_key.unwrap_or_else(|| old_key.to_vec()), Some(writer.rows.value(new))).map_err(kv_error)
}

/// Removes a row and its index entries.
pub(crate) async fn remove_row(
    writer: &TableWriter,
    key: Key,
    old: &[Datum],
    x: &mut Exec<'_>,
) -> Result<(), Error> {
    for codec in &writer.indexes {
        let (entry, _, _) = codec.entry(&writer.rows, old)?;
        x.txn.put(entry, None).map_err(kv_error)?;
    }
    x.txn.put(key, None).map_err(kv_error)
}

/// Locks the row of a target in an input row, and brings the input row up to date; `None`: it no longer qualifies.
/// The second says whether it had changed.
async fn lock_target(
    writer: &TableWriter,
    slots: &[usize],
    recheck: &Exprs,
    (key, lock): (&[u8], Lock),
    input: &mut [Datum],
    x: &mut Exec<'_>,
) -> Result<Option<(Vec<Datum>, bool)>, Error> {
    let Some(value) = x.txn.get(key, lock).await.map_err(kv_error)? else { return Ok(None) };
    let now = writer.rows.decode(key, &value)?;
    let mut changed = false;
    for (p, s) in slots.iter().enumerate() {
        if input[*s] != now[p] {
            changed = true;
            input[*s] = now[p].clone();
        }
    }
    if changed {
        let values = x.exprs(recheck, input).await?;
        if !values.iter().all(Datum::is_true) {
            return Ok(None);
        }
    }
    Ok(Some((now, changed)))
}

/// A row to write.
struct Change {
    key: Key,
    old: Vec<Datum>,
    new: Vec<Datum>,
}

async fn update(p: &UpdatePlan, x: &mut Exec<'_>) -> Result<(u64, VecDeque<Batch>), Error> {
    let mut returned = Returned::new(p.returning.as_ref());
    let mut changed = 0;
    let mut seen: FxHashSet<Key> = FxHashSet::default();
    let mut pending: Vec<Change> = Vec::new();
    let mut op = Op::new(&p.input);
    while let Some(b) = op.next(&p.input, x).await? {
        for r in 0..b.len() {
            x.pause(1).await?;
            let mut input = b.row(r);
            let found: Vec<Datum> = p.slots.iter().map(|s| input[*s].clone()).collect();
            let key = p.writer.rows.key(&found)?;
            if !p.distinct_rows {
                if !seen.insert(key.clone()) {
                    continue;
                }
                x.state.charge(key.len() + 48)?;
            }
            let (old, moved) = if p.locked {
                (found, false)
            } else {
                match lock_target(&p.writer, &p.slots, &p.recheck, (&key, p.lock), &mut input, x).await? {
                    Some(row) => row,
                    None => continue,
                }
            };
            let values = x.exprs(&p.values, &input).await?;
            let mut new = old.clone();
            for (at, v) in p.set.iter().zip(values) {
                new[*at] = v;
            }
            check_row(&p.writer, &p.checks, &new, x)?;
            if moved {
                refresh_entries(&p.writer, p.indexes.iter().copied(), &old, x).await?;
                refresh_entries(&p.writer, p.indexes.iter().copied(), &new, x).await?;
            }
            if p.returning.is_some() {
                for (at, s) in p.slots.iter().enumerate() {
                    input[*s] = new[at].clone();
                }
                returned.add(p.returning.as_ref(), &input, x).await?;
            }
            changed += 1;
            if !p.streaming {
                x.state.charge(
                    key.len() + old.iter().chain(&new).map(Datum::memory_bytes).sum::<usize>() + 96,
                )?;
            }
            pending.push(Change { key, old, new });
        }
        if p.streaming {
            write_changes(p, &mut pending, x).await?;
        }
    }
    write_changes(p, &mut pending, x).await?;
    Ok((changed, returned.finish()))
}

async fn write_changes(p: &UpdatePlan, pending: &mut Vec<Change>, x: &mut Exec<'_>) -> Result<(), Error> {
    for c in pending.drain(..) {
        replace_row(&p.writer, &p.indexes, p.moves, &c.key, &c.old, &c.new, x).await?;
    }
    Ok(())
}

async fn delete(p: &DeletePlan, x: &mut Exec<'_>) -> Result<(u64, VecDeque<Batch>), Error> {
    let mut returned = Returned::new(p.returning.as_ref());
    let mut changed = 0;
    let mut seen: FxHashSet<Key> = FxHashSet::default();
    let mut pending: Vec<(Key, Vec<Datum>)> = Vec::new();
    let mut op = Op::new(&p.input);
    while let Some(b) = op.next(&p.input, x).await? {
        for r in 0..b.len() {
            x.pause(1).await?;
            let mut input = b.row(r);
            let found: Vec<Datum> = p.slots.iter().map(|s| input[*s].clone()).collect();
            let key = p.writer.rows.key(&found)?;
            if !p.distinct_rows {
                if !seen.insert(key.clone()) {
                    continue;
                }
                x.state.charge(key.len() + 48)?;
            }
            let (old, moved) = if p.locked {
                (found, false)
            } else {
                match lock_target(&p.writer, &p.slots, &p.recheck, (&key, Lock::Exclusive), &mut input, x)
                    .await?
                {
                    Some(row) => row,
                    None => continue,
                }
            };
            if moved {
                refresh_entries(&p.writer, 1..=p.writer.indexes.len(), &old, x).await?;
            }
            returned.add(p.returning.as_ref(), &input, x).await?;
            changed += 1;
            if !p.streaming {
                x.state.charge(key.len() + old.iter().map(Datum::memory_bytes).sum::<usize>() + 72)?;
            }
            pending.push((key, old));
        }
        if p.streaming {
            for (key, old) in pending.drain(..) {
                remove_row(&p.writer, key, &old, x).await?;
            }
        }
    }
    for (key, old) in pending.drain(..) {
        remove_row(&p.writer, key, &old, x).await?;
    }
    Ok((changed, returned.finish()))
}
