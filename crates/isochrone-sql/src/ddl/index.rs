//! CREATE INDEX.
//!
//! Outside of a transaction block it is built online, so that the table can be used meanwhile:
//!
//!     1. a transaction adds the index in state Building; when it has committed, every transaction maintains it
//!        (the table's exclusive lock waited for those that did not know of it)
//!     2. batches, each a serializable transaction of its own, write the entries of the rows that are there: a row
//!        that changes meanwhile fails the batch, which is then read again, smaller
//!     3. a transaction makes it Public
//!
//! Over several gateways: step 1 has frozen the table on all of them ([`crate::catalog::gateways`]), and returns when
//! each has read the catalog with the new index, or has lost its schema lease, so no writer misses it. The batches take
//! the shared lock of their own gateway only. That is enough: writers elsewhere may go on, because they maintain the
//! index, and a batch is validated against their rows like any transaction; and who wants to *change* the table, on any
//! gateway, must freeze it on this one first, which waits for the running batch and holds back the next. That one
//! looks at the catalog after it got the lock and when it is beyond doubt. If this gateway is cut off instead, the
//! change waits for the end of its schema lease, and a batch never commits above the lease it began under.
//!
//! A crash or an error between leaves an index that is maintained and never read: after an error it is removed, after
//! a crash DROP INDEX does it (as PostgreSQL's invalid indexes). Inside a block, or on a table of the same
//! transaction, the table stays locked and the index is filled at once.

use std::sync::Arc;

use isochrone_base::{KeyRange, Timestamp};
use isochrone_txn::kv::{self, Isolation, Lock, ScanOptions, TxnOptions};
use isochrone_types::{Error, Settings, SqlState};
use sqlparser::ast::{CreateIndex, IndexType};

use super::create_table::{index_columns, make_index};
use super::rewrite::{BATCH_ROWS, fill_index, index_range};
use super::{Action, DdlContext, drop, made_name, object_name};
use crate::catalog::locks::TABLE_LOCK_WAIT_MAX;
use crate::catalog::store;
use crate::descriptor::{IndexState, TableDescriptor};
use crate::rows::{IndexCodec, RowCodec, unique_violation};
use crate::session::{Database, kv_error};

/// How often one batch is tried again before the statement gives up with 40001.
const BATCH_ATTEMPTS_MAX: usize = 200;

/// An index that is being built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnlineIndex {
    /// Oid of its table.
    pub table_oid: u32,
    /// Its id in the table.
    pub index_id: u32,
}

/// What CREATE INDEX asks for, checked. `None`: it exists and that is fine.
async fn prepare(
    ctx: &mut DdlContext<'_>,
    create: &CreateIndex,
    state: IndexState,
) -> Result<Option<(Arc<TableDescriptor>, u32)>, Error> {
    if create.predicate.is_some() {
        return Err(Error::unsupported("a partial index (WHERE)"));
    }
    if !create.include.is_empty() {
        return Err(Error::unsupported("an index with INCLUDE"));
    }
    if create.nulls_distinct == Some(false) {
        return Err(Error::unsupported("NULLS NOT DISTINCT"));
    }
    match &create.using {
        None | Some(IndexType::BTree) => {}
        Some(other) => return Err(Error::unsupported(format!("index access method {other}"))),
    }
    let columns = index_columns(&create.columns)?;
    ctx.begin().await?;
    let table_name = object_name(&create.table_name)?;
    let name = match &create.name {
        Some(name) => {
            let name = object_name(name)?;
            if let Err(e) = ctx.catalog().check_free(&name) {
                if create.if_not_exists {
                    ctx.notice("42P07", format!("relation \"{name}\" already exists, skipping"));
                    return Ok(None);
                }
                return Err(e);
            }
            name
        }
        None => {
            let joined = columns.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>().join("_");
            ctx.catalog().free_name(&made_name(&table_name, &joined, "idx"), &[])
        }
    };
    let table = ctx.lock_table(&table_name).await?;
    let mut next = TableDescriptor::clone(&table);
    let id = store::new_index_id(ctx.store(), table.oid, next.next_index_id).await?;
    next.next_index_id = id + 1;
    let mut index =
        make_index(&table, id, name, create.unique, false, &columns).map_err(|e| match e.sqlstate {
            SqlState::UNDEFINED_COLUMN => {
                let missing = columns
                    .iter()
                    .find(|(c, _)| table.position_of(c).is_none())
                    .map_or("", |(c, _)| c.as_str());
                Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{missing}\" does not exist"))
            }
            _ => e,
        })?;
    index.state = state;
    next.indexes.push(index);
    ctx.state.on_rollback.push(Action::ClearIndex(table.table_id, id));
    ctx.put_table(next)?;
    Ok(Some((ctx.table(&table_name)?, id)))
}

/// CREATE INDEX inside of a transaction block.
pub(super) async fn run(ctx: &mut DdlContext<'_>, create: &CreateIndex) -> Result<String, Error> {
    if create.concurrently {
        return Err(Error::new(
            SqlState::ACTIVE_SQL_TRANSACTION,
            "CREATE INDEX CONCURRENTLY cannot run inside a transaction block",
        ));
    }
    if let Some((table, id)) = prepare(ctx, create, IndexState::Public).await? {
        fill_index(ctx, &table, id).await?;
    }
    Ok("CREATE INDEX".to_string())
}

/// Adds an index to a locked table and fills it (ALTER TABLE ADD UNIQUE).
pub(super) async fn add_filled(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    name: String,
    columns: &[(String, bool)],
) -> Result<(), Error> {
    let mut next = TableDescriptor::clone(table);
    let id = store::new_index_id(ctx.store(), table.oid, next.next_index_id).await?;
    next.next_index_id = id + 1;
    next.indexes.push(make_index(table, id, name, true, true, columns)?);
    ctx.state.on_rollback.push(Action::ClearIndex(table.table_id, id));
    ctx.put_table(next)?;
    let table = ctx.table(&table.name)?;
    fill_index(ctx, &table, id).await
}

/// Step 1.
pub async fn start_index(
    ctx: &mut DdlContext<'_>,
    create: &CreateIndex,
) -> Result<Option<OnlineIndex>, Error> {
    let made = prepare(ctx, create, IndexState::Building).await?;
    Ok(made.map(|(table, index_id)| OnlineIndex { table_oid: table.oid, index_id }))
}

fn gone() -> Error {
    Error::new(SqlState::UNDEFINED_OBJECT, "the index was dropped while it was being built")
}

fn changes_too_fast() -> Error {
    Error::new(SqlState::SERIALIZATION_FAILURE, "the catalog changes too fast for this statement")
}

/// Step 2. To be called again is harmless.
pub async fn build_index_online(
    db: &Arc<Database>,
    online: &OnlineIndex,
    settings: &Settings,
) -> Result<(), Error> {
    let owner = db.next_owner();
    let table_id = match db.catalog().current().table_by_oid(online.table_oid) {
        Some(entry) => entry.table.table_id,
        None => return Err(gone()),
    };
    let mut rest = Some(index_range(table_id, 0));
    let mut rows_max = BATCH_ROWS;
    let mut attempts = 0;
    while let Some(range) = rest.clone() {
        let losses = db.catalog().losses();
        db.settle().await?;
        // The table may not change within a batch.
        db.locks().shared(online.table_oid, owner, TABLE_LOCK_WAIT_MAX, db.timer()).await?;
        let max_ts = match db.lease_of(losses).await {
            Ok(_) if db.catalog().is_doubtful() => Err(changes_too_fast()),
            other => other,
        };
        let max_ts = match max_ts {
            Ok(max_ts) => max_ts,
            Err(e) => {
                db.locks().release(owner, [online.table_oid]);
                if e.is_retryable() && attempts < BATCH_ATTEMPTS_MAX {
                    attempts += 1;
                    continue;
                }
                return Err(e);
            }
        };
        let table = db.catalog().current().table_by_oid(online.table_oid).map(|e| e.table.clone());
        let result = match table {
            Some(table) if table.table_id == table_id => {
                batch(db, max_ts, &table, online.index_id, &range, rows_max, settings).await
            }
            // TRUNCATE or a rewrite: whatever is under the new id was written with the index.
            Some(table) if table.indexes.iter().any(|i| i.id == online.index_id) => Ok(None),
            _ => Err(gone()),
        };
        db.locks().release(owner, [online.table_oid]);
        match result {
            Ok(next) => {
                rest = next;
                attempts = 0;
                rows_max = (rows_max * 2).min(BATCH_ROWS);
            }
            Err(e) if e.is_retryable() && attempts < BATCH_ATTEMPTS_MAX => {
                attempts += 1;
                rows_max = (rows_max / 2).max(1);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One batch; gives the rest of the range.
async fn batch(
    db: &Arc<Database>,
    max_ts: Timestamp,
    table: &Arc<TableDescriptor>,
    index_id: u32,
    range: &KeyRange,
    rows_max: usize,
    settings: &Settings,
) -> Result<Option<KeyRange>, Error> {
    let index = table.indexes.iter().find(|i| i.id == index_id).ok_or_else(gone)?;
    let rows = RowCodec::new(table)?;
    let codec = IndexCodec::new(table, index)?;
    let options = TxnOptions { isolation: Isolation::Serializable, max_ts, ..TxnOptions::default() };
    let mut txn = db.store().begin(options);
    let page = txn.scan(range, ScanOptions { reverse: false, rows_max }).await.map_err(kv_error)?;
    for (key, value) in &page.rows {
        if rows_max == 1 {
            // Somebody writes this row all the time: queue up for it.
            txn.get(key, Lock::Exclusive).await.map_err(kv_error)?;
        }
        let row = rows.decode(key, value)?;
        let (entry, primary, unique) = codec.entry(&rows, &row)?;
        match txn.get(&entry, Lock::None).await.map_err(kv_error)? {
            Some(there) if there == primary => continue,
            Some(_) if unique => return Err(unique_violation(table, index, &row, settings, true)),
            _ => txn.put(entry, Some(primary)).map_err(kv_error)?,
        }
    }
    match txn.commit().await {
        // A batch is idempotent: an unknown outcome is tried again like a conflict.
        Err(kv::Error::Unknown(e)) => Err(Error::new(SqlState::SERIALIZATION_FAILURE, e)),
        Err(e) => Err(kv_error(e)),
        Ok(_) => Ok(page.rest),
    }
}

/// The table and index that is being built, locked; `None` when it is gone.
async fn locked(
    ctx: &mut DdlContext<'_>,
    online: &OnlineIndex,
) -> Result<Option<Arc<TableDescriptor>>, Error> {
    ctx.begin().await?;
    let Some(name) = ctx.catalog().table_by_oid(online.table_oid).map(|e| e.table.name.clone()) else {
        return Ok(None);
    };
    let table = ctx.lock_table(&name).await?;
    Ok(table.indexes.iter().any(|i| i.id == online.index_id).then_some(table))
}

/// Step 3.
pub async fn finish_index(ctx: &mut DdlContext<'_>, online: &OnlineIndex) -> Result<(), Error> {
    let table = locked(ctx, online).await?.ok_or_else(gone)?;
    let mut next = TableDescriptor::clone(&table);
    for index in next.indexes.iter_mut().filter(|i| i.id == online.index_id) {
        index.state = IndexState::Public;
    }
    ctx.put_table(next)
}

/// Instead of step 3, after an error.
pub async fn abandon_index(ctx: &mut DdlContext<'_>, online: &OnlineIndex) -> Result<(), Error> {
    match locked(ctx, online).await? {
        Some(table) => drop::remove_index(ctx, &table, online.index_id),
        None => Ok(()),
    }
}
