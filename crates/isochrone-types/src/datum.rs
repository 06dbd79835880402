//! A value of any type, or NULL: 24 bytes, cheap to clone (long values are shared).
//!
//! Order, equality and hash are those of PostgreSQL's btree and hash operators under the C collation: NaN equals
//! itself and is the largest number, blanks at the end of `character(n)` do not count, `-0` equals `0`, numerics of
//! equal value are equal whatever their scale, intervals compare by their length with months of 30 days.

use crate::numeric::Numeric;
use crate::types::Type;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// `date` positive infinity.
pub const DATE_INFINITY: i32 = i32::MAX;
/// `date` negative infinity.
pub const DATE_NEG_INFINITY: i32 = i32::MIN;
/// `timestamp` and `timestamptz` positive infinity.
pub const TIMESTAMP_INFINITY: i64 = i64::MAX;
/// `timestamp` and `timestamptz` negative infinity.
pub const TIMESTAMP_NEG_INFINITY: i64 = i64::MIN;

/// A length of time in three parts that do not convert into each other exactly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interval {
    /// Months.
    pub months: i32,
    /// Days.
    pub days: i32,
    /// Microseconds.
    pub micros: i64,
}

impl Interval {
    /// The length that order and equality go by: months count 30 days, days 24 hours. In microseconds.
    pub fn span(&self) -> i128 {
        let days = self.months as i128 * 30 + self.days as i128;
        days * 86_400_000_000 + self.micros as i128
    }
}

/// An array of one dimension with lower bound 1.
#[derive(Clone, Debug)]
pub struct Array {
    /// The type of the elements.
    pub element: Type,
    /// The elements; NULLs allowed.
    pub items: Vec<Datum>,
}

/// A value or NULL. Which variant a type uses is said by each; a value of a type is never in another variant.
#[derive(Clone, Debug, Default)]
pub enum Datum {
    /// NULL of any type
    #[default]
    Null,
    /// bool
    Bool(bool),
    /// int2
    Int2(i16),
    /// int4
    Int4(i32),
    /// int8
    Int8(i64),
    /// float4
    Float4(f32),
    /// float8
    Float8(f64),
    /// numeric
    Numeric(Numeric),
    /// text, varchar, name, "char" (at most one character), unknown
    Text(Arc<str>),
    /// bpchar: with its padding
    Bpchar(Arc<str>),
    /// bytea
    Bytes(Arc<[u8]>),
    /// date: days since 2000-01-01
    Date(i32),
    /// time: microseconds since midnight, 0 to 86,400,000,000
    Time(i64),
    /// timestamp: microseconds since 2000-01-01
    Timestamp(i64),
    /// timestamptz: microseconds since 2000-01-01 UTC
    Timestamptz(i64),
    /// interval
    Interval(Interval),
    /// uuid
    Uuid([u8; 16]),
    /// oid, regclass, regtype, regproc
    Oid(u32),
    /// an array
    Array(Arc<Array>),
}

impl Datum {
    /// A text value.
    pub fn text(s: impl AsRef<str>) -> Datum {
        Datum::Text(s.as_ref().into())
    }

    /// A bytea value.
    pub fn bytes(b: impl AsRef<[u8]>) -> Datum {
        Datum::Bytes(b.as_ref().into())
    }

    /// An array value.
    pub fn array(element: Type, items: Vec<Datum>) -> Datum {
        Datum::Array(Arc::new(Array { element, items }))
    }

    /// Is it NULL?
    #[inline]
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// The boolean; `None` for NULL and other types.
    #[inline]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Datum::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// Is it the boolean true? NULL is not: this is what WHERE asks.
    #[inline]
    pub fn is_true(&self) -> bool {
        matches!(self, Datum::Bool(true))
    }

    /// An integer of any width, or an oid; `None` for NULL and other types.
    #[inline]
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int2(v) => Some(*v as i64),
            Datum::Int4(v) => Some(*v as i64),
            Datum::Int8(v) => Some(*v),
            Datum::Oid(v) => Some(*v as i64),
            _ => None,
        }
    }

    /// A float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Datum::Float4(v) => Some(*v as f64),
            Datum::Float8(v) => Some(*v),
            _ => None,
        }
    }

    /// The string of a text or bpchar (with its padding).
    #[inline]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Datum::Text(s) | Datum::Bpchar(s) => Some(s),
            _ => None,
        }
    }

    /// The bytes of a bytea.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Datum::Bytes(b) => Some(b),
            _ => None,
        }
    }

    /// The type that the variant stands for (`text` for every string, `oid` for every oid); `unknown` for NULL.
    pub fn natural_type(&self) -> Type {
        match self {
            Datum::Null => Type::Unknown,
            Datum::Bool(_) => Type::Bool,
            Datum::Int2(_) => Type::Int2,
            Datum::Int4(_) => Type::Int4,
            Datum::Int8(_) => Type::Int8,
            Datum::Float4(_) => Type::Float4,
            Datum::Float8(_) => Type::Float8,
            Datum::Numeric(_) => Type::Numeric(None),
            Datum::Text(_) => Type::Text,
            Datum::Bpchar(_) => Type::Char(None),
            Datum::Bytes(_) => Type::Bytea,
            Datum::Date(_) => Type::Date,
            Datum::Time(_) => Type::Time,
            Datum::Timestamp(_) => Type::Timestamp,
            Datum::Timestamptz(_) => Type::Timestamptz,
            Datum::Interval(_) => Type::Interval,
            Datum::Uuid(_) => Type::Uuid,
            Datum::Oid(_) => Type::Oid,
            Datum::Array(a) => a.element.array_of().unwrap_or(Type::Unknown),
        }
    }

    /// Bytes of memory that the value holds, its own 24 included: for budgets.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Datum>()
            + match self {
                Datum::Text(s) | Datum::Bpchar(s) => s.len() + 16,
                Datum::Bytes(b) => b.len() + 16,
                Datum::Numeric(n) => n.heap_bytes(),
                Datum::Array(a) => 48 + a.items.iter().map(Datum::memory_bytes).sum::<usize>(),
                _ => 0,
            }
    }

    /// A rank of the variant, for an order among values that SQL never compares.
    fn rank(&self) -> u8 {
        match self {
            Datum::Bool(_) => 0,
            Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_) => 1,
            Datum::Float4(_) | Datum::Float8(_) => 2,
            Datum::Numeric(_) => 3,
            Datum::Text(_) | Datum::Bpchar(_) => 4,
            Datum::Bytes(_) => 5,
            Datum::Date(_) => 6,
            Datum::Time(_) => 7,
            Datum::Timestamp(_) => 8,
            Datum::Timestamptz(_) => 9,
            Datum::Interval(_) => 10,
            Datum::Uuid(_) => 11,
            Datum::Oid(_) => 12,
            Datum::Array(_) => 13,
            Datum::Null => 14,
        }
    }
}

#[inline]
fn compare_f64(a: f64, b: f64) -> Ordering {
    match a.partial_cmp(&b) {
        Some(o) => o,
        None => a.is_nan().cmp(&b.is_nan()),
    }
}

fn trim_blanks(s: &str) -> &str {
    s.trim_end_matches(' ')
}

/// PostgreSQL's order of two values of one type; NULL is equal to NULL and larger than everything else. Integers of
/// different widths, and floats of different widths, compare by value. Values of unrelated types have an arbitrary
/// but total order: the binder never asks for it.
#[inline]
pub fn compare(a: &Datum, b: &Datum) -> Ordering {
    match (a, b) {
        (Datum::Int4(x), Datum::Int4(y)) => x.cmp(y),
        (Datum::Int8(x), Datum::Int8(y)) => x.cmp(y),
        (Datum::Text(x), Datum::Text(y)) => x.as_bytes().cmp(y.as_bytes()),
        _ => compare_other(a, b),
    }
}

fn compare_other(a: &Datum, b: &Datum) -> Ordering {
    match (a, b) {
        (Datum::Null, Datum::Null) => Ordering::Equal,
        (Datum::Null, _) => Ordering::Greater,
        (_, Datum::Null) => Ordering::Less,
        (Datum::Bool(x), Datum::Bool(y)) => x.cmp(y),
        (Datum::Int2(x), Datum::Int2(y)) => x.cmp(y),
        (Datum::Float4(x), Datum::Float4(y)) => compare_f64(*x as f64, *y as f64),
        (Datum::Float8(x), Datum::Float8(y)) => compare_f64(*x, *y),
        (Datum::Float4(x), Datum::Float8(y)) => compare_f64(*x as f64, *y),
        (Datum::Float8(x), Datum::Float4(y)) => compare_f64(*x, *y as f64),
        (Datum::Numeric(x), Datum::Numeric(y)) => x.cmp(y),
        (Datum::Bpchar(x), Datum::Bpchar(y)) => trim_blanks(x).as_bytes().cmp(trim_blanks(y).as_bytes()),
        (Datum::Bytes(x), Datum::Bytes(y)) => x.cmp(y),
        (Datum::Date(x), Datum::Date(y)) => x.cmp(y),
        (Datum::Time(x), Datum::Time(y))
        | (Datum::Timestamp(x), Datum::Timestamp(y))
        | (Datum::Timestamptz(x), Datum::Timestamptz(y)) => x.cmp(y),
        (Datum::Interval(x), Datum::Interval(y)) => x.span().cmp(&y.span()),
        (Datum::Uuid(x), Datum::Uuid(y)) => x.cmp(y),
        (Datum::Oid(x), Datum::Oid(y)) => x.cmp(y),
        (Datum::Array(x), Datum::Array(y)) => {
            for (i, j) in x.items.iter().zip(&y.items) {
                match compare(i, j) {
                    Ordering::Equal => {}
                    o => return o,
                }
            }
            x.items.len().cmp(&y.items.len())
        }
        (x, y) => match (x.as_i64(), y.as_i64()) {
            (Some(i), Some(j)) if x.rank() == y.rank() => i.cmp(&j),
            _ => {
                let by_rank = x.rank().cmp(&y.rank());
                match (by_rank, x.as_str(), y.as_str()) {
                    (Ordering::Equal, Some(s), Some(t)) => s.as_bytes().cmp(t.as_bytes()),
                    _ => by_rank,
                }
            }
        },
    }
}

/// Adds a value to a hash so that values which [`compare`] equal, of one type, hash alike: also across integer widths
/// and across float widths.
pub fn hash(d: &Datum, h: &mut impl Hasher) {
    match d {
        Datum::Null => h.write_u8(0xff),
        Datum::Bool(v) => h.write_u8(*v as u8),
        Datum::Int2(v) => h.write_i64(*v as i64),
        Datum::Int4(v) => h.write_i64(*v as i64),
        Datum::Int8(v) => h.write_i64(*v),
        Datum::Float4(v) => hash_f64(*v as f64, h),
        Datum::Float8(v) => hash_f64(*v, h),
        Datum::Numeric(v) => v.hash(h),
        Datum::Text(s) => h.write(s.as_bytes()),
        Datum::Bpchar(s) => h.write(trim_blanks(s).as_bytes()),
        Datum::Bytes(b) => h.write(b),
        Datum::Date(v) => h.write_i32(*v),
        Datum::Time(v) | Datum::Timestamp(v) | Datum::Timestamptz(v) => h.write_i64(*v),
        Datum::Interval(v) => h.write_i128(v.span()),
        Datum::Uuid(v) => h.write(v),
        Datum::Oid(v) => h.write_i64(*v as i64),
        Datum::Array(a) => {
            h.write_usize(a.items.len());
            a.items.iter().for_each(|i| hash(i, h));
        }
    }
}

fn hash_f64(v: f64, h: &mut impl Hasher) {
    let v = if v == 0.0 {
        0.0
    } else if v.is_nan() {
        f64::NAN
    } else {
        v
    };
    h.write_u64(v.to_bits());
}

/// `a IS DISTINCT FROM b`: NULLs are equal to each other.
pub fn is_distinct(a: &Datum, b: &Datum) -> bool {
    compare(a, b) != Ordering::Equal
}

/// Equality as in [`compare`]: NULL equals NULL. What GROUP BY and DISTINCT go by.
impl PartialEq for Datum {
    fn eq(&self, other: &Datum) -> bool {
        compare(self, other) == Ordering::Equal
    }
}

impl Eq for Datum {}

impl PartialOrd for Datum {
    fn partial_cmp(&self, other: &Datum) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Datum {
    fn cmp(&self, other: &Datum) -> Ordering {
        compare(self, other)
    }
}

impl Hash for Datum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self, state);
    }
}

impl PartialEq for Interval {
    fn eq(&self, other: &Interval) -> bool {
        self.span() == other.span()
    }
}

impl Eq for Interval {}

impl From<bool> for Datum {
    fn from(v: bool) -> Datum {
        Datum::Bool(v)
    }
}
impl From<i32> for Datum {
    fn from(v: i32) -> Datum {
        Datum::Int4(v)
    }
}
impl From<i64> for Datum {
    fn from(v: i64) -> Datum {
        Datum::Int8(v)
    }
}
impl From<f64> for Datum {
    fn from(v: f64) -> Datum {
        Datum::Float8(v)
    }
}
impl From<&str> for Datum {
    fn from(v: &str) -> Datum {
        Datum::text(v)
    }
}
impl From<String> for Datum {
    fn from(v: String) -> Datum {
        Datum::Text(v.into())
    }
}
impl From<Numeric> for Datum {
    fn from(v: Numeric) -> Datum {
        Datum::Numeric(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_small_and_ordered_as_postgresql_does() {
        assert_eq!(size_of::<Datum>(), 24);
        let nan = Datum::Float8(f64::NAN);
        assert!(nan > Datum::Float8(f64::INFINITY) && nan == Datum::Float8(-f64::NAN));
        assert!(Datum::Null > nan);
        assert_eq!(Datum::Float8(-0.0), Datum::Float8(0.0));
        assert_eq!(Datum::Bpchar("a  ".into()), Datum::Bpchar("a".into()));
        assert!(Datum::Int2(3) < Datum::Int8(4));
        let day = Datum::Interval(Interval { months: 0, days: 1, micros: 0 });
        let hours = Datum::Interval(Interval { months: 0, days: 0, micros: 86_400_000_000 });
        assert_eq!(day, hours);
    }
}
