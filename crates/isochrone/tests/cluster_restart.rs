//! All three nodes are killed -9 at once under load, and started again, many times: everything acknowledged is there.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::cluster::{Cluster, PATIENCE};
use isochrone_cli::bank::{self, Load};
use isochrone_env::{SplitMix64, os};

const CLIENTS: usize = 6;

fn rounds() -> u32 {
    std::env::var("ISOCHRONE_TEST_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once() {
    let seed = os::entropy().unwrap();
    println!("seed {seed}");
    let random = SplitMix64::split(seed, "killer");
    let mut cluster = Cluster::start(&["--wal-bytes-max", "1000000"]).await;
    cluster.open_bank().await;
    let mut acknowledged = BTreeSet::new();
    for round in 0..rounds() {
        let load = Load::start(&cluster.gateways(), CLIENTS, seed, round);
        let goal = 20 + random.below(150);
        let progress = async {
            while load.counts().commits < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, progress).await;
        assert!(
            waited.is_ok(),
            "round {round}: no progress for {PATIENCE:?}, seed {seed}: {:?}",
            load.failed()
        );
        cluster.kill_all();
        acknowledged.extend(cluster.expect(load.stop().await));
        cluster.restart_all().await;
        let found = cluster.expect(bank::verify(&cluster.gateways(), &acknowledged, &[]).await);
        println!("round {round}: {} acknowledged, {} ledger rows", acknowledged.len(), found.ledger_rows);
    }
    for node in cluster.nodes() {
        cluster.caught_up(node, 0).await;
    }
    cluster.close_and_verify().await;
}
