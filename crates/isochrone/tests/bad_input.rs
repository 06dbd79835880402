//! What an operator or a client can get wrong gets a clear answer, and nobody else notices.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Server, isochrone};

use isochrone_env::{Random, SplitMix64};

fn start_fails(dir: &std::path::Path) -> String {
    let out = isochrone()
        .args([
            "start",
            "--sql",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--cluster",
            "127.0.0.1:0",
            "--data",
        ])
        .arg(dir)
        .output()
        .expect("the binary runs");
    assert!(!out.status.success(), "must not start");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_directory_that_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("holiday.jpg"), "precious").unwrap();
    assert!(start_fails(dir.path()).contains("not an Isochrone data directory"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_second_process_on_the_same_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::start(dir.path());
    assert!(start_fails(dir.path()).contains("in use by another process"));
}

#[test]
fn an_address_others_can_reach_needs_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let out = isochrone().args(["start", "--sql", "0.0.0.0:0", "--data"]).arg(dir.path()).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("--insecure"));
}

#[test]
fn words_that_make_no_sense_are_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let cases: [(&[&str], &str); 11] = [
        (&["init"], "--cluster"),
        (&["init", "--cluster", "7433"], "it has no port (expected HOST:PORT)"),
        (&["init", "--cluster", "localhost:seven"], "not a number from 1 to 65535"),
        (&["node", "ls", "--cluster", "http://localhost:7433"], "no scheme"),
        (&["node", "drain", "0", "--cluster", "localhost:7433"], "0 is not in"),
        (&["demo", "--nodes", "5"], "a demo has 3 nodes"),
        (&["start", "--data", data, "--join", "localhost"], "--join: \"localhost\" is not an address"),
        (&["start", "--data", data, "--join", "a:1,b:0"], "port 0"),
        (&["start", "--data", data, "--join", "192.0.2.1:7433"], "cannot reach --cluster"),
        (&["start", "--data", data, "--cluster", "0.0.0.0:0"], "--insecure"),
        (
            &["start", "--data", data, "--insecure", "--cluster", "0.0.0.0:0", "--join", "a:1"],
            "--advertise HOST:PORT",
        ),
    ];
    for (args, expected) in cases {
        let out = isochrone().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{args:?}");
        assert!(said.contains(expected) && !said.contains("panicked"), "{args:?}: {said}");
    }
    assert!(!std::path::Path::new(data).exists(), "nothing was created");
}

#[test]
fn help_teaches() {
    for (command, expected) in [
        ("start", "--join 127.0.0.1:7433,127.0.0.1:7434,127.0.0.1:7435"),
        ("init", "isochrone init --cluster 127.0.0.1:7433"),
        ("node", "isochrone node drain 2 --cluster 127.0.0.1:7433"),
        ("demo", "isochrone demo --seconds 120"),
    ] {
        let out = isochrone().args([command, "--help"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains(expected), "{command}: {said}");
        assert!(!said.contains("stop-with-stdin"), "hidden");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_sql_port_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let random = SplitMix64::new(7);
    let login = b"\0\0\0\x26\0\x03\0\0user\0root\0database\0isochrone\0\0";
    for i in 0..60 {
        let mut bytes: Vec<u8> = (0..random.below(2_000)).map(|_| random.next_u64() as u8).collect();
        if i % 3 == 0 {
            // An oversized frame: a length of a gigabyte and more, and nothing behind it.
            bytes = vec![b'Q', 0x7f, 0xff, 0xff, 0xff, b'x'];
        }
        let mut socket = TcpStream::connect(server.sql).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        if i % 2 == 0 {
            socket.write_all(login).unwrap();
        }
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer); // the server hangs up, with an error or without
        let id: i32 = i;
        assert_eq!(client.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap(), 1);
    }
    let n: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(n, 60);
}

/// A log file that was cut or changed while the node was down: refused with a clear error, or everything acknowledged
/// is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_never_served_silently() {
    let random = SplitMix64::new(11);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    for id in 0..200 {
        client
            .execute("INSERT INTO t VALUES ($1, 'some text that takes a little room')", &[&id])
            .await
            .unwrap();
    }
    drop(client);
    // Killed: nothing was flushed, so every record of the log is needed.
    server.kill();
    // A start without work, ended in order, marks all of it durable.
    let server = Server::start_with(dir.path(), &["--storage", "memory"]);
    assert!(server.terminate().success());
    let wal = dir.path().join("wal");
    let mut files = segments(&wal);
    let mut refused = 0;
    for round in 0..12 {
        let file = &files[0];
        let intact = std::fs::read(file).unwrap();
        let used = intact.iter().rposition(|b| *b != 0).unwrap();
        let mut damaged = intact.clone();
        if round % 2 == 0 {
            let at = random.below(used as u64) as usize;
            damaged[at] ^= 1 << random.below(8);
        } else {
            damaged.truncate(random.below(used as u64) as usize);
        }
        std::fs::write(file, &damaged).unwrap();
        match Server::try_start(dir.path()) {
            // Harmless: the damage lies where nothing is needed any more.
            Ok(server) => {
                let client = server.connect().await;
                let n: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
                assert_eq!(n, 200, "round {round}");
                drop(client);
                assert!(server.terminate().success());
                // What the start wrote stays; the next round damages that.
                files = segments(&wal);
                continue;
            }
            Err(text) => {
                assert!(!text.contains("panicked"), "round {round}: {text}");
                assert!(
                    text.contains("damaged") || text.contains("lost acknowledged"),
                    "round {round}: {text}"
                );
                refused += 1;
            }
        }
        std::fs::write(file, &intact).unwrap();
    }
    assert!(refused >= 6, "most of these damages are to what is needed: {refused}");
    let server = Server::start(dir.path());
    let n: i64 = server.connect().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(n, 200);
}

fn segments(wal: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(wal).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}
