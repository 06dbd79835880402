//! Two nodes that mean well: order, calls, restarts, ends.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use isochrone_base::NodeId;
use isochrone_net::{CallError, Config, Hello, Lane, Network, call_once};

#[tokio::test]
async fn messages_arrive_in_order() {
    let (a, mut b) = pair().await;
    const MESSAGES: u32 = 3_000;
    for i in 0..MESSAGES {
        // Small ones, ones around the size from which they are not copied, and some of a few read buffers.
        let size = match i % 50 {
            0 => 200_000,
            1..5 => 8 * 1024 - 4 + i as usize % 9,
            _ => i as usize % 300,
        };
        let mut payload = i.to_be_bytes().to_vec();
        payload.resize(4 + size, i as u8);
        assert!(a.net.send(b.id, payload.into()), "{i}");
    }
    for i in 0..MESSAGES {
        let (from, payload) = b.message().await;
        assert_eq!((from, &payload[..4]), (a.id, &i.to_be_bytes()[..]));
        assert!(payload[4..].iter().all(|b| *b == i as u8));
    }
    eventually("what was sent is counted", || a.net.peers()[0].frames_out >= u64::from(MESSAGES)).await;
    let status = a.net.peers().remove(0);
    assert!(status.connected && status.dropped == 0 && status.error.is_none(), "{status:?}");
}

#[tokio::test]
async fn calls_are_answered() {
    let (a, b) = pair().await;
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
    assert_eq!(b.call(a.id, "who").await.unwrap(), "2 10.0.0.2:26257");
    assert_eq!(a.call(b.id, "").await.unwrap(), "");
    // Control characters do not reach logs and terminals.
    assert_eq!(a.call(b.id, "no").await, Err(CallError::Refused("will not do".into())));
    assert!(matches!(a.call(b.id, "large").await, Err(CallError::Refused(why)) if why.contains("too large")));
    let large = Bytes::from(vec![5; 5 << 20]);
    let answer = soon("bulk", a.net.call(b.id, Lane::Bulk, large.clone(), PATIENCE)).await;
    assert_eq!(answer.unwrap(), large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_and_a_slow_one_among_them() {
    let (a, b) = pair().await;
    let slow = a.net.call(b.id, Lane::Main, "slow".into(), PATIENCE);
    let mut calls = Vec::new();
    for i in 0..2_000u32 {
        calls.push(a.net.call(b.id, Lane::Main, i.to_be_bytes().to_vec().into(), PATIENCE));
    }
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(soon("a call", call).await.unwrap(), (i as u32).to_be_bytes().to_vec());
    }
    b.service.gate.add_permits(1);
    assert_eq!(soon("the slow call", slow).await.unwrap(), "done");
}

#[tokio::test]
async fn too_many_calls_are_refused() {
    let config = Config { calls_in_max: 3, ..Config::default() };
    let (mut a, b) = (node(1).await, node_at("127.0.0.1:0", hello(2), config).await);
    a.joins(&b).await;
    let slow: Vec<_> = (0..3).map(|_| a.net.call(b.id, Lane::Main, "slow".into(), PATIENCE)).collect();
    assert_eq!(a.call(b.id, "echo").await, Err(CallError::Refused("busy".into())));
    b.service.gate.add_permits(3);
    for call in slow {
        assert_eq!(soon("a slow call", call).await.unwrap(), "done");
    }
    eventually("the calls have ended", || b.service.calls_running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
}

#[tokio::test]
async fn a_peer_restarts() {
    let (mut a, b) = pair().await;
    let (id, address) = (b.id, b.address.clone());
    soon("shutdown", b.net.shutdown()).await;
    a.stream(false, id).await;
    assert!(matches!(a.call(id, "echo").await, Err(CallError::NotSent(_))));
    assert!(!a.net.send(id, "x".into()));
    assert!(!a.net.peers()[0].connected && a.net.peers()[0].dropped == 2);
    let mut b = node_at(&address, hello(2), Config::default()).await;
    a.stream(true, id).await;
    assert_eq!(a.call(id, "echo").await.unwrap(), "echo");
    assert!(a.net.send(id, "after".into()));
    assert_eq!(b.message().await, (a.id, "after".into()));
}

#[tokio::test]
async fn a_peer_moves() {
    let (mut a, b) = pair().await;
    let moved = node(2).await;
    a.net.set_peer(b.id, &b.address);
    a.net.set_peer(b.id, &moved.address);
    a.stream(false, b.id).await;
    a.stream(true, b.id).await;
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
    assert_eq!(moved.service.calls_begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nobody_is_there() {
    let a = node(1).await;
    assert!(matches!(a.call(NodeId(7), "echo").await, Err(CallError::NotSent(why)) if why.contains("7")));
    assert!(!a.net.send(NodeId(7), "x".into()));
    // An address where nobody listens: that of a listener that is gone.
    let address = node(2).await;
    soon("shutdown", address.net.shutdown()).await;
    a.net.set_peer(NodeId(2), &address.address);
    eventually("the first try has failed", || a.error(2).contains("refused")).await;
    let error = a.call(NodeId(2), "echo").await.unwrap_err();
    assert!(matches!(&error, CallError::NotSent(why) if why.contains(&address.address)), "{error}");
}

#[tokio::test]
async fn an_answer_is_lost() {
    let (mut a, b) = pair().await;
    let hasty = a.net.call(b.id, Lane::Main, "slow".into(), Duration::from_millis(10));
    assert!(matches!(soon("patience", hasty).await, Err(CallError::Lost(why)) if why.contains("10 ms")));
    let slow = a.net.call(b.id, Lane::Main, "slow".into(), PATIENCE);
    eventually("both calls run", || b.service.calls_running.load(Ordering::SeqCst) == 2).await;
    soon("shutdown", b.net.shutdown()).await;
    assert!(matches!(soon("the end", slow).await, Err(CallError::Lost(_))));
    a.stream(false, b.id).await;
}

#[tokio::test]
async fn a_panic_in_a_call_costs_only_its_answer() {
    let (a, b) = pair().await;
    let panic = a.net.call(b.id, Lane::Main, "panic".into(), Duration::from_millis(200));
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
    assert!(matches!(soon("patience", panic).await, Err(CallError::Lost(_))));
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
}

#[tokio::test]
async fn a_call_goes_on_without_its_caller() {
    let (a, b) = pair().await;
    drop(a.net.call(b.id, Lane::Main, "slow".into(), PATIENCE));
    eventually("the call runs", || b.service.calls_running.load(Ordering::SeqCst) == 1).await;
    soon("shutdown", a.net.shutdown()).await;
    b.service.gate.add_permits(1);
    eventually("the call ends", || b.service.calls_running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(b.service.gate.available_permits(), 0, "it took its permit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_closes_everything() {
    let (mut a, b) = pair().await;
    let slow = a.net.call(b.id, Lane::Main, "slow".into(), PATIENCE);
    eventually("the call runs", || b.service.calls_running.load(Ordering::SeqCst) == 1).await;
    let other = b.net.clone();
    let twice = tokio::spawn(async move { other.shutdown().await });
    soon("shutdown", b.net.shutdown()).await;
    soon("the other shutdown", twice).await.unwrap();
    assert_eq!(b.service.calls_running.load(Ordering::SeqCst), 0, "no call runs on");
    assert!(matches!(soon("the call", slow).await, Err(CallError::Lost(_))));
    a.stream(false, b.id).await;
    assert!(matches!(b.call(a.id, "echo").await, Err(CallError::NotSent(why)) if why.contains("going down")));
    b.net.set_peer(NodeId(3), "127.0.0.1:1");
    assert_eq!(b.net.peers().len(), 1);
    // The port is free, and what was dropped is too.
    let listener = tokio::net::TcpListener::bind(&b.address).await.unwrap();
    drop(listener);
    let (weak, address) = (std::sync::Arc::downgrade(&a.service), a.address.clone());
    drop((a, b));
    eventually("a dropped transport lets its service go", || weak.strong_count() == 0).await;
    tokio::net::TcpListener::bind(&address).await.unwrap();
}

#[tokio::test]
async fn an_identity_appears_later() {
    let blank = Hello { address: "b".into(), ..Hello::default() };
    let (mut a, b) = (node(1).await, node_at("127.0.0.1:0", blank.clone(), Config::default()).await);
    // A blank node can be called once, and is not yet node 2.
    let (theirs, answer) = call_once(&b.address, hello(1), "who".into(), PATIENCE).await.unwrap();
    assert_eq!((theirs, &answer[..]), (blank, &b"1 10.0.0.1:26257"[..]));
    a.net.set_peer(NodeId(2), &b.address);
    eventually("it is refused", || a.error(2).contains("not node 2")).await;
    b.service.set_hello(hello(2));
    a.stream(true, NodeId(2)).await;
}

#[tokio::test]
async fn one_call_to_an_address() {
    let b = node(2).await;
    let tool = Hello::default();
    let (theirs, answer) = call_once(&b.address, tool.clone(), "echo".into(), PATIENCE).await.unwrap();
    assert_eq!((theirs, &answer[..]), (hello(2), &b"echo"[..]));
    let refused = call_once(&b.address, tool.clone(), "no".into(), PATIENCE).await;
    assert_eq!(refused.unwrap_err(), CallError::Refused("will not do".into()));
    let slow = call_once(&b.address, tool.clone(), "slow".into(), Duration::from_millis(50)).await;
    assert!(matches!(slow, Err(CallError::Lost(_))), "{slow:?}");
    let stranger = Hello { cluster: 0xbad, ..tool.clone() };
    let refused = call_once(&b.address, stranger, "echo".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, CallError::NotSent(why) if why.contains("another cluster")), "{refused}");
    soon("shutdown", b.net.shutdown()).await;
    let dead = call_once(&b.address, tool, "echo".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(&dead, CallError::NotSent(why) if why.contains(&b.address)), "{dead}");
}
