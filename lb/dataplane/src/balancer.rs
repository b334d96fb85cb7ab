//! Follows the view with a data plane.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_lb_plan::{RouteTable, ServiceSpec, desired, plan, touched};
use mesonet_model::{ClusterView, Delta, Revision, ServiceKey, TaskKey};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::proxy_beside::ProxyBeside;
use crate::{Dataplane, Ebpf, EbpfError, EbpfSettings, Memory, Metrics, PacketBalancer, Proxy};

/// How often to call [`LoadBalancer::retry`] while services have failed: soon enough that whoever frees the port that
/// was taken sees the service come up, and seldom enough to cost nothing.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Balances what a view describes, by one of the data planes.
#[derive(Debug)]
pub struct LoadBalancer {
    executor: Executor,
    /// What serves others than this node's processes.
    packets: Option<Box<PacketBalancer>>,
    /// What serves them where packets are not balanced.
    beside: Option<Box<ProxyBeside>>,
    metrics: Metrics,
    /// The revision of the view that was applied last; `None` before the first.
    applied: Option<Revision>,
    /// What is wanted of the services that are not known to be in effect.
    unsettled: RouteTable,
    unsettled_keys: BTreeSet<ServiceKey>,
    failures: BTreeMap<ServiceKey, String>,
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
        Self::new(Executor::Proxy(proxy), metrics)
    }

    /// A balancer whose data plane are hooks in the kernel. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ebpf(settings: &EbpfSettings, registry: &prometheus::Registry) -> Result<Self, EbpfError> {
        let metrics = Metrics::new(registry);
        let ebpf = Ebpf::start(settings, &metrics)?;
        Ok(Self::new(Executor::Ebpf(Box::new(ebpf)), metrics))
    }

    /// A balancer with hooks in the kernel if it takes them, or else with the proxy. Must be called within a tokio
    /// runtime.
    ///
    /// # Panics
    /// As [`LoadBalancer::proxy`].
    pub fn ebpf_or_proxy(settings: &EbpfSettings, registry: &prometheus::Registry) -> Self {
        let metrics = Metrics::new(registry);
        match Ebpf::start(settings, &metrics) {
            Ok(ebpf) => Self::new(Executor::Ebpf(Box::new(ebpf)), metrics),
            Err(error) => {
                let error = error_text(&error);
                warn!(error, "The kernel does not balance; the proxy does");
                Self::new(Executor::Proxy(Proxy::start(&metrics)), metrics)
            }
        }
    }

    /// A balancer whose data plane only keeps the table.
    pub fn memory(registry: &prometheus::Registry) -> Self {
        let metrics = Metrics::new(registry);
        Self::new(Executor::Memory(Memory::new(&metrics)), metrics)
    }

    fn new(executor: Executor, metrics: Metrics) -> Self {
        metrics.set_datapath(executor.as_str());
        Self {
            executor,
            packets: None,
            beside: None,
            metrics,
            applied: None,
            unsettled: RouteTable::default(),
            unsettled_keys: BTreeSet::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Has packets from outside balanced, too, by what the same views say.
    #[must_use]
    pub fn with_packets(self, packets: PacketBalancer) -> Self {
        Self { packets: Some(Box::new(packets)), ..self }
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

    /// What balances packets from outside, if anything does.
    pub fn packets(&self) -> Option<&PacketBalancer> {
        self.packets.as_deref()
    }

    /// Puts a view into effect. `delta` leads to it from the view applied before; if it starts elsewhere, every service
    /// is planned again. Returns the services that could not be put into effect, and why; they are tried again at
    /// each call, and by [`LoadBalancer::retry`]. If the call is cancelled, the next one completes it.
    pub async fn apply(&mut self, view: &ClusterView, delta: &Delta) -> BTreeMap<ServiceKey, String> {
        let keys: BTreeSet<ServiceKey> = if self.applied == Some(delta.from) {
            touched(delta)
        } else {
            let known = self.executor.read().services().map(|(key, _)| key.clone());
            known.chain(view.services.keys().cloned()).collect()
        };
        for key in keys {
            self.unsettled.set(key.clone(), desired(view, &key));
            self.unsettled_keys.insert(key);
        }
        self.applied = Some(view.revision);
        self.settle().await
    }

    /// Tries again what failed. Returns the services that still fail, and why. Call it every [`RETRY_INTERVAL`] for
    /// as long as the last result was not empty.
    pub async fn retry(&mut self) -> BTreeMap<ServiceKey, String> {
        self.settle().await
    }

    /// The tasks whose endpoints drain and still have open connections; changes as connections end.
    pub fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        match &self.beside {
            Some(beside) => beside.join_busy(self.executor.busy()),
            None => self.executor.busy(),
        }
    }

    /// What is in effect.
    pub fn table(&self) -> &RouteTable {
        self.executor.read()
    }

    async fn settle(&mut self) -> BTreeMap<ServiceKey, String> {
        let timer = self.metrics.time_apply();
        let ops = plan(&self.unsettled_keys, &self.unsettled, self.executor.read());
        let mut failures = match &mut self.executor {
            Executor::Ebpf(ebpf) => ebpf.apply(&ops).await,
            Executor::Memory(memory) => memory.apply(&ops).await,
            Executor::Proxy(proxy) => proxy.apply(&ops).await,
        };
        if let Some(beside) = &mut self.beside {
            beside.settle(&self.unsettled_keys, self.executor.read()).await;
        }
        if let Some(packets) = &mut self.packets {
            for (key, reason) in packets.settle(&self.unsettled_keys, self.executor.read()) {
                failures.entry(key).or_insert(reason);
            }
        }
        timer.observe_duration();
        for key in std::mem::take(&mut self.unsettled_keys) {
            if failures.contains_key(&key) {
                self.unsettled_keys.insert(key);
            } else {
                self.unsettled.set(key, ServiceSpec::default());
            }
        }
        self.log(&failures);
        self.metrics.set_services(self.executor.read().services().len(), failures.len());
        self.failures.clone_from(&failures);
        failures
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

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        match self {
            Self::Ebpf(ebpf) => ebpf.busy(),
            Self::Memory(memory) => memory.busy(),
            Self::Proxy(proxy) => proxy.busy(),
        }
    }
}
