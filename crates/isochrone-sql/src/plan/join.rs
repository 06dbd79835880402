//! Joins: inner joins are taken apart into relations and conditions, ordered greedily, and put together by lookup,
//! hash or loop.

use std::collections::BTreeSet;

use isochrone_txn::kv::Lock;
use isochrone_types::Error;

use super::access::TableRef;
use super::build::{Hint, Planner, reduce_join, selectivity, split_subqueries};
use super::expr::{ColId, Comparison, Expr, Kind};
use super::node::{Node, NodeOp};
use super::rel::{JoinKind, Rel};

/// Relations in one join problem; more are 54001.
const LEAVES_MAX: usize = 128;

struct Leaf {
    cols: BTreeSet<ColId>,
    table: Option<TableRef>,
    /// Predicates over this leaf alone.
    predicates: Vec<Expr>,
    node: Option<Node>,
}

struct Pred {
    expr: Expr,
    mask: u128,
    done: bool,
}

impl Planner<'_, '_> {
    /// Plans a tree of joins and tables.
    pub(crate) fn plan_joins(&mut self, rel: Rel, predicates: Vec<Expr>, hint: &Hint) -> Result<Node, Error> {
        if let Rel::Join { kind: kind @ (JoinKind::Left | JoinKind::Full), left, right, on } = rel {
            let reduced = reduce_join(kind, &left, &right, &predicates);
            if reduced != JoinKind::Inner {
                return self.outer_join(reduced, *left, *right, on, predicates, hint);
            }
            return self.plan_joins(Rel::Join { kind: JoinKind::Inner, left, right, on }, predicates, hint);
        }
        let mut leaves = Vec::new();
        let mut conditions = predicates;
        flatten(rel, &mut leaves, &mut conditions);
        if leaves.len() > LEAVES_MAX {
            return Err(Error::new(
                isochrone_types::SqlState::STATEMENT_TOO_COMPLEX,
                format!("more than {LEAVES_MAX} relations in one join"),
            ));
        }
        let mut conjuncts = Vec::new();
        conditions.into_iter().for_each(|c| c.into_conjuncts(&mut conjuncts));
        let (mut plain, mut late) = split_subqueries(conjuncts);
        let (volatile, stable): (Vec<Expr>, Vec<Expr>) = plain.into_iter().partition(Expr::is_volatile);
        plain = stable;
        late.extend(volatile);
        close_over_constants(&mut plain);

        let outputs: Vec<BTreeSet<ColId>> = leaves.iter().map(|l| l.output().into_iter().collect()).collect();
        let mask_of = |e: &Expr| {
            let mut cols = BTreeSet::new();
            e.columns(&mut cols);
            let mut mask = 0u128;
            for (i, o) in outputs.iter().enumerate() {
                if !o.is_disjoint(&cols) {
                    mask |= 1 << i;
                }
            }
            mask
        };
        let mut preds = Vec::new();
        let mut constant = Vec::new();
        let mut own: Vec<Vec<Expr>> = leaves.iter().map(|_| Vec::new()).collect();
        for p in plain {
            let mask = mask_of(&p);
            match mask.count_ones() {
                0 => constant.push(p),
                1 => own[mask.trailing_zeros() as usize].push(p),
                _ => preds.push(Pred { expr: p, mask, done: false }),
            }
        }
        // Late predicates of one leaf only still move to it when they hold a subquery, so that a join sees less.
        let mut top = constant;
        let single = leaves.len() == 1;
        let mut leaf_list = Vec::new();
        let leaf_hint = if single { hint.clone() } else { Hint { lock: Lock::None, ..Hint::default() } };
        for ((rel, cols), predicates) in leaves.into_iter().zip(outputs).zip(own) {
            let table = match &rel {
                Rel::Table { table, cols, alias } => {
                    Some(TableRef { table: table.clone(), cols: cols.clone(), alias: alias.clone() })
                }
                _ => None,
            };
            let node = match &table {
                Some(t) => self.plan_table(t, &predicates, &leaf_hint)?,
                None => self.plan(rel, predicates.clone(), &leaf_hint)?,
            };
            leaf_list.push(Leaf { cols, table, predicates, node: Some(node) });
        }
        let node = self.order_joins(leaf_list, preds)?;
        top.extend(late);
        self.filter(node, top)
    }

    pub(crate) fn plan_table(
        &mut self,
        t: &TableRef,
        predicates: &[Expr],
        hint: &Hint,
    ) -> Result<Node, Error> {
        let access = self.access(t, predicates, &BTreeSet::new(), hint);
        let rest: Vec<Expr> = predicates
            .iter()
            .enumerate()
            .filter(|(i, _)| !access.consumed.contains(i))
            .map(|(_, p)| p.clone())
            .collect();
        let (rows, cost, order) = (access.rows, access.cost, access.order.clone());
        let (scan, cols) = self.scan(t, access, predicates, rest, &[], hint.lock)?;
        let mut node = self.node(NodeOp::Scan(Box::new(scan)), cols, rows, cost);
        node.order = order;
        Ok(node)
    }

    fn order_joins(&mut self, mut leaves: Vec<Leaf>, mut preds: Vec<Pred>) -> Result<Node, Error> {
        let rows: Vec<f64> = leaves.iter().map(|l| l.node.as_ref().map_or(1.0, |n| n.rows)).collect();
        let totals: Vec<f64> = leaves
            .iter()
            .zip(&rows)
            .map(|(l, r)| match &l.table {
                Some(t) if t.table.row_estimate > 0 => t.table.row_estimate as f64,
                Some(_) => super::build::ROWS_UNKNOWN.max(*r),
                None => *r,
            })
            .collect();
        let mut left: BTreeSet<usize> = (0..leaves.len()).collect();
        let mut components: Vec<(Node, u128, BTreeSet<ColId>)> = Vec::new();
        while !left.is_empty() {
            let start = *left
                .iter()
                .min_by(|a, b| rows[**a].total_cmp(&rows[**b]).then(a.cmp(b)))
                .expect("some are left");
            left.remove(&start);
            let mut node = leaves[start].node.take().expect("each leaf is taken once");
            let mut mask = 1u128 << start;
            let mut cols = leaves[start].cols.clone();
            loop {
                let mut best: Option<(usize, f64)> = None;
                for &i in &left {
                    let bit = 1u128 << i;
                    let mut estimate = node.rows * rows[i];
                    let mut connected = false;
                    for p in preds.iter().filter(|p| !p.done && p.mask & bit != 0 && p.mask & mask != 0) {
                        // A condition with a third relation connects as well, but does not select yet.
                        connected = true;
                        if p.mask & !(mask | bit) == 0 {
                            estimate *= match &p.expr.kind {
                                Kind::Compare(Comparison::Eq, _) => 1.0 / totals[i].max(1.0),
                                _ => selectivity(&p.expr),
                            };
                        }
                    }
                    if connected && best.is_none_or(|(_, e)| estimate < e) {
                        best = Some((i, estimate));
                    }
                }
                let Some((i, estimate)) = best else { break };
                left.remove(&i);
                let bit = 1u128 << i;
                let mut on = Vec::new();
                for p in preds.iter_mut().filter(|p| !p.done && p.mask & !(mask | bit) == 0) {
                    p.done = true;
                    on.push(p.expr.clone());
                }
                let leaf = &mut leaves[i];
                let right = leaf.node.take().expect("each leaf is taken once");
                let own = std::mem::take(&mut leaf.predicates);
                let table = leaf.table.clone();
                let leaf_cols = leaf.cols.clone();
                node =
                    self.join(JoinKind::Inner, node, &cols, right, &leaf_cols, on, table.as_ref(), &own)?;
                node.rows = estimate.max(1.0);
                mask |= bit;
                cols.extend(leaf_cols);
            }
            components.push((node, mask, cols));
        }
        let mut parts = components.into_iter();
        let (mut node, mut mask, mut cols) = parts.next().expect("a join has a relation");
        for (right, right_mask, right_cols) in parts {
            mask |= right_mask;
            let mut on = Vec::new();
            for p in preds.iter_mut().filter(|p| !p.done && p.mask & !mask == 0) {
                p.done = true;
                on.push(p.expr.clone());
            }
            node = self.join(JoinKind::Inner, node, &cols, right, &right_cols, on, None, &[])?;
            cols.extend(right_cols);
        }
        debug_assert!(preds.iter().all(|p| p.done), "every condition is applied somewhere");
        Ok(node)
    }

    fn outer_join(
        &mut self,
        kind: JoinKind,
        left: Rel,
        right: Rel,
        on: Vec<Expr>,
        predicates: Vec<Expr>,
        hint: &Hint,
    ) -> Result<Node, Error> {
        let left_cols: BTreeSet<ColId> = left.output().into_iter().collect();
        let right_cols: BTreeSet<ColId> = right.output().into_iter().collect();
        let mut left_preds = Vec::new();
        let mut above = Vec::new();
        let mut conjuncts = Vec::new();
        predicates.into_iter().for_each(|p| p.into_conjuncts(&mut conjuncts));
        for p in conjuncts {
            let mut cols = BTreeSet::new();
            p.columns(&mut cols);
            let movable = kind == JoinKind::Left
                && cols.is_disjoint(&right_cols)
                && !p.has_subquery()
                && !p.is_volatile();
            if movable { left_preds.push(p) } else { above.push(p) }
        }
        let mut right_preds = Vec::new();
        let mut join_on = Vec::new();
        for p in on {
            let mut cols = BTreeSet::new();
            p.columns(&mut cols);
            let movable = kind == JoinKind::Left
                && cols.is_disjoint(&left_cols)
                && !p.has_subquery()
                && !p.is_volatile();
            if movable { right_preds.push(p) } else { join_on.push(p) }
        }
        let left_hint =
            if kind == JoinKind::Left { Hint { lock: Lock::None, ..hint.clone() } } else { Hint::default() };
        let left = self.plan(left, left_preds, &left_hint)?;
        let table = match &right {
            Rel::Table { table, cols, alias } => {
                Some(TableRef { table: table.clone(), cols: cols.clone(), alias: alias.clone() })
            }
            _ => None,
        };
        let right = match &table {
            Some(t) => self.plan_table(t, &right_preds, &Hint::default())?,
            None => self.plan(right, right_preds.clone(), &Hint::default())?,
        };
        let rows = left.rows.max(if kind == JoinKind::Full { right.rows } else { 1.0 });
        let mut node =
            self.join(kind, left, &left_cols, right, &right_cols, join_on, table.as_ref(), &right_preds)?;
        node.rows = node.rows.max(rows);
        self.filter(node, above)
    }

    /// Joins two nodes. With `table`, the right side is that table under `own` predicates, and may be looked up.
    #[expect(clippy::too_many_arguments, reason = "both sides, the conditions, and the alternative")]
    fn join(
        &mut self,
        kind: JoinKind,
        left: Node,
        left_cols: &BTreeSet<ColId>,
        right: Node,
        right_cols: &BTreeSet<ColId>,
        on: Vec<Expr>,
        table: Option<&TableRef>,
        own: &[Expr],
    ) -> Result<Node, Error> {
        let plain_on = on.iter().all(|e| !e.has_subquery());
        if let (Some(t), true, true) = (table, kind != JoinKind::Full, plain_on) {
            let mut all: Vec<Expr> = own.to_vec();
            all.extend(on.iter().cloned());
            let access = self.access(t, &all, left_cols, &Hint::default());
            let lookup_cost = left.rows * (2.0 + access.cost);
            let hash_cost = right.cost + right.rows + left.rows * 0.5;
            if access.uses_outer && lookup_cost < hash_cost {
                let mut filters = Vec::new();
                let mut residual = Vec::new();
                for (i, p) in all.iter().enumerate() {
                    if access.consumed.contains(&i) {
                        continue;
                    }
                    let mut cols = BTreeSet::new();
                    p.columns(&mut cols);
                    if cols.is_disjoint(left_cols) {
                        filters.push(p.clone())
                    } else {
                        residual.push(p.clone())
                    }
                }
                let (scan_rows, key_cols) = (access.rows, left.cols.clone());
                let (scan, scan_cols) = self.scan(t, access, &all, filters, &key_cols, Lock::None)?;
                let mut cols = left.cols.clone();
                cols.extend(&scan_cols);
                let residual =
                    if residual.is_empty() { None } else { Some(self.physical(Expr::and(residual), &cols)?) };
                let (rows, order) = (left.rows * scan_rows, left.order.clone());
                let cost = left.cost + lookup_cost;
                let scan_id = self.new_id();
                let op = NodeOp::LookupJoin {
                    kind,
                    left: Box::new(left),
                    scan: Box::new(scan),
                    residual,
                    scan_id,
                    scan_rows,
                };
                let mut node = self.node(op, cols, rows, cost);
                node.order = order;
                return Ok(node);
            }
        }
        // Equalities between the sides become hash keys.
        let (mut left_keys, mut right_keys, mut residual) = (Vec::new(), Vec::new(), Vec::new());
        for p in on {
            if let Kind::Compare(Comparison::Eq, two) = &p.kind
                && !p.has_subquery()
            {
                let [a, b] = two.as_ref();
                let side = |e: &Expr| {
                    let mut cols = BTreeSet::new();
                    e.columns(&mut cols);
                    (!cols.is_disjoint(left_cols), !cols.is_disjoint(right_cols))
                };
                match (side(a), side(b)) {
                    ((true, false), (false, true)) => {
                        left_keys.push(a.clone());
                        right_keys.push(b.clone());
                        continue;
                    }
                    ((false, true), (true, false)) => {
                        left_keys.push(b.clone());
                        right_keys.push(a.clone());
                        continue;
                    }
                    _ => {}
                }
            }
            residual.push(p);
        }
        // The smaller side is built, where the kind allows it.
        let (left, right, left_keys, right_keys) =
            if kind == JoinKind::Inner && !left_keys.is_empty() && left.rows < right.rows {
                (right, left, right_keys, left_keys)
            } else {
                (left, right, left_keys, right_keys)
            };
        let mut cols = left.cols.clone();
        cols.extend(&right.cols);
        let (lr, rr) = (left.rows, right.rows);
        let order = left.order.clone();
        let mut late = Vec::new();
        if kind == JoinKind::Inner {
            let (plain, subs) = split_subqueries(residual);
            residual = plain;
            late = subs;
        }
        let keep: f64 = residual.iter().map(selectivity).product();
        let residual =
            if residual.is_empty() { None } else { Some(self.physical(Expr::and(residual), &cols)?) };
        let mut node = if left_keys.is_empty() {
            let cost = left.cost + right.cost + lr * rr;
            let op = NodeOp::LoopJoin { kind, left: Box::new(left), right: Box::new(right), residual };
            self.node(op, cols, lr * rr * keep, cost)
        } else {
            let mut physical_left = Vec::new();
            let mut physical_right = Vec::new();
            for (l, r) in left_keys.into_iter().zip(right_keys) {
                physical_left.push(self.physical(l, &left.cols)?);
                physical_right.push(self.physical(r, &right.cols)?);
            }
            let cost = left.cost + right.cost + rr + lr * 0.5;
            let op = NodeOp::HashJoin {
                kind,
                left: Box::new(left),
                right: Box::new(right),
                left_keys: physical_left,
                right_keys: physical_right,
                residual,
            };
            self.node(op, cols, (lr * rr / lr.max(rr)) * keep, cost)
        };
        if kind != JoinKind::Full {
            node.order = order;
        }
        self.filter(node, late)
    }
}

fn flatten(rel: Rel, leaves: &mut Vec<Rel>, conditions: &mut Vec<Expr>) {
    match rel {
        Rel::Join { kind: JoinKind::Inner, left, right, on } => {
            flatten(*left, leaves, conditions);
            flatten(*right, leaves, conditions);
            conditions.extend(on);
        }
        Rel::Filter { input, predicates } => {
            conditions.extend(predicates);
            flatten(*input, leaves, conditions);
        }
        Rel::Join { kind, left, right, on } => match reduce_join(kind, &left, &right, conditions) {
            JoinKind::Inner => {
                flatten(Rel::Join { kind: JoinKind::Inner, left, right, on }, leaves, conditions)
            }
            kind => leaves.push(Rel::Join { kind, left, right, on }),
        },
        other => leaves.push(other),
    }
}

/// `a = b AND a = 5` gives `b = 5`: a second table gets a key, too.
fn close_over_constants(conjuncts: &mut Vec<Expr>) {
    let mut known: Vec<(ColId, Expr)> = Vec::new();
    let mut pairs: Vec<(Expr, Expr)> = Vec::new();
    for p in conjuncts.iter() {
        if let Kind::Compare(Comparison::Eq, two) = &p.kind {
            let [a, b] = two.as_ref();
            match (&a.kind, &b.kind) {
                (Kind::Col(_), Kind::Col(_)) if a.ty == b.ty => pairs.push((a.clone(), b.clone())),
                (Kind::Col(c), _) if b.is_row_constant() => known.push((*c, b.clone())),
                (_, Kind::Col(c)) if a.is_row_constant() => known.push((*c, a.clone())),
                _ => {}
            }
        }
    }
    if known.is_empty() || pairs.is_empty() {
        return;
    }
    loop {
        let before = known.len();
        for (a, b) in &pairs {
            let (Kind::Col(x), Kind::Col(y)) = (&a.kind, &b.kind) else { continue };
            for (from, to, to_expr) in [(*x, *y, b), (*y, *x, a)] {
                if known.iter().any(|(c, _)| *c == to) {
                    continue;
                }
                if let Some((_, value)) = known.iter().find(|(c, _)| *c == from) {
                    let value = value.clone();
                    let two = Box::new([to_expr.clone(), value.clone()]);
                    conjuncts
                        .push(Expr::new(Kind::Compare(Comparison::Eq, two), isochrone_types::Type::Bool));
                    known.push((to, value));
                }
            }
        }
        if known.len() == before {
            return;
        }
    }
}
