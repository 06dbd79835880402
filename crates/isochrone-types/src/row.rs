//! The encoding of a row's columns.
//!
//!     row    = version (1) column...                 columns by ascending id
//!     column = id (varint) tag (1 byte) payload      the tag says the kind of value, and with it the length
//!
//! Columns carry their id, so ADD and DROP COLUMN rewrite nothing: an id that is not there is absent (the caller
//! supplies the default of that time), an id that nobody wants is skipped. Values carry their kind and need no schema
//! to be read: the change stream and `wal dump` use that.
//!
//! Failure: bytes that are no row are XX001; nothing panics and no length is believed before it is checked.

use crate::error::{Error, Result};
use crate::{Array, Datum, Interval, Numeric, Type};
use isochrone_base::codec::DecodeError;
use std::sync::Arc;

const VERSION: u8 = 1;

mod tag {
    pub const NULL: u8 = 0;
    pub const FALSE: u8 = 1;
    pub const TRUE: u8 = 2;
    pub const INT2: u8 = 3;
    pub const INT4: u8 = 4;
    pub const INT8: u8 = 5;
    pub const FLOAT4: u8 = 6;
    pub const FLOAT8: u8 = 7;
    /// scale, zigzag mantissa
    pub const NUMERIC: u8 = 8;
    /// length, then the text form
    pub const NUMERIC_BIG: u8 = 9;
    pub const TEXT: u8 = 10;
    pub const BPCHAR: u8 = 11;
    pub const BYTES: u8 = 12;
    pub const DATE: u8 = 13;
    pub const TIME: u8 = 14;
    pub const TIMESTAMP: u8 = 15;
    pub const TIMESTAMPTZ: u8 = 16;
    pub const INTERVAL: u8 = 17;
    pub const UUID: u8 = 18;
    pub const OID: u8 = 19;
    /// length, then: oid of the element type, elements as tag and payload
    pub const ARRAY: u8 = 20;
}

#[inline]
fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

#[inline]
fn put_zigzag(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, b: &[u8]) {
    out.push(tag);
    put_varint(out, b.len() as u64);
    out.extend_from_slice(b);
}

fn put_value(d: &Datum, out: &mut Vec<u8>) {
    match d {
        Datum::Null => out.push(tag::NULL),
        Datum::Bool(v) => out.push(if *v { tag::TRUE } else { tag::FALSE }),
        Datum::Int2(v) => {
            out.push(tag::INT2);
            put_zigzag(out, *v as i64);
        }
        Datum::Int4(v) => {
            out.push(tag::INT4);
            put_zigzag(out, *v as i64);
        }
        Datum::Int8(v) => {
            out.push(tag::INT8);
            put_zigzag(out, *v);
        }
        Datum::Float4(v) => {
            out.push(tag::FLOAT4);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Float8(v) => {
            out.push(tag::FLOAT8);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Numeric(n) => match n.small_parts() {
            Some((m, scale)) => {
                out.push(tag::NUMERIC);
                put_varint(out, scale as u64);
                put_zigzag(out, m);
            }
            None => {
                let mut text = Vec::new();
                n.write(&mut text);
                put_bytes(out, tag::NUMERIC_BIG, &text);
            }
        },
        Datum::Text(s) => put_bytes(out, tag::TEXT, s.as_bytes()),
        Datum::Bpchar(s) => put_bytes(out, tag::BPCHAR, s.as_bytes()),
        Datum::Bytes(b) => put_bytes(out, tag::BYTES, b),
        Datum::Date(v) => {
            out.push(tag::DATE);
            put_zigzag(out, *v as i64);
        }
        Datum::Time(v) => {
            out.push(tag::TIME);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Timestamp(v) => {
            out.push(tag::TIMESTAMP);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Timestamptz(v) => {
            out.push(tag::TIMESTAMPTZ);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Interval(v) => {
            out.push(tag::INTERVAL);
            out.extend_from_slice(&v.months.to_le_bytes());
            out.extend_from_slice(&v.days.to_le_bytes());
            out.extend_from_slice(&v.micros.to_le_bytes());
        }
        Datum::Uuid(u) => {
            out.push(tag::UUID);
            out.extend_from_slice(u);
        }
        Datum::Oid(v) => {
            out.push(tag::OID);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Datum::Array(a) => {
            let mut inner = Vec::new();
            put_varint(&mut inner, a.element.oid() as u64);
            a.items.iter().for_each(|i| put_value(i, &mut inner));
            put_bytes(out, tag::ARRAY, &inner);
        }
    }
}

/// Appends a row: columns by strictly ascending id. NULLs may be stored (so that a column that was added later with a
/// default, and is absent, can be told from NULL).
pub fn encode_row(columns: &[(u32, &Datum)], out: &mut Vec<u8>) {
    debug_assert!(columns.is_sorted_by(|a, b| a.0 < b.0), "columns are encoded by ascending id");
    out.push(VERSION);
    for (id, datum) in columns {
        put_varint(out, *id as u64);
        put_value(datum, out);
    }
}

#[inline]
fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], DecodeError> {
    match input.split_at_checked(n) {
        Some((head, rest)) => {
            *input = rest;
            Ok(head)
        }
        None => Err(DecodeError::Truncated(input.len())),
    }
}

#[inline]
fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    match input.split_first_chunk::<N>() {
        Some((head, rest)) => {
            *input = rest;
            Ok(*head)
        }
        None => Err(DecodeError::Truncated(input.len())),
    }
}

#[inline]
fn take_varint(input: &mut &[u8]) -> Result<u64, DecodeError> {
    match input.split_first() {
        Some((b, rest)) if *b < 0x80 => {
            *input = rest;
            Ok(*b as u64)
        }
        _ => take_long_varint(input),
    }
}

fn take_long_varint(input: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut v = 0u64;
    for (i, &b) in input.iter().enumerate().take(10) {
        v |= ((b & 0x7f) as u64).checked_shl(7 * i as u32).unwrap_or(0);
        if b < 0x80 {
            *input = &input[i + 1..];
            return Ok(v);
        }
    }
    Err(DecodeError::Invalid("varint"))
}

#[inline]
fn take_zigzag(input: &mut &[u8]) -> Result<i64, DecodeError> {
    let v = take_varint(input)?;
    Ok((v >> 1) as i64 ^ -((v & 1) as i64))
}

#[inline]
fn take_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let n = take_varint(input)?;
    take(input, usize::try_from(n).map_err(|_| DecodeError::Invalid("length"))?)
}

#[inline]
fn take_str<'a>(input: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(take_bytes(input)?).map_err(|_| DecodeError::Invalid("UTF-8"))
}

#[cold]
fn invalid(what: &'static str) -> Error {
    DecodeError::Invalid(what).into()
}

#[inline]
fn take_value(input: &mut &[u8]) -> Result<Datum> {
    let [t] = take_array::<1>(input)?;
    Ok(match t {
        tag::NULL => Datum::Null,
        tag::FALSE => Datum::Bool(false),
        tag::TRUE => Datum::Bool(true),
        tag::INT4 => Datum::Int4(take_zigzag(input)?.try_into().map_err(|_| invalid("integer"))?),
        tag::INT8 => Datum::Int8(take_zigzag(input)?),
        tag::INT2 => Datum::Int2(take_zigzag(input)?.try_into().map_err(|_| invalid("integer"))?),
        tag::TEXT => Datum::Text(take_str(input)?.into()),
        tag::BPCHAR => Datum::Bpchar(take_str(input)?.into()),
        tag::FLOAT4 => Datum::Float4(f32::from_le_bytes(take_array(input)?)),
        tag::FLOAT8 => Datum::Float8(f64::from_le_bytes(take_array(input)?)),
        tag::NUMERIC => {
            let scale = take_varint(input)?;
            let scale = u16::try_from(scale)
                .ok()
                .filter(|s| *s <= crate::numeric::SCALE_MAX)
                .ok_or_else(|| invalid("scale"))?;
            Datum::Numeric(Numeric::from_parts(take_zigzag(input)?, scale))
        }
        tag::NUMERIC_BIG => Datum::Numeric(Numeric::parse(take_str(input)?).map_err(|_| invalid("numeric"))?),
        tag::BYTES => Datum::Bytes(take_bytes(input)?.into()),
        tag::DATE => Datum::Date(take_zigzag(input)?.try_into().map_err(|_| invalid("date"))?),
        tag::TIME => Datum::Time(i64::from_le_bytes(take_array(input)?)),
        tag::TIMESTAMP => Datum::Timestamp(i64::from_le_bytes(take_array(input)?)),
        tag::TIMESTAMPTZ => Datum::Timestamptz(i64::from_le_bytes(take_array(input)?)),
        tag::INTERVAL => Datum::Interval(Interval {
            months: i32::from_le_bytes(take_array(input)?),
            days: i32::from_le_bytes(take_array(input)?),
            micros: i64::from_le_bytes(take_array(input)?),
        }),
        tag::UUID => Datum::Uuid(take_array(input)?),
        tag::OID => Datum::Oid(u32::from_le_bytes(take_array(input)?)),
        tag::ARRAY => take_array_value(input)?,
        _ => return Err(invalid("tag of a value")),
    })
}

fn take_array_value(input: &mut &[u8]) -> Result<Datum> {
    let mut inner = take_bytes(input)?;
    let oid = u32::try_from(take_varint(&mut inner)?).map_err(|_| invalid("element type"))?;
    let element = Type::from_oid(oid)
        .filter(|t| !matches!(t, Type::Array(_)))
        .ok_or_else(|| invalid("element type"))?;
    let mut items = Vec::new();
    while let Some(t) = inner.first() {
        // Elements are no arrays: the depth is bounded.
        if *t == tag::ARRAY {
            return Err(invalid("array in an array"));
        }
        items.push(take_value(&mut inner)?);
    }
    Ok(Datum::Array(Arc::new(Array { element, items })))
}

fn skip_value(input: &mut &[u8]) -> Result<(), DecodeError> {
    let n = match take_array::<1>(input)?[0] {
        tag::NULL | tag::FALSE | tag::TRUE => 0,
        tag::INT2 | tag::INT4 | tag::INT8 | tag::DATE => {
            take_varint(input)?;
            0
        }
        tag::NUMERIC => {
            take_varint(input)?;
            take_varint(input)?;
            0
        }
        tag::FLOAT4 | tag::OID => 4,
        tag::FLOAT8 | tag::TIME | tag::TIMESTAMP | tag::TIMESTAMPTZ => 8,
        tag::INTERVAL | tag::UUID => 16,
        tag::TEXT | tag::BPCHAR | tag::BYTES | tag::NUMERIC_BIG | tag::ARRAY => {
            usize::try_from(take_varint(input)?).map_err(|_| DecodeError::Invalid("length"))?
        }
        _ => return Err(DecodeError::Invalid("tag of a value")),
    };
    take(input, n).map(|_| ())
}

fn take_version(input: &mut &[u8]) -> Result<(), DecodeError> {
    match take_array::<1>(input)? {
        [VERSION] => Ok(()),
        _ => Err(DecodeError::Invalid("row version")),
    }
}

/// Decodes the wanted columns of a row: `wanted` has (column id, position in `into`), by ascending id. Positions whose
/// column is absent are left as they are (the caller fills in the defaults beforehand). XX001 for bytes that are no
/// row. Stops behind the last wanted column.
pub fn decode_row(bytes: &[u8], wanted: &[(u32, usize)], into: &mut [Datum]) -> Result<()> {
    let mut input = bytes;
    take_version(&mut input)?;
    let mut wanted = wanted.iter();
    let Some(mut next) = wanted.next() else { return Ok(()) };
    while !input.is_empty() {
        let id = take_varint(&mut input)?;
        while (next.0 as u64) < id {
            match wanted.next() {
                Some(w) => next = w,
                None => return Ok(()),
            }
        }
        if next.0 as u64 == id {
            into[next.1] = take_value(&mut input)?;
            match wanted.next() {
                Some(w) => next = w,
                None => return Ok(()),
            }
        } else {
            skip_value(&mut input)?;
        }
    }
    Ok(())
}

/// Decodes every column of a row, for readers without a schema. XX001 for bytes that are no row.
pub fn decode_row_all(bytes: &[u8]) -> Result<Vec<(u32, Datum)>> {
    let mut input = bytes;
    take_version(&mut input)?;
    let mut out = Vec::new();
    while !input.is_empty() {
        let id = u32::try_from(take_varint(&mut input)?).map_err(|_| invalid("column id"))?;
        out.push((id, take_value(&mut input)?));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use crate::proptests::{scalar_types, value};
    use crate::text::to_text;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn rows_come_back(values in proptest::collection::btree_map(1u32..400, scalar_types().prop_flat_map(value), 0..8)) {
            let columns: Vec<(u32, &Datum)> = values.iter().map(|(i, d)| (*i, d)).collect();
            let mut bytes = Vec::new();
            encode_row(&columns, &mut bytes);
            let all = decode_row_all(&bytes).unwrap();
            let text = |d: &Datum| to_text(d, &d.natural_type(), &Settings::default());
            prop_assert_eq!(all.len(), columns.len());
            for ((i, d), (j, e)) in columns.iter().zip(&all) {
                prop_assert_eq!(i, j);
                prop_assert_eq!(text(d), text(e));
            }
            // Every third column, and some that are not there.
            let wanted: Vec<(u32, usize)> = (1u32..400).step_by(3).enumerate().map(|(p, i)| (i, p)).collect();
            let mut into = vec![Datum::Int8(-1); wanted.len()];
            decode_row(&bytes, &wanted, &mut into).unwrap();
            for (id, p) in wanted {
                prop_assert_eq!(&into[p], values.get(&id).unwrap_or(&Datum::Int8(-1)));
            }
            for cut in 0..bytes.len() {
                let _ = decode_row_all(&bytes[..cut]);
            }
        }

        #[test]
        fn garbage_is_an_error(mut b: Vec<u8>) {
            let _ = decode_row_all(&b);
            b.insert(0, VERSION);
            let _ = decode_row_all(&b);
            let mut into = [Datum::Null];
            let _ = decode_row(&b, &[(3, 0)], &mut into);
        }
    }
}
