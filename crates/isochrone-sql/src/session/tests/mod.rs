//! Whole sessions on a store in memory: SQL text in, text out.
//!
//! [`Client::run`] prints what a client would see: `columns: a|b`, a line per row, the tag, notices, or
//! `ERROR code message`, then the transaction's status when it is not idle.

mod advisory;
mod as_of;
mod catalog;
mod concurrency;
mod copy;
mod ddl;
mod defaults;
mod gateways;
mod locks;
mod startup;
mod transactions;

use std::fmt::Write;
use std::sync::Arc;

use isochrone_env::fake::{MemDisk, TokioClock};
use isochrone_env::os::TokioTimer;
use isochrone_env::{Env, SplitMix64};
use isochrone_txn::fake::FakeStore;
use isochrone_txn::kv::{BoxFuture, KvStore};
use isochrone_types::{Datum, Error, Settings as Eval, Type, text};

use super::*;
use crate::face::{Outcome, OutputColumn, RowSink, ScriptSink};

fn assert_send<T: Send>(t: T) -> T {
    t
}

/// Prints what it gets.
#[derive(Default)]
pub struct Printer {
    pub out: String,
    types: Vec<Type>,
    eval: Eval,
    /// Where the running statement's output begins.
    mark: usize,
}

impl RowSink for Printer {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        let cells: Vec<String> = row
            .iter()
            .zip(&self.types)
            .map(|(d, ty)| if d.is_null() { "∅".to_string() } else { text::to_text(d, ty, &self.eval) })
            .collect();
        writeln!(self.out, "{}", cells.join("|")).expect("writing to a string succeeds");
        Ok(())
    }

    fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        self.out.push_str(std::str::from_utf8(data).expect("COPY data is text"));
        Ok(())
    }

    fn copy_out(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn sent(&self) -> bool {
        false
    }

    fn reset(&mut self) {
        self.out.truncate(self.mark);
    }
}

impl ScriptSink for Printer {
    fn columns(&mut self, columns: &[OutputColumn]) -> Result<(), Error> {
        self.types = columns.iter().map(|c| c.ty).collect();
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        writeln!(self.out, "columns: {}", names.join("|")).expect("writing to a string succeeds");
        self.mark = self.out.len();
        Ok(())
    }
}

pub fn database() -> Arc<Database> {
    database_on(FakeStore::default())
}

pub fn database_on(store: FakeStore) -> Arc<Database> {
    database_over(Arc::new(store))
}

pub fn database_over(store: Arc<dyn KvStore>) -> Arc<Database> {
    let env = Env {
        disk: Arc::new(MemDisk::new()),
        clock: Arc::new(TokioClock::new(1_700_000_000_000_000)),
        random: Arc::new(SplitMix64::new(7)),
        timer: Arc::new(TokioTimer),
    };
    Database::new(store, env, "isochrone")
}

pub struct Client {
    pub session: Session,
}

impl Client {
    pub async fn new(db: &Arc<Database>) -> Client {
        Client { session: db.connect("root", "isochrone").await.expect("the database is there") }
    }

    /// What a client sees of a script.
    pub async fn run(&mut self, sql: &str) -> String {
        let mut printer = Printer { eval: self.session.settings().clone(), ..Printer::default() };
        let result = match self.session.script(sql) {
            Err(e) => Err(e),
            Ok(steps) => {
                let n = steps.len();
                let mut result = Ok(());
                for (i, step) in steps.into_iter().enumerate() {
                    printer.mark = printer.out.len();
                    match assert_send(self.session.step(step, i + 1 == n, &mut printer)).await {
                        Ok(Outcome::Complete(tag)) => writeln!(printer.out, "{tag}").expect("a string"),
                        Ok(other) => writeln!(printer.out, "{other:?}").expect("a string"),
                        Err(e) => {
                            result = Err(e);
                            break;
                        }
                    }
                }
                result
            }
        };
        let mut out = printer.out;
        for n in self.session.take_notices() {
            writeln!(out, "{} {} {}", n.severity, n.sqlstate, n.message).expect("a string");
        }
        if let Err(e) = result {
            writeln!(out, "ERROR {} {}", e.sqlstate.code(), e.message).expect("a string");
            if let Some(d) = &e.detail {
                writeln!(out, "DETAIL {d}").expect("a string");
            }
        }
        match self.session.status() {
            TxnStatus::Idle => {}
            other => writeln!(out, "({other:?})").expect("a string"),
        }
        out
    }

    /// Runs and compares, line by line, without blanks at the ends.
    #[track_caller]
    pub fn check(sql: &str, got: &str, want: &str) {
        let lines = |s: &str| {
            s.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lines(got), lines(want), "\n{sql}\n--- got\n{got}");
    }

    /// Runs a query and gives its rows only.
    pub async fn rows(&mut self, sql: &str) -> Vec<String> {
        let out = self.run(sql).await;
        assert!(!out.contains("ERROR"), "{sql}\n{out}");
        let mut lines: Vec<String> = out
            .lines()
            .filter(|l| !l.starts_with("columns: ") && !l.starts_with("(In"))
            .map(str::to_string)
            .collect();
        lines.pop();
        lines
    }

    /// Runs what must succeed.
    pub async fn ok(&mut self, sql: &str) {
        let out = self.run(sql).await;
        assert!(!out.contains("ERROR"), "{sql}\n{out}");
    }

    /// COPY FROM STDIN with this data, in pieces.
    pub async fn copy(&mut self, sql: &str, data: &[u8], piece: usize) -> String {
        let started = self.run(sql).await;
        if !started.contains("CopyIn") {
            return started;
        }
        for chunk in data.chunks(piece) {
            if let Err(e) = assert_send(self.session.copy_data(chunk)).await {
                return format!("ERROR {} {}\nDETAIL {:?}\n", e.sqlstate.code(), e.message, e.detail);
            }
        }
        match assert_send(self.session.copy_done()).await {
            Ok(Outcome::Complete(tag)) => tag,
            Ok(other) => format!("{other:?}"),
            Err(e) => format!("ERROR {} {}\nDETAIL {:?}\n", e.sqlstate.code(), e.message, e.detail),
        }
    }
}

/// A script of `> statement` lines, each followed by what it must print.
pub async fn golden(client: &mut Client, script: &str) {
    let mut sql = String::new();
    let mut want = String::new();
    let mut pending: Vec<(String, String)> = Vec::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(statement) = line.strip_prefix("> ") {
            if !sql.is_empty() {
                pending.push((std::mem::take(&mut sql), std::mem::take(&mut want)));
            }
            sql = statement.to_string();
        } else {
            want.push_str(line);
            want.push('\n');
        }
    }
    pending.push((sql, want));
    for (sql, want) in pending {
        let got = client.run(&sql).await;
        Client::check(&sql, &got, &want);
    }
}
