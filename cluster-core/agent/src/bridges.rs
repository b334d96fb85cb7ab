//! Bridges of tasks and containers: what is to be there, compared with what is. What somebody removes is put back.
//!
//! The end of an interface on the node goes on to be there when its bridge goes, so that it can join another one. One
//! that is gone itself has taken its other end with it, and that is in a namespace where the agent has no business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesonet_model::TaskState;
use mesonet_netlink::Netlink;

use crate::agent::Agent;
use crate::attachments::AttachmentError;
use crate::checkpoint;
use crate::container_network::{Interface, InterfaceAddress, port_name};
use crate::interfaces;

/// A bridge as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    /// One for each part of a network; the node has its first address.
    parts: Vec<InterfaceAddress>,
    /// Interfaces that are to be its ports, as far as they are there.
    ports: BTreeSet<String>,
}

/// A bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Found {
    /// Its number, if it is there and on.
    index: Option<u32>,
    addresses: BTreeSet<IpAddr>,
    /// The interfaces that are to be its ports and are there, with the numbers of their bridges.
    ports: BTreeMap<String, Option<u32>>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Make the bridge, turn it on and give it its addresses, as far as that is not so.
    Make { bridge: String },
    /// Make an interface a port of it.
    Join { port: String, bridge: String },
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
        if found.index.is_none() || !has_addresses {
            steps.push(Step::Make { bridge: bridge.clone() });
        }
        let is_elsewhere = |master: &Option<u32>| found.index.is_none() || *master != found.index;
        let strays = found.ports.iter().filter(|(_, master)| is_elsewhere(master));
        steps.extend(strays.map(|(port, _)| Step::Join { port: port.clone(), bridge: bridge.clone() }));
    }
    steps
}

impl Agent {
    /// Puts back what somebody has removed.
    pub(crate) fn mend_bridges(&mut self) {
        if !self.lacking.is_empty() {
            return;
        }
        if let Err(error) = self.try_to_mend_bridges() {
            tracing::warn!(error = checkpoint::in_full(&error), "Bridges are not as they should be");
        }
    }

    fn try_to_mend_bridges(&mut self) -> Result<(), AttachmentError> {
        let wanted = self.wanted_bridges();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut host = Netlink::open()?;
        if plan(&wanted, &look(&mut host, &wanted)?).is_empty() {
            return Ok(());
        }
        // Who holds the lock may be about to make the same things, or to remove them.
        let _others = self.look_at_others()?;
        self.look_at_containers();
        let wanted = self.wanted_bridges();
        for step in plan(&wanted, &look(&mut host, &wanted)?) {
            tracing::warn!(?step, "Something of a bridge was gone and is put back");
            match step {
                Step::Make { bridge } => {
                    let Some(wanted) = wanted.get(&bridge) else { continue };
                    let interface = Interface { bridge, addresses: wanted.parts.clone(), mtu: None };
                    interfaces::bridge(&mut host, &interface)?;
                }
                Step::Join { port, bridge } => {
                    let (port, bridge) = (host.link(&port)?, host.link(&bridge)?);
                    if let Some((port, bridge)) = port.zip(bridge) {
                        host.join_bridge(&port, &bridge)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// By what is written down of tasks that run, and of containers. What is just being made is none of it.
    fn wanted_bridges(&self) -> BTreeMap<String, Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        let mut add = |interface: &Interface, port: String| {
            let bridge = wanted.entry(interface.bridge.clone()).or_default();
            for each in &interface.addresses {
                if !bridge.parts.iter().any(|known| known.subnet == each.subnet) {
                    bridge.parts.push(*each);
                }
            }
            bridge.ports.insert(port);
        };
        for task in self.tasks.values() {
            if !matches!(task.statuses.latest().state, TaskState::Running | TaskState::Killing) {
                continue;
            }
            let Some(run) = &task.run else { continue };
            for (index, interface) in run.launch.network.iter().flat_map(|each| &each.interfaces).enumerate()
            {
                add(interface, port_name(run.launch.container, index));
            }
        }
        for attachment in self.joined.attachments() {
            add(attachment.interface(), attachment.port.clone());
        }
        wanted
    }
}

/// What there is of what is to be.
fn look(
    host: &mut Netlink,
    wanted: &BTreeMap<String, Wanted>,
) -> Result<BTreeMap<String, Found>, AttachmentError> {
    let addresses = host.addresses()?;
    let mut all = BTreeMap::new();
    for (bridge, wanted) in wanted {
        let mut found = Found::default();
        if let Some(link) = host.link(bridge)?.filter(|link| link.is_up) {
            let own = addresses.iter().filter(|address| address.link == link.index);
            found.addresses = own.map(|address| address.address).collect();
            found.index = Some(link.index);
        }
        for port in &wanted.ports {
            if let Some(link) = host.link(port)? {
                found.ports.insert(port.clone(), link.master);
            }
        }
        all.insert(bridge.clone(), found);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(subnet: &str) -> InterfaceAddress {
        let subnet: mesonet_model::Subnet = subnet.parse().expect("range");
        InterfaceAddress { address: subnet.nth(7).expect("one of many"), subnet }
    }

    fn found(index: Option<u32>, addresses: &[&str], ports: &[(&str, Option<u32>)]) -> Found {
        Found {
            index,
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
            ports: ports.iter().map(|(port, master)| ((*port).to_owned(), *master)).collect(),
        }
    }

    #[test]
    fn what_is_missing_is_put_back_and_nothing_else_is_touched() {
        let parts = vec![part("9.0.7.0/24"), part("fd01:b:0:0:7::/80")];
        let ports = ["p1", "p2"].map(str::to_owned).into();
        let wanted: BTreeMap<String, Wanted> = [("m-dcos".to_owned(), Wanted { parts, ports })].into();
        let own = ["9.0.7.1", "fd01:b::7:0:0:1"];
        for (found, expected) in [
            (found(Some(4), &own, &[("p1", Some(4)), ("p2", Some(4))]), &[][..]),
            (found(Some(4), &["9.0.7.1", own[1], "10.0.0.1"], &[("p2", Some(4))]), &[]),
            (found(Some(4), &own, &[("p1", None), ("p2", Some(9))]), &["join p1", "join p2"]),
            (found(Some(4), &own[..1], &[("p1", Some(4)), ("p2", Some(4))]), &["make"]),
            (found(None, &[], &[("p1", None), ("p2", None)]), &["make", "join p1", "join p2"]),
            (found(None, &[], &[]), &["make"]),
        ] {
            let name = |step: &Step| match step {
                Step::Make { bridge } => {
                    assert_eq!(bridge, "m-dcos");
                    "make".to_owned()
                }
                Step::Join { port, .. } => format!("join {port}"),
            };
            let all = [("m-dcos".to_owned(), found.clone())].into();
            let steps: Vec<String> = plan(&wanted, &all).iter().map(name).collect();
            assert_eq!(steps, expected, "{found:?}");
        }
        assert_eq!(plan(&wanted, &BTreeMap::new()).len(), 1, "what was not looked at is not there");
    }
}
