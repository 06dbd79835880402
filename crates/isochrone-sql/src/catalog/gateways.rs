//! Schema changes over several gateways (design D16): what keeps a transaction of one gateway from committing on a
//! table that another one has changed under it, and makes DDL that has returned visible everywhere.
//!
//!     DDL's gateway                           every other gateway
//!       version key locked (C1)
//!       own table lock
//!       Freeze{id, table, until} ───────────▶ waits for its transactions, takes the table's exclusive lock
//!         ◀──────────────────────── Frozen    (or Waiting: asked again; Lost: the DDL fails)
//!       works; prolongs the freeze            keeps it until `until`
//!       COMMIT with max_ts <= until
//!       own catalog
//!       Publish{id, version} ───────────────▶ doubts its catalog, lets go, reads it
//!         ◀────────────────────────── Done
//!       the statement returns
//!
//! The word *hold* is for the DDL's side ([`Hold`]), *freeze* for the others' ([`Freezes`]). Messages are told to every
//! gateway that has a schema lease; a gateway that cannot be reached has its lease waited out and revoked by the layer
//! below ([`KvStore::tell_gateways`]), which is as good as an answer.
//!
//! Invariants
//!   G1  While a table is frozen here, no transaction of this gateway uses it: the freeze owns its exclusive lock (L1).
//!   G2  The end of a freeze is a timestamp: the DDL commits at or below it (`max_ts`), or never. Before it, this
//!       gateway lets go only on the word of the DDL's gateway. After it, it doubts its catalog *first*, then lets go,
//!       and reads the catalog above the end: what was committed at or below is seen (R4), and what is not there then
//!       can not come any more (R11.6). No clock is trusted for that, and the DDL's gateway may be dead.
//!   G3  Every transaction commits at or below a schema lease of the unbroken row of leases that it began in
//!       ([`Database::lease_of`]): one whose gateway was waited out by a DDL commits below that DDL, or never.
//!   G4  A gateway that gets its first lease, or a new one, stands behind the fence (C5) before it uses its catalog. So
//!       nobody who was not asked to freeze can be in the way of a DDL that commits.
//!   G5  A freeze that was let go is never taken for one that holds: `held` in a message is checked, and a message that
//!       comes after the end of its transaction freezes nothing.
//!   G6  A hold whose outcome is unknown is neither published nor released: its freezes end by themselves (G2).
//!
//! Why that is enough. Transactions of other gateways on the table have ended when Frozen is answered, and the next ones
//! use a catalog that is read after Publish (G1) or after the end (G2). Transactions of a gateway that was waited out
//! commit below the clock that the DDL then reads and commits at (G3). New gateways: G4.
//!
//! Failure: a DDL statement gives up when a table is not free everywhere within `lock_timeout` (55P03), when a node can
//! neither be reached nor waited out (57P03), when a freeze was lost (40001), or when it holds tables for more than
//! [`HOLD_MAX`] (55P03); nothing is changed then. Once it is committed, it is told again and again in the background
//! to who did not hear it, and never called undone. Two DDL statements at once meet at the version key. Cycles of a DDL
//! statement that waits for a transaction of another gateway that waits for the version key end with the bounds
//! of both waits.
//!
//! Sequences travel the same way: see [`super::sequences`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use isochrone_base::{Bytes, NodeId, Timestamp, TxnId};
use isochrone_txn::kv::{self, BoxFuture, Gateway, KvStore};
use isochrone_types::{Error, SqlState};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::locks::Owner;
use super::messages::{Answer, Message, TABLES_MAX};
use crate::session::{Database, kv_error};

/// A freeze lasts this long from the moment it is told: how long a table stays frozen when the DDL's gateway dies, and
/// more than [`TELL_WAIT_MAX`], so that the others' freezes hold while one of them is waited out.
pub const FREEZE_FOR: Duration = Duration::from_secs(20);
/// A DDL transaction prolongs its freezes this often.
const PROLONG_EVERY: Duration = Duration::from_secs(5);
/// A COMMIT that finds less than this left of its freezes prolongs them first.
const COMMIT_ROOM: Duration = Duration::from_secs(8);
/// How long a DDL transaction may hold tables; then it fails with 55P03.
pub const HOLD_MAX: Duration = Duration::from_secs(3_600);
/// A freeze whose end is farther ahead of our clock is refused: a clock is wrong.
const FREEZE_AHEAD_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a message to be heard, or waited out, everywhere: several schema leases.
pub const TELL_WAIT_MAX: Duration = Duration::from_secs(12);
/// A gateway answers Waiting after this, so that it is not taken for dead; its wish for the table stays.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// A wish for a table's lock ends after this, unless it is told again.
const WISH_MAX: Duration = Duration::from_secs(60);
/// Freezes of other gateways at once; one more is refused. C1 makes one DDL transaction at a time.
const FREEZES_MAX: usize = 1_000;
/// Ended freezes that are remembered for G5; the oldest are forgotten (their messages are too late by then).
const ENDED_MAX: usize = 1_000;
/// How often a committed change is told again before the statement returns with a warning, and the pause between.
const PUBLISH_ATTEMPTS_MAX: usize = 4;
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);
/// The same in the background, after that: for about an hour. Then only the next change tells it.
const LATE_ATTEMPTS_MAX: usize = 720;
const LATE_PAUSE: Duration = Duration::from_secs(5);

fn after(ts: Timestamp, by: Duration) -> Timestamp {
    ts.plus_micros(by.as_micros() as u64)
}

/// Tells all other gateways; their answers, decoded.
pub async fn tell(
    store: &Arc<dyn KvStore>,
    message: &Message,
) -> Result<Vec<(NodeId, Result<Answer, String>)>, kv::Error> {
    let answers = store.tell_gateways(message.encode(), TELL_WAIT_MAX).await?;
    let decode =
        |bytes: Bytes| Answer::decode(bytes).map_err(|e| format!("an answer that does not decode: {e}"));
    Ok(answers.into_iter().map(|(node, answer)| (node, answer.and_then(decode))).collect())
}

/// A table frozen here, or wanted.
struct Wanted {
    held: bool,
    wish: JoinHandle<()>,
}

struct Freeze {
    from: NodeId,
    owner: Owner,
    until: Timestamp,
    tables: BTreeMap<u32, Wanted>,
}

#[derive(Default)]
struct FreezesState {
    freezes: BTreeMap<TxnId, Freeze>,
    ended: VecDeque<TxnId>,
}

impl FreezesState {
    fn end(&mut self, id: TxnId) -> Option<Freeze> {
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(id);
        self.freezes.remove(&id)
    }
}

/// What other gateways have frozen here.
#[derive(Default)]
pub struct Freezes {
    state: Mutex<FreezesState>,
    changed: Notify,
}

impl Freezes {
    fn lock(&self) -> MutexGuard<'_, FreezesState> {
        // Map operations only, never across an await.
        self.state.lock().expect("no panic while the lock is held")
    }

    /// The tables that are frozen here, by oid.
    pub fn tables(&self) -> BTreeSet<u32> {
        let state = self.lock();
        let held =
            |f: &Freeze| f.tables.iter().filter(|(_, w)| w.held).map(|(oid, _)| *oid).collect::<Vec<_>>();
        state.freezes.values().flat_map(held).collect()
    }
}

impl Database {
    /// Freeze: see the file's head.
    async fn freeze(
        self: &Arc<Database>,
        from: NodeId,
        id: TxnId,
        held: &[u32],
        more: &[u32],
        until: Timestamp,
        wait_max: Duration,
    ) -> Result<Answer, String> {
        let now = self.store().now();
        if until > after(now, FREEZE_AHEAD_MAX) {
            return Err(format!("a freeze until {until} is too far ahead of this node's clock, {now}"));
        }
        if until <= now {
            return Ok(Answer::Lost);
        }
        let freezes = self.freezes();
        {
            let mut state = freezes.lock();
            if state.ended.contains(&id) {
                return Ok(Answer::Lost);
            }
            if !state.freezes.contains_key(&id) {
                if !held.is_empty() {
                    return Ok(Answer::Lost);
                }
                if state.freezes.len() >= FREEZES_MAX {
                    return Err("too many schema changes at once".to_string());
                }
                let owner = self.next_owner();
                state.freezes.insert(id, Freeze { from, owner, until, tables: BTreeMap::new() });
                drop(tokio::spawn(end_of_freeze(self.clone(), id)));
            }
            let Some(freeze) = state.freezes.get_mut(&id) else { return Ok(Answer::Lost) };
            if held.iter().any(|t| freeze.tables.get(t).is_none_or(|w| !w.held)) {
                return Ok(Answer::Lost);
            }
            freeze.until = freeze.until.max(until);
            for &table in more {
                let wished = freeze.tables.get(&table).is_some_and(|w| w.held || !w.wish.is_finished());
                if !wished {
                    if freeze.tables.len() >= TABLES_MAX {
                        return Err("too many tables in one schema change".to_string());
                    }
                    let wish = tokio::spawn(wish(self.clone(), id, freeze.owner, table));
                    freeze.tables.insert(table, Wanted { held: false, wish });
                }
            }
        }
        let mut timeout = self.timer().sleep(wait_max.min(ANSWER_WAIT));
        loop {
            let changed = freezes.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match freezes.lock().freezes.get(&id) {
                None => return Ok(Answer::Lost),
                Some(f) if more.iter().all(|t| f.tables.get(t).is_some_and(|w| w.held)) => {
                    return Ok(Answer::Frozen);
                }
                Some(_) => {}
            }
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = &mut timeout => return Ok(Answer::Waiting),
            }
        }
    }

    /// The DDL's gateway says that its transaction has ended.
    fn let_go(&self, id: TxnId) {
        let freezes = self.freezes();
        let ended = freezes.lock().end(id);
        if let Some(freeze) = ended {
            self.thaw(freeze, false);
        }
        freezes.changed.notify_waiters();
    }

    /// Gives back what a freeze holds. `doubt`: G2.
    fn thaw(&self, freeze: Freeze, doubt: bool) {
        if doubt && freeze.tables.values().any(|w| w.held) {
            self.catalog().mark_doubtful();
        }
        for wanted in freeze.tables.values() {
            wanted.wish.abort();
        }
        self.locks().release(freeze.owner, freeze.tables.into_keys());
    }

    /// Publish: the catalog is doubtful from here on, so that nobody uses the old one; reading it now only spares the
    /// next statement the wait.
    async fn published(self: &Arc<Database>, id: TxnId, version: u64) -> Answer {
        let before = self.catalog().current();
        if before.version < version {
            self.catalog().expect_version(version);
        }
        self.let_go(id);
        tokio::select! {
            biased;
            read = self.settle() => if let Err(e) = read {
                debug!(error = %e, version, "the catalog was not read when it was told of; the next statement does");
            },
            () = self.timer().sleep(ANSWER_WAIT) => {}
        }
        let now = self.catalog().current();
        for sequence in before.sequences().filter(|s| now.sequence_by_oid(s.oid).is_none()) {
            self.sequences().forget(sequence.oid);
        }
        Answer::Done
    }

    /// A message of another gateway.
    async fn told(self: &Arc<Database>, from: NodeId, message: Bytes) -> Result<Answer, String> {
        match Message::decode(message).map_err(|e| e.to_string())? {
            Message::Freeze { id, held, more, until, wait_ms } => {
                let wait_max = Duration::from_millis(wait_ms);
                self.freeze(from, id, &held, &more, until, wait_max).await
            }
            Message::Publish { id, version } => Ok(self.published(id, version).await),
            Message::Release { id } => {
                self.let_go(id);
                Ok(Answer::Done)
            }
            Message::Sequence { oid, epoch, base } => {
                self.sequences().know(oid, base, epoch);
                Ok(Answer::Done)
            }
        }
    }

    /// The schema lease was lost. Freezes go: what they were to keep apart is kept apart by the fence now.
    fn lease_lost(&self) {
        // First (A3): a transaction that begins after the loss of the lease finds its session's claims ended.
        self.advisory().lease_lost();
        self.catalog().lease_lost();
        self.sequences().forget_all();
        let freezes = std::mem::take(&mut self.freezes().lock().freezes);
        for (_, freeze) in freezes {
            self.thaw(freeze, true);
        }
        self.freezes().changed.notify_waiters();
    }
}

/// Waits for a table's lock in the name of a freeze.
async fn wish(db: Arc<Database>, id: TxnId, owner: Owner, table: u32) {
    let got = db.locks().exclusive(table, owner, WISH_MAX, db.timer()).await;
    if got.is_err() {
        return;
    }
    // No await from here on: the task cannot be broken off between the lock and the note of it.
    let noted = {
        let mut state = db.freezes().lock();
        let wanted =
            state.freezes.get_mut(&id).filter(|f| f.owner == owner).and_then(|f| f.tables.get_mut(&table));
        wanted.map(|w| w.held = true).is_some()
    };
    if !noted {
        db.locks().release(owner, [table]);
    }
    db.freezes().changed.notify_waiters();
}

/// G2: lets go when the end of a freeze is past and nothing was heard.
async fn end_of_freeze(db: Arc<Database>, id: TxnId) {
    loop {
        let now = db.store().now();
        let (left, ended) = {
            let mut state = db.freezes().lock();
            let Some(freeze) = state.freezes.get(&id) else { return };
            if freeze.until >= now {
                (freeze.until.micros().saturating_sub(now.micros()), None)
            } else {
                // In the same step as the look at its end, which is moved by whoever prolongs it (G5).
                (0, state.end(id))
            }
        };
        if let Some(freeze) = ended {
            let (node, tables) = (freeze.from, freeze.tables.len());
            warn!(%node, tables, "a schema change of another node was not ended in time; its tables are free");
            db.thaw(freeze, true);
            return db.freezes().changed.notify_waiters();
        }
        db.timer().sleep(Duration::from_micros(left + 1_000)).await;
    }
}

/// The face of a database to other gateways.
pub struct DatabaseGateway(pub Weak<Database>);

impl Gateway for DatabaseGateway {
    fn told(&self, from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let db = self.0.upgrade();
        Box::pin(async move {
            let db = db.ok_or("the node is going down")?;
            db.told(from, message).await.map(Answer::encode)
        })
    }

    fn lease_lost(&self) {
        if let Some(db) = self.0.upgrade() {
            db.lease_lost();
        }
    }
}

struct HoldState {
    tables: BTreeSet<u32>,
    /// All other gateways keep them until then.
    until: Timestamp,
    /// Why it may not commit any more.
    broken: Option<Error>,
}

struct HoldShared {
    db: Arc<Database>,
    id: TxnId,
    since: Timestamp,
    state: Mutex<HoldState>,
}

/// The tables that a DDL transaction of this gateway has frozen at the others. Dropped, it lets them go: to be taken for
/// a rollback; after a COMMIT, [`Hold::forget`] it.
pub struct Hold {
    shared: Arc<HoldShared>,
    prolonger: JoinHandle<()>,
    over: bool,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

fn lost(node: NodeId) -> Error {
    Error::new(
        SqlState::SERIALIZATION_FAILURE,
        format!("could not serialize access: node {node} no longer keeps the table for this schema change"),
    )
    .with_hint("The statement might succeed if retried.")
}

impl HoldShared {
    fn lock(&self) -> MutexGuard<'_, HoldState> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Tells a Freeze. True: all have them; false: somebody still waits.
    async fn freeze(&self, more: Vec<u32>, wait_max: Duration) -> Result<bool, Error> {
        let held: Vec<u32> = self.lock().tables.iter().copied().collect();
        let until = after(self.db.store().now(), FREEZE_FOR);
        let wait_ms = wait_max.min(ANSWER_WAIT).as_millis() as u64;
        let message = Message::Freeze { id: self.id, held, more: more.clone(), until, wait_ms };
        let mut all = true;
        for (node, answer) in tell(self.db.store(), &message).await.map_err(kv_error)? {
            match answer {
                Ok(Answer::Frozen) => {}
                Ok(Answer::Waiting) => all = false,
                Ok(Answer::Lost) => return Err(lost(node)),
                Ok(Answer::Done) => {
                    return Err(Error::internal(format!("node {node} answers Done to a freeze")));
                }
                Err(why) => {
                    return Err(Error::new(
                        SqlState::CANNOT_CONNECT_NOW,
                        format!("node {node} cannot keep the table for this schema change: {why}"),
                    ));
                }
            }
        }
        if all {
            let mut state = self.lock();
            state.tables.extend(more);
            state.until = state.until.max(until);
        }
        Ok(all)
    }

    async fn prolong(&self) -> Result<(), Error> {
        if self.db.store().now() > after(self.since, HOLD_MAX) {
            return Err(Error::new(
                SqlState::LOCK_NOT_AVAILABLE,
                format!("a schema change cannot keep its tables for longer than {} s", HOLD_MAX.as_secs()),
            ));
        }
        match self.freeze(Vec::new(), Duration::ZERO).await? {
            true => Ok(()),
            false => Err(Error::internal("a freeze that holds cannot be waiting")),
        }
    }
}

/// Prolongs until it is broken off, or the hold is broken.
async fn prolong(shared: Arc<HoldShared>) {
    loop {
        shared.db.timer().sleep(PROLONG_EVERY).await;
        if shared.lock().tables.is_empty() {
            continue;
        }
        match shared.prolong().await {
            Ok(()) => {}
            // As long as the old end is not past, another attempt may succeed.
            Err(e) if e.sqlstate == SqlState::CANNOT_CONNECT_NOW => {
                debug!(error = %e, "freezes were not prolonged")
            }
            Err(e) => {
                shared.lock().broken = Some(e);
                return;
            }
        }
    }
}

impl Hold {
    /// For the DDL transaction `id`; nothing is frozen yet.
    pub fn new(db: &Arc<Database>, id: TxnId) -> Hold {
        let state = HoldState { tables: BTreeSet::new(), until: Timestamp::MIN, broken: None };
        let since = db.store().now();
        let shared = Arc::new(HoldShared { db: db.clone(), id, since, state: Mutex::new(state) });
        Hold { prolonger: tokio::spawn(prolong(shared.clone())), shared, over: false }
    }

    /// Freezes a table at all other gateways; waits for the transactions that use it there.
    pub async fn add(&self, table: u32, wait_max: Duration) -> Result<(), Error> {
        if self.shared.lock().tables.contains(&table) {
            return Ok(());
        }
        let db = &self.shared.db;
        let began = db.env().clock.monotonic_ns();
        loop {
            self.check()?;
            let waited = Duration::from_nanos(db.env().clock.monotonic_ns().saturating_sub(began));
            let left = wait_max.saturating_sub(waited);
            if self.shared.freeze(vec![table], left).await? {
                return Ok(());
            }
            if left.is_zero() {
                return Err(super::locks::timed_out());
            }
        }
    }

    /// May the transaction still commit, as far as is known?
    pub fn check(&self) -> Result<(), Error> {
        self.shared.lock().broken.clone().map_or(Ok(()), Err)
    }

    /// At COMMIT: until when the freezes hold, some time ahead.
    pub async fn seal(&self) -> Result<Timestamp, Error> {
        self.check()?;
        let now = self.shared.db.store().now();
        if self.shared.lock().until < after(now, COMMIT_ROOM) {
            self.shared.prolong().await?;
        }
        Ok(self.shared.lock().until)
    }

    /// It is not released: everybody was told of the COMMIT, or its outcome is unknown (G6).
    pub fn forget(mut self) {
        self.over = true;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.prolonger.abort();
        let shared = self.shared.clone();
        if self.over {
            return;
        }
        // Who does not hear it lets go at the freeze's end.
        let release = async move {
            if let Err(e) = tell(shared.db.store(), &Message::Release { id: shared.id }).await {
                debug!(error = %e, "freezes were not released; they end by themselves");
            }
        };
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            drop(handle.spawn(release));
        }
    }
}

/// A committed change is told to all; false: not all have heard it yet, and it is told on in the background.
pub async fn publish(db: &Arc<Database>, id: TxnId, version: u64) -> bool {
    let message = Message::Publish { id, version };
    if publish_within(db, &message, PUBLISH_ATTEMPTS_MAX, PUBLISH_PAUSE).await {
        return true;
    }
    warn!(version, "a schema change is committed, but not every node has heard of it yet");
    let db = db.clone();
    drop(tokio::spawn(async move {
        if !publish_within(&db, &message, LATE_ATTEMPTS_MAX, LATE_PAUSE).await {
            warn!(version, "a schema change was not heard everywhere; the next one tells of it");
        }
    }));
    false
}

async fn publish_within(db: &Arc<Database>, message: &Message, attempts_max: usize, pause: Duration) -> bool {
    for attempt in 0..attempts_max {
        if attempt > 0 {
            db.timer().sleep(pause).await;
        }
        match tell(db.store(), message).await {
            Ok(answers) => {
                let deaf = answers.iter().filter(|(_, a)| *a != Ok(Answer::Done)).count();
                if deaf == 0 {
                    return true;
                }
                debug!(nodes = deaf, "some nodes did not take a schema change");
            }
            Err(e) => debug!(error = %e, "a schema change was not told"),
        }
    }
    false
}
