//! The short way for statements on one row: key from parameters, one get, expressions, done. No operators are made.

use std::sync::Arc;

use isochrone_base::Key;
use isochrone_txn::kv::Lock;
use isochrone_types::key::encode_key;
use isochrone_types::{Datum, Error};

use super::eval::{RowRef, eval, eval_true};
use super::{Exec, ExecContext, RunOutcome, State, dml, kv_error};
use crate::face::RowSink;
use crate::plan::node::{KeyPart, Node, NodeOp, Scan};
use crate::plan::{InsertColumn, Plan, PlanKind};

/// One key of the primary key, with a value for each column?
fn point(scan: &Scan) -> bool {
    scan.index == 0 && scan.point && scan.parts.iter().all(|p| matches!(p, KeyPart::One(_)))
}

fn scan_of(node: &Node) -> Option<&Scan> {
    match &node.op {
        NodeOp::Scan(s) if point(s) => Some(s),
        _ => None,
    }
}

/// The key; `None` when a part is NULL or not of the column's type: the long way decides.
fn key_of(scan: &Scan, x: &Exec<'_>) -> Result<Option<Key>, Error> {
    let cx = x.cx();
    let mut key = scan.reader.index_prefix.clone();
    for (part, (ty, desc)) in scan.parts.iter().zip(&scan.reader.key_types) {
        let KeyPart::One(e) = part else { return Ok(None) };
        let d = eval(e, RowRef::NONE, &cx)?;
        match super::scan::narrow(d, *ty) {
            Some(d) if !d.is_null() => encode_key(&d, ty, *desc, &mut key)?,
            _ => return Ok(None),
        }
    }
    Ok(Some(key))
}

/// Runs the plan if it is of the short kind; `None`: it is not.
pub(crate) async fn run(
    plan: &Arc<Plan>,
    params: &[Datum],
    context: &mut ExecContext<'_>,
    sink: &mut dyn RowSink,
) -> Result<Option<RunOutcome>, Error> {
    if !plan.subs.is_empty() || !plan.ctes.is_empty() || plan.outers > 0 {
        return Ok(None);
    }
    let mut state = State { params: params.to_vec(), ..State::default() };
    let mut x = Exec {
        txn: &mut *context.txn,
        store: context.store,
        catalog: context.catalog,
        eval: context.eval,
        sequences: context.sequences,
        cancel: context.cancel,
        plan,
        state: &mut state,
    };
    let done = |rows| Ok(Some(RunOutcome { rows, complete: true }));
    match &plan.kind {
        PlanKind::Query { node, slots } => {
            let (scan, exprs) = match &node.op {
                NodeOp::Scan(s) if point(s) => (s.as_ref(), None),
                NodeOp::Project { input, exprs, reserve } if reserve.is_empty() => match scan_of(input) {
                    Some(s) => (s, Some(exprs)),
                    None => return Ok(None),
                },
                _ => return Ok(None),
            };
            x.check_cancel()?;
            let Some(key) = key_of(scan, &x)? else { return Ok(None) };
            if scan.peek {
                return Ok(None);
            }
            let Some(value) = x.txn.get(&key, Lock::None).await.map_err(kv_error)? else { return done(0) };
            let row = scan.reader.decode(&key, &value)?;
            let cx = x.cx();
            let row_ref = RowRef::Slice(&row);
            if let Some(f) = &scan.filter
                && !eval_true(f, row_ref, &cx)?
            {
                return done(0);
            }
            match exprs {
                None => {
                    let identity = slots.len() == row.len() && slots.iter().enumerate().all(|(i, s)| i == *s);
                    if identity {
                        sink.row(&row)?;
                    } else {
                        let out: Vec<Datum> = slots.iter().map(|s| row[*s].clone()).collect();
                        sink.row(&out)?;
                    }
                }
                Some(exprs) => {
                    let out = slots
                        .iter()
                        .map(|s| eval(&exprs[*s], row_ref, &cx))
                        .collect::<Result<Vec<_>, _>>()?;
                    sink.row(&out)?;
                }
            }
            sink.ready().await?;
            done(1)
        }
        PlanKind::Update(u) => {
            let Some(scan) = scan_of(&u.input) else { return Ok(None) };
            if scan.lock == Lock::None
                || u.returning.is_some()
                || !u.values.items.is_empty()
                || !u.values.reserve.is_empty()
            {
                return Ok(None);
            }
            x.check_cancel()?;
            let Some(key) = key_of(scan, &x)? else { return Ok(None) };
            let Some(value) = x.txn.get(&key, scan.lock).await.map_err(kv_error)? else {
                return done(0);
            };
            let input = scan.reader.decode(&key, &value)?;
            let mut new = Vec::with_capacity(u.slots.len());
            {
                let cx = x.cx();
                let row = RowRef::Slice(&input);
                if let Some(f) = &scan.filter
                    && !eval_true(f, row, &cx)?
                {
                    return done(0);
                }
                new.extend(u.slots.iter().map(|s| input[*s].clone()));
                for (at, e) in u.set.iter().zip(&u.values.exprs) {
                    new[*at] = eval(e, row, &cx)?;
                }
            }
            dml::check_row(&u.writer, &u.checks, &new, &x)?;
            let old: Vec<Datum> = if u.indexes.is_empty() {
                Vec::new()
            } else {
                u.slots.iter().map(|s| input[*s].clone()).collect()
            };
            dml::replace_row(&u.writer, &u.indexes, u.moves, &key, &old, &new, &mut x).await?;
            done(1)
        }
        PlanKind::Insert(i) => {
            let NodeOp::Values { rows, reserve } = &i.source.op else { return Ok(None) };
            let [values] = rows.as_slice() else { return Ok(None) };
            if i.conflict.is_some() || i.returning.is_some() || !i.defaults.items.is_empty() {
                return Ok(None);
            }
            x.check_cancel()?;
            x.reserve(reserve, 1).await?;
            x.reserve(&i.defaults.reserve, 1).await?;
            let mut row = Vec::with_capacity(i.columns.len());
            {
                let cx = x.cx();
                for c in &i.columns {
                    let e = match c {
                        InsertColumn::Source(s) => &values[*s],
                        InsertColumn::Default(n) => &i.defaults.exprs[*n],
                    };
                    row.push(eval(e, RowRef::NONE, &cx)?);
                }
            }
            dml::check_row(&i.writer, &i.checks, &row, &x)?;
            dml::insert_row(&i.writer, &row, &mut x).await?;
            done(1)
        }
        PlanKind::Delete(_) => Ok(None),
    }
}
