//! The master's side of a run: turns, commits, crashes, and what is released.

use std::time::Duration;

use mesonet::control_plane::{Batch, Input, Release, State};
use mesonet_model::{AgentCommand, AgentId, Serving, TaskKey, TaskState};

use crate::leader::{DRAIN_GRACE, Leader, PLANES_EXPECTED};
use crate::simulation::{Happening, Simulation};
use crate::watch::check_recovery;

/// How much of a batch is carried out before a crash.
#[derive(Debug, Clone, Copy)]
enum Reached {
    /// It is not committed.
    Nothing,
    /// It is committed and so many of its releases are out.
    Releases(usize),
}

impl Simulation {
    pub(crate) fn start_master(&mut self) {
        assert!(self.leader.is_none(), "one master at a time");
        self.life += 1;
        if let Some(committed) = &self.committed {
            check_recovery(self.life, &self.store, &committed.cluster, &committed.marathon);
        }
        self.note(format_args!("master starts life {}", self.life));
        self.leader = Some(Leader::start(self.life, &self.store, self.now));
        let life = self.life;
        for plane in 0..self.planes.len() {
            // Now and then one takes longer than the master waits.
            let delay = if self.trouble(10) { 20_000 } else { 4000 };
            self.soon(delay, Happening::PlaneConnects { life, plane });
        }
        self.begin_commit();
    }

    /// Something arrives at the master, which is to be there.
    pub(crate) fn arrive(&mut self, input: Input, from_agent: Option<(usize, u64)>) {
        if let Some(leader) = &mut self.leader {
            leader.arrive(input, from_agent);
            self.plan_turn();
        }
    }

    pub(crate) fn turn(&mut self, life: u64) {
        let now = self.now;
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.life == life) else { return };
        if leader.batch.is_some() || leader.wake != Some(now) {
            return;
        }
        leader.wake = None;
        self.journal.note(now, format_args!("master turns with {:?}", Brief(&leader.inbox)));
        leader.turn(now);
        self.begin_commit();
    }

    /// A disk is slow at times.
    fn begin_commit(&mut self) {
        let slow = if self.trouble(5) { 3000 } else { 5 };
        self.soon(slow, Happening::MasterCommits { life: self.life });
    }

    pub(crate) fn commit(&mut self, life: u64) {
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.life == life) else { return };
        let Some(batch) = leader.batch.take() else { return };
        let all = batch.releases.len();
        self.carry_out(batch, Reached::Releases(all));
        self.plan_turn();
    }

    /// The master is gone, with everything that is not committed.
    pub(crate) fn crash_master(&mut self) {
        let Some(leader) = &mut self.leader else { return };
        self.counts.master_crashes += 1;
        if let Some(batch) = leader.batch.take() {
            let releases = batch.releases.len();
            let reached = match self.rng.u32(..3) {
                0 => Reached::Nothing,
                1 => Reached::Releases(0),
                _ => Reached::Releases(self.rng.usize(..=releases)),
            };
            self.note(format_args!("master crashes, reached {reached:?} of {releases}"));
            self.carry_out(batch, reached);
        } else {
            self.note("master crashes");
        }
        self.leader = None;
        self.ledger.crash();
        for node in 0..self.nodes.len() {
            self.disconnect_agent(node);
        }
        let down = if self.rng.u32(..4) > 0 { 200 } else { 20_000 };
        self.soon(down, Happening::MasterStarts);
    }

    /// Plans the next turn if the master has nothing else to do.
    fn plan_turn(&mut self) {
        let now = self.now;
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.batch.is_none()) else { return };
        let deadline =
            leader.control_plane.deadline().map(|(at, _)| at.max(now.plus(Duration::from_millis(1))));
        let next = if leader.inbox.is_empty() { deadline } else { Some(now) };
        if let Some(at) = next
            && leader.wake.is_none_or(|wake| at < wake)
        {
            leader.wake = Some(at);
            let life = leader.life;
            self.at(at, Happening::MasterTurns { life });
        }
    }

    fn carry_out(&mut self, batch: Batch, reached: Reached) {
        let Reached::Releases(count) = reached else { return };
        let Some(state) = self.leader.as_ref().map(|leader| leader.control_plane.state()) else { return };
        if let Some(commit) = &batch.commit {
            self.counts.commits += 1;
            self.store.commit(commit);
            self.committed = Some(state.clone());
        }
        let is_whole = count == batch.releases.len();
        if count == 0 && !is_whole {
            return;
        }
        self.publish(&state);
        for release in batch.releases.into_iter().take(count) {
            self.release(release, &state);
        }
        if is_whole {
            self.ledger.check(&state.marathon);
        }
    }

    fn publish(&mut self, state: &State) {
        let is_new = self.visible.as_ref().is_none_or(|v| v.cluster.revision < state.cluster.revision);
        self.visible = Some(state.clone());
        if is_new {
            self.watch.view(&state.cluster);
            for plane in 0..self.planes.len() {
                self.tell_plane(plane);
            }
        }
    }

    fn release(&mut self, release: Release, state: &State) {
        match release {
            Release::Agent { agent, command } => self.release_command(&agent, command, state),
            Release::Answer { number, answer } => {
                self.note(format_args!("command {number} is answered {}", brief_answer(&answer)));
                self.counts.answers += 1;
                self.ledger.answer(number, &answer);
            }
            Release::Event(_) | Release::RemovalHeld { .. } => {}
            Release::Warn { task, message } => panic!("{task}: {message}"),
        }
    }

    fn release_command(&mut self, agent: &AgentId, command: AgentCommand, state: &State) {
        if let AgentCommand::Kill { task, .. } = &command {
            self.check_kill(task, state);
        }
        let known = self.nodes.iter().position(|node| node.agent.id.as_ref() == Some(agent));
        if let AgentCommand::Registered { .. } = &command {
            let nodes = &self.nodes;
            let is_from = |node: usize| known.map_or(nodes[node].agent.id.is_none(), |known| known == node);
            let answered = self.leader.as_mut().and_then(|leader| leader.take_registration(is_from));
            let Some((node, connection)) = answered else { panic!("{agent} has not registered") };
            if self.nodes[node].connection == Some(connection) {
                self.nodes[node].is_open = true;
                self.send_command(node, command);
            }
        } else if let Some(node) = known.filter(|node| self.nodes[*node].is_open) {
            self.send_command(node, command);
        }
    }

    /// A task is told to end only when no client is sent to it, unless the drain took too long. Once it is told, it may
    /// be told again.
    fn check_kill(&mut self, task: &TaskKey, state: &State) {
        let Some(leader) = &mut self.leader else { return };
        let Some(known) = state.cluster.tasks.get(task) else { return };
        if known.state == TaskState::Killing || !leader.told.insert(task.clone()) {
            return;
        }
        assert_ne!(known.serving(), Serving::Ready, "{task} is to end but still ready");
        let is_overdue = leader.drains.get(task).is_some_and(|since| since.plus(DRAIN_GRACE) <= self.now);
        let is_early = self.now < leader.started_at.plus(PLANES_EXPECTED);
        for (number, plane) in self.planes.iter().enumerate() {
            let is_waited_for = is_early || leader.planes_known.contains(&number);
            if is_overdue || !is_waited_for {
                continue;
            }
            let node = plane.node;
            assert!(!plane.serves(task), "{task} is to end, {:?} of node {node} sends clients", plane.kind);
            assert!(!plane.is_connected_to(task), "{task} is to end, node {node} has connections to it");
        }
        if !self.planes.iter().any(|plane| plane.serves(task)) && self.watch.withdrawn.insert(task.clone()) {
            self.counts.drained += u64::from(!is_overdue);
        }
    }
}

/// Inputs in a few words.
struct Brief<'a>(&'a [Input]);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use mesonet_model::AgentReport::{Disconnected, Register, Status};
        for input in self.0 {
            match input {
                Input::Agent(Register { agent, tasks, .. }) => {
                    write!(f, "[register {agent:?} with {} tasks]", tasks.len())?;
                }
                Input::Agent(Status(status)) => write!(f, "[{} is {}]", status.task.task, status.state)?,
                Input::Agent(Disconnected { agent }) => write!(f, "[{agent} is disconnected]")?,
                Input::Plane(report) => {
                    write!(
                        f,
                        "[{} {} at {}, busy {:?}]",
                        report.node, report.plane, report.applied, report.busy
                    )?;
                }
                Input::PlaneGone { node, plane } => write!(f, "[{node} {plane} is gone]")?,
                Input::Node(order) => write!(f, "[{order:?}]")?,
                Input::Command { number, .. } => write!(f, "[command {number}]")?,
            }
        }
        Ok(())
    }
}

fn brief_answer<T, E: std::fmt::Display>(answer: &Result<T, E>) -> String {
    answer.as_ref().map_or_else(ToString::to_string, |_| "yes".to_owned())
}
