//! Addresses at which the proxy cannot listen, why, and which of them to try again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mesonet_model::ServiceKey;

use super::listener::ListenError;

/// Services of one kind that are tried again at once. A try in vain takes about ten system calls, so that as many take some
/// milliseconds. Where more are refused, those tried longest ago come first.
const TRIES_MAX: usize = 256;

/// What was refused when it was tried last.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    services: BTreeMap<ServiceKey, Refused>,
    /// Services to which the system refuses an address, and those of which packets to all refused addresses do not end
    /// on this node; each by its number.
    queues: [BTreeMap<u64, ServiceKey>; 2],
    next: u64,
}

#[derive(Debug)]
struct Refused {
    /// Grows from one refusal to the next.
    number: u64,
    errors: BTreeMap<SocketAddr, ListenError>,
}

impl Refusals {
    /// An address of a service is refused.
    pub(super) fn note(&mut self, service: &ServiceKey, address: SocketAddr, error: ListenError) {
        let mut errors = self.remove(service).map(|refused| refused.errors).unwrap_or_default();
        errors.insert(address, error);
        let number = self.next;
        self.next += 1;
        let refused = Refused { number, errors };
        self.queues[refused.kind()].insert(number, service.clone());
        self.services.insert(service.clone(), refused);
    }

    /// Nothing is known of services, which are about to be tried.
    pub(super) fn forget(&mut self, services: &BTreeSet<ServiceKey>) {
        services.iter().for_each(|service| drop(self.remove(service)));
    }

    fn remove(&mut self, service: &ServiceKey) -> Option<Refused> {
        let refused = self.services.remove(service)?;
        self.queues[refused.kind()].remove(&refused.number);
        Some(refused)
    }

    /// Services that may be served when others have changed.
    pub(crate) fn after_change(&self) -> impl Iterator<Item = &ServiceKey> {
        self.queues[0].values().take(TRIES_MAX)
    }

    /// Services to try again from time to time.
    pub(crate) fn after_pause(&self) -> impl Iterator<Item = &ServiceKey> {
        self.queues.iter().flat_map(|queue| queue.values().take(TRIES_MAX))
    }

    /// Why an address of a service is refused, if it is.
    pub(crate) fn reason(&self, service: &ServiceKey, address: SocketAddr) -> Option<String> {
        Some(self.services.get(service)?.errors.get(&address)?.to_string())
    }

    /// Each service that is refused, with the worst reason.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&ServiceKey, &ListenError)> {
        self.services.iter().filter_map(|(service, refused)| Some((service, refused.worst()?)))
    }
}

impl Refused {
    /// The position of its queue.
    fn kind(&self) -> usize {
        usize::from(self.worst().is_some_and(ListenError::is_elsewhere))
    }

    fn worst(&self) -> Option<&ListenError> {
        self.errors.values().find(|error| !error.is_elsewhere()).or(self.errors.values().next())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn service(number: usize) -> ServiceKey {
        format!("tcp/s{number:04}@marathon:80").parse().expect("a key")
    }

    fn refuse(refusals: &mut Refusals, number: usize, address: &str, kind: io::ErrorKind) {
        let address = address.parse().expect("an address");
        refusals.note(&service(number), address, ListenError::new(address, kind.into()));
    }

    #[test]
    fn all_that_are_refused_have_their_turn() {
        const COUNT: usize = 3 * TRIES_MAX;
        let mut refusals = Refusals::default();
        (0..COUNT)
            .for_each(|each| refuse(&mut refusals, each, "11.0.0.1:80", io::ErrorKind::AddrNotAvailable));
        refuse(&mut refusals, COUNT, "127.11.0.1:80", io::ErrorKind::AddrInUse);
        let mut tried = BTreeSet::new();
        for _ in 0..3 {
            let due: BTreeSet<ServiceKey> = refusals.after_pause().cloned().collect();
            assert!(due.len() == TRIES_MAX + 1 && due.contains(&service(COUNT)));
            assert_eq!(refusals.after_change().collect::<Vec<_>>(), [&service(COUNT)]);
            refusals.forget(&due);
            for each in 0..COUNT {
                if due.contains(&service(each)) {
                    refuse(&mut refusals, each, "11.0.0.1:80", io::ErrorKind::AddrNotAvailable);
                }
            }
            refuse(&mut refusals, COUNT, "127.11.0.1:80", io::ErrorKind::AddrInUse);
            tried.extend(due);
        }
        assert_eq!(tried.len(), COUNT + 1);
    }

    #[test]
    fn each_address_has_its_reason_and_a_service_the_worst() {
        let mut refusals = Refusals::default();
        refuse(&mut refusals, 0, "11.0.0.1:80", io::ErrorKind::AddrNotAvailable);
        assert!(refusals.all().all(|(_, error)| error.is_elsewhere()));
        refuse(&mut refusals, 0, "[fd01::1]:80", io::ErrorKind::AddrInUse);
        let [first, second] = ["11.0.0.1:80", "[fd01::1]:80"].map(|address| {
            refusals.reason(&service(0), address.parse().expect("an address")).expect("a reason")
        });
        assert!(first.contains("ip route add local 11.0.0.1"), "{first}");
        assert!(second.contains("ss -ltunp"), "{second}");
        let all: Vec<_> = refusals.all().map(|(_, error)| error.to_string()).collect();
        assert_eq!(all, [second]);
        refusals.forget(&[service(0)].into());
        assert_eq!((refusals.all().count(), refusals.after_pause().count()), (0, 0));
    }
}
