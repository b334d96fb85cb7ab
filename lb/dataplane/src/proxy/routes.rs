//! A worker's copy of the table, and what it knows about endpoints from using them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::{Place, hash_words, source_hash};
use mesonet_lb_plan::{
    Algorithm, EndpointId, EndpointSpec, MaglevTable, RouteState, ServicePolicy, choose, choose_least,
};
use mesonet_model::ServiceKey;

use super::affinity::{Affinities, Affinity, Visit};
use super::slots::{SlotKey, Slots};
use crate::Metrics;
use crate::busy::Busy;
use crate::ledger::Account;
use crate::metrics::ServiceMetrics;

/// An endpoint that failed to take a connection gets none for this long, unless all have failed. Long enough that
/// clients do not pay for attempts in vain, short enough that a task is used soon after it begins to listen.
const AVOIDANCE: Duration = Duration::from_millis(500);

/// For how long an endpoint that has not taken a connection yet is given time to begin to listen: a task runs before
/// it listens, and interpreters on a busy machine take seconds.
const STARTING_MAX: Duration = Duration::from_secs(10);

/// Positions of a Maglev table that are looked at for one connection, before one of the endpoints that may be chosen is
/// chosen at random: enough unless most of them fail.
const MAGLEV_LOOKS: u32 = 16;

#[derive(Debug)]
pub(super) struct Routes {
    services: BTreeMap<ServiceKey, SlotKey>,
    slots: Slots<Service>,
    endpoints: Slots<Endpoint>,
    random: fastrand::Rng,
    metrics: Metrics,
    busy: Busy,
    affinities: Affinities,
    /// Endpoints with bytes that are not counted yet.
    carried: Vec<SlotKey>,
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) metrics: Arc<ServiceMetrics>,
    /// The keys of its listeners in the worker.
    pub(super) listeners: Vec<SlotKey>,
    endpoints: Vec<SlotKey>,
    policy: ServicePolicy,
    /// The clients that stay with their endpoint, if the policy wants that.
    affinity: Option<Arc<Affinity>>,
    /// In the last of its connections that carried anything, the client was the first to speak.
    pub(super) do_clients_begin: bool,
    /// The table of its ready endpoints, made when it is first needed after a change.
    maglev: Option<Maglev>,
}

#[derive(Debug)]
struct Maglev {
    table: MaglevTable,
    /// The endpoints that it was built from.
    endpoints: Vec<SlotKey>,
}

#[derive(Debug)]
struct Endpoint {
    id: EndpointId,
    spec: EndpointSpec,
    /// Connections and sessions of this worker that are given to it.
    active: usize,
    avoided_until: Option<Instant>,
    /// Until when it may still be about to listen; `None` once it has taken a connection.
    starting_until: Option<Instant>,
    account: Arc<Account>,
    /// Of its service.
    metrics: Arc<ServiceMetrics>,
    /// Bytes from and to clients that are not counted yet: counters are shared, so to add to one costs more than to remember.
    uncounted: (u64, u64),
}

impl Routes {
    pub(super) fn new(metrics: Metrics, busy: Busy, affinities: Affinities, seed: u64) -> Self {
        Self {
            services: BTreeMap::new(),
            slots: Slots::new(),
            endpoints: Slots::new(),
            random: fastrand::Rng::with_seed(seed),
            metrics,
            busy,
            affinities,
            carried: Vec::new(),
        }
    }

    // What is commanded.

    /// The service with a key; made if it is new.
    pub(super) fn make_service(&mut self, key: &ServiceKey) -> SlotKey {
        if let Some(slot) = self.services.get(key) {
            return *slot;
        }
        let metrics = Arc::new(self.metrics.service(key));
        let slot = self.slots.insert(Service {
            metrics,
            listeners: Vec::new(),
            endpoints: Vec::new(),
            policy: ServicePolicy::default(),
            affinity: None,
            do_clients_begin: false,
            maglev: None,
        });
        self.services.insert(key.clone(), slot);
        slot
    }

    pub(super) fn find_service(&self, key: &ServiceKey) -> Option<SlotKey> {
        self.services.get(key).copied()
    }

    /// Makes new connections of a service be spread in this way.
    pub(super) fn set_policy(&mut self, key: &ServiceKey, policy: ServicePolicy) {
        let slot = self.make_service(key);
        if let Some(service) = self.slots.get_mut(slot) {
            service.policy = policy;
            service.affinity = policy.affinity.map(|_| self.affinities.of_service(key));
            service.maglev = None;
        }
    }

    /// Forgets a service that has neither listener nor endpoint nor a policy of its own.
    pub(super) fn prune_service(&mut self, key: &ServiceKey) {
        let Some(slot) = self.find_service(key) else { return };
        if self.slots.get(slot).is_some_and(Service::is_unused) {
            self.slots.remove(slot);
            self.services.remove(key);
        }
    }

    /// Adds an endpoint or changes how it takes part.
    pub(super) fn set_endpoint(&mut self, key: &ServiceKey, id: &EndpointId, spec: EndpointSpec) {
        let Some(slot) = self.find_endpoint(key, id) else {
            let service = self.make_service(key);
            let starting_until = Some(Instant::now() + STARTING_MAX);
            let account = self.metrics.ledger.account(key, id);
            let service = self.slots.get_mut(service).expect("BUG: the service was just made");
            let endpoint = Endpoint {
                id: id.clone(),
                spec,
                active: 0,
                avoided_until: None,
                starting_until,
                account,
                metrics: service.metrics.clone(),
                uncounted: (0, 0),
            };
            let slot = self.endpoints.insert(endpoint);
            service.endpoints.push(slot);
            service.maglev = None;
            return;
        };
        let endpoint = self.endpoints.get_mut(slot).expect("BUG: a service has an endpoint that is gone");
        match (endpoint.spec.state, spec.state) {
            (RouteState::Ready, RouteState::Draining) => self.busy.add(&id.task, endpoint.active),
            (RouteState::Draining, RouteState::Ready) => self.busy.remove(&id.task, endpoint.active),
            (RouteState::Ready, RouteState::Ready) | (RouteState::Draining, RouteState::Draining) => {}
        }
        endpoint.spec = spec;
        if let Some(service) = self.find_service(key).and_then(|slot| self.slots.get_mut(slot)) {
            service.maglev = None;
        }
    }

    /// Forgets an endpoint; its connections count no more. Returns its key, so that they can be found.
    pub(super) fn remove_endpoint(&mut self, key: &ServiceKey, id: &EndpointId) -> Option<SlotKey> {
        self.count_bytes();
        let slot = self.find_endpoint(key, id)?;
        let service = self.find_service(key).and_then(|slot| self.slots.get_mut(slot))?;
        service.endpoints.retain(|other| *other != slot);
        service.maglev = None;
        let endpoint = self.endpoints.remove(slot)?;
        if endpoint.spec.state == RouteState::Draining {
            self.busy.remove(&id.task, endpoint.active);
        }
        Some(slot)
    }

    fn find_endpoint(&self, key: &ServiceKey, id: &EndpointId) -> Option<SlotKey> {
        let service = self.slots.get(self.find_service(key)?)?;
        service
            .endpoints
            .iter()
            .copied()
            .find(|slot| self.endpoints.get(*slot).is_some_and(|endpoint| endpoint.id == *id))
    }

    pub(super) fn service(&self, slot: SlotKey) -> Option<&Service> {
        self.slots.get(slot)
    }

    pub(super) fn service_mut(&mut self, slot: SlotKey) -> Option<&mut Service> {
        self.slots.get_mut(slot)
    }

    // What connections need.

    /// The endpoint for a new connection of a service, none of those that were tried for it, and where it is. A client is
    /// needed only if the policy asks for it.
    pub(super) fn choose(
        &mut self,
        service: SlotKey,
        client: Option<SocketAddr>,
        tried: &[SlotKey],
        now: Instant,
    ) -> Option<(SlotKey, SocketAddr)> {
        let random = self.random.u64(..);
        let service = self.slots.get_mut(service)?;
        let candidates = Candidates { endpoints: &self.endpoints, tried, now };
        let chosen = service
            .keep(client, &candidates)
            .or_else(|| match service.policy.algorithm {
                Algorithm::WeightedRandom => None,
                Algorithm::LeastConnections => candidates.least_connections(&service.endpoints, random),
                Algorithm::Maglev => service.by_address(client?.ip(), &candidates),
            })
            .or_else(|| candidates.at_random(&service.endpoints, random))?;
        Some((chosen, self.endpoints.get(chosen)?.id.address))
    }

    /// Notes that a client of a service is given to an endpoint, if that matters later.
    pub(super) fn visit(
        &self,
        service: SlotKey,
        client: Option<SocketAddr>,
        endpoint: SlotKey,
        now: Instant,
    ) -> Option<Visit> {
        let affinity = self.slots.get(service)?.affinity.as_ref()?;
        Some(affinity.visit(client?.ip(), &self.endpoints.get(endpoint)?.id, now))
    }

    /// A connection or session is given to an endpoint.
    pub(super) fn begin(&mut self, endpoint: SlotKey) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.active += 1;
            endpoint.account.begin();
        }
    }

    /// A connection or session of an endpoint has ended.
    pub(super) fn end(&mut self, endpoint: SlotKey) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.active -= 1;
            endpoint.account.end();
            if endpoint.spec.state == RouteState::Draining {
                self.busy.remove(&endpoint.id.task, 1);
            }
        }
    }

    /// An endpoint did not take a connection.
    pub(super) fn note_failure(&mut self, endpoint: SlotKey, now: Instant) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.avoided_until = Some(now + AVOIDANCE);
            endpoint.account.fail();
        }
    }

    /// An endpoint has taken a connection.
    pub(super) fn note_success(&mut self, endpoint: SlotKey) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.starting_until = None;
            endpoint.account.succeed();
        }
    }

    /// Bytes were forwarded between clients and an endpoint. They are counted with the next call of [`Routes::count_bytes`].
    /// Returns whether it is still there.
    pub(super) fn note_bytes(&mut self, slot: SlotKey, up: u64, down: u64) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(slot) else { return false };
        if endpoint.uncounted == (0, 0) {
            self.carried.push(slot);
        }
        endpoint.uncounted.0 += up;
        endpoint.uncounted.1 += down;
        true
    }

    /// Counts what was forwarded.
    pub(super) fn count_bytes(&mut self) {
        for slot in self.carried.drain(..) {
            if let Some(endpoint) = self.endpoints.get_mut(slot) {
                let (up, down) = std::mem::take(&mut endpoint.uncounted);
                endpoint.metrics.carry(up, down);
                endpoint.account.carry(up, down);
            }
        }
    }

    /// Whether one of a service's endpoints may be about to listen. Those of weight 0 are not waited for, unless there are no
    /// others that are ready.
    pub(super) fn is_starting(&self, service: SlotKey, now: Instant) -> bool {
        let endpoints =
            self.slots.get(service).map(|service| service.endpoints.as_slice()).unwrap_or_default();
        let ready = || {
            let all = endpoints.iter().filter_map(|slot| self.endpoints.get(*slot));
            all.filter(|endpoint| endpoint.spec.state == RouteState::Ready)
        };
        let is_weighed = ready().any(|endpoint| endpoint.spec.weight > 0);
        ready().any(|endpoint| {
            (endpoint.spec.weight > 0 || !is_weighed)
                && endpoint.starting_until.is_some_and(|until| now < until)
        })
    }

    pub(super) fn is_draining(&self, endpoint: SlotKey) -> bool {
        self.endpoints.get(endpoint).is_some_and(|endpoint| endpoint.spec.state == RouteState::Draining)
    }
}

/// Who may be chosen for a connection.
struct Candidates<'a> {
    endpoints: &'a Slots<Endpoint>,
    tried: &'a [SlotKey],
    now: Instant,
}

impl<'a> Candidates<'a> {
    /// An endpoint that may be chosen.
    fn any(&self, slot: SlotKey) -> Option<&'a Endpoint> {
        self.endpoints
            .get(slot)
            .filter(|endpoint| endpoint.spec.state == RouteState::Ready && !self.tried.contains(&slot))
    }

    /// One that has not failed lately.
    fn trusted(&self, slot: SlotKey) -> Option<&'a Endpoint> {
        self.any(slot).filter(|endpoint| endpoint.avoided_until.is_none_or(|until| until <= self.now))
    }

    fn at_random(&self, slots: &[SlotKey], random: u64) -> Option<SlotKey> {
        let trusted = slots.iter().map(|slot| Some(self.trusted(*slot)?.spec.weight));
        let any = slots.iter().map(|slot| Some(self.any(*slot)?.spec.weight));
        choose(trusted, random).or_else(|| choose(any, random)).map(|position| slots[position])
    }

    fn least_connections(&self, slots: &[SlotKey], random: u64) -> Option<SlotKey> {
        let trusted = slots.iter().map(|slot| {
            let endpoint = self.trusted(*slot)?;
            Some((endpoint.spec.weight, endpoint.active as u64))
        });
        choose_least(trusted, random).map(|position| slots[position])
    }
}

impl Service {
    /// The endpoint that a client stays with, if it may be chosen.
    fn keep(&self, client: Option<SocketAddr>, candidates: &Candidates<'_>) -> Option<SlotKey> {
        let known =
            self.affinity.as_ref()?.endpoint_of(client?.ip(), self.policy.affinity?, candidates.now)?;
        let is_known = |slot: &SlotKey| {
            candidates.trusted(*slot).is_some_and(|endpoint| endpoint.spec.weight > 0 && endpoint.id == known)
        };
        self.endpoints.iter().copied().find(is_known)
    }

    /// The endpoint that the table has for an address; if it must not be chosen, the one for the next hash.
    fn by_address(&mut self, client: IpAddr, candidates: &Candidates<'_>) -> Option<SlotKey> {
        let slots = &self.endpoints;
        let maglev = self.maglev.get_or_insert_with(|| {
            let ready = slots.iter().filter_map(|slot| {
                let endpoint = candidates.endpoints.get(*slot)?;
                let place = (endpoint.id.address, endpoint.spec.weight);
                (endpoint.spec.state == RouteState::Ready).then_some((*slot, place))
            });
            let (endpoints, places): (_, Vec<_>) = ready.unzip();
            Maglev { table: MaglevTable::new(&places), endpoints }
        });
        let hash = source_hash(&Place::from(SocketAddr::new(client, 0)));
        let hashes = (0..MAGLEV_LOOKS).map(|look| if look == 0 { hash } else { hash_words(&[hash], look) });
        hashes
            .filter_map(|hash| maglev.endpoints.get(maglev.table.choose(hash)?).copied())
            .find(|slot| candidates.trusted(*slot).is_some())
    }

    /// Whether the policy asks who a client is.
    pub(super) fn asks_for_client(&self) -> bool {
        self.policy.proxy_protocol
            || self.policy.affinity.is_some()
            || self.policy.algorithm == Algorithm::Maglev
    }

    /// Whether endpoints are told who a client is.
    pub(super) fn introduces_clients(&self) -> bool {
        self.policy.proxy_protocol
    }

    fn is_unused(&self) -> bool {
        self.listeners.is_empty() && self.endpoints.is_empty() && self.policy == ServicePolicy::default()
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;

    const READY: EndpointSpec = EndpointSpec { state: RouteState::Ready, weight: 1 };

    fn endpoint(port: u16) -> EndpointId {
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("t{port}")));
        EndpointId { task, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn routes(ports: &[u16]) -> (Routes, ServiceKey, SlotKey) {
        let mut routes =
            Routes::new(Metrics::new(&prometheus::Registry::new()), Busy::new(), Affinities::default(), 1);
        let key: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        for port in ports {
            routes.set_endpoint(&key, &endpoint(*port), READY);
        }
        let service = routes.find_service(&key).expect("the service is there");
        (routes, key, service)
    }

    fn chosen(routes: &mut Routes, service: SlotKey, tried: &[SlotKey], now: Instant) -> Vec<u16> {
        let mut ports: Vec<u16> =
            (0..100).filter_map(|_| Some(routes.choose(service, None, tried, now)?.1.port())).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    #[test]
    fn an_endpoint_that_failed_is_avoided_for_a_while_but_never_all() {
        let (mut routes, key, service) = routes(&[1, 2]);
        let now = Instant::now();
        let first = routes.find_endpoint(&key, &endpoint(1)).expect("endpoint");
        let second = routes.find_endpoint(&key, &endpoint(2)).expect("endpoint");
        routes.note_failure(first, now);
        assert_eq!(chosen(&mut routes, service, &[], now), [2]);
        assert_eq!(chosen(&mut routes, service, &[second], now), [1]);
        assert_eq!(chosen(&mut routes, service, &[], now + AVOIDANCE), [1, 2]);
        routes.note_failure(second, now);
        assert_eq!(chosen(&mut routes, service, &[], now), [1, 2]);
    }

    #[test]
    fn the_least_loaded_endpoint_gets_the_next_connection() {
        let (mut routes, key, service) = routes(&[1, 2]);
        routes
            .set_policy(&key, ServicePolicy { algorithm: Algorithm::LeastConnections, ..Default::default() });
        let now = Instant::now();
        let mut given = BTreeMap::new();
        for _ in 0..10 {
            let (endpoint, address) = routes.choose(service, None, &[], now).expect("endpoints are ready");
            routes.begin(endpoint);
            *given.entry(address.port()).or_insert(0) += 1;
        }
        assert_eq!(given, BTreeMap::from([(1, 5), (2, 5)]));
        let first = routes.find_endpoint(&key, &endpoint(1)).expect("endpoint");
        routes.end(first);
        assert_eq!(chosen(&mut routes, service, &[], now), [1]);
        routes.note_failure(first, now);
        assert_eq!(chosen(&mut routes, service, &[], now), [2]);
    }

    #[test]
    fn an_endpoint_is_starting_until_it_takes_a_connection_or_has_had_its_time() {
        let (mut routes, key, service) = routes(&[1, 2]);
        let now = Instant::now();
        assert!(routes.is_starting(service, now));
        assert!(!routes.is_starting(service, now + STARTING_MAX));
        for port in [1, 2] {
            assert!(routes.is_starting(service, now));
            let slot = routes.find_endpoint(&key, &endpoint(port)).expect("endpoint");
            routes.note_success(slot);
        }
        assert!(!routes.is_starting(service, now));
    }

    #[test]
    fn nobody_waits_for_an_endpoint_that_is_to_get_no_connections() {
        let (mut routes, key, service) = routes(&[1, 2]);
        let now = Instant::now();
        let slot = routes.find_endpoint(&key, &endpoint(1)).expect("endpoint");
        routes.note_success(slot);
        let nothing = EndpointSpec { weight: 0, ..READY };
        routes.set_endpoint(&key, &endpoint(2), nothing);
        assert!(!routes.is_starting(service, now));
        // Where all have weight 0, all get connections.
        routes.set_endpoint(&key, &endpoint(1), nothing);
        assert!(routes.is_starting(service, now));
    }

    #[test]
    fn tasks_are_busy_exactly_while_draining_endpoints_have_connections() {
        let (mut routes, key, _) = routes(&[1]);
        let busy = routes.busy.watch();
        let draining = EndpointSpec { state: RouteState::Draining, weight: 1 };
        let slot = routes.find_endpoint(&key, &endpoint(1)).expect("endpoint");
        routes.begin(slot);
        routes.begin(slot);
        assert_eq!(busy.borrow().len(), 0);
        routes.set_endpoint(&key, &endpoint(1), draining);
        assert_eq!(busy.borrow().len(), 1);
        routes.end(slot);
        assert_eq!(busy.borrow().len(), 1);
        routes.set_endpoint(&key, &endpoint(1), READY);
        assert_eq!(busy.borrow().len(), 0);
        routes.set_endpoint(&key, &endpoint(1), draining);
        assert_eq!(busy.borrow().len(), 1);
        routes.remove_endpoint(&key, &endpoint(1));
        assert_eq!(busy.borrow().len(), 0);
        routes.end(slot);
        assert_eq!(busy.borrow().len(), 0);
    }
}
