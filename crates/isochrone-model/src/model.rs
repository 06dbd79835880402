//! The steps of the model: who may do what in a state, and what it becomes.
//!
//!     coordinator (R9, R14, R15, R19, R22)      recoverers (R18)       a shard by itself (R1, R2, R20)
//!        reads, validates, sends, reports          ask, probe,            applies, moves its lease,
//!                    │ prepare, commit1, decide    decide, resolve        raises floor and closed
//!                    └──────────────┬───────────────┘                                │
//!                                   ▼                                                ▼
//!                       shard: evaluate ──(proposal)──▶ apply: record, versions, facts
//!
//! Messages are a grow-only set, and need no place in the state: a message exists from the moment in which its sender was
//! entitled to send it, that moment never passes again (what entitles is a phase or a fact), and its delivery is a step
//! that may happen never, once, or again at any later time. Answers are facts (see [`crate::state`]). A crash of a coordinator
//! or recoverer is a trace in which it takes no further step; recoverers have no state but facts, so any number of them may
//! run at once, each starting from what others heard as well.

use std::fmt;

use isochrone_shard::api::{Decision, Mode, Record};

use crate::config::{Config, TxnSpec};
use crate::invariants::Invariant;
use crate::mistake::Mistake;
use crate::state::{Keys, Kind, Packed, Phase, Proposal, State, Ts, piece as piece_flags, real, small, txn};

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A client reads at the leaseholder (R4).
    Read(usize, Ts),
    /// A client reads at a leaseholder that does not know that it has been replaced (R1).
    StaleRead(usize, Ts),
    /// A client reads at a follower (R6).
    FollowerRead(usize, Ts),
    /// A transaction reads what it needs at its snapshot (R4).
    Begin(usize),
    /// R9.2, one key.
    Validate(usize, usize),
    /// R9.3: the prepares, or the commit in one step, leave.
    Send(usize),
    /// A copy of a prepare, or of a commit in one step, arrives (R11, R13).
    Prepare(usize, usize),
    /// A shard refuses it, finally (R12), for a reason beside the model.
    Refuse(usize, usize),
    /// A shard refuses it and leaves no record (R12).
    RefuseUnrecorded(usize, usize),
    /// R14: the coordinator has heard of every piece.
    Implicit(usize),
    /// R15, one key.
    Revalidate(usize, usize),
    /// R19.
    GiveUp(usize),
    /// A piece answered `committed` to its prepare or commit in one step: COMMIT.
    HearPiece(usize),
    /// R22: a final refusal: ABORT.
    HearRefusal(usize),
    /// R22: the anchor answered `committed`: COMMIT.
    HearCommit(usize),
    /// R22: the anchor answered `aborted`: ABORT.
    HearAbort(usize),
    /// R18.1.
    Ask(usize),
    /// R18.2.
    Probe(usize, usize),
    /// R16: a `decide(commit)` arrives; the flag: a recoverer's.
    DecideCommit(usize, bool),
    /// R16: a `decide(abort)` arrives; the flag: a recoverer's.
    DecideAbort(usize, bool),
    /// R17: a `resolve(commit)` arrives.
    ResolveCommit(usize, usize),
    /// R17: a `resolve(abort)` arrives.
    ResolveAbort(usize, usize),
    /// R21: the anchor hears that all pieces acknowledged.
    Acked(usize),
    /// R2: the proposal in this place is applied.
    Apply(usize),
    /// R1: another leaseholder; proposals in flight are lost.
    Lease(usize),
    /// R20.
    RaiseFloor(usize),
    /// Nothing is written at or below this any more.
    Close(usize, Ts),
    /// Section 11: the second shard becomes part of the first.
    Merge,
}

impl Step {
    /// The name of the kind of step.
    pub fn kind(self) -> String {
        let words = format!("{self:?}");
        words.split('(').next().unwrap_or_default().to_string()
    }
}

/// The protocol, or the protocol with a mistake, under the bounds of a configuration.
#[derive(Clone, Debug)]
pub struct Model {
    /// The bounds.
    pub config: Config,
    /// What is done wrong.
    pub mistake: Option<Mistake>,
    steps: Vec<Step>,
}

impl Model {
    /// The protocol under these bounds.
    pub fn new(config: Config, mistake: Option<Mistake>) -> Model {
        let mut m = Model { config, mistake, steps: Vec::new() };
        m.steps = m.conceivable();
        m
    }

    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    pub(crate) fn spec(&self, t: usize) -> &TxnSpec {
        &self.config.txns[t]
    }

    pub(crate) fn pieces_of(&self, t: usize) -> std::ops::Range<usize> {
        0..self.spec(t).pieces.len()
    }

    /// Every piece is a participant, the anchor as well.
    pub(crate) fn participates(&self, t: usize, i: usize) -> bool {
        !(self.makes(Mistake::AnchorTakesNoPart) && i == self.spec(t).anchor)
    }

    pub(crate) fn participants(&self, t: usize) -> impl Iterator<Item = usize> {
        self.pieces_of(t).filter(move |i| self.participates(t, *i))
    }

    pub(crate) fn mode(&self, t: usize) -> Mode {
        if self.makes(Mistake::LockedOnlyAtMax) { Mode::AtMax } else { self.spec(t).mode }
    }

    /// Has the floor of the piece's shard passed the deadline?
    pub(crate) fn past(&self, s: &State, t: usize, i: usize) -> bool {
        let deadline = t + 1;
        deadline <= usize::from(s.shards[self.shard_of(s, t, i)].floor)
    }

    /// The state in which everything begins: one version of every key, at [`crate::state::INITIAL`].
    pub fn initial(&self) -> State {
        State::default()
    }

    /// All steps that could ever be taken under these bounds, in the order in which they are tried.
    fn conceivable(&self) -> Vec<Step> {
        let c = &self.config;
        let mut all = Vec::new();
        for (t, spec) in c.txns.iter().enumerate() {
            let pieces = || 0..spec.pieces.len();
            all.extend([Step::Begin(t), Step::Send(t)]);
            all.extend(spec.elsewhere.iter().map(|k| Step::Validate(t, k)));
            all.extend(self.participants(t).map(|i| Step::Prepare(t, i)));
            if c.refusals {
                all.extend(self.participants(t).map(|i| Step::Refuse(t, i)));
            }
            if c.unrecorded {
                // Without a mistake, nothing comes of it.
                all.extend(self.participants(t).map(|i| Step::RefuseUnrecorded(t, i)));
            }
            if !spec.one_step {
                all.push(Step::Implicit(t));
                all.extend(spec.validated().iter().map(|k| Step::Revalidate(t, k)));
                all.push(Step::Ask(t));
                all.extend(pieces().map(|i| Step::Probe(t, i)));
                all.extend([
                    Step::DecideCommit(t, true),
                    Step::DecideAbort(t, true),
                    Step::DecideCommit(t, false),
                ]);
                for i in pieces().filter(|i| *i != spec.anchor) {
                    all.extend([Step::ResolveCommit(t, i), Step::ResolveAbort(t, i)]);
                }
                all.push(Step::Acked(t));
            }
            all.extend([Step::GiveUp(t), Step::DecideAbort(t, false)]);
            all.extend([Step::HearPiece(t), Step::HearRefusal(t), Step::HearCommit(t), Step::HearAbort(t)]);
        }
        all.extend((0..c.in_flight).map(|i| Step::Apply(crate::state::IN_FLIGHT_MAX - 1 - i)));
        all.extend(c.reads.iter().map(|(k, ts)| Step::Read(*k, *ts)));
        if c.stale_reads {
            all.extend(c.reads.iter().map(|(k, ts)| Step::StaleRead(*k, *ts)));
        }
        all.extend(c.follower_reads.iter().map(|(k, ts)| Step::FollowerRead(*k, *ts)));
        for shard in 0..c.shards() {
            if c.floors {
                all.push(Step::RaiseFloor(shard));
            }
            all.extend(c.closes.iter().map(|ts| Step::Close(shard, *ts)));
            if c.leases > 0 {
                all.push(Step::Lease(shard));
            }
        }
        if c.merge {
            all.push(Step::Merge);
        }
        all
    }

    /// Every step that changes something, with what the state becomes.
    pub fn successors(&self, s: &State, out: &mut Vec<(Step, State)>) {
        out.clear();
        for step in &self.steps {
            if let Some(next) = self.take(s, *step) {
                out.push((*step, next));
            }
        }
    }

    /// Takes a step, if it may be taken and changes something.
    pub fn take(&self, s: &State, step: Step) -> Option<State> {
        let mut n = *s;
        let taken = match step {
            Step::Read(k, ts) => self.read(&mut n, k, ts),
            Step::StaleRead(k, ts) => self.stale_read(&mut n, k, ts),
            Step::FollowerRead(k, ts) => self.follower_read(&mut n, k, ts),
            Step::Begin(t) => self.begin(&mut n, t),
            Step::Validate(t, k) => self.validate_elsewhere(&mut n, t, k),
            Step::Send(t) => self.send(&mut n, t),
            Step::Prepare(t, i) => self.has_sent(s, t) && self.evaluate(&mut n, t, i),
            Step::Refuse(t, i) => self.has_sent(s, t) && self.refuse(&mut n, t, i),
            Step::RefuseUnrecorded(t, i) => self.has_sent(s, t) && self.refuse_unrecorded(&mut n, t, i),
            Step::Implicit(t) => self.implicit(&mut n, t),
            Step::Revalidate(t, k) => self.revalidate(&mut n, t, k),
            Step::GiveUp(t) => self.give_up(&mut n, t),
            Step::HearPiece(t) => self.hear_piece(&mut n, t),
            Step::HearRefusal(t) => self.hear_refusal(&mut n, t),
            Step::HearCommit(t) => self.hear_commit(&mut n, t),
            Step::HearAbort(t) => self.hear_abort(&mut n, t),
            Step::Ask(t) => self.ask(&mut n, t),
            Step::Probe(t, i) => self.probe(&mut n, t, i),
            Step::DecideCommit(t, recoverer) => {
                let c = if recoverer { self.verdict_commit(s, t) } else { self.coordinator_commit(s, t) };
                c.is_some_and(|c| self.decide(&mut n, t, Decision::Commit(real(c))))
            }
            Step::DecideAbort(t, recoverer) => {
                let sent =
                    if recoverer { self.verdict_abort(s, t) } else { s.txns[t].phase == Phase::GivenUp };
                sent && self.decide(&mut n, t, Decision::Abort)
            }
            Step::ResolveCommit(t, i) => self
                .outcome_commit(s, t)
                .is_some_and(|c| self.resolve(&mut n, t, i, Decision::Commit(real(c)))),
            Step::ResolveAbort(t, i) => {
                self.outcome_abort(s, t) && self.resolve(&mut n, t, i, Decision::Abort)
            }
            Step::Acked(t) => self.acked(&mut n, t),
            Step::Apply(place) => self.land(&mut n, place),
            Step::Lease(shard) => self.change_lease(&mut n, shard),
            Step::RaiseFloor(shard) => self.raise_floor(&mut n, shard),
            Step::Close(shard, ts) => self.close(&mut n, shard, ts),
            Step::Merge => self.merge(&mut n),
        };
        if !taken || n == *s {
            return None;
        }
        self.after_step(&mut n);
        Some(n)
    }

    /// What follows from a state by itself: ghosts (what is published as `resolved`, which transactions can never commit,
    /// T12), and that nobody remembers what nobody can use any more.
    fn after_step(&self, n: &mut State) {
        for t in 0..self.config.txns.len() {
            let anchor = self.spec(t).anchor;
            let gone = n.record(t, anchor) == Record::None && self.past(n, t, anchor);
            if gone && self.pieces_of(t).any(|i| matches!(n.record(t, i), Record::Prepared(_))) {
                n.txns[t].flags |= txn::NEVER;
            }
            if gone && self.config.eager && self.suspected(n, t) {
                n.txns[t].flags |= txn::TOLD_GONE;
            }
            let x = &mut n.txns[t];
            if x.phase == Phase::GivenUp {
                x.validated = Keys::NONE;
                x.c = if x.is(txn::COMMIT_SENT) { x.c } else { 0 };
            }
            for p in &mut n.pieces[t] {
                if x.phase > Phase::Preparing {
                    p.answer = Packed::default();
                }
                if x.heard.get() != Record::None {
                    p.flags &= !piece_flags::REFUSED;
                }
                if self.config.eager && p.probed == 0 {
                    p.probed = p.p;
                }
            }
        }
        if self.config.closes.is_empty() {
            return;
        }
        for shard in 0..self.config.shards() {
            let resolved = self.resolved(n, n.home(shard));
            let published = &mut n.shards[shard].published;
            *published = resolved.max(*published);
        }
    }

    /// A trace as text: a line a step, who does what by which rule, and what that changes.
    pub fn narrate(&self, trace: &[(Step, State)]) -> String {
        let mut out = String::new();
        let mut before = self.initial();
        for (no, (step, after)) in trace.iter().enumerate() {
            let what = self.words(*step);
            let changes = self.changes(&before, after).join(", ");
            out += &format!("{:>3}. {what:<58} {changes}\n", no + 1);
            before = *after;
        }
        out
    }

    fn words(&self, step: Step) -> String {
        let who = |recoverer| if recoverer { "a recoverer's" } else { "the coordinator's" };
        match step {
            Step::Read(k, ts) => format!("a client reads {} at {ts} (R4)", key(k)),
            Step::StaleRead(k, ts) => {
                format!("a client reads {} at {ts} at the old leaseholder (R1)", key(k))
            }
            Step::FollowerRead(k, ts) => format!("a client reads {} at {ts} on a follower (R6)", key(k)),
            Step::Begin(t) => format!("{} reads at {} (R4)", name(t), self.spec(t).read_ts),
            Step::Validate(t, k) => {
                format!("{} validates {} at C = {} (R9.2, R10)", name(t), key(k), self.spec(t).candidate)
            }
            Step::Send(t) if self.spec(t).one_step => {
                format!("{}'s commit1 leaves, C = {} (R13)", name(t), self.spec(t).candidate)
            }
            Step::Send(t) => format!("{}'s prepares leave, C = {} (R9.3)", name(t), self.spec(t).candidate),
            Step::Prepare(t, i) if self.spec(t).one_step => {
                format!("S{} gets a commit1 of {} (R13)", self.spec(t).pieces[i].shard, name(t))
            }
            Step::Prepare(t, i) => {
                format!("S{} gets a prepare of {} (R11)", self.spec(t).pieces[i].shard, piece(t, i))
            }
            Step::Refuse(t, i) => format!("S{} refuses {} (R12)", self.spec(t).pieces[i].shard, piece(t, i)),
            Step::RefuseUnrecorded(t, i) => {
                format!("S{} refuses {} without a record (R12)", self.spec(t).pieces[i].shard, piece(t, i))
            }
            Step::Implicit(t) => format!("{}'s coordinator has heard of every piece (R14)", name(t)),
            Step::Revalidate(t, k) => format!("{}'s coordinator validates {} again (R15)", name(t), key(k)),
            Step::GiveUp(t) => format!("{}'s coordinator gives up (R19)", name(t)),
            Step::HearPiece(t) => format!("{}'s coordinator hears `committed` from a piece (R22)", name(t)),
            Step::HearRefusal(t) => format!("{}'s coordinator hears a refusal (R12, R22)", name(t)),
            Step::HearCommit(t) => {
                format!("{}'s coordinator hears `committed` from the anchor (R22)", name(t))
            }
            Step::HearAbort(t) => format!("{}'s coordinator hears from the anchor (R22)", name(t)),
            Step::Ask(t) => format!("a recoverer asks {}'s anchor (R18.1)", name(t)),
            Step::Probe(t, i) => format!("a recoverer probes {} (R18.2)", piece(t, i)),
            Step::DecideCommit(t, r) => format!("{}'s anchor gets {} decide(commit) (R16)", name(t), who(r)),
            Step::DecideAbort(t, r) => format!("{}'s anchor gets {} decide(abort) (R16)", name(t), who(r)),
            Step::ResolveCommit(t, i) => format!("{} gets a resolve(commit) (R17)", piece(t, i)),
            Step::ResolveAbort(t, i) => format!("{} gets a resolve(abort) (R17)", piece(t, i)),
            Step::Acked(t) => format!("{}'s anchor hears that all pieces acknowledged (R21)", name(t)),
            Step::Apply(_) => "a proposal is applied (R2)".to_string(),
            Step::Lease(shard) => format!("S{shard} has another leaseholder (R1)"),
            Step::RaiseFloor(shard) => format!("S{shard} raises its floor (R20)"),
            Step::Close(shard, ts) => format!("S{shard} closes {ts}"),
            Step::Merge => "S1 becomes part of S0 (section 11)".to_string(),
        }
    }

    /// What differs between two states, in words.
    fn changes(&self, a: &State, b: &State) -> Vec<String> {
        use piece_flags as pf;
        let mut out = Vec::new();
        for t in 0..self.config.txns.len() {
            let (x, y) = (&a.txns[t], &b.txns[t]);
            for i in self.pieces_of(t) {
                let (p, q) = (&a.pieces[t][i], &b.pieces[t][i]);
                if p.record != q.record {
                    out.push(format!("{}: {}", piece(t, i), record(q.record.get())));
                }
                if p.answer != q.answer && q.answer.get() != Record::None {
                    out.push(format!("answers {}", record(q.answer.get())));
                }
                if p.probed != q.probed {
                    out.push(format!("answers prepared at {}", q.probed));
                }
                let new = q.flags & !p.flags;
                for (flag, words) in [
                    (pf::REFUSED, "answers refused, finally"),
                    (pf::REFUSED_UNRECORDED, "answers refused"),
                    (pf::PAST_DEADLINE, "answers past deadline"),
                    (pf::PROBED_ABORT, "answers aborted"),
                    (pf::ACKED, "acknowledges"),
                ] {
                    if new & flag != 0 {
                        out.push(words.to_string());
                    }
                }
            }
            if x.phase != y.phase && y.phase == Phase::Failed {
                out.push("it has changed".to_string());
            }
            if x.told != y.told {
                out.push(format!("answers committed at {}", y.told));
            }
            let new = y.flags & !x.flags;
            for (flag, words) in [
                (txn::TOLD_ABORT, "answers aborted"),
                (txn::TOLD_GONE, "answers gone"),
                (txn::TOLD_NONE, "answers no record"),
            ] {
                if new & flag != 0 {
                    out.push(words.to_string());
                }
            }
            if x.heard != y.heard {
                out.push(match y.heard.get() {
                    Record::Committed(c) => format!("CLIENT {} HEARS COMMIT AT {}", name(t), small(c)),
                    _ => format!("CLIENT {} HEARS ABORT", name(t)),
                });
            }
        }
        for (k, (x, y)) in a.keys.iter().zip(&b.keys).enumerate() {
            for t in 0..self.config.txns.len() {
                if x.versions[t] != y.versions[t] {
                    out.push(format!("{} has {}'s version at {}", key(k), name(t), y.versions[t]));
                }
            }
            if y.cache > x.cache {
                out.push(format!("cache of {} is {}", key(k), y.cache));
            } else if y.cache < x.cache {
                out.push(format!("cache of {} is lost", key(k)));
            }
        }
        for (i, (x, y)) in a.shards.iter().zip(&b.shards).enumerate() {
            if b.merged && !a.merged && i == 1 {
                continue;
            }
            if y.floor > x.floor {
                let passed = name(usize::from(y.floor) - 1);
                out.push(format!("floor of S{i} passes {passed}'s deadline"));
            }
            if x.closed != y.closed {
                out.push(format!("closed of S{i} is {}", y.closed));
            }
            if x.low != y.low {
                out.push(format!("low of S{i} is {}", y.low));
            }
            if x.published != y.published {
                out.push(format!("resolved of S{i} is {}", y.published));
            }
        }
        let flies = |s: &State, p: &Proposal| p.kind != Kind::Empty && s.in_flight.contains(p);
        for p in b.in_flight.iter().filter(|p| flies(b, p) && !flies(a, p)) {
            out.push(format!("in flight: {}", proposal(p)));
        }
        for p in a.in_flight.iter().filter(|p| flies(a, p) && !flies(b, p)) {
            if flies(b, &Proposal { old: true, ..*p }) {
                continue;
            }
            out.push(format!("no longer in flight: {}", proposal(p)));
        }
        for t in crate::invariants::ALL {
            if b.broken.has(t) && !a.broken.has(t) {
                out.push(format!("{t} IS BROKEN"));
            }
        }
        out
    }

    pub(crate) fn breaks(&self, n: &mut State, t: Invariant) {
        n.broken.add(t);
    }
}

fn name(t: usize) -> String {
    char::from(b'A' + u8::try_from(t).unwrap_or(25)).to_string()
}

fn piece(t: usize, i: usize) -> String {
    format!("{}.{i}", name(t))
}

fn key(k: usize) -> &'static str {
    ["x", "y", "z", "w"][k]
}

fn proposal(p: &Proposal) -> String {
    let at = if p.ts == 0 { String::new() } else { format!(" at {}", p.ts) };
    let old = if p.old { ", of an old term" } else { "" };
    format!("{:?} of {}{at}{old}", p.kind, piece(p.txn.into(), p.piece.into()))
}

fn record(r: Record) -> String {
    match r {
        Record::None => "forgotten".to_string(),
        Record::Prepared(p) => format!("prepared at {}", small(p)),
        Record::Committed(c) => format!("committed at {}", small(c)),
        Record::Aborted => "aborted".to_string(),
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
