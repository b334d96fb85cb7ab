//! What a balancer says about itself when it is asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesonet_lb_plan::{Choice, Deviation, EndpointCount, EndpointId, ServicePolicy, Weighed};
use mesonet_model::{Protocol, ServiceKey};
use tokio::sync::{mpsc, oneshot};

use crate::PacketAnswer;

/// Questions that wait at most. Whoever asks further ones waits: answers take milliseconds.
const QUESTIONS_MAX: usize = 16;

/// Asks a balancer, which is elsewhere. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Inspector(mpsc::Sender<Question>);

/// What a balancer is asked; [`crate::LoadBalancer::answer`] answers.
#[derive(Debug)]
pub enum Question {
    /// What it does.
    Routes(oneshot::Sender<Routes>),
    /// Where a connection would go.
    Explain(Connection, oneshot::Sender<Option<Explained>>),
}

/// A connection that somebody may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The client. The port is 0 if it does not matter.
    pub client: SocketAddr,
    /// The virtual address and port.
    pub to: SocketAddr,
}

/// What a balancer does.
#[derive(Debug, Clone)]
pub struct Routes {
    /// What carries the connections.
    pub datapath: Datapath,
    /// Every service.
    pub services: BTreeMap<ServiceKey, ServiceRoutes>,
}

/// What carries the connections, and why that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datapath {
    /// `ebpf`, `proxy` or `memory`.
    pub name: &'static str,
    /// Why it was chosen.
    pub why: String,
    /// Where packets from outside are balanced, too, and why there, or why they are not although they should be.
    pub packets: Vec<String>,
    /// What serves whoever that does not see, and why.
    pub beside: Option<String>,
    /// What is not in its place in the kernel, and why.
    pub trouble: Option<String>,
}

/// What carries one connection. Several may stand side by side, each for its own clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Hooks of a cgroup, in the kernel.
    Hooks,
    /// The programs for packets from outside.
    Packets,
    /// The proxy.
    Proxy,
    /// Nothing.
    Nothing,
}

/// What a balancer does for one service.
#[derive(Debug, Clone)]
pub struct ServiceRoutes {
    /// Where clients reach it.
    pub listeners: Vec<SocketAddr>,
    /// How connections are spread.
    pub policy: ServicePolicy,
    /// Its endpoints with their weights and the reasons.
    pub weighed: Weighed,
    /// What connections to its endpoints have come to.
    pub counts: BTreeMap<EndpointId, EndpointCount>,
    /// Endpoints that take part otherwise than that says, where hooks in the kernel choose.
    pub deviations: BTreeMap<EndpointId, Deviation>,
    /// The same, where packets from outside are balanced.
    pub packet_deviations: BTreeMap<EndpointId, Deviation>,
    /// Why it is not in effect, if it is not.
    pub failure: Option<String>,
}

/// Where a connection would go.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The service of the address.
    pub service: ServiceKey,
    /// Its routes.
    pub routes: ServiceRoutes,
    /// Endpoints that what carries it cannot reach or leaves out, and why.
    pub excluded: BTreeMap<EndpointId, &'static str>,
    /// The endpoint, or the chances of several.
    pub choice: Choice,
    /// What carries it.
    pub carrier: Carrier,
    /// Why that.
    pub carrier_why: String,
    /// What carries connections on the node.
    pub datapath: Datapath,
    /// What the loaded program for packets from outside says, if there is one.
    pub confirmed: Option<PacketAnswer>,
}

/// The two ends of asking: one for those who ask, one for the balancer's task.
pub fn inspection() -> (Inspector, mpsc::Receiver<Question>) {
    let (questions, at_balancer) = mpsc::channel(QUESTIONS_MAX);
    (Inspector(questions), at_balancer)
}

impl Inspector {
    /// What the balancer does; `None` if it is gone.
    pub async fn routes(&self) -> Option<Routes> {
        let (answer, routes) = oneshot::channel();
        self.0.send(Question::Routes(answer)).await.ok()?;
        routes.await.ok()
    }

    /// Where a connection would go; `None` if its address is not that of a service, or the balancer is gone.
    pub async fn explain(&self, connection: Connection) -> Option<Explained> {
        let (answer, explained) = oneshot::channel();
        self.0.send(Question::Explain(connection, answer)).await.ok()?;
        explained.await.ok()?
    }
}

impl Carrier {
    /// For programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Packets => "packets",
            Self::Proxy => "proxy",
            Self::Nothing => "nothing",
        }
    }
}

impl Connection {
    /// The client's address.
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip()
    }
}
