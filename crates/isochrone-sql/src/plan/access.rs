//! How to read a table: which index, which keys, what is left to filter.
//!
//! A condition becomes part of a key when it compares a column of the index with something that is constant while
//! the scan is open: a constant, a parameter, a column of the outer side of a lookup join.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_txn::kv::Lock;
use isochrone_types::{Datum, Error, Type};

use super::build::{Hint, Planner, ROWS_UNKNOWN, selectivity};
use super::expr::{ColId, Comparison, Expr, Kind, QuantOp};
use super::node::{KeyPart, Scan, Span};
use crate::descriptor::{IndexDescriptor, IndexState, TableDescriptor};
use crate::exec::table::TableReader;
use crate::rows::key_loses;

/// A table as the planner meets it.
#[derive(Clone)]
pub(crate) struct TableRef {
    pub table: Arc<TableDescriptor>,
    pub cols: Vec<ColId>,
    pub alias: Arc<str>,
}

/// A way to read a table.
pub(crate) struct Access {
    pub index: usize,
    pub covering: bool,
    pub parts: Vec<KeyPart>,
    pub point: bool,
    pub spans: Vec<Span>,
    pub reverse: bool,
    /// Numbers of the predicates that the keys imply.
    pub consumed: BTreeSet<usize>,
    /// Rows that come out after all predicates.
    pub rows: f64,
    pub cost: f64,
    pub order: Vec<(ColId, bool, bool)>,
    /// Does a key depend on the outer side?
    pub uses_outer: bool,
}

/// May values of `value` be looked up in a key column of type `column`?
fn lookup_type(column: Type, value: Type) -> bool {
    let text = |t: Type| matches!(t, Type::Text | Type::Varchar(_));
    column.same_base(value) || (column.is_integer() && value.is_integer()) || (text(column) && text(value))
}

/// The column, seen through conversions that do not change which rows are found.
fn as_column(e: &Expr) -> Option<ColId> {
    match &e.kind {
        Kind::Col(c) => Some(*c),
        Kind::Cast(inner, _) if lookup_type(inner.ty, e.ty) && e.ty == e.ty.base() => as_column(inner),
        _ => None,
    }
}

/// A conjunct that speaks of one column of the table.
struct Term<'e> {
    number: usize,
    col: ColId,
    form: Form<'e>,
}

enum Form<'e> {
    Compare(Comparison, &'e Expr),
    List(&'e [Expr]),
    Set(Vec<Expr>),
    Array(&'e Expr),
    /// An OR of ranges.
    Spans(Vec<Span>),
}

/// Part of the rows expected in each range of an OR: who writes many wants few rows of each.
const OR_SPAN_SELECTIVITY: f64 = 0.01;

/// The column and the ranges that an OR says exactly: each arm an equality, a list, or bounds, of the same column.
fn spans_of<'e>(
    arms: &'e [Expr],
    compare: &dyn Fn(&'e Expr) -> Option<(ColId, Comparison, &'e Expr)>,
    list: &dyn Fn(&'e Expr) -> Option<(ColId, &'e [Expr])>,
) -> Option<(ColId, Vec<Span>)> {
    let mut col = None;
    let mut spans = Vec::new();
    for arm in arms {
        if let Some((c, items)) = list(arm) {
            if *col.get_or_insert(c) != c {
                return None;
            }
            let exactly = |e: &Expr| Span { low: Some((e.clone(), true)), high: Some((e.clone(), true)) };
            spans.extend(items.iter().map(exactly));
            continue;
        }
        let conjuncts = match &arm.kind {
            Kind::And(items) => items.as_slice(),
            _ => std::slice::from_ref(arm),
        };
        let mut span = Span { low: None, high: None };
        for e in conjuncts {
            let (c, op, bound) = compare(e)?;
            if *col.get_or_insert(c) != c {
                return None;
            }
            let inclusive = matches!(op, Comparison::Eq | Comparison::Ge | Comparison::Le);
            let sets_low = matches!(op, Comparison::Eq | Comparison::Gt | Comparison::Ge);
            let sets_high = matches!(op, Comparison::Eq | Comparison::Lt | Comparison::Le);
            // A second bound on one side would have to be compared with the first.
            if sets_low && span.low.is_some() || sets_high && span.high.is_some() {
                return None;
            }
            if sets_low {
                span.low = Some((bound.clone(), inclusive));
            }
            if sets_high {
                span.high = Some((bound.clone(), inclusive));
            }
        }
        spans.push(span);
    }
    Some((col?, spans))
}

fn terms<'e>(
    predicates: &'e [Expr],
    table_cols: &BTreeSet<ColId>,
    available: &BTreeSet<ColId>,
    type_of: &dyn Fn(ColId) -> Type,
) -> Vec<Term<'e>> {
    let constant = |e: &Expr| {
        let mut cols = BTreeSet::new();
        e.columns(&mut cols);
        cols.is_subset(available) && !e.has_subquery() && !e.is_volatile()
    };
    let compared = |e: &'e Expr| -> Option<(ColId, Comparison, &'e Expr)> {
        let Kind::Compare(op, two) = &e.kind else { return None };
        if *op == Comparison::Ne {
            return None;
        }
        let [l, r] = two.as_ref();
        [(l, r, *op), (r, l, op.flipped())].into_iter().find_map(|(a, b, op)| {
            let col = as_column(a)?;
            (table_cols.contains(&col) && constant(b) && lookup_type(type_of(col), b.ty))
                .then_some((col, op, b))
        })
    };
    let listed = |e: &'e Expr| -> Option<(ColId, &'e [Expr])> {
        let Kind::InList(e, list) = &e.kind else { return None };
        let col = as_column(e)?;
        let usable =
            table_cols.contains(&col) && list.iter().all(|i| constant(i) && lookup_type(type_of(col), i.ty));
        usable.then_some((col, list.as_slice()))
    };
    let mut out = Vec::new();
    for (number, p) in predicates.iter().enumerate() {
        match &p.kind {
            Kind::Compare(..) => {
                if let Some((col, op, b)) = compared(p) {
                    out.push(Term { number, col, form: Form::Compare(op, b) });
                }
            }
            Kind::InList(..) => {
                if let Some((col, list)) = listed(p) {
                    out.push(Term { number, col, form: Form::List(list) });
                }
            }
            Kind::Or(arms) => {
                if let Some((col, spans)) = spans_of(arms, &compared, &listed) {
                    out.push(Term { number, col, form: Form::Spans(spans) });
                }
            }
            Kind::InSet(e, set) => {
                if let Some(col) = as_column(e)
                    && table_cols.contains(&col)
                    && lookup_type(type_of(col), e.ty)
                {
                    let mut values: Vec<&Datum> = set.values.iter().collect();
                    values.sort();
                    let items = values.into_iter().map(|d| Expr::constant(d.clone(), e.ty)).collect();
                    out.push(Term { number, col, form: Form::Set(items) });
                }
            }
            Kind::Quantified(QuantOp::Compare(Comparison::Eq), false, two) => {
                let [l, array] = two.as_ref();
                if let Some(col) = as_column(l)
                    && table_cols.contains(&col)
                    && constant(array)
                    && array.ty.element().is_some_and(|e| lookup_type(type_of(col), e))
                {
                    out.push(Term { number, col, form: Form::Array(array) });
                }
            }
            _ => {}
        }
    }
    out
}

impl Planner<'_, '_> {
    /// The best way to read the table under these predicates. `available`: columns of the outer side.
    pub(crate) fn access(
        &self,
        t: &TableRef,
        predicates: &[Expr],
        available: &BTreeSet<ColId>,
        hint: &Hint,
    ) -> Access {
        let table = &t.table;
        let total = if table.row_estimate == 0 { ROWS_UNKNOWN } else { table.row_estimate as f64 };
        let table_cols: BTreeSet<ColId> = t.cols.iter().copied().collect();
        let binder = &self.binder;
        let type_of = |c: ColId| binder.cols[c as usize].ty;
        let terms = terms(predicates, &table_cols, available, &type_of);
        let all: f64 = predicates.iter().map(selectivity).product();
        let needed: BTreeSet<usize> = (0..t.cols.len()).filter(|p| self.used.contains(&t.cols[*p])).collect();

        let mut best: Option<Access> = None;
        let indexes = std::iter::once(&table.primary).chain(&table.indexes).enumerate();
        for (number, index) in indexes {
            if index.state != IndexState::Public {
                continue;
            }
            let candidate = self.access_by(t, number, index, &terms, total, all, &needed, hint);
            if number != 0 && candidate.parts.is_empty() && candidate.spans.is_empty() {
                let ordered = satisfies(&candidate.order, hint);
                if !(candidate.covering || ordered && hint.first_rows) {
                    continue;
                }
            }
            let charge = |a: &Access| {
                if hint.order.is_empty() {
                    return a.cost;
                }
                if satisfies(&a.order, hint) {
                    if hint.first_rows { a.cost.min(10.0 + a.cost * 0.05) } else { a.cost }
                } else {
                    a.cost + a.rows * (a.rows.max(2.0)).log2() * 0.2
                }
            };
            if best.as_ref().is_none_or(|b| charge(&candidate) < charge(b)) {
                best = Some(candidate);
            }
        }
        best.expect("the primary key is always a way")
    }

    #[expect(clippy::too_many_arguments, reason = "what one candidate is judged by")]
    fn access_by(
        &self,
        t: &TableRef,
        number: usize,
        index: &IndexDescriptor,
        terms: &[Term],
        total: f64,
        all: f64,
        needed: &BTreeSet<usize>,
        hint: &Hint,
    ) -> Access {
        let table = &t.table;
        let mut parts = Vec::new();
        let mut consumed = BTreeSet::new();
        let mut spans = Vec::new();
        let mut found = total;
        let mut lookups = 1.0f64;
        let mut single = true;
        let mut fixed = BTreeSet::new();
        let width = index.columns.len();
        for (i, (id, _)) in index.columns.iter().enumerate() {
            let Some(position) = table.position(*id) else { break };
            let col = t.cols[position];
            let of_column = terms.iter().filter(|x| x.col == col);
            let equal = of_column.clone().find(|x| matches!(x.form, Form::Compare(Comparison::Eq, _)));
            let several = of_column.clone().find(|x| !matches!(x.form, Form::Compare(..) | Form::Spans(_)));
            let unique_here = index.unique && i + 1 == width;
            if let Some(x) = equal {
                if let Form::Compare(_, e) = &x.form {
                    parts.push(KeyPart::One((*e).clone()));
                }
                consumed.insert(x.number);
                fixed.insert(col);
                found = if unique_here { lookups.min(total) } else { (found * 0.01).max(1.0) };
                continue;
            }
            if let Some(x) = several {
                let (part, n) = match &x.form {
                    Form::List(items) => (KeyPart::Many(items.to_vec()), items.len() as f64),
                    Form::Set(items) => (KeyPart::Many(items.clone()), items.len() as f64),
                    Form::Array(e) => (KeyPart::Array((*e).clone()), 10.0),
                    Form::Compare(..) | Form::Spans(_) => break,
                };
                parts.push(part);
                consumed.insert(x.number);
                single = false;
                lookups *= n;
                found = if unique_here { lookups.min(total) } else { (found * 0.01 * n).clamp(1.0, found) };
                continue;
            }
            let ranges = of_column.clone().find_map(|x| match &x.form {
                Form::Spans(spans) => Some((x.number, spans)),
                _ => None,
            });
            let (mut low, mut high) = (None, None);
            for x in of_column {
                if let Form::Compare(op, e) = &x.form {
                    let bound = match op {
                        Comparison::Gt | Comparison::Ge if low.is_none() => &mut low,
                        Comparison::Lt | Comparison::Le if high.is_none() => &mut high,
                        _ => continue,
                    };
                    *bound = Some(((*e).clone(), matches!(op, Comparison::Ge | Comparison::Le)));
                    consumed.insert(x.number);
                }
            }
            if low.is_some() || high.is_some() {
                found *= if low.is_some() && high.is_some() { 0.05 } else { 0.33 };
                spans.push(Span { low, high });
            } else if let Some((number, list)) = ranges {
                let part: f64 = list
                    .iter()
                    .map(|s| if s.low.is_some() && s.high.is_some() { OR_SPAN_SELECTIVITY } else { 0.33 })
                    .sum();
                found *= part.min(1.0);
                lookups *= list.len() as f64;
                spans = list.clone();
                consumed.insert(number);
            }
            break;
        }
        let point = parts.len() == width && (number == 0 || index.unique);
        let key_positions: BTreeSet<usize> = index
            .columns
            .iter()
            .chain(&table.primary.columns)
            .filter_map(|(id, _)| table.position(*id))
            .filter(|p| !key_loses(table.columns[*p].ty))
            .collect();
        let covering = number != 0 && needed.is_subset(&key_positions);
        let per_row = if number == 0 || covering { 1.0 } else { 5.0 };
        let found = found.max(1.0);
        let cost = 2.0 * lookups + found * per_row;

        // The order of what comes out: the columns after those that are fixed.
        let mut order = Vec::new();
        if single {
            let mut columns: Vec<(u32, bool)> = index.columns.clone();
            if number != 0 {
                columns.extend(table.primary.columns.iter().copied());
            }
            for (id, desc) in columns {
                let Some(p) = table.position(id) else { break };
                let col = t.cols[p];
                if !fixed.contains(&col) && !order.iter().any(|(c, _, _)| *c == col) {
                    order.push((col, desc, desc));
                }
            }
            // Past a unique index without NULLs the primary key is no further order, but nothing is left to order.
        }
        let mut reverse = false;
        if let (Some(k), Some((c, desc, _))) = (hint.order.first(), order.first())
            && matches!(k.expr.kind, Kind::Col(x) if x == *c)
            && k.desc != *desc
        {
            reverse = true;
            order.iter_mut().for_each(|(_, d, n)| {
                *d = !*d;
                *n = !*n;
            });
        }
        // A fixed column orders trivially: it may stand anywhere, so the hint's constants are let through.
        if !fixed.is_empty() && single {
            let mut with_fixed = Vec::new();
            let mut rest = order.clone().into_iter().peekable();
            for k in &hint.order {
                match k.expr.kind {
                    Kind::Col(c) if fixed.contains(&c) => with_fixed.push((c, k.desc, k.nulls_first)),
                    Kind::Col(c) if rest.peek().is_some_and(|(x, _, _)| *x == c) => {
                        with_fixed.extend(rest.next());
                    }
                    _ => break,
                }
            }
            with_fixed.extend(rest);
            order = with_fixed;
        }
        let outer_part = |e: &Expr| e.any(&|e| matches!(e.kind, Kind::Col(_)));
        let uses_outer = parts.iter().any(|p| match p {
            KeyPart::One(e) | KeyPart::Array(e) => outer_part(e),
            KeyPart::Many(list) => list.iter().any(outer_part),
        }) || spans.iter().flat_map(Span::exprs).any(outer_part);
        let unique_point = point && index.unique;
        let rows = if unique_point { found } else { (total * all).clamp(1.0, found) };
        Access {
            index: number,
            covering,
            parts,
            point,
            spans,
            reverse,
            consumed,
            rows: rows.max(1.0),
            cost,
            order,
            uses_outer,
        }
    }

    /// The scan for an access. Predicates over the table alone become its filter; `key_cols` is what key parts see.
    pub(crate) fn scan(
        &mut self,
        t: &TableRef,
        access: Access,
        predicates: &[Expr],
        filters: Vec<Expr>,
        key_cols: &[ColId],
        lock: Lock,
    ) -> Result<(Scan, Vec<ColId>), Error> {
        let columns: Vec<usize> = (0..t.cols.len()).filter(|p| self.used.contains(&t.cols[*p])).collect();
        let out: Vec<ColId> = columns.iter().map(|p| t.cols[*p]).collect();
        let mut parts = Vec::new();
        for p in access.parts {
            parts.push(match p {
                KeyPart::One(e) => KeyPart::One(self.physical(e, key_cols)?),
                KeyPart::Array(e) => KeyPart::Array(self.physical(e, key_cols)?),
                KeyPart::Many(list) => KeyPart::Many(
                    list.into_iter().map(|e| self.physical(e, key_cols)).collect::<Result<_, _>>()?,
                ),
            });
        }
        let mut bound = |b: Option<(Expr, bool)>| -> Result<Option<(Expr, bool)>, Error> {
            b.map(|(e, i)| Ok((self.physical(e, key_cols)?, i))).transpose()
        };
        let spans = access
            .spans
            .into_iter()
            .map(|s| Ok(Span { low: bound(s.low)?, high: bound(s.high)? }))
            .collect::<Result<Vec<_>, Error>>()?;
        let condition = access.consumed.iter().map(|i| predicates[*i].clone()).collect();
        let filter = if filters.is_empty() { None } else { Some(self.physical(Expr::and(filters), &out)?) };
        let reader = TableReader::new(&t.table, access.index, access.covering, &columns)?;
        let scan = Scan {
            table: t.table.clone(),
            alias: t.alias.clone(),
            index: access.index,
            covering: access.covering,
            lock: if access.point && access.index == 0 { lock } else { Lock::None },
            peek: self.peeks(&t.cols),
            parts,
            point: access.point,
            spans,
            reverse: access.reverse,
            columns,
            filter,
            reader,
            condition,
        };
        Ok((scan, out))
    }
}

/// Does this order give the hint's?
fn satisfies(order: &[(ColId, bool, bool)], hint: &Hint) -> bool {
    !hint.order.is_empty()
        && hint.order.len() <= order.len()
        && hint
            .order
            .iter()
            .zip(order)
            .all(|(k, (c, d, _))| matches!(k.expr.kind, Kind::Col(x) if x == *c) && k.desc == *d)
}
