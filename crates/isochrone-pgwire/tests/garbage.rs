//! Random and garbled bytes before and after login: the connection may end, its neighbours work on.
#![allow(missing_docs, reason = "a test")]

mod fake;

use fake::*;
use isochrone_pgwire::Config;
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Frames that are well formed, nearly so, or not at all.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop::sample::select(b"QPBDECHSXFdcfp?\0".to_vec());
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(prop::sample::select(b"\0\0\0\x01\xffsS".to_vec()), 0..32),
    ];
    let good = prop::sample::select(vec![
        query("select 1"),
        query("copyin"),
        query("begin; fail"),
        parse("", "rows 3", &[]),
        parse("s", "echo", &[23, 25, 17, 1700, 0]),
        bind("", "", &[], &[], &[1]),
        bind("", "s", &[1], &[Some(b"\0\0\0\x01"), None, Some(b"x"), Some(b"\0"), None], &[]),
        describe('S', "s"),
        describe('P', ""),
        execute("", 1),
        close('S', "s"),
        framed(b'd', b"line\n"),
        framed(b'c', b""),
        sync(),
        framed(b'H', b""),
    ]);
    prop_oneof![
        3 => good.clone(),
        2 => (tag, body).prop_map(|(tag, body)| framed(tag, &body)),
        1 => (good, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut f, i, b)| {
            let i = i.index(f.len());
            f[i] = b;
            f
        }),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

/// Sends the bytes, says that there are no more, and returns whatever comes until the end.
async fn throw(addr: std::net::SocketAddr, login: bool, bytes: &[u8]) -> Vec<u8> {
    let mut c = Client::connect(addr).await;
    if login {
        c.login("isochrone").await;
    }
    let mut got = Vec::new();
    let (mut reader, mut writer) = c.stream.split();
    // Errors are fine: the server may have closed.
    let send = async {
        drop(writer.write_all(bytes).await);
        drop(writer.shutdown().await);
    };
    let read = async { while matches!(reader.read_buf(&mut got).await, Ok(1..)) {} };
    let both = async { tokio::join!(send, read) };
    tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("the server closes what it cannot go on with");
    got
}

#[test]
fn garbage_hurts_nobody_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (server, bystander) = runtime.block_on(async {
        let server = start(Config::default()).await;
        let bystander = server.client().await;
        (server, bystander)
    });
    let input = (any::<bool>(), prop::collection::vec(frame(), 1..12));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let bystander = tokio::sync::Mutex::new(bystander);
    runner
        .run(&input, |(login, frames)| {
            runtime.block_on(async {
                let got = throw(server.addr, login, &frames.concat()).await;
                // A panic would be caught, and told so.
                prop_assert!(!got.windows(6).any(|w| w == b"CXX000"), "{}", got.escape_ascii());
                let lines = bystander.lock().await.ask(&query("select 1")).await;
                prop_assert_eq!(lines, ["T ?column?:23:0", "D 1", "C SELECT 1", "Z I"]);
                Ok(())
            })
        })
        .unwrap();
}
