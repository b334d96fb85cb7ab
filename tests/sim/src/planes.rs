//! The planes of a node: names and virtual addresses, without sockets.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_dns_zone::{Config, ZoneFollower};
use mesonet_lb_plan::{RouteState, RouteTable, choose, desired, plan, touched};
use mesonet_model::{ClusterView, Delta, Plane, ServiceKey, Serving, TaskKey};

/// A plane of a node, and what it has applied.
#[derive(Debug)]
pub(crate) struct PlaneTwin {
    /// The node's number.
    pub(crate) node: usize,
    pub(crate) kind: Plane,
    /// The life of the master that it is connected to.
    pub(crate) life: Option<u64>,
    /// The view in effect.
    pub(crate) view: Option<ClusterView>,
    /// Whether a new view is on its way to it.
    pub(crate) is_update_due: bool,
    names: ZoneFollower,
    routes: RouteTable,
    /// Open connections by their numbers.
    connections: BTreeMap<u64, (ServiceKey, TaskKey)>,
}

impl PlaneTwin {
    pub(crate) fn new(node: usize, kind: Plane) -> Self {
        Self {
            node,
            kind,
            life: None,
            view: None,
            is_update_due: false,
            names: zone(),
            routes: RouteTable::default(),
            connections: BTreeMap::new(),
        }
    }

    /// It is started anew and knows nothing; its connections are gone.
    pub(crate) fn begin_anew(&mut self) {
        let (life, is_update_due) = (self.life, self.is_update_due);
        *self = Self { life, is_update_due, ..Self::new(self.node, self.kind) };
    }

    /// Puts a view into effect, and checks that the way there does not matter.
    pub(crate) fn apply(&mut self, view: &ClusterView) {
        if let Some(before) = &self.view {
            assert!(before.revision < view.revision, "a plane goes back from {}", before.revision);
        }
        let empty = ClusterView::empty(view.cluster.clone());
        let from_nothing = Delta::between(&empty, view);
        let delta = match &self.view {
            Some(before) => Delta::between(before, view),
            None => from_nothing.clone(),
        };
        if self.kind == Plane::Dns {
            self.names.apply(view, &delta);
            let mut anew = zone();
            anew.apply(view, &from_nothing);
            assert!(self.names.zone().records().eq(anew.zone().records()), "incremental names differ");
        } else {
            route(&mut self.routes, view, &touched(&delta));
            let mut anew = RouteTable::default();
            route(&mut anew, view, &view.services.keys().cloned().collect());
            assert_eq!(self.routes, anew, "incremental routes differ");
            let routes = &self.routes;
            self.connections.retain(|_, (service, task)| {
                let spec = routes.service(service);
                spec.is_some_and(|spec| spec.endpoints.keys().any(|id| id.task == *task))
            });
        }
        self.view = Some(view.clone());
    }

    /// Whether new clients are sent to a task.
    pub(crate) fn serves(&self, task: &TaskKey) -> bool {
        if self.kind == Plane::Dns {
            let view = self.view.as_ref();
            return view.and_then(|view| view.tasks.get(task)).is_some_and(|t| t.serving() == Serving::Ready);
        }
        self.ready().any(|(_, ready)| ready == *task)
    }

    /// Every service with each task that gets its new connections.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (&ServiceKey, TaskKey)> {
        self.routes.services().flat_map(|(key, spec)| {
            let ready = spec.endpoints.iter().filter(|(_, spec)| spec.state == RouteState::Ready);
            ready.map(move |(id, _)| (key, id.task.clone()))
        })
    }

    /// Whether a task has open connections.
    pub(crate) fn is_connected_to(&self, task: &TaskKey) -> bool {
        self.connections.values().any(|(_, connected)| connected == task)
    }

    /// A client connects to a service, if it has an endpoint.
    pub(crate) fn connect(&mut self, connection: u64, random: u64) -> Option<TaskKey> {
        let count = u64::try_from(self.routes.services().len()).ok().filter(|count| *count > 0)?;
        let position = usize::try_from(random % count).ok()?;
        let (service, spec) = self.routes.services().nth(position)?;
        let weight = |state: RouteState, weight: u32| (state == RouteState::Ready).then_some(weight);
        let candidates = spec.endpoints.values().map(|spec| weight(spec.state, spec.weight));
        let chosen = choose(candidates, random)?;
        let task = spec.endpoints.keys().nth(chosen)?.task.clone();
        self.connections.insert(connection, (service.clone(), task.clone()));
        Some(task)
    }

    /// A client leaves. Whether that changes what the master is to know.
    pub(crate) fn leave(&mut self, connection: u64) -> bool {
        let before = self.busy();
        self.connections.remove(&connection);
        before != self.busy()
    }

    /// The tasks whose endpoints drain and have open connections.
    pub(crate) fn busy(&self) -> BTreeSet<TaskKey> {
        let drains = |service: &ServiceKey, task: &TaskKey| {
            let spec = self.routes.service(service);
            spec.is_some_and(|spec| {
                let mut own = spec.endpoints.iter().filter(|(id, _)| id.task == *task);
                own.any(|(_, spec)| spec.state == RouteState::Draining)
            })
        };
        let busy = self.connections.values().filter(|(service, task)| drains(service, task));
        busy.map(|(_, task)| task.clone()).collect()
    }
}

fn zone() -> ZoneFollower {
    ZoneFollower::new(&Config::default(), &[]).expect("the default settings make a zone")
}

/// Plans services of a view and carries the plan out.
fn route(table: &mut RouteTable, view: &ClusterView, services: &BTreeSet<ServiceKey>) {
    let mut wanted = RouteTable::default();
    for key in services {
        wanted.set(key.clone(), desired(view, key));
    }
    for op in plan(services, &wanted, table) {
        table.apply(&op);
    }
}
