//! How much traffic endpoints of suspect tasks get: none, unless their service has nothing better.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{EndpointKey, ServiceKey, Serving};

/// The endpoints of each service that decide about the weight of suspect ones.
#[derive(Debug, Default)]
pub(crate) struct Suspects(BTreeMap<ServiceKey, Group>);

#[derive(Debug, Default)]
struct Group {
    /// Endpoints of tasks that are ready.
    ready: usize,
    suspect: BTreeSet<EndpointKey>,
}

impl Suspects {
    /// Counts an endpoint; its service if suspect endpoints of it may have another weight by that.
    pub(crate) fn insert(&mut self, key: &EndpointKey, serving: Serving) -> Option<ServiceKey> {
        match serving {
            Serving::Ready => {
                let group = self.group(key);
                group.ready += 1;
                (group.ready == 1 && !group.suspect.is_empty()).then(|| key.service.clone())
            }
            Serving::Suspect => {
                self.group(key).suspect.insert(key.clone());
                None
            }
            Serving::NotReady | Serving::Draining | Serving::Down => None,
        }
    }

    /// Counts an endpoint no more; it must be given as it was counted.
    pub(crate) fn remove(&mut self, key: &EndpointKey, serving: Serving) -> Option<ServiceKey> {
        let group = self.0.get_mut(&key.service)?;
        let changes = match serving {
            Serving::Ready => {
                group.ready -= 1;
                group.ready == 0 && !group.suspect.is_empty()
            }
            Serving::Suspect => {
                group.suspect.remove(key);
                false
            }
            Serving::NotReady | Serving::Draining | Serving::Down => false,
        };
        if group.ready == 0 && group.suspect.is_empty() {
            self.0.remove(&key.service);
        }
        changes.then(|| key.service.clone())
    }

    /// The weight of an endpoint, if it is suspect.
    pub(crate) fn weight(&self, key: &EndpointKey, serving: Serving) -> Option<u32> {
        (serving == Serving::Suspect).then(|| self.weight_in(&key.service))
    }

    /// The weight of suspect endpoints of a service.
    pub(crate) fn weight_in(&self, service: &ServiceKey) -> u32 {
        let has_better = self.0.get(service).is_some_and(|group| group.ready > 0);
        u32::from(!has_better)
    }

    /// The suspect endpoints of a service.
    pub(crate) fn of(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointKey> {
        self.0.get(service).into_iter().flat_map(|group| &group.suspect)
    }

    fn group(&mut self, key: &EndpointKey) -> &mut Group {
        self.0.entry(key.service.clone()).or_default()
    }
}
