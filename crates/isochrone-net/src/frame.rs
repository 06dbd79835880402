//! Frames as bytes. No sockets here.
//!
//!     ┌─────────┬────────────┬─────────┬──────────────┬─────────┐
//!     │ len u32 │ crc32c u32 │ kind u8 │ call  varint │ payload │
//!     └─────────┴────────────┴─────────┴──────────────┴─────────┘
//!               len, and what the checksum covers: ──────────────
//!
//! A broken frame ends its stream: behind it nobody knows where the next one begins.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use isochrone_base::NodeId;
use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};

use crate::api::Hello;
use crate::limits::{
    ADDRESS_BYTES_MAX, COPY_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, READ_BYTES, TEXT_BYTES_MAX,
};

/// What both sides say first; the last byte is the version of everything that follows.
pub(crate) const PREAMBLE: [u8; 8] = *b"ISO-NET\x01";
/// Bytes in front of the part that `len` counts.
pub(crate) const PREFIX_BYTES: usize = 8;
/// Longest kind and call id.
const HEAD_BYTES_MAX: usize = 11;
/// Largest payload that fits a frame.
pub(crate) const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEAD_BYTES_MAX;
/// Version of the encoding of [`Greeting`].
const GREETING_VERSION: u8 = 1;

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the stream")]
    Closed,
    #[error("the other side closed the connection during the handshake: is it a cluster address?")]
    ClosedEarly,
    #[error("the other side is not an Isochrone node: it begins with \"{0}\"")]
    NotOurs(String),
    #[error("the other side speaks version {theirs} of the protocol, this node {ours}")]
    Version { theirs: u8, ours: u8 },
    #[error("a frame of {len} bytes, where at most {max} are allowed")]
    Oversized { len: usize, max: usize },
    #[error("a frame with a wrong checksum")]
    Checksum,
    #[error("a broken frame: {0}")]
    Broken(#[from] DecodeError),
    #[error("a frame of kind {0} in the wrong place")]
    Misplaced(u8),
    #[error("a message from a peer without a node id")]
    Nameless,
    /// The other side does not want us.
    #[error("refused by the other side: {0}")]
    Refused(String),
    /// We do not want the other side.
    #[error("refused: {0}")]
    Refusing(String),
    #[error("no handshake within {0} ms")]
    Slow(u128),
    #[error("nothing heard for {0} ms")]
    Silent(u128),
    #[error("nothing could be written for {0} ms")]
    Stuck(u128),
    #[error("the peer's address changed")]
    Moved,
    #[error("this node is going down")]
    Stopping,
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Who the sender is; the first frame in both directions, then never again.
    Hello = 1,
    /// The sender closes the stream, and the payload says why.
    Refused = 2,
    /// The sender is there.
    Alive = 3,
    /// A one-way message; dialler to acceptor, as is Call.
    Message = 4,
    Call = 5,
    /// The answer to the call with that id; acceptor to dialler, as is Error.
    Answer = 6,
    /// The call's error as text.
    Error = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Hello, Kind::Refused, Kind::Alive, Kind::Message, Kind::Call, Kind::Answer, Kind::Error]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// A frame as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub kind: Kind,
    pub call: u64,
    pub payload: Bytes,
}

/// Everything of a frame that stands in front of its payload.
pub(crate) struct Head {
    bytes: [u8; PREFIX_BYTES + HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    /// The payload is at most [`PAYLOAD_BYTES_MAX`] long.
    pub(crate) fn new(kind: Kind, call: u64, payload: &[u8]) -> Head {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "whoever sends checks the payload's length");
        let mut bytes = [0; PREFIX_BYTES + HEAD_BYTES_MAX];
        bytes[PREFIX_BYTES] = kind as u8;
        let (mut len, mut rest) = (PREFIX_BYTES + 1, call);
        while rest >= 0x80 {
            bytes[len] = rest as u8 | 0x80;
            rest >>= 7;
            len += 1;
        }
        bytes[len] = rest as u8;
        len += 1;
        let counted = (len - PREFIX_BYTES + payload.len()) as u32;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[PREFIX_BYTES..len]), payload);
        bytes[..4].copy_from_slice(&counted.to_le_bytes());
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        Head { bytes, len }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Appends a whole frame.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: Kind, call: u64, payload: &[u8]) {
    out.extend_from_slice(Head::new(kind, call, payload).as_bytes());
    out.extend_from_slice(payload);
}

/// What has been received and not yet been taken apart.
#[derive(Debug)]
pub(crate) struct Input {
    pub buf: BytesMut,
    frame_bytes_max: usize,
}

impl Input {
    /// For a stream whose handshake is done.
    pub(crate) fn new() -> Input {
        Input { buf: BytesMut::new(), frame_bytes_max: FRAME_BYTES_MAX }
    }

    /// For one whose handshake is not.
    pub(crate) fn handshake() -> Input {
        Input { buf: BytesMut::new(), frame_bytes_max: HANDSHAKE_FRAME_BYTES_MAX }
    }

    /// What the first frame in the buffer announces behind its prefix.
    fn announced(&self) -> Option<usize> {
        let len = self.buf.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*len) as usize)
    }

    /// Makes room for reading: by what has arrived, never by what was announced.
    pub(crate) fn reserve(&mut self) {
        let missing = self.announced().map_or(0, |len| (PREFIX_BYTES + len).saturating_sub(self.buf.len()));
        let want = missing.clamp(READ_BYTES / 2, self.buf.len().max(READ_BYTES));
        if self.buf.capacity() - self.buf.len() < want.min(READ_BYTES / 2).max(missing.min(READ_BYTES)) {
            self.buf.reserve(want);
        }
    }

    /// The next whole frame, or None when more must be read. After an error the stream is of no use.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Fault> {
        let Some(len) = self.announced() else { return Ok(None) };
        if len > self.frame_bytes_max {
            return Err(Fault::Oversized { len, max: self.frame_bytes_max });
        }
        if len < 2 {
            return Err(DecodeError::Invalid("length").into());
        }
        let end = PREFIX_BYTES + len;
        if self.buf.len() < end {
            return Ok(None);
        }
        let (prefix, rest) = self.buf.split_at(PREFIX_BYTES);
        let body = &rest[..len];
        let checksum = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
        if crc32c::crc32c(body) != checksum {
            return Err(Fault::Checksum);
        }
        let kind = Kind::from_byte(body[0]).ok_or(DecodeError::Invalid("kind"))?;
        let (call, call_bytes) = varint(&body[1..])?;
        let payload = &body[1 + call_bytes..];
        let payload = if payload.len() <= COPY_BYTES_MAX {
            let payload = Bytes::copy_from_slice(payload);
            self.buf.advance(end);
            payload
        } else {
            self.buf.advance(PREFIX_BYTES + 1 + call_bytes);
            self.buf.split_to(len - 1 - call_bytes).freeze()
        };
        Ok(Some(Frame { kind, call, payload }))
    }
}

fn varint(bytes: &[u8]) -> Result<(u64, usize), DecodeError> {
    let mut v = 0u64;
    for (i, &b) in bytes.iter().enumerate().take(10) {
        if i == 9 && b > 1 {
            break;
        }
        v |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            return Ok((v, i + 1));
        }
    }
    Err(DecodeError::Invalid("call id"))
}

/// What a stream is for, as told by the dialler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Purpose {
    Main = 0,
    Bulk = 1,
    /// A single call.
    Once = 2,
}

impl Purpose {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Purpose::Main => "main",
            Purpose::Bulk => "bulk",
            Purpose::Once => "once",
        }
    }
}

/// The payload of a Hello frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Greeting {
    pub hello: Hello,
    /// The acceptor repeats the dialler's.
    pub purpose: Purpose,
    /// The node that the dialler means to reach; 0: whoever is there.
    pub expects: NodeId,
}

impl Greeting {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Fault> {
        if self.hello.address.len() > ADDRESS_BYTES_MAX {
            let len = self.hello.address.len();
            return Err(Fault::Refusing(format!("own address of {len} bytes, at most {ADDRESS_BYTES_MAX}")));
        }
        let mut out = vec![GREETING_VERSION];
        out.extend_from_slice(&self.hello.cluster.to_be_bytes());
        put_u64(&mut out, self.hello.node.0.into());
        put_bytes(&mut out, self.hello.address.as_bytes());
        out.push(self.purpose as u8);
        put_u64(&mut out, self.expects.0.into());
        Ok(out)
    }

    pub(crate) fn decode(payload: Bytes) -> Result<Greeting, DecodeError> {
        let mut r = Reader::new(payload);
        if r.u8()? != GREETING_VERSION {
            return Err(DecodeError::Invalid("version of a greeting"));
        }
        let cluster = r.take(16)?.iter().fold(0, |v, b| (v << 8) | u128::from(*b));
        let node = NodeId(r.u32()?);
        let address = r.bytes()?;
        if address.len() > ADDRESS_BYTES_MAX {
            return Err(DecodeError::Invalid("length of an address"));
        }
        let address = std::str::from_utf8(&address).map_err(|_| DecodeError::Invalid("address"))?;
        if address.chars().any(char::is_control) {
            return Err(DecodeError::Invalid("address"));
        }
        let hello = Hello { cluster, node, address: address.to_string() };
        let purpose = match r.u8()? {
            0 => Purpose::Main,
            1 => Purpose::Bulk,
            2 => Purpose::Once,
            _ => return Err(DecodeError::Invalid("purpose of a stream")),
        };
        let expects = NodeId(r.u32()?);
        r.finish()?;
        Ok(Greeting { hello, purpose, expects })
    }
}

/// A text as it is sent: cut at [`TEXT_BYTES_MAX`].
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// A text as it was received, fit for a log: cut, without control characters.
pub(crate) fn text(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(TEXT_BYTES_MAX)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The other side's preamble: is it one, and of which version?
pub(crate) fn check_preamble(theirs: [u8; PREAMBLE.len()]) -> Result<(), Fault> {
    let (magic, version) = (&theirs[..7], theirs[7]);
    if magic != &PREAMBLE[..7] {
        return Err(Fault::NotOurs(theirs.escape_ascii().to_string()));
    }
    if version != PREAMBLE[7] {
        return Err(Fault::Version { theirs: version, ours: PREAMBLE[7] });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1u8..=7).prop_map(|b| Kind::from_byte(b).unwrap())
    }

    fn feed(input: &mut Input, bytes: &[u8]) {
        input.reserve();
        input.buf.extend_from_slice(bytes);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec((kinds(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
            large in 0usize..3 * COPY_BYTES_MAX,
            step in 1usize..5_000,
        ) {
            let mut bytes = Vec::new();
            let mut sent = Vec::new();
            let large = (Kind::Message, 7, vec![9; large]);
            for (kind, call, payload) in frames.into_iter().chain([large]) {
                put_frame(&mut bytes, kind, call, &payload);
                sent.push(Frame { kind, call, payload: payload.into() });
            }
            let (mut input, mut got) = (Input::new(), Vec::new());
            for part in bytes.chunks(step) {
                feed(&mut input, part);
                while let Some(frame) = input.next().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(input.buf.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, step in 1usize..64) {
            let mut input = Input::new();
            'all: for part in bytes.chunks(step) {
                feed(&mut input, part);
                loop {
                    match input.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
            }
            let _ = Greeting::decode(bytes.clone().into());
            let mut greeting = vec![GREETING_VERSION];
            greeting.extend_from_slice(&bytes);
            let _ = Greeting::decode(greeting.into());
            prop_assert!(text(&bytes).chars().all(|c| !c.is_control()));
        }

        #[test]
        fn one_wrong_bit_is_noticed(payload: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = Vec::new();
            put_frame(&mut bytes, Kind::Call, 300, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut input = Input::new();
            feed(&mut input, &bytes);
            // In the length it may also look like a frame that has not arrived yet.
            match input.next() {
                Ok(None) => prop_assert!(at < 4),
                other => prop_assert!(other.is_err()),
            }
        }

        #[test]
        fn greetings(cluster: u128, node: u32, expects: u32, address in "[a-z0-9.:]{0,100}") {
            let hello = Hello { cluster, node: NodeId(node), address };
            for purpose in [Purpose::Main, Purpose::Bulk, Purpose::Once] {
                let greeting = Greeting { hello: hello.clone(), purpose, expects: NodeId(expects) };
                let bytes = greeting.encode().unwrap();
                prop_assert_eq!(Greeting::decode(bytes.into()).unwrap(), greeting);
            }
        }
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut input = Input::new();
        feed(&mut input, &(FRAME_BYTES_MAX as u32).to_le_bytes());
        assert!(input.next().unwrap().is_none());
        input.reserve();
        assert!(input.buf.capacity() <= 4 * READ_BYTES, "{}", input.buf.capacity());
        let mut input = Input::new();
        feed(&mut input, &(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(input.next(), Err(Fault::Oversized { .. })));
        let mut input = Input::handshake();
        feed(&mut input, &(HANDSHAKE_FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(input.next(), Err(Fault::Oversized { .. })));
    }

    #[test]
    fn the_largest_frame_arrives_in_memory_of_its_size() {
        let payload = vec![1; PAYLOAD_BYTES_MAX];
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Kind::Message, u64::MAX, &payload);
        assert_eq!(bytes.len(), PREFIX_BYTES + FRAME_BYTES_MAX);
        let mut input = Input::new();
        for part in bytes.chunks(READ_BYTES / 2) {
            feed(&mut input, part);
            assert!(input.buf.capacity() <= 2 * input.buf.len() + 4 * READ_BYTES);
        }
        assert_eq!(input.next().unwrap().unwrap().payload.len(), PAYLOAD_BYTES_MAX);
    }
}
