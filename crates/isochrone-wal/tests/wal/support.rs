//! A slow, obvious model of the log, and helpers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isochrone_base::ShardId;
use isochrone_env::fake::MemDisk;
use isochrone_wal::{Batch, Config, Error, HardState, Log, LogReader, RecoveryReport};

pub const DIR: &str = "/log";

pub fn config() -> Config {
    Config {
        segment_bytes: 6 << 10,
        segments_spare_max: 2,
        batch_bytes_max: 1 << 10,
        preallocate_bytes: 1 << 10,
        rewrite_bytes_max: 512,
        ..Config::new(DIR)
    }
}

pub fn open(disk: &MemDisk, config: Config) -> Result<(Log, RecoveryReport), Error> {
    Log::open(Arc::new(disk.clone()), config)
}

pub fn files(disk: &MemDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let mut names = isochrone_env::Disk::list(disk, Path::new(DIR)).unwrap();
    names.sort();
    names.into_iter().map(|n| (n.clone(), disk.contents(&n).unwrap())).collect()
}

/// Only the files of the log itself.
pub fn segment_files(disk: &MemDisk) -> Vec<(PathBuf, Vec<u8>)> {
    files(disk)
        .into_iter()
        .filter(|(n, _)| n.file_name().unwrap().to_str().unwrap().starts_with("wal-"))
        .collect()
}

pub fn copy_of(files: &[(PathBuf, Vec<u8>)]) -> MemDisk {
    let disk = MemDisk::new();
    for (name, bytes) in files {
        disk.set_contents(name, bytes.clone());
    }
    disk
}

/// A shard's log as anybody would write it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardModel {
    pub first: u64,
    pub prev_term: u64,
    pub entries: BTreeMap<u64, (u64, Vec<u8>)>,
    pub hard: Option<HardState>,
}

impl Default for ShardModel {
    fn default() -> ShardModel {
        ShardModel { first: 1, prev_term: 0, entries: BTreeMap::new(), hard: None }
    }
}

impl ShardModel {
    pub fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.first - 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Model(pub BTreeMap<u64, ShardModel>);

#[derive(Clone, Debug)]
pub enum Op {
    /// Appends at last + 1 - back (not below first), with this term.
    Entry {
        shard: u64,
        back: u64,
        term: u64,
        bytes: usize,
        fill: u8,
    },
    Hard {
        shard: u64,
        term: u64,
        vote: u64,
        commit: u64,
    },
    /// Truncates to first + forward.
    Truncate {
        shard: u64,
        forward: u64,
    },
    Reset {
        shard: u64,
        first: u64,
        term: u64,
    },
    Remove {
        shard: u64,
    },
}

impl Model {
    /// Does the operation here, and puts it into the batch.
    pub fn run(&mut self, op: &Op, batch: &mut Batch) {
        match *op {
            Op::Entry { shard, back, term, bytes, fill } => {
                let s = self.0.entry(shard).or_default();
                let index = (s.last() + 1).saturating_sub(back).max(s.first);
                s.entries.split_off(&index);
                let payload = vec![fill; bytes];
                s.entries.insert(index, (term, payload.clone()));
                batch.entry(ShardId(shard), term, index, payload);
            }
            Op::Hard { shard, term, vote, commit } => {
                let hs = HardState { term, vote, commit };
                self.0.entry(shard).or_default().hard = Some(hs);
                batch.hard_state(ShardId(shard), hs);
            }
            Op::Truncate { shard, forward } => {
                let first = self.0.get(&shard).map_or(1, |s| s.first) + forward;
                batch.truncate_prefix(ShardId(shard), first);
                if forward > 0 {
                    let s = self.0.entry(shard).or_default();
                    s.prev_term = s.entries.get(&(first - 1)).map_or(0, |e| e.0);
                    s.entries = s.entries.split_off(&first);
                    s.first = first;
                }
            }
            Op::Reset { shard, first, term } => {
                let s = self.0.entry(shard).or_default();
                s.first = first.max(1);
                s.prev_term = term;
                s.entries.clear();
                batch.reset(ShardId(shard), first, term);
            }
            Op::Remove { shard } => {
                self.0.remove(&shard);
                batch.remove_shard(ShardId(shard));
            }
        }
    }
}

/// Everything a reader sees.
pub fn observe(reader: &LogReader) -> Result<Model, Error> {
    let mut out = Model::default();
    for shard in reader.shards() {
        let first = reader.first_index(shard)?;
        let last = reader.last_index(shard)?;
        let mut s = ShardModel { first, prev_term: reader.term(shard, first - 1)?, ..ShardModel::default() };
        s.hard = reader.hard_state(shard)?;
        let entries = reader.entries(shard, first..last + 1, usize::MAX)?;
        assert_eq!(entries.len() as u64, last + 1 - first);
        for (i, e) in (first..).zip(entries) {
            assert_eq!((e.index, e.term), (i, reader.term(shard, i)?));
            s.entries.insert(i, (e.term, e.payload.to_vec()));
        }
        out.0.insert(shard.0, s);
    }
    Ok(out)
}
