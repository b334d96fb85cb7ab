//! The least that a balancer with sockets and epoll does: for each event it receives once and sends once.
//!
//! It knows one server, and serves only clients and servers that take turns with messages that fit into a buffer. It keeps
//! nothing, counts nothing and gives a connection up at the first surprise. So nearly all that it uses is the kernel's,
//! and about as much of what a balancer uses is the kernel's, too. With pauses it waits like the proxy for more events
//! at once, and tries neither how fast they come nor whether that saves anything.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, connect, recv, send,
    socket_with, sockopt,
};
use rustix::thread::set_current_timer_slack;

use crate::Measured;

/// Of the client's or the server's socket of a connection.
const SOCKET_EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// Events taken in one round. It, pauses and congestion control are the proxy's.
const EVENTS_PER_ROUND: usize = 256;

/// How long a pause is.
const PAUSE: Duration = Duration::from_micros(200);

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// How much longer than asked for a pause may be.
const TIMER_SLACK_NS: u64 = 1_000;

/// Congestion control that does not pace.
const UNPACED: &str = "reno";

/// More than a message has.
const BUFFER_BYTES: usize = 4096;

/// What epoll hands back for the listener. Other tokens are twice a connection's place, plus one for the server's side.
const LISTENER: u64 = u64::MAX;

/// The client's socket and the server's.
type Pair = [OwnedFd; 2];

/// Passes on messages between the clients of one port and the server at another, given as `PORT:PORT`, until the process
/// is ended.
pub fn pass_on(ports: &str, pauses: bool) -> Measured<()> {
    let (from, to) = ports.split_once(':').ok_or("not two ports")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, from.parse()?))?;
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, to.parse()?));
    sockopt::set_tcp_congestion(&listener, UNPACED)?;
    set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS))?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut buffer = [0; BUFFER_BYTES];
    let mut connections: Vec<Option<Pair>> = Vec::new();
    let (mut free, mut closed) = (Vec::new(), Vec::new());
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS_PER_ROUND);
    loop {
        events.clear();
        if pauses && epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&NO_TIME))? == 0 {
            thread::sleep(PAUSE);
        }
        if events.is_empty() {
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        }
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                let place = free.pop().unwrap_or_else(|| {
                    connections.push(None);
                    connections.len() - 1
                });
                connections[place] = Some(take_client(&listener, &server, &epoll, place as u64)?);
                continue;
            }
            let place = (token / 2) as usize;
            let Some(pair) = &connections[place] else { continue };
            let (source, sink) = (&pair[(token % 2) as usize], &pair[(1 - token % 2) as usize]);
            if !pass_message(source, sink, &mut buffer) || flags.contains(EventFlags::RDHUP) {
                connections[place] = None;
                closed.push(place);
            }
        }
        // Not sooner, since a connection that is closed may have another event in its round.
        free.append(&mut closed);
    }
}

fn take_client(listener: &TcpListener, server: &SocketAddr, epoll: &OwnedFd, place: u64) -> Measured<Pair> {
    let client = accept_with(listener, SocketFlags::CLOEXEC)?;
    let to_server = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_tcp_congestion(&to_server, UNPACED)?;
    connect(&to_server, server)?;
    let pair = [client, to_server];
    for (side, socket) in (0..).zip(&pair) {
        epoll::add(epoll, socket, EventData::new_u64(2 * place + side), SOCKET_EVENTS)?;
    }
    Ok(pair)
}

/// Returns whether there was one.
fn pass_message(source: impl AsFd, sink: impl AsFd, buffer: &mut [u8]) -> bool {
    let Ok((count @ 1.., _)) = recv(source, &mut *buffer, RecvFlags::DONTWAIT) else { return false };
    send(sink, &buffer[..count], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(count)
}
