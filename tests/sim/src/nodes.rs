//! The nodes' side of a run: agents, processes, planes and their clients; and what users and faults do.

use std::time::Duration;

use mesonet::control_plane::Input;
use mesonet_model::{AgentCommand, AgentReport, Plane, PlaneReport, TaskKey, TaskState};

use crate::agent::{AgentEffect, ProcessEvent};
use crate::simulation::{Happening, Simulation};
use crate::user;
use crate::watch::check_processes;

impl Simulation {
    // === Agents ===

    pub(crate) fn start_agent(&mut self, node: usize) {
        self.note(format_args!("agent {node} starts"));
        self.nodes[node].agent.recover(self.now);
        self.connect_agent(node);
    }

    /// A new connection begins with the registration.
    pub(crate) fn connect_agent(&mut self, node: usize) {
        if !self.nodes[node].agent.is_up || self.nodes[node].connection.is_some() {
            return;
        }
        if self.leader.is_none() {
            return self.soon(2000, Happening::AgentConnects { node });
        }
        self.connections += 1;
        let connection = self.connections;
        self.note(format_args!("agent {node} connects"));
        let mut reports = self.nodes[node].agent.register().into_iter();
        let handshake = self.now.plus(self.weather.delay(&mut self.rng));
        let own = &mut self.nodes[node];
        (own.connection, own.handshake, own.is_open) = (Some(connection), handshake, false);
        if let Some(report) = reports.next() {
            self.at(handshake, Happening::ReportArrives { connection, node, report });
        }
        for report in reports {
            self.send_report(node, report);
        }
        self.watch_statuses(node);
    }

    /// A connection is lost, which the master learns if it is there, but not always.
    pub(crate) fn disconnect_agent(&mut self, node: usize) {
        let own = &mut self.nodes[node];
        if own.connection.take().is_none() {
            return;
        }
        own.is_open = false;
        let id = own.agent.id.clone();
        if let Some(agent) = id.filter(|_| self.rng.u32(..5) > 0) {
            self.arrive(Input::Agent(AgentReport::Disconnected { agent }), None);
        }
        let delay = if self.rng.u32(..4) > 0 { 500 } else { 15_000 };
        self.soon(delay, Happening::AgentConnects { node });
    }

    pub(crate) fn send_command(&mut self, node: usize, command: AgentCommand) {
        let Some(connection) = self.nodes[node].connection else { return };
        let lane = match &command {
            AgentCommand::Registered { .. } | AgentCommand::Reregister => None,
            AgentCommand::Launch(spec) => Some(&spec.key),
            AgentCommand::Kill { task, .. } | AgentCommand::Acknowledge { task, .. } => Some(task),
        };
        let Some(lane) = lane else {
            // Nothing overtakes the answer to a registration.
            return self.at(self.now, Happening::CommandArrives { connection, node, command });
        };
        let lane = (connection, format!("to {lane}"));
        for at in self.lanes.arrivals(lane, &self.weather, self.now, &mut self.rng) {
            self.at(at, Happening::CommandArrives { connection, node, command: command.clone() });
        }
    }

    pub(crate) fn command_arrives(&mut self, node: usize, command: AgentCommand) {
        match &command {
            AgentCommand::Registered { agent } => self.note(format_args!("agent {node} is {agent}")),
            AgentCommand::Launch(spec) => self.note(format_args!("agent {node} launches {}", spec.key.task)),
            AgentCommand::Kill { task, .. } => self.note(format_args!("agent {node} ends {}", task.task)),
            AgentCommand::Acknowledge { .. } | AgentCommand::Reregister => {}
        }
        let effects = self.nodes[node].agent.command(command, self.now);
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
        let effects = self.nodes[node].agent.process(task, event, self.now);
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
        self.soon(500, Happening::Process { node, task, event: ProcessEvent::Started });
    }

    fn send_report(&mut self, node: usize, report: AgentReport) {
        let own = &self.nodes[node];
        let (Some(connection), AgentReport::Status(status)) = (own.connection, &report) else { return };
        let (lane, handshake) = ((connection, format!("from {}", status.task)), own.handshake);
        for at in self.lanes.arrivals(lane, &self.weather, self.now, &mut self.rng) {
            self.at(at.max(handshake), Happening::ReportArrives { connection, node, report: report.clone() });
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

    // === Planes ===

    pub(crate) fn connect_plane(&mut self, plane: usize) {
        self.planes[plane].life = self.leader.as_ref().map(|leader| leader.life);
        self.tell_plane(plane);
    }

    /// A connected plane that does not have the newest view gets it, sooner or later.
    pub(crate) fn tell_plane(&mut self, plane: usize) {
        let newest = self.visible.as_ref().map(|state| state.cluster.revision);
        let own = &mut self.planes[plane];
        let is_connected = own.life.is_some_and(|life| life == self.life);
        let applied = own.view.as_ref().map(|view| view.revision);
        if own.is_update_due || !is_connected || applied >= newest {
            return;
        }
        own.is_update_due = true;
        let delay = if self.trouble(3) { 15_000 } else { 100 };
        self.soon(delay, Happening::PlaneUpdates { plane });
    }

    pub(crate) fn update_plane(&mut self, plane: usize) {
        let own = &mut self.planes[plane];
        own.is_update_due = false;
        let Some(state) = &self.visible else { return };
        if own.view.as_ref().is_some_and(|view| view.revision >= state.cluster.revision) {
            return;
        }
        own.apply(&state.cluster);
        let back = self.watch.withdrawn.iter().find(|task| own.serves(task));
        assert_eq!(back, None, "clients are sent to a task that was told to end");
        self.report_plane(plane);
    }

    pub(crate) fn report_plane(&mut self, plane: usize) {
        let own = &self.planes[plane];
        let (Some(view), Some(life)) = (&own.view, own.life) else { return };
        let Some(node) = self.nodes[own.node].agent.id.clone() else { return };
        let (kind, applied) = (own.kind, view.revision);
        let busy = own.busy();
        let report =
            PlaneReport { node, plane: kind, applied, busy, failed: std::collections::BTreeMap::new() };
        let lane = (life, format!("plane {plane}"));
        for at in self.lanes.arrivals(lane, &self.weather, self.now, &mut self.rng) {
            let report = report.clone();
            self.at(at, Happening::PlaneReportArrives { life, plane, report });
        }
    }

    /// A client of some node's balancer connects, mostly for a short time.
    pub(crate) fn client_connects(&mut self) {
        let balancers: Vec<usize> =
            (0..self.planes.len()).filter(|plane| self.planes[*plane].kind == Plane::Lb).collect();
        let plane = self.rng.choice(balancers).unwrap_or(0);
        self.connections += 1;
        let connection = self.connections;
        let random = self.rng.u64(..);
        if let Some(task) = self.planes[plane].connect(connection, random) {
            assert!(!self.watch.withdrawn.contains(&task), "a client is sent to {task}, which is to end");
            let stay = if self.rng.u32(..5) == 0 { 30_000 } else { 1000 };
            self.soon(stay, Happening::ClientLeaves { plane, connection });
        }
        if self.is_trouble {
            self.soon(2000, Happening::ClientConnects);
        }
    }

    // === Users and faults ===

    pub(crate) fn user_acts(&mut self) {
        if !self.is_trouble {
            return;
        }
        if let (Some(state), Some(leader)) = (&self.visible, &self.leader) {
            let life = leader.life;
            let command = user::command(&state.marathon, &mut self.rng);
            self.connections += 1;
            let number = self.connections;
            self.journal.note(self.now, format_args!("command {number}: {}", user::brief(&command)));
            self.ledger.ask(number, command.clone(), &state.marathon);
            let at = self.now.plus(self.weather.delay(&mut self.rng));
            self.at(at, Happening::UserCommandArrives { life, number, command });
        }
        // Now and then users think for longer than a service lingers.
        let pause = match self.rng.u32(..40) {
            0 => 900_000,
            1..=30 => 1000,
            _ => 10_000,
        };
        self.soon(pause, Happening::UserActs);
    }

    pub(crate) fn fault(&mut self) {
        if !self.is_trouble {
            return;
        }
        let node = self.rng.usize(..self.nodes.len());
        match self.rng.u32(..10) {
            0..=2 => self.crash_master(),
            3..=4 if self.nodes[node].agent.is_up => {
                self.note(format_args!("agent {node} crashes"));
                self.counts.agent_crashes += 1;
                self.disconnect_agent(node);
                self.nodes[node].agent.crash();
                self.soon(3000, Happening::AgentStarts { node });
            }
            3..=6 => {
                self.note(format_args!("agent {node} loses its connection"));
                self.disconnect_agent(node);
            }
            7 => {
                let plane = self.rng.usize(..self.planes.len());
                self.note(format_args!("plane {plane} begins anew"));
                self.planes[plane].begin_anew();
                self.tell_plane(plane);
            }
            _ => self.fail_a_task(node),
        }
        self.soon(self.fault_pause, Happening::Fault);
    }

    fn fail_a_task(&mut self, node: usize) {
        let agent = &self.nodes[node].agent;
        let running: Vec<TaskKey> =
            agent.live().map(|(key, _)| key.clone()).filter(|key| agent.is_running(key)).collect();
        if let Some(task) = self.rng.choice(running) {
            self.process(node, &task, ProcessEvent::Ended(TaskState::Failed));
        }
    }
}
