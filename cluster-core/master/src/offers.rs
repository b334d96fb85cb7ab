//! Who is offered what: free resources, outstanding offers, filters and fair shares.
//!
//! All that an agent has left is one offer, made to the framework that has the smallest dominant share among those
//! that want it. An offer counts as used by its framework until it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use mesonet_model::{
    Agent, AgentId, ClusterId, FrameworkId, NetworkRoom, Offer, OfferId, Resources, Scalar, TaskKey,
    Timestamp, UuidSource,
};

/// How many offers a framework may hold without an answer. Enough to fill a cluster quickly, few enough that a framework
/// that wants one agent of ten thousand does not get the others' descriptions in one message; the next ones follow as
/// it answers.
pub(crate) const OFFERS_HELD_MAX: usize = 256;

/// A framework that has come to hold [`OFFERS_HELD_MAX`] gets the next ones when it holds so few: with one for each answer
/// it would be asked about ten thousand agents in as many messages, and look at all that waits for each of them.
const OFFERS_HELD_LOW: usize = OFFERS_HELD_MAX / 2;

/// The shortest time for which refused resources are not offered again unless they grow. Without it, a framework that
/// declines at once and for no time would be asked for ever; with more, it would wait for what it wants after all.
pub(crate) const REFUSE_MIN: Duration = Duration::from_millis(100);

/// Less than this of both is not offered (Mesos `MIN_CPUS` and `MIN_MEM`): no task fits.
const OFFERED_CPUS_MIN: Scalar = Scalar::from_thousandths(10);
const OFFERED_MEM_MIN: Scalar = Scalar::from_units(32);

/// The bookkeeping of resources.
#[derive(Debug)]
pub(crate) struct Allocator {
    cluster: ClusterId,
    /// Drawn from the seed at the start, so that an offer of an earlier run is never taken for one of this run.
    next_offer: u64,
    agents: BTreeMap<AgentId, Capacity>,
    /// All that the agents have.
    total: Amounts,
    /// Agents that are active and have something to offer.
    offerable: OrdSet<AgentId>,
    frameworks: BTreeMap<FrameworkId, Demand>,
    offers: BTreeMap<OfferId, HeldOffer>,
}

/// An offer without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldOffer {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) resources: Resources,
}

#[derive(Debug, Default)]
struct Capacity {
    active: bool,
    total: Resources,
    /// Set aside for tasks.
    used: Resources,
    /// What tasks use that the agent runs and the master does not have.
    strangers: BTreeMap<TaskKey, Resources>,
    /// Neither used by tasks nor offered. Negative if the agent came back with less than its tasks use.
    free: Resources,
    offers: BTreeMap<FrameworkId, OfferId>,
}

#[derive(Debug, Default)]
struct Demand {
    subscribed: bool,
    suppressed: bool,
    /// What its tasks use and what it is offered.
    held: Amounts,
    offers: BTreeSet<OfferId>,
    /// Whether it has held as many offers as it may since it held few.
    is_full: bool,
    /// The agents that it has not been asked about since they last had something new.
    candidates: OrdSet<AgentId>,
    /// The agent that was offered last: the next one follows it, so that load spreads.
    last: Option<AgentId>,
    filters: BTreeMap<AgentId, Filter>,
    /// The filters by their end.
    expiries: BTreeSet<(Timestamp, AgentId)>,
}

/// What a framework does not want to be asked about again.
#[derive(Debug)]
struct Filter {
    until: Timestamp,
    refused: Resources,
}

/// Thousandths of cpus, memory, disk and gpus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amounts([i64; 4]);

impl Allocator {
    pub(crate) fn new(cluster: ClusterId, seed: u64) -> Self {
        // 32 random bits leave room for counting and ids that people can read.
        let next_offer = (UuidSource::from_seed(seed).next_uuid().as_u128() >> 96) as u64;
        Self {
            cluster,
            next_offer,
            agents: BTreeMap::new(),
            total: Amounts::default(),
            offerable: OrdSet::new(),
            frameworks: BTreeMap::new(),
            offers: BTreeMap::new(),
        }
    }

    /// Sets what an agent has, and whether it answers. Its outstanding offers are withdrawn and returned.
    pub(crate) fn set_agent(
        &mut self,
        agent: &AgentId,
        total: &Resources,
        active: bool,
    ) -> Vec<(FrameworkId, OfferId)> {
        let rescinded = self.rescind_agent(agent);
        let capacity = self.agents.entry(agent.clone()).or_default();
        self.total.subtract(&capacity.total);
        self.total.add(total);
        capacity.active = active;
        capacity.total = total.clone();
        self.count_free(agent);
        rescinded
    }

    /// Forgets an agent that has no tasks and no offers.
    pub(crate) fn forget_agent(&mut self, agent: &AgentId) {
        if let Some(capacity) = self.agents.remove(agent) {
            self.total.subtract(&capacity.total);
        }
        self.offerable.remove(agent);
        for demand in self.frameworks.values_mut() {
            demand.candidates.remove(agent);
        }
    }

    /// The frameworks that listen.
    pub(crate) fn subscribed(&self) -> Vec<FrameworkId> {
        let subscribed = self.frameworks.iter().filter(|(_, demand)| demand.subscribed);
        subscribed.map(|(framework, _)| framework.clone()).collect()
    }

    /// A framework subscribes, and begins without filters. The offers that it held are taken back.
    pub(crate) fn subscribe(&mut self, framework: &FrameworkId) {
        let demand = self.frameworks.entry(framework.clone()).or_default();
        demand.subscribed = true;
        for offer in demand.offers.clone() {
            self.take_offer(&offer, framework);
        }
        self.revive(framework);
    }

    pub(crate) fn is_subscribed(&self, framework: &FrameworkId) -> bool {
        self.frameworks.get(framework).is_some_and(|demand| demand.subscribed)
    }

    /// The framework wants to be asked about everything again.
    pub(crate) fn revive(&mut self, framework: &FrameworkId) {
        if let Some(demand) = self.frameworks.get_mut(framework) {
            demand.suppressed = false;
            demand.filters.clear();
            demand.expiries.clear();
            demand.candidates = self.offerable.clone();
        }
    }

    /// The framework wants nothing until it revives.
    pub(crate) fn suppress(&mut self, framework: &FrameworkId) {
        if let Some(demand) = self.frameworks.get_mut(framework) {
            demand.suppressed = true;
            demand.filters.clear();
            demand.expiries.clear();
            demand.candidates = OrdSet::new();
        }
    }

    /// Takes an offer that the framework holds: its resources are free again.
    pub(crate) fn take_offer(&mut self, offer: &OfferId, framework: &FrameworkId) -> Option<HeldOffer> {
        if self.offers.get(offer)?.framework != *framework {
            return None;
        }
        let held = self.offers.remove(offer)?;
        if let Some(demand) = self.frameworks.get_mut(framework) {
            demand.held.subtract(&held.resources);
            demand.offers.remove(offer);
            demand.is_full &= demand.offers.len() > OFFERS_HELD_LOW;
        }
        if let Some(capacity) = self.agents.get_mut(&held.agent) {
            capacity.offers.remove(framework);
            capacity.free.add(&held.resources);
        }
        self.reconsider(&held.agent);
        Some(held)
    }

    /// Sets resources aside for a task.
    pub(crate) fn use_resources(&mut self, agent: &AgentId, framework: &FrameworkId, resources: &Resources) {
        self.frameworks.entry(framework.clone()).or_default().held.add(resources);
        if let Some(capacity) = self.agents.get_mut(agent) {
            capacity.used.add(resources);
            capacity.free.subtract(resources);
        }
        self.reconsider(agent);
    }

    /// The end of one [`Allocator::use_resources`]. Every framework is asked about the agent again.
    pub(crate) fn release(&mut self, agent: &AgentId, framework: &FrameworkId, resources: &Resources) {
        if let Some(demand) = self.frameworks.get_mut(framework) {
            demand.held.subtract(resources);
        }
        if let Some(capacity) = self.agents.get_mut(agent) {
            capacity.used.subtract(resources);
        }
        self.count_free(agent);
    }

    /// Sets which tasks an agent runs that the master does not have, with what they use: until they have ended, nobody else
    /// gets it. For an agent without offers.
    pub(crate) fn set_strangers(&mut self, agent: &AgentId, strangers: BTreeMap<TaskKey, Resources>) {
        if let Some(capacity) = self.agents.get_mut(agent).filter(|known| known.strangers != strangers) {
            capacity.strangers = strangers;
            self.count_free(agent);
        }
    }

    /// A task has ended that may be one of [`Allocator::set_strangers`].
    pub(crate) fn stranger_ended(&mut self, agent: &AgentId, task: &TaskKey) {
        let runs = |capacity: &Capacity| capacity.strangers.contains_key(task);
        let agent = match self.agents.get(agent) {
            Some(capacity) => runs(capacity).then(|| agent.clone()),
            // The id may be one that the agent had before it got its own.
            None => self.agents.iter().find(|(_, capacity)| runs(capacity)).map(|(id, _)| id.clone()),
        };
        let Some(agent) = agent else { return };
        if let Some(capacity) = self.agents.get_mut(&agent) {
            capacity.strangers.remove(task);
        }
        self.count_free(&agent);
    }

    /// A framework does not want to be asked about these resources of an agent again unless they grow.
    pub(crate) fn refuse(
        &mut self,
        framework: &FrameworkId,
        agent: &AgentId,
        refused: Resources,
        until: Timestamp,
    ) {
        let Some(demand) = self.frameworks.get_mut(framework).filter(|demand| !demand.suppressed) else {
            return;
        };
        demand.lift(agent);
        demand.filters.insert(agent.clone(), Filter { until, refused });
        demand.expiries.insert((until, agent.clone()));
    }

    /// Ends filters whose time is over.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        for demand in self.frameworks.values_mut() {
            while let Some((_, agent)) = demand.expiries.first().cloned().filter(|(until, _)| *until <= now) {
                demand.lift(&agent);
                if self.offerable.contains(&agent) {
                    demand.candidates.insert(agent);
                }
            }
        }
    }

    /// When the next filter ends.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let first = |demand: &Demand| demand.expiries.first().map(|(until, _)| *until);
        self.frameworks.values().filter_map(first).min()
    }

    /// Offers all that is free to those who want it, at most [`OFFERS_HELD_MAX`] to each.
    pub(crate) fn make_offers(
        &mut self,
        agents: &OrdMap<AgentId, Arc<Agent>>,
    ) -> BTreeMap<FrameworkId, Vec<Offer>> {
        let mut offers: BTreeMap<FrameworkId, Vec<Offer>> = BTreeMap::new();
        while let Some((framework, agent)) = self.next_candidate() {
            let Some(description) = agents.get(&agent) else { continue };
            if let Some((id, resources)) = self.offer(&framework, &agent) {
                let agent_info = description.info.clone();
                offers.entry(framework).or_default().push(Offer {
                    id,
                    agent,
                    agent_info,
                    resources,
                    networks: NetworkRoom::new(),
                });
            }
        }
        offers
    }

    /// Takes the next agent from the candidates of the framework with the smallest share.
    fn next_candidate(&mut self) -> Option<(FrameworkId, AgentId)> {
        let total = self.total;
        let (framework, demand) = self
            .frameworks
            .iter_mut()
            .filter(|(_, demand)| demand.wants_offers())
            .min_by(|(_, a), (_, b)| a.held.share_of(&total).total_cmp(&b.held.share_of(&total)))?;
        let after = demand.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let next = demand.candidates.range::<_, AgentId>((after, Bound::Unbounded)).next();
        let agent = next.or_else(|| demand.candidates.get_min())?.clone();
        demand.candidates.remove(&agent);
        demand.last = Some(agent.clone());
        Some((framework.clone(), agent))
    }

    /// Makes an offer of all that an agent has left, unless the framework holds one of it or has refused as much.
    fn offer(&mut self, framework: &FrameworkId, agent: &AgentId) -> Option<(OfferId, Resources)> {
        let capacity = self.agents.get_mut(agent)?;
        let demand = self.frameworks.get_mut(framework)?;
        let resources = capacity.offerable()?;
        let is_refused = demand.filters.get(agent).is_some_and(|filter| filter.refused.contains(&resources));
        if is_refused || capacity.offers.contains_key(framework) {
            return None;
        }
        let id = OfferId::new(format!("{}-O{}", self.cluster, self.next_offer));
        self.next_offer += 1;
        capacity.free.subtract(&resources);
        capacity.offers.insert(framework.clone(), id.clone());
        demand.held.add(&resources);
        demand.offers.insert(id.clone());
        demand.is_full |= demand.offers.len() >= OFFERS_HELD_MAX;
        demand.lift(agent);
        let held =
            HeldOffer { framework: framework.clone(), agent: agent.clone(), resources: resources.clone() };
        self.offers.insert(id.clone(), held);
        self.reconsider(agent);
        Some((id, resources))
    }

    fn rescind_agent(&mut self, agent: &AgentId) -> Vec<(FrameworkId, OfferId)> {
        let offers = self.agents.get(agent).map(|capacity| capacity.offers.clone()).unwrap_or_default();
        for (framework, offer) in &offers {
            self.take_offer(offer, framework);
        }
        offers.into_iter().collect()
    }

    /// What an agent has is neither used nor offered but for what is known. Every framework is asked about it again.
    fn count_free(&mut self, agent: &AgentId) {
        if let Some(capacity) = self.agents.get_mut(agent) {
            let offered = capacity.offers.values().filter_map(|offer| self.offers.get(offer));
            let offered = offered.map(|offer| &offer.resources);
            // Ports that the agent came back without are not given out again.
            capacity.free = capacity.total.clone();
            for taken in [&capacity.used].into_iter().chain(capacity.strangers.values()).chain(offered) {
                capacity.free.subtract(taken);
            }
        }
        self.lift_filters(agent);
        self.reconsider(agent);
    }

    fn lift_filters(&mut self, agent: &AgentId) {
        for demand in self.frameworks.values_mut() {
            demand.lift(agent);
        }
    }

    /// An agent's free resources have changed: whoever may want them is asked.
    fn reconsider(&mut self, agent: &AgentId) {
        if self.agents.get(agent).and_then(Capacity::offerable).is_none() {
            self.offerable.remove(agent);
            return;
        }
        self.offerable.insert(agent.clone());
        for demand in self.frameworks.values_mut().filter(|demand| demand.subscribed && !demand.suppressed) {
            demand.candidates.insert(agent.clone());
        }
    }
}

// === impl Capacity ===

impl Capacity {
    /// What can be offered now; nothing if that is too little to be of use.
    fn offerable(&self) -> Option<Resources> {
        let is_enough = self.free.cpus >= OFFERED_CPUS_MIN || self.free.mem >= OFFERED_MEM_MIN;
        (self.active && is_enough).then(|| Resources {
            cpus: self.free.cpus.max(Scalar::ZERO),
            mem: self.free.mem.max(Scalar::ZERO),
            disk: self.free.disk.max(Scalar::ZERO),
            gpus: self.free.gpus.max(Scalar::ZERO),
            ports: self.free.ports.clone(),
        })
    }
}

// === impl Demand ===

impl Demand {
    fn wants_offers(&self) -> bool {
        self.subscribed && !self.suppressed && !self.is_full && !self.candidates.is_empty()
    }

    fn lift(&mut self, agent: &AgentId) {
        if let Some(filter) = self.filters.remove(agent) {
            self.expiries.remove(&(filter.until, agent.clone()));
        }
    }
}

// === impl Amounts ===

impl Amounts {
    fn of(resources: &Resources) -> Self {
        let Resources { cpus, mem, disk, gpus, ports: _ } = resources;
        Self([*cpus, *mem, *disk, *gpus].map(Scalar::thousandths))
    }

    fn add(&mut self, resources: &Resources) {
        for (amount, more) in self.0.iter_mut().zip(Self::of(resources).0) {
            *amount = amount.saturating_add(more);
        }
    }

    fn subtract(&mut self, resources: &Resources) {
        for (amount, less) in self.0.iter_mut().zip(Self::of(resources).0) {
            *amount = amount.saturating_sub(less);
        }
    }

    /// The dominant share: the largest share of any resource.
    fn share_of(&self, total: &Self) -> f64 {
        let shares = self.0.iter().zip(total.0).filter(|(_, total)| *total > 0);
        shares.map(|(held, total)| *held as f64 / total as f64).fold(0.0, f64::max)
    }
}
