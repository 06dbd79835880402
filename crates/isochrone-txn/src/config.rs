//! What one node's transaction layer can be told, with the defaults and their reasons.

use std::time::Duration;

/// Settings of a [`crate::Coordinator`]. Times are this node's.
#[derive(Clone, Debug)]
pub struct Config {
    /// Distance from the candidate timestamp to the deadline of its pieces: how long a prepare may be under way
    /// before shards may forget that it could come (R11.2, R20). Default 10 s.
    pub deadline: Duration,
    /// The uncertainty window of a reader is at least this wide (R5): the widest clock interval of any node. The
    /// node's own clock error counts as well. Default 0: the only node.
    pub uncertainty: Duration,
    /// How often one request is sent before the shard counts as not reachable. Default 30: with the back-off below
    /// about 5 s, which spans an election.
    pub attempts_max: u32,
    /// First pause between two attempts; doubles each time. Default 1 ms.
    pub backoff_min: Duration,
    /// Longest pause between two attempts. Default 250 ms.
    pub backoff_max: Duration,
    /// A commit gives up a request that has no answer after this (R19). Below `deadline`. Default 6 s.
    pub answer_wait_max: Duration,
    /// Commits of several pieces that may be unfinished at once, the part after the client's answer included; the
    /// next one waits before its prepares leave. Default 4,096.
    pub unfinished_max: usize,
    /// How long an aborted commit waits for its prepares to be gone before it answers, so that a retry does not run
    /// into them. Default 300 ms.
    pub abort_settle_max: Duration,
    /// Recoveries that may run at once; more suspects are dropped, and named again by whoever waits. Default 256.
    pub recoveries_max: usize,
    /// Attempts of the layer's own transactions (counters). Default 100.
    pub own_attempts_max: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            deadline: Duration::from_secs(10),
            uncertainty: Duration::ZERO,
            attempts_max: 30,
            backoff_min: Duration::from_millis(1),
            backoff_max: Duration::from_millis(250),
            answer_wait_max: Duration::from_secs(6),
            unfinished_max: 4_096,
            abort_settle_max: Duration::from_millis(300),
            recoveries_max: 256,
            own_attempts_max: 100,
        }
    }
}

impl Config {
    /// Refuses settings that cannot work, and says why.
    pub fn validate(&self) -> Result<(), String> {
        if self.answer_wait_max >= self.deadline {
            return Err(format!(
                "answer_wait_max {:?} must be below deadline {:?}",
                self.answer_wait_max, self.deadline
            ));
        }
        if self.attempts_max == 0 || self.own_attempts_max == 0 {
            return Err("attempts_max and own_attempts_max must be at least 1".to_string());
        }
        if self.unfinished_max == 0 || self.recoveries_max == 0 {
            return Err("unfinished_max and recoveries_max must be at least 1".to_string());
        }
        if self.backoff_min > self.backoff_max {
            return Err(format!(
                "backoff_min {:?} is above backoff_max {:?}",
                self.backoff_min, self.backoff_max
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_nonsense_is_refused() {
        Config::default().validate().unwrap();
        let late = Config { answer_wait_max: Duration::from_secs(10), ..Config::default() };
        assert!(late.validate().unwrap_err().contains("deadline"));
        assert!(Config { recoveries_max: 0, ..Config::default() }.validate().is_err());
    }
}
