//! Physical plans: what the executor runs. Immutable and shared; parameters come in at execution.
//!
//! Invariants
//!   N1  Expressions of a node refer by slot to the columns of its input, in order; joins see left then right.
//!   N2  `Node::cols` says which column each output slot holds.
//!   N3  Key parts of a scan are constant for one opening of it: they see the outer row of a lookup join, or nothing.

use std::sync::Arc;

use isochrone_txn::kv::Lock;
use isochrone_types::{AggregateSpec, Type};

use super::expr::{ColId, Expr, SubKind};
use super::rel::{JoinKind, SetFunction, SetOpKind};
use crate::descriptor::TableDescriptor;
use crate::exec::table::TableReader;
use crate::parse_locks::RowWait;
use crate::relation::VirtualTable;

/// An operator and what is known of its output.
#[derive(Debug)]
pub struct Node {
    /// Number in the plan, for EXPLAIN ANALYZE.
    pub id: usize,
    /// What it does.
    pub op: NodeOp,
    /// What each output slot holds.
    pub cols: Vec<ColId>,
    /// How many rows are expected.
    pub rows: f64,
    /// How much work is expected, in rows touched.
    pub cost: f64,
    /// How the output is ordered: column, descending, NULLs first.
    pub order: Vec<(ColId, bool, bool)>,
}

/// A key column of a lookup.
#[derive(Clone, Debug)]
pub enum KeyPart {
    /// Equal to this.
    One(Expr),
    /// Equal to one of these.
    Many(Vec<Expr>),
    /// Equal to an element of this array.
    Array(Expr),
}

/// Values of one key column between two bounds. A NULL bound: no value.
#[derive(Clone, Debug)]
pub struct Span {
    /// Lower bound; inclusive?
    pub low: Option<(Expr, bool)>,
    /// Upper bound.
    pub high: Option<(Expr, bool)>,
}

impl Span {
    /// Its bounds.
    pub fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.low.iter().chain(&self.high).map(|(e, _)| e)
    }
}

/// Reads a table: all of it, some keys, or ranges of keys of an index.
#[derive(Debug)]
pub struct Scan {
    /// The table.
    pub table: Arc<TableDescriptor>,
    /// Its name in the query.
    pub alias: Arc<str>,
    /// 0: the primary key; n: the n-th secondary index.
    pub index: usize,
    /// The index alone has all columns that are needed.
    pub covering: bool,
    /// Leading key columns with known values.
    pub parts: Vec<KeyPart>,
    /// The parts decide one key each.
    pub point: bool,
    /// The next key column lies in one of these; empty: anywhere. They may overlap and need not be in order.
    pub spans: Vec<Span>,
    /// From the end.
    pub reverse: bool,
    /// Positions of the table's columns that come out.
    pub columns: Vec<usize>,
    /// What rows must satisfy, over the output.
    pub filter: Option<Expr>,
    /// Take the row locks while reading (points only).
    pub lock: Lock,
    /// What is read is not validated at COMMIT: SKIP LOCKED promises nothing of the rows that it passes.
    pub peek: bool,
    /// Decodes rows.
    pub reader: TableReader,
    /// For EXPLAIN: the conditions that the key parts came from.
    pub condition: Vec<Expr>,
}

/// What an Apply computes for each row: one column.
#[derive(Debug)]
pub enum ApplyItem {
    /// A correlated subquery.
    Sub {
        /// Number of the subplan.
        sub: usize,
        /// What it answers.
        kind: SubKind,
        /// Left side of IN and ANY.
        left: Vec<Expr>,
        /// Outer columns to bind before it runs.
        binds: Vec<(usize, Expr)>,
    },
    /// setval.
    SetVal {
        /// Sequence.
        sequence: u32,
        /// Value.
        value: Expr,
        /// is_called.
        called: Expr,
    },
    /// A function on advisory locks.
    Advisory {
        /// Which.
        call: crate::relation::AdvisoryCall,
        /// Its arguments.
        args: Vec<Expr>,
    },
}

/// An aggregate.
#[derive(Debug)]
pub struct AggregateNode {
    /// Which.
    pub spec: AggregateSpec,
    /// Arguments.
    pub args: Vec<Expr>,
    /// DISTINCT.
    pub distinct: bool,
    /// FILTER.
    pub filter: Option<Expr>,
    /// ORDER BY: expression, descending, NULLs first.
    pub order: Vec<SortNodeKey>,
}

/// A sort key.
#[derive(Debug, Clone)]
pub struct SortNodeKey {
    /// By what.
    pub expr: Expr,
    /// From the largest.
    pub desc: bool,
    /// NULLs first.
    pub nulls_first: bool,
}

/// Sequences to reserve values of before a row is evaluated: oid and how many.
pub type Reserve = Vec<(u32, usize)>;

/// The operators.
#[derive(Debug)]
pub enum NodeOp {
    /// One row without columns.
    One,
    /// Reads a table.
    Scan(Box<Scan>),
    /// Reads a computed table.
    Virtual {
        /// Which.
        table: VirtualRef,
        /// Its name in the query.
        alias: Arc<str>,
        /// Positions of columns that come out.
        columns: Vec<usize>,
        /// What rows must satisfy.
        filter: Option<Expr>,
    },
    /// Rows of expressions.
    Values {
        /// Rows.
        rows: Vec<Vec<Expr>>,
        /// Sequences per row.
        reserve: Reserve,
    },
    /// A set-returning function.
    Function {
        /// Which.
        function: SetFunction,
        /// Name.
        name: Arc<str>,
        /// Arguments.
        args: Vec<Expr>,
        /// Type of the value.
        ty: Type,
        /// With ordinality.
        ordinality: bool,
    },
    /// Keeps rows.
    Filter {
        /// Input.
        input: Box<Node>,
        /// Condition.
        predicate: Expr,
        /// Sequences per row.
        reserve: Reserve,
    },
    /// Computes columns.
    Project {
        /// Input.
        input: Box<Node>,
        /// Output.
        exprs: Vec<Expr>,
        /// Sequences per row.
        reserve: Reserve,
    },
    /// Hash join: the right side is built.
    HashJoin {
        /// Kind.
        kind: JoinKind,
        /// Probe side.
        left: Box<Node>,
        /// Build side.
        right: Box<Node>,
        /// Keys over the left side.
        left_keys: Vec<Expr>,
        /// Keys over the right side.
        right_keys: Vec<Expr>,
        /// Further conditions over both.
        residual: Option<Expr>,
    },
    /// Nested loop over a materialised right side.
    LoopJoin {
        /// Kind.
        kind: JoinKind,
        /// Outer side.
        left: Box<Node>,
        /// Inner side.
        right: Box<Node>,
        /// Condition over both.
        residual: Option<Expr>,
    },
    /// For each row of the left side, a lookup.
    LookupJoin {
        /// Inner or Left.
        kind: JoinKind,
        /// Outer side.
        left: Box<Node>,
        /// The lookup; its key parts see the outer row.
        scan: Box<Scan>,
        /// Further conditions over both.
        residual: Option<Expr>,
        /// Number of the scan, for EXPLAIN ANALYZE.
        scan_id: usize,
        /// Rows expected of one lookup.
        scan_rows: f64,
    },
    /// Groups by hash.
    Aggregate {
        /// Input.
        input: Box<Node>,
        /// Keys; they come out first.
        keys: Vec<Expr>,
        /// Aggregates.
        aggregates: Vec<AggregateNode>,
    },
    /// First row of each kind.
    Distinct {
        /// Input.
        input: Box<Node>,
        /// Slots that tell rows apart.
        on: Vec<usize>,
    },
    /// Sorts.
    Sort {
        /// Input.
        input: Box<Node>,
        /// Keys.
        keys: Vec<SortNodeKey>,
        /// Only so many first rows are wanted: limit and offset.
        top: Option<(Expr, Option<Expr>)>,
    },
    /// Cuts.
    Limit {
        /// Input.
        input: Box<Node>,
        /// At most.
        limit: Option<Expr>,
        /// After.
        offset: Option<Expr>,
    },
    /// Set operations; both sides have the output's columns in order.
    SetOp {
        /// Which.
        op: SetOpKind,
        /// Duplicates stay.
        all: bool,
        /// Left.
        left: Box<Node>,
        /// Right.
        right: Box<Node>,
    },
    /// Rows of a WITH query.
    Cte {
        /// Number.
        id: usize,
        /// Name.
        alias: Arc<str>,
        /// Slots of the query that come out.
        slots: Vec<usize>,
    },
    /// Adds columns that need to run something for each row.
    Apply {
        /// Input.
        input: Box<Node>,
        /// What to add.
        items: Vec<ApplyItem>,
    },
    /// Locks rows of a table and makes sure that they still qualify.
    Lock {
        /// Input.
        input: Box<Node>,
        /// The lock.
        target: Box<LockTarget>,
    },
}

/// Which rows to lock, where they are in the input, and what they must satisfy.
#[derive(Debug)]
pub struct LockTarget {
    /// The table.
    pub table: Arc<TableDescriptor>,
    /// For each column of the table its slot in the input, if it is there. Key columns always are.
    pub slots: Vec<Option<usize>>,
    /// What a row that has changed must satisfy.
    pub recheck: Exprs,
    /// How strongly.
    pub lock: Lock,
    /// What to do about rows that others hold.
    pub wait: RowWait,
    /// Below is an outer join: a row that has changed is a conflict.
    pub outer: bool,
    /// A LIMIT above may want few rows: no more are locked than it takes.
    pub one_by_one: bool,
}

/// Expressions with the subqueries that they need first.
#[derive(Debug, Default)]
pub struct Exprs {
    /// Columns to append to the row before.
    pub items: Vec<ApplyItem>,
    /// The expressions.
    pub exprs: Vec<Expr>,
    /// Sequences per row.
    pub reserve: Reserve,
}

/// A virtual table, comparable by nothing and printed by name.
#[derive(Clone)]
pub struct VirtualRef(pub Arc<dyn VirtualTable>);

impl std::fmt::Debug for VirtualRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

/// A subquery of an expression.
#[derive(Debug)]
pub struct SubPlan {
    /// The query.
    pub node: Node,
    /// Slots of its columns.
    pub slots: Vec<usize>,
}

impl Exprs {
    /// Visits all of it.
    pub fn visit(&self, f: &mut dyn FnMut(&Expr)) {
        self.items.iter().for_each(|i| i.visit(f));
        self.exprs.iter().for_each(f);
    }
}

impl ApplyItem {
    /// Visits its expressions.
    pub fn visit(&self, f: &mut dyn FnMut(&Expr)) {
        match self {
            ApplyItem::Sub { left, binds, .. } => {
                left.iter().for_each(&mut *f);
                binds.iter().for_each(|(_, e)| f(e));
            }
            ApplyItem::SetVal { value, called, .. } => {
                f(value);
                f(called);
            }
            ApplyItem::Advisory { args, .. } => args.iter().for_each(&mut *f),
        }
    }
}

impl Scan {
    /// Visits its expressions.
    pub fn visit(&self, f: &mut dyn FnMut(&Expr)) {
        for p in &self.parts {
            match p {
                KeyPart::One(e) | KeyPart::Array(e) => f(e),
                KeyPart::Many(list) => list.iter().for_each(&mut *f),
            }
        }
        self.spans.iter().flat_map(Span::exprs).for_each(&mut *f);
        self.filter.iter().for_each(f);
    }
}

impl Node {
    /// Visits the expressions of this node, not of its inputs.
    pub fn exprs(&self, f: &mut dyn FnMut(&Expr)) {
        match &self.op {
            NodeOp::One | NodeOp::Distinct { .. } | NodeOp::SetOp { .. } | NodeOp::Cte { .. } => {}
            NodeOp::Scan(s) => s.visit(f),
            NodeOp::Virtual { filter, .. } => filter.iter().for_each(f),
            NodeOp::Values { rows, .. } => rows.iter().flatten().for_each(f),
            NodeOp::Function { args, .. } => args.iter().for_each(f),
            NodeOp::Filter { predicate, .. } => f(predicate),
            NodeOp::Project { exprs, .. } => exprs.iter().for_each(f),
            NodeOp::HashJoin { left_keys, right_keys, residual, .. } => {
                left_keys.iter().chain(right_keys).chain(residual).for_each(f);
            }
            NodeOp::LoopJoin { residual, .. } => residual.iter().for_each(f),
            NodeOp::LookupJoin { scan, residual, .. } => {
                scan.visit(f);
                residual.iter().for_each(f);
            }
            NodeOp::Aggregate { keys, aggregates, .. } => {
                keys.iter().for_each(&mut *f);
                for a in aggregates {
                    a.args.iter().chain(&a.filter).for_each(&mut *f);
                    a.order.iter().for_each(|k| f(&k.expr));
                }
            }
            NodeOp::Sort { keys, top, .. } => {
                keys.iter().for_each(|k| f(&k.expr));
                if let Some((l, o)) = top {
                    f(l);
                    o.iter().for_each(f);
                }
            }
            NodeOp::Limit { limit, offset, .. } => limit.iter().chain(offset).for_each(f),
            NodeOp::Apply { items, .. } => items.iter().for_each(|i| i.visit(f)),
            NodeOp::Lock { target, .. } => target.recheck.visit(f),
        }
    }

    /// The inputs.
    pub fn inputs(&self) -> Vec<&Node> {
        match &self.op {
            NodeOp::One
            | NodeOp::Scan(_)
            | NodeOp::Virtual { .. }
            | NodeOp::Values { .. }
            | NodeOp::Function { .. }
            | NodeOp::Cte { .. } => Vec::new(),
            NodeOp::Filter { input, .. }
            | NodeOp::Project { input, .. }
            | NodeOp::Aggregate { input, .. }
            | NodeOp::Distinct { input, .. }
            | NodeOp::Sort { input, .. }
            | NodeOp::Limit { input, .. }
            | NodeOp::Apply { input, .. }
            | NodeOp::Lock { input, .. } => vec![input],
            NodeOp::LookupJoin { left, .. } => vec![left],
            NodeOp::HashJoin { left, right, .. }
            | NodeOp::LoopJoin { left, right, .. }
            | NodeOp::SetOp { left, right, .. } => vec![left, right],
        }
    }
}
