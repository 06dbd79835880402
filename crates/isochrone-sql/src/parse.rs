//! Text to the parser's tree, within bounds.
//!
//! `sqlparser` builds, clones and drops its tree by recursion: parentheses, subqueries and prefix operators nest as
//! deep as the text does, and a chain of binary operators (`a OR b OR ..`) is a tree as deep as the chain is long.
//! So the tokens are looked over before they are parsed.
//!
//! Invariants
//!   Q1  No text makes the parser, the binder or a drop run deeper than [`NESTING_DEPTH_MAX`] brackets or
//!       [`CHAIN_LENGTH_MAX`] operators of one chain; both fit a stack of [`STACK_BYTES_MIN`].
//!   Q2  Every token belongs to exactly one statement, in the order of the text.
//!
//! Failure: 42601 with the position for what is not SQL, 54001 past a bound, 54000 for a text that is too long.
//! Missing: PostgreSQL's own wording for most syntax errors (`syntax error at or near` is given where the parser says
//! which token it met).

use std::ops::Range;

use isochrone_base::limits::{NESTING_DEPTH_MAX, STATEMENT_BYTES_MAX};
use isochrone_types::{Error, SqlState};
use sqlparser::ast::Statement;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

/// Operators between two commas or brackets of one level; more are 54001.
pub const CHAIN_LENGTH_MAX: usize = 2_000;
/// The stack a thread needs that parses, binds or drops statements.
pub const STACK_BYTES_MIN: usize = 8 << 20;

static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// A statement and where it stands in the script.
#[derive(Debug)]
pub struct Parsed {
    /// The parser's tree; its locations are those of the whole script.
    pub statement: Statement,
    /// Bytes of the script that the statement takes, without the semicolon.
    pub range: Range<usize>,
}

/// Maps the parser's lines and columns to places in the text.
pub(crate) struct Places<'a> {
    text: &'a str,
}

impl<'a> Places<'a> {
    /// For the text that was tokenized.
    pub fn new(text: &'a str) -> Places<'a> {
        Places { text }
    }

    /// Byte offset of a location; `None` where the parser did not keep it.
    pub fn byte(&self, at: Location) -> Option<usize> {
        if at.line == 0 {
            return None;
        }
        let mut start = 0;
        for _ in 1..at.line {
            start += self.text[start..].find('\n')? + 1;
        }
        let line = &self.text[start..];
        let column = at.column.saturating_sub(1) as usize;
        Some(line.char_indices().nth(column).map_or(self.text.len(), |(i, _)| start + i))
    }

    /// Position as the protocol counts: characters from 1.
    pub fn position(&self, at: Location) -> Option<u32> {
        let byte = self.byte(at)?;
        u32::try_from(self.text[..byte].chars().count() + 1).ok()
    }
}

/// Parses a script of any number of statements.
pub fn parse(script: &str) -> Result<Vec<Parsed>, Error> {
    if script.len() > STATEMENT_BYTES_MAX {
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("statement of {} bytes is longer than {STATEMENT_BYTES_MAX}", script.len()),
        ));
    }
    let places = Places::new(script);
    let tokens = Tokenizer::new(&DIALECT, script).tokenize_with_location().map_err(|e| {
        let error = Error::syntax(lower_first(&e.message));
        match places.position(e.location) {
            Some(p) => error.with_position(p),
            None => error,
        }
    })?;
    check_depth(&tokens, &places)?;
    let tokens = crate::parse_locks::rewrite(tokens);

    // One forward pass turns token locations into bytes, so that long scripts cost linear time.
    let mut offsets = OffsetCursor::new(script);
    let mut out = Vec::new();
    let mut current: Vec<TokenWithSpan> = Vec::new();
    let mut start = None;
    let mut end = 0;
    for token in tokens {
        match &token.token {
            Token::SemiColon => {
                if let Some(s) = start.take() {
                    out.push(parse_one(std::mem::take(&mut current), s..end, &places)?);
                }
                current.clear();
            }
            Token::EOF => {}
            Token::Whitespace(_) => current.push(token),
            _ => {
                let from = offsets.byte(token.span.start);
                if start.is_none() {
                    start = Some(from);
                }
                end = offsets.byte(token.span.end);
                current.push(token);
            }
        }
    }
    if let Some(s) = start {
        out.push(parse_one(current, s..end, &places)?);
    }
    Ok(out)
}

/// Parses exactly one expression, as stored for DEFAULT and CHECK.
pub fn parse_expression(text: &str) -> Result<sqlparser::ast::Expr, Error> {
    let places = Places::new(text);
    let tokens = Tokenizer::new(&DIALECT, text)
        .tokenize_with_location()
        .map_err(|e| Error::syntax(lower_first(&e.message)))?;
    check_depth(&tokens, &places)?;
    let mut parser = parser().with_tokens_with_locations(tokens);
    let expr = parser.parse_expr().map_err(|e| syntax_error(e, &places, None))?;
    match parser.peek_token().token {
        Token::EOF => Ok(expr),
        other => Err(Error::syntax(format!("syntax error at or near \"{other}\""))),
    }
}

fn parser() -> Parser<'static> {
    // Every bracket costs the parser at most two of its steps.
    Parser::new(&DIALECT).with_recursion_limit(2 * NESTING_DEPTH_MAX + 8)
}

fn parse_one(tokens: Vec<TokenWithSpan>, range: Range<usize>, places: &Places) -> Result<Parsed, Error> {
    let last = tokens.iter().rev().find(|t| !matches!(t.token, Token::Whitespace(_))).cloned();
    let mut parser = parser().with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().map_err(|e| syntax_error(e, places, last.as_ref()))?;
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let error = Error::syntax(format!("syntax error at or near \"{}\"", next.token));
        return Err(match places.position(next.span.start) {
            Some(p) => error.with_position(p),
            None => error,
        });
    }
    Ok(Parsed { statement, range })
}

fn lower_first(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_lowercase().chain(chars).collect())
}

/// The parser says `Expected: x, found: y at Line: 1, Column: 7`.
fn syntax_error(e: ParserError, places: &Places, last: Option<&TokenWithSpan>) -> Error {
    let message = match e {
        ParserError::RecursionLimitExceeded => {
            return Error::new(
                SqlState::STATEMENT_TOO_COMPLEX,
                format!("statement nests deeper than {NESTING_DEPTH_MAX} levels"),
            );
        }
        ParserError::TokenizerError(m) | ParserError::ParserError(m) => m,
    };
    let (text, location) = match message.rsplit_once(" at Line: ") {
        Some((text, at)) => (text.to_owned(), parse_location(at)),
        None => (message, None),
    };
    let found = text.rsplit_once("found: ").map(|(_, f)| f.to_owned());
    let error = match found.as_deref() {
        Some("EOF") => {
            let error = Error::syntax("syntax error at end of input").with_detail(text);
            return match last.and_then(|l| places.position(l.span.end)) {
                Some(p) => error.with_position(p),
                None => error,
            };
        }
        Some(token) => Error::syntax(format!("syntax error at or near \"{token}\"")).with_detail(text),
        None => Error::syntax(lower_first(&text)),
    };
    // The parser sometimes names the place of the token after the one it met.
    let at = location.and_then(|l| places.byte(l)).map(|byte| match found.as_deref() {
        Some(token) if !places.text[byte..].starts_with(token) => {
            places.text[..byte].rfind(token).unwrap_or(byte)
        }
        _ => byte,
    });
    match at.and_then(|byte| u32::try_from(places.text[..byte].chars().count() + 1).ok()) {
        Some(p) => error.with_position(p),
        None => error,
    }
}

fn parse_location(at: &str) -> Option<Location> {
    let (line, column) = at.split_once(", Column: ")?;
    Some(Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?))
}

/// Q1.
fn check_depth(tokens: &[TokenWithSpan], places: &Places) -> Result<(), Error> {
    let mut chains: Vec<usize> = vec![0];
    // Set operations chain across commas; CASE nests without brackets.
    let mut sets: Vec<usize> = vec![0];
    let mut cases = 0usize;
    // Prefix operators in a row nest, too.
    let mut prefixes = 0usize;
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            Token::Plus | Token::Minus | Token::Tilde => prefixes += 1,
            Token::Word(w) if w.keyword == Keyword::NOT => prefixes += 1,
            _ => prefixes = 0,
        }
        if prefixes > NESTING_DEPTH_MAX {
            return Err(too_complex(
                format!("statement nests deeper than {NESTING_DEPTH_MAX} levels"),
                token,
                places,
            ));
        }
        let counts = match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                chains.push(0);
                sets.push(0);
                if chains.len() > NESTING_DEPTH_MAX {
                    return Err(too_complex(
                        format!("statement nests deeper than {NESTING_DEPTH_MAX} levels"),
                        token,
                        places,
                    ));
                }
                continue;
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                if chains.len() > 1 {
                    chains.pop();
                    sets.pop();
                }
                continue;
            }
            Token::SemiColon => {
                chains = vec![0];
                sets = vec![0];
                cases = 0;
                continue;
            }
            Token::Comma => {
                *chains.last_mut().expect("one level always remains") = 0;
                continue;
            }
            Token::Word(w) => match w.keyword {
                Keyword::CASE => {
                    cases += 1;
                    if cases > NESTING_DEPTH_MAX {
                        return Err(too_complex(
                            format!("statement nests deeper than {NESTING_DEPTH_MAX} levels"),
                            token,
                            places,
                        ));
                    }
                    false
                }
                Keyword::END => {
                    cases = cases.saturating_sub(1);
                    false
                }
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => {
                    let n = sets.last_mut().expect("one level always remains");
                    *n += 1;
                    if *n > CHAIN_LENGTH_MAX {
                        return Err(too_complex(
                            format!("more than {CHAIN_LENGTH_MAX} set operations in a row"),
                            token,
                            places,
                        ));
                    }
                    false
                }
                Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::NOTNULL
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::OVERLAPS
                | Keyword::OPERATOR => true,
                _ => false,
            },
            Token::EOF
            | Token::Whitespace(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DollarQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::DoubleQuotedString(_)
            | Token::Placeholder(_)
            | Token::Period => false,
            _ => true,
        };
        if counts {
            let n = chains.last_mut().expect("one level always remains");
            *n += 1;
            if *n > CHAIN_LENGTH_MAX {
                return Err(too_complex(
                    format!("expression has more than {CHAIN_LENGTH_MAX} operators in a row"),
                    token,
                    places,
                ));
            }
        }
    }
    Ok(())
}

fn too_complex(message: String, token: &TokenWithSpan, places: &Places) -> Error {
    let error = Error::new(SqlState::STATEMENT_TOO_COMPLEX, message);
    match places.position(token.span.start) {
        Some(p) => error.with_position(p),
        None => error,
    }
}

/// Locations to bytes for locations that only grow.
struct OffsetCursor<'a> {
    text: &'a str,
    byte: usize,
    line: u64,
    column: u64,
}

impl<'a> OffsetCursor<'a> {
    fn new(text: &'a str) -> Self {
        OffsetCursor { text, byte: 0, line: 1, column: 1 }
    }

    fn byte(&mut self, at: Location) -> usize {
        for c in self.text[self.byte..].chars() {
            if (self.line, self.column) >= (at.line, at.column) {
                break;
            }
            self.byte += c.len_utf8();
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(sql: &str) -> SqlState {
        parse(sql).expect_err("the text is bad").sqlstate
    }

    #[test]
    fn statements_know_their_text() {
        let sql = "  select 1 ;; -- x\n insert into t values ('a;b') ; ";
        let parsed = parse(sql).unwrap();
        let texts: Vec<&str> = parsed.iter().map(|p| &sql[p.range.clone()]).collect();
        assert_eq!(texts, ["select 1", "insert into t values ('a;b')"]);
        assert!(parse(" ; -- nothing\n").unwrap().is_empty());
    }

    #[test]
    fn syntax_errors_have_a_position() {
        let e = parse("select 'é', from t").unwrap_err();
        assert_eq!((e.sqlstate, e.position), (SqlState::SYNTAX_ERROR, Some(13)), "{e:?}");
        assert_eq!(code("select 'open"), SqlState::SYNTAX_ERROR);
        assert_eq!(code("select 1 select"), SqlState::SYNTAX_ERROR);
        assert_eq!(code("selec"), SqlState::SYNTAX_ERROR);
        assert_eq!(parse("select (1").unwrap_err().message, "syntax error at end of input");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES_MIN)
            .spawn(|| {
                let deep = |n: usize| format!("select {}1{}", "(".repeat(n), ")".repeat(n));
                parse(&deep(NESTING_DEPTH_MAX - 2)).unwrap();
                assert_eq!(code(&deep(NESTING_DEPTH_MAX + 2)), SqlState::STATEMENT_TOO_COMPLEX);
                assert_eq!(code(&deep(1_000_000)), SqlState::STATEMENT_TOO_COMPLEX);
                let subs = |n: usize| format!("{}1{}", "select (".repeat(n), ")".repeat(n));
                parse(&subs(60)).unwrap();
                let from = |n: usize| format!("select * from {}a{}", "(".repeat(n), ")".repeat(n));
                let _ = parse(&from(60));
                let chain = |op: &str, n: usize| format!("select 1{}", format!(" {op} 1").repeat(n));
                for op in ["or", "+", "||", "and not", "is distinct from", "union select", "::int4 +"] {
                    let _ = parse(&chain(op, 900)).map_err(|e| panic!("{op}: {e}"));
                    assert_eq!(code(&chain(op, 100_000)), SqlState::STATEMENT_TOO_COMPLEX, "{op}");
                }
                parse(&chain("or", CHAIN_LENGTH_MAX)).unwrap().clone_for_test();
                assert_eq!(
                    code(&format!("select {}1", "not ".repeat(1000))),
                    SqlState::STATEMENT_TOO_COMPLEX
                );
                assert_eq!(
                    code(&format!("select {}1", "case when ".repeat(1000))),
                    SqlState::STATEMENT_TOO_COMPLEX
                );
                let list = format!("select 1 in (1{})", ",1".repeat(100_000));
                parse(&list).unwrap();
            })
            .unwrap()
            .join()
            .unwrap();
    }

    trait CloneForTest {
        fn clone_for_test(&self);
    }
    impl CloneForTest for Vec<Parsed> {
        fn clone_for_test(&self) {
            for p in self {
                let _ = p.statement.clone();
            }
        }
    }
}
