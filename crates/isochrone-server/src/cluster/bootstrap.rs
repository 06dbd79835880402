//! How a node gets its identity: by itself, by `isochrone init`, or from a cluster that runs.
//!
//!     start --join A,B,C     no identity: waits, and answers its peers' and operators' calls meanwhile
//!       init ──▶ A           A waits until three listed nodes answer, makes the cluster's id, writes its own identity,
//!                │           and tells the two others theirs (adopt), again and again until both have it
//!                ├─ adopt ─▶ B
//!                └─ adopt ─▶ C
//!     start --join A ─▶ D    a cluster runs: D registers and gets the next id; it holds no shards yet
//!
//! Invariants
//!   B1  A node's identity is on disk, durably, before it says that it has one.
//!   B2  The node that was told to `init` writes where the chosen ones are, then its own identity with the voters, before it
//!       tells anybody: whatever crashes, it goes on with the same cluster and the same three.
//!   B3  A node that was chosen is never registered as another one: who registers from the address of a chosen node
//!       gets the identity that was chosen for it.
//!       Only the node that made the cluster says so: the others let nobody in from there before that one has been seen.
//!   B6  A node that has its identity is never told it again: whoever comes with an empty disk from its address has
//!       forgotten what the node voted for and acknowledged, and is another node. That it has it is on disk where the cluster was made.
//!   B4  Only a node without an identity adopts one (D3 of `datadir`).
//!
//! The chosen three bootstrap the same first shards by themselves: their initial state is the same constant on each.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use isochrone_api as api;
use isochrone_base::{Bytes, NodeId};
use isochrone_env::Env;
use isochrone_net::{CallError, Hello, call_once};
use tokio::sync::watch;

use super::message::{Address, Kind, Membership, Message};
use crate::datadir::{self, Identity};

/// Replicas of every shard of a new cluster.
pub const REPLICAS: usize = 3;
/// Longest wait for one peer's answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause between two rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct State {
    /// Voters that have their identity; the others are told theirs.
    adopted: BTreeSet<NodeId>,
    /// `init` was done by this process, and the answer was given.
    made_here: Option<bool>,
}

/// See the module.
pub struct Bootstrap {
    env: Env,
    dir: PathBuf,
    /// Where others reach this node.
    address: String,
    /// The cluster addresses that the operator gave.
    join: Vec<String>,
    state: Mutex<State>,
    identity: watch::Sender<Option<Identity>>,
    /// One `init` at a time.
    initialising: tokio::sync::Mutex<()>,
}

/// How nodes tell that somebody has started a copy of a data directory.
pub(super) const COPY: &str = "a copy of its data directory";

/// What one listed address answered.
struct Answered {
    listed: String,
    hello: Result<Hello, String>,
}

impl Bootstrap {
    /// For a directory that is locked. `address` is where others reach this node.
    pub fn new(
        env: Env,
        dir: PathBuf,
        address: String,
        join: Vec<String>,
    ) -> Result<Bootstrap, datadir::Error> {
        let identity = match datadir::identity(&env, &dir)? {
            None if join.is_empty() => Some(datadir::create_alone(&env, &dir)?),
            found => found,
        };
        let (identity, _) = watch::channel(identity);
        let state = State { adopted: datadir::read_adopted(&env, &dir), made_here: None };
        Ok(Bootstrap {
            env,
            dir,
            address,
            join,
            state: Mutex::new(state),
            identity,
            initialising: tokio::sync::Mutex::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// The identity, if there is one yet.
    pub fn identity(&self) -> Option<Identity> {
        self.identity.borrow().clone()
    }

    /// What this node says of itself in handshakes.
    pub fn hello(&self) -> Hello {
        let (cluster, node) = self.identity().map_or((0, NodeId(0)), |i| (i.cluster, i.node));
        Hello { cluster, node, address: self.address.clone() }
    }

    /// Where other nodes were last seen, and the addresses that the operator gave.
    pub fn peers(&self) -> Vec<(NodeId, String)> {
        datadir::read_peers(&self.env, &self.dir)
    }

    /// B1, B4: takes an identity that another node has chosen.
    pub fn adopt(&self, membership: &Membership) -> Result<(), String> {
        let identity = Identity {
            cluster: membership.cluster,
            node: membership.node,
            voters: membership.voters.clone(),
        };
        if let Some(old) = self.identity() {
            return if old == identity {
                Ok(())
            } else {
                Err(format!("this is node {} of cluster {:032x} already", old.node, old.cluster))
            };
        }
        self.become_member(&identity, &membership.peers).map_err(|e| e.to_string())
    }

    fn become_member(&self, identity: &Identity, peers: &[Address]) -> Result<(), datadir::Error> {
        let peers: Vec<_> =
            peers.iter().filter(|p| p.node != identity.node).map(|p| (p.node, p.address.clone())).collect();
        datadir::write_peers(&self.env, &self.dir, &peers)?;
        datadir::adopt(&self.env, &self.dir, identity)?;
        self.identity.send_replace(Some(identity.clone()));
        Ok(())
    }

    async fn ask(&self, address: &str) -> Result<Hello, String> {
        let hello = self.hello();
        // An empty question: the handshake is what we want.
        match call_once(address, hello, Bytes::new(), ANSWER_WAIT_MAX).await {
            Ok((theirs, _)) => Ok(theirs),
            Err(CallError::Refused(why) | CallError::NotSent(why) | CallError::Lost(why)) => Err(why),
        }
    }

    /// Asks those that this node knows before it starts with the identity it has: refuses to be a node that runs
    /// elsewhere, because somebody has copied its data directory (B5 of the front door), and complains about addresses that
    /// belong to another cluster.
    pub async fn look_around(&self) -> Result<(), String> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let known = self.peers().into_iter().map(|(_, address)| address);
        let known: BTreeSet<String> = known.chain(self.join.iter().cloned()).collect();
        let asked = known.iter().map(|address| async move { (address, self.ask(address).await) });
        for (address, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Err(why) if why.contains(COPY) && !identity.is_alone() => return Err(why),
                Err(why) if why.contains("another cluster") => {
                    tracing::error!(
                        address,
                        why,
                        "--join has no effect: this directory belongs to node {} of cluster {:032x}, and that is another \
                         cluster; start with an empty directory to join it",
                        identity.node,
                        identity.cluster
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn ask_all(&self) -> Vec<Answered> {
        let asked = self
            .join
            .iter()
            .map(|listed| async move { Answered { listed: listed.clone(), hello: self.ask(listed).await } });
        futures_util::future::join_all(asked).await
    }

    /// One step of `isochrone init`: asked again and again until it is done.
    pub async fn init(&self) -> api::Response {
        let _one = self.initialising.lock().await;
        if let Some(identity) = self.identity() {
            return self.init_progress(&identity).await;
        }
        let mut chosen = vec![self.address.clone()];
        let mut missing = Vec::new();
        for answer in self.ask_all().await {
            match answer.hello {
                Ok(hello) if hello.cluster != 0 => {
                    return api::Response::Error {
                        message: format!(
                            "{} is node {} of cluster {:032x} already: start this node with --join {} on an empty \
                             directory to join that one",
                            answer.listed, hello.node, hello.cluster, answer.listed
                        ),
                    };
                }
                Ok(hello) if chosen.contains(&hello.address) => {}
                Ok(hello) => chosen.push(hello.address),
                Err(why) => missing.push(format!("{} ({why})", answer.listed)),
            }
        }
        if chosen.len() < REPLICAS {
            if missing.is_empty() {
                return api::Response::Error {
                    message: format!(
                        "a cluster needs {REPLICAS} nodes, and --join of this one names only {}: restart it with the \
                         cluster addresses of {REPLICAS} nodes",
                        self.join.join(",")
                    ),
                };
            }
            return api::Response::Waiting { answered: chosen, missing };
        }
        chosen.truncate(REPLICAS);
        let voters: Vec<NodeId> = (1..=REPLICAS as u32).map(NodeId).collect();
        let peers: Vec<Address> =
            voters.iter().zip(chosen).map(|(node, address)| Address { node: *node, address }).collect();
        let identity = Identity { cluster: self.env.random.next_u128(), node: NodeId(1), voters };
        self.state().made_here = Some(false);
        if let Err(error) = self.become_member(&identity, &peers) {
            return api::Response::Error { message: error.to_string() };
        }
        self.init_progress(&identity).await
    }

    /// What to say of an `init` when there is an identity.
    async fn init_progress(&self, identity: &Identity) -> api::Response {
        let already = api::Response::AlreadyInitialised { cluster: identity.cluster, node: identity.node };
        if self.state().made_here != Some(false) {
            return already;
        }
        self.adopt_round(identity).await;
        let mut nodes = vec![(identity.node, self.address.clone())];
        nodes.extend(self.peers());
        let mut state = self.state();
        let name =
            |n: &NodeId| nodes.iter().find(|(node, _)| node == n).map_or(String::new(), |(_, a)| a.clone());
        let others = || identity.voters.iter().filter(|n| **n != identity.node);
        let missing: Vec<String> = others().filter(|n| !state.adopted.contains(n)).map(name).collect();
        if !missing.is_empty() {
            let answered = identity.voters.iter().map(name).filter(|a| !missing.contains(a)).collect();
            return api::Response::Waiting { answered, missing };
        }
        state.made_here = Some(true);
        api::Response::Initialised { cluster: identity.cluster, nodes }
    }

    /// B2: tells the voters that have no identity yet theirs.
    async fn adopt_round(&self, identity: &Identity) {
        let known = self.peers();
        let mut peers: Vec<Address> =
            known.iter().map(|(node, address)| Address { node: *node, address: address.clone() }).collect();
        peers.push(Address { node: identity.node, address: self.address.clone() });
        for (node, address) in known.iter().filter(|(n, _)| identity.voters.contains(n)) {
            if self.state().adopted.contains(node) {
                continue;
            }
            let membership = Membership {
                cluster: identity.cluster,
                node: *node,
                voters: identity.voters.clone(),
                peers: peers.clone(),
            };
            let payload = Kind::Adopt.wrap(&membership.encode());
            match call_once(address, self.hello(), payload, ANSWER_WAIT_MAX).await {
                Ok(_) => self.has_its_identity(*node),
                Err(CallError::Refused(why)) => {
                    tracing::error!(%node, address, why, "a chosen node does not become a member");
                }
                Err(error) => tracing::debug!(%node, address, %error, "a chosen node does not answer yet"),
            }
        }
    }

    /// B6.
    fn has_its_identity(&self, node: NodeId) {
        let mut adopted = self.state().adopted.clone();
        adopted.insert(node);
        // Told again after a restart, if it cannot be written.
        if let Err(error) = datadir::write_adopted(&self.env, &self.dir, &adopted) {
            tracing::error!(%error, "that node {node} has its identity was not written down");
        }
        self.state().adopted = adopted;
    }

    /// Until every voter has its identity. Only the node that made the cluster has to.
    pub async fn adopt_others(&self) {
        let Some(identity) = self.identity().filter(|i| i.node == NodeId(1)) else { return };
        loop {
            self.adopt_round(&identity).await;
            let state = self.state().adopted.clone();
            if identity.voters.iter().all(|n| *n == identity.node || state.contains(n)) {
                return;
            }
            self.env.timer.sleep(ROUND_PAUSE).await;
        }
    }

    /// The node that was chosen at this address when the cluster was made.
    pub fn chosen_at(&self, address: &str) -> Option<NodeId> {
        let identity = self.identity()?;
        self.peers().into_iter().find(|(n, a)| a == address && identity.voters.contains(n)).map(|(n, _)| n)
    }

    /// B3, B6: the identity that was chosen for the node at this address, where the cluster was made, and if the node has not
    /// got it yet. Somebody else at its old address is nobody who was chosen.
    pub fn chosen(&self, address: &str) -> Option<Membership> {
        let identity = self.identity().filter(|i| i.node == NodeId(1))?;
        let node = self.chosen_at(address).filter(|node| !self.state().adopted.contains(node))?;
        let known = self.peers();
        let mut peers: Vec<Address> =
            known.into_iter().map(|(node, address)| Address { node, address }).collect();
        peers.push(Address { node: identity.node, address: self.address.clone() });
        Some(Membership { cluster: identity.cluster, node, voters: identity.voters, peers })
    }

    /// Waits until this node has an identity: adopted, made by `init`, or got from a running cluster.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub async fn wait(&self) -> anyhow::Result<Identity> {
        let mut changed = self.identity.subscribe();
        let mut told = BTreeSet::new();
        loop {
            if let Some(identity) = self.identity() {
                return Ok(identity);
            }
            tokio::select! {
                biased;
                _ = changed.changed() => continue,
                () = self.try_to_register(&mut told) => {}
            }
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = self.env.timer.sleep(ROUND_PAUSE) => {}
            }
        }
    }

    /// Asks a running cluster for an identity, if a listed node is of one.
    async fn try_to_register(&self, told: &mut BTreeSet<String>) {
        for answer in self.ask_all().await {
            let hello = match answer.hello {
                Ok(hello) => hello,
                Err(why) => {
                    let said = format!("{}: {why}", answer.listed);
                    if told.insert(said.clone()) {
                        tracing::warn!("--join {said}; tried again until it answers");
                    }
                    continue;
                }
            };
            if hello.cluster == 0 {
                continue;
            }
            let payload =
                Kind::Register.wrap(&Address { node: NodeId(0), address: self.address.clone() }.encode());
            let answer = call_once(&answer.listed, self.hello(), payload, ANSWER_WAIT_MAX * 5).await;
            let membership = answer
                .map_err(|e| e.to_string())
                .and_then(|(_, bytes)| Membership::decode(bytes).map_err(|e| e.to_string()))
                .and_then(|m| self.adopt(&m).map(|()| m));
            match membership {
                Ok(m) => {
                    tracing::info!(node = %m.node, cluster = %format!("{:032x}", m.cluster), "joined");
                    return;
                }
                Err(why) => {
                    if told.insert(why.clone()) {
                        tracing::warn!(why, "the cluster does not take this node yet; tried again");
                    }
                }
            }
        }
    }
}
