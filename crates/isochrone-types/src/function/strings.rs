//! Strings and bytes. Positions and lengths count characters; case follows Unicode.

use super::args::*;
use super::registry::*;
use crate::text::{checked_text, parse_escape, parse_hex, to_text, write_escape, write_hex};
use crate::{Datum, Error, EvalContext, Result, SqlState, Type};

type Ctx<'a> = EvalContext<'a>;

/// A value as `||` and `concat` print it: booleans differ.
fn shown(d: &Datum, ctx: &Ctx<'_>, long_bool: bool) -> String {
    match d {
        Datum::Bool(b) if long_bool => b.to_string(),
        d => to_text(d, &d.natural_type(), ctx.settings),
    }
}

fn joined(x: &str, y: &str) -> Result<Datum> {
    let mut s = String::with_capacity(check_length(x.len() + y.len())?);
    s.push_str(x);
    s.push_str(y);
    Ok(s.into())
}

fn is_ascii(s: &str) -> bool {
    s.is_ascii()
}

/// Byte offset of character `n` (from 0), or the end.
fn offset(s: &str, n: usize) -> usize {
    if is_ascii(s) { n.min(s.len()) } else { s.char_indices().nth(n).map_or(s.len(), |c| c.0) }
}

fn char_count(s: &str) -> usize {
    if is_ascii(s) { s.len() } else { s.chars().count() }
}

#[cold]
fn negative_length() -> Error {
    Error::new(SqlState::SUBSTRING_ERROR, "negative substring length not allowed")
}

/// The range of positions (from 0) that `substring(x from start for count)` means.
fn span(start: i32, count: Option<i32>) -> Result<(usize, Option<usize>)> {
    let first = start as i64 - 1;
    let end = match count {
        Some(n) if n < 0 => return Err(negative_length()),
        Some(n) => Some((first + n as i64).max(0) as usize),
        None => None,
    };
    Ok((first.max(0) as usize, end))
}

fn substring(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let s = text(&a[0])?;
    let (first, end) = span(int4(&a[1])?, a.get(2).map(int4).transpose()?)?;
    let from = offset(s, first);
    let to = end.map_or(s.len(), |e| offset(s, e)).max(from);
    Ok(s[from..to].into())
}

fn substring_bytes(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let b = bytes(&a[0])?;
    let (first, end) = span(int4(&a[1])?, a.get(2).map(int4).transpose()?)?;
    let from = first.min(b.len());
    let to = end.unwrap_or(b.len()).clamp(from, b.len());
    Ok(Datum::bytes(&b[from..to]))
}

fn overlay(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, new, start) = (text(&a[0])?, text(&a[1])?, int4(&a[2])?);
    if start <= 0 {
        return Err(negative_length());
    }
    let count = match a.get(3) {
        Some(n) => int4(n)? as i64,
        None => char_count(new) as i64,
    };
    let from = offset(s, start as usize - 1);
    let to = offset(s, (start as i64 - 1 + count).max(0) as usize);
    joined(&format!("{}{new}", &s[..from]), &s[to..])
}

fn left(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, n) = (text(&a[0])?, int4(&a[1])? as i64);
    let keep = if n >= 0 { n as usize } else { (char_count(s) as i64 + n).max(0) as usize };
    Ok(s[..offset(s, keep)].into())
}

fn right(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, n) = (text(&a[0])?, int4(&a[1])? as i64);
    let drop = if n >= 0 { (char_count(s) as i64 - n).max(0) } else { -n };
    Ok(s[offset(s, drop as usize)..].into())
}

fn pad(a: &[Datum], at_left: bool) -> Result<Datum> {
    let (s, n) = (text(&a[0])?, int4(&a[1])?.max(0) as usize);
    let fill = a.get(2).map(text).transpose()?.unwrap_or(" ");
    let have = char_count(s);
    if have >= n || fill.is_empty() {
        return Ok(s[..offset(s, n)].into());
    }
    check_length(s.len() + (n - have) * 4)?;
    let filling: String = fill.chars().cycle().take(n - have).collect();
    if at_left { joined(&filling, s) } else { joined(s, &filling) }
}

fn trim(a: &[Datum], at_left: bool, at_right: bool) -> Result<Datum> {
    let mut s = text(&a[0])?;
    let set: Vec<char> = match a.get(1) {
        Some(c) => text(c)?.chars().collect(),
        None => vec![' '],
    };
    if at_left {
        s = s.trim_start_matches(&set[..]);
    }
    if at_right {
        s = s.trim_end_matches(&set[..]);
    }
    Ok(s.into())
}

fn position(needle: &str, s: &str) -> i32 {
    s.find(needle).map_or(0, |at| char_count(&s[..at]) as i32 + 1)
}

fn replace(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, from, to) = (text(&a[0])?, text(&a[1])?, text(&a[2])?);
    if from.is_empty() {
        return Ok(a[0].clone());
    }
    if to.len() > from.len() {
        let n = s.matches(from).count();
        check_length(s.len() + n * (to.len() - from.len()))?;
    }
    Ok(s.replace(from, to).into())
}

fn translate(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let from: Vec<char> = text(&a[1])?.chars().collect();
    let to: Vec<char> = text(&a[2])?.chars().collect();
    let out: String = text(&a[0])?
        .chars()
        .filter_map(|c| match from.iter().position(|f| *f == c) {
            None => Some(c),
            Some(i) => to.get(i).copied(),
        })
        .collect();
    Ok(out.into())
}

fn repeat(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, n) = (text(&a[0])?, int4(&a[1])?.max(0) as usize);
    check_length(s.len().saturating_mul(n))?;
    Ok(s.repeat(n).into())
}

fn split_part(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let (s, sep, n) = (text(&a[0])?, text(&a[1])?, int4(&a[2])?);
    if n == 0 {
        return Err(Error::invalid_parameter("field position must not be zero"));
    }
    if sep.is_empty() {
        return Ok(if n == 1 || n == -1 { a[0].clone() } else { "".into() });
    }
    let part =
        if n > 0 { s.split(sep).nth(n as usize - 1) } else { s.rsplit(sep).nth(-(n as i64) as usize - 1) };
    Ok(part.unwrap_or("").into())
}

fn initcap(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let mut out = String::new();
    let mut inside = false;
    for c in text(&a[0])?.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphanumeric();
    }
    Ok(out.into())
}

fn chr(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let n = int4(&a[0])?;
    if n == 0 {
        return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "null character not permitted"));
    }
    match u32::try_from(n).ok().and_then(char::from_u32) {
        Some(c) => Ok(c.to_string().into()),
        None => Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("requested character not valid for encoding: {n}"),
        )),
    }
}

fn concat(a: &[Datum], ctx: &Ctx<'_>) -> Result<Datum> {
    let mut out = String::new();
    for d in a {
        out.push_str(&shown(d, ctx, false));
        check_length(out.len())?;
    }
    Ok(out.into())
}

fn concat_ws(a: &[Datum], ctx: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(Datum::Null);
    }
    let sep = text(&a[0])?;
    let mut out = String::new();
    for (i, d) in a[1..].iter().filter(|d| !d.is_null()).enumerate() {
        if i > 0 {
            out.push_str(sep);
        }
        out.push_str(&shown(d, ctx, false));
        check_length(out.len())?;
    }
    Ok(out.into())
}

/// A name as it must be written in a statement.
pub fn quote_identifier(s: &str) -> String {
    let plain = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && RESERVED.binary_search(&s).is_err();
    if plain { s.to_owned() } else { format!("\"{}\"", s.replace('"', "\"\"")) }
}

/// PostgreSQL's reserved words and those that cannot be function or type names, sorted.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "between",
    "bigint",
    "binary",
    "bit",
    "boolean",
    "both",
    "case",
    "cast",
    "char",
    "character",
    "check",
    "coalesce",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "dec",
    "decimal",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "exists",
    "extract",
    "false",
    "fetch",
    "float",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "inout",
    "int",
    "integer",
    "intersect",
    "interval",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "least",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "national",
    "natural",
    "nchar",
    "none",
    "normalize",
    "not",
    "notnull",
    "null",
    "nullif",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "out",
    "outer",
    "overlaps",
    "overlay",
    "placing",
    "position",
    "precision",
    "primary",
    "real",
    "references",
    "returning",
    "right",
    "row",
    "select",
    "session_user",
    "setof",
    "similar",
    "smallint",
    "some",
    "substring",
    "symmetric",
    "table",
    "tablesample",
    "then",
    "time",
    "timestamp",
    "to",
    "trailing",
    "treat",
    "trim",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "values",
    "varchar",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
    "xmlattributes",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlnamespaces",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
    "xmltable",
];

fn quote_literal(s: &str) -> String {
    let body = s.replace('\'', "''");
    if s.contains('\\') { format!("E'{}'", body.replace('\\', "\\\\")) } else { format!("'{body}'") }
}

fn format(a: &[Datum], ctx: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(Datum::Null);
    }
    let mut out = String::new();
    let mut chars = text(&a[0])?.chars().peekable();
    let mut next = 1;
    let bad = |m: String| Error::invalid_parameter(m);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Option<usize> {
            let mut n = None;
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                n = Some((n.unwrap_or(0usize) * 10 + d as usize - '0' as usize).min(1 << 20));
            }
            n
        };
        let mut width = number(&mut chars);
        let mut at = next;
        if width.is_some() && chars.next_if_eq(&'$').is_some() {
            at = width.take().unwrap_or(1);
            if at == 0 {
                return Err(bad("format specifies argument 0, but arguments are numbered from 1".to_owned()));
            }
            width = None;
        }
        let minus = chars.next_if_eq(&'-').is_some();
        if width.is_none() {
            width = number(&mut chars);
        }
        let Some(kind) = chars.next() else {
            return Err(bad("unterminated format() type specifier".to_owned())
                .with_hint("For a single \"%\" use \"%%\"."));
        };
        if !matches!(kind, 's' | 'I' | 'L') {
            return Err(bad(format!("unrecognized format() type specifier \"{kind}\""))
                .with_hint("For a single \"%\" use \"%%\"."));
        }
        let d = a.get(at).ok_or_else(|| bad("too few arguments for format()".to_owned()))?;
        next = at + 1;
        let value = match (kind, d.is_null()) {
            ('s', true) => String::new(),
            ('I', true) => {
                return Err(Error::new(
                    SqlState::NULL_VALUE_NOT_ALLOWED,
                    "null values cannot be formatted as an SQL identifier",
                ));
            }
            (_, true) => "NULL".to_owned(),
            ('I', _) => quote_identifier(&shown(d, ctx, false)),
            ('L', _) => quote_literal(&shown(d, ctx, false)),
            _ => shown(d, ctx, false),
        };
        let blanks = width.unwrap_or(0).saturating_sub(char_count(&value));
        check_length(out.len() + value.len() + blanks)?;
        if minus {
            out.push_str(&value);
        }
        out.extend(std::iter::repeat_n(' ', blanks));
        if !minus {
            out.push_str(&value);
        }
    }
    Ok(out.into())
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let b = bytes(&a[0])?;
    let mut out = Vec::with_capacity(check_length(b.len() * 2)?);
    match text(&a[1])?.to_ascii_lowercase().as_str() {
        "hex" => write_hex(b, &mut out),
        "escape" => {
            for &x in b {
                // Only zero, high bytes and the backslash are escaped here.
                if x == 0 || x >= 0x80 || x == b'\\' { write_escape(&[x], &mut out) } else { out.push(x) }
            }
        }
        "base64" => {
            for (i, chunk) in b.chunks(3).enumerate() {
                if i > 0 && i % 19 == 0 {
                    out.push(b'\n');
                }
                let n = chunk.iter().fold(0u32, |n, x| n << 8 | *x as u32) << (8 * (3 - chunk.len()));
                for k in 0..4 {
                    let digit = BASE64[(n >> (18 - 6 * k) & 63) as usize];
                    out.push(if k <= chunk.len() { digit } else { b'=' });
                }
            }
        }
        other => return Err(Error::invalid_parameter(format!("unrecognized encoding: \"{other}\""))),
    }
    Ok(String::from_utf8_lossy(&out).into_owned().into())
}

fn decode(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let s = text(&a[0])?;
    Ok(Datum::bytes(match text(&a[1])?.to_ascii_lowercase().as_str() {
        "hex" => parse_hex(s)?,
        "escape" => parse_escape(s)?,
        "base64" => {
            let mut out = Vec::with_capacity(s.len() / 4 * 3);
            let (mut n, mut have, mut padding) = (0u32, 0, 0);
            for c in s.bytes().filter(|c| !c.is_ascii_whitespace()) {
                let digit = match (c, BASE64.iter().position(|d| *d == c)) {
                    (b'=', _) if have >= 2 => {
                        padding += 1;
                        0
                    }
                    (_, Some(d)) if padding == 0 => d as u32,
                    _ => {
                        return Err(Error::invalid_parameter(format!(
                            "invalid symbol \"{}\" found while decoding base64 sequence",
                            c as char
                        )));
                    }
                };
                n = n << 6 | digit;
                have += 1;
                if have == 4 {
                    out.extend_from_slice(&n.to_be_bytes()[1..4 - padding.min(2)]);
                    (n, have) = (0, 0);
                }
            }
            if have != 0 {
                return Err(Error::invalid_parameter("invalid base64 end sequence")
                    .with_hint("Input data is missing padding, is truncated, or is otherwise corrupted."));
            }
            out
        }
        other => return Err(Error::invalid_parameter(format!("unrecognized encoding: \"{other}\""))),
    }))
}

fn convert_from(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let encoding = text(&a[1])?;
    if !encoding.eq_ignore_ascii_case("utf8") && !encoding.eq_ignore_ascii_case("utf-8") {
        return Err(Error::unsupported(format!("encoding \"{encoding}\"")));
    }
    let s = std::str::from_utf8(bytes(&a[0])?).map_err(|_| {
        Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\"")
    })?;
    Ok(checked_text(s)?.into())
}

fn convert_to(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    let encoding = text(&a[1])?;
    if !encoding.eq_ignore_ascii_case("utf8") && !encoding.eq_ignore_ascii_case("utf-8") {
        return Err(Error::unsupported(format!("encoding \"{encoding}\"")));
    }
    Ok(Datum::bytes(text(&a[0])?.as_bytes()))
}

/// The MD5 digest in hexadecimal.
fn md5(input: &[u8]) -> String {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let table: Vec<u32> = (1..=64).map(|i| ((i as f64).sin().abs() * 4_294_967_296.0) as u32).collect();
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let mut data = input.to_vec();
    data.push(0x80);
    while data.len() % 64 != 56 {
        data.push(0);
    }
    data.extend_from_slice(&(input.len() as u64).wrapping_mul(8).to_le_bytes());
    for block in data.chunks_exact(64) {
        let words: Vec<u32> =
            block.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64 {
            let (f, g) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), 7 * i % 16),
            };
            let sum = f.wrapping_add(a).wrapping_add(table[i]).wrapping_add(words[g]);
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4]));
        }
        for (s, v) in state.iter_mut().zip([a, b, c, d]) {
            *s = s.wrapping_add(v);
        }
    }
    let mut out = Vec::new();
    for s in state {
        write_hex(&s.to_le_bytes(), &mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn string_to_array(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    if a[0].is_null() {
        return Ok(Datum::Null);
    }
    let s = text(&a[0])?;
    let null = match a.get(2) {
        Some(d) if !d.is_null() => Some(text(d)?),
        _ => None,
    };
    let item = |p: &str| if Some(p) == null { Datum::Null } else { p.into() };
    let items = match &a[1] {
        _ if s.is_empty() => Vec::new(),
        Datum::Null => s.chars().map(|c| item(&c.to_string())).collect(),
        sep => match text(sep)? {
            "" => vec![item(s)],
            sep => s.split(sep).map(item).collect(),
        },
    };
    Ok(Datum::array(Type::Text, items))
}

pub(super) const OPERATORS: &[Sig] = &[
    sig("||", &[TEXT, TEXT], TEXT, |a, _| joined(text(&a[0])?, text(&a[1])?)),
    sig("||", &[TEXT, P::NonArray], TEXT, |a, c| joined(text(&a[0])?, &shown(&a[1], c, true))).stable(),
    sig("||", &[P::NonArray, TEXT], TEXT, |a, c| joined(&shown(&a[0], c, true), text(&a[1])?)).stable(),
    sig("||", &[BYTEA, BYTEA], BYTEA, |a, _| {
        let (x, y) = (bytes(&a[0])?, bytes(&a[1])?);
        check_length(x.len() + y.len())?;
        Ok(Datum::bytes([x, y].concat()))
    }),
    sig("^@", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(text(&a[0])?.starts_with(text(&a[1])?)))),
];

fn length(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Int4(char_count(text(&a[0])?) as i32))
}

fn length_bpchar(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Int4(char_count(text(&a[0])?.trim_end_matches(' ')) as i32))
}

fn byte_length(a: &[Datum], _: &Ctx<'_>) -> Result<Datum> {
    Ok(Datum::Int4(match a[0].as_bytes() {
        Some(b) => b.len() as i32,
        None => text(&a[0])?.len() as i32,
    }))
}

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("length", &[TEXT], I4, length),
    sig("length", &[BPCHAR], I4, length_bpchar),
    sig("length", &[BYTEA], I4, byte_length),
    sig("char_length", &[TEXT], I4, length),
    sig("char_length", &[BPCHAR], I4, length_bpchar),
    sig("character_length", &[TEXT], I4, length),
    sig("character_length", &[BPCHAR], I4, length_bpchar),
    sig("octet_length", &[TEXT], I4, byte_length),
    sig("octet_length", &[BPCHAR], I4, byte_length),
    sig("octet_length", &[BYTEA], I4, byte_length),
    sig("bit_length", &[TEXT], I4, |a, _| Ok(Datum::Int4((text(&a[0])?.len() * 8) as i32))),
    sig("lower", &[TEXT], TEXT, |a, _| Ok(text(&a[0])?.to_lowercase().into())),
    sig("upper", &[TEXT], TEXT, |a, _| Ok(text(&a[0])?.to_uppercase().into())),
    sig("initcap", &[TEXT], TEXT, initcap),
    sig("substring", &[TEXT, I4], TEXT, substring),
    sig("substring", &[TEXT, I4, I4], TEXT, substring),
    sig("substring", &[BYTEA, I4], BYTEA, substring_bytes),
    sig("substring", &[BYTEA, I4, I4], BYTEA, substring_bytes),
    sig("substr", &[TEXT, I4], TEXT, substring),
    sig("substr", &[TEXT, I4, I4], TEXT, substring),
    sig("substr", &[BYTEA, I4], BYTEA, substring_bytes),
    sig("substr", &[BYTEA, I4, I4], BYTEA, substring_bytes),
    sig("overlay", &[TEXT, TEXT, I4], TEXT, overlay),
    sig("overlay", &[TEXT, TEXT, I4, I4], TEXT, overlay),
    sig("left", &[TEXT, I4], TEXT, left),
    sig("right", &[TEXT, I4], TEXT, right),
    sig("lpad", &[TEXT, I4], TEXT, |a, _| pad(a, true)),
    sig("lpad", &[TEXT, I4, TEXT], TEXT, |a, _| pad(a, true)),
    sig("rpad", &[TEXT, I4], TEXT, |a, _| pad(a, false)),
    sig("rpad", &[TEXT, I4, TEXT], TEXT, |a, _| pad(a, false)),
    sig("ltrim", &[TEXT], TEXT, |a, _| trim(a, true, false)),
    sig("ltrim", &[TEXT, TEXT], TEXT, |a, _| trim(a, true, false)),
    sig("rtrim", &[TEXT], TEXT, |a, _| trim(a, false, true)),
    sig("rtrim", &[TEXT, TEXT], TEXT, |a, _| trim(a, false, true)),
    sig("btrim", &[TEXT], TEXT, |a, _| trim(a, true, true)),
    sig("btrim", &[TEXT, TEXT], TEXT, |a, _| trim(a, true, true)),
    sig("trim", &[TEXT], TEXT, |a, _| trim(a, true, true)),
    sig("position", &[TEXT, TEXT], I4, |a, _| Ok(Datum::Int4(position(text(&a[1])?, text(&a[0])?)))),
    sig("strpos", &[TEXT, TEXT], I4, |a, _| Ok(Datum::Int4(position(text(&a[1])?, text(&a[0])?)))),
    sig("replace", &[TEXT, TEXT, TEXT], TEXT, replace),
    sig("translate", &[TEXT, TEXT, TEXT], TEXT, translate),
    sig("repeat", &[TEXT, I4], TEXT, repeat),
    sig("reverse", &[TEXT], TEXT, |a, _| Ok(text(&a[0])?.chars().rev().collect::<String>().into())),
    sig("split_part", &[TEXT, TEXT, I4], TEXT, split_part),
    sig("starts_with", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(text(&a[0])?.starts_with(text(&a[1])?)))),
    sig("ascii", &[TEXT], I4, |a, _| Ok(Datum::Int4(text(&a[0])?.chars().next().map_or(0, |c| c as i32)))),
    sig("chr", &[I4], TEXT, chr),
    sig("concat", &[P::Any], TEXT, concat).with_nulls().variadic().stable(),
    sig("concat_ws", &[TEXT, P::Any], TEXT, concat_ws).with_nulls().variadic().stable(),
    sig("format", &[TEXT], TEXT, format).with_nulls().stable(),
    sig("format", &[TEXT, P::Any], TEXT, format).with_nulls().variadic().stable(),
    sig("quote_ident", &[TEXT], TEXT, |a, _| Ok(quote_identifier(text(&a[0])?).into())),
    sig("quote_literal", &[TEXT], TEXT, |a, _| Ok(quote_literal(text(&a[0])?).into())),
    sig("quote_nullable", &[TEXT], TEXT, |a, _| {
        Ok(if a[0].is_null() { "NULL".into() } else { quote_literal(text(&a[0])?).into() })
    })
    .with_nulls(),
    sig("md5", &[TEXT], TEXT, |a, _| Ok(md5(text(&a[0])?.as_bytes()).into())),
    sig("md5", &[BYTEA], TEXT, |a, _| Ok(md5(bytes(&a[0])?).into())),
    sig("encode", &[BYTEA, TEXT], TEXT, encode),
    sig("decode", &[TEXT, TEXT], BYTEA, decode),
    sig("convert_from", &[BYTEA, TEXT], TEXT, convert_from),
    sig("convert_to", &[TEXT, TEXT], BYTEA, convert_to),
    sig("to_hex", &[I4], TEXT, |a, _| Ok(format!("{:x}", int4(&a[0])?).into())),
    sig("to_hex", &[I8], TEXT, |a, _| Ok(format!("{:x}", int8(&a[0])?).into())),
    sig("get_byte", &[BYTEA, I4], I4, |a, _| {
        let (b, n) = (bytes(&a[0])?, int4(&a[1])?);
        usize::try_from(n).ok().and_then(|n| b.get(n)).map(|x| Datum::Int4(*x as i32)).ok_or_else(|| {
            Error::new(
                SqlState::ARRAY_SUBSCRIPT_ERROR,
                format!("index {n} out of valid range, 0..{}", b.len() as i64 - 1),
            )
        })
    }),
    sig("string_to_array", &[TEXT, TEXT], TEXTS, string_to_array).with_nulls(),
    sig("string_to_array", &[TEXT, TEXT, TEXT], TEXTS, string_to_array).with_nulls(),
    sig("current_user", &[], P::T(Type::Name), |_, c| Ok(c.session.current_user.as_str().into())).stable(),
    sig("session_user", &[], P::T(Type::Name), |_, c| Ok(c.session.session_user.as_str().into())).stable(),
    sig("user", &[], P::T(Type::Name), |_, c| Ok(c.session.current_user.as_str().into())).stable(),
    sig("current_role", &[], P::T(Type::Name), |_, c| Ok(c.session.current_user.as_str().into())).stable(),
    sig("current_database", &[], P::T(Type::Name), |_, c| Ok(c.session.current_database.as_str().into()))
        .stable(),
    sig("current_catalog", &[], P::T(Type::Name), |_, c| Ok(c.session.current_database.as_str().into()))
        .stable(),
    sig("current_schema", &[], P::T(Type::Name), |_, c| Ok(c.session.current_schema.as_str().into()))
        .stable(),
];
