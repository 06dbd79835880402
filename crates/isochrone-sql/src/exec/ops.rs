//! The operators. Each keeps its state here; what it is to do it reads from its node at every call.

use std::collections::VecDeque;
use std::sync::Arc;

use isochrone_txn::kv::{self, BoxFuture};
use isochrone_types::{CastContext, Datum, Error, SqlState, Type, cast, resolve_operator};
use rustc_hash::FxHashSet;

use super::batch::{BATCH_ROWS, Batch};
use super::eval::{RowRef, eval, eval_batch, eval_filter, sub_value};
use super::join::{JoinRun, LookupRun};
use super::scan::ScanRun;
use super::sort::{AggregateRun, SetOpRun, SortRun};
use super::{BATCH_WORK, Exec, collect, kv_error};
use crate::parse_locks::RowWait;
use crate::plan::expr::Expr;
use crate::plan::node::{ApplyItem, LockTarget, Node, NodeOp};
use crate::plan::rel::SetFunction;
use crate::relation::VirtualContext;

/// An operator in progress.
pub(crate) struct Op {
    run: Run,
    loops: bool,
}

enum Run {
    One(bool),
    Scan(ScanRun),
    Virtual(Option<VecDeque<Batch>>),
    Values(usize),
    Function(Option<FunctionRun>),
    Input(Box<Op>),
    Lock(Box<Op>, Option<Batch>, usize),
    Join(Box<JoinRun>),
    Lookup(Box<LookupRun>),
    Aggregate(Box<AggregateRun>),
    Distinct(Box<Op>, FxHashSet<Vec<Datum>>),
    Sort(Box<SortRun>),
    Limit(Box<Op>, Option<(Option<u64>, u64)>),
    SetOp(Box<SetOpRun>),
    Cte(usize),
}

impl Op {
    /// A fresh operator for a node.
    pub fn new(node: &Node) -> Op {
        let run = match &node.op {
            NodeOp::One => Run::One(false),
            NodeOp::Scan(_) => Run::Scan(ScanRun::default()),
            NodeOp::Virtual { .. } => Run::Virtual(None),
            NodeOp::Values { .. } => Run::Values(0),
            NodeOp::Function { .. } => Run::Function(None),
            NodeOp::Filter { input, .. } | NodeOp::Project { input, .. } | NodeOp::Apply { input, .. } => {
                Run::Input(Box::new(Op::new(input)))
            }
            NodeOp::Lock { input, .. } => Run::Lock(Box::new(Op::new(input)), None, 0),
            NodeOp::HashJoin { left, .. } | NodeOp::LoopJoin { left, .. } => {
                Run::Join(Box::new(JoinRun::new(Op::new(left))))
            }
            NodeOp::LookupJoin { left, .. } => Run::Lookup(Box::new(LookupRun::new(Op::new(left)))),
            NodeOp::Aggregate { .. } => Run::Aggregate(Box::default()),
            NodeOp::Distinct { input, .. } => Run::Distinct(Box::new(Op::new(input)), FxHashSet::default()),
            NodeOp::Sort { .. } => Run::Sort(Box::default()),
            NodeOp::Limit { input, .. } => Run::Limit(Box::new(Op::new(input)), None),
            NodeOp::SetOp { left, right, .. } => {
                Run::SetOp(Box::new(SetOpRun::new(Op::new(left), Op::new(right))))
            }
            NodeOp::Cte { .. } => Run::Cte(0),
        };
        Op { run, loops: false }
    }

    /// The next batch, never an empty one; `None` at the end, and ever after.
    pub fn next<'a, 'b: 'a>(
        &'a mut self,
        node: &'a Node,
        x: &'a mut Exec<'b>,
    ) -> BoxFuture<'a, Result<Option<Batch>, Error>> {
        Box::pin(async move {
            x.pause(BATCH_WORK).await?;
            x.ensure_subs(&|f| node.exprs(f)).await?;
            if x.state.stats.is_none() {
                return self.step(node, x).await;
            }
            let started = (x.eval.clock)();
            let result = self.step(node, x).await;
            let elapsed = (x.eval.clock)() - started;
            if let Some(s) = x.state.stats.as_mut().and_then(|s| s.get_mut(node.id)) {
                s.micros += elapsed.max(0) as u64;
                if !self.loops {
                    s.loops += 1;
                }
                if let Ok(Some(b)) = &result {
                    s.rows += b.len() as u64;
                }
            }
            self.loops = true;
            result
        })
    }

    async fn step(&mut self, node: &Node, x: &mut Exec<'_>) -> Result<Option<Batch>, Error> {
        match (&mut self.run, &node.op) {
            (Run::One(done), NodeOp::One) => {
                if std::mem::replace(done, true) {
                    return Ok(None);
                }
                Ok(Some(Batch::from_columns(Vec::new(), 1)))
            }
            (Run::Scan(run), NodeOp::Scan(scan)) => run.next(scan, RowRef::NONE, x).await,
            (Run::Virtual(queue), NodeOp::Virtual { table, columns, filter, .. }) => {
                if queue.is_none() {
                    let context = VirtualContext { store: x.store, catalog: x.catalog, eval: x.eval };
                    let rows = table.0.rows(context).await?;
                    let mut batches = VecDeque::new();
                    let cx = x.cx();
                    let mut batch = Batch::empty(columns.len());
                    for row in rows {
                        let out: Vec<Datum> =
                            columns.iter().map(|p| row.get(*p).cloned().unwrap_or_default()).collect();
                        if let Some(f) = filter
                            && !super::eval::eval_true(f, RowRef::Slice(&out), &cx)?
                        {
                            continue;
                        }
                        batch.push_row(out);
                        if batch.len() == BATCH_ROWS {
                            batches.push_back(std::mem::replace(&mut batch, Batch::empty(columns.len())));
                        }
                    }
                    if !batch.is_empty() {
                        batches.push_back(batch);
                    }
                    *queue = Some(batches);
                }
                Ok(queue.as_mut().and_then(VecDeque::pop_front))
            }
            (Run::Values(at), NodeOp::Values { rows, reserve }) => {
                if *at >= rows.len() {
                    return Ok(None);
                }
                let end = (*at + BATCH_ROWS).min(rows.len());
                x.reserve(reserve, end - *at).await?;
                let cx = x.cx();
                let mut batch = Batch::empty(node.cols.len());
                for row in &rows[*at..end] {
                    let values =
                        row.iter().map(|e| eval(e, RowRef::NONE, &cx)).collect::<Result<Vec<_>, _>>()?;
                    batch.push_row(values);
                }
                *at = end;
                Ok(Some(batch))
            }
            (Run::Function(run), NodeOp::Function { function, args, ty, ordinality, .. }) => {
                let run = match run {
                    Some(r) => r,
                    None => run.insert(FunctionRun::open(*function, args, *ty, x)?),
                };
                let mut values = Vec::new();
                let mut numbers = Vec::new();
                while values.len() < BATCH_ROWS {
                    let Some(v) = run.next(x)? else { break };
                    run.number += 1;
                    numbers.push(Datum::Int8(run.number));
                    values.push(v);
                }
                if values.is_empty() {
                    return Ok(None);
                }
                let len = values.len();
                let columns = if *ordinality { vec![values, numbers] } else { vec![values] };
                Ok(Some(Batch::from_columns(columns, len)))
            }
            (Run::Input(input), NodeOp::Filter { input: source, predicate, reserve }) => {
                while let Some(mut b) = input.next(source, x).await? {
                    x.reserve(reserve, b.len()).await?;
                    let keep = eval_filter(predicate, &b, &x.cx())?;
                    b.retain(&keep);
                    if !b.is_empty() {
                        return Ok(Some(b));
                    }
                }
                Ok(None)
            }
            (Run::Input(input), NodeOp::Project { input: source, exprs, reserve }) => {
                let Some(b) = input.next(source, x).await? else { return Ok(None) };
                x.reserve(reserve, b.len()).await?;
                let cx = x.cx();
                if !reserve.is_empty() {
                    // Sequences are taken from row by row, from left to right.
                    let mut out = Batch::empty(exprs.len());
                    for r in 0..b.len() {
                        let row = RowRef::Batch(&b, r);
                        let values =
                            exprs.iter().map(|e| eval(e, row, &cx)).collect::<Result<Vec<_>, _>>()?;
                        out.push_row(values);
                    }
                    return Ok(Some(out));
                }
                let mut columns = Vec::with_capacity(exprs.len());
                for e in exprs {
                    columns.push(eval_batch(e, &b, &cx)?);
                }
                Ok(Some(Batch::from_columns(columns, b.len())))
            }
            (Run::Input(input), NodeOp::Apply { input: source, items }) => {
                let Some(mut b) = input.next(source, x).await? else { return Ok(None) };
                for item in items {
                    let mut column = Vec::with_capacity(b.len());
                    for r in 0..b.len() {
                        column.push(apply_item(item, RowRef::Batch(&b, r), x).await?);
                    }
                    b.push_column(column);
                }
                Ok(Some(b))
            }
            (Run::Lock(input, batch, at), NodeOp::Lock { input: source, target }) => {
                let mut out = Batch::empty(node.cols.len());
                loop {
                    if batch.as_ref().is_none_or(|b| *at >= b.len()) {
                        if !out.is_empty() {
                            return Ok(Some(out));
                        }
                        *at = 0;
                        *batch = input.next(source, x).await?;
                    }
                    let Some(b) = batch else { return Ok(None) };
                    x.pause(1).await?;
                    *at += 1;
                    if let Some(row) = lock_row(target, b.row(*at - 1), x).await? {
                        out.push_row(row);
                        if target.one_by_one {
                            return Ok(Some(out));
                        }
                    }
                }
            }
            (Run::Join(run), NodeOp::HashJoin { .. } | NodeOp::LoopJoin { .. }) => run.next(node, x).await,
            (Run::Lookup(run), NodeOp::LookupJoin { .. }) => run.next(node, x).await,
            (Run::Aggregate(run), NodeOp::Aggregate { input, keys, aggregates }) => {
                run.next(input, keys, aggregates, x).await
            }
            (Run::Distinct(input, seen), NodeOp::Distinct { input: source, on }) => {
                while let Some(mut b) = input.next(source, x).await? {
                    let mut keep = Vec::with_capacity(b.len());
                    for r in 0..b.len() {
                        let key: Vec<Datum> = on.iter().map(|s| b.get(*s, r).clone()).collect();
                        let bytes = key.iter().map(Datum::memory_bytes).sum::<usize>() + 32;
                        let new = seen.insert(key);
                        if new {
                            x.state.charge(bytes)?;
                        }
                        keep.push(new);
                    }
                    b.retain(&keep);
                    if !b.is_empty() {
                        return Ok(Some(b));
                    }
                }
                Ok(None)
            }
            (Run::Sort(run), NodeOp::Sort { input, keys, top }) => {
                run.next(input, keys, top.as_ref(), x).await
            }
            (Run::Limit(input, left), NodeOp::Limit { input: source, limit, offset }) => {
                let (rest, skip) = match left {
                    Some(l) => l,
                    None => left.insert(limit_values(limit.as_ref(), offset.as_ref(), x)?),
                };
                loop {
                    if *rest == Some(0) {
                        return Ok(None);
                    }
                    let Some(mut b) = input.next(source, x).await? else { return Ok(None) };
                    let from = (*skip).min(b.len() as u64);
                    *skip -= from;
                    let to = match rest {
                        Some(n) => (from + *n).min(b.len() as u64),
                        None => b.len() as u64,
                    };
                    if let Some(n) = rest {
                        *n -= to - from;
                    }
                    if to > from {
                        if from > 0 || to < b.len() as u64 {
                            b.slice(from as usize, to as usize);
                        }
                        return Ok(Some(b));
                    }
                }
            }
            (Run::SetOp(run), NodeOp::SetOp { op, all, left, right }) => {
                run.next(*op, *all, left, right, x).await
            }
            (Run::Cte(at), NodeOp::Cte { id, slots, .. }) => {
                if x.state.ctes[*id].is_none() {
                    let plan = x.plan;
                    let source =
                        plan.ctes[*id].as_ref().ok_or_else(|| Error::internal("a WITH query has no plan"))?;
                    let batches = collect(source, x).await?;
                    x.state.ctes[*id] = Some(Arc::new(batches));
                }
                let batches = x.state.ctes[*id].as_ref().map(Arc::clone).unwrap_or_default();
                let Some(b) = batches.get(*at) else { return Ok(None) };
                *at += 1;
                let columns = slots.iter().map(|s| b.column(*s).to_vec()).collect();
                Ok(Some(Batch::from_columns(columns, b.len())))
            }
            _ => Err(Error::internal("an operator's state does not fit its node")),
        }
    }
}

/// LIMIT and OFFSET as numbers.
pub(crate) fn limit_values(
    limit: Option<&Expr>,
    offset: Option<&Expr>,
    x: &Exec<'_>,
) -> Result<(Option<u64>, u64), Error> {
    let cx = x.cx();
    let limit = match limit.map(|e| eval(e, RowRef::NONE, &cx)).transpose()?.and_then(|d| d.as_i64()) {
        None => None,
        Some(n) if n < 0 => {
            return Err(Error::new(
                SqlState::INVALID_ROW_COUNT_IN_LIMIT_CLAUSE,
                "LIMIT must not be negative",
            ));
        }
        Some(n) => Some(n as u64),
    };
    let offset = match offset.map(|e| eval(e, RowRef::NONE, &cx)).transpose()?.and_then(|d| d.as_i64()) {
        None => 0,
        Some(n) if n < 0 => {
            return Err(Error::new(
                SqlState::INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE,
                "OFFSET must not be negative",
            ));
        }
        Some(n) => n as u64,
    };
    Ok((limit, offset))
}

/// The value of an Apply's item for a row.
pub(crate) async fn apply_item(item: &ApplyItem, row: RowRef<'_>, x: &mut Exec<'_>) -> Result<Datum, Error> {
    x.pause(1).await?;
    match item {
        ApplyItem::Sub { sub, kind, left, binds } => {
            let mut values = Vec::with_capacity(binds.len());
            let left_values = {
                let cx = x.cx();
                for (_, e) in binds {
                    values.push(eval(e, row, &cx)?);
                }
                left.iter().map(|e| eval(e, row, &cx)).collect::<Result<Vec<_>, _>>()?
            };
            for ((k, _), v) in binds.iter().zip(values) {
                x.state.outers[*k] = v;
            }
            let before = x.state.memory;
            let answer = x.run_sub(*sub, kind).await?;
            let value = sub_value(kind, &left_values, &answer, &x.cx())?;
            // What the subquery held is gone with it.
            let held = x.state.memory.saturating_sub(before);
            x.state.release(held);
            Ok(value)
        }
        ApplyItem::SetVal { sequence, value, called } => {
            let (value, called) = {
                let cx = x.cx();
                (eval(value, row, &cx)?, eval(called, row, &cx)?)
            };
            let (Some(v), Some(called)) = (value.as_i64(), called.as_bool()) else {
                return Ok(Datum::Null);
            };
            x.sequences.set(*sequence, v, called).await?;
            Ok(Datum::Int8(v))
        }
        ApplyItem::Advisory { call, args } => {
            let args = {
                let cx = x.cx();
                args.iter().map(|e| eval(e, row, &cx)).collect::<Result<Vec<_>, _>>()?
            };
            let locks = x.sequences.advisory();
            locks.ok_or_else(|| Error::unsupported("an advisory lock in this place"))?.call(*call, args).await
        }
    }
}

/// Locks a row that qualified. If it has changed, what it is now must qualify too; `None`: it does not, or is gone, or
/// somebody else holds it and it is skipped.
pub(crate) async fn lock_row(
    target: &LockTarget,
    mut row: Vec<Datum>,
    x: &mut Exec<'_>,
) -> Result<Option<Vec<Datum>>, Error> {
    let table = &target.table;
    let mut full = vec![Datum::Null; table.columns.len()];
    for (p, s) in target.slots.iter().enumerate() {
        if let Some(s) = s {
            full[p] = row[*s].clone();
        }
    }
    let codec = crate::rows::RowCodec::new(table)?;
    let key = codec.key(&full)?;
    let found = match target.wait {
        RowWait::Wait => x.txn.get(&key, target.lock).await,
        RowWait::Skip | RowWait::Fail => x.txn.try_get(&key, target.lock).await,
    };
    let value = match found {
        Ok(Some(value)) => value,
        Ok(None) => return Ok(None),
        Err(kv::Error::LockTimeout(_)) if target.wait == RowWait::Skip => return Ok(None),
        Err(kv::Error::LockTimeout(_)) if target.wait == RowWait::Fail => {
            return Err(Error::new(
                SqlState::LOCK_NOT_AVAILABLE,
                format!("could not obtain lock on row in relation \"{}\"", table.name),
            ));
        }
        Err(e) => return Err(kv_error(e)),
    };
    let now = codec.decode(&key, &value)?;
    let mut changed = false;
    for (p, s) in target.slots.iter().enumerate() {
        if let Some(s) = s
            && row[*s] != now[p]
        {
            changed = true;
            row[*s] = now[p].clone();
        }
    }
    if changed && target.outer {
        return Err(Error::new(
            SqlState::SERIALIZATION_FAILURE,
            "could not serialize access: a row of an outer join changed while its lock was waited for",
        ));
    }
    // For SKIP LOCKED an index's entry and the row may have been read at different moments.
    if changed || target.wait == RowWait::Skip {
        let values = x.exprs(&target.recheck, &row).await?;
        if !values.iter().all(Datum::is_true) {
            return Ok(None);
        }
    }
    Ok(Some(row))
}

/// A set-returning function in progress.
struct FunctionRun {
    state: FunctionState,
    number: i64,
}

enum FunctionState {
    Done,
    Int {
        next: i64,
        last: i64,
        step: i64,
        narrow: bool,
    },
    /// Anything with `+` and an order.
    Step {
        next: Datum,
        last: Datum,
        step: Datum,
        up: bool,
        add: isochrone_types::ResolvedFunction,
    },
    Items(std::vec::IntoIter<Datum>),
}

impl FunctionRun {
    fn open(function: SetFunction, args: &[Expr], ty: Type, x: &Exec<'_>) -> Result<FunctionRun, Error> {
        let cx = x.cx();
        let values = args.iter().map(|e| eval(e, RowRef::NONE, &cx)).collect::<Result<Vec<_>, _>>()?;
        let zero = || Error::invalid_parameter("step size cannot equal zero");
        let state = match function {
            SetFunction::Scalar => FunctionState::Items(values.into_iter().collect::<Vec<_>>().into_iter()),
            SetFunction::Unnest => match values.first() {
                Some(Datum::Array(a)) => FunctionState::Items(a.items.clone().into_iter()),
                _ => FunctionState::Done,
            },
            _ if values.iter().any(Datum::is_null) => FunctionState::Done,
            SetFunction::SeriesInt => {
                let number = |i: usize| values.get(i).and_then(Datum::as_i64);
                let (Some(next), Some(last)) = (number(0), number(1)) else {
                    return Err(Error::internal("generate_series has no numbers"));
                };
                let step = number(2).unwrap_or(1);
                if step == 0 {
                    return Err(zero());
                }
                FunctionState::Int { next, last, step, narrow: ty == Type::Int4 }
            }
            SetFunction::SeriesNumeric | SetFunction::SeriesTime => {
                let mut it = values.into_iter();
                let (next, last) = (it.next().unwrap_or_default(), it.next().unwrap_or_default());
                let (step, nothing) = match function {
                    SetFunction::SeriesNumeric => {
                        let convert = |n: i32| {
                            cast(
                                Datum::Int4(n),
                                &Type::Int4,
                                &Type::Numeric(None),
                                CastContext::Implicit,
                                x.eval.settings,
                            )
                        };
                        (it.next().map_or_else(|| convert(1), Ok)?, convert(0)?)
                    }
                    _ => {
                        (it.next().unwrap_or_default(), Datum::Interval(isochrone_types::Interval::default()))
                    }
                };
                if step == nothing {
                    return Err(zero());
                }
                let step_ty =
                    if function == SetFunction::SeriesTime { Type::Interval } else { Type::Numeric(None) };
                let add = resolve_operator("+", Some(&ty), &step_ty)?;
                FunctionState::Step { next, last, up: step > nothing, step, add }
            }
        };
        Ok(FunctionRun { state, number: 0 })
    }

    fn next(&mut self, x: &Exec<'_>) -> Result<Option<Datum>, Error> {
        match &mut self.state {
            FunctionState::Done => Ok(None),
            FunctionState::Items(items) => Ok(items.next()),
            FunctionState::Int { next, last, step, narrow } => {
                let past = if *step > 0 { *next > *last } else { *next < *last };
                if past {
                    return Ok(None);
                }
                let value = *next;
                let narrow = *narrow;
                match next.checked_add(*step) {
                    Some(n) => *next = n,
                    None => self.state = FunctionState::Done,
                }
                Ok(Some(if narrow { Datum::Int4(value as i32) } else { Datum::Int8(value) }))
            }
            FunctionState::Step { next, last, step, up, add } => {
                let past = if *up { *next > *last } else { *next < *last };
                if past {
                    return Ok(None);
                }
                let following = add.call(&[next.clone(), step.clone()], x.eval)?;
                Ok(Some(std::mem::replace(next, following)))
            }
        }
    }
}
