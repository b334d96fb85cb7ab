//! DNS as tests speak it: dig, and a quick look at SRV ports for what must be measured.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::program;

/// Runs dig against a server, without waiting long.
#[track_caller]
pub fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let address = format!("@{}", server.ip());
    let port = server.port().to_string();
    let base = [address.as_str(), "-p", &port, "+tries=3", "+time=5"];
    program::run("dig", &[&base, arguments].concat()).success()
}

/// The lines of a short answer, sorted.
#[track_caller]
pub fn short(server: SocketAddr, name: &str, record_type: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        dig(server, &["+short", name, record_type]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The ports in an SRV answer, asked for without starting a program.
pub fn srv_ports(server: SocketAddr, name: &str) -> Vec<u16> {
    let answer = ask(server, name, RecordType::SRV);
    let ports = answer.answers.iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv.port),
        _ => None,
    });
    ports.collect()
}

/// How often a datagram is sent before nobody answers.
const ATTEMPTS: usize = 6;

/// Asks over UDP.
pub fn ask(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(format!("{name}.")).expect("name"), record_type));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let query = query.to_vec().expect("query");
    let mut buffer = [0; 4096];
    let mut ask = || {
        socket.send_to(&query, server).expect("send");
        socket.recv(&mut buffer).ok()
    };
    let length = (0..ATTEMPTS).find_map(|_| ask()).unwrap_or_else(|| panic!("no answer for {name}"));
    Message::from_vec(&buffer[..length]).expect("DNS message")
}
