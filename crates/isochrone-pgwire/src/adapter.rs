//! The query layer's [`Database`] and [`Session`](isochrone_sql::session::Session) as the loop sees them.

use std::sync::Arc;

use isochrone_sql::face::{Notice, Outcome, OutputColumn, RowSink, TxnStatus};
use isochrone_sql::session::{Database, Portal, Prepared, Session as SqlSession, Step};
use isochrone_types::settings::Settings;
use isochrone_types::{Datum, Error, SqlState, Type};

use crate::backend::{Backend, Canceller, ClientInfo, IdleEnd, ScriptSink, Session};

impl Backend for Arc<Database> {
    type Session = SqlSession;

    async fn connect(&self, client: &ClientInfo) -> Result<SqlSession, Error> {
        let mut session = Database::connect(self, &client.user, &client.database).await?;
        for (name, value) in &client.settings {
            session.set_initial(name, value)?;
        }
        Ok(session)
    }
}

impl Session for SqlSession {
    type Statement = Arc<Prepared>;
    type Portal = Portal;
    type Step = Step;

    fn parameters(&mut self) -> Vec<(String, String)> {
        SqlSession::parameters(self)
    }
    fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        SqlSession::take_parameter_changes(self)
    }
    fn take_notices(&mut self) -> Vec<Notice> {
        SqlSession::take_notices(self)
    }
    fn status(&self) -> TxnStatus {
        SqlSession::status(self)
    }
    fn idle_end(&self) -> Option<IdleEnd> {
        SqlSession::idle_end(self)
    }
    fn settings(&self) -> &Settings {
        SqlSession::settings(self)
    }
    fn process_id(&self) -> i32 {
        self.pid()
    }
    fn canceller(&self) -> Canceller {
        let handle = self.cancel_handle();
        Arc::new(move || handle.cancel())
    }
    async fn parse(&mut self, text: &str, parameter_types: &[u32]) -> Result<Arc<Prepared>, Error> {
        let known = parameter_types.iter().map(|oid| match (*oid, Type::from_oid(*oid)) {
            (0, _) | (_, Some(Type::Unknown)) => Ok(None),
            (_, Some(ty)) => Ok(Some(ty)),
            (oid, None) => {
                Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist")))
            }
        });
        let known: Vec<Option<Type>> = known.collect::<Result<_, _>>()?;
        SqlSession::parse(self, text, &known).await
    }
    fn parameter_types(statement: &Arc<Prepared>) -> Vec<Type> {
        statement.params().to_vec()
    }
    fn columns(statement: &Arc<Prepared>) -> Option<&[OutputColumn]> {
        Prepared::columns(statement)
    }
    async fn bind(&mut self, statement: &Arc<Prepared>, parameters: Vec<Datum>) -> Result<Portal, Error> {
        SqlSession::bind(self, statement, parameters)
    }
    async fn execute(
        &mut self,
        portal: &mut Portal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        SqlSession::execute(self, portal, rows_max, last, sink).await
    }
    async fn sync(&mut self) -> Result<(), Error> {
        SqlSession::sync(self).await
    }
    fn fail(&mut self) {
        SqlSession::fail(self);
    }
    fn script(&mut self, text: &str) -> Result<Vec<Step>, Error> {
        SqlSession::script(self, text)
    }
    async fn step(&mut self, step: Step, last: bool, sink: &mut dyn ScriptSink) -> Result<Outcome, Error> {
        SqlSession::step(self, step, last, sink).await
    }
    async fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        SqlSession::copy_data(self, data).await
    }
    async fn copy_done(&mut self) -> Result<Outcome, Error> {
        SqlSession::copy_done(self).await
    }
    async fn copy_fail(&mut self, reason: &Error) {
        // It words an error of its own, for callers that have none.
        let _same = SqlSession::copy_fail(self, &reason.message);
    }
}
