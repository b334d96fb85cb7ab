//! The services that tasks declare, and their addresses.
//!
//! Source: spec/dcos-networking.md §2.3.1 to §2.3.3.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_master::{Published, Vips, Wishes};
use mesonet_model::{ClusterView, EndpointKey, Service, ServiceKey, ServiceWish, TaskKey, Timestamp, Vip};

/// Which endpoints belong to which task, and what names have been given.
#[derive(Debug)]
pub(crate) struct Services {
    vips: Vips,
    tasks: BTreeMap<TaskKey, Counted>,
    wishes: Wishes,
    /// How many services each name has.
    names: BTreeMap<String, usize>,
}

/// What a task has in the view.
#[derive(Debug, Default)]
struct Counted {
    keys: BTreeSet<EndpointKey>,
    wishes: BTreeMap<ServiceKey, ServiceWish>,
}

impl Services {
    pub(crate) fn new(vips: Vips) -> Self {
        Self { vips, tasks: BTreeMap::new(), wishes: Wishes::default(), names: BTreeMap::new() }
    }

    /// Makes the endpoints of a task these. Whether that changes the view.
    pub(crate) fn replace(
        &mut self,
        view: &mut ClusterView,
        task: &TaskKey,
        wanted: Published,
        now: Timestamp,
    ) -> bool {
        let Published { endpoints: wanted, wishes } = wanted;
        let old = self.tasks.remove(task).unwrap_or_default();
        self.wishes.replace(&old.wishes, &wishes);
        let mut touched: BTreeSet<ServiceKey> = BTreeSet::new();
        for key in old.keys.iter().filter(|key| !wanted.contains_key(*key)) {
            view.endpoints.remove(key);
            touched.insert(key.service.clone());
        }
        let keys: BTreeSet<EndpointKey> = wanted.keys().cloned().collect();
        for (key, endpoint) in wanted {
            if view.endpoints.get(&key) != Some(&endpoint) {
                touched.insert(key.service.clone());
                view.endpoints.insert(key, endpoint);
            }
        }
        for key in &keys {
            self.address(view, key);
        }
        if !keys.is_empty() {
            self.tasks.insert(task.clone(), Counted { keys, wishes });
        }
        for service in &touched {
            self.grant(view, service);
            if view.endpoints_of(service).next().is_none() {
                self.end(view, service, now);
            }
        }
        !touched.is_empty()
    }

    /// Gives the service of an endpoint an address of the endpoint's family. If none is free, it has none. Nor has it one that a
    /// name has, too: an address of a name follows from nothing but names, so that all nodes agree on who has it.
    fn address(&mut self, view: &mut ClusterView, key: &EndpointKey) {
        let old = view.services.get(&key.service);
        let mut service = match old {
            Some(service) => service.as_ref().clone(),
            None => {
                self.begin(&key.service);
                Service::new(key.service.clone())
            }
        };
        match &key.service.vip {
            Vip::Static(address) if !service.has_address(*address) => {
                give_chosen(view, &mut service, *address)
            }
            Vip::Static(_) => {}
            Vip::Named { .. } => {
                let name = key.service.vip.allocation_name().unwrap_or_default();
                if key.address.is_ipv4() && service.ipv4.is_none() {
                    service.ipv4 = self.vips.ipv4(&name).ok();
                }
                if key.address.is_ipv6() && service.ipv6.is_none() {
                    service.ipv6 = self.vips.ipv6(&name).ok();
                }
            }
        }
        if view.services.get(&key.service).is_none_or(|old| **old != service) {
            view.services.insert(key.service.clone(), Arc::new(service.clone()));
            settle_chosen(view, &service);
        }
    }

    fn grant(&self, view: &mut ClusterView, key: &ServiceKey) {
        let Some(old) = view.services.get(key) else { return };
        let mut service = old.as_ref().clone();
        self.wishes.grant(&mut service);
        if **old != service {
            view.services.insert(key.clone(), Arc::new(service));
        }
    }

    fn begin(&mut self, key: &ServiceKey) {
        if let Some(name) = key.vip.allocation_name() {
            self.vips.hold(&name);
            *self.names.entry(name).or_default() += 1;
        }
    }

    fn end(&mut self, view: &mut ClusterView, key: &ServiceKey, now: Timestamp) {
        let Some(ended) = view.services.remove(key) else { return };
        settle_chosen(view, &ended);
        let Some(name) = key.vip.allocation_name() else { return };
        let count = self.names.entry(name.clone()).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.names.remove(&name);
            self.vips.release(&name, now);
        }
    }

    /// Frees the addresses of names that no service has had for long enough.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        while self.vips.expire(now).is_some() {}
    }
}

/// Gives a service the address that users chose for it, unless a name has it.
fn give_chosen(view: &ClusterView, service: &mut Service, address: IpAddr) {
    let is_free = view.rival(&service.key, address).is_none();
    match address {
        IpAddr::V4(address) => service.ipv4 = is_free.then_some(address),
        IpAddr::V6(address) => service.ipv6 = is_free.then_some(address),
    }
}

/// After a change of a named service: looks again who has its addresses, if users chose one of them, too.
fn settle_chosen(view: &mut ClusterView, named: &Service) {
    let ServiceKey { protocol, port, .. } = named.key;
    for address in named.ipv4.map(IpAddr::V4).into_iter().chain(named.ipv6.map(IpAddr::V6)) {
        let chosen = ServiceKey { protocol, vip: Vip::Static(address), port };
        if chosen == named.key {
            continue;
        }
        let Some(old) = view.services.get(&chosen).cloned() else { continue };
        let mut service = Service::clone(&old);
        give_chosen(view, &mut service, address);
        if *old != service {
            view.services.insert(chosen, Arc::new(service));
        }
    }
}
