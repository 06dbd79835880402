//! PostgreSQL's types: values, text and binary form, casts, operators, functions, aggregates, and the encodings of
//! keys and rows.
//!
//! * [`Type`] and [`Datum`] are a type and a value; [`Numeric`] and [`Interval`] the two that are not plain numbers.
//! * [`text`] and [`binary`] are the two forms in which values travel to and from clients.
//! * [`cast`] converts between types and says which conversions happen by themselves.
//! * [`function`] resolves operators and functions to a fn pointer; [`aggregate`] resolves aggregates to a state.
//! * [`key`] encodes a value so that bytes compare as values do; [`row`] encodes the columns of a row.
//! * [`Error`] is the one SQL error up to the wire, [`SqlState`] the table of its codes.
//!
//! Nothing here parses SQL, knows a catalog, reads a clock or does I/O: what a function needs of the session comes in
//! an [`EvalContext`]. Text sorts as bytes (the C collation).
//!
//! Missing: composite types, enums, ranges, json; arrays of more than one dimension; localised output.
#![forbid(unsafe_code)]

pub mod aggregate;
pub mod binary;
pub mod cast;
pub mod datetime;
pub mod datum;
pub mod error;
pub mod function;
pub mod key;
pub mod numeric;
#[cfg(test)]
mod proptests;
pub mod row;
pub mod settings;
pub mod text;
pub mod types;

pub use aggregate::{AggState, AggregateSpec};
pub use cast::{CastContext, CastKind, can_cast, cast, cast_kind, common_type};
pub use datum::{Array, Datum, Interval, compare, hash, is_distinct};
pub use error::{Error, Result, SqlState};
pub use function::{ResolvedFunction, ScalarFn, Volatility, resolve_function, resolve_operator};
pub use numeric::Numeric;
pub use settings::{ByteaOutput, DateOrder, EvalContext, IntervalStyle, SessionInfo, Settings, TimeZone};
pub use types::{Category, Type};
