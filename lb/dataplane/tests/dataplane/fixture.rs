//! A load balancer with a view that tests change, and endpoints that say who they are.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::{EbpfSettings, LoadBalancer, PacketBalancer};
use mesonet_model::{
    AgentId, ClusterId, ClusterView, Delta, Endpoint, EndpointKey, EndpointState, FrameworkId, Service,
    ServiceKey, TaskId, TaskKey,
};
use socket2::{Domain, Socket, Type};

/// Nothing here takes long; a test that waits for this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A load balancer and the view that it follows.
pub struct Node {
    pub balancer: LoadBalancer,
    pub registry: prometheus::Registry,
    pub view: ClusterView,
    applied: ClusterView,
}

impl Node {
    pub fn proxy() -> Self {
        let registry = prometheus::Registry::new();
        let balancer = LoadBalancer::proxy(&registry);
        Self::new(balancer, registry)
    }

    pub fn memory() -> Self {
        let registry = prometheus::Registry::new();
        let balancer = LoadBalancer::memory(&registry);
        Self::new(balancer, registry)
    }

    /// Must be called within a runtime.
    pub fn ebpf(settings: &EbpfSettings) -> Self {
        let registry = prometheus::Registry::new();
        let balancer = LoadBalancer::ebpf(settings, &registry).expect("the kernel takes the programs");
        Self::new(balancer, registry)
    }

    /// The same, with a proxy for whom the hooks do not see.
    pub fn with_proxy_beside(self) -> Self {
        Self { balancer: self.balancer.with_proxy_beside(), ..self }
    }

    /// The same, on the node with a name.
    pub fn on_node(self, name: &str) -> Self {
        Self { balancer: self.balancer.on_node(AgentId::new(name)), ..self }
    }

    pub fn with_packets(self, packets: PacketBalancer) -> Self {
        Self { balancer: self.balancer.with_packets(packets), ..self }
    }

    fn new(balancer: LoadBalancer, registry: prometheus::Registry) -> Self {
        let view = ClusterView::empty(ClusterId::new("cluster"));
        Self { balancer, registry, applied: view.clone(), view }
    }

    /// Puts a service into the view; its key has the port of the address.
    pub fn put_service(&mut self, protocol: &str, name: &str, address: SocketAddr) -> ServiceKey {
        let key: ServiceKey = format!("{protocol}/{name}@marathon:{}", address.port()).parse().expect("key");
        let (ipv4, ipv6) = match address.ip() {
            IpAddr::V4(ipv4) => (Some(ipv4), None),
            IpAddr::V6(ipv6) => (None, Some(ipv6)),
        };
        let service = Service { ipv4, ipv6, ..Service::new(key.clone()) };
        self.view.services.insert(key.clone(), Arc::new(service));
        key
    }

    pub fn put_endpoint(
        &mut self,
        service: &ServiceKey,
        task: &str,
        address: SocketAddr,
        state: EndpointState,
    ) {
        let endpoint = Endpoint::new(AgentId::new("agent"), state, 1);
        self.view.endpoints.insert(endpoint_key(service, task, address), Arc::new(endpoint));
    }

    /// Gives an endpoint that is in the view another weight.
    pub fn set_weight(&mut self, service: &ServiceKey, task: &str, address: SocketAddr, weight: u32) {
        let key = endpoint_key(service, task, address);
        let endpoint = self.view.endpoints.get(&key).expect("the endpoint is in the view");
        let endpoint = Endpoint { weight, ..(**endpoint).clone() };
        self.view.endpoints.insert(key, Arc::new(endpoint));
    }

    pub fn remove_endpoint(&mut self, service: &ServiceKey, task: &str, address: SocketAddr) {
        self.view
            .endpoints
            .remove(&endpoint_key(service, task, address))
            .expect("the endpoint is in the view");
    }

    pub async fn apply(&mut self) -> BTreeMap<ServiceKey, String> {
        self.view.revision = self.view.revision.next();
        let delta = Delta::between(&self.applied, &self.view);
        self.applied = self.view.clone();
        self.balancer.apply(&self.view, &delta).await
    }

    /// The balancer has not heard of the changes so far: the next delta starts at a revision that it does not have.
    pub fn lose_deltas(&mut self) {
        self.view.revision = self.view.revision.next();
        self.applied = self.view.clone();
    }

    /// The value of a counter or gauge, summed over the labels that are not given.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let metrics =
            families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        metrics
            .filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label))
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}

pub fn task(name: &str) -> TaskKey {
    TaskKey::new(FrameworkId::new("framework"), TaskId::new(name))
}

fn endpoint_key(service: &ServiceKey, name: &str, address: SocketAddr) -> EndpointKey {
    EndpointKey { service: service.clone(), task: task(name), address }
}

/// A name for what a test makes in the kernel. It has no process id: these come again, also that of a test that was
/// killed and has left something.
pub fn unique(test: &str) -> String {
    format!("mesonet-{:016x}-{test}", RandomState::new().build_hasher().finish())
}

/// An address in the range of VIPs that nobody else uses: each call has an address of its own, with a free port.
pub fn vip() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let third = u8::try_from(std::process::id() % 256).expect("less than 256");
    let address = Ipv4Addr::new(127, 11, third, NEXT.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((address, 0)).and_then(|socket| socket.local_addr()).expect("a free port")
}

pub fn vip6() -> SocketAddr {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a free port")
}

/// Where nobody listens. The port stays taken, so that no other test comes to listen there.
pub fn dead_address() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    std::mem::forget(socket);
    address
}

/// A server that runs a function for each connection, until the process ends.
pub fn serve(each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    serve_at("127.0.0.1", each)
}

fn serve_at(host: &str, each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    address
}

/// A server that sends its name and then echoes.
pub fn serve_name(name: &'static str) -> SocketAddr {
    serve_name_at("127.0.0.1", name)
}

/// Such a server at another address.
pub fn serve_name_at(host: &str, name: &'static str) -> SocketAddr {
    serve_at(host, move |mut stream| {
        let mut buffer = [0; 4096];
        let mut result = stream.write_all(name.as_bytes());
        while result.is_ok() {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => result = stream.write_all(&buffer[..count]),
            }
        }
    })
}

pub fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).expect("the service listens")
}

fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads one name of one letter.
pub fn read_name(stream: &mut TcpStream) -> io::Result<char> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(char::from(byte[0]))
}

/// What a new connection says, to its end. One that is reset may end before it is known to be there.
pub fn ask(address: SocketAddr) -> io::Result<char> {
    let mut stream = try_connect(address)?;
    let name = read_name(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(name)
}

/// Sends a letter and expects it back.
pub fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"!").is_ok() && read_name(stream).is_ok_and(|echo| echo == '!')
}

/// Waits until something is true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}
