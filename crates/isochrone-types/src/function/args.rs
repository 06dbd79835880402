//! Taking arguments apart. Resolution guarantees the types, so a mismatch is a fault of ours (XX000).

use super::RESULT_BYTES_MAX;
use crate::{Array, Datum, Error, Interval, Numeric, Result, SqlState};

#[cold]
fn mismatch(d: &Datum, want: &str) -> Error {
    Error::internal(format!("function got a value of type {} for {want}", d.natural_type().sql_name()))
}

macro_rules! getter {
    ($name:ident, $variant:ident, $t:ty) => {
        #[inline]
        pub(super) fn $name(d: &Datum) -> Result<$t> {
            match d {
                Datum::$variant(v) => Ok(*v),
                other => Err(mismatch(other, stringify!($name))),
            }
        }
    };
}
getter!(int2, Int2, i16);
getter!(int4, Int4, i32);
getter!(int8, Int8, i64);
getter!(float4, Float4, f32);
getter!(float8, Float8, f64);
getter!(date, Date, i32);
getter!(time, Time, i64);
getter!(timestamp, Timestamp, i64);
getter!(timestamptz, Timestamptz, i64);
getter!(interval, Interval, Interval);

#[inline]
pub(super) fn numeric(d: &Datum) -> Result<&Numeric> {
    match d {
        Datum::Numeric(v) => Ok(v),
        other => Err(mismatch(other, "numeric")),
    }
}

#[inline]
pub(super) fn text(d: &Datum) -> Result<&str> {
    d.as_str().ok_or_else(|| mismatch(d, "text"))
}

pub(super) fn bytes(d: &Datum) -> Result<&[u8]> {
    d.as_bytes().ok_or_else(|| mismatch(d, "bytea"))
}

pub(super) fn array(d: &Datum) -> Result<&Array> {
    match d {
        Datum::Array(a) => Ok(a),
        other => Err(mismatch(other, "an array")),
    }
}

/// Refuses a result that would be too long, before it is made. 54000.
pub(super) fn check_length(bytes: usize) -> Result<usize> {
    if bytes > RESULT_BYTES_MAX {
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("requested length too large: a string has at most {RESULT_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}
