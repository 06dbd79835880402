//! Dates and timestamps from text: ISO and its variants, the session's order of day, month and year for what is
//! ambiguous, month names, special words, offsets and zone names.
//!
//! Missing: Julian days, day of year, dates with a two-digit year in the middle.

use super::*;
use crate::settings::{DateOrder, Settings};

/// What a text says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parsed {
    /// An infinity of the sign.
    Infinity(bool),
    /// A moment in UTC: 'now'.
    Moment(i64),
    /// Local date and time, with the offset (seconds east) if the text had one.
    Local { days: i64, micros: i64, offset: Option<i32>, has_date: bool, has_time: bool },
}

enum Fail {
    Format,
    Overflow,
    MonthOverflow,
    Zone(String),
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

fn month_named(word: &str) -> Option<i64> {
    let i =
        MONTHS.iter().position(|m| word == *m || word == &m[..3] || (word == "sept" && *m == "september"))?;
    Some(i as i64 + 1)
}

fn is_day_name(word: &str) -> bool {
    word.len() >= 3 && DAYS.iter().any(|d| d.starts_with(word))
}

/// The abbreviations of PostgreSQL's default set that are in common use: hours east, in quarters.
pub(crate) fn abbreviation(word: &str) -> Option<i32> {
    let quarters = match word {
        "z" | "utc" | "gmt" | "zulu" | "uct" | "wet" => 0,
        "est" | "cdt" => -20,
        "edt" | "ast" => -16,
        "cst" | "mdt" => -24,
        "mst" | "pdt" => -28,
        "pst" | "akdt" => -32,
        "akst" => -36,
        "hst" => -40,
        "adt" => -12,
        "nst" => -14,
        "bst" | "cet" | "west" | "met" => 4,
        "cest" | "eet" | "mest" | "sast" | "ist" => 8,
        "eest" | "msk" => 12,
        "jst" | "kst" => 36,
        "aest" => 40,
        "aedt" => 44,
        "acst" => 38,
        "awst" => 32,
        "nzst" => 48,
        "nzdt" => 52,
        _ => return None,
    };
    Some(quarters * 900)
}

#[derive(Default)]
struct Fields {
    year: Option<i64>,
    month: Option<i64>,
    day: Option<i64>,
    days: Option<i64>,
    micros: Option<i64>,
    offset: Option<i32>,
    zone: Option<TimeZone>,
    bc: bool,
    pm: Option<bool>,
    /// plain numbers seen before the date was complete
    numbers: Vec<(i64, usize)>,
}

fn number(s: &str) -> Result<i64, Fail> {
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fail::Format);
    }
    s.parse().map_err(|_| Fail::Overflow)
}

/// The fraction of a second, in microseconds, rounded.
pub(crate) fn fraction_micros(digits: &str) -> Option<i64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if digits.is_empty() {
        return Some(0);
    }
    let v: f64 = format!("0.{digits}").parse().ok()?;
    Some((v * 1e6).round_ties_even() as i64)
}

/// `hh:mm[:ss[.ffffff]]` in microseconds.
fn clock(s: &str) -> Result<i64, Fail> {
    let mut parts = s.split(':');
    let h = number(parts.next().unwrap_or(""))?;
    let m = number(parts.next().ok_or(Fail::Format)?)?;
    let (sec, us) = match parts.next() {
        None => (0, 0),
        Some(sec) => {
            let (whole, frac) = sec.split_once('.').unwrap_or((sec, ""));
            (number(whole)?, fraction_micros(frac).ok_or(Fail::Format)?)
        }
    };
    if parts.next().is_some() {
        return Err(Fail::Format);
    }
    let micros = (h.min(1_000) * 3600 + m * 60 + sec) * SECOND_MICROS + us;
    if m > 59 || sec > 60 || micros > DAY_MICROS {
        return Err(Fail::Overflow);
    }
    Ok(micros)
}

/// `+hh`, `+hhmm`, `+hh:mm[:ss]`: seconds east.
fn offset(s: &str) -> Result<i32, Fail> {
    let (sign, rest) = if let Some(r) = s.strip_prefix('-') { (-1, r) } else { (1, &s[1..]) };
    let (h, m, sec) = if rest.contains(':') {
        let mut p = rest.split(':');
        let h = number(p.next().unwrap_or(""))?;
        let m = number(p.next().unwrap_or("0"))?;
        (h, m, p.next().map_or(Ok(0), number)?)
    } else {
        let n = number(rest)?;
        match rest.len() {
            1 | 2 => (n, 0, 0),
            3 | 4 => (n / 100, n % 100, 0),
            6 => (n / 10_000, n / 100 % 100, n % 100),
            _ => return Err(Fail::Format),
        }
    };
    if h > 15 || m > 59 || sec > 59 {
        return Err(Fail::Zone(String::new()));
    }
    Ok(sign * (h * 3600 + m * 60 + sec) as i32)
}

fn year_of(value: i64, digits: usize) -> i64 {
    match digits {
        1 | 2 if value < 70 => value + 2000,
        1 | 2 => value + 1900,
        _ => value,
    }
}

impl Fields {
    fn has_date(&self) -> bool {
        self.days.is_some() || (self.year.is_some() && self.month.is_some() && self.day.is_some())
    }

    fn set_ymd(&mut self, y: (i64, usize), m: i64, d: i64) -> Result<(), Fail> {
        if self.has_date() {
            return Err(Fail::Format);
        }
        self.year = Some(year_of(y.0, y.1));
        self.month = Some(m);
        self.day = Some(d);
        Ok(())
    }

    /// `a-b-c` with one separator
    fn date_token(&mut self, token: &str, order: DateOrder) -> Result<(), Fail> {
        let parts: Vec<&str> = token.split(['-', '/', '.']).collect();
        let [a, b, c] = parts[..] else { return Err(Fail::Format) };
        let num = |s: &str| Ok::<_, Fail>((number(s)?, s.len()));
        if let Some(m) = month_named(b) {
            let (x, y) = (num(a)?, num(c)?);
            return if x.1 > 2 { self.set_ymd(x, m, y.0) } else { self.set_ymd(y, m, x.0) };
        }
        if let Some(m) = month_named(a) {
            return self.set_ymd(num(c)?, m, num(b)?.0);
        }
        let (a, b, c) = (num(a)?, num(b)?, num(c)?);
        if a.1 > 2 {
            return self.set_ymd(a, b.0, c.0);
        }
        match order {
            DateOrder::Mdy => self.set_ymd(c, a.0, b.0),
            DateOrder::Dmy => self.set_ymd(c, b.0, a.0),
            DateOrder::Ymd => self.set_ymd(a, b.0, c.0),
        }
    }

    fn number_token(&mut self, token: &str, after_t: bool) -> Result<(), Fail> {
        let (whole, frac) = token.split_once('.').unwrap_or((token, ""));
        let v = number(whole)?;
        let compact_time =
            (after_t || self.has_date()) && matches!(whole.len(), 4 | 6) && self.micros.is_none();
        if compact_time {
            let (h, m, s) = match whole.len() {
                4 => (v / 100, v % 100, 0),
                _ => (v / 10_000, v / 100 % 100, v % 100),
            };
            if h > 24 || m > 59 || s > 60 {
                return Err(Fail::Overflow);
            }
            let us = fraction_micros(frac).ok_or(Fail::Format)?;
            self.micros = Some((h * 3600 + m * 60 + s) * SECOND_MICROS + us);
            return Ok(());
        }
        if !frac.is_empty() || token.contains('.') {
            return Err(Fail::Format);
        }
        match whole.len() {
            8 if !self.has_date() => self.set_ymd((v / 10_000, 4), v / 100 % 100, v % 100),
            6 if !self.has_date() => self.set_ymd((v / 10_000, 2), v / 100 % 100, v % 100),
            _ if !self.has_date() && self.numbers.len() < 2 => {
                self.numbers.push((v, whole.len()));
                Ok(())
            }
            _ => Err(Fail::Format),
        }
    }

    /// Gives the loose numbers around a month name their meaning.
    fn settle_numbers(&mut self) -> Result<(), Fail> {
        match self.numbers[..] {
            [] => Ok(()),
            [x, y] if self.month.is_some() && self.day.is_none() => {
                let (year, day) = if x.1 > 2 { (x, y) } else { (y, x) };
                self.year = Some(year_of(year.0, year.1));
                self.day = Some(day.0);
                Ok(())
            }
            _ => Err(Fail::Format),
        }
    }
}

fn scan(text: &str, settings: &Settings) -> Result<Parsed, Fail> {
    let lower = text.trim().to_ascii_lowercase();
    match lower.as_str() {
        "infinity" | "+infinity" => return Ok(Parsed::Infinity(true)),
        "-infinity" => return Ok(Parsed::Infinity(false)),
        "now" => return Ok(Parsed::Moment(settings.transaction_time)),
        "epoch" => return Ok(Parsed::Moment(-EPOCH_SECONDS * SECOND_MICROS)),
        "" => return Err(Fail::Format),
        _ => {}
    }
    let mut f = Fields::default();
    let b = lower.as_bytes();
    let mut i = 0;
    let mut after_t = false;
    let end = |mut j: usize, ok: &dyn Fn(u8) -> bool| {
        while j < b.len() && ok(b[j]) {
            j += 1;
        }
        j
    };
    while i < b.len() {
        match b[i] {
            c if c.is_ascii_whitespace() || c == b',' => i += 1,
            b'0'..=b'9' => {
                let digits = end(i, &|c| c.is_ascii_digit());
                let next = b.get(digits).copied();
                let j = match next {
                    Some(b':') => {
                        let j = end(digits, &|c| c.is_ascii_digit() || c == b':' || c == b'.');
                        if f.micros.is_some() {
                            return Err(Fail::Format);
                        }
                        f.micros = Some(clock(&lower[i..j])?);
                        j
                    }
                    Some(sep @ (b'-' | b'/' | b'.'))
                        if !(f.has_date() || after_t && sep == b'.')
                            && b.get(digits + 1).is_some_and(u8::is_ascii_alphanumeric) =>
                    {
                        // Three fields, each all digits or all letters.
                        let mut j = digits;
                        for _ in 0..2 {
                            if b.get(j) == Some(&sep) {
                                let start = j + 1;
                                j = match b.get(start) {
                                    Some(c) if c.is_ascii_digit() => end(start, &|c| c.is_ascii_digit()),
                                    _ => end(start, &|c| c.is_ascii_alphabetic()),
                                };
                            }
                        }
                        f.date_token(&lower[i..j], settings.date_order)?;
                        j
                    }
                    _ => {
                        let j = end(i, &|c| c.is_ascii_digit() || c == b'.');
                        f.number_token(&lower[i..j], after_t)?;
                        j
                    }
                };
                after_t = false;
                i = j;
            }
            b'+' | b'-' => {
                let j = end(i + 1, &|c| c.is_ascii_digit() || c == b':');
                if f.offset.is_some() || (f.micros.is_none() && !f.has_date()) {
                    return Err(Fail::Format);
                }
                f.offset = Some(offset(&lower[i..j])?);
                i = j;
            }
            c if c.is_ascii_alphabetic() => {
                let mut j = end(i, &|c| c.is_ascii_alphabetic());
                if j < b.len() && matches!(b[j], b'/' | b'_') {
                    j = end(j, &|c| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'_' | b'+' | b'-'));
                }
                // Jan-08-1999
                if j > i && b.get(j) == Some(&b'-') && month_named(&lower[i..j]).is_some() {
                    let end = end(j, &|c| c.is_ascii_digit() || c == b'-');
                    f.date_token(&lower[i..end], settings.date_order)?;
                    i = end;
                    continue;
                }
                let word = &lower[i..j];
                let today = || -> Result<i64, Fail> {
                    let local = to_local(&settings.time_zone, settings.transaction_time)
                        .map_err(|_| Fail::Overflow)?;
                    Ok(local.div_euclid(DAY_MICROS))
                };
                match word {
                    "t" if b.get(j).is_some_and(u8::is_ascii_digit) => after_t = true,
                    "today" => f.days = Some(today()?),
                    "tomorrow" => f.days = Some(today()? + 1),
                    "yesterday" => f.days = Some(today()? - 1),
                    "allballs" => f.micros = Some(0),
                    "bc" => f.bc = true,
                    "ad" | "at" | "on" | "dst" => {}
                    "am" => f.pm = Some(false),
                    "pm" => f.pm = Some(true),
                    _ => {
                        if let Some(m) = month_named(word) {
                            if f.month.is_some() || f.has_date() {
                                return Err(Fail::Format);
                            }
                            f.month = Some(m);
                        } else if let Some(o) = abbreviation(word) {
                            if f.offset.is_none() {
                                f.offset = Some(o);
                            }
                        } else if is_day_name(word) {
                            // says nothing that the date does not
                        } else if f.offset.is_none()
                            && f.zone.is_none()
                            && (f.has_date() || f.micros.is_some())
                        {
                            // The name in its own spelling: zone lookup ignores case.
                            f.zone = Some(TimeZone::named(word).ok_or_else(|| Fail::Zone(word.to_owned()))?);
                        } else {
                            return Err(Fail::Format);
                        }
                    }
                }
                i = j;
            }
            _ => return Err(Fail::Format),
        }
    }
    f.settle_numbers()?;
    let has_date = f.has_date();
    if !has_date && (f.month.is_some() || f.year.is_some() || f.bc) {
        return Err(Fail::Format);
    }
    let days = match (f.days, f.year, f.month, f.day) {
        (Some(d), ..) => d,
        (None, Some(y), Some(m), Some(d)) => {
            if f.bc && y < 1 || !f.bc && y == 0 {
                return Err(Fail::Overflow);
            }
            let year = if f.bc { 1 - y } else { y };
            if !(1..=12).contains(&m) {
                return Err(Fail::MonthOverflow);
            }
            if !(1..=31).contains(&d) {
                return Err(Fail::MonthOverflow);
            }
            if d > days_in_month(year, m) || y > 5_874_897 {
                return Err(Fail::Overflow);
            }
            days_from_civil(year, m, d)
        }
        _ => 0,
    };
    let has_time = f.micros.is_some();
    let mut micros = f.micros.unwrap_or(0);
    if let Some(pm) = f.pm {
        let hour = micros / 3_600_000_000;
        if !has_time || hour > 12 {
            return Err(Fail::Overflow);
        }
        match (pm, hour) {
            (true, h) if h < 12 => micros += 12 * 3_600_000_000,
            (false, 12) => micros -= 12 * 3_600_000_000,
            _ => {}
        }
    }
    let offset = match (f.offset, f.zone) {
        (Some(o), _) => Some(o),
        (None, Some(z)) => {
            let local =
                days.checked_mul(DAY_MICROS).and_then(|d| d.checked_add(micros)).ok_or(Fail::Overflow)?;
            Some(offset_at_local(&z, local))
        }
        _ => None,
    };
    Ok(Parsed::Local { days, micros, offset, has_date, has_time })
}

fn read(type_name: &str, text: &str, settings: &Settings) -> Result<Parsed> {
    scan(text, settings).map_err(|f| match f {
        Fail::Format => Error::new(
            SqlState::INVALID_DATETIME_FORMAT,
            format!("invalid input syntax for type {type_name}: \"{text}\""),
        ),
        Fail::Overflow => overflow(text),
        Fail::MonthOverflow => {
            overflow(text).with_hint("Perhaps you need a different \"datestyle\" setting.")
        }
        Fail::Zone(z) if z.is_empty() => Error::new(
            SqlState::INVALID_TIME_ZONE_DISPLACEMENT_VALUE,
            format!("time zone displacement out of range: \"{text}\""),
        ),
        Fail::Zone(z) => Error::invalid_parameter(format!("time zone \"{z}\" not recognized")),
    })
}

#[cold]
fn overflow(text: &str) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
}

#[cold]
fn out_of_range(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("{type_name} out of range: \"{text}\""))
}

#[cold]
fn bad_format(type_name: &str, text: &str) -> Error {
    Error::new(
        SqlState::INVALID_DATETIME_FORMAT,
        format!("invalid input syntax for type {type_name}: \"{text}\""),
    )
}

/// Reads a date.
pub(crate) fn parse_date(text: &str, settings: &Settings) -> Result<i32> {
    match read("date", text, settings)? {
        Parsed::Infinity(true) => Ok(DATE_INFINITY),
        Parsed::Infinity(false) => Ok(DATE_NEG_INFINITY),
        Parsed::Moment(t) => Ok(timestamp_to_date(to_local(&settings.time_zone, t)?)),
        Parsed::Local { has_date: false, .. } => Err(bad_format("date", text)),
        Parsed::Local { days, .. } => i32::try_from(days)
            .ok()
            .filter(|d| (DATE_MIN..=DATE_MAX).contains(d))
            .ok_or_else(|| out_of_range("date", text)),
    }
}

fn stamp(days: i64, micros: i64) -> Option<i64> {
    days.checked_mul(DAY_MICROS)?.checked_add(micros).and_then(check_timestamp)
}

/// Reads a timestamp without time zone; an offset in the text is ignored, as PostgreSQL does.
pub(crate) fn parse_timestamp(text: &str, settings: &Settings) -> Result<i64> {
    match read("timestamp", text, settings)? {
        Parsed::Infinity(true) => Ok(TIMESTAMP_INFINITY),
        Parsed::Infinity(false) => Ok(TIMESTAMP_NEG_INFINITY),
        Parsed::Moment(t) if text.trim().eq_ignore_ascii_case("epoch") => Ok(t),
        Parsed::Moment(t) => to_local(&settings.time_zone, t),
        Parsed::Local { has_date: false, .. } => Err(bad_format("timestamp", text)),
        Parsed::Local { days, micros, .. } => {
            stamp(days, micros).ok_or_else(|| out_of_range("timestamp", text))
        }
    }
}

/// Reads a timestamp with time zone.
pub(crate) fn parse_timestamptz(text: &str, settings: &Settings) -> Result<i64> {
    let name = "timestamp with time zone";
    match read(name, text, settings)? {
        Parsed::Infinity(true) => Ok(TIMESTAMP_INFINITY),
        Parsed::Infinity(false) => Ok(TIMESTAMP_NEG_INFINITY),
        Parsed::Moment(t) => Ok(t),
        Parsed::Local { has_date: false, .. } => Err(bad_format(name, text)),
        Parsed::Local { days, micros, offset, .. } => {
            let fail = || out_of_range("timestamp", text);
            let local = days.checked_mul(DAY_MICROS).and_then(|d| d.checked_add(micros)).ok_or_else(fail)?;
            let east = offset.unwrap_or_else(|| offset_at_local(&settings.time_zone, local));
            local.checked_sub(east as i64 * SECOND_MICROS).and_then(check_timestamp).ok_or_else(fail)
        }
    }
}

/// Reads a time of day.
pub(crate) fn parse_time(text: &str, settings: &Settings) -> Result<i64> {
    match read("time", text, settings)? {
        Parsed::Moment(t) => Ok(to_local(&settings.time_zone, t)?.rem_euclid(DAY_MICROS)),
        Parsed::Local { micros, has_time: true, .. } => Ok(micros),
        _ => Err(bad_format("time", text)),
    }
}
