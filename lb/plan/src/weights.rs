//! How much of a service's new connections each endpoint gets on one node, and why.
//!
//! Every policy ends in one number per endpoint, so that a data plane knows of none of them. The steps:
//!
//! 1. An endpoint has the share of its app.
//! 2. One whose checks fail, or whose node is lost, gets nothing. But if fewer than the panic threshold of those that
//!    have been well before are well, those whose checks fail get their shares again: few would break under the load of
//!    all, and it is likelier that the checks are wrong.
//! 3. One that connections from this node failed to reach is ejected, up to the maximum share of the service's endpoints.
//! 4. What is nearest gets everything as long as it has room: see [`Reach`].
//! 5. One that became ready a short time ago begins with a tenth and gets another tenth with each tenth of its slow start.
//!
//! If all this leaves nothing, the steps are taken back from the last to the first: health never empties a service.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mesonet_model::{
    Agent, AgentId, ClusterView, Endpoint, EndpointState, Locality, Service, ServiceKey, SlowStart,
    Timestamp, Weighing,
};

use crate::{EndpointId, SortedMap};

/// Where choices are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vantage {
    /// The agent of the node, if the view has it; without one, no endpoint is near.
    pub agent: Option<AgentId>,
}

/// What the node has seen of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Endpoints that connections failed to reach, with when they are tried again; see [`crate::Outliers`].
    pub ejected: BTreeMap<EndpointId, Timestamp>,
    /// Open connections of this node.
    pub active: BTreeMap<EndpointId, u64>,
    /// How far the service reached when it was last weighed.
    pub reach: Reach,
}

/// How far connections go. The next place joins when the endpoints within reach
/// * have on average as many open connections of this node as the policy says (and leaves when it is below four fifths),
/// * or fewer of them than the panic threshold are usable,
/// * or all of them are in their slow start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// To endpoints on the node itself.
    #[default]
    Node,
    /// To those in the node's zone.
    Zone,
    /// To all.
    Cluster,
}

/// The weights of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighed {
    /// Every endpoint of the view, also those that get nothing.
    pub endpoints: SortedMap<EndpointId, WeighedEndpoint>,
    /// How far connections go.
    pub reach: Reach,
    /// Whether health is ignored because too few are well.
    pub panics: bool,
    /// When the weights change by themselves, and why.
    pub deadline: Option<(Timestamp, &'static str)>,
}

/// One endpoint's weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeighedEndpoint {
    /// Its agent.
    pub agent: AgentId,
    /// Its share of new connections.
    pub weight: u32,
    /// Why.
    pub standing: Standing,
    /// Where it is, seen from the node.
    pub place: Reach,
}

/// Why an endpoint has its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is well.
    Serving,
    /// It became ready a short time ago.
    SlowStart {
        /// How much of its weight it has, in percent.
        percent: u32,
    },
    /// Its checks fail, but too few others are well.
    Panic,
    /// Its checks fail or have no result yet, or its framework does not want clients.
    NotReady,
    /// Its node does not answer the master, and others are well.
    NodeLost,
    /// Connections from this node did not reach it.
    Ejected {
        /// When it is tried again.
        until: Timestamp,
    },
    /// Its app wants none.
    NoShare,
    /// Nearer ones have room.
    Farther,
    /// It is about to end.
    Draining,
    /// It is dead.
    Down,
}

impl Standing {
    /// Whether nothing speaks against the endpoint itself.
    pub fn is_healthy(self) -> bool {
        match self {
            Self::Serving | Self::SlowStart { .. } | Self::NoShare | Self::Farther | Self::Draining => true,
            Self::Panic | Self::NotReady | Self::NodeLost | Self::Ejected { .. } | Self::Down => false,
        }
    }

    /// What the cluster says of the endpoint, whatever its node thinks of it.
    pub fn state(self) -> EndpointState {
        match self {
            Self::Draining => EndpointState::Draining,
            Self::Down => EndpointState::Down,
            Self::Serving
            | Self::SlowStart { .. }
            | Self::Panic
            | Self::NotReady
            | Self::NodeLost
            | Self::Ejected { .. }
            | Self::NoShare
            | Self::Farther => EndpointState::Ready,
        }
    }
}

/// The reason, for people.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::SlowStart { percent } => return write!(f, "slow start, at {percent} %"),
            Self::Panic => "checks fail, but too few others are well (panic threshold)",
            Self::NotReady => "checks fail or have no result yet",
            Self::NodeLost => "its node does not answer the master",
            Self::Ejected { until } => {
                return write!(f, "connections from this node failed; tried again at {until}");
            }
            Self::NoShare => "its app has weight 0",
            Self::Farther => "nearer endpoints have room",
            Self::Draining => "draining: keeps its connections, gets no new ones",
            Self::Down => "down",
        })
    }
}

/// Steps of a slow start.
const RAMP_STEPS: u32 = 10;

/// A place that joined leaves when load is below this share of what made it join, so that it does not come and go.
const LEAVE_PERCENT: u64 = 80;

/// Weighs the endpoints of a service as seen from a node.
pub fn weigh(
    view: &ClusterView,
    service: &Service,
    vantage: &Vantage,
    observed: &Observed,
    now: Timestamp,
) -> Weighed {
    let here =
        Here { agent: vantage.agent.as_ref().and_then(|agent| view.agents.get(agent)).map(AsRef::as_ref) };
    let mut candidates: Vec<Candidate> = view
        .endpoints_of(&service.key)
        .map(|(key, endpoint)| {
            let id = EndpointId { task: key.task.clone(), address: key.address };
            let agent = view.agents.get(&endpoint.agent).map(AsRef::as_ref);
            Candidate::new(id, endpoint, agent, here.place(agent, service.weighing.locality), now)
        })
        .collect();
    let panics = ignore_health(&mut candidates, &service.weighing);
    eject(&mut candidates, &service.weighing, &observed.ejected);
    let reach = limit_reach(&mut candidates, &service.weighing, observed);
    let ramps = candidates.iter().filter_map(|each| each.next_step(now));
    let retries = candidates.iter().filter_map(Candidate::tried_again);
    let deadline = ramps.chain(retries).min();
    let endpoints = candidates.into_iter().map(Candidate::weighed).collect();
    Weighed { endpoints, reach, panics, deadline }
}

/// Services that have to be weighed again when agents change.
pub fn depends_on_places(view: &ClusterView) -> impl Iterator<Item = &ServiceKey> {
    let services = view.services.iter();
    services.filter(|(_, service)| service.weighing.locality != Locality::Off).map(|(key, _)| key)
}

impl Vantage {
    /// That of a node, named by its name or its agent's id. It may have to look at every agent: ask once for each set of
    /// agents, not for each service.
    pub fn of(view: &ClusterView, node: &AgentId) -> Self {
        let by_name = || {
            let mut agents = view.agents.iter();
            agents.find(|(_, agent)| agent.node_name() == node.as_str()).map(|(id, _)| id)
        };
        let by_id = view.agents.get_key_value(node).map(|(id, _)| id);
        Self { agent: by_id.or_else(by_name).cloned() }
    }
}

/// The node's place in the cluster.
struct Here<'view> {
    agent: Option<&'view Agent>,
}

impl Here<'_> {
    fn place(&self, agent: Option<&Agent>, locality: Locality) -> Reach {
        let (Some(here), Some(agent)) = (self.agent, agent) else { return Reach::Cluster };
        let is_same_node = here.id == agent.id || here.node_name() == agent.node_name();
        let is_same_zone = here.zone().is_some() && here.zone() == agent.zone();
        match locality {
            Locality::Node | Locality::Off if is_same_node => Reach::Node,
            Locality::Zone if is_same_node => Reach::Zone,
            Locality::Node | Locality::Zone | Locality::Off if is_same_zone => Reach::Zone,
            Locality::Node | Locality::Zone | Locality::Off => Reach::Cluster,
        }
    }
}

/// An endpoint on its way through the steps.
struct Candidate {
    id: EndpointId,
    agent: AgentId,
    share: u32,
    slow_start: Option<SlowStart>,
    ramp: u32,
    place: Reach,
    standing: Standing,
    /// Whether its checks fail although they have passed before.
    is_failing: bool,
}

impl Candidate {
    fn new(id: EndpointId, endpoint: &Endpoint, agent: Option<&Agent>, place: Reach, now: Timestamp) -> Self {
        let ramp = endpoint.slow_start.map_or(RAMP_STEPS, |slow_start| ramp(slow_start, now));
        let is_lost = agent.is_some_and(|agent| agent.state.is_lost());
        let standing = match endpoint.state {
            EndpointState::Down => Standing::Down,
            EndpointState::Draining => Standing::Draining,
            EndpointState::Ready if endpoint.weight > 0 && endpoint.share == 0 => Standing::NoShare,
            EndpointState::Ready if endpoint.weight > 0 && ramp < RAMP_STEPS => {
                Standing::SlowStart { percent: ramp * 100 / RAMP_STEPS }
            }
            EndpointState::Ready if endpoint.weight > 0 => Standing::Serving,
            EndpointState::Ready if is_lost && !endpoint.failing => Standing::NodeLost,
            EndpointState::Ready => Standing::NotReady,
        };
        let is_failing = standing == Standing::NotReady && endpoint.failing && endpoint.share > 0;
        let (agent, share, slow_start) = (endpoint.agent.clone(), endpoint.share, endpoint.slow_start);
        Self { id, agent, share, slow_start, ramp, place, standing, is_failing }
    }

    fn is_usable(&self) -> bool {
        match self.standing {
            Standing::Serving | Standing::SlowStart { .. } | Standing::Panic => true,
            Standing::NotReady
            | Standing::NodeLost
            | Standing::Ejected { .. }
            | Standing::NoShare
            | Standing::Farther
            | Standing::Draining
            | Standing::Down => false,
        }
    }

    /// Whether it is left out for what may be otherwise soon.
    fn is_ejected(&self) -> bool {
        matches!(self.standing, Standing::Ejected { .. })
    }

    fn next_step(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let SlowStart { since, over } = self.slow_start.filter(|_| self.ramp < RAMP_STEPS)?;
        let step = over / RAMP_STEPS;
        let next = since.plus(step * self.ramp);
        Some((next.max(now.plus(Duration::from_millis(1))), "slow start"))
    }

    fn tried_again(&self) -> Option<(Timestamp, &'static str)> {
        let Standing::Ejected { until } = self.standing else { return None };
        Some((until, "an ejected endpoint is tried again"))
    }

    fn weighed(self) -> (EndpointId, WeighedEndpoint) {
        let weight = if self.is_usable() {
            // Rounded up, so that a small share begins with something.
            (u64::from(self.share) * u64::from(self.ramp)).div_ceil(u64::from(RAMP_STEPS)) as u32
        } else {
            0
        };
        let Self { id, agent, standing, place, .. } = self;
        (id, WeighedEndpoint { agent, weight, standing, place })
    }
}

/// How many tenths of its weight a new endpoint has. One that becomes ready later than the slow start lasts is that of a
/// clock that disagrees, and is not held back.
fn ramp(SlowStart { since, over }: SlowStart, now: Timestamp) -> u32 {
    let (age, ahead) = (now.since(since), since.since(now));
    if over.is_zero() || age >= over || ahead > over {
        return RAMP_STEPS;
    }
    let steps = age.as_millis() * u128::from(RAMP_STEPS) / over.as_millis().max(1);
    // Below the number of steps.
    steps as u32 + 1
}

/// Lets endpoints whose checks fail take part if too few others are well. Whether it did.
fn ignore_health(candidates: &mut [Candidate], weighing: &Weighing) -> bool {
    let failing = candidates.iter().filter(|each| each.is_failing).count();
    let well = candidates.iter().filter(|each| each.is_usable()).count();
    let panics = failing > 0 && (well == 0 || is_below(well, well + failing, weighing.panic_percent));
    if panics {
        for each in candidates.iter_mut().filter(|each| each.is_failing) {
            each.standing = Standing::Panic;
        }
    }
    panics
}

fn is_below(part: usize, of: usize, percent: u8) -> bool {
    part * 100 < of * usize::from(percent)
}

/// Takes out those that failed, the first first, as many as may be.
fn eject(candidates: &mut [Candidate], weighing: &Weighing, ejected: &BTreeMap<EndpointId, Timestamp>) {
    let usable = candidates.iter().filter(|each| each.is_usable()).count();
    let share = usable * usize::from(weighing.ejected_max_percent) / 100;
    // At least one, or small services would have no use of it, but never the last.
    let most = share.max(usize::from(weighing.ejected_max_percent > 0)).min(usable.saturating_sub(1));
    let mut failed: Vec<(Timestamp, &mut Candidate)> = candidates
        .iter_mut()
        .filter(|each| each.is_usable())
        .filter_map(|each| Some((*ejected.get(&each.id)?, each)))
        .collect();
    failed.sort_by(|(a, one), (b, other)| (a, &one.id).cmp(&(b, &other.id)));
    for (until, each) in failed.into_iter().take(most) {
        each.standing = Standing::Ejected { until };
    }
}

/// Leaves out what is farther away than it need be. How far connections go.
fn limit_reach(candidates: &mut [Candidate], weighing: &Weighing, observed: &Observed) -> Reach {
    if weighing.locality == Locality::Off {
        return Reach::Cluster;
    }
    let nearest = [Reach::Node, Reach::Zone]
        .into_iter()
        .find(|reach| has_room(candidates, *reach, weighing, observed))
        .unwrap_or(Reach::Cluster);
    for each in candidates.iter_mut().filter(|each| each.is_usable() && each.place > nearest) {
        each.standing = Standing::Farther;
    }
    nearest
}

fn has_room(candidates: &[Candidate], reach: Reach, weighing: &Weighing, observed: &Observed) -> bool {
    let within = || candidates.iter().filter(|each| each.place <= reach);
    let usable = || within().filter(|each| each.is_usable());
    let count = usable().count();
    let known =
        count + within().filter(|each| each.is_ejected() || (each.is_failing && !each.is_usable())).count();
    let is_warm = usable().any(|each| each.ramp == RAMP_STEPS);
    if count == 0 || !is_warm || is_below(count, known, weighing.panic_percent) {
        return false;
    }
    let active: u64 = usable().filter_map(|each| observed.active.get(&each.id)).sum();
    let full = u64::from(weighing.spill_connections) * count as u64;
    let limit = if observed.reach > reach { full * LEAVE_PERCENT / 100 } else { full };
    active < limit
}

#[cfg(test)]
mod tests;
