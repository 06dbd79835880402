//! Evaluation at the leaseholder: rules R11 to R13, R16 to R18, R21 up to the point where an entry is proposed.
//!
//! A piece is evaluated in steps, so that no engine call happens under the mutex (S1): under it, its keys are latched;
//! then the newest versions are read (nobody else can write latched keys); under it again p is chosen, the
//! validated spans are recorded and foreign prepares on them looked for; then versions on them are looked for (what
//! is recorded at p cannot be written at or below p any more). That is one latched step in the sense of R10 and R11: each
//! fact found stays true until the entry is proposed.
//!
//! Answers to decide, resolve, probe and acked that are final already (a tombstone, a passed floor) leave at once;
//! everything else goes through the log, and the answer is what application found (R2).

use isochrone_base::limits::LOG_ENTRY_BYTES_MAX;
use isochrone_base::{Term, Timestamp, TxnId, bank};
use isochrone_storage::mvcc;

use crate::api::{AnchorReply, Decision, Error, Mode, Piece, PieceId, Prepared, Record};
use crate::command::{Command, LoggedPiece, find_key};
use crate::read::storage;
use crate::record::RecordKey;
use crate::shard::{Blocked, INFLIGHT_MAX, Inner, Proposal, Shard, piece_hash};
use crate::tscache::key_hash;

/// What evaluation of a request came to.
#[derive(Debug)]
pub(crate) enum Evaluated<T> {
    /// Known already; nothing is logged.
    Answer(T),
    /// Evaluate again when this is gone.
    Blocked(Blocked),
    /// To be proposed; with what to answer if it is a refusal (R12).
    Propose(Proposal, Option<Prepared>),
}

/// Takes the latches back when evaluation ends without a proposal.
struct Latched<'a> {
    shard: &'a Shard,
    term: Term,
    seq: u64,
}

impl Drop for Latched<'_> {
    fn drop(&mut self) {
        if self.seq != 0 {
            self.shard.not_logged(self.term, self.seq);
        }
    }
}

impl Latched<'_> {
    /// The latches belong to a proposal, or are gone.
    fn disarm(mut self) {
        self.seq = 0;
    }

    /// Does this evaluation still hold its latches in its term?
    fn holds(&self, g: &Inner) -> Result<(), Error> {
        if let Some(why) = &g.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        if g.serving && g.term == self.term && g.inflight.contains_key(&self.seq) {
            return Ok(());
        }
        Err(Error::NotServed(format!("leadership of shard {} changed", self.shard.id)))
    }
}

fn check(piece: &Piece) -> Result<(), Error> {
    if piece.writes.windows(2).any(|w| w[0].key >= w[1].key) {
        return Err(Error::Invalid("the writes of a piece are not sorted by key, or not unique".into()));
    }
    if !piece.pieces.iter().any(|p| p.piece == piece.piece)
        || !piece.pieces.iter().any(|p| p.piece == piece.anchor)
    {
        return Err(Error::Invalid("a piece and its anchor must stand in the list of pieces".into()));
    }
    let bytes: usize =
        piece.writes.iter().map(|w| w.key.len() + w.value.as_ref().map_or(0, |v| v.len()) + 16).sum();
    if bytes > LOG_ENTRY_BYTES_MAX - 4096 {
        return Err(Error::Invalid(format!("a piece of {bytes} bytes does not fit a log entry")));
    }
    Ok(())
}

impl Shard {
    /// R12: a refusal that is final once applied.
    fn refuse(&self, g: &mut Inner, piece: &Piece, why: String) -> Evaluated<Prepared> {
        self.refuse_with(g, piece, Prepared::Refused(why))
    }

    fn refuse_with(&self, g: &mut Inner, piece: &Piece, answer: Prepared) -> Evaluated<Prepared> {
        if bank::has("refusal-leaves-no-record") {
            return Evaluated::Answer(answer);
        }
        let key =
            find_key(piece.piece, &piece.pieces, piece.writes.first().map(|w| w.key.as_slice())).to_vec();
        let id = PieceId { txn: piece.txn, piece: piece.piece, key, deadline: piece.deadline };
        let seq = g.register(piece.txn, Some((piece.txn, piece.piece)), Vec::new());
        Evaluated::Propose(self.proposal(g, seq, Command::Refuse { id }, Timestamp::MIN), Some(answer))
    }

    /// R11, and R13 if `one_step`. `patient`: wait for a foreign prepare instead of refusing (R11.4).
    pub(crate) fn evaluate(
        &self,
        piece: &Piece,
        one_step: bool,
        patient: bool,
    ) -> Result<Evaluated<Prepared>, Error> {
        check(piece)?;
        if one_step && piece.pieces.len() != 1 {
            return Err(Error::Invalid("a one-step commit has one piece".into()));
        }
        let key = RecordKey { deadline: piece.deadline, txn: piece.txn, piece: piece.piece };
        let find = find_key(piece.piece, &piece.pieces, piece.writes.first().map(|w| w.key.as_slice()));
        let logged = LoggedPiece::of(piece);
        let latched = {
            let mut g = self.lock();
            let g = &mut *g;
            let Some(term) = self.served(g)? else { return Ok(Evaluated::Blocked(self.wait_serving(g))) };
            if !g.repl.range.contains(find) {
                return Err(self.not_here(find));
            }
            // R11.1
            match g.repl.record(key) {
                Record::Prepared(p) if one_step => {
                    return Err(Error::Invalid(format!(
                        "piece prepared at {p} cannot be committed in one step"
                    )));
                }
                Record::Prepared(_) if bank::has("prepare-evaluated-again") => {}
                Record::Prepared(p) => return Ok(Evaluated::Answer(Prepared::At(p))),
                Record::Committed(c) => return Ok(Evaluated::Answer(Prepared::Committed(c))),
                Record::Aborted => return Ok(Evaluated::Answer(Prepared::Refused("aborted before".into()))),
                Record::None => {}
            }
            if g.by_piece.contains_key(&(piece.txn, piece.piece)) {
                // R3: a second copy waits for the first, and finds its record.
                let blocked = g.blocked_by(piece_hash(piece.txn, piece.piece), None);
                return Ok(Evaluated::Blocked(blocked));
            }
            // R11.2
            if piece.deadline <= g.repl.floor && !bank::has("deadline-not-checked") {
                return Ok(Evaluated::Answer(Prepared::PastDeadline));
            }
            if g.inflight.len() >= INFLIGHT_MAX {
                return Err(Error::NotServed(format!("{INFLIGHT_MAX} proposals are in flight")));
            }
            // R11.3
            let inside = piece.writes.iter().all(|w| g.repl.range.contains(&w.key))
                && piece.validate.iter().all(|v| g.repl.range.contains_range(&v.range));
            if !inside {
                return Ok(self.refuse_with(g, piece, Prepared::OutOfRange));
            }
            // R11.4
            for w in &piece.writes {
                if w.seen.is_some_and(|s| s < g.repl.gc_threshold) {
                    return Ok(self.refuse(g, piece, "what was read may have been collected".into()));
                }
                if let Some(by) = g.standing_on(&w.key, piece.txn, |_| true) {
                    let by = by.clone();
                    if patient {
                        return Ok(Evaluated::Blocked(g.blocked_by(key_hash(&w.key), Some(&by))));
                    }
                    return Ok(self.refuse(
                        g,
                        piece,
                        format!("transaction {} is writing the same key", by.txn()),
                    ));
                }
            }
            let keys = piece.writes.iter().map(|w| w.key.clone()).collect();
            let seq = g.register(piece.txn, Some((piece.txn, piece.piece)), keys);
            Latched { shard: self, term, seq }
        };

        // R11.5, and the newest version for R11.6: stable, because the keys are latched.
        let mut newest = Timestamp::MIN;
        let mut refused = None;
        for w in &piece.writes {
            let at = mvcc::newest_ts(&*self.engine, &w.key).map_err(storage)?.unwrap_or(Timestamp::MIN);
            if w.seen.is_some_and(|seen| at > seen) && !bank::has("pushed-over-newer-version") {
                refused = Some("a row changed since it was read".to_string());
                break;
            }
            newest = newest.max(at);
        }

        let mut limit = Timestamp::MIN;
        let upto;
        let p;
        {
            let mut g = self.lock();
            let g = &mut *g;
            latched.holds(g)?;
            // R11.6. Closed timestamps in flight count as if they were applied.
            let closed = match bank::has("closed-ignored") {
                true => Timestamp::MIN,
                false => g.repl.closed.max(g.closed_proposed),
            };
            p = piece
                .writes
                .iter()
                .map(|w| g.cache.highest(&w.key, piece.txn).next())
                .chain([piece.candidate, closed.next(), newest.next()])
                .max()
                .expect("the candidate at least");
            let to_p = (one_step || piece.mode == Mode::AtMax) && !bank::has("validated-to-candidate");
            upto = if to_p { p } else { piece.candidate };
            if p > piece.max_ts {
                refused.get_or_insert_with(|| {
                    format!("{p} is above the highest timestamp allowed, {}", piece.max_ts)
                });
            }
            let pushed = p != piece.candidate && !bank::has("one-step-pushed-after-validation");
            let pushed = one_step && piece.validated_elsewhere && pushed;
            // R11.7: the cache, and foreign prepares.
            for v in &piece.validate {
                if v.seen < g.repl.gc_threshold {
                    refused.get_or_insert_with(|| "what was read may have been collected".into());
                } else if !bank::has("validation-ignores-prepares")
                    && g.standing_in(&v.range, piece.txn, |by| by.p() <= upto).is_some()
                {
                    refused.get_or_insert_with(|| "another transaction is writing what was read".into());
                }
            }
            let refused = refused.map(Prepared::Refused).or(pushed.then_some(Prepared::Pushed(p)));
            if let Some(answer) = refused {
                drop(g.unregister(latched.seq));
                let out = self.refuse_with(g, piece, answer);
                latched.disarm();
                return Ok(out);
            }
            for v in &piece.validate {
                // A written key needs no entry: its own prepare stands there, and its version after that.
                if !is_written(piece, v) && !bank::has("validation-not-remembered") {
                    g.cache.record_span(&v.range, upto, piece.txn);
                    limit = limit.max(upto);
                }
            }
            g.inflight[&latched.seq].latch.set_p(p);
        }

        // R11.7: versions. Stable, because the spans are recorded up to `upto`, or latched.
        let mut changed = false;
        for v in &piece.validate {
            changed =
                changed || mvcc::changed_between(&*self.engine, &v.range, v.seen, upto).map_err(storage)?;
        }
        let mut g = self.lock();
        let g = &mut *g;
        latched.holds(g)?;
        // Versions may have been collected while they were looked at.
        let changed = changed || piece.validate.iter().any(|v| v.seen < g.repl.gc_threshold);
        if changed {
            drop(g.unregister(latched.seq));
            let out = self.refuse(g, piece, "what was read has changed".into());
            latched.disarm();
            return Ok(out);
        }
        let command = match one_step {
            true => Command::Commit1 { piece: logged, p },
            false => Command::Prepare { piece: logged, p },
        };
        let proposal = self.proposal(g, latched.seq, command, limit);
        latched.disarm();
        Ok(Evaluated::Propose(proposal, None))
    }

    /// The record of a piece that lives here, if this node may speak for it.
    fn speak(&self, g: &mut Inner, id: &PieceId) -> Result<Result<Record, Blocked>, Error> {
        if self.served(g)?.is_none() {
            return Ok(Err(self.wait_serving(g)));
        }
        if !g.repl.range.contains(&id.key) {
            return Err(self.not_here(&id.key));
        }
        if g.inflight.len() >= INFLIGHT_MAX {
            return Err(Error::NotServed(format!("{INFLIGHT_MAX} proposals are in flight")));
        }
        Ok(Ok(g.repl.record(RecordKey::of(id))))
    }

    /// R16.
    pub(crate) fn evaluate_decide(&self, id: &PieceId, d: Decision) -> Result<Evaluated<AnchorReply>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        let record = match self.speak(g, id)? {
            Ok(record) => record,
            Err(blocked) => return Ok(Evaluated::Blocked(blocked)),
        };
        match record {
            Record::Committed(_) | Record::Aborted if bank::has("later-decision-wins") => {}
            Record::Committed(c) => return Ok(Evaluated::Answer(AnchorReply::Decided(Decision::Commit(c)))),
            Record::Aborted => return Ok(Evaluated::Answer(AnchorReply::Decided(Decision::Abort))),
            Record::None if id.deadline <= g.repl.floor => return Ok(Evaluated::Answer(AnchorReply::Gone)),
            // A leader that is one no more, and has not heard so, may lack the prepare: only application can tell that a commit
            // is decided of which nothing is prepared.
            Record::None => {}
            Record::Prepared(p) => {
                let anchor =
                    g.repl.prepared.get(&RecordKey::of(id)).map(|x| (x.piece.anchor, x.piece.max_ts));
                if anchor.is_some_and(|(a, _)| a != id.piece) {
                    return Err(Error::Invalid(format!(
                        "R16: piece {} of {} is not the anchor",
                        id.piece, id.txn
                    )));
                }
                if let Decision::Commit(c) = d
                    && (c < p || anchor.is_some_and(|(_, max)| c > max))
                {
                    return Err(Error::Invalid(format!("T4: commit of {} at {c}, prepared at {p}", id.txn)));
                }
            }
        }
        let command = Command::Decide { id: id.clone(), decision: d };
        Ok(Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None))
    }

    /// R18.1.
    pub(crate) fn evaluate_ask(&self, id: &PieceId) -> Result<Evaluated<AnchorReply>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        Ok(match self.speak(g, id)? {
            Err(blocked) => Evaluated::Blocked(blocked),
            Ok(Record::Committed(c)) => Evaluated::Answer(AnchorReply::Decided(Decision::Commit(c))),
            Ok(Record::Aborted) => Evaluated::Answer(AnchorReply::Decided(Decision::Abort)),
            Ok(Record::Prepared(_)) => Evaluated::Answer(AnchorReply::Undecided),
            Ok(Record::None) if id.deadline <= g.repl.floor => Evaluated::Answer(AnchorReply::Gone),
            Ok(Record::None) => Evaluated::Answer(AnchorReply::Unknown),
        })
    }

    /// R17.
    pub(crate) fn evaluate_resolve(&self, id: &PieceId, d: Decision) -> Result<Evaluated<()>, Error> {
        let mut guard = self.lock();
        let g = &mut *guard;
        let record = match self.speak(g, id)? {
            Ok(record) => record,
            Err(blocked) => return Ok(Evaluated::Blocked(blocked)),
        };
        let broken = match (record, d) {
            (Record::Committed(c), Decision::Commit(d)) if c != d => {
                format!("T1: {} committed at {c} and at {d}", id.txn)
            }
            (Record::Aborted, Decision::Commit(d)) => {
                format!("R17: commit at {d} of {}, aborted here", id.txn)
            }
            (Record::Prepared(p), Decision::Commit(d)) if d < p => {
                format!("T4: commit at {d} of {}, prepared at {p}", id.txn)
            }
            (Record::Committed(_) | Record::Aborted, _) => return Ok(Evaluated::Answer(())),
            (Record::None, _) if id.deadline <= g.repl.floor => return Ok(Evaluated::Answer(())),
            (Record::None, Decision::Commit(d)) => {
                return Err(Error::Invalid(format!("R17: commit at {d} of {}, not prepared here", id.txn)));
            }
            (Record::Prepared(_), _)
                if g.repl.prepared.get(&RecordKey::of(id)).is_some_and(|x| x.piece.anchor == id.piece) =>
            {
                return Err(Error::Invalid(format!(
                    "R17: the anchor of {} is undecided: decide, then resolve",
                    id.txn
                )));
            }
            (Record::Prepared(_) | Record::None, _) => {
                let command = Command::Resolve { id: id.clone(), decision: d };
                return Ok(Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None));
            }
        };
        drop(guard);
        self.stop(&broken);
        Err(Error::Stopped(broken))
    }

    /// R18.2. A record that is there answers without a log entry: what it says happened, and stays true.
    pub(crate) fn evaluate_probe(&self, id: &PieceId) -> Result<Evaluated<Record>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        Ok(match self.speak(g, id)? {
            Err(blocked) => Evaluated::Blocked(blocked),
            Ok(Record::None) if id.deadline <= g.repl.floor => Evaluated::Answer(Record::Aborted),
            Ok(Record::None) if bank::has("probe-does-not-block") => Evaluated::Answer(Record::Aborted),
            Ok(Record::Prepared(_)) if bank::has("probe-removes-a-prepare") => {
                let command = Command::Probe { id: id.clone() };
                Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None)
            }
            Ok(Record::None) => {
                let command = Command::Probe { id: id.clone() };
                Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None)
            }
            Ok(record) => Evaluated::Answer(record),
        })
    }

    /// R21.
    pub(crate) fn evaluate_acked(&self, id: &PieceId) -> Result<Evaluated<()>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if let Err(blocked) = self.speak(g, id)? {
            return Ok(Evaluated::Blocked(blocked));
        }
        if g.repl.tombstones.get(&RecordKey::of(id)).is_none_or(|t| t.keep.is_none()) {
            return Ok(Evaluated::Answer(()));
        }
        let command = Command::Acked { id: id.clone() };
        Ok(Evaluated::Propose(self.propose_plain(g, command, Timestamp::MIN), None))
    }

    /// Has somebody else prepared a write of this key, or is about to?
    pub(crate) fn written_by_other(&self, txn: TxnId, key: &[u8]) -> bool {
        self.lock().standing_on(key, txn, |_| true).is_some()
    }

    /// Has a lock's reader to look again: is something newer there, or about to be? (R5, last sentence.)
    pub(crate) fn moved_since(&self, txn: TxnId, key: &[u8], read_ts: Timestamp) -> Result<bool, Error> {
        {
            let g = self.lock();
            self.served(&g)?;
            if g.standing_on(key, txn, |_| true).is_some() {
                return Ok(true);
            }
        }
        Ok(mvcc::newest_ts(&*self.engine, key).map_err(storage)?.is_some_and(|ts| ts > read_ts))
    }
}

fn is_written(piece: &Piece, v: &crate::api::ReadSpan) -> bool {
    v.range.is_point() && piece.writes.binary_search_by(|w| w.key.cmp(&v.range.start)).is_ok()
}
