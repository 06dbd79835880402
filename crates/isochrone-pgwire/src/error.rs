//! What can go wrong here: the server as a whole ([`Error`]), or one connection (`Failure`).

use std::io;

use isochrone_types::{Error as SqlError, SqlState};

/// Why the server could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A limit in the configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The listening socket failed.
    #[error("listening socket failed: {0}")]
    Listen(#[source] io::Error),
}

/// Why a connection ends. An error that leaves the connection usable is a plain [`SqlError`].
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client left, with or without a goodbye.
    Closed,
    /// The socket failed.
    Io(io::Error),
    /// The client is told, with severity FATAL.
    Fatal(SqlError),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Io(e)
    }
}

/// 08P01.
#[cold]
pub(crate) fn protocol(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::PROTOCOL_VIOLATION, message)
}
