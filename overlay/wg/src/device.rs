//! Where packets of the kernel are read and written: packet sockets at the back of a pair of interfaces (`man 7 packet`).

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesonet_netlink::{Link, Netlink, NetlinkError};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use thiserror::Error;

use crate::interfaces::{ETHERNET, Interfaces, PIECE_MAX};
use crate::join::PIECES_MAX;
use crate::settings::Offloads;
use crate::socket::set_number;
use crate::vnet::{VNET_LENGTH, VnetHeader};

/// Octets of the longest packet with its headers.
pub(crate) const PACKET_ROOM: usize = PIECE_MAX as usize + 192;

/// Most queues that a device has.
pub const QUEUES_MAX: usize = 256;

/// Octets of packets, with what the kernel needs to keep them, that may wait in a queue: about 10 ms of 6 Gb/s. The kernel
/// doubles it.
const QUEUE_LENGTH: libc::c_int = 8 << 20;

/// Kinds of what follows a header of Ethernet.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Why there is no device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Its name does not fit.
    #[error("the device name '{name}' is not 1 to 12 letters, digits, '-', '_' or '.'")]
    Name {
        /// What was given.
        name: String,
    },
    /// There is an interface of its name that no process of this program made, or that one has.
    #[error("there is an interface '{name}' already, of somebody else")]
    Foreign {
        /// Which one.
        name: String,
    },
    /// A process has the tunnel of this name in this network namespace.
    #[error("{holder} has the tunnel '{name}' of this network namespace: end it first")]
    InUse {
        /// Which one.
        name: String,
        /// Who.
        holder: String,
    },
    /// It cannot be told to others that this process has the tunnel.
    #[error("the tunnel of this network namespace cannot be claimed")]
    Claim {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refuses the pair of interfaces, or a property of one.
    #[error("the interfaces of the tunnel cannot be prepared; that needs CAP_NET_ADMIN")]
    Interfaces(#[from] NetlinkError),
    /// What the interface leaves to the kernel could not be set.
    #[error("the offloads of the interface '{name}' cannot be set")]
    Offloads {
        /// Of which interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Who has it cannot be told.
    #[error("the kernel does not say who reads packets of the tunnel's interface")]
    Users {
        /// What it said.
        source: io::Error,
    },
    /// Packets cannot be read and written.
    #[error("packets of the interface '{name}' cannot be read; that needs CAP_NET_RAW")]
    Socket {
        /// Of which interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The device: one queue for each worker.
#[derive(Debug)]
pub(crate) struct Device {
    queues: Vec<OwnedFd>,
    interfaces: Interfaces,
    /// The namespace of the interfaces, wherever the caller's thread is.
    kernel: Mutex<Netlink>,
    /// The header of Ethernet for packets to the kernel, but for its last part.
    addresses: [u8; 12],
    has_failed: AtomicBool,
}

impl Device {
    /// Makes the device, or takes over the one that an earlier process left. It stays when this process ends, so that
    /// its routes do.
    pub(crate) fn open(name: &str, queues: usize, mtu: u16, wanted: Offloads) -> Result<Self, DeviceError> {
        let mut kernel = Netlink::open()?;
        let interfaces = Interfaces::make(&mut kernel, name, mtu, wanted)?;
        let back = &interfaces.back;
        let failed = |source| DeviceError::Socket { name: back.name.clone(), source };
        let queues = open_queues(back.index, queues.clamp(1, QUEUES_MAX)).map_err(failed)?;
        let mut addresses = [0; 12];
        let ends = [&interfaces.front, back].map(|end| end.hardware_address.unwrap_or_default());
        addresses.copy_from_slice(&ends.concat());
        let has_failed = AtomicBool::new(false);
        Ok(Self { queues, interfaces, kernel: Mutex::new(kernel), addresses, has_failed })
    }

    /// What the kernel really leaves to this end, but for what is outside of the tunnel.
    pub(crate) fn offloads(&self) -> Offloads {
        self.interfaces.offloads
    }

    /// Removes it.
    pub(crate) fn remove(&self) -> Result<(), NetlinkError> {
        self.kernel().remove_link(&self.interfaces.front.name)
    }

    /// Finds out why a queue has an error: the device is gone, or somebody switched its back off, which is switched on
    /// again. Whether it is gone.
    pub(crate) fn is_gone(&self, queue: usize) -> bool {
        // That reads the error, so that the next one is noticed.
        let _ = rustix::net::sockopt::socket_error(self.queue(queue));
        let back = &self.interfaces.back;
        let mut kernel = self.kernel();
        if !is_there(&mut kernel, back) {
            return true;
        }
        tracing::warn!(interface = back.name, "Somebody switched off an interface of the tunnel");
        match kernel.set_up(back) {
            Ok(()) => false,
            // It may have been removed just now: what is removed is switched off before.
            Err(error) => {
                tracing::warn!(%error, "An interface of the tunnel cannot be switched on");
                !is_there(&mut kernel, back)
            }
        }
    }

    /// Whether reading found that the back is off, which then no one waits for any more.
    pub(crate) fn take_failure(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed) && self.has_failed.swap(false, Ordering::Relaxed)
    }

    fn kernel(&self) -> MutexGuard<'_, Netlink> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn queue(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue % self.queues.len()].as_fd()
    }

    /// Reads a packet, with the header of its offloads, without waiting.
    pub(crate) fn read<'a>(&self, queue: usize, octets: &'a mut [u8]) -> io::Result<&'a mut [u8]> {
        let length = rustix::io::read(self.queue(queue), &mut *octets).inspect_err(|error| {
            if *error == rustix::io::Errno::NETDOWN {
                self.has_failed.store(true, Ordering::Relaxed);
            }
        })?;
        Ok(without_link_header(&mut octets[..length]))
    }

    /// Gives the kernel a packet that is in pieces, at most [`PIECES_MAX`].
    pub(crate) fn write<'a>(
        &self,
        queue: usize,
        header: VnetHeader,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut pieces = pieces.peekable();
        let is_ipv6 = pieces.peek().and_then(|piece| piece.first()).is_some_and(|octet| octet >> 4 == 6);
        let start = self.start_of(header, is_ipv6);
        let mut slices = [IoSlice::new(&[]); PIECES_MAX + 1];
        slices[0] = IoSlice::new(&start);
        let mut count = 1;
        for (slice, piece) in slices[1..].iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        rustix::io::writev(self.queue(queue), &slices[..count]).map(drop).map_err(Into::into)
    }

    /// All that comes before a packet that is written.
    fn start_of(&self, header: VnetHeader, is_ipv6: bool) -> [u8; VNET_LENGTH + ETHERNET] {
        let mut start = [0; VNET_LENGTH + ETHERNET];
        start[..VNET_LENGTH].copy_from_slice(&header.moved(ETHERNET as u16).write());
        start[VNET_LENGTH..][..12].copy_from_slice(&self.addresses);
        start[VNET_LENGTH + 12..].copy_from_slice(if is_ipv6 { &IPV6 } else { &IPV4 });
        start
    }

    /// Packets that the kernel has dropped, since this was asked last, because a queue was full.
    pub(crate) fn take_overflow(&self) -> u64 {
        self.queues.iter().filter_map(|queue| overflow_of(queue).ok()).map(u64::from).sum()
    }
}

const _: () = assert!(PACKET_ROOM >= VNET_LENGTH + ETHERNET + PIECE_MAX as usize);

/// Whether there is an interface still. When in doubt, there is.
fn is_there(kernel: &mut Netlink, interface: &Link) -> bool {
    match kernel.link(&interface.name) {
        Ok(found) => found.is_some_and(|found| found.index == interface.index),
        Err(error) => {
            tracing::warn!(%error, "An interface of the tunnel cannot be looked at");
            true
        }
    }
}

/// Moves the header of a packet's offloads over that of the link.
fn without_link_header(octets: &mut [u8]) -> &mut [u8] {
    if octets.len() < VNET_LENGTH + ETHERNET {
        return &mut [];
    }
    let header = octets[..VNET_LENGTH].try_into().unwrap_or_default();
    let rest = &mut octets[ETHERNET..];
    rest[..VNET_LENGTH].copy_from_slice(&VnetHeader::moved_back(header, ETHERNET as u16));
    rest
}

/// Sockets at an interface. Packets of a flow come by the same one.
fn open_queues(interface: u32, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut queues: Vec<OwnedFd> = Vec::new();
    for _ in 0..count {
        let queue = open_queue(interface)?;
        if count > 1 {
            let group = match queues.first() {
                // Its number is in the lower half, and how packets are shared in the upper one.
                Some(first) => number_of(first, libc::PACKET_FANOUT)?,
                None => ((libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID) as libc::c_int) << 16,
            };
            set_number(queue.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, group)?;
        }
        queues.push(queue);
    }
    Ok(queues)
}

fn open_queue(interface: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let queue = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    set_number(queue.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    // Nobody shapes at this end what is on its way to the other one.
    set_number(queue.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    set_number(queue.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, QUEUE_LENGTH)?;
    set_number(queue.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, QUEUE_LENGTH)?;
    bind(&queue, interface)?;
    Ok(queue)
}

/// From now on, packets of the interface come.
fn bind(queue: &OwnedFd, interface: u32) -> io::Result<()> {
    // SAFETY: an address is numbers and octets, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface as libc::c_int;
    // SAFETY: the address lives during the call, and is given with its length.
    let done = unsafe {
        libc::bind(
            queue.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn number_of(queue: &OwnedFd, option: libc::c_int) -> io::Result<libc::c_int> {
    get(queue, option, 0)
}

/// How many packets a queue had no room for. Asking sets that to zero.
fn overflow_of(queue: &OwnedFd) -> io::Result<u32> {
    // SAFETY: these are numbers, for which zero is a value.
    let none: libc::tpacket_stats = unsafe { mem::zeroed() };
    get(queue, libc::PACKET_STATISTICS, none).map(|counted| counted.tp_drops)
}

/// An option that is a number, or a structure of numbers.
fn get<T: Copy>(queue: &OwnedFd, option: libc::c_int, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length live during the call, and no more is written than the length says.
    let done = unsafe {
        libc::getsockopt(
            queue.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vnet::Gso;

    fn read(header: VnetHeader, packet: &[u8]) -> Vec<u8> {
        [&header.moved(ETHERNET as u16).write()[..], &[0; ETHERNET], packet].concat()
    }

    #[test]
    fn the_header_of_the_link_is_left_out() {
        let header = VnetHeader {
            gso: Gso::Tcp4,
            needs_checksum: true,
            headers: 40,
            segment: 1360,
            checksum_start: 20,
            checksum_offset: 16,
        };
        let mut octets = read(header, b"packet");
        let rest = without_link_header(&mut octets);
        assert_eq!(rest, [&header.write()[..], b"packet"].concat());
        for length in 0..VNET_LENGTH + ETHERNET {
            assert!(without_link_header(&mut octets[..length]).is_empty(), "{length}");
        }
    }
}
