//! Two adapters where the crates meet: consensus applies entries to shards, and shards propose entries to consensus.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, LogIndex, ShardId, Term};
use isochrone_consensus as consensus;
use isochrone_env::Disk;
use isochrone_shard::api::BoxFuture;
use isochrone_shard::snapshot::{ShardSnapshot, SnapshotError, StagedReader};
use isochrone_shard::{Applied, ProposeError, Proposer, ShardMeta, Shards};

/// Applies committed entries to the shards, remembers how far the engine's visible state goes, and installs snapshots.
pub struct Machine {
    shards: Arc<Shards>,
    /// Where snapshots lie between their arrival and the end of their install.
    staging: Staging,
    runtime: tokio::runtime::Handle,
    /// Applied and written to the engine, by shard: what a flush that begins now will hold. Apart from the shards' own
    /// applied index, which runs ahead of the engine for a moment.
    written: Arc<Mutex<BTreeMap<ShardId, LogIndex>>>,
}

/// Where staged snapshots are.
#[derive(Clone)]
pub struct Staging {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The directory.
    pub dir: PathBuf,
}

impl Staging {
    /// Installs a staged snapshot and removes its file. Blocks.
    pub fn install(&self, shards: &Shards, path: &Path) -> Result<ShardMeta, SnapshotError> {
        let reader = StagedReader::open(&*self.disk, path)?;
        let meta = shards.install(&reader)?;
        self.discard(path);
        Ok(meta)
    }

    /// Removes a staged snapshot.
    pub fn discard(&self, path: &Path) {
        if let Err(error) = isochrone_shard::snapshot::remove_staged(&*self.disk, path) {
            tracing::warn!(path = %path.display(), %error, "a staged snapshot was not removed; the next start does it");
        }
    }

    /// The complete files.
    pub fn files(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        isochrone_shard::snapshot::staged_files(&*self.disk, &self.dir)
    }
}

impl Machine {
    /// For the shards of a node. Must be called inside the runtime that shall carry installs.
    pub fn new(shards: Arc<Shards>, staging: Staging) -> Machine {
        let written = shards.list().into_iter().map(|m| (m.shard, m.applied)).collect();
        Machine {
            shards,
            staging,
            runtime: tokio::runtime::Handle::current(),
            written: Arc::new(Mutex::new(written)),
        }
    }

    /// What the engine's next flush will hold, at least.
    pub fn written(&self) -> Vec<(ShardId, LogIndex)> {
        let written = self.written.lock().expect("nothing panics while it is held");
        written.iter().map(|(s, i)| (*s, *i)).collect()
    }
}

/// The group of a shard.
pub fn group(meta: ShardMeta) -> consensus::NewGroup {
    consensus::NewGroup {
        shard: meta.shard,
        members: meta.members,
        applied: meta.applied,
        applied_term: meta.applied_term,
        campaign: meta.campaign,
    }
}

impl consensus::StateMachine for Machine {
    fn apply(
        &self,
        shard: ShardId,
        entries: &[consensus::CommittedEntry],
    ) -> Result<Vec<consensus::NewGroup>, consensus::ApplyError> {
        let Some(last) = entries.last().map(|e| e.index) else { return Ok(Vec::new()) };
        let fail = |e: isochrone_shard::ApplyError| consensus::ApplyError {
            shard,
            index: e.index,
            reason: e.reason,
        };
        let mut created = Vec::new();
        // Changes of members stand alone: they are no commands of the shard.
        for part in entries.chunk_by(|a, b| a.members.is_none() && b.members.is_none()) {
            match &part[0] {
                consensus::CommittedEntry { index, term, members: Some(members), .. } => {
                    self.shards.apply_members(shard, *index, *term, members).map_err(fail)?;
                }
                _ => {
                    let part: Vec<_> = part.iter().map(|e| (e.index, e.term, e.payload.clone())).collect();
                    created.extend(self.shards.apply_entries(shard, &part).map_err(fail)?);
                }
            }
        }
        self.written.lock().expect("nothing panics while it is held").insert(shard, last);
        Ok(created.into_iter().map(group).collect())
    }

    fn role(&self, shard: ShardId, role: consensus::Role) {
        match role {
            consensus::Role::Leader(term) => self.shards.lead(shard, term),
            consensus::Role::Follower(_, leader) => self.shards.follow(shard, leader),
        }
    }

    fn lease(&self, shard: ShardId, term: Term, until_ns: u64) {
        self.shards.lease(shard, term, until_ns);
    }

    fn snapshot(&self, shard: ShardId) -> Result<Box<dyn consensus::SnapshotSource>, String> {
        let snapshot = self.shards.snapshot(shard).map_err(|e| e.to_string())?;
        Ok(Box::new(Source(snapshot)))
    }

    fn install(&self, shard: ShardId, snapshot: consensus::SnapshotMeta, done: consensus::InstallDone) {
        let (shards, staging, written) = (self.shards.clone(), self.staging.clone(), self.written.clone());
        let _goes_on = self.runtime.spawn(async move {
            let path = isochrone_shard::snapshot::staged_path(&staging.dir, shard, snapshot.index);
            let installed = crate::blocking(move || staging.install(&shards, &path)).await;
            let installed = installed.and_then(|r| r.map_err(|e| e.to_string()));
            if let Ok(meta) = &installed {
                written.lock().expect("nothing panics while it is held").insert(shard, meta.applied);
            }
            done(installed.map(group));
        });
    }

    fn remove(&self, shard: ShardId, done: consensus::RemoveDone) {
        let (shards, written) = (self.shards.clone(), self.written.clone());
        let _goes_on = self.runtime.spawn(async move {
            written.lock().expect("nothing panics while it is held").remove(&shard);
            let removed = crate::blocking(move || shards.remove(shard)).await;
            done(removed.and_then(|r| r.map_err(|e| e.to_string())));
        });
    }

    fn discard(&self, shard: ShardId, snapshot: consensus::SnapshotMeta) {
        self.staging.discard(&isochrone_shard::snapshot::staged_path(
            &self.staging.dir,
            shard,
            snapshot.index,
        ));
    }

    fn stopped(&self, reason: &str) {
        self.shards.stop(reason);
    }
}

/// A snapshot as consensus hands it on.
struct Source(ShardSnapshot);

impl consensus::SnapshotSource for Source {
    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, String> {
        self.0.next_chunk(bytes_max).map_err(|e| e.to_string())
    }
}

/// Hands shards' proposals to the store loop.
pub struct ToConsensus(pub consensus::Handle);

impl Proposer for ToConsensus {
    fn propose(
        &self,
        shard: ShardId,
        term: Term,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Applied, ProposeError>> {
        let answer = self.0.propose(shard, term, payload);
        Box::pin(async move {
            match answer.await {
                Ok(Ok(index)) => Ok(Applied { index }),
                Ok(Err(consensus::ProposeError::NotLeader(_))) => Err(ProposeError::NotLeader),
                Ok(Err(consensus::ProposeError::Overloaded)) => Err(ProposeError::Overloaded),
                Ok(Err(consensus::ProposeError::Ambiguous(why))) => Err(ProposeError::Ambiguous(why)),
                Ok(Err(consensus::ProposeError::Stopped(why))) => Err(ProposeError::Stopped(why)),
                Err(_) => Err(ProposeError::Ambiguous("the store loop has ended".into())),
            }
        })
    }
}
