//! Shapes of plans.

use super::Db;

async fn tables() -> Db {
    let mut db = Db::script(
        "CREATE TABLE big (id int PRIMARY KEY, k int, v text, w int);
         CREATE INDEX big_k ON big (k);
         CREATE TABLE pair (a int, b int, c text, PRIMARY KEY (a, b));
         CREATE TABLE small (id int PRIMARY KEY, big_id int);
         INSERT INTO big SELECT g, g % 100, 'v' || g, g FROM generate_series(1, 500) g;
         INSERT INTO pair SELECT g / 10, g % 10, 'c' FROM generate_series(1, 100) g;
         INSERT INTO small SELECT g, g * 7 FROM generate_series(1, 10) g;",
    )
    .await;
    db.estimate("big", 100_000);
    db.estimate("pair", 1_000);
    db.estimate("small", 10);
    db
}

/// The first words of each line.
fn shape(plan: &str) -> String {
    let lines: Vec<String> = plan
        .lines()
        .map(|l| {
            let l = l.trim().trim_start_matches("->").trim();
            l.split("  (rows").next().unwrap_or(l).to_owned()
        })
        .collect();
    lines.join("\n")
}

#[tokio::test]
async fn keys_and_ranges() {
    let db = tables().await;
    let check = |sql: &str, expected: &str| assert_eq!(shape(&db.explain(sql)), expected, "{sql}");
    check("SELECT * FROM big WHERE id = 5", "Index Scan using big_pkey on big\nIndex Cond: ((id = 5))");
    check(
        "SELECT * FROM big WHERE 5 = id AND v = 'x'",
        "Index Scan using big_pkey on big\nIndex Cond: ((5 = id))\nFilter: (v = 'x')",
    );
    check(
        "SELECT * FROM big WHERE id IN (1, $1)",
        "Index Scan using big_pkey on big\nIndex Cond: ((id IN (1, $1)))",
    );
    check(
        "SELECT * FROM big WHERE id BETWEEN 5 AND 9",
        "Index Scan using big_pkey on big\nIndex Cond: ((id >= 5) AND (id <= 9))",
    );
    check("SELECT * FROM big WHERE k = 7", "Index Scan using big_k on big\nIndex Cond: ((k = 7))");
    check("SELECT id FROM big WHERE k = 7", "Index Only Scan using big_k on big\nIndex Cond: ((k = 7))");
    check("SELECT * FROM big WHERE w = 7", "Seq Scan on big\nFilter: (w = 7)");
    check(
        "SELECT * FROM pair WHERE a = 1 AND b > 2",
        "Index Scan using pair_pkey on pair\nIndex Cond: ((a = 1) AND (b > 2))",
    );
    check("SELECT * FROM pair WHERE b = 1", "Seq Scan on pair\nFilter: (b = 1)");
    check(
        "SELECT * FROM (SELECT id AS x, v FROM big) q WHERE x = 3",
        "Project\nIndex Scan using big_pkey on big\nIndex Cond: ((id = 3))".trim_start_matches("Project\n"),
    );
    db.check("SELECT count(*) FROM big WHERE id BETWEEN 5 AND 9 AND id <> 7", "4").await;
    db.check("SELECT count(*) FROM big WHERE k = 7", "5").await;
    db.check("SELECT id FROM big WHERE k = 7 AND id > 300 ORDER BY id", "307\n407").await;
    db.check("SELECT b FROM pair WHERE a = 1 AND b > 6 ORDER BY b DESC", "9\n8\n7").await;
    db.check("SELECT a, b FROM pair WHERE (a, b) IN ((1,2),(3,4)) ORDER BY 1", "1|2\n3|4").await;
    db.check("SELECT id FROM big WHERE id = ANY (ARRAY[3,1,NULL,3]) ORDER BY id", "1\n3").await;
    db.check("SELECT id FROM big WHERE id > 9999999999", "").await;
    db.check("SELECT count(*) FROM big WHERE id < 9999999999", "500").await;
}

#[tokio::test]
async fn an_or_of_ranges_reads_ranges() {
    let db = tables().await;
    let check = |sql: &str, expected: &str| assert_eq!(shape(&db.explain(sql)), expected, "{sql}");
    check(
        "SELECT id FROM big WHERE k BETWEEN 5 AND 9 OR k BETWEEN $1 AND $2",
        "Index Only Scan using big_k on big\nIndex Cond: ((((k >= 5) AND (k <= 9)) OR ((k >= $1) AND (k <= $2))))",
    );
    check("SELECT id FROM big WHERE k = 5 OR w = 9", "Seq Scan on big\nFilter: ((k = 5) OR (w = 9))");
    check(
        "SELECT * FROM pair WHERE a = 1 AND (b = 2 OR b > 7)",
        "Index Scan using pair_pkey on pair\nIndex Cond: ((a = 1) AND ((b = 2) OR (b > 7)))",
    );
    // Ranges that overlap, that touch, that are empty, that hold one another: no row twice, none lost.
    db.check("SELECT count(*) FROM big WHERE id BETWEEN 5 AND 9 OR id BETWEEN 7 AND 12", "8").await;
    db.check("SELECT count(*) FROM big WHERE id < 5 OR id = 5 OR id IN (6, 7, 7) OR id > 499", "8").await;
    db.check("SELECT count(*) FROM big WHERE id BETWEEN 9 AND 5 OR id BETWEEN 1 AND 9 OR id = 3", "9").await;
    db.check("SELECT count(*) FROM big WHERE id > 5 OR id <= 5 OR id < 9999999999", "500").await;
    db.check("SELECT count(*) FROM big WHERE id = NULL OR id = 4 OR id > 9999999999", "1").await;
    db.check(
        "SELECT id FROM big WHERE id = 9 OR id = 2 OR id BETWEEN 4 AND 5 ORDER BY id DESC",
        "9\n5\n4\n2",
    )
    .await;
    db.check(
        "SELECT a, b FROM pair WHERE a IN (3, 1) AND (b = 9 OR b < 1) ORDER BY a, b",
        "1|0\n1|9\n3|0\n3|9",
    )
    .await;
    db.check(
        "SELECT s.id, b.id FROM small s JOIN big b ON b.id = s.id OR b.id = s.big_id WHERE s.id < 3 ORDER BY 1, 2",
        "1|1\n1|7\n2|2\n2|14",
    )
    .await;
}

#[tokio::test]
async fn order_comes_from_keys() {
    let db = tables().await;
    let check = |sql: &str, expected: &str| assert_eq!(shape(&db.explain(sql)), expected, "{sql}");
    check("SELECT * FROM big ORDER BY id LIMIT 3", "Limit\nSeq Scan on big");
    check("SELECT * FROM big ORDER BY id DESC LIMIT 3", "Limit\nIndex Scan Backward using big_pkey on big");
    check("SELECT * FROM big ORDER BY v LIMIT 3", "Limit\nSort (top-N)\nSort Key: v\nSeq Scan on big");
    check(
        "SELECT * FROM pair WHERE a = 3 ORDER BY b DESC",
        "Index Scan Backward using pair_pkey on pair\nIndex Cond: ((a = 3))",
    );
    check("SELECT max(id) FROM big", "Aggregate\nLimit\nIndex Scan Backward using big_pkey on big");
    check(
        "SELECT min(k) FROM big",
        "Aggregate\nLimit\nIndex Only Scan using big_k on big\nFilter: (k IS NOT NULL)",
    );
    db.check("SELECT id FROM big ORDER BY id DESC LIMIT 2", "500\n499").await;
    db.check("SELECT max(id), min(k) FROM big", "500|0").await;
    db.check("SELECT max(k) FROM big", "99").await;
    db.check("SELECT k FROM big ORDER BY k DESC LIMIT 2", "99\n99").await;
}

#[tokio::test]
async fn joins_look_up_or_hash() {
    let db = tables().await;
    let check = |sql: &str, expected: &str| assert_eq!(shape(&db.explain(sql)), expected, "{sql}");
    check("SELECT v FROM small s JOIN big b ON b.id = s.big_id",
        "Project\nNested Loop\nSeq Scan on small s\nIndex Scan using big_pkey on big b\nIndex Cond: ((id = big_id))"
            .trim_start_matches("Project\n"));
    check(
        "SELECT v FROM big b JOIN pair p ON b.w = p.a",
        "Hash Join\nHash Cond: (w = a)\nSeq Scan on big b\nSeq Scan on pair p",
    );
    check(
        "SELECT s.id FROM small s, big b WHERE s.id = b.id AND s.id = 4",
        "Hash Join\nHash Cond: (id = id)\nIndex Scan using small_pkey on small s\nIndex Cond: ((id = 4))\nIndex Scan using big_pkey on big b\nIndex Cond: ((id = 4))",
    );
    db.check("SELECT count(v) FROM small s JOIN big b ON b.id = s.big_id", "10").await;
    db.check("SELECT count(*) FROM small s LEFT JOIN big b ON b.id = s.big_id + 450", "10").await;
}

#[tokio::test]
async fn analyze_counts() {
    let db = tables().await;
    let text = db.analyzed("SELECT v FROM small s JOIN big b ON b.id = s.big_id").await;
    assert!(text.contains("rows=10 loops=1"), "{text}");
    assert!(
        text.contains("Index Scan using big_pkey on big b  (rows=1) (actual time=0.000 rows=10 loops=10)"),
        "{text}"
    );
}
