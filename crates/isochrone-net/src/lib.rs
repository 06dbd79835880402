//! Node-to-node streams: one-way messages and calls, over TCP, in frames of our own.
//!
//!     node 1                                                          node 2
//!     send ──┐                                            ┌──► Service::message (in order)
//!     call ──┼─► outbox ─► writer ═══ main stream ═══► reader ──► Service::call (a task each)
//!            │   (bounded)                                             │
//!     answer ◄── reader ◄══════════ same stream ════ writer ◄─ outbox ◄┘
//!     call(Bulk) ─► outbox ─► ...═══ bulk stream ═══► ...
//!
//! Whoever sends dials: node 1's messages and calls to node 2 travel on streams that node 1 opened, their answers come
//! back on the same ones, and node 2 opens its own for what it sends. Each pair has two streams a direction, so that
//! large transfers ([`Lane::Bulk`]) do not stand in front of heartbeats. `docs/formats/net.md` specifies the bytes.
//!
//! Invariants
//!   N1  No byte from the network panics this crate, nor makes it allocate more than a small multiple of what has
//!       arrived, nor touches another stream.
//!   N2  What is sent on one stream arrives in that order, without gaps, and at most once. A gap is possible only where
//!       a stream ended; nothing is ever sent again by this crate.
//!   N3  [`CallError::NotSent`] is answered only if the whole frame was never handed to the kernel: nothing was done there.
//!   N4  Nothing is read from a peer before both sides know and accept each other's cluster and node id; a stream to node
//!       n carries frames only while n answers at its other end.
//!   N5  After [`Transport::shutdown`] the service is not called any more.
//!
//! Failure: a stream on which something is wrong is closed, with the reason to the other side where it can still be
//! said, and in the log once; calls that were on their way are [`CallError::Lost`]. The dialler tries again for ever,
//! after pauses of 50 ms to 1 s. A peer that is silent, or takes nothing, for 4 s is treated as gone.
//! Limits: see [`limits`]; each says what happens when it is reached.
//! Missing: encryption and authentication (whoever reaches the port and names the cluster is believed); removing a peer;
//! cancelling a call at the other side when the caller gives up.
#![forbid(unsafe_code)]

mod api;
mod frame;
mod handshake;
pub mod limits;
mod link;
pub mod metrics;
mod once;
mod stream;
mod transport;

pub use api::{BoxFuture, CallError, Hello, Lane, Network, PeerStatus, Service};
pub use limits::Config;
pub use once::call_once;
pub use transport::Transport;
