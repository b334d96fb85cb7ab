//! The planes of a node: names and virtual addresses, without sockets.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_dns_zone::{Config, ZoneFollower};
use mesonet_lb_plan::{NodePlanner, RouteState, RouteTable, choose, plan, touched};
use mesonet_model::{AgentId, ClusterView, Delta, Plane, Revision, ServiceKey, Serving, TaskKey, Timestamp};

/// Of so many revisions one is put into effect from nothing as well. That takes most of the time of a run.
const CHECKED_EVERY: u64 = 4;

/// A plane of a node, and what it has applied.
#[derive(Debug)]
pub(crate) struct PlaneTwin {
    /// The node's number.
    pub(crate) node: usize,
    pub(crate) kind: Plane,
    /// Its connection to a master, if there is one.
    pub(crate) link: Option<u64>,
    /// The newest term that it has seen since it began.
    pub(crate) term: u64,
    /// The view in effect.
    pub(crate) view: Option<ClusterView>,
    /// What it finds when it begins anew: not always the latest view that it had.
    pub(crate) on_disk: Option<ClusterView>,
    /// The newest that was ever in effect.
    pub(crate) newest: Revision,
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
            link: None,
            term: 0,
            view: None,
            on_disk: None,
            newest: Revision::ZERO,
            names: zone(),
            routes: RouteTable::default(),
            connections: BTreeMap::new(),
        }
    }

    /// It is started anew and knows what is on disk; its connections are gone.
    pub(crate) fn begin_anew(&mut self) {
        let newest = self.newest;
        let on_disk = self.on_disk.take();
        *self = Self::new(self.node, self.kind);
        if let Some(view) = &on_disk {
            self.apply(view);
        }
        (self.newest, self.on_disk) = (newest, on_disk);
    }

    /// Whether it has had a newer view than the one in effect: it knows that it is behind as long as no master has
    /// confirmed its view.
    pub(crate) fn is_behind(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.revision < self.newest)
    }

    /// Puts a view into effect, and checks now and then that the way there does not matter.
    pub(crate) fn apply(&mut self, view: &ClusterView) {
        if let Some(before) = &self.view {
            assert!(before.revision < view.revision, "a plane goes back from {}", before.revision);
        }
        let empty = ClusterView::empty(view.cluster.clone());
        let delta = Delta::between(self.view.as_ref().unwrap_or(&empty), view);
        let is_checked = view.revision.0.is_multiple_of(CHECKED_EVERY);
        if self.kind == Plane::Dns {
            self.names.apply(view, &delta);
            let mut anew = zone();
            if is_checked {
                anew.apply(view, &Delta::between(&empty, view));
                assert!(self.names.zone().records().eq(anew.zone().records()), "incremental names differ");
            }
        } else {
            route(&mut self.routes, view, &touched(&delta));
            let mut anew = RouteTable::default();
            if is_checked {
                route(&mut anew, view, &view.services.keys().cloned().collect());
                assert_eq!(self.routes, anew, "incremental routes differ");
            }
            let routes = &self.routes;
            self.connections.retain(|_, (service, task)| {
                let spec = routes.service(service);
                spec.is_some_and(|spec| spec.endpoints.keys().any(|id| id.task == *task))
            });
        }
        self.newest = self.newest.max(view.revision);
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
        let mut planner = NodePlanner::new(AgentId::new("node"));
        wanted.set(key.clone(), planner.plan(view, key, Timestamp::default()));
    }
    for op in plan(services, &wanted, table) {
        table.apply(&op);
    }
}
