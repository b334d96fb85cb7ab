//! Bridges and interfaces of tasks and containers: what is to be there, compared with what is. What somebody removes is
//! put back.
//!
//! The end of an interface on the node goes on to be there when its bridge goes, so that it can join another one. One
//! that is gone itself has taken its other end with it. A task gets another pair, with the same names and addresses. The
//! namespace of a container is known to its runtime alone, so the log says that its interface is gone. What is within a
//! namespace is otherwise its owner's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesonet_model::{TaskKey, TaskState};
use mesonet_netlink::Netlink;

use crate::agent::Agent;
use crate::attachments::{self, AttachmentError, altered};
use crate::checkpoint::{self, FileError};
use crate::container_network::{Interface, InterfaceAddress, inside_name, port_name};
use crate::interfaces::{self, Names};
use crate::layout::SUPERVISOR_FILE;

/// A bridge as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    /// One for each part of a network; the node has its first address.
    parts: Vec<InterfaceAddress>,
    /// Interfaces that are to be its ports.
    ports: BTreeMap<String, Owner>,
}

/// Whose interface a port is the end of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// That of a task, with its number among the task's.
    Task { task: TaskKey, index: usize },
    /// That of a container.
    Container,
}

/// A bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Found {
    /// Its number, if it is there and on.
    index: Option<u32>,
    addresses: BTreeSet<IpAddr>,
    /// Whether what comes from it is forwarded. Whoever sets the host's switches anew may turn that off.
    forwards: bool,
    /// The interfaces that are to be its ports and are there.
    ports: BTreeMap<String, FoundPort>,
}

/// An interface that is to be a port, as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FoundPort {
    is_up: bool,
    /// The number of its bridge.
    bridge: Option<u32>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Make the bridge, turn it on, give it its addresses and have forwarded what comes from it, as far as that is not so.
    Make { bridge: String },
    /// Make an interface of a task, with both ends.
    Renew { port: String, task: TaskKey, index: usize },
    /// Make an interface a port of the bridge.
    Join { port: String, bridge: String },
    /// Turn an interface on.
    TurnOn { port: String },
}

impl Step {
    /// The interface that it is about.
    fn interface(&self) -> &str {
        match self {
            Self::Make { bridge } => bridge,
            Self::Renew { port, .. } | Self::Join { port, .. } | Self::TurnOn { port } => port,
        }
    }
}

/// What leads from what is there to what is to be.
fn plan(wanted: &BTreeMap<String, Wanted>, found: &BTreeMap<String, Found>) -> Vec<Step> {
    let nothing = Found::default();
    let mut steps = Vec::new();
    for (bridge, wanted) in wanted {
        let found = found.get(bridge).unwrap_or(&nothing);
        let has_addresses = wanted
            .parts
            .iter()
            .filter_map(InterfaceAddress::gateway)
            .all(|gateway| found.addresses.contains(&gateway));
        if found.index.is_none() || !has_addresses || !found.forwards {
            steps.push(Step::Make { bridge: bridge.clone() });
        }
        for (port, owner) in &wanted.ports {
            match (found.ports.get(port), owner) {
                (Some(there), _) => {
                    if found.index.is_none() || there.bridge != found.index {
                        steps.push(Step::Join { port: port.clone(), bridge: bridge.clone() });
                    }
                    if !there.is_up {
                        steps.push(Step::TurnOn { port: port.clone() });
                    }
                }
                (None, Owner::Task { task, index }) => {
                    steps.push(Step::Renew { port: port.clone(), task: task.clone(), index: *index });
                }
                (None, Owner::Container) => {}
            }
        }
    }
    steps
}

/// The ports that are gone and cannot be made here.
fn lost<'wanted>(
    wanted: &'wanted BTreeMap<String, Wanted>,
    found: &BTreeMap<String, Found>,
) -> BTreeSet<&'wanted str> {
    let is_there =
        |bridge, port| found.get(bridge).is_some_and(|found: &Found| found.ports.contains_key(port));
    let ports = wanted
        .iter()
        .flat_map(|(bridge, wanted)| wanted.ports.iter().map(move |(port, owner)| (bridge, port, owner)));
    let lost = ports.filter(|(bridge, port, owner)| **owner == Owner::Container && !is_there(*bridge, *port));
    lost.map(|(_, port, _)| port.as_str()).collect()
}

impl Agent {
    /// Puts back what somebody has removed. `unmended` is what could not be done the last time, of which the log says
    /// nothing new.
    pub(crate) fn mend_bridges(&mut self, unmended: &mut BTreeSet<String>) {
        if !self.lacking.is_empty() {
            return;
        }
        if let Err(error) = self.try_to_mend_bridges(unmended) {
            let error = checkpoint::in_full(&error);
            if unmended.insert(error.clone()) {
                tracing::warn!(error, "Bridges cannot be compared with what they should be");
            }
        }
    }

    fn try_to_mend_bridges(&mut self, unmended: &mut BTreeSet<String>) -> Result<(), AttachmentError> {
        let wanted = self.wanted_bridges();
        let mut host = Netlink::open()?;
        let found = look(&mut host, &wanted)?;
        let gone = lost(&wanted, &found);
        if plan(&wanted, &found).is_empty() && gone.iter().all(|port| unmended.contains(*port)) {
            *unmended = gone.into_iter().map(str::to_owned).collect();
            return Ok(());
        }
        // Who holds the lock may be about to make the same things, or to remove them.
        let _others = self.look_at_others()?;
        self.look_at_containers();
        let wanted = self.wanted_bridges();
        let found = look(&mut host, &wanted)?;
        let mut left = BTreeSet::new();
        for port in lost(&wanted, &found) {
            if !unmended.contains(port) {
                tracing::warn!(
                    port,
                    "The interface of a container is gone; only its runtime can make another one"
                );
            }
            left.insert(port.to_owned());
        }
        for step in plan(&wanted, &found) {
            let is_new = !unmended.contains(step.interface());
            match self.take(&mut host, &wanted, &step) {
                Ok(()) => {
                    self.config.metrics.restored();
                    tracing::warn!(?step, "Something of a network was gone and is put back");
                }
                Err(error) => {
                    if is_new {
                        let error = checkpoint::in_full(&error);
                        tracing::warn!(?step, error, "Something of a network is gone and cannot be put back");
                    }
                    left.insert(step.interface().to_owned());
                }
            }
        }
        *unmended = left;
        Ok(())
    }

    fn take(
        &self,
        host: &mut Netlink,
        wanted: &BTreeMap<String, Wanted>,
        step: &Step,
    ) -> Result<(), AttachmentError> {
        match step {
            Step::Make { bridge } => {
                let parts = wanted.get(bridge).map_or_else(Vec::new, |wanted| wanted.parts.clone());
                let interface = Interface { bridge: bridge.clone(), addresses: parts, mtu: None };
                interfaces::bridge(host, &interface)?;
            }
            Step::Renew { port, task, index } => self.renew(host, port, task, *index)?,
            Step::Join { port, bridge } => {
                let (port, bridge) = (host.link(port)?, host.link(bridge)?);
                if let Some((port, bridge)) = port.zip(bridge) {
                    host.join_bridge(&port, &bridge)?;
                }
            }
            Step::TurnOn { port } => {
                if let Some(port) = host.link(port)? {
                    host.set_up(&port)?;
                }
            }
        }
        Ok(())
    }

    /// Gives a task an interface in the place of one that is gone.
    fn renew(
        &self,
        host: &mut Netlink,
        port: &str,
        task: &TaskKey,
        index: usize,
    ) -> Result<(), AttachmentError> {
        let run = self.tasks.get(task).and_then(|task| task.run.as_ref());
        let Some(network) = run.and_then(|run| run.launch.network.as_ref()) else { return Ok(()) };
        let Some(interface) = network.interfaces.get(index) else { return Ok(()) };
        let bridge = interfaces::bridge(host, interface)?;
        let name = inside_name(index);
        let made = attachments::inside(&self.namespace_of(task)?, |own| {
            if own.link(&name)?.is_some() {
                return Err(altered(format!("the task's interface {name} is there without its end {port}")));
            }
            let names = Names { port, inside: &name };
            Ok(interfaces::connect(host, own, interface, &bridge, names, &network.default_gateways(index))?)
        });
        if made.is_err() {
            // One without its addresses would seem to be as it should.
            host.remove_link(port)?;
        }
        made
    }

    /// The network namespace of a task: that of its supervisor.
    fn namespace_of(&self, task: &TaskKey) -> Result<PathBuf, AttachmentError> {
        let file = self.layout.checkpoint(task).join(SUPERVISOR_FILE);
        let pid = fs::read_to_string(&file).map_err(FileError::at("read", &file))?;
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", pid.trim()));
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let theirs = identity(&namespace)
            .map_err(|source| AttachmentError::Namespace { path: namespace.clone(), source })?;
        // The number of a process that has ended may be another one's by now.
        if identity(Path::new("/proc/thread-self/ns/net")).is_ok_and(|own| own == theirs) {
            return Err(altered(format!("{} is the node's own", namespace.display())));
        }
        Ok(namespace)
    }

    /// By what is written down of tasks that run, and of containers. What is just being made is none of it.
    fn wanted_bridges(&self) -> BTreeMap<String, Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        let mut add = |interface: &Interface, port: String, owner: Owner| {
            let bridge = wanted.entry(interface.bridge.clone()).or_default();
            for each in &interface.addresses {
                if !bridge.parts.iter().any(|known| known.subnet == each.subnet) {
                    bridge.parts.push(*each);
                }
            }
            bridge.ports.insert(port, owner);
        };
        for (key, task) in &self.tasks {
            if !matches!(task.statuses.latest().state, TaskState::Running | TaskState::Killing) {
                continue;
            }
            let Some(run) = &task.run else { continue };
            for (index, interface) in run.launch.network.iter().flat_map(|each| &each.interfaces).enumerate()
            {
                let owner = Owner::Task { task: key.clone(), index };
                add(interface, port_name(run.launch.container, index), owner);
            }
        }
        for attachment in self.joined.attachments() {
            add(attachment.interface(), attachment.port.clone(), Owner::Container);
        }
        wanted
    }
}

/// What there is of what is to be.
fn look(
    host: &mut Netlink,
    wanted: &BTreeMap<String, Wanted>,
) -> Result<BTreeMap<String, Found>, AttachmentError> {
    let mut all = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(all);
    }
    let addresses = host.addresses()?;
    for (bridge, wanted) in wanted {
        let mut found = Found::default();
        if let Some(link) = host.link(bridge)?.filter(|link| link.is_up) {
            let own = addresses.iter().filter(|address| address.link == link.index);
            found.addresses = own.map(|address| address.address).collect();
            found.forwards = interfaces::forwards(bridge);
            found.index = Some(link.index);
        }
        for port in wanted.ports.keys() {
            if let Some(link) = host.link(port)? {
                found.ports.insert(port.clone(), FoundPort { is_up: link.is_up, bridge: link.master });
            }
        }
        all.insert(bridge.clone(), found);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId};

    use super::*;

    fn part(subnet: &str) -> InterfaceAddress {
        let subnet: mesonet_model::Subnet = subnet.parse().expect("range");
        InterfaceAddress { address: subnet.nth(7).expect("one of many"), subnet }
    }

    fn port(bridge: Option<u32>) -> FoundPort {
        FoundPort { is_up: true, bridge }
    }

    fn found(index: Option<u32>, addresses: &[&str], ports: &[(&str, FoundPort)]) -> Found {
        Found {
            index,
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
            forwards: true,
            ports: ports.iter().map(|(port, found)| ((*port).to_owned(), *found)).collect(),
        }
    }

    fn name(step: &Step) -> String {
        match step {
            Step::Make { bridge } => format!("make {bridge}"),
            Step::Renew { port, task, index } => format!("renew {port} of {} {index}", task.task),
            Step::Join { port, bridge } => format!("join {port} to {bridge}"),
            Step::TurnOn { port } => format!("turn on {port}"),
        }
    }

    #[test]
    fn what_is_missing_is_put_back_and_nothing_else_is_touched() {
        let parts = vec![part("9.0.7.0/24"), part("fd01:b:0:0:7::/80")];
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        let ports = [("p1", Owner::Task { task, index: 1 }), ("p2", Owner::Container)];
        let ports = ports.map(|(port, owner)| (port.to_owned(), owner)).into();
        let wanted: BTreeMap<String, Wanted> = [("m-dcos".to_owned(), Wanted { parts, ports })].into();
        let own = ["9.0.7.1", "fd01:b::7:0:0:1"];
        let (here, nowhere) = (port(Some(4)), port(None));
        let off = FoundPort { is_up: false, ..here };
        let (make, renew) = ("make m-dcos", "renew p1 of t 1");
        let (join1, join2) = ("join p1 to m-dcos", "join p2 to m-dcos");
        for (found, expected, gone) in [
            (found(Some(4), &own, &[("p1", here), ("p2", here)]), &[][..], false),
            (found(Some(4), &["9.0.7.1", own[1], "10.0.0.1"], &[("p1", here), ("p2", here)]), &[], false),
            (found(Some(4), &own, &[("p2", here)]), &[renew], false),
            (found(Some(4), &own, &[("p1", here)]), &[], true),
            (found(Some(4), &own, &[("p1", nowhere), ("p2", port(Some(9)))]), &[join1, join2], false),
            (found(Some(4), &own, &[("p1", off), ("p2", off)]), &["turn on p1", "turn on p2"], false),
            (found(Some(4), &own[..1], &[("p1", here), ("p2", here)]), &[make], false),
            (found(None, &[], &[("p1", nowhere), ("p2", nowhere)]), &[make, join1, join2], false),
            (found(None, &[], &[]), &[make, renew], true),
            (
                Found { forwards: false, ..found(Some(4), &own, &[("p1", here), ("p2", here)]) },
                &[make],
                false,
            ),
        ] {
            let all = [("m-dcos".to_owned(), found.clone())].into();
            let steps: Vec<String> = plan(&wanted, &all).iter().map(name).collect();
            assert_eq!(steps, expected, "{found:?}");
            assert_eq!(lost(&wanted, &all).contains("p2"), gone, "{found:?}");
        }
        let steps = plan(&wanted, &BTreeMap::new());
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            [make, renew],
            "what was not looked at is not there"
        );
    }
}
