//! A stream after its handshake: one task reads and watches, one writes.
//!
//! The watch counts ticks, half a keepalive long, in which nothing was heard or nothing of what waits could be written. As
//! ticks that were missed are not made up for, a pause of our own process is not held against the peer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isochrone_base::NodeId;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::api::{CallError, Hello, Service};
use crate::frame::{self, Fault, Frame, Input, Kind};
use crate::limits::Config;
use crate::link::{Counts, Link};
use crate::metrics::Metrics;

/// Which side of the stream we are.
pub(crate) enum Role {
    /// We sent the Hello; what comes are answers.
    Dialler,
    /// We serve.
    Acceptor(Serving),
}

/// Where what arrives goes.
pub(crate) struct Serving {
    pub peer: Hello,
    pub service: Arc<dyn Service>,
    /// Calls of this stream, and of all.
    pub calls_of_stream: Arc<Semaphore>,
    pub calls_of_all: Arc<Semaphore>,
}

/// How a stream ended.
pub(crate) struct Ended {
    pub fault: Fault,
    /// How long it was open, about.
    pub lived: Duration,
    /// Calls that still run.
    pub calls: JoinSet<()>,
}

/// Runs a stream until something ends it: `until`, the other side, the watch. Then no frame is written any more, and
/// every call on it has its error.
pub(crate) async fn run(
    socket: TcpStream,
    link: Arc<Link>,
    role: Role,
    config: &Config,
    metrics: &Metrics,
    counts: Arc<Counts>,
    until: impl Future<Output = Fault>,
) -> Ended {
    let (reader, writer) = socket.into_split();
    let mut writer = Aborted(tokio::spawn({
        let (link, metrics) = (link.clone(), metrics.clone());
        async move { link.write(writer, metrics, counts).await }
    }));
    let mut stream = Stream { link, role, metrics, calls: JoinSet::new(), ticks: 0 };
    let fault = stream.read(reader, &mut writer, config, until).await;
    // Joined before the calls are told: what was written is final then.
    writer.0.abort();
    if !writer.0.is_finished() {
        let _aborted = (&mut writer.0).await;
    }
    stream.link.end(&fault.to_string(), metrics);
    Ended { fault, lived: config.keepalive / 2 * stream.ticks, calls: stream.calls }
}

struct Stream<'a> {
    link: Arc<Link>,
    role: Role,
    metrics: &'a Metrics,
    calls: JoinSet<()>,
    ticks: u32,
}

impl Stream<'_> {
    async fn read(
        &mut self,
        mut reader: impl tokio::io::AsyncRead + Unpin,
        writer: &mut Aborted<std::io::Error>,
        config: &Config,
        until: impl Future<Output = Fault>,
    ) -> Fault {
        let mut until = pin!(until);
        let mut input = Input::new();
        let mut tick = tokio::time::interval(config.keepalive / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch::new(config);
        loop {
            input.reserve();
            let read = tokio::select! {
                biased;
                fault = &mut until => return fault,
                ended = &mut writer.0 => return match ended {
                    Ok(e) => e.into(),
                    Err(e) => std::io::Error::other(e).into(),
                },
                Some(joined) = self.calls.join_next(), if !self.calls.is_empty() => {
                    report(joined);
                    while let Some(joined) = self.calls.try_join_next() {
                        report(joined);
                    }
                    continue;
                }
                _ = tick.tick() => {
                    self.ticks = self.ticks.saturating_add(1);
                    if self.ticks.is_multiple_of(2) {
                        // A full outbox says as well that we are there.
                        let _full = self.link.push(Kind::Alive, 0, Bytes::new());
                    }
                    match watch.tick(self.link.backlog(), self.link.written()) {
                        Some(fault) => return fault,
                        None => continue,
                    }
                }
                read = reader.read_buf(&mut input.buf) => read,
            };
            match read {
                Ok(0) => return Fault::Closed,
                Ok(n) => {
                    watch.heard = true;
                    self.metrics.bytes_in.increment(n as u64);
                }
                Err(e) => return e.into(),
            }
            let mut frames = 0;
            let fault = loop {
                match input.next() {
                    Ok(Some(frame)) => {
                        frames += 1;
                        if let Err(fault) = self.frame(frame) {
                            break Some(fault);
                        }
                    }
                    Ok(None) => break None,
                    Err(fault) => break Some(fault),
                }
            };
            self.metrics.frames_in.increment(frames);
            if let Some(fault) = fault {
                return fault;
            }
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Fault> {
        let Frame { kind, call, payload } = frame;
        match (kind, &self.role) {
            (Kind::Alive, _) => {}
            (Kind::Refused, _) => return Err(Fault::Refused(frame::text(&payload))),
            (Kind::Answer, Role::Dialler) => self.link.answered(call, Ok(payload)),
            (Kind::Error, Role::Dialler) => {
                self.link.answered(call, Err(CallError::Refused(frame::text(&payload))));
            }
            (Kind::Message, Role::Acceptor(serving)) => {
                if serving.peer.node == NodeId(0) {
                    return Err(Fault::Nameless);
                }
                serving.service.message(serving.peer.node, payload);
            }
            (Kind::Call, Role::Acceptor(serving)) => {
                let permits = (
                    serving.calls_of_stream.clone().try_acquire_owned(),
                    serving.calls_of_all.clone().try_acquire_owned(),
                );
                let (Ok(of_stream), Ok(of_all)) = permits else {
                    self.metrics.busy.increment(1);
                    // Without room even for this the caller's patience decides.
                    let _full = self.link.push(Kind::Error, call, Bytes::from_static(b"busy"));
                    return Ok(());
                };
                let (service, from, link) =
                    (serving.service.clone(), serving.peer.clone(), self.link.clone());
                self.calls.spawn(async move {
                    let result = service.call(from, payload).await;
                    link.answer(call, result).await;
                    drop((of_stream, of_all));
                });
            }
            (kind, _) => return Err(Fault::Misplaced(kind as u8)),
        }
        Ok(())
    }
}

/// A call that panics has no answer: the caller's patience decides.
pub(crate) fn report(joined: Result<(), JoinError>) {
    if let Err(e) = joined
        && e.is_panic()
    {
        tracing::error!(error = %e, "a task of the network panicked");
    }
}

/// Counts the ticks without a sign of life.
struct Watch {
    ticks_max: u32,
    silence_max: Duration,
    /// Has anything been read since the last tick?
    heard: bool,
    silent: u32,
    stuck: u32,
    written: u64,
}

impl Watch {
    fn new(config: &Config) -> Watch {
        let tick = config.keepalive / 2;
        let ticks_max = config.silence_max.as_nanos().div_ceil(tick.as_nanos());
        Watch {
            ticks_max: u32::try_from(ticks_max).unwrap_or(u32::MAX),
            silence_max: config.silence_max,
            heard: true,
            silent: 0,
            stuck: 0,
            written: 0,
        }
    }

    fn tick(&mut self, backlog: u64, written: u64) -> Option<Fault> {
        self.silent = if std::mem::take(&mut self.heard) { 0 } else { self.silent + 1 };
        self.stuck = if backlog == 0 || written != self.written { 0 } else { self.stuck + 1 };
        self.written = written;
        if self.silent >= self.ticks_max {
            return Some(Fault::Silent(self.silence_max.as_millis()));
        }
        (self.stuck >= self.ticks_max).then_some(Fault::Stuck(self.silence_max.as_millis()))
    }
}

/// A task that ends with its owner.
pub(crate) struct Aborted<T>(pub JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
