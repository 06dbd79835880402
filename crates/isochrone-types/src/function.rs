//! Operators and functions: finding the one that a call means, and its fn pointer.
//!
//! Resolution is PostgreSQL's: an exact match wins; otherwise, among those whose arguments can be reached by implicit
//! casts, the most exact matches, then the most preferred types, then what untyped literals suggest. The tables are
//! in the submodules, one per subject. Not here: what is special syntax or needs the planner (COALESCE, CASE,
//! NULLIF, GREATEST, LEAST, AND, OR, IS NULL) or a catalog.

use crate::{CastContext, Category, Datum, Error, EvalContext, Result, SqlState, Type, cast};
use rustc_hash::FxHashMap;
use std::sync::LazyLock;

mod args;
mod arrays;
mod compare;
mod dates;
mod like;
mod math;
mod numbers;
mod registry;
mod strings;
#[cfg(test)]
mod tests;
mod to_char;

use registry::{P, Sig};

/// Longest string that a function makes, in bytes. More is 54000.
pub const RESULT_BYTES_MAX: usize = 64 << 20;

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

struct Tables {
    operators: FxHashMap<&'static str, Vec<Sig>>,
    functions: FxHashMap<&'static str, Vec<Sig>>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut operators: FxHashMap<&'static str, Vec<Sig>> = FxHashMap::default();
    let mut functions: FxHashMap<&'static str, Vec<Sig>> = FxHashMap::default();
    for table in
        [numbers::OPERATORS, strings::OPERATORS, dates::OPERATORS, like::OPERATORS, arrays::OPERATORS]
    {
        for s in table {
            operators.entry(s.name).or_default().push(*s);
        }
    }
    for s in compare::operators() {
        operators.entry(s.name).or_default().push(s);
    }
    for table in [
        math::FUNCTIONS,
        strings::FUNCTIONS,
        dates::FUNCTIONS,
        like::FUNCTIONS,
        arrays::FUNCTIONS,
        to_char::FUNCTIONS,
    ] {
        for s in table {
            functions.entry(s.name).or_default().push(*s);
        }
    }
    Tables { operators, functions }
});

/// Can `from` go where a signature has `p`? For the polymorphic ones any type of the right shape can.
fn fits(from: Type, p: P) -> bool {
    match p {
        P::T(t) => cast::can_cast(&from, &t, CastContext::Implicit),
        P::Any => true,
        P::NonArray => !matches!(from, Type::Array(_)),
        P::Element => !matches!(from, Type::Array(_)),
        P::Array => matches!(from, Type::Array(_)) || from == Type::Unknown,
    }
}

fn exact(from: Type, p: P) -> bool {
    matches!(p, P::T(t) if t == from.base())
}

fn preferred(from: Type, p: P) -> bool {
    matches!(p, P::T(t) if t == from.base() || (t.is_preferred() && t.category() == from.category())
        || (from == Type::Unknown && t.is_preferred()))
}

/// The element type that the arrays and elements of a polymorphic call agree on.
fn element_of(sig: &Sig, args: &[Type]) -> Option<Type> {
    let mut elements = Vec::new();
    for (i, a) in args.iter().enumerate() {
        match (sig.arg(i), *a) {
            (P::Array, Type::Array(e)) => elements.push(*e),
            (P::Element, t) if t != Type::Unknown => elements.push(t.base()),
            _ => {}
        }
    }
    if elements.is_empty() { None } else { cast::common_type(&elements, "ARRAY").ok() }
}

fn finish(sig: &Sig, args: &[Type]) -> Option<ResolvedFunction> {
    let polymorphic = (0..args.len()).any(|i| matches!(sig.arg(i), P::Array | P::Element));
    let element = if polymorphic { Some(element_of(sig, args)?) } else { None };
    let place = |p: P, given: Type| -> Option<Type> {
        Some(match p {
            P::T(t) if t == given.base() => given,
            P::T(t) => t,
            P::Any | P::NonArray => {
                if given == Type::Unknown {
                    Type::Text
                } else {
                    given
                }
            }
            P::Element => element?,
            P::Array => element?.array_of()?,
        })
    };
    let mut arg_types = Vec::with_capacity(args.len());
    for (i, a) in args.iter().enumerate() {
        arg_types.push(place(sig.arg(i), *a)?);
    }
    Some(ResolvedFunction {
        name: sig.name,
        arg_types,
        result: place(sig.result, Type::Unknown)?,
        strict: sig.strict,
        volatility: sig.volatility,
        func: sig.func,
    })
}

enum Choice {
    One(ResolvedFunction),
    None,
    Several,
}

fn choose(sigs: &[Sig], args: &[Type]) -> Choice {
    let arity: Vec<&Sig> = sigs.iter().filter(|s| s.takes(args.len())).collect();
    if let Some(s) = arity.iter().find(|s| args.iter().enumerate().all(|(i, a)| exact(*a, s.arg(i))))
        && let Some(f) = finish(s, args)
    {
        return Choice::One(f);
    }
    let mut left: Vec<(&Sig, ResolvedFunction)> = arity
        .into_iter()
        .filter(|s| args.iter().enumerate().all(|(i, a)| fits(*a, s.arg(i))))
        .filter_map(|s| Some((s, finish(s, args)?)))
        .collect();
    // Keep the best by a count, when there is a best.
    let narrow = |left: &mut Vec<(&Sig, ResolvedFunction)>, count: &dyn Fn(&Sig) -> usize| {
        let best = left.iter().map(|(s, _)| count(s)).max().unwrap_or(0);
        left.retain(|(s, _)| count(s) == best);
    };
    if left.len() > 1 {
        narrow(&mut left, &|s| args.iter().enumerate().filter(|(i, a)| exact(**a, s.arg(*i))).count());
    }
    if left.len() > 1 {
        narrow(&mut left, &|s| {
            let known = args.iter().enumerate().filter(|(_, a)| **a != Type::Unknown);
            known.filter(|(i, a)| preferred(**a, s.arg(*i))).count()
        });
    }
    if left.len() > 1 && args.contains(&Type::Unknown) {
        // Untyped literals: text where some candidate takes it, otherwise the one category that all agree on.
        for (i, _) in args.iter().enumerate().filter(|(_, a)| **a == Type::Unknown) {
            let category = |s: &Sig| match s.arg(i) {
                P::T(t) => t.category(),
                P::Array => Category::Array,
                _ => Category::Pseudo,
            };
            let is_preferred = |s: &Sig| matches!(s.arg(i), P::T(t) if t.is_preferred());
            let wanted = if left.iter().any(|(s, _)| category(s) == Category::String) {
                Some(Category::String)
            } else {
                let first = category(left[0].0);
                left.iter().all(|(s, _)| category(s) == first).then_some(first)
            };
            if let Some(c) = wanted {
                left.retain(|(s, _)| category(s) == c);
                if left.iter().any(|(s, _)| is_preferred(s)) {
                    left.retain(|(s, _)| is_preferred(s));
                }
            }
        }
        if left.len() > 1 {
            // All known arguments of one type: the literals are of that type too.
            let mut known = args.iter().filter(|a| **a != Type::Unknown).map(|a| a.base());
            if let Some(t) = known.next()
                && known.all(|u| u == t)
            {
                let same: Vec<Type> = vec![t; args.len()];
                let fitting: Vec<_> = left
                    .iter()
                    .filter(|(s, _)| same.iter().enumerate().all(|(i, a)| fits(*a, s.arg(i))))
                    .cloned()
                    .collect();
                if fitting.len() == 1 {
                    left = fitting;
                }
            }
        }
    }
    match left.len() {
        0 => Choice::None,
        1 => Choice::One(left.swap_remove(0).1),
        _ => Choice::Several,
    }
}

/// The operator that `left op right` means; `left` is `None` for a prefix operator. Untyped literals are
/// [`Type::Unknown`]. `op` is the operator's symbol (`!=` is `<>`); LIKE is `~~`, NOT LIKE `!~~`, ILIKE `~~*`,
/// NOT ILIKE `!~~*`. 42883 when there is none, 42725 when there are several.
pub fn resolve_operator(op: &str, left: Option<&Type>, right: &Type) -> Result<ResolvedFunction> {
    let op = if op == "!=" { "<>" } else { op };
    let none: &[Sig] = &[];
    let sigs = TABLES.operators.get(op).map_or(none, |v| v);
    let args: Vec<Type> = left.copied().into_iter().chain([*right]).collect();
    // An untyped literal beside a typed operand has that operand's type, if the operator exists for it.
    if let [a, b] = args[..]
        && (a == Type::Unknown) != (b == Type::Unknown)
    {
        let t = if a == Type::Unknown { b } else { a }.base();
        if let Some(s) = sigs.iter().find(|s| s.takes(2) && exact(t, s.arg(0)) && exact(t, s.arg(1)))
            && let Some(f) = finish(s, &[t, t])
        {
            return Ok(f);
        }
    }
    let describe = || match left {
        Some(l) => format!("{} {op} {}", l.base_sql_name(), right.base_sql_name()),
        None => format!("{op} {}", right.base_sql_name()),
    };
    match choose(sigs, &args) {
        Choice::One(f) => Ok(f),
        Choice::None => Err(Error::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("operator does not exist: {}", describe()),
        )
        .with_hint(
            "No operator matches the given name and argument types. You might need to add explicit type casts.",
        )),
        Choice::Several => {
            Err(Error::new(SqlState::AMBIGUOUS_FUNCTION, format!("operator is not unique: {}", describe()))
                .with_hint("Could not choose a best candidate operator. You might need to add explicit type casts."))
        }
    }
}

/// The function that a call of this name (lower case) with arguments of these types means.
/// 42883 when there is none, 42725 when there are several.
pub fn resolve_function(name: &str, args: &[Type]) -> Result<ResolvedFunction> {
    let none: &[Sig] = &[];
    let sigs = TABLES.functions.get(name).map_or(none, |v| v);
    let describe = || {
        let types: Vec<String> = args.iter().map(|t| t.base_sql_name()).collect();
        format!("{name}({})", types.join(", "))
    };
    match choose(sigs, args) {
        Choice::One(f) => Ok(f),
        Choice::None => Err(Error::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("function {} does not exist", describe()),
        )
        .with_hint(
            "No function matches the given name and argument types. You might need to add explicit type casts.",
        )),
        Choice::Several => {
            Err(Error::new(SqlState::AMBIGUOUS_FUNCTION, format!("function {} is not unique", describe()))
                .with_hint("Could not choose a best candidate function. You might need to add explicit type casts."))
        }
    }
}

/// Is there any (scalar) function of this name?
pub fn function_exists(name: &str) -> bool {
    TABLES.functions.contains_key(name)
}

/// The names of all scalar functions, sorted.
pub fn function_names() -> Vec<&'static str> {
    let mut names: Vec<_> = TABLES.functions.keys().copied().collect();
    names.sort_unstable();
    names
}
