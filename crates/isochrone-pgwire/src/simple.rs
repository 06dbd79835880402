//! The simple protocol, a script of statements per Query; and COPY FROM STDIN, which both protocols share.

use isochrone_sql::face::Outcome;
use isochrone_types::{Error, SqlState};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::Session;
use crate::connection::{Connection, Link, Trouble, is_over};
use crate::encode;
use crate::error::{Failure, protocol};
use crate::extended::{check_text, deallocated};
use crate::frontend;
use crate::sink::{Formats, WireSink};

impl<W: AsyncWrite + Unpin + Send, S: Session> Connection<W, S> {
    /// Query, up to the ReadyForQuery that follows it.
    pub(crate) async fn query<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
        steps: Result<Option<Vec<S::Step>>, Error>,
    ) -> Result<(), Failure> {
        let result = match steps {
            Ok(Some(steps)) => self.script(link, steps).await,
            Ok(None) => Ok(()),
            Err(e) => Err(Trouble::Sql(e)),
        };
        match result {
            Ok(()) => {}
            Err(Trouble::Sql(e)) if is_over(&e) => return Err(Failure::Fatal(e)),
            Err(Trouble::Sql(e)) => self.error(&e),
            Err(Trouble::Failure(f)) => return Err(f),
        }
        self.end_cycle().await
    }

    /// The statements of a Query's body; `None`: it has been answered.
    pub(crate) fn steps(&mut self, body: &[u8]) -> Result<Option<Vec<S::Step>>, Error> {
        self.names.drop_unnamed();
        let text = frontend::query(body)?;
        check_text(text)?;
        let steps = self.session.script(text)?;
        if let Some(name) = deallocated(text)
            && self.deallocate(&name)
        {
            return Ok(None);
        }
        Ok(Some(steps))
    }

    async fn script<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
        steps: Vec<S::Step>,
    ) -> Result<(), Trouble> {
        if steps.is_empty() {
            encode::empty(&mut self.out.buf, b'I');
            return Ok(());
        }
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            let last = steps.peek().is_none();
            let session = &mut self.session;
            let settings = session.settings().clone();
            let (outcome, copying) = self
                .out
                .drive(async |out| {
                    let mut sink = WireSink::new(out, &[], &Formats::All(false), &settings);
                    let outcome = session.step(step, last, &mut sink).await;
                    (outcome, sink.copying)
                })
                .await?;
            self.notices();
            match outcome? {
                Outcome::Suspended => {
                    return Err(Error::internal("a statement without a row limit was suspended").into());
                }
                outcome => self.outcome(link, outcome, copying).await?,
            }
        }
        Ok(())
    }

    /// COPY FROM STDIN: feeds the session until the client is done. After an error the client may go on sending
    /// CopyData: the main loop ignores it.
    pub(crate) async fn copy_in<R: AsyncRead + Unpin + Send>(
        &mut self,
        link: &mut Link<R>,
    ) -> Result<(), Trouble> {
        self.out.due = true;
        loop {
            let frame = link.next(&mut self.out, false, None).await?;
            let body = link.input.body(frame);
            let refused = match frame.tag {
                b'd' => {
                    self.session.copy_data(body).await?;
                    continue;
                }
                b'c' => {
                    let outcome = self.session.copy_done().await?;
                    self.notices();
                    let Outcome::Complete(tag) = outcome else {
                        return Err(Error::internal(format!("COPY ended with {outcome:?}")).into());
                    };
                    encode::command_complete(&mut self.out.buf, &tag);
                    return Ok(());
                }
                // Clients send them behind Execute before they know that it is a COPY.
                b'H' | b'S' => continue,
                b'X' => return Err(Failure::Closed.into()),
                b'f' => match frontend::copy_fail(body) {
                    Ok(reason) => {
                        Error::new(SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {reason}"))
                    }
                    Err(e) => e,
                },
                other => protocol(format!("unexpected message type 0x{other:02X} during COPY from stdin")),
            };
            self.session.copy_fail(&refused).await;
            return Err(refused.into());
        }
    }
}
