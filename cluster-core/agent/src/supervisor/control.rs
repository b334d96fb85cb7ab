//! The supervisor's end of the control socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::protocol::{self, Event, Request};

/// How many connections are kept; one is the agent's and the others are from agents that have just died. The oldest
/// is closed for a new one.
const CLIENTS_MAX: usize = 4;

/// The listening socket and who is connected to it.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    clients: Vec<Client>,
    /// Whether anybody was ever connected.
    was_used: bool,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Control {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new(), was_used: false })
    }

    /// What to poll for reading.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients)
    }

    /// Lets in who is waiting, and tells them how things are.
    pub(super) fn accept(&mut self, state: Option<&Event>) {
        while let Ok((stream, _)) = self.listener.accept() {
            let mut client = Client { stream, buffer: Vec::new() };
            let welcome = client.stream.set_nonblocking(true);
            if welcome.and_then(|()| state.map_or(Ok(()), |event| client.tell(event))).is_err() {
                continue;
            }
            if self.clients.len() >= CLIENTS_MAX {
                self.clients.remove(0);
            }
            self.clients.push(client);
            self.was_used = true;
        }
    }

    /// Whether anybody is connected.
    pub(super) fn is_connected(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Whether those who were connected have all gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.was_used && self.clients.is_empty()
    }

    /// Tells everyone.
    pub(super) fn tell(&mut self, event: &Event) {
        self.clients.retain_mut(|client| client.tell(event).is_ok());
    }

    /// What has been asked for since the last call.
    pub(super) fn requests(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        self.clients.retain_mut(|client| client.read(&mut requests));
        requests
    }
}

impl Client {
    /// The few short messages of a task's life fit into a socket's buffer, so one that does not is from a client that
    /// has stopped reading.
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        self.stream.write_all(&protocol::encode(event))
    }

    /// Reads what is there. Says whether the connection is still good.
    fn read(&mut self, requests: &mut Vec<Request>) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(bytes) => self.buffer.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            match protocol::decode(&mut self.buffer) {
                Ok(messages) => requests.extend(messages),
                Err(_) => return false,
            }
        }
    }
}
