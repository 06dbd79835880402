//! The receiving side: one buffer, filled with whatever the socket has, cut into frames.
//!
//! A frame's length is checked against the bound of its type as soon as its five bytes of header are there; the
//! buffer grows with what has been received, never by what is announced.

use std::io;

use isochrone_types::{Error, SqlState};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Failure, protocol};
use crate::limits::{
    DATA_FRAME_BYTES_MAX, IDLE_BYTES, READ_BYTES_MAX, SMALL_FRAME_BYTES_MAX, STATEMENT_FRAME_BYTES_MAX,
};

/// A complete frame in the buffer: valid until the next [`Input::fill`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// Message type.
    pub tag: u8,
    start: usize,
    end: usize,
}

/// The socket's reading half and its buffer.
pub(crate) struct Input<R> {
    reader: R,
    buf: Vec<u8>,
    /// Start of what has not been taken yet.
    pos: usize,
    /// Bytes still missing for the frame at `pos`, where known.
    missing: usize,
    /// How much the last read brought.
    last_read: usize,
}

/// The largest body of a message of this type; `None` when no client may send it after startup.
fn body_bytes_max(tag: u8) -> Option<usize> {
    match tag {
        b'Q' | b'P' => Some(STATEMENT_FRAME_BYTES_MAX),
        b'B' | b'd' => Some(DATA_FRAME_BYTES_MAX),
        b'C' | b'D' | b'E' | b'F' | b'H' | b'S' | b'X' | b'c' | b'f' | b'p' => Some(SMALL_FRAME_BYTES_MAX),
        _ => None,
    }
}

impl<R: AsyncRead + Unpin> Input<R> {
    pub(crate) fn new(reader: R) -> Input<R> {
        Input { reader, buf: Vec::new(), pos: 0, missing: 0, last_read: 0 }
    }

    /// The body of a frame.
    pub(crate) fn body(&self, frame: Frame) -> &[u8] {
        &self.buf[frame.start..frame.end]
    }

    /// What has arrived and was not taken.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buf[self.pos..]
    }

    /// Is the next frame a Sync that has arrived?
    pub(crate) fn sync_follows(&self) -> bool {
        self.rest().starts_with(b"S\0\0\0\x04")
    }

    /// Takes `n` bytes, of those that [`Input::rest`] shows.
    pub(crate) fn consume(&mut self, n: usize) {
        self.pos += n;
        assert!(self.pos <= self.buf.len(), "only bytes that have arrived are taken");
    }

    /// The next frame, if it is complete.
    #[inline]
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>, Failure> {
        let rest = &self.buf[self.pos..];
        let [tag, a, b, c, d, ..] = *rest else {
            self.missing = 0;
            return Ok(None);
        };
        let announced = i32::from_be_bytes([a, b, c, d]);
        let Some(max) = body_bytes_max(tag) else {
            return Err(Failure::Fatal(protocol(format!("invalid frontend message type {tag}"))));
        };
        let body = match usize::try_from(announced) {
            Ok(n) if n >= 4 => n - 4,
            _ => return Err(Failure::Fatal(protocol(format!("invalid message length {announced}")))),
        };
        if body > max {
            let sqlstate = match max {
                SMALL_FRAME_BYTES_MAX => SqlState::PROTOCOL_VIOLATION,
                _ => SqlState::PROGRAM_LIMIT_EXCEEDED,
            };
            let text = format!(
                "invalid message length: {body} bytes in a message of type {tag}, at most {max} allowed"
            );
            return Err(Failure::Fatal(Error::new(sqlstate, text)));
        }
        let start = self.pos + 5;
        let end = start + body;
        if end > self.buf.len() {
            self.missing = end - self.buf.len();
            return Ok(None);
        }
        self.missing = 0;
        self.pos = end;
        Ok(Some(Frame { tag, start, end }))
    }

    /// Reads once, as much as the socket has and the buffer takes; 0 at the end of the stream. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        if self.pos > 0 {
            self.buf.drain(..self.pos);
            self.pos = 0;
        }
        let capacity = self.buf.capacity();
        let want = if self.buf.is_empty() {
            if capacity > IDLE_BYTES && self.last_read < capacity / 4 {
                // A large message or a burst is over: an idle connection keeps little.
                self.buf = Vec::new();
                IDLE_BYTES
            } else if capacity > 0 && self.last_read == capacity {
                (2 * capacity).min(READ_BYTES_MAX)
            } else {
                IDLE_BYTES
            }
        } else {
            // At most as much again as has been received, so that an announced length costs the client its bytes.
            self.missing.clamp(IDLE_BYTES, self.buf.len().max(READ_BYTES_MAX))
        };
        if self.buf.capacity() - self.buf.len() < want {
            self.buf.reserve_exact(want);
        }
        let n = self.reader.read_buf(&mut self.buf).await?;
        self.last_read = n;
        Ok(n)
    }
}
