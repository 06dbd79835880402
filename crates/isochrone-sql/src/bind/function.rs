//! Binding of function calls: special forms, aggregates, sequences, set-returning functions, the registries.

use isochrone_types::{
    CastContext, Datum, Error, SqlState, Type, aggregate, can_cast, common_type, function, resolve_function,
};
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments};
use sqlparser::tokenizer::Span;

use super::expr::split_name;
use super::{Binder, name_parts};
use crate::catalog::advisory::Mode;
use crate::plan::expr::{Expr, Function, Kind, Sub, SubKind};
use crate::plan::rel::{Aggregate, Rel, SetFunction, SortKey};
use crate::relation::AdvisoryCall;

/// Functions that return sets, which FROM and the select list may call.
pub(crate) fn is_set_function(name: &str) -> bool {
    matches!(name, "generate_series" | "unnest")
}

impl Binder<'_> {
    pub(crate) fn function(&mut self, f: &ast::Function) -> Result<Expr, Error> {
        let mut parts = name_parts(&f.name)?;
        let name = parts.pop().unwrap_or_default();
        let span = sqlparser::ast::Spanned::span(&f.name);
        if f.over.is_some() {
            return Err(Error::unsupported(format!("window function {name}")));
        }
        if !f.within_group.is_empty() {
            return Err(Error::unsupported("WITHIN GROUP"));
        }
        if f.null_treatment.is_some() {
            return Err(Error::unsupported("IGNORE NULLS"));
        }
        let empty = Vec::new();
        let (args, distinct, order): (&[FunctionArg], bool, Vec<&ast::OrderByExpr>) = match &f.args {
            FunctionArguments::None => (&empty, false, Vec::new()),
            FunctionArguments::Subquery(q) => {
                if name == "array" {
                    return self.array_subquery(q);
                }
                let q = ast::Expr::Subquery(q.clone());
                let arg = self.expr(&q)?;
                return self.call(&name, vec![arg], span);
            }
            FunctionArguments::List(l) => {
                let mut order = Vec::new();
                for c in &l.clauses {
                    match c {
                        ast::FunctionArgumentClause::OrderBy(keys) => order.extend(keys),
                        other => return Err(Error::unsupported(format!("{other} in a function call"))),
                    }
                }
                (&l.args, matches!(l.duplicate_treatment, Some(ast::DuplicateTreatment::Distinct)), order)
            }
        };
        if aggregate::is_aggregate(&name) {
            return self.aggregate_call(&name, args, distinct, order, f.filter.as_deref(), span);
        }
        if distinct || !order.is_empty() || f.filter.is_some() {
            let what = if distinct {
                "DISTINCT"
            } else if f.filter.is_some() {
                "FILTER"
            } else {
                "ORDER BY"
            };
            return Err(Error::new(
                SqlState::WRONG_OBJECT_TYPE,
                format!("{what} specified, but {name} is not an aggregate function"),
            ));
        }
        let exprs = args.iter().map(argument).collect::<Result<Vec<_>, _>>()?;
        match (name.as_str(), exprs.as_slice()) {
            ("coalesce", [_, ..]) => {
                let items = self.same_type(&exprs, "COALESCE")?;
                let ty = items[0].ty;
                return Ok(Expr::new(Kind::Coalesce(items), ty));
            }
            ("greatest" | "least", [_, ..]) => {
                let items = self.same_type(&exprs, if name == "greatest" { "GREATEST" } else { "LEAST" })?;
                let ty = items[0].ty;
                return Ok(Expr::new(Kind::Extreme(name == "greatest", items), ty));
            }
            ("nullif", [a, b]) => {
                let (a, b) = (self.expr(a)?, self.expr(b)?);
                if a.is_volatile() {
                    return Err(Error::unsupported("NULLIF of a volatile expression"));
                }
                let a = if a.ty == Type::Unknown { self.coerce(a, Type::Text)? } else { a };
                let equal = self.operator("=", a.clone(), b, None)?;
                let ty = a.ty;
                let null = Expr::constant(Datum::Null, ty);
                return Ok(Expr::new(Kind::Case(vec![(equal, null)], Some(Box::new(a))), ty));
            }
            ("nextval" | "currval", [a]) => {
                let oid = self.sequence_argument(a)?;
                let kind = if name == "nextval" { Kind::NextVal(oid) } else { Kind::CurrVal(oid) };
                return Ok(Expr::new(kind, Type::Int8));
            }
            ("lastval", []) => return Ok(Expr::new(Kind::LastVal, Type::Int8)),
            ("setval", [a, v] | [a, v, _]) => {
                let oid = self.sequence_argument(a)?;
                let v = self.expr(v)?;
                let v = self.coerce(v, Type::Int8)?;
                let called = match exprs.get(2) {
                    Some(c) => self.condition(c, "setval")?,
                    None => Expr::bool(true),
                };
                return Ok(Expr::new(Kind::SetVal(oid, Box::new([v, called])), Type::Int8));
            }
            (advisory, _) if advisory.starts_with("pg_") && advisory.contains("_advisory_") => {
                if let Some(call) = advisory_call(advisory, exprs.len()) {
                    return self.advisory(call, &name, &exprs, span);
                }
            }
            ("pg_typeof", [a]) => {
                let e = self.expr(a)?;
                let ty = e.ty;
                return Ok(Expr::constant(Datum::Oid(ty.oid()), Type::Regtype));
            }
            ("row", _) => return Err(Error::unsupported("a row value here")),
            _ => {}
        }
        let mut bound = Vec::with_capacity(exprs.len());
        for e in exprs {
            bound.push(self.expr(e)?);
        }
        if is_set_function(&name) {
            let allowed = self.scopes.last().is_some_and(|s| s.set_functions_allowed && !s.in_aggregate);
            if !allowed {
                return Err(Error::new(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "set-returning functions are not allowed here",
                ));
            }
            let rel = self.set_function(&name, bound, false)?;
            let Rel::Function { cols, args, .. } = &rel else {
                return Err(Error::internal("a set function is a function"));
            };
            let col = cols[0];
            let mut used = std::collections::BTreeSet::new();
            args.iter().for_each(|a| a.columns(&mut used));
            if self.scope().entries.iter().any(|e| used.contains(&e.col)) {
                return Err(Error::unsupported("a set-returning function of the query's own columns"));
            }
            if !self.scope().set_functions.is_empty() {
                return Err(Error::unsupported("more than one set-returning function in a select list"));
            }
            self.scope().set_functions.push(rel);
            return Ok(self.col_expr(col));
        }
        self.call(&name, bound, span)
    }

    /// A function on advisory locks: on one bigint, or two ints.
    fn advisory(
        &mut self,
        call: AdvisoryCall,
        name: &str,
        exprs: &[&ast::Expr],
        span: Span,
    ) -> Result<Expr, Error> {
        let number = if exprs.len() == 1 { Type::Int8 } else { Type::Int4 };
        let args = exprs.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?;
        let fits = |a: &Expr| can_cast(&a.ty, &number, CastContext::Implicit);
        if !args.iter().all(fits) {
            return self.call(name, args, span); // there is no such function, in PostgreSQL's words
        }
        let args = args.into_iter().map(|a| self.coerce(a, number)).collect::<Result<Vec<_>, _>>()?;
        let ty = match call {
            AdvisoryCall::Lock { wait: true, .. } | AdvisoryCall::UnlockAll => Type::Void,
            _ => Type::Bool,
        };
        Ok(Expr::new(Kind::Advisory(call, args), ty))
    }

    /// A call of a scalar function by name.
    pub(crate) fn call(&mut self, name: &str, args: Vec<Expr>, span: Span) -> Result<Expr, Error> {
        let types: Vec<Type> = args.iter().map(|a| a.ty).collect();
        let builtin = function::function_exists(name);
        if builtin {
            match resolve_function(name, &types) {
                Ok(f) => {
                    let mut coerced = Vec::with_capacity(args.len());
                    for (a, t) in args.into_iter().zip(&f.arg_types) {
                        coerced.push(self.coerce(a, *t)?);
                    }
                    let ty = f.result;
                    return Ok(self.make_call(Function::Builtin(f), coerced, ty));
                }
                Err(e) => {
                    if self.catalog.function(name, &types).is_none() && !(args.len() == 1 && is_type(name)) {
                        return Err(self.at(e, span));
                    }
                }
            }
        }
        if let Some(f) = self.catalog.function(name, &types) {
            if f.args.len() != args.len() {
                return Err(Error::internal(format!(
                    "function {name} was found for {} arguments but takes {}",
                    args.len(),
                    f.args.len()
                )));
            }
            let mut coerced = Vec::with_capacity(args.len());
            for (a, t) in args.into_iter().zip(&f.args) {
                coerced.push(self.coerce(a, *t)?);
            }
            let ty = f.result;
            return Ok(Expr::new(
                Kind::Call(std::sync::Arc::new(Function::Session(name.to_owned(), f)), coerced),
                ty,
            ));
        }
        // A cast in the form of a call.
        if args.len() == 1
            && is_type(name)
            && let Some(ty) = Type::from_sql_name(name)
        {
            let arg = args.into_iter().next().expect("there is one");
            return self.cast_to(arg, ty, CastContext::Explicit);
        }
        let list: Vec<String> = types.iter().map(|t| t.base_sql_name()).collect();
        let error = Error::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("function {name}({}) does not exist", list.join(", ")),
        )
        .with_hint("No function matches the given name and argument types. You might need to add explicit type casts.");
        Err(self.at(error, span))
    }

    /// Makes the relation of a set-returning function.
    pub(crate) fn set_function(
        &mut self,
        name: &str,
        args: Vec<Expr>,
        ordinality: bool,
    ) -> Result<Rel, Error> {
        let (function, args, ty) = match (name, args.len()) {
            ("generate_series", 2 | 3) => {
                let types: Vec<Type> = args.iter().map(|a| a.ty).collect();
                let dated =
                    types[..2].iter().any(|t| matches!(t, Type::Timestamp | Type::Timestamptz | Type::Date));
                if dated {
                    if args.len() != 3 {
                        return Err(Error::new(
                            SqlState::UNDEFINED_FUNCTION,
                            "function generate_series of timestamps needs an interval",
                        ));
                    }
                    let ty = if types[..2].contains(&Type::Timestamp) {
                        Type::Timestamp
                    } else {
                        Type::Timestamptz
                    };
                    let mut it = args.into_iter();
                    let mut out = Vec::new();
                    for t in [ty, ty, Type::Interval] {
                        let a = it.next().expect("three arguments");
                        out.push(self.coerce(a, t)?);
                    }
                    (SetFunction::SeriesTime, out, ty)
                } else {
                    let mut ty = common_type(&types, "generate_series")?.base();
                    if matches!(ty, Type::Text | Type::Int2) {
                        ty = Type::Int4;
                    }
                    let function = match ty {
                        Type::Int4 | Type::Int8 => SetFunction::SeriesInt,
                        Type::Numeric(_) => SetFunction::SeriesNumeric,
                        _ => {
                            return Err(Error::new(
                                SqlState::UNDEFINED_FUNCTION,
                                format!("function generate_series({ty}, {ty}) does not exist"),
                            ));
                        }
                    };
                    let mut out = Vec::new();
                    for a in args {
                        out.push(self.coerce(a, ty)?);
                    }
                    (function, out, ty)
                }
            }
            ("unnest", 1) => {
                let Some(element) = args[0].ty.element() else {
                    return Err(Error::new(
                        SqlState::UNDEFINED_FUNCTION,
                        format!("function unnest({}) does not exist", args[0].ty),
                    ));
                };
                (SetFunction::Unnest, args, element)
            }
            ("generate_series" | "unnest", _) => {
                return Err(Error::unsupported(format!("{name} with {} arguments", args.len())));
            }
            _ => {
                let call = self.call(name, args, Span::empty())?;
                let call = self.known(call)?;
                let ty = call.ty;
                (SetFunction::Scalar, vec![call], ty)
            }
        };
        let mut cols = vec![self.new_col(name, ty)];
        if ordinality {
            cols.push(self.new_col("ordinality", Type::Int8));
        }
        Ok(Rel::Function { function, name: name.into(), args, cols })
    }

    fn same_type(&mut self, args: &[&ast::Expr], what: &str) -> Result<Vec<Expr>, Error> {
        let mut items = Vec::new();
        for a in args {
            items.push(self.expr(a)?);
        }
        let ty = common_type(&items.iter().map(|i| i.ty).collect::<Vec<_>>(), what)?;
        items.into_iter().map(|i| self.coerce(i, ty)).collect()
    }

    fn array_subquery(&mut self, q: &ast::Query) -> Result<Expr, Error> {
        let query = self.query(q, false)?;
        let [out] = query.out.as_slice() else {
            return Err(Error::syntax("subquery must return only one column"));
        };
        let array = out.ty.base().array_of().ok_or_else(|| Error::unsupported("arrays of arrays"))?;
        let sub = Sub {
            kind: SubKind::Array(out.ty.base()),
            left: Vec::new(),
            cols: vec![out.col],
            rel: query.rel,
        };
        Ok(Expr::new(Kind::Sub(Box::new(sub)), array))
    }

    /// The sequence that a literal names, `::regclass` or not.
    fn sequence_argument(&mut self, e: &ast::Expr) -> Result<u32, Error> {
        let mut at = e;
        loop {
            match at {
                ast::Expr::Nested(e) | ast::Expr::Cast { expr: e, .. } => at = e,
                ast::Expr::Value(v) => {
                    let Some(name) = v.value.clone().into_string() else { break };
                    if let Ok(oid) = name.parse() {
                        return Ok(oid);
                    }
                    let parts = split_name(&name);
                    let (schema, sequence) = match parts.as_slice() {
                        [s] => (None, s.as_str()),
                        [.., q, s] => (Some(q.as_str()), s.as_str()),
                        [] => break,
                    };
                    return match self.catalog.sequence(schema, sequence) {
                        Some(s) => Ok(s.oid),
                        None => Err(Error::new(
                            SqlState::UNDEFINED_TABLE,
                            format!("relation \"{name}\" does not exist"),
                        )),
                    };
                }
                _ => break,
            }
        }
        Err(Error::unsupported("a sequence named by an expression"))
    }

    fn aggregate_call(
        &mut self,
        name: &str,
        args: &[FunctionArg],
        distinct: bool,
        order: Vec<&ast::OrderByExpr>,
        filter: Option<&ast::Expr>,
        span: Span,
    ) -> Result<Expr, Error> {
        let Some(scope) = self.scopes.last() else {
            return Err(Error::new(SqlState::GROUPING_ERROR, "aggregate functions are not allowed here"));
        };
        if let Some(clause) = scope.no_aggregates {
            let error = Error::new(
                SqlState::GROUPING_ERROR,
                format!("aggregate functions are not allowed in {clause}"),
            );
            return Err(self.at(error, span));
        }
        if scope.in_aggregate {
            let error = Error::new(SqlState::GROUPING_ERROR, "aggregate function calls cannot be nested");
            return Err(self.at(error, span));
        }
        self.scope().in_aggregate = true;
        let bound = self.aggregate_parts(name, args, distinct, order, filter);
        self.scope().in_aggregate = false;
        let aggregate = bound?;

        let mut used = std::collections::BTreeSet::new();
        aggregate.args.iter().for_each(|a| a.columns(&mut used));
        let local =
            self.scopes.last().expect("a scope is open").entries.iter().any(|e| used.contains(&e.col));
        let outer = self.scopes.len() > 1
            && self.scopes[..self.scopes.len() - 1]
                .iter()
                .any(|s| s.entries.iter().any(|e| used.contains(&e.col)));
        if outer && !local {
            return Err(Error::unsupported("an aggregate of an outer query's columns"));
        }
        if !aggregate.args.iter().any(Expr::is_volatile) {
            let scope = self.scope();
            if let Some((col, _)) = scope.aggregates.iter().find(|(_, a)| *a == aggregate) {
                let col = *col;
                return Ok(self.col_expr(col));
            }
        }
        let col = self.new_col(name, aggregate.spec.result);
        self.scope().aggregates.push((col, aggregate));
        Ok(self.col_expr(col))
    }

    fn aggregate_parts(
        &mut self,
        name: &str,
        args: &[FunctionArg],
        distinct: bool,
        order: Vec<&ast::OrderByExpr>,
        filter: Option<&ast::Expr>,
    ) -> Result<Aggregate, Error> {
        let mut bound = Vec::new();
        for a in args {
            match a {
                FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" && args.len() == 1 => {}
                a => {
                    let e = argument(a)?;
                    bound.push(self.expr(e)?);
                }
            }
        }
        if name == "count" && args.is_empty() {
            return Err(Error::new(
                SqlState::WRONG_OBJECT_TYPE,
                "count(*) must be used to call a parameterless aggregate function",
            ));
        }
        let types: Vec<Type> = bound.iter().map(|a| a.ty).collect();
        let spec = aggregate::aggregate(name, &types)?
            .ok_or_else(|| Error::internal(format!("aggregate {name} is not in the registry")))?;
        let mut coerced = Vec::new();
        for (a, t) in bound.into_iter().zip(&spec.arg_types) {
            coerced.push(self.coerce(a, *t)?);
        }
        let filter = filter.map(|f| self.condition(f, "FILTER")).transpose()?;
        let mut keys = Vec::new();
        for o in order {
            let e = self.expr(&o.expr)?;
            let e = self.known(e)?;
            let (desc, nulls_first) = super::query::direction(&o.options)?;
            keys.push(SortKey { expr: e, desc, nulls_first });
        }
        if distinct && !keys.is_empty() && !keys.iter().all(|k| coerced.contains(&k.expr)) {
            return Err(Error::new(
                SqlState::INVALID_COLUMN_REFERENCE,
                "in an aggregate with DISTINCT, ORDER BY expressions must appear in argument list",
            ));
        }
        Ok(Aggregate { spec, args: coerced, distinct, filter, order: keys })
    }
}

fn is_type(name: &str) -> bool {
    Type::from_sql_name(name).is_some()
}

pub(crate) fn argument(a: &FunctionArg) -> Result<&ast::Expr, Error> {
    match a {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Ok(e),
        FunctionArg::Unnamed(_) => Err(Error::unsupported("* as an argument of this function")),
        _ => Err(Error::unsupported("named arguments")),
    }
}

/// The function on advisory locks of this name, with so many arguments.
fn advisory_call(name: &str, args: usize) -> Option<AdvisoryCall> {
    if name == "pg_advisory_unlock_all" {
        return (args == 0).then_some(AdvisoryCall::UnlockAll);
    }
    if !(1..=2).contains(&args) {
        return None;
    }
    let (name, mode) = match name.strip_suffix("_shared") {
        Some(name) => (name, Mode::Shared),
        None => (name, Mode::Exclusive),
    };
    Some(match name {
        "pg_advisory_lock" => AdvisoryCall::Lock { mode, transaction: false, wait: true },
        "pg_advisory_xact_lock" => AdvisoryCall::Lock { mode, transaction: true, wait: true },
        "pg_try_advisory_lock" => AdvisoryCall::Lock { mode, transaction: false, wait: false },
        "pg_try_advisory_xact_lock" => AdvisoryCall::Lock { mode, transaction: true, wait: false },
        "pg_advisory_unlock" => AdvisoryCall::Unlock { mode },
        _ => return None,
    })
}
