//! Scripts: a world without random faults, in which a node dies at a moment that was chosen.
//!
//!     stage ──▶ leaders placed ──▶ the scripted transaction ──▶ the watch sees the chosen message ──▶ power cut
//!                                                                                                      │
//!     checks ◀── replicas equal ◀── the dead node is back ◀── rows written again, prepares gone ◀──────┘
//!
//! The watch sits in the network: it knows the requests of the commit protocol by their encoding, and kills at one of the
//! four moments of a call ([`Moment`]). From that instant on nothing that the dead node says is heard, and its disk takes
//! nothing more; the world then takes it down as in any crash.
//!
//! A request whose receiver or sender died is lost. Who waits for its answer hears of that when the stream ends: at once, as
//! when a process is killed, or after [`SILENCE`], as when a machine has lost its power and nobody is left to close streams.
//!
//! A script that did not come to the chosen moment has failed: no case passes by not happening.

pub mod deadlocks;
pub mod registers;
pub mod round_trips;
pub mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, TxnId, keyspace, ordered};
use isochrone_env::fake::Fault;
use isochrone_server::Node;
use isochrone_server::cluster::message::Kind;
use isochrone_shard::api::Record;
use isochrone_shard::wire::Request;
use isochrone_txn::kv::{Error, KvStore, TxnOptions};

use crate::checks::{self, Checks};
use crate::fleet::Fleet;
use crate::life::Life;
use crate::net::Body;
use crate::world::{Found, Phase, World};
use crate::{LOOK_CLOSELY_EVERY_MS, LOOK_EVERY_MS, Options, STEP, panics};

/// How long nobody notices that a machine has lost its power: as long as a stream may be silent.
pub const SILENCE: Duration = isochrone_net::limits::SILENCE_MAX;
/// Longest time for the cluster to come up, and for leaders to be placed, in virtual time.
const SET_UP_MAX: Duration = Duration::from_secs(60);
/// Longest time for the replicas to become equal at the end, in virtual time.
const LEVEL_MAX: Duration = Duration::from_secs(60);
/// After the leaders were placed: everybody has heard of it, and renewals are through.
const SETTLE: Duration = Duration::from_millis(400);

/// A request of the commit protocol, as the network sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// R10: validation of what was read.
    Validate,
    /// R13: a transaction of one piece.
    Commit1,
    /// R11 at the anchor.
    PrepareAnchor,
    /// R11 at the other piece.
    PrepareOther,
    /// R16 at the anchor.
    Decide,
    /// R17 at the anchor: recovery resolves there, too.
    ResolveAnchor,
    /// R17 at the other piece.
    ResolveOther,
    /// R21: the anchor may forget.
    Acked,
    /// R18.1: what does the anchor say?
    Ask,
    /// R18.2 at the anchor.
    ProbeAnchor,
    /// R18.2 at the other piece.
    ProbeOther,
}

/// A moment of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The request leaves. If the victim has to do with it, it is lost.
    Sent,
    /// The receiver has worked on the request for a step of the world: what it logged is on its way.
    Received,
    /// The answer leaves: what was logged is applied. If the victim has to do with it, it is lost.
    Answered,
    /// The caller has worked with the answer for a step of the world: what comes next is on its way.
    Heard,
}

/// All moments of a call, in order.
pub const MOMENTS: [Moment; 4] = [Moment::Sent, Moment::Received, Moment::Answered, Moment::Heard];

/// When a node is to die.
#[derive(Clone, Debug)]
pub(crate) enum When {
    /// At a moment of the first request of this kind.
    Call {
        step: Step,
        moment: Moment,
        /// Sent by this node.
        from: NodeId,
    },
    /// When the victim is about to send its n-th message or answer of any kind, counted from 0.
    Message(u64),
}

/// A death to come.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    pub(crate) victim: NodeId,
    pub(crate) when: When,
}

/// The transaction that is watched.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) txn: TxnId,
    pub(crate) anchor: Key,
    pub(crate) other: Key,
}

#[derive(Default)]
struct Watching {
    watched: Option<Watched>,
    /// In order; the first one is waited for.
    deaths: VecDeque<Death>,
    /// The call that the first death is about, once it was seen.
    call: Option<u64>,
    /// Messages of the victim so far, for [`When::Message`].
    messages: u64,
    /// The receiver, or the caller, works on it now; death comes after its turn.
    armed: bool,
    /// Who has died and was not taken down yet.
    fired: Option<NodeId>,
    /// Nobody hears them any more; `true`: nobody has noticed, either.
    dead: BTreeMap<NodeId, bool>,
}

/// The part of a script that sits in the network.
pub(crate) struct Watch {
    /// Are deaths noticed only after [`SILENCE`]?
    silent: bool,
    state: Mutex<Watching>,
}

impl Watch {
    fn new(silent: bool) -> Watch {
        Watch { silent, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, Watching> {
        self.state.lock().expect("one thread")
    }

    /// Something is being sent. False: it is lost.
    pub(crate) fn leaves(&self, from: NodeId, to: NodeId, body: &Body) -> bool {
        let w = &mut *self.state();
        if w.dead.contains_key(&from) {
            return false;
        }
        let passes = w.look(self.silent, from, to, body);
        // Who called a node that is dead without anybody knowing hears of it when its stream ends.
        passes && w.dead.get(&to) != Some(&true)
    }

    /// Something is handed over to a node.
    pub(crate) fn arrives(&self, body: &Body) {
        let w = &mut *self.state();
        let Some(Death { when: When::Call { moment, .. }, .. }) = w.deaths.front() else { return };
        w.armed |= match (body, *moment) {
            (Body::Call(id, _), Moment::Received) | (Body::Answer(id, _), Moment::Heard) => {
                w.call == Some(*id)
            }
            _ => false,
        };
    }

    /// The turn of every node has passed.
    fn turn_ends(&self) {
        let w = &mut *self.state();
        if w.armed {
            w.fire(self.silent);
        }
    }

    /// Has this node died, and not come back?
    pub(crate) fn is_dead(&self, node: NodeId) -> bool {
        self.state().dead.contains_key(&node)
    }

    /// Is this node dead without anybody having noticed?
    pub(crate) fn is_silent(&self, node: NodeId) -> bool {
        self.state().dead.get(&node) == Some(&true)
    }

    /// How long it takes to notice that this node has gone, if a script says so.
    pub(crate) fn noticed_after(&self, node: NodeId) -> Option<Duration> {
        self.is_silent(node).then_some(SILENCE)
    }
}

impl Watching {
    /// Is this what the next death waits for? False: it is lost.
    fn look(&mut self, silent: bool, from: NodeId, to: NodeId, body: &Body) -> bool {
        let Some(Death { victim, when }) = self.deaths.front().cloned() else { return true };
        let lost = match when {
            When::Message(n) => {
                self.messages += u64::from(from == victim);
                from == victim && self.messages > n
            }
            When::Call { step, moment, from: caller } => match body {
                Body::Call(id, payload) if self.call.is_none() => {
                    if from != caller || !self.is_request(step, payload) {
                        return true;
                    }
                    self.call = Some(*id);
                    moment == Moment::Sent
                }
                Body::Answer(id, Ok(_)) => self.call == Some(*id) && moment == Moment::Answered,
                _ => false,
            },
        };
        if lost {
            self.fire(silent);
        }
        !lost || (from != victim && to != victim)
    }

    fn is_request(&self, step: Step, payload: &Bytes) -> bool {
        let Some(watched) = &self.watched else { return false };
        // Behind the kind and the sender's clock.
        let Ok((Kind::Shard, body)) = Kind::split(payload) else { return false };
        let Some(request) = body.get(8..).and_then(|_| Request::decode(body.slice(8..)).ok()) else {
            return false;
        };
        let txn = match &request {
            Request::Validate { txn, .. } => *txn,
            Request::Prepare(piece) | Request::Commit1(piece) => piece.txn,
            Request::Decide { anchor: id, .. }
            | Request::Resolve { piece: id, .. }
            | Request::Ask(id)
            | Request::Probe(id)
            | Request::Acked(id) => id.txn,
            _ => return false,
        };
        let at_anchor = request.key() == watched.anchor;
        let found = match &request {
            Request::Validate { .. } => Step::Validate,
            Request::Commit1(_) => Step::Commit1,
            Request::Prepare(_) if at_anchor => Step::PrepareAnchor,
            Request::Prepare(_) => Step::PrepareOther,
            Request::Decide { .. } => Step::Decide,
            Request::Resolve { .. } if at_anchor => Step::ResolveAnchor,
            Request::Resolve { .. } => Step::ResolveOther,
            Request::Probe(_) if at_anchor => Step::ProbeAnchor,
            Request::Probe(_) => Step::ProbeOther,
            Request::Ask(_) => Step::Ask,
            _ => Step::Acked,
        };
        let of_piece = request.key() == watched.other || at_anchor;
        txn == watched.txn && found == step && (of_piece || step == Step::Validate)
    }

    fn fire(&mut self, silent: bool) {
        let Some(death) = self.deaths.pop_front() else { return };
        (self.armed, self.call, self.messages) = (false, None, 0);
        // A second death while the first one has not been taken down: in the same step of the world.
        debug_assert!(self.fired.is_none(), "one death a step");
        self.fired = Some(death.victim);
        self.dead.insert(death.victim, silent);
    }
}

/// A part of a script that runs on a node, and its result.
pub(crate) struct Part<T>(Arc<Mutex<Option<T>>>);

impl<T> Part<T> {
    /// Its result, once it has one.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().expect("one thread").take()
    }

    /// Is a result there?
    pub(crate) fn is_done(&self) -> bool {
        self.0.lock().expect("one thread").is_some()
    }
}

/// Balance of an account when a script begins.
pub(crate) const START_BALANCE: i64 = 1_000;
/// Accounts 0 to 7: two shards begin with 2 and 4.
const ACCOUNTS: u64 = 8;
/// Tables that no SQL statement will ever make.
const ACCOUNT_TABLE: u32 = keyspace::FIRST_USER_TABLE + 2_000_000;
const LEDGER_TABLE: u32 = ACCOUNT_TABLE + 1;

/// An account's key.
pub(crate) fn account_key(id: u64) -> Key {
    let mut key = keyspace::index_prefix(ACCOUNT_TABLE, 0);
    ordered::put_u64(&mut key, id);
    key
}

/// A key of a third shard, with no row at first.
pub(crate) fn ledger_key(id: u64) -> Key {
    let mut key = keyspace::index_prefix(LEDGER_TABLE, 0);
    ordered::put_u64(&mut key, id);
    key
}

pub(crate) fn number(value: &Bytes) -> Result<i64, String> {
    let bytes: [u8; 8] = value.as_ref().try_into().map_err(|_| format!("not a number: {value:?}"))?;
    Ok(i64::from_be_bytes(bytes))
}

pub(crate) fn bytes(n: i64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Splits shards and opens accounts. Every step may be repeated: nobody else writes yet.
async fn set_up(node: &Node) -> Result<(), String> {
    let splits = vec![account_key(2), account_key(4), ledger_key(0)];
    while let Err(e) = node.store.split_at(splits.clone()).await {
        may_retry(&e)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    loop {
        let mut txn = node.store.begin(TxnOptions::default());
        for id in 0..ACCOUNTS {
            txn.put(account_key(id), Some(bytes(START_BALANCE))).map_err(|e| e.to_string())?;
        }
        match txn.commit().await {
            Ok(_) => return Ok(()),
            Err(e) => may_retry(&e)?,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Three nodes, and what a script does with them.
pub(crate) struct Stage {
    pub(crate) world: Arc<World>,
    fleet: Fleet,
    checks: Checks,
    /// Dead nodes whose end is noticed then.
    noticed: BTreeMap<NodeId, Duration>,
    _watch: panics::Watch,
}

impl Stage {
    /// A cluster that is up, with accounts on several shards. `clocks_us`: how far the nodes' clocks are off; inside their
    /// bound, or the rules that are tested do not hold.
    pub(crate) fn open(seed: u64, silent: bool, clocks_us: [i64; 3]) -> Result<Stage, String> {
        let options = Options { nodes: 3, workloads: BTreeSet::new(), clients: 0, ..Options::quiet(seed) };
        let mut world = World::new(options, None);
        world.net.watch = Some(Watch::new(silent));
        for (node, off) in world.nodes().into_iter().zip(clocks_us) {
            world.skew(node).set(off);
        }
        // No clients but those of the script.
        world.enter(Phase::Last);
        let world = Arc::new(world);
        let mut stage = Stage {
            fleet: Fleet::new(&world),
            world,
            checks: Checks::default(),
            noticed: BTreeMap::new(),
            _watch: panics::watch(),
        };
        stage.until(SET_UP_MAX, "the cluster is up", |s| {
            let nodes = s.world.nodes();
            s.fleet.all(&nodes, Life::is_checked)
        })?;
        stage.play(NodeId(1), "accounts are opened", |node| async move { set_up(&node).await })??;
        Ok(stage)
    }

    pub(crate) fn watch(&self) -> &Watch {
        self.world.net.watch.as_ref().expect("a stage has a watch")
    }

    pub(crate) fn now(&self) -> Duration {
        self.fleet.now
    }

    /// Nodes that run.
    pub(crate) fn up(&self) -> BTreeSet<NodeId> {
        self.fleet.moving().map(|l| l.node.id).collect()
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<&Arc<Node>> {
        self.fleet.life(node).map(|life| &life.node)
    }

    /// A step of the world, with what the watch wants, and a look at the state of all nodes. Says who has just died.
    pub(crate) fn step(&mut self) -> Result<Option<NodeId>, String> {
        let said = |found: Found| format!("{}: {}", found.id, found.what);
        self.watch().turn_ends();
        let fired = self.watch().state().fired;
        if let Some(victim) = fired {
            self.power_is_off(victim);
        }
        // Before the nodes' turns: a call after the end of the stream would never hear of it.
        let next = self.fleet.now + STEP;
        for (node, _) in self.noticed.extract_if(.., |_, at| *at <= next).collect::<Vec<_>>() {
            self.notice(node);
        }
        for node in self.fleet.step().map_err(said)? {
            self.checks.forget_process(node);
        }
        let dead = self.watch().state().fired.take();
        if let Some(victim) = dead {
            self.power_is_off(victim);
            self.stay_down(victim);
        }
        let ms = self.fleet.now.as_millis();
        if ms.is_multiple_of(LOOK_EVERY_MS) {
            let moving: Vec<_> = self.fleet.moving().map(|l| (l.node.clone(), l.monotonic_ns())).collect();
            self.checks.look(&moving).map_err(said)?;
        }
        if ms.is_multiple_of(LOOK_CLOSELY_EVERY_MS) {
            let nodes = self.nodes();
            self.checks.look_closely(&nodes, &nodes).map_err(said)?;
        }
        Ok(dead)
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        self.fleet.moving().map(|l| l.node.clone()).collect()
    }

    /// The disk of who has died takes nothing more from now on.
    fn power_is_off(&self, victim: NodeId) {
        let disk = &self.world.machines[&victim].disk;
        disk.fail_at(0, Fault::PowerCut);
        let _fails = isochrone_env::Disk::sync_dir(disk, Path::new("/wal"));
    }

    fn stay_down(&mut self, victim: NodeId) {
        self.fleet.end_for_good(victim);
        if self.watch().silent {
            self.noticed.insert(victim, self.fleet.now + SILENCE);
        }
    }

    /// From now on nobody sends anything to a dead node.
    fn notice(&mut self, node: NodeId) {
        if let Some(silent) = self.watch().state().dead.get_mut(&node) {
            *silent = false;
        }
    }

    /// Kills a node now.
    pub(crate) fn kill(&mut self, victim: NodeId) {
        let silent = self.watch().silent;
        self.watch().state().dead.insert(victim, silent);
        self.power_is_off(victim);
        self.stay_down(victim);
    }

    /// A dead node's power is back.
    pub(crate) fn restart(&mut self, node: NodeId) {
        if self.noticed.remove(&node).is_some() {
            self.world.net.streams_end(node);
        }
        self.watch().state().dead.remove(&node);
        self.fleet.heal(node);
    }

    /// Cuts a node off from the others, or connects it again.
    pub(crate) fn cut_off(&self, node: NodeId, cut: bool) {
        self.world.net.cut_off(node, cut);
    }

    /// Steps until something holds.
    pub(crate) fn until(
        &mut self,
        max: Duration,
        what: &str,
        mut holds: impl FnMut(&Stage) -> bool,
    ) -> Result<(), String> {
        let end = self.fleet.now + max;
        while !holds(self) {
            if self.fleet.now >= end {
                return Err(format!("at {:?}: not within {max:?}: {what}", self.fleet.now));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), String> {
        let end = self.fleet.now + time;
        self.until(time + STEP, "time passes", |s| s.fleet.now >= end)
    }

    /// Starts a part of the script on a node; it ends with the node. A node that is down never gives a result.
    pub(crate) fn spawn<T, F>(&self, node: NodeId, part: impl FnOnce(Arc<Node>) -> F) -> Part<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let result = Arc::new(Mutex::new(None));
        if let Some(life) = self.fleet.life(node) {
            let (slot, part, world) = (result.clone(), part(life.node.clone()), self.world.clone());
            life.spawn(async move {
                let value = part.await;
                // Nobody hears what a dead node says.
                if !world.net.watch.as_ref().is_some_and(|w| w.is_dead(node)) {
                    *slot.lock().expect("one thread") = Some(value);
                }
            });
        }
        Part(result)
    }

    /// Runs a part of the script on a node to its end.
    pub(crate) fn play<T, F>(
        &mut self,
        node: NodeId,
        what: &str,
        part: impl FnOnce(Arc<Node>) -> F,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let part = self.spawn(node, part);
        self.until(SET_UP_MAX, what, |_| part.is_done())?;
        Ok(part.take().expect("it is done"))
    }

    /// The shard of a key.
    pub(crate) fn shard_of(&mut self, key: &Key) -> Result<ShardId, String> {
        let range = KeyRange::point(key);
        let shards = self.play(NodeId(1), "shards are listed", |node| async move {
            loop {
                match node.store.shards(range.clone()).await {
                    Ok(shards) => break shards,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })?;
        Ok(shards.first().ok_or("a key without a shard")?.shard)
    }

    /// Makes nodes the leaders of the shards of keys.
    pub(crate) fn place(&mut self, leaders: &[(Key, NodeId)]) -> Result<(), String> {
        for (key, to) in leaders {
            let (shard, to) = (self.shard_of(key)?, *to);
            self.play(to, "a leadership moves", |node| async move {
                while node.store.transfer_leader(shard, to).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })?;
        }
        self.wait(SETTLE)?;
        for (key, to) in leaders {
            if !self.leads(*to, key) {
                return Err(format!("node {to} does not lead the shard of {key:02x?}"));
            }
        }
        Ok(())
    }

    /// Does this node lead the shard of a key?
    pub(crate) fn leads(&self, node: NodeId, key: &[u8]) -> bool {
        self.node(node).and_then(|n| n.local.shards().of_key(key)).is_some_and(|s| s.leads())
    }

    /// Prepares on the nodes that run.
    pub(crate) fn prepared(&self) -> usize {
        let of =
            |l: &Life| -> usize { l.node.local.shards().states_light().iter().map(|s| s.prepared).sum() };
        self.fleet.moving().map(of).sum()
    }

    /// Has a node that runs a prepare of this transaction?
    pub(crate) fn is_prepared(&self, txn: TxnId) -> bool {
        let of = |l: &Life| {
            let shards = l.node.local.shards();
            // Nearly always there is none: this is asked at every step.
            shards.states_light().iter().any(|s| s.prepared > 0)
                && shards
                    .records(usize::MAX)
                    .iter()
                    .any(|r| r.txn == txn && matches!(r.record, Record::Prepared(_)))
        };
        self.fleet.moving().any(of)
    }

    /// SIM6: every node runs, and all replicas come to the same.
    pub(crate) fn same_replicas(&mut self) -> Result<(), String> {
        let nodes = self.world.nodes().len();
        self.until(LEVEL_MAX, "SIM6: replicas are level", |s| {
            s.up().len() == nodes && checks::level(&s.nodes())
        })?;
        checks::at_the_end(&self.nodes()).map_err(|found| format!("{}: {}", found.id, found.what))
    }
}

/// May the client try again? `Err`: an error that nobody may see here.
pub(crate) fn may_retry(error: &Error) -> Result<(), String> {
    match error {
        Error::Serialization(_)
        | Error::Deadlock
        | Error::LockTimeout(_)
        | Error::Unavailable(_)
        | Error::SnapshotTooOld(_)
        | Error::Unknown(_) => Ok(()),
        e => Err(e.to_string()),
    }
}
