//! What the demo shows while it runs: a few lines that are redrawn in place on a terminal, one line a second elsewhere.
//!
//! A [`Frame`] is plain data; turning it into text is apart from printing it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::bank::{Counts, TOTAL, Totals};
use crate::inspect::{Replica, Shard};

/// Redrawn this often on a terminal.
const REDRAW_EVERY: Duration = Duration::from_millis(250);
/// Printed this often elsewhere.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Seconds of throughput that are drawn.
const HISTORY: usize = 40;

/// One moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Frame {
    /// Since the load began.
    pub elapsed: Duration,
    /// What is going on.
    pub phase: String,
    /// The nodes that run.
    pub up: Vec<u32>,
    /// All nodes.
    pub nodes: Vec<u32>,
    /// The clients.
    pub counts: Counts,
    /// The shards of the table, as they were last seen.
    pub shards: Vec<Shard>,
    /// The replicas, as they were last seen.
    pub replicas: Vec<Replica>,
    /// How old what is shown of shards and replicas is.
    pub age: Duration,
    /// The total.
    pub totals: Totals,
}

/// Where frames go.
pub(super) struct Screen {
    terminal: bool,
    drawn: usize,
    last_commits: u64,
    last_at: Duration,
    rate: f64,
    // Commits per second, newest last.
    history: Vec<f64>,
}

impl Screen {
    pub(super) fn new() -> Screen {
        Screen {
            terminal: io::stdout().is_terminal(),
            drawn: 0,
            last_commits: 0,
            last_at: Duration::ZERO,
            rate: 0.0,
            history: Vec::new(),
        }
    }

    /// The pause between two frames.
    pub(super) fn every(&self) -> Duration {
        if self.terminal { REDRAW_EVERY } else { LINE_EVERY }
    }

    /// Shows a moment.
    pub(super) fn show(&mut self, frame: &Frame) {
        let since = frame.elapsed.saturating_sub(self.last_at);
        if since >= LINE_EVERY.mul_f64(0.9) {
            self.rate = (frame.counts.commits - self.last_commits) as f64 / since.as_secs_f64();
            (self.last_commits, self.last_at) = (frame.counts.commits, frame.elapsed);
            self.history.push(self.rate);
            let excess = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..excess);
        }
        let mut text = String::new();
        if self.terminal {
            let lines = picture(frame, self.rate, &self.history);
            if self.drawn > 0 {
                text.push_str(&format!("\x1b[{}A", self.drawn)); // up, over what was drawn before
            }
            text.push_str("\r\x1b[J"); // clear from here to the end
            for line in &lines {
                text.push_str(line);
                text.push('\n');
            }
            self.drawn = lines.len();
        } else {
            text = format!("{}\n", one_line(frame, self.rate));
        }
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush()); // nobody looks: the run goes on
    }

    /// A line that stays, above what is redrawn.
    pub(super) fn say(&mut self, line: &str) {
        if self.terminal && self.drawn > 0 {
            print!("\x1b[{}A\r\x1b[J", self.drawn);
            self.drawn = 0;
        }
        println!("{line}");
        let _ = io::stdout().flush();
    }
}

fn bars(history: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = history.iter().copied().fold(1.0, f64::max);
    history.iter().map(|rate| BARS[((rate / most) * 7.0).round() as usize % 8]).collect()
}

fn total(totals: &Totals) -> String {
    match (totals.wrong, totals.last) {
        (Some(wrong), _) => format!("WRONG: {wrong}, not {TOTAL}"),
        (None, Some(total)) => format!("{total}, right in {} snapshots", totals.checks),
        (None, None) => "not seen yet".into(),
    }
}

fn leader(shard: &Shard) -> String {
    if shard.leader == 0 { "-".into() } else { shard.leader.to_string() }
}

/// Up to 78 columns wide, so that no line wraps.
fn picture(frame: &Frame, rate: f64, history: &[f64]) -> Vec<String> {
    let counts = &frame.counts;
    let mut lines = vec![
        format!("{:>4} s  {}", frame.elapsed.as_secs(), frame.phase),
        format!("transfers  {rate:>6.0}/s  {}", bars(history)),
        format!(
            "           {} acknowledged, {} repeated, {} unknown; longest wait {:.1} s",
            counts.commits,
            counts.retries,
            counts.unknown,
            counts.longest.as_secs_f64()
        ),
    ];
    let mut header = String::from("shard  keys                leader ");
    for node in &frame.nodes {
        let state = if frame.up.contains(node) { "" } else { " DEAD" };
        header.push_str(&format!("{:>12}", format!("node {node}{state}")));
    }
    lines.push(header);
    for shard in &frame.shards {
        let keys = format!("{} .. {}", or(&shard.start, "-"), or(&shard.end, "-"));
        let mut line = format!("{:>5}  {:<19.19} {:>6} ", shard.shard, keys, leader(shard));
        for node in &frame.nodes {
            let replica = frame.replicas.iter().find(|r| r.shard == shard.shard && r.node == *node);
            let cell = match replica {
                Some(r) if r.lag > 0 => format!("{} (-{})", r.applied, r.lag),
                Some(r) => r.applied.to_string(),
                None => "-".into(),
            };
            line.push_str(&format!("{cell:>12}"));
        }
        lines.push(line);
    }
    if frame.age >= Duration::from_secs(2) {
        lines.push(format!("       (as of {} s ago)", frame.age.as_secs()));
    }
    lines.push(format!("total      {}", total(&frame.totals)));
    lines
}

fn or<'a>(text: &'a str, empty: &'a str) -> &'a str {
    if text.is_empty() { empty } else { text }
}

fn one_line(frame: &Frame, rate: f64) -> String {
    let leaders: Vec<_> = frame.shards.iter().map(leader).collect();
    let logs: Vec<_> = frame.shards.iter().map(|s| s.last_index.to_string()).collect();
    let lag = frame.replicas.iter().map(|r| r.lag).max().unwrap_or(0);
    format!(
        "{:>4} s  {:<34} {:>6.0} transfers/s  leaders {}  logs {}  lag {}  total {}",
        frame.elapsed.as_secs(),
        frame.phase,
        rate,
        leaders.join(","),
        logs.join(","),
        lag,
        total(&frame.totals)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let shard = |shard, start: &str, end: &str, leader| Shard {
            shard,
            start: start.into(),
            end: end.into(),
            leader,
            first_index: 11,
            last_index: 500,
        };
        let replica = |shard, node, lag| Replica {
            shard,
            node,
            role: "follower".into(),
            applied: 500 - lag,
            lag,
            last_index: 500,
        };
        Frame {
            elapsed: Duration::from_secs(7),
            phase: "node 2 is dead".into(),
            up: vec![1, 3],
            nodes: vec![1, 2, 3],
            counts: Counts { commits: 4_200, retries: 3, unknown: 2, longest: Duration::from_millis(1_250) },
            shards: vec![shard(3, "", "1000", 1), shard(4, "1000", "2000", 0)],
            replicas: vec![replica(3, 1, 0), replica(3, 3, 12)],
            age: Duration::ZERO,
            totals: Totals { checks: 5, last: Some(TOTAL), wrong: None },
        }
    }

    #[test]
    fn a_picture() {
        let lines = picture(&frame(), 812.4, &[100.0, 800.0]);
        let expected = [
            "   7 s  node 2 is dead",
            "transfers     812/s  ▂█",
            "           4200 acknowledged, 3 repeated, 2 unknown; longest wait 1.2 s",
            "shard  keys                leader       node 1 node 2 DEAD      node 3",
            "    3  - .. 1000                1          500           -   488 (-12)",
            "    4  1000 .. 2000             -            -           -           -",
            "total      3000000, right in 5 snapshots",
        ];
        assert_eq!(lines, expected, "\n{}", lines.join("\n"));
        assert!(lines.iter().all(|l| l.chars().count() < 79));
    }

    #[test]
    fn a_line() {
        let mut frame = frame();
        frame.totals.wrong = Some(7);
        assert_eq!(
            one_line(&frame, 812.4),
            "   7 s  node 2 is dead                        812 transfers/s  leaders 1,-  logs 500,500  lag 12  total \
             WRONG: 7, not 3000000"
        );
    }
}
