//! Transfers between few accounts by many clients, at SERIALIZABLE, on any server that speaks PostgreSQL's protocol: how many
//! commit a second, and how often a client hears that its transaction was aborted.
//!
//!     cargo run --release --example transfers -- "host=127.0.0.1 port=5433 user=root dbname=isochrone"
//!     ... --seconds 20 --clients 32 --accounts 100 --shape update|read
//!
//! `update`: two UPDATE .. RETURNING in a block. `read`: two SELECT first, then two UPDATE of what was read. A client whose
//! transaction was aborted runs it again until it commits. Ends with one line of figures, and with 1 if money appeared or went.
#![allow(clippy::disallowed_methods, reason = "a client of a real server, which measures time")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isochrone_env::{SplitMix64, os};
use tokio_postgres::{Client, Config, NoTls};

const OPENING: i64 = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Update,
    Read,
}

#[derive(Default)]
struct Counts {
    commits: AtomicU64,
    aborts: AtomicU64,
    over: AtomicBool,
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn client(
    config: Config,
    accounts: u64,
    shape: Shape,
    number: u64,
    counts: Arc<Counts>,
) -> Result<(), tokio_postgres::Error> {
    let random = SplitMix64::new(os::entropy().unwrap_or(number));
    let client = connect(&config).await?;
    let read = client.prepare("SELECT balance FROM transfers WHERE id = $1").await?;
    let add =
        client.prepare("UPDATE transfers SET balance = balance + $2 WHERE id = $1 RETURNING balance").await?;
    let set = client.prepare("UPDATE transfers SET balance = $2 WHERE id = $1").await?;
    while !counts.over.load(Ordering::Relaxed) {
        let from = random.below(accounts);
        let to = (from + 1 + random.below(accounts - 1)) % accounts;
        let (from, to, amount) = (from as i64, to as i64, 1 + random.below(10) as i64);
        loop {
            let attempt = async {
                client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
                match shape {
                    Shape::Update => {
                        client.query(&add, &[&from, &-amount]).await?;
                        client.query(&add, &[&to, &amount]).await?;
                    }
                    Shape::Read => {
                        let a: i64 = client.query_one(&read, &[&from]).await?.get(0);
                        let b: i64 = client.query_one(&read, &[&to]).await?.get(0);
                        client.execute(&set, &[&from, &(a - amount)]).await?;
                        client.execute(&set, &[&to, &(b + amount)]).await?;
                    }
                }
                client.batch_execute("COMMIT").await
            };
            match attempt.await {
                Ok(()) => {
                    counts.commits.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(e) if e.code().is_some_and(|c| ["40001", "40P01"].contains(&c.code())) => {
                    counts.aborts.fetch_add(1, Ordering::Relaxed);
                    client.batch_execute("ROLLBACK").await?;
                    if counts.over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

async fn run() -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let server =
        arguments.next().ok_or("the first argument says how to connect; see the head of this file")?;
    let (mut seconds, mut clients, mut accounts, mut shape) = (10, 32, 100, Shape::Update);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} takes a value"))?;
        match (name.as_str(), value.as_str()) {
            ("--seconds", n) => seconds = n.parse()?,
            ("--clients", n) => clients = n.parse()?,
            ("--accounts", n) => accounts = n.parse::<u64>()?.max(2),
            ("--shape", "update") => shape = Shape::Update,
            ("--shape", "read") => shape = Shape::Read,
            _ => return Err(format!("{name} {value}: see the head of this file").into()),
        }
    }
    let config: Config = server.parse()?;
    let admin = connect(&config).await?;
    admin.batch_execute("DROP TABLE IF EXISTS transfers").await?;
    admin.batch_execute("CREATE TABLE transfers (id bigint PRIMARY KEY, balance bigint NOT NULL)").await?;
    let open =
        format!("INSERT INTO transfers SELECT g, {OPENING} FROM generate_series(0, {}) g", accounts - 1);
    admin.batch_execute(&open).await?;
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|n| tokio::spawn(client(config.clone(), accounts, shape, n, counts.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    counts.over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    let elapsed = began.elapsed().as_secs_f64();
    let total: i64 = admin.query_one("SELECT sum(balance)::bigint FROM transfers", &[]).await?.get(0);
    let (commits, aborts) = (counts.commits.load(Ordering::Relaxed), counts.aborts.load(Ordering::Relaxed));
    let kept = total == OPENING * accounts as i64;
    println!(
        "commits/s={:.0} aborts/commit={:.3} commits={commits} aborts={aborts} seconds={elapsed:.1} total={}",
        commits as f64 / elapsed,
        aborts as f64 / commits.max(1) as f64,
        if kept { "kept" } else { "CHANGED" }
    );
    Ok(kept)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("transfers: {e}");
            ExitCode::from(2)
        }
    }
}
