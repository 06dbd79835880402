//! Recovery (R18), by anyone: what facts entitle to which message. [`Model::recover`] is one recoverer with working links,
//! for T11.

use isochrone_shard::api::{AnchorReply, Decision, Mode, Record};

use crate::mistake::Mistake;
use crate::model::Model;
use crate::rules;
use crate::state::{IN_FLIGHT_MAX, Phase, State, Ts, piece, real, small, txn};

impl Model {
    /// Has anybody met a prepare of it? Suspicion may be wrong, so nothing else is asked.
    pub(crate) fn suspected(&self, s: &State, t: usize) -> bool {
        s.pieces[t].iter().any(|p| p.p != 0)
    }

    /// R18.1.
    pub(crate) fn ask(&self, n: &mut State, t: usize) -> bool {
        if !self.suspected(n, t) {
            return false;
        }
        let anchor = self.spec(t).anchor;
        let reply = rules::ask(n.record(t, anchor), self.past(n, t, anchor));
        self.told(n, t, reply);
        true
    }

    /// R18.2.
    pub(crate) fn probe(&self, n: &mut State, t: usize, i: usize) -> bool {
        self.suspected(n, t) && self.probe_arrives(n, t, i)
    }

    /// What the probes answered, once all that R14 needs have.
    fn probes(&self, s: &State, t: usize) -> Option<Vec<Record>> {
        self.participants(t)
            .map(|i| match s.pieces[t][i].probed {
                0 => None,
                p => Some(Record::Prepared(real(p))),
            })
            .collect()
    }

    fn verdict(&self, t: usize, probes: &[Record]) -> Option<Decision> {
        let mode = if self.makes(Mistake::RecoveryCommitsPushed) { Mode::AtMax } else { self.mode(t) };
        let verdict = rules::verdict(mode, real(self.spec(t).candidate), probes);
        match (verdict, probes.first()) {
            (Some(Decision::Commit(_)), Some(Record::Prepared(p))) if self.makes(Mistake::FirstP) => {
                Some(Decision::Commit(*p))
            }
            (verdict, _) => verdict,
        }
    }

    /// R18.3: the facts make a commit of it.
    pub(crate) fn verdict_commit(&self, s: &State, t: usize) -> Option<Ts> {
        match self.verdict(t, &self.probes(s, t)?) {
            Some(Decision::Commit(c)) => Some(small(c)),
            _ => None,
        }
    }

    /// R18.3: the facts make an abort of it.
    pub(crate) fn verdict_abort(&self, s: &State, t: usize) -> bool {
        self.pieces_of(t).any(|i| s.pieces[t][i].is(piece::PROBED_ABORT))
            || self.probes(s, t).is_some_and(|p| self.verdict(t, &p) == Some(Decision::Abort))
    }

    /// R18.4, R17: what the anchor has answered is the outcome, nothing else.
    pub(crate) fn outcome_commit(&self, s: &State, t: usize) -> Option<Ts> {
        if s.txns[t].told != 0 {
            return Some(s.txns[t].told);
        }
        match self.mistake {
            Some(Mistake::VerdictIsOutcome) => self.verdict_commit(s, t),
            Some(Mistake::CommitBeforeDecision) if s.txns[t].phase == Phase::Committed => Some(s.txns[t].c),
            _ => None,
        }
    }

    /// R18.4: aborted, or gone (T12).
    pub(crate) fn outcome_abort(&self, s: &State, t: usize) -> bool {
        s.txns[t].flags & (txn::TOLD_ABORT | txn::TOLD_GONE | txn::TOLD_NONE) != 0
            || self.makes(Mistake::VerdictIsOutcome) && self.verdict_abort(s, t)
    }

    /// T11: faults have stopped (what is in flight lands), and one recoverer runs to its end.
    pub(crate) fn recover(&self, n: &mut State, t: usize) {
        for place in (0..IN_FLIGHT_MAX).rev() {
            while self.land(n, place) {}
        }
        let anchor = self.spec(t).anchor;
        for _ in 0..2 {
            let mut reply = rules::ask(n.record(t, anchor), self.past(n, t, anchor));
            if matches!(reply, AnchorReply::Undecided | AnchorReply::Unknown) {
                let probes: Vec<Record> = self.participants(t).map(|i| self.apply_probe(n, t, i)).collect();
                let Some(verdict) = self.verdict(t, &probes) else { continue };
                reply = self.apply_decide(n, t, verdict);
            }
            let outcome = match reply {
                AnchorReply::Decided(d) => d,
                AnchorReply::Gone => Decision::Abort,
                AnchorReply::Undecided | AnchorReply::Unknown => continue,
            };
            self.pieces_of(t).for_each(|i| self.apply_resolve(n, t, i, outcome));
            return;
        }
    }
}
