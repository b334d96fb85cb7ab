//! Prints what it costs to follow a change of one task, at several sizes of the cluster and of its apps.
//!
//! Run with `cargo run --release -p mesonet-dns-zone --example delta_cost`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_dns_zone::{Config, ZoneFollower};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, Discovery, DiscoveryPort,
    Framework, FrameworkId, Resources, Task, TaskId, TaskKey, TaskState, Timestamp,
};

/// How often one task changes.
const CHANGES: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{:>8} {:>8} {:>9} {:>10} {:>10} {:>10}",
        "tasks", "per app", "records", "first view", "p50", "p99"
    );
    for (tasks, per_app) in [(1_000, 10), (1_000, 1_000), (100_000, 10), (100_000, 1_000), (100_000, 10_000)]
    {
        let mut view = cluster(tasks, per_app);
        let empty = ClusterView::empty(view.cluster.clone());
        let mut follower = ZoneFollower::new(&Config::default(), &[])?;
        let started = Instant::now();
        follower.apply(&view, &Delta::between(&empty, &view));
        let first = started.elapsed();
        let mut costs: Vec<Duration> = Vec::with_capacity(CHANGES);
        for change in 0..CHANGES {
            let mut task = task(change * 7919 % tasks, per_app);
            task.healthy = Some(change % 2 == 0);
            let old = view.clone();
            view.tasks.insert(task.key.clone(), Arc::new(task));
            view.revision = view.revision.next();
            let delta = Delta::between(&old, &view);
            // What the server does: the snapshot before is still in use when the new one replaces it.
            let before = follower.zone();
            let started = Instant::now();
            follower.apply(&view, &delta);
            let zone = follower.zone();
            costs.push(started.elapsed());
            drop((before, zone));
        }
        costs.sort();
        let records = follower.zone().record_count();
        let (half, worst) = (costs[CHANGES / 2], costs[CHANGES * 99 / 100]);
        println!("{tasks:>8} {per_app:>8} {records:>9} {first:>10.1?} {half:>10.1?} {worst:>10.1?}");
    }
    Ok(())
}

fn cluster(tasks: usize, per_app: usize) -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("c"));
    let framework = FrameworkId::new("fw");
    let entry = Framework {
        id: framework.clone(),
        name: "marathon".to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "host".to_owned(),
        address: None,
        webui_url: None,
        other_addresses: Vec::new(),
        active: true,
        registered_at: Timestamp::default(),
    };
    view.frameworks.insert(framework, Arc::new(entry));
    for at in 0..AGENTS {
        let id = AgentId::new(format!("c-S{at}"));
        let info = AgentInfo {
            hostname: format!("host-{at}"),
            address: [10, 0, (at / 256) as u8, (at % 256) as u8].into(),
            port: 5051,
            resources: Resources::default(),
            attributes: Vec::new(),
            container_networks: false,
        };
        let state = AgentState::Active;
        let agent = Agent {
            id: id.clone(),
            info,
            other_addresses: Vec::new(),
            state,
            draining: false,
            registered_at: Timestamp::default(),
        };
        view.agents.insert(id, Arc::new(agent));
    }
    for at in 0..tasks {
        let task = task(at, per_app);
        view.tasks.insert(task.key.clone(), Arc::new(task));
    }
    view.revision = view.revision.next();
    view
}

/// How many agents the tasks are spread over.
const AGENTS: usize = 1000;

fn task(at: usize, per_app: usize) -> Task {
    let app = at / per_app;
    let name = format!("app-{app}.group");
    let number = 31_000 + (at % 1000) as u16;
    let port = DiscoveryPort {
        number,
        name: Some("http".to_owned()),
        protocol: "tcp".to_owned(),
        labels: BTreeMap::new(),
    };
    Task {
        key: TaskKey::new(FrameworkId::new("fw"), TaskId::new(format!("group_app-{app}.instance-{at}"))),
        name: name.clone(),
        agent: AgentId::new(format!("c-S{}", at % AGENTS)),
        state: TaskState::Running,
        resources: Resources { ports: [number].into_iter().collect(), ..Resources::default() },
        discovery: Some(Discovery { name: Some(name), ports: vec![port], ..Discovery::default() }),
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        healthy: Some(true),
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        network: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}
