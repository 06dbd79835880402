//! Advisory locks over real nodes: migration tools that start at once at all gateways, and holders whose node dies or stands
//! still.

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::cluster::{Cluster, PATIENCE};
use isochrone_cli::inspect;
use isochrone_env::Clock;
use isochrone_env::os::OsClock;
use tokio_postgres::{Client, Error};

async fn ok(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {}", inspect::describe(&e)));
}

async fn cell(client: &Client, sql: &str) -> String {
    let rows = inspect::rows(client, sql).await.unwrap();
    rows[0].get(0).unwrap_or("").to_string()
}

/// CRC-32 as zip has it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// Scripts as people write them; nothing in them can be done twice.
const MIGRATIONS: [(i64, &str, &str); 4] = [
    (
        20_240_101_000_000,
        "create users",
        "CREATE TABLE users (id BIGINT PRIMARY KEY, name TEXT NOT NULL);\n\
         INSERT INTO users (id, name) VALUES (1, 'ada'), (2, 'bob');",
    ),
    (
        20_240_102_000_000,
        "create ledger",
        "CREATE TABLE ledger (id BIGINT PRIMARY KEY, user_id BIGINT NOT NULL, amount BIGINT NOT NULL);\n\
         CREATE INDEX ledger_user ON ledger (user_id);",
    ),
    (20_240_103_000_000, "count", "CREATE TABLE counts (n BIGINT NOT NULL); INSERT INTO counts VALUES (0);"),
    (20_240_104_000_000, "bump", "UPDATE counts SET n = n + 1;"),
];

/// What `sqlx migrate run` and `sqlx::migrate!().run()` do (0.8), statement by statement: the lock, the table of migrations,
/// each new one in a transaction with its row, the unlock. Returns how many were applied by this run.
async fn migrate(client: &mut Client) -> Result<usize, Error> {
    let database: String = client.query_one("SELECT current_database()", &[]).await?.get(0);
    let lock_id = 0x3d32_ad9e * i64::from(crc32(database.as_bytes()));
    client.execute("SELECT pg_advisory_lock($1)", &[&lock_id]).await?;
    client
        .batch_execute(
            "
CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
);
                ",
        )
        .await?;
    let dirty = "SELECT version FROM _sqlx_migrations WHERE success = false ORDER BY version LIMIT 1";
    assert!(client.query_opt(dirty, &[]).await?.is_none());
    let applied =
        client.query("SELECT version, checksum FROM _sqlx_migrations ORDER BY version", &[]).await?;
    let applied: Vec<i64> = applied.iter().map(|row| row.get(0)).collect();
    let mut done = 0;
    for (version, description, sql) in MIGRATIONS {
        if applied.contains(&version) {
            continue;
        }
        let checksum = crc32(sql.as_bytes()).to_be_bytes().to_vec();
        let txn = client.transaction().await?;
        txn.batch_execute(sql).await?;
        txn.execute(
            "
    INSERT INTO _sqlx_migrations ( version, description, success, checksum, execution_time )
    VALUES ( $1, $2, TRUE, $3, -1 )
                ",
            &[&version, &description, &checksum],
        )
        .await?;
        txn.commit().await?;
        client
            .execute(
                "
    UPDATE _sqlx_migrations
    SET execution_time = $1
    WHERE version = $2
                ",
                &[&1_234_i64, &version],
            )
            .await?;
        done += 1;
    }
    let database: String = client.query_one("SELECT current_database()", &[]).await?.get(0);
    assert_eq!(lock_id, 0x3d32_ad9e * i64::from(crc32(database.as_bytes())));
    client.execute("SELECT pg_advisory_unlock($1)", &[&lock_id]).await?;
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_migrations_at_once_apply_once() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    let mut cluster = Cluster::start(&[]).await;
    let gateways = cluster.gateways();
    let runs = (0..8).map(|i| {
        let gateway = gateways[i % gateways.len()];
        tokio::spawn(async move {
            let mut client = inspect::connect(gateway).await.unwrap();
            migrate(&mut client).await.unwrap_or_else(|e| panic!("run {i}: {}", inspect::describe(&e)))
        })
    });
    let runs: Vec<_> = runs.collect();
    let mut applied = Vec::new();
    for run in runs {
        applied.push(tokio::time::timeout(PATIENCE, run).await.expect("it ends").unwrap());
    }
    applied.sort_unstable();
    println!("applied by each run: {applied:?}");
    assert_eq!(applied, [0, 0, 0, 0, 0, 0, 0, MIGRATIONS.len()]);
    for node in cluster.nodes() {
        let client = cluster.connect(node).await;
        assert_eq!(cell(&client, "SELECT count(*) FROM _sqlx_migrations WHERE success").await, "4");
        assert_eq!(cell(&client, "SELECT n FROM counts").await, "1");
        assert_eq!(cell(&client, "SELECT count(*) FROM users").await, "2");
    }
    cluster.close_and_verify().await;
}

/// sqlx-cli itself, where it is installed (`cargo install sqlx-cli --no-default-features --features postgres`): eight
/// processes at once. Other than its library it takes no lock, so that who comes second is refused and has to be started
/// again; each script and its row are one transaction, and all are applied once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_of_sqlx_cli_apply_once() {
    if Command::new("sqlx").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: sqlx-cli is not installed");
        return;
    }
    let mut cluster = Cluster::start(&[]).await;
    let scripts = tempfile::tempdir().unwrap();
    for (version, description, sql) in MIGRATIONS {
        let name = format!("{version}_{}.sql", description.replace(' ', "_"));
        std::fs::write(scripts.path().join(name), sql).unwrap();
    }
    let gateways = cluster.gateways();
    let run = |i: usize| {
        let url = format!("postgres://root@{}/isochrone?sslmode=disable", gateways[i % gateways.len()]);
        let mut command = Command::new("timeout");
        command.args([&PATIENCE.as_secs().to_string(), "sqlx", "migrate", "run", "--no-dotenv"]);
        command.args(["--database-url", &url, "--source"]).arg(scripts.path()).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || {
            let out = command.output().unwrap();
            let (said, complained) =
                (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            println!("process {i}: {said}{complained}");
            let applied = said.lines().filter(|l| l.starts_with("Applied ")).count();
            (applied, out.status.success())
        })
    };
    let (mut applied, mut left) = (0, 8);
    for round in 0.. {
        assert!(round <= MIGRATIONS.len(), "in each round somebody gets further");
        let runs: Vec<_> = (0..left).map(run).collect();
        for ended in runs {
            let (here, well) = ended.await.unwrap();
            applied += here;
            left -= usize::from(well);
        }
        if left == 0 {
            break;
        }
    }
    assert_eq!(applied, MIGRATIONS.len());
    for node in cluster.nodes() {
        let client = cluster.connect(node).await;
        assert_eq!(cell(&client, "SELECT count(*) FROM _sqlx_migrations WHERE success").await, "4");
        assert_eq!(cell(&client, "SELECT n FROM counts").await, "1");
        assert_eq!(cell(&client, "SELECT count(*) FROM users").await, "2");
    }
    cluster.close_and_verify().await;
}

/// Until another session has the lock; it must not have it before its holder is certainly over.
async fn takes_over(client: &Client, lock: &str) -> Duration {
    let clock = OsClock::new(0);
    let began = clock.monotonic_ns();
    let sql = format!("SELECT pg_advisory_lock({lock})");
    let got = async {
        while let Err(error) = client.batch_execute(&sql).await {
            let code = error.code().map(|c| c.code().to_string()).unwrap_or_default();
            assert!(code.starts_with("40") || code == "57P03", "{}", inspect::describe(&error));
        }
    };
    tokio::time::timeout(PATIENCE, got).await.expect("it gets the lock");
    Duration::from_nanos(clock.monotonic_ns() - began)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holder_loses_its_locks_and_a_paused_one_hears_of_it() {
    let mut cluster = Cluster::start(&[]).await;
    let waiting = cluster.connect(1).await;
    ok(&waiting, "CREATE TABLE t (id int PRIMARY KEY)").await;
    // A session that ends, in whatever way, gives back at once.
    let holder = cluster.connect(3).await;
    ok(&holder, "SELECT pg_advisory_lock(7), pg_advisory_lock_shared(7, 1)").await;
    assert_eq!(cell(&waiting, "SELECT pg_try_advisory_lock(7)").await, "f");
    assert_eq!(cell(&waiting, "SELECT pg_try_advisory_lock_shared(7, 1)").await, "t");
    drop(holder);
    let took = takes_over(&waiting, "7").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    ok(&waiting, "SELECT pg_advisory_unlock_all()").await;

    // A node that is killed: when its lease has ended.
    let holder = cluster.connect(3).await;
    ok(&holder, "SELECT pg_advisory_lock(8)").await;
    cluster.kill(3);
    let took = takes_over(&waiting, "8").await;
    println!("taken over from a dead node after {took:?}");
    assert!(took > Duration::from_secs(2), "its lease ran for longer: {took:?}");
    cluster.restart(3).await;
    let client = cluster.connect(3).await;
    assert_eq!(cell(&client, "SELECT pg_try_advisory_lock(8)").await, "f");
    ok(&waiting, "SELECT pg_advisory_unlock(8)").await;

    // A node that is killed and back at once (N6): what its earlier process sent off may still be done until the lease of that
    // one has ended. Nobody takes its locks before, nor changes a table.
    for (takes, lock) in [(1, "10"), (3, "11")] {
        let holder = cluster.connect(3).await;
        ok(&holder, &format!("SELECT pg_advisory_lock({lock})")).await;
        let clock = OsClock::new(0);
        let killed = clock.monotonic_ns();
        cluster.kill(3);
        cluster.restart(3).await;
        let client = cluster.connect(takes).await;
        takes_over(&client, lock).await;
        let took = Duration::from_nanos(clock.monotonic_ns() - killed);
        println!("node {takes} has taken over from an earlier life after {took:?}");
        assert!(took > Duration::from_secs(3), "the lease of its earlier life ran for longer: {took:?}");
    }
    let clock = OsClock::new(0);
    let killed = clock.monotonic_ns();
    cluster.kill(3);
    cluster.restart(3).await;
    ok(&waiting, "ALTER TABLE t ADD COLUMN n int").await;
    let took = Duration::from_nanos(clock.monotonic_ns() - killed);
    println!("a table was changed {took:?} after a node's end");
    assert!(took > Duration::from_secs(3), "the lease of its earlier life ran for longer: {took:?}");
    ok(&waiting, "ALTER TABLE t DROP COLUMN n; SELECT pg_advisory_unlock_all()").await;

    // A node that stands still: the same, and its session is over when it goes on, whatever it was about.
    let holder = cluster.connect(2).await;
    ok(&holder, "SELECT pg_advisory_lock(9); BEGIN; INSERT INTO t VALUES (1)").await;
    let bystander = cluster.connect(2).await;
    cluster.signal("STOP", &[2]);
    let took = takes_over(&waiting, "9").await;
    println!("taken over from a paused node after {took:?}");
    cluster.signal("CONT", &[2]);
    let end = tokio::time::timeout(PATIENCE, holder.batch_execute("COMMIT")).await.expect("it is answered");
    let error = end.expect_err("the lock is somebody else's");
    let code = error.code().map(|c| c.code().to_string()).unwrap_or_default();
    assert!(code == "57P01" || code == "57P03" || code.starts_with("40"), "{}", inspect::describe(&error));
    let over = tokio::time::timeout(PATIENCE, async {
        while !holder.is_closed() {
            let _until_it_hears = holder.batch_execute("SELECT 1").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    over.await.expect("its connection ends");
    assert_eq!(cell(&waiting, "SELECT count(*) FROM t").await, "0");
    // Who held nothing goes on.
    let goes_on = async {
        while let Err(error) = bystander.batch_execute("SELECT count(*) FROM t").await {
            let code = error.code().map(|c| c.code().to_string()).unwrap_or_default();
            assert!(code.starts_with("40") || code == "57P03", "{}", inspect::describe(&error));
        }
    };
    tokio::time::timeout(PATIENCE, goes_on).await.expect("it is served");
    ok(&waiting, "SELECT pg_advisory_unlock(9)").await;
    assert_eq!(cell(&bystander, "SELECT pg_try_advisory_lock(9)").await, "t");
}
