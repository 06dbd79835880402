//! Sequences: counters outside transactions, taken in blocks per node.
//!
//! A sequence's n-th value is `base + n * increment`; n comes from a counter of the store that only grows
//! ([`KvStore::add_counter`]), so that no value is given out twice, whatever rolls back or crashes. `setval` writes a
//! new base and a new epoch, and the counter of the new epoch starts at 0.
//!
//! Invariants
//!   S1  Within an epoch no value is given out twice.
//!   S2  When `setval` has returned, a value of an epoch that it ended is not given out on any node any more: it tells
//!       all gateways, and one that cannot be told has lost its schema lease and forgets what it knew.
//!
//! Gaps are normal: after a restart, after an error, between sessions. Failure: a `setval` that is committed and cannot
//! be told succeeds, with a warning in the log: other nodes may give out the rest of their blocks. Missing: CYCLE.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use isochrone_base::Key;
use isochrone_base::keyspace::COUNTER;
use isochrone_txn::kv::{self, BoxFuture, KvStore, Lock, TxnOptions};
use isochrone_types::{Error, SqlState};

use super::advisory::SessionAdvisory;
use super::gateways::tell;
use super::messages::{Answer, Message};
use super::snapshot::CatalogSnapshot;
use super::store::sequence_key;
use crate::descriptor::SequenceDescriptor;
use crate::relation::{AdvisoryLocks, Sequences};
use crate::session::kv_error;

/// How often `setval` and the first use try again when they meet each other.
const STATE_ATTEMPTS_MAX: usize = 16;
/// How often all gateways are told of a setval that is committed.
const TELL_ATTEMPTS_MAX: usize = 3;
/// Values a node takes from the store at once when the sequence does not say more.
pub const BLOCK: u32 = 32;

#[derive(Clone, Debug, Default)]
struct State {
    base: i128,
    epoch: u64,
    /// Indexes n that this gateway may give out.
    free: Range<u64>,
}

/// The sequences of a gateway.
pub struct NodeSequences {
    store: Arc<dyn KvStore>,
    states: Mutex<BTreeMap<u32, State>>,
}

fn counter_key(oid: u32, epoch: u64) -> Key {
    let mut key = [&COUNTER[..], b"seq"].concat();
    key.extend_from_slice(&oid.to_be_bytes());
    key.extend_from_slice(&epoch.to_be_bytes());
    key
}

fn encode_state(base: i128, epoch: u64) -> Vec<u8> {
    let mut out = base.to_be_bytes().to_vec();
    out.extend_from_slice(&epoch.to_be_bytes());
    out
}

fn decode_state(bytes: &[u8]) -> Result<(i128, u64), Error> {
    let bad = || Error::corrupted("the state of a sequence does not decode");
    let (base, epoch) = bytes.split_first_chunk::<16>().ok_or_else(bad)?;
    let epoch: [u8; 8] = epoch.try_into().map_err(|_| bad())?;
    Ok((i128::from_be_bytes(*base), u64::from_be_bytes(epoch)))
}

fn value_of(sequence: &SequenceDescriptor, base: i128, n: u64) -> Result<i64, Error> {
    let v = base + i128::from(sequence.increment) * i128::from(n);
    if v > i128::from(sequence.max) || v < i128::from(sequence.min) {
        let (what, bound) =
            if sequence.increment > 0 { ("maximum", sequence.max) } else { ("minimum", sequence.min) };
        return Err(Error::new(
            SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED,
            format!("nextval: reached {what} value of sequence \"{}\" ({bound})", sequence.name),
        ));
    }
    Ok(v as i64)
}

impl NodeSequences {
    /// The sequences in this store.
    pub fn new(store: Arc<dyn KvStore>) -> NodeSequences {
        NodeSequences { store, states: Mutex::default() }
    }

    fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<u32, State>) -> R) -> R {
        f(&mut self.states.lock().expect("no panic while the lock is held"))
    }

    /// Where the sequence stands, from the cache or the store.
    async fn state(&self, sequence: &SequenceDescriptor) -> Result<(i128, u64), Error> {
        if let Some(s) = self.with(|m| m.get(&sequence.oid).map(|s| (s.base, s.epoch))) {
            return Ok(s);
        }
        let options =
            TxnOptions { isolation: kv::Isolation::ReadCommitted, read_only: true, ..TxnOptions::default() };
        let mut txn = self.store.begin(options);
        let row = txn.get(&sequence_key(sequence.oid), Lock::None).await.map_err(kv_error)?;
        let (base, epoch) = match row {
            Some(row) => decode_state(&row)?,
            None => (i128::from(sequence.start), 0),
        };
        Ok(self.with(|m| {
            let s = m.entry(sequence.oid).or_insert(State { base, epoch, free: 0..0 });
            (s.base, s.epoch)
        }))
    }

    /// Takes `n` indexes out of the node's block, and fetches a new block if need be.
    async fn take_range(&self, sequence: &SequenceDescriptor, n: u64) -> Result<(u64, Range<u64>), Error> {
        loop {
            let (_, epoch) = self.state(sequence).await?;
            let got = self.with(|m| {
                let s = m.get_mut(&sequence.oid)?;
                (s.epoch == epoch && s.free.end - s.free.start >= n).then(|| {
                    let r = s.free.start..s.free.start + n;
                    s.free.start += n;
                    r
                })
            });
            if let Some(range) = got {
                return Ok((epoch, range));
            }
            let block = n.max(u64::from(sequence.cache.max(1)));
            let first =
                self.store.add_counter(counter_key(sequence.oid, epoch), block).await.map_err(kv_error)?;
            self.with(|m| {
                if let Some(s) = m.get_mut(&sequence.oid).filter(|s| s.epoch == epoch) {
                    if s.free.end == first {
                        s.free.end = first + block;
                    } else if s.free.end < first {
                        // Another node's block lies between: what is left of ours becomes a gap.
                        s.free = first..first + block;
                    }
                    // A later block is here already (a concurrent call): ours becomes a gap.
                }
            });
        }
    }

    /// setval: the next value is `value`, or the one after it.
    async fn set(&self, sequence: &SequenceDescriptor, value: i64, called: bool) -> Result<(), Error> {
        if value < sequence.min || value > sequence.max {
            return Err(Error::new(
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "setval: value {value} is out of bounds for sequence \"{}\" ({}..{})",
                    sequence.name, sequence.min, sequence.max
                ),
            ));
        }
        // A base beyond the bounds is fine: the next value is refused then.
        let base = i128::from(value) + if called { i128::from(sequence.increment) } else { 0 };
        let key = sequence_key(sequence.oid);
        for attempt in 1.. {
            let mut txn = self.store.begin(TxnOptions::default());
            let result = async {
                let row = txn.get(&key, Lock::Exclusive).await?;
                let epoch = match &row {
                    Some(row) => decode_state(row).map_err(|e| kv::Error::Internal(e.message.clone()))?.1,
                    None => 0,
                };
                txn.put(key.clone(), Some(encode_state(base, epoch + 1).into()))?;
                txn.commit().await?;
                Ok::<u64, kv::Error>(epoch + 1)
            }
            .await;
            match result {
                Ok(epoch) => {
                    self.know(sequence.oid, base, epoch);
                    self.tell_all(sequence, base, epoch).await;
                    return Ok(());
                }
                Err(kv::Error::Serialization(_) | kv::Error::Deadlock) if attempt < STATE_ATTEMPTS_MAX => {}
                Err(e) => return Err(kv_error(e)),
            }
        }
        unreachable!("the loop returns at its bound")
    }

    /// S2.
    async fn tell_all(&self, sequence: &SequenceDescriptor, base: i128, epoch: u64) {
        let message = Message::Sequence { oid: sequence.oid, epoch, base };
        for _ in 0..TELL_ATTEMPTS_MAX {
            match tell(&self.store, &message).await {
                Ok(answers) if answers.iter().all(|(_, a)| *a == Ok(Answer::Done)) => return,
                Ok(_) => {}
                Err(e) => tracing::debug!(error = %e, "a setval was not told"),
            }
        }
        tracing::warn!(sequence = %sequence.name, "not every node has heard that a sequence was set");
    }

    /// The sequence was set, here or by another gateway. Kept also if it was not used here yet: what we would read of
    /// it, with a clock that is behind, may be from before.
    pub fn know(&self, oid: u32, base: i128, epoch: u64) {
        self.with(|m| {
            if m.get(&oid).is_none_or(|s| s.epoch < epoch) {
                m.insert(oid, State { base, epoch, free: 0..0 });
            }
        });
    }

    /// The schema lease was lost: what is known may be old.
    pub fn forget_all(&self) {
        self.with(BTreeMap::clear);
    }

    /// Back to the start (TRUNCATE .. RESTART IDENTITY).
    pub async fn restart(&self, sequence: &SequenceDescriptor) -> Result<(), Error> {
        self.set(sequence, sequence.start, false).await
    }

    /// The sequence is gone: forgets it.
    pub fn forget(&self, oid: u32) {
        self.with(|m| m.remove(&oid));
    }
}

#[derive(Default)]
struct Mine {
    /// Reserved by this session: epoch and indexes.
    reserved: BTreeMap<u32, VecDeque<(u64, Range<u64>)>>,
    current: BTreeMap<u32, i64>,
    last: Option<u32>,
    catalog: Option<Arc<CatalogSnapshot>>,
}

/// The sequences as one session sees them.
pub struct SessionSequences {
    node: Arc<NodeSequences>,
    mine: Mutex<Mine>,
    advisory: Arc<SessionAdvisory>,
}

impl SessionSequences {
    /// For a new session.
    pub fn new(node: Arc<NodeSequences>, advisory: Arc<SessionAdvisory>) -> SessionSequences {
        SessionSequences { node, mine: Mutex::default(), advisory }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Mine) -> R) -> R {
        f(&mut self.mine.lock().expect("no panic while the lock is held"))
    }

    /// The catalog that sequences are looked up in from now on.
    pub fn set_catalog(&self, catalog: &Arc<CatalogSnapshot>) {
        self.with(|m| match &m.catalog {
            Some(c) if c.stamp == catalog.stamp => {}
            _ => m.catalog = Some(catalog.clone()),
        });
    }

    /// DISCARD SEQUENCES.
    pub fn discard(&self) {
        self.with(|m| {
            m.current.clear();
            m.reserved.clear();
            m.last = None;
        });
    }

    fn descriptor(&self, oid: u32) -> Result<Arc<SequenceDescriptor>, Error> {
        self.with(|m| m.catalog.as_ref().and_then(|c| c.sequence_by_oid(oid).cloned())).ok_or_else(|| {
            Error::new(SqlState::UNDEFINED_TABLE, format!("sequence with OID {oid} does not exist"))
        })
    }
}

impl Sequences for SessionSequences {
    fn advisory(&self) -> Option<&dyn AdvisoryLocks> {
        Some(&*self.advisory)
    }

    fn reserve<'a>(&'a self, sequence: u32, n: usize) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let have = self.with(|m| {
                m.reserved.get(&sequence).map_or(0, |q| q.iter().map(|(_, r)| r.end - r.start).sum::<u64>())
            });
            let need = (n as u64).saturating_sub(have);
            if need == 0 {
                return Ok(());
            }
            let descriptor = self.descriptor(sequence)?;
            let range = self.node.take_range(&descriptor, need).await?;
            self.with(|m| m.reserved.entry(sequence).or_default().push_back(range));
            Ok(())
        })
    }

    fn take(&self, sequence: u32) -> Result<i64, Error> {
        let descriptor = self.descriptor(sequence)?;
        let (base, epoch) = self
            .node
            .with(|m| m.get(&sequence).map(|s| (s.base, s.epoch)))
            // Forgotten between reserve and take (a lost lease, a drop): a new attempt reserves anew.
            .ok_or_else(|| Error::new(SqlState::SERIALIZATION_FAILURE, "the sequence is read again"))?;
        self.with(|m| {
            let queue = m.reserved.entry(sequence).or_default();
            while let Some((e, range)) = queue.front_mut() {
                // S2: what was reserved before a setval is dropped.
                if *e != epoch || range.is_empty() {
                    queue.pop_front();
                    continue;
                }
                let n = range.start;
                range.start += 1;
                let v = value_of(&descriptor, base, n)?;
                m.current.insert(sequence, v);
                m.last = Some(sequence);
                return Ok(v);
            }
            // A setval of another session came between reserve and take: a new attempt reserves anew.
            Err(Error::new(SqlState::SERIALIZATION_FAILURE, "the sequence was set by another session"))
        })
    }

    fn current(&self, sequence: u32) -> Result<i64, Error> {
        self.with(|m| m.current.get(&sequence).copied()).ok_or_else(|| {
            let name = self.descriptor(sequence).map(|d| d.name.clone()).unwrap_or_default();
            Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("currval of sequence \"{name}\" is not yet defined in this session"),
            )
        })
    }

    fn last(&self) -> Result<i64, Error> {
        self.with(|m| m.last.and_then(|s| m.current.get(&s).copied())).ok_or_else(|| {
            Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "lastval is not yet defined in this session",
            )
        })
    }

    fn set<'a>(&'a self, sequence: u32, value: i64, called: bool) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let descriptor = self.descriptor(sequence)?;
            self.node.set(&descriptor, value, called).await?;
            self.with(|m| {
                if called {
                    m.current.insert(sequence, value);
                }
            });
            Ok(())
        })
    }
}
