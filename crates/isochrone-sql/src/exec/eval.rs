//! Evaluation of expressions over rows of batches.
//!
//! Evaluation never waits: what needs the store (subqueries, sequence values) was fetched before. It recurses over
//! the expression, whose depth the parser bounded, never over rows.

use std::borrow::Cow;
use std::cmp::Ordering;

use isochrone_types::{Datum, Error, EvalContext, SqlState, cast, compare};
use rustc_hash::FxHashSet;

use super::batch::Batch;
use crate::plan::expr::{Expr, Function, Kind, QuantOp, SubKind};
use crate::relation::Sequences;

/// The answer of a subquery.
#[derive(Debug)]
pub enum SubAnswer {
    /// A scalar, an array, or EXISTS.
    Value(Datum),
    /// The rows of IN and ANY.
    Rows {
        /// In order.
        rows: Vec<Vec<Datum>>,
        /// Those without NULL.
        set: FxHashSet<Vec<Datum>>,
        /// Has some row a NULL?
        has_null: bool,
    },
}

/// What expressions see besides their row.
pub struct EvalCx<'a> {
    /// Parameters.
    pub params: &'a [Datum],
    /// Bound columns of enclosing queries.
    pub outers: &'a [Datum],
    /// Answers of uncorrelated subqueries.
    pub subs: &'a [Option<SubAnswer>],
    /// Settings and clocks.
    pub eval: &'a EvalContext<'a>,
    /// Sequences.
    pub sequences: &'a dyn Sequences,
}

/// A row, wherever it lies.
#[derive(Clone, Copy)]
pub enum RowRef<'a> {
    /// Values side by side.
    Slice(&'a [Datum]),
    /// A row of a batch.
    Batch(&'a Batch, usize),
    /// A row of one batch followed by a row of another.
    Pair(&'a Batch, usize, &'a Batch, usize),
    /// A row of a batch followed by values.
    Mixed(&'a Batch, usize, &'a [Datum]),
}

impl<'a> RowRef<'a> {
    /// No columns.
    pub const NONE: RowRef<'static> = RowRef::Slice(&[]);

    /// A value.
    #[inline]
    pub fn get(self, slot: usize) -> &'a Datum {
        match self {
            RowRef::Slice(s) => &s[slot],
            RowRef::Batch(b, r) => b.get(slot, r),
            RowRef::Pair(a, i, b, j) => {
                if slot < a.width() {
                    a.get(slot, i)
                } else {
                    b.get(slot - a.width(), j)
                }
            }
            RowRef::Mixed(a, i, s) => {
                if slot < a.width() {
                    a.get(slot, i)
                } else {
                    &s[slot - a.width()]
                }
            }
        }
    }
}

fn bool3(v: Option<bool>) -> Datum {
    v.map_or(Datum::Null, Datum::Bool)
}

/// Calls a function; strict ones are not called with NULL.
pub fn call(f: &Function, args: &[Datum], cx: &EvalCx<'_>) -> Result<Datum, Error> {
    match f {
        Function::Builtin(f) => f.call(args, cx.eval),
        Function::Session(_, f) => {
            if f.strict && args.iter().any(Datum::is_null) {
                return Ok(Datum::Null);
            }
            (f.call)(args, cx.eval)
        }
    }
}

fn quant(op: &QuantOp, l: &Datum, r: &Datum, cx: &EvalCx<'_>) -> Result<Option<bool>, Error> {
    if l.is_null() || r.is_null() {
        return Ok(None);
    }
    Ok(match op {
        QuantOp::Compare(c) => Some(c.holds(compare(l, r))),
        QuantOp::Call(f) => call(f, &[l.clone(), r.clone()], cx)?.as_bool(),
    })
}

/// ANY and ALL over values.
fn quantified<'v>(
    op: &QuantOp,
    all: bool,
    l: &Datum,
    values: impl Iterator<Item = &'v Datum>,
    cx: &EvalCx<'_>,
) -> Result<Datum, Error> {
    let mut unknown = false;
    for v in values {
        match quant(op, l, v, cx)? {
            None => unknown = true,
            Some(b) if b != all => return Ok(Datum::Bool(b)),
            Some(_) => {}
        }
    }
    Ok(if unknown { Datum::Null } else { Datum::Bool(all) })
}

/// What `left kind subquery` is, given the subquery's answer.
pub fn sub_value(
    kind: &SubKind,
    left: &[Datum],
    answer: &SubAnswer,
    cx: &EvalCx<'_>,
) -> Result<Datum, Error> {
    let (rows, set, has_null) = match answer {
        SubAnswer::Value(d) => return Ok(d.clone()),
        SubAnswer::Rows { rows, set, has_null } => (rows, set, *has_null),
    };
    match kind {
        SubKind::Quantified(op, all) => quantified(op, *all, &left[0], rows.iter().map(|r| &r[0]), cx),
        _ => {
            if rows.is_empty() {
                return Ok(Datum::Bool(false));
            }
            let left_null = left.iter().any(Datum::is_null);
            if !left_null && set.contains(left) {
                return Ok(Datum::Bool(true));
            }
            if !left_null && !has_null {
                return Ok(Datum::Bool(false));
            }
            // NULLs: unknown, unless every row differs in a column where neither side is NULL.
            let open =
                rows.iter().any(|r| r.iter().zip(left).all(|(a, b)| a.is_null() || b.is_null() || a == b));
            Ok(if open { Datum::Null } else { Datum::Bool(false) })
        }
    }
}

/// The value of an expression.
pub fn eval(e: &Expr, row: RowRef<'_>, cx: &EvalCx<'_>) -> Result<Datum, Error> {
    eval_ref(e, row, cx).map(Cow::into_owned)
}

/// Is the condition true? NULL is not.
#[inline]
pub fn eval_true(e: &Expr, row: RowRef<'_>, cx: &EvalCx<'_>) -> Result<bool, Error> {
    Ok(eval_ref(e, row, cx)?.is_true())
}

fn truth(e: &Expr, row: RowRef<'_>, cx: &EvalCx<'_>) -> Result<Option<bool>, Error> {
    Ok(eval_ref(e, row, cx)?.as_bool())
}

/// The value of an expression, without a copy where it lies somewhere.
pub fn eval_ref<'a>(e: &'a Expr, row: RowRef<'a>, cx: &'a EvalCx<'_>) -> Result<Cow<'a, Datum>, Error> {
    let value = match &e.kind {
        Kind::Const(d) => return Ok(Cow::Borrowed(d)),
        Kind::Slot(s) => return Ok(Cow::Borrowed(row.get(*s))),
        Kind::Outer(k) => return Ok(Cow::Borrowed(&cx.outers[*k])),
        Kind::Param(n) => {
            let d = cx.params.get(*n).ok_or_else(|| {
                Error::new(SqlState::PROTOCOL_VIOLATION, format!("no value for parameter ${}", n + 1))
            })?;
            return Ok(Cow::Borrowed(d));
        }
        Kind::Compare(op, two) => {
            let l = eval_ref(&two[0], row, cx)?;
            if l.is_null() {
                return Ok(Cow::Owned(Datum::Null));
            }
            let r = eval_ref(&two[1], row, cx)?;
            if r.is_null() { Datum::Null } else { Datum::Bool(op.holds(compare(&l, &r))) }
        }
        Kind::Call(f, args) => match args.as_slice() {
            [] => call(f, &[], cx)?,
            [a] => call(f, &[eval(a, row, cx)?], cx)?,
            [a, b] => call(f, &[eval(a, row, cx)?, eval(b, row, cx)?], cx)?,
            [a, b, c] => call(f, &[eval(a, row, cx)?, eval(b, row, cx)?, eval(c, row, cx)?], cx)?,
            args => {
                let values = args.iter().map(|a| eval(a, row, cx)).collect::<Result<Vec<_>, _>>()?;
                call(f, &values, cx)?
            }
        },
        Kind::Cast(inner, context) => {
            let d = eval(inner, row, cx)?;
            if d.is_null() { d } else { cast(d, &inner.ty, &e.ty, *context, cx.eval.settings)? }
        }
        Kind::And(items) => {
            let mut unknown = false;
            for i in items {
                match truth(i, row, cx)? {
                    Some(false) => return Ok(Cow::Owned(Datum::Bool(false))),
                    None => unknown = true,
                    Some(true) => {}
                }
            }
            bool3(if unknown { None } else { Some(true) })
        }
        Kind::Or(items) => {
            let mut unknown = false;
            for i in items {
                match truth(i, row, cx)? {
                    Some(true) => return Ok(Cow::Owned(Datum::Bool(true))),
                    None => unknown = true,
                    Some(false) => {}
                }
            }
            bool3(if unknown { None } else { Some(false) })
        }
        Kind::Not(inner) => bool3(truth(inner, row, cx)?.map(|b| !b)),
        Kind::IsNull(inner) => Datum::Bool(eval_ref(inner, row, cx)?.is_null()),
        Kind::Is(inner, test) => Datum::Bool(truth(inner, row, cx)? == *test),
        Kind::Distinct(two) => {
            let (l, r) = (eval_ref(&two[0], row, cx)?, eval_ref(&two[1], row, cx)?);
            Datum::Bool(compare(&l, &r) != Ordering::Equal)
        }
        Kind::Case(whens, other) => {
            for (condition, result) in whens {
                if eval_true(condition, row, cx)? {
                    return eval_ref(result, row, cx);
                }
            }
            match other {
                Some(o) => return eval_ref(o, row, cx),
                None => Datum::Null,
            }
        }
        Kind::Coalesce(items) => {
            for i in items {
                let v = eval_ref(i, row, cx)?;
                if !v.is_null() {
                    return Ok(v);
                }
            }
            Datum::Null
        }
        Kind::Extreme(greatest, items) => {
            let mut best = Datum::Null;
            for i in items {
                let v = eval_ref(i, row, cx)?;
                if v.is_null() {
                    continue;
                }
                let o = compare(&v, &best);
                if best.is_null() || (if *greatest { o.is_gt() } else { o.is_lt() }) {
                    best = v.into_owned();
                }
            }
            best
        }
        Kind::InList(x, list) => {
            let v = eval_ref(x, row, cx)?;
            if v.is_null() {
                return Ok(Cow::Owned(if list.is_empty() { Datum::Bool(false) } else { Datum::Null }));
            }
            let mut unknown = false;
            for i in list {
                let w = eval_ref(i, row, cx)?;
                if w.is_null() {
                    unknown = true;
                } else if compare(&v, &w) == Ordering::Equal {
                    return Ok(Cow::Owned(Datum::Bool(true)));
                }
            }
            bool3(if unknown { None } else { Some(false) })
        }
        Kind::InSet(x, list) => {
            let v = eval_ref(x, row, cx)?;
            if v.is_null() {
                Datum::Null
            } else if list.values.contains(&*v) {
                Datum::Bool(true)
            } else {
                bool3(if list.has_null { None } else { Some(false) })
            }
        }
        Kind::Quantified(op, all, two) => {
            let l = eval_ref(&two[0], row, cx)?;
            let r = eval_ref(&two[1], row, cx)?;
            match &*r {
                Datum::Array(a) => quantified(op, *all, &l, a.items.iter(), cx)?,
                _ => Datum::Null,
            }
        }
        Kind::Array(element, items) => {
            let values = items.iter().map(|i| eval(i, row, cx)).collect::<Result<Vec<_>, _>>()?;
            Datum::array(*element, values)
        }
        Kind::Subscript(two) => {
            let (a, i) = (eval_ref(&two[0], row, cx)?, eval_ref(&two[1], row, cx)?);
            match (&*a, i.as_i64()) {
                (Datum::Array(a), Some(i)) => {
                    usize::try_from(i - 1).ok().and_then(|i| a.items.get(i)).cloned().unwrap_or_default()
                }
                _ => Datum::Null,
            }
        }
        Kind::SubValue(number, kind, left) => {
            let answer = cx.subs[*number]
                .as_ref()
                .ok_or_else(|| Error::internal("a subquery was not run before its value was needed"))?;
            let left = left.iter().map(|l| eval(l, row, cx)).collect::<Result<Vec<_>, _>>()?;
            sub_value(kind, &left, answer, cx)?
        }
        Kind::NextVal(s) => Datum::Int8(cx.sequences.take(*s)?),
        Kind::CurrVal(s) => Datum::Int8(cx.sequences.current(*s)?),
        Kind::LastVal => Datum::Int8(cx.sequences.last()?),
        Kind::Col(_) | Kind::Sub(_) | Kind::SetVal(..) | Kind::Advisory(..) => {
            return Err(Error::internal("an expression was not made physical"));
        }
    };
    Ok(Cow::Owned(value))
}

/// The values of an expression for all rows of a batch.
pub fn eval_batch(e: &Expr, batch: &Batch, cx: &EvalCx<'_>) -> Result<Vec<Datum>, Error> {
    match &e.kind {
        Kind::Slot(s) => Ok(batch.column(*s).to_vec()),
        Kind::Const(d) => Ok(vec![d.clone(); batch.len()]),
        _ => (0..batch.len()).map(|r| eval(e, RowRef::Batch(batch, r), cx)).collect(),
    }
}

/// For each row of a batch: is the condition true?
pub fn eval_filter(e: &Expr, batch: &Batch, cx: &EvalCx<'_>) -> Result<Vec<bool>, Error> {
    // A comparison of a column with a value needs no walk over the expression for each row.
    if let Kind::Compare(op, two) = &e.kind
        && let Kind::Slot(s) = two[0].kind
        && matches!(two[1].kind, Kind::Const(_) | Kind::Param(_) | Kind::Outer(_))
    {
        let value = eval_ref(&two[1], RowRef::NONE, cx)?;
        if value.is_null() {
            return Ok(vec![false; batch.len()]);
        }
        return Ok(batch.column(s).iter().map(|d| !d.is_null() && op.holds(compare(d, &value))).collect());
    }
    (0..batch.len()).map(|r| eval_true(e, RowRef::Batch(batch, r), cx)).collect()
}
