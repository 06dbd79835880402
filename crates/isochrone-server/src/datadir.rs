//! The data directory: whose it is, and who has it open.
//!
//!     data/
//!       isochrone.id   format version, cluster id, node id: written once, at first start
//!       LOCK           held (flock) while a process has the directory open
//!       wal/           the node log
//!       store/         the LSM tree
//!
//! Invariants
//!   D1  A directory that holds anything but has no `isochrone.id` is never written to.
//!   D2  At most one process has the directory open. The lock goes with the process, however it ends.
//!   D3  The ids never change. A directory of another format version is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use isochrone_base::NodeId;
use isochrone_env::{Disk, Env, read_file, replace_file};

const FORMAT_VERSION: u32 = 1;
const IDENTITY: &str = "isochrone.id";
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The same on all nodes of a cluster.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
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
            LOCK | "isochrone.tmp" | "lost+found" => {}
            _ => foreign = true,
        }
    }
    !foreign
}

/// Reads the directory's identity; at first start, makes it node 1 of a cluster of its own.
pub fn identity(env: &Env, dir: &Path) -> Result<Identity, Error> {
    let disk: &dyn Disk = &*env.disk;
    let path = dir.join(IDENTITY);
    let io = |source| Error::Io { path: path.clone(), source };
    disk.create_dir_all(dir).map_err(io)?;
    if !disk.exists(&path).map_err(io)? {
        let identity = Identity { cluster: env.random.next_u128(), node: NodeId(1) };
        replace_file(disk, &path, format_identity(identity).as_bytes()).map_err(io)?;
        return Ok(identity);
    }
    let bytes = read_file(disk, &path).map_err(io)?;
    parse_identity(&bytes).map_err(|reason| Error::Identity { path, reason })
}

fn format_identity(identity: Identity) -> String {
    let body = format!(
        "isochrone data directory\nformat {FORMAT_VERSION}\ncluster {:032x}\nnode {}\n",
        identity.cluster, identity.node
    );
    format!("{body}check {:016x}\n", isochrone_base::hash::fnv64(body.as_bytes()))
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
    if format != FORMAT_VERSION {
        return Err(format!("format {format}; this program knows format {FORMAT_VERSION}"));
    }
    let cluster = u128::from_str_radix(&field("cluster")?, 16).map_err(|_| "damaged: cluster")?;
    let node = NodeId(field("node")?.parse().map_err(|_| "damaged: node")?);
    let identity = Identity { cluster, node };
    if text != format_identity(identity) {
        return Err("damaged: the check sum does not match".into());
    }
    Ok(identity)
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
        let first = identity(&env, dir.path()).unwrap();
        assert_eq!(identity(&env, dir.path()).unwrap(), first);
        let text = format_identity(first).into_bytes();
        for i in 0..text.len() {
            let mut damaged = text.clone();
            damaged[i] ^= 4;
            assert!(parse_identity(&damaged).is_err(), "byte {i}");
            assert!(parse_identity(&text[..i]).is_err(), "cut at {i}");
        }
        assert!(parse_identity(format_identity(first).replace("format 1", "format 9").as_bytes()).is_err());
    }
}
