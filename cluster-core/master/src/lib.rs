//! Agents, offers, task lifecycle, VIP allocation and drain, as a pure state machine.
//!
//! [`Master::handle`] takes one [`Input`] and the time and returns [`Effect`]s; the cluster's [`ClusterView`] is its
//! state as everybody else sees it.

#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesonet_model::{
    AgentCommand, AgentId, AgentReport, ClusterId, ClusterView, Framework, FrameworkId, MasterId, Plane,
    PlaneReport, Revision, SchedulerCall, SchedulerEvent, Table, TaskKey, Timestamp, Write,
};
use thiserror::Error;

/// The master's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// This master.
    pub master: MasterId,
    /// Where its HTTP endpoints are.
    pub address: SocketAddr,
    /// First and last address of named VIPs, IPv4.
    pub vip_range_v4: (Ipv4Addr, Ipv4Addr),
    /// First and last address of named VIPs, IPv6.
    pub vip_range_v6: (Ipv6Addr, Ipv6Addr),
    /// How long a task to be killed may keep its connections after its endpoints are withdrawn.
    pub drain_grace: Duration,
    /// Seed of the ids that it makes; another one at every start.
    pub seed: u64,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A framework subscribes, for the first time or again (found by name).
    Subscribe(Framework),
    /// A framework calls.
    Call {
        /// Which.
        framework: FrameworkId,
        /// What.
        call: SchedulerCall,
    },
    /// An agent reports.
    Agent(AgentReport),
    /// A plane reports.
    Plane(PlaneReport),
    /// A plane's connection is lost: its acknowledgements are not waited for until it reports again.
    PlaneGone {
        /// The node.
        node: AgentId,
        /// The plane.
        plane: Plane,
    },
    /// Something outside the view was committed and wants a revision of its own.
    Touch,
    /// Time has passed.
    Tick,
}

/// One thing to be done. Writes are to be committed before any other effect of the same call is released.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keep a record.
    Store(Write),
    /// Tell an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// What.
        command: AgentCommand,
    },
    /// Tell a framework.
    Framework {
        /// Which.
        framework: FrameworkId,
        /// What.
        event: SchedulerEvent,
    },
    /// Tell an operator that part of a task's description has no effect. Said once per task and cause.
    Warn {
        /// The task.
        task: TaskKey,
        /// What is wrong with it, for people.
        message: String,
    },
}

/// Records from the store, to begin from.
pub type Recovered = Vec<(Table, String, Vec<u8>)>;

/// The store's records do not make a master.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// A record is not in the form that this version writes.
    #[error("cannot read record '{key}' of table {table}")]
    Record {
        /// The record's table.
        table: Table,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// The master.
#[derive(Debug)]
pub struct Master {
    view: ClusterView,
}

impl Master {
    /// A master that begins from the store's records; a new cluster if there are none. `revision` is the last one
    /// committed; the view's is greater.
    pub fn recover(
        _config: Config,
        cluster: ClusterId,
        revision: Revision,
        _records: &Recovered,
    ) -> Result<Self, RecoverError> {
        Ok(Self { view: ClusterView { revision: revision.next(), ..ClusterView::empty(cluster) } })
    }

    /// Reacts to one input. If anything changed, the view has a new revision afterwards.
    pub fn handle(&mut self, _input: Input, _now: Timestamp) -> Vec<Effect> {
        Vec::new()
    }

    /// The cluster as everybody sees it. Cheap to clone.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// When to call `handle` with [`Input::Tick`] at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        None
    }
}
