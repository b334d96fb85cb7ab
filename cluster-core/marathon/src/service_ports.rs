//! Which service ports apps get.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{AppDefinition, NetworkMode};

use crate::Rejection;

/// The service ports of all apps. A port that users chose may belong to several apps, one that Marathon assigned
/// belonged to none at that time.
#[derive(Debug)]
pub(crate) struct ServicePorts {
    first: u16,
    last: u16,
    /// Where the search goes on, so that a port that became free is not assigned at once.
    next: u16,
    /// How many apps have a port.
    users: BTreeMap<u16, usize>,
}

impl ServicePorts {
    /// No app has a port; assigned ones come from the range, both ends included.
    pub(crate) fn new((first, last): (u16, u16)) -> Self {
        Self { first, last, next: first, users: BTreeMap::new() }
    }

    /// Counts the ports of an app.
    pub(crate) fn claim(&mut self, definition: &AppDefinition) {
        for port in definition.ports() {
            *self.users.entry(port.service_port).or_default() += 1;
        }
    }

    /// Counts the ports of an app no more.
    pub(crate) fn release(&mut self, definition: &AppDefinition) {
        for port in definition.ports() {
            if let Some(count) = self.users.get_mut(&port.service_port) {
                *count -= 1;
                if *count == 0 {
                    self.users.remove(&port.service_port);
                }
            }
        }
    }

    /// Gives every port of 0 a number: that of the same port in the version in force, else one that neither an app nor
    /// `taken` has. The definition's ports are added to `taken`. Nothing is counted yet.
    pub(crate) fn assign(
        &mut self,
        definition: &mut AppDefinition,
        in_force: Option<&AppDefinition>,
        taken: &mut BTreeSet<u16>,
    ) -> Result<(), Rejection> {
        let mut own: BTreeSet<u16> = definition.ports().iter().map(|port| port.service_port).collect();
        let before: Vec<(Option<&str>, u16)> = in_force
            .map(|definition| definition.ports().iter().map(|port| (port.name, port.service_port)).collect())
            .unwrap_or_default();
        for (index, (name, port)) in ports_mut(definition).into_iter().enumerate() {
            if *port != 0 {
                continue;
            }
            let same_name = || before.iter().find(|(other, _)| other.is_some() && *other == name);
            let kept = same_name().or_else(|| before.get(index)).map(|(_, port)| *port);
            *port = match kept.filter(|port| *port != 0 && !own.contains(port)) {
                Some(port) => port,
                None => self.free(&own, taken)?,
            };
            own.insert(*port);
        }
        taken.extend(own);
        Ok(())
    }

    fn free(&mut self, own: &BTreeSet<u16>, taken: &BTreeSet<u16>) -> Result<u16, Rejection> {
        let is_free = |port: &u16| {
            !self.users.contains_key(port) && !own.contains(port) && !taken.contains(port) && *port != 0
        };
        let next = self.next.clamp(self.first, self.last.max(self.first));
        let port = (next..=self.last).chain(self.first..next).find(is_free);
        let port = port.ok_or(Rejection::ServicePortsExhausted { first: self.first, last: self.last })?;
        self.next = if port >= self.last { self.first } else { port + 1 };
        Ok(port)
    }
}

/// The service ports of a definition, in the order of its ports.
fn ports_mut(definition: &mut AppDefinition) -> Vec<(Option<&str>, &mut u16)> {
    if definition.networks.iter().all(|network| network.mode == NetworkMode::Host) {
        let ports = definition.port_definitions.iter_mut();
        return ports.map(|port| (port.name.as_deref(), &mut port.port)).collect();
    }
    let mappings = definition.container.iter_mut().flat_map(|container| &mut container.port_mappings);
    mappings.map(|port| (port.name.as_deref(), &mut port.service_port)).collect()
}
