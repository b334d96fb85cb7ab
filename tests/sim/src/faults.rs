//! What users ask for, and what goes wrong.

use std::time::Duration;

use mesonet::leadership::Event;
use mesonet_model::{TaskKey, TaskState};

use crate::agent::ProcessEvent;
use crate::apps::FAILURES_MAX;
use crate::links::{Client, Side};
use crate::network::Party;
use crate::simulation::{Happening, Simulation};
use crate::user;

/// How long machines do not reach each other, mostly and at most, in milliseconds.
const CUT_SHORT: u64 = 8000;
const CUT_LONG: u64 = 90_000;

impl Simulation {
    /// A user asks some master, which passes on what it is asked if it does not lead.
    pub(crate) fn user_acts(&mut self) {
        if !self.is_trouble {
            return;
        }
        let asked = self.rng.usize(..self.masters.len());
        let leader = self.masters[asked].leader.filter(|_| self.masters[asked].is_up);
        let state = leader.and_then(|leader| self.masters[leader].leading()?.visible.as_ref());
        if let (Some(state), Some(master)) = (state, leader) {
            let command = user::command(&state.marathon, &mut self.rng);
            self.numbers += 1;
            let number = self.numbers;
            let brief = user::brief(&command);
            self.journal.note(self.now, format_args!("command {number} to master {master}: {brief}"));
            self.ledger.ask(number, command.clone(), &state.marathon);
            let at = self.now.plus(self.weather.delay(&mut self.rng));
            self.at(at, Happening::UserCommandArrives { asked, master, number, command });
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
        let plane = self.rng.usize(..self.planes.len());
        let leader = self.masters.iter().position(|master| master.serves());
        let any = self.rng.usize(..self.masters.len());
        let master = if self.rng.bool() { leader.unwrap_or(any) } else { any };
        match self.rng.u32(..22) {
            0..=2 => self.crash_master(master),
            3 => {
                self.note(format_args!("master {master} is to leave leadership to another one"));
                self.master_event(master, Event::Abdicate);
            }
            4..=5 => self.crash_agent(node),
            6 => self.drop_link(self.nodes[node].link),
            7 => self.drop_link(self.planes[plane].link),
            8 => self.drop_link(self.masters[master].upstream),
            9..=10 => self.restart_plane(plane),
            11..=13 => self.cut_a_pair(node, master),
            14..=15 => self.isolate(node, master),
            16 => self.store_is_slow(),
            17 => self.stall(master),
            18 => self.set_a_clock(node, master),
            _ => self.fail_a_task(node),
        }
        self.soon(self.fault_pause, Happening::Fault);
    }

    fn crash_agent(&mut self, node: usize) {
        if !self.nodes[node].agent.is_up {
            return;
        }
        self.note(format_args!("agent {node} crashes"));
        self.counts.agent_crashes += 1;
        let own = &mut self.nodes[node];
        own.agent.crash();
        (own.link, own.term, own.leader) = (None, 0, None);
        self.forget_ends(|link| (link.client == Client::Agent(node)).then_some(Side::Client));
        let down = if self.rng.u32(..4) > 0 { 3000 } else { CUT_LONG };
        self.soon(down, Happening::AgentStarts { node });
    }

    fn restart_plane(&mut self, plane: usize) {
        self.note(format_args!("plane {plane} begins anew"));
        self.planes[plane].begin_anew();
        self.forget_ends(|link| (link.client == Client::Plane(plane)).then_some(Side::Client));
        self.soon(1000, Happening::PlaneConnects { plane });
    }

    /// A connection breaks for no reason that anybody knows.
    fn drop_link(&mut self, link: Option<u64>) {
        let Some(id) = link else { return };
        let Some(client) = self.links.get(&id).map(|link| link.client) else { return };
        self.note(format_args!("{client:?} loses its connection"));
        self.close(id, Side::Client);
        self.redial_soon(client, id);
    }

    fn cut_a_pair(&mut self, node: usize, master: usize) {
        let other = (master + 1) % self.masters.len();
        let (a, b) = match self.rng.u32(..3) {
            0 => (Party::Store, Party::Master(master)),
            1 => (Party::Master(other), Party::Master(master)),
            _ => (Party::Node(node), Party::Master(master)),
        };
        self.cut_for_a_while(&[(a, b)]);
    }

    fn isolate(&mut self, node: usize, master: usize) {
        let all: Vec<Party> = self.parties_of_all();
        let lonely = match self.rng.u32(..5) {
            0 => Party::Store,
            1..=2 => Party::Master(master),
            _ => Party::Node(node),
        };
        let pairs: Vec<(Party, Party)> =
            all.into_iter().filter(|other| *other != lonely).map(|other| (lonely, other)).collect();
        self.cut_for_a_while(&pairs);
    }

    fn cut_for_a_while(&mut self, pairs: &[(Party, Party)]) {
        self.counts.partitions += 1;
        let most = if self.rng.u32(..6) == 0 { CUT_LONG } else { CUT_SHORT };
        let millis = self.rng.u64(..=most);
        self.note(format_args!("cut for {millis} ms: {pairs:?}"));
        for (a, b) in pairs {
            self.silence(*a, *b);
            let at = self.now.plus(Duration::from_millis(millis));
            self.at(at, Happening::Heals { a: *a, b: *b });
        }
    }

    fn store_is_slow(&mut self) {
        let millis = self.rng.u64(..=4000);
        self.note(format_args!("the store does nothing for {millis} ms"));
        self.store_slow_until = self.now.plus(Duration::from_millis(millis));
    }

    /// A process does nothing for a while, and does not know it afterwards.
    fn stall(&mut self, master: usize) {
        self.counts.stalls += 1;
        let millis = self.rng.u64(..=CUT_SHORT);
        self.note(format_args!("master {master} stalls for {millis} ms"));
        self.masters[master].stalled_until = self.now.plus(Duration::from_millis(millis));
        self.lose_if_silent(master, millis);
    }

    fn set_a_clock(&mut self, node: usize, master: usize) {
        self.counts.clocks_set += 1;
        if self.rng.bool() {
            self.note(format_args!("the clock of master {master} is set"));
            self.masters[master].clock.set(&mut self.rng);
        } else {
            self.note(format_args!("the clock of node {node} is set"));
            self.nodes[node].clock.set(&mut self.rng);
        }
    }

    fn fail_a_task(&mut self, node: usize) {
        let agent = &self.nodes[node].agent;
        let running: Vec<TaskKey> =
            agent.live().map(|(key, _)| key.clone()).filter(|key| agent.is_running(key)).collect();
        if let Some(task) = self.rng.choice(running) {
            let event = match self.rng.u32(..6) {
                0 => ProcessEvent::Checked { failures: 0 },
                1 => ProcessEvent::Checked { failures: 1 },
                2 => ProcessEvent::Checked { failures: FAILURES_MAX },
                _ => ProcessEvent::Ended(TaskState::Failed),
            };
            self.process(node, &task, event);
        }
    }

    /// Whatever runs is well and ready.
    pub(crate) fn heal_tasks(&mut self) {
        for node in 0..self.nodes.len() {
            let tasks: Vec<TaskKey> = self.nodes[node].agent.live().map(|(key, _)| key.clone()).collect();
            for task in tasks {
                self.process(node, &task, ProcessEvent::Checked { failures: 0 });
                self.process(node, &task, ProcessEvent::Ready);
            }
        }
    }

    fn parties_of_all(&self) -> Vec<Party> {
        let masters = (0..self.masters.len()).map(Party::Master);
        let nodes = (0..self.nodes.len()).map(Party::Node);
        std::iter::once(Party::Store).chain(masters).chain(nodes).collect()
    }
}
