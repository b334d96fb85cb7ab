//! Asks a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A query with EDNS that wants recursion.
pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand_id(name), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect(name), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// An id that differs between names.
fn rand_id(name: &str) -> u16 {
    name.bytes().fold(7, |id: u16, octet| id.wrapping_mul(31).wrapping_add(octet.into()))
}

pub async fn ask(server: SocketAddr, message: &Message) -> Message {
    ask_from("127.0.0.1", server, message).await
}

/// Asks from an address.
pub async fn ask_from(own: &str, server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind((own, 0)).await.expect("a free port");
    socket.connect(server).await.expect("connected");
    socket.send(&message.to_vec().expect("it can be encoded")).await.expect("sent");
    let mut buffer = vec![0; 65_536];
    let length =
        timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer comes").expect("it is received");
    let answer = Message::from_vec(&buffer[..length]).expect("the answer can be read");
    assert_eq!(answer.metadata.id, message.metadata.id);
    answer
}

pub async fn ask_a(server: SocketAddr, name: &str) -> Message {
    ask(server, &query(name, RecordType::A)).await
}

pub async fn ask_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connected");
    send_framed(&mut stream, message).await;
    receive_framed(&mut stream).await
}

pub async fn send_framed(stream: &mut (impl AsyncWrite + Unpin), message: &Message) {
    let octets = message.to_vec().expect("it can be encoded");
    let length = u16::try_from(octets.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), octets.as_slice()].concat()).await.expect("sent");
}

pub async fn receive_framed(stream: &mut (impl AsyncRead + Unpin)) -> Message {
    let read = async {
        let mut octets = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut octets).await.expect("an answer");
        octets
    };
    let octets = timeout(PATIENCE, read).await.expect("an answer comes");
    Message::from_vec(&octets).expect("the answer can be read")
}

pub fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

/// The extended error of an answer.
pub fn extended_error(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(15, data) => Some(u16::from_be_bytes([data[0], data[1]])),
        other => panic!("{other:?}"),
    }
}
