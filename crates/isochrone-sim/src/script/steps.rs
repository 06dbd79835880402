//! One transaction, and the death of a node at a step of it.
//!
//! Checks
//!   ST1  The chosen step came, and the victim died at it.
//!   ST2  All of the transaction is there or nothing (T1): in every snapshot that anybody reads, and at the end.
//!   ST3  Its client, if it lives, is told within [`ANSWER_MAX`]; committed is there (T2), aborted is not (T3).
//!   ST4  Within [`RECOVERED_MAX`] no prepare is left on the nodes that run (T11), and every gateway that lives has written
//!        the rows again, with the victim back or not.
//!   ST5  The victim comes back, writes the rows, and all replicas are equal (SIM6).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::{Key, NodeId, TxnId};
use isochrone_server::Node;
use isochrone_txn::kv::{Error, KvStore, KvTxn, Lock, TxnOptions};
use tokio::sync::oneshot;

use super::{
    Death, Moment, Part, SILENCE, START_BALANCE, Stage, Step, Watched, When, account_key, bytes, ledger_key,
    may_retry, number,
};
use crate::STEP;

/// T11, in virtual time after the (last) death.
pub const RECOVERED_MAX: Duration = Duration::from_secs(30);
/// A client waits at most this long for the answer to COMMIT: all the coordinator's bounds, and a silence of the network.
pub const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A step has to come within this time.
const STEP_MAX: Duration = Duration::from_secs(20);
/// With [`Back::Late`] nobody touches the rows for so long: time for the leaders' own scans, and for elections.
const UNTOUCHED: Duration = Duration::from_millis(2_500);
/// The victim of [`Back::Soon`] is down for this long.
const DOWN: Duration = Duration::from_millis(700);
/// And so long are those of [`Back::BothLater`]: longer than a coordinator waits for a prepare, shorter than it waits for that
/// and for the anchor's word.
pub const DOWN_LONG: Duration = Duration::from_secs(8);
/// What the scripted transaction moves from one account to the other. Others move 1 at a time, fewer than this.
const AMOUNT: i64 = 1_000_000;

/// The transaction of a script. Each writes two rows, and each is SERIALIZABLE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Both rows in one shard (R13).
    OnePiece,
    /// Two shards, and what is read is what is written: at-max (R14).
    TwoPieces,
    /// Two shards, and a row was read in a third: validated first (R9.2), at-candidate (R14).
    ReadElsewhere,
    /// Two shards, and another row was read in the first. A later reader pushes the prepare: validated again, and decided
    /// before the answer (R15).
    Pushed,
    /// Two shards, and somebody else has written the second row meanwhile: refused (R12), and decided so (R19).
    Refused,
}

/// Who dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// The gateway of the transaction.
    Coordinator,
    /// The leader of the anchor's shard.
    Anchor,
    /// The leader of the other piece's shard.
    Other,
}

/// All victims.
pub const VICTIMS: [Victim; 3] = [Victim::Coordinator, Victim::Anchor, Victim::Other];

/// When the victim comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Back {
    /// A moment later; its streams end with it, and clients write to the rows at once.
    Soon,
    /// After the two others have finished without it. Its streams end only after [`SILENCE`], and nobody touches the rows
    /// before the prepares are gone: the leaders find them by themselves.
    Late,
    /// The leader of the other shard dies right after it, and both come back after [`DOWN_LONG`]: nothing answers, and the
    /// coordinator gives up (R19).
    BothLater,
}

/// When the victim dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// At a moment of a call of the coordinator.
    Step(Step, Moment),
    /// When it is about to send its n-th message after COMMIT was called, counted from 0: also where the coordinator leads a
    /// piece itself and no request crosses the network.
    Message(u64),
}

/// A second death, in recovery: the coordinator is the first victim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Second {
    /// The step of the recoverer on the node that leads the other piece.
    pub step: Step,
    /// The moment of that call.
    pub moment: Moment,
    /// `Other`: the recoverer itself; `Anchor`: the leader it talks to.
    pub victim: Victim,
}

/// One script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The seed: latencies and the like.
    pub seed: u64,
    /// The transaction.
    pub shape: Shape,
    /// The nodes of the coordinator, and the leaders of the anchor and of the other piece.
    pub nodes: [u32; 3],
    /// When the victim dies.
    pub at: At,
    /// Who dies.
    pub victim: Victim,
    /// When it comes back.
    pub back: Back,
    /// Another death, in recovery.
    pub second: Option<Second>,
}

impl Case {
    /// Coordinator and leaders on three nodes, and no second death.
    pub fn new(shape: Shape, at: At, victim: Victim, back: Back) -> Case {
        Case { seed: 1, shape, nodes: [3, 1, 2], at, victim, back, second: None }
    }
}

/// What the client was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// It is gone, with its gateway.
    Nothing,
    /// COMMIT.
    Committed,
    /// ABORT.
    Aborted,
    /// 40003.
    Unknown,
}

/// What a script came to. Times are virtual and count from the last death.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What the client was told.
    pub told: Told,
    /// Is the transaction there?
    pub there: bool,
    /// Until no prepare of the transaction was left.
    pub prepares_gone: Duration,
    /// Until each gateway that lived had written the rows again; from when it tried.
    pub written_again: Duration,
    /// Until the client had its answer.
    pub told_after: Duration,
}

/// The two rows, and what was written to them.
struct Rows {
    from: Key,
    to: Key,
    tally: Mutex<Tally>,
}

/// Moves of 1 between the rows.
#[derive(Default)]
struct Tally {
    acknowledged: i64,
    unknown: i64,
}

impl Rows {
    async fn read(&self, txn: &mut dyn KvTxn, lock: Lock) -> Result<(i64, i64), Error> {
        let mut balances = [0; 2];
        for (balance, key) in balances.iter_mut().zip([&self.from, &self.to]) {
            let value = txn.get(key, lock).await?;
            let value = value.ok_or_else(|| Error::Internal("an account is gone".into()))?;
            *balance = number(&value).map_err(Error::Internal)?;
        }
        // ST2.
        if balances[0] + balances[1] != 2 * START_BALANCE {
            return Err(Error::Internal(format!("ST2, T1: half of the transaction is there: {balances:?}")));
        }
        Ok((balances[0], balances[1]))
    }

    fn write(&self, txn: &mut dyn KvTxn, (from, to): (i64, i64), amount: i64) -> Result<(), Error> {
        txn.put(self.from.clone(), Some(bytes(from - amount)))?;
        txn.put(self.to.clone(), Some(bytes(to + amount)))
    }

    async fn move_one(&self, node: &Node) -> Result<(), Error> {
        let mut txn = node.store.begin(TxnOptions::default());
        // As an UPDATE does.
        let balances = self.read(&mut *txn, Lock::Exclusive).await?;
        self.write(&mut *txn, balances, 1)?;
        let result = txn.commit().await;
        let mut tally = self.tally.lock().expect("one thread");
        match &result {
            Ok(_) => tally.acknowledged += 1,
            Err(Error::Unknown(_)) => tally.unknown += 1,
            Err(_) => {}
        }
        result.map(drop)
    }

    /// Moves 1, however often it takes.
    async fn move_one_at_last(&self, node: &Node) -> Result<(), String> {
        loop {
            match self.move_one(node).await {
                Ok(()) => return Ok(()),
                Err(e) => may_retry(&e)?,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn told(result: &Result<(), Error>) -> Result<Told, String> {
    match result {
        Ok(()) => Ok(Told::Committed),
        Err(Error::Unknown(_)) => Ok(Told::Unknown),
        Err(e) => may_retry(e).map(|()| Told::Aborted),
    }
}

/// Plays a script. `Err` says which check failed.
pub fn play(case: &Case) -> Result<Outcome, String> {
    Play::open(case)?.run()
}

struct Play {
    case: Case,
    stage: Stage,
    rows: Arc<Rows>,
    gateway: NodeId,
    anchor: NodeId,
    other: NodeId,
    /// The scripted transaction, once it has begun.
    txn: TxnId,
}

impl Play {
    fn open(case: &Case) -> Result<Play, String> {
        let [gateway, anchor, other] = case.nodes.map(NodeId);
        let mut clocks = [0; 3];
        let mut off = |node: NodeId, by: i64| clocks[node.0 as usize - 1] = by;
        if case.shape == Shape::Pushed {
            // A coordinator whose clock is behind, and a reader ahead of it.
            off(gateway, -40_000);
            off(other, 40_000);
        }
        if case.second.is_some() {
            // The recoverer that is watched suspects first, by more than its scans are apart.
            off(other, 110_000);
        }
        let mut stage = Stage::open(case.seed, case.back == Back::Late, clocks)?;
        // Of eight accounts 2 and 3 are one shard, 4 to 7 the next one; the ledger is a third.
        let to = if case.shape == Shape::OnePiece { account_key(3) } else { account_key(4) };
        let rows = Arc::new(Rows { from: account_key(2), to, tally: Mutex::default() });
        stage.place(&[(account_key(2), anchor), (account_key(4), other), (ledger_key(1), other)])?;
        Ok(Play { case: *case, stage, rows, gateway, anchor, other, txn: TxnId(0) })
    }

    fn node_of(&self, victim: Victim) -> NodeId {
        match victim {
            Victim::Coordinator => self.gateway,
            Victim::Anchor => self.anchor,
            Victim::Other => self.other,
        }
    }

    fn run(&mut self) -> Result<Outcome, String> {
        let victim = self.node_of(self.case.victim);
        let answer = self.commit_under_watch()?;
        let client = |s: &Stage, told_at: &mut Option<Duration>| {
            if told_at.is_none() && answer.is_done() {
                *told_at = Some(s.now());
            }
        };
        let mut told_at = None;

        // ST1.
        let mut dead = self.death(victim, |s| client(s, &mut told_at))?;
        if let Some(second) = self.case.second {
            let victim = self.node_of(second.victim);
            // Two of three are needed for anything: the first one comes back when the second one dies.
            let again = self.death(victim, |s| client(s, &mut told_at))?;
            self.stage.restart(dead);
            dead = again;
        }
        let mut down = vec![dead];
        if self.case.back == Back::BothLater {
            let third = [self.anchor, self.other].into_iter().find(|n| *n != dead && *n != self.gateway);
            let third =
                third.ok_or("this needs a coordinator apart from the leaders, and a leader as the victim")?;
            self.stage.kill(third);
            down.push(third);
        }
        let died = self.stage.now();

        // ST3, ST4.
        let soon = self.case.back != Back::Late;
        let down_for = if self.case.back == Back::BothLater { DOWN_LONG } else { DOWN };
        // The last moment at which there was one: an entry in flight may become a prepare after a while without any.
        let mut gone = Duration::ZERO;
        let mut writers: Vec<(NodeId, Part<Result<(), String>>)> = Vec::new();
        let mut trying = died;
        let mut restarted = false;
        loop {
            let now = self.stage.now();
            if soon && !restarted && now >= died + down_for {
                down.iter().for_each(|n| self.stage.restart(*n));
                restarted = true;
            }
            let prepared = self.stage.is_prepared(self.txn);
            if prepared {
                gone = now - died + STEP;
            }
            if writers.is_empty() && (soon || (!prepared && now > died + UNTOUCHED)) {
                trying = now;
                for node in self.stage.up() {
                    let rows = self.rows.clone();
                    let part = self.stage.spawn(node, |n| async move { rows.move_one_at_last(&n).await });
                    writers.push((node, part));
                }
            }
            let written = !writers.is_empty() && writers.iter().all(|(_, w)| w.is_done());
            client(&self.stage, &mut told_at);
            let heard = told_at.is_some() || self.gateway == dead || self.gateway == victim;
            if !prepared && written && heard {
                break;
            }
            if now > died + RECOVERED_MAX.max(ANSWER_MAX) + SILENCE {
                let waiting: Vec<NodeId> =
                    writers.iter().filter(|(_, w)| !w.is_done()).map(|(n, _)| *n).collect();
                return Err(format!(
                    "ST3, ST4: prepared: {prepared}; not written again by {waiting:?}; told: {heard}"
                ));
            }
            self.stage.step()?;
        }
        let written_again = self.stage.now() - trying;
        for (node, writer) in &writers {
            writer.take().expect("it is done").map_err(|e| format!("node {node}: {e}"))?;
        }
        for (what, took) in [("prepares", gone), ("rows", written_again)] {
            if took > RECOVERED_MAX {
                return Err(format!("ST4, T11: {what} took {took:?}"));
            }
        }
        let told_after = told_at.map_or(Duration::ZERO, |at| at.saturating_sub(died));
        if told_after > ANSWER_MAX {
            return Err(format!("ST3: the client was told after {told_after:?}"));
        }
        let told = match answer.take() {
            Some(result) => told(&result).map_err(|e| format!("ST3: the client was told: {e}"))?,
            None => Told::Nothing,
        };

        // ST5.
        if !restarted {
            down.iter().for_each(|n| self.stage.restart(*n));
        }
        let all = [self.gateway, self.anchor, self.other];
        self.stage.until(RECOVERED_MAX, "ST5: the victims are back", |s| {
            all.iter().all(|n| s.node(*n).is_some())
        })?;
        for node in all {
            let rows = self.rows.clone();
            let wrote = self
                .stage
                .play(node, "ST5: rows are written", |n| async move { rows.move_one_at_last(&n).await })?;
            wrote.map_err(|e| format!("ST5: node {node}: {e}"))?;
        }
        let rows = self.rows.clone();
        let (from, _) = self
            .stage
            .play(dead, "rows are read", |n| async move {
                loop {
                    let mut txn = n.store.begin(TxnOptions::default());
                    match rows.read(&mut *txn, Lock::None).await {
                        Ok(balances) => break Ok(balances),
                        Err(e) => may_retry(&e)?,
                    }
                }
            })?
            .map_err(|e: String| format!("ST5: {e}"))?;
        self.stage.until(RECOVERED_MAX, "T11: prepares are gone at the end", |s| s.prepared() == 0)?;
        self.stage.same_replicas()?;
        let there = self.is_there(from)?;
        match (&told, there) {
            (Told::Committed, false) => return Err("ST3, T2: acknowledged, and not there".into()),
            (Told::Aborted, true) => return Err("ST3, T3: reported as aborted, and there".into()),
            _ => {}
        }
        Ok(Outcome { told, there, prepares_gone: gone, written_again, told_after })
    }

    /// Is the scripted transaction there, once? And what the others were told (T2, T8)?
    fn is_there(&self, from: i64) -> Result<bool, String> {
        let moved = START_BALANCE - from;
        let tally = self.rows.tally.lock().expect("one thread");
        let (scripted, by_others) = (moved / AMOUNT, moved % AMOUNT);
        if !(0..=1).contains(&scripted) {
            return Err(format!("ST2, T8: the transaction is there {scripted} times"));
        }
        if by_others < tally.acknowledged || by_others > tally.acknowledged + tally.unknown {
            return Err(format!(
                "T2, T8: {} moves were acknowledged, {by_others} are there",
                tally.acknowledged
            ));
        }
        Ok(scripted == 1)
    }

    /// Calls COMMIT on the gateway, with the deaths to come under watch.
    fn commit_under_watch(&mut self) -> Result<Part<Result<(), Error>>, String> {
        let (shape, rows) = (self.case.shape, self.rows.clone());
        let (has_read, reads) = oneshot::channel();
        let (go, may_commit) = oneshot::channel::<()>();
        let answer = self.stage.spawn(self.gateway, |node| async move {
            let mut txn = node.store.begin(TxnOptions::default());
            let balances = rows.read(&mut *txn, Lock::None).await?;
            let also = match shape {
                Shape::ReadElsewhere => Some(ledger_key(1)),
                Shape::Pushed => Some(account_key(3)),
                _ => None,
            };
            if let Some(key) = also {
                txn.get(&key, Lock::None).await?;
            }
            rows.write(&mut *txn, balances, AMOUNT)?;
            let _listens = has_read.send(txn.id());
            let _never_dropped = may_commit.await;
            txn.commit().await.map(drop)
        });
        let mut reads = reads;
        let mut txn = None;
        self.stage.until(STEP_MAX, "the transaction has read", |_| {
            txn = txn.or(reads.try_recv().ok());
            txn.is_some()
        })?;
        let txn = txn.expect("the loop ends with it");
        self.txn = txn;

        let (other, rows) = (self.other, self.rows.clone());
        match shape {
            Shape::Pushed => {
                // After everybody's news, so that the coordinator does not learn of this reader's time.
                self.stage.wait(Duration::from_millis(200))?;
                let read = self.stage.play(other, "a later reader", |n| async move {
                    let mut txn = n.store.begin(TxnOptions::default());
                    rows.read(&mut *txn, Lock::None).await
                })?;
                read.map_err(|e| e.to_string())?;
            }
            Shape::Refused => {
                self.stage.play(other, "a rival", |n| async move { rows.move_one_at_last(&n).await })??;
            }
            _ => {}
        }

        let victim = self.node_of(self.case.victim);
        let when = match self.case.at {
            At::Step(step, moment) => When::Call { step, moment, from: self.gateway },
            At::Message(n) => When::Message(n),
        };
        let mut deaths = vec![Death { victim, when }];
        deaths.extend(self.case.second.map(|s| Death {
            victim: self.node_of(s.victim),
            when: When::Call { step: s.step, moment: s.moment, from: self.other },
        }));
        {
            let mut watch = self.stage.watch().state();
            watch.watched =
                Some(Watched { txn, anchor: self.rows.from.clone(), other: self.rows.to.clone() });
            watch.deaths = deaths.into();
        }
        let _waits = go.send(());
        Ok(answer)
    }

    /// ST1: steps until the victim has died.
    fn death(&mut self, victim: NodeId, mut each: impl FnMut(&Stage)) -> Result<NodeId, String> {
        let end = self.stage.now() + STEP_MAX;
        while self.stage.now() < end {
            let dead = self.stage.step()?;
            each(&self.stage);
            if let Some(dead) = dead {
                assert_eq!(dead, victim, "the watch kills who it was told to");
                return Ok(dead);
            }
        }
        Err("ST1: the step was never reached".into())
    }
}
