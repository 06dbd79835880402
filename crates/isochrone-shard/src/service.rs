//! The shards of this node as a [`ShardClient`]: routes by key, evaluates on the caller's thread, waits for what stands in
//! the way (bounded), proposes, and answers with what application found.
//!
//! Where to go with a request that this node cannot serve is the business of whoever routes between nodes
//! ([`Routing::Cluster`]): it hears so at once. A node that is the whole cluster waits instead ([`Routing::Alone`]).
//!
//! The fast path of a read returns a future that is ready: no task, no hop, no timer (D15).
//!
//! How it fails: `NotServed` and `NotLeader` when nothing was done and asking again may help; `Ambiguous` when an entry may be logged
//! whose outcome was not heard; `Stopped` when the log or the storage has failed. A request whose future is dropped
//! leaves its proposal in flight, until it is applied or the term is over (S3).
//!
//! Between evaluation and the call of [`Proposer::propose`] nothing is awaited: a registered proposal is always handed
//! over.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isochrone_base::{Key, KeyRange, LogIndex, ShardId, Timestamp, TxnId};
use isochrone_env::Timer;

use crate::api::{
    AnchorReply, BoxFuture, Decision, Error, LockMode, Locked, Page, Piece, PieceId, Prepared, ReadAs,
    ReadSpan, Record, Recover, Seen, ShardClient,
};
use crate::command::{Command, find_key};
use crate::config::us;
use crate::evaluate::Evaluated;
use crate::locks::{LockManager, Owner, TryLock};
use crate::outcome::Outcome;
use crate::proposer::{Applied, ProposeError, Proposer};
use crate::read::Step;
use crate::shard::{Blocked, LIMIT, LeftAlone, Obstacle, Proposal, Shard};
use crate::shards::Shards;

/// Pause before a request that was not served is routed again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// Pause between two steps of clearing a range.
const CLEAR_PAUSE: Duration = Duration::from_millis(2);
/// Timestamps further than this ahead of the clock are refused: a read there would push every later write.
const FUTURE_MAX_US: u64 = 10_000_000;
/// Evaluations of one request whose assumptions did not hold at application; then "not served".
const ATTEMPTS_MAX: usize = 32;

/// How long a request still waits.
pub(crate) struct Patience {
    /// By the clock.
    until: Timestamp,
    /// Slept out, whatever the clock says.
    left: Duration,
}

/// What becomes of a request for a shard that this node does not serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    /// There is nobody else to ask: it is asked again here, for `serve_wait_max`. Never answers `NotLeader`.
    Alone,
    /// It is answered `NotLeader` or `NotServed` at once. What is waited for: the first entry of a term that this
    /// node leads, and the renewal of its lease.
    Cluster,
}

/// See the module.
pub struct LocalShards {
    pub(crate) shards: Arc<Shards>,
    pub(crate) proposer: Arc<dyn Proposer>,
    routing: Routing,
    timer: Arc<dyn Timer>,
    locks: LockManager,
    recover: OnceLock<Arc<dyn Recover>>,
}

/// A proposal whose fate a request waits for. If the request is dropped, the shard's duties look after it.
struct Awaited<'a> {
    shard: &'a Shard,
    left: Option<LeftAlone>,
}

impl Awaited<'_> {
    fn fate(&mut self) -> &mut BoxFuture<'static, Result<Applied, ProposeError>> {
        &mut self.left.as_mut().expect("its fate is not known yet").fate
    }

    fn is_known(&mut self) {
        self.left = None;
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            self.shard.left_alone(left);
        }
    }
}

impl LocalShards {
    /// A client of the shards of this node.
    pub fn new(
        shards: Arc<Shards>,
        proposer: Arc<dyn Proposer>,
        timer: Arc<dyn Timer>,
        routing: Routing,
    ) -> LocalShards {
        let locks = LockManager::new(timer.clone());
        LocalShards { shards, proposer, routing, timer, locks, recover: OnceLock::new() }
    }

    /// Who recovers suspected transactions (R18). Until it is set, nobody does. The second call is ignored. (It keeps
    /// the recoverer alive: hand in one that holds this client weakly.)
    pub fn set_recover(&self, recover: Arc<dyn Recover>) {
        let _ = self.recover.set(recover);
    }

    pub(crate) fn recover(&self, suspect: crate::api::Suspect) {
        if let Some(r) = self.recover.get() {
            r.recover(suspect);
        }
    }

    /// The shards themselves.
    pub fn shards(&self) -> &Arc<Shards> {
        &self.shards
    }

    /// The lock table.
    pub fn locks(&self) -> &LockManager {
        &self.locks
    }

    fn route(&self, key: &[u8]) -> Result<Arc<Shard>, Error> {
        self.shards
            .of_key(key)
            .ok_or_else(|| Error::NotServed(format!("no shard of this node holds key {key:02x?}")))
    }

    /// A shard's answer as this client's callers hear it.
    pub(crate) fn heard<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        answer.map_err(|e| match e {
            Error::NotLeader { .. } if self.routing == Routing::Alone => Error::NotServed(e.to_string()),
            e => e,
        })
    }

    pub(crate) fn patience(&self, wait_max: Duration) -> Patience {
        Patience { until: self.shards.clock.latest().plus_micros(us(wait_max)), left: wait_max }
    }

    /// Waits until the obstacle is gone, a while at most. False: patience is at its end.
    pub(crate) async fn wait(&self, blocked: Blocked, patience: &mut Patience) -> bool {
        let recover_after = self.shards.config.recover_after;
        let now = self.shards.clock.latest();
        if patience.left.is_zero() || now >= patience.until {
            return false;
        }
        let Blocked { gone, suspect, .. } = blocked;
        // R18: a prepare that is old already is suspected at once, a young one when it has been waited for.
        let mut suspect = suspect;
        if let Some(s) = suspect.take_if(|s| s.candidate.plus_micros(us(recover_after)) <= now) {
            self.recover(s);
        }
        let slice = patience.left.min(recover_after);
        tokio::select! {
            biased;
            _ = gone => {}
            () = self.timer.sleep(slice) => {
                patience.left -= slice;
                if let Some(s) = suspect
                    && slice == recover_after
                {
                    self.recover(s);
                }
            }
        }
        true
    }

    /// After "not served": may the request be routed again?
    async fn again(&self, patience: &mut Patience) -> bool {
        if self.routing == Routing::Cluster {
            return false;
        }
        if patience.left.is_zero() || self.shards.clock.latest() >= patience.until {
            return false;
        }
        let pause = patience.left.min(RETRY_PAUSE);
        self.timer.sleep(pause).await;
        patience.left -= pause;
        true
    }

    /// Hands a proposal over and waits for what application finds.
    pub(crate) fn propose<'a>(
        &'a self,
        shard: &'a Shard,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Outcome, Error>> + Send + 'a {
        let Proposal { entry, mut outcome } = proposal;
        let (term, seq) = (entry.term, entry.seq);
        let fate = self.proposer.propose(shard.id(), term, entry.encode());
        let mut logged = Awaited { shard, left: Some(LeftAlone { term, seq, fate }) };
        async move {
            let result = tokio::select! {
                biased;
                found = &mut outcome => match found {
                    Ok(found) => {
                        logged.is_known();
                        return Ok(found);
                    }
                    // The term is over. Whether the entry was logged, the log knows.
                    Err(_) => logged.fate().await,
                },
                result = logged.fate() => result,
            };
            logged.is_known();
            match result {
                Ok(applied) => outcome.try_recv().map_err(|_| {
                    Error::Ambiguous(format!(
                        "entry {} was applied after the leadership was lost",
                        applied.index
                    ))
                }),
                Err(ProposeError::NotLeader) => {
                    shard.not_logged(term, seq);
                    // Who leads instead this node has heard already, or will hear in a moment.
                    let leader = shard.lock().leader.filter(|n| *n != shard.node);
                    self.heard(Err(Error::NotLeader { shard: shard.id(), leader }))
                }
                Err(ProposeError::Overloaded) => {
                    shard.not_logged(term, seq);
                    Err(Error::NotServed("too many proposals are waiting".into()))
                }
                Err(ProposeError::Ambiguous(why)) => Err(Error::Ambiguous(why)),
                Err(ProposeError::Stopped(why)) => Err(Error::Stopped(why)),
            }
        }
    }

    /// R1: lets the read limit reach `ts`.
    async fn raise_limit(&self, shard: &Shard, ts: Timestamp, patience: &mut Patience) -> Result<(), Error> {
        let mut alone = false;
        loop {
            match self.heard(shard.evaluate_limit(ts, alone))? {
                Evaluated::Answer(()) => return Ok(()),
                Evaluated::Blocked(b) => {
                    // Somebody else's renewal is in flight; if it does not come, ours will.
                    let mut short = self.patience(self.shards.config.recover_after.min(patience.left));
                    if !self.wait(b, &mut short).await || short.left.is_zero() {
                        alone = true;
                        patience.left = patience.left.saturating_sub(self.shards.config.recover_after);
                    }
                    if patience.left.is_zero() {
                        return Err(Error::NotServed(format!(
                            "the lease of shard {} was not renewed",
                            shard.id()
                        )));
                    }
                }
                Evaluated::Propose(p, _) => match self.propose(shard, p).await? {
                    Outcome::Done => {}
                    _ => {
                        return Err(Error::NotServed(format!(
                            "the lease of shard {} was not renewed",
                            shard.id()
                        )));
                    }
                },
            }
        }
    }

    /// Runs a read until it is done. `first` is what the attempt on the fast path came to.
    async fn read<T>(
        &self,
        first: Result<Step<T>, Error>,
        route: impl Fn() -> Result<Arc<Shard>, Error>,
        attempt: impl Fn() -> Result<Step<T>, Error>,
    ) -> Result<T, Error> {
        let mut lease = self.patience(self.shards.config.serve_wait_max);
        let mut patience = self.patience(self.shards.config.read_wait_max);
        let mut serve = self.patience(self.shards.config.serve_wait_max);
        let mut step = first;
        loop {
            match step {
                Ok(Step::Done(value)) => return Ok(value),
                Ok(Step::Blocked(b)) => {
                    let why = b.what.words();
                    let patience = if b.what == Obstacle::Lease { &mut lease } else { &mut patience };
                    if !self.wait(b, patience).await {
                        return Err(Error::NotServed(format!("waited too long for {why}")));
                    }
                }
                Ok(Step::Limit(ts)) => {
                    let shard = route()?;
                    match self.raise_limit(&shard, ts, &mut patience).await {
                        Ok(()) => {}
                        Err(e @ Error::NotServed(_)) => {
                            if !self.again(&mut serve).await {
                                return Err(e);
                            }
                        }
                        // Nothing was asked that changes rows.
                        Err(Error::Ambiguous(why)) => return Err(Error::NotServed(why)),
                        Err(e) => return Err(e),
                    }
                }
                Err(e @ Error::NotServed(_)) => {
                    if !self.again(&mut serve).await {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
            step = attempt();
        }
    }

    /// R11 to R13, with waiting and proposing.
    async fn piece(&self, piece: Piece, one_step: bool) -> Result<Prepared, Error> {
        let key =
            find_key(piece.piece, &piece.pieces, piece.writes.first().map(|w| w.key.as_slice())).to_vec();
        let config = &self.shards.config;
        // A one-step commit has nothing prepared elsewhere, others could only wait for it in memory (R11.4).
        let mut patience =
            self.patience(if one_step { config.read_wait_max } else { config.prepare_wait_max });
        let mut copy = self.patience(config.read_wait_max);
        let mut serve = self.patience(config.serve_wait_max);
        let mut patient = true;
        for _ in 0..ATTEMPTS_MAX * 1_000 {
            let shard = match self.route(&key) {
                Ok(shard) => shard,
                Err(e) => {
                    if self.again(&mut serve).await {
                        continue;
                    }
                    return Err(e);
                }
            };
            let (proposal, refusal) = match self.heard(shard.evaluate(&piece, one_step, patient)) {
                Ok(Evaluated::Answer(answer)) => return Ok(answer),
                Ok(Evaluated::Propose(proposal, refusal)) => (proposal, refusal),
                Ok(Evaluated::Blocked(b)) if b.what.on_key() => {
                    patient = self.wait(b, &mut patience).await;
                    continue;
                }
                Ok(Evaluated::Blocked(b)) => {
                    let what = b.what;
                    if !self.wait(b, &mut copy).await {
                        let why = format!("waited too long for {}", what.words());
                        return Err(match what {
                            Obstacle::Copy => Error::Ambiguous(why),
                            _ => Error::NotServed(why),
                        });
                    }
                    continue;
                }
                Err(e @ Error::NotServed(_)) => {
                    if self.again(&mut serve).await {
                        continue;
                    }
                    return Err(e);
                }
                Err(e) => return Err(e),
            };
            match self.propose(&shard, proposal).await {
                Ok(Outcome::Record(Record::Prepared(p))) if !one_step => return Ok(Prepared::At(p)),
                Ok(Outcome::Record(Record::Committed(c))) => return Ok(Prepared::Committed(c)),
                Ok(Outcome::Record(Record::Aborted)) => {
                    return Ok(
                        refusal.unwrap_or_else(|| Prepared::Refused("aborted by somebody else".into()))
                    );
                }
                Ok(Outcome::PastDeadline) => return Ok(Prepared::PastDeadline),
                Ok(Outcome::Rejected(_)) => {}
                found @ (Ok(Outcome::StaleTerm) | Err(Error::NotServed(_))) => {
                    if !self.again(&mut serve).await {
                        return Err(found.err().unwrap_or(Error::NotServed("leadership changed".into())));
                    }
                }
                Ok(other) => return Err(Error::Invalid(format!("application answered {other:?}"))),
                Err(e) => return Err(e),
            }
        }
        Err(Error::NotServed("the piece was evaluated too often".into()))
    }

    /// Runs a request that is decided by application.
    async fn logged<T>(
        &self,
        key: &[u8],
        evaluate: impl Fn(&Shard) -> Result<Evaluated<T>, Error>,
        answer: impl Fn(Outcome) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut patience = self.patience(self.shards.config.serve_wait_max);
        for _ in 0..ATTEMPTS_MAX * 1_000 {
            let evaluated = self.route(key).and_then(|shard| Ok((evaluate(&shard)?, shard)));
            let error = match self.heard(evaluated) {
                Ok((Evaluated::Answer(known), _)) => return Ok(known),
                Ok((Evaluated::Blocked(b), _)) => {
                    let why = b.what.words();
                    if self.wait(b, &mut patience).await {
                        continue;
                    }
                    return Err(Error::NotServed(format!("waited too long for {why}")));
                }
                Ok((Evaluated::Propose(p, _), shard)) => match self.propose(&shard, p).await {
                    Ok(Outcome::Rejected(why)) => Error::NotServed(why.into()),
                    Ok(Outcome::StaleTerm) => Error::NotServed("leadership changed".into()),
                    Ok(Outcome::Illegal(why)) => return Err(Error::Invalid(why.into())),
                    Ok(found) => return answer(found),
                    Err(e) => e,
                },
                Err(e) => e,
            };
            match error {
                Error::NotServed(_) if self.again(&mut patience).await => {}
                e => return Err(e),
            }
        }
        Err(Error::NotServed("the request was evaluated too often".into()))
    }

    /// Cuts the shard that holds `at` so that `at` starts the new shard `right`. Harmless if `at` starts a shard already:
    /// then it answers false, and `right` was not used.
    ///
    /// # Errors
    /// `Conflict`: an unresolved prepare lies across the split point; it is being recovered, try again. Others as
    /// for every request.
    pub async fn split(&self, at: &[u8], right: ShardId) -> Result<bool, Error> {
        let mut patience = self.patience(self.shards.config.serve_wait_max);
        loop {
            let shard = self.route(at)?;
            if self.shards.get(right).is_some_and(|s| s.range().start != at) {
                return Err(Error::Invalid(format!("a shard {right} exists")));
            }
            let proposal = match self.heard(shard.evaluate_split(at, right))? {
                Evaluated::Answer(Some(suspect)) => {
                    self.recover(suspect);
                    return Err(Error::Conflict("an unresolved prepare lies across the split point".into()));
                }
                Evaluated::Answer(None) => return Ok(false),
                Evaluated::Blocked(b) => {
                    if self.wait(b, &mut patience).await {
                        continue;
                    }
                    return Err(Error::NotServed(format!("shard {} is not served here", shard.id())));
                }
                Evaluated::Propose(p, _) => p,
            };
            return match self.propose(&shard, proposal).await? {
                Outcome::Done => Ok(true),
                Outcome::Rejected(why) => Err(Error::Conflict(why.into())),
                _ => Err(Error::NotServed("leadership changed".into())),
            };
        }
    }

    /// Removes every version of a range that nobody can see any more, in bounded steps. Prepared writes stay.
    ///
    /// # Errors
    /// As for every request; what was removed stays removed, and asking again goes on.
    pub async fn clear_range(&self, range: &KeyRange) -> Result<(), Error> {
        for mut part in self.cut(range)? {
            loop {
                let command = Command::ClearRange { range: part.clone() };
                let rest = self
                    .logged(
                        &part.start,
                        |s| s.evaluate_plain(command.clone()),
                        |found| match found {
                            Outcome::Cleared { rest } => Ok(rest),
                            _ => Ok(None),
                        },
                    )
                    .await?;
                let Some(rest) = rest else { break };
                part.start = rest;
                // Nobody waits for the room, and somebody may wait for the store loop.
                self.timer.sleep(CLEAR_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Raises the GC threshold of every shard that this node leads: nothing below can be read from then on. It never passes an
    /// unresolved prepare. The caller keeps it below every protected timestamp.
    ///
    /// # Errors
    /// As for every request.
    pub async fn raise_gc_threshold(&self, to: Timestamp) -> Result<(), Error> {
        for range in self.shards.ranges(&KeyRange::all()) {
            let command = Command::RaiseGcThreshold { to };
            match self.logged(&range.start, |s| s.evaluate_plain(command.clone()), |_| Ok(())).await {
                // Another node leads it, and does the same.
                Err(Error::NotLeader { .. }) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Agrees with all replicas that nobody needs the log of a shard up to `upto`. The caller knows how far they are,
    /// and what their flushes hold. Done when it is applied here; nothing is logged if it says nothing new.
    ///
    /// # Errors
    /// As for every request.
    pub async fn propose_truncate(&self, shard: ShardId, upto: LogIndex) -> Result<(), Error> {
        let s = self.shards.get(shard);
        let s = s.ok_or_else(|| Error::NotServed(format!("shard {shard} is not on this node")))?;
        let proposal = match self.heard(s.evaluate_truncate(upto))? {
            Evaluated::Answer(()) => return Ok(()),
            Evaluated::Blocked(b) => return Err(Error::NotServed(b.what.words().into())),
            Evaluated::Propose(p, _) => p,
        };
        match self.propose(&s, proposal).await? {
            Outcome::Done => Ok(()),
            _ => Err(Error::NotServed("leadership changed".into())),
        }
    }

    /// The parts of a range by shard. What is not here at all must not be passed over silently.
    fn cut(&self, range: &KeyRange) -> Result<Vec<KeyRange>, Error> {
        let parts = self.shards.cut(range);
        let ends = parts.first().is_some_and(|p| p.start == range.start)
            && parts.last().is_some_and(|p| p.end == range.end)
            && parts.windows(2).all(|p| p[0].end == p[1].start);
        if !ends && !range.is_empty() {
            return Err(Error::NotServed(format!("this node does not hold all of {range:02x?}")));
        }
        Ok(parts)
    }

    fn try_get(&self, who: ReadAs, key: &[u8]) -> Result<Step<Option<Seen>>, Error> {
        let shard = self.route(key)?;
        match shard.get(who, key) {
            // R6: it may be old enough for any replica.
            Err(e @ Error::NotLeader { .. }) => {
                self.heard(shard.get_as_replica(who, key).map(Step::Done).map_err(|_| e))
            }
            answer => self.heard(answer),
        }
    }

    fn try_scan(
        &self,
        who: ReadAs,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Step<Page>, Error> {
        let shard = self.scan_route(range, reverse)?;
        match shard.scan(who, range, reverse, rows_max, bytes_max) {
            Err(e @ Error::NotLeader { .. }) => {
                let page = shard.scan_as_replica(who, range, reverse, rows_max, bytes_max);
                self.heard(page.map(Step::Done).map_err(|_| e))
            }
            answer => self.heard(answer),
        }
    }

    pub(crate) fn scan_route(&self, range: &KeyRange, reverse: bool) -> Result<Arc<Shard>, Error> {
        if !reverse {
            return self.route(&range.start);
        }
        self.shards
            .of_end(range)
            .ok_or_else(|| Error::NotServed(format!("no shard of this node holds {range:02x?}")))
    }
}

impl LocalShards {
    /// [`ShardClient::lock`] for a transaction that another node may coordinate.
    pub fn lock_for<'a>(
        &'a self,
        owner: Owner,
        key: &'a [u8],
        mode: LockMode,
        read_ts: Timestamp,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Locked, Error>> {
        let txn = owner.txn;
        let moved = move || self.heard(self.route(key).and_then(|s| s.moved_since(txn, key, read_ts)));
        let after = move |waited: bool| match moved() {
            Ok(moved) => Ok(Locked { waited: waited || moved }),
            Err(e) => {
                self.locks.unlock(txn, &[key.to_vec()]);
                Err(e)
            }
        };
        let shard = match self.heard(self.route(key).and_then(|s| s.served(&s.lock()).map(|_| s.clone()))) {
            Ok(shard) => shard,
            Err(e) => return ready(Err(e)), // what stands in the lock table belongs to an earlier leadership
        };
        match self.locks.try_lock(owner, key, mode) {
            TryLock::Granted if wait_max.is_zero() && shard.written_by_other(txn, key) => {
                self.locks.unlock(txn, &[key.to_vec()]);
                ready(Err(Error::LockTimeout(Duration::ZERO)))
            }
            TryLock::Granted | TryLock::Held => ready(after(false)),
            TryLock::Busy if wait_max.is_zero() => ready(Err(Error::LockTimeout(Duration::ZERO))),
            TryLock::Busy => Box::pin(async move {
                let now = self.shards.clock.latest();
                after(self.locks.lock(owner, key, mode, wait_max, now).await?)
            }),
        }
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

/// Does a first attempt need more than looking?
fn unfinished<T>(step: &Result<Step<T>, Error>) -> bool {
    matches!(step, Ok(Step::Blocked(_) | Step::Limit(_)) | Err(Error::NotServed(_)))
}

fn finished<'a, T: Send + 'a>(step: Result<Step<T>, Error>) -> BoxFuture<'a, Result<T, Error>> {
    ready(step.map(|s| match s {
        Step::Done(value) => value,
        Step::Blocked(_) | Step::Limit(_) => unreachable!("the caller has asked"),
    }))
}

impl ShardClient for LocalShards {
    fn get<'a>(&'a self, who: ReadAs, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Seen>, Error>> {
        let first = self.try_get(who, key);
        if unfinished(&first) {
            return Box::pin(self.read(first, move || self.route(key), move || self.try_get(who, key)));
        }
        finished(first)
    }

    fn scan<'a>(
        &'a self,
        who: ReadAs,
        range: &'a KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        if range.is_empty() {
            return ready(Ok(Page::default()));
        }
        let route = move || self.scan_route(range, reverse);
        let attempt = move || self.try_scan(who, range, reverse, rows_max, bytes_max);
        let first = attempt();
        if unfinished(&first) {
            return Box::pin(self.read(first, route, attempt));
        }
        finished(first)
    }

    fn lock<'a>(
        &'a self,
        txn: TxnId,
        key: &'a [u8],
        mode: LockMode,
        read_ts: Timestamp,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Locked, Error>> {
        let owner = Owner { txn, gateway: self.shards.node };
        self.lock_for(owner, key, mode, read_ts, wait_max)
    }

    fn unlock(&self, txn: TxnId, keys: &[Key]) {
        self.locks.unlock(txn, keys);
    }

    fn validate<'a>(
        &'a self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut todo: Vec<ReadSpan> = spans.into_iter().filter(|s| !s.range.is_empty()).collect();
            while let Some(first) = todo.first() {
                // Everything that lies on the shard of the first span, in one step.
                let shard_range = self.route_key(&first.range.start);
                let (mut here, mut rest) = (Vec::new(), Vec::new());
                for s in todo {
                    if shard_range.contains_range(&s.range) {
                        here.push(s);
                    } else if s.range.overlaps(&shard_range) {
                        let parts = self.cut(&s.range)?;
                        rest.extend(parts.into_iter().map(|range| ReadSpan { range, seen: s.seen }));
                    } else {
                        rest.push(s);
                    }
                }
                if let Some(first) = here.first() {
                    let key = first.range.start.clone();
                    let attempt = || self.heard(self.route(&key)?.validate(txn, &here, ts));
                    self.read(attempt(), || self.route(&key), attempt).await?;
                }
                todo = rest;
            }
            Ok(())
        })
    }

    fn prepare<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        Box::pin(self.piece(piece, false))
    }

    fn commit1<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        Box::pin(self.piece(piece, true))
    }

    fn decide<'a>(
        &'a self,
        anchor: PieceId,
        decision: Decision,
    ) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        Box::pin(async move {
            let answer = |found| match found {
                Outcome::Record(Record::Committed(c)) => Ok(AnchorReply::Decided(Decision::Commit(c))),
                Outcome::Record(Record::Aborted) => Ok(AnchorReply::Decided(Decision::Abort)),
                Outcome::PastDeadline => Ok(AnchorReply::Gone),
                other => Err(Error::Invalid(format!("application answered {other:?}"))),
            };
            self.logged(&anchor.key, |s| s.evaluate_decide(&anchor, decision), answer).await
        })
    }

    fn ask<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        Box::pin(async move {
            let answer = |found| Err(Error::Invalid(format!("application answered {found:?}")));
            self.logged(&anchor.key, |s| s.evaluate_ask(&anchor), answer).await
        })
    }

    fn resolve<'a>(&'a self, piece: PieceId, decision: Decision) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let answer = |found| match found {
                Outcome::Record(Record::Committed(_) | Record::Aborted) | Outcome::PastDeadline => Ok(()),
                other => Err(Error::Invalid(format!("application answered {other:?}"))),
            };
            self.logged(&piece.key, |s| s.evaluate_resolve(&piece, decision), answer).await
        })
    }

    fn probe<'a>(&'a self, piece: PieceId) -> BoxFuture<'a, Result<Record, Error>> {
        Box::pin(async move {
            let answer = |found| match found {
                Outcome::Record(record) => Ok(record),
                Outcome::PastDeadline => Ok(Record::Aborted),
                other => Err(Error::Invalid(format!("application answered {other:?}"))),
            };
            self.logged(&piece.key, |s| s.evaluate_probe(&piece), answer).await
        })
    }

    fn acked<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.logged(&anchor.key, |s| s.evaluate_acked(&anchor), |_| Ok(())).await })
    }

    fn route(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.shards.ranges(range)
    }

    fn route_key(&self, key: &[u8]) -> KeyRange {
        self.shards.ranges(&KeyRange::point(key)).into_iter().next().unwrap_or_else(KeyRange::all)
    }
}

impl Shard {
    /// R1: a renewal of the lease, if the read limit is below `ts`. `alone`: even if another is in flight.
    pub(crate) fn evaluate_limit(&self, ts: Timestamp, alone: bool) -> Result<Evaluated<()>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if self.served(g)?.is_none() {
            return Ok(Evaluated::Blocked(self.wait_serving(g)));
        }
        if g.repl.read_limit >= ts {
            return Ok(Evaluated::Answer(()));
        }
        if ts > self.clock.latest().plus_micros(FUTURE_MAX_US) {
            return Err(Error::Invalid(format!("timestamp {ts} is too far in the future")));
        }
        if g.limit_proposed >= ts && !alone {
            return Ok(Evaluated::Blocked(g.blocked(LIMIT, Obstacle::Renewal)));
        }
        let lease = Command::Lease { holder: self.node };
        Ok(Evaluated::Propose(self.propose_plain(g, lease, ts), None))
    }

    /// A command that needs no evaluation.
    pub(crate) fn evaluate_plain<T>(&self, command: Command) -> Result<Evaluated<T>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if self.served(g)?.is_none() {
            return Ok(Evaluated::Blocked(self.wait_serving(g)));
        }
        Ok(Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None))
    }

    /// Nothing to do where the log may be dropped that far already.
    pub(crate) fn evaluate_truncate(&self, upto: LogIndex) -> Result<Evaluated<()>, Error> {
        if self.served(&self.lock())?.is_some() && self.lock().repl.truncate_to >= upto {
            return Ok(Evaluated::Answer(()));
        }
        self.evaluate_plain(Command::Truncate { upto })
    }

    /// `Answer(None)`: the key starts a shard already. `Answer(Some)`: who stands in the way.
    pub(crate) fn evaluate_split(
        &self,
        at: &[u8],
        right: ShardId,
    ) -> Result<Evaluated<Option<crate::api::Suspect>>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if self.served(g)?.is_none() {
            return Ok(Evaluated::Blocked(self.wait_serving(g)));
        }
        if g.repl.range.start == at {
            return Ok(Evaluated::Answer(None));
        }
        let across = g.repl.prepared.values().find(|p| {
            let keys = || p.piece.writes.iter().map(|w| w.key.as_slice()).chain([p.piece.find_key()]);
            keys().any(|k| k < at) && keys().any(|k| k >= at)
        });
        if let Some(p) = across {
            return Ok(Evaluated::Answer(Some(p.suspect())));
        }
        let command = Command::Split { at: at.to_vec(), right, born_at: self.config.born_at };
        Ok(Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None))
    }
}
