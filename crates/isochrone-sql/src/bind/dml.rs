//! Binding of INSERT, UPDATE and DELETE.

use std::sync::Arc;

use isochrone_types::{Error, SqlState, Type};
use sqlparser::ast::{self, AssignmentTarget, FromTable, OnConflictAction, OnInsert, SetExpr, TableObject};

use super::from::check_aliases;
use super::{Binder, Entry, Scope, ident, name_parts, qualified_name};
use crate::descriptor::TableDescriptor;
use crate::plan::expr::{ColId, Expr};
use crate::plan::rel::{JoinKind, Rel};
use crate::relation::Relation;

/// INSERT. Expressions over the new row refer to `cols`.
pub struct BoundInsert {
    /// Into what.
    pub table: Arc<TableDescriptor>,
    /// A column id for each of its columns: the new row.
    pub cols: Vec<ColId>,
    /// Where rows come from.
    pub source: Rel,
    /// Its columns, already of the targets' types.
    pub source_cols: Vec<ColId>,
    /// Positions of the columns they go to.
    pub targets: Vec<usize>,
    /// Defaults for the other columns, the row id among them: position and value.
    pub defaults: Vec<(usize, Expr)>,
    /// CHECK constraints.
    pub checks: Vec<(String, Expr)>,
    /// ON CONFLICT.
    pub conflict: Option<BoundConflict>,
    /// RETURNING.
    pub returning: Option<Vec<(String, Expr)>>,
}

/// ON CONFLICT.
pub struct BoundConflict {
    /// The unique index it speaks of: 0 the primary key, n the n-th secondary index; `None`: any.
    pub index: Option<usize>,
    /// What to do.
    pub action: BoundConflictAction,
}

/// DO NOTHING or DO UPDATE.
pub enum BoundConflictAction {
    /// Keeps the old row.
    Nothing,
    /// Changes the old row.
    Update {
        /// Column ids of the proposed row (`excluded`); the old row has the statement's `cols`.
        excluded: Vec<ColId>,
        /// Positions and values.
        set: Vec<(usize, Expr)>,
        /// WHERE.
        filter: Option<Expr>,
    },
}

/// UPDATE. `rel` makes the old row's columns (`cols`) and those of FROM.
pub struct BoundUpdate {
    /// What.
    pub table: Arc<TableDescriptor>,
    /// Column ids of the old row.
    pub cols: Vec<ColId>,
    /// Rows to change.
    pub rel: Rel,
    /// What made them qualify: evaluated again when a row has changed.
    pub predicates: Vec<Expr>,
    /// Positions and values.
    pub set: Vec<(usize, Expr)>,
    /// CHECK constraints over `cols`, which then stand for the new row.
    pub checks: Vec<(String, Expr)>,
    /// RETURNING; `cols` stand for the new row.
    pub returning: Option<Vec<(String, Expr)>>,
}

/// DELETE.
pub struct BoundDelete {
    /// From what.
    pub table: Arc<TableDescriptor>,
    /// Column ids of the old row.
    pub cols: Vec<ColId>,
    /// Rows to delete.
    pub rel: Rel,
    /// What made them qualify.
    pub predicates: Vec<Expr>,
    /// RETURNING.
    pub returning: Option<Vec<(String, Expr)>>,
}

/// A table to change, its columns, its name in the statement.
type Target = (Arc<TableDescriptor>, Vec<ColId>, Arc<str>);

impl Binder<'_> {
    fn target(&mut self, name: &ast::ObjectName) -> Result<Arc<TableDescriptor>, Error> {
        let (schema, table) = qualified_name(name)?;
        match self.catalog.relation(schema.as_deref(), &table) {
            Some(Relation::Table(t)) => Ok(t),
            Some(Relation::Virtual(_)) => Err(Error::new(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied: \"{table}\" is a system catalog"),
            )),
            None => {
                let error =
                    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{table}\" does not exist"));
                Err(self.at(error, sqlparser::ast::Spanned::span(name)))
            }
        }
    }

    fn position(&self, table: &TableDescriptor, name: &ast::Ident) -> Result<usize, Error> {
        let n = ident(name);
        table.position_of(&n).filter(|&p| !table.columns[p].hidden).ok_or_else(|| {
            let error = Error::new(
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{n}\" of relation \"{}\" does not exist", table.name),
            );
            self.at(error, name.span)
        })
    }

    fn checks(&mut self, table: &TableDescriptor, cols: &[ColId]) -> Result<Vec<(String, Expr)>, Error> {
        let alias: Arc<str> = table.name.as_str().into();
        let mut out = Vec::new();
        for c in &table.checks {
            let entries = Self::table_entries(table, cols, &alias);
            let e = self.stored_expr(&c.expr, entries)?;
            out.push((c.name.clone(), self.coerce(e, Type::Bool)?));
        }
        Ok(out)
    }

    fn returning(
        &mut self,
        items: Option<&Vec<ast::SelectItem>>,
        entries: Vec<Entry>,
    ) -> Result<Option<Vec<(String, Expr)>>, Error> {
        let Some(items) = items else { return Ok(None) };
        self.scopes.push(Scope { entries, no_aggregates: Some("RETURNING"), ..Scope::default() });
        let bound = self.select_items(items, false);
        self.scopes.pop();
        bound.map(Some)
    }

    pub(super) fn insert(&mut self, i: &ast::Insert) -> Result<BoundInsert, Error> {
        if i.or.is_some() || i.ignore || i.overwrite || i.replace_into || i.partitioned.is_some() {
            return Err(Error::unsupported("this form of INSERT"));
        }
        if i.output.is_some() || i.insert_alias.is_some() || !i.assignments.is_empty() {
            return Err(Error::unsupported("this form of INSERT"));
        }
        let TableObject::TableName(name) = &i.table else {
            return Err(Error::unsupported("INSERT into this"));
        };
        let table = self.target(name)?;
        let cols = self.table_cols(&table);
        let mut targets: Vec<usize> = Vec::new();
        for c in &i.columns {
            let [ast::ObjectNamePart::Identifier(id)] = c.0.as_slice() else {
                return Err(Error::unsupported("a qualified column in INSERT"));
            };
            let p = self.position(&table, id)?;
            if targets.contains(&p) {
                return Err(Error::new(
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{}\" specified more than once", table.columns[p].name),
                ));
            }
            targets.push(p);
        }
        let explicit = !targets.is_empty();
        if !explicit {
            targets = (0..table.columns.len()).filter(|&p| !table.columns[p].hidden).collect();
        }
        let (source, source_cols) = match &i.source {
            None => {
                targets.clear();
                (Rel::One, Vec::new())
            }
            Some(q) => self.insert_source(q, &table, &mut targets, explicit)?,
        };
        let mut defaults = Vec::new();
        for p in 0..table.columns.len() {
            if !targets.contains(&p) {
                defaults.push((p, self.default_of(&table, p)?));
            }
        }
        let alias: Arc<str> = match &i.table_alias {
            Some(a) => ident(&a.alias).into(),
            None => table.name.as_str().into(),
        };
        let checks = self.checks(&table, &cols)?;
        let conflict = match &i.on {
            None => None,
            Some(OnInsert::OnConflict(c)) => Some(self.on_conflict(c, &table, &cols, &alias)?),
            Some(_) => return Err(Error::unsupported("ON DUPLICATE KEY UPDATE")),
        };
        let returning = self.returning(i.returning.as_ref(), Self::table_entries(&table, &cols, &alias))?;
        Ok(BoundInsert { table, cols, source, source_cols, targets, defaults, checks, conflict, returning })
    }

    fn insert_source(
        &mut self,
        q: &ast::Query,
        table: &Arc<TableDescriptor>,
        targets: &mut Vec<usize>,
        explicit: bool,
    ) -> Result<(Rel, Vec<ColId>), Error> {
        let too_many = |n: usize, targets: usize| {
            Error::syntax(if n > targets {
                "INSERT has more expressions than target columns"
            } else {
                "INSERT has more target columns than expressions"
            })
        };
        let plain = q.with.is_none() && q.order_by.is_none() && q.limit_clause.is_none() && q.fetch.is_none();
        if let (SetExpr::Values(v), true) = (q.body.as_ref(), plain) {
            let width = v.rows.first().map_or(0, |r| r.content.len());
            if v.rows.iter().any(|r| r.content.len() != width) {
                return Err(Error::syntax("VALUES lists must all be the same length"));
            }
            if width > targets.len() || (explicit && width < targets.len()) {
                return Err(too_many(width, targets.len()));
            }
            targets.truncate(width);
            self.scopes.push(Scope { no_aggregates: Some("VALUES"), ..Scope::default() });
            let rows = self.insert_rows(v, table, targets);
            self.scopes.pop();
            let rows = rows?;
            let cols = targets
                .iter()
                .map(|&p| self.new_col(&table.columns[p].name, table.columns[p].ty))
                .collect::<Vec<_>>();
            return Ok((Rel::Values { cols: cols.clone(), rows }, cols));
        }
        let mut query = self.query(q, true)?;
        let width = query.out.len();
        if width > targets.len() || (explicit && width < targets.len()) {
            return Err(too_many(width, targets.len()));
        }
        targets.truncate(width);
        let mut exprs = Vec::new();
        let mut cols = Vec::new();
        for (o, &p) in query.out.iter_mut().zip(targets.iter()) {
            let column = &table.columns[p];
            if o.ty == Type::Unknown {
                self.retype(&mut query.rel, o.col, column.ty.base())?;
                o.ty = column.ty.base();
            }
            let e = self.assign(Expr::col(o.col, o.ty), column.ty, &column.name)?;
            let col = self.new_col(&column.name, column.ty);
            exprs.push((col, e));
            cols.push(col);
        }
        Ok((Rel::Project { input: Box::new(query.rel), exprs }, cols))
    }

    fn insert_rows(
        &mut self,
        v: &ast::Values,
        table: &Arc<TableDescriptor>,
        targets: &[usize],
    ) -> Result<Vec<Vec<Expr>>, Error> {
        let mut rows = Vec::with_capacity(v.rows.len());
        for r in &v.rows {
            let mut row = Vec::with_capacity(targets.len());
            for (e, &p) in r.content.iter().zip(targets) {
                row.push(self.value_or_default(e, table, p)?);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// An expression assigned to a column, or DEFAULT.
    fn value_or_default(
        &mut self,
        e: &ast::Expr,
        table: &Arc<TableDescriptor>,
        p: usize,
    ) -> Result<Expr, Error> {
        if let ast::Expr::Identifier(i) = e
            && i.quote_style.is_none()
            && i.value.eq_ignore_ascii_case("default")
        {
            return self.default_of(table, p);
        }
        let column = &table.columns[p];
        let bound = self.expr(e)?;
        self.assign(bound, column.ty, &column.name)
            .map_err(|err| self.at(err, sqlparser::ast::Spanned::span(e)))
    }

    fn on_conflict(
        &mut self,
        c: &ast::OnConflict,
        table: &Arc<TableDescriptor>,
        cols: &[ColId],
        alias: &Arc<str>,
    ) -> Result<BoundConflict, Error> {
        let index = match &c.conflict_target {
            None => None,
            Some(ast::ConflictTarget::Columns(names)) => {
                let mut wanted = Vec::new();
                for n in names {
                    let p = self.position(table, n)?;
                    wanted.push(table.columns[p].id);
                }
                wanted.sort_unstable();
                wanted.dedup();
                let matches = |columns: &[(u32, bool)]| {
                    let mut ids: Vec<u32> = columns.iter().map(|(id, _)| *id).collect();
                    ids.sort_unstable();
                    ids == wanted
                };
                let found = if !table.has_row_id() && matches(&table.primary.columns) {
                    Some(0)
                } else {
                    table.indexes.iter().position(|i| i.unique && matches(&i.columns)).map(|i| i + 1)
                };
                Some(found.ok_or_else(|| {
                    Error::new(
                        SqlState::INVALID_COLUMN_REFERENCE,
                        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                    )
                })?)
            }
            Some(ast::ConflictTarget::OnConstraint(name)) => {
                let name = name_parts(name)?.pop().unwrap_or_default();
                let found = if table.primary.name == name && !table.has_row_id() {
                    Some(0)
                } else {
                    table.indexes.iter().position(|i| i.unique && i.name == name).map(|i| i + 1)
                };
                Some(found.ok_or_else(|| {
                    Error::new(
                        SqlState::UNDEFINED_OBJECT,
                        format!("constraint \"{name}\" for table \"{}\" does not exist", table.name),
                    )
                })?)
            }
        };
        let action = match &c.action {
            OnConflictAction::DoNothing => BoundConflictAction::Nothing,
            OnConflictAction::DoUpdate(u) => {
                if index.is_none() {
                    return Err(Error::syntax(
                        "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                    ));
                }
                let excluded = self.table_cols(table);
                let mut entries = Self::table_entries(table, cols, alias);
                entries.extend(Self::table_entries(table, &excluded, &"excluded".into()).into_iter().map(
                    |mut e| {
                        e.bare = false;
                        e
                    },
                ));
                self.scopes.push(Scope { entries, no_aggregates: Some("UPDATE"), ..Scope::default() });
                let set = self.assignments(&u.assignments, table);
                let filter = match &u.selection {
                    Some(f) => self.condition(f, "WHERE").map(Some),
                    None => Ok(None),
                };
                self.scopes.pop();
                BoundConflictAction::Update { excluded, set: set?, filter: filter? }
            }
        };
        Ok(BoundConflict { index, action })
    }

    fn assignments(
        &mut self,
        list: &[ast::Assignment],
        table: &Arc<TableDescriptor>,
    ) -> Result<Vec<(usize, Expr)>, Error> {
        let mut set: Vec<(usize, Expr)> = Vec::new();
        let column = |name: &ast::ObjectName| -> Result<ast::Ident, Error> {
            match name.0.as_slice() {
                [ast::ObjectNamePart::Identifier(i)] => Ok(i.clone()),
                _ => Err(Error::unsupported("a qualified column in SET")),
            }
        };
        for a in list {
            let pairs: Vec<(ast::Ident, &ast::Expr)> = match &a.target {
                AssignmentTarget::ColumnName(name) => vec![(column(name)?, &a.value)],
                AssignmentTarget::Tuple(names) => {
                    let values: Vec<&ast::Expr> = match &a.value {
                        ast::Expr::Tuple(values) => values.iter().collect(),
                        ast::Expr::Nested(v) if names.len() == 1 => vec![v],
                        ast::Expr::Function(f) if f.name.to_string().eq_ignore_ascii_case("row") => {
                            match &f.args {
                                ast::FunctionArguments::List(l) => {
                                    l.args.iter().map(super::function::argument).collect::<Result<_, _>>()?
                                }
                                _ => Vec::new(),
                            }
                        }
                        _ => return Err(Error::unsupported("a subquery as the source of several columns")),
                    };
                    if values.len() != names.len() {
                        return Err(Error::syntax("number of columns does not match number of values"));
                    }
                    names
                        .iter()
                        .map(&column)
                        .collect::<Result<Vec<_>, _>>()?
                        .into_iter()
                        .zip(values)
                        .collect()
                }
            };
            for (name, value) in pairs {
                let p = self.position(table, &name)?;
                if set.iter().any(|(q, _)| *q == p) {
                    return Err(Error::syntax(format!(
                        "multiple assignments to same column \"{}\"",
                        table.columns[p].name
                    )));
                }
                let e = self.value_or_default(value, table, p)?;
                set.push((p, e));
            }
        }
        Ok(set)
    }

    /// The table to change, its alias, and the relation of it alone.
    fn changed(&mut self, t: &ast::TableWithJoins) -> Result<Target, Error> {
        let ast::TableFactor::Table { name, alias, args: None, .. } = &t.relation else {
            return Err(Error::unsupported("changing this"));
        };
        if !t.joins.is_empty() {
            return Err(Error::syntax("a join is not allowed here"));
        }
        let table = self.target(name)?;
        let cols = self.table_cols(&table);
        let alias: Arc<str> =
            alias.as_ref().map_or_else(|| table.name.as_str().into(), |a| ident(&a.name).into());
        Ok((table, cols, alias))
    }

    fn changed_rows(
        &mut self,
        target: (&Arc<TableDescriptor>, &[ColId], &Arc<str>),
        others: Option<&[ast::TableWithJoins]>,
        selection: Option<&ast::Expr>,
    ) -> Result<(Rel, Vec<Expr>), Error> {
        let (table, cols, alias) = target;
        let mut rel = Rel::Table { table: table.clone(), cols: cols.to_vec(), alias: alias.clone() };
        let mut entries = Self::table_entries(table, cols, alias);
        if let Some(others) = others {
            let (right, more) = self.bind_from(others)?;
            check_aliases(&entries, &more)?;
            entries.extend(more);
            rel = Rel::Join {
                kind: JoinKind::Inner,
                left: Box::new(rel),
                right: Box::new(right),
                on: Vec::new(),
            };
        }
        self.scope().entries = entries;
        let mut predicates = Vec::new();
        if let Some(w) = selection {
            self.condition(w, "WHERE")?.into_conjuncts(&mut predicates);
        }
        if !predicates.is_empty() {
            rel = Rel::Filter { input: Box::new(rel), predicates: predicates.clone() };
        }
        Ok((rel, predicates))
    }

    pub(super) fn update(&mut self, u: &ast::Update) -> Result<BoundUpdate, Error> {
        if u.or.is_some() || u.limit.is_some() || u.output.is_some() || !u.order_by.is_empty() {
            return Err(Error::unsupported("this form of UPDATE"));
        }
        let (table, cols, alias) = self.changed(&u.table)?;
        let others = match &u.from {
            None => None,
            Some(ast::UpdateTableFromKind::AfterSet(t)) => Some(t.as_slice()),
            Some(ast::UpdateTableFromKind::BeforeSet(_)) => {
                return Err(Error::unsupported("FROM before SET"));
            }
        };
        self.scopes.push(Scope { no_aggregates: Some("UPDATE"), ..Scope::default() });
        let result = self.changed_rows((&table, &cols, &alias), others, u.selection.as_ref()).and_then(
            |(rel, predicates)| {
                let set = self.assignments(&u.assignments, &table)?;
                let entries = self.scope().entries.clone();
                let returning = self.returning(u.returning.as_ref(), entries)?;
                Ok((rel, predicates, set, returning))
            },
        );
        self.scopes.pop();
        let (rel, predicates, set, returning) = result?;
        let checks = self.checks(&table, &cols)?;
        Ok(BoundUpdate { table, cols, rel, predicates, set, checks, returning })
    }

    pub(super) fn delete(&mut self, d: &ast::Delete) -> Result<BoundDelete, Error> {
        if !d.tables.is_empty() || d.limit.is_some() || d.output.is_some() || !d.order_by.is_empty() {
            return Err(Error::unsupported("this form of DELETE"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &d.from;
        let [target] = from.as_slice() else {
            return Err(Error::syntax("DELETE changes exactly one table"));
        };
        let (table, cols, alias) = self.changed(target)?;
        self.scopes.push(Scope { no_aggregates: Some("DELETE"), ..Scope::default() });
        let result = self
            .changed_rows((&table, &cols, &alias), d.using.as_deref(), d.selection.as_ref())
            .and_then(|(rel, predicates)| {
                let entries = self.scope().entries.clone();
                let returning = self.returning(d.returning.as_ref(), entries)?;
                Ok((rel, predicates, returning))
            });
        self.scopes.pop();
        let (rel, predicates, returning) = result?;
        Ok(BoundDelete { table, cols, rel, predicates, returning })
    }
}
