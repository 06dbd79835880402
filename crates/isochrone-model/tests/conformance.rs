//! The model's shards against the real state machine: random walks through the model, every step of a shard taken on
//! `isochrone_shard::LocalShards` as well. Records, answers, prepare timestamps, versions, floor, closed, read limit and
//! `resolved` must be the same after every step. So what the search proves of the model's shards is about those that ship,
//! as far as such walks can tell.
//!
//! Timestamps of the model are used as they are: the clock stands at zero, and takes part in nothing.
//!
//! Where evaluation and application are two steps, the log holds what it is given until the model applies it.
//!
//! Not compared: followers' reads, merges and pieces that write nothing (the real code has none of them), reads at a
//! leaseholder that was replaced (there is one node), answers of what was in
//! flight (only what it did), and second copies of a prepare that is in flight (the real leaseholder lets them wait). A walk ends where a validation fails: the real leaseholder may have raised its cache before it found that out,
//! the model's has not; both are right.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use isochrone_base::ids::INIT_INDEX;
use isochrone_base::{Bytes, Key, KeyRange, LogIndex, NodeId, ShardId, Term, Timestamp, TxnId, bank};
use isochrone_clock::Hlc;
use isochrone_env::fake::ManualClock;
use isochrone_env::{SplitMix64, Timer};
use isochrone_model::config::{Config, Txn, W, X, Y, Z};
use isochrone_model::model::Step;
use isochrone_model::state::{Keys, Kind, Phase, PieceState, Proposal, State, Ts, piece, real, small, txn};
use isochrone_model::{Mistake, Model, rules, suite};
use isochrone_shard::api::{
    AnchorReply, BoxFuture, Decision, Error, Piece, PieceId, PieceRef, Prepared, ReadAs, ReadSpan, Record,
    ShardClient, Write,
};
use isochrone_shard::command::{Command, Entry};
use isochrone_shard::{Applied, LocalShards, NewShard, ProposeError, Proposer, Routing, Shards};
use isochrone_storage::{MemEngine, mvcc};

/// Deadlines lie above all timestamps: only floors look at them.
const DEADLINES: u64 = 100;
/// Who reads and is no transaction of the model.
const READER: TxnId = TxnId(99);

/// Nobody waits: what would, is an error at once.
struct Silent;
impl Timer for Silent {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

#[derive(Default)]
struct LogState {
    shards: Option<Arc<Shards>>,
    terms: BTreeMap<ShardId, Term>,
    last: BTreeMap<ShardId, LogIndex>,
    /// Proposals are held until the walk says what becomes of them.
    holds: bool,
    held: Vec<(ShardId, Term, Entry)>,
}

/// A log that applies what it is given.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogState>>);

impl Log {
    fn append(&self, shard: ShardId, term: Term, payload: Bytes) -> LogIndex {
        let (shards, index) = {
            let mut s = self.0.lock().unwrap();
            let last = s.last.entry(shard).or_insert(INIT_INDEX);
            *last += 1;
            let index = *last;
            (s.shards.clone().unwrap(), index)
        };
        shards.apply_entries(shard, &[(index, term, payload)]).unwrap();
        index
    }
}

impl Proposer for Log {
    fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Applied, ProposeError>> {
        let mut s = self.0.lock().unwrap();
        assert_eq!(s.terms.get(&shard), Some(&term));
        let entry = Entry::decode(&payload).unwrap().unwrap();
        if s.holds && !matches!(entry.command, Command::Lease { .. } | Command::Acked { .. }) {
            s.held.push((shard, term, entry));
            return Box::pin(std::future::pending());
        }
        drop(s);
        let index = self.append(shard, term, payload);
        Box::pin(std::future::ready(Ok(Applied { index })))
    }
}

/// The answer of a request that does not wait.
fn now<T>(f: impl Future<Output = T>) -> T {
    at_once(f).expect("the request does not wait")
}

/// The answer of a request; `None`: it is in flight, and nobody waits for it any more.
fn at_once<T>(f: impl Future<Output = T>) -> Option<T> {
    match pin!(f).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(v) => Some(v),
        Poll::Pending => None,
    }
}

/// Is the entry what the model has in flight?
fn is(entry: &Entry, p: &Proposal) -> bool {
    let piece = |txn: TxnId, piece: u32| txn.0 == u128::from(p.txn) + 1 && piece == u32::from(p.piece);
    let decision = |d: &Decision| match d {
        Decision::Commit(c) => p.ts != 0 && *c == real(p.ts),
        Decision::Abort => p.ts == 0,
    };
    match (&entry.command, p.kind) {
        (Command::Prepare { piece: x, p: at }, Kind::Prepare)
        | (Command::Commit1 { piece: x, p: at }, Kind::Commit1) => piece(x.txn, x.piece) && *at == real(p.ts),
        (Command::Refuse { id }, Kind::Refuse) | (Command::Probe { id }, Kind::Probe) => {
            piece(id.txn, id.piece)
        }
        (Command::Decide { id, decision: d }, Kind::Decide)
        | (Command::Resolve { id, decision: d }, Kind::Resolve) => piece(id.txn, id.piece) && decision(d),
        _ => false,
    }
}

/// The real shards, under a model's configuration.
struct World<'a> {
    model: &'a Model,
    engine: MemEngine,
    log: Log,
    shards: Arc<Shards>,
    client: LocalShards,
}

fn shard_id(shard: usize) -> ShardId {
    ShardId(shard as u64 + 1)
}

impl<'a> World<'a> {
    fn new(model: &'a Model) -> World<'a> {
        let engine = MemEngine::new();
        let count = model.config.shards();
        let start =
            |shard: usize| if shard == 0 || shard == count { vec![] } else { vec![b'a' + shard as u8] };
        let new = |shard: usize| NewShard {
            shard: shard_id(shard),
            range: KeyRange::new(start(shard), start(shard + 1)),
            voters: vec![NodeId(1)],
            applied: INIT_INDEX,
        };
        Shards::bootstrap(&engine, &(0..count).map(new).collect::<Vec<_>>()).unwrap();
        let hlc = Arc::new(Hlc::new(Arc::new(ManualClock::new(0)), Timestamp::MIN));
        let zero = Duration::ZERO;
        let config = isochrone_shard::Config {
            lease_ahead: zero,
            prepare_wait_max: zero,
            read_wait_max: zero,
            serve_wait_max: zero,
            ..Default::default()
        };
        let shards = Shards::open(Arc::new(engine.clone()), NodeId(1), hlc, config).unwrap();
        let log = Log::default();
        {
            let mut s = log.0.lock().unwrap();
            (s.shards, s.holds) = (Some(shards.clone()), model.config.in_flight > 0);
        }
        let client =
            LocalShards::new(shards.clone(), Arc::new(log.clone()), Arc::new(Silent), Routing::Alone);
        let w = World { model, engine, log, shards, client };
        (0..count).for_each(|shard| w.new_term(shard));
        w
    }

    /// R1: another leaseholder, on the same node.
    fn new_term(&self, shard: usize) {
        let id = shard_id(shard);
        let term = {
            let mut s = self.log.0.lock().unwrap();
            s.held.retain(|(at, ..)| *at != id);
            let term = s.terms.entry(id).or_default();
            *term += 1;
            *term
        };
        self.shards.lead(id, term);
        self.shards.lease(id, term, u64::MAX);
        self.log.append(id, term, Bytes::new());
    }

    /// Puts a command straight into the log, as if it had been evaluated.
    fn log_command(&self, shard: usize, command: Command, closed: Timestamp) {
        let id = shard_id(shard);
        let term = self.log.0.lock().unwrap().terms[&id];
        let entry = Entry { term, seq: u64::MAX, closed, read_limit: Timestamp::MIN, command };
        self.log.append(id, term, entry.encode());
    }

    fn key(&self, k: usize) -> Key {
        vec![b'a' + self.model.config.shard_of[k] as u8, b'0' + k as u8]
    }

    fn deadline(t: usize) -> Timestamp {
        Timestamp(DEADLINES + t as u64 + 1)
    }

    fn id(&self, t: usize, i: usize) -> PieceId {
        let first = self.model.config.txns[t].pieces[i].writes.iter().next().unwrap();
        let txn = TxnId(t as u128 + 1);
        PieceId { txn, piece: i as u32, key: self.key(first), deadline: World::deadline(t) }
    }

    fn anchor(&self, t: usize) -> PieceId {
        self.id(t, self.model.config.txns[t].anchor)
    }

    fn span(&self, t: usize, k: usize) -> ReadSpan {
        ReadSpan { range: KeyRange::point(&self.key(k)), seen: real(self.model.config.txns[t].read_ts) }
    }

    fn piece(&self, t: usize, i: usize) -> Piece {
        let spec = &self.model.config.txns[t];
        let this = &spec.pieces[i];
        let refs = (0..spec.pieces.len()).map(|i| PieceRef { piece: i as u32, key: self.id(t, i).key });
        let write = |k: usize| Write {
            key: self.key(k),
            value: Some(Bytes::from(vec![b'A' + t as u8])),
            seen: spec.known().has(k).then(|| real(spec.read_ts)),
        };
        Piece {
            txn: TxnId(t as u128 + 1),
            piece: i as u32,
            pieces: refs.collect(),
            anchor: spec.anchor as u32,
            candidate: real(spec.candidate),
            mode: spec.mode,
            deadline: World::deadline(t),
            max_ts: real(spec.max_ts),
            writes: this.writes.iter().map(write).collect(),
            validate: this.validate.iter().map(|k| self.span(t, k)).collect(),
            validated_elsewhere: spec.elsewhere != Keys::NONE,
        }
    }

    fn read(&self, who: TxnId, k: usize, ts: Ts) {
        let who = ReadAs { txn: who, ts: real(ts), uncertain_to: real(ts) };
        now(self.client.get(who, &self.key(k))).unwrap();
    }

    /// Takes the model's step on the real shards; compares the answer. False: the walk ends here.
    fn take(&self, step: Step, before: &State, after: &State) -> bool {
        let spec = |t: usize| &self.model.config.txns[t];
        match step {
            Step::Read(k, ts) => self.read(READER, k, ts),
            Step::Begin(t) => {
                let keys = spec(t).validated().and(spec(t).known());
                keys.iter().for_each(|k| self.read(TxnId(t as u128 + 1), k, spec(t).read_ts));
            }
            Step::Validate(t, k) | Step::Revalidate(t, k) => {
                let answered = |p: &PieceState| match p.answer.get() {
                    Record::Prepared(at) => small(at),
                    _ => 0,
                };
                let ts = match (step, before.txns[t].phase) {
                    (Step::Validate(..), _) => spec(t).candidate,
                    (_, Phase::Revalidating) => before.txns[t].c,
                    _ => before.pieces[t].iter().map(answered).fold(0, Ts::max),
                };
                let answer = now(self.client.validate(TxnId(t as u128 + 1), vec![self.span(t, k)], real(ts)));
                let ok = !matches!(after.txns[t].phase, Phase::Failed | Phase::GivenUp);
                match answer {
                    Ok(()) => assert!(ok, "{step:?} succeeds"),
                    Err(Error::Conflict(_)) => assert!(!ok, "{step:?} fails"),
                    Err(e) => panic!("{step:?}: {e}"),
                }
                return ok;
            }
            Step::Prepare(t, i) => {
                let piece = self.piece(t, i);
                let validates = !piece.validate.is_empty();
                let answer = match spec(t).one_step {
                    true => at_once(self.client.commit1(piece)),
                    false => at_once(self.client.prepare(piece)),
                };
                let Some(answer) = answer else { return true };
                let found = match answer.unwrap() {
                    Prepared::At(p) => Record::Prepared(p),
                    Prepared::Committed(c) => Record::Committed(c),
                    Prepared::Refused(_) | Prepared::Pushed(_) | Prepared::OutOfRange => Record::Aborted,
                    Prepared::PastDeadline => Record::None,
                };
                assert_eq!(found, after.record(t, i), "{step:?}");
                let refused_now = found == Record::Aborted && before.record(t, i) == Record::None;
                return !(refused_now && validates);
            }
            // No request makes the real shard refuse without a reason: the entry is made by hand.
            Step::Refuse(t, i) => {
                let command = Command::Refuse { id: self.id(t, i) };
                let id = shard_id(spec(t).pieces[i].shard);
                if after.in_flight == before.in_flight {
                    self.log_command(spec(t).pieces[i].shard, command, Timestamp::MIN);
                } else {
                    let mut s = self.log.0.lock().unwrap();
                    let (term, min) = (s.terms[&id], Timestamp::MIN);
                    let entry = Entry { term, seq: u64::MAX, closed: min, read_limit: min, command };
                    s.held.push((id, term, entry));
                }
            }
            Step::Ask(t) => {
                let reply = now(self.client.ask(self.anchor(t))).unwrap();
                let past = after.shards[spec(t).pieces[spec(t).anchor].shard].floor as usize > t;
                assert_eq!(reply, rules::ask(after.record(t, spec(t).anchor), past), "{step:?}");
                self.check_told(reply, after, t);
            }
            Step::Probe(t, i) => {
                let Some(found) = at_once(self.client.probe(self.id(t, i))) else { return true };
                let found = found.unwrap();
                assert_eq!(found, rules::probed(after.record(t, i)), "{step:?}");
                assert!(found != Record::Aborted || after.pieces[t][i].is(piece::PROBED_ABORT));
            }
            Step::DecideCommit(t, recoverer) => {
                let c = if recoverer {
                    self.model.config.txns[t]
                        .pieces
                        .iter()
                        .enumerate()
                        .map(|(i, _)| before.pieces[t][i].probed)
                        .max()
                } else {
                    Some(before.txns[t].c)
                };
                self.decide(t, Decision::Commit(real(c.unwrap())), after);
            }
            Step::DecideAbort(t, _) => self.decide(t, Decision::Abort, after),
            Step::ResolveCommit(t, i) => self.resolve(t, i, Decision::Commit(real(before.txns[t].told))),
            Step::ResolveAbort(t, i) => self.resolve(t, i, Decision::Abort),
            Step::Acked(t) => now(self.client.acked(self.anchor(t))).unwrap(),
            Step::Lease(shard) => self.new_term(shard),
            Step::RaiseFloor(shard) => {
                let to = Timestamp(DEADLINES + u64::from(after.shards[shard].floor));
                self.log_command(shard, Command::RaiseFloor { to }, Timestamp::MIN);
            }
            Step::Close(shard, ts) => self.log_command(shard, Command::Close, real(ts)),
            Step::Apply(place) => self.land(&before.in_flight[place]),
            Step::FollowerRead(..) | Step::StaleRead(..) | Step::Merge => panic!("{step:?} is not compared"),
            // Nothing happens at a shard.
            Step::Send(_)
            | Step::RefuseUnrecorded(..)
            | Step::Implicit(_)
            | Step::GiveUp(_)
            | Step::HearPiece(_)
            | Step::HearRefusal(_)
            | Step::HearCommit(_)
            | Step::HearAbort(_) => {}
        }
        true
    }

    fn decide(&self, t: usize, d: Decision, after: &State) {
        if let Some(reply) = at_once(self.client.decide(self.anchor(t), d)) {
            self.check_told(reply.unwrap(), after, t);
        }
    }

    fn resolve(&self, t: usize, i: usize, d: Decision) {
        if let Some(done) = at_once(self.client.resolve(self.id(t, i), d)) {
            done.unwrap();
        }
    }

    fn land(&self, p: &Proposal) {
        let (shard, term, entry) = {
            let mut s = self.log.0.lock().unwrap();
            let at = s.held.iter().position(|(_, _, entry)| is(entry, p));
            let at = at.unwrap_or_else(|| panic!("{p:?} is in flight: {:?}", s.held));
            s.held.remove(at)
        };
        self.log.append(shard, term, entry.encode());
    }

    /// Is anything at or below `ts` prepared or in flight on the key (R4)?
    fn stands(&self, s: &State, k: usize, ts: Ts) -> bool {
        let writes = |t: usize, i: usize| self.model.config.txns[t].pieces[i].writes.has(k);
        let prepared = |t: usize, i: usize| matches!(s.record(t, i), Record::Prepared(p) if p <= real(ts));
        let txns = self.model.config.txns.iter().enumerate();
        txns.flat_map(|(t, spec)| (0..spec.pieces.len()).map(move |i| (t, i)))
            .any(|(t, i)| writes(t, i) && prepared(t, i))
            || s.in_flight.iter().any(|p| {
                let writer = matches!(p.kind, Kind::Prepare | Kind::Commit1);
                writer && p.ts <= ts && writes(p.txn.into(), p.piece.into())
            })
    }

    /// What the anchor answers is a fact of the model.
    fn check_told(&self, reply: AnchorReply, after: &State, t: usize) {
        let x = &after.txns[t];
        let known = match reply {
            AnchorReply::Decided(Decision::Commit(c)) => real(x.told) == c,
            AnchorReply::Decided(Decision::Abort) => x.is(txn::TOLD_ABORT),
            AnchorReply::Gone => x.is(txn::TOLD_GONE),
            AnchorReply::Undecided | AnchorReply::Unknown => true,
        };
        assert!(known, "the anchor answers {reply:?}");
    }

    /// Everything that can be seen of the real shards is what the model says.
    fn compare(&self, s: &State) {
        let held = self.log.0.lock().unwrap().held.len();
        assert_eq!(held, s.in_flight.iter().filter(|p| p.kind != Kind::Empty).count(), "in flight");
        let records = self.shards.records(1_000);
        for (t, spec) in self.model.config.txns.iter().enumerate() {
            for i in 0..spec.pieces.len() {
                let mine =
                    |r: &&isochrone_shard::RecordInfo| r.txn.0 == t as u128 + 1 && r.piece as usize == i;
                let found = records.iter().find(mine).map_or(Record::None, |r| r.record);
                assert_eq!(found, s.record(t, i), "record of piece {i} of transaction {t}");
            }
        }
        for (k, key) in s.keys.iter().enumerate().take(self.model.config.shard_of.len()) {
            let mut expected: Vec<(Timestamp, Vec<u8>)> = (0..self.model.config.txns.len())
                .filter(|t| key.versions[*t] != 0)
                .map(|t| (real(key.versions[t]), vec![b'A' + t as u8]))
                .collect();
            expected.sort();
            let (mut found, mut upto) = (Vec::new(), Timestamp::MAX);
            while let Some(v) = mvcc::get_at(&self.engine, &self.key(k), upto).unwrap() {
                found.insert(0, (v.ts, v.value.unwrap().to_vec()));
                upto = v.ts.prev();
            }
            assert_eq!(found, expected, "versions of key {k}");
        }
        for (k, ts) in &self.model.config.reads {
            // Below the read limit, so that the question leaves no trace.
            let limit = s.shards[self.model.config.shard_of[*k]].read_limit;
            if *ts <= limit && self.stands(s, *k, *ts) {
                let who = ReadAs { txn: READER, ts: real(*ts), uncertain_to: real(*ts) };
                let answer = now(self.client.get(who, &self.key(*k)));
                assert!(matches!(answer, Err(Error::NotServed(_))), "a read of key {k} at {ts}: {answer:?}");
            }
        }
        for (shard, found) in self.shards.states_light().into_iter().enumerate() {
            let expected = &s.shards[shard];
            assert_eq!(found.closed, real(expected.closed));
            assert_eq!(found.read_limit, real(expected.read_limit), "R1");
            let floor = if expected.floor == 0 { 0 } else { DEADLINES + u64::from(expected.floor) };
            assert_eq!(found.floor, Timestamp(floor));
            // The ghost is kept only where something is closed.
            if !self.model.config.closes.is_empty() {
                assert!(found.resolved <= real(expected.closed));
                assert_eq!(found.resolved, real(expected.published), "T7");
            }
        }
    }
}

/// What the walks go through: every configuration whose steps are single, and some with every fault.
fn configs() -> Vec<Config> {
    let xy = X.and(Y);
    let mut all: Vec<Config> = suite::small().into_iter().chain(suite::large()).collect();
    all.push(
        Config::new("everything", "every fault at once", &[0, 1, 2, 0])
            .txn(Txn::at(4).updates(xy).validates(Z.and(W)))
            .txn(Txn::at(5).reads_at(3).updates(X.and(Z)).validates(X).anchor(1))
            .read(xy.and(Z), 6)
            .closes(&[3, 5, 7])
            .leases(3)
            .floors()
            .refusals()
            .unrecorded(),
    );
    let single = all.clone().into_iter().filter(|c| c.in_flight > 0).map(|mut c| {
        c.name += " (single steps)";
        c.in_flight = 0;
        c
    });
    all.extend(single.collect::<Vec<_>>());
    for c in &mut all {
        (c.follower_reads, c.stale_reads, c.merge) = (Vec::new(), false, false);
    }
    all.retain(|c| c.txns.iter().all(|t| t.pieces.iter().all(|p| p.writes != Keys::NONE)));
    all
}

/// One walk, the real shards beside it; panics where they differ. Counts the steps by kind.
fn walk(model: &Model, seed: u64, taken: &mut BTreeMap<String, u64>) {
    const STEPS_MAX: usize = 80;
    let random = SplitMix64::split(seed, &model.config.name);
    let world = World::new(model);
    let mut state = model.initial();
    let mut story = Story { model, seed, trace: Vec::new() };
    let mut successors = Vec::new();
    for _ in 0..STEPS_MAX {
        model.successors(&state, &mut successors);
        // The real leaseholder lets second copies wait.
        let proposes = |p: &Proposal| matches!(p.kind, Kind::Prepare | Kind::Commit1 | Kind::Refuse);
        let copy = |t: usize, i: usize| {
            let same = |p: &Proposal| usize::from(p.txn) == t && usize::from(p.piece) == i;
            state.in_flight.iter().any(|p| proposes(p) && same(p))
        };
        successors.retain(|(step, _)| match step {
            Step::Prepare(t, i) | Step::Refuse(t, i) => !copy(*t, *i),
            _ => true,
        });
        if successors.is_empty() {
            return;
        }
        let (step, after) = successors[random.below(successors.len() as u64) as usize];
        story.trace.push((step, after));
        *taken.entry(step.kind()).or_default() += 1;
        if !world.take(step, &state, &after) {
            return;
        }
        world.compare(&after);
        state = after;
    }
}

#[test]
fn the_real_state_machine_does_the_same() {
    const WALKS: u64 = 300;
    let mut taken = BTreeMap::new();
    for config in configs() {
        let model = Model::new(config, None);
        (0..WALKS).for_each(|seed| walk(&model, seed, &mut taken));
    }
    println!("{taken:?}");
    let kinds = "Acked Apply Ask Begin Close DecideAbort DecideCommit Lease Prepare Probe RaiseFloor Read Refuse ResolveAbort \
                 ResolveCommit Revalidate Validate";
    for kind in kinds.split_whitespace() {
        assert!(taken.get(kind).is_some_and(|n| *n >= 100), "{kind}: {taken:?}");
    }
}

/// The comparison bites: a model with a mistake of the shard differs from the real one sooner or later.
#[test]
fn a_mistake_makes_a_difference() {
    use Mistake::*;
    let mistakes = [
        NoTombstone,
        AnchorForgetsOnAcks,
        AnchorForgetsAtDeadline,
        NoRecheck,
        ReadsIgnoreInFlight,
        OldTermApplied,
        SlowClockAccepts,
        PrepareDropped,
        LaterDecisionWins,
        AbsenceNotBlocked,
        BlockRemovesPrepare,
        PrepareEvaluatedAgain,
        Commit1NoRecord,
        Commit1Pushed,
        AtMaxValidatesToCandidate,
        ValidationIgnoresPrepares,
        ValidationNotCached,
        SnapshotPushesOverNewer,
        LockTrusted,
        NoLowWater,
        ReaderIgnoresPrepare,
        NotAboveClosed,
        ResolvedIgnoresPrepares,
        ResolveLeavesNoMarker,
    ];
    let differs = |mistake: Mistake| {
        configs().into_iter().any(|config| {
            let model = Model::new(config, Some(mistake));
            (0..300)
                .any(|seed| std::panic::catch_unwind(|| walk(&model, seed, &mut BTreeMap::new())).is_err())
        })
    };
    let unnoticed: Vec<Mistake> = mistakes.into_iter().filter(|m| !differs(*m)).collect();
    assert_eq!(unnoticed, []);
}

/// And so does a bug of the bank that is put back into the real shards.
#[test]
fn a_bug_makes_a_difference() {
    if !bank::IN_THIS_BUILD {
        return;
    }
    let bugs = [
        "tombstone-not-kept",
        "anchor-forgets-on-acks",
        "anchor-forgets-at-deadline",
        "record-not-checked-again",
        "refusal-leaves-no-record",
        "later-decision-wins",
        "probe-does-not-block",
        "probe-removes-a-prepare",
        "prepare-evaluated-again",
        "one-step-commit-leaves-no-record",
        "validated-to-candidate",
        "validation-ignores-prepares",
        "validation-not-remembered",
        "pushed-over-newer-version",
        "commit-at-own-p",
        "no-low-water-mark",
        "reader-ignores-prepares",
        "reader-ignores-in-flight",
        "read-not-remembered",
    ];
    let differs = |name: &str| {
        bank::put_back(Some(bank::find(name).unwrap()));
        let found = configs().into_iter().any(|config| {
            let model = Model::new(config, None);
            (0..300)
                .any(|seed| std::panic::catch_unwind(|| walk(&model, seed, &mut BTreeMap::new())).is_err())
        });
        bank::put_back(None);
        found
    };
    let unnoticed: Vec<&str> = bugs.into_iter().filter(|b| !differs(b)).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

/// Prints the walk if a comparison fails.
struct Story<'a> {
    model: &'a Model,
    seed: u64,
    trace: Vec<(Step, State)>,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}, seed {}:\n{}", self.model.config.name, self.seed, self.model.narrate(&self.trace));
        }
    }
}
