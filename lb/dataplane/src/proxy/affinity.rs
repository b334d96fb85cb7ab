//! Clients that stay with their endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mesonet_lb_plan::EndpointId;
use mesonet_model::ServiceKey;

/// Clients that are known of one service, some 10 MB. When there are as many, the one that was last seen longest ago is
/// forgotten for a new one, and is treated like a new one when it comes back.
const CLIENTS_MAX: usize = 65_536;

/// The clients of all services whose clients stay. Workers share it, since a client's connections are spread over them.
#[derive(Debug, Clone, Default)]
pub(super) struct Affinities(Arc<Mutex<BTreeMap<ServiceKey, Weak<Affinity>>>>);

/// The clients of one service, for as long as a worker holds it.
#[derive(Debug, Default)]
pub(super) struct Affinity(Mutex<Clients>);

#[derive(Debug, Default)]
struct Clients {
    by_address: BTreeMap<IpAddr, Client>,
    /// The same by when they were last seen.
    by_time: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Debug)]
struct Client {
    endpoint: EndpointId,
    open: usize,
    seen_at: Instant,
}

/// A connection or session of a client, which is over when this is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    affinity: Arc<Affinity>,
    client: IpAddr,
}

impl Affinities {
    /// The clients of a service.
    pub(super) fn of_service(&self, service: &ServiceKey) -> Arc<Affinity> {
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(affinity) = services.get(service).and_then(Weak::upgrade) {
            return affinity;
        }
        services.retain(|_, affinity| affinity.strong_count() > 0);
        let affinity = Arc::new(Affinity::default());
        services.insert(service.clone(), Arc::downgrade(&affinity));
        affinity
    }
}

impl Affinity {
    /// The endpoint of a client that has a connection, or has had one less than `idle` ago.
    pub(super) fn endpoint_of(&self, client: IpAddr, idle: Duration, now: Instant) -> Option<EndpointId> {
        let clients = self.clients();
        let known = clients.by_address.get(&client)?;
        let stays = known.open > 0 || now.saturating_duration_since(known.seen_at) < idle;
        stays.then(|| known.endpoint.clone())
    }

    /// A client is given to an endpoint, and stays with it from here on.
    pub(super) fn visit(self: &Arc<Self>, client: IpAddr, endpoint: &EndpointId, now: Instant) -> Visit {
        let mut clients = self.clients();
        let open = clients.forget(client).map_or(0, |known| known.open);
        if clients.by_address.len() >= CLIENTS_MAX
            && let Some((_, oldest)) = clients.by_time.first().copied()
        {
            clients.forget(oldest);
        }
        clients.put(client, Client { endpoint: endpoint.clone(), open: open + 1, seen_at: now });
        Visit { affinity: Arc::clone(self), client }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients {
    fn put(&mut self, address: IpAddr, client: Client) {
        self.by_time.insert((client.seen_at, address));
        self.by_address.insert(address, client);
    }

    fn forget(&mut self, address: IpAddr) -> Option<Client> {
        let client = self.by_address.remove(&address)?;
        self.by_time.remove(&(client.seen_at, address));
        Some(client)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut clients = self.affinity.clients();
        // It may have been forgotten for a new one.
        if let Some(client) = clients.forget(self.client) {
            let open = client.open.saturating_sub(1);
            clients.put(self.client, Client { open, seen_at: Instant::now(), ..client });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn endpoint(port: u16) -> EndpointId {
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        EndpointId { task, address: ([127, 0, 0, 1], port).into() }
    }

    #[test]
    fn a_client_stays_while_it_has_a_connection_and_for_a_while_after() {
        let affinities = Affinities::default();
        let service = "tcp/web@marathon:80".parse().expect("key");
        let (affinity, shared) = (affinities.of_service(&service), affinities.of_service(&service));
        let begin = Instant::now();
        assert_eq!(affinity.endpoint_of(client(1), IDLE, begin), None);
        let visit = affinity.visit(client(1), &endpoint(1), begin);
        assert_eq!(shared.endpoint_of(client(1), IDLE, begin + 10 * IDLE), Some(endpoint(1)));
        assert_eq!(shared.endpoint_of(client(2), IDLE, begin), None);
        drop(visit);
        let end = Instant::now();
        assert_eq!(shared.endpoint_of(client(1), IDLE, end), Some(endpoint(1)));
        assert_eq!(shared.endpoint_of(client(1), IDLE, end + IDLE), None);
        let _moved = affinity.visit(client(1), &endpoint(2), end);
        assert_eq!(affinity.endpoint_of(client(1), IDLE, end + IDLE), Some(endpoint(2)));
    }

    #[test]
    fn clients_are_bounded_and_the_oldest_go_first() {
        let affinity = Affinities::default().of_service(&"tcp/web@marathon:80".parse().expect("key"));
        let now = Instant::now();
        let _visits: Vec<Visit> = (0..CLIENTS_MAX as u32 + 1)
            .map(|number| {
                let later = now + Duration::from_micros(number.into());
                affinity.visit(client(number), &endpoint(1), later)
            })
            .collect();
        assert_eq!(affinity.clients().by_address.len(), CLIENTS_MAX);
        assert_eq!(affinity.endpoint_of(client(0), IDLE, now), None);
        assert!(affinity.endpoint_of(client(1), IDLE, now).is_some());
    }
}
