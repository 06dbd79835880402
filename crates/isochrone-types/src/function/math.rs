//! Mathematical functions, and random values.

use super::args::*;
use super::numbers::*;
use super::registry::*;
use crate::{Datum, Error, Numeric, Result, SqlState};

macro_rules! float_fn {
    (|$x:ident| $e:expr) => {
        |a, _| {
            let $x = float8(&a[0])?;
            Ok(Datum::Float8($e))
        }
    };
}

macro_rules! num_fn {
    (|$x:ident| $e:expr) => {
        |a, _| {
            let $x = numeric(&a[0])?;
            Ok(Datum::Numeric($e))
        }
    };
}

#[cold]
fn log_error(zero: bool) -> Error {
    Error::new(
        SqlState::INVALID_ARGUMENT_FOR_LOGARITHM,
        if zero { "cannot take logarithm of zero" } else { "cannot take logarithm of a negative number" },
    )
}

fn log_argument(x: f64) -> Result<f64> {
    if x == 0.0 {
        return Err(log_error(true));
    }
    if x < 0.0 {
        return Err(log_error(false));
    }
    Ok(x)
}

#[cold]
fn input_out_of_range() -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "input is out of range")
}

fn within(x: f64, ok: bool) -> Result<f64> {
    if ok || x.is_nan() { Ok(x) } else { Err(input_out_of_range()) }
}

fn degrees_exact(x: f64, f: fn(f64) -> f64, exact: &[(f64, f64)]) -> Result<f64> {
    if x.is_infinite() {
        return Err(input_out_of_range());
    }
    let r = x.rem_euclid(360.0);
    Ok(exact.iter().find(|e| e.0 == r).map_or_else(|| f(x.to_radians()), |e| e.1))
}

fn gcd(a: i64, b: i64) -> i128 {
    let (mut a, mut b) = ((a as i128).abs(), (b as i128).abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn lcm(a: i64, b: i64) -> i128 {
    if a == 0 || b == 0 { 0 } else { (a as i128).abs() / gcd(a, b) * (b as i128).abs() }
}

fn as_int4(v: i128) -> Result<Datum> {
    i32::try_from(v).map(Datum::Int4).map_err(|_| Error::out_of_range("integer"))
}

fn as_int8(v: i128) -> Result<Datum> {
    i64::try_from(v).map(Datum::Int8).map_err(|_| Error::out_of_range("bigint"))
}

fn rem_int<T: Copy + PartialEq + From<i8>>(x: T, y: T, rem: fn(T, T) -> T) -> Result<T> {
    if y == T::from(0) { Err(Error::division_by_zero()) } else { Ok(rem(x, y)) }
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

fn width_bucket(x: &Numeric, low: &Numeric, high: &Numeric, count: i32) -> Result<Datum> {
    let bad = |m| Err(Error::new(SqlState::INVALID_ARGUMENT_FOR_WIDTH_BUCKET, m));
    if count <= 0 {
        return bad("count must be greater than zero");
    }
    if x.is_nan() || low.is_nan() || high.is_nan() {
        return bad("operand, lower bound, and upper bound cannot be NaN");
    }
    if !low.is_finite() || !high.is_finite() {
        return bad("lower and upper bounds must be finite");
    }
    if low == high {
        return bad("lower bound cannot equal upper bound");
    }
    let turned = low > high;
    let (below, above) = if turned { (x > low, x <= high) } else { (x < low, x >= high) };
    let bucket = if below {
        0
    } else if above {
        count as i64 + 1
    } else {
        let scaled = x.sub(low)?.mul(&Numeric::from(count as i64))?;
        scaled.div_trunc(&high.sub(low)?)?.to_i64().unwrap_or(0) + 1
    };
    as_int4(bucket as i128)
}

fn factorial(n: i64) -> Result<Datum> {
    if n < 0 {
        return Err(Error::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            "factorial of a negative number is undefined",
        ));
    }
    if n > 32_177 {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format"));
    }
    let mut r = Numeric::ONE;
    for k in 2..=n {
        r = r.mul(&k.into())?;
    }
    Ok(Datum::Numeric(r))
}

fn exp_float(x: f64) -> Result<f64> {
    checked(x.exp(), x.is_finite(), x == f64::NEG_INFINITY)
}

const SIN: &[(f64, f64)] = &[
    (0.0, 0.0),
    (30.0, 0.5),
    (90.0, 1.0),
    (150.0, 0.5),
    (180.0, 0.0),
    (210.0, -0.5),
    (270.0, -1.0),
    (330.0, -0.5),
];
const COS: &[(f64, f64)] = &[
    (0.0, 1.0),
    (60.0, 0.5),
    (90.0, 0.0),
    (120.0, -0.5),
    (180.0, -1.0),
    (240.0, -0.5),
    (270.0, 0.0),
    (300.0, 0.5),
];

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("abs", &[I2], I2, abs_int2),
    sig("abs", &[I4], I4, abs_int4),
    sig("abs", &[I8], I8, abs_int8),
    sig("abs", &[NUM], NUM, abs_numeric),
    sig("abs", &[F4], F4, abs_float4),
    sig("abs", &[F8], F8, abs_float8),
    sig("ceil", &[NUM], NUM, num_fn!(|x| x.ceil())),
    sig("ceil", &[F8], F8, float_fn!(|x| x.ceil())),
    sig("ceiling", &[NUM], NUM, num_fn!(|x| x.ceil())),
    sig("ceiling", &[F8], F8, float_fn!(|x| x.ceil())),
    sig("floor", &[NUM], NUM, num_fn!(|x| x.floor())),
    sig("floor", &[F8], F8, float_fn!(|x| x.floor())),
    sig("round", &[NUM], NUM, num_fn!(|x| x.round(0))),
    sig("round", &[NUM, I4], NUM, |a, _| Ok(Datum::Numeric(numeric(&a[0])?.round(int4(&a[1])?)))),
    sig("round", &[F8], F8, float_fn!(|x| x.round_ties_even())),
    sig("trunc", &[NUM], NUM, num_fn!(|x| x.trunc(0))),
    sig("trunc", &[NUM, I4], NUM, |a, _| Ok(Datum::Numeric(numeric(&a[0])?.trunc(int4(&a[1])?)))),
    sig("trunc", &[F8], F8, float_fn!(|x| x.trunc())),
    sig("sign", &[NUM], NUM, num_fn!(|x| if x.is_nan() { x.clone() } else { (x.signum() as i64).into() })),
    sig("sign", &[F8], F8, float_fn!(|x| sign(x))),
    sig("sqrt", &[NUM], NUM, num_fn!(|x| x.sqrt()?)),
    sig("sqrt", &[F8], F8, sqrt_float),
    sig("cbrt", &[F8], F8, float_fn!(|x| x.cbrt())),
    sig("power", &[NUM, NUM], NUM, power_numeric),
    sig("power", &[F8, F8], F8, power_float),
    sig("pow", &[NUM, NUM], NUM, power_numeric),
    sig("pow", &[F8, F8], F8, power_float),
    sig("exp", &[NUM], NUM, num_fn!(|x| x.exp()?)),
    sig("exp", &[F8], F8, float_fn!(|x| exp_float(x)?)),
    sig("ln", &[NUM], NUM, num_fn!(|x| x.ln()?)),
    sig("ln", &[F8], F8, float_fn!(|x| log_argument(x)?.ln())),
    sig("log", &[NUM], NUM, num_fn!(|x| Numeric::log(&10.into(), x)?)),
    sig("log", &[F8], F8, float_fn!(|x| log_argument(x)?.log10())),
    sig("log10", &[NUM], NUM, num_fn!(|x| Numeric::log(&10.into(), x)?)),
    sig("log10", &[F8], F8, float_fn!(|x| log_argument(x)?.log10())),
    sig("log", &[NUM, NUM], NUM, |a, _| Ok(Datum::Numeric(Numeric::log(numeric(&a[0])?, numeric(&a[1])?)?))),
    sig("mod", &[I2, I2], I2, |a, _| {
        Ok(Datum::Int2(rem_int(int2(&a[0])?, int2(&a[1])?, i16::wrapping_rem)?))
    }),
    sig("mod", &[I4, I4], I4, |a, _| {
        Ok(Datum::Int4(rem_int(int4(&a[0])?, int4(&a[1])?, i32::wrapping_rem)?))
    }),
    sig("mod", &[I8, I8], I8, |a, _| {
        Ok(Datum::Int8(rem_int(int8(&a[0])?, int8(&a[1])?, i64::wrapping_rem)?))
    }),
    sig("mod", &[NUM, NUM], NUM, |a, _| Ok(Datum::Numeric(numeric(&a[0])?.rem(numeric(&a[1])?)?))),
    sig("div", &[NUM, NUM], NUM, |a, _| Ok(Datum::Numeric(numeric(&a[0])?.div_trunc(numeric(&a[1])?)?))),
    sig("gcd", &[I4, I4], I4, |a, _| as_int4(gcd(int4(&a[0])? as i64, int4(&a[1])? as i64))),
    sig("gcd", &[I8, I8], I8, |a, _| as_int8(gcd(int8(&a[0])?, int8(&a[1])?))),
    sig("lcm", &[I4, I4], I4, |a, _| as_int4(lcm(int4(&a[0])? as i64, int4(&a[1])? as i64))),
    sig("lcm", &[I8, I8], I8, |a, _| as_int8(lcm(int8(&a[0])?, int8(&a[1])?))),
    sig("factorial", &[I8], NUM, |a, _| factorial(int8(&a[0])?)),
    sig("scale", &[NUM], I4, |a, _| {
        let n = numeric(&a[0])?;
        Ok(if n.is_finite() { Datum::Int4(n.scale() as i32) } else { Datum::Null })
    }),
    sig("min_scale", &[NUM], I4, |a, _| {
        let n = numeric(&a[0])?;
        Ok(if n.is_finite() { Datum::Int4(n.trim_scale().scale() as i32) } else { Datum::Null })
    }),
    sig("trim_scale", &[NUM], NUM, num_fn!(|x| x.trim_scale())),
    sig("width_bucket", &[NUM, NUM, NUM, I4], I4, |a, _| {
        width_bucket(numeric(&a[0])?, numeric(&a[1])?, numeric(&a[2])?, int4(&a[3])?)
    }),
    sig("pi", &[], F8, |_, _| Ok(Datum::Float8(std::f64::consts::PI))),
    sig("degrees", &[F8], F8, float_fn!(|x| x.to_degrees())),
    sig("radians", &[F8], F8, float_fn!(|x| x.to_radians())),
    sig("sin", &[F8], F8, float_fn!(|x| within(x, x.is_finite())?.sin())),
    sig("cos", &[F8], F8, float_fn!(|x| within(x, x.is_finite())?.cos())),
    sig("tan", &[F8], F8, float_fn!(|x| within(x, x.is_finite())?.tan())),
    sig("cot", &[F8], F8, float_fn!(|x| 1.0 / within(x, x.is_finite())?.tan())),
    sig("asin", &[F8], F8, float_fn!(|x| within(x, x.abs() <= 1.0)?.asin())),
    sig("acos", &[F8], F8, float_fn!(|x| within(x, x.abs() <= 1.0)?.acos())),
    sig("atan", &[F8], F8, float_fn!(|x| x.atan())),
    sig("atan2", &[F8, F8], F8, |a, _| Ok(Datum::Float8(float8(&a[0])?.atan2(float8(&a[1])?)))),
    sig("sinh", &[F8], F8, float_fn!(|x| x.sinh())),
    sig("cosh", &[F8], F8, float_fn!(|x| x.cosh())),
    sig("tanh", &[F8], F8, float_fn!(|x| x.tanh())),
    sig("asinh", &[F8], F8, float_fn!(|x| x.asinh())),
    sig("acosh", &[F8], F8, float_fn!(|x| within(x, x >= 1.0)?.acosh())),
    sig("atanh", &[F8], F8, float_fn!(|x| within(x, x.abs() <= 1.0)?.atanh())),
    sig("sind", &[F8], F8, float_fn!(|x| degrees_exact(x, f64::sin, SIN)?)),
    sig("cosd", &[F8], F8, float_fn!(|x| degrees_exact(x, f64::cos, COS)?)),
    sig("random", &[], F8, |_, c| Ok(Datum::Float8(((c.random)() >> 11) as f64 / (1u64 << 53) as f64)))
        .volatile(),
    sig("gen_random_uuid", &[], UUID, |_, c| {
        let mut u = [0; 16];
        u[..8].copy_from_slice(&(c.random)().to_be_bytes());
        u[8..].copy_from_slice(&(c.random)().to_be_bytes());
        u[6] = (u[6] & 0x0f) | 0x40;
        u[8] = (u[8] & 0x3f) | 0x80;
        Ok(Datum::Uuid(u))
    })
    .volatile(),
];
