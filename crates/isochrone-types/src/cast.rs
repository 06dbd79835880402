//! Conversions between types: which exist and where they happen by themselves (`pg_cast`), what they do, and which
//! one type the branches of a UNION or CASE get.
//!
//! Any type converts to text on assignment and from text explicitly, through its text form.

use crate::datetime::{self, DAY_MICROS};
use crate::datum::{DATE_INFINITY, DATE_NEG_INFINITY};
use crate::error::{Error, Result, SqlState};
use crate::text::{NAME_BYTES_MAX, first_char, parse_text, to_text};
use crate::{Category, Datum, Interval, Numeric, Settings, Type};

/// Where a conversion may happen by itself (`pg_cast.castcontext`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CastKind {
    /// Anywhere.
    Implicit,
    /// When a value is assigned to a column, and explicitly.
    Assignment,
    /// Only by `CAST` or `::`.
    Explicit,
}

/// Why a value is converted: what happens to strings that are too long depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CastContext {
    /// By resolution of operators and functions.
    Implicit,
    /// Into a column.
    Assignment,
    /// `CAST(x AS t)` or `x::t`.
    Explicit,
}

fn number_rank(t: Type) -> Option<u8> {
    Some(match t {
        Type::Int2 => 0,
        Type::Int4 => 1,
        Type::Int8 => 2,
        Type::Numeric(_) => 3,
        Type::Float4 => 4,
        Type::Float8 => 5,
        _ => return None,
    })
}

/// May values of `from` become `to`, and where? Modifiers are not looked at; a type to itself is implicit. `None`:
/// there is no conversion.
pub fn cast_kind(from: &Type, to: &Type) -> Option<CastKind> {
    use CastKind::*;
    use Type::*;
    let (from, to) = (from.base(), to.base());
    if from == to || from == Unknown {
        return Some(Implicit);
    }
    if let (Some(a), Some(b)) = (number_rank(from), number_rank(to)) {
        return Some(if a < b { Implicit } else { Assignment });
    }
    let is_oid = |t| matches!(t, Oid | Regclass | Regtype | Regproc);
    Some(match (from, to) {
        (Array(a), Array(b)) => return cast_kind(a, b),
        (Text | Varchar(_) | Char(_), Text | Varchar(_) | Char(_)) => Implicit,
        (Name, Text) => Implicit,
        (Name, Varchar(_) | Char(_)) => Assignment,
        (Text | Varchar(_) | Char(_), Name) => Implicit,
        (InternalChar, Text) => Implicit,
        (InternalChar, Varchar(_) | Char(_)) => Assignment,
        (Text | Varchar(_) | Char(_), InternalChar) => Assignment,
        (InternalChar, Int4) | (Int4, InternalChar) => Explicit,
        (Int4, Bool) | (Bool, Int4) => Explicit,
        (Date, Timestamp | Timestamptz) | (Timestamp, Timestamptz) => Implicit,
        (Timestamp | Timestamptz, Date) | (Timestamptz, Timestamp) | (Timestamp | Timestamptz, Time) => {
            Assignment
        }
        (Time, Interval) => Implicit,
        (Interval, Time) => Assignment,
        (a, b) if is_oid(a) && is_oid(b) => Implicit,
        (Int2 | Int4 | Int8, b) if is_oid(b) => Implicit,
        (a, Int4 | Int8) if is_oid(a) => Assignment,
        (Text | Varchar(_), Regclass) => Implicit,
        (Void, _) | (_, Void | Unknown) => return None,
        (_, Text | Varchar(_) | Char(_) | Name) => Assignment,
        (Text | Varchar(_) | Char(_) | Name, _) => Explicit,
        _ => return None,
    })
}

/// May values of `from` become `to` in this context?
pub fn can_cast(from: &Type, to: &Type, context: CastContext) -> bool {
    match cast_kind(from, to) {
        None => false,
        Some(CastKind::Implicit) => true,
        Some(CastKind::Assignment) => context != CastContext::Implicit,
        Some(CastKind::Explicit) => context == CastContext::Explicit,
    }
}

/// Does the cast always give the same result, whatever the settings? Then it may be folded and used in an index.
pub fn is_immutable(from: &Type, to: &Type) -> bool {
    let zoned = |t: Type| match t {
        Type::Array(e) => *e == Type::Timestamptz,
        t => t == Type::Timestamptz,
    };
    if from.same_base(*to) {
        return true;
    }
    // Reading and writing of dates look at the settings; so does anything between timestamptz and local time.
    let by_text = from.is_string() || to.is_string() || *from == Type::Unknown;
    let is_date = |t: &Type| t.element().unwrap_or(*t).category() == Category::DateTime;
    let looks_at_settings = zoned(*from) || zoned(*to) || (by_text && (is_date(from) || is_date(to)));
    !looks_at_settings
}

/// Cuts a name to 63 bytes, at a character.
pub(crate) fn truncate_name(s: &str) -> &str {
    let mut end = s.len().min(NAME_BYTES_MAX);
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    &s[..end]
}

/// Fits a string into `varchar(n)` or `char(n)`: the excess is cut off by an explicit cast, and otherwise only when
/// it is blanks (22001).
pub(crate) fn fit_string(s: &str, ty: &Type, context: CastContext) -> Result<Datum> {
    let limit = match ty {
        Type::Varchar(Some(n)) | Type::Char(Some(n)) => *n as usize,
        Type::Char(None) => return Ok(Datum::Bpchar(s.into())),
        _ => return Ok(Datum::Text(s.into())),
    };
    // Most strings have fewer bytes than the limit has characters.
    let (cut, chars) = match s.char_indices().nth(limit).filter(|_| s.len() > limit) {
        Some((at, _)) => {
            if context != CastContext::Explicit && s[at..].bytes().any(|b| b != b' ') {
                return Err(Error::new(
                    SqlState::STRING_DATA_RIGHT_TRUNCATION,
                    format!("value too long for type {}", ty.sql_name()),
                ));
            }
            (&s[..at], limit)
        }
        None => (s, if matches!(ty, Type::Char(_)) { s.chars().count() } else { 0 }),
    };
    Ok(match ty {
        Type::Char(_) if chars < limit => {
            let mut padded = String::with_capacity(cut.len() + limit - chars);
            padded.push_str(cut);
            padded.extend(std::iter::repeat_n(' ', limit - chars));
            Datum::Bpchar(padded.into())
        }
        Type::Char(_) => Datum::Bpchar(cut.into()),
        _ => Datum::Text(cut.into()),
    })
}

fn float_to_int(v: f64, min: f64, end: f64, name: &str) -> Result<i64> {
    let r = v.round_ties_even();
    if r.is_nan() || r < min || r >= end { Err(Error::out_of_range(name)) } else { Ok(r as i64) }
}

fn narrow<T: TryFrom<i64>>(v: i64, name: &str) -> Result<T> {
    T::try_from(v).map_err(|_| Error::out_of_range(name))
}

/// The bounds and name of an integer type.
fn int_bounds(to: Type) -> Option<(f64, f64, &'static str)> {
    Some(match to {
        Type::Int2 => (-32_768.0, 32_768.0, "smallint"),
        Type::Int4 => (-2_147_483_648.0, 2_147_483_648.0, "integer"),
        Type::Int8 => (-9_223_372_036_854_775_808.0, 9_223_372_036_854_775_808.0, "bigint"),
        _ => return None,
    })
}

fn make_int(v: i64, to: Type) -> Result<Datum> {
    Ok(match to {
        Type::Int2 => Datum::Int2(narrow(v, "smallint")?),
        Type::Int4 => Datum::Int4(narrow(v, "integer")?),
        _ => Datum::Int8(v),
    })
}

fn to_f32(v: f64) -> Result<f32> {
    let r = v as f32;
    if r.is_infinite() && v.is_finite() {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow"));
    }
    if r == 0.0 && v != 0.0 {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: underflow"));
    }
    Ok(r)
}

fn cast_number(datum: &Datum, to: Type) -> Result<Option<Datum>> {
    let int = int_bounds(to);
    Ok(Some(match (datum, to) {
        (Datum::Numeric(n), Type::Numeric(m)) => Datum::Numeric(with_modifier(n.clone(), m)?),
        (Datum::Numeric(n), Type::Float8) => {
            let v = n.to_f64();
            if n.is_finite() && (v.is_infinite() || (v == 0.0 && !n.is_zero())) {
                return Err(Error::new(
                    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                    format!("\"{n}\" is out of range for type double precision"),
                ));
            }
            Datum::Float8(v)
        }
        (Datum::Numeric(n), Type::Float4) => Datum::Float4(if n.is_finite() {
            let v: f32 = n.to_string().parse().unwrap_or(f32::NAN);
            if v.is_infinite() || (v == 0.0 && !n.is_zero()) {
                return Err(Error::new(
                    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                    format!("\"{n}\" is out of range for type real"),
                ));
            }
            v
        } else {
            n.to_f64() as f32
        }),
        (Datum::Numeric(n), _) if int.is_some() => {
            let name = int.map_or("", |i| i.2);
            if n.is_nan() {
                return Err(Error::unsupported_value(format!("cannot convert NaN to {name}")));
            }
            if !n.is_finite() {
                return Err(Error::unsupported_value(format!("cannot convert infinity to {name}")));
            }
            make_int(n.to_i64().ok_or_else(|| Error::out_of_range(name))?, to)?
        }
        (Datum::Float4(v), Type::Float8) => Datum::Float8(*v as f64),
        (Datum::Float8(v), Type::Float4) => Datum::Float4(to_f32(*v)?),
        (Datum::Float4(v), Type::Numeric(m)) => Datum::Numeric(with_modifier(Numeric::from_f32(*v), m)?),
        (Datum::Float8(v), Type::Numeric(m)) => Datum::Numeric(with_modifier(Numeric::from_f64(*v), m)?),
        (Datum::Float4(_) | Datum::Float8(_), _) => match (datum.as_f64(), int) {
            (Some(v), Some((min, end, name))) => make_int(float_to_int(v, min, end, name)?, to)?,
            _ => return Ok(None),
        },
        (Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_), _) => {
            let Some(v) = datum.as_i64() else { return Ok(None) };
            match to {
                Type::Int2 | Type::Int4 | Type::Int8 => make_int(v, to)?,
                Type::Float4 => Datum::Float4(v as f32),
                Type::Float8 => Datum::Float8(v as f64),
                Type::Numeric(m) => Datum::Numeric(with_modifier(v.into(), m)?),
                Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc => match datum {
                    Datum::Int8(v) => Datum::Oid(u32::try_from(*v).map_err(|_| Error::out_of_range("OID"))?),
                    _ => Datum::Oid(v as u32),
                },
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    }))
}

fn with_modifier(n: Numeric, m: Option<(u16, i16)>) -> Result<Numeric> {
    match m {
        Some((p, s)) => n.apply_typmod(p, s),
        None => Ok(n),
    }
}

/// Converts a value, modifier of `to` included. NULL stays NULL. 42846 when there is no conversion at all; whether
/// one may happen in this context is for the binder to ask ([`can_cast`]).
pub fn cast(
    datum: Datum,
    from: &Type,
    to: &Type,
    context: CastContext,
    settings: &Settings,
) -> Result<Datum> {
    if datum.is_null() {
        return Ok(datum);
    }
    if from == to && !matches!(to, Type::Unknown) {
        return Ok(datum);
    }
    if let Some(d) = cast_number(&datum, *to)? {
        return Ok(d);
    }
    Ok(match (&datum, *to) {
        (Datum::Text(s), Type::Varchar(_) | Type::Char(_)) => {
            let fits = matches!(to, Type::Varchar(None));
            return if fits { Ok(datum) } else { fit_string(s, to, context) };
        }
        (Datum::Text(_), Type::Text | Type::Unknown) => datum,
        (Datum::Text(s), Type::Name) => {
            if s.len() <= NAME_BYTES_MAX {
                datum
            } else {
                Datum::text(truncate_name(s))
            }
        }
        (Datum::Text(s), Type::InternalChar) => Datum::text(first_char(s)),
        (Datum::Text(s), Type::Int4) if *from == Type::InternalChar => {
            Datum::Int4(s.chars().next().map_or(0, |c| c as i32))
        }
        (Datum::Text(s), _) => return parse_text(to, s, settings),
        (Datum::Bpchar(s), Type::Char(_)) => {
            if *to == Type::Char(None) {
                datum
            } else {
                return fit_string(s, to, context);
            }
        }
        // Blanks at the end mean nothing in char(n) and are lost on the way to other types.
        (Datum::Bpchar(s), Type::Text | Type::Varchar(_) | Type::Name) => {
            let text = s.trim_end_matches(' ');
            match to {
                Type::Name => Datum::text(truncate_name(text)),
                _ => return fit_string(text, to, context),
            }
        }
        (Datum::Bpchar(s), _) => return parse_text(to, s.trim_end_matches(' '), settings),
        (Datum::Bool(b), Type::Int4) => Datum::Int4(*b as i32),
        (Datum::Int4(v), Type::Bool) => Datum::Bool(*v != 0),
        (Datum::Int4(v), Type::InternalChar) => {
            let b = i8::try_from(*v).map_err(|_| Error::out_of_range("\"char\""))? as u8;
            Datum::text(if b == 0 { String::new() } else { (b as char).to_string() })
        }
        (Datum::Oid(_), Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc) => datum,
        (Datum::Oid(v), Type::Int4) => Datum::Int4(*v as i32),
        (Datum::Oid(v), Type::Int8) => Datum::Int8(*v as i64),
        (Datum::Bool(b), Type::Text | Type::Varchar(_) | Type::Char(_)) => {
            return fit_string(if *b { "true" } else { "false" }, to, context);
        }
        (Datum::Date(_), Type::Date)
        | (Datum::Time(_), Type::Time)
        | (Datum::Timestamp(_), Type::Timestamp)
        | (Datum::Timestamptz(_), Type::Timestamptz)
        | (Datum::Interval(_), Type::Interval) => datum,
        (Datum::Date(d), Type::Timestamp) => Datum::Timestamp(datetime::date_to_timestamp(*d)?),
        (Datum::Date(d), Type::Timestamptz) => {
            Datum::Timestamptz(datetime::from_local(&settings.time_zone, datetime::date_to_timestamp(*d)?)?)
        }
        (Datum::Timestamp(t), Type::Date) => Datum::Date(datetime::timestamp_to_date(*t)),
        (Datum::Timestamp(t), Type::Timestamptz) => {
            Datum::Timestamptz(datetime::from_local(&settings.time_zone, *t)?)
        }
        (Datum::Timestamptz(t), Type::Timestamp) => {
            Datum::Timestamp(datetime::to_local(&settings.time_zone, *t)?)
        }
        (Datum::Timestamptz(t), Type::Date) => {
            Datum::Date(datetime::timestamp_to_date(datetime::to_local(&settings.time_zone, *t)?))
        }
        (Datum::Timestamp(t), Type::Time) => {
            if datetime::is_infinite(*t) {
                Datum::Null
            } else {
                Datum::Time(t.rem_euclid(DAY_MICROS))
            }
        }
        (Datum::Timestamptz(t), Type::Time) => {
            if datetime::is_infinite(*t) {
                Datum::Null
            } else {
                Datum::Time(datetime::to_local(&settings.time_zone, *t)?.rem_euclid(DAY_MICROS))
            }
        }
        (Datum::Time(t), Type::Interval) => Datum::Interval(Interval { months: 0, days: 0, micros: *t }),
        (Datum::Interval(v), Type::Time) => Datum::Time(v.micros.rem_euclid(DAY_MICROS)),
        (Datum::Array(a), Type::Array(element)) => {
            if a.element == *element {
                return Ok(datum);
            }
            let mut items = Vec::with_capacity(a.items.len());
            for i in &a.items {
                items.push(cast(i.clone(), &a.element, element, context, settings)?);
            }
            Datum::array(*element, items)
        }
        (_, Type::Text | Type::Varchar(_) | Type::Char(_) | Type::Name) => {
            let text = to_text(&datum, from, settings);
            match to {
                Type::Name => Datum::text(truncate_name(&text)),
                _ => return fit_string(&text, to, context),
            }
        }
        _ if datum.natural_type() == *to => datum,
        _ => return Err(cannot_cast(from, to)),
    })
}

/// 42846: there is no conversion between the two.
#[cold]
pub fn cannot_cast(from: &Type, to: &Type) -> Error {
    Error::new(
        SqlState::CANNOT_COERCE,
        format!("cannot cast type {} to {}", from.base_sql_name(), to.base_sql_name()),
    )
}

impl Error {
    /// 0A000 with a message in full.
    #[cold]
    fn unsupported_value(message: String) -> Error {
        Error::new(SqlState::FEATURE_NOT_SUPPORTED, message)
    }
}

/// The infinities of dates become those of timestamps.
const _: () = assert!(DATE_INFINITY == i32::MAX && DATE_NEG_INFINITY == i32::MIN);

/// The one type of the branches of UNION, CASE, COALESCE, VALUES, GREATEST, IN, ARRAY (PostgreSQL's rules by category
/// and preference). All unknown: text. A modifier survives when all have the same. `what` names the construct for the
/// message (42804), such as `CASE`.
pub fn common_type(types: &[Type], what: &str) -> Result<Type> {
    let Some(&first) = types.first() else { return Ok(Type::Text) };
    if first != Type::Unknown && types.iter().all(|t| *t == first) {
        return Ok(first);
    }
    let mut chosen: Option<Type> = None;
    for &t in types {
        let t = t.base();
        if t == Type::Unknown {
            continue;
        }
        match chosen {
            None => chosen = Some(t),
            Some(c) if c == t => {}
            Some(c) if c.category() != t.category() => {
                return Err(Error::new(
                    SqlState::DATATYPE_MISMATCH,
                    format!("{what} types {} and {} cannot be matched", c.base_sql_name(), t.base_sql_name()),
                ));
            }
            Some(c) => {
                if !c.is_preferred()
                    && can_cast(&c, &t, CastContext::Implicit)
                    && !can_cast(&t, &c, CastContext::Implicit)
                {
                    chosen = Some(t);
                }
            }
        }
    }
    let Some(chosen) = chosen else { return Ok(Type::Text) };
    for t in types {
        if !can_cast(t, &chosen, CastContext::Implicit) {
            return Err(Error::new(
                SqlState::CANNOT_COERCE,
                format!("{what} could not convert type {} to {}", t.base_sql_name(), chosen.base_sql_name()),
            ));
        }
    }
    // One modifier for all that are not plain literals: it is kept.
    let mut typed = types.iter().filter(|t| **t != Type::Unknown);
    Ok(match typed.next() {
        Some(t)
            if t.base() == chosen && typed.all(|u| u == t) && types.iter().all(|t| *t != Type::Unknown) =>
        {
            *t
        }
        _ => chosen,
    })
}
