//! One call to an address, on a connection of its own: for tools, and for nodes that do not know each other yet.

use std::time::Duration;

use bytes::Bytes;
use isochrone_base::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::api::{CallError, Hello};
use crate::frame::{self, Fault, Input, Kind, PAYLOAD_BYTES_MAX, Purpose, put_frame};
use crate::handshake;

/// Calls whoever is at this address, and says who it is. `hello` is the caller's; 0 for what it has not. A refused
/// handshake is [`CallError::NotSent`], with the words of the side that refused.
pub async fn call_once(
    address: &str,
    hello: Hello,
    payload: Bytes,
    wait_max: Duration,
) -> Result<(Hello, Bytes), CallError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(CallError::NotSent(format!("{} bytes are too large", payload.len())));
    }
    let mut sent = false;
    let work = call(address, hello, payload, &mut sent);
    let result = match timeout(wait_max, work).await {
        Ok(Ok(answer)) => return answer,
        Ok(Err(fault)) => fault.to_string(),
        Err(_) => format!("no answer within {} ms", wait_max.as_millis()),
    };
    let text = format!("{address}: {result}");
    Err(if sent { CallError::Lost(text) } else { CallError::NotSent(text) })
}

async fn call(
    address: &str,
    hello: Hello,
    payload: Bytes,
    sent: &mut bool,
) -> Result<Result<(Hello, Bytes), CallError>, Fault> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let theirs = handshake::dial(&mut socket, hello, Purpose::Once, NodeId(0), |_| Ok(())).await?;
    let mut out = Vec::with_capacity(payload.len() + 32);
    put_frame(&mut out, Kind::Call, 1, &payload);
    // All but the last byte is not yet a call.
    let last = out.split_off(out.len() - 1);
    socket.write_all(&out).await?;
    *sent = true;
    socket.write_all(&last).await?;
    let mut input = Input::new();
    loop {
        while let Some(frame) = input.next()? {
            match frame.kind {
                Kind::Alive => {}
                Kind::Answer if frame.call == 1 => return Ok(Ok((theirs, frame.payload))),
                Kind::Error if frame.call == 1 => {
                    return Ok(Err(CallError::Refused(frame::text(&frame.payload))));
                }
                Kind::Refused => return Err(Fault::Refused(frame::text(&frame.payload))),
                kind => return Err(Fault::Misplaced(kind as u8)),
            }
        }
        input.reserve();
        if socket.read_buf(&mut input.buf).await? == 0 {
            return Err(Fault::Closed);
        }
    }
}
