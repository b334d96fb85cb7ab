//! The exchange of requests and answers with the kernel.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

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
    /// Without protocol it is for links, addresses and routes.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
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

    /// Has things done about nftables, all or none.
    pub(crate) fn order_all(&mut self, requests: Vec<Message>) -> io::Result<()> {
        let [begin, end] = Message::batch_limits();
        let mut bytes = begin.finish(0, self.sequence);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(request.finish(ACKNOWLEDGE, self.sequence));
        }
        bytes.extend(end.finish(0, self.sequence));
        rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &bytes))?;
        // Every request is answered in its turn, and the first error is that of the whole.
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut buffer[..]))?;
            if self.is_last_granted(&buffer[..length])? {
                return Ok(());
            }
        }
    }

    /// Whether the last request is among those that were granted.
    fn is_last_granted(&self, mut bytes: &[u8]) -> io::Result<bool> {
        while let Some((header, length)) = header_of(bytes) {
            if kind_of(header) == ERROR {
                result(&bytes[HEADER_LENGTH..length])?;
                if u32_of(&header[8..12]) == Some(self.sequence) {
                    return Ok(true);
                }
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(false)
    }

    pub(crate) fn exchange(&mut self, request: Message, flags: u16) -> io::Result<Vec<Vec<u8>>> {
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
        while let Some((header, length)) = header_of(bytes) {
            let body = &bytes[HEADER_LENGTH..length];
            let kind = kind_of(header);
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

/// The header of the first message, and how long that is.
fn header_of(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let header = bytes.get(..HEADER_LENGTH)?;
    let length = u32_of(&header[0..4]).and_then(|length| usize::try_from(length).ok())?;
    (HEADER_LENGTH..=bytes.len()).contains(&length).then_some((header, length))
}

fn kind_of(header: &[u8]) -> u16 {
    u16::from_ne_bytes([header[4], header[5]])
}

/// An error is a negative number, and 0 is none.
fn result(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(u32_of).map_or(0, |code| code as i32);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}
