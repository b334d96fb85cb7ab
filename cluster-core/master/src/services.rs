//! Services and their endpoints, kept up to date task by task.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    ClusterView, Endpoint, EndpointKey, Service, ServiceKey, ServiceWish, Serving, Task, TaskKey, Timestamp,
    Vip,
};
use thiserror::Error;

use crate::endpoints::{Published, endpoints_of};
use crate::outbox::Outbox;
use crate::suspects::Suspects;
use crate::vips::{Allocation, Exhausted, Vips};
use crate::wishes::Wishes;

/// How long a service without endpoints stays, so that its name does not come and go while an app is suspended or
/// restarted.
const SERVICE_LINGER: Duration = Duration::from_secs(600);

/// Which endpoints belong to which task, and which services have none.
#[derive(Debug)]
pub(crate) struct Services {
    vips: Vips,
    tasks: BTreeMap<TaskKey, Counted>,
    suspects: Suspects,
    wishes: Wishes,
    /// How many services each name has.
    names: BTreeMap<String, usize>,
    /// Services without endpoints by the time since.
    empty: BTreeSet<(Timestamp, ServiceKey)>,
    /// Services that need an address which was not free, so that it is said once.
    unaddressed: BTreeSet<ServiceKey>,
}

impl Services {
    pub(crate) fn new(vips: Vips) -> Self {
        Self {
            vips,
            tasks: BTreeMap::new(),
            suspects: Suspects::default(),
            wishes: Wishes::default(),
            names: BTreeMap::new(),
            empty: BTreeSet::new(),
            unaddressed: BTreeSet::new(),
        }
    }

    pub(crate) fn vips(&self) -> &Vips {
        &self.vips
    }

    /// Takes over the addresses of a name from the store.
    pub(crate) fn restore_vip(&mut self, name: String, allocation: Allocation) {
        self.vips.restore(name, allocation);
    }

    /// Takes over a service from the store.
    pub(crate) fn restore(&mut self, service: &Service) {
        self.hold_address(&service.key);
        if let Some(since) = service.empty_since {
            self.empty.insert((since, service.key.clone()));
        }
    }

    /// Takes over the endpoints of a task from the store; its services are restored on their own, before that.
    pub(crate) fn restore_endpoints(&mut self, view: &mut ClusterView, task: &Task) {
        let wanted = wanted_endpoints(view, task);
        for key in wanted.endpoints.keys() {
            let service = view.services.get(&key.service);
            if service.is_some_and(|service| !Families::of([key].into_iter()).are_served(service)) {
                self.unaddressed.insert(key.service.clone());
            }
        }
        self.publish(view, &task.key, task.serving(), wanted);
    }

    /// Makes the endpoints of a task those that follow from it. Costs as much as the task has endpoints.
    pub(crate) fn update(&mut self, view: &mut ClusterView, out: &mut Outbox, task: &Task, now: Timestamp) {
        let wanted = wanted_endpoints(view, task);
        self.replace(view, out, &task.key, task.serving(), wanted, now);
    }

    /// Removes the endpoints of a task that has ended.
    pub(crate) fn remove(
        &mut self,
        view: &mut ClusterView,
        out: &mut Outbox,
        task: &TaskKey,
        now: Timestamp,
    ) {
        self.replace(view, out, task, Serving::Down, Published::default(), now);
    }

    /// Removes what has had no endpoint for long enough, and ends reservations. Addresses that are free by that go to
    /// services that have waited for them.
    pub(crate) fn expire(&mut self, view: &mut ClusterView, out: &mut Outbox, now: Timestamp) {
        let mut is_something_free = false;
        while let Some((since, key)) = self.empty.first().cloned() {
            if since.plus(SERVICE_LINGER) > now {
                break;
            }
            self.empty.remove(&(since, key.clone()));
            self.unaddressed.remove(&key);
            view.services.remove(&key);
            out.view_changed = true;
            self.release_address(&key, out, now);
            out.dirty.services.insert(key);
            is_something_free = true;
        }
        while let Some(name) = self.vips.expire(now) {
            out.dirty.vips.insert(name);
            is_something_free = true;
        }
        if is_something_free {
            self.address_others(view, out, now);
        }
    }

    /// Looks again for addresses of services that found none.
    fn address_others(&mut self, view: &mut ClusterView, out: &mut Outbox, now: Timestamp) {
        for service in self.unaddressed.clone() {
            let Some((EndpointKey { task, .. }, _)) = view.endpoints_of(&service).next() else { continue };
            let task = task.clone();
            let needs = Families::of(view.endpoints_of(&service).map(|(key, _)| key));
            self.settle(view, out, &service, needs, &task, now);
        }
    }

    /// When [`Services::expire`] has something to do, and what.
    pub(crate) fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        let linger = self.empty.first().map(|(since, _)| (since.plus(SERVICE_LINGER), "service linger"));
        let reservation = self.vips.deadline().map(|at| (at, "VIP reservation"));
        linger.into_iter().chain(reservation).min()
    }

    fn replace(
        &mut self,
        view: &mut ClusterView,
        out: &mut Outbox,
        task: &TaskKey,
        serving: Serving,
        wanted: Published,
        now: Timestamp,
    ) {
        let old: BTreeSet<EndpointKey> = self.tasks.get(task).map(|old| old.keys.clone()).unwrap_or_default();
        let keys: BTreeSet<EndpointKey> = wanted.endpoints.keys().cloned().collect();
        out.view_changed |= self.publish(view, task, serving, wanted);
        let services: BTreeSet<&ServiceKey> = old.union(&keys).map(|key| &key.service).collect();
        for service in services {
            let needs = Families::of(keys.iter().filter(|key| key.service == *service));
            self.settle(view, out, service, needs, task, now);
        }
    }

    /// Makes the endpoints of a task in the view those that are wanted, and weighs those of suspect tasks anew. Whether
    /// the view has changed.
    fn publish(
        &mut self,
        view: &mut ClusterView,
        task: &TaskKey,
        serving: Serving,
        wanted: Published,
    ) -> bool {
        let mut has_changed = false;
        let Published { endpoints: wanted, wishes } = wanted;
        let old = self.tasks.remove(task);
        self.wishes.replace(old.as_ref().map_or(&BTreeMap::new(), |old| &old.wishes), &wishes);
        let mut unsettled = BTreeSet::new();
        if let Some(old) = &old {
            for key in &old.keys {
                unsettled.extend(self.suspects.remove(key, old.serving));
            }
        }
        for key in wanted.keys() {
            unsettled.extend(self.suspects.insert(key, serving));
        }
        for key in old.iter().flat_map(|old| &old.keys).filter(|key| !wanted.contains_key(key)) {
            view.endpoints.remove(key);
            has_changed = true;
        }
        for (key, endpoint) in &wanted {
            let endpoint = match self.suspects.weight(key, serving) {
                Some(weight) => Arc::new(Endpoint { weight, ..endpoint.as_ref().clone() }),
                None => Arc::clone(endpoint),
            };
            if view.endpoints.get(key) != Some(&endpoint) {
                view.endpoints.insert(key.clone(), endpoint);
                has_changed = true;
            }
        }
        for service in unsettled {
            let weight = self.suspects.weight_in(&service);
            for key in self.suspects.of(&service) {
                let Some(endpoint) = view.endpoints.get(key).filter(|endpoint| endpoint.weight != weight)
                else {
                    continue;
                };
                let endpoint = Arc::new(Endpoint { weight, ..endpoint.as_ref().clone() });
                view.endpoints.insert(key.clone(), endpoint);
                has_changed = true;
            }
        }
        if !wanted.is_empty() {
            let keys = wanted.into_keys().collect();
            self.tasks.insert(task.clone(), Counted { serving, keys, wishes });
        }
        has_changed
    }

    /// Makes a service's record that of its endpoints.
    fn settle(
        &mut self,
        view: &mut ClusterView,
        out: &mut Outbox,
        key: &ServiceKey,
        needs: Families,
        task: &TaskKey,
        now: Timestamp,
    ) {
        let old = view.services.get(key).cloned();
        let mut service = old.as_deref().cloned().unwrap_or_else(|| Service::new(key.clone()));
        self.wishes.grant(&mut service);
        if old.is_none() && self.hold_address(key) {
            out.dirty.vips.extend(key.vip.allocation_name());
        }
        match self.give_addresses(view, &mut service, needs, out) {
            Ok(()) if self.unaddressed.contains(key) => {
                // Endpoints of other tasks may need the other family.
                let needs = Families::of(view.endpoints_of(key).map(|(key, _)| key));
                if needs.are_served(&service) {
                    self.unaddressed.remove(key);
                }
            }
            Ok(()) => {}
            Err(reason) if self.unaddressed.insert(key.clone()) => {
                out.warn(task, format!("service {key} has no address: {reason}"));
            }
            Err(_) => {}
        }
        let is_empty = view.endpoints_of(key).next().is_none();
        if let Some(since) = service.empty_since {
            self.empty.remove(&(since, key.clone()));
        }
        service.empty_since = is_empty.then(|| service.empty_since.unwrap_or(now));
        if let Some(since) = service.empty_since {
            self.empty.insert((since, key.clone()));
        }
        if old.as_deref() != Some(&service) {
            view.services.insert(key.clone(), Arc::new(service));
            out.dirty.services.insert(key.clone());
            out.view_changed = true;
        }
    }

    /// Gives the service an address of each family that it needs. One that it has stays.
    fn give_addresses(
        &mut self,
        view: &ClusterView,
        service: &mut Service,
        needs: Families,
        out: &mut Outbox,
    ) -> Result<(), NoAddress> {
        let name = match service.key.vip.clone() {
            Vip::Static(address) => return self.give(view, service, address),
            named @ Vip::Named { .. } => named.allocation_name().unwrap_or_default(),
        };
        let mut result = Ok(());
        if needs.ipv4 && service.ipv4.is_none() {
            out.dirty.vips.insert(name.clone());
            let chosen = self.vips.ipv4(&name).map(IpAddr::V4).map_err(NoAddress::Exhausted);
            result = chosen.and_then(|address| self.give(view, service, address));
        }
        if needs.ipv6 && service.ipv6.is_none() {
            let chosen = self.vips.ipv6(&name).map(IpAddr::V6).map_err(NoAddress::Exhausted);
            result = result.and(chosen.and_then(|address| self.give(view, service, address)));
            out.dirty.vips.insert(name);
        }
        result
    }

    /// Gives the service this address, unless another one has it with the same port and protocol: users may choose any
    /// address, also that of a name, and clients would be sent to whichever of the two came last.
    fn give(&self, view: &ClusterView, service: &mut Service, address: IpAddr) -> Result<(), NoAddress> {
        if !service.has_address(address)
            && self.vips.is_shared(address)
            && let Some(by) = view.rival(&service.key, address)
        {
            return Err(NoAddress::Taken { address, by: by.clone() });
        }
        match address {
            IpAddr::V4(address) => service.ipv4 = Some(address),
            IpAddr::V6(address) => service.ipv6 = Some(address),
        }
        Ok(())
    }

    /// Counts a service in for its name or address. Whether the reservation of its name ended by that.
    fn hold_address(&mut self, key: &ServiceKey) -> bool {
        match &key.vip {
            Vip::Static(address) => {
                self.vips.take_static(*address);
                false
            }
            named @ Vip::Named { .. } => {
                let name = named.allocation_name().unwrap_or_default();
                *self.names.entry(name.clone()).or_default() += 1;
                self.vips.hold(&name)
            }
        }
    }

    fn release_address(&mut self, key: &ServiceKey, out: &mut Outbox, now: Timestamp) {
        let name = match &key.vip {
            Vip::Static(address) => return self.vips.free_static(*address),
            named @ Vip::Named { .. } => named.allocation_name().unwrap_or_default(),
        };
        let Some(count) = self.names.get_mut(&name) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.names.remove(&name);
        if self.vips.release(&name, now) {
            out.dirty.vips.insert(name);
        }
    }
}

/// Why a service is not reached.
#[derive(Debug, Error)]
enum NoAddress {
    #[error(transparent)]
    Exhausted(Exhausted),
    #[error("{address} with this port is that of {by}")]
    Taken { address: IpAddr, by: ServiceKey },
}

/// What a task has in the view.
#[derive(Debug)]
struct Counted {
    /// How its endpoints are counted.
    serving: Serving,
    keys: BTreeSet<EndpointKey>,
    wishes: BTreeMap<ServiceKey, ServiceWish>,
}

/// The address families that a service has endpoints of.
#[derive(Debug, Clone, Copy, Default)]
struct Families {
    ipv4: bool,
    ipv6: bool,
}

impl Families {
    fn of<'endpoint>(endpoints: impl Iterator<Item = &'endpoint EndpointKey>) -> Self {
        endpoints.fold(Self::default(), |Self { ipv4, ipv6 }, EndpointKey { address, .. }| Self {
            ipv4: ipv4 || address.is_ipv4(),
            ipv6: ipv6 || address.is_ipv6(),
        })
    }

    /// Whether a service has all addresses that endpoints of these families need.
    fn are_served(self, service: &Service) -> bool {
        match service.key.vip {
            Vip::Static(address) => service.has_address(address),
            Vip::Named { .. } => {
                (service.ipv4.is_some() || !self.ipv4) && (service.ipv6.is_some() || !self.ipv6)
            }
        }
    }
}

/// What follows from a task whose agent and framework are in the view; nothing otherwise.
fn wanted_endpoints(view: &ClusterView, task: &Task) -> Published {
    match (view.agents.get(&task.agent), view.frameworks.get(&task.key.framework)) {
        (Some(agent), Some(framework)) => endpoints_of(task, agent.info.address, &framework.name),
        _ => Published::default(),
    }
}
