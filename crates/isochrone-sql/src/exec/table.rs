//! Rows of tables as the executor reads and writes them: only the wanted columns are decoded.

use std::sync::Arc;

use isochrone_base::keyspace::index_prefix;
use isochrone_types::key::decode_key;
use isochrone_types::row::decode_row;
use isochrone_types::{Datum, Error, Type};

use crate::descriptor::TableDescriptor;
use crate::rows::{IndexCodec, RowCodec, key_loses};

/// A key column and where it goes, if anywhere.
type KeyColumn = (Type, bool, Option<usize>);

/// Decodes some columns of a table's rows, or of the entries of an index that has them all.
#[derive(Debug)]
pub struct TableReader {
    prefix_len: usize,
    /// Prefix of the primary key.
    pub primary_prefix: Vec<u8>,
    /// Prefix of the index that is read.
    pub index_prefix: Vec<u8>,
    /// Types and directions of the read index's columns.
    pub key_types: Vec<(Type, bool)>,
    key: Vec<KeyColumn>,
    /// Primary key columns in the value of a covering index's entry.
    entry: Vec<KeyColumn>,
    wanted: Vec<(u32, usize)>,
    absent: Vec<Datum>,
    covering: bool,
}

fn until_last(mut columns: Vec<KeyColumn>) -> Vec<KeyColumn> {
    let n = columns.iter().rposition(|(_, _, to)| to.is_some()).map_or(0, |i| i + 1);
    columns.truncate(n);
    columns
}

impl TableReader {
    /// For these columns (positions in the table), through an index (0: the primary key, n: the n-th secondary).
    pub fn new(
        table: &Arc<TableDescriptor>,
        index: usize,
        covering: bool,
        columns: &[usize],
    ) -> Result<TableReader, Error> {
        let descriptor = match index {
            0 => &table.primary,
            n => table.indexes.get(n - 1).ok_or_else(|| Error::internal("an index is missing"))?,
        };
        let place = |id: u32| -> Result<(Type, Option<usize>), Error> {
            let p = table.position(id).ok_or_else(|| Error::internal("a key column is missing"))?;
            let ty = table.columns[p].ty;
            let to = columns.iter().position(|c| *c == p).filter(|_| !key_loses(ty));
            Ok((ty, to))
        };
        let list = |columns: &[(u32, bool)]| -> Result<Vec<KeyColumn>, Error> {
            columns.iter().map(|(id, desc)| place(*id).map(|(ty, to)| (ty, *desc, to))).collect()
        };
        let primary = list(&table.primary.columns)?;
        let own = list(&descriptor.columns)?;
        let in_key = |p: usize| {
            !key_loses(table.columns[p].ty)
                && table.primary.columns.iter().any(|(id, _)| *id == table.columns[p].id)
        };
        let mut wanted: Vec<(u32, usize)> = Vec::new();
        for (to, p) in columns.iter().enumerate() {
            if !in_key(*p) {
                wanted.push((table.columns[*p].id, to));
            }
        }
        wanted.sort_unstable();
        let primary_prefix = index_prefix(table.table_id, 0);
        Ok(TableReader {
            prefix_len: primary_prefix.len(),
            index_prefix: index_prefix(table.table_id, descriptor.id),
            primary_prefix,
            key_types: own.iter().map(|(t, d, _)| (*t, *d)).collect(),
            key: until_last(if covering { own } else { primary.clone() }),
            entry: if covering { until_last(primary) } else { Vec::new() },
            wanted,
            absent: columns.iter().map(|p| table.columns[*p].missing.clone().unwrap_or_default()).collect(),
            covering,
        })
    }

    /// A row of the wanted columns, from a key and value of the primary key or of the covering index.
    pub fn decode(&self, key: &[u8], value: &[u8]) -> Result<Vec<Datum>, Error> {
        let mut row = self.absent.clone();
        if !self.key.is_empty() {
            let mut rest = key
                .get(self.prefix_len..)
                .ok_or_else(|| Error::corrupted("a key is shorter than its prefix"))?;
            for (ty, desc, to) in &self.key {
                let d = decode_key(ty, *desc, &mut rest)?;
                if let Some(to) = to {
                    row[*to] = d;
                }
            }
        }
        if self.covering {
            let mut rest = value;
            for (ty, desc, to) in &self.entry {
                let d = decode_key(ty, *desc, &mut rest)?;
                if let Some(to) = to {
                    row[*to] = d;
                }
            }
        } else if !self.wanted.is_empty() {
            decode_row(value, &self.wanted, &mut row)?;
        }
        Ok(row)
    }
}

/// The codecs that a changing statement needs.
#[derive(Debug)]
pub struct TableWriter {
    /// The table.
    pub table: Arc<TableDescriptor>,
    /// Its rows.
    pub rows: RowCodec,
    /// Its secondary indexes, in order.
    pub indexes: Vec<IndexCodec>,
    /// Positions of columns that may not be NULL.
    pub not_null: Vec<usize>,
}

impl TableWriter {
    /// For a table.
    pub fn new(table: &Arc<TableDescriptor>) -> Result<TableWriter, Error> {
        let primary: Vec<u32> = table.primary.columns.iter().map(|(id, _)| *id).collect();
        Ok(TableWriter {
            rows: RowCodec::new(table)?,
            indexes: table.indexes.iter().map(|i| IndexCodec::new(table, i)).collect::<Result<_, _>>()?,
            not_null: (0..table.columns.len())
                .filter(|p| table.columns[*p].not_null || primary.contains(&table.columns[*p].id))
                .collect(),
            table: table.clone(),
        })
    }
}
