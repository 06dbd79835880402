//! Real nodes in namespaces of their own, under load, while their power is cut, their processes are killed and paused,
//! their links are cut, and their disks fill up and fail: nothing acknowledged is lost, no money appears or goes, and
//! nobody has to help.
//!
//! Needs Linux, root and some tools (see `common::real`); a test that cannot run here says so on standard error and
//! passes. Smokes by default; for runs that last, see the functions below, and `ISOCHRONE_BIN` for a release build.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::cluster::{PATIENCE, progress};
use common::real::{self, Lab, Loss, cut, in_lab};
use common::strace::Strace;
use isochrone_cli::bank::{self, Load, Watcher};
use isochrone_cli::inspect;
use isochrone_env::{SplitMix64, os};

const CLIENTS: usize = 6;
/// The promise about transfers that meet a kill.
const STALL_MAX: Duration = Duration::from_secs(5);
/// Small, so that the log is flushed out of and cut while the tests run.
const SMALL_LOG: [&str; 2] = ["--wal-bytes-max", "1000000"];

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}

/// Power cuts of all nodes at once.
fn power_cuts() -> u64 {
    knob("ISOCHRONE_POWER_CUTS", 3)
}

/// Kills of one, two or all nodes.
fn kills() -> u64 {
    knob("ISOCHRONE_KILLS", 4)
}

/// How often each fault of the network is there.
fn network_rounds() -> u64 {
    knob("ISOCHRONE_NETWORK_ROUNDS", 1)
}

/// How long a fault of the network or a pause lasts.
fn fault_lasts() -> Duration {
    Duration::from_secs(knob("ISOCHRONE_FAULT_SECONDS", 3))
}

/// The seed, printed: also which one to ask for to get the same choices again.
fn seed() -> u64 {
    let seed = knob("ISOCHRONE_REAL_SEED", os::entropy().unwrap());
    println!("ISOCHRONE_REAL_SEED={seed}");
    seed
}

async fn pause(random: &SplitMix64, ms_max: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(ms_max))).await;
}

/// In order, for what is printed at the end.
fn median_and_longest(mut all: Vec<Duration>) -> String {
    all.sort();
    match all.last() {
        Some(longest) => format!("median {:?}, longest {longest:?}", all[all.len() / 2]),
        None => "none".into(),
    }
}

/// Every node by itself knows all that was acknowledged, and what they leave behind is in order.
async fn everything_is_there(lab: &mut Lab, acknowledged: &BTreeSet<i64>) {
    for node in lab.cluster.nodes() {
        lab.cluster.caught_up(node, 0).await;
        let found = bank::verify(&[lab.cluster.local.node(node).sql], acknowledged, &[]).await;
        let found = lab.cluster.expect(found);
        println!("node {node}: {} ledger rows, {} acknowledged", found.ledger_rows, acknowledged.len());
    }
    lab.cluster.close_and_verify().await;
}

#[test]
fn the_power_cut_is_one() {
    in_lab("the_power_cut_is_one", 1, async |lab| {
        let disk = lab.disks()[0].clone();
        let synced = std::fs::File::create(disk.join("synced")).unwrap();
        std::fs::write(disk.join("synced"), "kept").unwrap();
        synced.sync_all().unwrap();
        drop(synced);
        std::fs::write(disk.join("written"), "lost").unwrap();
        real::shut_down(std::slice::from_ref(&disk));
        assert!(std::fs::write(disk.join("later"), "never").is_err());
        real::mount_again(&disk);
        assert_eq!(std::fs::read_to_string(disk.join("synced")).unwrap(), "kept");
        assert!(!disk.join("later").exists());
        let written = std::fs::read_to_string(disk.join("written")).unwrap_or_default();
        assert_eq!(written, "", "what was not synced has survived");
    });
}

#[test]
fn power_cuts_of_all_nodes() {
    in_lab("power_cuts_of_all_nodes", 3, async |mut lab| {
        let seed = seed();
        let random = SplitMix64::split(seed, "power");
        lab.open_bank(&SMALL_LOG).await;
        let nodes = lab.cluster.nodes();
        let (mut acknowledged, mut starts, mut resumed) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut cuts = 0;
        while cuts < power_cuts() {
            let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed, cuts as u32);
            progress(&load, 20 + random.below(150), &format!("before power cut {cuts}")).await;
            pause(&random, 30).await;
            lab.power_cut(&nodes);
            cuts += 1;
            let stopped = load.stop().await;
            acknowledged.extend(lab.cluster.expect(stopped));
            // Starting again writes as well: now and then the power goes in the midst of that.
            if random.below(3) == 0 && cuts < power_cuts() {
                for node in &nodes {
                    let started = lab.cluster.local.start(*node);
                    lab.cluster.expect(started);
                }
                pause(&random, 1_500).await;
                lab.power_cut(&nodes);
                cuts += 1;
            }
            starts.push(lab.start(&nodes).await);
            resumed.push(lab.resumes(&nodes).await);
            let found = bank::verify(&lab.cluster.gateways(), &acknowledged, &[]).await;
            let found = lab.cluster.expect(found);
            println!(
                "{cuts} power cuts: {} acknowledged, {} ledger rows, ready after {:?}, all commit {:?} later",
                acknowledged.len(),
                found.ledger_rows,
                starts.last().unwrap(),
                resumed.last().unwrap(),
            );
        }
        everything_is_there(&mut lab, &acknowledged).await;
        println!(
            "{cuts} power cuts of all nodes, {} acknowledged transfers, 0 lost; start until ready: {}; from there until \
             every node commits: {}",
            acknowledged.len(),
            median_and_longest(starts),
            median_and_longest(resumed),
        );
    });
}

/// The test above can fail: it does when the disks lie.
#[test]
fn syncs_that_do_nothing_are_noticed() {
    in_lab("syncs_that_do_nothing_are_noticed", 3, async |mut lab| {
        lab.open_bank(&[]).await;
        let nodes = lab.cluster.nodes();
        let mut liars = Vec::new();
        for node in &nodes {
            let pid = lab.cluster.local.node(*node).process.as_ref().expect("it runs").pid();
            let Some(strace) = Strace::attach(pid, "inject=fdatasync,fsync:retval=0") else { return };
            liars.push(strace);
        }
        let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed(), 0);
        progress(&load, 100, "before the power cut").await;
        lab.power_cut(&nodes);
        drop(liars);
        let acknowledged = load.stop().await;
        let acknowledged = lab.cluster.expect(acknowledged);
        let starts = async |lab: &mut Lab| -> Result<(), String> {
            for node in &nodes {
                lab.cluster.local.start(*node)?;
            }
            for node in &nodes {
                lab.cluster.local.ready(*node, PATIENCE).await?;
            }
            Ok(())
        };
        // Nodes that have lost different parts may also refuse.
        let noticed = match starts(&mut lab).await {
            Ok(()) => bank::verify(&lab.cluster.gateways(), &acknowledged, &[]).await.map(|_| ()),
            refused => refused,
        };
        let noticed = noticed.expect_err("something acknowledged is lost");
        println!("noticed: {noticed}");
        assert!(
            noticed.contains("acknowledged transfers are not in the ledger")
                || noticed.contains("the node ended")
        );
    });
}

#[test]
fn kills_at_random_moments() {
    in_lab("kills_at_random_moments", 3, async |mut lab| {
        let seed = seed();
        let random = SplitMix64::split(seed, "killer");
        lab.open_bank(&SMALL_LOG).await;
        let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed, 0);
        let watcher = Watcher::start(&lab.cluster.gateways());
        let (mut starts, mut stalls_of_one, mut stalls_of_more) = (Vec::new(), Vec::new(), Vec::new());
        for kill in 0..kills() {
            progress(&load, random.below(100), &format!("before kill {kill}")).await;
            pause(&random, 100).await;
            let chosen = 1 + random.below(7);
            let nodes: Vec<u32> = lab
                .cluster
                .nodes()
                .into_iter()
                .enumerate()
                .filter(|(i, _)| chosen >> i & 1 == 1)
                .map(|(_, n)| n)
                .collect();
            lab.cluster.kill_at_once(&nodes);
            let then = lab.now_ns();
            // Some come back at once, some when the others have long noticed; some are killed while they come.
            pause(&random, 2_000).await;
            let twice = random.below(4) == 0;
            if twice {
                for node in &nodes {
                    let started = lab.cluster.local.start(*node);
                    lab.cluster.expect(started);
                }
                pause(&random, 800).await;
                lab.cluster.kill_at_once(&nodes);
            }
            starts.push(lab.start(&nodes).await);
            let (back, ready) = (lab.since(then), lab.now_ns());
            // Every transfer that has waited for this kill is through: the next one is not blamed for it.
            progress(&load, 3 * CLIENTS as u64, &format!("after kill {kill}")).await;
            while load.longest_trying() > lab.since(ready) {
                progress(&load, 1, &format!("after kill {kill}")).await;
            }
            let stall = load.take_longest();
            println!(
                "kill {kill} of nodes {nodes:?}{}: ready after {back:?}, longest wait {stall:?}, {} commits",
                if twice { ", twice" } else { "" },
                load.counts().commits
            );
            if nodes.len() == 1 { &mut stalls_of_one } else { &mut stalls_of_more }.push(stall);
            // A majority that is there needs nobody; one that is not, must come back first.
            let stall_max = if nodes.len() == 1 { STALL_MAX } else { back + STALL_MAX };
            assert!(stall < stall_max, "a transfer waited {stall:?}");
            assert_eq!(watcher.totals().wrong, None, "a snapshot's total");
        }
        let checks = watcher.totals().checks;
        drop(watcher);
        let stopped = load.stop().await;
        let acknowledged = lab.cluster.expect(stopped);
        everything_is_there(&mut lab, &acknowledged).await;
        println!(
            "{} kills, {} acknowledged transfers, 0 lost, {checks} totals; longest wait after the kill of one node: {}; of \
             more: {}; start until ready: {}",
            kills(),
            acknowledged.len(),
            median_and_longest(stalls_of_one),
            median_and_longest(stalls_of_more),
            median_and_longest(starts),
        );
    });
}

/// What is done to a node that leads a shard, and taken back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// No packet to or from the others.
    CutOff,
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// It and the next one do not reach each other; the third reaches both.
    Partial,
    /// A fifth of all packets between any two is lost.
    Lossy,
    /// SIGSTOP, and later SIGCONT.
    Paused,
}

const FAULTS: [Fault; 6] =
    [Fault::CutOff, Fault::Deaf, Fault::Mute, Fault::Partial, Fault::Lossy, Fault::Paused];
/// From the fault until the others go on. A node that dies is noticed at once; one that falls silent after the 4 s that
/// crate net grants a stream, and then an election and what the silent one has begun cost a second or two.
const GOES_ON_MAX: Duration = Duration::from_secs(10);
/// From the heal until each node, as a gateway, has committed on all shards.
const RESUME_MAX: Duration = Duration::from_secs(5);

impl Fault {
    fn losses(self, node: u32, others: [u32; 2]) -> Vec<Loss> {
        let [a, b] = others;
        match self {
            Fault::CutOff => [cut(node, a), cut(node, b), cut(a, node), cut(b, node)].into(),
            Fault::Deaf => [cut(a, node), cut(b, node)].into(),
            Fault::Mute => [cut(node, a), cut(node, b)].into(),
            Fault::Partial => [cut(node, a), cut(a, node)].into(),
            Fault::Lossy => [(node, a), (a, node), (node, b), (b, node), (a, b), (b, a)]
                .map(|(from, to)| Loss { from, to, percent: 20 })
                .into(),
            Fault::Paused => Vec::new(),
        }
    }
}

#[test]
fn cut_links_and_paused_nodes() {
    in_lab("cut_links_and_paused_nodes", 3, async |mut lab| {
        let seed = seed();
        lab.open_bank(&SMALL_LOG).await;
        let nodes = lab.cluster.nodes();
        let watcher = Watcher::start(&lab.cluster.gateways());
        let (mut acknowledged, mut late) = (BTreeSet::new(), Vec::new());
        for round in 0..network_rounds() {
            for (i, fault) in FAULTS.into_iter().enumerate() {
                lab.cluster.spread().await;
                // New clients each time: the last fault has driven them all to the same gateways.
                let run = round as u32 * FAULTS.len() as u32 + i as u32;
                let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed, run);
                progress(&load, 20, &format!("before {fault:?}")).await;
                let at = (round as usize + i) % nodes.len();
                let (node, others) = (nodes[at], [nodes[(at + 1) % 3], nodes[(at + 2) % 3]]);
                let then = lab.now_ns();
                lab.lose(&fault.losses(node, others));
                if matches!(fault, Fault::Paused) {
                    lab.cluster.signal("STOP", &[node]);
                }
                // Whatever it is, two nodes of three reach each other.
                progress(&load, 20, &format!("during {fault:?} of node {node}")).await;
                let goes_on = lab.since(then);
                if goes_on > GOES_ON_MAX {
                    late.push((fault, goes_on));
                }
                tokio::time::sleep(fault_lasts().saturating_sub(goes_on)).await;
                let lost = lab.lost_packets();
                assert!(lost > 0 || matches!(fault, Fault::Paused), "{fault:?} has cut nothing");
                lab.lose(&[]);
                if matches!(fault, Fault::Paused) {
                    lab.cluster.signal("CONT", &[node]);
                }
                let resumed = lab.resumes(&nodes).await;
                progress(&load, 3 * CLIENTS as u64, &format!("after {fault:?} of node {node}")).await;
                println!(
                    "{fault:?} of node {node}: 20 commits within {goes_on:?}, {lost} packets lost; all nodes commit {resumed:?} \
                     after the heal; longest wait {:?}",
                    load.take_longest(),
                );
                if resumed > RESUME_MAX {
                    late.push((fault, resumed));
                }
                let stopped = load.stop().await;
                acknowledged.extend(lab.cluster.expect(stopped));
                assert_eq!(watcher.totals().wrong, None, "a snapshot's total, {fault:?}");
            }
        }
        drop(watcher);
        everything_is_there(&mut lab, &acknowledged).await;
        assert!(late.is_empty(), "later than {GOES_ON_MAX:?} and {RESUME_MAX:?} after the heal: {late:?}");
    });
}

/// What a node says on its health page, when it does not serve.
fn complaint(lab: &Lab, node: u32) -> String {
    match common::http_get(lab.cluster.local.node(node).http, "/health") {
        (503, why) => why,
        (200, _) => String::new(),
        other => panic!("node {node} answers {other:?}"),
    }
}

/// Waits until a node says that it does not serve, and why.
async fn says(lab: &Lab, node: u32, why: &str) {
    let mut last = String::new();
    let said = async {
        loop {
            last = complaint(lab, node);
            if last.contains(why) {
                return;
            }
            tokio::time::sleep(inspect::LOOK_EVERY).await;
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    said.unwrap_or_else(|_| panic!("node {node} does not say \"{why}\" but {last}"));
}

/// How far a node has applied its logs, all shards together. It applies what is on its own disk.
async fn applied(lab: &Lab, asked: u32, node: u32) -> u64 {
    let client = lab.cluster.connect(asked).await;
    let replicas = lab.cluster.expect(inspect::replicas(&client).await);
    replicas.iter().filter(|r| r.node == node).map(|r| r.applied).sum()
}

/// A node that cannot write any more: it says so, acknowledges nothing, and the others go on without it.
async fn is_out(lab: &Lab, load: &Load, node: u32, why: &str) {
    says(lab, node, why).await;
    let other = lab.cluster.nodes().into_iter().find(|n| *n != node).unwrap();
    let then = lab.now_ns();
    progress(load, 20, &format!("without node {node}")).await;
    println!("node {node} says \"{why}\"; 20 commits without it in {:?}", lab.since(then));
    let had = applied(lab, other, node).await;
    progress(load, 50, &format!("without node {node}")).await;
    let has = applied(lab, other, node).await;
    assert!(
        had > 0 && has == had,
        "node {node} has applied up to {had} and then {has} although it cannot write"
    );
    // As a gateway it may find leaders elsewhere; if not, it says why.
    let client = lab.cluster.connect(node).await;
    let write = client.execute("UPDATE accounts SET balance = balance + 0 WHERE id IN (1, 1001, 2001)", &[]);
    if let Err(error) = tokio::time::timeout(PATIENCE, write).await.expect("an answer") {
        println!("a write there: {}", inspect::describe(&error));
        let code = error.code().map(|c| c.code()).unwrap_or_default();
        assert!(["58030", "53100", "40001", "40003", "57P03"].contains(&code), "{error:?}");
    }
}

/// The node is started again, and is as good as the others.
async fn is_back(lab: &mut Lab, load: Load, node: u32) {
    let ready = lab.start(&[node]).await;
    progress(&load, 3 * CLIENTS as u64, "with all nodes again").await;
    println!("ready after {ready:?}; longest wait {:?}; {:?}", load.take_longest(), load.counts());
    let stopped = load.stop().await;
    let acknowledged = lab.cluster.expect(stopped);
    everything_is_there(lab, &acknowledged).await;
}

#[test]
fn the_disk_of_one_node_is_full() {
    in_lab("the_disk_of_one_node_is_full", 3, async |mut lab| {
        lab.open_bank(&SMALL_LOG).await;
        let node = lab.cluster.nodes()[1];
        let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed(), 0);
        progress(&load, 20, "before the disk is full").await;
        let client = lab.cluster.connect(lab.cluster.nodes()[0]).await;
        client.batch_execute("CREATE TABLE filler (id int PRIMARY KEY, v text)").await.unwrap();
        lab.fill_disk(node);
        // The log has room that it took before: until that is used up, what the node acknowledges is on its disk.
        for i in 0..100 {
            let fill = format!("INSERT INTO filler VALUES ({i}, repeat('x', 250000))");
            let filled = tokio::time::timeout(PATIENCE, client.batch_execute(&fill)).await;
            if let Err(error) = filled.expect("an answer") {
                println!("{fill}: {}", inspect::describe(&error));
            }
            if complaint(&lab, node).contains("the log has failed") {
                println!("after {} inserts: {}", i + 1, complaint(&lab, node));
                break;
            }
        }
        is_out(&lab, &load, node, "the log has failed").await;
        assert!(complaint(&lab, node).contains("No space left"));
        lab.free_disk(node);
        lab.cluster.kill(node);
        is_back(&mut lab, load, node).await;
    });
}

#[test]
fn a_sync_fails_at_one_node() {
    in_lab("a_sync_fails_at_one_node", 3, async |mut lab| {
        lab.open_bank(&SMALL_LOG).await;
        let node = lab.cluster.nodes()[1];
        let load = Load::start(&lab.cluster.gateways(), CLIENTS, seed(), 0);
        progress(&load, 20, "before the sync that fails").await;
        // Once; then the disk works again, which must not be taken for "all is well".
        let pid = lab.cluster.local.node(node).process.as_ref().expect("it runs").pid();
        let Some(strace) = Strace::attach(pid, "inject=fdatasync:error=EIO:when=20") else { return };
        is_out(&lab, &load, node, "os error 5").await;
        drop(strace);
        lab.cluster.kill(node);
        is_back(&mut lab, load, node).await;
    });
}
