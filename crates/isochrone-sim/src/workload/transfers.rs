//! The bank without SQL: accounts over several shards, a ledger, and audits, by key-value transactions. For volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, Timestamp, keyspace, ordered};
use isochrone_env::SplitMix64;
use isochrone_txn::kv::{Error, KvStore, KvTxn, Lock, ScanOptions, Snapshot, TxnOptions};

use super::{Counts, Gateway, LOCK_WAIT_MAX, RETRY, goes_on, gone, pause};
use crate::world::{Found, World};

const START_BALANCE: i64 = 1_000;
/// Tables that no SQL statement will ever make.
const ACCOUNTS: u32 = keyspace::FIRST_USER_TABLE + 1_000_000;
const LEDGER: u32 = ACCOUNTS + 1;
const AUDIT_EVERY: Duration = Duration::from_millis(50);

/// What the clients were told. Transfers are numbered over the whole run.
pub(crate) struct Book {
    accounts: u64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    next: u64,
    committed: BTreeMap<u64, Timestamp>,
    aborted: BTreeSet<u64>,
    unknown: u64,
    audits: u64,
}

impl Book {
    pub(crate) fn new(accounts: u64) -> Book {
        Book { accounts, told: Mutex::default() }
    }

    pub(crate) fn counts(&self) -> Counts {
        let told = self.told.lock().expect("one thread");
        Counts {
            committed: told.committed.len() as u64,
            aborted: told.aborted.len() as u64,
            unknown: told.unknown,
            audits: told.audits,
        }
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

/// Splits shards and opens accounts. Every step may be repeated.
pub(crate) async fn set_up(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let n = world.options.accounts;
    let splits = vec![account_key(n / 4), account_key(n / 2), ledger_key(0)];
    loop {
        match node.store.split_at(splits.clone()).await {
            Ok(()) => break,
            Err(Error::Unavailable(_) | Error::Unknown(_) | Error::Serialization(_)) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(Error::Stopped(_)) => return gone().await,
            Err(e) => return Err(format!("split: {e}").into()),
        }
    }
    loop {
        let mut txn = node.store.begin(options());
        for id in 0..n {
            txn.put(account_key(id), Some(bytes(START_BALANCE))).map_err(|e| e.to_string())?;
        }
        match txn.commit().await {
            Ok(_) => break,
            // Nobody else writes yet, and the same rows again do no harm. Not at once: time must pass, which may be what is
            // missing.
            Err(Error::Serialization(_) | Error::Unknown(_) | Error::Unavailable(_)) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(Error::Stopped(_)) => return gone().await,
            Err(e) => return Err(format!("accounts: {e}").into()),
        }
    }
    Ok(())
}

/// Transfers until the node goes down or the load ends.
pub(crate) async fn client(world: Arc<World>, node: Arc<Gateway>, life: u64, id: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("client {}.{life}.{id}", node.id));
    while goes_on(&world) {
        let n = world.options.accounts;
        let (from, to) = (random.below(n), random.below(n));
        if from == to {
            continue;
        }
        let transfer = {
            let mut told = world.books.transfers.told.lock().expect("one thread");
            told.next += 1;
            told.next
        };
        let amount = 1 + random.below(20) as i64;
        let result = move_money(&node, transfer, from, to, amount, random.below(2) == 0).await;
        world.op();
        if !record(&world, transfer, result)? {
            return gone().await;
        }
        pause(&world, &random).await;
    }
    Ok(())
}

/// Writes down what a client was told. False: the node goes down.
fn record(world: &World, transfer: u64, result: Result<Timestamp, Error>) -> Result<bool, Found> {
    let mut told = world.books.transfers.told.lock().expect("one thread");
    match result {
        Ok(ts) => {
            world.note("commit", &[transfer, ts.0]);
            told.committed.insert(transfer, ts);
        }
        Err(
            Error::Serialization(_)
            | Error::Deadlock
            | Error::LockTimeout(_)
            | Error::Unavailable(_)
            | Error::SnapshotTooOld(_),
        ) => {
            world.note("abort", &[transfer]);
            told.aborted.insert(transfer);
        }
        Err(Error::Unknown(_)) => {
            world.note("unknown", &[transfer]);
            told.unknown += 1;
        }
        Err(Error::Stopped(_)) => return Ok(false),
        Err(e) => return Err(format!("transfer {transfer}: {e}").into()),
    }
    Ok(true)
}

async fn move_money(
    node: &Gateway,
    transfer: u64,
    from: u64,
    to: u64,
    amount: i64,
    lock: bool,
) -> Result<Timestamp, Error> {
    let mut txn = node.store.begin(options());
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

fn options() -> TxnOptions {
    TxnOptions { lock_wait_max: LOCK_WAIT_MAX, ..TxnOptions::default() }
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
pub(crate) async fn auditor(world: Arc<World>, node: Arc<Gateway>) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("auditor {}", node.id));
    while goes_on(&world) {
        tokio::time::sleep(AUDIT_EVERY).await;
        // Of now, or of then: replicas answer for the past (R6).
        let past = random.below(2) == 0;
        let ago_us = 1_000 * (500 + random.below(3_000));
        let at = Snapshot::At(node.store.now().minus_micros(ago_us));
        let snapshot = if past { at } else { Snapshot::Now };
        let mut txn = node.store.begin(TxnOptions { snapshot, ..options() });
        let rows = match scan_all(&mut *txn, ACCOUNTS).await {
            Ok(rows) => rows,
            Err(Error::Serialization(_) | Error::SnapshotTooOld(_) | Error::Unavailable(_)) => continue,
            Err(Error::Stopped(_)) => return gone().await,
            Err(e) => return Err(format!("audit: {e}").into()),
        };
        if past && rows.is_empty() {
            continue; // there were no accounts
        }
        let total = rows.iter().map(|(_, v)| number(v)).sum::<Result<i64, _>>()?;
        let expected = world.books.transfers.accounts as i64 * START_BALANCE;
        if total != expected {
            return Err(Found::new("SIM1", format!("{total} at {:?} instead of {expected}", txn.read_ts())));
        }
        world.op();
        world.books.transfers.told.lock().expect("one thread").audits += 1;
        world.note("audit", &[txn.read_ts().0, u64::from(past)]);
    }
    Ok(())
}

/// SIM8: every account can be locked and written.
pub(crate) async fn touch_all(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let touch = async || {
        let mut txn = node.store.begin(options());
        for id in 0..world.books.transfers.accounts {
            let value = balance(&mut *txn, id, Lock::Exclusive).await?;
            txn.put(account_key(id), Some(bytes(value)))?;
        }
        txn.commit().await
    };
    loop {
        match touch().await {
            Ok(_) => return Ok(()),
            Err(Error::Stopped(_)) => return gone().await,
            Err(Error::Internal(e)) => return Err(e.into()),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// SIM2 and SIM3.
pub(crate) async fn last_checks(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let (accounts, ledger) = loop {
        match read_everything(node).await {
            Ok(all) => break all,
            // Nothing fails any more, but leaders may still move, and old versions are collected early.
            Err(Error::Serialization(_) | Error::Unavailable(_) | Error::SnapshotTooOld(_)) => {}
            Err(e) => return Err(e.to_string().into()),
        }
        tokio::time::sleep(RETRY).await;
    };
    check_ledger(world, &accounts, &ledger)
}

type Rows = Vec<(Bytes, Bytes)>;

async fn read_everything(node: &Gateway) -> Result<(Rows, Rows), Error> {
    let mut txn = node.store.begin(options());
    Ok((scan_all(&mut *txn, ACCOUNTS).await?, scan_all(&mut *txn, LEDGER).await?))
}

fn check_ledger(world: &World, accounts: &Rows, ledger: &Rows) -> Result<(), Found> {
    let book = &world.books.transfers;
    let told = book.told.lock().expect("one thread");
    let mut expected: BTreeMap<Key, i64> =
        (0..book.accounts).map(|id| (account_key(id), START_BALANCE)).collect();
    let mut present = BTreeSet::new();
    for (key, row) in ledger {
        let mut rest = key.get(9..).ok_or("ledger key".to_string())?;
        let id = ordered::take_u64(&mut rest).map_err(|e| e.to_string())?;
        present.insert(id);
        let field = |i: usize| u64::from_be_bytes(row[i * 8..i * 8 + 8].try_into().expect("three numbers"));
        let amount = field(2) as i64;
        *expected.get_mut(&account_key(field(0))).ok_or("account".to_string())? -= amount;
        *expected.get_mut(&account_key(field(1))).ok_or("account".to_string())? += amount;
    }
    if let Some(lost) = told.committed.keys().find(|id| !present.contains(id)) {
        return Err(Found::new("SIM2", format!("T2: transfer {lost} was acknowledged and is not there")));
    }
    if let Some(ghost) = told.aborted.iter().find(|id| present.contains(id)) {
        return Err(Found::new("SIM3", format!("T3: transfer {ghost} was reported as aborted and is there")));
    }
    for (key, value) in accounts {
        let value = number(value)?;
        match expected.remove(key.as_ref()) {
            Some(sum) if sum == value => {}
            other => {
                return Err(Found::new(
                    "SIM2",
                    format!("T8: account {key:02x?} has {value}, the ledger says {other:?}"),
                ));
            }
        }
    }
    if !expected.is_empty() {
        return Err(Found::new("SIM2", format!("{} accounts are gone", expected.len())));
    }
    world.note("end", &[ledger.len() as u64]);
    Ok(())
}
