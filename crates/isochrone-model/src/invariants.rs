//! The invariants T1 to T12 of the commit protocol (section 9) as predicates on a state.
//!
//! T4, T5, T7, T8 and T9 speak about what a step does; the step notes in [`State::broken`] that it broke one. T11 runs a
//! recoverer. T13 is not a predicate: lease changes lose all volatile state, and the others must hold across them.

use std::fmt;

use isochrone_shard::api::Record;

use crate::model::Model;
use crate::state::{State, Ts, piece, small, txn};

/// An invariant of the protocol page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Invariant {
    /// No piece committed and another aborted; all at one c.
    T1 = 1,
    /// COMMIT was heard: every piece commits at that c, and no anchor record says abort.
    T2,
    /// ABORT was heard: no piece ever commits.
    T3,
    /// p is written once per piece; c >= p.
    T4,
    /// No version appears at or below a timestamp at which its key was served or validated by somebody else.
    T5,
    /// Nothing of V changed in `(seen, c]`.
    T6,
    /// No version appears at or below a published `resolved`.
    T7,
    /// Each piece's writes are applied at most once.
    T8,
    /// One decision per transaction at the anchor.
    T9,
    /// What is over is never prepared again.
    T10,
    /// One recoverer with working links removes every prepare.
    T11,
    /// Anchor gone, floor past, a piece prepared: it can never commit.
    T12,
}

/// All of them.
pub const ALL: [Invariant; 12] = {
    use Invariant::*;
    [T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12]
};

/// A set of invariants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Set(u16);

impl Set {
    /// All invariants.
    pub const ALL: Set = Set(0x1ffe);

    /// A set of one.
    pub const fn one(t: Invariant) -> Set {
        Set(1 << t as u16)
    }

    /// Is it in the set?
    pub fn has(self, t: Invariant) -> bool {
        self.0 & Set::one(t).0 != 0
    }

    /// Puts it into the set.
    pub fn add(&mut self, t: Invariant) {
        self.0 |= Set::one(t).0;
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Model {
    /// The first invariant of `watched` that does not hold in the state.
    pub fn broken(&self, s: &State, watched: Set) -> Option<Invariant> {
        ALL.into_iter().filter(|t| watched.has(*t)).find(|t| !self.holds(s, *t))
    }

    fn holds(&self, s: &State, t: Invariant) -> bool {
        let txns = || 0..self.config.txns.len();
        match t {
            Invariant::T1 => !s.broken.has(t) && txns().all(|x| self.t1(s, x)),
            Invariant::T2 => txns().all(|x| self.t2(s, x)),
            Invariant::T3 => txns().all(|x| s.txns[x].heard.get() != Record::Aborted || !committed(s, x)),
            Invariant::T6 => txns().all(|x| self.t6(s, x)),
            Invariant::T11 => txns().all(|x| self.t11(s, x)),
            Invariant::T12 => txns().all(|x| !(s.txns[x].is(txn::NEVER) && committed(s, x))),
            _ => !s.broken.has(t),
        }
    }

    fn t1(&self, s: &State, t: usize) -> bool {
        let pieces = || self.pieces_of(t).map(|i| &s.pieces[t][i]);
        let mut c = pieces().map(|p| p.c).filter(|c| *c != 0);
        match c.next() {
            None => true,
            Some(first) => c.all(|c| c == first) && pieces().all(|p| !p.is(piece::ABORTED)),
        }
    }

    fn t2(&self, s: &State, t: usize) -> bool {
        let Record::Committed(c) = s.txns[t].heard.get() else { return true };
        let c = small(c);
        self.pieces_of(t).all(|i| {
            let p = &s.pieces[t][i];
            // Still prepared, or committed; never lost. An anchor that takes no part need not be prepared.
            let alive = p.c == c
                || p.c == 0 && (matches!(p.record.get(), Record::Prepared(_)) || !self.participates(t, i));
            alive && !p.is(piece::ABORTED)
        })
    }

    fn t6(&self, s: &State, t: usize) -> bool {
        let Some(c) = self.pieces_of(t).map(|i| s.pieces[t][i].c).find(|c| *c != 0) else { return true };
        let spec = &self.config.txns[t];
        let foreign = |k: usize| {
            let seen = |v: Ts| v > spec.read_ts && v <= c;
            s.keys[k].versions.into_iter().enumerate().any(|(other, v)| other != t && seen(v))
        };
        !spec.validated().and(spec.known()).iter().any(foreign)
    }

    fn t11(&self, s: &State, t: usize) -> bool {
        let prepared = |s: &State| self.pieces_of(t).any(|i| matches!(s.record(t, i), Record::Prepared(_)));
        if !prepared(s) {
            return true;
        }
        let mut after = *s;
        self.recover(&mut after, t);
        !prepared(&after)
    }
}

fn committed(s: &State, t: usize) -> bool {
    s.pieces[t].iter().any(|p| p.c != 0)
}
