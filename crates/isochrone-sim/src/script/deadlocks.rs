//! Transactions that wait for each other's rows at several leaders, under virtual time.
//!
//! * [`cycle`]: each of several transactions, at gateways of their own, holds a row of another leader and then wants the
//!   next one's. Exactly one gives way, within [`BROKEN_WITHIN`]; the others commit.
//! * [`queue`]: many wait for one row for long, and nobody gives way.
//! * [`moved`]: the leadership of a locked row moves. Who waits asks the new leader and gets the lock there; who held it is
//!   found out at COMMIT.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::{Key, NodeId};
use isochrone_server::Node;
use isochrone_txn::kv::{Error, KvStore, Lock, TxnOptions};

use super::{Part, Stage, account_key, bytes, number};

/// The promise.
pub const BROKEN_WITHIN: Duration = Duration::from_secs(1);
/// Longest time for everything else to end.
const END_MAX: Duration = Duration::from_secs(20);

/// What a script came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// How many heard 40P01.
    pub victims: usize,
    /// How many committed.
    pub committed: usize,
    /// From the last request of the cycle to the victim's answer.
    pub broken_after: Duration,
}

/// The first rows of three shards.
fn rows() -> [Key; 3] {
    [account_key(0), account_key(2), account_key(4)]
}

fn node(n: usize) -> NodeId {
    NodeId((n % 3) as u32 + 1)
}

fn options() -> TxnOptions {
    TxnOptions { lock_wait_max: END_MAX, ..TxnOptions::default() }
}

/// Locks two rows, the second when all have their first, and adds one to each.
async fn both(
    gateway: Arc<Node>,
    first: Key,
    second: Key,
    ready: Arc<AtomicUsize>,
    n: usize,
) -> Result<(), Error> {
    let mut txn = gateway.store.begin(options());
    let sum = |v: Option<isochrone_base::Bytes>| number(&v.unwrap_or_default()).unwrap_or_default() + 1;
    let one = sum(txn.get(&first, Lock::Exclusive).await?);
    ready.fetch_add(1, Ordering::Relaxed);
    while ready.load(Ordering::Relaxed) < n {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let two = sum(txn.get(&second, Lock::Exclusive).await?);
    txn.put(first, Some(bytes(one)))?;
    txn.put(second, Some(bytes(two)))?;
    txn.commit().await.map(drop)
}

/// A cycle of `n` transactions, two or three. `shift`: how far each one's gateway is from the leader of its first row.
pub fn cycle(seed: u64, n: usize, shift: usize) -> Result<Report, String> {
    let mut stage = Stage::open(seed, false, [0; 3])?;
    let rows = rows();
    let leaders: Vec<(Key, NodeId)> = rows.iter().cloned().enumerate().map(|(i, k)| (k, node(i))).collect();
    stage.place(&leaders)?;
    let ready = Arc::new(AtomicUsize::new(0));
    let parts: Vec<Part<Result<(), Error>>> = (0..n)
        .map(|i| {
            let (first, second, ready) = (rows[i].clone(), rows[(i + 1) % n].clone(), ready.clone());
            stage.spawn(node(i + shift), |g| both(g, first, second, ready, n))
        })
        .collect();
    stage.until(END_MAX, "all have their first row", |_| ready.load(Ordering::Relaxed) == n)?;
    let closed = stage.now();
    stage.until(END_MAX, "somebody gives way", |_| parts.iter().any(Part::is_done))?;
    let broken_after = stage.now() - closed;
    stage.until(END_MAX, "all have ended", |_| parts.iter().all(Part::is_done))?;
    let (mut victims, mut committed) = (0, 0);
    for result in parts.iter().filter_map(Part::take) {
        match result {
            Ok(()) => committed += 1,
            Err(Error::Deadlock) => victims += 1,
            Err(e) => return Err(format!("a transaction ended with {e}")),
        }
    }
    stage.same_replicas()?;
    Ok(Report { victims, committed, broken_after })
}

/// `n` transactions at all gateways want one row, whose first holder takes its time.
pub fn queue(seed: u64, n: usize, held: Duration) -> Result<Report, String> {
    let mut stage = Stage::open(seed, false, [0; 3])?;
    let row = account_key(0);
    stage.place(&[(row.clone(), node(0))])?;
    let add_one = |g: Arc<Node>, row: Key, think: Duration| async move {
        let mut txn = g.store.begin(options());
        // READ COMMITTED waits and goes on; above it whoever waited begins again.
        let value = txn.get(&row, Lock::Exclusive).await?.unwrap_or_default();
        tokio::time::sleep(think).await;
        txn.put(row, Some(bytes(number(&value).unwrap_or_default() + 1)))?;
        txn.commit().await.map(drop)
    };
    let first = {
        let row = row.clone();
        stage.spawn(node(1), move |g| add_one(g, row, held))
    };
    stage.wait(Duration::from_millis(50))?;
    let waiting: Vec<_> = (0..n)
        .map(|i| {
            let row = row.clone();
            stage.spawn(node(i), move |g| add_one(g, row, Duration::from_millis(20)))
        })
        .collect();
    stage.until(END_MAX, "all have ended", |_| first.is_done() && waiting.iter().all(Part::is_done))?;
    let (mut victims, mut committed) = (0, 0);
    for result in std::iter::once(&first).chain(&waiting).filter_map(Part::take) {
        match result {
            Ok(()) => committed += 1,
            Err(Error::Deadlock) => victims += 1,
            Err(e) => return Err(format!("a transaction ended with {e}")),
        }
    }
    Ok(Report { victims, committed, broken_after: Duration::ZERO })
}

/// How a transaction ended.
pub type Ended = Result<(), Error>;

/// What became of the holder and of the waiter of a row whose leader moved.
pub fn moved(seed: u64) -> Result<(Ended, Ended), String> {
    let mut stage = Stage::open(seed, false, [0; 3])?;
    let row = account_key(0);
    stage.place(&[(row.clone(), node(0))])?;
    let go: Arc<Mutex<bool>> = Arc::default();
    let has: Arc<Mutex<usize>> = Arc::default();
    let holder = {
        let (row, go, has) = (row.clone(), go.clone(), has.clone());
        stage.spawn(node(1), |g| async move {
            let mut txn = g.store.begin(options());
            let value = txn.get(&row, Lock::Exclusive).await?.unwrap_or_default();
            *has.lock().expect("one thread") += 1;
            while !*go.lock().expect("one thread") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            txn.put(row, Some(bytes(number(&value).unwrap_or_default() + 100)))?;
            txn.commit().await.map(drop)
        })
    };
    stage.until(END_MAX, "the row is locked", |_| *has.lock().expect("one thread") == 1)?;
    let waiter = {
        let row = row.clone();
        stage.spawn(node(2), |g| async move {
            let mut txn = g.store.begin(options());
            let value = txn.get(&row, Lock::Exclusive).await?.unwrap_or_default();
            txn.put(row, Some(bytes(number(&value).unwrap_or_default() + 1)))?;
            txn.commit().await.map(drop)
        })
    };
    stage.wait(Duration::from_millis(300))?;
    if waiter.is_done() {
        return Err("the waiter did not wait".into());
    }
    stage.place(&[(row.clone(), node(2))])?;
    stage.until(END_MAX, "the waiter has asked the new leader", |_| waiter.is_done())?;
    *go.lock().expect("one thread") = true;
    stage.until(END_MAX, "the holder has ended", |_| holder.is_done())?;
    stage.same_replicas()?;
    Ok((holder.take().expect("it is done"), waiter.take().expect("it is done")))
}
