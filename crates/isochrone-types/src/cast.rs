//! Conversions between types.
use crate::{Datum, Error, Result, Settings, Type};

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

/// May values of `from` become `to`, and where? Modifiers are not looked at; a type to itself is implicit. `None`:
/// there is no conversion.
pub fn cast_kind(from: &Type, to: &Type) -> Option<CastKind> {
    (from.same_base(*to)).then_some(CastKind::Implicit)
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

/// Converts a value, modifier of `to` included. NULL stays NULL. 42846 when there is no conversion.
pub fn cast(datum: Datum, from: &Type, to: &Type, context: CastContext, settings: &Settings) -> Result<Datum> {
    let _ = (datum, from, to, context, settings);
    Err(Error::unsupported("cast"))
}

/// The one type of the branches of UNION, CASE, COALESCE, VALUES, GREATEST, IN, ARRAY (PostgreSQL's rules by category
/// and preference). All unknown: text. `what` names the construct for the message (42804), such as `CASE`.
pub fn common_type(types: &[Type], what: &str) -> Result<Type> {
    let _ = (types, what);
    Err(Error::unsupported("common type"))
}
