//! Freeing, recycling and moving (W7, W4).

use isochrone_base::ShardId;
use isochrone_env::fake::MemDisk;
use isochrone_wal::{Batch, Kind, Tail};

use crate::support::{Model, Op, config, copy_of, files, observe, open, segment_files};

#[test]
fn the_log_stays_small_and_keeps_what_is_live() {
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut model = Model::default();
    let mut batch = Batch::new();
    // A shard that writes a little and never truncates, one that has only a hard state.
    for i in 0..5 {
        model.run(&Op::Entry { shard: 7, back: 0, term: 1, bytes: 20, fill: i }, &mut batch);
    }
    model.run(&Op::Hard { shard: 8, term: 3, vote: 2, commit: 1 }, &mut batch);
    log.append(&[batch]).unwrap();
    log.sync().unwrap();
    let mut segments_max = 0;
    for round in 0..2_000u64 {
        let mut batch = Batch::new();
        model.run(&Op::Entry { shard: 1, back: 0, term: 1, bytes: 100, fill: round as u8 }, &mut batch);
        if round > 10 {
            model.run(&Op::Truncate { shard: 1, forward: 1 }, &mut batch);
        }
        log.append(&[batch]).unwrap();
        log.sync().unwrap();
        segments_max = segments_max.max(log.reader().segments().len());
    }
    assert_eq!(observe(&log.reader()).unwrap(), model);
    assert!(segments_max <= 6, "{segments_max}");
    assert!(files(&disk).len() <= 8);
    let stats = log.stats();
    assert!(stats.segments_reused > 50 && stats.segments_created < 10, "{stats:?}");
    assert!(stats.records_moved > 50 && stats.records_moved < 4_000, "{stats:?}");
    assert_eq!(stats.moving_blocked, 0);
    drop(log);
    let log = open(&disk, config()).unwrap().0;
    assert_eq!(observe(&log.reader()).unwrap(), model);
    assert!(log.reader().scan().any(|r| r.unwrap().kind == Kind::MovedEntry));
}

/// A reader that holds an old file still reads it after the segment was freed; the file is not reused under it.
#[test]
fn readers_keep_their_files() {
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut model = Model::default();
    let mut batch = Batch::new();
    model.run(&Op::Entry { shard: 1, back: 0, term: 1, bytes: 100, fill: 1 }, &mut batch);
    log.append(&[batch]).unwrap();
    log.sync().unwrap();
    let mut scan = log.reader().scan();
    for round in 0..300u64 {
        let mut batch = Batch::new();
        model.run(&Op::Entry { shard: 1, back: 0, term: 1, bytes: 100, fill: round as u8 }, &mut batch);
        model.run(&Op::Truncate { shard: 1, forward: 1 }, &mut batch);
        log.append(&[batch]).unwrap();
        log.sync().unwrap();
    }
    let first = scan.next().unwrap().unwrap();
    assert_eq!((first.shard, first.index, &first.payload[..]), (ShardId(1), 1, &[1; 100][..]));
}

/// W4: a recycled segment is full of whole, valid batches of its earlier life; none is ever read as new.
#[test]
fn stale_blocks_of_recycled_segments() {
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut model = Model::default();
    let mut old_life = Vec::new();
    for round in 0..400u64 {
        let mut batch = Batch::new();
        model.run(&Op::Entry { shard: 1, back: 0, term: 1, bytes: 30, fill: round as u8 }, &mut batch);
        if round > 4 {
            model.run(&Op::Truncate { shard: 1, forward: 1 }, &mut batch);
        }
        log.append(&[batch]).unwrap();
        log.sync().unwrap();
        if log.stats().segments_reused > 0 {
            // Every batch of the old life has the size of the new ones: old and new boundaries coincide.
            let copy = copy_of(&files(&disk));
            let (log, report) = open(&copy, config()).unwrap();
            assert_eq!((report.tail, observe(&log.reader()).unwrap()), (Tail::Clean, model.clone()));
            let (name, mut bytes) = segment_files(&disk).pop().unwrap();
            // The blank behind the last batch is lost, and what the old life had there is back: not read either.
            let end = report.end.offset as usize;
            let old = old_life.get(end..(end + 56).min(old_life.len())).unwrap_or(&[]);
            bytes[end..end + old.len()].copy_from_slice(old);
            let copy = copy_of(&segment_files(&disk));
            copy.set_contents(&name, bytes);
            let log = open(&copy, config()).unwrap().0;
            assert_eq!(observe(&log.reader()).unwrap(), model);
        } else {
            // The first file, as its first life filled it: every later life of it has batches at the same places.
            old_life = segment_files(&disk)[0].1.clone();
        }
    }
    assert!(log.stats().segments_reused > 2);
}
