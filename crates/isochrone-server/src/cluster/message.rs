//! What nodes say to each other, as plain data, with its encoding.
//!
//! The first byte of every payload says what it is ([`Kind`]); a version byte follows, then the fields in the order of
//! the structs. Raft's messages and the requests to shards have encodings of their own (crates consensus and shard):
//! here they are bytes behind the kind.
//!
//! Any bytes that are not a message are an error, never a panic, and never allocate more than they hold.

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_ts, put_txn, put_u64};
use isochrone_base::{Bytes, Key, KeyRange, LogIndex, Members, NodeId, ShardId, Term, Timestamp, TxnId};
use isochrone_shard::locks::Owner;
use isochrone_shard::wire::take_lock_mode;
use isochrone_shard::{Closed, ClosedNews};
use isochrone_txn::kv::{ClockInfo, Error, LockRow, TxnInfo};

/// Version of the messages that are encoded here.
const VERSION: u8 = 1;

/// What a payload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// From an operator's program: see crate api.
    Admin = 0,
    /// Raft messages, one way.
    Raft = 1,
    /// A request to a shard.
    Shard = 2,
    /// Locks given back, one way.
    Unlock = 3,
    /// News of the sender; answered with news.
    News = 4,
    /// A part of a snapshot.
    Snapshot = 5,
    /// From one gateway's query layer to another's.
    Gateway = 6,
    /// Become a member: from the node that was told to `init`.
    Adopt = 7,
    /// May I join? From a node without an identity to a running cluster.
    Register = 8,
    /// What a node does for others beside shards: see [`Ask`].
    Ask = 9,
    /// Closed timestamps of shards that the sender leads, one way ([`ClosedNews`]).
    Closed = 10,
}

impl Kind {
    /// Takes the first byte off a payload.
    pub fn split(payload: &Bytes) -> Result<(Kind, Bytes), DecodeError> {
        let all = [
            Kind::Admin,
            Kind::Raft,
            Kind::Shard,
            Kind::Unlock,
            Kind::News,
            Kind::Snapshot,
            Kind::Gateway,
            Kind::Adopt,
            Kind::Register,
            Kind::Ask,
            Kind::Closed,
        ];
        let first = *payload.first().ok_or(DecodeError::Truncated(0))?;
        let kind =
            all.into_iter().find(|k| *k as u8 == first).ok_or(DecodeError::Invalid("kind of message"))?;
        Ok((kind, payload.slice(1..)))
    }

    /// Puts the kind in front of a body.
    pub fn wrap(self, body: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(1 + body.len());
        out.push(self as u8);
        out.extend_from_slice(body);
        out.into()
    }
}

/// Something with an encoding.
pub trait Message: Sized {
    /// Appends the fields.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads the fields.
    fn take(r: &mut Reader) -> Result<Self, DecodeError>;

    /// Version and fields.
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.put(&mut out);
        out
    }

    /// The inverse of [`Message::encode`].
    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("version of a message between nodes"));
        }
        let message = Self::take(&mut r)?;
        r.finish()?;
        Ok(message)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn take_text(r: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(r.bytes()?.to_vec()).map_err(|_| DecodeError::Invalid("text"))
}

fn put_node(out: &mut Vec<u8>, node: NodeId) {
    put_u64(out, u64::from(node.0));
}

fn take_node(r: &mut Reader) -> Result<NodeId, DecodeError> {
    Ok(NodeId(r.u32()?))
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    put_bytes(out, &range.start);
    put_bytes(out, &range.end);
}

fn take_range(r: &mut Reader) -> Result<KeyRange, DecodeError> {
    Ok(KeyRange { start: r.key()?, end: r.key()? })
}

fn take_bool(r: &mut Reader) -> Result<bool, DecodeError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid("flag")),
    }
}

impl<T: Message> Message for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(x) = self {
            x.put(out);
        }
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(if take_bool(r)? { Some(T::take(r)?) } else { None })
    }
}

impl<T: Message> Message for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.len() as u64);
        for x in self {
            x.put(out);
        }
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let n = r.count(1)?;
        // Grows with what is read: an item in memory may be larger than its encoding.
        (0..n).map(|_| T::take(r)).collect()
    }
}

impl Message for () {
    fn put(&self, _out: &mut Vec<u8>) {}

    fn take(_r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl Message for NodeId {
    fn put(&self, out: &mut Vec<u8>) {
        put_node(out, *self);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        take_node(r)
    }
}

/// Where a node can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// The node.
    pub node: NodeId,
    /// Its cluster address.
    pub address: String,
}

impl Message for Address {
    fn put(&self, out: &mut Vec<u8>) {
        put_node(out, self.node);
        put_text(out, &self.address);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Address { node: take_node(r)?, address: take_text(r)? })
    }
}

/// What a node tells its peers twice a second.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Who says so.
    pub node: NodeId,
    /// Its clock.
    pub now: Timestamp,
    /// Where SQL clients connect to it.
    pub sql: String,
    /// It gives its shards away and stops soon.
    pub draining: bool,
    /// Shards it leads.
    pub leaders: u32,
    /// Shards it has a replica of.
    pub replicas: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Where it saw other nodes.
    pub peers: Vec<Address>,
    /// Its wall clock, as the machine shows it, in microseconds.
    pub wall_us: u64,
    /// Its clock is out of bounds: it serves nobody, and leads nothing if others can.
    pub out_of_service: bool,
}

impl Message for News {
    fn put(&self, out: &mut Vec<u8>) {
        put_node(out, self.node);
        put_ts(out, self.now);
        put_text(out, &self.sql);
        out.push(u8::from(self.draining));
        put_u64(out, u64::from(self.leaders));
        put_u64(out, u64::from(self.replicas));
        put_u64(out, self.uptime_s);
        self.peers.put(out);
        put_u64(out, self.wall_us);
        out.push(u8::from(self.out_of_service));
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(News {
            node: take_node(r)?,
            now: r.ts()?,
            sql: take_text(r)?,
            draining: take_bool(r)?,
            leaders: r.u32()?,
            replicas: r.u32()?,
            uptime_s: r.u64()?,
            peers: Vec::take(r)?,
            wall_us: r.u64()?,
            out_of_service: take_bool(r)?,
        })
    }
}

impl Message for ClosedNews {
    fn put(&self, out: &mut Vec<u8>) {
        self.closed.put(out);
        self.wanted.put(out);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(ClosedNews { closed: Vec::take(r)?, wanted: Vec::take(r)? })
    }
}

impl Message for Closed {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.shard.0);
        put_u64(out, self.index);
        put_ts(out, self.closed);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Closed { shard: ShardId(r.u64()?), index: r.u64()?, closed: r.ts()? })
    }
}

impl Message for ShardId {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.0);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(ShardId(r.u64()?))
    }
}

/// The identity that a node gets from another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The cluster.
    pub cluster: u128,
    /// The id of the node that is told so.
    pub node: NodeId,
    /// The nodes with the first shards.
    pub voters: Vec<NodeId>,
    /// Where the others are.
    pub peers: Vec<Address>,
}

impl Message for Membership {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster.to_be_bytes());
        put_node(out, self.node);
        self.voters.put(out);
        self.peers.put(out);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let cluster = r.take(16)?;
        let cluster =
            u128::from_be_bytes(cluster[..].try_into().map_err(|_| DecodeError::Invalid("cluster id"))?);
        Ok(Membership { cluster, node: take_node(r)?, voters: Vec::take(r)?, peers: Vec::take(r)? })
    }
}

/// A part of a snapshot on its way. The parts of one snapshot are numbered from 0; the last one is empty and carries the
/// Raft message that the snapshot belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotPart {
    /// The shard.
    pub shard: ShardId,
    /// What the snapshot holds is applied up to here.
    pub index: LogIndex,
    /// Term of that entry.
    pub term: Term,
    /// The group's members.
    pub members: Members,
    /// Number of this part.
    pub seq: u64,
    /// The chunk, as the shard crate encodes it; for the last part Raft's message.
    pub body: Bytes,
    /// Nothing follows.
    pub last: bool,
}

impl Message for SnapshotPart {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.shard.0);
        put_u64(out, self.index);
        put_u64(out, self.term);
        self.members.encode(out);
        put_u64(out, self.seq);
        out.push(u8::from(self.last));
        put_bytes(out, &self.body);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let (shard, index, term) = (ShardId(r.u64()?), r.u64()?, r.u64()?);
        let (members, seq, last) = (Members::decode(r)?, r.u64()?, take_bool(r)?);
        Ok(SnapshotPart { shard, index, term, members, seq, last, body: r.bytes()? })
    }
}

/// Where one replica stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// Counts the changes of its range and of its members.
    pub epoch: u64,
    /// The members of its group.
    pub members: Members,
    /// Who leads it, as far as this replica knows.
    pub leader: Option<NodeId>,
    /// The term it knows of.
    pub term: Term,
    /// First index of its log here.
    pub first_index: LogIndex,
    /// Last index of its log here.
    pub last_index: LogIndex,
    /// Applied here.
    pub applied: LogIndex,
    /// About how many bytes its rows take here.
    pub bytes: u64,
}

impl Message for ReplicaStatus {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.shard.0);
        put_range(out, &self.range);
        put_u64(out, self.epoch);
        self.members.encode(out);
        self.leader.put(out);
        for n in [self.term, self.first_index, self.last_index, self.applied, self.bytes] {
            put_u64(out, n);
        }
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(ReplicaStatus {
            shard: ShardId(r.u64()?),
            range: take_range(r)?,
            epoch: r.u64()?,
            members: Members::decode(r)?,
            leader: <Option<NodeId> as Message>::take(r)?,
            term: r.u64()?,
            first_index: r.u64()?,
            last_index: r.u64()?,
            applied: r.u64()?,
            bytes: r.u64()?,
        })
    }
}

const TXN_STATES: [&str; 4] = ["active", "prepared", "committed", "aborted"];

impl Message for TxnInfo {
    fn put(&self, out: &mut Vec<u8>) {
        put_txn(out, self.txn);
        out.push(TXN_STATES.iter().position(|s| *s == self.state).unwrap_or(0) as u8);
        put_u64(out, u64::from(self.pieces));
        put_u64(out, self.anchor.map_or(0, |s| s.0));
        put_ts(out, self.started.unwrap_or(Timestamp::MIN));
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let txn = r.txn()?;
        let state = *TXN_STATES.get(usize::from(r.u8()?)).ok_or(DecodeError::Invalid("state"))?;
        let pieces = r.u32()?;
        let anchor = Some(ShardId(r.u64()?)).filter(|s| s.0 != 0);
        let started = Some(r.ts()?).filter(|t| *t != Timestamp::MIN);
        Ok(TxnInfo { txn, state, pieces, anchor, started })
    }
}

impl Message for ClockInfo {
    fn put(&self, out: &mut Vec<u8>) {
        put_node(out, self.node);
        put_text(out, &self.source);
        put_u64(out, self.error_us);
        self.peer.put(out);
        // Meant only with a peer; the bits of a signed number.
        put_u64(out, self.offset_us.unwrap_or(0).cast_unsigned());
        put_u64(out, self.offset_error_us.unwrap_or(0));
        out.push(u8::from(self.in_service));
        out.push(u8::from(self.reason.is_some()));
        put_text(out, self.reason.as_deref().unwrap_or(""));
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let (node, source, error_us) = (take_node(r)?, take_text(r)?, r.u64()?);
        let peer = <Option<NodeId> as Message>::take(r)?;
        let (offset_us, offset_error_us) = (r.u64()?.cast_signed(), r.u64()?);
        let (in_service, has_reason, reason) = (take_bool(r)?, take_bool(r)?, take_text(r)?);
        Ok(ClockInfo {
            node,
            source,
            error_us,
            peer,
            offset_us: peer.map(|_| offset_us),
            offset_error_us: peer.map(|_| offset_error_us),
            in_service,
            reason: has_reason.then_some(reason),
        })
    }
}

/// A lock in the memory of a leaseholder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HeldLock {
    /// Whose it is.
    pub txn: TxnId,
    /// On what.
    pub key: Key,
}

impl Message for HeldLock {
    fn put(&self, out: &mut Vec<u8>) {
        put_txn(out, self.txn);
        put_bytes(out, &self.key);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(HeldLock { txn: r.txn()?, key: r.key()? })
    }
}

impl Message for Owner {
    fn put(&self, out: &mut Vec<u8>) {
        put_txn(out, self.txn);
        put_node(out, self.gateway);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Owner { txn: r.txn()?, gateway: take_node(r)? })
    }
}

impl Message for LockRow {
    fn put(&self, out: &mut Vec<u8>) {
        put_node(out, self.node);
        put_u64(out, self.shard.map_or(0, |s| s.0));
        put_bytes(out, &self.key);
        Owner { txn: self.txn, gateway: self.gateway }.put(out);
        out.push(self.mode as u8);
        put_ts(out, self.waiting_since.unwrap_or(Timestamp::MIN));
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let (node, shard, key) = (take_node(r)?, Some(ShardId(r.u64()?)).filter(|s| s.0 != 0), r.key()?);
        let Owner { txn, gateway } = Owner::take(r)?;
        let mode = take_lock_mode(r)?;
        let waiting_since = Some(r.ts()?).filter(|t| *t != Timestamp::MIN);
        Ok(LockRow { node, shard, key, txn, gateway, mode, waiting_since })
    }
}

/// What a transaction waits for, as its gateway knows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wait {
    /// The request that is under way.
    pub lock: HeldLock,
    /// The node that was asked.
    pub node: NodeId,
}

impl Message for Wait {
    fn put(&self, out: &mut Vec<u8>) {
        self.lock.put(out);
        put_node(out, self.node);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Wait { lock: HeldLock::take(r)?, node: take_node(r)? })
    }
}

/// Who stands in the way of a waiter, as the leaseholder knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InTheWay {
    /// The wait.
    pub lock: HeldLock,
    /// Names this wait among all of that node.
    pub ticket: u64,
    /// Holders of the lock.
    pub holders: Vec<Owner>,
    /// Those who wait before it.
    pub earlier: Vec<Owner>,
}

impl Message for InTheWay {
    fn put(&self, out: &mut Vec<u8>) {
        self.lock.put(out);
        put_u64(out, self.ticket);
        self.holders.put(out);
        self.earlier.put(out);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let (lock, ticket) = (HeldLock::take(r)?, r.u64()?);
        Ok(InTheWay { lock, ticket, holders: Vec::take(r)?, earlier: Vec::take(r)? })
    }
}

/// What a node does for others beside shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// The replicas here. Answer: `Vec<ReplicaStatus>`.
    Replicas {
        /// With sizes, which cost a look into the engine.
        bytes: bool,
    },
    /// The transactions with records or locks here. Answer: `Vec<TxnInfo>`.
    Transactions,
    /// Cut a shard that is led there. Answer: nothing.
    Split {
        /// First key of the right half.
        at: Key,
        /// Its id.
        right: ShardId,
    },
    /// Remove every version of a range, within one shard that is led there. Answer: nothing.
    ClearRange {
        /// The range.
        range: KeyRange,
    },
    /// Give the leadership of a shard to another node. Answer: nothing.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// Its new leader.
        to: NodeId,
    },
    /// Somebody placed this shard's leader by hand: do not move it for a while. Answer: nothing.
    Pin {
        /// The shard.
        shard: ShardId,
    },
    /// Go one step from the voters of a shard that is led there to these. Answer: nothing.
    ChangeMembers {
        /// The shard.
        shard: ShardId,
        /// Its voters in the end.
        voters: Vec<NodeId>,
    },
    /// Who are the members of these shards' groups? Answer: `Vec<Standing>`, of those whose lease you hold.
    Standing {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Give all leaderships away. Answer: nothing.
    Drain,
    /// Which of these locks, held in the name of that node's transactions, does it not know of (any more)? Answer:
    /// `Vec<HeldLock>`.
    Orphans {
        /// Locks held by the asker.
        locks: Vec<HeldLock>,
    },
    /// The row locks held and waited for here. Answer: `Vec<LockRow>`.
    Locks,
    /// What do these transactions of that node wait for? Answer: `Vec<Wait>`.
    Waits {
        /// The transactions.
        txns: Vec<TxnId>,
    },
    /// Who stands in the way of these waiters there? Waits that are over are left out. Answer: `Vec<InTheWay>`.
    InTheWay {
        /// The waits.
        waits: Vec<HeldLock>,
    },
    /// End this wait there: its transaction gives way, to break a deadlock. Answer: nothing.
    GiveWay {
        /// The wait.
        lock: HeldLock,
        /// Its ticket.
        ticket: u64,
    },
    /// Your clock, and those of others as you measured them. Answer: `Vec<ClockInfo>`.
    Clocks,
}

impl Message for Ask {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Ask::Replicas { bytes } => out.extend([1, u8::from(*bytes)]),
            Ask::Transactions => out.push(2),
            Ask::Split { at, right } => {
                out.push(3);
                put_bytes(out, at);
                put_u64(out, right.0);
            }
            Ask::ClearRange { range } => {
                out.push(4);
                put_range(out, range);
            }
            Ask::Transfer { shard, to } => {
                out.push(5);
                put_u64(out, shard.0);
                put_node(out, *to);
            }
            Ask::Pin { shard } => {
                out.push(6);
                put_u64(out, shard.0);
            }
            Ask::ChangeMembers { shard, voters } => {
                out.push(10);
                put_u64(out, shard.0);
                voters.put(out);
            }
            Ask::Standing { shards } => {
                out.push(11);
                put_u64(out, shards.len() as u64);
                shards.iter().for_each(|s| put_u64(out, s.0));
            }
            Ask::Drain => out.push(7),
            Ask::Orphans { locks } => {
                out.push(8);
                locks.put(out);
            }
            Ask::Locks => out.push(20),
            Ask::Waits { txns } => {
                out.push(21);
                put_u64(out, txns.len() as u64);
                txns.iter().for_each(|t| put_txn(out, *t));
            }
            Ask::InTheWay { waits } => {
                out.push(22);
                waits.put(out);
            }
            Ask::GiveWay { lock, ticket } => {
                out.push(23);
                lock.put(out);
                put_u64(out, *ticket);
            }
            Ask::Clocks => out.push(9),
        }
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => Ask::Replicas { bytes: take_bool(r)? },
            2 => Ask::Transactions,
            3 => Ask::Split { at: r.key()?, right: ShardId(r.u64()?) },
            4 => Ask::ClearRange { range: take_range(r)? },
            5 => Ask::Transfer { shard: ShardId(r.u64()?), to: take_node(r)? },
            6 => Ask::Pin { shard: ShardId(r.u64()?) },
            7 => Ask::Drain,
            10 => Ask::ChangeMembers { shard: ShardId(r.u64()?), voters: Vec::take(r)? },
            11 => {
                let n = r.count(1)?;
                let shards = (0..n).map(|_| r.u64().map(ShardId));
                Ask::Standing { shards: shards.collect::<Result<_, _>>()? }
            }
            8 => Ask::Orphans { locks: Vec::take(r)? },
            20 => Ask::Locks,
            21 => {
                let n = r.count(16)?;
                Ask::Waits { txns: (0..n).map(|_| r.txn()).collect::<Result<_, _>>()? }
            }
            22 => Ask::InTheWay { waits: Vec::take(r)? },
            23 => Ask::GiveWay { lock: HeldLock::take(r)?, ticket: r.u64()? },
            9 => Ask::Clocks,
            _ => return Err(DecodeError::Invalid("question")),
        })
    }
}

/// An answer, or why there is none. Kinds of errors that the asker treats alike travel as one.
pub struct Answer<T>(pub Result<T, Error>);

impl<T: Message> Message for Answer<T> {
    fn put(&self, out: &mut Vec<u8>) {
        let (kind, text) = match &self.0 {
            Ok(x) => {
                out.push(0);
                return x.put(out);
            }
            Err(Error::Serialization(why)) => (1, why.clone()),
            Err(Error::Unavailable(why)) => (2, why.clone()),
            Err(Error::Stopped(why)) => (3, why.clone()),
            Err(Error::Unknown(why)) => (4, why.clone()),
            Err(Error::TooLarge(why)) => (5, why.clone()),
            Err(Error::NoSuch(why)) => (7, why.clone()),
            Err(Error::Internal(why)) => (6, why.clone()),
            Err(e) => (6, e.to_string()),
        };
        out.push(kind);
        put_text(out, &text);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let error = match r.u8()? {
            0 => return Ok(Answer(Ok(T::take(r)?))),
            1 => Error::Serialization,
            2 => Error::Unavailable,
            3 => Error::Stopped,
            4 => Error::Unknown,
            5 => Error::TooLarge,
            6 => Error::Internal,
            7 => Error::NoSuch,
            _ => return Err(DecodeError::Invalid("kind of error")),
        };
        Ok(Answer(Err(error(take_text(r)?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isochrone_shard::api::LockMode;
    use proptest::prelude::*;

    fn there_and_back<T: Message + PartialEq + std::fmt::Debug>(x: T) {
        let bytes = Bytes::from(x.encode());
        for cut in 0..bytes.len() {
            assert!(T::decode(bytes.slice(..cut)).is_err(), "{x:?} cut at {cut}");
        }
        assert_eq!(T::decode(bytes).unwrap(), x);
    }

    #[test]
    fn messages_come_back() {
        let peers = vec![Address { node: NodeId(2), address: "127.0.0.1:7434".into() }];
        there_and_back(News {
            node: NodeId(1),
            now: Timestamp(77),
            sql: "127.0.0.1:5433".into(),
            draining: true,
            leaders: 3,
            replicas: 9,
            uptime_s: 12,
            peers: peers.clone(),
            wall_us: 1_700_000_000_000_000,
            out_of_service: true,
        });
        there_and_back(ClosedNews {
            closed: vec![Closed { shard: ShardId(3), index: 99, closed: Timestamp(1 << 60) }],
            wanted: vec![ShardId(1), ShardId(u64::MAX)],
        });
        there_and_back(vec![
            ClockInfo {
                node: NodeId(1),
                source: "ntp".into(),
                error_us: 1_500,
                peer: Some(NodeId(2)),
                offset_us: Some(-20),
                offset_error_us: Some(300),
                in_service: false,
                reason: Some("why".into()),
            },
            ClockInfo {
                node: NodeId(2),
                source: "fixed".into(),
                error_us: 125_000,
                peer: None,
                offset_us: None,
                offset_error_us: None,
                in_service: true,
                reason: None,
            },
        ]);
        there_and_back(Membership {
            cluster: u128::MAX - 1,
            node: NodeId(2),
            voters: vec![NodeId(1), NodeId(2), NodeId(3)],
            peers,
        });
        there_and_back(SnapshotPart {
            shard: ShardId(7),
            index: 1_000_000,
            term: 8,
            members: vec![NodeId(1)].into(),
            seq: 3,
            body: Bytes::from_static(b"rows"),
            last: true,
        });
        there_and_back(ReplicaStatus {
            shard: ShardId(3),
            range: KeyRange::new(b"a".to_vec(), Key::new()),
            epoch: 2,
            members: Members { learners: vec![NodeId(3)], ..vec![NodeId(1), NodeId(2)].into() },
            leader: Some(NodeId(2)),
            term: 4,
            first_index: 11,
            last_index: 200,
            applied: 199,
            bytes: 12_345,
        });
        there_and_back(vec![TxnInfo {
            txn: TxnId(5),
            state: "prepared",
            pieces: 2,
            anchor: Some(ShardId(3)),
            started: None,
        }]);
        for ask in [
            Ask::Replicas { bytes: true },
            Ask::Transactions,
            Ask::Split { at: b"k".to_vec(), right: ShardId(9) },
            Ask::ClearRange { range: KeyRange::all() },
            Ask::Transfer { shard: ShardId(1), to: NodeId(3) },
            Ask::Pin { shard: ShardId(1) },
            Ask::Drain,
            Ask::ChangeMembers { shard: ShardId(9), voters: vec![NodeId(1), NodeId(70_000)] },
            Ask::Standing { shards: vec![ShardId(0), ShardId(u64::MAX)] },
            Ask::Orphans { locks: vec![HeldLock { txn: TxnId(7), key: b"k".to_vec() }] },
            Ask::Locks,
            Ask::Waits { txns: vec![TxnId(7), TxnId(u128::MAX)] },
            Ask::InTheWay { waits: vec![HeldLock { txn: TxnId(7), key: b"k".to_vec() }] },
            Ask::GiveWay { lock: HeldLock { txn: TxnId(7), key: b"k".to_vec() }, ticket: 300 },
            Ask::Clocks,
        ] {
            there_and_back(ask);
        }
        let lock = HeldLock { txn: TxnId(7), key: b"k".to_vec() };
        let owner = |n| Owner { txn: TxnId(n), gateway: NodeId(2) };
        there_and_back(vec![Wait { lock: lock.clone(), node: NodeId(3) }]);
        there_and_back(vec![InTheWay {
            lock,
            ticket: 70_000,
            holders: vec![owner(1), owner(2)],
            earlier: vec![owner(3)],
        }]);
        for (mode, waiting_since) in LockMode::ALL.into_iter().zip([None, Some(Timestamp(5)), None, None]) {
            there_and_back(LockRow {
                node: NodeId(1),
                shard: Some(ShardId(4)).filter(|_| mode != LockMode::Share),
                key: b"k".to_vec(),
                txn: TxnId(9),
                gateway: NodeId(2),
                mode,
                waiting_since,
            });
        }
    }

    #[test]
    fn answers_keep_their_kind() {
        let errors = [
            Error::Serialization("a".into()),
            Error::Unavailable("b".into()),
            Error::Stopped("c".into()),
            Error::Unknown("d".into()),
            Error::TooLarge("e".into()),
            Error::Internal("f".into()),
            Error::NoSuch("g".into()),
        ];
        for e in errors {
            let back = Answer::<()>::decode(Answer::<()>(Err(e.clone())).encode().into()).unwrap();
            assert_eq!(back.0, Err(e));
        }
        let deadlock = Answer::<()>::decode(Answer::<()>(Err(Error::Deadlock)).encode().into()).unwrap();
        assert_eq!(deadlock.0, Err(Error::Internal("deadlock detected".into())));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = Kind::split(&bytes);
            let _ = News::decode(bytes.clone());
            let _ = Membership::decode(bytes.clone());
            let _ = SnapshotPart::decode(bytes.clone());
            let _ = Ask::decode(bytes.clone());
            let _ = Answer::<Vec<ReplicaStatus>>::decode(bytes.clone());
            let _ = Answer::<Vec<LockRow>>::decode(bytes.clone());
            let _ = Answer::<Vec<Wait>>::decode(bytes.clone());
            let _ = Answer::<Vec<InTheWay>>::decode(bytes.clone());
            let _ = Answer::<Vec<TxnInfo>>::decode(bytes.clone());
            let _ = Answer::<Vec<ClockInfo>>::decode(bytes);
        }
    }
}
