//! Recovery of transactions whose coordinator is silent (R18): by anyone, any number at once.
//!
//!     1 ask the anchor ──decided──────────────────────────┐
//!        │ no decision   └─gone: abort, for prepares only ─┤
//!        ▼                                                 ▼
//!     2 probe every piece ──▶ 3 verdict to the anchor ──▶ 4 resolve every piece
//!        └─ committed: back to 1      what it answers is the outcome
//!
//! Suspicion may be wrong: a probe blocks what has not been prepared yet, which costs its transaction an abort, never
//! safety. Recovery never validates, so a pushed at-candidate transaction ends in an abort unless its coordinator is faster.
//!
//! Bounds: one flight per transaction and node, `recoveries_max` flights; each request is sent a bounded number of
//! times. A flight that cannot go on ends; whoever waits for the prepare names the transaction again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::stream::{StreamExt, iter};
use isochrone_base::{Timestamp, TxnId, bank};
use isochrone_shard::api::{self, AnchorReply, Decision, Mode, PieceId, Record, Recover, Suspect};
use tracing::{debug, info};

use crate::coordinator::Coordinator;

/// How often a flight goes back to step 1 before it ends.
const ROUNDS_MAX: u32 = 8;
/// Probes and resolves under way at once in one flight.
const PARALLEL_MAX: usize = 64;

/// What a flight found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The anchor's decision, applied to every piece.
    Decided(Decision),
    /// The anchor has forgotten: prepares were dropped, the outcome itself cannot be told (R22).
    Gone,
}

/// The node's recoverer.
pub struct Recoverer {
    coordinator: Arc<Coordinator>,
    flights: Mutex<BTreeSet<TxnId>>,
}

impl Recoverer {
    /// On the requests, bounds and runtime of the node's coordinator.
    pub fn new(coordinator: Arc<Coordinator>) -> Arc<Recoverer> {
        Arc::new(Recoverer { coordinator, flights: Mutex::new(BTreeSet::new()) })
    }

    fn flights(&self) -> MutexGuard<'_, BTreeSet<TxnId>> {
        // A set of ids: whole after every call, even one that panicked.
        self.flights.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Transactions that are being recovered now.
    pub fn in_flight(&self) -> usize {
        self.flights().len()
    }

    /// One flight of R18, awaited. Any number may run at once, here and elsewhere.
    pub async fn run(&self, suspect: &Suspect) -> Result<Outcome, api::Error> {
        let c = &self.coordinator;
        c.metrics.recoveries.increment(1);
        let result = self.steps(suspect).await;
        match &result {
            Ok(Outcome::Decided(Decision::Commit(ts))) => {
                c.metrics.recoveries_committed.increment(1);
                info!(txn = %suspect.txn, commit_ts = %ts, "recovered: committed");
            }
            Ok(outcome) => {
                c.metrics.recoveries_aborted.increment(1);
                info!(txn = %suspect.txn, ?outcome, "recovered: aborted");
            }
            Err(e) => {
                c.metrics.recoveries_failed.increment(1);
                debug!(txn = %suspect.txn, error = %e, "recovery ends without an outcome");
            }
        }
        result
    }

    async fn steps(&self, suspect: &Suspect) -> Result<Outcome, api::Error> {
        let coordinator = &self.coordinator;
        let client = &coordinator.client;
        let id = |p: &api::PieceRef| PieceId {
            txn: suspect.txn,
            piece: p.piece,
            key: p.key.clone(),
            deadline: suspect.deadline,
        };
        let pieces: Vec<PieceId> = suspect.pieces.iter().map(id).collect();
        let anchor = pieces.iter().find(|p| p.piece == suspect.anchor);
        let anchor =
            anchor.ok_or_else(|| api::Error::Invalid(format!("piece {} is no anchor", suspect.anchor)))?;

        for _ in 0..ROUNDS_MAX {
            // 1. An anchor without a record says nothing while its floor is below the deadline: a prepare may be
            // under way. Only a probe turns absence into an abort.
            match coordinator.answer(|| client.ask(anchor.clone()), || false).await? {
                AnchorReply::Decided(d) => return self.resolve(&pieces, anchor, Outcome::Decided(d)).await,
                AnchorReply::Gone => return self.resolve(&pieces, anchor, Outcome::Gone).await,
                AnchorReply::Unknown if bank::has("no-record-is-abort") => {
                    return self.resolve(&pieces, anchor, Outcome::Gone).await;
                }
                AnchorReply::Undecided | AnchorReply::Unknown => {}
            }
            // 2.
            let probes = pieces.iter().map(|p| coordinator.answer(|| client.probe(p.clone()), || false));
            let probes: Vec<_> =
                iter(probes.collect::<Vec<_>>()).buffer_unordered(PARALLEL_MAX).collect().await;
            let records = probes.into_iter().collect::<Result<Vec<Record>, api::Error>>()?;
            // 3.
            let Some(verdict) = verdict(suspect.mode, suspect.candidate, &records) else { continue };
            let outcome = coordinator.answer(|| client.decide(anchor.clone(), verdict), || false).await?;
            if bank::has("recovery-trusts-its-verdict") {
                return self.resolve(&pieces, anchor, Outcome::Decided(verdict)).await;
            }
            match outcome {
                // What the anchor answers is the outcome, not the verdict.
                AnchorReply::Decided(d) => return self.resolve(&pieces, anchor, Outcome::Decided(d)).await,
                AnchorReply::Gone => return self.resolve(&pieces, anchor, Outcome::Gone).await,
                reply @ (AnchorReply::Undecided | AnchorReply::Unknown) => {
                    coordinator.found_broken(suspect.txn, "R16", &format!("the anchor answers {reply:?}"));
                    return Err(api::Error::Invalid(format!("the anchor answers a decision with {reply:?}")));
                }
            }
        }
        Err(api::Error::Ambiguous("pieces are committed, and the anchor does not say so".to_string()))
    }

    /// 4.
    async fn resolve(
        &self,
        pieces: &[PieceId],
        anchor: &PieceId,
        outcome: Outcome,
    ) -> Result<Outcome, api::Error> {
        let coordinator = &self.coordinator;
        let client = &coordinator.client;
        let decision = match outcome {
            Outcome::Decided(d) => d,
            Outcome::Gone => Decision::Abort, // T12: it can never commit any more
        };
        if let Decision::Commit(c) = decision {
            coordinator.clock.update(c);
        }
        let sends =
            pieces.iter().map(|p| coordinator.answer(|| client.resolve(p.clone(), decision), || false));
        let answers: Vec<_> = iter(sends.collect::<Vec<_>>()).buffer_unordered(PARALLEL_MAX).collect().await;
        answers.into_iter().collect::<Result<Vec<()>, api::Error>>()?;
        if outcome != Outcome::Gone {
            coordinator.answer(|| client.acked(anchor.clone()), || false).await?; // R21
        }
        Ok(outcome)
    }
}

/// R18.3 from what the probes found; `None`: it was decided meanwhile, ask again.
fn verdict(mode: Mode, candidate: Timestamp, records: &[Record]) -> Option<Decision> {
    let mut max = Timestamp::MIN;
    let mut all_at_candidate = true;
    let mut abort = false;
    for record in records {
        match record {
            Record::Committed(_) => return None,
            // `None` after a probe: the floor has passed the deadline, and it can never be prepared (R18.2, T10).
            Record::Aborted | Record::None => abort = true,
            Record::Prepared(p) => {
                max = if bank::has("recovery-commits-at-first-p") && max != Timestamp::MIN {
                    max
                } else {
                    max.max(*p)
                };
                all_at_candidate &= *p == candidate;
            }
        }
    }
    let certain = mode == Mode::AtMax || all_at_candidate || bank::has("recovery-commits-pushed");
    let committed = !abort && !records.is_empty() && certain;
    Some(if committed { Decision::Commit(max) } else { Decision::Abort })
}

/// Ends a flight however it ends, a panic included.
struct Flight<'a> {
    recoverer: &'a Recoverer,
    txn: TxnId,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.recoverer.flights().remove(&self.txn);
    }
}

/// The handle that shards hold: a recoverer that can be shared with its own tasks.
#[derive(Clone)]
pub struct RecoverInBackground(pub Arc<Recoverer>);

impl Recover for RecoverInBackground {
    fn recover(&self, suspect: Suspect) {
        let recoverer = self.0.clone();
        {
            let mut flights = recoverer.flights();
            if flights.len() >= recoverer.coordinator.config.recoveries_max {
                recoverer.coordinator.metrics.recoveries_dropped.increment(1);
                return;
            }
            if !flights.insert(suspect.txn) {
                return;
            }
        }
        let runtime = recoverer.coordinator.runtime.clone();
        let _goes_on = runtime.spawn(async move {
            let flight = Flight { recoverer: &recoverer, txn: suspect.txn };
            let _counted = recoverer.run(&suspect).await;
            drop(flight);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        use Decision::{Abort, Commit};
        use Record::{Aborted, Committed, None as Absent, Prepared};
        let t = |n| Timestamp(n);
        let v = |mode, records: &[Record]| verdict(mode, t(5), records);
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Prepared(t(9))]), Some(Commit(t(9))));
        assert_eq!(v(Mode::AtCandidate, &[Prepared(t(5)), Prepared(t(5))]), Some(Commit(t(5))));
        // "Recovery commits a pushed at-candidate transaction at the maximum".
        assert_eq!(v(Mode::AtCandidate, &[Prepared(t(5)), Prepared(t(9))]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Aborted]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Prepared(t(5)), Absent]), Some(Abort));
        assert_eq!(v(Mode::AtMax, &[Aborted, Committed(t(6))]), None);
        assert_eq!(v(Mode::AtMax, &[]), Some(Abort));
    }
}
