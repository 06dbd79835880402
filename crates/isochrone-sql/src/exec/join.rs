//! Joins by hash, loop and lookup. Output is made a batch at a time, so that no join holds more than its right side.

use isochrone_types::{Datum, Error, hash};
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::Hasher;

use super::batch::{BATCH_ROWS, Batch};
use super::eval::{RowRef, eval_batch, eval_true};
use super::ops::Op;
use super::scan::ScanRun;
use super::{BATCH_WORK, Exec, collect};
use crate::plan::expr::Expr;
use crate::plan::node::{Node, NodeOp};
use crate::plan::rel::JoinKind;

/// No further row in a chain.
const NONE: u32 = u32::MAX;
/// Pairs of rows looked at between two pauses.
const CANDIDATES_MAX: usize = 1 << 16;

/// The right side's rows by the hash of their keys.
struct HashIndex {
    heads: FxHashMap<u64, u32>,
    next: Vec<u32>,
    keys: Vec<Vec<Datum>>,
}

fn hash_of<'d>(values: impl Iterator<Item = &'d Datum>) -> Option<u64> {
    let mut h = FxHasher::default();
    for v in values {
        if v.is_null() {
            return None;
        }
        hash(v, &mut h);
    }
    Some(h.finish())
}

/// A hash or loop join in progress.
pub(crate) struct JoinRun {
    left: Op,
    right: Option<Batch>,
    index: Option<HashIndex>,
    right_matched: Vec<bool>,
    batch: Option<Batch>,
    left_keys: Vec<Vec<Datum>>,
    row: usize,
    /// The next right row to try for `row`; `None`: `row` is new.
    at: Option<u32>,
    matched: bool,
    /// Rows of the right side without a partner come out from here on.
    tail: Option<usize>,
}

impl JoinRun {
    pub fn new(left: Op) -> JoinRun {
        JoinRun {
            left,
            right: None,
            index: None,
            right_matched: Vec::new(),
            batch: None,
            left_keys: Vec::new(),
            row: 0,
            at: None,
            matched: false,
            tail: None,
        }
    }

    async fn build(
        &mut self,
        right: &Node,
        keys: &[Expr],
        kind: JoinKind,
        x: &mut Exec<'_>,
    ) -> Result<(), Error> {
        let mut all = Batch::empty(right.cols.len());
        for b in collect(right, x).await? {
            all.append(b);
        }
        if u32::try_from(all.len()).is_err() || all.len() as u32 == NONE {
            return Err(Error::new(
                isochrone_types::SqlState::PROGRAM_LIMIT_EXCEEDED,
                "a join's side has too many rows",
            ));
        }
        if !keys.is_empty() {
            let cx = x.cx();
            let mut columns = Vec::new();
            for k in keys {
                columns.push(eval_batch(k, &all, &cx)?);
            }
            let mut heads: FxHashMap<u64, u32> = FxHashMap::default();
            let mut next = vec![NONE; all.len()];
            // Backwards, so that chains run in the order of the rows.
            for r in (0..all.len()).rev() {
                if let Some(h) = hash_of(columns.iter().map(|c| &c[r])) {
                    next[r] = heads.insert(h, r as u32).unwrap_or(NONE);
                }
            }
            x.state.charge(all.len() * (24 * columns.len() + 20))?;
            self.index = Some(HashIndex { heads, next, keys: columns });
        }
        if kind == JoinKind::Full {
            self.right_matched = vec![false; all.len()];
        }
        self.right = Some(all);
        Ok(())
    }

    pub async fn next(&mut self, node: &Node, x: &mut Exec<'_>) -> Result<Option<Batch>, Error> {
        let (kind, left, right, left_keys, right_keys, residual): (_, _, _, &[Expr], &[Expr], _) =
            match &node.op {
                NodeOp::HashJoin { kind, left, right, left_keys, right_keys, residual } => {
                    (*kind, left, right, left_keys, right_keys, residual)
                }
                NodeOp::LoopJoin { kind, left, right, residual } => (*kind, left, right, &[], &[], residual),
                _ => return Err(Error::internal("a join's state does not fit its node")),
            };
        if self.right.is_none() {
            self.build(right, right_keys, kind, x).await?;
            if kind == JoinKind::Inner && self.right.as_ref().is_some_and(Batch::is_empty) {
                self.tail = Some(0);
            }
        }
        let width = left.cols.len() + right.cols.len();
        let mut out = Batch::empty(width);
        while out.len() < BATCH_ROWS {
            if let Some(from) = self.tail {
                let all = self.right.as_ref().expect("the right side is built");
                if kind != JoinKind::Full {
                    break;
                }
                let Some(r) = (from..all.len()).find(|r| !self.right_matched[*r]) else { break };
                out.push_row(std::iter::repeat_n(Datum::Null, left.cols.len()).chain(all.row(r)));
                self.tail = Some(r + 1);
                continue;
            }
            if self.batch.is_none() {
                match self.left.next(left, x).await? {
                    None => {
                        self.tail = Some(0);
                        continue;
                    }
                    Some(b) => {
                        let cx = x.cx();
                        self.left_keys.clear();
                        for k in left_keys {
                            self.left_keys.push(eval_batch(k, &b, &cx)?);
                        }
                        self.row = 0;
                        self.at = None;
                        self.batch = Some(b);
                    }
                }
            }
            x.pause(BATCH_WORK).await?;
            self.probe(kind, residual.as_ref(), right.cols.len(), &mut out, x)?;
        }
        Ok(if out.is_empty() { None } else { Some(out) })
    }

    /// Goes on with the left batch until it ends or the output is full.
    fn probe(
        &mut self,
        kind: JoinKind,
        residual: Option<&Expr>,
        right_width: usize,
        out: &mut Batch,
        x: &Exec<'_>,
    ) -> Result<(), Error> {
        let cx = x.cx();
        let all = self.right.as_ref().expect("the right side is built");
        let batch = self.batch.as_ref().expect("there is a batch");
        let mut tried = 0usize;
        while self.row < batch.len() {
            let keys = &self.left_keys;
            let row = self.row;
            let mut at = match self.at {
                Some(at) => at,
                None => {
                    self.matched = false;
                    match &self.index {
                        None if all.is_empty() => NONE,
                        None => 0,
                        Some(index) => hash_of(keys.iter().map(|c| &c[row]))
                            .and_then(|h| index.heads.get(&h).copied())
                            .unwrap_or(NONE),
                    }
                }
            };
            while at != NONE {
                tried += 1;
                if out.len() >= BATCH_ROWS || tried > CANDIDATES_MAX {
                    self.at = Some(at);
                    return Ok(());
                }
                let r = at as usize;
                let candidate = match &self.index {
                    None => true,
                    Some(index) => index.keys.iter().zip(keys).all(|(k, l)| k[r] == l[row]),
                };
                if candidate
                    && match residual {
                        None => true,
                        Some(e) => eval_true(e, RowRef::Pair(batch, row, all, r), &cx)?,
                    }
                {
                    self.matched = true;
                    if kind == JoinKind::Full {
                        self.right_matched[r] = true;
                    }
                    out.push_row(batch.row(row).into_iter().chain(all.row(r)));
                }
                at = match &self.index {
                    Some(index) => index.next[r],
                    None if r + 1 < all.len() => at + 1,
                    None => NONE,
                };
            }
            if !self.matched && kind != JoinKind::Inner {
                out.push_row(batch.row(row).into_iter().chain(std::iter::repeat_n(Datum::Null, right_width)));
            }
            self.row += 1;
            self.at = None;
            if out.len() >= BATCH_ROWS {
                break;
            }
        }
        if self.row >= batch.len() {
            self.batch = None;
        }
        Ok(())
    }
}

/// A lookup join in progress.
pub(crate) struct LookupRun {
    left: Op,
    batch: Option<Batch>,
    row: usize,
    scan: Option<ScanRun>,
    matched: bool,
}

impl LookupRun {
    pub fn new(left: Op) -> LookupRun {
        LookupRun { left, batch: None, row: 0, scan: None, matched: false }
    }

    pub async fn next(&mut self, node: &Node, x: &mut Exec<'_>) -> Result<Option<Batch>, Error> {
        let NodeOp::LookupJoin { kind, left, scan, residual, scan_id, .. } = &node.op else {
            return Err(Error::internal("a join's state does not fit its node"));
        };
        let mut out = Batch::empty(left.cols.len() + scan.columns.len());
        while out.len() < BATCH_ROWS {
            if self.batch.is_none() {
                let Some(b) = self.left.next(left, x).await? else { break };
                self.batch = Some(b);
                self.row = 0;
            }
            let batch = self.batch.as_ref().expect("there is a batch");
            if self.row >= batch.len() {
                self.batch = None;
                continue;
            }
            let row = self.row;
            if self.scan.is_none() {
                self.matched = false;
                if let Some(s) = x.state.stats.as_mut().and_then(|s| s.get_mut(*scan_id)) {
                    s.loops += 1;
                }
            }
            let run = self.scan.get_or_insert_with(ScanRun::default);
            match run.next(scan, RowRef::Batch(batch, row), x).await? {
                Some(found) => {
                    if let Some(s) = x.state.stats.as_mut().and_then(|s| s.get_mut(*scan_id)) {
                        s.rows += found.len() as u64;
                    }
                    let cx = x.cx();
                    for r in 0..found.len() {
                        if let Some(e) = residual
                            && !eval_true(e, RowRef::Pair(batch, row, &found, r), &cx)?
                        {
                            continue;
                        }
                        self.matched = true;
                        out.push_row(batch.row(row).into_iter().chain(found.row(r)));
                    }
                }
                None => {
                    if !self.matched && *kind == JoinKind::Left {
                        out.push_row(
                            batch
                                .row(row)
                                .into_iter()
                                .chain(std::iter::repeat_n(Datum::Null, scan.columns.len())),
                        );
                    }
                    self.scan = None;
                    self.row += 1;
                }
            }
        }
        Ok(if out.is_empty() { None } else { Some(out) })
    }
}
