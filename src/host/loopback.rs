//! An address on the loopback interface, so that clients of this host find the name server where DC/OS had it.
//!
//! The kernel is told by one rtnetlink message (rtnetlink(7)), whose form is fixed; no more of that protocol is needed.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use thiserror::Error;

/// The index that the kernel gives to the loopback interface in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Of an answer: its header of 16 bytes, then the error code.
const ERROR_CODE: std::ops::Range<usize> = 16..20;

/// In the daemon's directory, the address that it has put there.
const NOTE: &str = "loopback-address";

/// An address on loopback. Taken away when dropped, if it was not there before.
#[derive(Debug)]
pub struct LoopbackAddress {
    address: IpAddr,
    /// The note that says that the address is ours; none if it was there before.
    note: Option<PathBuf>,
}

/// The address cannot be put on loopback.
#[derive(Debug, Error)]
pub enum AddressError {
    /// The kernel refuses.
    #[error("cannot put {address} on the loopback interface (needs CAP_NET_ADMIN)")]
    Add {
        /// The address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// It cannot be noted that the address is ours. It is not there.
    #[error("cannot note in {} that {address} was put on the loopback interface", note.display())]
    Note {
        /// The address.
        address: IpAddr,
        /// The note.
        note: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LoopbackAddress {
    /// Puts an address on loopback. One that is there already stays when this is dropped, unless a run that was killed
    /// has put it there, as the note in `dir` says.
    ///
    /// # Errors
    /// When the kernel refuses, or nothing can be noted. The address is not there then.
    pub fn add(address: IpAddr, dir: &Path) -> Result<Self, AddressError> {
        let note = dir.join(NOTE);
        let text = address.to_string();
        let was_ours = fs::read_to_string(&note).is_ok_and(|noted| noted == text);
        // First the note: whatever happens then, what is there is known to be ours.
        if !was_ours {
            let failed = |source| AddressError::Note { address, note: note.clone(), source };
            fs::write(&note, &text).map_err(failed)?;
        }
        match change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address) {
            Ok(()) => {
                tracing::info!(%address, "Put the address on the loopback interface");
                Ok(Self { address, note: Some(note) })
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && was_ours => {
                Ok(Self { address, note: Some(note) })
            }
            Err(error) => {
                let _ = fs::remove_file(&note);
                if error.kind() == io::ErrorKind::AlreadyExists {
                    tracing::info!(%address, "The address is on the loopback interface already");
                    return Ok(Self { address, note: None });
                }
                Err(AddressError::Add { address, source: error })
            }
        }
    }
}

impl Drop for LoopbackAddress {
    fn drop(&mut self) {
        let Some(note) = &self.note else {
            return;
        };
        let address = self.address;
        match change(RTM_DELADDR, 0, address) {
            Ok(()) => tracing::info!(%address, "Took the address off the loopback interface"),
            Err(error) => {
                tracing::warn!(%error, %address, "Cannot take the address off the loopback interface")
            }
        }
        if let Err(error) = fs::remove_file(note) {
            tracing::warn!(%error, note = %note.display(), "Cannot remove the note of the address");
        }
    }
}

fn change(kind: u16, flags: u16, address: IpAddr) -> io::Result<()> {
    let kernel = SocketAddrNetlink::new(0, 0);
    // No protocol is the first one of the family, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &message(kind, flags, address), SendFlags::empty(), &kernel)?;
    // The kernel has answered by the time that the message is sent.
    let mut answer = [0; 512];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    result(&answer[..length])
}

/// A header, the address' description (`ifaddrmsg`), the address as two attributes.
fn message(kind: u16, flags: u16, address: IpAddr) -> Vec<u8> {
    let (family, bits, bytes) = match address {
        IpAddr::V4(address) => (AF_INET, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, 128, address.octets().to_vec()),
    };
    let mut body = vec![family, bits, 0, 0];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        let length = u16::try_from(4 + bytes.len()).expect("BUG: an address is short");
        body.extend(length.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&bytes);
    }
    let length = u32::try_from(16 + body.len()).expect("BUG: the message is short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and sender: this socket has one request, and the kernel knows whose it is.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn result(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let code: Option<[u8; 4]> = answer.get(ERROR_CODE).and_then(|bytes| bytes.try_into().ok());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_the_message() {
        for address in ["127.254.253.252", "fd01:d::fffe"] {
            let address = address.parse().expect("address");
            let error = change(RTM_DELADDR, 0, address).expect_err("it is not there");
            // The first for who has the rights.
            let expected = [io::ErrorKind::AddrNotAvailable, io::ErrorKind::PermissionDenied];
            assert!(expected.contains(&error.kind()), "{error}");
        }
    }
}
