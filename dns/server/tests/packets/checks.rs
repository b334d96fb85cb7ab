//! A small zone, and what must hold for any packet. The fuzz targets (`dns/server/fuzz`) use the same.

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Record;
use mesonet_dns_server::Probe;
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Framework, FrameworkId, Master, MasterId,
    Resources, Task, TaskId, TaskKey, TaskState, Timestamp,
};

/// The largest message over UDP (DNS flag day 2020).
const LENGTH_MAX: usize = 1232;

/// Tasks named web: more than fit into the smallest answer.
const TASKS: u8 = 40;

/// Both paths of a zone with masters, an agent and many tasks of one name.
pub fn probe() -> Probe {
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
    view.frameworks.insert(framework.clone(), Arc::new(entry));
    for at in 0..3 {
        let id = MasterId::new(format!("m{at}"));
        let address = ([10, 0, 1, at], 5050).into();
        view.masters
            .insert(id.clone(), Arc::new(Master { id, address, leading: at == 0, removal_held: false }));
    }
    let agent = AgentId::new("c-S0");
    let info = AgentInfo {
        hostname: "host".to_owned(),
        address: [10, 0, 0, 1].into(),
        port: 5051,
        resources: Resources::default(),
        attributes: Vec::new(),
        container_networks: false,
    };
    let entry = Agent {
        id: agent.clone(),
        info,
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
        other_addresses: Vec::new(),
    };
    view.agents.insert(agent.clone(), Arc::new(entry));
    for at in 0..TASKS {
        let task = task(&framework, &agent, at);
        view.tasks.insert(task.key.clone(), Arc::new(task));
    }
    view.revision = view.revision.next();
    Probe::new(&view).expect("default settings")
}

fn task(framework: &FrameworkId, agent: &AgentId, at: u8) -> Task {
    let name = if at == 0 { "one" } else { "web" };
    Task {
        key: TaskKey::new(framework.clone(), TaskId::new(format!("{name}.{at}"))),
        name: name.to_owned(),
        agent: agent.clone(),
        state: TaskState::Running,
        resources: Resources {
            ports: [31_000 + u16::from(at)].into_iter().collect(),
            ..Resources::default()
        },
        discovery: None,
        labels: Default::default(),
        addresses: vec![
            [9, 0, 0, at].into(),
            std::net::Ipv6Addr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(at)]).into(),
        ],
        network: None,
        healthy: None,
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}

/// What the fast path takes for a query is one.
pub fn check_parser(probe: &Probe, packet: &[u8]) {
    if probe.is_known(packet) {
        let answer = probe.full(packet).expect("a query has an answer");
        let read = Message::from_vec(&answer).expect("it can be read");
        assert_ne!(read.metadata.response_code, ResponseCode::FormErr, "{packet:?}");
    }
}

/// What the fast path answers can be read, is short enough and is what the full path answers.
pub fn check_fast_path(probe: &Probe, packet: &[u8]) {
    if let Some(answer) = probe.fast(packet) {
        check_answer(packet, &answer);
        let expected = probe.full(packet).expect("the full path has an answer too");
        assert_eq!(parts(&answer), parts(&expected), "{packet:?}");
    }
}

/// What the full path answers can be read and is short enough.
pub fn check_full_path(probe: &Probe, packet: &[u8]) {
    if let Some(answer) = probe.full(packet) {
        check_answer(packet, &answer);
    }
}

fn check_answer(packet: &[u8], answer: &[u8]) {
    assert!(answer.len() <= LENGTH_MAX, "{packet:?}");
    assert_eq!(answer.get(..2), packet.get(..2), "{packet:?}");
    assert!(Message::from_vec(answer).is_ok(), "{answer:?} to {packet:?}");
}

/// A message without what may differ: compression and the order of records.
fn parts(message: &[u8]) -> (Vec<u8>, Vec<String>, [Vec<String>; 3], String) {
    let read = Message::from_vec(message).expect("an answer can be read");
    let sorted = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(|record| format!("{record:?}")).collect();
        lines.sort();
        lines
    };
    let queries = read.queries.iter().map(|query| format!("{query:?}")).collect();
    let sections = [&read.answers, &read.authorities, &read.additionals].map(|section| sorted(section));
    (message[..12].to_vec(), queries, sections, format!("{:?}", read.edns))
}
