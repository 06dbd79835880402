//! Intervals: from text, and arithmetic with them.

use super::parse::fraction_micros;
use super::*;
use crate::datum::Interval;

/// What a text adds up to, before it is fitted into an interval.
#[derive(Default)]
struct Sum {
    months: i128,
    days: i128,
    micros: i128,
}

impl Sum {
    /// Adds `whole.frac` (the fraction in millionths... of the unit, as a double) of a unit.
    fn add(&mut self, unit: Unit, whole: i128, frac: f64) {
        match unit {
            Unit::Micros(n) => {
                self.micros += whole.saturating_mul(n as i128) + (frac * n as f64).round_ties_even() as i128;
            }
            Unit::Days(n) => {
                let days = frac * n as f64;
                let whole_days = days.trunc();
                self.days += whole.saturating_mul(n as i128) + whole_days as i128;
                let rest = (days - whole_days) * DAY_MICROS as f64;
                self.micros += rest.round_ties_even() as i128;
            }
            Unit::Months(1) => {
                self.months += whole;
                self.add(Unit::Days(30), 0, frac);
            }
            Unit::Months(n) => {
                // The fraction of years and more rounds to months.
                self.months += whole.saturating_mul(n as i128) + (frac * n as f64).round_ties_even() as i128;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Unit {
    Micros(i64),
    Days(i64),
    Months(i64),
}

impl Unit {
    fn id(self) -> (u8, i64) {
        match self {
            Unit::Micros(n) => (0, n),
            Unit::Days(n) => (1, n),
            Unit::Months(n) => (2, n),
        }
    }
}

fn unit(word: &str) -> Option<Unit> {
    Some(match word {
        "us" | "usec" | "usecs" | "microsecond" | "microseconds" | "usecond" | "useconds" => Unit::Micros(1),
        "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" | "msecond" | "mseconds" => {
            Unit::Micros(1_000)
        }
        "s" | "sec" | "secs" | "second" | "seconds" => Unit::Micros(SECOND_MICROS),
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Micros(60 * SECOND_MICROS),
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Micros(3600 * SECOND_MICROS),
        "d" | "day" | "days" => Unit::Days(1),
        "w" | "week" | "weeks" => Unit::Days(7),
        "mon" | "mons" | "month" | "months" => Unit::Months(1),
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Months(12),
        "decade" | "decades" | "dec" | "decs" => Unit::Months(120),
        "c" | "cent" | "century" | "centuries" => Unit::Months(1_200),
        "mil" | "mils" | "millennium" | "millennia" => Unit::Months(12_000),
        _ => return None,
    })
}

/// `12`, `-1.5`, `.5`: sign, whole part and fraction, both with the sign.
fn decimal(s: &str) -> Option<(i128, f64)> {
    let (sign, rest) = match s.as_bytes().first()? {
        b'-' => (-1, &s[1..]),
        b'+' => (1, &s[1..]),
        _ => (1, s),
    };
    let (whole, frac) = rest.split_once('.').unwrap_or((rest, ""));
    if whole.is_empty() && frac.is_empty() || whole.len() > 18 {
        return None;
    }
    if !whole.bytes().chain(frac.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let w: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let f: f64 = if frac.is_empty() { 0.0 } else { format!("0.{frac}").parse().ok()? };
    Some((w * sign, f * sign as f64))
}

/// `[-]hh:mm[:ss[.f]]` in microseconds.
fn clock(s: &str) -> Option<i128> {
    let (sign, rest) = match s.as_bytes().first()? {
        b'-' => (-1, &s[1..]),
        b'+' => (1, &s[1..]),
        _ => (1, s),
    };
    let p: Vec<&str> = rest.split(':').collect();
    let digits = |s: &str| -> Option<i128> {
        (!s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?
    };
    let seconds = |s: &str| -> Option<i128> {
        let (w, f) = s.split_once('.').unwrap_or((s, ""));
        Some(digits(w)? * SECOND_MICROS as i128 + fraction_micros(f)? as i128)
    };
    let micros = match p[..] {
        [m, s] if s.contains('.') => digits(m)? * 60_000_000 + seconds(s)?,
        [h, m] => digits(h)? * 3_600_000_000 + digits(m).filter(|m| *m < 60)? * 60_000_000,
        [h, m, s] => {
            digits(h)? * 3_600_000_000
                + digits(m).filter(|m| *m < 60)? * 60_000_000
                + seconds(s).filter(|s| *s < 61_000_000)?
        }
        _ => return None,
    };
    Some(sign * micros)
}

fn sum_iso(text: &str) -> Option<Sum> {
    let mut sum = Sum::default();
    let mut rest = text.strip_prefix('P')?;
    let mut time = false;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('T') {
            time = true;
            rest = r;
            continue;
        }
        let n = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, '+' | '-' | '.')))?;
        let (whole, frac) = decimal(&rest[..n])?;
        let unit = match (rest.as_bytes()[n], time) {
            (b'Y', false) => Unit::Months(12),
            (b'M', false) => Unit::Months(1),
            (b'W', false) => Unit::Days(7),
            (b'D', false) => Unit::Days(1),
            (b'H', true) => Unit::Micros(3_600_000_000),
            (b'M', true) => Unit::Micros(60_000_000),
            (b'S', true) => Unit::Micros(SECOND_MICROS),
            _ => return None,
        };
        sum.add(unit, whole, frac);
        rest = &rest[n + 1..];
    }
    Some(sum)
}

fn sum_words(text: &str) -> Option<Sum> {
    // Numbers and words, with or without space between them.
    let mut tokens: Vec<&str> = Vec::new();
    for part in text.split(|c: char| c.is_ascii_whitespace() || c == '@' || c == ',') {
        let mut rest = part;
        while !rest.is_empty() {
            let alpha = rest.as_bytes()[0].is_ascii_alphabetic();
            let n = rest.find(|c: char| c.is_ascii_alphabetic() != alpha).unwrap_or(rest.len());
            tokens.push(&rest[..n]);
            rest = &rest[n..];
        }
    }
    if tokens.is_empty() {
        return None;
    }
    let mut sum = Sum::default();
    let mut i = 0;
    let mut any = false;
    // A unit comes once.
    let mut seen: Vec<(u8, i64)> = Vec::new();
    while i < tokens.len() {
        let t = tokens[i];
        if t == "ago" && any && i + 1 == tokens.len() {
            sum = Sum { months: -sum.months, days: -sum.days, micros: -sum.micros };
        } else if t.contains(':') {
            sum.micros += clock(t)?;
        } else if let Some((y, m)) = t.char_indices().skip(1).find(|c| c.1 == '-').map(|(n, _)| t.split_at(n))
        {
            // SQL's year-month
            let (years, f) = decimal(y)?;
            let (months, g) = decimal(&m[1..])?;
            if f != 0.0 || g != 0.0 || months >= 12 {
                return None;
            }
            sum.months += years * 12 + if y.starts_with('-') { -months } else { months };
        } else {
            let (whole, frac) = decimal(t)?;
            match tokens.get(i + 1) {
                Some(w) if w.as_bytes()[0].is_ascii_alphabetic() && *w != "ago" => {
                    let unit = unit(w)?;
                    if seen.contains(&unit.id()) {
                        return None;
                    }
                    seen.push(unit.id());
                    sum.add(unit, whole, frac);
                    i += 1;
                }
                // A number before a clock time counts days, otherwise seconds.
                Some(w) if w.contains(':') => sum.add(Unit::Days(1), whole, frac),
                _ => sum.add(Unit::Micros(SECOND_MICROS), whole, frac),
            }
        }
        any = true;
        i += 1;
    }
    Some(sum)
}

/// Reads an interval. 22007 for what is none, 22015 when a part is out of range.
pub(crate) fn parse_interval(text: &str) -> Result<Interval> {
    let t = text.trim();
    let sum = if t.starts_with('P') { sum_iso(t) } else { sum_words(&t.to_ascii_lowercase()) };
    let sum = sum.ok_or_else(|| {
        Error::new(
            SqlState::INVALID_DATETIME_FORMAT,
            format!("invalid input syntax for type interval: \"{text}\""),
        )
    })?;
    let fit = || -> Option<Interval> {
        Some(Interval {
            months: sum.months.try_into().ok()?,
            days: sum.days.try_into().ok()?,
            micros: sum.micros.try_into().ok()?,
        })
    };
    fit().ok_or_else(|| {
        Error::new(
            SqlState::INTERVAL_FIELD_OVERFLOW,
            format!("interval field value out of range: \"{text}\""),
        )
    })
}

/// The sum of two intervals, part by part.
pub(crate) fn add(a: &Interval, b: &Interval) -> Result<Interval> {
    let sum = || {
        Some(Interval {
            months: a.months.checked_add(b.months)?,
            days: a.days.checked_add(b.days)?,
            micros: a.micros.checked_add(b.micros)?,
        })
    };
    sum().ok_or_else(interval_out_of_range)
}

/// The negated interval.
pub(crate) fn neg(a: &Interval) -> Result<Interval> {
    let n = || {
        Some(Interval {
            months: a.months.checked_neg()?,
            days: a.days.checked_neg()?,
            micros: a.micros.checked_neg()?,
        })
    };
    n().ok_or_else(interval_out_of_range)
}

/// The interval times a number; fractions of months go to days, of days to time.
pub(crate) fn mul(a: &Interval, factor: f64) -> Result<Interval> {
    scale(a, |v| v * factor)
}

/// The interval divided by a number.
pub(crate) fn div(a: &Interval, divisor: f64) -> Result<Interval> {
    if divisor == 0.0 {
        return Err(Error::division_by_zero());
    }
    scale(a, |v| v / divisor)
}

fn scale(a: &Interval, f: impl Fn(f64) -> f64) -> Result<Interval> {
    let round6 = |v: f64| (v * 1e6).round_ties_even() / 1e6;
    let (months, days) = (f(a.months as f64), f(a.days as f64));
    let in_range = |v: f64| v.is_finite() && v.abs() <= i32::MAX as f64;
    if !in_range(months) || !in_range(days) {
        return Err(interval_out_of_range());
    }
    let month_days = round6((months - months.trunc()) * 30.0);
    let mut seconds = round6((days - days.trunc() + month_days - month_days.trunc()) * 86_400.0);
    let mut whole_days = days.trunc() + month_days.trunc();
    if seconds.abs() >= 86_400.0 {
        let carry = (seconds / 86_400.0).trunc();
        whole_days += carry;
        seconds -= carry * 86_400.0;
    }
    let micros = (f(a.micros as f64) + seconds * 1e6).round_ties_even();
    if !micros.is_finite() || micros.abs() >= i64::MAX as f64 {
        return Err(interval_out_of_range());
    }
    Ok(Interval { months: months as i32, days: whole_days as i32, micros: micros as i64 })
}

/// Moves hours beyond a day to days (`justify_hours`).
pub(crate) fn justify_hours(a: &Interval) -> Result<Interval> {
    let mut days = a.days as i64 + a.micros / DAY_MICROS;
    let mut micros = a.micros % DAY_MICROS;
    if days > 0 && micros < 0 {
        micros += DAY_MICROS;
        days -= 1;
    } else if days < 0 && micros > 0 {
        micros -= DAY_MICROS;
        days += 1;
    }
    Ok(Interval { months: a.months, days: days.try_into().map_err(|_| interval_out_of_range())?, micros })
}

/// Moves 30 days to a month (`justify_days`).
pub(crate) fn justify_days(a: &Interval) -> Result<Interval> {
    let mut months = a.months as i64 + (a.days / 30) as i64;
    let mut days = a.days % 30;
    if months > 0 && days < 0 {
        days += 30;
        months -= 1;
    } else if months < 0 && days > 0 {
        days -= 30;
        months += 1;
    }
    Ok(Interval { months: months.try_into().map_err(|_| interval_out_of_range())?, days, micros: a.micros })
}

/// Both, with one sign throughout (`justify_interval`).
pub(crate) fn justify_interval(a: &Interval) -> Result<Interval> {
    let mut days = a.days as i64 + a.micros / DAY_MICROS;
    let mut micros = a.micros % DAY_MICROS;
    let mut months = a.months as i64 + days / 30;
    days %= 30;
    if months > 0 && (days < 0 || (days == 0 && micros < 0)) {
        days += 30;
        months -= 1;
    } else if months < 0 && (days > 0 || (days == 0 && micros > 0)) {
        days -= 30;
        months += 1;
    }
    if days > 0 && micros < 0 {
        micros += DAY_MICROS;
        days -= 1;
    } else if days < 0 && micros > 0 {
        micros -= DAY_MICROS;
        days += 1;
    }
    let months = months.try_into().map_err(|_| interval_out_of_range())?;
    Ok(Interval { months, days: days as i32, micros })
}

/// A local timestamp plus an interval: months first (to the last day of a shorter month), then days, then time.
pub(crate) fn add_to_timestamp(ts: i64, v: &Interval) -> Result<i64> {
    if is_infinite(ts) {
        return Ok(ts);
    }
    let ts = add_months_days(ts, v)?;
    ts.checked_add(v.micros).and_then(check_timestamp).ok_or_else(timestamp_out_of_range)
}

fn add_months_days(ts: i64, v: &Interval) -> Result<i64> {
    let mut c = Civil::from_timestamp(ts);
    let mut days = c.days();
    if v.months != 0 {
        let m = c.year * 12 + c.month - 1 + v.months as i64;
        c.year = m.div_euclid(12);
        c.month = m.rem_euclid(12) + 1;
        c.day = c.day.min(days_in_month(c.year, c.month));
        days = c.days();
    }
    (days + v.days as i64)
        .checked_mul(DAY_MICROS)
        .and_then(|d| d.checked_add(c.micros))
        .ok_or_else(timestamp_out_of_range)
}

/// A timestamptz plus an interval: months and days are of the zone's local time, time is absolute.
pub(crate) fn add_to_timestamptz(ts: i64, v: &Interval, zone: &TimeZone) -> Result<i64> {
    if is_infinite(ts) {
        return Ok(ts);
    }
    let moved = if v.months == 0 && v.days == 0 {
        ts
    } else {
        from_local(zone, add_months_days(to_local(zone, ts)?, v)?)?
    };
    moved.checked_add(v.micros).and_then(check_timestamp).ok_or_else(timestamp_out_of_range)
}

/// `age(a, b)`: years, months, days and time between two local timestamps.
pub(crate) fn age(a: i64, b: i64) -> Result<Interval> {
    if is_infinite(a) || is_infinite(b) {
        return Err(timestamp_out_of_range());
    }
    let sign = if a < b { -1 } else { 1 };
    let (late, early) = if a < b { (b, a) } else { (a, b) };
    let (l, e) = (Civil::from_timestamp(late), Civil::from_timestamp(early));
    let mut micros = l.micros - e.micros;
    let mut days = l.day - e.day;
    let mut months = (l.year - e.year) * 12 + l.month - e.month;
    if micros < 0 {
        micros += DAY_MICROS;
        days -= 1;
    }
    if days < 0 {
        // The month borrowed from is the earlier one's, whichever argument that is.
        days += days_in_month(e.year, e.month);
        months -= 1;
    }
    Ok(Interval { months: (sign * months) as i32, days: (sign * days) as i32, micros: sign * micros })
}
