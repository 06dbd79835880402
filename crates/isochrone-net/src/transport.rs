//! The TCP implementation of [`Network`]: a task that accepts, and for each peer and lane one that dials.
//!
//! Shutting down sets one flag that every task watches; when the last has let go of it, all is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use isochrone_base::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::{BoxFuture, CallError, Hello, Lane, Network, PeerStatus, Service};
use crate::frame::{Fault, Kind, Purpose};
use crate::handshake;
use crate::limits::{
    ACCEPT_PAUSE, CALLS_IN_TOTAL_MAX, COMPLAINTS_FORGOTTEN, COMPLAINTS_MAX, Config, PEERS_MAX,
};
use crate::link::{Counts, Link, NotTaken, Peer, Slot};
use crate::metrics::Metrics;
use crate::stream::{Ended, Role, Serving, report, run};

/// See the crate. Dropping it stops everything as [`Transport::shutdown`] does, without waiting.
pub struct Transport {
    shared: Arc<Shared>,
    peers: RwLock<BTreeMap<NodeId, Entry>>,
    stop: watch::Sender<bool>,
}

struct Entry {
    peer: Arc<Peer>,
    address: watch::Sender<String>,
}

struct Shared {
    config: Config,
    service: Arc<dyn Service>,
    metrics: Metrics,
    calls_of_all: Arc<Semaphore>,
    complaints: Complaints,
}

impl Transport {
    /// Serves on a listening socket, and dials the peers that will be set. Must be called inside a tokio runtime with
    /// I/O and timers. An `Err` is about the configuration.
    pub fn start(
        listener: TcpListener,
        service: Arc<dyn Service>,
        config: Config,
    ) -> Result<Arc<Transport>, String> {
        config.validate()?;
        let shared = Arc::new(Shared {
            config,
            service,
            metrics: Metrics::new(),
            calls_of_all: Arc::new(Semaphore::new(CALLS_IN_TOTAL_MAX)),
            complaints: Complaints::default(),
        });
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(accept(shared.clone(), listener, stopping));
        Ok(Arc::new(Transport { shared, peers: RwLock::default(), stop }))
    }

    /// Closes every stream and ends every call that runs for others; afterwards the service is not called any more (N5).
    /// What waits in outboxes is dropped, and calls on their way hear so.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.stop.closed().await;
    }

    fn link(&self, to: NodeId, lane: Lane) -> Result<(Arc<Link>, Arc<Counts>), CallError> {
        let unknown = || CallError::NotSent(format!("node {to} is not known here"));
        let peer = {
            let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
            peers.get(&to).ok_or_else(unknown)?.peer.clone()
        };
        let slot = match lane {
            Lane::Main => &peer.main,
            Lane::Bulk => &peer.bulk,
        };
        let link = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match link {
            Ok(link) => Ok((link, peer.counts.clone())),
            Err(why) => {
                peer.counts.dropped.fetch_add(1, Ordering::Relaxed);
                Err(CallError::NotSent(why.to_string()))
            }
        }
    }

    fn dropped(&self, counts: &Counts, why: &NotTaken) -> CallError {
        counts.dropped.fetch_add(1, Ordering::Relaxed);
        CallError::NotSent(why.text())
    }

    fn try_send(&self, to: NodeId, payload: Bytes) -> Result<(), CallError> {
        let (link, counts) = self.link(to, Lane::Main)?;
        link.push(Kind::Message, 0, payload).map_err(|why| self.dropped(&counts, &why))
    }
}

impl Network for Transport {
    fn send(&self, to: NodeId, payload: Bytes) -> bool {
        let sent = self.try_send(to, payload).is_ok();
        if !sent {
            self.shared.metrics.dropped.increment(1);
        }
        sent
    }

    fn call(
        &self,
        to: NodeId,
        lane: Lane,
        payload: Bytes,
        wait_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let asked = self
            .link(to, lane)
            .and_then(|(link, counts)| link.call(payload).map_err(|why| self.dropped(&counts, &why)));
        let asked = match asked {
            Ok(asked) => asked,
            Err(e) => {
                self.shared.metrics.dropped.increment(1);
                return Box::pin(std::future::ready(Err(e)));
            }
        };
        let lost = self.shared.metrics.lost.clone();
        Box::pin(async move {
            timeout(wait_max, asked).await.unwrap_or_else(|_| {
                lost.increment(1);
                Err(CallError::Lost(format!("node {to} has not answered within {} ms", wait_max.as_millis())))
            })
        })
    }

    fn set_peer(&self, node: NodeId, address: &str) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if *self.stop.borrow() {
            return;
        }
        if let Some(entry) = peers.get(&node) {
            entry.address.send_if_modified(|old| {
                let changed = old != address;
                if changed {
                    *old = address.to_string();
                }
                changed
            });
            return;
        }
        if node == NodeId(0) || peers.len() >= PEERS_MAX {
            tracing::error!(%node, address, peers = peers.len(), "this peer cannot be added");
            return;
        }
        let not_yet = || -> Slot { Mutex::new(Err(format!("no stream to node {node} yet").into())) };
        let peer = Arc::new(Peer { node, main: not_yet(), bulk: not_yet(), counts: Arc::default() });
        let (address, watched) = watch::channel(address.to_string());
        for purpose in [Purpose::Main, Purpose::Bulk] {
            let dialler = Dialler {
                shared: self.shared.clone(),
                peer: peer.clone(),
                purpose,
                address: watched.clone(),
                stop: self.stop.subscribe(),
                logged: None,
            };
            tokio::spawn(dialler.keep());
        }
        peers.insert(node, Entry { peer, address });
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let status = |entry: &Entry| {
            let main = entry.peer.main.lock().unwrap_or_else(PoisonError::into_inner);
            let counts = &entry.peer.counts;
            PeerStatus {
                node: entry.peer.node,
                address: entry.address.borrow().clone(),
                connected: main.is_ok(),
                frames_out: counts.frames_out.load(Ordering::Relaxed),
                bytes_out: counts.bytes_out.load(Ordering::Relaxed),
                dropped: counts.dropped.load(Ordering::Relaxed),
                error: main.as_ref().err().map(|why| why.to_string()),
            }
        };
        peers.values().map(status).collect()
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Resolves when the transport stops.
async fn stopped(stop: &mut watch::Receiver<bool>) -> Fault {
    // An error: the transport is gone, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
    Fault::Stopping
}

/// Keeps one stream to a peer open.
struct Dialler {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    purpose: Purpose,
    address: watch::Receiver<String>,
    stop: watch::Receiver<bool>,
    /// The failure that was logged last, so that a peer that stays away is logged once.
    logged: Option<String>,
}

impl Dialler {
    async fn keep(mut self) {
        let (min, max) = (self.shared.config.backoff_min, self.shared.config.backoff_max);
        let mut pause = min;
        loop {
            let address = self.address.borrow_and_update().clone();
            let tried = tokio::select! {
                biased;
                fault = interrupted(&mut self.stop, &mut self.address) => Err(fault),
                tried = dial(&self.shared, &self.peer, self.purpose, &address) => tried,
            };
            let fault = match tried {
                Ok((socket, hello)) => {
                    self.logged = None;
                    let ended = self.open(socket, &address, &hello).await;
                    if ended.lived >= max {
                        pause = min;
                    }
                    ended.fault
                }
                Err(fault) => {
                    self.failed(&address, &fault);
                    fault
                }
            };
            match fault {
                Fault::Stopping => return,
                Fault::Moved => pause = min,
                _ => {
                    let interrupted = interrupted(&mut self.stop, &mut self.address);
                    match timeout(pause, interrupted).await {
                        Ok(Fault::Stopping) => return,
                        Ok(_) => pause = min,
                        Err(_) => pause = (pause * 2).min(max),
                    }
                }
            }
        }
    }

    fn slot(&self) -> &Slot {
        if self.purpose == Purpose::Bulk { &self.peer.bulk } else { &self.peer.main }
    }

    fn set(&self, link: Result<Arc<Link>, Arc<str>>) {
        *self.slot().lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    fn failed(&mut self, address: &str, fault: &Fault) {
        let node = self.peer.node;
        self.set(Err(format!("no stream to node {node} at {address}: {fault}").into()));
        let lane = self.purpose.name();
        let text = fault.to_string();
        // The bulk lane meets what the main lane meets.
        if self.logged.as_ref() == Some(&text) || self.purpose == Purpose::Bulk {
            tracing::debug!(%node, address, lane, error = text, "cannot open a stream");
        } else if !matches!(fault, Fault::Stopping | Fault::Moved) {
            tracing::warn!(%node, address, lane, error = text, "cannot open a stream; it is tried again");
        }
        self.logged = Some(text);
    }

    /// Has a stream, until it ends.
    async fn open(&mut self, socket: TcpStream, address: &str, hello: &Hello) -> Ended {
        let (shared, peer, purpose) = (self.shared.clone(), self.peer.clone(), self.purpose);
        let link = Arc::new(Link::new(&shared.config));
        self.set(Ok(link.clone()));
        shared.metrics.streams_out.increment(1.0);
        let lane = purpose.name();
        tracing::info!(node = %peer.node, address, lane, advertised = hello.address, "stream open");
        if purpose == Purpose::Main {
            shared.service.connected(peer.node);
        }
        let until = interrupted(&mut self.stop, &mut self.address);
        let counts = peer.counts.clone();
        let ended = run(socket, link, Role::Dialler, &shared.config, &shared.metrics, counts, until).await;
        shared.metrics.streams_out.decrement(1.0);
        let fault = &ended.fault;
        self.set(Err(format!("the stream to node {} at {address} ended: {fault}", peer.node).into()));
        match fault {
            Fault::Stopping | Fault::Moved => {
                tracing::debug!(node = %peer.node, lane, %fault, "stream ended")
            }
            _ => {
                shared.metrics.faults.increment(1);
                tracing::warn!(node = %peer.node, address, lane, error = %fault, "stream ended");
            }
        }
        if purpose == Purpose::Main {
            shared.service.disconnected(peer.node);
        }
        ended
    }
}

/// Resolves when the transport stops, or the peer has another address.
async fn interrupted(stop: &mut watch::Receiver<bool>, address: &mut watch::Receiver<String>) -> Fault {
    tokio::select! {
        biased;
        fault = stopped(stop) => fault,
        changed = address.changed() => changed.map_or(Fault::Stopping, |()| Fault::Moved),
    }
}

async fn dial(
    shared: &Shared,
    peer: &Peer,
    purpose: Purpose,
    address: &str,
) -> Result<(TcpStream, Hello), Fault> {
    let limit = shared.config.handshake_max;
    let work = async {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let accept = |theirs: &Hello| shared.service.accept(theirs);
        let hello = handshake::dial(&mut socket, shared.service.hello(), purpose, peer.node, accept).await?;
        Ok((socket, hello))
    };
    timeout(limit, work).await.unwrap_or(Err(Fault::Slow(limit.as_millis())))
}

/// Accepts until the transport stops; ends when every incoming stream, and every call of theirs, has ended.
async fn accept(shared: Arc<Shared>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let handshakes = Arc::new(Semaphore::new(shared.config.handshakes_max));
    let streams = Arc::new(Semaphore::new(shared.config.incoming_max));
    let mut tasks = JoinSet::new();
    let mut forget = tokio::time::interval(COMPLAINTS_FORGOTTEN);
    let mut permit = None;
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped(&mut stop) => break,
            Some(joined) = tasks.join_next(), if !tasks.is_empty() => {
                report(joined);
                continue;
            }
            _ = forget.tick() => {
                shared.complaints.forget();
                continue;
            }
            free = handshakes.clone().acquire_owned(), if permit.is_none() => {
                permit = free.ok();
                continue;
            }
            accepted = listener.accept(), if permit.is_some() => accepted,
        };
        match accepted {
            Ok((socket, remote)) => {
                failing = false;
                let permit = permit.take().expect("accepting waits for the permit");
                let incoming =
                    Incoming { shared: shared.clone(), remote, streams: streams.clone(), stop: stop.clone() };
                tasks.spawn(incoming.serve(socket, permit));
            }
            Err(e) => {
                if !failing {
                    tracing::error!(error = %e, "cannot accept streams of other nodes; it is tried again");
                }
                failing = true;
                let _stopped = timeout(ACCEPT_PAUSE, stopped(&mut stop)).await;
            }
        }
    }
    // New diallers are refused by the kernel from here on.
    drop(listener);
    while let Some(joined) = tasks.join_next().await {
        report(joined);
    }
}

/// A stream that somebody dialled.
struct Incoming {
    shared: Arc<Shared>,
    remote: SocketAddr,
    streams: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Incoming {
    async fn serve(mut self, mut socket: TcpStream, handshake: OwnedSemaphorePermit) {
        if let Err(e) = socket.set_nodelay(true) {
            tracing::debug!(peer = %self.remote, error = %e, "cannot set TCP_NODELAY");
        }
        let mut permit = None;
        let shaken = {
            let (shared, streams, limit) = (&self.shared, &self.streams, self.shared.config.handshake_max);
            let accept = |peer: &Hello| {
                let free = streams.clone().try_acquire_owned();
                permit = Some(free.map_err(|_| "too many streams are open here".to_string())?);
                shared.service.accept(peer)
            };
            let work = timeout(limit, handshake::accept(&mut socket, || shared.service.hello(), accept));
            tokio::select! {
                biased;
                _ = stopped(&mut self.stop) => return,
                shaken = work => shaken.unwrap_or(Err(Fault::Slow(limit.as_millis()))),
            }
        };
        let (peer, purpose) = match shaken {
            Ok(shaken) => shaken,
            Err(fault) => {
                self.complain(&fault, "a stream was refused");
                tokio::select! {
                    biased;
                    _ = stopped(&mut self.stop) => {}
                    () = handshake::linger(&mut socket) => {}
                }
                return;
            }
        };
        drop(handshake);
        tracing::debug!(peer = %self.remote, node = %peer.node, lane = purpose.name(), "stream accepted");
        let mut calls = self.run(socket, peer).await;
        drop(permit);
        // A call that has begun is finished although nobody hears of it, unless the node goes down.
        loop {
            tokio::select! {
                biased;
                _ = stopped(&mut self.stop) => {
                    calls.shutdown().await;
                    return;
                }
                joined = calls.join_next() => match joined {
                    Some(joined) => report(joined),
                    None => return,
                },
            }
        }
    }

    async fn run(&mut self, socket: TcpStream, peer: Hello) -> JoinSet<()> {
        let shared = self.shared.clone();
        let serving = Serving {
            peer,
            service: shared.service.clone(),
            calls_of_stream: Arc::new(Semaphore::new(shared.config.calls_in_max)),
            calls_of_all: shared.calls_of_all.clone(),
        };
        let link = Arc::new(Link::new(&shared.config));
        shared.metrics.streams_in.increment(1.0);
        let until = stopped(&mut self.stop);
        let (config, metrics) = (&shared.config, &shared.metrics);
        let role = Role::Acceptor(serving);
        let ended = run(socket, link, role, config, metrics, Arc::default(), until).await;
        shared.metrics.streams_in.decrement(1.0);
        match &ended.fault {
            Fault::Closed | Fault::Stopping => tracing::debug!(peer = %self.remote, "a stream was closed"),
            fault => self.complain(fault, "a stream was closed"),
        }
        ended.calls
    }

    /// About somebody who may be a stranger and may come back at once: not more than once a minute.
    fn complain(&self, fault: &Fault, what: &'static str) {
        self.shared.metrics.faults.increment(1);
        let text = fault.to_string();
        if self.shared.complaints.is_new(self.remote.ip(), &text) {
            tracing::warn!(peer = %self.remote, error = text, "{what}");
        } else {
            tracing::debug!(peer = %self.remote, error = text, "{what}");
        }
    }
}

/// What was logged about whom lately.
#[derive(Default)]
struct Complaints(Mutex<BTreeSet<(IpAddr, String)>>);

impl Complaints {
    /// False also when there are too many to remember.
    fn is_new(&self, who: IpAddr, text: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() < COMPLAINTS_MAX && known.insert((who, text.to_string()))
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
