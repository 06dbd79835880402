//! Column batches: what operators hand to each other.

use isochrone_types::Datum;

/// Rows of one batch, about: operators stop filling a batch when it has so many.
pub const BATCH_ROWS: usize = 1024;

/// Some rows, by column. Without columns there are still rows.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    columns: Vec<Vec<Datum>>,
    len: usize,
}

impl Batch {
    /// No rows of so many columns.
    pub fn empty(width: usize) -> Batch {
        Batch { columns: vec![Vec::new(); width], len: 0 }
    }

    /// From whole columns, each of `len` values.
    pub fn from_columns(columns: Vec<Vec<Datum>>, len: usize) -> Batch {
        debug_assert!(columns.iter().all(|c| c.len() == len), "columns are of one length");
        Batch { columns, len }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No rows?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// A value.
    #[inline]
    pub fn get(&self, column: usize, row: usize) -> &Datum {
        &self.columns[column][row]
    }

    /// A column.
    pub fn column(&self, column: usize) -> &[Datum] {
        &self.columns[column]
    }

    /// Adds a column.
    pub fn push_column(&mut self, column: Vec<Datum>) {
        debug_assert_eq!(column.len(), self.len, "columns are of one length");
        self.columns.push(column);
    }

    /// Adds a row.
    pub fn push_row(&mut self, row: impl IntoIterator<Item = Datum>) {
        let mut values = row.into_iter();
        for c in &mut self.columns {
            c.push(values.next().unwrap_or_default());
        }
        self.len += 1;
    }

    /// Copies a row out.
    pub fn row(&self, row: usize) -> Vec<Datum> {
        self.columns.iter().map(|c| c[row].clone()).collect()
    }

    /// These columns of these rows.
    pub fn gather(&self, rows: &[u32]) -> Batch {
        let columns =
            self.columns.iter().map(|c| rows.iter().map(|r| c[*r as usize].clone()).collect()).collect();
        Batch { columns, len: rows.len() }
    }

    /// Keeps the rows at which `keep` is true.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept = keep.iter().filter(|k| **k).count();
        if kept == self.len {
            return;
        }
        for c in &mut self.columns {
            let mut i = 0;
            c.retain(|_| {
                i += 1;
                keep[i - 1]
            });
        }
        self.len = kept;
    }

    /// Keeps the rows from `start` to before `end`.
    pub fn slice(&mut self, start: usize, end: usize) {
        for c in &mut self.columns {
            c.truncate(end);
            c.drain(..start);
        }
        self.len = end - start;
    }

    /// Appends the rows of another batch of the same width.
    pub fn append(&mut self, other: Batch) {
        for (c, mut o) in self.columns.iter_mut().zip(other.columns) {
            c.append(&mut o);
        }
        self.len += other.len;
    }

    /// These columns, in this order, possibly repeated.
    pub fn select(mut self, slots: &[usize]) -> Batch {
        let mut columns = Vec::with_capacity(slots.len());
        for (i, s) in slots.iter().enumerate() {
            let again = slots[i + 1..].contains(s);
            columns.push(if again {
                self.columns[*s].clone()
            } else {
                std::mem::take(&mut self.columns[*s])
            });
        }
        Batch { columns, len: self.len }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.columns.iter().flatten().map(Datum::memory_bytes).sum::<usize>() + 64
    }
}
