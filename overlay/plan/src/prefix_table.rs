//! Address ranges and whom they belong to.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// A range of addresses: those that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The range of `length` leading bits around an address.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let length_max = if address.is_ipv4() { 32 } else { 128 };
        if length > length_max {
            return Err(PrefixError::Length { length, length_max });
        }
        let address = match address {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(masked_v4(address, length))),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(masked_v6(address, length))),
        };
        Ok(Self { address, length })
    }

    /// The first address of the range.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits its addresses share.
    pub fn length(self) -> u8 {
        self.length
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// `9.0.1.0/24`, or an address that stands for itself.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let unreadable = || PrefixError::Unreadable { text: text.to_owned() };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| unreadable())?;
        match length {
            None => Ok(Self::from(address)),
            Some(length) => Self::new(address, length.parse().map_err(|_| unreadable())?),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Why a text or a length is no range of addresses.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PrefixError {
    /// It is not written as ADDRESS or ADDRESS/BITS.
    #[error("'{text}' is no range of addresses, which is written like 9.0.1.0/24")]
    Unreadable {
        /// What was given.
        text: String,
    },
    /// More bits than the address has.
    #[error("a prefix of {length} bits, but the address has {length_max}")]
    Length {
        /// What was given.
        length: u8,
        /// What there is.
        length_max: u8,
    },
}

/// Ranges of addresses with a value each. The longest range that holds an address counts.
#[derive(Debug, Clone)]
pub struct PrefixTable<T> {
    v4: BTreeMap<Reverse<u8>, BTreeMap<u32, T>>,
    v6: BTreeMap<Reverse<u8>, BTreeMap<u128, T>>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<T> PrefixTable<T> {
    /// Gives a range a value; returns the one that it had.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let length = Reverse(prefix.length);
        match prefix.address {
            IpAddr::V4(address) => self.v4.entry(length).or_default().insert(address.to_bits(), value),
            IpAddr::V6(address) => self.v6.entry(length).or_default().insert(address.to_bits(), value),
        }
    }

    /// The value of the longest range that holds the address. The cost grows with the number of different lengths.
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => {
                self.v4.iter().find_map(|(Reverse(length), ranges)| ranges.get(&masked_v4(address, *length)))
            }
            IpAddr::V6(address) => {
                self.v6.iter().find_map(|(Reverse(length), ranges)| ranges.get(&masked_v6(address, *length)))
            }
        }
    }
}

fn masked_v4(address: Ipv4Addr, length: u8) -> u32 {
    address.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn masked_v6(address: Ipv6Addr, length: u8) -> u128 {
    address.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ranges: &[(&str, u8)]) -> PrefixTable<u8> {
        let mut table = PrefixTable::default();
        for (range, value) in ranges {
            table.insert(range.parse().expect("a range"), *value);
        }
        table
    }

    fn lookup(table: &PrefixTable<u8>, address: &str) -> Option<u8> {
        table.lookup(address.parse().expect("an address")).copied()
    }

    #[test]
    fn the_longest_range_counts() {
        let table =
            table(&[("9.0.0.0/8", 1), ("9.0.2.0/24", 2), ("9.0.2.7", 3), ("fd01:b::/64", 4), ("::/0", 5)]);
        assert_eq!(lookup(&table, "9.200.0.1"), Some(1));
        assert_eq!(lookup(&table, "9.0.2.1"), Some(2));
        assert_eq!(lookup(&table, "9.0.2.7"), Some(3));
        assert_eq!(lookup(&table, "10.0.0.1"), None);
        assert_eq!(lookup(&table, "fd01:b::1"), Some(4));
        assert_eq!(lookup(&table, "fd01:c::1"), Some(5));
    }

    #[test]
    fn a_range_without_bits_holds_all_addresses() {
        assert_eq!(lookup(&table(&[("0.0.0.0/0", 1)]), "255.255.255.255"), Some(1));
    }

    #[test]
    fn ranges_are_written_and_read() {
        assert_eq!("9.0.1.77/24".parse::<Prefix>().expect("a range").to_string(), "9.0.1.0/24");
        assert_eq!("fd01::7".parse::<Prefix>().expect("a range").to_string(), "fd01::7/128");
        assert_eq!("9.0.1.0/33".parse::<Prefix>(), Err(PrefixError::Length { length: 33, length_max: 32 }));
        assert!("nine/8".parse::<Prefix>().is_err());
        assert!("9.0.0.0/".parse::<Prefix>().is_err());
    }
}
