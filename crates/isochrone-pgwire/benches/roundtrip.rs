//! CPU per prepared execution of a constant over a loopback socket, server side only: the protocol's own cost.
//!
//! The client runs in a thread of its own and uses blocking calls; the server's CPU time is that of its single
//! thread, from `/proc/thread-self/schedstat`. Target: 15 us per execution.

#[path = "../tests/fake/mod.rs"]
mod fake;

use fake::*;
use isochrone_pgwire::Config;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

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

fn main() {
    // `cargo test --benches` only checks that it runs.
    let n = if std::env::args().any(|a| a == "--test") { 200 } else { 50_000 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = start(Config::default()).await;
        for depth in [1, 16] {
            let (addr, batches) = (server.addr, n / depth);
            let before = thread_cpu_ns();
            tokio::task::spawn_blocking(move || client(addr, batches, depth)).await.expect("the client's thread");
            let per = (thread_cpu_ns() - before) / (batches * depth) as u64;
            println!("pipeline of {depth:>2}: {per} ns of server CPU per prepared execution");
        }
    });
}
