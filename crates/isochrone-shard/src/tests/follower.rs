//! R6 and the closed timestamps that go from node to node: the invariants F1 to F4 of [`crate::follower`].

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{KeyRange, LogIndex, NodeId, ShardId, Timestamp, bank};

use super::harness::*;
use crate::api::*;
use crate::command::Command;
use crate::follower::ClosedNews;
use crate::{Closed, Config, LocalShards, Routing, ShardState};

const LEADER: NodeId = NodeId(1);

fn state(w: &World, shard: ShardId) -> ShardState {
    w.shards.get(shard).unwrap().state()
}

/// A replica on another node that applies what a test lets it.
struct Replica {
    follower: Follower,
    client: LocalShards,
}

impl Replica {
    fn new(w: &World) -> Replica {
        let follower = follower(w);
        for shard in [LEFT, RIGHT] {
            follower.shards.follow(shard, Some(LEADER));
        }
        let client =
            LocalShards::new(follower.shards.clone(), Arc::new(w.log.clone()), w.timer(), Routing::Cluster);
        Replica { follower, client }
    }

    fn applied(&self, shard: ShardId) -> LogIndex {
        self.follower.shards.get(shard).unwrap().state().applied
    }

    /// Applies the next `n` entries.
    fn apply(&self, w: &World, shard: ShardId, n: usize) {
        let log = w.log.state().logs.get(&shard).cloned().unwrap_or_default();
        let applied = self.applied(shard);
        let next: Vec<_> = log.into_iter().filter(|e| e.0 > applied).take(n).collect();
        self.follower.shards.apply_entries(shard, &next).unwrap();
    }

    fn get(&self, key: &str, ts: Timestamp) -> Result<Option<String>, Error> {
        let seen = self.client.get_here(as_of(99, ts), key.as_bytes());
        seen.map(|s| s.map(|s| String::from_utf8(s.value.to_vec()).unwrap()))
    }

    fn rows(&self, from: &str, to: &str, ts: Timestamp, reverse: bool) -> Result<Vec<String>, Error> {
        let range = KeyRange::new(from, to);
        let page = self.client.scan_here(as_of(99, ts), &range, reverse, 100, 1 << 20)?;
        assert!(page.newest <= ts);
        Ok(page.rows.into_iter().map(|(_, v)| String::from_utf8(v.to_vec()).unwrap()).collect())
    }
}

fn asks_the_leader<T: std::fmt::Debug>(answer: Result<T, Error>) -> bool {
    matches!(answer, Err(Error::NotLeader { leader: Some(LEADER), .. }))
}

/// What the leaseholder's node tells node 2 of a shard.
fn told(news: &std::collections::BTreeMap<NodeId, ClosedNews>, shard: ShardId) -> Option<Closed> {
    news.get(&OTHER)?.closed.iter().find(|c| c.shard == shard).copied()
}

/// Writes, lets the leaseholder be read so that its limit is ahead, and time go by.
fn lived(w: &World) -> Timestamp {
    let c = w.put(1, "a", "old");
    w.put(2, "z", "old");
    for (txn, key) in [(3, "a"), (4, "z")] {
        w.get(txn, key, w.now()).unwrap();
    }
    w.pass(900);
    c
}

/// F1, F2: what was told binds evaluation at once, and every leaseholder after this one: one that comes without a word,
/// one that is handed the shard, the right half of a split.
#[test]
fn what_was_told_binds_whoever_comes() {
    for way in ["stays", "change", "hand-over", "split", "mistake"] {
        let mut w = World::in_cluster(config());
        lived(&w);
        if way == "mistake" {
            bank::put_back(bank::find("closed-above-the-read-limit"));
            w.pass(5_000);
        }
        let closed = told(&w.client.closed_news(), LEFT).unwrap();
        bank::put_back(None);
        assert_eq!(closed.index, state(&w, LEFT).applied);
        assert!(way == "mistake" || closed.closed <= state(&w, LEFT).read_limit, "F2");
        match way {
            "stays" => {}
            "hand-over" => {
                now(w.client.hand_over(LEFT)).unwrap();
                assert!(w.client.closed_news().is_empty(), "nothing is told while it is handed over");
                assert!(state(&w, LEFT).read_limit >= closed.closed);
                w.new_term(LEFT, &[]);
            }
            "split" => {
                assert_eq!(now(w.client.split(b"a", ShardId(3))), Ok(true));
                w.lead_new();
            }
            _ => w.new_term(LEFT, &[]),
        }
        // A coordinator whose clock is far behind.
        let late = one(7, &[("a", "new")], None, closed.closed.minus_micros(100));
        match w.commit1(&late) {
            Prepared::Committed(c) => assert_eq!(c > closed.closed, way != "mistake", "{way}"),
            other => panic!("{way}: {other:?}"),
        }
    }
}

/// F1: closed stays below what is in flight, and is not told twice for nothing.
#[test]
fn closed_stays_below_what_is_in_flight() {
    let w = World::in_cluster(config());
    lived(&w);
    w.hold();
    let p = one(
        7,
        &[("b", "x")],
        None,
        state(&w, LEFT).closed.max(state(&w, LEFT).read_limit).minus_micros(50_000),
    );
    let mut commit = w.client.commit1(p);
    assert!(poll(&mut commit).is_pending());
    let closed = told(&w.client.closed_news(), LEFT).map_or(Timestamp::MIN, |c| c.closed);
    w.unhold();
    let Prepared::Committed(c) = now(commit).unwrap() else { panic!("it commits") };
    assert!(closed < c);
    let w = World::in_cluster(config());
    lived(&w);
    assert!(told(&w.client.closed_news(), LEFT).is_some());
    assert!(w.client.closed_news().is_empty(), "nothing new");
}

/// F3, F4: a replica answers up to what is closed and visible here, and no further.
#[test]
fn a_replica_answers_the_past() {
    let w = World::in_cluster(config());
    let r = Replica::new(&w);
    let c = lived(&w);
    let before = w.log.state().logs[&LEFT].len() - 1;
    let news = w.client.closed_news();
    let closed = told(&news, LEFT).unwrap();
    assert!(closed.closed >= c);
    // Told before it has the entries: not a word of it yet.
    r.client.hear_closed(&news[&OTHER]);
    assert!(asks_the_leader(r.get("a", c)));
    assert_eq!(r.client.readable_here(&[KeyRange::new("a", "c")]), Some(Timestamp::MIN));
    r.apply(&w, LEFT, before);
    assert!(asks_the_leader(r.get("a", closed.closed)), "the last entry is missing");
    r.apply(&w, LEFT, 1);
    assert_eq!(r.applied(LEFT), closed.index);
    // What comes later lies above.
    r.client.hear_closed(&news[&OTHER]);
    assert_eq!(r.client.readable_here(&[KeyRange::new("a", "c")]), Some(closed.closed));
    assert_eq!(r.get("a", closed.closed).unwrap().as_deref(), Some("old"));
    assert_eq!(r.get("a", c.prev()), Ok(None));
    assert!(asks_the_leader(r.get("a", closed.closed.next())));
    for reverse in [false, true] {
        assert_eq!(r.rows("", "m", closed.closed, reverse).unwrap(), ["old"]);
        assert!(asks_the_leader(r.rows("", "m", closed.closed.next(), reverse)));
    }
    assert!(asks_the_leader(r.get("z", c)), "the other shard has applied nothing");
    r.apply(&w, RIGHT, usize::MAX);
    let both = r.client.readable_here(&[KeyRange::all()]).unwrap();
    assert_eq!(both, closed.closed.min(told(&news, RIGHT).unwrap().closed));
    // A window is for the leaseholder only (R5).
    let who = ReadAs { uncertain_to: closed.closed.next(), ..as_of(99, closed.closed) };
    assert!(asks_the_leader(r.client.get_here(who, b"a")));
    // The same through the ordinary face, as another node would ask.
    assert!(now(r.client.get(as_of(99, closed.closed), b"a")).unwrap().is_some());
    // Below what was collected.
    w.log_command(LEFT, Command::RaiseGcThreshold { to: closed.closed });
    r.apply(&w, LEFT, usize::MAX);
    assert!(matches!(r.get("a", closed.closed.prev()), Err(Error::BelowThreshold { .. })));
    assert!(r.get("a", closed.closed).is_ok());
    let before_again = r.client.readable_here(&[KeyRange::new("a", "c")]);
    // Messages that come late, again, or about what is not here change nothing.
    r.client.hear_closed(&ClosedNews {
        closed: vec![
            Closed { closed: closed.closed.minus_micros(5), ..closed },
            closed,
            Closed { shard: ShardId(77), ..closed },
        ],
        wanted: vec![LEFT, ShardId(77)],
    });
    assert_eq!(r.client.readable_here(&[KeyRange::new("a", "c")]), before_again);
    // What the log closes counts with the entry.
    w.put(5, "b", "late");
    r.apply(&w, LEFT, usize::MAX);
    let by_log = r.client.readable_here(&[KeyRange::new("a", "c")]).unwrap();
    assert_eq!(by_log, state(&w, LEFT).closed.max(closed.closed));
    assert_eq!(r.get("b", by_log), Ok(None), "it came later");
}

/// Mistake: a replica believes a closed timestamp before it has the entries.
#[test]
fn the_mistake_of_believing_early() {
    let w = World::in_cluster(config());
    let r = Replica::new(&w);
    let c = lived(&w);
    bank::put_back(bank::find("follower-believes-early"));
    r.client.hear_closed(&w.client.closed_news()[&OTHER]);
    bank::put_back(None);
    assert_eq!(r.get("a", c), Ok(None), "an unstable snapshot: `a` was committed at {c}");
}

/// R6: a prepare at or below T blocks it, on that key only; `resolved` says so beforehand.
#[test]
fn a_prepare_blocks_a_replica() {
    let w = World::in_cluster(config());
    let r = Replica::new(&w);
    let (a, z) = pair(7, w.now(), Mode::AtMax);
    let Prepared::At(p) = w.prepare(&a) else { panic!("it is prepared") };
    for (txn, key) in [(3, "b"), (4, "z")] {
        w.put(txn, key, "old");
        w.get(txn + 10, key, w.now()).unwrap();
    }
    w.pass(900);
    let news = w.client.closed_news();
    r.apply(&w, LEFT, usize::MAX);
    r.apply(&w, RIGHT, usize::MAX);
    r.client.hear_closed(&news[&OTHER]);
    let closed = told(&news, LEFT).unwrap().closed;
    assert!(closed > p);
    assert!(asks_the_leader(r.get("a", p)));
    assert_eq!(r.get("a", p.prev()), Ok(None));
    assert!(r.get("b", closed).is_ok(), "another key");
    assert!(asks_the_leader(r.rows("", "c", closed, false)));
    assert_eq!(r.client.readable_here(&[KeyRange::new("a", "c")]), Some(p.prev()));
    // Committed above what is closed: the past does not change.
    w.prepare(&z);
    let c = w.now();
    w.decide(&a, Decision::Commit(c)).unwrap();
    r.apply(&w, LEFT, usize::MAX);
    assert_eq!(r.get("a", closed), Ok(None));
    assert!(r.client.readable_here(&[KeyRange::new("a", "c")]) >= Some(closed));
}

/// Duties: a shard that was written to, or that replicas are asked about, closes by about an entry a second; others are quiet.
#[test]
fn idle_shards_are_quiet_until_somebody_wants_them() {
    let keep = Duration::from_secs(3);
    let w = World::in_cluster(Config { closed_keep: keep, ..config() });
    w.put(1, "a", "x");
    let entries = || w.log.state().logs[&LEFT].len();
    let lag = |w: &World| {
        let (mut most, mut before) = (0, entries());
        let mut busy = 0;
        for _ in 0..60 {
            w.pass(50);
            now(w.client.tick()).unwrap();
            w.client.closed_news();
            let closed = {
                let s = w.shards.get(LEFT).unwrap();
                let g = s.lock();
                g.closed_proposed.max(g.repl.closed)
            };
            most = most.max(w.hlc.latest().micros().saturating_sub(closed.micros()));
            busy += usize::from(entries() > before);
            before = entries();
        }
        (most, busy)
    };
    let (_, _) = lag(&w); // the first second
    w.put(2, "a", "y");
    let (most, busy) = lag(&w);
    assert!(most <= 1_000_000, "{most} us behind");
    assert!(busy <= 4, "{busy} entries in 3 seconds");
    w.pass(100);
    let before = entries();
    lag(&w);
    assert!(entries() <= before + 1, "it goes quiet");
    let before = entries();
    lag(&w);
    assert_eq!(entries(), before);
    // A replica that is read.
    let wants = ClosedNews { wanted: vec![LEFT], ..ClosedNews::default() };
    w.client.hear_closed(&wants);
    now(w.client.tick()).unwrap();
    w.client.closed_news();
    w.pass(100);
    w.client.hear_closed(&wants);
    let (most, _) = lag(&w);
    assert!(most <= 1_000_000, "{most} us behind");
    lag(&w);
    let before = entries();
    lag(&w);
    assert_eq!(entries(), before);
    // A read of the past that a replica could not answer.
    w.get(9, "a", w.now().minus_micros(2_000_000)).unwrap();
    let before = entries();
    lag(&w);
    assert!(entries() > before);
    // A shard without other replicas has nobody to tell.
    let s = w.shards.get(RIGHT).unwrap();
    s.lock().repl.members = vec![LEADER].into();
    w.put(3, "z", "x");
    for _ in 0..100 {
        w.pass(50);
        now(w.client.tick()).unwrap();
    }
    let before = w.log.state().logs[&RIGHT].len();
    for _ in 0..100 {
        w.pass(50);
        now(w.client.tick()).unwrap();
        assert_eq!(told(&w.client.closed_news(), RIGHT), None);
    }
    assert_eq!(w.log.state().logs[&RIGHT].len(), before);
}

/// A replica that answers says so to the leader, once.
#[test]
fn a_replica_wants_what_it_answers() {
    let w = World::in_cluster(config());
    let r = Replica::new(&w);
    let c = lived(&w);
    r.apply(&w, LEFT, usize::MAX);
    r.client.hear_closed(&w.client.closed_news()[&OTHER]);
    assert!(r.client.closed_news().is_empty());
    r.get("a", c).unwrap();
    r.get("a", c).unwrap();
    let news = r.client.closed_news();
    assert_eq!(news[&LEADER], ClosedNews { closed: vec![], wanted: vec![LEFT] });
    assert!(r.client.closed_news().is_empty());
}
