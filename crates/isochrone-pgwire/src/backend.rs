//! What the wire protocol needs of the query layer, as two traits small enough to be faked.
//!
//! The loop drives a session with one call at a time; a future may be dropped half-way (the client's socket failed,
//! the server stops), after which only the session's drop follows, which must roll back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use isochrone_sql::face::ScriptSink;
use isochrone_sql::face::{Notice, Outcome, OutputColumn, RowSink, TxnStatus};
use isochrone_types::settings::Settings;
use isochrone_types::{Datum, Error, Type};

/// Who connects, from the startup packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientInfo {
    /// The user's name.
    pub user: String,
    /// The database's name: exists.
    pub database: String,
    /// Settings given at startup, in order: parameters of the packet and `-c name=value` of its `options`.
    pub settings: Vec<(String, String)>,
}

/// Breaks off the running statement of one session, if there is one; may be called at any time from any thread.
pub type Canceller = Arc<dyn Fn() + Send + Sync>;

/// Resolves when a session was idle for too long.
pub type IdleEnd = Pin<Box<dyn Future<Output = Error> + Send>>;

/// The database behind the server.
pub trait Backend: Send + Sync + 'static {
    /// Its sessions.
    type Session: Session;

    /// Opens a session. An error is sent to the client as FATAL.
    fn connect(&self, client: &ClientInfo) -> impl Future<Output = Result<Self::Session, Error>> + Send;
}

/// A session of the query layer.
pub trait Session: Send + 'static {
    /// A prepared statement.
    type Statement: Send + Sync + 'static;
    /// A statement with its parameters, running or not.
    type Portal: Send + 'static;
    /// One statement of a script.
    type Step: Send + 'static;

    /// Every setting that clients are told of (ParameterStatus), at startup.
    fn parameters(&mut self) -> Vec<(String, String)>;
    /// Those that changed since the last call.
    fn take_parameter_changes(&mut self) -> Vec<(String, String)>;
    /// Notices since the last call.
    fn take_notices(&mut self) -> Vec<Notice>;
    /// Where the transaction stands.
    fn status(&self) -> TxnStatus;
    /// The session waits for its client from now on: resolves with the reason, for FATAL, when that has lasted too long.
    /// `None`: it may last as long as it likes.
    fn idle_end(&self) -> Option<IdleEnd> {
        None
    }
    /// The settings that text output depends on.
    fn settings(&self) -> &Settings;
    /// Its number, as clients see it: positive, and no other open session has it.
    fn process_id(&self) -> i32;
    /// How to break off its statements.
    fn canceller(&self) -> Canceller;

    /// Prepares one statement. `parameter_types`: those the client gave, 0 where it left the choice to us.
    fn parse(
        &mut self,
        text: &str,
        parameter_types: &[u32],
    ) -> impl Future<Output = Result<Self::Statement, Error>> + Send;
    /// The types of its parameters.
    fn parameter_types(statement: &Self::Statement) -> Vec<Type>;
    /// The columns of its result; `None` when it has no rows.
    fn columns(statement: &Self::Statement) -> Option<&[OutputColumn]>;
    /// Gives a statement its parameters, as many as it has, each of its type or NULL.
    fn bind(
        &mut self,
        statement: &Self::Statement,
        parameters: Vec<Datum>,
    ) -> impl Future<Output = Result<Self::Portal, Error>> + Send;
    /// Runs a portal until it is complete or has given `rows_max` rows (0: no limit). `last`: Sync follows, so that an
    /// implicit transaction can be committed before this returns, and retried; the loop does not know it when Sync
    /// has not arrived yet.
    fn execute(
        &mut self,
        portal: &mut Self::Portal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> impl Future<Output = Result<Outcome, Error>> + Send;
    /// Sync: the implicit transaction of a pipeline ends. After an error it is rolled back.
    fn sync(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    /// The loop found an error (a malformed parameter, an unknown portal): an open transaction fails.
    fn fail(&mut self);

    /// Splits a script into its statements; an error of syntax anywhere means that none runs.
    fn script(&mut self, text: &str) -> Result<Vec<Self::Step>, Error>;
    /// Runs the next statement of a script. `last`: an implicit transaction is committed before this returns.
    /// After [`Outcome::CopyIn`], `copy_done` ends the statement.
    fn step(
        &mut self,
        step: Self::Step,
        last: bool,
        sink: &mut dyn ScriptSink,
    ) -> impl Future<Output = Result<Outcome, Error>> + Send;

    /// COPY FROM STDIN: some bytes, cut anywhere.
    fn copy_data(&mut self, data: &[u8]) -> impl Future<Output = Result<(), Error>> + Send;
    /// COPY FROM STDIN: the end.
    fn copy_done(&mut self) -> impl Future<Output = Result<Outcome, Error>> + Send;
    /// COPY FROM STDIN: the client (or the loop, on its behalf) gives up, for this reason. The statement has failed.
    fn copy_fail(&mut self, reason: &Error) -> impl Future<Output = ()> + Send;
}
