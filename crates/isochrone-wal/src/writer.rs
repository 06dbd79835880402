//! Group commit: many threads hand in batches, one write and one fdatasync make all of them durable.
//!
//! Whoever finds nobody writing leads: it takes everything that is queued, appends and syncs it. A thread that waits
//! for its batch ([`LogWriter::append_durable`]) leads itself, which saves two thread switches; what queued up
//! meanwhile, and batches with a callback ([`LogWriter::submit`]), are led by the log's own thread.
//!
//!     queue of group n+1 │ leader: append, sync group n │ readers, callbacks, waiters see group n
//!
//! The leader wakes one of the threads that wait, and that one wakes the others: the next group is on its way to the
//! disk meanwhile.
//!
//! * The queue is bounded by [`QUEUE_BATCHES_MAX`] and [`QUEUE_BYTES_MAX`]: at the bound, callers block.
//! * Callbacks run one after the other, in the order of submission, on the leading thread: they must be short, must
//!   not call back into the writer, and must not panic (the writer stops if one does).
//! * After a failed write or sync every batch of that group and every later one gets the first error. Nothing is
//!   retried.
//! * A batch that the log refuses ([`Error::is_refusal`]) fails alone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::metrics::Stats;
use crate::{Batch, Error, Log, LogReader};

/// Most batches that wait; further callers block.
pub const QUEUE_BATCHES_MAX: usize = 4096;
/// Most bytes that wait, one batch more at most; further callers block.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

type Outcome = Result<(), Arc<Error>>;
/// Called once, when the batch is durable or never will be.
pub type OnDurable = Box<dyn FnOnce(Outcome) + Send>;

/// What the threads of one group wait for.
#[derive(Default)]
struct Group {
    state: Mutex<GroupState>,
    finished: Condvar,
}

#[derive(Default)]
struct GroupState {
    outcome: Option<Outcome>,
    /// Batches that the log refused, by their place: each fails alone.
    refused: Vec<(usize, Arc<Error>)>,
    /// One thread has woken the others.
    all_woken: bool,
}

impl Group {
    fn finish(&self, outcome: Outcome, refused: Vec<(usize, Arc<Error>)>) {
        let mut state = self.state.lock().expect(UNPOISONED);
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
            state.refused = refused;
        }
        drop(state);
        self.finished.notify_one();
    }

    fn wait(&self, place: usize) -> Outcome {
        let state = self.state.lock().expect(UNPOISONED);
        let mut state = self.finished.wait_while(state, |s| s.outcome.is_none()).expect(UNPOISONED);
        let first = !std::mem::replace(&mut state.all_woken, true);
        let refused = state.refused.iter().find(|r| r.0 == place).map(|r| Err(r.1.clone()));
        let outcome = refused.or_else(|| state.outcome.clone());
        drop(state);
        if first {
            self.finished.notify_all();
        }
        outcome.expect("waited for it")
    }
}

#[derive(Default)]
struct Queue {
    batches: Vec<Batch>,
    /// By place among the batches. The other batches are those of waiting threads.
    callbacks: Vec<(usize, OnDurable)>,
    /// The group that is being collected.
    group: Arc<Group>,
    bytes: usize,
    /// Somebody appends and syncs.
    leading: bool,
    closed: bool,
    /// The first failure: later batches get it too.
    failed: Option<Arc<Error>>,
}

struct Inner {
    queue: Mutex<Queue>,
    /// The log's own thread waits here for work.
    work: Condvar,
    /// Callers wait here for room in the queue.
    room: Condvar,
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
    let (work, room) = (Condvar::new(), Condvar::new());
    let inner = Arc::new(Inner { queue: Mutex::default(), work, room, log: Mutex::new(log), reader });
    let of_thread = inner.clone();
    let thread = std::thread::Builder::new().name("wal".into()).spawn(move || of_thread.run())?;
    Ok(LogWriter { inner, thread: Mutex::new(Some(thread)) })
}

impl LogWriter {
    /// Hands in a batch; returns once it is queued. `on_durable` is called in any case, also after a failure or
    /// shutdown (and dropped unused only if another callback panicked).
    pub fn submit(&self, batch: Batch, on_durable: OnDurable) {
        match self.inner.enter() {
            Ok(mut q) => {
                let place = q.push(batch);
                q.callbacks.push((place, on_durable));
                self.inner.call_for_leader(q);
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
        self.inner.call_for_leader(q);
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
        self.inner.lock().failed.clone()
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

/// A batch that has its place in the order and is becoming durable, also if nobody waits for it.
#[must_use = "the batch is durable only when `wait` says so"]
pub struct Ticket<'a> {
    inner: &'a Inner,
    group: Arc<Group>,
    place: usize,
    /// Somebody led when the batch was queued, and will see to it that somebody leads its group.
    led: bool,
}

impl<'a> Ticket<'a> {
    /// Waits until the batch is durable, or never will be.
    pub fn wait(self) -> Result<(), Arc<Error>> {
        if self.led {
            return self.group.wait(self.place);
        }
        let q = self.inner.lock();
        self.wait_with(q)
    }

    fn wait_with(self, q: MutexGuard<'a, Queue>) -> Result<(), Arc<Error>> {
        if !q.leading && Arc::ptr_eq(&q.group, &self.group) {
            drop(self.inner.lead(q));
        } else {
            drop(q);
        }
        self.group.wait(self.place)
    }
}

const UNPOISONED: &str = "no panic while the log's locks are held";

impl Queue {
    /// Returns the batch's place in its group.
    fn push(&mut self, batch: Batch) -> usize {
        self.bytes += batch.bytes();
        self.batches.push(batch);
        self.batches.len() - 1
    }

    fn is_full(&self) -> bool {
        self.batches.len() >= QUEUE_BATCHES_MAX || self.bytes >= QUEUE_BYTES_MAX
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect(UNPOISONED)
    }

    /// Waits for room in the queue.
    fn enter(&self) -> Result<MutexGuard<'_, Queue>, Arc<Error>> {
        let full = |q: &mut Queue| !q.closed && q.failed.is_none() && q.is_full();
        let q = self.room.wait_while(self.lock(), full).expect(UNPOISONED);
        match &q.failed {
            Some(e) => Err(e.clone()),
            None if q.closed => Err(Arc::new(Error::Closed)),
            None => Ok(q),
        }
    }

    fn queue_up(&self, batch: Batch) -> Result<(MutexGuard<'_, Queue>, Ticket<'_>), Arc<Error>> {
        let mut q = self.enter()?;
        let place = q.push(batch);
        let ticket = Ticket { inner: self, group: q.group.clone(), place, led: q.leading };
        Ok((q, ticket))
    }

    /// Lets the log's own thread lead if nobody does.
    fn call_for_leader(&self, q: MutexGuard<'_, Queue>) {
        let needed = !q.leading && (!q.batches.is_empty() || q.closed);
        drop(q);
        if needed {
            self.work.notify_one();
        }
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
        let was_full = q.is_full();
        let batches = std::mem::take(&mut q.batches);
        let callbacks = std::mem::take(&mut q.callbacks);
        let mut guard = StopOnPanic { inner: self, group: std::mem::take(&mut q.group), armed: true };
        q.bytes = 0;
        drop(q);
        if was_full {
            self.room.notify_all();
        }
        let mut refused = Vec::new();
        let outcome = {
            let mut log = self.log.lock().expect(UNPOISONED);
            append_all(&mut log, &batches, &mut refused).and_then(|()| log.sync()).map_err(first_failure)
        };
        if let Err(e) = &outcome {
            self.lock().failed.get_or_insert(e.clone());
            self.room.notify_all();
        }
        let callback_outcomes: Vec<(OnDurable, Outcome)> = callbacks
            .into_iter()
            .map(|(place, f)| {
                let refusal = refused.iter().find(|r| r.0 == place);
                (f, refusal.map_or_else(|| outcome.clone(), |r| Err(r.1.clone())))
            })
            .collect();
        if batches.len() > callback_outcomes.len() {
            guard.group.finish(outcome, refused);
        }
        callback_outcomes.into_iter().for_each(|(f, outcome)| f(outcome));
        drop(batches);
        guard.armed = false;
        let mut q = self.lock();
        q.leading = false;
        if q.closed || !q.batches.is_empty() {
            // For the log's own thread; if that is who leads here, it goes on by itself.
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

/// A panicking callback, or a broken invariant, must not leave anybody waiting for ever.
struct StopOnPanic<'a> {
    inner: &'a Inner,
    group: Arc<Group>,
    armed: bool,
}

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let mut groups = vec![std::mem::take(&mut self.group)];
        if let Ok(mut q) = self.inner.queue.lock() {
            q.failed.get_or_insert(Arc::new(Error::Closed));
            q.closed = true;
            q.leading = false;
            q.batches.clear();
            q.callbacks.clear();
            groups.push(std::mem::take(&mut q.group));
        }
        groups.iter().for_each(|g| g.finish(Err(Arc::new(Error::Closed)), Vec::new()));
        self.inner.room.notify_all();
        self.inner.work.notify_all();
    }
}
