//! Single rows, read, written and compared-and-set by key-value transactions at every node; judged for linearizability
//! ([`isochrone_check::register`]): clocks stay inside their bound, so R1 and R5 promise it for a single key.
//!
//! A register holds one value after the other, none twice. It is used for [`WRITES_MAX`] writes, then the next one takes its
//! place. Every other write takes a register of another shard along in the same transaction, so that there are prepares
//! to read through; each of the two is judged by itself.

use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, Key, keyspace, ordered};
use isochrone_check::register::{Answer, Content, Op, OpNo, RegisterChecker};
use isochrone_env::SplitMix64;
use isochrone_txn::kv::{Error, KvStore, KvTxn, Lock, TxnOptions};

use super::append::first;
use super::{Counts, Gateway, LOCK_WAIT_MAX, RETRY, goes_on, gone, pause};
use crate::options::Options;
use crate::world::{Found, World};

/// A table that no SQL statement will ever make.
const TABLE: u32 = keyspace::FIRST_USER_TABLE + 1_000_010;
const WRITES_MAX: u64 = 200;
const PER_PLACE: u64 = 1_000_000;
const UNKNOWN_MAX: usize = 10_000;

/// What the clients did and were told.
pub(crate) struct Book(Mutex<Told>);

struct Told {
    checker: RegisterChecker,
    muted: &'static [&'static str],
    /// Of each place: its register, and the writes sent to it.
    places: Vec<(u64, u64)>,
    next_value: u64,
    counts: Counts,
}

/// A value that a register is to hold.
struct Write {
    key: u64,
    new: u64,
    /// The next one takes this register's place.
    is_last: bool,
}

impl Told {
    /// The register that is used at a place.
    fn in_use(&self, place: u64) -> u64 {
        place * PER_PLACE + self.places[place as usize].0
    }

    fn next_write(&mut self, place: u64) -> Write {
        let key = self.in_use(place);
        let (number, sent) = &mut self.places[place as usize];
        self.next_value += 1;
        *sent += 1;
        let is_last = *sent == WRITES_MAX;
        if is_last {
            (*number, *sent) = (*number + 1, 0);
        }
        Write { key, new: self.next_value, is_last }
    }
}

impl Book {
    pub(crate) fn new(options: &Options) -> Book {
        Book(Mutex::new(Told {
            checker: RegisterChecker::new(UNKNOWN_MAX),
            muted: options.muted(),
            places: vec![(0, 0); options.accounts as usize],
            next_value: 1,
            counts: Counts::default(),
        }))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().expect("one thread").counts
    }

    fn found(&self) -> Result<(), Found> {
        let told = &mut *self.0.lock().expect("one thread");
        first(told.checker.findings().take(), told.muted)
    }
}

/// An operation that has begun. If nobody says how it ended, nobody knows.
struct Attempt {
    world: Arc<World>,
    op: OpNo,
    over: bool,
}

impl Attempt {
    fn begin(world: &Arc<World>, key: u64, op: Op) -> Attempt {
        let (kind, old, new) = match op {
            Op::Read => (0, 0, 0),
            Op::Write(new) => (1, 0, new),
            Op::Cas { expect, new } => (2, expect.unwrap_or(0), new),
        };
        let op = world.books.register.0.lock().expect("one thread").checker.begin(key, op, world.now_us());
        world.note(["read", "write", "replace"][kind], &[op.0, key, old, new]);
        Attempt { world: world.clone(), op, over: false }
    }

    fn end(&mut self, answer: Answer) {
        let (how, value) = match answer {
            Answer::Holds(content) => ("holds", content.unwrap_or(0)),
            Answer::Done => ("done", 0),
            Answer::Failed => ("failed", 0),
            Answer::Unknown => ("unknown", 0),
        };
        self.world.note(how, &[self.op.0, value]);
        self.tell(answer);
    }

    fn tell(&mut self, answer: Answer) {
        self.over = true;
        let told = &mut *self.world.books.register.0.lock().expect("one thread");
        told.checker.finish(self.op, answer, self.world.now_us());
        match answer {
            Answer::Holds(_) | Answer::Done => told.counts.committed += 1,
            Answer::Failed => told.counts.aborted += 1,
            Answer::Unknown => told.counts.unknown += 1,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Not into the trace: in which order a runtime drops its tasks depends on the runs before this one.
        if !self.over {
            self.tell(Answer::Unknown);
        }
    }
}

fn row(key: u64) -> Key {
    let mut out = keyspace::index_prefix(TABLE, 0);
    ordered::put_u64(&mut out, key);
    out
}

fn options() -> TxnOptions {
    TxnOptions { lock_wait_max: LOCK_WAIT_MAX, ..TxnOptions::default() }
}

async fn read(txn: &mut dyn KvTxn, key: u64, lock: Lock) -> Result<Content, Error> {
    let Some(value) = txn.get(&row(key), lock).await? else { return Ok(None) };
    let bytes =
        value.as_ref().try_into().map_err(|_| Error::Internal(format!("not a register: {value:?}")))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

fn value(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Splits the table. May be repeated.
pub(crate) async fn set_up(world: &World, node: &Arc<Gateway>) -> Result<(), Found> {
    let places = world.options.accounts;
    let splits = vec![row(0), row(places / 2 * PER_PLACE)];
    loop {
        match node.store.split_at(splits.clone()).await {
            Ok(()) => return Ok(()),
            Err(Error::Unavailable(_) | Error::Unknown(_) | Error::Serialization(_)) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(Error::Stopped(_)) => return gone().await,
            Err(e) => return Err(format!("split: {e}").into()),
        }
    }
}

/// Reads and writes until the node goes down or the load ends.
pub(crate) async fn client(world: Arc<World>, node: Arc<Gateway>, life: u64, id: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("register {}.{life}.{id}", node.id));
    while goes_on(&world) {
        pause(&world, &random).await;
        let place = random.below(world.options.accounts);
        let kind = random.below(4);
        let with_another = kind >= 2 && random.below(2) == 0;
        let lock = if random.below(2) == 0 { Lock::Exclusive } else { Lock::None };
        let (key, writes) = {
            let told = &mut *world.books.register.0.lock().expect("one thread");
            let other = (place + world.options.accounts / 2) % world.options.accounts;
            let key = told.in_use(place);
            let first = (kind >= 2).then(|| told.next_write(place));
            let second = (with_another && other != place).then(|| told.next_write(other));
            (key, first.into_iter().chain(second).collect::<Vec<_>>())
        };
        let ended = match kind {
            0 | 1 => look(&world, &node, key).await,
            2 => write(&world, &node, &writes).await,
            _ => replace(&world, &node, &writes, lock).await,
        };
        world.op();
        for write in writes.iter().filter(|w| w.is_last) {
            // Others may still be at it; nobody begins anew.
            world.books.register.0.lock().expect("one thread").checker.retire(write.key);
        }
        match ended {
            Ok(()) => {}
            Err(Error::Stopped(_)) => return gone().await,
            Err(Error::Internal(e)) => return Err(e.into()),
            Err(e @ (Error::TooLarge(_) | Error::ReadOnly | Error::NoSuch(_))) => {
                return Err(e.to_string().into());
            }
            Err(_) => {}
        }
        world.books.register.found()?;
    }
    Ok(())
}

/// Tells the checker how a write ended; not where the node goes down, which says nothing.
fn tell(attempt: &mut Attempt, ended: &Result<(), Error>) {
    match ended {
        Ok(()) => attempt.end(Answer::Done),
        Err(Error::Unknown(_)) => attempt.end(Answer::Unknown),
        Err(Error::Stopped(_)) => {}
        Err(_) => attempt.end(Answer::Failed),
    }
}

/// Does not look at what is there.
async fn write(world: &Arc<World>, node: &Arc<Gateway>, writes: &[Write]) -> Result<(), Error> {
    let begin = |w: &Write| Attempt::begin(world, w.key, Op::Write(w.new));
    let mut attempts: Vec<_> = writes.iter().map(begin).collect();
    let ended = put_all(node.store.begin(options()), writes).await;
    attempts.iter_mut().for_each(|a| tell(a, &ended));
    ended
}

async fn put_all(mut txn: Box<dyn KvTxn>, writes: &[Write]) -> Result<(), Error> {
    for write in writes {
        txn.put(row(write.key), Some(value(write.new)))?;
    }
    txn.commit().await.map(drop)
}

/// Reads the first, and writes on the strength of it. The operation begins with the read.
async fn replace(world: &Arc<World>, node: &Arc<Gateway>, writes: &[Write], lock: Lock) -> Result<(), Error> {
    let [first, others @ ..] = writes else { return Ok(()) };
    let mut looks = Attempt::begin(world, first.key, Op::Read);
    let mut txn = node.store.begin(options());
    let expect = match read(&mut *txn, first.key, lock).await {
        Ok(expect) => expect,
        Err(e) => {
            looks.end(Answer::Failed);
            return Err(e);
        }
    };
    // The checker forgets a retired key when nothing is in flight on it: this one stays until it is told.
    let mut attempts = vec![Attempt::begin(world, first.key, Op::Cas { expect, new: first.new })];
    attempts.extend(others.iter().map(|w| Attempt::begin(world, w.key, Op::Write(w.new))));
    // What a transaction read that does not commit is not claimed to be anything.
    looks.end(Answer::Failed);
    let ended = put_all(txn, writes).await;
    attempts.iter_mut().for_each(|a| tell(a, &ended));
    ended
}

async fn look(world: &Arc<World>, node: &Arc<Gateway>, key: u64) -> Result<(), Error> {
    let mut attempt = Attempt::begin(world, key, Op::Read);
    let mut txn = node.store.begin(TxnOptions { read_only: true, ..options() });
    match read(&mut *txn, key, Lock::None).await {
        Ok(content) => {
            attempt.end(Answer::Holds(content));
            Ok(())
        }
        Err(e) => {
            attempt.end(Answer::Failed);
            Err(e)
        }
    }
}

/// SIM8 and the end: every register in use can be written, and holds what the checker thinks it may.
pub(crate) async fn touch_all(world: &Arc<World>, node: &Arc<Gateway>) -> Result<(), Found> {
    for place in 0..world.options.accounts {
        let key = world.books.register.0.lock().expect("one thread").in_use(place);
        look_once_more(world, node, key).await?;
        loop {
            let new = {
                let told = &mut *world.books.register.0.lock().expect("one thread");
                told.next_value += 1;
                told.next_value
            };
            match replace(world, node, &[Write { key, new, is_last: false }], Lock::Exclusive).await {
                Ok(()) => break,
                Err(Error::Stopped(_)) => return gone().await,
                Err(Error::Internal(e)) => return Err(e.into()),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        world.books.register.found()?;
    }
    Ok(())
}

async fn look_once_more(world: &Arc<World>, node: &Arc<Gateway>, key: u64) -> Result<(), Found> {
    loop {
        match look(world, node, key).await {
            Ok(()) => break,
            Err(Error::Stopped(_)) => return gone().await,
            Err(Error::Internal(e)) => return Err(e.into()),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    world.books.register.found()
}

/// Every register in use is read once more.
pub(crate) async fn last_checks(world: &Arc<World>, node: &Arc<Gateway>) -> Result<(), Found> {
    for place in 0..world.options.accounts {
        let key = world.books.register.0.lock().expect("one thread").in_use(place);
        look_once_more(world, node, key).await?;
    }
    Ok(())
}
