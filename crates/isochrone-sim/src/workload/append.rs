//! Lists, appended to and read by SQL transactions of several statements over several shards; judged as Elle judges them
//! ([`isochrone_check::append`]).
//!
//! A list is a row ([`isochrone_check::lists`]), which is reached by its key, by an index, and by scans over several lists.

use std::sync::{Arc, Mutex};

use isochrone_check::append::{Op, TxnNo};
use isochrone_check::lists::{self, Lists, PER_PLACE, Rules};
use isochrone_check::{Finding, Outcome};
use isochrone_env::SplitMix64;
use isochrone_types::{Datum, Error};

use super::sql::{Client, heard, insist, int};
use super::{Counts, Gateway, Heard, RETRY, goes_on, gone, pause};
use crate::options::{Level, Options};
use crate::world::{Found, World};

/// Appends to a list before it is retired.
const APPENDS_MAX: u32 = 30;
/// Most statements of a transaction.
const STATEMENTS_MAX: u64 = 5;
/// Intervals of acknowledged values that are remembered, per client.
const RUNS_MAX: usize = 100_000;
/// Transactions between two searches of the checker: a finding comes soon after what caused it.
const CHECK_EVERY: usize = 64;

/// What the clients did and were told.
pub(crate) struct Book(Mutex<Told>);

struct Told {
    lists: Lists,
    counts: Counts,
    muted: &'static [&'static str],
}

impl Book {
    pub(crate) fn new(options: &Options) -> Book {
        let level = match options.level {
            Level::Serializable => isochrone_check::Level::Serializable,
            Level::External => isochrone_check::Level::StrictSerializable,
            Level::RepeatableRead => isochrone_check::Level::SnapshotIsolation,
            Level::ReadCommitted => isochrone_check::Level::ReadCommitted,
        };
        let lists = Lists::new(Rules {
            level,
            places: options.accounts,
            appends_max: APPENDS_MAX,
            runs_max: RUNS_MAX,
            check_every: Some(CHECK_EVERY),
        });
        Book(Mutex::new(Told { lists, counts: Counts::default(), muted: options.muted() }))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().expect("one thread").counts
    }

    /// What the checkers have found.
    pub(crate) fn found(&self) -> Result<(), Found> {
        let told = &mut *self.0.lock().expect("one thread");
        first(told.lists.take_findings(), told.muted)
    }

    /// Searches the whole history once more.
    pub(crate) fn check(&self) -> Result<(), Found> {
        self.0.lock().expect("one thread").lists.check();
        self.found()
    }
}

/// The first finding of a checker, but for those that this run may have.
pub(crate) fn first(found: Vec<Finding>, muted: &[&str]) -> Result<(), Found> {
    match found.into_iter().find(|f| !muted.contains(&f.invariant())) {
        Some(f) => Err(Found::new(f.invariant(), f.to_string())),
        None => Ok(()),
    }
}

/// A transaction that has begun. If nobody says how it ended, nobody knows.
struct Attempt {
    world: Arc<World>,
    txn: TxnNo,
    client: u64,
    ops: Vec<Op>,
    over: bool,
}

impl Attempt {
    fn begin(world: &Arc<World>, client: u64) -> Attempt {
        let txn = world.books.append.0.lock().expect("one thread").lists.begin(client, world.now_us());
        Attempt { world: world.clone(), txn, client, ops: Vec::new(), over: false }
    }

    fn read(&mut self, key: u64, list: Vec<u64>) {
        let (values, last) = (list.len() as u64, list.last().copied().unwrap_or(0));
        self.world.note("list", &[self.txn.0, key, values, last]);
        self.ops.push(Op::Read { key, list });
    }

    fn end(&mut self, outcome: Outcome) {
        self.world.note("append end", &[self.txn.0, outcome as u64, self.client]);
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        self.over = true;
        let told = &mut *self.world.books.append.0.lock().expect("one thread");
        told.lists.finish(self.txn, outcome, std::mem::take(&mut self.ops), self.world.now_us());
        match outcome {
            Outcome::Committed => told.counts.committed += 1,
            Outcome::Aborted => told.counts.aborted += 1,
            Outcome::Unknown => told.counts.unknown += 1,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Not into the trace: in which order a runtime drops its tasks depends on the runs before this one.
        if !self.over {
            self.tell(Outcome::Unknown);
        }
    }
}

pub(crate) async fn set_up(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let table = "CREATE TABLE IF NOT EXISTS lists (id int8 PRIMARY KEY, tag int8 NOT NULL, v text NOT NULL)";
    insist(node, table, &[]).await?;
    insist(node, "CREATE INDEX IF NOT EXISTS lists_tag ON lists (tag)", &[]).await?;
    let places = world.options.accounts;
    let (one, two) = (places / 3 * PER_PLACE, places / 2 * PER_PLACE);
    insist(node, &format!("ALTER TABLE lists SPLIT AT VALUES ({one}), ({two})"), &[]).await
}

/// Appends and reads until the node goes down or the load ends.
pub(crate) async fn client(world: Arc<World>, node: Arc<Gateway>, life: u64, id: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("append {}.{life}.{id}", node.id));
    let number = u64::from(node.id.0) * 100 + id;
    let mut connection: Option<Client> = None;
    while goes_on(&world) {
        pause(&world, &random).await;
        let mut client = match connection.take() {
            Some(client) => client,
            None => match connect(&world, &node).await {
                Ok(client) => client,
                Err(e) => match heard(&e)? {
                    Heard::Down => return gone().await,
                    _ => continue,
                },
            },
        };
        let mut attempt = Attempt::begin(&world, number);
        let result = transaction(&world, &random, &mut client, &mut attempt).await?;
        world.op();
        match result {
            Ok(()) => {
                attempt.end(Outcome::Committed);
                connection = Some(client);
            }
            Err(e) => {
                let heard = heard(&e)?;
                match heard {
                    Heard::Aborted => attempt.end(Outcome::Aborted),
                    Heard::Unknown => attempt.end(Outcome::Unknown),
                    Heard::Down => return gone().await,
                }
                if client.run("ROLLBACK", &[]).await.is_ok() {
                    connection = Some(client);
                }
            }
        }
        world.books.append.found()?;
    }
    Ok(())
}

async fn connect(world: &World, node: &Arc<Gateway>) -> Result<Client, Error> {
    let mut client = Client::connect(&node.database).await?;
    if world.options.level == Level::External {
        client.run("SET transaction_consistency = 'external'", &[]).await?;
    }
    Ok(client)
}

/// One transaction. The outer error is a finding, the inner one what its client heard.
async fn transaction(
    world: &World,
    random: &SplitMix64,
    client: &mut Client,
    attempt: &mut Attempt,
) -> Result<Result<(), Error>, Found> {
    let statements = 1 + random.below(STATEMENTS_MAX);
    let block = statements > 1 || random.below(2) == 0;
    let level = world.options.level;
    // The default level also as what it is: the default.
    let begin = match level {
        Level::Serializable | Level::External => "BEGIN".to_string(),
        other => format!("BEGIN ISOLATION LEVEL {}", other.sql()),
    };
    let block = block || !matches!(level, Level::Serializable | Level::External);
    if block && let Err(e) = client.run(&begin, &[]).await {
        return Ok(Err(e));
    }
    for _ in 0..statements {
        match statement(world, random, client, attempt, block).await? {
            Ok(()) => {}
            Err(e) => return Ok(Err(e)),
        }
    }
    if block && let Err(e) = client.run("COMMIT", &[]).await {
        return Ok(Err(e));
    }
    Ok(Ok(()))
}

async fn statement(
    world: &World,
    random: &SplitMix64,
    client: &mut Client,
    attempt: &mut Attempt,
    block: bool,
) -> Result<Result<(), Error>, Found> {
    let place = random.below(world.options.accounts);
    let book = &world.books.append;
    match random.below(6) {
        // A list by its key, or by the index.
        shape @ (0 | 1) => {
            let key = book.0.lock().expect("one thread").lists.list(place);
            let by = if shape == 0 { "id" } else { "tag" };
            let rows = match client.run(&format!("SELECT v FROM lists WHERE {by} = $1"), &[key as i64]).await
            {
                Ok(rows) => rows,
                Err(e) => return Ok(Err(e)),
            };
            attempt.read(key, list(rows.first().map(|r| &r[0]))?);
        }
        // Several neighbours in one scan; old lists among them do not count.
        2 => {
            let last = (place + 1).min(world.options.accounts - 1);
            let keys: Vec<u64> = {
                let told = book.0.lock().expect("one thread");
                (place..=last).map(|p| told.lists.list(p)).collect()
            };
            let (from, to) = (place * PER_PLACE, (last + 1) * PER_PLACE);
            let scan = "SELECT id, v FROM lists WHERE id >= $1 AND id < $2";
            let rows = match client.run(scan, &[from as i64, to as i64]).await {
                Ok(rows) => rows,
                Err(e) => return Ok(Err(e)),
            };
            for key in keys {
                let row = rows.iter().find(|r| int(&r[0]).is_ok_and(|id| id == key as i64));
                attempt.read(key, list(row.map(|r| &r[1]))?);
            }
        }
        shape => {
            let (key, value) = book.0.lock().expect("one thread").lists.append_to(place, attempt.client);
            if shape == 3 && block {
                // Read and lock first.
                let locking = "SELECT v FROM lists WHERE id = $1 FOR UPDATE";
                let rows = match client.run(locking, &[key as i64]).await {
                    Ok(rows) => rows,
                    Err(e) => {
                        attempt.ops.push(Op::Append { key, value });
                        return Ok(Err(e));
                    }
                };
                attempt.read(key, list(rows.first().map(|r| &r[0]))?);
            }
            world.note("append", &[attempt.txn.0, key, value, shape]);
            attempt.ops.push(Op::Append { key, value });
            let params = [key as i64, value as i64];
            if shape == 4 {
                // Through the index; a list that is not there yet is not made by it.
                let update = "UPDATE lists SET v = v || ',' || $2::text WHERE tag = $1 RETURNING v";
                match client.run(update, &params).await {
                    Ok(rows) if !rows.is_empty() => {
                        attempt.read(key, list(Some(&rows[0][0]))?);
                        return Ok(Ok(()));
                    }
                    Ok(_) => {}
                    Err(e) => return Ok(Err(e)),
                }
            }
            let upsert = "INSERT INTO lists VALUES ($1, $1, ',' || $2::text) \
                          ON CONFLICT (id) DO UPDATE SET v = lists.v || ',' || $2::text";
            if let Err(e) = client.run(upsert, &params).await {
                return Ok(Err(e));
            }
        }
    }
    Ok(Ok(()))
}

/// The values of a list; no row is an empty one.
fn list(v: Option<&Datum>) -> Result<Vec<u64>, Found> {
    let Some(v) = v else { return Ok(Vec::new()) };
    let Datum::Text(text) = v else { return Err(Found::from(format!("not a list: {v:?}"))) };
    lists::parse(text).ok_or_else(|| Found::from(format!("not a list: {text}")))
}

/// SIM8: no list stays locked.
pub(crate) async fn touch_all(node: &Arc<Gateway>) -> Result<(), Found> {
    insist(node, "UPDATE lists SET v = v", &[]).await
}

/// Every list once more: what was acknowledged is there, what was reported as aborted is not.
pub(crate) async fn last_checks(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let rows = loop {
        let all = async {
            let mut client = Client::connect(&node.database).await?;
            client.run("SELECT id, v FROM lists", &[]).await
        };
        match all.await {
            Ok(rows) => break rows,
            Err(e) => match heard(&e)? {
                Heard::Down => return gone().await,
                _ => tokio::time::sleep(RETRY).await,
            },
        }
    };
    let mut at_rest = Vec::new();
    for row in &rows {
        at_rest.push((int(&row[0])? as u64, list(Some(&row[1]))?));
    }
    world.books.append.0.lock().expect("one thread").lists.end(at_rest, world.now_us());
    world.books.append.found()?;
    world.note("append end", &[rows.len() as u64]);
    Ok(())
}
