//! The bounds of streams, and what happens at each.

use std::time::Duration;

/// Largest frame behind its length, in bytes. A larger payload is not sent ([`crate::CallError::NotSent`]), a larger answer
/// is replaced by an error; a stream that announces more is closed. Room for a chunk of the largest value and its frame.
pub const FRAME_BYTES_MAX: usize = 80 << 20;
/// Largest frame before the handshake is done, in bytes. Past it the stream is closed.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 << 10;
/// Longest advertised address, in bytes. A longer one ends the handshake.
pub const ADDRESS_BYTES_MAX: usize = 512;
/// Longest text of a refusal or of an error of a service, in bytes. What is longer is cut.
pub const TEXT_BYTES_MAX: usize = 1 << 10;
/// Bytes that wait in one stream's outbox, those being written included. At the bound messages are dropped and counted,
/// calls answered NotSent, answers wait. An empty outbox takes any frame.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Frames that wait in one stream's outbox. As [`OUTBOX_BYTES_MAX`].
pub const OUTBOX_FRAMES_MAX: usize = 16 << 10;
/// Calls waiting for their answers on one stream, at the caller's side. Further ones are answered NotSent.
pub const CALLS_OUT_MAX: usize = 16 << 10;
/// Calls that run for one incoming stream. Further ones are refused ("busy"). More than a gateway has sessions, as a call
/// may wait for a lock.
pub const CALLS_IN_MAX: usize = 4 << 10;
/// Calls that run for all incoming streams, those of streams that have ended included. Further ones are refused ("busy").
pub const CALLS_IN_TOTAL_MAX: usize = 16 << 10;
/// Incoming streams that are past their handshake. Further ones are told so and closed.
pub const INCOMING_MAX: usize = 256;
/// Incoming streams in their handshake. Further ones wait in the kernel's queue, at most [`HANDSHAKE_MAX`] for each of these.
pub const HANDSHAKES_MAX: usize = 64;
/// Peers that can be set. Further ones are ignored, and logged.
pub const PEERS_MAX: usize = 256;
/// Longest handshake; also the longest attempt to connect. Then the stream is closed.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Each side says that it is there this often.
pub const KEEPALIVE: Duration = Duration::from_secs(1);
/// A stream on which nothing was heard, or nothing of what waits could be written, for this long is closed.
pub const SILENCE_MAX: Duration = Duration::from_secs(4);
/// The pause before a stream is dialled again after its first failure; doubled with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest such pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a refused stream stays open so that the other side can read why.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How long accepting pauses after a failure that is not the stream's (no file descriptors left).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Read buffer that a stream keeps, and the step in which it grows for a larger frame as the frame arrives, in bytes.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// Payloads up to this many bytes are copied out of the read buffer, and into the outbox's; larger ones keep their memory.
/// So a small payload that is kept for long does not hold a whole read buffer.
pub(crate) const COPY_BYTES_MAX: usize = 8 << 10;
/// Different complaints about strangers that are remembered, so that each is logged once a minute only. When there are
/// more, all are forgotten.
pub(crate) const COMPLAINTS_MAX: usize = 64;
/// How long a complaint is remembered.
pub(crate) const COMPLAINTS_FORGOTTEN: Duration = Duration::from_secs(60);

const _: () = assert!(HANDSHAKE_FRAME_BYTES_MAX > ADDRESS_BYTES_MAX + TEXT_BYTES_MAX + 64);
const _: () = assert!(FRAME_BYTES_MAX < u32::MAX as usize && COPY_BYTES_MAX < READ_BYTES);
const _: () = assert!(KEEPALIVE.as_millis() * 3 < SILENCE_MAX.as_millis());

/// The bounds that tests and unusual networks want to change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Default [`OUTBOX_BYTES_MAX`].
    pub outbox_bytes_max: usize,
    /// Default [`OUTBOX_FRAMES_MAX`].
    pub outbox_frames_max: usize,
    /// Default [`CALLS_IN_MAX`].
    pub calls_in_max: usize,
    /// Default [`INCOMING_MAX`].
    pub incoming_max: usize,
    /// Default [`HANDSHAKES_MAX`].
    pub handshakes_max: usize,
    /// Default [`HANDSHAKE_MAX`].
    pub handshake_max: Duration,
    /// Default [`KEEPALIVE`]. The other side's silence is counted in halves of it.
    pub keepalive: Duration,
    /// Default [`SILENCE_MAX`].
    pub silence_max: Duration,
    /// Default [`BACKOFF_MIN`].
    pub backoff_min: Duration,
    /// Default [`BACKOFF_MAX`].
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            outbox_frames_max: OUTBOX_FRAMES_MAX,
            calls_in_max: CALLS_IN_MAX,
            incoming_max: INCOMING_MAX,
            handshakes_max: HANDSHAKES_MAX,
            handshake_max: HANDSHAKE_MAX,
            keepalive: KEEPALIVE,
            silence_max: SILENCE_MAX,
            backoff_min: BACKOFF_MIN,
            backoff_max: BACKOFF_MAX,
        }
    }
}

impl Config {
    /// Refuses bounds that make no sense.
    pub fn validate(&self) -> Result<(), String> {
        for (name, n) in [
            ("outbox_bytes_max", self.outbox_bytes_max),
            ("outbox_frames_max", self.outbox_frames_max),
            ("calls_in_max", self.calls_in_max),
            ("incoming_max", self.incoming_max),
            ("handshakes_max", self.handshakes_max),
        ] {
            if n == 0 || n > 1 << 30 {
                return Err(format!("{name} is {n}: must be from 1 to {}", 1 << 30));
            }
        }
        if self.keepalive < Duration::from_millis(2) || self.keepalive * 2 > self.silence_max {
            return Err(format!(
                "silence_max is {:?}: must be at least twice keepalive, {:?}, which is at least 2ms",
                self.silence_max, self.keepalive
            ));
        }
        if self.handshake_max.is_zero() || self.backoff_min.is_zero() || self.backoff_min > self.backoff_max {
            return Err(
                "handshake_max and backoff_min must not be zero, nor backoff_min above backoff_max".into()
            );
        }
        Ok(())
    }
}
