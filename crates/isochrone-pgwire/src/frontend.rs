//! Decoding of the client's message bodies, borrowed from the input buffer. Every read is checked; nothing is
//! allocated by a count that the client merely claims.

use isochrone_types::{Error, SqlState};

use crate::error::protocol;

/// Which kinds of things Describe and Close name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// 'S'
    Statement,
    /// 'P'
    Portal,
}

/// Parse.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Parse<'a> {
    pub name: &'a str,
    pub text: &'a str,
    /// Oids, big-endian, four bytes each.
    pub types: &'a [u8],
}

/// Bind.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Bind<'a> {
    pub portal: &'a str,
    pub statement: &'a str,
    /// Format codes of parameters, big-endian, two bytes each.
    pub parameter_formats: &'a [u8],
    pub parameter_count: usize,
    /// The parameters, each with its length before it: checked by [`Values`].
    pub parameters: &'a [u8],
    /// Format codes of results, big-endian, two bytes each.
    pub result_formats: &'a [u8],
}

/// The rest of a body.
pub(crate) struct Reader<'a>(&'a [u8]);

fn malformed() -> Error {
    protocol("invalid message format")
}

fn short() -> Error {
    protocol("insufficient data left in message")
}

/// UTF-8, or 22021 as PostgreSQL words it.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|e| {
        let bad = &bytes[e.valid_up_to()..];
        let n = e.error_len().unwrap_or(bad.len()).clamp(1, 4).min(bad.len());
        let shown: Vec<String> = bad[..n].iter().map(|b| format!("0x{b:02x}")).collect();
        Error::new(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")),
        )
    })
}

/// 22021 for a zero byte inside a text.
pub(crate) fn zero_byte() -> Error {
    Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\": 0x00")
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Reader<'a> {
        Reader(body)
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(short)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Error> {
        let b = self.take(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Error> {
        let b = self.take(4)?;
        Ok(i32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Text up to a zero byte.
    pub(crate) fn cstr(&mut self) -> Result<&'a str, Error> {
        let n = self.0.iter().position(|b| *b == 0).ok_or_else(|| protocol("invalid string in message"))?;
        let text = utf8(&self.0[..n])?;
        self.0 = &self.0[n + 1..];
        Ok(text)
    }

    pub(crate) fn end(&self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed()) }
    }
}

/// Query: the text.
pub(crate) fn query(body: &[u8]) -> Result<&str, Error> {
    match body.split_last() {
        Some((0, text)) if text.contains(&0) => Err(zero_byte()),
        Some((0, text)) => utf8(text),
        _ => Err(protocol("invalid string in message")),
    }
}

/// Parse.
pub(crate) fn parse(body: &[u8]) -> Result<Parse<'_>, Error> {
    let mut r = Reader::new(body);
    let name = r.cstr()?;
    let text = r.cstr()?;
    let count = usize::from(r.u16()?);
    let types = r.take(4 * count)?;
    r.end()?;
    Ok(Parse { name, text, types })
}

/// Bind, up to the parameters' contents, whose lengths are checked.
pub(crate) fn bind(body: &[u8]) -> Result<Bind<'_>, Error> {
    let mut r = Reader::new(body);
    let portal = r.cstr()?;
    let statement = r.cstr()?;
    let count = usize::from(r.u16()?);
    let parameter_formats = r.take(2 * count)?;
    let parameter_count = usize::from(r.u16()?);
    let from = r.0;
    for _ in 0..parameter_count {
        let n = r.i32()?;
        if n < -1 {
            return Err(malformed());
        }
        r.take(usize::try_from(n).unwrap_or(0))?;
    }
    let parameters = &from[..from.len() - r.0.len()];
    let count = usize::from(r.u16()?);
    let result_formats = r.take(2 * count)?;
    r.end()?;
    Ok(Bind { portal, statement, parameter_formats, parameter_count, parameters, result_formats })
}

/// The parameters of a Bind: `None` is NULL.
pub(crate) struct Values<'a>(Reader<'a>);

impl<'a> Values<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Values<'a> {
        Values(Reader::new(bytes))
    }

    pub(crate) fn next(&mut self) -> Result<Option<&'a [u8]>, Error> {
        let n = self.0.i32()?;
        match usize::try_from(n) {
            Ok(n) => Ok(Some(self.0.take(n)?)),
            Err(_) => Ok(None),
        }
    }
}

/// Describe and Close: what, and its name.
pub(crate) fn target<'a>(body: &'a [u8], message: &str) -> Result<(Target, &'a str), Error> {
    let mut r = Reader::new(body);
    let target = match r.u8()? {
        b'S' => Target::Statement,
        b'P' => Target::Portal,
        other => return Err(protocol(format!("invalid {message} message subtype {other}"))),
    };
    let name = r.cstr()?;
    r.end()?;
    Ok((target, name))
}

/// Execute: portal and row limit; 0 and less mean none.
pub(crate) fn execute(body: &[u8]) -> Result<(&str, usize), Error> {
    let mut r = Reader::new(body);
    let name = r.cstr()?;
    let limit = r.i32()?;
    r.end()?;
    Ok((name, usize::try_from(limit).unwrap_or(0)))
}

/// CopyFail: the reason.
pub(crate) fn copy_fail(body: &[u8]) -> Result<&str, Error> {
    let mut r = Reader::new(body);
    let reason = r.cstr()?;
    r.end()?;
    Ok(reason)
}

/// The format code for item `i` of `n` in a list of 0 (all text), 1 (for all) or `n` codes: is it binary?
#[inline]
pub(crate) fn format_code(codes: &[u8], i: usize) -> Result<bool, Error> {
    let code = match codes.len() {
        0 => 0,
        2 => i16::from_be_bytes([codes[0], codes[1]]),
        _ => match codes.get(2 * i..2 * i + 2) {
            Some(c) => i16::from_be_bytes([c[0], c[1]]),
            None => return Err(protocol(format!("no format code for item {i}"))),
        },
    };
    match code {
        0 => Ok(false),
        1 => Ok(true),
        other => {
            Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("unsupported format code: {other}")))
        }
    }
}
