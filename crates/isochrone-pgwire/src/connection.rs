//! One connection, from its first byte to its last: login, then message by message.
//!
//! ```text
//! login ─► wait for a frame ─► handle it ─► (more frames?) ─► handle ... ─► write what is due ─► wait
//!                ▲                                                                  │
//!                └──────────────────────────────────────────────────────────────────┘
//! ```
//! Everything that has arrived is handled before anything is written, so that a pipeline costs one read and one write
//! (P3 says when it is written earlier).

use std::io;
use std::sync::Arc;

use isochrone_sql::face::TxnStatus;
use isochrone_types::{Error, SqlState};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::backend::{Backend, Canceller, IdleEnd, Session};
use crate::cancel::{CancelKeys, Registration};
use crate::encode::{self, Severity};
use crate::error::{Failure, protocol};
use crate::extended::Names;
use crate::input::{Frame, Input};
use crate::metrics::{self, Metrics};
use crate::output::Output;
use crate::startup::{self, Packet, Startup};

/// What the server is doing, as its connections need to know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Serving.
    Running,
    /// Connections end when their transaction has ended.
    Draining,
    /// Connections end with their statement.
    Stopping,
}

/// What keeps a message from being answered as wished.
pub(crate) enum Trouble {
    /// The statement fails; the connection goes on.
    Sql(Error),
    /// The connection ends.
    Failure(Failure),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble::Sql(e)
    }
}

impl From<Failure> for Trouble {
    fn from(f: Failure) -> Trouble {
        Trouble::Failure(f)
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Trouble {
        Trouble::Failure(Failure::Io(e))
    }
}

/// 57P01.
fn shutdown() -> Failure {
    Failure::Fatal(Error::new(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    ))
}

/// The receiving side, with what else can end a wait.
pub(crate) struct Link<R> {
    pub input: Input<R>,
    phase: watch::Receiver<Phase>,
    metrics: Metrics,
    /// Messages and written bytes not yet added to the metrics: it is done once per read.
    messages: u64,
    written: u64,
}

impl<R: AsyncRead + Unpin + Send> Link<R> {
    pub(crate) fn new(reader: R, phase: watch::Receiver<Phase>, metrics: Metrics) -> Link<R> {
        Link { input: Input::new(reader), phase, metrics, messages: 0, written: 0 }
    }

    /// The next frame; writes what is due before it waits. `idle`: between transactions, where a server that drains
    /// ends the connection. `ends`: the wait, if it may not last for ever.
    pub(crate) async fn next<W: AsyncWrite + Unpin + Send>(
        &mut self,
        out: &mut Output<W>,
        idle: bool,
        mut ends: Option<IdleEnd>,
    ) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.input.frame()? {
                self.messages += 1;
                return Ok(frame);
            }
            match &mut ends {
                None => self.fill(out, idle).await?,
                Some(ends) => {
                    // A write is not broken off half-way.
                    if out.due {
                        out.flush().await?;
                    }
                    tokio::select! {
                        biased;
                        filled = self.fill(out, idle) => filled?,
                        why = ends => return Err(Failure::Fatal(why)),
                    }
                }
            }
        }
    }

    /// Reads once, after writing what is due.
    async fn fill<W: AsyncWrite + Unpin + Send>(
        &mut self,
        out: &mut Output<W>,
        idle: bool,
    ) -> Result<(), Failure> {
        if out.due {
            out.flush().await?;
        }
        out.idle();
        self.metrics.messages.increment(std::mem::take(&mut self.messages));
        self.metrics.bytes_out.increment(out.written - self.written);
        self.written = out.written;
        let idle = idle && self.input.rest().is_empty();
        let end = if idle { Phase::Draining } else { Phase::Stopping };
        let n = tokio::select! {
            biased;
            n = self.input.fill() => n?,
            // An error means that the server is gone, which is the end as well.
            _ = self.phase.wait_for(|p| *p >= end) => return Err(shutdown()),
        };
        if n == 0 {
            return Err(Failure::Closed);
        }
        self.metrics.bytes_in.increment(n as u64);
        Ok(())
    }

    /// Has the server begun to end connections?
    fn draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
}

/// What the connections of a server share.
pub(crate) struct Shared<B> {
    pub backend: B,
    pub keys: Arc<CancelKeys>,
    pub metrics: Metrics,
    /// Permits for connections that are logged in.
    pub connections: Arc<tokio::sync::Semaphore>,
    pub secrets: crate::server::SecretSource,
}

/// A connection that is logged in, without its receiving side.
pub(crate) struct Connection<W, S: Session> {
    pub out: Output<W>,
    pub session: S,
    pub names: Names<S>,
    /// After an error in the extended protocol, until Sync.
    skipping: bool,
}

/// What a login gives.
pub(crate) struct Login<S> {
    pub session: S,
    pub key: Registration,
    pub permit: OwnedSemaphorePermit,
}

/// The login: answers negotiation, serves a cancel request (then the connection is over), opens the session.
pub(crate) async fn login<R, W, B>(
    link: &mut Link<R>,
    out: &mut Output<W>,
    shared: &Shared<B>,
    trusted: bool,
) -> Result<Login<B::Session>, Failure>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    B: Backend,
{
    let (mut ssl, mut gss) = (false, false);
    let startup = loop {
        let Some((packet, n)) = startup::packet(link.input.rest()).map_err(Failure::Fatal)? else {
            link.fill(out, true).await?;
            continue;
        };
        link.input.consume(n);
        // Each may be asked once.
        match packet {
            Packet::Ssl if !ssl => ssl = true,
            Packet::Gss if !gss => gss = true,
            Packet::Ssl | Packet::Gss => {
                return Err(Failure::Fatal(protocol("encryption was asked for twice")));
            }
            Packet::Cancel { process_id, secret } => {
                metrics::cancel(shared.keys.cancel(process_id, secret));
                return Err(Failure::Closed);
            }
            Packet::Startup(startup) => break startup,
        }
        out.buf.push(b'N');
        out.due = true;
    };
    let Startup { minor, unknown_options, client } = startup;
    if !trusted {
        return Err(Failure::Fatal(
            Error::new(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "connections from other machines are not accepted without encryption",
            )
            .with_hint("Connect from the same machine, or start the server with --insecure."),
        ));
    }
    startup::check_database(&client.database).map_err(Failure::Fatal)?;
    let permit = Arc::clone(&shared.connections).try_acquire_owned().map_err(|_| {
        Failure::Fatal(Error::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already"))
    })?;
    if link.draining() {
        let text = "the database system is shutting down";
        return Err(Failure::Fatal(Error::new(SqlState::CANNOT_CONNECT_NOW, text)));
    }
    let secret = (shared.secrets)()?;
    let mut session = shared.backend.connect(&client).await.map_err(Failure::Fatal)?;
    let cancel: Canceller = session.canceller();
    let process_id = session.process_id();
    let key = shared.keys.register(process_id, secret, cancel);
    if minor > 0 || !unknown_options.is_empty() {
        encode::negotiate_protocol_version(&mut out.buf, &unknown_options);
    }
    encode::authentication_ok(&mut out.buf);
    for (name, value) in session.parameters() {
        encode::parameter_status(&mut out.buf, &name, &value);
    }
    encode::backend_key_data(&mut out.buf, process_id, secret);
    encode::ready_for_query(&mut out.buf, TxnStatus::Idle);
    out.due = true;
    Ok(Login { session, key, permit })
}

/// Serves a connection that is logged in until it ends. `out` is handed back by the caller's panic handling.
pub(crate) async fn serve<R, W, S>(
    link: &mut Link<R>,
    connection: &mut Connection<W, S>,
) -> Result<std::convert::Infallible, Failure>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    S: Session,
{
    loop {
        let idle = !connection.skipping && connection.session.status() == TxnStatus::Idle;
        // Until Sync, or with half a message sent, the client is in the middle of something.
        let waits = !connection.skipping && link.input.rest().is_empty();
        let ends = if waits { connection.session.idle_end() } else { None };
        let frame = link.next(&mut connection.out, idle, ends).await?;
        connection.message(link, frame).await?;
        connection.out.relieve().await?;
    }
}

/// Did the session say that it is over? 57P01 is never an error of a statement alone.
pub(crate) fn is_over(e: &Error) -> bool {
    e.sqlstate == SqlState::ADMIN_SHUTDOWN
}

impl<W: AsyncWrite + Unpin + Send, S: Session> Connection<W, S> {
    pub(crate) fn new(out: Output<W>, session: S) -> Connection<W, S> {
        Connection { out, session, names: Names::default(), skipping: false }
    }

    /// Handles one message.
    async fn message<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
        frame: Frame,
    ) -> Result<(), Failure> {
        let body = link.input.body(frame);
        let result = match frame.tag {
            b'X' => return Err(Failure::Closed),
            b'S' => return self.sync(link).await,
            _ if self.skipping => return Ok(()),
            b'B' => self.bind(body).await,
            b'D' => self.describe(body),
            b'P' => self.parse(body).await,
            b'C' => self.close(body),
            b'H' => {
                self.out.due = true;
                Ok(())
            }
            // What a client still sends after a COPY has failed.
            b'd' | b'c' | b'f' => Ok(()),
            b'Q' => {
                let steps = self.steps(body);
                return self.query(link, steps).await;
            }
            b'F' => {
                self.error(&Error::unsupported("the function call message"));
                return self.end_cycle().await;
            }
            b'E' => {
                // The body is copied because a COPY would read on into the buffer it lies in; it is a few bytes.
                let mut copy = [0; 64];
                match copy.get_mut(..body.len()) {
                    Some(short) => {
                        short.copy_from_slice(body);
                        let n = short.len();
                        self.execute(link, &copy[..n]).await
                    }
                    None => {
                        let long = body.to_vec();
                        self.execute(link, &long).await
                    }
                }
            }
            other => {
                let text = format!("unexpected message type 0x{other:02X}");
                return Err(Failure::Fatal(protocol(text)));
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(Trouble::Sql(e)) if is_over(&e) => Err(Failure::Fatal(e)),
            Err(Trouble::Sql(e)) => {
                self.error(&e);
                self.skipping = true;
                Ok(())
            }
            Err(Trouble::Failure(f)) => Err(f),
        }
    }

    async fn sync<R: AsyncRead + Unpin + Send>(&mut self, link: &mut Link<R>) -> Result<(), Failure> {
        self.skipping = false;
        self.end_cycle().await?;
        if self.session.status() == TxnStatus::Idle && link.draining() {
            return Err(shutdown());
        }
        Ok(())
    }

    /// Sync, and the end of a Query: the implicit transaction ends, the client may go on.
    pub(crate) async fn end_cycle(&mut self) -> Result<(), Failure> {
        if self.session.status() == TxnStatus::Idle {
            // Before the session ends the implicit transaction that they read in.
            self.names.drop_portals();
        }
        let session = &mut self.session;
        if let Err(e) = self.out.drive(async |_| session.sync().await).await? {
            if is_over(&e) {
                return Err(Failure::Fatal(e));
            }
            self.error(&e);
        }
        self.notices();
        for (name, value) in self.session.take_parameter_changes() {
            encode::parameter_status(&mut self.out.buf, &name, &value);
        }
        let status = self.session.status();
        if status == TxnStatus::Idle {
            self.names.drop_portals();
        }
        encode::ready_for_query(&mut self.out.buf, status);
        self.out.due = true;
        Ok(())
    }

    /// Notices of the session, in front of what comes next.
    pub(crate) fn notices(&mut self) {
        for n in self.session.take_notices() {
            encode::notice(&mut self.out.buf, &n);
        }
    }

    /// A statement failed.
    #[cold]
    pub(crate) fn error(&mut self, e: &Error) {
        self.session.fail();
        self.notices();
        metrics::error(e.sqlstate.code());
        encode::error(&mut self.out.buf, Severity::Error, e);
        self.out.due = true;
    }
}
