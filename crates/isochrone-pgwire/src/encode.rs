//! Encoding of the server's messages into one buffer. A message's length is patched in at its end.

use isochrone_sql::face::{Notice, OutputColumn, TxnStatus};
use isochrone_types::{Error, Type};

/// The protocol version we speak: 3.0.
pub(crate) const PROTOCOL_VERSION: i32 = 3 << 16;

/// Writes one message: type, length, then what `body` appends.
pub(crate) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    patch_length(out, at);
}

/// Sets the 32-bit length at `at` to the number of bytes from there to the end, itself included.
#[inline]
pub(crate) fn patch_length(out: &mut [u8], at: usize) {
    let n = (out.len() - at) as i32;
    out[at..at + 4].copy_from_slice(&n.to_be_bytes());
}

/// Text and a zero byte; zero bytes inside become `?`, because they would end it.
fn cstr(out: &mut Vec<u8>, text: &str) {
    let from = out.len();
    out.extend_from_slice(text.as_bytes());
    for b in &mut out[from..] {
        if *b == 0 {
            *b = b'?';
        }
    }
    out.push(0);
}

fn field(out: &mut Vec<u8>, tag: u8, text: &str) {
    out.push(tag);
    cstr(out, text);
}

/// How bad an error is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
}

/// ErrorResponse.
pub(crate) fn error(out: &mut Vec<u8>, severity: Severity, e: &Error) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    message(out, b'E', |out| {
        field(out, b'S', severity);
        field(out, b'V', severity);
        field(out, b'C', e.sqlstate.code());
        field(out, b'M', &e.message);
        let position = e.position.map(|p| p.to_string());
        let optional = [
            (b'D', &e.detail),
            (b'H', &e.hint),
            (b'P', &position),
            (b's', &e.schema),
            (b't', &e.table),
            (b'c', &e.column),
            (b'n', &e.constraint),
        ];
        for (tag, text) in optional {
            if let Some(text) = text {
                field(out, tag, text);
            }
        }
        out.push(0);
    });
}

/// NoticeResponse.
pub(crate) fn notice(out: &mut Vec<u8>, n: &Notice) {
    message(out, b'N', |out| {
        field(out, b'S', n.severity);
        field(out, b'V', n.severity);
        field(out, b'C', n.sqlstate);
        field(out, b'M', &n.message);
        out.push(0);
    });
}

/// AuthenticationOk.
pub(crate) fn authentication_ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
}

/// ParameterStatus.
pub(crate) fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        cstr(out, name);
        cstr(out, value);
    });
}

/// BackendKeyData.
pub(crate) fn backend_key_data(out: &mut Vec<u8>, process_id: i32, secret: u32) {
    message(out, b'K', |out| {
        out.extend_from_slice(&process_id.to_be_bytes());
        out.extend_from_slice(&secret.to_be_bytes());
    });
}

/// NegotiateProtocolVersion: we speak 3.0 and do not know these options.
pub(crate) fn negotiate_protocol_version(out: &mut Vec<u8>, unknown: &[String]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
        out.extend_from_slice(&(unknown.len() as i32).to_be_bytes());
        for name in unknown {
            cstr(out, name);
        }
    });
}

/// ReadyForQuery.
#[inline]
pub(crate) fn ready_for_query(out: &mut Vec<u8>, status: TxnStatus) {
    let status = match status {
        TxnStatus::Idle => b'I',
        TxnStatus::InBlock => b'T',
        TxnStatus::Failed => b'E',
    };
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// A message without a body: ParseComplete `1`, BindComplete `2`, CloseComplete `3`, NoData `n`, EmptyQueryResponse
/// `I`, PortalSuspended `s`, CopyDone `c`.
#[inline]
pub(crate) fn empty(out: &mut Vec<u8>, tag: u8) {
    out.extend_from_slice(&[tag, 0, 0, 0, 4]);
}

/// CommandComplete.
#[inline]
pub(crate) fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| cstr(out, tag));
}

/// ParameterDescription.
pub(crate) fn parameter_description(out: &mut Vec<u8>, types: &[Type]) {
    message(out, b't', |out| {
        out.extend_from_slice(&(types.len() as u16).to_be_bytes());
        for t in types {
            out.extend_from_slice(&t.oid().to_be_bytes());
        }
    });
}

/// RowDescription. `binary` says the format of each column.
pub(crate) fn row_description(out: &mut Vec<u8>, columns: &[OutputColumn], binary: impl Fn(usize) -> bool) {
    message(out, b'T', |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (i, c) in columns.iter().enumerate() {
            cstr(out, &c.name);
            out.extend_from_slice(&c.table_oid.to_be_bytes());
            out.extend_from_slice(&c.attnum.to_be_bytes());
            out.extend_from_slice(&c.ty.oid().to_be_bytes());
            out.extend_from_slice(&c.ty.typlen().to_be_bytes());
            out.extend_from_slice(&c.ty.typmod().to_be_bytes());
            out.extend_from_slice(&u16::from(binary(i)).to_be_bytes());
        }
    });
}

/// CopyInResponse `G` or CopyOutResponse `H`, text format.
pub(crate) fn copy_response(out: &mut Vec<u8>, tag: u8, columns: usize) {
    message(out, tag, |out| {
        out.push(0);
        let n = columns.min(usize::from(u16::MAX));
        out.extend_from_slice(&(n as u16).to_be_bytes());
        out.resize(out.len() + 2 * n, 0);
    });
}

/// CopyData.
#[inline]
pub(crate) fn copy_data(out: &mut Vec<u8>, data: &[u8]) {
    out.reserve(data.len() + 5);
    message(out, b'd', |out| out.extend_from_slice(data));
}
