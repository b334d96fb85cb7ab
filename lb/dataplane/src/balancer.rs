//! Follows the view with a data plane.

mod answers;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesonet_lb_plan::{EndpointCount, EndpointId, NodePlanner, RouteTable, lack_of_address, plan};
use mesonet_model::{AgentId, ClusterView, Delta, Revision, ServiceKey, TaskKey, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use self::upkeep::Upkeep;
use crate::busy;
use crate::proxy::Refusals;
use crate::proxy_beside::ProxyBeside;
use crate::{
    Dataplane, Ebpf, EbpfError, EbpfSettings, KernelHold, Memory, Metrics, PacketBalancer, Proxy,
    remove_hooks,
};

pub use self::upkeep::Missing;

/// How often a balancer looks at what connections have come to, and tries again what failed: soon enough that an endpoint
/// that fails is left out before many clients have met it, and that whoever frees a port that was taken sees the
/// service come up.
const OBSERVATION_INTERVAL: Duration = Duration::from_secs(1);

/// Balances what a view describes, by one of the data planes.
#[derive(Debug)]
pub struct LoadBalancer {
    executor: Executor,
    /// What serves others than this node's processes.
    packets: Option<Box<PacketBalancer>>,
    /// Why packets are not balanced although they should be.
    packets_refused: Option<String>,
    /// What serves them where packets are not balanced.
    beside: Option<Box<ProxyBeside>>,
    /// Keeps other processes from what this one has in the kernel.
    hold: Option<KernelHold>,
    upkeep: Upkeep,
    metrics: Metrics,
    /// Why this executor.
    why: String,
    planner: NodePlanner,
    /// The view that was applied last.
    view: Option<ClusterView>,
    observed_at: Instant,
    /// The revision of the view that was applied last; `None` before the first.
    applied: Option<Revision>,
    /// What is wanted of the services that are not known to be in effect.
    unsettled: RouteTable,
    unsettled_keys: BTreeSet<ServiceKey>,
    failures: BTreeMap<ServiceKey, String>,
    /// Services that the view gives no address, and why.
    unaddressed: BTreeMap<ServiceKey, String>,
}

#[derive(Debug)]
enum Executor {
    Ebpf(Box<Ebpf>),
    Memory(Memory),
    Proxy(Proxy),
}

impl LoadBalancer {
    /// A balancer whose data plane is the userspace proxy.
    ///
    /// # Panics
    /// When the process cannot start threads or open descriptors.
    pub fn proxy(registry: &prometheus::Registry) -> Self {
        let metrics = Metrics::new(registry);
        let proxy = Proxy::start(&metrics);
        Self::new(Executor::Proxy(proxy), metrics, "the proxy was asked for".to_owned())
    }

    /// A balancer whose data plane are hooks in the kernel. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ebpf(settings: &EbpfSettings, registry: &prometheus::Registry) -> Result<Self, EbpfError> {
        let metrics = Metrics::new(registry);
        let ebpf = Ebpf::start(settings, &metrics)?;
        Ok(Self::new(Executor::Ebpf(Box::new(ebpf)), metrics, "the kernel was asked for".to_owned()))
    }

    /// A balancer with hooks in the kernel if it takes them, or else with the proxy. Must be called within a tokio
    /// runtime.
    ///
    /// # Panics
    /// As [`LoadBalancer::proxy`].
    pub fn ebpf_or_proxy(settings: &EbpfSettings, registry: &prometheus::Registry) -> Self {
        let metrics = Metrics::new(registry);
        match Ebpf::start(settings, &metrics) {
            Ok(ebpf) => {
                let why = "auto: the kernel takes the programs".to_owned();
                Self::new(Executor::Ebpf(Box::new(ebpf)), metrics, why)
            }
            Err(error) => {
                let error = error_text(&error);
                warn!(error, "The kernel does not balance; the proxy does");
                if let Err(error) = remove_hooks(&settings.bpffs) {
                    warn!(%error, "Cannot remove the hooks that a daemon has left");
                }
                let why = format!("auto: the kernel does not balance: {error}");
                Self::new(Executor::Proxy(Proxy::start(&metrics)), metrics, why)
            }
        }
    }

    /// A balancer whose data plane only keeps the table.
    pub fn memory(registry: &prometheus::Registry) -> Self {
        let metrics = Metrics::new(registry);
        Self::new(Executor::Memory(Memory::new(&metrics)), metrics, "nothing carries connections".to_owned())
    }

    fn new(executor: Executor, metrics: Metrics, why: String) -> Self {
        metrics.set_datapath(executor.as_str());
        Self {
            executor,
            packets: None,
            packets_refused: None,
            beside: None,
            hold: None,
            upkeep: Upkeep::new(),
            metrics,
            why,
            planner: NodePlanner::new(AgentId::new("")),
            view: None,
            observed_at: Instant::now(),
            applied: None,
            unsettled: RouteTable::default(),
            unsettled_keys: BTreeSet::new(),
            failures: BTreeMap::new(),
            unaddressed: BTreeMap::new(),
        }
    }

    /// Has packets from outside balanced, too, by what the same views say.
    #[must_use]
    pub fn with_packets(self, packets: PacketBalancer) -> Self {
        Self { packets: Some(Box::new(packets)), ..self }
    }

    /// Says why packets from outside are not balanced although that was asked for.
    #[must_use]
    pub fn without_packets(self, why: &str) -> Self {
        Self { packets_refused: Some(why.to_owned()), ..self }
    }

    /// Keeps other processes from what this one has in the kernel, for as long as it balances.
    #[must_use]
    pub fn holding(self, hold: Option<KernelHold>) -> Self {
        Self { hold, ..self }
    }

    /// Has the proxy serve whoever the hooks in the kernel do not see, at virtual addresses that are local ones. Where
    /// the proxy balances anyway, that changes nothing.
    ///
    /// # Panics
    /// As [`LoadBalancer::proxy`].
    #[must_use]
    pub fn with_proxy_beside(self) -> Self {
        match &self.executor {
            Executor::Ebpf(_) => {
                self.metrics.set_datapath("proxy");
                let beside = Some(Box::new(ProxyBeside::start(&self.metrics)));
                Self { beside, ..self }
            }
            Executor::Memory(_) | Executor::Proxy(_) => self,
        }
    }

    /// Whether what it has put into effect stays so when the process ends.
    pub fn outlives_process(&self) -> bool {
        matches!(self.executor, Executor::Ebpf(_)) || self.packets.is_some()
    }

    /// What balances packets from outside, if anything does.
    pub fn packets(&self) -> Option<&PacketBalancer> {
        self.packets.as_deref()
    }

    /// Weighs endpoints as seen from a node, which is named by its name or its agent's id.
    #[must_use]
    pub fn on_node(self, node: AgentId) -> Self {
        Self { planner: NodePlanner::new(node), ..self }
    }

    /// Says why this data plane was chosen, for who reads `mesonet route list`.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// Puts a view into effect. `delta` leads to it from the view applied before; if it starts elsewhere, every service
    /// is planned again. Returns the services that could not be put into effect, and why; they are tried again by
    /// [`LoadBalancer::observe`], and here where the view may have been the reason. If the call is cancelled, the next
    /// one completes it.
    pub async fn apply(&mut self, view: &ClusterView, delta: &Delta) -> BTreeMap<ServiceKey, String> {
        let is_next = self.applied == Some(delta.from);
        let has_new_agents = !is_next || !delta.agents.0.is_empty();
        if has_new_agents {
            self.planner.follow_agents(view);
        }
        let mut keys: BTreeSet<ServiceKey> = if is_next {
            self.planner.touched(view, delta)
        } else {
            let known = self.executor.read().services().map(|(key, _)| key.clone());
            known.chain(view.services.keys().cloned()).collect()
        };
        if has_new_agents {
            keys.extend(self.follow_nodes(view));
        }
        let now = now();
        self.plan_again(view, keys, now);
        let again = self.refusals().into_iter().flat_map(Refusals::after_change).cloned().collect();
        self.applied = Some(view.revision);
        self.view = Some(view.clone());
        self.settle(view, again, now).await
    }

    /// Has packets in tunnels taken from the view's nodes, and sent to them. Returns the services that this is a matter for.
    fn follow_nodes(&mut self, view: &ClusterView) -> Vec<ServiceKey> {
        let Some(packets) = &mut self.packets else { return Vec::new() };
        let nodes = view
            .agents
            .values()
            .flat_map(|agent| agent.other_addresses.iter().copied().chain([agent.info.address]));
        if !packets.set_nodes(nodes.filter(|address| !address.is_unspecified()).collect()) {
            return Vec::new();
        }
        let direct = view.services.values().filter(|service| service.policy.direct_return);
        direct.map(|service| service.key.clone()).collect()
    }

    /// Looks at what connections have come to, and puts into effect what follows from it and from the time, and what failed
    /// before. Puts back what others have taken away from the kernel. Call it when [`LoadBalancer::deadline`] or
    /// [`LoadBalancer::started`] says. Returns as [`LoadBalancer::apply`].
    pub async fn observe(&mut self) -> BTreeMap<ServiceKey, String> {
        self.observed_at = Instant::now();
        if let Some(packets) = &mut self.packets {
            packets.follow_interfaces();
            packets.follow_nodes();
        }
        self.look_after_kernel();
        let Some(view) = self.view.clone() else { return BTreeMap::new() };
        let mut failed = self.executor.take_failed();
        failed.extend(self.beside.iter_mut().flat_map(|beside| beside.take_failed()));
        // Without packets: whether an endpoint takes them is not seen, and flows that never end would add up for ever.
        let (executor, beside) = (&self.executor, self.beside.as_deref());
        let count = |key: &ServiceKey, id: &EndpointId| counted(executor, beside, key, id);
        let now = now();
        let mut keys = self.planner.observe(&view, failed, count, now);
        keys.extend(self.packets.iter_mut().flat_map(|packets| packets.take_started()));
        keys.extend(self.packets.iter_mut().flat_map(|packets| packets.take_rerouted()));
        if let Executor::Ebpf(ebpf) = &self.executor {
            keys.extend(ebpf.unwritten());
        }
        let again: BTreeSet<_> =
            self.refusals().into_iter().flat_map(Refusals::after_pause).cloned().collect();
        if keys.is_empty() && self.unsettled_keys.is_empty() && again.is_empty() {
            return self.failures.clone();
        }
        self.plan_again(&view, keys, now);
        self.settle(&view, again, now).await
    }

    /// Changes when an endpoint of packets' listens that did not before.
    pub fn started(&self) -> watch::Receiver<()> {
        self.packets.as_ref().map_or_else(|| watch::channel(()).1, |packets| packets.started())
    }

    /// When to call [`LoadBalancer::observe`], and why.
    pub fn deadline(&self) -> (Instant, &'static str) {
        let look = (self.observed_at + OBSERVATION_INTERVAL, "what connections have come to");
        match self.planner.deadline() {
            Some((at, reason)) => look.min((Instant::now() + at.since(now()), reason)),
            None => look,
        }
    }

    fn plan_again(&mut self, view: &ClusterView, mut keys: BTreeSet<ServiceKey>, now: Timestamp) {
        self.want(view, &keys, now);
        self.unsettled_keys.append(&mut keys);
    }

    fn want(&mut self, view: &ClusterView, keys: &BTreeSet<ServiceKey>, now: Timestamp) {
        let planned: Vec<_> =
            keys.iter().map(|key| (key.clone(), self.planner.plan(view, key, now))).collect();
        // Of many services nearly all have an address, and to look them up again takes time.
        self.unaddressed.retain(|key, _| !keys.contains(key));
        let without = planned.iter().filter(|(_, spec)| spec.listeners.is_empty() && !spec.is_empty());
        let reasons = without.filter_map(|(key, _)| Some((key.clone(), lack_of_address(view, key)?)));
        self.unaddressed.extend(reasons);
        self.unsettled.set_all(planned);
    }

    /// Where the proxy cannot listen, if there is one.
    fn refusals(&self) -> Option<&Refusals> {
        match (&self.executor, &self.beside) {
            (Executor::Proxy(proxy), _) => Some(proxy.refusals()),
            (Executor::Ebpf(_) | Executor::Memory(_), beside) => {
                beside.as_ref().map(|beside| beside.refusals())
            }
        }
    }

    /// The tasks whose endpoints drain and still have open connections; changes as connections end. Must be called
    /// within a runtime.
    pub fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.busy_beside().fold(self.executor.busy(), busy::join)
    }

    /// The same at this moment: whoever watches is told some time later.
    pub fn busy_now(&self) -> BTreeSet<TaskKey> {
        let tasks = self.executor.busy().borrow().clone();
        self.busy_beside().fold(tasks, |tasks, beside| &tasks | &*beside.borrow())
    }

    fn busy_beside(&self) -> impl Iterator<Item = watch::Receiver<BTreeSet<TaskKey>>> {
        let beside = self.beside.iter().map(|beside| beside.busy());
        beside.chain(self.packets.iter().map(|packets| packets.busy()))
    }

    /// What is in effect.
    pub fn table(&self) -> &RouteTable {
        self.executor.read()
    }

    /// `again`: services for which the proxy tries once more to listen. `now` is when the others were planned: planned later,
    /// a step of a slow start would be taken here and not by packets.
    async fn settle(
        &mut self,
        view: &ClusterView,
        again: BTreeSet<ServiceKey>,
        now: Timestamp,
    ) -> BTreeMap<ServiceKey, String> {
        // Not where nothing but the proxy's listeners is tried again.
        let timer = (!self.unsettled_keys.is_empty()).then(|| self.metrics.time_apply());
        // First, since what an older version has left of both goes when the executor's part is up to date. What the executor
        // cannot do, such as listen at an address that is none of the node's, is no matter for packets.
        let packets = self.packets.as_mut().map(|each| each.settle(&self.unsettled_keys, &self.unsettled));
        if let Executor::Proxy(_) = &self.executor {
            self.want(view, &again, now);
        }
        let listening = || &self.unsettled_keys | &again;
        let ops = |actual| plan(&self.unsettled_keys, &self.unsettled, actual);
        let mut failures = match &mut self.executor {
            Executor::Ebpf(ebpf) => ebpf.apply(&ops(ebpf.read())).await,
            Executor::Memory(memory) => memory.apply(&ops(memory.read())).await,
            Executor::Proxy(proxy) => {
                proxy.settle(&listening(), &self.unsettled).await;
                BTreeMap::new()
            }
        };
        if let Some(beside) = &mut self.beside {
            beside.settle(&listening(), self.executor.read()).await;
        }
        for (key, reason) in packets.into_iter().flatten() {
            failures.entry(key).or_insert(reason);
        }
        drop(timer);
        let settled = std::mem::take(&mut self.unsettled_keys);
        let unsettled = std::mem::take(&mut self.unsettled);
        for key in settled.into_iter().filter(|key| failures.contains_key(key)) {
            self.unsettled.set(key.clone(), unsettled.service(&key).cloned().unwrap_or_default());
            self.unsettled_keys.insert(key);
        }
        self.add_refused(&mut failures);
        // To try these again is of no use.
        failures.extend(self.unaddressed.clone());
        for (key, reason) in self.packets.iter().flat_map(|packets| packets.unreached()) {
            failures.entry(key.clone()).or_insert_with(|| reason.clone());
        }
        self.log(&failures);
        self.metrics.set_services(self.executor.read().services().len(), failures.len());
        self.failures.clone_from(&failures);
        failures
    }

    /// Adds the services that some clients do not reach, because the proxy cannot listen where they look for it.
    fn add_refused(&self, failures: &mut BTreeMap<ServiceKey, String>) {
        for (key, error) in self.refusals().into_iter().flat_map(Refusals::all) {
            match &self.executor {
                // Packets to an address that is none of the node's get to those who ask for it by the programs for packets.
                Executor::Proxy(_)
                    if error.is_elsewhere() && self.packets.is_some() && !failures.contains_key(key) => {}
                Executor::Proxy(_) => drop(failures.insert(key.clone(), error.to_string())),
                // Most virtual addresses are none of the node's, and then the hooks serve whom they see.
                Executor::Ebpf(_) | Executor::Memory(_) if error.is_elsewhere() => {}
                Executor::Ebpf(_) | Executor::Memory(_) => {
                    let reason =
                        format!("only the hooks serve it, and clients that they do not see fail: {error}");
                    failures.entry(key.clone()).or_insert(reason);
                }
            }
        }
    }

    /// Says once per service and reason that it fails, and once that it works again.
    fn log(&self, failures: &BTreeMap<ServiceKey, String>) {
        for (service, reason) in failures {
            if self.failures.get(service) != Some(reason) {
                warn!(%service, reason, "A service could not be put into effect");
            }
        }
        for service in self.failures.keys().filter(|service| !failures.contains_key(service)) {
            info!(%service, "A service that failed is in effect");
        }
    }
}

/// What connections to an endpoint have come to that the executor or the proxy beside it carried.
fn counted(
    executor: &Executor,
    beside: Option<&ProxyBeside>,
    service: &ServiceKey,
    endpoint: &EndpointId,
) -> EndpointCount {
    let beside = beside.map(|beside| beside.count(service, endpoint)).unwrap_or_default();
    executor.count(service, endpoint) + beside
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// An error with its causes.
pub(crate) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Executor {
    /// The name that users know.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Ebpf(_) => "ebpf",
            Self::Memory(_) => "memory",
            Self::Proxy(_) => "proxy",
        }
    }

    fn read(&self) -> &RouteTable {
        match self {
            Self::Ebpf(ebpf) => ebpf.read(),
            Self::Memory(memory) => memory.read(),
            Self::Proxy(proxy) => proxy.read(),
        }
    }

    fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        match self {
            Self::Ebpf(ebpf) => ebpf.count(service, endpoint),
            Self::Memory(memory) => memory.count(service, endpoint),
            Self::Proxy(proxy) => proxy.count(service, endpoint),
        }
    }

    fn take_failed(&mut self) -> BTreeSet<(ServiceKey, EndpointId)> {
        match self {
            Self::Ebpf(ebpf) => ebpf.take_failed(),
            Self::Memory(memory) => memory.take_failed(),
            Self::Proxy(proxy) => proxy.take_failed(),
        }
    }

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        match self {
            Self::Ebpf(ebpf) => ebpf.busy(),
            Self::Memory(memory) => memory.busy(),
            Self::Proxy(proxy) => proxy.busy(),
        }
    }
}
