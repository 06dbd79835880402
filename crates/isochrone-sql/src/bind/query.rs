//! Binding of queries: WITH, SELECT, VALUES, set operations, grouping, ordering, limits, FOR UPDATE.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_txn::kv::Lock;
use isochrone_types::{Error, SqlState, Type, common_type};
use sqlparser::ast::{self, Distinct, GroupByExpr, LimitClause, OrderByKind, SelectItem, SetExpr};

use super::expr::strip;
use super::{Binder, BoundQuery, CteDef, Scope, ident, qualified_name};
use crate::descriptor::TableDescriptor;
use crate::parse_locks::{LockWish, RowWait, wish, words};
use crate::plan::expr::{ColId, Expr, Kind};
use crate::plan::rel::{JoinKind, OutCol, Rel, SetOpKind, SortKey};

/// The parts of a query around its body.
struct Around<'q> {
    order: Vec<&'q ast::OrderByExpr>,
    limit: Option<&'q ast::Expr>,
    offset: Option<&'q ast::Expr>,
    locks: &'q [ast::LockClause],
}

/// Descending? NULLs first?
pub(crate) fn direction(o: &ast::OrderByOptions) -> Result<(bool, bool), Error> {
    let desc = match &o.sort {
        None | Some(ast::OrderBySort::Asc) => false,
        Some(ast::OrderBySort::Desc) => true,
        Some(ast::OrderBySort::Using(op)) => match op.to_string().as_str() {
            "<" => false,
            ">" => true,
            other => return Err(Error::unsupported(format!("ORDER BY USING {other}"))),
        },
    };
    Ok((desc, o.nulls_first.unwrap_or(desc)))
}

fn not_lockable(lock: Lock, text: &str) -> Error {
    Error::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{} {text}", words(lock)))
}

/// What locking clauses can speak of in a FROM clause.
#[derive(Default)]
struct Lockable {
    tables: Vec<LockableTable>,
    /// Names of WITH queries.
    ctes: Vec<Arc<str>>,
    /// What must hold for a row of a table that cannot be missing.
    predicates: Vec<Expr>,
    outer: bool,
    /// There is a subquery whose rows are not rows of tables.
    opaque: bool,
}

struct LockableTable {
    table: Arc<TableDescriptor>,
    cols: Vec<ColId>,
    alias: Arc<str>,
    /// An outer join may leave it out.
    nullable: bool,
    wish: Option<(Lock, RowWait)>,
}

impl Lockable {
    fn look(&mut self, rel: &Rel, nullable: bool) {
        match rel {
            Rel::Table { table, cols, alias } => self.tables.push(LockableTable {
                table: table.clone(),
                cols: cols.clone(),
                alias: alias.clone(),
                nullable,
                wish: None,
            }),
            Rel::Join { kind, left, right, on } => {
                match kind {
                    JoinKind::Inner if !nullable => self.predicates.extend(on.iter().cloned()),
                    JoinKind::Inner => {}
                    _ => self.outer = true,
                }
                self.look(left, nullable || *kind == JoinKind::Full);
                self.look(right, nullable || *kind != JoinKind::Inner);
            }
            Rel::Filter { input, predicates } => {
                if !nullable {
                    self.predicates.extend(predicates.iter().cloned());
                }
                self.look(input, nullable);
            }
            Rel::Sort { input, .. } | Rel::Lock { input, .. } => self.look(input, nullable),
            Rel::Cte { alias, .. } => self.ctes.push(alias.clone()),
            Rel::One | Rel::Virtual { .. } | Rel::Values { .. } | Rel::Function { .. } => {}
            Rel::Project { .. }
            | Rel::Aggregate { .. }
            | Rel::Distinct { .. }
            | Rel::Limit { .. }
            | Rel::SetOp { .. } => self.opaque = true,
        }
    }
}

/// FOR UPDATE and its relatives: each table is locked once, as strongly as any clause wants it, and of what clauses do
/// about rows that others hold NOWAIT goes before SKIP LOCKED, and that before waiting (as in PostgreSQL).
fn lock_rows(mut rel: Rel, clauses: &[ast::LockClause]) -> Result<Rel, Error> {
    let mut at = Lockable::default();
    at.look(&rel, false);
    for clause in clauses {
        let LockWish { lock, of, wait } = wish(clause)?;
        let mut found = false;
        for t in at.tables.iter_mut().filter(|t| of.as_deref().is_none_or(|o| o == &*t.alias)) {
            found = true;
            if t.nullable {
                return Err(not_lockable(lock, "cannot be applied to the nullable side of an outer join"));
            }
            let (l, w) = t.wish.unwrap_or((lock, wait));
            t.wish = Some((l.max(lock), w.max(wait)));
        }
        match of {
            None if at.opaque => {
                return Err(Error::unsupported(format!("{} of a subquery in FROM", words(lock))));
            }
            Some(of) if !found && at.ctes.iter().any(|c| **c == *of) => {
                return Err(not_lockable(lock, "cannot be applied to a WITH query"));
            }
            Some(of) if !found => {
                let clause = words(lock);
                return Err(Error::new(
                    SqlState::UNDEFINED_TABLE,
                    format!("relation \"{of}\" in {clause} clause not found in FROM clause"),
                ));
            }
            _ => {}
        }
    }
    let Lockable { tables, predicates, outer, .. } = at;
    if predicates.iter().any(Expr::has_subquery) && tables.iter().filter(|t| t.wish.is_some()).count() > 1 {
        return Err(Error::unsupported("FOR UPDATE of a join with a subquery in WHERE"));
    }
    for LockableTable { table, cols, wish, .. } in tables {
        if let Some((lock, wait)) = wish {
            let (input, predicates) = (Box::new(rel), predicates.clone());
            rel = Rel::Lock { input, table, cols, predicates, lock, wait, outer };
        }
    }
    Ok(rel)
}

impl Binder<'_> {
    /// Binds a query. With `keep_unknown`, columns of untyped literals stay `unknown`: the caller gives them a type.
    pub fn query(&mut self, q: &ast::Query, keep_unknown: bool) -> Result<BoundQuery, Error> {
        if q.for_clause.is_some()
            || q.settings.is_some()
            || q.format_clause.is_some()
            || !q.pipe_operators.is_empty()
        {
            return Err(Error::unsupported("this clause of a query"));
        }
        let visible = self.cte_scope.len();
        self.with_clause(q.with.as_ref())?;
        let mut around = Around { order: Vec::new(), limit: None, offset: None, locks: &q.locks };
        if let Some(o) = &q.order_by {
            match &o.kind {
                OrderByKind::Expressions(keys) => around.order.extend(keys),
                OrderByKind::All(_) => return Err(Error::unsupported("ORDER BY ALL")),
            }
        }
        match &q.limit_clause {
            None => {}
            Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
                if !limit_by.is_empty() {
                    return Err(Error::unsupported("LIMIT BY"));
                }
                around.limit = limit.as_ref();
                around.offset = offset.as_ref().map(|o| &o.value);
            }
            Some(LimitClause::OffsetCommaLimit { .. }) => {
                return Err(Error::syntax("LIMIT #,# syntax is not supported")
                    .with_hint("Use separate LIMIT and OFFSET clauses."));
            }
        }
        let one = ast::Expr::value(ast::Value::Number("1".to_owned(), false));
        if let Some(f) = &q.fetch {
            if f.with_ties || f.percent {
                return Err(Error::unsupported("FETCH FIRST WITH TIES or PERCENT"));
            }
            around.limit = Some(f.quantity.as_ref().unwrap_or(&one));
        }
        let result = self.body(&q.body, Some(&around), keep_unknown);
        self.cte_scope.truncate(visible);
        result
    }

    /// Brings the WITH queries in sight.
    pub(crate) fn with_clause(&mut self, with: Option<&ast::With>) -> Result<(), Error> {
        let Some(with) = with else { return Ok(()) };
        if with.recursive {
            return Err(Error::unsupported("WITH RECURSIVE"));
        }
        for cte in &with.cte_tables {
            if matches!(cte.query.body.as_ref(), SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_))
            {
                return Err(Error::unsupported("a data-modifying statement in WITH"));
            }
            let mut query = self.query(&cte.query, false)?;
            if !query.rel.free().is_empty() {
                return Err(Error::unsupported("a WITH query that refers to an outer query"));
            }
            let name = ident(&cte.alias.name);
            if cte.alias.columns.len() > query.out.len() {
                return Err(Error::new(
                    SqlState::INVALID_COLUMN_REFERENCE,
                    format!(
                        "WITH query \"{name}\" has {} columns available but {} columns specified",
                        query.out.len(),
                        cte.alias.columns.len()
                    ),
                ));
            }
            for (o, c) in query.out.iter_mut().zip(&cte.alias.columns) {
                o.name = ident(&c.name);
            }
            self.ctes.push(CteDef { name, rel: query.rel, out: query.out });
            self.cte_scope.push(self.ctes.len() - 1);
        }
        Ok(())
    }

    fn body(
        &mut self,
        body: &SetExpr,
        around: Option<&Around>,
        keep_unknown: bool,
    ) -> Result<BoundQuery, Error> {
        let query = match body {
            SetExpr::Select(s) => return self.select(s, around, keep_unknown),
            SetExpr::Query(q) => {
                let q = self.query(q, keep_unknown)?;
                match around {
                    Some(a)
                        if !a.order.is_empty()
                            || a.limit.is_some()
                            || a.offset.is_some()
                            || !a.locks.is_empty() =>
                    {
                        q
                    }
                    _ => return Ok(q),
                }
            }
            SetExpr::Values(v) => self.values(v, keep_unknown)?,
            SetExpr::SetOperation { op, set_quantifier, left, right } => {
                self.set_operation(*op, *set_quantifier, left, right)?
            }
            SetExpr::Table(t) => {
                let name = t.table_name.clone().unwrap_or_default();
                let mut parts = Vec::new();
                if let Some(s) = &t.schema_name {
                    parts.push(ast::Ident::new(s));
                }
                parts.push(ast::Ident::new(name));
                let factor = ast::TableFactor::Table {
                    name: ast::ObjectName::from(parts),
                    alias: None,
                    args: None,
                    with_hints: Vec::new(),
                    version: None,
                    with_ordinality: false,
                    partitions: Vec::new(),
                    json_path: None,
                    sample: None,
                    index_hints: Vec::new(),
                };
                self.scopes.push(Scope::default());
                let item =
                    self.table_with_joins(&ast::TableWithJoins { relation: factor, joins: Vec::new() });
                self.scopes.pop();
                let (rel, entries) = item?;
                let out = entries
                    .iter()
                    .filter(|e| e.visible)
                    .map(|e| OutCol {
                        name: e.name.to_string(),
                        col: e.col,
                        ty: self.cols[e.col as usize].ty,
                    })
                    .collect();
                BoundQuery { rel, out }
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                return Err(Error::unsupported("a data-modifying statement here"));
            }
        };
        let Some(around) = around else { return Ok(query) };
        if let Some(lock) = around.locks.first() {
            let text = match body {
                SetExpr::Values(_) => "cannot be applied to VALUES",
                _ => "is not allowed with UNION/INTERSECT/EXCEPT",
            };
            return Err(not_lockable(wish(lock)?.lock, text));
        }
        // ORDER BY sees the output columns only.
        let BoundQuery { mut rel, out } = query;
        let mut keys = Vec::new();
        for o in &around.order {
            let (desc, nulls_first) = direction(&o.options)?;
            let expr = match self.order_target(&o.expr, &out)? {
                Some(i) => Expr::col(out[i].col, out[i].ty),
                None => {
                    return Err(Error::new(
                        SqlState::FEATURE_NOT_SUPPORTED,
                        "invalid UNION/INTERSECT/EXCEPT ORDER BY clause",
                    )
                    .with_detail("Only result column names can be used, not expressions or functions."));
                }
            };
            keys.push(SortKey { expr, desc, nulls_first });
        }
        if !keys.is_empty() {
            rel = Rel::Sort { input: Box::new(rel), keys };
        }
        rel = self.limits(rel, around)?;
        Ok(BoundQuery { rel, out })
    }

    /// The output column that an ORDER BY item names, by number or name.
    fn order_target(&self, e: &ast::Expr, out: &[OutCol]) -> Result<Option<usize>, Error> {
        match strip(e) {
            ast::Expr::Value(v) => {
                if let ast::Value::Number(n, _) = &v.value {
                    return match n.parse::<usize>() {
                        Ok(i) if i >= 1 && i <= out.len() => Ok(Some(i - 1)),
                        _ => Err(Error::new(
                            SqlState::INVALID_COLUMN_REFERENCE,
                            format!("ORDER BY position {n} is not in select list"),
                        )),
                    };
                }
                Ok(None)
            }
            ast::Expr::Identifier(i) => {
                let name = ident(i);
                let mut found: Option<usize> = None;
                for (i, o) in out.iter().enumerate() {
                    if o.name == name {
                        if found.is_some_and(|f| out[f].col != o.col) {
                            return Err(Error::new(
                                SqlState::AMBIGUOUS_COLUMN,
                                format!("ORDER BY \"{name}\" is ambiguous"),
                            ));
                        }
                        found = found.or(Some(i));
                    }
                }
                Ok(found)
            }
            _ => Ok(None),
        }
    }

    fn limits(&mut self, rel: Rel, around: &Around) -> Result<Rel, Error> {
        let mut bind = |e: Option<&ast::Expr>, clause: &'static str| -> Result<Option<Expr>, Error> {
            let Some(e) = e else { return Ok(None) };
            if let ast::Expr::Identifier(i) = e
                && ident(i) == "all"
            {
                return Ok(None);
            }
            self.scopes.push(Scope { no_aggregates: Some(clause), ..Scope::default() });
            let bound = self.expr(e).and_then(|e| self.coerce_limit(e, clause));
            self.scopes.pop();
            bound.map(Some)
        };
        let limit = bind(around.limit, "LIMIT")?;
        let offset = bind(around.offset, "OFFSET")?;
        if limit.is_none() && offset.is_none() {
            return Ok(rel);
        }
        Ok(Rel::Limit { input: Box::new(rel), limit, offset })
    }

    fn coerce_limit(&mut self, e: Expr, clause: &str) -> Result<Expr, Error> {
        if e.any(&|e| matches!(e.kind, Kind::Col(_))) {
            return Err(Error::new(
                SqlState::INVALID_COLUMN_REFERENCE,
                format!("argument of {clause} must not contain variables"),
            ));
        }
        if e.ty != Type::Unknown
            && !isochrone_types::cast::can_cast(&e.ty, &Type::Int8, isochrone_types::CastContext::Assignment)
        {
            return Err(Error::new(
                SqlState::DATATYPE_MISMATCH,
                format!("argument of {clause} must be type bigint, not type {}", e.ty.base_sql_name()),
            ));
        }
        self.cast_to(e, Type::Int8, isochrone_types::CastContext::Assignment)
    }

    fn values(&mut self, v: &ast::Values, keep_unknown: bool) -> Result<BoundQuery, Error> {
        self.scopes.push(Scope { no_aggregates: Some("VALUES"), ..Scope::default() });
        let result = self.values_rows(v, keep_unknown);
        self.scopes.pop();
        result
    }

    fn values_rows(&mut self, v: &ast::Values, keep_unknown: bool) -> Result<BoundQuery, Error> {
        let mut rows = Vec::with_capacity(v.rows.len());
        for r in &v.rows {
            rows.push(r.content.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?);
        }
        let width = rows.first().map_or(0, Vec::len);
        if rows.iter().any(|r| r.len() != width) {
            return Err(Error::syntax("VALUES lists must all be the same length"));
        }
        let mut types = Vec::new();
        for i in 0..width {
            let column: Vec<Type> = rows.iter().map(|r| r[i].ty).collect();
            let unknown = column.iter().all(|t| *t == Type::Unknown);
            let ty = if unknown && keep_unknown { Type::Unknown } else { common_type(&column, "VALUES")? };
            types.push(ty);
        }
        for r in &mut rows {
            for (i, e) in r.iter_mut().enumerate() {
                let taken = std::mem::replace(e, Expr::bool(false));
                *e = self.coerce(taken, types[i])?;
            }
        }
        let mut out = Vec::new();
        for (i, ty) in types.into_iter().enumerate() {
            let name = format!("column{}", i + 1);
            let col = self.new_col(&name, ty);
            out.push(OutCol { name, col, ty });
        }
        Ok(BoundQuery { rel: Rel::Values { cols: out.iter().map(|o| o.col).collect(), rows }, out })
    }

    fn set_operation(
        &mut self,
        op: ast::SetOperator,
        quantifier: ast::SetQuantifier,
        left: &SetExpr,
        right: &SetExpr,
    ) -> Result<BoundQuery, Error> {
        let (op, name) = match op {
            ast::SetOperator::Union => (SetOpKind::Union, "UNION"),
            ast::SetOperator::Intersect => (SetOpKind::Intersect, "INTERSECT"),
            ast::SetOperator::Except | ast::SetOperator::Minus => (SetOpKind::Except, "EXCEPT"),
        };
        let all = match quantifier {
            ast::SetQuantifier::All => true,
            ast::SetQuantifier::None | ast::SetQuantifier::Distinct => false,
            _ => return Err(Error::unsupported("set operations BY NAME")),
        };
        let left = self.body(left, None, true)?;
        let right = self.body(right, None, true)?;
        if left.out.len() != right.out.len() {
            return Err(Error::syntax(format!("each {name} query must have the same number of columns")));
        }
        let mut types = Vec::new();
        for (l, r) in left.out.iter().zip(&right.out) {
            types.push(common_type(&[l.ty, r.ty], name)?);
        }
        let names: Vec<String> = left.out.iter().map(|o| o.name.clone()).collect();
        let (left, left_cols) = self.cast_columns(left, &types)?;
        let (right, right_cols) = self.cast_columns(right, &types)?;
        let mut out = Vec::new();
        for (name, ty) in names.into_iter().zip(types) {
            let col = self.new_col(&name, ty);
            out.push(OutCol { name, col, ty });
        }
        let cols = out.iter().map(|o| o.col).collect();
        Ok(BoundQuery {
            rel: Rel::SetOp {
                op,
                all,
                left: Box::new(left),
                left_cols,
                right: Box::new(right),
                right_cols,
                cols,
            },
            out,
        })
    }

    /// Gives a query's columns these types.
    pub(crate) fn cast_columns(&mut self, q: BoundQuery, types: &[Type]) -> Result<(Rel, Vec<ColId>), Error> {
        let mut rel = q.rel;
        if q.out.iter().zip(types).all(|(o, t)| o.ty == *t) {
            return Ok((rel, q.out.iter().map(|o| o.col).collect()));
        }
        // Literals of VALUES and of select lists are converted where they stand, now that their type is known.
        let mut exprs = Vec::new();
        let mut cols = Vec::new();
        for (o, ty) in q.out.iter().zip(types) {
            if o.ty == *ty {
                exprs.push((o.col, Expr::col(o.col, o.ty)));
                cols.push(o.col);
                continue;
            }
            if o.ty == Type::Unknown {
                self.retype(&mut rel, o.col, *ty)?;
                exprs.push((o.col, Expr::col(o.col, *ty)));
                cols.push(o.col);
                continue;
            }
            let e = self.coerce(Expr::col(o.col, o.ty), *ty)?;
            let col = self.new_col(&o.name, *ty);
            exprs.push((col, e));
            cols.push(col);
        }
        let mut seen = BTreeSet::new();
        exprs.retain(|(c, _)| seen.insert(*c));
        Ok((Rel::Project { input: Box::new(rel), exprs }, cols))
    }

    /// Gives an `unknown` column a type, where it is made.
    pub(crate) fn retype(&mut self, rel: &mut Rel, col: ColId, ty: Type) -> Result<(), Error> {
        self.cols[col as usize].ty = ty;
        match rel {
            Rel::Project { input, exprs } => {
                for (c, e) in exprs.iter_mut().filter(|(c, _)| *c == col) {
                    if let Kind::Col(inner) = e.kind
                        && inner == *c
                    {
                        e.ty = ty;
                        return self.retype(input, col, ty);
                    }
                    let taken = std::mem::replace(e, Expr::bool(false));
                    *e = self.coerce(taken, ty)?;
                }
                Ok(())
            }
            Rel::Values { cols, rows } => {
                if let Some(i) = cols.iter().position(|c| *c == col) {
                    for r in rows {
                        let taken = std::mem::replace(&mut r[i], Expr::bool(false));
                        r[i] = self.coerce(taken, ty)?;
                    }
                }
                Ok(())
            }
            other => {
                let mut result = Ok(());
                other.inputs_mut(&mut |r| {
                    if result.is_ok() {
                        result = self.retype(r, col, ty);
                    }
                });
                other.exprs_mut(&mut |e| {
                    e.rewrite(&mut |e| {
                        if matches!(e.kind, Kind::Col(c) if c == col) {
                            e.ty = ty;
                        }
                    })
                });
                result
            }
        }
    }

    fn select(
        &mut self,
        s: &ast::Select,
        around: Option<&Around>,
        keep_unknown: bool,
    ) -> Result<BoundQuery, Error> {
        for (present, what) in [
            (s.top.is_some(), "TOP"),
            (s.into.is_some(), "SELECT INTO"),
            (!s.lateral_views.is_empty(), "LATERAL VIEW"),
            (s.prewhere.is_some(), "PREWHERE"),
            (!s.connect_by.is_empty(), "CONNECT BY"),
            (!s.cluster_by.is_empty() || !s.distribute_by.is_empty() || !s.sort_by.is_empty(), "CLUSTER BY"),
            (!s.named_window.is_empty(), "WINDOW"),
            (s.qualify.is_some(), "QUALIFY"),
            (s.value_table_mode.is_some() || s.exclude.is_some(), "this form of SELECT"),
        ] {
            if present {
                return Err(Error::unsupported(what));
            }
        }
        self.scopes.push(Scope::default());
        let result = self.select_in_scope(s, around, keep_unknown);
        self.scopes.pop();
        result
    }

    fn select_in_scope(
        &mut self,
        s: &ast::Select,
        around: Option<&Around>,
        keep_unknown: bool,
    ) -> Result<BoundQuery, Error> {
        let (mut rel, entries) = self.bind_from(&s.from)?;
        self.scope().entries = entries;

        let mut predicates = Vec::new();
        if let Some(w) = &s.selection {
            self.scope().no_aggregates = Some("WHERE");
            let e = self.condition(w, "WHERE")?;
            self.scope().no_aggregates = None;
            e.into_conjuncts(&mut predicates);
        }

        self.scope().set_functions_allowed = true;
        let mut items = self.select_items(&s.projection, keep_unknown)?;
        self.scope().set_functions_allowed = false;

        // GROUP BY
        let mut group = Vec::new();
        let mut grouped = false;
        match &s.group_by {
            GroupByExpr::All(_) => return Err(Error::unsupported("GROUP BY ALL")),
            GroupByExpr::Expressions(exprs, modifiers) => {
                if !modifiers.is_empty() {
                    return Err(Error::unsupported("ROLLUP, CUBE and GROUPING SETS"));
                }
                for e in exprs {
                    grouped = true;
                    let bound = self.group_key(e, &items)?;
                    if !group.contains(&bound) {
                        group.push(bound);
                    }
                }
            }
        }
        let mut having = Vec::new();
        if let Some(h) = &s.having {
            grouped = true;
            self.condition(h, "HAVING")?.into_conjuncts(&mut having);
        }

        // ORDER BY
        let mut order = Vec::new();
        for o in around.map_or(&[][..], |a| &a.order) {
            let (desc, nulls_first) = direction(&o.options)?;
            let names: Vec<OutCol> = items
                .iter()
                .enumerate()
                .map(|(i, (name, e))| OutCol { name: name.clone(), col: i as ColId, ty: e.ty })
                .collect();
            // The same expression twice under one name is not ambiguous.
            let target = match self.order_target(&o.expr, &names) {
                Ok(t) => t,
                Err(e) if e.sqlstate == SqlState::AMBIGUOUS_COLUMN => {
                    let same: Vec<&Expr> = match strip(&o.expr) {
                        ast::Expr::Identifier(i) => {
                            let n = ident(i);
                            items.iter().filter(|(name, _)| *name == n).map(|(_, e)| e).collect()
                        }
                        _ => Vec::new(),
                    };
                    if same.windows(2).all(|w| w[0] == w[1]) {
                        items.iter().position(|(_, e)| same.first() == Some(&e))
                    } else {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            };
            let (expr, item) = match target {
                Some(i) => (items[i].1.clone(), Some(i)),
                None => {
                    let e = self.expr(&o.expr)?;
                    (self.known(e)?, None)
                }
            };
            order.push((SortKey { expr, desc, nulls_first }, item));
        }

        // DISTINCT
        let mut distinct_on = Vec::new();
        let distinct = match &s.distinct {
            None | Some(Distinct::All) => false,
            Some(Distinct::Distinct) => true,
            Some(Distinct::On(exprs)) => {
                let names: Vec<OutCol> = items
                    .iter()
                    .enumerate()
                    .map(|(i, (name, e))| OutCol { name: name.clone(), col: i as ColId, ty: e.ty })
                    .collect();
                for e in exprs {
                    let bound = match self.order_target(e, &names)? {
                        Some(i) => items[i].1.clone(),
                        None => self.expr(e)?,
                    };
                    distinct_on.push(bound);
                }
                false
            }
        };

        let set_functions = std::mem::take(&mut self.scope().set_functions);
        let aggregates = std::mem::take(&mut self.scope().aggregates);
        let grouping = grouped || !aggregates.is_empty();
        let locks = around.map_or(&[][..], |a| a.locks);
        if let Some(lock) = locks.first() {
            let lock = wish(lock)?.lock;
            if distinct || !distinct_on.is_empty() {
                return Err(not_lockable(lock, "is not allowed with DISTINCT clause"));
            }
            if grouped {
                return Err(not_lockable(lock, "is not allowed with GROUP BY clause"));
            }
            if grouping {
                return Err(not_lockable(lock, "is not allowed with aggregate functions"));
            }
            if !set_functions.is_empty() {
                let text = "is not allowed with set-returning functions in the target list";
                return Err(not_lockable(lock, text));
            }
        }
        if !predicates.is_empty() {
            rel = Rel::Filter { input: Box::new(rel), predicates: predicates.clone() };
        }
        if grouping {
            if !set_functions.is_empty() {
                return Err(Error::unsupported("a set-returning function in a grouped query"));
            }
            let local: BTreeSet<ColId> = self.scope().entries.iter().map(|e| e.col).collect();
            let mut keys: Vec<(ColId, Expr)> = Vec::new();
            for e in group {
                let col = match e.kind {
                    Kind::Col(c) if local.contains(&c) => c,
                    _ => self.new_col("?column?", e.ty),
                };
                keys.push((col, e));
            }
            for (_, e) in items.iter_mut() {
                self.regroup(e, &mut keys, &local)?;
            }
            for e in having.iter_mut().chain(&mut distinct_on) {
                self.regroup(e, &mut keys, &local)?;
            }
            for (k, _) in order.iter_mut() {
                self.regroup(&mut k.expr, &mut keys, &local)?;
            }
            rel = Rel::Aggregate { input: Box::new(rel), keys, aggregates };
            if !having.is_empty() {
                rel = Rel::Filter { input: Box::new(rel), predicates: having };
            }
        }
        for f in set_functions {
            rel =
                Rel::Join { kind: JoinKind::Inner, left: Box::new(rel), right: Box::new(f), on: Vec::new() };
        }

        // Output columns: a plain column of this level keeps its id.
        let inside: BTreeSet<ColId> = rel.output().into_iter().collect();
        let mut out = Vec::new();
        let mut exprs: Vec<(ColId, Expr)> = Vec::new();
        let mut computed = false;
        for (name, e) in &items {
            let col = match e.kind {
                Kind::Col(c) if inside.contains(&c) => c,
                _ => {
                    computed = true;
                    self.new_col(name, e.ty)
                }
            };
            if !exprs.iter().any(|(c, _)| *c == col) {
                exprs.push((col, e.clone()));
            }
            out.push(OutCol { name: name.clone(), col, ty: e.ty });
        }
        let project_first = distinct
            || !distinct_on.is_empty()
            || (!order.is_empty() && items.iter().any(|(_, e)| e.is_volatile()));
        if project_first {
            let mut keys = Vec::new();
            for (k, item) in order {
                let item = item.or_else(|| items.iter().position(|(_, e)| *e == k.expr));
                let expr = match item {
                    Some(i) => Expr::col(out[i].col, out[i].ty),
                    None if distinct => {
                        return Err(Error::new(
                            SqlState::INVALID_COLUMN_REFERENCE,
                            "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
                        ));
                    }
                    None => self.extra_column(&mut exprs, k.expr, &inside),
                };
                keys.push(SortKey { expr, ..k });
            }
            let mut on = Vec::new();
            for e in distinct_on {
                match items.iter().position(|(_, i)| *i == e) {
                    Some(i) => on.push(out[i].col),
                    None => {
                        let e = self.extra_column(&mut exprs, e, &inside);
                        if let Kind::Col(c) = e.kind {
                            on.push(c);
                        }
                    }
                }
            }
            rel = Rel::Project { input: Box::new(rel), exprs };
            if distinct {
                let mut on: Vec<ColId> = out.iter().map(|o| o.col).collect();
                on.dedup();
                rel = Rel::Distinct { input: Box::new(rel), on };
            }
            if !keys.is_empty() {
                let leading: BTreeSet<ColId> = keys
                    .iter()
                    .take(on.len())
                    .filter_map(|k| match k.expr.kind {
                        Kind::Col(c) => Some(c),
                        _ => None,
                    })
                    .collect();
                if !on.is_empty() && !leading.iter().all(|c| on.contains(c)) {
                    return Err(Error::new(
                        SqlState::INVALID_COLUMN_REFERENCE,
                        "SELECT DISTINCT ON expressions must match initial ORDER BY expressions",
                    ));
                }
                rel = Rel::Sort { input: Box::new(rel), keys };
            }
            if !on.is_empty() {
                rel = Rel::Distinct { input: Box::new(rel), on };
            }
            if let Some(a) = around {
                rel = self.limits(rel, a)?;
            }
            return Ok(BoundQuery { rel, out });
        }
        if !order.is_empty() {
            rel = Rel::Sort { input: Box::new(rel), keys: order.into_iter().map(|(k, _)| k).collect() };
        }
        if !locks.is_empty() {
            rel = lock_rows(rel, locks)?;
        }
        if let Some(a) = around {
            rel = self.limits(rel, a)?;
        }
        if computed {
            rel = Rel::Project { input: Box::new(rel), exprs };
        }
        Ok(BoundQuery { rel, out })
    }

    fn extra_column(&mut self, exprs: &mut Vec<(ColId, Expr)>, e: Expr, inside: &BTreeSet<ColId>) -> Expr {
        let col = match e.kind {
            Kind::Col(c) if inside.contains(&c) => c,
            _ => self.new_col("?column?", e.ty),
        };
        let ty = e.ty;
        if !exprs.iter().any(|(c, _)| *c == col) {
            exprs.push((col, e));
        }
        Expr::col(col, ty)
    }

    /// Names and expressions of a select list.
    pub(crate) fn select_items(
        &mut self,
        projection: &[SelectItem],
        keep_unknown: bool,
    ) -> Result<Vec<(String, Expr)>, Error> {
        let mut items = Vec::new();
        for item in projection {
            match item {
                SelectItem::UnnamedExpr(e) => {
                    let name = output_name(e).unwrap_or_else(|| "?column?".to_owned());
                    let e = self.expr(e)?;
                    items.push((name, if keep_unknown { e } else { self.known(e)? }));
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    let e = self.expr(expr)?;
                    items.push((ident(alias), if keep_unknown { e } else { self.known(e)? }));
                }
                SelectItem::Wildcard(options) => {
                    plain_wildcard(options)?;
                    let entries: Vec<(String, ColId)> = self
                        .scope()
                        .entries
                        .iter()
                        .filter(|e| e.visible && e.bare)
                        .map(|e| (e.name.to_string(), e.col))
                        .collect();
                    if self.scope().entries.is_empty() {
                        return Err(Error::syntax("SELECT * with no tables specified is not valid"));
                    }
                    items.extend(entries.into_iter().map(|(n, c)| (n, self.col_expr(c))));
                }
                SelectItem::QualifiedWildcard(kind, options) => {
                    plain_wildcard(options)?;
                    let ast::SelectItemQualifiedWildcardKind::ObjectName(name) = kind else {
                        return Err(Error::unsupported("* of an expression"));
                    };
                    let (_, q) = qualified_name(name)?;
                    let entries: Vec<(String, ColId)> = self
                        .scope()
                        .entries
                        .iter()
                        .filter(|e| e.visible && e.qualifier.as_deref() == Some(&*q))
                        .map(|e| (e.name.to_string(), e.col))
                        .collect();
                    if !self.scope().entries.iter().any(|e| e.qualifier.as_deref() == Some(&*q)) {
                        let error = Error::new(
                            SqlState::UNDEFINED_TABLE,
                            format!("missing FROM-clause entry for table \"{q}\""),
                        );
                        return Err(self.at(error, sqlparser::ast::Spanned::span(name)));
                    }
                    items.extend(entries.into_iter().map(|(n, c)| (n, self.col_expr(c))));
                }
                SelectItem::ExprWithAliases { .. } => return Err(Error::unsupported("several aliases")),
            }
        }
        Ok(items)
    }

    /// GROUP BY: a number, a column of FROM, a name of the select list, an expression; in this order.
    fn group_key(&mut self, e: &ast::Expr, items: &[(String, Expr)]) -> Result<Expr, Error> {
        match strip(e) {
            ast::Expr::Value(v) => {
                if let ast::Value::Number(n, _) = &v.value {
                    return match n.parse::<usize>() {
                        Ok(i) if i >= 1 && i <= items.len() => Ok(items[i - 1].1.clone()),
                        _ => Err(Error::new(
                            SqlState::INVALID_COLUMN_REFERENCE,
                            format!("GROUP BY position {n} is not in select list"),
                        )),
                    };
                }
            }
            ast::Expr::Identifier(i) => {
                let name = ident(i);
                let local = self.scope().entries.iter().any(|e| e.bare && *e.name == *name);
                if !local && let Some((_, e)) = items.iter().find(|(n, _)| *n == name) {
                    return Ok(e.clone());
                }
            }
            ast::Expr::Rollup(_) | ast::Expr::Cube(_) | ast::Expr::GroupingSets(_) => {
                return Err(Error::unsupported("ROLLUP, CUBE and GROUPING SETS"));
            }
            _ => {}
        }
        self.scope().no_aggregates = Some("GROUP BY");
        let bound = self.expr(e).and_then(|e| self.known(e));
        self.scope().no_aggregates = None;
        bound
    }

    /// Replaces group keys in an expression above the grouping; columns that are none are an error, unless the
    /// primary key of their table is grouped by.
    fn regroup(
        &mut self,
        e: &mut Expr,
        keys: &mut Vec<(ColId, Expr)>,
        local: &BTreeSet<ColId>,
    ) -> Result<(), Error> {
        if let Some((col, k)) = keys.iter().find(|(_, k)| k == e) {
            *e = Expr::col(*col, k.ty);
            return Ok(());
        }
        let mut error = None;
        if let Kind::Col(c) = e.kind {
            if local.contains(&c) {
                return self.dependent_key(c, keys);
            }
            return Ok(());
        }
        e.children_mut(&mut |child| {
            if error.is_none() {
                error = self.regroup(child, keys, local).err();
            }
        });
        if let Kind::Sub(sub) = &e.kind
            && error.is_none()
        {
            for c in sub.rel.free().intersection(local) {
                error = error.or(self.dependent_key(*c, keys).err());
            }
        }
        error.map_or(Ok(()), Err)
    }

    fn dependent_key(&mut self, col: ColId, keys: &mut Vec<(ColId, Expr)>) -> Result<(), Error> {
        if keys.iter().any(|(c, _)| *c == col) {
            return Ok(());
        }
        let info = &self.cols[col as usize];
        if let Some(instance) = info.instance {
            let (table, cols) = &self.instances[instance];
            let covered = !table.has_row_id()
                && table.primary.columns.iter().all(|(id, _)| {
                    table.position(*id).is_some_and(|p| keys.iter().any(|(c, _)| *c == cols[p]))
                });
            if covered {
                keys.push((col, self.col_expr(col)));
                return Ok(());
            }
        }
        let shown = self
            .scopes
            .last()
            .and_then(|s| s.entries.iter().find(|e| e.col == col))
            .map(|e| match &e.qualifier {
                Some(q) => format!("{q}.{}", e.name),
                None => e.name.to_string(),
            })
            .unwrap_or_else(|| info.name.to_string());
        Err(Error::new(
            SqlState::GROUPING_ERROR,
            format!(
                "column \"{shown}\" must appear in the GROUP BY clause or be used in an aggregate function"
            ),
        ))
    }
}

fn plain_wildcard(o: &ast::WildcardAdditionalOptions) -> Result<(), Error> {
    if o.opt_ilike.is_some()
        || o.opt_exclude.is_some()
        || o.opt_except.is_some()
        || o.opt_replace.is_some()
        || o.opt_rename.is_some()
        || o.opt_alias.is_some()
    {
        return Err(Error::unsupported("options of *"));
    }
    Ok(())
}

/// The name that PostgreSQL gives an output column without an alias.
fn output_name(e: &ast::Expr) -> Option<String> {
    match e {
        ast::Expr::Identifier(i) => Some(ident(i)),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(ident),
        ast::Expr::Nested(e) | ast::Expr::Collate { expr: e, .. } => output_name(e),
        ast::Expr::CompoundFieldAccess { root, .. } => output_name(root),
        ast::Expr::Function(f) => super::name_parts(&f.name).ok()?.pop(),
        ast::Expr::Cast { expr, data_type, .. } => output_name(expr).or_else(|| {
            super::types::data_type(data_type).ok().map(|t| match t {
                Type::Array(e) => e.name().to_owned(),
                t => t.name().to_owned(),
            })
        }),
        ast::Expr::TypedString(t) => super::types::data_type(&t.data_type).ok().map(|t| t.name().to_owned()),
        ast::Expr::Interval(_) => Some("interval".to_owned()),
        ast::Expr::Value(v) if matches!(v.value, ast::Value::Boolean(_)) => Some("bool".to_owned()),
        ast::Expr::Case { else_result, .. } => {
            Some(else_result.as_deref().and_then(output_name).unwrap_or_else(|| "case".to_owned()))
        }
        ast::Expr::Exists { negated: false, .. } => Some("exists".to_owned()),
        ast::Expr::Array(_) => Some("array".to_owned()),
        ast::Expr::Extract { .. } => Some("extract".to_owned()),
        ast::Expr::Ceil { .. } => Some("ceil".to_owned()),
        ast::Expr::Floor { .. } => Some("floor".to_owned()),
        ast::Expr::Position { .. } => Some("position".to_owned()),
        ast::Expr::Substring { .. } => Some("substring".to_owned()),
        ast::Expr::Overlay { .. } => Some("overlay".to_owned()),
        ast::Expr::AtTimeZone { .. } => Some("timezone".to_owned()),
        ast::Expr::Trim { trim_where, .. } => Some(
            match trim_where {
                None | Some(ast::TrimWhereField::Both) => "btrim",
                Some(ast::TrimWhereField::Leading) => "ltrim",
                Some(ast::TrimWhereField::Trailing) => "rtrim",
            }
            .to_owned(),
        ),
        ast::Expr::Subquery(q) => match q.body.as_ref() {
            SetExpr::Select(s) => match s.projection.first()? {
                SelectItem::UnnamedExpr(e) => output_name(e),
                SelectItem::ExprWithAlias { alias, .. } => Some(ident(alias)),
                _ => None,
            },
            SetExpr::Values(_) => Some("column1".to_owned()),
            _ => None,
        },
        _ => None,
    }
}
