//! Reading tables: keys and ranges from key parts, pages from the transaction, rows from pages.

use std::collections::VecDeque;

use isochrone_base::range::prefix_end;
use isochrone_base::{Bytes, Key, KeyRange, Value};
use isochrone_txn::kv::{Lock, ScanOptions};
use isochrone_types::key::encode_key;
use isochrone_types::{Datum, Error, SqlState, Type};

use super::batch::{BATCH_ROWS, Batch};
use super::eval::{RowRef, eval, eval_true};
use super::{BATCH_WORK, Exec, kv_error};
use crate::plan::expr::Expr;
use crate::plan::node::{KeyPart, Scan};

/// Rows of the first page of a scan; each further one has four times as many, up to a batch.
const FIRST_PAGE_ROWS: usize = 32;
/// Keys that one scan may look up; more are 54000.
const KEYS_MAX: usize = 1 << 20;

/// A scan in progress.
#[derive(Default)]
pub(crate) struct ScanRun {
    opened: bool,
    points: VecDeque<Key>,
    ranges: VecDeque<KeyRange>,
    page: usize,
}

/// A value as the key column's type; `None` when no value of that type equals it.
pub(crate) fn narrow(d: Datum, ty: Type) -> Option<Datum> {
    match (ty, &d) {
        (Type::Int2, Datum::Int4(_) | Datum::Int8(_)) => {
            d.as_i64().and_then(|v| v.try_into().ok()).map(Datum::Int2)
        }
        (Type::Int4, Datum::Int2(_) | Datum::Int8(_)) => {
            d.as_i64().and_then(|v| v.try_into().ok()).map(Datum::Int4)
        }
        (Type::Int8, Datum::Int2(_) | Datum::Int4(_)) => d.as_i64().map(Datum::Int8),
        _ => Some(d),
    }
}

/// The value of a bound as the key column's type, where it need not fit: the largest or smallest then stands for it.
/// The second says that the bound lies beyond all values of the type, above (true) or below (false).
fn clamp(d: Datum, ty: Type) -> (Datum, Option<bool>) {
    match narrow(d.clone(), ty) {
        Some(d) => (d, None),
        None => (Datum::Null, Some(d.as_i64().unwrap_or(0) > 0)),
    }
}

fn too_many() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("a scan would look up more than {KEYS_MAX} keys"))
}

impl ScanRun {
    /// Computes keys and ranges. `row` is what key parts see.
    fn open(&mut self, scan: &Scan, row: RowRef<'_>, x: &Exec<'_>) -> Result<(), Error> {
        self.opened = true;
        self.page = FIRST_PAGE_ROWS;
        let cx = x.cx();
        let mut prefixes: Vec<Key> = vec![scan.reader.index_prefix.clone()];
        let mut several = false;
        for (part, (ty, desc)) in scan.parts.iter().zip(&scan.reader.key_types) {
            if let KeyPart::One(e) = part {
                // The usual case: one value, no new list.
                let Some(d) = narrow(eval(e, row, &cx)?, *ty).filter(|d| !d.is_null()) else {
                    return Ok(());
                };
                for p in &mut prefixes {
                    encode_key(&d, ty, *desc, p)?;
                }
                continue;
            }
            let values: Vec<Datum> = match part {
                KeyPart::One(_) => Vec::new(),
                KeyPart::Many(list) => list.iter().map(|e| eval(e, row, &cx)).collect::<Result<_, _>>()?,
                KeyPart::Array(e) => match eval(e, row, &cx)? {
                    Datum::Array(a) => a.items.clone(),
                    _ => Vec::new(),
                },
            };
            several = true;
            let mut next = Vec::with_capacity(prefixes.len() * values.len());
            for p in &prefixes {
                for d in &values {
                    let Some(d) = narrow(d.clone(), *ty).filter(|d| !d.is_null()) else { continue };
                    let mut key = p.clone();
                    encode_key(&d, ty, *desc, &mut key)?;
                    next.push(key);
                }
                if next.len() > KEYS_MAX {
                    return Err(too_many());
                }
            }
            prefixes = next;
        }
        if several {
            prefixes.sort_unstable();
            prefixes.dedup();
            if scan.reverse {
                prefixes.reverse();
            }
        }
        if scan.point {
            self.points = prefixes.into();
            return Ok(());
        }
        if scan.spans.is_empty() {
            self.ranges.extend(prefixes.iter().map(|p| KeyRange::prefix(p)));
            return Ok(());
        }
        let (ty, desc) = scan.reader.key_types[scan.parts.len()];
        let value = |b: &Option<(Expr, bool)>| -> Result<Option<(Datum, bool)>, Error> {
            match b {
                None => Ok(None),
                Some((e, inclusive)) => Ok(Some((eval(e, row, &cx)?, *inclusive))),
            }
        };
        let bounds: Vec<_> =
            scan.spans.iter().map(|s| Ok((value(&s.low)?, value(&s.high)?))).collect::<Result<_, Error>>()?;
        if prefixes.len().saturating_mul(bounds.len()) > KEYS_MAX {
            return Err(too_many());
        }
        for p in prefixes {
            let mut ranges = Vec::with_capacity(bounds.len());
            for (low, high) in &bounds {
                ranges.extend(bounded(&p, ty, desc, low, high)?);
            }
            if ranges.len() > 1 {
                ranges = disjoint(ranges);
                if scan.reverse {
                    ranges.reverse();
                }
            }
            self.ranges.extend(ranges);
        }
        Ok(())
    }

    /// The next rows; `None` at the end. `row` must be the same in every call of one scan.
    pub async fn next(
        &mut self,
        scan: &Scan,
        row: RowRef<'_>,
        x: &mut Exec<'_>,
    ) -> Result<Option<Batch>, Error> {
        if !self.opened {
            self.open(scan, row, x)?;
        }
        let mut out = Batch::empty(scan.columns.len());
        while out.is_empty() {
            x.pause(BATCH_WORK).await?;
            if !self.points.is_empty() {
                while out.len() < BATCH_ROWS {
                    let Some(key) = self.points.pop_front() else { break };
                    let found = match scan.peek {
                        true => x.txn.peek(&key).await,
                        false => x.txn.get(&key, scan.lock).await,
                    };
                    let Some(value) = found.map_err(kv_error)? else { continue };
                    self.take(scan, &key, value, &mut out, x).await?;
                }
                continue;
            }
            let Some(range) = self.ranges.pop_front() else { return Ok(None) };
            let options = ScanOptions { reverse: scan.reverse, rows_max: self.page };
            let page = match scan.peek {
                true => x.txn.peek_scan(&range, options).await,
                false => x.txn.scan(&range, options).await,
            };
            let page = page.map_err(kv_error)?;
            self.page = (self.page * 4).min(BATCH_ROWS);
            if let Some(rest) = page.rest {
                self.ranges.push_front(rest);
            }
            for (key, value) in page.rows {
                self.take(scan, &key, value, &mut out, x).await?;
            }
        }
        Ok(Some(out))
    }

    /// Decodes a row of the key space and keeps it if it satisfies the filter.
    async fn take(
        &mut self,
        scan: &Scan,
        key: &[u8],
        value: Value,
        out: &mut Batch,
        x: &mut Exec<'_>,
    ) -> Result<(), Error> {
        let row = if scan.index == 0 || scan.covering {
            scan.reader.decode(key, &value)?
        } else {
            let mut primary = scan.reader.primary_prefix.clone();
            primary.extend_from_slice(&value);
            let found: Result<Option<Bytes>, _> = match scan.peek {
                true => x.txn.peek(&primary).await,
                false => x.txn.get(&primary, Lock::None).await,
            };
            match found.map_err(kv_error)? {
                // The entry was read at another moment than the row.
                None if scan.peek => return Ok(()),
                Some(v) => scan.reader.decode(&primary, &v)?,
                None => {
                    return Err(Error::new(
                        SqlState::INDEX_CORRUPTED,
                        format!("an entry of an index of \"{}\" has no row", scan.table.name),
                    ));
                }
            }
        };
        if let Some(f) = &scan.filter
            && !eval_true(f, RowRef::Slice(&row), &x.cx())?
        {
            return Ok(());
        }
        out.push_row(row);
        Ok(())
    }
}

/// The union of ranges as ranges in order that share no key: no row comes twice.
fn disjoint(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let mut out: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for r in ranges {
        match out.last_mut() {
            Some(last) if r.start <= last.end => {
                if r.end > last.end {
                    last.end = r.end;
                }
            }
            _ => out.push(r),
        }
    }
    out
}

/// The keys under a prefix whose next column lies between bounds; `None` when there are none. NULLs never qualify.
fn bounded(
    prefix: &[u8],
    ty: Type,
    desc: bool,
    low: &Option<(Datum, bool)>,
    high: &Option<(Datum, bool)>,
) -> Result<Option<KeyRange>, Error> {
    let encode = |d: &Datum| -> Result<Key, Error> {
        let mut key = prefix.to_vec();
        encode_key(d, &ty, desc, &mut key)?;
        Ok(key)
    };
    let nulls = encode(&Datum::Null)?;
    // Ascending: values, then NULLs. Descending: NULLs, then values from the largest.
    let (mut start, mut end) =
        if desc { (prefix_end(&nulls), prefix_end(prefix)) } else { (prefix.to_vec(), nulls) };
    for (bound, is_low) in [(low, true), (high, false)] {
        let Some((d, inclusive)) = bound else { continue };
        if d.is_null() {
            return Ok(None);
        }
        let (d, beyond) = clamp(d.clone(), ty);
        if let Some(above) = beyond {
            // Below everything as a lower bound, above everything as an upper one: no bound.
            if above == is_low {
                return Ok(None);
            }
            continue;
        }
        let key = encode(&d)?;
        match (is_low != desc, *inclusive) {
            (true, true) => start = key,
            (true, false) => start = prefix_end(&key),
            (false, true) => end = prefix_end(&key),
            (false, false) => end = key,
        }
    }
    let range = KeyRange { start, end };
    Ok(if range.is_empty() { None } else { Some(range) })
}
