//! The network device through which the kernel hands packets over.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use thiserror::Error;

use crate::settings::Offloads;
use crate::vnet::VNET_LENGTH;

const DEVICE_FILE: &str = "/dev/net/tun";

/// Octets of the longest packet with its header.
pub(crate) const PACKET_ROOM: usize = 65_536 + 192;

/// Most queues that the kernel gives a device.
pub const QUEUES_MAX: usize = 256;

/// What the kernel may leave to this end: checksums, and cutting TCP streams.
const STREAM_OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// And cutting datagrams, since Linux 6.2.
const DATAGRAM_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Why there is no device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Its name does not fit.
    #[error("the device name '{name}' is not 1 to 15 letters, digits, '-', '_' or '.'")]
    Name {
        /// What was given.
        name: String,
    },
    /// There is no device file, or it may not be opened.
    #[error("{DEVICE_FILE} cannot be opened; is the module tun there, and is the process privileged?")]
    Open(#[source] io::Error),
    /// The kernel refuses the device: it may not be made, somebody else has it, or it is of another kind.
    #[error("the device '{name}' cannot be made or taken over; that needs CAP_NET_ADMIN")]
    Refused {
        /// What was asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A property could not be set.
    #[error("the {property} of the device '{name}' cannot be set")]
    Property {
        /// Of which device.
        name: String,
        /// What was to be set.
        property: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The device: one queue for each worker.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) queues: Vec<OwnedFd>,
    /// Whether the kernel leaves TCP streams and checksums to this end.
    pub(crate) cuts_streams: bool,
    /// Whether it leaves datagrams that were sent together to this end.
    pub(crate) cuts_datagrams: bool,
}

impl Device {
    /// Makes the device, or takes over the one that an earlier process left. It stays when this process ends, so that
    /// its routes do.
    pub(crate) fn open(name: &str, queues: usize, mtu: u16, wanted: Offloads) -> Result<Self, DeviceError> {
        check_name(name)?;
        let refused = |source| DeviceError::Refused { name: name.to_owned(), source };
        let property =
            |property| move |source| DeviceError::Property { name: name.to_owned(), property, source };
        let mut device =
            Self { queues: Vec::new(), cuts_streams: wanted.streams, cuts_datagrams: wanted.datagrams };
        for _ in 0..queues.clamp(1, QUEUES_MAX) {
            let queue = open_queue(name).map_err(|error| match error {
                QueueError::Open(source) => DeviceError::Open(source),
                QueueError::Attach(source) => refused(source),
            })?;
            device.set_offloads(&queue);
            device.queues.push(queue);
        }
        set(device.queues[0].as_raw_fd(), libc::TUNSETPERSIST, 1).map_err(property("persistence"))?;
        set_mtu(name, mtu).map_err(property("MTU"))?;
        set_up(name).map_err(property("state"))?;
        Ok(device)
    }

    /// Asks for as many offloads as are wanted and there are.
    fn set_offloads(&mut self, queue: &OwnedFd) {
        let raw = queue.as_raw_fd();
        let streams = if self.cuts_streams { STREAM_OFFLOADS } else { 0 };
        if self.cuts_datagrams {
            let all = streams | libc::TUN_F_CSUM | DATAGRAM_OFFLOADS;
            self.cuts_datagrams = set(raw, libc::TUNSETOFFLOAD, all).is_ok();
        }
        if !self.cuts_datagrams {
            self.cuts_streams = set(raw, libc::TUNSETOFFLOAD, streams).is_ok() && self.cuts_streams;
        }
    }

    /// Makes the device end with the process.
    pub(crate) fn forget(&self) -> io::Result<()> {
        set(self.queues[0].as_raw_fd(), libc::TUNSETPERSIST, 0)
    }

    pub(crate) fn queue(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue % self.queues.len()].as_fd()
    }

    /// Reads a packet with its header, without waiting.
    pub(crate) fn read(&self, queue: usize, octets: &mut [u8]) -> io::Result<usize> {
        rustix::io::read(self.queue(queue), octets).map_err(Into::into)
    }

    /// Gives the kernel a packet that is in pieces, the first of which is its header.
    pub(crate) fn write(&self, queue: usize, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(self.queue(queue), pieces).map(drop).map_err(Into::into)
    }
}

const _: () = assert!(PACKET_ROOM >= VNET_LENGTH + 65_535);

enum QueueError {
    Open(io::Error),
    Attach(io::Error),
}

fn check_name(name: &str) -> Result<(), DeviceError> {
    let is_valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet))
        && name != "."
        && name != "..";
    if is_valid { Ok(()) } else { Err(DeviceError::Name { name: name.to_owned() }) }
}

fn open_queue(name: &str) -> Result<OwnedFd, QueueError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE_FILE)
        .map_err(QueueError::Open)?;
    let mut request = request_for(name);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives during the call; the kernel reads its name and flags and writes the name.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(QueueError::Attach(io::Error::last_os_error()));
    }
    Ok(file.into())
}

fn request_for(name: &str) -> libc::ifreq {
    // SAFETY: a request is numbers and octets, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, octet) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *place = octet as libc::c_char;
    }
    request
}

fn set(queue: i32, what: libc::Ioctl, number: libc::c_uint) -> io::Result<()> {
    // SAFETY: these requests take a number, not a pointer.
    let done = unsafe { libc::ioctl(queue, what, libc::c_ulong::from(number)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request_for(name);
    request.ifr_ifru.ifru_mtu = i32::from(mtu);
    ask(&mut request, libc::SIOCSIFMTU)
}

fn set_up(name: &str) -> io::Result<()> {
    let mut request = request_for(name);
    ask(&mut request, libc::SIOCGIFFLAGS)?;
    // SAFETY: the kernel has just written the flags, and every value is valid for them.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ask(&mut request, libc::SIOCSIFFLAGS)
}

/// Asks the kernel something about a device, for which it wants any socket.
fn ask(request: &mut libc::ifreq, what: libc::Ioctl) -> io::Result<()> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the request lives during the call, and is what these requests read and write.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), what, ptr_of(request)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ptr_of(request: &mut libc::ifreq) -> *mut libc::ifreq {
    std::ptr::from_mut(request)
}
