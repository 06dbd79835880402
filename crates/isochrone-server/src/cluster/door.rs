//! The cluster port: who is let in, and to whom what arrives belongs.
//!
//! The port is open before the node has an identity: until then it answers operators ([`isochrone_api`]) and the node
//! that chooses it ([`Kind::Adopt`]); everything else hears that this node is no member yet.
//!
//! Invariant B5: while a node is heard from one address, nobody else is let in under its id. So a copied data directory,
//! started beside the original, is turned away and says why.

use std::sync::{Arc, OnceLock};

use isochrone_api as api;
use isochrone_base::{Bytes, NodeId};
use isochrone_net::{BoxFuture, Hello, Service};

use super::Cluster;
use super::bootstrap::{Bootstrap, COPY};
use super::message::{Address, Kind, Membership, Message};

/// See the module.
pub struct FrontDoor {
    bootstrap: Arc<Bootstrap>,
    cluster: OnceLock<Arc<Cluster>>,
}

impl FrontDoor {
    /// Before there is a node.
    pub fn new(bootstrap: Arc<Bootstrap>) -> Arc<FrontDoor> {
        Arc::new(FrontDoor { bootstrap, cluster: OnceLock::new() })
    }

    /// The node is there. Once.
    pub fn open(&self, cluster: Arc<Cluster>) {
        let _second = self.cluster.set(cluster);
    }

    fn not_yet(&self) -> String {
        match self.bootstrap.identity() {
            None => "this node is not a member of a cluster yet: run `isochrone init`".into(),
            Some(_) => "this node is starting".into(),
        }
    }
}

impl Service for FrontDoor {
    fn hello(&self) -> Hello {
        self.bootstrap.hello()
    }

    fn accept(&self, peer: &Hello) -> Result<(), String> {
        let Some(identity) = self.bootstrap.identity() else { return Ok(()) };
        if peer.node == identity.node
            && peer.cluster == identity.cluster
            && peer.address != self.hello().address
        {
            return Err(format!(
                "node {} is running at {}: this is {COPY}; every node needs a directory of its own",
                identity.node,
                self.hello().address
            ));
        }
        let Some(cluster) = self.cluster.get() else { return Ok(()) };
        let known = cluster.network.peers().into_iter().find(|p| p.node == peer.node);
        match known {
            // B5.
            Some(p)
                if peer.node.0 != 0
                    && p.connected
                    && p.address != peer.address
                    && cluster.live().contains(&p.node) =>
            {
                Err(format!(
                    "node {} is running at {}, and {} has {COPY}: every node needs a directory of its own",
                    peer.node, p.address, peer.address
                ))
            }
            // It tells where it is now.
            Some(p) if peer.node.0 != 0 && p.address != peer.address => {
                cluster.network.set_peer(peer.node, &peer.address);
                Ok(())
            }
            None if peer.node.0 != 0 && peer.cluster != 0 => {
                cluster.network.set_peer(peer.node, &peer.address);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn message(&self, from: NodeId, payload: Bytes) {
        // A node that starts hears Raft's messages too early; they are sent again.
        if let Some(cluster) = self.cluster.get() {
            cluster.message(from, payload);
        }
    }

    fn call(&self, from: Hello, payload: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        if payload.is_empty() {
            // Who only wants the handshake.
            return Box::pin(std::future::ready(Ok(Bytes::new())));
        }
        let (bootstrap, cluster) = (self.bootstrap.clone(), self.cluster.get().cloned());
        let not_yet = self.not_yet();
        Box::pin(async move {
            let (kind, body) = Kind::split(&payload).map_err(|e| e.to_string())?;
            match kind {
                Kind::Admin => {
                    let request = api::Request::decode(payload).map_err(|e| e.to_string())?;
                    Ok(admin(&bootstrap, cluster.as_ref(), request, not_yet).await.encode())
                }
                Kind::Adopt => {
                    let membership = Membership::decode(body).map_err(|e| e.to_string())?;
                    bootstrap.adopt(&membership)?;
                    Ok(Bytes::new())
                }
                Kind::Register => {
                    let address = Address::decode(body.clone()).map_err(|e| e.to_string())?.address;
                    if let Some(membership) = bootstrap.chosen(&address) {
                        return Ok(membership.encode().into()); // B3
                    }
                    let cluster = cluster.ok_or(not_yet)?;
                    if let Some(node) = bootstrap.chosen_at(&address) {
                        let (_, seen) = cluster.liveness.records().await.map_err(|e| e.to_string())?;
                        if !seen.iter().any(|record| record.node == node) {
                            return Err(format!(
                                "{address} was chosen as node {node} when the cluster was made, and that node was never seen: \
                                 the node that made the cluster tells it so; start this one with --join of that one"
                            )); // B3
                        }
                    }
                    cluster.call(from, payload).await
                }
                _ => cluster.ok_or(not_yet)?.call(from, payload).await,
            }
        })
    }

    fn connected(&self, node: NodeId) {
        if let Some(cluster) = self.cluster.get() {
            cluster.connected(node);
        }
    }

    fn disconnected(&self, node: NodeId) {
        if let Some(cluster) = self.cluster.get() {
            cluster.disconnected(node);
        }
    }
}

async fn admin(
    bootstrap: &Bootstrap,
    cluster: Option<&Arc<Cluster>>,
    request: api::Request,
    not_yet: String,
) -> api::Response {
    if request == api::Request::Init {
        return bootstrap.init().await;
    }
    let Some(cluster) = cluster else { return api::Response::Error { message: not_yet } };
    match request {
        api::Request::Init => unreachable!("answered above"),
        api::Request::NodeList => cluster.node_rows().await,
        api::Request::Drain { node } => cluster.drain_step(node).await,
        api::Request::Replace { old, new } => cluster.replace_step(old, new).await,
    }
}
