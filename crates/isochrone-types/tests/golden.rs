//! Every line of `golden.txt` is a question that PostgreSQL 15 has answered: input, casts, operators, functions,
//! aggregates. We must answer the same, or with the same SQLSTATE; where we deliberately do not, the line's answer is
//! followed by `~` and ours, so that the difference is on record.

use isochrone_types::text::{parse_text, to_text};
use isochrone_types::*;

fn type_named(name: &str) -> Type {
    match name.split_once('(') {
        None => Type::from_sql_name(name).unwrap_or_else(|| panic!("type {name}")),
        Some((base, rest)) => {
            let args: Vec<i32> = rest.trim_end_matches(')').split(',').map(|a| a.parse().unwrap()).collect();
            match base {
                "numeric" => Type::Numeric(Some((args[0] as u16, args[1] as i16))),
                "varchar" => Type::Varchar(Some(args[0] as u32)),
                _ => Type::Char(Some(args[0] as u32)),
            }
        }
    }
}

/// A literal cast to a type, as `CAST('v' AS t)` is: with the truncation of an explicit cast.
fn literal(ty: &Type, text: &str, s: &Settings) -> Result<Datum> {
    match ty {
        Type::Varchar(_) | Type::Char(_) => {
            cast(parse_text(&Type::Text, text, s)?, &Type::Text, ty, CastContext::Explicit, s)
        }
        _ => parse_text(ty, text, s),
    }
}

fn answer(kind: &str, name: &str, args: &[(Type, &str)], s: &Settings) -> Result<String> {
    let mut values = Vec::new();
    for (t, v) in args {
        values.push(literal(t, v, s)?);
    }
    let types: Vec<Type> = args.iter().map(|a| a.0).collect();
    let call = |f: ResolvedFunction, values: Vec<Datum>, types: &[Type]| -> Result<(Datum, Type)> {
        let mut given = Vec::new();
        for ((v, t), want) in values.into_iter().zip(types).zip(&f.arg_types) {
            given.push(cast(v, t, want, CastContext::Implicit, s)?);
        }
        let d = EvalContext::with_settings(s, |c| f.call(&given, c))?;
        Ok((d, f.result))
    };
    let (datum, ty) = match kind {
        "i" => (values.remove(0), types[0]),
        "c" => {
            let to = type_named(name);
            if !cast::can_cast(&types[0], &to, CastContext::Explicit) {
                return Err(cast::cannot_cast(&types[0], &to));
            }
            (cast(values.remove(0), &types[0], &to, CastContext::Explicit, s)?, to)
        }
        "o" => call(resolve_operator(name, Some(&types[0]), &types[1])?, values, &types)?,
        "f" => call(resolve_function(name, &types)?, values, &types)?,
        "x" => {
            values.insert(0, name.into());
            let types = [Type::Text, types[0]];
            call(resolve_function("extract", &types)?, values, &types)?
        }
        "a" => {
            let spec = aggregate::aggregate(name, &types[..1])?.expect("an aggregate");
            let mut state = spec.init();
            for v in values {
                state.update(&[cast(v, &types[0], &spec.arg_types[0], CastContext::Implicit, s)?])?;
            }
            (state.finish()?, spec.result)
        }
        other => panic!("kind {other}"),
    };
    Ok(if datum.is_null() { "<NULL>".to_owned() } else { to_text(&datum, &ty, s) })
}

#[test]
fn answers_are_postgresqls() {
    let s = Settings::default();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("golden.txt").lines().filter(|l| !l.starts_with('#')) {
        let (question, want) = line.split_once("\t=>\t").expect("an answer");
        let want = want.split_once("\t~\t").map_or(want, |w| w.1);
        let fields: Vec<&str> = question.split('\t').collect();
        let args: Vec<(Type, &str)> = fields[2..].chunks(2).map(|c| (type_named(c[0]), c[1])).collect();
        let got = match answer(fields[0], fields[1], &args, &s) {
            Ok(text) => format!("={}", text.replace('\n', "\\n")),
            Err(e) => format!("!{}", e.sqlstate),
        };
        count += 1;
        if got != want {
            wrong.push(format!("{question}\n    PostgreSQL {want}\n    we         {got}"));
        }
    }
    assert!(count > 1000, "the table is there");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every line of `resolution.txt` asks which function a call means, for every pair of types.
#[test]
fn resolution_is_postgresqls() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("resolution.txt").lines().filter(|l| !l.starts_with('#')) {
        let (question, want) = line.split_once("\t=>\t").expect("an answer");
        let want = want.split_once("\t~\t").map_or(want, |w| w.1);
        let fields: Vec<&str> = question.split('\t').collect();
        let types: Vec<Type> = fields[2..].iter().map(|t| type_named(t)).collect();
        let got = match fields[0] {
            "o" => resolve_operator(fields[1], Some(&types[0]), &types[1]).map(|f| f.result),
            "p" => resolve_operator(fields[1], None, &types[0]).map(|f| f.result),
            "t" => common_type(&types, fields[1]),
            _ => match aggregate::aggregate(fields[1], &types) {
                Ok(Some(a)) => Ok(a.result),
                Ok(None) => resolve_function(fields[1], &types).map(|f| f.result),
                Err(e) => Err(e),
            },
        };
        let got = match got {
            Ok(t) => t.base_sql_name(),
            Err(e) => format!("!{}", e.sqlstate),
        };
        count += 1;
        if got != want {
            wrong.push(format!("{question}\t=> {want}\twe {got}"));
        }
    }
    assert!(count > 1000, "the table is there");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}
