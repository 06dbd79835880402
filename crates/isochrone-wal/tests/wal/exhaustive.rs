//! Every bit flipped, every length cut (W2, W4): each is detected, or changes nothing. Never wrong data, never a panic.

use std::path::PathBuf;

use isochrone_env::fake::MemDisk;
use isochrone_wal::{Batch, DATA_START, Error, Tail, inspect};

use crate::support::{DIR, Model, Op, config, copy_of, files, observe, open, segment_files};

/// A log of a few segments, some recycled, and the model after every synced batch, oldest first.
fn small_log(close: bool) -> (MemDisk, Vec<Model>) {
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut versions = vec![Model::default()];
    let mut rounds = 0..;
    loop {
        let round: u64 = rounds.next().unwrap();
        let (mut batch, mut model) = (Batch::new(), versions.last().unwrap().clone());
        for shard in 1..3 {
            let bytes = 20 + (round * 13 % 60) as usize;
            model.run(
                &Op::Entry { shard, back: 0, term: 1 + round / 8, bytes, fill: round as u8 },
                &mut batch,
            );
        }
        if round.is_multiple_of(3) {
            model.run(&Op::Hard { shard: 1, term: 1 + round / 8, vote: 1, commit: round }, &mut batch);
        }
        if round >= 12 {
            model.run(&Op::Truncate { shard: 1 + round % 2, forward: 2 }, &mut batch);
        }
        log.append(&[batch]).unwrap();
        log.sync().unwrap();
        versions.push(model);
        let reader = log.reader();
        let end = reader.segments().last().unwrap().end;
        if log.stats().segments_reused >= 2 && (DATA_START + 700..DATA_START + 1200).contains(&end) {
            break;
        }
    }
    if close {
        log.close().unwrap();
    }
    (disk, versions)
}

#[derive(Default, Debug)]
struct Tally {
    damaged: u64,
    cut: u64,
    harmless: u64,
}

/// Opens a log that something was done to. `lost_max`: how many of the last batches may be cut off.
fn judge(disk: &MemDisk, versions: &[Model], what: &dyn Fn() -> String, tally: &mut Tally) -> Option<Tail> {
    let verified = inspect::verify(disk, DIR.as_ref());
    let durable = versions.last().unwrap();
    match open(disk, config()) {
        Err(Error::Damaged { .. } | Error::UnknownVersion { .. } | Error::NotALog { .. }) => {
            assert!(
                verified.is_err() || !verified.unwrap().problems.is_empty(),
                "{}: verify finds it too",
                what()
            );
            tally.damaged += 1;
            None
        }
        Err(e) => panic!("{}: {e}", what()),
        Ok((log, report)) => {
            let verified = verified.unwrap();
            assert!(verified.problems.is_empty() && verified.tail == report.tail, "{}", what());
            let seen = observe(&log.reader()).unwrap_or_else(|e| panic!("{}: {e}", what()));
            match &report.tail {
                Tail::Clean => tally.harmless += u64::from(seen == *durable),
                Tail::Cut { .. } => {
                    tally.cut += 1;
                    assert!(versions.contains(&seen), "{}: wrong data", what());
                }
            }
            if report.tail == Tail::Clean {
                assert_eq!(seen, *durable, "{}: silently lost", what());
            }
            Some(report.tail)
        }
    }
}

#[test]
fn every_bit_flipped() {
    for close in [false, true] {
        let (disk, versions) = small_log(close);
        let originals = segment_files(&disk);
        assert!(originals.len() >= 2, "{}", originals.len());
        let mut tally = Tally::default();
        // What may be lost to a cut is the last batch at most: everything before it is under a durable-end mark.
        let acceptable = &versions[versions.len() - 2..];
        for (n, (name, bytes)) in originals.iter().enumerate() {
            for at in 0..bytes.len() {
                // Between header and data nothing is ever read: one bit of each byte will do.
                let bits = if (64..DATA_START as usize).contains(&at) { 0..1 } else { 0..8 };
                for bit in bits {
                    let mut files = originals.clone();
                    files[n].1[at] ^= 1 << bit;
                    let what = || format!("bit {bit} of byte {at} of {}", name.display());
                    let tail = judge(&copy_of(&files), acceptable, &what, &mut tally);
                    if close && let Some(Tail::Cut { .. }) = tail {
                        let log = open(&copy_of(&files), config()).unwrap().0;
                        assert_eq!(
                            observe(&log.reader()).unwrap(),
                            versions[versions.len() - 1],
                            "{}",
                            what()
                        );
                    }
                }
            }
        }
        println!("closed in order: {close}: {tally:?}");
        assert!(tally.damaged > 5_000 && tally.cut > 300, "{tally:?}");
    }
}

#[test]
fn every_length_cut() {
    let (disk, versions) = small_log(false);
    let originals = segment_files(&disk);
    let mut tally = Tally::default();
    for n in 0..originals.len() {
        for len in 0..originals[n].1.len() {
            let mut files = originals.clone();
            files[n].1.truncate(len);
            let what = || format!("{} cut to {len}", originals[n].0.display());
            assert_eq!(judge(&copy_of(&files), &versions, &what, &mut tally), None, "{}", what());
        }
    }
    assert_eq!(tally.damaged, originals.iter().map(|f| f.1.len() as u64).sum::<u64>());
}

/// The end of the last segment is lost to zeros, or to what an older life had there, at every byte: the log ends at
/// some batch, or is damaged; what is below the last durable-end mark is never given up silently.
#[test]
fn every_tail_lost() {
    let (disk, versions) = small_log(false);
    let originals = segment_files(&disk);
    let (last, bytes) = originals.last().unwrap();
    let end = open(&copy_of(&originals), config()).unwrap().1.end.offset as usize;
    let mut cuts = 0;
    for from in DATA_START as usize..end {
        for fill in [0u8, 0x5a] {
            let mut damaged = bytes.clone();
            damaged[from..].fill(fill);
            let disk = copy_of(&originals);
            disk.set_contents(last, damaged.clone());
            let (log, report) = open(&disk, config()).unwrap_or_else(|e| panic!("from {from}: {e}"));
            let seen = observe(&log.reader()).unwrap();
            assert!(versions.contains(&seen), "from {from}: wrong data");
            cuts += u64::from(report.tail != Tail::Clean);
            // What was lost is not in it, unless the lost bytes were what is there now, or only padding.
            let end = report.end.offset as usize;
            assert!(
                end <= from.next_multiple_of(8) || damaged[from..end] == bytes[from..end],
                "from {from}: ends at {end}"
            );
        }
    }
    assert!(cuts as usize > end - DATA_START as usize, "{cuts}");
}

/// A block of a segment that lies in another place, or in another segment, is not taken for its own.
#[test]
fn misplaced_blocks() {
    let (disk, versions) = small_log(false);
    let originals = segment_files(&disk);
    let mut tally = Tally::default();
    let sectors = originals[0].1.len() / 512;
    for to_file in 0..originals.len() {
        for from_file in 0..originals.len() {
            for to in 0..sectors {
                for from in 0..sectors {
                    let block = originals[from_file].1[from * 512..][..512].to_vec();
                    if block == originals[to_file].1[to * 512..][..512] {
                        continue;
                    }
                    let mut files = originals.clone();
                    files[to_file].1[to * 512..][..512].copy_from_slice(&block);
                    let what = || format!("block {from} of {from_file} at {to} of {to_file}");
                    let disk = copy_of(&files);
                    match open(&disk, config()) {
                        Err(Error::Damaged { .. } | Error::NotALog { .. }) => tally.damaged += 1,
                        Err(e) => panic!("{}: {e}", what()),
                        Ok((log, report)) => {
                            let seen = observe(&log.reader()).unwrap();
                            // The block may have held the last marks too: then it is a cut, and says so.
                            if report.tail == Tail::Clean {
                                assert_eq!(seen, *versions.last().unwrap(), "{}", what());
                                tally.harmless += 1;
                            } else {
                                assert!(versions.contains(&seen), "{}: {:?}", what(), report.tail);
                                tally.cut += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(tally.damaged > 50 && tally.harmless > 50 && tally.cut > 0, "{tally:?}");
}

/// A missing file in the middle, a foreign file, another version, a foreign segment: a clear error each.
#[test]
fn not_our_directory() {
    let (disk, _) = small_log(false);
    let originals = segment_files(&disk);
    let middle = copy_of(&originals[1..]);
    assert!(matches!(open(&middle, config()), Err(Error::Damaged { .. })));
    let foreign = copy_of(&files(&disk));
    foreign.set_contents(&PathBuf::from(DIR).join("postgresql.conf"), vec![1]);
    assert!(matches!(open(&foreign, config()), Err(Error::NotALog { .. })));
    let version = copy_of(&originals);
    let (name, mut bytes) = originals.last().unwrap().clone();
    bytes[8] = 9;
    version.set_contents(&name, bytes);
    let e = open(&version, config()).err().unwrap();
    assert!(e.to_string().ends_with("has log format version 9, this program reads version 1"), "{e}");
    let garbage = copy_of(&originals);
    garbage.set_contents(&name, vec![0x41; 6 << 10]);
    assert!(matches!(open(&garbage, config()), Err(Error::Damaged { offset: 0, .. })));
}

/// Verify names every damaged place, not only the first.
#[test]
fn verify_reports_all() {
    let (disk, _) = small_log(false);
    let originals = segment_files(&disk);
    let mut files = originals.clone();
    files[0].1[DATA_START as usize + 70] ^= 1;
    files[0].1[DATA_START as usize + 1200] ^= 1;
    let v = inspect::verify(&copy_of(&files), DIR.as_ref()).unwrap();
    let places: Vec<u64> = v.problems.iter().filter(|p| p.file == files[0].0).map(|p| p.offset).collect();
    assert!(places.len() >= 2 && places[0] == DATA_START, "{:?}", v.problems);
    assert!(v.segments.len() == originals.len());
}

/// W5: a lost write before a whole one is a cut; the whole one never comes back, even where the log grows up to it
/// again and the zeros behind the new end are lost.
#[test]
fn what_was_cut_does_not_come_back() {
    use isochrone_base::ShardId;
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let entry = |index, bytes| {
        let mut b = Batch::new();
        b.entry(ShardId(1), 1, index, vec![index as u8; bytes]);
        b
    };
    log.append(&[entry(1, 20)]).unwrap();
    log.sync().unwrap();
    let (name, before) = segment_files(&disk).pop().unwrap();
    let lost_at = log.durable_end().offset as usize;
    log.append(&[entry(2, 100)]).unwrap();
    let whole_at = lost_at + 56 + 36 + 100;
    assert!(whole_at.is_multiple_of(8));
    log.append(&[entry(3, 10)]).unwrap();
    drop(log);
    let (_, mut torn) = segment_files(&disk).pop().unwrap();
    torn[lost_at..whole_at].copy_from_slice(&before[lost_at..whole_at]);
    disk.set_contents(&name, torn.clone());
    let (mut log, report) = open(&disk, config()).unwrap();
    let what = "a write is missing before a whole one";
    assert_eq!(report.tail, Tail::Cut { file: name.clone(), offset: lost_at as u64, what });
    assert_eq!(log.reader().last_index(ShardId(1)).unwrap(), 1);
    // The first batch of the new life takes 56 bytes: this one ends where the old whole one begins.
    log.append(&[entry(2, 100 - 56)]).unwrap();
    drop(log);
    let (_, mut now) = segment_files(&disk).pop().unwrap();
    assert_eq!(now[whole_at..whole_at + 56], [0; 56]);
    now[whole_at..whole_at + 200].copy_from_slice(&torn[whole_at..whole_at + 200]);
    disk.set_contents(&name, now);
    let (log, report) = open(&disk, config()).unwrap();
    assert_eq!(report.tail, Tail::Clean);
    assert_eq!(log.reader().last_index(ShardId(1)).unwrap(), 2, "entry 3 is of an earlier life");
    let entries = log.reader().entries(ShardId(1), 2..3, 0).unwrap();
    assert_eq!(entries[0].payload.len(), 44);
}

/// What rots after the log was opened is found when it is read.
#[test]
fn rot_is_found_by_reading() {
    use isochrone_base::ShardId;
    let (disk, versions) = small_log(true);
    let log = open(&disk, config()).unwrap().0;
    let shard = ShardId(1);
    let model = &versions.last().unwrap().0[&1];
    let p = log.reader().position(shard, model.first).unwrap();
    for bit in 0..p.bytes * 8 {
        let original = disk.contents(&p.file).unwrap();
        let mut bytes = original.clone();
        bytes[(p.at.offset + bit / 8) as usize] ^= 1 << (bit % 8);
        disk.set_contents(&p.file, bytes);
        let r = log.reader().entries(shard, model.first..model.last() + 1, usize::MAX);
        assert!(
            matches!(&r, Err(Error::Damaged { offset, .. }) if *offset == p.at.offset),
            "bit {bit}: {r:?}"
        );
        disk.set_contents(&p.file, original);
    }
}
