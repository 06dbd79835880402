//! Scripts to statements: where each statement's text begins and ends, and what kind it is.
//!
//! Only enough is looked at to find the semicolons (strings, quoted names, dollar quotes, comments) and the first
//! word: a statement whose plan is cached is found by its text and never parsed.

use std::ops::Range;

/// The byte ranges of the statements of a script, without surrounding blanks, comments in front, and semicolons.
/// Empty statements are left out. An open string or comment ends with the script: the parser says what is wrong.
pub fn split(sql: &str) -> Vec<Range<usize>> {
    let b = sql.as_bytes();
    let mut out = Vec::new();
    let mut start = skip_blank(b, 0);
    let mut i = start;
    while i < b.len() {
        match b[i] {
            b';' => {
                push(sql, &mut out, start, i);
                start = skip_blank(b, i + 1);
                i = start;
            }
            b'\'' => {
                let escapes = i > 0
                    && matches!(b[i - 1], b'e' | b'E')
                    && (i < 2 || !(b[i - 2].is_ascii_alphanumeric() || b[i - 2] == b'_'));
                i = end_of_quote(b, i, b'\'', escapes);
            }
            b'"' => i = end_of_quote(b, i, b'"', false),
            b'$' if i == 0 || !is_name(b[i - 1]) => i = end_of_dollar(b, i),
            b'-' if b.get(i + 1) == Some(&b'-') => i = end_of_line(b, i),
            b'/' if b.get(i + 1) == Some(&b'*') => i = end_of_comment(b, i),
            _ => i += 1,
        }
    }
    push(sql, &mut out, start, b.len());
    out
}

fn push(sql: &str, out: &mut Vec<Range<usize>>, start: usize, end: usize) {
    let end = end.max(start);
    let text = sql[start..end].trim_end();
    if !text.is_empty() {
        out.push(start..start + text.len());
    }
}

fn is_name(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80
}

fn end_of_quote(b: &[u8], start: usize, quote: u8, escapes: bool) -> usize {
    let mut i = start + 1;
    while i < b.len() {
        if escapes && b[i] == b'\\' {
            i += 2;
        } else if b[i] == quote {
            if b.get(i + 1) != Some(&quote) {
                return i + 1;
            }
            i += 2;
        } else {
            i += 1;
        }
    }
    b.len()
}

fn end_of_dollar(b: &[u8], start: usize) -> usize {
    let mut end = start + 1;
    while end < b.len() && is_name(b[end]) {
        end += 1;
    }
    // `$1` is a parameter.
    if b.get(end) != Some(&b'$') || b.get(start + 1).is_some_and(u8::is_ascii_digit) {
        return end;
    }
    let tag = &b[start..=end];
    let body = end + 1;
    match b[body..].windows(tag.len()).position(|w| w == tag) {
        Some(at) => body + at + tag.len(),
        None => b.len(),
    }
}

fn end_of_line(b: &[u8], start: usize) -> usize {
    b[start..].iter().position(|c| *c == b'\n').map_or(b.len(), |n| start + n + 1)
}

fn end_of_comment(b: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start + 2, 1);
    while i < b.len() {
        match (b[i], b.get(i + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                i += 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    b.len()
}

fn skip_blank(b: &[u8], mut i: usize) -> usize {
    while i < b.len() {
        match b[i] {
            c if c.is_ascii_whitespace() => i += 1,
            b'-' if b.get(i + 1) == Some(&b'-') => i = end_of_line(b, i),
            b'/' if b.get(i + 1) == Some(&b'*') => i = end_of_comment(b, i),
            _ => break,
        }
    }
    i
}

/// The first word of a statement, in lower case; empty when it does not begin with a word.
pub fn first_word(text: &str) -> String {
    text.bytes().take_while(|b| is_name(*b)).map(|b| b.to_ascii_lowercase() as char).collect()
}

/// Does the statement go to the planner (rather than being run by the session itself)?
pub fn is_query(text: &str) -> bool {
    let first = text.as_bytes().first().copied().unwrap_or(0);
    if first == b'(' {
        return true;
    }
    let n = text.bytes().take_while(|b| is_name(*b)).count();
    ["select", "insert", "update", "delete", "with", "values", "table", "merge"]
        .iter()
        .any(|w| text[..n].eq_ignore_ascii_case(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        split(sql).into_iter().map(|r| &sql[r]).collect()
    }

    #[test]
    fn finds_the_semicolons_that_part_statements() {
        assert_eq!(texts(" ; -- a;\n ;"), Vec::<&str>::new());
        assert_eq!(
            texts(
                "select ';', \";\", E'\\';' ; /* ; /* ; */ ; */ insert into t values ($1, $$;$$, $a$ ; $a$) -- x;\n;b"
            ),
            ["select ';', \";\", E'\\';'", "insert into t values ($1, $$;$$, $a$ ; $a$) -- x;", "b"]
        );
        assert_eq!(texts("select 'open ; "), ["select 'open ;"]);
        assert_eq!(texts("select 'it''s;'; x"), ["select 'it''s;'", "x"]);
        assert_eq!(texts("a/* open ;"), ["a/* open ;"]);
        assert_eq!(texts("é'ü;'; ß"), ["é'ü;'", "ß"]);
        assert!(is_query("SELECT 1") && is_query("(select 1)") && !is_query("selects") && !is_query("BEGIN"));
        assert_eq!(first_word("Begin;"), "begin");
    }
}
