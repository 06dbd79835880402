//! Names, units and help of this crate's metrics. Handles are looked up once per transport.

use ::metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

/// Streams past their handshake, by `direction` (`in`: dialled by others, `out`: by us).
pub const STREAMS: &str = "isochrone_net_streams";
/// Frames, by `direction`.
pub const FRAMES: &str = "isochrone_net_frames_total";
/// Bytes, by `direction`.
pub const BYTES: &str = "isochrone_net_bytes_total";
/// Writes to sockets; frames per write is how well they are bundled.
pub const WRITES: &str = "isochrone_net_writes_total";
/// Messages dropped and calls not sent.
pub const DROPPED: &str = "isochrone_net_dropped_total";
/// Calls without an answer.
pub const LOST: &str = "isochrone_net_calls_lost_total";
/// Calls of others refused because too many were running.
pub const BUSY: &str = "isochrone_net_calls_busy_total";
/// Streams closed because of what was said on them, or was not, handshakes included.
pub const FAULTS: &str = "isochrone_net_stream_faults_total";

/// Tells the recorder what the names mean.
pub fn describe() {
    describe_gauge!(STREAMS, Unit::Count, "open streams between nodes, by who dialled");
    describe_counter!(FRAMES, Unit::Count, "frames between nodes");
    describe_counter!(BYTES, Unit::Bytes, "bytes between nodes");
    describe_counter!(WRITES, Unit::Count, "writes to the sockets of other nodes");
    describe_counter!(
        DROPPED,
        Unit::Count,
        "messages dropped and calls not sent: no stream, or its outbox was full"
    );
    describe_counter!(LOST, Unit::Count, "calls to other nodes without an answer");
    describe_counter!(BUSY, Unit::Count, "calls of other nodes refused because too many were running");
    describe_counter!(FAULTS, Unit::Count, "streams closed because of what was, or was not, received");
}

/// Handles for what is counted often.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub streams_in: Gauge,
    pub streams_out: Gauge,
    pub frames_in: Counter,
    pub frames_out: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub writes: Counter,
    pub dropped: Counter,
    pub lost: Counter,
    pub busy: Counter,
    pub faults: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics {
            streams_in: gauge!(STREAMS, "direction" => "in"),
            streams_out: gauge!(STREAMS, "direction" => "out"),
            frames_in: counter!(FRAMES, "direction" => "in"),
            frames_out: counter!(FRAMES, "direction" => "out"),
            bytes_in: counter!(BYTES, "direction" => "in"),
            bytes_out: counter!(BYTES, "direction" => "out"),
            writes: counter!(WRITES),
            dropped: counter!(DROPPED),
            lost: counter!(LOST),
            busy: counter!(BUSY),
            faults: counter!(FAULTS),
        }
    }
}
