//! The order-preserving encoding of keys: comparing encodings as bytes compares the values.
//!
//! * Byte strings are escaped and terminated: `00` becomes `00 ff`, the end is `00 01`. A string is therefore
//!   smaller than every longer string that starts with it, and no encoding is a prefix of another.
//! * Integers are big-endian with the sign bit turned; floats turn the sign bit, negative ones all bits.
//!
//! Descending columns and richer types are built on these by the layer that knows types.

use crate::codec::DecodeError;

/// Appends an escaped, terminated byte string.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    for &b in bytes {
        out.push(b);
        if b == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
}

/// Takes an escaped byte string from the front of `input`.
pub fn take_bytes(input: &mut &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let mut i = 0;
    loop {
        match (input.get(i), input.get(i + 1)) {
            (Some(0), Some(0xff)) => {
                out.push(0);
                i += 2;
            }
            (Some(0), Some(1)) => {
                *input = &input[i + 2..];
                return Ok(out);
            }
            (Some(0), Some(_)) => return Err(DecodeError::Invalid("escaped byte string")),
            (Some(0), None) | (None, _) => return Err(DecodeError::Truncated(input.len())),
            (Some(&b), _) => {
                out.push(b);
                i += 1;
            }
        }
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(DecodeError::Truncated(input.len()))?;
    *input = rest;
    Ok(*head)
}

macro_rules! ordered_int {
    ($put:ident, $take:ident, $t:ty, $u:ty) => {
        /// Appends the integer so that byte order is numeric order.
        pub fn $put(out: &mut Vec<u8>, v: $t) {
            out.extend_from_slice(&((v as $u) ^ (1 << (<$u>::BITS - 1))).to_be_bytes());
        }
        /// Takes the integer from the front of `input`.
        pub fn $take(input: &mut &[u8]) -> Result<$t, DecodeError> {
            Ok((<$u>::from_be_bytes(take(input)?) ^ (1 << (<$u>::BITS - 1))) as $t)
        }
    };
}
ordered_int!(put_i16, take_i16, i16, u16);
ordered_int!(put_i32, take_i32, i32, u32);
ordered_int!(put_i64, take_i64, i64, u64);

/// Appends an unsigned integer, big-endian.
pub fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_be_bytes());
}

/// Takes an unsigned integer, big-endian.
pub fn take_u64(input: &mut &[u8]) -> Result<u64, DecodeError> {
    Ok(u64::from_be_bytes(take(input)?))
}

/// Appends a float in PostgreSQL's order: `-0` equals `0`, `NaN` equals itself and is the largest.
pub fn put_f64(out: &mut Vec<u8>, v: f64) {
    let v = if v == 0.0 {
        0.0
    } else if v.is_nan() {
        f64::NAN.copysign(1.0)
    } else {
        v
    };
    let bits = v.to_bits();
    let bits = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
    out.extend_from_slice(&bits.to_be_bytes());
}

/// Takes a float.
pub fn take_f64(input: &mut &[u8]) -> Result<f64, DecodeError> {
    let bits = u64::from_be_bytes(take(input)?);
    Ok(f64::from_bits(if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn enc<T>(put: impl Fn(&mut Vec<u8>, T), v: T) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, v);
        out
    }

    proptest! {
        #[test]
        fn byte_strings(a in proptest::collection::vec(0u8..3, 0..6), b in proptest::collection::vec(0u8..3, 0..6)) {
            let (ea, eb) = (enc(|o, v: &[u8]| put_bytes(o, v), a.as_slice()), enc(|o, v: &[u8]| put_bytes(o, v), b.as_slice()));
            prop_assert_eq!(a.cmp(&b), ea.cmp(&eb));
            prop_assert!(a == b || !ea.starts_with(&eb));
            prop_assert_eq!(take_bytes(&mut ea.as_slice()).unwrap(), a);
        }

        #[test]
        fn integers(a: i64, b: i64) {
            prop_assert_eq!(a.cmp(&b), enc(put_i64, a).cmp(&enc(put_i64, b)));
            prop_assert_eq!(take_i64(&mut enc(put_i64, a).as_slice()).unwrap(), a);
            let (c, d) = (a as i32, b as i32);
            prop_assert_eq!(c.cmp(&d), enc(put_i32, c).cmp(&enc(put_i32, d)));
            let (c, d) = (a as i16, b as i16);
            prop_assert_eq!(c.cmp(&d), enc(put_i16, c).cmp(&enc(put_i16, d)));
        }

        #[test]
        fn floats(a: f64, b: f64) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(a.partial_cmp(&b).unwrap(), enc(put_f64, a).cmp(&enc(put_f64, b)));
            prop_assert_eq!(take_f64(&mut enc(put_f64, a).as_slice()).unwrap(), a);
            prop_assert!(enc(put_f64, f64::NAN) > enc(put_f64, a));
        }

        #[test]
        fn garbage(b: Vec<u8>) {
            let _ = take_bytes(&mut b.as_slice());
            let _ = take_f64(&mut b.as_slice());
        }
    }
}
