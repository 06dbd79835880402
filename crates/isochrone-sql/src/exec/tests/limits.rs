//! Bounds: memory, cancel, long and deep expressions.

use super::Db;
use crate::parse::STACK_BYTES_MIN;

#[tokio::test]
async fn memory_is_bounded() {
    let db = Db::new();
    db.fails("SELECT count(*) FROM (SELECT g, repeat('x', 1000 + g * 0) AS t FROM generate_series(1, 400000) g ORDER BY 2, 1) q", "53200")
        .await;
    // The first rows of a sort need little.
    db.check("SELECT g FROM generate_series(1, 400000) g ORDER BY -g LIMIT 1", "400000").await;
}

#[test]
fn long_expressions_run() {
    std::thread::Builder::new()
        .stack_size(STACK_BYTES_MIN)
        .spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let db = Db::new();
                db.check(&format!("SELECT 1{}", " + 1".repeat(1900)), "1901").await;
                db.check(
                    &format!("SELECT g{} FROM generate_series(1,2) g", " + 1".repeat(1900)),
                    "1901\n1902",
                )
                .await;
                db.check(
                    &format!("SELECT g = 1{} FROM generate_series(1,1) g", " OR g = 2".repeat(900)),
                    "t",
                )
                .await;
                db.check(&format!("SELECT {}1{}", "(".repeat(100), ")".repeat(100)), "1").await;
                db.check(&format!("SELECT {}1{}", "(SELECT ".repeat(60), ")".repeat(60)), "1").await;
                db.check(&format!("SELECT 1 WHERE 0 NOT IN (1{})", ",1".repeat(100_000)), "1").await;
                db.check(
                    &format!("SELECT count(*) FROM (SELECT 1{}) q", " UNION ALL SELECT 1".repeat(500)),
                    "501",
                )
                .await;
            });
        })
        .unwrap()
        .join()
        .unwrap();
}

/// Prints what the short way costs on top of the store: `cargo test --release -- --ignored --nocapture costs`.
#[tokio::test]
#[ignore = "a measurement"]
async fn costs() {
    use isochrone_txn::kv::{Isolation, Lock};
    use isochrone_types::Datum;
    let db = Db::script(
        "CREATE TABLE t (id int PRIMARY KEY, bid int, bal int, filler char(84));
         INSERT INTO t SELECT g, 1, 0, '' FROM generate_series(1, 1000) g;",
    )
    .await;
    let select = db.plan("SELECT bal FROM t WHERE id = $1").unwrap();
    let update = db.plan("UPDATE t SET bal = bal + $2 WHERE id = $1").unwrap();
    // Wall time of an ignored measurement, nothing decides on it.
    let clock = || {
        let t = std::fs::read_to_string("/proc/uptime").unwrap();
        t.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    const N: usize = 200_000;
    let key = {
        let mut key = isochrone_base::keyspace::index_prefix(100, 0);
        isochrone_types::key::encode_key(&Datum::Int4(7), &isochrone_types::Type::Int4, false, &mut key)
            .unwrap();
        key
    };
    let mut t = db.begin(Isolation::ReadCommitted);
    let start = clock();
    for _ in 0..N {
        t.get(&key, Lock::None).await.unwrap();
    }
    println!("get {:.2} us", (clock() - start) / N as f64 * 1e6);
    let start = clock();
    for i in 0..N {
        let p = vec![Datum::Int4(i as i32 % 1000 + 1)];
        db.run_in(t.as_mut(), &select, p).await.unwrap();
    }
    println!("select {:.2} us", (clock() - start) / N as f64 * 1e6);
    let start = clock();
    for i in 0..N {
        let p = vec![Datum::Int4(i as i32 % 1000 + 1), Datum::Int4(1)];
        db.run_in(t.as_mut(), &update, p).await.unwrap();
    }
    println!("update {:.2} us", (clock() - start) / N as f64 * 1e6);
    let sql = "SELECT bal FROM t WHERE id = $1";
    let start = clock();
    for _ in 0..20_000 {
        db.plan(sql).unwrap();
    }
    println!("parse and plan {:.2} us", (clock() - start) / 20_000.0 * 1e6);
}
