//! What an engine costs: `cargo bench -p isochrone-storage`. One million rows of about 120 bytes; microseconds per
//! operation, one thread. `ISOCHRONE_BENCH_ROWS` sets another number of rows.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use isochrone_base::{KeyRange, Timestamp};
use isochrone_storage::{Engine, LsmConfig, LsmEngine, MemEngine, Reader, WriteBatch, mvcc};

const GETS: u64 = 200_000;
const SEEKS: u64 = 20_000;

fn key(n: u64) -> Vec<u8> {
    // Like a table's key: tag, table, index, an ordered int8.
    let mut key = vec![1, 0, 0, 0, 100, 0, 0, 0, 0];
    key.extend_from_slice(&(n ^ (1 << 63)).to_be_bytes());
    key
}

fn scatter(n: u64, rows: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % rows
}

fn time(what: &str, n: u64, f: impl FnOnce()) {
    let start = Instant::now();
    f();
    let us = start.elapsed().as_secs_f64() * 1e6 / n as f64;
    println!("    {what:<44} {us:>9.3} us");
}

fn load(engine: &dyn Engine, rows: u64, per_batch: u64) {
    let value = vec![0xab; 94];
    let mut n = 0;
    while n < rows {
        let mut batch = WriteBatch::new();
        for _ in 0..per_batch.min(rows - n) {
            mvcc::put_version(&mut batch, engine, &key(n), Timestamp(10), Some(&value)).unwrap();
            n += 1;
        }
        engine.write(batch).unwrap();
    }
}

fn bench(engine: &dyn Engine, rows: u64) {
    time("insert, 100 rows a batch", rows, || load(engine, rows, 100));
    reads(engine, rows, "unflushed tail");
    engine.flush().unwrap();
    reads(engine, rows, "flushed");
    let value = vec![0xcd; 94];
    time("update, 1 row a batch (old to history)", GETS, || {
        for i in 0..GETS {
            let mut batch = WriteBatch::new();
            let k = key(scatter(i, rows));
            let newest = mvcc::get_newest(engine, &k).unwrap();
            if newest.as_ref().is_some_and(|v| v.ts >= Timestamp(20 + i)) {
                continue;
            }
            mvcc::put_version_over(&mut batch, &k, newest.as_ref(), Timestamp(20 + i), Some(&value)).unwrap();
            engine.write(batch).unwrap();
        }
    });
    let gets = SEEKS.min(GETS);
    time("get in the past (history seek)", gets, || {
        for i in 0..gets {
            assert!(mvcc::get_at(engine, &key(scatter(i, rows)), Timestamp(15)).unwrap().is_some());
        }
    });
    reads(engine, rows, "after updates");
    engine.flush().unwrap();
    println!("    {:?}", engine.stats());
}

fn reads(engine: &dyn Engine, rows: u64, when: &str) {
    println!("  {when}");
    time("get, hit", GETS, || {
        for i in 0..GETS {
            assert!(mvcc::get_at(engine, &key(scatter(i, rows)), Timestamp::MAX).unwrap().is_some());
        }
    });
    time("get, hit, hot 1000 rows", GETS, || {
        for i in 0..GETS {
            assert!(mvcc::get_at(engine, &key(scatter(i % 1000, rows)), Timestamp::MAX).unwrap().is_some());
        }
    });
    time("get, miss", GETS, || {
        for i in 0..GETS {
            let mut k = key(scatter(i, rows));
            k.push(0);
            assert!(mvcc::get_newest(engine, &k).unwrap().is_none());
        }
    });
    let snapshot = engine.snapshot();
    time("scan, per row", rows, || {
        assert_eq!(mvcc::scan_at(&snapshot, &KeyRange::all(), Timestamp::MAX, false).count() as u64, rows);
    });
    time("scan backwards, per row", rows, || {
        assert_eq!(mvcc::scan_at(&snapshot, &KeyRange::all(), Timestamp::MAX, true).count() as u64, rows);
    });
    time("scan of 10 rows, per scan", SEEKS, || {
        for i in 0..SEEKS {
            let n = scatter(i, rows - 10);
            let range = KeyRange::new(key(n), key(n + 10));
            let snapshot = engine.snapshot();
            assert_eq!(mvcc::scan_at(&snapshot, &range, Timestamp::MAX, false).count(), 10);
        }
    });
}

/// One reader's latencies while one writer updates and flushes: what a flush does to reads.
fn reads_beside_writes(engine: &dyn Engine, rows: u64) {
    let done = AtomicBool::new(false);
    let mut latencies = Vec::new();
    std::thread::scope(|s| {
        s.spawn(|| {
            let value = vec![0xef; 94];
            for i in 0..GETS {
                let mut batch = WriteBatch::new();
                let k = key(scatter(i, rows));
                let ts = Timestamp(1_000_000 + i);
                mvcc::put_version(&mut batch, engine, &k, ts, Some(&value)).unwrap();
                engine.write(batch).unwrap();
                if i % (GETS / 10) == 0 {
                    engine.request_flush().unwrap();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut i = 0;
        while !done.load(Ordering::Relaxed) {
            i += 7;
            let start = Instant::now();
            mvcc::get_newest(engine, &key(scatter(i, rows))).unwrap();
            latencies.push(start.elapsed().as_secs_f64() * 1e6);
        }
    });
    latencies.sort_by(f64::total_cmp);
    let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    println!("  reads beside a writer and 10 flushes, {} reads", latencies.len());
    println!("    p50 {:.1} p99 {:.1} p99.9 {:.1} max {:.0} us", at(0.5), at(0.99), at(0.999), at(1.0));
}

fn main() {
    let rows = std::env::var("ISOCHRONE_BENCH_ROWS").ok().and_then(|s| s.parse().ok()).unwrap_or(1_000_000);
    println!("on disk, {rows} rows");
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(LsmEngine::open(dir.path(), LsmConfig::default()).unwrap());
    bench(&*engine, rows);
    reads_beside_writes(&*engine, rows);
    drop(engine);
    println!("  reopen");
    time("open", 1, || {
        let engine = LsmEngine::open(dir.path(), LsmConfig::default()).unwrap();
        assert!(engine.get(&mvcc::data_key(&key(1))).unwrap().is_some());
    });
    println!("in memory, {rows} rows");
    bench(&MemEngine::new(), rows);
}
