//! Three nodes, a client at each: what one gateway wrote or defined is there at the next, shards are led where they were
//! told to be, and one transaction can be read in the logs of the two shards it touched.

mod common;

use common::cluster::{Cluster, PATIENCE};
use common::isochrone;
use isochrone_cli::bank;
use isochrone_cli::demo::journey;
use isochrone_cli::inspect;
use tokio_postgres::Client;

async fn ok(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {}", inspect::describe(&e)));
}

async fn cells(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let rows = inspect::rows(client, sql).await.unwrap();
    let text = |row: &tokio_postgres::SimpleQueryRow, i| row.get(i).unwrap_or("").to_string();
    rows.iter().map(|row| (0..row.len()).map(|i| text(row, i)).collect()).collect()
}

async fn three(cluster: &Cluster) -> [Client; 3] {
    [cluster.connect(1).await, cluster.connect(2).await, cluster.connect(3).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_transaction_in_the_logs_of_two_leaders() {
    let mut cluster = Cluster::start(&[]).await;
    let shards = cluster.open_bank().await;
    let leaders: Vec<u32> = shards.iter().map(|s| s.leader).collect();
    assert_eq!(leaders, [1, 2, 3]);
    let found = journey::follow(&cluster.local.sql_addresses()).await;
    let journey = cluster.expect(found);
    assert_eq!(journey.gateway, 3, "the node that leads neither");
    for (shard, records) in journey.shards.iter().zip(&journey.records) {
        let kinds: Vec<&str> = records.iter().map(|r| &*r.kind).collect();
        let at = |kind| kinds.iter().position(|k| *k == kind);
        assert!(at("prepare") < at("commit") && at("prepare").is_some(), "{kinds:?}");
        assert!(records.iter().all(|r| r.shard == shard.shard && r.node == shard.leader), "{records:?}");
        assert!(records.iter().any(|r| !r.commit_ts.is_empty()), "{records:?}");
    }
    println!("{}", journey::show(&journey));
    for client in three(&cluster).await {
        let rows = cells(&client, "SELECT balance FROM accounts WHERE id IN (42, 1900) ORDER BY id").await;
        assert_eq!(rows, [["993"], ["1007"]]);
    }
    // The followers have the same records in their logs.
    for node in [1, 2, 3] {
        cluster.caught_up(node, 0).await;
    }
    cluster.close_and_verify().await;
    for node in [1, 2, 3] {
        let dump = cluster.wal(node, "dump");
        let text = String::from_utf8_lossy(&dump.stdout);
        // What was flushed is cut from the log at a clean end, so that it need not be there; but it was there, or will be.
        assert!(dump.status.success(), "node {node}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_defined_at_one_gateway_is_there_at_the_next() {
    let cluster = Cluster::start(&[]).await;
    let clients = three(&cluster).await;
    for round in 0..9 {
        let (here, next, last) = (&clients[round % 3], &clients[(round + 1) % 3], &clients[(round + 2) % 3]);
        let t = format!("t{round}");
        ok(here, &format!("CREATE TABLE {t} (id int PRIMARY KEY, v int)")).await;
        ok(next, &format!("INSERT INTO {t} VALUES (1, 10), (2, 20)")).await;
        ok(last, &format!("ALTER TABLE {t} ADD COLUMN w int DEFAULT 7")).await;
        assert_eq!(
            cells(here, &format!("SELECT v, w FROM {t} ORDER BY id")).await,
            [["10", "7"], ["20", "7"]]
        );
        // No writer misses an index: what the next gateway writes right after is found through it.
        ok(here, &format!("CREATE INDEX ON {t} (v)")).await;
        ok(next, &format!("INSERT INTO {t} VALUES (3, 30)")).await;
        assert_eq!(cells(last, &format!("SELECT id FROM {t} WHERE v = 30")).await, [["3"]]);
        ok(last, &format!("DROP TABLE {t}")).await;
        for client in [here, next] {
            let gone = client.simple_query(&format!("SELECT * FROM {t}")).await.unwrap_err();
            assert_eq!(gone.code().map(|c| c.code()), Some("42P01"), "{gone:?}");
        }
    }
    // A table that changes under writers at all gateways: every row has the column's value, whoever wrote it.
    ok(&clients[0], "CREATE TABLE busy (id int PRIMARY KEY, v int)").await;
    let gateways = cluster.gateways();
    let writers = gateways.iter().enumerate().map(|(n, gateway)| {
        let gateway = *gateway;
        tokio::spawn(async move {
            let client = inspect::connect(gateway).await.unwrap();
            for i in 0..100 {
                let id = n as i32 * 1_000 + i;
                let sql = format!("INSERT INTO busy (id, v) VALUES ({id}, {id})");
                while let Err(error) = client.batch_execute(&sql).await {
                    let code = error.code().map(|c| c.code().to_string()).unwrap_or_default();
                    assert!(code.starts_with("40"), "{sql}: {}", inspect::describe(&error));
                }
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    ok(&clients[1], "CREATE INDEX busy_v ON busy (v)").await;
    for writer in writers {
        writer.await.unwrap();
    }
    let by_index: usize = {
        let mut found = 0;
        for id in (0..3).flat_map(|n| (0..100).map(move |i| n * 1_000 + i)) {
            found += cells(&clients[2], &format!("SELECT id FROM busy WHERE v = {id}")).await.len();
        }
        found
    };
    assert_eq!(by_index, 300, "rows found through the index");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_sees_and_does() {
    let mut cluster = Cluster::start(&[]).await;
    let shards = cluster.open_bank().await;
    let address = cluster.local.node(2).cluster.to_string();
    for client in three(&cluster).await {
        let nodes = cells(&client, "SELECT node, address, live FROM isochrone.nodes ORDER BY node").await;
        let expected =
            [1, 2, 3].map(|n| [n.to_string(), cluster.local.node(n).cluster.to_string(), "t".into()]);
        assert_eq!(nodes, expected);
        let replicas = inspect::replicas(&client).await.unwrap();
        for shard in &shards {
            let of: Vec<_> = replicas.iter().filter(|r| r.shard == shard.shard).collect();
            assert_eq!(of.iter().map(|r| r.node).collect::<Vec<_>>(), [1, 2, 3], "{of:?}");
            let leaders: Vec<_> = of.iter().filter(|r| r.role == "leader").map(|r| r.node).collect();
            assert_eq!(leaders, [shard.leader], "{of:?}");
        }
        assert_eq!(cells(&client, "SELECT node FROM isochrone.wal GROUP BY node").await.len(), 1);
    }

    // A leader goes where it is told to, asked from anywhere.
    let client = cluster.connect(3).await;
    let moving = shards[0].shard;
    ok(&client, &format!("ALTER SHARD {moving} TRANSFER LEADER TO 2")).await;
    let spread = inspect::spread_leaders(&client, "accounts", &[2, 2, 3], PATIENCE).await;
    assert_eq!(cluster.expect(spread)[0].leader, 2);
    for (sql, code) in [
        (format!("ALTER SHARD {moving} TRANSFER LEADER TO 9"), "42704"),
        ("ALTER SHARD 999999 TRANSFER LEADER TO 1".into(), "42704"),
    ] {
        let error = client.batch_execute(&sql).await.unwrap_err();
        assert_eq!(error.code().map(|c| c.code()), Some(code), "{sql}: {}", inspect::describe(&error));
    }

    let run = |args: &[&str]| {
        let out = isochrone().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), said)
    };
    let (code, said) = run(&["init", "--cluster", &address]);
    assert!(code == Some(0) && said.contains("already initialised"), "{said}");
    let (code, said) = run(&["node", "ls", "--cluster", &address]);
    assert!(code == Some(0) && said.contains("(3 rows)") && said.matches(" live ").count() == 3, "{said}");
    let (code, said) = run(&["node", "drain", "9", "--cluster", &address]);
    assert!(code == Some(1) && said.contains('9') && !said.contains("panicked"), "{said}");
    let (code, said) = run(&["node", "drain", "2", "--cluster", &address]);
    assert!(code == Some(0) && said.contains("node 2 leads no shard"), "{said}");
    let leaders =
        cells(&client, "SELECT count(*) FROM isochrone.replicas WHERE node = 2 AND role = 'leader'").await;
    assert_eq!(leaders, [["0"]]);
    let (_, said) = run(&["node", "ls", "--cluster", &address]);
    assert!(said.contains("draining"), "{said}");

    // A dead node is said to be dead, and the others serve.
    cluster.kill(2);
    ok(&client, "UPDATE accounts SET balance = balance WHERE id = 42").await;
    let dead = async {
        let address = cluster.local.node(1).cluster.to_string();
        loop {
            let (_, said) = run(&["node", "ls", "--cluster", &address]);
            if said.contains(" dead ") {
                return;
            }
            tokio::time::sleep(inspect::LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, dead).await.expect("node 2 is dead");
    cluster.restart(2).await;
    cluster.caught_up(2, 0).await;
    cluster.close_and_verify().await;
}

/// The number of milliseconds on the line of a plan that begins so.
fn shown_ms(plan: &[Vec<String>], name: &str) -> Option<f64> {
    let line = plan.iter().find_map(|row| row[0].trim().strip_prefix(name))?;
    line.trim().strip_suffix(" ms")?.parse().ok()
}

/// R24: EXPLAIN ANALYZE shows what the external level waits for, and the causal level waits for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cost_of_external_consistency_is_shown() {
    let cluster = Cluster::start(&[]).await;
    let client = cluster.connect(2).await;
    ok(&client, "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)").await;
    let write = "EXPLAIN ANALYZE UPDATE t SET v = v + 1 WHERE id = 1";
    let plan = cells(&client, write).await;
    assert_eq!(shown_ms(&plan, "Commit Wait:"), None, "{plan:?}");
    ok(&client, "SET transaction_consistency = 'external'").await;
    let plan = cells(&client, write).await;
    let wait = shown_ms(&plan, "Commit Wait:");
    assert!(wait.is_some_and(|ms| ms > 0.0), "{plan:?}");
    // A read right after: it is at the clock's latest, and its answer waits until that is past.
    let plan = cells(&client, "EXPLAIN ANALYZE SELECT v FROM t WHERE id = 1").await;
    assert!(shown_ms(&plan, "Read Wait:").is_some(), "{plan:?}");
    assert_eq!(cells(&client, "SELECT v FROM t WHERE id = 1").await, [["2"]]);
}

/// A DEFERRABLE snapshot over all shards while money moves between them: it waits, and is never aborted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferrable_report_under_load_is_never_aborted() {
    let cluster = Cluster::start(&[]).await;
    cluster.open_bank().await;
    let gateways = cluster.gateways();
    let load = bank::Load::start(&gateways, 4, 7, 0);
    let client = cluster.connect(3).await;
    for _ in 0..5 {
        ok(&client, "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE").await;
        // Two statements, one snapshot: whatever the second sees, the first one saw.
        let sum = "SELECT sum(balance)::bigint, count(*) FROM accounts";
        let first = cells(&client, sum).await;
        let rows = cells(&client, "SELECT count(*) FROM ledger").await;
        assert_eq!(cells(&client, sum).await, first);
        assert_eq!(cells(&client, "SELECT count(*) FROM ledger").await, rows);
        assert_eq!(first[0][0], bank::TOTAL.to_string());
        ok(&client, "COMMIT").await;
    }
    assert!(load.counts().commits > 0);
    let acknowledged = load.stop().await;
    assert!(!cluster.expect(acknowledged).is_empty());
}
