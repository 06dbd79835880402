-- A workload for the simulator: isochrone sim --workload docs/examples/stock.sql
-- What comes before the first heading is the schema; it must do no harm when it is said twice.
CREATE TABLE IF NOT EXISTS stock (id int8 PRIMARY KEY, n int8 NOT NULL CHECK (n >= 0));
INSERT INTO stock SELECT g, 100 FROM generate_series(1, 20) g ON CONFLICT DO NOTHING;

-- transaction 3
UPDATE stock SET n = n - 1 WHERE id = {1..20};
UPDATE stock SET n = n + 1 WHERE id = {1..20};

-- transaction
SELECT n FROM stock WHERE id = {1..20};

-- invariant
SELECT sum(n) FROM stock HAVING sum(n) <> 2000;
