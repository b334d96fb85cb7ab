//! Ports of the node that lead to ports of a task.
//!
//! A process per task, made by the supervisor before it leaves the host's network, takes connections at the node's
//! address and copies them to the task. It is in userspace on purpose: rules that rewrite packets would stand beside
//! those of VIPs, would not work for the loopback address that a local cluster has, and would have to be cleared up
//! when everything else is gone. A port that is taken is known before the task starts. The price is that the task sees
//! the connection of its node instead of the client's.
//!
//! The supervisor keeps the ports open, too. So when somebody kills that process alone, or it lacks memory, the next
//! one takes what has waited meanwhile, and nobody else can have got the port.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_model::Protocol;
use rustix::net::sockopt;
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use thiserror::Error;

use crate::container_network::ContainerNetwork;
use crate::protocol::ExitCause;

/// The network namespace of this thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// From one process that copies to the next, at least: what keeps ending costs little.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// Connections at a time through one port. Each costs two threads with small stacks; further ones are closed at once.
const CONNECTIONS_MAX: usize = 2048;

/// Clients at a time that send datagrams to one port: addresses with ports, since many clients take a port for each
/// question. Each costs a thread with a small stack and a socket. A further one takes the place of the client used
/// longest ago, who is a new one with its next datagram.
const CLIENTS_MAX: usize = 512;

/// Threads at a time that pass on answers to clients of one port. Those of clients that have lost their places end at
/// once; where they do not get round to it, the datagrams of new clients are lost.
const ANSWERING_MAX: usize = 2 * CLIENTS_MAX;

/// A client whose datagrams are not answered for so long is forgotten.
const CLIENT_IDLE: Duration = Duration::from_secs(60);

/// How long the task may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that has said nothing for so long is asked whether it is still there: one that has vanished would hold its
/// place for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// What a thread needs that copies.
const STACK_BYTES: usize = 128 << 10;

/// After a failure to accept, such as for want of descriptors, only time helps.
const RETRY: Duration = Duration::from_millis(50);

const DATAGRAM_BYTES: usize = 64 << 10;

/// Ports of the node cannot be used.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    #[error("cannot listen on {protocol} port {address} of the node")]
    Listen { protocol: Protocol, address: SocketAddr, source: io::Error },
    #[error("cannot start to forward ports")]
    Start { source: io::Error },
}

#[derive(Debug)]
enum Entrance {
    Tcp(TcpListener, SocketAddr),
    Udp(UdpSocket, SocketAddr),
}

/// Ports of the node, and the child process that copies what comes, which ends with this process.
#[derive(Debug)]
pub(super) struct Forwarding {
    entrances: Vec<Entrance>,
    /// The node's network.
    host: File,
    /// The process, while it lives.
    child: Option<Pid>,
    /// When it was made.
    made: Instant,
    /// How the one before has ended, until that is told.
    ended: Option<ExitCause>,
}

/// Listens on the ports of the node, if there are any for the task, and has what comes copied.
pub(super) fn start(network: &ContainerNetwork) -> Result<Option<Forwarding>, ForwardError> {
    let entrances = listen(network)?;
    if entrances.is_empty() {
        return Ok(None);
    }
    let failed = |source| ForwardError::Start { source };
    let host = File::open(OWN_NAMESPACE).map_err(failed)?;
    let mut forwarding = Forwarding { entrances, host, child: None, made: Instant::now(), ended: None };
    forwarding.make_process().map_err(failed)?;
    Ok(Some(forwarding))
}

impl Forwarding {
    /// Takes note of children that have ended, and makes another process in the place of one that is among them.
    pub(super) fn renew(&mut self, ended: &[(Pid, ExitCause)], now: Instant) {
        if let Some((_, cause)) = ended.iter().find(|(pid, _)| Some(*pid) == self.child) {
            self.child = None;
            self.ended = Some(cause.clone());
        }
        if self.next_wake().is_some_and(|wake| wake <= now) {
            self.made = now;
            // What the system lacks it may have the next time.
            let _ = self.make_process();
        }
    }

    /// When [`Forwarding::renew`] is to be called, whatever happens.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.child.is_none().then(|| self.made + RENEWAL_INTERVAL)
    }

    /// How a process has ended, once.
    pub(super) fn take_ended(&mut self) -> Option<ExitCause> {
        self.ended.take()
    }

    fn make_process(&mut self) -> io::Result<()> {
        // SAFETY: this process has one thread, so the child has all of it, and no lock is held by another one.
        match unsafe { libc::fork() } {
            0 => self.serve(),
            -1 => Err(io::Error::last_os_error()),
            child => {
                self.child = Pid::from_raw(child);
                Ok(())
            }
        }
    }

    /// The life of the child process.
    fn serve(&mut self) -> ! {
        // The supervisor cannot have ended without this process: the signal is set before anything can take long.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // Unless it is the first one, it begins in the task's network.
        if move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
            process::exit(1);
        }
        for entrance in mem::take(&mut self.entrances) {
            let run = move || match entrance {
                Entrance::Tcp(listener, target) => forward_connections(&listener, target),
                Entrance::Udp(socket, target) => forward_datagrams(&Arc::new(socket), target),
            };
            // Without the thread, the port does not answer, and the others do.
            let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(run);
        }
        loop {
            thread::park();
        }
    }
}

fn listen(network: &ContainerNetwork) -> Result<Vec<Entrance>, ForwardError> {
    let addresses = network.addresses();
    let Some(target) = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) else {
        return Ok(Vec::new());
    };
    let entrance = |forward: &mesonet_model::PortForward| {
        let address = SocketAddr::new(network.host, forward.host_port);
        let target = SocketAddr::new(*target, forward.container_port);
        let opened = match forward.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(|listener| Entrance::Tcp(listener, target)),
            Protocol::Udp => UdpSocket::bind(address).map(|socket| Entrance::Udp(socket, target)),
        };
        opened.map_err(|source| ForwardError::Listen { protocol: forward.protocol, address, source })
    };
    network.forwards.iter().map(entrance).collect()
}

fn forward_connections(listener: &TcpListener, target: SocketAddr) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(RETRY);
            continue;
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&open));
        // A client that gets no thread is closed.
        let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let _counted = counted;
            // Whichever side breaks, both are closed.
            let _ = forward_connection(&client, target);
        });
    }
}

/// One less when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn forward_connection(client: &TcpStream, target: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    for socket in [client, &server] {
        socket.set_nodelay(true)?;
    }
    sockopt::set_tcp_keepidle(client, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(client, KEEPALIVE_INTERVAL)?;
    sockopt::set_socket_keepalive(client, true)?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    let answers =
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || copy(&server_too, &client_too))?;
    copy(client, &server);
    // A thread that has failed has closed its sides.
    let _ = answers.join();
    Ok(())
}

/// Copies until the end, which is passed on. The standard library does it within the kernel. After a failure both sides
/// are closed, so that the other direction ends, too.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn forward_datagrams(socket: &Arc<UdpSocket>, target: SocketAddr) {
    let clients = Arc::new(Clients::default());
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            thread::sleep(RETRY);
            continue;
        };
        if let Some(client) = clients.get_or_insert(from, socket, target) {
            // Datagrams may be lost, and the answer to one that nobody takes is an error on the next.
            let _ = client.inner.send(&buffer[..length]);
        }
    }
}

/// The clients of one port.
#[derive(Default)]
struct Clients {
    known: Mutex<HashMap<SocketAddr, Arc<Client>>>,
    /// Datagrams in either direction so far: the time by which clients are used.
    datagrams: AtomicU64,
    /// Threads that pass on answers, those of clients included that have lost their places.
    answering: Arc<AtomicUsize>,
}

/// What stands for a client towards the task.
struct Client {
    inner: UdpSocket,
    /// The last datagram from or to it.
    used: AtomicU64,
}

impl Clients {
    /// The client with an address. A new one gets a place, if need be that of the client used longest ago.
    fn get_or_insert(
        self: &Arc<Self>,
        from: SocketAddr,
        outer: &Arc<UdpSocket>,
        target: SocketAddr,
    ) -> Option<Arc<Client>> {
        let mut known = self.known();
        if let Some(client) = known.get(&from) {
            self.note_use(client);
            return Some(Arc::clone(client));
        }
        if known.len() >= CLIENTS_MAX {
            let (oldest, _) = known.iter().min_by_key(|(_, client)| client.used.load(Ordering::Relaxed))?;
            let oldest = *oldest;
            // Its thread passes on the answers that are there, and finds out.
            let _ = rustix::net::shutdown(&known.remove(&oldest)?.inner, rustix::net::Shutdown::Read);
        }
        if self.answering.load(Ordering::Relaxed) >= ANSWERING_MAX {
            return None;
        }
        let client = Arc::new(Client::connect(target).ok()?);
        self.note_use(&client);
        self.answering.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&self.answering));
        let (outer, own, all) = (Arc::clone(outer), Arc::clone(&client), Arc::clone(self));
        let answer = move || {
            let _counted = counted;
            all.answer(from, &own, &outer);
            all.remove(from, &own);
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(answer).ok()?;
        known.insert(from, Arc::clone(&client));
        Some(client)
    }

    /// Passes the task's answers to a client until there are none for a while, or somebody else has its place.
    fn answer(&self, from: SocketAddr, client: &Arc<Client>, outer: &UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            match client.inner.recv(&mut buffer) {
                // Either an empty datagram, or there will be no more.
                Ok(0) if !self.holds_place(from, client) => return,
                Ok(length) => {
                    self.note_use(client);
                    let _ = outer.send_to(&buffer[..length], from);
                }
                // The task does not listen yet, or not any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            }
        }
    }

    fn note_use(&self, client: &Client) {
        client.used.store(self.datagrams.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn holds_place(&self, from: SocketAddr, client: &Arc<Client>) -> bool {
        self.known().get(&from).is_some_and(|known| Arc::ptr_eq(known, client))
    }

    /// Forgets a client, unless it has lost its place and come back as another one.
    fn remove(&self, from: SocketAddr, client: &Arc<Client>) {
        let mut known = self.known();
        if known.get(&from).is_some_and(|known| Arc::ptr_eq(known, client)) {
            known.remove(&from);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Client>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn connect(target: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let inner = UdpSocket::bind((any, 0))?;
        inner.connect(target)?;
        inner.set_read_timeout(Some(CLIENT_IDLE))?;
        Ok(Self { inner, used: AtomicU64::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// The longest that anything takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_client_that_breaks_off_does_not_hold_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let task = TcpListener::bind("127.0.0.1:0").expect("listens");
        let target = task.local_addr().expect("address");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let (accepted, _) = listener.accept().expect("accepts");
        let seen = accepted.try_clone().expect("clones");
        let (ended, end) = mpsc::channel();
        thread::spawn(move || ended.send(forward_connection(&accepted, target).is_ok()));

        // The task neither says anything nor closes its side.
        let _silent = task.accept().expect("accepts");
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("sets");
        drop(client);
        assert_eq!(end.recv_timeout(PATIENCE), Ok(true));
        assert!(sockopt::socket_keepalive(&seen).expect("option"));
        assert_eq!(sockopt::tcp_keepidle(&seen).expect("option"), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&seen).expect("option"), KEEPALIVE_INTERVAL);
    }

    /// Where the task sees a client. Datagrams may be lost, so it asks until there is an answer to a question.
    fn seen_by_task(client: &UdpSocket, port: SocketAddr, question: u64) -> SocketAddr {
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("sets");
        // A place that is only left for want of use would be free then.
        let deadline = Instant::now() + CLIENT_IDLE / 2;
        let mut buffer = [0; 64];
        loop {
            client.send_to(question.to_string().as_bytes(), port).expect("sends");
            let length = client.recv(&mut buffer).unwrap_or(0);
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if let Some(seen) = answer.strip_prefix(&format!("{question} ")) {
                return seen.parse().expect("address");
            }
            assert!(Instant::now() < deadline, "no answer for {client:?}");
        }
    }

    #[test]
    fn a_new_client_takes_the_place_of_the_one_used_longest_ago() {
        let task = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let target = task.local_addr().expect("address");
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = task.recv_from(&mut buffer) {
                let question = String::from_utf8_lossy(&buffer[..length]);
                let _ = task.send_to(format!("{question} {from}").as_bytes(), from);
            }
        });
        let outer = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let port = outer.local_addr().expect("address");
        thread::spawn(move || forward_datagrams(&Arc::new(outer), target));

        let client = |number: usize| {
            let address = [127, 1, (number / 250) as u8, (number % 250 + 1) as u8];
            UdpSocket::bind(SocketAddr::from((address, 0))).expect("binds")
        };
        let (idle, busy) = (client(0), client(1));
        let mut questions = 0..;
        let mut seen = |client: &UdpSocket| seen_by_task(client, port, questions.next().expect("a number"));
        let (idle_before, busy_before) = (seen(&idle), seen(&busy));
        for number in 2..=CLIENTS_MAX {
            seen(&client(number));
            assert_eq!(seen(&busy), busy_before, "it keeps its place, which it uses");
        }
        assert_ne!(seen(&idle), idle_before, "it had lost its place");
        assert_eq!(seen(&busy), busy_before);
    }
}
