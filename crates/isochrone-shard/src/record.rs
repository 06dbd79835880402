//! What a shard replicates besides versions, and how it lies in the engine.
//!
//!     a shard "shard"                      descriptor (range, members), floor, GC threshold, lease holder, truncation
//!     a shard "applied"                    applied index and term, closed, read limit, highest timestamp
//!     a shard "installing"                 a snapshot is being installed: what it clears (see `snapshot`)
//!     r shard deadline txn piece           record: prepared (with its writes), committed, aborted
//!
//! The lock space of the commit protocol is the prepared records: each holds its writes, and the keys are indexed in
//! memory (loaded at open), so that a read costs one engine get. The order (deadline, txn, piece) makes raising the
//! floor a walk over a prefix (R20, R21), and a record is found without an index because every message names its
//! deadline.
//!
//! Tombstones and anchors: a tombstone that must outlive the floor is the anchor's whose pieces have not all
//! acknowledged (R21); it keeps the list of pieces (`Tombstone::keep`), so that somebody can be sent to finish. Two
//! kinds of anchor tombstones go with the floor like others:
//! * of a transaction of one piece: nobody else has to acknowledge;
//! * `aborted` written where nothing was prepared (a refusal, a decision or a probe of an absent piece; they carry no
//!   list). After the floor the anchor answers "gone", which resolves prepares as abort, and nothing can be prepared or
//!   decided there any more (R11.2, R16): what was aborted stays so. Only the answer to a late question changes, from
//!   ABORT to 40003, as R22 allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_ts, put_txn, put_u64};
use isochrone_base::{
    Bytes, Key, KeyRange, LogIndex, Members, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId,
};
use isochrone_storage::mvcc;

use crate::api::{Mode, PieceId, PieceRef, Record, Suspect};
use crate::command::LoggedPiece;

const VERSION: u8 = 1;
/// The descriptor's: version 1 had no voters and no truncation, version 2 no members but voters.
const DESCRIPTOR_VERSION: u8 = 3;
/// Name of the descriptor among a shard's state.
pub(crate) const SHARD: &[u8] = b"shard";
/// Name of the progress among a shard's state.
pub(crate) const APPLIED: &[u8] = b"applied";
/// Name of the mark of an installation among a shard's state.
pub(crate) const INSTALLING: &[u8] = b"installing";
/// Name of the mark of a replica that left its group among a shard's state.
pub(crate) const REMOVED: &[u8] = b"removed";

/// The order of records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RecordKey {
    pub(crate) deadline: Timestamp,
    pub(crate) txn: TxnId,
    pub(crate) piece: PieceNo,
}

impl RecordKey {
    pub(crate) fn of(id: &PieceId) -> RecordKey {
        RecordKey { deadline: id.deadline, txn: id.txn, piece: id.piece }
    }

    /// The last key of records whose deadline is at or below `floor`.
    pub(crate) fn upto(floor: Timestamp) -> RecordKey {
        RecordKey { deadline: floor, txn: TxnId(u128::MAX), piece: PieceNo::MAX }
    }

    pub(crate) fn physical(self, shard: ShardId) -> Key {
        let mut suffix = Vec::with_capacity(28);
        put_ts(&mut suffix, self.deadline);
        put_txn(&mut suffix, self.txn);
        suffix.extend_from_slice(&self.piece.to_be_bytes());
        mvcc::record_key(shard, &suffix)
    }

    fn parse(suffix: Bytes) -> Result<RecordKey, DecodeError> {
        let mut r = Reader::new(suffix);
        let (deadline, txn) = (r.ts()?, r.txn()?);
        let piece = r.take(4)?;
        let piece = PieceNo::from_be_bytes(piece[..].try_into().map_err(|_| DecodeError::Invalid("piece"))?);
        r.finish()?;
        Ok(RecordKey { deadline, txn, piece })
    }
}

/// A prepared piece.
#[derive(Debug)]
pub(crate) struct PreparedPiece {
    pub(crate) p: Timestamp,
    pub(crate) piece: LoggedPiece,
}

impl PreparedPiece {
    pub(crate) fn key(&self) -> RecordKey {
        RecordKey { deadline: self.piece.deadline, txn: self.piece.txn, piece: self.piece.piece }
    }

    /// The list that a tombstone keeps, if this is the anchor and others have to acknowledge (R21).
    pub(crate) fn keep(&self) -> Option<Arc<Suspect>> {
        (self.piece.anchor == self.piece.piece && self.piece.pieces.len() > 1)
            .then(|| Arc::new(self.suspect()))
    }

    pub(crate) fn suspect(&self) -> Suspect {
        Suspect {
            txn: self.piece.txn,
            pieces: self.piece.pieces.clone(),
            anchor: self.piece.anchor,
            candidate: self.piece.candidate,
            mode: self.piece.mode,
            deadline: self.piece.deadline,
        }
    }
}

impl PreparedPiece {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, 1];
        put_ts(&mut out, self.p);
        self.piece.encode(&mut out);
        out
    }
}

/// A record that is decided.
#[derive(Clone, Debug)]
pub(crate) struct Tombstone {
    /// When it was committed; `None`: aborted, or blocked.
    pub(crate) committed: Option<Timestamp>,
    /// An anchor's tombstone that waits for acknowledgements: whom to ask (R21).
    pub(crate) keep: Option<Arc<Suspect>>,
}

impl Tombstone {
    pub(crate) fn record(&self) -> Record {
        self.committed.map_or(Record::Aborted, Record::Committed)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self.committed {
            Some(c) => {
                out.push(2);
                put_ts(&mut out, c);
            }
            None => out.push(3),
        }
        match &self.keep {
            None => out.push(0),
            Some(s) => {
                out.push(1);
                put_u64(&mut out, s.pieces.len() as u64);
                for p in &s.pieces {
                    put_u64(&mut out, u64::from(p.piece));
                    put_bytes(&mut out, &p.key);
                }
                put_u64(&mut out, u64::from(s.anchor));
                put_ts(&mut out, s.candidate);
                out.push(u8::from(s.mode == Mode::AtCandidate));
            }
        }
        out
    }
}

/// The replicated state of a shard but its versions: what the applied entries made of it.
#[derive(Debug)]
pub(crate) struct Replicated {
    pub(crate) shard: ShardId,
    pub(crate) range: KeyRange,
    /// The members of its Raft group; empty in shards of the first builds, whose one node is the voter.
    pub(crate) members: Members,
    pub(crate) epoch: u64,
    /// No replica needs entries up to here, once a flush of its own holds them.
    pub(crate) truncate_to: LogIndex,
    pub(crate) floor: Timestamp,
    pub(crate) gc_threshold: Timestamp,
    pub(crate) holder: NodeId,
    pub(crate) applied: LogIndex,
    pub(crate) applied_term: Term,
    pub(crate) closed: Timestamp,
    pub(crate) read_limit: Timestamp,
    /// The highest timestamp that stands anywhere in this shard.
    pub(crate) newest: Timestamp,
    pub(crate) prepared: BTreeMap<RecordKey, Arc<PreparedPiece>>,
    pub(crate) tombstones: BTreeMap<RecordKey, Tombstone>,
}

impl Replicated {
    pub(crate) fn new(shard: ShardId, range: KeyRange) -> Replicated {
        Replicated {
            shard,
            range,
            members: Members::default(),
            epoch: 1,
            truncate_to: 0,
            floor: Timestamp::MIN,
            gc_threshold: Timestamp::MIN,
            holder: NodeId(0),
            applied: 0,
            applied_term: 0,
            closed: Timestamp::MIN,
            read_limit: Timestamp::MIN,
            newest: Timestamp::MIN,
            prepared: BTreeMap::new(),
            tombstones: BTreeMap::new(),
        }
    }

    pub(crate) fn record(&self, key: RecordKey) -> Record {
        match (self.prepared.get(&key), self.tombstones.get(&key)) {
            (Some(p), _) => Record::Prepared(p.p),
            (None, Some(t)) => t.record(),
            (None, None) => Record::None,
        }
    }

    /// The lowest p that is prepared and unresolved.
    pub(crate) fn lowest_prepared(&self) -> Option<Timestamp> {
        self.prepared.values().map(|p| p.p).min()
    }

    pub(crate) fn encode_shard(&self) -> Vec<u8> {
        let mut out = vec![DESCRIPTOR_VERSION];
        put_bytes(&mut out, &self.range.start);
        put_bytes(&mut out, &self.range.end);
        put_u64(&mut out, self.epoch);
        put_ts(&mut out, self.floor);
        put_ts(&mut out, self.gc_threshold);
        put_u64(&mut out, u64::from(self.holder.0));
        self.members.encode(&mut out);
        put_u64(&mut out, self.truncate_to);
        out
    }

    pub(crate) fn encode_applied(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_u64(&mut out, self.applied);
        put_u64(&mut out, self.applied_term);
        put_ts(&mut out, self.closed);
        put_ts(&mut out, self.read_limit);
        put_ts(&mut out, self.newest);
        out
    }

    pub(crate) fn decode(
        shard: ShardId,
        descriptor: Bytes,
        applied: Bytes,
    ) -> Result<Replicated, DecodeError> {
        let mut r = Reader::new(descriptor);
        let version = r.u8()?;
        if version == 0 || version > DESCRIPTOR_VERSION {
            return Err(DecodeError::Invalid("version of a shard's descriptor"));
        }
        let mut out = Replicated::new(shard, KeyRange { start: r.key()?, end: r.key()? });
        out.epoch = r.u64()?;
        out.floor = r.ts()?;
        out.gc_threshold = r.ts()?;
        out.holder = NodeId(r.u32()?);
        if version >= 2 {
            out.members = match version {
                2 => (0..r.count(1)?).map(|_| Ok(NodeId(r.u32()?))).collect::<Result<Vec<_>, _>>()?.into(),
                _ => Members::decode(&mut r)?,
            };
            out.truncate_to = r.u64()?;
        }
        r.finish()?;
        let mut r = Reader::new(applied);
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("version of a shard's progress"));
        }
        out.applied = r.u64()?;
        out.applied_term = r.u64()?;
        out.closed = r.ts()?;
        out.read_limit = r.ts()?;
        out.newest = r.ts()?;
        r.finish()?;
        Ok(out)
    }

    /// Takes in a record as the engine has it. `suffix` is what stands behind the shard's prefix.
    pub(crate) fn load_record(&mut self, suffix: Bytes, value: Bytes) -> Result<(), DecodeError> {
        let key = RecordKey::parse(suffix)?;
        let mut r = Reader::new(value);
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("version of a record"));
        }
        let committed = match r.u8()? {
            1 => {
                let p = r.ts()?;
                let piece = LoggedPiece::decode(&mut r)?;
                r.finish()?;
                let prepared = PreparedPiece { p, piece };
                if prepared.key() != key {
                    return Err(DecodeError::Invalid("key of a prepared record"));
                }
                self.prepared.insert(key, Arc::new(prepared));
                return Ok(());
            }
            2 => Some(r.ts()?),
            3 => None,
            _ => return Err(DecodeError::Invalid("state of a record")),
        };
        let keep = match r.u8()? {
            0 => None,
            1 => {
                let pieces = (0..r.count(2)?)
                    .map(|_| Ok(PieceRef { piece: r.u32()?, key: r.key()? }))
                    .collect::<Result<_, DecodeError>>()?;
                let (anchor, candidate) = (r.u32()?, r.ts()?);
                let mode = if r.u8()? == 0 { Mode::AtMax } else { Mode::AtCandidate };
                let (txn, deadline) = (key.txn, key.deadline);
                Some(Arc::new(Suspect { txn, pieces, anchor, candidate, mode, deadline }))
            }
            _ => return Err(DecodeError::Invalid("flag of a record")),
        };
        r.finish()?;
        self.tombstones.insert(key, Tombstone { committed, keep });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_the_first_builds_still_open() {
        let mut new = Replicated::new(ShardId(7), KeyRange::new(*b"a", *b"m"));
        (new.epoch, new.floor, new.gc_threshold, new.holder) = (3, Timestamp(4), Timestamp(5), NodeId(6));
        let mut old = new.encode_shard();
        old[0] = 1;
        old.truncate(old.len() - 4); // no members, no truncation
        let r = Replicated::decode(ShardId(7), old.into(), new.encode_applied().into()).unwrap();
        assert_eq!((r.range, r.epoch, r.floor), (new.range.clone(), 3, Timestamp(4)));
        assert_eq!(
            (r.gc_threshold, r.holder, r.members, r.truncate_to),
            (Timestamp(5), NodeId(6), Members::default(), 0)
        );
        (new.members, new.truncate_to) = (vec![NodeId(1), NodeId(300)].into(), 99);
        new.members.learners.push(NodeId(7));
        let r =
            Replicated::decode(ShardId(7), new.encode_shard().into(), new.encode_applied().into()).unwrap();
        assert_eq!((r.members, r.truncate_to), (new.members.clone(), 99));
        // Version 2 had a list of voters in their place.
        let mut v2 = new.encode_shard();
        let tail = v2.split_off(v2.len() - 1);
        v2.truncate(v2.len() - 3);
        v2.extend_from_slice(&tail);
        v2[0] = 2;
        let r = Replicated::decode(new.shard, v2.into(), new.encode_applied().into()).unwrap();
        assert_eq!((r.members, r.truncate_to), (new.members.voters.clone().into(), 99));
        for version in [0, DESCRIPTOR_VERSION + 1] {
            let mut bad = new.encode_shard();
            bad[0] = version;
            assert!(Replicated::decode(ShardId(7), bad.into(), new.encode_applied().into()).is_err());
        }
    }
}
