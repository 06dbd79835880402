//! What lies between coordinators and shards: [`World`] holds the shards, a [`Net`] is one node's way to them.
//!
//! Scripted: a [`Script`] catches the next messages of a kind and loses them, loses their answers, holds them, answers
//! in the shard's place, or kills the node. Random: [`Chaos`] does some of that with dice from a seed.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::{Key, KeyRange, PieceNo, Timestamp, TxnId};
use isochrone_clock::Hlc;
use isochrone_env::fake::TokioClock;
use isochrone_env::os::TokioTimer;
use isochrone_env::{Clock, SplitMix64};
use isochrone_shard::api::{
    AnchorReply, BoxFuture, Decision, Error, LockMode, Locked, Page, Piece, PieceId, Prepared, ReadAs,
    ReadSpan, Record, Recover, Seen, ShardClient,
};
use isochrone_txn::{Config, Coordinator, RecoverInBackground, Recoverer};
use tokio::sync::Notify;

use crate::model::{State, Wait};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Get,
    Scan,
    Lock,
    Validate,
    Prepare,
    Commit1,
    Decide,
    Ask,
    Resolve,
    Probe,
    Acked,
}

/// One message as the trace shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Sent {
    pub kind: Kind,
    pub piece: PieceNo,
    pub decision: Option<Decision>,
    pub ts: Timestamp,
    pub spans: Vec<ReadSpan>,
    pub body: Option<Piece>,
}

/// What a shard would say in the shard's place.
#[derive(Clone, Debug)]
pub enum Reply {
    Prepared(Result<Prepared, Error>),
    Anchor(Result<AnchorReply, Error>),
    Fail(Error),
}

#[derive(Clone)]
pub enum Action {
    /// Never arrives.
    Lose,
    /// Arrives; the answer does not.
    LoseAnswer,
    /// Arrives when the gate opens.
    Hold(Arc<Notify>),
    /// Is lost now, and a copy arrives when the gate opens.
    Late(Arc<Notify>),
    /// Never arrives, and this is the answer.
    Answer(Reply),
    /// The node dies before it is sent.
    Die,
    /// It arrives, then the node dies.
    DieAfter,
}

struct Script {
    kind: Kind,
    piece: Option<PieceNo>,
    times: u32,
    action: Action,
}

pub struct World {
    state: Mutex<State>,
    changed: Notify,
    scripts: Mutex<Vec<Script>>,
    trace: Mutex<Vec<Sent>>,
    recover: Mutex<Option<Arc<dyn Recover>>>,
    pub chaos: Mutex<Option<Chaos>>,
    pub unlocks: Mutex<Vec<Key>>,
}

#[derive(Clone)]
pub struct Chaos {
    pub random: Arc<SplitMix64>,
}

/// An operation on the shards as a message: may be executed late, or twice.
type Op<T> = Arc<dyn Fn(&mut State) -> Result<T, Error> + Send + Sync>;

impl World {
    pub fn new(cuts: &[&[u8]]) -> Arc<World> {
        Arc::new(World {
            state: Mutex::new(State::new(cuts)),
            changed: Notify::new(),
            scripts: Mutex::default(),
            trace: Mutex::default(),
            recover: Mutex::default(),
            chaos: Mutex::default(),
            unlocks: Mutex::default(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn script(&self, kind: Kind, piece: Option<PieceNo>, times: u32, action: Action) {
        self.scripts.lock().unwrap().push(Script { kind, piece, times, action });
    }

    pub fn heal(&self) {
        self.scripts.lock().unwrap().clear();
        *self.chaos.lock().unwrap() = None;
    }

    pub fn set_recoverer(&self, r: Arc<Recoverer>) {
        *self.recover.lock().unwrap() = Some(Arc::new(RecoverInBackground(r)));
    }

    pub fn sent(&self, kind: Kind) -> Vec<Sent> {
        self.trace.lock().unwrap().iter().filter(|s| s.kind == kind).cloned().collect()
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.trace.lock().unwrap().iter().map(|s| s.kind).collect()
    }

    pub fn forget_trace(&self) {
        self.trace.lock().unwrap().clear();
    }

    fn caught(&self, kind: Kind, piece: PieceNo) -> Option<Action> {
        let mut scripts = self.scripts.lock().unwrap();
        let s = scripts
            .iter_mut()
            .find(|s| s.kind == kind && s.times > 0 && s.piece.is_none_or(|p| p == piece))?;
        s.times -= 1;
        Some(s.action.clone())
    }

    pub fn execute<T>(&self, kind: Kind, op: &Op<T>) -> Result<T, Error> {
        let out = op(&mut self.state());
        // A look that finds nothing must not wake the others, or they would wake each other for ever.
        if !matches!(kind, Kind::Get | Kind::Scan | Kind::Lock | Kind::Validate | Kind::Ask) {
            self.changed.notify_waiters();
        }
        out
    }

    /// The newest committed value of a key, as text.
    pub fn value(&self, key: &[u8]) -> Option<String> {
        let seen = self.state().value_at(key, Timestamp::MAX)?;
        Some(String::from_utf8(seen.value.to_vec()).unwrap())
    }

    pub fn assert_clean(&self) {
        assert_eq!(self.state().violations, Vec::<String>::new());
    }
}

/// One node: dead ones never hear anything again.
pub struct Net {
    pub world: Arc<World>,
    dead: AtomicBool,
    died: Notify,
    /// Messages until death; negative: never.
    left: AtomicI64,
}

impl Net {
    pub fn new(world: &Arc<World>) -> Arc<Net> {
        Arc::new(Net {
            world: world.clone(),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            left: AtomicI64::new(-1),
        })
    }

    /// Its locks go with it; so do, to see that it costs retries only (T13), everybody's.
    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.world.state().locks.clear();
        self.world.changed.notify_waiters();
        self.died.notify_waiters();
    }

    pub fn die_in(&self, messages: i64) {
        self.left.store(messages, Ordering::SeqCst);
    }

    pub async fn death(&self) {
        loop {
            let died = self.died.notified();
            if self.dead.load(Ordering::SeqCst) {
                return;
            }
            died.await;
        }
    }

    async fn alive(&self) {
        if self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.die();
        }
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn trace(&self, kind: Kind, piece: PieceNo, decision: Option<Decision>) {
        let sent = Sent { kind, piece, decision, ts: Timestamp::MIN, spans: Vec::new(), body: None };
        self.world.trace.lock().unwrap().push(sent);
    }

    async fn message<T: Send + 'static>(
        &self,
        kind: Kind,
        piece: PieceNo,
        op: Op<T>,
        convert: impl Fn(Reply) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.alive().await;
        let world = &self.world;
        let lost = || Err(Error::Ambiguous("lost".to_string()));
        match world.caught(kind, piece) {
            None => {}
            Some(Action::Lose) => return lost(),
            Some(Action::LoseAnswer) => {
                let _lost = world.execute(kind, &op);
                return lost();
            }
            Some(Action::Hold(gate)) => gate.notified().await,
            Some(Action::Late(gate)) => {
                let (world, op) = (world.clone(), op.clone());
                tokio::spawn(async move {
                    gate.notified().await;
                    let _late = world.execute(kind, &op);
                });
                return lost();
            }
            Some(Action::Answer(reply)) => return convert(reply),
            Some(Action::Die) => {
                self.die();
                self.alive().await;
            }
            Some(Action::DieAfter) => {
                let _lost = world.execute(kind, &op);
                self.die();
                self.alive().await;
            }
        }
        let chaos = world.chaos.lock().unwrap().clone();
        let Some(chaos) = chaos else { return world.execute(kind, &op) };
        let r = &chaos.random;
        let delay = |ms: u64| tokio::time::sleep(Duration::from_micros(r.below(ms * 1_000)));
        // Not of locks: a lock that is granted to a transaction after its end has nobody to give it back.
        if r.below(100) < 12 && kind != Kind::Lock {
            // A copy that arrives at any later time, perhaps after everything was forgotten.
            let (world, op, after) = (world.clone(), op.clone(), r.below(40_000));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                let _copy = world.execute(kind, &op);
            });
        }
        delay(if r.below(1_000) < 4 { 12_000 } else { 3 }).await;
        match r.below(100) {
            0..6 => return lost(),
            6..9 => return Err(Error::NotServed("no leader".to_string())),
            9..15 => {
                let _answer_lost = world.execute(kind, &op);
                return lost();
            }
            _ => {}
        }
        self.alive().await;
        let out = world.execute(kind, &op);
        delay(3).await;
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        out
    }

    /// Waits until the shards change, or a second passes and the suspect is recovered.
    async fn wait(&self, wait: Wait) {
        let changed = self.world.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        tokio::select! {
            biased;
            () = changed => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if let (Wait::Prepare(suspect), Some(r)) = (wait, self.world.recover.lock().unwrap().as_ref()) {
                    r.recover(*suspect);
                }
            }
        }
    }

    async fn reading<T: Send + 'static>(
        &self,
        kind: Kind,
        convert: impl Fn(Reply) -> Result<T, Error> + Copy,
        op: Op<Result<T, Wait>>,
    ) -> Result<T, Error> {
        loop {
            let inner = |reply| convert(reply).map(Ok);
            match self.message(kind, 0, op.clone(), inner).await? {
                Ok(out) => return Ok(out),
                Err(wait) => self.wait(wait).await,
            }
        }
    }
}

fn fail<T>(reply: Reply) -> Result<T, Error> {
    match reply {
        Reply::Fail(e) => Err(e),
        other => panic!("{other:?} does not fit"),
    }
}

fn prepared(reply: Reply) -> Result<Prepared, Error> {
    match reply {
        Reply::Prepared(p) => p,
        other => fail(other),
    }
}

fn anchor_reply(reply: Reply) -> Result<AnchorReply, Error> {
    match reply {
        Reply::Anchor(a) => a,
        other => fail(other),
    }
}

impl ShardClient for Net {
    fn get<'a>(&'a self, who: ReadAs, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Seen>, Error>> {
        Box::pin(async move {
            self.trace(Kind::Get, 0, None);
            self.world.trace.lock().unwrap().last_mut().unwrap().ts = who.ts;
            let key = key.to_vec();
            self.reading(Kind::Get, fail, Arc::new(move |s: &mut State| s.get(who, &key))).await
        })
    }

    fn scan<'a>(
        &'a self,
        who: ReadAs,
        range: &'a KeyRange,
        reverse: bool,
        rows_max: usize,
        _bytes_max: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            self.trace(Kind::Scan, 0, None);
            let range = range.clone();
            self.reading(
                Kind::Scan,
                fail,
                Arc::new(move |s: &mut State| s.scan(who, &range, reverse, rows_max)),
            )
            .await
        })
    }

    fn lock<'a>(
        &'a self,
        txn: TxnId,
        key: &'a [u8],
        mode: LockMode,
        read_ts: Timestamp,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Locked, Error>> {
        Box::pin(async move {
            assert_eq!(mode, LockMode::Update, "this net knows no other");
            self.trace(Kind::Lock, 0, None);
            let (owned, mut waited) = (key.to_vec(), false);
            let end = tokio::time::sleep(wait_max);
            tokio::pin!(end);
            loop {
                let key = owned.clone();
                let op = move |s: &mut State| {
                    s.waits.remove(&txn);
                    match s.locks.get(&key) {
                        Some(owner) if *owner != txn && wait_max.is_zero() => {
                            Err(Error::LockTimeout(wait_max))
                        }
                        Some(owner) if *owner != txn => {
                            let (mut at, mut hops) = (*owner, 0);
                            while let Some(next) = s.waits.get(&at).and_then(|k| s.locks.get(k)) {
                                (at, hops) = (*next, hops + 1);
                                if at == txn {
                                    return Err(Error::Deadlock);
                                }
                                if hops > s.waits.len() {
                                    break;
                                }
                            }
                            s.waits.insert(txn, key.clone());
                            Ok(Err(Wait::Lock))
                        }
                        _ => {
                            s.locks.insert(key.clone(), txn);
                            Ok(Ok(s.rows.get(&key).is_some_and(|v| v.last().is_some_and(|v| v.0 > read_ts))))
                        }
                    }
                };
                match self.message(Kind::Lock, 0, Arc::new(op), fail).await? {
                    Ok(newer) => return Ok(Locked { waited: waited || newer }),
                    Err(wait) => {
                        waited = true;
                        tokio::select! {
                            biased;
                            () = self.wait(wait) => {}
                            () = &mut end => {
                                self.world.state().waits.remove(&txn);
                                return Err(Error::LockTimeout(wait_max));
                            }
                        }
                    }
                }
            }
        })
    }

    fn unlock(&self, txn: TxnId, keys: &[Key]) {
        if self.dead.load(Ordering::SeqCst) {
            return;
        }
        self.world.unlocks.lock().unwrap().extend_from_slice(keys);
        let mut state = self.world.state();
        state.locks.retain(|k, owner| *owner != txn || !keys.contains(k));
        drop(state);
        self.world.changed.notify_waiters();
    }

    fn validate<'a>(
        &'a self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.trace(Kind::Validate, 0, None);
            {
                let mut trace = self.world.trace.lock().unwrap();
                let last = trace.last_mut().unwrap();
                (last.spans, last.ts) = (spans.clone(), ts);
            }
            self.message(Kind::Validate, 0, Arc::new(move |s: &mut State| s.validate(txn, &spans, ts)), fail)
                .await
        })
    }

    fn prepare<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        Box::pin(async move {
            let no = piece.piece;
            self.trace(Kind::Prepare, no, None);
            self.world.trace.lock().unwrap().last_mut().unwrap().body = Some(piece.clone());
            let op = Arc::new(move |s: &mut State| s.prepare(piece.clone(), false));
            self.message(Kind::Prepare, no, op, prepared).await
        })
    }

    fn commit1<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        Box::pin(async move {
            self.trace(Kind::Commit1, 0, None);
            self.world.trace.lock().unwrap().last_mut().unwrap().body = Some(piece.clone());
            let op = Arc::new(move |s: &mut State| s.prepare(piece.clone(), true));
            self.message(Kind::Commit1, 0, op, prepared).await
        })
    }

    fn decide<'a>(
        &'a self,
        anchor: PieceId,
        decision: Decision,
    ) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        Box::pin(async move {
            let no = anchor.piece;
            self.trace(Kind::Decide, no, Some(decision));
            let op = Arc::new(move |s: &mut State| s.decide(&anchor, decision));
            self.message(Kind::Decide, no, op, anchor_reply).await
        })
    }

    fn ask<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        Box::pin(async move {
            let no = anchor.piece;
            self.trace(Kind::Ask, no, None);
            let op = Arc::new(move |s: &mut State| Ok(s.ask(&anchor)));
            self.message(Kind::Ask, no, op, anchor_reply).await
        })
    }

    fn resolve<'a>(&'a self, piece: PieceId, decision: Decision) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let no = piece.piece;
            self.trace(Kind::Resolve, no, Some(decision));
            let op = move |s: &mut State| {
                s.resolve(&piece, decision);
                Ok(())
            };
            self.message(Kind::Resolve, no, Arc::new(op), fail).await
        })
    }

    fn probe<'a>(&'a self, piece: PieceId) -> BoxFuture<'a, Result<Record, Error>> {
        Box::pin(async move {
            let no = piece.piece;
            self.trace(Kind::Probe, no, None);
            self.message(Kind::Probe, no, Arc::new(move |s: &mut State| Ok(s.probe(&piece))), fail).await
        })
    }

    fn acked<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let no = anchor.piece;
            self.trace(Kind::Acked, no, None);
            let op = move |s: &mut State| {
                s.acked(&anchor);
                Ok(())
            };
            self.message(Kind::Acked, no, Arc::new(op), fail).await
        })
    }

    fn route(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.world.state().route(range)
    }

    fn route_key(&self, key: &[u8]) -> KeyRange {
        self.world.state().shard_of(key)
    }
}

/// A node with a coordinator and a recoverer, on virtual time.
pub struct Node {
    pub net: Arc<Net>,
    pub clock: Arc<Hlc>,
    pub coordinator: Arc<Coordinator>,
    pub recoverer: Arc<Recoverer>,
}

pub const WALL_US: u64 = 1_700_000_000_000_000;

pub fn node(world: &Arc<World>, seed: u64, config: Config) -> Node {
    node_with_clock(world, seed, config, Arc::new(TokioClock::new(WALL_US)))
}

pub fn node_with_clock(world: &Arc<World>, seed: u64, config: Config, clock: Arc<dyn Clock>) -> Node {
    let net = Net::new(world);
    let clock = Arc::new(Hlc::new(clock, Timestamp::MIN));
    let random = Arc::new(SplitMix64::new(seed));
    let coordinator =
        Coordinator::new(net.clone(), clock.clone(), random, Arc::new(TokioTimer), config).unwrap();
    Node { net, clock, recoverer: Recoverer::new(coordinator.clone()), coordinator }
}
