//! Rows and index entries as keys and values: the layout that `descriptor` describes, in one place, for executor,
//! COPY and DDL alike.
//!
//! Invariants
//!   W1  `decode(key(row), value(row))` gives the row back, exactly.
//!   W2  Two rows with equal keys (as the types compare) have the same key bytes.

use std::sync::Arc;

use isochrone_base::keyspace::index_prefix;
use isochrone_base::limits::KEY_BYTES_MAX;
use isochrone_base::{Key, Value};
use isochrone_types::key::{decode_key, encode_key};
use isochrone_types::row::{decode_row, encode_row};
use isochrone_types::{Datum, Error, SqlState, Type};

use crate::descriptor::{IndexDescriptor, TableDescriptor};

/// Does the key encoding of a type forget something that equality does not see? Such key columns are stored in the
/// value, too.
pub fn key_loses(ty: Type) -> bool {
    match ty {
        Type::Numeric(_) | Type::Char(_) | Type::Interval | Type::Float4 | Type::Float8 => true,
        Type::Array(e) => key_loses(*e),
        _ => false,
    }
}

/// A key column: position in the row, type, descending.
type KeyColumn = (usize, Type, bool);

fn key_columns(table: &TableDescriptor, index: &IndexDescriptor) -> Result<Vec<KeyColumn>, Error> {
    let column = |(id, descending): &(u32, bool)| {
        let at = table.position(*id).ok_or_else(|| {
            Error::internal(format!("index \"{}\" has a column that its table lacks", index.name))
        })?;
        Ok((at, table.columns[at].ty, *descending))
    };
    index.columns.iter().map(column).collect()
}

fn check_length(key: &Key, name: &str) -> Result<(), Error> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("index row size {} exceeds maximum {KEY_BYTES_MAX} for index \"{name}\"", key.len()),
        ));
    }
    Ok(())
}

/// Encodes and decodes the rows of a table.
#[derive(Clone, Debug)]
pub struct RowCodec {
    table: Arc<TableDescriptor>,
    prefix: Key,
    key: Vec<KeyColumn>,
    /// Columns in the value: id and position, by id.
    stored: Vec<(u32, usize)>,
    /// What absent columns read as.
    absent: Vec<Datum>,
}

impl RowCodec {
    /// For a table.
    pub fn new(table: &Arc<TableDescriptor>) -> Result<RowCodec, Error> {
        let key = key_columns(table, &table.primary)?;
        let in_key = |at: usize| key.iter().any(|(k, ty, _)| *k == at && !key_loses(*ty));
        let mut stored: Vec<(u32, usize)> =
            (0..table.columns.len()).filter(|at| !in_key(*at)).map(|at| (table.columns[at].id, at)).collect();
        stored.sort_unstable();
        Ok(RowCodec {
            prefix: index_prefix(table.table_id, 0),
            key,
            stored,
            absent: table.columns.iter().map(|c| c.missing.clone().unwrap_or_default()).collect(),
            table: table.clone(),
        })
    }

    /// The table.
    pub fn table(&self) -> &Arc<TableDescriptor> {
        &self.table
    }

    /// Appends the primary key columns in key encoding.
    pub fn key_suffix(&self, row: &[Datum], out: &mut Vec<u8>) -> Result<(), Error> {
        for (at, ty, descending) in &self.key {
            encode_key(&row[*at], ty, *descending, out)?;
        }
        Ok(())
    }

    /// The key of a row.
    pub fn key(&self, row: &[Datum]) -> Result<Key, Error> {
        let mut key = Vec::with_capacity(self.prefix.len() + 16 * self.key.len());
        key.extend_from_slice(&self.prefix);
        self.key_suffix(row, &mut key)?;
        check_length(&key, &self.table.primary.name)?;
        Ok(key)
    }

    /// The value of a row.
    pub fn value(&self, row: &[Datum]) -> Value {
        let columns: Vec<(u32, &Datum)> = self.stored.iter().map(|(id, at)| (*id, &row[*at])).collect();
        let mut out = Vec::new();
        encode_row(&columns, &mut out);
        out.into()
    }

    /// The whole row.
    pub fn decode(&self, key: &[u8], value: &[u8]) -> Result<Vec<Datum>, Error> {
        let mut row = self.absent.clone();
        let mut rest = key.strip_prefix(self.prefix.as_slice()).ok_or_else(|| {
            Error::corrupted(format!("a key does not belong to table \"{}\"", self.table.name))
        })?;
        for (at, ty, descending) in &self.key {
            row[*at] = decode_key(ty, *descending, &mut rest)?;
        }
        decode_row(value, &self.stored, &mut row)?;
        Ok(row)
    }
}

/// Encodes the entries of an index.
#[derive(Clone, Debug)]
pub struct IndexCodec {
    name: String,
    unique: bool,
    prefix: Key,
    columns: Vec<KeyColumn>,
}

impl IndexCodec {
    /// For an index of a table.
    pub fn new(table: &TableDescriptor, index: &IndexDescriptor) -> Result<IndexCodec, Error> {
        Ok(IndexCodec {
            name: index.name.clone(),
            unique: index.unique,
            prefix: index_prefix(table.table_id, index.id),
            columns: key_columns(table, index)?,
        })
    }

    /// The entry of a row; the third says whether another row with this key is a violation.
    pub fn entry(&self, rows: &RowCodec, row: &[Datum]) -> Result<(Key, Value, bool), Error> {
        let mut key = self.prefix.clone();
        let mut unique = self.unique;
        for (at, ty, descending) in &self.columns {
            unique &= !row[*at].is_null();
            encode_key(&row[*at], ty, *descending, &mut key)?;
        }
        let mut primary = Vec::new();
        rows.key_suffix(row, &mut primary)?;
        if !unique {
            key.extend_from_slice(&primary);
        }
        check_length(&key, &self.name)?;
        Ok((key, primary.into(), unique))
    }
}

/// 23505 for a row whose key another row has.
pub fn unique_violation(
    table: &TableDescriptor,
    index: &IndexDescriptor,
    row: &[Datum],
    settings: &isochrone_types::Settings,
    creating: bool,
) -> Error {
    let columns: Vec<&crate::descriptor::ColumnDescriptor> =
        index.columns.iter().filter_map(|(id, _)| table.position(*id).map(|at| &table.columns[at])).collect();
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let values: Vec<String> = columns
        .iter()
        .filter_map(|c| table.position(c.id).map(|at| (c, at)))
        .map(|(c, at)| isochrone_types::text::to_text(&row[at], &c.ty, settings))
        .collect();
    let (message, verb) = if creating {
        (format!("could not create unique index \"{}\"", index.name), "is duplicated")
    } else {
        (format!("duplicate key value violates unique constraint \"{}\"", index.name), "already exists")
    };
    Error::new(SqlState::UNIQUE_VIOLATION, message)
        .with_detail(format!("Key ({})=({}) {verb}.", names.join(", "), values.join(", ")))
        .with_table(table.schema.clone(), table.name.clone())
        .with_constraint(index.name.clone())
}
