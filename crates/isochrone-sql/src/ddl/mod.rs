//! Statements that change the catalog.
//!
//! Every one of them runs in the session's transaction: it writes descriptors as rows and works on the session's own
//! copy of the catalog (the overlay), which becomes the node's at COMMIT; so DDL rolls back as everything else does.
//! What cannot roll back (new ids, rows written in bulk under an id nobody can see yet) is put on the list of things
//! to undo.
//!
//! * `create_table` CREATE TABLE; `alter` ALTER TABLE; `drop` DROP and TRUNCATE; `sequence`; `index` CREATE INDEX
//! * `rewrite` moves a table's rows to a new id or fills an index, in bounded batches
//!
//! Invariants
//!   D1  A descriptor is changed only while its table's exclusive lock is held, on this gateway and on all others
//!       ([`crate::catalog::gateways`]), or in a table made by the same transaction. Row estimates are an exception.
//!   D2  The overlay and the rows written say the same.
//!
//! Not supported, and refused by name (0A000): foreign keys, inheritance, partitions, temporary tables, generated
//! columns, exclusion constraints, partial and expression indexes, schemas, views, types, functions, triggers.

mod alter;
mod create_table;
mod drop;
mod index;
mod rewrite;
mod sequence;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::Timestamp;
use isochrone_txn::kv::{Isolation, KvStore, KvTxn, Lock, TxnOptions};
use isochrone_types::{Datum, Error, SqlState};
use sqlparser::ast::{self, Ident, ObjectName, ObjectNamePart};

use crate::catalog::gateways::Hold;
use crate::catalog::locks::Owner;
use crate::catalog::{CatalogSnapshot, codec, store};
use crate::descriptor::{IndexState, SequenceDescriptor, TableDescriptor};
use crate::face::Notice;
use crate::session::{Database, Internal, kv_error};

pub use create_table::create_as;
pub use index::{OnlineIndex, abandon_index, build_index_online, finish_index, start_index};
pub use rewrite::{BATCH_ROWS, Loader, Target, estimate_rows, index_range};

/// Longest identifier, in bytes, as in PostgreSQL.
pub const IDENTIFIER_BYTES_MAX: usize = 63;

/// Rows a query of our own may give.
const QUERY_ROWS_MAX: usize = 10_000;

/// Something to do when a transaction has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Remove the rows of a table id nobody can see any more.
    ClearTable(u32),
    /// Remove the entries of an index nobody can see any more: table id, index id.
    ClearIndex(u32, u32),
    /// Set a sequence back to its start.
    RestartSequence(u32),
    /// A sequence is gone.
    ForgetSequence(u32),
}

/// What a transaction did to the catalog.
#[derive(Default, Debug)]
pub struct DdlState {
    /// The transaction's own catalog, once it changed something.
    pub overlay: Option<Arc<CatalogSnapshot>>,
    /// Tables that were made or changed.
    pub changed: BTreeSet<u32>,
    /// Table ids made by this transaction: nobody else can see their rows.
    pub fresh: BTreeSet<u32>,
    /// Of those, the ones that have rows written in bulk.
    pub loaded: BTreeSet<u32>,
    /// Indexes (table oid, index id) that become Public at COMMIT.
    pub pending: Vec<(u32, u32)>,
    /// Tables (oids) made by this transaction: no other gateway can use them.
    pub made: BTreeSet<u32>,
    /// What other gateways keep for this transaction, once it locked a table.
    pub hold: Option<Hold>,
    /// Tables (oids) that DML of this transaction wrote through its buffer.
    pub dirty: BTreeSet<u32>,
    /// The transaction's level.
    pub isolation: Isolation,
    /// After COMMIT.
    pub on_commit: Vec<Action>,
    /// After ROLLBACK.
    pub on_rollback: Vec<Action>,
}

/// A mark in a [`DdlState`], for savepoints.
#[derive(Clone, Debug)]
pub struct DdlMark {
    overlay: Option<Arc<CatalogSnapshot>>,
    changed: BTreeSet<u32>,
    fresh: BTreeSet<u32>,
    on_commit: usize,
    on_rollback: usize,
}

impl DdlState {
    /// A mark to come back to.
    pub fn mark(&self) -> DdlMark {
        DdlMark {
            overlay: self.overlay.clone(),
            changed: self.changed.clone(),
            fresh: self.fresh.clone(),
            on_commit: self.on_commit.len(),
            on_rollback: self.on_rollback.len(),
        }
    }

    /// ROLLBACK TO: what was to be undone by a rollback must now be undone by a commit, too.
    pub fn restore(&mut self, mark: DdlMark) {
        self.on_commit.truncate(mark.on_commit);
        self.on_commit.extend(self.on_rollback.drain(mark.on_rollback..));
        let undone = &self.on_commit[mark.on_commit..];
        self.on_rollback.extend_from_slice(undone);
        self.overlay = mark.overlay;
        self.changed = mark.changed;
        self.fresh = mark.fresh;
    }
}

/// Before COMMIT: indexes that were filled in bulk become Public.
pub fn finish_pending(txn: &mut dyn KvTxn, state: &mut DdlState) -> Result<(), Error> {
    for (oid, id) in std::mem::take(&mut state.pending) {
        let Some(overlay) = &state.overlay else { continue };
        // Dropped since, or made after a savepoint that was gone back to: nothing to do.
        let Some(entry) = overlay.table_by_oid(oid) else { continue };
        let mut table = TableDescriptor::clone(&entry.table);
        let Some(index) = table.indexes.iter_mut().find(|i| i.id == id) else { continue };
        index.state = IndexState::Public;
        table.version += 1;
        txn.put(store::descriptor_key(oid), Some(codec::encode_table(&table).into())).map_err(kv_error)?;
        let mut next = overlay.edit();
        next.put_table(table, Timestamp::MIN);
        state.overlay = Some(Arc::new(next));
    }
    Ok(())
}

/// Prepares the text of a query against a catalog, to see whether it means something.
pub type Check = dyn Fn(&Arc<CatalogSnapshot>, &str) -> Result<(), Error> + Send + Sync;

/// What a DDL statement works with: the session's transaction and what belongs to it.
pub struct DdlContext<'a> {
    /// The node.
    pub db: &'a Arc<Database>,
    /// The transaction.
    pub txn: &'a mut dyn KvTxn,
    /// See [`DdlState`].
    pub state: &'a mut DdlState,
    /// The owner of table locks.
    pub owner: Owner,
    /// Tables locked by this transaction.
    pub locked: &'a mut BTreeSet<u32>,
    /// Longest wait for a table lock.
    pub lock_wait: Duration,
    /// For the client.
    pub notices: &'a mut Vec<Notice>,
    /// Checks that an expression means something: text of a query to prepare against the overlay.
    pub check: &'a Check,
    /// The settings of the session.
    pub settings: &'a isochrone_types::Settings,
    /// Runs queries of our own.
    pub query: &'a Internal,
}

impl DdlContext<'_> {
    pub(crate) fn store(&self) -> &Arc<dyn KvStore> {
        self.db.store()
    }

    /// The transaction's catalog as it is now.
    pub(crate) fn catalog(&self) -> Arc<CatalogSnapshot> {
        self.state.overlay.clone().unwrap_or_else(|| self.db.catalog().current())
    }

    /// C1: locks the version of the catalog and makes the overlay, once per transaction.
    pub async fn begin(&mut self) -> Result<(), Error> {
        if self.state.overlay.is_some() {
            return Ok(());
        }
        let key = store::version_key();
        let row = self.txn.get(&key, Lock::Exclusive).await.map_err(kv_error)?;
        let version = store::decode_version(row.as_ref())?;
        let mut base = self.db.catalog().current();
        if base.version != version || self.db.catalog().is_doubtful() {
            let mut read = store::load(self.txn).await?;
            read.keep_valid_from(&base);
            base = Arc::new(read);
        }
        let next = version + 1;
        self.txn.put(key, Some(next.to_be_bytes().to_vec().into())).map_err(kv_error)?;
        let mut overlay = base.edit();
        overlay.version = next;
        self.state.overlay = Some(Arc::new(overlay));
        Ok(())
    }

    fn edit(&mut self, f: impl FnOnce(&mut CatalogSnapshot)) {
        let mut next = self.catalog().edit();
        f(&mut next);
        self.state.overlay = Some(Arc::new(next));
    }

    /// Writes a table's descriptor (D2).
    pub(crate) fn put_table(&mut self, mut table: TableDescriptor) -> Result<(), Error> {
        table.version += 1;
        let bytes = codec::encode_table(&table);
        self.txn.put(store::descriptor_key(table.oid), Some(bytes.into())).map_err(kv_error)?;
        self.state.changed.insert(table.oid);
        self.edit(|c| c.put_table(table, Timestamp::MIN));
        Ok(())
    }

    /// Writes a sequence's descriptor (D2).
    pub(crate) fn put_sequence(&mut self, sequence: SequenceDescriptor) -> Result<(), Error> {
        let bytes = codec::encode_sequence(&sequence);
        self.txn.put(store::descriptor_key(sequence.oid), Some(bytes.into())).map_err(kv_error)?;
        self.edit(|c| c.put_sequence(sequence));
        Ok(())
    }

    pub(crate) fn remove_table_row(&mut self, oid: u32) -> Result<(), Error> {
        self.txn.put(store::descriptor_key(oid), None).map_err(kv_error)?;
        self.state.changed.insert(oid);
        self.edit(|c| c.remove_table(oid));
        Ok(())
    }

    pub(crate) fn remove_sequence_row(&mut self, oid: u32) -> Result<(), Error> {
        self.txn.put(store::descriptor_key(oid), None).map_err(kv_error)?;
        self.txn.put(store::sequence_key(oid), None).map_err(kv_error)?;
        self.state.on_commit.push(Action::ForgetSequence(oid));
        self.edit(|c| c.remove_sequence(oid));
        Ok(())
    }

    /// D1: the table of that name, locked against everybody else.
    pub(crate) async fn lock_table(&mut self, name: &str) -> Result<Arc<TableDescriptor>, Error> {
        let table = self.table(name)?;
        self.locked.insert(table.oid);
        self.db.locks().exclusive(table.oid, self.owner, self.lock_wait, self.db.timer()).await?;
        if !self.state.made.contains(&table.oid) {
            let id = self.txn.id();
            let hold = self.state.hold.get_or_insert_with(|| Hold::new(self.db, id));
            hold.add(table.oid, self.lock_wait).await?;
        }
        // C1 keeps other DDL away since `begin`, so the descriptor cannot have changed while we waited.
        self.table(name)
    }

    /// In long work on locked tables, now and then: do other gateways still keep them?
    pub(crate) fn check_hold(&self) -> Result<(), Error> {
        self.state.hold.as_ref().map_or(Ok(()), Hold::check)
    }

    /// The table of that name; 42P01, or 42809 when it is something else.
    pub(crate) fn table(&self, name: &str) -> Result<Arc<TableDescriptor>, Error> {
        let catalog = self.catalog();
        match catalog.table(name) {
            Some(entry) => Ok(entry.table.clone()),
            None if catalog.object(name).is_some() => {
                Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{name}\" is not a table")))
            }
            None => Err(Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))),
        }
    }

    /// The rows of a small query of our own over locked tables.
    pub(crate) async fn query_rows(&mut self, sql: &str) -> Result<Vec<Vec<Datum>>, Error> {
        let catalog = self.catalog();
        // Moves the snapshot of READ COMMITTED behind the locks; at SERIALIZABLE the reads are validated.
        self.txn.begin_statement();
        if self.state.isolation == Isolation::RepeatableRead {
            let mut fresh = self.store().begin(TxnOptions {
                isolation: Isolation::RepeatableRead,
                read_only: true,
                ..TxnOptions::default()
            });
            return self.query.rows(sql, &catalog, &mut *fresh, self.settings, QUERY_ROWS_MAX).await;
        }
        self.query.rows(sql, &catalog, &mut *self.txn, self.settings, QUERY_ROWS_MAX).await
    }

    pub(crate) fn notice(&mut self, sqlstate: &'static str, message: String) {
        self.notices.push(Notice { severity: "NOTICE", sqlstate, message });
    }

    /// A new id for a table's keys; what is written under it is removed when the transaction does not commit.
    pub(crate) async fn fresh_table_id(&mut self) -> Result<u32, Error> {
        let id = store::new_table_id(self.store()).await?;
        self.state.fresh.insert(id);
        self.state.on_rollback.push(Action::ClearTable(id));
        Ok(id)
    }
}

/// An identifier as the catalog has it: folded unless quoted, cut to 63 bytes.
pub fn fold(ident: &Ident) -> String {
    let mut name = match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    };
    if name.len() > IDENTIFIER_BYTES_MAX {
        let mut end = IDENTIFIER_BYTES_MAX;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
    }
    name
}

/// The name of a user's object; only the schema `public` has some.
pub fn object_name(name: &ObjectName) -> Result<String, Error> {
    let parts: Vec<String> = name
        .0
        .iter()
        .map(|p| match p {
            ObjectNamePart::Identifier(i) => Ok(fold(i)),
            other => Err(Error::unsupported(format!("the name {other}"))),
        })
        .collect::<Result<_, _>>()?;
    match parts.as_slice() {
        [name] => Ok(name.clone()),
        [schema, name] | [_, schema, name] => {
            check_schema(schema)?;
            Ok(name.clone())
        }
        _ => Err(Error::syntax(format!("improper qualified name \"{name}\""))),
    }
}

/// 3F000 or 42501 unless user objects can live in the schema.
pub fn check_schema(schema: &str) -> Result<(), Error> {
    if schema == crate::catalog::snapshot::PUBLIC {
        return Ok(());
    }
    if crate::catalog::snapshot::VIRTUAL_SCHEMAS.contains(&schema) {
        return Err(Error::new(
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied for schema {schema}"),
        ));
    }
    Err(Error::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist")))
}

/// `{a}_{b}_{suffix}`, cut so that it fits an identifier.
pub(crate) fn made_name(table: &str, columns: &str, suffix: &str) -> String {
    let room = IDENTIFIER_BYTES_MAX.saturating_sub(suffix.len() + 1 + usize::from(!columns.is_empty()));
    let (mut a, mut b) = (table.to_string(), columns.to_string());
    while a.len() + b.len() > room {
        // The longer part gives way, as in PostgreSQL's makeObjectName.
        if a.len() > b.len() {
            a.pop()
        } else {
            b.pop()
        };
    }
    if b.is_empty() { format!("{a}_{suffix}") } else { format!("{a}_{b}_{suffix}") }
}

/// Runs one DDL statement in the session's transaction; gives its command tag.
pub async fn run(ctx: &mut DdlContext<'_>, statement: &ast::Statement) -> Result<String, Error> {
    match statement {
        ast::Statement::CreateTable(create) => create_table::run(ctx, create).await,
        ast::Statement::CreateIndex(create) => index::run(ctx, create).await,
        ast::Statement::AlterTable(alter) => alter::run(ctx, alter).await,
        ast::Statement::AlterIndex { name, operation } => alter::alter_index(ctx, name, operation).await,
        ast::Statement::Drop { object_type, if_exists, names, cascade, .. } => {
            drop::run(ctx, *object_type, *if_exists, names, *cascade).await
        }
        ast::Statement::Truncate(truncate) => drop::truncate(ctx, truncate).await,
        ast::Statement::CreateSequence {
            temporary,
            if_not_exists,
            name,
            data_type,
            sequence_options,
            owned_by,
            ..
        } => {
            if *temporary {
                return Err(Error::unsupported("temporary sequences"));
            }
            sequence::create(ctx, *if_not_exists, name, data_type, sequence_options, owned_by).await
        }
        other => Err(unsupported(other)),
    }
}

/// ANALYZE: keeps what was counted.
pub async fn set_row_estimate(ctx: &mut DdlContext<'_>, name: &str, rows: u64) -> Result<(), Error> {
    ctx.begin().await?;
    let catalog = ctx.catalog();
    let Some(entry) = catalog.table(name) else { return Ok(()) };
    // Means nothing to transactions that run: no lock, and no new moment from which the table holds.
    let mut table = TableDescriptor::clone(&entry.table);
    table.row_estimate = rows;
    let bytes = codec::encode_table(&table);
    ctx.txn.put(store::descriptor_key(table.oid), Some(bytes.into())).map_err(kv_error)?;
    ctx.edit(|c| c.put_table(table, entry.valid_from));
    Ok(())
}

/// 0A000 with the statement's first words.
pub fn unsupported(statement: &ast::Statement) -> Error {
    let text = statement.to_string();
    let words: Vec<&str> = text
        .split_whitespace()
        .take_while(|w| w.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .take(3)
        .collect();
    Error::unsupported(if words.is_empty() { "this statement".to_string() } else { words.join(" ") })
}
