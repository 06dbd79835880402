//! The data directory: whose it is, and who has it open.
//!
//!     data/
//!       isochrone.id     format version, cluster id, node id, first voters: written once, when the node gets its identity
//!       isochrone.doubt  there while this node's log may lack what it once acknowledged (a torn end was cut)
//!       isochrone.peers  where other nodes were last seen: a hint, rewritten when it changes
//!       LOCK             held (flock) while a process has the directory open
//!       wal/             the node log
//!       store/           the LSM tree
//!       snapshots/       snapshots of shards that arrived and are not installed yet
//!
//! Invariants
//!   D1  A directory that holds anything but has no `isochrone.id` is never written to.
//!   D2  At most one process has the directory open. The lock goes with the process, however it ends.
//!   D3  The identity never changes. A directory of another format version is refused.
//!
//! A node that is to join others has a directory without an identity until `isochrone init` (or a running cluster) gives
//! it one ([`identity`] answers `None`); alone it makes itself node 1 of a cluster of its own ([`create_alone`]).

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use isochrone_base::NodeId;
use isochrone_env::{Disk, Env, read_file, replace_file};

/// Version 1 had no voters: its node was the only one.
const FORMAT_VERSION: u32 = 2;
const IDENTITY: &str = "isochrone.id";
const PEERS: &str = "isochrone.peers";
/// Where the cluster was made: voters that have their identities.
const ADOPTED: &str = "isochrone.adopted";
const DOUBT: &str = "isochrone.doubt";
/// Peers remembered; more are learned from the cluster itself.
const PEERS_MAX: usize = 1_000;
const LOCK: &str = "LOCK";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// D1.
    #[error(
        "{0} holds files but is not an Isochrone data directory: choose an empty or new directory with --data"
    )]
    NotOurs(PathBuf),
    /// D2.
    #[error("{0} is in use by another process: stop that one first, or choose another directory with --data")]
    InUse(PathBuf),
    /// D3, or damage.
    #[error("{path}: {reason}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Who this directory belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The same on all nodes of a cluster.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
    /// The nodes that hold the cluster's first shards, ascending.
    pub voters: Vec<NodeId>,
}

impl Identity {
    /// Is this node the only one that holds shards?
    pub fn is_alone(&self) -> bool {
        self.voters == [self.node]
    }
}

/// An exclusive hold on a directory of the real file system.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Takes the lock; creates the directory if need be. D1 is checked first, so a foreign directory is not touched.
pub fn lock(dir: &Path) -> Result<DirLock, Error> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let names: Vec<_> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect())
        .map_err(io(dir))?;
    if !is_ours(names.iter().map(|n| n.to_string_lossy())) {
        return Err(Error::NotOurs(dir.to_path_buf()));
    }
    let path = dir.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(dir.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
    }
}

/// Empty, ours, or left behind by a first start that was interrupted before it wrote the identity.
fn is_ours<'a>(names: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> bool {
    let mut foreign = false;
    for name in names {
        match name.as_ref() {
            IDENTITY => return true,
            // A file system's own folder at its root, and what `lock` and `identity` themselves may have left.
            LOCK | PEERS | "isochrone.id.tmp" | "isochrone.peers.tmp" | "isochrone.tmp" | "lost+found" => {}
            _ => foreign = true,
        }
    }
    !foreign
}

/// Reads the directory's identity; `None`: it has none yet.
pub fn identity(env: &Env, dir: &Path) -> Result<Option<Identity>, Error> {
    let disk: &dyn Disk = &*env.disk;
    let path = dir.join(IDENTITY);
    let io = |source| Error::Io { path: path.clone(), source };
    if !disk.exists(&path).map_err(io)? {
        return Ok(None);
    }
    let bytes = read_file(disk, &path).map_err(io)?;
    parse_identity(&bytes).map(Some).map_err(|reason| Error::Identity { path, reason })
}

/// The identity of a directory; if it has none, it becomes node 1 of a cluster of its own.
pub fn create_alone(env: &Env, dir: &Path) -> Result<Identity, Error> {
    if let Some(identity) = identity(env, dir)? {
        return Ok(identity);
    }
    let identity = Identity { cluster: env.random.next_u128(), node: NodeId(1), voters: vec![NodeId(1)] };
    adopt(env, dir, &identity)?;
    Ok(identity)
}

/// Gives a directory its identity, durably. The same one again is fine.
///
/// # Errors
/// `Identity` if it has another one (D3).
pub fn adopt(env: &Env, dir: &Path, new: &Identity) -> Result<(), Error> {
    let disk: &dyn Disk = &*env.disk;
    let path = dir.join(IDENTITY);
    match identity(env, dir)? {
        Some(old) if old == *new => Ok(()),
        Some(old) => Err(Error::Identity {
            path,
            reason: format!("is node {} of cluster {:032x} already", old.node, old.cluster),
        }),
        None => {
            let io = |source| Error::Io { path: path.clone(), source };
            disk.create_dir_all(dir).map_err(io)?;
            replace_file(disk, &path, format_identity(new).as_bytes()).map_err(io)
        }
    }
}

fn checked(body: String) -> String {
    let check = isochrone_base::hash::fnv64(body.as_bytes());
    format!("{body}check {check:016x}\n")
}

fn format_identity(identity: &Identity) -> String {
    let voters: Vec<String> = identity.voters.iter().map(|n| n.to_string()).collect();
    checked(format!(
        "isochrone data directory\nformat {FORMAT_VERSION}\ncluster {:032x}\nnode {}\nvoters {}\n",
        identity.cluster,
        identity.node,
        voters.join(",")
    ))
}

/// As version 1 was written.
fn format_identity_1(identity: &Identity) -> String {
    checked(format!(
        "isochrone data directory\nformat 1\ncluster {:032x}\nnode {}\n",
        identity.cluster, identity.node
    ))
}

fn parse_identity(bytes: &[u8]) -> Result<Identity, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "damaged: not text")?;
    let mut lines = text.lines();
    if lines.next() != Some("isochrone data directory") {
        return Err("not the identity of an Isochrone data directory".into());
    }
    let mut field = |name: &str| -> Result<String, String> {
        let line = lines.next().and_then(|l| l.strip_prefix(name)).and_then(|l| l.strip_prefix(' '));
        line.map(str::to_string).ok_or(format!("damaged: no {name}"))
    };
    let format: u32 = field("format")?.parse().map_err(|_| "damaged: format")?;
    if format == 0 || format > FORMAT_VERSION {
        return Err(format!("format {format}; this program knows formats up to {FORMAT_VERSION}"));
    }
    let cluster = u128::from_str_radix(&field("cluster")?, 16).map_err(|_| "damaged: cluster")?;
    let node = NodeId(field("node")?.parse().map_err(|_| "damaged: node")?);
    let voters = match format {
        1 => vec![node],
        _ => field("voters")?
            .split(',')
            .map(|n| n.parse().map(NodeId).map_err(|_| "damaged: voters".to_string()))
            .collect::<Result<_, _>>()?,
    };
    let identity = Identity { cluster, node, voters };
    let written = if format == 1 { format_identity_1(&identity) } else { format_identity(&identity) };
    if text != written {
        return Err("damaged: the check sum does not match".into());
    }
    Ok(identity)
}

/// Remembers, durably, that the log may lack what was acknowledged (C9 of crate consensus): until
/// [`clear_doubt`], every start has to be told so.
pub fn set_doubt(env: &Env, dir: &Path) -> Result<(), Error> {
    let path = dir.join(DOUBT);
    replace_file(&*env.disk, &path, b"the end of the log was cut\n")
        .map_err(|source| Error::Io { path, source })
}

/// See [`set_doubt`].
pub fn is_doubtful(env: &Env, dir: &Path) -> Result<bool, Error> {
    let path = dir.join(DOUBT);
    env.disk.exists(&path).map_err(|source| Error::Io { path, source })
}

/// The log holds everything again.
pub fn clear_doubt(env: &Env, dir: &Path) -> Result<(), Error> {
    let path = dir.join(DOUBT);
    let cleared = env.disk.remove(&path).and_then(|()| env.disk.sync_dir(dir));
    cleared.map_err(|source| Error::Io { path, source })
}

/// Where other nodes were last seen. A hint: what cannot be read is forgotten, and learned again from the cluster.
pub fn read_peers(env: &Env, dir: &Path) -> Vec<(NodeId, String)> {
    let path = dir.join(PEERS);
    let Ok(bytes) = read_file(&*env.disk, &path) else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes);
    let peer = |line: &str| {
        let (node, address) = line.split_once(' ')?;
        Some((NodeId(node.parse().ok()?), address.to_string()))
    };
    text.lines().filter_map(peer).take(PEERS_MAX).collect()
}

/// See [`read_peers`].
pub fn write_peers(env: &Env, dir: &Path, peers: &[(NodeId, String)]) -> Result<(), Error> {
    let path = dir.join(PEERS);
    let text: String =
        peers.iter().take(PEERS_MAX).map(|(node, address)| format!("{node} {address}\n")).collect();
    replace_file(&*env.disk, &path, text.as_bytes()).map_err(|source| Error::Io { path, source })
}

/// Voters of a cluster that was made here who have their identities (B6 of the cluster's `bootstrap`). An unreadable file
/// counts as empty: they are told once more.
pub fn read_adopted(env: &Env, dir: &Path) -> BTreeSet<NodeId> {
    let bytes = read_file(&*env.disk, &dir.join(ADOPTED)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().filter_map(|n| n.parse().ok().map(NodeId)).collect()
}

/// See [`read_adopted`].
pub fn write_adopted(env: &Env, dir: &Path, adopted: &BTreeSet<NodeId>) -> Result<(), Error> {
    let path = dir.join(ADOPTED);
    let text: String = adopted.iter().map(|node| format!("{node}\n")).collect();
    replace_file(&*env.disk, &path, text.as_bytes()).map_err(|source| Error::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d1_a_foreign_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "precious").unwrap();
        assert!(matches!(lock(dir.path()), Err(Error::NotOurs(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn d2_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(Error::InUse(_))));
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn d3_ids_stay_and_damage_is_seen() {
        let env = isochrone_env::os::env(0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let _lock = lock(dir.path()).unwrap();
        assert_eq!(identity(&env, dir.path()).unwrap(), None);
        let first = create_alone(&env, dir.path()).unwrap();
        assert_eq!(create_alone(&env, dir.path()).unwrap(), first);
        adopt(&env, dir.path(), &first).unwrap();
        let other = Identity { node: NodeId(2), ..first.clone() };
        assert!(adopt(&env, dir.path(), &other).unwrap_err().to_string().contains("already"));
        let text = format_identity(&first).into_bytes();
        for i in 0..text.len() {
            let mut damaged = text.clone();
            damaged[i] ^= 4;
            assert!(parse_identity(&damaged).is_err(), "byte {i}");
            assert!(parse_identity(&text[..i]).is_err(), "cut at {i}");
        }
        assert_eq!(parse_identity(format_identity_1(&first).as_bytes()).unwrap(), first);
        assert!(parse_identity(format_identity(&first).replace("format 2", "format 9").as_bytes()).is_err());
    }

    #[test]
    fn peers_are_a_hint() {
        let env = isochrone_env::os::env(0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(read_peers(&env, dir.path()).is_empty());
        let peers =
            vec![(NodeId(2), "127.0.0.1:7434".to_string()), (NodeId(3), "127.0.0.1:7435".to_string())];
        write_peers(&env, dir.path(), &peers).unwrap();
        assert_eq!(read_peers(&env, dir.path()), peers);
        std::fs::write(dir.path().join(PEERS), b"\xff rubbish\n\n2 somewhere\n").unwrap();
        assert_eq!(read_peers(&env, dir.path()), vec![(NodeId(2), "somewhere".to_string())]);
    }
}
