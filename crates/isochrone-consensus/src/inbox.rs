//! The way into the store loop: a bounded inbox that many threads fill and one loop empties.
//!
//! Proposals are bounded by [`PROPOSALS_MAX`] and [`PROPOSAL_BYTES_MAX`]: past either, a proposal is refused at once
//! (C3), and the caller backs off. Messages from peers are bounded by [`MESSAGES_MAX`] and [`MESSAGE_BYTES_MAX`]: past
//! either, a batch of them is dropped, as the network might have done, and counted. Everything else is bounded by
//! construction: durable marks by the batches in flight, control events by their few senders.

use std::sync::{Arc, Mutex, MutexGuard};

use isochrone_base::codec::DecodeError;
use isochrone_base::held::Held;
use isochrone_base::{Bytes, LogIndex, NodeId, ShardId, Term, bank};
use tokio::sync::oneshot;

use crate::store::Event;
use crate::{LogEnd, RaftMessage, SnapshotMeta, Step, metrics, wire};

/// Proposals waiting for the loop.
pub const PROPOSALS_MAX: usize = 16_384;
/// Bytes of proposals waiting for the loop.
pub const PROPOSAL_BYTES_MAX: usize = 256 << 20;

/// Messages from peers waiting for the loop.
pub const MESSAGES_MAX: usize = 65_536;
/// Bytes of such messages.
pub const MESSAGE_BYTES_MAX: usize = 128 << 20;

/// Why a proposal was not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the shard in that term. The entry is in no log.
    #[error("not the leader of shard {0} in that term")]
    NotLeader(ShardId),
    /// Too much is waiting. The entry is in no log.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// The entry was logged and leadership was lost, or the node is going down: it may yet be applied, or not.
    #[error("whether the entry was logged is not known: {0}")]
    Ambiguous(String),
    /// The node's log has failed. The entry was not accepted.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

pub(crate) struct Proposal {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) payload: Bytes,
    pub(crate) reply: oneshot::Sender<Result<LogIndex, ProposeError>>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    proposals: usize,
    proposal_bytes: usize,
    messages: usize,
    message_bytes: usize,
    /// The most there have been at once: of proposals and their bytes, of messages and theirs.
    most: [usize; 4],
    closed: Option<String>,
    /// The loop is gone: nobody will take what is put in.
    ended: bool,
}

impl State {
    fn note_most(&mut self) {
        let now = [self.proposals, self.proposal_bytes, self.messages, self.message_bytes];
        for (most, now) in self.most.iter_mut().zip(now) {
            *most = (*most).max(now);
        }
    }
}

/// The inbox itself. `wake` is called whenever the loop has something new to look at.
pub struct Inbox {
    state: Mutex<State>,
    proposals_max: usize,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Inbox {
    /// An empty inbox.
    pub fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Inbox> {
        Inbox::with_room(wake, PROPOSALS_MAX)
    }

    /// An inbox with another bound of proposals than [`PROPOSALS_MAX`]; at least 1.
    pub fn with_room(wake: Box<dyn Fn() + Send + Sync>, proposals_max: usize) -> Arc<Inbox> {
        Arc::new(Inbox { state: Mutex::new(State::default()), proposals_max: proposals_max.max(1), wake })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while the inbox is locked")
    }

    /// Adds an event that is not a proposal. After the loop's end it is dropped, and with it the way back to whoever
    /// waits for an answer.
    pub fn push(&self, event: Event) {
        let mut s = self.lock();
        if s.ended {
            return;
        }
        s.events.push(event);
        drop(s);
        (self.wake)();
    }

    /// Everything that came since the last call; empty when nothing did.
    pub fn drain(&self, into: &mut Vec<Event>) {
        let mut s = self.lock();
        into.append(&mut s.events);
        s.proposals = 0;
        s.proposal_bytes = 0;
        s.messages = 0;
        s.message_bytes = 0;
    }

    /// The most that has waited for the loop at once.
    pub fn held(&self) -> [Held; 2] {
        let [proposals, proposal_bytes, messages, message_bytes] = self.lock().most;
        [
            Held {
                what: "consensus.proposals",
                entries: proposals,
                entries_max: self.proposals_max,
                bytes: proposal_bytes,
                bytes_max: PROPOSAL_BYTES_MAX,
            },
            Held {
                what: "consensus.messages",
                entries: messages,
                entries_max: MESSAGES_MAX,
                bytes: message_bytes,
                bytes_max: MESSAGE_BYTES_MAX,
            },
        ]
    }

    /// From now on every proposal is refused with this reason.
    pub fn close(&self, reason: &str) {
        let mut s = self.lock();
        if s.closed.is_none() {
            s.closed = Some(reason.to_string());
        }
    }

    /// The loop is gone: closes, and drops what nobody will take any more, so that nobody waits for an answer.
    pub fn end(&self, reason: &str) {
        self.close(reason);
        let events = {
            let mut s = self.lock();
            s.ended = true;
            std::mem::take(&mut s.events)
        };
        drop(events); // outside the lock: who waited may run at once
    }
}

/// What the layers above hold: proposing, and a few controls. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inbox: Arc<Inbox>,
}

impl Handle {
    /// A handle that fills this inbox.
    pub fn new(inbox: Arc<Inbox>) -> Handle {
        Handle { inbox }
    }

    /// Puts an entry into a shard's log, if this node leads it in `term`. The receiver hears the entry's index once it
    /// was applied here (C2), or why not (C3, C6). A dropped sender means that the store is gone: ambiguous.
    pub fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> oneshot::Receiver<Result<LogIndex, ProposeError>> {
        let (reply, receiver) = oneshot::channel();
        let refused = {
            let mut s = self.inbox.lock();
            if let Some(reason) = &s.closed {
                Some(ProposeError::Stopped(reason.clone()))
            } else if !bank::has("inbox-has-no-bound")
                && (s.proposals >= self.inbox.proposals_max
                    || s.proposal_bytes + payload.len() > PROPOSAL_BYTES_MAX)
            {
                Some(ProposeError::Overloaded)
            } else {
                s.proposals += 1;
                s.proposal_bytes += payload.len();
                s.note_most();
                s.events.push(Event::propose(Proposal { shard, term, payload, reply }));
                return {
                    drop(s);
                    ::metrics::counter!(metrics::PROPOSALS).increment(1);
                    (self.inbox.wake)();
                    receiver
                };
            }
        };
        if let Some(error) = refused {
            if error == ProposeError::Overloaded {
                ::metrics::counter!(metrics::OVERLOADED).increment(1);
            }
            let _ = reply.send(Err(error));
        }
        receiver
    }

    /// Takes a batch of messages that a peer's [`crate::wire::encode_messages`] made. An error: it is not one, or not
    /// from that node.
    pub fn deliver(&self, from: NodeId, payload: Bytes) -> Result<(), DecodeError> {
        let bytes = payload.len();
        let messages = wire::decode_messages(payload)?;
        if messages.iter().any(|(_, m)| wire::sender(m) != from) {
            return Err(DecodeError::Invalid("sender of a message"));
        }
        if messages.is_empty() {
            return Ok(());
        }
        let count = messages.len();
        {
            let mut s = self.inbox.lock();
            if s.ended {
                return Ok(());
            }
            if s.messages + count > MESSAGES_MAX || s.message_bytes + bytes > MESSAGE_BYTES_MAX {
                drop(s);
                ::metrics::counter!(metrics::MESSAGES_DROPPED).increment(count as u64);
                return Ok(());
            }
            s.messages += count;
            s.message_bytes += bytes;
            s.note_most();
            s.events.push(Event::Messages(messages));
        }
        (self.inbox.wake)();
        Ok(())
    }

    /// All chunks of a snapshot are here, safe from a crash. The state machine is told to install or to discard it.
    pub fn snapshot_received(&self, shard: ShardId, meta: SnapshotMeta, message: RaftMessage) {
        self.inbox.push(Event::SnapshotReceived(shard, meta, Box::new(message)));
    }

    /// An [`crate::OutgoingSnapshot`] has arrived whole, or not. Every one is reported, once.
    pub fn snapshot_sent(&self, shard: ShardId, to: NodeId, ok: bool) {
        self.inbox.push(Event::SnapshotSent(shard, to, ok));
    }

    /// Hands leadership of a shard over. `Ok`: that node leads. An error: it does not; this node may lead on, in the
    /// same term or (if the other was told already and might still try) in a new one.
    pub fn transfer(&self, shard: ShardId, to: NodeId) -> oneshot::Receiver<Result<(), String>> {
        let (reply, receiver) = oneshot::channel();
        self.inbox.push(Event::Transfer(shard, to, reply));
        receiver
    }

    /// Goes on, by one step, from the voters of a group to these; to be called again until it says [`Step::Done`]. This node
    /// leads the group. An error: it does not, or that change is not possible.
    pub fn change_members(
        &self,
        shard: ShardId,
        voters: Vec<NodeId>,
    ) -> oneshot::Receiver<Result<Step, String>> {
        let (reply, receiver) = oneshot::channel();
        self.inbox.push(Event::ChangeMembers(shard, voters, reply));
        receiver
    }

    /// This node is no part of the shard's group any more: its leaseholder said so, asked in this life, and had applied `upto`.
    /// The replica goes. `Ok`: its state is gone, durably. An error: not now.
    pub fn remove(&self, shard: ShardId, upto: LogEnd) -> oneshot::Receiver<Result<(), String>> {
        let (reply, receiver) = oneshot::channel();
        self.inbox.push(Event::Remove(shard, upto, reply));
        receiver
    }

    /// Messages to this node were lost: its followers are probed before more is sent.
    pub fn unreachable(&self, node: NodeId) {
        self.inbox.push(Event::Unreachable(node));
    }

    /// The stream from this node broke: groups that it leads elect another leader as soon as what they promised to it
    /// is over, unless it is heard of again.
    pub fn peer_lost(&self, node: NodeId) {
        self.inbox.push(Event::PeerLost(node));
    }

    /// The state machine's effects up to these indexes are on durable storage: the logs may forget them.
    pub fn truncate(&self, upto: Vec<(ShardId, LogIndex)>) {
        self.inbox.push(Event::Truncate(upto));
    }

    /// Asks for the status of all groups.
    pub fn status(&self) -> oneshot::Receiver<std::collections::BTreeMap<ShardId, crate::GroupStatus>> {
        let (reply, receiver) = oneshot::channel();
        self.inbox.push(Event::Status(reply));
        receiver
    }

    /// The most that has waited for the loop at once.
    pub fn held(&self) -> [Held; 2] {
        self.inbox.held()
    }

    /// Ends the loop after what is in the inbox.
    pub fn stop(&self) {
        self.inbox.close("the node is shutting down");
        self.inbox.push(Event::Stop);
    }
}
