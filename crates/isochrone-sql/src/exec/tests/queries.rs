//! SELECT: joins, grouping, subqueries, NULLs, set operations, names and types.

use super::Db;
use isochrone_types::{Datum, Type};

async fn shop() -> Db {
    Db::script(
        "CREATE TABLE c (id int PRIMARY KEY, name text NOT NULL, city text);
         CREATE TABLE o (id int PRIMARY KEY, c_id int, amount numeric(8,2), day date, note varchar(10));
         CREATE INDEX o_c ON o (c_id);
         INSERT INTO c VALUES (1,'ann','oslo'),(2,'bob','rome'),(3,'cyd',NULL),(4,'dan','oslo');
         INSERT INTO o VALUES (10,1,5.00,'2024-01-01','a'),(11,1,7.50,'2024-01-02',NULL),
           (12,2,1.25,'2024-01-02','b'),(13,NULL,9.99,'2024-01-03','c'),(14,9,2.00,NULL,'d');",
    )
    .await
}

#[tokio::test]
async fn from_less_and_expressions() {
    let db = Db::new();
    db.check(
        "SELECT 1, 'a', NULL, 1+2*3, -2147483648, 3000000000, 1.50",
        "1|a|NULL|7|-2147483648|3000000000|1.50",
    )
    .await;
    db.check("SELECT 1 = 1.0, 2 > 3, 'a' < 'b', NULL = NULL, NULL IS NULL", "t|f|t|NULL|t").await;
    db.check("SELECT true AND NULL, false AND NULL, true OR NULL, NOT NULL", "NULL|f|t|NULL").await;
    db.check("SELECT CASE 2 WHEN 1 THEN 'one' WHEN 2 THEN 'two' ELSE 'many' END", "two").await;
    db.check("SELECT coalesce(NULL, 2, 3), nullif(1,1), greatest(1, NULL, 3), least(2, 1)", "2|NULL|3|1")
        .await;
    db.check(
        "SELECT 5 BETWEEN 1 AND 9, 5 NOT BETWEEN 1 AND 9, 3 IN (1,2,NULL), 3 NOT IN (1,2)",
        "t|f|NULL|t",
    )
    .await;
    db.check(
        "SELECT 'abc' LIKE 'a%', 'abc' ILIKE 'A_C', 'abc' NOT LIKE '%d', 'a%' LIKE 'a!%' ESCAPE '!'",
        "t|t|t|t",
    )
    .await;
    db.check("SELECT 1 IS DISTINCT FROM NULL, NULL IS NOT DISTINCT FROM NULL, true IS NOT FALSE", "t|t|t")
        .await;
    db.check(
        "SELECT '12'::int + 1, CAST(3.7 AS int), 'abc'::varchar(2), '2024-02-29'::date + 1",
        "13|4|ab|2024-03-01",
    )
    .await;
    db.check("SELECT substring('hello' from 2 for 3), position('l' in 'hello'), trim(both 'x' from 'xax'), upper('q')", "ell|3|a|Q").await;
    db.check("SELECT extract(year from date '2024-05-06'), ceil(1.2), floor(1.8), abs(-3)", "2024|2|1|3")
        .await;
    db.check("SELECT 3 = ANY (ARRAY[1,2,3]), 3 <> ALL ('{1,2}'::int[]), (ARRAY[4,5])[2]", "t|t|5").await;
    db.check("SELECT (1,2) = (1,2), (1,2) < (1,3), (1,2) IN ((3,4),(1,2))", "t|t|t").await;
    db.check("VALUES (1,'a'),(2,NULL)", "1|a\n2|NULL").await;
    db.check("SELECT * FROM generate_series(1,10,4) g WHERE g > 1", "5\n9").await;
    db.check("SELECT generate_series(1,3) * 2", "2\n4\n6").await;
    db.check("SELECT x, n FROM unnest(ARRAY['p','q']) WITH ORDINALITY AS u(x, n)", "p|1\nq|2").await;
    db.check("SELECT 1 WHERE false", "").await;
    db.fails("SELECT 1/0", "22012").await;
    db.check("SELECT CASE WHEN true THEN 1 ELSE 1/0 END", "1").await;
    db.fails("SELECT nope(1)", "42883").await;
    db.fails("SELECT 'x' + 1", "22P02").await;
    db.fails("SELECT x", "42703").await;
    db.fails("SELECT 1 FROM missing", "42P01").await;
    db.fails("SELECT row_number() OVER () FROM generate_series(1,2)", "0A000").await;
}

#[tokio::test]
async fn positions_point_at_names() {
    let db = shop().await;
    let e = db.fails("SELECT id,\n  nam FROM c", "42703").await;
    assert_eq!(e.position, Some(14));
    assert_eq!(db.fails("SELECT x.id FROM c", "42P01").await.position, Some(8));
    assert_eq!(db.fails("SELECT id FROM c, o", "42702").await.position, Some(8));
}

#[tokio::test]
async fn names_and_types_of_columns() {
    let db = shop().await;
    let plan = db.plan("SELECT id, name AS n, count(*), 1, amount::int, city || 'x' FROM c NATURAL JOIN o GROUP BY 1,2,5,6").unwrap();
    let names: Vec<&str> = plan.columns().unwrap().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["id", "n", "count", "?column?", "amount", "?column?"]);
    let c = &plan.columns().unwrap()[0];
    assert_eq!((c.ty, c.table_oid, c.attnum), (Type::Int4, 100, 1));
    assert_eq!(plan.columns().unwrap()[2].ty, Type::Int8);
    assert!(plan.is_read_only());
}

#[tokio::test]
async fn parameters_get_types_from_context() {
    let db = shop().await;
    let types = |sql: &str| db.plan(sql).unwrap().params().to_vec();
    assert_eq!(types("SELECT * FROM c WHERE id = $1 AND name = $2"), [Type::Int4, Type::Text]);
    assert_eq!(types("SELECT $1"), [Type::Text]);
    assert_eq!(types("SELECT $1::int + 1, $2 LIMIT $3"), [Type::Int4, Type::Text, Type::Int8]);
    assert_eq!(
        types("INSERT INTO o (id, amount, day, note) VALUES ($1,$2,$3,$4)"),
        [Type::Int4, Type::Numeric(None), Type::Date, Type::Varchar(None)]
    );
    assert_eq!(types("UPDATE o SET amount = amount + $1 WHERE id = $2"), [Type::Numeric(None), Type::Int4]);
    assert_eq!(types("SELECT 1 FROM c WHERE id IN ($1, $2)"), [Type::Int4, Type::Int4]);
    let typed = db.plan_typed("SELECT id FROM c WHERE id = $1", &[Some(Type::Int8)]).unwrap();
    assert_eq!(typed.params(), [Type::Int8]);
    let mut txn = db.begin(Default::default());
    assert_eq!(db.run_in(txn.as_mut(), &typed, vec![Datum::Int8(2)]).await.unwrap(), "2");
    assert_eq!(db.run_in(txn.as_mut(), &typed, vec![Datum::Int8(1 << 40)]).await.unwrap(), "");
    assert_eq!(db.run_in(txn.as_mut(), &typed, vec![Datum::Null]).await.unwrap(), "");
}

#[tokio::test]
async fn joins() {
    let db = shop().await;
    for estimate in [0, 100_000] {
        let mut db = shop().await;
        db.estimate("o", estimate);
        assert_eq!(
            db.sorted("SELECT c.name, o.id FROM c JOIN o ON o.c_id = c.id").await,
            "ann|10\nann|11\nbob|12"
        );
        assert_eq!(db.sorted("SELECT name, o.id FROM c, o WHERE c_id = c.id AND amount > 5").await, "ann|11");
        assert_eq!(
            db.sorted("SELECT name, o.id FROM c LEFT JOIN o ON c_id = c.id AND amount > 5").await,
            "ann|11\nbob|NULL\ncyd|NULL\ndan|NULL"
        );
        assert_eq!(
            db.sorted("SELECT name FROM c LEFT JOIN o ON c_id = c.id WHERE o.id IS NULL").await,
            "cyd\ndan"
        );
        assert_eq!(
            db.sorted("SELECT name, o.id FROM c RIGHT JOIN o ON c_id = c.id").await,
            "NULL|13\nNULL|14\nann|10\nann|11\nbob|12"
        );
        assert_eq!(
            db.sorted("SELECT name, o.id FROM c FULL JOIN o ON c_id = c.id").await,
            "NULL|13\nNULL|14\nann|10\nann|11\nbob|12\ncyd|NULL\ndan|NULL"
        );
        assert_eq!(
            db.sorted("SELECT name, o.id FROM c FULL JOIN o ON c_id < c.id - 2").await,
            "NULL|12\nNULL|13\nNULL|14\nann|NULL\nbob|NULL\ncyd|NULL\ndan|10\ndan|11"
        );
        assert_eq!(
            db.sorted("SELECT a.id, b.id FROM c a JOIN c b ON a.city = b.city AND a.id < b.id").await,
            "1|4"
        );
    }
    assert_eq!(db.sorted("SELECT count(*) FROM c CROSS JOIN o").await, "20");
    assert_eq!(
        db.sorted("SELECT id, a.name FROM c a JOIN c b USING (id) WHERE id < 3").await,
        "1|ann\n2|bob"
    );
    db.check("SELECT * FROM (VALUES (1,2)) a(x,y) NATURAL JOIN (VALUES (1,3)) b(x,z)", "1|2|3").await;
    db.check("SELECT x FROM (VALUES (1)) a(x) FULL JOIN (VALUES (2)) b(x) USING (x) ORDER BY x", "1\n2")
        .await;
    db.check(
        "SELECT x, y FROM (VALUES (1),(2)) a(x) LEFT JOIN (SELECT 2 AS k, 'const' AS y) d ON k = x ORDER BY x",
        "1|NULL\n2|const",
    )
    .await;
    db.fails("SELECT * FROM c, c", "42712").await;
    db.fails("SELECT id FROM c JOIN o ON true", "42702").await;
}

#[tokio::test]
async fn grouping() {
    let db = shop().await;
    db.check(
        "SELECT city, count(*), min(name), max(id) FROM c GROUP BY city ORDER BY city",
        "oslo|2|ann|4\nrome|1|bob|2\nNULL|1|cyd|3",
    )
    .await;
    db.check(
        "SELECT count(*), count(city), count(DISTINCT city), sum(id), avg(id) FROM c",
        "4|3|2|10|2.5000000000000000",
    )
    .await;
    db.check("SELECT count(*), sum(id), max(name) FROM c WHERE false", "0|NULL|NULL").await;
    db.check("SELECT city FROM c WHERE false GROUP BY city", "").await;
    db.check("SELECT c_id, sum(amount) FROM o GROUP BY c_id HAVING count(*) > 1", "1|12.50").await;
    db.check("SELECT id % 2 AS odd, count(*) FROM c GROUP BY odd ORDER BY 1", "0|2\n1|2").await;
    db.check("SELECT id % 2 + 1, count(*) FROM c GROUP BY id % 2 ORDER BY 1", "1|2\n2|2").await;
    db.check("SELECT count(*) FILTER (WHERE id > 2), sum(id) FILTER (WHERE id > 9) FROM c", "2|NULL").await;
    db.check("SELECT name FROM c GROUP BY id ORDER BY id DESC LIMIT 1", "dan").await;
    db.check("SELECT string_agg(name, ',' ORDER BY id DESC) FROM c", "dan,cyd,bob,ann").await;
    db.check("SELECT DISTINCT city FROM c ORDER BY city DESC", "NULL\nrome\noslo").await;
    db.check(
        "SELECT DISTINCT ON (city) city, name FROM c ORDER BY city, name DESC",
        "oslo|dan\nrome|bob\nNULL|cyd",
    )
    .await;
    db.fails("SELECT name, count(*) FROM c", "42803").await;
    db.fails("SELECT name FROM c GROUP BY city", "42803").await;
    db.fails("SELECT id FROM c WHERE count(*) > 1", "42803").await;
    db.fails("SELECT sum(count(*)) FROM c", "42803").await;
}

#[tokio::test]
async fn ordering_and_limits() {
    let db = shop().await;
    db.check("SELECT id FROM c ORDER BY id DESC", "4\n3\n2\n1").await;
    db.check("SELECT city, id FROM c ORDER BY city NULLS FIRST, id DESC", "NULL|3\noslo|4\noslo|1\nrome|2")
        .await;
    db.check("SELECT id FROM c ORDER BY city DESC, 1", "3\n2\n1\n4").await;
}

#[tokio::test]
async fn limits() {
    let db = shop().await;
    db.check("SELECT id FROM c ORDER BY name LIMIT 2 OFFSET 1", "2\n3").await;
    db.check("SELECT id FROM c ORDER BY id LIMIT 0", "").await;
    db.check("SELECT id FROM c ORDER BY id LIMIT NULL OFFSET 3", "4").await;
    db.check("SELECT id FROM c ORDER BY id FETCH FIRST 1 ROW ONLY", "1").await;
    db.fails("SELECT id FROM c LIMIT -1", "2201W").await;
    db.fails("SELECT id FROM c LIMIT id", "42P10").await;
}

#[tokio::test]
async fn subqueries() {
    let db = shop().await;
    db.check("SELECT (SELECT max(id) FROM o), EXISTS (SELECT 1 FROM o WHERE id = 99)", "14|f").await;
    db.check("SELECT name FROM c WHERE id IN (SELECT c_id FROM o) ORDER BY 1", "ann\nbob").await;
    db.check("SELECT name FROM c WHERE id NOT IN (SELECT c_id FROM o)", "").await;
    db.check(
        "SELECT name FROM c WHERE id NOT IN (SELECT c_id FROM o WHERE c_id IS NOT NULL) ORDER BY 1",
        "cyd\ndan",
    )
    .await;
    db.check(
        "SELECT name FROM c WHERE EXISTS (SELECT 1 FROM o WHERE c_id = c.id AND amount > 2) ORDER BY 1",
        "ann",
    )
    .await;
    db.check(
        "SELECT name FROM c WHERE NOT EXISTS (SELECT 1 FROM o WHERE c_id = c.id) ORDER BY 1",
        "cyd\ndan",
    )
    .await;
    db.check(
        "SELECT name, (SELECT sum(amount) FROM o WHERE c_id = c.id) FROM c ORDER BY id",
        "ann|12.50\nbob|1.25\ncyd|NULL\ndan|NULL",
    )
    .await;
    db.check("SELECT id FROM o WHERE amount > ALL (SELECT amount FROM o WHERE c_id = 1) ORDER BY 1", "13")
        .await;
    db.check(
        "SELECT id FROM o x WHERE amount = (SELECT max(amount) FROM o y WHERE y.c_id = x.c_id) ORDER BY id",
        "11\n12\n14",
    )
    .await;
    db.check(
        "SELECT name FROM c WHERE (SELECT count(*) FROM o WHERE c_id = c.id AND EXISTS
           (SELECT 1 FROM o o2 WHERE o2.c_id = c.id AND o2.id > o.id)) = 1",
        "ann",
    )
    .await;
    db.check(
        "SELECT d.city, n FROM (SELECT city, count(*) AS n FROM c GROUP BY city) d WHERE n > 1",
        "oslo|2",
    )
    .await;
    db.check(
        "SELECT city, (SELECT count(*) FROM c b WHERE b.city = a.city) FROM c a GROUP BY city ORDER BY 1",
        "oslo|2\nrome|1\nNULL|0",
    )
    .await;
    db.check("SELECT ARRAY(SELECT id FROM c ORDER BY id DESC)", "{4,3,2,1}").await;
    db.fails("SELECT (SELECT id FROM c)", "21000").await;
    db.fails("SELECT (SELECT id, name FROM c)", "42601").await;
}

#[tokio::test]
async fn with_and_set_operations() {
    let db = shop().await;
    db.check(
        "WITH x AS (SELECT id, name FROM c WHERE id < 3) SELECT a.name, b.id FROM x a, x b WHERE a.id < b.id",
        "ann|2",
    )
    .await;
    db.check(
        "WITH x(k) AS (VALUES (1),(2)), y AS (SELECT k * 10 AS k FROM x) SELECT * FROM y ORDER BY k",
        "10\n20",
    )
    .await;
    db.check("SELECT 1 UNION SELECT 1 UNION ALL SELECT 2 ORDER BY 1", "1\n2").await;
    db.check("SELECT city FROM c INTERSECT SELECT 'oslo'", "oslo").await;
    db.check("SELECT id FROM c EXCEPT SELECT c_id FROM o ORDER BY id", "3\n4").await;
    db.check("SELECT x FROM (VALUES (1),(1),(2)) v(x) EXCEPT ALL SELECT 1 ORDER BY x", "1\n2").await;
    db.check("SELECT 1 AS a UNION SELECT 2.5 ORDER BY a DESC LIMIT 1", "2.5").await;
    db.check("SELECT NULL UNION SELECT 3", "NULL\n3").await;
    db.fails("SELECT 1 UNION SELECT 1, 2", "42601").await;
    db.fails("SELECT 1 UNION SELECT 'x'", "22P02").await;
    db.fails("WITH RECURSIVE r AS (SELECT 1) SELECT * FROM r", "0A000").await;
}

#[tokio::test]
async fn many_tables_join() {
    let mut ddl = String::new();
    for t in 0..40 {
        ddl.push_str(&format!("CREATE TABLE t{t} (a{t} int PRIMARY KEY, b{t} int);"));
        for r in 0..10 {
            ddl.push_str(&format!("INSERT INTO t{t} VALUES ({r}, {});", (r + t) % 10));
        }
    }
    let db = Db::script(&ddl).await;
    let tables: Vec<String> = (0..40).map(|t| format!("t{t}")).collect();
    let conditions: Vec<String> = (1..40).map(|t| format!("a{t} = b{}", t - 1)).collect();
    let sql =
        format!("SELECT a0, b39 FROM {} WHERE {} AND b39 = 4", tables.join(","), conditions.join(" AND "));
    let answer = db.run(&sql).await.unwrap();
    assert_eq!(answer.lines().count(), 1, "{answer}");
}

#[tokio::test]
async fn batches_are_larger_than_one() {
    let db = Db::script("CREATE TABLE n (i int PRIMARY KEY, j int); INSERT INTO n SELECT g, g % 10 FROM generate_series(1, 5000) g;").await;
    db.check("SELECT count(*), sum(i), count(DISTINCT j) FROM n", "5000|12502500|10").await;
    db.check("SELECT count(*) FROM n a JOIN n b ON a.j = b.j WHERE a.i <= 20", "10000").await;
    db.check("SELECT count(*) FROM n a, n b WHERE a.i <= 3 AND b.i < a.i", "3").await;
    db.check("SELECT i FROM n ORDER BY j DESC, i DESC LIMIT 3", "4999\n4989\n4979").await;
    db.check("SELECT i FROM n ORDER BY i DESC LIMIT 2 OFFSET 3000", "2000\n1999").await;
    db.check("SELECT count(*) FROM (SELECT i FROM n UNION ALL SELECT i FROM n) u", "10000").await;
    db.check("SELECT max(i), min(i) FROM n WHERE j = 3", "4993|3").await;
}
