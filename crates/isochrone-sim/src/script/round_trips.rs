//! What a statement costs in round trips: links of a fixed delay, disks that take no time beside it, and a clock.
//!
//! Three nodes, each as far from the others; a gateway; its shards led by itself, or by another node. What took less than three
//! tenths of a round trip more than n of them took n: disks, and the steps of the world. Nothing contends, and leases are warm: the
//! table of `docs/consistency.md`. (Leases are renewed when 150 ms are left of them: a quorum that is further away than that
//! makes reads wait for them.)

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Key, NodeId, ordered};
use isochrone_server::Node;
use isochrone_txn::kv::{ClockWaits, Error, KvStore, KvTxn, Lock, Snapshot, TxnOptions};

use super::{LEDGER_TABLE, Stage, account_key, bytes};

/// From node to node and back. Disks take up to 2 ms beside it.
pub const ROUND_TRIP: Duration = Duration::from_millis(50);
/// The gateway that is asked.
const GATEWAY: NodeId = NodeId(1);
/// Who leads where leaders are remote.
const ELSEWHERE: NodeId = NodeId(2);
/// Shards that the widest transaction writes.
const SHARDS: u64 = 100;
/// Leases of what is read are renewed while it is read: a shard is warm after this.
const WARM_READS: usize = 8;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Statement {
    /// A row by its key, at the newest timestamp.
    PointRead,
    /// The same, as it was two seconds ago.
    PastRead,
    /// One statement that is its own transaction, and writes a row.
    Write,
    /// Two rows of one shard read, locked and written, statement by statement.
    OneShard,
    /// A row in each of so many shards written in one statement.
    Shards(u64),
}

/// Round trips of a statement, where the gateway leads everything, and where another node does. Those of the statements,
/// and those of COMMIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Reads and locks.
    pub statements: u64,
    /// COMMIT.
    pub commit: u64,
}

/// A row in each of the shards.
fn key(n: u64) -> Key {
    let mut key = isochrone_base::keyspace::index_prefix(LEDGER_TABLE + 1, 0);
    ordered::put_u64(&mut key, n);
    key
}

/// Shards placed, links slow, and everything quiet.
fn stage(seed: u64, remote: bool) -> Result<Stage, String> {
    let mut stage = Stage::open(seed, false, [0; 3])?;
    let splits: Vec<Key> = (0..SHARDS).map(key).collect();
    stage.play(GATEWAY, "shards are split", |node| async move {
        while node.store.split_at(splits.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })?;
    let leader = if remote { ELSEWHERE } else { GATEWAY };
    let mut places: Vec<(Key, NodeId)> = (0..SHARDS).map(|n| (key(n), leader)).collect();
    places.extend([(account_key(0), leader), (account_key(4), leader)]);
    stage.place(&places)?;
    stage.world.net.set_delay(ROUND_TRIP / 2);
    stage.wait(10 * ROUND_TRIP)?;
    Ok(stage)
}

/// How long COMMIT takes at external consistency, over two shards that the gateway leads (R24).
pub fn external_commit(seed: u64) -> Result<Duration, String> {
    let mut stage = stage(seed, false)?;
    let began = stage.now();
    stage.play(GATEWAY, "an external transaction", |node| async move {
        let external = Some(ClockWaits::default());
        let mut txn = node.store.begin(TxnOptions { external, ..TxnOptions::default() });
        for shard in 0..2 {
            txn.put(key(shard), Some(bytes(1))).map_err(|e| e.to_string())?;
        }
        txn.commit().await.map_err(|e| e.to_string())
    })??;
    Ok(stage.now() - began)
}

/// Measures all statements.
pub fn measure(seed: u64, remote: bool) -> Result<Vec<(Statement, Cost)>, String> {
    let mut stage = stage(seed, remote)?;
    let mut costs = Vec::new();
    let all = [
        Statement::PointRead,
        Statement::Write,
        Statement::PastRead,
        Statement::OneShard,
        Statement::Shards(2),
        Statement::Shards(10),
        Statement::Shards(SHARDS),
    ];
    for statement in all {
        // What the statement before has prepared is resolved behind its answer.
        stage.wait(10 * ROUND_TRIP)?;
        // Whoever leads knows the present, and who asks knows where.
        for _ in 0..WARM_READS {
            run(&mut stage, Statement::PointRead)?;
        }
        let (statements, commit) = run(&mut stage, statement)?;
        let trips = |took| trips(took).map_err(|e| format!("{statement:?}, remote {remote}: {e}"));
        costs.push((statement, Cost { statements: trips(statements)?, commit: trips(commit)? }));
    }
    Ok(costs)
}

/// How long the statements take, and how long COMMIT does.
fn run(stage: &mut Stage, statement: Statement) -> Result<(Duration, Duration), String> {
    let began = stage.now();
    let txn = stage.play(GATEWAY, "a statement", move |node| async move {
        statements(&node, statement).await.map_err(|e| e.to_string())
    })??;
    let done = stage.now();
    stage.play(
        GATEWAY,
        "a commit",
        move |_| async move { txn.commit().await.map_err(|e| e.to_string()) },
    )??;
    Ok((done - began, stage.now() - done))
}

async fn statements(node: &Arc<Node>, statement: Statement) -> Result<Box<dyn KvTxn>, Error> {
    let read_only = statement == Statement::PointRead;
    let snapshot = match statement {
        Statement::PastRead => Snapshot::At(node.clock.physical().minus_micros(2_000_000)),
        _ => Snapshot::Now,
    };
    let mut txn = node.store.begin(TxnOptions { read_only, snapshot, ..TxnOptions::default() });
    match statement {
        Statement::PointRead | Statement::PastRead => drop(txn.get(&account_key(0), Lock::None).await?),
        Statement::Write => txn.put(account_key(0), Some(bytes(1)))?,
        Statement::OneShard => {
            for id in [0, 1] {
                txn.get(&account_key(id), Lock::Exclusive).await?;
                txn.put(account_key(id), Some(bytes(1)))?;
            }
        }
        Statement::Shards(n) => {
            for shard in 0..n {
                txn.put(key(shard), Some(bytes(1)))?;
            }
        }
    }
    Ok(txn)
}

/// How many round trips that is.
fn trips(took: Duration) -> Result<u64, String> {
    let tenths = took.as_micros() as u64 * 10 / ROUND_TRIP.as_micros() as u64;
    match tenths % 10 {
        0..=3 => Ok(tenths / 10),
        _ => Err(format!("{took:?} is not a number of round trips of {ROUND_TRIP:?}")),
    }
}
