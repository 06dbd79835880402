use super::*;

#[test]
fn the_calendar_goes_both_ways() {
    assert_eq!(days_from_civil(2000, 1, 1), 0);
    assert_eq!(days_from_civil(1970, 1, 1), -10_957);
    for days in (DATE_MIN as i64..3_000_000).step_by(97) {
        let (y, m, d) = civil_from_days(days);
        assert_eq!(days_from_civil(y, m, d), days);
        assert!((1..=12).contains(&m) && (1..=days_in_month(y, m)).contains(&d));
    }
    assert_eq!(civil_from_days(DATE_MAX as i64), (5_874_897, 12, 31));
    assert_eq!(civil_from_days(DATE_MIN as i64), (-4713, 11, 24));
    assert_eq!(day_of_week(0), 6);
}

#[test]
fn age_borrows_days_of_the_earlier_month() {
    let noon = |y, m, d| days_from_civil(y, m, d) * 86_400_000_000 + 43_200_000_000;
    let check = |a, b, months, days| {
        let v = interval::age(a, b).expect("finite");
        assert_eq!((v.months, v.days, v.micros), (months, days, 0));
    };
    // What PostgreSQL answers.
    check(noon(2024, 5, 10), noon(2024, 2, 20), 2, 19);
    check(noon(2024, 2, 20), noon(2024, 5, 10), -2, -19);
    check(noon(2024, 1, 31), noon(2024, 3, 1), -1, -1);
    check(noon(2024, 3, 1), noon(2024, 1, 31), 1, 1);
}
