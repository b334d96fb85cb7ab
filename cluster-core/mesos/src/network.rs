//! A task's addresses as its statuses report them.
//!
//! Sources: spec/dcos-networking.md §1.4 for mesos-dns, §2.2 for dcos-net.

use std::net::IpAddr;

use mesonet_model::TaskState;

use crate::facts;
use crate::hosts::literal;
use crate::json::{Label, labels};
use crate::ports::{Mapping, mappings};
use crate::state::{NetworkInfoJson, StatusJson};

/// The label that holds the address which the Mesos containerizer gave.
const MESOS_LABEL: &str = "MesosContainerizer.NetworkSettings.IPAddress";

/// The label that holds the address which Docker gave.
const DOCKER_LABEL: &str = "Docker.NetworkSettings.IPAddress";

/// What one status of a task says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StatusFacts {
    /// Seconds since the Unix epoch; 0 if the status has none.
    pub(crate) timestamp: f64,
    /// The addresses of its network interfaces, one after the other.
    pub(crate) netinfo: Vec<IpAddr>,
    pub(crate) mesos: Vec<IpAddr>,
    pub(crate) docker: Vec<IpAddr>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) healthy: Option<bool>,
}

impl StatusFacts {
    /// The latest status, and the latest one that says that the task runs. Statuses come in no particular order.
    pub(crate) fn choose(statuses: &[StatusJson<'_>]) -> (Option<Self>, Option<Self>) {
        let timestamp = |status: &StatusJson<'_>| status.timestamp.unwrap_or_default();
        let latest = statuses.iter().max_by(|a, b| timestamp(a).total_cmp(&timestamp(b)));
        // Of several at the same time, mesos-dns takes the first one, and dcos-net the last.
        let running = statuses.iter().filter(|status| facts::state(&status.state) == TaskState::Running);
        let running = running.rev().max_by(|a, b| timestamp(a).total_cmp(&timestamp(b)));
        (latest.map(Self::of_json), running.map(Self::of_json))
    }

    pub(crate) fn of_json(json: &StatusJson<'_>) -> Self {
        let labels = labels(json.labels);
        let infos = json.container_status.as_ref().map_or(&[][..], |status| &status.network_infos);
        Self {
            timestamp: json.timestamp.unwrap_or_default(),
            netinfo: infos.iter().flat_map(interface_addresses).collect(),
            mesos: labelled(&labels, MESOS_LABEL),
            docker: labelled(&labels, DOCKER_LABEL),
            mappings: infos.iter().flat_map(|info| mappings(&info.port_mappings)).collect(),
            healthy: json.healthy,
        }
    }

    /// Puts a later status over this one: what it does not say stays.
    pub(crate) fn update(&mut self, later: Self) {
        let keep = |new: Vec<IpAddr>, old: &mut Vec<IpAddr>| {
            if !new.is_empty() {
                *old = new;
            }
        };
        self.timestamp = later.timestamp;
        keep(later.netinfo, &mut self.netinfo);
        keep(later.mesos, &mut self.mesos);
        keep(later.docker, &mut self.docker);
        if !later.mappings.is_empty() {
            self.mappings = later.mappings;
        }
        self.healthy = later.healthy.or(self.healthy);
    }
}

/// The addresses of an interface; those of its old form only if it has none in the new one.
fn interface_addresses(info: &NetworkInfoJson) -> Vec<IpAddr> {
    if info.ip_addresses.is_empty() {
        return literal(&info.ip_address).into_iter().collect();
    }
    info.ip_addresses.iter().filter_map(|each| literal(&each.ip_address)).collect()
}

fn labelled(labels: &[Label], key: &str) -> Vec<IpAddr> {
    labels.iter().filter(|label| label.key == key).filter_map(|label| literal(&label.value)).collect()
}
