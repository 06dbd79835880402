//! Relational trees: what a bound query means, before it is decided how to compute it.
//!
//! Invariants
//!   R1  A column id is made by exactly one place of the tree; references to ids that nothing below makes belong to
//!       an enclosing query.
//!   R2  [`Rel::Aggregate`] gives a group key that is a plain column the id of that column, so that subqueries may
//!       go on referring to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_txn::kv::Lock;
use isochrone_types::{AggregateSpec, Type};

use super::expr::{ColId, Expr, Kind};
use crate::descriptor::TableDescriptor;
use crate::parse_locks::RowWait;
use crate::relation::VirtualTable;

/// Kinds of joins. RIGHT is LEFT with its sides exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinKind {
    /// Pairs only.
    Inner,
    /// And rows of the left side without a partner.
    Left,
    /// And of both sides.
    Full,
}

/// UNION, INTERSECT, EXCEPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetOpKind {
    /// UNION
    Union,
    /// INTERSECT
    Intersect,
    /// EXCEPT
    Except,
}

/// An aggregate call.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// Which.
    pub spec: AggregateSpec,
    /// Arguments, cast as the aggregate wants them.
    pub args: Vec<Expr>,
    /// Each set of arguments once.
    pub distinct: bool,
    /// FILTER.
    pub filter: Option<Expr>,
    /// ORDER BY inside the call.
    pub order: Vec<SortKey>,
}

impl PartialEq for Aggregate {
    fn eq(&self, other: &Aggregate) -> bool {
        self.spec.name == other.spec.name
            && self.args == other.args
            && self.distinct == other.distinct
            && self.filter == other.filter
            && self.order == other.order
    }
}

/// A key of ORDER BY.
#[derive(Clone, Debug, PartialEq)]
pub struct SortKey {
    /// By what.
    pub expr: Expr,
    /// From the largest.
    pub desc: bool,
    /// NULLs before everything else.
    pub nulls_first: bool,
}

/// Functions that return sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetFunction {
    /// generate_series over integers of one type.
    SeriesInt,
    /// generate_series over numeric.
    SeriesNumeric,
    /// generate_series over timestamps with an interval.
    SeriesTime,
    /// unnest of an array.
    Unnest,
    /// A scalar function: one row.
    Scalar,
}

/// A relational tree.
#[derive(Clone)]
pub enum Rel {
    /// One row without columns.
    One,
    /// A stored table.
    Table {
        /// Which.
        table: Arc<TableDescriptor>,
        /// A column id for each of its columns.
        cols: Vec<ColId>,
        /// Its name in the query.
        alias: Arc<str>,
    },
    /// A computed table.
    Virtual {
        /// Which.
        table: Arc<dyn VirtualTable>,
        /// A column id for each of its columns.
        cols: Vec<ColId>,
        /// Its name in the query.
        alias: Arc<str>,
    },
    /// VALUES.
    Values {
        /// Output.
        cols: Vec<ColId>,
        /// Rows of expressions.
        rows: Vec<Vec<Expr>>,
    },
    /// A function in FROM.
    Function {
        /// Which.
        function: SetFunction,
        /// Its name.
        name: Arc<str>,
        /// Arguments.
        args: Vec<Expr>,
        /// Output: the value, and with ordinality its number.
        cols: Vec<ColId>,
    },
    /// A join.
    Join {
        /// Kind.
        kind: JoinKind,
        /// Left side.
        left: Box<Rel>,
        /// Right side.
        right: Box<Rel>,
        /// Conditions, all of which must hold.
        on: Vec<Expr>,
    },
    /// WHERE, HAVING.
    Filter {
        /// Input.
        input: Box<Rel>,
        /// Conditions, all of which must hold.
        predicates: Vec<Expr>,
    },
    /// Computes columns; only these come out.
    Project {
        /// Input.
        input: Box<Rel>,
        /// Output.
        exprs: Vec<(ColId, Expr)>,
    },
    /// GROUP BY. Without keys: one row.
    Aggregate {
        /// Input.
        input: Box<Rel>,
        /// Group keys (R2).
        keys: Vec<(ColId, Expr)>,
        /// Aggregates.
        aggregates: Vec<(ColId, Aggregate)>,
    },
    /// The first row for each value of `on`.
    Distinct {
        /// Input.
        input: Box<Rel>,
        /// Columns that tell rows apart.
        on: Vec<ColId>,
    },
    /// ORDER BY.
    Sort {
        /// Input.
        input: Box<Rel>,
        /// Keys.
        keys: Vec<SortKey>,
    },
    /// LIMIT and OFFSET.
    Limit {
        /// Input.
        input: Box<Rel>,
        /// At most so many rows.
        limit: Option<Expr>,
        /// After so many.
        offset: Option<Expr>,
    },
    /// Set operations.
    SetOp {
        /// Which.
        op: SetOpKind,
        /// Keep duplicates.
        all: bool,
        /// Left side and its output.
        left: Box<Rel>,
        /// Columns of the left side.
        left_cols: Vec<ColId>,
        /// Right side.
        right: Box<Rel>,
        /// Columns of the right side.
        right_cols: Vec<ColId>,
        /// Output.
        cols: Vec<ColId>,
    },
    /// A WITH query, computed once.
    Cte {
        /// Number in the statement.
        id: usize,
        /// Output.
        cols: Vec<ColId>,
        /// Its name in the query.
        alias: Arc<str>,
    },
    /// FOR UPDATE and its weaker relatives, of one table.
    Lock {
        /// Input.
        input: Box<Rel>,
        /// The table.
        table: Arc<TableDescriptor>,
        /// Its columns.
        cols: Vec<ColId>,
        /// What must still hold for the locked row.
        predicates: Vec<Expr>,
        /// How strongly.
        lock: Lock,
        /// What to do about rows that others hold.
        wait: RowWait,
        /// Below is an outer join: what a changed row is joined with cannot be told without joining again.
        outer: bool,
    },
}

impl std::fmt::Debug for Rel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rel")
    }
}

impl Rel {
    /// Calls `f` on each direct input.
    pub fn inputs_mut(&mut self, f: &mut dyn FnMut(&mut Rel)) {
        match self {
            Rel::One
            | Rel::Table { .. }
            | Rel::Virtual { .. }
            | Rel::Values { .. }
            | Rel::Function { .. } => {}
            Rel::Cte { .. } => {}
            Rel::Join { left, right, .. } | Rel::SetOp { left, right, .. } => {
                f(left);
                f(right);
            }
            Rel::Filter { input, .. }
            | Rel::Project { input, .. }
            | Rel::Aggregate { input, .. }
            | Rel::Distinct { input, .. }
            | Rel::Sort { input, .. }
            | Rel::Limit { input, .. }
            | Rel::Lock { input, .. } => f(input),
        }
    }

    /// Calls `f` on each direct input.
    pub fn inputs(&self, f: &mut dyn FnMut(&Rel)) {
        match self {
            Rel::One
            | Rel::Table { .. }
            | Rel::Virtual { .. }
            | Rel::Values { .. }
            | Rel::Function { .. } => {}
            Rel::Cte { .. } => {}
            Rel::Join { left, right, .. } | Rel::SetOp { left, right, .. } => {
                f(left);
                f(right);
            }
            Rel::Filter { input, .. }
            | Rel::Project { input, .. }
            | Rel::Aggregate { input, .. }
            | Rel::Distinct { input, .. }
            | Rel::Sort { input, .. }
            | Rel::Limit { input, .. }
            | Rel::Lock { input, .. } => f(input),
        }
    }

    /// Calls `f` on each expression of this node.
    pub fn exprs_mut(&mut self, f: &mut dyn FnMut(&mut Expr)) {
        match self {
            Rel::One | Rel::Table { .. } | Rel::Virtual { .. } | Rel::Cte { .. } => {}
            Rel::Distinct { .. } | Rel::SetOp { .. } => {}
            Rel::Values { rows, .. } => rows.iter_mut().flatten().for_each(f),
            Rel::Function { args, .. } => args.iter_mut().for_each(f),
            Rel::Join { on, .. } => on.iter_mut().for_each(f),
            Rel::Filter { predicates, .. } | Rel::Lock { predicates, .. } => {
                predicates.iter_mut().for_each(f)
            }
            Rel::Project { exprs, .. } => exprs.iter_mut().for_each(|(_, e)| f(e)),
            Rel::Aggregate { keys, aggregates, .. } => {
                keys.iter_mut().for_each(|(_, e)| f(e));
                for (_, a) in aggregates {
                    a.args.iter_mut().for_each(&mut *f);
                    a.filter.iter_mut().for_each(&mut *f);
                    a.order.iter_mut().for_each(|k| f(&mut k.expr));
                }
            }
            Rel::Sort { keys, .. } => keys.iter_mut().for_each(|k| f(&mut k.expr)),
            Rel::Limit { limit, offset, .. } => {
                limit.iter_mut().for_each(&mut *f);
                offset.iter_mut().for_each(&mut *f);
            }
        }
    }

    /// Calls `f` on each expression of this node.
    pub fn exprs(&self, f: &mut dyn FnMut(&Expr)) {
        match self {
            Rel::One | Rel::Table { .. } | Rel::Virtual { .. } | Rel::Cte { .. } => {}
            Rel::Distinct { .. } | Rel::SetOp { .. } => {}
            Rel::Values { rows, .. } => rows.iter().flatten().for_each(f),
            Rel::Function { args, .. } => args.iter().for_each(f),
            Rel::Join { on, .. } => on.iter().for_each(f),
            Rel::Filter { predicates, .. } | Rel::Lock { predicates, .. } => predicates.iter().for_each(f),
            Rel::Project { exprs, .. } => exprs.iter().for_each(|(_, e)| f(e)),
            Rel::Aggregate { keys, aggregates, .. } => {
                keys.iter().for_each(|(_, e)| f(e));
                for (_, a) in aggregates {
                    a.args.iter().for_each(&mut *f);
                    a.filter.iter().for_each(&mut *f);
                    a.order.iter().for_each(|k| f(&k.expr));
                }
            }
            Rel::Sort { keys, .. } => keys.iter().for_each(|k| f(&k.expr)),
            Rel::Limit { limit, offset, .. } => {
                limit.iter().for_each(&mut *f);
                offset.iter().for_each(&mut *f);
            }
        }
    }

    /// Rewrites every expression below.
    pub fn rewrite(&mut self, f: &mut dyn FnMut(&mut Expr)) {
        self.inputs_mut(&mut |r| r.rewrite(f));
        self.exprs_mut(&mut |e| e.rewrite(f));
    }

    /// Visits every expression below.
    pub fn visit(&self, f: &mut dyn FnMut(&Expr)) {
        self.inputs(&mut |r| r.visit(f));
        self.exprs(&mut |e| e.visit(f));
    }

    /// Visits every node below, and of subqueries.
    pub fn visit_rels(&self, f: &mut dyn FnMut(&Rel)) {
        f(self);
        self.inputs(&mut |r| r.visit_rels(f));
        self.exprs(&mut |e| {
            e.visit_own(&mut |e| {
                if let Kind::Sub(sub) = &e.kind {
                    sub.rel.visit_rels(f);
                }
            })
        });
    }

    /// The columns that come out.
    pub fn output(&self) -> Vec<ColId> {
        match self {
            Rel::One => Vec::new(),
            Rel::Table { cols, .. }
            | Rel::Virtual { cols, .. }
            | Rel::Values { cols, .. }
            | Rel::Function { cols, .. }
            | Rel::Cte { cols, .. }
            | Rel::SetOp { cols, .. } => cols.clone(),
            Rel::Join { left, right, .. } => {
                let mut out = left.output();
                out.extend(right.output());
                out
            }
            Rel::Filter { input, .. }
            | Rel::Distinct { input, .. }
            | Rel::Sort { input, .. }
            | Rel::Limit { input, .. }
            | Rel::Lock { input, .. } => input.output(),
            Rel::Project { exprs, .. } => exprs.iter().map(|(c, _)| *c).collect(),
            Rel::Aggregate { keys, aggregates, .. } => {
                keys.iter().map(|(c, _)| *c).chain(aggregates.iter().map(|(c, _)| *c)).collect()
            }
        }
    }

    /// Every column made here or below, in subqueries too.
    pub fn made(&self, out: &mut BTreeSet<ColId>) {
        self.visit_rels(&mut |r| match r {
            Rel::Table { cols, .. }
            | Rel::Virtual { cols, .. }
            | Rel::Values { cols, .. }
            | Rel::Function { cols, .. }
            | Rel::Cte { cols, .. }
            | Rel::SetOp { cols, .. } => out.extend(cols),
            Rel::Project { exprs, .. } => out.extend(exprs.iter().map(|(c, _)| *c)),
            Rel::Aggregate { keys, aggregates, .. } => {
                out.extend(keys.iter().map(|(c, _)| *c));
                out.extend(aggregates.iter().map(|(c, _)| *c));
            }
            _ => {}
        });
    }

    /// Columns of enclosing queries that this one refers to.
    pub fn free(&self) -> BTreeSet<ColId> {
        let mut used = BTreeSet::new();
        self.visit(&mut |e| {
            if let Kind::Col(c) = e.kind {
                used.insert(c);
            }
        });
        let mut made = BTreeSet::new();
        self.made(&mut made);
        used.difference(&made).copied().collect()
    }
}

/// A column of a query's result.
#[derive(Clone, Debug)]
pub struct OutCol {
    /// Name.
    pub name: String,
    /// Which column.
    pub col: ColId,
    /// Type.
    pub ty: Type,
}
