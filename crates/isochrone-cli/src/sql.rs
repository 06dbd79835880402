//! The SQL shell: statements in, tables out, history kept. Speaks to any PostgreSQL URL.

use std::future::Future;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::table;

/// Where the shell connects when it is not told.
pub const DEFAULT_URL: &str = "postgresql://root@127.0.0.1:5433/isochrone";

/// An SQL shell: history, tables; any PostgreSQL URL.
#[derive(clap::Args, Debug, Clone)]
pub struct SqlArgs {
    /// The server, as postgresql://USER@HOST:PORT/DATABASE.
    #[arg(default_value = DEFAULT_URL)]
    pub url: String,
    /// Run these statements and exit; may be repeated.
    #[arg(short, long = "command", value_name = "STATEMENT")]
    pub command: Vec<String>,
}

/// Runs the shell. Exit code 0; 1 when a statement of `-c` or of a script on standard input failed; 2 when there is no
/// connection.
pub async fn run(args: SqlArgs) -> Result<i32> {
    let (client, connection) = match tokio_postgres::connect(&args.url, NoTls).await {
        Ok(ok) => ok,
        Err(error) => {
            eprintln!(
                "cannot connect to {}: {}\nIs a server running there? Start one with: isochrone start --data DIR",
                args.url,
                describe(&error)
            );
            return Ok(2);
        }
    };
    let connection = tokio::spawn(connection);
    let code = if !args.command.is_empty() {
        let mut code = 0;
        for statement in &args.command {
            if !execute(&client, statement).await {
                code = 1;
                break;
            }
        }
        code
    } else if std::io::stdin().is_terminal() {
        interactive(&client).await?;
        0
    } else {
        let mut script = String::new();
        std::io::stdin().read_to_string(&mut script).context("cannot read the script from standard input")?;
        i32::from(!execute(&client, &script).await)
    };
    drop(client);
    let _ = connection.await;
    Ok(code)
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let mut out = format!("{}:  {} (SQLSTATE {})", db.severity(), db.message(), db.code().code());
            for (what, text) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
                if let Some(text) = text {
                    out.push_str(&format!("\n{what}:  {text}"));
                }
            }
            out
        }
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// Runs a script and prints what comes back. False when it failed.
async fn execute(client: &Client, sql: &str) -> bool {
    match client.simple_query(sql).await {
        Ok(messages) => {
            let mut columns: Option<Vec<String>> = None;
            let mut rows = Vec::new();
            let mut out = std::io::stdout().lock();
            for message in messages {
                match message {
                    SimpleQueryMessage::RowDescription(description) => {
                        columns = Some(description.iter().map(|c| c.name().to_string()).collect());
                        rows = Vec::new();
                    }
                    SimpleQueryMessage::Row(row) => {
                        rows.push((0..row.len()).map(|i| row.get(i).map(str::to_string)).collect());
                    }
                    SimpleQueryMessage::CommandComplete(count) => {
                        let _ = match columns.take() {
                            Some(columns) => {
                                write!(out, "{}", table::render(&columns, &std::mem::take(&mut rows)))
                            }
                            None => writeln!(out, "ok ({count} rows)"),
                        };
                    }
                    _ => {}
                }
            }
            true
        }
        Err(error) => {
            eprintln!("{}", describe(&error));
            false
        }
    }
}

fn history_path() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".isochrone_history"))
}

async fn interactive(client: &Client) -> Result<()> {
    println!("Statements end with a semicolon; \\q or Ctrl-D leaves, \\? helps.");
    let mut editor = rustyline::DefaultEditor::new()?;
    let history = history_path();
    if let Some(path) = &history {
        let _ = editor.load_history(path); // a first start has none
    }
    let mut pending = String::new();
    loop {
        let prompt = if pending.is_empty() { "isochrone=> " } else { "isochrone-> " };
        match editor.readline(prompt) {
            Ok(line) => {
                let command = line.trim();
                if pending.is_empty() && command.starts_with('\\') {
                    match command {
                        "\\q" => break,
                        "\\dt" => {
                            execute(client, LIST_TABLES).await;
                        }
                        _ => println!(
                            "\\q  leave\n\\dt  list tables\nSQL; runs a statement (it may span lines)"
                        ),
                    }
                    continue;
                }
                if !pending.is_empty() {
                    pending.push('\n');
                }
                pending.push_str(&line);
                if pending.trim_end().ends_with(';') {
                    let _ = editor.add_history_entry(pending.trim());
                    interruptible(execute(client, &pending), client).await;
                    pending.clear();
                } else if pending.trim().is_empty() {
                    pending.clear();
                }
            }
            Err(ReadlineError::Interrupted) => pending.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path); // a home that cannot be written to is no reason to fail
    }
    Ok(())
}

/// Ctrl-C while a statement runs cancels the statement, not the shell.
async fn interruptible(statement: impl Future<Output = bool>, client: &Client) {
    let mut statement = std::pin::pin!(statement);
    loop {
        tokio::select! {
            biased;
            _ = &mut statement => return,
            interrupt = tokio::signal::ctrl_c() => {
                if interrupt.is_ok() {
                    let _ = client.cancel_token().cancel_query(NoTls).await;
                }
            }
        }
    }
}

const LIST_TABLES: &str = "SELECT schemaname AS schema, tablename AS name, tableowner AS owner FROM pg_catalog.pg_tables \
                           WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'isochrone') ORDER BY 1, 2";
