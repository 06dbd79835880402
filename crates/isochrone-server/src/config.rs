//! What an operator can say about a node. Data only; injected parts (disk, clock) come apart from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use isochrone_api::address;
/// The values of `--clock` and `--clock-error-max`.
pub use isochrone_env::clocks::{Source, duration};

use crate::cluster::{CLOCK_ERROR_MAX, OFFSET_MAX};

/// Where rows live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Storage {
    /// An LSM tree in the data directory.
    #[default]
    Lsm,
    /// Memory only; the log is still on disk, and rows are rebuilt from it. For tests and small data: the log is never
    /// truncated.
    Memory,
}

/// The settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Everything the node keeps is under this directory.
    pub data_dir: PathBuf,
    /// See [`Storage`].
    pub storage: Storage,
    /// Segment size of the node log, in bytes. Default 64 MiB.
    pub wal_segment_bytes: u64,
    /// The log is flushed out of (and truncated) when it holds more than this, in bytes. Default 512 MiB.
    pub wal_bytes_max: u64,
    /// Block cache of the LSM tree, in bytes. Default 128 MiB.
    pub cache_bytes: u64,
    /// Old versions are kept this long. Default 25 h.
    pub gc_ttl: Duration,
    /// A log whose end was cut counts as whole (C9 of the crate consensus does not hold). Default no.
    pub trust_cut_log: bool,
    /// How often background duties look for work. Default 100 ms: leases last 300 ms and are renewed at half of it.
    pub tick: Duration,
    /// The node serves while the error bound of its clock is at most this. Default, and most: half of the widest difference
    /// between two clocks, 125 ms.
    pub clock_error_max: Duration,
}

impl NodeConfig {
    /// The defaults for a directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig {
            data_dir: data_dir.into(),
            storage: Storage::Lsm,
            wal_segment_bytes: 64 << 20,
            wal_bytes_max: 512 << 20,
            cache_bytes: 128 << 20,
            gc_ttl: Duration::from_secs(25 * 3600),
            trust_cut_log: false,
            tick: Duration::from_millis(100),
            clock_error_max: CLOCK_ERROR_MAX,
        }
    }
}

/// The settings of a server: a node with sockets.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The node.
    pub node: NodeConfig,
    /// Where SQL clients connect. Default 127.0.0.1:5433.
    pub sql: SocketAddr,
    /// Where health and metrics are served. Default 127.0.0.1:8433.
    pub http: SocketAddr,
    /// Where other nodes and operators' tools connect. Default 127.0.0.1:7433.
    pub cluster: SocketAddr,
    /// What this node tells others to connect to, as HOST:PORT. Default: `cluster`, as bound.
    pub advertise: Option<String>,
    /// Cluster addresses of some nodes, as HOST:PORT, this one included or not. Empty: a cluster of one, from the first
    /// start on; otherwise a directory without identity waits for `isochrone init`. Harmless once there is one.
    pub join: Vec<String>,
    /// Allow addresses other than loopback although nothing is encrypted or authenticated yet.
    pub insecure: bool,
    /// How long clients get to finish when the server drains. Default 10 s.
    pub drain: Duration,
    /// Where the error bound of the node's clock comes from. Default: clocks differ by at most 250 ms.
    pub clock: Source,
    /// For tests: the wall clock is off by the milliseconds in this file. Only with `insecure`.
    pub clock_offset_file: Option<PathBuf>,
}

impl ServerConfig {
    /// The defaults for a directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> ServerConfig {
        ServerConfig {
            node: NodeConfig::new(data_dir),
            sql: SocketAddr::from(([127, 0, 0, 1], 5433)),
            http: SocketAddr::from(([127, 0, 0, 1], 8433)),
            cluster: SocketAddr::from(([127, 0, 0, 1], 7433)),
            advertise: None,
            join: Vec::new(),
            insecure: false,
            drain: Duration::from_secs(10),
            clock: Source::Fixed(OFFSET_MAX),
            clock_offset_file: None,
        }
    }

    /// What other nodes are told to connect to, once the cluster port is bound.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| bound.to_string())
    }

    /// Refuses settings that would do harm, or cannot work, and says why.
    pub fn validate(&self) -> Result<(), String> {
        for (what, address) in [("--sql", self.sql), ("--http", self.http), ("--cluster", self.cluster)] {
            if !address.ip().is_loopback() && !self.insecure {
                return Err(format!(
                    "{what} {address} can be reached from other machines, and connections are not encrypted or \
                     authenticated yet: use a loopback address, or add --insecure if this network is yours alone"
                ));
            }
        }
        if self.clock_offset_file.is_some() && !self.insecure {
            return Err("--unsafe-clock-offset-file makes this node's clock wrong, which is for tests only: it needs \
                        --insecure as well"
                .into());
        }
        if let Source::Fixed(apart) = self.clock
            && (apart.is_zero() || apart > OFFSET_MAX)
        {
            return Err(format!(
                "--clock fixed:{} ms: clocks of one cluster may differ by 1 to {} ms, and readers everywhere count on it; \
                 keep the clocks closer together, for example with chrony",
                apart.as_millis(),
                OFFSET_MAX.as_millis()
            ));
        }
        let error_max = self.node.clock_error_max;
        if error_max.is_zero() || error_max > CLOCK_ERROR_MAX {
            return Err(format!(
                "--clock-error-max {} ms: expected 1 to {} ms, half of what two clocks may differ by, which readers \
                 everywhere count on",
                error_max.as_millis(),
                CLOCK_ERROR_MAX.as_millis()
            ));
        }
        if let Source::Fixed(apart) = self.clock
            && apart / 2 > error_max
        {
            return Err(format!(
                "--clock fixed:{} ms says that this clock may be off by half of that, and --clock-error-max {} ms that the \
                 node does not serve then",
                apart.as_millis(),
                error_max.as_millis()
            ));
        }
        if let Some(advertise) = &self.advertise {
            address::check(advertise).map_err(|e| format!("--advertise: {e}"))?;
        }
        for join in &self.join {
            address::check(join).map_err(|e| format!("--join: {e}"))?;
        }
        if self.join.is_empty() || self.advertise.is_some() {
            return Ok(());
        }
        if self.cluster.ip().is_unspecified() {
            return Err(format!(
                "--cluster {} is no address that others can connect to: say which is with --advertise HOST:PORT",
                self.cluster
            ));
        }
        let elsewhere = |join: &&String| join.parse::<SocketAddr>().is_ok_and(|a| !a.ip().is_loopback());
        if let (true, Some(join)) = (self.cluster.ip().is_loopback(), self.join.iter().find(elsewhere)) {
            return Err(format!(
                "--join {join} is on another machine, which cannot reach --cluster {}: choose an address of this \
                 machine's network, or say how it is reached from there with --advertise HOST:PORT",
                self.cluster
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut ServerConfig)) -> String {
        let mut config = ServerConfig::new("data");
        change(&mut config);
        config.validate().expect_err("refused")
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        assert_eq!(ServerConfig::new("data").validate(), Ok(()));
        let open = SocketAddr::from(([0, 0, 0, 0], 7433));
        let join = vec!["127.0.0.1:7433".to_string()];
        assert!(refused(|c| c.cluster = open).contains("--insecure"));
        assert!(refused(|c| c.clock_offset_file = Some("x".into())).contains("--insecure"));
        let fixed = |ms| Source::Fixed(Duration::from_millis(ms));
        assert!(refused(|c| c.clock = fixed(251)).contains("--clock fixed"));
        assert!(refused(|c| c.clock = fixed(0)).contains("--clock fixed"));
        assert!(
            refused(|c| c.node.clock_error_max = Duration::from_millis(126)).contains("--clock-error-max")
        );
        let narrow = refused(|c| c.node.clock_error_max = Duration::from_millis(100));
        assert!(narrow.contains("does not serve"), "{narrow}");
        assert!(refused(|c| c.join = vec!["7433".into()]).contains("--join: \"7433\" is not an address"));
        assert!(refused(|c| c.advertise = Some("here".into())).contains("--advertise"));
        let unspecified = refused(|c| {
            (c.cluster, c.insecure, c.join) = (open, true, join.clone());
        });
        assert!(unspecified.contains("--advertise"), "{unspecified}");
        let elsewhere = refused(|c| c.join = vec!["10.0.0.2:7433".into()]);
        assert!(elsewhere.contains("cannot reach --cluster 127.0.0.1:7433"), "{elsewhere}");
        let mut config = ServerConfig::new("data");
        (config.cluster, config.insecure, config.join) = (open, true, join);
        config.advertise = Some("db-1.example:7433".into());
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.advertised(open), "db-1.example:7433");
    }
}
