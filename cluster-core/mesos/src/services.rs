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

    /// Gives the service of an endpoint an address of the endpoint's family. If none is free, it has none.
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
            Vip::Static(IpAddr::V4(address)) => service.ipv4 = Some(*address),
            Vip::Static(IpAddr::V6(address)) => service.ipv6 = Some(*address),
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
            view.services.insert(key.service.clone(), Arc::new(service));
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
        match (&key.vip, key.vip.allocation_name()) {
            (Vip::Static(address), _) => self.vips.take_static(*address),
            (Vip::Named { .. }, Some(name)) => {
                self.vips.hold(&name);
                *self.names.entry(name).or_default() += 1;
            }
            (Vip::Named { .. }, None) => {}
        }
    }

    fn end(&mut self, view: &mut ClusterView, key: &ServiceKey, now: Timestamp) {
        if view.services.remove(key).is_none() {
            return;
        }
        match (&key.vip, key.vip.allocation_name()) {
            (Vip::Static(address), _) => self.vips.free_static(*address),
            (Vip::Named { .. }, Some(name)) => {
                let count = self.names.entry(name.clone()).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.names.remove(&name);
                    self.vips.release(&name, now);
                }
            }
            (Vip::Named { .. }, None) => {}
        }
    }

    /// Frees the addresses of names that no service has had for long enough.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        while self.vips.expire(now).is_some() {}
    }
}
