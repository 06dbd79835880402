//! Two shards, [.., "m") and ["m", ..), on an engine in memory, under a log that a test holds in its hands.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use isochrone_base::ids::INIT_INDEX;
use isochrone_base::{Bytes, Key, KeyRange, LogIndex, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId};
use isochrone_clock::Hlc;
use isochrone_env::Timer;
use isochrone_env::fake::{ManualClock, NoWait};
use isochrone_storage::{
    Engine, EngineStats, FlushCallback, MemEngine, Reader, ScanIter, Snapshot, WriteBatch, mvcc,
};
use tokio::sync::oneshot;

use crate::api::*;
use crate::command::Entry;
use crate::{Applied, Config, LocalShards, NewShard, ProposeError, Proposer, Routing, Shards};

pub(super) const LEFT: ShardId = ShardId(1);
pub(super) const RIGHT: ShardId = ShardId(2);
pub(super) const OTHER: NodeId = NodeId(2);
pub(super) const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// A timer that never rings: a test that waits for it hangs visibly, as a pending future.
struct Silent;
impl Timer for Silent {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// A proposal that the log has not decided about.
pub(super) struct Held {
    pub(super) shard: ShardId,
    pub(super) term: Term,
    pub(super) payload: Bytes,
    reply: oneshot::Sender<Result<Applied, ProposeError>>,
}

impl Held {
    pub(super) fn kind(&self) -> &'static str {
        crate::command::show(&self.payload).kind
    }
}

#[derive(Default)]
pub(super) struct LogState {
    shards: Option<Arc<Shards>>,
    pub(super) terms: BTreeMap<ShardId, Term>,
    pub(super) logs: BTreeMap<ShardId, Vec<(LogIndex, Term, Bytes)>>,
    /// Proposals are held instead of applied at once.
    pub(super) hold: bool,
    pub(super) held: Vec<Held>,
}

/// The log under test: see [`LogState`].
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<LogState>>);

impl Log {
    pub(super) fn state(&self) -> MutexGuard<'_, LogState> {
        self.0.lock().unwrap()
    }

    fn append(&self, shard: ShardId, term: Term, payload: Bytes) -> LogIndex {
        let (shards, entry) = {
            let mut s = self.state();
            let log = s.logs.entry(shard).or_default();
            // Every log of this world begins there.
            let entry = (INIT_INDEX + log.len() as u64 + 1, term, payload);
            log.push(entry.clone());
            (s.shards.clone().unwrap(), entry)
        };
        shards.apply_entries(shard, std::slice::from_ref(&entry)).unwrap();
        entry.0
    }
}

impl Proposer for Log {
    fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Applied, ProposeError>> {
        let mut s = self.state();
        if s.terms.get(&shard) != Some(&term) {
            return Box::pin(std::future::ready(Err(ProposeError::NotLeader)));
        }
        if s.hold {
            let (reply, rx) = oneshot::channel();
            s.held.push(Held { shard, term, payload, reply });
            return Box::pin(async move { rx.await.unwrap_or(Err(ProposeError::Ambiguous("lost".into()))) });
        }
        drop(s);
        let index = self.append(shard, term, payload);
        Box::pin(std::future::ready(Ok(Applied { index })))
    }
}

#[derive(Default)]
pub(super) struct Suspects(Mutex<Vec<Suspect>>);
impl Recover for Suspects {
    fn recover(&self, suspect: Suspect) {
        self.0.lock().unwrap().push(suspect);
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// The engine, with something else happening at a chosen read: what another thread would do between two steps. That it
/// can happen at all shows that no mutex is held over engine calls (S1).
#[derive(Clone)]
pub(super) struct Hooked {
    inner: MemEngine,
    armed: Arc<AtomicU64>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Hooked {
    fn new(inner: MemEngine) -> Hooked {
        Hooked { inner, armed: Arc::default(), hook: Arc::default() }
    }

    /// Runs `hook` after the `nth` read (get, scan or snapshot) from now, counted from 1.
    pub(super) fn at_read(&self, nth: u64, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
        self.armed.store(nth, Ordering::SeqCst);
    }

    fn after_read(&self) {
        if self.armed.load(Ordering::SeqCst) > 0 && self.armed.fetch_sub(1, Ordering::SeqCst) == 1 {
            let hook = self.hook.lock().unwrap().take().unwrap();
            hook();
        }
    }

    pub(super) fn fired(&self) -> bool {
        self.hook.lock().unwrap().is_none()
    }
}

impl Reader for Hooked {
    fn get(&self, key: &[u8]) -> isochrone_storage::Result<Option<Bytes>> {
        let r = self.inner.get(key);
        self.after_read();
        r
    }
    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        let r = self.inner.scan(range, reverse);
        self.after_read();
        r
    }
}

impl Engine for Hooked {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        let r = self.inner.snapshot();
        self.after_read();
        r
    }
    fn write(&self, batch: WriteBatch) -> isochrone_storage::Result<()> {
        self.inner.write(batch)
    }
    fn written_seq(&self) -> u64 {
        self.inner.written_seq()
    }
    fn flushed_seq(&self) -> u64 {
        self.inner.flushed_seq()
    }
    fn request_flush(&self) -> isochrone_storage::Result<u64> {
        self.inner.request_flush()
    }
    fn flush(&self) -> isochrone_storage::Result<()> {
        self.inner.flush()
    }
    fn on_flush(&self, callback: FlushCallback) {
        self.inner.on_flush(callback);
    }
    fn memtable_bytes(&self) -> u64 {
        self.inner.memtable_bytes()
    }
    fn needs_flush(&self) -> bool {
        self.inner.needs_flush()
    }
    fn approximate_bytes(&self, range: &KeyRange) -> u64 {
        self.inner.approximate_bytes(range)
    }
    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
}

pub(super) struct World {
    pub(super) routing: Routing,
    pub(super) hooked: Hooked,
    pub(super) engine: MemEngine,
    pub(super) clock: Arc<ManualClock>,
    pub(super) hlc: Arc<Hlc>,
    pub(super) config: Config,
    timer: Arc<dyn Timer>,
    pub(super) log: Log,
    pub(super) shards: Arc<Shards>,
    pub(super) client: Arc<LocalShards>,
    pub(super) suspects: Arc<Suspects>,
}

pub(super) fn config() -> Config {
    Config { prepare_wait_max: Duration::ZERO, serve_wait_max: Duration::ZERO, ..Config::default() }
}

impl World {
    pub(super) fn new() -> World {
        World::with(config(), false)
    }

    pub(super) fn with(config: Config, rings: bool) -> World {
        World::with_timer(config, |_| if rings { Arc::new(NoWait) } else { Arc::new(Silent) })
    }

    pub(super) fn with_timer(
        config: Config,
        timer: impl FnOnce(Arc<ManualClock>) -> Arc<dyn Timer>,
    ) -> World {
        let engine = MemEngine::new();
        let new = |(shard, range)| NewShard { shard, range, voters: VOTERS.to_vec(), applied: INIT_INDEX };
        let ranges = [(LEFT, KeyRange::new(*b"", *b"m")), (RIGHT, KeyRange::new(*b"m", *b""))].map(new);
        Shards::bootstrap(&engine, &ranges).unwrap();
        assert!(Shards::bootstrap(&engine, &ranges).is_err());
        engine.flush().unwrap();
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let hlc = Arc::new(Hlc::new(clock.clone(), Timestamp::MIN));
        let timer = timer(clock.clone());
        let log = Log::default();
        let hooked = Hooked::new(engine.clone());
        let (shards, client, suspects) = open(&hooked, &hlc, &config, &timer, &log, Routing::Alone);
        let routing = Routing::Alone;
        let mut w =
            World { routing, hooked, engine, clock, hlc, config, timer, log, shards, client, suspects };
        w.new_term(LEFT, &[]);
        w.new_term(RIGHT, &[]);
        w
    }

    /// A node among others: what it does not lead, it does not wait for.
    pub(super) fn in_cluster(config: Config) -> World {
        let mut w = World::with(config, false);
        w.routing = Routing::Cluster;
        w.restart(false, &[]);
        w
    }

    /// The process dies and comes back; the engine falls back to its last flush if `lose`. What was held is lost but for
    /// `land` (positions in the list of held proposals).
    pub(super) fn restart(&mut self, lose: bool, land: &[usize]) {
        self.shards.stop("the process died");
        if lose {
            self.engine.crash();
        }
        (self.shards, self.client, self.suspects) =
            open(&self.hooked, &self.hlc, &self.config, &self.timer, &self.log, self.routing);
        // Replaying one log may create the shard of another.
        let mut replayed = std::collections::BTreeSet::new();
        while let Some(meta) = self.shards.list().into_iter().find(|m| !replayed.contains(&m.shard)) {
            let log = self.log.state().logs.get(&meta.shard).cloned().unwrap_or_default();
            let tail: Vec<_> = log.into_iter().filter(|e| e.0 > meta.applied).collect();
            self.shards.apply_entries(meta.shard, &tail).unwrap();
            replayed.insert(meta.shard);
        }
        for shard in self.shards.list().iter().map(|m| m.shard).collect::<Vec<_>>() {
            self.new_term(shard, land);
        }
    }

    /// The same node with other shards: those of an engine that was prepared.
    pub(super) fn reopen_on(&mut self, engine: MemEngine) {
        self.hooked = Hooked::new(engine.clone());
        self.engine = engine;
        *self.log.state() = LogState::default();
        self.restart(false, &[]);
    }

    /// A new term of leadership on this node: everything volatile is lost. Of the proposals held, those in `land` were
    /// logged before the term, the others never.
    pub(super) fn new_term(&mut self, shard: ShardId, land: &[usize]) {
        let (landed, lost, term) = {
            let mut s = self.log.state();
            let term = s.terms.get(&shard).copied().unwrap_or(0) + 1;
            s.terms.insert(shard, term);
            let (mut landed, mut lost, mut other) = (Vec::new(), Vec::new(), Vec::new());
            for (i, held) in std::mem::take(&mut s.held).into_iter().enumerate() {
                match (held.shard == shard, land.contains(&i)) {
                    (false, _) => other.push(held),
                    (true, true) => landed.push(held),
                    (true, false) => lost.push(held),
                }
            }
            s.held = other;
            (landed, lost, term)
        };
        self.shards.lead(shard, term);
        self.shards.lease(shard, term, u64::MAX);
        for held in landed {
            self.log.append(shard, held.term, held.payload);
            let _ = held.reply.send(Err(ProposeError::Ambiguous("leadership changed".into())));
        }
        drop(lost);
        self.log.append(shard, term, Bytes::new());
    }

    /// Gives a first term to shards that a split created.
    pub(super) fn lead_new(&mut self) {
        for meta in self.shards.list() {
            if !self.log.state().terms.contains_key(&meta.shard) {
                self.new_term(meta.shard, &[]);
            }
        }
    }

    pub(super) fn timer(&self) -> Arc<dyn Timer> {
        self.timer.clone()
    }

    pub(super) fn hold(&self) {
        self.log.state().hold = true;
    }

    pub(super) fn held(&self) -> Vec<&'static str> {
        self.log.state().held.iter().map(Held::kind).collect()
    }

    /// Applies one of the held proposals.
    pub(super) fn land(&self, at: usize) {
        let held = self.log.state().held.remove(at);
        let index = self.log.append(held.shard, held.term, held.payload);
        let _ = held.reply.send(Ok(Applied { index }));
    }

    pub(super) fn land_all(&self) {
        while !self.log.state().held.is_empty() {
            self.land(0);
        }
    }

    /// Refuses one of the held proposals: certainly not logged.
    pub(super) fn refuse(&self, at: usize) {
        let held = self.log.state().held.remove(at);
        let _ = held.reply.send(Err(ProposeError::Overloaded));
    }

    /// Refuses all that is held, and holds no more.
    pub(super) fn unhold_refusing(&self) {
        while !self.held().is_empty() {
            self.refuse(0);
        }
        self.unhold();
    }

    pub(super) fn unhold(&self) {
        self.log.state().hold = false;
        self.land_all();
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.advance(Duration::from_micros(10));
        self.hlc.now()
    }

    pub(super) fn pass(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
    }

    pub(super) fn suspected(&self) -> Vec<TxnId> {
        self.suspects.0.lock().unwrap().drain(..).map(|s| s.txn).collect()
    }

    pub(super) fn take_suspects(&self) -> Vec<Suspect> {
        std::mem::take(&mut *self.suspects.0.lock().unwrap())
    }

    pub(super) fn get(&self, txn: u128, key: &str, ts: Timestamp) -> Result<Option<String>, Error> {
        now(self.client.get(as_of(txn, ts), key.as_bytes()))
            .map(|s| s.map(|s| String::from_utf8(s.value.to_vec()).unwrap()))
    }

    pub(super) fn prepare(&self, piece: &Piece) -> Prepared {
        now(self.client.prepare(piece.clone())).unwrap()
    }

    pub(super) fn commit1(&self, piece: &Piece) -> Prepared {
        now(self.client.commit1(piece.clone())).unwrap()
    }

    /// Commits a row as one piece, blindly.
    pub(super) fn put(&self, txn: u128, key: &str, value: &str) -> Timestamp {
        let p = one(txn, &[(key, value)], None, self.now());
        match self.commit1(&p) {
            Prepared::Committed(c) => c,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn decide(&self, p: &Piece, d: Decision) -> Result<AnchorReply, Error> {
        now(self.client.decide(id(p, p.anchor), d))
    }

    pub(super) fn resolve(&self, p: &Piece, d: Decision) -> Result<(), Error> {
        now(self.client.resolve(id(p, p.piece), d))
    }

    pub(super) fn probe(&self, p: &Piece) -> Result<Record, Error> {
        now(self.client.probe(id(p, p.piece)))
    }

    pub(super) fn record(&self, p: &Piece) -> Record {
        self.shards
            .records(10_000)
            .into_iter()
            .find(|r| r.txn == p.txn && r.piece == p.piece)
            .map_or(Record::None, |r| r.record)
    }

    /// Raises the floor of a shard, whether or not that drops something.
    pub(super) fn raise_floor(&self, shard: ShardId, to: Timestamp) {
        self.log_command(shard, crate::command::Command::RaiseFloor { to });
    }

    /// Puts a command straight into the log, as if it had been evaluated in the present term.
    pub(super) fn log_command(&self, shard: ShardId, command: crate::command::Command) {
        let term = self.log.state().terms[&shard];
        self.log_command_of(shard, term, command, Timestamp::MIN);
    }

    pub(super) fn log_command_of(
        &self,
        shard: ShardId,
        evaluated: Term,
        command: crate::command::Command,
        closed: Timestamp,
    ) {
        let term = self.log.state().terms[&shard];
        let e = Entry { term: evaluated, seq: u64::MAX, closed, read_limit: Timestamp::MIN, command };
        self.log.append(shard, term, e.encode());
    }

    pub(super) fn versions(&self, key: &str) -> Vec<(Timestamp, Option<String>)> {
        let mut out = Vec::new();
        let mut ts = Timestamp::MAX;
        while let Some(v) = mvcc::get_at(&self.engine, key.as_bytes(), ts).unwrap() {
            out.push((v.ts, v.value.map(|v| String::from_utf8(v.to_vec()).unwrap())));
            ts = v.ts.prev();
        }
        out
    }
}

fn open(
    engine: &Hooked,
    hlc: &Arc<Hlc>,
    config: &Config,
    timer: &Arc<dyn Timer>,
    log: &Log,
    routing: Routing,
) -> (Arc<Shards>, Arc<LocalShards>, Arc<Suspects>) {
    let shards = Shards::open(Arc::new(engine.clone()), NodeId(1), hlc.clone(), config.clone()).unwrap();
    log.state().shards = Some(shards.clone());
    let log = Arc::new(log.clone());
    let client = Arc::new(LocalShards::new(shards.clone(), log, timer.clone(), routing));
    let suspects = Arc::new(Suspects::default());
    client.set_recover(suspects.clone());
    (shards, client, suspects)
}

pub(super) fn poll<T>(f: &mut Pin<Box<dyn Future<Output = T> + Send + '_>>) -> Poll<T> {
    f.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The answer of a request that must not wait.
pub(super) fn now<T>(f: impl Future<Output = T> + Send) -> T {
    match poll(&mut (Box::pin(f) as Pin<Box<dyn Future<Output = T> + Send + '_>>)) {
        Poll::Ready(v) => v,
        Poll::Pending => panic!("the request waits"),
    }
}

pub(super) fn as_of(txn: u128, ts: Timestamp) -> ReadAs {
    ReadAs { txn: TxnId(txn), ts, uncertain_to: ts }
}

pub(super) fn span(a: &str, b: &str, seen: Timestamp) -> ReadSpan {
    let range = if b.is_empty() { KeyRange::point(a.as_bytes()) } else { KeyRange::new(a, b) };
    ReadSpan { range, seen }
}

pub(super) fn id(p: &Piece, piece: PieceNo) -> PieceId {
    let key = p.pieces.iter().find(|x| x.piece == piece).unwrap().key.clone();
    PieceId { txn: p.txn, piece, key, deadline: p.deadline }
}

/// The pieces of a transaction, one for each list of writes; the first is the anchor.
pub(super) fn pieces(
    txn: u128,
    writes: &[&[(&str, &str)]],
    seen: Option<Timestamp>,
    candidate: Timestamp,
    mode: Mode,
) -> Vec<Piece> {
    let refs: Vec<PieceRef> = writes
        .iter()
        .enumerate()
        .map(|(i, w)| PieceRef { piece: i as PieceNo, key: Key::from(w[0].0) })
        .collect();
    writes
        .iter()
        .enumerate()
        .map(|(i, w)| Piece {
            txn: TxnId(txn),
            piece: i as PieceNo,
            pieces: refs.clone(),
            anchor: 0,
            candidate,
            mode,
            deadline: candidate.plus_micros(10_000_000),
            max_ts: Timestamp::MAX,
            writes: w
                .iter()
                .map(|(k, v)| Write {
                    key: Key::from(*k),
                    value: (!v.is_empty()).then(|| Bytes::copy_from_slice(v.as_bytes())),
                    seen,
                })
                .collect(),
            validate: Vec::new(),
            validated_elsewhere: false,
        })
        .collect()
}

pub(super) fn one(
    txn: u128,
    writes: &[(&str, &str)],
    seen: Option<Timestamp>,
    candidate: Timestamp,
) -> Piece {
    pieces(txn, &[writes], seen, candidate, Mode::AtMax).remove(0)
}

/// A transaction that writes "a" on the left and "z" on the right.
pub(super) fn pair(txn: u128, candidate: Timestamp, mode: Mode) -> (Piece, Piece) {
    let value = txn.to_string();
    let mut both = pieces(txn, &[&[("a", &value)], &[("z", &value)]], None, candidate, mode);
    let right = both.remove(1);
    (both.remove(0), right)
}

/// A replica of both shards on another node; a test feeds it.
pub(super) struct Follower {
    pub(super) engine: MemEngine,
    pub(super) hlc: Arc<Hlc>,
    pub(super) shards: Arc<Shards>,
}

/// Another replica of both shards, which has applied nothing yet.
pub(super) fn follower(w: &World) -> Follower {
    let engine = MemEngine::new();
    let new = |(shard, range)| NewShard { shard, range, voters: VOTERS.to_vec(), applied: INIT_INDEX };
    let ranges = [(LEFT, KeyRange::new(*b"", *b"m")), (RIGHT, KeyRange::new(*b"m", *b""))].map(new);
    Shards::bootstrap(&engine, &ranges).unwrap();
    engine.flush().unwrap();
    let hlc = Arc::new(Hlc::new(Arc::new(ManualClock::new(1)), Timestamp::MIN));
    let shards = Shards::open(Arc::new(engine.clone()), OTHER, hlc.clone(), w.config.clone()).unwrap();
    Follower { engine, hlc, shards }
}

pub(super) fn everything(engine: &dyn Reader) -> Vec<(Bytes, Bytes)> {
    engine.scan(&KeyRange::all(), false).map(Result::unwrap).collect()
}

impl Follower {
    /// Puts rows and state of a shard of the leader into the engine, behind everybody's back.
    pub(super) fn plant(&self, w: &World, shard: ShardId) {
        let range = w.shards.get(shard).unwrap().range();
        let mut batch = isochrone_storage::WriteBatch::new();
        for (key, value) in everything(&w.engine) {
            let mine = match key[0] {
                b'd' => range.contains(&key[1..]),
                b'h' => range.contains(&isochrone_storage::mvcc::parse_history_key(&key).unwrap().0),
                _ => key[1..9] == shard.0.to_be_bytes(),
            };
            if mine {
                batch.put(key.to_vec(), value);
            }
        }
        self.engine.write(batch).unwrap();
    }

    pub(super) fn reopened(self, w: &World) -> Follower {
        let engine = Arc::new(self.engine.clone());
        let shards = Shards::open(engine, OTHER, self.hlc.clone(), w.config.clone()).unwrap();
        Follower { shards, ..self }
    }
}
