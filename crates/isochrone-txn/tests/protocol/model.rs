//! Shards in memory: the rules R4, R5, R10 to R13, R16 to R18, R20 and R21, each as one step on one state.
//!
//! Whatever can never happen (T1, T4, T8, a commit at the anchor out of nothing, a commit resolved before the anchor
//! decided) is noted in `violations`, which every test demands to be empty.

use std::collections::{BTreeMap, BTreeSet};

use isochrone_base::{Bytes, Key, KeyRange, PieceNo, Timestamp, TxnId, Value};
use isochrone_shard::api::{
    AnchorReply, Decision, Error, Page, Piece, PieceId, Prepared, ReadAs, ReadSpan, Record, Seen, Suspect,
};

#[derive(Clone, Debug)]
pub struct Rec {
    pub state: Record,
    pub deadline: Timestamp,
    pub key: Key,
    pub piece: Option<Piece>,
    /// Is it the record of the anchor? (A blocked piece does not know; then the first asked of it does.)
    pub anchor: bool,
    pub acked: bool,
}

#[derive(Default)]
pub struct State {
    /// Start keys of shards.
    pub cuts: BTreeSet<Key>,
    pub floor: BTreeMap<Key, Timestamp>,
    pub closed: BTreeMap<Key, Timestamp>,
    pub rows: BTreeMap<Key, Vec<(Timestamp, Option<Value>, TxnId)>>,
    /// Prepared writes: key to piece and p.
    pub prepares: BTreeMap<Key, (TxnId, PieceNo, Timestamp)>,
    pub records: BTreeMap<(TxnId, PieceNo), Rec>,
    pub cache: BTreeMap<KeyRange, (Timestamp, Option<TxnId>)>,
    pub locks: BTreeMap<Key, TxnId>,
    pub waits: BTreeMap<TxnId, Key>,
    /// What became of each piece, kept for ever: for assertions only.
    pub ends: BTreeMap<(TxnId, PieceNo), Decision>,
    /// Every p that was ever given, for T4.
    pub ps: BTreeMap<(TxnId, PieceNo), Timestamp>,
    pub decided: BTreeMap<TxnId, Decision>,
    pub violations: Vec<String>,
    /// Refuse without a record, as Err (the shortcut of section 11).
    pub unrecorded_refusals: bool,
}

/// A read or lock must wait for this.
pub enum Wait {
    Prepare(Box<Suspect>),
    Lock,
}

impl State {
    pub fn new(cuts: &[&[u8]]) -> State {
        let mut state = State::default();
        state.cuts.insert(Key::new());
        state.cuts.extend(cuts.iter().map(|c| c.to_vec()));
        state
    }

    pub fn shard_of(&self, key: &[u8]) -> KeyRange {
        let start = self.cuts.range::<Key, _>(..=&key.to_vec()).next_back().cloned().unwrap_or_default();
        let end =
            self.cuts.range::<Key, _>(&KeyRange::point(&start).end..).next().cloned().unwrap_or_default();
        KeyRange { start, end }
    }

    pub fn route(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut out = vec![self.shard_of(&range.start)];
        while let Some(last) = out.last()
            && !last.end.is_empty()
            && (range.end.is_empty() || last.end < range.end)
        {
            let next = self.shard_of(&last.end.clone());
            out.push(next);
        }
        out
    }

    pub fn floor_of(&self, key: &[u8]) -> Timestamp {
        self.floor.get(&self.shard_of(key).start).copied().unwrap_or_default()
    }

    fn closed_of(&self, key: &[u8]) -> Timestamp {
        self.closed.get(&self.shard_of(key).start).copied().unwrap_or_default()
    }

    fn newest(&self, key: &[u8]) -> Timestamp {
        self.rows.get(key).and_then(|v| v.last()).map_or(Timestamp::MIN, |v| v.0)
    }

    pub fn value_at(&self, key: &[u8], ts: Timestamp) -> Option<Seen> {
        let v = self.rows.get(key)?.iter().rev().find(|v| v.0 <= ts)?;
        v.1.clone().map(|value| Seen { value, ts: v.0 })
    }

    fn cache_high(&self, key: &[u8], txn: TxnId) -> Timestamp {
        let reads = self.cache.iter().filter(|(r, (_, owner))| r.contains(key) && *owner != Some(txn));
        reads.map(|(_, (ts, _))| *ts).max().unwrap_or_default()
    }

    fn cached(&mut self, range: KeyRange, ts: Timestamp, txn: TxnId) {
        let entry = self.cache.entry(range).or_insert((ts, Some(txn)));
        if entry.0 < ts {
            // The older entry of another transaction is below; its owner no longer matters.
            *entry = (ts, Some(txn));
        } else if entry.0 == ts && entry.1 != Some(txn) {
            entry.1 = None;
        }
    }

    fn keys_in<'a, V>(
        map: &'a BTreeMap<Key, V>,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (&'a Key, &'a V)> {
        map.iter().filter(|(k, _)| range.contains(k))
    }

    pub fn suspect(&self, txn: TxnId, piece: PieceNo) -> Option<Suspect> {
        let p = self.records.get(&(txn, piece))?.piece.as_ref()?;
        Some(Suspect {
            txn,
            pieces: p.pieces.clone(),
            anchor: p.anchor,
            candidate: p.candidate,
            mode: p.mode,
            deadline: p.deadline,
        })
    }

    /// R4, R5 over a range; marks the cache.
    fn read(&mut self, who: ReadAs, range: &KeyRange) -> Result<Result<(), Wait>, Error> {
        let foreign = Self::keys_in(&self.prepares, range).filter(|(_, (t, _, _))| *t != who.txn);
        let mut uncertain = None;
        for (_, (txn, piece, p)) in foreign {
            if *p <= who.ts {
                let suspect = self.suspect(*txn, *piece).expect("a prepare has its piece");
                return Ok(Err(Wait::Prepare(Box::new(suspect))));
            }
            if *p <= who.uncertain_to {
                uncertain = uncertain.max(Some(*p));
            }
        }
        for (_, versions) in Self::keys_in(&self.rows, range) {
            for v in versions.iter().filter(|v| v.0 > who.ts && v.0 <= who.uncertain_to) {
                uncertain = uncertain.max(Some(v.0));
            }
        }
        self.cached(range.clone(), who.ts, who.txn);
        match uncertain {
            Some(ts) => Err(Error::Uncertain(ts)),
            None => Ok(Ok(())),
        }
    }

    /// When the version that a read at `ts` sees was committed, deletions included.
    fn newest_at(&self, key: &[u8], ts: Timestamp) -> Timestamp {
        let versions = self.rows.get(key).into_iter().flatten();
        versions.map(|v| v.0).filter(|at| *at <= ts).max().unwrap_or(Timestamp::MIN)
    }

    pub fn get(&mut self, who: ReadAs, key: &[u8]) -> Result<Result<Option<Seen>, Wait>, Error> {
        Ok(self.read(who, &KeyRange::point(key))?.map(|()| self.value_at(key, who.ts)))
    }

    pub fn scan(
        &mut self,
        who: ReadAs,
        range: &KeyRange,
        reverse: bool,
        max: usize,
    ) -> Result<Result<Page, Wait>, Error> {
        let routes = self.route(range);
        let shard = if reverse { routes.last() } else { routes.first() }.expect("a shard for every key");
        let part = shard.intersect(range);
        if let Err(wait) = self.read(who, &part)? {
            return Ok(Err(wait));
        }
        let mut keys: Vec<Key> = Self::keys_in(&self.rows, &part).map(|(k, _)| k.clone()).collect();
        if reverse {
            keys.reverse();
        }
        let mut page = Page::default();
        for key in keys {
            page.newest = page.newest.max(self.newest_at(&key, who.ts));
            let Some(seen) = self.value_at(&key, who.ts) else { continue };
            if page.rows.len() == max {
                let last = page.rows.last().map(|(k, _)| k.to_vec()).unwrap_or_default();
                page.rest = Some(if reverse {
                    KeyRange { start: range.start.clone(), end: last }
                } else {
                    KeyRange { start: KeyRange::point(&last).end, end: range.end.clone() }
                });
                return Ok(Ok(page));
            }
            page.rows.push((Bytes::from(key), seen.value));
        }
        let rest = if reverse {
            KeyRange { start: range.start.clone(), end: part.start.clone() }
        } else {
            KeyRange { start: part.end.clone(), end: range.end.clone() }
        };
        let finished = if reverse { part.start.is_empty() } else { part.end.is_empty() } || rest.is_empty();
        page.rest = (!finished).then_some(rest);
        Ok(Ok(page))
    }

    /// R10.
    fn unchanged(&self, txn: TxnId, span: &ReadSpan, ts: Timestamp) -> Result<(), Error> {
        let conflict = |what: &str, key: &Key| Err(Error::Conflict(format!("{what} on {key:?} in the way")));
        for (key, versions) in Self::keys_in(&self.rows, &span.range) {
            if versions.iter().any(|v| v.0 > span.seen && v.0 <= ts && v.2 != txn) {
                return conflict("version", key);
            }
        }
        for (key, (t, _, p)) in Self::keys_in(&self.prepares, &span.range) {
            if *t != txn && *p <= ts {
                return conflict("prepare", key);
            }
        }
        Ok(())
    }

    pub fn validate(&mut self, txn: TxnId, spans: &[ReadSpan], ts: Timestamp) -> Result<(), Error> {
        let shard = self.shard_of(&spans[0].range.start);
        if spans.iter().any(|s| !shard.contains_range(&s.range)) {
            return Err(Error::NotServed("spans of two shards".to_string()));
        }
        for span in spans {
            self.unchanged(txn, span, ts)?;
        }
        for span in spans {
            self.cached(span.range.clone(), ts, txn);
        }
        Ok(())
    }

    fn refuse(&mut self, piece: &Piece, why: &str) -> Result<Prepared, Error> {
        if self.unrecorded_refusals {
            return Err(Error::Conflict(why.to_string()));
        }
        self.end(piece.txn, piece.piece, Decision::Abort);
        self.records.insert((piece.txn, piece.piece), Rec::aborted(&piece.id(), piece.anchor == piece.piece));
        Ok(Prepared::Refused(why.to_string()))
    }

    /// R11 and R13.
    pub fn prepare(&mut self, piece: Piece, one: bool) -> Result<Prepared, Error> {
        let id = (piece.txn, piece.piece);
        if let Some(rec) = self.records.get(&id) {
            return Ok(match rec.state {
                Record::Prepared(p) => Prepared::At(p),
                Record::Committed(c) => Prepared::Committed(c),
                Record::Aborted => Prepared::Refused("aborted before".to_string()),
                Record::None => unreachable!("never stored"),
            });
        }
        let first = &piece.writes[0].key;
        if piece.deadline <= self.floor_of(first) {
            return Ok(Prepared::PastDeadline);
        }
        let shard = self.shard_of(first);
        if piece.writes.iter().any(|w| !shard.contains(&w.key))
            || piece.validate.iter().any(|s| !shard.contains_range(&s.range))
        {
            return Err(Error::NotServed("not my span".to_string()));
        }
        let mut p = piece.candidate.max(self.closed_of(first).next());
        for w in &piece.writes {
            if self.prepares.get(&w.key).is_some_and(|(t, _, _)| *t != piece.txn) {
                return self.refuse(&piece, "foreign prepare");
            }
            if w.seen.is_some_and(|seen| self.newest(&w.key) > seen) {
                return self.refuse(&piece, "a newer version");
            }
            p = p.max(self.cache_high(&w.key, piece.txn).next()).max(self.newest(&w.key).next());
        }
        if p > piece.max_ts {
            return self.refuse(&piece, "above max_ts");
        }
        if one && piece.validated_elsewhere && p != piece.candidate {
            let Prepared::Refused(_) = self.refuse(&piece, "pushed")? else {
                return Ok(Prepared::PastDeadline);
            };
            return Ok(Prepared::Pushed(p));
        }
        let at_max = one || piece.mode == isochrone_shard::api::Mode::AtMax;
        let up_to = if at_max { p } else { piece.candidate };
        for span in &piece.validate {
            if self.unchanged(piece.txn, span, up_to).is_err() {
                return self.refuse(&piece, "what was read has changed");
            }
        }
        for span in piece.validate.clone() {
            self.cached(span.range, up_to, piece.txn);
        }
        if let Some(old) = self.ps.insert(id, p) {
            self.violations.push(format!("T4, T10: {id:?} prepared at {p} after {old}"));
        }
        for w in &piece.writes {
            self.prepares.insert(w.key.clone(), (piece.txn, piece.piece, p));
        }
        let rec = Rec {
            state: Record::Prepared(p),
            deadline: piece.deadline,
            key: first.clone(),
            anchor: piece.anchor == piece.piece,
            acked: false,
            piece: Some(piece),
        };
        self.records.insert(id, rec);
        if one {
            self.decided.insert(id.0, Decision::Commit(p));
            self.apply(id, Decision::Commit(p));
            return Ok(Prepared::Committed(p));
        }
        Ok(Prepared::At(p))
    }

    fn end(&mut self, txn: TxnId, piece: PieceNo, d: Decision) {
        if let Some(old) = self.ends.insert((txn, piece), d)
            && old != d
        {
            self.violations.push(format!("T8: piece {piece} of {txn} ended as {old:?} and then as {d:?}"));
        }
        for ((_, other), end) in self.ends.range((txn, 0)..=(txn, PieceNo::MAX)) {
            if *end != d {
                self.violations.push(format!("T1: {txn}: piece {piece} {d:?}, piece {other} {end:?}"));
                return;
            }
        }
    }

    fn apply(&mut self, id: (TxnId, PieceNo), d: Decision) {
        let rec = self.records.get_mut(&id).expect("applied to a record");
        let Record::Prepared(p) = rec.state else { unreachable!("applied to a prepare") };
        rec.state = match d {
            Decision::Commit(c) => Record::Committed(c),
            Decision::Abort => Record::Aborted,
        };
        let piece = rec.piece.clone().expect("a prepare has its piece");
        self.prepares.retain(|_, (t, n, _)| (*t, *n) != id);
        self.end(id.0, id.1, d);
        let Decision::Commit(c) = d else { return };
        if c < p {
            self.violations.push(format!("T4: {id:?} prepared at {p}, committed at {c}"));
        }
        for w in piece.writes {
            if w.seen.is_some_and(|seen| self.newest(&w.key) > seen) {
                self.violations.push(format!("T6: {id:?} writes {:?} over a version it did not see", w.key));
            }
            if self.newest(&w.key) >= c {
                self.violations.push(format!("T5: {id:?} writes {:?} at {c} below the newest", w.key));
            }
            self.rows.entry(w.key).or_default().push((c, w.value, id.0));
        }
    }

    /// R16.
    pub fn decide(&mut self, anchor: &PieceId, d: Decision) -> Result<AnchorReply, Error> {
        let id = (anchor.txn, anchor.piece);
        match self.records.get(&id).map(|r| r.state) {
            Some(Record::Committed(c)) => Ok(AnchorReply::Decided(Decision::Commit(c))),
            Some(Record::Aborted) => Ok(AnchorReply::Decided(Decision::Abort)),
            Some(_) => {
                self.decided.insert(anchor.txn, d);
                self.apply(id, d);
                Ok(AnchorReply::Decided(d))
            }
            None if anchor.deadline <= self.floor_of(&anchor.key) => Ok(AnchorReply::Gone),
            None if d == Decision::Abort => {
                self.end(id.0, id.1, d);
                self.records.insert(id, Rec::aborted(anchor, true));
                Ok(AnchorReply::Decided(d))
            }
            None => {
                self.violations.push(format!("R16: {d:?} of {} at an anchor without a record", anchor.txn));
                Err(Error::Invalid("commit at an anchor without a record".to_string()))
            }
        }
    }

    pub fn ask(&self, anchor: &PieceId) -> AnchorReply {
        match self.records.get(&(anchor.txn, anchor.piece)).map(|r| r.state) {
            Some(Record::Committed(c)) => AnchorReply::Decided(Decision::Commit(c)),
            Some(Record::Aborted) => AnchorReply::Decided(Decision::Abort),
            Some(_) => AnchorReply::Undecided,
            None if anchor.deadline <= self.floor_of(&anchor.key) => AnchorReply::Gone,
            None => AnchorReply::Unknown,
        }
    }

    /// R17.
    pub fn resolve(&mut self, piece: &PieceId, d: Decision) {
        let id = (piece.txn, piece.piece);
        if let Decision::Commit(_) = d
            && self.decided.get(&piece.txn) != Some(&d)
        {
            self.violations.push(format!("C3: resolve {d:?} of {} before the anchor decided it", piece.txn));
        }
        match (self.records.get(&id).map(|r| r.state), d) {
            (Some(Record::Prepared(_)), d) => self.apply(id, d),
            (Some(Record::Aborted), Decision::Commit(c)) => {
                self.violations.push(format!("T1: resolve commit at {c} of {id:?}, which is aborted"));
            }
            (None, Decision::Abort) if piece.deadline > self.floor_of(&piece.key) => {
                self.end(id.0, id.1, d);
                self.records.insert(id, Rec::aborted(piece, false));
            }
            _ => {}
        }
    }

    /// R18.2.
    pub fn probe(&mut self, piece: &PieceId) -> Record {
        let id = (piece.txn, piece.piece);
        if let Some(rec) = self.records.get(&id) {
            return rec.state;
        }
        if piece.deadline > self.floor_of(&piece.key) {
            self.end(id.0, id.1, Decision::Abort);
            self.records.insert(id, Rec::aborted(piece, piece.piece == 0));
        }
        Record::Aborted
    }

    /// R21.
    pub fn acked(&mut self, anchor: &PieceId) {
        let open = self.prepares.values().find(|(t, _, _)| *t == anchor.txn);
        if let Some(open) = open {
            self.violations.push(format!("R21: {} acked while {open:?} is prepared", anchor.txn));
        }
        if let Some(rec) = self.records.get_mut(&(anchor.txn, anchor.piece)) {
            rec.acked = true;
            rec.anchor = true;
        }
        self.forget();
    }

    /// R20: raises the floor of the shard that starts at `start`, and drops what may be dropped.
    pub fn raise_floor(&mut self, start: &[u8], to: Timestamp) {
        let floor = self.floor.entry(start.to_vec()).or_default();
        *floor = (*floor).max(to);
        self.forget();
    }

    fn forget(&mut self) {
        let floors: BTreeMap<Key, Timestamp> =
            self.records.values().map(|r| (r.key.clone(), self.floor_of(&r.key))).collect();
        self.records.retain(|_, r| {
            let prepared = matches!(r.state, Record::Prepared(_));
            prepared
                || r.deadline > floors[&r.key]
                || (r.anchor && !r.acked && r.piece.as_ref().is_none_or(|p| p.pieces.len() > 1))
        });
    }
}

impl Rec {
    fn aborted(id: &PieceId, anchor: bool) -> Rec {
        Rec {
            state: Record::Aborted,
            deadline: id.deadline,
            key: id.key.clone(),
            piece: None,
            anchor,
            acked: false,
        }
    }
}

/// A piece by its name.
pub trait Named {
    fn id(&self) -> PieceId;
}

impl Named for Piece {
    fn id(&self) -> PieceId {
        PieceId { txn: self.txn, piece: self.piece, key: self.writes[0].key.clone(), deadline: self.deadline }
    }
}
