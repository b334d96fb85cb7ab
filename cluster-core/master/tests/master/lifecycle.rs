//! Reports, reconciliation, and what frameworks ask.

use std::time::Duration;

use mesonet_master::{Effect, Input};
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, AgentState, FrameworkId, ReadinessCheck, ReadinessResult,
    RunningTask, SchedulerCall, StatusReason, TaskId, TaskState, TaskStatus,
};

use crate::cluster::{Cluster, agent_info, host_port};

const WEB: &str = "tcp/web@marathon:80";

fn cluster_with_agent() -> (Cluster, AgentId) {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    (cluster, agent)
}

fn running(cluster: &mut Cluster, agent: &AgentId, task: &str, state: TaskState) -> RunningTask {
    let spec = cluster.spec(agent, task, vec![host_port(31000, "/web:80")]);
    RunningTask { spec, status: cluster.status(agent, task, state) }
}

fn acknowledged(cluster: &mut Cluster) -> Vec<uuid::Uuid> {
    let commands = cluster.commands().into_iter();
    commands
        .filter_map(|(_, command)| match command {
            AgentCommand::Acknowledge { uuid, .. } => Some(uuid),
            _ => None,
        })
        .collect()
}

fn send(cluster: &mut Cluster, status: &TaskStatus) {
    cluster.handle(Input::Agent(AgentReport::Status(Box::new(status.clone()))));
}

#[test]
fn a_task_goes_from_launch_to_end() {
    let (mut cluster, agent) = cluster_with_agent();
    let spec = cluster.spec(&agent, "a", Vec::new());
    cluster.launch(spec.clone());
    assert_eq!(cluster.commands(), [(agent, AgentCommand::Launch(Box::new(spec)))]);
    let task = cluster.task("a").expect("in the view");
    assert_eq!((task.state, task.staged_at), (TaskState::Staging, cluster.now));

    cluster.pass(Duration::from_secs(1));
    let status = cluster.report("a", TaskState::Running);
    assert_eq!(cluster.updates(), std::slice::from_ref(&status));
    assert_eq!(cluster.task("a").map(|task| task.started_at), Some(Some(status.timestamp)));
    assert_eq!(acknowledged(&mut cluster).len(), 0, "only the framework acknowledges");
    cluster.call(SchedulerCall::Acknowledge { status: Box::new(status.clone()) });
    assert_eq!(acknowledged(&mut cluster), [status.uuid.expect("present")]);

    let end = cluster.report("a", TaskState::Finished);
    assert_eq!(cluster.updates(), std::slice::from_ref(&end));
    assert!(cluster.task("a").is_none());
    cluster.call(SchedulerCall::Acknowledge { status: Box::new(end.clone()) });
    assert_eq!(acknowledged(&mut cluster), [end.uuid.expect("present")]);
}

#[test]
fn a_repeated_report_is_passed_on_until_it_is_acknowledged() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    let status = cluster.updates().remove(0);
    let before = cluster.view().clone();
    send(&mut cluster, &status);
    assert_eq!(cluster.updates(), std::slice::from_ref(&status));
    cluster.call(SchedulerCall::Acknowledge { status: Box::new(status.clone()) });
    cluster.commands();
    send(&mut cluster, &status);
    assert_eq!(cluster.updates(), []);
    assert_eq!(acknowledged(&mut cluster), [status.uuid.expect("present")]);
    assert_eq!(*cluster.view(), before);
}

#[test]
fn reports_that_lead_back_change_nothing_and_are_acknowledged() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.report("a", TaskState::Killing);
    cluster.updates();
    cluster.commands();
    let before = cluster.view().clone();
    let back = cluster.report("a", TaskState::Running);
    assert_eq!(cluster.updates(), []);
    assert_eq!(acknowledged(&mut cluster), [back.uuid.expect("present")]);

    let mut old = cluster.status(&agent, "a", TaskState::Killing);
    old.timestamp = mesonet_model::Timestamp::from_millis(1);
    send(&mut cluster, &old);
    assert_eq!(cluster.updates(), []);
    assert_eq!(*cluster.view(), before);
}

#[test]
fn a_running_task_that_is_not_known_is_killed_and_a_dead_one_reported() {
    let (mut cluster, agent) = cluster_with_agent();
    let status = cluster.status(&agent, "ghost", TaskState::Running);
    send(&mut cluster, &status);
    assert_eq!(cluster.kills(), ["ghost"]);
    assert_eq!(cluster.updates(), []);
    let status = cluster.status(&agent, "ghost", TaskState::Killed);
    send(&mut cluster, &status);
    assert_eq!(acknowledged(&mut cluster), [status.uuid.expect("present")]);
    assert_eq!(cluster.update_states(), [TaskState::Killed]);
}

#[test]
fn a_report_of_another_agent_does_not_touch_the_task() {
    let (mut cluster, agent) = cluster_with_agent();
    let other = cluster.register(None, agent_info(2, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.updates();
    let before = cluster.view().clone();
    let status = cluster.status(&other, "a", TaskState::Failed);
    send(&mut cluster, &status);
    let status = cluster.status(&other, "a", TaskState::Running);
    send(&mut cluster, &status);
    assert_eq!(cluster.updates(), []);
    assert_eq!(*cluster.view(), before);
    let kill = AgentCommand::Kill { task: cluster.key("a"), grace: None };
    assert!(cluster.commands().contains(&(other, kill)));
}

#[test]
fn health_and_readiness_decide_the_weight() {
    let (mut cluster, agent) = cluster_with_agent();
    let mut spec = cluster.spec(&agent, "a", vec![host_port(31000, "/web:80")]);
    spec.health_checked = true;
    cluster.launch(spec);
    assert_eq!(cluster.endpoint_texts(WEB), Vec::<String>::new());
    cluster.report("a", TaskState::Running);
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 ready 0"]);
    let task = TaskId::new("a");
    for (healthy, ready, expected) in [
        (Some(true), None, "10.0.0.1:31000 ready 1"),
        (None, Some(false), "10.0.0.1:31000 ready 0"),
        (None, Some(true), "10.0.0.1:31000 ready 1"),
        (Some(false), None, "10.0.0.1:31000 ready 0"),
    ] {
        cluster.call(SchedulerCall::SetServing { task: task.clone(), healthy, ready });
        assert_eq!(cluster.endpoint_texts(WEB), [expected]);
    }
    let before = cluster.view().revision;
    cluster.call(SchedulerCall::SetServing { task, healthy: Some(false), ready: None });
    assert_eq!(cluster.view().revision, before, "nothing has changed");
}

#[test]
fn an_agent_ends_a_readiness_check_even_if_it_was_away() {
    let (mut cluster, agent) = cluster_with_agent();
    let mut spec = cluster.spec(&agent, "a", Vec::new());
    spec.readiness_check = Some(ReadinessCheck {
        port: 31000,
        path: "/".to_owned(),
        tls: false,
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(10),
        ready_statuses: vec![200],
        keeps_response: false,
    });
    cluster.launch(spec.clone());
    let status = TaskStatus {
        readiness: Some(ReadinessResult::default()),
        ..cluster.status(&agent, "a", TaskState::Running)
    };
    let end = |cluster: &mut Cluster| cluster.call(SchedulerCall::EndReadiness { task: TaskId::new("a") });
    let ended = (agent.clone(), AgentCommand::EndReadiness { task: cluster.key("a") });
    let come_back = |cluster: &mut Cluster, readiness: Option<bool>| {
        let readiness = readiness.map(|ready| ReadinessResult { ready, last_response: None });
        let status = TaskStatus { readiness, ..status.clone() };
        cluster.commands();
        cluster.register(Some(&agent), agent_info(1, 8), vec![RunningTask { spec: spec.clone(), status }]);
        cluster.commands().contains(&ended)
    };
    assert!(!come_back(&mut cluster, Some(false)), "it is waited for");
    end(&mut cluster);
    assert!(cluster.commands().contains(&ended));
    for is_restarted in [false, true] {
        if is_restarted {
            cluster.restart();
        }
        assert!(come_back(&mut cluster, Some(false)));
        assert!(!come_back(&mut cluster, Some(true)));
        assert!(!come_back(&mut cluster, None));
    }
    cluster.call(SchedulerCall::EndReadiness { task: TaskId::new("unknown") });
    assert_eq!(cluster.commands(), []);
}

#[test]
fn an_agent_that_comes_back_is_reconciled() {
    let (mut cluster, agent) = cluster_with_agent();
    for (task, port) in [("kept", 31000), ("lost", 31001), ("ended", 31002)] {
        cluster.run(&agent, task, port, "/web:80");
    }
    let never_sent = cluster.spec(&agent, "never-sent", Vec::new());
    cluster.launch(never_sent.clone());
    cluster.disconnect(&agent);
    assert_eq!(cluster.view().agents[&agent].state, AgentState::Suspect);
    assert_eq!(cluster.endpoints(WEB).len(), 3, "a lost connection is not the end of the tasks");
    cluster.updates();
    cluster.commands();

    let tasks = vec![
        running(&mut cluster, &agent, "kept", TaskState::Running),
        running(&mut cluster, &agent, "ended", TaskState::Failed),
        running(&mut cluster, &agent, "unknown", TaskState::Running),
    ];
    assert_eq!(cluster.register(Some(&agent), agent_info(1, 8), tasks), agent);
    assert_eq!(cluster.view().agents[&agent].state, AgentState::Active);
    let updates = cluster.updates();
    let of = |task: &str| {
        let states = updates.iter().filter(|status| status.task.task.as_str() == task);
        states.map(|status| (status.state, status.reason)).collect::<Vec<_>>()
    };
    assert_eq!(of("lost"), [(TaskState::Gone, Some(StatusReason::ReasonAgentReregistered))]);
    assert_eq!(of("ended"), [(TaskState::Failed, None)]);
    assert_eq!(of("never-sent"), []);
    assert_eq!(cluster.endpoints(WEB).len(), 1);
    let commands = cluster.commands();
    assert!(commands.contains(&(agent.clone(), AgentCommand::Launch(Box::new(never_sent)))));
    let kill = AgentCommand::Kill { task: cluster.key("unknown"), grace: None };
    assert!(commands.contains(&(agent, kill)));
    assert!(cluster.task("kept").is_some() && cluster.task("never-sent").is_some());
}

#[test]
fn an_agent_with_a_foreign_id_gets_a_new_one_and_loses_its_tasks() {
    let (mut cluster, _) = cluster_with_agent();
    let foreign = AgentId::new("other-S0");
    let task = running(&mut cluster, &foreign, "x", TaskState::Running);
    let id = cluster.register(Some(&foreign), agent_info(2, 8), vec![task]);
    assert_eq!(id.as_str(), "c-S1");
    assert_eq!(cluster.kills(), ["x"]);
}

#[test]
fn what_a_task_has_that_must_not_run_is_offered_when_it_has_ended() {
    let mut cluster = Cluster::new();
    let framework = cluster.framework.clone();
    let foreign = AgentId::new("other-S0");
    let mut task = running(&mut cluster, &foreign, "x", TaskState::Running);
    task.spec = cluster.spec(&foreign, "x", vec![host_port(31007, "/web:80")]);
    let uses = task.spec.resources.clone();
    let agent = cluster.register(Some(&foreign), agent_info(2, 8), vec![task.clone()]);
    let all = agent_info(2, 8).resources;
    let mut rest = all.clone();
    rest.subtract(&uses);
    let offer = cluster.take_offers(&framework).remove(0);
    assert_eq!(offer.resources, rest);

    // The connection was lost, and it runs on.
    cluster.register(Some(&agent), agent_info(2, 8), vec![task]);
    let offer = cluster.take_offers(&framework).remove(0);
    assert_eq!(offer.resources, rest);
    cluster.call(SchedulerCall::Decline { offer: offer.id, refuse: Duration::from_secs(3600) });
    assert!(cluster.take_offers(&framework).is_empty());
    // As the agent told before it knew its new id.
    let ended = cluster.status(&foreign, "x", TaskState::Killed);
    cluster.handle(Input::Agent(AgentReport::Status(Box::new(ended))));
    assert_eq!(cluster.take_offers(&framework).remove(0).resources, all);
}

#[test]
fn an_agent_that_moves_takes_its_endpoints_along() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    let task = running(&mut cluster, &agent, "a", TaskState::Running);
    cluster.register(Some(&agent), agent_info(9, 8), vec![task]);
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.9:31000 ready 1"]);
}

#[test]
fn frameworks_are_known_by_name_and_answered_when_they_ask() {
    let (mut cluster, agent) = cluster_with_agent();
    assert_eq!(cluster.framework.as_str(), "c-0000");
    assert_eq!(cluster.subscribe("other").as_str(), "c-0001");
    assert_eq!(cluster.subscribe("marathon").as_str(), "c-0000");
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.updates();
    cluster.call(SchedulerCall::Reconcile { tasks: Vec::new() });
    assert_eq!(cluster.update_states(), [TaskState::Running]);
    let tasks = vec![TaskId::new("a"), TaskId::new("b")];
    cluster.call(SchedulerCall::Reconcile { tasks });
    assert_eq!(cluster.update_states(), [TaskState::Running, TaskState::Unknown]);
    cluster.kill("b");
    let updates = cluster.updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(
        (updates[0].state, updates[0].reason),
        (TaskState::Unknown, Some(StatusReason::ReasonReconciliation))
    );
}

#[test]
fn one_that_has_not_subscribed_is_not_heard() {
    let (mut cluster, _) = cluster_with_agent();
    cluster.framework = FrameworkId::new("c-0042");
    cluster.said.clear();
    cluster.call(SchedulerCall::Revive);
    cluster.kill("a");
    assert_eq!(cluster.said, Vec::<Effect>::new());
}

#[test]
fn a_touch_is_a_revision_of_its_own() {
    let mut cluster = Cluster::new();
    let before = cluster.view().revision;
    cluster.handle(Input::Touch);
    assert_eq!(cluster.view().revision, before.next());
    cluster.handle(Input::Tick);
    assert_eq!(cluster.view().revision, before.next());
}
