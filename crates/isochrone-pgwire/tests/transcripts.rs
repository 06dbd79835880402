//! What goes over the wire, message by message, against a database that does what its statements say.
#![allow(missing_docs, reason = "a test")]

mod fake;

use fake::*;
use isochrone_pgwire::Config;
use std::time::Duration;

const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

#[tokio::test]
async fn login_and_negotiation() {
    let server = start(Config::default()).await;
    let mut c = Client::connect(server.addr).await;
    c.send(&GSS).await;
    assert_eq!(c.byte().await, b'N');
    c.send(&SSL).await;
    assert_eq!(c.byte().await, b'N');
    assert_eq!(
        c.login("isochrone").await,
        ["R 0", "S server_version 15.0", "S client_encoding UTF8", "K", "Z I"]
    );
    assert!(c.process_id > 0);

    let mut c = Client::connect(server.addr).await;
    c.send(&SSL).await;
    assert_eq!(c.byte().await, b'N');
    assert_eq!(c.ask(&SSL).await, ["E FATAL 08P01 encryption was asked for twice", "closed"]);

    let mut c = Client::connect(server.addr).await;
    let newer = startup((3 << 16) | 2, &[("user", "root"), ("database", "isochrone"), ("_pq_.x", "1")]);
    assert_eq!(c.ask(&newer).await[..2], ["v 196608 _pq_.x ", "R 0"]);

    let mut c = Client::connect(server.addr).await;
    assert_eq!(
        c.login("other").await,
        [
            "E FATAL 3D000 database \"other\" does not exist [HThe database of this server is named \"isochrone\".]",
            "closed"
        ]
    );
    let mut c = Client::connect(server.addr).await;
    let refused = c.ask(&startup(3 << 16, &[("user", "nobody"), ("database", "isochrone")])).await;
    assert_eq!(refused, ["E FATAL 28000 role \"nobody\" does not exist", "closed"]);

    let mut c = Client::connect(server.addr).await;
    assert_eq!(
        c.ask(b"GET / HTTP/1.1\r\n\r\n").await,
        ["E FATAL 08P01 invalid length of startup packet: 1195725856", "closed"]
    );
}

#[tokio::test]
async fn simple_queries() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    assert_eq!(c.ask(&query("select 7")).await, ["T ?column?:23:0", "D 7", "C SELECT 1", "Z I"]);
    assert_eq!(
        c.ask(&query("select 1; again 7")).await,
        ["T ?column?:23:0", "D 1", "C SELECT 1", "T ?column?:23:0", "D 7", "C SELECT 1", "Z I"],
        "a statement that was run again"
    );
    assert_eq!(c.ask(&query(" ; ")).await, ["I", "Z I"]);
    assert_eq!(
        c.ask(&query("begin; notice hello; set a b; rows 2")).await,
        [
            "C BEGIN",
            "N NOTICE 00000 hello",
            "C NOTICE",
            "C SET",
            "T i:23:0 t:25:0",
            "D 0 row 0",
            "D 1 row 1",
            "C SELECT 2",
            "S a b",
            "Z T"
        ]
    );
    assert_eq!(
        c.ask(&query("select 1; fail; select 2")).await,
        ["T ?column?:23:0", "D 1", "C SELECT 1", "E ERROR 22012 division by zero [Hdo not]", "Z E"]
    );
    assert_eq!(c.ask(&query("commit")).await, ["C ROLLBACK", "Z I"]);
    assert_eq!(
        c.ask(&query("select 1; nonsense x")).await,
        ["E ERROR 42601 syntax error at or near \"nonsense\" [Dx] [P1]", "Z I"]
    );
    assert_eq!(
        c.ask(&framed(b'Q', b"select \xff\0")).await,
        ["E ERROR 22021 invalid byte sequence for encoding \"UTF8\": 0xff", "Z I"]
    );
    assert_eq!(
        c.ask(&framed(b'Q', b"sel\0ect\0")).await,
        ["E ERROR 22021 invalid byte sequence for encoding \"UTF8\": 0x00", "Z I"]
    );
    assert_eq!(c.ask(&framed(b'Q', b"select 1")).await, ["E ERROR 08P01 invalid string in message", "Z I"]);
    assert_eq!(
        c.ask(&framed(b'F', b"xyz")).await,
        ["E ERROR 0A000 the function call message is not supported", "Z I"]
    );
    assert_eq!(c.ask(&framed(b'X', b"")).await, ["closed"]);
}

#[tokio::test]
async fn extended_queries() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    // Named statement, text and binary, NULL, each kind of format list.
    let prepare = [parse("s", "echo", &[23, 25]), describe('S', "s"), sync()].concat();
    assert_eq!(c.ask(&prepare).await, ["1", "t 23 25", "T p:23:0 p:25:0", "Z I"]);
    let run = |formats: &[i16], values: &[Option<&[u8]>], results: &[i16]| {
        [bind("", "s", formats, values, results), describe('P', ""), execute("", 0), sync()].concat()
    };
    assert_eq!(
        c.ask(&run(&[], &[Some(b"5"), None], &[])).await,
        ["2", "T p:23:0 p:25:0", "D 5 NULL", "C SELECT 1", "Z I"]
    );
    assert_eq!(
        c.ask(&run(&[1], &[Some(&[0, 0, 0, 9]), Some(b"x")], &[1])).await,
        ["2", "T p:23:1 p:25:1", "D \\x00\\x00\\x00\\t x", "C SELECT 1", "Z I"]
    );
    assert_eq!(
        c.ask(&run(&[1, 0], &[Some(&[0, 0, 0, 9]), Some(b"x")], &[0, 1])).await,
        ["2", "T p:23:0 p:25:1", "D 9 x", "C SELECT 1", "Z I"]
    );
    let one = |bytes: Vec<u8>| [bytes, sync()].concat();
    for (bytes, error) in [
        (
            run(&[], &[], &[]),
            "08P01 bind message supplies 0 parameters, but prepared statement \"s\" requires 2",
        ),
        (run(&[0, 0, 0], &[None, None], &[]), "08P01 bind message has 3 parameter formats but 2 parameters"),
        (
            run(&[], &[None, None], &[0, 0, 0]),
            "08P01 bind message has 3 result formats but query has 2 columns",
        ),
        (run(&[2], &[None, None], &[]), "22023 unsupported format code: 2"),
        (run(&[], &[None, Some(b"a\0b")], &[]), "22021 invalid byte sequence for encoding \"UTF8\": 0x00"),
        (run(&[], &[None, Some(b"a\xc3")], &[]), "22021 invalid byte sequence for encoding \"UTF8\": 0xc3"),
        (one(bind("", "none", &[], &[], &[])), "26000 prepared statement \"none\" does not exist"),
        (one(describe('S', "")), "26000 unnamed prepared statement does not exist"),
        (one(execute("none", 0)), "34000 portal \"none\" does not exist"),
        (one(describe('X', "")), "08P01 invalid DESCRIBE message subtype 88"),
        (one(parse("s", "select 1", &[])), "42P05 prepared statement \"s\" already exists"),
        (one(framed(b'B', b"\0")), "08P01 invalid string in message"),
        (one(framed(b'B', b"\0\0\0\0\0\x01\0\0\0\x63")), "08P01 insufficient data left in message"),
        (one(framed(b'B', b"\0s\0\0\0\0\x01\xff\xff\xff\xf0\0\0")), "08P01 invalid message format"),
        (one(framed(b'P', b"\0select\0\xff\xff")), "08P01 insufficient data left in message"),
        (one(framed(b'E', b"\0\0\0\0\0x")), "08P01 invalid message format"),
        (one(framed(b'C', b"")), "08P01 insufficient data left in message"),
    ] {
        assert_eq!(c.ask(&bytes).await, [format!("E ERROR {error}"), "Z I".to_owned()]);
    }
    assert_eq!(c.ask(&run(&[], &[Some(b"x"), None], &[])).await.len(), 2);
    // Row limits, and portals that end with their transaction.
    let limited = [
        query("begin"),
        parse("", "rows 5", &[]),
        bind("p", "", &[], &[], &[]),
        execute("p", 2),
        execute("p", 2),
        sync(),
    ]
    .concat();
    c.send(&limited).await;
    assert_eq!(c.until_ready().await, ["C BEGIN", "Z T"]);
    assert_eq!(
        c.until_ready().await,
        ["1", "2", "D 0 row 0", "D 1 row 1", "s", "D 2 row 2", "D 3 NULL", "s", "Z T"]
    );
    assert_eq!(
        c.ask(&one(bind("p", "s", &[], &[], &[]))).await,
        ["E ERROR 42P03 portal \"p\" already exists", "Z E"]
    );
    assert_eq!(c.ask(&query("commit")).await, ["C ROLLBACK", "Z I"]);
    assert_eq!(c.ask(&one(execute("p", 0))).await, ["E ERROR 34000 portal \"p\" does not exist", "Z I"]);
    // Everything is skipped after an error, Query too; what is before the error is answered.
    let skipping = [
        parse("t", "select 1", &[]),
        parse("", "nonsense", &[]),
        parse("u", "select 2", &[]),
        query("select 3"),
        sync(),
    ];
    assert_eq!(
        c.ask(&skipping.concat()).await,
        ["1", "E ERROR 42601 syntax error at or near \"nonsense\" [D] [P1]", "Z I"]
    );
    let after =
        [close('S', "s"), close('S', "s"), close('P', "x"), describe('S', "t"), describe('S', "u"), sync()];
    assert_eq!(
        c.ask(&after.concat()).await,
        [
            "3",
            "3",
            "3",
            "t ",
            "T ?column?:23:0",
            "E ERROR 26000 prepared statement \"u\" does not exist",
            "Z I"
        ]
    );
    let empty = [parse("", "", &[]), bind("", "", &[], &[], &[]), describe('P', ""), execute("", 0), sync()];
    assert_eq!(c.ask(&empty.concat()).await, ["1", "2", "n", "I", "Z I"]);
    let late = [parse("", "failsync", &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()];
    assert_eq!(
        c.ask(&late.concat()).await,
        ["1", "2", "C FAILSYNC", "E ERROR 40001 could not serialize access", "Z I"]
    );
    // A simple query ends the unnamed statement.
    c.ask(&query("select 1")).await;
    assert_eq!(c.ask(&one(describe('S', ""))).await.len(), 2);
}

#[tokio::test]
async fn flush_answers_without_ready() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    c.send(&[parse("", "select 4", &[]), framed(b'H', b"")].concat()).await;
    assert_eq!(c.line().await, "1");
    c.send(&[bind("", "", &[], &[], &[]), execute("", 0), framed(b'H', b"")].concat()).await;
    assert_eq!([c.line().await, c.line().await, c.line().await], ["2", "D 4", "C SELECT 1"]);
    assert_eq!(c.ask(&sync()).await, ["Z I"]);
}

#[tokio::test]
async fn copy_in_both_protocols() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let data = |d: &[u8]| framed(b'd', d);
    c.send(&query("copyin; select 1")).await;
    assert_eq!(c.line().await, "G 2");
    let rest = [data(b"a\tb\nc"), data(b"\td\n"), sync(), framed(b'H', b""), framed(b'c', b"")].concat();
    assert_eq!(c.ask(&rest).await, ["C COPY 2", "T ?column?:23:0", "D 1", "C SELECT 1", "Z I"]);
    // An error in the middle: the rest of the data is swallowed.
    let bad = [query("copyin; select 1"), data(b"bad"), data(b"more"), framed(b'c', b"")].concat();
    assert_eq!(c.ask(&bad).await, ["G 2", "E ERROR 22P04 missing data for column \"b\"", "Z I"]);
    assert_eq!(c.ask(&query("select 2")).await.len(), 4);
    let failed = [query("copyin"), data(b"x"), framed(b'f', b"changed my mind\0")].concat();
    assert_eq!(c.ask(&failed).await, ["G 2", "E ERROR 57014 COPY from stdin failed: changed my mind", "Z I"]);
    let odd = [query("copyin"), query("select 1")].concat();
    assert_eq!(
        c.ask(&odd).await,
        ["G 2", "E ERROR 08P01 unexpected message type 0x51 during COPY from stdin", "Z I"]
    );
    // Extended, as drivers do it: Sync behind Execute, ignored while copying.
    let begin = [parse("", "copyin", &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()].concat();
    c.send(&begin).await;
    assert_eq!([c.line().await, c.line().await, c.line().await], ["1", "2", "G 2"]);
    assert_eq!(c.ask(&[data(b"x\n"), framed(b'c', b""), sync()].concat()).await, ["C COPY 1", "Z I"]);
    c.send(&begin).await;
    assert_eq!([c.line().await, c.line().await, c.line().await], ["1", "2", "G 2"]);
    c.send(&data(b"bad")).await;
    assert_eq!(c.line().await, "E ERROR 22P04 missing data for column \"b\"");
    assert_eq!(c.ask(&[data(b"x\n"), data(b"x\n"), framed(b'c', b""), sync()].concat()).await, ["Z I"]);
    // Out.
    assert_eq!(
        c.ask(&query("copyout 2")).await,
        ["H 1", "d line 0\\n", "d line 1\\n", "c", "C COPY 2", "Z I"]
    );
}

#[tokio::test]
async fn cancel_needs_the_key() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    c.send(&query("wait")).await;
    server.world.waiting.notified().await;
    for (secret, hits) in [(c.secret ^ 1, false), (c.secret, true)] {
        let mut other = Client::connect(server.addr).await;
        let mut request = vec![0, 0, 0, 16, 4, 210, 22, 46];
        request.extend_from_slice(&c.process_id.to_be_bytes());
        request.extend_from_slice(&secret.to_be_bytes());
        other.send(&request).await;
        assert_eq!(other.line().await, "closed");
        if hits {
            let lines = c.until_ready().await;
            assert_eq!(lines, ["E ERROR 57014 canceling statement due to user request", "Z I"]);
        }
    }
}

#[tokio::test]
async fn bounds_of_frames() {
    let server = start(Config::default()).await;
    let mut bystander = server.client().await;
    for (bytes, error) in [
        (vec![b'?', 0, 0, 0, 4], "08P01 invalid frontend message type 63"),
        (vec![b'Q', 0, 0, 0, 3], "08P01 invalid message length 3"),
        (vec![b'Q', 255, 255, 255, 255], "08P01 invalid message length -1"),
        (
            vec![b'E', 0, 0, 64, 0],
            "08P01 invalid message length: 16380 bytes in a message of type 69, at most 10000 allowed",
        ),
        (
            vec![b'Q', 0x7f, 255, 255, 255],
            "54000 invalid message length: 2147483643 bytes in a message of type 81, at most 17825792 allowed",
        ),
        (framed(b'p', b"secret\0"), "08P01 unexpected message type 0x70"),
    ] {
        let mut c = server.client().await;
        assert_eq!(c.ask(&bytes).await, [format!("E FATAL {error}"), "closed".to_owned()]);
        assert_eq!(bystander.ask(&query("select 1")).await.len(), 4);
    }
    // A statement past its bound, in a frame within its own.
    let mut c = server.client().await;
    let long = "x".repeat((16 << 20) + 1);
    assert_eq!(
        c.ask(&query(&long)).await,
        ["E ERROR 54000 a statement of 16777217 bytes is too long: at most 16777216 are possible", "Z I"]
    );
    assert_eq!(c.ask(&query("select 1")).await.len(), 4);
}

#[tokio::test]
async fn a_panic_ends_one_session() {
    let server = start(Config::default()).await;
    let mut bystander = server.client().await;
    let mut c = server.client().await;
    assert_eq!(
        c.ask(&query("select 1; panic")).await,
        ["E FATAL XX000 internal error: the session is closed", "closed"]
    );
    assert_eq!(bystander.ask(&query("select 1")).await.len(), 4);
}

#[tokio::test]
async fn too_many_connections() {
    let server = start(Config { connections_max: 2, logins_max: 1, ..Config::default() }).await;
    let mut a = server.client().await;
    let b = server.client().await;
    let mut c = Client::connect(server.addr).await;
    assert_eq!(c.login("isochrone").await, ["E FATAL 53300 sorry, too many clients already", "closed"]);
    drop(b);
    // The server notices when it reads the end of b; until then a login is refused.
    loop {
        let mut c = Client::connect(server.addr).await;
        if c.login("isochrone").await.last().is_some_and(|l| l == "Z I") {
            break;
        }
    }
    assert_eq!(a.ask(&query("select 1")).await.len(), 4);
}

#[tokio::test]
async fn a_silent_login_times_out() {
    let server = start(Config { login_timeout: Duration::from_millis(50), ..Config::default() }).await;
    let mut c = Client::connect(server.addr).await;
    assert_eq!(c.until_ready().await, ["E FATAL 28000 the login took too long", "closed"]);
}

#[tokio::test]
async fn drains() {
    let mut server = start(Config { drain: Duration::from_secs(20), ..Config::default() }).await;
    let mut idle = server.client().await;
    let mut block = server.client().await;
    block.ask(&query("begin")).await;
    let mut busy = server.client().await;
    busy.send(&query("gate")).await;
    server.world.waiting.notified().await;
    server.stop();
    let end = "E FATAL 57P01 terminating connection due to administrator command";
    assert_eq!(idle.until_ready().await, [end, "closed"]);
    assert_eq!(block.ask(&query("select 1")).await[3], "Z T");
    assert_eq!(block.ask(&query("commit")).await, ["C COMMIT", "Z I"]);
    assert_eq!(block.until_ready().await, [end, "closed"]);
    server.world.gate.notify_one();
    assert_eq!(busy.until_ready().await, ["C GATE", "Z I"]);
    assert_eq!(busy.until_ready().await, [end, "closed"]);
    server.join().await;
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let mut server = start(Config { drain: Duration::from_millis(50), ..Config::default() }).await;
    let mut block = server.client().await;
    block.ask(&query("begin")).await;
    let mut waiting = server.client().await;
    waiting.send(&query("wait")).await;
    server.world.waiting.notified().await;
    let mut deaf = server.client().await;
    deaf.send(&query("gate")).await;
    server.world.waiting.notified().await;
    server.stop();
    assert_eq!(block.line().await, "E FATAL 57P01 terminating connection due to administrator command");
    assert_eq!(waiting.line().await, "E ERROR 57014 canceling statement due to user request");
    server.join().await;
    assert_eq!(deaf.until_ready().await, ["closed"]);
}

#[tokio::test]
async fn names_are_bounded() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let many: Vec<u8> = (0..8_192).flat_map(|i| parse(&format!("s{i}"), "select 1", &[])).collect();
    assert_eq!(c.ask(&[many, sync()].concat()).await.len(), 8_193);
    let more = [parse("one more", "select 1", &[]), sync()].concat();
    let refused = "E ERROR 54000 too many prepared statements: at most 8192 of 67108864 bytes are possible";
    assert_eq!(c.ask(&more).await, [refused, "Z I"]);
    assert_eq!(c.ask(&[close('S', "s7"), more.clone()].concat()).await, ["3", "1", "Z I"]);
    assert_eq!(c.ask(&more).await[0], "E ERROR 42P05 prepared statement \"one more\" already exists");
    let mut c = server.client().await;
    let long = format!("select {}", "x".repeat(15 << 20));
    for i in 0..4 {
        assert_eq!(c.ask(&[parse(&format!("s{i}"), &long, &[]), sync()].concat()).await, ["1", "Z I"]);
    }
    assert_eq!(c.ask(&[parse("s4", &long, &[]), sync()].concat()).await, [refused, "Z I"]);
    assert_eq!(c.ask(&[close('S', "s0"), parse("s4", &long, &[]), sync()].concat()).await, ["3", "1", "Z I"]);
}

#[tokio::test]
async fn deallocate_reaches_statements_of_the_protocol() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let prepare = |name: &str| [parse(name, "select 1", &[]), sync()].concat();
    let run =
        |text: &str| [parse("", text, &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()].concat();
    assert_eq!(c.ask(&prepare("a")).await, ["1", "Z I"]);
    assert_eq!(c.ask(&query("deallocate a;")).await, ["C DEALLOCATE", "Z I"]);
    assert_eq!(c.ask(&prepare("a")).await, ["1", "Z I"]);
    assert_eq!(c.ask(&run("deallocate \"a\"")).await, ["1", "2", "C DEALLOCATE", "Z I"]);
    let unknown = "E ERROR 26000 prepared statement \"a\" does not exist";
    assert_eq!(c.ask(&query("deallocate a")).await, [unknown, "Z I"]);
    for all in ["deallocate all", "discard all"] {
        assert_eq!(c.ask(&prepare("a")).await, ["1", "Z I"]);
        assert_eq!(c.ask(&query(all)).await, [format!("C {}", all.to_uppercase()), "Z I".to_owned()]);
    }
    // In a failed transaction the session has the word.
    assert_eq!(c.ask(&prepare("a")).await, ["1", "Z I"]);
    c.ask(&query("begin; fail")).await;
    assert!(c.ask(&query("deallocate a")).await[0].starts_with("E ERROR 25P02"));
}

#[tokio::test]
async fn a_session_knows_that_sync_follows() {
    let server = start(Config::default()).await;
    let mut c = server.client().await;
    let run = [bind("", "s", &[], &[], &[]), execute("", 0)].concat();
    let pipeline = [parse("s", "last", &[]), run.clone(), run.clone(), sync()].concat();
    assert_eq!(c.ask(&pipeline).await, ["1", "2", "C LAST false", "2", "C LAST true", "Z I"]);
    c.send(&[run, framed(b'H', b"")].concat()).await;
    assert_eq!([c.line().await, c.line().await], ["2", "C LAST false"]);
}
