//! Which draining endpoints have connections that they have not ended.
//!
//! The programs say that a connection is over when its client closes it. One whose endpoint has ended it may stay with its
//! client for long, so the kernel is asked in which state the connections are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mesonet_ebpf_abi::{Connection, Origin};
use mesonet_model::Protocol;

use super::maps::Connections;
use super::older_layout::flow;
use super::{namespaces, sockets};

/// Connections of draining endpoints.
#[derive(Debug, Default)]
struct Open {
    /// By network namespace and the kernel's cookie of the socket, the number that each is counted under.
    sockets: BTreeMap<u64, BTreeMap<[u32; 2], u32>>,
    endpoints: BTreeSet<SocketAddr>,
}

/// Those of the counters that have such a connection. Where a namespace cannot be looked into, all that are open count.
pub(super) fn in_use(connections: &Connections, counters: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    let open = Open::new(connections.all()?, counters);
    if open.sockets.is_empty() {
        return Ok(BTreeSet::new());
    }
    let visit = namespaces::visit(
        |namespace| open.sockets.contains_key(&namespace),
        |namespace, netlink| Ok((namespace, open.live(namespace, netlink)?)),
    );
    let seen: BTreeMap<u64, BTreeSet<u32>> = visit.found.into_iter().collect::<io::Result<_>>()?;
    let live = open.sockets.iter().map(|(namespace, sockets)| {
        seen.get(namespace).cloned().unwrap_or_else(|| sockets.values().copied().collect())
    });
    Ok(live.flatten().collect())
}

impl Open {
    fn new(connections: Vec<Connection>, counters: &BTreeSet<u32>) -> Self {
        let mut open = Self::default();
        let is_wanted =
            |origin: &Origin| origin.flags & Origin::TCP != 0 && counters.contains(&origin.counter);
        for (flow, origin) in connections.into_iter().filter(|each| is_wanted(&each.origin)).map(flow) {
            let [low, high] = origin.netns.map(u64::from);
            open.sockets.entry(high << 32 | low).or_default().insert(flow.socket, origin.counter);
            open.endpoints.insert(flow.place.into());
        }
        open
    }

    /// The counters of the live ones in the namespace that the netlink socket is in.
    fn live(&self, namespace: u64, netlink: &OwnedFd) -> io::Result<BTreeSet<u32>> {
        let found = sockets::connected(netlink, Protocol::Tcp, &self.endpoints, sockets::LIVE)?;
        let sockets = self.sockets.get(&namespace);
        Ok(found.iter().filter_map(|each| sockets?.get(&each.cookie).copied()).collect())
    }
}
