//! A fault at every operation (W2, W6): whatever was acknowledged is there afterwards.

use isochrone_env::SplitMix64;
use isochrone_env::fake::{Fault, MemDisk};
use isochrone_wal::{Batch, Error, Log, Tail};

use crate::support::{Model, Op, config, observe, open};

/// A fixed load over several segments, with truncation, recycling and moving. Returns what was acknowledged, what
/// may be there beyond that, and the first error.
fn load(disk: &MemDisk, reopen_at: u64) -> (Vec<Model>, Option<Error>) {
    let mut versions = vec![Model::default()];
    let r = (|| -> Result<(), Error> {
        let mut log = open(disk, config())?.0;
        for round in 0..40u64 {
            for half in 0..2 {
                let (mut batch, mut model) = (Batch::new(), versions.last().unwrap().clone());
                for shard in 1..4 {
                    let bytes = 60 + (round * 7 % 50) as usize;
                    let fill = (round * 2 + half) as u8;
                    model.run(
                        &Op::Entry { shard, back: round % 5 / 4, term: 1 + round, bytes, fill },
                        &mut batch,
                    );
                    // Shard 3 is truncated rarely: its entries are moved.
                    if half == 0 && (shard < 3 || round % 16 == 15) {
                        model.run(&Op::Truncate { shard, forward: 2 }, &mut batch);
                    }
                }
                if round % 7 == 0 {
                    model.run(
                        &Op::Hard { shard: 1 + round % 3, term: round, vote: 1, commit: round },
                        &mut batch,
                    );
                }
                versions.push(model);
                log.append(&[batch])?;
            }
            log.sync()?;
            versions.drain(..versions.len() - 1);
            if round == reopen_at {
                log.close()?;
                log = open(disk, config())?.0;
                assert_eq!(observe(&log.reader())?, versions[0]);
            }
        }
        Ok(())
    })();
    (versions, r.err())
}

fn check(disk: &MemDisk, versions: &[Model], what: &str) -> Log {
    let (log, _) = open(disk, config()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let seen = observe(&log.reader()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(versions.contains(&seen), "{what}: {seen:#?} is none of {versions:#?}");
    log
}

/// The log is used long enough that every spare comes into use again, crashed, and read again.
fn go_on(disk: &MemDisk, mut log: Log, what: &str) -> Model {
    let mut model = observe(&log.reader()).unwrap();
    for round in 0..24 {
        let mut batch = Batch::new();
        for shard in 1..4 {
            model.run(&Op::Entry { shard, back: 0, term: 99, bytes: 150, fill: round }, &mut batch);
            if round > 0 {
                model.run(&Op::Truncate { shard, forward: 1 + u64::from(round) % 2 }, &mut batch);
            }
        }
        log.append(&[batch]).unwrap_or_else(|e| panic!("{what}, later: {e}"));
        log.sync().unwrap_or_else(|e| panic!("{what}, later: {e}"));
    }
    assert_eq!(
        observe(&log.reader()).unwrap_or_else(|e| panic!("{what}, later: {e}")),
        model,
        "{what}, later"
    );
    drop(log);
    disk.crash(&SplitMix64::new(1));
    check(disk, std::slice::from_ref(&model), what);
    model
}

#[test]
fn a_fault_at_every_operation() {
    let disk = MemDisk::new();
    let (_, error) = load(&disk, 20);
    assert!(error.is_none(), "{error:?}");
    let operations = disk.operations();
    assert!(operations > 200, "{operations}");
    for k in 0..operations {
        for fault in [Fault::PowerCut, Fault::Eio, Fault::SyncFails, Fault::Enospc] {
            let what = format!("{fault:?} at operation {k}");
            let disk = MemDisk::new();
            disk.fail_at(k, fault);
            let (versions, error) = load(&disk, 20);
            let Some(error) = error else {
                assert!(matches!(fault, Fault::Enospc | Fault::SyncFails), "{what}: must be noticed");
                continue;
            };
            assert!(!error.is_refusal(), "{what}: {error}");
            match fault {
                Fault::PowerCut => {
                    disk.crash(&SplitMix64::new(k));
                    // The next life meets a power cut too, at some operation of its opening.
                    disk.fail_at(disk.operations() + k % 11, Fault::PowerCut);
                    if open(&disk, config()).is_err() {
                        disk.crash(&SplitMix64::new(k + 1));
                    }
                    disk.heal();
                    let log = check(&disk, &versions, &what);
                    go_on(&disk, log, &what);
                }
                // The process restarts on a machine that goes on; then the power fails: while the log is opened,
                // after it was used, or before.
                Fault::Eio | Fault::SyncFails | Fault::Enospc if k % 3 == 0 => {
                    disk.heal();
                    disk.fail_at(disk.operations() + k / 3 % 7, Fault::PowerCut);
                    drop(open(&disk, config()));
                    disk.crash(&SplitMix64::new(k));
                    let log = check(&disk, &versions, &what);
                    go_on(&disk, log, &what);
                }
                Fault::Eio | Fault::SyncFails | Fault::Enospc => {
                    disk.heal();
                    let (mut log, report) = open(&disk, config()).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_eq!(report.tail, Tail::Clean, "{what}: a write that failed wrote nothing");
                    let mut model = observe(&log.reader()).unwrap();
                    assert!(versions.contains(&model), "{what}");
                    if k % 3 == 1 {
                        model = go_on(&disk, log, &what);
                    } else {
                        // So little that no further segment, whose making would sync the directory, is needed.
                        let mut batch = Batch::new();
                        model.run(&Op::Entry { shard: 1, back: 0, term: 99, bytes: 9, fill: 9 }, &mut batch);
                        log.append(&[batch]).unwrap();
                        log.sync().unwrap();
                    }
                    disk.crash(&SplitMix64::new(k));
                    check(&disk, &[model], &what);
                }
            }
        }
    }
}

/// After a failed write or sync nothing is written any more, and nothing of it is seen.
#[test]
fn a_failure_stops_the_log() {
    use isochrone_base::ShardId;
    for at_sync in [false, true] {
        let disk = MemDisk::new();
        let mut log = open(&disk, config()).unwrap().0;
        let batch = |i| {
            let mut b = Batch::new();
            b.entry(ShardId(1), 1, i, "x");
            b
        };
        log.append(&[batch(1)]).unwrap();
        log.sync().unwrap();
        disk.fail_at(disk.operations() + u64::from(at_sync), Fault::Eio);
        let r = log.append(&[batch(2)]).and_then(|()| log.sync());
        assert!(matches!(r, Err(Error::Io { .. })), "{r:?}");
        let operations = disk.operations();
        assert!(matches!(log.append(&[batch(2)]), Err(Error::Poisoned(_))));
        assert!(matches!(log.sync(), Err(Error::Poisoned(_))));
        assert!(matches!(log.maintain(), Err(Error::Poisoned(_))));
        assert_eq!(disk.operations(), operations);
        assert_eq!(log.reader().last_index(ShardId(1)).unwrap(), 1);
        assert!(log.poisoned().is_some());
    }
}
