//! What a transaction did can be seen: in `isochrone.wal` while the node runs, and with `isochrone wal` after it ended.
//! And what an operator sees of a node: shards, transactions, metrics, the drained end, the time to the first answer.
#![allow(clippy::disallowed_methods, reason = "a test of a real process measures real time")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Server, isochrone};
use tokio_postgres::{NoTls, SimpleQueryMessage};

const PATIENCE: Duration = Duration::from_secs(30);

/// (shard, index, kind, txn)
type Seen = (i64, i64, String, String);

/// The rows of a query as text: types are the query layer's business, this is about what is there.
async fn rows(client: &tokio_postgres::Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let mut out = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            out.push((0..row.len()).map(|i| row.get(i).map(str::to_string)).collect());
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_transaction_in_the_logs_of_two_shards() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let mut client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE audit (id int PRIMARY KEY, what text);
             ALTER TABLE accounts SPLIT AT VALUES (1000), (2000);
             INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 2500) i;
             INSERT INTO audit VALUES (1, 'opened');",
        )
        .await
        .unwrap();
    let before = rows(&client, "SELECT shard, log_index FROM isochrone.wal").await.len();
    let txn = client.transaction().await.unwrap();
    assert_eq!(txn.execute("UPDATE accounts SET balance = balance - 7 WHERE id = 42", &[]).await.unwrap(), 1);
    assert_eq!(
        txn.execute("UPDATE accounts SET balance = balance + 7 WHERE id = 1900", &[]).await.unwrap(),
        1
    );
    txn.commit().await.unwrap();

    // The three shards of the table, in key order; 42 is in the first and 1900 in the second.
    let shards = rows(&client, "SHOW SHARDS FROM TABLE accounts").await;
    assert_eq!(shards.len(), 3, "{shards:?}");
    let ids: Vec<i64> = shards.iter().map(|r| r[0].as_ref().unwrap().parse().unwrap()).collect();
    let all = rows(&client, "SELECT shard FROM isochrone.shards").await;
    assert!(all.len() >= 4, "system, and three of tables: {all:?}");

    // Follow-up entries (the commit of the second phase) are logged behind the answer.
    let deadline = Instant::now() + PATIENCE;
    let (txn_id, live) = loop {
        let sql = "SELECT shard, log_index, kind, txn FROM isochrone.wal WHERE txn IS NOT NULL";
        let seen: Vec<Seen> = rows(&client, sql)
            .await
            .into_iter()
            .map(|r| {
                let text = |i: usize| r[i].clone().unwrap();
                (text(0).parse().unwrap(), text(1).parse().unwrap(), text(2), text(3))
            })
            .collect();
        // The last transaction that prepared in both shards is the transfer.
        let prepared = |shard: i64| {
            let of = seen.iter().filter(move |s| s.0 == shard && s.2 == "prepare");
            of.map(|s| s.3.clone()).collect::<BTreeSet<_>>()
        };
        let third = prepared(ids[2]);
        let both: Vec<String> = prepared(ids[0])
            .intersection(&prepared(ids[1]))
            .filter(|t| !third.contains(*t))
            .cloned()
            .collect();
        if let [txn] = &both[..] {
            let of_txn: BTreeSet<Seen> = seen.iter().filter(|s| s.3 == *txn).cloned().collect();
            let committed = |shard| of_txn.iter().any(|s| s.0 == shard && s.2 == "commit");
            if committed(ids[0]) && committed(ids[1]) {
                break (txn.clone(), of_txn);
            }
        }
        assert!(Instant::now() < deadline, "prepare and commit in both shards: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(rows(&client, "SELECT shard FROM isochrone.wal").await.len() > before);
    let balances = rows(&client, "SELECT id, balance FROM accounts WHERE id IN (42, 1900) ORDER BY id").await;
    assert_eq!(balances[0][1].as_deref(), Some("93"));
    assert_eq!(balances[1][1].as_deref(), Some("107"));

    // A transaction with locks is seen while it runs.
    let mut second = server.connect().await;
    let open = second.transaction().await.unwrap();
    open.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 43", &[]).await.unwrap();
    let active = rows(&client, "SELECT txn, state FROM isochrone.transactions").await;
    assert!(active.iter().any(|r| r[1].as_deref() == Some("active")), "{active:?}");
    open.rollback().await.unwrap();

    let (status, metrics) = server.http_get("/metrics");
    assert_eq!(status, 200);
    let syncs = metrics.lines().find_map(|l| l.strip_prefix("isochrone_wal_syncs_total "));
    let syncs: f64 = syncs.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap();
    assert!(syncs >= 1.0);
    assert!(metrics.contains("isochrone_wal_sync_seconds"), "{metrics}");
    assert_eq!(server.http_get("/health"), (200, "ok\n".to_string()));
    drop((client, second));
    assert!(server.terminate_within(PATIENCE).success());

    let verify = isochrone().args(["wal", "verify", "--data"]).arg(dir.path()).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    assert!(String::from_utf8_lossy(&verify.stdout).contains("nothing wrong"));
    let dump = isochrone().args(["wal", "dump", "--data"]).arg(dir.path()).output().unwrap();
    assert!(dump.status.success());
    let text = String::from_utf8(dump.stdout).unwrap();
    let dumped: BTreeSet<Seen> = text
        .lines()
        .filter(|l| l.contains(&txn_id))
        .map(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            (words[0].parse().unwrap(), words[1].parse().unwrap(), words[5].into(), words[8].into())
        })
        .collect();
    // The dump may know of more (what was logged after we looked), but knows all that we saw.
    let missing: Vec<_> = live.difference(&dumped).collect();
    assert!(missing.is_empty(), "{missing:?} not in {dumped:?}");
    let one = isochrone()
        .args(["wal", "dump", "--shard", &ids[0].to_string(), "--data"])
        .arg(dir.path())
        .output()
        .unwrap();
    let one = String::from_utf8(one.stdout).unwrap();
    let id = ids[0].to_string();
    assert!(one.lines().skip(1).all(|l| l.split_whitespace().next() == Some(&*id)), "{one}");
    assert!(one.contains(&txn_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let busy = server.connect().await;
    busy.batch_execute("CREATE TABLE t (id int PRIMARY KEY); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    // An HTTP client that never ends its request must not hold the end up.
    let mut half = std::net::TcpStream::connect(server.http).unwrap();
    std::io::Write::write_all(&mut half, b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let (idle, connection) = server.config().connect(NoTls).await.unwrap();
    let ended = tokio::spawn(connection);
    idle.batch_execute("SELECT 1").await.unwrap();

    let terminated = tokio::task::spawn_blocking(move || server.terminate_within(PATIENCE));
    let error = tokio::time::timeout(PATIENCE, ended).await.expect("an idle client is told").unwrap();
    let error = error.expect_err("the connection ends with an error");
    assert_eq!(error.code().map(|c| c.code()), Some("57P01"), "{error:?}");
    // A transaction that is under way gets time to finish.
    busy.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    busy.batch_execute("COMMIT").await.unwrap();
    assert!(terminated.await.unwrap().success());
    drop(half);
    let server = Server::start(dir.path());
    let n: i64 = server.connect().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(n, 2);
}

/// Measured, not judged: this is a debug build on whatever machine. The bound is the release build's, and the benches'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_to_the_first_answer() {
    for what in ["empty", "again"] {
        let dir = tempfile::tempdir().unwrap();
        if what == "again" {
            assert!(Server::start(dir.path()).terminate_within(PATIENCE).success());
        }
        let begin = Instant::now();
        let server = Server::start(dir.path());
        let ready = begin.elapsed();
        let client = server.connect().await;
        client.query_one("SELECT 1", &[]).await.unwrap();
        let answered = begin.elapsed();
        eprintln!("start, {what} directory: ready after {ready:?}, first query answered after {answered:?}");
        assert!(answered < PATIENCE);
    }
}
