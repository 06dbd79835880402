//! The real query layer behind the protocol, over a store in memory, seen through a driver that others wrote.
#![allow(missing_docs, reason = "a test")]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use isochrone_env::os::TokioTimer;
use isochrone_pgwire::{Config, Server, os_secrets};
use isochrone_sql::session::Database;
use isochrone_txn::fake::FakeStore;
use tokio::net::TcpListener;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

async fn start() -> SocketAddr {
    let env = isochrone_env::os::env(0).expect("entropy");
    let database = Database::new(Arc::new(FakeStore::new()), env, "isochrone");
    let server = Server::new(Config::default(), database, Arc::new(TokioTimer), os_secrets())
        .expect("a configuration");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound socket");
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    addr
}

async fn client(addr: SocketAddr) -> Client {
    let config =
        format!("host=127.0.0.1 port={} user=root dbname=isochrone application_name=test", addr.port());
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<&str>>> {
    let rows = messages.iter().filter_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i)).collect()),
        _ => None,
    });
    rows.collect()
}

#[tokio::test]
async fn a_constant_and_a_table() {
    let c = client(start().await).await;
    assert_eq!(c.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    assert_eq!(texts(&c.simple_query("SELECT 1; SELECT 'a'").await.unwrap()), [[Some("1")], [Some("a")]]);
    c.batch_execute("CREATE TABLE t (id int8 PRIMARY KEY, name text, x float8, ok bool, raw bytea)")
        .await
        .unwrap();
    let insert = c.prepare("INSERT INTO t VALUES ($1, $2, $3, $4, $5)").await.unwrap();
    let (name, raw) = ("grüße", &b"\x00\xff"[..]);
    assert_eq!(c.execute(&insert, &[&1i64, &name, &1.5f64, &true, &raw]).await.unwrap(), 1);
    let none = (None::<&str>, None::<f64>, None::<bool>, None::<&[u8]>);
    assert_eq!(c.execute(&insert, &[&2i64, &none.0, &none.1, &none.2, &none.3]).await.unwrap(), 1);
    // Binary, then text.
    let row = c.query_one("SELECT * FROM t WHERE id = $1", &[&1i64]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1), row.get::<_, f64>(2)), (1, name, 1.5));
    assert_eq!((row.get::<_, bool>(3), row.get::<_, &[u8]>(4)), (true, raw));
    let all = c.simple_query("SELECT * FROM t ORDER BY id").await.unwrap();
    assert_eq!(
        texts(&all),
        [
            [Some("1"), Some("grüße"), Some("1.5"), Some("t"), Some("\\x00ff")],
            [Some("2"), None, None, None, None]
        ]
    );
    // Errors carry their SQLSTATE, and the connection goes on.
    let twice = c.execute(&insert, &[&1i64, &none.0, &none.1, &none.2, &none.3]).await.unwrap_err();
    assert_eq!(twice.code().unwrap().code(), "23505");
    assert_eq!(c.query("SELECT nothing FROM t", &[]).await.unwrap_err().code().unwrap().code(), "42703");
    assert_eq!(c.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 2);
}

#[tokio::test]
async fn transactions_and_portals() {
    let addr = start().await;
    let mut c = client(addr).await;
    c.batch_execute("CREATE TABLE t (id int4 PRIMARY KEY)").await.unwrap();
    let txn = c.transaction().await.unwrap();
    let n = txn.execute("INSERT INTO t SELECT * FROM generate_series(1, 10)", &[]).await.unwrap();
    assert_eq!(n, 10);
    let portal = txn.bind("SELECT id FROM t ORDER BY id", &[]).await.unwrap();
    let ids = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|r| r.get::<_, i32>(0)).collect::<Vec<_>>();
    assert_eq!(ids(txn.query_portal(&portal, 4).await.unwrap()), [1, 2, 3, 4]);
    assert_eq!(ids(txn.query_portal(&portal, 0).await.unwrap()), [5, 6, 7, 8, 9, 10]);
    txn.rollback().await.unwrap();
    assert_eq!(c.query("SELECT * FROM t", &[]).await.unwrap().len(), 0);
    // A failed block answers 25P02 until it ends.
    c.batch_execute("BEGIN").await.unwrap();
    assert_eq!(c.query("SELECT 1/0", &[]).await.unwrap_err().code().unwrap().code(), "22012");
    assert_eq!(c.query("SELECT 1", &[]).await.unwrap_err().code().unwrap().code(), "25P02");
    c.batch_execute("ROLLBACK").await.unwrap();
    // Pipelined single statements commit one by one.
    let insert = c.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
    let all = futures_util::future::join_all((0..20).map(|_| c.execute(&insert, &[&7i32]))).await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 1);
}

#[tokio::test]
async fn copy_both_ways() {
    let c = client(start().await).await;
    c.batch_execute("CREATE TABLE t (id int4 PRIMARY KEY, name text)").await.unwrap();
    let sink = c.copy_in::<_, Bytes>("COPY t FROM STDIN").await.unwrap();
    pin_mut!(sink);
    for i in 0..2000 {
        sink.send(Bytes::from(format!("{i}\tname {i}\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 2000);
    let sink = c.copy_in::<_, Bytes>("COPY t FROM STDIN").await.unwrap();
    pin_mut!(sink);
    sink.send(Bytes::from_static(b"x\ty\n")).await.unwrap();
    assert_eq!(sink.finish().await.unwrap_err().code().unwrap().code(), "22P02");
    drop(c.copy_in::<_, Bytes>("COPY t FROM STDIN").await.unwrap());
    let out: Vec<Bytes> = c.copy_out("COPY t TO STDOUT").await.unwrap().try_collect().await.unwrap();
    let text = String::from_utf8(out.concat()).unwrap();
    assert_eq!(text.lines().count(), 2000);
    assert!(text.lines().any(|l| l == "1999\tname 1999"));
}

#[tokio::test]
async fn cancel_and_notices() {
    let addr = start().await;
    let (a, b) = (client(addr).await, client(addr).await);
    a.batch_execute("CREATE TABLE t (id int4 PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    a.batch_execute("BEGIN; UPDATE t SET id = id WHERE id = 1").await.unwrap();
    // b waits for a's row; the cancel is repeated because it may come before the statement begins.
    let cancel = b.cancel_token();
    let waiting = b.batch_execute("SELECT * FROM t WHERE id = 1 FOR UPDATE");
    pin_mut!(waiting);
    let canceled = loop {
        let again = tokio::time::sleep(std::time::Duration::from_millis(20));
        tokio::select! {
            biased;
            r = &mut waiting => break r,
            _ = again => cancel.cancel_query(NoTls).await.unwrap(),
        }
    };
    assert_eq!(canceled.unwrap_err().code().unwrap().code(), "57014");
    a.batch_execute("COMMIT").await.unwrap();
    assert_eq!(b.query("SELECT * FROM t", &[]).await.unwrap().len(), 1);
}
