//! Raft messages as bytes between nodes: our own encoding (ADR 1), never protobuf.
//!
//!     batch     version (1)  count  { shard  message }*
//!     message   type  to from term log_term index commit commit_term request_snapshot
//!               reject (0/1)  reject_hint  context  priority (zigzag)  deprecated_priority
//!               count { entry }*   snapshot (0/1)  [ index term auto_leave  4 x node list  data ]
//!     entry     type  term index  data  context
//!
//! Numbers are varints, byte strings carry their length. A batch holds only what one node may say to another: the
//! messages that raft-rs sends to itself (hup, beat, ...) and the requests that must pass through this node's own
//! rules (propose, transfer) are refused, so that no peer can, say, start a transfer without the lease being given
//! up. A snapshot message never travels in a batch: it goes with its chunks, alone ([`encode_snapshot_message`]).
//!
//! How it fails: bytes that do not decode are refused whole. Nothing is allocated by a declared length.

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};
use isochrone_base::{Bytes, NodeId, ShardId};
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};

const VERSION: u8 = 1;
/// A message takes at least this many bytes: what bounds a declared count.
const MESSAGE_BYTES_MIN: usize = 16;
const ENTRY_BYTES_MIN: usize = 5;
/// Payloads below this are copied out of the frame, so that a small entry in the cache does not hold a large frame.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// What may come from a peer in a batch, with its number on the wire.
const TYPES: [(u8, MessageType); 9] = [
    (3, MessageType::MsgAppend),
    (4, MessageType::MsgAppendResponse),
    (5, MessageType::MsgRequestVote),
    (6, MessageType::MsgRequestVoteResponse),
    (8, MessageType::MsgHeartbeat),
    (9, MessageType::MsgHeartbeatResponse),
    (14, MessageType::MsgTimeoutNow),
    (17, MessageType::MsgRequestPreVote),
    (18, MessageType::MsgRequestPreVoteResponse),
];
const SNAPSHOT: u8 = 7;

/// Encodes what one step sends to one peer. Messages that no peer accepts in a batch are left out.
pub fn encode_messages(messages: &[(ShardId, Message)]) -> Bytes {
    let fits = |m: &Message| TYPES.iter().any(|(_, t)| *t == m.msg_type) && m.snapshot.is_none();
    let kept = messages.iter().filter(|(_, m)| fits(m));
    let mut out = vec![VERSION];
    put_u64(&mut out, kept.clone().count() as u64);
    for (shard, message) in kept {
        put_u64(&mut out, shard.0);
        put_message(&mut out, message);
    }
    out.into()
}

/// The inverse of [`encode_messages`].
pub fn decode_messages(payload: Bytes) -> Result<Vec<(ShardId, Message)>, DecodeError> {
    let mut r = Reader::new(payload);
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of a message batch"));
    }
    let count = r.count(MESSAGE_BYTES_MIN + 1)?;
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        let shard = ShardId(r.u64()?);
        let message = read_message(&mut r)?;
        if message.msg_type == MessageType::MsgSnapshot || message.snapshot.is_some() {
            return Err(DecodeError::Invalid("snapshot in a batch"));
        }
        out.push((shard, message));
    }
    r.finish()?;
    Ok(out)
}

/// Encodes the message of an [`crate::OutgoingSnapshot`].
pub fn encode_snapshot_message(message: &Message) -> Bytes {
    let mut out = vec![VERSION];
    put_message(&mut out, message);
    out.into()
}

/// The inverse of [`encode_snapshot_message`].
pub fn decode_snapshot_message(payload: Bytes) -> Result<Message, DecodeError> {
    let mut r = Reader::new(payload);
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of a snapshot message"));
    }
    let message = read_message(&mut r)?;
    r.finish()?;
    if message.msg_type != MessageType::MsgSnapshot || message.get_snapshot().get_metadata().index == 0 {
        return Err(DecodeError::Invalid("snapshot message"));
    }
    Ok(message)
}

/// Who sent a message.
pub fn sender(message: &Message) -> NodeId {
    node(message.from)
}

/// A node's id as raft-rs has it; ids beyond 32 bits do not exist and become 0, which is no node.
pub(crate) fn node(id: u64) -> NodeId {
    NodeId(u32::try_from(id).unwrap_or(0))
}

fn put_message(out: &mut Vec<u8>, m: &Message) {
    let kind = TYPES.iter().find(|(_, t)| *t == m.msg_type).map_or(SNAPSHOT, |(n, _)| *n);
    out.push(kind);
    for v in [m.to, m.from, m.term, m.log_term, m.index, m.commit, m.commit_term, m.request_snapshot] {
        put_u64(out, v);
    }
    out.push(u8::from(m.reject));
    put_u64(out, m.reject_hint);
    put_bytes(out, &m.context);
    put_u64(out, ((m.priority << 1) ^ (m.priority >> 63)) as u64);
    put_u64(out, m.deprecated_priority);
    put_u64(out, m.entries.len() as u64);
    for e in m.entries.iter() {
        out.push(match e.entry_type {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        });
        put_u64(out, e.term);
        put_u64(out, e.index);
        put_bytes(out, &e.data);
        put_bytes(out, &e.context);
    }
    let Some(snapshot) = m.snapshot.as_ref() else {
        out.push(0);
        return;
    };
    out.push(1);
    let meta = snapshot.get_metadata();
    let conf = meta.get_conf_state();
    put_u64(out, meta.index);
    put_u64(out, meta.term);
    out.push(u8::from(conf.auto_leave));
    for list in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
        put_u64(out, list.len() as u64);
        list.iter().for_each(|n| put_u64(out, *n));
    }
    put_bytes(out, &snapshot.data);
}

fn read_message(r: &mut Reader) -> Result<Message, DecodeError> {
    let kind = r.u8()?;
    let msg_type = match TYPES.iter().find(|(n, _)| *n == kind) {
        Some((_, t)) => *t,
        None if kind == SNAPSHOT => MessageType::MsgSnapshot,
        None => return Err(DecodeError::Invalid("message type")),
    };
    let mut m = Message { msg_type, to: r.u64()?, from: r.u64()?, term: r.u64()?, ..Message::default() };
    // raft-rs takes a message without a term for one of this node to itself.
    if m.term == 0 || node(m.from).0 == 0 || node(m.to).0 == 0 {
        return Err(DecodeError::Invalid("message head"));
    }
    m.log_term = r.u64()?;
    m.index = r.u64()?;
    m.commit = r.u64()?;
    m.commit_term = r.u64()?;
    m.request_snapshot = r.u64()?;
    m.reject = flag(r)?;
    m.reject_hint = r.u64()?;
    m.context = short(r.bytes()?);
    let zigzag = r.u64()?;
    m.priority = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    m.deprecated_priority = r.u64()?;
    let count = r.count(ENTRY_BYTES_MIN)?;
    let mut entries = Vec::with_capacity(count);
    for n in 0..count as u64 {
        let entry_type = match r.u8()? {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            _ => return Err(DecodeError::Invalid("entry type")),
        };
        let mut e = Entry { entry_type, term: r.u64()?, index: r.u64()?, ..Entry::default() };
        if m.index.checked_add(n + 1) != Some(e.index) {
            return Err(DecodeError::Invalid("entry index"));
        }
        e.data = short(r.bytes()?);
        e.context = short(r.bytes()?);
        entries.push(e);
    }
    m.entries = entries.into();
    if flag(r)? {
        let mut meta = SnapshotMetadata { index: r.u64()?, term: r.u64()?, ..SnapshotMetadata::default() };
        let mut conf = ConfState { auto_leave: flag(r)?, ..ConfState::default() };
        conf.voters = nodes(r)?;
        conf.learners = nodes(r)?;
        conf.voters_outgoing = nodes(r)?;
        conf.learners_next = nodes(r)?;
        meta.set_conf_state(conf);
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(meta);
        snapshot.data = r.bytes()?;
        m.set_snapshot(snapshot);
    }
    Ok(m)
}

fn flag(r: &mut Reader) -> Result<bool, DecodeError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid("flag")),
    }
}

fn nodes(r: &mut Reader) -> Result<Vec<u64>, DecodeError> {
    let count = r.count(1)?;
    (0..count).map(|_| Ok(u64::from(r.u32()?))).collect()
}

fn short(bytes: Bytes) -> Bytes {
    if bytes.len() < COPIED_BYTES_MAX { Bytes::copy_from_slice(&bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(from: u64) -> impl Strategy<Value = Vec<Entry>> {
        let one = (0..3usize, any::<u64>(), any::<Vec<u8>>(), any::<Vec<u8>>());
        proptest::collection::vec(one, 0..4).prop_map(move |list| {
            let kinds = [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
            let entry = |(n, (kind, term, data, context)): (usize, (usize, u64, Vec<u8>, Vec<u8>))| Entry {
                entry_type: kinds[kind],
                term,
                index: from + 1 + n as u64,
                data: data.into(),
                context: context.into(),
                ..Entry::default()
            };
            list.into_iter().enumerate().map(entry).collect()
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let head = (0..TYPES.len(), 1..=u32::MAX, 1..=u32::MAX, 1..=u64::MAX);
        let rest = (any::<[u64; 6]>(), any::<bool>(), any::<Vec<u8>>(), any::<i64>());
        (0..u64::MAX / 2)
            .prop_flat_map(move |index| (head.clone(), rest.clone(), entries(index), Just(index)))
            .prop_map(|((kind, to, from, term), (v, reject, context, priority), entries, index)| Message {
                msg_type: TYPES[kind].1,
                to: u64::from(to),
                from: u64::from(from),
                term,
                log_term: v[0],
                index,
                commit: v[1],
                commit_term: v[2],
                request_snapshot: v[3],
                reject,
                reject_hint: v[4],
                context: context.into(),
                priority,
                deprecated_priority: v[5],
                entries: entries.into(),
                ..Message::default()
            })
    }

    proptest! {
        #[test]
        fn batches_roundtrip(list in proptest::collection::vec((any::<u64>(), message()), 0..5)) {
            let list: Vec<_> = list.into_iter().map(|(s, m)| (ShardId(s), m)).collect();
            prop_assert_eq!(decode_messages(encode_messages(&list)).unwrap(), list);
        }

        #[test]
        fn snapshot_messages_roundtrip(
            m in message(), index in 1..=u64::MAX, term: u64, lists in any::<[Vec<u32>; 4]>(), auto_leave: bool,
        ) {
            let mut m = Message { msg_type: MessageType::MsgSnapshot, ..m };
            let [voters, learners, voters_outgoing, learners_next] =
                lists.map(|l| l.into_iter().map(u64::from).collect::<Vec<_>>());
            let mut meta = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
            meta.set_conf_state(ConfState {
                voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default()
            });
            let mut snapshot = Snapshot::default();
            snapshot.set_metadata(meta);
            m.set_snapshot(snapshot);
            prop_assert_eq!(decode_snapshot_message(encode_snapshot_message(&m)).unwrap(), m.clone());
            prop_assert!(decode_messages(encode_messages(&[(ShardId(1), m)])).unwrap().is_empty());
        }

        #[test]
        fn garbage_and_torn_batches_never_panic(
            garbage: Vec<u8>, m in message(), cut: prop::sample::Index, flip: prop::sample::Index, by: u8,
        ) {
            let _ = decode_messages(garbage.clone().into());
            let mut versioned = vec![VERSION];
            versioned.extend(&garbage);
            let _ = decode_messages(versioned.clone().into());
            let _ = decode_snapshot_message(versioned.into());
            let whole = encode_messages(&[(ShardId(1), m)]);
            prop_assert!(decode_messages(whole.slice(..cut.index(whole.len()))).is_err());
            let mut bent = whole.to_vec();
            let at = flip.index(bent.len());
            bent[at] ^= by;
            let _ = decode_messages(bent.into());
        }
    }

    #[test]
    fn what_a_peer_may_not_say_is_refused() {
        for kind in [0, 1, 2, 7, 10, 11, 12, 13, 15, 16, 19, 255] {
            let m = Message { to: 1, from: 2, term: 3, ..Message::default() };
            let mut bytes = vec![VERSION, 1, 9];
            put_message(&mut bytes, &m);
            bytes[3] = kind;
            assert!(decode_messages(bytes.into()).is_err(), "{kind}");
        }
    }
}
