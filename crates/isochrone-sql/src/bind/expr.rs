//! Binding of scalar expressions: names, literals, operators, coercion, subqueries.

use std::sync::Arc;

use isochrone_types::{
    CastContext, Datum, Error, SqlState, Type, Volatility, cast, common_type, resolve_operator, text,
};
use rustc_hash::FxHashSet;
use sqlparser::ast::{self, BinaryOperator, UnaryOperator, Value};
use sqlparser::tokenizer::Span;

use super::types::data_type;
use super::{Binder, ident, name_parts};
use crate::plan::expr::{Comparison, Expr, Function, HashedList, Kind, QuantOp, Sub, SubKind};

/// Constant IN lists longer than this are hashed.
const LIST_HASHED_FROM: usize = 8;

/// Do these two types share their variant of `Datum` and its order?
fn comparable(a: Type, b: Type) -> bool {
    let text = |t: Type| {
        matches!(t, Type::Text | Type::Varchar(_) | Type::Name | Type::InternalChar | Type::Unknown)
    };
    let oid = |t: Type| matches!(t, Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc);
    let float = |t: Type| matches!(t, Type::Float4 | Type::Float8);
    a.same_base(b)
        || (a.is_integer() && b.is_integer())
        || (text(a) && text(b))
        || (oid(a) && oid(b))
        || (float(a) && float(b))
}

impl Binder<'_> {
    /// Binds an expression; literals and parameters may come out `unknown`.
    pub(crate) fn expr(&mut self, e: &ast::Expr) -> Result<Expr, Error> {
        match e {
            ast::Expr::Identifier(i) => self.column_name(None, i),
            ast::Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [name] => self.column_name(None, name),
                [q, name] => self.column_name(Some(q), name),
                [_, q, name] | [_, _, q, name] => self.column_name(Some(q), name),
                _ => Err(Error::syntax("improper qualified name (too many dotted names)")),
            },
            ast::Expr::Nested(e) => self.expr(e),
            ast::Expr::Value(v) => self.literal(&v.value, v.span),
            ast::Expr::BinaryOp { .. } => self.binary_chain(e),
            ast::Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            ast::Expr::IsNull(e) => {
                let e = self.expr(e)?;
                Ok(Expr::new(Kind::IsNull(Box::new(e)), Type::Bool))
            }
            ast::Expr::IsNotNull(e) => {
                let e = self.expr(e)?;
                Ok(Expr::new(Kind::IsNull(Box::new(e)), Type::Bool).negated(true))
            }
            ast::Expr::IsTrue(e) => self.is_test(e, Some(true), false),
            ast::Expr::IsNotTrue(e) => self.is_test(e, Some(true), true),
            ast::Expr::IsFalse(e) => self.is_test(e, Some(false), false),
            ast::Expr::IsNotFalse(e) => self.is_test(e, Some(false), true),
            ast::Expr::IsUnknown(e) => self.is_test(e, None, false),
            ast::Expr::IsNotUnknown(e) => self.is_test(e, None, true),
            ast::Expr::IsDistinctFrom(a, b) => self.distinct_from(a, b, false),
            ast::Expr::IsNotDistinctFrom(a, b) => self.distinct_from(a, b, true),
            ast::Expr::InList { expr, list, negated } => self.in_list(expr, list, *negated),
            ast::Expr::InSubquery { expr, subquery, negated } => {
                let left = match strip(expr) {
                    ast::Expr::Tuple(items) => {
                        items.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?
                    }
                    e => vec![self.expr(e)?],
                };
                let query = self.query(subquery, true)?;
                if query.out.len() != left.len() {
                    return Err(Error::syntax(if query.out.len() > left.len() {
                        "subquery has too many columns"
                    } else {
                        "subquery has too few columns"
                    }));
                }
                let mut rel = query.rel;
                let mut cols = Vec::new();
                let mut left_cast = Vec::new();
                let mut exprs = Vec::new();
                for (l, out) in left.into_iter().zip(&query.out) {
                    let r = Expr::col(out.col, out.ty);
                    let (l, r) = self.equal_operands(l, r)?;
                    let col = self.new_col(&out.name, r.ty);
                    cols.push(col);
                    exprs.push((col, r));
                    left_cast.push(l);
                }
                rel = crate::plan::rel::Rel::Project { input: Box::new(rel), exprs };
                let sub = Sub { kind: SubKind::In, left: left_cast, rel, cols };
                Ok(Expr::new(Kind::Sub(Box::new(sub)), Type::Bool).negated(*negated))
            }
            ast::Expr::Between { expr, negated, low, high } => {
                let x = self.expr(expr)?;
                let low = self.expr(low)?;
                let high = self.expr(high)?;
                let a = self.operator(">=", x.clone(), low, None)?;
                let b = self.operator("<=", x, high, None)?;
                Ok(Expr::and(vec![a, b]).negated(*negated))
            }
            ast::Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                self.like("~~", "!~~", *negated, expr, pattern, escape_char.as_deref())
            }
            ast::Expr::ILike { negated, any: false, expr, pattern, escape_char } => {
                self.like("~~*", "!~~*", *negated, expr, pattern, escape_char.as_deref())
            }
            ast::Expr::SimilarTo { negated, expr, pattern, escape_char } => {
                let x = self.expr(expr)?;
                let mut args = vec![self.expr(pattern)?];
                if let Some(e) = escape_char {
                    args.push(self.expr(e)?);
                }
                let pattern = self.call("similar_to_escape", args, Span::empty())?;
                Ok(self.operator("~", x, pattern, None)?.negated(*negated))
            }
            ast::Expr::AnyOp { left, compare_op, right, .. } => {
                self.quantified(left, compare_op, right, false)
            }
            ast::Expr::AllOp { left, compare_op, right } => self.quantified(left, compare_op, right, true),
            ast::Expr::Cast { kind, expr, data_type: ty, .. } => {
                if !matches!(kind, ast::CastKind::Cast | ast::CastKind::DoubleColon) {
                    return Err(Error::unsupported("TRY_CAST"));
                }
                if let Some((to_name, to_oid)) = oid_alias(ty) {
                    // No types of their own: from an oid they give the name, from a name the oid.
                    let e = self.expr(expr)?;
                    let text = e.ty.is_string() || e.ty == Type::Unknown;
                    let span = sqlparser::ast::Spanned::span(expr.as_ref());
                    return self.call(if text { to_oid } else { to_name }, vec![e], span);
                }
                let ty = data_type(ty)?;
                if let (ast::Expr::Array(a), Type::Array(_)) = (strip(expr), ty)
                    && a.elem.is_empty()
                {
                    return Ok(Expr::constant(
                        Datum::array(ty.element().unwrap_or(Type::Text), Vec::new()),
                        ty,
                    ));
                }
                let e = self.expr(expr)?;
                self.cast_to(e, ty, CastContext::Explicit)
            }
            ast::Expr::TypedString(t) => {
                let ty = data_type(&t.data_type)?;
                let s = t
                    .value
                    .value
                    .clone()
                    .into_string()
                    .ok_or_else(|| Error::syntax("a string was expected"))?;
                self.cast_to(Expr::constant(Datum::text(s), Type::Unknown), ty, CastContext::Explicit)
            }
            ast::Expr::Interval(i) => self.interval(i),
            ast::Expr::AtTimeZone { timestamp, time_zone } => {
                let zone = self.expr(time_zone)?;
                let at = self.expr(timestamp)?;
                self.call("timezone", vec![zone, at], Span::empty())
            }
            ast::Expr::Extract { field, expr, .. } => {
                let field = Expr::constant(
                    Datum::text(field.to_string().trim_matches(['\'', '"']).to_lowercase()),
                    Type::Text,
                );
                let e = self.expr(expr)?;
                self.call("extract", vec![field, e], Span::empty())
            }
            ast::Expr::Ceil { expr, field } => self.rounding("ceil", expr, field),
            ast::Expr::Floor { expr, field } => self.rounding("floor", expr, field),
            ast::Expr::Position { expr, r#in } => {
                let needle = self.expr(expr)?;
                let hay = self.expr(r#in)?;
                self.call("strpos", vec![hay, needle], Span::empty())
            }
            ast::Expr::Substring { expr, substring_from, substring_for, .. } => {
                let mut args = vec![self.expr(expr)?];
                match (substring_from, substring_for) {
                    (Some(f), _) => args.push(self.expr(f)?),
                    (None, Some(_)) => args.push(Expr::constant(Datum::Int4(1), Type::Int4)),
                    (None, None) => {}
                }
                if let Some(n) = substring_for {
                    args.push(self.expr(n)?);
                }
                self.call("substring", args, Span::empty())
            }
            ast::Expr::Trim { trim_where, trim_what, expr, trim_characters } => {
                let name = match trim_where {
                    None | Some(ast::TrimWhereField::Both) => "btrim",
                    Some(ast::TrimWhereField::Leading) => "ltrim",
                    Some(ast::TrimWhereField::Trailing) => "rtrim",
                };
                let mut args = vec![self.expr(expr)?];
                if let Some(what) = trim_what {
                    args.push(self.expr(what)?);
                }
                for what in trim_characters.iter().flatten() {
                    args.push(self.expr(what)?);
                }
                self.call(name, args, Span::empty())
            }
            ast::Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
                let mut args = vec![self.expr(expr)?, self.expr(overlay_what)?, self.expr(overlay_from)?];
                if let Some(n) = overlay_for {
                    args.push(self.expr(n)?);
                }
                self.call("overlay", args, Span::empty())
            }
            ast::Expr::Collate { expr, collation } => {
                let name = name_parts(collation)?.pop().unwrap_or_default();
                if !matches!(name.as_str(), "default" | "C" | "c" | "POSIX" | "posix" | "ucs_basic") {
                    return Err(Error::unsupported(format!("collation \"{name}\"")));
                }
                self.expr(expr)
            }
            ast::Expr::Function(f) => self.function(f),
            ast::Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            ast::Expr::Exists { subquery, negated } => {
                let query = self.query(subquery, false)?;
                let cols = query.out.iter().map(|o| o.col).collect();
                let sub = Sub { kind: SubKind::Exists, left: Vec::new(), rel: query.rel, cols };
                Ok(Expr::new(Kind::Sub(Box::new(sub)), Type::Bool).negated(*negated))
            }
            ast::Expr::Subquery(q) => {
                let query = self.query(q, false)?;
                let [out] = query.out.as_slice() else {
                    return Err(Error::syntax("subquery must return only one column"));
                };
                let (col, ty) = (out.col, out.ty);
                let sub = Sub { kind: SubKind::Scalar, left: Vec::new(), rel: query.rel, cols: vec![col] };
                Ok(Expr::new(Kind::Sub(Box::new(sub)), ty))
            }
            ast::Expr::Array(a) => self.array(&a.elem),
            ast::Expr::CompoundFieldAccess { root, access_chain } => {
                let mut e = self.expr(root)?;
                for access in access_chain {
                    let ast::AccessExpr::Subscript(ast::Subscript::Index { index }) = access else {
                        return Err(Error::unsupported("composite field access or an array slice"));
                    };
                    let index = self.expr(index)?;
                    let index = self.coerce(index, Type::Int4)?;
                    let Some(element) = e.ty.element() else {
                        return Err(Error::new(
                            SqlState::DATATYPE_MISMATCH,
                            format!(
                                "cannot subscript type {} because it does not support subscripting",
                                e.ty
                            ),
                        ));
                    };
                    e = Expr::new(Kind::Subscript(Box::new([e, index])), element);
                }
                Ok(e)
            }
            ast::Expr::Tuple(_) => Err(Error::unsupported("a row value here")),
            other => {
                let name = format!("{other:?}");
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                Err(Error::unsupported(format!("expression form {name}")))
            }
        }
    }

    /// Binds a condition. `clause` is named in the error.
    pub(crate) fn condition(&mut self, e: &ast::Expr, clause: &str) -> Result<Expr, Error> {
        let e = self.expr(e)?;
        self.boolean(e, clause)
    }

    fn boolean(&mut self, e: Expr, clause: &str) -> Result<Expr, Error> {
        if e.ty == Type::Unknown || e.ty == Type::Bool {
            return self.coerce(e, Type::Bool);
        }
        Err(Error::new(
            SqlState::DATATYPE_MISMATCH,
            format!("argument of {clause} must be type boolean, not type {}", e.ty.base_sql_name()),
        ))
    }

    fn column_name(&mut self, qualifier: Option<&ast::Ident>, name: &ast::Ident) -> Result<Expr, Error> {
        let q = qualifier.map(ident);
        let n = ident(name);
        match self.resolve(q.as_deref(), &n, qualifier.unwrap_or(name).span) {
            Ok(col) => Ok(self.col_expr(col)),
            Err(e) => {
                // The few functions that PostgreSQL calls without parentheses.
                let bare = matches!(
                    n.as_str(),
                    "current_schema"
                        | "current_catalog"
                        | "current_role"
                        | "current_user"
                        | "session_user"
                        | "user"
                        | "localtime"
                        | "localtimestamp"
                        | "current_date"
                        | "current_time"
                        | "current_timestamp"
                );
                if bare && q.is_none() && name.quote_style.is_none() {
                    return self.call(&n, Vec::new(), name.span);
                }
                Err(e)
            }
        }
    }

    fn literal(&mut self, v: &Value, span: Span) -> Result<Expr, Error> {
        Ok(match v {
            Value::Number(n, _) => self.number(n)?,
            Value::Boolean(b) => Expr::bool(*b),
            Value::Null => Expr::constant(Datum::Null, Type::Unknown),
            Value::Placeholder(p) => {
                let number: usize = p.strip_prefix('$').and_then(|n| n.parse().ok()).unwrap_or(0);
                if number == 0 || number > isochrone_base::limits::PARAMETERS_MAX {
                    let error =
                        Error::new(SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {p}"));
                    return Err(self.at(error, span));
                }
                if self.params.len() < number {
                    self.params.resize(number, None);
                }
                Expr::new(Kind::Param(number - 1), self.params[number - 1].unwrap_or(Type::Unknown))
            }
            Value::HexStringLiteral(s) if s.starts_with("0x") => self.number(s)?,
            Value::HexStringLiteral(_) | Value::SingleQuotedByteStringLiteral(_) => {
                return Err(Error::unsupported("a bit string literal"));
            }
            other => match other.clone().into_string() {
                Some(s) => Expr::constant(Datum::text(s), Type::Unknown),
                None => return Err(Error::unsupported("this literal")),
            },
        })
    }

    fn number(&mut self, n: &str) -> Result<Expr, Error> {
        let plain = n.replace('_', "");
        if let Ok(v) = plain.parse::<i32>() {
            return Ok(Expr::constant(Datum::Int4(v), Type::Int4));
        }
        if let Ok(v) = plain.parse::<i64>() {
            return Ok(Expr::constant(Datum::Int8(v), Type::Int8));
        }
        let ty = Type::Numeric(None);
        Ok(Expr::constant(text::parse_text(&ty, &plain, self.settings)?, ty))
    }

    fn unary(&mut self, op: UnaryOperator, expr: &ast::Expr) -> Result<Expr, Error> {
        let symbol = match op {
            UnaryOperator::Not => {
                return Ok(self.condition(expr, "NOT")?.negated(true));
            }
            UnaryOperator::Minus => {
                if let ast::Expr::Value(v) = expr
                    && let Value::Number(n, _) = &v.value
                {
                    return self.number(&format!("-{n}"));
                }
                "-"
            }
            UnaryOperator::Plus => "+",
            UnaryOperator::BitwiseNot => "~",
            UnaryOperator::PGAbs => "@",
            UnaryOperator::PGSquareRoot => "|/",
            UnaryOperator::PGCubeRoot => "||/",
            other => return Err(Error::unsupported(format!("operator {other}"))),
        };
        let e = self.expr(expr)?;
        let f = resolve_operator(symbol, None, &e.ty)?;
        let arg = self.coerce(e, f.arg_types[0])?;
        let ty = f.result;
        Ok(self.make_call(Function::Builtin(f), vec![arg], ty))
    }

    /// Walks down the left side of a chain of operators without recursion.
    fn binary_chain(&mut self, e: &ast::Expr) -> Result<Expr, Error> {
        let mut spine = Vec::new();
        let mut at = e;
        while let ast::Expr::BinaryOp { left, op, right } = at {
            spine.push((op, right.as_ref()));
            at = left;
        }
        // Row comparisons take both sides unbound.
        if let (ast::Expr::Tuple(l), Some((op, right))) = (at, spine.last())
            && let ast::Expr::Tuple(r) = strip(right)
        {
            let first = self.row_comparison(l, op, r)?;
            spine.pop();
            return self.fold_chain(first, spine);
        }
        let first = self.expr(at)?;
        self.fold_chain(first, spine)
    }

    fn fold_chain(
        &mut self,
        mut acc: Expr,
        mut spine: Vec<(&BinaryOperator, &ast::Expr)>,
    ) -> Result<Expr, Error> {
        while let Some((op, right)) = spine.pop() {
            match op {
                BinaryOperator::And | BinaryOperator::Or => {
                    let is_and = *op == BinaryOperator::And;
                    let clause = if is_and { "AND" } else { "OR" };
                    let mut items = Vec::new();
                    let mut add = |e: Expr| match e.kind {
                        Kind::And(list) if is_and => items.extend(list),
                        Kind::Or(list) if !is_and => items.extend(list),
                        _ => items.push(e),
                    };
                    add(self.boolean(acc, clause)?);
                    add(self.condition(right, clause)?);
                    while spine.last().is_some_and(|(next, _)| *next == op) {
                        let (_, right) = spine.pop().expect("there is a next one");
                        add(self.condition(right, clause)?);
                    }
                    acc = Expr::new(if is_and { Kind::And(items) } else { Kind::Or(items) }, Type::Bool);
                }
                _ => {
                    let symbol = operator_symbol(op)?;
                    let span = sqlparser::ast::Spanned::span(right);
                    let right = self.expr(right)?;
                    acc = self.operator(&symbol, acc, right, Some(span))?;
                }
            }
        }
        Ok(acc)
    }

    fn row_comparison(
        &mut self,
        l: &[ast::Expr],
        op: &BinaryOperator,
        r: &[ast::Expr],
    ) -> Result<Expr, Error> {
        if l.len() != r.len() {
            return Err(Error::syntax("unequal number of entries in row expressions"));
        }
        let symbol = operator_symbol(op)?;
        let mut pairs = Vec::new();
        for (a, b) in l.iter().zip(r) {
            pairs.push((self.expr(a)?, self.expr(b)?));
        }
        match symbol.as_str() {
            "=" | "<>" => {
                let mut items = Vec::new();
                for (a, b) in pairs {
                    items.push(self.operator("=", a, b, None)?);
                }
                Ok(Expr::and(items).negated(symbol == "<>"))
            }
            "<" | "<=" | ">" | ">=" => {
                // (a, b) < (c, d): a < c OR (a = c AND b < d)
                let strict = &symbol[..1];
                let mut result: Option<Expr> = None;
                for (i, (a, b)) in pairs.iter().cloned().enumerate().rev() {
                    let last = i + 1 == pairs.len();
                    let op = if last { symbol.as_str() } else { strict };
                    let less = self.operator(op, a.clone(), b.clone(), None)?;
                    result = Some(match result {
                        None => less,
                        Some(rest) => {
                            let equal = self.operator("=", a, b, None)?;
                            Expr::new(Kind::Or(vec![less, Expr::and(vec![equal, rest])]), Type::Bool)
                        }
                    });
                }
                result.ok_or_else(|| Error::syntax("empty row expression"))
            }
            _ => Err(Error::unsupported(format!("operator {symbol} between rows"))),
        }
    }

    /// Makes `l op r`.
    pub(crate) fn operator(&mut self, op: &str, l: Expr, r: Expr, span: Option<Span>) -> Result<Expr, Error> {
        let f = resolve_operator(op, Some(&l.ty), &r.ty).map_err(|e| match span {
            Some(s) => self.at(e, s),
            None => e,
        })?;
        let l = self.coerce(l, f.arg_types[0])?;
        let r = self.coerce(r, f.arg_types[1])?;
        if let Some(c) = Comparison::from_symbol(op)
            && f.result == Type::Bool
            && comparable(l.ty, r.ty)
        {
            if let (Kind::Const(a), Kind::Const(b)) = (&l.kind, &r.kind) {
                let value = if a.is_null() || b.is_null() {
                    Datum::Null
                } else {
                    Datum::Bool(c.holds(isochrone_types::compare(a, b)))
                };
                return Ok(Expr::constant(value, Type::Bool));
            }
            return Ok(Expr::new(Kind::Compare(c, Box::new([l, r])), Type::Bool));
        }
        let ty = f.result;
        Ok(self.make_call(Function::Builtin(f), vec![l, r], ty))
    }

    /// Brings the two sides of an equality to one type.
    pub(crate) fn equal_operands(&mut self, l: Expr, r: Expr) -> Result<(Expr, Expr), Error> {
        let f = resolve_operator("=", Some(&l.ty), &r.ty)?;
        let l = self.coerce(l, f.arg_types[0])?;
        let r = self.coerce(r, f.arg_types[1])?;
        if comparable(l.ty, r.ty) {
            return Ok((l, r));
        }
        let ty = common_type(&[l.ty, r.ty], "=")?;
        Ok((self.coerce(l, ty)?, self.coerce(r, ty)?))
    }

    /// A call, folded when all is constant and the function immutable.
    pub(crate) fn make_call(&mut self, function: Function, args: Vec<Expr>, ty: Type) -> Expr {
        if let Function::Builtin(f) = &function
            && f.volatility == Volatility::Immutable
            && args.iter().all(|a| matches!(a.kind, Kind::Const(_)))
        {
            let values: Vec<Datum> = args
                .iter()
                .map(|a| match &a.kind {
                    Kind::Const(d) => d.clone(),
                    _ => Datum::Null,
                })
                .collect();
            // An error is raised when, and only if, the expression is evaluated.
            if let Ok(v) = self.fold(|cx| f.call(&values, cx)) {
                return Expr::constant(v, ty);
            }
        }
        Expr::new(Kind::Call(Arc::new(function), args), ty)
    }

    fn like(
        &mut self,
        op: &str,
        not_op: &str,
        negated: bool,
        expr: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::Expr>,
    ) -> Result<Expr, Error> {
        let x = self.expr(expr)?;
        let mut p = self.expr(pattern)?;
        if let Some(escape) = escape {
            let e = self.expr(escape)?;
            p = self.call("like_escape", vec![p, e], Span::empty())?;
        }
        self.operator(if negated { not_op } else { op }, x, p, None)
    }

    fn is_test(&mut self, e: &ast::Expr, test: Option<bool>, negated: bool) -> Result<Expr, Error> {
        let clause = match test {
            Some(true) => "IS TRUE",
            Some(false) => "IS FALSE",
            None => "IS UNKNOWN",
        };
        let e = self.condition(e, clause)?;
        Ok(Expr::new(Kind::Is(Box::new(e), test), Type::Bool).negated(negated))
    }

    fn distinct_from(&mut self, a: &ast::Expr, b: &ast::Expr, negated: bool) -> Result<Expr, Error> {
        let (a, b) = (self.expr(a)?, self.expr(b)?);
        let (a, b) = self.equal_operands(a, b)?;
        Ok(Expr::new(Kind::Distinct(Box::new([a, b])), Type::Bool).negated(negated))
    }

    fn in_list(&mut self, expr: &ast::Expr, list: &[ast::Expr], negated: bool) -> Result<Expr, Error> {
        if let ast::Expr::Tuple(left) = strip(expr) {
            let mut items = Vec::new();
            for item in list {
                let ast::Expr::Tuple(right) = strip(item) else {
                    return Err(Error::unsupported("IN between a row and a value that is no row"));
                };
                items.push(self.row_comparison(left, &BinaryOperator::Eq, right)?);
            }
            return Ok(Expr::new(Kind::Or(items), Type::Bool).negated(negated));
        }
        let x = self.expr(expr)?;
        let items = list.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?;
        if items.len() == 1 && items[0].ty != Type::Unknown {
            let item = items.into_iter().next().expect("there is one");
            return Ok(self.operator("=", x, item, None)?.negated(negated));
        }
        let mut types = vec![x.ty];
        types.extend(items.iter().map(|i| i.ty));
        let ty = common_type(&types, "IN")?;
        let same = |e: &Expr| comparable(e.ty, ty) && ty.is_integer();
        let x = if same(&x) { x } else { self.coerce(x, ty)? };
        let mut coerced = Vec::with_capacity(items.len());
        for i in items {
            let i = if same(&i) { i } else { self.coerce(i, ty)? };
            coerced.push(i);
        }
        if coerced.len() > LIST_HASHED_FROM && coerced.iter().all(|i| matches!(i.kind, Kind::Const(_))) {
            let mut hashed = HashedList { values: FxHashSet::default(), has_null: false };
            for i in coerced {
                match i.kind {
                    Kind::Const(Datum::Null) => hashed.has_null = true,
                    Kind::Const(d) => {
                        hashed.values.insert(d);
                    }
                    _ => {}
                }
            }
            return Ok(Expr::new(Kind::InSet(Box::new(x), Arc::new(hashed)), Type::Bool).negated(negated));
        }
        Ok(Expr::new(Kind::InList(Box::new(x), coerced), Type::Bool).negated(negated))
    }

    fn quant_op(&mut self, symbol: &str, l: Expr, element: Type) -> Result<(QuantOp, Expr, Type), Error> {
        let f = resolve_operator(symbol, Some(&l.ty), &element)?;
        if f.result != Type::Bool {
            return Err(Error::new(
                SqlState::WRONG_OBJECT_TYPE,
                "op ANY/ALL (array) requires operator to yield boolean",
            ));
        }
        let (lt, rt) = (f.arg_types[0], f.arg_types[1]);
        let l = self.coerce(l, lt)?;
        let op = match Comparison::from_symbol(symbol) {
            Some(c) if comparable(l.ty, rt) => QuantOp::Compare(c),
            _ => QuantOp::Call(Arc::new(Function::Builtin(f))),
        };
        Ok((op, l, rt))
    }

    fn quantified(
        &mut self,
        left: &ast::Expr,
        op: &BinaryOperator,
        right: &ast::Expr,
        all: bool,
    ) -> Result<Expr, Error> {
        let symbol = operator_symbol(op)?;
        let l = self.expr(left)?;
        if let ast::Expr::Subquery(q) = strip(right) {
            let query = self.query(q, true)?;
            let [out] = query.out.as_slice() else {
                return Err(Error::syntax("subquery has too many columns"));
            };
            let value = Expr::col(out.col, out.ty);
            let (op, l, rt) = self.quant_op(&symbol, l, out.ty)?;
            let value = self.coerce(value, rt)?;
            let col = self.new_col(&out.name, value.ty);
            let rel =
                crate::plan::rel::Rel::Project { input: Box::new(query.rel), exprs: vec![(col, value)] };
            let sub = Sub { kind: SubKind::Quantified(op, all), left: vec![l], rel, cols: vec![col] };
            return Ok(Expr::new(Kind::Sub(Box::new(sub)), Type::Bool));
        }
        let mut r = self.expr(right)?;
        if r.ty == Type::Unknown {
            let element = if l.ty == Type::Unknown { Type::Text } else { l.ty };
            let array = element.base().array_of().ok_or_else(|| Error::unsupported("arrays of arrays"))?;
            r = self.coerce(r, array)?;
        }
        let Some(element) = r.ty.element() else {
            return Err(Error::new(
                SqlState::WRONG_OBJECT_TYPE,
                "op ANY/ALL (array) requires array on right side",
            ));
        };
        let (op, l, rt) = self.quant_op(&symbol, l, element)?;
        if !comparable(rt, element) {
            let array = rt.base().array_of().ok_or_else(|| Error::unsupported("arrays of arrays"))?;
            r = self.coerce(r, array)?;
        }
        Ok(Expr::new(Kind::Quantified(op, all, Box::new([l, r])), Type::Bool))
    }

    fn interval(&mut self, i: &ast::Interval) -> Result<Expr, Error> {
        let ast::Expr::Value(v) = i.value.as_ref() else {
            return Err(Error::unsupported("INTERVAL of an expression"));
        };
        let mut s = match &v.value {
            Value::Number(n, _) => n.clone(),
            other => other.clone().into_string().ok_or_else(|| Error::syntax("a string was expected"))?,
        };
        if i.last_field.is_some() {
            return Err(Error::unsupported("an interval range such as DAY TO SECOND"));
        }
        if let Some(f) = &i.leading_field {
            if s.trim().parse::<f64>().is_ok() {
                s = format!("{} {}", s.trim(), f.to_string().to_lowercase());
            } else {
                return Err(Error::unsupported("an interval field after a compound interval"));
            }
        }
        self.cast_to(Expr::constant(Datum::text(s), Type::Unknown), Type::Interval, CastContext::Explicit)
    }

    fn rounding(&mut self, name: &str, expr: &ast::Expr, field: &ast::CeilFloorKind) -> Result<Expr, Error> {
        if !matches!(field, ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime)) {
            return Err(Error::unsupported(format!("{name} to a unit")));
        }
        let e = self.expr(expr)?;
        self.call(name, vec![e], Span::empty())
    }

    fn case(
        &mut self,
        operand: Option<&ast::Expr>,
        whens: &[ast::CaseWhen],
        other: Option<&ast::Expr>,
    ) -> Result<Expr, Error> {
        let operand = operand.map(|o| self.expr(o)).transpose()?;
        if operand.as_ref().is_some_and(Expr::is_volatile) {
            return Err(Error::unsupported("CASE of a volatile expression"));
        }
        let mut conditions = Vec::new();
        let mut results = Vec::new();
        for w in whens {
            conditions.push(match &operand {
                Some(o) => {
                    let v = self.expr(&w.condition)?;
                    self.operator("=", o.clone(), v, None)?
                }
                None => self.condition(&w.condition, "CASE/WHEN")?,
            });
            results.push(self.expr(&w.result)?);
        }
        let other = other.map(|o| self.expr(o)).transpose()?;
        // PostgreSQL looks at ELSE first.
        let mut types: Vec<Type> = other.iter().map(|e| e.ty).collect();
        types.extend(results.iter().map(|e| e.ty));
        let ty = common_type(&types, "CASE")?;
        let mut branches = Vec::new();
        for (c, r) in conditions.into_iter().zip(results) {
            let r = self.coerce(r, ty)?;
            branches.push((c, r));
        }
        let other = match other {
            Some(o) => Some(Box::new(self.coerce(o, ty)?)),
            None => None,
        };
        Ok(Expr::new(Kind::Case(branches, other), ty))
    }

    fn array(&mut self, items: &[ast::Expr]) -> Result<Expr, Error> {
        let items = items.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?;
        if items.is_empty() {
            return Err(Error::new(SqlState::INDETERMINATE_DATATYPE, "cannot determine type of empty array")
                .with_hint("Explicitly cast to the desired type, for example ARRAY[]::integer[]."));
        }
        let ty = common_type(&items.iter().map(|i| i.ty).collect::<Vec<_>>(), "ARRAY")?.base();
        let array = ty.array_of().ok_or_else(|| Error::unsupported("arrays of arrays"))?;
        let items = items.into_iter().map(|i| self.coerce(i, ty)).collect::<Result<Vec<_>, _>>()?;
        if items.iter().all(|i| matches!(i.kind, Kind::Const(_))) {
            let values = items
                .into_iter()
                .map(|i| match i.kind {
                    Kind::Const(d) => d,
                    _ => Datum::Null,
                })
                .collect();
            return Ok(Expr::constant(Datum::array(ty, values), array));
        }
        Ok(Expr::new(Kind::Array(ty, items), array))
    }

    /// Converts as operators and functions convert their operands.
    pub(crate) fn coerce(&mut self, e: Expr, ty: Type) -> Result<Expr, Error> {
        self.cast_to(e, ty, CastContext::Implicit)
    }

    /// Converts as values are assigned to a column.
    pub(crate) fn assign(&mut self, e: Expr, ty: Type, column: &str) -> Result<Expr, Error> {
        if e.ty != Type::Unknown && !isochrone_types::cast::can_cast(&e.ty, &ty, CastContext::Assignment) {
            return Err(Error::new(
                SqlState::DATATYPE_MISMATCH,
                format!(
                    "column \"{column}\" is of type {} but expression is of type {}",
                    ty.base_sql_name(),
                    e.ty.base_sql_name()
                ),
            )
            .with_hint("You will need to rewrite or cast the expression."));
        }
        self.cast_to(e, ty, CastContext::Assignment)
    }

    /// The type of what nothing gave a type is text.
    pub(crate) fn known(&mut self, e: Expr) -> Result<Expr, Error> {
        if e.ty == Type::Unknown { self.coerce(e, Type::Text) } else { Ok(e) }
    }

    pub(crate) fn cast_to(&mut self, mut e: Expr, ty: Type, context: CastContext) -> Result<Expr, Error> {
        if e.ty == ty || ty == Type::Unknown {
            return Ok(e);
        }
        if e.ty == Type::Unknown {
            match &e.kind {
                Kind::Const(Datum::Null) => return Ok(Expr::constant(Datum::Null, ty)),
                Kind::Const(d) => {
                    if matches!(ty, Type::Regclass | Type::Regtype | Type::Regproc) {
                        return self.reg_cast(e, ty);
                    }
                    if matches!(
                        ty,
                        Type::Timestamptz | Type::Timestamp | Type::Date | Type::Time | Type::Interval
                    ) {
                        self.settings_dependent = true;
                    }
                    let s = d.as_str().unwrap_or_default();
                    let value = match context {
                        // An explicit cast cuts what is too long.
                        CastContext::Explicit if ty != ty.base() => {
                            let v = text::parse_text(&ty.base(), s, self.settings)?;
                            cast(v, &ty.base(), &ty, context, self.settings)?
                        }
                        _ => text::parse_text(&ty, s, self.settings)?,
                    };
                    return Ok(Expr::constant(value, ty));
                }
                Kind::Param(n) => {
                    let n = *n;
                    let known = match self.params[n] {
                        None => {
                            self.params[n] = Some(ty.base());
                            ty.base()
                        }
                        Some(t) => t,
                    };
                    e.ty = known;
                    return self.cast_to(e, ty, context);
                }
                _ => {
                    // An expression over unknowns, such as a column of a derived table: text.
                    e.ty = Type::Text;
                    return self.cast_to(e, ty, context);
                }
            }
        }
        if !isochrone_types::cast::can_cast(&e.ty, &ty, context) {
            return Err(Error::new(
                SqlState::CANNOT_COERCE,
                format!("cannot cast type {} to {}", e.ty.base_sql_name(), ty.base_sql_name()),
            ));
        }
        if matches!(ty, Type::Regclass | Type::Regtype | Type::Regproc) && e.ty.is_string() {
            return self.reg_cast(e, ty);
        }
        // The other way, too: the name of an oid is the catalog's.
        if e.ty == Type::Regclass
            && ty.is_string()
            && let Some(f) = self.catalog.function("regclass_out", &[Type::Oid])
        {
            let name = Expr::new(
                Kind::Call(Arc::new(Function::Session("regclass_out".to_owned(), f)), vec![e]),
                Type::Text,
            );
            return self.cast_to(name, ty, context);
        }
        // Only a modifier is dropped: the value stays.
        if e.ty.same_base(ty) && ty == ty.base() {
            e.ty = ty;
            return Ok(e);
        }
        if let Kind::Const(d) = &e.kind {
            let dated = |t: Type| {
                matches!(
                    t,
                    Type::Timestamptz
                        | Type::Timestamp
                        | Type::Date
                        | Type::Time
                        | Type::Interval
                        | Type::Bytea
                )
            };
            if (d.is_null() || !(dated(e.ty) || dated(ty)))
                && let Ok(v) = cast(d.clone(), &e.ty, &ty, context, self.settings)
            {
                return Ok(Expr::constant(v, ty));
            }
        }
        Ok(Expr::new(Kind::Cast(Box::new(e), context), ty))
    }

    /// Text to regclass and its kin. Names are the catalog's: for values that are not constant it is asked for a
    /// function with the name of the type (`regclass(text)`).
    fn reg_cast(&mut self, e: Expr, ty: Type) -> Result<Expr, Error> {
        if let Kind::Const(d) = &e.kind {
            let name = d.as_str().unwrap_or_default().trim().to_owned();
            if let Ok(oid) = name.parse::<u32>() {
                return Ok(Expr::constant(Datum::Oid(oid), ty));
            }
            if ty == Type::Regtype
                && let Some(t) = Type::from_sql_name(name.trim_start_matches("pg_catalog."))
            {
                return Ok(Expr::constant(Datum::Oid(t.oid()), ty));
            }
            if ty == Type::Regclass {
                let parts = split_name(&name);
                let (schema, table) = match parts.as_slice() {
                    [t] => (None, t.as_str()),
                    [.., s, t] => (Some(s.as_str()), t.as_str()),
                    [] => (None, ""),
                };
                if let Some(crate::relation::Relation::Table(t)) = self.catalog.relation(schema, table) {
                    return Ok(Expr::constant(Datum::Oid(t.oid), ty));
                }
                if let Some(s) = self.catalog.sequence(schema, table) {
                    return Ok(Expr::constant(Datum::Oid(s.oid), ty));
                }
            }
        }
        let Some(f) = self.catalog.function(ty.name(), &[Type::Text]) else {
            if let (Kind::Const(d), Type::Regclass) = (&e.kind, ty) {
                return Err(Error::new(
                    SqlState::UNDEFINED_TABLE,
                    format!("relation \"{}\" does not exist", d.as_str().unwrap_or_default()),
                ));
            }
            return Err(Error::unsupported(format!("a cast to {ty}")));
        };
        let arg = self.coerce(e, Type::Text)?;
        Ok(Expr::new(Kind::Call(Arc::new(Function::Session(ty.name().to_owned(), f)), vec![arg]), ty))
    }
}

/// Splits a possibly quoted, dotted name.
pub(crate) fn split_name(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in name.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => {
                let last = parts.last_mut().expect("there is always a part");
                if quoted { last.push(c) } else { last.extend(c.to_lowercase()) }
            }
        }
    }
    parts
}

/// Without parentheses.
pub(crate) fn strip(mut e: &ast::Expr) -> &ast::Expr {
    while let ast::Expr::Nested(inner) = e {
        e = inner;
    }
    e
}

fn operator_symbol(op: &BinaryOperator) -> Result<String, Error> {
    Ok(match op {
        BinaryOperator::Custom(s) => s.clone(),
        BinaryOperator::PGCustomBinaryOperator(parts) => parts.last().cloned().unwrap_or_default(),
        BinaryOperator::NotEq => "<>".to_owned(),
        BinaryOperator::Xor
        | BinaryOperator::Overlaps
        | BinaryOperator::Match
        | BinaryOperator::Regexp
        | BinaryOperator::Glob
        | BinaryOperator::Assignment => return Err(Error::unsupported(format!("operator {op}"))),
        other => other.to_string(),
    })
}

/// The functions behind casts to `regnamespace` and `regrole`.
fn oid_alias(ty: &ast::DataType) -> Option<(&'static str, &'static str)> {
    let ast::DataType::Custom(name, _) = ty else { return None };
    match name_parts(name).ok()?.pop()?.as_str() {
        "regnamespace" => Some(("regnamespace_out", "to_regnamespace")),
        "regrole" => Some(("pg_get_userbyid", "to_regrole")),
        _ => None,
    }
}
