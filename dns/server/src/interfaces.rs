//! The addresses at which this machine's name server is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ptr;

/// The addresses of listeners. One on all addresses of a family stands for those of the interfaces as they are at the
/// moment, but for those that mean nothing elsewhere: loopback and link-local ones.
pub fn server_addresses(listen: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for listener in listen.iter().map(SocketAddr::ip) {
        if listener.is_unspecified() {
            let is_meant = |address: &IpAddr| address.is_ipv4() == listener.is_ipv4() && is_routed(*address);
            addresses.extend(interface_addresses().into_iter().filter(is_meant));
        } else {
            addresses.push(listener);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn is_routed(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !is_link_local
}

/// The addresses of all interfaces; none if the system does not say.
fn interface_addresses() -> Vec<IpAddr> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the pointer is to a place of its own, which the system fills only if it returns 0.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: the list is the system's, ends with null, and is freed after the loop only.
    while let Some(interface) = unsafe { next.as_ref() } {
        // SAFETY: the address of an entry is null or valid for as long as the list is.
        addresses.extend(unsafe { address_at(interface.ifa_addr) });
        next = interface.ifa_next;
    }
    // SAFETY: the list is from getifaddrs and was not freed; nothing points into it any more.
    unsafe { libc::freeifaddrs(first) };
    addresses
}

/// The address that is there, if there is one and it is of IP.
///
/// # Safety
/// The pointer is null or to a socket address as long as its family says.
unsafe fn address_at(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller vouches for it; every socket address begins with its family.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: an address of this family has this form; it is read without regard to its alignment.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(listen: &[&str]) -> Vec<IpAddr> {
        let listen: Vec<SocketAddr> = listen.iter().map(|text| text.parse().expect(text)).collect();
        server_addresses(&listen)
    }

    #[test]
    fn listeners_on_one_address_are_at_that_address() {
        let expected: [IpAddr; 2] = [[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()];
        assert_eq!(addresses(&["[::1]:53", "127.0.0.1:53", "127.0.0.1:54"]), expected);
    }

    #[test]
    fn listeners_on_all_addresses_are_where_others_reach_them() {
        // Every machine has loopback, whatever else it has.
        assert!(interface_addresses().contains(&Ipv4Addr::LOCALHOST.into()));
        for (listen, is_ipv4) in [("0.0.0.0:53", true), ("[::]:53", false)] {
            let found = addresses(&[listen]);
            assert!(
                found.iter().all(|address| address.is_ipv4() == is_ipv4 && is_routed(*address)),
                "{found:?}"
            );
            assert!(found.iter().all(|address| interface_addresses().contains(address)), "{found:?}");
        }
        for (address, expected) in [
            ("10.0.0.1", true),
            ("198.51.100.1", true),
            ("fd00::1", true),
            ("127.0.0.2", false),
            ("169.254.0.1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_routed(address.parse().expect(address)), expected, "{address}");
        }
    }
}
