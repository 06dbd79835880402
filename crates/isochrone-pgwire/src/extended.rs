//! The extended protocol: Parse, Bind, Describe, Execute, Close. Sync is with the connection.
//!
//! Statements and portals live here under their names; the session knows them only as values. The unnamed ones stay
//! until the next of their kind, or a simple query. Portals end with their transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use isochrone_sql::face::{Outcome, OutputColumn, TxnStatus};
use isochrone_types::binary::parse_binary;
use isochrone_types::settings::Settings;
use isochrone_types::text::parse_text;
use isochrone_types::{Datum, Error, SqlState, Type};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::Session;
use crate::connection::{Connection, Link, Trouble};
use crate::error::protocol;
use crate::frontend::{self, Target, Values};
use crate::limits::{
    NAME_BYTES_MAX, PORTALS_BYTES_MAX, PORTALS_MAX, STATEMENT_BYTES_MAX, STATEMENTS_BYTES_MAX, STATEMENTS_MAX,
};
use crate::sink::{Formats, WireSink};
use crate::{encode, limits};

/// A prepared statement and what Bind and Describe need of it.
pub(crate) struct Statement<S: Session> {
    inner: S::Statement,
    parameters: Vec<Type>,
    /// Types of the result's columns; empty when it has no rows.
    types: Box<[Type]>,
    /// Of its text.
    bytes: usize,
    /// It is DEALLOCATE of this name.
    deallocates: Option<Box<str>>,
}

/// A bound statement.
pub(crate) struct Portal<S: Session> {
    inner: S::Portal,
    statement: Arc<Statement<S>>,
    formats: Formats,
    /// Of its parameters, as received.
    bytes: usize,
}

/// The statements and portals of a connection.
pub(crate) struct Names<S: Session> {
    unnamed_statement: Option<Arc<Statement<S>>>,
    statements: BTreeMap<Box<str>, Arc<Statement<S>>>,
    unnamed_portal: Option<Portal<S>>,
    portals: BTreeMap<Box<str>, Portal<S>>,
    /// Sum over `statements`.
    statement_bytes: usize,
    /// Sum over `portals`.
    portal_bytes: usize,
}

impl<S: Session> Default for Names<S> {
    fn default() -> Names<S> {
        Names {
            unnamed_statement: None,
            statements: BTreeMap::new(),
            unnamed_portal: None,
            portals: BTreeMap::new(),
            statement_bytes: 0,
            portal_bytes: 0,
        }
    }
}

impl<S: Session> Names<S> {
    /// A simple query begins.
    pub(crate) fn drop_unnamed(&mut self) {
        self.unnamed_statement = None;
        self.unnamed_portal = None;
    }

    /// The transaction has ended.
    pub(crate) fn drop_portals(&mut self) {
        self.unnamed_portal = None;
        if !self.portals.is_empty() {
            self.portals.clear();
            self.portal_bytes = 0;
        }
    }

    fn drop_statement(&mut self, name: &str) {
        if name.is_empty() {
            self.unnamed_statement = None;
        } else if let Some(s) = self.statements.remove(name) {
            self.statement_bytes -= s.bytes;
        }
    }

    /// DEALLOCATE ALL.
    fn drop_statements(&mut self) {
        self.statements.clear();
        self.statement_bytes = 0;
    }

    fn drop_portal(&mut self, name: &str) {
        if name.is_empty() {
            self.unnamed_portal = None;
        } else if let Some(p) = self.portals.remove(name) {
            self.portal_bytes -= p.bytes;
        }
    }

    fn statement(&self, name: &str) -> Result<&Arc<Statement<S>>, Error> {
        let (found, what) = match name {
            "" => (self.unnamed_statement.as_ref(), "unnamed prepared statement".to_owned()),
            _ => match self.statements.get(name) {
                Some(s) => return Ok(s),
                None => (None, format!("prepared statement \"{name}\"")),
            },
        };
        found
            .ok_or_else(|| Error::new(SqlState::INVALID_SQL_STATEMENT_NAME, format!("{what} does not exist")))
    }

    fn portal(&mut self, name: &str) -> Result<&mut Portal<S>, Error> {
        let found = match name {
            "" => self.unnamed_portal.as_mut(),
            _ => self.portals.get_mut(name),
        };
        found.ok_or_else(|| {
            Error::new(SqlState::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
        })
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let text = format!("a name of {} bytes is too long: at most {NAME_BYTES_MAX} are possible", name.len());
    Err(Error::new(SqlState::NAME_TOO_LONG, text))
}

/// 54000 for a text that is too long.
pub(crate) fn check_text(text: &str) -> Result<(), Error> {
    if text.len() <= STATEMENT_BYTES_MAX {
        return Ok(());
    }
    let text = format!(
        "a statement of {} bytes is too long: at most {STATEMENT_BYTES_MAX} are possible",
        text.len()
    );
    Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text))
}

/// The name in `DEALLOCATE [PREPARE] name`: what Parse named and what PREPARE named share a name space for clients, but
/// the session knows the second kind only.
pub(crate) fn deallocated(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == ';');
    let (verb, mut name) = text.split_once(|c: char| c.is_ascii_whitespace())?;
    if !verb.eq_ignore_ascii_case("deallocate") {
        return None;
    }
    name = name.trim_ascii_start();
    if let Some((word, rest)) = name.split_once(|c: char| c.is_ascii_whitespace())
        && word.eq_ignore_ascii_case("prepare")
    {
        name = rest.trim_ascii_start();
    }
    if let Some(quoted) = name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        return (!quoted.contains('"')).then(|| quoted.to_owned());
    }
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80);
    (plain && !name.eq_ignore_ascii_case("all")).then(|| name.to_ascii_lowercase())
}

fn datum(ty: &Type, binary: bool, bytes: &[u8], settings: &Settings) -> Result<Datum, Error> {
    if binary {
        return parse_binary(ty, bytes);
    }
    let text = frontend::utf8(bytes)?;
    if bytes.contains(&0) {
        return Err(frontend::zero_byte());
    }
    parse_text(ty, text, settings)
}

fn parameters(bind: &frontend::Bind<'_>, types: &[Type], settings: &Settings) -> Result<Vec<Datum>, Error> {
    let n = bind.parameter_count;
    let codes = bind.parameter_formats.len() / 2;
    if codes > 1 && codes != n {
        return Err(protocol(format!("bind message has {codes} parameter formats but {n} parameters")));
    }
    if n != types.len() {
        let statement = bind.statement;
        return Err(protocol(format!(
            "bind message supplies {n} parameters, but prepared statement \"{statement}\" requires {}",
            types.len()
        )));
    }
    let mut values = Values::new(bind.parameters);
    let mut out = Vec::with_capacity(n);
    for (i, ty) in types.iter().enumerate() {
        let binary = frontend::format_code(bind.parameter_formats, i)?;
        out.push(match values.next()? {
            Some(bytes) => datum(ty, binary, bytes, settings)?,
            None => Datum::Null,
        });
    }
    Ok(out)
}

fn result_formats(codes: &[u8], columns: usize) -> Result<Formats, Error> {
    let n = codes.len() / 2;
    if n <= 1 {
        return Ok(Formats::All(frontend::format_code(codes, 0)?));
    }
    if n != columns {
        return Err(protocol(format!("bind message has {n} result formats but query has {columns} columns")));
    }
    let each: Result<Box<[bool]>, Error> = (0..n).map(|i| frontend::format_code(codes, i)).collect();
    Ok(Formats::Each(each?))
}

fn describe_rows(out: &mut Vec<u8>, columns: Option<&[OutputColumn]>, binary: impl Fn(usize) -> bool) {
    match columns {
        Some(columns) => encode::row_description(out, columns, binary),
        None => encode::empty(out, b'n'),
    }
}

impl<W: AsyncWrite + Unpin + Send, S: Session> Connection<W, S> {
    /// Parse.
    pub(crate) async fn parse(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let parse = frontend::parse(body)?;
        check_name(parse.name)?;
        check_text(parse.text)?;
        let names = &mut self.names;
        if parse.name.is_empty() {
            names.unnamed_statement = None;
        } else if names.statements.contains_key(parse.name) {
            let text = format!("prepared statement \"{}\" already exists", parse.name);
            return Err(Error::new(SqlState::DUPLICATE_PREPARED_STATEMENT, text).into());
        } else if names.statements.len() >= STATEMENTS_MAX
            || names.statement_bytes + parse.text.len() > STATEMENTS_BYTES_MAX
        {
            let text = format!(
                "too many prepared statements: at most {STATEMENTS_MAX} of {STATEMENTS_BYTES_MAX} bytes are possible"
            );
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text).into());
        }
        let (oids, _) = parse.types.as_chunks::<4>();
        let oids: Vec<u32> = oids.iter().map(|b| u32::from_be_bytes(*b)).collect();
        let session = &mut self.session;
        let inner = self.out.drive(async |_| session.parse(parse.text, &oids).await).await??;
        let parameters = S::parameter_types(&inner);
        let deallocates = deallocated(parse.text).map(String::into_boxed_str);
        let types = S::columns(&inner).unwrap_or_default().iter().map(|c| c.ty).collect();
        let statement =
            Arc::new(Statement { inner, parameters, types, bytes: parse.text.len(), deallocates });
        if parse.name.is_empty() {
            names.unnamed_statement = Some(statement);
        } else {
            names.statement_bytes += statement.bytes;
            names.statements.insert(parse.name.into(), statement);
        }
        encode::empty(&mut self.out.buf, b'1');
        Ok(())
    }

    /// Bind.
    pub(crate) async fn bind(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let bind = frontend::bind(body)?;
        check_name(bind.portal)?;
        let names = &mut self.names;
        if bind.portal.is_empty() {
            names.unnamed_portal = None;
        } else if names.portals.contains_key(bind.portal) {
            let text = format!("portal \"{}\" already exists", bind.portal);
            return Err(Error::new(SqlState::DUPLICATE_CURSOR, text).into());
        } else if names.portals.len() >= PORTALS_MAX
            || names.portal_bytes + bind.parameters.len() > PORTALS_BYTES_MAX
        {
            let text =
                format!("too many portals: at most {PORTALS_MAX} of {PORTALS_BYTES_MAX} bytes are possible");
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text).into());
        }
        let statement = Arc::clone(names.statement(bind.statement)?);
        let session = &mut self.session;
        let values = parameters(&bind, &statement.parameters, session.settings())?;
        let formats = result_formats(bind.result_formats, statement.types.len())?;
        let inner = self.out.drive(async |_| session.bind(&statement.inner, values).await).await??;
        let portal = Portal { inner, statement, formats, bytes: bind.parameters.len() };
        if bind.portal.is_empty() {
            names.unnamed_portal = Some(portal);
        } else {
            names.portal_bytes += portal.bytes;
            names.portals.insert(bind.portal.into(), portal);
        }
        encode::empty(&mut self.out.buf, b'2');
        Ok(())
    }

    /// Describe.
    pub(crate) fn describe(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let out = &mut self.out.buf;
        match frontend::target(body, "DESCRIBE")? {
            (Target::Statement, name) => {
                let statement = self.names.statement(name)?;
                encode::parameter_description(out, &statement.parameters);
                describe_rows(out, S::columns(&statement.inner), |_| false);
            }
            (Target::Portal, name) => {
                let portal = self.names.portal(name)?;
                describe_rows(out, S::columns(&portal.statement.inner), |i| portal.formats.binary(i));
            }
        }
        Ok(())
    }

    /// Execute.
    pub(crate) async fn execute<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
        body: &[u8],
    ) -> Result<(), Trouble> {
        let (name, rows_max) = frontend::execute(body)?;
        let portal = self.names.portal(name)?;
        if portal.statement.deallocates.is_some() {
            let name = portal.statement.deallocates.clone().unwrap_or_default();
            if self.deallocate(&name) {
                return Ok(());
            }
        }
        let portal = self.names.portal(name)?;
        let session = &mut self.session;
        let last = link.input.sync_follows();
        let settings = session.settings().clone();
        let (outcome, copying) = self
            .out
            .drive(async |out| {
                let mut sink = WireSink::new(out, &portal.statement.types, &portal.formats, &settings);
                let outcome = session.execute(&mut portal.inner, rows_max, last, &mut sink).await;
                (outcome, sink.copying)
            })
            .await?;
        self.notices();
        self.outcome(link, outcome?, copying).await
    }

    /// Answers DEALLOCATE of a statement that Parse named; false: there is none, or the transaction has failed, and the
    /// session has the word.
    pub(crate) fn deallocate(&mut self, name: &str) -> bool {
        if self.session.status() == TxnStatus::Failed || !self.names.statements.contains_key(name) {
            return false;
        }
        self.names.drop_statement(name);
        encode::command_complete(&mut self.out.buf, "DEALLOCATE");
        true
    }

    /// Close: fine if there is none of that name.
    pub(crate) fn close(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let names = &mut self.names;
        match frontend::target(body, "CLOSE")? {
            (Target::Statement, name) => names.drop_statement(name),
            (Target::Portal, name) => names.drop_portal(name),
        }
        encode::empty(&mut self.out.buf, b'3');
        Ok(())
    }

    /// What Complete, Suspended and the others are on the wire.
    pub(crate) async fn outcome<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
        outcome: Outcome,
        copying: bool,
    ) -> Result<(), Trouble> {
        let out = &mut self.out.buf;
        match outcome {
            Outcome::Complete(tag) => {
                if copying {
                    encode::empty(out, b'c');
                }
                encode::command_complete(out, &tag);
                if tag == "DEALLOCATE ALL" || tag == "DISCARD ALL" {
                    self.names.drop_statements();
                }
            }
            Outcome::Suspended => encode::empty(out, b's'),
            Outcome::Empty => encode::empty(out, b'I'),
            Outcome::CopyIn { columns } => {
                encode::copy_response(out, b'G', columns);
                self.copy_in(link).await?;
            }
        }
        if self.out.buf.len() >= limits::OUT_BYTES_HIGH {
            self.out.flush().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::deallocated;

    #[test]
    fn finds_the_name_in_deallocate() {
        let name = |text: &str| deallocated(text);
        assert_eq!(name("deallocate s1"), Some("s1".to_owned()));
        assert_eq!(name(" DEALLOCATE\n PREPARE \"_pg3_0\" ; "), Some("_pg3_0".to_owned()));
        assert_eq!(name("Deallocate Prepared"), Some("prepared".to_owned()));
        for other in
            ["deallocate", "deallocate all", "deallocate a; select 1", "deallocate \"a\"\"b\"", "select 1"]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
