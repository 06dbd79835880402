//! One shard on this node: its replicated state, and what its leaseholder keeps in memory.
//!
//!     any thread ── read / evaluate ──▶ mutex ──▶ engine (outside the mutex)
//!                        │                ▲
//!                        ▼ propose        │ after_write: in-flight entries go, waiters wake, replies leave
//!                    the shard's log ──▶ apply (one thread) ──▶ batch ──▶ engine
//!
//! Invariants
//!   S1  The mutex is held for memory only: never over an engine call, a wait, or a proposal.
//!   S2  `repl` is what the entries applied so far made, whether or not the engine shows it yet. Whatever the engine
//!       does not show yet stands in `standing`: a write in flight or prepared leaves it in `after_write` only. So who
//!       finds nothing standing on a key at or below T finds everything at or below T in the engine.
//!   S3  A proposal of this term stands in `inflight` (R3) until it was applied, or is certainly not logged, or the term
//!       is over. A lost answer removes nothing.
//!   S4  Nothing is read, validated or cached unless `serving`: an entry of the own term was applied and is visible,
//!       and the cache's low is at least the read limit of every predecessor (R1). Reads and validations also need
//!       the lease: the monotonic clock below `lease_until`, once more after the engine answered (D9).
//!   S5  Recorded reads never pass `repl.read_limit` (R1); a validation inside a prepare may, up to the limit that
//!       its own entry carries: it counts only if that entry is applied.
//!   S6  The clock has seen every timestamp of an entry before anybody hears of the entry: so a write acknowledged
//!       before a read began is at or below the leaseholder's clock (R5, see `read`).
//!   S7  While the shard is handed over (`handing_over`) nothing is served, evaluated or proposed but the entries of
//!       the hand-over itself (see `handover`).
//!
//! A key under evaluation is latched: a write in flight whose p is not known yet. Reads pass it (p will lie above
//! them, because they are in the cache when p is chosen); writers wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use isochrone_base::{
    Key, KeyRange, LogIndex, Members, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId, bank,
};
use isochrone_clock::Hlc;
use isochrone_storage::Engine;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use crate::api::{BoxFuture, Error, Suspect};
use crate::command::{Command, Entry};
use crate::config::{Config, us};
use crate::follower::Following;
use crate::outcome::Outcome;
use crate::proposer::{Applied, ProposeError};
use crate::record::{PreparedPiece, RecordKey, Replicated};
use crate::tscache::{TsCache, key_hash};

/// Proposals of one shard that may be in flight; one more is answered "not served" (the caller backs off).
pub const INFLIGHT_MAX: usize = 65_536;

/// What waits for the shard to serve, for its read limit to rise, for the lease, and for nothing to be in flight.
const SERVE: u64 = u64::MAX;
pub(crate) const LIMIT: u64 = u64::MAX - 1;
const LEASE: u64 = u64::MAX - 2;
pub(crate) const IDLE: u64 = u64::MAX - 3;

/// A write under evaluation or in flight.
#[derive(Debug)]
pub(crate) struct Latch {
    pub(crate) seq: u64,
    pub(crate) txn: TxnId,
    /// The p it was proposed with; `MAX` while it is not known. Written and read under the shard's mutex.
    p: AtomicU64,
}

impl Latch {
    pub(crate) fn p(&self) -> Timestamp {
        Timestamp(self.p.load(Ordering::Relaxed))
    }

    pub(crate) fn set_p(&self, p: Timestamp) {
        self.p.store(p.0, Ordering::Relaxed);
    }
}

/// What stands on a key and is not yet a version that everybody sees.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    InFlight(Arc<Latch>),
    Prepared(Arc<PreparedPiece>),
}

impl Standing {
    pub(crate) fn txn(&self) -> TxnId {
        match self {
            Standing::InFlight(l) => l.txn,
            Standing::Prepared(p) => p.piece.txn,
        }
    }

    pub(crate) fn p(&self) -> Timestamp {
        match self {
            Standing::InFlight(l) => l.p(),
            Standing::Prepared(p) => p.p,
        }
    }
}

/// A proposal under evaluation or in flight.
pub(crate) struct InFlight {
    pub(crate) latch: Arc<Latch>,
    pub(crate) keys: Vec<Key>,
    pub(crate) piece: Option<(TxnId, PieceNo)>,
    done: Option<oneshot::Sender<Outcome>>,
}

/// What stands in the way of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Obstacle {
    /// A prepared write of another transaction on a key.
    Prepared,
    /// A write of another transaction in flight on a key.
    InFlight,
    /// A copy of the same request.
    Copy,
    /// The first entry of the leader's own term (R1).
    FirstEntry,
    /// The lease has run out and may be renewed (D9).
    Lease,
    /// Somebody else's renewal of the read limit.
    Renewal,
    /// Proposals in flight, of a shard that is handed over.
    Proposals,
}

impl Obstacle {
    /// For messages.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Obstacle::Prepared => "a prepared write",
            Obstacle::InFlight => "a write in flight",
            Obstacle::Copy => "a copy of the same request",
            Obstacle::FirstEntry => "the first entry of the leader's term",
            Obstacle::Lease => "the renewal of the leader's lease",
            Obstacle::Renewal => "the renewal of the read limit",
            Obstacle::Proposals => "proposals in flight",
        }
    }

    /// A write of another transaction on a key; otherwise the shard itself, or a copy of the same request.
    pub(crate) fn on_key(self) -> bool {
        matches!(self, Obstacle::Prepared | Obstacle::InFlight)
    }
}

/// Something stands in the way; `gone` resolves (with or without a value) when it is worth looking again.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) gone: oneshot::Receiver<()>,
    /// Whom to recover if it takes too long; `None` for proposals in flight, which need no help.
    pub(crate) suspect: Option<Suspect>,
    /// What it is.
    pub(crate) what: Obstacle,
}

/// An evaluated command, ready to be proposed.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) entry: Entry,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// A proposal whose request was dropped before its fate was known.
pub(crate) struct LeftAlone {
    pub(crate) term: Term,
    pub(crate) seq: u64,
    pub(crate) fate: BoxFuture<'static, Result<Applied, ProposeError>>,
}

/// What `after_write` has to do for an entry.
pub(crate) struct Effect {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    /// Term and number of the proposal; `None` for the empty entry.
    pub(crate) proposal: Option<(Term, u64)>,
    pub(crate) outcome: Outcome,
    /// Closed behind the entry.
    pub(crate) closed: Timestamp,
    /// A prepare that is resolved.
    pub(crate) resolved: Option<Arc<PreparedPiece>>,
    /// The right half of a split.
    pub(crate) created: Option<Arc<Shard>>,
    /// The shard's range has changed.
    pub(crate) shrunk: bool,
}

pub(crate) struct Inner {
    pub(crate) repl: Replicated,
    pub(crate) standing: BTreeMap<Key, Vec<Standing>>,
    pub(crate) pending: VecDeque<Effect>,
    /// The term this node leads in; 0: it does not.
    pub(crate) term: Term,
    /// Who leads the shard, as far as this node knows.
    pub(crate) leader: Option<NodeId>,
    pub(crate) serving: bool,
    /// When a hand-over began, by the monotonic clock (S7).
    pub(crate) handing_over: Option<u64>,
    /// A snapshot is taking this replica's place.
    pub(crate) retired: bool,
    /// The leadership was lost, and the locks in memory have not been forgotten yet.
    pub(crate) left: bool,
    pub(crate) cache: TsCache,
    next_seq: u64,
    pub(crate) inflight: BTreeMap<u64, InFlight>,
    /// Of these, those that nobody waits for.
    left_alone: Vec<LeftAlone>,
    pub(crate) by_piece: FxHashMap<(TxnId, PieceNo), u64>,
    /// The highest closed timestamp proposed, or told to others, in this term: every p chosen lies above it (F1).
    pub(crate) closed_proposed: Timestamp,
    /// The highest of them that went into an entry.
    pub(crate) closed_logged: Timestamp,
    pub(crate) following: Following,
    pub(crate) limit_proposed: Timestamp,
    waiters: FxHashMap<u64, Vec<oneshot::Sender<()>>>,
    /// Somebody read since the last look: the lease is worth renewing.
    pub(crate) read_lately: bool,
    pub(crate) stopped: Option<String>,
    /// Counts entries whose effects became visible.
    pub(crate) visible: u64,
    /// The last index that the engine is known to hold.
    pub(crate) written: LogIndex,
}

/// What inspection shows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardState {
    /// Its id.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// Counts the changes of its range.
    pub epoch: u64,
    /// Last applied index.
    pub applied: LogIndex,
    /// Term of the last applied entry.
    pub applied_term: Term,
    /// The term this node leads it in, if it does.
    pub leads: Option<Term>,
    /// It answers reads and writes.
    pub serving: bool,
    /// R20.
    pub floor: Timestamp,
    /// No new write at or below, by the log.
    pub closed: Timestamp,
    /// The same, as the leaseholder's node has told this one; it counts here (F3).
    pub told_closed: Timestamp,
    /// `min(closed, lowest unresolved p - 1)`: nothing at or below will ever change.
    pub resolved: Timestamp,
    /// Nothing below can be read.
    pub gc_threshold: Timestamp,
    /// The members of its group.
    pub members: Members,
    /// Who leads it, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Reads are served until this moment of the monotonic clock; `MAX`: without a bound. 0 where it is not led.
    pub lease_until_ns: u64,
    /// It is being handed over to another node.
    pub handing_over: bool,
    /// No replica needs its log up to here.
    pub truncate_to: LogIndex,
    /// The leaseholder.
    pub holder: NodeId,
    /// Nothing above was served.
    pub read_limit: Timestamp,
    /// Unresolved prepares.
    pub prepared: usize,
    /// Candidate timestamp of the oldest unresolved prepare.
    pub oldest_prepare: Option<Timestamp>,
    /// Decided records kept.
    pub tombstones: usize,
    /// Proposals in flight.
    pub inflight: usize,
    /// About how many bytes its versions take.
    pub bytes: u64,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}

/// One shard. See the module.
pub struct Shard {
    pub(crate) id: ShardId,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<Hlc>,
    pub(crate) node: NodeId,
    pub(crate) config: Arc<Config>,
    inner: Mutex<Inner>,
    /// The term in which reads are served now, 0 for none: looked at again after the engine answered.
    pub(crate) serving_term: AtomicU64,
    /// Reads and validations are allowed while the monotonic clock is below; 0: not led. Written under the mutex.
    lease_until: AtomicU64,
    pub(crate) gc_threshold: AtomicU64,
    /// Held from the first entry of a batch to its `after_write`, and by garbage collection.
    pub(crate) applying: Mutex<()>,
}

pub(crate) fn piece_hash(txn: TxnId, piece: PieceNo) -> u64 {
    (txn.0 as u64)
        ^ ((txn.0 >> 64) as u64).rotate_left(32)
        ^ u64::from(piece).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Inner {
    /// The first thing of another transaction on a key for which `stops` holds.
    pub(crate) fn standing_on(
        &self,
        key: &[u8],
        txn: TxnId,
        stops: impl Fn(&Standing) -> bool,
    ) -> Option<&Standing> {
        if self.standing.is_empty() {
            return None;
        }
        self.standing.get(key)?.iter().find(|s| s.txn() != txn && stops(s))
    }

    /// The same for a range, with its key.
    pub(crate) fn standing_in(
        &self,
        range: &KeyRange,
        txn: TxnId,
        stops: impl Fn(&Standing) -> bool,
    ) -> Option<(&Key, &Standing)> {
        if self.standing.is_empty() || range.is_empty() {
            return None;
        }
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_slice()) };
        self.standing
            .range::<[u8], _>((Bound::Included(range.start.as_slice()), end))
            .find_map(|(k, list)| list.iter().find(|s| s.txn() != txn && stops(s)).map(|s| (k, s)))
    }

    pub(crate) fn stand(&mut self, key: Key, what: Standing) {
        self.standing.entry(key).or_default().push(what);
    }

    fn unstand(&mut self, key: &[u8], is: impl Fn(&Standing) -> bool) {
        if let Some(list) = self.standing.get_mut(key) {
            list.retain(|s| !is(s));
            if list.is_empty() {
                self.standing.remove(key);
            }
        }
    }

    pub(crate) fn wait(&mut self, hash: u64) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        let list = self.waiters.entry(hash).or_default();
        list.retain(|w| !w.is_closed());
        list.push(tx);
        rx
    }

    pub(crate) fn blocked_by(&mut self, hash: u64, by: Option<&Standing>) -> Blocked {
        let (suspect, what) = match by {
            Some(Standing::Prepared(p)) => (Some(p.suspect()), Obstacle::Prepared),
            Some(Standing::InFlight(_)) => (None, Obstacle::InFlight),
            None => (None, Obstacle::Copy),
        };
        Blocked { gone: self.wait(hash), suspect, what }
    }

    /// What a request waits for that nobody can be asked to hurry.
    pub(crate) fn blocked(&mut self, hash: u64, what: Obstacle) -> Blocked {
        Blocked { gone: self.wait(hash), suspect: None, what }
    }

    pub(crate) fn wake(&mut self, hash: u64) {
        if !self.waiters.is_empty()
            && let Some(list) = self.waiters.remove(&hash)
        {
            for w in list {
                let _ = w.send(());
            }
        }
    }

    /// Everybody looks again.
    pub(crate) fn wake_all(&mut self) {
        self.waiters.clear();
    }

    /// Registers a command under evaluation. Its keys are latched; p is not known.
    pub(crate) fn register(&mut self, txn: TxnId, piece: Option<(TxnId, PieceNo)>, keys: Vec<Key>) -> u64 {
        self.next_seq += 1;
        let seq = self.next_seq;
        let latch = Arc::new(Latch { seq, txn, p: AtomicU64::new(u64::MAX) });
        for key in &keys {
            self.stand(key.clone(), Standing::InFlight(latch.clone()));
        }
        if let Some(id) = piece {
            self.by_piece.insert(id, seq);
        }
        self.inflight.insert(seq, InFlight { latch, keys, piece, done: None });
        seq
    }

    /// Takes a proposal out (S3) and wakes who waits for it.
    pub(crate) fn unregister(&mut self, seq: u64) -> Option<oneshot::Sender<Outcome>> {
        let gone = self.inflight.remove(&seq)?;
        for key in &gone.keys {
            self.unstand(key, |s| matches!(s, Standing::InFlight(l) if l.seq == seq));
            self.wake(key_hash(key));
        }
        if let Some((txn, piece)) = gone.piece {
            self.by_piece.remove(&(txn, piece));
            self.wake(piece_hash(txn, piece));
        }
        if self.inflight.is_empty() {
            self.wake(IDLE);
        }
        gone.done
    }

    /// The lowest p in flight.
    pub(crate) fn lowest_in_flight(&self) -> Option<Timestamp> {
        self.inflight.values().map(|f| f.latch.p()).min()
    }

    pub(crate) fn unprepare(&mut self, p: &Arc<PreparedPiece>) {
        for w in &p.piece.writes {
            self.unstand(&w.key, |s| matches!(s, Standing::Prepared(x) if Arc::ptr_eq(x, p)));
            self.wake(key_hash(&w.key));
        }
    }

    pub(crate) fn index_prepared(&mut self, p: &Arc<PreparedPiece>) {
        for w in &p.piece.writes {
            self.stand(w.key.clone(), Standing::Prepared(p.clone()));
        }
    }

    fn forget_leadership(&mut self) {
        self.serving = false;
        self.handing_over = None;
        let seqs: Vec<u64> = self.inflight.keys().copied().collect();
        for seq in seqs {
            drop(self.unregister(seq));
        }
        self.by_piece.clear();
        self.closed_proposed = Timestamp::MIN;
        self.closed_logged = Timestamp::MIN;
        self.limit_proposed = Timestamp::MIN;
        self.cache = TsCache::default();
        self.waiters.clear();
    }
}

impl Shard {
    pub(crate) fn new(
        repl: Replicated,
        engine: Arc<dyn Engine>,
        clock: Arc<Hlc>,
        node: NodeId,
        config: Arc<Config>,
    ) -> Shard {
        let mut inner = Inner {
            standing: BTreeMap::new(),
            pending: VecDeque::new(),
            term: 0,
            leader: None,
            serving: false,
            handing_over: None,
            retired: false,
            left: false,
            cache: TsCache::default(),
            next_seq: 0,
            inflight: BTreeMap::new(),
            left_alone: Vec::new(),
            by_piece: FxHashMap::default(),
            closed_proposed: Timestamp::MIN,
            closed_logged: Timestamp::MIN,
            following: Following::new(repl.closed),
            limit_proposed: Timestamp::MIN,
            waiters: FxHashMap::default(),
            read_lately: false,
            stopped: None,
            visible: 0,
            written: repl.applied,
            repl,
        };
        let prepared: Vec<Arc<PreparedPiece>> = inner.repl.prepared.values().cloned().collect();
        for p in prepared.iter().filter(|_| !bank::has("prepares-forgotten-at-start")) {
            inner.index_prepared(p);
        }
        Shard {
            id: inner.repl.shard,
            engine,
            clock,
            node,
            config,
            gc_threshold: AtomicU64::new(inner.repl.gc_threshold.0),
            inner: Mutex::new(inner),
            serving_term: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            applying: Mutex::new(()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while a shard is locked")
    }

    /// Its id.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Does this node lead it? (It may not serve yet.)
    pub fn leads(&self) -> bool {
        self.lock().term != 0
    }

    /// Who leads it, as far as this replica knows, and the nodes that have a replica.
    pub fn leader_and_voters(&self) -> (Option<NodeId>, Vec<NodeId>) {
        let g = self.lock();
        (g.leader, g.repl.members.voting())
    }

    /// Its keys.
    pub fn range(&self) -> KeyRange {
        self.lock().repl.range.clone()
    }

    /// This node leads the shard from now on, in this term. It serves once an entry of the term was applied (R1).
    /// Everything volatile of earlier terms is gone (T13), the lease among it.
    pub(crate) fn lead(&self, term: Term) {
        let mut g = self.lock();
        g.leader = Some(self.node);
        if g.term == term {
            return;
        }
        self.stop_serving(&mut g);
        self.lease_until.store(0, Ordering::Release);
        g.forget_leadership();
        g.term = term;
        if bank::has("serves-before-its-first-entry") {
            g.cache = TsCache::new(g.repl.read_limit);
            self.start_serving(&mut g);
        }
    }

    /// This node does not lead the shard any more.
    pub(crate) fn follow(&self, leader: Option<NodeId>) {
        let mut g = self.lock();
        g.leader = leader;
        if g.term == 0 {
            return;
        }
        self.stop_serving(&mut g);
        self.lease_until.store(0, Ordering::Release);
        g.forget_leadership();
        g.term = 0;
        g.left = true;
    }

    /// D9: reads may be served until this moment of the monotonic clock. A lease of another term is none.
    pub(crate) fn lease(&self, term: Term, until_ns: u64) {
        let mut g = self.lock();
        if g.term == term && term != 0 {
            let until_ns = if bank::has("lease-does-not-end") { u64::MAX } else { until_ns };
            self.lease_until.store(until_ns, Ordering::Release);
            g.wake(LEASE);
        }
    }

    /// D9: does the lease hold now?
    pub(crate) fn leased(&self) -> bool {
        let until = self.lease_until.load(Ordering::Acquire);
        until == u64::MAX || self.clock.monotonic_ns() < until
    }

    pub(crate) fn wait_lease(&self, g: &mut Inner) -> Blocked {
        g.blocked(LEASE, Obstacle::Lease)
    }

    /// Nothing is read or evaluated from now on.
    pub(crate) fn stop_serving(&self, g: &mut Inner) {
        self.serving_term.store(0, Ordering::Release);
        g.serving = false;
    }

    /// R1 holds: the shard serves.
    pub(crate) fn start_serving(&self, g: &mut Inner) {
        g.serving = true;
        self.serving_term.store(g.term, Ordering::Release);
        g.wake(SERVE);
    }

    /// A snapshot takes this replica's place: nothing is answered or written for it any more.
    pub(crate) fn retire(&self) {
        self.follow(None);
        self.lock().retired = true;
        // Whoever is writing for it is done when this returns.
        drop(self.applying.lock().expect("nothing panics while entries are applied"));
    }

    /// The shard answers nothing from now on but this reason.
    pub(crate) fn stop(&self, reason: &str) {
        let mut g = self.lock();
        self.stop_serving(&mut g);
        if g.stopped.is_none() {
            g.stopped = Some(reason.to_string());
        }
        g.waiters.clear();
    }

    /// Is it served here, in which term? `Ok(None)`: soon.
    pub(crate) fn served(&self, g: &Inner) -> Result<Option<Term>, Error> {
        if let Some(why) = &g.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        if g.retired {
            return Err(Error::NotServed(format!("shard {} is being replaced by a snapshot", self.id)));
        }
        if g.term == 0 {
            return Err(Error::NotLeader { shard: self.id, leader: g.leader });
        }
        if g.handing_over.is_some() {
            // Who will lead is not known yet.
            return Err(Error::NotLeader { shard: self.id, leader: None });
        }
        Ok(g.serving.then_some(g.term))
    }

    pub(crate) fn wait_serving(&self, g: &mut Inner) -> Blocked {
        g.blocked(SERVE, Obstacle::FirstEntry)
    }

    /// After the engine answered: is it still this term's leaseholder who answers (D9), above the GC threshold?
    /// `Ok(Some)`: the lease has run out meanwhile.
    pub(crate) fn still_serving(&self, term: Term, ts: Timestamp) -> Result<Option<Blocked>, Error> {
        // The lease first: that the term still is this one shows afterwards that it was this term's lease.
        let leased = self.leased();
        if self.serving_term.load(Ordering::Acquire) != term {
            let g = self.lock();
            self.served(&g)?;
            return Err(Error::NotServed(format!("leadership of shard {} changed", self.id)));
        }
        let threshold = Timestamp(self.gc_threshold.load(Ordering::Acquire));
        if ts < threshold {
            return Err(Error::BelowThreshold { ts, threshold });
        }
        if leased {
            return Ok(None);
        }
        let mut g = self.lock();
        let blocked = self.wait_lease(&mut g);
        if self.leased() {
            g.wake(LEASE); // renewed between the two looks
        }
        Ok(Some(blocked))
    }

    pub(crate) fn not_here(&self, key: &[u8]) -> Error {
        Error::NotServed(format!("key {key:02x?} is not in shard {}", self.id))
    }

    /// The header's read limit for an entry proposed now: renewed when the shard is being read and less than half is
    /// left, and at least `needed`.
    fn limit_to_carry(&self, g: &Inner, needed: Timestamp) -> Timestamp {
        // What is needed must be applied already, or travel with this very entry: one in flight may be lost.
        let ahead = us(self.config.lease_ahead);
        let needed = if needed > g.repl.read_limit { needed } else { Timestamp::MIN };
        if needed == Timestamp::MIN && !g.read_lately {
            return Timestamp::MIN;
        }
        let now = self.clock.latest();
        let have = g.repl.read_limit.max(g.limit_proposed);
        if needed == Timestamp::MIN && have >= now.plus_micros(ahead / 2) {
            return Timestamp::MIN;
        }
        needed.max(now.plus_micros(ahead))
    }

    /// The closed timestamp for an entry proposed now: below everything in flight, and behind the clock.
    pub(crate) fn closed_to_carry(&self, g: &Inner, step_us: u64) -> Timestamp {
        let mut to = self.clock.latest().minus_micros(us(self.config.closed_lag));
        if to <= g.repl.closed.max(g.closed_logged).plus_micros(step_us) {
            return Timestamp::MIN;
        }
        if let Some(p) = g.lowest_in_flight() {
            to = to.min(p.prev());
        }
        if to > g.repl.closed.max(g.closed_logged) { to } else { Timestamp::MIN }
    }

    /// Turns a registered evaluation into a proposal.
    pub(crate) fn proposal(
        &self,
        g: &mut Inner,
        seq: u64,
        command: Command,
        limit_needed: Timestamp,
    ) -> Proposal {
        let closed = self.closed_to_carry(g, 100_000);
        let read_limit = self.limit_to_carry(g, limit_needed);
        g.closed_proposed = g.closed_proposed.max(closed);
        g.closed_logged = g.closed_logged.max(closed);
        g.limit_proposed = g.limit_proposed.max(read_limit);
        let (tx, outcome) = oneshot::channel();
        g.inflight.get_mut(&seq).expect("registered before it is proposed").done = Some(tx);
        let term = g.term;
        Proposal { entry: Entry { term, seq, closed, read_limit, command }, outcome }
    }

    /// Registers and proposes a command that latches no keys.
    pub(crate) fn propose_plain(&self, g: &mut Inner, command: Command, limit_needed: Timestamp) -> Proposal {
        let seq = g.register(TxnId(0), None, Vec::new());
        self.proposal(g, seq, command, limit_needed)
    }

    /// Nobody waits for the fate of a proposal any more; the duties do (S3).
    pub(crate) fn left_alone(&self, left: LeftAlone) {
        let mut g = self.lock();
        if g.term == left.term && g.inflight.contains_key(&left.seq) {
            g.left_alone.push(left);
        }
    }

    /// Looks at proposals that nobody waits for: what is certainly not logged is in nobody's way any more.
    pub(crate) fn look_after_left_alone(&self) {
        let left = std::mem::take(&mut self.lock().left_alone);
        for mut one in left {
            match one.fate.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.left_alone(one),
                Poll::Ready(Err(ProposeError::NotLeader | ProposeError::Overloaded)) => {
                    self.not_logged(one.term, one.seq);
                }
                Poll::Ready(_) => {}
            }
        }
    }

    /// A proposal is certainly not logged (S3).
    pub(crate) fn not_logged(&self, term: Term, seq: u64) {
        let mut g = self.lock();
        if g.term == term {
            drop(g.unregister(seq));
            g.limit_proposed = g.repl.read_limit;
            g.wake(LIMIT);
        }
    }

    /// The batch that holds the entries up to `index` is visible in the engine: now others may see it. Returns the
    /// shards that were created, and whether the shard's own range has changed.
    pub(crate) fn after_write(&self, index: LogIndex) -> (Vec<Arc<Shard>>, bool) {
        let mut created = Vec::new();
        let mut shrunk = false;
        let mut g = self.lock();
        let g = &mut *g;
        // S6: before anybody hears of it.
        self.clock.update(g.repl.newest);
        while g.pending.front().is_some_and(|e| e.index <= index) {
            let effect = g.pending.pop_front().expect("looked at just now");
            g.visible += 1;
            g.written = effect.index;
            g.following.visible_to(effect.index, effect.closed);
            if let Some(p) = &effect.resolved {
                g.unprepare(p);
            }
            created.extend(effect.created);
            shrunk |= effect.shrunk;
            if let Some((term, seq)) = effect.proposal
                && term == g.term
                && term == effect.term
                && let Some(done) = g.unregister(seq)
            {
                let _ = done.send(effect.outcome);
            }
            if effect.term == g.term && !g.serving && g.handing_over.is_none() && g.stopped.is_none() {
                // R1: an entry of the own term is visible, and with it everything any predecessor wrote.
                let low = if bank::has("no-low-water-mark") { Timestamp::MIN } else { g.repl.read_limit };
                g.cache = TsCache::new(low);
                self.start_serving(g);
            }
        }
        self.gc_threshold.store(g.repl.gc_threshold.0, Ordering::Release);
        g.wake(LIMIT);
        (created, shrunk)
    }

    /// The members of its group.
    pub(crate) fn members(&self, g: &Inner) -> Members {
        match g.repl.members.is_empty() {
            true => vec![self.node].into(),
            false => g.repl.members.clone(),
        }
    }

    /// What inspection shows.
    pub fn state(&self) -> ShardState {
        let mut state = self.state_light();
        state.bytes = isochrone_storage::mvcc::approximate_bytes(&*self.engine, &state.range);
        state
    }

    /// The same without asking the engine: `bytes` is 0.
    pub fn state_light(&self) -> ShardState {
        let g = self.lock();
        let r = &g.repl;
        let resolved = r.lowest_prepared().map_or(r.closed, |p| r.closed.min(p.prev()));
        ShardState {
            shard: self.id,
            range: r.range.clone(),
            epoch: r.epoch,
            applied: r.applied,
            applied_term: r.applied_term,
            leads: (g.term != 0).then_some(g.term),
            serving: g.serving,
            floor: r.floor,
            closed: r.closed,
            told_closed: g.following.told,
            resolved,
            gc_threshold: r.gc_threshold,
            members: self.members(&g),
            leader: g.leader,
            lease_until_ns: self.lease_until.load(Ordering::Acquire),
            handing_over: g.handing_over.is_some(),
            truncate_to: r.truncate_to,
            holder: r.holder,
            read_limit: r.read_limit,
            prepared: r.prepared.len(),
            oldest_prepare: r.prepared.values().map(|p| p.piece.candidate).min(),
            tombstones: r.tombstones.len(),
            inflight: g.inflight.len(),
            bytes: 0,
            stopped: g.stopped.clone(),
        }
    }

    /// Prepares whose candidate is at or below `before`, and anchors below the floor that wait for acknowledgements; at
    /// most `max`.
    pub(crate) fn suspects(&self, before: Timestamp, max: usize) -> Vec<Suspect> {
        let g = self.lock();
        let prepared = g.repl.prepared.values().filter(|p| p.piece.candidate <= before).map(|p| p.suspect());
        let anchors = g
            .repl
            .tombstones
            .range(..=RecordKey::upto(g.repl.floor))
            .filter_map(|(_, t)| t.keep.as_deref().cloned());
        prepared.chain(anchors).take(max).collect()
    }
}
