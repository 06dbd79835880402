//! Accepting connections, bounding their number, ending them.
//!
//! A drain: no new connections; idle ones end with 57P01 at once, busy ones when their transaction ends. After
//! [`Config::drain`] statements are cancelled and connections end with their statement; what is left after
//! [`STOP_GRACE`] is aborted.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use isochrone_env::Timer;
use isochrone_types::{Error as SqlError, SqlState};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::cancel::CancelKeys;
use crate::connection::{Connection, Link, Login, Phase, Shared, login, serve};
use crate::encode::{self, Severity};
use crate::error::{Error, Failure};
use crate::metrics::{self, Metrics};
use crate::output::Output;

/// How long connections have after their statements were cancelled.
pub const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long a connection that ends with an error waits for the client to read it.
const LINGER: Duration = Duration::from_secs(1);
/// How long accepting pauses after a failure that is not the connection's (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of failures to accept in a row, one in so many is logged.
const SAY_EVERY: u32 = 100;

/// Where the secrets for cancelling come from: unpredictable bits.
pub type SecretSource = Arc<dyn Fn() -> io::Result<u32> + Send + Sync>;

/// Secrets from the operating system.
pub fn os_secrets() -> SecretSource {
    Arc::new(|| isochrone_env::os::entropy().map(|bits| (bits >> 32) as u32))
}

/// The limits of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Connections that are logged in; further logins get 53300. Default 1,000.
    pub connections_max: usize,
    /// Connections before or in their login; further ones wait in the kernel's queue. Default 64.
    pub logins_max: usize,
    /// How long a login may take, negotiation included. Default 10 s.
    pub login_timeout: Duration,
    /// How long a drain waits for transactions to end. Default 10 s.
    pub drain: Duration,
    /// Accept clients from other machines, although nothing is encrypted and nobody asked for a password. Default no.
    pub insecure: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            connections_max: 1_000,
            logins_max: 64,
            login_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            insecure: false,
        }
    }
}

impl Config {
    /// Refuses limits that make no sense.
    pub fn validate(&self) -> Result<(), Error> {
        let max = Semaphore::MAX_PERMITS.min(1 << 24);
        for (name, n) in [("connections_max", self.connections_max), ("logins_max", self.logins_max)] {
            if n == 0 || n > max {
                return Err(Error::Config(format!("{name} is {n}: must be from 1 to {max}")));
            }
        }
        Ok(())
    }
}

/// A server for the PostgreSQL protocol.
pub struct Server<B> {
    config: Config,
    shared: Arc<Shared<B>>,
    timer: Arc<dyn Timer>,
}

impl<B: Backend> Server<B> {
    /// A server for this database.
    pub fn new(
        config: Config,
        backend: B,
        timer: Arc<dyn Timer>,
        secrets: SecretSource,
    ) -> Result<Server<B>, Error> {
        config.validate()?;
        let shared = Shared {
            backend,
            keys: Arc::new(CancelKeys::default()),
            metrics: Metrics::new(),
            connections: Arc::new(Semaphore::new(config.connections_max)),
            secrets,
        };
        Ok(Server { config, shared: Arc::new(shared), timer })
    }

    /// Serves until `shutdown` resolves, then drains; returns when every connection has ended. An error means that
    /// the listening socket is broken; connections are then drained as well.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), Error> {
        let (phase, watch) = watch::channel(Phase::Running);
        let mut tasks = JoinSet::new();
        let result = {
            let mut shutdown = pin!(shutdown);
            let mut accept = pin!(self.accept_loop(&listener, &watch, &mut tasks));
            tokio::select! {
                biased;
                _ = &mut shutdown => Ok(()),
                r = &mut accept => r,
            }
        };
        // New clients are refused by the kernel from here on.
        drop(listener);
        phase.send_replace(Phase::Draining);
        if !self.join_within(&mut tasks, self.config.drain).await {
            tracing::info!(connections = tasks.len(), "draining takes too long, cancelling statements");
            phase.send_replace(Phase::Stopping);
            self.shared.keys.cancel_all();
            if !self.join_within(&mut tasks, STOP_GRACE).await {
                tracing::warn!(connections = tasks.len(), "aborting connections");
                tasks.shutdown().await;
            }
        }
        result
    }

    async fn join_within(&self, tasks: &mut JoinSet<()>, limit: Duration) -> bool {
        let mut sleep = self.timer.sleep(limit);
        loop {
            tokio::select! {
                biased;
                joined = tasks.join_next() => match joined {
                    Some(joined) => joined_task(joined),
                    None => return true,
                },
                _ = &mut sleep => return tasks.is_empty(),
            }
        }
    }

    async fn accept_loop(
        &self,
        listener: &TcpListener,
        phase: &watch::Receiver<Phase>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let logins = Arc::new(Semaphore::new(self.config.logins_max));
        let mut failures = 0;
        loop {
            let permit = Arc::clone(&logins).acquire_owned().await.expect("this semaphore is never closed");
            let (stream, peer) = tokio::select! {
                biased;
                Some(joined) = tasks.join_next() => {
                    joined_task(joined);
                    continue;
                }
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of file descriptors, mostly: sessions that end give them back.
                        if failures % SAY_EVERY == 0 {
                            tracing::warn!(error = %e, failures, "cannot accept a connection; tried again");
                        }
                        failures += 1;
                        self.timer.sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            failures = 0;
            self.shared.metrics.accepted.increment(1);
            if let Err(e) = stream.set_nodelay(true) {
                tracing::debug!(%peer, error = %e, "cannot set TCP_NODELAY");
            }
            let trusted = self.config.insecure || peer.ip().to_canonical().is_loopback();
            let (reader, writer) = stream.into_split();
            tasks.spawn(run(
                reader,
                writer,
                Arc::clone(&self.shared),
                phase.clone(),
                Arc::clone(&self.timer),
                self.config.login_timeout,
                trusted,
                permit,
            ));
        }
    }
}

/// Connections catch the panics of their sessions; one that arrives here is our own.
fn joined_task(joined: Result<(), tokio::task::JoinError>) {
    if let Err(e) = joined
        && e.is_panic()
    {
        tracing::error!(error = %e, "a connection ended in a panic");
    }
}

/// Polls a future that may panic.
async fn guarded<F: Future>(f: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut f = pin!(f);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| f.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// XX000 for the client; the text stays with us.
fn panicked(panic: &(dyn Any + Send), metrics: &Metrics) -> Failure {
    tracing::error!(panic = panic_text(panic), "a session panicked");
    metrics.panics.increment(1);
    Failure::Fatal(SqlError::internal("internal error: the session is closed"))
}

/// One connection as a task.
#[expect(clippy::too_many_arguments, reason = "one caller; a struct would only repeat the names")]
pub(crate) async fn run<R, W, B>(
    reader: R,
    writer: W,
    shared: Arc<Shared<B>>,
    phase: watch::Receiver<Phase>,
    timer: Arc<dyn Timer>,
    login_timeout: Duration,
    trusted: bool,
    login_permit: OwnedSemaphorePermit,
) where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    B: Backend,
{
    let mut link = Link::new(reader, phase, shared.metrics.clone());
    let mut out = Output::new(writer);
    // Boxed: the login's state is large and short-lived, the task's memory is for its whole life.
    let login =
        Box::pin(guarded(timed_login(&mut link, &mut out, &shared, &*timer, login_timeout, trusted))).await;
    let login = match login {
        Ok(Ok(login)) => login,
        Ok(Err(failure)) => {
            metrics::refused(reason(&failure));
            return finish(link, out, failure, &*timer).await;
        }
        Err(panic) => {
            metrics::refused("panic");
            let failure = panicked(&*panic, &shared.metrics);
            if out.discard() {
                finish(link, out, failure, &*timer).await;
            }
            return;
        }
    };
    drop(login_permit);
    shared.metrics.connections.increment(1.0);
    let Login { session, key, permit } = login;
    let mut connection = Connection::new(out, session);
    let failure = match guarded(serve(&mut link, &mut connection)).await {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => Some(failure),
        Err(panic) => {
            let failure = panicked(&*panic, &shared.metrics);
            connection.out.discard().then_some(failure)
        }
    };
    let Connection { out, session, names, .. } = connection;
    drop(key);
    // The session rolls back before the client hears the end. A drop that panics is caught as well.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop((names, session))));
    if let Err(panic) = dropped {
        panicked(&*panic, &shared.metrics);
    }
    drop(permit);
    shared.metrics.connections.decrement(1.0);
    if let Some(failure) = failure {
        finish(link, out, failure, &*timer).await;
    }
}

async fn timed_login<R, W, B>(
    link: &mut Link<R>,
    out: &mut Output<W>,
    shared: &Shared<B>,
    timer: &dyn Timer,
    limit: Duration,
    trusted: bool,
) -> Result<Login<B::Session>, Failure>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    B: Backend,
{
    tokio::select! {
        biased;
        login = login(link, out, shared, trusted) => login,
        _ = timer.sleep(limit) => Err(Failure::Fatal(SqlError::new(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "the login took too long",
        ))),
    }
}

fn reason(failure: &Failure) -> &'static str {
    match failure {
        Failure::Closed => "closed",
        Failure::Io(_) => "io",
        Failure::Fatal(e) => match e.sqlstate {
            SqlState::TOO_MANY_CONNECTIONS => "too_many",
            SqlState::PROTOCOL_VIOLATION => "protocol",
            _ => "refused",
        },
    }
}

/// Says why, if the client is to know, and closes. What the client is still sending is read for a moment: closing
/// over unread bytes would make the kernel drop the error on its way.
async fn finish<R, W>(mut link: Link<R>, mut out: Output<W>, failure: Failure, timer: &dyn Timer)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let fatal = match failure {
        Failure::Closed => None,
        Failure::Io(e) => {
            tracing::debug!(error = %e, "a connection failed");
            return;
        }
        Failure::Fatal(e) => Some(e),
    };
    if let Some(e) = &fatal {
        tracing::debug!(sqlstate = %e.sqlstate, message = %e.message, "closing a connection");
        metrics::error(e.sqlstate.code());
        encode::error(&mut out.buf, Severity::Fatal, e);
    }
    let goodbye = async {
        if out.flush().await.is_err() || out.shutdown().await.is_err() || fatal.is_none() {
            return;
        }
        loop {
            let n = link.input.rest().len();
            link.input.consume(n);
            if !matches!(link.input.fill().await, Ok(1..)) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        _ = goodbye => {}
        _ = timer.sleep(LINGER) => {}
    }
}
