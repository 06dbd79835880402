//! A node takes the place of another one, under load: one that is there, and one that is lost. Afterwards any one of the new
//! three may go.

mod common;

use std::time::Duration;

use common::cluster::{Cluster, PATIENCE, progress};
use isochrone_cli::bank::{self, Load};
use isochrone_cli::local::NodeProcess;

const CLIENTS: usize = 4;

/// A fourth node, which joins.
async fn fourth(cluster: &Cluster) -> (NodeProcess, std::net::SocketAddr, u16) {
    let data = cluster.dir().join("four").display().to_string();
    let join = cluster.local.join();
    let args = ["--data", &data, "--sql", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cluster", "127.0.0.1:0"];
    let args: Vec<String> = args.into_iter().chain(["--join", &join]).map(String::from).collect();
    let log = cluster.dir().join("four.log");
    let node = NodeProcess::start(&common::executable(), &args, &log).unwrap();
    let addresses = node.ready(PATIENCE).await.unwrap_or_else(|why| panic!("{why}; {}", node.log_tail()));
    (node, addresses.sql, addresses.cluster.expect("it has a cluster address").port())
}

fn node(args: &[&str], port: u16) -> (bool, String) {
    let cluster = format!("127.0.0.1:{port}");
    let out = common::isochrone().arg("node").args(args).args(["--cluster", &cluster]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), said)
}

/// How many replicas each node says it holds, by `isochrone node ls`.
fn replicas(port: u16) -> Vec<(u32, u32)> {
    let (ok, said) = node(&["ls"], port);
    assert!(ok, "{said}");
    let numbers = |line: &str| {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        Some((words.first()?.parse().ok()?, words.last()?.parse().ok()?))
    };
    said.lines().filter_map(numbers).collect()
}

async fn takes_its_place(lost: bool) {
    let mut cluster = Cluster::start(&[]).await;
    cluster.open_bank().await;
    let load = Load::start(&cluster.gateways(), CLIENTS, 7, 0);
    progress(&load, 50, "before").await;
    if lost {
        cluster.kill(3);
        progress(&load, 20, "without node 3").await;
    }
    let (four, sql, port) = fourth(&cluster).await;
    let (ok, said) = node(&["replace", "3", "3"], port);
    let why = if lost { "node 3 cannot be reached" } else { "node 3 holds the shards already" };
    assert!(!ok && said.contains(why), "{said}");
    let (ok, said) = node(&["replace", "3", "4", "--wait", "60"], port);
    assert!(ok && said.contains("node 4 holds what node 3 held"), "{said}\n{}", cluster.local.logs());
    progress(&load, 50, "after the change").await;
    let held = replicas(port);
    let all = held.iter().find(|(node, _)| *node == 1).expect("node 1 is there").1;
    assert!(all > 3 && held.contains(&(4, all)), "{held:?}");
    if !lost {
        // Raft does not tell a node that it has left: it finds out, and what it held goes.
        let gone = async {
            while !replicas(port).contains(&(3, 0)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, gone).await;
        assert!(waited.is_ok(), "node 3 keeps replicas: {:?}", replicas(port));
        // It serves SQL as before; once started again too, and then makes no shards of its own.
        let client = cluster.connect(3).await;
        client.simple_query("SELECT count(*) FROM accounts").await.unwrap();
        cluster.kill(3);
        cluster.restart(3).await;
        let client = cluster.connect(3).await;
        client.simple_query("SELECT count(*) FROM accounts").await.unwrap();
        assert!(replicas(port).contains(&(3, 0)), "{:?}", replicas(port));
        cluster.kill(3);
    }
    cluster.kill(2);
    progress(&load, 50, "with nodes 1 and 4").await;
    let acknowledged = cluster.expect(load.stop().await);
    let gateways = [cluster.gateways()[0], sql];
    let found = cluster.expect(bank::verify(&gateways, &acknowledged, &[]).await);
    println!("{} acknowledged, {} ledger rows", acknowledged.len(), found.ledger_rows);
    four.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_that_is_there() {
    takes_its_place(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_that_is_lost() {
    takes_its_place(true).await;
}

/// B6: an empty directory at the address of a node that was there from the beginning is another node. As the old one it
/// would have forgotten what it voted for and acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_whose_disk_was_replaced_where_it_was() {
    let mut cluster = Cluster::start(&[]).await;
    cluster.open_bank().await;
    let load = Load::start(&cluster.gateways(), CLIENTS, 9, 0);
    progress(&load, 50, "before").await;
    cluster.kill(2);
    std::fs::remove_dir_all(&cluster.local.node(2).data).unwrap();
    // Nor where the cluster was made, which may have started again meanwhile.
    cluster.kill(1);
    cluster.restart(1).await;
    cluster.restart(2).await;
    let port = cluster.local.join().split(',').next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let held = replicas(port);
    assert!(held.contains(&(4, 0)) && !held.iter().any(|(n, r)| *n == 2 && *r > 0), "{held:?}");
    let (ok, said) = node(&["replace", "2", "4", "--wait", "60"], port);
    assert!(ok && said.contains("node 4 holds what node 2 held"), "{said}\n{}", cluster.local.logs());
    progress(&load, 50, "after the change").await;
    cluster.kill(3);
    progress(&load, 50, "with nodes 1 and 4").await;
    let acknowledged = cluster.expect(load.stop().await);
    let gateways = [cluster.gateways()[0], cluster.gateways()[1]];
    let found = cluster.expect(bank::verify(&gateways, &acknowledged, &[]).await);
    println!("{} acknowledged, {} ledger rows", acknowledged.len(), found.ledger_rows);
}
