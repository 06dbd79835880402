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
