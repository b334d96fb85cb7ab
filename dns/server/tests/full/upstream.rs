//! An upstream server that does as it is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpListener, UdpSocket};

use crate::client::{receive_framed, send_framed};

/// How an upstream server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It answers: one address, with this time to live.
    Answer(u32),
    /// It answers with so many addresses, over UDP cut.
    Many(u16),
    /// It answers after a while.
    Late(Duration),
    /// It does not answer.
    Silent,
    /// It answers with another id.
    WrongId,
    /// It answers another question.
    WrongQuestion,
    /// It answers with this code, and the zone's SOA.
    Code(ResponseCode),
}

/// A running upstream server.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    number: u8,
    behaviour: Mutex<Behaviour>,
    asked: AtomicUsize,
    asked_tcp: AtomicUsize,
}

impl Upstream {
    /// Starts one. Its addresses are `192.0.2.<number>`.
    pub async fn start(number: u8, behaviour: Behaviour) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("an address");
        let state = Arc::new(State {
            number,
            behaviour: Mutex::new(behaviour),
            asked: AtomicUsize::new(0),
            asked_tcp: AtomicUsize::new(0),
        });
        tokio::spawn(serve_udp(Arc::new(udp), state.clone()));
        tokio::spawn(serve_tcp(tcp, state.clone()));
        Self { address, state }
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().expect("not poisoned") = behaviour;
    }

    /// How many questions came over UDP.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// How many came over TCP.
    pub fn asked_tcp(&self) -> usize {
        self.state.asked_tcp.load(Ordering::SeqCst)
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut buffer = vec![0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        state.asked.fetch_add(1, Ordering::SeqCst);
        let request = Message::from_vec(&buffer[..length]).expect("a query");
        let behaviour = *state.behaviour.lock().expect("not poisoned");
        let answer = answer(&request, behaviour, state.number, false);
        let socket = socket.clone();
        tokio::spawn(async move {
            if let Behaviour::Late(delay) = behaviour {
                tokio::time::sleep(delay).await;
            }
            if let Some(answer) = answer {
                socket.send_to(&answer.to_vec().expect("encoded"), client).await.expect("sent");
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<State>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let request = receive_framed(&mut stream).await;
        state.asked_tcp.fetch_add(1, Ordering::SeqCst);
        let behaviour = *state.behaviour.lock().expect("not poisoned");
        if let Some(answer) = answer(&request, behaviour, state.number, true) {
            send_framed(&mut stream, &answer).await;
        }
    }
}

fn answer(request: &Message, behaviour: Behaviour, number: u8, is_tcp: bool) -> Option<Message> {
    let query = request.queries[0].clone();
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.recursion_available = true;
    let record = |third: u8, fourth: u8, ttl: u32| {
        Record::from_rdata(query.name.clone(), ttl, RData::A(A::new(192, 0, third, fourth)))
    };
    match behaviour {
        Behaviour::Silent => return None,
        Behaviour::Answer(ttl) => answer.answers.push(record(2, number, ttl)),
        Behaviour::Late(_) => answer.answers.push(record(2, number, 60)),
        Behaviour::Many(_) if !is_tcp => answer.metadata.truncation = true,
        Behaviour::Many(count) => {
            let records = (0..count).map(|at| record((at >> 8) as u8, (at & 0xff) as u8, 60));
            answer.answers.extend(records);
        }
        Behaviour::WrongId => {
            answer.metadata.id = request.metadata.id.wrapping_add(1);
            answer.answers.push(record(2, number, 60));
        }
        Behaviour::WrongQuestion => {
            answer.answers.push(record(2, number, 60));
            let other = Name::from_ascii("other.example.").expect("a name");
            answer.add_query(Query::query(other, RecordType::A));
            return Some(answer);
        }
        Behaviour::Code(code) => {
            answer.metadata.response_code = code;
            let name = |text: &str| Name::from_ascii(text).expect(text);
            let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, 60);
            answer.authorities.push(Record::from_rdata(name("example."), 60, RData::SOA(soa)));
        }
    }
    answer.add_query(query);
    Some(answer)
}

/// The address that a server of this number answers with.
pub fn address_of(number: u8) -> Vec<Ipv4Addr> {
    vec![Ipv4Addr::new(192, 0, 2, number)]
}
