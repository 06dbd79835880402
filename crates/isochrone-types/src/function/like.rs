//! LIKE, ILIKE and regular expressions.
//!
//! Regular expressions are those of the `regex-lite` crate: linear time, leftmost-first where PostgreSQL takes the
//! longest match (which is seen by `regexp_replace` and `regexp_match` with alternatives, not by `~`). Back references
//! and look-around answer 2201B.

use super::args::*;
use super::registry::*;
use crate::{Datum, Error, EvalContext, Result, SqlState, Type};
use regex_lite::{Regex, RegexBuilder};
use std::cell::RefCell;

/// Compiled expressions that a thread keeps; the oldest goes.
const REGEX_CACHE_MAX: usize = 32;
/// Largest compiled expression, in bytes. More is 2201B.
const REGEX_BYTES_MAX: usize = 1 << 20;

fn char_len(first: u8) -> usize {
    match first {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    }
}

/// Does the whole of `s` match the LIKE pattern, with backslash as the escape character? 22025 for a pattern that
/// ends in its escape.
pub(super) fn like(s: &[u8], p: &[u8]) -> Result<bool> {
    let (mut i, mut j) = (0, 0);
    // Where to go on when a literal does not match: behind the last %, one character further.
    let mut back: Option<(usize, usize)> = None;
    loop {
        let step = match p.get(j) {
            Some(b'%') => {
                while p.get(j) == Some(&b'%') {
                    j += 1;
                }
                if j == p.len() {
                    return Ok(true);
                }
                back = Some((i, j));
                continue;
            }
            Some(b'_') if i < s.len() => {
                i += char_len(s[i]).min(s.len() - i);
                j += 1;
                true
            }
            Some(b'\\') => match p.get(j + 1) {
                None => {
                    return Err(Error::new(
                        SqlState::INVALID_ESCAPE_SEQUENCE,
                        "LIKE pattern must not end with escape character",
                    ));
                }
                Some(c) if s.get(i) == Some(c) => {
                    i += 1;
                    j += 2;
                    true
                }
                Some(_) => false,
            },
            Some(c) if s.get(i) == Some(c) => {
                i += 1;
                j += 1;
                true
            }
            None if i == s.len() => return Ok(true),
            _ => false,
        };
        if !step {
            match back {
                Some((at, after)) if at < s.len() => {
                    i = at + char_len(s[at]).min(s.len() - at);
                    j = after;
                    back = Some((i, j));
                }
                _ => return Ok(false),
            }
        }
    }
}

fn is_like(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Bool(like(text(&a[0])?.as_bytes(), text(&a[1])?.as_bytes())?))
}

fn not_like(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Bool(!like(text(&a[0])?.as_bytes(), text(&a[1])?.as_bytes())?))
}

fn ilike(a: &[Datum]) -> Result<bool> {
    like(text(&a[0])?.to_lowercase().as_bytes(), text(&a[1])?.to_lowercase().as_bytes())
}

fn is_ilike(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Bool(ilike(a)?))
}

fn not_ilike(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    Ok(Datum::Bool(!ilike(a)?))
}

/// Rewrites a pattern with another escape character (or none, when empty) into one with backslash.
fn like_escape(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    let (pattern, escape) = (text(&a[0])?, text(&a[1])?);
    let mut chars = escape.chars();
    let escape = chars.next();
    if chars.next().is_some() {
        return Err(Error::new(SqlState::INVALID_ESCAPE_SEQUENCE, "invalid escape string")
            .with_hint("Escape string must be empty or one character."));
    }
    if escape == Some('\\') {
        return Ok(a[0].clone());
    }
    let mut out = String::with_capacity(pattern.len());
    let mut escaped = false;
    for c in pattern.chars() {
        if Some(c) == escape && !escaped {
            out.push('\\');
            escaped = true;
            continue;
        }
        if c == '\\' && !escaped {
            out.push('\\');
        }
        out.push(c);
        escaped = false;
    }
    Ok(out.into())
}

thread_local! {
    static CACHE: RefCell<Vec<(String, bool, Regex)>> = const { RefCell::new(Vec::new()) };
}

/// PostgreSQL's escapes for the edges of words.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('y') => out.push_str("\\b"),
            Some('m' | '<') => out.push_str("\\b{start}"),
            Some('M' | '>') => out.push_str("\\b{end}"),
            Some('A') => out.push_str("\\A"),
            Some('Z') => out.push_str("\\z"),
            Some(c) => {
                out.push('\\');
                out.push(c);
            }
            None => out.push('\\'),
        }
    }
    out
}

fn with_regex<R>(pattern: &str, insensitive: bool, f: impl FnOnce(&Regex) -> R) -> Result<R> {
    CACHE.with(|cache| {
        let mut cache = cache.borrow_mut();
        if let Some(i) = cache.iter().position(|c| c.1 == insensitive && c.0 == pattern) {
            return Ok(f(&cache[i].2));
        }
        // The dot matches line ends too, as in PostgreSQL.
        let regex = RegexBuilder::new(&translate(pattern))
            .case_insensitive(insensitive)
            .dot_matches_new_line(true)
            .size_limit(REGEX_BYTES_MAX)
            .build()
            .map_err(|e| {
                Error::new(SqlState::INVALID_REGULAR_EXPRESSION, format!("invalid regular expression: {e}"))
            })?;
        if cache.len() == REGEX_CACHE_MAX {
            cache.remove(0);
        }
        cache.push((pattern.to_owned(), insensitive, regex));
        Ok(f(&cache[cache.len() - 1].2))
    })
}

fn matches(a: &[Datum], insensitive: bool) -> Result<bool> {
    let s = text(&a[0])?;
    with_regex(text(&a[1])?, insensitive, |r| r.is_match(s))
}

/// Flags `g`, `i`, `c`: (global, insensitive).
fn flags(s: &str) -> Result<(bool, bool)> {
    let (mut global, mut insensitive) = (false, false);
    for c in s.chars() {
        match c {
            'g' => global = true,
            'i' => insensitive = true,
            'c' => insensitive = false,
            's' => {}
            _ => {
                return Err(Error::invalid_parameter(format!("invalid regular expression option: \"{c}\"")));
            }
        }
    }
    Ok((global, insensitive))
}

fn regexp_replace(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    let (s, pattern, with) = (text(&a[0])?, text(&a[1])?, text(&a[2])?);
    let (global, insensitive) = flags(a.get(3).map(text).transpose()?.unwrap_or(""))?;
    let out = with_regex(pattern, insensitive, |r| -> Result<String> {
        let mut out = String::new();
        let mut at = 0;
        for c in r.captures_iter(s) {
            let Some(whole) = c.get(0) else { continue };
            out.push_str(&s[at..whole.start()]);
            at = whole.end();
            let mut chars = with.chars();
            while let Some(ch) = chars.next() {
                if ch != '\\' {
                    out.push(ch);
                    continue;
                }
                match chars.next() {
                    Some('&') => out.push_str(whole.as_str()),
                    Some(d @ '1'..='9') => {
                        out.push_str(c.get(d as usize - '0' as usize).map_or("", |m| m.as_str()));
                    }
                    Some('\\') | None => out.push('\\'),
                    Some(o) => {
                        out.push('\\');
                        out.push(o);
                    }
                }
            }
            check_length(out.len())?;
            if !global {
                break;
            }
        }
        out.push_str(&s[at..]);
        Ok(out)
    })??;
    Ok(out.into())
}

fn regexp_match(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    let s = text(&a[0])?;
    let (global, insensitive) = flags(a.get(2).map(text).transpose()?.unwrap_or(""))?;
    if global {
        return Err(Error::invalid_parameter("regexp_match() does not support the \"global\" option"));
    }
    with_regex(text(&a[1])?, insensitive, |r| {
        let Some(c) = r.captures(s) else { return Datum::Null };
        let from = usize::from(c.len() > 1);
        let items = (from..c.len()).map(|i| c.get(i).map_or(Datum::Null, |m| m.as_str().into())).collect();
        Datum::array(Type::Text, items)
    })
}

fn regexp_like(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    let (_, insensitive) = flags(a.get(2).map(text).transpose()?.unwrap_or(""))?;
    Ok(Datum::Bool(matches(a, insensitive)?))
}

fn regexp_count(a: &[Datum], _: &EvalContext<'_>) -> Result<Datum> {
    let s = text(&a[0])?;
    with_regex(text(&a[1])?, false, |r| Datum::Int4(r.find_iter(s).count() as i32))
}

const NAME: P = P::T(Type::Name);

pub(super) const OPERATORS: &[Sig] = &[
    sig("~~", &[TEXT, TEXT], BOOL, is_like),
    sig("~~", &[BPCHAR, TEXT], BOOL, is_like),
    sig("~~", &[NAME, TEXT], BOOL, is_like),
    sig("!~~", &[TEXT, TEXT], BOOL, not_like),
    sig("!~~", &[BPCHAR, TEXT], BOOL, not_like),
    sig("!~~", &[NAME, TEXT], BOOL, not_like),
    sig("~~*", &[TEXT, TEXT], BOOL, is_ilike),
    sig("~~*", &[BPCHAR, TEXT], BOOL, is_ilike),
    sig("~~*", &[NAME, TEXT], BOOL, is_ilike),
    sig("!~~*", &[TEXT, TEXT], BOOL, not_ilike),
    sig("!~~*", &[BPCHAR, TEXT], BOOL, not_ilike),
    sig("!~~*", &[NAME, TEXT], BOOL, not_ilike),
    sig("~", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, false)?))),
    sig("~", &[BPCHAR, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, false)?))),
    sig("~", &[NAME, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, false)?))),
    sig("!~", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, false)?))),
    sig("!~", &[BPCHAR, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, false)?))),
    sig("!~", &[NAME, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, false)?))),
    sig("~*", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, true)?))),
    sig("~*", &[BPCHAR, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, true)?))),
    sig("~*", &[NAME, TEXT], BOOL, |a, _| Ok(Datum::Bool(matches(a, true)?))),
    sig("!~*", &[TEXT, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, true)?))),
    sig("!~*", &[BPCHAR, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, true)?))),
    sig("!~*", &[NAME, TEXT], BOOL, |a, _| Ok(Datum::Bool(!matches(a, true)?))),
];

pub(super) const FUNCTIONS: &[Sig] = &[
    sig("like", &[TEXT, TEXT], BOOL, is_like),
    sig("notlike", &[TEXT, TEXT], BOOL, not_like),
    sig("like_escape", &[TEXT, TEXT], TEXT, like_escape),
    sig("regexp_replace", &[TEXT, TEXT, TEXT], TEXT, regexp_replace),
    sig("regexp_replace", &[TEXT, TEXT, TEXT, TEXT], TEXT, regexp_replace),
    sig("regexp_match", &[TEXT, TEXT], TEXTS, regexp_match),
    sig("regexp_match", &[TEXT, TEXT, TEXT], TEXTS, regexp_match),
    sig("regexp_like", &[TEXT, TEXT], BOOL, regexp_like),
    sig("regexp_like", &[TEXT, TEXT, TEXT], BOOL, regexp_like),
    sig("regexp_count", &[TEXT, TEXT], I4, regexp_count),
];
