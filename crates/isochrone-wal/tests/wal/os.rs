//! On the operating system's files.

use std::sync::Arc;

use isochrone_base::ShardId;
use isochrone_env::os::OsDisk;
use isochrone_wal::{Batch, Config, Error, Log, Tail, inspect};

use crate::support::{Model, Op, config, observe};

#[test]
fn survives_reopening_on_real_files() {
    let tmp = tempfile::tempdir().unwrap();
    let config = Config { dir: tmp.path().join("a/log"), ..config() };
    let mut model = Model::default();
    for life in 0..5u64 {
        let (mut log, report) = Log::open(Arc::new(OsDisk), config.clone()).unwrap();
        assert_eq!((report.tail, report.epoch), (Tail::Clean, life + 1));
        assert_eq!(observe(&log.reader()).unwrap(), model);
        for i in 0..60 {
            let mut batch = Batch::new();
            model.run(
                &Op::Entry { shard: 1 + i % 3, back: 0, term: life, bytes: 90, fill: i as u8 },
                &mut batch,
            );
            if i % 3 == 2 {
                model.run(&Op::Truncate { shard: 1 + i % 2, forward: 2 }, &mut batch);
            }
            log.append(&[batch]).unwrap();
            log.sync().unwrap();
        }
        assert!(log.stats().segments_reused > 0);
        if life % 2 == 0 {
            log.close().unwrap();
        }
    }
    let v = inspect::verify(&OsDisk, &config.dir).unwrap();
    assert!(v.problems.is_empty() && v.tail == Tail::Clean && v.shards == 3, "{v:?}");
    let listed = inspect::segments(&OsDisk, &config.dir).unwrap();
    assert_eq!(listed, v.segments);
    let all: Vec<_> = inspect::records(&OsDisk, &config.dir, Default::default())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let half = all[all.len() / 2].at;
    let rest: Vec<_> =
        inspect::records(&OsDisk, &config.dir, half).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(rest[..], all[all.len() / 2..], "following goes on where it was");
}

/// The default settings on an empty directory: what a first start has to wait for.
#[test]
fn a_fresh_log_with_default_settings() {
    let tmp = tempfile::tempdir().unwrap();
    let (mut log, report) = Log::open(Arc::new(OsDisk), Config::new(tmp.path())).unwrap();
    assert_eq!((report.records, report.epoch), (0, 1));
    let mut batch = Batch::new();
    batch.entry(ShardId(1), 1, 1, "x");
    log.append(&[batch]).unwrap();
    log.close().unwrap();
    let (log, report) = Log::open(Arc::new(OsDisk), Config::new(tmp.path())).unwrap();
    assert_eq!((report.records, report.tail, log.reader().segments().len()), (1, Tail::Clean, 1));
}

#[test]
fn unusable_settings_are_refused() {
    for bad in [
        Config { segment_bytes: 0, ..config() },
        Config { segment_bytes: (6 << 10) + 1, ..config() },
        Config { batch_bytes_max: 1, ..config() },
        Config { preallocate_bytes: 0, ..config() },
        Config { rewrite_bytes_max: 0, ..config() },
    ] {
        assert!(matches!(Log::open(Arc::new(OsDisk), bad), Err(Error::Config(_))));
    }
    assert!(matches!(inspect::verify(&OsDisk, "/nowhere/at/all".as_ref()), Err(Error::Io { .. })));
}
