//! What an operator can say about a node. Data only; injected parts (disk, clock) come apart from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// How often background duties look for work. Default 100 ms: leases last 300 ms and are renewed at half of it.
    pub tick: Duration,
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
            tick: Duration::from_millis(100),
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
    /// Allow addresses other than loopback although nothing is encrypted or authenticated yet.
    pub insecure: bool,
    /// How long clients get to finish when the server drains. Default 10 s.
    pub drain: Duration,
}

impl ServerConfig {
    /// The defaults for a directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> ServerConfig {
        ServerConfig {
            node: NodeConfig::new(data_dir),
            sql: SocketAddr::from(([127, 0, 0, 1], 5433)),
            http: SocketAddr::from(([127, 0, 0, 1], 8433)),
            insecure: false,
            drain: Duration::from_secs(10),
        }
    }

    /// Refuses settings that would do harm, and says why.
    pub fn validate(&self) -> Result<(), String> {
        for (what, address) in [("--sql", self.sql), ("--http", self.http)] {
            if !address.ip().is_loopback() && !self.insecure {
                return Err(format!(
                    "{what} {address} can be reached from other machines, and connections are not encrypted or \
                     authenticated yet: use a loopback address, or add --insecure if this network is yours alone"
                ));
            }
        }
        Ok(())
    }
}
