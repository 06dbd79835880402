//! The threads around the core: one that steps the store, one (the log writer's own) that writes and syncs.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use isochrone_env::Clock;

use crate::log::LogBatch;
use isochrone_base::{NodeId, ShardId};

use crate::{Event, Handle, Inbox, OutgoingSnapshot, Output, RaftMessage, Store};

/// Takes log batches in order, makes them durable, and then calls back, in order, on whatever thread. After a failure
/// every further batch must fail too.
pub trait LogSink: Send {
    /// May block while too much is waiting.
    fn submit(&mut self, batch: LogBatch, done: Box<dyn FnOnce(Result<(), String>) + Send>);
}

/// Takes what is for peers; drops messages when a peer's outbox is full (Raft repeats itself).
pub trait Transport: Send {
    /// Everything that one step says to one peer. Never blocks.
    fn send(&mut self, to: NodeId, messages: Vec<(ShardId, RaftMessage)>);

    /// Begins to send a snapshot, in the background. Its end is reported by [`Handle::snapshot_sent`], whatever it is.
    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot);
}

/// For a node without peers.
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, to: NodeId, messages: Vec<(ShardId, RaftMessage)>) {
        let count = messages.len();
        tracing::warn!(%to, count, "messages for a peer on a node without peers were dropped");
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        tracing::warn!(to = %snapshot.to, shard = %snapshot.shard, "a node without peers sends no snapshots");
    }
}

/// A running store. Dropping it stops the loop and waits for it.
pub struct Running {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// What the layers above hold.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops the loop and waits for it; the log sink is dropped with it.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store loop panicked");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.join();
    }
}

/// An inbox, and the channel that wakes its loop.
pub struct Wiring {
    inbox: Arc<Inbox>,
    wake: std::sync::mpsc::Receiver<()>,
}

impl Wiring {
    /// Made before the store, so that the state machine can hold the handle.
    pub fn new() -> (Wiring, Handle) {
        let (sender, wake): (SyncSender<()>, _) = sync_channel(1);
        let sender = Mutex::new(sender);
        let inbox = Inbox::new(Box::new(move || {
            // A full channel means that the loop will look anyway.
            match sender.lock().expect("nothing panics while waking").try_send(()) {
                Ok(()) | Err(TrySendError::Full(())) | Err(TrySendError::Disconnected(())) => {}
            }
        }));
        let handle = Handle::new(inbox.clone());
        (Wiring { inbox, wake }, handle)
    }
}

/// What the thread does last, however it ends: nobody is left waiting, and a panic does not pass for health.
struct LastWords {
    inbox: Arc<Inbox>,
    fatal: Box<dyn Fn(String) + Send>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        self.inbox.end(if panicked { PANICKED } else { "the node is shutting down" });
        if panicked {
            (self.fatal)(PANICKED.to_string());
        }
    }
}

const PANICKED: &str = "the store loop panicked";

/// Starts the loop. `fatal` is called when the node cannot go on: a state machine refused an entry, or the loop
/// panicked. Whatever waits in the inbox when the loop ends hears that nobody will answer.
pub fn run(
    mut store: Store,
    wiring: Wiring,
    mut sink: Box<dyn LogSink>,
    mut transport: Box<dyn Transport>,
    clock: Arc<dyn Clock>,
    fatal: Box<dyn Fn(String) + Send>,
) -> std::io::Result<Running> {
    let Wiring { inbox, wake } = wiring;
    let handle = Handle::new(inbox.clone());
    let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
        let last_words = LastWords { inbox: inbox.clone(), fatal };
        let mut events = Vec::new();
        let tick = store.tick();
        let mut next_tick = Duration::from_nanos(clock.monotonic_ns()) + tick;
        loop {
            let ticking = store.needs_ticks();
            let until_tick = next_tick.saturating_sub(Duration::from_nanos(clock.monotonic_ns()));
            if ticking && until_tick.is_zero() {
                events.push(Event::Tick);
                next_tick = Duration::from_nanos(clock.monotonic_ns()) + tick;
            } else if !store.has_work() {
                let woken = if ticking {
                    wake.recv_timeout(until_tick)
                } else {
                    wake.recv().map_err(|_| RecvTimeoutError::Disconnected)
                };
                if woken == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            inbox.drain(&mut events);
            let mut out = Output::default();
            // The clock is read behind the inbox: what was taken from it happened before.
            if let Err(error) = store.step(clock.monotonic_ns(), &mut events, &mut out) {
                inbox.close(&error.to_string());
                (last_words.fatal)(error.to_string());
                break;
            }
            // Messages first: followers write while this node does (what waits for its disk is not among them).
            for (to, messages) in out.messages {
                transport.send(to, messages);
            }
            if let Some((number, batch)) = out.log {
                let inbox = inbox.clone();
                sink.submit(
                    batch,
                    Box::new(move |result| {
                        if let Err(reason) = &result {
                            inbox.close(reason);
                        }
                        inbox.push(Event::Durable(result.map(|()| number)));
                    }),
                );
            }
            for snapshot in out.snapshots {
                transport.send_snapshot(snapshot);
            }
            for install in out.installs {
                install.start(&inbox);
            }
            for removal in out.removals {
                removal.start(&inbox);
            }
            if out.stop {
                break;
            }
        }
    })?;
    Ok(Running { handle, thread: Some(thread) })
}
