//! Messages for groups that are not here (CS3).
//!
//! A split is applied here a moment after it was applied elsewhere, so its right half's leader may speak before the
//! group is here: the last few messages wait for it. When a leader or candidate goes on speaking, the group is not
//! coming by itself: the store makes a blank replica, which can only be filled by a snapshot.

use std::collections::{BTreeMap, VecDeque};

use isochrone_base::ShardId;
use raft::eraftpb::{Message, MessageType};

/// Messages kept per shard; at the bound the oldest goes.
const MESSAGES_MAX: usize = 8;
/// Shards with messages; at the bound those of further shards are dropped, as the network might have done.
const SHARDS_MAX: usize = 4_096;
/// A message larger than this is not kept: its sender repeats it.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
struct Waiting {
    messages: VecDeque<Message>,
    since: u64,
    last: u64,
}

/// See the module. Times are ticks of the store.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<ShardId, Waiting>);

impl Held {
    /// Keeps a message. Returns for how many ticks a leader or candidate has been speaking to the missing group.
    pub(crate) fn keep(&mut self, shard: ShardId, message: Message, now: u64) -> u64 {
        use MessageType::*;
        let speaks =
            matches!(message.msg_type, MsgAppend | MsgHeartbeat | MsgRequestVote | MsgRequestPreVote);
        if !speaks || (self.0.len() >= SHARDS_MAX && !self.0.contains_key(&shard)) {
            return 0;
        }
        let waiting =
            self.0.entry(shard).or_insert(Waiting { messages: VecDeque::new(), since: now, last: now });
        waiting.last = now;
        let bytes: usize = message.entries.iter().map(|e| e.data.len()).sum();
        if bytes <= MESSAGE_BYTES_MAX {
            if waiting.messages.len() == MESSAGES_MAX {
                waiting.messages.pop_front();
            }
            waiting.messages.push_back(message);
        }
        now - waiting.since
    }

    /// What was kept for a group that is here now.
    pub(crate) fn take(&mut self, shard: ShardId) -> VecDeque<Message> {
        self.0.remove(&shard).map(|w| w.messages).unwrap_or_default()
    }

    /// Forgets whom nobody has spoken to for so many ticks.
    pub(crate) fn forget(&mut self, now: u64, silence: u64) {
        self.0.retain(|_, w| now - w.last <= silence);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
