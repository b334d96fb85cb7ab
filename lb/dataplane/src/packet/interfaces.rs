//! What the kernel says of an interface, by netlink (linux/rtnetlink.h).

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;

/// Octets of a message's header, and of what follows it in requests and answers about interfaces.
const HEADER: usize = 16;
const INFORMATION: usize = 16;

const IFLA_LINKINFO: u16 = 18;

/// Kinds of hardware (linux/if_arp.h).
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

/// An interface is described in fewer octets.
const BUFFER: usize = 64 << 10;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) link: Link,
    /// Whether it is one of the kernel's own making: a bridge, a tunnel, one end of a pair.
    pub(super) is_virtual: bool,
}

/// What stands before the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    Loopback,
    Nothing,
}

/// The number of the interface with a name, 0 if there is none.
pub(super) fn index(name: &str) -> io::Result<u32> {
    match name_to_index(netlink()?, name) {
        Err(Errno::NODEV) => Ok(0),
        found => Ok(found?),
    }
}

/// Without a protocol it is that of interfaces and routes.
fn netlink() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Looks at an interface.
pub(super) fn find(name: &str) -> io::Result<Interface> {
    let socket = netlink()?;
    let index = name_to_index(&socket, name)?;
    let mut message = [0; HEADER + INFORMATION];
    // The length is a constant that fits.
    message[..4].copy_from_slice(&((HEADER + INFORMATION) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    parse(index, buffer.get(..length).unwrap_or_default())
}

fn parse(index: u32, answer: &[u8]) -> io::Result<Interface> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut");
    let kind = word16(answer, 4).ok_or_else(cut)?;
    let body = answer.get(HEADER..).ok_or_else(cut)?;
    if kind == NLMSG_ERROR {
        let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    let link = match word16(body, 2).ok_or_else(cut)? {
        ARPHRD_ETHER => Link::Ethernet,
        ARPHRD_LOOPBACK => Link::Loopback,
        _ => Link::Nothing,
    };
    let attributes = body.get(INFORMATION..).ok_or_else(cut)?;
    Ok(Interface { index, link, is_virtual: has_attribute(attributes, IFLA_LINKINFO) })
}

/// Whether an attribute is among others.
fn has_attribute(mut attributes: &[u8], wanted: u16) -> bool {
    // The upper bits of a type are flags.
    const TYPE: u16 = 0x3fff;
    while let (Some(length), Some(kind)) = (word16(attributes, 0), word16(attributes, 2)) {
        if kind & TYPE == wanted {
            return true;
        }
        let next = usize::from(length).max(4).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    false
}

fn word16(octets: &[u8], at: usize) -> Option<u16> {
    let octets = octets.get(at..at + 2)?;
    Some(u16::from_ne_bytes([octets[0], octets[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_others_are_not() {
        let found = find("lo").expect("every namespace has it");
        assert_eq!(found, Interface { index: 1, link: Link::Loopback, is_virtual: false });
        assert!(find("none-such").is_err());
        assert_eq!(index("lo").expect("an answer"), 1);
        assert_eq!(index("none-such").expect("an answer"), 0);
    }

    #[test]
    fn answers_that_are_cut_are_errors() {
        let mut answer = [0; HEADER + INFORMATION + 8];
        answer[HEADER + 2..HEADER + 4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        answer[HEADER + INFORMATION..][..4].copy_from_slice(&[8, 0, 18, 0]);
        let found = parse(7, &answer).expect("whole");
        assert_eq!(found, Interface { index: 7, link: Link::Ethernet, is_virtual: true });
        for length in 0..HEADER + INFORMATION {
            assert!(parse(7, &answer[..length]).is_err(), "{length}");
        }
    }
}
