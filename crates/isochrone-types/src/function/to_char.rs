//! `to_char` for timestamps, intervals' clock parts are not; and for numbers. Patterns that are not known here answer
//! 0A000, never text that merely looks right.

use super::args::*;
use super::dates::civil;
use super::registry::*;
use crate::datetime::{self, day_of_week, days_from_civil, fields::iso_week, is_infinite};
use crate::settings::TimeZone;
use crate::{Datum, Error, EvalContext, Numeric, Result};

type Ctx<'a> = EvalContext<'a>;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Longest first where one is a prefix of another.
const PATTERNS: &[&str] = &[
    "HH24", "HH12", "HH", "MI", "SSSSS", "SSSS", "SS", "MS", "US", "FF1", "FF2", "FF3", "FF4", "FF5", "FF6",
    "A.M.", "P.M.", "AM", "PM", "a.m.", "p.m.", "am", "pm", "Y,YYY", "YYYY", "YYY", "YY", "Y", "IYYY", "IYY",
    "IY", "IW", "IDDD", "ID", "MONTH", "Month", "month", "MON", "Mon", "mon", "MM", "DAY", "Day", "day",
    "DDD", "DD", "DY", "Dy", "dy", "D", "WW", "W", "Q", "J", "CC", "TZH", "TZM", "TZ", "tz", "OF", "BC",
    "AD", "bc", "ad",
];

fn ordinal(n: i64, upper: bool) -> &'static str {
    let s = match (n % 100, n % 10) {
        (11..=13, _) => ["TH", "th"],
        (_, 1) => ["ST", "st"],
        (_, 2) => ["ND", "nd"],
        (_, 3) => ["RD", "rd"],
        _ => ["TH", "th"],
    };
    s[usize::from(!upper)]
}

fn in_case(name: &str, pattern: &str, width: usize, fill: bool) -> String {
    let s = if pattern.chars().all(|c| c.is_ascii_uppercase()) {
        name.to_uppercase()
    } else if pattern.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.to_lowercase()
    } else {
        name.to_owned()
    };
    if fill { format!("{s:<width$}") } else { s }
}

fn format_stamp(local: i64, zone: Option<(&TimeZone, i32)>, pattern: &str) -> Result<String> {
    let c = civil(local);
    let days = c.days();
    let (h, m, micros) = c.clock();
    let (s, us) = (micros / 1_000_000, micros % 1_000_000);
    let year = if c.year > 0 { c.year } else { 1 - c.year };
    let h12 = if h % 12 == 0 { 12 } else { h % 12 };
    let mut out = String::new();
    let mut rest = pattern;
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('"') {
            let end = r.find('"').unwrap_or(r.len());
            out.push_str(&r[..end]);
            rest = r.get(end + 1..).unwrap_or("");
            continue;
        }
        let (fill, after) = match rest.strip_prefix("FM").or(rest.strip_prefix("fm")) {
            Some(r) => (false, r),
            None => (true, rest),
        };
        // Names say their case; other patterns are the same in lower case.
        let found = PATTERNS.iter().find(|p| after.starts_with(**p)).or_else(|| {
            PATTERNS.iter().find(|p| {
                after.get(..p.len()).is_some_and(|a| a.eq_ignore_ascii_case(p))
                    && !p.contains(|c: char| c.is_ascii_lowercase())
            })
        });
        let Some(p) = found else {
            let ch = rest.chars().next().unwrap_or(' ');
            if ch.is_ascii_alphabetic()
                && rest.len() > 1
                && ["RM", "rm", "TM", "SP"].iter().any(|x| rest.starts_with(x))
            {
                return Err(Error::unsupported(format!("to_char pattern \"{}\"", &rest[..2])));
            }
            let ch = if ch == '\\' && rest.len() > 1 { rest[1..].chars().next().unwrap_or(ch) } else { ch };
            out.push(ch);
            let skip = if rest.starts_with('\\') && rest.len() > 1 { 1 } else { 0 };
            rest = &rest[skip + ch.len_utf8()..];
            continue;
        };
        rest = &after[p.len()..];
        let number = |n: i64, width: usize| -> (String, i64) {
            (if fill { format!("{n:0width$}") } else { n.to_string() }, n)
        };
        let (text, ordinal_of) = match *p {
            "HH24" => number(h, 2),
            "HH12" | "HH" => number(h12, 2),
            "MI" => number(m, 2),
            "SS" => number(s, 2),
            "SSSS" | "SSSSS" => number(h * 3600 + m * 60 + s, 1),
            "MS" => number(us / 1000, 3),
            "US" => number(us, 6),
            "FF1" => number(us / 100_000, 1),
            "FF2" => number(us / 10_000, 2),
            "FF3" => number(us / 1_000, 3),
            "FF4" => number(us / 100, 4),
            "FF5" => number(us / 10, 5),
            "FF6" => number(us, 6),
            "AM" | "PM" => (if h < 12 { "AM" } else { "PM" }.to_owned(), 0),
            "am" | "pm" => (if h < 12 { "am" } else { "pm" }.to_owned(), 0),
            "A.M." | "P.M." => (if h < 12 { "A.M." } else { "P.M." }.to_owned(), 0),
            "a.m." | "p.m." => (if h < 12 { "a.m." } else { "p.m." }.to_owned(), 0),
            "BC" | "AD" => (if c.year > 0 { "AD" } else { "BC" }.to_owned(), 0),
            "bc" | "ad" => (if c.year > 0 { "ad" } else { "bc" }.to_owned(), 0),
            "Y,YYY" => (format!("{},{:03}", year / 1000, year % 1000), year),
            "YYYY" => number(year, 4),
            "YYY" => number(year % 1000, 3),
            "YY" => number(year % 100, 2),
            "Y" => number(year % 10, 1),
            "IYYY" => number(iso_week(days).0, 4),
            "IYY" => number(iso_week(days).0 % 1000, 3),
            "IY" => number(iso_week(days).0 % 100, 2),
            "IW" => number(iso_week(days).1, 2),
            "MM" => number(c.month, 2),
            "MONTH" | "Month" | "month" => (in_case(MONTHS[c.month as usize - 1], p, 9, fill), 0),
            "MON" | "Mon" | "mon" => (in_case(&MONTHS[c.month as usize - 1][..3], p, 0, false), 0),
            "DAY" | "Day" | "day" => (in_case(DAYS[day_of_week(days) as usize], p, 9, fill), 0),
            "DY" | "Dy" | "dy" => (in_case(&DAYS[day_of_week(days) as usize][..3], p, 0, false), 0),
            "DDD" => number(days - days_from_civil(c.year, 1, 1) + 1, 3),
            "DD" => number(c.day, 2),
            "D" => number(day_of_week(days) + 1, 1),
            "ID" => number((day_of_week(days) + 6) % 7 + 1, 1),
            "WW" => number((days - days_from_civil(c.year, 1, 1)) / 7 + 1, 2),
            "W" => number((c.day - 1) / 7 + 1, 1),
            "Q" => number((c.month - 1) / 3 + 1, 1),
            "J" => number(days + 2_451_545, 1),
            "CC" => number((year + 99) / 100, 2),
            "TZ" | "tz" | "TZH" | "TZM" | "OF" => {
                let (zone, east) = match zone {
                    Some(z) => z,
                    None if p.starts_with("TZH") || *p == "OF" || *p == "TZM" => {
                        return Err(Error::unsupported(format!(
                            "to_char pattern \"{p}\" without a time zone"
                        )));
                    }
                    None => continue,
                };
                let text = match *p {
                    "TZH" => format!("{}{:02}", if east < 0 { '-' } else { '+' }, east.abs() / 3600),
                    "TZM" => format!("{:02}", east.abs() / 60 % 60),
                    "OF" => {
                        let mut b = Vec::new();
                        datetime::format::write_offset(east, &mut b);
                        String::from_utf8_lossy(&b).into_owned()
                    }
                    _ if zone.name() == "UTC" => in_case("UTC", p, 0, false),
                    _ => return Err(Error::unsupported("to_char pattern \"TZ\" in a zone other than UTC")),
                };
                (text, 0)
            }
            other => return Err(Error::unsupported(format!("to_char pattern \"{other}\""))),
        };
        out.push_str(&text);
        if ordinal_of != 0
            && let Some(r) = rest.strip_prefix("TH").or(rest.strip_prefix("th"))
        {
            out.push_str(ordinal(ordinal_of, rest.starts_with("TH")));
            rest = r;
        }
    }
    Ok(out)
}

fn stamp_to_char(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let t = timestamp(&a[0])?;
    if is_infinite(t) {
        return Ok(Datum::Null);
    }
    Ok(format_stamp(t, None, text(&a[1])?)?.into())
}

fn zoned_to_char(a: &[Datum], c: &Ctx<'_>) -> Result<Datum> {
    let t = timestamptz(&a[0])?;
    if is_infinite(t) {
        return Ok(Datum::Null);
    }
    let zone = &c.settings.time_zone;
    let east = datetime::offset_at(zone, t);
    Ok(format_stamp(datetime::to_local(zone, t)?, Some((zone, east)), text(&a[1])?)?.into())
}

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Nine,
    Zero,
    Comma,
    Point,
    Literal(char),
    Sign,
    Minus,
}

/// A number by a pattern of `9 0 . , D G S MI FM` and literal text.
fn format_number(n: &Numeric, pattern: &str) -> Result<String> {
    let mut pieces = Vec::new();
    let mut fill = true;
    let mut rest = pattern;
    while let Some(ch) = rest.chars().next() {
        let upper = rest.get(..2).map(str::to_ascii_uppercase).unwrap_or_default();
        let mut used = ch.len_utf8();
        match ch {
            _ if upper == "FM" => {
                fill = false;
                used = 2;
            }
            _ if upper == "MI" => {
                pieces.push(Piece::Minus);
                used = 2;
            }
            '9' => pieces.push(Piece::Nine),
            '0' => pieces.push(Piece::Zero),
            ',' | 'G' | 'g' => pieces.push(Piece::Comma),
            '.' | 'D' | 'd' => {
                if pieces.contains(&Piece::Point) {
                    return Err(Error::syntax("multiple decimal points"));
                }
                pieces.push(Piece::Point);
            }
            'S' | 's' => pieces.push(Piece::Sign),
            '"' => {
                let end = rest[1..].find('"').map_or(rest.len(), |i| i + 1);
                pieces.extend(rest[1..end].chars().map(Piece::Literal));
                used = (end + 1).min(rest.len());
            }
            c if c.is_ascii_alphabetic() => {
                return Err(Error::unsupported(format!("to_char pattern \"{c}\" for numbers")));
            }
            c => pieces.push(Piece::Literal(c)),
        }
        rest = &rest[used..];
    }
    let point = pieces.iter().position(|p| *p == Piece::Point).unwrap_or(pieces.len());
    let is_digit = |p: &Piece| matches!(p, Piece::Nine | Piece::Zero);
    let whole_places = pieces[..point].iter().filter(|p| is_digit(p)).count();
    let places = pieces[point..].iter().filter(|p| is_digit(p)).count();
    if !n.is_finite() {
        return Err(Error::unsupported("to_char of a number that is not finite"));
    }
    let rounded = n.round(places as i32);
    let negative = rounded.signum() < 0;
    let digits = rounded.abs().to_string();
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    // With places after the point, a zero in front of it is only printed where a 0 asks for it.
    let whole = if whole == "0" && places > 0 && whole_places > 0 { "" } else { whole };
    let overflow = whole.len() > whole_places;
    let own_sign = pieces.iter().any(|p| matches!(p, Piece::Sign | Piece::Minus));
    let lead_sign = pieces.first() == Some(&Piece::Sign);
    // The first place that prints a digit: where the number begins, or a 0 in the pattern.
    let first_zero = pieces[..point]
        .iter()
        .filter(|p| is_digit(p))
        .position(|p| *p == Piece::Zero)
        .unwrap_or(whole_places);
    let starts = (whole_places - whole.len().min(whole_places)).min(first_zero);
    let keep_fraction = if fill {
        places
    } else {
        // FM drops zeros at the end, but for those that a 0 asks for.
        let asked = pieces[point..].iter().filter(|p| is_digit(p)).collect::<Vec<_>>();
        let last_zero = asked.iter().rposition(|p| **p == Piece::Zero).map_or(0, |i| i + 1);
        fraction.trim_end_matches('0').len().max(last_zero)
    };
    let mut out = String::new();
    let (mut place, mut fraction_place, mut signed) = (0, 0, own_sign && !lead_sign);
    let sign = |out: &mut String, signed: &mut bool| {
        if !*signed {
            *signed = true;
            if negative {
                out.push('-');
            } else if lead_sign {
                out.push('+');
            } else if fill {
                out.push(' ');
            }
        }
    };
    for (i, p) in pieces.iter().enumerate() {
        match p {
            Piece::Nine | Piece::Zero if i < point => {
                if overflow {
                    sign(&mut out, &mut signed);
                    out.push('#');
                } else if place >= starts {
                    sign(&mut out, &mut signed);
                    let at = place + whole.len();
                    let digit = if at >= whole_places { whole.as_bytes()[at - whole_places] } else { b'0' };
                    out.push(digit as char);
                } else if fill {
                    out.push(' ');
                }
                place += 1;
            }
            Piece::Nine | Piece::Zero => {
                if overflow {
                    out.push('#');
                } else if fraction_place < keep_fraction {
                    out.push(fraction.as_bytes().get(fraction_place).map_or('0', |b| *b as char));
                }
                fraction_place += 1;
            }
            Piece::Comma => {
                if place > starts || overflow {
                    out.push(',');
                } else if fill {
                    out.push(' ');
                }
            }
            Piece::Point => {
                sign(&mut out, &mut signed);
                out.push('.');
            }
            Piece::Literal(c) => out.push(*c),
            Piece::Sign if i == 0 => {}
            Piece::Sign => out.push(if negative { '-' } else { '+' }),
            Piece::Minus => {
                if negative {
                    out.push('-');
                } else if fill {
                    out.push(' ');
                }
            }
        }
    }
    Ok(out)
}

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("to_char", &[TS, TEXT], TEXT, stamp_to_char).stable(),
    sig("to_char", &[TZ, TEXT], TEXT, zoned_to_char).stable(),
    sig("to_char", &[I4, TEXT], TEXT, |a, _| {
        Ok(format_number(&(int4(&a[0])? as i64).into(), text(&a[1])?)?.into())
    })
    .stable(),
    sig("to_char", &[I8, TEXT], TEXT, |a, _| Ok(format_number(&int8(&a[0])?.into(), text(&a[1])?)?.into()))
        .stable(),
    sig("to_char", &[NUM, TEXT], TEXT, |a, _| Ok(format_number(numeric(&a[0])?, text(&a[1])?)?.into()))
        .stable(),
    sig("to_char", &[F8, TEXT], TEXT, |a, _| {
        Ok(format_number(&Numeric::from_f64(float8(&a[0])?), text(&a[1])?)?.into())
    })
    .stable(),
];
