//! INSERT, UPDATE, DELETE, ON CONFLICT, RETURNING, constraints, indexes, locks.

use super::Db;
use isochrone_txn::kv::Isolation;
use isochrone_types::Datum;

async fn accounts() -> Db {
    Db::script(
        "CREATE TABLE a (id int PRIMARY KEY, owner text NOT NULL, bal int DEFAULT 0 CHECK (bal >= 0), tag text UNIQUE);
         CREATE INDEX a_owner ON a (owner, bal DESC);
         INSERT INTO a VALUES (1,'x',10,'p'),(2,'y',20,NULL),(3,'x',30,NULL);",
    )
    .await
}

/// The table by its rows and by each of its indexes.
async fn consistent(db: &Db) {
    let rows = db.sorted("SELECT id, owner, bal, tag FROM a WHERE id > -1000000").await;
    for line in rows.lines() {
        let cells: Vec<&str> = line.split('|').collect();
        let by_owner = format!(
            "SELECT id FROM a WHERE owner = '{}' AND bal = {} AND id = {}",
            cells[1], cells[2], cells[0]
        );
        assert_eq!(db.run(&by_owner).await.unwrap(), cells[0]);
        if cells[3] != "NULL" {
            let by_tag = format!("SELECT id FROM a WHERE tag = '{}'", cells[3]);
            assert_eq!(db.run(&by_tag).await.unwrap(), cells[0], "{}", db.explain(&by_tag));
        }
    }
    let by_index =
        db.run("SELECT count(*) FROM (SELECT owner, bal FROM a ORDER BY owner, bal DESC) q").await.unwrap();
    assert_eq!(by_index, rows.lines().count().to_string());
}

#[tokio::test]
async fn insert() {
    let db = accounts().await;
    db.check("INSERT INTO a (owner, id) VALUES ('z', 4), ('w', 5)", "INSERT 0 2").await;
    db.check("SELECT * FROM a WHERE id = 4", "4|z|0|NULL").await;
    db.check("INSERT INTO a VALUES (6, 'q', DEFAULT) RETURNING id + 1 AS k, bal, a.*", "7|0|6|q|0|NULL")
        .await;
    db.check("INSERT INTO a SELECT id + 100, owner, bal FROM a WHERE id <= 2", "INSERT 0 2").await;
    let e = db.fails("INSERT INTO a VALUES (1, 'dup', 0)", "23505").await;
    assert_eq!(e.message, "duplicate key value violates unique constraint \"a_pkey\"");
    assert_eq!(e.detail.as_deref(), Some("Key (id)=(1) already exists."));
    let e = db.fails("INSERT INTO a VALUES (70, 'dup', 0, 'p')", "23505").await;
    assert_eq!(e.constraint.as_deref(), Some("a_tag_key"));
    let e = db.fails("INSERT INTO a (id) VALUES (9)", "23502").await;
    assert_eq!(e.message, "null value in column \"owner\" of relation \"a\" violates not-null constraint");
    assert_eq!(e.detail.as_deref(), Some("Failing row contains (9, null, 0, null)."));
    db.fails("INSERT INTO a VALUES (9, 'n', -1)", "23514").await;
    db.fails("INSERT INTO a VALUES (9, 'n', 'x')", "22P02").await;
    db.fails("INSERT INTO a (id, nope) VALUES (9, 1)", "42703").await;
    db.fails("INSERT INTO a VALUES (1,2,3,4,5)", "42601").await;
    db.fails("INSERT INTO a (id, owner) VALUES (1)", "42601").await;
    db.fails("INSERT INTO a (id, owner, bal) VALUES (1, 'a', true)", "42804").await;
    consistent(&db).await;
}

#[tokio::test]
async fn on_conflict() {
    let db = accounts().await;
    db.check("INSERT INTO a VALUES (1,'new',5) ON CONFLICT DO NOTHING", "INSERT 0 0").await;
    db.check("INSERT INTO a VALUES (8,'new',5,'p') ON CONFLICT (tag) DO NOTHING", "INSERT 0 0").await;
    db.fails("INSERT INTO a VALUES (8,'new',5,'p') ON CONFLICT (id) DO NOTHING", "23505").await;
    db.check(
        "INSERT INTO a VALUES (1,'new',5),(50,'fresh',1) ON CONFLICT (id) DO UPDATE SET bal = a.bal + excluded.bal, owner = excluded.owner RETURNING id, owner, bal",
        "1|new|15\n50|fresh|1",
    )
    .await;
    db.check("INSERT INTO a VALUES (9,'t',1,'p') ON CONFLICT ON CONSTRAINT a_tag_key DO UPDATE SET tag = 'q' WHERE a.bal > 100", "INSERT 0 0").await;
    db.check("INSERT INTO a VALUES (9,'t',1,'p') ON CONFLICT (tag) DO UPDATE SET tag = 'q'", "INSERT 0 1")
        .await;
    db.check("SELECT id, tag FROM a WHERE tag = 'q'", "1|q").await;
    db.fails("INSERT INTO a VALUES (1,'a'),(1,'b') ON CONFLICT (id) DO UPDATE SET bal = 1", "21000").await;
    db.fails("INSERT INTO a VALUES (1,'a') ON CONFLICT (bal) DO NOTHING", "42P10").await;
    consistent(&db).await;
}

#[tokio::test]
async fn update() {
    let db = accounts().await;
    db.check("UPDATE a SET bal = bal + 1 WHERE id = 1", "UPDATE 1").await;
    db.check("UPDATE a SET bal = bal + 1 WHERE id = 99", "UPDATE 0").await;
    db.check(
        "UPDATE a SET bal = bal * 2, owner = upper(owner) WHERE owner = 'x' RETURNING id, owner, bal",
        "3|X|60\n1|X|22",
    )
    .await;
    db.check("UPDATE a SET (bal, tag) = (1, 't') WHERE id = 2", "UPDATE 1").await;
    db.check("UPDATE a SET id = id + 10", "UPDATE 3").await;
    db.fails("UPDATE a SET id = id + 1 WHERE id = 11", "23505").await;
}

#[tokio::test]
async fn update_of_keys() {
    let db = accounts().await;
    db.check("UPDATE a SET id = id + 10, tag = 'u' || id", "UPDATE 3").await;
    assert_eq!(db.sorted("SELECT id, tag FROM a").await, "11|u1\n12|u2\n13|u3");
    consistent(&db).await;
    db.fails("UPDATE a SET id = 12 WHERE id = 11", "23505").await;
    db.fails("UPDATE a SET tag = 'u2' WHERE id = 11", "23505").await;
    db.fails("UPDATE a SET owner = NULL WHERE id = 11", "23502").await;
    db.fails("UPDATE a SET bal = -5", "23514").await;
    db.check(
        "UPDATE a SET bal = f.v FROM (VALUES (11, 7), (12, 8), (11, 9)) f(k, v) WHERE a.id = f.k",
        "UPDATE 2",
    )
    .await;
    db.check("SELECT id, bal FROM a WHERE id <> 11 ORDER BY id", "12|8\n13|30").await;
    db.check("UPDATE a SET bal = (SELECT max(bal) FROM a) + 1 WHERE id = 13", "UPDATE 1").await;
    db.check("UPDATE a SET bal = (SELECT count(*) FROM a b WHERE b.id <= a.id)", "UPDATE 3").await;
    db.check("SELECT id, bal FROM a ORDER BY id", "11|1\n12|2\n13|3").await;
    consistent(&db).await;
}

#[tokio::test]
async fn a_statement_does_not_meet_its_own_changes() {
    let db = Db::script(
        "CREATE TABLE h (id int PRIMARY KEY, k int); CREATE INDEX h_k ON h (k);
         INSERT INTO h SELECT g, g FROM generate_series(1, 3000) g;",
    )
    .await;
    db.check("UPDATE h SET k = k + 1000000 WHERE k > 0", "UPDATE 3000").await;
    db.check("SELECT count(*), min(k), max(k) FROM h", "3000|1000001|1003000").await;
    db.check("UPDATE h SET id = id + 5000", "UPDATE 3000").await;
    db.check("INSERT INTO h SELECT id + 5000, k FROM h", "INSERT 0 3000").await;
    db.check("DELETE FROM h WHERE k IN (SELECT k FROM h WHERE id > 10000)", "DELETE 6000").await;
    db.check("SELECT count(*) FROM h", "0").await;
}

#[tokio::test]
async fn delete() {
    let db = accounts().await;
    db.check("DELETE FROM a WHERE id = 1 RETURNING tag", "p").await;
    db.check("SELECT id FROM a WHERE tag = 'p'", "").await;
    db.check("DELETE FROM a USING (VALUES ('x')) v(o) WHERE owner = v.o", "DELETE 1").await;
    db.check("DELETE FROM a", "DELETE 1").await;
    db.check("SELECT count(*) FROM a", "0").await;
}

#[tokio::test]
async fn hidden_row_ids_and_sequences() {
    let mut db = Db::script("CREATE TABLE h (v text); INSERT INTO h VALUES ('a'),('b'),('a');").await;
    db.check("SELECT * FROM h ORDER BY v", "a\na\nb").await;
    db.check("UPDATE h SET v = 'c' WHERE v = 'a'", "UPDATE 2").await;
    db.check("DELETE FROM h WHERE v = 'b'", "DELETE 1").await;
    db.check("SELECT v FROM h", "c\nc").await;
    db.sequence("s");
    db.check("SELECT nextval('s'), nextval('s'::regclass) FROM generate_series(1,2)", "1|2\n3|4").await;
    db.check("SELECT currval('s'), lastval() IS NULL", "4|f").await;
    db.check("SELECT setval('s', 100)", "100").await;
    db.fails("SELECT currval('s'), setval('s', 100)", "0A000").await;
    db.check("SELECT nextval('s')", "101").await;
    db.fails("SELECT nextval('nope')", "42P01").await;
}

#[tokio::test]
async fn a_row_that_changed_is_judged_again() {
    let db = accounts().await;
    let plan = db.plan("UPDATE a SET bal = bal + 1 WHERE owner = 'x' AND bal < 25").unwrap();
    let one = db.plan("UPDATE a SET bal = 26 WHERE id = 1").unwrap();
    let other = db.plan("UPDATE a SET bal = 11 WHERE id = 1").unwrap();
    for (change, expected) in [(&one, "26"), (&other, "12")] {
        // The first holds the row; the second finds it as it was, waits, and sees what it became.
        let mut first = db.begin(Isolation::ReadCommitted);
        db.run_in(first.as_mut(), change, Vec::new()).await.unwrap();
        let mut second = db.begin(Isolation::ReadCommitted);
        let (_, answer) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                first.commit().await.unwrap();
            },
            db.run_in(second.as_mut(), &plan, Vec::new()),
        );
        answer.unwrap();
        second.commit().await.unwrap();
        db.check("SELECT bal FROM a WHERE id = 1", expected).await;
        db.check("UPDATE a SET bal = 10 WHERE id = 1", "UPDATE 1").await;
    }
    // Above READ COMMITTED it is an error.
    let mut t = db.begin(Isolation::RepeatableRead);
    db.run_in(t.as_mut(), &db.plan("SELECT count(*) FROM a").unwrap(), Vec::new()).await.unwrap();
    db.run("UPDATE a SET bal = 12 WHERE id = 1").await.unwrap();
    let e = db.run_in(t.as_mut(), &plan, Vec::new()).await.unwrap_err();
    assert_eq!(e.sqlstate.code(), "40001");
}

#[tokio::test]
async fn for_update() {
    let db = accounts().await;
    let plan = db.plan("SELECT id FROM a WHERE owner = 'x' ORDER BY bal LIMIT 1 FOR UPDATE").unwrap();
    assert!(!plan.is_read_only());
    let mut t = db.begin(Isolation::Serializable);
    assert_eq!(db.run_in(t.as_mut(), &plan, Vec::new()).await.unwrap(), "1");
    db.check("UPDATE a SET bal = 31 WHERE id = 3", "UPDATE 1").await;
    t.rollback();
    db.check("SELECT a.id FROM a JOIN a b ON a.id = b.id WHERE b.bal = 20 FOR UPDATE OF a", "2").await;
    db.fails("SELECT count(*) FROM a FOR UPDATE", "0A000").await;
    db.check("SELECT id FROM a ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1", "1").await;
}

#[tokio::test]
async fn one_plan_runs_with_many_parameters() {
    let db = accounts().await;
    let insert = db.plan("INSERT INTO a VALUES ($1, $2, $3)").unwrap();
    let read = db.plan("SELECT owner, bal FROM a WHERE id = $1").unwrap();
    let change = db.plan("UPDATE a SET bal = bal + $2 WHERE id = $1").unwrap();
    let mut t = db.begin(Isolation::Serializable);
    for i in 10..60 {
        let row = vec![Datum::Int4(i), Datum::text(format!("o{i}")), Datum::Int4(i * 2)];
        assert_eq!(db.run_in(t.as_mut(), &insert, row).await.unwrap(), "INSERT 0 1");
        let n = db.run_in(t.as_mut(), &change, vec![Datum::Int4(i), Datum::Int4(1)]).await.unwrap();
        assert_eq!(n, "UPDATE 1");
        assert_eq!(
            db.run_in(t.as_mut(), &read, vec![Datum::Int4(i)]).await.unwrap(),
            format!("o{i}|{}", i * 2 + 1)
        );
    }
    t.commit().await.unwrap();
    assert_eq!(db.run_with("SELECT $1::int", vec![]).await.unwrap_err().sqlstate.code(), "08P01");
}
