//! Doing it again: pauses between attempts, and whole transactions repeated by the server.
//!
//! A transaction is repeated only after an error that says it is certainly aborted (R22: [`Error::Serialization`],
//! [`Error::Deadlock`]). After [`Error::Unknown`] a second attempt could do the work twice, so there is none.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use isochrone_env::{Random, Timer};

use crate::kv::{Error, KvStore, KvTxn, TxnOptions};

/// Pauses that double up to a bound, with jitter: between half of the pause and all of it.
#[derive(Clone)]
pub struct Backoff {
    timer: Arc<dyn Timer>,
    random: Arc<dyn Random>,
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// From the first pause and the longest.
    pub fn new(timer: Arc<dyn Timer>, random: Arc<dyn Random>, min: Duration, max: Duration) -> Backoff {
        Backoff { timer, random, min, max }
    }

    /// The pause after attempt `attempt`, counted from 0.
    pub fn pause(&self, attempt: u32) -> Duration {
        let full = self.min.saturating_mul(1 << attempt.min(20)).min(self.max).max(Duration::from_micros(2));
        let half = full / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let jitter = ((u128::from(self.random.next_u64()) * u128::from(span)) >> 64) as u64;
        half + Duration::from_nanos(jitter)
    }

    /// Waits for that pause.
    pub async fn wait(&self, attempt: u32) {
        self.timer.sleep(self.pause(attempt)).await;
    }
}

/// Errors that can say whether the transaction may be repeated.
pub trait Retriable {
    /// Certainly aborted, and a new attempt may succeed.
    fn retriable(&self) -> bool;
}

impl Retriable for Error {
    fn retriable(&self) -> bool {
        matches!(self, Error::Serialization(_) | Error::Deadlock)
    }
}

/// Runs `body` in transactions until it returns something else than a retriable error, at most `attempts_max` times
/// (then the last error is returned). `body` owns the transaction and commits it; an attempt it drops is rolled back.
pub async fn retry<T, E, F, Fut>(
    store: &dyn KvStore,
    backoff: &Backoff,
    options: &TxnOptions,
    attempts_max: u32,
    mut body: F,
) -> Result<T, E>
where
    E: Retriable,
    F: FnMut(Box<dyn KvTxn>) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut attempt = 0;
    loop {
        match body(store.begin(options.clone())).await {
            Err(e) if e.retriable() && attempt + 1 < attempts_max => backoff.wait(attempt).await,
            other => return other,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use isochrone_env::SplitMix64;
    use isochrone_env::fake::NoWait;

    use super::*;
    use crate::fake::FakeStore;

    fn backoff() -> Backoff {
        let (min, max) = (Duration::from_millis(1), Duration::from_millis(100));
        Backoff::new(Arc::new(NoWait), Arc::new(SplitMix64::new(1)), min, max)
    }

    #[test]
    fn pauses_double_and_end() {
        let b = backoff();
        for attempt in 0..100 {
            let full = Duration::from_millis(1 << attempt.min(20)).min(Duration::from_millis(100));
            let pause = b.pause(attempt);
            assert!(pause >= full / 2 && pause <= full, "{attempt}: {pause:?}");
        }
    }

    #[tokio::test]
    async fn repeats_only_what_is_certainly_aborted() {
        let store = FakeStore::new();
        for (error, times) in [
            (Error::Serialization(String::new()), 5),
            (Error::Deadlock, 5),
            (Error::Unknown(String::new()), 1),
            (Error::Unavailable(String::new()), 1),
        ] {
            let mut runs = 0;
            let got: Result<(), Error> = retry(&store, &backoff(), &TxnOptions::default(), 5, |_txn| {
                runs += 1;
                let error = error.clone();
                async move { Err(error) }
            })
            .await;
            assert_eq!((got, runs), (Err(error), times));
        }
    }
}
