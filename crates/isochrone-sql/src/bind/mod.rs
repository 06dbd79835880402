//! The binder: from the parser's tree to typed expressions and relational trees. Every name, type and meaning is
//! settled here, once; nothing later looks at names or infers types.
//!
//! * [`expr`](self) operands and operators, coercion, functions, subqueries
//! * `query` SELECT, set operations, WITH, grouping, ordering; `from` the FROM clause
//! * `dml` INSERT, UPDATE, DELETE
//! * `types` type names
//!
//! Invariants
//!   B1  What leaves the binder has no `unknown` type: literals and parameters got one from their context, or text.
//!   B2  A column id is unique in the statement ([`crate::plan::rel`] R1).
//!
//! What is not supported is 0A000 with its name. Missing: window functions, LATERAL, recursive WITH, grouping sets,
//! composite values, aggregates of an outer query's columns.

mod dml;
mod expr;
mod from;
mod function;
mod query;
pub mod types;

use std::sync::Arc;

use isochrone_types::{Datum, Error, EvalContext, Settings, SqlState, Type};
use sqlparser::ast;
use sqlparser::tokenizer::Span;

use crate::descriptor::TableDescriptor;
use crate::parse::Places;
use crate::plan::expr::{ColId, Expr};
use crate::plan::rel::{Aggregate, OutCol, Rel};
use crate::relation::CatalogView;

pub use dml::{BoundConflict, BoundConflictAction, BoundDelete, BoundInsert, BoundUpdate};

/// A bound statement.
pub enum Bound {
    /// SELECT, VALUES, TABLE.
    Query(BoundQuery),
    /// INSERT.
    Insert(Box<BoundInsert>),
    /// UPDATE.
    Update(Box<BoundUpdate>),
    /// DELETE.
    Delete(Box<BoundDelete>),
}

/// A query and its columns.
pub struct BoundQuery {
    /// What to compute.
    pub rel: Rel,
    /// The columns, in order.
    pub out: Vec<OutCol>,
}

/// Where a column comes from.
#[derive(Clone, Debug)]
pub struct ColInfo {
    /// Name.
    pub name: Arc<str>,
    /// Type.
    pub ty: Type,
    /// Oid of its table, or 0.
    pub table_oid: u32,
    /// Its number there, or 0.
    pub attnum: i16,
    /// Which occurrence of a table in the statement.
    pub instance: Option<usize>,
}

/// A WITH query.
pub struct CteDef {
    /// Name.
    pub name: String,
    /// The query.
    pub rel: Rel,
    /// Its columns.
    pub out: Vec<OutCol>,
}

/// A name that expressions may use.
#[derive(Clone)]
pub(crate) struct Entry {
    pub qualifier: Option<Arc<str>>,
    pub name: Arc<str>,
    pub col: ColId,
    /// Found without a qualifier, and part of `*`.
    pub bare: bool,
    /// Part of `t.*` and `*`.
    pub visible: bool,
}

/// The names and aggregates of one query level.
#[derive(Default)]
pub(crate) struct Scope {
    pub entries: Vec<Entry>,
    pub aggregates: Vec<(ColId, Aggregate)>,
    /// Why aggregates are not allowed here.
    pub no_aggregates: Option<&'static str>,
    pub in_aggregate: bool,
    /// Functions returning sets that the select list called.
    pub set_functions: Vec<Rel>,
    pub set_functions_allowed: bool,
}

/// Binds one statement.
pub struct Binder<'a> {
    pub(crate) catalog: &'a dyn CatalogView,
    pub(crate) settings: &'a Settings,
    pub(crate) places: Places<'a>,
    pub(crate) params: Vec<Option<Type>>,
    /// By column id.
    pub cols: Vec<ColInfo>,
    pub(crate) scopes: Vec<Scope>,
    /// All WITH queries, by number.
    pub ctes: Vec<CteDef>,
    /// Numbers of those in sight, innermost last.
    pub(crate) cte_scope: Vec<usize>,
    /// Tables by instance: descriptor and column ids.
    pub(crate) instances: Vec<(Arc<TableDescriptor>, Vec<ColId>)>,
    /// A literal was read whose meaning depends on settings or the time.
    pub settings_dependent: bool,
}

impl<'a> Binder<'a> {
    /// A binder for a statement whose tree's locations are those of `source`.
    pub fn new(
        catalog: &'a dyn CatalogView,
        settings: &'a Settings,
        source: &'a str,
        param_types: &[Option<Type>],
    ) -> Binder<'a> {
        Binder {
            catalog,
            settings,
            places: Places::new(source),
            params: param_types.iter().map(|t| t.filter(|t| *t != Type::Unknown)).collect(),
            cols: Vec::new(),
            scopes: Vec::new(),
            ctes: Vec::new(),
            cte_scope: Vec::new(),
            instances: Vec::new(),
            settings_dependent: false,
        }
    }

    /// Binds a statement: a query or INSERT, UPDATE, DELETE. Others belong to the session.
    pub fn statement(&mut self, statement: &ast::Statement) -> Result<Bound, Error> {
        match statement {
            ast::Statement::Query(q) => match q.body.as_ref() {
                ast::SetExpr::Insert(s) | ast::SetExpr::Update(s) | ast::SetExpr::Delete(s) => {
                    self.with_clause(q.with.as_ref())?;
                    self.statement(s)
                }
                _ => Ok(Bound::Query(self.query(q, false)?)),
            },
            ast::Statement::Insert(i) => Ok(Bound::Insert(Box::new(self.insert(i)?))),
            ast::Statement::Update(u) => Ok(Bound::Update(Box::new(self.update(u)?))),
            ast::Statement::Delete(d) => Ok(Bound::Delete(Box::new(self.delete(d)?))),
            _ => Err(Error::unsupported("this statement")),
        }
    }

    /// The parameters' types: those nothing decided are text.
    pub fn param_types(&self) -> Vec<Type> {
        self.params.iter().map(|t| t.unwrap_or(Type::Text)).collect()
    }

    pub(crate) fn new_col(&mut self, name: &str, ty: Type) -> ColId {
        self.cols.push(ColInfo { name: name.into(), ty, table_oid: 0, attnum: 0, instance: None });
        (self.cols.len() - 1) as ColId
    }

    pub(crate) fn col_expr(&self, col: ColId) -> Expr {
        Expr::col(col, self.cols[col as usize].ty)
    }

    /// Column ids for a table's columns.
    pub(crate) fn table_cols(&mut self, table: &Arc<TableDescriptor>) -> Vec<ColId> {
        let instance = self.instances.len();
        let cols: Vec<ColId> = table
            .columns
            .iter()
            .map(|c| {
                self.cols.push(ColInfo {
                    name: c.name.as_str().into(),
                    ty: c.ty,
                    table_oid: table.oid,
                    attnum: c.id as i16,
                    instance: Some(instance),
                });
                (self.cols.len() - 1) as ColId
            })
            .collect();
        self.instances.push((table.clone(), cols.clone()));
        cols
    }

    /// Entries for a table's columns under a name.
    pub(crate) fn table_entries(table: &TableDescriptor, cols: &[ColId], alias: &Arc<str>) -> Vec<Entry> {
        table
            .columns
            .iter()
            .zip(cols)
            .map(|(c, &col)| Entry {
                qualifier: Some(alias.clone()),
                name: c.name.as_str().into(),
                col,
                bare: true,
                visible: !c.hidden,
            })
            .collect()
    }

    pub(crate) fn at(&self, error: Error, span: Span) -> Error {
        match self.places.position(span.start) {
            Some(p) => error.with_position(p),
            None => error,
        }
    }

    pub(crate) fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("a scope is open while expressions are bound")
    }

    /// Finds a column by name, from the innermost query outwards.
    pub(crate) fn resolve(&self, qualifier: Option<&str>, name: &str, span: Span) -> Result<ColId, Error> {
        let mut qualifier_seen = false;
        for scope in self.scopes.iter().rev() {
            let mut found: Option<ColId> = None;
            for e in &scope.entries {
                let fits = match qualifier {
                    None => e.bare,
                    Some(q) => {
                        let same = e.qualifier.as_deref() == Some(q);
                        qualifier_seen |= same;
                        same
                    }
                };
                if fits && &*e.name == name {
                    if found.is_some_and(|f| f != e.col) {
                        let error = Error::new(
                            SqlState::AMBIGUOUS_COLUMN,
                            format!("column reference \"{name}\" is ambiguous"),
                        );
                        return Err(self.at(error, span));
                    }
                    found = Some(e.col);
                }
            }
            if let Some(col) = found {
                return Ok(col);
            }
        }
        let error = match qualifier {
            Some(q) if !qualifier_seen => {
                let known = self.scopes.iter().any(|s| !s.entries.is_empty());
                let _ = known;
                Error::new(SqlState::UNDEFINED_TABLE, format!("missing FROM-clause entry for table \"{q}\""))
            }
            Some(q) => Error::new(SqlState::UNDEFINED_COLUMN, format!("column {q}.{name} does not exist")),
            None => Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")),
        };
        Err(self.at(error, span))
    }

    /// Runs `f` with a context for folding.
    pub(crate) fn fold<R>(&self, f: impl FnOnce(&EvalContext<'_>) -> R) -> R {
        EvalContext::with_settings(self.settings, f)
    }

    /// Binds a constant expression text over a table's columns (DEFAULT, CHECK).
    pub(crate) fn stored_expr(&mut self, text: &str, entries: Vec<Entry>) -> Result<Expr, Error> {
        let ast = crate::parse::parse_expression(text)?;
        let scopes = std::mem::take(&mut self.scopes);
        let places = std::mem::replace(&mut self.places, Places::new(""));
        self.scopes.push(Scope { entries, no_aggregates: Some("stored expressions"), ..Scope::default() });
        let bound = self.expr(&ast);
        self.scopes = scopes;
        self.places = places;
        bound
    }

    /// The default of a column, as an expression of its type; NULL without one.
    pub(crate) fn default_of(&mut self, table: &TableDescriptor, position: usize) -> Result<Expr, Error> {
        let column = &table.columns[position];
        match &column.default {
            None => Ok(Expr::constant(Datum::Null, column.ty)),
            Some(text) => {
                let e = self.stored_expr(text, Vec::new())?;
                self.assign(e, column.ty, &column.name)
            }
        }
    }
}

/// An identifier as PostgreSQL folds it.
pub fn ident(i: &ast::Ident) -> String {
    if i.quote_style.is_some() { i.value.clone() } else { i.value.to_lowercase() }
}

/// A name's parts, folded. 0A000 for what is no plain name.
pub fn name_parts(name: &ast::ObjectName) -> Result<Vec<String>, Error> {
    name.0
        .iter()
        .map(|p| match p {
            ast::ObjectNamePart::Identifier(i) => Ok(ident(i)),
            ast::ObjectNamePart::Function(_) => Err(Error::unsupported("a function as a name")),
        })
        .collect()
}

/// Schema and name; a database name in front is dropped.
pub fn qualified_name(name: &ast::ObjectName) -> Result<(Option<String>, String), Error> {
    let mut parts = name_parts(name)?;
    let last = parts.pop().ok_or_else(|| Error::syntax("empty name"))?;
    if parts.len() > 2 {
        return Err(Error::syntax(format!("improper qualified name (too many dotted names): {name}")));
    }
    Ok((parts.pop(), last))
}
