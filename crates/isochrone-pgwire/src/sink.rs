//! Rows and COPY data on their way into the output buffer, in the formats the client asked for.

use isochrone_sql::face::{OutputColumn, RowSink};
use isochrone_types::binary::write_binary;
use isochrone_types::settings::Settings;
use isochrone_types::text::write_text;
use isochrone_types::{Datum, Error, SqlState, Type};
use std::borrow::Cow;
use tokio::io::AsyncWrite;

use crate::backend::ScriptSink;
use crate::encode;
use crate::limits::{OUT_BYTES_HIGH, ROW_BYTES_MAX};
use crate::output::Output;

/// What `RowSink::ready` returns.
type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The formats of a result's columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Formats {
    /// All text, or all binary.
    All(bool),
    /// One by one: is it binary?
    Each(Box<[bool]>),
}

impl Formats {
    /// Is column `i` binary?
    #[inline]
    pub(crate) fn binary(&self, i: usize) -> bool {
        match self {
            Formats::All(b) => *b,
            Formats::Each(each) => each.get(i).copied().unwrap_or(false),
        }
    }
}

/// The sink of one statement.
pub(crate) struct WireSink<'a, W> {
    out: &'a mut Output<W>,
    types: Cow<'a, [Type]>,
    formats: &'a Formats,
    settings: &'a Settings,
    /// Has COPY TO STDOUT begun?
    pub copying: bool,
}

impl<'a, W: AsyncWrite + Unpin + Send> WireSink<'a, W> {
    /// A sink for rows of these types; a script's statement begins with none.
    pub(crate) fn new(
        out: &'a mut Output<W>,
        types: &'a [Type],
        formats: &'a Formats,
        settings: &'a Settings,
    ) -> WireSink<'a, W> {
        out.begin_statement();
        WireSink { out, types: Cow::Borrowed(types), formats, settings, copying: false }
    }

    fn check_size(&mut self, from: usize) -> Result<(), Error> {
        let n = self.out.buf.len() - from;
        if n > ROW_BYTES_MAX {
            self.out.buf.truncate(from);
            let text =
                format!("a row of {n} bytes is too long to send: at most {ROW_BYTES_MAX} are possible");
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text));
        }
        Ok(())
    }
}

impl<W: AsyncWrite + Unpin + Send> RowSink for WireSink<'_, W> {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        if row.len() != self.types.len() {
            let text = format!("a row of {} values for {} columns", row.len(), self.types.len());
            return Err(Error::internal(text));
        }
        let out = &mut self.out.buf;
        let from = out.len();
        let n = (row.len() as u16).to_be_bytes();
        out.extend_from_slice(&[b'D', 0, 0, 0, 0, n[0], n[1]]);
        for (i, (datum, ty)) in row.iter().zip(self.types.iter()).enumerate() {
            if datum.is_null() {
                out.extend_from_slice(&(-1i32).to_be_bytes());
                continue;
            }
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            if self.formats.binary(i) {
                write_binary(datum, ty, out);
            } else {
                write_text(datum, ty, self.settings, out);
            }
            let len = out.len() - at - 4;
            // A sum past the bound is refused below, whatever was patched in here.
            out[at..at + 4].copy_from_slice(&(len as u32).to_be_bytes());
        }
        encode::patch_length(out, from + 1);
        self.check_size(from)
    }

    fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        let from = self.out.buf.len();
        encode::copy_data(&mut self.out.buf, data);
        self.check_size(from)
    }

    fn copy_out(&mut self, columns: usize) -> Result<(), Error> {
        self.copying = true;
        encode::copy_response(&mut self.out.buf, b'H', columns);
        Ok(())
    }

    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        if self.out.buf.len() < OUT_BYTES_HIGH {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(async {
            self.out.flush().await.map_err(|e| {
                Error::new(SqlState::CONNECTION_FAILURE, format!("could not send to client: {e}"))
            })
        })
    }

    fn sent(&self) -> bool {
        self.out.statement_sent()
    }

    fn reset(&mut self) {
        debug_assert!(!self.out.statement_sent(), "rows that the client may have seen cannot be taken back");
        self.out.rewind_statement();
        self.copying = false;
    }
}

impl<W: AsyncWrite + Unpin + Send> ScriptSink for WireSink<'_, W> {
    fn columns(&mut self, columns: &[OutputColumn]) -> Result<(), Error> {
        self.types = Cow::Owned(columns.iter().map(|c| c.ty).collect());
        encode::row_description(&mut self.out.buf, columns, |_| false);
        // A statement that is run again takes back its rows, and not what they look like.
        self.out.begin_statement();
        Ok(())
    }
}
