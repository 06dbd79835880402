//! The calendar: days, clock times and time zones, over the proleptic Gregorian calendar.
//!
//! Dates are days and timestamps microseconds since 2000-01-01, as PostgreSQL stores them; their extreme values are
//! the infinities. Years are astronomical inside (1 BC is 0) and print with `BC`.
//!
//! A local time that a zone skips takes the offset from before the gap; one that happens twice takes the later
//! offset: PostgreSQL's choice.

use crate::datum::{DATE_INFINITY, DATE_NEG_INFINITY, TIMESTAMP_INFINITY, TIMESTAMP_NEG_INFINITY};
use crate::error::{Error, Result, SqlState};
use crate::settings::TimeZone;

pub(crate) mod fields;
pub(crate) mod format;
pub(crate) mod interval;
pub(crate) mod parse;
#[cfg(test)]
mod tests;

/// Microseconds of a day.
pub const DAY_MICROS: i64 = 86_400_000_000;
/// Microseconds of a second.
pub const SECOND_MICROS: i64 = 1_000_000;
/// Seconds from 1970-01-01 to 2000-01-01.
pub const EPOCH_SECONDS: i64 = 946_684_800;
/// The first date: 4714-11-24 BC, Julian day 0.
pub const DATE_MIN: i32 = -2_451_545;
/// The last date: 5874897-12-31.
pub const DATE_MAX: i32 = 2_145_031_948;
/// The first timestamp: 4714-11-24 BC.
pub const TIMESTAMP_MIN: i64 = -211_813_488_000_000_000;
/// The end of timestamps, exclusive: 294277-01-01.
pub const TIMESTAMP_END: i64 = 9_223_371_331_200_000_000;

/// Microseconds since 2000-01-01 UTC of microseconds since 1970 (saturating).
pub fn from_unix_micros(micros: i64) -> i64 {
    micros.saturating_sub(EPOCH_SECONDS * SECOND_MICROS)
}

/// Days since 2000-01-01 of a date; the month is 1 to 12.
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468 - 10_957
}

/// Year, month and day of days since 2000-01-01.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 10_957 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + (month <= 2) as i64, month, day)
}

/// Days of a month.
pub fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Day of the week of days since 2000-01-01 (a Saturday): 0 is Sunday.
pub fn day_of_week(days: i64) -> i64 {
    (days + 6).rem_euclid(7)
}

/// A timestamp taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Civil {
    /// Astronomical year.
    pub year: i64,
    /// 1 to 12
    pub month: i64,
    /// 1 to 31
    pub day: i64,
    /// Microseconds of the day.
    pub micros: i64,
}

impl Civil {
    /// Takes a finite timestamp apart.
    pub fn from_timestamp(ts: i64) -> Civil {
        let (year, month, day) = civil_from_days(ts.div_euclid(DAY_MICROS));
        Civil { year, month, day, micros: ts.rem_euclid(DAY_MICROS) }
    }

    /// The days since 2000-01-01.
    pub fn days(&self) -> i64 {
        days_from_civil(self.year, self.month, self.day)
    }

    /// Puts the timestamp together. 22008 when out of range.
    pub fn to_timestamp(self) -> Result<i64> {
        self.days()
            .checked_mul(DAY_MICROS)
            .and_then(|d| d.checked_add(self.micros))
            .and_then(check_timestamp)
            .ok_or_else(timestamp_out_of_range)
    }

    /// Hour, minute, microseconds of the minute.
    pub fn clock(&self) -> (i64, i64, i64) {
        (self.micros / 3_600_000_000, self.micros / 60_000_000 % 60, self.micros % 60_000_000)
    }
}

/// The timestamp when it is in range.
pub fn check_timestamp(ts: i64) -> Option<i64> {
    (TIMESTAMP_MIN..TIMESTAMP_END).contains(&ts).then_some(ts)
}

/// Is the timestamp one of the infinities?
pub fn is_infinite(ts: i64) -> bool {
    ts == TIMESTAMP_INFINITY || ts == TIMESTAMP_NEG_INFINITY
}

#[cold]
pub(crate) fn timestamp_out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range")
}

#[cold]
pub(crate) fn date_out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range")
}

#[cold]
pub(crate) fn interval_out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "interval out of range")
}

/// Seconds east of Greenwich of a zone at a moment.
pub fn offset_at(zone: &TimeZone, ts_utc: i64) -> i32 {
    if zone.is_utc() {
        return 0;
    }
    let unix = (ts_utc.div_euclid(SECOND_MICROS) + EPOCH_SECONDS).clamp(-377_000_000_000, 253_000_000_000);
    match jiff::Timestamp::from_second(unix) {
        Ok(t) => zone.jiff().to_offset(t).seconds(),
        Err(_) => 0,
    }
}

/// Seconds east of Greenwich of a zone at a local time.
pub fn offset_at_local(zone: &TimeZone, local: i64) -> i32 {
    if zone.is_utc() {
        return 0;
    }
    let c = Civil::from_timestamp(local);
    let (h, m, us) = c.clock();
    let date = jiff::civil::Date::new(c.year.clamp(-9000, 9000) as i16, c.month as i8, c.day.min(28) as i8);
    let exact = jiff::civil::Date::new(c.year.clamp(-9000, 9000) as i16, c.month as i8, c.day as i8);
    let time = jiff::civil::Time::new(h as i8, m as i8, (us / SECOND_MICROS) as i8, 0);
    let (Ok(date), Ok(time)) = (exact.or(date), time) else { return 0 };
    use jiff::tz::AmbiguousOffset;
    match zone.jiff().to_ambiguous_timestamp(date.to_datetime(time)).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.seconds(),
        AmbiguousOffset::Gap { before, .. } => before.seconds(),
        AmbiguousOffset::Fold { after, .. } => after.seconds(),
    }
}

/// A timestamptz as local time of a zone. 22008 when out of range.
pub fn to_local(zone: &TimeZone, ts_utc: i64) -> Result<i64> {
    if is_infinite(ts_utc) || zone.is_utc() {
        return Ok(ts_utc);
    }
    ts_utc.checked_add(offset_at(zone, ts_utc) as i64 * SECOND_MICROS).ok_or_else(timestamp_out_of_range)
}

/// A local time of a zone as timestamptz. 22008 when out of range.
pub fn from_local(zone: &TimeZone, local: i64) -> Result<i64> {
    if is_infinite(local) || zone.is_utc() {
        return Ok(local);
    }
    local
        .checked_sub(offset_at_local(zone, local) as i64 * SECOND_MICROS)
        .and_then(check_timestamp)
        .ok_or_else(timestamp_out_of_range)
}

/// The timestamp at the start of a date. 22008 when out of range.
pub fn date_to_timestamp(date: i32) -> Result<i64> {
    match date {
        DATE_INFINITY => Ok(TIMESTAMP_INFINITY),
        DATE_NEG_INFINITY => Ok(TIMESTAMP_NEG_INFINITY),
        d => (d as i64)
            .checked_mul(DAY_MICROS)
            .and_then(check_timestamp)
            .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range for timestamp")),
    }
}

/// The date of a timestamp.
pub fn timestamp_to_date(ts: i64) -> i32 {
    match ts {
        TIMESTAMP_INFINITY => DATE_INFINITY,
        TIMESTAMP_NEG_INFINITY => DATE_NEG_INFINITY,
        ts => ts.div_euclid(DAY_MICROS) as i32,
    }
}
