//! Errors of system calls, injected into a process that runs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Injected errors that are shown.
const SHOWN_MAX: usize = 3;

/// `strace` on a process; ends when dropped, and the process goes on.
pub struct Strace(Child);

impl Strace {
    /// Attaches to every thread. `None`, and why on standard error, where that is not possible.
    pub fn attach(pid: u32, inject: &str) -> Option<Strace> {
        let child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-e", "trace=fdatasync,fsync", "-e", inject])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => {
                eprintln!("not tested: strace cannot be run: {e}");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        if !first.contains("attached") {
            eprintln!("not tested: strace says: {first}");
            let _ = child.wait();
            return None;
        }
        // It must not block on a full pipe.
        std::thread::spawn(move || {
            let injected = |line: &String| line.contains("INJECTED");
            let mut shown = 0;
            for line in lines.map_while(Result::ok).filter(injected) {
                shown += 1;
                if shown <= SHOWN_MAX {
                    eprintln!("strace: {line}");
                }
            }
        });
        let strace = Strace(child);
        // The first line comes when all threads of that moment are attached; the log's thread is one of them.
        let traced = |task: &Path| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            !status.lines().any(|l| l.trim_end() == "TracerPid:\t0")
        };
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
        for task in tasks.flatten() {
            for _ in 0..1_000 {
                if traced(&task.path()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(traced(&task.path()), "strace attaches to every thread");
        }
        Some(strace)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // SIGTERM lets it detach; SIGKILL would leave that to the kernel, which does it as well.
        let pid = self.0.id().to_string();
        if !Command::new("kill").args(["-TERM", &pid]).status().is_ok_and(|s| s.success()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}
