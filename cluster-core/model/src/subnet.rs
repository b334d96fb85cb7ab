//! Ranges of addresses that share a prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use crate::text_key::serde_as_text;

/// An address range in CIDR form (RFC 4632, RFC 4291 §2.3). Its text is `9.0.0.0/8`; the bits after the prefix are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    first: IpAddr,
    prefix: u8,
}

/// No address range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubnetError {
    /// The text has another form.
    #[error("'{0}' is no address range: expected ADDRESS/PREFIX, such as 9.0.0.0/8")]
    Form(String),
    /// The prefix is longer than an address.
    #[error("prefix /{prefix} is longer than address {address}")]
    Prefix {
        /// The address.
        address: IpAddr,
        /// The prefix.
        prefix: u8,
    },
    /// The address lies within the range rather than at its beginning.
    #[error("{address}/{prefix} is no address range: the one that contains it is {range}")]
    HostBits {
        /// The address.
        address: IpAddr,
        /// The prefix.
        prefix: u8,
        /// What may have been meant.
        range: Subnet,
    },
}

impl Subnet {
    /// The addresses of tasks that are on the node's own bridge, in no virtual network. Each node has the same, so they
    /// mean nothing beyond it; those of DC/OS (spec/dcos-networking.md §0.2).
    pub const NODE_BRIDGE: Self = Self { first: IpAddr::V4(Ipv4Addr::new(172, 31, 254, 0)), prefix: 24 };

    /// The range of a prefix that begins with an address.
    pub fn new(first: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        let range = Self::around(first, prefix)?;
        if range.first == first {
            Ok(range)
        } else {
            Err(SubnetError::HostBits { address: first, prefix, range })
        }
    }

    /// The range of a prefix that contains an address.
    pub fn around(address: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        let width = width(address);
        if prefix > width {
            return Err(SubnetError::Prefix { address, prefix });
        }
        let rest = u32::from(width - prefix);
        let bits = bits(address);
        let first = bits.checked_shr(rest).unwrap_or(0).checked_shl(rest).unwrap_or(0);
        Ok(Self { first: with_bits(address, first), prefix })
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { first: address, prefix: width(address) }
    }

    /// The first address, that of the network itself.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address; in IPv4 that of broadcasts.
    pub fn last(&self) -> IpAddr {
        with_bits(self.first, bits(self.first) | self.size_less_one())
    }

    /// The length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it has IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && (self.first..=self.last()).contains(&address)
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// How many addresses there are after the first one.
    pub fn size_less_one(&self) -> u128 {
        let rest = u32::from(width(self.first) - self.prefix);
        u128::MAX.checked_shr(128 - rest).unwrap_or(0)
    }

    /// The address so many after the first one, if it is in the range.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        (index <= self.size_less_one()).then(|| with_bits(self.first, bits(self.first) + index))
    }

    /// How many addresses a contained one is after the first.
    pub fn index_of(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| bits(address) - bits(self.first))
    }

    /// How many parts it has of a longer prefix, less one; `None` if the prefix is none.
    pub fn parts_less_one(&self, prefix: u8) -> Option<u128> {
        if prefix < self.prefix || prefix > width(self.first) {
            return None;
        }
        Some(u128::MAX.checked_shr(128 - u32::from(prefix - self.prefix)).unwrap_or(0))
    }

    /// The part of a longer prefix at an index.
    pub fn part(&self, prefix: u8, index: u128) -> Option<Self> {
        let last = self.parts_less_one(prefix)?;
        let offset = index.checked_shl(u32::from(width(self.first) - prefix)).unwrap_or(0);
        (index <= last).then(|| Self { first: with_bits(self.first, bits(self.first) + offset), prefix })
    }

    /// The index of the part of its own prefix that another range is in.
    pub fn index_of_part(&self, part: &Self) -> Option<u128> {
        let offset = self.index_of(part.first)?;
        Some(offset.checked_shr(u32::from(width(self.first) - part.prefix)).unwrap_or(0))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of the same family with these bits.
fn with_bits(address: IpAddr, bits: u128) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let form = || SubnetError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        Self::new(address.parse().map_err(|_| form())?, prefix.parse().map_err(|_| form())?)
    }
}

serde_as_text!(Subnet);
