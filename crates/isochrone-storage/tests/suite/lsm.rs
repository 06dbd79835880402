//! What only an engine on disk can meet: directories that are not ours, a second opener, damage, a disk that refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::tiny;
use isochrone_base::KeyRange;
use isochrone_storage::{Engine, Error, LsmConfig, LsmEngine, Reader, Result, WriteBatch};

fn write(engine: &dyn Engine, rows: u32, size: usize) -> Result<()> {
    let mut batch = WriteBatch::new();
    for n in 0..rows {
        batch.put(format!("key{n:06}"), vec![n as u8; size]);
    }
    engine.write(batch)
}

fn open(path: &Path) -> Result<LsmEngine> {
    LsmEngine::open(path, tiny())
}

#[track_caller]
fn refused(path: &Path) -> Error {
    match open(path) {
        Ok(_) => panic!("opened"),
        Err(e) => e,
    }
}

#[test]
fn directories_that_are_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("holiday.jpg"), b"sun").unwrap();
    let e = refused(path);
    assert!(matches!(&e, Error::NotOurs { .. }) && e.to_string().contains("holiday.jpg"), "{e}");
    assert_eq!(fs::read_dir(path).unwrap().count(), 1, "left alone");

    fs::remove_file(path.join("holiday.jpg")).unwrap();
    fs::write(path.join("isochrone-storage"), b"something else").unwrap();
    assert!(matches!(refused(path), Error::NotOurs { .. }));
    fs::write(path.join("isochrone-storage"), b"isochrone storage format 7\n").unwrap();
    let e = refused(path);
    assert!(matches!(&e, Error::Format { found, .. } if found == "7"), "{e}");

    let file = path.join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(refused(&file), Error::Io { .. }));
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).unwrap();
    assert!(matches!(refused(dir.path()), Error::Locked(_)));
    // A snapshot keeps the files, and so the lock.
    let snapshot = engine.snapshot();
    drop(engine);
    assert!(matches!(refused(dir.path()), Error::Locked(_)));
    drop(snapshot);
    open(dir.path()).unwrap();
}

#[test]
fn an_interrupted_creation_starts_over_and_a_lost_tree_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("creating"), b"").unwrap();
    fs::create_dir(path.join("tree")).unwrap();
    fs::write(path.join("tree/current"), b"torn").unwrap();
    let engine = open(path).unwrap();
    write(&engine, 10, 10).unwrap();
    engine.flush().unwrap();
    drop(engine);
    assert!(!path.join("creating").exists());
    assert_eq!(open(path).unwrap().scan(&KeyRange::all(), false).count(), 10);

    fs::remove_file(path.join("tree/current")).unwrap();
    let e = refused(path);
    assert!(matches!(e, Error::Corruption(_)), "{e}");
}

fn tables(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path.join("tree/tables")).unwrap().map(|e| e.unwrap().path()).collect()
}

#[test]
fn damaged_tables_are_reported_and_never_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let engine = open(path).unwrap();
    write(&engine, 1_000, 100).unwrap();
    engine.flush().unwrap();
    engine.compact().unwrap();
    drop(engine);
    let [table] = &tables(path)[..] else { panic!("one table") };
    let good = fs::read(table).unwrap();
    let mut reported = 0;
    for at in (0..good.len()).step_by(good.len() / 64) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(table, &bad).unwrap();
        let mut rows = 0;
        let error = match open(path) {
            Err(e) => Some(e),
            Ok(engine) => engine.scan(&KeyRange::all(), false).find_map(|row| match row {
                Err(e) => Some(e),
                Ok((k, v)) => {
                    let n: u32 = std::str::from_utf8(&k[3..]).unwrap().parse().unwrap();
                    assert_eq!((n, &v[..]), (rows, &[n as u8; 100][..]), "a wrong answer");
                    rows += 1;
                    None
                }
            }),
        };
        match error {
            Some(e) => {
                assert!(matches!(e, Error::Corruption(_) | Error::Io { .. }), "{e}");
                reported += 1;
            }
            // Filters and statistics are not read by a scan.
            None => assert_eq!(rows, 1_000, "rows missing in silence"),
        }
    }
    assert!(reported > 40, "{reported}");
    fs::write(table, &good[..good.len() / 2]).unwrap();
    assert!(matches!(refused(path), Error::Corruption(_) | Error::Io { .. }));
    fs::remove_file(table).unwrap();
    assert!(matches!(refused(path), Error::Corruption(_) | Error::Io { .. }));
}

#[test]
fn a_failed_flush_poisons() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let engine = open(path).unwrap();
    write(&engine, 10, 10).unwrap();
    engine.flush().unwrap();
    let (tables, away) = (path.join("tree/tables"), path.join("away"));
    fs::rename(&tables, &away).unwrap();
    write(&engine, 20, 10).unwrap();
    let e = engine.flush().unwrap_err();
    assert!(matches!(&e, Error::Poisoned(cause) if matches!(**cause, Error::Io { .. })), "{e}");
    // The disk is back, but nobody knows what the failed flush left.
    fs::rename(&away, &tables).unwrap();
    assert!(matches!(engine.flush(), Err(Error::Poisoned(_))));
    assert!(matches!(engine.request_flush(), Err(Error::Poisoned(_))));
    assert!(engine.stats().poisoned.is_some());
    assert_eq!(engine.scan(&KeyRange::all(), false).count(), 20);
    // Writes go on until memory is full, and are then refused rather than left waiting.
    let mut writes = 0;
    let e = loop {
        match write(&engine, 20, 100) {
            Ok(()) => writes += 1,
            Err(e) => break e,
        }
        assert!(writes < 1_000, "memory without a bound");
    };
    assert!(matches!(e, Error::Poisoned(_)), "{e}");
    drop(engine);
    assert_eq!(open(path).unwrap().scan(&KeyRange::all(), false).count(), 10);
}

#[test]
fn old_files_go_when_the_last_reader_goes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).unwrap();
    write(&engine, 500, 100).unwrap();
    let snapshot = engine.snapshot();
    let mut scan = snapshot.scan(&KeyRange::all(), false);
    assert_eq!(scan.next().unwrap().unwrap().1.len(), 100);
    drop(snapshot);
    for _ in 0..10 {
        write(&engine, 500, 50).unwrap();
        engine.flush().unwrap();
    }
    engine.compact().unwrap();
    assert_eq!(
        scan.filter(|row| row.as_ref().unwrap().1.len() == 100).count(),
        499,
        "the scan did not change"
    );
    write(&engine, 1, 50).unwrap();
    engine.flush().unwrap();
    engine.compact().unwrap();
    assert_eq!(tables(dir.path()).len() as u64, engine.stats().tables);
    let versions = fs::read_dir(dir.path().join("tree")).unwrap().count();
    assert!(versions <= 5, "{versions} files next to the tables");
}

/// Flushes begin while batches are being written; whatever the last one held, it held whole batches.
#[test]
fn a_flush_holds_whole_batches() {
    const WIDTH: u32 = 300;
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10u32 {
        // Large enough that the writer does not stand still, waiting for room, while memtables rotate.
        let config = LsmConfig { memtable_bytes: 8 << 20, ..tiny() };
        let engine = LsmEngine::open(dir.path(), config).unwrap();
        let rows: Vec<_> = engine.scan(&KeyRange::all(), false).map(|r| r.unwrap().1).collect();
        assert!(rows.len() == if round == 0 { 0 } else { WIDTH as usize }, "{} rows", rows.len());
        let odd = rows.iter().position(|v| *v != rows[0]);
        assert!(
            odd.is_none(),
            "part of a batch: in round {round} {:?} at 0, {:?} at {odd:?}",
            rows[0],
            rows[odd.unwrap_or(0)]
        );
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                let mut n = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let mut batch = WriteBatch::new();
                    for i in 0..WIDTH {
                        batch.put(i.to_be_bytes(), [round.to_be_bytes(), n.to_be_bytes()].concat());
                    }
                    engine.write(batch).unwrap();
                }
            });
            while engine.flushed_seq() == 0 {
                engine.flush().unwrap();
            }
            for _ in 0..5 {
                engine.flush().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
    }
}
