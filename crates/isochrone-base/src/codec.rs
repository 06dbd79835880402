//! The compact encoding of log records and messages.
//!
//! Integers are LEB128 varints, byte strings carry their length in front. [`Reader`] checks every length against
//! what is there before it touches or allocates anything, so that bytes from disk or network never panic.

use crate::{Bytes, Timestamp, TxnId};

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("unexpected end of input at byte {0}")]
    Truncated(usize),
    /// A field holds something it cannot hold.
    #[error("invalid {0}")]
    Invalid(&'static str),
    /// Bytes are left over behind the last field.
    #[error("{0} bytes left over")]
    Trailing(usize),
}

/// Appends an unsigned varint.
pub fn put_u64(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a timestamp: eight bytes, most significant first.
pub fn put_ts(out: &mut Vec<u8>, ts: Timestamp) {
    out.extend_from_slice(&ts.0.to_be_bytes());
}

/// Appends a transaction id: sixteen bytes.
pub fn put_txn(out: &mut Vec<u8>, txn: TxnId) {
    out.extend_from_slice(&txn.to_bytes());
}

/// Reads fields from the front of a shared buffer; byte strings are views into it.
#[derive(Clone, Debug)]
pub struct Reader {
    buf: Bytes,
    at: usize,
}

impl Reader {
    /// Starts at the front of the buffer.
    pub fn new(buf: Bytes) -> Reader {
        Reader { buf, at: 0 }
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.buf.len() - self.at
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<Bytes, DecodeError> {
        if n > self.remaining() {
            return Err(DecodeError::Truncated(self.buf.len()));
        }
        let out = self.buf.slice(self.at..self.at + n);
        self.at += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        if N > self.remaining() {
            return Err(DecodeError::Truncated(self.buf.len()));
        }
        let mut out = [0; N];
        out.copy_from_slice(&self.buf[self.at..self.at + N]);
        self.at += N;
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned varint.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let part = u64::from(b & 0x7f);
            if shift == 63 && part > 1 {
                return Err(DecodeError::Invalid("varint"));
            }
            v |= part << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(DecodeError::Invalid("varint"))
    }

    /// An unsigned varint that fits 32 bits.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.u64()?).map_err(|_| DecodeError::Invalid("32-bit number"))
    }

    /// A count of items, each at least `item_bytes_min` long: refused when the rest of the input cannot hold them.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let n = self.u64()?;
        let room = (self.remaining() / item_bytes_min.max(1)) as u64;
        if n > room {
            return Err(DecodeError::Invalid("count"));
        }
        Ok(n as usize)
    }

    /// A byte string with its length in front.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let n = self.u64()?;
        let n = usize::try_from(n).map_err(|_| DecodeError::Invalid("length"))?;
        self.take(n)
    }

    /// A byte string as an owned key.
    pub fn key(&mut self) -> Result<Vec<u8>, DecodeError> {
        Ok(self.bytes()?.to_vec())
    }

    /// A timestamp.
    pub fn ts(&mut self) -> Result<Timestamp, DecodeError> {
        Ok(Timestamp(u64::from_be_bytes(self.array()?)))
    }

    /// A transaction id.
    pub fn txn(&mut self) -> Result<TxnId, DecodeError> {
        Ok(TxnId::from_bytes(self.array()?))
    }

    /// Fails unless everything was read.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(v: u64, b: Vec<u8>, t: u64, x: u128) {
            let mut out = Vec::new();
            put_u64(&mut out, v);
            put_bytes(&mut out, &b);
            put_ts(&mut out, Timestamp(t));
            put_txn(&mut out, TxnId(x));
            let mut r = Reader::new(out.into());
            prop_assert_eq!(r.u64().unwrap(), v);
            prop_assert_eq!(r.bytes().unwrap(), b);
            prop_assert_eq!(r.ts().unwrap(), Timestamp(t));
            prop_assert_eq!(r.txn().unwrap(), TxnId(x));
            r.finish().unwrap();
        }

        #[test]
        fn garbage_never_panics(b: Vec<u8>) {
            let mut r = Reader::new(b.into());
            while r.remaining() > 0 && r.bytes().is_ok() && r.count(3).is_ok() && r.u32().is_ok() {}
        }
    }
}
