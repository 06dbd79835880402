use super::*;

#[test]
fn every_function_resolves_with_its_own_types() {
    for table in [&TABLES.operators, &TABLES.functions] {
        for sigs in table.values() {
            for s in sigs {
                let args: Vec<Type> = s
                    .args
                    .iter()
                    .map(|p| match p {
                        P::T(t) => *t,
                        P::Any | P::NonArray | P::Element => Type::Int4,
                        P::Array => Type::Array(&Type::Int4),
                    })
                    .collect();
                assert!(matches!(choose(sigs, &args), Choice::One(_)), "{s:?}");
            }
        }
    }
}

fn some_type(p: P) -> Type {
    match p {
        P::T(t) => t,
        P::Any | P::NonArray | P::Element => Type::Int4,
        P::Array => Type::Array(&Type::Int4),
    }
}

/// Any function, with any values of the types it takes.
#[test]
fn no_function_panics_and_every_result_is_of_its_type() {
    use crate::proptests::value;
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let settings = crate::Settings {
        time_zone: crate::TimeZone::parse("America/New_York").unwrap(),
        ..crate::Settings::default()
    };
    let mut names: Vec<_> = TABLES.operators.iter().chain(&TABLES.functions).collect();
    names.sort_by_key(|n| n.0);
    for sig in names.into_iter().flat_map(|n| n.1) {
        for _ in 0..100 {
            let args: Vec<Datum> = sig
                .args
                .iter()
                .map(|p| value(some_type(*p)).new_tree(&mut runner).unwrap().current())
                .collect();
            if sig.strict && args.iter().any(Datum::is_null) {
                continue;
            }
            let result = EvalContext::with_settings(&settings, |c| (sig.func)(&args, c));
            match result {
                Ok(d) if !d.is_null() => {
                    let natural = d.natural_type();
                    let want = some_type(sig.result).base();
                    let alone = args.iter().all(Datum::is_null) && matches!(natural, Type::Array(_));
                    let same = natural == want || (natural == Type::Text && want == Type::Name) || alone;
                    assert!(same, "{} {args:?} gave {d:?}", sig.name);
                    // Dates and times stay in range: they print.
                    crate::text::to_text(&d, &want, &settings);
                }
                Ok(_) => {}
                Err(e) => {
                    assert!(!e.sqlstate.code().starts_with("XX"), "{} {args:?} failed with {e}", sig.name)
                }
            }
        }
    }
}
