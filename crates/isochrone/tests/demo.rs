//! `isochrone demo` as a newcomer runs it: it ends by itself with nothing lost, and leaves nothing behind, however it ends.
#![allow(clippy::disallowed_methods, reason = "waits for a process's end")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::isochrone;

/// How long what was started may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

fn demo(dir: &Path, seconds: &str) -> Command {
    let mut command = isochrone();
    command.args(["demo", "--seconds", seconds]).env("TMPDIR", dir).stdin(Stdio::null());
    command
}

/// The process ids of the nodes, as the demo shows them.
fn pid(line: &str) -> Option<u32> {
    line.trim_start().strip_prefix("node ")?.split_once("process ")?.1.split_whitespace().next()?.parse().ok()
}

fn assert_gone(pids: &[u32]) {
    for pid in pids {
        let mut waited = Duration::ZERO;
        // A process id that was given to somebody else meanwhile is not ours.
        let ours = || {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("--stop-with-stdin")
        };
        while ours() {
            assert!(waited < GONE_MAX, "process {pid} is still there");
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }
}

fn left_behind(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let out = demo(dir.path(), "8").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    println!("{said}\n{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0));
    for part in [
        "three nodes",
        "kill -9 of node",
        "is dead",
        "is back",
        "has every entry",
        "One transaction's way",
        "prepare",
        "Verified: the balances add up to 3000000",
    ] {
        assert!(said.contains(part), "{part}");
    }
    let pids: Vec<u32> = said.lines().filter_map(pid).collect();
    assert_eq!(pids.len(), 3);
    assert_gone(&pids);
    assert_eq!(left_behind(dir.path()), 0);
}

/// Starts a demo and reads until its nodes are shown.
fn begin(dir: &Path) -> (Child, Vec<u32>) {
    let mut child = demo(dir, "600").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut pids = Vec::new();
    while pids.len() < 3 {
        let Some(Ok(line)) = lines.next() else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the demo ended with {}: {said}", child.wait().unwrap());
        };
        pids.extend(pid(&line));
    }
    std::thread::Builder::new().spawn(move || lines.for_each(drop)).unwrap();
    (child, pids)
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, pids) = begin(dir.path());
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(said.contains("interrupted"), "{said}");
    assert_gone(&pids);
    assert_eq!(left_behind(dir.path()), 0);
}

#[test]
fn nodes_end_with_a_demo_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, pids) = begin(dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_gone(&pids);
}
