//! The exchange of requests and answers with the kernel.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::message::{ACKNOWLEDGE, DUMP, HEADER_LENGTH, Message, u32_of};

/// Room for one answer of the kernel, which makes them at most this long.
const ANSWER_BYTES: usize = 64 << 10;

/// `NLMSG_ERROR`, with 0 for done, and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 is that of links, addresses and routes.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has something done.
    pub(crate) fn order(&mut self, request: Message) -> io::Result<()> {
        self.exchange(request, ACKNOWLEDGE).map(drop)
    }

    /// Asks about one thing. The answers are without headers.
    pub(crate) fn ask(&mut self, request: Message) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(request, ACKNOWLEDGE)
    }

    /// Asks for everything of a kind.
    pub(crate) fn dump(&mut self, request: Message) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(request, DUMP)
    }

    fn exchange(&mut self, request: Message, flags: u16) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request.finish(flags, self.sequence);
        rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &request))?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut buffer[..]))?;
            if self.take(&buffer[..length], &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of one answer. Says whether it was the last one.
    fn take(&self, mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
        while let Some(header) = bytes.get(..HEADER_LENGTH) {
            let length = u32_of(&header[0..4]).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
            let Some(body) = bytes.get(HEADER_LENGTH..length) else { break };
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            if u32_of(&header[8..12]) == Some(self.sequence) {
                match kind {
                    DONE => return Ok(true),
                    ERROR => return result(body).map(|()| true),
                    _ => answers.push(body.to_vec()),
                }
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(false)
    }
}

/// An error is a negative number, and 0 is none.
fn result(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(u32_of).map_or(0, |code| code as i32);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}
