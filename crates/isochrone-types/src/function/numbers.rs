//! Arithmetic and bit operators. Overflow is 22003, division by zero 22012; nothing wraps.

use super::args::*;
use super::registry::*;
use crate::{Datum, Error, Numeric, Result, SqlState};

#[cold]
fn range(name: &str) -> Error {
    Error::out_of_range(name)
}

macro_rules! int_pair {
    // A pair of integer types, computed and answered in the wider one.
    ($get_a:ident, $get_b:ident, $wide:ty, $variant:ident, $name:literal, $method:ident) => {
        |a, _| {
            let (x, y) = ($get_a(&a[0])? as $wide, $get_b(&a[1])? as $wide);
            x.$method(y).map(Datum::$variant).ok_or_else(|| range($name))
        }
    };
}

macro_rules! int_div {
    ($get_a:ident, $get_b:ident, $wide:ty, $variant:ident, $name:literal) => {
        |a, _| {
            let (x, y) = ($get_a(&a[0])? as $wide, $get_b(&a[1])? as $wide);
            if y == 0 {
                return Err(Error::division_by_zero());
            }
            x.checked_div(y).map(Datum::$variant).ok_or_else(|| range($name))
        }
    };
}

macro_rules! int_rem {
    ($get:ident, $variant:ident) => {
        |a, _| {
            let (x, y) = ($get(&a[0])?, $get(&a[1])?);
            if y == 0 {
                return Err(Error::division_by_zero());
            }
            Ok(Datum::$variant(x.wrapping_rem(y)))
        }
    };
}

macro_rules! bits {
    ($get:ident, $variant:ident, $op:tt) => {
        |a, _| Ok(Datum::$variant($get(&a[0])? $op $get(&a[1])?))
    };
}

#[cold]
fn float_error(overflow: bool) -> Error {
    Error::new(
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        if overflow { "value out of range: overflow" } else { "value out of range: underflow" },
    )
}

/// A float result: infinite only from infinite input, zero only where `zero` says so.
#[inline]
pub(super) fn checked(r: f64, finite_input: bool, zero_is_right: bool) -> Result<f64> {
    if r.is_infinite() && finite_input {
        return Err(float_error(true));
    }
    if r == 0.0 && !zero_is_right {
        return Err(float_error(false));
    }
    Ok(r)
}

fn add_f(x: f64, y: f64) -> Result<f64> {
    checked(x + y, x.is_finite() && y.is_finite(), true)
}
fn sub_f(x: f64, y: f64) -> Result<f64> {
    checked(x - y, x.is_finite() && y.is_finite(), true)
}
fn mul_f(x: f64, y: f64) -> Result<f64> {
    checked(x * y, x.is_finite() && y.is_finite(), x == 0.0 || y == 0.0)
}
fn div_f(x: f64, y: f64) -> Result<f64> {
    if y == 0.0 && !x.is_nan() {
        return Err(Error::division_by_zero());
    }
    checked(x / y, x.is_finite() && y.is_finite(), x == 0.0 || y.is_infinite())
}

/// A double as float4, with the same checks.
fn to_f4(r: f64, zero_is_right: bool) -> Result<Datum> {
    let v = r as f32;
    checked(v as f64, r.is_finite(), zero_is_right || r == 0.0)?;
    Ok(Datum::Float4(v))
}

macro_rules! float_pair {
    ($get_a:ident, $get_b:ident, $f:ident) => {
        |a, _| Ok(Datum::Float8($f($get_a(&a[0])? as f64, $get_b(&a[1])? as f64)?))
    };
}

macro_rules! float4_pair {
    ($f:ident) => {
        |a, _| {
            let (x, y) = (float4(&a[0])? as f64, float4(&a[1])? as f64);
            to_f4($f(x, y)?, false)
        }
    };
}

macro_rules! num_pair {
    ($method:ident) => {
        |a, _| Ok(Datum::Numeric(numeric(&a[0])?.$method(numeric(&a[1])?)?))
    };
}

fn power_f(x: f64, y: f64) -> Result<f64> {
    let bad = |m| Err(Error::new(SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION, m));
    if x == 0.0 && y < 0.0 {
        return bad("zero raised to a negative power is undefined");
    }
    if x < 0.0 && y.is_finite() && y.floor() != y {
        return bad("a negative number raised to a non-integer power yields a complex result");
    }
    let r = x.powf(y);
    checked(r, x.is_finite() && y.is_finite(), x == 0.0 || !x.is_finite() || !y.is_finite())
}

pub(super) fn power_float(a: &[Datum], _: &crate::EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Float8(power_f(float8(&a[0])?, float8(&a[1])?)?))
}

pub(super) fn power_numeric(a: &[Datum], _: &crate::EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Numeric(numeric(&a[0])?.power(numeric(&a[1])?)?))
}

pub(super) fn sqrt_float(a: &[Datum], _: &crate::EvalContext<'_>) -> Result<Datum> {
    let x = float8(&a[0])?;
    if x < 0.0 {
        return Err(Error::new(
            SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION,
            "cannot take square root of a negative number",
        ));
    }
    Ok(Datum::Float8(x.sqrt()))
}

fn shift(v: i64, by: i32, bits: u32, left: bool) -> i64 {
    let by = by as u32 & (bits - 1);
    if left { v << by } else { v >> by }
}

pub(super) const OPERATORS: &[Sig] = &[
    sig("+", &[I4, I4], I4, int_pair!(int4, int4, i32, Int4, "integer", checked_add)),
    sig("-", &[I4, I4], I4, int_pair!(int4, int4, i32, Int4, "integer", checked_sub)),
    sig("*", &[I4, I4], I4, int_pair!(int4, int4, i32, Int4, "integer", checked_mul)),
    sig("/", &[I4, I4], I4, int_div!(int4, int4, i32, Int4, "integer")),
    sig("%", &[I4, I4], I4, int_rem!(int4, Int4)),
    sig("+", &[I8, I8], I8, int_pair!(int8, int8, i64, Int8, "bigint", checked_add)),
    sig("-", &[I8, I8], I8, int_pair!(int8, int8, i64, Int8, "bigint", checked_sub)),
    sig("*", &[I8, I8], I8, int_pair!(int8, int8, i64, Int8, "bigint", checked_mul)),
    sig("/", &[I8, I8], I8, int_div!(int8, int8, i64, Int8, "bigint")),
    sig("%", &[I8, I8], I8, int_rem!(int8, Int8)),
    sig("+", &[I4, I8], I8, int_pair!(int4, int8, i64, Int8, "bigint", checked_add)),
    sig("-", &[I4, I8], I8, int_pair!(int4, int8, i64, Int8, "bigint", checked_sub)),
    sig("*", &[I4, I8], I8, int_pair!(int4, int8, i64, Int8, "bigint", checked_mul)),
    sig("/", &[I4, I8], I8, int_div!(int4, int8, i64, Int8, "bigint")),
    sig("+", &[I8, I4], I8, int_pair!(int8, int4, i64, Int8, "bigint", checked_add)),
    sig("-", &[I8, I4], I8, int_pair!(int8, int4, i64, Int8, "bigint", checked_sub)),
    sig("*", &[I8, I4], I8, int_pair!(int8, int4, i64, Int8, "bigint", checked_mul)),
    sig("/", &[I8, I4], I8, int_div!(int8, int4, i64, Int8, "bigint")),
    sig("+", &[I2, I2], I2, int_pair!(int2, int2, i16, Int2, "smallint", checked_add)),
    sig("-", &[I2, I2], I2, int_pair!(int2, int2, i16, Int2, "smallint", checked_sub)),
    sig("*", &[I2, I2], I2, int_pair!(int2, int2, i16, Int2, "smallint", checked_mul)),
    sig("/", &[I2, I2], I2, int_div!(int2, int2, i16, Int2, "smallint")),
    sig("%", &[I2, I2], I2, int_rem!(int2, Int2)),
    sig("+", &[I2, I4], I4, int_pair!(int2, int4, i32, Int4, "integer", checked_add)),
    sig("-", &[I2, I4], I4, int_pair!(int2, int4, i32, Int4, "integer", checked_sub)),
    sig("*", &[I2, I4], I4, int_pair!(int2, int4, i32, Int4, "integer", checked_mul)),
    sig("/", &[I2, I4], I4, int_div!(int2, int4, i32, Int4, "integer")),
    sig("+", &[I4, I2], I4, int_pair!(int4, int2, i32, Int4, "integer", checked_add)),
    sig("-", &[I4, I2], I4, int_pair!(int4, int2, i32, Int4, "integer", checked_sub)),
    sig("*", &[I4, I2], I4, int_pair!(int4, int2, i32, Int4, "integer", checked_mul)),
    sig("/", &[I4, I2], I4, int_div!(int4, int2, i32, Int4, "integer")),
    sig("+", &[I2, I8], I8, int_pair!(int2, int8, i64, Int8, "bigint", checked_add)),
    sig("-", &[I2, I8], I8, int_pair!(int2, int8, i64, Int8, "bigint", checked_sub)),
    sig("*", &[I2, I8], I8, int_pair!(int2, int8, i64, Int8, "bigint", checked_mul)),
    sig("/", &[I2, I8], I8, int_div!(int2, int8, i64, Int8, "bigint")),
    sig("+", &[I8, I2], I8, int_pair!(int8, int2, i64, Int8, "bigint", checked_add)),
    sig("-", &[I8, I2], I8, int_pair!(int8, int2, i64, Int8, "bigint", checked_sub)),
    sig("*", &[I8, I2], I8, int_pair!(int8, int2, i64, Int8, "bigint", checked_mul)),
    sig("/", &[I8, I2], I8, int_div!(int8, int2, i64, Int8, "bigint")),
    sig("+", &[NUM, NUM], NUM, num_pair!(add)),
    sig("-", &[NUM, NUM], NUM, num_pair!(sub)),
    sig("*", &[NUM, NUM], NUM, num_pair!(mul)),
    sig("/", &[NUM, NUM], NUM, num_pair!(div)),
    sig("%", &[NUM, NUM], NUM, num_pair!(rem)),
    sig("^", &[NUM, NUM], NUM, power_numeric),
    sig("+", &[F8, F8], F8, float_pair!(float8, float8, add_f)),
    sig("-", &[F8, F8], F8, float_pair!(float8, float8, sub_f)),
    sig("*", &[F8, F8], F8, float_pair!(float8, float8, mul_f)),
    sig("/", &[F8, F8], F8, float_pair!(float8, float8, div_f)),
    sig("^", &[F8, F8], F8, power_float),
    sig("+", &[F4, F8], F8, float_pair!(float4, float8, add_f)),
    sig("-", &[F4, F8], F8, float_pair!(float4, float8, sub_f)),
    sig("*", &[F4, F8], F8, float_pair!(float4, float8, mul_f)),
    sig("/", &[F4, F8], F8, float_pair!(float4, float8, div_f)),
    sig("+", &[F8, F4], F8, float_pair!(float8, float4, add_f)),
    sig("-", &[F8, F4], F8, float_pair!(float8, float4, sub_f)),
    sig("*", &[F8, F4], F8, float_pair!(float8, float4, mul_f)),
    sig("/", &[F8, F4], F8, float_pair!(float8, float4, div_f)),
    sig("+", &[F4, F4], F4, float4_pair!(add_f)),
    sig("-", &[F4, F4], F4, float4_pair!(sub_f)),
    sig("*", &[F4, F4], F4, float4_pair!(mul_f)),
    sig("/", &[F4, F4], F4, float4_pair!(div_f)),
    // prefix
    sig("+", &[I2], I2, |a, _| Ok(a[0].clone())),
    sig("+", &[I4], I4, |a, _| Ok(a[0].clone())),
    sig("+", &[I8], I8, |a, _| Ok(a[0].clone())),
    sig("+", &[NUM], NUM, |a, _| Ok(a[0].clone())),
    sig("+", &[F4], F4, |a, _| Ok(a[0].clone())),
    sig("+", &[F8], F8, |a, _| Ok(a[0].clone())),
    sig("-", &[I2], I2, |a, _| int2(&a[0])?.checked_neg().map(Datum::Int2).ok_or_else(|| range("smallint"))),
    sig("-", &[I4], I4, |a, _| int4(&a[0])?.checked_neg().map(Datum::Int4).ok_or_else(|| range("integer"))),
    sig("-", &[I8], I8, |a, _| int8(&a[0])?.checked_neg().map(Datum::Int8).ok_or_else(|| range("bigint"))),
    sig("-", &[NUM], NUM, |a, _| Ok(Datum::Numeric(numeric(&a[0])?.neg()))),
    sig("-", &[F4], F4, |a, _| Ok(Datum::Float4(-float4(&a[0])?))),
    sig("-", &[F8], F8, |a, _| Ok(Datum::Float8(-float8(&a[0])?))),
    sig("@", &[I2], I2, abs_int2),
    sig("@", &[I4], I4, abs_int4),
    sig("@", &[I8], I8, abs_int8),
    sig("@", &[NUM], NUM, abs_numeric),
    sig("@", &[F4], F4, abs_float4),
    sig("@", &[F8], F8, abs_float8),
    sig("|/", &[F8], F8, sqrt_float),
    sig("||/", &[F8], F8, |a, _| Ok(Datum::Float8(float8(&a[0])?.cbrt()))),
    // bits
    sig("&", &[I2, I2], I2, bits!(int2, Int2, &)),
    sig("&", &[I4, I4], I4, bits!(int4, Int4, &)),
    sig("&", &[I8, I8], I8, bits!(int8, Int8, &)),
    sig("|", &[I2, I2], I2, bits!(int2, Int2, |)),
    sig("|", &[I4, I4], I4, bits!(int4, Int4, |)),
    sig("|", &[I8, I8], I8, bits!(int8, Int8, |)),
    sig("#", &[I2, I2], I2, bits!(int2, Int2, ^)),
    sig("#", &[I4, I4], I4, bits!(int4, Int4, ^)),
    sig("#", &[I8, I8], I8, bits!(int8, Int8, ^)),
    sig("~", &[I2], I2, |a, _| Ok(Datum::Int2(!int2(&a[0])?))),
    sig("~", &[I4], I4, |a, _| Ok(Datum::Int4(!int4(&a[0])?))),
    sig("~", &[I8], I8, |a, _| Ok(Datum::Int8(!int8(&a[0])?))),
    sig("<<", &[I2, I4], I2, |a, _| {
        Ok(Datum::Int2(shift(int2(&a[0])? as i64, int4(&a[1])?, 32, true) as i16))
    }),
    sig("<<", &[I4, I4], I4, |a, _| {
        Ok(Datum::Int4(shift(int4(&a[0])? as i64, int4(&a[1])?, 32, true) as i32))
    }),
    sig("<<", &[I8, I4], I8, |a, _| Ok(Datum::Int8(shift(int8(&a[0])?, int4(&a[1])?, 64, true)))),
    sig(">>", &[I2, I4], I2, |a, _| {
        Ok(Datum::Int2(shift(int2(&a[0])? as i64, int4(&a[1])?, 32, false) as i16))
    }),
    sig(">>", &[I4, I4], I4, |a, _| {
        Ok(Datum::Int4(shift(int4(&a[0])? as i64, int4(&a[1])?, 32, false) as i32))
    }),
    sig(">>", &[I8, I4], I8, |a, _| Ok(Datum::Int8(shift(int8(&a[0])?, int4(&a[1])?, 64, false)))),
];

type Ctx<'a> = crate::EvalContext<'a>;

pub(super) fn abs_int2(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    int2(&a[0])?.checked_abs().map(Datum::Int2).ok_or_else(|| range("smallint"))
}
pub(super) fn abs_int4(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    int4(&a[0])?.checked_abs().map(Datum::Int4).ok_or_else(|| range("integer"))
}
pub(super) fn abs_int8(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    int8(&a[0])?.checked_abs().map(Datum::Int8).ok_or_else(|| range("bigint"))
}
pub(super) fn abs_numeric(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Numeric(Numeric::abs(numeric(&a[0])?)))
}
pub(super) fn abs_float4(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Float4(float4(&a[0])?.abs()))
}
pub(super) fn abs_float8(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Float8(float8(&a[0])?.abs()))
}
