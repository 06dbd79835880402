//! Money that moves: accounts on several shards, clients that transfer between them and write a ledger in the same
//! transaction, and the check afterwards that nothing was lost. The demo shows it, tests kill nodes under it.
//!
//!     client i ── UPDATE accounts (lower id), UPDATE accounts (higher id), INSERT INTO ledger, COMMIT ──▶ some gateway
//!
//! Invariants (what [`verify`] checks, and [`Watcher`] all the while)
//!   B1  The balances of any one snapshot add up to what there was at the beginning.
//!   B2  A transfer that was acknowledged is in the ledger.
//!   B3  Every balance is what the ledger says: no transfer is there by half.
//!
//! A client whose gateway goes away tries the next one, with the same transfer under a new ledger number; what the first
//! attempt did does not matter to B1 and B3. How long a transfer took from its first attempt to its acknowledgement is
//! its wait; the longest is the stall that a kill has caused.
//!
//! Failure: an error that a correct client cannot expect (see [`reaction`]) ends the client and is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_env::os::OsClock;
use isochrone_env::{Clock, SplitMix64};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

use crate::inspect::{connect, describe};

/// Accounts are split into this many shards.
pub const SHARDS: i32 = 3;
/// Accounts, from 0. A third in each shard: 42 is in the first and 1900 in the second.
pub const ACCOUNTS: i32 = 3_000;
/// What is on each account at the beginning.
pub const START_BALANCE: i64 = 1_000;
/// What there is altogether, always.
pub const TOTAL: i64 = ACCOUNTS as i64 * START_BALANCE;

/// An attempt without an answer after this long is given up, with its connection.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The pause before the next gateway is tried.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The pause between two checks of the total.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long [`verify`] tries to get an answer.
const VERIFY_MAX: Duration = Duration::from_secs(60);

/// Creates the tables, splits the accounts over three shards, and fills them.
pub async fn create(client: &Client) -> Result<(), String> {
    let third = ACCOUNTS / SHARDS;
    let steps = [
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)".to_string(),
        "CREATE TABLE ledger (id bigint PRIMARY KEY, from_id int, to_id int, amount bigint)".to_string(),
        format!("ALTER TABLE accounts SPLIT AT VALUES ({third}), ({})", 2 * third),
        format!("INSERT INTO accounts SELECT i, {START_BALANCE} FROM generate_series(0, {}) i", ACCOUNTS - 1),
    ];
    for sql in steps {
        client.batch_execute(&sql).await.map_err(|e| format!("{sql}: {}", describe(&e)))?;
    }
    Ok(())
}

/// Money from one account to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// It is taken from here.
    pub from: i32,
    /// It goes there.
    pub to: i32,
    /// How much.
    pub amount: i64,
}

/// Between two different shards, always.
fn draw(random: &SplitMix64) -> Transfer {
    let third = (ACCOUNTS / SHARDS) as u64;
    let from_shard = random.below(SHARDS as u64);
    let to_shard = (from_shard + 1 + random.below(SHARDS as u64 - 1)) % SHARDS as u64;
    let account = |shard: u64| (shard * third + random.below(third)) as i32;
    Transfer { from: account(from_shard), to: account(to_shard), amount: 1 + random.below(10) as i64 }
}

/// What the clients have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Transfers acknowledged.
    pub commits: u64,
    /// Attempts that were rolled back and repeated.
    pub retries: u64,
    /// Attempts whose outcome the client does not know.
    pub unknown: u64,
    /// The longest wait of a transfer that was acknowledged since [`Load::take_longest`] was asked last.
    pub longest: Duration,
}

#[derive(Default)]
struct Shared {
    done: AtomicBool,
    commits: AtomicU64,
    retries: AtomicU64,
    unknown: AtomicU64,
    longest_ns: AtomicU64,
    failure: Mutex<Option<String>>,
    // Per client: when the transfer it is trying began, 0 between two.
    trying_since_ns: Vec<AtomicU64>,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clock: Arc<OsClock>,
    clients: Vec<JoinHandle<Result<BTreeSet<i64>, String>>>,
}

impl Load {
    /// Starts clients, spread over the gateways. `run` keeps ledger numbers of several loads on one table apart.
    pub fn start(gateways: &[SocketAddr], clients: usize, seed: u64, run: u32) -> Load {
        let trying_since_ns = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { trying_since_ns, ..Shared::default() });
        let clock = Arc::new(OsClock::new(0));
        let clients = (0..clients).map(|id| {
            let worker = Worker {
                id,
                next_row: (i64::from(run) << 48) | ((id as i64) << 40),
                gateways: gateways.to_vec(),
                gateway: id % gateways.len(),
                random: SplitMix64::split(seed, &format!("client {id} of run {run}")),
                shared: shared.clone(),
                clock: clock.clone(),
                trying: None,
                acknowledged: BTreeSet::new(),
            };
            let shared = shared.clone();
            tokio::spawn(async move {
                let ended = worker.run().await;
                if let Err(error) = &ended {
                    let mut failure = shared.failure.lock().expect("nothing panics while it is held");
                    failure.get_or_insert_with(|| error.clone());
                }
                ended
            })
        });
        Load { clients: clients.collect(), shared, clock }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts {
            commits: get(&self.shared.commits),
            retries: get(&self.shared.retries),
            unknown: get(&self.shared.unknown),
            longest: Duration::from_nanos(get(&self.shared.longest_ns)),
        }
    }

    /// The longest wait since this was asked last, of transfers that are still tried included.
    pub fn take_longest(&self) -> Duration {
        self.longest_trying().max(Duration::from_nanos(self.shared.longest_ns.swap(0, Ordering::Relaxed)))
    }

    /// How long the transfer that is tried longest has been tried by now.
    pub fn longest_trying(&self) -> Duration {
        let now = self.clock.monotonic_ns();
        let since = self.shared.trying_since_ns.iter().map(|n| n.load(Ordering::Relaxed));
        since
            .filter(|n| *n > 0)
            .map(|n| Duration::from_nanos(now.saturating_sub(n)))
            .max()
            .unwrap_or_default()
    }

    /// The first error that ended a client, if one did.
    pub fn failed(&self) -> Option<String> {
        self.shared.failure.lock().expect("nothing panics while it is held").clone()
    }

    /// Lets every client end, and returns the ledger numbers that were acknowledged.
    pub async fn stop(self) -> Result<BTreeSet<i64>, String> {
        self.shared.done.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeSet::new();
        for client in self.clients {
            acknowledged.extend(client.await.map_err(|e| format!("a client panicked: {e}"))??);
        }
        Ok(acknowledged)
    }
}

/// What a client does about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reaction {
    /// Nothing was done: the same again, on this connection.
    Again,
    /// Here it does not go on: the same at the next gateway. `known`: nothing was done.
    Elsewhere { known: bool },
    /// A correct client cannot expect this.
    Report,
}

/// By SQLSTATE; `None`: the connection ended.
fn reaction(code: Option<&str>) -> Reaction {
    match code {
        // Serialization, deadlock, a lock that was not granted in time.
        Some("40001" | "40P01" | "55P03") => Reaction::Again,
        // A shard cannot be reached, a node goes down.
        Some("57P03" | "57P01" | "57P02") => Reaction::Elsewhere { known: true },
        // The outcome cannot be known: said so, a disk that is full or fails, or no answer at all.
        Some("40003" | "08006" | "08007" | "53100" | "58030") | None => Reaction::Elsewhere { known: false },
        Some(_) => Reaction::Report,
    }
}

struct Worker {
    id: usize,
    next_row: i64,
    gateways: Vec<SocketAddr>,
    gateway: usize,
    random: SplitMix64,
    shared: Arc<Shared>,
    clock: Arc<OsClock>,
    trying: Option<Transfer>,
    acknowledged: BTreeSet<i64>,
}

/// A connection that has the statements prepared.
struct Teller {
    client: Client,
    withdraw: Statement,
    deposit: Statement,
    note: Statement,
}

impl Teller {
    async fn connect(gateway: SocketAddr) -> Result<Teller, tokio_postgres::Error> {
        let client = connect(gateway).await?;
        Ok(Teller {
            withdraw: client.prepare("UPDATE accounts SET balance = balance - $1 WHERE id = $2").await?,
            deposit: client.prepare("UPDATE accounts SET balance = balance + $1 WHERE id = $2").await?,
            note: client.prepare("INSERT INTO ledger VALUES ($1, $2, $3, $4)").await?,
            client,
        })
    }

    /// One transaction. The lower account first, so that clients do not wait for each other in a circle.
    async fn transfer(&mut self, t: Transfer, row: i64) -> Result<(), tokio_postgres::Error> {
        let txn = self.client.transaction().await?;
        let withdraw = (&self.withdraw, t.from);
        let deposit = (&self.deposit, t.to);
        let (first, second) = if t.from < t.to { (withdraw, deposit) } else { (deposit, withdraw) };
        txn.execute(first.0, &[&t.amount, &first.1]).await?;
        txn.execute(second.0, &[&t.amount, &second.1]).await?;
        txn.execute(&self.note, &[&row, &t.from, &t.to, &t.amount]).await?;
        txn.commit().await
    }
}

/// `None`: no answer in time.
async fn in_time<T>(
    what: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Option<Result<T, tokio_postgres::Error>> {
    tokio::time::timeout(ANSWER_MAX, what).await.ok()
}

impl Worker {
    async fn run(mut self) -> Result<BTreeSet<i64>, String> {
        let shared = self.shared.clone();
        while !shared.done.load(Ordering::Relaxed) {
            self.begin();
            // One connection for as many transfers as it lasts; the first is the one that had to wait for it.
            if let Some(Ok(mut teller)) = in_time(Teller::connect(self.gateways[self.gateway])).await {
                while self.settle(&mut teller).await? {
                    self.begin();
                }
            }
            self.gateway = (self.gateway + 1) % self.gateways.len();
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        shared.trying_since_ns[self.id].store(0, Ordering::Relaxed);
        Ok(self.acknowledged)
    }

    /// A new transfer, unless one is still to be acknowledged.
    fn begin(&mut self) {
        if self.trying.is_none() {
            self.trying = Some(draw(&self.random));
            self.shared.trying_since_ns[self.id].store(self.clock.monotonic_ns().max(1), Ordering::Relaxed);
        }
    }

    /// Tries the transfer until it is acknowledged; false: it is not, and will not be on this connection.
    async fn settle(&mut self, teller: &mut Teller) -> Result<bool, String> {
        while let (Some(transfer), false) = (self.trying, self.shared.done.load(Ordering::Relaxed)) {
            self.next_row += 1;
            let row = self.next_row;
            let reaction = match in_time(teller.transfer(transfer, row)).await {
                Some(Ok(())) => {
                    self.acknowledged.insert(row);
                    self.trying = None;
                    self.shared.commits.fetch_add(1, Ordering::Relaxed);
                    let since = self.shared.trying_since_ns[self.id].swap(0, Ordering::Relaxed);
                    let waited = self.clock.monotonic_ns().saturating_sub(since);
                    self.shared.longest_ns.fetch_max(waited, Ordering::Relaxed);
                    return Ok(true);
                }
                Some(Err(error)) => match reaction(error.code().map(|c| c.code())) {
                    Reaction::Report => {
                        let gateway = self.gateways[self.gateway];
                        return Err(format!("client {} at {gateway}: {}", self.id, describe(&error)));
                    }
                    other => other,
                },
                None => Reaction::Elsewhere { known: false },
            };
            match reaction {
                Reaction::Elsewhere { known: false } => self.shared.unknown.fetch_add(1, Ordering::Relaxed),
                _ => self.shared.retries.fetch_add(1, Ordering::Relaxed),
            };
            if reaction != Reaction::Again {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// What the total was, at the last look and so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Snapshots that were added up.
    pub checks: u64,
    /// The latest sum.
    pub last: Option<i64>,
    /// The first sum that was wrong (B1).
    pub wrong: Option<i64>,
}

/// Adds up all balances, again and again, at one gateway after the other.
pub struct Watcher {
    totals: tokio::sync::watch::Receiver<Totals>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Starts to watch.
    pub fn start(gateways: &[SocketAddr]) -> Watcher {
        let (tell, totals) = tokio::sync::watch::channel(Totals::default());
        let gateways = gateways.to_vec();
        let task = tokio::spawn(async move {
            for gateway in gateways.iter().cycle() {
                if let Some(Ok(client)) = in_time(connect(*gateway)).await {
                    // One statement is one snapshot. It may lose against writers, or its gateway may die: then the next.
                    while let Some(Ok(total)) = in_time(total(&client)).await {
                        tell.send_modify(|t| {
                            t.checks += 1;
                            t.last = Some(total);
                            if total != TOTAL {
                                t.wrong.get_or_insert(total);
                            }
                        });
                        tokio::time::sleep(WATCH_EVERY).await;
                    }
                }
                tokio::time::sleep(WATCH_EVERY).await;
            }
        });
        Watcher { totals, task }
    }

    /// What was seen so far.
    pub fn totals(&self) -> Totals {
        self.totals.borrow().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn total(client: &Client) -> Result<i64, tokio_postgres::Error> {
    client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await?.try_get(0)
}

/// What was found when everything had come to rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// The sum of all balances.
    pub total: i64,
    /// Rows of the ledger.
    pub ledger_rows: usize,
}

/// Checks B1, B2 and B3. `beside`: transfers that were made without a row in the ledger.
pub async fn verify(
    gateways: &[SocketAddr],
    acknowledged: &BTreeSet<i64>,
    beside: &[Transfer],
) -> Result<Verified, String> {
    let mut last = String::from("no gateway answers");
    let read = tokio::time::timeout(VERIFY_MAX, async {
        for gateway in gateways.iter().cycle() {
            match read_all(*gateway).await {
                Ok(read) => return Some(read),
                Err(error) => last = format!("{gateway}: {}", describe(&error)),
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
        None
    });
    match read.await {
        Ok(Some((accounts, ledger))) => check(&accounts, &ledger, acknowledged, beside),
        _ => Err(format!("nothing could be read for {VERIFY_MAX:?}: {last}")),
    }
}

type Accounts = Vec<(i32, i64)>;
type Ledger = Vec<(i64, Transfer)>;

async fn read_all(gateway: SocketAddr) -> Result<(Accounts, Ledger), tokio_postgres::Error> {
    let mut client = connect(gateway).await?;
    let txn = client.build_transaction().read_only(true).start().await?;
    let accounts = txn.query("SELECT id, balance FROM accounts ORDER BY id", &[]).await?;
    let ledger = txn.query("SELECT id, from_id, to_id, amount FROM ledger", &[]).await?;
    txn.commit().await?;
    let accounts = accounts.iter().map(|r| Ok((r.try_get(0)?, r.try_get(1)?)));
    let ledger = ledger.iter().map(|r| {
        Ok((r.try_get(0)?, Transfer { from: r.try_get(1)?, to: r.try_get(2)?, amount: r.try_get(3)? }))
    });
    Ok((accounts.collect::<Result<_, tokio_postgres::Error>>()?, ledger.collect::<Result<_, _>>()?))
}

fn check(
    accounts: &Accounts,
    ledger: &Ledger,
    acknowledged: &BTreeSet<i64>,
    beside: &[Transfer],
) -> Result<Verified, String> {
    let total: i64 = accounts.iter().map(|(_, balance)| balance).sum();
    if total != TOTAL {
        return Err(format!("the balances add up to {total}, and not to {TOTAL}"));
    }
    let mut expected: BTreeMap<i32, i64> = (0..ACCOUNTS).map(|id| (id, START_BALANCE)).collect();
    let mut seen = BTreeSet::new();
    for (row, _) in ledger {
        if !seen.insert(*row) {
            return Err(format!("ledger row {row:#x} is there twice"));
        }
    }
    let lost: Vec<_> = acknowledged.difference(&seen).collect();
    if let Some(first) = lost.first() {
        return Err(format!(
            "{} of {} acknowledged transfers are not in the ledger, the first is {first:#x}",
            lost.len(),
            acknowledged.len()
        ));
    }
    for t in ledger.iter().map(|(_, t)| t).chain(beside) {
        for (account, change) in [(t.from, -t.amount), (t.to, t.amount)] {
            *expected.entry(account).or_default() += change;
        }
    }
    for (id, balance) in accounts {
        let ledger_says = expected.remove(id);
        if ledger_says != Some(*balance) {
            return Err(format!("account {id} holds {balance}, and the ledger says {ledger_says:?}"));
        }
    }
    if let Some((id, _)) = expected.first_key_value() {
        return Err(format!("account {id} is gone"));
    }
    Ok(Verified { total, ledger_rows: ledger.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        (0..ACCOUNTS).map(|id| (id, START_BALANCE)).collect()
    }

    #[test]
    fn transfers_cross_shards() {
        let random = SplitMix64::new(1);
        for _ in 0..1_000 {
            let t = draw(&random);
            assert!((0..ACCOUNTS).contains(&t.from) && (0..ACCOUNTS).contains(&t.to) && t.amount > 0);
            assert_ne!(t.from / (ACCOUNTS / SHARDS), t.to / (ACCOUNTS / SHARDS));
        }
    }

    #[test]
    fn each_kind_of_loss_is_found() {
        let t = Transfer { from: 42, to: 1_900, amount: 7 };
        let mut moved = accounts();
        moved[42].1 -= 7;
        moved[1_900].1 += 7;
        let acknowledged = BTreeSet::from([5]);
        let good = check(&moved, &vec![(5, t)], &acknowledged, &[]).unwrap();
        assert_eq!(good, Verified { total: TOTAL, ledger_rows: 1 });
        check(&moved, &vec![], &BTreeSet::new(), &[t]).unwrap();
        let said = |accounts: &Accounts, ledger: Ledger| {
            check(accounts, &ledger, &acknowledged, &[]).expect_err("found")
        };
        assert!(said(&moved, vec![]).contains("not in the ledger"));
        assert!(said(&accounts(), vec![(5, t)]).contains("account 42 holds"));
        assert!(said(&moved, vec![(5, t), (5, t)]).contains("twice"));
        let mut half = moved.clone();
        half[42].1 += 7;
        assert!(said(&half, vec![(5, t)]).contains("add up"));
        let mut swapped = moved;
        swapped[0].1 += swapped.pop().unwrap().1;
        assert!(said(&swapped, vec![(5, t)]).contains("account 0 holds"));
    }

    #[test]
    fn what_clients_expect() {
        assert_eq!(reaction(Some("40001")), Reaction::Again);
        assert_eq!(reaction(Some("57P03")), Reaction::Elsewhere { known: true });
        assert_eq!(reaction(None), Reaction::Elsewhere { known: false });
        assert_eq!(reaction(Some("58030")), Reaction::Elsewhere { known: false });
        assert_eq!(reaction(Some("XX000")), Reaction::Report);
    }
}
