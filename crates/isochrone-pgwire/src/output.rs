//! The sending side: one buffer, written when the client may be waiting, or when it is large.
//!
//! ```text
//! [ due: up to the last Sync or Flush ][ statement: from its mark ][ ... ]
//! ```
//!
//! Answers that are due are not written at once when more messages have already arrived: their answers go in the
//! same write. If a statement among those makes the client wait, [`Output::drive`] writes what is due beside it (P3).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::limits::{IDLE_BYTES, OUT_BYTES_HIGH};

/// The socket's writing half and its buffer.
pub(crate) struct Output<W> {
    /// Answers not yet written.
    pub buf: Vec<u8>,
    /// Is there something that the client may be waiting for?
    pub due: bool,
    /// Where in `buf` the running statement begins.
    mark: usize,
    /// Have bytes of the running statement been written?
    sent: bool,
    /// Locked for single polls only, never across a wait; there are two users only while [`Output::drive`] runs.
    writer: Arc<Mutex<W>>,
    /// Closed while `drive` writes older answers beside a statement: the statement's own must not overtake them.
    open: Arc<AtomicBool>,
    /// Is the start of `buf` the rest of a message whose start has been written?
    torn: bool,
    /// Bytes written so far, for metrics.
    pub written: u64,
}

fn lock<W>(writer: &Mutex<W>) -> MutexGuard<'_, W> {
    // A panic inside a poll of the socket leaves no state of ours half-changed.
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes from `at` on until all is written; `at` counts along.
fn poll_write_all<W: AsyncWrite + Unpin>(
    writer: &Mutex<W>,
    bytes: &[u8],
    at: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut writer = lock(writer);
    while *at < bytes.len() {
        match Pin::new(&mut *writer).poll_write(cx, &bytes[*at..]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => *at += n,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Pin::new(&mut *writer).poll_flush(cx)
}

impl<W: AsyncWrite + Unpin + Send> Output<W> {
    pub(crate) fn new(writer: W) -> Output<W> {
        Output {
            buf: Vec::new(),
            due: false,
            mark: 0,
            sent: false,
            writer: Arc::new(Mutex::new(writer)),
            open: Arc::new(AtomicBool::new(true)),
            torn: false,
            written: 0,
        }
    }

    /// Writes everything.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.due = false;
        if self.buf.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        poll_fn(|cx| {
            if !self.open.load(Ordering::Relaxed) {
                // `drive` polls us again when it has opened the gate.
                return Poll::Pending;
            }
            poll_write_all(&self.writer, &self.buf, &mut at, cx)
        })
        .await?;
        self.written += self.buf.len() as u64;
        self.sent |= self.buf.len() > self.mark;
        self.mark = 0;
        self.torn = false;
        if self.buf.capacity() > OUT_BYTES_HIGH + IDLE_BYTES {
            self.buf = Vec::new();
        } else {
            self.buf.clear();
        }
        Ok(())
    }

    /// Writes everything if it is too much to keep.
    #[inline]
    pub(crate) async fn relieve(&mut self) -> io::Result<()> {
        if self.buf.len() >= OUT_BYTES_HIGH { self.flush().await } else { Ok(()) }
    }

    /// The connection has nothing to do: gives memory back.
    pub(crate) fn idle(&mut self) {
        if self.buf.is_empty() && self.buf.capacity() > IDLE_BYTES {
            self.buf = Vec::new();
        }
    }

    /// A statement begins: what follows can be taken back until it is written.
    pub(crate) fn begin_statement(&mut self) {
        self.mark = self.buf.len();
        self.sent = false;
    }

    /// Has anything of the running statement been written?
    pub(crate) fn statement_sent(&self) -> bool {
        self.sent
    }

    /// Takes back what the running statement has not written.
    pub(crate) fn rewind_statement(&mut self) {
        self.buf.truncate(self.mark);
    }

    /// Throws away what has not been written: after a panic its end may be half a message. False when what has been
    /// written ends inside a message, so that nothing more can be said.
    pub(crate) fn discard(&mut self) -> bool {
        self.buf.clear();
        self.mark = 0;
        self.due = false;
        self.open.load(Ordering::Relaxed) && !self.torn
    }

    /// Runs `work`, which appends to this output. If it does not complete at once and older answers are due, they are
    /// written beside it.
    pub(crate) async fn drive<T>(&mut self, work: impl AsyncFnOnce(&mut Output<W>) -> T) -> io::Result<T> {
        if !self.due || self.torn {
            return Ok(work(self).await);
        }
        let mut older = std::mem::take(&mut self.buf);
        self.mark = 0;
        self.due = false;
        let open = Arc::clone(&self.open);
        let writer = Arc::clone(&self.writer);
        open.store(false, Ordering::Relaxed);
        let mut at = 0;
        let result = {
            let mut work = pin!(work(self));
            poll_fn(|cx| {
                loop {
                    if let Poll::Ready(result) = work.as_mut().poll(cx) {
                        return Poll::Ready(Ok(result));
                    }
                    if open.load(Ordering::Relaxed) {
                        return Poll::Pending;
                    }
                    match poll_write_all(&writer, &older, &mut at, cx) {
                        Poll::Ready(Ok(())) => open.store(true, Ordering::Relaxed),
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
            .await
        };
        self.open.store(true, Ordering::Relaxed);
        self.written += at as u64;
        if at < older.len() {
            // The usual case: the work did not wait, or not long. The older answers come first in the buffer.
            older.drain(..at);
            self.torn = at > 0;
            self.mark += older.len();
            older.extend_from_slice(&self.buf);
            self.buf = older;
            self.due = true;
        }
        result
    }

    /// Ends the sending direction.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut *lock(&self.writer)).poll_shutdown(cx)).await
    }
}
