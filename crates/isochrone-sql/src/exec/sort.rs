//! Operators that keep rows: sorting, grouping, set operations.

use std::cmp::Ordering;
use std::collections::VecDeque;

use isochrone_types::{AggState, Datum, Error, compare};
use rustc_hash::{FxHashMap, FxHashSet};

use super::Exec;
use super::batch::{BATCH_ROWS, Batch};
use super::eval::{RowRef, eval, eval_batch, eval_true};
use super::ops::{Op, limit_values};
use crate::plan::expr::Expr;
use crate::plan::node::{AggregateNode, Node, SortNodeKey};
use crate::plan::rel::SetOpKind;

fn compare_keys<'d>(
    keys: &[SortNodeKey],
    a: impl Iterator<Item = &'d Datum>,
    b: impl Iterator<Item = &'d Datum>,
) -> Ordering {
    for ((k, x), y) in keys.iter().zip(a).zip(b) {
        let o = match (x.is_null(), y.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) if k.nulls_first => Ordering::Less,
            (true, false) => Ordering::Greater,
            (false, true) if k.nulls_first => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) if k.desc => compare(y, x),
            (false, false) => compare(x, y),
        };
        if o != Ordering::Equal {
            return o;
        }
    }
    Ordering::Equal
}

/// A sort in progress.
#[derive(Default)]
pub(crate) struct SortRun {
    sorted: Option<VecDeque<Batch>>,
}

impl SortRun {
    pub async fn next(
        &mut self,
        input: &Node,
        keys: &[SortNodeKey],
        top: Option<&(Expr, Option<Expr>)>,
        x: &mut Exec<'_>,
    ) -> Result<Option<Batch>, Error> {
        if self.sorted.is_none() {
            let wanted = match top {
                None => None,
                Some((limit, offset)) => {
                    let (limit, offset) = limit_values(Some(limit), offset.as_ref(), x)?;
                    limit.map(|l| usize::try_from(l.saturating_add(offset)).unwrap_or(usize::MAX))
                }
            };
            self.sorted = Some(sort(input, keys, wanted, x).await?);
        }
        Ok(self.sorted.as_mut().and_then(VecDeque::pop_front))
    }
}

fn order(rows: &Batch, columns: &[Vec<Datum>], keys: &[SortNodeKey]) -> Vec<u32> {
    let mut index: Vec<u32> = (0..rows.len() as u32).collect();
    let at = |r: u32| columns.iter().map(move |c| &c[r as usize]);
    index.sort_by(|a, b| compare_keys(keys, at(*a), at(*b)));
    index
}

async fn sort(
    input: &Node,
    keys: &[SortNodeKey],
    wanted: Option<usize>,
    x: &mut Exec<'_>,
) -> Result<VecDeque<Batch>, Error> {
    let mut op = Op::new(input);
    let mut all = Batch::empty(input.cols.len());
    let mut columns: Vec<Vec<Datum>> = vec![Vec::new(); keys.len()];
    let mut charged = 0;
    if wanted == Some(0) {
        return Ok(VecDeque::new());
    }
    while let Some(b) = op.next(input, x).await? {
        let mut bytes = b.memory_bytes();
        {
            let cx = x.cx();
            for (c, k) in columns.iter_mut().zip(keys) {
                let values = eval_batch(&k.expr, &b, &cx)?;
                bytes += values.iter().map(Datum::memory_bytes).sum::<usize>();
                c.extend(values);
            }
        }
        charged += bytes;
        x.state.charge(bytes)?;
        all.append(b);
        // Only the first rows are wanted: the others go as soon as there are many.
        if let Some(n) = wanted
            && all.len() > 2 * n.max(BATCH_ROWS)
        {
            let mut index = order(&all, &columns, keys);
            index.truncate(n);
            all = all.gather(&index);
            for c in &mut columns {
                *c = index.iter().map(|r| c[*r as usize].clone()).collect();
            }
            x.state.release(charged);
            charged = all.memory_bytes() + columns.iter().flatten().map(Datum::memory_bytes).sum::<usize>();
            x.state.charge(charged)?;
        }
    }
    let mut index = order(&all, &columns, keys);
    if let Some(n) = wanted {
        index.truncate(n);
    }
    Ok(index.chunks(BATCH_ROWS).map(|c| all.gather(c)).collect())
}

/// One group's aggregates.
struct Group {
    key: Vec<Datum>,
    states: Vec<AggState>,
    distinct: Vec<FxHashSet<Vec<Datum>>>,
    /// Arguments and sort keys of aggregates with ORDER BY.
    ordered: Vec<Vec<(Vec<Datum>, Vec<Datum>)>>,
}

impl Group {
    fn new(key: Vec<Datum>, aggregates: &[AggregateNode]) -> Group {
        Group {
            key,
            states: aggregates.iter().map(|a| a.spec.init()).collect(),
            distinct: aggregates.iter().map(|_| FxHashSet::default()).collect(),
            ordered: aggregates.iter().map(|_| Vec::new()).collect(),
        }
    }
}

/// A grouping in progress.
#[derive(Default)]
pub(crate) struct AggregateRun {
    result: Option<VecDeque<Batch>>,
}

impl AggregateRun {
    pub async fn next(
        &mut self,
        input: &Node,
        keys: &[Expr],
        aggregates: &[AggregateNode],
        x: &mut Exec<'_>,
    ) -> Result<Option<Batch>, Error> {
        if self.result.is_none() {
            self.result = Some(group(input, keys, aggregates, x).await?);
        }
        Ok(self.result.as_mut().and_then(VecDeque::pop_front))
    }
}

async fn group(
    input: &Node,
    keys: &[Expr],
    aggregates: &[AggregateNode],
    x: &mut Exec<'_>,
) -> Result<VecDeque<Batch>, Error> {
    let mut op = Op::new(input);
    let mut groups: Vec<Group> = Vec::new();
    let mut by_key: FxHashMap<Vec<Datum>, usize> = FxHashMap::default();
    if keys.is_empty() {
        groups.push(Group::new(Vec::new(), aggregates));
    }
    let mut key: Vec<Datum> = Vec::new();
    let mut args: Vec<Datum> = Vec::new();
    while let Some(b) = op.next(input, x).await? {
        let mut bytes = 0;
        {
            let cx = x.cx();
            for r in 0..b.len() {
                let row = RowRef::Batch(&b, r);
                let at = if keys.is_empty() {
                    0
                } else {
                    key.clear();
                    for k in keys {
                        key.push(eval(k, row, &cx)?);
                    }
                    match by_key.get(&key) {
                        Some(at) => *at,
                        None => {
                            bytes += 2 * key.iter().map(Datum::memory_bytes).sum::<usize>()
                                + aggregates.len() * 96
                                + 128;
                            groups.push(Group::new(key.clone(), aggregates));
                            by_key.insert(key.clone(), groups.len() - 1);
                            groups.len() - 1
                        }
                    }
                };
                let g = &mut groups[at];
                for (i, a) in aggregates.iter().enumerate() {
                    if let Some(f) = &a.filter
                        && !eval_true(f, row, &cx)?
                    {
                        continue;
                    }
                    args.clear();
                    for e in &a.args {
                        args.push(eval(e, row, &cx)?);
                    }
                    if a.distinct {
                        if g.distinct[i].contains(&args) {
                            continue;
                        }
                        bytes += args.iter().map(Datum::memory_bytes).sum::<usize>() + 48;
                        g.distinct[i].insert(args.clone());
                    }
                    if !a.order.is_empty() {
                        let by =
                            a.order.iter().map(|k| eval(&k.expr, row, &cx)).collect::<Result<Vec<_>, _>>()?;
                        bytes += args.iter().chain(&by).map(Datum::memory_bytes).sum::<usize>() + 48;
                        g.ordered[i].push((args.clone(), by));
                        continue;
                    }
                    // What grows with the rows is paid for by the row.
                    if matches!(a.spec.name, "string_agg" | "array_agg") {
                        bytes += args.iter().map(Datum::memory_bytes).sum::<usize>();
                    }
                    g.states[i].update(&args)?;
                }
            }
        }
        if bytes > 0 {
            x.state.charge(bytes)?;
        }
    }
    drop(by_key);
    let mut out = VecDeque::new();
    let mut batch = Batch::empty(keys.len() + aggregates.len());
    for mut g in groups {
        let mut row = g.key;
        for (i, state) in g.states.into_iter().enumerate() {
            let mut state = state;
            let order = &aggregates[i].order;
            if !order.is_empty() {
                let mut rows = std::mem::take(&mut g.ordered[i]);
                rows.sort_by(|a, b| compare_keys(order, a.1.iter(), b.1.iter()));
                for (args, _) in rows {
                    state.update(&args)?;
                }
            }
            row.push(state.finish()?);
        }
        batch.push_row(row);
        if batch.len() == BATCH_ROWS {
            let width = batch.width();
            out.push_back(std::mem::replace(&mut batch, Batch::empty(width)));
        }
    }
    if !batch.is_empty() {
        out.push_back(batch);
    }
    Ok(out)
}

/// A set operation in progress.
pub(crate) struct SetOpRun {
    left: Op,
    right: Op,
    left_done: bool,
    /// Rows seen (UNION), or rows of the right side with how often they may still count.
    seen: Option<FxHashMap<Vec<Datum>, usize>>,
    emitted: FxHashSet<Vec<Datum>>,
}

impl SetOpRun {
    pub fn new(left: Op, right: Op) -> SetOpRun {
        SetOpRun { left, right, left_done: false, seen: None, emitted: FxHashSet::default() }
    }

    pub async fn next(
        &mut self,
        op: SetOpKind,
        all: bool,
        left: &Node,
        right: &Node,
        x: &mut Exec<'_>,
    ) -> Result<Option<Batch>, Error> {
        if op == SetOpKind::Union {
            loop {
                let next = if self.left_done {
                    self.right.next(right, x).await?
                } else {
                    self.left.next(left, x).await?
                };
                let Some(mut b) = next else {
                    if self.left_done {
                        return Ok(None);
                    }
                    self.left_done = true;
                    continue;
                };
                if all {
                    return Ok(Some(b));
                }
                let keep = self.first_time(&b, x)?;
                b.retain(&keep);
                if !b.is_empty() {
                    return Ok(Some(b));
                }
            }
        }
        if self.seen.is_none() {
            let mut seen: FxHashMap<Vec<Datum>, usize> = FxHashMap::default();
            while let Some(b) = self.right.next(right, x).await? {
                x.state.charge(b.memory_bytes())?;
                for r in 0..b.len() {
                    *seen.entry(b.row(r)).or_default() += 1;
                }
            }
            self.seen = Some(seen);
        }
        while let Some(mut b) = self.left.next(left, x).await? {
            let mut keep = Vec::with_capacity(b.len());
            {
                let seen = self.seen.as_mut().expect("the right side was read");
                for r in 0..b.len() {
                    let row = b.row(r);
                    keep.push(match (op, all) {
                        (SetOpKind::Intersect, false) => seen.contains_key(&row),
                        (SetOpKind::Except, false) => !seen.contains_key(&row),
                        (_, true) => {
                            let there = match seen.get_mut(&row) {
                                Some(n) if *n > 0 => {
                                    *n -= 1;
                                    true
                                }
                                _ => false,
                            };
                            there == (op == SetOpKind::Intersect)
                        }
                        (SetOpKind::Union, _) => true,
                    });
                }
            }
            b.retain(&keep);
            if !all && !b.is_empty() {
                let keep = self.first_time(&b, x)?;
                b.retain(&keep);
            }
            if !b.is_empty() {
                return Ok(Some(b));
            }
        }
        Ok(None)
    }

    /// For each row: did it not come before?
    fn first_time(&mut self, b: &Batch, x: &mut Exec<'_>) -> Result<Vec<bool>, Error> {
        let mut keep = Vec::with_capacity(b.len());
        for r in 0..b.len() {
            let row = b.row(r);
            let bytes = row.iter().map(Datum::memory_bytes).sum::<usize>() + 32;
            let new = self.emitted.insert(row);
            if new {
                x.state.charge(bytes)?;
            }
            keep.push(new);
        }
        Ok(keep)
    }
}
