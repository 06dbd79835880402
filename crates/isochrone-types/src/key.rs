//! The order-preserving encoding of values in keys.
//!
//!     value    = 01 payload | 02 (NULL)            ascending: NULLs last
//!     desc     = every byte of that complemented   descending: NULLs first
//!     integers, dates, times: big-endian, sign bit turned     oid, uuid: big-endian
//!     text, bytea: escaped, terminated (base::ordered)        char(n): the same, without its trailing blanks
//!     numeric  = class [exponent pairs 00]         class: -inf, negative, zero, positive, +inf, NaN
//!     interval = its span, 16 bytes                array = (01 | element)... as elements, then 00
//!
//! Invariants
//!   K1  Of one type and direction, encodings compare as bytes exactly as [`compare`](crate::compare) orders values.
//!   K2  No encoding is a prefix of another, so encodings of columns may follow each other.
//!   K3  Decoding gives a value equal to what was encoded. What equality does not see is lost: a numeric's scale
//!       (it comes back without zeros at its end), an interval's parts, the sign of zero, the padding of `char` without
//!       length. A row that must give these back stores the value too.
//!
//! Floats of 4 bytes are stored as 8. Integers of different widths have different encodings: cast first.

use crate::datetime::DAY_MICROS;
use crate::error::{Error, Result, SqlState};
use crate::{CastContext, Datum, Interval, Numeric, Type, cast};
use isochrone_base::codec::DecodeError;
use isochrone_base::limits::KEY_BYTES_MAX;
use isochrone_base::ordered;

const PRESENT: u8 = 1;
const NULL: u8 = 2;
const ARRAY_END: u8 = 0;

const NEG_INFINITY: u8 = 1;
const NEGATIVE: u8 = 2;
const ZERO: u8 = 3;
const POSITIVE: u8 = 4;
const INFINITY: u8 = 5;
const NAN: u8 = 6;

/// Appends a value of a type so that the encodings compare as bytes as the values do: ascending with NULLs last, or
/// all of that reversed for `desc`. 54000 for values that are too long for a key. The value must be of the type.
pub fn encode_key(datum: &Datum, ty: &Type, desc: bool, out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    encode(datum, ty, out)?;
    if out.len() - start > KEY_BYTES_MAX {
        let size = out.len() - start;
        out.truncate(start);
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("key value of {size} bytes exceeds the maximum of {KEY_BYTES_MAX} bytes"),
        ));
    }
    if desc {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
    Ok(())
}

fn encode(datum: &Datum, ty: &Type, out: &mut Vec<u8>) -> Result<()> {
    if datum.is_null() {
        out.push(NULL);
        return Ok(());
    }
    out.push(PRESENT);
    match (datum, ty) {
        (Datum::Int4(v), Type::Int4) => ordered::put_i32(out, *v),
        (Datum::Int8(v), Type::Int8) => ordered::put_i64(out, *v),
        (Datum::Int2(v), Type::Int2) => ordered::put_i16(out, *v),
        (Datum::Text(s), Type::Text | Type::Varchar(_) | Type::Name | Type::InternalChar | Type::Unknown) => {
            ordered::put_bytes(out, s.as_bytes())
        }
        (Datum::Bpchar(s), Type::Char(_)) => ordered::put_bytes(out, s.trim_end_matches(' ').as_bytes()),
        (Datum::Bool(v), Type::Bool) => out.push(*v as u8),
        (Datum::Float4(v), Type::Float4) => ordered::put_f64(out, *v as f64),
        (Datum::Float8(v), Type::Float8) => ordered::put_f64(out, *v),
        (Datum::Numeric(v), Type::Numeric(_)) => encode_numeric(v, out),
        (Datum::Bytes(b), Type::Bytea) => ordered::put_bytes(out, b),
        (Datum::Date(v), Type::Date) => ordered::put_i32(out, *v),
        (Datum::Time(v), Type::Time)
        | (Datum::Timestamp(v), Type::Timestamp)
        | (Datum::Timestamptz(v), Type::Timestamptz) => ordered::put_i64(out, *v),
        (Datum::Interval(v), Type::Interval) => {
            out.extend_from_slice(&((v.span() as u128) ^ (1 << 127)).to_be_bytes());
        }
        (Datum::Uuid(u), Type::Uuid) => out.extend_from_slice(u),
        (Datum::Oid(v), Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc) => {
            out.extend_from_slice(&v.to_be_bytes())
        }
        (Datum::Array(a), Type::Array(element)) => {
            for i in &a.items {
                encode(i, element, out)?;
            }
            out.push(ARRAY_END);
        }
        (d, t) => {
            return Err(Error::internal(format!(
                "key column of type {} got a value of type {}",
                t.sql_name(),
                d.natural_type().sql_name()
            )));
        }
    }
    Ok(())
}

fn encode_numeric(v: &Numeric, out: &mut Vec<u8>) {
    let Some((negative, exponent, digits)) = v.scientific() else {
        out.push(match (v.is_finite(), v.signum()) {
            (true, _) => ZERO,
            (false, 1) => INFINITY,
            (false, -1) => NEG_INFINITY,
            (false, _) => NAN,
        });
        return;
    };
    out.push(if negative { NEGATIVE } else { POSITIVE });
    let start = out.len();
    ordered::put_i32(out, exponent as i32);
    for pair in digits.chunks(2) {
        let low = pair.get(1).map_or(0, |d| d - b'0');
        out.push((pair[0] - b'0') * 10 + low + 1);
    }
    out.push(0);
    if negative {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
}

/// Takes a value from the front of `input`; equal to what was encoded, but for what equality does not see (K3).
/// XX001 for bytes that are no encoding.
pub fn decode_key(ty: &Type, desc: bool, input: &mut &[u8]) -> Result<Datum> {
    if !desc {
        return decode(ty, input);
    }
    let turned: Vec<u8> = input.iter().take(KEY_BYTES_MAX + 1).map(|b| !b).collect();
    let mut rest = turned.as_slice();
    let datum = decode(ty, &mut rest)?;
    *input = &input[turned.len() - rest.len()..];
    Ok(datum)
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(DecodeError::Truncated(input.len()))?;
    *input = rest;
    Ok(*head)
}

fn take_str(input: &mut &[u8]) -> Result<String> {
    Ok(String::from_utf8(ordered::take_bytes(input)?).map_err(|_| DecodeError::Invalid("UTF-8 in a key"))?)
}

fn decode(ty: &Type, input: &mut &[u8]) -> Result<Datum> {
    match take::<1>(input)? {
        [NULL] => return Ok(Datum::Null),
        [PRESENT] => {}
        _ => return Err(DecodeError::Invalid("key marker").into()),
    }
    Ok(match ty {
        Type::Int4 => Datum::Int4(ordered::take_i32(input)?),
        Type::Int8 => Datum::Int8(ordered::take_i64(input)?),
        Type::Int2 => Datum::Int2(ordered::take_i16(input)?),
        Type::Text | Type::Varchar(_) | Type::Name | Type::InternalChar | Type::Unknown => {
            Datum::Text(take_str(input)?.into())
        }
        Type::Char(_) => cast::fit_string(&take_str(input)?, ty, CastContext::Explicit)?,
        Type::Bool => match take::<1>(input)? {
            [0] => Datum::Bool(false),
            [1] => Datum::Bool(true),
            _ => return Err(DecodeError::Invalid("boolean in a key").into()),
        },
        Type::Float4 => Datum::Float4(ordered::take_f64(input)? as f32),
        Type::Float8 => Datum::Float8(ordered::take_f64(input)?),
        Type::Numeric(_) => Datum::Numeric(decode_numeric(input)?),
        Type::Bytea => Datum::Bytes(ordered::take_bytes(input)?.into()),
        Type::Date => Datum::Date(ordered::take_i32(input)?),
        Type::Time => Datum::Time(ordered::take_i64(input)?),
        Type::Timestamp => Datum::Timestamp(ordered::take_i64(input)?),
        Type::Timestamptz => Datum::Timestamptz(ordered::take_i64(input)?),
        Type::Interval => {
            let span = (u128::from_be_bytes(take(input)?) ^ (1 << 127)) as i128;
            let days = span / DAY_MICROS as i128;
            let months = (days / 30).clamp(i32::MIN as i128, i32::MAX as i128);
            let rest =
                i32::try_from(days - months * 30).map_err(|_| DecodeError::Invalid("interval in a key"))?;
            Datum::Interval(Interval {
                months: months as i32,
                days: rest,
                micros: (span % DAY_MICROS as i128) as i64,
            })
        }
        Type::Uuid => Datum::Uuid(take(input)?),
        Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc => {
            Datum::Oid(u32::from_be_bytes(take(input)?))
        }
        Type::Array(element) => {
            let mut items = Vec::new();
            while input.first() != Some(&ARRAY_END) {
                items.push(decode(element, input)?);
            }
            take::<1>(input)?;
            Datum::array(**element, items)
        }
        Type::Void => return Err(Error::internal("void in a key")),
    })
}

fn decode_numeric(input: &mut &[u8]) -> Result<Numeric> {
    let [class] = take::<1>(input)?;
    let negative = match class {
        NEG_INFINITY => return Ok(Numeric::NEG_INFINITY),
        ZERO => return Ok(Numeric::ZERO),
        INFINITY => return Ok(Numeric::INFINITY),
        NAN => return Ok(Numeric::NAN),
        NEGATIVE => true,
        POSITIVE => false,
        _ => return Err(DecodeError::Invalid("numeric in a key").into()),
    };
    let turn = if negative { 0xff } else { 0 };
    let exponent: [u8; 4] = take::<4>(input)?.map(|b| b ^ turn);
    let exponent = ordered::take_i32(&mut exponent.as_slice())? as i64;
    let mut digits = Vec::new();
    loop {
        match take::<1>(input)?[0] ^ turn {
            0 => break,
            b @ 1..=100 => digits.extend_from_slice(&[b'0' + (b - 1) / 10, b'0' + (b - 1) % 10]),
            _ => return Err(DecodeError::Invalid("numeric in a key").into()),
        }
    }
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    if digits.is_empty() || exponent.unsigned_abs() > 200_000 {
        return Err(DecodeError::Invalid("numeric in a key").into());
    }
    Numeric::from_scientific(negative, exponent, &digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare;
    use crate::proptests::{scalar_types, value};
    use proptest::prelude::*;

    fn key(d: &Datum, t: &Type, desc: bool) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key(d, t, desc, &mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn bytes_compare_as_values((t, a, b) in scalar_types().prop_flat_map(|t| (Just(t), value(t), value(t)))) {
            let (ka, kb) = (key(&a, &t, false), key(&b, &t, false));
            prop_assert_eq!(compare(&a, &b), ka.cmp(&kb), "{:?} {:?}", a, b);
            prop_assert!(ka == kb || !kb.starts_with(&ka));
            let (da, db) = (key(&a, &t, true), key(&b, &t, true));
            prop_assert_eq!(compare(&b, &a), da.cmp(&db));
            for (desc, k) in [(false, ka), (true, da)] {
                let mut tail = k.clone();
                tail.extend_from_slice(b"tail");
                let mut input = tail.as_slice();
                prop_assert_eq!(&decode_key(&t, desc, &mut input).unwrap(), &a);
                prop_assert_eq!(input, b"tail");
            }
        }

        #[test]
        fn garbage_is_an_error(t in scalar_types(), b: Vec<u8>, desc: bool) {
            let _ = decode_key(&t, desc, &mut b.as_slice());
        }
    }

    #[test]
    fn numerics_in_order() {
        let texts = [
            "-Infinity",
            "-1e30",
            "-100",
            "-99.9",
            "-0.001",
            "0",
            "0.0005",
            "0.001",
            "1",
            "1.5",
            "10",
            "99",
            "100.00001",
            "9223372036854775808",
            "1e40",
            "Infinity",
            "NaN",
        ];
        let t = Type::Numeric(None);
        let keys: Vec<_> =
            texts.iter().map(|s| key(&Datum::Numeric(s.parse().unwrap()), &t, false)).collect();
        assert!(keys.is_sorted());
        assert!(key(&Datum::Null, &t, false) > keys[16]);
        let long = Datum::text("x".repeat(KEY_BYTES_MAX));
        let e = encode_key(&long, &Type::Text, false, &mut Vec::new()).unwrap_err();
        assert_eq!(e.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    }
}
