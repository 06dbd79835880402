//! The comparison operators, for every ordered type, and across widths of integers and floats.

use super::registry::*;
use super::{ScalarFn, args};
use crate::{Datum, EvalContext, Result, Type, compare};

macro_rules! comparison {
    ($general:ident, $int4:ident, $int8:ident, $method:ident, $op:tt) => {
        fn $general(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
            Ok(Datum::Bool(compare(&a[0], &a[1]).$method()))
        }
        fn $int4(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
            Ok(Datum::Bool(args::int4(&a[0])? $op args::int4(&a[1])?))
        }
        fn $int8(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
            Ok(Datum::Bool(args::int8(&a[0])? $op args::int8(&a[1])?))
        }
    };
}
comparison!(eq, eq_int4, eq_int8, is_eq, ==);
comparison!(ne, ne_int4, ne_int8, is_ne, !=);
comparison!(lt, lt_int4, lt_int8, is_lt, <);
comparison!(le, le_int4, le_int8, is_le, <=);
comparison!(gt, gt_int4, gt_int8, is_gt, >);
comparison!(ge, ge_int4, ge_int8, is_ge, >=);

type Row = (&'static str, ScalarFn, ScalarFn, ScalarFn);

const ROWS: [Row; 6] = [
    ("=", eq, eq_int4, eq_int8),
    ("<>", ne, ne_int4, ne_int8),
    ("<", lt, lt_int4, lt_int8),
    ("<=", le, le_int4, le_int8),
    (">", gt, gt_int4, gt_int8),
    (">=", ge, ge_int4, ge_int8),
];

const PAIRS: &[&[P]] = &[
    &[BOOL, BOOL],
    &[I2, I2],
    &[I4, I4],
    &[I8, I8],
    &[I2, I4],
    &[I4, I2],
    &[I2, I8],
    &[I8, I2],
    &[I4, I8],
    &[I8, I4],
    &[F4, F4],
    &[F8, F8],
    &[F4, F8],
    &[F8, F4],
    &[NUM, NUM],
    &[TEXT, TEXT],
    &[BPCHAR, BPCHAR],
    &[P::T(Type::Name), P::T(Type::Name)],
    &[P::T(Type::InternalChar), P::T(Type::InternalChar)],
    &[BYTEA, BYTEA],
    &[DATE, DATE],
    &[TIME, TIME],
    &[TS, TS],
    &[TZ, TZ],
    &[INTERVAL, INTERVAL],
    &[UUID, UUID],
    &[P::T(Type::Oid), P::T(Type::Oid)],
    &[P::Array, P::Array],
];

/// All of them.
pub(super) fn operators() -> Vec<Sig> {
    let mut out = Vec::with_capacity(ROWS.len() * PAIRS.len());
    for (name, general, int4, int8) in ROWS {
        for pair in PAIRS {
            let func = match *pair {
                [I4, I4] => int4,
                [I8, I8] => int8,
                _ => general,
            };
            out.push(sig(name, pair, BOOL, func));
        }
    }
    out
}
