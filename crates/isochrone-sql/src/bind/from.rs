//! Binding of FROM: tables, derived tables, WITH queries, functions, joins.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_types::{Error, SqlState, Type, common_type};
use sqlparser::ast::{self, JoinConstraint, JoinOperator, TableFactor};

use super::function::argument;
use super::{Binder, Entry, ident, qualified_name};
use crate::plan::expr::{Expr, Kind};
use crate::plan::rel::{JoinKind, Rel};
use crate::relation::Relation;

/// A relation and the names it brings.
pub(crate) type Item = (Rel, Vec<Entry>);

impl Binder<'_> {
    /// Binds a list of FROM items, cross joined.
    pub(crate) fn bind_from(&mut self, from: &[ast::TableWithJoins]) -> Result<Item, Error> {
        let mut result: Option<Item> = None;
        for t in from {
            let (rel, entries) = self.table_with_joins(t)?;
            result = Some(match result {
                None => (rel, entries),
                Some((left, mut left_entries)) => {
                    check_aliases(&left_entries, &entries)?;
                    left_entries.extend(entries);
                    let joined = Rel::Join {
                        kind: JoinKind::Inner,
                        left: Box::new(left),
                        right: Box::new(rel),
                        on: Vec::new(),
                    };
                    (joined, left_entries)
                }
            });
        }
        let (rel, entries) = result.unwrap_or((Rel::One, Vec::new()));
        Ok((rel, entries))
    }

    pub(crate) fn table_with_joins(&mut self, t: &ast::TableWithJoins) -> Result<Item, Error> {
        let mut item = self.table_factor(&t.relation)?;
        for j in &t.joins {
            let right = self.table_factor(&j.relation)?;
            item = self.join(item, right, &j.join_operator)?;
        }
        Ok(item)
    }

    fn join(&mut self, left: Item, right: Item, op: &JoinOperator) -> Result<Item, Error> {
        let (kind, swap, constraint) = match op {
            JoinOperator::Join(c) | JoinOperator::Inner(c) => (JoinKind::Inner, false, c),
            JoinOperator::CrossJoin(c) => (JoinKind::Inner, false, c),
            JoinOperator::Left(c) | JoinOperator::LeftOuter(c) => (JoinKind::Left, false, c),
            JoinOperator::Right(c) | JoinOperator::RightOuter(c) => (JoinKind::Left, true, c),
            JoinOperator::FullOuter(c) => (JoinKind::Full, false, c),
            _ => return Err(Error::unsupported("this kind of join")),
        };
        let (left_rel, left_entries) = left;
        let (right_rel, right_entries) = right;
        check_aliases(&left_entries, &right_entries)?;
        let mut merged = Vec::new();
        let mut on = Vec::new();
        let mut projected = Vec::new();
        let mut hidden: BTreeSet<Arc<str>> = BTreeSet::new();
        match constraint {
            JoinConstraint::None => {}
            JoinConstraint::On(e) => {
                let mut entries = left_entries.clone();
                entries.extend(right_entries.iter().cloned());
                let pred = self.with_entries(entries, "JOIN conditions", |b| b.condition(e, "JOIN/ON"))?;
                pred.into_conjuncts(&mut on);
            }
            JoinConstraint::Using(_) | JoinConstraint::Natural => {
                let names: Vec<String> = match constraint {
                    JoinConstraint::Using(names) => {
                        names.iter().map(|n| qualified_name(n).map(|(_, n)| n)).collect::<Result<_, _>>()?
                    }
                    _ => left_entries
                        .iter()
                        .filter(|l| l.bare && l.visible)
                        .filter(|l| right_entries.iter().any(|r| r.bare && r.visible && r.name == l.name))
                        .map(|l| l.name.to_string())
                        .collect(),
                };
                for name in names {
                    let find = |entries: &[Entry], side: &str| {
                        let mut found = entries.iter().filter(|e| e.bare && e.visible && *e.name == *name);
                        match (found.next(), found.next()) {
                            (Some(e), None) => Ok(e.col),
                            (Some(_), Some(_)) => Err(Error::new(
                                SqlState::AMBIGUOUS_COLUMN,
                                format!(
                                    "common column name \"{name}\" appears more than once in {side} table"
                                ),
                            )),
                            (None, _) => Err(Error::new(
                                SqlState::UNDEFINED_COLUMN,
                                format!(
                                    "column \"{name}\" specified in USING clause does not exist in {side} table"
                                ),
                            )),
                        }
                    };
                    let (l, r) = (find(&left_entries, "left")?, find(&right_entries, "right")?);
                    let (le, re) = (self.col_expr(l), self.col_expr(r));
                    let (lt, rt) = (le.ty, re.ty);
                    on.push(self.operator("=", le.clone(), re.clone(), None)?);
                    let col = if kind != JoinKind::Full && lt == rt {
                        if swap { r } else { l }
                    } else {
                        let ty = common_type(&[lt, rt], "JOIN/USING")?;
                        let (le, re) = (self.coerce(le, ty)?, self.coerce(re, ty)?);
                        let value = match kind {
                            JoinKind::Full => Expr::new(Kind::Coalesce(vec![le, re]), ty),
                            _ if swap => re,
                            _ => le,
                        };
                        let col = self.new_col(&name, ty);
                        projected.push((col, value));
                        col
                    };
                    let name: Arc<str> = name.into();
                    hidden.insert(name.clone());
                    merged.push(Entry { qualifier: None, name, col, bare: true, visible: true });
                }
            }
        }
        let outputs: Vec<_> = left_entries.iter().chain(&right_entries).map(|e| e.col).collect();
        let mut entries = merged;
        entries.extend(left_entries.into_iter().chain(right_entries).map(|mut e| {
            if hidden.contains(&e.name) {
                e.bare = false;
            }
            e
        }));
        let (l, r) = if swap { (right_rel, left_rel) } else { (left_rel, right_rel) };
        let mut rel = Rel::Join { kind, left: Box::new(l), right: Box::new(r), on };
        if !projected.is_empty() {
            let mut seen = BTreeSet::new();
            let mut exprs: Vec<_> =
                outputs.into_iter().filter(|c| seen.insert(*c)).map(|c| (c, self.col_expr(c))).collect();
            exprs.extend(projected);
            rel = Rel::Project { input: Box::new(rel), exprs };
        }
        Ok((rel, entries))
    }

    /// Binds something with these names in sight, besides those of enclosing queries.
    pub(crate) fn with_entries<R>(
        &mut self,
        entries: Vec<Entry>,
        clause: &'static str,
        f: impl FnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let scope = self.scope();
        let saved = std::mem::replace(&mut scope.entries, entries);
        let saved_clause = scope.no_aggregates.replace(clause);
        let result = f(self);
        let scope = self.scope();
        scope.entries = saved;
        scope.no_aggregates = saved_clause;
        result
    }

    fn table_factor(&mut self, t: &TableFactor) -> Result<Item, Error> {
        match t {
            TableFactor::Table { name, alias, args, with_ordinality, sample, version, .. } => {
                if sample.is_some() {
                    return Err(Error::unsupported("TABLESAMPLE"));
                }
                if version.is_some() {
                    return Err(Error::unsupported("a table version"));
                }
                match args {
                    Some(args) => {
                        let (_, name) = qualified_name(name)?;
                        let args = args.args.iter().map(argument).collect::<Result<Vec<_>, _>>()?;
                        self.function_item(&name, &args, *with_ordinality, alias.as_ref())
                    }
                    None => self.named_table(name, alias.as_ref()),
                }
            }
            TableFactor::Function { lateral: _, name, args, with_ordinality, alias } => {
                let (_, name) = qualified_name(name)?;
                let args = args.iter().map(argument).collect::<Result<Vec<_>, _>>()?;
                self.function_item(&name, &args, *with_ordinality, alias.as_ref())
            }
            TableFactor::UNNEST { alias, array_exprs, with_ordinality, .. } => {
                let args: Vec<&ast::Expr> = array_exprs.iter().collect();
                self.function_item("unnest", &args, *with_ordinality, alias.as_ref())
            }
            TableFactor::Derived { lateral, subquery, alias, .. } => {
                if *lateral {
                    return Err(Error::unsupported("LATERAL"));
                }
                // Names of this FROM are not visible inside.
                let query = self.query(subquery, false)?;
                let qualifier = alias.as_ref().map(|a| Arc::from(ident(&a.name)));
                let mut entries: Vec<Entry> = query
                    .out
                    .iter()
                    .map(|o| Entry {
                        qualifier: qualifier.clone(),
                        name: o.name.as_str().into(),
                        col: o.col,
                        bare: true,
                        visible: true,
                    })
                    .collect();
                rename(&mut entries, alias.as_ref())?;
                Ok((query.rel, entries))
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                let (rel, mut entries) = self.table_with_joins(table_with_joins)?;
                if let Some(a) = alias {
                    let q: Arc<str> = ident(&a.name).into();
                    entries.retain(|e| e.bare && e.visible);
                    entries.iter_mut().for_each(|e| e.qualifier = Some(q.clone()));
                    rename(&mut entries, Some(a))?;
                }
                Ok((rel, entries))
            }
            _ => Err(Error::unsupported("this form of FROM item")),
        }
    }

    fn named_table(
        &mut self,
        name: &ast::ObjectName,
        alias: Option<&ast::TableAlias>,
    ) -> Result<Item, Error> {
        let (schema, table) = qualified_name(name)?;
        let shown: Arc<str> = alias.map_or_else(|| table.as_str().into(), |a| ident(&a.name).into());
        if schema.is_none()
            && let Some(&id) = self.cte_scope.iter().rev().find(|&&id| self.ctes[id].name == table)
        {
            let out: Vec<(String, Type)> = self.ctes[id].out.iter().map(|o| (o.name.clone(), o.ty)).collect();
            let cols: Vec<_> = out.iter().map(|(n, t)| self.new_col(n, *t)).collect();
            let mut entries: Vec<Entry> = out
                .iter()
                .zip(&cols)
                .map(|((n, _), &col)| Entry {
                    qualifier: Some(shown.clone()),
                    name: n.as_str().into(),
                    col,
                    bare: true,
                    visible: true,
                })
                .collect();
            rename(&mut entries, alias)?;
            return Ok((Rel::Cte { id, cols, alias: shown }, entries));
        }
        match self.catalog.relation(schema.as_deref(), &table) {
            Some(Relation::Table(t)) => {
                let cols = self.table_cols(&t);
                let mut entries = Self::table_entries(&t, &cols, &shown);
                rename(&mut entries, alias)?;
                Ok((Rel::Table { table: t, cols, alias: shown }, entries))
            }
            Some(Relation::Virtual(t)) => {
                let columns: Vec<(String, Type, bool)> =
                    t.columns().iter().map(|c| (c.name.clone(), c.ty, c.hidden)).collect();
                let cols: Vec<_> = columns.iter().map(|(n, ty, _)| self.new_col(n, *ty)).collect();
                let mut entries: Vec<Entry> = columns
                    .iter()
                    .zip(&cols)
                    .map(|((n, _, hidden), &col)| Entry {
                        qualifier: Some(shown.clone()),
                        name: n.as_str().into(),
                        col,
                        bare: true,
                        visible: !hidden,
                    })
                    .collect();
                rename(&mut entries, alias)?;
                Ok((Rel::Virtual { table: t, cols, alias: shown }, entries))
            }
            None => {
                let full = match &schema {
                    Some(s) => format!("{s}.{table}"),
                    None => table,
                };
                let error =
                    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{full}\" does not exist"));
                Err(self.at(error, sqlparser::ast::Spanned::span(name)))
            }
        }
    }

    fn function_item(
        &mut self,
        name: &str,
        args: &[&ast::Expr],
        ordinality: bool,
        alias: Option<&ast::TableAlias>,
    ) -> Result<Item, Error> {
        // Names of this FROM would make it lateral, which we lack: they are not in sight.
        let bound = self.with_entries(Vec::new(), "functions in FROM", |b| {
            args.iter().map(|a| b.expr(a)).collect::<Result<Vec<_>, _>>()
        })?;
        let rel = self.set_function(name, bound, ordinality)?;
        let shown: Arc<str> = alias.map_or_else(|| name.into(), |a| ident(&a.name).into());
        let mut entries: Vec<Entry> = rel
            .output()
            .iter()
            .enumerate()
            .map(|(i, &col)| Entry {
                qualifier: Some(shown.clone()),
                name: if i == 0 { shown.clone() } else { "ordinality".into() },
                col,
                bare: true,
                visible: true,
            })
            .collect();
        rename(&mut entries, alias)?;
        Ok((rel, entries))
    }
}

/// `AS t (a, b)`.
fn rename(entries: &mut [Entry], alias: Option<&ast::TableAlias>) -> Result<(), Error> {
    let Some(alias) = alias else { return Ok(()) };
    let count = entries.iter().filter(|e| e.visible).count();
    if alias.columns.len() > count {
        return Err(Error::new(
            SqlState::INVALID_COLUMN_REFERENCE,
            format!(
                "table \"{}\" has {count} columns available but {} columns specified",
                ident(&alias.name),
                alias.columns.len()
            ),
        ));
    }
    for (e, c) in entries.iter_mut().filter(|e| e.visible).zip(&alias.columns) {
        e.name = ident(&c.name).into();
    }
    Ok(())
}

/// No two items of one name in one FROM.
pub(crate) fn check_aliases(left: &[Entry], right: &[Entry]) -> Result<(), Error> {
    let names: BTreeSet<&str> = left.iter().filter_map(|e| e.qualifier.as_deref()).collect();
    match right.iter().filter_map(|e| e.qualifier.as_deref()).find(|q| names.contains(q)) {
        None => Ok(()),
        Some(q) => {
            Err(Error::new(SqlState::DUPLICATE_ALIAS, format!("table name \"{q}\" specified more than once")))
        }
    }
}
