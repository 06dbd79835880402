//! How the tables of functions are written down.

use super::{ScalarFn, Volatility};
use crate::Type;

/// The place of an argument or result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum P {
    /// This type.
    T(Type),
    /// Any type; literals become text.
    Any,
    /// Any type but arrays.
    NonArray,
    /// The element type that the call agrees on.
    Element,
    /// The array type over it.
    Array,
}

/// A row of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sig {
    pub name: &'static str,
    pub args: &'static [P],
    pub result: P,
    pub strict: bool,
    pub variadic: bool,
    pub volatility: Volatility,
    pub func: ScalarFn,
}

pub(super) const BOOL: P = P::T(Type::Bool);
pub(super) const I2: P = P::T(Type::Int2);
pub(super) const I4: P = P::T(Type::Int4);
pub(super) const I8: P = P::T(Type::Int8);
pub(super) const F4: P = P::T(Type::Float4);
pub(super) const F8: P = P::T(Type::Float8);
pub(super) const NUM: P = P::T(Type::Numeric(None));
pub(super) const TEXT: P = P::T(Type::Text);
pub(super) const BPCHAR: P = P::T(Type::Char(None));
pub(super) const BYTEA: P = P::T(Type::Bytea);
pub(super) const DATE: P = P::T(Type::Date);
pub(super) const TIME: P = P::T(Type::Time);
pub(super) const TS: P = P::T(Type::Timestamp);
pub(super) const TZ: P = P::T(Type::Timestamptz);
pub(super) const INTERVAL: P = P::T(Type::Interval);
pub(super) const UUID: P = P::T(Type::Uuid);
pub(super) const TEXTS: P = P::T(Type::Array(&Type::Text));

/// An immutable, strict function.
pub(super) const fn sig(name: &'static str, args: &'static [P], result: P, func: ScalarFn) -> Sig {
    Sig { name, args, result, strict: true, variadic: false, volatility: Volatility::Immutable, func }
}

impl Sig {
    pub const fn stable(mut self) -> Sig {
        self.volatility = Volatility::Stable;
        self
    }

    pub const fn volatile(mut self) -> Sig {
        self.volatility = Volatility::Volatile;
        self
    }

    /// Called with NULLs too.
    pub const fn with_nulls(mut self) -> Sig {
        self.strict = false;
        self
    }

    /// The last argument may come any number of times from one on.
    pub const fn variadic(mut self) -> Sig {
        self.variadic = true;
        self
    }

    pub fn takes(&self, n: usize) -> bool {
        n == self.args.len() || (self.variadic && n >= self.args.len())
    }

    /// The place of argument `i`, which [`Sig::takes`] allowed.
    pub fn arg(&self, i: usize) -> P {
        self.args.get(i).or(self.args.last()).copied().unwrap_or(P::Any)
    }
}
