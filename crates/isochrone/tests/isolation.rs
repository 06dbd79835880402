//! The isolation matrix: ten anomalies (after Martin Kleppmann's Hermitage) at three levels, on one shard and on two, by
//! primary key, by secondary index and by a filter on neither, in the simple and in the extended protocol.
//!
//! What is shown, with the ids of `docs/consistency.md`:
//!   I1  READ COMMITTED and REPEATABLE READ: what every transaction reads, how it ends and what is there at the end is what
//!       PostgreSQL 15 shows (`isolation/postgresql-15.txt`). One difference: a transaction at REPEATABLE READ that waited
//!       for a row goes on as if it had begun after the wait, if nothing that it has read has changed; PostgreSQL ends it
//!       ([`BEGAN_LATER`]).
//!   I2  No level shows what it excludes: each anomaly has a sign, and the table says at which levels it may appear.
//!   I3  SERIALIZABLE commits at least one of the transactions.
//!
//! `ISOCHRONE_POSTGRES="host=.. user=.. dbname=.."` runs the same on a PostgreSQL and writes the file anew.
//!
//! A statement that waits for another transaction is left waiting while the others go on, as a client with several
//! connections would. Every transaction takes its snapshot before the first step, so that how long a step took changes nothing.
#![allow(clippy::disallowed_methods, reason = "waits for answers of a real server")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use common::{Server, connect};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{Client, Config, SimpleQueryMessage};

/// A step that may wait for another transaction is given this long before the others go on.
const PATIENCE: Duration = Duration::from_millis(150);
/// Anything else has this long.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Cases run at a time.
const AT_A_TIME: usize = 12;

const LEVELS: [(&str, &str); 3] =
    [("rc", "READ COMMITTED"), ("rr", "REPEATABLE READ"), ("ser", "SERIALIZABLE")];

/// How a step names its rows.
const ACCESS: [Access; 3] = [
    Access { name: "key", one: "id = 1", two: "id = 2", new: "id >= 3" },
    Access { name: "index", one: "k = 10", two: "k = 20", new: "k >= 30" },
    Access { name: "filter", one: "tag % 100 = 1", two: "tag % 100 = 2", new: "tag % 100 >= 3" },
];

struct Access {
    name: &'static str,
    one: &'static str,
    two: &'static str,
    new: &'static str,
}

/// One anomaly: who does what, and how it would show.
struct Anomaly {
    name: &'static str,
    /// Transaction (from 0) and statement. `{1}`, `{2}`, `{new}`: conditions; `?` in front: may wait for others.
    steps: &'static [(usize, &'static str)],
    /// Is it in what was seen?
    shows: fn(&Seen) -> bool,
    /// The levels at which it may show.
    may_show: &'static [&'static str],
}

/// What a case came to.
struct Seen {
    /// Per transaction: what its statements answered, up to the first error.
    said: Vec<Vec<String>>,
    /// Per transaction: did it commit?
    committed: Vec<bool>,
    /// The rows in the end, as `id=v`.
    rows: String,
}

impl Seen {
    fn both(&self) -> bool {
        self.committed[0] && self.committed[1]
    }
}

const ANOMALIES: &[Anomaly] = &[
    Anomaly {
        name: "G0 dirty write",
        steps: &[
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (1, "?UPDATE t SET v = 12 WHERE {1}"),
            (0, "UPDATE t SET v = 21 WHERE {2}"),
            (0, "COMMIT"),
            (1, "UPDATE t SET v = 22 WHERE {2}"),
            (1, "COMMIT"),
        ],
        shows: |s| s.rows != "1=11 2=21" && s.rows != "1=12 2=22",
        may_show: &[],
    },
    Anomaly {
        name: "G1a aborted read",
        steps: &[
            (0, "UPDATE t SET v = 101 WHERE {1}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (0, "ROLLBACK"),
            (1, "SELECT v FROM t WHERE {1}"),
            (1, "COMMIT"),
        ],
        shows: |s| s.said[1].iter().any(|a| a.contains("101")),
        may_show: &[],
    },
    Anomaly {
        name: "G1b intermediate read",
        steps: &[
            (0, "UPDATE t SET v = 101 WHERE {1}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (0, "COMMIT"),
            (1, "SELECT v FROM t WHERE {1}"),
            (1, "COMMIT"),
        ],
        shows: |s| s.said[1].iter().any(|a| a.contains("101")),
        may_show: &[],
    },
    Anomaly {
        name: "G1c circular information flow",
        steps: &[
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (1, "UPDATE t SET v = 22 WHERE {2}"),
            (0, "SELECT v FROM t WHERE {2}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (0, "COMMIT"),
            (1, "COMMIT"),
        ],
        shows: |s| s.said[0].iter().any(|a| a.contains("22")) && s.said[1].iter().any(|a| a.contains("11")),
        may_show: &[],
    },
    Anomaly {
        name: "OTV observed transaction vanishes",
        steps: &[
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (0, "UPDATE t SET v = 19 WHERE {2}"),
            (1, "?UPDATE t SET v = 12 WHERE {1}"),
            (0, "COMMIT"),
            (2, "SELECT v FROM t WHERE {1}"),
            (1, "UPDATE t SET v = 18 WHERE {2}"),
            (2, "SELECT v FROM t WHERE {2}"),
            (1, "COMMIT"),
            (2, "SELECT v FROM t WHERE {2}"),
            (2, "SELECT v FROM t WHERE {1}"),
            (2, "COMMIT"),
        ],
        // What it saw of one transaction is gone again: 11 and 19, then one of them old, or 12 with 19 behind 18.
        shows: |s| {
            let read: Vec<&str> = s.said[2].iter().map(String::as_str).collect();
            read.len() == 5
                && ((read[0] == "11" && read[1] == "20")
                    || (read[2] == "18" && read[3] == "11")
                    || read[3] == "10" && read[0] == "11")
        },
        may_show: &[],
    },
    Anomaly {
        name: "PMP predicate-many-preceders",
        steps: &[
            (0, "SELECT v FROM t WHERE {new}"),
            (1, "INSERT INTO t VALUES (3, 30, 3, 30)"),
            (1, "COMMIT"),
            (0, "SELECT v FROM t WHERE {new}"),
            (0, "COMMIT"),
        ],
        shows: |s| s.said[0].get(1).is_some_and(|a| a.contains("30")),
        may_show: &["rc"],
    },
    Anomaly {
        name: "P4 lost update",
        steps: &[
            (0, "SELECT v FROM t WHERE {1}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (1, "?UPDATE t SET v = 12 WHERE {1}"),
            (0, "COMMIT"),
            (1, "COMMIT"),
        ],
        shows: Seen::both,
        may_show: &["rc"],
    },
    Anomaly {
        name: "G-single read skew",
        steps: &[
            (0, "SELECT v FROM t WHERE {1}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (1, "SELECT v FROM t WHERE {2}"),
            (1, "UPDATE t SET v = 12 WHERE {1}"),
            (1, "UPDATE t SET v = 18 WHERE {2}"),
            (1, "COMMIT"),
            (0, "SELECT v FROM t WHERE {2}"),
            (0, "COMMIT"),
        ],
        shows: |s| s.said[0].get(1).is_some_and(|a| a == "18"),
        may_show: &["rc"],
    },
    Anomaly {
        name: "G2-item write skew",
        steps: &[
            (0, "SELECT v FROM t WHERE {1}"),
            (0, "SELECT v FROM t WHERE {2}"),
            (1, "SELECT v FROM t WHERE {1}"),
            (1, "SELECT v FROM t WHERE {2}"),
            (0, "UPDATE t SET v = 11 WHERE {1}"),
            (1, "UPDATE t SET v = 21 WHERE {2}"),
            (0, "COMMIT"),
            (1, "COMMIT"),
        ],
        shows: Seen::both,
        may_show: &["rc", "rr"],
    },
    Anomaly {
        name: "G2 anti-dependency cycle",
        steps: &[
            (0, "SELECT v FROM t WHERE {new}"),
            (1, "SELECT v FROM t WHERE {new}"),
            (0, "INSERT INTO t VALUES (3, 30, 3, 30)"),
            (1, "INSERT INTO t VALUES (4, 40, 4, 42)"),
            (0, "COMMIT"),
            (1, "COMMIT"),
        ],
        shows: Seen::both,
        may_show: &["rc", "rr"],
    },
];

/// Where a transaction at REPEATABLE READ goes on as if it had begun later, having read nothing that changed.
const BEGAN_LATER: [(&str, &str); 2] = [
    ("G0 dirty write | rr | key", "T1: ok ok committed; T2: ok ok committed; rows 1=12 2=22"),
    (
        "OTV observed transaction vanishes | rr | key",
        "T1: ok ok committed; T2: ok ok committed; T3: 10 20 20 10 committed; rows 1=12 2=18",
    ),
];

/// One cell of the matrix.
#[derive(Clone, Copy)]
struct Case {
    anomaly: usize,
    level: usize,
    access: usize,
    two_shards: bool,
    extended: bool,
    number: usize,
}

impl Case {
    /// What the case has in common with the same one on PostgreSQL.
    fn key(&self) -> String {
        format!("{} | {} | {}", ANOMALIES[self.anomaly].name, LEVELS[self.level].0, ACCESS[self.access].name)
    }

    fn name(&self) -> String {
        let shards = if self.two_shards { "two shards" } else { "one shard" };
        let protocol = if self.extended { "extended" } else { "simple" };
        format!("{} | {shards} | {protocol}", self.key())
    }
}

/// Rows or the tag's meaning, or the SQLSTATE.
type Answer = Result<String, String>;

async fn say(client: &Client, sql: &str, extended: bool) -> Answer {
    let state = |e: tokio_postgres::Error| match e.as_db_error() {
        Some(e) => format!("{} {}", e.code().code(), e.message()),
        None => e.to_string(),
    };
    let mut values = Vec::new();
    if extended {
        for row in client.query(sql, &[]).await.map_err(state)? {
            values.push(row.get::<_, i32>(0).to_string());
        }
    } else {
        for message in client.simple_query(sql).await.map_err(state)? {
            if let SimpleQueryMessage::Row(row) = message {
                values.push(row.get(0).unwrap_or("null").to_string());
            }
        }
    }
    values.sort();
    Ok(values.join(","))
}

/// A connection that does one statement after the other.
fn connection(client: Client, extended: bool) -> mpsc::Sender<(String, oneshot::Sender<Answer>)> {
    let (sender, mut todo) = mpsc::channel::<(String, oneshot::Sender<Answer>)>(16);
    tokio::spawn(async move {
        while let Some((sql, answer)) = todo.recv().await {
            let _nobody_waits = answer.send(say(&client, &sql, extended).await);
        }
    });
    sender
}

async fn play(config: Config, case: Case, ours: bool) -> Seen {
    let anomaly = &ANOMALIES[case.anomaly];
    let access = &ACCESS[case.access];
    let table = format!("t{}", case.number);
    let admin = connect(&config).await.unwrap();
    let set_up = format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, k int, tag int, v int); CREATE INDEX ON {table} (k); \
         INSERT INTO {table} VALUES (1, 10, 1, 10), (2, 20, 2, 20)"
    );
    admin.batch_execute(&set_up).await.unwrap();
    if ours && case.two_shards {
        admin.batch_execute(&format!("ALTER TABLE {table} SPLIT AT VALUES (2)")).await.unwrap();
    }
    let count = anomaly.steps.iter().map(|(who, _)| who + 1).max().unwrap_or(0);
    let mut connections = Vec::new();
    for _ in 0..count {
        let client = connect(&config).await.unwrap();
        let begin = format!("BEGIN ISOLATION LEVEL {}", LEVELS[case.level].1);
        client.batch_execute(&begin).await.unwrap();
        // The snapshot is taken here.
        client.batch_execute("SELECT a FROM snapshot").await.unwrap();
        connections.push(connection(client, case.extended));
    }
    let mut waiting: Vec<Vec<(String, oneshot::Receiver<Answer>)>> = (0..count).map(|_| Vec::new()).collect();
    let mut seen = Seen { said: vec![Vec::new(); count], committed: vec![false; count], rows: String::new() };
    let mut failed = vec![false; count];
    for (who, step) in anomaly.steps {
        let (may_wait, step) = step.strip_prefix('?').map_or((false, *step), |s| (true, s));
        let sql = step
            .replace("{1}", access.one)
            .replace("{2}", access.two)
            .replace("{new}", access.new)
            .replace(" t ", &format!(" {table} "));
        let (sender, receiver) = oneshot::channel();
        connections[*who].send((sql.clone(), sender)).await.unwrap();
        waiting[*who].push((sql, receiver));
        // What this transaction still waits for comes first. A step behind one that waits is not waited for either.
        let patience = if may_wait || waiting[*who].len() > 1 { PATIENCE } else { STEP_MAX };
        let answered = tokio::time::timeout(patience, async {
            while let Some((sql, receiver)) = waiting[*who].first_mut() {
                let answer = receiver.await.unwrap();
                note(&mut seen, &mut failed, *who, sql, answer);
                waiting[*who].remove(0);
            }
        });
        if answered.await.is_err() {
            assert!(patience < STEP_MAX, "{}: {step} of transaction {who} has no answer", case.name());
        }
    }
    for (who, left) in waiting.into_iter().enumerate() {
        for (sql, receiver) in left {
            let answer = tokio::time::timeout(STEP_MAX, receiver).await;
            let answer = answer.unwrap_or_else(|_| panic!("{}: {sql} has no answer", case.name())).unwrap();
            note(&mut seen, &mut failed, who, &sql, answer);
        }
    }
    let rows = admin.query(&format!("SELECT id, v FROM {table} ORDER BY id"), &[]).await.unwrap();
    let rows: Vec<_> =
        rows.iter().map(|r| format!("{}={}", r.get::<_, i32>(0), r.get::<_, i32>(1))).collect();
    seen.rows = rows.join(" ");
    seen
}

/// Takes down an answer. After its first error a transaction has nothing more to say.
fn note(seen: &mut Seen, failed: &mut [bool], who: usize, sql: &str, answer: Answer) {
    match answer {
        _ if failed[who] => {}
        Ok(_) if sql == "COMMIT" => seen.committed[who] = true,
        Ok(_) if sql == "ROLLBACK" => failed[who] = true,
        Ok(rows) if sql.starts_with("SELECT") => seen.said[who].push(rows),
        Ok(_) => seen.said[who].push("ok".into()),
        Err(error) => {
            assert!(error.starts_with("40001"), "{sql}: {error}");
            if std::env::var_os("ISOCHRONE_VERBOSE").is_some() {
                println!("{sql}: {error}");
            }
            failed[who] = true;
        }
    }
}

/// What of it has to be the same on PostgreSQL. Where an error comes does not count: a read before it does.
fn transcript(seen: &Seen) -> String {
    let mut out = String::new();
    for (who, said) in seen.said.iter().enumerate() {
        let end = if seen.committed[who] { "committed" } else { "not committed" };
        let said = if seen.committed[who] { said.join(" ") } else { String::new() };
        let _ = write!(out, "T{}: {said} {end}; ", who + 1);
    }
    let _ = write!(out, "rows {}", seen.rows);
    out
}

async fn all(config: &Config, cases: Vec<Case>, ours: bool) -> Vec<(Case, Seen)> {
    let admin = connect(config).await.unwrap();
    admin.batch_execute("CREATE TABLE snapshot (a int)").await.unwrap();
    let mut seen = Vec::new();
    let mut running = tokio::task::JoinSet::new();
    for case in cases {
        if running.len() >= AT_A_TIME {
            seen.push(running.join_next().await.unwrap().unwrap());
        }
        let config = config.clone();
        running.spawn(async move { (case, play(config, case, ours).await) });
    }
    while let Some(done) = running.join_next().await {
        seen.push(done.unwrap());
    }
    seen
}

fn cases(ours: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for anomaly in 0..ANOMALIES.len() {
        for level in 0..LEVELS.len() {
            for access in 0..ACCESS.len() {
                for two_shards in [false, true] {
                    for extended in [false, true] {
                        if ours || !(two_shards || extended) {
                            let number = cases.len();
                            cases.push(Case { anomaly, level, access, two_shards, extended, number });
                        }
                    }
                }
            }
        }
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_isolation_matrix() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/isolation/postgresql-15.txt");
    if let Ok(url) = std::env::var("ISOCHRONE_POSTGRES") {
        let config: Config = url.parse().unwrap();
        let seen = all(&config, cases(false), false).await;
        let lines: BTreeMap<String, String> =
            seen.iter().map(|(case, seen)| (case.key(), transcript(seen))).collect();
        let text: String = lines.iter().map(|(key, line)| format!("{key} | {line}\n")).collect();
        std::fs::write(golden, text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(golden).unwrap();
    let on_postgresql: BTreeMap<String, &str> = text
        .lines()
        .map(|line| {
            let (key, transcript) = line.rsplit_once(" | ").unwrap();
            (key.to_string(), transcript)
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let mut wrong = Vec::new();
    let (mut fewer, mut more) = (0, 0);
    let cases = cases(true);
    let count = cases.len();
    for (case, seen) in all(&server.config(), cases, true).await {
        let anomaly = &ANOMALIES[case.anomaly];
        let level = LEVELS[case.level].0;
        let transcript = transcript(&seen);
        if (anomaly.shows)(&seen) && !anomaly.may_show.contains(&level) {
            wrong.push(format!("I2 {}: {transcript}", case.name()));
        }
        let theirs = on_postgresql.get(&case.key()).copied();
        let later = BEGAN_LATER.contains(&(case.key().as_str(), transcript.as_str()));
        if level != "ser" && !later && theirs != Some(transcript.as_str()) {
            wrong.push(format!("I1 {}: {transcript}; PostgreSQL: {theirs:?}", case.name()));
        }
        let commits = |text: &str| text.matches(" committed").count() - text.matches("not committed").count();
        if level == "ser" {
            let theirs = commits(theirs.unwrap_or_default());
            fewer += usize::from(commits(&transcript) < theirs);
            more += usize::from(commits(&transcript) > theirs);
        }
        if level == "ser" && !seen.committed.contains(&true) {
            wrong.push(format!("I3 {}: {transcript}", case.name()));
        }
    }
    println!(
        "{count} cases; at SERIALIZABLE {fewer} committed fewer transactions than on PostgreSQL, {more} more"
    );
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}
