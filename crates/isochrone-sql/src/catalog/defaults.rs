//! Defaults of settings for every session of the database: `ALTER DATABASE .. SET`, as rows in the system keys.
//!
//!     key `d` name        the value, as SET would store it
//!
//! Invariants
//!   DS1  A session begins with what was acknowledged before it began, at whatever gateway: the rows are read then. What runs
//!        keeps what it began with, as in PostgreSQL. What the client says at the start goes before that.
//!   DS2  A change is part of the transaction that makes it.
//!
//! Failure: while the system keys cannot be read a session begins with what its node has read last, and is warned; if that
//! is nothing, it does not begin: it might silently be weaker than was asked for.

use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, KeyRange, keyspace};
use isochrone_txn::kv::{KvStore, KvTxn, Lock, ScanOptions, TxnOptions};
use isochrone_types::{Error, SqlState};

use crate::session::kv_error;
use crate::settings::Settings;

/// Settings with a default of their own; one more is refused with 54000.
pub const DEFAULTS_MAX: usize = 1_000;
const PAGE: ScanOptions = ScanOptions { reverse: false, rows_max: DEFAULTS_MAX };

/// What a node has read last.
#[derive(Default)]
pub struct Defaults(Mutex<Option<Vec<(String, String)>>>);

impl Defaults {
    /// The defaults as they are, or were when they could be read last, and why that is all.
    pub async fn now(
        &self,
        store: &Arc<dyn KvStore>,
    ) -> Result<(Vec<(String, String)>, Option<Error>), Error> {
        let read = read(store).await;
        let mut last = self.0.lock().expect("nothing panics while it is held");
        match (read, &*last) {
            (Ok(all), _) => {
                *last = Some(all.clone());
                Ok((all, None))
            }
            (Err(e), Some(all)) => Ok((all.clone(), Some(e))),
            (Err(e), None) => Err(e),
        }
    }
}

/// What ALTER DATABASE changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// SET name TO value.
    Set(String, String),
    /// RESET name, SET name TO DEFAULT.
    Reset(String),
    /// RESET ALL.
    ResetAll,
}

fn range() -> KeyRange {
    KeyRange::prefix(&keyspace::DEFAULT)
}

/// All defaults, by name.
async fn read(store: &Arc<dyn KvStore>) -> Result<Vec<(String, String)>, Error> {
    let mut txn = store.begin(TxnOptions { read_only: true, ..TxnOptions::default() });
    let page = txn.scan(&range(), PAGE).await.map_err(kv_error)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(page.rows.iter().map(|(key, value)| (text(&key[keyspace::DEFAULT.len()..]), text(value))).collect())
}

/// Changes a default, in this transaction (DS2).
pub async fn change(txn: &mut dyn KvTxn, change: &Change) -> Result<(), Error> {
    match change {
        Change::Set(name, value) => {
            let mut settings = Settings::default();
            settings.set(name, Some(value), false)?;
            let value = settings.get(name)?;
            let name = Settings::canonical_name(name).map_or(name.to_ascii_lowercase(), str::to_string);
            if txn.scan(&range(), PAGE).await.map_err(kv_error)?.rows.len() >= DEFAULTS_MAX {
                return Err(Error::new(
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("more than {DEFAULTS_MAX} settings have a default of their own"),
                ));
            }
            txn.put(keyspace::default_key(&name), Some(Bytes::from(value.into_bytes()))).map_err(kv_error)
        }
        Change::Reset(name) => {
            let name = Settings::canonical_name(name).map_or(name.to_ascii_lowercase(), str::to_string);
            let key = keyspace::default_key(&name);
            txn.get(&key, Lock::None).await.map_err(kv_error)?;
            txn.put(key, None).map_err(kv_error)
        }
        Change::ResetAll => {
            for (key, _) in txn.scan(&range(), PAGE).await.map_err(kv_error)?.rows {
                txn.put(key.to_vec(), None).map_err(kv_error)?;
            }
            Ok(())
        }
    }
}
