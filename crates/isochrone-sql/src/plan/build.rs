//! Relational trees to physical nodes: predicates move down as far as they may, each node is built bottom up.

use std::collections::{BTreeMap, BTreeSet};

use isochrone_txn::kv::Lock;
use isochrone_types::{Datum, Error, Type};

use super::expr::{ColId, Expr, Kind, SubKind};
use super::node::{
    AggregateNode, ApplyItem, Exprs, LockTarget, Node, NodeOp, Reserve, SortNodeKey, SubPlan, VirtualRef,
};
use super::rel::{JoinKind, Rel, SetOpKind, SortKey};
use crate::bind::{Binder, Bound};
use crate::parse_locks::RowWait;

/// Rows of a table whose size is unknown.
pub(crate) const ROWS_UNKNOWN: f64 = 1000.0;

/// What the consumer of a node would like.
#[derive(Clone, Default)]
pub(crate) struct Hint {
    /// This order.
    pub order: Vec<SortKey>,
    /// And only the first rows of it.
    pub first_rows: bool,
    /// The rows will be locked so: points may lock at once.
    pub lock: Lock,
}

/// What a planner leaves besides the node.
pub(crate) struct Parts {
    pub ctes: Vec<Option<Node>>,
    pub subs: Vec<SubPlan>,
    pub outers: usize,
    pub nodes: usize,
}

pub(crate) struct Planner<'p, 'a> {
    pub binder: &'p mut Binder<'a>,
    ctes: Vec<Option<Node>>,
    subs: Vec<SubPlan>,
    outer: BTreeMap<ColId, usize>,
    nodes: usize,
    pub used: BTreeSet<ColId>,
    /// First columns of the tables that are read for SKIP LOCKED.
    peeked: BTreeSet<ColId>,
}

/// The slot of a column; XX000 when it is not there.
pub(crate) fn slot(cols: &[ColId], col: ColId) -> Result<usize, Error> {
    cols.iter()
        .position(|c| *c == col)
        .ok_or_else(|| Error::internal(format!("column {col} is missing in the input of an operator")))
}

/// Sequences that an evaluation of these takes from.
pub(crate) fn reserve<'e>(exprs: impl Iterator<Item = &'e Expr>) -> Reserve {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for e in exprs {
        e.visit_own(&mut |e| {
            if let Kind::NextVal(s) = e.kind {
                *counts.entry(s).or_default() += 1;
            }
        });
    }
    counts.into_iter().collect()
}

impl<'p, 'a> Planner<'p, 'a> {
    pub fn new(binder: &'p mut Binder<'a>) -> Self {
        Planner {
            binder,
            ctes: Vec::new(),
            subs: Vec::new(),
            outer: BTreeMap::new(),
            nodes: 0,
            used: BTreeSet::new(),
            peeked: BTreeSet::new(),
        }
    }

    /// Is this table read for SKIP LOCKED?
    pub fn peeks(&self, cols: &[ColId]) -> bool {
        cols.first().is_some_and(|c| self.peeked.contains(c))
    }

    pub fn finish(self) -> Parts {
        Parts { ctes: self.ctes, subs: self.subs, outers: self.outer.len(), nodes: self.nodes }
    }

    pub fn cte_count(&self) -> usize {
        self.binder.ctes.len()
    }

    /// Notes every column that anything in the statement refers to: scans decode no others.
    pub fn collect_used(&mut self, bound: &Bound) {
        let mut used = BTreeSet::new();
        let mut add_rel = |r: &Rel| {
            r.visit(&mut |e| {
                if let Kind::Col(c) = e.kind {
                    used.insert(c);
                }
            });
            r.visit_rels(&mut |r| match r {
                Rel::Distinct { on, .. } => used.extend(on),
                Rel::SetOp { left_cols, right_cols, cols, .. } => {
                    used.extend(left_cols);
                    used.extend(right_cols);
                    used.extend(cols);
                }
                Rel::Lock { table, cols, .. } => {
                    for (id, _) in &table.primary.columns {
                        if let Some(p) = table.position(*id) {
                            used.insert(cols[p]);
                        }
                    }
                }
                _ => {}
            });
        };
        for c in &self.binder.ctes {
            add_rel(&c.rel);
        }
        match bound {
            Bound::Query(q) => add_rel(&q.rel),
            Bound::Insert(i) => add_rel(&i.source),
            Bound::Update(u) => add_rel(&u.rel),
            Bound::Delete(d) => add_rel(&d.rel),
        }
        let mut exprs: Vec<&Expr> = Vec::new();
        match bound {
            Bound::Query(q) => used.extend(q.out.iter().map(|o| o.col)),
            Bound::Insert(i) => {
                used.extend(&i.source_cols);
                exprs.extend(i.returning.iter().flatten().map(|(_, e)| e));
                if let Some(crate::bind::BoundConflict {
                    action: crate::bind::BoundConflictAction::Update { set, filter, .. },
                    ..
                }) = &i.conflict
                {
                    exprs.extend(set.iter().map(|(_, e)| e));
                    exprs.extend(filter);
                }
            }
            Bound::Update(u) => {
                used.extend(&u.cols);
                exprs.extend(u.set.iter().map(|(_, e)| e));
                exprs.extend(u.returning.iter().flatten().map(|(_, e)| e));
            }
            Bound::Delete(d) => {
                used.extend(&d.cols);
                exprs.extend(d.returning.iter().flatten().map(|(_, e)| e));
            }
        }
        for e in exprs {
            e.columns(&mut used);
            e.visit(&mut |e| {
                if let Kind::Sub(s) = &e.kind {
                    used.extend(&s.cols);
                }
            });
        }
        // Subqueries' outputs are referred to by their place.
        let mut subs = BTreeSet::new();
        let mut add_subs = |r: &Rel| {
            r.visit(&mut |e| {
                if let Kind::Sub(s) = &e.kind {
                    subs.extend(s.cols.iter().copied());
                }
            })
        };
        for c in &self.binder.ctes {
            add_subs(&c.rel);
        }
        match bound {
            Bound::Query(q) => add_subs(&q.rel),
            Bound::Insert(i) => add_subs(&i.source),
            Bound::Update(u) => add_subs(&u.rel),
            Bound::Delete(d) => add_subs(&d.rel),
        }
        used.extend(subs);
        for c in &self.binder.ctes {
            used.extend(c.out.iter().map(|o| o.col));
        }
        self.used = used;
    }

    /// Plans a WITH query; those before it are planned.
    pub fn plan_cte(&mut self, id: usize) -> Result<(), Error> {
        let rel = std::mem::replace(&mut self.binder.ctes[id].rel, Rel::One);
        let node = self.plan(rel, Vec::new(), &Hint::default())?;
        self.ctes.push(Some(node));
        Ok(())
    }

    pub fn new_id(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    pub fn node(&mut self, op: NodeOp, cols: Vec<ColId>, rows: f64, cost: f64) -> Node {
        Node { id: self.new_id(), op, cols, rows: rows.max(1.0), cost, order: Vec::new() }
    }

    /// Plans a tree whose output must satisfy the predicates.
    pub fn plan(&mut self, rel: Rel, mut predicates: Vec<Expr>, hint: &Hint) -> Result<Node, Error> {
        match rel {
            Rel::One => {
                let node = self.node(NodeOp::One, Vec::new(), 1.0, 0.0);
                self.filter(node, predicates)
            }
            Rel::Filter { input, predicates: more } => {
                predicates.extend(more);
                self.plan(*input, predicates, hint)
            }
            Rel::Table { .. } | Rel::Join { .. } => self.plan_joins(rel, predicates, hint),
            Rel::Virtual { table, cols, alias } => {
                let columns: Vec<usize> = (0..cols.len()).filter(|p| self.used.contains(&cols[*p])).collect();
                let out: Vec<ColId> = columns.iter().map(|p| cols[*p]).collect();
                let (plain, rest) = split_subqueries(predicates);
                let filter =
                    if plain.is_empty() { None } else { Some(self.physical(Expr::and(plain), &out)?) };
                let op = NodeOp::Virtual { table: VirtualRef(table), alias, columns, filter };
                let node = self.node(op, out, 100.0, 100.0);
                self.filter(node, rest)
            }
            Rel::Values { cols, rows } => {
                let count = rows.len() as f64;
                let mut physical = Vec::with_capacity(rows.len());
                for r in rows {
                    // Subqueries in VALUES see no row: only enclosing queries.
                    physical.push(
                        r.into_iter().map(|e| self.physical_in_values(e)).collect::<Result<Vec<_>, _>>()?,
                    );
                }
                let reserve = physical.iter().map(|r| reserve(r.iter())).fold(Vec::new(), max_reserve);
                let node = self.node(NodeOp::Values { rows: physical, reserve }, cols, count, count);
                self.filter(node, predicates)
            }
            Rel::Function { function, name, args, cols } => {
                let ty = self.binder.cols[cols[0] as usize].ty;
                let ordinality = cols.len() > 1;
                let args = args.into_iter().map(|e| self.physical(e, &[])).collect::<Result<Vec<_>, _>>()?;
                let op = NodeOp::Function { function, name, args, ty, ordinality };
                let node = self.node(op, cols, ROWS_UNKNOWN, ROWS_UNKNOWN);
                self.filter(node, predicates)
            }
            Rel::Project { input, exprs } => {
                // A predicate moves below when what it refers to can be computed there, once.
                let mut below = Vec::new();
                let mut above = Vec::new();
                for p in predicates {
                    let mut cols = BTreeSet::new();
                    p.columns(&mut cols);
                    let movable = !p.has_subquery()
                        && exprs
                            .iter()
                            .filter(|(c, _)| cols.contains(c))
                            .all(|(_, e)| !e.is_volatile() && !e.has_subquery());
                    if movable {
                        let mut p = p;
                        p.rewrite(&mut |e| {
                            if let Kind::Col(c) = e.kind
                                && let Some((_, value)) = exprs.iter().find(|(x, _)| *x == c)
                            {
                                *e = value.clone();
                            }
                        });
                        below.push(p);
                    } else {
                        above.push(p);
                    }
                }
                let passes = |c: &ColId| {
                    exprs.iter().any(|(x, e)| x == c && matches!(e.kind, Kind::Col(y) if y == *x))
                };
                let inner_hint = Hint {
                    order: hint
                        .order
                        .iter()
                        .take_while(|k| matches!(k.expr.kind, Kind::Col(c) if passes(&c)))
                        .cloned()
                        .collect(),
                    ..hint.clone()
                };
                let input = self.plan(*input, below, &inner_hint)?;
                let (cols, exprs): (Vec<ColId>, Vec<Expr>) =
                    exprs.into_iter().filter(|(c, e)| self.used.contains(c) || e.is_volatile()).unzip();
                let node = self.project(input, cols, exprs)?;
                self.filter(node, above)
            }
            Rel::Aggregate { input, keys, aggregates } => {
                let mut below = Vec::new();
                let mut above = Vec::new();
                for p in predicates {
                    let mut cols = BTreeSet::new();
                    p.columns(&mut cols);
                    // Only columns that the grouping passes on; without keys the one row would be lost.
                    let passes = cols.iter().all(|c| {
                        keys.iter().any(|(k, e)| k == c && matches!(e.kind, Kind::Col(x) if x == *c))
                    });
                    if !keys.is_empty() && !cols.is_empty() && passes && !p.has_subquery() && !p.is_volatile()
                    {
                        below.push(p);
                    } else {
                        above.push(p);
                    }
                }
                let node = self.aggregate(*input, below, keys, aggregates)?;
                self.filter(node, above)
            }
            Rel::Distinct { input, on } => {
                let mut below = Vec::new();
                let mut above = Vec::new();
                for p in predicates {
                    let mut cols = BTreeSet::new();
                    p.columns(&mut cols);
                    if cols.iter().all(|c| on.contains(c)) && !p.is_volatile() && !p.has_subquery() {
                        below.push(p);
                    } else {
                        above.push(p);
                    }
                }
                let input = self.plan(*input, below, hint)?;
                let slots = on.iter().map(|c| slot(&input.cols, *c)).collect::<Result<Vec<_>, _>>()?;
                let (cols, rows, cost, order) = (
                    input.cols.clone(),
                    (input.rows / 2.0).max(1.0),
                    input.cost + input.rows,
                    input.order.clone(),
                );
                let mut node =
                    self.node(NodeOp::Distinct { input: Box::new(input), on: slots }, cols, rows, cost);
                node.order = order;
                self.filter(node, above)
            }
            Rel::Sort { input, keys } => {
                let node = self.sort(*input, predicates, keys, hint, None)?;
                Ok(node)
            }
            Rel::Limit { input, limit, offset } => {
                let limit = limit.map(|e| self.physical(e, &[])).transpose()?;
                let offset = offset.map(|e| self.physical(e, &[])).transpose()?;
                let first = Hint { first_rows: limit.is_some(), ..hint.clone() };
                let top = limit.clone().map(|l| (l, offset.clone()));
                let input = match *input {
                    Rel::Sort { input, keys } => self.sort(*input, Vec::new(), keys, &first, top)?,
                    Rel::Project { input, exprs } => {
                        self.plan(Rel::Project { input, exprs }, Vec::new(), &first)?
                    }
                    other => self.plan(other, Vec::new(), &first)?,
                };
                let rows = match &limit {
                    Some(Expr { kind: Kind::Const(d), .. }) => d.as_i64().unwrap_or(100) as f64,
                    Some(_) => 100.0,
                    None => input.rows,
                };
                let (cols, order) = (input.cols.clone(), input.order.clone());
                let (rows, cost) = (rows.min(input.rows), input.cost);
                let mut node =
                    self.node(NodeOp::Limit { input: Box::new(input), limit, offset }, cols, rows, cost);
                node.order = order;
                self.filter(node, predicates)
            }
            Rel::SetOp { op, all, left, left_cols, right, right_cols, cols } => {
                let mut sides = Vec::new();
                for (rel, side) in [(*left, left_cols), (*right, right_cols)] {
                    let node = self.plan(rel, Vec::new(), &Hint::default())?;
                    let exprs: Vec<Expr> = side.iter().map(|c| self.col(*c)).collect();
                    let exact = node.cols == side;
                    sides.push(if exact { node } else { self.project(node, side, exprs)? });
                }
                let right = sides.pop().expect("two sides were planned");
                let left = sides.pop().expect("two sides were planned");
                let rows = match op {
                    SetOpKind::Union => left.rows + right.rows,
                    _ => left.rows,
                };
                let cost = left.cost + right.cost + rows;
                let op = NodeOp::SetOp { op, all, left: Box::new(left), right: Box::new(right) };
                let node = self.node(op, cols, rows, cost);
                self.filter(node, predicates)
            }
            Rel::Cte { id, cols, alias } => {
                let Some(Some(source)) = self.ctes.get(id) else {
                    return Err(Error::internal("a WITH query is read before it is planned"));
                };
                let (rows, source_cols) = (source.rows, source.cols.clone());
                let mut out = Vec::new();
                let mut slots = Vec::new();
                for (o, c) in self.binder.ctes[id].out.iter().zip(&cols) {
                    if self.used.contains(c) {
                        out.push(*c);
                        slots.push(slot(&source_cols, o.col)?);
                    }
                }
                let node = self.node(NodeOp::Cte { id, alias, slots }, out, rows, rows);
                self.filter(node, predicates)
            }
            Rel::Lock { input, table, cols, predicates: conditions, lock, wait, outer } => {
                if wait == RowWait::Skip {
                    self.peeked.extend(cols.first());
                }
                // What comes from above decides about rows as they are under the lock.
                let input = self.plan(*input, Vec::new(), hint)?;
                let slots: Vec<Option<usize>> =
                    cols.iter().map(|c| input.cols.iter().position(|x| x == c)).collect();
                let recheck = self.exprs(conditions, &input.cols)?;
                let (out, rows, cost, order) =
                    (input.cols.clone(), input.rows, input.cost + input.rows * 4.0, input.order.clone());
                let one_by_one = hint.first_rows;
                let target = Box::new(LockTarget { table, slots, recheck, lock, wait, outer, one_by_one });
                let mut node = self.node(NodeOp::Lock { input: Box::new(input), target }, out, rows, cost);
                node.order = order;
                self.filter(node, predicates)
            }
        }
    }

    pub fn col(&self, c: ColId) -> Expr {
        Expr::col(c, self.binder.cols.get(c as usize).map_or(Type::Bool, |i| i.ty))
    }

    fn sort(
        &mut self,
        input: Rel,
        predicates: Vec<Expr>,
        keys: Vec<SortKey>,
        hint: &Hint,
        top: Option<(Expr, Option<Expr>)>,
    ) -> Result<Node, Error> {
        // Constants do not order anything.
        let keys: Vec<SortKey> =
            keys.into_iter().filter(|k| !matches!(k.expr.kind, Kind::Const(_))).collect();
        let plain = keys.iter().all(|k| matches!(k.expr.kind, Kind::Col(_)));
        let inner = Hint {
            order: if plain { keys.clone() } else { Vec::new() },
            first_rows: hint.first_rows,
            lock: hint.lock,
        };
        let mut node = self.plan(input, predicates, &inner)?;
        let ordered = keys.len() <= node.order.len()
            && keys.iter().zip(&node.order).all(|(k, (c, desc, nulls_first))| {
                matches!(k.expr.kind, Kind::Col(x) if x == *c)
                    && k.desc == *desc
                    && (k.nulls_first == *nulls_first || self.never_null(*c))
            });
        if ordered || keys.is_empty() {
            return Ok(node);
        }
        let mut exprs: Vec<Expr> = keys.iter().map(|k| k.expr.clone()).collect();
        node = self.attach(node, &mut exprs)?;
        let order: Vec<(ColId, bool, bool)> = keys
            .iter()
            .map_while(|k| match k.expr.kind {
                Kind::Col(c) => Some((c, k.desc, k.nulls_first)),
                _ => None,
            })
            .collect();
        let keys = keys
            .into_iter()
            .zip(exprs)
            .map(|(k, expr)| SortNodeKey { expr, desc: k.desc, nulls_first: k.nulls_first })
            .collect();
        let (cols, rows) = (node.cols.clone(), node.rows);
        let cost = node.cost + rows * (rows.max(2.0)).log2() * 0.2;
        let mut node = self.node(NodeOp::Sort { input: Box::new(node), keys, top }, cols, rows, cost);
        node.order = order;
        Ok(node)
    }

    /// Is the column declared NOT NULL (and not on the empty side of an outer join, which nobody asks here)?
    fn never_null(&self, c: ColId) -> bool {
        let Some(info) = self.binder.cols.get(c as usize) else { return false };
        let Some(i) = info.instance else { return false };
        let (table, cols) = &self.binder.instances[i];
        cols.iter().position(|x| *x == c).is_some_and(|p| {
            table.columns[p].not_null
                || table.primary.columns.iter().any(|(id, _)| *id == table.columns[p].id)
        })
    }

    fn aggregate(
        &mut self,
        input: Rel,
        below: Vec<Expr>,
        keys: Vec<(ColId, Expr)>,
        aggregates: Vec<(ColId, super::rel::Aggregate)>,
    ) -> Result<Node, Error> {
        // min and max of an indexed column read one end of the index.
        let mut node = None;
        if let ([], [(_, a)]) = (keys.as_slice(), aggregates.as_slice())
            && matches!(a.spec.name, "min" | "max")
            && !a.distinct
            && a.filter.is_none()
            && let [arg] = a.args.as_slice()
            && let Kind::Col(c) = arg.kind
            && is_one_table(&input)
        {
            let desc = a.spec.name == "max";
            let hint = Hint {
                order: vec![SortKey { expr: arg.clone(), desc, nulls_first: desc }],
                first_rows: true,
                lock: Lock::None,
            };
            let mut with_not_null = below.clone();
            if !self.never_null(c) {
                with_not_null.push(Expr::new(Kind::IsNull(Box::new(arg.clone())), Type::Bool).negated(true));
            }
            let candidate = self.plan(input.clone(), with_not_null, &hint)?;
            if candidate.order.first().is_some_and(|(x, d, _)| *x == c && *d == desc) {
                let one = Expr::constant(Datum::Int8(1), Type::Int8);
                let (cols, cost) = (candidate.cols.clone(), candidate.cost);
                let op = NodeOp::Limit { input: Box::new(candidate), limit: Some(one), offset: None };
                node = Some(self.node(op, cols, 1.0, cost));
            }
        }
        let mut input = match node {
            Some(n) => n,
            None => self.plan(input, below, &Hint::default())?,
        };
        // All expressions go through one list, so that their subqueries share one Apply.
        let mut list: Vec<Expr> = keys.iter().map(|(_, e)| e.clone()).collect();
        for (_, a) in &aggregates {
            list.extend(a.args.iter().cloned());
            list.extend(a.filter.iter().cloned());
            list.extend(a.order.iter().map(|k| k.expr.clone()));
        }
        input = self.attach(input, &mut list)?;
        let mut rest = list.into_iter();
        let mut cols: Vec<ColId> = keys.iter().map(|(c, _)| *c).collect();
        let key_exprs: Vec<Expr> = rest.by_ref().take(keys.len()).collect();
        let mut nodes = Vec::new();
        for (c, a) in aggregates {
            cols.push(c);
            let args = rest.by_ref().take(a.args.len()).collect();
            let filter = a.filter.as_ref().and_then(|_| rest.next());
            let order = a
                .order
                .iter()
                .zip(rest.by_ref().take(a.order.len()))
                .map(|(k, expr)| SortNodeKey { expr, desc: k.desc, nulls_first: k.nulls_first })
                .collect();
            nodes.push(AggregateNode { spec: a.spec, args, distinct: a.distinct, filter, order });
        }
        let rows = if keys.is_empty() { 1.0 } else { (input.rows / 10.0).max(1.0) };
        let cost = input.cost + input.rows;
        let op = NodeOp::Aggregate { input: Box::new(input), keys: key_exprs, aggregates: nodes };
        Ok(self.node(op, cols, rows, cost))
    }

    /// Puts a projection on a node.
    pub fn project(&mut self, input: Node, cols: Vec<ColId>, mut exprs: Vec<Expr>) -> Result<Node, Error> {
        let input = self.attach(input, &mut exprs)?;
        let order: Vec<(ColId, bool, bool)> =
            input.order.iter().copied().take_while(|(c, _, _)| cols.contains(c)).collect();
        let (rows, cost) = (input.rows, input.cost + input.rows * 0.1);
        let reserve = reserve(exprs.iter());
        let mut node =
            self.node(NodeOp::Project { input: Box::new(input), exprs, reserve }, cols, rows, cost);
        node.order = order;
        Ok(node)
    }

    /// Puts a filter on a node: what needs subqueries after what does not.
    pub fn filter(&mut self, mut node: Node, predicates: Vec<Expr>) -> Result<Node, Error> {
        let (plain, subs) = split_subqueries(predicates);
        for group in [plain, subs] {
            if group.is_empty() {
                continue;
            }
            let selectivity: f64 = group.iter().map(selectivity).product();
            let mut list = vec![Expr::and(group)];
            node = self.attach(node, &mut list)?;
            let predicate = list.pop().expect("one went in");
            let (cols, rows, cost, order) =
                (node.cols.clone(), node.rows * selectivity, node.cost + node.rows * 0.1, node.order.clone());
            let reserve = reserve(std::iter::once(&predicate));
            node = self.node(NodeOp::Filter { input: Box::new(node), predicate, reserve }, cols, rows, cost);
            node.order = order;
        }
        Ok(node)
    }

    /// Makes expressions physical over a node, and gives the node the Apply that their subqueries need.
    pub fn attach(&mut self, mut node: Node, exprs: &mut [Expr]) -> Result<Node, Error> {
        let mut items = Vec::new();
        let mut cols = node.cols.clone();
        for e in exprs.iter_mut() {
            self.lift(e, &mut cols, &mut items)?;
        }
        // An Apply runs before the rest of the list: values that setval changes would be read too late.
        if items.iter().any(|i| matches!(i, ApplyItem::SetVal { .. }))
            && exprs
                .iter()
                .any(|e| e.any(&|e| matches!(e.kind, Kind::NextVal(_) | Kind::CurrVal(_) | Kind::LastVal)))
        {
            return Err(Error::unsupported("setval beside nextval, currval or lastval in one select list"));
        }
        if !items.is_empty() {
            let (rows, order) = (node.rows, node.order.clone());
            let cost = node.cost + rows * 10.0;
            node = self.node(NodeOp::Apply { input: Box::new(node), items }, cols, rows, cost);
            node.order = order;
        }
        Ok(node)
    }

    /// Makes expressions physical over a row with these columns, with the subqueries that they need.
    pub fn exprs(&mut self, mut exprs: Vec<Expr>, cols: &[ColId]) -> Result<Exprs, Error> {
        let mut cols = cols.to_vec();
        let mut items = Vec::new();
        for e in &mut exprs {
            self.lift(e, &mut cols, &mut items)?;
        }
        let reserve = reserve(exprs.iter());
        Ok(Exprs { items, exprs, reserve })
    }

    /// Makes an expression physical where no Apply can stand.
    pub fn physical(&mut self, mut e: Expr, cols: &[ColId]) -> Result<Expr, Error> {
        let mut cols = cols.to_vec();
        let mut items = Vec::new();
        self.lift(&mut e, &mut cols, &mut items)?;
        if !items.is_empty() {
            return Err(Error::unsupported("a correlated subquery in this place"));
        }
        Ok(e)
    }

    fn physical_in_values(&mut self, e: Expr) -> Result<Expr, Error> {
        self.physical(e, &[])
    }

    fn outer_index(&mut self, c: ColId) -> usize {
        let next = self.outer.len();
        *self.outer.entry(c).or_insert(next)
    }

    /// Replaces columns by slots and subqueries by their values or by columns of an Apply.
    fn lift(&mut self, e: &mut Expr, cols: &mut Vec<ColId>, items: &mut Vec<ApplyItem>) -> Result<(), Error> {
        let mut error = None;
        e.children_mut(&mut |c| {
            if error.is_none() {
                error = self.lift(c, cols, items).err();
            }
        });
        if let Some(e) = error {
            return Err(e);
        }
        match &mut e.kind {
            Kind::Col(c) => {
                let c = *c;
                e.kind = Kind::Slot(slot(cols, c)?);
            }
            Kind::SetVal(sequence, two) => {
                let [value, called] = two.as_ref().clone();
                let item = ApplyItem::SetVal { sequence: *sequence, value, called };
                e.kind = Kind::Slot(self.new_item(item, e.ty, cols, items));
            }
            Kind::Advisory(call, args) => {
                let item = ApplyItem::Advisory { call: *call, args: args.clone() };
                e.kind = Kind::Slot(self.new_item(item, e.ty, cols, items));
            }
            Kind::Sub(_) => {
                let Kind::Sub(sub) = std::mem::replace(&mut e.kind, Kind::LastVal) else {
                    return Err(Error::internal("a subquery is a subquery"));
                };
                let mut sub = *sub;
                let free = sub.rel.free();
                let mut correlated = !free.is_empty();
                sub.rel.visit(&mut |e| correlated |= matches!(e.kind, Kind::Outer(_)));
                let mut binds = Vec::new();
                let mut map = BTreeMap::new();
                for c in free {
                    let k = self.outer_index(c);
                    map.insert(c, k);
                    let ty = self.col(c).ty;
                    binds.push((k, Expr::new(Kind::Slot(slot(cols, c)?), ty)));
                }
                if !map.is_empty() {
                    sub.rel.rewrite(&mut |e| {
                        if let Kind::Col(c) = e.kind
                            && let Some(k) = map.get(&c)
                        {
                            e.kind = Kind::Outer(*k);
                        }
                    });
                }
                let rel = match sub.kind {
                    // One row decides EXISTS; two decide that a scalar has too many.
                    SubKind::Exists => limited(sub.rel, 1),
                    SubKind::Scalar => limited(sub.rel, 2),
                    _ => sub.rel,
                };
                let node = self.plan(rel, Vec::new(), &Hint::default())?;
                let slots = match sub.kind {
                    SubKind::Exists => Vec::new(),
                    _ => sub.cols.iter().map(|c| slot(&node.cols, *c)).collect::<Result<_, _>>()?,
                };
                self.subs.push(SubPlan { node, slots });
                let number = self.subs.len() - 1;
                e.kind = if correlated {
                    let item = ApplyItem::Sub { sub: number, kind: sub.kind, left: sub.left, binds };
                    Kind::Slot(self.new_item(item, e.ty, cols, items))
                } else {
                    Kind::SubValue(number, sub.kind, sub.left)
                };
            }
            _ => {}
        }
        Ok(())
    }

    fn new_item(
        &mut self,
        item: ApplyItem,
        ty: Type,
        cols: &mut Vec<ColId>,
        items: &mut Vec<ApplyItem>,
    ) -> usize {
        let col = self.binder.new_col("?column?", ty);
        items.push(item);
        cols.push(col);
        cols.len() - 1
    }
}

fn limited(rel: Rel, n: i64) -> Rel {
    Rel::Limit { input: Box::new(rel), limit: Some(Expr::constant(Datum::Int8(n), Type::Int8)), offset: None }
}

fn max_reserve(mut a: Reserve, b: Reserve) -> Reserve {
    for (s, n) in b {
        match a.iter_mut().find(|(x, _)| *x == s) {
            Some((_, m)) => *m = (*m).max(n),
            None => a.push((s, n)),
        }
    }
    a
}

fn is_one_table(rel: &Rel) -> bool {
    match rel {
        Rel::Table { .. } => true,
        Rel::Filter { input, .. } => is_one_table(input),
        _ => false,
    }
}

/// Parts predicates that need subqueries from those that do not.
pub(crate) fn split_subqueries(predicates: Vec<Expr>) -> (Vec<Expr>, Vec<Expr>) {
    predicates.into_iter().partition(|p| !p.has_subquery())
}

/// What part of the rows a condition keeps, as far as one can guess.
pub(crate) fn selectivity(e: &Expr) -> f64 {
    use super::expr::Comparison;
    match &e.kind {
        Kind::Compare(Comparison::Eq, _) => 0.01,
        Kind::Compare(Comparison::Ne, _) => 0.99,
        Kind::Compare(..) => 0.33,
        Kind::InList(_, list) => (0.01 * list.len() as f64).min(0.5),
        Kind::InSet(_, list) => (0.01 * list.values.len() as f64).min(0.5),
        Kind::And(items) => items.iter().map(selectivity).product(),
        Kind::Or(items) => items.iter().map(selectivity).sum::<f64>().min(0.9),
        Kind::Not(inner) => (1.0 - selectivity(inner)).max(0.05),
        Kind::IsNull(_) => 0.05,
        Kind::Const(Datum::Bool(true)) => 1.0,
        Kind::Const(_) => 0.0,
        _ => 0.5,
    }
}

/// A LEFT join whose empty side a predicate rejects is an inner one: is the predicate never true when these columns
/// are all NULL?
pub(crate) fn rejects_nulls(e: &Expr, cols: &BTreeSet<ColId>) -> bool {
    match &e.kind {
        Kind::Compare(_, two) => two.iter().any(|x| null_if_null(x, cols)),
        Kind::And(items) => items.iter().any(|x| rejects_nulls(x, cols)),
        Kind::Or(items) => items.iter().all(|x| rejects_nulls(x, cols)),
        Kind::Not(inner) => match &inner.kind {
            Kind::IsNull(x) => null_if_null(x, cols),
            _ => null_if_null(inner, cols),
        },
        Kind::InList(x, _) | Kind::InSet(x, _) => null_if_null(x, cols),
        Kind::Call(f, args) => f.strict() && args.iter().any(|x| null_if_null(x, cols)),
        Kind::Col(c) => cols.contains(c),
        _ => false,
    }
}

fn null_if_null(e: &Expr, cols: &BTreeSet<ColId>) -> bool {
    match &e.kind {
        Kind::Col(c) => cols.contains(c),
        Kind::Cast(x, _) => null_if_null(x, cols),
        Kind::Call(f, args) => f.strict() && args.iter().any(|x| null_if_null(x, cols)),
        Kind::Compare(_, two) => two.iter().any(|x| null_if_null(x, cols)),
        _ => false,
    }
}

/// The kind of join that remains under these predicates.
pub(crate) fn reduce_join(kind: JoinKind, left: &Rel, right: &Rel, predicates: &[Expr]) -> JoinKind {
    let side = |r: &Rel| r.output().into_iter().collect::<BTreeSet<_>>();
    let rejects = |r: &Rel| {
        let cols = side(r);
        predicates.iter().any(|p| rejects_nulls(p, &cols))
    };
    match kind {
        JoinKind::Left if rejects(right) => JoinKind::Inner,
        JoinKind::Full if rejects(left) && rejects(right) => JoinKind::Inner,
        JoinKind::Full if rejects(left) => JoinKind::Left,
        other => other,
    }
}
