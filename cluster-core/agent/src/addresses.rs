//! Which addresses of the node's parts of networks its tasks have.
//!
//! Nothing of it is stored: the addresses of a task are in its checkpoint, and the next agent takes them from there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesonet_model::Subnet;
use uuid::Uuid;

/// Indices that no task gets: the network's own address, and that of the node.
const FIRST_INDEX: u128 = 2;

/// The addresses in use.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    taken: BTreeMap<IpAddr, Uuid>,
    /// Where the next search begins, so that an address comes back as late as possible: who still has that of an ended
    /// task does not reach another one.
    next: BTreeMap<Subnet, u128>,
}

impl Addresses {
    /// Gives a free address of a part to a run of a task. Costs as much as the run of taken ones is long.
    pub(crate) fn take(&mut self, subnet: Subnet, container: Uuid) -> Option<IpAddr> {
        let size = subnet.size_less_one();
        let last = if subnet.is_ipv4() { size.checked_sub(1)? } else { size };
        let start = self.next.get(&subnet).copied().filter(|index| *index <= last).unwrap_or(FIRST_INDEX);
        let index = self.free_between(&subnet, start, last);
        let index = index.or_else(|| self.free_between(&subnet, FIRST_INDEX, start.checked_sub(1)?))?;
        let address = subnet.nth(index)?;
        self.taken.insert(address, container);
        self.next.insert(subnet, index + 1);
        Some(address)
    }

    fn free_between(&self, subnet: &Subnet, first: u128, last: u128) -> Option<u128> {
        let mut index = first;
        for taken in self.taken.range(subnet.nth(first)?..=subnet.last()).map(|(address, _)| *address) {
            if subnet.index_of(taken) != Some(index) {
                break;
            }
            index += 1;
        }
        (index <= last).then_some(index)
    }

    /// The next search in a part begins after an address.
    pub(crate) fn go_on_after(&mut self, subnet: Subnet, address: IpAddr) {
        if let Some(index) = subnet.index_of(address) {
            self.next.insert(subnet, index + 1);
        }
    }

    /// A run of a task that is taken up has an address.
    pub(crate) fn restore(&mut self, address: IpAddr, container: Uuid) {
        self.taken.insert(address, container);
    }

    /// A run of a task has ended. Costs as much as there are addresses in use.
    pub(crate) fn free(&mut self, container: Uuid) {
        self.taken.retain(|_, owner| *owner != container);
    }

    /// Whether an address of a part is in use.
    pub(crate) fn uses(&self, subnet: &Subnet) -> bool {
        self.taken.range(subnet.first()..=subnet.last()).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_given_once_and_comes_back_last() {
        let subnet: Subnet = "9.0.0.0/29".parse().expect("range");
        let mut addresses = Addresses::default();
        let run = |n: u128| Uuid::from_u128(n);
        let given: Vec<_> = (0..6).map(|n| addresses.take(subnet, run(n))).collect();
        let texts: Vec<String> = given.iter().flatten().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["9.0.0.2", "9.0.0.3", "9.0.0.4", "9.0.0.5", "9.0.0.6"]);
        assert_eq!(given[5], None, "the last one is that of broadcasts");
        addresses.free(run(1));
        addresses.free(run(3));
        assert_eq!(addresses.take(subnet, run(7)), Some([9, 0, 0, 3].into()));
        addresses.free(run(7));
        assert_eq!(addresses.take(subnet, run(8)), Some([9, 0, 0, 5].into()), "not the one just freed");
    }

    #[test]
    fn large_parts_are_used_from_their_beginning() {
        let subnet: Subnet = "fd01:b:0:0:1::/80".parse().expect("range");
        let mut addresses = Addresses::default();
        let first = addresses.take(subnet, Uuid::nil()).expect("room");
        assert_eq!(first.to_string(), "fd01:b::1:0:0:2");
        assert!(addresses.uses(&subnet));
        addresses.free(Uuid::nil());
        assert!(!addresses.uses(&subnet));
    }
}
