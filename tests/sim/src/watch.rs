//! What must hold at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesonet_marathon::MarathonView;
use mesonet_model::{AgentId, AppId, ClusterView, PortRanges, Resources, Revision, TaskKey};

use crate::agent::Agent;
use crate::leader::{Records, Settings, recover_marathon, recover_master};

/// What was seen before and binds what is seen later.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    revision: Revision,
    /// The address of each name. A run is far shorter than a day, so that no reservation ends.
    addresses: BTreeMap<(String, bool), IpAddr>,
    /// Tasks that no plane may send clients to any more: their agents were told to end them when none did.
    pub(crate) withdrawn: BTreeSet<TaskKey>,
}

impl Watch {
    /// A view is committed.
    pub(crate) fn view(&mut self, view: &ClusterView) {
        assert!(view.revision > self.revision, "{} is committed after {}", view.revision, self.revision);
        self.revision = view.revision;
        for (key, service) in &view.services {
            let Some(name) = key.vip.allocation_name() else { continue };
            let addresses = service.ipv4.map(IpAddr::V4).into_iter().chain(service.ipv6.map(IpAddr::V6));
            for address in addresses {
                let first = self.addresses.entry((name.clone(), address.is_ipv4())).or_insert(address);
                assert_eq!(*first, address, "{key} has another address");
            }
        }
        let distinct: BTreeSet<&IpAddr> = self.addresses.values().collect();
        assert_eq!(distinct.len(), self.addresses.len(), "names share an address: {:?}", self.addresses);
        for agent in view.agents.values() {
            let of_agent = view.tasks.values().filter(|task| task.agent == agent.id);
            let tasks = of_agent.map(|task| (&task.key, &task.resources));
            check_fits(&agent.id, &agent.info.resources, tasks);
        }
    }
}

/// What runs, runs once and within what its agent has.
pub(crate) fn check_processes<'a>(agents: impl Iterator<Item = &'a Agent>) {
    let mut ids = BTreeSet::new();
    for agent in agents {
        for (key, _) in agent.live() {
            assert!(ids.insert(key), "{key} runs twice");
        }
        if let Some(id) = &agent.id {
            check_fits(id, &agent.info.resources, agent.live());
        }
    }
}

fn check_fits<'a>(
    agent: &AgentId,
    total: &Resources,
    tasks: impl Iterator<Item = (&'a TaskKey, &'a Resources)>,
) {
    let mut used = Resources::default();
    let mut ports = PortRanges::default();
    for (key, resources) in tasks {
        let taken = resources.ports.iter().find(|port| ports.contains(*port));
        assert_eq!(taken, None, "a port of {agent} is given to {key} and to another task");
        ports.insert_all(&resources.ports);
        used.add(resources);
    }
    assert!(total.contains(&used), "{agent} has {total:?} and gives {used:?}");
}

/// A control plane that begins from the store is where the one before it was at its last commit.
pub(crate) fn check_recovery(
    term: u64,
    settings: Settings,
    (revision, records): (Revision, &Records),
    cluster: &ClusterView,
    marathon: &MarathonView,
) {
    let master = recover_master(term, settings, revision, records);
    let view = master.view();
    assert!(view.revision > cluster.revision, "revision {} is used twice", view.revision);
    assert_eq!(view.tasks, cluster.tasks, "tasks after a crash");
    assert_eq!(view.services, cluster.services, "services after a crash");
    assert_eq!(view.endpoints, cluster.endpoints, "endpoints after a crash");
    assert!(view.agents.keys().eq(cluster.agents.keys()), "agents after a crash");
    let recovered = recover_marathon(term, settings, records).view();
    assert_eq!(recovered.deployments, marathon.deployments, "deployments after a crash");
    let ids = |view: &MarathonView| view.apps.keys().cloned().collect::<Vec<AppId>>();
    assert_eq!(ids(&recovered), ids(marathon), "apps after a crash");
    for (recovered, committed) in recovered.apps.values().zip(marathon.apps.values()) {
        assert_eq!(recovered.versions, committed.versions);
        assert_eq!(recovered.instances, committed.instances);
        assert_eq!(recovered.last_failure, committed.last_failure);
        assert_eq!(recovered.deployments, committed.deployments);
    }
}
