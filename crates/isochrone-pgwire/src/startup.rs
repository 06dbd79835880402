//! The packets before the first message: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
//!
//! They have no type byte: a length, a code, a body. Anything else (an HTTP request, a TLS hello) shows as an
//! impossible length and ends the connection with 08P01.

use isochrone_types::{Error, SqlState};

use crate::backend::ClientInfo;
use crate::error::protocol;
use crate::frontend::Reader;
use crate::limits::STARTUP_PACKET_BYTES_MAX;

/// The one database there is.
pub(crate) const DATABASE: &str = "isochrone";

const CANCEL_REQUEST: i32 = (1234 << 16) | 5678;
const SSL_REQUEST: i32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: i32 = (1234 << 16) | 5680;

/// A packet before login.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Packet {
    /// May we talk TLS?
    Ssl,
    /// May we talk GSSAPI encryption?
    Gss,
    /// Cancels another connection's statement.
    Cancel {
        /// From its BackendKeyData.
        process_id: i32,
        /// From its BackendKeyData.
        secret: u32,
    },
    /// A login.
    Startup(Startup),
}

/// A StartupMessage.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Startup {
    /// Minor version asked for.
    pub minor: u16,
    /// Protocol options (`_pq_.`) we do not know: all of them.
    pub unknown_options: Vec<String>,
    /// Who connects.
    pub client: ClientInfo,
}

/// The first packet in `bytes` and its length; `None`: more bytes are needed. Errors are fatal.
pub(crate) fn packet(bytes: &[u8]) -> Result<Option<(Packet, usize)>, Error> {
    let Some(head) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let announced = i32::from_be_bytes(*head);
    let n = match usize::try_from(announced) {
        Ok(n) if (8..=STARTUP_PACKET_BYTES_MAX + 4).contains(&n) => n,
        _ => return Err(protocol(format!("invalid length of startup packet: {announced}"))),
    };
    let Some(body) = bytes.get(4..n) else {
        return Ok(None);
    };
    let mut r = Reader::new(body);
    let packet = match r.i32()? {
        SSL_REQUEST => Packet::Ssl,
        GSSENC_REQUEST => Packet::Gss,
        CANCEL_REQUEST => Packet::Cancel { process_id: r.i32()?, secret: r.i32()? as u32 },
        version => Packet::Startup(startup(version, r)?),
    };
    Ok(Some((packet, n)))
}

fn startup(version: i32, mut r: Reader<'_>) -> Result<Startup, Error> {
    let (major, minor) = (version >> 16, (version & 0xffff) as u16);
    if major != 3 {
        return Err(Error::new(
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0"),
        ));
    }
    let mut startup = Startup { minor, unknown_options: Vec::new(), client: ClientInfo::default() };
    let mut database = None;
    // At most half as many as the packet has bytes.
    loop {
        let name = r.cstr()?;
        if name.is_empty() {
            break;
        }
        let value = r.cstr()?;
        match name {
            "user" => startup.client.user = value.to_owned(),
            "database" => database = Some(value.to_owned()),
            "options" => startup.client.settings.append(&mut options(value)?),
            "replication" => match value {
                "false" | "off" | "no" | "0" => {}
                _ => return Err(Error::unsupported("a replication connection")),
            },
            _ if name.starts_with("_pq_.") => startup.unknown_options.push(name.to_owned()),
            _ => startup.client.settings.push((name.to_owned(), value.to_owned())),
        }
    }
    r.end().map_err(|_| protocol("invalid startup packet layout: expected terminator as last byte"))?;
    if startup.client.user.is_empty() {
        return Err(Error::new(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    // As in PostgreSQL, the database defaults to the user's name; it is then refused like any other name.
    startup.client.database =
        database.filter(|d| !d.is_empty()).unwrap_or_else(|| startup.client.user.clone());
    Ok(startup)
}

/// 3D000 unless it is the database there is.
pub(crate) fn check_database(name: &str) -> Result<(), Error> {
    if name == DATABASE {
        return Ok(());
    }
    Err(Error::new(SqlState::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"))
        .with_hint(format!("The database of this server is named \"{DATABASE}\".")))
}

/// `-c name=value`, `-cname=value` and `--name=value`, separated by blanks; a backslash quotes the next character.
fn options(text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let c = if c == '\\' { chars.next().unwrap_or('\\') } else { c };
            word.get_or_insert_default().push(c);
        }
    }
    words.extend(word);
    let mut out = Vec::new();
    let mut words = words.into_iter();
    while let Some(w) = words.next() {
        let assignment = if w == "-c" {
            words.next()
        } else {
            w.strip_prefix("--").or_else(|| w.strip_prefix("-c")).map(str::to_owned)
        };
        match assignment.as_deref().and_then(|a| a.split_once('=')) {
            Some((name, value)) if !name.is_empty() => out.push((name.replace('-', "_"), value.to_owned())),
            _ => {
                let text = format!("invalid command-line argument for server process: {w}");
                return Err(Error::new(SqlState::SYNTAX_ERROR, text));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(code: i32, body: &[u8]) -> Vec<u8> {
        let mut out = ((8 + body.len()) as i32).to_be_bytes().to_vec();
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn reads_packets_and_refuses_the_rest() {
        let login = framed(
            3 << 16,
            b"user\0u\0database\0isochrone\0options\0-c a=1 --b-c=x\\ y\0_pq_.x\0y\0TimeZone\0UTC\0\0",
        );
        for n in 0..login.len() {
            assert_eq!(packet(&login[..n]).unwrap(), None);
        }
        let (Packet::Startup(s), n) = packet(&login).unwrap().unwrap() else { panic!("not a startup") };
        assert_eq!((n, s.minor, s.unknown_options), (login.len(), 0, vec!["_pq_.x".to_owned()]));
        let settings: Vec<_> = s.client.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(settings, [("a", "1"), ("b_c", "x y"), ("TimeZone", "UTC")]);
        assert_eq!((s.client.user.as_str(), s.client.database.as_str()), ("u", "isochrone"));

        assert_eq!(packet(&framed(SSL_REQUEST, b"")).unwrap(), Some((Packet::Ssl, 8)));
        assert_eq!(
            packet(&framed(CANCEL_REQUEST, &[0, 0, 0, 7, 255, 255, 255, 255])).unwrap(),
            Some((Packet::Cancel { process_id: 7, secret: u32::MAX }, 16))
        );
        for bad in [
            b"GET / HTTP/1.1".to_vec(),
            vec![0x16, 3, 1, 2, 0],
            vec![0, 0, 0, 7],
            vec![255; 4],
            framed(2 << 16, b""),
            framed(3 << 16, b"user\0u\0"),
            framed(3 << 16, b"user\0u"),
            framed(3 << 16, b"user\0u\0\0extra"),
            framed(3 << 16, b"\0"),
            framed(3 << 16, b"user\0\xff\0\0"),
            framed(3 << 16, b"user\0u\0replication\0database\0\0"),
            framed(3 << 16, b"user\0u\0options\0-x\0\0"),
            framed(CANCEL_REQUEST, b"123"),
        ] {
            packet(&bad).unwrap_err();
        }
        let (Packet::Startup(s), _) = packet(&framed(3 << 16, b"user\0root\0\0")).unwrap().unwrap() else {
            panic!("not a startup")
        };
        let refused = check_database(&s.client.database).unwrap_err();
        assert_eq!(refused.sqlstate, SqlState::INVALID_CATALOG_NAME);
        check_database(DATABASE).unwrap();
    }
}
