//! Nodes' records in the system keys: who is alive, and until when a node may use what it knows of the schema (design
//! D16).
//!
//!     key `n` node id     epoch, expires, cluster address, SQL address, draining, end of the lease before
//!
//! A node renews its record every [`RENEW_EVERY`] for [`LEASE`] from then. The record is the node's schema lease: as long as it
//! runs, the node may use its cached catalog, and all its transactions have `max_ts` at most at its end (R11.6).
//!
//! Invariants
//!   N2  A renewal commits at or below the end of the lease it renews (`max_ts`): whoever reads a record at T above its
//!       end knows that this lease is over for good.
//!   N3  A lease that begins (at start, and after a lapse) counts only after the query layer was told that the old one was
//!       lost ([`Gateway::lease_lost`]): it reads the catalog again, behind a write of the catalog's version that no DDL
//!       transaction survives that did not know of this node (crate sql, C5).
//!
//!   N6  A node that starts again may begin a lease while that of its earlier process runs, and what that one sent off may still be
//!       done under it. The record says when it ends, and until then nobody counts it as over.
//!
//! [`Liveness::tell`] reaches every other node whose lease runs, or waits its lease out: after it, no other node acts
//! on knowledge from before without having answered.
//!
//! A node whose cluster has no other node needs no lease: it ends never, and nothing is written. The first node that
//! joins changes that ([`Liveness::leave_alone`]) before it gets its id.
//!
//! How it fails: without a quorum for the system keys leases end and statements wait, then fail (57P03); they go on
//! by themselves when the quorum is back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use isochrone_base::codec::{DecodeError, Reader, put_ts};
use isochrone_base::{Bytes, KeyRange, NodeId, Timestamp, keyspace};
use isochrone_env::Timer;
use isochrone_net::{CallError, Lane, Network};
use isochrone_txn::Store;
use isochrone_txn::kv::{Error, Gateway, Isolation, KvStore, Lock, ScanOptions, TxnOptions};
use isochrone_txn::retry::retry;

use super::message::{Kind, Message};

/// How often a lease is renewed.
pub const RENEW_EVERY: Duration = Duration::from_millis(1_500);
/// How long a lease runs from its renewal. Four renewals may be missed.
pub const LEASE: Duration = Duration::from_secs(6);
/// Attempts of one renewal: the next one comes soon.
const ATTEMPTS_MAX: u32 = 5;
/// Pause before a node that did not answer is told again.
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// Nodes read from the records at most.
const NODES_MAX: usize = 10_000;

/// A node's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Counts its leases.
    pub epoch: u64,
    /// End of its lease.
    pub expires: Timestamp,
    /// Where other nodes reach it.
    pub address: String,
    /// Where SQL clients reach it.
    pub sql: String,
    /// It gives its shards away and stops soon.
    pub draining: bool,
    /// End of the lease before: what an earlier process of the node sent off may still be done until then (N6).
    pub before: Timestamp,
}

impl Message for NodeRecord {
    fn put(&self, out: &mut Vec<u8>) {
        use isochrone_base::codec::{put_bytes, put_u64};
        put_u64(out, u64::from(self.node.0));
        put_u64(out, self.epoch);
        put_ts(out, self.expires);
        put_bytes(out, self.address.as_bytes());
        put_bytes(out, self.sql.as_bytes());
        out.push(u8::from(self.draining));
        put_ts(out, self.before);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        let text = |b: Bytes| String::from_utf8(b.to_vec()).map_err(|_| DecodeError::Invalid("text"));
        Ok(NodeRecord {
            node: NodeId(r.u32()?),
            epoch: r.u64()?,
            expires: r.ts()?,
            address: text(r.bytes()?)?,
            sql: text(r.bytes()?)?,
            draining: r.u8()? != 0,
            // Records were written without it before.
            before: if r.remaining() == 0 { Timestamp::MIN } else { r.ts()? },
        })
    }
}

fn decode(bytes: &Bytes) -> Result<NodeRecord, Error> {
    NodeRecord::decode(bytes.clone()).map_err(|e| Error::Internal(format!("a node's record: {e}")))
}

/// This node's lease, and the way to the others.
pub struct Liveness {
    node: NodeId,
    address: String,
    sql: String,
    network: Arc<dyn Network>,
    timer: Arc<dyn Timer>,
    store: OnceLock<Weak<Store>>,
    gateway: OnceLock<Arc<dyn Gateway>>,
    /// End of the lease; `MAX`: alone.
    expires: AtomicU64,
    /// The lease's epoch; 0: alone, or it has not begun.
    epoch: AtomicU64,
    draining: AtomicBool,
    /// Lease changes are made one at a time.
    changing: tokio::sync::Mutex<()>,
    /// What was read last, for who can do with something old.
    known: Mutex<Vec<NodeRecord>>,
}

impl Liveness {
    /// A lease that has not begun; `alone`: none is needed.
    pub fn new(
        node: NodeId,
        address: String,
        sql: String,
        alone: bool,
        network: Arc<dyn Network>,
        timer: Arc<dyn Timer>,
    ) -> Liveness {
        let expires = if alone { Timestamp::MAX } else { Timestamp::MIN };
        Liveness {
            node,
            address,
            sql,
            network,
            timer,
            store: OnceLock::new(),
            gateway: OnceLock::new(),
            expires: AtomicU64::new(expires.0),
            epoch: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            changing: tokio::sync::Mutex::new(()),
            known: Mutex::new(Vec::new()),
        }
    }

    /// The store that holds the records. Once.
    pub fn set_store(&self, store: Weak<Store>) {
        let _second = self.store.set(store);
    }

    /// The query layer of this node. Once.
    pub fn set_gateway(&self, gateway: Arc<dyn Gateway>) {
        let _second = self.gateway.set(gateway);
    }

    /// The query layer of this node, once there is one.
    pub fn gateway(&self) -> Option<&Arc<dyn Gateway>> {
        self.gateway.get()
    }

    /// Until when this node may use what it knows of the schema.
    pub fn lease(&self) -> Timestamp {
        Timestamp(self.expires.load(Ordering::Acquire))
    }

    /// The epoch of the lease; 0 without one.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Does this node do without a lease?
    pub fn is_alone(&self) -> bool {
        self.lease() == Timestamp::MAX
    }

    /// Says in the record that this node will stop.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Is it going to stop?
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn store(&self) -> Result<Arc<Store>, Error> {
        let store = self.store.get().and_then(Weak::upgrade);
        store.ok_or_else(|| Error::Unavailable("the node is going down".into()))
    }

    fn record(&self, epoch: u64, now: Timestamp, before: Timestamp) -> NodeRecord {
        NodeRecord {
            node: self.node,
            epoch,
            expires: now.plus_micros(LEASE.as_micros() as u64),
            address: self.address.clone(),
            sql: self.sql.clone(),
            draining: self.draining(),
            before,
        }
    }

    /// Renews the lease, or begins one. To be called every [`RENEW_EVERY`].
    ///
    /// # Errors
    /// The system keys cannot be reached: the lease runs on to its end.
    pub async fn keep(&self) -> Result<(), Error> {
        let _one = self.changing.lock().await;
        let held = self.lease();
        if held == Timestamp::MAX {
            return Ok(());
        }
        let store = self.store()?;
        if held > store.now() && self.renew(&store, held).await? {
            return Ok(());
        }
        self.begin(&store).await
    }

    /// N2. False: the lease is over.
    async fn renew(&self, store: &Arc<Store>, held: Timestamp) -> Result<bool, Error> {
        let options = TxnOptions { max_ts: held, ..TxnOptions::default() };
        let backoff = store.coordinator().backoff();
        let key = keyspace::node_key(self.node);
        let renewed = retry(&**store, backoff, &options, ATTEMPTS_MAX, |mut txn| {
            let key = key.clone();
            async move {
                let Some(old) = txn.get(&key, Lock::None).await?.as_ref().map(decode).transpose()? else {
                    return Ok(None);
                };
                let next = self.record(old.epoch, txn.read_ts(), old.before);
                txn.put(key, Some(next.encode().into()))?;
                txn.commit().await?;
                Ok(Some(next.expires))
            }
        })
        .await;
        match renewed {
            Ok(Some(expires)) => {
                self.expires.store(expires.0, Ordering::Release);
                Ok(true)
            }
            Ok(None) => Ok(false),
            // A renewal that may have happened is no lease; another one follows.
            Err(_) if held <= store.now() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// N3.
    async fn begin(&self, store: &Arc<Store>) -> Result<(), Error> {
        let backoff = store.coordinator().backoff();
        let key = keyspace::node_key(self.node);
        let options = TxnOptions::default();
        let begun = retry(&**store, backoff, &options, ATTEMPTS_MAX, |mut txn| {
            let key = key.clone();
            async move {
                let old = txn.get(&key, Lock::None).await?.as_ref().map(decode).transpose()?;
                let (epoch, before) = old.map_or((1, Timestamp::MIN), |o| (o.epoch + 1, o.expires));
                let next = self.record(epoch, txn.read_ts(), before);
                txn.put(key, Some(next.encode().into()))?;
                txn.commit().await?;
                Ok::<_, Error>((next.epoch, next.expires))
            }
        });
        let (epoch, expires) = begun.await?;
        if let Some(gateway) = self.gateway.get() {
            gateway.lease_lost();
        }
        // In this order: who sees the new lease sees its epoch.
        self.epoch.store(epoch, Ordering::Release);
        self.expires.store(expires.0, Ordering::Release);
        tracing::info!(node = %self.node, "this node's lease has begun");
        Ok(())
    }

    /// Another node is about to join: from now on this one needs a lease too.
    pub async fn leave_alone(&self) -> Result<(), Error> {
        let _one = self.changing.lock().await;
        if self.is_alone() {
            let store = self.store()?;
            self.begin(&store).await?;
        }
        Ok(())
    }

    /// All records, as they are now, and the timestamp at which they were read.
    pub async fn records(&self) -> Result<(Timestamp, Vec<NodeRecord>), Error> {
        let store = self.store()?;
        let options =
            TxnOptions { isolation: Isolation::RepeatableRead, read_only: true, ..TxnOptions::default() };
        let backoff = store.coordinator().backoff();
        let (ts, records) = retry(&*store, backoff, &options, ATTEMPTS_MAX, |mut txn| async move {
            let mut records = Vec::new();
            let mut rest = Some(KeyRange::prefix(&keyspace::NODE));
            while let Some(range) = rest {
                let page = txn.scan(&range, ScanOptions { reverse: false, rows_max: NODES_MAX }).await?;
                for (_, value) in &page.rows {
                    records.push(decode(value)?);
                }
                rest = page.rest.filter(|_| records.len() < NODES_MAX);
            }
            Ok::<_, Error>((txn.read_ts(), records))
        })
        .await?;
        *self.known.lock().expect("nothing panics while it is held") = records.clone();
        Ok((ts, records))
    }

    /// The records as they were read last.
    pub fn known(&self) -> Vec<NodeRecord> {
        self.known.lock().expect("nothing panics while it is held").clone()
    }

    /// See the module, and `KvStore::tell_gateways`.
    pub async fn tell(
        &self,
        message: Bytes,
        wait_max: Duration,
    ) -> Result<Vec<(NodeId, Result<Bytes, String>)>, Error> {
        if self.is_alone() {
            return Ok(Vec::new());
        }
        let payload = Kind::Gateway.wrap(&message);
        let mut answers: BTreeMap<NodeId, Result<Bytes, String>> = BTreeMap::new();
        let told = async {
            loop {
                let (now, records) = self.records().await?;
                let silent: Vec<NodeId> = records
                    .iter()
                    .filter(|r| r.node != self.node && r.expires > now && !answers.contains_key(&r.node))
                    .map(|r| r.node)
                    .collect();
                // N6: nobody can answer for an earlier process, of this node neither.
                let mut all = records.iter().all(|r| r.before <= now);
                if silent.is_empty() && all {
                    return Ok(());
                }
                let calls =
                    silent.iter().map(|node| self.network.call(*node, Lane::Main, payload.clone(), wait_max));
                let results = futures_util::future::join_all(calls).await;
                for (node, result) in silent.into_iter().zip(results) {
                    match result {
                        Ok(answer) => _ = answers.insert(node, Ok(answer)),
                        Err(CallError::Refused(why)) => _ = answers.insert(node, Err(why)),
                        Err(error) => {
                            tracing::debug!(%node, %error, "a gateway was not reached");
                            all = false;
                        }
                    }
                }
                if all {
                    // A lease that began meanwhile is N3's affair.
                    return Ok(());
                }
                self.timer.sleep(TELL_PAUSE).await;
            }
        };
        let in_time = tokio::select! {
            biased;
            result = told => Some(result),
            () = self.timer.sleep(wait_max) => None,
        };
        match in_time {
            Some(result) => result?,
            None => {
                return Err(Error::Unavailable(format!(
                    "some nodes neither answered nor lost their lease within {wait_max:?}"
                )));
            }
        }
        Ok(answers.into_iter().collect())
    }
}
