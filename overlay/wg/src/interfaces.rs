//! The pair of interfaces through which the kernel hands packets over.
//!
//! Packets that the kernel routes to the front leave it at the back, where this process reads them, and the other way
//! round. Nobody but this process listens at the back: its address on the wire is not the one that the front sends to, so
//! the kernel takes what it gets there for somebody else's.
//!
//! A TUN device would be one interface rather than two, but gets no pieces of streams longer than 64 KiB. These can
//! have 512 KiB, and what the kernel does for a piece (passing its stack, and with some congestion controls a timer) it
//! does that much less often.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;

use mesonet_netlink::{Link, LinkKind, Netlink, NetlinkError};

use crate::claim::Claim;
use crate::device::DeviceError;
use crate::features::set_offloads;
use crate::settings::Offloads;

/// Octets of the longest piece of a stream over IPv4, with its headers: a quarter of a second-level cache of 1 MiB. More gains
/// nothing.
pub(crate) const PIECE_MAX: u32 = 262_144;

/// Octets of the header of Ethernet.
pub(crate) const ETHERNET: usize = 14;

/// The packet sockets of the calling thread's namespace.
const PACKET_SOCKETS: &str = "/proc/thread-self/net/packet";

/// Added to the name of the front for that of the back.
const BACK: &str = "-io";

/// Octets of the longest name of a front, so that its back can have one.
const NAME_MAX: usize = libc::IFNAMSIZ - 1 - BACK.len();

/// Addresses on the wire, of which nobody else gets to know: locally administered ones.
const FRONT_ADDRESS: [u8; 6] = [0x02, 0x6d, 0x65, 0x73, 0x6f, 0x01];
const BACK_ADDRESS: [u8; 6] = [0x02, 0x6d, 0x65, 0x73, 0x6f, 0x02];

/// Both ends.
#[derive(Debug)]
pub(crate) struct Interfaces {
    pub(crate) front: Link,
    pub(crate) back: Link,
    /// What is really left to the front.
    pub(crate) offloads: Offloads,
    /// Held so that no other process takes them over.
    _claim: Claim,
}

impl Interfaces {
    /// Makes the pair, or takes over the one that an earlier process left. One that runs keeps it.
    pub(crate) fn make(
        kernel: &mut Netlink,
        name: &str,
        mtu: u16,
        wanted: Offloads,
    ) -> Result<Self, DeviceError> {
        check_name(name)?;
        let claim = Claim::take(name)?;
        let [front, back] = take_over_or_make(kernel, name)?;
        let offloads = Offloads { datagrams: wanted.datagrams && tells_of_datagrams(), ..wanted };
        set_offloads(name, offloads)
            .map_err(|source| DeviceError::Offloads { name: name.to_owned(), source })?;
        // What is on first could be heard of by the other one.
        for end in [&back, &front] {
            prepare(kernel, end, mtu)?;
        }
        if let Err(error) = kernel.set_gso_ipv4_max(&front, PIECE_MAX) {
            tracing::debug!(%error, "The kernel hands over streams in pieces of 64 KiB");
        }
        for end in [&back, &front] {
            kernel.set_up(end)?;
        }
        Ok(Self { front, back, offloads, _claim: claim })
    }
}

/// Whether a process has the device of a tunnel of this name, in this namespace, or listens in at it. The kernel says that
/// of every version's processes, and of none that has ended.
///
/// # Errors
/// When the kernel does not answer.
pub fn is_in_use(name: &str) -> Result<bool, DeviceError> {
    let mut kernel = Netlink::open()?;
    if let Some(LinkKind::Tun { is_left }) = kernel.link(name)?.and_then(|front| front.kind) {
        return Ok(!is_left);
    }
    let Some(back) = kernel.link(&format!("{name}{BACK}"))? else { return Ok(false) };
    let sockets = fs::read_to_string(PACKET_SOCKETS).map_err(|source| DeviceError::Users { source })?;
    Ok(has_socket_at(&sockets, back.index))
}

/// Whether the kernel's table of packet sockets has one at an interface.
fn has_socket_at(table: &str, interface: u32) -> bool {
    let place = |line: &str| line.split_whitespace().nth(4)?.parse::<u32>().ok();
    table.lines().any(|line| place(line) == Some(interface))
}

fn take_over_or_make(kernel: &mut Netlink, name: &str) -> Result<[Link; 2], DeviceError> {
    let back = format!("{name}{BACK}");
    if let Some(front) = kernel.link(name)? {
        let foreign = || DeviceError::Foreign { name: name.to_owned() };
        match front.kind {
            Some(LinkKind::Veth { peer: Some(peer) }) => {
                let back = kernel.link(&back)?.filter(|back| {
                    back.index == peer && back.kind == Some(LinkKind::Veth { peer: Some(front.index) })
                });
                return Ok([front, back.ok_or_else(foreign)?]);
            }
            // Earlier versions had a TUN device.
            Some(LinkKind::Tun { is_left: true }) => kernel.remove_link(name)?,
            _ => return Err(foreign()),
        }
    }
    Ok(kernel.make_pair([(name, FRONT_ADDRESS), (&back, BACK_ADDRESS)])?)
}

fn prepare(kernel: &mut Netlink, end: &Link, mtu: u16) -> Result<(), NetlinkError> {
    kernel.set_without_neighbours(end)?;
    kernel.set_mtu(end, mtu.into())?;
    if let Err(error) = kernel.set_without_own_addresses(end) {
        tracing::debug!(%error, "The interface may give itself addresses");
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), DeviceError> {
    let is_valid = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet))
        && name != "."
        && name != "..";
    if is_valid { Ok(()) } else { Err(DeviceError::Name { name: name.to_owned() }) }
}

/// Whether the kernel can tell a process that datagrams are joined: since Linux 6.2.
fn tells_of_datagrams() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| is_since(&release, (6, 2)))
}

/// Whether a release of Linux is a version or a later one.
fn is_since(release: &str, version: (u32, u32)) -> bool {
    let mut numbers =
        release.split(|char: char| !char.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found >= version)
}

/// Asks the kernel something about an interface of this namespace, for which it wants any socket.
pub(crate) fn ask_about(
    name: &str,
    what: libc::Ioctl,
    write: impl FnOnce(&mut libc::ifreq),
) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: a request is numbers, octets and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, octet) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *place = octet as libc::c_char;
    }
    write(&mut request);
    // SAFETY: the request lives during the call, and is what requests about interfaces read and write, as is what it may
    // point to.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_leave_room_for_the_back() {
        for name in ["mesonet-wg", "w", "a.b_c-d", "twelve-chars"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "thirteen-char", "ü"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn packet_sockets_are_found_by_their_interface() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                     ffff8881046c9800 3      3    0003   12    1 0      0      23456\n\
                     ffff8881046c9000 3      2    0806   0     1 0      7      34567\n";
        let found: Vec<u32> = (0..40_000).filter(|index| has_socket_at(table, *index)).collect();
        assert_eq!(found, [0, 12]);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for release in ["6.2", "6.2.0-rc1\n", "6.18.44-fc-v669\n", "10.0.1"] {
            assert!(is_since(release, (6, 2)), "{release}");
        }
        for release in ["6.1.99", "5.19.0", "", "linux", "6"] {
            assert!(!is_since(release, (6, 2)), "{release}");
        }
    }
}
