//! The two system calls for clocks that neither `std` nor a safe crate in our tree has. All of this crate's `unsafe`.
#![allow(unsafe_code)]

use std::io;

/// What the kernel thinks of its clock (`adjtimex`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Discipline {
    /// `maxerror`: the bound that the time daemon set, which the kernel lets grow by 500 ppm until it is set again.
    pub max_error_us: u64,
    /// `STA_UNSYNC`, or the state `TIME_ERROR`: nobody keeps the clock right.
    pub unsynchronised: bool,
}

/// Asks the kernel about its clock; changes nothing.
#[cfg(target_os = "linux")]
pub(crate) fn discipline() -> io::Result<Discipline> {
    // SAFETY: `timex` is a C struct of integers only, for which all zeros is a value; `modes` 0 means "read only".
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex` of ours, which outlives the call; the kernel keeps no copy of it.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let unsynchronised = timex.status & libc::STA_UNSYNC != 0 || state == libc::TIME_ERROR;
    let max_error_us = u64::try_from(timex.maxerror).unwrap_or(u64::MAX);
    Ok(Discipline { max_error_us, unsynchronised })
}

/// Asks the kernel about its clock: not on this system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn discipline() -> io::Result<Discipline> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// `CLOCK_MONOTONIC` itself, which other processes on this machine read too. (`Instant` hides its origin.)
pub(crate) fn monotonic_ns() -> io::Result<i128> {
    // SAFETY: `timespec` is a C struct of integers only, for which all zeros is a value.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timespec` of ours, which outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_goes_on() {
        let first = monotonic_ns().unwrap();
        assert!(first > 0 && monotonic_ns().unwrap() >= first);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_answers() {
        // What it says depends on the machine; a sandbox may forbid the question.
        match discipline() {
            Ok(d) => assert!(d.unsynchronised || d.max_error_us > 0, "{d:?}"),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
