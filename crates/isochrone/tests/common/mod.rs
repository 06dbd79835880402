//! A real `isochrone` process for tests: its own directory, free ports, killed when the test ends.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::disallowed_methods, reason = "waits for a process's end")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use tokio_postgres::{Client, Config, NoTls};

pub mod cluster;
pub mod real;
pub mod strace;

pub struct Server {
    child: Child,
    pub sql: SocketAddr,
    pub http: SocketAddr,
}

/// The binary under test: the one built with the tests, or the one that `ISOCHRONE_BIN` names (a release build, for runs
/// that last).
pub fn executable() -> PathBuf {
    std::env::var_os("ISOCHRONE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_isochrone").into(), PathBuf::from)
}

/// A command for the binary under test.
pub fn isochrone() -> Command {
    Command::new(executable())
}

impl Server {
    /// Starts a server and waits until it says that it is ready. Panics with its output when it ends instead.
    pub fn start(dir: &Path) -> Server {
        Server::start_with(dir, &[])
    }

    pub fn start_with(dir: &Path, more: &[&str]) -> Server {
        Server::launch(dir, more)
            .unwrap_or_else(|text| panic!("the server ended before it was ready: {text}"))
    }

    /// What it printed on standard error, when it ends before it is ready.
    pub fn try_start(dir: &Path) -> Result<Server, String> {
        Server::launch(dir, &[])
    }

    fn launch(dir: &Path, more: &[&str]) -> Result<Server, String> {
        let mut child = isochrone()
            .args(["start", "--data"])
            .arg(dir)
            .args(["--sql", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cluster", "127.0.0.1:0"])
            .args(more)
            .env("ISOCHRONE_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // What it says on standard error is passed on, and kept in case it does not start.
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let said = std::thread::Builder::new()
            .spawn(move || {
                let mut text = String::new();
                let mut line = String::new();
                while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                    eprint!("{line}");
                    text.push_str(&line);
                    line.clear();
                }
                text
            })
            .expect("a thread");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (mut sql, mut http) = (None, None);
        for line in lines.by_ref() {
            let line = line.expect("stdout is text");
            for word in line.split_whitespace() {
                if let Some(address) = word.strip_prefix("sql=") {
                    sql = Some(address.parse().expect("an address"));
                }
                if let Some(address) = word.strip_prefix("http=") {
                    http = Some(address.parse().expect("an address"));
                }
            }
            if line.starts_with("ready") {
                break;
            }
        }
        // Nobody reads further lines; the server prints none after "ready" but on the way down.
        std::thread::Builder::new().spawn(move || lines.for_each(drop)).expect("a thread");
        let (Some(sql), Some(http)) = (sql, http) else {
            let status = child.wait().expect("the process ends");
            return Err(format!("{status}: {}", said.join().expect("the reader does not panic")));
        };
        Ok(Server { child, sql, http })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process ends");
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        self.child.wait().expect("the process ends")
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host(self.sql.ip().to_string()).port(self.sql.port()).user("root").dbname("isochrone");
        config
    }

    pub async fn connect(&self) -> Client {
        connect(&self.config()).await.expect("the server accepts connections")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// What an HTTP page answers: the status line's code, and the body.
pub fn http_get(http: SocketAddr, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(http).expect("the HTTP port is open");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a timeout can be set");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("the request is sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the answer is text");
    let code = answer.split(' ').nth(1).and_then(|c| c.parse().ok()).expect("a status line");
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_string()).unwrap_or_default();
    (code, body)
}

impl Server {
    /// See [`http_get`].
    pub fn http_get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path)
    }

    /// Is the process still there?
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the process is ours").is_none()
    }

    /// SIGTERM; kills it and panics when it has not ended after this long.
    pub fn terminate_within(mut self, limit: std::time::Duration) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let step = std::time::Duration::from_millis(10);
        let mut waited = std::time::Duration::ZERO;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(waited < limit, "the server did not end within {limit:?} after SIGTERM");
            std::thread::sleep(step);
            waited += step;
        }
    }
}
