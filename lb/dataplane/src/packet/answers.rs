//! What is known of endpoints, for who asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Add as _;

use mesonet_ebpf_abi::{PacketCount, PacketEndpoint, PacketEvent, Place};
use mesonet_lb_plan::{Deviation, EndpointCount};
use mesonet_model::{Protocol, ServiceKey};

use super::{PacketBalancer, frontend};

impl PacketBalancer {
    /// What is counted of each endpoint behind a virtual address, since the maps were made.
    pub fn counts(&self, protocol: Protocol, address: SocketAddr) -> Vec<(SocketAddr, PacketCount)> {
        let frontend = frontend(protocol, address);
        let members = self.table.members(&frontend);
        members.map(|(number, each)| (each.place.into(), self.ledger.of(number))).collect()
    }

    /// What flows to an endpoint of a service have come to since this process knows it: how many there were, and how many
    /// connections are open. Datagrams have no end, and that of a connection whose answers do not pass the node is not seen.
    pub fn count(&self, key: &ServiceKey, endpoint: SocketAddr) -> EndpointCount {
        let place = Place::from(endpoint);
        let members = self.owners.of(key).filter_map(|frontend| self.table.member(&frontend, &place));
        let counts = members.map(|(number, endpoint)| {
            let (connections, ended) = self.ledger.flows(number);
            let is_seen = key.protocol == Protocol::Tcp && endpoint.flags & PacketEndpoint::DIRECT == 0;
            let active = if is_seen { connections.saturating_sub(ended) } else { 0 };
            EndpointCount { connections, active, failures: 0 }
        });
        counts.fold(EndpointCount::default(), EndpointCount::add)
    }

    /// How often packets were not translated though they may have been meant to be, by reason.
    pub fn events(&self) -> BTreeMap<PacketEvent, u64> {
        self.ledger.events()
    }

    /// The endpoints behind a virtual address that take part otherwise than their weights say.
    pub(crate) fn deviations(
        &self,
        protocol: Protocol,
        address: SocketAddr,
    ) -> BTreeMap<SocketAddr, Deviation> {
        let frontend = frontend(protocol, address);
        let takes_none = |each: &PacketEndpoint| each.flags & PacketEndpoint::READY == 0;
        let members: BTreeMap<Place, &PacketEndpoint> =
            self.table.members(&frontend).map(|(_, each)| (each.place, each)).collect();
        let starting = self
            .starts
            .deviations(&frontend, |place| members.get(place).is_some_and(|each| !takes_none(each)));
        let no_way = members.values().filter(|each| takes_none(each) && each.source == [0; 4]);
        let no_way = no_way.map(|each| (each.place, Deviation::NoWay));
        no_way.chain(starting).map(|(place, deviation)| (place.into(), deviation)).collect()
    }

    /// The virtual addresses of a service that packets are balanced for.
    pub(crate) fn addresses_of(&self, key: &ServiceKey) -> impl Iterator<Item = SocketAddr> {
        self.owners.of(key).map(|frontend| frontend.place.into())
    }
}
