//! The words in which the wire protocol and the embedded library talk with a session: columns, rows, outcomes.

use isochrone_txn::kv::BoxFuture;
use isochrone_types::{Datum, Error, Type};

/// A column of a result.
#[derive(Clone, PartialEq, Debug)]
pub struct OutputColumn {
    /// Name.
    pub name: String,
    /// Type with its modifier.
    pub ty: Type,
    /// Oid of the table it comes from, 0 if none.
    pub table_oid: u32,
    /// Number of the column in that table, 0 if none.
    pub attnum: i16,
}

/// Takes result rows as they are made. `row` only encodes into a buffer; `ready` waits while the buffer is over its
/// bound and the other side is slow, so that a large result needs bounded memory.
pub trait RowSink: Send {
    /// One row, as many datums as the result has columns.
    fn row(&mut self, row: &[Datum]) -> Result<(), Error>;
    /// A chunk of COPY TO STDOUT data, whole lines.
    fn copy_data(&mut self, data: &[u8]) -> Result<(), Error>;
    /// COPY TO STDOUT begins: number of columns (text format).
    fn copy_out(&mut self, columns: usize) -> Result<(), Error>;
    /// Resolves when more rows may come. Called between batches.
    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>>;
    /// Could rows given to this sink have reached the client already? While not, the session may retry a statement
    /// after calling [`RowSink::reset`].
    fn sent(&self) -> bool;
    /// Forgets the rows of the running statement (before a retry).
    fn reset(&mut self);
}

/// Takes the results of the statements of a script: the columns of each come before its rows.
pub trait ScriptSink: RowSink {
    /// The running statement has rows, with these columns. Called once, also if no row follows.
    fn columns(&mut self, columns: &[OutputColumn]) -> Result<(), Error>;
}

/// How a statement ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Complete, with its command tag (`SELECT 3`, `INSERT 0 1`, `BEGIN`).
    Complete(String),
    /// The row limit of Execute was reached: the portal can go on.
    Suspended,
    /// An empty statement.
    Empty,
    /// COPY FROM STDIN: the caller must feed data to the session until done (`copy_data`, `copy_done`, `copy_fail`).
    CopyIn {
        /// Number of columns.
        columns: usize,
    },
}

/// Where a session stands, as ReadyForQuery tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxnStatus {
    /// No transaction: 'I'.
    Idle,
    /// In a transaction block: 'T'.
    InBlock,
    /// In a failed transaction block: 'E'.
    Failed,
}

/// A NOTICE or WARNING for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// `NOTICE`, `WARNING`, `INFO`.
    pub severity: &'static str,
    /// SQLSTATE.
    pub sqlstate: &'static str,
    /// Text.
    pub message: String,
}
