//! Follows polls of `/master/state`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesonet_model::{ClusterView, Timestamp};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::Options;
use crate::cluster::{AddressOrder, Cluster};
use crate::facts::{AgentFacts, FrameworkFacts, TaskFacts};
use crate::state::{FrameworkJson, SlaveJson, StateJson, TaskJson};

/// The longest state that is read: some ten times what 100,000 tasks with their history take.
const STATE_LENGTH_MAX: usize = 4 << 30;

/// Keeps a view in step with a master's answers to `GET /master/state`.
#[derive(Debug)]
pub struct StateFollower {
    cluster: Cluster,
    rejected: usize,
}

/// A state cannot be used. The view stays as it was.
#[derive(Debug, Error)]
pub enum StateError {
    /// It is longer than anything that is read.
    #[error("state of {length} octets is longer than {STATE_LENGTH_MAX}")]
    TooLong {
        /// Its length in octets.
        length: usize,
    },
    /// It is no JSON, or not that of a state.
    #[error("state is no JSON object with the members leader, slaves and frameworks")]
    Json {
        /// Where it is not.
        source: serde_json::Error,
    },
    /// It names no leader: the master that gave it does not know the cluster.
    #[error("state has no leader: expected master@host:port")]
    NoLeader,
}

impl StateFollower {
    /// Begins with an empty cluster.
    pub fn new(options: Options) -> Self {
        Self { cluster: Cluster::new(options, AddressOrder::ProcessFirst), rejected: 0 }
    }

    /// The host and port of the leading master that a state names; nothing if what it names cannot be read. mesos-dns
    /// asks there once if it is not the master that gave the state (spec/dcos-networking.md §1.1).
    ///
    /// # Errors
    /// When the state cannot be used.
    pub fn leader_of(json: &[u8]) -> Result<Option<(String, u16)>, StateError> {
        let state = read(json)?;
        let place = crate::hosts::of_pid(&state.leader);
        Ok(place.map(|place| (place.host, place.port)))
    }

    /// Takes a state. The view is the one before, at the same revision, if nothing changed.
    ///
    /// # Errors
    /// When the state cannot be used. The view stays as it was.
    pub fn apply_state(&mut self, json: &[u8], now: Timestamp) -> Result<ClusterView, StateError> {
        let state = read(json)?;
        self.rejected = 0;
        self.cluster.advance(now);
        self.cluster.set_leader(state.leader.split('@').nth(1).map(str::to_owned));
        self.apply_agents(&state.slaves);
        self.apply_frameworks(&state.frameworks);
        Ok(self.cluster.commit().clone())
    }

    /// Takes another list of masters, `host:port`, in the order of their numbers. The view that follows.
    pub fn set_masters(&mut self, masters: Vec<String>) -> ClusterView {
        self.cluster.set_masters(masters);
        self.cluster.commit().clone()
    }

    /// Host names whose addresses are needed and not known.
    pub fn unresolved_hosts(&self) -> &BTreeSet<String> {
        self.cluster.hosts().wanted()
    }

    /// Takes the addresses of a host name, in the order of preference; none if it has none. The view that follows.
    pub fn set_host(&mut self, host: &str, addresses: &[IpAddr]) -> ClusterView {
        self.cluster.set_host(host, addresses);
        self.cluster.commit().clone()
    }

    /// How many agents, frameworks and tasks of the last state were left out because they could not be read.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    fn apply_agents(&mut self, slaves: &[&RawValue]) {
        let mut gone: BTreeSet<_> = self.cluster.agent_ids().into_iter().collect();
        for raw in slaves {
            let facts = serde_json::from_str::<SlaveJson>(raw.get()).ok().and_then(AgentFacts::of_state);
            match facts {
                Some(facts) => {
                    gone.remove(&facts.id);
                    self.cluster.set_agent(facts);
                }
                None => self.rejected += 1,
            }
        }
        for id in gone {
            self.cluster.remove_agent(&id);
        }
    }

    fn apply_frameworks(&mut self, frameworks: &[&RawValue]) {
        let mut gone: BTreeSet<_> = self.cluster.framework_ids().into_iter().collect();
        let mut gone_tasks: BTreeSet<_> = self.cluster.task_keys().into_iter().collect();
        let mut seen = BTreeMap::new();
        for raw in frameworks {
            let json = serde_json::from_str::<FrameworkJson<'_>>(raw.get()).ok();
            let Some((json, facts)) = json.and_then(|json| {
                let facts = FrameworkFacts::of_state(&json)?;
                Some((json, facts))
            }) else {
                self.rejected += 1;
                continue;
            };
            let id = facts.id.clone();
            gone.remove(&id);
            self.cluster.set_framework(facts);
            for raw in json.tasks {
                let task = serde_json::from_str::<TaskJson<'_>>(raw.get()).ok();
                match task.and_then(|task| TaskFacts::of_json(task, Some(&id))) {
                    Some(mut facts) => {
                        // Mesos wants ids to be unique, and mesos-dns does not mind if they are not.
                        let number = seen.entry(facts.key.clone()).or_insert(0_usize);
                        *number += 1;
                        if *number > 1 {
                            facts.distinguish(*number);
                        }
                        gone_tasks.remove(&facts.key);
                        self.cluster.set_task(facts);
                    }
                    None => self.rejected += 1,
                }
            }
        }
        for key in gone_tasks {
            self.cluster.remove_task(&key);
        }
        for id in gone {
            self.cluster.remove_framework(&id);
        }
    }
}

fn read(json: &[u8]) -> Result<StateJson<'_>, StateError> {
    if json.len() > STATE_LENGTH_MAX {
        return Err(StateError::TooLong { length: json.len() });
    }
    let state: StateJson<'_> = serde_json::from_slice(json).map_err(|source| StateError::Json { source })?;
    if state.leader.is_empty() {
        return Err(StateError::NoLeader);
    }
    Ok(state)
}
