//! Row locks on three real nodes: what waits can be seen, a deadlock over two leaders is broken, limits of time end waits
//! and idle transactions; and eight workers drain a queue through SKIP LOCKED, each job exactly once, while nodes are
//! killed -9.
#![allow(clippy::disallowed_methods, reason = "measures how long real servers take")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, PATIENCE};
use isochrone_cli::inspect::{self, describe};
use tokio_postgres::{Client, Error};

const WORKERS: usize = 8;
const JOBS: i32 = 10_000;
/// The promise.
const DEADLOCK_MAX: Duration = Duration::from_secs(1);
/// A node that works is killed after so many more jobs.
const JOBS_BETWEEN_KILLS: u64 = 1_200;

fn code(e: &Error) -> String {
    e.as_db_error().map_or_else(String::new, |e| e.code().code().to_string())
}

async fn waiting(client: &Client) -> Vec<(String, String, String)> {
    let rows = client
        .query(
            "SELECT \"table\", key, mode FROM isochrone.locks WHERE NOT granted AND waited < '1 hour'",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_are_seen_and_end() {
    let cluster = Cluster::start(&[]).await;
    let [a, b, c] = [cluster.connect(1).await, cluster.connect(2).await, cluster.connect(3).await];
    a.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int); ALTER TABLE t SPLIT AT VALUES (10), (20);
         INSERT INTO t SELECT i, 0 FROM generate_series(0, 29) i",
    )
    .await
    .unwrap();
    let shards = inspect::spread_leaders(&a, "t", &cluster.nodes(), PATIENCE).await;
    cluster.expect(shards);

    // A wait, as a third node shows it.
    a.batch_execute("BEGIN; SELECT 1 FROM t WHERE id = 15 FOR NO KEY UPDATE").await.unwrap();
    let wait = tokio::spawn(async move {
        let result = b.batch_execute("BEGIN; SELECT 1 FROM t WHERE id = 15 FOR SHARE").await;
        (b, result)
    });
    let began = Instant::now();
    let seen = loop {
        let seen = waiting(&c).await;
        if !seen.is_empty() || began.elapsed() > PATIENCE {
            break seen;
        }
    };
    assert_eq!(seen, [("t".to_string(), "/t/primary/15".to_string(), "FOR SHARE".to_string())]);
    let refused = c.batch_execute("SELECT 1 FROM t WHERE id = 15 FOR UPDATE NOWAIT").await.unwrap_err();
    assert_eq!(describe(&refused), "could not obtain lock on row in relation \"t\" (SQLSTATE 55P03)");
    let free = c.query("SELECT id FROM t WHERE id BETWEEN 14 AND 16 ORDER BY id FOR UPDATE SKIP LOCKED", &[]);
    assert_eq!(free.await.unwrap().iter().map(|r| r.get(0)).collect::<Vec<i32>>(), [14, 16]);
    c.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let late = c.batch_execute("UPDATE t SET n = 1 WHERE id = 15").await.unwrap_err();
    assert_eq!(code(&late), "55P03", "{}", describe(&late));
    c.batch_execute("SET lock_timeout = 0; SET statement_timeout = '50ms'").await.unwrap();
    let late = c.batch_execute("UPDATE t SET n = 1 WHERE id = 15").await.unwrap_err();
    assert_eq!(code(&late), "57014", "{}", describe(&late));
    c.batch_execute("SET statement_timeout = 0").await.unwrap();
    a.batch_execute("COMMIT").await.unwrap();
    let (b, result) = wait.await.unwrap();
    result.unwrap();
    // The requests that gave up hold nothing back.
    b.batch_execute("ROLLBACK").await.unwrap();
    c.batch_execute("SELECT 1 FROM t WHERE id = 15 FOR UPDATE NOWAIT").await.unwrap();

    // Each holds a row of another leader and wants the other's.
    a.batch_execute("BEGIN; UPDATE t SET n = n + 1 WHERE id = 15").await.unwrap();
    b.batch_execute("BEGIN; UPDATE t SET n = n + 1 WHERE id = 25").await.unwrap();
    let began = Instant::now();
    let (x, y) = tokio::join!(
        async {
            let result = a.batch_execute("UPDATE t SET n = n + 1 WHERE id = 25").await;
            let after = began.elapsed();
            let _end = a.batch_execute("COMMIT").await;
            (result, after)
        },
        async {
            let result = b.batch_execute("UPDATE t SET n = n + 1 WHERE id = 15").await;
            let after = began.elapsed();
            let _end = b.batch_execute("COMMIT").await;
            (result, after)
        }
    );
    let victims: Vec<_> = [&x, &y].into_iter().filter(|r| r.0.is_err()).collect();
    assert_eq!(victims.len(), 1, "{x:?} {y:?}");
    assert_eq!(code(victims[0].0.as_ref().unwrap_err()), "40P01");
    assert!(victims[0].1 < DEADLOCK_MAX, "broken after {:?}", victims[0].1);
    println!("a deadlock over two nodes was broken after {:?}", victims[0].1);
    let sums = c.query_one("SELECT sum(n)::int FROM t WHERE id IN (15, 25)", &[]).await.unwrap();
    assert_eq!(sums.get::<_, i32>(0), 2);

    // An idle transaction ends, with its connection and its locks.
    c.batch_execute(
        "SET idle_in_transaction_session_timeout = '100ms'; BEGIN; UPDATE t SET n = 7 WHERE id = 5",
    )
    .await
    .unwrap();
    a.batch_execute("UPDATE t SET n = 8 WHERE id = 5").await.unwrap();
    let end = c.batch_execute("COMMIT").await.unwrap_err();
    assert!(c.is_closed() || code(&end) == "25P03", "{}", describe(&end));
}

/// What a worker does when its node does not answer: asks the next one.
async fn connect(cluster: &[std::net::SocketAddr], at: &mut usize) -> Client {
    let connected = async {
        loop {
            *at += 1;
            if let Ok(client) = inspect::connect(cluster[*at % cluster.len()]).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("one of three nodes can be reached")
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    unknown: AtomicU64,
    again: AtomicU64,
}

/// May the transaction be tried again? It certainly did nothing, or its node is gone and the caller looks.
fn passing(e: &Error) -> bool {
    let code = code(e);
    e.is_closed()
        || e.as_db_error().is_none()
        || code.starts_with("40")
        || ["57P01", "57P03"].contains(&&*code)
}

/// One job in one transaction; `Ok(None)`: none was free behind `last`.
async fn take(client: &Client, worker: i32, last: i32) -> Result<Option<i32>, (Option<i32>, Error)> {
    let before = |e| (None, e);
    client.batch_execute("BEGIN").await.map_err(before)?;
    let sql = "SELECT id FROM jobs WHERE id > $1 ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1";
    let rows = client.query(sql, &[&last]).await.map_err(before)?;
    let Some(job) = rows.first().map(|r| r.get::<_, i32>(0)) else {
        client.batch_execute("ROLLBACK").await.map_err(before)?;
        return Ok(None);
    };
    client.execute("INSERT INTO done VALUES ($1, $2)", &[&job, &worker]).await.map_err(before)?;
    let gone = client.execute("DELETE FROM jobs WHERE id = $1", &[&job]).await.map_err(before)?;
    assert_eq!(gone, 1, "job {job} was returned under its lock");
    // From here on an error says nothing.
    client.batch_execute("COMMIT").await.map_err(|e| (Some(job), e))?;
    Ok(Some(job))
}

async fn work(gateways: Vec<std::net::SocketAddr>, worker: usize, counts: Arc<Counts>) -> Vec<i32> {
    let (mut at, mut last, mut mine) = (worker, -1, Vec::new());
    let mut client = connect(&gateways, &mut at).await;
    loop {
        match take(&client, worker as i32, last).await {
            Ok(Some(job)) => {
                last = job;
                mine.push(job);
                counts.done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(None) if last >= 0 => last = -1, // some may have come free behind
            Ok(None) => {
                let left = client.query_one("SELECT count(*) FROM jobs", &[]).await;
                match left {
                    Ok(row) if row.get::<_, i64>(0) == 0 => return mine,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await, // others have them
                }
                if client.is_closed() {
                    client = connect(&gateways, &mut at).await;
                }
            }
            Err((job, e)) => {
                assert!(passing(&e), "worker {worker}: {}", describe(&e));
                counts.again.fetch_add(1, Ordering::Relaxed);
                if client.is_closed() || client.batch_execute("ROLLBACK").await.is_err() {
                    client = connect(&gateways, &mut at).await;
                }
                let certain = code(&e).starts_with("40") && code(&e) != "40003";
                let Some(job) = job.filter(|_| !certain) else { continue };
                // COMMIT was sent: was the job done?
                counts.unknown.fetch_add(1, Ordering::Relaxed);
                loop {
                    let sql = "SELECT worker FROM done WHERE id = $1";
                    match client.query_opt(sql, &[&job]).await {
                        Ok(row) => {
                            if row.is_some_and(|r| r.get::<_, i32>(0) == worker as i32) {
                                mine.push(job);
                                counts.done.fetch_add(1, Ordering::Relaxed);
                            }
                            break;
                        }
                        Err(_) => client = connect(&gateways, &mut at).await,
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_drain_a_queue_exactly_once() {
    let mut cluster = Cluster::start(&[]).await;
    let client = cluster.connect(1).await;
    client
        .batch_execute(
            "CREATE TABLE jobs (id int PRIMARY KEY, payload text);
             CREATE TABLE done (id int PRIMARY KEY, worker int NOT NULL);
             ALTER TABLE jobs SPLIT AT VALUES (3333), (6666)",
        )
        .await
        .unwrap();
    let sql = format!("INSERT INTO jobs SELECT i, 'job ' || i FROM generate_series(0, {}) i", JOBS - 1);
    client.batch_execute(&sql).await.unwrap();
    let shards = inspect::spread_leaders(&client, "jobs", &cluster.nodes(), PATIENCE).await;
    cluster.expect(shards);
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let workers: Vec<_> =
        (0..WORKERS).map(|w| tokio::spawn(work(cluster.gateways(), w, counts.clone()))).collect();
    let mut kills = 0;
    while !workers.iter().all(tokio::task::JoinHandle::is_finished) {
        let goal = (kills + 1) * JOBS_BETWEEN_KILLS;
        if counts.done.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let Some(failed) = workers.iter().position(|w| w.is_finished())
                && counts.done.load(Ordering::Relaxed) < (JOBS as u64) / 2
            {
                panic!("worker {failed} has ended early");
            }
            assert!(began.elapsed() < 2 * PATIENCE, "{} jobs done", counts.done.load(Ordering::Relaxed));
            continue;
        }
        let node = (kills % 3) as u32 + 1;
        cluster.kill(node);
        kills += 1;
        let at = counts.done.load(Ordering::Relaxed);
        let on = async {
            while counts.done.load(Ordering::Relaxed) < (at + 100).min(JOBS as u64) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, on)
            .await
            .unwrap_or_else(|_| panic!("no job was done without node {node}"));
        cluster.restart(node).await;
    }
    let took = began.elapsed();
    let mut all = Vec::new();
    for w in workers {
        all.push(w.await.unwrap());
    }
    let client = cluster.connect(1).await;
    let left = client.query_one("SELECT count(*) FROM jobs", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    let done = client.query("SELECT id, worker FROM done ORDER BY id", &[]).await.unwrap();
    let done: Vec<(i32, i32)> = done.iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(done.iter().map(|d| d.0).collect::<Vec<_>>(), (0..JOBS).collect::<Vec<_>>());
    // And everybody knows what it did.
    let mut told: Vec<(i32, i32)> =
        all.iter().enumerate().flat_map(|(w, jobs)| jobs.iter().map(move |j| (*j, w as i32))).collect();
    told.sort_unstable();
    assert_eq!(told, done);
    let [unknown, again] = [&counts.unknown, &counts.again].map(|c| c.load(Ordering::Relaxed));
    println!(
        "{JOBS} jobs by {WORKERS} workers in {took:?}: {kills} kills, {again} transactions again, {unknown} looked after; by worker {:?}",
        all.iter().map(Vec::len).collect::<Vec<_>>()
    );
    assert!(kills >= 5, "only {kills} kills");
}
