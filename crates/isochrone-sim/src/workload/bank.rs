//! The bank in SQL: accounts over several shards, a ledger, transfers of four statements, audits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_env::SplitMix64;
use isochrone_types::Error;

use super::sql::{Client, heard, insist, int};
use super::{Counts, Gateway, Heard, RETRY, goes_on, gone, pause};
use crate::world::{Found, World};

const START_BALANCE: i64 = 1_000;
const AUDIT_EVERY: Duration = Duration::from_millis(200);

/// What the clients were told. Transfers are numbered over the whole run.
pub(crate) struct Book {
    accounts: u64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    next: i64,
    committed: BTreeSet<i64>,
    aborted: BTreeSet<i64>,
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

pub(crate) async fn set_up(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let n = world.options.accounts as i64;
    insist(node, "CREATE TABLE IF NOT EXISTS accounts (id int8 PRIMARY KEY, balance int8 NOT NULL)", &[])
        .await?;
    let ledger =
        "CREATE TABLE IF NOT EXISTS ledger (id int8 PRIMARY KEY, source int8, target int8, amount int8)";
    insist(node, ledger, &[]).await?;
    insist(node, &format!("ALTER TABLE accounts SPLIT AT VALUES ({}), ({})", n / 4, n / 2), &[]).await?;
    insist(node, "ALTER TABLE ledger SPLIT AT VALUES (0)", &[]).await?;
    let accounts = format!(
        "INSERT INTO accounts SELECT g, {START_BALANCE} FROM generate_series(0, {}) g ON CONFLICT DO NOTHING",
        n - 1
    );
    insist(node, &accounts, &[]).await
}

/// Transfers until the node goes down or the load ends.
pub(crate) async fn client(world: Arc<World>, node: Arc<Gateway>, life: u64, id: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("bank {}.{life}.{id}", node.id));
    let mut connection: Option<Client> = None;
    while goes_on(&world) {
        let n = world.books.bank.accounts;
        let (from, to) = (random.below(n) as i64, random.below(n) as i64);
        let amount = 1 + random.below(20) as i64;
        let lock = random.below(2) == 0;
        pause(&world, &random).await;
        let mut client = match connection.take() {
            Some(client) => client,
            None => match Client::connect(&node.database).await {
                Ok(client) => client,
                Err(e) => match heard(&e)? {
                    Heard::Down => return gone().await,
                    _ => continue,
                },
            },
        };
        let transfer = {
            let mut told = world.books.bank.told.lock().expect("one thread");
            told.next += 1;
            told.next
        };
        let result = move_money(&mut client, transfer, from, to, amount, lock).await;
        world.op();
        {
            let mut told = world.books.bank.told.lock().expect("one thread");
            match &result {
                Ok(()) => _ = told.committed.insert(transfer),
                Err(e) => match heard(e)? {
                    Heard::Aborted => _ = told.aborted.insert(transfer),
                    Heard::Unknown => told.unknown += 1,
                    Heard::Down => {}
                },
            }
        }
        match result {
            Ok(()) => {
                world.note("sql commit", &[transfer as u64]);
                connection = Some(client);
            }
            Err(e) => {
                let heard = heard(&e)?;
                world.note("sql abort", &[transfer as u64, heard as u64]);
                if heard == Heard::Down {
                    return gone().await;
                }
                // As a driver does: the block is over, and the connection is good for the next one.
                if client.run("ROLLBACK", &[]).await.is_ok() {
                    connection = Some(client);
                }
            }
        }
    }
    Ok(())
}

async fn move_money(
    client: &mut Client,
    transfer: i64,
    from: i64,
    to: i64,
    amount: i64,
    lock: bool,
) -> Result<(), Error> {
    client.run("BEGIN", &[]).await?;
    if lock {
        client.run("SELECT balance FROM accounts WHERE id = $1 FOR UPDATE", &[from]).await?;
    }
    client.run("UPDATE accounts SET balance = balance - $2 WHERE id = $1", &[from, amount]).await?;
    client.run("UPDATE accounts SET balance = balance + $2 WHERE id = $1", &[to, amount]).await?;
    client.run("INSERT INTO ledger VALUES ($1, $2, $3, $4)", &[transfer, from, to, amount]).await?;
    client.run("COMMIT", &[]).await?;
    Ok(())
}

/// SIM1, over and over.
pub(crate) async fn auditor(world: Arc<World>, node: Arc<Gateway>) -> Result<(), Found> {
    let expected = world.books.bank.accounts as i64 * START_BALANCE;
    while goes_on(&world) {
        tokio::time::sleep(AUDIT_EVERY).await;
        let sum = async {
            let mut client = Client::connect(&node.database).await?;
            client.run("SELECT id, balance FROM accounts", &[]).await
        };
        let rows = match sum.await {
            Ok(rows) => rows,
            Err(e) => match heard(&e)? {
                Heard::Down => return gone().await,
                _ => continue,
            },
        };
        let total = rows.iter().map(|row| int(&row[1])).sum::<Result<i64, _>>()?;
        if total != expected {
            return Err(Found::new("SIM1", format!("SQL accounts add up to {total} instead of {expected}")));
        }
        world.op();
        world.books.bank.told.lock().expect("one thread").audits += 1;
        world.note("sql audit", &[rows.len() as u64]);
    }
    Ok(())
}

/// SIM8: no row stays locked.
pub(crate) async fn touch_all(_world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    insist(node, "UPDATE accounts SET balance = balance", &[]).await
}

/// SIM2 and SIM3.
pub(crate) async fn last_checks(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let (accounts, ledger) = loop {
        let all = async {
            let mut client = Client::connect(&node.database).await?;
            client.run("BEGIN", &[]).await?;
            let accounts = client.run("SELECT id, balance FROM accounts", &[]).await?;
            let ledger = client.run("SELECT id, source, target, amount FROM ledger", &[]).await?;
            client.run("COMMIT", &[]).await?;
            Ok::<_, Error>((accounts, ledger))
        };
        match all.await {
            Ok(all) => break all,
            Err(e) => match heard(&e)? {
                Heard::Down => return gone().await,
                _ => tokio::time::sleep(RETRY).await,
            },
        }
    };
    let told = world.books.bank.told.lock().expect("one thread");
    let mut expected: BTreeMap<i64, i64> =
        (0..world.books.bank.accounts as i64).map(|id| (id, START_BALANCE)).collect();
    let mut present = BTreeSet::new();
    for row in &ledger {
        let [id, from, to, amount] = &row[..] else { return Err(Found::from("a ledger row".to_string())) };
        if !present.insert(int(id)?) {
            return Err(Found::new("SIM2", format!("T8: SQL transfer {id:?} is in the ledger twice")));
        }
        *expected.entry(int(from)?).or_default() -= int(amount)?;
        *expected.entry(int(to)?).or_default() += int(amount)?;
    }
    if let Some(lost) = told.committed.iter().find(|id| !present.contains(id)) {
        return Err(Found::new("SIM2", format!("T2: SQL transfer {lost} was acknowledged and is not there")));
    }
    if let Some(ghost) = told.aborted.iter().find(|id| present.contains(id)) {
        return Err(Found::new(
            "SIM3",
            format!("T3: SQL transfer {ghost} was reported as aborted and is there"),
        ));
    }
    let found: BTreeMap<i64, i64> =
        accounts.iter().map(|row| Ok((int(&row[0])?, int(&row[1])?))).collect::<Result<_, Found>>()?;
    if found != expected {
        return Err(Found::new(
            "SIM2",
            format!("T8: SQL accounts are {found:?}; the ledger says {expected:?}"),
        ));
    }
    world.note("sql end", &[ledger.len() as u64]);
    Ok(())
}
