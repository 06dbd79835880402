//! The text form of values, as PostgreSQL's input and output functions read and write it.
//!
//! Output is exact: floats print their shortest form that reads back the same, numerics all their digits.
//! Dates print in ISO style only. Reading accepts what PostgreSQL accepts but for what the modules of
//! [`crate::datetime`] list; names of tables (`regclass`) are the catalog's business: here only numbers are read.

use crate::cast;
use crate::datetime::{format, interval, parse};
use crate::error::{Error, Result, SqlState};
use crate::settings::{ByteaOutput, Settings};
use crate::{Array, CastContext, Datum, Numeric, Type};

/// Longest `name`, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Reads a value from text. 22P02 and its kin when the text is no value of the type. A modifier is applied as on
/// assignment (too long a varchar is 22001, unless only blanks are too many).
pub fn parse_text(ty: &Type, text: &str, settings: &Settings) -> Result<Datum> {
    Ok(match *ty {
        Type::Int4 => Datum::Int4(parse_int(text, "integer", i32::MIN as i64, i32::MAX as i64)? as i32),
        Type::Int8 => Datum::Int8(parse_int(text, "bigint", i64::MIN, i64::MAX)?),
        Type::Int2 => Datum::Int2(parse_int(text, "smallint", i16::MIN as i64, i16::MAX as i64)? as i16),
        Type::Text | Type::Unknown => Datum::Text(checked_text(text)?.into()),
        Type::Bool => Datum::Bool(parse_bool(text)?),
        Type::Float4 => Datum::Float4(parse_float(text, "real")?),
        Type::Float8 => Datum::Float8(parse_float(text, "double precision")?),
        Type::Numeric(m) => {
            let n = Numeric::parse(text)?;
            Datum::Numeric(match m {
                Some((p, s)) => n.apply_typmod(p, s)?,
                None => n,
            })
        }
        Type::Varchar(_) | Type::Char(_) => {
            cast::fit_string(checked_text(text)?, ty, CastContext::Assignment)?
        }
        Type::Name => Datum::text(cast::truncate_name(checked_text(text)?)),
        Type::InternalChar => Datum::text(first_char(checked_text(text)?)),
        Type::Bytea => Datum::Bytes(parse_bytea(text)?.into()),
        Type::Date => Datum::Date(parse::parse_date(text, settings)?),
        Type::Time => Datum::Time(parse::parse_time(text, settings)?),
        Type::Timestamp => Datum::Timestamp(parse::parse_timestamp(text, settings)?),
        Type::Timestamptz => Datum::Timestamptz(parse::parse_timestamptz(text, settings)?),
        Type::Interval => Datum::Interval(interval::parse_interval(text)?),
        Type::Uuid => Datum::Uuid(parse_uuid(text)?),
        Type::Oid => Datum::Oid(parse_oid(text, "oid")?),
        Type::Regtype => match text.trim().as_bytes().first() {
            Some(b'0'..=b'9') => Datum::Oid(parse_oid(text, "regtype")?),
            Some(b'-') if text.trim() == "-" => Datum::Oid(0),
            _ => Datum::Oid(parse_regtype(text)?),
        },
        Type::Regclass | Type::Regproc => match text.trim() {
            "-" => Datum::Oid(0),
            t if t.bytes().all(|b| b.is_ascii_digit()) && !t.is_empty() => {
                Datum::Oid(parse_oid(t, ty.name())?)
            }
            _ => return Err(Error::unsupported(format!("a name as {} here", ty.name()))),
        },
        Type::Void => Datum::Null,
        Type::Array(element) => parse_array(element, text, settings)?,
    })
}

/// The first character, or nothing.
pub(crate) fn first_char(s: &str) -> &str {
    match s.char_indices().nth(1) {
        Some((i, _)) => &s[..i],
        None => s,
    }
}

fn parse_regtype(text: &str) -> Result<u32> {
    let lower = text.trim().to_ascii_lowercase();
    let name = match lower.split_once('(') {
        Some((head, _)) => head.trim_end().to_owned(),
        None => lower,
    };
    Type::from_sql_name(&name).map(Type::oid).ok_or_else(|| {
        Error::new(SqlState::UNDEFINED_OBJECT, format!("type \"{}\" does not exist", text.trim()))
    })
}

/// A text cannot hold the character zero.
pub(crate) fn checked_text(text: &str) -> Result<&str> {
    if text.as_bytes().contains(&0) {
        return Err(Error::new(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\": 0x00",
        ));
    }
    Ok(text)
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn parse_int(text: &str, name: &str, min: i64, max: i64) -> Result<i64> {
    let t = text.trim_matches(is_space);
    let (negative, digits) = match t.as_bytes().first() {
        Some(b'-') => (true, &t[1..]),
        Some(b'+') => (false, &t[1..]),
        _ => (false, t),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::invalid_input(name, text));
    }
    let mut v = 0i128;
    for d in digits.bytes() {
        v = v * 10 + (d - b'0') as i128;
        if v > 1 << 64 {
            break;
        }
    }
    let v = if negative { -v } else { v };
    if v < min as i128 || v > max as i128 {
        return Err(Error::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("value \"{text}\" is out of range for type {name}"),
        ));
    }
    Ok(v as i64)
}

fn parse_oid(text: &str, name: &str) -> Result<u32> {
    // Like strtoul: negative numbers wrap.
    let v = parse_int(text, name, i32::MIN as i64, u32::MAX as i64)?;
    Ok(v as u32)
}

fn parse_bool(text: &str) -> Result<bool> {
    let t = text.trim_matches(is_space).to_ascii_lowercase();
    let prefix_of = |w: &str, least: usize| t.len() >= least && w.starts_with(t.as_str());
    if prefix_of("true", 1) || prefix_of("yes", 1) || t == "on" || t == "1" {
        Ok(true)
    } else if prefix_of("false", 1) || prefix_of("no", 1) || prefix_of("off", 2) || t == "0" {
        Ok(false)
    } else {
        Err(Error::invalid_input("boolean", text))
    }
}

trait Float: std::str::FromStr + Copy {
    fn infinite(self) -> bool;
    fn zero(self) -> bool;
}

impl Float for f32 {
    fn infinite(self) -> bool {
        self.is_infinite()
    }
    fn zero(self) -> bool {
        self == 0.0
    }
}

impl Float for f64 {
    fn infinite(self) -> bool {
        self.is_infinite()
    }
    fn zero(self) -> bool {
        self == 0.0
    }
}

fn parse_float<F: Float>(text: &str, name: &str) -> Result<F> {
    let t = text.trim_matches(is_space);
    let v: F = t.parse().map_err(|_| Error::invalid_input(name, text))?;
    let numeric = t.bytes().any(|b| b.is_ascii_digit());
    let mantissa = t.split(['e', 'E']).next().unwrap_or(t);
    let lost = v.zero() && mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
    if numeric && (v.infinite() || lost) {
        return Err(Error::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("\"{text}\" is out of range for type {name}"),
        ));
    }
    Ok(v)
}

fn hex_digit(b: u8) -> Option<u8> {
    (b as char).to_digit(16).map(|d| d as u8)
}

/// Reads pairs of hexadecimal digits, with blanks between pairs.
pub(crate) fn parse_hex(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 2);
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i].is_ascii_whitespace() {
            i += 1;
            continue;
        }
        let bad = |at: usize| {
            let c = text[..].get(at..).and_then(|s| s.chars().next()).unwrap_or('?');
            Error::invalid_parameter(format!("invalid hexadecimal digit: \"{c}\""))
        };
        let hi = hex_digit(bytes[i]).ok_or_else(|| bad(i))?;
        let Some(&next) = bytes.get(i + 1) else {
            return Err(Error::invalid_parameter("invalid hexadecimal data: odd number of digits"));
        };
        let lo = hex_digit(next).ok_or_else(|| bad(i + 1))?;
        out.push(hi << 4 | lo);
        i += 2;
    }
    Ok(out)
}

/// Reads the escape form of bytes: `\\` and `\ooo`.
pub(crate) fn parse_escape(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let b = text.as_bytes();
    let mut i = 0;
    while i < b.len() {
        if b[i] != b'\\' {
            out.push(b[i]);
            i += 1;
        } else if b.get(i + 1) == Some(&b'\\') {
            out.push(b'\\');
            i += 2;
        } else if let Some(&[x @ b'0'..=b'3', y @ b'0'..=b'7', z @ b'0'..=b'7']) = b.get(i + 1..i + 4) {
            out.push((x - b'0') << 6 | (y - b'0') << 3 | (z - b'0'));
            i += 4;
        } else {
            return Err(Error::new(
                SqlState::INVALID_TEXT_REPRESENTATION,
                "invalid input syntax for type bytea",
            ));
        }
    }
    Ok(out)
}

fn parse_bytea(text: &str) -> Result<Vec<u8>> {
    match text.strip_prefix("\\x") {
        Some(hex) => parse_hex(hex),
        None => parse_escape(text),
    }
}

fn parse_uuid(text: &str) -> Result<[u8; 16]> {
    let bad = || Error::invalid_input("uuid", text);
    let inner = match text.strip_prefix('{') {
        Some(t) => t.strip_suffix('}').ok_or_else(bad)?,
        None => text,
    };
    let b = inner.as_bytes();
    let mut out = [0; 16];
    let mut i = 0;
    for (n, byte) in out.iter_mut().enumerate() {
        let hi = b.get(i).copied().and_then(hex_digit).ok_or_else(bad)?;
        let lo = b.get(i + 1).copied().and_then(hex_digit).ok_or_else(bad)?;
        *byte = hi << 4 | lo;
        i += 2;
        if n % 2 == 1 && n < 15 && b.get(i) == Some(&b'-') {
            i += 1;
        }
    }
    if i == b.len() { Ok(out) } else { Err(bad()) }
}

fn malformed_array(text: &str) -> Error {
    Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("malformed array literal: \"{text}\""))
}

fn parse_array(element: &'static Type, text: &str, settings: &Settings) -> Result<Datum> {
    let bad = || malformed_array(text);
    let t = text.trim_matches(is_space);
    let inner = t
        .strip_prefix('{')
        .ok_or_else(|| {
            if t.starts_with('[') {
                Error::unsupported("an array with explicit bounds")
            } else {
                bad().with_detail("Array value must start with \"{\" or dimension information.")
            }
        })?
        .strip_suffix('}')
        .ok_or_else(bad)?;
    let mut items = Vec::new();
    if inner.trim_matches(is_space).is_empty() {
        return Ok(Datum::array(*element, items));
    }
    let mut chars = inner.chars().peekable();
    loop {
        while chars.next_if(|c| is_space(*c)).is_some() {}
        let mut value = String::new();
        // Blanks at the end do not count, unless escaped.
        let mut kept = 0;
        let mut quoted = false;
        let more = loop {
            match chars.next() {
                None => break false,
                Some(',') => break true,
                Some('"') if !quoted && value.is_empty() => {
                    quoted = true;
                    loop {
                        match chars.next().ok_or_else(bad)? {
                            '"' => break,
                            '\\' => value.push(chars.next().ok_or_else(bad)?),
                            c => value.push(c),
                        }
                    }
                    kept = value.len();
                }
                Some('{') => return Err(Error::unsupported("an array of several dimensions")),
                Some('}' | '"') => return Err(bad()),
                Some(c) if is_space(c) => {
                    if !quoted {
                        value.push(c);
                    }
                }
                Some(_) if quoted => return Err(bad()),
                Some('\\') => {
                    value.push(chars.next().ok_or_else(bad)?);
                    kept = value.len();
                }
                Some(c) => {
                    value.push(c);
                    kept = value.len();
                }
            }
        };
        value.truncate(kept);
        if !quoted && value.is_empty() {
            return Err(bad());
        }
        items.push(if !quoted && value.eq_ignore_ascii_case("null") {
            Datum::Null
        } else {
            parse_text(element, &value, settings)?
        });
        if !more {
            return Ok(Datum::array(*element, items));
        }
    }
}

/// Appends the text form of a value; nothing for NULL (the caller says NULL in its own way).
pub fn write_text(datum: &Datum, ty: &Type, settings: &Settings, out: &mut Vec<u8>) {
    match datum {
        Datum::Null => {}
        Datum::Bool(b) => out.push(if *b { b't' } else { b'f' }),
        Datum::Int2(v) => write_int(*v as i64, out),
        Datum::Int4(v) => write_int(*v as i64, out),
        Datum::Int8(v) => write_int(*v, out),
        Datum::Float4(v) => write_f32(*v, settings.extra_float_digits, out),
        Datum::Float8(v) => write_f64(*v, settings.extra_float_digits, out),
        Datum::Numeric(n) => n.write(out),
        Datum::Text(s) | Datum::Bpchar(s) => out.extend_from_slice(s.as_bytes()),
        Datum::Bytes(b) => match settings.bytea_output {
            ByteaOutput::Hex => {
                out.extend_from_slice(b"\\x");
                write_hex(b, out);
            }
            ByteaOutput::Escape => write_escape(b, out),
        },
        Datum::Date(d) => format::write_date(*d, out),
        Datum::Time(t) => format::write_time(*t, out),
        Datum::Timestamp(t) => format::write_timestamp(*t, out),
        Datum::Timestamptz(t) => format::write_timestamptz(*t, &settings.time_zone, out),
        Datum::Interval(v) => format::write_interval(v, settings, out),
        Datum::Uuid(u) => write_uuid(u, out),
        Datum::Oid(v) => match ty {
            Type::Regtype => match Type::from_oid(*v) {
                Some(t) => out.extend_from_slice(t.base_sql_name().as_bytes()),
                None if *v == 0 => out.push(b'-'),
                None => write_int(*v as i64, out),
            },
            Type::Regclass | Type::Regproc if *v == 0 => out.push(b'-'),
            _ => write_int(*v as i64, out),
        },
        Datum::Array(a) => write_array(a, settings, out),
    }
}

/// The text form as a string; empty for NULL.
pub fn to_text(datum: &Datum, ty: &Type, settings: &Settings) -> String {
    let mut out = Vec::new();
    write_text(datum, ty, settings, &mut out);
    // Every writer appends UTF-8.
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn write_int(v: i64, out: &mut Vec<u8>) {
    let mut buf = [0u8; 20];
    let mut at = buf.len();
    let mut n = v.unsigned_abs();
    loop {
        at -= 1;
        buf[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    if v < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&buf[at..]);
}

/// Appends hexadecimal digits, lower case.
pub(crate) fn write_hex(b: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(b.len() * 2);
    for x in b {
        out.push(DIGITS[(x >> 4) as usize]);
        out.push(DIGITS[(x & 15) as usize]);
    }
}

/// Appends the escape form of bytes.
pub(crate) fn write_escape(b: &[u8], out: &mut Vec<u8>) {
    for &x in b {
        match x {
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x20..=0x7e => out.push(x),
            _ => out.extend_from_slice(&[b'\\', b'0' + (x >> 6), b'0' + (x >> 3 & 7), b'0' + (x & 7)]),
        }
    }
}

/// Appends a uuid.
pub(crate) fn write_uuid(u: &[u8; 16], out: &mut Vec<u8>) {
    for (i, part) in [&u[..4], &u[4..6], &u[6..8], &u[8..10], &u[10..]].into_iter().enumerate() {
        if i > 0 {
            out.push(b'-');
        }
        write_hex(part, out);
    }
}

/// Digits and exponent of `d.ddde±x`, printed as PostgreSQL does: fixed for exponents from -4 up to below `fixed_max`.
fn write_shortest(text: &str, fixed_max: i32, out: &mut Vec<u8>) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(m) => ("-", m),
        None => ("", mantissa),
    };
    let digits: Vec<u8> = mantissa.bytes().filter(u8::is_ascii_digit).collect();
    out.extend_from_slice(sign.as_bytes());
    if (-4..fixed_max).contains(&exponent) {
        if exponent < 0 {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + (-exponent - 1) as usize, b'0');
            out.extend_from_slice(&digits);
        } else {
            let whole = exponent as usize + 1;
            if digits.len() <= whole {
                out.extend_from_slice(&digits);
                out.resize(out.len() + whole - digits.len(), b'0');
            } else {
                out.extend_from_slice(&digits[..whole]);
                out.push(b'.');
                out.extend_from_slice(&digits[whole..]);
            }
        }
    } else {
        out.push(digits[0]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.push(b'e');
        out.push(if exponent < 0 { b'-' } else { b'+' });
        format::put_padded(exponent.unsigned_abs() as i64, 2, out);
    }
}

fn write_special(v: f64, out: &mut Vec<u8>) -> bool {
    if v.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if v.is_infinite() {
        out.extend_from_slice(if v > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else {
        return false;
    }
    true
}

/// `%.<digits>g`
fn write_general(v: f64, digits: i32, out: &mut Vec<u8>) {
    let digits = digits.max(1) as usize;
    let text = format!("{v:.*e}", digits - 1);
    let (m, e) = text.split_once('e').unwrap_or((&text, "0"));
    let m = if m.contains('.') { m.trim_end_matches('0').trim_end_matches('.') } else { m };
    write_shortest(&format!("{m}e{e}"), digits as i32, out);
}

/// Appends a double.
pub(crate) fn write_f64(v: f64, extra_digits: i32, out: &mut Vec<u8>) {
    if write_special(v, out) {
    } else if extra_digits <= 0 {
        write_general(v, 15 + extra_digits, out);
    } else {
        write_shortest(&format!("{v:e}"), 15, out);
    }
}

fn write_f32(v: f32, extra_digits: i32, out: &mut Vec<u8>) {
    if write_special(v as f64, out) {
    } else if extra_digits <= 0 {
        write_general(v as f64, 6 + extra_digits, out);
    } else {
        write_shortest(&format!("{v:e}"), 6, out);
    }
}

fn write_array(a: &Array, settings: &Settings, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, item) in a.items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if item.is_null() {
            out.extend_from_slice(b"NULL");
            continue;
        }
        let text = to_text(item, &a.element, settings);
        let quote = text.is_empty()
            || text.eq_ignore_ascii_case("null")
            || text.chars().any(|c| is_space(c) || matches!(c, '"' | '\\' | '{' | '}' | ','));
        if !quote {
            out.extend_from_slice(text.as_bytes());
            continue;
        }
        out.push(b'"');
        for b in text.bytes() {
            if matches!(b, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(b);
        }
        out.push(b'"');
    }
    out.push(b'}');
}
