//! Snapshots of shards on their way between nodes.
//!
//!     leader   store loop ── source, Raft's message ──▶ task ── part 0, 1, 2 .. (bulk stream) ──▶ follower
//!     follower part ──▶ staged file ── last part: synced ──▶ store loop: Raft takes it ──▶ installed in the background
//!
//! Invariant: Raft hears of a snapshot only when all of it is in a synced file here. So an install that a crash interrupts can
//! be done again from the file ([`reinstall`]), and a snapshot of which a part is missing is none.
//!
//! Bounds: [`SENDING_MAX`] and [`RECEIVING_MAX`] at once; more are refused, and Raft tries again. A part that does not come in
//! time ends the transfer at both ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use isochrone_base::held::Held;
use isochrone_base::{Bytes, NodeId, ShardId};
use isochrone_consensus::{Handle, OutgoingSnapshot, RaftMessage, SnapshotMeta, shell, wire};
use isochrone_env::Env;
use isochrone_net::{Lane, Network};
use isochrone_shard::snapshot::Staged;
use tokio::sync::Semaphore;

use super::Cluster;
use super::message::{Kind, Message, SnapshotPart};

/// Bytes of rows in one part, about.
const PART_BYTES: usize = 512 << 10;
/// Snapshots being sent at once.
const SENDING_MAX: usize = 2;
/// Snapshots being received at once.
const RECEIVING_MAX: usize = 4;
/// Longest wait for a part to be taken.
const PART_WAIT_MAX: Duration = Duration::from_secs(20);
/// A transfer whose next part does not come for this long makes room for others.
const IDLE_MAX: Duration = Duration::from_secs(30);

struct Receiving {
    from: NodeId,
    index: u64,
    next_seq: u64,
    heard_ns: u64,
    staged: Staged,
}

/// Snapshots that are arriving.
pub struct Incoming {
    dir: PathBuf,
    receiving: Mutex<BTreeMap<ShardId, Receiving>>,
}

impl Incoming {
    /// Files are staged in this directory.
    pub fn new(dir: PathBuf) -> Incoming {
        Incoming { dir, receiving: Mutex::new(BTreeMap::new()) }
    }

    fn receiving(&self) -> MutexGuard<'_, BTreeMap<ShardId, Receiving>> {
        self.receiving.lock().expect("nothing panics while it is held")
    }

    /// Snapshots that are arriving. Their parts are in files.
    pub(crate) fn held(&self) -> Held {
        Held::counted("snapshots.arriving", self.receiving().len(), RECEIVING_MAX, size_of::<Receiving>())
    }

    /// Takes one part; the last one gives the snapshot and Raft's message.
    fn take(
        &self,
        env: &Env,
        from: NodeId,
        part: SnapshotPart,
    ) -> Result<Option<(SnapshotMeta, Bytes)>, String> {
        let now_ns = env.clock.monotonic_ns();
        let mut all = self.receiving();
        let idle_ns = IDLE_MAX.as_nanos() as u64;
        all.retain(|_, r| now_ns.saturating_sub(r.heard_ns) < idle_ns); // their files go at the next start
        if part.seq == 0 {
            // The sender begins anew; what it sent before is worth nothing.
            all.remove(&part.shard);
            if all.len() >= RECEIVING_MAX {
                return Err("too many snapshots are arriving".into());
            }
            let staged = Staged::create(env.disk.clone(), &self.dir, part.shard, part.index);
            let staged = staged.map_err(|e| e.to_string())?;
            let receiving = Receiving { from, index: part.index, next_seq: 0, heard_ns: now_ns, staged };
            all.insert(part.shard, receiving);
        }
        let expected = all
            .get_mut(&part.shard)
            .filter(|r| r.from == from && r.index == part.index && r.next_seq == part.seq);
        let Some(receiving) = expected else {
            return Err(format!("part {} of a snapshot of shard {} was not expected", part.seq, part.shard));
        };
        receiving.next_seq += 1;
        receiving.heard_ns = now_ns;
        if !part.last {
            return receiving.staged.append(&part.body).map(|()| None).map_err(|e| e.to_string());
        }
        let receiving = all.remove(&part.shard).expect("found just now");
        let SnapshotPart { shard, index, term, members, body, .. } = part;
        let staged = isochrone_shard::SnapshotMeta { shard, index, term, members: members.clone() };
        receiving.staged.finish(&staged).map_err(|e| e.to_string())?;
        Ok(Some((SnapshotMeta { index, term, members }, body)))
    }
}

/// A part arrives.
pub(crate) async fn receive(cluster: &Arc<Cluster>, from: NodeId, body: Bytes) -> Result<Bytes, String> {
    let part = SnapshotPart::decode(body).map_err(|e| e.to_string())?;
    let shard = part.shard;
    let this = cluster.clone();
    // Writes and syncs a file.
    let taken = crate::blocking(move || this.incoming.take(&this.env, from, part)).await??;
    if let Some((meta, message)) = taken {
        let message = wire::decode_snapshot_message(message).map_err(|e| e.to_string())?;
        tracing::info!(%shard, %from, index = meta.index, "a snapshot has arrived");
        cluster.groups.snapshot_received(shard, meta, message);
    }
    Ok(Bytes::new())
}

/// What the store loop sends through.
pub struct ToPeers {
    network: Arc<dyn Network>,
    groups: Handle,
    runtime: tokio::runtime::Handle,
    sending: Arc<Semaphore>,
}

impl ToPeers {
    /// Must be called inside the runtime that shall carry the transfers.
    pub fn new(network: Arc<dyn Network>, groups: Handle) -> ToPeers {
        ToPeers {
            network,
            groups,
            runtime: tokio::runtime::Handle::current(),
            sending: Arc::new(Semaphore::new(SENDING_MAX)),
        }
    }
}

impl shell::Transport for ToPeers {
    fn send(&mut self, to: NodeId, messages: Vec<(ShardId, RaftMessage)>) {
        // Dropped when the outbox is full or there is no stream: Raft repeats itself.
        let _sent = self.network.send(to, Kind::Raft.wrap(&wire::encode_messages(&messages)));
    }

    fn send_snapshot(&mut self, out: OutgoingSnapshot) {
        let (network, groups) = (self.network.clone(), self.groups.clone());
        let place = self.sending.clone().try_acquire_owned();
        let _goes_on = self.runtime.spawn(async move {
            let (shard, to) = (out.shard, out.to);
            let sent = match place {
                Ok(_place) => send(&*network, out).await,
                Err(_) => Err("too many snapshots are being sent".into()),
            };
            match &sent {
                Ok(bytes) => tracing::info!(%shard, %to, bytes, "a snapshot was sent"),
                Err(error) => tracing::info!(%shard, %to, error, "a snapshot was not sent; tried again"),
            }
            groups.snapshot_sent(shard, to, sent.is_ok());
        });
    }
}

async fn send(network: &dyn Network, out: OutgoingSnapshot) -> Result<usize, String> {
    let OutgoingSnapshot { to, shard, meta, message, mut source } = out;
    let mut bytes = 0;
    for seq in 0.. {
        // Reads the engine: not on a thread that serves others.
        let (chunk, again) = crate::blocking(move || (source.next_chunk(PART_BYTES), source)).await?;
        source = again;
        let chunk = chunk?;
        let last = chunk.is_none();
        let body = chunk.unwrap_or_else(|| wire::encode_snapshot_message(&message));
        bytes += body.len();
        let part = SnapshotPart {
            shard,
            index: meta.index,
            term: meta.term,
            members: meta.members.clone(),
            seq,
            body,
            last,
        };
        let payload = Kind::Snapshot.wrap(&part.encode());
        network.call(to, Lane::Bulk, payload, PART_WAIT_MAX).await.map_err(|e| e.to_string())?;
        if last {
            break;
        }
    }
    Ok(bytes)
}
