//! The binary form of values, as PostgreSQL's send and receive functions write and read it.
//!
//! All lengths are checked before anything is read or allocated: wrong bytes are 22P03, never a panic.

use crate::cast;
use crate::datetime::{
    DATE_MAX, DATE_MIN, DAY_MICROS, check_timestamp, date_out_of_range, is_infinite, timestamp_out_of_range,
};
use crate::datum::{DATE_INFINITY, DATE_NEG_INFINITY};
use crate::error::{Error, Result, SqlState};
use crate::numeric::{self, SCALE_MAX};
use crate::text::checked_text;
use crate::{CastContext, Datum, Interval, Numeric, Type};

/// Most elements of an array that is read.
pub const ARRAY_ITEMS_MAX: usize = 1 << 24;

#[cold]
fn bad(ty: &Type) -> Error {
    Error::new(
        SqlState::INVALID_BINARY_REPRESENTATION,
        format!("incorrect binary data format for type {}", ty.base_sql_name()),
    )
}

fn fixed<const N: usize>(ty: &Type, bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| bad(ty))
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    let s = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let hex: Vec<String> =
            bytes[at..].iter().take(e.error_len().unwrap_or(1)).map(|b| format!("0x{b:02x}")).collect();
        Error::new(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            format!("invalid byte sequence for encoding \"UTF8\": {}", hex.join(" ")),
        )
    })?;
    checked_text(s)
}

/// Reads a value from its binary form. 22P03 when the bytes are none of the type. A modifier is applied as on
/// assignment.
pub fn parse_binary(ty: &Type, bytes: &[u8]) -> Result<Datum> {
    Ok(match *ty {
        Type::Int4 => Datum::Int4(i32::from_be_bytes(fixed(ty, bytes)?)),
        Type::Int8 => Datum::Int8(i64::from_be_bytes(fixed(ty, bytes)?)),
        Type::Int2 => Datum::Int2(i16::from_be_bytes(fixed(ty, bytes)?)),
        Type::Bool => Datum::Bool(fixed::<1>(ty, bytes)?[0] != 0),
        Type::Float4 => Datum::Float4(f32::from_be_bytes(fixed(ty, bytes)?)),
        Type::Float8 => Datum::Float8(f64::from_be_bytes(fixed(ty, bytes)?)),
        Type::Text | Type::Unknown => Datum::Text(utf8(bytes)?.into()),
        Type::Varchar(_) | Type::Char(_) => cast::fit_string(utf8(bytes)?, ty, CastContext::Assignment)?,
        Type::Name => Datum::text(cast::truncate_name(utf8(bytes)?)),
        Type::InternalChar => {
            let [b] = fixed::<1>(ty, bytes)?;
            Datum::text(if b == 0 { String::new() } else { (b as char).to_string() })
        }
        Type::Bytea => Datum::Bytes(bytes.into()),
        Type::Numeric(m) => {
            let n = parse_numeric(ty, bytes)?;
            Datum::Numeric(match m {
                Some((p, s)) => n.apply_typmod(p, s)?,
                None => n,
            })
        }
        Type::Date => {
            let d = i32::from_be_bytes(fixed(ty, bytes)?);
            if d != DATE_INFINITY && d != DATE_NEG_INFINITY && !(DATE_MIN..=DATE_MAX).contains(&d) {
                return Err(date_out_of_range());
            }
            Datum::Date(d)
        }
        Type::Time => {
            let t = i64::from_be_bytes(fixed(ty, bytes)?);
            if !(0..=DAY_MICROS).contains(&t) {
                return Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "time out of range"));
            }
            Datum::Time(t)
        }
        Type::Timestamp => Datum::Timestamp(stamp(ty, bytes)?),
        Type::Timestamptz => Datum::Timestamptz(stamp(ty, bytes)?),
        Type::Interval => {
            let b: [u8; 16] = fixed(ty, bytes)?;
            let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, m0, m1, m2, m3] = b;
            Datum::Interval(Interval {
                micros: i64::from_be_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
                days: i32::from_be_bytes([d0, d1, d2, d3]),
                months: i32::from_be_bytes([m0, m1, m2, m3]),
            })
        }
        Type::Uuid => Datum::Uuid(fixed(ty, bytes)?),
        Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc => {
            Datum::Oid(u32::from_be_bytes(fixed(ty, bytes)?))
        }
        Type::Void => Datum::Null,
        Type::Array(element) => parse_array(ty, element, bytes)?,
    })
}

fn stamp(ty: &Type, bytes: &[u8]) -> Result<i64> {
    let t = i64::from_be_bytes(fixed(ty, bytes)?);
    if is_infinite(t) || check_timestamp(t).is_some() { Ok(t) } else { Err(timestamp_out_of_range()) }
}

fn take<'a>(ty: &Type, bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n).ok_or_else(|| bad(ty))?;
    *bytes = rest;
    Ok(head)
}

fn take_i32(ty: &Type, bytes: &mut &[u8]) -> Result<i32> {
    Ok(i32::from_be_bytes(fixed(ty, take(ty, bytes, 4)?)?))
}

fn parse_array(ty: &Type, element: &'static Type, bytes: &[u8]) -> Result<Datum> {
    let mut rest = bytes;
    let dimensions = take_i32(ty, &mut rest)?;
    let _has_nulls = take_i32(ty, &mut rest)?;
    let oid = take_i32(ty, &mut rest)? as u32;
    if oid != element.oid() {
        return Err(Error::new(SqlState::DATATYPE_MISMATCH, "wrong element type"));
    }
    let mut items = Vec::new();
    match dimensions {
        0 => {}
        1 => {
            let n = take_i32(ty, &mut rest)?;
            let _lower_bound = take_i32(ty, &mut rest)?;
            let n = usize::try_from(n).ok().filter(|n| *n <= ARRAY_ITEMS_MAX && *n * 4 <= rest.len());
            for _ in 0..n.ok_or_else(|| bad(ty))? {
                let length = take_i32(ty, &mut rest)?;
                items.push(match usize::try_from(length) {
                    Ok(n) => parse_binary(element, take(ty, &mut rest, n)?)?,
                    Err(_) => Datum::Null,
                });
            }
        }
        _ => return Err(Error::unsupported("an array of several dimensions")),
    }
    if rest.is_empty() { Ok(Datum::array(*element, items)) } else { Err(bad(ty)) }
}

const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_NAN: u16 = 0xc000;
const NUMERIC_INFINITY: u16 = 0xd000;
const NUMERIC_NEG_INFINITY: u16 = 0xf000;

fn parse_numeric(ty: &Type, bytes: &[u8]) -> Result<Numeric> {
    let mut rest = bytes;
    let mut field = || -> Result<u16> { Ok(u16::from_be_bytes(fixed(ty, take(ty, &mut rest, 2)?)?)) };
    let (n, weight, sign, scale) = (field()? as usize, field()? as i16, field()?, field()?);
    if rest.len() != n * 2 || scale > SCALE_MAX {
        return Err(bad(ty));
    }
    match sign {
        NUMERIC_NAN => return Ok(Numeric::NAN),
        NUMERIC_INFINITY => return Ok(Numeric::INFINITY),
        NUMERIC_NEG_INFINITY => return Ok(Numeric::NEG_INFINITY),
        0 | NUMERIC_NEGATIVE => {}
        _ => return Err(bad(ty)),
    }
    let mut digits = Vec::with_capacity(n * 4 + 1);
    for d in rest.chunks_exact(2) {
        let d = u16::from_be_bytes([d[0], d[1]]);
        if d > 9_999 {
            return Err(bad(ty));
        }
        crate::datetime::format::put_padded(d as i64, 4, &mut digits);
    }
    if n == 0 {
        return Ok(Numeric::from_parts(0, scale));
    }
    // The last of the digits stands for 10 ^ (4 * (weight - n + 1)).
    let exponent = 4 * (weight as i64 + 1) - 1;
    Ok(Numeric::from_scientific(sign == NUMERIC_NEGATIVE, exponent, &digits)?.trunc(scale as i32))
}

fn write_numeric(v: &Numeric, out: &mut Vec<u8>) {
    let mut header = |n: usize, weight: i64, sign: u16| {
        out.extend_from_slice(&(n as u16).to_be_bytes());
        out.extend_from_slice(&(weight as i16).to_be_bytes());
        out.extend_from_slice(&sign.to_be_bytes());
        out.extend_from_slice(&v.scale().to_be_bytes());
    };
    if !v.is_finite() {
        let sign = match v.signum() {
            1 => NUMERIC_INFINITY,
            -1 => NUMERIC_NEG_INFINITY,
            _ => NUMERIC_NAN,
        };
        return header(0, 0, sign);
    }
    let Some((negative, exponent, digits)) = v.scientific() else { return header(0, 0, 0) };
    let weight = exponent.div_euclid(4);
    let lead = (exponent - 4 * weight + 1) as usize;
    let n = 1 + digits.len().saturating_sub(lead).div_ceil(4);
    header(n, weight, if negative { NUMERIC_NEGATIVE } else { 0 });
    let mut at = 0;
    for i in 0..n {
        let width = if i == 0 { lead } else { 4 };
        let mut d = 0u16;
        for _ in 0..width {
            d = d * 10 + digits.get(at).map_or(0, |b| (b - b'0') as u16);
            at += 1;
        }
        out.extend_from_slice(&d.to_be_bytes());
    }
    debug_assert!(weight <= numeric::WEIGHT_DIGITS_MAX / 4);
}

/// Appends the binary form of a value, without a length in front; nothing for NULL.
pub fn write_binary(datum: &Datum, ty: &Type, out: &mut Vec<u8>) {
    match datum {
        Datum::Null => {}
        Datum::Bool(b) => out.push(*b as u8),
        Datum::Int2(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Int4(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Int8(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Float4(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Float8(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Numeric(n) => write_numeric(n, out),
        Datum::Text(s) if *ty == Type::InternalChar => {
            out.push(s.chars().next().map_or(0, |c| c as u32 as u8))
        }
        Datum::Text(s) | Datum::Bpchar(s) => out.extend_from_slice(s.as_bytes()),
        Datum::Bytes(b) => out.extend_from_slice(b),
        Datum::Date(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Time(v) | Datum::Timestamp(v) | Datum::Timestamptz(v) => {
            out.extend_from_slice(&v.to_be_bytes())
        }
        Datum::Interval(v) => {
            out.extend_from_slice(&v.micros.to_be_bytes());
            out.extend_from_slice(&v.days.to_be_bytes());
            out.extend_from_slice(&v.months.to_be_bytes());
        }
        Datum::Uuid(u) => out.extend_from_slice(u),
        Datum::Oid(v) => out.extend_from_slice(&v.to_be_bytes()),
        Datum::Array(a) => {
            let dimensions = !a.items.is_empty() as i32;
            out.extend_from_slice(&dimensions.to_be_bytes());
            out.extend_from_slice(&(a.items.iter().any(Datum::is_null) as i32).to_be_bytes());
            out.extend_from_slice(&a.element.oid().to_be_bytes());
            if dimensions == 0 {
                return;
            }
            out.extend_from_slice(&(a.items.len() as i32).to_be_bytes());
            out.extend_from_slice(&1i32.to_be_bytes());
            for item in &a.items {
                if item.is_null() {
                    out.extend_from_slice(&(-1i32).to_be_bytes());
                    continue;
                }
                let at = out.len();
                out.extend_from_slice(&[0; 4]);
                write_binary(item, &a.element, out);
                let n = (out.len() - at - 4) as i32;
                out[at..at + 4].copy_from_slice(&n.to_be_bytes());
            }
        }
    }
}
