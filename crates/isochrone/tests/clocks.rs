//! Nodes whose clocks are set, on purpose, by the file of `--unsafe-clock-offset-file`: who is out of its bound serves
//! nobody and does no harm to others, comes back by itself, and never repeats a timestamp.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use common::Server;
use common::cluster::{Cluster, PATIENCE};
use isochrone_cli::inspect;
use isochrone_env::Clock;
use isochrone_env::os::OsClock;
use tokio_postgres::Client;

/// Within this a wrong clock must be noticed, and a right one again.
const NOTICED_MAX: Duration = Duration::from_secs(5);
const HOUR_MS: i64 = 3_600_000;

async fn ok(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {}", inspect::describe(&e)));
}

async fn cells(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let rows = inspect::rows(client, sql).await.unwrap();
    let text = |row: &tokio_postgres::SimpleQueryRow, i| row.get(i).unwrap_or("").to_string();
    rows.iter().map(|row| (0..row.len()).map(|i| text(row, i)).collect()).collect()
}

/// Repeats until it is so; how long that took.
async fn until(what: &str, most: Duration, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let clock = OsClock::new(0);
    let began = clock.monotonic_ns();
    loop {
        let took = Duration::from_nanos(clock.monotonic_ns() - began);
        if is_so().await {
            return took;
        }
        assert!(took < most, "{what}: not after {took:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn health(http: SocketAddr) -> String {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// What a statement at this node ends with: nothing, or its SQLSTATE and message.
async fn refusal(client: &Client) -> Option<(String, String)> {
    let error = client.simple_query("SELECT balance FROM accounts WHERE id = 1").await.err()?;
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
    Some((error.code().code().to_string(), error.message().to_string()))
}

struct Wrong {
    cluster: Cluster,
}

impl Wrong {
    async fn start() -> Wrong {
        let mut cluster = Cluster::prepare(&["--insecure"]);
        for place in 0..3 {
            let file = cluster.dir().join(format!("offset{place}"));
            std::fs::write(&file, "0").unwrap();
            let file = file.display().to_string();
            cluster.local.add_arguments_of(place, &["--unsafe-clock-offset-file", &file]);
        }
        let formed = cluster.local.form(PATIENCE).await;
        cluster.expect(formed);
        Wrong { cluster }
    }

    fn set(&self, node: u32, ms: i64) {
        let place = self.cluster.local.node(node).cluster;
        let place = self.cluster.local.places().iter().position(|p| p.cluster == place).unwrap();
        let file = self.cluster.dir().join(format!("offset{place}"));
        // Whole at any moment.
        let new = file.with_extension("new");
        std::fs::write(&new, ms.to_string()).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// How many shards a node leads, says itself.
    async fn led(&self, client: &Client, node: u32) -> String {
        let sql = format!("SELECT count(*) FROM isochrone.replicas WHERE node = {node} AND role = 'leader'");
        cells(client, &sql).await[0][0].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_takes_its_node_out_of_service() {
    let mut wrong = Wrong::start().await;
    wrong.cluster.open_bank().await;
    let clients =
        [wrong.cluster.connect(1).await, wrong.cluster.connect(2).await, wrong.cluster.connect(3).await];
    let [good, bad, other] = &clients;
    let transfer = "BEGIN; UPDATE accounts SET balance = balance - 1 WHERE id = 1; \
                    UPDATE accounts SET balance = balance + 1 WHERE id = 1500; \
                    UPDATE accounts SET balance = balance + 0 WHERE id = 2900; COMMIT";
    // Within the bound nothing happens, and what is measured can be read.
    wrong.set(2, 100);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(refusal(bad).await, None);
    let measured = cells(
        good,
        "SELECT node, peer, clock_offset BETWEEN '50 ms' AND '150 ms', source, in_service FROM isochrone.clocks \
         WHERE node = 2 ORDER BY peer",
    )
    .await;
    assert_eq!(measured, [["2", "1", "t", "fixed", "t"], ["2", "3", "t", "fixed", "t"]]);
    for ms in [HOUR_MS, -HOUR_MS, 2_000] {
        wrong.set(2, ms);
        let mut said = None;
        let took = until("out of service", NOTICED_MAX, async || {
            said = refusal(bad).await;
            said.is_some()
        })
        .await;
        let (code, message) = said.unwrap();
        println!("{ms} ms: noticed after {took:?}: {message}");
        assert!(code == "57P03" && message.contains("out of service: its clock"), "{code}: {message}");
        let health = health(wrong.cluster.local.node(2).http);
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("out of service"), "{health}");
        // Its shards go to others, who are in no trouble: no timestamp of the wrong hour has come to them.
        until("led by others", Duration::from_secs(15), async || wrong.led(good, 2).await == "0").await;
        for client in [good, other] {
            let took = until("commits", Duration::from_secs(5), async || {
                let done = client.batch_execute(transfer).await;
                if done.is_err() {
                    let _in_a_failed_block = client.batch_execute("ROLLBACK").await;
                }
                done.is_ok()
            })
            .await;
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        let seen = cells(good, "SELECT DISTINCT node, in_service FROM isochrone.clocks ORDER BY node").await;
        assert_eq!(seen, [["1", "t"], ["2", "f"], ["3", "t"]]);
        // None is given to it, not even by hand.
        until("none is given to it", NOTICED_MAX, async || {
            let given = good.batch_execute("ALTER SHARD 1 TRANSFER LEADER TO 2").await;
            given.is_err_and(|e| inspect::describe(&e).contains("out of service"))
        })
        .await;
        wrong.set(2, 0);
        let took = until("back", NOTICED_MAX, async || refusal(bad).await.is_none()).await;
        println!("{ms} ms: back after {took:?}");
        ok(bad, transfer).await;
    }
    // A node that is started with a wrong clock does not serve before it is right.
    wrong.cluster.kill(3);
    wrong.set(3, -600_000);
    let started = wrong.cluster.local.start(3);
    wrong.cluster.expect(started);
    let log = wrong.cluster.local.node(3).log.clone();
    until("it says why", PATIENCE, async || {
        std::fs::read_to_string(&log).unwrap().contains("is 600000 ms behind those of 2 of the 2")
            || std::fs::read_to_string(&log).unwrap().contains("ms behind those of 2 of the 2")
    })
    .await;
    assert!(wrong.cluster.local.ready(3, Duration::from_secs(3)).await.is_err());
    wrong.set(3, 0);
    wrong.cluster.expect(wrong.cluster.local.ready(3, PATIENCE).await);
    let sum = cells(good, "SELECT sum(balance) FROM accounts").await;
    assert_eq!(sum, [["3000000"]], "no money was made");
    wrong.cluster.close_and_verify().await;
}

fn offset_file(dir: &tempfile::TempDir, ms: i64) -> PathBuf {
    let file = dir.path().join("offset");
    std::fs::write(&file, ms.to_string()).unwrap();
    file
}

/// The highest commit timestamp in the log.
async fn last_commit(client: &Client) -> String {
    cells(client, "SELECT max(commit_ts) FROM isochrone.wal").await[0][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_back_repeats_no_timestamp() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let flags = |file: &PathBuf| {
        ["--insecure".to_string(), "--unsafe-clock-offset-file".into(), file.display().to_string()]
    };
    let mut before = String::new();
    for (round, ms) in [0, -HOUR_MS, -2 * HOUR_MS].into_iter().enumerate() {
        let flags = flags(&offset_file(&dir, ms));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = Server::start_with(&data, &flags);
        let client = inspect::connect(server.sql).await.unwrap();
        if round == 0 {
            ok(&client, "CREATE TABLE t (id int PRIMARY KEY)").await;
        }
        for i in 0..5 {
            ok(&client, &format!("INSERT INTO t VALUES ({})", round * 10 + i)).await;
            let now = last_commit(&client).await;
            assert!(now > before, "{now} after {before}");
            before = now;
            // Set back while it runs, too.
            offset_file(&dir, ms - i64::try_from(i).unwrap() * 60_000);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(server); // killed
    }
}

#[test]
fn clocks_that_cannot_be_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = offset_file(&dir, 0).display().to_string();
    let page = dir.path().join("page").display().to_string();
    for (flags, why) in [
        (vec!["--unsafe-clock-offset-file", &*file], "--insecure"),
        (vec!["--insecure", "--unsafe-clock-offset-file", &*page], "--unsafe-clock-offset-file"),
        (vec!["--clock", "sundial"], "expected ntp, clockbound, or fixed:DURATION"),
        (vec!["--clock", "fixed:300ms"], "1 to 250 ms"),
        (vec!["--clock-error-max", "1s"], "--clock-error-max"),
        (vec!["--clock", &*format!("clockbound:{page}")], "--clock clockbound"),
    ] {
        let out = common::isochrone()
            .args(["start", "--data"])
            .arg(dir.path().join("data"))
            .args(["--sql", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cluster", "127.0.0.1:0"])
            .args(&flags)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(why), "{flags:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
