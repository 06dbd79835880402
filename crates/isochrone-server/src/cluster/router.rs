//! The way to the leaseholders, wherever they are: [`ShardClient`] over this node's shards and the network.
//!
//!     request for a key ──▶ a read of the past that the replica here can answer (R6)? else: led here? ──yes──▶ LocalShards, on this thread
//!                              │ no
//!                              ▼
//!                     the leader, as far as known ──▶ "ask node 2" ──▶ node 2 ...   (at most HOPS_MAX)
//!
//! Where a key lives is known from the replicas here; a node that has none asks others and keeps what it heard
//! ([`Routes`]). Both may be old: every node checks for itself what it serves, a wrong address costs a hop.
//!
//! Locks stay where they were granted: the router remembers which nodes were asked for which lock, and gives it back to all
//! of them. What gets lost on the way is found by the leaseholder, which asks now and then ([`Router::orphans`]). And it
//! knows which lock a transaction waits for just now, and where: a deadlock's edges ([`Router::waits`]).
//!
//! One call here is one attempt. It answers `NotServed` (nothing was done) or `Ambiguous` (no answer to something that
//! may have been done), and the coordinator above repeats it within its bounds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::codec::put_ts;
use isochrone_base::held::Held;
use isochrone_base::{Key, KeyRange, NodeId, ShardId, Timestamp, TxnId};
use isochrone_clock::Hlc;
use isochrone_net::{CallError, Lane, Network};
use isochrone_shard::LocalShards;
use isochrone_shard::api::{
    AnchorReply, BoxFuture, Decision, Error, LockMode, Locked, Page, Piece, PieceId, Prepared, ReadAs,
    ReadSpan, Record, Seen, ShardClient,
};
use isochrone_shard::wire::{Request, Response};

use super::members::freshest;
use super::message::{HeldLock, Kind, ReplicaStatus, Wait};

/// Nodes asked for one request before it is "not served".
const HOPS_MAX: usize = 4;
/// Longest wait for the answer to a request that does not wait for others' locks: longer than a shard waits for what
/// stands in the way.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(35);
/// Shards remembered by a node without replicas; past it the cache begins anew.
const ROUTES_MAX: usize = 100_000;

/// A shard as this node knows it.
#[derive(Clone, Debug)]
struct Route {
    shard: ShardId,
    end: Key,
    epoch: u64,
    voters: Vec<NodeId>,
    leader: Option<NodeId>,
}

/// What a node without replicas has heard of shards.
#[derive(Default)]
struct Routes {
    by_start: BTreeMap<Key, Route>,
    /// Somebody was asked in vain: what was heard is old, or nobody can be reached. It stays until others were asked again: a hole in
    /// the map would be worse than an old address.
    in_doubt: bool,
}

impl Routes {
    fn at(&self, key: &[u8]) -> Option<(&Key, &Route)> {
        let (start, route) = self
            .by_start
            .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)))
            .next_back()?;
        (route.end.is_empty() || key < route.end.as_slice()).then_some((start, route))
    }

    /// Takes in what was heard: of overlapping ranges the one with the higher epoch stays.
    fn hear(&mut self, heard: ReplicaStatus) {
        if self.by_start.len() >= ROUTES_MAX {
            self.by_start.clear();
        }
        let overlapping: Vec<Key> = self
            .by_start
            .iter()
            .filter(|(start, r)| {
                KeyRange { start: (*start).clone(), end: r.end.clone() }.overlaps(&heard.range)
            })
            .map(|(start, _)| start.clone())
            .collect();
        if overlapping.iter().any(|s| self.by_start[s].epoch > heard.epoch) {
            return;
        }
        for start in overlapping {
            self.by_start.remove(&start);
        }
        let ReplicaStatus { shard, range, epoch, members, leader, .. } = heard;
        let voters = members.voting();
        self.by_start.insert(range.start, Route { shard, end: range.end, epoch, voters, leader });
    }
}

/// See the module.
pub struct Router {
    node: NodeId,
    local: Arc<LocalShards>,
    clock: Arc<Hlc>,
    network: Arc<dyn Network>,
    /// Of shards without a replica here.
    routes: Mutex<Routes>,
    /// Who was heard to lead a shard, where the replica here knows it less well.
    leaders: Mutex<BTreeMap<ShardId, NodeId>>,
    /// Locks of this node's transactions that were asked of others, and of whom. Bounded by the transactions' own bound.
    asked: Mutex<BTreeMap<HeldLock, Vec<NodeId>>>,
    hops: AtomicU64,
    /// Requests for locks that are under way to others, with their number. A transaction waits for one lock at a time.
    waiting: Mutex<BTreeMap<TxnId, (u64, Wait)>>,
    waits: AtomicU64,
}

/// Takes a request for a lock off the list when it has ended or was dropped.
struct Waiting<'a> {
    router: &'a Router,
    txn: TxnId,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.router.waiting();
        if waiting.get(&self.txn).is_some_and(|(n, _)| *n == self.number) {
            waiting.remove(&self.txn);
        }
    }
}

/// Is a request without an answer certainly harmless to repeat, as if it had not been sent?
fn only_looks(request: &Request) -> bool {
    matches!(
        request,
        Request::Get { .. }
            | Request::Scan { .. }
            | Request::Lock { .. }
            | Request::Validate { .. }
            | Request::Ask(_)
    )
}

/// What it means that a request was sent and has no answer.
fn unanswered(request: &Request, why: String) -> Error {
    if only_looks(request) { Error::NotServed(why) } else { Error::Ambiguous(why) }
}

impl Router {
    /// What it remembers of shards elsewhere, and of locks asked of others.
    pub fn held(&self) -> [Held; 3] {
        let routes = self.routes().by_start.len();
        let asked = self.asked().len();
        let waiting = self.waiting().len();
        [
            Held::counted("router.routes", routes, ROUTES_MAX, size_of::<(Key, Route)>()),
            Held::counted("router.locks_asked", asked, usize::MAX, size_of::<(HeldLock, Vec<NodeId>)>()),
            Held::counted("router.lock_waits", waiting, usize::MAX, size_of::<(TxnId, u64, Wait)>()),
        ]
    }

    /// On this node's shards and the network.
    pub fn new(node: NodeId, local: Arc<LocalShards>, clock: Arc<Hlc>, network: Arc<dyn Network>) -> Router {
        Router {
            node,
            local,
            clock,
            network,
            routes: Mutex::new(Routes::default()),
            leaders: Mutex::new(BTreeMap::new()),
            asked: Mutex::new(BTreeMap::new()),
            hops: AtomicU64::new(0),
            waiting: Mutex::new(BTreeMap::new()),
            waits: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<TxnId, (u64, Wait)>> {
        self.waiting.lock().expect("nothing panics while it is held")
    }

    fn begins_to_wait(&self, lock: HeldLock, node: NodeId) -> Waiting<'_> {
        let number = self.waits.fetch_add(1, Ordering::Relaxed);
        let txn = lock.txn;
        self.waiting().insert(txn, (number, Wait { lock, node }));
        Waiting { router: self, txn, number }
    }

    /// What these transactions of this node wait for.
    pub fn waits(&self, txns: &[TxnId]) -> Vec<Wait> {
        let mut out = Vec::new();
        for txn in txns {
            out.extend(self.waiting().get(txn).map(|(_, wait)| wait.clone()));
            let here = self.local.locks().waits_of(*txn).into_iter();
            out.extend(here.map(|key| Wait { lock: HeldLock { txn: *txn, key }, node: self.node }));
        }
        out
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<HeldLock, Vec<NodeId>>> {
        self.asked.lock().expect("nothing panics while it is held")
    }

    /// Those of these locks that no transaction of this node holds or waits for.
    pub fn orphans(&self, locks: Vec<HeldLock>) -> Vec<HeldLock> {
        let asked = self.asked();
        locks.into_iter().filter(|l| !asked.contains_key(l)).collect()
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().expect("nothing panics while it is held")
    }

    fn leaders(&self) -> MutexGuard<'_, BTreeMap<ShardId, NodeId>> {
        self.leaders.lock().expect("nothing panics while it is held")
    }

    /// What others said of shards that have no replica here.
    pub fn hear(&self, heard: Vec<ReplicaStatus>) {
        let mut routes = self.routes();
        routes.in_doubt &= heard.is_empty();
        for status in freshest(heard).into_values() {
            routes.hear(status);
        }
    }

    /// Does this node know where every key lives, as far as it can tell?
    pub fn knows_everything(&self) -> bool {
        if self.routes().in_doubt {
            return false;
        }
        let mut at = Key::new();
        loop {
            let range = self.route_key(&at);
            if range == KeyRange::all() && self.shard_at(&at).is_none() {
                return false;
            }
            if range.end.is_empty() {
                return true;
            }
            at = range.end;
        }
    }

    /// The shard of a key, and the nodes that have it; the likely leader first.
    fn shard_at(&self, key: &[u8]) -> Option<(ShardId, Vec<NodeId>)> {
        let (shard, leader, mut voters) = match self.local.shards().of_key(key) {
            Some(shard) => {
                let (leader, voters) = shard.leader_and_voters();
                (shard.id(), leader, voters)
            }
            None => {
                let routes = self.routes();
                let (_, route) = routes.at(key)?;
                (route.shard, route.leader, route.voters.clone())
            }
        };
        let likely = self.leaders().get(&shard).copied().or(leader);
        if let Some(leader) = likely {
            voters.retain(|n| *n != leader);
            voters.insert(0, leader);
        }
        Some((shard, voters))
    }

    /// Who leads the shard of a key, as far as this node knows.
    pub fn leader(&self, key: &[u8]) -> Option<NodeId> {
        if self.leads(key) {
            return Some(self.node);
        }
        self.shard_at(key).and_then(|(_, nodes)| nodes.into_iter().find(|n| *n != self.node))
    }

    fn leads(&self, key: &[u8]) -> bool {
        self.local.shards().of_key(key).is_some_and(|s| s.leads())
    }

    /// Where the request goes when it is not for this node; see the module.
    async fn remote(&self, key: &[u8], request: Request, wait_max: Duration) -> Result<Response, Error> {
        let Some((shard, nodes)) = self.shard_at(key) else {
            return Err(Error::NotServed(format!("where key {key:02x?} lives is not known")));
        };
        let untried =
            |asked: &[NodeId]| nodes.iter().copied().find(|n| *n != self.node && !asked.contains(n));
        let mut asked = Vec::new();
        let mut next = untried(&asked);
        let mut last = Error::NotServed(format!("no node of shard {shard} can be asked"));
        let body = request.encode();
        while let Some(node) = next.take().filter(|_| asked.len() < HOPS_MAX) {
            asked.push(node);
            if node == self.node {
                return Err(Error::NotServed(format!("this node is about to lead shard {shard}")));
            }
            let _waiting = match &request {
                Request::Lock { txn, key, .. } => {
                    let lock = HeldLock { txn: *txn, key: key.clone() };
                    let mut asked = self.asked();
                    let nodes = asked.entry(lock.clone()).or_default();
                    if !nodes.contains(&node) {
                        nodes.push(node);
                    }
                    drop(asked);
                    Some(self.begins_to_wait(lock, node))
                }
                _ => None,
            };
            match self.call(node, &body, wait_max).await {
                Ok(Response::Error(Error::NotLeader { shard, leader })) => {
                    last = Error::NotServed(format!("node {node} does not lead shard {shard}"));
                    match leader {
                        Some(leader) => _ = self.leaders().insert(shard, leader),
                        None => _ = self.leaders().remove(&shard),
                    }
                    next = leader.filter(|n| !asked.contains(n));
                    if next.is_none() && leader.is_none() {
                        next = untried(&asked);
                    }
                }
                // It has no such replica, or not of this key: what was heard of the shard is old.
                Ok(Response::Error(error @ Error::NotServed(_))) => {
                    self.leaders().remove(&shard);
                    last = error;
                    next = untried(&asked);
                }
                // That node's storage has failed, not this one's: another replica leads soon.
                Ok(Response::Error(Error::Stopped(why))) => {
                    self.leaders().remove(&shard);
                    return Err(unanswered(&request, format!("node {node} has stopped: {why}")));
                }
                Ok(Response::Error(error)) => return Err(error),
                Ok(answer) => {
                    // The shard was split, and nobody told a node that has no replica of it.
                    if answer == Response::Prepared(Prepared::OutOfRange) {
                        self.doubt(key);
                    }
                    if asked.len() > 1 {
                        self.leaders().insert(shard, node);
                    }
                    return Ok(answer);
                }
                Err(CallError::NotSent(why)) => {
                    self.leaders().remove(&shard);
                    last = Error::NotServed(format!("node {node}: {why}"));
                    next = untried(&asked);
                }
                Err(CallError::Refused(why)) => return Err(Error::NotServed(format!("node {node}: {why}"))),
                Err(CallError::Lost(why)) => {
                    self.leaders().remove(&shard);
                    return Err(unanswered(&request, format!("node {node}: {why}")));
                }
            }
        }
        self.doubt(key);
        Err(last)
    }

    /// What was heard of a key's shard led nowhere: others are asked soon ([`Router::knows_everything`]).
    fn doubt(&self, key: &[u8]) {
        if self.local.shards().of_key(key).is_none() {
            self.routes().in_doubt = true;
        }
    }

    /// R6: what the replica here answers by itself to a read of the past.
    fn here<'a, T: Send + 'a>(
        &self,
        who: ReadAs,
        read: impl FnOnce(&LocalShards) -> Result<T, Error>,
    ) -> Option<BoxFuture<'a, Result<T, Error>>> {
        if who.uncertain_to > who.ts {
            return None;
        }
        match read(&self.local) {
            Err(Error::NotLeader { .. } | Error::NotServed(_) | Error::Stopped(_)) => None,
            answer => {
                metrics::counter!("isochrone_reads_at_replica_total").increment(1);
                Some(Box::pin(std::future::ready(answer)))
            }
        }
    }

    /// Requests to shards that this node has sent to others.
    pub fn hops(&self) -> u64 {
        self.hops.load(Ordering::Relaxed)
    }

    async fn call(&self, node: NodeId, body: &[u8], wait_max: Duration) -> Result<Response, CallError> {
        let mut payload = Vec::with_capacity(body.len() + 9);
        payload.push(Kind::Shard as u8);
        self.hops.fetch_add(1, Ordering::Relaxed);
        put_ts(&mut payload, self.clock.last());
        payload.extend_from_slice(body);
        let answer = self.network.call(node, Lane::Main, payload.into(), wait_max).await?;
        let (now, response) = super::take_stamp(answer).map_err(CallError::Lost)?;
        super::hear_clock(&self.clock, now).map_err(CallError::Lost)?;
        Response::decode(response).map_err(|e| CallError::Lost(format!("an answer that cannot be read: {e}")))
    }

    async fn ask<T>(
        &self,
        key: &[u8],
        request: Request,
        wait_max: Duration,
        expected: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, Error> {
        let answer = self.remote(key, request, wait_max).await?;
        expected(answer).ok_or_else(|| Error::Ambiguous("the answer belongs to another question".into()))
    }
}

macro_rules! expect {
    ($response:path) => {
        |answer| match answer {
            $response(x) => Some(x),
            _ => None,
        }
    };
}

impl ShardClient for Router {
    fn get<'a>(&'a self, who: ReadAs, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Seen>, Error>> {
        if let Some(answer) = self.here(who, |local| local.get_here(who, key)) {
            return answer;
        }
        if self.leads(key) {
            return self.local.get(who, key);
        }
        let request = Request::Get { who, key: key.to_vec() };
        Box::pin(self.ask(key, request, ANSWER_WAIT_MAX, expect!(Response::Seen)))
    }

    fn scan<'a>(
        &'a self,
        who: ReadAs,
        range: &'a KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        let here = |local: &LocalShards| local.scan_here(who, range, reverse, rows_max, bytes_max);
        if !range.is_empty()
            && let Some(answer) = self.here(who, here)
        {
            return answer;
        }
        let at = if reverse { self.last_part(range) } else { range.start.clone() };
        if range.is_empty() || self.leads(&at) {
            return self.local.scan(who, range, reverse, rows_max, bytes_max);
        }
        let (rows_max, bytes_max) = (rows_max as u64, bytes_max as u64);
        let request = Request::Scan { who, range: range.clone(), reverse, rows_max, bytes_max };
        Box::pin(async move { self.ask(&at, request, ANSWER_WAIT_MAX, expect!(Response::Page)).await })
    }

    fn lock<'a>(
        &'a self,
        txn: TxnId,
        key: &'a [u8],
        mode: LockMode,
        read_ts: Timestamp,
        wait_max: Duration,
    ) -> BoxFuture<'a, Result<Locked, Error>> {
        if self.leads(key) {
            return self.local.lock(txn, key, mode, read_ts, wait_max);
        }
        let request = Request::Lock { txn, key: key.to_vec(), mode, read_ts, wait_max };
        let wait_max = wait_max.saturating_add(ANSWER_WAIT_MAX);
        Box::pin(self.ask(key, request, wait_max, expect!(Response::Locked)))
    }

    fn unlock(&self, txn: TxnId, keys: &[Key]) {
        let mut remote: BTreeMap<NodeId, Vec<Key>> = BTreeMap::new();
        {
            let mut asked = self.asked();
            for key in keys {
                for node in asked.remove(&HeldLock { txn, key: key.clone() }).unwrap_or_default() {
                    remote.entry(node).or_default().push(key.clone());
                }
            }
        }
        self.local.unlock(txn, keys);
        for (node, keys) in remote {
            let body = Request::Unlock { txn, keys }.encode();
            // Lost: the leaseholder asks.
            let _sent = self.network.send(node, Kind::Unlock.wrap(&body));
        }
    }

    fn validate<'a>(
        &'a self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let Some(key) = spans.first().map(|s| s.range.start.clone()) else {
            return Box::pin(std::future::ready(Ok(())));
        };
        if self.leads(&key) {
            return self.local.validate(txn, spans, ts);
        }
        Box::pin(async move {
            let request = Request::Validate { txn, spans, ts };
            self.ask(&key, request, ANSWER_WAIT_MAX, |r| matches!(r, Response::Done).then_some(())).await
        })
    }

    fn prepare<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        let request = Request::Prepare(piece);
        let key = request.key().to_vec();
        if self.leads(&key) {
            let Request::Prepare(piece) = request else { unreachable!("made just now") };
            return self.local.prepare(piece);
        }
        Box::pin(async move { self.ask(&key, request, ANSWER_WAIT_MAX, expect!(Response::Prepared)).await })
    }

    fn commit1<'a>(&'a self, piece: Piece) -> BoxFuture<'a, Result<Prepared, Error>> {
        let request = Request::Commit1(piece);
        let key = request.key().to_vec();
        if self.leads(&key) {
            let Request::Commit1(piece) = request else { unreachable!("made just now") };
            return self.local.commit1(piece);
        }
        Box::pin(async move { self.ask(&key, request, ANSWER_WAIT_MAX, expect!(Response::Prepared)).await })
    }

    fn decide<'a>(
        &'a self,
        anchor: PieceId,
        decision: Decision,
    ) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        if self.leads(&anchor.key) {
            return self.local.decide(anchor, decision);
        }
        Box::pin(async move {
            let key = anchor.key.clone();
            let request = Request::Decide { anchor, decision };
            self.ask(&key, request, ANSWER_WAIT_MAX, expect!(Response::Anchor)).await
        })
    }

    fn ask<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<AnchorReply, Error>> {
        if self.leads(&anchor.key) {
            return self.local.ask(anchor);
        }
        Box::pin(async move {
            let key = anchor.key.clone();
            self.ask(&key, Request::Ask(anchor), ANSWER_WAIT_MAX, expect!(Response::Anchor)).await
        })
    }

    fn resolve<'a>(&'a self, piece: PieceId, decision: Decision) -> BoxFuture<'a, Result<(), Error>> {
        if self.leads(&piece.key) {
            return self.local.resolve(piece, decision);
        }
        Box::pin(async move {
            let key = piece.key.clone();
            let request = Request::Resolve { piece, decision };
            self.ask(&key, request, ANSWER_WAIT_MAX, |r| matches!(r, Response::Done).then_some(())).await
        })
    }

    fn probe<'a>(&'a self, piece: PieceId) -> BoxFuture<'a, Result<Record, Error>> {
        if self.leads(&piece.key) {
            return self.local.probe(piece);
        }
        Box::pin(async move {
            let key = piece.key.clone();
            self.ask(&key, Request::Probe(piece), ANSWER_WAIT_MAX, expect!(Response::Record)).await
        })
    }

    fn acked<'a>(&'a self, anchor: PieceId) -> BoxFuture<'a, Result<(), Error>> {
        if self.leads(&anchor.key) {
            return self.local.acked(anchor);
        }
        Box::pin(async move {
            let key = anchor.key.clone();
            self.ask(&key, Request::Acked(anchor), ANSWER_WAIT_MAX, |r| {
                matches!(r, Response::Done).then_some(())
            })
            .await
        })
    }

    fn route(&self, range: &KeyRange) -> Vec<KeyRange> {
        parts(range, |key| self.route_key(key))
    }

    fn route_key(&self, key: &[u8]) -> KeyRange {
        if let Some(shard) = self.local.shards().of_key(key) {
            return shard.range();
        }
        match self.routes().at(key) {
            Some((start, route)) => KeyRange { start: start.clone(), end: route.end.clone() },
            // Not known: a request for it is answered "not served", which makes this node ask around.
            None => KeyRange::all(),
        }
    }
}

/// The ranges that a range runs through, one after the other. What comes after a key of which nothing is known (a hole
/// in the map while a snapshot is installed) begins at that key, so that no two of them overlap: a span that is cut
/// by them is cut into smaller ones.
fn parts(range: &KeyRange, route_key: impl Fn(&[u8]) -> KeyRange) -> Vec<KeyRange> {
    let mut out: Vec<KeyRange> = Vec::new();
    let mut at = range.start.clone();
    loop {
        let mut part = route_key(&at);
        if !out.is_empty() {
            part.start = part.start.max(at);
        }
        let end = part.end.clone();
        out.push(part);
        if end.is_empty() || (!range.end.is_empty() && end >= range.end) {
            return out;
        }
        at = end;
    }
}

impl Router {
    /// A key of the shard that holds the upper end of a range.
    fn last_part(&self, range: &KeyRange) -> Key {
        self.route(range).pop().map_or_else(|| range.start.clone(), |r| r.start.max(range.start.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use isochrone_base::{Bytes, TxnId};
    use isochrone_env::fake::{ManualClock, NoWait};
    use isochrone_net::PeerStatus;
    use isochrone_shard::api::{Mode, PieceRef, Write};
    use isochrone_shard::command::{Command, Entry, LoggedPiece};
    use isochrone_shard::{
        Applied, Closed, ClosedNews, Config, NewShard, ProposeError, Proposer, Routing, Shards,
    };
    use isochrone_storage::MemEngine;

    use super::*;

    /// Counts the calls, and reaches nobody.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Network for Counting {
        fn send(&self, _: NodeId, _: Bytes) -> bool {
            false
        }
        fn call(
            &self,
            _: NodeId,
            _: Lane,
            _: Bytes,
            _: Duration,
        ) -> isochrone_net::BoxFuture<'static, Result<Bytes, CallError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(Err(CallError::NotSent("nobody is there".into()))))
        }
        fn set_peer(&self, _: NodeId, _: &str) {}
        fn peers(&self) -> Vec<PeerStatus> {
            Vec::new()
        }
    }

    struct Never;

    impl Proposer for Never {
        fn propose(
            &self,
            _: ShardId,
            _: isochrone_base::Term,
            _: Bytes,
        ) -> BoxFuture<'static, Result<Applied, ProposeError>> {
            Box::pin(std::future::ready(Err(ProposeError::NotLeader)))
        }
    }

    /// R6: a gateway with a replica asks nobody for what is old enough: for one key, for a range, for what is not there. For
    /// anything newer it asks the leaseholder.
    #[tokio::test]
    async fn reads_of_the_past_take_no_hop() {
        let engine: Arc<dyn isochrone_storage::Engine> = Arc::new(MemEngine::new());
        let voters: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let new = NewShard { shard: ShardId(1), range: KeyRange::all(), voters, applied: 10 };
        Shards::bootstrap(&*engine, &[new]).unwrap();
        let clock = Arc::new(Hlc::new(Arc::new(ManualClock::new(1_000_000)), Timestamp::MIN));
        let shards = Shards::open(engine, NodeId(2), clock.clone(), Config::default()).unwrap();
        shards.follow(ShardId(1), Some(NodeId(1)));
        let p = Timestamp::from_micros(500_000);
        let piece = Piece {
            txn: TxnId(1),
            piece: 0,
            pieces: vec![PieceRef { piece: 0, key: b"k".to_vec() }],
            anchor: 0,
            candidate: p,
            mode: Mode::AtMax,
            deadline: p.plus_micros(1_000_000),
            max_ts: Timestamp::MAX,
            writes: vec![Write { key: b"k".to_vec(), value: Some(Bytes::from_static(b"v")), seen: None }],
            validate: Vec::new(),
            validated_elsewhere: false,
        };
        let command = Command::Commit1 { piece: LoggedPiece::of(&piece), p };
        let entry = Entry { term: 6, seq: 1, closed: Timestamp::MIN, read_limit: p, command };
        shards.apply_entries(ShardId(1), &[(11, 6, entry.encode())]).unwrap();
        let local = Arc::new(LocalShards::new(shards, Arc::new(Never), Arc::new(NoWait), Routing::Cluster));
        let network = Arc::new(Counting::default());
        let router = Router::new(NodeId(2), local.clone(), clock, network.clone());
        let closed = p.plus_micros(1_000);
        let told = Closed { shard: ShardId(1), index: 11, closed };
        local.hear_closed(&ClosedNews { closed: vec![told], wanted: vec![] });

        let who = |ts| ReadAs { txn: TxnId(9), ts, uncertain_to: ts };
        assert_eq!(local.readable_here(&[KeyRange::all()]), Some(closed));
        for ts in [p, closed] {
            let seen = router.get(who(ts), b"k").await.unwrap().unwrap();
            assert_eq!((seen.value.as_ref(), seen.ts), (b"v".as_slice(), p));
            assert_eq!(router.get(who(ts), b"none").await, Ok(None));
            for reverse in [false, true] {
                let page = router.scan(who(ts), &KeyRange::all(), reverse, 10, 1_000).await.unwrap();
                assert_eq!((page.rows.len(), page.rest, page.newest), (1, None, p));
            }
        }
        assert_eq!(router.get(who(p.prev()), b"k").await, Ok(None));
        assert_eq!((router.hops(), network.0.load(Ordering::Relaxed)), (0, 0));
        // Not closed yet; with a window.
        assert!(router.get(who(closed.next()), b"k").await.is_err());
        let window = ReadAs { uncertain_to: closed.next(), ..who(closed) };
        assert!(router.scan(window, &KeyRange::all(), false, 10, 1_000).await.is_err());
        assert!(router.hops() >= 2);
        assert_eq!(router.hops(), network.0.load(Ordering::Relaxed) as u64);
    }

    /// Some nodes have a shard, and nothing in it; who was asked; and whether nobody can be reached at all.
    struct Holders(Mutex<(Vec<NodeId>, Vec<NodeId>)>, AtomicBool);

    impl Network for Holders {
        fn send(&self, _: NodeId, _: Bytes) -> bool {
            false
        }
        fn call(
            &self,
            node: NodeId,
            _: Lane,
            body: Bytes,
            _: Duration,
        ) -> isochrone_net::BoxFuture<'static, Result<Bytes, CallError>> {
            let (_, body) = super::super::take_stamp(body.slice(1..)).unwrap();
            let request = Request::decode(body).unwrap();
            let (holders, asked) = &mut *self.0.lock().unwrap();
            asked.push(node);
            if self.1.load(Ordering::Relaxed) {
                return Box::pin(std::future::ready(Err(CallError::NotSent("it is gone".into()))));
            }
            let response = match (holders.contains(&node), request.key()) {
                (true, b"split") => Response::Prepared(Prepared::OutOfRange),
                (true, _) => Response::Seen(None),
                (false, _) => Response::Error(Error::NotServed("no shard of this node holds it".into())),
            };
            let mut answer = Vec::new();
            put_ts(&mut answer, Timestamp::MIN);
            answer.extend_from_slice(&response.encode());
            Box::pin(std::future::ready(Ok(answer.into())))
        }
        fn set_peer(&self, _: NodeId, _: &str) {}
        fn peers(&self) -> Vec<PeerStatus> {
            Vec::new()
        }
    }

    /// Whoever led a shard may have left its group: it says so, and is not asked for ever.
    #[tokio::test]
    async fn who_has_no_replica_any_more_costs_a_hop() {
        let clock = Arc::new(Hlc::new(Arc::new(ManualClock::new(1_000_000)), Timestamp::MIN));
        let engine = Arc::new(MemEngine::new());
        let shards = Shards::open(engine, NodeId(5), clock.clone(), Config::default()).unwrap();
        let local = Arc::new(LocalShards::new(shards, Arc::new(Never), Arc::new(NoWait), Routing::Cluster));
        let network = Arc::new(Holders(Mutex::new((vec![NodeId(3)], Vec::new())), AtomicBool::new(false)));
        let router = Router::new(NodeId(5), local, clock, network.clone());
        let heard = ReplicaStatus {
            shard: ShardId(1),
            range: KeyRange::all(),
            epoch: 1,
            members: vec![NodeId(1), NodeId(3)].into(),
            leader: Some(NodeId(1)),
            term: 6,
            first_index: 1,
            last_index: 10,
            applied: 10,
            bytes: 0,
        };
        router.hear(vec![heard.clone()]);
        let who = ReadAs { txn: TxnId(9), ts: Timestamp::from_micros(9), uncertain_to: Timestamp::MAX };
        let asked = || std::mem::take(&mut network.0.lock().unwrap().1);
        for expected in [vec![NodeId(1), NodeId(3)], vec![NodeId(3)]] {
            assert_eq!(router.get(who, b"k").await, Ok(None));
            assert_eq!(asked(), expected);
        }
        assert!(router.knows_everything());
        // It was split, and nobody said so: others are asked where its keys are. Until they say so it is asked as before.
        let piece = PieceId { txn: TxnId(9), piece: 0, key: b"split".to_vec(), deadline: Timestamp::MAX };
        assert!(router.probe(piece).await.is_err() && !router.knows_everything());
        assert_eq!(asked(), [NodeId(3)]);
        router.hear(Vec::new());
        assert!(!router.knows_everything(), "nobody said anything");
        assert_eq!((router.get(who, b"k").await, asked()), (Ok(None), vec![NodeId(3)]));
        // Of what is said the newest counts, whoever is heard last.
        let moved =
            ReplicaStatus { members: vec![NodeId(3), NodeId(4)].into(), applied: 12, ..heard.clone() };
        router.hear(vec![moved, heard.clone()]);
        assert!(router.knows_everything());
        // All of them left, or their machines are gone: what was heard is of no use.
        for is_gone in [false, true] {
            *network.0.lock().unwrap() = (Vec::new(), Vec::new());
            network.1.store(is_gone, Ordering::Relaxed);
            assert!(router.get(who, b"k").await.is_err());
            assert_eq!(asked().len(), 2);
            assert!(!router.knows_everything(), "gone: {is_gone}");
            router.hear(vec![heard.clone()]);
            assert!(router.knows_everything());
        }
    }

    #[test]
    fn parts_do_not_overlap_where_a_shard_is_not_known() {
        let known = KeyRange::new(*b"b", *b"f");
        let route_key = |key: &[u8]| if known.contains(key) { known.clone() } else { KeyRange::all() };
        let whole = KeyRange::new(*b"c", *b"x");
        let cut = parts(&whole, route_key);
        assert_eq!(cut, [known.clone(), KeyRange::new(*b"f", *b"")]);
        // Each part of a span, cut again, is itself.
        for part in cut.iter().map(|p| p.intersect(&whole)) {
            let again: Vec<KeyRange> = parts(&part, route_key).iter().map(|p| p.intersect(&part)).collect();
            assert_eq!(again, [part]);
        }
        assert_eq!(parts(&KeyRange::new(*b"g", *b"h"), route_key), [KeyRange::all()]);
    }
}
