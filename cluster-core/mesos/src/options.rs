//! What a follower is told at its start.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesonet_model::{ClusterId, Revision};

/// What a follower is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the cluster that its views have. Mesos has none that survives its masters.
    pub cluster: ClusterId,
    /// The first view has the revision after this one. A caller that wants revisions, and with them the serial numbers
    /// of zones, to go on counting up after a restart gives the Unix time or the last revision that it knows.
    pub first_revision: Revision,
    /// All masters, `host:port`, in the order of their `masterN` names.
    pub masters: Vec<String>,
    /// First and last IPv4 address of named VIPs.
    pub vip_range_v4: (Ipv4Addr, Ipv4Addr),
    /// First and last IPv6 address of named VIPs.
    pub vip_range_v6: (Ipv6Addr, Ipv6Addr),
}

impl Default for Options {
    /// No list of masters, and the VIP ranges of DC/OS (spec/dcos-networking.md §0.2).
    fn default() -> Self {
        Self {
            cluster: ClusterId::new("mesos"),
            first_revision: Revision::ZERO,
            masters: Vec::new(),
            vip_range_v4: (Ipv4Addr::new(11, 0, 0, 0), Ipv4Addr::new(11, 255, 255, 255)),
            vip_range_v6: (
                Ipv6Addr::new(0xfd01, 0xc, 0, 0, 0, 0, 0, 0),
                Ipv6Addr::new(0xfd01, 0xc, 0, 0, 0xffff, 0xffff, 0xffff, 0xffff),
            ),
        }
    }
}
