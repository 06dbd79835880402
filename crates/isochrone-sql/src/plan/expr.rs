//! Typed expressions: what the binder makes, the planner rewrites and the executor evaluates.
//!
//! Invariants
//!   E1  Every expression has its PostgreSQL type; operands of comparisons have one type (but for modifiers, and for
//!       widths of integers and floats), so that [`isochrone_types::compare`] decides them.
//!   E2  [`Kind::Col`] occurs before physical planning only; [`Kind::Slot`], [`Kind::Outer`] and [`Kind::SubValue`]
//!       after it only.
//!   E3  AND and OR have any number of operands and do not nest in themselves.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_types::{CastContext, Datum, ResolvedFunction, Type, Volatility};
use rustc_hash::FxHashSet;

use super::rel::Rel;
use crate::relation::SessionFunction;

/// A column anywhere in a statement. Never reused within one.
pub type ColId = u32;

/// A typed expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it does.
    pub kind: Kind,
    /// The type of its value.
    pub ty: Type,
}

/// Code of a call.
#[derive(Clone)]
pub enum Function {
    /// From `isochrone_types`.
    Builtin(ResolvedFunction),
    /// From the catalog.
    Session(String, Arc<SessionFunction>),
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Function {
    /// Its name or symbol.
    pub fn name(&self) -> &str {
        match self {
            Function::Builtin(f) => f.name,
            Function::Session(name, _) => name,
        }
    }

    /// May it be folded?
    pub fn volatility(&self) -> Volatility {
        match self {
            Function::Builtin(f) => f.volatility,
            Function::Session(_, f) if f.stable => Volatility::Stable,
            Function::Session(..) => Volatility::Volatile,
        }
    }

    /// NULL in, NULL out.
    pub fn strict(&self) -> bool {
        match self {
            Function::Builtin(f) => f.strict,
            Function::Session(_, f) => f.strict,
        }
    }
}

/// The six comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

impl Comparison {
    /// By symbol.
    pub fn from_symbol(op: &str) -> Option<Comparison> {
        Some(match op {
            "=" => Comparison::Eq,
            "<>" | "!=" => Comparison::Ne,
            "<" => Comparison::Lt,
            "<=" => Comparison::Le,
            ">" => Comparison::Gt,
            ">=" => Comparison::Ge,
            _ => return None,
        })
    }

    /// The symbol.
    pub fn symbol(self) -> &'static str {
        match self {
            Comparison::Eq => "=",
            Comparison::Ne => "<>",
            Comparison::Lt => "<",
            Comparison::Le => "<=",
            Comparison::Gt => ">",
            Comparison::Ge => ">=",
        }
    }

    /// With its operands exchanged.
    pub fn flipped(self) -> Comparison {
        match self {
            Comparison::Lt => Comparison::Gt,
            Comparison::Le => Comparison::Ge,
            Comparison::Gt => Comparison::Lt,
            Comparison::Ge => Comparison::Le,
            same => same,
        }
    }

    /// Does it hold for operands in this order?
    #[inline]
    pub fn holds(self, o: std::cmp::Ordering) -> bool {
        match self {
            Comparison::Eq => o.is_eq(),
            Comparison::Ne => o.is_ne(),
            Comparison::Lt => o.is_lt(),
            Comparison::Le => o.is_le(),
            Comparison::Gt => o.is_gt(),
            Comparison::Ge => o.is_ge(),
        }
    }
}

/// How `left op ANY/ALL (..)` compares.
#[derive(Clone, Debug)]
pub enum QuantOp {
    /// One of the six.
    Compare(Comparison),
    /// An operator's function.
    Call(Arc<Function>),
}

/// What a subquery in an expression answers.
#[derive(Clone, Debug)]
pub enum SubKind {
    /// Its only value, NULL without rows; 21000 for several rows.
    Scalar,
    /// Has it rows?
    Exists,
    /// Is the left side equal to one of its rows?
    In,
    /// Does the comparison hold for any or all of its rows?
    Quantified(QuantOp, bool),
    /// All its values as an array.
    Array(Type),
}

/// A subquery before physical planning.
#[derive(Clone, Debug)]
pub struct Sub {
    /// What it answers.
    pub kind: SubKind,
    /// The left side of IN and ANY.
    pub left: Vec<Expr>,
    /// The query.
    pub rel: Rel,
    /// Its output.
    pub cols: Vec<ColId>,
}

/// A constant list, hashed.
#[derive(Debug)]
pub struct HashedList {
    /// Its values but NULL.
    pub values: FxHashSet<Datum>,
    /// Has it a NULL?
    pub has_null: bool,
}

/// The forms of expressions.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A value.
    Const(Datum),
    /// A column, by id.
    Col(ColId),
    /// A column of the operator's input, by position.
    Slot(usize),
    /// A column of an enclosing query, as bound by the Apply that runs this one.
    Outer(usize),
    /// `$n`, from 0.
    Param(usize),
    /// A function or operator.
    Call(Arc<Function>, Vec<Expr>),
    /// A conversion.
    Cast(Box<Expr>, CastContext),
    /// A comparison of values of one type.
    Compare(Comparison, Box<[Expr; 2]>),
    /// All of them.
    And(Vec<Expr>),
    /// Any of them.
    Or(Vec<Expr>),
    /// NOT.
    Not(Box<Expr>),
    /// IS NULL.
    IsNull(Box<Expr>),
    /// IS TRUE, IS FALSE; `None`: IS UNKNOWN.
    Is(Box<Expr>, Option<bool>),
    /// IS DISTINCT FROM.
    Distinct(Box<[Expr; 2]>),
    /// CASE WHEN .. THEN .. ELSE.
    Case(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    /// The first that is not NULL.
    Coalesce(Vec<Expr>),
    /// GREATEST (true) or LEAST; NULLs do not count.
    Extreme(bool, Vec<Expr>),
    /// IN with a list.
    InList(Box<Expr>, Vec<Expr>),
    /// IN with a long constant list.
    InSet(Box<Expr>, Arc<HashedList>),
    /// `left op ANY (array)`, or ALL (true).
    Quantified(QuantOp, bool, Box<[Expr; 2]>),
    /// ARRAY[..] with its element type.
    Array(Type, Vec<Expr>),
    /// `array[index]`.
    Subscript(Box<[Expr; 2]>),
    /// A subquery.
    Sub(Box<Sub>),
    /// An uncorrelated subquery's answer: number of the subplan, kind, left side.
    SubValue(usize, SubKind, Vec<Expr>),
    /// nextval of a sequence.
    NextVal(u32),
    /// currval of a sequence.
    CurrVal(u32),
    /// lastval.
    LastVal,
    /// setval(sequence, value, is_called); evaluated by an Apply.
    SetVal(u32, Box<[Expr; 2]>),
    /// A function on advisory locks; evaluated by an Apply.
    Advisory(crate::relation::AdvisoryCall, Vec<Expr>),
}

impl Expr {
    /// Puts the two together.
    pub fn new(kind: Kind, ty: Type) -> Expr {
        Expr { kind, ty }
    }

    /// A constant.
    pub fn constant(value: Datum, ty: Type) -> Expr {
        Expr::new(Kind::Const(value), ty)
    }

    /// A boolean constant.
    pub fn bool(value: bool) -> Expr {
        Expr::constant(Datum::Bool(value), Type::Bool)
    }

    /// A column.
    pub fn col(col: ColId, ty: Type) -> Expr {
        Expr::new(Kind::Col(col), ty)
    }

    /// The operands of a conjunction, flattened; the expression itself if it is none.
    pub fn into_conjuncts(self, out: &mut Vec<Expr>) {
        match self.kind {
            Kind::And(items) => items.into_iter().for_each(|e| e.into_conjuncts(out)),
            Kind::Const(Datum::Bool(true)) => {}
            _ => out.push(self),
        }
    }

    /// AND of some; TRUE of none.
    pub fn and(mut items: Vec<Expr>) -> Expr {
        match items.len() {
            0 => Expr::bool(true),
            1 => items.pop().expect("there is one"),
            _ => Expr::new(Kind::And(items), Type::Bool),
        }
    }

    /// NOT.
    pub fn negated(self, negate: bool) -> Expr {
        if negate { Expr::new(Kind::Not(Box::new(self)), Type::Bool) } else { self }
    }

    /// Calls `f` on every direct operand, not on subqueries' relations.
    pub fn children_mut(&mut self, f: &mut dyn FnMut(&mut Expr)) {
        match &mut self.kind {
            Kind::Const(_)
            | Kind::Col(_)
            | Kind::Slot(_)
            | Kind::Outer(_)
            | Kind::Param(_)
            | Kind::NextVal(_)
            | Kind::CurrVal(_)
            | Kind::LastVal => {}
            Kind::Call(_, args)
            | Kind::And(args)
            | Kind::Or(args)
            | Kind::Coalesce(args)
            | Kind::Extreme(_, args)
            | Kind::Array(_, args)
            | Kind::Advisory(_, args)
            | Kind::SubValue(_, _, args) => args.iter_mut().for_each(f),
            Kind::Cast(e, _) | Kind::Not(e) | Kind::IsNull(e) | Kind::Is(e, _) | Kind::InSet(e, _) => f(e),
            Kind::Compare(_, two)
            | Kind::Distinct(two)
            | Kind::Quantified(_, _, two)
            | Kind::Subscript(two)
            | Kind::SetVal(_, two) => two.iter_mut().for_each(f),
            Kind::Case(whens, other) => {
                for (a, b) in whens {
                    f(a);
                    f(b);
                }
                if let Some(e) = other {
                    f(e);
                }
            }
            Kind::InList(e, list) => {
                f(e);
                list.iter_mut().for_each(f);
            }
            Kind::Sub(sub) => sub.left.iter_mut().for_each(f),
        }
    }

    /// Calls `f` on every direct operand.
    pub fn children(&self, f: &mut dyn FnMut(&Expr)) {
        match &self.kind {
            Kind::Const(_)
            | Kind::Col(_)
            | Kind::Slot(_)
            | Kind::Outer(_)
            | Kind::Param(_)
            | Kind::NextVal(_)
            | Kind::CurrVal(_)
            | Kind::LastVal => {}
            Kind::Call(_, args)
            | Kind::And(args)
            | Kind::Or(args)
            | Kind::Coalesce(args)
            | Kind::Extreme(_, args)
            | Kind::Array(_, args)
            | Kind::Advisory(_, args)
            | Kind::SubValue(_, _, args) => args.iter().for_each(f),
            Kind::Cast(e, _) | Kind::Not(e) | Kind::IsNull(e) | Kind::Is(e, _) | Kind::InSet(e, _) => f(e),
            Kind::Compare(_, two)
            | Kind::Distinct(two)
            | Kind::Quantified(_, _, two)
            | Kind::Subscript(two)
            | Kind::SetVal(_, two) => two.iter().for_each(f),
            Kind::Case(whens, other) => {
                for (a, b) in whens {
                    f(a);
                    f(b);
                }
                if let Some(e) = other {
                    f(e);
                }
            }
            Kind::InList(e, list) => {
                f(e);
                list.iter().for_each(f);
            }
            Kind::Sub(sub) => sub.left.iter().for_each(f),
        }
    }

    /// Rewrites every node bottom up, subqueries' relations included.
    pub fn rewrite(&mut self, f: &mut dyn FnMut(&mut Expr)) {
        self.children_mut(&mut |c| c.rewrite(f));
        if let Kind::Sub(sub) = &mut self.kind {
            sub.rel.rewrite(f);
        }
        f(self);
    }

    /// Visits every node, subqueries' relations included.
    pub fn visit(&self, f: &mut dyn FnMut(&Expr)) {
        f(self);
        self.children(&mut |c| c.visit(f));
        if let Kind::Sub(sub) = &self.kind {
            sub.rel.visit(f);
        }
    }

    /// Visits every node outside subqueries' relations.
    pub fn visit_own(&self, f: &mut dyn FnMut(&Expr)) {
        f(self);
        self.children(&mut |c| c.visit_own(f));
    }

    /// Adds the columns that it refers to; columns that a subquery makes for itself are among them.
    pub fn columns(&self, out: &mut BTreeSet<ColId>) {
        self.visit(&mut |e| {
            if let Kind::Col(c) = e.kind {
                out.insert(c);
            }
        });
    }

    /// Does any node satisfy the condition?
    pub fn any(&self, condition: &dyn Fn(&Expr) -> bool) -> bool {
        let mut found = false;
        self.visit(&mut |e| found |= condition(e));
        found
    }

    /// Does it contain a subquery (before or after physical planning)?
    pub fn has_subquery(&self) -> bool {
        self.any(&|e| matches!(e.kind, Kind::Sub(_) | Kind::SubValue(..)))
    }

    /// Can its value change between two evaluations with the same input?
    pub fn is_volatile(&self) -> bool {
        self.any(&|e| match &e.kind {
            Kind::Call(f, _) => f.volatility() == Volatility::Volatile,
            Kind::NextVal(_) | Kind::CurrVal(_) | Kind::LastVal | Kind::SetVal(..) | Kind::Advisory(..) => {
                true
            }
            _ => false,
        })
    }

    /// Is its value the same for all rows of an operator (constants, parameters, outer columns, stable functions)?
    pub fn is_row_constant(&self) -> bool {
        !self.any(&|e| match &e.kind {
            Kind::Col(_) | Kind::Slot(_) | Kind::Sub(_) | Kind::SubValue(..) => true,
            Kind::Call(f, _) => f.volatility() == Volatility::Volatile,
            Kind::NextVal(_) | Kind::CurrVal(_) | Kind::LastVal | Kind::SetVal(..) | Kind::Advisory(..) => {
                true
            }
            _ => false,
        })
    }
}

/// Structural equality: the same computation. Subqueries are never equal.
impl PartialEq for Expr {
    fn eq(&self, other: &Expr) -> bool {
        if self.ty != other.ty {
            return false;
        }
        match (&self.kind, &other.kind) {
            (Kind::Const(a), Kind::Const(b)) => {
                // Equal numerics may print differently.
                std::mem::discriminant(a) == std::mem::discriminant(b)
                    && a == b
                    && !matches!(a, Datum::Numeric(_) | Datum::Interval(_) | Datum::Bpchar(_))
                    || matches!((a, b), (Datum::Numeric(x), Datum::Numeric(y)) if format!("{x:?}") == format!("{y:?}"))
            }
            (Kind::Col(a), Kind::Col(b)) => a == b,
            (Kind::Slot(a), Kind::Slot(b))
            | (Kind::Outer(a), Kind::Outer(b))
            | (Kind::Param(a), Kind::Param(b)) => a == b,
            (Kind::Call(f, a), Kind::Call(g, b)) => {
                f.name() == g.name() && f.volatility() != Volatility::Volatile && a == b
            }
            (Kind::Cast(a, c), Kind::Cast(b, d)) => c == d && a == b,
            (Kind::Compare(c, a), Kind::Compare(d, b)) => c == d && a == b,
            (Kind::And(a), Kind::And(b))
            | (Kind::Or(a), Kind::Or(b))
            | (Kind::Coalesce(a), Kind::Coalesce(b))
            | (Kind::Array(_, a), Kind::Array(_, b)) => a == b,
            (Kind::Extreme(c, a), Kind::Extreme(d, b)) => c == d && a == b,
            (Kind::Not(a), Kind::Not(b)) | (Kind::IsNull(a), Kind::IsNull(b)) => a == b,
            (Kind::Is(a, c), Kind::Is(b, d)) => c == d && a == b,
            (Kind::Distinct(a), Kind::Distinct(b)) | (Kind::Subscript(a), Kind::Subscript(b)) => a == b,
            (Kind::Case(a, c), Kind::Case(b, d)) => a == b && c == d,
            (Kind::InList(a, c), Kind::InList(b, d)) => a == b && c == d,
            _ => false,
        }
    }
}
