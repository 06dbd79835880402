//! What any replica can answer (R6), and how it learns what is closed.
//!
//!     leaseholder ── entries, each with a closed timestamp ──────────────▶ replica: closed with what is visible here
//!          └──────── (shard, index i, closed c), node to node ───────────▶ replica: closed once i is visible here
//!
//! A closed timestamp in an entry costs nothing where there are entries. Between them the leaseholder's node tells the others,
//! without a log write: [`LocalShards::closed_news`] and [`LocalShards::hear_closed`]. What it tells must bind every
//! leaseholder after it, who never hears of it. The read limit binds them already (R1: nothing is written at or below
//! the limit of a predecessor, and that limit is in the log), so only what lies at or below it is told. The limit stands at
//! most 300 ms ahead of the clock and closed timestamps behind it: an entry that raises the limit gives room for about a
//! second. A shard that is read anyway has such entries; one that was written to, or read at a replica, in the last
//! [`crate::Config::closed_keep`] gets them for that (`duties`). Any other goes quiet: who wants to read it at a replica asks the
//! leaseholder once, which wakes it.
//!
//! Invariants
//!   F1  What is told was promised in the same step: `c` is below every write in flight, and `closed_proposed`, above which
//!       every p of this term is chosen (R11.6), is at least `c`.
//!   F2  `c <= repl.read_limit`, as it was applied here. A Release (`handover`) writes a lower limit, but none below
//!       `closed_proposed`. So `low` of every later leaseholder is at least `c`, of both halves of a split, too.
//!   F3  A replica believes `c` when its engine shows `i`: everything at or below `c` that will ever be is then visible here,
//!       or stands here as prepared. Messages may be lost, doubled or late: every one is true forever.
//!   F4  A replica answers at `T <= closed` only. Nothing foreign with `p <= T` stands on what is read, at a moment before the
//!       engine is read; and the replica has not been replaced, nor its old versions collected, at a moment after.
//!
//! F1 and F2 are what T7 needs: no version appears at or below a closed timestamp that anybody was told. They hold whatever
//! clocks do; a bad clock costs freshness.
//!
//! How it fails: with `NotLeader`, like every request to who does not lead; the leaseholder answers instead.

use std::collections::BTreeMap;

use isochrone_base::{KeyRange, LogIndex, NodeId, ShardId, Timestamp, bank};
use isochrone_storage::mvcc;

use crate::api::{Error, Page, ReadAs, Seen};
use crate::config::us;
use crate::read::{last_key_side, storage};
use crate::service::LocalShards;
use crate::shard::{Inner, Shard, Standing};

/// A closed timestamp is told again when it has risen by this much.
const TELL_STEP_US: u64 = 100_000;
/// Closed timestamps of one shard that wait for entries to become visible; at the bound the newest is replaced.
pub(crate) const PENDING_MAX: usize = 8;
/// Shards in one message to a node; others have their turn in the next one.
pub const CLOSED_NEWS_MAX: usize = 10_000;

/// One closed timestamp, as a leaseholder tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The shard.
    pub shard: ShardId,
    /// It counts for replicas that have applied this entry.
    pub index: LogIndex,
    /// No version will appear at or below it.
    pub closed: Timestamp,
}

/// What one node tells another about what is closed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClosedNews {
    /// Of shards that the sender leads.
    pub closed: Vec<Closed>,
    /// Shards that the sender answers reads of, and wants to go on hearing of; led by the receiver, as far as it knows.
    pub wanted: Vec<ShardId>,
}

/// What a replica was told, and a leaseholder does for those who read at replicas.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// F3: the highest that counts.
    pub(crate) told: Timestamp,
    pending: Vec<(LogIndex, Timestamp)>,
    /// The closed timestamp of the entries that the engine shows.
    visible: Timestamp,
    /// A read was answered here since the last message.
    served: bool,
    /// The leaseholder closes timestamps although nothing is written, until this moment of the monotonic clock.
    pub(crate) wanted_until_ns: u64,
    /// The highest write when the leaseholder looked last.
    pub(crate) newest_seen: Timestamp,
    /// What was told last.
    tells: Timestamp,
}

impl Following {
    /// Of a shard whose engine shows entries that close `visible`.
    pub(crate) fn new(visible: Timestamp) -> Following {
        Following { visible, ..Following::default() }
    }

    /// Nothing at or below will change but by the end of what stands as prepared.
    pub(crate) fn closed(&self) -> Timestamp {
        self.told.max(self.visible)
    }

    /// Entries up to `index` are visible, which close `closed`.
    pub(crate) fn visible_to(&mut self, index: LogIndex, closed: Timestamp) {
        self.visible = self.visible.max(closed);
        if !self.pending.is_empty() {
            let told = self.pending.iter().filter(|(i, _)| *i <= index).map(|(_, c)| *c).max();
            self.told = self.told.max(told.unwrap_or_default());
            self.pending.retain(|(i, _)| *i > index);
        }
    }

    /// Promises that wait for their entries.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    fn hear(&mut self, written: LogIndex, index: LogIndex, closed: Timestamp) {
        if index <= written || bank::has("follower-believes-early") {
            self.told = self.told.max(closed);
        } else if closed > self.told {
            if self.pending.len() >= PENDING_MAX {
                self.pending.pop();
            }
            self.pending.push((index, closed));
        }
    }
}

impl Shard {
    /// The leaseholder closes timestamps for a while, whether or not anything is written.
    pub(crate) fn want_closed(&self, g: &mut Inner) {
        let keep_ns = u64::try_from(self.config.closed_keep.as_nanos()).unwrap_or(u64::MAX);
        g.following.wanted_until_ns = self.clock.monotonic_ns().saturating_add(keep_ns);
    }

    /// A read of the past came to the leaseholder: the next ones shall be answered by a replica.
    pub(crate) fn note_old_read(&self, g: &mut Inner, who: ReadAs) {
        let lag = us(self.config.closed_lag);
        if who.uncertain_to == who.ts && who.ts.plus_micros(lag) < self.clock.last() && g.term != 0 {
            self.want_closed(g);
        }
    }

    /// Has the shard other replicas?
    pub(crate) fn has_followers(&self, g: &Inner) -> bool {
        g.repl.members.all().len() > 1
    }

    /// F1, F2: what can be told now, if it is worth a message. From then on it is promised.
    fn promise(&self, g: &mut Inner) -> Option<(LogIndex, Timestamp)> {
        if !g.serving || !self.has_followers(g) {
            return None;
        }
        let mut to = self.clock.latest().minus_micros(us(self.config.closed_lag));
        if !bank::has("closed-above-the-read-limit") {
            to = to.min(g.repl.read_limit);
        }
        if let Some(p) = g.lowest_in_flight() {
            to = to.min(p.prev());
        }
        if to < g.following.tells.max(g.repl.closed).plus_micros(TELL_STEP_US) {
            return None;
        }
        g.closed_proposed = g.closed_proposed.max(to);
        g.following.tells = to;
        Some((g.repl.applied, to))
    }

    /// What this replica can answer up to without waiting; `None`: nothing, it is being replaced or has stopped.
    pub(crate) fn readable(&self) -> Option<Timestamp> {
        let g = self.lock();
        if g.retired || g.stopped.is_some() {
            return None;
        }
        let mut to = g.following.closed();
        if g.serving && self.leased() {
            // The leaseholder itself: whatever is past.
            to = to.max(self.clock.physical());
            if let Some(p) = g.lowest_in_flight() {
                to = to.min(p.prev());
            }
        }
        Some(g.repl.lowest_prepared().map_or(to, |p| to.min(p.prev())))
    }

    /// F4, before the engine is read. `whole`: what is read.
    fn may_follow(&self, g: &mut Inner, who: ReadAs, whole: &KeyRange) -> Result<(), Error> {
        let not_here = Error::NotLeader { shard: self.id, leader: g.leader };
        if let Some(why) = &g.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        if g.retired || who.uncertain_to > who.ts {
            return Err(not_here);
        }
        if who.ts > g.following.closed() && !bank::has("follower-ignores-closed") {
            return Err(not_here);
        }
        if who.ts < g.repl.gc_threshold {
            return Err(Error::BelowThreshold { ts: who.ts, threshold: g.repl.gc_threshold });
        }
        let stops = |s: &Standing| s.p() <= who.ts;
        let blocked = match whole.is_point() {
            true => g.standing_on(&whole.start, who.txn, stops).is_some(),
            false => g.standing_in(whole, who.txn, stops).is_some(),
        };
        if blocked {
            // R6. The leaseholder waits for it, and has it recovered.
            return Err(not_here);
        }
        g.following.served = true;
        Ok(())
    }

    /// F4, after the engine was read.
    fn followed(&self, who: ReadAs) -> Result<(), Error> {
        let g = self.lock();
        if g.retired || g.stopped.is_some() {
            return Err(Error::NotServed(format!("shard {} was replaced while it was read", self.id)));
        }
        if who.ts < g.repl.gc_threshold {
            return Err(Error::BelowThreshold { ts: who.ts, threshold: g.repl.gc_threshold });
        }
        Ok(())
    }

    /// R6 for one key.
    pub(crate) fn get_as_replica(&self, who: ReadAs, key: &[u8]) -> Result<Option<Seen>, Error> {
        {
            let mut g = self.lock();
            if !g.repl.range.contains(key) {
                return Err(self.not_here(key));
            }
            self.may_follow(&mut g, who, &KeyRange::point(key))?;
        }
        let version = mvcc::get_at(&*self.engine, key, who.ts).map_err(storage)?;
        self.followed(who)?;
        Ok(version.and_then(|v| v.value.map(|value| Seen { value, ts: v.ts })))
    }

    /// R6 for the part of a range that lies in this shard.
    pub(crate) fn scan_as_replica(
        &self,
        who: ReadAs,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let here = {
            let mut g = self.lock();
            let first = match reverse {
                true => last_key_side(range, &g.repl.range),
                false => g.repl.range.contains(&range.start),
            };
            if !first {
                return Err(self.not_here(&range.start));
            }
            let here = g.repl.range.intersect(range);
            self.may_follow(&mut g, who, &here)?;
            here
        };
        let page = self.page_of(who, range, &here, reverse, rows_max, bytes_max)?;
        self.followed(who)?;
        Ok(page)
    }
}

impl LocalShards {
    /// What other nodes are to be told now, each of them. To be called every 50 to 100 ms, and sent; lost messages are
    /// made good by later ones.
    pub fn closed_news(&self) -> BTreeMap<NodeId, ClosedNews> {
        let mut news: BTreeMap<NodeId, ClosedNews> = BTreeMap::new();
        for shard in self.shards.all() {
            let mut g = shard.lock();
            let g = &mut *g;
            let full = |news: &BTreeMap<NodeId, ClosedNews>, n: NodeId| {
                news.get(&n).is_some_and(|n| n.closed.len().max(n.wanted.len()) >= CLOSED_NEWS_MAX)
            };
            if g.term == 0 {
                if let Some(leader) = g.leader.filter(|n| *n != shard.node && !full(&news, *n))
                    && std::mem::take(&mut g.following.served)
                {
                    news.entry(leader).or_default().wanted.push(shard.id);
                }
                continue;
            }
            if g.repl.members.all().into_iter().any(|n| full(&news, n)) {
                continue;
            }
            if let Some((index, closed)) = shard.promise(g) {
                for node in g.repl.members.all().into_iter().filter(|n| *n != shard.node) {
                    news.entry(node).or_default().closed.push(Closed { shard: shard.id, index, closed });
                }
            }
        }
        news
    }

    /// What another node has told ([`LocalShards::closed_news`]).
    pub fn hear_closed(&self, news: &ClosedNews) {
        for told in &news.closed {
            if let Some(shard) = self.shards.get(told.shard) {
                let mut g = shard.lock();
                let written = g.written;
                g.following.hear(written, told.index, told.closed);
            }
        }
        for shard in &news.wanted {
            if let Some(shard) = self.shards.get(*shard) {
                let mut g = shard.lock();
                if g.term != 0 {
                    shard.want_closed(&mut g);
                }
            }
        }
    }

    /// R6: up to which timestamp this node can answer reads of these ranges by itself, without waiting. `None`: it has not
    /// all of them.
    pub fn readable_here(&self, ranges: &[KeyRange]) -> Option<Timestamp> {
        let mut lowest = Timestamp::MAX;
        for range in ranges {
            let mut at = range.start.clone();
            loop {
                let shard = self.shards.of_key(&at)?;
                lowest = lowest.min(shard.readable()?);
                let end = shard.range().end;
                if end.is_empty() || (!range.end.is_empty() && end >= range.end) {
                    break;
                }
                if end <= at {
                    return None; // it was cut just now
                }
                at = end;
            }
        }
        Some(lowest)
    }

    /// R6: this node's replica answers, if it can. `NotLeader`, `NotServed`: ask the leaseholder.
    pub fn get_here(&self, who: ReadAs, key: &[u8]) -> Result<Option<Seen>, Error> {
        let shard = self.shards.of_key(key);
        let none = || Error::NotServed(format!("no shard of this node holds key {key:02x?}"));
        shard.ok_or_else(none)?.get_as_replica(who, key)
    }

    /// R6: the same for a range.
    pub fn scan_here(
        &self,
        who: ReadAs,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        self.scan_route(range, reverse)?.scan_as_replica(who, range, reverse, rows_max, bytes_max)
    }
}
