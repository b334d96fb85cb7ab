//! Agents that are lost, for a moment or for good.

use std::time::Duration;

use mesonet_master::{Effect, Input};
use mesonet_model::{
    AgentId, AgentState, Plane, RunningTask, SchedulerCall, StatusReason, TaskId, TaskState, TaskStatus,
};

use crate::cluster::{Cluster, agent_info};

const WEB: &str = "tcp/web@marathon:80";
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);
const REMOVED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const WINDOW: Duration = Duration::from_secs(30);

/// Agents that each run one task of one service: `t1` on 10.0.0.1, and so on.
fn cluster_with_agents(count: u8) -> (Cluster, Vec<AgentId>) {
    let mut cluster = Cluster::new();
    let mut agents = Vec::new();
    for n in 1..=count {
        let agent = cluster.register(None, agent_info(n, 8), Vec::new());
        cluster.run(&agent, &format!("t{n}"), 31000, "/web:80");
        agents.push(agent);
    }
    cluster.updates();
    cluster.commands();
    (cluster, agents)
}

/// The agent registers again with its one task, about which it says what it has said before.
fn come_back(cluster: &mut Cluster, agents: &[AgentId], n: usize, status: TaskStatus) {
    let agent = &agents[n - 1];
    let spec = cluster.spec(agent, &format!("t{n}"), Vec::new());
    let info = agent_info(u8::try_from(n).expect("few"), 8);
    cluster.register(Some(agent), info, vec![RunningTask { spec, status }]);
}

fn running(cluster: &mut Cluster, agents: &[AgentId], n: usize) -> TaskStatus {
    cluster.status(&agents[n - 1], &format!("t{n}"), TaskState::Running)
}

#[test]
fn a_lost_agent_gets_no_new_clients_at_once_and_its_tasks_are_given_up_later() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    assert_eq!(cluster.view().agents[&agents[0]].state, AgentState::Suspect);
    let weighed = ["10.0.0.1:31000 ready 0", "10.0.0.2:31000 ready 1", "10.0.0.3:31000 ready 1"];
    assert_eq!(cluster.endpoint_texts(WEB), weighed);
    cluster.pass(UNREACHABLE_AFTER - Duration::from_millis(1));
    assert_eq!(cluster.updates(), []);
    cluster.pass(Duration::from_millis(1));
    let updates = cluster.updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].state, TaskState::Unreachable);
    assert_eq!(updates[0].reason, Some(StatusReason::ReasonAgentRemoved));
    assert_eq!(updates[0].message, "agent node1 does not answer");
    assert_eq!(cluster.view().agents[&agents[0]].state, AgentState::Unreachable);
    assert_eq!(cluster.endpoint_texts(WEB), weighed, "it may serve those who have nothing better");
}

#[test]
fn a_suspect_task_serves_where_nothing_better_is_left() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    cluster.report("t2", TaskState::Failed);
    let unready =
        |ready| SchedulerCall::SetServing { task: TaskId::new("t3"), healthy: None, ready: Some(ready) };
    cluster.call(unready(false));
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 ready 1", "10.0.0.3:31000 ready 0"]);
    cluster.call(unready(true));
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 ready 0", "10.0.0.3:31000 ready 1"]);
    cluster.disconnect(&agents[2]);
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 ready 1", "10.0.0.3:31000 ready 1"]);
    let status = running(&mut cluster, &agents, 1);
    come_back(&mut cluster, &agents, 1, status);
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 ready 1", "10.0.0.3:31000 ready 0"]);
}

#[test]
fn an_agent_that_comes_back_has_everything_again() {
    for wait in [Duration::from_secs(1), UNREACHABLE_AFTER, Duration::from_secs(3600)] {
        let (mut cluster, agents) = cluster_with_agents(3);
        let status = cluster.report("t1", TaskState::Running);
        cluster.call(SchedulerCall::Acknowledge { status: Box::new(status.clone()) });
        let before = cluster.view().clone();
        cluster.disconnect(&agents[0]);
        cluster.pass(wait);
        come_back(&mut cluster, &agents, 1, status);
        let after = cluster.view();
        assert_eq!((&after.agents, &after.endpoints), (&before.agents, &before.endpoints), "{wait:?}");
        let task = cluster.task("t1").expect("adopted");
        assert_eq!((task.state, task.suspect), (TaskState::Running, false));
        let last = cluster.update_states().last().copied();
        assert_eq!(last, Some(TaskState::Running), "the framework hears of it, {wait:?}");
        assert_eq!(cluster.kills(), Vec::<String>::new());
    }
}

#[test]
fn a_task_given_up_and_killed_meanwhile_is_killed_when_its_agent_comes_back() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER);
    cluster.kill("t1");
    cluster.commands();
    let status = running(&mut cluster, &agents, 1);
    come_back(&mut cluster, &agents, 1, status);
    assert!(cluster.kills().contains(&"t1".to_owned()));
    assert_eq!(cluster.endpoint_texts(WEB)[0], "10.0.0.1:31000 draining 0", "it is not served again before");
}

#[test]
fn the_kill_of_an_unreachable_task_waits_for_the_planes() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.plane(&agents[1], Plane::Lb, cluster.view().revision, &["t1"]);
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER);
    cluster.kill("t1");
    let status = running(&mut cluster, &agents, 1);
    come_back(&mut cluster, &agents, 1, status);
    assert_eq!(cluster.kills(), Vec::<String>::new(), "other nodes may have sent clients to it all the time");
    cluster.plane(&agents[1], Plane::Lb, cluster.view().revision, &[]);
    assert_eq!(cluster.kills(), ["t1"]);
}

#[test]
fn what_a_lost_agent_said_before_is_left_until_it_registers() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER);
    let before = cluster.view().revision;
    cluster.report("t1", TaskState::Running);
    assert_eq!(cluster.view().revision, before);
    let status = cluster.status(&agents[0], "t1", TaskState::Failed);
    come_back(&mut cluster, &agents, 1, status);
    assert!(cluster.task("t1").is_none());
    assert_eq!(cluster.update_states(), [TaskState::Unreachable, TaskState::Failed]);
}

#[test]
fn a_master_that_begins_waits_before_it_suspects_anybody() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.restart();
    cluster.subscribe("marathon");
    let before = cluster.view().endpoints.clone();
    let status = running(&mut cluster, &agents, 2);
    come_back(&mut cluster, &agents, 2, status);
    let status = running(&mut cluster, &agents, 3);
    come_back(&mut cluster, &agents, 3, status);
    cluster.pass(WINDOW - Duration::from_millis(1));
    assert_eq!(cluster.view().endpoints, before, "no traffic is moved");
    cluster.pass(Duration::from_millis(1));
    assert_eq!(cluster.endpoint_texts(WEB)[0], "10.0.0.1:31000 ready 0");
    cluster.pass(UNREACHABLE_AFTER);
    assert_eq!(cluster.task("t1").map(|task| task.state), Some(TaskState::Unreachable));
}

#[test]
fn an_unreachable_agent_stays_so_over_a_restart_and_may_come_back() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER);
    cluster.restart();
    cluster.subscribe("marathon");
    assert_eq!(cluster.view().agents[&agents[0]].state, AgentState::Unreachable);
    cluster.call(SchedulerCall::Reconcile { tasks: vec![TaskId::new("t1")] });
    assert_eq!(cluster.update_states(), [TaskState::Unreachable]);
    let status = running(&mut cluster, &agents, 1);
    come_back(&mut cluster, &agents, 1, status);
    assert_eq!(cluster.endpoint_texts(WEB)[0], "10.0.0.1:31000 ready 1");
}

#[test]
fn many_agents_lost_at_once_are_held_until_an_operator_confirms() {
    let (mut cluster, agents) = cluster_with_agents(4);
    for agent in &agents[..3] {
        cluster.disconnect(agent);
    }
    cluster.pass(Duration::from_secs(3600));
    assert_eq!(cluster.updates(), [], "nothing is given up");
    assert!(cluster.view().masters.values().all(|master| master.removal_held));
    let held = Effect::RemovalHeld { lost: 3, of: 4 };
    assert_eq!(cluster.said.iter().filter(|effect| **effect == held).count(), 1);
    cluster.handle(Input::ConfirmRemoval);
    assert_eq!(cluster.update_states(), [TaskState::Unreachable; 3]);
    assert!(cluster.view().masters.values().all(|master| !master.removal_held));
}

#[test]
fn many_agents_that_come_back_release_the_brake() {
    let (mut cluster, agents) = cluster_with_agents(3);
    for agent in &agents {
        cluster.disconnect(agent);
    }
    cluster.pass(Duration::from_secs(60));
    for n in [1, 2] {
        let status = running(&mut cluster, &agents, n);
        come_back(&mut cluster, &agents, n, status);
    }
    assert!(cluster.view().masters.values().all(|master| !master.removal_held));
    assert_eq!(cluster.view().agents[&agents[2]].state, AgentState::Unreachable, "one alone is given up");
}

#[test]
fn an_agent_that_never_comes_back_is_removed_with_its_tasks() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER);
    cluster.updates();
    cluster.restart();
    cluster.subscribe("marathon");
    for n in [2, 3] {
        let status = running(&mut cluster, &agents, n);
        come_back(&mut cluster, &agents, n, status);
    }
    cluster.updates();
    cluster.pass(REMOVED_AFTER - Duration::from_millis(1));
    assert_eq!(cluster.view().agents.len(), 3, "a restart begins the time anew");
    cluster.pass(Duration::from_millis(1));
    assert!(!cluster.view().agents.contains_key(&agents[0]));
    assert!(cluster.task("t1").is_none());
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.2:31000 ready 1", "10.0.0.3:31000 ready 1"]);
    let updates = cluster.updates();
    assert_eq!(updates.iter().map(|update| update.state).collect::<Vec<_>>(), [TaskState::Gone]);
    assert_eq!(updates[0].message, "agent node1 has not answered for too long");
    let spec = cluster.spec(&agents[1], "t1", Vec::new());
    let status = cluster.status(&agents[0], "t1", TaskState::Running);
    let again = cluster.register(Some(&agents[0]), agent_info(1, 8), vec![RunningTask { spec, status }]);
    assert_ne!(again, agents[0], "it is another agent");
    assert_eq!(cluster.kills(), ["t1"], "what it ran is over");
    cluster.restart();
    assert_eq!(cluster.view().agents.len(), 3, "it is not in the store either");
}

#[test]
fn an_agent_that_is_to_be_empty_is_kept_however_long_it_is_away() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.handle(Input::DrainNode { agent: agents[0].clone() });
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER + REMOVED_AFTER);
    assert!(cluster.view().agents[&agents[0]].draining);
    cluster.handle(Input::UndrainNode { agent: agents[0].clone() });
    cluster.pass(REMOVED_AFTER - Duration::from_millis(1));
    assert!(cluster.view().agents.contains_key(&agents[0]), "its time begins anew");
    cluster.pass(Duration::from_millis(1));
    assert!(!cluster.view().agents.contains_key(&agents[0]), "nobody keeps it any more");
}

#[test]
fn an_agent_that_is_kept_no_longer_in_time_is_removed_as_if_it_had_never_been() {
    let (mut cluster, agents) = cluster_with_agents(3);
    cluster.handle(Input::DrainNode { agent: agents[0].clone() });
    cluster.disconnect(&agents[0]);
    cluster.pass(UNREACHABLE_AFTER + REMOVED_AFTER / 2);
    cluster.handle(Input::UndrainNode { agent: agents[0].clone() });
    cluster.pass(REMOVED_AFTER / 2);
    assert!(!cluster.view().agents.contains_key(&agents[0]));
}
