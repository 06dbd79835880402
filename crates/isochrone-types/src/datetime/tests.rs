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
