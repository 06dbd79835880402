//! The commands that talk to nodes, over real sockets, against a node that only knows its answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_api::{NodeRow, NodeState, Request, Response};
use isochrone_base::{Bytes, NodeId};
use isochrone_cli::init::{Outcome, ask_until};
use isochrone_cli::{admin, node};
use isochrone_net::{BoxFuture, Config, Hello, Service, Transport};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// Answers each call with the next of its answers, and keeps what it was asked.
struct Scripted {
    answers: Mutex<VecDeque<Result<Bytes, String>>>,
    asked: Mutex<Vec<Request>>,
}

impl Service for Scripted {
    fn hello(&self) -> Hello {
        Hello { cluster: 7, node: NodeId(1), address: "127.0.0.1:1".into() }
    }
    fn accept(&self, peer: &Hello) -> Result<(), String> {
        assert_eq!(*peer, Hello::default(), "a tool is of no cluster and no node");
        Ok(())
    }
    fn message(&self, _: NodeId, _: Bytes) {}
    fn call(&self, _: Hello, payload: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        self.asked.lock().unwrap().push(Request::decode(payload).unwrap());
        let answer = self.answers.lock().unwrap().pop_front().expect("not asked more often");
        Box::pin(async move { answer })
    }
    fn connected(&self, _: NodeId) {}
    fn disconnected(&self, _: NodeId) {}
}

async fn node_with(answers: Vec<Result<Bytes, String>>) -> (String, Arc<Scripted>, Arc<Transport>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = Arc::new(Scripted { answers: Mutex::new(answers.into()), asked: Mutex::default() });
    let transport = Transport::start(listener, service.clone(), Config::default()).unwrap();
    (address, service, transport)
}

#[tokio::test]
async fn init_until_it_is_done() {
    let waiting = Response::Waiting { answered: vec!["a:1".into()], missing: vec!["b:1 (refused)".into()] };
    let nodes = vec![(NodeId(1), "a:1".to_string()), (NodeId(2), "b:1".to_string())];
    let made = Response::Initialised { cluster: 9, nodes: nodes.clone() };
    let (address, service, transport) = node_with(vec![Ok(waiting.encode()), Ok(made.encode())]).await;
    let ask = async || admin::call(&address, &Request::Init).await;
    let mut said = Vec::new();
    let outcome =
        ask_until(ask, &address, Duration::from_secs(30), &mut |line| said.push(line.to_string())).await;
    assert_eq!(outcome.unwrap(), Outcome::Made { cluster: 9, nodes });
    assert_eq!(said, ["waiting for 3 nodes: a:1 answers, b:1 does not (refused)"]);
    assert_eq!(*service.asked.lock().unwrap(), [Request::Init, Request::Init]);
    transport.shutdown().await;
}

#[tokio::test]
async fn what_a_node_refuses_is_not_asked_again() {
    let row = NodeRow {
        node: NodeId(1),
        address: "a:1".into(),
        sql: "a:2".into(),
        state: NodeState::Live,
        leaders: 3,
        replicas: 5,
    };
    let error = Response::Error { message: "there is no node 9".into() };
    let answers = vec![
        Ok(Response::Nodes(vec![row.clone()]).encode()),
        Err("this node is stopping".to_string()),
        Ok(error.encode()),
        Ok(Bytes::from_static(b"nonsense")),
    ];
    let (address, _, transport) = node_with(answers).await;
    assert_eq!(node::list(&address).await.unwrap(), [row]);
    let list = async || node::list(&address).await.unwrap_err().to_string();
    assert_eq!(list().await, format!("{address}: this node is stopping"));
    assert_eq!(list().await, "there is no node 9");
    assert!(list().await.contains("cannot read the answer"), "nonsense");
    transport.shutdown().await;
    let gone = admin::call(&address, &Request::NodeList).await;
    assert!(matches!(gone, Err(admin::Error::Unreachable(_))), "{gone:?}");
}

#[tokio::test]
async fn somebody_who_is_no_node() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let other = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let answer = admin::call(&address.to_string(), &Request::NodeList).await;
    let Err(admin::Error::Unreachable(why)) = answer else { panic!("{answer:?}") };
    println!("{why}");
    assert!(!why.is_empty() && !why.starts_with("127."), "{why}");
    other.await.unwrap();
}
