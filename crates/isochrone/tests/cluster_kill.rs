//! Six clients move money across shards and write a ledger while each of three nodes in turn is killed -9, again and
//! again. What was acknowledged is there, nothing is there by half, nobody waits long, and a node that comes back needs
//! no help: once with the log it has missed, once, when the others no longer have that, with a snapshot.

mod common;

use std::time::Duration;

use common::cluster::{Cluster, progress};
use isochrone_cli::bank::{self, Load, Watcher};
use isochrone_cli::inspect;
use isochrone_env::{SplitMix64, os};

const CLIENTS: usize = 6;
/// The promise; the aim is 3 s.
const STALL_MAX: Duration = Duration::from_secs(5);
/// This kill is long enough for the others to cut their logs above what the dead node has.
const SNAPSHOT_KILL: u64 = 4;
/// Small, so that logs are cut after seconds of load.
const WAL_BYTES_MAX: &str = "400000";
/// Longest wait for logs to be cut.
const TRUNCATION_MAX: Duration = Duration::from_secs(180);
/// A replica that is this close behind while clients write has caught up.
const LAG_MAX: u64 = 300;

fn kills() -> u64 {
    std::env::var("ISOCHRONE_TEST_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(21)
}

/// Waits until a shard's leader no longer has the entry that a dead node needs next. Returns that shard.
async fn cut_above(cluster: &Cluster, dead: u32) -> u64 {
    let had = cluster.last_indexes(dead);
    let alive = cluster.nodes().into_iter().find(|n| *n != dead).unwrap();
    let client = cluster.connect(alive).await;
    let mut seen = Vec::new();
    let cut = async {
        loop {
            if let Ok(shards) = inspect::shards(&client, "accounts").await {
                let gone = |s: &&inspect::Shard| had.get(&s.shard).is_some_and(|h| s.first_index > h + 1);
                if let Some(shard) = shards.iter().find(gone) {
                    return shard.shard;
                }
                seen = shards;
            }
            tokio::time::sleep(inspect::LOOK_EVERY).await;
        }
    };
    let cut = tokio::time::timeout(TRUNCATION_MAX, cut).await;
    cut.unwrap_or_else(|_| panic!("node {dead} has {had:?}, and no log was cut above: {seen:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_can_be_killed() {
    let seed = os::entropy().unwrap();
    println!("seed {seed}");
    let random = SplitMix64::split(seed, "killer");
    let mut cluster = Cluster::start(&["--wal-bytes-max", WAL_BYTES_MAX]).await;
    cluster.open_bank().await;
    let gateways = cluster.gateways();
    let load = Load::start(&gateways, CLIENTS, seed, 0);
    let watcher = Watcher::start(&gateways);
    let mut stalls = Vec::new();
    let mut led = 0;
    for kill in 0..kills() {
        let nodes = cluster.nodes();
        let node = nodes[kill as usize % nodes.len()];
        // Every life does work, and is cut off in the midst of it.
        progress(&load, 20 + random.below(100), &format!("before kill {kill}, seed {seed}")).await;
        let client = cluster.connect(node).await;
        let replicas = inspect::replicas(&client).await.unwrap_or_default();
        led += usize::from(replicas.iter().any(|r| r.node == node && r.role == "leader"));
        cluster.kill(node);
        progress(&load, 20 + random.below(100), &format!("after kill {kill} of node {node}, seed {seed}"))
            .await;
        if kill == SNAPSHOT_KILL {
            let shard = cut_above(&cluster, node).await;
            println!("kill {kill}: only a snapshot can bring shard {shard} back to node {node}");
        }
        cluster.restart(node).await;
        cluster.caught_up(node, LAG_MAX).await;
        let stall = load.take_longest();
        println!("kill {kill}: node {node}, longest wait {stall:?}, {} commits", load.counts().commits);
        stalls.push(stall);
        let totals = watcher.totals();
        assert_eq!(totals.wrong, None, "a snapshot's total, kill {kill}, seed {seed}");
    }
    let checks = watcher.totals().checks;
    assert!(checks > kills() / 2, "the total was checked only {checks} times");
    drop(watcher);
    let counts = load.counts();
    let acknowledged = cluster.expect(load.stop().await);
    for node in cluster.nodes() {
        cluster.caught_up(node, 0).await;
        // Each node by itself knows everything.
        let found = bank::verify(&[cluster.local.node(node).sql], &acknowledged, &[]).await;
        let found = cluster.expect(found);
        println!("node {node}: {} ledger rows, {} acknowledged", found.ledger_rows, acknowledged.len());
    }
    cluster.close_and_verify().await;
    stalls.sort();
    let longest = *stalls.last().unwrap();
    println!(
        "{} kills, {led} of them of a leader; {} transfers, {} repeated, {} unknown; longest wait {longest:?}, median \
         {:?}; {checks} totals",
        kills(),
        acknowledged.len(),
        counts.retries,
        counts.unknown,
        stalls[stalls.len() / 2]
    );
    assert!(longest < STALL_MAX, "a transfer waited {longest:?}, seed {seed}");
}
