//! Values of the database as Rust types, and back.

use isochrone_types::{Datum, Type};

/// The type a parameter is declared with. NULL gets its type from where it stands.
pub(crate) fn type_of(datum: &Datum) -> Option<Type> {
    Some(match datum {
        Datum::Bool(_) => Type::Bool,
        Datum::Int2(_) => Type::Int2,
        Datum::Int4(_) => Type::Int4,
        Datum::Int8(_) => Type::Int8,
        Datum::Float4(_) => Type::Float4,
        Datum::Float8(_) => Type::Float8,
        _ => return None,
    })
}

/// What a value can be read as.
pub trait FromDatum: Sized {
    /// `None`: it is another type, or NULL (read an `Option` where NULL may be).
    fn from_datum(datum: &Datum) -> Option<Self>;
}

impl FromDatum for Datum {
    fn from_datum(datum: &Datum) -> Option<Datum> {
        Some(datum.clone())
    }
}

impl<T: FromDatum> FromDatum for Option<T> {
    fn from_datum(datum: &Datum) -> Option<Option<T>> {
        match datum {
            Datum::Null => Some(None),
            other => T::from_datum(other).map(Some),
        }
    }
}

impl FromDatum for bool {
    fn from_datum(datum: &Datum) -> Option<bool> {
        match datum {
            Datum::Bool(v) => Some(*v),
            _ => None,
        }
    }
}

impl FromDatum for i64 {
    fn from_datum(datum: &Datum) -> Option<i64> {
        match datum {
            Datum::Int2(v) => Some(i64::from(*v)),
            Datum::Int4(v) => Some(i64::from(*v)),
            Datum::Int8(v) => Some(*v),
            _ => None,
        }
    }
}

impl FromDatum for i32 {
    fn from_datum(datum: &Datum) -> Option<i32> {
        i64::from_datum(datum).and_then(|v| i32::try_from(v).ok())
    }
}

impl FromDatum for f64 {
    fn from_datum(datum: &Datum) -> Option<f64> {
        match datum {
            Datum::Float4(v) => Some(f64::from(*v)),
            Datum::Float8(v) => Some(*v),
            _ => None,
        }
    }
}

impl FromDatum for String {
    fn from_datum(datum: &Datum) -> Option<String> {
        match datum {
            Datum::Text(v) => Some(v.to_string()),
            _ => None,
        }
    }
}
