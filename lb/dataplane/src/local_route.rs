//! Whether packets to an address end on this node, as the kernel routes them (linux/rtnetlink.h). Needs no right.

use std::io;
use std::net::IpAddr;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// The family's protocol of number zero.
const NETLINK_ROUTE: Option<Protocol> = None;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;

/// The attribute of a request that holds the destination.
const RTA_DST: u16 = 1;

/// The kind of route that leads to the node itself.
const RTN_LOCAL: u8 = 2;

/// Octets of a message's header, of the head of a route, and of the head of an attribute.
const HEADER: usize = 16;
const ROUTE: usize = 12;
const ATTRIBUTE: usize = 4;

/// Where the head of a route has its kind.
const KIND: usize = 7;

/// More than the kernel says of one route.
const ANSWER: usize = 4096;

/// Whether a packet to the address that is sent here is delivered here.
pub(crate) fn leads_here(address: IpAddr) -> io::Result<bool> {
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, NETLINK_ROUTE)?;
    send(&netlink, &request(address), SendFlags::empty())?;
    let mut answer = [0; ANSWER];
    let (length, _) = recv(&netlink, &mut answer[..], RecvFlags::empty())?;
    Ok(is_local(&answer[..length]))
}

/// Asks for the route to an address.
fn request(address: IpAddr) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(address) => (AddressFamily::INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AddressFamily::INET6, address.octets().to_vec()),
    };
    let length = HEADER + ROUTE + ATTRIBUTE + octets.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(RTM_GETROUTE.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Number and sender, which an answer repeats.
    message.extend([0; 8]);
    let mut route = [0; ROUTE];
    route[0] = family.as_raw() as u8;
    route[1] = octets.len() as u8 * 8;
    message.extend(route);
    message.extend(((ATTRIBUTE + octets.len()) as u16).to_ne_bytes());
    message.extend(RTA_DST.to_ne_bytes());
    message.extend(octets);
    message
}

/// Whether an answer is a route to the node itself. An address without a route is answered with an error.
fn is_local(answer: &[u8]) -> bool {
    answer.get(4..6) == Some(&RTM_NEWROUTE.to_ne_bytes()) && answer.get(HEADER + KIND) == Some(&RTN_LOCAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_own_addresses_from_others() {
        for (address, is_here) in [("127.0.0.1", true), ("127.11.3.4", true), ("192.0.2.1", false)] {
            let address: IpAddr = address.parse().expect("address");
            // Where there is no route at all, that is an answer, too.
            assert_eq!(leads_here(address).expect("answered"), is_here, "{address}");
        }
    }

    #[test]
    fn half_an_answer_is_no_route() {
        let mut answer = vec![0; HEADER + ROUTE];
        answer[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
        answer[HEADER + KIND] = RTN_LOCAL;
        assert!(is_local(&answer));
        assert!((0..HEADER + KIND).all(|length| !is_local(&answer[..length])));
        answer[HEADER + KIND] = 1;
        assert!(!is_local(&answer));
    }
}
