//! The nodes' side of a run: agents, processes and the clients of balancers.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fastrand::Rng;
use mesonet_model::{AgentCommand, AgentInfo, AgentReport, Plane, Resources, TaskKey, TaskState, Timestamp};

use crate::agent::{Agent, AgentEffect, ProcessEvent};
use crate::clocks::MachineClock;
use crate::links::{Client, Up};
use crate::simulation::{Happening, Simulation};
use crate::watch::check_processes;

/// A machine with an agent.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) clock: MachineClock,
    pub(crate) agent: Agent,
    /// The agent's connection to a master, if there is one.
    pub(crate) link: Option<u64>,
    /// The newest term that the agent has seen since it began.
    pub(crate) term: u64,
    /// The master to be tried next, if one was named.
    pub(crate) leader: Option<usize>,
    /// When it is looked for statuses to be sent again.
    wake: Option<Timestamp>,
}

impl Node {
    pub(crate) fn new(number: u8, resources: Resources, rng: &mut Rng) -> Self {
        let address = IpAddr::V4(Ipv4Addr::new(127, 12, 0, number + 1));
        let hostname = address.to_string();
        let attributes = Vec::new();
        let info = AgentInfo { hostname, address, port: 0, resources, attributes, container_networks: true };
        let agent = Agent::new(info, rng.u64(..));
        Self { clock: MachineClock::new(rng), agent, link: None, term: 0, leader: None, wake: None }
    }
}

impl Simulation {
    pub(crate) fn start_agent(&mut self, node: usize) {
        self.note(format_args!("agent {node} starts"));
        let wall = self.nodes[node].clock.wall(self.now);
        self.nodes[node].agent.recover(wall, self.now);
        self.connect_agent(node);
    }

    pub(crate) fn connect_agent(&mut self, node: usize) {
        if !self.nodes[node].agent.is_up || self.nodes[node].link.is_some() {
            return;
        }
        let any = self.rng.usize(..self.masters.len());
        let master = self.nodes[node].leader.take().unwrap_or(any);
        let link = self.dial(Client::Agent(node), master, None);
        self.nodes[node].link = Some(link);
    }

    /// A new connection begins with the registration.
    pub(crate) fn introduce_agent(&mut self, node: usize, link: u64) {
        let server = self.links.get(&link).map(|link| link.server);
        self.note(format_args!("agent {node} is connected to master {server:?}"));
        for report in self.nodes[node].agent.register() {
            self.say(link, Up::Agent(report));
        }
        self.watch_statuses(node);
    }

    pub(crate) fn command_arrives(&mut self, node: usize, command: AgentCommand) {
        match &command {
            AgentCommand::Registered { agent } => self.note(format_args!("agent {node} is {agent}")),
            AgentCommand::Launch(spec) => self.note(format_args!("agent {node} launches {}", spec.key.task)),
            AgentCommand::Kill { task, .. } => self.note(format_args!("agent {node} ends {}", task.task)),
            AgentCommand::EndReadiness { task } => {
                self.note(format_args!("agent {node} does not check {} any more", task.task));
            }
            AgentCommand::Acknowledge { .. } | AgentCommand::Reregister => {}
        }
        let own = &mut self.nodes[node];
        let effects = own.agent.command(command, own.clock.wall(self.now), self.now);
        self.agent_acts(node, effects);
        check_processes(self.nodes.iter().map(|node| &node.agent));
    }

    pub(crate) fn repeat_statuses(&mut self, node: usize) {
        self.nodes[node].wake = None;
        if self.nodes[node].agent.is_up {
            let effects = self.nodes[node].agent.resend(self.now);
            self.agent_acts(node, effects);
        }
    }

    pub(crate) fn process(&mut self, node: usize, task: &TaskKey, event: ProcessEvent) {
        if matches!(event, ProcessEvent::Ended(_)) && !self.is_trouble {
            return;
        }
        self.note(format_args!("on agent {node}, {} is {event:?}", task.task));
        if event == ProcessEvent::Ready {
            self.readiness.becomes_ready(task.task.clone());
        }
        let own = &mut self.nodes[node];
        let effects = own.agent.process(task, event, own.clock.wall(self.now), self.now);
        self.agent_acts(node, effects);
    }

    fn agent_acts(&mut self, node: usize, effects: Vec<AgentEffect>) {
        for effect in effects {
            match effect {
                AgentEffect::Report(report) => self.send_report(node, report),
                AgentEffect::Spawn(task) => self.spawn(node, task),
                AgentEffect::Terminate { task, grace } => {
                    let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                    // One that does not end by itself is killed after the grace.
                    let after = if self.rng.u32(..3) == 0 { grace } else { self.rng.u64(..=grace.min(500)) };
                    let at = self.now.plus(Duration::from_millis(after));
                    self.at(at, Happening::Process { node, task, event: ProcessEvent::Killed });
                }
            }
        }
        self.watch_statuses(node);
    }

    fn spawn(&mut self, node: usize, task: TaskKey) {
        self.counts.launches += 1;
        if self.trouble(15) {
            let event = ProcessEvent::Ended(TaskState::Failed);
            self.soon(500, Happening::Process { node, task: task.clone(), event });
        } else if self.trouble(15) {
            let event = ProcessEvent::Ended(TaskState::Finished);
            self.soon(60_000, Happening::Process { node, task: task.clone(), event });
        }
        // Some are not ready before the end of all faults.
        if !self.trouble(10) {
            self.soon(5_000, Happening::Process { node, task: task.clone(), event: ProcessEvent::Ready });
        }
        self.soon(500, Happening::Process { node, task, event: ProcessEvent::Started });
    }

    fn send_report(&mut self, node: usize, report: AgentReport) {
        let Some(link) = self.nodes[node].link else { return };
        let is_open = self.links.get(&link).is_some_and(|link| link.client_end == crate::links::End::Open);
        if is_open {
            self.say(link, Up::Agent(report));
        }
    }

    fn watch_statuses(&mut self, node: usize) {
        let Some(at) = self.nodes[node].agent.next_resend() else { return };
        let at = at.max(self.now);
        if self.nodes[node].wake.is_none_or(|wake| at < wake) {
            self.nodes[node].wake = Some(at);
            self.at(at, Happening::AgentRepeats { node });
        }
    }

    /// A client of some node's balancer connects, mostly for a short time.
    pub(crate) fn client_connects(&mut self) {
        let balancers: Vec<usize> =
            (0..self.planes.len()).filter(|plane| self.planes[*plane].kind == Plane::Lb).collect();
        let plane = self.rng.choice(balancers).unwrap_or(0);
        self.numbers += 1;
        let connection = self.numbers;
        let random = self.rng.u64(..);
        if self.planes[plane].connect(connection, random).is_some() {
            self.check_withdrawn(plane);
            let stay = if self.rng.u32(..5) == 0 { 30_000 } else { 1000 };
            self.soon(stay, Happening::ClientLeaves { plane, connection });
        }
        if self.is_trouble {
            self.soon(2000, Happening::ClientConnects);
        }
    }
}
