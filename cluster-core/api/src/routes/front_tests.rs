//! What the dcos command line is told of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesonet_model::{
    Agent, AgentId, Framework, FrameworkId, Resources, Task, TaskId, TaskKey, TaskState, Timestamp,
};

use super::fixture::Fixture;
use super::state_tests::add_agent;

fn framework(id: FrameworkId) -> Framework {
    Framework {
        id,
        name: "marathon".to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "127.0.0.1".to_owned(),
        address: None,
        other_addresses: Vec::new(),
        webui_url: None,
        active: true,
        registered_at: Timestamp::default(),
    }
}

fn task(key: TaskKey, agent: AgentId, state: TaskState) -> Task {
    Task {
        key,
        name: "web".to_owned(),
        agent,
        state,
        resources: Resources::default(),
        discovery: None,
        labels: BTreeMap::new(),
        addresses: Vec::new(),
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

#[tokio::test]
async fn tasks_are_counted_by_agent_and_framework() {
    let fixture = Fixture::new();
    fixture.change(|state| {
        add_agent(state);
        let first = state.cluster.agents.values().next().expect("an agent").as_ref().clone();
        let second = Agent { id: AgentId::new("c-S1"), ..first };
        state.cluster.agents.insert(second.id.clone(), Arc::new(second));
        for id in ["c-0000", "c-0001"].map(FrameworkId::new) {
            state.cluster.frameworks.insert(id.clone(), Arc::new(framework(id)));
        }
        for (framework, number, agent, task_state) in [
            ("c-0000", 1, "c-S0", TaskState::Running),
            ("c-0000", 2, "c-S1", TaskState::Running),
            ("c-0000", 3, "c-S1", TaskState::Staging),
            ("c-0001", 1, "c-S1", TaskState::Running),
        ] {
            let key = TaskKey::new(FrameworkId::new(framework), TaskId::new(format!("web.{number}")));
            let agent = AgentId::new(agent);
            state.cluster.tasks.insert(key.clone(), Arc::new(task(key, agent, task_state)));
        }
    });
    let summary = fixture.get("/mesos/state-summary").await.json();
    let counts = |list: &str, id: &str| {
        let all = summary[list].as_array().expect("a list");
        let found = all.iter().find(|each| each["id"] == id).expect(id);
        ["TASK_RUNNING", "TASK_STAGING", "TASK_FAILED"].map(|state| found[state].as_u64().expect(state))
    };
    assert_eq!((counts("slaves", "c-S0"), counts("slaves", "c-S1")), ([1, 0, 0], [2, 1, 0]));
    assert_eq!((counts("frameworks", "c-0000"), counts("frameworks", "c-0001")), ([2, 1, 0], [1, 0, 0]));
}
