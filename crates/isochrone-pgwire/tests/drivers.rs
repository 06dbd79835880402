//! A driver that others wrote (tokio-postgres) and a codec that others wrote (the pgwire crate) understand us.
#![allow(missing_docs, reason = "a test")]

mod fake;

use bytes::{Bytes, BytesMut};
use fake::*;
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use isochrone_pgwire::Config;
use pgwire::messages::{DecodeContext, PgWireBackendMessage, ProtocolVersion};
use tokio_postgres::types::Type;
use tokio_postgres::{Client as Driver, NoTls, SimpleQueryMessage};

async fn driver(server: &Running) -> Driver {
    let config = format!("host=127.0.0.1 port={} user=root dbname=isochrone", server.addr.port());
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_driver_works() {
    let server = start(Config::default()).await;
    let c = driver(&server).await;
    let one = c.prepare("select 1").await.unwrap();
    assert_eq!(c.query_one(&one, &[]).await.unwrap().get::<_, i32>(0), 1);
    let types = [Type::INT8, Type::TEXT, Type::BOOL, Type::FLOAT8, Type::BYTEA];
    let echo = c.prepare_typed("echo", &types).await.unwrap();
    let row = c.query_one(&echo, &[&-5i64, &"grüße", &Some(true), &1.5f64, &None::<&[u8]>]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1), row.get::<_, bool>(2)), (-5, "grüße", true));
    assert_eq!((row.get::<_, f64>(3), row.get::<_, Option<&[u8]>>(4)), (1.5, None));
    // A pipeline, with an error in its middle.
    let fail = c.prepare("fail").await.unwrap();
    let (a, b, d) = tokio::join!(c.query(&one, &[]), c.query(&fail, &[]), c.query(&one, &[]));
    assert_eq!(a.unwrap().len() + d.unwrap().len(), 2);
    assert_eq!(b.unwrap_err().code().unwrap().code(), "22012");
    let rows = c.prepare("rows 1000").await.unwrap();
    assert_eq!(c.query(&rows, &[]).await.unwrap().len(), 1000);
    let messages = c.simple_query("select 3; notice x; rows 2").await.unwrap();
    assert_eq!(messages.iter().filter(|m| matches!(m, SimpleQueryMessage::Row(_))).count(), 3);
}

#[tokio::test]
async fn a_driver_copies() {
    let server = start(Config::default()).await;
    let c = driver(&server).await;
    let sink = c.copy_in::<_, Bytes>("copyin").await.unwrap();
    pin_mut!(sink);
    for _ in 0..1000 {
        sink.send(Bytes::from_static(b"1\tone\n")).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 1000);
    // An error in the middle, while the driver still sends.
    let sink = c.copy_in::<_, Bytes>("copyin").await.unwrap();
    pin_mut!(sink);
    for _ in 0..1000 {
        if sink.send(Bytes::from_static(b"bad\n")).await.is_err() {
            break;
        }
    }
    assert_eq!(sink.finish().await.unwrap_err().code().unwrap().code(), "22P04");
    // Dropped half-way: the driver sends CopyFail.
    drop(c.copy_in::<_, Bytes>("copyin").await.unwrap());
    let out: Vec<Bytes> = c.copy_out("copyout 3000").await.unwrap().try_collect().await.unwrap();
    assert_eq!(out.concat().split(|b| *b == b'\n').count(), 3001);
    let cancel = c.cancel_token();
    let (waited, _) = tokio::join!(c.simple_query("wait"), async {
        server.world.waiting.notified().await;
        cancel.cancel_query(NoTls).await.unwrap();
    });
    assert_eq!(waited.unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test]
async fn another_codec_reads_the_same() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let everything = [
        parse("", "echo", &[23, 25]),
        describe('S', ""),
        bind("", "", &[], &[Some(b"1"), None], &[1]),
        describe('P', ""),
        execute("", 0),
        close('S', ""),
        parse("", "rows 3", &[]),
        bind("", "", &[], &[], &[]),
        execute("", 1),
        parse("", "", &[]),
        bind("", "", &[], &[], &[]),
        describe('P', ""),
        execute("", 0),
        parse("", "nonsense", &[]),
        sync(),
        query("copyout 1; notice n; set a b; copyin"),
        framed(b'c', b""),
    ]
    .concat();
    c.send(&everything).await;
    let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
    context.awaiting_frontend_ssl = false;
    context.awaiting_frontend_startup = false;
    let mut ready = 0;
    let mut seen = Vec::new();
    while ready < 2 {
        let (tag, body) = c.message().await.expect("an open connection");
        let mut bytes = BytesMut::from(framed(tag, &body).as_slice());
        let message =
            PgWireBackendMessage::decode(&mut bytes, &context).expect("well formed").expect("complete");
        assert!(bytes.is_empty(), "{message:?} leaves bytes");
        // It must also write what we wrote.
        let mut again = BytesMut::new();
        message.encode(&mut again).expect("encodes");
        assert_eq!(again[..], framed(tag, &body)[..], "{message:?}");
        ready += usize::from(tag == b'Z');
        seen.push(tag as char);
    }
    assert_eq!(seen.iter().collect::<String>(), "1tT2TDC312Ds12nIEZHdcCNCCGCSZ");
}
