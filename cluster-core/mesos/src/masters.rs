//! The masters: who leads, and in which order they are numbered.

use std::net::SocketAddr;

use mesonet_model::{Master, MasterId};

use crate::hosts::{Hosts, host_port};

/// The masters of a list, `host:port`, and the leading one, in the order of their numbers. None if the leader's address
/// is none, as with mesos-dns.
///
/// The numbering is that of mesos-dns (spec/dcos-networking.md §1.2): an address counts once; a listed master with the
/// leader's address but another port does not; and a leader that is not listed comes last.
pub(crate) fn numbered(list: &[String], leader: Option<&str>, hosts: &mut Hosts) -> Vec<Master> {
    let Some(leader) = leader.and_then(|leader| socket(leader, hosts)) else { return Vec::new() };
    let mut order: Vec<SocketAddr> = Vec::new();
    for master in list.iter().filter_map(|master| socket(master, hosts)) {
        let is_known = order.iter().any(|other| other.ip() == master.ip());
        if !is_known && (master == leader || master.ip() != leader.ip()) {
            order.push(master);
        }
    }
    if !order.contains(&leader) {
        order.push(leader);
    }
    let master = |(at, address): (usize, SocketAddr)| Master {
        id: MasterId::new(format!("master-{at:06}")),
        address,
        leading: address == leader,
        removal_held: false,
    };
    order.into_iter().enumerate().map(master).collect()
}

fn socket(text: &str, hosts: &mut Hosts) -> Option<SocketAddr> {
    let place = host_port(text)?;
    Some(SocketAddr::new(*hosts.addresses(&place.host).first()?, place.port))
}
