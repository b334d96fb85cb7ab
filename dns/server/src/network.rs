//! Networks of clients.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// The addresses that begin with the same bits: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// First and last address as numbers; of IPv4 addresses those of the mapped IPv6 ones.
    first: u128,
    last: u128,
}

/// A text is no network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no network: expected ADDRESS or ADDRESS/LENGTH, such as 10.0.0.0/8")]
pub struct NetworkError(pub String);

impl Network {
    /// The network of so many bits around an address; `None` if the address has less.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let missing = match address {
            IpAddr::V4(_) => 96,
            IpAddr::V6(_) => 0,
        };
        let length = u32::from(length).checked_add(missing).filter(|length| *length <= u128::BITS)?;
        let hosts = u128::MAX.checked_shr(length).unwrap_or(0);
        let first = number(address) & !hosts;
        Some(Self { first, last: first | hosts })
    }

    /// The networks that are not reached from elsewhere: loopback, private, link-local and those of providers' own
    /// (RFC 1918, 6598, 3927, 4193, 4291). The overlay of DC/OS, 9.0.0.0/8, is one of them in its clusters.
    pub fn local() -> Vec<Self> {
        const V4: [([u8; 4], u8); 7] = [
            ([9, 0, 0, 0], 8),
            ([10, 0, 0, 0], 8),
            ([100, 64, 0, 0], 10),
            ([127, 0, 0, 0], 8),
            ([169, 254, 0, 0], 16),
            ([172, 16, 0, 0], 12),
            ([192, 168, 0, 0], 16),
        ];
        let v4 = V4.into_iter().map(|(address, length)| (IpAddr::from(address), length));
        let unique_local = (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0).into(), 7);
        let link_local = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10);
        let v6 = [(Ipv6Addr::LOCALHOST.into(), 128), unique_local, link_local];
        v4.chain(v6).filter_map(|(address, length)| Self::new(address, length)).collect()
    }

    /// Whether an address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.holds(number(address))
    }

    pub(crate) fn holds(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// Where it begins, and where what is after it begins.
    pub(crate) fn bounds(&self) -> [Option<u128>; 2] {
        [Some(self.first), self.last.checked_add(1)]
    }
}

/// An address as a number. IPv4 addresses are those of the mapped IPv6 ones, which sockets of both families show.
pub(crate) fn number(address: IpAddr) -> u128 {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    u128::from(address)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(one, other)| (one, Some(other)));
        let network = || {
            let address: IpAddr = address.parse().ok()?;
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let length = length.map_or(Some(whole), |length| length.parse().ok())?;
            Self::new(address, length)
        };
        network().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = (self.last - self.first).leading_zeros();
        let first = Ipv6Addr::from(self.first);
        match first.to_ipv4_mapped() {
            Some(first) if length >= 96 => write!(f, "{}/{}", Ipv4Addr::from(first.octets()), length - 96),
            _ => write!(f, "{first}/{length}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_shown() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Network>().expect(text).to_string(), shown);
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "a"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_in_networks() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("10.0.0.0/8", "a00::1", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "10.0.0.1", true),
            ("2001:db8::/32", "2001:db8:1::", true),
        ] {
            let found = network.parse::<Network>().expect(network).contains(address.parse().expect(address));
            assert_eq!(found, expected, "{address} in {network}");
        }
    }
}
