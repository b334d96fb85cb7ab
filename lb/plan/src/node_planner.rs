//! What each service should be on one node, over time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_model::{AgentId, ClusterView, Delta, Locality, Service, ServiceKey, Timestamp};

use crate::desired::{desired, touched};
use crate::outliers::{EndpointCount, Outliers};
use crate::weights::{Observed, Vantage, Weighed, depends_on_places, weigh};
use crate::{EndpointId, Reach, ServiceSpec};

/// The longest until a weight changes by itself: a tenth of the longest slow start. No ejection takes longer.
const STEP_MAX: Duration = Duration::from_secs(360);

/// Follows views and what the node's connections come to, and says what its services should be.
#[derive(Debug)]
pub struct NodePlanner {
    /// The node, by its name or its agent's id.
    node: AgentId,
    vantage: Vantage,
    outliers: Outliers,
    /// Services that prefer what is near, with what decides about how near.
    near: BTreeMap<ServiceKey, Nearby>,
    /// When services are to be planned again, and why.
    deadlines: BTreeMap<ServiceKey, (Timestamp, &'static str)>,
}

#[derive(Debug, Default)]
struct Nearby {
    reach: Reach,
    active: BTreeMap<EndpointId, u64>,
}

impl NodePlanner {
    /// The planner of a node, named by its name or its agent's id.
    pub fn new(node: AgentId) -> Self {
        Self {
            node,
            vantage: Vantage::default(),
            outliers: Outliers::default(),
            near: BTreeMap::new(),
            deadlines: BTreeMap::new(),
        }
    }

    /// Whether an agent is that of the node.
    pub fn is_here(&self, view: &ClusterView, agent: &AgentId) -> bool {
        let node = &self.node;
        agent == node || view.agents.get(agent).is_some_and(|agent| agent.node_name() == node.as_str())
    }

    /// Finds the node among the agents. Call it before anything is planned by a view whose agents are other ones.
    pub fn follow_agents(&mut self, view: &ClusterView) {
        self.vantage = Vantage::of(view, &self.node);
    }

    /// The services that a delta may have changed.
    pub fn touched(&self, view: &ClusterView, delta: &Delta) -> BTreeSet<ServiceKey> {
        let mut keys = touched(delta);
        if !delta.agents.0.is_empty() {
            keys.extend(depends_on_places(view).cloned());
        }
        keys
    }

    /// What a service should be; empty if the view does not have it.
    pub fn plan(&mut self, view: &ClusterView, key: &ServiceKey, now: Timestamp) -> ServiceSpec {
        let Some(service) = view.services.get(key) else {
            self.near.remove(key);
            self.deadlines.remove(key);
            self.outliers.retain(key, |_| false);
            return ServiceSpec::default();
        };
        let weighed = self.weigh_one(view, service, now);
        self.outliers.retain(key, |id| weighed.endpoints.contains_key(id));
        match weighed.deadline {
            Some(deadline) => drop(self.deadlines.insert(key.clone(), deadline)),
            None => drop(self.deadlines.remove(key)),
        }
        if service.weighing.locality != Locality::Off {
            self.near.entry(key.clone()).or_default().reach = weighed.reach;
        } else {
            self.near.remove(key);
        }
        desired(service, weighed)
    }

    /// The weights of a service's endpoints and the reasons, without any effect; `None` if the view does not have it.
    pub fn weigh(&self, view: &ClusterView, key: &ServiceKey, now: Timestamp) -> Option<Weighed> {
        Some(self.weigh_one(view, view.services.get(key)?, now))
    }

    fn weigh_one(&self, view: &ClusterView, service: &Service, now: Timestamp) -> Weighed {
        let near = self.near.get(&service.key);
        let observed = Observed {
            ejected: self.outliers.ejected(&service.key, now),
            active: near.map(|near| near.active.clone()).unwrap_or_default(),
            reach: near.map(|near| near.reach).unwrap_or_default(),
        };
        weigh(view, service, &self.vantage, &observed, now)
    }

    /// Takes what connections have come to: `failed` are endpoints that have failed since the last call, `count` says
    /// what is known of one. The services to be planned again.
    pub fn observe(
        &mut self,
        view: &ClusterView,
        failed: BTreeSet<(ServiceKey, EndpointId)>,
        count: impl Fn(&ServiceKey, &EndpointId) -> EndpointCount,
        now: Timestamp,
    ) -> BTreeSet<ServiceKey> {
        let mut again = self.due(now);
        let watched: BTreeSet<_> = self
            .outliers
            .watched()
            .map(|(service, id)| (service.clone(), id.clone()))
            .chain(failed)
            .collect();
        for (service, id) in watched {
            if self.outliers.observe(&service, &id, count(&service, &id), now) {
                again.insert(service);
            }
        }
        let mut loads = BTreeMap::new();
        for (key, near) in &mut self.near {
            let ids = view
                .endpoints_of(key)
                .map(|(of, _)| EndpointId { task: of.task.clone(), address: of.address });
            near.active = ids.map(|id| (id.clone(), count(key, &id).active)).collect();
            loads.insert(key.clone(), near.reach);
        }
        let moved = loads
            .into_iter()
            .filter(|(key, reach)| self.weigh(view, key, now).is_some_and(|weighed| weighed.reach != *reach));
        again.extend(moved.map(|(key, _)| key).collect::<Vec<_>>());
        again
    }

    /// The services whose weights change by themselves about now.
    fn due(&mut self, now: Timestamp) -> BTreeSet<ServiceKey> {
        let mut due = self.outliers.pass_time(now);
        // What is farther away is of a time before the clock was set back.
        let horizon = now.plus(STEP_MAX);
        let is_due = |at: Timestamp| at <= now || at > horizon;
        due.extend(self.deadlines.iter().filter(|(_, (at, _))| is_due(*at)).map(|(key, _)| key.clone()));
        due
    }

    /// When weights change by themselves, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        self.deadlines.values().copied().chain(self.outliers.deadline()).min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesonet_model::{
        ClusterId, Endpoint, EndpointKey, EndpointState, FrameworkId, SlowStart, TaskId, TaskKey,
    };

    use super::*;

    #[test]
    fn a_clock_that_is_set_back_holds_no_weight() {
        let service: ServiceKey = "tcp/web@marathon:80".parse().expect("a key");
        let (start, minute) = (Timestamp::from_millis(10_000_000), Duration::from_secs(60));
        let mut view = ClusterView::empty(ClusterId::new("c"));
        view.services.insert(service.clone(), Arc::new(Service::new(service.clone())));
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        let key = EndpointKey { service: service.clone(), task, address: ([10, 0, 0, 1], 80).into() };
        let mut endpoint = Endpoint::new(AgentId::new("s"), EndpointState::Ready, 1);
        endpoint.slow_start = Some(SlowStart { since: start, over: minute });
        view.endpoints.insert(key, Arc::new(endpoint));

        let mut planner = NodePlanner::new(AgentId::new("n"));
        let weight = |planner: &mut NodePlanner, now: Timestamp| {
            let planned = planner.plan(&view, &service, now);
            planned.endpoints.values().map(|each| each.weight).sum::<u32>()
        };
        assert_eq!(weight(&mut planner, start), 10);
        let observe = |planner: &mut NodePlanner, now| {
            planner.observe(&view, BTreeSet::new(), |_, _| EndpointCount::default(), now)
        };
        assert_eq!(observe(&mut planner, start), BTreeSet::new(), "the next step is six seconds away");
        let back = Timestamp::from_millis(start.as_millis() - 3_600_000);
        assert_eq!(observe(&mut planner, back), BTreeSet::from([service.clone()]));
        assert_eq!(weight(&mut planner, back), 100);
    }
}
