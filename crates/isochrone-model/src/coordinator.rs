//! The coordinator and what its client hears (R9, R14, R15, R19, R22). It may stop at any step: that is a crash.

use isochrone_shard::api::Record;

use crate::mistake::Mistake;
use crate::model::Model;
use crate::rules;
use crate::state::{INITIAL, Keys, Packed, Phase, State, Ts, piece, real, small, txn};

impl Model {
    /// May it begin? Another attempt only when the first is known to be aborted (R22).
    fn may_begin(&self, s: &State, t: usize) -> bool {
        let known_aborted = |first: usize| s.txns[first].heard.get() == Record::Aborted;
        self.spec(t).retry_of.is_none_or(known_aborted)
    }

    /// Are all reads done? What was read at [`INITIAL`] was read before everything.
    fn has_read(&self, s: &State, t: usize) -> bool {
        match s.txns[t].phase {
            Phase::Idle => self.spec(t).read_ts == INITIAL && self.may_begin(s, t),
            phase => phase == Phase::Validating,
        }
    }

    /// R4.
    pub(crate) fn begin(&self, n: &mut State, t: usize) -> bool {
        let idle = n.txns[t].phase == Phase::Idle && self.spec(t).read_ts > INITIAL && self.may_begin(n, t);
        if !idle || !self.read_all(n, t) {
            return false;
        }
        n.txns[t].phase = Phase::Validating;
        true
    }

    /// R9.2. A failure is an ABORT at once: no prepare has left.
    pub(crate) fn validate_elsewhere(&self, n: &mut State, t: usize, k: usize) -> bool {
        let late = self.makes(Mistake::ValidatedAfterPrepares) && n.txns[t].phase == Phase::Preparing;
        if !(self.has_read(n, t) || late) || n.txns[t].validated.has(k) {
            return false;
        }
        let ok = self.validate(n, t, k, self.spec(t).candidate);
        let x = &mut n.txns[t];
        match (ok, late) {
            (true, false) => x.phase = Phase::Validating,
            (true, true) => {}
            (false, true) => x.phase = Phase::GivenUp,
            (false, false) => {
                x.phase = Phase::Failed;
                x.heard = Packed::of(Record::Aborted);
            }
        }
        if ok {
            x.validated = x.validated.and(Keys(1 << k));
        }
        true
    }

    /// R9.3: when every answer of R9.2 was heard.
    pub(crate) fn send(&self, n: &mut State, t: usize) -> bool {
        let validated = n.txns[t].validated == self.spec(t).elsewhere;
        let may = self.has_read(n, t) && (validated || self.makes(Mistake::ValidatedAfterPrepares));
        if may {
            n.txns[t].phase = Phase::Preparing;
        }
        may
    }

    /// Its prepares are under way, for ever.
    pub(crate) fn has_sent(&self, s: &State, t: usize) -> bool {
        (Phase::Preparing..Phase::Failed).contains(&s.txns[t].phase)
    }

    /// The p of every piece, once all have answered.
    fn heard_of_all(&self, s: &State, t: usize) -> Option<Vec<Ts>> {
        self.participants(t)
            .map(|i| match s.pieces[t][i].answer.get() {
                Record::Prepared(p) => Some(small(p)),
                _ => None,
            })
            .collect()
    }

    /// R14: committed; the client hears it, `decide(commit c)` leaves.
    pub(crate) fn implicit(&self, n: &mut State, t: usize) -> bool {
        if n.txns[t].phase != Phase::Preparing {
            return false;
        }
        let Some(ps) = self.heard_of_all(n, t) else { return false };
        let late =
            self.makes(Mistake::ValidatedAfterPrepares) && n.txns[t].validated != self.spec(t).elsewhere;
        if late {
            return false;
        }
        let candidate = real(self.spec(t).candidate);
        let c = match rules::implicit(self.mode(t), candidate, ps.iter().map(|p| real(*p))) {
            Some(c) => small(c),
            None if self.makes(Mistake::PushedNotRevalidated) => ps.into_iter().fold(0, Ts::max),
            None => return false,
        };
        let x = &mut n.txns[t];
        (x.phase, x.c) = (Phase::Committed, c);
        x.flags |= txn::COMMIT_SENT;
        self.hear(n, t, Record::Committed(real(c)));
        true
    }

    /// R15: pushed; all of V is validated again at C', then `decide(commit C')` leaves.
    pub(crate) fn revalidate(&self, n: &mut State, t: usize, k: usize) -> bool {
        let spec = self.spec(t);
        match n.txns[t].phase {
            Phase::Preparing => {
                let Some(ps) = self.heard_of_all(n, t) else { return false };
                let candidate = real(spec.candidate);
                if rules::implicit(self.mode(t), candidate, ps.iter().map(|p| real(*p))).is_some() {
                    return false;
                }
                let x = &mut n.txns[t];
                x.c = ps.into_iter().fold(0, Ts::max);
                (x.phase, x.validated) = (Phase::Revalidating, Keys::NONE);
            }
            Phase::Revalidating => {}
            _ => return false,
        }
        let all =
            if self.makes(Mistake::RevalidatesOnlyElsewhere) { spec.elsewhere } else { spec.validated() };
        if !all.has(k) || n.txns[t].validated.has(k) {
            return false;
        }
        let ok = self.validate(n, t, k, n.txns[t].c);
        let x = &mut n.txns[t];
        if !ok {
            x.phase = Phase::GivenUp;
            return true;
        }
        x.validated = x.validated.and(Keys(1 << k));
        if x.validated == all {
            x.phase = Phase::Deciding;
            x.flags |= txn::COMMIT_SENT;
            if self.makes(Mistake::PushedReportedEarly) {
                let c = real(x.c);
                self.hear(n, t, Record::Committed(c));
            }
        }
        true
    }

    /// R19, for any reason: a refusal, a timeout, a cancelled statement.
    pub(crate) fn give_up(&self, n: &mut State, t: usize) -> bool {
        let may = matches!(n.txns[t].phase, Phase::Preparing | Phase::Revalidating | Phase::Deciding);
        if may {
            n.txns[t].phase = Phase::GivenUp;
        }
        may
    }

    /// The c of a `decide(commit c)` that the coordinator has sent.
    pub(crate) fn coordinator_commit(&self, s: &State, t: usize) -> Option<Ts> {
        s.txns[t].is(txn::COMMIT_SENT).then_some(s.txns[t].c)
    }

    /// The client hears one thing, once.
    fn hear(&self, n: &mut State, t: usize, what: Record) -> bool {
        let x = &mut n.txns[t];
        let first = x.heard.get() == Record::None;
        if first {
            x.heard = Packed::of(what);
        }
        first
    }

    /// A piece that is committed answers so: somebody has recovered it, or it was committed in one step.
    pub(crate) fn hear_piece(&self, n: &mut State, t: usize) -> bool {
        if n.txns[t].phase != Phase::Preparing {
            return false;
        }
        let committed = |i: usize| match n.pieces[t][i].answer.get() {
            Record::Committed(c) => Some(c),
            _ => None,
        };
        let Some(c) = self.participants(t).find_map(committed) else { return false };
        (n.txns[t].phase, n.txns[t].c) = (Phase::Committed, small(c));
        self.hear(n, t, Record::Committed(c))
    }

    /// R12, R22: a final refusal is an ABORT; R19 follows.
    pub(crate) fn hear_refusal(&self, n: &mut State, t: usize) -> bool {
        let mut certain = piece::REFUSED;
        match self.mistake {
            Some(Mistake::UnrecordedRefusalIsAbort) if !self.spec(t).one_step => {
                certain |= piece::REFUSED_UNRECORDED;
            }
            Some(Mistake::UnrecordedCommit1RefusalIsAbort) if self.spec(t).one_step => {
                certain |= piece::REFUSED_UNRECORDED;
            }
            Some(Mistake::PastDeadlineIsAbort) => certain |= piece::PAST_DEADLINE,
            _ => {}
        }
        let waits = matches!(n.txns[t].phase, Phase::Preparing | Phase::GivenUp);
        let refused = self.participants(t).any(|i| n.pieces[t][i].flags & certain != 0);
        if !waits || !refused {
            return false;
        }
        n.txns[t].phase = Phase::GivenUp;
        self.hear(n, t, Record::Aborted)
    }

    fn waits_for_anchor(&self, s: &State, t: usize) -> bool {
        matches!(s.txns[t].phase, Phase::Deciding | Phase::GivenUp)
    }

    /// R22.
    pub(crate) fn hear_commit(&self, n: &mut State, t: usize) -> bool {
        let c = n.txns[t].told;
        self.waits_for_anchor(n, t) && c != 0 && self.hear(n, t, Record::Committed(real(c)))
    }

    /// R22. "Gone" is no ABORT: the outcome is unknown (40003).
    pub(crate) fn hear_abort(&self, n: &mut State, t: usize) -> bool {
        let gone = self.makes(Mistake::GoneIsAbort) && n.txns[t].is(txn::TOLD_GONE);
        let aborted = n.txns[t].is(txn::TOLD_ABORT) || gone;
        self.waits_for_anchor(n, t) && aborted && self.hear(n, t, Record::Aborted)
    }
}
