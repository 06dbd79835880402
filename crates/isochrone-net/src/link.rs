//! What waits on one stream: frames to be written, calls to be answered. Lives as long as the stream; a new stream to the
//! same peer begins with nothing.
//!
//! Whoever sends appends whole frames under a short lock; the stream's writer takes everything that waits and hands it to
//! the kernel in one write. Positions in the stream tell which calls left: a call whose frame ends behind what was
//! written when the stream ended was never sent (N3).

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use isochrone_base::NodeId;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use crate::api::CallError;
use crate::frame::{Head, Kind, PAYLOAD_BYTES_MAX, cut};
use crate::limits::{CALLS_OUT_MAX, COPY_BYTES_MAX, Config, READ_BYTES};
use crate::metrics::Metrics;

/// Slices handed to one vectored write.
const SLICES_MAX: usize = 64;
/// Capacity of the outbox's buffer that is kept when it is empty, in bytes.
const KEEP_BYTES: usize = 4 * READ_BYTES;

/// Counts over all streams to one peer.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub frames_out: AtomicU64,
    pub bytes_out: AtomicU64,
    pub dropped: AtomicU64,
}

/// Why a frame was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NotTaken {
    /// The outbox is full for now.
    Full,
    /// The payload can never be sent.
    TooLarge(usize),
    /// The stream has ended.
    Ended(Arc<str>),
}

impl NotTaken {
    pub(crate) fn text(&self) -> String {
        match self {
            NotTaken::Full => "the outbox is full".into(),
            NotTaken::TooLarge(n) => {
                format!("{n} bytes are too large, at most {PAYLOAD_BYTES_MAX} fit a frame")
            }
            NotTaken::Ended(why) => why.to_string(),
        }
    }
}

struct Waiting {
    /// Where the call's frame ends in the stream.
    end: u64,
    answer: oneshot::Sender<Result<Bytes, CallError>>,
}

#[derive(Default)]
struct State {
    /// Large payloads and what stood in front of them, in order; `tail` comes behind all of these.
    parts: Vec<Bytes>,
    tail: Vec<u8>,
    /// Frames in `parts` and `tail`.
    waiting: usize,
    /// Frames that the writer has taken and not finished.
    writing: usize,
    /// Bytes of all frames ever taken.
    pushed: u64,
    calls: BTreeMap<u64, Waiting>,
    ended: Option<Arc<str>>,
}

/// See the module.
pub(crate) struct Link {
    bytes_max: u64,
    frames_max: usize,
    state: Mutex<State>,
    /// Bytes handed to the kernel.
    written: AtomicU64,
    last_call: AtomicU64,
    /// For the writer: something waits.
    wake: Notify,
    /// For answers that found no room: there may be some.
    room: Notify,
}

/// Everything that waited when the writer came by.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    tail: Vec<u8>,
    frames: usize,
}

impl Link {
    pub(crate) fn new(config: &Config) -> Link {
        Link {
            bytes_max: config.outbox_bytes_max as u64,
            frames_max: config.outbox_frames_max,
            state: Mutex::default(),
            written: AtomicU64::new(0),
            last_call: AtomicU64::new(0),
            wake: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Locked for a few instructions and a copy of at most [`COPY_BYTES_MAX`]; never across a wait.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// Bytes that wait or are being written.
    pub(crate) fn backlog(&self) -> u64 {
        self.lock().pushed - self.written()
    }

    /// Bytes handed to the kernel so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Puts a frame at the end of the stream, or says why not.
    pub(crate) fn push(&self, kind: Kind, call: u64, payload: Bytes) -> Result<(), NotTaken> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(NotTaken::TooLarge(payload.len()));
        }
        // The checksum is computed before the lock.
        let head = Head::new(kind, call, &payload);
        self.append(&mut self.lock(), head, payload)
    }

    fn append(&self, state: &mut State, head: Head, payload: Bytes) -> Result<(), NotTaken> {
        if let Some(why) = &state.ended {
            return Err(NotTaken::Ended(why.clone()));
        }
        let frames = state.waiting + state.writing;
        let bytes = (head.as_bytes().len() + payload.len()) as u64;
        if frames > 0 && (frames >= self.frames_max || state.pushed - self.written() + bytes > self.bytes_max)
        {
            return Err(NotTaken::Full);
        }
        state.tail.extend_from_slice(head.as_bytes());
        if payload.len() <= COPY_BYTES_MAX {
            state.tail.extend_from_slice(&payload);
        } else {
            let before = std::mem::take(&mut state.tail);
            state.parts.extend([before.into(), payload]);
        }
        state.pushed += bytes;
        state.waiting += 1;
        if state.waiting == 1 {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Sends a call; the answer comes by the returned [`Asked`].
    pub(crate) fn call(self: &Arc<Link>, payload: Bytes) -> Result<Asked, NotTaken> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(NotTaken::TooLarge(payload.len()));
        }
        let id = self.last_call.fetch_add(1, Ordering::Relaxed) + 1;
        let head = Head::new(Kind::Call, id, &payload);
        let (answer, answered) = oneshot::channel();
        let mut state = self.lock();
        if state.calls.len() >= CALLS_OUT_MAX {
            return Err(NotTaken::Full);
        }
        self.append(&mut state, head, payload)?;
        let end = state.pushed;
        state.calls.insert(id, Waiting { end, answer });
        Ok(Asked { link: self.clone(), id, answered, done: false })
    }

    /// An answer arrived. Nobody may be waiting for it any more.
    pub(crate) fn answered(&self, id: u64, result: Result<Bytes, CallError>) {
        let waiting = self.lock().calls.remove(&id);
        if let Some(waiting) = waiting {
            let _gave_up = waiting.answer.send(result);
        }
    }

    /// Sends an answer, waiting for room if need be; nothing when the stream has ended.
    pub(crate) async fn answer(&self, id: u64, result: Result<Bytes, String>) {
        let (kind, payload) = match result {
            Ok(payload) if payload.len() <= PAYLOAD_BYTES_MAX => (Kind::Answer, payload),
            Ok(payload) => (Kind::Error, Bytes::from(NotTaken::TooLarge(payload.len()).text())),
            Err(why) => (Kind::Error, Bytes::copy_from_slice(cut(&why).as_bytes())),
        };
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Registered before the look, so that no room is missed.
            room.as_mut().enable();
            match self.push(kind, id, payload.clone()) {
                Err(NotTaken::Full) => room.await,
                Ok(()) | Err(NotTaken::TooLarge(_) | NotTaken::Ended(_)) => return,
            }
        }
    }

    /// The stream has ended and its writer with it: what waits is gone, and every call hears what became of it.
    pub(crate) fn end(&self, why: &str, metrics: &Metrics) {
        let calls = {
            let mut state = self.lock();
            state.ended = Some(why.into());
            state.parts = Vec::new();
            state.tail = Vec::new();
            std::mem::take(&mut state.calls)
        };
        let written = self.written();
        for waiting in calls.into_values() {
            let error = if waiting.end > written {
                CallError::NotSent(why.to_string())
            } else {
                metrics.lost.increment(1);
                CallError::Lost(why.to_string())
            };
            let _gave_up = waiting.answer.send(Err(error));
        }
        self.room.notify_waiters();
    }

    /// The writer: until the socket fails, or for ever.
    pub(crate) async fn write<W: AsyncWrite + Unpin>(
        &self,
        mut socket: W,
        metrics: Metrics,
        counts: Arc<Counts>,
    ) -> io::Error {
        let mut batch = Batch::default();
        loop {
            self.take(&mut batch).await;
            let before = self.written();
            let result = self.write_batch(&mut socket, &batch, &metrics).await;
            let bytes = self.written() - before;
            metrics.bytes_out.increment(bytes);
            counts.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            if let Err(e) = result {
                return e;
            }
            metrics.frames_out.increment(batch.frames as u64);
            counts.frames_out.fetch_add(batch.frames as u64, Ordering::Relaxed);
        }
    }

    /// Waits until something waits, and takes all of it. The batch handed in has been written.
    async fn take(&self, batch: &mut Batch) {
        batch.parts.clear();
        batch.tail.clear();
        if batch.tail.capacity() > KEEP_BYTES {
            batch.tail = Vec::new();
        }
        loop {
            {
                let mut state = self.lock();
                std::mem::swap(&mut state.parts, &mut batch.parts);
                std::mem::swap(&mut state.tail, &mut batch.tail);
                batch.frames = std::mem::take(&mut state.waiting);
                state.writing = batch.frames;
            }
            // What was written has left the outbox.
            self.room.notify_waiters();
            if batch.frames > 0 {
                return;
            }
            self.wake.notified().await;
            // Tasks that are ready now may have frames too; one turn for them costs less than a write for each.
            OneTurn(false).await;
        }
    }

    async fn write_batch<W: AsyncWrite + Unpin>(
        &self,
        socket: &mut W,
        batch: &Batch,
        metrics: &Metrics,
    ) -> io::Result<()> {
        let wrote = |n: usize| {
            metrics.writes.increment(1);
            self.written.fetch_add(n as u64, Ordering::AcqRel);
            if n == 0 { Err(io::Error::from(io::ErrorKind::WriteZero)) } else { Ok(()) }
        };
        if !batch.parts.is_empty() {
            let mut slices: Vec<IoSlice<'_>> = batch.parts.iter().map(|p| IoSlice::new(p)).collect();
            slices.push(IoSlice::new(&batch.tail));
            let mut rest = &mut slices[..];
            // Drops empty slices in front.
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                let n = socket.write_vectored(&rest[..rest.len().min(SLICES_MAX)]).await?;
                wrote(n)?;
                IoSlice::advance_slices(&mut rest, n);
            }
            return Ok(());
        }
        let mut rest = &batch.tail[..];
        while !rest.is_empty() {
            let n = socket.write(rest).await?;
            wrote(n)?;
            rest = &rest[n..];
        }
        Ok(())
    }
}

/// A call on its way. Dropped: nobody waits for the answer.
pub(crate) struct Asked {
    link: Arc<Link>,
    id: u64,
    answered: oneshot::Receiver<Result<Bytes, CallError>>,
    done: bool,
}

impl Future for Asked {
    type Output = Result<Bytes, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.answered).poll(cx));
        self.done = true;
        Poll::Ready(result.unwrap_or_else(|_| Err(CallError::Lost("the stream ended".into()))))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.done {
            self.link.lock().calls.remove(&self.id);
        }
    }
}

/// Pending once, ready again behind everything that was ready before.
struct OneTurn(bool);

impl Future for OneTurn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One lane of a peer: its stream of the moment, or why there is none.
pub(crate) type Slot = Mutex<Result<Arc<Link>, Arc<str>>>;

/// A node that we dial.
pub(crate) struct Peer {
    pub node: NodeId,
    pub main: Slot,
    pub bulk: Slot,
    pub counts: Arc<Counts>,
}
