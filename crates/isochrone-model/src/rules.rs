//! The decisions of the commit protocol as pure functions, in the vocabulary of the real state machine
//! ([`isochrone_shard::api`]): what a record becomes, what is answered, what follows from the answers.
//!
//! `past` everywhere: the floor of the piece's shard has passed the piece's deadline. These functions hold the rules as
//! they stand; a [`crate::Mistake`] replaces a call, never the inside of one.

use isochrone_base::Timestamp;
use isochrone_shard::api::{AnchorReply, Decision, Mode, Record};

/// R18.1: what the anchor knows.
pub fn ask(record: Record, past: bool) -> AnchorReply {
    match record {
        Record::Committed(c) => AnchorReply::Decided(Decision::Commit(c)),
        Record::Aborted => AnchorReply::Decided(Decision::Abort),
        Record::Prepared(_) => AnchorReply::Undecided,
        Record::None if past => AnchorReply::Gone,
        Record::None => AnchorReply::Unknown,
    }
}

/// R16: the anchor's record after `decide(d)`, and the answer. The first decision wins. `None`: a commit of something
/// that was never prepared, which nobody may ask for; it is refused and changes nothing.
pub fn decide(record: Record, past: bool, d: Decision) -> Option<(Record, AnchorReply)> {
    let becomes = match (record, d) {
        (Record::Committed(_) | Record::Aborted, _) => record,
        (Record::None, _) if past => return Some((record, AnchorReply::Gone)),
        (Record::None, Decision::Commit(_)) => return None,
        (Record::Prepared(p), Decision::Commit(c)) if c < p => return None,
        (Record::Prepared(_), Decision::Commit(c)) => Record::Committed(c),
        (Record::Prepared(_) | Record::None, Decision::Abort) => Record::Aborted,
    };
    Some((becomes, ask(becomes, past)))
}

/// R17: a piece's record after `resolve(d)`. `None`: impossible if the protocol holds; the shard stops.
pub fn resolve(record: Record, past: bool, d: Decision) -> Option<Record> {
    match (record, d) {
        (Record::Prepared(p), Decision::Commit(c)) if c < p => None,
        (Record::Prepared(_), Decision::Commit(c)) => Some(Record::Committed(c)),
        (Record::Prepared(_), Decision::Abort) => Some(Record::Aborted),
        (Record::Committed(c), Decision::Commit(d)) if c != d => None,
        (Record::Aborted, Decision::Commit(_)) => None,
        (Record::Committed(_) | Record::Aborted, _) => Some(record),
        (Record::None, _) if past => Some(Record::None),
        (Record::None, Decision::Abort) => Some(Record::Aborted),
        (Record::None, Decision::Commit(_)) => None,
    }
}

/// R12, R18.2: the record after the mark that blocks an absent piece. It never touches a prepare.
pub fn block(record: Record, past: bool) -> Record {
    match record {
        Record::None if !past => Record::Aborted,
        record => record,
    }
}

/// R18.2: what a probe answers, given the record it left behind. Absent and past the deadline: it can never be
/// prepared any more, which is as good as aborted.
pub fn probed(after: Record) -> Record {
    match after {
        Record::None => Record::Aborted,
        record => record,
    }
}

/// R2: may a prepare (or a commit in one step) at p still be applied?
pub fn may_prepare(record: Record, past: bool, p: Timestamp, closed: Timestamp) -> bool {
    record == Record::None && !past && p > closed
}

/// R14: the commit timestamp of a transaction whose pieces are prepared at these; `None`: it was pushed, and is not
/// committed by that alone.
pub fn implicit(
    mode: Mode,
    candidate: Timestamp,
    prepared: impl IntoIterator<Item = Timestamp>,
) -> Option<Timestamp> {
    let (mut max, mut at_candidate) = (None, true);
    for p in prepared {
        max = max.max(Some(p));
        at_candidate &= p == candidate;
    }
    max.filter(|_| mode == Mode::AtMax || at_candidate)
}

/// R18.3: what a recoverer proposes after its probes. `None`: it was decided meanwhile; ask the anchor again.
pub fn verdict(mode: Mode, candidate: Timestamp, probes: &[Record]) -> Option<Decision> {
    let mut prepared = Vec::with_capacity(probes.len());
    let mut abort = false;
    for record in probes {
        match record {
            Record::Committed(_) => return None,
            Record::Aborted | Record::None => abort = true,
            Record::Prepared(p) => prepared.push(*p),
        }
    }
    let c = if abort { None } else { implicit(mode, candidate, prepared) };
    Some(c.map_or(Decision::Abort, Decision::Commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: [Record; 4] =
        [Record::None, Record::Prepared(Timestamp(5)), Record::Committed(Timestamp(6)), Record::Aborted];
    const DECISIONS: [Decision; 2] = [Decision::Abort, Decision::Commit(Timestamp(6))];

    #[test]
    fn what_is_decided_stays() {
        for past in [false, true] {
            for d in DECISIONS {
                for record in [Record::Committed(Timestamp(6)), Record::Aborted] {
                    assert_eq!(decide(record, past, d), Some((record, ask(record, past))), "R16");
                    assert_eq!(block(record, past), record);
                    assert!(resolve(record, past, d).is_none_or(|r| r == record), "R17");
                }
            }
        }
    }

    #[test]
    fn nothing_appears_past_the_floor() {
        for d in DECISIONS {
            assert_eq!(decide(Record::None, true, d), Some((Record::None, AnchorReply::Gone)));
            assert_eq!(resolve(Record::None, true, d), Some(Record::None));
        }
        assert_eq!(block(Record::None, true), Record::None);
        assert_eq!(probed(Record::None), Record::Aborted);
        assert!(!may_prepare(Record::None, true, Timestamp(5), Timestamp(1)));
    }

    #[test]
    fn only_decisions_remove_a_prepare() {
        for past in [false, true] {
            let prepared = Record::Prepared(Timestamp(5));
            assert_eq!(block(prepared, past), prepared);
            assert_eq!(resolve(prepared, past, Decision::Commit(Timestamp(4))), None, "T4");
            assert_eq!(decide(prepared, past, Decision::Commit(Timestamp(4))), None, "T4");
            assert_eq!(resolve(prepared, past, Decision::Abort), Some(Record::Aborted));
        }
        for record in RECORDS {
            assert_eq!(
                may_prepare(record, false, Timestamp(5), Timestamp(4)),
                record == Record::None,
                "T10: {record:?}"
            );
        }
        assert!(!may_prepare(Record::None, false, Timestamp(5), Timestamp(5)), "T7");
    }

    #[test]
    fn verdicts() {
        use Decision::{Abort, Commit};
        use Record::{Aborted, Committed, None as Absent, Prepared};
        let t = Timestamp;
        let v = |mode, records: &[Record]| verdict(mode, t(5), records);
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Prepared(t(9))]), Some(Commit(t(9))));
        assert_eq!(v(Mode::AtCandidate, &[Prepared(t(5)), Prepared(t(5))]), Some(Commit(t(5))));
        assert_eq!(v(Mode::AtCandidate, &[Prepared(t(5)), Prepared(t(9))]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Aborted]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Absent]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Aborted, Committed(t(6))]), None);
        assert_eq!(v(Mode::AtMax, &[]), Some(Abort));
    }
}
