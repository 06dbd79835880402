//! `isochrone demo`: a cluster on this machine that loses a node while money moves, and loses nothing else.
//!
//! The phases, each a function below, in the order of [`script`]:
//!
//!     form      three processes, `init`, three accounts shards, each led by another node
//!     calm      transfers between the shards through all nodes                             a third of --seconds
//!     death     the leader of the middle shard is killed -9                                a third
//!     comeback  it is started again and catches up, still under load                       a third
//!     journey   one transaction in the logs of the two shards it touched
//!     verify    no balance is off, every acknowledged transfer is in the ledger
//!     shell     on a terminal: look around yourself
//!
//! Invariants
//!   M1  Exit code 0 means: in every snapshot the total was conserved, at the end every balance was what the ledger says,
//!       and every acknowledged transfer was in it. Otherwise 1, with the reason and the nodes' last words.
//!   M2  When it ends, by itself, by an error, by Ctrl-C or SIGTERM, no process and no file of it is left. (Killed with
//!       SIGKILL it leaves its temporary directory; the nodes end by themselves.)

pub mod journey;
mod observer;
mod screen;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use isochrone_env::os::{self, OsClock};
use isochrone_env::{Clock, SplitMix64};
use tokio::signal::unix::{SignalKind, signal};

use crate::bank::{self, Load, TOTAL, Watcher};
use crate::inspect;
use crate::local::LocalCluster;
use crate::sql::{self, SqlArgs};
use observer::Observer;
use screen::{Frame, Screen};

/// Every shard has this many replicas, and the demo as many nodes.
const NODES: u32 = 3;
/// Clients that transfer, two at each node.
const CLIENTS: usize = 6;
/// Longest wait for a process to start, and for a step of forming the cluster.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the killed node to have everything again once the load has ended.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// While the load goes on, a replica this close behind counts as having caught up: so much is always under way.
const LAG_UNDER_LOAD_MAX: u64 = 200;

/// Three nodes on this machine, money moving between them, and one of them killed: look.
///
///   isochrone demo                     half a minute of it, then an SQL shell on the cluster
///   isochrone demo --seconds 120       more time to watch
///   isochrone demo --seconds 20 </dev/null | cat     no terminal: a line a second, no shell
///
/// Nodes, ports and files are temporary and gone at the end. What you see: transfers per second;
/// for each shard its leader and how far each node has applied its log; the sum of all balances,
/// which must never change.
///
/// Exit code 0 if no money was lost or made and every acknowledged transfer is in the ledger,
/// 1 otherwise.
#[derive(clap::Args, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub struct DemoArgs {
    /// How many nodes; three is what there is so far.
    #[arg(long, value_name = "N", default_value_t = NODES)]
    pub nodes: u32,
    /// How long the load lasts.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    pub seconds: u64,
}

/// Runs the demo. Exit code 0, or an error (M1).
pub async fn run(args: DemoArgs) -> Result<i32> {
    if args.nodes != NODES {
        bail!("--nodes {}: a demo has {NODES} nodes, as a shard has {NODES} replicas", args.nodes);
    }
    let executable = std::env::current_exe().context("cannot find this program's own file")?;
    let dir =
        tempfile::Builder::new().prefix("isochrone-demo-").tempdir().context("no temporary directory")?;
    let mut demo = Demo::new(&executable, dir.path())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let done = tokio::select! {
        biased;
        _ = interrupt.recv() => Err("interrupted".to_string()),
        _ = terminate.recv() => Err("terminated".to_string()),
        done = demo.script(Duration::from_secs(args.seconds)) => done,
    };
    if let Err(reason) = done {
        eprintln!("\nThe nodes' last words:\n{}", demo.cluster.logs());
        bail!("demo: {reason}");
    }
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            shell = demo.shell() => shell?,
        }
    }
    Ok(0)
}

struct Demo {
    cluster: LocalCluster,
    clock: Arc<OsClock>,
    screen: Screen,
    seed: u64,
}

/// What runs from the first transfer to the last.
struct Show {
    load: Load,
    watcher: Watcher,
    observer: Observer,
    began_ns: u64,
    longest: Duration,
}

impl Demo {
    fn new(executable: &Path, dir: &Path) -> Result<Demo> {
        let cluster =
            LocalCluster::new(executable, dir, NODES as usize, &[]).context("cannot choose addresses")?;
        let clock = Arc::new(OsClock::new(0));
        Ok(Demo { cluster, clock, screen: Screen::new(), seed: os::entropy().context("no entropy")? })
    }

    async fn script(&mut self, load: Duration) -> Result<(), String> {
        self.form().await?;
        let third = load / 3;
        let mut show = self.begin();
        self.calm(&mut show, third).await?;
        let victim = self.death(&mut show, third).await?;
        self.comeback(&mut show, victim, third).await?;
        let acknowledged = self.end(show, victim).await?;
        let journey = journey::follow(&self.cluster.sql_addresses()).await?;
        self.screen.say(&format!("\n{}", journey::show(&journey)));
        self.verify(&acknowledged).await
    }

    /// Three processes become a cluster, with three shards of accounts led by three nodes.
    async fn form(&mut self) -> Result<(), String> {
        let began = self.clock.monotonic_ns();
        self.screen.say(&format!("Starting {NODES} nodes and making them a cluster ..."));
        self.cluster.form(START_MAX).await?;
        for node in self.cluster.nodes() {
            let place = self.cluster.node(node);
            let pid = place.process.as_ref().map_or(0, |p| p.pid());
            self.screen.say(&format!(
                "  node {node}  process {pid:<8} SQL {}  cluster {}",
                place.sql, place.cluster
            ));
        }
        let gateway = self.cluster.node(self.cluster.nodes()[0]).sql;
        let client = inspect::connect(gateway).await.map_err(|e| inspect::describe(&e))?;
        bank::create(&client).await?;
        let shards = inspect::spread_leaders(&client, "accounts", &self.cluster.nodes(), START_MAX).await?;
        if shards.len() != bank::SHARDS as usize {
            return Err(format!("accounts have {} shards: {shards:?}", shards.len()));
        }
        let leaders: Vec<_> =
            shards.iter().map(|s| format!("shard {} led by node {}", s.shard, s.leader)).collect();
        self.screen.say(&format!("  {} accounts: {}", bank::ACCOUNTS, leaders.join(", ")));
        let took = Duration::from_nanos(self.clock.monotonic_ns() - began);
        self.screen.say(&format!("  ready after {:.1} s\n", took.as_secs_f64()));
        Ok(())
    }

    fn begin(&self) -> Show {
        let gateways = self.cluster.gateways();
        Show {
            load: Load::start(&gateways, CLIENTS, self.seed, 0),
            watcher: Watcher::start(&gateways),
            observer: Observer::start(&gateways, self.clock.clone()),
            began_ns: self.clock.monotonic_ns(),
            longest: Duration::ZERO,
        }
    }

    /// All nodes up.
    async fn calm(&mut self, show: &mut Show, long: Duration) -> Result<(), String> {
        self.watch(show, "three nodes", long).await
    }

    /// The leader of the middle shard is killed; its shards get new leaders among the others.
    async fn death(&mut self, show: &mut Show, long: Duration) -> Result<u32, String> {
        let (view, _) = show.observer.view();
        let led = view.shards.iter().map(|s| s.leader).filter(|l| *l != 0);
        let victim = led.clone().nth(1).or_else(|| led.clone().next()).unwrap_or(self.cluster.nodes()[1]);
        self.cluster.kill(victim)?;
        show.load.take_longest(); // from here on it is the stall
        self.screen.say(&format!("kill -9 of node {victim}, which leads a shard of accounts"));
        self.watch(show, &format!("node {victim} is dead"), long).await?;
        let stall = show.longest;
        self.screen.say(&format!("longest wait of a transfer since: {:.1} s", stall.as_secs_f64()));
        Ok(victim)
    }

    /// The killed node is started again, and gets what it missed.
    async fn comeback(&mut self, show: &mut Show, node: u32, long: Duration) -> Result<(), String> {
        self.screen.say(&format!("node {node} is started again"));
        let began = self.clock.monotonic_ns();
        let end = began + long.as_nanos() as u64;
        self.cluster.start(node)?;
        let mut caught_up = false;
        while self.clock.monotonic_ns() < end {
            self.watch(show, &format!("node {node} is back"), self.screen.every()).await?;
            let (view, age) = show.observer.view();
            let lag = inspect::behind(&view.replicas, node);
            if !caught_up && age < Duration::from_secs(1) && lag.is_some_and(|l| l <= LAG_UNDER_LOAD_MAX) {
                caught_up = true;
                let took = Duration::from_nanos(self.clock.monotonic_ns() - began).as_secs_f64();
                self.screen.say(&format!("node {node} has caught up, {took:.1} s after its start"));
            }
        }
        Ok(())
    }

    /// The load ends, and the killed node has every entry.
    async fn end(&mut self, show: Show, node: u32) -> Result<BTreeSet<i64>, String> {
        let counts = show.load.counts();
        let totals = show.watcher.totals();
        let acknowledged = show.load.stop().await?;
        self.cluster.ready(node, START_MAX).await?;
        let gateway = self.cluster.node(node).sql;
        let client = inspect::connect(gateway).await.map_err(|e| inspect::describe(&e))?;
        inspect::caught_up(&client, node, 0, CATCH_UP_MAX).await?;
        self.screen.say(&format!(
            "load ended: {} transfers acknowledged, {} repeated, {} unknown; node {node} has every entry",
            acknowledged.len(),
            counts.retries,
            counts.unknown
        ));
        match totals.wrong {
            Some(wrong) => Err(format!("in a snapshot the balances added up to {wrong}, and not to {TOTAL}")),
            None if totals.checks == 0 => Err("the total could not be checked once under load".into()),
            None => Ok(acknowledged),
        }
    }

    async fn verify(&mut self, acknowledged: &BTreeSet<i64>) -> Result<(), String> {
        // Ask a node that any seed picks: they all must know.
        let mut gateways = self.cluster.gateways();
        let first = SplitMix64::split(self.seed, "verify").below(gateways.len() as u64) as usize;
        gateways.rotate_left(first);
        let found = bank::verify(&gateways, acknowledged, &[journey::TRANSFER]).await?;
        self.screen.say(&format!(
            "Verified: the balances add up to {}, as at the beginning; all {} acknowledged transfers are among the {} \
             of the ledger,\nand every balance is what the ledger says.",
            found.total,
            acknowledged.len(),
            found.ledger_rows
        ));
        Ok(())
    }

    /// Shows what goes on for a while. Ends early when something is wrong.
    async fn watch(&mut self, show: &mut Show, phase: &str, long: Duration) -> Result<(), String> {
        let end = self.clock.monotonic_ns() + long.as_nanos() as u64;
        loop {
            let left = Duration::from_nanos(end.saturating_sub(self.clock.monotonic_ns()));
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(self.screen.every())).await;
            let (view, age) = show.observer.view();
            let totals = show.watcher.totals();
            let mut counts = show.load.counts();
            counts.longest = counts.longest.max(show.load.longest_trying());
            show.longest = counts.longest;
            let wrong = totals.wrong;
            let nodes = self.cluster.nodes();
            self.screen.show(&Frame {
                elapsed: Duration::from_nanos(self.clock.monotonic_ns() - show.began_ns),
                phase: phase.to_string(),
                up: nodes.iter().copied().filter(|n| self.cluster.node(*n).process.is_some()).collect(),
                nodes,
                counts,
                shards: view.shards,
                replicas: view.replicas,
                age,
                totals,
            });
            if let Some(wrong) = wrong {
                return Err(format!("in a snapshot the balances added up to {wrong}, and not to {TOTAL}"));
            }
            if let Some(error) = show.load.failed() {
                return Err(format!("an error that a client cannot expect: {error}"));
            }
        }
    }

    /// A shell on the cluster, until it is left.
    async fn shell(&mut self) -> Result<()> {
        println!("\nThe cluster is yours; it ends with this shell. For example:");
        println!("  SHOW SHARDS FROM TABLE accounts;   SELECT * FROM isochrone.replicas;");
        for node in self.cluster.nodes() {
            println!(
                "  node {node}: psql -h 127.0.0.1 -p {} -U root isochrone",
                self.cluster.node(node).sql.port()
            );
        }
        let gateway = self.cluster.gateways()[0];
        let url = format!("postgresql://root@{gateway}/isochrone");
        sql::run(SqlArgs { url, command: Vec::new() }).await.map(|_| ())
    }
}
