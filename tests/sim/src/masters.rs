//! The masters' side of a run: processes, turns, and what is released.

use std::collections::BTreeMap;
use std::time::Duration;

use mesonet::control_plane::{Input, Release, State};
use mesonet::leadership::{Event, Leadership, Order, Stage};
use mesonet_model::{
    AgentCommand, AgentId, ClusterView, PlaneReport, Revision, Serving, TaskKey, TaskState, Timestamp,
};

use crate::brief::{Brief, brief_answer};
use crate::clocks::MachineClock;
use crate::elections::Ask;
use crate::leader::{DRAIN_GRACE, Leader, PLANES_EXPECTED, Records, has_passed};
use crate::links::{Client, Down, End, Link, Side};
use crate::simulation::{Happening, Simulation};
use crate::watch::check_recovery;

/// A master's process and its machine.
#[derive(Debug)]
pub(crate) struct MasterProcess {
    pub(crate) clock: MachineClock,
    /// Counts its starts.
    pub(crate) life: u64,
    pub(crate) is_up: bool,
    /// Until when its process does nothing, as when its machine is overloaded: it notices nothing meanwhile.
    pub(crate) stalled_until: Timestamp,
    /// What decides whether it leads.
    leadership: Leadership,
    /// When it may stand for election again.
    pub(crate) campaigns_from: Timestamp,
    pub(crate) role: Role,
    /// The newest term that it has led in or followed.
    pub(crate) term: u64,
    /// Who leads, as far as it knows.
    pub(crate) leader: Option<usize>,
    /// The connection to who leads.
    pub(crate) upstream: Option<u64>,
    /// The newest view, for planes.
    pub(crate) feed: Option<ClusterView>,
    /// What the planes said last that are connected here.
    pub(crate) planes_here: BTreeMap<usize, PlaneReport>,
}

/// What a master has at hand.
#[derive(Debug)]
pub(crate) enum Role {
    Standby,
    /// It is elected and reads what the store holds.
    Elected {
        term: u64,
        /// By its own clock.
        until: Duration,
    },
    /// It has a control plane.
    Leading(Box<Leader>),
}

impl MasterProcess {
    pub(crate) fn new(clock: MachineClock) -> Self {
        Self {
            clock,
            life: 0,
            is_up: false,
            stalled_until: Timestamp::default(),
            leadership: Leadership::default(),
            campaigns_from: Timestamp::default(),
            role: Role::Standby,
            term: 0,
            leader: None,
            upstream: None,
            feed: None,
            planes_here: BTreeMap::new(),
        }
    }

    pub(crate) fn leading(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leading(leader) => Some(leader),
            Role::Standby | Role::Elected { .. } => None,
        }
    }

    pub(crate) fn leading_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leading(leader) => Some(leader),
            Role::Standby | Role::Elected { .. } => None,
        }
    }

    /// The control plane, if it serves.
    pub(crate) fn serving_mut(&mut self) -> Option<&mut Leader> {
        let serves = self.serves();
        self.leading_mut().filter(|_| serves)
    }

    /// Whether it leads and serves agents and users.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.leadership.stage(), Stage::Leading(_))
    }

    /// Whether it leads in a term, or is about to.
    pub(crate) fn leads_or_will(&self, term: u64) -> bool {
        match &self.role {
            Role::Leading(leader) => leader.term == term,
            Role::Elected { term: elected, .. } => *elected == term,
            Role::Standby => false,
        }
    }
}

impl Simulation {
    pub(crate) fn start_master(&mut self, master: usize) {
        let own = &mut self.masters[master];
        if own.is_up {
            return;
        }
        own.is_up = true;
        own.life += 1;
        let life = own.life;
        self.note(format_args!("master {master} starts"));
        self.soon(50, Happening::MasterLooks { master, life });
    }

    /// The process is gone, with everything that is not committed.
    pub(crate) fn crash_master(&mut self, master: usize) {
        if !self.masters[master].is_up {
            return;
        }
        self.note(format_args!("master {master} crashes"));
        self.counts.master_crashes += 1;
        let own = &mut self.masters[master];
        own.is_up = false;
        (own.role, own.leader, own.upstream, own.feed) = (Role::Standby, None, None, None);
        (own.leadership, own.campaigns_from) = (Leadership::default(), self.now);
        own.planes_here.clear();
        self.forget_ends(|link| match link.client {
            Client::Standby(client) if client == master => Some(Side::Client),
            Client::Agent(_) | Client::Plane(_) | Client::Standby(_) => {
                (link.server == master).then_some(Side::Server)
            }
        });
        let down = if self.rng.u32(..4) > 0 { 500 } else { 20_000 };
        self.soon(down, Happening::MasterStarts { master });
    }

    /// Something happens that decides who leads.
    pub(crate) fn master_event(&mut self, master: usize, event: Event) {
        let term = match &self.masters[master].role {
            Role::Leading(leader) => leader.term,
            Role::Elected { term, .. } => *term,
            Role::Standby => 0,
        };
        let (orders, cause) = self.masters[master].leadership.handle(event);
        if let Some(cause) = cause {
            self.note(format_args!("the term {term} of master {master} is over: {}", cause.as_str()));
            self.counts.depositions += 1;
        }
        for order in orders {
            match order {
                Order::TakeOver => self.ask(master, Ask::Load { term }),
                Order::Lead | Order::StandBy => self.close_house(master),
                Order::Finish | Order::Drop => {
                    self.masters[master].role = Role::Standby;
                    self.masters[master].leader = None;
                }
                Order::Resign => self.ask(master, Ask::Resign { term }),
                Order::Campaign(wait) => {
                    let (at, life) = (self.now.plus(wait), self.masters[master].life);
                    self.masters[master].campaigns_from = at;
                    self.at(at, Happening::MasterLooks { master, life });
                }
                Order::Withdraw => {}
            }
        }
    }

    /// With another duty a master serves other connections: all have to come anew.
    fn close_house(&mut self, master: usize) {
        let is_guest = |link: &&Link| link.server == master && link.server_end == End::Open;
        let guests: Vec<u64> =
            self.links.iter().filter(|(_, link)| is_guest(link)).map(|(id, _)| *id).collect();
        for link in guests {
            self.close(link, Side::Server);
        }
        self.masters[master].planes_here.clear();
    }

    /// What the store holds is where the last committer was at its last commit.
    pub(crate) fn check_recovery(&self, term: u64, revision: Revision, records: &Records) {
        if let Some(committed) = &self.store.committed
            && committed.cluster.revision == revision
        {
            let settings = self.settings;
            check_recovery(term, settings, (revision, records), &committed.cluster, &committed.marathon);
        }
    }

    /// Something arrives at a master that leads, if it does.
    pub(crate) fn arrive(&mut self, master: usize, input: Input, from_agent: Option<(usize, u64)>) {
        if let Some(leader) = self.masters[master].serving_mut() {
            leader.arrive(input, from_agent);
            self.plan_turn(master);
        }
    }

    pub(crate) fn turn(&mut self, master: usize, term: u64) {
        let now = self.now;
        let own = &mut self.masters[master];
        let Role::Leading(leader) = &mut own.role else { return };
        if leader.term != term || leader.batch.is_some() || leader.wake.is_none_or(|wake| wake > now) {
            return;
        }
        leader.wake = None;
        self.journal.note(now, format_args!("master {master} turns with {:?}", Brief(&leader.inbox)));
        leader.turn(&own.clock, now);
        self.begin_commit(master);
    }

    /// Plans the next turn if the master has nothing else to do.
    pub(crate) fn plan_turn(&mut self, master: usize) {
        let now = self.now;
        let own = &mut self.masters[master];
        let Role::Leading(leader) = &mut own.role else { return };
        if leader.batch.is_some() {
            return;
        }
        let next = if leader.inbox.is_empty() { leader.deadline(&own.clock, now) } else { Some(now) };
        if let Some(at) = next
            && leader.wake.is_none_or(|wake| at < wake)
        {
            leader.wake = Some(at);
            let term = leader.term;
            self.at(at, Happening::MasterTurns { master, term });
        }
    }

    /// Makes a committed batch visible and does what it says, all or, if the process dies meanwhile, part of it.
    pub(crate) fn carry_out(&mut self, master: usize) {
        if let Some(term) = self.masters[master].leading().map(|leader| leader.term) {
            // The first commit makes it ready; later ones change nothing.
            self.master_event(master, Event::Ready(term));
        }
        let Some(leader) = self.masters[master].leading_mut() else { return };
        let Some(batch) = leader.batch.take() else { return };
        let state = leader.control_plane.state();
        leader.visible = Some(state.clone());
        let all = batch.releases.len();
        let dies = self.trouble(1);
        let count = if dies { self.rng.usize(..=all) } else { all };
        if !dies || count > 0 {
            self.publish(master, &state.cluster);
        }
        for release in batch.releases.into_iter().take(count) {
            self.release(master, release, &state);
        }
        if dies {
            self.note(format_args!("with {count} of {all} releases out"));
            return self.crash_master(master);
        }
        self.plan_turn(master);
    }

    fn release(&mut self, master: usize, release: Release, state: &State) {
        match release {
            Release::Agent { agent, command } => self.release_command(master, &agent, command, state),
            Release::Answer { number, answer } => {
                self.note(format_args!("command {number} is answered {}", brief_answer(&answer)));
                self.counts.answers += 1;
                let leads = self.store.leader(self.now).is_some_and(|leader| leader.master == master);
                self.ledger.answer(number, &answer, leads);
            }
            Release::Event(_) | Release::RemovalHeld { .. } => {}
            Release::Ordered { number } => panic!("nobody has given order {number}"),
            Release::Refused { refusal, .. } => panic!("{refusal}"),
            Release::NetworkExhausted { network, agent } => panic!("{network} has no part for {agent}"),
            Release::Warn { task, message } => panic!("{task}: {message}"),
        }
    }

    fn release_command(&mut self, master: usize, agent: &AgentId, command: AgentCommand, state: &State) {
        if let AgentCommand::Kill { task, .. } = &command {
            self.check_kill(master, task, state);
        }
        let known = self.nodes.iter().position(|node| node.agent.id.as_ref() == Some(agent));
        if let AgentCommand::Registered { .. } = &command {
            let nodes = &self.nodes;
            let is_new = |node: usize| {
                let id = nodes[node].agent.id.as_ref();
                id.is_none_or(|id| !state.cluster.agents.contains_key(id))
            };
            let is_from = |node: usize| known.map_or_else(|| is_new(node), |known| known == node);
            let leader = self.masters[master].leading_mut();
            let answered = leader.and_then(|leader| leader.take_registration(is_from));
            let Some((_, link)) = answered else { panic!("{agent} has not registered") };
            if let Some(own) = self.links.get_mut(&link) {
                own.registered = Some(agent.clone());
                self.tell(link, Down::Command(command), Duration::ZERO);
            }
            return;
        }
        let link = self.links.iter().find(|(_, link)| {
            link.server == master && link.server_end == End::Open && link.registered.as_ref() == Some(agent)
        });
        if let Some(id) = link.map(|(id, _)| *id) {
            self.tell(id, Down::Command(command), Duration::ZERO);
        }
    }

    /// A task is told to end only when no client is sent to it, unless the drain took too long. Once it is told, it may
    /// be told again.
    fn check_kill(&mut self, master: usize, task: &TaskKey, state: &State) {
        let now = self.now;
        let Some(known) = state.cluster.tasks.get(task) else { return };
        let Some(leader) = self.masters[master].leading_mut() else { return };
        if known.state == TaskState::Killing || !leader.told.insert(task.clone()) {
            return;
        }
        assert_ne!(known.serving(), Serving::Ready, "{task} is to end but still ready");
        let is_overdue =
            leader.drains.get(task).is_some_and(|(since, _)| has_passed(DRAIN_GRACE, *since, now));
        let withdrawn_at = leader.drains.get(task).copied();
        let is_early = !has_passed(PLANES_EXPECTED, leader.started_at, now);
        for (number, plane) in self.planes.iter().enumerate() {
            let is_waited_for = is_early || self.is_known(master, number);
            if is_overdue || !is_waited_for || plane.is_behind() {
                continue;
            }
            let node = plane.node;
            assert!(!plane.serves(task), "{task} is to end, {:?} of node {node} sends clients", plane.kind);
            assert!(!plane.is_connected_to(task), "{task} is to end, node {node} has connections to it");
        }
        let Some((_, revision)) = withdrawn_at else { return };
        let is_withdrawn = self.planes.iter().all(|plane| plane.newest >= revision && !plane.serves(task));
        if is_withdrawn && self.watch.withdrawn.insert(task.clone()) {
            self.counts.drained += u64::from(!is_overdue);
        }
    }

    /// Whether a leader must have known of a plane when it decided what it carries out: it has heard of it, or there
    /// was a way to it on which everything had arrived.
    fn is_known(&self, master: usize, plane: usize) -> bool {
        let Some(leader) = self.masters[master].leading() else { return false };
        let link = |id: Option<u64>| id.and_then(|id| self.links.get(&id));
        let Some(own) = link(self.planes[plane].link) else { return false };
        let is_heard = |since: Option<Timestamp>| since.is_some_and(|at| at < leader.turned_before);
        let is_direct = own.server == master && self.planes[plane].view.is_some();
        let relays = link(self.masters[own.server].upstream)
            .is_some_and(|upstream| upstream.server == master && is_heard(upstream.heard_all_since()));
        let has_said = self.planes[plane].view.is_some();
        leader.knows(plane, self.now)
            || (has_said && is_heard(own.heard_all_since()) && (is_direct || relays))
    }
}
