//! Shards are split under load, as size or an operator would: at a row, or between two.

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Key, Timestamp, keyspace};
use isochrone_env::SplitMix64;
use isochrone_storage::mvcc;
use isochrone_txn::kv::{Error, KvStore};

use super::{Gateway, goes_on, gone, rest};
use crate::options::Fault;
use crate::world::{Found, World};

/// No more shards than this.
const SHARDS_MAX: usize = 24;
/// A split is at one of so many first rows of a shard.
const ROWS_MAX: u64 = 32;

/// Splits until the node goes down or the load ends.
pub(super) async fn splitter(world: Arc<World>, node: Arc<Gateway>, life: u64) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("splitter {}.{life}", node.id));
    // The rate is that of the cluster.
    let mean_ms = world.options.rate(Fault::Split) * u64::from(world.options.nodes);
    while goes_on(&world) {
        rest(&world, Duration::from_millis(1 + random.below(2 * mean_ms))).await;
        if !goes_on(&world) || node.local.shards().list().len() >= SHARDS_MAX {
            continue;
        }
        let Some(key) = some_key(&node, &random)? else { continue };
        match node.store.split_at(vec![key]).await {
            Ok(()) => world.fault("split", &[u64::from(node.id.0), 1]),
            // Leaders move, shards split under it, a leader is gone: it is or is not split. Where versions are collected
            // after a second, it may take longer than that.
            Err(
                Error::Unavailable(_)
                | Error::Unknown(_)
                | Error::Serialization(_)
                | Error::SnapshotTooOld(_),
            ) => {
                world.fault("split", &[u64::from(node.id.0), 0]);
            }
            Err(Error::Stopped(_)) => return gone().await,
            Err(e) => return Err(format!("split: {e}").into()),
        }
    }
    Ok(())
}

/// Where a shard of users' tables may be split, as this node's rows say.
fn some_key(node: &Gateway, random: &SplitMix64) -> Result<Option<Key>, Found> {
    let first = keyspace::first_user_key();
    let mut metas = node.local.shards().list();
    metas.retain(|m| m.range.start >= first);
    let (pick, row) = (random.below(metas.len().max(1) as u64) as usize, random.below(ROWS_MAX) as usize);
    let between = random.below(4) == 0;
    let Some(meta) = metas.get(pick) else { return Ok(None) };
    let snapshot = node.engine.snapshot();
    let found = mvcc::scan_at(&snapshot, &meta.range, Timestamp::MAX, false).nth(row).transpose();
    let Some(found) = found.map_err(|e| e.to_string())? else { return Ok(None) };
    let mut key = found.key.to_vec();
    if between {
        key.push(0);
    }
    Ok(Some(key))
}
