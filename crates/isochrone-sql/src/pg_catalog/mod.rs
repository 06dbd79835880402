//! Tables that are computed when they are read: `pg_catalog` and `information_schema` as psql and drivers look at
//! them, `isochrone` for what is our own; and the functions that know the catalog or the session.
//!
//! A table is a line of text that names its columns ([`tables`]) and a function that makes its rows from the
//! transaction's catalog. Tables for things we do not have are there, with PostgreSQL's columns, and empty: clients
//! ask for them and take "none" for an answer.
//!
//! Not here: statistics views beyond `pg_stat_activity`, dependencies, access rights (everybody may do everything).

pub mod functions;
pub mod keys;
mod rows;
mod tables;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use isochrone_base::Timestamp;
use isochrone_txn::kv::BoxFuture;
use isochrone_types::{Datum, Error, Type};

use crate::catalog::CatalogSnapshot;
use crate::descriptor::ColumnDescriptor;
use crate::relation::{VirtualContext, VirtualTable};
use crate::session::Database;
use crate::settings::Settings;

/// What functions may know of their session.
pub struct SessionShared {
    /// `pg_backend_pid()`.
    pub pid: i32,
    settings: Mutex<Settings>,
    /// Generation of `settings`.
    generation: AtomicU64,
    /// What set_config set: name, value, local.
    changes: Mutex<Vec<(String, String, bool)>>,
    /// `transaction_isolation`.
    isolation: Mutex<&'static str>,
    /// The timestamp at which the running statement reads.
    snapshot: AtomicU64,
}

impl SessionShared {
    /// For a new session.
    pub fn new(pid: i32, settings: &Settings) -> SessionShared {
        SessionShared {
            pid,
            settings: Mutex::new(settings.clone()),
            generation: AtomicU64::new(settings.generation()),
            changes: Mutex::default(),
            isolation: Mutex::new("serializable"),
            snapshot: AtomicU64::new(0),
        }
    }

    /// The settings have changed.
    pub fn set_settings(&self, settings: &Settings) {
        *self.settings.lock().expect("no panic while the lock is held") = settings.clone();
        self.generation.store(settings.generation(), Ordering::Relaxed);
    }

    /// Are these other settings than the ones known here?
    pub fn is_stale(&self, settings: &Settings) -> bool {
        self.generation.load(Ordering::Relaxed) != settings.generation()
    }

    /// The level of the running transaction.
    pub fn set_isolation(&self, level: &'static str) {
        *self.isolation.lock().expect("no panic while the lock is held") = level;
    }

    /// A statement reads at this timestamp.
    pub fn set_snapshot(&self, ts: Timestamp) {
        self.snapshot.store(ts.0, Ordering::Relaxed);
    }

    /// The timestamp at which the running statement reads.
    pub fn snapshot(&self) -> Timestamp {
        Timestamp(self.snapshot.load(Ordering::Relaxed))
    }

    fn get(&self, name: &str) -> Result<Option<String>, Error> {
        if name.eq_ignore_ascii_case("transaction_isolation") {
            let level = *self.isolation.lock().expect("no panic while the lock is held");
            return Ok(Some(level.to_string()));
        }
        Ok(self.settings.lock().expect("no panic while the lock is held").get_opt(name))
    }

    fn set(&self, name: &str, value: &str, local: bool) -> Result<String, Error> {
        let mut settings = self.settings.lock().expect("no panic while the lock is held");
        settings.set(name, Some(value), local)?;
        let shown = settings.get(name)?;
        self.changes.lock().expect("no panic while the lock is held").push((
            name.to_string(),
            value.to_string(),
            local,
        ));
        Ok(shown)
    }

    /// What set_config did since the last call.
    pub fn take_changes(&self) -> Vec<(String, String, bool)> {
        let mut changes = self.changes.lock().expect("no panic while the lock is held");
        if changes.is_empty() { Vec::new() } else { std::mem::take(&mut *changes) }
    }
}

/// What the rows of a table are made from.
pub(crate) struct Source<'a> {
    pub context: VirtualContext<'a>,
    pub snapshot: Arc<CatalogSnapshot>,
    pub db: Arc<Database>,
}

pub(crate) type Rows = Result<Vec<Vec<Datum>>, Error>;
pub(crate) type MakeRows = for<'a> fn(&'a Source<'a>) -> BoxFuture<'a, Rows>;

/// A table of this module.
pub(crate) struct Computed {
    schema: &'static str,
    name: &'static str,
    oid: u32,
    columns: Vec<ColumnDescriptor>,
    make: MakeRows,
    db: Weak<Database>,
}

impl VirtualTable for Computed {
    fn schema(&self) -> &str {
        self.schema
    }

    fn name(&self) -> &str {
        self.name
    }

    fn columns(&self) -> &[ColumnDescriptor] {
        &self.columns
    }

    fn rows<'a>(&'a self, context: VirtualContext<'a>) -> BoxFuture<'a, Rows> {
        Box::pin(async move {
            let db = self.db.upgrade().ok_or_else(|| Error::internal("the database is closed"))?;
            let snapshot = match context.catalog.snapshot() {
                Some(s) => s.clone(),
                None => db.catalog().current(),
            };
            let source = Source { context, snapshot, db };
            let rows = (self.make)(&source).await?;
            debug_assert!(
                rows.iter().all(|r| r.len() == self.columns.len()),
                "{}.{}",
                self.schema,
                self.name
            );
            Ok(rows)
        })
    }
}

/// All computed tables of a node.
pub struct VirtualTables {
    schemas: BTreeMap<&'static str, BTreeMap<&'static str, Arc<Computed>>>,
}

impl VirtualTables {
    /// For a database.
    pub fn new(db: &Weak<Database>) -> VirtualTables {
        let mut schemas: BTreeMap<&'static str, BTreeMap<&'static str, Arc<Computed>>> = BTreeMap::new();
        for (i, (schema, name, columns, make)) in tables::TABLES.iter().enumerate() {
            let oid = tables::fixed_oid(name).unwrap_or(12_000 + i as u32);
            let table = Computed {
                schema,
                name,
                oid,
                columns: tables::columns(columns),
                make: *make,
                db: db.clone(),
            };
            schemas.entry(schema).or_default().insert(name, Arc::new(table));
        }
        VirtualTables { schemas }
    }

    /// A table by schema and name.
    pub fn get(&self, schema: &str, name: &str) -> Option<Arc<dyn VirtualTable>> {
        self.schemas.get(schema)?.get(name).map(|t| t.clone() as Arc<dyn VirtualTable>)
    }

    /// Is there such a schema?
    pub fn has_schema(&self, schema: &str) -> bool {
        self.schemas.contains_key(schema)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Computed>> {
        self.schemas.values().flat_map(BTreeMap::values)
    }
}

/// Oid of a schema.
pub(crate) fn schema_oid(schema: &str) -> u32 {
    match schema {
        "pg_catalog" => 11,
        "public" => 2_200,
        "information_schema" => 13_000,
        _ => 13_001,
    }
}

/// The schema with this oid.
pub(crate) fn schema_name(oid: u32) -> Option<&'static str> {
    ["pg_catalog", "public", "information_schema", "isochrone"].into_iter().find(|s| schema_oid(s) == oid)
}

/// Oid of the one role.
pub(crate) const ROLE_OID: u32 = 10;
/// Oid of the one database.
pub(crate) const DATABASE_OID: u32 = 5;

/// A name, quoted where SQL needs it.
pub(crate) fn quote_ident(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let reserved = [
        "user", "order", "group", "table", "select", "from", "where", "all", "and", "or", "end", "desc",
        "asc", "default", "check", "primary", "unique", "to", "limit", "offset",
    ];
    if plain && !reserved.contains(&name) {
        name.to_string()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// `format_type`.
pub(crate) fn format_type(oid: u32, typmod: Option<i32>) -> String {
    match Type::from_oid_typmod(oid, typmod.unwrap_or(-1)) {
        Some(Type::Char(None)) => "bpchar".to_string(),
        Some(ty) => ty.sql_name().to_string(),
        None if oid == 0 => "-".to_string(),
        None => "???".to_string(),
    }
}
