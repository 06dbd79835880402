//! COMMIT: from a buffer of writes to an answer that is certain, or says that it is not (R9 to R19, R22 to R25).
//!
//!     plan ──▶ validate V where nothing is written (R9.2) ──▶ one piece:  commit1 (R13) ───────────▶ answer
//!      C, pieces,   │ fails: ABORT at once                    │ several: prepare all
//!      mode         ▼                                         ▼
//!                                           all prepared: R14 implicit ──▶ answer; decide, resolve, acked behind it
//!                                           pushed, at-candidate: R15 validate all of V, decide ──▶ answer
//!                                           anything else: R19 decide(abort) ──▶ what the anchor says
//!
//! Invariants (beside T1 to T4)
//!   C1  No prepare leaves before every answer of R9.2 was heard.
//!   C2  The pieces of an attempt never change once the first of them left; neither does anything else in them. When
//!       shards were split meanwhile, the attempt gives up.
//!   C3  `resolve` is sent only with what the anchor answered.
//!   C4  ABORT is said after: a final refusal, the anchor's `aborted`, or a failure before C1's prepares. Nothing else.
//!   C5  The clock has been told of c before anybody hears of c or gets a lock (R25).
//!   C6  An attempt in one piece that was refused only because it was pushed (R13) is followed by a new one (R22) with the same
//!       writes, which validates everything anew; at most [`PUSHED_MAX`] times.
//!
//! Failure: a dropped future goes on in the background (R19). What a background part cannot finish within its bounds is
//! left to recovery (R18). Locks are given back in any case: they are memory and prove nothing.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt, iter};
use isochrone_base::limits::LOG_ENTRY_BYTES_MAX;
use isochrone_base::{Bytes, Key, KeyRange, Timestamp, TxnId, Value, bank};
use isochrone_shard::api::{
    self, AnchorReply, BoxFuture, Decision, Mode, Piece, PieceId, PieceRef, Prepared, ReadSpan, ShardClient,
    Write,
};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use crate::coordinator::{Coordinator, not_committed};
use crate::kv::{ClockWaits, Error, Isolation};
use crate::txn::Txn;

/// Bytes of keys and values after which a piece is closed and the next one begins. A single larger write still is one
/// piece: it fits an entry.
pub const PIECE_BYTES_MAX: usize = LOG_ENTRY_BYTES_MAX / 2;
/// What a write costs in a log entry beside key and value, at most about.
const WRITE_BYTES: usize = 32;
/// Why an attempt ends whose piece lies in two shards.
const OUT_OF_RANGE: &str = "the piece is not wholly in one shard any more";
/// Attempts that follow one that was pushed (C6). Each was pushed by a read of what it writes, between its first step and
/// its second.
const PUSHED_MAX: u32 = 3;
/// Resolves and validations under way at once for one transaction.
const PARALLEL_MAX: usize = 64;

/// A future that is finished in the background if it is dropped before its end.
struct Detached<T: 'static> {
    runtime: Handle,
    inner: Option<BoxFuture<'static, T>>,
}

impl<T: 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let inner = self.inner.as_mut().expect("polled after its end");
        let out = std::task::ready!(inner.as_mut().poll(cx));
        self.inner = None;
        Poll::Ready(out)
    }
}

impl<T: 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            let _goes_on = self.runtime.spawn(async move {
                let _nobody_listens = inner.await;
            });
        }
    }
}

/// Locks until they are given back, at the latest when this is dropped.
struct Locks {
    client: Arc<dyn ShardClient>,
    txn: TxnId,
    keys: BTreeSet<Key>,
}

impl Locks {
    fn release(&mut self, which: impl Fn(&Key) -> bool) {
        let keys: Vec<Key> = self.keys.extract_if(.., |k| which(k)).collect();
        if !keys.is_empty() {
            self.client.unlock(self.txn, &keys);
        }
    }

    fn release_all(&mut self) {
        self.release(|_| true);
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        self.release_all();
    }
}

/// What is to be committed.
pub(crate) struct Request {
    pub txn: TxnId,
    /// W, in key order.
    pub writes: Vec<Write>,
    /// V without the rows in W whose `seen` says the same.
    pub validate: Vec<ReadSpan>,
    /// C is above this.
    pub above: Timestamp,
    /// See [`crate::kv::TxnOptions::max_ts`].
    pub max_ts: Timestamp,
    /// R24.
    external: Option<ClockWaits>,
    locks: BTreeSet<Key>,
}

impl Request {
    /// Blind writes, for rows nobody can see yet.
    pub fn blind(txn: TxnId, rows: impl IntoIterator<Item = (Key, Value)>) -> Request {
        let write = |(key, value)| Write { key, value: Some(value), seen: None };
        Request {
            txn,
            writes: rows.into_iter().map(write).collect(),
            validate: Vec::new(),
            above: Timestamp::MIN,
            max_ts: Timestamp::MAX,
            external: None,
            locks: BTreeSet::new(),
        }
    }
}

/// Commits a transaction. Goes on when the future is dropped.
pub(crate) fn commit(mut txn: Box<Txn>) -> BoxFuture<'static, Result<Timestamp, Error>> {
    let written = txn.buffer.take();
    // V by level (section 1). Rows in W are left out: `seen` in W is the stronger check (R11.5), and their prepares
    // keep everybody else away until c.
    let is_written = |k: &[u8]| written.contains_key(k);
    let validate = match txn.options.isolation {
        Isolation::Serializable if !written.is_empty() => txn.reads.all_but(is_written),
        _ => txn.reads.locked_but(is_written),
    };
    let seen = |key: &Key| match txn.locks.contains_key(key) && bank::has("lock-trusted") {
        true => None,
        false => txn.reads.seen(key),
    };
    let writes = written.into_iter().map(|(key, value)| Write { seen: seen(&key), key, value }).collect();
    let request = Request {
        txn: txn.id,
        writes,
        validate,
        above: txn.read_ts,
        max_ts: txn.options.max_ts,
        external: txn.options.external.clone(),
        locks: std::mem::take(&mut txn.locks).into_keys().collect(),
    };
    commit_request(txn.coordinator.clone(), request)
}

/// As [`commit`], for a request made by hand.
pub(crate) fn commit_request(
    coordinator: Arc<Coordinator>,
    request: Request,
) -> BoxFuture<'static, Result<Timestamp, Error>> {
    let runtime = coordinator.runtime.clone();
    Box::pin(Detached { runtime, inner: Some(Box::pin(run(coordinator, request))) })
}

async fn run(coordinator: Arc<Coordinator>, request: Request) -> Result<Timestamp, Error> {
    let Request { mut txn, mut writes, mut validate, above, max_ts, external, locks } = request;
    let mut locks = Locks { client: coordinator.client.clone(), txn, keys: locks };
    coordinator.clock.update(above);
    let wrote = !writes.is_empty();
    let result = async {
        for left in (0..=PUSHED_MAX).rev() {
            let mut candidate = coordinator.clock.now();
            if external.is_some() {
                candidate = candidate.max(coordinator.clock.latest()); // R24
            }
            assert!(candidate > above, "the clock issues timestamps above what it was told of");
            if writes.is_empty() {
                // R8: only locked rows are left to validate.
                coordinator.validate(txn, validate, candidate).await.map_err(not_committed)?;
                return Ok(candidate);
            }
            if candidate > max_ts {
                return Err(Error::Serialization(format!("commit timestamp {candidate} is above {max_ts}")));
            }
            let Plan { mut pieces, all, elsewhere } =
                plan(&coordinator, txn, candidate, max_ts, writes, validate);
            // R9.2: nothing has left yet, so a failure is an ABORT at once.
            coordinator.validate(txn, elsewhere.clone(), candidate).await.map_err(not_committed)?;
            if pieces.len() > 1 {
                return commit_many(coordinator.clone(), pieces, all, locks).await;
            }
            let Some(piece) = pieces.pop() else { break };
            let pushed = match commit_one(coordinator.clone(), piece, locks).await {
                Ok(result) => return result,
                Err(pushed) => pushed,
            };
            coordinator.metrics.pushed.increment(1);
            if left == 0 {
                break;
            }
            // C6.
            coordinator.clock.update(pushed.to);
            txn = coordinator.new_txn_id();
            (writes, validate, locks) = (pushed.piece.writes, pushed.piece.validate, pushed.locks);
            validate.extend(elsewhere);
        }
        Err(Error::Serialization("what it writes was read again and again while it was committed".into()))
    }
    .await;
    match &result {
        Ok(c) => {
            // R24. Locks are given back already, and the prepare round was part of the wait.
            if let Some(waits) = external.filter(|_| wrote) {
                waits.add_commit(coordinator.wait_past(*c).await);
            }
        }
        Err(Error::Unknown(_)) => coordinator.metrics.unknown.increment(1),
        Err(_) => coordinator.metrics.aborts.increment(1),
    }
    result
}

struct Plan {
    pieces: Vec<Piece>,
    /// All of V, for R15. Empty when there is one piece.
    all: Vec<ReadSpan>,
    /// V on shards that hold no piece.
    elsewhere: Vec<ReadSpan>,
}

/// R9.1: cuts the writes by shard and size, and gives each shard's part of V to its first piece.
fn plan(
    coordinator: &Coordinator,
    txn: TxnId,
    candidate: Timestamp,
    max_ts: Timestamp,
    writes: Vec<Write>,
    validate: Vec<ReadSpan>,
) -> Plan {
    let at_max = validate.is_empty() || bank::has("at-max-despite-reads");
    let mode = if at_max { Mode::AtMax } else { Mode::AtCandidate };
    let deadline_us = u64::try_from(coordinator.config.deadline.as_micros()).unwrap_or(u64::MAX);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut shard: Option<KeyRange> = None;
    let mut bytes = 0;
    for write in writes {
        let more = write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + WRITE_BYTES;
        let same_shard = shard.as_ref().is_some_and(|s| s.contains(&write.key));
        if !same_shard {
            shard = Some(coordinator.client.route_key(&write.key));
        }
        match pieces.last_mut() {
            Some(piece) if same_shard && bytes + more <= PIECE_BYTES_MAX => {
                bytes += more;
                piece.writes.push(write);
            }
            _ => {
                bytes = more;
                pieces.push(Piece {
                    txn,
                    piece: pieces.len() as u32,
                    pieces: Vec::new(),
                    anchor: 0,
                    candidate,
                    mode,
                    deadline: candidate.plus_micros(deadline_us),
                    max_ts,
                    writes: vec![write],
                    validate: Vec::new(),
                    validated_elsewhere: false,
                });
            }
        }
    }
    let refs: Vec<PieceRef> =
        pieces.iter().map(|p| PieceRef { piece: p.piece, key: first_key(p).clone() }).collect();
    let all = if pieces.len() > 1 { validate.clone() } else { Vec::new() };
    let mut elsewhere = Vec::new();
    for (shard, spans) in coordinator.by_shard(validate) {
        match pieces.iter_mut().find(|p| shard.contains(first_key(p))) {
            Some(piece) => piece.validate.extend(spans),
            None => elsewhere.extend(spans),
        }
    }
    for piece in &mut pieces {
        piece.pieces.clone_from(&refs);
        piece.validated_elsewhere = !elsewhere.is_empty();
    }
    Plan { pieces, all, elsewhere }
}

fn first_key(piece: &Piece) -> &Key {
    &piece.writes.first().expect("a piece has at least one write").key
}

fn piece_ids(piece: &Piece) -> Vec<PieceId> {
    let id = |p: &PieceRef| PieceId {
        txn: piece.txn,
        piece: p.piece,
        key: p.key.clone(),
        deadline: piece.deadline,
    };
    piece.pieces.iter().map(id).collect()
}

/// Is the piece, or what it validates, no longer within one shard (C2)?
fn moved(coordinator: &Coordinator, piece: &Piece) -> bool {
    let shard = coordinator.client.route_key(first_key(piece));
    let inside = piece.writes.last().is_some_and(|w| shard.contains(&w.key))
        && piece.validate.iter().all(|s| shard.contains_range(&s.range));
    !inside
}

/// Why an attempt ends without its pieces being all prepared.
struct GiveUp {
    /// What to say when the anchor confirms the abort.
    error: Error,
    /// A final refusal (R12): aborted whatever else happens.
    certain: bool,
}

impl GiveUp {
    fn refused(why: String) -> GiveUp {
        GiveUp { error: Error::Serialization(why), certain: true }
    }

    fn past_deadline() -> GiveUp {
        // Not final (R11.2): the tombstone may be gone.
        let certain = bank::has("past-deadline-is-abort");
        GiveUp { error: Error::Serialization("a piece came after its deadline".to_string()), certain }
    }

    fn unanswered(coordinator: &Coordinator, piece: &Piece, error: api::Error) -> GiveUp {
        let error = match error {
            api::Error::NotServed(_) | api::Error::NotLeader { .. } if moved(coordinator, piece) => {
                Error::Serialization("a shard was split during the commit".to_string())
            }
            e => not_committed(e),
        };
        GiveUp { error, certain: false }
    }
}

/// An attempt that was refused because it was pushed (C6).
struct Pushed {
    to: Timestamp,
    piece: Piece,
    locks: Locks,
}

async fn commit_one(
    coordinator: Arc<Coordinator>,
    piece: Piece,
    mut locks: Locks,
) -> Result<Result<Timestamp, Error>, Pushed> {
    let client = &coordinator.client;
    let answer = coordinator.answer(|| client.commit1(piece.clone()), || moved(&coordinator, &piece)).await;
    let give_up = match answer {
        Ok(Prepared::Committed(c)) => {
            coordinator.clock.update(c); // C5
            locks.release_all();
            coordinator.metrics.commits_one.increment(1);
            coordinator.wait_for(c).await;
            return Ok(Ok(c));
        }
        // Its own anchor: the refusal's record is the anchor's record.
        Ok(Prepared::Refused(why)) => return Ok(Err(Error::Serialization(why))),
        Ok(Prepared::OutOfRange) => return Ok(Err(Error::Serialization(OUT_OF_RANGE.into()))),
        Ok(Prepared::Pushed(to)) => return Err(Pushed { to, piece, locks }),
        Ok(Prepared::PastDeadline) => GiveUp::past_deadline(),
        Ok(Prepared::At(p)) => {
            let error = Error::Internal(format!("commit of one piece was answered with a prepare at {p}"));
            GiveUp { error, certain: false }
        }
        Err(api::Error::Ambiguous(_)) if bank::has("unknown-retried-under-a-new-id") => {
            let again = Piece { txn: coordinator.new_txn_id(), ..piece };
            return Box::pin(commit_one(coordinator, again, locks)).await;
        }
        Err(e) => GiveUp::unanswered(&coordinator, &piece, e),
    };
    let ids = piece_ids(&piece);
    Ok(Finish { coordinator, ids, written: vec![], locks, _permit: None }.give_up(give_up).await)
}

async fn commit_many(
    coordinator: Arc<Coordinator>,
    pieces: Vec<Piece>,
    validate: Vec<ReadSpan>,
    locks: Locks,
) -> Result<Timestamp, Error> {
    let permit = coordinator.unfinished.clone().acquire_owned().await;
    let permit = permit.map_err(|_| Error::Unavailable("the node is shutting down".to_string()))?;
    coordinator.metrics.pieces.record(pieces.len() as f64);
    let (txn, candidate, mode) = (pieces[0].txn, pieces[0].candidate, pieces[0].mode);
    let sends = pieces.iter().map(|piece| prepare(&coordinator, piece));
    let answers = try_join_all(sends).await;
    let written = pieces.iter().map(|p| (first_key(p).clone(), last_key(p).clone())).collect();
    let finish = Finish {
        coordinator: coordinator.clone(),
        ids: piece_ids(&pieces[0]),
        written,
        locks,
        _permit: Some(permit),
    };
    let answers = match answers {
        Ok(answers) => answers,
        Err(give_up) => return finish.give_up(give_up).await,
    };
    drop(pieces);

    // Somebody recovered it meanwhile: a piece commits only on the anchor's word.
    let decided = answers.iter().find_map(|a| match a {
        Answer::Committed(c) => Some(*c),
        Answer::At(_) => None,
    });
    if let Some(c) = decided {
        return finish.committed(c, true).await;
    }
    let ps = || answers.iter().map(|(Answer::At(p) | Answer::Committed(p))| *p);
    let max = ps().max().expect("there are several pieces");
    if mode == Mode::AtMax || ps().all(|p| p == candidate) {
        // R14: from here on the transaction is committed.
        return finish.committed(max, false).await;
    }
    // R15: pushed.
    coordinator.metrics.pushed.increment(1);
    let validate = if bank::has("pushed-not-validated-again") { Vec::new() } else { validate };
    if let Err(e) = coordinator.validate(txn, validate, max).await {
        return finish.give_up(GiveUp { error: not_committed(e), certain: false }).await;
    }
    if bank::has("pushed-answered-early") {
        return finish.committed(max, false).await;
    }
    match finish.decide(Decision::Commit(max)).await {
        Ok(AnchorReply::Decided(Decision::Commit(c))) => finish.committed(c, true).await,
        Ok(AnchorReply::Decided(Decision::Abort)) => {
            finish
                .aborted(Error::Serialization("recovered and aborted by another transaction".to_string()))
                .await
        }
        Ok(reply) => finish.unknown(format!("the anchor answers {reply:?}")).await,
        Err(e) => finish.give_up(GiveUp { error: not_committed(e), certain: false }).await,
    }
}

fn last_key(piece: &Piece) -> &Key {
    &piece.writes.last().expect("a piece has at least one write").key
}

enum Answer {
    At(Timestamp),
    Committed(Timestamp),
}

async fn prepare(coordinator: &Coordinator, piece: &Piece) -> Result<Answer, GiveUp> {
    let client = &coordinator.client;
    match coordinator.answer(|| client.prepare(piece.clone()), || moved(coordinator, piece)).await {
        Ok(Prepared::At(p)) if p >= piece.candidate => Ok(Answer::At(p)),
        Ok(Prepared::At(p)) => {
            let error = Error::Internal(format!("prepared at {p}, below the candidate {}", piece.candidate));
            Err(GiveUp { error, certain: false })
        }
        Ok(Prepared::Committed(c)) => Ok(Answer::Committed(c)),
        Ok(Prepared::Refused(why)) => Err(GiveUp::refused(why)),
        Ok(Prepared::OutOfRange) => Err(GiveUp::refused(OUT_OF_RANGE.into())),
        Ok(Prepared::Pushed(to)) => Err(GiveUp::refused(format!("pushed to {to}"))),
        Ok(Prepared::PastDeadline) => Err(GiveUp::past_deadline()),
        Err(e) => Err(GiveUp::unanswered(coordinator, piece, e)),
    }
}

/// What a commit has left to do once its outcome is known or sought: the anchor is `ids[0]`.
struct Finish {
    coordinator: Arc<Coordinator>,
    ids: Vec<PieceId>,
    /// First and last written key of each piece.
    written: Vec<(Key, Key)>,
    locks: Locks,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Finish {
    async fn decide(&self, decision: Decision) -> Result<AnchorReply, api::Error> {
        let client = &self.coordinator.client;
        self.coordinator.answer(|| client.decide(self.ids[0].clone(), decision), || false).await
    }

    /// The transaction is committed at c: by R14 (`decided` is false, the anchor is told behind the answer) or by the
    /// anchor's word.
    async fn committed(self, c: Timestamp, decided: bool) -> Result<Timestamp, Error> {
        let coordinator = self.coordinator.clone();
        coordinator.clock.update(c); // C5
        coordinator.metrics.commits_many.increment(1);
        let _goes_on = coordinator.runtime.spawn(self.apply_commit(c, decided));
        coordinator.wait_for(c).await;
        Ok(c)
    }

    async fn apply_commit(self, c: Timestamp, decided: bool) {
        let mut decision = Decision::Commit(c);
        if !decided && !bank::has("resolved-before-decided") {
            match self.decide(decision).await {
                Ok(AnchorReply::Decided(d)) => {
                    if d != decision {
                        self.broken("T2", &format!("committed at {c}, and the anchor says {d:?}"));
                    }
                    decision = d;
                }
                // R21: it forgets only when every piece has acknowledged. Nothing is left to do.
                Ok(AnchorReply::Gone) => return,
                Ok(reply) => {
                    return self.broken("R16", &format!("the anchor answers a decision with {reply:?}"));
                }
                Err(api::Error::Invalid(why)) => return self.broken("R16", &why),
                Err(e) => return debug!(txn = %self.ids[0].txn, error = %e, "left to recovery"),
            }
        }
        self.resolve(decision, true).await;
    }

    /// R17 for all pieces but the anchor, which applied the decision with its record (R16); then R21.
    async fn resolve(mut self, decision: Decision, anchor_recorded: bool) {
        let written = std::mem::take(&mut self.written);
        let in_piece =
            |i: usize, k: &Key| written.get(i).is_some_and(|(first, last)| k >= first && k <= last);
        self.locks.release(|k| in_piece(0, k) || !(0..written.len()).any(|i| in_piece(i, k)));
        let Finish { coordinator, ids, locks, .. } = &mut self;
        let coordinator: &Coordinator = coordinator;
        let client = &coordinator.client;
        let sends = ids.iter().enumerate().skip(1).map(|(i, id)| async move {
            (i, coordinator.answer(|| client.resolve(id.clone(), decision), || false).await)
        });
        let mut answers = iter(sends.collect::<Vec<_>>()).buffer_unordered(PARALLEL_MAX);
        let mut acked = true;
        while let Some((i, answer)) = answers.next().await {
            locks.release(|k| in_piece(i, k));
            if let Err(e) = answer {
                debug!(txn = %ids[i].txn, piece = ids[i].piece, error = %e, "left to recovery");
                acked = bank::has("acked-although-unresolved");
            }
        }
        drop(answers);
        if acked && anchor_recorded {
            let _kept_longer_if_lost = coordinator.answer(|| client.acked(ids[0].clone()), || false).await;
        }
    }

    /// R19, and what may be said after it (R22).
    async fn give_up(self, why: GiveUp) -> Result<Timestamp, Error> {
        match self.decide(Decision::Abort).await {
            Ok(AnchorReply::Decided(Decision::Abort)) => self.aborted(why.error).await,
            Ok(AnchorReply::Decided(Decision::Commit(c))) => {
                if why.certain {
                    self.broken(
                        "T1",
                        &format!("a piece was refused for good, and the anchor says committed at {c}"),
                    );
                }
                self.committed(c, true).await
            }
            Ok(AnchorReply::Gone) if why.certain || bank::has("gone-is-abort") => {
                self.settle(false).await;
                Err(why.error)
            }
            Ok(reply) => self.unknown(format!("{}; the anchor answers {reply:?}", why.error)).await,
            Err(_) if why.certain || bank::has("silence-is-abort") => Err(why.error),
            Err(e) => {
                warn!(txn = %self.ids[0].txn, cause = %why.error, anchor = %e, "the outcome of a commit is unknown");
                Err(Error::Unknown(format!("{}; the anchor does not answer: {e}", why.error)))
            }
        }
    }

    /// The anchor says aborted.
    async fn aborted(self, error: Error) -> Result<Timestamp, Error> {
        self.settle(true).await;
        Err(error)
    }

    /// The anchor cannot tell any more. No piece can commit from now on (T12), so the prepares may go.
    async fn unknown(self, why: String) -> Result<Timestamp, Error> {
        warn!(txn = %self.ids[0].txn, why, "the outcome of a commit is unknown");
        self.settle(false).await;
        Err(Error::Unknown(why))
    }

    /// Drops the prepares, and waits a little for that, so that a new attempt does not run into them.
    async fn settle(self, anchor_recorded: bool) {
        let coordinator = self.coordinator.clone();
        let mut task = coordinator.runtime.spawn(self.resolve(Decision::Abort, anchor_recorded));
        tokio::select! {
            biased;
            _ = &mut task => {}
            () = coordinator.timer.sleep(coordinator.config.abort_settle_max) => {}
        }
    }

    /// An answer that cannot be, by the protocol: loud, counted, and nothing is made of it.
    fn broken(&self, invariant: &'static str, what: &str) {
        self.coordinator.found_broken(self.ids[0].txn, invariant, what);
    }
}
