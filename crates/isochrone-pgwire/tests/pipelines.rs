//! One read and one write per round trip; back-pressure; answers that do not wait for slow statements behind them.
#![allow(missing_docs, reason = "a test")]

mod fake;

use fake::*;
use isochrone_pgwire::Config;
use tokio::io::AsyncReadExt;

/// Everything the next read of the socket brings: the server's next write, as long as it is small.
async fn one_read(c: &mut Client) -> Vec<u8> {
    let mut buf = vec![0; 1 << 20];
    let n = c.stream.read(&mut buf).await.expect("an open socket");
    buf.truncate(n);
    buf
}

fn tags(mut bytes: &[u8]) -> String {
    let mut out = String::new();
    while let [tag, a, b, c, d, ..] = *bytes {
        out.push(tag as char);
        bytes = &bytes[1 + u32::from_be_bytes([a, b, c, d]) as usize..];
    }
    assert!(bytes.is_empty());
    out
}

#[tokio::test]
async fn a_pipeline_is_answered_in_one_piece() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let one = [bind("", "s", &[], &[], &[]), execute("", 0), sync()].concat();
    c.send(&[parse("s", "select 1", &[]), one.repeat(3)].concat()).await;
    // Had the server written at each Sync, the first read would bring only what was there by then. The test in
    // `src/writes.rs` counts the writes themselves.
    assert_eq!(tags(&one_read(&mut c).await), "12DCZ2DCZ2DCZ");
}

#[tokio::test]
async fn answers_that_are_due_do_not_wait_for_a_slow_statement() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    c.send(&[query("select 1"), query("gate"), query("select 2")].concat()).await;
    assert_eq!(c.until_ready().await.len(), 4);
    server.world.gate.notify_one();
    assert_eq!(c.until_ready().await, ["C GATE", "Z I"]);
    assert_eq!(c.until_ready().await.len(), 4);
    // Also when the slow one is bound by the extended protocol and a large result follows.
    let slow = [parse("", "gate", &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()].concat();
    c.send(&[query("select 1"), slow, query("rows 20000")].concat()).await;
    assert_eq!(c.until_ready().await.len(), 4);
    server.world.gate.notify_one();
    assert_eq!(c.until_ready().await, ["1", "2", "C GATE", "Z I"]);
    assert_eq!(c.until_ready().await.len(), 20_003);
}

#[tokio::test]
async fn a_large_result_comes_whole_and_in_order() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let before = [query("select 1"), query("rows 100000"), query("copyout 50000")].concat();
    c.send(&before).await;
    c.until_ready().await;
    let rows = c.until_ready().await;
    assert_eq!(rows.len(), 100_003);
    assert_eq!(rows[99_999 - 1], "D 99997 row 99997");
    let lines = c.until_ready().await;
    assert_eq!(lines.len(), 50_004);
    assert_eq!(lines[50_000], "d line 49999\\n");
}

#[tokio::test]
async fn many_frames_in_any_cut() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let bytes = [parse("s", "echo", &[25]), sync(), query("rows 2")].concat();
    // Byte by byte, then a long value in many pieces.
    for b in &bytes {
        c.send(&[*b]).await;
    }
    assert_eq!(c.until_ready().await, ["1", "Z I"]);
    assert_eq!(c.until_ready().await.len(), 5);
    let value = vec![b'v'; 3 << 20];
    let big = [bind("", "s", &[], &[Some(&value)], &[]), execute("", 0), sync()].concat();
    let lines = c.ask(&big).await;
    assert_eq!(lines[1].len(), 2 + value.len());
    assert_eq!(c.ask(&query("select 1")).await.len(), 4);
}
