//! A laboratory for real nodes on this machine: each in a network namespace of its own, with a disk of its own, so that
//! links can be cut, disks can fill up, and the power can go.
//!
//!     the test, started again by itself in namespaces of its own       10.77.0.254
//!         │ bridge
//!         ├── node1   eth0 10.77.0.1   nft rules   /disk1 = ext4 in a file, by a loop device
//!         ├── node2   eth0 10.77.0.2   nft rules   /disk2
//!         └── node3   eth0 10.77.0.3   nft rules   /disk3
//!
//! Invariants
//!   L1  Nothing outside is touched: bridge, addresses, rules and mounts are in a network and a mount namespace that were
//!       made for one test. They go when its last process ends, however that happens: there is nothing to clean up.
//!   L2  The clients are beside the bridge: a node that is cut off from the others can still be asked.
//!   L3  A power cut is ext4's shutdown without a flush of its journal, then SIGKILL, then a new mount: what was not synced
//!       is gone, what was synced is there. The test `the_power_cut_is_one` checks that of the tool itself.
//!
//! Failure: where a tool, root or a feature of the kernel is missing, the test says so on standard error and passes.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use isochrone_cli::inspect;
use isochrone_cli::local::{Host, LocalCluster};
use isochrone_env::Clock;
use isochrone_env::os::OsClock;

use super::cluster::{Cluster, PATIENCE};

/// Set for the process in the namespaces: the directory that it may use.
const INSIDE: &str = "ISOCHRONE_LAB";
/// How the process in the namespaces says that something is missing here.
const SKIPPED: &str = "skipped: ";
const TOOLS: [&str; 11] =
    ["unshare", "nsenter", "ip", "nft", "mount", "umount", "mkfs.ext4", "truncate", "perl", "strace", "kill"];
/// A disk's size. The file is sparse.
const DISK_BYTES: &str = "300M";
/// One attempt of [`Lab::resumes`].
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`, with `EXT4_GOING_FLAGS_NOLOGFLUSH`, on every directory that is named. One
/// process for all, so that no node sees another one's power go; perl, since Rust would need `unsafe` for it.
const SHUTDOWN: &str = r#"for (@ARGV) { push @f, $f; open $f[-1], "<", $_ or die "$_: $!" }
for (@f) { my $flag = pack "L", 2; ioctl $_, 0x8004587D, $flag or die "shutdown: $!" }"#;

/// Two labs at a time would only make each other slow.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the test of this name (which must be the caller's) in its lab, with this many nodes.
pub fn in_lab(test: &str, nodes: u8, body: impl AsyncFnOnce(Lab)) {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return inside(Path::new(&dir), nodes, body);
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(reason) = is_possible() {
        return skip(test, &reason);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", "exec \"$0\" \"$@\" 2>&1"])
        .arg(std::env::current_exe().expect("a test knows its own file"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare was tried");
    let mut ran = false;
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok) {
        ran |= line.contains("1 passed");
        if let Some(reason) = line.strip_prefix(SKIPPED) {
            skip(test, reason);
        }
        println!("{line}");
    }
    let status = child.wait().expect("it ends");
    assert!(status.success() && ran, "{test} ended in its lab with {status}, see above");
}

/// Not by `eprintln!`: the harness would keep it to itself.
fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "{SKIPPED}{test}: {reason}"); // nobody may be there to read it
}

fn is_possible() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &&&str| !std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    let missing: Vec<_> = TOOLS.iter().filter(there).copied().collect();
    if !missing.is_empty() {
        return Err(format!("not installed here: {}", missing.join(", ")));
    }
    run(Command::new("unshare").args(["--net", "--mount", "true"])).map(|_| ())
}

fn inside(dir: &Path, nodes: u8, body: impl AsyncFnOnce(Lab)) {
    // Whoever started us holds the other end: no test outlives that.
    let watch = || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()); // an error is an end as well
        std::process::exit(1);
    };
    std::thread::Builder::new().name("stdin".into()).spawn(watch).expect("a thread");
    match Lab::make(dir, nodes) {
        Ok(lab) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(body(lab)),
        Err(reason) => println!("{SKIPPED}{reason}"),
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match out.status.success() {
        true => Ok(out),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}

/// The words of a command.
fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command has a name"));
    command.args(words);
    command
}

/// Packets that do not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    pub from: u32,
    pub to: u32,
    /// Of every hundred, at random.
    pub percent: u32,
}

/// Nothing gets through, from one to the other.
pub fn cut(from: u32, to: u32) -> Loss {
    Loss { from, to, percent: 100 }
}

/// Hosts and disks, and the cluster on them once it is started. Nodes are named by their number in the cluster.
pub struct Lab {
    pub cluster: Cluster,
    disks: Vec<PathBuf>,
    clock: OsClock,
}

impl Lab {
    /// Fails when something is not possible on this machine.
    fn make(dir: &Path, nodes: u8) -> Result<Lab, String> {
        // Names of namespaces are mounts: ours are on a file system that nobody else sees.
        std::fs::create_dir_all("/run/netns").map_err(|e| format!("/run/netns: {e}"))?;
        for line in [
            "mount -t tmpfs lab /run/netns",
            "ip link set lo up",
            "ip link add bridge0 type bridge",
            "ip address add 10.77.0.254/24 dev bridge0",
            "ip link set bridge0 up",
        ] {
            run(&mut words(line))?;
        }
        let mut hosts = Vec::new();
        let mut disks = Vec::new();
        for i in 1..=nodes {
            let disk = dir.join(format!("disk{i}"));
            std::fs::create_dir(&disk).map_err(|e| format!("{}: {e}", disk.display()))?;
            for line in [
                format!("ip netns add node{i}"),
                format!("ip link add node{i} type veth peer name eth0 netns node{i}"),
                format!("ip link set node{i} master bridge0 up"),
                format!("ip -n node{i} link set lo up"),
                format!("ip -n node{i} address add 10.77.0.{i}/24 dev eth0"),
                format!("ip -n node{i} link set eth0 up"),
                format!("truncate -s {DISK_BYTES} {}.img", disk.display()),
                // 4 KiB blocks as large disks have them; nothing kept back for root, who we are.
                format!("mkfs.ext4 -q -b 4096 -m 0 {}.img", disk.display()),
            ] {
                run(&mut words(&line))?;
            }
            mount(&disk)?;
            hosts.push(Host {
                wrapper: ["nsenter".to_string(), format!("--net=/run/netns/node{i}")].into(),
                ip: IpAddr::V4(Ipv4Addr::new(10, 77, 0, i)),
                data: disk.join("data"),
                log: dir.join(format!("node{i}.log")),
            });
            disks.push(disk);
        }
        let local = LocalCluster::on(&super::executable(), hosts, &[]);
        let lab = Lab { cluster: Cluster::over(local, dir), disks, clock: OsClock::new(0) };
        for host in 1..=nodes {
            filter(host, "")?;
        }
        Ok(lab)
    }

    /// Three nodes that serve. `more` goes to each `start`.
    pub async fn open(&mut self, more: &[&str]) {
        self.cluster.local.add_arguments(&["--insecure"]);
        self.cluster.local.add_arguments(more);
        let formed = self.cluster.local.form(PATIENCE).await;
        self.cluster.expect(formed);
    }

    /// The same, and the accounts.
    pub async fn open_bank(&mut self, more: &[&str]) {
        self.open(more).await;
        self.cluster.open_bank().await;
    }

    /// The last byte of its address; the number of its namespace and of its disk, too.
    fn host(&self, node: u32) -> u8 {
        match self.cluster.local.node(node).sql.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => unreachable!("a host was given {ip}"),
        }
    }

    /// Where a disk is mounted, by node.
    pub fn disk(&self, node: u32) -> &Path {
        &self.disks[usize::from(self.host(node)) - 1]
    }

    /// All disks, also when there are no nodes.
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// Nanoseconds since some moment.
    pub fn now_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }

    pub fn since(&self, then_ns: u64) -> Duration {
        Duration::from_nanos(self.now_ns() - then_ns)
    }

    /// From now on these packets are lost, and no others.
    pub fn lose(&self, losses: &[Loss]) {
        for node in self.cluster.nodes() {
            let rules = losses.iter().filter(|l| l.to == node).map(|l| {
                let from = self.cluster.local.node(l.from).sql.ip();
                let chance = match l.percent {
                    100.. => String::new(),
                    percent => format!("numgen random mod 100 < {percent}"),
                };
                format!("ip saddr {from} {chance} counter drop\n")
            });
            filter(self.host(node), &rules.collect::<String>()).expect("the rules are accepted");
        }
    }

    /// Packets lost by the rules that are in force.
    pub fn lost_packets(&self) -> u64 {
        let mut sum = 0;
        for node in self.cluster.nodes() {
            let mut list = in_namespace(self.host(node));
            let out = run(list.args(["nft", "list", "table", "ip", "lab"])).expect("the table is there");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let counters = text.split("counter packets ").skip(1);
            sum += counters.map(|c| c.split(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
        }
        sum
    }

    /// Cuts the power of these nodes, and gives it back: the disks are mounted again, the nodes are not started.
    pub fn power_cut(&mut self, nodes: &[u32]) {
        let disks: Vec<PathBuf> = nodes.iter().map(|n| self.disk(*n).to_path_buf()).collect();
        shut_down(&disks);
        self.cluster.kill_at_once(nodes);
        for disk in disks {
            mount_again(&disk);
        }
    }

    /// Starts these nodes and waits until all serve; how long that took.
    pub async fn start(&mut self, nodes: &[u32]) -> Duration {
        let then = self.now_ns();
        for node in nodes {
            let started = self.cluster.local.start(*node);
            self.cluster.expect(started);
        }
        for node in nodes {
            self.cluster.expect(self.cluster.local.ready(*node, PATIENCE).await);
        }
        self.since(then)
    }

    /// How long it takes until each of these nodes, as a gateway, has committed a transaction on all three shards.
    pub async fn resumes(&self, nodes: &[u32]) -> Duration {
        let third = isochrone_cli::bank::ACCOUNTS / isochrone_cli::bank::SHARDS;
        let update = |id| format!("UPDATE accounts SET balance = balance + 0 WHERE id = {id};");
        self.resumes_with(
            nodes,
            &format!("BEGIN; {} {} {} COMMIT", update(0), update(third), update(2 * third)),
        )
        .await
    }

    /// How long it takes until each of these nodes, as a gateway, has done this.
    pub async fn resumes_with(&self, nodes: &[u32], sql: &str) -> Duration {
        let then = self.now_ns();
        let gateways = nodes.iter().map(|n| self.cluster.local.node(*n).sql);
        let tries: Vec<_> = gateways.map(|g| (g, tokio::spawn(commits(g, sql.to_string())))).collect();
        for (gateway, tried) in tries {
            let served = tokio::time::timeout(PATIENCE, tried).await;
            served.unwrap_or_else(|_| panic!("no commit at {gateway} for {PATIENCE:?}")).unwrap();
        }
        self.since(then)
    }

    /// Leaves no room on a node's disk.
    pub fn fill_disk(&self, node: u32) {
        let mut ballast = std::fs::File::create(self.disk(node).join("ballast")).unwrap();
        for block in [1 << 20, 4 << 10, 1] {
            let zeros = vec![0; block];
            let full = loop {
                if let Err(error) = ballast.write_all(&zeros) {
                    break error;
                }
            };
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
        }
    }

    /// Takes back [`Lab::fill_disk`].
    pub fn free_disk(&self, node: u32) {
        std::fs::remove_file(self.disk(node).join("ballast")).unwrap();
    }
}

/// A command in the network namespace of a host.
fn in_namespace(host: u8) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/node{host}"));
    command
}

/// What a host drops of what comes in.
fn filter(host: u8, rules: &str) -> Result<(), String> {
    let text = format!(
        "table ip lab\ndelete table ip lab\n\
         table ip lab {{\nchain input {{\ntype filter hook input priority 0\n{rules}}}\n}}\n"
    );
    let mut nft = in_namespace(host);
    nft.args(["nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|e| format!("{nft:?}: {e}"))?;
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).map_err(|e| e.to_string())?;
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{text}{}", String::from_utf8_lossy(&out.stderr))),
    }
}

fn mount(disk: &Path) -> Result<(), String> {
    let image = disk.with_extension("img");
    run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([&image, disk])).map(|_| ())
}

/// What power does when it goes, to disks.
pub fn shut_down(disks: &[PathBuf]) {
    run(Command::new("perl").args(["-e", SHUTDOWN]).args(disks)).unwrap();
}

/// A disk after a power cut, or just so. Nobody may have a file open on it.
pub fn mount_again(disk: &Path) {
    run(Command::new("umount").arg(disk)).unwrap();
    mount(disk).unwrap();
}

/// Returns once a transaction on all three shards was committed at this gateway.
async fn commits(gateway: SocketAddr, sql: String) {
    let attempt = async || match inspect::connect(gateway).await {
        Ok(client) => client.batch_execute(&sql).await.is_ok(),
        Err(_) => false,
    };
    while !tokio::time::timeout(ATTEMPT_MAX, attempt()).await.unwrap_or_default() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
