//! Addresses of named VIPs: chosen by hash, collisions resolved once, kept while reserved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use mesonet_model::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Config;
use crate::phash2::{phash2, sha1_modulo};

/// How long the address of a name that no service has is not given to another name. Clients and resolvers that keep an
/// answer for longer than its TTL seldom keep it for longer than a day.
const VIP_RESERVATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The addresses given to names, `name.framework`.
#[derive(Debug)]
pub struct Vips {
    v4: Pool,
    v6: Pool,
    allocations: BTreeMap<String, Allocation>,
    /// Names that no service has, by when they were given up.
    released: BTreeSet<(Timestamp, String)>,
}

/// What a name has been given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    /// Given when the name has its first IPv4 endpoint.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Given when the name has its first IPv6 endpoint.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Since when no service has the name.
    pub(crate) released_at: Option<Timestamp>,
}

/// Every address of the range is taken; nothing was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("all {size} addresses from {first} to {last} are taken")]
pub struct Exhausted {
    first: IpAddr,
    last: IpAddr,
    size: u128,
}

/// The addresses of one family as integers: a range, and what is taken of it or of other addresses.
#[derive(Debug)]
struct Pool {
    first: u128,
    last: u128,
    taken: BTreeMap<u128, u32>,
}

impl Vips {
    pub(crate) fn new(config: &Config) -> Self {
        Self::in_ranges(config.vip_range_v4, config.vip_range_v6)
    }

    /// Gives addresses from the first to the last of each range, none of which is given yet.
    pub fn in_ranges((first4, last4): (Ipv4Addr, Ipv4Addr), (first6, last6): (Ipv6Addr, Ipv6Addr)) -> Self {
        Self {
            v4: Pool::new(first4.to_bits().into(), last4.to_bits().into()),
            v6: Pool::new(first6.to_bits(), last6.to_bits()),
            allocations: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    /// Takes over an allocation from the store.
    pub(crate) fn restore(&mut self, name: String, allocation: Allocation) {
        allocation.ipv4.inspect(|address| self.v4.take(address.to_bits().into()));
        allocation.ipv6.inspect(|address| self.v6.take(address.to_bits()));
        if let Some(at) = allocation.released_at {
            self.released.insert((at, name.clone()));
        }
        self.allocations.insert(name, allocation);
    }

    pub(crate) fn allocation(&self, name: &str) -> Option<&Allocation> {
        self.allocations.get(name)
    }

    /// The name's IPv4 address, given to it if it has none. A name without service stays reserved as it was.
    pub fn ipv4(&mut self, name: &str) -> Result<Ipv4Addr, Exhausted> {
        if let Some(address) = self.allocation(name).and_then(|allocation| allocation.ipv4) {
            return Ok(address);
        }
        let hash = u128::from(phash2(name.as_bytes()));
        let chosen = self.v4.choose(|size| hash % size).ok_or_else(|| self.exhausted_v4())?;
        let address = Ipv4Addr::from_bits(chosen as u32);
        self.allocations.entry(name.to_owned()).or_default().ipv4 = Some(address);
        Ok(address)
    }

    /// The name's IPv6 address, given to it if it has none.
    pub fn ipv6(&mut self, name: &str) -> Result<Ipv6Addr, Exhausted> {
        if let Some(address) = self.allocation(name).and_then(|allocation| allocation.ipv6) {
            return Ok(address);
        }
        let chosen = self.v6.choose(|size| sha1_modulo(name.as_bytes(), size));
        let address = Ipv6Addr::from_bits(chosen.ok_or_else(|| self.exhausted_v6())?);
        self.allocations.entry(name.to_owned()).or_default().ipv6 = Some(address);
        Ok(address)
    }

    /// A user chose this address: names are not given it as long as it is in use.
    pub(crate) fn take_static(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.take(address.to_bits().into()),
            IpAddr::V6(address) => self.v6.take(address.to_bits()),
        }
    }

    /// Whether several have the address: a name, and users who chose it, or some of them.
    pub(crate) fn is_shared(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_shared(address.to_bits().into()),
            IpAddr::V6(address) => self.v6.is_shared(address.to_bits()),
        }
    }

    /// The end of one [`Vips::take_static`].
    pub(crate) fn free_static(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.free(address.to_bits().into()),
            IpAddr::V6(address) => self.v6.free(address.to_bits()),
        }
    }

    /// A service has the name. Whether that ends its reservation.
    pub fn hold(&mut self, name: &str) -> bool {
        let held = self.allocations.get_mut(name).and_then(|allocation| allocation.released_at.take());
        held.is_some_and(|at| self.released.remove(&(at, name.to_owned())))
    }

    /// No service has the name any more. Whether it has an address that stays reserved.
    pub fn release(&mut self, name: &str, now: Timestamp) -> bool {
        let Some(allocation) = self.allocations.get_mut(name) else { return false };
        allocation.released_at = Some(now);
        self.released.insert((now, name.to_owned()))
    }

    /// When the next reservation ends.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.released.first().map(|(at, _)| at.plus(VIP_RESERVATION))
    }

    /// Ends a reservation that is over, if there is one; its name.
    pub fn expire(&mut self, now: Timestamp) -> Option<String> {
        if self.deadline()? > now {
            return None;
        }
        let (_, name) = self.released.pop_first()?;
        let allocation = self.allocations.remove(&name)?;
        allocation.ipv4.inspect(|address| self.v4.free(address.to_bits().into()));
        allocation.ipv6.inspect(|address| self.v6.free(address.to_bits()));
        Some(name)
    }

    fn exhausted_v4(&self) -> Exhausted {
        let address = |bits: u128| IpAddr::V4(Ipv4Addr::from_bits(bits as u32));
        self.v4.exhausted(address)
    }

    fn exhausted_v6(&self) -> Exhausted {
        self.v6.exhausted(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    }
}

// === impl Pool ===

impl Pool {
    fn new(first: u128, last: u128) -> Self {
        Self { first, last, taken: BTreeMap::new() }
    }

    /// Takes the first free address at or after the one that `offset` gives for the range's `last − first`, wrapping
    /// from the last to the first.
    fn choose(&mut self, offset: impl FnOnce(u128) -> u128) -> Option<u128> {
        let size = self.last.checked_sub(self.first)?;
        let start = self.first + if size == 0 { 0 } else { offset(size) };
        let chosen = self.free_between(start, self.last).or_else(|| self.free_between(self.first, start))?;
        self.take(chosen);
        Some(chosen)
    }

    /// Costs as much as the run of taken addresses is long.
    fn free_between(&self, from: u128, to: u128) -> Option<u128> {
        let mut candidate = from;
        for taken in self.taken.range(from..=to).map(|(address, _)| *address) {
            if taken != candidate {
                break;
            }
            candidate = taken.checked_add(1)?;
        }
        (candidate <= to).then_some(candidate)
    }

    fn take(&mut self, address: u128) {
        *self.taken.entry(address).or_default() += 1;
    }

    fn is_shared(&self, address: u128) -> bool {
        self.taken.get(&address).is_some_and(|count| *count > 1)
    }

    fn free(&mut self, address: u128) {
        if let Some(count) = self.taken.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(&address);
            }
        }
    }

    fn exhausted(&self, address: impl Fn(u128) -> IpAddr) -> Exhausted {
        let size = self.last.checked_sub(self.first).map_or(0, |size| size.saturating_add(1));
        Exhausted { first: address(self.first), last: address(self.last), size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vips(first: [u8; 4], last: [u8; 4]) -> Vips {
        Vips::new(&Config { vip_range_v4: (first.into(), last.into()), ..crate::machine::tests::config() })
    }

    #[test]
    fn addresses_are_those_of_dcos() {
        let mut small = vips([11, 0, 0, 0], [11, 0, 0, 254]);
        let mut full = vips([11, 0, 0, 0], [11, 255, 255, 255]);
        for (name, in_small, in_full) in [
            ("foo.bar", [11, 0, 0, 37], [11, 138, 58, 156]),
            ("baz.qux", [11, 0, 0, 39], [11, 95, 65, 17]),
            ("app.marathon", [11, 0, 0, 189], [11, 171, 172, 79]),
            ("web.marathon", [11, 0, 0, 67], [11, 225, 36, 193]),
            ("api.hello-world.marathon", [11, 0, 0, 21], [11, 46, 7, 19]),
        ] {
            assert_eq!(small.ipv4(name), Ok(in_small.into()), "{name}");
            assert_eq!(full.ipv4(name), Ok(in_full.into()), "{name}");
        }
        assert_eq!(small.ipv6("qux.ipv6"), Ok("fd01:c::6d6d:9c64:fd19:f251".parse().expect("address")));
    }

    #[test]
    fn a_taken_address_gives_the_next_one_and_wraps() {
        let mut vips = vips([10, 0, 0, 1], [10, 0, 0, 2]);
        // The range's width is 1, so that every hash gives its first address.
        assert_eq!(vips.ipv4("a.fw"), Ok([10, 0, 0, 1].into()));
        assert_eq!(vips.ipv4("b.fw"), Ok([10, 0, 0, 2].into()));
        let error = vips.ipv4("c.fw").expect_err("nothing is left");
        assert_eq!(error.to_string(), "all 2 addresses from 10.0.0.1 to 10.0.0.2 are taken");
        assert_eq!(vips.ipv4("a.fw"), Ok([10, 0, 0, 1].into()), "an address given is kept");

        let mut pool = Pool::new(0, 9);
        assert_eq!(pool.choose(|_| 8), Some(8));
        assert_eq!(pool.choose(|_| 8), Some(9));
        assert_eq!(pool.choose(|_| 8), Some(0));
        assert_eq!(pool.choose(|_| 8), Some(1));
    }

    #[test]
    fn a_released_address_stays_reserved_for_a_day() {
        let mut vips = vips([10, 0, 0, 1], [10, 0, 0, 1]);
        let released = Timestamp::from_millis(1_000);
        assert_eq!(vips.ipv4("a.fw"), Ok([10, 0, 0, 1].into()));
        assert!(vips.release("a.fw", released));
        let end = released.plus(VIP_RESERVATION);
        assert_eq!(vips.deadline(), Some(end));
        assert_eq!(vips.expire(Timestamp::from_millis(end.as_millis() - 1)), None);
        assert!(vips.ipv4("b.fw").is_err());
        assert_eq!(vips.expire(end), Some("a.fw".to_owned()));
        assert_eq!(vips.ipv4("b.fw"), Ok([10, 0, 0, 1].into()));
    }

    #[test]
    fn a_name_that_comes_back_in_time_has_its_address_again() {
        let mut vips = vips([10, 0, 0, 1], [10, 0, 0, 9]);
        let before = vips.ipv4("a.fw");
        vips.release("a.fw", Timestamp::from_millis(1_000));
        assert!(vips.hold("a.fw"));
        assert_eq!(vips.deadline(), None);
        assert_eq!(vips.ipv4("a.fw"), before);
    }

    #[test]
    fn names_avoid_addresses_that_users_chose() {
        let mut vips = vips([10, 0, 0, 1], [10, 0, 0, 2]);
        vips.take_static([10, 0, 0, 1].into());
        assert_eq!(vips.ipv4("a.fw"), Ok([10, 0, 0, 2].into()));
        vips.free_static([10, 0, 0, 1].into());
        assert_eq!(vips.ipv4("b.fw"), Ok([10, 0, 0, 1].into()));
    }
}
