//! The types: their oids, names, lengths, modifiers and categories, as in PostgreSQL's `pg_type`.
//!
//! A [`Type`] carries its modifier (`varchar(10)`, `numeric(5,2)`); [`Type::base`] drops it. Arrays have one
//! dimension and elements without modifiers. Missing: composite types, domains, enums, ranges.

use std::fmt;

/// An SQL type with its modifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Type {
    /// boolean
    Bool,
    /// smallint
    Int2,
    /// integer
    Int4,
    /// bigint
    Int8,
    /// real
    Float4,
    /// double precision
    Float8,
    /// numeric, numeric(precision, scale)
    Numeric(Option<(u16, i16)>),
    /// text
    Text,
    /// character varying, character varying(n)
    Varchar(Option<u32>),
    /// character(n), blank-padded; `None` is `bpchar` of any length
    Char(Option<u32>),
    /// name: the catalog's identifiers, at most 63 bytes
    Name,
    /// "char": one byte
    InternalChar,
    /// bytea
    Bytea,
    /// date
    Date,
    /// time without time zone
    Time,
    /// timestamp without time zone
    Timestamp,
    /// timestamp with time zone
    Timestamptz,
    /// interval
    Interval,
    /// uuid
    Uuid,
    /// oid
    Oid,
    /// regclass: the oid of a table; names are resolved by the catalog
    Regclass,
    /// regtype: the oid of a type
    Regtype,
    /// regproc: the oid of a function
    Regproc,
    /// A literal whose type is not yet known
    Unknown,
    /// No value
    Void,
    /// An array of one dimension; the element has no modifier
    Array(&'static Type),
}

/// PostgreSQL's categories (`pg_type.typcategory`), for choosing among casts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Category {
    /// `A`
    Array,
    /// `B`
    Boolean,
    /// `D`
    DateTime,
    /// `N`
    Numeric,
    /// `P`
    Pseudo,
    /// `S`
    String,
    /// `T`
    Timespan,
    /// `U`
    User,
    /// `X`
    Unknown,
    /// `Z`
    Internal,
}

impl Category {
    /// The letter in `pg_type.typcategory`.
    pub fn letter(self) -> char {
        match self {
            Category::Array => 'A',
            Category::Boolean => 'B',
            Category::DateTime => 'D',
            Category::Numeric => 'N',
            Category::Pseudo => 'P',
            Category::String => 'S',
            Category::Timespan => 'T',
            Category::User => 'U',
            Category::Unknown => 'X',
            Category::Internal => 'Z',
        }
    }
}

/// type without modifier, oid, array oid, typlen, pg_type name, SQL name
type Row = (Type, u32, u32, i16, &'static str, &'static str);

const TABLE: &[Row] = &[
    (Type::Bool, 16, 1000, 1, "bool", "boolean"),
    (Type::Int2, 21, 1005, 2, "int2", "smallint"),
    (Type::Int4, 23, 1007, 4, "int4", "integer"),
    (Type::Int8, 20, 1016, 8, "int8", "bigint"),
    (Type::Float4, 700, 1021, 4, "float4", "real"),
    (Type::Float8, 701, 1022, 8, "float8", "double precision"),
    (Type::Numeric(None), 1700, 1231, -1, "numeric", "numeric"),
    (Type::Text, 25, 1009, -1, "text", "text"),
    (Type::Varchar(None), 1043, 1015, -1, "varchar", "character varying"),
    (Type::Char(None), 1042, 1014, -1, "bpchar", "character"),
    (Type::Name, 19, 1003, 64, "name", "name"),
    (Type::InternalChar, 18, 1002, 1, "char", "\"char\""),
    (Type::Bytea, 17, 1001, -1, "bytea", "bytea"),
    (Type::Date, 1082, 1182, 4, "date", "date"),
    (Type::Time, 1083, 1183, 8, "time", "time without time zone"),
    (Type::Timestamp, 1114, 1115, 8, "timestamp", "timestamp without time zone"),
    (Type::Timestamptz, 1184, 1185, 8, "timestamptz", "timestamp with time zone"),
    (Type::Interval, 1186, 1187, 16, "interval", "interval"),
    (Type::Uuid, 2950, 2951, 16, "uuid", "uuid"),
    (Type::Oid, 26, 1028, 4, "oid", "oid"),
    (Type::Regclass, 2205, 2210, 4, "regclass", "regclass"),
    (Type::Regtype, 2206, 2211, 4, "regtype", "regtype"),
    (Type::Regproc, 24, 1008, 4, "regproc", "regproc"),
    (Type::Unknown, 705, 0, -2, "unknown", "unknown"),
    (Type::Void, 2278, 0, 4, "void", "void"),
];

/// Other spellings that [`Type::from_sql_name`] accepts.
const ALIASES: &[(&str, Type)] = &[
    ("int", Type::Int4),
    ("decimal", Type::Numeric(None)),
    ("dec", Type::Numeric(None)),
    ("float", Type::Float8),
    ("char varying", Type::Varchar(None)),
    ("time", Type::Time),
    ("timestamp", Type::Timestamp),
];

impl Type {
    /// Every type that is not an array, without modifiers.
    pub fn all_scalar() -> impl Iterator<Item = Type> {
        TABLE.iter().map(|r| r.0)
    }

    /// The type without its modifier.
    pub fn base(self) -> Type {
        match self {
            Type::Numeric(_) => Type::Numeric(None),
            Type::Varchar(_) => Type::Varchar(None),
            Type::Char(_) => Type::Char(None),
            other => other,
        }
    }

    /// Are the two the same but for modifiers?
    pub fn same_base(self, other: Type) -> bool {
        self.base() == other.base()
    }

    fn row(self) -> &'static Row {
        let base = self.base();
        TABLE.iter().find(|r| r.0 == base).expect("every scalar type has a row in the table")
    }

    /// `pg_type.oid`.
    pub fn oid(self) -> u32 {
        match self {
            Type::Array(e) => e.row().2,
            Type::Int4 => 23,
            Type::Int8 => 20,
            Type::Text => 25,
            other => other.row().1,
        }
    }

    /// The oid of the array type over this one; 0 where there is none.
    pub fn array_oid(self) -> u32 {
        match self {
            Type::Array(_) => 0,
            other => other.row().2,
        }
    }

    /// The type with this oid, without modifier.
    pub fn from_oid(oid: u32) -> Option<Type> {
        if oid == 0 {
            return None;
        }
        TABLE.iter().find_map(|r| {
            if r.1 == oid {
                Some(r.0)
            } else if r.2 == oid {
                Some(Type::Array(&r.0))
            } else {
                None
            }
        })
    }

    /// The type with this oid and `atttypmod`.
    pub fn from_oid_typmod(oid: u32, typmod: i32) -> Option<Type> {
        Some(Type::from_oid(oid)?.with_typmod(typmod))
    }

    /// The array type over this one (its modifier is dropped); `None` for arrays and pseudo types.
    pub fn array_of(self) -> Option<Type> {
        match self {
            Type::Array(_) => None,
            other => {
                let row = other.row();
                (row.2 != 0).then_some(Type::Array(&row.0))
            }
        }
    }

    /// The element type of an array.
    pub fn element(self) -> Option<Type> {
        match self {
            Type::Array(e) => Some(*e),
            _ => None,
        }
    }

    /// `pg_type.typlen`: bytes, -1 for variable length, -2 for C strings.
    pub fn typlen(self) -> i16 {
        match self {
            Type::Array(_) => -1,
            other => other.row().3,
        }
    }

    /// `pg_type.typname`, such as `int4` or `_int4`.
    pub fn name(self) -> &'static str {
        match self {
            Type::Array(e) => match *e {
                Type::Bool => "_bool",
                Type::Int2 => "_int2",
                Type::Int4 => "_int4",
                Type::Int8 => "_int8",
                Type::Float4 => "_float4",
                Type::Float8 => "_float8",
                Type::Numeric(_) => "_numeric",
                Type::Text => "_text",
                Type::Varchar(_) => "_varchar",
                Type::Char(_) => "_bpchar",
                Type::Name => "_name",
                Type::InternalChar => "_char",
                Type::Bytea => "_bytea",
                Type::Date => "_date",
                Type::Time => "_time",
                Type::Timestamp => "_timestamp",
                Type::Timestamptz => "_timestamptz",
                Type::Interval => "_interval",
                Type::Uuid => "_uuid",
                Type::Oid => "_oid",
                Type::Regclass => "_regclass",
                Type::Regtype => "_regtype",
                Type::Regproc => "_regproc",
                Type::Unknown | Type::Void | Type::Array(_) => "record",
            },
            other => other.row().4,
        }
    }

    /// The name with modifier as `format_type` prints it: `character varying(10)`, `integer[]`.
    pub fn sql_name(self) -> String {
        match self {
            Type::Numeric(Some((p, s))) => format!("numeric({p},{s})"),
            Type::Varchar(Some(n)) => format!("character varying({n})"),
            Type::Char(Some(n)) => format!("character({n})"),
            Type::Char(None) => "bpchar".to_owned(),
            Type::Array(e) => match *e {
                Type::Char(None) => "character[]".to_owned(),
                e => format!("{}[]", e.sql_name()),
            },
            other => other.row().5.to_owned(),
        }
    }

    /// The name without modifier as PostgreSQL's messages print it, such as `character varying`.
    pub fn base_sql_name(self) -> String {
        match self.base() {
            Type::Char(_) => "character".to_owned(),
            other => other.sql_name(),
        }
    }

    /// `pg_attribute.atttypmod`: -1 without modifier.
    pub fn typmod(self) -> i32 {
        match self {
            Type::Numeric(Some((p, s))) => (((p as i32) << 16) | (s as i32 & 0x7ff)) + 4,
            Type::Varchar(Some(n)) | Type::Char(Some(n)) => n as i32 + 4,
            _ => -1,
        }
    }

    /// This type with the modifier that `atttypmod` says; types without modifiers ignore it.
    pub fn with_typmod(self, typmod: i32) -> Type {
        let length = (typmod >= 4).then(|| (typmod - 4) as u32);
        match self {
            Type::Numeric(_) => Type::Numeric(length.map(|m| {
                let scale = (m & 0x7ff) as i16;
                let scale = if scale >= 1024 { scale - 2048 } else { scale };
                ((m >> 16) as u16, scale)
            })),
            Type::Varchar(_) => Type::Varchar(length),
            Type::Char(_) => Type::Char(length),
            other => other,
        }
    }

    /// The type of this SQL name, in lower case and without modifier: `integer`, `int4`, `double precision`,
    /// `timestamp with time zone`, `"char"`, `text[]`, `_text`. `char` and `character` are `character(1)`; `bpchar`
    /// has any length.
    pub fn from_sql_name(name: &str) -> Option<Type> {
        if let Some(element) = name.strip_suffix("[]") {
            return Type::from_sql_name(element.trim_end())?.base().array_of();
        }
        if let Some(element) = name.strip_prefix('_') {
            return TABLE.iter().find(|r| r.4 == element)?.0.array_of();
        }
        match name {
            "char" | "character" => return Some(Type::Char(Some(1))),
            "pg_catalog.char" => return Some(Type::InternalChar),
            _ => {}
        }
        let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
        TABLE
            .iter()
            .find(|r| r.5 == name || (r.4 == name && r.0 != Type::InternalChar))
            .map(|r| r.0)
            .or_else(|| ALIASES.iter().find(|a| a.0 == name).map(|a| a.1))
    }

    /// `pg_type.typcategory`.
    pub fn category(self) -> Category {
        match self {
            Type::Bool => Category::Boolean,
            Type::Int2
            | Type::Int4
            | Type::Int8
            | Type::Float4
            | Type::Float8
            | Type::Numeric(_)
            | Type::Oid
            | Type::Regclass
            | Type::Regtype
            | Type::Regproc => Category::Numeric,
            Type::Text | Type::Varchar(_) | Type::Char(_) | Type::Name => Category::String,
            Type::InternalChar => Category::Internal,
            Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz => Category::DateTime,
            Type::Interval => Category::Timespan,
            Type::Bytea | Type::Uuid => Category::User,
            Type::Unknown => Category::Unknown,
            Type::Void => Category::Pseudo,
            Type::Array(_) => Category::Array,
        }
    }

    /// `pg_type.typispreferred`: the type of its category that resolution leans to.
    pub fn is_preferred(self) -> bool {
        matches!(
            self,
            Type::Bool | Type::Float8 | Type::Text | Type::Timestamptz | Type::Interval | Type::Oid
        )
    }

    /// Is it text, varchar or char?
    pub fn is_string(self) -> bool {
        self.category() == Category::String
    }

    /// Is it smallint, integer or bigint?
    pub fn is_integer(self) -> bool {
        matches!(self, Type::Int2 | Type::Int4 | Type::Int8)
    }

    /// Can values be sorted and be part of a key? True for all but `void` and `unknown`.
    pub fn is_ordered(self) -> bool {
        !matches!(self, Type::Void | Type::Unknown)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sql_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_oids_and_modifiers_agree() {
        for t in Type::all_scalar() {
            assert_eq!(Type::from_oid(t.oid()), Some(t));
            if t != Type::InternalChar {
                assert_eq!(Type::from_sql_name(t.name()).map(Type::base), Some(t), "{t:?}");
            }
            if let Some(a) = t.array_of() {
                assert_eq!(Type::from_oid(a.oid()), Some(a));
                assert_eq!(Type::from_sql_name(a.name()), Some(a));
                assert_eq!(a.name()[1..], *t.name());
                assert_eq!(a.oid(), t.array_oid());
            }
            assert_eq!(t.typmod(), -1);
        }
        assert_eq!(Type::Varchar(Some(10)).typmod(), 14);
        assert_eq!(Type::Numeric(Some((5, 2))).typmod(), 327686);
        for t in [Type::Numeric(Some((5, 2))), Type::Numeric(Some((3, -2))), Type::Char(Some(3))] {
            assert_eq!(Type::from_oid_typmod(t.oid(), t.typmod()), Some(t));
        }
        assert_eq!(Type::from_sql_name("character varying"), Some(Type::Varchar(None)));
        assert_eq!(Type::from_sql_name("\"char\""), Some(Type::InternalChar));
        assert_eq!(Type::from_sql_name("timestamp with time zone"), Some(Type::Timestamptz));
        assert_eq!(Type::from_sql_name("int4[]"), Some(Type::Array(&Type::Int4)));
        assert_eq!(Type::from_sql_name("nonsense"), None);
        assert_eq!(Type::Array(&Type::Int4).sql_name(), "integer[]");
        assert!(size_of::<Type>() <= 16);
    }
}
