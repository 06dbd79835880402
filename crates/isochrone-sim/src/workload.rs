//! Transfers between accounts on several shards, a ledger, an auditor, and what everybody was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, Timestamp, keyspace, ordered};
use isochrone_env::SplitMix64;
use isochrone_server::Node;
use isochrone_txn::kv::{Error, KvStore, KvTxn, Lock, ScanOptions, TxnOptions};

use crate::{Options, World};

const START_BALANCE: i64 = 1_000;
const ACCOUNTS: u32 = keyspace::FIRST_USER_TABLE;
const LEDGER: u32 = keyspace::FIRST_USER_TABLE + 1;
/// SIM4.
const PREPARES_GONE_WITHIN: Duration = Duration::from_secs(30);

/// What the clients were told. Transfers are numbered over the whole run.
#[derive(Default)]
pub(crate) struct Book {
    next: u64,
    accounts: u64,
    pub(crate) committed: BTreeMap<u64, Timestamp>,
    pub(crate) aborted: BTreeSet<u64>,
    pub(crate) unknown: u64,
    pub(crate) audits: u64,
    is_set_up: bool,
}

impl Book {
    pub(crate) fn new(options: &Options) -> Book {
        Book { accounts: options.accounts, ..Book::default() }
    }
}

fn account_key(id: u64) -> Key {
    let mut key = keyspace::index_prefix(ACCOUNTS, 0);
    ordered::put_u64(&mut key, id);
    key
}

fn ledger_key(id: u64) -> Key {
    let mut key = keyspace::index_prefix(LEDGER, 0);
    ordered::put_u64(&mut key, id);
    key
}

fn number(value: &Bytes) -> Result<i64, String> {
    let bytes: [u8; 8] = value.as_ref().try_into().map_err(|_| format!("not a number: {value:?}"))?;
    Ok(i64::from_be_bytes(bytes))
}

fn bytes(n: i64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Splits shards and opens accounts, in whichever life comes far enough. Every step may be repeated.
pub(crate) async fn set_up(world: &World, node: &Arc<Node>) -> Result<(), String> {
    if world.book.lock().expect("one thread").is_set_up {
        return Ok(());
    }
    let n = world.options.accounts;
    let splits = vec![account_key(n / 4), account_key(n / 2), ledger_key(0)];
    node.store.split_at(splits).await.map_err(|e| format!("split: {e}"))?;
    loop {
        let mut txn = node.store.begin(TxnOptions::default());
        for id in 0..n {
            txn.put(account_key(id), Some(bytes(START_BALANCE))).map_err(|e| e.to_string())?;
        }
        match txn.commit().await {
            Ok(_) => break,
            Err(Error::Serialization(_) | Error::Unknown(_)) => {}
            Err(e) => return Err(format!("accounts: {e}")),
        }
    }
    world.book.lock().expect("one thread").is_set_up = true;
    world.note("set up", &[]);
    Ok(())
}

/// Transfers until the node goes down.
pub(crate) async fn client(world: Arc<World>, node: Arc<Node>, life: u64, id: u64) -> Result<(), String> {
    let random = SplitMix64::split(world.options.seed, &format!("client {life}.{id}"));
    loop {
        let transfer = {
            let mut book = world.book.lock().expect("one thread");
            book.next += 1;
            book.next
        };
        let n = world.options.accounts;
        let (from, to) = (random.below(n), random.below(n));
        if from == to {
            continue;
        }
        let amount = 1 + random.below(20) as i64;
        let result = move_money(&node, transfer, from, to, amount, random.below(2) == 0).await;
        if !record(&world, transfer, result)? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_micros(random.below(5_000))).await;
    }
}

/// Writes down what a client was told. False: the node goes down.
fn record(world: &World, transfer: u64, result: Result<Timestamp, Error>) -> Result<bool, String> {
    let mut book = world.book.lock().expect("one thread");
    match result {
        Ok(ts) => {
            world.note("commit", &[transfer, ts.0]);
            book.committed.insert(transfer, ts);
        }
        Err(Error::Serialization(_) | Error::Deadlock | Error::LockTimeout(_)) => {
            world.note("abort", &[transfer]);
            book.aborted.insert(transfer);
        }
        Err(Error::Unknown(_)) => {
            world.note("unknown", &[transfer]);
            book.unknown += 1;
        }
        Err(Error::Stopped(_) | Error::Unavailable(_)) => return Ok(false),
        Err(e) => return Err(format!("transfer {transfer}: {e}")),
    }
    Ok(true)
}

async fn move_money(
    node: &Node,
    transfer: u64,
    from: u64,
    to: u64,
    amount: i64,
    lock: bool,
) -> Result<Timestamp, Error> {
    let mut txn = node.store.begin(TxnOptions::default());
    let lock = if lock { Lock::Exclusive } else { Lock::None };
    let a = balance(&mut *txn, from, lock).await?;
    let b = balance(&mut *txn, to, lock).await?;
    txn.put(account_key(from), Some(bytes(a - amount)))?;
    txn.put(account_key(to), Some(bytes(b + amount)))?;
    let mut row = Vec::new();
    for n in [from, to, amount as u64] {
        row.extend_from_slice(&n.to_be_bytes());
    }
    txn.put(ledger_key(transfer), Some(row.into()))?;
    txn.commit().await
}

async fn balance(txn: &mut dyn KvTxn, id: u64, lock: Lock) -> Result<i64, Error> {
    let value = txn.get(&account_key(id), lock).await?;
    let value = value.ok_or_else(|| Error::Internal(format!("account {id} is not there")))?;
    number(&value).map_err(Error::Internal)
}

async fn scan_all(txn: &mut dyn KvTxn, table: u32) -> Result<Vec<(Bytes, Bytes)>, Error> {
    let mut rows = Vec::new();
    let mut range = Some(KeyRange::prefix(&keyspace::index_prefix(table, 0)));
    while let Some(part) = range {
        let page = txn.scan(&part, ScanOptions { reverse: false, rows_max: 7 }).await?;
        rows.extend(page.rows);
        range = page.rest;
    }
    Ok(rows)
}

/// SIM1, over and over.
pub(crate) async fn auditor(world: Arc<World>, node: Arc<Node>) -> Result<(), String> {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut txn = node.store.begin(TxnOptions::default());
        let rows = match scan_all(&mut *txn, ACCOUNTS).await {
            Ok(rows) => rows,
            Err(Error::Serialization(_) | Error::SnapshotTooOld(_)) => continue,
            // The node goes down; this life ends soon.
            Err(Error::Stopped(_) | Error::Unavailable(_)) => return std::future::pending().await,
            Err(e) => return Err(format!("audit: {e}")),
        };
        let total = rows.iter().map(|(_, v)| number(v)).sum::<Result<i64, _>>()?;
        let mut book = world.book.lock().expect("one thread");
        let expected = book.accounts as i64 * START_BALANCE;
        if total != expected {
            return Err(format!("SIM1: {total} at {:?} instead of {expected}", txn.read_ts()));
        }
        book.audits += 1;
        world.note("audit", &[txn.read_ts().0]);
    }
}

/// SIM2 to SIM4, when all crashes are over.
pub(crate) async fn final_checks(world: &World, node: &Arc<Node>) -> Result<(), String> {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(100);
    loop {
        node.tick(u64::MAX, true).await.map_err(|e| e.to_string())?;
        let prepared: usize = node.local.shards().states().iter().map(|s| s.prepared).sum();
        if prepared == 0 {
            break;
        }
        if waited > PREPARES_GONE_WITHIN {
            return Err(format!("SIM4, T11: {prepared} prepares are still there"));
        }
        tokio::time::sleep(step).await;
        waited += step;
    }
    let mut txn = node.store.begin(TxnOptions::default());
    let accounts = scan_all(&mut *txn, ACCOUNTS).await.map_err(|e| e.to_string())?;
    let ledger = scan_all(&mut *txn, LEDGER).await.map_err(|e| e.to_string())?;
    let book = world.book.lock().expect("one thread");
    let mut expected: BTreeMap<Key, i64> =
        (0..book.accounts).map(|id| (account_key(id), START_BALANCE)).collect();
    let mut present = BTreeSet::new();
    for (key, row) in &ledger {
        let mut rest = key.get(9..).ok_or("ledger key")?;
        let id = ordered::take_u64(&mut rest).map_err(|e| e.to_string())?;
        present.insert(id);
        let field = |i: usize| u64::from_be_bytes(row[i * 8..i * 8 + 8].try_into().expect("three numbers"));
        let amount = field(2) as i64;
        *expected.get_mut(&account_key(field(0))).ok_or("account")? -= amount;
        *expected.get_mut(&account_key(field(1))).ok_or("account")? += amount;
    }
    if let Some(lost) = book.committed.keys().find(|id| !present.contains(id)) {
        return Err(format!("SIM2, T2: transfer {lost} was acknowledged and is not there"));
    }
    if let Some(ghost) = book.aborted.iter().find(|id| present.contains(id)) {
        return Err(format!("SIM3, T3: transfer {ghost} was reported as aborted and is there"));
    }
    for (key, value) in &accounts {
        let value = number(value)?;
        match expected.remove(key.as_ref()) {
            Some(sum) if sum == value => {}
            other => {
                return Err(format!("SIM2, T8: account {key:02x?} has {value}, the ledger says {other:?}"));
            }
        }
    }
    if !expected.is_empty() {
        return Err(format!("SIM2: {} accounts are gone", expected.len()));
    }
    world.note("end", &[ledger.len() as u64]);
    Ok(())
}
