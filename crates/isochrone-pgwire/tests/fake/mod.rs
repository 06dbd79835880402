//! A database that does what its statements say, and a client that speaks raw bytes, for tests and the benchmark.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use isochrone_env::os::TokioTimer;
use isochrone_pgwire::backend::ScriptSink;
use isochrone_pgwire::{Backend, ClientInfo, Config, Error as ServerError, Server, Session};
use isochrone_sql::face::{Notice, Outcome, OutputColumn, RowSink, TxnStatus};
use isochrone_types::settings::Settings;
use isochrone_types::{Datum, Error, SqlState, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// What all sessions of a fake share.
#[derive(Default)]
pub struct World {
    /// Told by `wait` and `gate` statements when they run.
    pub waiting: Notify,
    /// Lets one `gate` statement go on.
    pub gate: Notify,
    sessions: AtomicI32,
}

#[derive(Clone, Default)]
pub struct Fake(pub Arc<World>);

pub struct FakeSession {
    process_id: i32,
    world: Arc<World>,
    settings: Settings,
    status: TxnStatus,
    notices: Vec<Notice>,
    changes: Vec<(String, String)>,
    cancel: Arc<Notify>,
    copied: Vec<u8>,
}

pub struct FakeStatement {
    text: String,
    parameters: Vec<Type>,
    columns: Option<Vec<OutputColumn>>,
}

pub struct FakePortal {
    text: String,
    parameters: Vec<Datum>,
    next: i32,
}

fn column(name: &str, ty: Type) -> OutputColumn {
    OutputColumn { name: name.to_owned(), ty, table_oid: 0, attnum: 0 }
}

impl Backend for Fake {
    type Session = FakeSession;
    async fn connect(&self, client: &ClientInfo) -> Result<FakeSession, Error> {
        if client.user == "nobody" {
            return Err(Error::new(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "role \"nobody\" does not exist",
            ));
        }
        Ok(FakeSession {
            process_id: self.0.sessions.fetch_add(1, Ordering::Relaxed) + 1,
            world: Arc::clone(&self.0),
            settings: Settings::default(),
            status: TxnStatus::Idle,
            notices: Vec::new(),
            changes: Vec::new(),
            cancel: Arc::new(Notify::new()),
            copied: Vec::new(),
        })
    }
}

fn words(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(' ').unwrap_or((text, ""))
}

fn statement(text: &str, oids: &[u32]) -> Result<FakeStatement, Error> {
    let (verb, argument) = words(text);
    let mut parameters = Vec::new();
    let columns = match verb {
        "select" | "again" => Some(vec![column("?column?", Type::Int4)]),
        "rows" => Some(vec![column("i", Type::Int4), column("t", Type::Text)]),
        "echo" => {
            parameters = oids.iter().map(|o| Type::from_oid(*o).unwrap_or(Type::Text)).collect();
            Some(parameters.iter().map(|t| column("p", *t)).collect())
        }
        "" | "begin" | "commit" | "copyin" | "copyout" | "notice" | "set" | "wait" | "gate" | "panic"
        | "fail" | "failsync" | "deallocate" | "discard" | "last" => None,
        _ => {
            let e = Error::syntax(format!("syntax error at or near \"{verb}\"")).with_position(1);
            return Err(e.with_detail(argument));
        }
    };
    Ok(FakeStatement { text: text.trim().to_owned(), parameters, columns })
}

impl FakeSession {
    async fn run(
        &mut self,
        portal: &mut FakePortal,
        max: usize,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        let (verb, argument) = words(&portal.text);
        if self.status == TxnStatus::Failed && verb != "commit" {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(Error::new(SqlState::IN_FAILED_SQL_TRANSACTION, text));
        }
        let number: i32 = argument.parse().unwrap_or(0);
        let tag = match verb {
            "" => return Ok(Outcome::Empty),
            "select" => {
                sink.row(&[Datum::Int4(number)])?;
                "SELECT 1".to_owned()
            }
            "again" => {
                sink.row(&[Datum::Int4(-1)])?;
                sink.reset();
                sink.row(&[Datum::Int4(number)])?;
                "SELECT 1".to_owned()
            }
            "rows" => {
                let mut given = 0;
                while portal.next < number {
                    if max > 0 && given == max {
                        return Ok(Outcome::Suspended);
                    }
                    let text = if portal.next % 7 == 3 {
                        Datum::Null
                    } else {
                        format!("row {}", portal.next).into()
                    };
                    sink.row(&[Datum::Int4(portal.next), text])?;
                    portal.next += 1;
                    given += 1;
                    sink.ready().await?;
                }
                format!("SELECT {given}")
            }
            "echo" => {
                sink.row(&portal.parameters)?;
                "SELECT 1".to_owned()
            }
            "begin" => {
                self.status = TxnStatus::InBlock;
                "BEGIN".to_owned()
            }
            "commit" => {
                let failed = self.status == TxnStatus::Failed;
                self.status = TxnStatus::Idle;
                if failed { "ROLLBACK" } else { "COMMIT" }.to_owned()
            }
            "copyin" => return Ok(Outcome::CopyIn { columns: 2 }),
            "copyout" => {
                sink.copy_out(1)?;
                for i in 0..number {
                    sink.copy_data(format!("line {i}\n").as_bytes())?;
                    sink.ready().await?;
                }
                format!("COPY {number}")
            }
            "notice" => {
                let message = argument.to_owned();
                self.notices.push(Notice { severity: "NOTICE", sqlstate: "00000", message });
                "NOTICE".to_owned()
            }
            "set" => {
                let (name, value) = words(argument);
                self.changes.push((name.to_owned(), value.to_owned()));
                "SET".to_owned()
            }
            "wait" => {
                self.world.waiting.notify_one();
                self.cancel.notified().await;
                let text = "canceling statement due to user request";
                return Err(Error::new(SqlState::QUERY_CANCELED, text));
            }
            "gate" => {
                self.world.waiting.notify_one();
                self.world.gate.notified().await;
                "GATE".to_owned()
            }
            "panic" => panic!("the statement asked for it"),
            "fail" => {
                sink.ready().await?;
                return Err(Error::division_by_zero().with_hint("do not"));
            }
            "deallocate" if argument != "all" => {
                let text = format!("prepared statement \"{argument}\" does not exist");
                return Err(Error::new(SqlState::INVALID_SQL_STATEMENT_NAME, text));
            }
            "deallocate" => "DEALLOCATE ALL".to_owned(),
            "discard" => "DISCARD ALL".to_owned(),
            "failsync" => {
                self.changes.push(("failsync".to_owned(), String::new()));
                "FAILSYNC".to_owned()
            }
            other => return Err(Error::internal(other.to_owned())),
        };
        Ok(Outcome::Complete(tag))
    }
}

impl Session for FakeSession {
    type Statement = FakeStatement;
    type Portal = FakePortal;
    type Step = String;

    fn parameters(&mut self) -> Vec<(String, String)> {
        vec![
            ("server_version".to_owned(), "15.0".to_owned()),
            ("client_encoding".to_owned(), "UTF8".to_owned()),
        ]
    }
    fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.changes)
    }
    fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }
    fn status(&self) -> TxnStatus {
        self.status
    }
    fn settings(&self) -> &Settings {
        &self.settings
    }
    fn process_id(&self) -> i32 {
        self.process_id
    }
    fn canceller(&self) -> isochrone_pgwire::backend::Canceller {
        let cancel = Arc::clone(&self.cancel);
        Arc::new(move || cancel.notify_waiters())
    }
    async fn parse(&mut self, text: &str, oids: &[u32]) -> Result<FakeStatement, Error> {
        statement(text, oids)
    }
    fn parameter_types(statement: &FakeStatement) -> Vec<Type> {
        statement.parameters.clone()
    }
    fn columns(statement: &FakeStatement) -> Option<&[OutputColumn]> {
        statement.columns.as_deref()
    }
    async fn bind(&mut self, statement: &FakeStatement, parameters: Vec<Datum>) -> Result<FakePortal, Error> {
        Ok(FakePortal { text: statement.text.clone(), parameters, next: 0 })
    }
    async fn execute(
        &mut self,
        portal: &mut FakePortal,
        rows_max: usize,
        last: bool,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, Error> {
        if portal.text == "last" {
            return Ok(Outcome::Complete(format!("LAST {last}")));
        }
        self.run(portal, rows_max, sink).await
    }
    async fn sync(&mut self) -> Result<(), Error> {
        if self.changes.first().is_some_and(|c| c.0 == "failsync") {
            self.changes.clear();
            return Err(Error::new(SqlState::SERIALIZATION_FAILURE, "could not serialize access"));
        }
        Ok(())
    }
    fn fail(&mut self) {
        if self.status == TxnStatus::InBlock {
            self.status = TxnStatus::Failed;
        }
    }
    fn script(&mut self, text: &str) -> Result<Vec<String>, Error> {
        let steps: Vec<String> =
            text.split(';').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
        for s in &steps {
            statement(s, &[])?;
        }
        Ok(steps)
    }
    async fn step(&mut self, step: String, _last: bool, sink: &mut dyn ScriptSink) -> Result<Outcome, Error> {
        let statement = statement(&step, &[])?;
        if let Some(columns) = &statement.columns {
            sink.columns(columns)?;
        }
        let mut portal = FakePortal { text: statement.text, parameters: Vec::new(), next: 0 };
        self.run(&mut portal, 0, sink).await
    }
    async fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        self.copied.extend_from_slice(data);
        if data.starts_with(b"bad") {
            self.copied.clear();
            return Err(Error::new(SqlState::BAD_COPY_FILE_FORMAT, "missing data for column \"b\""));
        }
        Ok(())
    }
    async fn copy_done(&mut self) -> Result<Outcome, Error> {
        let lines = self.copied.iter().filter(|b| **b == b'\n').count();
        self.copied.clear();
        Ok(Outcome::Complete(format!("COPY {lines}")))
    }
    async fn copy_fail(&mut self, _reason: &Error) {
        self.copied.clear();
    }
}

/// A running server.
pub struct Running {
    pub addr: SocketAddr,
    pub world: Arc<World>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), ServerError>>>,
}

pub async fn start(config: Config) -> Running {
    let fake = Fake::default();
    let world = Arc::clone(&fake.0);
    let server = Server::new(config, fake, Arc::new(TokioTimer), isochrone_pgwire::os_secrets())
        .expect("a valid configuration");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound socket");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move { server.serve(listener, async { drop(stopped.await) }).await });
    Running { addr, world, stop: Some(stop), task: Some(task) }
}

impl Running {
    /// Begins the drain.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }
    /// Waits for the end of the drain.
    pub async fn join(&mut self) {
        self.task.take().expect("joined once").await.expect("no panic").expect("no error");
    }
    pub async fn client(&self) -> Client {
        let mut client = Client::connect(self.addr).await;
        client.login("isochrone").await;
        client
    }
}

/// A client of raw bytes.
pub struct Client {
    pub stream: TcpStream,
    buf: Vec<u8>,
    pub process_id: i32,
    pub secret: u32,
}

pub fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

pub fn startup(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let mut out = (body.len() as i32 + 4).to_be_bytes().to_vec();
    out.extend_from_slice(&body);
    out
}

pub fn query(text: &str) -> Vec<u8> {
    framed(b'Q', format!("{text}\0").as_bytes())
}

pub fn parse(name: &str, text: &str, oids: &[u32]) -> Vec<u8> {
    let mut body = format!("{name}\0{text}\0").into_bytes();
    body.extend_from_slice(&(oids.len() as u16).to_be_bytes());
    oids.iter().for_each(|o| body.extend_from_slice(&o.to_be_bytes()));
    framed(b'P', &body)
}

pub fn bind(
    portal: &str,
    statement: &str,
    formats: &[i16],
    values: &[Option<&[u8]>],
    results: &[i16],
) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0").into_bytes();
    body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
    formats.iter().for_each(|f| body.extend_from_slice(&f.to_be_bytes()));
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for v in values {
        match v {
            None => body.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(v) => {
                body.extend_from_slice(&(v.len() as i32).to_be_bytes());
                body.extend_from_slice(v);
            }
        }
    }
    body.extend_from_slice(&(results.len() as u16).to_be_bytes());
    results.iter().for_each(|f| body.extend_from_slice(&f.to_be_bytes()));
    framed(b'B', &body)
}

pub fn execute(portal: &str, rows_max: i32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend_from_slice(&rows_max.to_be_bytes());
    framed(b'E', &body)
}

pub fn describe(what: char, name: &str) -> Vec<u8> {
    framed(b'D', format!("{what}{name}\0").as_bytes())
}

pub fn close(what: char, name: &str) -> Vec<u8> {
    framed(b'C', format!("{what}{name}\0").as_bytes())
}

pub fn sync() -> Vec<u8> {
    framed(b'S', b"")
}

fn strings(body: &[u8]) -> String {
    body.split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect::<Vec<_>>().join(" ")
}

/// A backend message as a line of text.
pub fn show(tag: u8, body: &[u8]) -> String {
    let u16_at = |i: usize| u16::from_be_bytes([body[i], body[i + 1]]);
    let i32_at = |i: usize| i32::from_be_bytes([body[i], body[i + 1], body[i + 2], body[i + 3]]);
    match tag {
        b'E' | b'N' => {
            let fields: Vec<String> = body
                .split(|b| *b == 0)
                .filter(|f| !f.is_empty() && f[0] != b'V')
                .map(|f| match f[0] {
                    b'S' | b'C' | b'M' => String::from_utf8_lossy(&f[1..]).into_owned(),
                    _ => format!("[{}]", String::from_utf8_lossy(f)),
                })
                .collect();
            format!("{} {}", tag as char, fields.join(" "))
        }
        b'Z' => format!("Z {}", body[0] as char),
        b'D' => {
            let mut at = 2;
            let mut out = "D".to_owned();
            for _ in 0..u16_at(0) {
                let n = i32_at(at);
                at += 4;
                if n < 0 {
                    out.push_str(" NULL");
                } else {
                    out.push_str(&format!(" {}", body[at..at + n as usize].escape_ascii()));
                    at += n as usize;
                }
            }
            assert_eq!(at, body.len(), "a row without garbage behind it");
            out
        }
        b'T' => {
            let mut at = 2;
            let mut out = "T".to_owned();
            for _ in 0..u16_at(0) {
                let n = body[at..].iter().position(|b| *b == 0).expect("a name's end");
                let name = String::from_utf8_lossy(&body[at..at + n]).into_owned();
                at += n + 1;
                out.push_str(&format!(" {name}:{}:{}", i32_at(at + 6), u16_at(at + 16)));
                at += 18;
            }
            assert_eq!(at, body.len());
            out
        }
        b't' => {
            let oids: Vec<String> =
                body[2..].chunks(4).map(|c| i32::from_be_bytes(c.try_into().unwrap()).to_string()).collect();
            format!("t {}", oids.join(" "))
        }
        b'G' | b'H' => format!("{} {}", tag as char, u16_at(1)),
        b'K' => "K".to_owned(),
        b'R' => format!("R {}", i32_at(0)),
        b'v' => format!("v {} {}", i32_at(0), strings(&body[8..])),
        b'd' => format!("d {}", body.escape_ascii()),
        _ => format!("{} {}", tag as char, strings(body)).trim_end().to_owned(),
    }
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).await.expect("the server accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        Client { stream, buf: Vec::new(), process_id: 0, secret: 0 }
    }

    pub async fn login(&mut self, database: &str) -> Vec<String> {
        self.send(&startup(3 << 16, &[("user", "root"), ("database", database)])).await;
        self.until_ready().await
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server reads");
    }

    /// The next message; `None` at the end of the stream.
    pub async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if self.buf.len() >= 5 {
                let n = u32::from_be_bytes(self.buf[1..5].try_into().unwrap()) as usize;
                if self.buf.len() > n {
                    let rest = self.buf.split_off(n + 1);
                    let message = std::mem::replace(&mut self.buf, rest);
                    if message[0] == b'K' {
                        self.process_id = i32::from_be_bytes(message[5..9].try_into().unwrap());
                        self.secret = u32::from_be_bytes(message[9..13].try_into().unwrap());
                    }
                    return Some((message[0], message[5..].to_vec()));
                }
            }
            match tokio::time::timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.buf)).await {
                Err(_) => panic!("the server says nothing, after {:?}", self.buf),
                Ok(Ok(0) | Err(_)) => {
                    assert!(self.buf.is_empty(), "half a message at the end: {:?}", self.buf);
                    return None;
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    pub async fn line(&mut self) -> String {
        match self.message().await {
            Some((tag, body)) => show(tag, &body),
            None => "closed".to_owned(),
        }
    }

    /// Messages up to ReadyForQuery or the end.
    pub async fn until_ready(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        loop {
            let line = self.line().await;
            let end = line.starts_with("Z ") || line == "closed";
            out.push(line);
            if end {
                return out;
            }
        }
    }

    pub async fn ask(&mut self, bytes: &[u8]) -> Vec<String> {
        self.send(bytes).await;
        self.until_ready().await
    }

    /// One byte: the answer to SSLRequest.
    pub async fn byte(&mut self) -> u8 {
        self.stream.read_u8().await.expect("an answer")
    }
}
