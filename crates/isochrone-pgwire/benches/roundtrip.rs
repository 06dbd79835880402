//! CPU per prepared execution of a constant over a loopback socket, server side only: the protocol's own cost.
//!
//! The client runs in a thread of its own and uses blocking calls; the server's CPU time is that of its single
//! thread, from `/proc/thread-self/schedstat`. The floor is measured in the same run: a task that reads the same bytes
//! and writes an answer of the same size without looking at them, so that the difference is ours and the rest is the
//! kernel's and the runtime's. Target: 15 us per execution.

#[path = "../tests/fake/mod.rs"]
mod fake;

use fake::*;
use isochrone_pgwire::Config;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn thread_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Runs `batches` round trips of `depth` executions each; returns when all are answered.
fn client(addr: SocketAddr, batches: usize, depth: usize) {
    let mut s = TcpStream::connect(addr).expect("the server accepts");
    s.set_nodelay(true).expect("a TCP socket");
    let mut buf = vec![0; 1 << 16];
    let mut exchange = |bytes: &[u8], ready: usize| {
        s.write_all(bytes).expect("the server reads");
        let mut seen = 0;
        while seen < ready {
            let n = s.read(&mut buf).expect("the server answers");
            assert!(n > 0, "the server closed");
            seen += buf[..n].windows(6).filter(|w| w == b"Z\0\0\0\x05I").count();
        }
    };
    exchange(&startup(3 << 16, &[("user", "root"), ("database", "isochrone")]), 1);
    exchange(&[parse("s", "select 1", &[]), sync()].concat(), 1);
    let one = [bind("", "s", &[], &[], &[1]), execute("", 0), sync()].concat();
    let batch = one.repeat(depth);
    for _ in 0..batches {
        exchange(&batch, depth);
    }
}

/// The answer to one execution: BindComplete, DataRow, CommandComplete, ReadyForQuery.
const ANSWER: &[u8] = b"2\0\0\0\x04D\0\0\0\x0e\0\x01\0\0\0\x04\0\0\0\x01C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

/// Answers as many executions as it has read.
async fn floor(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.expect("the client connects");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut buf = vec![0; 8192];
    let one = [bind("", "s", &[], &[], &[1]), execute("", 0), sync()].concat().len();
    loop {
        let n = stream.read(&mut buf).await.expect("the client sends");
        if n == 0 {
            return;
        }
        let answers = if n % one == 0 { n / one } else { 1 };
        stream.write_all(&ANSWER.repeat(answers)).await.expect("the client reads");
    }
}

fn main() {
    // Anything but `cargo bench` only checks that it runs.
    let n = if std::env::args().any(|a| a == "--bench") { 50_000 } else { 160 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = start(Config::default()).await;
        for depth in [1, 16] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let floor_addr = listener.local_addr().expect("a bound socket");
            tokio::spawn(floor(listener));
            for (what, addr) in [("floor", floor_addr), ("pgwire", server.addr)] {
                let batches = n / depth;
                let before = thread_cpu_ns();
                tokio::task::spawn_blocking(move || client(addr, batches, depth))
                    .await
                    .expect("the client's thread");
                let per = (thread_cpu_ns() - before) / (batches * depth) as u64;
                println!("{what:>6}, pipeline of {depth:>2}: {per} ns of server CPU per prepared execution");
            }
        }
    });
}
