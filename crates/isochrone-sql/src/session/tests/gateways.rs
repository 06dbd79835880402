//! Several gateways on one store: what one changes, the others see, and nobody commits on what has changed. Time is the
//! runtime's, and stands still while anybody has something to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isochrone_base::Bytes;
use isochrone_txn::fake::LEASE;

use super::*;
use crate::catalog::gateways::{FREEZE_FOR, TELL_WAIT_MAX};
use crate::session::LEASE_WAIT_MAX;

struct Cluster {
    stores: Vec<FakeStore>,
    gateways: Vec<Arc<Database>>,
}

impl Cluster {
    /// `n` nodes, of which the first `running` have a gateway.
    fn with(n: u32, running: usize) -> Cluster {
        let clock = Arc::new(TokioClock::new(1_700_000_000_000_000));
        let stores = FakeStore::cluster(n, clock, Arc::new(TokioTimer));
        let gateways = stores.iter().take(running).map(|s| database_on(s.clone())).collect();
        Cluster { stores, gateways }
    }

    fn new() -> Cluster {
        Cluster::with(2, 2)
    }

    async fn client(&self, node: usize) -> Client {
        Client::new(&self.gateways[node]).await
    }

    async fn two(&self) -> (Client, Client) {
        (self.client(0).await, self.client(1).await)
    }
}

async fn pause(d: Duration) {
    tokio::time::sleep(d).await;
}

#[expect(clippy::disallowed_methods, reason = "virtual time of a paused runtime")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// What the table says, and what its index says.
async fn same_by_index(c: &mut Client, table: &str, column: &str) {
    let all = c.rows(&format!("select id, {column} from {table} order by id")).await;
    for row in &all {
        let (id, n) = row.split_once('|').unwrap();
        if n != "∅" {
            let found = c.rows(&format!("select id from {table} where {column} = {n} order by id")).await;
            assert!(found.iter().any(|f| f == id), "row {row} is not in the index");
        }
    }
    let by_index = c.rows(&format!("select count(*) from {table} where {column} >= -1000000000")).await;
    let by_table =
        c.rows(&format!("select count({column}) from {table} where {column} + 0 >= -1000000000")).await;
    assert_eq!(by_index, by_table);
}

#[tokio::test(start_paused = true)]
async fn the_next_statement_elsewhere_sees_a_change() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int)").await;
    b.ok("insert into t values (1, 10), (2, 20)").await;
    b.ok("alter table t add column m text default 'x'").await;
    assert_eq!(a.rows("select * from t order by id").await, ["1|10|x", "2|20|x"]);
    a.ok("create index tn on t (n)").await;
    assert!(b.run("explain select id from t where n = 5").await.contains("tn"));
    b.ok("insert into t values (3, 30, 'y')").await;
    assert_eq!(a.rows("select id from t where n = 30").await, ["3"]);
    b.ok("drop index tn").await;
    assert!(!a.run("explain select id from t where n = 5").await.contains("tn"));
    a.ok("alter table t alter column n type bigint; alter table t rename column n to nn").await;
    b.ok("insert into t (id, nn) values (4, 5000000000)").await;
    b.ok("truncate t").await;
    assert_eq!(a.rows("select count(*) from t").await, ["0"]);
    a.ok("insert into t (id) values (1)").await;
    assert_eq!(b.rows("select id from t").await, ["1"]);
    a.ok("begin; create table u (x int primary key); insert into u values (7); alter table t rename to tt; commit").await;
    assert_eq!(b.rows("select x from u").await, ["7"]);
    assert!(b.run("select * from t").await.contains("42P01"));
    b.ok("drop table tt, u").await;
    assert!(a.run("select * from tt").await.contains("42P01"));
    assert!(a.run("select * from u").await.contains("42P01"));
    // What was rolled back is gone at once, and nothing stays frozen.
    a.ok("create table t (id int primary key)").await;
    a.ok("begin; alter table t add column z int; rollback").await;
    pause(Duration::from_millis(1)).await;
    for db in &cluster.gateways {
        assert!(db.freezes().tables().is_empty());
    }
    assert_eq!(b.run("select * from t").await, "columns: id\nSELECT 0\n");
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_for_transactions_elsewhere() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int); create table other (id int primary key)").await;
    b.ok("begin; insert into t values (1, 1)").await;
    a.ok("set lock_timeout = '20ms'").await;
    assert!(a.run("alter table t add column m int default 3").await.contains("55P03"));
    a.ok("set lock_timeout = 0").await;
    // Longer than an answer may take: the other gateway says that it is waiting, and is asked again.
    let alter = tokio::spawn(async move {
        a.ok("alter table t add column m int default 3").await;
        a
    });
    pause(Duration::from_secs(7)).await;
    assert!(!alter.is_finished());
    b.ok("insert into t values (2, 2)").await;
    // Nobody new gets the table meanwhile, and other tables are free.
    let mut c = cluster.client(1).await;
    c.ok("insert into other values (1)").await;
    c.ok("set lock_timeout = '1s'").await;
    assert!(c.run("select * from t").await.contains("55P03"));
    b.ok("commit").await;
    let mut a = alter.await.unwrap();
    assert_eq!(a.rows("select * from t order by id").await, ["1|1|3", "2|2|3"]);
    assert_eq!(b.rows("select * from t order by id").await, ["1|1|3", "2|2|3"]);
    // A transaction elsewhere with an older snapshot must not use the new table; what did not change, it may use.
    b.ok("begin isolation level repeatable read; select * from other").await;
    a.ok("alter table t add column k int").await;
    b.ok("select * from other").await;
    assert!(b.run("select * from t").await.contains("40001"));
    b.ok("rollback").await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_lives_longer_than_its_lease() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int)").await;
    b.ok("begin; insert into t values (1, 1)").await;
    for i in 2..10 {
        pause(LEASE * 3).await;
        b.ok(&format!("insert into t values ({i}, {i})")).await;
    }
    b.ok("commit").await;
    assert_eq!(a.rows("select count(*) from t").await, ["9"]);
    // So does a change, at every gateway.
    a.ok("begin; alter table t add column m int default 1").await;
    pause(FREEZE_FOR * 4).await;
    assert_eq!(cluster.gateways[1].freezes().tables().len(), 1);
    b.ok("set lock_timeout = '100ms'").await;
    assert!(b.run("select * from t").await.contains("55P03"));
    a.ok("commit").await;
    assert_eq!(b.rows("select m from t where id = 1").await, ["1"]);
}

#[tokio::test(start_paused = true)]
async fn an_index_is_built_while_another_gateway_writes() {
    index_while_writing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_while_another_gateway_writes_on_two_threads() {
    index_while_writing().await;
}

async fn index_while_writing() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int); insert into t select g, g from generate_series(1, 3000) g").await;
    let writer = tokio::spawn(async move {
        for i in 0..300 {
            let id = 1 + (i * 37) % 3000;
            b.ok(&format!("update t set n = n + 100000 where id = {id}")).await;
            if i % 10 == 0 {
                b.ok(&format!("delete from t where id = {}", 1 + (i * 91) % 3000)).await;
                b.ok(&format!("begin; insert into t values ({}, {i}); commit", 10_000 + i)).await;
            }
            tokio::task::yield_now().await;
        }
        b
    });
    a.ok("create index tn on t (n)").await;
    let mut b = writer.await.unwrap();
    for c in [&mut a, &mut b] {
        assert!(c.run("explain select id from t where n = 5").await.contains("tn"));
        same_by_index(c, "t", "n").await;
    }
}

#[tokio::test(start_paused = true)]
async fn writers_go_on_while_another_gateway_changes_the_table() {
    changes_while_writing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_go_on_while_another_gateway_changes_the_table_on_two_threads() {
    changes_while_writing().await;
}

async fn changes_while_writing() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int, gone int)").await;
    let writers: Vec<_> = (0..3)
        .map(|w| {
            let db = cluster.gateways[w % 2].clone();
            tokio::spawn(async move {
                let mut c = Client::new(&db).await;
                let mut written = 0;
                for i in 0..120 {
                    let id = w * 1_000 + i;
                    let out = match i % 3 {
                        0 => c.run(&format!("insert into t (id, n) values ({id}, {i})")).await,
                        1 => c.run(&format!("begin; insert into t (id, n) values ({id}, {i}); commit")).await,
                        _ => c.run(&format!("insert into t (id, n) select {id}, {i}; update t set n = n + 1 where id = {id}")).await,
                    };
                    // A block is not run again by the server.
                    assert!(!out.contains("ERROR") || out.contains("ERROR 40001"), "{out}");
                    if out.contains("ERROR") {
                        c.run("rollback").await;
                    } else {
                        written += 1;
                    }
                    tokio::task::yield_now().await;
                }
                written
            })
        })
        .collect();
    for i in 0..6 {
        let c = if i % 2 == 0 { &mut a } else { &mut b };
        c.ok(&format!("create index i{i} on t (n)")).await;
        c.ok(&format!("alter table t add column c{i} int default {i}")).await;
        c.ok("alter table t add column extra int; alter table t drop column extra").await;
        if i == 2 {
            c.ok("alter table t alter column n type bigint").await;
        }
        if i == 4 {
            c.ok("alter table t drop column gone").await;
        }
        if i > 0 {
            c.ok(&format!("drop index i{}", i - 1)).await;
        }
    }
    let mut written = 0;
    for w in writers {
        written += w.await.unwrap();
    }
    for c in [&mut a, &mut b] {
        assert_eq!(c.rows("select count(*) from t").await, [written.to_string()]);
        assert_eq!(c.rows("select count(c0), min(c1), max(c5) from t").await, [format!("{written}|1|5")]);
        same_by_index(c, "t", "n").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_cut_off_is_waited_out() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int); insert into t values (1, 1)").await;
    let mut reader = cluster.client(1).await;
    b.ok("begin; insert into t values (2, 2)").await;
    reader.ok("begin; select * from t").await;
    cluster.stores[1].set_reachable(false);
    a.ok("alter table t add column m int default 3").await;
    a.ok("create index tn on t (n)").await;
    // Its transaction knows nothing of the column and the index.
    let out = b.run("commit").await;
    assert!(out.contains("57P03") || out.contains("40001"), "{out}");
    assert_eq!(a.rows("select * from t order by id").await, ["1|1|3"]);
    let before = now();
    let out = b.run("select * from t").await;
    assert!(out.contains("57P03") && out.contains("this node has lost contact with the cluster"), "{out}");
    assert!(before.elapsed() < LEASE_WAIT_MAX * 2);
    // What needs no catalog works: above all the end of a transaction.
    b.ok("begin; show timezone; rollback").await;
    assert!(reader.run("select 1").await.contains("57P03"));
    reader.ok("rollback").await;
    assert_eq!(Client::new(&cluster.gateways[0]).await.rows("select 1").await, ["1"]);
    assert!(cluster.gateways[1].connect("root", "isochrone").await.is_err());
    // A statement that waits is served when the node is back.
    let waiting = tokio::spawn(async move {
        let rows = b.rows("select * from t order by id").await;
        (b, rows)
    });
    pause(Duration::from_secs(1)).await;
    cluster.stores[1].set_reachable(true);
    let (mut b, rows) = waiting.await.unwrap();
    assert_eq!(rows, ["1|1|3"]);
    b.ok("insert into t values (2, 2)").await;
    assert_eq!(a.rows("select id, m from t where n = 2").await, ["2|3"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_its_transactions() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int); insert into t values (1, 1)").await;
    b.ok("begin isolation level read committed; insert into t values (2, 2)").await;
    cluster.stores[1].set_reachable(false);
    a.ok("create index tn on t (n)").await;
    cluster.stores[1].set_reachable(true);
    // It has a lease again, and the transaction must not profit from that.
    assert!(b.run("insert into t values (3, 3)").await.contains("40001"));
    b.ok("rollback").await;
    b.ok("begin; insert into t values (2, 2)").await;
    cluster.stores[1].set_reachable(false);
    a.ok("alter table t add column m int").await;
    cluster.stores[1].set_reachable(true);
    assert!(b.run("commit").await.contains("40001"));
    // A short interruption that nobody used does no harm.
    b.ok("begin; insert into t values (2, 2)").await;
    cluster.stores[1].set_reachable(false);
    pause(LEASE * 2).await;
    cluster.stores[1].set_reachable(true);
    b.ok("commit").await;
    assert_eq!(a.rows("select id from t where n = 2").await, ["2"]);
}

/// COMMIT was sent in good time and arrives late: what was promised of its timestamp holds without looking again.
#[tokio::test(start_paused = true)]
async fn a_late_commit_stays_below_its_lease_and_its_freezes() {
    let mut cluster = Cluster::new();
    let slow = |store: &FakeStore| {
        let store: Arc<dyn KvStore> = Arc::new(store.clone());
        let commit_ms = Arc::new(AtomicU64::new(0));
        (database_over(Arc::new(startup::Slow(store, commit_ms.clone()))), commit_ms)
    };
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int)").await;
    // One that is cut off while it commits, and waited out.
    let (db, commit_ms) = slow(&cluster.stores[1]);
    cluster.gateways[1] = db;
    let mut late = cluster.client(1).await;
    commit_ms.store(30_000, Ordering::Relaxed);
    b.ok("select * from t").await;
    let insert = tokio::spawn(async move { late.run("begin; insert into t values (1, 1); commit").await });
    pause(Duration::from_secs(1)).await;
    cluster.stores[1].set_reachable(false);
    a.ok("alter table t add column m int default 3").await;
    assert!(!insert.is_finished());
    let out = insert.await.unwrap();
    assert!(out.contains("40001") && out.contains("commit timestamp"), "{out}");
    cluster.stores[1].set_reachable(true);
    assert_eq!(a.rows("select count(*) from t").await, ["0"]);
    // A change whose freezes end meanwhile, because it cannot prolong them.
    cluster.gateways[1] = database_on(cluster.stores[1].clone());
    let mut b = cluster.client(1).await;
    let (db, commit_ms) = slow(&cluster.stores[0]);
    cluster.gateways[0] = db;
    let mut late = cluster.client(0).await;
    commit_ms.store(30_000, Ordering::Relaxed);
    let alter = tokio::spawn(async move { late.run("begin; alter table t add column k int; commit").await });
    pause(Duration::from_secs(1)).await;
    cluster.stores[0].fail_tells(usize::MAX);
    b.ok("insert into t values (2, 2, 2)").await;
    assert!(!alter.is_finished());
    let out = alter.await.unwrap();
    assert!(out.contains("40001") && out.contains("commit timestamp"), "{out}");
    assert_eq!(b.rows("select * from t").await, ["2|2|2"]);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_frees_itself_when_the_other_goes_silent() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key, n int)").await;
    b.ok("insert into t values (1, 1)").await;
    a.ok("begin; alter table t add column m int default 3").await;
    pause(Duration::from_secs(30)).await;
    cluster.stores[0].set_reachable(false);
    let before = now();
    b.ok("insert into t values (2, 2)").await;
    let waited = before.elapsed();
    assert!(waited > FREEZE_FOR / 2 && waited < FREEZE_FOR + Duration::from_secs(1), "{waited:?}");
    let out = a.run("commit").await;
    assert!(out.contains("ERROR"), "{out}");
    cluster.stores[0].set_reachable(true);
    assert_eq!(a.rows("select * from t order by id").await, ["1|1", "2|2"]);
    assert_eq!(b.rows("select * from t order by id").await, ["1|1", "2|2"]);
    // The same, but the change is committed before nobody can be told: everybody else reads it after the end.
    cluster.stores[0].fail_tells(0);
    a.ok("begin; alter table t add column m int default 3; create index tn on t (n)").await;
    cluster.stores[0].fail_tells(usize::MAX);
    let out = a.run("commit").await;
    assert!(out.contains("COMMIT") && out.contains("WARNING 01000"), "{out}");
    // A writer that waited writes to the index, and a script's query has the columns that there are then.
    let mut c = cluster.client(1).await;
    let insert = tokio::spawn(async move { c.ok("insert into t values (3, 3)").await });
    tokio::task::yield_now().await;
    assert_eq!(b.rows("select * from t where id < 3 order by id").await, ["1|1|3", "2|2|3"]);
    insert.await.unwrap();
    assert_eq!(b.rows("select id from t where n = 3").await, ["3"]);
    same_by_index(&mut b, "t", "n").await;
}

#[tokio::test(start_paused = true)]
async fn a_committed_change_is_told_again() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    // A few failures go unnoticed.
    cluster.stores[0].fail_tells(2);
    a.ok("create table t (id int primary key)").await;
    b.ok("insert into t values (1)").await;
    // More: the statement is done, and says so; it is told in the background.
    cluster.stores[0].fail_tells(6);
    let out = a.run("create table u (id int primary key)").await;
    assert!(out.contains("CREATE TABLE") && out.contains("WARNING 01000") && !out.contains("ERROR"), "{out}");
    pause(Duration::from_secs(30)).await;
    b.ok("insert into u values (1)").await;
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_was_lost_is_noticed() {
    let mut cluster = Cluster::new();
    let (mut a, _) = cluster.two().await;
    a.ok("create table t (id int primary key, n int)").await;
    a.ok("begin; alter table t add column m int default 3").await;
    // The other gateway starts again, knows nothing of the freeze, and is at work before it is asked again.
    cluster.gateways[1] = database_on(cluster.stores[1].clone());
    let mut b = cluster.client(1).await;
    b.ok("insert into t values (1, 1)").await;
    assert!(a.run("commit").await.contains("40001"));
    assert_eq!(b.rows("select * from t").await, ["1|1"]);
    // Noticed also by who only prolongs it.
    a.ok("begin; alter table t add column m int default 3").await;
    cluster.gateways[1] = database_on(cluster.stores[1].clone());
    pause(FREEZE_FOR).await;
    assert!(a.run("commit").await.contains("40001"));
    a.ok("alter table t add column m int default 3").await;
    assert_eq!(cluster.client(1).await.rows("select * from t").await, ["1|1|3"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_gateway_stands_behind_a_fence() {
    let mut cluster = Cluster::with(3, 2);
    let mut a = cluster.client(0).await;
    a.ok("create table t (id int primary key, n int)").await;
    a.ok("begin; alter table t add column m int default 3").await;
    // It was not there when the table was frozen.
    let store = cluster.stores[2].clone();
    cluster.gateways.push(database_on(store));
    let mut c = cluster.client(2).await;
    c.ok("insert into t values (1, 1)").await;
    assert!(a.run("commit").await.contains("40001"));
    a.ok("alter table t add column m int default 3").await;
    assert_eq!(c.rows("select * from t").await, ["1|1|3"]);
    // A short change is waited for.
    let alter = tokio::spawn(async move { a.run("alter table t add column k int default 4").await });
    let store = cluster.stores[2].clone();
    cluster.gateways[2] = database_on(store);
    let mut c = cluster.client(2).await;
    assert!(!alter.await.unwrap().contains("ERROR"));
    assert_eq!(c.rows("select * from t").await, ["1|1|3|4"]);
}

#[tokio::test(start_paused = true)]
async fn changes_race_from_two_gateways() {
    let cluster = Cluster::new();
    let mut a = cluster.client(0).await;
    a.ok("create table t (id int primary key)").await;
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let db = cluster.gateways[i % 2].clone();
            tokio::spawn(async move {
                let mut c = Client::new(&db).await;
                c.ok(&format!("create table t{i} (a int primary key)")).await;
                c.ok(&format!("insert into t{i} values ({i})")).await;
                c.ok(&format!("alter table t add column c{i} int default {i}")).await;
                c.ok(&format!("create index i{i} on t (c{i})")).await;
                if i % 4 == 3 {
                    c.ok(&format!("drop table t{i}")).await;
                }
            })
        })
        .collect();
    for t in tasks {
        t.await.unwrap();
    }
    let mut b = cluster.client(1).await;
    a.ok("insert into t values (1)").await;
    for c in [&mut a, &mut b] {
        assert_eq!(c.rows("select count(*) from pg_tables where schemaname = 'public'").await, ["7"]);
        assert_eq!(c.rows("select count(*) from pg_indexes where tablename = 't'").await, ["9"]);
        assert_eq!(c.rows("select c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 from t where c5 = 5").await, ["28"]);
    }
    // Both in blocks, on the same name, and on the same table.
    a.ok("begin; create table same (a int)").await;
    let other = tokio::spawn(async move { (b.run("create table same (b int)").await, b) });
    pause(Duration::from_secs(1)).await;
    a.ok("commit").await;
    let (out, mut b) = other.await.unwrap();
    assert!(out.contains("42P07"), "{out}");
    // A transaction elsewhere that uses the table and then wants to change it itself: one of them gives up in time.
    b.ok("begin; select * from t").await;
    let first = tokio::spawn(async move { (a.run("alter table t add column x int").await, a) });
    pause(Duration::from_secs(1)).await;
    let mine = b.run("alter table t add column y int").await;
    let commit = b.run("commit").await;
    let (theirs, mut a) = first.await.unwrap();
    let failed = [mine.contains("ERROR"), theirs.contains("ERROR")];
    assert!(failed != [true, true] && failed != [false, false], "{mine}{commit}{theirs}");
    assert_eq!(a.rows("select count(*) from t").await, b.rows("select count(*) from t").await);
}

#[tokio::test(start_paused = true)]
async fn setval_is_heard_everywhere() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create sequence s").await;
    let first: i64 = b.rows("select nextval('s')").await[0].parse().unwrap();
    let second: i64 = a.rows("select nextval('s')").await[0].parse().unwrap();
    assert_ne!(first, second);
    a.ok("select setval('s', 5000)").await;
    // No value of the old epoch is given out, although a block of them was at hand.
    let mut seen = std::collections::BTreeSet::new();
    for c in [&mut b, &mut a] {
        for _ in 0..40 {
            let n: i64 = c.rows("select nextval('s')").await[0].parse().unwrap();
            assert!(n > 5_000 && seen.insert(n), "{n}");
        }
    }
    a.ok("create table t (id int generated by default as identity primary key, n int)").await;
    b.ok("insert into t (n) values (1)").await;
    a.ok("truncate t restart identity").await;
    b.ok("insert into t (n) values (2)").await;
    assert_eq!(a.rows("select id, n from t").await, ["1|2"]);
    // A gateway that did not hear it has lost its lease, and what it knew.
    b.ok("select nextval('s')").await;
    cluster.stores[1].set_reachable(false);
    a.ok("select setval('s', 90000)").await;
    assert!(b.run("select nextval('s')").await.contains("57P03"));
    cluster.stores[1].set_reachable(true);
    let n: i64 = b.rows("select nextval('s')").await[0].parse().unwrap();
    assert!(n > 90_000, "{n}");
    a.ok("drop sequence s").await;
    assert!(b.run("select nextval('s')").await.contains("42P01"));
}

#[tokio::test(start_paused = true)]
async fn the_cluster_is_shown_and_leaders_are_moved() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    golden(
        &mut a,
        "
        > select * from isochrone.replicas where shard = 2 order by node
        columns: shard|node|role|applied|lag|last_index
        2|1|leader|2|0|2
        2|2|follower|2|0|2
        SELECT 2
        > alter shard 2 transfer leader to 2
        ALTER SHARD
        > ALTER SHARD 2 TRANSFER LEADER TO 2;
        ALTER SHARD
        > select shard, leader, replicas from isochrone.shards order by shard
        columns: shard|leader|replicas
        1|1|{1,2}
        2|2|{1,2}
        SELECT 2
        > select node, address, sql_address, live, epoch, leaders, replicas, draining, uptime from isochrone.nodes
        columns: node|address|sql_address|live|epoch|leaders|replicas|draining|uptime
        1|node1:26257|node1:5432|t|1|1|2|f|00:00:01
        2|node2:26257|node2:5432|t|1|1|2|f|00:00:01
        SELECT 2
        > alter shard 9 transfer leader to 2
        ERROR 42704 shard 9 does not exist
        > alter shard 2 transfer leader to 7
        ERROR 42704 node 7 has no replica of shard 2
        > alter shard x transfer leader to 2
        ERROR 42601 syntax error at or near \"x\"
        > alter shard 2 transfer leader to 99999999999
        ERROR 42601 syntax error at or near \"99999999999\"
        > alter shard 2 transfer leader to 2 now
        ERROR 42601 syntax error at or near \"now\"
        ",
    )
    .await;
    a.ok("begin; create table t (id int)").await;
    let seen = b.rows("select state from isochrone.transactions").await;
    assert!(seen.len() >= 2, "{seen:?}");
    a.ok("rollback; create table shard (id int primary key); alter table shard add column split int").await;
}

#[tokio::test(start_paused = true)]
async fn bad_messages_are_refused_and_harm_nobody() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two().await;
    a.ok("create table t (id int primary key)").await;
    let id = isochrone_base::TxnId(9);
    let now = cluster.stores[0].now();
    let oid: u32 = a.rows("select 't'::regclass::oid").await[0].parse().unwrap();
    let freeze = |held: Vec<u32>, until| {
        let more = if held.is_empty() { vec![oid] } else { Vec::new() };
        crate::catalog::messages::Message::Freeze { id, held, more, until, wait_ms: 5 }.encode()
    };
    let cases = [
        (Bytes::from_static(b""), Err(())),
        (Bytes::from_static(b"\x01\x63what"), Err(())),
        (Bytes::from_static(b"\x09\x01"), Err(())),
        (freeze(Vec::new(), now.plus_micros(3_600_000_000)), Err(())),
        // Too late, and for a freeze that is not there.
        (freeze(Vec::new(), now.minus_micros(1)), Ok([1, 3])),
        (freeze(vec![oid], now.plus_micros(5_000_000)), Ok([1, 3])),
    ];
    for (message, want) in cases {
        let answers = cluster.stores[0].tell_gateways(message, TELL_WAIT_MAX).await.unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].1.as_ref().map(|b| [b[0], b[1]]).map_err(|_| ()), want);
    }
    assert!(cluster.gateways[1].freezes().tables().is_empty());
    // A freeze told twice is one; one that comes after its release is none.
    for message in
        [freeze(Vec::new(), now.plus_micros(9_000_000)), freeze(Vec::new(), now.plus_micros(9_000_000))]
    {
        let answers = cluster.stores[0].tell_gateways(message, TELL_WAIT_MAX).await.unwrap();
        assert_eq!(answers[0].1.as_ref().unwrap()[..], [1, 1]);
    }
    let release = crate::catalog::messages::Message::Release { id }.encode();
    let answers = cluster.stores[0].tell_gateways(release, TELL_WAIT_MAX).await.unwrap();
    assert_eq!(answers[0].1.as_ref().map(|b| b[..].to_vec()), Ok(vec![1, 4]));
    let late = cluster.stores[0].tell_gateways(freeze(Vec::new(), now.plus_micros(9_000_000)), TELL_WAIT_MAX);
    assert_eq!(late.await.unwrap()[0].1.as_ref().unwrap()[..], [1, 3]);
    b.ok("insert into t values (1)").await;
}
