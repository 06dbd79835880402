//! Type names of the parser's tree to types. Shared with DDL.

use isochrone_types::{Error, SqlState, Type};
use sqlparser::ast::{ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};

use super::name_parts;

/// Longest varchar and char, as in PostgreSQL.
const CHARACTERS_MAX: u64 = 10_485_760;

fn length(what: &str, l: &Option<CharacterLength>) -> Result<Option<u32>, Error> {
    match l {
        None | Some(CharacterLength::Max) => Ok(None),
        Some(CharacterLength::IntegerLength { length: 0, .. }) => {
            Err(Error::invalid_parameter(format!("length for type {what} must be at least 1")))
        }
        Some(CharacterLength::IntegerLength { length, .. }) if *length > CHARACTERS_MAX => {
            Err(Error::invalid_parameter(format!("length for type {what} cannot exceed {CHARACTERS_MAX}")))
        }
        Some(CharacterLength::IntegerLength { length, .. }) => Ok(Some(*length as u32)),
    }
}

fn numeric(info: &ExactNumberInfo) -> Result<Type, Error> {
    let (p, s) = match info {
        ExactNumberInfo::None => return Ok(Type::Numeric(None)),
        ExactNumberInfo::Precision(p) => (*p, 0),
        ExactNumberInfo::PrecisionAndScale(p, s) => (*p, *s),
    };
    if !(1..=1000).contains(&p) {
        return Err(Error::invalid_parameter(format!("NUMERIC precision {p} must be between 1 and 1000")));
    }
    if !(-1000..=1000).contains(&s) {
        return Err(Error::invalid_parameter(format!("NUMERIC scale {s} must be between -1000 and 1000")));
    }
    Ok(Type::Numeric(Some((p as u16, s as i16))))
}

/// The type a name means; 42704 when there is none, 0A000 for PostgreSQL's types that we lack.
pub fn data_type(t: &DataType) -> Result<Type, Error> {
    Ok(match t {
        DataType::Character(l) | DataType::Char(l) => Type::Char(Some(length("char", l)?.unwrap_or(1))),
        DataType::CharacterVarying(l) | DataType::CharVarying(l) | DataType::Varchar(l) => {
            Type::Varchar(length("varchar", l)?)
        }
        DataType::Numeric(i) | DataType::Decimal(i) | DataType::Dec(i) => numeric(i)?,
        DataType::Text => Type::Text,
        DataType::Uuid => Type::Uuid,
        DataType::Bytea => Type::Bytea,
        DataType::Bool | DataType::Boolean => Type::Bool,
        DataType::SmallInt(None) | DataType::Int2(None) => Type::Int2,
        DataType::Int(None) | DataType::Int4(None) | DataType::Integer(None) => Type::Int4,
        DataType::BigInt(None) | DataType::Int8(None) => Type::Int8,
        DataType::Real | DataType::Float4 => Type::Float4,
        DataType::Float8 | DataType::DoublePrecision => Type::Float8,
        DataType::Float(info) => match info {
            ExactNumberInfo::None => Type::Float8,
            ExactNumberInfo::Precision(1..=24) => Type::Float4,
            ExactNumberInfo::Precision(25..=53) => Type::Float8,
            _ => {
                return Err(Error::invalid_parameter(
                    "precision for type float must be between 1 and 53 bits",
                ));
            }
        },
        DataType::Date => Type::Date,
        DataType::Time(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Type::Time,
        DataType::Timestamp(p, z) => {
            if !matches!(p, None | Some(6)) {
                return Err(Error::unsupported("a timestamp precision other than 6"));
            }
            match z {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => Type::Timestamp,
                TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => Type::Timestamptz,
            }
        }
        DataType::Interval { fields: None, precision: None } => Type::Interval,
        DataType::Regclass => Type::Regclass,
        DataType::Array(ArrayElemTypeDef::SquareBracket(e, _) | ArrayElemTypeDef::Qualified(e, _)) => {
            let e = data_type(e)?;
            e.base().array_of().ok_or_else(|| Error::unsupported("arrays of arrays"))?
        }
        DataType::Custom(name, modifiers) => {
            let parts = name_parts(name)?;
            let last = parts.last().map(String::as_str).unwrap_or_default();
            let quoted_char = last == "char"
                && name.0.last().and_then(|p| p.as_ident()).is_some_and(|i| i.quote_style.is_some());
            if quoted_char || (last == "char" && parts.len() > 1) {
                return Ok(Type::InternalChar);
            }
            let ty = Type::from_sql_name(last).ok_or_else(|| match last {
                "json" | "jsonb" | "xml" | "inet" | "cidr" | "macaddr" | "money" | "timetz" | "bit"
                | "varbit" | "tsvector" | "tsquery" | "hstore" => Error::unsupported(format!("type {last}")),
                _ => Error::new(SqlState::UNDEFINED_OBJECT, format!("type \"{last}\" does not exist")),
            })?;
            let number = |m: &String| {
                m.trim().parse::<i64>().map_err(|_| Error::syntax(format!("invalid type modifier {m}")))
            };
            match (ty, modifiers.as_slice()) {
                (ty, []) => ty,
                (Type::Char(_), [n]) => Type::Char(Some(number(n)?.clamp(1, CHARACTERS_MAX as i64) as u32)),
                (Type::Varchar(_), [n]) => {
                    Type::Varchar(Some(number(n)?.clamp(1, CHARACTERS_MAX as i64) as u32))
                }
                _ => return Err(Error::syntax(format!("type modifier is not allowed for type \"{last}\""))),
            }
        }
        other => {
            let name = other.to_string().to_lowercase();
            match Type::from_sql_name(&name) {
                Some(ty) => ty,
                None => return Err(Error::unsupported(format!("type {name}"))),
            }
        }
    })
}
