//! Dates, times and intervals as text, ISO style.

use super::*;
use crate::datum::Interval;
use crate::settings::{IntervalStyle, Settings};

/// Appends a number with at least `width` digits.
pub(crate) fn put_padded(v: i64, width: usize, out: &mut Vec<u8>) {
    let mut buf = [b'0'; 20];
    let mut at = buf.len();
    let mut v = v.unsigned_abs();
    while v > 0 {
        at -= 1;
        buf[at] = b'0' + (v % 10) as u8;
        v /= 10;
    }
    out.extend_from_slice(&buf[at.min(buf.len() - width)..]);
}

fn put_civil_date(c: &Civil, out: &mut Vec<u8>) {
    put_padded(if c.year > 0 { c.year } else { 1 - c.year }, 4, out);
    out.push(b'-');
    put_padded(c.month, 2, out);
    out.push(b'-');
    put_padded(c.day, 2, out);
}

fn put_seconds(micros: i64, out: &mut Vec<u8>) {
    put_padded(micros / SECOND_MICROS, 2, out);
    let fraction = micros % SECOND_MICROS;
    if fraction != 0 {
        out.push(b'.');
        put_padded(fraction, 6, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// Appends a time of day.
pub(crate) fn write_time(micros: i64, out: &mut Vec<u8>) {
    put_padded(micros / 3_600_000_000, 2, out);
    out.push(b':');
    put_padded(micros / 60_000_000 % 60, 2, out);
    out.push(b':');
    put_seconds(micros % 60_000_000, out);
}

/// Appends a date.
pub(crate) fn write_date(date: i32, out: &mut Vec<u8>) {
    match date {
        DATE_INFINITY => out.extend_from_slice(b"infinity"),
        DATE_NEG_INFINITY => out.extend_from_slice(b"-infinity"),
        d => {
            let (year, month, day) = civil_from_days(d as i64);
            put_civil_date(&Civil { year, month, day, micros: 0 }, out);
            if year <= 0 {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

/// Appends a UTC offset: `+02`, `-03:30`.
pub(crate) fn write_offset(seconds: i32, out: &mut Vec<u8>) {
    out.push(if seconds < 0 { b'-' } else { b'+' });
    let s = seconds.unsigned_abs() as i64;
    put_padded(s / 3600, 2, out);
    if s % 3600 != 0 {
        out.push(b':');
        put_padded(s / 60 % 60, 2, out);
        if s % 60 != 0 {
            out.push(b':');
            put_padded(s % 60, 2, out);
        }
    }
}

fn write_stamp(local: i64, offset: Option<i32>, out: &mut Vec<u8>) {
    let c = Civil::from_timestamp(local);
    put_civil_date(&c, out);
    out.push(b' ');
    write_time(c.micros, out);
    if let Some(o) = offset {
        write_offset(o, out);
    }
    if c.year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

fn write_infinity(ts: i64, out: &mut Vec<u8>) -> bool {
    match ts {
        TIMESTAMP_INFINITY => out.extend_from_slice(b"infinity"),
        TIMESTAMP_NEG_INFINITY => out.extend_from_slice(b"-infinity"),
        _ => return false,
    }
    true
}

/// Appends a timestamp without time zone.
pub(crate) fn write_timestamp(ts: i64, out: &mut Vec<u8>) {
    if !write_infinity(ts, out) {
        write_stamp(ts, None, out);
    }
}

/// Appends a timestamp with time zone, in the session's zone.
pub(crate) fn write_timestamptz(ts: i64, zone: &TimeZone, out: &mut Vec<u8>) {
    if !write_infinity(ts, out) {
        let offset = offset_at(zone, ts);
        write_stamp(ts.saturating_add(offset as i64 * SECOND_MICROS), Some(offset), out);
    }
}

/// Appends an interval.
pub(crate) fn write_interval(v: &Interval, settings: &Settings, out: &mut Vec<u8>) {
    let text = match settings.interval_style {
        IntervalStyle::Postgres => postgres(v),
        IntervalStyle::Iso8601 => iso_8601(v),
    };
    out.extend_from_slice(text.as_bytes());
}

fn clock_parts(micros: i64) -> (u64, u64, u64, u64) {
    let us = micros.unsigned_abs();
    (us / 3_600_000_000, us / 60_000_000 % 60, us / 1_000_000 % 60, us % 1_000_000)
}

fn fraction(us: u64) -> String {
    if us == 0 { String::new() } else { format!(".{us:06}").trim_end_matches('0').to_owned() }
}

fn postgres(v: &Interval) -> String {
    let mut s = String::new();
    let mut before = false;
    for (n, unit) in [(v.months / 12, "year"), (v.months % 12, "mon"), (v.days, "day")] {
        if n != 0 {
            let space = if s.is_empty() { "" } else { " " };
            let plus = if before && n > 0 { "+" } else { "" };
            let plural = if n == 1 { "" } else { "s" };
            s += &format!("{space}{plus}{n} {unit}{plural}");
            before = n < 0;
        }
    }
    if s.is_empty() || v.micros != 0 {
        let space = if s.is_empty() { "" } else { " " };
        let sign = if v.micros < 0 {
            "-"
        } else if before {
            "+"
        } else {
            ""
        };
        let (h, m, sec, us) = clock_parts(v.micros);
        s += &format!("{space}{sign}{h:02}:{m:02}:{sec:02}{}", fraction(us));
    }
    s
}

fn iso_8601(v: &Interval) -> String {
    if v.months == 0 && v.days == 0 && v.micros == 0 {
        return "PT0S".to_owned();
    }
    let mut s = "P".to_owned();
    for (n, unit) in [(v.months / 12, 'Y'), (v.months % 12, 'M'), (v.days, 'D')] {
        if n != 0 {
            s += &format!("{n}{unit}");
        }
    }
    if v.micros != 0 {
        s.push('T');
        let sign = if v.micros < 0 { "-" } else { "" };
        let (h, m, sec, us) = clock_parts(v.micros);
        for (n, unit) in [(h, 'H'), (m, 'M')] {
            if n != 0 {
                s += &format!("{sign}{n}{unit}");
            }
        }
        if sec != 0 || us != 0 {
            s += &format!("{sign}{sec}{}S", fraction(us));
        }
    }
    s
}
