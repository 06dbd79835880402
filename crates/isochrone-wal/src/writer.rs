//! Group commit: many threads hand in batches, one write and one fdatasync make all of them durable.
//!
//! Whoever finds nobody writing leads: it takes everything that is queued, appends and syncs it. A thread that waits
//! for its batch ([`LogWriter::append_durable`]) leads itself, which saves two thread switches; what queued up
//! meanwhile, and batches with a callback ([`LogWriter::submit`]), are led by the log's own thread.
//!
//!     queue of group n+1 │ leader: append, sync group n │ readers, waiters, callbacks see group n
//!
//! * The queue is bounded by [`QUEUE_BATCHES_MAX`] and [`QUEUE_BYTES_MAX`]: at the bound, callers block.
//! * Callbacks run one after the other, in the order of submission, on the leading thread: they must be short, must
//!   not call back into the writer, and must not panic (the writer stops if one does).
//! * After a failed write or sync every batch of that group and every later one gets the first error. Nothing is
//!   retried.
//! * A batch that the log refuses ([`Error::is_refusal`]) fails alone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use crate::metrics::Stats;
use crate::{Batch, Error, Log, LogReader};

/// Most batches that wait; further callers block.
pub const QUEUE_BATCHES_MAX: usize = 4096;
/// Most bytes that wait, one batch more at most; further callers block.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Called once, when the batch is durable or never will be.
pub type OnDurable = Box<dyn FnOnce(Result<(), Arc<Error>>) + Send>;

/// Where the log's refusal of one batch is left for the ticket's holder.
type Refusal = Arc<OnceLock<Arc<Error>>>;

enum Done {
    Callback(OnDurable),
    /// A thread waits on its group's condition, or will.
    Ticket(Refusal),
}

#[derive(Default)]
struct Queue {
    batches: Vec<Batch>,
    /// Beside each batch: who wants to know.
    done: Vec<Done>,
    bytes: usize,
    /// The number of the group that is being collected.
    group: u64,
    /// Somebody appends and syncs, or has been told to.
    leading: bool,
    closed: bool,
    /// The first group that failed, and why: it and all later ones get this error.
    failed: Option<(u64, Arc<Error>)>,
    /// The last group that is finished, well or not.
    finished: Option<u64>,
}

struct Inner {
    queue: Mutex<Queue>,
    /// The log's own thread waits here for work.
    work: Condvar,
    /// Callers wait here for room in the queue.
    room: Condvar,
    /// Waiting threads of even and odd groups: one wake-up reaches exactly the group that is finished.
    done: [Condvar; 2],
    /// Held by the leader only.
    log: Mutex<Log>,
    reader: LogReader,
}

/// The log behind a queue. Share it in an `Arc`; dropping it shuts the log down.
pub struct LogWriter {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

/// Starts the log's thread.
pub fn spawn(log: Log) -> std::io::Result<LogWriter> {
    let reader = log.reader();
    let inner = Arc::new(Inner {
        queue: Mutex::default(),
        work: Condvar::new(),
        room: Condvar::new(),
        done: [Condvar::new(), Condvar::new()],
        log: Mutex::new(log),
        reader,
    });
    let of_thread = inner.clone();
    let thread = std::thread::Builder::new().name("wal".into()).spawn(move || of_thread.run())?;
    Ok(LogWriter { inner, thread: Mutex::new(Some(thread)) })
}

impl LogWriter {
    /// Hands in a batch; returns once it is queued. `on_durable` is called in any case, also after a
    /// failure or shutdown (and dropped unused only if another callback panicked).
    pub fn submit(&self, batch: Batch, on_durable: OnDurable) {
        match self.inner.enter() {
            Ok(mut q) => {
                q.push(batch, Done::Callback(on_durable));
                if !q.leading {
                    self.inner.work.notify_one();
                }
            }
            Err(e) => on_durable(Err(e)),
        }
    }

    /// Hands in a batch and returns when it is durable. Leads if nobody does.
    pub fn append_durable(&self, batch: Batch) -> Result<(), Arc<Error>> {
        let (q, ticket) = self.inner.queue_up(batch)?;
        ticket.wait_with(q)
    }

    /// Hands in a batch and returns once it has its place in the order; [`Ticket::wait`] returns when it is durable.
    /// For callers that fix an order under a lock of their own, and do not want to hold it while the disk works.
    pub fn enqueue(&self, batch: Batch) -> Result<Ticket<'_>, Arc<Error>> {
        let (q, ticket) = self.inner.queue_up(batch)?;
        if !q.leading {
            self.inner.work.notify_one();
        }
        Ok(ticket)
    }

    /// A reader of what is durable.
    pub fn reader(&self) -> LogReader {
        self.inner.reader.clone()
    }

    /// Counters of the log.
    pub fn stats(&self) -> Stats {
        self.inner.reader.stats()
    }

    /// The failure that stopped the log, if any.
    pub fn failed(&self) -> Option<Arc<Error>> {
        self.inner.lock().failed.as_ref().map(|(_, e)| e.clone())
    }

    /// Refuses new batches, makes what is queued durable, writes a last durable-end mark, ends the thread. The
    /// second call finds nothing to do.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.inner.lock().closed = true;
        self.inner.work.notify_one();
        self.inner.room.notify_all();
        let thread = self.thread.lock().expect(UNPOISONED).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(r)) => r,
            Some(Err(_)) => Err(Error::Closed),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // Who wants to know the outcome calls `shutdown`.
        let _ = self.shutdown();
    }
}

/// A batch that has its place in the order and is becoming durable.
#[must_use = "the batch is durable only when `wait` says so"]
pub struct Ticket<'a> {
    inner: &'a Inner,
    group: u64,
    refusal: Refusal,
}

impl<'a> Ticket<'a> {
    /// Waits until the batch is durable, or never will be.
    pub fn wait(self) -> Result<(), Arc<Error>> {
        let q = self.inner.lock();
        self.wait_with(q)
    }

    fn wait_with(self, mut q: MutexGuard<'a, Queue>) -> Result<(), Arc<Error>> {
        let Ticket { inner, group, refusal } = self;
        while q.finished.is_none_or(|f| f < group) {
            q = if q.leading {
                inner.done[(group % 2) as usize].wait(q).expect(UNPOISONED)
            } else {
                let q = inner.lead(q);
                if !q.batches.is_empty() {
                    inner.work.notify_one();
                }
                q
            };
        }
        if let Some(e) = refusal.get() {
            return Err(e.clone());
        }
        match &q.failed {
            Some((first, e)) if *first <= group => Err(e.clone()),
            _ => Ok(()),
        }
    }
}

const UNPOISONED: &str = "no panic while the log's locks are held";

impl Queue {
    fn push(&mut self, batch: Batch, done: Done) {
        self.bytes += batch.bytes();
        self.batches.push(batch);
        self.done.push(done);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect(UNPOISONED)
    }

    /// Waits for room in the queue.
    fn enter(&self) -> Result<MutexGuard<'_, Queue>, Arc<Error>> {
        let full = |q: &mut Queue| {
            !q.closed
                && q.failed.is_none()
                && (q.batches.len() >= QUEUE_BATCHES_MAX || q.bytes >= QUEUE_BYTES_MAX)
        };
        let q = self.room.wait_while(self.lock(), full).expect(UNPOISONED);
        match &q.failed {
            Some((_, e)) => Err(e.clone()),
            None if q.closed => Err(Arc::new(Error::Closed)),
            None => Ok(q),
        }
    }

    fn queue_up(&self, batch: Batch) -> Result<(MutexGuard<'_, Queue>, Ticket<'_>), Arc<Error>> {
        let mut q = self.enter()?;
        let refusal = Refusal::default();
        let ticket = Ticket { inner: self, group: q.group, refusal: refusal.clone() };
        q.push(batch, Done::Ticket(refusal));
        Ok((q, ticket))
    }

    /// The log's own thread: leads whenever there is work and nobody leads; at the end seals the log.
    fn run(&self) -> Result<(), Error> {
        let mut q = self.lock();
        loop {
            q = self
                .work
                .wait_while(q, |q| q.leading || (q.batches.is_empty() && !q.closed))
                .expect(UNPOISONED);
            if q.batches.is_empty() {
                break;
            }
            q = self.lead(q);
        }
        drop(q);
        self.log.lock().expect(UNPOISONED).seal()
    }

    /// Makes everything queued durable. Nobody leads when this is called, and nobody when it returns.
    fn lead<'a>(&'a self, mut q: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        q.leading = true;
        let batches = std::mem::take(&mut q.batches);
        let done = std::mem::take(&mut q.done);
        let was_full = batches.len() >= QUEUE_BATCHES_MAX || q.bytes >= QUEUE_BYTES_MAX;
        q.bytes = 0;
        let group = q.group;
        q.group += 1;
        drop(q);
        if was_full {
            self.room.notify_all();
        }
        let stop = StopOnPanic(self);
        let mut refused = Vec::new();
        let outcome = {
            let mut log = self.log.lock().expect(UNPOISONED);
            append_all(&mut log, &batches, &mut refused).and_then(|()| log.sync()).map_err(first_failure)
        };
        drop(batches);
        let mut q = self.lock();
        if let Err(e) = &outcome {
            q.failed.get_or_insert_with(|| (group, e.clone()));
            self.room.notify_all();
        }
        // Refusals are in their places before anybody learns that the group is finished.
        let mut refused = refused.into_iter().peekable();
        let (mut callbacks, mut any_ticket) = (Vec::new(), false);
        for (place, done) in done.into_iter().enumerate() {
            let refusal = refused.next_if(|r| r.0 == place).map(|r| r.1);
            match done {
                Done::Callback(f) => callbacks.push((f, refusal.map_or_else(|| outcome.clone(), Err))),
                Done::Ticket(slot) => {
                    any_ticket = true;
                    if let Some(e) = refusal {
                        let _ = slot.set(e);
                    }
                }
            }
        }
        q.finished = Some(group);
        if any_ticket {
            self.done[(group % 2) as usize].notify_all();
        }
        if !callbacks.is_empty() {
            drop(q);
            callbacks.into_iter().for_each(|(f, outcome)| f(outcome));
            q = self.lock();
        }
        std::mem::forget(stop);
        q.leading = false;
        if q.closed {
            self.work.notify_one();
        }
        q
    }
}

/// Appends batches; those that are refused are left out, by their place.
fn append_all(log: &mut Log, batches: &[Batch], refused: &mut Vec<(usize, Arc<Error>)>) -> Result<(), Error> {
    match log.append(batches) {
        Err(e) if e.is_refusal() => {}
        r => return r,
    }
    for (place, batch) in batches.iter().enumerate() {
        match log.append(std::slice::from_ref(batch)) {
            Err(e) if e.is_refusal() => refused.push((place, Arc::new(e))),
            r => r?,
        }
    }
    Ok(())
}

/// The failure itself rather than the statement that there was one.
fn first_failure(e: Error) -> Arc<Error> {
    match e {
        Error::Poisoned(first) => first,
        e => Arc::new(e),
    }
}

/// A panicking callback, or a broken invariant, must not leave callers waiting for ever.
struct StopOnPanic<'a>(&'a Inner);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if let Ok(mut q) = self.0.queue.lock() {
            let first = q.finished.map_or(0, |f| f + 1);
            q.failed.get_or_insert((first, Arc::new(Error::Closed)));
            q.finished = Some(u64::MAX);
            q.closed = true;
            q.leading = false;
            q.batches.clear();
            q.done.clear();
        }
        self.0.done.iter().for_each(Condvar::notify_all);
        self.0.room.notify_all();
        self.0.work.notify_all();
    }
}
