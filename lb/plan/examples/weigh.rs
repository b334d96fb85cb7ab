//! What it takes to weigh all services of a large cluster on one node: `cargo run --release -p mesonet-lb-plan --example weigh`.

use std::sync::Arc;
use std::time::Instant;

use mesonet_lb_plan::{Observed, Vantage, weigh};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, Attribute, ClusterId, ClusterView, Endpoint, EndpointKey,
    EndpointState, FrameworkId, NODE_ATTRIBUTE, Resources, Service, TaskId, TaskKey, Timestamp,
};

const AGENTS: u32 = 10_000;
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 3;

fn main() {
    let view = view();
    let node = AgentId::new(format!("node-{}", AGENTS / 2));
    let for_all = |what: &str, vantage: &dyn Fn() -> Vantage| {
        let started = Instant::now();
        let weighed = view.services.values().map(|service| {
            weigh(&view, service, &vantage(), &Observed::default(), Timestamp::default()).endpoints.len()
        });
        let endpoints: usize = weighed.sum();
        println!("{what}: {endpoints} endpoints in {:.3} s", started.elapsed().as_secs_f64());
    };
    println!("{AGENTS} agents, {SERVICES} services");
    for_all("the node looked for once for each service", &|| Vantage::of(&view, &node));
    let vantage = Vantage::of(&view, &node);
    for_all("the node looked for once", &|| vantage.clone());
}

fn view() -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("measured"));
    for number in 0..AGENTS {
        let agent = agent(number);
        view.agents.insert(agent.id.clone(), Arc::new(agent));
    }
    for number in 0..SERVICES {
        let key: mesonet_model::ServiceKey = format!("tcp/app-{number}@marathon:80").parse().expect("a key");
        view.services.insert(key.clone(), Arc::new(Service::new(key.clone())));
        for endpoint in 0..ENDPOINTS {
            let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("app-{number}.{endpoint}")));
            let at = number * ENDPOINTS + endpoint;
            let address = ([10, (at >> 16) as u8, (at >> 8) as u8, at as u8], 80).into();
            let agent = AgentId::new(format!("agent-{}", at % AGENTS));
            let key = EndpointKey { service: key.clone(), task, address };
            view.endpoints.insert(key, Arc::new(Endpoint::new(agent, EndpointState::Ready, 1)));
        }
    }
    view
}

fn agent(number: u32) -> Agent {
    let attribute = Attribute { name: NODE_ATTRIBUTE.to_owned(), value: format!("node-{number}") };
    Agent {
        id: AgentId::new(format!("agent-{number}")),
        info: AgentInfo {
            hostname: format!("host-{number}"),
            address: [10, 0, (number >> 8) as u8, number as u8].into(),
            port: 0,
            resources: Resources::default(),
            container_networks: false,
            attributes: vec![attribute],
        },
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    }
}
