//! Reserved ports. A program of its own: a process that another test is just starting holds copies of this one's listening
//! sockets until it has become its own program, and so takes a port for an instant.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;

use isochrone_cli::local::{ReservedPort, reserve_ports};
use tokio::net::TcpSocket;

#[tokio::test]
async fn a_reserved_port_is_for_its_server_only() {
    let ports = reserve_ports(9).unwrap();
    for reserved in &ports {
        // Somebody who looks for a free port.
        let other = TcpSocket::new_v4().unwrap();
        other.set_reuseaddr(false).unwrap();
        assert_eq!(other.bind(reserved.address()).unwrap_err().kind(), ErrorKind::AddrInUse);
        // What a node does, twice.
        for _ in 0..2 {
            TcpListener::bind(reserved.address()).unwrap();
        }
    }
    let numbers: BTreeSet<_> = ports.iter().map(ReservedPort::port).collect();
    assert_eq!(numbers.len(), 9);
}
