//! Masters and the store: who leads, and what is committed.

use std::time::Duration;

use mesonet::control_plane::{Commit, Release, State};
use mesonet::leadership::Event;
use mesonet_marathon::{Rejection, Reply};
use mesonet_model::Revision;

use crate::kills::Known;
use crate::leader::{Leader, Records};
use crate::links::{Client, Side};
use crate::masters::Role;
use crate::network::Party;
use crate::simulation::{Happening, Simulation};
use crate::store::{CALM_LEASE, LEASE, Leadership, Verdict};

/// How often a lease is renewed within its time.
const RENEWALS: u32 = 3;

/// How long a master waits for the store before it asks again.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a master asks the store.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Who leads?
    Look,
    /// May I lead? Asked at a time by the master's own clock.
    Campaign { asked: Duration },
    /// What do you hold?
    Load { term: u64 },
    /// May I go on leading?
    Renew { term: u64, asked: Duration },
    /// Keep this.
    Commit(Box<Proposal>),
    /// I do not lead any more.
    Resign { term: u64 },
}

/// A batch on its way to the store.
#[derive(Debug)]
pub(crate) struct Proposal {
    term: u64,
    before: Revision,
    commit: Commit,
    /// What is so when it is committed.
    state: State,
    answers: Vec<(u64, Result<Reply, Rejection>)>,
}

/// What the store answers.
#[derive(Debug)]
pub(crate) enum Told {
    Leader(Option<Leadership>),
    Elected { term: u64, until: Duration },
    Contents { term: u64, revision: Revision, records: Records },
    Renewed { term: u64, until: Duration },
    Committed { revision: Revision },
    Deposed { term: u64 },
    Nothing,
}

impl Simulation {
    pub(crate) fn ask(&mut self, master: usize, ask: Ask) {
        let life = self.masters[master].life;
        let at = self.now.plus(self.weather.delay(&mut self.rng));
        self.at(at, Happening::StoreHears { master, life, ask });
    }

    pub(crate) fn store_hears(&mut self, master: usize, life: u64, ask: Ask) {
        if self.network.is_cut(Party::Store, Party::Master(master)) {
            return;
        }
        if self.now < self.store_slow_until {
            let at = self.store_slow_until;
            return self.at(at, Happening::StoreHears { master, life, ask });
        }
        let told = self.store_does(master, life, ask);
        let at = self.now.plus(self.weather.delay(&mut self.rng));
        self.at(at, Happening::StoreAnswers { master, life, told });
    }

    fn store_does(&mut self, master: usize, life: u64, ask: Ask) -> Told {
        let (now, lease) = (self.now, self.lease());
        match ask {
            Ask::Look => Told::Leader(self.store.leader(now)),
            Ask::Campaign { asked } => match self.store.campaign(master, life, now, LEASE) {
                Some(term) => {
                    self.note(format_args!("master {master} is elected for term {term}"));
                    self.lease_begins(term);
                    Told::Elected { term, until: asked + LEASE }
                }
                None => Told::Leader(self.store.leader(now)),
            },
            Ask::Load { term } => {
                let (revision, records) = (self.store.revision, self.store.records());
                Told::Contents { term, revision, records }
            }
            Ask::Renew { term, asked } => {
                if self.store.renew(term, now, lease) {
                    Told::Renewed { term, until: asked + lease }
                } else {
                    Told::Deposed { term }
                }
            }
            Ask::Commit(proposal) => self.store_commits(&proposal),
            Ask::Resign { term } => {
                self.store.resign(term);
                self.everybody_looks();
                Told::Nothing
            }
        }
    }

    /// The moment from which on a change is there: what was answered before holds, and this as well.
    fn store_commits(&mut self, proposal: &Proposal) -> Told {
        let Proposal { term, before, commit, state, answers } = proposal;
        let revision = commit.revision;
        match self.store.commit(*term, *before, commit, state, self.now) {
            Verdict::Committed => {
                self.counts.commits += 1;
                self.watch.view(&state.cluster);
                for (number, answer) in answers {
                    self.ledger.commit(*number, answer);
                }
                self.ledger.check(&state.marathon);
                self.counts.readied += self.readiness.check(&state.marathon, &self.ledger.cancelled);
                let known = Known { by_users: &self.ledger.killed, ready: &self.readiness.ready };
                self.counts.spared += self.kills.check(state, known);
                Told::Committed { revision }
            }
            Verdict::Known => Told::Committed { revision },
            Verdict::Deposed => Told::Deposed { term: *term },
        }
    }

    pub(crate) fn store_answers(&mut self, master: usize, life: u64, told: Told) {
        let own = &self.masters[master];
        if !own.is_up || own.life != life || self.network.is_cut(Party::Store, Party::Master(master)) {
            return;
        }
        match told {
            Told::Leader(leader) => self.looked(master, leader),
            Told::Elected { term, until } => self.elected(master, term, until),
            Told::Contents { term, revision, records } => self.loaded(master, term, revision, &records),
            Told::Renewed { term, until } => self.renewed(master, term, until),
            Told::Committed { revision } => self.committed(master, revision),
            Told::Deposed { term } => self.master_event(master, Event::Deposed(term)),
            Told::Nothing => {}
        }
    }

    /// Looks who leads, now and then: a watch that never misses for long.
    pub(crate) fn master_looks(&mut self, master: usize, life: u64) {
        if !self.masters[master].is_up || self.masters[master].life != life {
            return;
        }
        if matches!(self.masters[master].role, Role::Standby) {
            self.ask(master, Ask::Look);
        }
        let pause = if self.is_trouble { 1000 } else { 20_000 };
        self.soon_after(pause / 2, pause, Happening::MasterLooks { master, life });
    }

    fn looked(&mut self, master: usize, leader: Option<Leadership>) {
        if !matches!(self.masters[master].role, Role::Standby) {
            return;
        }
        match leader {
            None if self.now < self.masters[master].campaigns_from => {}
            None => {
                let asked = self.masters[master].clock.monotonic(self.now);
                self.ask(master, Ask::Campaign { asked });
            }
            Some(leader) if leader.master != master => self.follow(master, leader),
            // A life before this one was elected, and its lease has to end first.
            Some(_) => {}
        }
    }

    /// Connects to the leader, unless it is.
    fn follow(&mut self, master: usize, leader: Leadership) {
        let own = &mut self.masters[master];
        own.leader = Some(leader.master);
        let known = own.feed.as_ref().map(|view| view.revision);
        if let Some(upstream) = own.upstream {
            if self.links.get(&upstream).is_some_and(|link| link.server == leader.master) {
                return;
            }
            self.close(upstream, Side::Client);
        }
        let link = self.dial(Client::Standby(master), leader.master, known);
        self.masters[master].upstream = Some(link);
    }

    fn elected(&mut self, master: usize, term: u64, until: Duration) {
        if !matches!(self.masters[master].role, Role::Standby) {
            return;
        }
        self.masters[master].role = Role::Elected { term, until };
        if let Some(upstream) = self.masters[master].upstream.take() {
            self.close(upstream, Side::Client);
        }
        self.master_event(master, Event::Elected(term));
        self.watch_lease(master, term, until);
        self.at(self.now, Happening::MasterRenews { master, term });
    }

    fn loaded(&mut self, master: usize, term: u64, revision: Revision, records: &Records) {
        let Role::Elected { term: elected, until } = self.masters[master].role else { return };
        if elected != term {
            return;
        }
        self.check_recovery(term, revision, records);
        self.note(format_args!("master {master} leads from {revision} on, term {term}"));
        self.counts.terms += 1;
        let own = &self.masters[master];
        let mut leader = Leader::start(term, self.settings, (revision, records), &own.clock, self.now);
        leader.confirmed_until = until;
        let own = &mut self.masters[master];
        (own.role, own.term, own.leader) = (Role::Leading(Box::new(leader)), term, Some(master));
        self.begin_commit(master);
    }

    pub(crate) fn master_renews(&mut self, master: usize, term: u64) {
        if self.masters[master].leads_or_will(term) {
            let asked = self.masters[master].clock.monotonic(self.now);
            self.ask(master, Ask::Renew { term, asked });
            let at = self.now.plus(self.lease() / RENEWALS);
            self.at(at, Happening::MasterRenews { master, term });
        }
    }

    fn renewed(&mut self, master: usize, term: u64, until: Duration) {
        let confirmed = match &mut self.masters[master].role {
            Role::Leading(leader) if leader.term == term => &mut leader.confirmed_until,
            Role::Elected { term: elected, until } if *elected == term => until,
            Role::Leading(_) | Role::Elected { .. } | Role::Standby => return,
        };
        if *confirmed < until {
            *confirmed = until;
            self.watch_lease(master, term, until);
        }
    }

    fn watch_lease(&mut self, master: usize, term: u64, until: Duration) {
        let left = until.saturating_sub(self.masters[master].clock.monotonic(self.now));
        self.at(self.now.plus(left), Happening::LeaseMayEnd { master, term });
    }

    /// Nobody has confirmed the lease for so long that another master may lead.
    pub(crate) fn lease_may_end(&mut self, master: usize, term: u64) {
        let own = &self.masters[master];
        let until = match &own.role {
            Role::Leading(leader) if leader.term == term => leader.confirmed_until,
            Role::Elected { term: elected, until } if *elected == term => *until,
            Role::Leading(_) | Role::Elected { .. } | Role::Standby => return,
        };
        if own.clock.monotonic(self.now) + Duration::from_millis(1) >= until {
            self.master_event(master, Event::Lost(term));
        } else {
            self.watch_lease(master, term, until);
        }
    }

    /// Asks the store to commit the batch that is decided, or carries it out at once if there is nothing to commit.
    pub(crate) fn begin_commit(&mut self, master: usize) {
        let Some(leader) = self.masters[master].leading() else { return };
        let Some(batch) = &leader.batch else { return };
        let Some(commit) = batch.commit.clone() else { return self.carry_out(master) };
        let answers = batch.releases.iter().filter_map(|release| match release {
            Release::Answer { number, answer } => Some((*number, answer.clone())),
            Release::Agent { .. }
            | Release::Event(_)
            | Release::RemovalHeld { .. }
            | Release::Ordered { .. }
            | Release::Refused { .. }
            | Release::NetworkExhausted { .. }
            | Release::Warn { .. } => None,
        });
        let (term, before, revision) = (leader.term, leader.committed, commit.revision);
        let proposal = Proposal {
            term,
            before,
            commit,
            state: leader.control_plane.state(),
            answers: answers.collect(),
        };
        self.ask(master, Ask::Commit(Box::new(proposal)));
        let at = self.now.plus(PATIENCE);
        self.at(at, Happening::CommitRepeats { master, term, revision });
    }

    /// The answer is late, and may be lost.
    pub(crate) fn commit_repeats(&mut self, master: usize, term: u64, revision: Revision) {
        let Some(leader) = self.masters[master].leading().filter(|leader| leader.term == term) else {
            return;
        };
        let waits_for = leader.batch.as_ref().and_then(|batch| batch.commit.as_ref());
        if waits_for.is_some_and(|commit| commit.revision == revision) {
            self.begin_commit(master);
        }
    }

    fn committed(&mut self, master: usize, revision: Revision) {
        let Some(leader) = self.masters[master].leading_mut() else { return };
        let waits_for = leader.batch.as_ref().and_then(|batch| batch.commit.as_ref());
        if waits_for.is_some_and(|commit| commit.revision == revision) {
            leader.committed = revision;
            self.carry_out(master);
        }
    }

    /// The lease in the store ends when nobody renews it, and all masters that can hear it hear of it.
    pub(crate) fn lease_ends(&mut self, term: u64) {
        match self.store.lease_ends().filter(|_| self.store.term == term) {
            Some(at) if at > self.now => self.at(at, Happening::LeaseEnds { term }),
            Some(_) => self.everybody_looks(),
            None => {}
        }
    }

    fn lease_begins(&mut self, term: u64) {
        self.at(self.now.plus(LEASE), Happening::LeaseEnds { term });
        self.everybody_looks();
    }

    fn everybody_looks(&mut self) {
        for master in 0..self.masters.len() {
            if self.masters[master].is_up && matches!(self.masters[master].role, Role::Standby) {
                self.ask(master, Ask::Look);
            }
        }
    }

    fn lease(&self) -> Duration {
        if self.is_over { CALM_LEASE } else { LEASE }
    }
}
