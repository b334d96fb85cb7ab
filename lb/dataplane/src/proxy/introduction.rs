//! The PROXY protocol, version 2: what an endpoint is told of its client before anything else.
//!
//! As in <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>, §2.2: a signature, version and command, family
//! and transport, the length of what follows, then the addresses and ports of client and service.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mesonet_model::Protocol;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and a connection for somebody else.
const VERSION_AND_PROXY: u8 = 0x21;

const IPV4: u8 = 0x10;
const IPV6: u8 = 0x20;
const STREAM: u8 = 0x01;
const DATAGRAM: u8 = 0x02;

/// The bytes that go before the first of a connection, or before each datagram.
pub(super) fn introduction(protocol: Protocol, client: SocketAddr, service: SocketAddr) -> Box<[u8]> {
    let transport = match protocol {
        Protocol::Tcp => STREAM,
        Protocol::Udp => DATAGRAM,
    };
    let (family, addresses) = match (client.ip(), service.ip()) {
        (IpAddr::V4(client), IpAddr::V4(service)) => (IPV4, [client.octets(), service.octets()].concat()),
        (client, service) => (IPV6, [in_ipv6(client).octets(), in_ipv6(service).octets()].concat()),
    };
    let ports = [client.port().to_be_bytes(), service.port().to_be_bytes()].concat();
    // 12 or 36.
    let length = (addresses.len() + ports.len()) as u16;
    let head = [VERSION_AND_PROXY, family | transport];
    [SIGNATURE, &head, &length.to_be_bytes(), &addresses, &ports].concat().into()
}

fn in_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_introduced_by_family_and_transport() {
        for (protocol, client, service, head, addresses) in [
            (
                Protocol::Tcp,
                "1.2.3.4:258",
                "127.11.0.1:80",
                [0x21, 0x11, 0, 12],
                &[1, 2, 3, 4, 127, 11, 0, 1, 1, 2, 0, 80][..],
            ),
            (
                Protocol::Udp,
                "[fd00::1]:1",
                "[fd00::2]:53",
                [0x21, 0x22, 0, 36],
                &[
                    0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    0, 0, 0, 2, 0, 1, 0, 53,
                ][..],
            ),
        ] {
            let bytes =
                introduction(protocol, client.parse().expect(client), service.parse().expect(service));
            assert_eq!(&bytes[..12], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
            assert_eq!(&bytes[12..16], head);
            assert_eq!(&bytes[16..], addresses);
        }
    }
}
