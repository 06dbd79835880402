//! Looks at shards and replicas again and again, at one gateway after the other, so that drawing never waits for a node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isochrone_env::Clock;
use isochrone_env::os::OsClock;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::inspect::{self, Replica, Shard};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// A gateway that has not answered after this long is left for the next one.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The shards of the accounts.
    pub shards: Vec<Shard>,
    /// All replicas.
    pub replicas: Vec<Replica>,
    /// When, by the clock of the observer.
    pub at_ns: u64,
}

/// Stops when dropped.
pub(super) struct Observer {
    view: watch::Receiver<View>,
    clock: Arc<OsClock>,
    task: JoinHandle<()>,
}

impl Observer {
    pub(super) fn start(gateways: &[SocketAddr], clock: Arc<OsClock>) -> Observer {
        let (tell, view) = watch::channel(View::default());
        let (gateways, ticks) = (gateways.to_vec(), clock.clone());
        let task = tokio::spawn(async move {
            for gateway in gateways.iter().cycle() {
                // Whatever goes wrong here shows as an old view.
                let _ = look(*gateway, &tell, &ticks).await;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Observer { view, clock, task }
    }

    /// What was seen last, and how long ago.
    pub(super) fn view(&self) -> (View, Duration) {
        let view = self.view.borrow().clone();
        let age = Duration::from_nanos(self.clock.monotonic_ns().saturating_sub(view.at_ns));
        (view, age)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Looks at one gateway for as long as it answers.
async fn look(gateway: SocketAddr, tell: &watch::Sender<View>, clock: &OsClock) -> Result<(), String> {
    let client = inspect::connect(gateway).await.map_err(|e| inspect::describe(&e))?;
    loop {
        let view = async {
            let shards = inspect::shards(&client, "accounts").await?;
            let replicas = inspect::replicas(&client).await?;
            Ok::<_, String>(View { shards, replicas, at_ns: clock.monotonic_ns() })
        };
        let view = tokio::time::timeout(ANSWER_MAX, view).await.map_err(|_| "no answer")??;
        tell.send_replace(view);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
