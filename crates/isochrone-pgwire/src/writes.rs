//! Tests that count system calls: reads and writes of the connection's socket, and its memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use isochrone_env::os::TokioTimer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{Semaphore, watch};

use crate::cancel::CancelKeys;
use crate::connection::{Phase, Shared};
use crate::fake::*;
use crate::metrics::Metrics;
use crate::server::run;

/// Counts the calls that got or gave bytes.
struct Counting<T> {
    inner: T,
    calls: Arc<AtomicUsize>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.calls.fetch_add(usize::from(result.is_ready()), Ordering::Relaxed);
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counting<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.calls.fetch_add(usize::from(result.is_ready()), Ordering::Relaxed);
        result
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

struct Counted {
    client: DuplexStream,
    reads: Arc<AtomicUsize>,
    writes: Arc<AtomicUsize>,
    /// Bytes of the connection's task.
    task_bytes: usize,
    /// Keeps the server's phase alive.
    _phase: watch::Sender<Phase>,
}

/// A connection over a pipe of `pipe_bytes` each way.
fn connect(pipe_bytes: usize) -> Counted {
    let (client, server) = tokio::io::duplex(pipe_bytes);
    let (reader, writer) = tokio::io::split(server);
    let (reads, writes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let shared = Shared {
        backend: Fake::default(),
        keys: Arc::<CancelKeys>::default(),
        metrics: Metrics::new(),
        connections: Arc::new(Semaphore::new(1)),
        secrets: Arc::new(|| Ok(7)),
    };
    let (sender, phase) = watch::channel(Phase::Running);
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a permit");
    let task = run(
        Counting { inner: reader, calls: Arc::clone(&reads) },
        Counting { inner: writer, calls: Arc::clone(&writes) },
        Arc::new(shared),
        phase,
        Arc::new(TokioTimer),
        Duration::from_secs(10),
        true,
        permit,
    );
    let task_bytes = size_of_val(&task);
    tokio::spawn(task);
    Counted { client, reads, writes, task_bytes, _phase: sender }
}

impl Counted {
    /// Sends, reads until `ready` ReadyForQuery messages came; returns reads and writes of the server.
    async fn ask(&mut self, bytes: &[u8], ready: usize) -> (usize, usize) {
        self.client.write_all(bytes).await.expect("an open pipe");
        let mut got = Vec::new();
        while got.windows(5).filter(|w| *w == b"Z\0\0\0\x05").count() < ready {
            assert!(self.client.read_buf(&mut got).await.expect("an open pipe") > 0);
        }
        (self.reads.swap(0, Ordering::Relaxed), self.writes.swap(0, Ordering::Relaxed))
    }
}

#[tokio::test]
async fn one_read_and_one_write_per_round_trip() {
    let mut c = connect(1 << 20);
    let login = startup(3 << 16, &[("user", "root"), ("database", "isochrone")]);
    assert_eq!(c.ask(&login, 1).await, (1, 1));
    assert_eq!(c.ask(&[parse("s", "select 1", &[]), describe('S', "s"), sync()].concat(), 1).await, (1, 1));
    let one = [bind("", "s", &[], &[], &[]), execute("", 0), sync()].concat();
    for _ in 0..10 {
        assert_eq!(c.ask(&one, 1).await, (1, 1));
    }
    assert_eq!(c.ask(&one.repeat(20), 20).await, (1, 1));
    assert_eq!(c.ask(&query("select 1; rows 5; notice x"), 1).await, (1, 1));
    // Large results go in writes of about 64 KiB.
    let (reads, writes) = c.ask(&query("rows 100000"), 1).await;
    assert_eq!(reads, 1);
    assert!((20..60).contains(&writes), "{writes} writes");
    println!("a connection's task: {} bytes", c.task_bytes);
    assert!(c.task_bytes < 6 << 10, "a connection's task has {} bytes", c.task_bytes);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_waited_for() {
    let mut c = connect(64);
    let login = startup(3 << 16, &[("user", "root"), ("database", "isochrone")]);
    c.ask(&login, 1).await;
    // Due answers are written in small pieces beside a statement that waits, whose own answers come behind them.
    let (_, writes) = c.ask(&[query("rows 20"), query("rows 20000")].concat(), 2).await;
    assert!(writes > 1_000, "{writes} writes");
}
