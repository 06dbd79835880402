//! Three real nodes for tests: their own directory, ports and logs, all gone when the test ends. What is asked of them
//! either happens or panics; a test that fails shows the last lines of every node's log.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use isochrone_cli::bank::Load;
use isochrone_cli::inspect::{self, Shard};
use isochrone_cli::local::LocalCluster;
use tokio_postgres::Client;

/// Longest wait for anything that a healthy cluster does.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub local: LocalCluster,
    dir: PathBuf,
    // Removed with us.
    _temporary: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Addresses and an empty directory; nothing runs yet.
    pub fn prepare(more: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let local = LocalCluster::new(&super::executable(), dir.path(), 3, more).unwrap();
        Cluster { local, dir: dir.path().to_path_buf(), _temporary: Some(dir) }
    }

    /// Over nodes that were chosen elsewhere, with their data below `dir`; nothing runs yet.
    pub fn over(local: LocalCluster, dir: &Path) -> Cluster {
        Cluster { local, dir: dir.to_path_buf(), _temporary: None }
    }

    /// Three nodes that serve. `more` goes to each `start`.
    pub async fn start(more: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(more);
        let formed = cluster.local.form(PATIENCE).await;
        cluster.expect(formed);
        cluster
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn expect<T>(&self, result: Result<T, String>) -> T {
        result.unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn nodes(&self) -> Vec<u32> {
        self.local.nodes()
    }

    pub fn gateways(&self) -> Vec<SocketAddr> {
        self.local.gateways()
    }

    pub async fn connect(&self, node: u32) -> Client {
        inspect::connect(self.local.node(node).sql).await.expect("the node accepts connections")
    }

    /// Accounts on three shards, each led by another node.
    pub async fn open_bank(&self) -> Vec<Shard> {
        let client = self.connect(1).await;
        self.expect(isochrone_cli::bank::create(&client).await);
        self.spread().await
    }

    pub async fn spread(&self) -> Vec<Shard> {
        let client = self.connect(1).await;
        let shards = inspect::spread_leaders(&client, "accounts", &self.nodes(), PATIENCE).await;
        self.expect(shards)
    }

    pub fn kill(&mut self, node: u32) {
        let killed = self.local.kill(node);
        self.expect(killed);
    }

    /// All at once: nobody lives to notice that another one has died.
    pub fn kill_all(&mut self) {
        self.kill_at_once(&self.nodes());
    }

    /// SIGKILL to several nodes by one command.
    pub fn kill_at_once(&mut self, nodes: &[u32]) {
        self.signal("KILL", nodes);
        for node in nodes {
            self.kill(*node); // reaps it
        }
    }

    pub fn signal(&self, signal: &str, nodes: &[u32]) {
        let pids = nodes.iter().map(|n| self.local.node(*n).process.as_ref().expect("it runs").pid());
        let pids: Vec<String> = pids.map(|p| p.to_string()).collect();
        let sent = std::process::Command::new("kill").arg(format!("-{signal}")).args(pids).status();
        assert!(sent.expect("kill runs").success());
    }

    pub async fn restart(&mut self, node: u32) {
        let started = self.local.start(node);
        self.expect(started);
        self.expect(self.local.ready(node, PATIENCE).await);
    }

    pub async fn restart_all(&mut self) {
        for node in self.nodes() {
            let started = self.local.start(node);
            self.expect(started);
        }
        for node in self.nodes() {
            self.expect(self.local.ready(node, PATIENCE).await);
        }
    }

    /// The node has a replica of every shard, at most so many entries behind.
    pub async fn caught_up(&self, node: u32, lag_max: u64) {
        let client = self.connect(node).await;
        self.expect(inspect::caught_up(&client, node, lag_max, PATIENCE).await);
    }

    /// Stops all in order and lets `isochrone wal verify` look at what they leave.
    pub async fn close_and_verify(&mut self) {
        for node in self.nodes() {
            let status = self.local.terminate(node, PATIENCE).await;
            let status = self.expect(status);
            assert!(status.success(), "node {node} ended with {status}");
        }
        for node in self.nodes() {
            let out = self.wal(node, "verify");
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && said.contains("nothing wrong"), "node {node}: {said}");
        }
    }

    /// `isochrone wal WHAT` on a node's directory.
    pub fn wal(&self, node: u32, what: &str) -> Output {
        super::isochrone().args(["wal", what, "--data"]).arg(&self.local.node(node).data).output().unwrap()
    }

    /// The last index of each shard in the log of a node that does not run.
    pub fn last_indexes(&self, node: u32) -> BTreeMap<u64, u64> {
        let out = self.wal(node, "dump");
        let text = String::from_utf8_lossy(&out.stdout);
        let mut last = BTreeMap::new();
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace().map_while(|w| w.parse::<u64>().ok());
            if let (Some(shard), Some(index)) = (words.next(), words.next()) {
                let last = last.entry(shard).or_insert(index);
                *last = index.max(*last);
            }
        }
        last
    }
}

/// Waits for so many more acknowledged transfers.
pub async fn progress(load: &Load, commits: u64, when: &str) {
    let goal = load.counts().commits + commits;
    let progress = async {
        while load.counts().commits < goal {
            if let Some(error) = load.failed() {
                panic!("{when}: {error}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, progress).await;
    waited.unwrap_or_else(|_| panic!("{when}: no progress for {PATIENCE:?}"));
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.local.logs());
        }
    }
}
