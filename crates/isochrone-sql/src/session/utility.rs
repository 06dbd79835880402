//! Statements that the session runs by itself, parsed by hand from the tokens: transactions, settings, prepared
//! statements, cursors, COPY, EXPLAIN's outside, and ours that no parser knows (SPLIT AT, SHOW SHARDS,
//! ALTER SHARD).
//!
//! Everything else is handed to `crate::parse` and comes back as [`Statement::Query`] or [`Statement::Ddl`].
//! What neither knows but PostgreSQL does is refused with 0A000 and its name.

use isochrone_base::{NodeId, ShardId};
use isochrone_txn::kv::Isolation;
use isochrone_types::{Error, SqlState, Type};
use sqlparser::ast;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::as_of::{self, AsOf};
use super::script;
use crate::catalog::defaults::Change;
use crate::copy::CopyOptions;
use crate::parse;

/// A possibly qualified name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// Schema, if given.
    pub schema: Option<String>,
    /// Name.
    pub name: String,
}

/// How a transaction is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Modes {
    /// ISOLATION LEVEL.
    pub isolation: Option<Isolation>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// DEFERRABLE or NOT DEFERRABLE.
    pub deferrable: Option<bool>,
    /// AS OF SYSTEM TIME.
    pub as_of: Option<AsOf>,
}

/// Which side of COPY.
#[derive(Clone, PartialEq, Debug)]
pub enum CopySource {
    /// A table and columns (empty: all).
    Table(Name, Vec<String>),
    /// A query, as text.
    Query(String),
}

/// COPY.
#[derive(Clone, PartialEq, Debug)]
pub struct Copy {
    /// Table or query.
    pub source: CopySource,
    /// FROM STDIN rather than TO STDOUT.
    pub from: bool,
    /// Everything after.
    pub options: CopyOptions,
}

/// EXPLAIN.
#[derive(Clone, PartialEq, Debug)]
pub struct Explain {
    /// Run it.
    pub analyze: bool,
    /// Show costs.
    pub costs: bool,
    /// Show times.
    pub timing: bool,
    /// The statement's text.
    pub body: String,
}

/// Where FETCH goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// This many rows forward.
    Rows(usize),
    /// All that are left.
    All,
}

/// What DISCARD forgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discard {
    /// Everything.
    All,
    /// Cached plans.
    Plans,
    /// Sequence values.
    Sequences,
    /// Temporary tables.
    Temp,
}

/// A statement, as the session tells them apart.
#[derive(Clone, Debug)]
pub enum Statement {
    /// For the planner.
    Query(Box<ast::Statement>),
    /// For `crate::ddl`.
    Ddl(Box<ast::Statement>),
    /// BEGIN, START TRANSACTION.
    Begin(Modes, &'static str),
    /// COMMIT, END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint(String),
    /// RELEASE.
    Release(String),
    /// ROLLBACK TO.
    RollbackTo(String),
    /// SET TRANSACTION.
    SetTransaction(Modes),
    /// SET SESSION CHARACTERISTICS AS TRANSACTION.
    SetCharacteristics(Modes),
    /// SET name TO value; `None`: DEFAULT.
    Set {
        /// The setting.
        name: String,
        /// The value.
        value: Option<String>,
        /// SET LOCAL.
        local: bool,
    },
    /// RESET; `None`: ALL.
    Reset(Option<String>),
    /// ALTER DATABASE .. SET, RESET.
    AlterDatabase {
        /// The database.
        name: String,
        /// What becomes the default of its sessions.
        change: Change,
    },
    /// SHOW name.
    Show(String),
    /// SHOW ALL.
    ShowAll,
    /// SHOW SHARDS FROM TABLE.
    ShowShards(Name),
    /// ALTER SHARD .. TRANSFER LEADER TO ..
    TransferLeader {
        /// The shard.
        shard: ShardId,
        /// Its next leader.
        to: NodeId,
    },
    /// ALTER TABLE .. SPLIT AT VALUES: the rows, each a list of expressions as text.
    SplitAt(Name, Vec<Vec<String>>),
    /// PREPARE.
    Prepare {
        /// Name.
        name: String,
        /// Parameter types given.
        types: Vec<Type>,
        /// The statement's text.
        body: String,
    },
    /// EXECUTE, arguments as text.
    Execute {
        /// Name.
        name: String,
        /// Arguments.
        args: Vec<String>,
    },
    /// DEALLOCATE; `None`: ALL.
    Deallocate(Option<String>),
    /// DISCARD.
    Discard(Discard),
    /// EXPLAIN.
    Explain(Explain),
    /// VACUUM.
    Vacuum {
        /// And ANALYZE.
        analyze: bool,
        /// Tables; empty: all.
        tables: Vec<Name>,
    },
    /// ANALYZE; empty: all.
    Analyze(Vec<Name>),
    /// COPY.
    Copy(Box<Copy>),
    /// DECLARE name CURSOR FOR query.
    Declare {
        /// Name.
        name: String,
        /// WITH HOLD.
        hold: bool,
        /// The query's text.
        body: String,
    },
    /// FETCH from a cursor; `skip`: MOVE.
    Fetch {
        /// Name.
        name: String,
        /// How much.
        fetch: Fetch,
        /// MOVE.
        skip: bool,
    },
    /// CLOSE; `None`: ALL.
    Close(Option<String>),
    /// Accepted without effect; answers this tag.
    Accepted(&'static str),
}

impl Statement {
    /// Does the session look into the catalog for it? Everything else must work without a schema lease, too: above all
    /// the end of a transaction.
    pub fn needs_catalog(&self) -> bool {
        !matches!(
            self,
            Statement::Begin(..)
                | Statement::Commit { .. }
                | Statement::Rollback { .. }
                | Statement::Savepoint(_)
                | Statement::Release(_)
                | Statement::RollbackTo(_)
                | Statement::SetTransaction(_)
                | Statement::SetCharacteristics(_)
                | Statement::Set { .. }
                | Statement::Reset(_)
                | Statement::Show(_)
                | Statement::ShowAll
                | Statement::Deallocate(_)
                | Statement::Discard(_)
                | Statement::Close(_)
                | Statement::Accepted(_)
        )
    }
}

/// Tokens with a place in the text.
pub(super) struct Tokens<'a> {
    text: &'a str,
    places: parse::Places<'a>,
    tokens: Vec<TokenWithSpan>,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Result<Tokens<'a>, Error> {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location().map_err(|e| {
            // The full parser words this, with the position.
            match parse::parse(text) {
                Err(e) => e,
                Ok(_) => Error::syntax(e.message),
            }
        })?;
        let tokens = tokens
            .into_iter()
            .filter(|t| !matches!(t.token, Token::Whitespace(_) | Token::SemiColon | Token::EOF))
            .collect();
        Ok(Tokens { text, places: parse::Places::new(text), tokens, at: 0 })
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let t = self.peek().cloned();
        self.at += usize::from(t.is_some());
        t
    }

    /// The next token's word in lower case, if it is an unquoted word.
    fn peek_word(&self) -> Option<String> {
        self.word_at(0)
    }

    pub(super) fn word_at(&self, ahead: usize) -> Option<String> {
        match self.tokens.get(self.at + ahead).map(|t| &t.token) {
            Some(Token::Word(w)) if w.quote_style.is_none() => Some(w.value.to_lowercase()),
            _ => None,
        }
    }

    /// Takes the words if they come next.
    pub(super) fn eat(&mut self, words: &[&str]) -> bool {
        let matches = words.iter().enumerate().all(|(i, w)| self.word_at(i).as_deref() == Some(*w));
        if matches {
            self.at += words.len();
        }
        matches
    }

    pub(super) fn eat_token(&mut self, token: &Token) -> bool {
        let is = self.peek() == Some(token);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, words: &[&str]) -> Result<(), Error> {
        if self.eat(words) { Ok(()) } else { Err(self.unexpected()) }
    }

    pub(super) fn expect_token(&mut self, token: &Token) -> Result<(), Error> {
        if self.eat_token(token) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn position(&self, e: Error) -> Error {
        match self.tokens.get(self.at).and_then(|t| self.places.position(t.span.start)) {
            Some(p) => e.with_position(p),
            None => e,
        }
    }

    pub(super) fn unexpected(&self) -> Error {
        match self.peek() {
            None => Error::syntax("syntax error at end of input")
                .with_position(self.text.chars().count() as u32 + 1),
            Some(t) => self.position(Error::syntax(format!("syntax error at or near \"{t}\""))),
        }
    }

    fn end(&self) -> Result<(), Error> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(self.unexpected()) }
    }

    pub(super) fn ident(&mut self) -> Result<String, Error> {
        match self.peek() {
            Some(Token::Word(w)) => {
                let name = match w.quote_style {
                    Some(_) => w.value.clone(),
                    None => w.value.to_lowercase(),
                };
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn name(&mut self) -> Result<Name, Error> {
        let first = self.ident()?;
        if self.eat_token(&Token::Period) {
            return Ok(Name { schema: Some(first), name: self.ident()? });
        }
        Ok(Name { schema: None, name: first })
    }

    fn number(&mut self) -> Result<u64, Error> {
        match self.peek() {
            Some(Token::Number(n, _)) => match n.parse() {
                Ok(n) => {
                    self.at += 1;
                    Ok(n)
                }
                Err(_) => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
    }

    pub(super) fn string(&mut self) -> Option<String> {
        let s = match self.peek()? {
            Token::SingleQuotedString(s) | Token::EscapedStringLiteral(s) => s.clone(),
            Token::DollarQuotedString(s) => s.value.clone(),
            _ => return None,
        };
        self.at += 1;
        Some(s)
    }

    pub(super) fn byte(&self, index: usize) -> usize {
        self.tokens.get(index).and_then(|t| self.places.byte(t.span.start)).unwrap_or(self.text.len())
    }

    /// How many tokens were taken.
    pub(super) fn position_now(&self) -> usize {
        self.at
    }

    /// Where the token before this one ends.
    pub(super) fn end_before(&self, index: usize) -> usize {
        let last = index.checked_sub(1).and_then(|i| self.tokens.get(i));
        last.and_then(|t| self.places.byte(t.span.end)).unwrap_or(self.text.len())
    }

    /// The rest of the text from the next token on.
    fn rest(&mut self) -> Result<String, Error> {
        if self.at == self.tokens.len() {
            return Err(self.unexpected());
        }
        let from = self.byte(self.at);
        self.at = self.tokens.len();
        Ok(self.text[from..].to_string())
    }

    /// The text between brackets, the opening one being next, cut at the commas of the first level.
    fn bracketed(&mut self) -> Result<Vec<String>, Error> {
        self.expect_token(&Token::LParen)?;
        let mut parts = Vec::new();
        let mut from = self.at;
        let mut depth = 0;
        loop {
            match self.peek() {
                None => return Err(self.unexpected()),
                Some(Token::LParen | Token::LBracket) => depth += 1,
                Some(Token::RBracket) => depth -= 1,
                Some(t @ (Token::RParen | Token::Comma)) if depth == 0 => {
                    if self.at == from {
                        return Err(self.unexpected());
                    }
                    parts.push(self.text[self.byte(from)..self.byte(self.at)].trim().to_string());
                    let done = *t == Token::RParen;
                    self.at += 1;
                    if done {
                        return Ok(parts);
                    }
                    from = self.at;
                    continue;
                }
                Some(Token::RParen) => depth -= 1,
                Some(_) => {}
            }
            self.at += 1;
        }
    }
}

/// Parses one statement's text.
pub fn parse_statement(text: &str) -> Result<Statement, Error> {
    if script::is_query(text) {
        return match as_of::find(text)? {
            Some((_, rest)) => parse_full(&rest),
            None => parse_full(text),
        };
    }
    let word = script::first_word(text);
    let by_hand = matches!(
        word.as_str(),
        "begin"
            | "start"
            | "commit"
            | "end"
            | "rollback"
            | "abort"
            | "savepoint"
            | "release"
            | "set"
            | "reset"
            | "show"
            | "prepare"
            | "execute"
            | "deallocate"
            | "discard"
            | "explain"
            | "vacuum"
            | "analyze"
            | "analyse"
            | "copy"
            | "declare"
            | "fetch"
            | "move"
            | "close"
            | "checkpoint"
            | "listen"
            | "unlisten"
            | "notify"
            | "lock"
            | "reindex"
            | "cluster"
            | "load"
            | "do"
            | "call"
            | "grant"
            | "revoke"
            | "comment"
            | "security"
            | "import"
            | "reassign"
            | "refresh"
    );
    let splits =
        word == "alter" && (has_word(text, "split") || has_word(text, "shard") || alters_database(text));
    if !(by_hand || splits) {
        if let Some(feature) = unsupported_object(text) {
            return Err(Error::unsupported(feature));
        }
        return parse_full(text);
    }
    let mut t = Tokens::new(text)?;
    t.at = 1;
    let statement = match word.as_str() {
        "begin" => {
            let _ = t.eat(&["transaction"]) || t.eat(&["work"]);
            Statement::Begin(modes(&mut t)?, "BEGIN")
        }
        "start" => {
            t.expect(&["transaction"])?;
            Statement::Begin(modes(&mut t)?, "START TRANSACTION")
        }
        "commit" | "end" => {
            if t.eat(&["prepared"]) {
                return Err(Error::unsupported("COMMIT PREPARED"));
            }
            Statement::Commit { chain: chain(&mut t)? }
        }
        "rollback" | "abort" => {
            if t.eat(&["prepared"]) {
                return Err(Error::unsupported("ROLLBACK PREPARED"));
            }
            let _ = t.eat(&["transaction"]) || t.eat(&["work"]);
            if t.eat(&["to"]) {
                let _ = t.eat(&["savepoint"]);
                Statement::RollbackTo(t.ident()?)
            } else {
                Statement::Rollback { chain: chain(&mut t)? }
            }
        }
        "savepoint" => Statement::Savepoint(t.ident()?),
        "release" => {
            let _ = t.eat(&["savepoint"]);
            Statement::Release(t.ident()?)
        }
        "set" => set(&mut t)?,
        "reset" => reset(&mut t)?,
        "show" => show(&mut t)?,
        "prepare" => prepare(&mut t)?,
        "execute" => {
            let name = t.ident()?;
            let args = if t.peek() == Some(&Token::LParen) { t.bracketed()? } else { Vec::new() };
            Statement::Execute { name, args }
        }
        "deallocate" => {
            let _ = t.eat(&["prepare"]);
            Statement::Deallocate(if t.eat(&["all"]) { None } else { Some(t.ident()?) })
        }
        "discard" => Statement::Discard(match t.ident()?.as_str() {
            "all" => Discard::All,
            "plans" => Discard::Plans,
            "sequences" => Discard::Sequences,
            "temp" | "temporary" => Discard::Temp,
            _ => {
                t.at -= 1;
                return Err(t.unexpected());
            }
        }),
        "explain" => explain(&mut t)?,
        "vacuum" => vacuum(&mut t)?,
        "analyze" | "analyse" => {
            if t.peek() == Some(&Token::LParen) {
                t.bracketed()?;
            }
            let _ = t.eat(&["verbose"]);
            Statement::Analyze(table_list(&mut t)?)
        }
        "copy" => copy(&mut t)?,
        "declare" => declare(&mut t)?,
        "fetch" | "move" => fetch(&mut t, word == "move")?,
        "close" => Statement::Close(if t.eat(&["all"]) { None } else { Some(t.ident()?) }),
        "checkpoint" => Statement::Accepted("CHECKPOINT"),
        "alter" if t.eat(&["shard"]) => transfer_leader(&mut t)?,
        "alter" if t.eat(&["database"]) => alter_database(&mut t)?,
        "alter" => match split_at(&mut t)? {
            Some(s) => s,
            None => return parse_full(text),
        },
        "unlisten" => {
            let _ = t.eat_token(&Token::Mul) || t.ident().is_ok();
            Statement::Accepted("UNLISTEN")
        }
        "lock" => return Err(Error::unsupported("LOCK TABLE")),
        "do" => return Err(Error::unsupported("DO")),
        "load" => return Err(Error::unsupported("LOAD")),
        other => return Err(Error::unsupported(other.to_uppercase())),
    };
    t.end()?;
    Ok(statement)
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|w| w.eq_ignore_ascii_case(word))
}

/// ALTER DATABASE in a form that we have.
fn alters_database(text: &str) -> bool {
    let mut words = text.split_whitespace().map(str::to_ascii_lowercase).skip(1);
    words.next().is_some_and(|w| w == "database") && words.nth(1).is_some_and(|w| w == "set" || w == "reset")
}

fn alter_database(t: &mut Tokens) -> Result<Statement, Error> {
    let name = t.ident()?;
    let statement = if t.eat(&["set"]) {
        set(t)?
    } else if t.eat(&["reset"]) {
        reset(t)?
    } else {
        return Err(t.unexpected());
    };
    let change = match statement {
        Statement::Set { name, value: Some(value), local: false } => Change::Set(name, value),
        Statement::Set { name, value: None, local: false } => Change::Reset(name),
        Statement::Reset(Some(name)) => Change::Reset(name),
        Statement::Reset(None) => Change::ResetAll,
        _ => return Err(Error::unsupported("this form of ALTER DATABASE")),
    };
    Ok(Statement::AlterDatabase { name, change })
}

/// CREATE, ALTER and DROP of things we do not have, named before the parser stumbles over them.
fn unsupported_object(text: &str) -> Option<String> {
    let mut words = text
        .split_whitespace()
        .map(str::to_ascii_lowercase)
        .filter(|w| !matches!(w.as_str(), "or" | "replace" | "global" | "local" | "unlogged"));
    let verb = words.next()?;
    if !matches!(verb.as_str(), "create" | "alter" | "drop") {
        return None;
    }
    let object = words.next()?;
    let second = words.next().unwrap_or_default();
    let what = match object.as_str() {
        "temp" | "temporary" => "temporary tables".to_string(),
        "materialized" => format!("{} MATERIALIZED VIEW", verb.to_uppercase()),
        "foreign" | "text" | "event" | "access" | "user" | "default" | "operator" => {
            format!("{} {} {}", verb.to_uppercase(), object.to_uppercase(), second.to_uppercase())
        }
        "view" | "schema" | "type" | "domain" | "function" | "procedure" | "trigger" | "extension"
        | "role" | "database" | "rule" | "policy" | "publication" | "subscription" | "aggregate" | "cast"
        | "collation" | "conversion" | "language" | "server" | "statistics" | "tablespace" | "transform"
        | "group" | "routine" | "constraint" | "trusted" => {
            format!("{} {}", verb.to_uppercase(), object.to_uppercase())
        }
        _ => return None,
    };
    Some(what)
}

/// The parser takes the options of a sequence in one order only; PostgreSQL, and pg_dump, in any.
fn order_sequence_options(text: &str) -> Option<String> {
    let word = script::first_word(text);
    let concerned = word == "create" && has_word(text, "sequence")
        || (word == "create" || word == "alter") && has_word(text, "identity");
    if !concerned {
        return None;
    }
    let t = Tokens::new(text).ok()?;
    let option_at = |at: usize| -> Option<(u8, usize)> {
        let word = |i: usize| match t.tokens.get(at + i).map(|t| &t.token) {
            Some(Token::Word(w)) if w.quote_style.is_none() => w.value.to_lowercase(),
            _ => String::new(),
        };
        let number =
            |i: usize| i + 1 + usize::from(t.tokens.get(at + i).is_some_and(|t| t.token == Token::Minus));
        match (word(0).as_str(), word(1).as_str()) {
            ("increment", "by") => Some((0, number(2))),
            ("increment", _) => Some((0, number(1))),
            ("no", "minvalue") => Some((1, 2)),
            ("minvalue", _) => Some((1, number(1))),
            ("no", "maxvalue") => Some((2, 2)),
            ("maxvalue", _) => Some((2, number(1))),
            ("start", "with") => Some((3, number(2))),
            ("start", _) => Some((3, number(1))),
            ("cache", _) => Some((4, number(1))),
            ("no", "cycle") => Some((5, 2)),
            ("cycle", _) => Some((5, 1)),
            _ => None,
        }
    };
    let mut out = String::new();
    let (mut copied, mut at) = (0, 0);
    while at < t.tokens.len() {
        let start = at;
        let mut run: Vec<(u8, usize, usize)> = Vec::new();
        while let Some((rank, n)) = option_at(at) {
            run.push((rank, at, at + n));
            at += n;
        }
        if run.len() < 2 {
            at = start + 1;
            continue;
        }
        run.sort_by_key(|r| r.0);
        out.push_str(&text[copied..t.byte(start)]);
        for (_, from, to) in run {
            out.push_str(text[t.byte(from)..t.byte(to)].trim_end());
            out.push(' ');
        }
        copied = t.byte(at);
    }
    out.push_str(&text[copied..]);
    Some(out)
}

/// Through the parser.
fn parse_full(text: &str) -> Result<Statement, Error> {
    let ordered = order_sequence_options(text);
    let mut parsed = parse::parse(ordered.as_deref().unwrap_or(text))?;
    let statement = match parsed.len() {
        1 => parsed.remove(0).statement,
        _ => return Err(Error::syntax("one statement was expected")),
    };
    Ok(match &statement {
        ast::Statement::Query(_)
        | ast::Statement::Insert(_)
        | ast::Statement::Update(_)
        | ast::Statement::Delete(_)
        | ast::Statement::Merge(_) => Statement::Query(Box::new(statement)),
        _ => Statement::Ddl(Box::new(statement)),
    })
}

fn modes(t: &mut Tokens) -> Result<Modes, Error> {
    let mut modes = Modes::default();
    loop {
        if t.eat(&["isolation", "level"]) {
            modes.isolation = Some(if t.eat(&["serializable"]) {
                Isolation::Serializable
            } else if t.eat(&["repeatable", "read"]) {
                Isolation::RepeatableRead
            } else if t.eat(&["read", "committed"]) || t.eat(&["read", "uncommitted"]) {
                Isolation::ReadCommitted
            } else {
                return Err(t.unexpected());
            });
        } else if t.eat(&["read", "only"]) {
            modes.read_only = Some(true);
        } else if t.eat(&["read", "write"]) {
            modes.read_only = Some(false);
        } else if t.eat(&["deferrable"]) {
            modes.deferrable = Some(true);
        } else if t.eat(&["not", "deferrable"]) {
            modes.deferrable = Some(false);
        } else if let Some(as_of) = as_of::clause(t)? {
            modes.as_of = Some(as_of);
        } else if t.eat_token(&Token::Comma) {
        } else {
            if modes.as_of.is_some() && modes.read_only == Some(false) {
                return Err(Error::syntax("AS OF SYSTEM TIME specified with READ WRITE mode"));
            }
            return Ok(modes);
        }
    }
}

fn chain(t: &mut Tokens) -> Result<bool, Error> {
    let _ = t.eat(&["transaction"]) || t.eat(&["work"]);
    if t.eat(&["and", "no", "chain"]) {
        return Ok(false);
    }
    Ok(t.eat(&["and", "chain"]))
}

/// The words between TO or = and the end.
fn values(t: &mut Tokens) -> Result<Option<String>, Error> {
    if t.eat(&["default"]) {
        return Ok(None);
    }
    let mut items: Vec<(String, bool)> = Vec::new();
    loop {
        let minus = t.eat_token(&Token::Minus);
        if !minus {
            let _ = t.eat_token(&Token::Plus);
        }
        match t.next() {
            Some(Token::Number(n, _)) => items.push((format!("{}{n}", if minus { "-" } else { "" }), false)),
            Some(Token::SingleQuotedString(s) | Token::EscapedStringLiteral(s)) if !minus => {
                items.push((s, false));
            }
            // bounded('5s')
            Some(Token::Word(w)) if !minus && w.quote_style.is_none() && t.peek() == Some(&Token::LParen) => {
                let arguments = t.bracketed()?;
                items.push((format!("{}({})", w.value.to_lowercase(), arguments.join(", ")), false));
            }
            Some(Token::Word(w)) if !minus => match w.quote_style {
                Some(_) => items.push((w.value, true)),
                None => items.push((w.value.to_lowercase(), false)),
            },
            _ => {
                t.at = t.at.saturating_sub(1);
                return Err(t.unexpected());
            }
        }
        if !t.eat_token(&Token::Comma) {
            break;
        }
    }
    let many = items.len() > 1;
    let quote = |(s, quoted): (String, bool)| {
        if quoted && (many || s.contains([',', ' '])) { format!("\"{}\"", s.replace('"', "\"\"")) } else { s }
    };
    Ok(Some(items.into_iter().map(quote).collect::<Vec<_>>().join(", ")))
}

fn dotted(t: &mut Tokens) -> Result<String, Error> {
    let name = t.name()?;
    Ok(match name.schema {
        Some(s) => format!("{s}.{}", name.name),
        None => name.name,
    })
}

fn set(t: &mut Tokens) -> Result<Statement, Error> {
    if t.eat(&["transaction"]) {
        if t.eat(&["snapshot"]) {
            return Err(Error::unsupported("SET TRANSACTION SNAPSHOT"));
        }
        return Ok(Statement::SetTransaction(modes(t)?));
    }
    if t.eat(&["session", "characteristics", "as", "transaction"]) {
        return Ok(Statement::SetCharacteristics(modes(t)?));
    }
    if t.eat(&["constraints"]) {
        // There are no deferrable constraints that it could mean.
        t.at = t.tokens.len();
        return Ok(Statement::Accepted("SET CONSTRAINTS"));
    }
    let local = t.eat(&["local"]);
    if !local {
        let _ = t.eat(&["session"]);
    }
    if t.eat(&["session", "authorization"]) || t.eat(&["authorization"]) || t.eat(&["role"]) {
        if t.eat(&["default"]) || t.eat(&["none"]) {
            return Ok(Statement::Accepted("SET"));
        }
        return Err(Error::unsupported("changing the role of a session"));
    }
    if t.eat(&["time", "zone"]) {
        let value = if t.eat(&["local"]) || t.eat(&["default"]) {
            None
        } else if t.eat(&["interval"]) {
            return Err(Error::unsupported("SET TIME ZONE INTERVAL"));
        } else {
            values(t)?
        };
        return Ok(Statement::Set { name: "TimeZone".to_string(), value, local });
    }
    if t.eat(&["names"]) {
        let value = if t.at == t.tokens.len() { None } else { values(t)? };
        return Ok(Statement::Set { name: "client_encoding".to_string(), value, local });
    }
    if t.eat(&["schema"]) {
        return Ok(Statement::Set { name: "search_path".to_string(), value: values(t)?, local });
    }
    let name = dotted(t)?;
    if !(t.eat_token(&Token::Eq) || t.eat(&["to"])) {
        return Err(t.unexpected());
    }
    Ok(Statement::Set { name, value: values(t)?, local })
}

fn reset(t: &mut Tokens) -> Result<Statement, Error> {
    if t.eat(&["all"]) {
        return Ok(Statement::Reset(None));
    }
    if t.eat(&["session", "authorization"]) || t.eat(&["role"]) {
        return Ok(Statement::Accepted("RESET"));
    }
    if t.eat(&["time", "zone"]) {
        return Ok(Statement::Reset(Some("TimeZone".to_string())));
    }
    Ok(Statement::Reset(Some(dotted(t)?)))
}

fn show(t: &mut Tokens) -> Result<Statement, Error> {
    if t.eat(&["all"]) {
        return Ok(Statement::ShowAll);
    }
    if t.eat(&["time", "zone"]) {
        return Ok(Statement::Show("TimeZone".to_string()));
    }
    if t.eat(&["transaction", "isolation", "level"]) {
        return Ok(Statement::Show("transaction_isolation".to_string()));
    }
    if t.eat(&["session", "authorization"]) {
        return Ok(Statement::Show("session_authorization".to_string()));
    }
    if t.eat(&["shards", "from", "table"]) {
        return Ok(Statement::ShowShards(t.name()?));
    }
    Ok(Statement::Show(dotted(t)?))
}

fn prepare(t: &mut Tokens) -> Result<Statement, Error> {
    if t.eat(&["transaction"]) {
        return Err(Error::unsupported("PREPARE TRANSACTION"));
    }
    let name = t.ident()?;
    let types = if t.peek() == Some(&Token::LParen) {
        t.bracketed()?.iter().map(|s| type_named(s)).collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    t.expect(&["as"])?;
    Ok(Statement::Prepare { name, types, body: t.rest()? })
}

/// The type with this SQL name, modifier and all.
pub fn type_named(text: &str) -> Result<Type, Error> {
    Type::from_sql_name(text)
        .or_else(|| Type::from_sql_name(&text.to_lowercase()))
        .ok_or_else(|| Error::new(SqlState::UNDEFINED_OBJECT, format!("type \"{text}\" does not exist")))
}

fn explain(t: &mut Tokens) -> Result<Statement, Error> {
    let mut e = Explain { analyze: false, costs: true, timing: true, body: String::new() };
    let is_options = t.peek() == Some(&Token::LParen)
        && t.word_at(1).is_some_and(|w| {
            ["analyze", "verbose", "costs", "settings", "buffers", "wal", "timing", "summary", "format"]
                .contains(&w.as_str())
        });
    if is_options {
        for option in t.bracketed()? {
            let mut words = option.split_whitespace();
            let name = words.next().unwrap_or_default().to_lowercase();
            let value = words.next().unwrap_or("on").trim_matches('\'').to_lowercase();
            let on = || {
                crate::settings::parse_bool(&value)
                    .ok_or_else(|| Error::syntax(format!("{name} requires a Boolean value")))
            };
            match name.as_str() {
                "analyze" => e.analyze = on()?,
                "costs" => e.costs = on()?,
                "timing" => e.timing = on()?,
                "verbose" | "settings" | "buffers" | "wal" | "summary" => {
                    on()?;
                }
                "format" if value == "text" => {}
                "format" => return Err(Error::unsupported(format!("EXPLAIN (FORMAT {value})"))),
                _ => return Err(Error::syntax(format!("unrecognized EXPLAIN option \"{name}\""))),
            }
        }
    } else {
        e.analyze = t.eat(&["analyze"]) || t.eat(&["analyse"]);
        let _ = t.eat(&["verbose"]);
    }
    e.body = t.rest()?;
    Ok(Statement::Explain(e))
}

fn table_list(t: &mut Tokens) -> Result<Vec<Name>, Error> {
    let mut tables = Vec::new();
    if t.at == t.tokens.len() {
        return Ok(tables);
    }
    loop {
        tables.push(t.name()?);
        if t.peek() == Some(&Token::LParen) {
            t.bracketed()?;
        }
        if !t.eat_token(&Token::Comma) {
            return Ok(tables);
        }
    }
}

fn vacuum(t: &mut Tokens) -> Result<Statement, Error> {
    let mut analyze = false;
    if t.peek() == Some(&Token::LParen) {
        analyze = t.bracketed()?.iter().any(|o| {
            let o = o.to_lowercase();
            o.starts_with("analy") && !o.ends_with("off") && !o.ends_with("false")
        });
    }
    loop {
        if t.eat(&["analyze"]) || t.eat(&["analyse"]) {
            analyze = true;
        } else if !(t.eat(&["full"]) || t.eat(&["freeze"]) || t.eat(&["verbose"])) {
            break;
        }
    }
    Ok(Statement::Vacuum { analyze, tables: table_list(t)? })
}

fn declare(t: &mut Tokens) -> Result<Statement, Error> {
    let name = t.ident()?;
    loop {
        if t.eat(&["binary"]) {
            return Err(Error::unsupported("binary cursors"));
        } else if t.eat(&["scroll"]) {
            return Err(Error::unsupported("scrollable cursors"));
        } else if !(t.eat(&["insensitive"]) || t.eat(&["asensitive"]) || t.eat(&["no", "scroll"])) {
            break;
        }
    }
    t.expect(&["cursor"])?;
    let hold = t.eat(&["with", "hold"]);
    let _ = t.eat(&["without", "hold"]);
    t.expect(&["for"])?;
    Ok(Statement::Declare { name, hold, body: t.rest()? })
}

fn fetch(t: &mut Tokens, skip: bool) -> Result<Statement, Error> {
    let count = |t: &mut Tokens| -> Result<Option<usize>, Error> {
        match t.peek() {
            Some(Token::Number(n, _)) => {
                let n = n.parse().map_err(|_| t.unexpected())?;
                t.at += 1;
                Ok(Some(n))
            }
            _ => Ok(None),
        }
    };
    let mut how = Fetch::Rows(1);
    if t.eat(&["next"]) {
    } else if t.eat(&["all"]) || t.eat(&["forward", "all"]) {
        how = Fetch::All;
    } else if let Some(n) = count(t)? {
        how = Fetch::Rows(n);
    } else if t.eat(&["forward"]) {
        how = Fetch::Rows(count(t)?.unwrap_or(1));
    } else if ["prior", "first", "last", "absolute", "relative", "backward"]
        .iter()
        .any(|w| t.peek_word().as_deref() == Some(*w))
        || t.peek() == Some(&Token::Minus)
    {
        return Err(Error::unsupported("scrollable cursors"));
    }
    let _ = t.eat(&["from"]) || t.eat(&["in"]);
    Ok(Statement::Fetch { name: t.ident()?, fetch: how, skip })
}

/// ALTER SHARD n TRANSFER LEADER TO node.
fn transfer_leader(t: &mut Tokens) -> Result<Statement, Error> {
    let shard = ShardId(t.number()?);
    t.expect(&["transfer", "leader", "to"])?;
    let at = t.at;
    let Ok(node) = u32::try_from(t.number()?) else {
        t.at = at;
        return Err(t.unexpected());
    };
    Ok(Statement::TransferLeader { shard, to: NodeId(node) })
}

/// ALTER TABLE name SPLIT AT VALUES (..), (..).
fn split_at(t: &mut Tokens) -> Result<Option<Statement>, Error> {
    if !t.eat(&["table"]) {
        return Ok(None);
    }
    let name = t.name()?;
    if !t.eat(&["split", "at", "values"]) {
        return Ok(None);
    }
    let mut rows = Vec::new();
    loop {
        rows.push(t.bracketed()?);
        if !t.eat_token(&Token::Comma) {
            return Ok(Some(Statement::SplitAt(name, rows)));
        }
    }
}

fn copy(t: &mut Tokens) -> Result<Statement, Error> {
    let source = if t.peek() == Some(&Token::LParen) {
        let from = t.byte(t.at) + 1;
        t.bracketed()?;
        let to = t.byte(t.at - 1);
        CopySource::Query(t.text[from..to].trim().to_string())
    } else {
        if t.peek_word().as_deref() == Some("binary")
            && t.word_at(1).is_some_and(|w| w != "from" && w != "to")
        {
            return Err(Error::unsupported("COPY BINARY"));
        }
        let name = t.name()?;
        let mut columns = Vec::new();
        if t.eat_token(&Token::LParen) {
            loop {
                columns.push(t.ident()?);
                if !t.eat_token(&Token::Comma) {
                    break;
                }
            }
            t.expect_token(&Token::RParen)?;
        }
        CopySource::Table(name, columns)
    };
    let from = if t.eat(&["from"]) {
        true
    } else {
        t.expect(&["to"])?;
        false
    };
    if from && matches!(source, CopySource::Query(_)) {
        return Err(Error::syntax("a query cannot be copied into"));
    }
    if t.eat(&["program"]) || t.string().is_some() {
        return Err(Error::unsupported("COPY with files or programs of the server"));
    }
    if !(t.eat(&["stdin"]) || t.eat(&["stdout"])) {
        return Err(t.unexpected());
    }
    let _ = t.eat(&["with"]);
    let mut options = CopyOptions::default();
    let mut given = Vec::new();
    if t.eat_token(&Token::LParen) {
        loop {
            let name = t.ident()?;
            copy_option(t, &name, &mut given)?;
            if !t.eat_token(&Token::Comma) {
                break;
            }
        }
        t.expect_token(&Token::RParen)?;
    } else {
        while let Some(word) = t.peek_word() {
            t.at += 1;
            let _ = t.eat(&["as"]);
            match word.as_str() {
                "csv" => given.push(("format".to_string(), "csv".to_string())),
                "binary" => given.push(("format".to_string(), "binary".to_string())),
                "freeze" | "header" => given.push((word, "on".to_string())),
                "delimiter" | "null" | "quote" | "escape" | "encoding" => {
                    let v = t.string().ok_or_else(|| t.unexpected())?;
                    given.push((word, v));
                }
                "where" => return Err(Error::unsupported("COPY FROM .. WHERE")),
                "force" => return Err(Error::unsupported("COPY .. FORCE")),
                _ => {
                    t.at -= 1;
                    return Err(t.unexpected());
                }
            }
        }
    }
    if t.eat(&["where"]) {
        return Err(Error::unsupported("COPY FROM .. WHERE"));
    }
    options.set_all(&given, from)?;
    Ok(Statement::Copy(Box::new(Copy { source, from, options })))
}

fn copy_option(t: &mut Tokens, name: &str, given: &mut Vec<(String, String)>) -> Result<(), Error> {
    if matches!(name, "force_quote" | "force_not_null" | "force_null") {
        return Err(Error::unsupported(format!("COPY option {}", name.to_uppercase())));
    }
    let value = match t.peek() {
        Some(Token::Comma | Token::RParen) => "on".to_string(),
        Some(Token::Number(n, _)) => {
            let n = n.clone();
            t.at += 1;
            n
        }
        Some(Token::Word(w)) if w.keyword != Keyword::NoKeyword || w.quote_style.is_none() => {
            let v = w.value.to_lowercase();
            t.at += 1;
            v
        }
        _ => t.string().ok_or_else(|| t.unexpected())?,
    };
    given.push((name.to_string(), value));
    Ok(())
}
