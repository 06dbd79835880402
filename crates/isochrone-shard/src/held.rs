//! What a node's shards keep in memory beside rows ([`Held`]). Of what each shard has, the fullest one counts against the
//! bound; bytes are those of all.

use isochrone_base::held::Held;
use isochrone_base::{Key, Timestamp, TxnId};

use crate::follower::PENDING_MAX;
use crate::record::{PreparedPiece, RecordKey, Tombstone};
use crate::service::LocalShards;
use crate::shard::{INFLIGHT_MAX, InFlight};
use crate::tscache::{POINTS_MAX, SEGMENTS_MAX};

/// A read in the timestamp cache: a hash or a key, and who read when.
const READ_BYTES: usize = size_of::<(u64, Timestamp, Option<TxnId>)>();
const SEGMENT_BYTES: usize = READ_BYTES + 64;

fn most(of: &mut Held, entries: usize, bytes: usize) {
    of.entries = of.entries.max(entries);
    of.bytes += bytes;
}

impl LocalShards {
    /// See the module. Takes each shard's mutex for a moment.
    pub fn held(&self) -> Vec<Held> {
        let mut in_flight = Held::counted("shard.proposals_in_flight", 0, INFLIGHT_MAX, 0);
        let mut prepared = Held::counted("shard.prepared", 0, usize::MAX, 0);
        let mut tombstones = Held::counted("shard.decided", 0, usize::MAX, 0);
        let mut points = Held::counted("shard.reads_of_keys", 0, 2 * POINTS_MAX, 0);
        // The last span may cut two segments.
        let mut segments = Held::counted("shard.reads_of_spans", 0, 2 * (SEGMENTS_MAX + 2), 0);
        let mut told = Held::counted("shard.closed_told", 0, PENDING_MAX, 0);
        for shard in self.shards().all() {
            let g = shard.lock();
            let keys: usize = g.inflight.values().map(|f| f.keys.iter().map(Vec::len).sum::<usize>()).sum();
            most(&mut in_flight, g.inflight.len(), g.inflight.len() * size_of::<InFlight>() + keys);
            let pieces = g.repl.prepared.values().map(|p| p.bytes()).sum::<usize>();
            most(&mut prepared, g.repl.prepared.len(), pieces);
            let decided = g.repl.tombstones.len();
            most(&mut tombstones, decided, decided * size_of::<(RecordKey, Tombstone)>());
            let (of_keys, of_spans) = g.cache.held();
            most(&mut points, of_keys, of_keys * READ_BYTES);
            most(&mut segments, of_spans, of_spans * SEGMENT_BYTES);
            let waiting = g.following.pending();
            most(&mut told, waiting, waiting * size_of::<(u64, Timestamp)>());
        }
        let mut all = vec![in_flight, prepared, tombstones, points, segments, told];
        all.extend(self.locks().held());
        all
    }
}

impl PreparedPiece {
    fn bytes(&self) -> usize {
        let of = |key: &Key, value: usize| key.len() + value;
        let writes = self.piece.writes.iter().map(|w| of(&w.key, w.value.as_ref().map_or(0, |v| v.len())));
        size_of::<PreparedPiece>() + writes.sum::<usize>()
    }
}
