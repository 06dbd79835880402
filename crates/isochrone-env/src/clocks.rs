//! Where a node's clock gets its error bound from (design D8), and a clock that is wrong on purpose.
//!
//!     fixed:250ms        somebody promises that any two nodes' clocks differ by no more than that
//!     ntp                the kernel's own estimate (`adjtimex`), kept by chronyd, ntpd or systemd-timesyncd
//!     clockbound[:PATH]  the shared memory of AWS ClockBound's daemon, layouts 1 and 2
//!
//! Invariants
//!   H4  The bound of a reading is never below what the source said last plus [`DRIFT_PPM`] of the time since: a source
//!       that falls silent makes the bound grow, it never makes it small.
//!   H5  What a source says is taken whole: a page of shared memory that was being written is read again, and what does not
//!       look like one is no answer.
//!
//! How it fails: a source that cannot be read at the start is an error; later it is a [`ClockState::trouble`], and whoever
//! serves with the clock decides by the bound when that is too much.
//!
//! Shared memory is read with `pread` of its file, which lies in the page cache that the daemon writes to: a system call more
//! than a mapping, twice a second or so, and nothing unsafe.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::os::OsClock;
use crate::{Clock, ClockReading, ClockState, kernel};

/// How fast a clock may run away while its source says nothing, in millionths: twice what a quartz does at its worst.
pub const DRIFT_PPM: u64 = 200;
/// How often a source is asked, at most.
const ASK_EVERY_NS: u64 = 100_000_000;
/// How often the file of an [`OffsetClock`] is read.
const OFFSET_EVERY_NS: u64 = 10_000_000;
/// Where ClockBound's daemon keeps its page: of layout 2, and of layout 1.
const CLOCKBOUND_PATHS: [&str; 2] = ["/var/run/clockbound/shm0", "/var/run/clockbound/shm"];
/// How often a page that is being written is read again.
const TORN_READS_MAX: u32 = 1_000;

/// Which source: the value of `--clock`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Any two clocks differ by at most this much.
    Fixed(Duration),
    /// The kernel's estimate.
    Ntp,
    /// ClockBound's page; `None`: where its daemon puts it.
    ClockBound(Option<PathBuf>),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        match text.split_once(':') {
            None if text == "ntp" => Ok(Source::Ntp),
            None if text == "clockbound" => Ok(Source::ClockBound(None)),
            Some(("clockbound", path)) if !path.is_empty() => Ok(Source::ClockBound(Some(path.into()))),
            Some(("fixed", bound)) => Ok(Source::Fixed(duration(bound)?)),
            _ => Err(format!("{text}: expected ntp, clockbound, or fixed:DURATION such as fixed:250ms")),
        }
    }
}

/// A whole number of `us`, `ms` or `s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: fn(u64) -> Duration = match &text[digits..] {
        "us" => Duration::from_micros,
        "ms" => Duration::from_millis,
        "s" => Duration::from_secs,
        _ => return Err(format!("{text}: expected a number with us, ms or s behind it, such as 250ms")),
    };
    text[..digits].parse().map(unit).map_err(|_| format!("{text}: not a number that fits"))
}

impl Source {
    /// Its name, as `isochrone.clocks` shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Fixed(_) => "fixed",
            Source::Ntp => "ntp",
            Source::ClockBound(_) => "clockbound",
        }
    }

    /// The error bound now, in microseconds.
    fn ask(&self) -> Result<u64, String> {
        match self {
            // Half the difference of two clocks is how far each may be from true time.
            Source::Fixed(apart) => Ok(u64::try_from(apart.as_micros() / 2).unwrap_or(u64::MAX)),
            Source::Ntp => {
                let kernel = kernel::discipline()
                    .map_err(|e| format!("the kernel does not answer (adjtimex): {e}"))?;
                match kernel.unsynchronised {
                    true => Err("the kernel says that nobody keeps its clock right (STA_UNSYNC): is chronyd, ntpd or \
                                 systemd-timesyncd running, and has it reached its servers?"
                        .into()),
                    false => Ok(kernel.max_error_us),
                }
            }
            Source::ClockBound(path) => {
                let page = match path {
                    Some(path) => Page::read(path).map_err(|e| format!("{}: {e}", path.display()))?,
                    None => {
                        let first = CLOCKBOUND_PATHS.map(|p| (p, Page::read(Path::new(p))));
                        let words =
                            first.iter().filter_map(|(p, r)| Some(format!("{p}: {}", r.as_ref().err()?)));
                        let words: Vec<String> = words.collect();
                        let page = first.into_iter().find_map(|(_, page)| page.ok());
                        page.ok_or_else(|| format!("is clockbound's daemon running? {}", words.join("; ")))?
                    }
                };
                page.error_us(kernel::monotonic_ns().map_err(|e| e.to_string())?)
            }
        }
    }
}

/// What ClockBound's daemon says, of one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    as_of_ns: i128,
    void_after_ns: i128,
    bound_ns: i64,
    drift_ppb: u32,
    status: i32,
}

/// `AMZN` and `CB` 2 0, each half a native word.
const MAGIC: [u32; 2] = [0x414D_5A4E, 0x4342_0200];
const HEADER_BYTES: usize = 16;
/// Behind the header: layout 2, which is the longer one.
const BODY_BYTES_MAX: usize = 64;

impl Page {
    /// H5.
    fn read(path: &Path) -> Result<Page, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let mut header = [0; HEADER_BYTES];
        for _ in 0..TORN_READS_MAX {
            file.read_exact_at(&mut header, 0).map_err(|_| "shorter than a header".to_string())?;
            let (version, generation) = parse_header(&header)?;
            // Odd: the daemon writes. 0: it has not written yet.
            if generation % 2 == 1 || generation == 0 {
                std::thread::yield_now();
                continue;
            }
            let mut body = [0; BODY_BYTES_MAX];
            let length = read_up_to(&file, &mut body, HEADER_BYTES as u64).map_err(|e| e.to_string())?;
            let page = Page::parse(version, &body[..length]);
            let before = header;
            file.read_exact_at(&mut header, 0).map_err(|_| "shorter than a header".to_string())?;
            if header == before {
                return page;
            }
        }
        Err("it is never whole: was its daemon stopped while it wrote?".into())
    }

    fn parse(version: u16, body: &[u8]) -> Result<Page, String> {
        let word = |at: usize| body.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let long = |at: usize| body.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_ne_bytes);
        let time = |at: usize| Some(i128::from(long(at)?) * 1_000_000_000 + i128::from(long(at + 8)?));
        // Layout 1 has drift, reserved, status behind the bound; layout 2 a disruption marker, then drift, status.
        let (drift_at, status_at) = if version == 1 { (40, 48) } else { (48, 52) };
        let page = || {
            Some(Page {
                as_of_ns: time(0)?,
                void_after_ns: time(16)?,
                bound_ns: long(32)?,
                drift_ppb: word(drift_at)?,
                status: word(status_at)?.cast_signed(),
            })
        };
        page().ok_or_else(|| format!("too short for layout {version}"))
    }

    fn error_us(&self, now_ns: i128) -> Result<u64, String> {
        match self.status {
            1 | 2 => {}
            0 => return Err("clockbound does not know how good the clock is".into()),
            3 => return Err("clockbound says that the clock was disrupted".into()),
            other => return Err(format!("clockbound's status {other} is unknown")),
        }
        if now_ns > self.void_after_ns {
            return Err("clockbound's daemon has said nothing for too long".into());
        }
        if self.bound_ns < 0 || self.drift_ppb >= 1_000_000_000 {
            return Err("clockbound's numbers are not possible".into());
        }
        // Its clock is a coarse one, which may be a tick ahead of what we read.
        let since_ns = (now_ns - self.as_of_ns).max(0);
        let error_ns = i128::from(self.bound_ns) + since_ns * i128::from(self.drift_ppb) / 1_000_000_000;
        Ok(u64::try_from(error_ns / 1_000 + 1).unwrap_or(u64::MAX))
    }
}

fn parse_header(header: &[u8; HEADER_BYTES]) -> Result<(u16, u16), String> {
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let short = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    if [word(0), word(4)] != MAGIC {
        return Err("not a page of clockbound's".into());
    }
    match short(12) {
        version @ (1 | 2) => Ok((version, short(14))),
        other => Err(format!("layout {other} is unknown here")),
    }
}

/// As much as there is.
fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// The system's clock, with an error bound from a [`Source`].
pub struct SourcedClock {
    clock: OsClock,
    source: Source,
    /// What the source said last, and when.
    bound_us: AtomicU64,
    said_at_ns: AtomicU64,
    asked_at_ns: AtomicU64,
    /// [`ASK_EVERY_NS`].
    ask_every_ns: u64,
    trouble: Mutex<Option<String>>,
}

impl SourcedClock {
    /// # Errors
    /// The source says nothing, and why.
    pub fn open(source: Source) -> Result<SourcedClock, String> {
        let clock = OsClock::new(0);
        let bound_us = source.ask().map_err(|why| format!("--clock {}: {why}", source.name()))?;
        let now_ns = clock.monotonic_ns();
        Ok(SourcedClock {
            clock,
            source,
            bound_us: AtomicU64::new(bound_us),
            said_at_ns: AtomicU64::new(now_ns),
            asked_at_ns: AtomicU64::new(now_ns),
            ask_every_ns: ASK_EVERY_NS,
            trouble: Mutex::new(None),
        })
    }

    /// H4. Whoever comes first after a while asks; the others go on with what was said.
    fn error_us(&self) -> u64 {
        if let Source::Fixed(_) = self.source {
            return self.bound_us.load(Ordering::Relaxed);
        }
        let now_ns = self.clock.monotonic_ns();
        let asked = self.asked_at_ns.load(Ordering::Relaxed);
        let due = now_ns.saturating_sub(asked) >= self.ask_every_ns;
        if due
            && self.asked_at_ns.compare_exchange(asked, now_ns, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let answer = self.source.ask();
            if let Ok(bound_us) = answer {
                // In this order, whoever reads in between counts too much drift, never too little of it.
                self.bound_us.fetch_max(bound_us, Ordering::AcqRel);
                self.said_at_ns.store(now_ns, Ordering::Release);
                self.bound_us.store(bound_us, Ordering::Release);
            }
            *self.trouble.lock().expect("nothing panics while it is held") = answer.err();
        }
        let since_ns = now_ns.saturating_sub(self.said_at_ns.load(Ordering::Acquire));
        self.bound_us.load(Ordering::Acquire).saturating_add(since_ns / 1_000 * DRIFT_PPM / 1_000_000)
    }
}

impl Clock for SourcedClock {
    fn wall(&self) -> ClockReading {
        ClockReading { error_us: self.error_us(), ..self.clock.wall() }
    }

    fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }

    fn state(&self) -> ClockState {
        let error_us = self.error_us();
        let trouble = self.trouble.lock().expect("nothing panics while it is held").clone();
        ClockState { source: self.source.name(), error_us, trouble }
    }
}

/// A clock that is by definition right: that of a cluster of one node. Its source is still asked what it thinks.
pub struct Exact(pub Arc<dyn Clock>);

impl Clock for Exact {
    fn wall(&self) -> ClockReading {
        ClockReading { error_us: 0, ..self.0.wall() }
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.monotonic_ns()
    }

    fn state(&self) -> ClockState {
        self.0.state()
    }
}

/// A clock whose wall readings are off by what a file says, in milliseconds; the monotonic clock is left alone. For tests: the
/// file is read again every 10 ms, and a file that cannot be read, or holds no number, leaves the offset as it was.
pub struct OffsetClock {
    clock: Arc<dyn Clock>,
    path: PathBuf,
    offset_us: AtomicI64,
    read_at_ns: AtomicU64,
}

impl OffsetClock {
    /// # Errors
    /// The file cannot be read, or holds no number.
    pub fn open(clock: Arc<dyn Clock>, path: &Path) -> Result<OffsetClock, String> {
        let offset_us = AtomicI64::new(offset_us(path)?);
        let read_at_ns = AtomicU64::new(clock.monotonic_ns());
        Ok(OffsetClock { clock, path: path.to_path_buf(), offset_us, read_at_ns })
    }
}

fn offset_us(path: &Path) -> Result<i64, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let ms: i64 =
        text.trim().parse().map_err(|_| format!("{}: not a whole number of milliseconds", path.display()))?;
    Ok(ms.saturating_mul(1_000))
}

impl Clock for OffsetClock {
    fn wall(&self) -> ClockReading {
        let now_ns = self.clock.monotonic_ns();
        let read = self.read_at_ns.load(Ordering::Relaxed);
        let due = now_ns.saturating_sub(read) >= OFFSET_EVERY_NS;
        if due
            && self.read_at_ns.compare_exchange(read, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && let Ok(offset_us) = offset_us(&self.path)
        {
            self.offset_us.store(offset_us, Ordering::Relaxed);
        }
        let reading = self.clock.wall();
        let now_us = reading.now_us.saturating_add_signed(self.offset_us.load(Ordering::Relaxed));
        ClockReading { now_us, ..reading }
    }

    fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }

    fn state(&self) -> ClockState {
        self.clock.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_names() {
        assert_eq!("ntp".parse(), Ok(Source::Ntp));
        assert_eq!("clockbound".parse(), Ok(Source::ClockBound(None)));
        assert_eq!("clockbound:/x".parse(), Ok(Source::ClockBound(Some("/x".into()))));
        assert_eq!("fixed:250ms".parse(), Ok(Source::Fixed(Duration::from_millis(250))));
        for wrong in [
            "",
            "NTP",
            "fixed",
            "fixed:",
            "fixed:ms",
            "fixed:250",
            "fixed:-1ms",
            "clockbound:",
            "fixed:99999999999999999999s",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
        assert_eq!(Source::Fixed(Duration::from_millis(250)).ask(), Ok(125_000));
    }

    /// A page as the daemon of this layout writes it, 1 s old, with 500 us of error and 50 ppm of drift.
    fn page(version: u16, generation: u16, status: i32) -> Vec<u8> {
        let now = kernel::monotonic_ns().unwrap();
        let (s, ns) = (((now / 1_000_000_000) - 1) as i64, (now % 1_000_000_000) as i64);
        let mut out = Vec::new();
        MAGIC.iter().for_each(|m| out.extend(m.to_ne_bytes()));
        out.extend((if version == 1 { 72u32 } else { 80 }).to_ne_bytes());
        out.extend(version.to_ne_bytes());
        out.extend(generation.to_ne_bytes());
        [s, ns, s + 1_000, ns, 500_000].iter().for_each(|n| out.extend(n.to_ne_bytes()));
        match version {
            1 => [50_000, 0, status.cast_unsigned(), 0].iter().for_each(|n| out.extend(n.to_ne_bytes())),
            _ => {
                out.extend(7u64.to_ne_bytes());
                [50_000, status.cast_unsigned(), 1, 0].iter().for_each(|n| out.extend(n.to_ne_bytes()));
            }
        }
        out
    }

    #[test]
    fn clockbounds_page_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shm0");
        let source = Source::ClockBound(Some(path.clone()));
        assert!(source.ask().unwrap_err().contains("No such file"));
        for version in [1, 2] {
            let good = page(version, 2, 1);
            std::fs::write(&path, &good).unwrap();
            let error_us = source.ask().unwrap();
            assert!((550..10_000).contains(&error_us), "{error_us}");
            std::fs::write(&path, page(version, 2, 2)).unwrap();
            assert!(source.ask().is_ok(), "free running");
            for (bytes, why) in [
                (page(version, 2, 0), "does not know"),
                (page(version, 2, 3), "disrupted"),
                (page(version, 2, 9), "unknown"),
                (page(version, 3, 1), "never whole"),
                (page(version, 0, 1), "never whole"),
                (good[..40].to_vec(), "too short"),
                (good[..9].to_vec(), "shorter than a header"),
                (vec![0; 80], "not a page"),
            ] {
                std::fs::write(&path, bytes).unwrap();
                let error = source.ask().unwrap_err();
                assert!(error.contains(why), "{error} instead of {why}");
            }
        }
        std::fs::write(&path, page(3, 2, 1)).unwrap();
        assert!(source.ask().unwrap_err().contains("layout 3"));
    }

    #[test]
    fn what_is_too_old_is_no_answer() {
        let page = Page { as_of_ns: 0, void_after_ns: 5, bound_ns: 1_000, drift_ppb: 1_000, status: 1 };
        assert_eq!(page.error_us(5), Ok(2));
        assert!(page.error_us(6).is_err());
        let page = Page { void_after_ns: i128::MAX, ..page };
        assert_eq!(page.error_us(1_000_000_000_000), Ok(1_002), "1 ppm of 1000 s");
        assert_eq!(page.error_us(-1), Ok(2), "a coarse clock may be a tick ahead");
    }

    #[test]
    fn a_silent_source_makes_the_bound_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shm0");
        assert!(SourcedClock::open(Source::ClockBound(Some(path.clone()))).is_err());
        std::fs::write(&path, page(2, 2, 1)).unwrap();
        let mut clock = SourcedClock::open(Source::ClockBound(Some(path.clone()))).unwrap();
        clock.ask_every_ns = 0;
        assert_eq!(clock.state().trouble, None);
        let before = clock.wall().error_us;
        std::fs::remove_file(&path).unwrap();
        let state = clock.state();
        assert!(state.trouble.is_some() && state.error_us >= before, "{state:?}");
        assert_eq!(state.source, "clockbound");
        // It comes back.
        std::fs::write(&path, page(2, 4, 1)).unwrap();
        assert_eq!(clock.state().trouble, None);
    }

    #[test]
    fn an_offset_is_read_again() {
        use crate::fake::ManualClock;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offset");
        let manual = Arc::new(ManualClock::new(5_000_000));
        assert!(OffsetClock::open(manual.clone(), &path).is_err());
        std::fs::write(&path, "-1000\n").unwrap();
        let clock = OffsetClock::open(manual.clone(), &path).unwrap();
        assert_eq!(clock.wall().now_us, 4_000_000);
        for (text, now_us) in [("250", 5_260_000), ("no number", 5_270_000), ("0", 5_030_000)] {
            std::fs::write(&path, text).unwrap();
            manual.advance(Duration::from_millis(10));
            assert_eq!(clock.wall().now_us, now_us, "{text}");
        }
        assert_eq!(clock.monotonic_ns(), 30_000_000);
    }
}
