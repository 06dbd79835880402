//! What a leaseholder does by itself, a step at a time: [`LocalShards::tick`].
//!
//! Idle shards cost nothing: an entry is only written when there is something to renew, close or drop.

use isochrone_base::Timestamp;

use crate::api::Error;
use crate::command::Command;
use crate::config::us;
use crate::record::RecordKey;
use crate::service::LocalShards;
use crate::shard::{Inner, Proposal, Shard};

/// Suspected transactions handed to recovery in one tick and shard; the rest follows in the next.
const SUSPECTS_MAX: usize = 64;
/// Tombstones that one rise of the floor drops; more are left to the next tick.
const DROPPED_MAX: usize = 10_000;

impl LocalShards {
    /// Does what is due on every shard that this node leads; to be called every 50 to 100 ms:
    /// * recovers transactions with prepares older than `recover_after`, and anchors below the floor that wait for
    ///   acknowledgements (R18, R21);
    /// * renews leases that are being read and have less than half left (R1);
    /// * closes timestamps of shards that were written to, or are read at replicas (see `follower`);
    /// * raises floors where that drops something (R20);
    /// * forgets the locks of shards whose leadership was lost;
    /// * takes back hand-overs that came to nothing, and proposals that were refused when nobody waited any more.
    ///
    /// Returns when the entries it proposed were applied, with the first error (the other duties are done
    /// nevertheless, and the next tick does what is left).
    pub async fn tick(&self) -> Result<(), Error> {
        let now = self.shards.clock.latest();
        let shards = self.shards.all();
        let mut proposed = Vec::new();
        let mut stuck = Vec::new();
        for shard in &shards {
            shard.look_after_left_alone();
            if shard.take_left() {
                self.locks().forget(&shard.range());
            }
            if shard.hand_over_is_stuck() {
                stuck.push(shard);
            }
            let (suspects, proposals) = shard.duties(now);
            for suspect in suspects {
                self.recover(suspect);
            }
            proposed.extend(proposals.into_iter().map(|p| self.propose(shard, p)));
        }
        let mut first = Ok(());
        for p in proposed {
            if let Err(e) = p.await
                && first.is_ok()
            {
                first = Err(e);
            }
        }
        for shard in stuck {
            if let Err(e) = self.resume_now(shard).await
                && first.is_ok()
            {
                first = Err(e);
            }
        }
        first
    }
}

impl Shard {
    fn duties(&self, now: Timestamp) -> (Vec<crate::api::Suspect>, Vec<Proposal>) {
        {
            let g = self.lock();
            if !g.serving {
                return (Vec::new(), Vec::new());
            }
        }
        let suspects = self.suspects(now.minus_micros(us(self.config.recover_after)), SUSPECTS_MAX);
        let mut g = self.lock();
        let g = &mut *g;
        if !g.serving {
            return (suspects, Vec::new());
        }
        let mut proposals = Vec::new();
        if let Some(to) = self.floor_to(g, now) {
            proposals.push(self.propose_plain(g, Command::RaiseFloor { to }, Timestamp::MIN));
        }
        let ahead = us(self.config.lease_ahead);
        let have = g.repl.read_limit.max(g.limit_proposed);
        if g.read_lately && have < now.plus_micros(ahead / 2) {
            let lease = Command::Lease { holder: self.node };
            proposals.push(self.propose_plain(g, lease, now.plus_micros(ahead)));
        }
        g.read_lately = false;
        if g.repl.newest > g.following.newest_seen {
            g.following.newest_seen = g.repl.newest;
            self.want_closed(g);
        }
        // F2: what can be told to replicas ends at the read limit.
        let wanted = self.has_followers(g) && self.clock.monotonic_ns() < g.following.wanted_until_ns;
        if wanted && now.minus_micros(us(self.config.closed_lag)) > g.repl.read_limit.max(g.limit_proposed) {
            proposals.push(self.propose_plain(g, Command::Close, now.plus_micros(ahead)));
        }
        // Only while something was written that is not closed yet.
        let open = g.repl.newest > g.repl.closed.max(g.closed_logged);
        if open && self.closed_to_carry(g, us(self.config.close_step)) > Timestamp::MIN {
            proposals.push(self.propose_plain(g, Command::Close, Timestamp::MIN));
        }
        (suspects, proposals)
    }

    /// R20: the next floor, if raising it drops something.
    fn floor_to(&self, g: &Inner, now: Timestamp) -> Option<Timestamp> {
        let crowded = g.repl.tombstones.len() > self.config.tombstones_crowded;
        let lag = if crowded { self.config.floor_lag_crowded } else { self.config.floor_lag };
        let to = now.minus_micros(us(lag));
        let mut droppable = g
            .repl
            .tombstones
            .range(..=RecordKey::upto(to))
            .filter(|(_, t)| t.keep.is_none())
            .map(|(k, _)| k.deadline);
        let first = droppable.next()?;
        let last = droppable.nth(DROPPED_MAX - 2).map_or(to, |d| d.max(first));
        (last > g.repl.floor).then_some(last)
    }
}
