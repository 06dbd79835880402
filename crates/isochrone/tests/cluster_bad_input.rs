//! What can go wrong at the cluster port, and with the addresses and directories of nodes, gets a clear answer, and the
//! cluster goes on as if nothing had been.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use common::cluster::{Cluster, PATIENCE};
use common::isochrone;
use isochrone_api::{ADMIN_REQUEST, Request, Response};
use isochrone_base::NodeId;
use isochrone_cli::inspect;
use isochrone_cli::local::{NodeProcess, reserve_ports};
use isochrone_env::{Random, SplitMix64};
use isochrone_net::{CallError, Hello, call_once};
use tokio_postgres::Client;

/// Writes through every gateway: nobody noticed anything.
async fn unharmed(clients: &[Client], what: &str) {
    for client in clients {
        let sql = "UPDATE t SET v = v + 1 WHERE id = 1";
        let changed = tokio::time::timeout(PATIENCE, client.execute(sql, &[])).await;
        let changed = changed.unwrap_or_else(|_| panic!("{what}: no answer for {PATIENCE:?}"));
        assert_eq!(changed.unwrap_or_else(|e| panic!("{what}: {}", inspect::describe(&e))), 1);
    }
}

async fn busy_cluster() -> (Cluster, Vec<Client>) {
    let cluster = Cluster::start(&[]).await;
    let mut clients = Vec::new();
    for node in cluster.nodes() {
        clients.push(cluster.connect(node).await);
    }
    clients[0]
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
        .await
        .unwrap();
    (cluster, clients)
}

/// What the other side says until it hangs up.
fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = socket.write_all(bytes); // it may have hung up already
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_oversized_frames() {
    let (cluster, clients) = busy_cluster().await;
    let random = SplitMix64::new(5);
    // Held open: they say nothing, and take nothing away.
    let mut silent = Vec::new();
    for i in 0..60 {
        let node = cluster.nodes()[i % 3];
        let address = cluster.local.node(node).cluster;
        let mut bytes: Vec<u8> = (0..random.below(4_000)).map(|_| random.next_u64() as u8).collect();
        match i % 4 {
            1 => bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            // Lengths of gigabytes, at the places where protocols have them.
            2 => bytes = [&[0xff; 64][..], &bytes].concat(),
            3 => bytes = [&b"ISO-NET\x01"[..], &[0xff, 0xff, 0xff, 0x7f], &bytes].concat(),
            _ => {}
        }
        silent.push(TcpStream::connect(address).unwrap());
        let what = format!("garbage {i} at node {node}");
        let answered = tokio::task::spawn_blocking(move || answer_to(address, &bytes));
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        assert!(answered.is_ok(), "{what}: the node did not hang up");
        unharmed(&clients, &what).await;
    }
}

/// Well-formed frames with payloads that are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_make_no_sense() {
    let (cluster, clients) = busy_cluster().await;
    let address = cluster.local.node(1).cluster.to_string();
    let random = SplitMix64::new(6);
    for i in 0..100u8 {
        let mut payload: Vec<u8> = (0..random.below(200)).map(|_| random.next_u64() as u8).collect();
        payload.insert(0, i % 8);
        let admin = payload[0] == ADMIN_REQUEST;
        let call = call_once(&address, Hello::default(), payload.into(), PATIENCE).await;
        match call {
            Err(CallError::Refused(why)) => assert!(!why.is_empty()),
            Ok((_, answer)) if admin => {
                let answer = Response::decode(answer).unwrap();
                assert!(matches!(answer, Response::Error { .. }), "{answer:?}");
            }
            other => panic!("call {i}: {other:?}"),
        }
        unharmed(&clients, &format!("call {i}")).await;
    }
    let hello = |cluster, node| Hello { cluster, node: NodeId(node), address: "127.0.0.1:1".into() };
    // Of another cluster; and one that says it is a node that we have, or never had, from elsewhere.
    let stranger = call_once(&address, hello(7, 2), Request::NodeList.encode(), PATIENCE).await;
    let Err(CallError::NotSent(why) | CallError::Refused(why)) = stranger else {
        panic!("a stranger is refused: {stranger:?}");
    };
    assert!(why.contains("another cluster"), "{why}");
    unharmed(&clients, "a stranger").await;
}

fn start_args(data: &Path, cluster: u16, join: &str) -> Vec<String> {
    let args = ["--sql", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"].map(String::from);
    let more = [data.display().to_string(), "--cluster".into(), format!("127.0.0.1:{cluster}")];
    args.into_iter().chain(more).chain(["--join".into(), join.into()]).collect()
}

fn start(args: &[String], log: &Path) -> NodeProcess {
    NodeProcess::start(Path::new(env!("CARGO_BIN_EXE_isochrone")), args, log).unwrap()
}

/// Waits until the node says one of these words on standard error.
async fn says(node: &mut NodeProcess, log: &Path, words: &[&str]) -> String {
    let said = async {
        loop {
            let ended = node.has_ended(); // first: what is read afterwards is all it will ever say
            let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
            if words.iter().any(|w| text.contains(w)) {
                return text;
            }
            assert!(!ended, "the node ended and said none of {words:?}: {text}");
            tokio::time::sleep(inspect::LOOK_EVERY).await;
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    let text =
        said.unwrap_or_else(|_| panic!("none of {words:?}: {}", std::fs::read_to_string(log).unwrap()));
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster() {
    let (cluster, clients) = busy_cluster().await;
    let data = cluster.dir().join("alone");
    let log = cluster.dir().join("alone.log");
    let reserved = reserve_ports(1).unwrap();
    let port = reserved[0].port();
    // A cluster of its own first; then it is told to join the other one.
    let mut alone = start_args(&data, port, "");
    alone.truncate(alone.len() - 2);
    let node = start(&alone, &log);
    node.ready(PATIENCE).await.unwrap();
    assert!(node.terminate(PATIENCE).await.unwrap().success());
    let mut node = start(&start_args(&data, port, &cluster.local.join()), &log);
    says(&mut node, &log, &["another cluster"]).await;
    unharmed(&clients, "a node of another cluster").await;
    drop(node);
    unharmed(&clients, "its end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_addresses_to_join() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let reserved = reserve_ports(3).unwrap();
    let ports: Vec<u16> = reserved.iter().map(|p| p.port()).collect();
    let join: Vec<_> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    let node = start(&start_args(&dir.path().join("data"), ports[0], &join.join(",")), &log);
    node.waiting(PATIENCE).await.unwrap();
    let init = |address: &str| {
        let out = isochrone().args(["init", "--wait", "2", "--cluster", address]).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    };
    let said = init(&join[0]);
    assert!(said.contains(&format!("waiting for 3 nodes: {} answers", join[0])), "{said}");
    for nobody in &join[1..] {
        assert!(said.contains(&format!("{nobody} does not (")), "{said}");
    }
    assert!(said.to_lowercase().contains("refused") && said.contains("gave up after 2 s"), "{said}");
    // Nobody there at all; and somebody who is no node.
    let said = init(&join[1]);
    assert!(said.contains(&format!("waiting for {}: ", join[1])), "{said}");
    drop(node);
    let alone = start(&start_args(&dir.path().join("alone"), ports[0], "")[..8], &log);
    let sql = alone.ready(PATIENCE).await.unwrap().sql.to_string();
    let said = init(&sql);
    assert!(said.contains(&format!("waiting for {sql}: ")), "{said}");
    // A node of a cluster of one has nothing to initialise.
    let out = isochrone().args(["init", "--cluster", &join[0]]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("already initialised"), "{said}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_directory_of_another_node() {
    let (mut cluster, clients) = busy_cluster().await;
    // Node 2's directory, copied while it was stopped, is started at node 3's address while node 2 runs again.
    let status = cluster.local.terminate(2, PATIENCE).await;
    assert!(cluster.expect(status).success());
    let stolen = cluster.dir().join("stolen");
    copy(&cluster.local.node(2).data, &stolen);
    cluster.restart(2).await;
    let status = cluster.local.terminate(3, PATIENCE).await;
    assert!(cluster.expect(status).success());
    let log = cluster.dir().join("stolen.log");
    let port = cluster.local.node(3).cluster.port();
    let mut thief = start(&start_args(&stolen, port, &cluster.local.join()), &log);
    let said = says(&mut thief, &log, &["node 2"]).await;
    println!("{said}");
    let first = [cluster.connect(1).await, cluster.connect(2).await];
    unharmed(&first, "two nodes that say they are node 2").await;
    drop(thief);
    cluster.restart(3).await;
    cluster.caught_up(3, 0).await;
    // And the directory of a node that runs cannot be opened a second time.
    let mut second = start(&start_args(&cluster.local.node(1).data, 0, &cluster.local.join()), &log);
    says(&mut second, &log, &["in use by another process"]).await;
    unharmed(&clients[..1], "a second process on node 1's directory").await;
    unharmed(&first, "the end").await;
}
