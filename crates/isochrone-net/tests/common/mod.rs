//! A node for the tests, and a peer made of bare bytes: the frames here are written from `docs/formats/net.md`, not with
//! the crate's own code.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use isochrone_base::NodeId;
use isochrone_net::{BoxFuture, Config, Hello, Network, Service, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CLUSTER: u128 = 0xc1;

/// Fails the test instead of hanging.
pub async fn soon<T>(what: &str, f: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, f).await.unwrap_or_else(|_| panic!("{what}: waited too long"))
}

/// For what no event tells.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub fn hello(node: u32) -> Hello {
    Hello { cluster: CLUSTER, node: NodeId(node), address: format!("10.0.0.{node}:26257") }
}

/// What a node's service saw.
pub struct Seen {
    pub messages: mpsc::UnboundedReceiver<(NodeId, Bytes)>,
    pub streams: mpsc::UnboundedReceiver<(bool, NodeId)>,
}

pub struct TestService {
    hello: Mutex<Hello>,
    refuse: Mutex<Option<String>>,
    messages: mpsc::UnboundedSender<(NodeId, Bytes)>,
    streams: mpsc::UnboundedSender<(bool, NodeId)>,
    /// Slow calls take a permit each.
    pub gate: Arc<Semaphore>,
    pub calls_running: Arc<AtomicUsize>,
    pub calls_begun: AtomicUsize,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TestService {
    pub fn refuse(&self, why: &str) {
        *self.refuse.lock().unwrap() = Some(why.into());
    }
    pub fn set_hello(&self, hello: Hello) {
        *self.hello.lock().unwrap() = hello;
    }
}

impl Service for TestService {
    fn hello(&self) -> Hello {
        self.hello.lock().unwrap().clone()
    }
    fn accept(&self, _peer: &Hello) -> Result<(), String> {
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }
    fn message(&self, from: NodeId, payload: Bytes) {
        let _ = self.messages.send((from, payload));
    }
    fn call(&self, from: Hello, payload: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        self.calls_begun.fetch_add(1, Ordering::SeqCst);
        self.calls_running.fetch_add(1, Ordering::SeqCst);
        let running = Running(self.calls_running.clone());
        let gate = self.gate.clone();
        Box::pin(async move {
            let _running = running;
            match &payload[..] {
                b"who" => Ok(format!("{} {}", from.node, from.address).into()),
                b"no" => Err("will not\ndo".into()),
                b"panic" => panic!("a panic that the test wants"),
                b"large" => Ok(vec![7; isochrone_net::limits::FRAME_BYTES_MAX].into()),
                b"slow" => {
                    gate.acquire().await.unwrap().forget();
                    Ok("done".into())
                }
                _ => Ok(payload),
            }
        })
    }
    fn connected(&self, node: NodeId) {
        let _ = self.streams.send((true, node));
    }
    fn disconnected(&self, node: NodeId) {
        let _ = self.streams.send((false, node));
    }
}

pub fn service(hello: Hello) -> (Arc<TestService>, Seen) {
    let (messages, seen_messages) = mpsc::unbounded_channel();
    let (streams, seen_streams) = mpsc::unbounded_channel();
    let service = TestService {
        hello: Mutex::new(hello),
        refuse: Mutex::default(),
        messages,
        streams,
        gate: Arc::new(Semaphore::new(0)),
        calls_running: Arc::default(),
        calls_begun: AtomicUsize::new(0),
    };
    (Arc::new(service), Seen { messages: seen_messages, streams: seen_streams })
}

pub struct TestNode {
    pub id: NodeId,
    pub net: Arc<Transport>,
    pub service: Arc<TestService>,
    pub seen: Seen,
    pub address: String,
}

pub async fn node_at(address: &str, hello: Hello, config: Config) -> TestNode {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (service, seen) = service(hello.clone());
    let net = Transport::start(listener, service.clone(), config).unwrap();
    TestNode { id: hello.node, net, service, seen, address }
}

pub async fn node(id: u32) -> TestNode {
    node_at("127.0.0.1:0", hello(id), Config::default()).await
}

impl TestNode {
    /// Sets the peer, and waits until the streams to it are open.
    pub async fn joins(&mut self, other: &TestNode) {
        self.joins_at(other.id, &other.address).await;
    }
    pub async fn joins_at(&mut self, id: NodeId, address: &str) {
        self.net.set_peer(id, address);
        self.stream(true, id).await;
    }
    pub async fn stream(&mut self, open: bool, id: NodeId) {
        assert_eq!(soon("a stream's event", self.seen.streams.recv()).await, Some((open, id)));
    }
    pub async fn message(&mut self) -> (NodeId, Bytes) {
        soon("a message", self.seen.messages.recv()).await.unwrap()
    }
    pub async fn call(&self, to: NodeId, payload: &'static str) -> Result<Bytes, isochrone_net::CallError> {
        let call = self.net.call(to, isochrone_net::Lane::Main, payload.into(), PATIENCE);
        soon("a call", call).await
    }
    pub fn error(&self, of: u32) -> String {
        let peers = self.net.peers();
        let peer = peers.iter().find(|p| p.node == NodeId(of)).unwrap();
        peer.error.clone().unwrap_or_default()
    }
}

/// Two nodes with streams in both directions.
pub async fn pair() -> (TestNode, TestNode) {
    let (mut a, mut b) = (node(1).await, node(2).await);
    a.joins(&b).await;
    b.joins(&a).await;
    (a, b)
}

// Bare bytes.

pub const PREAMBLE: &[u8] = b"ISO-NET\x01";

pub fn raw_frame(kind: u8, call: u8, payload: &[u8]) -> Vec<u8> {
    assert!(call < 128);
    let mut body = vec![kind, call];
    body.extend_from_slice(payload);
    let mut out = (body.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

pub fn raw_hello(cluster: u128, node: u8, lane: u8, expects: u8) -> Vec<u8> {
    let mut payload = vec![1];
    payload.extend_from_slice(&cluster.to_be_bytes());
    payload.extend_from_slice(&[node, 3, b'r', b':', b'1', lane, expects]);
    raw_frame(1, 0, &payload)
}

pub async fn read_raw(socket: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut prefix = [0; 8];
    soon("a frame", socket.read_exact(&mut prefix)).await.ok()?;
    let len = u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize;
    let mut body = vec![0; len];
    soon("a frame's rest", socket.read_exact(&mut body)).await.ok()?;
    Some((body[0], body[1], body[2..].to_vec()))
}

/// The next frame that is no sign of life.
pub async fn read_raw_told(socket: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    loop {
        match read_raw(socket).await {
            Some((3, ..)) => {}
            other => return other,
        }
    }
}

pub async fn raw_preamble(socket: &mut TcpStream) {
    let mut preamble = [0; 8];
    soon("a preamble", socket.read_exact(&mut preamble)).await.unwrap();
    assert_eq!(preamble, PREAMBLE);
}

/// Dials as node 9.
pub async fn raw_dial(address: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&[PREAMBLE, &raw_hello(CLUSTER, 9, 0, 0)].concat()).await.unwrap();
    raw_preamble(&mut socket).await;
    assert_eq!(read_raw(&mut socket).await.unwrap().0, 1);
    socket
}

/// Accepts as this node; answers the lane that was dialled.
pub async fn raw_accept(listener: &TcpListener, node: u8) -> (TcpStream, u8) {
    let (mut socket, _) = soon("a dialler", listener.accept()).await.unwrap();
    raw_preamble(&mut socket).await;
    let (kind, _, greeting) = read_raw(&mut socket).await.unwrap();
    assert_eq!(kind, 1);
    let lane = greeting[greeting.len() - 2];
    socket.write_all(&[PREAMBLE, &raw_hello(CLUSTER, node, lane, 0)].concat()).await.unwrap();
    (socket, lane)
}

/// Both streams of a dialler: main, bulk.
pub async fn raw_accept_both(listener: &TcpListener, node: u8) -> (TcpStream, TcpStream) {
    let (a, lane_a) = raw_accept(listener, node).await;
    let (b, lane_b) = raw_accept(listener, node).await;
    match (lane_a, lane_b) {
        (0, 1) => (a, b),
        (1, 0) => (b, a),
        lanes => panic!("lanes {lanes:?}"),
    }
}
