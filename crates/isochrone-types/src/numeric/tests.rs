use super::*;
use proptest::prelude::*;

fn n(s: &str) -> Numeric {
    s.parse().unwrap()
}

#[test]
fn text_and_scale() {
    for (i, o) in [
        ("1.50", "1.50"),
        ("-0.00", "0.00"),
        (".5", "0.5"),
        ("1.", "1"),
        ("1e3", "1000"),
        ("1.5e-3", "0.0015"),
        ("nan", "NaN"),
        ("-inf", "-Infinity"),
        ("123456789012345678901234567890.12", "123456789012345678901234567890.12"),
        ("0.000000000000000000001", "0.000000000000000000001"),
        ("9223372036854775808", "9223372036854775808"),
        (" 12 ", "12"),
    ] {
        assert_eq!(n(i).to_string(), o);
    }
    for bad in ["", ".", "1e", "e5", "1x", "--1", "+nan", "1 2", "0x10", "1_0"] {
        assert_eq!(Numeric::parse(bad).unwrap_err().sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{bad}");
    }
    assert_eq!(Numeric::parse("1e131072").unwrap_err().sqlstate, SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
    assert!(Numeric::parse("1e131071").is_ok());
}

#[test]
fn arithmetic_as_postgresql_answers() {
    assert_eq!(n("1").div(&n("3")).unwrap().to_string(), "0.33333333333333333333");
    assert_eq!(n("1.0").div(&n("3")).unwrap().to_string(), "0.33333333333333333333");
    assert_eq!(n("10").div(&n("3")).unwrap().to_string(), "3.3333333333333333");
    assert_eq!(n("100000").div(&n("3")).unwrap().to_string(), "33333.333333333333");
    assert_eq!(n("2").div(&n("0.0003")).unwrap().to_string(), "6666.6666666666666667");
    assert_eq!(n("1.10").add(&n("2.205")).unwrap().to_string(), "3.305");
    assert_eq!(n("1.10").mul(&n("2.205")).unwrap().to_string(), "2.42550");
    assert_eq!(n("-7.5").rem(&n("2")).unwrap().to_string(), "-1.5");
    assert_eq!(n("2.5").round(0).to_string(), "3");
    assert_eq!(n("-2.5").round(0).to_string(), "-3");
    assert_eq!(n("1250").round(-2).to_string(), "1300");
    assert_eq!(n("1.999").trunc(1).to_string(), "1.9");
    assert_eq!(n("-1.2").floor().to_string(), "-2");
    assert_eq!(n("1.2").ceil().to_string(), "2");
    assert_eq!(n("2").sqrt().unwrap().to_string(), "1.414213562373095");
    assert_eq!(n("1").div(&n("0")).unwrap_err().sqlstate, SqlState::DIVISION_BY_ZERO);
    assert!(n("inf").sub(&n("inf")).unwrap().is_nan());
}

#[test]
fn declared_precision() {
    assert_eq!(n("1.005").apply_typmod(3, 2).unwrap().to_string(), "1.01");
    assert_eq!(n("1234").apply_typmod(3, -2).unwrap().to_string(), "1200");
    let e = n("1000").apply_typmod(5, 2).unwrap_err();
    assert_eq!(e.sqlstate, SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
    assert_eq!(
        e.detail.as_deref(),
        Some("A field with precision 5, scale 2 must round to an absolute value less than 10^3.")
    );
    assert!(n("999.994").apply_typmod(5, 2).is_ok());
    assert!(n("999.995").apply_typmod(5, 2).is_err());
}

#[test]
fn floats() {
    assert_eq!(Numeric::from_f64(0.1).to_string(), "0.1");
    assert_eq!(Numeric::from_f64(1e20).to_string(), "100000000000000000000");
    assert_eq!(Numeric::from_f64(1.0 / 3.0).to_string(), "0.333333333333333");
    assert_eq!(Numeric::from_f32(0.1).to_string(), "0.1");
    assert_eq!(n("1234567.125").to_f64(), 1234567.125);
    assert_eq!(n("0.1").to_f64(), 0.1);
}

fn hash_of(x: &Numeric) -> u64 {
    let mut h = rustc_hash::FxHasher::default();
    x.hash(&mut h);
    h.finish()
}

proptest! {
    #[test]
    fn small_and_big_agree(a: i64, b: i64, s in 0u16..30, t in 0u16..30) {
        let (x, y) = (Numeric::from_parts(a, s), Numeric::from_parts(b, t));
        let sum = x.add(&y).unwrap();
        prop_assert_eq!(&sum.sub(&y).unwrap(), &x);
        prop_assert_eq!(sum.scale(), s.max(t));
        let (bx, by) = (BigInt::from(a) * pow10((30 - s) as u32), BigInt::from(b) * pow10((30 - t) as u32));
        prop_assert_eq!(x.cmp(&y), bx.cmp(&by));
        let product = x.mul(&y).unwrap();
        if b != 0 {
            prop_assert_eq!(&product.div_to_scale(&y, s).unwrap(), &x);
        }
        prop_assert_eq!(n(&x.to_string()).to_string(), x.to_string());
    }

    #[test]
    fn equal_values_hash_alike(a: i64, s in 0u16..20, more in 0u16..40) {
        let x = Numeric::from_parts(a, s);
        let y = x.round((s + more) as i32);
        prop_assert_eq!(&x, &y);
        prop_assert_eq!(hash_of(&x), hash_of(&y));
        prop_assert_eq!(y.trim_scale(), x);
    }

    #[test]
    fn any_text(s in "[-+0-9.eE ]{0,12}") {
        if let Ok(x) = Numeric::parse(&s) {
            prop_assert_eq!(n(&x.to_string()), x);
        }
    }
}
