//! Advisory locks (design D16): locks on numbers that mean something to clients only, over all gateways.
//!
//!     key `a` class number     the holders: node, epoch of its lease, session, modes
//!
//! A lock is a row in the system keys, read and written in transactions of its own, so that its safety is the commit
//! protocol's. A session's claims are counted in its gateway's memory ([`Claims`]); the row says which sessions hold it and
//! how, not how often.
//!
//!     session at node 1                          the row of lock 7                       session at node 2
//!       pg_advisory_lock(7) ── txn: put ────────▶ (1, epoch 4, session s: exclusive)
//!                                                          ◀── txn: get, blocked ─────── pg_advisory_lock(7)
//!       pg_advisory_unlock(7) ── txn: delete ───▶ nobody                                   looks again and again
//!                                                 (2, epoch 9, session t) ◀── txn: put ──  has it
//!
//! Invariants
//!   A1  Two sessions whose modes exclude each other are never in a row together, but for one whose holder is certainly
//!       over: its node's lease of that epoch has ended for good (N2: read at T above its end, or with another epoch), or it is
//!       a session of this very gateway that this gateway does not have.
//!   A2  A claim commits at or below the end of the lease of the epoch that it names.
//!   A3  A gateway whose lease was lost ends the claims of all its sessions before it gets another lease; a session whose
//!       claims were ended that way does nothing any more: every statement of it fails with 57P01, COMMIT included.
//!   A4  A claim that nobody was told of (the statement was cancelled, or its session is gone) is given back, and what is to be
//!       given back is tried again until it is done or A3 has done it.
//!
//! What is promised. Whatever a session commits while it holds an exclusive lock comes, in the order of commit timestamps,
//! before everything that the next holder reads or commits: the session's transactions commit at or below the end of an
//! unbroken row of leases (G3), the next holder's claim commits above that end (A1), and its statements run above its claim.
//! So *inside* the database the lock is a fence even against a holder that was cut off and does not know it yet. *Outside*,
//! nobody can promise that: a client whose node lost contact may go on for as long as it does not ask the database; when it
//! asks, it hears 57P01.
//!
//! Failure: without a quorum for the system keys a claim fails or waits (57P03), and is not given back meanwhile. A wait ends
//! with 55P03 at `lock_timeout` or [`WAIT_MAX`]; a circle of waits among the sessions of one gateway with 40P01. Missing: an
//! order among those who wait, and circles over several gateways, which end by `lock_timeout`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use isochrone_base::codec::{DecodeError, Reader, put_u64};
use isochrone_base::{Bytes, Key, NodeId, Timestamp, keyspace};
use isochrone_env::{Random, Timer};
use isochrone_txn::kv::{self, BoxFuture, KvStore, Lock, TxnOptions};
use isochrone_types::{Datum, Error, SqlState};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::relation::{AdvisoryCall, AdvisoryLocks};
use crate::session::{CancelHandle, kv_error};

/// Locks that one session may hold; one more is refused with 53200.
pub const LOCKS_MAX: usize = 10_000;
/// Sessions that may hold one lock together; one more is refused with 53200.
pub const HOLDERS_MAX: usize = 10_000;
/// Longest wait for a lock, when `lock_timeout` says nothing.
pub const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// The first and the longest pause between two looks at a lock that somebody else holds. Who gives one back on the same
/// gateway wakes up who waits.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// Attempts of one look or change that meets others.
const ATTEMPTS_MAX: usize = 32;
/// The longest pause between two tries to give something back.
const GIVE_BACK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for the row itself, which is held for the time of one commit.
const ROW_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a statement waits for what its transaction gave back; then it goes on by itself.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Names of sessions that are gone are looked for when there are so many, and at every doubling.
const SESSIONS_SWEPT_FROM: usize = 64;
/// Version of the encoding of a row.
const VERSION: u8 = 1;

/// What a lock is on: one bigint, or two ints, which are different locks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tag {
    /// One bigint.
    One(i64),
    /// Two ints.
    Two(i32, i32),
}

impl Tag {
    fn key(self) -> Key {
        let (class, number) = match self {
            Tag::One(n) => (1, n.cast_unsigned()),
            Tag::Two(a, b) => (2, u64::from(a.cast_unsigned()) << 32 | u64::from(b.cast_unsigned())),
        };
        keyspace::advisory_key(class, number)
    }
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By one.
    Exclusive,
    /// By many, and nobody holds it exclusively.
    Shared,
}

impl Mode {
    fn bit(self) -> u8 {
        match self {
            Mode::Exclusive => 1,
            Mode::Shared => 2,
        }
    }

    fn at(self) -> usize {
        match self {
            Mode::Exclusive => 0,
            Mode::Shared => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mode::Exclusive => "ExclusiveLock",
            Mode::Shared => "ShareLock",
        }
    }
}

/// A session in a row.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Holder {
    node: NodeId,
    epoch: u64,
    session: u128,
    modes: u8,
}

fn encode(holders: &[Holder]) -> Bytes {
    let mut out = vec![VERSION];
    put_u64(&mut out, holders.len() as u64);
    for h in holders {
        put_u64(&mut out, u64::from(h.node.0));
        put_u64(&mut out, h.epoch);
        out.extend_from_slice(&h.session.to_be_bytes());
        out.push(h.modes);
    }
    out.into()
}

fn decode(row: Bytes) -> Result<Vec<Holder>, DecodeError> {
    let mut r = Reader::new(row);
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of an advisory lock"));
    }
    let n = r.count(19)?;
    let mut holders = Vec::with_capacity(n);
    for _ in 0..n {
        let (node, epoch) = (NodeId(r.u32()?), r.u64()?);
        let session = r.take(16)?;
        let session = session[..].try_into().map_err(|_| DecodeError::Invalid("session"))?;
        holders.push(Holder { node, epoch, session: u128::from_be_bytes(session), modes: r.u8()? });
    }
    r.finish()?;
    Ok(holders)
}

/// Do two sessions' modes exclude each other?
fn exclude(a: u8, b: u8) -> bool {
    (a | b) & Mode::Exclusive.bit() != 0
}

#[derive(Default)]
struct NodeState {
    sessions: BTreeMap<u128, Weak<Claims>>,
    /// How often the lease was lost.
    losses: u64,
    /// Sessions that wait, and for whom.
    waits: BTreeMap<u128, BTreeSet<u128>>,
}

/// The advisory locks of a gateway's sessions.
pub struct NodeAdvisory {
    store: Arc<dyn KvStore>,
    timer: Arc<dyn Timer>,
    random: Arc<dyn Random>,
    state: Mutex<NodeState>,
    /// Something was given back here.
    changed: Notify,
}

impl NodeAdvisory {
    /// Over this store.
    pub fn new(store: Arc<dyn KvStore>, timer: Arc<dyn Timer>, random: Arc<dyn Random>) -> NodeAdvisory {
        NodeAdvisory { store, timer, random, state: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, NodeState> {
        // Map operations only, never across an await.
        self.state.lock().expect("no panic while the lock is held")
    }

    /// The claims of a new session; `cancel` breaks off its statement when they are ended.
    pub fn session(self: &Arc<NodeAdvisory>, cancel: Arc<CancelHandle>) -> Arc<Claims> {
        Arc::new(Claims {
            id: self.random.next_u128(),
            node: self.clone(),
            cancel,
            inner: Mutex::default(),
            one: tokio::sync::Mutex::new(()),
        })
    }

    /// Is there such a session, or something of it that is not over?
    fn knows(&self, id: u128) -> bool {
        self.lock().sessions.get(&id).is_some_and(|c| c.strong_count() > 0)
    }

    fn know(&self, claims: &Arc<Claims>) {
        let mut state = self.lock();
        // What was cancelled and ended late may have left its name behind; now and then, so that it costs nothing much.
        if state.sessions.len() >= SESSIONS_SWEPT_FROM && state.sessions.len().is_power_of_two() {
            state.sessions.retain(|_, c| c.strong_count() > 0);
        }
        state.sessions.insert(claims.id, Arc::downgrade(claims));
    }

    /// A3. To be called before anything else that a lost lease changes.
    pub fn lease_lost(&self) {
        let sessions: Vec<Arc<Claims>> = {
            let mut state = self.lock();
            state.losses += 1;
            std::mem::take(&mut state.sessions).into_values().filter_map(|c| c.upgrade()).collect()
        };
        for claims in sessions {
            claims.end_of_lease();
        }
        self.changed.notify_waiters();
    }

    /// Waiting for these, is this session in a circle?
    fn waits_for(&self, id: u128, blockers: &BTreeSet<u128>) -> bool {
        let mut state = self.lock();
        state.waits.insert(id, blockers.clone());
        let (mut seen, mut next) = (BTreeSet::new(), blockers.clone());
        while let Some(session) = next.pop_first() {
            if session == id {
                return true;
            }
            if seen.insert(session) {
                next.extend(state.waits.get(&session).into_iter().flatten());
            }
        }
        false
    }
}

/// How often a session holds a lock: by mode, for the session and for the transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    session: [u32; 2],
    transaction: [u32; 2],
}

impl Counts {
    fn of(&mut self, transaction: bool) -> &mut [u32; 2] {
        if transaction { &mut self.transaction } else { &mut self.session }
    }

    fn modes(&self) -> u8 {
        let bit = |mode: Mode| {
            let held = self.session[mode.at()] + self.transaction[mode.at()] > 0;
            if held { mode.bit() } else { 0 }
        };
        bit(Mode::Exclusive) | bit(Mode::Shared)
    }
}

/// One claim, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claim {
    tag: Tag,
    mode: Mode,
    transaction: bool,
}

#[derive(Default)]
struct Inner {
    held: BTreeMap<Tag, Counts>,
    /// Claims of the transaction, oldest first.
    transaction: Vec<Claim>,
    /// What the running statement has claimed, and whether it has given something back.
    statement: Vec<Claim>,
    gave_back: bool,
    /// A3.
    lost: bool,
    /// What is being given back.
    pending: Vec<JoinHandle<()>>,
    warnings: Vec<String>,
}

impl Inner {
    fn modes(&self, tag: Tag) -> u8 {
        self.held.get(&tag).map_or(0, Counts::modes)
    }

    /// Takes a claim back; true: the row must be changed.
    fn drop_claim(&mut self, claim: Claim) -> bool {
        let Some(counts) = self.held.get_mut(&claim.tag) else { return false };
        let before = counts.modes();
        let count = &mut counts.of(claim.transaction)[claim.mode.at()];
        *count = count.saturating_sub(1);
        let after = counts.modes();
        if after == 0 {
            self.held.remove(&claim.tag);
        }
        before != after
    }
}

/// The advisory locks of one session.
pub struct Claims {
    id: u128,
    node: Arc<NodeAdvisory>,
    cancel: Arc<CancelHandle>,
    inner: Mutex<Inner>,
    /// Rows are changed by one at a time in the name of a session: what a cancelled statement began, and the next statement.
    one: tokio::sync::Mutex<()>,
}

/// What a look at a row found.
enum Looked {
    /// The claim is in the row; how often the lease had been lost before.
    Free { losses: u64 },
    /// By these sessions of this gateway, among others.
    Taken(BTreeSet<u128>),
}

/// Why a look found nothing.
struct Failed {
    error: Error,
    /// The claim may be in the row, or come there.
    may_be_written: bool,
}

/// What a look came to for the statement.
enum Look {
    Granted(Granted),
    Blocked(BTreeSet<u128>),
}

/// A claim on its way to the statement that wants it; dropped before it arrives, it is given back (A4).
struct Granted {
    claims: Arc<Claims>,
    claim: Claim,
    arrived: bool,
}

impl Drop for Granted {
    fn drop(&mut self) {
        if !self.arrived {
            self.claims.give_back(&[self.claim]);
        }
    }
}

/// No longer waits when it is dropped.
struct Waiting<'a>(&'a Claims);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.node.lock().waits.remove(&self.0.id);
    }
}

fn lost() -> Error {
    Error::new(
        SqlState::ADMIN_SHUTDOWN,
        "this session is over: its node lost contact with the cluster, and the session's advisory locks with it",
    )
    .with_hint("Connect again.")
}

fn too_often() -> Error {
    Error::new(SqlState::LOCK_NOT_AVAILABLE, "an advisory lock's row is changed too often")
}

fn too_many(what: String) -> Error {
    Error::new(SqlState::OUT_OF_MEMORY, what)
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Map operations only, never across an await.
        self.inner.lock().expect("no panic while the lock is held")
    }

    /// A3: fails when the session's claims were ended.
    pub fn check(&self) -> Result<(), Error> {
        if self.lock().lost { Err(lost()) } else { Ok(()) }
    }

    fn end_of_lease(&self) {
        let mut inner = self.lock();
        if inner.held.is_empty() {
            return;
        }
        inner.lost = true;
        inner.held.clear();
        inner.transaction.clear();
        inner.statement.clear();
        drop(inner);
        self.cancel.cancel();
    }

    /// A statement begins, or is tried again.
    pub fn begin_statement(&self) {
        let mut inner = self.lock();
        inner.statement.clear();
        inner.gave_back = false;
    }

    /// May the statement be run again? Not when it gave a lock back, which somebody else may have by now.
    pub fn may_retry(&self) -> bool {
        !self.lock().gave_back
    }

    /// The statement is run again: what it claimed goes.
    pub async fn undo_statement(self: &Arc<Claims>) {
        let claims = std::mem::take(&mut self.lock().statement);
        self.give_back(&claims);
        self.settled().await;
    }

    /// How many claims the transaction has: for [`Claims::back_to`].
    pub fn mark(&self) -> usize {
        self.lock().transaction.len()
    }

    /// ROLLBACK TO SAVEPOINT, or with 0 the end of the transaction: its later claims go.
    pub fn back_to(self: &Arc<Claims>, mark: usize) {
        let claims: Vec<Claim> = {
            let mut inner = self.lock();
            if inner.transaction.len() <= mark {
                return;
            }
            inner.transaction.split_off(mark)
        };
        self.give_back(&claims);
    }

    /// All claims of the session itself go (pg_advisory_unlock_all, DISCARD ALL).
    pub fn unlock_all(self: &Arc<Claims>) {
        let claims: Vec<Claim> = {
            let mut inner = self.lock();
            inner.gave_back = true;
            let mut claims = Vec::new();
            for (tag, counts) in &inner.held {
                for mode in [Mode::Exclusive, Mode::Shared] {
                    let claim = Claim { tag: *tag, mode, transaction: false };
                    claims.extend(std::iter::repeat_n(claim, counts.session[mode.at()] as usize));
                }
            }
            claims
        };
        self.give_back(&claims);
    }

    /// The session is gone.
    pub fn end(self: &Arc<Claims>) {
        self.back_to(0);
        self.unlock_all();
        let pending = std::mem::take(&mut self.lock().pending);
        let claims = self.clone();
        let last = async move {
            for task in pending {
                let _ends_in_any_case = task.await;
            }
            claims.node.lock().sessions.remove(&claims.id);
        };
        // Without a runtime everything ends, and the lease with it.
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            drop(handle.spawn(last));
        }
    }

    /// Waits until what was given back is free for others.
    pub async fn settled(&self) {
        let pending = std::mem::take(&mut self.lock().pending);
        if pending.is_empty() {
            return;
        }
        let all = async {
            for task in pending {
                let _ends_in_any_case = task.await;
            }
        };
        tokio::select! {
            biased;
            () = all => {}
            () = self.node.timer.sleep(SETTLE_MAX) => {}
        }
    }

    /// Warnings since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().warnings)
    }

    /// Takes claims back, and the rows that change with them in the background (A4).
    fn give_back(self: &Arc<Claims>, claims: &[Claim]) {
        let changed: BTreeSet<Tag> = {
            let mut inner = self.lock();
            claims.iter().filter(|c| inner.drop_claim(**c)).map(|c| c.tag).collect()
        };
        if changed.is_empty() {
            return;
        }
        let this = self.clone();
        let work = async move {
            for tag in changed {
                this.write_until_done(tag).await;
            }
        };
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            let task = handle.spawn(work);
            let mut inner = self.lock();
            inner.pending.retain(|t| !t.is_finished());
            inner.pending.push(task);
        }
    }

    async fn write_until_done(self: &Arc<Claims>, tag: Tag) {
        let mut pause = LOOK_MIN;
        loop {
            let written = {
                let _one = self.one.lock().await;
                self.write(tag).await
            };
            match written {
                Ok(()) => break,
                Err(_) if self.lock().lost => break,
                Err(error) => {
                    tracing::debug!(%error, "an advisory lock was not given back yet");
                    self.node.timer.sleep(pause).await;
                    pause = (pause * 2).min(GIVE_BACK_PAUSE_MAX);
                }
            }
        }
        self.node.changed.notify_waiters();
    }

    /// Makes the row say what this session holds, which is less than it said. Under `one`.
    async fn write(&self, tag: Tag) -> Result<(), Error> {
        for _ in 0..ATTEMPTS_MAX {
            let modes = self.lock().modes(tag);
            let options = TxnOptions { lock_wait_max: ROW_WAIT_MAX, ..TxnOptions::default() };
            let mut txn = self.node.store.begin(options);
            let key = tag.key();
            let changed = async {
                let mut holders = read(&mut *txn, &key).await?;
                match holders.iter().position(|h| self.is_mine(h)) {
                    None => return Ok(false),
                    Some(at) if modes == 0 => _ = holders.remove(at),
                    // Only less: what is not in the row is not claimed by this.
                    Some(at) => holders[at].modes &= modes,
                }
                txn.put(key.clone(), (!holders.is_empty()).then(|| encode(&holders)))?;
                Ok::<bool, kv::Error>(true)
            }
            .await;
            let result = match changed {
                Ok(true) => txn.commit().await.map(|_| ()),
                Ok(false) => {
                    txn.rollback();
                    Ok(())
                }
                Err(e) => Err(e),
            };
            match result {
                Ok(()) => return Ok(()),
                // It says the same after another attempt, whatever became of this one.
                Err(kv::Error::Serialization(_) | kv::Error::Deadlock | kv::Error::Unknown(_)) => {}
                Err(e) => return Err(kv_error(e)),
            }
        }
        Err(too_often())
    }

    fn is_mine(&self, h: &Holder) -> bool {
        h.session == self.id && h.node == self.node.store.node()
    }

    /// Is this holder certainly over? `over`: what was found of other nodes.
    fn is_over(&self, h: &Holder, epoch: u64, over: &BTreeSet<(NodeId, u64)>) -> bool {
        if h.node == self.node.store.node() && h.epoch == epoch {
            return !self.node.knows(h.session);
        }
        over.contains(&(h.node, h.epoch))
    }

    /// Which of these nodes' leases have ended for good (A1)? An error is no answer: none.
    async fn over(&self, holders: &[Holder]) -> BTreeSet<(NodeId, u64)> {
        let nodes = match self.node.store.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => {
                tracing::debug!(%error, "nodes could not be looked up for an advisory lock");
                return BTreeSet::new();
            }
        };
        let lives = |h: &&Holder| {
            let record = nodes.iter().find(|n| n.node == h.node);
            record.is_some_and(|n| (n.live && n.epoch == h.epoch) || n.lease_before)
        };
        holders.iter().filter(|h| !lives(h)).map(|h| (h.node, h.epoch)).collect()
    }

    /// One look: claims the lock if nobody is in the way. Under `one`. `ask`: other nodes' records are looked at as well.
    async fn look(&self, tag: Tag, mode: Mode, mut ask: bool) -> Result<Looked, Failed> {
        let store = &self.node.store;
        let mut over = BTreeSet::new();
        let mut may_be_written = false;
        for _ in 0..ATTEMPTS_MAX {
            // A2: in this order, since an epoch is told before its lease.
            let losses = self.node.lock().losses;
            let max_ts = store.schema_lease();
            let epoch = store.lease_epoch();
            if max_ts != Timestamp::MAX && max_ts <= store.now() {
                let error = kv_error(kv::Error::Unavailable("this node has no lease now".into()));
                return Err(Failed { error, may_be_written });
            }
            let modes = self.lock().modes(tag) | mode.bit();
            let options = TxnOptions { max_ts, lock_wait_max: ROW_WAIT_MAX, ..TxnOptions::default() };
            let mut txn = store.begin(options);
            let key = tag.key();
            let mut in_the_way = Vec::new();
            let found = async {
                let mut holders = read(&mut *txn, &key).await?;
                holders.retain(|h| !self.is_mine(h) && !self.is_over(h, epoch, &over));
                in_the_way = holders.iter().filter(|h| exclude(h.modes, modes)).cloned().collect();
                if in_the_way.is_empty() {
                    if holders.len() >= HOLDERS_MAX {
                        return Ok(None);
                    }
                    holders.push(Holder { node: store.node(), epoch, session: self.id, modes });
                    txn.put(key.clone(), Some(encode(&holders)))?;
                }
                Ok::<_, kv::Error>(Some(in_the_way.is_empty()))
            }
            .await;
            let result = match found {
                Ok(Some(true)) => txn.commit().await.map(|_| true),
                Ok(Some(false)) => {
                    txn.rollback();
                    Ok(false)
                }
                Ok(None) => {
                    let error = too_many("too many sessions hold the same advisory lock".into());
                    return Err(Failed { error, may_be_written });
                }
                Err(e) => Err(e),
            };
            match result {
                Ok(true) => return Ok(Looked::Free { losses }),
                Ok(false) => {
                    if std::mem::take(&mut ask)
                        && in_the_way.iter().any(|h| h.node != store.node() || h.epoch != epoch)
                    {
                        over = self.over(&in_the_way).await;
                        if in_the_way.iter().all(|h| self.is_over(h, epoch, &over)) {
                            continue;
                        }
                    }
                    // Of other gateways' sessions nobody here knows for whom they wait.
                    let here = in_the_way.into_iter().filter(|h| h.node == store.node());
                    return Ok(Looked::Taken(here.map(|h| h.session).collect()));
                }
                // The same again does no harm: the row names the session.
                Err(kv::Error::Serialization(_) | kv::Error::Deadlock) => {}
                Err(kv::Error::Unknown(_)) => may_be_written = true,
                Err(e) => return Err(Failed { error: kv_error(e), may_be_written }),
            }
        }
        Err(Failed { error: too_often(), may_be_written })
    }

    /// A look in a task of its own, which ends whatever becomes of the statement (A4).
    async fn look_safely(self: &Arc<Claims>, claim: Claim, ask: bool) -> Result<Look, Error> {
        let this = self.clone();
        let looking = tokio::spawn(async move {
            let _one = this.one.lock().await;
            // From here on this gateway knows the session (A1).
            this.node.know(&this);
            match this.look(claim.tag, claim.mode, ask).await {
                Ok(Looked::Taken(by)) => Ok(Look::Blocked(by)),
                Ok(Looked::Free { losses }) => {
                    let mut inner = this.lock();
                    // A3: from here on the end of the lease finds the claim, or it has come before and the epoch is over.
                    if inner.lost || this.node.lock().losses != losses {
                        return Err(kv_error(kv::Error::Unavailable("this node has lost its lease".into())));
                    }
                    inner.held.entry(claim.tag).or_default().of(claim.transaction)[claim.mode.at()] += 1;
                    drop(inner);
                    Ok(Look::Granted(Granted { claims: this.clone(), claim, arrived: false }))
                }
                Err(Failed { error, may_be_written }) => {
                    if may_be_written {
                        let again = this.clone();
                        drop(tokio::spawn(async move { again.write_until_done(claim.tag).await }));
                    }
                    Err(error)
                }
            }
        });
        looking.await.map_err(|e| Error::internal(format!("looking at an advisory lock: {e}")))?
    }

    fn note(&self, claim: Claim) {
        let mut inner = self.lock();
        inner.statement.push(claim);
        if claim.transaction {
            inner.transaction.push(claim);
        }
    }

    /// Claims a lock. `wait_max`: how long it may take; `None`: not at all, and false says that it is taken.
    async fn claim(self: &Arc<Claims>, claim: Claim, wait_max: Option<Duration>) -> Result<bool, Error> {
        self.check()?;
        {
            let mut inner = self.lock();
            if inner.modes(claim.tag) & claim.mode.bit() != 0 {
                let counts = inner.held.entry(claim.tag).or_default();
                let count = &mut counts.of(claim.transaction)[claim.mode.at()];
                *count = count
                    .checked_add(1)
                    .ok_or_else(|| too_many("an advisory lock is held too often".into()))?;
                drop(inner);
                self.note(claim);
                return Ok(true);
            }
            if inner.held.len() >= LOCKS_MAX || inner.statement.len() >= LOCKS_MAX * 10 {
                return Err(too_many("too many advisory locks in one session".into()));
            }
        }
        let mut timeout = wait_max.map(|wait| self.node.timer.sleep(wait));
        let _waiting = Waiting(self);
        let mut pause = LOOK_MIN;
        loop {
            let changed = self.node.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let blockers = match self.look_safely(claim, pause == LOOK_MIN || pause == LOOK_MAX).await? {
                Look::Granted(mut granted) => {
                    granted.arrived = true;
                    self.note(claim);
                    return Ok(true);
                }
                Look::Blocked(blockers) => blockers,
            };
            let Some(timeout) = &mut timeout else { return Ok(false) };
            if self.node.waits_for(self.id, &blockers) {
                return Err(Error::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
                    .with_detail("Sessions of this node wait for each other's advisory locks."));
            }
            let jitter = self.node.random.next_u64() % (pause.as_micros() as u64 / 2 + 1);
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = self.node.timer.sleep(pause - Duration::from_micros(jitter)) => {}
                () = timeout => {
                    return Err(Error::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout"));
                }
            }
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    /// Gives one claim of the session back; false, with a warning: there is none.
    async fn unlock(self: &Arc<Claims>, tag: Tag, mode: Mode) -> bool {
        let held = {
            let mut inner = self.lock();
            let held = inner.held.get(&tag).is_some_and(|c| c.session[mode.at()] > 0);
            match held {
                true => inner.gave_back = true,
                false => inner.warnings.push(format!("you don't own a lock of type {}", mode.name())),
            }
            held
        };
        if held {
            self.give_back(&[Claim { tag, mode, transaction: false }]);
            self.settled().await;
        }
        held
    }
}

async fn read(txn: &mut dyn kv::KvTxn, key: &[u8]) -> Result<Vec<Holder>, kv::Error> {
    match txn.get(key, Lock::Exclusive).await? {
        None => Ok(Vec::new()),
        Some(row) => {
            decode(row).map_err(|e| kv::Error::Internal(format!("the row of an advisory lock: {e}")))
        }
    }
}

/// The claims as statements see them.
pub struct SessionAdvisory {
    claims: Arc<Claims>,
    /// `lock_timeout`.
    wait_max: Mutex<Option<Duration>>,
}

impl SessionAdvisory {
    /// For a new session.
    pub fn new(claims: Arc<Claims>) -> SessionAdvisory {
        SessionAdvisory { claims, wait_max: Mutex::default() }
    }

    /// What `lock_timeout` says now.
    pub fn set_wait_max(&self, wait_max: Option<Duration>) {
        *self.wait_max.lock().expect("no panic while the lock is held") = wait_max;
    }
}

impl AdvisoryLocks for SessionAdvisory {
    fn call<'a>(&'a self, call: AdvisoryCall, args: Vec<Datum>) -> BoxFuture<'a, Result<Datum, Error>> {
        Box::pin(async move {
            let numbers: Option<Vec<i64>> = args.iter().map(Datum::as_i64).collect();
            let tag = match numbers.as_deref() {
                Some([]) if call == AdvisoryCall::UnlockAll => {
                    self.claims.unlock_all();
                    self.claims.settled().await;
                    return Ok(Datum::text(""));
                }
                Some([n]) => Tag::One(*n),
                Some([a, b]) => match (i32::try_from(*a), i32::try_from(*b)) {
                    (Ok(a), Ok(b)) => Tag::Two(a, b),
                    _ => return Err(Error::internal("two numbers of an advisory lock are ints")),
                },
                // NULL.
                None => return Ok(Datum::Null),
                Some(_) => return Err(Error::internal("an advisory lock is on one or two numbers")),
            };
            match call {
                AdvisoryCall::Lock { mode, transaction, wait } => {
                    let timeout = *self.wait_max.lock().expect("no panic while the lock is held");
                    let wait_max = wait.then(|| timeout.unwrap_or(WAIT_MAX));
                    let got = self.claims.claim(Claim { tag, mode, transaction }, wait_max).await?;
                    Ok(if wait { Datum::text("") } else { Datum::Bool(got) })
                }
                AdvisoryCall::Unlock { mode } => Ok(Datum::Bool(self.claims.unlock(tag, mode).await)),
                AdvisoryCall::UnlockAll => Err(Error::internal("unlock_all has no arguments")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        let holder = |n: u32| Holder { node: NodeId(n), epoch: 7, session: u128::MAX - 5, modes: 3 };
        let row = encode(&[holder(1), holder(200)]);
        for cut in 0..row.len() {
            assert!(decode(row.slice(..cut)).is_err(), "cut at {cut}");
        }
        assert_eq!(decode(row).unwrap(), [holder(1), holder(200)]);
        assert!(
            decode(Bytes::from_static(&[VERSION, 0xff, 0xff, 0xff, 0xff, 0x0f])).is_err(),
            "nothing is allocated"
        );
    }

    #[test]
    fn numbers_are_different_locks() {
        let tags =
            [Tag::One(1), Tag::One(-1), Tag::Two(0, 1), Tag::Two(1, 0), Tag::Two(-1, -1), Tag::One(i64::MIN)];
        let keys: BTreeSet<Key> = tags.iter().map(|t| t.key()).collect();
        assert_eq!(keys.len(), tags.len());
    }
}
