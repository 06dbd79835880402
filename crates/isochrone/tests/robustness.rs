//! The real server under statements, clients and loads that go too far: an answer for each, nobody else notices, and
//! memory stays bounded. Resource figures are measured and printed; only gross excess fails.
#![allow(clippy::disallowed_methods, reason = "a test of a real process measures real time")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::Server;
use tokio_postgres::{Client, NoTls};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, f: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, f).await.unwrap_or_else(|_| panic!("{what}: no answer in {PATIENCE:?}"))
}

/// Resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time of a process, user and system, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The SQLSTATE of an answer, or `ok`; `closed` when the connection ended.
async fn answer(client: &Client, what: &str, sql: &str) -> String {
    match within(what, client.simple_query(sql)).await {
        Ok(_) => "ok".into(),
        Err(e) => e.code().map_or_else(|| "closed".into(), |c| c.code().to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_go_too_far() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let other = server.connect().await;
    other.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int)").await.unwrap();
    let deep = |n: usize, open: &str, inner: &str, close: &str| {
        format!("SELECT {}{inner}{}", open.repeat(n), close.repeat(n))
    };
    let or: Vec<String> = (0..50_000).map(|i| format!("id = {i}")).collect();
    let plus = vec!["1"; 50_000].join(" + ");
    let in_list: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
    let params: Vec<String> = (1..=70_000).map(|i| format!("${i}")).collect();
    let values: Vec<String> = (0..20_000).map(|i| format!("({i},{i})")).collect();
    let unions = vec!["SELECT 1"; 20_000].join(" UNION ALL ");
    let joins: Vec<String> = (0..500).map(|i| format!("t t{i}")).collect();
    let cases = [
        ("10,000 parentheses", deep(10_000, "(", "1", ")"), false),
        ("10,000 minus signs", deep(10_000, "- ", "1", ""), false),
        ("10,000 NOTs", deep(10_000, "NOT ", "true", ""), false),
        ("10,000 functions", deep(10_000, "abs(", "1", ")"), false),
        ("10,000 CASEs", deep(10_000, "CASE WHEN true THEN ", "1", " END"), false),
        ("10,000 subqueries", deep(10_000, "(SELECT ", "1", ")"), false),
        ("10,000 FROM subqueries", deep(10_000, "* FROM (SELECT ", "1", ") x"), false),
        ("10,000 brackets", deep(10_000, "ARRAY[", "1", "]"), false),
        ("10,000 casts", format!("SELECT 1{}", "::int".repeat(10_000)), false),
        ("50,000 ORs", format!("SELECT count(*) FROM t WHERE {}", or.join(" OR ")), false),
        ("50,000 additions", format!("SELECT {plus}"), false),
        ("10,000 in IN", format!("SELECT count(*) FROM t WHERE id IN ({})", in_list.join(",")), true),
        ("20,000 rows", format!("INSERT INTO t VALUES {}", values.join(",")), true),
        ("20,000 UNIONs", unions, false),
        ("500 tables", format!("SELECT count(*) FROM {}", joins.join(",")), false),
        ("70,000 parameters", format!("SELECT count(*) FROM t WHERE id IN ({})", params.join(",")), false),
        ("20 MB of statement", format!("SELECT '{}'", "x".repeat(20 << 20)), false),
        ("20 MB of comment", format!("SELECT 1 /*{}*/", "/*".repeat(10 << 20)), false),
        ("100,000 statements", "SELECT 1;".repeat(100_000), false),
        ("a million semicolons", ";".repeat(1_000_000), false),
    ];
    for (what, sql, fine) in cases {
        let client = server.connect().await;
        let begin = Instant::now();
        let code = answer(&client, what, &sql).await;
        eprintln!(
            "{what}: {code} in {:?}, resident {} MiB",
            begin.elapsed(),
            resident_kib(server.pid()) >> 10
        );
        assert!(server.is_running(), "{what} killed the server");
        assert!(!matches!(&*code, "XX000"), "{what}: an internal error");
        assert!(!fine || code == "ok", "{what}: {code}");
        // Text and prepared statements take different ways.
        if sql.len() < 10 << 20 && !what.ends_with("statements") && !what.ends_with("semicolons") {
            let client = server.connect().await;
            let code = match within(what, client.prepare(&sql)).await {
                Ok(_) => "ok".into(),
                Err(e) => e.code().map_or_else(|| "closed".into(), |c| c.code().to_string()),
            };
            assert!(server.is_running(), "{what}, prepared, killed the server");
            assert_ne!(code, "XX000", "{what}, prepared: an internal error");
        }
        within("another client", other.batch_execute("SELECT 1")).await.unwrap();
    }
}

/// Logs in by hand, so that the test decides what is read.
fn raw_login(server: &Server) -> TcpStream {
    let mut socket = TcpStream::connect(server.sql).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"\0\0\0\x26\0\x03\0\0user\0root\0database\0isochrone\0\0").unwrap();
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        let n = socket.read(&mut buf).unwrap();
        assert!(n > 0, "the server hung up during login");
        seen.extend_from_slice(&buf[..n]);
    }
    socket
}

fn query_message(sql: &str) -> Vec<u8> {
    let mut out = vec![b'Q'];
    out.extend_from_slice(&u32::try_from(sql.len() + 5).unwrap().to_be_bytes());
    out.extend_from_slice(sql.as_bytes());
    out.push(0);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let other = server.connect().await;
    other.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    // 2,000 rows of 1,000 bytes; a join of it with itself would be 4 GB.
    let fill = format!("INSERT INTO t SELECT i, '{}' FROM generate_series(1, 2000) i", "x".repeat(1_000));
    within("filling", other.batch_execute(&fill)).await.unwrap();
    let before = resident_kib(server.pid());
    let mut lazy: Vec<TcpStream> = (0..5).map(|_| raw_login(&server)).collect();
    let streams = [
        "SELECT * FROM generate_series(1, 100000000)",
        "SELECT a.v, b.v FROM t a, t b",
        "COPY t TO STDOUT; COPY t TO STDOUT; COPY t TO STDOUT; COPY t TO STDOUT; COPY t TO STDOUT; COPY t TO STDOUT",
        "SELECT i, 'some text that takes room' FROM generate_series(1, 100000000) i",
        "SELECT v FROM t",
    ];
    for (socket, sql) in lazy.iter_mut().zip(streams) {
        socket.write_all(&query_message(sql)).unwrap();
    }
    // Others go on, reading and writing the same table.
    let begin = Instant::now();
    let mut most = 0;
    let mut n = 0;
    while begin.elapsed() < Duration::from_secs(6) {
        n += 1;
        let id = 10_000 + n;
        within("a write", other.execute("INSERT INTO t VALUES ($1, 'y')", &[&id])).await.unwrap();
        most = most.max(resident_kib(server.pid()));
    }
    eprintln!("{n} writes beside clients that do not read; resident {before} KiB before, {most} KiB at most");
    assert!(n >= 10, "{n} writes in 6 s");
    assert!(most < before + (300 << 10), "resident memory grew from {before} to {most} KiB");
    drop(lazy);
    within("at the end", other.batch_execute("SELECT 1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_statement_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for sql in [
        "SELECT count(*) FROM generate_series(1, 10000000000)",
        "SELECT sum(a * b) FROM generate_series(1, 100000) a, generate_series(1, 100000) b",
        "SELECT g FROM generate_series(1, 100000000) g ORDER BY g DESC",
    ] {
        let client = server.connect().await;
        let token = client.cancel_token();
        let running = tokio::spawn(async move { (client.simple_query(sql).await.map(|r| r.len()), client) });
        let other = server.connect().await;
        let begin = Instant::now();
        within("another client", other.batch_execute("SELECT 1")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await; // the statement is under way
        let begin_cancel = Instant::now();
        within("cancel", token.cancel_query(NoTls)).await.unwrap();
        let (result, client) = within(sql, running).await.unwrap();
        let error = result.expect_err(sql);
        eprintln!(
            "{sql}: another client waited {:?}; cancelled in {:?}",
            begin.elapsed(),
            begin_cancel.elapsed()
        );
        let code = error.code().map(|c| c.code().to_string());
        // A statement may also pass a memory bound of its own before it is cancelled.
        assert!(matches!(code.as_deref(), Some("57014" | "53200" | "54000")), "{sql}: {error:?}");
        within("after a cancel", client.batch_execute("SELECT 1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_costs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let pid = server.pid();
    let first = server.connect().await;
    first.batch_execute("SELECT 1").await.unwrap();
    let before = resident_kib(pid);
    let mut clients = Vec::new();
    for _ in 0..200 {
        let client = within("connecting", server.connect()).await;
        within("a first statement", client.batch_execute("SELECT 1")).await.unwrap();
        clients.push(client);
    }
    let after = resident_kib(pid);
    let each = after.saturating_sub(before) / 200;
    let begin = cpu_ticks(pid);
    tokio::time::sleep(Duration::from_secs(5)).await; // a measurement over time
    let ticks = cpu_ticks(pid) - begin;
    eprintln!(
        "idle: resident {before} KiB with one client, {after} KiB with 201: {each} KiB each; CPU {} ms in 5 s",
        ticks * 10
    );
    assert!(each < 512, "{each} KiB for an idle connection");
    assert!(ticks < 150, "an idle server used {} ms of CPU in 5 s", ticks * 10);
}
