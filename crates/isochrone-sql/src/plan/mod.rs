//! Planning: from a bound statement to an immutable [`Plan`] that is shared by every execution.
//!
//! * [`expr`], [`rel`] what the binder makes
//! * `build` relational trees to [`node`]s, predicates pushed down; `join` order and method of joins; `access` keys
//!   and ranges of indexes from predicates
//! * `dml` INSERT, UPDATE, DELETE
//! * `explain` plans as text
//!
//! Statistics are one number per table, its row estimate; selectivities are PostgreSQL's defaults in spirit.
//! Missing: column statistics, decorrelation of subqueries, merge joins, parallel plans, evaluation at the shards.

mod access;
mod build;
mod dml;
mod explain;
pub mod expr;
mod join;
pub mod node;
pub mod rel;

use std::sync::Arc;

use isochrone_types::{Error, Settings, Type};
use sqlparser::ast;

use crate::bind::{Binder, Bound};
use crate::face::OutputColumn;
use crate::relation::CatalogView;

pub use dml::{ConflictAction, ConflictPlan, DeletePlan, InsertColumn, InsertPlan, UpdatePlan};
pub use explain::{NodeStats, explain, explain_analyze};
use node::{Node, SubPlan};

/// What a plan does at the top.
#[derive(Debug)]
pub enum PlanKind {
    /// Returns rows: these slots of the node.
    Query {
        /// The query.
        node: Box<Node>,
        /// Output.
        slots: Vec<usize>,
    },
    /// INSERT.
    Insert(Box<InsertPlan>),
    /// UPDATE.
    Update(Box<UpdatePlan>),
    /// DELETE.
    Delete(Box<DeletePlan>),
}

/// A prepared statement: immutable, shared by all its executions.
#[derive(Debug)]
pub struct Plan {
    /// What it does.
    pub kind: PlanKind,
    params: Vec<Type>,
    columns: Option<Vec<OutputColumn>>,
    /// WITH queries by number; `None` for those nobody reads.
    pub ctes: Vec<Option<Node>>,
    /// Subqueries of expressions by number.
    pub subs: Vec<SubPlan>,
    /// How many columns of enclosing queries subqueries refer to.
    pub outers: usize,
    /// How many nodes there are.
    pub nodes: usize,
    read_only: bool,
    settings_dependent: bool,
    tables: Vec<u32>,
    /// Names of columns by id, for EXPLAIN.
    names: Vec<Arc<str>>,
}

impl Plan {
    /// Types of the parameters.
    pub fn params(&self) -> &[Type] {
        &self.params
    }

    /// Columns of the result; `None` for statements that return none.
    pub fn columns(&self) -> Option<&[OutputColumn]> {
        self.columns.as_deref()
    }

    /// Neither writes nor locks (sequences do not count).
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// A literal was read with the settings of the planning session (time zone, date order, or `now`): the plan must
    /// not be used under others, nor kept for another statement where it could be.
    pub fn depends_on_settings(&self) -> bool {
        self.settings_dependent
    }

    /// Oids of the tables it touches.
    pub fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// The first word of the command tag.
    pub fn tag(&self) -> &'static str {
        match self.kind {
            PlanKind::Query { .. } => "SELECT",
            PlanKind::Insert(_) => "INSERT",
            PlanKind::Update(_) => "UPDATE",
            PlanKind::Delete(_) => "DELETE",
        }
    }

    /// The command tag after so many rows.
    pub fn command_tag(&self, rows: u64) -> String {
        match self.kind {
            PlanKind::Insert(_) => format!("INSERT 0 {rows}"),
            _ => format!("{} {rows}", self.tag()),
        }
    }
}

/// Binds and plans a query or INSERT, UPDATE, DELETE. `source` is the text that the tree's locations refer to (the
/// whole script); `param_types` what the client said of its parameters.
pub fn prepare(
    statement: &ast::Statement,
    source: &str,
    catalog: &dyn CatalogView,
    param_types: &[Option<Type>],
    settings: &Settings,
) -> Result<Arc<Plan>, Error> {
    let mut binder = Binder::new(catalog, settings, source, param_types);
    let bound = binder.statement(statement)?;
    let mut planner = build::Planner::new(&mut binder);
    planner.collect_used(&bound);
    for id in 0..planner.cte_count() {
        planner.plan_cte(id)?;
    }
    let mut tables: Vec<u32> = planner.binder.instances.iter().map(|(t, _)| t.oid).collect();
    tables.sort_unstable();
    tables.dedup();
    let (kind, columns, read_only) = match bound {
        Bound::Query(q) => {
            let locks = {
                let mut locks = false;
                let mut look = |r: &rel::Rel| locks |= matches!(r, rel::Rel::Lock { .. });
                q.rel.visit_rels(&mut look);
                for c in &planner.binder.ctes {
                    c.rel.visit_rels(&mut look);
                }
                locks
            };
            let columns = q
                .out
                .iter()
                .map(|o| {
                    let info = &planner.binder.cols[o.col as usize];
                    OutputColumn {
                        name: o.name.clone(),
                        ty: o.ty,
                        table_oid: info.table_oid,
                        attnum: info.attnum,
                    }
                })
                .collect();
            let node = planner.plan(q.rel, Vec::new(), &build::Hint::default())?;
            let slots = q.out.iter().map(|o| build::slot(&node.cols, o.col)).collect::<Result<_, _>>()?;
            (PlanKind::Query { node: Box::new(node), slots }, Some(columns), !locks)
        }
        Bound::Insert(i) => {
            let columns = dml::returning_columns(&planner, i.returning.as_deref());
            (PlanKind::Insert(Box::new(planner.insert(*i)?)), columns, false)
        }
        Bound::Update(u) => {
            let columns = dml::returning_columns(&planner, u.returning.as_deref());
            (PlanKind::Update(Box::new(planner.update(*u)?)), columns, false)
        }
        Bound::Delete(d) => {
            let columns = dml::returning_columns(&planner, d.returning.as_deref());
            (PlanKind::Delete(Box::new(planner.delete(*d)?)), columns, false)
        }
    };
    let build::Parts { ctes, subs, outers, nodes } = planner.finish();
    Ok(Arc::new(Plan {
        kind,
        params: binder.param_types(),
        columns,
        ctes,
        subs,
        outers,
        nodes,
        read_only,
        settings_dependent: binder.settings_dependent,
        tables,
        names: binder.cols.iter().map(|c| c.name.clone()).collect(),
    }))
}
