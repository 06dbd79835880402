//! The catalog at one moment: immutable, shared, cheap to hold on to.
//!
//! A DDL transaction works on a copy of its own (the overlay) whose `stamp` no other snapshot has, so that a plan made
//! under an overlay is never taken for one made under the committed catalog.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isochrone_base::Timestamp;
use isochrone_types::{Error, SqlState};

use crate::descriptor::{IndexDescriptor, SequenceDescriptor, TableDescriptor};

/// The schema that user objects live in.
pub const PUBLIC: &str = "public";
/// Schemas made of virtual tables.
pub const VIRTUAL_SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "isochrone"];

static NEXT_STAMP: AtomicU64 = AtomicU64::new(1);

/// A number no other snapshot of this process has.
pub fn next_stamp() -> u64 {
    NEXT_STAMP.fetch_add(1, Ordering::Relaxed)
}

/// What a name in a schema stands for: tables, indexes and sequences share one name space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Object {
    /// A table, by oid.
    Table(u32),
    /// A sequence, by oid.
    Sequence(u32),
    /// An index, by its table's oid and its id.
    Index(u32, u32),
}

/// A table and since when its descriptor is true.
#[derive(Clone, Debug)]
pub struct TableEntry {
    /// The descriptor.
    pub table: Arc<TableDescriptor>,
    /// Commit timestamp of the change that made it: a snapshot below must not use it.
    pub valid_from: Timestamp,
}

/// See the file's head.
#[derive(Clone, Debug)]
pub struct CatalogSnapshot {
    /// Unique in this process: what plans are cached under.
    pub stamp: u64,
    /// The stored version, raised by every DDL transaction.
    pub version: u64,
    tables: BTreeMap<u32, TableEntry>,
    sequences: BTreeMap<u32, Arc<SequenceDescriptor>>,
    names: BTreeMap<String, Object>,
}

impl Default for CatalogSnapshot {
    fn default() -> CatalogSnapshot {
        CatalogSnapshot {
            stamp: next_stamp(),
            version: 0,
            tables: BTreeMap::new(),
            sequences: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

/// The oid of an index: derived, so that descriptors need not store it.
pub fn index_oid(table_oid: u32, index_id: u32) -> u32 {
    (1 << 30) | ((table_oid.wrapping_sub(16_384) & 0x3f_ffff) << 8) | (index_id & 0xff)
}

impl CatalogSnapshot {
    /// A copy to change, with a stamp of its own.
    pub fn edit(&self) -> CatalogSnapshot {
        CatalogSnapshot { stamp: next_stamp(), ..self.clone() }
    }

    /// What a name stands for.
    pub fn object(&self, name: &str) -> Option<Object> {
        self.names.get(name).copied()
    }

    /// A table by name.
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        match self.object(name)? {
            Object::Table(oid) => self.tables.get(&oid),
            _ => None,
        }
    }

    /// A table by oid.
    pub fn table_by_oid(&self, oid: u32) -> Option<&TableEntry> {
        self.tables.get(&oid)
    }

    /// The table whose keys carry this id.
    pub fn table_by_key_id(&self, table_id: u32) -> Option<&TableEntry> {
        self.tables.values().find(|t| t.table.table_id == table_id)
    }

    /// An index by its (derived) oid.
    pub fn index_by_oid(&self, oid: u32) -> Option<(&Arc<TableDescriptor>, &IndexDescriptor)> {
        self.tables().find_map(|t| {
            let primary = (!t.has_row_id()).then_some(&t.primary);
            primary.into_iter().chain(&t.indexes).find(|i| index_oid(t.oid, i.id) == oid).map(|i| (t, i))
        })
    }

    /// A sequence by name.
    pub fn sequence(&self, name: &str) -> Option<&Arc<SequenceDescriptor>> {
        match self.object(name)? {
            Object::Sequence(oid) => self.sequences.get(&oid),
            _ => None,
        }
    }

    /// A sequence by oid.
    pub fn sequence_by_oid(&self, oid: u32) -> Option<&Arc<SequenceDescriptor>> {
        self.sequences.get(&oid)
    }

    /// All tables, by oid.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableDescriptor>> {
        self.tables.values().map(|t| &t.table)
    }

    /// All sequences, by oid.
    pub fn sequences(&self) -> impl Iterator<Item = &Arc<SequenceDescriptor>> {
        self.sequences.values()
    }

    /// 42P07 if the name is taken.
    pub fn check_free(&self, name: &str) -> Result<(), Error> {
        match self.object(name) {
            None => Ok(()),
            Some(_) => {
                Err(Error::new(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists")))
            }
        }
    }

    /// A name like `base` that is free: `base`, `base1`, `base2`, ...
    pub fn free_name(&self, base: &str, also_taken: &[String]) -> String {
        let free = |n: &str| !self.names.contains_key(n) && !also_taken.iter().any(|t| t == n);
        if free(base) {
            return base.to_string();
        }
        (1u64..).map(|i| format!("{base}{i}")).find(|n| free(n)).expect("some number is not taken")
    }

    fn forget_names_of(&mut self, oid: u32) {
        self.names.retain(|_, o| !matches!(*o, Object::Table(t) | Object::Index(t, _) if t == oid));
    }

    /// Adds or replaces a table, and the names of its indexes.
    pub fn put_table(&mut self, table: TableDescriptor, valid_from: Timestamp) {
        self.forget_names_of(table.oid);
        self.names.insert(table.name.clone(), Object::Table(table.oid));
        if !table.has_row_id() {
            self.names.insert(table.primary.name.clone(), Object::Index(table.oid, 0));
        }
        for index in &table.indexes {
            self.names.insert(index.name.clone(), Object::Index(table.oid, index.id));
        }
        self.tables.insert(table.oid, TableEntry { table: Arc::new(table), valid_from });
    }

    /// Adds or replaces a sequence.
    pub fn put_sequence(&mut self, sequence: SequenceDescriptor) {
        self.names.retain(|_, o| *o != Object::Sequence(sequence.oid));
        self.names.insert(sequence.name.clone(), Object::Sequence(sequence.oid));
        self.sequences.insert(sequence.oid, Arc::new(sequence));
    }

    /// Takes out a table and its indexes' names.
    pub fn remove_table(&mut self, oid: u32) {
        self.forget_names_of(oid);
        self.tables.remove(&oid);
    }

    /// Takes out a sequence.
    pub fn remove_sequence(&mut self, oid: u32) {
        self.names.retain(|_, o| *o != Object::Sequence(oid));
        self.sequences.remove(&oid);
    }

    /// Tables that are as they were in an earlier reading of the same catalog are true since then, and not only since
    /// they were read again.
    pub fn keep_valid_from(&mut self, earlier: &CatalogSnapshot) {
        for (oid, entry) in &mut self.tables {
            if let Some(before) = earlier.tables.get(oid)
                && before.table.version == entry.table.version
            {
                entry.valid_from = before.valid_from;
            }
        }
    }

    /// Marks the given tables as true from `ts` on: called when their DDL transaction has committed.
    pub fn set_valid_from(&mut self, oids: &[u32], ts: Timestamp) {
        for oid in oids {
            if let Some(entry) = self.tables.get_mut(oid) {
                entry.valid_from = ts;
            }
        }
    }
}
