//! The node below SQL: point reads and small commits, latency and CPU per operation. `cargo bench -p isochrone-server`.
//!
//! CPU is that of the whole process (gateways, store loop, log writer), so it is what a statement pays below SQL.
#![allow(missing_docs, reason = "a benchmark")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use isochrone_base::{Bytes, keyspace, ordered};
use isochrone_env::{Random, SplitMix64};
use isochrone_server::{NodeConfig, Running};
use isochrone_txn::kv::{KvStore, Lock, TxnOptions};

const ROWS: u64 = 100_000;

fn key(id: u64) -> Vec<u8> {
    let mut key = keyspace::index_prefix(keyspace::FIRST_USER_TABLE, 0);
    ordered::put_u64(&mut key, id);
    key
}

/// User and system time of this process, in microseconds.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("comm").1.split_whitespace().collect();
    (fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")) * 10_000
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

async fn measure<F, Fut>(name: &str, clients: u64, seconds: u64, op: F)
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let op = Arc::new(op);
    let (start, cpu) = (now(), cpu_us());
    let end = start + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let op = op.clone();
            tokio::spawn(async move {
                let random = SplitMix64::new(client);
                let mut n = 0u64;
                while now() < end {
                    op(random.next_u64()).await;
                    n += 1;
                    if n.is_multiple_of(16) {
                        tokio::task::yield_now().await;
                    }
                }
                n
            })
        })
        .collect();
    let mut n = 0;
    for task in tasks {
        n += task.await.expect("clients do not panic");
    }
    let elapsed = start.elapsed().as_secs_f64();
    println!(
        "{name:<28} {clients:>3} clients {:>9.0} op/s  {:>8.1} us/op latency  {:>6.1} us/op cpu",
        n as f64 / elapsed,
        elapsed * 1e6 * clients as f64 / n as f64,
        (cpu_us() - cpu) as f64 / n as f64
    );
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let node = Running::open(&NodeConfig::new(dir.path())).await.expect("the node opens");
        let store = node.node().store.clone();
        let rows = (0..ROWS).map(|id| (key(id), Bytes::from(vec![7u8; 100]))).collect();
        store.bulk_write(rows).await.expect("load");
        for clients in [1, 8, 32] {
            let s = store.clone();
            measure("point read", clients, 3, move |r| {
                let s = s.clone();
                async move {
                    let mut txn = s.begin(TxnOptions::default());
                    assert!(txn.get(&key(r % ROWS), Lock::None).await.expect("read").is_some());
                    txn.commit().await.expect("commit");
                }
            })
            .await;
            let s = store.clone();
            measure("read, write, commit", clients, 3, move |r| {
                let s = s.clone();
                async move {
                    let mut txn = s.begin(TxnOptions::default());
                    let k = key(r % ROWS);
                    txn.get(&k, Lock::Exclusive).await.expect("read");
                    txn.put(k, Some(Bytes::from(vec![8u8; 100]))).expect("put");
                    // A conflict is no failure of a benchmark with 32 clients.
                    let _ = txn.commit().await;
                }
            })
            .await;
        }
        node.close().await.expect("close");
    });
}
