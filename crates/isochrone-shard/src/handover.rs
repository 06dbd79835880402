//! Giving a shard's leadership to another node without losing time (R1, "a graceful transfer").
//!
//!     serving ── hand_over ──▶ refusing, in flight: some ──▶ refusing, in flight: none ── Release applied ──▶ transfer
//!        ▲                        │ too long, not logged         │                            │
//!        └────────────────────────┴──────────────────────────────┴── resume: Lease applied ◀──┘ it did not happen
//!
//! The Release entry carries the true highest timestamp at which this leaseholder served or validated anything, instead
//! of a limit ahead of the clock: so what the next one writes is not pushed into the future.
//!
//! Invariants
//!   G1  From the moment the highest read is looked up until the Release is applied or certainly not logged, nothing
//!       is read, validated or evaluated here. (What lies above it would be missing in the limit; and until the Release
//!       is applied the limit that stands is the old, higher one.)
//!   G2  Serving is resumed only behind an entry of the same term that was proposed when nothing was in flight: so a
//!       Release whose answer was lost cannot land after it.
//!
//! How it fails: proposals that stay in flight for [`IDLE_WAIT_MAX`], and a Release that is refused, leave the shard
//! served here as before. A Release whose fate is not known leaves it refusing until its leadership changes, or
//! [`LocalShards::resume`] or, after [`HAND_OVER_MAX`], a tick takes it back.

use std::time::Duration;

use isochrone_base::{ShardId, Term, Timestamp};

use crate::api::Error;
use crate::command::Command;
use crate::config::us;
use crate::evaluate::Evaluated;
use crate::outcome::Outcome;
use crate::service::LocalShards;
use crate::shard::{IDLE, INFLIGHT_MAX, Obstacle, Shard};

/// Longest wait for proposals in flight; then the hand-over is given up.
pub const IDLE_WAIT_MAX: Duration = Duration::from_secs(1);
/// A hand-over older than this, while the node still leads, is taken back.
pub const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// Goes back to serving when a hand-over ends before its Release was proposed.
struct Refusing<'a> {
    shard: &'a Shard,
    term: Term,
    armed: bool,
}

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shard.take_back(self.term);
        }
    }
}

impl LocalShards {
    /// Stops serving a shard that this node leads and logs exactly how far it was read, so that another node can lead
    /// it without a wait; to be followed by the transfer of its leadership, or by [`LocalShards::resume`].
    /// Requests hear `NotLeader` meanwhile.
    ///
    /// # Errors
    /// `NotLeader`, `NotServed`: the shard is served here as before (or not at all). `Ambiguous`: it is not served until
    /// its leadership changes, or it is resumed.
    pub async fn hand_over(&self, shard: ShardId) -> Result<(), Error> {
        let s = self.shards.get(shard);
        let s = s.ok_or_else(|| Error::NotServed(format!("shard {shard} is not on this node")))?;
        let term = self.heard(s.refuse_all())?;
        let mut refusing = Refusing { shard: &s, term, armed: true };
        let mut patience = self.patience(IDLE_WAIT_MAX);
        let proposal = loop {
            match self.heard(s.evaluate_release(term))? {
                Evaluated::Answer(()) => return Ok(()),
                Evaluated::Propose(p, _) => break p,
                Evaluated::Blocked(b) => {
                    let why = b.what.words();
                    if !self.wait(b, &mut patience).await {
                        return Err(Error::NotServed(format!("waited too long for {why}")));
                    }
                }
            }
        };
        refusing.armed = false;
        match self.propose(&s, proposal).await {
            Ok(Outcome::Done) => Ok(()),
            Ok(_) => Err(Error::NotServed("leadership changed".into())),
            Err(e) => {
                // Certainly not logged.
                refusing.armed = matches!(e, Error::NotServed(_) | Error::NotLeader { .. });
                Err(e)
            }
        }
    }

    /// Serves a shard again whose leadership was to be transferred and was not. Harmless when it is served.
    ///
    /// # Errors
    /// `NotLeader`: the transfer did happen. `NotServed`, `Ambiguous`: not yet, try again.
    pub async fn resume(&self, shard: ShardId) -> Result<(), Error> {
        let s = self.shards.get(shard);
        let s = s.ok_or_else(|| Error::NotServed(format!("shard {shard} is not on this node")))?;
        let mut patience = self.patience(IDLE_WAIT_MAX);
        loop {
            match self.resume_now(&s).await {
                Ok(None) => return Ok(()),
                Ok(Some(blocked)) => {
                    let why = blocked.what.words();
                    if !self.wait(blocked, &mut patience).await {
                        return Err(Error::NotServed(format!("waited too long for {why}")));
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// One attempt; `Some`: what is still in flight.
    pub(crate) async fn resume_now(&self, s: &Shard) -> Result<Option<crate::shard::Blocked>, Error> {
        let (term, proposal) = match self.heard(s.evaluate_resume())? {
            Evaluated::Answer(_) => return Ok(None),
            Evaluated::Blocked(b) => return Ok(Some(b)),
            Evaluated::Propose(p, _) => (p.entry.term, p),
        };
        match self.propose(s, proposal).await? {
            Outcome::Done => s.take_back(term),
            _ => return Err(Error::NotServed("leadership changed".into())),
        }
        Ok(None)
    }
}

impl Shard {
    /// Begins a hand-over (G1). Answers the term.
    fn refuse_all(&self) -> Result<Term, Error> {
        let mut g = self.lock();
        let Some(term) = self.served(&g)? else {
            return Err(Error::NotServed(format!("shard {} is not served yet", self.id)));
        };
        self.stop_serving(&mut g);
        g.handing_over = Some(self.clock.monotonic_ns());
        g.wake_all();
        Ok(term)
    }

    /// The Release, when nothing is in flight any more.
    fn evaluate_release(&self, term: Term) -> Result<Evaluated<()>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if let Some(why) = &g.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        if g.term != term || g.handing_over.is_none() {
            return Err(Error::NotLeader { shard: self.id, leader: g.leader });
        }
        if !g.inflight.is_empty() {
            return Ok(Evaluated::Blocked(g.blocked(IDLE, Obstacle::Proposals)));
        }
        let mut proposal = self.propose_plain(g, Command::Release, Timestamp::MIN);
        // F2: what was told to be closed binds who comes next, as what was read does.
        let limit = g.cache.max().max(g.closed_proposed);
        proposal.entry.read_limit = limit;
        g.limit_proposed = limit;
        Ok(Evaluated::Propose(proposal, None))
    }

    /// The entry behind which the shard may be served again (G2).
    fn evaluate_resume(&self) -> Result<Evaluated<()>, Error> {
        let mut g = self.lock();
        let g = &mut *g;
        if g.handing_over.is_none() || g.stopped.is_some() || g.term == 0 {
            self.served(g)?;
            return Ok(Evaluated::Answer(()));
        }
        debug_assert!(g.inflight.len() < INFLIGHT_MAX, "only the hand-over's own entries are in flight");
        if !g.inflight.is_empty() {
            return Ok(Evaluated::Blocked(g.blocked(IDLE, Obstacle::Proposals)));
        }
        let limit = self.clock.latest().plus_micros(us(self.config.lease_ahead));
        let lease = Command::Lease { holder: self.node };
        Ok(Evaluated::Propose(self.propose_plain(g, lease, limit), None))
    }

    /// Serves again, in the same term. The cache holds everything that was read in it.
    fn take_back(&self, term: Term) {
        let mut g = self.lock();
        if g.term == term && g.stopped.is_none() && g.handing_over.take().is_some() {
            self.start_serving(&mut g);
        }
    }

    /// Has a hand-over come to nothing?
    pub(crate) fn hand_over_is_stuck(&self) -> bool {
        let since = self.lock().handing_over;
        let max_ns = u64::try_from(HAND_OVER_MAX.as_nanos()).unwrap_or(u64::MAX);
        since.is_some_and(|at| self.clock.monotonic_ns().saturating_sub(at) >= max_ns)
    }

    /// Was the leadership lost since the last call?
    pub(crate) fn take_left(&self) -> bool {
        std::mem::take(&mut self.lock().left)
    }
}
