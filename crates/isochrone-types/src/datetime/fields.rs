//! Fields of dates, times and intervals: `extract`, `date_part`, `date_trunc`.

use super::*;
use crate::datum::Interval;
use crate::numeric::Numeric;

#[cold]
fn not_recognized(field: &str, type_name: &str) -> Error {
    Error::invalid_parameter(format!("unit \"{field}\" not recognized for type {type_name}"))
}

#[cold]
fn not_supported(field: &str, type_name: &str) -> Error {
    Error::new(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!("unit \"{field}\" not supported for type {type_name}"),
    )
}

/// A unit's one name; `None` when unknown.
fn unit(field: &str) -> Option<&'static str> {
    Some(match field.to_ascii_lowercase().as_str() {
        "microseconds" | "microsecond" | "us" | "usec" | "usecs" | "useconds" => "microseconds",
        "milliseconds" | "millisecond" | "ms" | "msec" | "msecs" | "mseconds" => "milliseconds",
        "second" | "seconds" | "sec" | "secs" | "s" => "second",
        "minute" | "minutes" | "min" | "mins" | "m" => "minute",
        "hour" | "hours" | "hr" | "hrs" | "h" => "hour",
        "day" | "days" | "d" => "day",
        "week" | "weeks" | "w" => "week",
        "month" | "months" | "mon" | "mons" => "month",
        "quarter" | "qtr" => "quarter",
        "year" | "years" | "yr" | "yrs" | "y" => "year",
        "decade" | "decades" | "dec" | "decs" => "decade",
        "century" | "centuries" | "cent" | "c" => "century",
        "millennium" | "millennia" | "mil" | "mils" => "millennium",
        "dow" => "dow",
        "isodow" => "isodow",
        "doy" => "doy",
        "isoyear" => "isoyear",
        "epoch" => "epoch",
        "julian" => "julian",
        "timezone" => "timezone",
        "timezone_hour" => "timezone_hour",
        "timezone_minute" => "timezone_minute",
        _ => return None,
    })
}

/// ISO year and week of a date.
pub(crate) fn iso_week(days: i64) -> (i64, i64) {
    let dow = (day_of_week(days) + 6) % 7;
    let thursday = days - dow + 3;
    let (year, _, _) = civil_from_days(thursday);
    (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
}

fn div_ceil_year(year: i64, n: i64) -> i64 {
    if year > 0 { (year + n - 1) / n } else { -((n - 1 - (year - 1)) / n) }
}

fn clock_field(unit: &str, micros: i64) -> Option<Numeric> {
    Some(match unit {
        "microseconds" => (micros % 60_000_000).into(),
        "milliseconds" => Numeric::from_parts(micros % 60_000_000, 3),
        "second" => Numeric::from_parts(micros % 60_000_000, 6),
        "minute" => (micros / 60_000_000 % 60).into(),
        "hour" => (micros / 3_600_000_000).into(),
        _ => return None,
    })
}

fn date_field(unit: &str, c: &Civil) -> Option<i64> {
    let days = c.days();
    Some(match unit {
        "day" => c.day,
        "month" => c.month,
        "quarter" => (c.month - 1) / 3 + 1,
        // There is no year 0.
        "year" => {
            if c.year > 0 {
                c.year
            } else {
                c.year - 1
            }
        }
        "decade" => c.year.div_euclid(10),
        "century" => div_ceil_year(c.year, 100),
        "millennium" => div_ceil_year(c.year, 1000),
        "week" => iso_week(days).1,
        "isoyear" => {
            let y = iso_week(days).0;
            if y > 0 { y } else { y - 1 }
        }
        "dow" => day_of_week(days),
        "isodow" => (day_of_week(days) + 6) % 7 + 1,
        "doy" => days - days_from_civil(c.year, 1, 1) + 1,
        _ => return None,
    })
}

/// What an infinite value answers: infinity for fields that grow, NULL (`None`) for those that turn.
fn infinite_field(unit: &str, positive: bool) -> Option<Numeric> {
    matches!(unit, "year" | "decade" | "century" | "millennium" | "isoyear" | "epoch" | "julian")
        .then(|| if positive { Numeric::INFINITY } else { Numeric::NEG_INFINITY })
}

/// `extract(field from timestamp)`; with a zone, from timestamptz. `None` is NULL.
pub(crate) fn extract_timestamp(field: &str, ts: i64, zone: Option<&TimeZone>) -> Result<Option<Numeric>> {
    let name = if zone.is_some() { "timestamp with time zone" } else { "timestamp without time zone" };
    let u = unit(field).ok_or_else(|| not_recognized(field, name))?;
    if is_infinite(ts) {
        return Ok(infinite_field(u, ts > 0));
    }
    if u.starts_with("timezone") && zone.is_none() {
        return Err(not_supported(field, name));
    }
    let local = match zone {
        Some(z) => to_local(z, ts)?,
        None => ts,
    };
    let c = Civil::from_timestamp(local);
    let offset = (local - ts) / SECOND_MICROS;
    Ok(Some(match u {
        "epoch" => {
            Numeric::from_i128(ts as i128 + EPOCH_SECONDS as i128 * SECOND_MICROS as i128).shift_right(6)
        }
        "julian" => {
            let day: Numeric = (c.days() + 2_451_545).into();
            day.add(&Numeric::from(c.micros).div(&DAY_MICROS.into())?)?
        }
        "timezone" => offset.into(),
        "timezone_hour" => (offset / 3600).into(),
        "timezone_minute" => (offset / 60 % 60).into(),
        u => match (clock_field(u, c.micros), date_field(u, &c)) {
            (Some(n), _) => n,
            (None, Some(n)) => n.into(),
            (None, None) => return Err(not_supported(field, name)),
        },
    }))
}

/// `extract(field from date)`. `None` is NULL.
pub(crate) fn extract_date(field: &str, date: i32) -> Result<Option<Numeric>> {
    let u = unit(field).ok_or_else(|| not_recognized(field, "date"))?;
    if date == DATE_INFINITY || date == DATE_NEG_INFINITY {
        return Ok(infinite_field(u, date > 0));
    }
    let (year, month, day) = civil_from_days(date as i64);
    let c = Civil { year, month, day, micros: 0 };
    Ok(Some(match u {
        "epoch" => (date as i64 * 86_400 + EPOCH_SECONDS).into(),
        "julian" => (date as i64 + 2_451_545).into(),
        u => date_field(u, &c).ok_or_else(|| not_supported(field, "date"))?.into(),
    }))
}

/// `extract(field from time)`
pub(crate) fn extract_time(field: &str, micros: i64) -> Result<Numeric> {
    let name = "time without time zone";
    match unit(field).ok_or_else(|| not_recognized(field, name))? {
        "epoch" => Ok(Numeric::from_parts(micros, 6)),
        u => clock_field(u, micros).ok_or_else(|| not_supported(field, name)),
    }
}

/// `extract(field from interval)`
pub(crate) fn extract_interval(field: &str, v: &Interval) -> Result<Numeric> {
    let u = unit(field).ok_or_else(|| not_recognized(field, "interval"))?;
    if let Some(n) = clock_field(u, v.micros) {
        return Ok(n);
    }
    let (years, months) = (v.months as i64 / 12, v.months as i64 % 12);
    Ok(match u {
        "day" => (v.days as i64).into(),
        "month" => months.into(),
        "quarter" => (months / 3 + 1).into(),
        "year" => years.into(),
        "decade" => (years / 10).into(),
        "century" => (years / 100).into(),
        "millennium" => (years / 1000).into(),
        // Years count 365.25 days here, single months 30.
        "epoch" => {
            let days = years as i128 * 1461 * 6 + (months as i128 * 30 + v.days as i128) * 24;
            let micros = days * 3_600_000_000 + v.micros as i128;
            Numeric::from_i128(micros).shift_right(6)
        }
        _ => return Err(not_supported(field, "interval")),
    })
}

/// What cannot be cut to: fields that are no length of time are not even recognized.
fn not_truncatable(unit: &str, field: &str, type_name: &str) -> Error {
    if matches!(unit, "dow" | "isodow" | "doy" | "isoyear" | "epoch" | "julian") {
        not_recognized(field, type_name)
    } else {
        not_supported(field, type_name)
    }
}

/// `date_trunc(field, timestamp)` of local time.
pub(crate) fn trunc_timestamp(field: &str, ts: i64, type_name: &str) -> Result<i64> {
    let u = unit(field).ok_or_else(|| not_recognized(field, type_name))?;
    if is_infinite(ts) {
        return Ok(ts);
    }
    let mut c = Civil::from_timestamp(ts);
    let step = match u {
        "microseconds" => return Ok(ts),
        "milliseconds" => 1_000,
        "second" => SECOND_MICROS,
        "minute" => 60 * SECOND_MICROS,
        "hour" => 3600 * SECOND_MICROS,
        "day" => DAY_MICROS,
        "week" => {
            let days = c.days();
            let monday = days - (day_of_week(days) + 6) % 7;
            return monday
                .checked_mul(DAY_MICROS)
                .and_then(check_timestamp)
                .ok_or_else(timestamp_out_of_range);
        }
        "month" | "quarter" | "year" | "decade" | "century" | "millennium" => {
            c.day = 1;
            c.micros = 0;
            match u {
                "month" => {}
                "quarter" => c.month = (c.month - 1) / 3 * 3 + 1,
                _ => c.month = 1,
            }
            let years = |n: i64| (c.year - 1).div_euclid(n) * n + 1;
            c.year = match u {
                "decade" => c.year.div_euclid(10) * 10,
                "century" => years(100),
                "millennium" => years(1000),
                _ => c.year,
            };
            return c.to_timestamp();
        }
        _ => return Err(not_truncatable(u, field, type_name)),
    };
    Ok(ts - ts.rem_euclid(step))
}

/// `date_trunc(field, timestamptz)` in a zone.
pub(crate) fn trunc_timestamptz(field: &str, ts: i64, zone: &TimeZone) -> Result<i64> {
    let name = "timestamp with time zone";
    let small = matches!(unit(field), Some("microseconds" | "milliseconds" | "second" | "minute" | "hour"));
    let local = to_local(zone, ts)?;
    let cut = trunc_timestamp(field, local, name)?;
    // Within a day the offset stays what it was.
    if small { Ok(ts - (local - cut)) } else { from_local(zone, cut) }
}

/// `date_trunc(field, interval)`
pub(crate) fn trunc_interval(field: &str, v: &Interval) -> Result<Interval> {
    let u = unit(field).ok_or_else(|| not_recognized(field, "interval"))?;
    let months = |n: i32| Ok(Interval { months: v.months / n * n, days: 0, micros: 0 });
    let micros = |n: i64| Ok(Interval { micros: v.micros / n * n, ..*v });
    match u {
        "millennium" => months(12_000),
        "century" => months(1_200),
        "decade" => months(120),
        "year" => months(12),
        "quarter" => months(3),
        "month" => months(1),
        "day" => Ok(Interval { micros: 0, ..*v }),
        "hour" => micros(3_600_000_000),
        "minute" => micros(60_000_000),
        "second" => micros(SECOND_MICROS),
        "milliseconds" => micros(1_000),
        "microseconds" => Ok(*v),
        _ => Err(not_truncatable(u, field, "interval")),
    }
}
