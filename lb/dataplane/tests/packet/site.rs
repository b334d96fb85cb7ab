//! A node between clients and servers: three network namespaces and a BPF file system of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::PacketCount;
use mesonet_lb_dataplane::{PacketBalancer, PacketMode, PacketSettings};
use mesonet_lb_plan::{EndpointId, EndpointSpec, RouteState, RouteTable, ServicePolicy, ServiceSpec};
use mesonet_model::{FrameworkId, ServiceKey, TaskId, TaskKey};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The namespaces and their addresses: clients are 10.1.0.2 and fd01::2, servers 10.2.0.2 and fd02::2, the node has the
/// same with 1. Everybody reaches addresses below 11/8 and fd11::/16 through the node.
pub struct Site {
    prefix: String,
    bpffs: PathBuf,
    /// The network namespace that the test came from.
    origin: fs::File,
}

/// Where a thread can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Node,
    Server,
}

impl Site {
    /// With the calling thread in the node's namespace.
    pub fn new() -> Self {
        // Not a process id: these come again, also that of a test that was killed and has left something.
        let prefix = format!("mp{:016x}", RandomState::new().build_hasher().finish());
        let bpffs = std::env::temp_dir().join(&prefix);
        fs::create_dir(&bpffs).expect("a directory");
        run("mount", &["-t", "bpf", "bpf", text(&bpffs)]);
        let origin = fs::File::open("/proc/thread-self/ns/net").expect("the own namespace");
        let site = Self { prefix, bpffs, origin };
        for side in [Side::Client, Side::Node, Side::Server] {
            run("ip", &["netns", "add", &site.name(side)]);
            site.ip(side, "link set lo up");
        }
        site.connect(Side::Client, "clients", 1);
        site.connect(Side::Server, "servers", 2);
        site.set(Side::Node, "net/ipv4/ip_forward", "1");
        site.set(Side::Node, "net/ipv6/conf/all/forwarding", "1");
        site.ip(Side::Client, "route add default via 10.1.0.1");
        site.ip(Side::Client, "-6 route add default via fd01::1");
        site.ip(Side::Server, "route add default via 10.2.0.1");
        site.ip(Side::Server, "-6 route add default via fd02::1");
        site.entry(Side::Node).enter();
        site
    }

    /// A pair of interfaces between the node and another namespace.
    pub fn connect(&self, side: Side, name: &str, network: u8) {
        let (node, other) = (self.name(Side::Node), self.name(side));
        run(
            "ip",
            &["-n", &node, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &other],
        );
        for (side, name, host) in [(Side::Node, name, 1), (side, "eth0", 2)] {
            self.ip(side, &format!("addr add 10.{network}.0.{host}/24 dev {name}"));
            self.ip(side, &format!("addr add fd0{network}::{host}/64 dev {name} nodad"));
            self.ip(side, &format!("link set {name} up"));
        }
    }

    pub fn name(&self, side: Side) -> String {
        let end = match side {
            Side::Client => "client",
            Side::Node => "node",
            Side::Server => "server",
        };
        format!("{}-{end}", self.prefix)
    }

    /// Runs `ip` in a namespace.
    pub fn ip(&self, side: Side, arguments: &str) {
        let name = self.name(side);
        let mut all = vec!["-n", &name];
        all.extend(arguments.split(' '));
        run("ip", &all);
    }

    pub fn set(&self, side: Side, name: &str, value: &str) {
        run(
            "ip",
            &["netns", "exec", &self.name(side), "sh", "-c", &format!("echo {value} >/proc/sys/{name}")],
        );
    }

    /// Changes what the driver of a namespace's interface towards the node does.
    pub fn set_features(&self, side: Side, features: &str) {
        let name = self.name(side);
        let mut all = vec!["netns", "exec", &name, "ethtool", "-K", "eth0"];
        all.extend(features.split(' '));
        run("ip", &all);
    }

    /// The way into a namespace.
    pub fn entry(&self, side: Side) -> Entry {
        Entry(fs::File::open(Path::new("/run/netns").join(self.name(side))).expect("the namespace"))
    }

    /// Where the programs are pinned.
    pub fn pins(&self) -> PathBuf {
        let layouts = fs::read_dir(self.bpffs.join("mesonet")).expect("a directory");
        let inside = layouts.flatten().flat_map(|layout| fs::read_dir(layout.path()).expect("a directory"));
        let all: Vec<PathBuf> = inside.flatten().map(|entry| entry.path()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    pub fn settings(&self, interfaces: &[&str], mode: PacketMode) -> PacketSettings {
        PacketSettings {
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            mode,
            masquerade: false,
            bpffs: self.bpffs.clone(),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        move_into_link_name_space(self.origin.as_fd(), Some(LinkNameSpaceType::Network)).expect("back");
        let _ = PacketBalancer::cleanup(&self.bpffs);
        // A namespace of another test may be being made, which has a copy of it for a moment.
        run("umount", &["--lazy", text(&self.bpffs)]);
        for side in [Side::Client, Side::Node, Side::Server] {
            run("ip", &["netns", "delete", &self.name(side)]);
        }
        let _ = fs::remove_dir(&self.bpffs);
    }
}

/// A network namespace.
pub struct Entry(fs::File);

impl Entry {
    /// Moves the calling thread.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("join");
    }
}

/// A service, its virtual address, and its endpoints.
pub type Wanted<'a> = (&'a str, &'a str, &'a [(&'a str, RouteState)]);

/// A balancer with the routes that a test wants.
pub struct Balancer {
    pub balancer: PacketBalancer,
    routes: RouteTable,
}

impl Balancer {
    pub fn start(settings: &PacketSettings) -> Self {
        let balancer = PacketBalancer::start(settings).expect("the kernel takes the programs");
        Self { balancer, routes: RouteTable::default() }
    }

    /// Makes a service lead to endpoints.
    pub fn put(&mut self, key: &str, vip: &str, endpoints: &[(&str, RouteState)]) {
        self.put_with(ServicePolicy::default(), key, vip, endpoints);
    }

    /// Makes a service lead to endpoints that answer clients directly where they are on other nodes.
    pub fn put_direct(&mut self, key: &str, vip: &str, endpoints: &[(&str, RouteState)]) {
        let policy = ServicePolicy { direct_return: true, ..ServicePolicy::default() };
        self.put_with(policy, key, vip, endpoints);
    }

    /// Makes a service lead to endpoints in some way.
    pub fn put_with(
        &mut self,
        policy: ServicePolicy,
        key: &str,
        vip: &str,
        endpoints: &[(&str, RouteState)],
    ) {
        self.set(key, spec_of(policy, vip, endpoints));
    }

    /// Waits until a new endpoint listens, and gives it flows.
    pub fn wait_for_start(&mut self) {
        let mut started = self.balancer.started();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let keys = loop {
            let keys = self.balancer.take_started();
            if !keys.is_empty() {
                break keys;
            }
            let heard = runtime.block_on(async { tokio::time::timeout(PATIENCE, started.changed()).await });
            heard.expect("an endpoint is asked until it listens").expect("somebody asks");
        };
        assert_eq!(self.balancer.settle(&keys, &self.routes), [].into());
    }

    /// Waits until the node's own addresses towards endpoints are other ones, and goes by them.
    pub fn wait_for_reroute(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let keys = loop {
            let keys = self.balancer.take_rerouted();
            if !keys.is_empty() {
                break keys;
            }
            assert!(Instant::now() < deadline, "the node is given an address");
        };
        assert_eq!(self.balancer.settle(&keys, &self.routes), [].into());
    }

    /// What is said of services with endpoints that no route leads to.
    pub fn unreached(&self) -> Vec<&str> {
        self.balancer.unreached().values().map(String::as_str).collect()
    }

    /// The cluster has nodes at these addresses.
    pub fn set_nodes(&mut self, nodes: &[&str]) -> bool {
        self.balancer.set_nodes(nodes.iter().map(|node| node.parse().expect("an address")).collect())
    }

    /// Makes several services of TCP lead to endpoints at once.
    pub fn put_together(&mut self, services: &[Wanted<'_>]) {
        assert_eq!(self.try_together(services), [].into());
    }

    /// The same, where some may fail. Returns those, and why.
    pub fn try_together(&mut self, services: &[Wanted<'_>]) -> BTreeMap<ServiceKey, String> {
        let keys = services.iter().map(|(key, vip, endpoints)| {
            let key: ServiceKey = key.parse().expect("a key");
            self.routes.set(key.clone(), spec_of(ServicePolicy::default(), vip, endpoints));
            key
        });
        let keys: BTreeSet<ServiceKey> = keys.collect();
        self.balancer.settle(&keys, &self.routes)
    }

    /// What is counted of the endpoints of a virtual address.
    pub fn counts(&self, protocol: &str, vip: &str) -> Vec<(SocketAddr, PacketCount)> {
        self.balancer.counts(protocol.parse().expect("a protocol"), address(vip))
    }

    /// Ends a service.
    pub fn remove(&mut self, key: &str) {
        self.set(key, ServiceSpec::default());
    }

    fn set(&mut self, key: &str, spec: ServiceSpec) {
        let key: ServiceKey = key.parse().expect("a key");
        self.routes.set(key.clone(), spec);
        assert_eq!(self.balancer.settle(&BTreeSet::from([key]), &self.routes), [].into());
    }
}

fn spec_of(policy: ServicePolicy, vip: &str, endpoints: &[(&str, RouteState)]) -> ServiceSpec {
    let mut spec = ServiceSpec { policy, ..ServiceSpec::default() };
    spec.listeners.insert(address(vip));
    for (at, state) in endpoints {
        let id = EndpointId { task: task(at), address: address(at) };
        spec.endpoints.insert(id, EndpointSpec { state: *state, weight: 1 });
    }
    spec
}

/// The task at an address.
pub fn task(at: &str) -> TaskKey {
    TaskKey::new(FrameworkId::new("framework"), TaskId::new(at))
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

/// Runs a program and returns what it says.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
