//! Values for property tests: of every type, with the extremes made likely; and the round trips.

use crate::datetime::{DATE_MAX, DATE_MIN, DAY_MICROS, TIMESTAMP_END, TIMESTAMP_MIN};
use crate::*;
use proptest::prelude::*;

/// Any type that values can have.
pub(crate) fn scalar_types() -> impl Strategy<Value = Type> {
    let mut all: Vec<Type> =
        Type::all_scalar().filter(|t| !matches!(t, Type::Void | Type::Unknown)).collect();
    all.extend([
        Type::Char(Some(4)),
        Type::Varchar(Some(6)),
        Type::Array(&Type::Int4),
        Type::Array(&Type::Text),
    ]);
    proptest::sample::select(all)
}

fn short_text() -> BoxedStrategy<String> {
    prop_oneof!["[ab ]{0,4}", "[a-c\\\\\"{}, %\u{1}\u{2}é]{0,5}", Just("null".to_owned())].boxed()
}

fn numeric() -> BoxedStrategy<Numeric> {
    prop_oneof![
        (-1000i64..1000, 0u16..4).prop_map(|(m, s)| Numeric::from_parts(m, s)),
        (any::<i64>(), 0u16..25).prop_map(|(m, s)| Numeric::from_parts(m, s)),
        (any::<i64>(), any::<i64>(), 0u16..25)
            .prop_map(|(a, b, s)| Numeric::from_parts(a, s).mul(&Numeric::from(b)).unwrap()),
        proptest::sample::select(vec![Numeric::NAN, Numeric::INFINITY, Numeric::NEG_INFINITY, Numeric::ZERO]),
    ]
    .boxed()
}

fn double() -> BoxedStrategy<f64> {
    prop_oneof![
        any::<f64>(),
        proptest::sample::select(vec![
            0.0,
            -0.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e15,
            1e-5,
            0.1
        ]),
    ]
    .boxed()
}

fn stamp() -> BoxedStrategy<i64> {
    prop_oneof![
        8 => TIMESTAMP_MIN..TIMESTAMP_END,
        8 => -DAY_MICROS * 20_000..DAY_MICROS * 20_000,
        1 => Just(i64::MAX),
        1 => Just(i64::MIN)
    ]
    .boxed()
}

/// Any value of a type, NULL included.
pub(crate) fn value(t: Type) -> BoxedStrategy<Datum> {
    let some: BoxedStrategy<Datum> = match t {
        Type::Bool => any::<bool>().prop_map(Datum::Bool).boxed(),
        Type::Int2 => any::<i16>().prop_map(Datum::Int2).boxed(),
        Type::Int4 => prop_oneof![any::<i32>(), -3..3].prop_map(Datum::Int4).boxed(),
        Type::Int8 => prop_oneof![any::<i64>(), -3i64..3].prop_map(Datum::Int8).boxed(),
        Type::Float4 => double().prop_map(|v| Datum::Float4(v as f32)).boxed(),
        Type::Float8 => double().prop_map(Datum::Float8).boxed(),
        Type::Numeric(_) => numeric().prop_map(Datum::Numeric).boxed(),
        Type::Text | Type::Name | Type::Unknown => short_text().prop_map(Datum::from).boxed(),
        Type::Varchar(_) => "[ab%é]{0,6}".prop_map(Datum::from).boxed(),
        Type::Char(_) => {
            "[ab ]{0,4}".prop_map(move |s| cast::fit_string(&s, &t, CastContext::Explicit).unwrap()).boxed()
        }
        Type::InternalChar => "[a-z]{0,1}".prop_map(Datum::from).boxed(),
        Type::Bytea => proptest::collection::vec(any::<u8>(), 0..6).prop_map(Datum::bytes).boxed(),
        Type::Date => prop_oneof![DATE_MIN..=DATE_MAX, -20_000..20_000, Just(i32::MAX), Just(i32::MIN)]
            .prop_map(Datum::Date)
            .boxed(),
        Type::Time => (0..=DAY_MICROS).prop_map(Datum::Time).boxed(),
        Type::Timestamp => stamp().prop_map(Datum::Timestamp).boxed(),
        Type::Timestamptz => stamp().prop_map(Datum::Timestamptz).boxed(),
        Type::Interval => prop_oneof![
            (-40i32..40, -70i32..70, -DAY_MICROS * 3..DAY_MICROS * 3),
            (-1_000_000i32..1_000_000, any::<i32>(), i64::MIN / 2..i64::MAX / 2),
        ]
        .prop_map(|(months, days, micros)| Datum::Interval(Interval { months, days, micros }))
        .boxed(),
        Type::Uuid => any::<[u8; 16]>().prop_map(Datum::Uuid).boxed(),
        Type::Oid | Type::Regclass | Type::Regtype | Type::Regproc => {
            any::<u32>().prop_map(Datum::Oid).boxed()
        }
        Type::Array(e) => {
            proptest::collection::vec(value(*e), 0..4).prop_map(move |items| Datum::array(*e, items)).boxed()
        }
        Type::Void => Just(Datum::Null).boxed(),
    };
    prop_oneof![15 => some, 1 => Just(Datum::Null)].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn text_and_binary_come_back((t, d) in scalar_types().prop_flat_map(|t| (Just(t), value(t)))) {
        prop_assume!(!d.is_null());
        let mut zones = vec![Settings::default()];
        zones.push(Settings { time_zone: TimeZone::parse("Europe/Berlin").unwrap(), ..Settings::default() });
        zones.push(Settings { bytea_output: ByteaOutput::Escape, interval_style: IntervalStyle::Iso8601,
            time_zone: TimeZone::parse("-3:30").unwrap(), ..Settings::default() });
        for s in zones {
            let text = text::to_text(&d, &t, &s);
            let back = text::parse_text(&t, &text, &s);
            // Local time at the very ends of time may be out of range.
            if let (Datum::Timestamptz(v), Err(_)) = (&d, &back) {
                prop_assert!(*v > TIMESTAMP_END - DAY_MICROS || *v < TIMESTAMP_MIN + DAY_MICROS);
                continue;
            }
            prop_assert_eq!(text::to_text(&back.unwrap(), &t, &s), text);
        }
        let mut bytes = Vec::new();
        binary::write_binary(&d, &t, &mut bytes);
        let back = binary::parse_binary(&t, &bytes).unwrap();
        let s = Settings::default();
        prop_assert_eq!(text::to_text(&back, &t, &s), text::to_text(&d, &t, &s));
    }

    #[test]
    fn order_is_total_and_equal_values_hash_alike(
        (a, b, c) in scalar_types().prop_flat_map(|t| (value(t), value(t), value(t)))
    ) {
        use std::hash::Hasher;
        let of = |d: &Datum| {
            let mut h = rustc_hash::FxHasher::default();
            hash(d, &mut h);
            h.finish()
        };
        prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        if compare(&a, &b).is_eq() {
            prop_assert_eq!(of(&a), of(&b));
        }
        if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
            prop_assert!(compare(&a, &c).is_le());
        }
    }

    #[test]
    fn bad_bytes_and_texts_are_errors(t in scalar_types(), b: Vec<u8>, s in ".{0,12}", r in "[-0-9:./ TZ+a-z{},\"\\\\]{0,20}") {
        let _ = binary::parse_binary(&t, &b);
        let _ = text::parse_text(&t, &s, &Settings::default());
        let _ = text::parse_text(&t, &r, &Settings::default());
    }
}
