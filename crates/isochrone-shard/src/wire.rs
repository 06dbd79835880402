//! Requests and answers of [`ShardClient`] as bytes, for leaseholders behind the network.
//!
//!     request   version u8 | kind u8 | fields          answer   version u8 | kind u8 | fields
//!
//! Integers are varints, byte strings carry their length, timestamps and transaction ids are fixed (see
//! `isochrone_base::codec`).
//!
//! Invariant E3: `decode(encode(x)) == x`; any other bytes are an error, never a panic, and never allocate more than
//! they hold. What decodes is still only what somebody asks for: evaluation checks it like a request of this process.
//!
//! `route` and `route_key` do not travel: whoever routes has its own map of the key space.

use std::time::Duration;

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_ts, put_txn, put_u64};
use isochrone_base::{Bytes, Key, KeyRange, NodeId, PieceNo, ShardId, Timestamp, TxnId, Value};

use crate::api::{
    AnchorReply, BoxFuture, Decision, Error, LockMode, Locked, Mode, Page, Piece, PieceId, PieceRef,
    Prepared, ReadAs, ReadSpan, Record, Seen, ShardClient, Write,
};

/// The version of the encoding that this build writes and reads.
pub const VERSION: u8 = 1;

/// A call of [`ShardClient`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// [`ShardClient::get`].
    Get {
        /// Who reads.
        who: ReadAs,
        /// The key.
        key: Key,
    },
    /// [`ShardClient::scan`].
    Scan {
        /// Who reads.
        who: ReadAs,
        /// The keys.
        range: KeyRange,
        /// Descending.
        reverse: bool,
        /// Rows at most.
        rows_max: u64,
        /// Bytes, about.
        bytes_max: u64,
    },
    /// [`ShardClient::lock`].
    Lock {
        /// The transaction attempt.
        txn: TxnId,
        /// The key.
        key: Key,
        /// How strongly.
        mode: LockMode,
        /// The timestamp at which the caller knows the row.
        read_ts: Timestamp,
        /// Longest wait in the queue.
        wait_max: Duration,
    },
    /// [`ShardClient::unlock`].
    Unlock {
        /// The transaction attempt.
        txn: TxnId,
        /// The keys.
        keys: Vec<Key>,
    },
    /// [`ShardClient::validate`].
    Validate {
        /// The transaction attempt.
        txn: TxnId,
        /// V, or the part of it that lies there.
        spans: Vec<ReadSpan>,
        /// Up to this timestamp.
        ts: Timestamp,
    },
    /// [`ShardClient::prepare`].
    Prepare(Piece),
    /// [`ShardClient::commit1`].
    Commit1(Piece),
    /// [`ShardClient::decide`].
    Decide {
        /// The anchor piece.
        anchor: PieceId,
        /// What is proposed.
        decision: Decision,
    },
    /// [`ShardClient::ask`].
    Ask(PieceId),
    /// [`ShardClient::resolve`].
    Resolve {
        /// The piece.
        piece: PieceId,
        /// What the anchor's record says.
        decision: Decision,
    },
    /// [`ShardClient::probe`].
    Probe(PieceId),
    /// [`ShardClient::acked`].
    Acked(PieceId),
}

/// What a [`Request`] answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// To `Get`.
    Seen(Option<Seen>),
    /// To `Scan`.
    Page(Page),
    /// To `Lock`.
    Locked(Locked),
    /// To `Unlock`, `Validate`, `Resolve` and `Acked`.
    Done,
    /// To `Prepare` and `Commit1`.
    Prepared(Prepared),
    /// To `Decide` and `Ask`.
    Anchor(AnchorReply),
    /// To `Probe`.
    Record(Record),
    /// To any.
    Error(Error),
}

fn put_bool(out: &mut Vec<u8>, b: bool) {
    out.push(u8::from(b));
}

/// A mode of a row lock.
///
/// # Errors
/// Any other byte.
pub fn take_lock_mode(r: &mut Reader) -> Result<LockMode, DecodeError> {
    let mode = LockMode::ALL.get(usize::from(r.u8()?));
    mode.copied().ok_or(DecodeError::Invalid("mode of a lock"))
}

fn take_bool(r: &mut Reader) -> Result<bool, DecodeError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid("flag")),
    }
}

/// Whole nanoseconds; more than 584 years saturate.
fn put_duration(out: &mut Vec<u8>, d: Duration) {
    put_u64(out, u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
}

fn take_duration(r: &mut Reader) -> Result<Duration, DecodeError> {
    Ok(Duration::from_nanos(r.u64()?))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn take_text(r: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(r.bytes()?.to_vec()).map_err(|_| DecodeError::Invalid("text"))
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    put_bool(out, value.is_some());
    if let Some(value) = value {
        put(out, value);
    }
}

fn take_option<T>(
    r: &mut Reader,
    take: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match take_bool(r)? {
        true => take(r).map(Some),
        false => Ok(None),
    }
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u64(out, items.len() as u64);
    items.iter().for_each(|item| put(out, item));
}

/// The list grows as items are read: its length is a claim of the sender.
fn take_list<T>(
    r: &mut Reader,
    item_bytes_min: usize,
    take: impl Fn(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    (0..r.count(item_bytes_min)?).map(|_| take(r)).collect()
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    put_bytes(out, value);
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    put_bytes(out, &range.start);
    put_bytes(out, &range.end);
}

fn take_range(r: &mut Reader) -> Result<KeyRange, DecodeError> {
    Ok(KeyRange { start: r.key()?, end: r.key()? })
}

fn put_who(out: &mut Vec<u8>, who: ReadAs) {
    put_txn(out, who.txn);
    put_ts(out, who.ts);
    put_ts(out, who.uncertain_to);
}

fn take_who(r: &mut Reader) -> Result<ReadAs, DecodeError> {
    Ok(ReadAs { txn: r.txn()?, ts: r.ts()?, uncertain_to: r.ts()? })
}

fn put_span(out: &mut Vec<u8>, span: &ReadSpan) {
    put_range(out, &span.range);
    put_ts(out, span.seen);
}

fn take_span(r: &mut Reader) -> Result<ReadSpan, DecodeError> {
    Ok(ReadSpan { range: take_range(r)?, seen: r.ts()? })
}

fn put_piece_no(out: &mut Vec<u8>, piece: PieceNo) {
    put_u64(out, u64::from(piece));
}

fn put_id(out: &mut Vec<u8>, id: &PieceId) {
    put_txn(out, id.txn);
    put_piece_no(out, id.piece);
    put_bytes(out, &id.key);
    put_ts(out, id.deadline);
}

fn take_id(r: &mut Reader) -> Result<PieceId, DecodeError> {
    Ok(PieceId { txn: r.txn()?, piece: r.u32()?, key: r.key()?, deadline: r.ts()? })
}

fn put_decision(out: &mut Vec<u8>, decision: Decision) {
    let commit = match decision {
        Decision::Commit(c) => Some(c),
        Decision::Abort => None,
    };
    put_option(out, commit.as_ref(), |out, c| put_ts(out, *c));
}

fn take_decision(r: &mut Reader) -> Result<Decision, DecodeError> {
    Ok(take_option(r, Reader::ts)?.map_or(Decision::Abort, Decision::Commit))
}

fn put_piece(out: &mut Vec<u8>, p: &Piece) {
    put_txn(out, p.txn);
    put_piece_no(out, p.piece);
    put_list(out, &p.pieces, |out, r| {
        put_piece_no(out, r.piece);
        put_bytes(out, &r.key);
    });
    put_piece_no(out, p.anchor);
    put_ts(out, p.candidate);
    put_bool(out, p.mode == Mode::AtCandidate);
    put_ts(out, p.deadline);
    put_ts(out, p.max_ts);
    put_list(out, &p.writes, |out, w| {
        put_bytes(out, &w.key);
        put_option(out, w.value.as_ref(), put_value);
        put_option(out, w.seen.as_ref(), |out, ts| put_ts(out, *ts));
    });
    put_list(out, &p.validate, put_span);
    put_bool(out, p.validated_elsewhere);
}

fn take_piece(r: &mut Reader) -> Result<Piece, DecodeError> {
    let take_ref = |r: &mut Reader| Ok(PieceRef { piece: r.u32()?, key: r.key()? });
    let take_write = |r: &mut Reader| {
        Ok(Write { key: r.key()?, value: take_option(r, Reader::bytes)?, seen: take_option(r, Reader::ts)? })
    };
    Ok(Piece {
        txn: r.txn()?,
        piece: r.u32()?,
        pieces: take_list(r, 2, take_ref)?,
        anchor: r.u32()?,
        candidate: r.ts()?,
        mode: if take_bool(r)? { Mode::AtCandidate } else { Mode::AtMax },
        deadline: r.ts()?,
        max_ts: r.ts()?,
        writes: take_list(r, 3, take_write)?,
        validate: take_list(r, 10, take_span)?,
        validated_elsewhere: take_bool(r)?,
    })
}

fn begin(bytes: Bytes) -> Result<(u8, Reader), DecodeError> {
    let mut r = Reader::new(bytes);
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of a shard request or answer"));
    }
    Ok((r.u8()?, r))
}

impl Request {
    /// The request as bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        match self {
            Request::Get { who, key } => {
                out.push(1);
                put_who(&mut out, *who);
                put_bytes(&mut out, key);
            }
            Request::Scan { who, range, reverse, rows_max, bytes_max } => {
                out.push(2);
                put_who(&mut out, *who);
                put_range(&mut out, range);
                put_bool(&mut out, *reverse);
                put_u64(&mut out, *rows_max);
                put_u64(&mut out, *bytes_max);
            }
            Request::Lock { txn, key, mode, read_ts, wait_max } => {
                out.push(3);
                put_txn(&mut out, *txn);
                put_bytes(&mut out, key);
                out.push(*mode as u8);
                put_ts(&mut out, *read_ts);
                put_duration(&mut out, *wait_max);
            }
            Request::Unlock { txn, keys } => {
                out.push(4);
                put_txn(&mut out, *txn);
                put_list(&mut out, keys, |out, key| put_bytes(out, key));
            }
            Request::Validate { txn, spans, ts } => {
                out.push(5);
                put_txn(&mut out, *txn);
                put_list(&mut out, spans, put_span);
                put_ts(&mut out, *ts);
            }
            Request::Prepare(piece) => {
                out.push(6);
                put_piece(&mut out, piece);
            }
            Request::Commit1(piece) => {
                out.push(7);
                put_piece(&mut out, piece);
            }
            Request::Decide { anchor, decision } => {
                out.push(8);
                put_id(&mut out, anchor);
                put_decision(&mut out, *decision);
            }
            Request::Ask(anchor) => {
                out.push(9);
                put_id(&mut out, anchor);
            }
            Request::Resolve { piece, decision } => {
                out.push(10);
                put_id(&mut out, piece);
                put_decision(&mut out, *decision);
            }
            Request::Probe(piece) => {
                out.push(11);
                put_id(&mut out, piece);
            }
            Request::Acked(anchor) => {
                out.push(12);
                put_id(&mut out, anchor);
            }
        }
        out.into()
    }

    /// Reads a request. Byte strings that are values stay views into `bytes`.
    ///
    /// # Errors
    /// Anything that [`Request::encode`] does not write.
    pub fn decode(bytes: Bytes) -> Result<Request, DecodeError> {
        let (kind, mut r) = begin(bytes)?;
        let r = &mut r;
        let request = match kind {
            1 => Request::Get { who: take_who(r)?, key: r.key()? },
            2 => Request::Scan {
                who: take_who(r)?,
                range: take_range(r)?,
                reverse: take_bool(r)?,
                rows_max: r.u64()?,
                bytes_max: r.u64()?,
            },
            3 => {
                let (txn, key, mode, read_ts) = (r.txn()?, r.key()?, take_lock_mode(r)?, r.ts()?);
                Request::Lock { txn, key, mode, read_ts, wait_max: take_duration(r)? }
            }
            4 => Request::Unlock { txn: r.txn()?, keys: take_list(r, 1, Reader::key)? },
            5 => Request::Validate { txn: r.txn()?, spans: take_list(r, 10, take_span)?, ts: r.ts()? },
            6 => Request::Prepare(take_piece(r)?),
            7 => Request::Commit1(take_piece(r)?),
            8 => Request::Decide { anchor: take_id(r)?, decision: take_decision(r)? },
            9 => Request::Ask(take_id(r)?),
            10 => Request::Resolve { piece: take_id(r)?, decision: take_decision(r)? },
            11 => Request::Probe(take_id(r)?),
            12 => Request::Acked(take_id(r)?),
            _ => return Err(DecodeError::Invalid("kind of a shard request")),
        };
        r.clone().finish()?;
        Ok(request)
    }

    /// The key by which it is routed: that of a point, or where its range or first span begins. A reverse scan goes to
    /// the shard that holds the upper end of its range.
    pub fn key(&self) -> &[u8] {
        let first = |p: &'_ Piece| p.pieces.iter().position(|x| x.piece == p.piece);
        match self {
            Request::Get { key, .. } | Request::Lock { key, .. } => key,
            Request::Scan { range, .. } => &range.start,
            Request::Unlock { keys, .. } => keys.first().map_or(&[], Vec::as_slice),
            Request::Validate { spans, .. } => spans.first().map_or(&[], |s| s.range.start.as_slice()),
            Request::Prepare(p) | Request::Commit1(p) => match first(p) {
                Some(at) => &p.pieces[at].key,
                None => p.writes.first().map_or(&[], |w| w.key.as_slice()),
            },
            Request::Decide { anchor: id, .. }
            | Request::Resolve { piece: id, .. }
            | Request::Ask(id)
            | Request::Probe(id)
            | Request::Acked(id) => &id.key,
        }
    }

    /// Does what is asked.
    pub fn run(self, client: &dyn ShardClient) -> BoxFuture<'_, Response> {
        fn answer<T>(result: Result<T, Error>, of: impl FnOnce(T) -> Response) -> Response {
            result.map_or_else(Response::Error, of)
        }
        let done = |()| Response::Done;
        Box::pin(async move {
            match self {
                Request::Get { who, key } => answer(client.get(who, &key).await, Response::Seen),
                Request::Scan { who, range, reverse, rows_max, bytes_max } => {
                    let (rows_max, bytes_max) = (clip(rows_max), clip(bytes_max));
                    answer(client.scan(who, &range, reverse, rows_max, bytes_max).await, Response::Page)
                }
                Request::Lock { txn, key, mode, read_ts, wait_max } => {
                    answer(client.lock(txn, &key, mode, read_ts, wait_max).await, Response::Locked)
                }
                Request::Unlock { txn, keys } => {
                    client.unlock(txn, &keys);
                    Response::Done
                }
                Request::Validate { txn, spans, ts } => answer(client.validate(txn, spans, ts).await, done),
                Request::Prepare(piece) => answer(client.prepare(piece).await, Response::Prepared),
                Request::Commit1(piece) => answer(client.commit1(piece).await, Response::Prepared),
                Request::Decide { anchor, decision } => {
                    answer(client.decide(anchor, decision).await, Response::Anchor)
                }
                Request::Ask(anchor) => answer(client.ask(anchor).await, Response::Anchor),
                Request::Resolve { piece, decision } => answer(client.resolve(piece, decision).await, done),
                Request::Probe(piece) => answer(client.probe(piece).await, Response::Record),
                Request::Acked(anchor) => answer(client.acked(anchor).await, done),
            }
        })
    }
}

fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn put_error(out: &mut Vec<u8>, e: &Error) {
    match e {
        Error::Uncertain(ts) => {
            out.push(1);
            put_ts(out, *ts);
        }
        Error::Conflict(why) => {
            out.push(2);
            put_text(out, why);
        }
        Error::Deadlock => out.push(3),
        Error::LockTimeout(waited) => {
            out.push(4);
            put_duration(out, *waited);
        }
        Error::BelowThreshold { ts, threshold } => {
            out.push(5);
            put_ts(out, *ts);
            put_ts(out, *threshold);
        }
        Error::NotServed(why) => {
            out.push(6);
            put_text(out, why);
        }
        Error::NotLeader { shard, leader } => {
            out.push(7);
            put_u64(out, shard.0);
            put_option(out, leader.as_ref(), |out, n| put_u64(out, u64::from(n.0)));
        }
        Error::Ambiguous(why) => {
            out.push(8);
            put_text(out, why);
        }
        Error::Invalid(why) => {
            out.push(9);
            put_text(out, why);
        }
        Error::Stopped(why) => {
            out.push(10);
            put_text(out, why);
        }
    }
}

fn take_error(r: &mut Reader) -> Result<Error, DecodeError> {
    Ok(match r.u8()? {
        1 => Error::Uncertain(r.ts()?),
        2 => Error::Conflict(take_text(r)?),
        3 => Error::Deadlock,
        4 => Error::LockTimeout(take_duration(r)?),
        5 => Error::BelowThreshold { ts: r.ts()?, threshold: r.ts()? },
        6 => Error::NotServed(take_text(r)?),
        7 => Error::NotLeader { shard: ShardId(r.u64()?), leader: take_option(r, |r| Ok(NodeId(r.u32()?)))? },
        8 => Error::Ambiguous(take_text(r)?),
        9 => Error::Invalid(take_text(r)?),
        10 => Error::Stopped(take_text(r)?),
        _ => return Err(DecodeError::Invalid("kind of a shard error")),
    })
}

impl Response {
    /// The answer as bytes.
    pub fn encode(&self) -> Bytes {
        let room = match self {
            Response::Page(page) => page.rows.iter().map(|(k, v)| k.len() + v.len() + 8).sum(),
            Response::Seen(Some(seen)) => seen.value.len(),
            _ => 0,
        };
        let mut out = Vec::with_capacity(room + 64);
        out.push(VERSION);
        match self {
            Response::Seen(seen) => {
                out.push(1);
                put_option(&mut out, seen.as_ref(), |out, s| {
                    put_ts(out, s.ts);
                    put_value(out, &s.value);
                });
            }
            Response::Page(page) => {
                out.push(2);
                put_list(&mut out, &page.rows, |out, (key, value)| {
                    put_bytes(out, key);
                    put_value(out, value);
                });
                put_option(&mut out, page.rest.as_ref(), put_range);
                put_ts(&mut out, page.newest);
            }
            Response::Locked(locked) => {
                out.push(3);
                put_bool(&mut out, locked.waited);
            }
            Response::Done => out.push(4),
            Response::Prepared(prepared) => {
                out.push(5);
                match prepared {
                    Prepared::At(p) => {
                        out.push(1);
                        put_ts(&mut out, *p);
                    }
                    Prepared::Committed(c) => {
                        out.push(2);
                        put_ts(&mut out, *c);
                    }
                    Prepared::Refused(why) => {
                        out.push(3);
                        put_text(&mut out, why);
                    }
                    Prepared::PastDeadline => out.push(4),
                    Prepared::Pushed(p) => {
                        out.push(5);
                        put_ts(&mut out, *p);
                    }
                    Prepared::OutOfRange => out.push(6),
                }
            }
            Response::Anchor(reply) => {
                out.push(6);
                match reply {
                    AnchorReply::Decided(decision) => {
                        out.push(1);
                        put_decision(&mut out, *decision);
                    }
                    AnchorReply::Undecided => out.push(2),
                    AnchorReply::Unknown => out.push(3),
                    AnchorReply::Gone => out.push(4),
                }
            }
            Response::Record(record) => {
                out.push(7);
                match record {
                    Record::None => out.push(1),
                    Record::Prepared(p) => {
                        out.push(2);
                        put_ts(&mut out, *p);
                    }
                    Record::Committed(c) => {
                        out.push(3);
                        put_ts(&mut out, *c);
                    }
                    Record::Aborted => out.push(4),
                }
            }
            Response::Error(e) => {
                out.push(8);
                put_error(&mut out, e);
            }
        }
        out.into()
    }

    /// Reads an answer. Values stay views into `bytes`.
    ///
    /// # Errors
    /// Anything that [`Response::encode`] does not write.
    pub fn decode(bytes: Bytes) -> Result<Response, DecodeError> {
        let (kind, mut r) = begin(bytes)?;
        let r = &mut r;
        let response = match kind {
            1 => Response::Seen(take_option(r, |r| Ok(Seen { ts: r.ts()?, value: r.bytes()? }))?),
            2 => Response::Page(Page {
                rows: take_list(r, 2, |r| Ok((r.bytes()?, r.bytes()?)))?,
                rest: take_option(r, take_range)?,
                newest: r.ts()?,
            }),
            3 => Response::Locked(Locked { waited: take_bool(r)? }),
            4 => Response::Done,
            5 => Response::Prepared(match r.u8()? {
                1 => Prepared::At(r.ts()?),
                2 => Prepared::Committed(r.ts()?),
                3 => Prepared::Refused(take_text(r)?),
                4 => Prepared::PastDeadline,
                5 => Prepared::Pushed(r.ts()?),
                6 => Prepared::OutOfRange,
                _ => return Err(DecodeError::Invalid("answer to a prepare")),
            }),
            6 => Response::Anchor(match r.u8()? {
                1 => AnchorReply::Decided(take_decision(r)?),
                2 => AnchorReply::Undecided,
                3 => AnchorReply::Unknown,
                4 => AnchorReply::Gone,
                _ => return Err(DecodeError::Invalid("answer of an anchor")),
            }),
            7 => Response::Record(match r.u8()? {
                1 => Record::None,
                2 => Record::Prepared(r.ts()?),
                3 => Record::Committed(r.ts()?),
                4 => Record::Aborted,
                _ => return Err(DecodeError::Invalid("record")),
            }),
            8 => Response::Error(take_error(r)?),
            _ => return Err(DecodeError::Invalid("kind of a shard answer")),
        };
        r.clone().finish()?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        vec(any::<u8>(), 0..8)
    }

    fn value() -> impl Strategy<Value = Value> {
        vec(any::<u8>(), 0..8).prop_map(Bytes::from)
    }

    fn ts() -> impl Strategy<Value = Timestamp> {
        any::<u64>().prop_map(Timestamp)
    }

    fn txn() -> impl Strategy<Value = TxnId> {
        any::<u128>().prop_map(TxnId)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key()).prop_map(|(a, b)| KeyRange::new(a, b))
    }

    fn who() -> impl Strategy<Value = ReadAs> {
        (txn(), ts(), ts()).prop_map(|(txn, ts, uncertain_to)| ReadAs { txn, ts, uncertain_to })
    }

    fn id() -> impl Strategy<Value = PieceId> {
        (txn(), any::<u32>(), key(), ts()).prop_map(|(txn, piece, key, deadline)| PieceId {
            txn,
            piece,
            key,
            deadline,
        })
    }

    fn decision() -> impl Strategy<Value = Decision> {
        option::of(ts()).prop_map(|c| c.map_or(Decision::Abort, Decision::Commit))
    }

    fn spans() -> impl Strategy<Value = Vec<ReadSpan>> {
        vec((range(), ts()).prop_map(|(range, seen)| ReadSpan { range, seen }), 0..4)
    }

    fn piece() -> impl Strategy<Value = Piece> {
        let refs = vec((any::<u32>(), key()).prop_map(|(piece, key)| PieceRef { piece, key }), 0..4);
        let write = (key(), option::of(value()), option::of(ts())).prop_map(|(key, value, seen)| Write {
            key,
            value,
            seen,
        });
        (id(), refs, any::<(u32, bool, bool)>(), ts(), ts(), vec(write, 0..4), spans()).prop_map(
            |(id, pieces, (anchor, max, validated_elsewhere), candidate, max_ts, writes, validate)| Piece {
                txn: id.txn,
                piece: id.piece,
                pieces,
                anchor,
                candidate,
                mode: if max { Mode::AtMax } else { Mode::AtCandidate },
                deadline: id.deadline,
                max_ts,
                writes,
                validate,
                validated_elsewhere,
            },
        )
    }

    fn request() -> impl Strategy<Value = Request> {
        let scan = (who(), range(), any::<(bool, u64, u64)>()).prop_map(
            |(who, range, (reverse, rows_max, bytes_max))| Request::Scan {
                who,
                range,
                reverse,
                rows_max,
                bytes_max,
            },
        );
        let lock = (txn(), key(), 0..4usize, ts(), any::<u64>()).prop_map(|(txn, key, mode, read_ts, ns)| {
            let (mode, wait_max) = (LockMode::ALL[mode], Duration::from_nanos(ns));
            Request::Lock { txn, key, mode, read_ts, wait_max }
        });
        prop_oneof![
            (who(), key()).prop_map(|(who, key)| Request::Get { who, key }),
            scan,
            lock,
            (txn(), vec(key(), 0..4)).prop_map(|(txn, keys)| Request::Unlock { txn, keys }),
            (txn(), spans(), ts()).prop_map(|(txn, spans, ts)| Request::Validate { txn, spans, ts }),
            piece().prop_map(Request::Prepare),
            piece().prop_map(Request::Commit1),
            (id(), decision()).prop_map(|(anchor, decision)| Request::Decide { anchor, decision }),
            id().prop_map(Request::Ask),
            (id(), decision()).prop_map(|(piece, decision)| Request::Resolve { piece, decision }),
            id().prop_map(Request::Probe),
            id().prop_map(Request::Acked),
        ]
    }

    fn error() -> impl Strategy<Value = Error> {
        prop_oneof![
            ts().prop_map(Error::Uncertain),
            ".*".prop_map(Error::Conflict),
            Just(Error::Deadlock),
            any::<u64>().prop_map(|ns| Error::LockTimeout(Duration::from_nanos(ns))),
            (ts(), ts()).prop_map(|(ts, threshold)| Error::BelowThreshold { ts, threshold }),
            ".*".prop_map(Error::NotServed),
            (any::<u64>(), option::of(any::<u32>()))
                .prop_map(|(s, n)| Error::NotLeader { shard: ShardId(s), leader: n.map(NodeId) }),
            ".*".prop_map(Error::Ambiguous),
            ".*".prop_map(Error::Invalid),
            ".*".prop_map(Error::Stopped),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        let rows = vec((value(), value()), 0..4);
        prop_oneof![
            option::of((ts(), value()).prop_map(|(ts, value)| Seen { value, ts })).prop_map(Response::Seen),
            (rows, option::of(range()), ts()).prop_map(|(rows, rest, newest)| Response::Page(Page {
                rows,
                rest,
                newest
            })),
            any::<bool>().prop_map(|waited| Response::Locked(Locked { waited })),
            Just(Response::Done),
            ts().prop_map(|p| Response::Prepared(Prepared::At(p))),
            ts().prop_map(|c| Response::Prepared(Prepared::Committed(c))),
            ".*".prop_map(|why| Response::Prepared(Prepared::Refused(why))),
            Just(Response::Prepared(Prepared::OutOfRange)),
            Just(Response::Prepared(Prepared::PastDeadline)),
            decision().prop_map(|d| Response::Anchor(AnchorReply::Decided(d))),
            Just(Response::Anchor(AnchorReply::Undecided)),
            Just(Response::Anchor(AnchorReply::Unknown)),
            Just(Response::Anchor(AnchorReply::Gone)),
            Just(Response::Record(Record::None)),
            ts().prop_map(|p| Response::Record(Record::Prepared(p))),
            ts().prop_map(|c| Response::Record(Record::Committed(c))),
            Just(Response::Record(Record::Aborted)),
            error().prop_map(Response::Error),
        ]
    }

    /// No prefix and no continuation of a message is one.
    fn only_itself<T>(
        bytes: &Bytes,
        cut: prop::sample::Index,
        decode: impl Fn(Bytes) -> Result<T, DecodeError>,
    ) {
        assert!(decode(bytes.slice(..cut.index(bytes.len()))).is_err());
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(decode(longer.into()).is_err());
    }

    proptest! {
        #[test]
        fn requests_roundtrip(request in request(), cut: prop::sample::Index) {
            let bytes = request.encode();
            only_itself(&bytes, cut, Request::decode);
            prop_assert_eq!(Request::decode(bytes), Ok(request));
        }

        #[test]
        fn responses_roundtrip(response in response(), cut: prop::sample::Index) {
            let bytes = response.encode();
            only_itself(&bytes, cut, Response::decode);
            prop_assert_eq!(Response::decode(bytes), Ok(response));
        }

        #[test]
        fn garbage_never_panics(mut b: Vec<u8>, kind in 0u8..14) {
            let _ = (Request::decode(b.clone().into()), Response::decode(b.clone().into()));
            b.splice(0..0, [VERSION, kind]);
            let _ = (Request::decode(b.clone().into()), Response::decode(b.into()));
        }

        #[test]
        fn damage_never_panics(request in request(), response in response(), at: prop::sample::Index, flip in 1u8..) {
            let mut b = request.encode().to_vec();
            let i = at.index(b.len());
            b[i] ^= flip;
            let _ = Request::decode(b.into());
            let mut b = response.encode().to_vec();
            let i = at.index(b.len());
            b[i] ^= flip;
            let _ = Response::decode(b.into());
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut b = vec![VERSION, 4];
        put_txn(&mut b, TxnId(1));
        put_u64(&mut b, u64::MAX);
        assert_eq!(Request::decode(b.into()), Err(DecodeError::Invalid("count")));
    }
}
