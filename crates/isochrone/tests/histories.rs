//! Histories of lists over real nodes, judged as Elle judges them (`isochrone-check`), at each level, while nodes are killed
//! and paused, links are cut, leaderships move and shards split: no anomaly that the level excludes, and nothing acknowledged
//! is lost.
//!
//! Needs what `common::real` needs, and says so where it skips. A smoke of a few seconds a level by default;
//! `ISOCHRONE_HISTORY_SECONDS=480` and `ISOCHRONE_BIN` for runs that last.
#![allow(clippy::disallowed_methods, reason = "waits for answers of real servers")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::cluster::PATIENCE;
use common::real::{Lab, Loss, cut, in_lab};
use isochrone_check::append::{Op, TxnNo};
use isochrone_check::lists::{self, Lists, PER_PLACE, Rules};
use isochrone_check::{Level, Outcome};
use isochrone_cli::inspect;
use isochrone_env::os::OsClock;
use isochrone_env::{Clock, SplitMix64, os};
use tokio_postgres::{Client, NoTls};

/// Clients of each node.
const CLIENTS: u64 = 4;
/// Lists at a time, and appends to each before the next one takes its place.
const PLACES: u64 = 12;
const APPENDS_MAX: u32 = 40;
/// Intervals of acknowledged values that are remembered, per client.
const RUNS_MAX: usize = 1_000_000;
/// A statement without an answer for so long is given up, and its connection with it.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a fault lasts, and the pause behind it.
const FAULT_MS: (u64, u64) = (500, 3_000);

/// The levels: what a client says, and what must hold.
const LEVELS: [(&str, &str, Level); 4] = [
    ("READ COMMITTED", "", Level::ReadCommitted),
    ("REPEATABLE READ", "", Level::SnapshotIsolation),
    ("SERIALIZABLE", "", Level::Serializable),
    ("SERIALIZABLE", "SET transaction_consistency = 'external'", Level::StrictSerializable),
];

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}

/// What clients did and were told.
struct Told {
    lists: Lists,
    /// Committed, aborted, unknown.
    outcomes: [u64; 3],
}

impl Told {
    fn new(level: Level) -> Told {
        let (places, appends_max, runs_max) = (PLACES, APPENDS_MAX, RUNS_MAX);
        let lists = Lists::new(Rules { level, places, appends_max, runs_max, check_every: None });
        Told { lists, outcomes: [0; 3] }
    }

    fn wrong(&mut self) -> Option<String> {
        self.lists.take_findings().first().map(|f| f.to_string())
    }
}

struct Run {
    told: Mutex<Told>,
    clock: OsClock,
    over: AtomicBool,
    begin: String,
    settings: &'static str,
}

impl Run {
    fn now_us(&self) -> u64 {
        self.clock.monotonic_ns() / 1_000
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("no client panics while it holds the book")
    }
}

/// Why a statement has no answer: with an SQLSTATE, or because nobody answered.
enum Failed {
    State(String, String),
    Nobody,
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(ANSWER_MAX, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => match e.code() {
            Some(code) => Err(Failed::State(code.code().to_string(), e.to_string())),
            None => Err(Failed::Nobody),
        },
        Err(_) => Err(Failed::Nobody),
    }
}

async fn open(gateway: SocketAddr, settings: &str) -> Option<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(gateway.ip().to_string()).port(gateway.port()).user("root").dbname("isochrone");
    config.connect_timeout(Duration::from_secs(2));
    let (client, connection) = tokio::time::timeout(ANSWER_MAX, config.connect(NoTls)).await.ok()?.ok()?;
    tokio::spawn(connection);
    within(client.batch_execute(&format!("SET lock_timeout = '2s'; {settings}"))).await.ok()?;
    Some(client)
}

/// What an error at the end of a transaction says about it (R22).
fn outcome_of(failed: &Failed) -> Outcome {
    match failed {
        Failed::State(state, text) => match state.as_str() {
            "40003" | "57P01" | "57P02" => Outcome::Unknown,
            "40001" | "40P01" | "55P03" | "25P02" | "57P03" | "57014" | "58030" | "53100" | "54000" => {
                Outcome::Aborted
            }
            _ => panic!("an error that cannot happen: {text}"),
        },
        Failed::Nobody => Outcome::Unknown,
    }
}

async fn client(run: Arc<Run>, gateway: SocketAddr, number: u64, seed: u64) {
    let random = SplitMix64::split(seed, &format!("client {number}"));
    let mut connection: Option<Client> = None;
    while !run.over.load(Ordering::Relaxed) {
        let Some(client) = &connection else {
            connection = open(gateway, run.settings).await;
            if connection.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await; // the node is down
            }
            continue;
        };
        let txn = run.told().lists.begin(number, run.now_us());
        let mut ops = Vec::new();
        let ended = transaction(&run, client, &random, number, &mut ops).await;
        let outcome = match &ended {
            Ok(()) => Outcome::Committed,
            // Before COMMIT was sent nothing can have been committed.
            Err((false, failed)) => {
                let _checked = outcome_of(failed);
                Outcome::Aborted
            }
            Err((true, failed)) => outcome_of(failed),
        };
        end(&run, txn, outcome, ops);
        match ended {
            Err((_, Failed::Nobody)) => connection = None,
            Err(_) if within(client.batch_execute("ROLLBACK")).await.is_err() => connection = None,
            _ => {}
        }
    }
}

fn end(run: &Run, txn: TxnNo, outcome: Outcome, ops: Vec<Op>) {
    let told = &mut *run.told();
    told.lists.finish(txn, outcome, ops, run.now_us());
    told.outcomes[outcome as usize] += 1;
}

/// One transaction; an error says whether its COMMIT was sent.
async fn transaction(
    run: &Run,
    client: &Client,
    random: &SplitMix64,
    number: u64,
    ops: &mut Vec<Op>,
) -> Result<(), (bool, Failed)> {
    within(client.batch_execute(&run.begin)).await.map_err(|e| (false, e))?;
    for _ in 0..1 + random.below(4) {
        statement(run, client, random, number, ops).await.map_err(|e| (false, e))?;
    }
    within(client.batch_execute("COMMIT")).await.map_err(|e| (true, e))
}

async fn statement(
    run: &Run,
    client: &Client,
    random: &SplitMix64,
    number: u64,
    ops: &mut Vec<Op>,
) -> Result<(), Failed> {
    let place = random.below(PLACES);
    match random.below(5) {
        shape @ (0 | 1) => {
            let key = run.told().lists.list(place);
            let by = if shape == 0 { "id" } else { "tag" };
            let sql = format!("SELECT v FROM lists WHERE {by} = $1");
            let rows = within(client.query(&sql, &[&(key as i64)])).await?;
            ops.push(Op::Read { key, list: list(rows.first().map(|r| r.get(0))) });
        }
        2 => {
            let last = (place + 1).min(PLACES - 1);
            let keys: Vec<u64> = {
                let told = run.told();
                (place..=last).map(|p| told.lists.list(p)).collect()
            };
            let (from, to) = ((place * PER_PLACE) as i64, ((last + 1) * PER_PLACE) as i64);
            let scan = "SELECT id, v FROM lists WHERE id >= $1 AND id < $2";
            let rows = within(client.query(scan, &[&from, &to])).await?;
            for key in keys {
                let row = rows.iter().find(|r| r.get::<_, i64>(0) == key as i64);
                ops.push(Op::Read { key, list: list(row.map(|r| r.get(1))) });
            }
        }
        shape => {
            let (key, value) = run.told().lists.append_to(place, number);
            // Sent from here on, whatever becomes of it.
            if shape == 3 {
                let locking = "SELECT v FROM lists WHERE id = $1 FOR UPDATE";
                let rows = within(client.query(locking, &[&(key as i64)])).await;
                if let Ok(rows) = &rows {
                    ops.push(Op::Read { key, list: list(rows.first().map(|r| r.get(0))) });
                }
                if let Err(failed) = rows {
                    ops.push(Op::Append { key, value });
                    return Err(failed);
                }
            }
            ops.push(Op::Append { key, value });
            let upsert = "INSERT INTO lists VALUES ($1, $1, ',' || $2::text) \
                          ON CONFLICT (id) DO UPDATE SET v = lists.v || ',' || $2::text";
            within(client.execute(upsert, &[&(key as i64), &value.to_string()])).await?;
        }
    }
    Ok(())
}

/// The values of a list; no row is an empty one.
fn list(v: Option<&str>) -> Vec<u64> {
    v.map_or(Vec::new(), |text| lists::parse(text).expect("a list"))
}

/// One fault, and its end.
async fn trouble(lab: &mut Lab, random: &SplitMix64) -> &'static str {
    let nodes = lab.cluster.nodes();
    let node = nodes[random.below(nodes.len() as u64) as usize];
    let other = nodes.iter().copied().find(|n| *n != node).expect("there are three");
    let lasts = Duration::from_millis(FAULT_MS.0 + random.below(FAULT_MS.1));
    match random.below(7) {
        0 | 1 => {
            lab.cluster.kill(node);
            tokio::time::sleep(lasts).await;
            lab.start(&[node]).await;
            "kill"
        }
        2 => {
            lab.cluster.signal("STOP", &[node]);
            tokio::time::sleep(lasts).await;
            lab.cluster.signal("CONT", &[node]);
            "pause"
        }
        3 => {
            let others = nodes.iter().filter(|n| **n != node);
            let cuts: Vec<Loss> = others.flat_map(|n| [cut(node, *n), cut(*n, node)]).collect();
            lab.lose(&cuts);
            tokio::time::sleep(lasts).await;
            lab.lose(&[]);
            "partition"
        }
        4 => {
            lab.lose(&[cut(node, other)]);
            tokio::time::sleep(lasts).await;
            lab.lose(&[]);
            "one-way partition"
        }
        5 => {
            let shard = 1 + random.below(8);
            // Not every shard is there, nor is every node a good place: refusals are answers too.
            statement_at(lab, node, &format!("ALTER SHARD {shard} TRANSFER LEADER TO {other}")).await;
            "leader transfer"
        }
        _ => {
            let key = random.below(PLACES * PER_PLACE);
            statement_at(lab, node, &format!("ALTER TABLE lists SPLIT AT VALUES ({key})")).await;
            "split"
        }
    }
}

async fn statement_at(lab: &Lab, node: u32, sql: &str) {
    if let Some(client) = open(lab.cluster.local.node(node).sql, "").await {
        let _refused = within(client.batch_execute(sql)).await;
    }
}

#[test]
fn lists_at_every_level() {
    in_lab("lists_at_every_level", 3, async |mut lab| {
        let seconds = knob("ISOCHRONE_HISTORY_SECONDS", 6);
        let seed = knob("ISOCHRONE_REAL_SEED", os::entropy().unwrap());
        println!("ISOCHRONE_REAL_SEED={seed}");
        lab.open(&[]).await;
        for (level, settings, checked) in LEVELS {
            let name = if settings.is_empty() { level } else { settings };
            let first = open(lab.cluster.gateways()[0], "").await.expect("the node serves");
            let table = format!(
                "DROP TABLE IF EXISTS lists; \
                 CREATE TABLE lists (id int8 PRIMARY KEY, tag int8 NOT NULL, v text NOT NULL); \
                 CREATE INDEX lists_tag ON lists (tag); ALTER TABLE lists SPLIT AT VALUES ({}), ({})",
                PLACES / 3 * PER_PLACE,
                2 * PLACES / 3 * PER_PLACE,
            );
            for statement in table.split("; ") {
                first.batch_execute(statement).await.unwrap();
            }
            let spread = inspect::spread_leaders(&first, "lists", &lab.cluster.nodes(), PATIENCE).await;
            lab.cluster.expect(spread);
            let run = Arc::new(Run {
                told: Mutex::new(Told::new(checked)),
                clock: OsClock::new(0),
                over: AtomicBool::new(false),
                begin: format!("BEGIN ISOLATION LEVEL {level}"),
                settings,
            });
            let mut clients = Vec::new();
            for (node, gateway) in lab.cluster.gateways().into_iter().enumerate() {
                for id in 0..CLIENTS {
                    let number = node as u64 * 100 + id + 1;
                    clients.push(tokio::spawn(client(run.clone(), gateway, number, seed)));
                }
            }
            let random = SplitMix64::split(seed, name);
            let until = run.now_us() + seconds * 1_000_000;
            let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
            while run.now_us() < until {
                *faults.entry(trouble(&mut lab, &random).await).or_default() += 1;
                if let Some(wrong) = run.told().wrong() {
                    panic!("{name}: {wrong}");
                }
                tokio::time::sleep(Duration::from_millis(random.below(FAULT_MS.1))).await;
            }
            run.over.store(true, Ordering::Relaxed);
            for client in clients {
                client.await.expect("a client does not panic");
            }
            lab.resumes_with(&lab.cluster.nodes(), "UPDATE lists SET v = v").await;
            let first = open(lab.cluster.gateways()[0], "").await.expect("the node serves");
            let rows = first.query("SELECT id, v FROM lists", &[]).await.unwrap();
            let told = &mut *run.told();
            let at_rest = rows.iter().map(|row| (row.get::<_, i64>(0) as u64, list(Some(row.get(1)))));
            told.lists.end(at_rest, run.now_us());
            assert_eq!(told.wrong(), None, "{name}");
            let [committed, aborted, unknown] = told.outcomes;
            println!(
                "{name}, {seconds} s: {committed} committed, {aborted} aborted, {unknown} unknown; faults {faults:?}; {:?}",
                told.lists.stats()
            );
            assert!(committed > 20);
        }
        lab.cluster.close_and_verify().await;
    });
}
