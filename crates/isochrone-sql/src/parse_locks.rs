//! Locking clauses that the parser does not know, in words that it knows.
//!
//!     FOR NO KEY UPDATE OF a, b SKIP LOCKED
//!     FOR UPDATE OF "<mark>for no key update".a SKIP LOCKED FOR UPDATE OF "<mark>for no key update".b SKIP LOCKED
//!
//! Only FOR NO KEY UPDATE, FOR KEY SHARE and lists of tables are written anew; everything else passes. The mark begins
//! with a control character: who quotes a name like that gets a locking clause of that mode, and nothing worse.

use isochrone_txn::kv::{Lock, LockMode};
use isochrone_types::{Error, SqlState};
use sqlparser::ast;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::bind::ident;

const NO_KEY_UPDATE: &str = "\u{1}for no key update";
const KEY_SHARE: &str = "\u{1}for key share";

fn keyword(t: &TokenWithSpan) -> Keyword {
    match &t.token {
        Token::Word(w) => w.keyword,
        _ => Keyword::NoKeyword,
    }
}

/// One locking clause in the tokens from `at`, which is FOR: where it ends, and what it is in the parser's words, if
/// those differ.
fn clause(tokens: &[TokenWithSpan], at: usize) -> Option<(usize, Vec<TokenWithSpan>)> {
    // Places of what is not white space.
    let words: Vec<usize> = (at..tokens.len())
        .filter(|i| !matches!(tokens[*i].token, Token::Whitespace(_)))
        .take_while(|i| !matches!(tokens[*i].token, Token::SemiColon | Token::RParen))
        .take(4)
        .collect();
    let word = |n: usize| words.get(n).map_or(Keyword::NoKeyword, |i| keyword(&tokens[*i]));
    let (base, mark, length) = match (word(1), word(2), word(3)) {
        (Keyword::NO, Keyword::KEY, Keyword::UPDATE) => ("UPDATE", Some(NO_KEY_UPDATE), 4),
        (Keyword::KEY, Keyword::SHARE, _) => ("SHARE", Some(KEY_SHARE), 3),
        (Keyword::UPDATE, ..) => ("UPDATE", None, 2),
        (Keyword::SHARE, ..) => ("SHARE", None, 2),
        _ => return None,
    };
    let mut next = words[length - 1] + 1;
    let skip = |mut i: usize| {
        while i < tokens.len() && matches!(tokens[i].token, Token::Whitespace(_)) {
            i += 1;
        }
        i
    };
    let mut names: Vec<Vec<TokenWithSpan>> = Vec::new();
    let of = skip(next);
    if of < tokens.len() && keyword(&tokens[of]) == Keyword::OF {
        next = of + 1;
        loop {
            let mut name = Vec::new();
            let mut i = skip(next);
            while i < tokens.len() && matches!(tokens[i].token, Token::Word(_) | Token::Period) {
                let is_name = matches!(tokens[i].token, Token::Word(_));
                name.push(tokens[i].clone());
                next = i + 1;
                i = skip(next);
                if is_name && !(i < tokens.len() && tokens[i].token == Token::Period) {
                    break;
                }
            }
            if name.is_empty() {
                return None; // the parser says what is wrong
            }
            names.push(name);
            if !(i < tokens.len() && tokens[i].token == Token::Comma) {
                break;
            }
            next = i + 1;
        }
    }
    if mark.is_none() && names.len() < 2 {
        return None;
    }
    let mut patience = Vec::new();
    let i = skip(next);
    if i < tokens.len() && keyword(&tokens[i]) == Keyword::NOWAIT {
        patience.push(tokens[i].clone());
        next = i + 1;
    } else if i < tokens.len() && keyword(&tokens[i]) == Keyword::SKIP {
        let locked = skip(i + 1);
        if locked < tokens.len() && keyword(&tokens[locked]) == Keyword::LOCKED {
            patience.extend([tokens[i].clone(), tokens[locked].clone()]);
            next = locked + 1;
        }
    }
    let place = tokens[at].span;
    let put = |token: Token| TokenWithSpan { token, span: place };
    let mut out = Vec::new();
    if names.is_empty() {
        names.push(Vec::new());
    }
    for name in names {
        out.extend(["FOR", base, "OF"].map(|w| put(Token::make_keyword(w))));
        if let Some(mark) = mark {
            out.push(put(Token::make_word(mark, Some('"'))));
            if !name.is_empty() {
                out.push(put(Token::Period));
            }
        }
        out.extend(name);
        out.extend(patience.iter().cloned());
    }
    if let Some(last) = out.last_mut() {
        last.span = tokens[next - 1].span; // the statement's text ends where it did
    }
    Some((next, out))
}

/// See the module.
pub(crate) fn rewrite(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    if !tokens.iter().any(|t| keyword(t) == Keyword::FOR) {
        return tokens;
    }
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let found = if keyword(&tokens[at]) == Keyword::FOR { clause(&tokens, at) } else { None };
        match found {
            Some((next, words)) => {
                out.extend(words);
                at = next;
            }
            None => {
                out.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    out
}

/// A locking clause as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LockWish {
    /// How strongly.
    pub lock: Lock,
    /// The table; `None`: all.
    pub of: Option<String>,
    /// Whether it waits.
    pub wait: RowWait,
}

/// What a locking clause does about rows that others hold. The later ones win where clauses differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RowWait {
    /// Waits.
    Wait,
    /// SKIP LOCKED.
    Skip,
    /// NOWAIT.
    Fail,
}

/// The clause's words, for messages.
pub(crate) fn words(lock: Lock) -> &'static str {
    match lock.mode() {
        Some(LockMode::KeyShare) => "FOR KEY SHARE",
        Some(LockMode::Share) => "FOR SHARE",
        Some(LockMode::NoKeyUpdate) => "FOR NO KEY UPDATE",
        _ => "FOR UPDATE",
    }
}

/// Reads a clause back.
pub(crate) fn wish(clause: &ast::LockClause) -> Result<LockWish, Error> {
    let mut lock = match clause.lock_type {
        ast::LockType::Share => Lock::Share,
        ast::LockType::Update => Lock::Exclusive,
    };
    let mut names = Vec::new();
    for part in clause.of.iter().flat_map(|n| &n.0) {
        let name = part.as_ident().map(ident);
        names.push(name.ok_or_else(|| Error::syntax("a table is expected in a locking clause"))?);
    }
    match names.first().map(String::as_str) {
        Some(NO_KEY_UPDATE) => lock = Lock::NoKeyUpdate,
        Some(KEY_SHARE) => lock = Lock::KeyShare,
        _ => {}
    }
    if matches!(lock, Lock::NoKeyUpdate | Lock::KeyShare) {
        names.remove(0);
    }
    if names.len() > 1 {
        let text = format!("{} must specify unqualified relation names", words(lock));
        return Err(Error::new(SqlState::SYNTAX_ERROR, text));
    }
    let wait = match clause.nonblock {
        None => RowWait::Wait,
        Some(ast::NonBlock::SkipLocked) => RowWait::Skip,
        Some(ast::NonBlock::Nowait) => RowWait::Fail,
    };
    Ok(LockWish { lock, of: names.pop(), wait })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(sql: &str) -> Vec<(Lock, Option<String>, RowWait)> {
        let parsed = crate::parse::parse(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let ast::Statement::Query(q) = &parsed[0].statement else { panic!("{sql}") };
        assert_eq!(&sql[parsed[0].range.clone()], sql);
        q.locks.iter().map(wish).map(|w| w.map(|w| (w.lock, w.of, w.wait)).unwrap()).collect()
    }

    #[test]
    fn all_clauses_are_understood() {
        use RowWait::{Fail, Skip, Wait};
        let of = |name: &str| Some(name.to_string());
        let cases = [
            ("select 1 from a for update", vec![(Lock::Exclusive, None, Wait)]),
            ("select 1 from a for share nowait", vec![(Lock::Share, None, Fail)]),
            ("select 1 from a for no key update skip locked", vec![(Lock::NoKeyUpdate, None, Skip)]),
            ("select 1 from a for\nkey /* x */ share of a limit 3", vec![(Lock::KeyShare, of("a"), Wait)]),
            ("select 1 from a limit 3 for key share", vec![(Lock::KeyShare, None, Wait)]),
            (
                "select 1 from a, b for update of a, b nowait",
                vec![(Lock::Exclusive, of("a"), Fail), (Lock::Exclusive, of("b"), Fail)],
            ),
            (
                "select 1 from a, \"B\" for no key update of A, \"B\" skip locked for share of a",
                vec![
                    (Lock::NoKeyUpdate, of("a"), Skip),
                    (Lock::NoKeyUpdate, of("B"), Skip),
                    (Lock::Share, of("a"), Wait),
                ],
            ),
        ];
        for (sql, expected) in cases {
            assert_eq!(wishes(sql), expected, "{sql}");
        }
        // Not a locking clause, and not a name.
        assert!(crate::parse::parse("select substring('abc' from 1 for 2)").is_ok());
        for bad in
            ["select 1 from a for no key", "select 1 from a for key share of", "select 1 for update of a,"]
        {
            assert_eq!(crate::parse::parse(bad).unwrap_err().sqlstate, SqlState::SYNTAX_ERROR, "{bad}");
        }
        let parsed = crate::parse::parse("select 1 from a for key share of s.a").unwrap();
        let ast::Statement::Query(q) = &parsed[0].statement else { panic!() };
        assert_eq!(wish(&q.locks[0]).unwrap_err().sqlstate, SqlState::SYNTAX_ERROR);
    }
}
