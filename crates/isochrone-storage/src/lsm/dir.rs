//! Whose directory it is. `docs/formats/storage.md` has the layout.
//!
//! A directory is made in three steps, so that a crash in between is seen: `creating` is written and synced, the
//! tree is made in `tree/`, `creating` becomes `isochrone-storage`. Found with `creating` only, the directory is
//! cleared and made again: nothing was ever written to it. Found with `isochrone-storage` but without a tree, it is
//! damaged, and not silently made again.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The format this build reads and writes.
const FORMAT: u32 = 1;
const MARKER: &str = "isochrone-storage";
const CREATING: &str = "creating";
const LOCK: &str = "lock";
const TREE: &str = "tree";
/// The tree's pointer to its current version.
const TREE_CURRENT: &str = "current";

/// Held while the directory is open; the operating system gives it back when the process ends.
pub(super) struct DirLock(#[expect(dead_code, reason = "held, not used")] File);

pub(super) fn tree_path(path: &Path) -> PathBuf {
    path.join(TREE)
}

fn marker_text() -> String {
    format!("isochrone storage format {FORMAT}\n")
}

/// Locks the directory and looks whether it is ours; makes an empty or missing one ready for the tree.
pub(super) fn prepare(path: &Path) -> Result<DirLock> {
    let io = |doing| move |e: io::Error| Error::io(doing, e);
    fs::create_dir_all(path).map_err(io("create the storage directory"))?;
    let has = |name: &str| path.join(name).try_exists().map_err(io("look into the storage directory"));
    let ours = has(MARKER)?;
    if !ours && !has(CREATING)? {
        for entry in fs::read_dir(path).map_err(io("list the storage directory"))? {
            let name = entry.map_err(io("list the storage directory"))?.file_name();
            if name != LOCK {
                return Err(Error::NotOurs {
                    path: path.into(),
                    why: format!("it holds {} and no file {MARKER}", name.display()),
                });
            }
        }
    }
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK))
        .map_err(io("open the lock file"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked(path.into())),
        Err(TryLockError::Error(e)) => return Err(Error::io("lock the storage directory", e)),
    }
    if ours {
        let text = fs::read(path.join(MARKER)).map_err(io("read the storage marker"))?;
        if text != marker_text().as_bytes() {
            let text = String::from_utf8_lossy(&text[..text.len().min(80)]).trim().to_owned();
            return Err(match text.strip_prefix("isochrone storage format ") {
                Some(found) => Error::Format { path: path.into(), found: found.into(), expected: FORMAT },
                None => {
                    Error::NotOurs { path: path.into(), why: format!("its file {MARKER} holds {text:?}") }
                }
            });
        }
        if !tree_path(path).join(TREE_CURRENT).try_exists().map_err(io("look into the storage directory"))? {
            return Err(Error::Corruption(format!(
                "{} has lost its file {TREE}/{TREE_CURRENT}",
                path.display()
            )));
        }
        return Ok(DirLock(lock));
    }
    match fs::remove_dir_all(tree_path(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("clear an unfinished storage directory", e));
        }
        _ => {}
    }
    let mut file = File::create(path.join(CREATING)).map_err(io("create the storage marker"))?;
    file.write_all(marker_text().as_bytes()).map_err(io("write the storage marker"))?;
    file.sync_all().map_err(io("sync the storage marker"))?;
    sync_dir(path)?;
    Ok(DirLock(lock))
}

/// The tree is there: from now on the directory is a storage directory.
pub(super) fn finish(path: &Path) -> Result<()> {
    match fs::rename(path.join(CREATING), path.join(MARKER)) {
        Ok(()) => sync_dir(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("finish the storage directory", e)),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync the storage directory", e))
}
