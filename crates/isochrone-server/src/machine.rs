//! Two adapters where the crates meet: consensus applies entries to shards, and shards propose entries to consensus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, LogIndex, NodeId, ShardId, Term};
use isochrone_consensus as consensus;
use isochrone_shard::api::BoxFuture;
use isochrone_shard::{Applied, ProposeError, Proposer, Shards};

/// Applies committed entries to the shards, and remembers how far the engine's visible state goes.
pub struct Machine {
    shards: Arc<Shards>,
    node: NodeId,
    /// Applied and written to the engine, by shard: what a flush that begins now will hold. Apart from the shards' own
    /// applied index, which runs ahead of the engine for a moment.
    written: Mutex<BTreeMap<ShardId, LogIndex>>,
}

impl Machine {
    /// For the shards of a node, which is the one voter of shards that a split creates.
    pub fn new(shards: Arc<Shards>, node: NodeId) -> Machine {
        let written = shards.list().into_iter().map(|m| (m.shard, m.applied)).collect();
        Machine { shards, node, written: Mutex::new(written) }
    }

    /// What the engine's next flush will hold, at least.
    pub fn written(&self) -> Vec<(ShardId, LogIndex)> {
        let written = self.written.lock().expect("nothing panics while it is held");
        written.iter().map(|(s, i)| (*s, *i)).collect()
    }
}

impl consensus::StateMachine for Machine {
    fn apply(
        &self,
        shard: ShardId,
        entries: &[consensus::CommittedEntry],
    ) -> Result<Vec<consensus::NewGroup>, consensus::ApplyError> {
        let Some(last) = entries.last().map(|e| e.index) else { return Ok(Vec::new()) };
        let entries: Vec<_> = entries.iter().map(|e| (e.index, e.term, e.payload.clone())).collect();
        let created = self.shards.apply_entries(shard, &entries).map_err(|e| consensus::ApplyError {
            shard,
            index: e.index,
            reason: e.reason,
        })?;
        self.written.lock().expect("nothing panics while it is held").insert(shard, last);
        let group = |m: isochrone_shard::ShardMeta| consensus::NewGroup {
            shard: m.shard,
            voters: vec![self.node],
            applied: m.applied,
        };
        Ok(created.into_iter().map(group).collect())
    }

    fn role(&self, shard: ShardId, role: consensus::Role) {
        match role {
            consensus::Role::Leader(term) => self.shards.lead(shard, term),
            consensus::Role::Follower(..) => self.shards.follow(shard),
        }
    }

    fn stopped(&self, reason: &str) {
        self.shards.stop(reason);
    }
}

/// Hands shards' proposals to the store loop.
pub struct ToConsensus(pub consensus::Handle);

impl Proposer for ToConsensus {
    fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        let answer = self.0.propose(shard, term, payload);
        Box::pin(async move {
            match answer.await {
                Ok(Ok(index)) => Ok(Applied { index }),
                Ok(Err(consensus::ProposeError::NotLeader(_))) => Err(ProposeError::NotLeader),
                Ok(Err(consensus::ProposeError::Overloaded)) => Err(ProposeError::Overloaded),
                Ok(Err(consensus::ProposeError::Ambiguous(why))) => Err(ProposeError::Ambiguous(why)),
                Ok(Err(consensus::ProposeError::Stopped(why))) => Err(ProposeError::Stopped(why)),
                Err(_) => Err(ProposeError::Ambiguous("the store loop has ended".into())),
            }
        })
    }
}
