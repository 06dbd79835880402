//! Arrays of one dimension.

use super::args::*;
use super::registry::*;
use crate::text::to_text;
use crate::{Array, Datum, Error, EvalContext, Result, SqlState, Type, is_distinct};

type Ctx<'a> = EvalContext<'a>;

/// Most elements of an array that an operator makes. More is 54000.
const ITEMS_MAX: usize = 1 << 24;

fn made(like: &Array, items: Vec<Datum>) -> Result<Datum> {
    if items.len() > ITEMS_MAX {
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("array size exceeds the maximum allowed ({ITEMS_MAX})"),
        ));
    }
    Ok(Datum::array(like.element, items))
}

fn concat(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() || a[1].is_null() {
        return Ok(if a[0].is_null() { a[1].clone() } else { a[0].clone() });
    }
    let (x, y) = (array(&a[0])?, array(&a[1])?);
    made(x, x.items.iter().chain(&y.items).cloned().collect())
}

/// An array of one element. A NULL does not say its type: it gets that of text, and prints the same.
fn alone(d: &Datum) -> Datum {
    let element = if d.is_null() { Type::Text } else { d.natural_type() };
    Datum::array(element, vec![d.clone()])
}

/// `array || element`. A NULL array counts as empty.
fn append(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(alone(&a[1]));
    }
    let x = array(&a[0])?;
    made(x, x.items.iter().chain([&a[1]]).cloned().collect())
}

fn prepend(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[1].is_null() {
        return Ok(alone(&a[0]));
    }
    let x = array(&a[1])?;
    made(x, [&a[0]].into_iter().chain(&x.items).cloned().collect())
}

fn contains(x: &Array, y: &Array) -> bool {
    y.items.iter().all(|i| !i.is_null() && x.items.iter().any(|j| !is_distinct(i, j)))
}

fn overlap(x: &Array, y: &Array) -> bool {
    y.items.iter().any(|i| !i.is_null() && x.items.iter().any(|j| !is_distinct(i, j)))
}

fn length(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (x, dimension) = (array(&a[0])?, int4(&a[1])?);
    Ok(if dimension != 1 || x.items.is_empty() { Datum::Null } else { Datum::Int4(x.items.len() as i32) })
}

fn lower(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (x, dimension) = (array(&a[0])?, int4(&a[1])?);
    Ok(if dimension != 1 || x.items.is_empty() { Datum::Null } else { Datum::Int4(1) })
}

fn to_string(a: &[Datum], ctx: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() || a[1].is_null() {
        return Ok(Datum::Null);
    }
    let (x, sep) = (array(&a[0])?, text(&a[1])?);
    let null = match a.get(2) {
        Some(d) if !d.is_null() => Some(text(d)?),
        _ => None,
    };
    let mut out = String::new();
    let mut first = true;
    for i in &x.items {
        let shown = match (i.is_null(), null) {
            (true, None) => continue,
            (true, Some(n)) => n.to_owned(),
            _ => to_text(i, &x.element, ctx.settings),
        };
        if !first {
            out.push_str(sep);
        }
        first = false;
        out.push_str(&shown);
        check_length(out.len())?;
    }
    Ok(out.into())
}

fn position(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(Datum::Null);
    }
    let at = array(&a[0])?.items.iter().position(|i| !is_distinct(i, &a[1]));
    Ok(at.map_or(Datum::Null, |i| Datum::Int4(i as i32 + 1)))
}

fn remove(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(Datum::Null);
    }
    let x = array(&a[0])?;
    made(x, x.items.iter().filter(|i| is_distinct(i, &a[1])).cloned().collect())
}

pub(super) const OPERATORS: &[Sig] = &[
    sig("||", &[P::Array, P::Array], P::Array, concat).with_nulls(),
    sig("||", &[P::Array, P::Element], P::Array, append).with_nulls(),
    sig("||", &[P::Element, P::Array], P::Array, prepend).with_nulls(),
    sig("@>", &[P::Array, P::Array], BOOL, |a, _| Ok(Datum::Bool(contains(array(&a[0])?, array(&a[1])?)))),
    sig("<@", &[P::Array, P::Array], BOOL, |a, _| Ok(Datum::Bool(contains(array(&a[1])?, array(&a[0])?)))),
    sig("&&", &[P::Array, P::Array], BOOL, |a, _| Ok(Datum::Bool(overlap(array(&a[0])?, array(&a[1])?)))),
];

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("array_length", &[P::Array, I4], I4, length),
    sig("array_upper", &[P::Array, I4], I4, length),
    sig("array_lower", &[P::Array, I4], I4, lower),
    sig("cardinality", &[P::Array], I4, |a, _| Ok(Datum::Int4(array(&a[0])?.items.len() as i32))),
    sig("array_ndims", &[P::Array], I4, |a, _| {
        Ok(if array(&a[0])?.items.is_empty() { Datum::Null } else { Datum::Int4(1) })
    }),
    sig("array_append", &[P::Array, P::Element], P::Array, append).with_nulls(),
    sig("array_prepend", &[P::Element, P::Array], P::Array, prepend).with_nulls(),
    sig("array_cat", &[P::Array, P::Array], P::Array, concat).with_nulls(),
    sig("array_position", &[P::Array, P::Element], I4, position).with_nulls(),
    sig("array_remove", &[P::Array, P::Element], P::Array, remove).with_nulls(),
    sig("array_to_string", &[P::Array, TEXT], TEXT, to_string).with_nulls().stable(),
    sig("array_to_string", &[P::Array, TEXT, TEXT], TEXT, to_string).with_nulls().stable(),
];
