//! Where the catalog's rows are, and the node's cached snapshot of them.
//!
//!     table 1, oid        a descriptor (`codec`)
//!     table 2             the version of the catalog: read under a lock and raised by every DDL transaction
//!     table 3, oid        where a sequence stands (`sequences`)
//!
//! Invariants
//!   C1  Two DDL transactions never commit on the same version: each locks and writes the version key, so the second
//!       waits for the first, or fails with 40001.
//!   C2  The cached snapshot never goes back: `publish` keeps the higher version.
//!   C3  A DDL statement's transaction has returned only after its snapshot was published (single node).
//!
//!   C4  Nobody uses a doubtful snapshot: a doubt is over when the catalog has been read after it was raised, not when
//!       somebody begins to read.
//!
//! Failure: a COMMIT whose outcome is unknown marks the cache as doubtful; the next statement reads the catalog again.
//! Missing: leases of other nodes on table versions (D16).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use isochrone_base::keyspace::{COUNTER, index_prefix};
use isochrone_base::{Key, KeyRange, Timestamp, Value, ordered};
use isochrone_txn::kv::{Isolation, KvStore, KvTxn, Lock, ScanOptions, TxnOptions};
use isochrone_types::Error;

use super::codec::{self, Descriptor};
use super::snapshot::CatalogSnapshot;
use crate::session::kv_error;

/// Table id of descriptors.
const DESCRIPTORS: u32 = 1;
/// Table id of the version.
const VERSION: u32 = 2;
/// Table id of sequence states.
const SEQUENCES: u32 = 3;
/// First oid of user objects, as in PostgreSQL.
pub const FIRST_USER_OID: u32 = 16_384;
/// Rows per page when the catalog is read.
const LOAD_PAGE_ROWS: usize = 1_000;

/// The key of a descriptor.
pub fn descriptor_key(oid: u32) -> Key {
    let mut key = index_prefix(DESCRIPTORS, 0);
    ordered::put_u64(&mut key, u64::from(oid));
    key
}

/// The key of the catalog's version.
pub fn version_key() -> Key {
    index_prefix(VERSION, 0)
}

/// The key of a sequence's state.
pub fn sequence_key(oid: u32) -> Key {
    let mut key = index_prefix(SEQUENCES, 0);
    ordered::put_u64(&mut key, u64::from(oid));
    key
}

/// The counter that oids come from.
fn oid_counter() -> Key {
    [&COUNTER[..], b"oid"].concat()
}

/// The counter that table ids come from.
fn table_id_counter() -> Key {
    [&COUNTER[..], b"table"].concat()
}

/// A new oid, never given out before.
pub async fn new_oid(store: &Arc<dyn KvStore>) -> Result<u32, Error> {
    let n = store.add_counter(oid_counter(), 1).await.map_err(kv_error)?;
    u32::try_from(n)
        .ok()
        .and_then(|n| n.checked_add(FIRST_USER_OID))
        .filter(|oid| *oid < 1 << 30)
        .ok_or_else(|| Error::internal("out of oids"))
}

/// A new id for a table's keys, never given out before.
pub async fn new_table_id(store: &Arc<dyn KvStore>) -> Result<u32, Error> {
    let n = store.add_counter(table_id_counter(), 1).await.map_err(kv_error)?;
    u32::try_from(n)
        .ok()
        .and_then(|n| n.checked_add(isochrone_base::keyspace::FIRST_USER_TABLE))
        .ok_or_else(|| Error::internal("out of table ids"))
}

/// The version in its row.
pub fn decode_version(value: Option<&Value>) -> Result<u64, Error> {
    match value {
        None => Ok(0),
        Some(v) => {
            let bytes: [u8; 8] =
                v[..].try_into().map_err(|_| Error::corrupted("the catalog's version does not decode"))?;
            Ok(u64::from_be_bytes(bytes))
        }
    }
}

/// Reads the whole catalog as the transaction sees it.
pub async fn load(txn: &mut dyn KvTxn) -> Result<CatalogSnapshot, Error> {
    let mut snapshot = CatalogSnapshot::default();
    let version = txn.get(&version_key(), Lock::None).await.map_err(kv_error)?;
    snapshot.version = decode_version(version.as_ref())?;
    let mut rest = Some(KeyRange::prefix(&index_prefix(DESCRIPTORS, 0)));
    while let Some(range) = rest {
        let options = ScanOptions { reverse: false, rows_max: LOAD_PAGE_ROWS };
        let page = txn.scan(&range, options).await.map_err(kv_error)?;
        for (_, value) in page.rows {
            match codec::decode(value)? {
                Descriptor::Table(t) => snapshot.put_table(t, Timestamp::MIN),
                Descriptor::Sequence(s) => snapshot.put_sequence(s),
            }
        }
        rest = page.rest;
    }
    let (oids, ts): (Vec<u32>, _) = (snapshot.tables().map(|t| t.oid).collect(), txn.read_ts());
    // How old a descriptor is was not stored: it was true when it was read, which is all that is known.
    snapshot.set_valid_from(&oids, ts);
    Ok(snapshot)
}

/// The node's cached catalog.
#[derive(Debug)]
pub struct CatalogCache {
    current: RwLock<Arc<CatalogSnapshot>>,
    stamp: AtomicU64,
    /// Doubts raised so far.
    doubts: AtomicU64,
    /// Doubts raised before the read of the catalog that `current` came from began.
    settled: AtomicU64,
    /// Held by who reads the catalog: others wait for what comes of it.
    reading: tokio::sync::Mutex<()>,
}

impl Default for CatalogCache {
    fn default() -> CatalogCache {
        let snapshot = CatalogSnapshot::default();
        CatalogCache {
            stamp: AtomicU64::new(snapshot.stamp),
            current: RwLock::new(Arc::new(snapshot)),
            doubts: AtomicU64::new(1),
            settled: AtomicU64::new(0),
            reading: tokio::sync::Mutex::default(),
        }
    }
}

impl CatalogCache {
    /// The committed catalog. No lock is held across an await: this only clones.
    pub fn current(&self) -> Arc<CatalogSnapshot> {
        self.current.read().expect("no panic while the lock is held").clone()
    }

    /// The stamp of [`CatalogCache::current`], for a check without touching the lock.
    pub fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    /// Must the catalog be read again before it is used?
    pub fn is_doubtful(&self) -> bool {
        self.settled.load(Ordering::Acquire) != self.doubts.load(Ordering::Acquire)
    }

    /// The outcome of a change is not known: the cache cannot be trusted.
    pub fn mark_doubtful(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// C2: takes a snapshot with a higher version.
    pub fn publish(&self, snapshot: Arc<CatalogSnapshot>) {
        let mut current = self.current.write().expect("no panic while the lock is held");
        if snapshot.version > current.version {
            self.stamp.store(snapshot.stamp, Ordering::Release);
            *current = snapshot;
        }
    }

    /// C4: reads the catalog from the store if it is doubtful, or waits for who does.
    pub async fn refresh(&self, store: &Arc<dyn KvStore>) -> Result<(), Error> {
        if !self.is_doubtful() {
            return Ok(());
        }
        let _reading = self.reading.lock().await;
        // A doubt that is raised while we read is not settled by it.
        let doubts = self.doubts.load(Ordering::Acquire);
        if self.settled.load(Ordering::Acquire) == doubts {
            return Ok(());
        }
        let options =
            TxnOptions { isolation: Isolation::RepeatableRead, read_only: true, ..TxnOptions::default() };
        let mut txn = store.begin(options);
        let snapshot = load(&mut *txn).await?;
        let mut current = self.current.write().expect("no panic while the lock is held");
        // An unknown outcome can have ended at the version that is cached already; C2 still holds.
        if snapshot.version >= current.version {
            self.stamp.store(snapshot.stamp, Ordering::Release);
            *current = Arc::new(snapshot);
        }
        self.settled.store(doubts, Ordering::Release);
        Ok(())
    }
}
