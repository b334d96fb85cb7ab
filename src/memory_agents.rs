//! Agents without processes: every task runs as soon as it is launched and ends as soon as it is killed. The twin of
//! the real agent for measurements and tests of everything above it.

use std::net::{IpAddr, Ipv4Addr};

use mesonet_model::{
    AgentCommand, AgentId, AgentInfo, AgentReport, PortRanges, Resources, Scalar, StatusSource, TaskKey,
    TaskState, TaskStatus, Timestamp,
};

use crate::clock::WallClock;
use crate::master_role::AgentLink;

/// Host ports of each agent; so many tasks with one port each fit on it.
const PORTS: (u16, u16) = (31_000, 32_000);

/// Registers so many agents and answers for all of them until the control plane ends.
pub async fn run(count: u8, mut link: AgentLink) {
    for number in 1..=count {
        let report = AgentReport::Register {
            agent: None,
            info: info(number),
            tasks: Vec::new(),
            containers: Vec::new(),
        };
        if link.reports.send(report).await.is_err() {
            return;
        }
    }
    let mut clock = WallClock::default();
    while let Some((agent, command)) = link.commands.recv().await {
        if let Some(report) = react(&agent, &command, clock.now())
            && link.reports.send(report).await.is_err()
        {
            return;
        }
    }
}

/// What an agent says of itself, room for a thousand small tasks.
pub fn info(number: u8) -> AgentInfo {
    let address = IpAddr::V4(Ipv4Addr::new(127, 12, 0, number));
    AgentInfo {
        hostname: address.to_string(),
        address,
        port: 0,
        resources: Resources {
            cpus: Scalar::from_units(1_000),
            mem: Scalar::from_units(1_000_000),
            disk: Scalar::from_units(1_000_000),
            gpus: Scalar::ZERO,
            ports: PortRanges::span(PORTS.0, PORTS.1),
        },
        attributes: Vec::new(),
        container_networks: true,
    }
}

/// An agent's answer to a command.
pub fn react(agent: &AgentId, command: &AgentCommand, now: Timestamp) -> Option<AgentReport> {
    let status = match command {
        AgentCommand::Launch(spec) => status(agent, spec.key.clone(), TaskState::Running, now),
        AgentCommand::Kill { task, .. } => status(agent, task.clone(), TaskState::Killed, now),
        AgentCommand::Registered { .. }
        | AgentCommand::Reregister
        | AgentCommand::EndReadiness { .. }
        | AgentCommand::Acknowledge { .. } => {
            return None;
        }
    };
    Some(AgentReport::Status(Box::new(status)))
}

fn status(agent: &AgentId, task: TaskKey, state: TaskState, now: Timestamp) -> TaskStatus {
    TaskStatus {
        task,
        agent: Some(agent.clone()),
        state,
        source: StatusSource::SourceExecutor,
        reason: None,
        message: String::new(),
        timestamp: now,
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        listening: None,
        addresses: Vec::new(),
        uuid: None,
    }
}
