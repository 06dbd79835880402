//! A shard: evaluation at its leaseholder, application, leases, floor, closed (R1 to R4, R6, R10 to R13, R16 to R18, R20,
//! R21). Linearizable and durable; what lives in memory only is the cache, low, and what is in flight.

use isochrone_shard::api::{AnchorReply, Decision, Mode, Record};

use crate::invariants::Invariant;
use crate::mistake::Mistake;
use crate::model::Model;
use crate::rules;
use crate::state::{
    IN_FLIGHT_MAX, Kind, Packed, Proposal, READER, ShardState, State, TS_MAX, Ts, piece, real, small, txn,
};

/// Who counts as standing on a key.
#[derive(Clone, Copy)]
struct Standing {
    prepared: bool,
    in_flight: bool,
}

const ALL_STANDING: Standing = Standing { prepared: true, in_flight: true };

impl Model {
    /// The shard that a piece lives on now.
    pub(crate) fn shard_of(&self, s: &State, t: usize, i: usize) -> usize {
        s.home(self.spec(t).pieces[i].shard)
    }

    /// The shard that a key lives on now.
    fn shard_of_key(&self, s: &State, k: usize) -> usize {
        s.home(self.config.shard_of[k])
    }

    /// Does a transaction other than `t` stand on the key with `p <= upto`: prepared, or in flight (R3)?
    fn stands(&self, s: &State, k: usize, t: usize, upto: Ts, which: Standing) -> bool {
        let writes = |t: usize, i: usize| self.spec(t).pieces[i].writes.has(k);
        let prepared = |other: usize| {
            self.pieces_of(other).any(|i| match s.record(other, i) {
                Record::Prepared(p) => small(p) <= upto && writes(other, i),
                _ => false,
            })
        };
        let in_flight = |p: &Proposal| {
            matches!(p.kind, Kind::Prepare | Kind::Commit1)
                && usize::from(p.txn) != t
                && p.ts <= upto
                // The present leaseholder knows nothing of what its predecessor proposed.
                && !p.old
                && writes(p.txn.into(), p.piece.into())
        };
        which.prepared && (0..self.config.txns.len()).any(|other| other != t && prepared(other))
            || which.in_flight && s.in_flight.iter().any(in_flight)
    }

    /// Served or validated at `ts` for `who`: in the cache, and below the read limit (R1).
    fn served(&self, n: &mut State, k: usize, ts: Ts, who: usize) {
        self.cached(n, k, ts, who);
        self.limited(n, k, ts);
        self.relied_on(n, k, ts, who);
    }

    fn cached(&self, n: &mut State, k: usize, ts: Ts, who: usize) {
        let key = &mut n.keys[k];
        if ts > key.cache {
            (key.cache, key.owner) = (ts, who as u8);
        } else if ts == key.cache && usize::from(key.owner) != who {
            key.owner = READER as u8;
        }
    }

    fn limited(&self, n: &mut State, k: usize, ts: Ts) {
        let limit = &mut n.shards[self.shard_of_key(n, k)].read_limit;
        *limit = ts.max(*limit);
    }

    /// The ghost of T5.
    fn relied_on(&self, n: &mut State, k: usize, ts: Ts, who: usize) {
        let served = &mut n.keys[k].served[who];
        *served = ts.max(*served);
    }

    /// R4: may the key be read at `ts`, or does a prepare stand in the way?
    fn readable(&self, s: &State, k: usize, ts: Ts, t: usize) -> bool {
        let which = Standing {
            prepared: !self.makes(Mistake::ReaderIgnoresPrepare),
            in_flight: !self.makes(Mistake::ReadsIgnoreInFlight),
        };
        !self.stands(s, k, t, ts, which)
    }

    /// R4, by a client that is no transaction of the model.
    pub(crate) fn read(&self, n: &mut State, k: usize, ts: Ts) -> bool {
        let ok = self.readable(n, k, ts, READER);
        if ok {
            self.served(n, k, ts, READER);
        }
        ok
    }

    /// R1: a predecessor of the present leaseholder serves nothing above the limit that its successor began with. It knows
    /// every prepare that was there when it was replaced; later ones lie above that limit. Nobody else hears of it.
    pub(crate) fn stale_read(&self, n: &mut State, k: usize, ts: Ts) -> bool {
        let applied = Standing { prepared: true, in_flight: false };
        let ok = ts <= n.shards[self.shard_of_key(n, k)].low && !self.stands(n, k, READER, ts, applied);
        if ok {
            self.relied_on(n, k, ts, READER);
        }
        ok
    }

    /// R4, of everything that a transaction needs to have seen.
    pub(crate) fn read_all(&self, n: &mut State, t: usize) -> bool {
        let (keys, ts) = (self.spec(t).validated().and(self.spec(t).known()), self.spec(t).read_ts);
        let ok = keys.iter().all(|k| self.readable(n, k, ts, t));
        if ok {
            keys.iter().for_each(|k| self.served(n, k, ts, t));
        }
        ok
    }

    /// R6. A follower knows what is applied, nothing else, and nobody at the leaseholder knows of its reads.
    pub(crate) fn follower_read(&self, n: &mut State, k: usize, ts: Ts) -> bool {
        let applied = Standing { prepared: true, in_flight: false };
        let ok = ts <= n.shards[self.shard_of_key(n, k)].closed && !self.stands(n, k, READER, ts, applied);
        if ok {
            self.relied_on(n, k, ts, READER);
        }
        ok
    }

    /// Is there a foreign version in `(seen, upto]`, or a foreign prepare at or below `upto`?
    fn changed(&self, s: &State, t: usize, k: usize, upto: Ts) -> bool {
        let seen = self.spec(t).read_ts;
        let version = |(other, v): (usize, &Ts)| other != t && *v > seen && *v <= upto;
        s.keys[k].versions.iter().enumerate().any(version)
            || !self.makes(Mistake::ValidationIgnoresPrepares) && self.stands(s, k, t, upto, ALL_STANDING)
    }

    /// R10, one key.
    pub(crate) fn validate(&self, n: &mut State, t: usize, k: usize, ts: Ts) -> bool {
        let ok = !self.changed(n, t, k, ts);
        if ok && self.makes(Mistake::ValidationNotCached) {
            self.relied_on(n, k, ts, t);
        } else if ok {
            self.served(n, k, ts, t);
        }
        ok
    }

    /// R11, R13: a copy of the request arrives at the leaseholder. A wait (R11.4) is a copy that does not arrive yet.
    pub(crate) fn evaluate(&self, n: &mut State, t: usize, i: usize) -> bool {
        let spec = self.spec(t);
        let this = &spec.pieces[i];
        // 1
        match n.record(t, i) {
            Record::None => {}
            Record::Prepared(_) if self.makes(Mistake::PrepareEvaluatedAgain) => {}
            record => {
                self.answer(n, t, i, record);
                return true;
            }
        }
        // 2
        if self.past(n, t, i) && !self.makes(Mistake::SlowClockAccepts) {
            self.answer(n, t, i, Record::None);
            return true;
        }
        let Some(p) = self.choose_p(n, t, i) else { return self.refuse(n, t, i) };
        // 7, the cache. A written key needs no entry: its own prepare stands there, and its version after that.
        for k in this.validate.but(this.writes).iter().filter(|_| !self.makes(Mistake::ValidationNotCached)) {
            self.cached(n, k, self.validates_upto(t, p), t);
        }
        // 8
        let kind = if spec.one_step { Kind::Commit1 } else { Kind::Prepare };
        self.submit(n, Proposal { kind, txn: t as u8, piece: i as u8, ts: p, old: false })
    }

    /// R11.7: up to where the V of a piece must be unchanged if it is prepared at p.
    fn validates_upto(&self, t: usize, p: Ts) -> Ts {
        let spec = self.spec(t);
        let at_max = spec.one_step || self.mode(t) == Mode::AtMax;
        if at_max && !self.makes(Mistake::AtMaxValidatesToCandidate) { p } else { spec.candidate }
    }

    /// R11.4 to R11.7; `None`: refuse.
    fn choose_p(&self, s: &State, t: usize, i: usize) -> Option<Ts> {
        let spec = self.spec(t);
        let this = &spec.pieces[i];
        let shard = &s.shards[self.shard_of(s, t, i)];
        let mut p = spec.candidate;
        for k in this.writes.iter() {
            let key = &s.keys[k];
            // 4
            if self.stands(s, k, t, TS_MAX, ALL_STANDING) {
                return None;
            }
            // 5
            let checked_upto = match self.mistake {
                Some(Mistake::LockTrusted) => 0,
                Some(Mistake::SnapshotPushesOverNewer) => spec.candidate,
                _ => TS_MAX,
            };
            let newer = |v: &Ts| *v > spec.read_ts && *v <= checked_upto;
            if spec.known().has(k) && key.versions.iter().any(newer) {
                return None;
            }
            // 6. Own entries do not push: below one of its own there may be foreign ones (as in `tscache`).
            let cache = if usize::from(key.owner) == t { key.cache.saturating_sub(1) } else { key.cache };
            let closed = if self.makes(Mistake::NotAboveClosed) { 0 } else { shard.closed };
            p = p.max(cache + 1).max(shard.low + 1).max(closed + 1).max(key.newest() + 1);
        }
        if p > spec.max_ts {
            return None;
        }
        // R13: other shards were validated at C.
        if spec.one_step
            && p != spec.candidate
            && spec.elsewhere.0 != 0
            && !self.makes(Mistake::Commit1Pushed)
        {
            return None;
        }
        // 7
        let upto = self.validates_upto(t, p);
        let changed = this.validate.iter().any(|k| self.changed(s, t, k, upto));
        (!changed).then_some(p)
    }

    /// R12: a refusal becomes final by its record.
    pub(crate) fn refuse(&self, n: &mut State, t: usize, i: usize) -> bool {
        n.record(t, i) == Record::None
            && self
                .submit(n, Proposal { kind: Kind::Refuse, txn: t as u8, piece: i as u8, ts: 0, old: false })
    }

    /// R12: a refusal without a record says nothing, and nothing of it is remembered but for those who think that it does.
    pub(crate) fn refuse_unrecorded(&self, n: &mut State, t: usize, i: usize) -> bool {
        let may = n.record(t, i) == Record::None
            && !self.past(n, t, i)
            && (self.config.refusals || self.choose_p(n, t, i).is_none());
        let believed = [Mistake::UnrecordedRefusalIsAbort, Mistake::UnrecordedCommit1RefusalIsAbort];
        if may && self.mistake.is_some_and(|m| believed.contains(&m)) {
            n.pieces[t][i].flags |= piece::REFUSED_UNRECORDED;
        }
        may
    }

    /// The answer to a prepare or a commit in one step.
    fn answer(&self, n: &mut State, t: usize, i: usize, record: Record) {
        let p = &mut n.pieces[t][i];
        match record {
            // "Past deadline" says nothing either (R11.2).
            Record::None if self.mistake == Some(Mistake::PastDeadlineIsAbort) => {
                p.flags |= piece::PAST_DEADLINE
            }
            Record::None => {}
            Record::Aborted => p.flags |= piece::REFUSED,
            Record::Prepared(_) | Record::Committed(_) if p.answer.get() == Record::None => {
                p.answer = Packed::of(record);
            }
            Record::Prepared(_) | Record::Committed(_) => {}
        }
    }

    /// R16: `decide(d)` arrives at the anchor.
    pub(crate) fn decide(&self, n: &mut State, t: usize, d: Decision) -> bool {
        let ts = decided_at(d);
        self.submit(
            n,
            Proposal { kind: Kind::Decide, txn: t as u8, piece: self.spec(t).anchor as u8, ts, old: false },
        )
    }

    /// R17: `resolve(piece, d)` arrives.
    pub(crate) fn resolve(&self, n: &mut State, t: usize, i: usize, d: Decision) -> bool {
        let ts = decided_at(d);
        self.submit(n, Proposal { kind: Kind::Resolve, txn: t as u8, piece: i as u8, ts, old: false })
    }

    /// R18.2: a probe arrives.
    pub(crate) fn probe_arrives(&self, n: &mut State, t: usize, i: usize) -> bool {
        self.submit(n, Proposal { kind: Kind::Probe, txn: t as u8, piece: i as u8, ts: 0, old: false })
    }

    /// Proposes; where evaluation and application are one step, or nothing would change, applies at once.
    fn submit(&self, n: &mut State, p: Proposal) -> bool {
        let (t, i) = (p.txn.into(), p.piece.into());
        let final_already = match (p.kind, n.record(t, i)) {
            (Kind::Prepare | Kind::Commit1, _) => false,
            (Kind::Probe, Record::Prepared(_)) => !self.makes(Mistake::BlockRemovesPrepare),
            (_, Record::Prepared(_)) => false,
            (Kind::Decide, _) if self.makes(Mistake::LaterDecisionWins) => false,
            (_, Record::None) => self.past(n, t, i),
            (_, Record::Committed(_) | Record::Aborted) => true,
        };
        if self.config.in_flight == 0 || final_already {
            self.apply(n, p);
            return true;
        }
        let used = n.in_flight.iter().filter(|q| q.kind != Kind::Empty).count();
        if used >= self.config.in_flight || n.in_flight.contains(&p) {
            return false;
        }
        n.in_flight[0] = p;
        n.in_flight.sort_unstable();
        true
    }

    /// A proposal in flight is applied; in any order.
    pub(crate) fn land(&self, n: &mut State, place: usize) -> bool {
        let p = n.in_flight[place];
        if p.kind == Kind::Empty {
            return false;
        }
        n.in_flight[place] = Proposal::default();
        n.in_flight.sort_unstable();
        self.apply(n, p);
        true
    }

    /// R2: application checks again, and its finding is the answer.
    fn apply(&self, n: &mut State, p: Proposal) {
        let (t, i) = (p.txn.into(), p.piece.into());
        let d = if p.ts == 0 { Decision::Abort } else { Decision::Commit(real(p.ts)) };
        match p.kind {
            Kind::Empty => {}
            Kind::Prepare | Kind::Commit1 => self.apply_prepare(n, t, i, p),
            Kind::Refuse => {
                let after = self.apply_block(n, t, i);
                self.answer(n, t, i, after);
            }
            Kind::Probe => match self.apply_probe(n, t, i) {
                Record::Prepared(at) if n.pieces[t][i].probed == 0 => n.pieces[t][i].probed = small(at),
                Record::Aborted => n.pieces[t][i].flags |= piece::PROBED_ABORT,
                _ => {}
            },
            Kind::Decide => {
                let reply = self.apply_decide(n, t, d);
                self.told(n, t, reply);
            }
            Kind::Resolve => {
                self.apply_resolve(n, t, i, d);
                n.pieces[t][i].flags |= piece::ACKED | piece::OVER;
            }
        }
    }

    /// The anchor's answer becomes known.
    pub(crate) fn told(&self, n: &mut State, t: usize, reply: AnchorReply) {
        let x = &mut n.txns[t];
        match reply {
            AnchorReply::Decided(Decision::Commit(c)) => x.told = small(c),
            AnchorReply::Decided(Decision::Abort) => x.flags |= txn::TOLD_ABORT,
            AnchorReply::Gone => x.flags |= txn::TOLD_GONE,
            AnchorReply::Unknown if self.makes(Mistake::NoRecordIsAbort) => x.flags |= txn::TOLD_NONE,
            AnchorReply::Undecided | AnchorReply::Unknown => {}
        }
    }

    fn apply_prepare(&self, n: &mut State, t: usize, i: usize, p: Proposal) {
        let record = n.record(t, i);
        let this = &self.spec(t).pieces[i];
        let (validated, upto) = (this.validate.but(this.writes), self.validates_upto(t, p.ts));
        // R1: the read limit of what was validated travels with the entry, and counts whatever becomes of the rest.
        for k in validated.iter().filter(|_| !self.makes(Mistake::ValidationNotCached)) {
            self.limited(n, k, upto);
        }
        let past = self.past(n, t, i) && !self.makes(Mistake::SlowClockAccepts);
        let again = self.makes(Mistake::PrepareEvaluatedAgain) && matches!(record, Record::Prepared(_));
        let closed = n.shards[self.shard_of(n, t, i)].closed;
        // A piece that writes nothing adds no version, so closed does not concern it.
        let writes = self.spec(t).pieces[i].writes.0 != 0 && !self.makes(Mistake::NotAboveClosed);
        let closed = if writes { closed } else { 0 };
        let may = rules::may_prepare(record, past, real(p.ts), real(closed));
        if !may && !again && !self.makes(Mistake::NoRecheck) {
            match record {
                // Closed has overtaken it: nothing is done, another copy is evaluated again.
                Record::None if !past => {}
                record => self.answer(n, t, i, record),
            }
            return;
        }
        validated.iter().for_each(|k| self.relied_on(n, k, upto, t));
        if p.kind == Kind::Commit1 {
            self.set_record(n, t, i, Record::Committed(real(p.ts)));
            if self.makes(Mistake::Commit1NoRecord) {
                n.pieces[t][i].record = Packed::default();
            }
            self.answer(n, t, i, Record::Committed(real(p.ts)));
        } else {
            self.set_record(n, t, i, Record::Prepared(real(p.ts)));
            self.answer(n, t, i, Record::Prepared(real(p.ts)));
        }
    }

    /// R12, R18.2: blocks an absent piece; the record after that.
    fn apply_block(&self, n: &mut State, t: usize, i: usize) -> Record {
        let record = n.record(t, i);
        let after = match record {
            Record::Prepared(_) if self.makes(Mistake::BlockRemovesPrepare) => Record::Aborted,
            _ => rules::block(record, self.past(n, t, i)),
        };
        self.set_record(n, t, i, after);
        after
    }

    /// R18.2.
    pub(crate) fn apply_probe(&self, n: &mut State, t: usize, i: usize) -> Record {
        if self.makes(Mistake::AbsenceNotBlocked) && n.record(t, i) == Record::None {
            return Record::Aborted;
        }
        let found = rules::probed(self.apply_block(n, t, i));
        if found == Record::Aborted {
            n.pieces[t][i].flags |= piece::OVER;
        }
        found
    }

    /// R16.
    pub(crate) fn apply_decide(&self, n: &mut State, t: usize, d: Decision) -> AnchorReply {
        let anchor = self.spec(t).anchor;
        let (record, past) = (n.record(t, anchor), self.past(n, t, anchor));
        let by_mistake = match (record, d) {
            (Record::Committed(_) | Record::Aborted, _) => self.makes(Mistake::LaterDecisionWins),
            (Record::None, Decision::Commit(_)) => !past && self.makes(Mistake::AnchorTakesNoPart),
            (Record::Prepared(p), Decision::Commit(c)) => {
                c < p && (self.makes(Mistake::FirstP) || self.makes(Mistake::PrepareEvaluatedAgain))
            }
            _ => false,
        };
        let decided = if by_mistake {
            let becomes = match d {
                Decision::Commit(c) => Record::Committed(c),
                Decision::Abort => Record::Aborted,
            };
            Some((becomes, AnchorReply::Decided(d)))
        } else {
            rules::decide(record, past, d)
        };
        let Some((becomes, reply)) = decided else {
            // Nobody may ask for this.
            let broken = if record == Record::None { Invariant::T9 } else { Invariant::T4 };
            self.breaks(n, broken);
            return rules::ask(record, past);
        };
        let others = self.spec(t).pieces.len() > 1 && matches!(record, Record::Prepared(_));
        if others && !self.makes(Mistake::AnchorForgetsAtDeadline) {
            // R21: to be kept until all pieces have acknowledged. What was never prepared goes with the floor (as in
            // `record`).
            n.pieces[t][anchor].flags |= piece::KEEP;
        }
        self.set_record(n, t, anchor, becomes);
        reply
    }

    /// R17.
    pub(crate) fn apply_resolve(&self, n: &mut State, t: usize, i: usize, d: Decision) {
        let (record, past) = (n.record(t, i), self.past(n, t, i));
        let d = match (record, d) {
            (Record::Prepared(p), Decision::Commit(_)) if self.makes(Mistake::OwnP) => Decision::Commit(p),
            _ => d,
        };
        let becomes = match (record, d) {
            (Record::None, Decision::Abort) if self.makes(Mistake::ResolveLeavesNoMarker) => {
                Some(Record::None)
            }
            (Record::Prepared(_), Decision::Commit(c)) if self.makes(Mistake::FirstP) => {
                Some(Record::Committed(c))
            }
            _ => rules::resolve(record, past, d),
        };
        match becomes {
            Some(becomes) => self.set_record(n, t, i, becomes),
            // R17: impossible; the shard would stop.
            None => self
                .breaks(n, if matches!(record, Record::Prepared(_)) { Invariant::T4 } else { Invariant::T1 }),
        }
        let no_tombstone = self.makes(Mistake::NoTombstone) || self.makes(Mistake::NoTombstoneAnchorForgets);
        if no_tombstone && matches!(record, Record::Prepared(_)) {
            n.pieces[t][i].record = Packed::default();
        }
    }

    /// A record changes; with the ghosts that T1, T4, T8, T9 and T10 look at.
    fn set_record(&self, n: &mut State, t: usize, i: usize, becomes: Record) {
        if n.record(t, i) == becomes {
            return;
        }
        let anchor = i == self.spec(t).anchor;
        let this = &mut n.pieces[t][i];
        this.record = Packed::of(becomes);
        let mut broken = [None; 3];
        match becomes {
            Record::None => {}
            Record::Prepared(p) => {
                broken[0] = this.is(piece::OVER).then_some(Invariant::T10);
                broken[1] = (this.p != 0).then_some(Invariant::T4);
                if this.p == 0 {
                    this.p = small(p);
                }
            }
            Record::Committed(c) => {
                let c = small(c);
                broken[0] = (this.c != 0 && this.c != c).then_some(Invariant::T1);
                broken[1] = (c < this.p).then_some(Invariant::T4);
                broken[2] = (anchor && this.is(piece::ABORTED)).then_some(Invariant::T9);
                this.flags |= piece::OVER;
                if this.c == 0 {
                    this.c = c;
                }
                self.write(n, t, i, c);
            }
            Record::Aborted => {
                broken[0] = (anchor && this.c != 0).then_some(Invariant::T9);
                this.flags |= piece::ABORTED | piece::OVER;
            }
        }
        broken.into_iter().flatten().for_each(|b| self.breaks(n, b));
        self.forget(n, t, i);
    }

    /// The versions of a piece appear.
    fn write(&self, n: &mut State, t: usize, i: usize, c: Ts) {
        let this = &self.spec(t).pieces[i];
        for k in this.writes.iter() {
            let key = &mut n.keys[k];
            let twice = key.versions[t] != 0;
            let served = key.served.iter().enumerate().any(|(who, at)| who != t && c <= *at);
            key.versions[t] = c;
            if twice {
                self.breaks(n, Invariant::T8);
            }
            if served {
                self.breaks(n, Invariant::T5);
            }
            // What is published is about keys: each half of a merged shard goes on from its own.
            if c <= n.shards[this.shard].published {
                self.breaks(n, Invariant::T7);
            }
        }
    }

    /// R20, R21: a tombstone goes when the floor has passed its deadline, unless it is an anchor's that waits.
    fn forget(&self, n: &mut State, t: usize, i: usize) {
        let decided = matches!(n.record(t, i), Record::Committed(_) | Record::Aborted);
        if decided && self.past(n, t, i) && !n.pieces[t][i].is(piece::KEEP) {
            n.pieces[t][i].record = Packed::default();
        }
    }

    /// R21. Not only the last acknowledgement, and not only the floor.
    pub(crate) fn acked(&self, n: &mut State, t: usize) -> bool {
        let anchor = self.spec(t).anchor;
        let all = self.pieces_of(t).filter(|i| *i != anchor).all(|i| n.pieces[t][i].is(piece::ACKED));
        if !all || !n.pieces[t][anchor].is(piece::KEEP) {
            return false;
        }
        n.pieces[t][anchor].flags &= !piece::KEEP;
        if self.makes(Mistake::AnchorForgetsOnAcks) || self.makes(Mistake::NoTombstoneAnchorForgets) {
            n.pieces[t][anchor].record = Packed::default();
        }
        self.forget(n, t, anchor);
        true
    }

    /// R20.
    pub(crate) fn raise_floor(&self, n: &mut State, shard: usize) -> bool {
        if n.home(shard) != shard || usize::from(n.shards[shard].floor) >= self.config.txns.len() {
            return false;
        }
        n.shards[shard].floor += 1;
        self.after_floor(n, shard);
        true
    }

    /// R20: what the floor has passed goes.
    fn after_floor(&self, n: &mut State, shard: usize) {
        for t in 0..self.config.txns.len() {
            for i in self.pieces_of(t) {
                if self.shard_of(n, t, i) != shard {
                    continue;
                }
                let prepared = matches!(n.record(t, i), Record::Prepared(_));
                if prepared && self.past(n, t, i) && self.makes(Mistake::PrepareDropped) {
                    n.pieces[t][i].record = Packed::default();
                }
                self.forget(n, t, i);
            }
        }
    }

    /// Nothing waits for what is in flight: application drops it (R3, R2).
    pub(crate) fn close(&self, n: &mut State, shard: usize, ts: Ts) -> bool {
        let rises = n.home(shard) == shard && ts > n.shards[shard].closed;
        if rises {
            n.shards[shard].closed = ts;
        }
        rises
    }

    /// `resolved` of section 2.
    pub(crate) fn resolved(&self, s: &State, shard: usize) -> Ts {
        let prepared = |t: usize| {
            self.pieces_of(t).filter(move |i| self.shard_of(s, t, *i) == shard).filter_map(move |i| {
                match s.record(t, i) {
                    Record::Prepared(p) => Some(small(p) - 1),
                    _ => None,
                }
            })
        };
        let closed = s.shards[shard].closed;
        if self.makes(Mistake::ResolvedIgnoresPrepares) {
            return closed;
        }
        (0..self.config.txns.len()).flat_map(prepared).fold(closed, Ts::min)
    }

    /// R1: memory is lost, and so is what was in flight: what landed before has been applied before.
    pub(crate) fn change_lease(&self, n: &mut State, shard: usize) -> bool {
        if n.leases >= self.config.leases || n.home(shard) != shard {
            return false;
        }
        n.leases += 1;
        self.lose_memory(n, shard);
        if !self.makes(Mistake::NoLowWater) {
            n.shards[shard].low = n.shards[shard].low.max(n.shards[shard].read_limit);
        }
        true
    }

    /// A leaseholder goes: its cache and what it had in flight are lost.
    fn lose_memory(&self, n: &mut State, shard: usize) {
        for k in 0..self.config.shard_of.len() {
            if self.shard_of_key(n, k) == shard {
                (n.keys[k].cache, n.keys[k].owner) = (0, 0);
            }
        }
        for place in 0..IN_FLIGHT_MAX {
            let p = n.in_flight[place];
            if p.kind == Kind::Empty || self.shard_of(n, p.txn.into(), p.piece.into()) != shard {
                continue;
            }
            if self.makes(Mistake::OldTermApplied) {
                n.in_flight[place].old = true;
            } else {
                n.in_flight[place] = Proposal::default();
            }
        }
        n.in_flight.sort_unstable();
    }

    /// Section 11: the second shard becomes part of the first, whose leaseholder stays. Floor, closed and low are the
    /// maximum; records stay apart by piece.
    pub(crate) fn merge(&self, n: &mut State) -> bool {
        if n.merged {
            return false;
        }
        let [left, right] = [n.shards[0], n.shards[1]];
        self.lose_memory(n, 1);
        n.merged = true;
        let both = &mut n.shards[0];
        both.floor = match self.makes(Mistake::MergeLowerFloor) {
            true => left.floor.min(right.floor),
            false => left.floor.max(right.floor),
        };
        both.closed = match self.makes(Mistake::MergeLowerClosed) {
            true => left.closed.min(right.closed),
            false => left.closed.max(right.closed),
        };
        both.read_limit = left.read_limit.max(right.read_limit);
        if !self.makes(Mistake::MergeLeftCacheOnly) {
            both.low = left.low.max(right.read_limit);
        }
        // What nobody looks at any more.
        n.shards[1] = ShardState { published: right.published, ..ShardState::default() };
        self.after_floor(n, 0);
        true
    }
}

fn decided_at(d: Decision) -> Ts {
    match d {
        Decision::Commit(c) => small(c),
        Decision::Abort => 0,
    }
}
