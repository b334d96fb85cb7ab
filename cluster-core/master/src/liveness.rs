//! Which agents answer, and when those that do not are given up.
//!
//! A lost connection makes an agent suspect at once and unreachable after a time. The brake: if more than a share of
//! the agents is lost at about the same time, the fault is rather the network's or the master's own than the agents',
//! and giving them up would start everything once more on the few that are left. Then none is given up until enough
//! of them are back or an operator confirms that they are gone.
//!
//! An agent that stays unreachable for very long is removed from the cluster. What it ran is over then, even if its
//! framework would wait for ever, and it is another agent if it comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_model::{AgentId, AgentState, Timestamp};
use serde::{Deserialize, Serialize};

/// How long after a start of the master agents may take to register again before they are suspect. The master cannot
/// know how they are; several times what an agent waits at most between two attempts to connect.
const REREGISTRATION_WINDOW: Duration = Duration::from_secs(30);

/// Fewer lost agents than this never pull the brake: one agent of one or two may be lost for itself.
const MASS_MIN: usize = 2;

/// When agents that do not answer are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureDetection {
    /// How long after its connection is lost an agent is unreachable.
    pub unreachable_after: Duration,
    /// The greatest share of the agents, in percent, that may be lost within the window and given up nevertheless. A
    /// single agent always may.
    pub removal_percent_max: u8,
    /// For how long an agent that was given up counts for that share.
    pub removal_window: Duration,
    /// How long after it became unreachable an agent is removed with its tasks, unless an operator empties it: then it
    /// is kept until the operator removes it. A start of the master begins the time anew.
    pub removed_after: Duration,
}

impl Default for FailureDetection {
    /// What DESIGN.md §5 lays down.
    fn default() -> Self {
        Self {
            unreachable_after: Duration::from_secs(5),
            removal_percent_max: 50,
            removal_window: Duration::from_secs(60),
            removed_after: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Every agent's state, and the timers that change it.
#[derive(Debug)]
pub(crate) struct Liveness {
    config: FailureDetection,
    agents: BTreeMap<AgentId, Watch>,
    /// Agents of the store whose timers begin with the first input.
    unstarted: BTreeSet<AgentId>,
    timers: BTreeSet<(Timestamp, AgentId)>,
    suspects: BTreeSet<AgentId>,
    unreachable: usize,
    /// Suspects whose time is over.
    overdue: BTreeSet<AgentId>,
    /// Suspects that an operator has confirmed to be gone.
    confirmed: BTreeSet<AgentId>,
    brake: Brake,
    /// Unreachable agents whose time is over.
    gone: BTreeSet<AgentId>,
}

/// What the brake knows. The store has it, so that a restart of the master does not release it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Brake {
    is_held: bool,
    /// Agents given up within the window and not back, and since when.
    recent: BTreeMap<AgentId, Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    state: AgentState,
    timer: Option<Timestamp>,
}

impl Liveness {
    pub(crate) fn new(config: FailureDetection) -> Self {
        Self {
            config,
            agents: BTreeMap::new(),
            unstarted: BTreeSet::new(),
            timers: BTreeSet::new(),
            suspects: BTreeSet::new(),
            unreachable: 0,
            overdue: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            brake: Brake::default(),
            gone: BTreeSet::new(),
        }
    }

    /// Takes over an agent from the store, and says what it is until it registers.
    pub(crate) fn restore(&mut self, agent: &AgentId, stored: AgentState) -> AgentState {
        let state = match stored {
            AgentState::Active | AgentState::Recovered => AgentState::Recovered,
            AgentState::Suspect => AgentState::Suspect,
            AgentState::Unreachable => AgentState::Unreachable,
        };
        self.set(agent, state, None);
        self.unstarted.insert(agent.clone());
        state
    }

    /// Takes over the brake from the store, after the agents.
    pub(crate) fn restore_brake(&mut self, stored: Brake) {
        let is_unreachable = |agent: &AgentId| {
            self.agents.get(agent).is_some_and(|watch| watch.state == AgentState::Unreachable)
        };
        let recent = stored.recent.into_iter().filter(|(agent, _)| is_unreachable(agent)).collect();
        self.brake = Brake { is_held: stored.is_held, recent };
    }

    /// What the brake knows, for the store.
    pub(crate) fn brake(&self) -> &Brake {
        &self.brake
    }

    /// Begins to wait for the agents of the store, at the first call.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        let window_end = now.plus(REREGISTRATION_WINDOW);
        for agent in std::mem::take(&mut self.unstarted) {
            let Some(watch) = self.agents.get(&agent).copied() else { continue };
            let timer = match watch.state {
                AgentState::Recovered => Some(window_end),
                AgentState::Suspect => Some(window_end.plus(self.config.unreachable_after)),
                AgentState::Unreachable => Some(now.plus(self.config.removed_after)),
                AgentState::Active => None,
            };
            let given_up = self.brake.recent.get(&agent).copied();
            self.set(&agent, watch.state, timer);
            self.brake.recent.extend(given_up.map(|since| (agent, since)));
        }
    }

    /// The agent has registered.
    pub(crate) fn answers(&mut self, agent: &AgentId) {
        self.set(agent, AgentState::Active, None);
    }

    /// The agent's connection is lost; whether that makes it suspect.
    pub(crate) fn is_silent(&mut self, agent: &AgentId, now: Timestamp) -> bool {
        match self.agents.get(agent).map(|watch| watch.state) {
            Some(AgentState::Active | AgentState::Recovered) => {
                let timer = now.plus(self.config.unreachable_after);
                self.set(agent, AgentState::Suspect, Some(timer));
                true
            }
            Some(AgentState::Suspect | AgentState::Unreachable) | None => false,
        }
    }

    /// A suspect agent is not waited for any longer.
    pub(crate) fn hurry(&mut self, agent: &AgentId, now: Timestamp) {
        let watch = self.agents.get(agent).copied();
        // One whose time is over may be held by the brake.
        let is_waiting = watch.is_some_and(|watch| {
            watch.state == AgentState::Suspect && watch.timer.is_some_and(|at| at > now)
        });
        if is_waiting && !self.unstarted.contains(agent) {
            self.set(agent, AgentState::Suspect, Some(now));
        }
    }

    /// The agents that do not answer and are not given up.
    pub(crate) fn suspects(&self) -> &BTreeSet<AgentId> {
        &self.suspects
    }

    /// The agent is not part of the cluster any more.
    pub(crate) fn forget(&mut self, agent: &AgentId) {
        if let Some(watch) = self.agents.remove(agent) {
            self.leave(agent, watch);
        }
    }

    /// The agent is not to be kept any more however long it is away. If its time was over already, it begins anew.
    pub(crate) fn wait_again(&mut self, agent: &AgentId, now: Timestamp) {
        let at = now.plus(self.config.removed_after);
        let is_over = |watch: &&mut Watch| watch.state == AgentState::Unreachable && watch.timer.is_none();
        let Some(watch) = self.agents.get_mut(agent).filter(is_over) else { return };
        watch.timer = Some(at);
        self.timers.insert((at, agent.clone()));
        self.gone.remove(agent);
    }

    /// An operator confirms that the agents that the brake holds are gone.
    pub(crate) fn confirm_removal(&mut self) {
        if self.brake.is_held {
            self.brake.is_held = false;
            self.brake.recent.clear();
            self.confirmed.append(&mut self.overdue);
        }
    }

    /// Whether the brake is pulled.
    pub(crate) fn is_held(&self) -> bool {
        self.brake.is_held
    }

    /// How many agents were lost at about the same time, and of how many.
    pub(crate) fn lost(&self) -> (usize, usize) {
        let long_gone = self.unreachable - self.brake.recent.len();
        (self.suspects.len() + self.brake.recent.len(), self.agents.len() - long_gone)
    }

    /// When [`Liveness::pass_time`] has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let start = (!self.unstarted.is_empty()).then(Timestamp::default);
        start.or_else(|| self.timers.first().map(|(at, _)| *at))
    }

    /// The agents that are something else from now on, each with what it is.
    pub(crate) fn pass_time(&mut self, now: Timestamp) -> Vec<(AgentId, AgentState)> {
        let mut changes = Vec::new();
        while let Some((_, agent)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            match self.agents.get(&agent).map(|watch| watch.state) {
                Some(AgentState::Recovered) => {
                    let timer = now.plus(self.config.unreachable_after);
                    self.set(&agent, AgentState::Suspect, Some(timer));
                    changes.push((agent, AgentState::Suspect));
                }
                Some(AgentState::Unreachable) => {
                    self.set(&agent, AgentState::Unreachable, None);
                    self.gone.insert(agent);
                }
                Some(AgentState::Active | AgentState::Suspect) | None => {
                    self.set(&agent, AgentState::Suspect, None);
                    self.overdue.insert(agent);
                }
            }
        }
        for agent in std::mem::take(&mut self.confirmed) {
            self.give_up(agent, now, &mut changes);
        }
        self.judge(now);
        if !self.brake.is_held {
            for agent in std::mem::take(&mut self.overdue) {
                self.give_up(agent.clone(), now, &mut changes);
                self.brake.recent.insert(agent, now);
            }
        }
        changes
    }

    /// The agents to be removed: unreachable for too long. None while the brake is pulled, since the fault may be the
    /// network's for longer than the agents that it holds are lost.
    pub(crate) fn take_gone(&mut self) -> BTreeSet<AgentId> {
        if self.brake.is_held { BTreeSet::new() } else { std::mem::take(&mut self.gone) }
    }

    fn give_up(&mut self, agent: AgentId, now: Timestamp, changes: &mut Vec<(AgentId, AgentState)>) {
        self.set(&agent, AgentState::Unreachable, Some(now.plus(self.config.removed_after)));
        changes.push((agent, AgentState::Unreachable));
    }

    /// Pulls the brake before an agent is given up too many, and releases it when enough are back. While it is pulled,
    /// no time ends it.
    fn judge(&mut self, now: Timestamp) {
        if !self.brake.is_held && self.overdue.is_empty() {
            return;
        }
        if !self.brake.is_held {
            let window = self.config.removal_window;
            self.brake.recent.retain(|_, since| since.plus(window) > now);
        }
        let (lost, of) = self.lost();
        let is_mass = lost >= MASS_MIN && lost * 100 > of * usize::from(self.config.removal_percent_max);
        self.brake.is_held = is_mass;
    }

    fn set(&mut self, agent: &AgentId, state: AgentState, timer: Option<Timestamp>) {
        if let Some(old) = self.agents.insert(agent.clone(), Watch { state, timer }) {
            self.leave(agent, old);
        }
        match state {
            AgentState::Active | AgentState::Recovered => {}
            AgentState::Suspect => {
                self.suspects.insert(agent.clone());
            }
            AgentState::Unreachable => self.unreachable += 1,
        }
        if let Some(at) = timer {
            self.timers.insert((at, agent.clone()));
        }
    }

    /// An agent is not what it was.
    fn leave(&mut self, agent: &AgentId, old: Watch) {
        match old.state {
            AgentState::Active | AgentState::Recovered => {}
            AgentState::Suspect => {
                self.suspects.remove(agent);
            }
            AgentState::Unreachable => self.unreachable -= 1,
        }
        if let Some(at) = old.timer {
            self.timers.remove(&(at, agent.clone()));
        }
        self.unstarted.remove(agent);
        self.overdue.remove(agent);
        self.confirmed.remove(agent);
        self.brake.recent.remove(agent);
        self.gone.remove(agent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> AgentId {
        AgentId::new(format!("S{n}"))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn connected(count: usize) -> Liveness {
        let mut liveness = Liveness::new(FailureDetection::default());
        for n in 0..count {
            liveness.answers(&id(n));
        }
        liveness
    }

    fn given_up(changes: &[(AgentId, AgentState)]) -> usize {
        changes.iter().filter(|(_, state)| *state == AgentState::Unreachable).count()
    }

    #[test]
    fn more_than_the_share_at_once_pulls_the_brake() {
        // Of so many agents, so many lost at once: how many are given up.
        for (count, lost, expected) in [
            (1, 1, 1),
            (2, 1, 1),
            (2, 2, 0),
            (3, 1, 1),
            (3, 2, 0),
            (4, 2, 2),
            (4, 3, 0),
            (5, 2, 2),
            (5, 5, 0),
        ] {
            let mut liveness = connected(count);
            for n in 0..lost {
                assert!(liveness.is_silent(&id(n), at(0)));
            }
            assert_eq!(liveness.deadline(), Some(at(5)));
            let changes = liveness.pass_time(at(5));
            assert_eq!(given_up(&changes), expected, "{lost} of {count}");
            assert_eq!(liveness.is_held(), expected == 0, "{lost} of {count}");
        }
    }

    #[test]
    fn agents_given_up_count_for_a_window_and_then_are_no_part_of_the_whole() {
        for (second, expected) in [(30, 0), (59, 0), (70, 1)] {
            let mut liveness = connected(3);
            liveness.is_silent(&id(0), at(0));
            assert_eq!(given_up(&liveness.pass_time(at(5))), 1);
            liveness.is_silent(&id(1), at(second - 5));
            assert_eq!(given_up(&liveness.pass_time(at(second))), expected, "the second one at {second} s");
        }
    }

    #[test]
    fn the_brake_is_not_released_by_time_but_by_returns() {
        let mut liveness = connected(4);
        for n in 0..3 {
            liveness.is_silent(&id(n), at(0));
        }
        assert_eq!(liveness.pass_time(at(5)), []);
        assert_eq!(liveness.pass_time(at(100_000)), []);
        assert_eq!(liveness.deadline(), None);
        liveness.answers(&id(0));
        let changes = liveness.pass_time(at(100_000));
        assert_eq!(given_up(&changes), 2, "two of four may be lost");
        assert!(!liveness.is_held());
    }

    #[test]
    fn a_confirmation_gives_up_what_is_held_and_nothing_else() {
        let mut liveness = connected(4);
        liveness.confirm_removal();
        for n in 0..3 {
            liveness.is_silent(&id(n), at(0));
        }
        liveness.pass_time(at(5));
        liveness.confirm_removal();
        assert_eq!(given_up(&liveness.pass_time(at(6))), 3);
        assert!(!liveness.is_held());
        assert_eq!(liveness.lost(), (0, 1));
        liveness.is_silent(&id(3), at(10));
        assert_eq!(given_up(&liveness.pass_time(at(15))), 1, "the last one is lost for itself");
    }

    /// In seconds.
    const DAY: i64 = 24 * 60 * 60;

    #[test]
    fn an_agent_is_removed_when_it_is_unreachable_for_too_long() {
        let mut liveness = connected(3);
        liveness.is_silent(&id(0), at(0));
        assert_eq!(given_up(&liveness.pass_time(at(5))), 1);
        assert_eq!(liveness.deadline(), Some(at(5 + DAY)));
        liveness.pass_time(at(4 + DAY));
        assert!(liveness.take_gone().is_empty());
        liveness.pass_time(at(5 + DAY));
        assert_eq!(liveness.take_gone(), BTreeSet::from([id(0)]));
        assert_eq!(liveness.deadline(), None);

        let mut back = connected(3);
        back.is_silent(&id(0), at(0));
        back.pass_time(at(5));
        back.answers(&id(0));
        back.pass_time(at(5 + DAY));
        assert!(back.take_gone().is_empty(), "it has come back");
    }

    #[test]
    fn no_agent_is_removed_while_the_brake_is_pulled() {
        for is_taken_back in [false, true] {
            let mut liveness = connected(5);
            liveness.is_silent(&id(0), at(0));
            liveness.pass_time(at(5));
            for n in 1..5 {
                liveness.is_silent(&id(n), at(DAY));
            }
            liveness.pass_time(at(DAY + 5));
            assert!(liveness.is_held());
            assert!(liveness.take_gone().is_empty());
            if is_taken_back {
                // Its emptying: it is waited for anew.
                liveness.wait_again(&id(0), at(DAY + 5));
            }
            for n in 1..5 {
                liveness.answers(&id(n));
            }
            liveness.pass_time(at(DAY + 6));
            assert_eq!(liveness.take_gone().is_empty(), is_taken_back);
            liveness.pass_time(at(2 * DAY + 5));
            assert_eq!(liveness.take_gone().is_empty(), !is_taken_back);
        }
    }

    #[test]
    fn the_brake_outlives_a_restart() {
        let mut before = connected(10);
        (0..4).for_each(|n| assert!(before.is_silent(&id(n), at(0))));
        assert_eq!(given_up(&before.pass_time(at(5))), 4);
        (4..6).for_each(|n| assert!(before.is_silent(&id(n), at(10))));
        assert_eq!(given_up(&before.pass_time(at(15))), 0, "six of ten are too many");
        let stored = serde_json::to_vec(before.brake()).expect("JSON");

        let mut after = Liveness::new(FailureDetection::default());
        for n in 0..10 {
            let stored = match n {
                0..4 => AgentState::Unreachable,
                4..6 => AgentState::Suspect,
                _ => AgentState::Active,
            };
            after.restore(&id(n), stored);
        }
        after.restore_brake(serde_json::from_slice(&stored).expect("read"));
        after.begin(at(1000));
        (6..10).for_each(|n| after.answers(&id(n)));
        assert_eq!(given_up(&after.pass_time(at(5000))), 0, "the last two of six are held on");
        assert!(after.is_held());
        after.confirm_removal();
        assert_eq!(given_up(&after.pass_time(at(5001))), 2);
    }

    #[test]
    fn after_a_restart_agents_have_a_window_before_they_are_suspect() {
        let mut liveness = Liveness::new(FailureDetection::default());
        for n in 0..3 {
            assert_eq!(liveness.restore(&id(n), AgentState::Active), AgentState::Recovered);
        }
        assert_eq!(liveness.restore(&id(3), AgentState::Suspect), AgentState::Suspect);
        liveness.begin(at(100));
        liveness.answers(&id(0));
        liveness.answers(&id(1));
        assert_eq!(liveness.pass_time(at(129)), []);
        assert_eq!(liveness.pass_time(at(130)), [(id(2), AgentState::Suspect)]);
        assert_eq!(given_up(&liveness.pass_time(at(135))), 2);
    }
}
