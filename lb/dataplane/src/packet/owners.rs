//! Which service each virtual address leads to, from either side.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_ebpf_abi::Frontend;
use mesonet_model::ServiceKey;

/// Virtual addresses and their services. Each address has one service; a service may have several addresses.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_address: BTreeMap<Frontend, ServiceKey>,
    by_service: BTreeMap<ServiceKey, BTreeSet<Frontend>>,
}

impl Owners {
    /// The service of an address.
    pub(super) fn get(&self, frontend: &Frontend) -> Option<&ServiceKey> {
        self.by_address.get(frontend)
    }

    /// The addresses of a service.
    pub(super) fn of(&self, service: &ServiceKey) -> impl Iterator<Item = Frontend> {
        self.by_service.get(service).into_iter().flatten().copied()
    }

    /// Gives an address to a service, whichever had it before.
    pub(super) fn insert(&mut self, frontend: Frontend, service: &ServiceKey) {
        if self.get(&frontend) == Some(service) {
            return;
        }
        self.remove(&frontend);
        self.by_address.insert(frontend, service.clone());
        self.by_service.entry(service.clone()).or_default().insert(frontend);
    }

    /// An address leads to no service any more.
    pub(super) fn remove(&mut self, frontend: &Frontend) {
        let Some(service) = self.by_address.remove(frontend) else { return };
        if let Some(addresses) = self.by_service.get_mut(&service) {
            addresses.remove(frontend);
            if addresses.is_empty() {
                self.by_service.remove(&service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesonet_ebpf_abi::Place;

    use super::*;

    fn frontend(host: u8) -> Frontend {
        let address = SocketAddr::from(([11, 0, 0, host], 80));
        Frontend { place: Place::from(address), protocol: mesonet_ebpf_abi::TCP.into() }
    }

    #[test]
    fn both_sides_say_the_same_of_an_address_that_moves_and_of_one_that_ends() {
        let [web, api] = ["tcp/web@marathon:80", "tcp/api@marathon:80"];
        let [web, api]: [ServiceKey; 2] = [web, api].map(|key| key.parse().expect("a key"));
        let mut owners = Owners::default();
        owners.insert(frontend(1), &web);
        owners.insert(frontend(2), &web);
        owners.insert(frontend(2), &web);
        owners.insert(frontend(2), &api);
        assert_eq!(owners.get(&frontend(2)), Some(&api));
        assert!(owners.of(&web).eq([frontend(1)]));
        assert!(owners.of(&api).eq([frontend(2)]));
        owners.remove(&frontend(2));
        assert_eq!(owners.get(&frontend(2)), None);
        assert_eq!(owners.of(&api).count(), 0);
        assert_eq!((owners.by_address.len(), owners.by_service.len()), (1, 1), "nothing is left behind");
    }
}
