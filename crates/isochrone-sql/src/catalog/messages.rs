//! What gateways tell each other, as bytes.
//!
//!     message   version, kind, fields          1 Freeze   id, tables held, tables more, until, wait_ms
//!                                               2 Publish  id, version of the catalog
//!                                               3 Release  id
//!                                               4 Sequence oid, epoch, base
//!     answer    version, kind                  1 Frozen   2 Waiting   3 Lost   4 Done
//!
//! First byte: the version of the encoding ([`VERSION`]). Varints and length-checked fields of
//! `isochrone_base::codec`; a reader that meets a version or a kind it does not know refuses the message. Bytes from
//! the network never panic, and nothing is allocated by a declared length.

use isochrone_base::codec::{DecodeError, Reader, put_ts, put_txn, put_u64};
use isochrone_base::{Bytes, Timestamp, TxnId};

/// Version of the encoding written today.
pub const VERSION: u8 = 1;
/// Tables one message may name; more are refused.
pub const TABLES_MAX: usize = 10_000;

/// From one gateway to all others. `id` is the id of the DDL transaction's attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Keep these tables (oids) from everybody until this timestamp is past. `held`: they must be frozen already.
    Freeze {
        /// Who freezes.
        id: TxnId,
        /// Frozen by an earlier message.
        held: Vec<u32>,
        /// To be frozen now.
        more: Vec<u32>,
        /// The freeze's end.
        until: Timestamp,
        /// Answer after this many milliseconds, if not before.
        wait_ms: u64,
    },
    /// The transaction has committed this version of the catalog: read it, then let go.
    Publish {
        /// Who froze, if it froze anything.
        id: TxnId,
        /// The catalog's version.
        version: u64,
    },
    /// The transaction has changed nothing: let go.
    Release {
        /// Who froze.
        id: TxnId,
    },
    /// A sequence was set: values of epochs before this one are not given out any more.
    Sequence {
        /// The sequence.
        oid: u32,
        /// Its new epoch.
        epoch: u64,
        /// Its new base.
        base: i128,
    },
}

/// What a gateway says to that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Freeze: all of them are frozen here, until then.
    Frozen,
    /// Freeze: transactions still use some of them; ask again.
    Waiting,
    /// Freeze: what should be held is not; the transaction must not commit.
    Lost,
    /// Everything else: done.
    Done,
}

fn put_tables(out: &mut Vec<u8>, tables: &[u32]) {
    put_u64(out, tables.len() as u64);
    for t in tables {
        put_u64(out, u64::from(*t));
    }
}

fn get_tables(r: &mut Reader) -> Result<Vec<u32>, DecodeError> {
    let n = r.count(1)?;
    if n > TABLES_MAX {
        return Err(DecodeError::Invalid("number of tables"));
    }
    (0..n).map(|_| r.u32()).collect()
}

impl Message {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        match self {
            Message::Freeze { id, held, more, until, wait_ms } => {
                out.push(1);
                put_txn(&mut out, *id);
                put_tables(&mut out, held);
                put_tables(&mut out, more);
                put_ts(&mut out, *until);
                put_u64(&mut out, *wait_ms);
            }
            Message::Publish { id, version } => {
                out.push(2);
                put_txn(&mut out, *id);
                put_u64(&mut out, *version);
            }
            Message::Release { id } => {
                out.push(3);
                put_txn(&mut out, *id);
            }
            Message::Sequence { oid, epoch, base } => {
                out.push(4);
                put_u64(&mut out, u64::from(*oid));
                put_u64(&mut out, *epoch);
                out.extend_from_slice(&base.to_be_bytes());
            }
        }
        out.into()
    }

    /// The inverse of [`Message::encode`].
    pub fn decode(bytes: Bytes) -> Result<Message, DecodeError> {
        let mut r = Reader::new(bytes);
        let kind = kind(&mut r)?;
        let message = match kind {
            1 => Message::Freeze {
                id: r.txn()?,
                held: get_tables(&mut r)?,
                more: get_tables(&mut r)?,
                until: r.ts()?,
                wait_ms: r.u64()?,
            },
            2 => Message::Publish { id: r.txn()?, version: r.u64()? },
            3 => Message::Release { id: r.txn()? },
            4 => {
                let (oid, epoch) = (r.u32()?, r.u64()?);
                let base = r.take(16)?[..].try_into().map_err(|_| DecodeError::Invalid("base"))?;
                Message::Sequence { oid, epoch, base: i128::from_be_bytes(base) }
            }
            _ => return Err(DecodeError::Invalid("kind of message")),
        };
        r.finish()?;
        Ok(message)
    }
}

impl Answer {
    /// As bytes.
    pub fn encode(self) -> Bytes {
        let kind = match self {
            Answer::Frozen => 1,
            Answer::Waiting => 2,
            Answer::Lost => 3,
            Answer::Done => 4,
        };
        vec![VERSION, kind].into()
    }

    /// The inverse of [`Answer::encode`].
    pub fn decode(bytes: Bytes) -> Result<Answer, DecodeError> {
        let mut r = Reader::new(bytes);
        let answer = match kind(&mut r)? {
            1 => Answer::Frozen,
            2 => Answer::Waiting,
            3 => Answer::Lost,
            4 => Answer::Done,
            _ => return Err(DecodeError::Invalid("kind of answer")),
        };
        r.finish()?;
        Ok(answer)
    }
}

fn kind(r: &mut Reader) -> Result<u8, DecodeError> {
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of the encoding"));
    }
    r.u8()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Message> {
        let id = TxnId(7 << 100);
        vec![
            Message::Freeze {
                id,
                held: vec![16_384, 5],
                more: vec![u32::MAX],
                until: Timestamp(99),
                wait_ms: 1_000,
            },
            Message::Publish { id, version: 300 },
            Message::Release { id },
            Message::Sequence { oid: 16_400, epoch: 3, base: i128::MIN },
        ]
    }

    #[test]
    fn roundtrip() {
        for m in all() {
            let bytes = m.encode();
            assert_eq!(Message::decode(bytes.clone()), Ok(m));
            for cut in 0..bytes.len() {
                assert!(Message::decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
            let mut other = bytes.to_vec();
            other[0] = 9;
            assert!(Message::decode(other.into()).is_err());
        }
        for a in [Answer::Frozen, Answer::Waiting, Answer::Lost, Answer::Done] {
            assert_eq!(Answer::decode(a.encode()), Ok(a));
        }
        assert!(Answer::decode(vec![VERSION, 5].into()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(b: Vec<u8>, which in 0usize..4, at: usize, to: u8) {
            let _ = Answer::decode(b.clone().into());
            let _ = Message::decode(b.into());
            let mut m = all()[which].encode().to_vec();
            let at = at % m.len();
            m[at] = to;
            let _ = Message::decode(m.into());
        }
    }
}
