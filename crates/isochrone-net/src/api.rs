//! What the layers above see: a network they send into, a service they provide. Nothing here knows of sockets, so that
//! a simulation can stand in for them.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use isochrone_base::NodeId;

/// A future that is boxed.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who somebody is, as told in a handshake.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// The cluster; 0: none yet.
    pub cluster: u128,
    /// The node; 0: none yet, or not a node at all.
    pub node: NodeId,
    /// The cluster address that this node advertises; may be empty.
    pub address: String,
}

/// What a node does with what arrives. Implementations must not block.
pub trait Service: Send + Sync + 'static {
    /// Who we are; asked at every handshake, as an identity may appear later.
    fn hello(&self) -> Hello;
    /// Shall we talk to this peer? The words of an `Err` go to the other side. That its cluster is ours, or one of the
    /// two has none, has been checked.
    fn accept(&self, peer: &Hello) -> Result<(), String>;
    /// A one-way message, in the order of sending. Called on the stream's task: the next message waits for it.
    fn message(&self, from: NodeId, payload: Bytes);
    /// A call; runs as a task of its own. Goes on to its end also if the caller's stream ends before.
    fn call(&self, from: Hello, payload: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
    /// Our main stream to that node is open.
    fn connected(&self, node: NodeId);
    /// Our main stream to that node has ended; follows each `connected`.
    fn disconnected(&self, node: NodeId);
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was done there; it may be tried again, here or elsewhere.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have been done.
    #[error("no answer: {0}")]
    Lost(String),
    /// The other side answered with an error, or was too busy to begin ("busy").
    #[error("refused: {0}")]
    Refused(String),
}

/// On which stream to a peer something travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Messages and ordinary calls.
    Main,
    /// Large transfers, which must not hold up the others.
    Bulk,
}

/// What is known of a peer. Counts are since the peer was set, over both lanes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// Its id.
    pub node: NodeId,
    /// Where it is dialled.
    pub address: String,
    /// Is the main stream to it open?
    pub connected: bool,
    /// Frames written to it.
    pub frames_out: u64,
    /// Bytes written to it.
    pub bytes_out: u64,
    /// Messages dropped and calls not sent.
    pub dropped: u64,
    /// Why the main stream is not open, if it is not.
    pub error: Option<String>,
}

/// A way to other nodes.
pub trait Network: Send + Sync {
    /// Sends a one-way message on the main lane. False: dropped (unknown peer, no stream, full outbox). True promises
    /// nothing: the stream may end before it arrives.
    fn send(&self, to: NodeId, payload: Bytes) -> bool;
    /// Asks a node. The request takes its place in the stream's order now, not when the future is first polled. Without an
    /// open stream it answers NotSent at once. After `wait_max` without an answer: Lost.
    fn call(
        &self,
        to: NodeId,
        lane: Lane,
        payload: Bytes,
        wait_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;
    /// Tells where a node is, now or newly; streams to it are opened and kept open.
    fn set_peer(&self, node: NodeId, address: &str);
    /// The peers that were set, by id.
    fn peers(&self) -> Vec<PeerStatus>;
}
