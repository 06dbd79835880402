//! Reading at the leaseholder, from any thread, without a hop (R4, R5, D15).
//!
//! A point read is recorded first and read afterwards. A scan may end early (rows, bytes), and must not be recorded
//! for more than it returned: it is read first, then, under the mutex, recorded for exactly the span that was looked at,
//! and read again if an entry was applied in between.
//!
//! Invariants
//!   D1  Nothing is returned unless the key was in the cache at T, and nothing foreign with p <= T stood on it, at one
//!       moment under the mutex, and the engine was read after that moment (or did not change before it).
//!   D2  The term and the lease are looked at again after the engine answered (D9).
//!
//! The uncertainty window (R5) ends at the leaseholder's own clock at the latest ([`Shard::window`]): a write that was
//! acknowledged before the read began stands here with a timestamp that the clock has seen (S6), as a version or as a
//! prepare that the reader meets first and waits for. The clock is looked at under the mutex, after what was resolved
//! meanwhile has moved it. So where clocks agree the window costs nothing, however wide their error bounds are.

use isochrone_base::{KeyRange, Timestamp, TxnId, bank};
use isochrone_storage::mvcc;

use crate::api::{Error, Page, ReadAs, ReadSpan, Seen};
use crate::shard::{Blocked, Inner, Shard, Standing};
use crate::tscache::key_hash;

/// What an attempt came to.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// This.
    Done(T),
    /// Try again when this is gone.
    Blocked(Blocked),
    /// Try again when the read limit of the lease reaches this (R1).
    Limit(Timestamp),
}

pub(crate) fn storage(e: isochrone_storage::Error) -> Error {
    Error::Stopped(e.to_string())
}

fn stops(who: ReadAs) -> impl Fn(&Standing) -> bool {
    move |s| match s {
        Standing::Prepared(_) if bank::has("reader-ignores-prepares") => false,
        Standing::InFlight(_) if bank::has("reader-ignores-in-flight") => false,
        _ if bank::has("uncertainty-ignores-prepares") => s.p() <= who.ts,
        _ => s.p() <= who.uncertain_to,
    }
}

impl Shard {
    /// R5: the reader's window, without the part in which nothing can have been acknowledged yet. To be called
    /// under the mutex.
    fn window(&self, mut who: ReadAs) -> ReadAs {
        if who.uncertain_to > who.ts {
            who.uncertain_to = who.uncertain_to.min(self.clock.last()).max(who.ts);
        }
        who
    }
}

/// R4, R5: what a standing write with p in the window means for a reader.
fn met(g: &mut Inner, who: ReadAs, hash: u64, by: &Standing) -> Result<Blocked, Error> {
    if by.p() > who.ts {
        return Err(Error::Uncertain(by.p()));
    }
    Ok(g.blocked_by(hash, Some(by)))
}

impl Shard {
    fn may_read(&self, g: &mut Inner, ts: Timestamp) -> Result<Result<u64, Step<()>>, Error> {
        let Some(term) = self.served(g)? else { return Ok(Err(Step::Blocked(self.wait_serving(g)))) };
        if ts < g.repl.gc_threshold {
            return Err(Error::BelowThreshold { ts, threshold: g.repl.gc_threshold });
        }
        g.read_lately = true;
        if !self.leased() {
            return Ok(Err(Step::Blocked(self.wait_lease(g))));
        }
        if ts > g.repl.read_limit {
            return Ok(Err(Step::Limit(ts)));
        }
        Ok(Ok(term))
    }

    /// R4, R5 for one key.
    pub(crate) fn get(&self, who: ReadAs, key: &[u8]) -> Result<Step<Option<Seen>>, Error> {
        let hash = key_hash(key);
        let (who, term) = {
            let mut g = self.lock();
            let g = &mut *g;
            let who = self.window(who);
            if !g.repl.range.contains(key) {
                return Err(self.not_here(key));
            }
            self.note_old_read(g, who);
            let term = match self.may_read(g, who.ts)? {
                Ok(term) => term,
                Err(step) => return Ok(step.retype()),
            };
            if let Some(by) = g.standing_on(key, who.txn, stops(who)) {
                let by = by.clone();
                return Ok(Step::Blocked(met(g, who, hash, &by)?));
            }
            if !bank::has("read-not-remembered") {
                g.cache.record_point(hash, who.ts, who.txn);
            }
            (who, term)
        };
        let version = if who.uncertain_to > who.ts {
            let newest = mvcc::get_newest(&*self.engine, key).map_err(storage)?;
            match newest {
                Some(v) if v.ts > who.ts => {
                    if mvcc::changed_in(&*self.engine, key, who.ts, who.uncertain_to).map_err(storage)? {
                        return Err(Error::Uncertain(v.ts.min(who.uncertain_to)));
                    }
                    mvcc::get_at(&*self.engine, key, who.ts).map_err(storage)?
                }
                newest => newest,
            }
        } else {
            mvcc::get_at(&*self.engine, key, who.ts).map_err(storage)?
        };
        if let Some(blocked) = self.still_serving(term, who.ts)? {
            return Ok(Step::Blocked(blocked));
        }
        Ok(Step::Done(version.and_then(|v| v.value.map(|value| Seen { value, ts: v.ts }))))
    }

    /// R4, R5 for the part of a range that lies in this shard.
    pub(crate) fn scan(
        &self,
        who: ReadAs,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Step<Page>, Error> {
        let (here, visible, window) = {
            let mut g = self.lock();
            let g = &mut *g;
            let first = if reverse {
                last_key_side(range, &g.repl.range)
            } else {
                g.repl.range.contains(&range.start)
            };
            if !first {
                return Err(self.not_here(&range.start));
            }
            self.note_old_read(g, who);
            if let Err(step) = self.may_read(g, who.ts)? {
                return Ok(step.retype());
            }
            (g.repl.range.intersect(range), g.visible, self.window(who))
        };
        let mut page = self.page(window, &here, reverse, rows_max, bytes_max)?;
        let looked_at = without(&here, page.rest.as_ref(), reverse);
        let (who, term, unchanged) = {
            let mut g = self.lock();
            let g = &mut *g;
            let who = self.window(who);
            let term = match self.may_read(g, who.ts)? {
                Ok(term) => term,
                Err(step) => return Ok(step.retype()),
            };
            if !g.repl.range.contains_range(&here) {
                return Err(self.not_here(&range.start));
            }
            if let Some((key, by)) = g.standing_in(&looked_at, who.txn, stops(who)) {
                let (hash, by) = (key_hash(key), by.clone());
                return Ok(Step::Blocked(met(g, who, hash, &by)?));
            }
            if !bank::has("read-not-remembered") {
                g.cache.record_span(&looked_at, who.ts, who.txn);
            }
            (who, term, g.visible == visible)
        };
        if !unchanged {
            // Something became visible since: the span is recorded now, so that what is read now stays. (What is
            // in the engine and not yet counted in `visible` still stands on its keys, S2.)
            let rest = page.rest.take();
            page = self.page(who, &looked_at, reverse, rows_max, bytes_max)?;
            page.rest = join(page.rest, rest, reverse);
        }
        if let Some(blocked) = self.still_serving(term, who.ts)? {
            return Ok(Step::Blocked(blocked));
        }
        page.rest = join(page.rest, outside(range, &here, reverse), reverse);
        Ok(Step::Done(page))
    }

    /// The rows of the part `here` of a range that ends elsewhere, without a window.
    pub(crate) fn page_of(
        &self,
        who: ReadAs,
        range: &KeyRange,
        here: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let mut page = self.page(who, here, reverse, rows_max, bytes_max)?;
        page.rest = join(page.rest, outside(range, here, reverse), reverse);
        Ok(page)
    }

    fn page(
        &self,
        who: ReadAs,
        here: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let snapshot = self.engine.snapshot();
        let mut rows = mvcc::scan_at(&snapshot, here, who.ts, reverse);
        let mut page = Page::default();
        let mut bytes = 0;
        while page.rows.len() < rows_max.max(1) && bytes < bytes_max.max(1) {
            let Some(row) = rows.next() else {
                self.certain(who, rows.newest_seen())?;
                page.newest = rows.newest_seen().min(who.ts);
                return Ok(page);
            };
            let row = row.map_err(storage)?;
            bytes += row.key.len() + row.value.len();
            page.rows.push((row.key, row.value));
        }
        self.certain(who, rows.newest_seen())?;
        page.newest = rows.newest_seen().min(who.ts);
        let last = &page.rows.last().expect("the loop ran at least once").0;
        let rest = if reverse {
            KeyRange { start: here.start.clone(), end: last.to_vec() }
        } else {
            KeyRange { start: KeyRange::point(last).end, end: here.end.clone() }
        };
        // An empty `end` is the end of the key space: a reverse scan that returned the empty key is finished.
        let finished = rest.is_empty() || (reverse && last.is_empty());
        page.rest = (!finished).then_some(rest);
        Ok(page)
    }

    /// R5 for the versions that a scan passed. A newest version beyond the window may hide one inside it: then the
    /// reader moves too, which is safe.
    fn certain(&self, who: ReadAs, newest_seen: Timestamp) -> Result<(), Error> {
        if who.uncertain_to > who.ts && newest_seen > who.ts {
            return Err(Error::Uncertain(newest_seen.min(who.uncertain_to)));
        }
        Ok(())
    }

    /// R10.
    pub(crate) fn validate(&self, txn: TxnId, spans: &[ReadSpan], ts: Timestamp) -> Result<Step<()>, Error> {
        let term = {
            let mut g = self.lock();
            let g = &mut *g;
            if let Some(s) = spans.iter().find(|s| !g.repl.range.contains_range(&s.range)) {
                return Err(self.not_here(&s.range.start));
            }
            let term = match self.may_read(g, ts)? {
                Ok(term) => term,
                Err(step) => return Ok(step),
            };
            for s in spans {
                if s.seen < g.repl.gc_threshold {
                    return Err(Error::Conflict(format!(
                        "what was read at {} may have been collected",
                        s.seen
                    )));
                }
                let ignored = bank::has("validation-ignores-prepares");
                if let Some((_, by)) = g.standing_in(&s.range, txn, |by| by.p() <= ts && !ignored) {
                    return Err(Error::Conflict(format!(
                        "transaction {} is writing what was read",
                        by.txn()
                    )));
                }
            }
            for s in spans.iter().filter(|_| !bank::has("validation-not-remembered")) {
                g.cache.record_span(&s.range, ts, txn);
            }
            term
        };
        for s in spans {
            if mvcc::changed_between(&*self.engine, &s.range, s.seen, ts).map_err(storage)? {
                return Err(Error::Conflict("what was read has changed".into()));
            }
        }
        // Versions may have been collected while they were looked at.
        let threshold = self.lock().repl.gc_threshold;
        if let Some(s) = spans.iter().find(|s| s.seen < threshold) {
            return Err(Error::Conflict(format!("what was read at {} may have been collected", s.seen)));
        }
        if let Some(blocked) = self.still_serving(term, ts)? {
            return Ok(Step::Blocked(blocked));
        }
        Ok(Step::Done(()))
    }
}

impl Step<()> {
    pub(crate) fn retype<T>(self) -> Step<T> {
        match self {
            Step::Done(()) => unreachable!("only obstacles are passed on"),
            Step::Blocked(b) => Step::Blocked(b),
            Step::Limit(ts) => Step::Limit(ts),
        }
    }
}

/// Does the shard hold the upper end of the range?
pub(crate) fn last_key_side(range: &KeyRange, shard: &KeyRange) -> bool {
    let reaches = shard.end.is_empty() || (!range.end.is_empty() && range.end <= shard.end);
    reaches && (range.end.is_empty() || range.end > shard.start)
}

fn without(range: &KeyRange, rest: Option<&KeyRange>, reverse: bool) -> KeyRange {
    match (rest, reverse) {
        (None, _) => range.clone(),
        (Some(rest), false) => KeyRange { start: range.start.clone(), end: rest.start.clone() },
        (Some(rest), true) => KeyRange { start: rest.end.clone(), end: range.end.clone() },
    }
}

/// What of the range lies behind this shard, in the direction of the scan.
fn outside(range: &KeyRange, here: &KeyRange, reverse: bool) -> Option<KeyRange> {
    let rest = if reverse {
        if here.start.is_empty() {
            return None;
        }
        KeyRange { start: range.start.clone(), end: here.start.clone() }
    } else {
        if here.end.is_empty() {
            return None;
        }
        KeyRange { start: here.end.clone(), end: range.end.clone() }
    };
    (!rest.is_empty()).then_some(rest)
}

/// Two neighbouring rests of one scan.
fn join(near: Option<KeyRange>, far: Option<KeyRange>, reverse: bool) -> Option<KeyRange> {
    match (near, far) {
        (Some(near), Some(far)) if reverse => Some(KeyRange { start: far.start, end: near.end }),
        (Some(near), Some(far)) => Some(KeyRange { start: near.start, end: far.end }),
        (near, far) => near.or(far),
    }
}
