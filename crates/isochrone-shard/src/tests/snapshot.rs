//! Snapshots: what arrives is what was sent, whatever fails on the way (SN1 to SN4). Everything is drawn from seeds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isochrone_base::codec::put_bytes;
use isochrone_base::{Bytes, Key, KeyRange, NodeId, ShardId, Timestamp};
use isochrone_clock::Hlc;
use isochrone_env::fake::{Fault, ManualClock, MemDisk};
use isochrone_env::{Disk, Random, SplitMix64};
use isochrone_storage::{
    Engine, EngineStats, FlushCallback, LsmConfig, LsmEngine, MemEngine, Reader, ScanIter, Snapshot,
    WriteBatch, mvcc,
};

use super::harness::*;
use crate::api::*;
use crate::shards::{NewShard, Shards};
use crate::snapshot::{
    ShardSnapshot, SnapshotError, SnapshotMeta, Staged, StagedReader, encode_chunk, remove_staged,
    staged_files,
};

const DIR: &str = "/data/snapshots";

/// A world with some past: versions, deletions, prepares, tombstones, floors, collected garbage, a split now and then.
fn past(rng: &SplitMix64) -> World {
    let mut w = World::new();
    let mut txn = 0u128;
    for _ in 0..rng.below(120) {
        txn += 1;
        let key = |k: u64| ["", "a", "a\0", "a\0\u{1}", "b", "c", "dd", "e", "g", "kk"][k as usize];
        let (k, value) = (key(rng.below(10)), ["x", "yy", "", "zzz"][rng.below(4) as usize].repeat(9));
        match rng.below(20) {
            0..14 => {
                // It may wait for a prepare; then it is dropped.
                let _ = poll(&mut w.client.commit1(one(txn, &[(k, &value)], None, w.now())));
            }
            14 => {
                let _ = w.prepare(&one(txn, &[(k, &value)], None, w.now()));
            }
            15 => {
                let (a, b) = pair(txn, w.now(), Mode::AtMax);
                if let (Prepared::At(p), Prepared::At(q)) = (w.prepare(&a), w.prepare(&b)) {
                    w.decide(&a, Decision::Commit(p.max(q))).unwrap();
                }
            }
            16 => {
                let _ = w.probe(&one(txn, &[(k, &value)], None, w.now()));
            }
            17 => {
                w.pass(rng.below(40_000));
                now(w.client.tick()).unwrap();
            }
            18 => {
                now(w.client.raise_gc_threshold(w.now())).unwrap();
                w.shards.collect_garbage(LEFT, None).unwrap();
            }
            _ => {
                let at = ["b", "d", "f"][rng.below(3) as usize];
                let _ = now(w.client.split(at.as_bytes(), ShardId(100 + rng.below(1 << 40))));
                w.lead_new();
            }
        }
    }
    w
}

fn chunks(mut s: ShardSnapshot, bytes_max: usize) -> (SnapshotMeta, Vec<Bytes>) {
    let mut out = Vec::new();
    while let Some(chunk) = s.next_chunk(bytes_max).unwrap() {
        out.push(chunk);
    }
    assert!(s.next_chunk(bytes_max).unwrap().is_none());
    (s.meta().clone(), out)
}

fn stage(disk: &MemDisk, meta: &SnapshotMeta, chunks: &[Bytes]) -> Result<PathBuf, SnapshotError> {
    let mut staged = Staged::create(Arc::new(disk.clone()), Path::new(DIR), meta.shard, meta.index)?;
    for chunk in chunks {
        staged.append(chunk)?;
    }
    staged.finish(meta)
}

pub(super) fn open_staged(shards: &Shards, shard: ShardId, bytes_max: usize) -> StagedReader {
    let disk = MemDisk::new();
    let (meta, chunks) = chunks(shards.snapshot(shard).unwrap(), bytes_max);
    let path = stage(&disk, &meta, &chunks).unwrap();
    let staged = StagedReader::open(&disk, &path).unwrap();
    assert_eq!((staged.meta(), staged.range()), (&meta, &shards.get(shard).unwrap().range()));
    staged
}

/// Rows of a shard as an engine holds them.
pub(super) fn rows(engine: &dyn Reader, shard: ShardId, range: &KeyRange) -> Vec<(Bytes, Bytes)> {
    let mine = |key: &[u8]| match key[0] {
        b'd' => range.contains(&key[1..]),
        b'h' => range.contains(&mvcc::parse_history_key(key).unwrap().0),
        _ => key[1..9] == shard.0.to_be_bytes(),
    };
    everything(engine).into_iter().filter(|(k, _)| mine(k)).collect()
}

fn open_shards(engine: Arc<dyn Engine>) -> Arc<Shards> {
    let hlc = Arc::new(Hlc::new(Arc::new(ManualClock::new(1)), Timestamp::MIN));
    Shards::open(engine, OTHER, hlc, config()).unwrap()
}

/// Everything about a shard is the same on both sides.
fn same(w: &World, shard: ShardId, shards: &Shards, engine: &dyn Engine) {
    let (source, target) = (w.shards.get(shard).unwrap(), shards.get(shard).unwrap());
    let range = source.range();
    assert_eq!(rows(engine, shard, &range), rows(&w.engine, shard, &range));
    let (a, b) = (source.state_light(), target.state_light());
    assert_eq!(
        (a.range, a.epoch, a.applied, a.applied_term, a.floor, a.closed, a.resolved, a.gc_threshold),
        (b.range, b.epoch, b.applied, b.applied_term, b.floor, b.closed, b.resolved, b.gc_threshold)
    );
    assert_eq!((a.read_limit, a.members, a.truncate_to), (b.read_limit, b.members, b.truncate_to));
    let records = |s: &Shards| s.records(10_000).into_iter().filter(|r| r.shard == shard).collect::<Vec<_>>();
    assert_eq!(records(shards), records(&w.shards));
    assert_eq!(
        mvcc::logical_hash(engine, &range, a.gc_threshold).unwrap(),
        mvcc::logical_hash(&w.engine, &range, a.gc_threshold).unwrap()
    );
    // The past reads the same.
    let snapshots = (w.engine.snapshot(), engine.snapshot());
    for ms in 0..40 {
        let ts = a.gc_threshold.max(Timestamp::from_micros(1_000_000_000 + ms * 50));
        let read = |s: &Arc<dyn Snapshot>| {
            mvcc::scan_at(s, &range, ts, false).collect::<Result<Vec<_>, _>>().unwrap()
        };
        assert_eq!(read(&snapshots.1), read(&snapshots.0));
    }
}

/// An engine that fails from a chosen batch on, and flushes where it likes.
struct Fragile {
    inner: Arc<dyn Engine>,
    batches_left: AtomicU64,
    rng: SplitMix64,
}

impl Fragile {
    fn new(inner: Arc<dyn Engine>, batches: u64, seed: u64) -> Arc<Fragile> {
        let batches_left = AtomicU64::new(batches);
        Arc::new(Fragile { inner, batches_left, rng: SplitMix64::new(seed) })
    }
}

impl Reader for Fragile {
    fn get(&self, key: &[u8]) -> isochrone_storage::Result<Option<Bytes>> {
        self.inner.get(key)
    }
    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter {
        self.inner.scan(range, reverse)
    }
}

impl Engine for Fragile {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.inner.snapshot()
    }
    fn write(&self, batch: WriteBatch) -> isochrone_storage::Result<()> {
        let left = self.batches_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(isochrone_storage::Error::Corruption("the power is off".into()));
        }
        self.batches_left.store(left - 1, Ordering::Relaxed);
        self.inner.write(batch)?;
        match self.rng.below(3) {
            0 => self.inner.flush(),
            _ => Ok(()),
        }
    }
    fn written_seq(&self) -> u64 {
        self.inner.written_seq()
    }
    fn flushed_seq(&self) -> u64 {
        self.inner.flushed_seq()
    }
    fn request_flush(&self) -> isochrone_storage::Result<u64> {
        self.inner.request_flush()
    }
    fn flush(&self) -> isochrone_storage::Result<()> {
        match self.batches_left.load(Ordering::Relaxed) {
            0 => Err(isochrone_storage::Error::Corruption("the power is off".into())),
            _ => self.inner.flush(),
        }
    }
    fn on_flush(&self, callback: FlushCallback) {
        self.inner.on_flush(callback);
    }
    fn memtable_bytes(&self) -> u64 {
        self.inner.memtable_bytes()
    }
    fn needs_flush(&self) -> bool {
        self.inner.needs_flush()
    }
    fn approximate_bytes(&self, range: &KeyRange) -> u64 {
        self.inner.approximate_bytes(range)
    }
    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
}

/// An older replica of the world's shards: the beginning of their logs; sometimes none at all but for the right one.
fn older(w: &World, engine: &dyn Engine, rng: &SplitMix64) {
    let f = follower(w);
    let log = w.log.state().logs[&RIGHT].clone();
    f.shards.apply_entries(RIGHT, &log).unwrap();
    let log = w.log.state().logs[&LEFT].clone();
    // Before the first split: SN1 has a test of its own.
    let split = log.iter().position(|e| crate::command::show(&e.2).kind == "split").unwrap_or(log.len());
    f.shards.apply_entries(LEFT, &log[..rng.below(split as u64 + 1) as usize]).unwrap();
    let mut batch = WriteBatch::new();
    let left = f.shards.get(LEFT).unwrap().range();
    let none = rng.below(4) == 0;
    let junk = rows(&f.engine, LEFT, &left);
    for (key, value) in everything(&f.engine) {
        if !none || !junk.iter().any(|(k, _)| *k == key) {
            batch.put(key.to_vec(), value);
        }
    }
    engine.write(batch).unwrap();
    engine.flush().unwrap();
}

/// They travel between threads.
const fn is_send<T: Send>() {}
const _: () = (is_send::<ShardSnapshot>(), is_send::<Staged>(), is_send::<StagedReader>()).0;

#[test]
fn what_is_installed_is_what_was_exported() {
    for seed in 0..150 {
        println!("seed {seed}");
        let rng = SplitMix64::new(seed);
        let w = past(&rng);
        let bytes_max = [1, 50, 400, 1 << 20][rng.below(4) as usize];
        let staged = open_staged(&w.shards, LEFT, bytes_max);
        let dir = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = match seed % 5 {
            0 => Arc::new(LsmEngine::open(dir.path(), LsmConfig::default()).unwrap()),
            _ => Arc::new(MemEngine::new()),
        };
        older(&w, &*engine, &rng);
        let shards = open_shards(engine.clone());
        let right = rows(&*engine, RIGHT, &KeyRange::new("m", ""));
        let meta = shards.install(&staged).unwrap();
        assert_eq!(
            (meta.shard, meta.applied, &meta.members.voters[..]),
            (LEFT, staged.meta().index, &VOTERS[..])
        );
        assert!(shards.interrupted().is_empty());
        same(&w, LEFT, &shards, &*engine);
        let newest = w.shards.get(LEFT).unwrap().lock().repl.newest;
        assert!(shards.clock.last() >= newest, "S6");
        assert_eq!(rows(&*engine, RIGHT, &KeyRange::new("m", "")), right);
        // Again does nothing, and a restart finds the same.
        let written = engine.written_seq();
        assert_eq!(shards.install(&staged).unwrap(), meta);
        assert_eq!(engine.written_seq(), written);
        drop(shards);
        same(&w, LEFT, &open_shards(engine.clone()), &*engine);
        // The log goes on behind it.
        let shards = open_shards(engine.clone());
        w.unhold();
        let before = w.log.state().logs[&LEFT].len();
        let _ = poll(&mut w.client.commit1(one(1 << 64, &[("aaa", "after")], None, w.now())));
        let tail = w.log.state().logs[&LEFT][before..].to_vec();
        shards.apply_entries(LEFT, &tail).unwrap();
        same(&w, LEFT, &shards, &*engine);
    }
}

#[test]
fn a_removal_goes_on_after_a_crash_and_a_snapshot_brings_the_shard_back() {
    let (keys, mut half, mut done) = (KeyRange::new("", "m"), 0, 0);
    for seed in 0..20 {
        let w = past(&SplitMix64::new(seed));
        let staged = open_staged(&w.shards, LEFT, 1 << 20);
        for crash_after in 0.. {
            let mem = MemEngine::new();
            older(&w, &mem, &SplitMix64::new(seed));
            let open = || -> Arc<dyn Engine> { Arc::new(mem.clone()) };
            let (before, right) = (rows(&mem, LEFT, &keys), rows(&mem, RIGHT, &KeyRange::new("m", "")));
            let was_here = open_shards(open()).get(LEFT).is_some();
            let shards = open_shards(Fragile::new(open(), crash_after, seed + crash_after));
            let removed = shards.remove(LEFT);
            assert!(shards.get(LEFT).is_none(), "not in sight");
            drop(shards);
            mem.crash();
            let shards = open_shards(open());
            if shards.removed().is_empty() {
                assert!(removed.is_err(), "it was flushed");
                assert_eq!((shards.get(LEFT).is_some(), rows(&mem, LEFT, &keys)), (was_here, before));
            } else {
                half += usize::from(!shards.interrupted().is_empty());
                shards.finish_removals().unwrap();
                assert!(shards.get(LEFT).is_none() && shards.interrupted().is_empty());
                let left = rows(&mem, LEFT, &keys).into_iter().filter(|(key, _)| key[0] != b'a');
                assert_eq!(left.count(), 0, "nothing but the mark");
            }
            assert_eq!(rows(&mem, RIGHT, &KeyRange::new("m", "")), right);
            shards.install(&staged).unwrap();
            assert!(shards.removed().is_empty());
            same(&w, LEFT, &shards, &mem);
            drop(shards);
            assert!(open_shards(open()).removed().is_empty());
            if removed.is_ok() {
                done += 1;
                break;
            }
        }
    }
    assert!(half > 20 && done == 20, "{half} half way, {done} done");
}

#[test]
fn a_crash_at_any_point_starts_over() {
    let (mut interrupted, mut batches) = (0, 0);
    for seed in 0..40 {
        let rng = SplitMix64::new(seed);
        let w = past(&rng);
        let staged = open_staged(&w.shards, LEFT, 200);
        let (clear, fill) = (1 + rng.below(4) as usize, 1 + rng.below(200) as usize);
        for crash_after in 0.. {
            let draw = SplitMix64::new(seed * 1_000 + crash_after);
            let dir = tempfile::tempdir().unwrap();
            let lsm = seed % 20 == 0;
            let mem = MemEngine::new();
            let open = || -> Arc<dyn Engine> {
                match lsm {
                    true => Arc::new(LsmEngine::open(dir.path(), LsmConfig::default()).unwrap()),
                    false => Arc::new(mem.clone()),
                }
            };
            let engine = open();
            older(&w, &*engine, &SplitMix64::new(seed));
            let before = rows(&*engine, LEFT, &KeyRange::new("", "m"));
            let was_here = open_shards(engine.clone()).get(LEFT).is_some();
            let fragile = Fragile::new(engine, crash_after, draw.next_u64());
            let shards = open_shards(fragile.clone());
            let done = shards.install_in_batches(&staged, clear, fill);
            if done.is_err() {
                assert!(crash_after == 0 || shards.get(LEFT).is_none(), "SN2: not in sight half way");
            }
            drop((shards, fragile));
            mem.crash();
            let engine = open();
            let shards = open_shards(engine.clone());
            // SN2: all of the old one, or nothing in sight, or all of the new one.
            match (&done, shards.get(LEFT)) {
                (Ok(_), Some(_)) => same(&w, LEFT, &shards, &*engine),
                (Ok(_), None) => panic!("it was flushed"),
                (Err(_), Some(s)) if s.state().applied == staged.meta().index => {
                    same(&w, LEFT, &shards, &*engine)
                }
                (Err(_), Some(_)) => {
                    assert!(was_here && rows(&*engine, LEFT, &KeyRange::new("", "m")) == before)
                }
                (Err(_), None) => {
                    assert!(!was_here || shards.interrupted() == [LEFT]);
                    interrupted += usize::from(shards.interrupted() == [LEFT]);
                }
            }
            shards.install_in_batches(&staged, clear, fill).unwrap();
            assert!(shards.interrupted().is_empty());
            same(&w, LEFT, &shards, &*engine);
            drop(shards);
            same(&w, LEFT, &open_shards(engine.clone()), &*engine);
            batches += 1;
            if done.is_ok() {
                break;
            }
        }
    }
    println!("{batches} crashes, {interrupted} of them half way");
    assert!(interrupted > 300, "{interrupted}");
}

#[test]
fn sn1_keys_of_another_shard_are_not_touched() {
    let mut w = World::new();
    for k in ["b", "f", "h"] {
        w.put(1, k, "x");
    }
    let f = follower(&w);
    f.shards.apply_entries(LEFT, &w.log.state().logs[&LEFT].clone()).unwrap();
    assert_eq!(now(w.client.split(b"e", ShardId(3))), Ok(true));
    w.lead_new();
    w.put(2, "f", "y");
    w.put(3, "b", "y");
    let before = everything(&f.engine);
    let (left, right) = (open_staged(&w.shards, LEFT, 99), open_staged(&w.shards, ShardId(3), 99));
    assert!(matches!(f.shards.install(&right), Err(SnapshotError::Refused(_))), "the left one has not split");
    assert!(everything(&f.engine) == before && f.shards.interrupted().is_empty());
    // The left one's snapshot makes room; what it no longer holds is cleared.
    assert_eq!(f.shards.install(&left).unwrap().range, KeyRange::new("", "e"));
    same(&w, LEFT, &f.shards, &f.engine);
    assert!(rows(&f.engine, ShardId(3), &KeyRange::new("e", "m")).is_empty());
    assert!(f.shards.of_key(b"f").is_none());
    assert_eq!(f.shards.install(&right).unwrap().range, KeyRange::new("e", "m"));
    same(&w, ShardId(3), &f.shards, &f.engine);
    same(&w, LEFT, &f.shards, &f.engine);
}

#[test]
fn sn1_an_unfinished_installation_holds_its_keys() {
    let mut w = World::new();
    w.put(1, "b", "x");
    w.put(1, "f", "x");
    let f = follower(&w);
    f.shards.apply_entries(LEFT, &w.log.state().logs[&LEFT].clone()).unwrap();
    f.engine.flush().unwrap();
    assert_eq!(now(w.client.split(b"e", ShardId(3))), Ok(true));
    w.lead_new();
    let (left, right) = (open_staged(&w.shards, LEFT, 99), open_staged(&w.shards, ShardId(3), 99));
    let fragile = Fragile::new(Arc::new(f.engine.clone()), 2, 0);
    let shards = open_shards(fragile);
    assert!(matches!(shards.install_in_batches(&left, 1, 1), Err(SnapshotError::Storage(_))));
    f.engine.flush().unwrap();
    let shards = open_shards(Arc::new(f.engine.clone()));
    assert_eq!(shards.interrupted(), [LEFT]);
    // The old range of the left shard may still be swept.
    assert!(matches!(shards.install(&right), Err(SnapshotError::Refused(_))));
    shards.install(&left).unwrap();
    shards.install(&right).unwrap();
    same(&w, LEFT, &shards, &f.engine);
    same(&w, ShardId(3), &shards, &f.engine);
}

#[test]
fn a_replica_that_is_replaced_answers_and_writes_nothing() {
    let w = World::in_cluster(config());
    w.put(1, "a", "x");
    let s = w.shards.get(LEFT).unwrap();
    s.retire();
    assert!(matches!(w.get(2, "a", w.now()), Err(Error::NotServed(_))));
    assert!(w.shards.apply_entries(LEFT, &[(99, 1, Bytes::new())]).is_err());
    assert_eq!(w.shards.collect_garbage(LEFT, None).unwrap(), None);
}

#[test]
fn an_installed_replica_can_lead() {
    let mut w = World::new();
    w.put(1, "a", "x");
    let read = w.now();
    w.get(2, "a", read).unwrap();
    let (open, _) = pair(3, w.now(), Mode::AtMax);
    w.prepare(&open);
    let staged = open_staged(&w.shards, LEFT, 64);
    // The same node loses its replica, and gets it back.
    let engine = MemEngine::new();
    let right = NewShard { range: KeyRange::new("m", ""), ..Shards::initial(&[NodeId(1)]).remove(1) };
    Shards::bootstrap(&engine, &[right]).unwrap();
    let logs = std::mem::take(&mut w.log.state().logs);
    let terms = w.log.state().terms.clone();
    w.reopen_on(engine);
    w.shards.install(&staged).unwrap();
    w.log.state().logs = logs;
    w.log.state().terms = terms;
    now(w.client.tick()).unwrap();
    w.new_term(LEFT, &[]);
    let late = one(4, &[("c", "y")], None, read.prev());
    assert!(matches!(w.prepare(&late), Prepared::At(p) if p > read), "R1: the limit came along");
    assert_eq!(w.prepare(&open), Prepared::At(open.candidate), "T4");
    let c = w.now();
    assert_eq!(w.decide(&open, Decision::Commit(c)), Ok(AnchorReply::Decided(Decision::Commit(c))));
    assert_eq!(w.get(5, "a", w.now()), Ok(Some("3".into())));
}

// Staging.

fn some(rng: &SplitMix64) -> (SnapshotMeta, Vec<Bytes>) {
    let w = past(rng);
    chunks(w.shards.snapshot(LEFT).unwrap(), 300)
}

#[test]
fn a_file_under_its_own_name_is_complete_after_any_power_cut() {
    let (meta, chunks) = some(&SplitMix64::new(5));
    let (mut seen, mut done) = (0, false);
    let mut k = 0;
    while !done {
        for seed in 0..4 {
            let disk = MemDisk::new();
            disk.fail_at(k, Fault::PowerCut);
            done = stage(&disk, &meta, &chunks).is_ok();
            disk.crash(&SplitMix64::new(seed));
            let found = staged_files(&disk, Path::new(DIR)).unwrap();
            assert!(!done || found.len() == 1, "it was acknowledged");
            for path in &found {
                seen += 1;
                assert_eq!(StagedReader::open(&disk, path).unwrap().meta(), &meta, "SN4");
                remove_staged(&disk, path).unwrap();
            }
            assert_eq!(disk.list(Path::new(DIR)).unwrap(), [] as [PathBuf; 0]);
            let path = stage(&disk, &meta, &chunks).unwrap();
            assert!(StagedReader::open(&disk, &path).is_ok());
        }
        k += 1;
    }
    assert!(seen > 4, "also of some that were not acknowledged");
    // Full disks and failing ones are reported.
    for (k, fault) in (0..k - 1).flat_map(|k| [(k, Fault::Eio), (k, Fault::Enospc)]) {
        let disk = MemDisk::new();
        disk.fail_at(k, fault);
        match stage(&disk, &meta, &chunks) {
            Err(SnapshotError::Io { .. }) => {}
            // Syncing needs no space.
            Ok(path) => assert!(fault == Fault::Enospc && StagedReader::open(&disk, &path).is_ok()),
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn damage_is_found_before_anything_is_touched() {
    let rng = SplitMix64::new(11);
    let (meta, chunks) = some(&rng);
    let disk = MemDisk::new();
    let path = stage(&disk, &meta, &chunks).unwrap();
    let good = disk.contents(&path).unwrap();
    let bad = |bytes: Vec<u8>| {
        disk.set_contents(&path, bytes);
        matches!(StagedReader::open(&disk, &path), Err(SnapshotError::Damaged(_)))
    };
    for _ in 0..2_000 {
        let mut bytes = good.clone();
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
        assert!(bad(bytes), "a flipped bit at {at} of {}", good.len());
        assert!(bad(good[..rng.below(good.len() as u64) as usize].to_vec()));
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(bad(longer) && bad(Vec::new()) && !bad(good));
}

#[test]
fn chunks_out_of_place() {
    let rng = SplitMix64::new(5);
    let (meta, chunks) = some(&rng);
    assert!(chunks.len() > 3);
    let disk = MemDisk::new();
    let create = || Staged::create(Arc::new(disk.clone()), Path::new(DIR), meta.shard, meta.index).unwrap();
    let mut staged = create();
    staged.append(&chunks[0]).unwrap();
    staged.append(&chunks[0]).unwrap();
    assert!(matches!(staged.append(&chunks[2]), Err(SnapshotError::Damaged(_))), "one is missing");
    staged.append(&chunks[1]).unwrap();
    assert!(matches!(staged.append(&chunks[2].slice(1..)), Err(SnapshotError::Damaged(_))));
    assert!(matches!(staged.append(&Bytes::new()), Err(SnapshotError::Damaged(_))));
    let foreign = SnapshotMeta { shard: RIGHT, ..meta.clone() };
    assert!(matches!(
        staged.append(&encode_chunk(&foreign, 2, false, 0, b"")),
        Err(SnapshotError::Damaged(_))
    ));
    assert!(matches!(staged.finish(&meta), Err(SnapshotError::Damaged(_))), "not complete");
    // A second beginning drops the first.
    let mut staged = create();
    for chunk in &chunks {
        staged.append(chunk).unwrap();
    }
    let more = encode_chunk(&meta, chunks.len() as u64, true, 0, b"");
    assert!(matches!(staged.append(&more), Err(SnapshotError::Damaged(_))), "behind the last");
    assert!(matches!(staged.finish(&foreign), Err(SnapshotError::Damaged(_))));
    let staged = create();
    staged.discard().unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), [] as [PathBuf; 0]);
    // Described as something else than it holds.
    let path = stage(&disk, &SnapshotMeta { term: meta.term + 1, ..meta.clone() }, &chunks).unwrap();
    assert!(matches!(StagedReader::open(&disk, &path), Err(SnapshotError::Damaged(_))));
}

#[test]
fn rows_that_do_not_belong_to_the_shard_are_refused() {
    let w = World::new();
    w.put(1, "a", "x");
    let (meta, chunks) = chunks(w.shards.snapshot(LEFT).unwrap(), 1 << 20);
    assert_eq!(chunks.len(), 1);
    let state: Vec<(Bytes, Bytes)> =
        rows(&w.engine, LEFT, &KeyRange::new("", "m")).into_iter().filter(|(k, _)| k[0] == b'a').collect();
    let (applied, shard) = (state[0].clone(), state[1].clone());
    let with = |rows: &[(Key, &[u8])]| {
        let mut out = Vec::new();
        for (k, v) in [&shard, &applied] {
            put_bytes(&mut out, k);
            put_bytes(&mut out, v);
        }
        for (k, v) in rows {
            put_bytes(&mut out, k);
            put_bytes(&mut out, v);
        }
        let disk = MemDisk::new();
        let chunk = encode_chunk(&meta, 0, true, 2 + rows.len() as u64, &out);
        let path = stage(&disk, &meta, &[chunk]).unwrap();
        StagedReader::open(&disk, &path).map(|_| ())
    };
    assert!(with(&[]).is_ok() && with(&[(mvcc::data_key(b"b"), b"\0\0\0\0\0\0\0\x01\0x")]).is_ok());
    let bad: Vec<(Key, &[u8])> = vec![
        (mvcc::data_key(b"m"), b""),
        (mvcc::history_key(b"zz", Timestamp(5)), b""),
        (b"h\xff".to_vec(), b""),
        (mvcc::state_key(LEFT, b"shard"), b""),
        (mvcc::state_key(RIGHT, b"shard"), b""),
        (mvcc::record_key(RIGHT, b"x"), b""),
        (mvcc::record_key(LEFT, b"x"), b"garbage"),
        (mvcc::lock_key(b"a"), b""),
        (Key::new(), b""),
        (vec![b'd'; 70_000], b""),
    ];
    for (key, value) in bad {
        let got = with(&[(key.clone(), value)]);
        assert!(matches!(got, Err(SnapshotError::Damaged(_))), "{:02x?}", &key[..key.len().min(9)]);
    }
    assert!(w.shards.snapshot(ShardId(77)).is_err());
}
