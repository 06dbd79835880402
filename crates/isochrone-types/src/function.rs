//! Operators and functions: finding the one that a call means, and its fn pointer.
use crate::{Datum, Error, EvalContext, Result, Type};

/// A function's code. The arguments have the types that resolution said; a strict function is never called with a
/// NULL.
pub type ScalarFn = fn(&[Datum], &EvalContext<'_>) -> Result<Datum>;

/// How much a result may change while the arguments do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Volatility {
    /// Never: may be computed while planning.
    Immutable,
    /// Not within a statement; depends on settings or the transaction.
    Stable,
    /// At every call.
    Volatile,
}

/// The function that a call means.
#[derive(Clone, Debug)]
pub struct ResolvedFunction {
    /// Its name (or operator), as in the registry.
    pub name: &'static str,
    /// The type that each argument must be cast to (implicitly), one per argument given.
    pub arg_types: Vec<Type>,
    /// The type of the result, without modifier.
    pub result: Type,
    /// NULL in, NULL out, without a call.
    pub strict: bool,
    /// May it be folded?
    pub volatility: Volatility,
    /// The code.
    pub func: ScalarFn,
}

impl ResolvedFunction {
    /// Calls the function; answers NULL for a NULL argument of a strict one.
    #[inline]
    pub fn call(&self, args: &[Datum], ctx: &EvalContext<'_>) -> Result<Datum> {
        if self.strict && args.iter().any(Datum::is_null) {
            return Ok(Datum::Null);
        }
        (self.func)(args, ctx)
    }
}

/// The operator that `left op right` means; `left` is `None` for a prefix operator. Untyped literals are
/// [`Type::Unknown`]. `op` is the operator's symbol; also `LIKE`'s `~~`, `!~~`, `~~*`, `!~~*`.
/// 42883 when there is none, 42725 when there are several.
pub fn resolve_operator(op: &str, left: Option<&Type>, right: &Type) -> Result<ResolvedFunction> {
    let _ = (left, right);
    Err(Error::unsupported(format!("operator {op}")))
}

/// The function that a call of this name (lower case) with arguments of these types means.
/// 42883 when there is none, 42725 when there are several.
pub fn resolve_function(name: &str, args: &[Type]) -> Result<ResolvedFunction> {
    let _ = args;
    Err(Error::unsupported(format!("function {name}")))
}

/// Is there any (scalar) function of this name?
pub fn function_exists(name: &str) -> bool {
    let _ = name;
    false
}
