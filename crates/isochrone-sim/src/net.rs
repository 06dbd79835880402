//! The network between the simulated nodes: messages and calls that take time, overtake each other, get lost, and
//! stop at a partition.
//!
//! What is sent in one step of the world is delivered in a later one, so that nodes can be run one after the other. All
//! randomness is the network's own stream of the seed.
//!
//! A call that is lost, or whose answer is, ends as [`CallError::Lost`] a moment later, as a broken TCP stream would. A call may
//! arrive once more, or although its caller was told that it is lost (`call-again`): the commit protocol asks for no more
//! of a network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::hash::fnv64;
use isochrone_base::{Bytes, NodeId};
use isochrone_env::SplitMix64;
use isochrone_net::{BoxFuture, CallError, Hello, Lane, Network, PeerStatus};
use isochrone_server::cluster::Cluster;
use tokio::sync::{Notify, oneshot};

use crate::options::{Fault, Options};
use crate::script::Watch;
use crate::world::World;

/// After this long a node notices that another one has gone, or cannot be reached.
const NOTICED_AFTER: Duration = Duration::from_millis(50);
/// A message that arrives once more does so within this.
const REPLAYED_AFTER_MS_MAX: u64 = 10_000;
/// A caller notices a lost call after this long.
const LOST_AFTER: Duration = Duration::from_millis(100);

pub(crate) enum Body {
    Message(Bytes),
    Call(u64, Bytes),
    /// A second copy of a call, or one whose caller has given it up: it is executed, and its answer goes nowhere.
    Again(Bytes),
    Answer(u64, Result<Bytes, CallError>),
    Connected(NodeId),
    Disconnected(NodeId),
}

struct Envelope {
    from: NodeId,
    body: Body,
}

/// Who waits for an answer.
type Caller = oneshot::Sender<Result<Bytes, CallError>>;

/// What a node's process has of the network; gone with it.
#[derive(Default)]
pub(crate) struct Mailbox {
    arrived: Mutex<VecDeque<Envelope>>,
    notify: Notify,
    /// Callers that wait for an answer, and of whom.
    waiting: Mutex<BTreeMap<u64, (NodeId, Caller)>>,
}

impl Mailbox {
    /// The stream to a node has ended: what it was asked, it will not answer.
    fn lose(&self, peer: NodeId) {
        let waiting = &mut *self.waiting.lock().expect("one thread");
        for (_, (_, caller)) in waiting.extract_if(.., |_, (of, _)| *of == peer) {
            let _gone = caller.send(Err(CallError::Lost("the stream has ended".into())));
        }
    }
}

#[derive(Default)]
struct State {
    now: Duration,
    /// By time of arrival and order of sending.
    on_the_way: BTreeMap<(Duration, u64), (NodeId, Envelope)>,
    sent: u64,
    next_call: u64,
    up: BTreeMap<NodeId, Arc<Mailbox>>,
    /// Who is cut off from everybody else.
    cut_off: BTreeSet<NodeId>,
    /// Directions that lose everything, and for how many reasons.
    blocked: BTreeMap<(NodeId, NodeId), u32>,
    /// Directions that hold everything back, and until when.
    clogged: BTreeMap<(NodeId, NodeId), Duration>,
}

/// The network of one world. The chances are in a thousand.
pub(crate) struct SimNet {
    state: Mutex<State>,
    random: SplitMix64,
    /// Do messages get lost and late now?
    troubled: AtomicBool,
    drop: u64,
    duplicate: u64,
    delay: u64,
    replay: u64,
    /// Sees every message, when a script is played.
    pub(crate) watch: Option<Watch>,
    call_again: u64,
    random_again: SplitMix64,
    /// Every message takes this long, in microseconds; 0: as usual.
    fixed_us: AtomicU64,
}

impl SimNet {
    pub(crate) fn new(options: &Options) -> SimNet {
        SimNet {
            state: Mutex::new(State::default()),
            random: SplitMix64::split(options.seed, "network"),
            troubled: AtomicBool::new(options.early),
            drop: options.rate(Fault::Drop),
            duplicate: options.rate(Fault::Duplicate),
            delay: options.rate(Fault::Delay),
            replay: options.rate(Fault::Replay),
            watch: None,
            call_again: options.rate(Fault::CallAgain),
            random_again: SplitMix64::split(options.seed, "network call-again"),
            fixed_us: AtomicU64::new(0),
        }
    }

    /// From now on every message takes this long.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.fixed_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_troubled(&self, troubled: bool) {
        self.troubled.store(troubled, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("one thread")
    }

    fn chance(&self, in_a_thousand: u64) -> bool {
        in_a_thousand > 0 && self.troubled.load(Ordering::Relaxed) && self.random.below(1_000) < in_a_thousand
    }

    fn latency(&self) -> Duration {
        let fixed_us = self.fixed_us.load(Ordering::Relaxed);
        if fixed_us > 0 {
            return Duration::from_micros(fixed_us);
        }
        let usual = 100 + self.random.below(1_500);
        let more = if self.chance(self.delay) { self.random.below(500_000) } else { 0 };
        Duration::from_micros(usual + more)
    }

    fn put(&self, s: &mut State, to: NodeId, after: Duration, envelope: Envelope) {
        s.sent += 1;
        let held = s.clogged.get(&(envelope.from, to)).copied().unwrap_or_default();
        let key = ((s.now + after).max(held), s.sent);
        s.on_the_way.insert(key, (to, envelope));
    }

    fn reachable(s: &State, a: NodeId, b: NodeId) -> bool {
        s.up.contains_key(&a)
            && s.up.contains_key(&b)
            && !s.cut_off.contains(&a)
            && !s.cut_off.contains(&b)
            && !s.blocked.contains_key(&(a, b))
    }

    /// Do messages between these get through both ways, apart from those that are lost by chance?
    pub(crate) fn in_touch(&self, a: NodeId, b: NodeId) -> bool {
        let s = self.state();
        let clear = |from, to| s.clogged.get(&(from, to)).is_none_or(|until| *until <= s.now);
        SimNet::reachable(&s, a, b) && SimNet::reachable(&s, b, a) && clear(a, b) && clear(b, a)
    }

    fn post(&self, world: &World, from: NodeId, to: NodeId, body: Body) {
        if !self.state().up.contains_key(&from) {
            return; // a process that is being taken down
        }
        let (what, payload): (&'static str, &[u8]) = match &body {
            Body::Message(p) => ("message", p),
            Body::Call(_, p) => ("call", p),
            Body::Answer(_, Ok(p)) => ("answer", p),
            _ => ("event", &[]),
        };
        world.note(what, &[u64::from(from.0), u64::from(to.0), fnv64(payload)]);
        if self.watch.as_ref().is_some_and(|w| !w.leaves(from, to, &body)) {
            return;
        }
        let s = &mut *self.state();
        let lost = self.chance(self.drop) || !SimNet::reachable(s, from, to);
        if lost {
            // Who waits for an answer notices that the stream has ended.
            let (caller, id) = match body {
                Body::Call(id, payload) => {
                    // Half of them come through all the same, if any do.
                    if self.call_again > 0 && self.random_again.below(2) == 0 {
                        self.call_again(world, s, from, to, payload);
                    }
                    (from, id)
                }
                Body::Answer(id, _) => (to, id),
                _ => return,
            };
            let gone = Body::Answer(id, Err(CallError::Lost("the stream has ended".into())));
            return self.put(s, caller, LOST_AFTER, Envelope { from: to, body: gone });
        }
        if let Body::Message(payload) = &body {
            let again = || Envelope { from, body: Body::Message(payload.clone()) };
            if self.chance(self.duplicate) {
                self.put(s, to, self.latency() * 2, again());
            }
            if self.chance(self.replay) {
                let late = Duration::from_millis(500 + self.random.below(REPLAYED_AFTER_MS_MAX));
                self.put(s, to, late, again());
            }
        }
        if let Body::Call(_, payload) = &body
            && self.call_again > 0
            && self.random_again.below(1_000) < self.call_again
        {
            self.call_again(world, s, from, to, payload.clone());
        }
        self.put(s, to, self.latency(), Envelope { from, body });
    }

    /// Lets a call arrive at its own time: soon, beside the first copy, or after most things are over.
    fn call_again(&self, world: &World, s: &mut State, from: NodeId, to: NodeId, payload: Bytes) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let late_us = 100 + self.random_again.below(1 << (10 + self.random_again.below(14)));
        world.fault("call again", &[u64::from(from.0), u64::from(to.0), late_us]);
        self.put(s, to, Duration::from_micros(late_us), Envelope { from, body: Body::Again(payload) });
    }

    /// Lets arrive what is due, and moves partitions along.
    pub(crate) fn deliver(&self, now: Duration) {
        let s = &mut *self.state();
        s.now = now;
        while let Some(entry) = s.on_the_way.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to, envelope) = entry.remove();
            if let Some(mailbox) = s.up.get(&to) {
                if let Some(watch) = &self.watch {
                    watch.arrives(&envelope.body);
                }
                mailbox.arrived.lock().expect("one thread").push_back(envelope);
                mailbox.notify.notify_one();
            }
        }
    }

    /// A node's process begins.
    pub(crate) fn join(&self, node: NodeId, mailbox: Arc<Mailbox>) {
        let s = &mut *self.state();
        s.up.insert(node, mailbox);
        self.tell_all(s, node, true);
    }

    /// A node's process has ended.
    pub(crate) fn leave(&self, node: NodeId) {
        let s = &mut *self.state();
        s.up.remove(&node);
        self.tell_all(s, node, false);
    }

    /// A node whose end nobody has noticed yet begins anew: that ends the streams to its earlier life.
    pub(crate) fn streams_end(&self, node: NodeId) {
        let s = &mut *self.state();
        s.on_the_way.retain(|_, (_, e)| !matches!(e.body, Body::Disconnected(of) if of == node));
        s.up.values().for_each(|mailbox| mailbox.lose(node));
    }

    /// How long a node's end takes to be noticed.
    fn noticed_after(&self, node: NodeId) -> Duration {
        self.watch.as_ref().and_then(|w| w.noticed_after(node)).unwrap_or(NOTICED_AFTER)
    }

    /// Cuts a node off from all others, or connects it again.
    pub(crate) fn cut_off(&self, node: NodeId, cut: bool) {
        let s = &mut *self.state();
        let changed = if cut { s.cut_off.insert(node) } else { s.cut_off.remove(&node) };
        if changed {
            self.tell_all(s, node, !cut);
        }
    }

    /// Loses everything in one direction, or stops doing so.
    pub(crate) fn block(&self, from: NodeId, to: NodeId, block: bool) {
        let s = &mut *self.state();
        let reasons = s.blocked.entry((from, to)).or_default();
        *reasons = if block { *reasons + 1 } else { reasons.saturating_sub(1) };
        if *reasons == 0 {
            s.blocked.remove(&(from, to));
        }
    }

    /// Holds everything back in one direction until a moment.
    pub(crate) fn clog(&self, from: NodeId, to: NodeId, until: Duration) {
        let s = &mut *self.state();
        let held = s.clogged.entry((from, to)).or_default();
        *held = until.max(*held);
    }

    /// Everybody reaches everybody again, and nothing is held back that is sent from now on.
    pub(crate) fn heal(&self) {
        let cut: Vec<NodeId> = {
            let s = &mut *self.state();
            s.blocked.clear();
            s.clogged.clear();
            s.cut_off.iter().copied().collect()
        };
        for node in cut {
            self.cut_off(node, false);
        }
    }

    fn tell_all(&self, s: &mut State, about: NodeId, connected: bool) {
        let event = |n| if connected { Body::Connected(n) } else { Body::Disconnected(n) };
        let others: Vec<NodeId> = s.up.keys().copied().filter(|n| *n != about).collect();
        let after = self.noticed_after(about);
        for other in others {
            self.put(s, other, after, Envelope { from: about, body: event(about) });
            if s.up.contains_key(&about) {
                self.put(s, about, NOTICED_AFTER, Envelope { from: other, body: event(other) });
            }
        }
    }
}

/// The network as one process of one node sees it.
pub(crate) struct Port {
    pub(crate) world: Arc<World>,
    pub(crate) node: NodeId,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Network for Port {
    fn send(&self, to: NodeId, payload: Bytes) -> bool {
        self.world.net.post(&self.world, self.node, to, Body::Message(payload));
        true
    }

    fn call(
        &self,
        to: NodeId,
        _lane: Lane,
        payload: Bytes,
        wait_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (sender, answer) = oneshot::channel();
        let net = &self.world.net;
        let id = {
            let s = &mut *net.state();
            let silent = net.watch.as_ref().is_some_and(|w| w.is_silent(to));
            if !silent && !SimNet::reachable(s, self.node, to) {
                let error = CallError::NotSent(format!("no stream to node {to}"));
                return Box::pin(std::future::ready(Err(error)));
            }
            s.next_call += 1;
            s.next_call
        };
        self.mailbox.waiting.lock().expect("one thread").insert(id, (to, sender));
        net.post(&self.world, self.node, to, Body::Call(id, payload));
        let mailbox = self.mailbox.clone();
        Box::pin(async move {
            let result = tokio::select! {
                biased;
                result = answer => result.unwrap_or_else(|_| Err(CallError::Lost("going down".into()))),
                () = tokio::time::sleep(wait_max) => Err(CallError::Lost(format!("no answer within {wait_max:?}"))),
            };
            mailbox.waiting.lock().expect("one thread").remove(&id);
            result
        })
    }

    fn set_peer(&self, _node: NodeId, _address: &str) {}

    fn peers(&self) -> Vec<PeerStatus> {
        let s = self.world.net.state();
        let others = self.world.nodes().into_iter().filter(|n| *n != self.node);
        others
            .map(|node| PeerStatus {
                node,
                address: self.world.address(node),
                connected: SimNet::reachable(&s, self.node, node),
                frames_out: 0,
                bytes_out: 0,
                dropped: 0,
                error: None,
            })
            .collect()
    }
}

/// Hands a node what arrives, for the life of its process.
pub(crate) async fn receive(world: Arc<World>, node: NodeId, mailbox: Arc<Mailbox>, cluster: Arc<Cluster>) {
    loop {
        mailbox.notify.notified().await;
        loop {
            let next = mailbox.arrived.lock().expect("one thread").pop_front();
            let Some(Envelope { from, body }) = next else { break };
            match body {
                Body::Message(payload) => cluster.message(from, payload),
                Body::Call(id, payload) => {
                    let hello = Hello { cluster: crate::CLUSTER, node: from, address: world.address(from) };
                    let (world, answer) = (world.clone(), cluster.call(hello, payload));
                    tokio::spawn(async move {
                        let answer = answer.await.map_err(CallError::Refused);
                        world.net.post(&world, node, from, Body::Answer(id, answer));
                    });
                }
                Body::Again(payload) => {
                    let hello = Hello { cluster: crate::CLUSTER, node: from, address: world.address(from) };
                    tokio::spawn(cluster.call(hello, payload));
                }
                Body::Answer(id, answer) => {
                    if let Some((_, caller)) = mailbox.waiting.lock().expect("one thread").remove(&id) {
                        let _gone = caller.send(answer);
                    }
                }
                Body::Connected(peer) => cluster.connected(peer),
                Body::Disconnected(peer) => {
                    mailbox.lose(peer);
                    cluster.disconnected(peer);
                }
            }
        }
    }
}
