//! The metrics of this crate: names, units, help. Handles are looked up once per server.

use ::metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

/// Connections that are logged in.
pub const CONNECTIONS: &str = "isochrone_sql_connections";
/// Connections accepted.
pub const ACCEPTED: &str = "isochrone_sql_connections_accepted_total";
/// Connections refused or lost before they were logged in, by `reason`.
pub const REFUSED: &str = "isochrone_sql_connections_refused_total";
/// Bytes received.
pub const BYTES_IN: &str = "isochrone_sql_received_bytes_total";
/// Bytes sent.
pub const BYTES_OUT: &str = "isochrone_sql_sent_bytes_total";
/// Messages received.
pub const MESSAGES: &str = "isochrone_sql_messages_total";
/// Errors sent to clients, by `class` (the first two characters of the SQLSTATE).
pub const ERRORS: &str = "isochrone_sql_errors_total";
/// Sessions that ended in a panic.
pub const PANICS: &str = "isochrone_sql_session_panics_total";
/// Cancel requests, by `result` (`hit`, `miss`).
pub const CANCELS: &str = "isochrone_sql_cancel_requests_total";

/// Handles for what is counted often.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub connections: Gauge,
    pub accepted: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub messages: Counter,
    pub panics: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        describe_gauge!(CONNECTIONS, Unit::Count, "connections that are logged in");
        describe_counter!(ACCEPTED, Unit::Count, "connections accepted");
        describe_counter!(REFUSED, Unit::Count, "connections refused or lost before they were logged in");
        describe_counter!(BYTES_IN, Unit::Bytes, "bytes received from SQL clients");
        describe_counter!(BYTES_OUT, Unit::Bytes, "bytes sent to SQL clients");
        describe_counter!(MESSAGES, Unit::Count, "protocol messages received");
        describe_counter!(ERRORS, Unit::Count, "errors sent to clients, by class of SQLSTATE");
        describe_counter!(PANICS, Unit::Count, "sessions that ended in a panic");
        describe_counter!(CANCELS, Unit::Count, "cancel requests");
        Metrics {
            connections: gauge!(CONNECTIONS),
            accepted: counter!(ACCEPTED),
            bytes_in: counter!(BYTES_IN),
            bytes_out: counter!(BYTES_OUT),
            messages: counter!(MESSAGES),
            panics: counter!(PANICS),
        }
    }
}

/// Counts an error that is sent to a client.
#[cold]
pub(crate) fn error(sqlstate: &'static str) {
    counter!(ERRORS, "class" => sqlstate.get(..2).unwrap_or("XX")).increment(1);
}

/// Counts a connection that did not get through the login.
#[cold]
pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// Counts a cancel request.
#[cold]
pub(crate) fn cancel(hit: bool) {
    counter!(CANCELS, "result" => if hit { "hit" } else { "miss" }).increment(1);
}
