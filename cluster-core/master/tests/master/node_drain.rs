//! Agents that an operator wants empty or gone.

use std::collections::BTreeSet;
use std::time::Duration;

use mesonet_master::{Effect, Input};
use mesonet_model::{AgentId, Plane, Revision, RunningTask, SchedulerEvent, TaskState};

use crate::cluster::{Cluster, GRACE, agent_info, host_port};

/// The agents of the latest word on which are to be empty.
fn draining(cluster: &mut Cluster) -> Option<BTreeSet<AgentId>> {
    let said = std::mem::take(&mut cluster.said);
    said.into_iter().rev().find_map(|effect| match effect {
        Effect::Framework { event: SchedulerEvent::Draining(agents), .. } => Some(agents),
        _ => None,
    })
}

#[test]
fn a_draining_agent_is_not_offered_until_it_is_undrained() {
    let mut cluster = Cluster::new();
    let framework = cluster.framework.clone();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.handle(Input::DrainNode { agent: agent.clone() });
    assert_eq!(cluster.take_offers(&framework), [], "its offers are rescinded");
    assert_eq!(draining(&mut cluster), Some(BTreeSet::from([agent.clone()])));
    assert!(cluster.view().agents[&agent].draining);

    cluster.restart();
    cluster.subscribe("marathon");
    assert_eq!(draining(&mut cluster), Some(BTreeSet::from([agent.clone()])), "it survives the master");
    cluster.register(Some(&agent), agent_info(1, 8), Vec::new());
    assert_eq!(cluster.take_offers(&framework), []);

    cluster.handle(Input::UndrainNode { agent: agent.clone() });
    assert_eq!(cluster.take_offers(&framework).len(), 1);
    cluster.handle(Input::DrainNode { agent: agent.clone() });
    cluster.handle(Input::UndrainNode { agent });
    assert_eq!(draining(&mut cluster), Some(BTreeSet::new()));
}

#[test]
fn draining_what_is_not_there_or_twice_changes_nothing() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.handle(Input::DrainNode { agent: agent.clone() });
    let before = cluster.view().revision;
    cluster.handle(Input::DrainNode { agent });
    for agent in ["c-S7", ""].map(AgentId::new) {
        cluster.handle(Input::DrainNode { agent: agent.clone() });
        cluster.handle(Input::UndrainNode { agent: agent.clone() });
        cluster.handle(Input::RemoveNode { agent });
    }
    assert_eq!(cluster.view().revision, before);
}

#[test]
fn a_removed_agent_is_gone_with_its_tasks_and_a_stranger_when_it_comes_back() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.updates();
    cluster.disconnect(&agent);
    cluster.handle(Input::RemoveNode { agent: agent.clone() });
    assert_eq!(cluster.update_states(), [TaskState::GoneByOperator]);
    let view = cluster.view();
    assert!(view.agents.is_empty() && view.tasks.is_empty() && view.endpoints.is_empty());
    cluster.pass(Duration::from_secs(3600));
    cluster.restart();
    cluster.subscribe("marathon");
    cluster.kills();
    let spec = cluster.spec(&agent, "a", Vec::new());
    let status = cluster.status(&agent, "a", TaskState::Running);
    let task = RunningTask { spec, status };
    let other = cluster.register(Some(&agent), agent_info(1, 8), vec![task]);
    assert_ne!(other, agent);
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_label_says_how_long_a_task_may_drain() {
    let default = GRACE.as_secs();
    for (labels, expected, warns) in [
        (vec![None], default, false),
        (vec![Some("60")], 60, false),
        (vec![Some("2")], 2, false),
        (vec![Some("2"), None], default, false),
        (vec![Some("20"), None], 20, false),
        (vec![Some("3600")], 3600, false),
        (vec![Some("3601")], default, true),
        (vec![Some("-1")], default, true),
        (vec![Some("soon")], default, true),
    ] {
        let mut cluster = Cluster::new();
        let agent = cluster.register(None, agent_info(1, 8), Vec::new());
        let ports = labels.iter().zip(31000..).map(|(label, port)| {
            let mut port = host_port(port, &format!("/web:{port}"));
            port.labels.extend(label.map(|label| ("MESONET_LB_DRAIN_SECONDS".to_owned(), label.to_owned())));
            port
        });
        let spec = cluster.spec(&agent, "a", ports.collect());
        cluster.launch(spec);
        cluster.report("a", TaskState::Running);
        assert_eq!(!cluster.warnings().is_empty(), warns, "{labels:?}");
        cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
        cluster.kill("a");
        cluster.pass(Duration::from_secs(expected) - Duration::from_millis(1));
        assert_eq!(cluster.kills(), Vec::<String>::new(), "{labels:?}");
        cluster.pass(Duration::from_millis(1));
        assert_eq!(cluster.kills(), ["a"], "{labels:?}");
    }
}
