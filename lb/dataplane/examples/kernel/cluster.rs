//! A view with services, and a balancer that follows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::{EbpfSettings, LoadBalancer};
use mesonet_model::{
    AgentId, ClusterId, ClusterView, Delta, Endpoint, EndpointKey, EndpointState, FrameworkId, Service,
    ServiceKey, TaskId, TaskKey,
};
use tokio::runtime::Runtime;

use crate::{Measured, site};

pub struct Cluster {
    pub view: ClusterView,
    applied: ClusterView,
    balancer: LoadBalancer,
    runtime: Runtime,
}

impl Cluster {
    /// The balancer's threads are in the namespace of the caller.
    pub fn new(settings: &EbpfSettings) -> Measured<Self> {
        let namespace = settings.bpffs.file_name().map(|name| name.to_string_lossy().into_owned());
        let namespace = namespace.unwrap_or_default();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all();
        let runtime = runtime.on_thread_start(move || site::join(&namespace).expect("join")).build()?;
        let registry = prometheus::Registry::new();
        let balancer = runtime.block_on(async { LoadBalancer::ebpf(settings, &registry) })?;
        let view = ClusterView::empty(ClusterId::new("bench"));
        Ok(Self { applied: view.clone(), view, balancer, runtime })
    }

    pub fn put_service(&mut self, name: &str, vip: SocketAddr) -> Measured<ServiceKey> {
        let key: ServiceKey = format!("tcp/{name}@marathon:{}", vip.port()).parse()?;
        let SocketAddr::V4(address) = vip else { return Err("not an IPv4 address".into()) };
        let service = Service { ipv4: Some(*address.ip()), ..Service::new(key.clone()) };
        self.view.services.insert(key.clone(), Arc::new(service));
        Ok(key)
    }

    pub fn put_endpoint(&mut self, service: &ServiceKey, address: SocketAddr) {
        let endpoint = Endpoint::new(AgentId::new("agent"), EndpointState::Ready, 100);
        self.view.endpoints.insert(endpoint_key(service, address), Arc::new(endpoint));
    }

    pub fn remove_endpoint(&mut self, service: &ServiceKey, address: SocketAddr) {
        self.view.endpoints.remove(&endpoint_key(service, address));
    }

    /// Puts the view into effect, and says how long that took.
    pub fn apply(&mut self) -> Measured<Duration> {
        self.view.revision = self.view.revision.next();
        let delta = Delta::between(&self.applied, &self.view);
        self.applied = self.view.clone();
        let begun = Instant::now();
        let failures = self.runtime.block_on(self.balancer.apply(&self.view, &delta));
        let took = begun.elapsed();
        if failures.is_empty() { Ok(took) } else { Err(format!("{failures:?}").into()) }
    }
}

fn endpoint_key(service: &ServiceKey, address: SocketAddr) -> EndpointKey {
    let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(address.to_string()));
    EndpointKey { service: service.clone(), task, address }
}
