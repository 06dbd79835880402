//! Lives of one data directory that split shards, and end in order (flushed, logs truncated) or by SIGKILL: a shard that
//! was made by a split is there after every mixture of the two (N1: no log is cut past what a flush holds, splits
//! included).

mod common;

use std::time::Duration;

use common::Server;
use isochrone_env::{SplitMix64, os};

const LIVES: u64 = 14;
const ROWS_PER_LIFE: i64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_outlive_every_kind_of_end() {
    let seed = os::entropy().unwrap();
    println!("seed {seed}");
    let random = SplitMix64::split(seed, "lives");
    let dir = tempfile::tempdir().unwrap();
    let mut rows = 0i64;
    let mut sum = 0i64;
    let mut shards = 1;
    for life in 0..LIVES {
        let server = Server::start(dir.path());
        let client = server.connect().await;
        if life == 0 {
            client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v bigint NOT NULL)").await.unwrap();
        }
        let row = client.query_one("SELECT count(*), coalesce(sum(v), 0)::bigint FROM t", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (rows, sum), "life {life}, seed {seed}");
        let seen = client.simple_query("SHOW SHARDS FROM TABLE t").await.unwrap();
        let seen = seen.iter().filter(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(_))).count();
        assert_eq!(seen, shards, "shards of the table in life {life}, seed {seed}");
        // Some lives only look.
        if random.below(4) > 0 {
            let half = ROWS_PER_LIFE / 2;
            for part in 0..2 {
                let insert = "INSERT INTO t SELECT i, i FROM generate_series($1::bigint, $2::bigint) i";
                let (from, to) = (rows + 1, rows + half);
                assert_eq!(client.execute(insert, &[&from, &to]).await.unwrap(), half as u64);
                sum += (from..=to).sum::<i64>();
                rows += half;
                // Between the parts: what was written before the split and after it lies in different logs.
                if part == 0 && random.below(3) > 0 {
                    let at = rows - half / 2;
                    client.batch_execute(&format!("ALTER TABLE t SPLIT AT VALUES ({at})")).await.unwrap();
                    shards += 1;
                }
            }
            // Across all shards, in one transaction.
            client.batch_execute("UPDATE t SET v = v + 1").await.unwrap();
            sum += rows;
        }
        drop(client);
        if random.below(2) == 0 {
            assert!(server.terminate_within(Duration::from_secs(60)).success(), "life {life}, seed {seed}");
        } else {
            server.kill();
        }
    }
    let verify = common::isochrone().args(["wal", "verify", "--data"]).arg(dir.path()).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    println!("{shards} shards, {rows} rows over {LIVES} lives");
}
