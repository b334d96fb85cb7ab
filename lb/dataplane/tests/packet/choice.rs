//! The loaded program chooses endpoints as every node computes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesonet_ebpf_abi::{
    Frontend, PacketService, Place, ROW_SLOTS, Row, TCP, UDP, flow_hash, hash_slot, source_hash,
};
use mesonet_lb_dataplane::{PacketAnswer, PacketMode, PacketQuestion};
use mesonet_lb_plan::RouteState::Ready;
use mesonet_lb_plan::{Algorithm, PacketCandidate, PacketSpec, PacketTable, PacketWrite, ServicePolicy};
use mesonet_model::Protocol;

use crate::site::{Balancer, Site, address};

/// What the maps of a virtual address would hold.
struct Computed {
    frontend: Frontend,
    service: PacketService,
    rows: BTreeMap<u32, Row>,
    places: BTreeMap<u32, Place>,
}

impl Computed {
    fn new(frontend: Frontend, endpoints: &[String], is_by_source: bool) -> Self {
        let candidate = |at: &String| PacketCandidate {
            place: address(at).into(),
            weight: Some(1),
            source: None,
            replies_pass: true,
            is_direct: false,
        };
        let spec = PacketSpec { candidates: endpoints.iter().map(candidate).collect(), is_by_source };
        let (mut service, mut rows, mut places) = (None, BTreeMap::new(), BTreeMap::new());
        for write in PacketTable::new(0).put(frontend, &spec).expect("there is room") {
            match write {
                PacketWrite::PutService(_, put) => service = Some(put),
                PacketWrite::PutRow(at, row) => drop(rows.insert(at, row)),
                PacketWrite::PutEndpoint(number, endpoint) => drop(places.insert(number, endpoint.place)),
                _ => {}
            }
        }
        Self { frontend, service: service.expect("it is put"), rows, places }
    }

    fn choose(&self, client: SocketAddr) -> SocketAddr {
        let client = Place::from(client);
        let hash = match self.service.flags & PacketService::BY_SOURCE {
            0 => flow_hash(&client, &self.frontend.place, self.frontend.protocol),
            _ => source_hash(&client),
        };
        let slot = hash_slot(hash, self.service.slots);
        let row = &self.rows[&(self.service.row + slot / ROW_SLOTS)];
        self.places[&row.endpoints[(slot % ROW_SLOTS) as usize]].into()
    }
}

#[test]
#[ignore = "needs root"]
fn the_loaded_program_chooses_what_is_computed() {
    let site = Site::new();
    let mut node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    // A service at a time, so that its numbers do not matter.
    for is_by_source in [false, true] {
        let algorithm = if is_by_source { Algorithm::Maglev } else { Algorithm::WeightedRandom };
        for (vip, network) in [("11.0.0.1:80", "10.9.0."), ("[fd11::1]:80", "[fd09::")] {
            let end = if vip.starts_with('[') { "]:8080" } else { ":8080" };
            let endpoints: Vec<String> = (1..=7).map(|number| format!("{network}{number}{end}")).collect();
            let ready: Vec<_> = endpoints.iter().map(|at| (at.as_str(), Ready)).collect();
            for (protocol, number) in [(Protocol::Tcp, TCP), (Protocol::Udp, UDP)] {
                let policy = ServicePolicy { algorithm, ..ServicePolicy::default() };
                node.put_with(policy, &format!("{protocol}/seven@marathon:80"), vip, &ready);
                let frontend = Frontend { place: address(vip).into(), protocol: number.into() };
                let computed = Computed::new(frontend, &endpoints, is_by_source);
                for client in 0..300_u16 {
                    let [high, low] = client.wrapping_mul(7919).to_be_bytes();
                    let from = if vip.starts_with('[') {
                        format!("[fd01::{high:x}:{low:x}]:{}", 1024 + client * 97)
                    } else {
                        format!("10.1.{high}.{low}:{}", 1024 + client * 97)
                    };
                    let question = PacketQuestion { protocol, from: address(&from), to: address(vip) };
                    let answer = node.balancer.trace(&question).expect("an answer");
                    let to = computed.choose(question.from);
                    assert_eq!(answer, PacketAnswer::Goes { from: question.from, to }, "{is_by_source}");
                }
            }
        }
    }
}
