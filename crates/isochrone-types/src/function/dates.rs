//! Dates, times, intervals, and what the clock says.

use super::args::*;
use super::registry::*;
use crate::datetime::{
    self, Civil, DAY_MICROS, EPOCH_SECONDS, SECOND_MICROS, days_from_civil, days_in_month, fields,
    interval as ival, is_infinite,
};
use crate::datum::{DATE_INFINITY, DATE_NEG_INFINITY};
use crate::settings::TimeZone;
use crate::{Datum, Error, EvalContext, Interval, Numeric, Result, SqlState};

type Ctx<'a> = EvalContext<'a>;

fn date_plus(d: i32, n: i64) -> Result<Datum> {
    if d == DATE_INFINITY || d == DATE_NEG_INFINITY {
        return Ok(Datum::Date(d));
    }
    i32::try_from(d as i64 + n)
        .ok()
        .filter(|d| (datetime::DATE_MIN..=datetime::DATE_MAX).contains(d))
        .map(Datum::Date)
        .ok_or_else(datetime::date_out_of_range)
}

fn date_minus_date(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (x, y) = (date(&a[0])?, date(&a[1])?);
    if [x, y].iter().any(|d| *d == DATE_INFINITY || *d == DATE_NEG_INFINITY) {
        return Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "cannot subtract infinite dates"));
    }
    Ok(Datum::Int4(x - y))
}

fn ts_minus_ts(x: i64, y: i64) -> Result<Datum> {
    if is_infinite(x) || is_infinite(y) {
        return Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "cannot subtract infinite timestamps"));
    }
    let micros = x.checked_sub(y).ok_or_else(datetime::interval_out_of_range)?;
    Ok(Datum::Interval(ival::justify_hours(&Interval { months: 0, days: 0, micros })?))
}

fn ts_plus(ts: i64, v: &Interval) -> Result<Datum> {
    Ok(Datum::Timestamp(ival::add_to_timestamp(ts, v)?))
}

fn tz_plus(ts: i64, v: &Interval, c: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Timestamptz(ival::add_to_timestamptz(ts, v, &c.settings.time_zone)?))
}

fn time_plus(t: i64, micros: i64) -> Datum {
    Datum::Time((t as i128 + micros as i128).rem_euclid(DAY_MICROS as i128) as i64)
}

fn float_of(n: Option<Numeric>) -> Datum {
    n.map_or(Datum::Null, |n| Datum::Float8(n.to_f64()))
}

fn numeric_of(n: Option<Numeric>) -> Datum {
    n.map_or(Datum::Null, Datum::Numeric)
}

fn field_of(a: &[Datum], c: &Ctx<'_>) -> Result<Option<Numeric>> {
    let field = text(&a[0])?;
    match &a[1] {
        Datum::Timestamp(t) => fields::extract_timestamp(field, *t, None),
        Datum::Timestamptz(t) => fields::extract_timestamp(field, *t, Some(&c.settings.time_zone)),
        Datum::Date(d) => fields::extract_date(field, *d),
        Datum::Time(t) => fields::extract_time(field, *t).map(Some),
        d => fields::extract_interval(field, &interval(d)?).map(Some),
    }
}

fn extract(a: &[Datum], c: &Ctx<'_>) -> Result<Datum> {
    Ok(numeric_of(field_of(a, c)?))
}

fn date_part(a: &[Datum], c: &Ctx<'_>) -> Result<Datum> {
    Ok(float_of(field_of(a, c)?))
}

fn field_overflow(what: String) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, what)
}

fn make_days(y: i32, m: i32, d: i32) -> Result<i64> {
    let year = if y < 0 { y as i64 + 1 } else { y as i64 };
    if y == 0 || !(1..=12).contains(&m) || d < 1 || d as i64 > days_in_month(year, m as i64) {
        return Err(field_overflow(format!("date field value out of range: {y}-{m:02}-{d:02}")));
    }
    Ok(days_from_civil(year, m as i64, d as i64))
}

fn make_date(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let days = make_days(int4(&a[0])?, int4(&a[1])?, int4(&a[2])?)?;
    date_plus(0, days)
}

fn make_clock(h: i32, m: i32, s: f64) -> Result<i64> {
    let micros = (s * 1e6).round_ties_even();
    if !(0..=24).contains(&h) || !(0..60).contains(&m) || !(0.0..=60e6).contains(&micros) {
        return Err(field_overflow(format!("time field value out of range: {h}:{m:02}:{s}")));
    }
    let t = (h as i64 * 3600 + m as i64 * 60) * SECOND_MICROS + micros as i64;
    if t > DAY_MICROS {
        return Err(field_overflow(format!("time field value out of range: {h}:{m:02}:{s}")));
    }
    Ok(t)
}

fn make_stamp(a: &[Datum]) -> Result<i64> {
    let days = make_days(int4(&a[0])?, int4(&a[1])?, int4(&a[2])?)?;
    let t = make_clock(int4(&a[3])?, int4(&a[4])?, float8(&a[5])?)?;
    days.checked_mul(DAY_MICROS)
        .and_then(|d| d.checked_add(t))
        .and_then(datetime::check_timestamp)
        .ok_or_else(datetime::timestamp_out_of_range)
}

fn to_timestamp(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let s = float8(&a[0])?;
    if s.is_nan() {
        return Err(field_overflow("timestamp cannot be NaN".to_owned()));
    }
    if s.is_infinite() {
        return Ok(Datum::Timestamptz(if s > 0.0 { i64::MAX } else { i64::MIN }));
    }
    let micros = ((s - EPOCH_SECONDS as f64) * 1e6).round_ties_even();
    if micros < datetime::TIMESTAMP_MIN as f64 || micros >= datetime::TIMESTAMP_END as f64 {
        return Err(field_overflow(format!("timestamp out of range: \"{s}\"")));
    }
    Ok(Datum::Timestamptz(micros as i64))
}

/// A zone as `AT TIME ZONE` takes it: a name, an abbreviation or an offset (whose sign POSIX turns).
fn zone_of(name: &str) -> Result<TimeZone> {
    let lower = name.to_ascii_lowercase();
    if let Some(east) = datetime::parse::abbreviation(&lower)
        && let Some(z) = TimeZone::fixed(east)
    {
        return Ok(z);
    }
    let unknown = || Error::invalid_parameter(format!("time zone \"{name}\" not recognized"));
    match name.as_bytes().first() {
        Some(b'+' | b'-' | b'0'..=b'9') => {
            let turned = match name.as_bytes()[0] {
                b'-' => name[1..].to_owned(),
                b'+' => format!("-{}", &name[1..]),
                _ => format!("-{name}"),
            };
            TimeZone::parse(&turned).map_err(|_| unknown())
        }
        _ => TimeZone::named(name).ok_or_else(unknown),
    }
}

fn zone_of_interval(v: &Interval) -> Result<TimeZone> {
    if v.months != 0 || v.days != 0 {
        return Err(Error::invalid_parameter("interval time zone must not include months or days"));
    }
    TimeZone::fixed((v.micros / SECOND_MICROS) as i32)
        .ok_or_else(|| Error::invalid_parameter("interval time zone is out of range"))
}

fn current_date(c: &Ctx<'_>) -> Result<i32> {
    Ok(datetime::timestamp_to_date(datetime::to_local(&c.settings.time_zone, c.settings.transaction_time)?))
}

fn transaction_time(_: &[Datum], c: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Timestamptz(c.settings.transaction_time))
}

fn round_to(ts: i64, digits: i32) -> i64 {
    let step = 10i64.pow(6 - digits.clamp(0, 6) as u32);
    (ts + step / 2).div_euclid(step) * step
}

fn age_from_today(local: i64, c: &Ctx<'_>) -> Result<Datum> {
    let midnight = datetime::date_to_timestamp(current_date(c)?)?;
    Ok(Datum::Interval(ival::age(midnight, local)?))
}

fn date_bin(a: &[Datum], ts: i64, origin: i64) -> Result<i64> {
    let v = interval(&a[0])?;
    if v.months != 0 {
        return Err(Error::unsupported("binning timestamps into intervals containing months or years"));
    }
    let step = v.days as i128 * DAY_MICROS as i128 + v.micros as i128;
    let step = i64::try_from(step).map_err(|_| datetime::interval_out_of_range())?;
    if step <= 0 {
        return Err(Error::invalid_parameter("stride must be greater than zero"));
    }
    if is_infinite(ts) || is_infinite(origin) {
        return Ok(ts);
    }
    let diff = ts.checked_sub(origin).ok_or_else(datetime::interval_out_of_range)?;
    datetime::check_timestamp(origin + diff.div_euclid(step) * step)
        .ok_or_else(datetime::timestamp_out_of_range)
}

pub(super) const OPERATORS: &[Sig] = &[
    sig("+", &[DATE, I4], DATE, |a, _| date_plus(date(&a[0])?, int4(&a[1])? as i64)),
    sig("+", &[I4, DATE], DATE, |a, _| date_plus(date(&a[1])?, int4(&a[0])? as i64)),
    sig("-", &[DATE, I4], DATE, |a, _| date_plus(date(&a[0])?, -(int4(&a[1])? as i64))),
    sig("-", &[DATE, DATE], I4, date_minus_date),
    sig("+", &[DATE, INTERVAL], TS, |a, _| {
        ts_plus(datetime::date_to_timestamp(date(&a[0])?)?, &interval(&a[1])?)
    }),
    sig("+", &[INTERVAL, DATE], TS, |a, _| {
        ts_plus(datetime::date_to_timestamp(date(&a[1])?)?, &interval(&a[0])?)
    }),
    sig("-", &[DATE, INTERVAL], TS, |a, _| {
        ts_plus(datetime::date_to_timestamp(date(&a[0])?)?, &ival::neg(&interval(&a[1])?)?)
    }),
    sig("+", &[DATE, TIME], TS, |a, _| {
        ts_plus(
            datetime::date_to_timestamp(date(&a[0])?)?,
            &Interval { months: 0, days: 0, micros: time(&a[1])? },
        )
    }),
    sig("+", &[TIME, DATE], TS, |a, _| {
        ts_plus(
            datetime::date_to_timestamp(date(&a[1])?)?,
            &Interval { months: 0, days: 0, micros: time(&a[0])? },
        )
    }),
    sig("+", &[TS, INTERVAL], TS, |a, _| ts_plus(timestamp(&a[0])?, &interval(&a[1])?)),
    sig("+", &[INTERVAL, TS], TS, |a, _| ts_plus(timestamp(&a[1])?, &interval(&a[0])?)),
    sig("-", &[TS, INTERVAL], TS, |a, _| ts_plus(timestamp(&a[0])?, &ival::neg(&interval(&a[1])?)?)),
    sig("-", &[TS, TS], INTERVAL, |a, _| ts_minus_ts(timestamp(&a[0])?, timestamp(&a[1])?)),
    sig("+", &[TZ, INTERVAL], TZ, |a, c| tz_plus(timestamptz(&a[0])?, &interval(&a[1])?, c)).stable(),
    sig("+", &[INTERVAL, TZ], TZ, |a, c| tz_plus(timestamptz(&a[1])?, &interval(&a[0])?, c)).stable(),
    sig("-", &[TZ, INTERVAL], TZ, |a, c| tz_plus(timestamptz(&a[0])?, &ival::neg(&interval(&a[1])?)?, c))
        .stable(),
    sig("-", &[TZ, TZ], INTERVAL, |a, _| ts_minus_ts(timestamptz(&a[0])?, timestamptz(&a[1])?)),
    sig("+", &[TIME, INTERVAL], TIME, |a, _| Ok(time_plus(time(&a[0])?, interval(&a[1])?.micros))),
    sig("+", &[INTERVAL, TIME], TIME, |a, _| Ok(time_plus(time(&a[1])?, interval(&a[0])?.micros))),
    sig("-", &[TIME, INTERVAL], TIME, |a, _| {
        Ok(time_plus(time(&a[0])?, -(interval(&a[1])?.micros % DAY_MICROS)))
    }),
    sig("-", &[TIME, TIME], INTERVAL, |a, _| {
        Ok(Datum::Interval(Interval { months: 0, days: 0, micros: time(&a[0])? - time(&a[1])? }))
    }),
    sig("+", &[INTERVAL, INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::add(&interval(&a[0])?, &interval(&a[1])?)?))
    }),
    sig("-", &[INTERVAL, INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::add(&interval(&a[0])?, &ival::neg(&interval(&a[1])?)?)?))
    }),
    sig("-", &[INTERVAL], INTERVAL, |a, _| Ok(Datum::Interval(ival::neg(&interval(&a[0])?)?))),
    sig("*", &[INTERVAL, F8], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::mul(&interval(&a[0])?, float8(&a[1])?)?))
    }),
    sig("*", &[F8, INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::mul(&interval(&a[1])?, float8(&a[0])?)?))
    }),
    sig("/", &[INTERVAL, F8], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::div(&interval(&a[0])?, float8(&a[1])?)?))
    }),
];

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("now", &[], TZ, transaction_time).stable(),
    sig("current_timestamp", &[], TZ, transaction_time).stable(),
    sig("current_timestamp", &[I4], TZ, |a, c| {
        Ok(Datum::Timestamptz(round_to(c.settings.transaction_time, int4(&a[0])?)))
    })
    .stable(),
    sig("transaction_timestamp", &[], TZ, transaction_time).stable(),
    sig("statement_timestamp", &[], TZ, |_, c| Ok(Datum::Timestamptz(c.statement_time))).stable(),
    sig("clock_timestamp", &[], TZ, |_, c| Ok(Datum::Timestamptz((c.clock)()))).volatile(),
    sig("current_date", &[], DATE, |_, c| Ok(Datum::Date(current_date(c)?))).stable(),
    sig("localtimestamp", &[], TS, |_, c| {
        Ok(Datum::Timestamp(datetime::to_local(&c.settings.time_zone, c.settings.transaction_time)?))
    })
    .stable(),
    sig("localtime", &[], TIME, |_, c| {
        let local = datetime::to_local(&c.settings.time_zone, c.settings.transaction_time)?;
        Ok(Datum::Time(local.rem_euclid(DAY_MICROS)))
    })
    .stable(),
    sig("extract", &[TEXT, TS], NUM, extract),
    sig("extract", &[TEXT, TZ], NUM, extract).stable(),
    sig("extract", &[TEXT, DATE], NUM, extract),
    sig("extract", &[TEXT, TIME], NUM, extract),
    sig("extract", &[TEXT, INTERVAL], NUM, extract),
    sig("date_part", &[TEXT, TS], F8, date_part),
    sig("date_part", &[TEXT, TZ], F8, date_part).stable(),
    sig("date_part", &[TEXT, DATE], F8, date_part),
    sig("date_part", &[TEXT, TIME], F8, date_part),
    sig("date_part", &[TEXT, INTERVAL], F8, date_part),
    sig("date_trunc", &[TEXT, TS], TS, |a, _| {
        let name = "timestamp without time zone";
        Ok(Datum::Timestamp(fields::trunc_timestamp(text(&a[0])?, timestamp(&a[1])?, name)?))
    }),
    sig("date_trunc", &[TEXT, TZ], TZ, |a, c| {
        let zone = &c.settings.time_zone;
        Ok(Datum::Timestamptz(fields::trunc_timestamptz(text(&a[0])?, timestamptz(&a[1])?, zone)?))
    })
    .stable(),
    sig("date_trunc", &[TEXT, TZ, TEXT], TZ, |a, _| {
        let zone = zone_of(text(&a[2])?)?;
        Ok(Datum::Timestamptz(fields::trunc_timestamptz(text(&a[0])?, timestamptz(&a[1])?, &zone)?))
    })
    .stable(),
    sig("date_trunc", &[TEXT, INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(fields::trunc_interval(text(&a[0])?, &interval(&a[1])?)?))
    }),
    sig("date_bin", &[INTERVAL, TS, TS], TS, |a, _| {
        Ok(Datum::Timestamp(date_bin(a, timestamp(&a[1])?, timestamp(&a[2])?)?))
    }),
    sig("date_bin", &[INTERVAL, TZ, TZ], TZ, |a, _| {
        Ok(Datum::Timestamptz(date_bin(a, timestamptz(&a[1])?, timestamptz(&a[2])?)?))
    }),
    sig("age", &[TS, TS], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::age(timestamp(&a[0])?, timestamp(&a[1])?)?))
    }),
    sig("age", &[TZ, TZ], INTERVAL, |a, c| {
        let zone = &c.settings.time_zone;
        let (x, y) = (timestamptz(&a[0])?, timestamptz(&a[1])?);
        Ok(Datum::Interval(ival::age(datetime::to_local(zone, x)?, datetime::to_local(zone, y)?)?))
    })
    .stable(),
    sig("age", &[TS], INTERVAL, |a, c| age_from_today(timestamp(&a[0])?, c)).stable(),
    sig("age", &[TZ], INTERVAL, |a, c| {
        age_from_today(datetime::to_local(&c.settings.time_zone, timestamptz(&a[0])?)?, c)
    })
    .stable(),
    sig("isfinite", &[DATE], BOOL, |a, _| {
        let d = date(&a[0])?;
        Ok(Datum::Bool(d != DATE_INFINITY && d != DATE_NEG_INFINITY))
    }),
    sig("isfinite", &[TS], BOOL, |a, _| Ok(Datum::Bool(!is_infinite(timestamp(&a[0])?)))),
    sig("isfinite", &[TZ], BOOL, |a, _| Ok(Datum::Bool(!is_infinite(timestamptz(&a[0])?)))),
    sig("isfinite", &[INTERVAL], BOOL, |_, _| Ok(Datum::Bool(true))),
    sig("justify_hours", &[INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::justify_hours(&interval(&a[0])?)?))
    }),
    sig("justify_days", &[INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::justify_days(&interval(&a[0])?)?))
    }),
    sig("justify_interval", &[INTERVAL], INTERVAL, |a, _| {
        Ok(Datum::Interval(ival::justify_interval(&interval(&a[0])?)?))
    }),
    sig("make_date", &[I4, I4, I4], DATE, make_date),
    sig("make_time", &[I4, I4, F8], TIME, |a, _| {
        Ok(Datum::Time(make_clock(int4(&a[0])?, int4(&a[1])?, float8(&a[2])?)?))
    }),
    sig("make_timestamp", &[I4, I4, I4, I4, I4, F8], TS, |a, _| Ok(Datum::Timestamp(make_stamp(a)?))),
    sig("make_timestamptz", &[I4, I4, I4, I4, I4, F8], TZ, |a, c| {
        Ok(Datum::Timestamptz(datetime::from_local(&c.settings.time_zone, make_stamp(a)?)?))
    })
    .stable(),
    sig("to_timestamp", &[F8], TZ, to_timestamp),
    sig("timezone", &[TEXT, TS], TZ, |a, _| {
        Ok(Datum::Timestamptz(datetime::from_local(&zone_of(text(&a[0])?)?, timestamp(&a[1])?)?))
    }),
    sig("timezone", &[TEXT, TZ], TS, |a, _| {
        Ok(Datum::Timestamp(datetime::to_local(&zone_of(text(&a[0])?)?, timestamptz(&a[1])?)?))
    }),
    sig("timezone", &[INTERVAL, TS], TZ, |a, _| {
        Ok(Datum::Timestamptz(datetime::from_local(
            &zone_of_interval(&interval(&a[0])?)?,
            timestamp(&a[1])?,
        )?))
    }),
    sig("timezone", &[INTERVAL, TZ], TS, |a, _| {
        Ok(Datum::Timestamp(datetime::to_local(&zone_of_interval(&interval(&a[0])?)?, timestamptz(&a[1])?)?))
    }),
];

/// Year, month, day and time of a local timestamp.
pub(super) fn civil(ts: i64) -> Civil {
    Civil::from_timestamp(ts)
}
