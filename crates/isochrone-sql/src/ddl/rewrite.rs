//! Many rows into a table: COPY, rewrites under a new id, and the filling of indexes.
//!
//! A [`Loader`] takes rows and writes them and their index entries in batches. Into a table that others can see, they
//! go through the transaction's buffer. Into an id that nobody else can see yet, a few go there, too, so that the
//! same transaction can read them; more than [`STAGED_ROWS_MAX`] go straight to the store (`bulk_write`), outside of
//! the buffer and its limit, and become visible when COMMIT publishes the id.
//!
//! Invariants
//!   B1  No two rows with the same unique key are written: batches are checked within themselves, and against what
//!       was written before, unless their keys lie beyond everything written so far.
//!   B2  `bulk_write` is only used on keys that no committed descriptor leads to.
//!
//! Failure: 23505 names the key; 54000 when the transaction's buffer is full. Missing: rows written in bulk survive a
//! crash before COMMIT as garbage under an id that nothing leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isochrone_base::keyspace::index_prefix;
use isochrone_base::{Key, KeyRange, Value};
use isochrone_txn::kv::{Isolation, KvStore, KvTxn, Lock, ScanOptions, TxnOptions};
use isochrone_types::{Datum, Error, Settings, SqlState};

use super::DdlContext;
use crate::descriptor::{IndexState, TableDescriptor};
use crate::rows::{IndexCodec, RowCodec, unique_violation};
use crate::session::kv_error;

/// Rows per batch.
pub const BATCH_ROWS: usize = 2_000;
/// Bytes of keys and values per batch, about.
pub const BATCH_BYTES: usize = 8 << 20;
/// Rows that a load into a fresh table keeps for the transaction's buffer before it goes on in bulk.
pub const STAGED_ROWS_MAX: usize = 5_000;
/// And bytes of them.
pub const STAGED_BYTES_MAX: usize = 4 << 20;

/// The rows of an index (0: the table itself).
pub fn index_range(table_id: u32, index: u32) -> KeyRange {
    KeyRange::prefix(&index_prefix(table_id, index))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Through the transaction's buffer.
    Buffer,
    /// Not decided yet: few rows so far.
    Staged,
    /// Straight to the store.
    Bulk,
}

/// What a [`Loader`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Rows and all index entries, into a table others see.
    Visible,
    /// The same, into an id nobody else sees. `empty`: nothing was written under it yet.
    Fresh {
        /// See above.
        empty: bool,
    },
    /// Only the entries of one index, whose id nobody else sees.
    Index(u32),
}

/// See the file's head.
pub struct Loader {
    rows_codec: RowCodec,
    /// Position in `table.indexes` and codec.
    indexes: Vec<(usize, IndexCodec)>,
    with_rows: bool,
    mode: Mode,
    creating: bool,
    batch: Vec<Vec<Datum>>,
    batch_bytes: usize,
    /// Per key prefix, the largest key written, while everything written is known.
    largest: BTreeMap<Key, Key>,
    all_known: bool,
    settings: Settings,
    written: u64,
}

/// An entry to write: key, value, and (when it must be unique) row and index it belongs to.
type Entry = (Key, Value, Option<(usize, Option<usize>)>);

impl Loader {
    /// For a table.
    pub fn new(table: &Arc<TableDescriptor>, target: Target, settings: &Settings) -> Result<Loader, Error> {
        let wanted = |id: u32| match target {
            Target::Index(only) => only == id,
            _ => true,
        };
        let mut indexes = Vec::new();
        for (i, index) in table.indexes.iter().enumerate().filter(|(_, x)| wanted(x.id)) {
            indexes.push((i, IndexCodec::new(table, index)?));
        }
        Ok(Loader {
            rows_codec: RowCodec::new(table)?,
            indexes,
            with_rows: !matches!(target, Target::Index(_)),
            mode: if target == Target::Visible { Mode::Buffer } else { Mode::Staged },
            creating: matches!(target, Target::Index(_)),
            batch: Vec::new(),
            batch_bytes: 0,
            largest: BTreeMap::new(),
            all_known: matches!(target, Target::Fresh { empty: true } | Target::Index(_)),
            settings: settings.clone(),
            written: 0,
        })
    }

    /// The wording of 23505: an index could not be made, rather than a row not be inserted.
    pub fn creating(mut self) -> Loader {
        self.creating = true;
        self
    }

    /// Everything goes straight to the store: some rows of the table are there already.
    pub fn go_bulk(&mut self) {
        self.mode = Mode::Bulk;
    }

    /// Were rows written outside the transaction's buffer?
    pub fn is_bulk(&self) -> bool {
        self.mode == Mode::Bulk
    }

    /// Rows taken.
    pub fn rows(&self) -> u64 {
        self.written + self.batch.len() as u64
    }

    /// Takes a row; true: call [`Loader::flush`] before the next.
    pub fn push(&mut self, row: Vec<Datum>) -> bool {
        self.batch_bytes += row.iter().map(Datum::memory_bytes).sum::<usize>();
        self.batch.push(row);
        let (rows, bytes) = match self.mode {
            Mode::Staged => (STAGED_ROWS_MAX, STAGED_BYTES_MAX),
            _ => (BATCH_ROWS, BATCH_BYTES),
        };
        self.batch.len() >= rows || self.batch_bytes >= bytes
    }

    /// Writes what was taken. `last`: nothing more comes.
    pub async fn flush(
        &mut self,
        store: &Arc<dyn KvStore>,
        txn: &mut dyn KvTxn,
        last: bool,
    ) -> Result<(), Error> {
        if self.mode == Mode::Staged {
            self.mode = if last { Mode::Buffer } else { Mode::Bulk };
        }
        let entries = self.entries()?;
        self.check_batch(&entries)?;
        if self.mode == Mode::Bulk {
            let mut reader = None;
            for check in self.not_beyond(&entries) {
                // Nothing of this table is in the transaction's buffer: whoever loads in bulk has seen to that.
                let reader = reader.get_or_insert_with(|| {
                    store.begin(TxnOptions {
                        isolation: Isolation::RepeatableRead,
                        read_only: true,
                        ..TxnOptions::default()
                    })
                });
                for (key, _, unique) in &entries[check] {
                    let Some(unique) = unique else { continue };
                    if reader.get(key, Lock::None).await.map_err(kv_error)?.is_some() {
                        return Err(self.violation(*unique));
                    }
                }
            }
            let rows = entries.into_iter().map(|(k, v, _)| (k, v)).collect();
            store.bulk_write(rows).await.map_err(kv_error)?;
        } else {
            for (key, value, unique) in entries {
                if let Some(unique) = unique
                    && txn.get(&key, Lock::None).await.map_err(kv_error)?.is_some()
                {
                    return Err(self.violation(unique));
                }
                txn.put(key, Some(value)).map_err(kv_error)?;
            }
        }
        self.written += self.batch.len() as u64;
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }

    /// The entries of the batch, sorted by key.
    fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut out = Vec::with_capacity(self.batch.len() * (1 + self.indexes.len()));
        for (n, row) in self.batch.iter().enumerate() {
            if self.with_rows {
                out.push((self.rows_codec.key(row)?, self.rows_codec.value(row), Some((n, None))));
            }
            for (i, codec) in &self.indexes {
                let (key, value, unique) = codec.entry(&self.rows_codec, row)?;
                out.push((key, value, unique.then_some((n, Some(*i)))));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    /// B1 within the batch.
    fn check_batch(&self, entries: &[Entry]) -> Result<(), Error> {
        match entries.windows(2).find(|w| w[0].0 == w[1].0) {
            Some(w) => Err(match w[1].2 {
                Some(unique) => self.violation(unique),
                None => Error::internal("two rows have the same index entry"),
            }),
            None => Ok(()),
        }
    }

    /// B1 against what was written before: the runs of entries that do not lie beyond it.
    fn not_beyond(&mut self, entries: &[Entry]) -> Vec<std::ops::Range<usize>> {
        let mut check = Vec::new();
        let mut i = 0;
        while i < entries.len() {
            // Entries are sorted, so those of one index are together.
            let prefix = &entries[i].0[..index_prefix(0, 0).len()];
            let end = i + entries[i..].partition_point(|(k, ..)| k.starts_with(prefix));
            let last = &entries[end - 1].0;
            let beyond = match self.largest.get_mut(prefix) {
                Some(largest) => {
                    let beyond = entries[i].0 > *largest;
                    if *last > *largest {
                        largest.clone_from(last);
                    }
                    beyond
                }
                None => {
                    self.largest.insert(prefix.to_vec(), last.clone());
                    true
                }
            };
            if !(beyond && self.all_known) {
                check.push(i..end);
            }
            i = end;
        }
        check
    }

    fn violation(&self, (row, index): (usize, Option<usize>)) -> Error {
        let table = self.rows_codec.table();
        let index = match index {
            None => &table.primary,
            Some(i) => &table.indexes[i],
        };
        unique_violation(table, index, &self.batch[row], &self.settings, self.creating)
    }
}

/// Where the rows of a locked table are read from, so that none is missed: rows that others committed while we waited
/// for the lock are above the snapshot of our transaction.
fn can_use_fresh(ctx: &DdlContext<'_>, table: &TableDescriptor) -> Result<bool, Error> {
    let dirty = ctx.state.dirty.contains(&table.oid);
    if !dirty {
        return Ok(true);
    }
    if ctx.state.loaded.contains(&table.table_id) {
        return Err(Error::unsupported(
            "changing a table that the same transaction has both loaded by COPY and written otherwise",
        ));
    }
    if ctx.state.isolation == Isolation::RepeatableRead && !ctx.state.fresh.contains(&table.table_id) {
        return Err(Error::unsupported(
            "changing a table that the same REPEATABLE READ transaction has written",
        ));
    }
    Ok(false)
}

/// Feeds every row of `old` through `map` into `loader`.
async fn feed(
    ctx: &mut DdlContext<'_>,
    old: &Arc<TableDescriptor>,
    loader: &mut Loader,
    map: &(dyn Fn(Vec<Datum>) -> Result<Vec<Datum>, Error> + Send + Sync),
) -> Result<(), Error> {
    let codec = RowCodec::new(old)?;
    let store = ctx.store().clone();
    let fresh = can_use_fresh(ctx, old)?;
    let mut reader = store.begin(TxnOptions {
        isolation: Isolation::RepeatableRead,
        read_only: true,
        ..TxnOptions::default()
    });
    if !fresh {
        // At READ COMMITTED this moves the snapshot behind the lock; at SERIALIZABLE the scan is validated at COMMIT.
        ctx.txn.begin_statement();
    }
    let mut rest = Some(index_range(old.table_id, 0));
    while let Some(range) = rest {
        ctx.check_hold()?;
        let options = ScanOptions { reverse: false, rows_max: BATCH_ROWS };
        let txn = if fresh { &mut *reader } else { &mut *ctx.txn };
        let page = txn.scan(&range, options).await.map_err(kv_error)?;
        for (key, value) in page.rows {
            let row = map(codec.decode(&key, &value)?)?;
            if loader.push(row) {
                loader.flush(&store, &mut *ctx.txn, false).await?;
            }
        }
        rest = page.rest;
    }
    loader.flush(&store, &mut *ctx.txn, true).await
}

/// Writes every row of `old`, changed by `map`, with all index entries under the fresh id of `new`.
pub(super) async fn rewrite_table(
    ctx: &mut DdlContext<'_>,
    old: &Arc<TableDescriptor>,
    new: &Arc<TableDescriptor>,
    map: &(dyn Fn(Vec<Datum>) -> Result<Vec<Datum>, Error> + Send + Sync),
) -> Result<u64, Error> {
    let mut loader = Loader::new(new, Target::Fresh { empty: true }, ctx.settings)?.creating();
    feed(ctx, old, &mut loader, map).await?;
    if loader.is_bulk() {
        ctx.state.loaded.insert(new.table_id);
    } else {
        ctx.state.dirty.insert(new.oid);
    }
    Ok(loader.rows())
}

/// Fills an index that nobody else sees, of a locked table. An index that took many rows is not read before COMMIT: our
/// own snapshot may be older than its entries.
pub(super) async fn fill_index(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    index: u32,
) -> Result<(), Error> {
    let mut loader = Loader::new(table, Target::Index(index), ctx.settings)?;
    feed(ctx, table, &mut loader, &Ok).await?;
    if loader.is_bulk() {
        let mut next = TableDescriptor::clone(table);
        for i in next.indexes.iter_mut().filter(|i| i.id == index) {
            i.state = IndexState::Building;
        }
        ctx.state.pending.push((table.oid, index));
        ctx.put_table(next)?;
    }
    Ok(())
}

/// Has the (locked) table any row for which `wrong` says so? Reads all of it.
pub(super) async fn find_row(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    wrong: &(dyn Fn(&[Datum]) -> bool + Send + Sync),
) -> Result<bool, Error> {
    let codec = RowCodec::new(table)?;
    let fresh = can_use_fresh(ctx, table)?;
    let mut reader = ctx.store().begin(TxnOptions {
        isolation: Isolation::RepeatableRead,
        read_only: true,
        ..TxnOptions::default()
    });
    if !fresh {
        ctx.txn.begin_statement();
    }
    let mut rest = Some(index_range(table.table_id, 0));
    while let Some(range) = rest {
        ctx.check_hold()?;
        let options = ScanOptions { reverse: false, rows_max: BATCH_ROWS };
        let txn = if fresh { &mut *reader } else { &mut *ctx.txn };
        let page = txn.scan(&range, options).await.map_err(kv_error)?;
        for (key, value) in page.rows {
            if wrong(&codec.decode(&key, &value)?) {
                return Ok(true);
            }
        }
        rest = page.rest;
    }
    Ok(false)
}

/// 23502 when a locked table has a NULL in one of the columns.
pub(super) async fn check_not_null(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    columns: &BTreeSet<usize>,
) -> Result<(), Error> {
    for &at in columns {
        if find_row(ctx, table, &move |row| row[at].is_null()).await? {
            return Err(contains_null(table, at));
        }
    }
    Ok(())
}

pub(super) fn contains_null(table: &TableDescriptor, at: usize) -> Error {
    let column = &table.columns[at].name;
    Error::new(
        SqlState::NOT_NULL_VIOLATION,
        format!("column \"{column}\" of relation \"{}\" contains null values", table.name),
    )
    .with_table(table.schema.clone(), table.name.clone())
    .with_column(column.clone())
}

/// Rows that ANALYZE counts one by one; what lies beyond is estimated from the size of the shards.
const COUNTED_ROWS_MAX: u64 = 200_000;

/// About how many rows a table has.
pub async fn estimate_rows(
    db: &Arc<crate::session::Database>,
    table: &Arc<TableDescriptor>,
) -> Result<u64, Error> {
    let options =
        TxnOptions { isolation: Isolation::RepeatableRead, read_only: true, ..TxnOptions::default() };
    let mut reader = db.store().begin(options);
    let mut rest = Some(index_range(table.table_id, 0));
    let (mut rows, mut bytes) = (0u64, 0u64);
    while let Some(range) = rest {
        let page = reader
            .scan(&range, ScanOptions { reverse: false, rows_max: BATCH_ROWS })
            .await
            .map_err(kv_error)?;
        rows += page.rows.len() as u64;
        bytes += page.rows.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>();
        rest = page.rest;
        if rows >= COUNTED_ROWS_MAX {
            break;
        }
    }
    if rest.is_none() || rows == 0 {
        return Ok(rows);
    }
    let shards = db.store().shards(index_range(table.table_id, 0)).await.map_err(kv_error)?;
    // Shards are shared with other tables: what they say is an upper bound, good enough for a planner.
    let total: u64 = shards.iter().map(|s| s.bytes).sum();
    Ok(rows.max(rows.saturating_mul(total) / bytes.max(1)))
}
