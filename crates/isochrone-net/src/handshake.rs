//! The first words on a stream, in both directions: preamble, then Hello or Refused.
//!
//!     dialler                                          acceptor
//!     ISO-NET 1, Hello{me, lane, whom I expect} ─────►
//!                                        ◄───── ISO-NET 1, Hello{me}       or Refused{why}
//!     frames, or Refused{why} ────────────────────────►
//!
//! Everything here is bounded by [`HANDSHAKE_FRAME_BYTES_MAX`](crate::limits::HANDSHAKE_FRAME_BYTES_MAX); the caller
//! bounds the time. Preamble and Refused keep their form over all versions, so that a version is refused in words.

use std::io;

use isochrone_base::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::api::Hello;
use crate::frame::{
    self, Fault, Frame, Greeting, Input, Kind, PREAMBLE, PREFIX_BYTES, Purpose, check_preamble, put_frame,
};
use crate::limits::LINGER;

/// The dialler's side. On success the acceptor's Hello.
pub(crate) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    ours: Hello,
    purpose: Purpose,
    expects: NodeId,
    accept: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<Hello, Fault> {
    let greeting = Greeting { hello: ours, purpose, expects };
    let mut out = PREAMBLE.to_vec();
    put_frame(&mut out, Kind::Hello, 0, &greeting.encode()?);
    socket.write_all(&out).await?;
    read_preamble(socket).await?;
    let theirs = read_greeting(socket).await?.hello;
    let checked = match expects {
        NodeId(0) => Ok(()),
        node if node == theirs.node => Ok(()),
        node => Err(format!("node {node} was expected at this address, but {} answers", name(theirs.node))),
    };
    let checked =
        checked.and_then(|()| same_cluster(&greeting.hello, &theirs)).and_then(|()| accept(&theirs));
    if let Err(why) = checked {
        let mut out = Vec::new();
        put_frame(&mut out, Kind::Refused, 0, frame::cut(&why).as_bytes());
        socket.write_all(&out).await?;
        return Err(Fault::Refusing(why));
    }
    Ok(theirs)
}

/// The acceptor's side. What is wrong is told to the dialler, if it speaks our language at all.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    ours: impl FnOnce() -> Hello,
    accept: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<(Hello, Purpose), Fault> {
    let greeting = async {
        read_preamble(socket).await?;
        let theirs = read_greeting(socket).await?;
        let ours = ours();
        let checked = match theirs.expects {
            NodeId(0) => Ok(()),
            node if node == ours.node => Ok(()),
            node => Err(format!("this is {}, not node {node}", name(ours.node))),
        };
        let checked = checked.and_then(|()| same_cluster(&ours, &theirs.hello));
        checked.and_then(|()| accept(&theirs.hello)).map_err(Fault::Refusing)?;
        let answer = Greeting { hello: ours, purpose: theirs.purpose, expects: NodeId(0) };
        Ok((theirs, answer.encode()?))
    };
    let mut out = PREAMBLE.to_vec();
    match greeting.await {
        Ok((theirs, answer)) => {
            put_frame(&mut out, Kind::Hello, 0, &answer);
            socket.write_all(&out).await?;
            Ok((theirs.hello, theirs.purpose))
        }
        Err(fault) => {
            if let Some(why) = told(&fault) {
                put_frame(&mut out, Kind::Refused, 0, frame::cut(&why).as_bytes());
                socket.write_all(&out).await?;
            }
            Err(fault)
        }
    }
}

/// What to tell the other side about a fault; None where it would not understand, or is gone.
fn told(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Refusing(why) => Some(why.clone()),
        Fault::Version { theirs, ours } => {
            Some(format!("this node speaks version {ours} of the protocol, not {theirs}"))
        }
        Fault::Oversized { .. } | Fault::Checksum | Fault::Broken(_) | Fault::Misplaced(_) => {
            Some(fault.to_string())
        }
        _ => None,
    }
}

/// Ends a stream such that what was written last can still be read: a socket closed with unread input is reset.
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut S) {
    let mut sink = [0; 1024];
    let end = async {
        socket.shutdown().await?;
        while socket.read(&mut sink).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    let _gone = tokio::time::timeout(LINGER, end).await;
}

fn same_cluster(ours: &Hello, theirs: &Hello) -> Result<(), String> {
    if ours.cluster != 0 && theirs.cluster != 0 && ours.cluster != theirs.cluster {
        return Err(format!("of another cluster: {:032x} here, {:032x} there", ours.cluster, theirs.cluster));
    }
    Ok(())
}

fn name(node: NodeId) -> String {
    match node {
        NodeId(0) => "a node without an id".into(),
        node => format!("node {node}"),
    }
}

fn early(e: io::Error) -> Fault {
    match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Fault::ClosedEarly,
        _ => Fault::Io(e),
    }
}

async fn read_preamble<S: AsyncRead + Unpin>(socket: &mut S) -> Result<(), Fault> {
    let mut theirs = [0; PREAMBLE.len()];
    socket.read_exact(&mut theirs).await.map_err(early)?;
    match check_preamble(theirs) {
        // The words of a later version, if it has any.
        Err(fault @ Fault::Version { .. }) => match read_frame(socket).await {
            Ok(Frame { kind: Kind::Refused, payload, .. }) => Err(Fault::Refused(frame::text(&payload))),
            _ => Err(fault),
        },
        checked => checked,
    }
}

async fn read_greeting<S: AsyncRead + Unpin>(socket: &mut S) -> Result<Greeting, Fault> {
    let frame = read_frame(socket).await?;
    match frame.kind {
        Kind::Hello => Ok(Greeting::decode(frame.payload)?),
        Kind::Refused => Err(Fault::Refused(frame::text(&frame.payload))),
        kind => Err(Fault::Misplaced(kind as u8)),
    }
}

/// One frame and not a byte more.
async fn read_frame<S: AsyncRead + Unpin>(socket: &mut S) -> Result<Frame, Fault> {
    let mut input = Input::handshake();
    let mut prefix = [0; PREFIX_BYTES];
    socket.read_exact(&mut prefix).await.map_err(early)?;
    input.buf.extend_from_slice(&prefix);
    if let Some(frame) = input.next()? {
        return Ok(frame);
    }
    // `next` has refused lengths above the bound.
    let len = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
    input.buf.resize(PREFIX_BYTES + len, 0);
    socket.read_exact(&mut input.buf[PREFIX_BYTES..]).await.map_err(early)?;
    input.next()?.ok_or(Fault::Closed)
}
