//! A full disk and a disk that fails, under the real process: clients hear why, nothing acknowledged is lost, nothing
//! is there by half, and a restart is all it takes once there is room again.
//!
//! Needs to mount a tmpfs (root on Linux) and to trace a process (`strace`); where that is refused, the test says so
//! on standard error and returns.
#![allow(clippy::disallowed_methods, reason = "waits for the kernel, which tells nobody")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::Server;
use common::strace::Strace;
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(60);

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(Option<tempfile::TempDir>);

impl Tmpfs {
    fn mount(size: &str) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().expect("a directory");
        let out = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "isochrone-test"])
            .arg(dir.path())
            .output();
        match out {
            Ok(out) if out.status.success() => Some(Tmpfs(Some(dir))),
            Ok(out) => {
                eprintln!("not tested: mounting is refused: {}", String::from_utf8_lossy(&out.stderr).trim());
                None
            }
            Err(e) => {
                eprintln!("not tested: no mount command: {e}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.as_ref().expect("until dropped").path()
    }

    fn resize(&self, size: &str) {
        let option = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &option]).arg(self.path()).status().unwrap();
        assert!(status.success(), "remount with {size}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that a failed test left behind for a moment must not keep the mount.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|s| s.success()) {
            eprintln!("{} could not be unmounted", self.path().display());
            // Do not delete below a mount.
            drop(self.0.take().map(tempfile::TempDir::keep));
        }
    }
}

async fn within<T>(what: &str, f: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, f).await.unwrap_or_else(|_| panic!("{what}: no answer in {PATIENCE:?}"))
}

async fn create_tables(client: &Client) {
    // Two shards: every statement below writes to both.
    client
        .batch_execute(
            "CREATE TABLE t (id bigint PRIMARY KEY, v text NOT NULL); ALTER TABLE t SPLIT AT VALUES (0)",
        )
        .await
        .unwrap();
}

/// Inserts row pairs until an error; returns it. `acknowledged` gets the pairs, `from` goes on counting.
async fn insert_until_error(
    client: &Client,
    from: &mut i64,
    bytes: usize,
    acknowledged: &mut BTreeSet<i64>,
) -> tokio_postgres::Error {
    let insert = client.prepare("INSERT INTO t VALUES ($1, $2), (-$1, $2)").await;
    let insert = match insert {
        Ok(insert) => insert,
        Err(e) => return e,
    };
    loop {
        *from += 1;
        let value = from.to_string().repeat(bytes / from.to_string().len());
        match within("an insert", client.execute(&insert, &[&*from, &value])).await {
            Ok(n) => {
                assert_eq!(n, 2);
                acknowledged.insert(*from);
            }
            Err(e) => return e,
        }
    }
}

fn code(e: &tokio_postgres::Error) -> String {
    e.code().map(|c| c.code().to_string()).unwrap_or_else(|| panic!("no answer from the server: {e}"))
}

fn said(e: &tokio_postgres::Error) -> String {
    e.as_db_error().map(ToString::to_string).unwrap_or_else(|| e.to_string())
}

/// Everything acknowledged is there, every row has its twin and its text.
async fn check_rows(client: &Client, acknowledged: &BTreeSet<i64>, unknown_max: usize) {
    let mut found = BTreeSet::new();
    for row in within("reading all", client.query("SELECT id, v FROM t", &[])).await.unwrap() {
        let (id, v): (i64, String) = (row.get(0), row.get(1));
        let digits = id.abs().to_string();
        assert!(
            !v.is_empty() && v.as_bytes().chunks(digits.len()).all(|c| c == digits.as_bytes()),
            "row {id}"
        );
        assert!(found.insert(id));
    }
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(found.iter().all(|id| found.contains(&-id)), "half of a pair is there");
    assert!(found.len() / 2 <= acknowledged.len() + unknown_max, "{} pairs", found.len() / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_writes_and_loses_nothing() {
    let Some(disk) = Tmpfs::mount("40m") else { return };
    let data = disk.path().join("data");
    let mut server = Server::start(&data);
    let client = server.connect().await;
    let other = server.connect().await;
    create_tables(&client).await;
    let (mut next, mut acknowledged) = (0, BTreeSet::new());
    let first = insert_until_error(&client, &mut next, 20_000, &mut acknowledged).await;
    eprintln!("after {} pairs: {} {}", acknowledged.len(), code(&first), said(&first));
    // The statement whose entry was on its way to the disk: nobody knows. Those after it certainly failed.
    assert!(matches!(&*code(&first), "53100" | "40003"), "{}: {}", code(&first), said(&first));
    assert!(said(&first).contains("No space left"), "{}", said(&first));
    let second = insert_until_error(&client, &mut next, 20, &mut acknowledged).await;
    assert_eq!(code(&second), "53100", "{}", said(&second));
    assert!(said(&second).contains("No space left"), "{}", said(&second));
    // Other clients: what needs no storage works; reads give the rows, or say why not.
    within("another client", other.batch_execute("SELECT 1")).await.unwrap();
    match within("another client's read", other.query_one("SELECT count(*) FROM t", &[])).await {
        Ok(row) => assert!(row.get::<_, i64>(0) >= 2 * acknowledged.len() as i64),
        Err(e) => assert_eq!(code(&e), "53100", "{}", said(&e)),
    }
    let (status, body) = server.http_get("/health");
    assert_eq!(status, 503);
    assert!(body.contains("No space left"), "{body}");
    assert_eq!(server.http_get("/metrics").0, 200);
    assert!(server.is_running());
    drop((client, other));
    // It was not a clean end, and says so; but it ends.
    assert!(!server.terminate_within(PATIENCE).success());

    // A start on the full disk either serves or says why not.
    match Server::try_start(&data) {
        Ok(server) => server.kill(),
        Err(text) => assert!(text.contains("No space left") && !text.contains("panicked"), "{text}"),
    }
    disk.resize("400m");
    let server = Server::start(&data);
    assert_eq!(server.http_get("/health").0, 200);
    let client = server.connect().await;
    check_rows(&client, &acknowledged, 1).await;
    client.execute("INSERT INTO t VALUES (1000000, '1000000'), (-1000000, '1000000')", &[]).await.unwrap();
    drop(client);
    assert!(server.terminate_within(PATIENCE).success());
    let verify = common::isochrone().args(["wal", "verify", "--data"]).arg(&data).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_without_room_says_so_and_can_be_repeated() {
    let Some(disk) = Tmpfs::mount("4k") else { return };
    let data = disk.path().join("data");
    let mut refused = 0;
    // Each size lets the start get a little further; what it leaves behind must not be in the way of the next.
    for kib in [
        4, 8, 16, 32, 64, 256, 1_024, 4_096, 8_192, 8_220, 8_260, 8_400, 9_000, 12_000, 16_400, 17_000,
        25_000,
    ] {
        disk.resize(&format!("{kib}k"));
        match Server::try_start(&data) {
            Ok(server) => {
                eprintln!("starts with {kib} KiB");
                let answer = within("the first query", server.connect()).await;
                answer.batch_execute("SELECT 1").await.unwrap();
                server.kill();
            }
            Err(text) => {
                assert!(text.contains("No space left") && !text.contains("panicked"), "{kib} KiB: {text}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 3, "{refused}");
    disk.resize("200m");
    let server = Server::start(&data);
    let client = server.connect().await;
    create_tables(&client).await;
    client.batch_execute("INSERT INTO t VALUES (1, '1')").await.unwrap();
    drop(client);
    assert!(server.terminate_within(PATIENCE).success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_fsync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let client = server.connect().await;
    let other = server.connect().await;
    create_tables(&client).await;
    let (mut next, mut acknowledged) = (0, BTreeSet::new());
    // Once, and then the disk works again: that must not be taken for "all is well".
    let inject = "inject=fdatasync:error=EIO:when=20";
    let Some(strace) = Strace::attach(server.pid(), inject) else { return };
    let first = insert_until_error(&client, &mut next, 200, &mut acknowledged).await;
    eprintln!("after {} pairs: {} {}", acknowledged.len(), code(&first), said(&first));
    assert!(matches!(&*code(&first), "58030" | "40003"), "{}: {}", code(&first), said(&first));
    assert!(said(&first).contains("os error 5"), "{}", said(&first));
    for _ in 0..20 {
        let later = insert_until_error(&client, &mut next, 20, &mut acknowledged).await;
        assert_eq!(code(&later), "58030", "{}", said(&later));
    }
    let refused =
        within("another client's write", other.execute("INSERT INTO t VALUES (-7000, 'x')", &[])).await;
    assert_eq!(code(&refused.unwrap_err()), "58030");
    within("another client", other.batch_execute("SELECT 1")).await.unwrap();
    let (status, body) = server.http_get("/health");
    assert_eq!(status, 503);
    assert!(body.contains("os error 5"), "{body}");
    assert!(server.is_running());
    drop(strace);
    drop((client, other));
    assert!(!server.terminate_within(PATIENCE).success());
    let server = Server::start(dir.path());
    let client = server.connect().await;
    check_rows(&client, &acknowledged, 1).await;
    drop(client);
    assert!(server.terminate_within(PATIENCE).success());
}
