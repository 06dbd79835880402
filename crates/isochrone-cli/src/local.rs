//! Nodes on this machine as real processes: what the demo shows, and what tests kill.
//!
//! Invariants
//!   L1  A process that was started here ends when its [`NodeProcess`] is dropped, and, since it watches its standard
//!       input, also when this process ends in a way that drops nothing.
//!   L2  Only processes started here are ever signalled, by their own id.
//!
//! A node says on standard output where it stands: `waiting for "isochrone init": cluster=..` and
//! `ready sql=.. http=.. cluster=..`. Its log goes to a file beside its data; the last lines of it are in the errors here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use isochrone_env::{SplitMix64, os};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::init::{self, Outcome};
use crate::{admin, node};

/// Ports are taken from here: below the range from which Linux takes the ports of outgoing connections, so that a node's
/// port is still free when the node comes back.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// On a [`Host`], whose address is the node's alone: SQL, HTTP, cluster.
const HOST_PORTS: (u16, u16, u16) = (5433, 8433, 7433);
/// Tries to find a free port; then the search fails.
const PORT_TRIES_MAX: usize = 2_000;
/// Lines of a node's log that are shown in an error.
const LOG_LINES_SHOWN: usize = 15;

/// A port of the loopback address that nobody else is given while this lives. A server that sets `SO_REUSEADDR`, as a node
/// does, can listen on it, end, and listen on it again.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    // Bound and never listening: others who look for a port find this one taken.
    _socket: TcpSocket,
}

impl ReservedPort {
    fn take(port: u16) -> io::Result<ReservedPort> {
        let socket = TcpSocket::new_v4()?;
        // While looking, not shared with anybody; from then on with the server that this is for.
        socket.set_reuseaddr(false)?;
        socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
        socket.set_reuseaddr(true)?;
        Ok(ReservedPort { port, _socket: socket })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A number of ports of the loopback address, each reserved for as long as its value lives.
pub fn reserve_ports(n: usize) -> io::Result<Vec<ReservedPort>> {
    let random = SplitMix64::new(os::entropy()?);
    let mut found = Vec::new();
    for _ in 0..PORT_TRIES_MAX {
        if found.len() == n {
            return Ok(found);
        }
        let port = PORTS.start + random.below(u64::from(PORTS.end - PORTS.start)) as u16;
        found.extend(ReservedPort::take(port));
    }
    Err(io::Error::other(format!("no {n} free ports between {} and {}", PORTS.start, PORTS.end)))
}

/// Where a node listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// SQL clients.
    pub sql: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
    /// Other nodes. `None` in a `ready` line of a program without clusters.
    pub cluster: Option<SocketAddr>,
}

/// How far a node has come, as it says itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Starting,
    Waiting,
    Ready(Addresses),
    Ended,
}

fn stage(line: &str) -> Option<Stage> {
    if line.starts_with("waiting for \"isochrone init\"") {
        return Some(Stage::Waiting);
    }
    let words = line.strip_prefix("ready ")?;
    let field = |name: &str| {
        words.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    Some(Stage::Ready(Addresses { sql: field("sql")?, http: field("http")?, cluster: field("cluster") }))
}

/// A node that runs.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
    // Closed with us (L1).
    _stdin: Option<ChildStdin>,
    stage: watch::Receiver<Stage>,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts `executable start` with these arguments; standard error is appended to `log`.
    pub fn start(executable: &Path, args: &[String], log: &Path) -> io::Result<NodeProcess> {
        NodeProcess::start_wrapped(&[], executable, args, log)
    }

    /// The same with a command before it, see [`Host::wrapper`].
    pub fn start_wrapped(
        wrapper: &[String],
        executable: &Path,
        args: &[String],
        log: &Path,
    ) -> io::Result<NodeProcess> {
        let stderr = File::options().create(true).append(true).open(log)?;
        let mut command = match wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(executable);
                command
            }
            None => Command::new(executable),
        };
        let mut child = command
            .arg("start")
            .args(args)
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C at the terminal is for us; we end the nodes.
            .process_group(0)
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (tell, stage) = watch::channel(Stage::Starting);
        std::thread::Builder::new().name("node-output".into()).spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(now) = self::stage(&line) {
                    tell.send_replace(now);
                }
            }
            tell.send_replace(Stage::Ended);
        })?;
        Ok(NodeProcess { _stdin: child.stdin.take(), child, stage, log: log.to_path_buf() })
    }

    /// Waits until it waits for `isochrone init`, or serves.
    pub async fn waiting(&self, patience: Duration) -> Result<(), String> {
        self.reached(patience, |s| matches!(s, Stage::Waiting | Stage::Ready(_))).await.map(|_| ())
    }

    /// Waits until it serves.
    pub async fn ready(&self, patience: Duration) -> Result<Addresses, String> {
        match self.reached(patience, |s| matches!(s, Stage::Ready(_))).await? {
            Stage::Ready(addresses) => Ok(addresses),
            other => unreachable!("waited for another stage than {other:?}"),
        }
    }

    async fn reached(&self, patience: Duration, goal: impl Fn(&Stage) -> bool) -> Result<Stage, String> {
        let mut stage = self.stage.clone();
        let reached = stage.wait_for(|s| goal(s) || *s == Stage::Ended);
        match tokio::time::timeout(patience, reached).await.map(|r| r.map(|s| *s)) {
            Ok(Ok(now)) if goal(&now) => Ok(now),
            Ok(_) => Err(format!("the node ended before it was ready; its log:\n{}", self.log_tail())),
            Err(_) => Err(format!("the node is not ready after {patience:?}; its log:\n{}", self.log_tail())),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// SIGTERM, and its exit status once it has drained.
    pub async fn terminate(mut self, patience: Duration) -> Result<ExitStatus, String> {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        if !sent.as_ref().is_ok_and(ExitStatus::success) {
            return Err(format!("cannot send SIGTERM to process {pid}: {sent:?}"));
        }
        let mut stage = self.stage.clone();
        let ended = stage.wait_for(|s| *s == Stage::Ended);
        if tokio::time::timeout(patience, ended).await.is_err() {
            return Err(format!("still there {patience:?} after SIGTERM; its log:\n{}", self.log_tail()));
        }
        self.child.wait().map_err(|e| e.to_string())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

/// Where a node of a [`LocalCluster`] runs, when it is not simply on the loopback address: a network namespace of this
/// machine, for example.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// The command that is put before the node's; empty: none. It must turn into the node, as `nsenter` does, and not
    /// start it as a child: signals go to the process that was started (L2).
    pub wrapper: Vec<String>,
    /// The address that the node listens on. Nobody else may listen there: the ports are fixed.
    pub ip: IpAddr,
    /// The data directory.
    pub data: PathBuf,
    /// The log.
    pub log: PathBuf,
}

/// One place of a [`LocalCluster`]: a directory, three ports, and perhaps a process.
#[derive(Debug)]
pub struct Place {
    /// Put before the command, see [`Host`].
    pub wrapper: Vec<String>,
    /// Its data directory.
    pub data: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// SQL clients.
    pub sql: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
    /// Other nodes.
    pub cluster: SocketAddr,
    /// What its `start` gets beside what all get.
    pub more: Vec<String>,
    /// The process, while there is one.
    pub process: Option<NodeProcess>,
}

/// Nodes in one directory, with addresses that stay the same over restarts. Nodes are named by their number in the
/// cluster once it is initialised.
#[derive(Debug)]
pub struct LocalCluster {
    executable: PathBuf,
    more: Vec<String>,
    places: Vec<Place>,
    // Node number to place.
    members: BTreeMap<u32, usize>,
    // So that a node that is down finds its ports free when it comes back.
    _ports: Vec<ReservedPort>,
}

impl LocalCluster {
    /// Chooses addresses for `nodes` nodes with data below `dir`; starts nothing. `more` goes to every `start`.
    pub fn new(executable: &Path, dir: &Path, nodes: usize, more: &[&str]) -> io::Result<LocalCluster> {
        let ports = reserve_ports(nodes * 3)?;
        let places = ports.chunks_exact(3).enumerate().map(|(i, ports)| Place {
            wrapper: Vec::new(),
            data: dir.join(format!("node{}", i + 1)),
            log: dir.join(format!("node{}.log", i + 1)),
            sql: ports[0].address(),
            http: ports[1].address(),
            cluster: ports[2].address(),
            more: Vec::new(),
            process: None,
        });
        Ok(LocalCluster {
            executable: executable.to_path_buf(),
            more: more.iter().map(|s| s.to_string()).collect(),
            places: places.collect(),
            members: BTreeMap::new(),
            _ports: ports,
        })
    }

    /// The same with a node on each of these hosts. What listens on addresses other than loopback needs `--insecure` in
    /// `more`.
    pub fn on(executable: &Path, hosts: Vec<Host>, more: &[&str]) -> LocalCluster {
        let places = hosts.into_iter().map(|host| Place {
            wrapper: host.wrapper,
            data: host.data,
            log: host.log,
            sql: (host.ip, HOST_PORTS.0).into(),
            http: (host.ip, HOST_PORTS.1).into(),
            cluster: (host.ip, HOST_PORTS.2).into(),
            more: Vec::new(),
            process: None,
        });
        LocalCluster {
            executable: executable.to_path_buf(),
            more: more.iter().map(|s| s.to_string()).collect(),
            places: places.collect(),
            members: BTreeMap::new(),
            _ports: Vec::new(),
        }
    }

    /// From now on every `start` gets these as well.
    pub fn add_arguments(&mut self, more: &[&str]) {
        self.more.extend(more.iter().map(|s| s.to_string()));
    }

    /// From now on every `start` of this place gets these as well.
    pub fn add_arguments_of(&mut self, place: usize, more: &[&str]) {
        self.places[place].more.extend(more.iter().map(|s| s.to_string()));
    }

    /// What `--join` is given.
    pub fn join(&self) -> String {
        let addresses: Vec<_> = self.places.iter().map(|p| p.cluster.to_string()).collect();
        addresses.join(",")
    }

    /// The places, in the order they were made in.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Starts the process of a place.
    pub fn start_place(&mut self, place: usize) -> Result<(), String> {
        let p = &self.places[place];
        let mut args: Vec<String> = ["--data".into(), p.data.display().to_string()].into();
        for (flag, address) in [("--sql", p.sql), ("--http", p.http), ("--cluster", p.cluster)] {
            args.extend([flag.into(), address.to_string()]);
        }
        args.extend(["--join".into(), self.join()]);
        args.extend(self.more.iter().chain(&p.more).cloned());
        let process = NodeProcess::start_wrapped(&p.wrapper, &self.executable, &args, &p.log)
            .map_err(|e| format!("cannot start {}: {e}", self.executable.display()))?;
        self.places[place].process = Some(process);
        Ok(())
    }

    /// Starts all, waits until all wait for `init`, initialises the cluster at the first, and waits until all serve.
    pub async fn form(&mut self, patience: Duration) -> Result<(), String> {
        for place in 0..self.places.len() {
            self.start_place(place)?;
        }
        for p in &self.places {
            let process = p.process.as_ref().expect("just started");
            process.waiting(patience).await?;
        }
        let first = self.places[0].cluster.to_string();
        let ask = async || admin::call(&first, &isochrone_api::Request::Init).await;
        let made = init::ask_until(ask, &first, patience, &mut |_| {}).await.map_err(|e| format!("{e:#}"))?;
        for p in &self.places {
            p.process.as_ref().expect("just started").ready(patience).await?;
        }
        let nodes = match made {
            Outcome::Made { nodes, .. } => nodes,
            // The answer to an earlier question was lost.
            Outcome::Already { .. } => {
                let nodes = node::list(&first).await.map_err(|e| format!("{e:#}"))?;
                nodes.into_iter().map(|n| (n.node, n.address)).collect()
            }
        };
        for (node, address) in nodes {
            let place = self.places.iter().position(|p| p.cluster.to_string() == address);
            let place = place.ok_or_else(|| format!("node {node} is at {address}, which is not ours"))?;
            self.members.insert(node.0, place);
        }
        if self.members.len() != self.places.len() {
            return Err(format!("{} of {} nodes are members", self.members.len(), self.places.len()));
        }
        Ok(())
    }

    /// The numbers of the nodes.
    pub fn nodes(&self) -> Vec<u32> {
        self.members.keys().copied().collect()
    }

    /// The place of a node.
    pub fn node(&self, node: u32) -> &Place {
        &self.places[self.members[&node]]
    }

    /// Where SQL clients connect, by node number, whether it runs or not.
    pub fn gateways(&self) -> Vec<SocketAddr> {
        self.members.values().map(|&place| self.places[place].sql).collect()
    }

    /// The same, with the numbers.
    pub fn sql_addresses(&self) -> BTreeMap<u32, SocketAddr> {
        self.members.iter().map(|(&node, &place)| (node, self.places[place].sql)).collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: u32) -> Result<(), String> {
        match self.places[self.members[&node]].process.take() {
            Some(process) => process.kill().map_err(|e| format!("cannot kill node {node}: {e}")),
            None => Err(format!("node {node} does not run")),
        }
    }

    /// SIGTERM, and the exit status.
    pub async fn terminate(&mut self, node: u32, patience: Duration) -> Result<ExitStatus, String> {
        match self.places[self.members[&node]].process.take() {
            Some(process) => process.terminate(patience).await,
            None => Err(format!("node {node} does not run")),
        }
    }

    /// Starts a node that does not run; see [`LocalCluster::ready`].
    pub fn start(&mut self, node: u32) -> Result<(), String> {
        self.start_place(self.members[&node])
    }

    /// Waits until a node serves.
    pub async fn ready(&self, node: u32, patience: Duration) -> Result<Addresses, String> {
        match &self.node(node).process {
            Some(process) => process.ready(patience).await.map_err(|e| format!("node {node}: {e}")),
            None => Err(format!("node {node} does not run")),
        }
    }

    /// The last lines of every node's log.
    pub fn logs(&self) -> String {
        let tails = self.places.iter().map(|p| format!("== {}\n{}\n", p.log.display(), log_tail(&p.log)));
        tails.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says() {
        assert_eq!(stage("waiting for \"isochrone init\": cluster=127.0.0.1:1"), Some(Stage::Waiting));
        let Some(Stage::Ready(a)) = stage("ready sql=127.0.0.1:1 http=127.0.0.1:2 cluster=127.0.0.1:3")
        else {
            panic!("ready");
        };
        assert_eq!((a.sql.port(), a.http.port(), a.cluster.map(|c| c.port())), (1, 2, Some(3)));
        assert_eq!(stage("ready, almost"), None);
    }

    #[tokio::test]
    async fn a_process_that_ends_is_reported_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "something went wrong\n").unwrap();
        let process = NodeProcess::start(Path::new("/bin/true"), &[], &log).unwrap();
        let said = process.ready(Duration::from_secs(10)).await.unwrap_err();
        assert!(said.contains("something went wrong"), "{said}");
    }

    #[tokio::test]
    async fn a_wrapper_turns_into_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let wrapper = ["env".to_string(), "-u".into(), "HOME".into()];
        let process = NodeProcess::start_wrapped(&wrapper, Path::new("/bin/cat"), &[], &log).unwrap();
        // It was given the arguments, and complains about them by its own name.
        let said = process.ready(Duration::from_secs(10)).await.unwrap_err();
        assert!(said.contains("cat: ") && said.contains("stop-with-stdin"), "{said}");
    }
}
