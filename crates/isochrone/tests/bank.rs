//! The load that the demo and the tests of clusters stand on, against one node that is killed under it: it goes on by
//! itself, and its check finds nothing. (That the check finds what is wrong is tested where it is written.)

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use isochrone_cli::bank::{self, Load, Watcher};
use isochrone_cli::demo::journey;
use isochrone_cli::inspect;
use isochrone_cli::local::{NodeProcess, reserve_ports};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_over_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let ports = reserve_ports(3).unwrap();
    let mut args = vec!["--data".to_string(), dir.path().join("data").display().to_string()];
    for (flag, port) in ["--sql", "--http", "--cluster"].iter().zip(&ports) {
        args.extend([flag.to_string(), port.address().to_string()]);
    }
    let executable = std::path::Path::new(env!("CARGO_BIN_EXE_isochrone"));
    let log = dir.path().join("log");
    let start = || NodeProcess::start(executable, &args, &log).unwrap();
    let mut node = start();
    let sql = node.ready(PATIENCE).await.unwrap().sql;
    bank::create(&inspect::connect(sql).await.unwrap()).await.unwrap();
    let shards = inspect::shards(&inspect::connect(sql).await.unwrap(), "accounts").await.unwrap();
    assert_eq!(shards.len(), bank::SHARDS as usize);
    let (load, watcher) = (Load::start(&[sql], 4, 1, 0), Watcher::start(&[sql]));
    for _ in 0..3 {
        let goal = load.counts().commits + 50;
        let progress = async {
            while load.counts().commits < goal || watcher.totals().checks == 0 {
                assert_eq!(load.failed(), None);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, progress).await.expect("the load goes on");
        node.kill().unwrap();
        node = start();
        node.ready(PATIENCE).await.unwrap();
    }
    assert_eq!(watcher.totals().wrong, None);
    let counts = load.counts();
    let acknowledged = load.stop().await.unwrap();
    assert!(counts.longest > Duration::ZERO && counts.unknown > 0, "kills were noticed: {counts:?}");
    assert!(acknowledged.len() as u64 >= counts.commits);
    let found = bank::verify(&[sql], &acknowledged, &[]).await.unwrap();
    assert!(found.ledger_rows >= acknowledged.len());

    // And one more transfer, whose records are found in the logs of both its shards.
    let journey = journey::follow(&BTreeMap::from([(1, sql)])).await.unwrap();
    println!("{}", journey::show(&journey));
    for records in &journey.records {
        let kinds: Vec<&str> = records.iter().map(|r| &*r.kind).collect();
        assert_eq!(kinds[..2], ["prepare", "commit"], "{kinds:?}");
    }
    bank::verify(&[sql], &acknowledged, &[journey::TRANSFER]).await.unwrap();
    assert!(node.terminate(PATIENCE).await.unwrap().success());
}

/// A node whose parent is gone ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_with_its_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = common::isochrone()
        .args([
            "start",
            "--sql",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--cluster",
            "127.0.0.1:0",
            "--data",
        ])
        .arg(dir.path())
        .arg("--stop-with-stdin")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(1));
}
