//! Six clients move money between shards and write a ledger while the process is killed at random, again and again.
//! What was acknowledged is there, nothing is there by half, and every restart needs no help.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::Server;
use isochrone_env::{SplitMix64, os};
use tokio::sync::watch;
use tokio_postgres::Config;

const ACCOUNTS: i32 = 300;
const CLIENTS: u64 = 6;
const START_BALANCE: i64 = 1_000;

fn kills() -> u64 {
    std::env::var("ISOCHRONE_TEST_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(50)
}

struct Shared {
    address: watch::Receiver<Option<Config>>,
    done: AtomicBool,
    commits: AtomicU64,
}

/// One client: transfers until told to stop. Returns the ledger ids that were acknowledged.
async fn client(id: u64, seed: u64, shared: Arc<Shared>) -> BTreeSet<i64> {
    let random = SplitMix64::split(seed, &format!("client {id}"));
    let mut acknowledged = BTreeSet::new();
    let mut sequence = 0i64;
    let mut address = shared.address.clone();
    while !shared.done.load(Ordering::Relaxed) {
        let Some(config) = address.borrow_and_update().clone() else {
            if address.changed().await.is_err() {
                break;
            }
            continue;
        };
        let Ok(mut client) = common::connect(&config).await else {
            // The server died after it told its address; the next one tells its own.
            if !shared.done.load(Ordering::Relaxed) && address.changed().await.is_err() {
                break;
            }
            continue;
        };
        while !shared.done.load(Ordering::Relaxed) {
            let (from, to) = (random.below(ACCOUNTS as u64) as i32, random.below(ACCOUNTS as u64) as i32);
            if from == to {
                continue;
            }
            let amount = 1 + random.below(10) as i64;
            sequence += 1;
            let row = (id as i64) << 40 | sequence;
            let transfer = async {
                let txn = client.transaction().await?;
                txn.execute("UPDATE accounts SET balance = balance - $1 WHERE id = $2", &[&amount, &from])
                    .await?;
                txn.execute("UPDATE accounts SET balance = balance + $1 WHERE id = $2", &[&amount, &to])
                    .await?;
                txn.execute("INSERT INTO ledger VALUES ($1, $2, $3, $4)", &[&row, &from, &to, &amount])
                    .await?;
                txn.commit().await
            };
            match transfer.await {
                Ok(()) => {
                    acknowledged.insert(row);
                    shared.commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => match error.code().map(|c| c.code()) {
                    Some("40001" | "40P01") => {}
                    None | Some("57P01" | "57P03" | "40003") => break,
                    Some(code) => panic!("client {id}: unexpected error {code}: {error}"),
                },
            }
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_survives_kills() {
    let seed = os::entropy().unwrap();
    println!("seed {seed}");
    let random = SplitMix64::split(seed, "killer");
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    {
        let client = server.connect().await;
        client
            .batch_execute(
                "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
                 CREATE TABLE ledger (id bigint PRIMARY KEY, from_id int, to_id int, amount bigint);
                 ALTER TABLE accounts SPLIT AT VALUES (100), (200);",
            )
            .await
            .unwrap();
        let insert = format!(
            "INSERT INTO accounts SELECT i, {START_BALANCE} FROM generate_series(0, {}) i",
            ACCOUNTS - 1
        );
        client.batch_execute(&insert).await.unwrap();
    }
    let (tell, address) = watch::channel(Some(server.config()));
    let shared = Arc::new(Shared { address, done: AtomicBool::new(false), commits: AtomicU64::new(0) });
    let clients: Vec<_> = (0..CLIENTS).map(|id| tokio::spawn(client(id, seed, shared.clone()))).collect();
    for kill in 0..kills() {
        // Killed at a random moment under load: wait for some commits first, so that every life does work.
        let goal = shared.commits.load(Ordering::Relaxed) + random.below(60);
        let patience = tokio::time::Duration::from_secs(30);
        tokio::time::timeout(patience, async {
            while shared.commits.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no progress for 30 s before kill {kill}, seed {seed}"));
        tell.send(None).unwrap();
        server.kill();
        server = Server::start(dir.path());
        tell.send(Some(server.config())).unwrap();
    }
    shared.done.store(true, Ordering::Relaxed);
    drop(tell);
    let mut acknowledged = BTreeSet::new();
    for client in clients {
        acknowledged.extend(client.await.unwrap());
    }
    println!("{} commits acknowledged over {} kills", acknowledged.len(), kills());

    let client = server.connect().await;
    let mut balances: BTreeMap<i32, i64> = (0..ACCOUNTS).map(|i| (i, START_BALANCE)).collect();
    let mut ledger = BTreeSet::new();
    for row in client.query("SELECT id, from_id, to_id, amount FROM ledger", &[]).await.unwrap() {
        let (id, from, to, amount): (i64, i32, i32, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert!(ledger.insert(id), "ledger row {id} twice");
        *balances.get_mut(&from).unwrap() -= amount;
        *balances.get_mut(&to).unwrap() += amount;
    }
    let lost: Vec<_> = acknowledged.difference(&ledger).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}, seed {seed}");
    for row in client.query("SELECT id, balance FROM accounts ORDER BY id", &[]).await.unwrap() {
        let (id, balance): (i32, i64) = (row.get(0), row.get(1));
        assert_eq!(balances.remove(&id), Some(balance), "account {id} against the ledger, seed {seed}");
    }
    assert!(balances.is_empty());
    let total: i64 = client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await.unwrap().get(0);
    assert_eq!(total, i64::from(ACCOUNTS) * START_BALANCE);
    drop(client);
    assert!(server.terminate().success());
    let verify = common::isochrone().args(["wal", "verify", "--data"]).arg(dir.path()).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}
