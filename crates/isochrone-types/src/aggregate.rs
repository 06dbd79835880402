//! Aggregates: resolution, and the state that a group carries. DISTINCT, ORDER BY and FILTER are the executor's.
//!
//! A state takes rows one by one ([`AggState::update`]), takes in the state of another part of the group
//! ([`AggState::merge`]), and gives the result ([`AggState::finish`]). The order of rows is seen only by `string_agg`
//! and `array_agg`, and in the last digits by sums of floats.

use crate::datetime::interval as ival;
use crate::{CastContext, Datum, Error, Interval, Numeric, Result, SqlState, Type, cast, compare};
use std::cmp::Ordering;

/// Most bytes that a `string_agg`, and most elements that an `array_agg` collects. More is 54000.
pub const COLLECTED_MAX: usize = 64 << 20;

/// Which aggregate, with what its result needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    CountAll,
    Count,
    SumInt,
    SumBig,
    SumNumeric,
    SumFloat4,
    SumFloat8,
    SumInterval,
    AvgInt,
    AvgNumeric,
    AvgFloat,
    AvgInterval,
    Min,
    Max,
    And,
    Or,
    BitAnd,
    BitOr,
    BitXor,
    StringAgg,
    BytesAgg,
    ArrayAgg(Type),
    Spread { numeric: bool, sample: bool, root: bool },
}

/// The aggregate that a call means.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    /// Its name.
    pub name: &'static str,
    /// The type that each argument must be cast to (implicitly).
    pub arg_types: Vec<Type>,
    /// The type of the result.
    pub result: Type,
    kind: Kind,
}

/// Sums for a variance, after Youngs and Cramer.
#[derive(Clone, Copy, Debug, Default)]
pub struct FloatSpread {
    n: f64,
    sum: f64,
    squares: f64,
}

/// The state of one aggregate in one group.
#[derive(Clone, Debug)]
pub struct AggState {
    kind: Kind,
    count: i64,
    acc: Acc,
}

#[derive(Clone, Debug)]
enum Acc {
    None,
    Int(i128),
    Float(f64),
    Numeric(Box<Numeric>),
    Interval(Interval),
    Value(Datum),
    Text(Vec<u8>),
    Items(Vec<Datum>),
    Spread(Box<FloatSpread>),
    Squares(Box<(Numeric, Numeric)>),
}

const NAMES: &[&str] = &[
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "every",
    "bit_and",
    "bit_or",
    "bit_xor",
    "string_agg",
    "array_agg",
    "stddev",
    "stddev_samp",
    "stddev_pop",
    "variance",
    "var_samp",
    "var_pop",
];

/// Is there an aggregate of this name?
pub fn is_aggregate(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The type of one argument, as the aggregate takes it, its kind and its result.
fn one_argument(name: &str, t: Type) -> Option<(Type, Kind, Type)> {
    use Kind::*;
    let base = t.base();
    let numeric = Type::Numeric(None);
    let spread = |sample, root| {
        Some(match base {
            Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric(_) => {
                (numeric, Spread { numeric: true, sample, root }, numeric)
            }
            Type::Float4 | Type::Float8 | Type::Unknown => {
                (Type::Float8, Spread { numeric: false, sample, root }, Type::Float8)
            }
            _ => return None,
        })
    };
    Some(match (name, base) {
        ("count", _) => (if base == Type::Unknown { Type::Text } else { t }, Count, Type::Int8),
        ("sum", Type::Int2 | Type::Int4) => (base, SumInt, Type::Int8),
        ("sum", Type::Int8) => (base, SumBig, numeric),
        ("sum", Type::Numeric(_)) => (numeric, SumNumeric, numeric),
        ("sum", Type::Float4) => (base, SumFloat4, base),
        ("sum", Type::Float8) => (base, SumFloat8, base),
        ("sum", Type::Interval | Type::Time) => (Type::Interval, SumInterval, Type::Interval),
        ("avg", Type::Int2 | Type::Int4 | Type::Int8) => (base, AvgInt, numeric),
        ("avg", Type::Numeric(_)) => (numeric, AvgNumeric, numeric),
        ("avg", Type::Float4 | Type::Float8) => (Type::Float8, AvgFloat, Type::Float8),
        ("avg", Type::Interval | Type::Time) => (Type::Interval, AvgInterval, Type::Interval),
        // There is no min or max of boolean, uuid or bytea in PostgreSQL.
        ("min" | "max", Type::Bool | Type::Uuid | Type::Bytea | Type::Void) => return None,
        ("min" | "max", _) => {
            // Kept with its modifier: the result is one of the values.
            let t = match base {
                Type::Unknown | Type::Varchar(_) | Type::Name | Type::InternalChar => Type::Text,
                Type::Regclass | Type::Regtype | Type::Regproc => Type::Oid,
                _ => t,
            };
            (t, if name == "min" { Min } else { Max }, t.base())
        }
        ("bool_and" | "every", Type::Bool | Type::Unknown) => (Type::Bool, And, Type::Bool),
        ("bool_or", Type::Bool | Type::Unknown) => (Type::Bool, Or, Type::Bool),
        ("bit_and", Type::Int2 | Type::Int4 | Type::Int8) => (base, BitAnd, base),
        ("bit_or", Type::Int2 | Type::Int4 | Type::Int8) => (base, BitOr, base),
        ("bit_xor", Type::Int2 | Type::Int4 | Type::Int8) => (base, BitXor, base),
        ("array_agg", _) => {
            let t = if base == Type::Unknown { Type::Text } else { t };
            (t, ArrayAgg(t.base()), t.array_of()?)
        }
        ("stddev" | "stddev_samp", _) => return spread(true, true),
        ("stddev_pop", _) => return spread(false, true),
        ("variance" | "var_samp", _) => return spread(true, false),
        ("var_pop", _) => return spread(false, false),
        _ => return None,
    })
}

/// The aggregate that a call of this name with arguments of these types means; `count(*)` has no arguments.
/// `Ok(None)`: no aggregate has this name. 42883: one has, but not for these types; 42725: for literals without type
/// that say too little.
pub fn aggregate(name: &str, args: &[Type]) -> Result<Option<AggregateSpec>> {
    let Some(name) = NAMES.iter().find(|n| **n == name) else { return Ok(None) };
    let found = match args {
        [] if *name == "count" => Some((Vec::new(), Kind::CountAll, Type::Int8)),
        [t] => {
            if *t == Type::Unknown && matches!(*name, "sum" | "avg" | "bit_and" | "bit_or" | "bit_xor") {
                return Err(Error::new(
                    SqlState::AMBIGUOUS_FUNCTION,
                    format!("function {name}(unknown) is not unique"),
                ));
            }
            one_argument(name, *t).map(|(t, k, r)| (vec![t], k, r))
        }
        [a, b] if *name == "string_agg" => {
            let text = |t: &Type| cast::can_cast(t, &Type::Text, CastContext::Implicit);
            let bytes = |t: &Type| matches!(t, Type::Bytea | Type::Unknown);
            if bytes(a) && bytes(b) && (*a == Type::Bytea || *b == Type::Bytea) {
                Some((vec![Type::Bytea, Type::Bytea], Kind::BytesAgg, Type::Bytea))
            } else {
                (text(a) && text(b)).then(|| (vec![Type::Text, Type::Text], Kind::StringAgg, Type::Text))
            }
        }
        _ => None,
    };
    match found {
        Some((arg_types, kind, result)) => Ok(Some(AggregateSpec { name, arg_types, result, kind })),
        None => {
            let types: Vec<String> = args.iter().map(|t| t.base_sql_name()).collect();
            Err(Error::new(
                SqlState::UNDEFINED_FUNCTION,
                format!("function {name}({}) does not exist", types.join(", ")),
            )
            .with_hint(
                "No function matches the given name and argument types. You might need to add explicit type casts.",
            ))
        }
    }
}

impl AggregateSpec {
    /// The state before the first row.
    pub fn init(&self) -> AggState {
        AggState { kind: self.kind, count: 0, acc: Acc::None }
    }
}

#[cold]
fn mismatch(d: &Datum) -> Error {
    Error::internal(format!("aggregate got a value of type {}", d.natural_type().sql_name()))
}

#[cold]
fn too_long() -> Error {
    Error::new(
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("an aggregate collects at most {COLLECTED_MAX} bytes"),
    )
}

fn add_float(x: f64, y: f64) -> Result<f64> {
    let r = x + y;
    if r.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(overflow());
    }
    Ok(r)
}

#[cold]
fn overflow() -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow")
}

impl FloatSpread {
    fn add(&mut self, v: f64) {
        self.n += 1.0;
        self.sum += v;
        if self.n > 1.0 {
            let d = v * self.n - self.sum;
            self.squares += d * d / (self.n * (self.n - 1.0));
        } else if !v.is_finite() {
            self.squares = f64::NAN;
        }
    }

    fn merge(&mut self, o: &FloatSpread) {
        if self.n == 0.0 {
            *self = *o;
        } else if o.n != 0.0 {
            let d = self.sum / self.n - o.sum / o.n;
            let n = self.n + o.n;
            self.squares += o.squares + self.n * o.n * d * d / n;
            self.sum += o.sum;
            self.n = n;
        }
    }
}

impl AggState {
    /// Takes in one row's arguments. NULLs are ignored, but by `count(*)` and `array_agg`.
    #[inline]
    pub fn update(&mut self, args: &[Datum]) -> Result<()> {
        if self.kind == Kind::CountAll {
            self.count += 1;
            return Ok(());
        }
        let d = &args[0];
        if d.is_null() && !matches!(self.kind, Kind::ArrayAgg(_)) {
            return Ok(());
        }
        self.count += 1;
        match self.kind {
            Kind::Count | Kind::CountAll => Ok(()),
            Kind::SumInt | Kind::SumBig | Kind::AvgInt => {
                let v = d.as_i64().ok_or_else(|| mismatch(d))? as i128;
                match &mut self.acc {
                    Acc::Int(sum) => *sum += v,
                    acc => *acc = Acc::Int(v),
                }
                Ok(())
            }
            _ => self.update_other(d, args),
        }
    }

    fn update_other(&mut self, d: &Datum, args: &[Datum]) -> Result<()> {
        match (self.kind, d) {
            (Kind::SumNumeric | Kind::AvgNumeric, Datum::Numeric(v)) => match &mut self.acc {
                Acc::Numeric(sum) => **sum = sum.add(v)?,
                acc => *acc = Acc::Numeric(Box::new(v.clone())),
            },
            (Kind::SumFloat4, Datum::Float4(v)) => match &mut self.acc {
                // In single precision, as PostgreSQL adds them.
                Acc::Float(sum) => {
                    let r = *sum as f32 + v;
                    if r.is_infinite() && sum.is_finite() && v.is_finite() {
                        return Err(overflow());
                    }
                    *sum = r as f64;
                }
                acc => *acc = Acc::Float(*v as f64),
            },
            (Kind::SumFloat8, Datum::Float8(v)) => match &mut self.acc {
                Acc::Float(sum) => *sum = add_float(*sum, *v)?,
                acc => *acc = Acc::Float(*v),
            },
            (Kind::SumInterval | Kind::AvgInterval, Datum::Interval(v)) => match &mut self.acc {
                Acc::Interval(sum) => *sum = ival::add(sum, v)?,
                acc => *acc = Acc::Interval(*v),
            },
            (Kind::Min | Kind::Max, d) => {
                let wanted = if self.kind == Kind::Min { Ordering::Less } else { Ordering::Greater };
                match &mut self.acc {
                    Acc::Value(best) if compare(d, best) != wanted => {}
                    acc => *acc = Acc::Value(d.clone()),
                }
            }
            (Kind::And, Datum::Bool(v)) => self.fold_bool(*v, |x, y| x && y),
            (Kind::Or, Datum::Bool(v)) => self.fold_bool(*v, |x, y| x || y),
            (Kind::BitAnd, d) => self.fold_bits(d, |x, y| x & y)?,
            (Kind::BitOr, d) => self.fold_bits(d, |x, y| x | y)?,
            (Kind::BitXor, d) => self.fold_bits(d, |x, y| x ^ y)?,
            (Kind::StringAgg | Kind::BytesAgg, d) => {
                fn content(d: &Datum) -> Option<&[u8]> {
                    d.as_str().map(str::as_bytes).or(d.as_bytes())
                }
                let piece = content(d).ok_or_else(|| mismatch(d))?;
                match &mut self.acc {
                    Acc::Text(all) => {
                        let sep = args.get(1).and_then(content).unwrap_or(b"");
                        if all.len() + sep.len() + piece.len() > COLLECTED_MAX {
                            return Err(too_long());
                        }
                        all.extend_from_slice(sep);
                        all.extend_from_slice(piece);
                    }
                    acc => *acc = Acc::Text(piece.to_vec()),
                }
            }
            (Kind::ArrayAgg(_), d) => match &mut self.acc {
                Acc::Items(items) => {
                    if items.len() * size_of::<Datum>() > COLLECTED_MAX {
                        return Err(too_long());
                    }
                    items.push(d.clone());
                }
                acc => *acc = Acc::Items(vec![d.clone()]),
            },
            (Kind::AvgFloat | Kind::Spread { .. }, Datum::Float8(v)) => match &mut self.acc {
                Acc::Spread(s) => {
                    s.add(*v);
                    if s.sum.is_infinite() && v.is_finite() && (s.sum - v).is_finite() {
                        return Err(overflow());
                    }
                }
                acc => {
                    let mut s = FloatSpread::default();
                    s.add(*v);
                    *acc = Acc::Spread(Box::new(s));
                }
            },
            (Kind::Spread { .. }, Datum::Numeric(v)) => {
                let square = v.mul(v)?;
                match &mut self.acc {
                    Acc::Squares(s) => **s = (s.0.add(v)?, s.1.add(&square)?),
                    acc => *acc = Acc::Squares(Box::new((v.clone(), square))),
                }
            }
            (_, d) => return Err(mismatch(d)),
        }
        Ok(())
    }

    fn fold_bool(&mut self, v: bool, f: fn(bool, bool) -> bool) {
        let v = match &self.acc {
            Acc::Value(Datum::Bool(x)) => f(*x, v),
            _ => v,
        };
        self.acc = Acc::Value(Datum::Bool(v));
    }

    fn fold_bits(&mut self, d: &Datum, f: fn(i64, i64) -> i64) -> Result<()> {
        let v = d.as_i64().ok_or_else(|| mismatch(d))?;
        let v = match &self.acc {
            Acc::Value(x) => f(x.as_i64().unwrap_or(0), v),
            _ => v,
        };
        self.acc = Acc::Value(match d {
            Datum::Int2(_) => Datum::Int2(v as i16),
            Datum::Int4(_) => Datum::Int4(v as i32),
            _ => Datum::Int8(v),
        });
        Ok(())
    }

    /// Takes in the state of another part of the group, whose rows count as later. Not for `string_agg`, whose
    /// separator belongs to rows (XX000).
    pub fn merge(&mut self, other: AggState) -> Result<()> {
        if self.kind != other.kind {
            return Err(Error::internal("merge of different aggregates"));
        }
        if matches!(self.kind, Kind::StringAgg | Kind::BytesAgg) && self.count > 0 && other.count > 0 {
            return Err(Error::internal("string_agg has no partial form"));
        }
        let count = self.count + other.count;
        if matches!(self.acc, Acc::None) {
            self.acc = other.acc;
        } else {
            match (&mut self.acc, other.acc) {
                (_, Acc::None) => {}
                (Acc::Int(x), Acc::Int(y)) => *x += y,
                (Acc::Items(x), Acc::Items(y)) => {
                    if (x.len() + y.len()) * size_of::<Datum>() > COLLECTED_MAX {
                        return Err(too_long());
                    }
                    x.extend(y);
                }
                (Acc::Spread(x), Acc::Spread(y)) => x.merge(&y),
                (Acc::Squares(x), Acc::Squares(y)) => **x = (x.0.add(&y.0)?, x.1.add(&y.1)?),
                (_, Acc::Numeric(y)) => self.update_other(&Datum::Numeric(*y), &[])?,
                (_, Acc::Interval(y)) => self.update_other(&Datum::Interval(y), &[])?,
                (_, Acc::Value(y)) => self.update_other(&y, &[])?,
                (_, Acc::Float(y)) if self.kind == Kind::SumFloat4 => {
                    self.update_other(&Datum::Float4(y as f32), &[])?
                }
                (_, Acc::Float(y)) => self.update_other(&Datum::Float8(y), &[])?,
                _ => return Err(Error::internal("merge of different aggregates")),
            }
        }
        self.count = count;
        Ok(())
    }

    /// The result: NULL for no rows, but 0 for counts.
    pub fn finish(self) -> Result<Datum> {
        let n = self.count;
        Ok(match (self.kind, self.acc) {
            (Kind::Count | Kind::CountAll, _) => Datum::Int8(n),
            (_, Acc::None) => Datum::Null,
            (Kind::SumInt, Acc::Int(v)) => {
                Datum::Int8(i64::try_from(v).map_err(|_| Error::out_of_range("bigint"))?)
            }
            (Kind::AvgInt, Acc::Int(v)) => Datum::Numeric(Numeric::from_i128(v).div(&n.into())?),
            (_, Acc::Int(v)) => Datum::Numeric(Numeric::from_i128(v)),
            (Kind::AvgNumeric, Acc::Numeric(v)) => Datum::Numeric(v.div(&n.into())?),
            (_, Acc::Numeric(v)) => Datum::Numeric(*v),
            (Kind::SumFloat4, Acc::Float(v)) => Datum::Float4(v as f32),
            (_, Acc::Float(v)) => Datum::Float8(v),
            (Kind::AvgInterval, Acc::Interval(v)) => Datum::Interval(ival::div(&v, n as f64)?),
            (_, Acc::Interval(v)) => Datum::Interval(v),
            (_, Acc::Value(v)) => v,
            (Kind::BytesAgg, Acc::Text(v)) => Datum::Bytes(v.into()),
            (_, Acc::Text(v)) => {
                Datum::from(String::from_utf8(v).map_err(|_| Error::internal("string_agg of bytes"))?)
            }
            (Kind::ArrayAgg(t), Acc::Items(items)) => Datum::array(t, items),
            (_, Acc::Items(_)) => Datum::Null,
            (Kind::AvgFloat, Acc::Spread(s)) => Datum::Float8(s.sum / s.n),
            (Kind::Spread { sample, root, .. }, Acc::Spread(s)) => {
                if sample && s.n < 2.0 {
                    return Ok(Datum::Null);
                }
                let variance = s.squares / if sample { s.n - 1.0 } else { s.n };
                Datum::Float8(if root { variance.sqrt() } else { variance })
            }
            (Kind::Spread { sample, root, .. }, Acc::Squares(s)) => {
                numeric_spread(n, &s.0, &s.1, sample, root)?
            }
            (_, Acc::Spread(_) | Acc::Squares(_)) => Datum::Null,
        })
    }

    /// Bytes of memory the state holds: for budgets.
    pub fn memory_bytes(&self) -> usize {
        size_of::<AggState>()
            + match &self.acc {
                Acc::Text(t) => t.len(),
                Acc::Items(i) => i.iter().map(Datum::memory_bytes).sum(),
                Acc::Value(v) => v.memory_bytes(),
                _ => 64,
            }
    }
}

/// PostgreSQL's variance of numerics from the sums of values and squares.
fn numeric_spread(n: i64, sum: &Numeric, squares: &Numeric, sample: bool, root: bool) -> Result<Datum> {
    if sample && n < 2 {
        return Ok(Datum::Null);
    }
    if !sum.is_finite() || !squares.is_finite() {
        return Ok(Datum::Numeric(Numeric::NAN));
    }
    let count = Numeric::from(n);
    let top = count.mul(squares)?.sub(&sum.mul(sum)?)?;
    if top.signum() <= 0 {
        return Ok(Datum::Numeric(Numeric::ZERO));
    }
    let bottom = count.mul(&Numeric::from(if sample { n - 1 } else { n }))?;
    let variance = top.div(&bottom)?;
    Ok(Datum::Numeric(if root { variance.sqrt_to_scale(variance.scale())? } else { variance }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use crate::text::{parse_text, to_text};

    fn run(name: &str, ty: Type, values: &[&str], split: usize) -> Option<String> {
        let spec = aggregate(name, &[ty]).unwrap().unwrap();
        let s = Settings::default();
        let mut states = [spec.init(), spec.init()];
        for (i, v) in values.iter().enumerate() {
            let d = if *v == "null" { Datum::Null } else { parse_text(&spec.arg_types[0], v, &s).unwrap() };
            states[usize::from(i >= split)].update(&[d]).unwrap();
        }
        let [mut a, b] = states;
        a.merge(b).unwrap();
        let d = a.finish().unwrap();
        (!d.is_null()).then(|| to_text(&d, &spec.result, &s))
    }

    #[test]
    fn results_as_postgresql_answers_however_the_rows_are_split() {
        let ints = ["1", "2", "null", "4"];
        let halves = ["1.5", "2.50", "null", "4"];
        let cases: &[(&str, Type, &[&str], Option<&str>)] = &[
            ("count", Type::Int4, &ints, Some("3")),
            ("sum", Type::Int4, &ints, Some("7")),
            ("avg", Type::Int4, &ints, Some("2.3333333333333333")),
            ("sum", Type::Int8, &["9223372036854775807", "1"], Some("9223372036854775808")),
            ("avg", Type::Numeric(None), &halves, Some("2.6666666666666667")),
            ("sum", Type::Numeric(None), &halves, Some("8.00")),
            ("min", Type::Text, &["b", "a", "null"], Some("a")),
            ("max", Type::Date, &["2024-01-02", "2024-03-01"], Some("2024-03-01")),
            ("stddev", Type::Int4, &ints, Some("1.5275252316519467")),
            ("variance", Type::Int4, &ints, Some("2.3333333333333333")),
            ("stddev_pop", Type::Int4, &ints, Some("1.2472191289246471")),
            ("var_pop", Type::Float8, &["1", "2", "4"], Some("1.5555555555555554")),
            ("avg", Type::Float8, &["1", "2"], Some("1.5")),
            ("bool_and", Type::Bool, &["t", "f", "null"], Some("f")),
            ("bool_or", Type::Bool, &["t", "f"], Some("t")),
            ("bit_or", Type::Int4, &["1", "4"], Some("5")),
            ("array_agg", Type::Int4, &["1", "null"], Some("{1,NULL}")),
            ("sum", Type::Interval, &["1 day", "2 hours"], Some("1 day 02:00:00")),
            ("avg", Type::Interval, &["1 day", "2 days"], Some("1 day 12:00:00")),
            ("sum", Type::Int4, &["null"], None),
            ("stddev", Type::Int4, &["1"], None),
            ("count", Type::Int4, &[], Some("0")),
        ];
        for (name, ty, values, want) in cases {
            for split in 0..=values.len() {
                let got = run(name, *ty, values, split);
                if *name == "var_pop" {
                    let close =
                        (got.unwrap().parse::<f64>().unwrap() - want.unwrap().parse::<f64>().unwrap()).abs();
                    assert!(close < 1e-12);
                } else {
                    assert_eq!(got.as_deref(), *want, "{name}({ty}) split at {split}");
                }
            }
        }
        let spec = aggregate("string_agg", &[Type::Text, Type::Unknown]).unwrap().unwrap();
        let mut s = spec.init();
        for v in ["a", "b"] {
            s.update(&[v.into(), ", ".into()]).unwrap();
        }
        assert_eq!(s.finish().unwrap(), "a, b".into());
        assert!(aggregate("nosuch", &[]).unwrap().is_none());
        assert_eq!(aggregate("sum", &[Type::Text]).unwrap_err().sqlstate, SqlState::UNDEFINED_FUNCTION);
    }
}
