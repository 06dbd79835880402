//! The text and csv forms of COPY: bytes to fields and values to lines.
//!
//! [`CopyReader`] takes the data as it comes, in pieces cut anywhere, and gives one row of raw fields at a time;
//! [`CopyWriter`] appends one line per row. Neither knows tables: types and defaults are the session's.
//!
//! Failure: 22P04 with the line for rows that do not fit, 22021 for bytes that are not UTF-8, 54000 for a line over
//! [`LINE_BYTES_MAX`]. Missing: binary format, FORCE_QUOTE and its kin, other encodings.

use isochrone_types::{Datum, Error, Settings, SqlState, Type};

/// Longest line (csv: record) taken.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// What stands in the options of COPY.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyOptions {
    /// csv rather than text.
    pub csv: bool,
    /// Between fields.
    pub delimiter: u8,
    /// What NULL looks like.
    pub null: String,
    /// A line of names comes first.
    pub header: bool,
    /// And it must match the columns.
    pub header_match: bool,
    /// csv: around fields.
    pub quote: u8,
    /// csv: before a quote in quotes.
    pub escape: u8,
    /// Accepted: rows are visible to all at once here anyway.
    pub freeze: bool,
}

impl Default for CopyOptions {
    fn default() -> CopyOptions {
        CopyOptions {
            csv: false,
            delimiter: b'\t',
            null: "\\N".to_string(),
            header: false,
            header_match: false,
            quote: b'"',
            escape: b'"',
            freeze: false,
        }
    }
}

fn one_byte(name: &str, value: &str) -> Result<u8, Error> {
    match value.as_bytes() {
        [b] if *b != b'\n' && *b != b'\r' => Ok(*b),
        [_] => Err(Error::invalid_parameter(format!("COPY {name} cannot be newline or carriage return"))),
        _ => Err(Error::unsupported(format!("COPY {name} of more than one byte"))),
    }
}

impl CopyOptions {
    /// Takes the options as written: names in lower case with their values.
    pub fn set_all(&mut self, given: &[(String, String)], from: bool) -> Result<(), Error> {
        for (i, (name, _)) in given.iter().enumerate() {
            if given[..i].iter().any(|(n, _)| n == name) {
                return Err(Error::syntax("conflicting or redundant options"));
            }
        }
        let get = |name: &str| given.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let boolean = |name: &str| match get(name) {
            None => Ok(false),
            Some(v) => crate::settings::parse_bool(v)
                .ok_or_else(|| Error::syntax(format!("{name} requires a Boolean value"))),
        };
        match get("format") {
            None | Some("text") => {}
            Some("csv") => {
                self.csv = true;
                self.delimiter = b',';
                self.null = String::new();
            }
            Some("binary") => return Err(Error::unsupported("COPY in binary format")),
            Some(other) => {
                return Err(Error::invalid_parameter(format!("COPY format \"{other}\" not recognized")));
            }
        }
        for (name, value) in given {
            match name.as_str() {
                "format" => {}
                "delimiter" => self.delimiter = one_byte(name, value)?,
                "null" => self.null = value.clone(),
                "header" => {
                    if value == "match" {
                        if !from {
                            return Err(Error::unsupported("HEADER MATCH with COPY TO"));
                        }
                        self.header = true;
                        self.header_match = true;
                    } else {
                        self.header = boolean("header")?;
                    }
                }
                "freeze" => self.freeze = boolean("freeze")?,
                "quote" if self.csv => self.quote = one_byte(name, value)?,
                "escape" if self.csv => self.escape = one_byte(name, value)?,
                "quote" | "escape" => {
                    return Err(Error::unsupported(format!("COPY {name} without CSV")));
                }
                "encoding" => {
                    let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
                    if !plain.eq_ignore_ascii_case("utf8") {
                        return Err(Error::unsupported(format!("COPY ENCODING {value}")));
                    }
                }
                other => return Err(Error::syntax(format!("option \"{other}\" not recognized"))),
            }
        }
        if self.csv && get("escape").is_none() {
            self.escape = self.quote;
        }
        if self.null.contains(['\n', '\r']) {
            return Err(Error::invalid_parameter(
                "COPY null representation cannot use newline or carriage return",
            ));
        }
        if self.null.as_bytes().contains(&self.delimiter) {
            return Err(Error::unsupported("COPY delimiter inside the NULL specification"));
        }
        if !self.csv && (self.delimiter.is_ascii_alphanumeric() || b"\\.".contains(&self.delimiter)) {
            return Err(Error::invalid_parameter(format!(
                "COPY delimiter cannot be \"{}\"",
                self.delimiter as char
            )));
        }
        if self.csv && self.delimiter == self.quote {
            return Err(Error::invalid_parameter("COPY delimiter and quote must be different"));
        }
        Ok(())
    }
}

/// One row of raw fields; reused from row to row.
#[derive(Default, Debug)]
pub struct Fields {
    bytes: Vec<u8>,
    /// End of each field in `bytes`, and whether it is NULL.
    ends: Vec<(usize, bool)>,
}

impl Fields {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The i-th; `None` is NULL. 22021 when it is not UTF-8.
    pub fn get(&self, i: usize) -> Result<Option<&str>, Error> {
        let from = if i == 0 { 0 } else { self.ends[i - 1].0 };
        let (to, null) = self.ends[i];
        if null {
            return Ok(None);
        }
        let bytes = &self.bytes[from..to];
        match std::str::from_utf8(bytes) {
            Ok(s) if !s.contains('\0') => Ok(Some(s)),
            Ok(_) => Err(Error::new(
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                "invalid byte sequence for encoding \"UTF8\": 0x00",
            )),
            Err(e) => Err(Error::new(
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                format!("invalid byte sequence for encoding \"UTF8\": 0x{:02x}", bytes[e.valid_up_to()]),
            )),
        }
    }
}

/// Bytes to rows.
#[derive(Debug)]
pub struct CopyReader {
    options: CopyOptions,
    buf: Vec<u8>,
    /// Read position in `buf`.
    at: usize,
    /// Up to here (from `at`) no end of line was found.
    scanned: usize,
    in_quotes: bool,
    /// Lines taken so far.
    line: u64,
    ended: bool,
}

impl CopyReader {
    /// For these options.
    pub fn new(options: CopyOptions) -> CopyReader {
        CopyReader { options, buf: Vec::new(), at: 0, scanned: 0, in_quotes: false, line: 0, ended: false }
    }

    /// The number of the line that was given last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// More data.
    pub fn feed(&mut self, data: &[u8]) {
        if self.at > 0 && (self.at > 64 << 10 || self.at == self.buf.len()) {
            self.buf.drain(..self.at);
            self.at = 0;
        }
        if !self.ended {
            self.buf.extend_from_slice(data);
        }
    }

    /// The end of the next line within the buffer: its end and where the next begins.
    fn find_line(&mut self, finished: bool) -> Result<Option<(usize, usize)>, Error> {
        let (quote, escape) = (self.options.quote, self.options.escape);
        let mut i = self.at + self.scanned;
        while i < self.buf.len() {
            let b = self.buf[i];
            if self.options.csv && self.in_quotes && b == escape && escape != quote {
                // An escaped character: both bytes must be here to go on.
                if i + 1 >= self.buf.len() && !finished {
                    break;
                }
                i += 2;
                continue;
            }
            match b {
                b if self.options.csv && b == quote => self.in_quotes = !self.in_quotes,
                b'\\' if !self.options.csv => {
                    if i + 1 >= self.buf.len() && !finished {
                        break;
                    }
                    i += 2;
                    continue;
                }
                b'\n' if !self.in_quotes => {
                    return Ok(Some((i, i + 1)));
                }
                b'\r' if !self.in_quotes => {
                    match self.buf.get(i + 1) {
                        Some(b'\n') => return Ok(Some((i, i + 2))),
                        Some(_) => return Ok(Some((i, i + 1))),
                        None if finished => return Ok(Some((i, i + 1))),
                        // Whether a newline follows is not known yet.
                        None => break,
                    }
                }
                _ => {}
            }
            i += 1;
        }
        let i = i.min(self.buf.len());
        self.scanned = i - self.at;
        if self.scanned > LINE_BYTES_MAX {
            return Err(Error::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("COPY line {} is longer than {LINE_BYTES_MAX} bytes", self.line + 1),
            ));
        }
        if finished && self.at < self.buf.len() {
            if self.in_quotes {
                return Err(bad_format("unterminated CSV quoted field"));
            }
            return Ok(Some((self.buf.len(), self.buf.len())));
        }
        Ok(None)
    }

    /// The next row, if a whole one is here; `finished` says that no more data comes. Header lines are given, too:
    /// they are the first row.
    pub fn next(&mut self, finished: bool, fields: &mut Fields) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        let Some((end, next)) = self.find_line(finished)? else { return Ok(false) };
        let line = self.at..end;
        self.at = next;
        self.scanned = 0;
        self.in_quotes = false;
        self.line += 1;
        if self.buf[line.clone()] == *b"\\." {
            self.ended = true;
            return Ok(false);
        }
        fields.bytes.clear();
        fields.ends.clear();
        if self.options.csv {
            self.parse_csv(line, fields)
        } else {
            self.parse_text(line, fields)
        }
        Ok(true)
    }

    fn parse_text(&self, line: std::ops::Range<usize>, fields: &mut Fields) {
        let b = &self.buf[line];
        let (null, delimiter) = (self.options.null.as_bytes(), self.options.delimiter);
        let mut i = 0;
        loop {
            let start = i;
            let out_start = fields.bytes.len();
            while i < b.len() && b[i] != delimiter {
                if b[i] != b'\\' {
                    fields.bytes.push(b[i]);
                    i += 1;
                    continue;
                }
                i += 1;
                let Some(&c) = b.get(i) else {
                    fields.bytes.push(b'\\');
                    break;
                };
                i += 1;
                let byte = match c {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 11,
                    b'0'..=b'7' => {
                        let mut v = u32::from(c - b'0');
                        for _ in 0..2 {
                            match b.get(i) {
                                Some(d @ b'0'..=b'7') => v = v * 8 + u32::from(d - b'0'),
                                _ => break,
                            }
                            i += 1;
                        }
                        v as u8
                    }
                    b'x' if b.get(i).is_some_and(u8::is_ascii_hexdigit) => {
                        let mut v = 0;
                        for _ in 0..2 {
                            match b.get(i).and_then(|d| (*d as char).to_digit(16)) {
                                Some(d) => v = v * 16 + d,
                                None => break,
                            }
                            i += 1;
                        }
                        v as u8
                    }
                    other => other,
                };
                fields.bytes.push(byte);
            }
            let is_null = &b[start..i] == null;
            if is_null {
                fields.bytes.truncate(out_start);
            }
            fields.ends.push((fields.bytes.len(), is_null));
            if i >= b.len() {
                return;
            }
            i += 1;
        }
    }

    fn parse_csv(&self, line: std::ops::Range<usize>, fields: &mut Fields) {
        let b = &self.buf[line];
        let o = &self.options;
        let mut i = 0;
        loop {
            let out_start = fields.bytes.len();
            let mut quoted = false;
            let mut in_quotes = false;
            while i < b.len() && (in_quotes || b[i] != o.delimiter) {
                let c = b[i];
                let next = b.get(i + 1).copied();
                if in_quotes && c == o.escape && next.is_some_and(|n| n == o.quote || n == o.escape) {
                    fields.bytes.push(b[i + 1]);
                    i += 2;
                } else if c == o.quote {
                    in_quotes = !in_quotes;
                    quoted = true;
                    i += 1;
                } else {
                    fields.bytes.push(c);
                    i += 1;
                }
            }
            let is_null = !quoted && fields.bytes[out_start..] == *o.null.as_bytes();
            if is_null {
                fields.bytes.truncate(out_start);
            }
            fields.ends.push((fields.bytes.len(), is_null));
            if i >= b.len() {
                return;
            }
            i += 1;
        }
    }
}

fn bad_format(message: impl Into<String>) -> Error {
    Error::new(SqlState::BAD_COPY_FILE_FORMAT, message)
}

/// 22P04 unless the row has a field for each of the columns.
pub fn check_count(fields: &Fields, columns: &[&str]) -> Result<(), Error> {
    if fields.len() > columns.len() {
        return Err(bad_format("extra data after last expected column"));
    }
    if fields.len() < columns.len() {
        return Err(bad_format(format!("missing data for column \"{}\"", columns[fields.len()])));
    }
    Ok(())
}

/// 22P04 unless the header names the columns in their order.
pub fn check_header(fields: &Fields, columns: &[&str]) -> Result<(), Error> {
    if fields.len() != columns.len() {
        return Err(bad_format(format!(
            "wrong number of fields in header line: got {}, expected {}",
            fields.len(),
            columns.len()
        )));
    }
    for (i, name) in columns.iter().enumerate() {
        let got = fields.get(i)?.unwrap_or_default();
        if got != *name {
            return Err(bad_format(format!(
                "column name mismatch in header line field {}: got \"{got}\", expected \"{name}\"",
                i + 1
            )));
        }
    }
    Ok(())
}

/// Rows to lines.
#[derive(Debug)]
pub struct CopyWriter {
    options: CopyOptions,
    types: Vec<Type>,
    text: Vec<u8>,
}

impl CopyWriter {
    /// For rows of these types.
    pub fn new(options: CopyOptions, types: Vec<Type>) -> CopyWriter {
        CopyWriter { options, types, text: Vec::new() }
    }

    /// The header line, if one is wanted.
    pub fn header(&mut self, names: &[&str], out: &mut Vec<u8>) {
        if !self.options.header {
            return;
        }
        for (i, name) in names.iter().enumerate() {
            if i > 0 {
                out.push(self.options.delimiter);
            }
            self.text.clear();
            self.text.extend_from_slice(name.as_bytes());
            self.field(out, names.len() == 1);
        }
        out.push(b'\n');
    }

    /// One row.
    pub fn row(&mut self, row: &[Datum], settings: &Settings, out: &mut Vec<u8>) {
        for (i, datum) in row.iter().enumerate() {
            if i > 0 {
                out.push(self.options.delimiter);
            }
            if datum.is_null() {
                out.extend_from_slice(self.options.null.as_bytes());
                continue;
            }
            self.text.clear();
            isochrone_types::text::write_text(datum, &self.types[i], settings, &mut self.text);
            self.field(out, row.len() == 1);
        }
        out.push(b'\n');
    }

    fn field(&self, out: &mut Vec<u8>, alone: bool) {
        let o = &self.options;
        if !o.csv {
            for &b in &self.text {
                let escaped = match b {
                    8 => b'b',
                    12 => b'f',
                    b'\n' => b'n',
                    b'\r' => b'r',
                    b'\t' => b't',
                    11 => b'v',
                    b'\\' => b'\\',
                    b if b == o.delimiter => b,
                    _ => {
                        out.push(b);
                        continue;
                    }
                };
                out.extend_from_slice(&[b'\\', escaped]);
            }
            return;
        }
        let special = |b: &u8| [o.delimiter, o.quote, b'\n', b'\r'].contains(b);
        let quote =
            self.text == o.null.as_bytes() || self.text.iter().any(special) || (alone && self.text == b"\\.");
        if !quote {
            out.extend_from_slice(&self.text);
            return;
        }
        out.push(o.quote);
        for &b in &self.text {
            if b == o.quote || b == o.escape {
                out.push(o.escape);
            }
            out.push(b);
        }
        out.push(o.quote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(options: &CopyOptions, data: &[u8], piece: usize) -> Result<Vec<Vec<Option<String>>>, Error> {
        let mut r = CopyReader::new(options.clone());
        let mut f = Fields::default();
        let mut out = Vec::new();
        let mut take = |r: &mut CopyReader, finished| -> Result<(), Error> {
            while r.next(finished, &mut f)? {
                out.push(
                    (0..f.len()).map(|i| Ok(f.get(i)?.map(str::to_string))).collect::<Result<_, Error>>()?,
                );
            }
            Ok(())
        };
        for chunk in data.chunks(piece) {
            r.feed(chunk);
            take(&mut r, false)?;
        }
        take(&mut r, true)?;
        Ok(out)
    }

    fn strings(row: &[Option<&str>]) -> Vec<Option<String>> {
        row.iter().map(|s| s.map(str::to_string)).collect()
    }

    #[test]
    fn text_rows_in_pieces_of_any_size() {
        let data = b"1\ta\\tb\\n\\\\\\x41\\101\r\n2\t\\N\n\n3\tx\\\ny\n\\.\nrest";
        for piece in 1..data.len() {
            let got = rows(&CopyOptions::default(), data, piece).unwrap();
            assert_eq!(
                got,
                [
                    strings(&[Some("1"), Some("a\tb\n\\AA")]),
                    strings(&[Some("2"), None]),
                    strings(&[Some("")]),
                    strings(&[Some("3"), Some("x\ny")]),
                ],
                "pieces of {piece}"
            );
        }
        assert_eq!(rows(&CopyOptions::default(), b"a\xff\n", 9).unwrap_err().sqlstate.code(), "22021");
    }

    #[test]
    fn csv_rows_in_pieces_of_any_size() {
        let mut o = CopyOptions::default();
        o.set_all(&[("format".into(), "csv".into())], true).unwrap();
        let data = b"a,\"b,\"\"c\nd\",\n\"\",,x\"y\"z\r\nlast,1,2";
        for piece in 1..data.len() {
            let got = rows(&o, data, piece).unwrap();
            assert_eq!(
                got,
                [
                    strings(&[Some("a"), Some("b,\"c\nd"), None]),
                    strings(&[Some(""), None, Some("xyz")]),
                    strings(&[Some("last"), Some("1"), Some("2")]),
                ],
                "pieces of {piece}"
            );
        }
        assert_eq!(rows(&o, b"\"open\n", 9).unwrap_err().sqlstate.code(), "22P04");
        o.escape = b'\\';
        let got = rows(&o, b"\"a\\\"b\\\\\",c\n", 3).unwrap();
        assert_eq!(got, [strings(&[Some("a\"b\\"), Some("c")])]);
    }

    #[test]
    fn options_are_checked() {
        let set = |given: &[(&str, &str)]| {
            let given: Vec<_> = given.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
            CopyOptions::default().set_all(&given, true).map_err(|e| e.sqlstate.code())
        };
        assert_eq!(set(&[("format", "csv"), ("quote", "'"), ("freeze", "on")]), Ok(()));
        assert_eq!(set(&[("format", "binary")]), Err("0A000"));
        assert_eq!(set(&[("delimiter", "ab")]), Err("0A000"));
        assert_eq!(set(&[("delimiter", "a")]), Err("22023"));
        assert_eq!(set(&[("null", "x\n")]), Err("22023"));
        assert_eq!(set(&[("nonsense", "x")]), Err("42601"));
        assert_eq!(set(&[("header", "on"), ("header", "on")]), Err("42601"));
    }
}
