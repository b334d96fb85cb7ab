//! What the kernel says of an interface, by netlink (linux/rtnetlink.h and others).

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;

/// Octets of a message's header, and of what follows it in requests and answers about interfaces.
const HEADER: usize = 16;
const INFORMATION: usize = 16;

const IFLA_LINKINFO: u16 = 18;
const IFLA_XDP: u16 = 43;

/// Within that.
const IFLA_XDP_ATTACHED: u16 = 2;
const XDP_ATTACHED_SKB: u8 = 2;

/// Generic netlink (linux/genetlink.h), and what it says of interfaces (linux/netdev.h).
const GENERIC: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

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
    /// Whether XDP is attached to it behind its driver.
    pub(super) has_generic_xdp: bool,
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
    match name_to_index(route_socket()?, name) {
        Err(Errno::NODEV) => Ok(0),
        found => Ok(found?),
    }
}

/// Without a protocol it is that of interfaces and routes.
fn route_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Looks at an interface.
pub(super) fn find(name: &str) -> io::Result<Interface> {
    let socket = route_socket()?;
    let index = name_to_index(&socket, name)?;
    let mut message = [0; HEADER + INFORMATION];
    // The length is a constant that fits.
    message[..4].copy_from_slice(&((HEADER + INFORMATION) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    parse(index, &ask(&socket, &message)?)
}

/// The kernel's answer.
fn ask(socket: &OwnedFd, message: &[u8]) -> io::Result<Vec<u8>> {
    send(socket, message, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Whether the driver of an interface takes packets that XDP hands to it. For some this changes with time: a pair of interfaces
/// does only while the other end looks for packets itself.
pub(super) fn takes_frames(index: u32) -> io::Result<bool> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
    let name = (CTRL_ATTR_FAMILY_NAME, &b"netdev\0"[..]);
    let family = ask_generic(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name, CTRL_ATTR_FAMILY_ID)?;
    let family = word16(&family, 0).ok_or(io::ErrorKind::InvalidData)?;
    let interface = (NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes()[..]);
    let features = ask_generic(&socket, family, NETDEV_CMD_DEV_GET, interface, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = features.first_chunk().copied().map(u64::from_ne_bytes);
    Ok(features.ok_or(io::ErrorKind::InvalidData)? & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// Asks a part of the kernel with one attribute for another one.
fn ask_generic(
    socket: &OwnedFd,
    family: u16,
    command: u8,
    (kind, value): (u16, &[u8]),
    wanted: u16,
) -> io::Result<Vec<u8>> {
    let length = HEADER + GENERIC + 4 + value.len();
    // What is asked is a name or a number.
    let mut message = (length as u32).to_ne_bytes().to_vec();
    message.extend([family.to_ne_bytes(), NLM_F_REQUEST.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend([(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat());
    message.extend(value);
    message.resize(length.next_multiple_of(4), 0);
    let answer = ask(socket, &message)?;
    refusal(&answer)?;
    let attributes = answer.get(HEADER + GENERIC..).unwrap_or_default();
    Ok(attribute(attributes, wanted).ok_or(io::ErrorKind::InvalidData)?.to_vec())
}

/// The error that an answer is.
fn refusal(answer: &[u8]) -> io::Result<()> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut");
    let kind = word16(answer, 4).ok_or_else(cut)?;
    let body = answer.get(HEADER..).ok_or_else(cut)?;
    if kind == NLMSG_ERROR {
        let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    Ok(())
}

fn parse(index: u32, answer: &[u8]) -> io::Result<Interface> {
    refusal(answer)?;
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut");
    let body = answer.get(HEADER..).ok_or_else(cut)?;
    let link = match word16(body, 2).ok_or_else(cut)? {
        ARPHRD_ETHER => Link::Ethernet,
        ARPHRD_LOOPBACK => Link::Loopback,
        _ => Link::Nothing,
    };
    let attributes = body.get(INFORMATION..).ok_or_else(cut)?;
    let xdp = attribute(attributes, IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED));
    let has_generic_xdp = xdp.is_some_and(|kind| kind == [XDP_ATTACHED_SKB]);
    let is_virtual = attribute(attributes, IFLA_LINKINFO).is_some();
    Ok(Interface { index, link, is_virtual, has_generic_xdp })
}

/// One of several attributes.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    // The upper bits of a type are flags.
    const TYPE: u16 = 0x3fff;
    while let (Some(length), Some(kind)) = (word16(attributes, 0), word16(attributes, 2)) {
        let length = usize::from(length).max(4);
        if kind & TYPE == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
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
        let is_virtual = false;
        let expected = Interface { index: 1, link: Link::Loopback, is_virtual, has_generic_xdp: false };
        assert_eq!(found, expected);
        assert!(find("none-such").is_err());
        assert!(!takes_frames(1).expect("an answer"));
        assert!(takes_frames(u32::MAX >> 1).is_err());
        assert_eq!(index("lo").expect("an answer"), 1);
        assert_eq!(index("none-such").expect("an answer"), 0);
    }

    #[test]
    fn answers_that_are_cut_are_errors() {
        let mut answer = [0; HEADER + INFORMATION + 8];
        answer[HEADER + 2..HEADER + 4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        answer[HEADER + INFORMATION..][..4].copy_from_slice(&[8, 0, 18, 0]);
        let found = parse(7, &answer).expect("whole");
        let is_virtual = true;
        let expected = Interface { index: 7, link: Link::Ethernet, is_virtual, has_generic_xdp: false };
        assert_eq!(found, expected);
        for length in 0..HEADER + INFORMATION {
            assert!(parse(7, &answer[..length]).is_err(), "{length}");
        }
    }
}
