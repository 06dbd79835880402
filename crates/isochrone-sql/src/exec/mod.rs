//! Execution: pulls column batches through a plan.
//!
//! A [`Cursor`] is one execution of a plan. It owns what must outlive a call (operators' state, answers of
//! subqueries, memory accounts) and is handed the rest ([`ExecContext`]) at each call, so that a portal can be
//! suspended and resumed.
//!
//! * [`eval`] expressions; `ops` operators; `scan` reading tables; `join`; `sort` (sorting, grouping, set operations)
//! * `dml` INSERT, UPDATE, DELETE; `fast` the short way for statements on one row
//!
//! Invariants
//!   X1  Rows kept by sorts, hash tables and materialised results are charged; past [`MEMORY_BYTES_MAX`] the
//!       statement fails with 53200.
//!   X2  The cancel flag is looked at once per batch of every operator, and per row of loops without batches (57014).
//!   X3  A changing statement never meets its own changes: it writes only after it has read, unless what it reads
//!       next cannot contain what it wrote.
//!   X4  A statement that never waits lets others have the thread every few milliseconds: cancel requests, other
//!       clients and the node's own duties must not wait for its end ([`Exec::pause`]).

pub mod batch;
mod dml;
pub mod eval;
mod fast;
mod join;
mod ops;
mod scan;
mod sort;
pub mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isochrone_txn::kv::{KvStore, KvTxn};
use isochrone_types::{Datum, Error, EvalContext, SqlState};
use rustc_hash::FxHashSet;

use crate::face::RowSink;
use crate::plan::expr::{Expr, Kind, SubKind};
use crate::plan::node::{Exprs, Node, Reserve};
use crate::plan::{NodeStats, Plan, PlanKind};
use crate::relation::{CatalogView, Sequences};
pub(crate) use crate::session::kv_error;
use batch::Batch;
use eval::{EvalCx, RowRef, SubAnswer, eval};
use ops::Op;

/// Memory that one execution may hold; more is 53200.
pub const MEMORY_BYTES_MAX: usize = 256 << 20;

/// What an execution works on.
pub struct ExecContext<'a> {
    /// The transaction.
    pub txn: &'a mut dyn KvTxn,
    /// The layers below, for virtual tables.
    pub store: &'a Arc<dyn KvStore>,
    /// The catalog the plan was made with.
    pub catalog: &'a dyn CatalogView,
    /// Settings, session names, clocks.
    pub eval: &'a EvalContext<'a>,
    /// Sequences.
    pub sequences: &'a dyn Sequences,
    /// Set when the client cancels.
    pub cancel: &'a AtomicBool,
}

/// What an execution keeps between calls.
#[derive(Default)]
pub(crate) struct State {
    params: Vec<Datum>,
    outers: Vec<Datum>,
    subs: Vec<Option<SubAnswer>>,
    ctes: Vec<Option<Arc<Vec<Batch>>>>,
    memory: usize,
    stats: Option<Vec<NodeStats>>,
    /// Work since the last pause (X4).
    work: u32,
}

impl State {
    /// Accounts for memory (X1).
    pub fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.memory += bytes;
        if self.memory > MEMORY_BYTES_MAX {
            return Err(Error::new(SqlState::OUT_OF_MEMORY, "out of memory").with_detail(format!(
                "The statement needs more than {} MiB for sorting, hashing or intermediate results.",
                MEMORY_BYTES_MAX >> 20
            )));
        }
        Ok(())
    }

    /// Gives memory back.
    pub fn release(&mut self, bytes: usize) {
        self.memory = self.memory.saturating_sub(bytes);
    }
}

/// Calls a function for some expressions.
type Visit<'v> = dyn Fn(&mut dyn FnMut(&Expr)) + Sync + 'v;

/// What a batch counts in [`Exec::pause`].
pub(crate) const BATCH_WORK: u32 = 32;
/// Work between two turns for others: some milliseconds at most.
const PAUSE_WORK: u32 = 256;

/// What operators see during one call.
pub(crate) struct Exec<'a> {
    pub txn: &'a mut dyn KvTxn,
    pub store: &'a Arc<dyn KvStore>,
    pub catalog: &'a dyn CatalogView,
    pub eval: &'a EvalContext<'a>,
    pub sequences: &'a dyn Sequences,
    pub cancel: &'a AtomicBool,
    pub plan: &'a Plan,
    pub state: &'a mut State,
}

impl Exec<'_> {
    /// For evaluation.
    #[inline]
    pub fn cx(&self) -> EvalCx<'_> {
        EvalCx {
            params: &self.state.params,
            outers: &self.state.outers,
            subs: &self.state.subs,
            eval: self.eval,
            sequences: self.sequences,
        }
    }

    /// X2.
    #[inline]
    pub fn check_cancel(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(SqlState::QUERY_CANCELED, "canceling statement due to user request"));
        }
        Ok(())
    }

    /// X2 and X4, after or before so many rows (a batch counts as [`BATCH_WORK`]).
    #[inline]
    pub async fn pause(&mut self, work: u32) -> Result<(), Error> {
        self.check_cancel()?;
        self.state.work += work;
        if self.state.work >= PAUSE_WORK {
            self.state.work = 0;
            tokio::task::yield_now().await;
            self.check_cancel()?;
        }
        Ok(())
    }

    /// Makes sure that sequences have values for so many rows.
    pub async fn reserve(&mut self, reserve: &Reserve, rows: usize) -> Result<(), Error> {
        for (sequence, n) in reserve {
            self.sequences.reserve(*sequence, n * rows).await?;
        }
        Ok(())
    }

    /// Runs the uncorrelated subqueries that an expression needs and that have not run yet.
    pub async fn ensure_subs(&mut self, visit: &Visit<'_>) -> Result<(), Error> {
        if self.plan.subs.is_empty() {
            return Ok(());
        }
        let mut needed: Vec<(usize, SubKind)> = Vec::new();
        visit(&mut |e| {
            e.visit_own(&mut |e| {
                if let Kind::SubValue(n, kind, _) = &e.kind {
                    needed.push((*n, kind.clone()));
                }
            })
        });
        for (n, kind) in needed {
            if self.state.subs[n].is_none() {
                let answer = self.run_sub(n, &kind).await?;
                self.state.subs[n] = Some(answer);
            }
        }
        Ok(())
    }

    /// Runs a subquery with the outer columns as they are bound now.
    pub async fn run_sub(&mut self, number: usize, kind: &SubKind) -> Result<SubAnswer, Error> {
        let plan = self.plan;
        let sub = &plan.subs[number];
        let mut op = Op::new(&sub.node);
        let mut rows: Vec<Vec<Datum>> = Vec::new();
        let mut charged = 0;
        while let Some(b) = op.next(&sub.node, self).await? {
            if matches!(kind, SubKind::Exists) {
                if !b.is_empty() {
                    return Ok(SubAnswer::Value(Datum::Bool(true)));
                }
                continue;
            }
            charged += b.memory_bytes();
            self.state.charge(b.memory_bytes())?;
            for r in 0..b.len() {
                rows.push(sub.slots.iter().map(|s| b.get(*s, r).clone()).collect());
            }
        }
        Ok(match kind {
            SubKind::Exists => SubAnswer::Value(Datum::Bool(false)),
            SubKind::Scalar => {
                if rows.len() > 1 {
                    return Err(Error::new(
                        SqlState::CARDINALITY_VIOLATION,
                        "more than one row returned by a subquery used as an expression",
                    ));
                }
                self.state.release(charged);
                SubAnswer::Value(rows.pop().and_then(|mut r| r.pop()).unwrap_or_default())
            }
            SubKind::Array(element) => {
                let items = rows.into_iter().filter_map(|mut r| r.pop()).collect();
                SubAnswer::Value(Datum::array(*element, items))
            }
            SubKind::In | SubKind::Quantified(..) => {
                let has_null = rows.iter().any(|r| r.iter().any(Datum::is_null));
                let set: FxHashSet<Vec<Datum>> =
                    rows.iter().filter(|r| !r.iter().any(Datum::is_null)).cloned().collect();
                SubAnswer::Rows { rows, set, has_null }
            }
        })
    }

    /// Evaluates expressions over a row, running the subqueries that they need.
    pub async fn exprs(&mut self, exprs: &Exprs, row: &[Datum]) -> Result<Vec<Datum>, Error> {
        self.reserve(&exprs.reserve, 1).await?;
        self.ensure_subs(&|f| exprs.visit(f)).await?;
        if exprs.items.is_empty() {
            let cx = self.cx();
            return exprs.exprs.iter().map(|e| eval(e, RowRef::Slice(row), &cx)).collect();
        }
        let mut extended = row.to_vec();
        for item in &exprs.items {
            let v = ops::apply_item(item, RowRef::Slice(&extended), self).await?;
            extended.push(v);
        }
        let cx = self.cx();
        exprs.exprs.iter().map(|e| eval(e, RowRef::Slice(&extended), &cx)).collect()
    }
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunOutcome {
    /// Rows given to the sink, or changed.
    pub rows: u64,
    /// Nothing is left; otherwise the row limit was reached.
    pub complete: bool,
}

enum Progress {
    Query(Op),
    /// A changing statement that has not run yet.
    Waiting,
    /// It has: how many rows it changed, and what RETURNING gives.
    Changed {
        rows: u64,
        returning: std::collections::VecDeque<Batch>,
    },
}

/// One execution of a plan.
pub struct Cursor {
    plan: Arc<Plan>,
    state: State,
    progress: Progress,
    /// Rows of the last batch that did not fit the limit.
    rest: Option<Batch>,
    emitted: u64,
    done: bool,
}

impl Cursor {
    /// A fresh execution. `params` have the types of [`Plan::params`]; fewer is 08P01 when one is missed.
    pub fn new(plan: Arc<Plan>, params: Vec<Datum>) -> Cursor {
        let progress = match &plan.kind {
            PlanKind::Query { node, .. } => Progress::Query(Op::new(node)),
            _ => Progress::Waiting,
        };
        let state = State {
            params,
            outers: vec![Datum::Null; plan.outers],
            subs: (0..plan.subs.len()).map(|_| None).collect(),
            ctes: (0..plan.ctes.len()).map(|_| None).collect(),
            memory: 0,
            stats: None,
            work: 0,
        };
        Cursor { plan, state, progress, rest: None, emitted: 0, done: false }
    }

    /// Counts rows, openings and time per node from now on.
    pub fn analyze(&mut self) {
        self.state.stats = Some(vec![NodeStats::default(); self.plan.nodes]);
    }

    /// What [`Cursor::analyze`] counted.
    pub fn stats(&self) -> Option<&[NodeStats]> {
        self.state.stats.as_deref()
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Rows given so far, or rows changed: what the command tag says.
    pub fn rows(&self) -> u64 {
        match &self.progress {
            Progress::Changed { rows, .. } => *rows,
            _ => self.emitted,
        }
    }

    /// The next batch of result columns; `None` at the end. A changing statement runs to its end in the first call.
    pub async fn next_batch(&mut self, context: &mut ExecContext<'_>) -> Result<Option<Batch>, Error> {
        if let Some(b) = self.rest.take() {
            self.emitted += b.len() as u64;
            return Ok(Some(b));
        }
        if self.done {
            return Ok(None);
        }
        let plan = self.plan.clone();
        let mut exec = Exec {
            txn: &mut *context.txn,
            store: context.store,
            catalog: context.catalog,
            eval: context.eval,
            sequences: context.sequences,
            cancel: context.cancel,
            plan: &plan,
            state: &mut self.state,
        };
        exec.check_cancel()?;
        let next = match &mut self.progress {
            Progress::Query(op) => {
                let PlanKind::Query { node, slots } = &plan.kind else {
                    return Err(Error::internal("a query's cursor has a query's plan"));
                };
                op.next(node, &mut exec).await?.map(|b| b.select(slots))
            }
            Progress::Changed { returning, .. } => returning.pop_front(),
            Progress::Waiting => {
                let (rows, mut returning) = dml::run(&plan, &mut exec).await?;
                let first = returning.pop_front();
                self.progress = Progress::Changed { rows, returning };
                first
            }
        };
        match &next {
            Some(b) => self.emitted += b.len() as u64,
            None => self.done = true,
        }
        Ok(next)
    }

    /// Gives rows to a sink, at most `rows_max` (0: all).
    pub async fn run_to_sink(
        &mut self,
        context: &mut ExecContext<'_>,
        sink: &mut dyn RowSink,
        rows_max: u64,
    ) -> Result<RunOutcome, Error> {
        let mut given = 0u64;
        let mut row: Vec<Datum> = Vec::new();
        loop {
            let Some(mut batch) = self.next_batch(context).await? else {
                let rows = match &self.progress {
                    Progress::Changed { rows, .. } => *rows,
                    _ => given,
                };
                return Ok(RunOutcome { rows, complete: true });
            };
            if rows_max > 0 && given + batch.len() as u64 > rows_max {
                let fits = (rows_max - given) as usize;
                let mut rest = batch.clone();
                rest.slice(fits, batch.len());
                batch.slice(0, fits);
                self.emitted -= rest.len() as u64;
                self.rest = Some(rest);
            }
            for r in 0..batch.len() {
                row.clear();
                row.extend((0..batch.width()).map(|c| batch.get(c, r).clone()));
                sink.row(&row)?;
            }
            given += batch.len() as u64;
            sink.ready().await?;
            if rows_max > 0 && given >= rows_max {
                return Ok(RunOutcome { rows: given, complete: false });
            }
        }
    }
}

/// Runs a plan to its end. The short way is taken where there is one.
pub async fn run_to_sink(
    plan: &Arc<Plan>,
    params: Vec<Datum>,
    context: &mut ExecContext<'_>,
    sink: &mut dyn RowSink,
) -> Result<RunOutcome, Error> {
    if let Some(outcome) = fast::run(plan, &params, context, sink).await? {
        return Ok(outcome);
    }
    Cursor::new(plan.clone(), params).run_to_sink(context, sink, 0).await
}

/// Collects the rows of a node, charged.
pub(crate) async fn collect(node: &Node, exec: &mut Exec<'_>) -> Result<Vec<Batch>, Error> {
    let mut op = Op::new(node);
    let mut out = Vec::new();
    while let Some(b) = op.next(node, exec).await? {
        exec.state.charge(b.memory_bytes())?;
        out.push(b);
    }
    Ok(out)
}
