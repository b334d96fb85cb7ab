//! Agents: registration, commands, and the loss of exactly the connection that was lost.

use mesonet_model::{
    AgentCommand, AgentId, AgentReport, FrameworkId, StatusSource, TaskId, TaskKey, TaskState, TaskStatus,
    Timestamp,
};

use super::site::{Site, connects, eventually, patiently, registration};
use crate::wire::{FromMaster, FromNode};
use crate::{FileFailure, FilePiece, FileQuestion, Files, Reason, Role};

fn key() -> TaskKey {
    TaskKey::new(FrameworkId::new("f"), TaskId::new("t"))
}

fn kill() -> AgentCommand {
    AgentCommand::Kill { task: key(), grace: None }
}

fn status(agent: &str) -> AgentReport {
    AgentReport::Status(Box::new(TaskStatus {
        task: key(),
        agent: Some(AgentId::new(agent)),
        state: TaskState::Running,
        source: StatusSource::SourceAgent,
        reason: None,
        message: String::new(),
        timestamp: Timestamp::from_millis(0),
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        listening: None,
        addresses: Vec::new(),
        uuid: None,
    }))
}

#[tokio::test]
async fn an_agent_registers_takes_commands_and_reports() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    site.commands.send((AgentId::new("c-S0"), kill())).await.expect("sent");
    assert_eq!(patiently(node.commands.recv()).await, Some(kill()));
    node.reports.send(status("c-S0")).await.expect("sent");
    assert_eq!(site.report().await, status("c-S0"));
    drop(node);
    assert_eq!(site.report().await, AgentReport::Disconnected { agent: AgentId::new("c-S0") });
}

#[tokio::test]
async fn what_an_agent_says_before_it_is_registered_is_asked_for_again() {
    for (later, expected) in [("host-1", kill()), ("host-2", AgentCommand::Reregister)] {
        let mut site = Site::start();
        site.joined("n1").await;
        let mut node = site.agent("n1");
        for report in [registration(None, "host-1"), registration(None, later), status("c-S0")] {
            node.reports.send(report).await.expect("sent");
        }
        assert_eq!(site.report().await, registration(None, "host-1"));
        assert_eq!(site.report().await, status("c-S0"), "the same agent would be registered twice");
        site.publish("c-S0", "host-1".to_owned());
        let agent = AgentId::new("c-S0");
        let registered = AgentCommand::Registered { agent: agent.clone() };
        for command in [registered.clone(), kill()] {
            site.commands.send((agent.clone(), command)).await.expect("sent");
        }
        assert_eq!(patiently(node.commands.recv()).await, Some(registered));
        assert_eq!(patiently(node.commands.recv()).await, Some(expected));
        node.reports.send(registration(Some("c-S0"), later)).await.expect("sent");
        assert_eq!(site.report().await, registration(Some("c-S0"), later));
    }
}

#[tokio::test]
async fn each_agent_gets_its_own_commands() {
    let mut site = Site::start();
    let mut nodes = Vec::new();
    for number in 0..2 {
        site.joined(&format!("n{number}")).await;
        let mut node = site.agent(&format!("n{number}"));
        site.register(&mut node, &format!("host-{number}"), &format!("c-S{number}")).await;
        nodes.push(node);
    }
    site.commands.send((AgentId::new("c-S1"), kill())).await.expect("sent");
    assert_eq!(patiently(nodes[1].commands.recv()).await, Some(kill()));
    assert!(nodes[0].commands.try_recv().is_err());
    site.commands.send((AgentId::new("c-S9"), kill())).await.expect("sent");
    eventually("dropped", || (site.server.stats().undeliverable == 1).then_some(())).await;
}

#[tokio::test]
async fn an_agent_registers_again_with_another_master_process_and_keeps_its_id() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    let agents = || site.authority.nodes().expect("nodes")[0].agent.clone();
    eventually("kept", || agents().filter(|agent| *agent == AgentId::new("c-S0"))).await;
    let mut site = site.restart().await;
    // Said before the agent knows of the new connection: it is not for the new master.
    node.reports.send(status("c-S0")).await.expect("sent");
    assert_eq!(patiently(node.commands.recv()).await, Some(AgentCommand::Reregister));
    node.reports.send(registration(None, "host-1")).await.expect("sent");
    assert_eq!(site.report().await, registration(Some("c-S0"), "host-1"));
}

#[tokio::test]
async fn the_loss_of_a_connection_is_told_before_the_next_one_registers() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    // The node's daemon is started anew while the master has not noticed the end of the old one.
    let mut raw = site.raw_welcome("n1", Role::Agent).await;
    raw.say(&FromNode::Agent(registration(Some("c-S0"), "host-1"))).await;
    assert_eq!(site.report().await, AgentReport::Disconnected { agent: AgentId::new("c-S0") });
    assert_eq!(site.report().await, registration(Some("c-S0"), "host-1"));
    site.commands.send((AgentId::new("c-S0"), kill())).await.expect("sent");
    assert!(matches!(raw.hear().await, FromMaster::Command(command) if command == kill()));
    drop(node);
}

#[tokio::test]
async fn an_agent_that_is_gone_before_it_is_registered_is_told_lost() {
    let mut site = Site::start();
    site.joined("n1").await;
    let node = site.agent("n1");
    node.reports.send(registration(None, "host-1")).await.expect("sent");
    site.report().await;
    drop(node);
    eventually("gone", || site.server.connected().is_empty().then_some(())).await;
    site.publish("c-S0", "host-1".to_owned());
    let agent = AgentId::new("c-S0");
    site.commands.send((agent.clone(), AgentCommand::Registered { agent })).await.expect("sent");
    assert_eq!(site.report().await, AgentReport::Disconnected { agent: AgentId::new("c-S0") });
}

#[tokio::test]
async fn a_node_that_falls_silent_is_noticed() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    drop(node);
    assert!(matches!(site.report().await, AgentReport::Disconnected { .. }));
    // Its runtime ends without a word, as a machine does that loses its power.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("runtime");
    let settings = site.settings("n1");
    let (commands, _commands) = tokio::sync::mpsc::channel(8);
    let (reports, reports_out) = tokio::sync::mpsc::channel(8);
    let guard = runtime.enter();
    let client = crate::Client::start_agent(settings, commands, reports_out).expect("client");
    drop(guard);
    reports.send(registration(Some("c-S0"), "host-1")).await.expect("sent");
    assert!(matches!(site.report().await, AgentReport::Register { .. }));
    std::mem::forget(client);
    runtime.shutdown_background();
    assert_eq!(site.report().await, AgentReport::Disconnected { agent: AgentId::new("c-S0") });
}

#[tokio::test]
async fn a_report_under_an_earlier_id_is_that_of_the_nodes_agent() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    node.reports.send(status("from-before")).await.expect("sent");
    assert_eq!(site.report().await, status("c-S0"));
}

#[tokio::test]
async fn no_node_speaks_for_the_agent_of_another() {
    let mut site = Site::start();
    site.joined("n1").await;
    site.joined("n2").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    for message in [registration(Some("c-S0"), "host-2"), status("c-S0")] {
        let mut thief = site.raw_welcome("n2", Role::Agent).await;
        thief.say(&FromNode::Agent(message)).await;
        assert_eq!(thief.end().await.0, Some(Reason::ForeignAgent));
    }
    connects(&node.client).await;
    assert_eq!(node.client.stats().failures, 0);
}

/// One file that is longer than a window.
#[derive(Debug)]
struct OneFile;

impl Files for OneFile {
    fn read(&self, question: &FileQuestion) -> Result<FilePiece, FileFailure> {
        match (question.file.as_str(), question.offset) {
            ("stdout", Some(offset)) => Ok(FilePiece { offset, data: vec![7; crate::FILE_BYTES_MAX] }),
            ("stdout", None) => Ok(FilePiece { offset: 1 << 30, data: Vec::new() }),
            _ => Err(FileFailure::NotFound),
        }
    }
}

fn question(file: &str, offset: Option<u64>) -> FileQuestion {
    FileQuestion { task: key(), file: file.to_owned(), offset, length: None }
}

#[tokio::test]
async fn files_of_tasks_are_read_on_their_node() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent_with_files("n1", std::sync::Arc::new(OneFile));
    site.register(&mut node, "host-1", "c-S0").await;
    let agent = AgentId::new("c-S0");
    let read = async |file: &str, offset| site.server.read_file(&agent, &question(file, offset)).await;
    let piece = patiently(read("stdout", Some(5))).await.expect("read");
    assert_eq!((piece.offset, piece.data.len()), (5, crate::FILE_BYTES_MAX));
    assert_eq!(read("stdout", None).await, Ok(FilePiece { offset: 1 << 30, data: Vec::new() }));
    assert_eq!(read("other", Some(0)).await, Err(FileFailure::NotFound));
    let stranger = site.server.read_file(&AgentId::new("c-S9"), &question("stdout", None)).await;
    assert_eq!(stranger, Err(FileFailure::Away));
    assert_eq!(node.client.stats().failures, 0);
}

#[tokio::test]
async fn an_agent_that_shows_no_files_says_so() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    let answer = patiently(site.server.read_file(&AgentId::new("c-S0"), &question("stdout", None))).await;
    assert_eq!(answer, Err(FileFailure::Silent));
    connects(&node.client).await;
    assert_eq!(node.client.stats().failures, 0, "nothing else is affected");
}
