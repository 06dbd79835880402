//! Where the catalog's rows are, and the gateway's cached snapshot of them.
//!
//!     table 1, oid        a descriptor (`codec`)
//!     table 2             the version of the catalog: read under a lock and raised by every DDL transaction
//!     table 3, oid        where a sequence stands (`sequences`)
//!
//! Invariants
//!   C1  Two DDL transactions never commit on the same version: each locks and writes the version key, so the second
//!       waits for the first, or fails with 40001.
//!   C2  The cached snapshot never goes back: `publish` keeps the higher version.
//!   C3  A DDL statement's transaction has returned only after its snapshot was published here, and every other gateway
//!       was told of it or has lost its schema lease ([`super::gateways`]).
//!   C4  Nobody uses a doubtful snapshot: a doubt is over when the catalog has been read after it was raised, not when
//!       somebody begins to read.
//!   C5  The first reading under a new schema lease (at the start, or after one was lost) comes behind a write of the
//!       version key, the *fence*: a DDL transaction that was under way, and may not have told this gateway, fails
//!       then by C1; one that reads the version later finds our lease.
//!
//! Failure: a COMMIT whose outcome is unknown marks the cache as doubtful; the next statement reads the catalog again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use isochrone_base::keyspace::{COUNTER, index_prefix};
use isochrone_base::{Key, KeyRange, Timestamp, Value, ordered};
use isochrone_txn::kv::{self, Isolation, KvStore, KvTxn, Lock, ScanOptions, TxnOptions};
use isochrone_types::Error;

use super::codec::{self, Descriptor};
use super::snapshot::CatalogSnapshot;
use crate::descriptor::TableDescriptor;
use crate::session::kv_error;

/// Table id of descriptors.
const DESCRIPTORS: u32 = 1;
/// Table id of the version.
const VERSION: u32 = 2;
/// Table id of sequence states.
const SEQUENCES: u32 = 3;
/// First oid of user objects, as in PostgreSQL.
pub const FIRST_USER_OID: u32 = 16_384;
/// How long the fence (C5) waits for a DDL transaction that is under way, before it makes it fail.
const FENCE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often the fence is tried again when it meets a DDL transaction that commits; then 40001.
const FENCE_ATTEMPTS_MAX: usize = 20;
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

/// An id for an index of this table, `at_least` as high as given, never given out before: what a transaction that did
/// not commit has written under its id, or removes later, must not meet the entries of another index.
pub async fn new_index_id(store: &Arc<dyn KvStore>, table: u32, at_least: u32) -> Result<u32, Error> {
    let mut key = [&COUNTER[..], b"index"].concat();
    key.extend_from_slice(&table.to_be_bytes());
    let mut id = store.add_counter(key.clone(), 1).await.map_err(kv_error)?;
    if let Some(short) = u64::from(at_least).checked_sub(id).filter(|n| *n > 0) {
        // Ids below come from the table's own count, when it was made. Of those we take now, the last is ours.
        id = store.add_counter(key, short).await.map_err(kv_error)? + short - 1;
    }
    u32::try_from(id).map_err(|_| Error::internal("out of index ids"))
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

/// Had the table this descriptor at the transaction's timestamp?
pub async fn was_the_same(txn: &mut dyn KvTxn, table: &TableDescriptor) -> Result<bool, Error> {
    let row = txn.get(&descriptor_key(table.oid), Lock::None).await.map_err(kv_error)?;
    Ok(match row.map(codec::decode).transpose()? {
        Some(Descriptor::Table(then)) => then.version == table.version && then.table_id == table.table_id,
        Some(Descriptor::Sequence(_)) | None => false,
    })
}

/// C5: writes the version key as it is.
async fn fence(store: &Arc<dyn KvStore>) -> Result<(), Error> {
    let key = version_key();
    let mut last = None;
    for _ in 0..FENCE_ATTEMPTS_MAX {
        let mut txn = store.begin(TxnOptions {
            isolation: Isolation::ReadCommitted,
            lock_wait_max: FENCE_WAIT_MAX,
            max_ts: store.schema_lease(),
            ..TxnOptions::default()
        });
        // A short DDL transaction is waited for; a long one is not: it is told by its COMMIT, and runs again.
        let row = match txn.get(&key, Lock::Exclusive).await {
            Err(kv::Error::LockTimeout(_)) => txn.get(&key, Lock::None).await,
            other => other,
        };
        let version = decode_version(row.map_err(kv_error)?.as_ref())?;
        txn.put(key.clone(), Some(version.to_be_bytes().to_vec().into())).map_err(kv_error)?;
        match txn.commit().await {
            Ok(_) => return Ok(()),
            // Once more is harmless, whatever became of it.
            Err(e @ (kv::Error::Serialization(_) | kv::Error::Deadlock | kv::Error::Unknown(_))) => {
                last = Some(e);
            }
            Err(e) => return Err(kv_error(e)),
        }
    }
    Err(last.map_or_else(|| Error::internal("the fence was not tried"), kv_error))
}

/// The gateway's cached catalog.
#[derive(Debug)]
pub struct CatalogCache {
    current: RwLock<Arc<CatalogSnapshot>>,
    stamp: AtomicU64,
    /// Doubts raised so far.
    doubts: AtomicU64,
    /// Doubts raised before the read of the catalog that `current` came from began.
    settled: AtomicU64,
    /// Times that the schema lease was lost; the start counts as one.
    losses: AtomicU64,
    /// How many of them the fence (C5) is behind.
    fenced: AtomicU64,
    /// There is a version at least this high: others told us.
    version_told: AtomicU64,
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
            losses: AtomicU64::new(1),
            fenced: AtomicU64::new(0),
            version_told: AtomicU64::new(0),
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

    /// Another gateway has committed this version of the catalog: ours is doubtful until it has been read.
    pub fn expect_version(&self, version: u64) {
        self.version_told.fetch_max(version, Ordering::AcqRel);
        self.mark_doubtful();
    }

    /// The schema lease was lost: anything may have changed since.
    pub fn lease_lost(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        self.mark_doubtful();
    }

    /// How often the schema lease was lost so far. As long as it stays the same, every lease the store shows belongs to
    /// one unbroken row of them, because the store says that one was lost before it shows the next.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// C2: takes a snapshot with a higher version.
    pub fn publish(&self, snapshot: Arc<CatalogSnapshot>) {
        let mut current = self.current.write().expect("no panic while the lock is held");
        if snapshot.version > current.version {
            self.stamp.store(snapshot.stamp, Ordering::Release);
            *current = snapshot;
        }
    }

    /// C4: reads the catalog from the store if it is doubtful, or waits for who does. False: the schema lease has ended
    /// or was lost meanwhile, or our clock is still behind a version that we were told of; to be tried again.
    pub async fn refresh(&self, store: &Arc<dyn KvStore>) -> Result<bool, Error> {
        if !self.is_doubtful() {
            return Ok(true);
        }
        let _reading = self.reading.lock().await;
        // A doubt that is raised while we read is not settled by it.
        let doubts = self.doubts.load(Ordering::Acquire);
        if self.settled.load(Ordering::Acquire) == doubts {
            return Ok(true);
        }
        let losses = self.losses();
        let lease = store.schema_lease();
        if lease != Timestamp::MAX && self.fenced.load(Ordering::Acquire) != losses {
            // The fence must stand behind the lease: only who looks for leases after it will find us.
            if lease <= store.now() || self.losses() != losses {
                return Ok(false);
            }
            fence(store).await?;
        }
        let told = self.version_told.load(Ordering::Acquire);
        let options =
            TxnOptions { isolation: Isolation::RepeatableRead, read_only: true, ..TxnOptions::default() };
        let mut txn = store.begin(options);
        let mut snapshot = load(&mut *txn).await?;
        if snapshot.version < told {
            return Ok(false);
        }
        let mut current = self.current.write().expect("no panic while the lock is held");
        // Every committed change raises the version (C1): at the same one the catalog is the same, and so plans stay.
        if snapshot.version > current.version {
            snapshot.keep_valid_from(&current);
            self.stamp.store(snapshot.stamp, Ordering::Release);
            *current = Arc::new(snapshot);
        }
        self.fenced.store(losses, Ordering::Release);
        self.settled.store(doubts, Ordering::Release);
        Ok(true)
    }
}
