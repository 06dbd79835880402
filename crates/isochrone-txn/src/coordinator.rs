//! One node's coordinator: what its transactions share, and how requests reach shards.
//!
//! Every request of the shard's face may be repeated (each is idempotent), so a lost answer is met by asking again,
//! a bounded number of times and for a bounded time. What is left when that ends is told apart here once:
//! *nothing was done* is only what a shard says of itself ([`api::Error::NotServed`], [`api::Error::NotLeader`]); silence is *unknown*.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isochrone_base::held::Held;
use isochrone_base::{KeyRange, Timestamp, TxnId, bank};
use isochrone_clock::Hlc;
use isochrone_env::{Random, Timer};
use isochrone_shard::api::{self, BoxFuture, ReadSpan, ShardClient};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::kv::{Error, KvTxn, TxnOptions};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::txn::Txn;

/// Validations that one transaction sends at the same time; the others wait for a place.
const VALIDATIONS_MAX: usize = 64;

/// See the module.
pub struct Coordinator {
    pub(crate) client: Arc<dyn ShardClient>,
    pub(crate) clock: Arc<Hlc>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) timer: Arc<dyn Timer>,
    pub(crate) backoff: Backoff,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) runtime: Handle,
    pub(crate) unfinished: Arc<Semaphore>,
    broken: OnceLock<(&'static str, String)>,
}

impl Coordinator {
    /// A coordinator for this node. Must be called inside the tokio runtime that shall carry what commits leave to
    /// do after their answer. Refuses a configuration that cannot work.
    pub fn new(
        client: Arc<dyn ShardClient>,
        clock: Arc<Hlc>,
        random: Arc<dyn Random>,
        timer: Arc<dyn Timer>,
        config: Config,
    ) -> Result<Arc<Coordinator>, Error> {
        config.validate().map_err(Error::Internal)?;
        Ok(Arc::new(Coordinator {
            client,
            clock,
            backoff: Backoff::new(timer.clone(), random.clone(), config.backoff_min, config.backoff_max),
            random,
            timer,
            metrics: Metrics::new(),
            runtime: Handle::current(),
            unfinished: Arc::new(Semaphore::new(config.unfinished_max)),
            broken: OnceLock::new(),
            config,
        }))
    }

    /// Begins a transaction whose snapshot is now.
    pub fn begin(self: &Arc<Coordinator>, options: TxnOptions) -> Box<dyn KvTxn> {
        Box::new(Txn::new(self.clone(), options))
    }

    /// The node's clock.
    pub fn clock(&self) -> &Arc<Hlc> {
        &self.clock
    }

    /// The pauses between attempts, for [`crate::retry::retry`].
    pub fn backoff(&self) -> &Backoff {
        &self.backoff
    }

    /// A new attempt's id: random, so never used again (section 1).
    pub(crate) fn new_txn_id(&self) -> TxnId {
        TxnId(self.random.next_u128())
    }

    /// An answer that cannot be, by the protocol: loud, counted, and nothing is made of it.
    pub(crate) fn found_broken(&self, txn: TxnId, invariant: &'static str, what: &str) {
        self.metrics.broken.increment(1);
        tracing::error!(%txn, invariant, what, "broken invariant of the commit protocol");
        let _only_the_first = self.broken.set((invariant, format!("{txn}: {what}")));
    }

    /// The first answer that cannot be, if there ever was one: the invariant's id, and what was seen.
    pub fn broken(&self) -> Option<&(&'static str, String)> {
        self.broken.get()
    }

    /// Commits of several pieces that are under way.
    pub fn held(&self) -> Held {
        let max = self.config.unfinished_max;
        let entries = max.saturating_sub(self.unfinished.available_permits());
        Held::counted("txn.commits_unfinished", entries, max, 0)
    }

    /// The upper end of the uncertainty window of a snapshot at `ts` (R5): the whole last microsecond counts, so that
    /// comparing microseconds is enough for R23.
    pub(crate) fn uncertain_to(&self, ts: Timestamp) -> Timestamp {
        let configured = u64::try_from(self.config.uncertainty.as_micros()).unwrap_or(u64::MAX);
        match self.clock.uncertainty_us().max(configured) {
            _ if bank::has("uncertainty-ignored") => ts,
            0 => ts,
            us => Timestamp::from_micros(ts.micros().saturating_add(us).saturating_add(1)).prev(),
        }
    }

    /// R23: waits until `c` is not ahead of the latest time it can be now.
    pub(crate) async fn wait_for(&self, c: Timestamp) {
        loop {
            let ahead_us = c.micros().saturating_sub(self.clock.latest().micros());
            if ahead_us == 0 {
                return;
            }
            self.timer.sleep(Duration::from_micros(ahead_us)).await;
        }
    }

    /// R24: waits until `c` lies certainly in the past. Answers for how long, in microseconds.
    pub(crate) async fn wait_past(&self, c: Timestamp) -> u64 {
        let began_ns = self.clock.monotonic_ns();
        let mut waited = false;
        loop {
            let earliest = self.clock.earliest();
            if earliest > c {
                break;
            }
            waited = true;
            let us = c.micros().saturating_sub(earliest.micros()).saturating_add(1);
            self.timer.sleep(Duration::from_micros(us)).await;
        }
        if !waited {
            return 0;
        }
        let us = self.clock.monotonic_ns().saturating_sub(began_ns) / 1_000;
        self.metrics.clock_wait.record(us as f64 / 1e6);
        us
    }

    /// Waits until this node's own guess of the time is at least `ts`.
    pub(crate) async fn wait_physical(&self, ts: Timestamp) {
        loop {
            let ahead_us = ts.micros().saturating_sub(self.clock.physical().micros());
            if ahead_us == 0 {
                return;
            }
            self.timer.sleep(Duration::from_micros(ahead_us)).await;
        }
    }

    /// Sends a request until it is answered with something else than "not here" or silence: at most `attempts_max`
    /// times. `moved` is asked after each "not here" and ends the attempts when it says so.
    pub(crate) async fn attempts<T, Fut>(
        &self,
        mut send: impl FnMut() -> Fut,
        moved: impl Fn() -> bool,
    ) -> Result<T, api::Error>
    where
        Fut: Future<Output = Result<T, api::Error>>,
    {
        let mut attempt = 0;
        // Once an attempt may have had an effect, a later "nothing was done" says nothing about it.
        let mut silent = None;
        loop {
            let error = match send().await {
                Err(
                    e @ (api::Error::Ambiguous(_) | api::Error::NotServed(_) | api::Error::NotLeader { .. }),
                ) => e,
                Err(e) => return Err(e),
                Ok(answer) => return Ok(answer),
            };
            let not_served = matches!(error, api::Error::NotServed(_) | api::Error::NotLeader { .. });
            if !not_served {
                silent = Some(error.clone());
            }
            attempt += 1;
            if attempt >= self.config.attempts_max || (not_served && moved()) {
                return Err(silent.unwrap_or(error));
            }
            self.metrics.resent.increment(1);
            self.backoff.wait(attempt - 1).await;
        }
    }

    /// As [`Coordinator::attempts`], and silence for longer than `answer_wait_max` is [`api::Error::Ambiguous`].
    pub(crate) async fn answer<T, Fut>(
        &self,
        send: impl FnMut() -> Fut,
        moved: impl Fn() -> bool,
    ) -> Result<T, api::Error>
    where
        Fut: Future<Output = Result<T, api::Error>>,
    {
        let wait_max = self.config.answer_wait_max;
        tokio::select! {
            biased;
            answer = self.attempts(send, moved) => answer,
            () = self.timer.sleep(wait_max) => Err(api::Error::Ambiguous(format!("no answer within {wait_max:?}"))),
        }
    }

    /// R10 on any number of shards at once: all answers are heard. `Err(Conflict)`: something changed.
    pub(crate) async fn validate(
        &self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> Result<(), api::Error> {
        use futures_util::stream::{StreamExt, iter};
        if spans.is_empty() {
            return Ok(());
        }
        let groups = self.by_shard(spans);
        if let [(_, _)] = groups.as_slice() {
            let spans = groups.into_iter().flat_map(|(_, spans)| spans).collect();
            return self.validate_on_one(txn, spans, ts).await;
        }
        let all = groups.into_iter().map(|(_, spans)| self.validate_on_one(txn, spans, ts));
        let mut answers = iter(all.collect::<Vec<_>>()).buffer_unordered(VALIDATIONS_MAX);
        let mut result = Ok(());
        while let Some(answer) = answers.next().await {
            match (&result, answer) {
                // A conflict is certain; it is the answer whatever else went wrong.
                (_, Err(e @ api::Error::Conflict(_))) => return Err(e),
                (Ok(()), Err(e)) => result = Err(e),
                _ => {}
            }
        }
        result
    }

    /// Boxed because a shard that was split in the meantime makes this recurse, over smaller spans.
    fn validate_on_one(
        &self,
        txn: TxnId,
        spans: Vec<ReadSpan>,
        ts: Timestamp,
    ) -> BoxFuture<'_, Result<(), api::Error>> {
        Box::pin(async move {
            let split = || self.by_shard(spans.clone()).len() > 1;
            let answer = self.answer(|| self.client.validate(txn, spans.clone(), ts), split).await;
            match answer {
                Err(api::Error::NotServed(_) | api::Error::NotLeader { .. }) if split() => {
                    self.validate(txn, spans, ts).await
                }
                other => other,
            }
        })
    }

    /// Cuts spans by shard, in key order; each group lies within the range in front of it.
    pub(crate) fn by_shard(&self, mut spans: Vec<ReadSpan>) -> Vec<(KeyRange, Vec<ReadSpan>)> {
        spans.sort_unstable_by(|a, b| a.range.cmp(&b.range));
        let mut out: Vec<(KeyRange, Vec<ReadSpan>)> = Vec::new();
        let mut parts = Vec::new();
        for span in spans {
            if let Some((shard, group)) = out.last_mut()
                && shard.contains_range(&span.range)
            {
                group.push(span);
                continue;
            }
            parts.clear();
            for shard in self.client.route(&span.range) {
                let range = shard.intersect(&span.range);
                if !range.is_empty() {
                    parts.push((shard, ReadSpan { range, seen: span.seen }));
                }
            }
            for (shard, part) in parts.drain(..) {
                match out.iter_mut().find(|(s, _)| *s == shard) {
                    Some((_, group)) => group.push(part),
                    None => out.push((shard, vec![part])),
                }
            }
        }
        out
    }
}

/// What a shard's refusal of a read or validation means for the transaction: nothing of it has been committed.
pub(crate) fn not_committed(error: api::Error) -> Error {
    match error {
        api::Error::Conflict(why) => Error::Serialization(why),
        api::Error::Uncertain(ts) => Error::Serialization(format!("a row changed at {ts} while it was read")),
        api::Error::Deadlock => Error::Deadlock,
        api::Error::LockTimeout(waited) => Error::LockTimeout(waited),
        e @ api::Error::BelowThreshold { .. } => Error::SnapshotTooOld(e.to_string()),
        e @ api::Error::NotLeader { .. } => Error::Unavailable(e.to_string()),
        api::Error::NotServed(why) | api::Error::Ambiguous(why) => Error::Unavailable(why),
        api::Error::Invalid(why) => Error::Internal(why),
        api::Error::Stopped(why) => Error::Stopped(why),
    }
}
