//! Follows the events of the v1 operator API.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesonet_model::{AgentId, ClusterView, FrameworkId, TaskId, TaskKey, TaskState, Timestamp};
use thiserror::Error;

use crate::Options;
use crate::cluster::{AddressOrder, Cluster};
use crate::events::{self, EventJson, SubscribedJson, TaskUpdatedJson};
use crate::facts::{self, TaskFacts};
use crate::json::id;
use crate::network::StatusFacts;
use crate::state::{StatusJson, TaskJson};

/// The longest record that is read; the first one of a stream has the whole state.
const RECORD_LENGTH_MAX: usize = 4 << 30;

/// How long agents that a new master has not heard of yet are waited for (spec/dcos-networking.md §2.2).
const AGENTS_WAIT: Duration = Duration::from_secs(10 * 60);

/// How long the tasks of agents that have come back are waited for (spec/dcos-networking.md §2.2).
const TASKS_WAIT: Duration = Duration::from_secs(10);

/// What a master that does not say sends heartbeats at (Mesos `DEFAULT_HEARTBEAT_INTERVAL`).
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// The longest interval of heartbeats that is believed.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);

/// Keeps a view in step with a master's operator events.
///
/// After a change of the leading master, agents come back one after the other. Until they have, no view is given, so
/// that what was published before stays: names do not vanish and come back.
#[derive(Debug)]
pub struct OperatorFollower {
    cluster: Cluster,
    phase: Phase,
    heartbeat_interval: Duration,
    rejected: usize,
}

/// How far a subscription is.
///
/// ```text
///   Unsubscribed ──SUBSCRIBED──► Serving                          (no agent is missing)
///         └────────SUBSCRIBED──► AwaitAgents ──► AwaitTasks ──► Serving
/// ```
#[derive(Debug)]
enum Phase {
    /// No stream has begun.
    Unsubscribed,
    /// These agents have not come back.
    AwaitAgents { missing: BTreeSet<AgentId>, until: Timestamp },
    /// Agents have come back, and their tasks are being listed.
    AwaitTasks { until: Timestamp },
    /// Views are given.
    Serving,
}

/// A record cannot be used. The view stays as it was.
#[derive(Debug, Error)]
pub enum EventError {
    /// It is longer than anything that is read.
    #[error("event of {length} octets is longer than {RECORD_LENGTH_MAX}")]
    TooLong {
        /// Its length in octets.
        length: usize,
    },
    /// It is no JSON, or not that of an event.
    #[error("event is no JSON object of an operator event")]
    Json {
        /// Where it is not.
        source: serde_json::Error,
    },
    /// It lacks the member that its type needs.
    #[error("event of type {kind} has no member {member}")]
    NoBody {
        /// The type.
        kind: &'static str,
        /// The member.
        member: &'static str,
    },
    /// It came before the stream's first event.
    #[error("event of type {kind} came before SUBSCRIBED")]
    NotSubscribed {
        /// The type.
        kind: String,
    },
}

impl OperatorFollower {
    /// Begins with an empty cluster.
    pub fn new(options: Options) -> Self {
        Self {
            cluster: Cluster::new(options, AddressOrder::HostNameFirst),
            phase: Phase::Unsubscribed,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            rejected: 0,
        }
    }

    /// Takes one record of the stream. A view if it changed and may be published.
    ///
    /// # Errors
    /// When the record cannot be used. The view stays as it was, and the stream may go on.
    pub fn apply(&mut self, record: &[u8], now: Timestamp) -> Result<Option<ClusterView>, EventError> {
        if record.len() > RECORD_LENGTH_MAX {
            return Err(EventError::TooLong { length: record.len() });
        }
        let event: EventJson<'_> =
            serde_json::from_slice(record).map_err(|source| EventError::Json { source })?;
        self.cluster.advance(now);
        match event.kind.as_str() {
            "SUBSCRIBED" => {
                let body = event
                    .subscribed
                    .ok_or(EventError::NoBody { kind: "SUBSCRIBED", member: "subscribed" })?;
                self.subscribed(&body, now);
            }
            _ if matches!(self.phase, Phase::Unsubscribed) => {
                return Err(EventError::NotSubscribed { kind: event.kind });
            }
            _ => self.changed(event)?,
        }
        Ok(self.poll(now))
    }

    /// A view if it may be published since some time has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Option<ClusterView> {
        self.cluster.advance(now);
        self.poll(now)
    }

    /// When [`Self::handle_timeout`] is to be called next.
    pub fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::AwaitAgents { until, .. } | Phase::AwaitTasks { until } => Some(*until),
            Phase::Unsubscribed | Phase::Serving => None,
        }
    }

    /// How often the master says that it is there. A stream on which nothing comes for three times as long is dead.
    pub fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }

    /// Takes another list of masters and the leading one, `host:port`. The view that follows, if it may be published.
    pub fn set_masters(&mut self, masters: Vec<String>, leader: Option<String>) -> Option<ClusterView> {
        self.cluster.set_masters(masters);
        self.cluster.set_leader(leader);
        self.give()
    }

    /// Host names whose addresses are needed and not known.
    pub fn unresolved_hosts(&self) -> &BTreeSet<String> {
        self.cluster.hosts().wanted()
    }

    /// Takes the addresses of a host name, in the order of preference; none if it has none. The view that follows, if
    /// it changed and may be published.
    pub fn set_host(&mut self, host: &str, addresses: &[IpAddr]) -> Option<ClusterView> {
        self.cluster.set_host(host, addresses);
        self.give()
    }

    /// How many agents, frameworks and tasks were left out since the stream began because they could not be read.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    fn give(&mut self) -> Option<ClusterView> {
        let may_give = matches!(self.phase, Phase::Serving) && self.cluster.has_changed();
        may_give.then(|| self.cluster.commit().clone())
    }

    /// Goes on to the next phase if it is time to.
    fn poll(&mut self, now: Timestamp) -> Option<ClusterView> {
        if let Phase::AwaitAgents { missing, until } = &self.phase
            && (missing.is_empty() || *until <= now)
        {
            self.phase = Phase::AwaitTasks { until: now.plus(TASKS_WAIT) };
        }
        if let Phase::AwaitTasks { until } = &self.phase
            && *until <= now
        {
            self.phase = Phase::Serving;
        }
        self.give()
    }

    /// Everything anew.
    fn subscribed(&mut self, body: &SubscribedJson<'_>, now: Timestamp) {
        self.rejected = 0;
        let interval = body.heartbeat_interval_seconds.unwrap_or_default();
        self.heartbeat_interval = Duration::try_from_secs_f64(interval)
            .ok()
            .filter(|interval| !interval.is_zero())
            .map_or(HEARTBEAT_INTERVAL, |interval| interval.min(HEARTBEAT_INTERVAL_MAX));
        let empty = events::GetStateJson::default();
        let state = body.get_state.as_ref().unwrap_or(&empty);
        let (mut missing, mut agents) = (BTreeSet::new(), BTreeSet::new());
        if let Some(json) = &state.get_agents {
            missing.extend(json.recovered_agents.iter().filter_map(|raw| events::agent_id(raw)));
            for raw in &json.agents {
                agents.extend(self.add_agent(raw));
            }
        }
        missing.retain(|id| !agents.contains(id));
        let mut frameworks = BTreeSet::new();
        for raw in state.get_frameworks.iter().flat_map(|json| &json.frameworks) {
            frameworks.extend(self.add_framework(raw));
        }
        let mut tasks = BTreeSet::new();
        for raw in state.get_tasks.iter().flat_map(|json| &json.tasks) {
            tasks.extend(self.add_task(raw));
        }
        for key in self.cluster.task_keys().into_iter().filter(|key| !tasks.contains(key)) {
            self.cluster.remove_task(&key);
        }
        for id in self.cluster.framework_ids().into_iter().filter(|id| !frameworks.contains(id)) {
            self.cluster.remove_framework(&id);
        }
        for id in self.cluster.agent_ids().into_iter().filter(|id| !agents.contains(id)) {
            self.cluster.remove_agent(&id);
        }
        self.phase = if missing.is_empty() {
            Phase::Serving
        } else {
            Phase::AwaitAgents { missing, until: now.plus(AGENTS_WAIT) }
        };
    }

    /// Any event but the first. Those of types that say nothing of names and addresses change nothing.
    fn changed(&mut self, event: EventJson<'_>) -> Result<(), EventError> {
        let no_body = |kind, member| EventError::NoBody { kind, member };
        match event.kind.as_str() {
            "TASK_ADDED" => {
                let body = event.task_added.ok_or(no_body("TASK_ADDED", "task_added"))?;
                self.add_task(body.task);
            }
            "TASK_UPDATED" => {
                let body = event.task_updated.ok_or(no_body("TASK_UPDATED", "task_updated"))?;
                self.update_task(&body);
            }
            "AGENT_ADDED" | "AGENT_UPDATED" => {
                let body = event.agent_added.ok_or(no_body("AGENT_ADDED", "agent_added"))?;
                if let Some(id) = self.add_agent(body.agent) {
                    self.found(&id);
                }
            }
            "AGENT_REMOVED" => {
                let body = event.agent_removed.ok_or(no_body("AGENT_REMOVED", "agent_removed"))?;
                let id = AgentId::new(id(body.agent_id));
                for task in self.cluster.tasks_on(&id) {
                    self.cluster.remove_task(&task);
                }
                self.cluster.remove_agent(&id);
                self.found(&id);
            }
            "FRAMEWORK_ADDED" | "FRAMEWORK_UPDATED" => {
                let framework = event.framework_added.and_then(|body| body.framework);
                self.add_framework(framework.ok_or(no_body("FRAMEWORK_ADDED", "framework_added"))?);
            }
            "FRAMEWORK_REMOVED" => {
                let framework = event.framework_added.and_then(|body| body.framework);
                let raw = framework.ok_or(no_body("FRAMEWORK_REMOVED", "framework_removed"))?;
                if let Some(facts) = events::framework(raw) {
                    for task in self.cluster.tasks_of(&facts.id) {
                        self.cluster.remove_task(&task);
                    }
                    self.cluster.remove_framework(&facts.id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An agent is no longer waited for.
    fn found(&mut self, id: &AgentId) {
        if let Phase::AwaitAgents { missing, .. } = &mut self.phase {
            missing.remove(id);
        }
    }

    fn add_agent(&mut self, raw: &serde_json::value::RawValue) -> Option<AgentId> {
        let facts = events::agent(raw);
        self.rejected += usize::from(facts.is_none());
        let facts = facts?;
        let id = facts.id.clone();
        self.cluster.set_agent(facts);
        Some(id)
    }

    fn add_framework(&mut self, raw: &serde_json::value::RawValue) -> Option<FrameworkId> {
        let facts = events::framework(raw);
        self.rejected += usize::from(facts.is_none());
        let facts = facts?;
        let id = facts.id.clone();
        self.cluster.set_framework(facts);
        Some(id)
    }

    fn add_task(&mut self, raw: &serde_json::value::RawValue) -> Option<TaskKey> {
        let json = serde_json::from_str::<TaskJson<'_>>(raw.get()).ok();
        let facts = json.and_then(|json| TaskFacts::of_json(json, None));
        self.rejected += usize::from(facts.is_none());
        let facts = facts?;
        let key = facts.key.clone();
        self.cluster.set_task(facts);
        Some(key)
    }

    /// Puts a status over what is known of a task. The event's state counts, not the status' own.
    fn update_task(&mut self, body: &TaskUpdatedJson<'_>) {
        let status = serde_json::from_str::<StatusJson<'_>>(body.status.get());
        let task = serde_json::from_str::<TaskJson<'_>>(body.status.get());
        let (Ok(status), Ok(task)) = (status, task) else {
            self.rejected += 1;
            return;
        };
        let key = TaskKey::new(FrameworkId::new(id(body.framework_id)), TaskId::new(id(task.id)));
        let Some(mut facts) = self.cluster.task(&key).cloned() else { return };
        facts.state = facts::state(if body.state.is_empty() { &status.state } else { &body.state });
        let status = StatusFacts::of_json(&status);
        if facts.state == TaskState::Running {
            facts.running.get_or_insert_default().update(status.clone());
        }
        facts.latest.update(status);
        self.cluster.set_task(facts);
    }
}
