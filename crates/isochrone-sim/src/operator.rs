//! Who replaces nodes, as people with `isochrone node replace` would: one that is there when the nemesis asks for it, or one whose
//! disk is gone.
//!
//! Every node has somebody who looks once in a while, so that no node's death keeps a lost one from being replaced. They know what
//! the cluster knows: whom it was asked to have as voters, and who can be reached.

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_env::SplitMix64;
use isochrone_server::Node;
use isochrone_txn::kv::Error;

use crate::options::Fault;
use crate::world::{Phase, World};

/// The pause between two looks is between this and twice as much.
const LOOK_MS: u64 = 500;

/// Looks for as long as the node lives.
pub(crate) async fn operator(world: Arc<World>, node: Arc<Node>, life: u64) {
    if world.options.rate(Fault::Replace) + world.options.rate(Fault::Wipe) == 0 {
        return;
    }
    let random = SplitMix64::split(world.options.seed, &format!("operator {}.{life}", node.id));
    loop {
        tokio::time::sleep(Duration::from_millis(LOOK_MS + random.below(LOOK_MS))).await;
        // Nobody answers, or not now: tried again.
        let Ok(voters) = node.cluster.wished_voters().await else { continue };
        // Looked at last: who the core is was chosen by what was wished for until then.
        if world.phase() == Phase::Core {
            continue;
        }
        let Some((old, new)) = change(&world, &voters) else { continue };
        let mut wish: Vec<NodeId> = voters.into_iter().filter(|n| *n != old).chain([new]).collect();
        wish.sort_unstable();
        world.wished(wish.clone());
        let asked = node.cluster.replace(old, new).await;
        match &asked {
            Ok(_) => world.wish_ended(&wish, true),
            Err(Error::NoSuch(_)) => world.wish_ended(&wish, false),
            Err(_) => {}
        }
        world.note("asked to replace", &[u64::from(old.0), u64::from(new.0), u64::from(asked.is_ok())]);
    }
}

/// Whose place is to be given to whom.
fn change(world: &World, voters: &[NodeId]) -> Option<(NodeId, NodeId)> {
    let others: Vec<NodeId> = world.nodes().into_iter().filter(|n| !voters.contains(n)).collect();
    let gone = voters.iter().find(|n| !world.is_present(**n));
    let number = match gone {
        // The newest: it has no replica that still is to go.
        Some(old) => return Some((*old, *others.last()?)),
        None if world.phase() <= Phase::Chaos => world.take_order()?,
        None => return None,
    };
    let new = others.get(number as usize % others.len().max(1))?;
    Some((voters[(number >> 32) as usize % voters.len()], *new))
}
