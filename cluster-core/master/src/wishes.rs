//! What the tasks behind each service ask of it, together.

use std::collections::BTreeMap;

use mesonet_model::{Service, ServiceKey, ServiceWish};

/// How many tasks have each wish, by service.
#[derive(Debug, Default)]
pub struct Wishes(BTreeMap<ServiceKey, BTreeMap<ServiceWish, usize>>);

impl Wishes {
    /// Takes a task's wishes instead of those that it had.
    pub fn replace(
        &mut self,
        old: &BTreeMap<ServiceKey, ServiceWish>,
        new: &BTreeMap<ServiceKey, ServiceWish>,
    ) {
        for (service, wish) in new {
            *self.0.entry(service.clone()).or_default().entry(*wish).or_default() += 1;
        }
        for (service, wish) in old {
            let Some(counts) = self.0.get_mut(service) else { continue };
            if let Some(count) = counts.get_mut(wish) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(wish);
                }
            }
            if counts.is_empty() {
                self.0.remove(service);
            }
        }
    }

    /// Makes a service what is asked of it. One of which nothing is asked, because nothing behind it takes new
    /// connections, stays as it is.
    pub fn grant(&self, service: &mut Service) {
        let wishes = self.0.get(&service.key).into_iter().flat_map(BTreeMap::keys).copied();
        if let Some(wish) = wishes.reduce(ServiceWish::and) {
            service.policy = wish.policy();
            service.weighing = wish.weighing();
        }
    }
}
