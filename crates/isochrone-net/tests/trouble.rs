//! Peers that do not mean well, or cannot: wrong identities, broken bytes, silence, sockets that take nothing.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use isochrone_base::NodeId;
use isochrone_net::{CallError, Config, Hello, Lane, Network, call_once};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Time passes fast.
fn hasty() -> Config {
    Config {
        keepalive: Duration::from_millis(20),
        silence_max: Duration::from_millis(150),
        handshake_max: Duration::from_millis(200),
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        ..Config::default()
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn wrong_identities_are_refused_in_words() {
    let a = node(1).await;
    // Another cluster.
    let stranger = Hello { cluster: 0xbad, ..hello(2) };
    let b = node_at("127.0.0.1:0", stranger, Config::default()).await;
    a.net.set_peer(NodeId(2), &b.address);
    eventually("the cluster is refused", || a.error(2).contains("another cluster")).await;
    assert!(a.error(2).contains("refused by the other side") && a.error(2).contains("0bad"));
    // Another node.
    let c = node(4).await;
    a.net.set_peer(NodeId(3), &c.address);
    eventually("the node is refused", || a.error(3).contains("this is node 4, not node 3")).await;
    // The service's own words.
    c.service.refuse("not in the mood");
    a.net.set_peer(NodeId(4), &c.address);
    eventually("the service refuses", || a.error(4).contains("not in the mood")).await;
    // The dialler's service refuses.
    let (_d, mut d_service) = (node(5).await, node(6).await);
    d_service.service.refuse("nor am I");
    d_service.net.set_peer(NodeId(1), &a.address);
    eventually("the dialler refuses", || d_service.error(1).contains("nor am I")).await;
    assert!(d_service.seen.streams.try_recv().is_err(), "never connected");
}

#[tokio::test]
async fn an_acceptor_that_claims_another_name_is_not_used() {
    let (listener, address) = listener().await;
    let a = node_at("127.0.0.1:0", hello(1), hasty()).await;
    a.net.set_peer(NodeId(2), &address);
    let (mut socket, _) = raw_accept(&listener, 3).await;
    let (kind, _, why) = read_raw_told(&mut socket).await.unwrap();
    assert_eq!(kind, 2);
    assert!(String::from_utf8(why).unwrap().contains("node 2 was expected at this address, but node 3"));
    eventually("it is known why", || a.error(2).contains("but node 3 answers")).await;
}

#[tokio::test]
async fn a_wrong_join_address() {
    let a = node_at("127.0.0.1:0", hello(1), hasty()).await;
    // A web server.
    let (web, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = web.accept().await {
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    a.net.set_peer(NodeId(2), &address);
    eventually("it is seen", || a.error(2).contains("not an Isochrone node: it begins with \"HTTP/1.1\""))
        .await;
    let error = call_once(&address, hello(1), "x".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(&error, CallError::NotSent(why) if why.contains("not an Isochrone node")), "{error}");
    // A server that hangs up at once.
    let (silent, address) = listener().await;
    tokio::spawn(async move { while silent.accept().await.is_ok() {} });
    let error = call_once(&address, hello(1), "x".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(&error, CallError::NotSent(why) if why.contains("is it a cluster address?")), "{error}");
    // One that never says anything.
    let (_mute, address) = listener().await;
    a.net.set_peer(NodeId(3), &address);
    eventually("it is too slow", || a.error(3).contains("no handshake within 200 ms")).await;
    // No address at all.
    a.net.set_peer(NodeId(4), "no-port");
    eventually("it is not one", || !a.error(4).contains("yet")).await;
}

#[tokio::test]
async fn broken_bytes_end_only_their_stream() {
    let (a, b) = pair().await;
    let garbage = |seed: u32| -> Vec<u8> {
        (0..5_000u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 77) >> 13) as u8).collect()
    };
    let mut flipped = raw_frame(4, 0, b"message");
    *flipped.last_mut().unwrap() ^= 1;
    let oversized = (81u32 << 20).to_le_bytes().to_vec();
    let refusals = [
        // Before the handshake.
        (false, [PREAMBLE, &5_000u32.to_le_bytes(), &[0; 4]].concat(), "a frame of 5000 bytes"),
        (false, [PREAMBLE, &flipped].concat(), "wrong checksum"),
        (false, [PREAMBLE, &raw_frame(4, 0, b"too early")].concat(), "kind 4 in the wrong place"),
        (false, [PREAMBLE, &raw_frame(1, 0, &garbage(1)[..50])].concat(), "broken frame"),
        (false, [&b"ISO-NET\x02"[..], &raw_frame(1, 0, b"from the future")].concat(), "version 1"),
        (false, [PREAMBLE, &raw_hello(0xbad, 9, 0, 0)].concat(), "another cluster"),
        (false, [PREAMBLE, &raw_hello(CLUSTER, 9, 0, 7)].concat(), "this is node 2, not node 7"),
        // No words for somebody who does not speak the language.
        (false, b"GET / HTTP/1.1\r\n\r\n".to_vec(), ""),
        (false, garbage(2), ""),
        // After it.
        (true, flipped, ""),
        (true, oversized, ""),
        (true, garbage(3), ""),
        (true, raw_frame(9, 0, b"kind"), ""),
        (true, raw_frame(1, 0, b"hello again"), ""),
        (true, raw_frame(6, 1, b"an answer to nothing"), ""),
        (true, [&0u32.to_le_bytes()[..], &[0; 4]].concat(), ""),
    ];
    for (greeted, bytes, words) in refusals {
        let mut socket = match greeted {
            true => raw_dial(&b.address).await,
            false => TcpStream::connect(&b.address).await.unwrap(),
        };
        let _reset = socket.write_all(&bytes).await;
        if !words.is_empty() {
            raw_preamble(&mut socket).await;
            let (kind, _, text) = read_raw(&mut socket).await.unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(kind == 2 && text.contains(words), "{kind} {text}, not {words}");
        }
        assert_eq!(read_raw_told(&mut socket).await, None, "the stream is closed");
        assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
    }
    assert!(a.net.peers()[0].connected && b.net.peers()[0].connected, "others are unharmed");
}

#[tokio::test]
async fn messages_need_a_name() {
    let b = node(2).await;
    let mut socket = TcpStream::connect(&b.address).await.unwrap();
    socket.write_all(&[PREAMBLE, &raw_hello(CLUSTER, 0, 0, 0)].concat()).await.unwrap();
    raw_preamble(&mut socket).await;
    assert_eq!(read_raw(&mut socket).await.unwrap().0, 1);
    socket.write_all(&raw_frame(5, 1, b"echo")).await.unwrap();
    assert_eq!(read_raw_told(&mut socket).await, Some((6, 1, b"echo".to_vec())));
    socket.write_all(&raw_frame(4, 0, b"message")).await.unwrap();
    assert_eq!(read_raw_told(&mut socket).await, None);
}

#[tokio::test]
async fn half_open_clients_wait_for_nobody() {
    let config = Config { handshakes_max: 3, ..hasty() };
    let b = node_at("127.0.0.1:0", hello(2), config).await;
    let mut mute = Vec::new();
    for part in [&b""[..], b"ISO", PREAMBLE, &[PREAMBLE, b"\x20\0\0\0"].concat(), b"", b"", b""] {
        let mut socket = TcpStream::connect(&b.address).await.unwrap();
        socket.write_all(part).await.unwrap();
        mute.push(socket);
    }
    // Behind them in the queue, and served in the end.
    let answer = call_once(&b.address, hello(1), "echo".into(), PATIENCE).await.unwrap();
    assert_eq!(answer.1, "echo");
    for mut socket in mute {
        assert_eq!(soon("it is closed", socket.read(&mut [0; 8])).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn streams_are_bounded() {
    let config = Config { incoming_max: 2, ..Config::default() };
    let b = node_at("127.0.0.1:0", hello(2), config).await;
    let (first, _second) = (raw_dial(&b.address).await, raw_dial(&b.address).await);
    let refused = call_once(&b.address, hello(1), "echo".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, CallError::NotSent(why) if why.contains("too many streams")), "{refused}");
    drop(first);
    soon("there is room again", async {
        while call_once(&b.address, hello(1), "echo".into(), PATIENCE).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn silence_ends_a_stream_on_both_sides() {
    let (listener, address) = listener().await;
    let mut a = node_at("127.0.0.1:0", hello(1), hasty()).await;
    a.net.set_peer(NodeId(2), &address);
    let silent = raw_accept_both(&listener, 2).await;
    a.stream(true, NodeId(2)).await;
    let call = a.net.call(NodeId(2), Lane::Main, "x".into(), PATIENCE);
    a.stream(false, NodeId(2)).await;
    assert!(
        matches!(soon("the call", call).await, Err(CallError::Lost(why)) if why.contains("nothing heard"))
    );
    drop(silent);
    // Signs of life come meanwhile, until the node gives up.
    let mut socket = raw_dial(&a.address).await;
    let mut signs = 0;
    while let Some((kind, ..)) = read_raw(&mut socket).await {
        assert_eq!(kind, 3);
        signs += 1;
    }
    assert!(signs >= 2, "{signs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signs_of_life_keep_an_idle_stream() {
    let config = || Config { silence_max: Duration::from_millis(1_000), ..hasty() };
    let (mut a, b) =
        (node_at("127.0.0.1:0", hello(1), config()).await, node_at("127.0.0.1:0", hello(2), config()).await);
    a.joins(&b).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(a.seen.streams.try_recv().is_err(), "the stream is still the first");
    assert_eq!(a.call(b.id, "echo").await.unwrap(), "echo");
}

#[tokio::test]
async fn a_full_outbox_drops_and_says_so() {
    let (listener, address) = listener().await;
    let config = Config { outbox_bytes_max: 1 << 20, ..Config::default() };
    let mut a = node_at("127.0.0.1:0", hello(1), config).await;
    a.net.set_peer(NodeId(2), &address);
    let (main, bulk) = raw_accept_both(&listener, 2).await;
    a.stream(true, NodeId(2)).await;
    // Nobody reads: the kernel's buffers fill, then the outbox.
    let chunk = Bytes::from(vec![1; 100_000]);
    let before = a.net.call(NodeId(2), Lane::Main, "left".into(), PATIENCE);
    soon("the outbox is full", async {
        let mut refused = 0;
        while refused < 20 {
            match a.net.send(NodeId(2), chunk.clone()) {
                true => refused = 0,
                false => refused += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let full = soon("a call", a.net.call(NodeId(2), Lane::Main, chunk.clone(), PATIENCE)).await;
    assert_eq!(full, Err(CallError::NotSent("the outbox is full".into())));
    let dropped = a.net.peers()[0].dropped;
    assert!(dropped > 20, "{dropped}");
    // A small one that still fits, behind all that did not leave: nothing was done with it when the stream ends.
    let behind = a.net.call(NodeId(2), Lane::Main, "waits".into(), PATIENCE);
    // The bulk lane is another stream.
    let on_bulk = a.net.call(NodeId(2), Lane::Bulk, "bulk".into(), PATIENCE);
    let mut bulk = bulk;
    assert_eq!(read_raw_told(&mut bulk).await, Some((5, 1, b"bulk".to_vec())));
    bulk.write_all(&raw_frame(6, 1, b"answer")).await.unwrap();
    assert_eq!(soon("bulk", on_bulk).await.unwrap(), "answer");
    drop(main);
    assert!(matches!(soon("behind", behind).await, Err(CallError::NotSent(_))));
    assert!(matches!(soon("before", before).await, Err(CallError::Lost(_))));
    a.stream(false, NodeId(2)).await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (listener, address) = listener().await;
    let mut a = node_at("127.0.0.1:0", hello(1), hasty()).await;
    a.net.set_peer(NodeId(2), &address);
    let (mut main, _bulk) = raw_accept_both(&listener, 2).await;
    a.stream(true, NodeId(2)).await;
    for _ in 0..200 {
        a.net.send(NodeId(2), vec![1; 1 << 20].into());
    }
    // It says that it is there, and reads nothing.
    let alive = tokio::spawn(async move {
        while main.write_all(&raw_frame(3, 0, b"")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    a.stream(false, NodeId(2)).await;
    assert!(a.error(2).contains("nothing could be written"), "{}", a.error(2));
    soon("its socket is closed", alive).await.unwrap();
}

#[tokio::test]
async fn a_clogged_bulk_lane_does_not_hold_up_the_main_lane() {
    let (listener, address) = listener().await;
    let mut a = node(1).await;
    a.net.set_peer(NodeId(2), &address);
    let (mut main, _bulk) = raw_accept_both(&listener, 2).await;
    a.stream(true, NodeId(2)).await;
    let chunk = Bytes::from(vec![1; 4 << 20]);
    let calls: Vec<_> = (0..20).map(|_| a.net.call(NodeId(2), Lane::Bulk, chunk.clone(), PATIENCE)).collect();
    for i in 0..100u8 {
        assert!(a.net.send(NodeId(2), vec![i].into()));
        assert_eq!(read_raw_told(&mut main).await, Some((4, 0, vec![i])));
    }
    drop(calls);
}

#[tokio::test]
async fn an_answer_waits_for_room() {
    let config = Config { outbox_bytes_max: 300_000, ..Config::default() };
    let b = node_at("127.0.0.1:0", hello(2), config).await;
    let mut socket = raw_dial(&b.address).await;
    // A hundred answers of 100 kB each; more than the outbox and the kernel hold.
    let payload = vec![8; 100_000];
    let (mut reader, mut writer) = socket.split();
    let write = async {
        for i in 0..100u8 {
            writer.write_all(&raw_frame(5, i, &payload)).await.unwrap();
        }
    };
    soon("the calls are taken although no answer is read", write).await;
    let mut answers = 0;
    let read = async {
        while answers < 100 {
            let mut prefix = [0; 8];
            reader.read_exact(&mut prefix).await.unwrap();
            let mut body = vec![0; u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize];
            reader.read_exact(&mut body).await.unwrap();
            answers += usize::from(body[0] == 6 && body[2..] == payload);
        }
    };
    soon("every answer comes", read).await;
}
