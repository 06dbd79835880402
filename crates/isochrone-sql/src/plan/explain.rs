//! Plans as text, in the manner of PostgreSQL's EXPLAIN.

use std::fmt::Write;

use isochrone_types::{Settings, text};

use super::expr::{ColId, Expr, Kind, QuantOp};
use super::node::{ApplyItem, Node, NodeOp, Scan};
use super::rel::{JoinKind, SetOpKind};
use super::{Plan, PlanKind};

/// What EXPLAIN ANALYZE counts of a node. Times include the node's inputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeStats {
    /// Rows that came out.
    pub rows: u64,
    /// How often it was opened.
    pub loops: u64,
    /// Microseconds spent, by the clock of the evaluation context.
    pub micros: u64,
}

struct Printer<'a> {
    plan: &'a Plan,
    stats: Option<&'a [NodeStats]>,
    lines: Vec<String>,
    settings: Settings,
}

/// The plan's lines.
pub fn explain(plan: &Plan) -> Vec<String> {
    print(plan, None)
}

/// The plan's lines with what an execution counted.
pub fn explain_analyze(plan: &Plan, stats: &[NodeStats]) -> Vec<String> {
    print(plan, Some(stats))
}

fn print(plan: &Plan, stats: Option<&[NodeStats]>) -> Vec<String> {
    let mut p = Printer { plan, stats, lines: Vec::new(), settings: Settings::default() };
    match &plan.kind {
        PlanKind::Query { node, .. } => p.node(node, 0),
        PlanKind::Insert(i) => {
            p.line(0, format!("Insert on {}", i.writer.table.name));
            p.node(&i.source, 1);
        }
        PlanKind::Update(u) => {
            p.line(0, format!("Update on {}", u.writer.table.name));
            p.node(&u.input, 1);
        }
        PlanKind::Delete(d) => {
            p.line(0, format!("Delete on {}", d.writer.table.name));
            p.node(&d.input, 1);
        }
    }
    p.lines
}

impl Printer<'_> {
    fn line(&mut self, depth: usize, text: String) {
        let line = if depth == 0 { text } else { format!("{}->  {text}", " ".repeat(6 * depth - 4)) };
        self.lines.push(line);
    }

    fn detail(&mut self, depth: usize, text: String) {
        self.lines.push(format!("{}{text}", " ".repeat(6 * depth + 2)));
    }

    fn counts(&self, id: usize, rows: f64) -> String {
        let mut s = format!("  (rows={})", rows.round() as u64);
        if let Some(st) = self.stats.and_then(|s| s.get(id)) {
            if st.loops == 0 {
                s.push_str(" (never executed)");
            } else {
                let _ = write!(
                    s,
                    " (actual time={}.{:03} rows={} loops={})",
                    st.micros / 1000,
                    st.micros % 1000,
                    st.rows,
                    st.loops
                );
            }
        }
        s
    }

    fn scan_title(&self, s: &Scan) -> String {
        let t = &s.table;
        let name = if *s.alias == *t.name { t.name.clone() } else { format!("{} {}", t.name, s.alias) };
        let keyed = !s.parts.is_empty() || !s.spans.is_empty();
        let back = if s.reverse { " Backward" } else { "" };
        if s.index == 0 && !keyed && !s.reverse {
            return format!("Seq Scan on {name}");
        }
        let index = match s.index {
            0 => &t.primary.name,
            n => &t.indexes[n - 1].name,
        };
        let kind = if s.covering { "Index Only Scan" } else { "Index Scan" };
        format!("{kind}{back} using {index} on {name}")
    }

    fn scan_details(&mut self, s: &Scan, depth: usize) {
        if !s.condition.is_empty() {
            let list: Vec<String> = s.condition.iter().map(|e| self.logical(e)).collect();
            self.detail(depth, format!("Index Cond: ({})", list.join(" AND ")));
        }
        if let Some(f) = &s.filter {
            let names: Vec<String> = s.columns.iter().map(|p| s.table.columns[*p].name.clone()).collect();
            let text = self.expr(f, &names);
            self.detail(depth, format!("Filter: {text}"));
        }
    }

    fn node(&mut self, n: &Node, depth: usize) {
        let title = match &n.op {
            NodeOp::One => "Result".to_owned(),
            NodeOp::Scan(s) => self.scan_title(s),
            NodeOp::Virtual { table, alias, .. } => {
                let name = table.0.name();
                if **alias == *name {
                    format!("Virtual Scan on {name}")
                } else {
                    format!("Virtual Scan on {name} {alias}")
                }
            }
            NodeOp::Values { .. } => "Values Scan".to_owned(),
            NodeOp::Function { name, .. } => format!("Function Scan on {name}"),
            NodeOp::Filter { .. } => "Filter".to_owned(),
            NodeOp::Project { .. } => "Project".to_owned(),
            NodeOp::HashJoin { kind, .. } => match kind {
                JoinKind::Inner => "Hash Join".to_owned(),
                JoinKind::Left => "Hash Left Join".to_owned(),
                JoinKind::Full => "Hash Full Join".to_owned(),
            },
            NodeOp::LoopJoin { kind, .. } => match kind {
                JoinKind::Inner => "Nested Loop".to_owned(),
                JoinKind::Left => "Nested Loop Left Join".to_owned(),
                JoinKind::Full => "Nested Loop Full Join".to_owned(),
            },
            NodeOp::LookupJoin { kind, .. } => match kind {
                JoinKind::Left => "Nested Loop Left Join".to_owned(),
                _ => "Nested Loop".to_owned(),
            },
            NodeOp::Aggregate { keys, .. } if keys.is_empty() => "Aggregate".to_owned(),
            NodeOp::Aggregate { .. } => "HashAggregate".to_owned(),
            NodeOp::Distinct { .. } => "Unique".to_owned(),
            NodeOp::Sort { top: Some(_), .. } => "Sort (top-N)".to_owned(),
            NodeOp::Sort { .. } => "Sort".to_owned(),
            NodeOp::Limit { .. } => "Limit".to_owned(),
            NodeOp::SetOp { op: SetOpKind::Union, all: true, .. } => "Append".to_owned(),
            NodeOp::SetOp { op, all, .. } => format!(
                "HashSetOp {}{}",
                match op {
                    SetOpKind::Union => "Union",
                    SetOpKind::Intersect => "Intersect",
                    SetOpKind::Except => "Except",
                },
                if *all { " All" } else { "" }
            ),
            NodeOp::Cte { alias, .. } => format!("CTE Scan on {alias}"),
            NodeOp::Apply { .. } => "SubPlan Apply".to_owned(),
            NodeOp::Lock { .. } => "LockRows".to_owned(),
        };
        let counts = self.counts(n.id, n.rows);
        self.line(depth, format!("{title}{counts}"));
        match &n.op {
            NodeOp::Scan(s) => self.scan_details(s, depth),
            NodeOp::Filter { predicate, input, .. } => {
                let text = self.expr(predicate, &self.names(&input.cols));
                self.detail(depth, format!("Filter: {text}"));
            }
            NodeOp::Virtual { filter: Some(f), .. } => {
                let text = self.expr(f, &self.names(&n.cols));
                self.detail(depth, format!("Filter: {text}"));
            }
            NodeOp::HashJoin { left, right, left_keys, right_keys, residual, .. } => {
                let (l, r) = (self.names(&left.cols), self.names(&right.cols));
                let list: Vec<String> = left_keys
                    .iter()
                    .zip(right_keys)
                    .map(|(a, b)| format!("{} = {}", self.expr(a, &l), self.expr(b, &r)))
                    .collect();
                self.detail(depth, format!("Hash Cond: ({})", list.join(" AND ")));
                if let Some(e) = residual {
                    let text = self.expr(e, &self.names(&n.cols));
                    self.detail(depth, format!("Join Filter: {text}"));
                }
            }
            NodeOp::LoopJoin { residual: Some(e), .. } | NodeOp::LookupJoin { residual: Some(e), .. } => {
                let text = self.expr(e, &self.names(&n.cols));
                self.detail(depth, format!("Join Filter: {text}"));
            }
            NodeOp::Sort { keys, input, .. } => {
                let names = self.names(&input.cols);
                let list: Vec<String> = keys
                    .iter()
                    .map(|k| format!("{}{}", self.expr(&k.expr, &names), if k.desc { " DESC" } else { "" }))
                    .collect();
                self.detail(depth, format!("Sort Key: {}", list.join(", ")));
            }
            NodeOp::Aggregate { keys, input, .. } if !keys.is_empty() => {
                let names = self.names(&input.cols);
                let list: Vec<String> = keys.iter().map(|k| self.expr(k, &names)).collect();
                self.detail(depth, format!("Group Key: {}", list.join(", ")));
            }
            _ => {}
        }
        for input in n.inputs() {
            self.node(input, depth + 1);
        }
        if let NodeOp::LookupJoin { scan, scan_id, scan_rows, .. } = &n.op {
            let counts = self.counts(*scan_id, *scan_rows);
            let title = self.scan_title(scan);
            self.line(depth + 1, format!("{title}{counts}"));
            self.scan_details(scan, depth + 1);
        }
        if let NodeOp::Apply { items, .. } = &n.op {
            for i in items {
                if let ApplyItem::Sub { sub, .. } = i {
                    self.detail(depth, format!("SubPlan {sub}"));
                    let plan = self.plan;
                    self.node(&plan.subs[*sub].node, depth + 1);
                }
            }
        }
        let mut initial = Vec::new();
        n.exprs(&mut |e| {
            e.visit_own(&mut |e| {
                if let Kind::SubValue(s, _, _) = &e.kind {
                    initial.push(*s);
                }
            })
        });
        for s in initial {
            self.detail(depth, format!("InitPlan {s}"));
            let plan = self.plan;
            self.node(&plan.subs[s].node, depth + 1);
        }
        if let NodeOp::Cte { id, .. } = &n.op
            && let Some(Some(source)) = self.plan.ctes.get(*id)
        {
            self.detail(depth, format!("CTE {id}"));
            self.node(source, depth + 1);
        }
    }

    fn names(&self, cols: &[ColId]) -> Vec<String> {
        cols.iter()
            .map(|c| self.plan.names.get(*c as usize).map_or_else(|| format!("${c}"), |n| n.to_string()))
            .collect()
    }

    /// An expression that still refers to columns by id.
    fn logical(&self, e: &Expr) -> String {
        self.expr(e, &[])
    }

    fn expr(&self, e: &Expr, names: &[String]) -> String {
        let list = |items: &[Expr]| items.iter().map(|i| self.expr(i, names)).collect::<Vec<_>>();
        match &e.kind {
            Kind::Const(d) if d.is_null() => "NULL".to_owned(),
            Kind::Const(d) => {
                let s = text::to_text(d, &e.ty, &self.settings);
                if e.ty.is_integer() || e.ty == isochrone_types::Type::Bool { s } else { format!("'{s}'") }
            }
            Kind::Col(c) => {
                self.plan.names.get(*c as usize).map_or_else(|| format!("${c}"), |n| n.to_string())
            }
            Kind::Slot(s) => names.get(*s).cloned().unwrap_or_else(|| format!("slot {s}")),
            Kind::Outer(k) => format!("outer {k}"),
            Kind::Param(n) => format!("${}", n + 1),
            Kind::Call(f, args) => match list(args).as_slice() {
                [a, b] if !f.name().chars().any(char::is_alphanumeric) => format!("({a} {} {b})", f.name()),
                [a] if !f.name().chars().any(char::is_alphanumeric) => format!("({}{a})", f.name()),
                args => format!("{}({})", f.name(), args.join(", ")),
            },
            Kind::Cast(inner, _) => format!("({})::{}", self.expr(inner, names), e.ty),
            Kind::Compare(op, two) => {
                format!("({} {} {})", self.expr(&two[0], names), op.symbol(), self.expr(&two[1], names))
            }
            Kind::And(items) => format!("({})", list(items).join(" AND ")),
            Kind::Or(items) => format!("({})", list(items).join(" OR ")),
            Kind::Not(inner) => match &inner.kind {
                Kind::IsNull(x) => format!("({} IS NOT NULL)", self.expr(x, names)),
                _ => format!("(NOT {})", self.expr(inner, names)),
            },
            Kind::IsNull(x) => format!("({} IS NULL)", self.expr(x, names)),
            Kind::Is(x, t) => format!(
                "({} IS {})",
                self.expr(x, names),
                match t {
                    Some(true) => "TRUE",
                    Some(false) => "FALSE",
                    None => "UNKNOWN",
                }
            ),
            Kind::Distinct(two) => {
                format!("({} IS DISTINCT FROM {})", self.expr(&two[0], names), self.expr(&two[1], names))
            }
            Kind::Case(..) => "CASE".to_owned(),
            Kind::Coalesce(items) => format!("COALESCE({})", list(items).join(", ")),
            Kind::Extreme(g, items) => {
                format!("{}({})", if *g { "GREATEST" } else { "LEAST" }, list(items).join(", "))
            }
            Kind::InList(x, items) => format!("({} IN ({}))", self.expr(x, names), list(items).join(", ")),
            Kind::InSet(x, set) => format!("({} IN ({} values))", self.expr(x, names), set.values.len()),
            Kind::Quantified(op, all, two) => {
                let op = match op {
                    QuantOp::Compare(c) => c.symbol().to_owned(),
                    QuantOp::Call(f) => f.name().to_owned(),
                };
                let q = if *all { "ALL" } else { "ANY" };
                format!("({} {op} {q} ({}))", self.expr(&two[0], names), self.expr(&two[1], names))
            }
            Kind::Array(_, items) => format!("ARRAY[{}]", list(items).join(", ")),
            Kind::Subscript(two) => format!("{}[{}]", self.expr(&two[0], names), self.expr(&two[1], names)),
            Kind::Sub(_) => "(SubPlan)".to_owned(),
            Kind::SubValue(n, _, _) => format!("(InitPlan {n})"),
            Kind::NextVal(s) => format!("nextval({s})"),
            Kind::CurrVal(s) => format!("currval({s})"),
            Kind::LastVal => "lastval()".to_owned(),
            Kind::SetVal(s, _) => format!("setval({s})"),
            Kind::Advisory(_, args) => format!("pg_advisory({})", list(args).join(", ")),
        }
    }
}
