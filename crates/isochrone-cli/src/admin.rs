//! One question to a node's cluster port, and its answer. The only place of this crate that knows how they travel.

use std::time::Duration;

use isochrone_api::{Request, Response};
use isochrone_net::{CallError, Hello, call_once};

/// A node that has not answered after this long is said not to.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there now; asking again is harmless, and may help.
    #[error("{0}")]
    Unreachable(String),
    /// A node answered, and asking again does not help.
    #[error("{0}")]
    Refused(String),
}

/// Asks the node at this cluster address.
pub async fn call(address: &str, request: &Request) -> Result<Response, Error> {
    // A tool is of no cluster and no node.
    match call_once(address, Hello::default(), request.encode(), ANSWER_MAX).await {
        Ok((_, answer)) => {
            Response::decode(answer).map_err(|e| Error::Refused(format!("cannot read the answer: {e}")))
        }
        Err(CallError::NotSent(why) | CallError::Lost(why)) => {
            let why = why.strip_prefix(address).and_then(|w| w.strip_prefix(": ")).unwrap_or(&why);
            Err(Error::Unreachable(why.to_string()))
        }
        Err(CallError::Refused(why)) => Err(Error::Refused(why)),
    }
}

/// The node said it cannot be done, or something that is no answer to the question.
pub(crate) fn unexpected(response: Response) -> anyhow::Error {
    match response {
        Response::Error { message } => anyhow::Error::msg(message),
        other => anyhow::anyhow!("the node answered something else than was asked: {other:?}"),
    }
}
