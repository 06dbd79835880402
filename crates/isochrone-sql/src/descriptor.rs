//! What the catalog knows of a table: plain data, stored in the catalog, cached by sessions, read by the planner.
//!
//! Keys of a row: `index_prefix(table id, 0)` and the primary key columns in key encoding (or the hidden row id, an
//! int8 column named [`ROW_ID`]). Value: the row encoding of every column that is not in the primary key, and of key
//! columns whose key encoding loses something (numeric scale, blank padding).
//! Keys of an index entry: `index_prefix(table id, index id)`, the index columns, then, unless the index is unique
//! and no column is NULL, the primary key columns. Value: the primary key columns in key encoding.

use isochrone_types::{Datum, Type};

/// Name of the hidden row id of tables without a primary key. The column has a DEFAULT as others have:
/// `nextval('..')` of a sequence that the table owns.
pub const ROW_ID: &str = "_rowid";

/// A column. `id` is its place in row encodings and is never reused.
#[derive(Clone, PartialEq, Debug)]
pub struct ColumnDescriptor {
    /// Never reused within the table; also pg_attribute.attnum.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Type with its modifier.
    pub ty: Type,
    /// NOT NULL.
    pub not_null: bool,
    /// DEFAULT, as SQL text, parsed and bound when a plan is made.
    pub default: Option<String>,
    /// What rows written before the column existed read as (ADD COLUMN .. DEFAULT constant).
    pub missing: Option<Datum>,
    /// Not shown by `*` and not insertable (the row id).
    pub hidden: bool,
}

/// How far an index is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexState {
    /// Written by DML, not read yet: being filled.
    Building,
    /// Written and read.
    Public,
}

/// A secondary index, or the primary key (id 0).
#[derive(Clone, PartialEq, Debug)]
pub struct IndexDescriptor {
    /// Within the table; 0 is the primary key.
    pub id: u32,
    /// Name, unique in the schema.
    pub name: String,
    /// No two rows with equal columns (NULLs are not equal).
    pub unique: bool,
    /// Column ids and direction (true: descending), in order.
    pub columns: Vec<(u32, bool)>,
    /// See [`IndexState`].
    pub state: IndexState,
    /// Made by a UNIQUE or PRIMARY KEY constraint rather than CREATE INDEX.
    pub constraint: bool,
}

/// A CHECK constraint.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckDescriptor {
    /// Name.
    pub name: String,
    /// The condition as SQL text.
    pub expr: String,
}

/// A table.
#[derive(Clone, PartialEq, Debug)]
pub struct TableDescriptor {
    /// Its oid; stays the same over TRUNCATE.
    pub oid: u32,
    /// The id in its keys; TRUNCATE and rewrites give a new one.
    pub table_id: u32,
    /// Schema (`public`).
    pub schema: String,
    /// Name.
    pub name: String,
    /// Raised by every change.
    pub version: u64,
    /// In the order of `SELECT *`.
    pub columns: Vec<ColumnDescriptor>,
    /// The primary key, id 0.
    pub primary: IndexDescriptor,
    /// Secondary indexes.
    pub indexes: Vec<IndexDescriptor>,
    /// CHECK constraints.
    pub checks: Vec<CheckDescriptor>,
    /// Next column id.
    pub next_column_id: u32,
    /// Next index id.
    pub next_index_id: u32,
    /// Rows, as ANALYZE or a load last counted them; 0: unknown. For the planner only.
    pub row_estimate: u64,
}

impl TableDescriptor {
    /// The position in `columns` of a column id.
    pub fn position(&self, id: u32) -> Option<usize> {
        self.columns.iter().position(|c| c.id == id)
    }

    /// The position in `columns` of a name.
    pub fn position_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    /// Has no primary key of its own.
    pub fn has_row_id(&self) -> bool {
        self.columns.iter().any(|c| c.hidden && c.name == ROW_ID)
    }
}

/// A sequence: a counter outside transactions, cached per node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SequenceDescriptor {
    /// Its oid.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// First value.
    pub start: i64,
    /// Step.
    pub increment: i64,
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
    /// Values a node takes at once.
    pub cache: u32,
    /// Table oid and column id it belongs to, if it goes with them.
    pub owned_by: Option<(u32, u32)>,
}
