//! How soon a change is in the table that DNS queries are answered from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet::{DnsServer, DnsServerConfig};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, Discovery, DiscoveryPort,
    Framework, FrameworkId, Resources, Task, TaskId, TaskKey, TaskState, Timestamp,
};

use crate::process::Usage;
use crate::report::{Bar, bar, millis, table};

/// The project's bar for one task that changes among 100,000.
const MILLIS_BAR: f64 = 1.0;

/// Tasks of an app.
const TASKS_PER_APP: u32 = 10;

/// Agents that the tasks are spread over.
const AGENTS: u32 = 1_000;

/// Changes of a round.
const CHANGES: u32 = 1_000;

/// How many rounds there are. The one with the shortest times counts, as the one that other processes disturbed least.
const ROUNDS: usize = 5;

/// Measures and prints.
pub fn run(tasks: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(tasks))
}

async fn measure(tasks: u32) -> anyhow::Result<()> {
    let view = cluster(tasks);
    let empty = ClusterView::empty(view.cluster.clone());
    let mut server =
        DnsServer::start(DnsServerConfig::at(SocketAddr::from(([127, 0, 0, 1], 0))), &Default::default())
            .await?;
    let before = Usage::of_self()?.resident_kib;
    let started = Instant::now();
    server.apply(&view, &Delta::between(&empty, &view));
    let first = started.elapsed();
    let memory = Usage::of_self()?.resident_kib.saturating_sub(before);
    let mut rounds = Vec::new();
    let mut view = view;
    for round in 0..ROUNDS {
        rounds.push(change_tasks(&mut server, &mut view, tasks, round % 2 == 0));
    }
    let best = |at: usize| rounds.iter().map(|costs| costs[costs.len() * at / 100]).min().unwrap_or_default();
    let (half, most) = (best(50), best(99));
    table(&[
        ("tasks", tasks.to_string()),
        ("names with encoded answers", server.fast_name_count().to_string()),
        ("memory of the encoded answers", format!("{} MiB", server.fast_octet_count() >> 20)),
        ("memory of all that the server holds", format!("{} MiB", memory >> 10)),
        ("first view", format!("{:.0} ms", millis(first))),
        ("delta of one task to swapped table, p50", format!("{:.3} ms", millis(half))),
        ("delta of one task to swapped table, p99", format!("{:.3} ms", millis(most))),
    ]);
    bar("zone_delta_p50_ms", millis(half), Bar::Below, MILLIS_BAR);
    bar("zone_delta_p99_ms", millis(most), Bar::Below, MILLIS_BAR);
    Ok(())
}

/// Tasks change their addresses one after the other. How long each change took, sorted.
fn change_tasks(server: &mut DnsServer, view: &mut ClusterView, tasks: u32, move_out: bool) -> Vec<Duration> {
    let mut costs = Vec::with_capacity(CHANGES as usize);
    for change in 0..CHANGES {
        // A step that is prime to the number of tasks spreads the changes over all of them.
        let mut task = task(change * 7_919 % tasks);
        if move_out {
            task.addresses = vec![[10, 9, (change >> 8) as u8, change as u8].into()];
        }
        let old = view.clone();
        view.tasks.insert(task.key.clone(), Arc::new(task));
        view.revision = view.revision.next();
        let delta = Delta::between(&old, view);
        let started = Instant::now();
        server.apply(view, &delta);
        costs.push(started.elapsed());
    }
    costs.sort_unstable();
    costs
}

fn cluster(tasks: u32) -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("c"));
    let framework = FrameworkId::new("fw");
    let entry = Framework {
        id: framework.clone(),
        name: "marathon".to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "host".to_owned(),
        address: None,
        other_addresses: Vec::new(),
        webui_url: None,
        active: true,
        registered_at: Timestamp::default(),
    };
    view.frameworks.insert(framework, Arc::new(entry));
    for at in 0..AGENTS {
        let id = AgentId::new(format!("c-S{at}"));
        let info = AgentInfo {
            hostname: format!("host-{at}"),
            address: [10, 0, (at >> 8) as u8, at as u8].into(),
            port: 5051,
            resources: Resources::default(),
            attributes: Vec::new(),
            container_networks: false,
        };
        let agent = Agent {
            id: id.clone(),
            info,
            state: AgentState::Active,
            draining: false,
            registered_at: Timestamp::default(),
            other_addresses: Vec::new(),
        };
        view.agents.insert(id, Arc::new(agent));
    }
    for task in (0..tasks).map(task) {
        view.tasks.insert(task.key.clone(), Arc::new(task));
    }
    view.revision = view.revision.next();
    view
}

fn task(at: u32) -> Task {
    let name = format!("app-{}.group", at / TASKS_PER_APP);
    let number = 31_000 + (at % 1_000) as u16;
    let port = DiscoveryPort {
        number,
        name: Some("http".to_owned()),
        protocol: "tcp".to_owned(),
        labels: BTreeMap::new(),
    };
    Task {
        key: TaskKey::new(FrameworkId::new("fw"), TaskId::new(format!("group_{name}.instance-{at}"))),
        name: name.clone(),
        agent: AgentId::new(format!("c-S{}", at % AGENTS)),
        state: TaskState::Running,
        resources: Resources { ports: [number].into_iter().collect(), ..Resources::default() },
        discovery: Some(Discovery { name: Some(name), ports: vec![port], ..Discovery::default() }),
        labels: BTreeMap::new(),
        addresses: vec![[9, (at >> 16) as u8, (at >> 8) as u8, at as u8].into()],
        network: None,
        healthy: Some(true),
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}
