//! COPY in and out, by both ways in.

use super::*;

#[tokio::test]
async fn in_and_out() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, v text, n numeric(6,2) default 1)").await;
    let data = b"1\ta\\tb\t1.5\n2\t\\N\t\\N\n3\t\\\\x\t3\n";
    for piece in [1, 7, 1000] {
        c.ok("truncate t").await;
        assert_eq!(c.copy("copy t from stdin", data, piece).await, "COPY 3");
        assert_eq!(c.rows("select * from t order by id").await, ["1|a\tb|1.50", "2|∅|∅", "3|\\x|3.00"]);
    }
    assert_eq!(c.run("copy t to stdout").await, "1\ta\\tb\t1.50\n2\t\\N\t\\N\n3\t\\\\x\t3.00\nCOPY 3\n");
    assert_eq!(
        c.run("copy (select v, id from t where id < 3 order by id desc) to stdout with (format csv, header)")
            .await,
        "v,id\n,2\na\tb,1\nCOPY 2\n"
    );
    assert_eq!(c.copy("copy t (v, id) from stdin csv header", b"v,id\n\"q,\"\"\n\",9\n", 3).await, "COPY 1");
    assert_eq!(c.rows("select * from t where id = 9").await, ["9|q,\"", "|1.00"]);
}

#[tokio::test]
async fn errors_say_where() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, v text not null); insert into t values (5, 'x')").await;
    for (data, code, place) in [
        (&b"1\ta\nx\tb\n"[..], "22P02", "COPY t, line 2, column id: \\\"x\\\""),
        (b"1\ta\n2\n", "22P04", "COPY t, line 2"),
        (b"1\ta\tb\n", "22P04", "COPY t, line 1"),
        (b"1\ta\n1\tb\n", "23505", "Key (id)=(1) already exists."),
        (b"5\ta\n", "23505", "Key (id)=(5) already exists."),
        (b"1\t\\N\n", "23502", "COPY t, line 1"),
        (b"1\t\xff\n", "22021", "COPY t, line 1"),
    ] {
        let out = c.copy("copy t from stdin", data, 4).await;
        assert!(out.contains(code) && out.contains(place), "{data:?}\n{out}");
        assert_eq!(c.rows("select id from t").await, ["5"]);
    }
    assert!(c.run("copy t from '/etc/passwd'").await.contains("0A000"));
    assert!(c.run("copy nope from stdin").await.contains("42P01"));
    assert!(c.run("copy t (nope) from stdin").await.contains("42703"));
}

/// What `pgbench -i` does, at a size that goes in bulk.
#[tokio::test]
async fn a_load_as_pgbench_does_it() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table acc (aid int not null, bid int, abalance int, filler char(84)) with (fillfactor=100)")
        .await;
    c.ok("begin; truncate table acc, acc").await;
    let mut data = String::new();
    for i in 1..=20_000 {
        data.push_str(&format!("{i}\t{}\t0\t\n", i % 10));
    }
    assert_eq!(c.copy("copy acc from stdin with (freeze on)", data.as_bytes(), 8192).await, "COPY 20000");
    c.ok("commit").await;
    c.ok("vacuum analyze acc").await;
    c.ok("alter table acc add primary key (aid)").await;
    assert_eq!(
        c.rows("select count(*), min(aid), max(aid), sum(bid) from acc").await,
        ["20000|1|20000|90000"]
    );
    assert_eq!(c.rows("select bid from acc where aid = 12345").await, ["5"]);
    c.ok("update acc set abalance = abalance + 7 where aid = 12345").await;
    assert_eq!(c.rows("select abalance from acc where aid = 12345").await, ["7"]);
    // Nothing of it shows before the commit, nor after a rollback.
    let mut other = Client::new(&db).await;
    c.ok("begin; create table b (id int primary key, v int, unique (v))").await;
    let rows: String = (1..=12_000).map(|i| format!("{i}\t{}\n", 50_000 - i)).collect();
    assert_eq!(c.copy("copy b from stdin", rows.as_bytes(), 8192).await, "COPY 12000");
    assert!(other.run("select * from b").await.contains("42P01"));
    c.ok("rollback").await;
    assert!(c.run("select * from b").await.contains("42P01"));
    c.ok("begin; create table b (id int primary key, v int, unique (v))").await;
    assert_eq!(c.copy("copy b from stdin", rows.as_bytes(), 8192).await, "COPY 12000");
    c.ok("commit").await;
    assert_eq!(other.rows("select id from b where v = 49000").await, ["1000"]);
    // A duplicate is found across batches.
    c.ok("begin; truncate b").await;
    let twice = format!("{rows}7\t1\n");
    let out = c.copy("copy b from stdin", twice.as_bytes(), 8192).await;
    assert!(out.contains("23505") && out.contains("Key (id)=(7)"), "{out}");
    c.ok("rollback").await;
}

#[tokio::test]
async fn defaults_and_checks() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id serial primary key, v int check (v > 0), at text default upper('now'))").await;
    assert_eq!(c.copy("copy t (v) from stdin", b"1\n2\n", 2).await, "COPY 2");
    assert_eq!(c.rows("select * from t order by id").await, ["1|1|NOW", "2|2|NOW"]);
    assert!(c.copy("copy t (v) from stdin", b"-1\n", 2).await.contains("23514"));
    c.ok("create table s (id serial primary key, v int)").await;
    assert_eq!(c.copy("copy s (v) from stdin", b"7\n8\n", 2).await, "COPY 2");
    assert_eq!(c.rows("select * from s order by id").await, ["1|7", "2|8"]);
}
