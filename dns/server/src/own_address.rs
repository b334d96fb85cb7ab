//! Whether an address leads back to this server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::forward::{ForwardConfig, ForwardError};

/// Refuses upstream servers that are this server itself.
pub(crate) fn refuse_loops(config: &ForwardConfig, listen: &[SocketAddr]) -> Result<(), ForwardError> {
    let own = config
        .upstreams
        .iter()
        .chain(config.zones.values().flatten())
        .find(|upstream| listen.iter().any(|own| leads_to(**upstream, *own)));
    own.map_or(Ok(()), |address| Err(ForwardError::Loop { address: *address }))
}

/// Whether what is sent to an address arrives at a listener.
pub fn leads_to(address: SocketAddr, listener: SocketAddr) -> bool {
    let is_same_family = address.is_ipv4() == listener.is_ipv4();
    let is_reached = address.ip() == listener.ip()
        || (listener.ip().is_unspecified() && is_same_family && is_local(address.ip()));
    address.port() == listener.port() && is_reached
}

/// Whether an address is one of this machine. The system reaches those from themselves; nothing is sent to find out.
fn is_local(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 53))?;
        socket.local_addr()
    };
    address.is_loopback() || address.is_unspecified() || source().is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_recognised() {
        for (address, listener, expected) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("127.0.0.2:53", "127.0.0.1:53", false),
            ("127.0.0.2:53", "0.0.0.0:53", true),
            ("[::1]:53", "0.0.0.0:53", false),
            ("[::1]:53", "[::]:53", true),
            ("192.0.2.1:53", "0.0.0.0:53", false),
        ] {
            let found = leads_to(address.parse().expect(address), listener.parse().expect(listener));
            assert_eq!(found, expected, "{address} to {listener}");
        }
    }
}
