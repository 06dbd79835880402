//! What stands in an entry of a shard's log: a header and one command, in a versioned binary encoding.
//!
//!     version u8 | kind u8 | term varint | seq varint | closed 8 | read limit 8 | fields of the command
//!
//! An empty payload is the first entry of a leader's term and has no command ([`Entry::decode`] answers `None`).
//!
//! Invariants
//!   E1  The header carries the term under which the command was evaluated; application under another term does
//!       nothing (R2).
//!   E2  `decode(encode(x)) == x`; any other bytes are an error, never a panic, and never allocate more than they hold.
//!
//! `closed` and `read limit` ride on every command, so that a busy shard needs no entries of their own for them.
//! What only evaluation needs (the validated spans, `seen`) is not logged.

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_ts, put_txn, put_u64};
use isochrone_base::{
    Bytes, Key, KeyRange, LogIndex, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId, Value,
};

use crate::api::{Decision, Mode, Piece, PieceId, PieceRef};

/// The version of the encoding that this build writes. Older ones are none yet.
pub const VERSION: u8 = 1;

/// A write as the log has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// The new value, or `None` for a deletion.
    pub value: Option<Value>,
}

/// A piece as the log has it: without what only its evaluation needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedPiece {
    /// The transaction attempt.
    pub txn: TxnId,
    /// This piece.
    pub piece: PieceNo,
    /// All pieces.
    pub pieces: Vec<PieceRef>,
    /// The piece whose record decides.
    pub anchor: PieceNo,
    /// Candidate commit timestamp C.
    pub candidate: Timestamp,
    /// See [`Mode`].
    pub mode: Mode,
    /// At or below a shard's floor this piece is never prepared any more.
    pub deadline: Timestamp,
    /// Upper bound of the commit timestamp.
    pub max_ts: Timestamp,
    /// W, sorted by key.
    pub writes: Vec<Change>,
    /// From the first to the last key of V, where that is not all between keys of W: what a split that was logged first
    /// takes away from the shard was validated in vain (R2).
    pub validated: Option<KeyRange>,
}

/// What is validated beside what is written, as one range.
fn validated(piece: &Piece) -> Option<KeyRange> {
    let spans = || piece.validate.iter().map(|v| &v.range);
    let start = spans().map(|r| &r.start).min()?;
    let is_open = spans().any(|r| r.end.is_empty());
    let end = if is_open { &[][..] } else { spans().map(|r| r.end.as_slice()).max()? };
    let hull = KeyRange::new(start.as_slice(), end);
    let (first, last) = (piece.writes.first()?, piece.writes.last()?);
    let mut behind = last.key.clone();
    behind.push(0);
    let written = KeyRange::new(first.key.as_slice(), behind);
    (!written.contains_range(&hull)).then_some(hull)
}

/// Bit of the mode's byte: a range that was validated follows the writes.
const VALIDATED: u8 = 2;

impl LoggedPiece {
    /// What the log needs of a piece.
    pub fn of(piece: &Piece) -> LoggedPiece {
        LoggedPiece {
            txn: piece.txn,
            piece: piece.piece,
            pieces: piece.pieces.clone(),
            anchor: piece.anchor,
            candidate: piece.candidate,
            mode: piece.mode,
            deadline: piece.deadline,
            max_ts: piece.max_ts,
            writes: piece
                .writes
                .iter()
                .map(|w| Change { key: w.key.clone(), value: w.value.clone() })
                .collect(),
            validated: validated(piece),
        }
    }

    /// The key that finds this piece: as its list of pieces says, or its first written key.
    pub fn find_key(&self) -> &[u8] {
        find_key(self.piece, &self.pieces, self.writes.first().map(|w| w.key.as_slice()))
    }

    /// The name of this piece.
    pub fn id(&self) -> PieceId {
        PieceId { txn: self.txn, piece: self.piece, key: self.find_key().to_vec(), deadline: self.deadline }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_txn(out, self.txn);
        put_u64(out, u64::from(self.piece));
        put_u64(out, self.pieces.len() as u64);
        for p in &self.pieces {
            put_u64(out, u64::from(p.piece));
            put_bytes(out, &p.key);
        }
        put_u64(out, u64::from(self.anchor));
        put_ts(out, self.candidate);
        let mode = match self.mode {
            Mode::AtMax => 0,
            Mode::AtCandidate => 1,
        };
        out.push(mode | if self.validated.is_some() { VALIDATED } else { 0 });
        put_ts(out, self.deadline);
        put_ts(out, self.max_ts);
        put_u64(out, self.writes.len() as u64);
        for w in &self.writes {
            put_bytes(out, &w.key);
            put_value(out, w.value.as_ref());
        }
        if let Some(range) = &self.validated {
            put_bytes(out, &range.start);
            put_bytes(out, &range.end);
        }
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<LoggedPiece, DecodeError> {
        let (txn, piece) = (r.txn()?, r.u32()?);
        let pieces = (0..r.count(2)?)
            .map(|_| Ok(PieceRef { piece: r.u32()?, key: r.key()? }))
            .collect::<Result<_, DecodeError>>()?;
        let anchor = r.u32()?;
        let candidate = r.ts()?;
        let kind = r.u8()?;
        let mode = match kind & !VALIDATED {
            0 => Mode::AtMax,
            1 => Mode::AtCandidate,
            _ => return Err(DecodeError::Invalid("mode")),
        };
        let (deadline, max_ts) = (r.ts()?, r.ts()?);
        let writes = (0..r.count(2)?)
            .map(|_| Ok(Change { key: r.key()?, value: take_value(r)? }))
            .collect::<Result<_, DecodeError>>()?;
        let validated = match kind & VALIDATED {
            0 => None,
            _ => Some(KeyRange { start: r.key()?, end: r.key()? }),
        };
        Ok(LoggedPiece { txn, piece, pieces, anchor, candidate, mode, deadline, max_ts, writes, validated })
    }
}

/// The key that finds a piece.
pub(crate) fn find_key<'a>(
    piece: PieceNo,
    pieces: &'a [PieceRef],
    first_write: Option<&'a [u8]>,
) -> &'a [u8] {
    pieces.iter().find(|p| p.piece == piece).map(|p| p.key.as_slice()).or(first_write).unwrap_or(&[])
}

fn put_value(out: &mut Vec<u8>, value: Option<&Value>) {
    match value {
        None => out.push(0),
        Some(v) => {
            out.push(1);
            put_bytes(out, v);
        }
    }
}

fn take_value(r: &mut Reader) -> Result<Option<Value>, DecodeError> {
    match r.u8()? {
        0 => Ok(None),
        1 => Ok(Some(r.bytes()?)),
        _ => Err(DecodeError::Invalid("value")),
    }
}

/// A state change of a shard. Evaluated once, at the leaseholder; applied on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// R13: versions at p and the record `committed{p}` in one.
    Commit1 {
        /// The piece.
        piece: LoggedPiece,
        /// Its commit timestamp.
        p: Timestamp,
    },
    /// R11.8.
    Prepare {
        /// The piece.
        piece: LoggedPiece,
        /// Its prepare timestamp; never changes.
        p: Timestamp,
    },
    /// R12: a refusal becomes final.
    Refuse {
        /// The piece.
        id: PieceId,
    },
    /// R16, at the anchor.
    Decide {
        /// The anchor piece.
        id: PieceId,
        /// What is proposed; the first decision wins.
        decision: Decision,
    },
    /// R17.
    Resolve {
        /// The piece.
        id: PieceId,
        /// What the anchor's record says.
        decision: Decision,
    },
    /// R18.2.
    Probe {
        /// The piece.
        id: PieceId,
    },
    /// R21: every piece has acknowledged.
    Acked {
        /// The anchor piece.
        id: PieceId,
    },
    /// R20.
    RaiseFloor {
        /// The new floor; a lower one changes nothing.
        to: Timestamp,
    },
    /// The lease: who may read, and (in the header) up to when.
    Lease {
        /// The leaseholder.
        holder: NodeId,
    },
    /// Nothing but the header: an idle shard's closed timestamp.
    Close,
    /// Cuts the shard in two.
    Split {
        /// First key of the right half.
        at: Key,
        /// The id of the right half.
        right: ShardId,
        /// Everything up to this index is in the right half when it is born: its log begins at the next one. 0 in the
        /// logs of the first builds.
        born_at: LogIndex,
    },
    /// Removes versions of a range that nobody can see any more, a bounded number at a time.
    ClearRange {
        /// The range.
        range: KeyRange,
    },
    /// Nothing below is readable any more.
    RaiseGcThreshold {
        /// The new threshold; a lower one changes nothing.
        to: Timestamp,
    },
    /// Every replica may drop its log up to here, once a flush holds what it did.
    Truncate {
        /// The last index that is not needed; a lower one changes nothing.
        upto: LogIndex,
    },
    /// The leaseholder serves no more, and the header's read limit is exactly the highest timestamp at which anything
    /// was served or validated: it replaces the limit (R1, "a graceful transfer").
    Release,
}

/// One entry: header and command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The term under which the command was evaluated (R2).
    pub term: Term,
    /// The leaseholder's number for the proposal, unique within its term.
    pub seq: u64,
    /// The closed timestamp rises to this once the command was applied; `MIN`: unchanged.
    pub closed: Timestamp,
    /// The read limit of the lease rises to this; `MIN`: unchanged. ([`Command::Release`] sets it.)
    pub read_limit: Timestamp,
    /// The command.
    pub command: Command,
}

impl Command {
    /// The field's word for it, as `isochrone.wal` shows it.
    pub fn kind(&self) -> &'static str {
        match self {
            Command::Commit1 { .. } => "commit1",
            Command::Prepare { .. } => "prepare",
            Command::Refuse { .. } => "refuse",
            Command::Decide { decision, .. } | Command::Resolve { decision, .. } => match decision {
                Decision::Commit(_) => "commit",
                Decision::Abort => "abort",
            },
            Command::Probe { .. } => "probe",
            Command::Acked { .. } => "acked",
            Command::RaiseFloor { .. } => "floor",
            Command::Lease { .. } | Command::Release => "lease",
            Command::Close => "closed",
            Command::Split { .. } => "split",
            Command::ClearRange { .. } => "clear",
            Command::RaiseGcThreshold { .. } => "gc",
            Command::Truncate { .. } => "truncate",
        }
    }

    /// The transaction it belongs to.
    pub fn txn(&self) -> Option<TxnId> {
        match self {
            Command::Commit1 { piece, .. } | Command::Prepare { piece, .. } => Some(piece.txn),
            Command::Refuse { id }
            | Command::Decide { id, .. }
            | Command::Resolve { id, .. }
            | Command::Probe { id }
            | Command::Acked { id } => Some(id.txn),
            _ => None,
        }
    }

    /// The commit timestamp, where this entry fixes it.
    pub fn commit_ts(&self) -> Option<Timestamp> {
        match self {
            Command::Commit1 { p, .. } => Some(*p),
            Command::Decide { decision: Decision::Commit(c), .. }
            | Command::Resolve { decision: Decision::Commit(c), .. } => Some(*c),
            _ => None,
        }
    }

    /// How many keys it writes.
    pub fn keys(&self) -> u32 {
        match self {
            Command::Commit1 { piece, .. } | Command::Prepare { piece, .. } => piece.writes.len() as u32,
            _ => 0,
        }
    }
}

fn put_id(out: &mut Vec<u8>, id: &PieceId) {
    put_txn(out, id.txn);
    put_u64(out, u64::from(id.piece));
    put_bytes(out, &id.key);
    put_ts(out, id.deadline);
}

fn take_id(r: &mut Reader) -> Result<PieceId, DecodeError> {
    Ok(PieceId { txn: r.txn()?, piece: r.u32()?, key: r.key()?, deadline: r.ts()? })
}

fn put_decision(out: &mut Vec<u8>, d: Decision) {
    match d {
        Decision::Abort => out.push(0),
        Decision::Commit(c) => {
            out.push(1);
            put_ts(out, c);
        }
    }
}

fn take_decision(r: &mut Reader) -> Result<Decision, DecodeError> {
    match r.u8()? {
        0 => Ok(Decision::Abort),
        1 => Ok(Decision::Commit(r.ts()?)),
        _ => Err(DecodeError::Invalid("decision")),
    }
}

impl Entry {
    /// The entry as the log has it.
    pub fn encode(&self) -> Bytes {
        let room = match &self.command {
            Command::Commit1 { piece, .. } | Command::Prepare { piece, .. } => piece
                .writes
                .iter()
                .map(|w| w.key.len() + w.value.as_ref().map_or(0, Bytes::len) + 8)
                .sum::<usize>(),
            _ => 0,
        };
        let mut out = Vec::with_capacity(128 + room);
        let c = &self.command;
        let kind = match c {
            Command::Commit1 { .. } => 1,
            Command::Prepare { .. } => 2,
            Command::Refuse { .. } => 3,
            Command::Decide { .. } => 4,
            Command::Resolve { .. } => 5,
            Command::Probe { .. } => 6,
            Command::Acked { .. } => 7,
            Command::RaiseFloor { .. } => 8,
            Command::Lease { .. } => 9,
            Command::Close => 10,
            Command::Split { born_at: 0, .. } => 11,
            Command::ClearRange { .. } => 12,
            Command::RaiseGcThreshold { .. } => 13,
            Command::Truncate { .. } => 14,
            Command::Release => 15,
            Command::Split { .. } => 16,
        };
        out.extend_from_slice(&[VERSION, kind]);
        put_u64(&mut out, self.term);
        put_u64(&mut out, self.seq);
        put_ts(&mut out, self.closed);
        put_ts(&mut out, self.read_limit);
        match c {
            Command::Commit1 { piece, p } | Command::Prepare { piece, p } => {
                put_ts(&mut out, *p);
                piece.encode(&mut out);
            }
            Command::Decide { id, decision } | Command::Resolve { id, decision } => {
                put_id(&mut out, id);
                put_decision(&mut out, *decision);
            }
            Command::Refuse { id } | Command::Probe { id } | Command::Acked { id } => put_id(&mut out, id),
            Command::RaiseFloor { to } | Command::RaiseGcThreshold { to } => put_ts(&mut out, *to),
            Command::Lease { holder } => put_u64(&mut out, u64::from(holder.0)),
            Command::Close | Command::Release => {}
            Command::Split { at, right, born_at } => {
                put_bytes(&mut out, at);
                put_u64(&mut out, right.0);
                if *born_at > 0 {
                    put_u64(&mut out, *born_at);
                }
            }
            Command::Truncate { upto } => put_u64(&mut out, *upto),
            Command::ClearRange { range } => {
                put_bytes(&mut out, &range.start);
                put_bytes(&mut out, &range.end);
            }
        }
        out.into()
    }

    /// Reads a payload. An empty one is the first entry of a leader's term: `None`.
    ///
    /// # Errors
    /// Anything that [`Entry::encode`] does not write.
    pub fn decode(payload: &Bytes) -> Result<Option<Entry>, DecodeError> {
        if payload.is_empty() {
            return Ok(None);
        }
        let mut r = Reader::new(payload.clone());
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("version of a shard's log entry"));
        }
        let kind = r.u8()?;
        let (term, seq, closed, read_limit) = (r.u64()?, r.u64()?, r.ts()?, r.ts()?);
        let command = match kind {
            1 => Command::Commit1 { p: r.ts()?, piece: LoggedPiece::decode(&mut r)? },
            2 => Command::Prepare { p: r.ts()?, piece: LoggedPiece::decode(&mut r)? },
            3 => Command::Refuse { id: take_id(&mut r)? },
            4 => Command::Decide { id: take_id(&mut r)?, decision: take_decision(&mut r)? },
            5 => Command::Resolve { id: take_id(&mut r)?, decision: take_decision(&mut r)? },
            6 => Command::Probe { id: take_id(&mut r)? },
            7 => Command::Acked { id: take_id(&mut r)? },
            8 => Command::RaiseFloor { to: r.ts()? },
            9 => Command::Lease { holder: NodeId(r.u32()?) },
            10 => Command::Close,
            11 => Command::Split { at: r.key()?, right: ShardId(r.u64()?), born_at: 0 },
            12 => Command::ClearRange { range: KeyRange { start: r.key()?, end: r.key()? } },
            13 => Command::RaiseGcThreshold { to: r.ts()? },
            14 => Command::Truncate { upto: r.u64()? },
            15 => Command::Release,
            16 => match (r.key()?, ShardId(r.u64()?), r.u64()?) {
                (_, _, 0) => return Err(DecodeError::Invalid("first index of a shard's log")),
                (at, right, born_at) => Command::Split { at, right, born_at },
            },
            _ => return Err(DecodeError::Invalid("kind of a shard's log entry")),
        };
        r.finish()?;
        Ok(Some(Entry { term, seq, closed, read_limit, command }))
    }
}

/// What `isochrone.wal` shows of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The kind, in the field's words; `noop` for an empty payload, `unreadable` for one that does not decode.
    pub kind: &'static str,
    /// The transaction it belongs to.
    pub txn: Option<TxnId>,
    /// The commit timestamp, where this entry fixes it.
    pub commit_ts: Option<Timestamp>,
    /// How many keys it writes.
    pub keys: u32,
}

/// Describes a payload for inspection. Never fails.
pub fn show(payload: &Bytes) -> Shown {
    match Entry::decode(payload) {
        Ok(None) => Shown { kind: "noop", txn: None, commit_ts: None, keys: 0 },
        Err(_) => Shown { kind: "unreadable", txn: None, commit_ts: None, keys: 0 },
        Ok(Some(e)) => Shown {
            kind: e.command.kind(),
            txn: e.command.txn(),
            commit_ts: e.command.commit_ts(),
            keys: e.command.keys(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        vec(any::<u8>(), 0..8)
    }

    fn id() -> impl Strategy<Value = PieceId> {
        (any::<u128>(), any::<u32>(), key(), any::<u64>()).prop_map(|(t, piece, key, d)| PieceId {
            txn: TxnId(t),
            piece,
            key,
            deadline: Timestamp(d),
        })
    }

    fn decision() -> impl Strategy<Value = Decision> {
        proptest::option::of(any::<u64>())
            .prop_map(|c| c.map_or(Decision::Abort, |c| Decision::Commit(Timestamp(c))))
    }

    fn piece() -> impl Strategy<Value = LoggedPiece> {
        let refs = vec((any::<u32>(), key()).prop_map(|(piece, key)| PieceRef { piece, key }), 0..4);
        let value = proptest::option::of(vec(any::<u8>(), 0..8).prop_map(Bytes::from));
        let writes = vec((key(), value).prop_map(|(key, value)| Change { key, value }), 0..4);
        let validated = proptest::option::of((key(), key()));
        let validated = validated.prop_map(|v| v.map(|(start, end)| KeyRange { start, end }));
        (id(), refs, any::<u32>(), any::<(u64, u64)>(), any::<bool>(), writes, validated).prop_map(
            |(id, pieces, anchor, (c, m), max, writes, validated)| LoggedPiece {
                txn: id.txn,
                piece: id.piece,
                pieces,
                anchor,
                candidate: Timestamp(c),
                mode: if max { Mode::AtMax } else { Mode::AtCandidate },
                deadline: id.deadline,
                max_ts: Timestamp(m),
                writes,
                validated,
            },
        )
    }

    fn command() -> impl Strategy<Value = Command> {
        let ts = || any::<u64>().prop_map(Timestamp);
        prop_oneof![
            (piece(), ts()).prop_map(|(piece, p)| Command::Commit1 { piece, p }),
            (piece(), ts()).prop_map(|(piece, p)| Command::Prepare { piece, p }),
            id().prop_map(|id| Command::Refuse { id }),
            (id(), decision()).prop_map(|(id, decision)| Command::Decide { id, decision }),
            (id(), decision()).prop_map(|(id, decision)| Command::Resolve { id, decision }),
            id().prop_map(|id| Command::Probe { id }),
            id().prop_map(|id| Command::Acked { id }),
            ts().prop_map(|to| Command::RaiseFloor { to }),
            any::<u32>().prop_map(|n| Command::Lease { holder: NodeId(n) }),
            Just(Command::Close),
            (key(), any::<u64>(), 0u64..20).prop_map(|(at, s, born_at)| Command::Split {
                at,
                right: ShardId(s),
                born_at
            }),
            (key(), key()).prop_map(|(a, b)| Command::ClearRange { range: KeyRange::new(a, b) }),
            ts().prop_map(|to| Command::RaiseGcThreshold { to }),
            any::<u64>().prop_map(|upto| Command::Truncate { upto }),
            Just(Command::Release),
        ]
    }

    proptest! {
        #[test]
        fn roundtrip(command in command(), h: (u64, u64, u64, u64), cut: prop::sample::Index) {
            let e = Entry { term: h.0, seq: h.1, closed: Timestamp(h.2), read_limit: Timestamp(h.3), command };
            let bytes = e.encode();
            prop_assert_eq!(show(&bytes).kind, e.command.kind());
            prop_assert_eq!(Entry::decode(&bytes), Ok(Some(e)));
            let cut = cut.index(bytes.len());
            if cut > 0 {
                prop_assert!(Entry::decode(&bytes.slice(..cut)).is_err());
            }
            let mut longer = bytes.to_vec();
            longer.push(0);
            prop_assert!(Entry::decode(&longer.into()).is_err());
        }

        #[test]
        fn garbage_never_panics(mut b: Vec<u8>, kind in 0u8..20) {
            let _ = Entry::decode(&b.clone().into());
            b.splice(0..0, [VERSION, kind]);
            let _ = Entry::decode(&b.into());
        }

        #[test]
        fn damage_never_panics(command in command(), at: prop::sample::Index, flip in 1u8..) {
            let mut b = Entry { term: 1, seq: 2, closed: Timestamp(3), read_limit: Timestamp(4), command }.encode().to_vec();
            let at = at.index(b.len());
            b[at] ^= flip;
            let _ = show(&b.into());
        }
    }

    #[test]
    fn an_empty_payload_is_a_noop() {
        assert_eq!(Entry::decode(&Bytes::new()), Ok(None));
        assert_eq!(show(&Bytes::new()).kind, "noop");
    }
}
