//! Both paths give the same answers, on random zones and queries.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use mesonet_dns_zone::{Config, Data, Name, SoaConfig, Zone, ZoneFollower};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, Discovery, DiscoveryPort,
    Framework, FrameworkId, Master, MasterId, Resources, Service, ServiceKey, Task, TaskId, TaskKey,
    TaskState, Timestamp,
};
use proptest::prelude::*;
use proptest::sample::Index;

use super::{Circumstances, FastQuery, FastZone, FastZones, answer, entry::wire_form};
use crate::PolicyConfig;
use crate::guard::Guard;
use crate::metrics::Transport;
use crate::query_metrics::ZoneLabel;
use crate::responder::{Freshness, Outcome, Sources, Step, respond};

/// A group of equal tasks.
#[derive(Debug, Clone)]
struct Group {
    name: usize,
    count: u8,
    addresses: u8,
    ports: u8,
    published: bool,
}

/// A change of the cluster.
#[derive(Debug, Clone)]
enum Change {
    Group(u8, Group),
    Remove(u8),
    Masters(u8),
    Service(u8, bool),
}

const NAMES: [&str; 5] =
    ["web", "nginx.web", "a-very-long-name-so-that-fewer-records-fit-into-a-message", "_x", "a..b"];

fn change() -> impl Strategy<Value = Change> {
    let group =
        (0..NAMES.len(), prop_oneof![3 => 1..4_u8, 1 => 4..90_u8], 0..4_u8, 0..4_u8, any::<bool>()).prop_map(
            |(name, count, addresses, ports, published)| Group { name, count, addresses, ports, published },
        );
    prop_oneof![
        5 => (0..4_u8, group).prop_map(|(at, group)| Change::Group(at, group)),
        1 => (0..4_u8).prop_map(Change::Remove),
        1 => (0..40_u8).prop_map(Change::Masters),
        1 => (0..4_u8, any::<bool>()).prop_map(|(at, present)| Change::Service(at, present)),
    ]
}

fn start() -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("c"));
    let framework = FrameworkId::new("fw");
    let entry = Framework {
        id: framework.clone(),
        name: "marathon".to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "host".to_owned(),
        address: Some(([10, 0, 3, 1], 8080).into()),
        webui_url: None,
        other_addresses: Vec::new(),
        active: true,
        registered_at: Timestamp::default(),
    };
    view.frameworks.insert(framework, Arc::new(entry));
    for at in 0..3_u8 {
        let id = AgentId::new(format!("c-S{at}"));
        let info = AgentInfo {
            hostname: format!("host-{at}"),
            address: [10, 0, 0, at].into(),
            port: 5051,
            resources: Resources::default(),
            attributes: Vec::new(),
            container_networks: false,
        };
        let state = AgentState::Active;
        let agent = Agent {
            id: id.clone(),
            info,
            state,
            draining: false,
            registered_at: Timestamp::default(),
            other_addresses: Vec::new(),
        };
        view.agents.insert(id, Arc::new(agent));
    }
    view
}

fn make(view: &mut ClusterView, change: &Change) {
    match change {
        Change::Group(at, group) => {
            make(view, &Change::Remove(*at));
            for number in 0..group.count {
                let task = task(*at, number, group);
                view.tasks.insert(task.key.clone(), Arc::new(task));
            }
        }
        Change::Remove(at) => {
            let prefix = format!("g{at}.");
            let keys = view.tasks.keys().filter(|key| key.task.as_str().starts_with(&prefix));
            for key in keys.cloned().collect::<Vec<_>>() {
                view.tasks.remove(&key);
            }
        }
        Change::Masters(count) => {
            view.masters = (0..*count)
                .map(|at| {
                    let id = MasterId::new(format!("m{at:03}"));
                    let address = ([10, 0, 2, at], 5050).into();
                    (id.clone(), Arc::new(Master { id, address, leading: at % 3 == 0, removal_held: false }))
                })
                .collect();
        }
        Change::Service(at, present) => {
            let key: ServiceKey = format!("tcp/s{at}@marathon:80").parse().expect("a key");
            if *present {
                let address = [11, 0, 0, *at].into();
                let service = Service { ipv4: Some(address), ..Service::new(key.clone()) };
                view.services.insert(key, Arc::new(service));
            } else {
                view.services.remove(&key);
            }
        }
    }
    view.revision = view.revision.next();
}

fn task(group: u8, number: u8, of: &Group) -> Task {
    let ports: Vec<u16> = (0..of.ports).map(|at| 31_000 + u16::from(at) * 100 + u16::from(number)).collect();
    let port = |number: &u16| DiscoveryPort {
        number: *number,
        name: Some("http".to_owned()),
        protocol: String::new(),
        labels: BTreeMap::new(),
    };
    let discovery = Discovery {
        name: Some(NAMES[of.name].to_owned()),
        ports: ports.iter().map(port).collect(),
        ..Discovery::default()
    };
    let addresses = (0..of.addresses).map(|at| match at {
        0 => [9, 0, group, number].into(),
        1 => format!("fd01::{group}:{number}").parse().expect("an address"),
        at => [9, at, group, number].into(),
    });
    Task {
        key: TaskKey::new(FrameworkId::new("fw"), TaskId::new(format!("g{group}.{number}"))),
        name: NAMES[of.name].to_owned(),
        agent: AgentId::new(format!("c-S{}", number % 3)),
        state: TaskState::Running,
        resources: Resources { ports: ports.iter().copied().collect(), ..Resources::default() },
        discovery: of.published.then_some(discovery),
        labels: BTreeMap::new(),
        addresses: addresses.collect(),
        network: Default::default(),
        healthy: None,
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}

/// A query in parts.
#[derive(Debug, Clone)]
struct Asked {
    id: u16,
    name: Index,
    /// Which change to a name of the zone.
    variant: u8,
    kind: u16,
    class: u16,
    flags: u16,
    edns: Option<(u16, u32)>,
    upper: Vec<bool>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let kind = prop_oneof![
        4 => Just(1_u16), 2 => Just(28), 4 => Just(33), 1 => Just(65), 1 => Just(16), 1 => Just(6), 1 => Just(255),
        1 => any::<u16>(),
    ];
    let class = prop_oneof![9 => Just(1_u16), 1 => any::<u16>()];
    let flags = prop_oneof![3 => Just(0x0100_u16), 1 => Just(0), 1 => Just(0x0130), 1 => any::<u16>()];
    let size = prop_oneof![Just(1232_u16), Just(512), Just(4096), any::<u16>()];
    let edns = prop_oneof![8 => Just(0_u32), 3 => Just(0x8000), 1 => any::<u32>()];
    (
        any::<u16>(),
        any::<Index>(),
        0..10_u8,
        kind,
        class,
        flags,
        proptest::option::of((size, edns)),
        proptest::collection::vec(proptest::bool::weighted(0.3), 1..20),
    )
        .prop_map(|(id, name, variant, kind, class, flags, edns, upper)| Asked {
            id,
            name,
            variant,
            kind,
            class,
            flags,
            edns,
            upper,
        })
}

fn packet(zone: &Zone, asked: &Asked) -> Vec<u8> {
    let names: Vec<&Name> = zone.names().collect();
    let known = names[asked.name.index(names.len())].clone();
    let mirrors = ["mesos.thisdcos.directory", "mesos.thisdcos.global", "mesos.yhpn3x.dcos.directory"];
    let mirror = Name::root().below(mirrors[usize::from(asked.id % 3)]).expect("a name");
    let relative = known.to_string();
    let name = match asked.variant {
        0 | 1 => Name::root()
            .below(relative.trim_end_matches(".mesos."))
            .and_then(|_| mirror.below(relative.trim_end_matches('.').trim_end_matches(".mesos"))),
        2 => known.below("nothing"),
        3 => Ok(known.parent().expect("not the root")),
        4 => Ok(known.parent().and_then(|parent| parent.parent()).unwrap_or_else(Name::root)),
        5 => {
            let mut labels: Vec<&[u8]> = known.labels().collect();
            let asterisk: &[u8] = if asked.id.is_multiple_of(2) { b"*" } else { b"*x" };
            labels.insert(usize::from(asked.id) % (labels.len() + 1), asterisk);
            Name::from_labels(labels.into_iter())
        }
        6 => Ok(mirror),
        _ => Ok(known.clone()),
    };
    let mut wire = wire_form(&name.unwrap_or(known));
    for (at, octet) in wire.iter_mut().enumerate() {
        if asked.upper[at % asked.upper.len()] && asked.variant.is_multiple_of(2) {
            octet.make_ascii_uppercase();
        }
    }
    let mut packet =
        [asked.id, asked.flags, 1, 0, 0, u16::from(asked.edns.is_some())].map(u16::to_be_bytes).concat();
    packet.extend(wire);
    packet.extend([asked.kind, asked.class].map(u16::to_be_bytes).concat());
    if let Some((size, flags)) = asked.edns {
        packet.extend([0, 0, 41]);
        packet.extend(size.to_be_bytes());
        packet.extend(flags.to_be_bytes());
        packet.extend([0, 0]);
    }
    packet
}

/// Whether the name asked for, if it is one of the zone's, has nothing that only the full path can answer to a question
/// for addresses. Where not all SOA records fit, that includes that there are none.
fn is_for_fast_path(zone: &Zone, asked: &Asked, fits_negative: bool) -> bool {
    let names: Vec<&Name> = zone.names().collect();
    let name = names[asked.name.index(names.len())];
    let is_known = |data: &Data| matches!(data, Data::A(_) | Data::Aaaa(_) | Data::Srv { .. });
    let is_positive = || zone.values(name).1.any(|data| matches!(data, Data::A(_)));
    zone.apexes().iter().any(|apex| name.is_within(&apex.stored))
        && zone.values(name).1.all(is_known)
        && (fits_negative || is_positive())
}

/// Settings with records of every type, some with a time to live of their own. Depending on the length of the primary
/// server's name, the SOA records of all zones, of some or of none fit into every answer.
fn config(primary_length: Option<usize>) -> Config {
    let records = [
        "web.marathon.mesos 30 A 10.9.9.9",
        "db.mesos 30 A 10.9.9.1",
        "db.mesos AAAA fd00::9",
        "alias.mesos CNAME web.marathon.mesos",
        "text.mesos TXT hello",
        "_db._tcp.mesos 7 SRV 1 2 5432 db.mesos",
        "_far._tcp.mesos SRV 1 2 80 host.example",
        "host.example A 10.9.9.2",
        "extra.component.thisdcos.directory A 10.9.9.3",
    ];
    Config {
        cluster_key: Some("yhpn3x".to_owned()),
        node_addresses: vec![[10, 0, 0, 1].into()],
        static_records: records.iter().map(|record| record.parse().expect("a record")).collect(),
        soa: SoaConfig {
            primary: primary_length
                .map(|length| format!("{}.primary-name-server.long.example", "x".repeat(length))),
            ..SoaConfig::default()
        },
        ..Config::default()
    }
}

fn fast_answer(fast: &FastZone, is_stale: bool, packet: &[u8]) -> Option<Vec<u8>> {
    let mut query = FastQuery::new();
    let mut buffer = [0xaa; 1344];
    query.read(packet)?;
    query.locate(fast)?;
    let circumstances = Circumstances { is_stale, recursion_available: false };
    let reply = answer(fast, circumstances, &query, query.entry(fast), packet, &mut buffer)?;
    Some(buffer[..reply.length].to_vec())
}

/// The sections in an order of their own and with whole names.
fn normalised(message: &[u8]) -> (Vec<u8>, Vec<String>, [Vec<String>; 3], String) {
    let read = Message::from_vec(message).expect("an answer can be read");
    let sorted = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(|record| format!("{record:?}")).collect();
        lines.sort();
        lines
    };
    let queries = read.queries.iter().map(|query| format!("{query:?}")).collect();
    let sections = [&read.answers, &read.authorities, &read.additionals].map(|section| sorted(section));
    (message[..12].to_vec(), queries, sections, format!("{:?}", read.edns))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn both_paths_answer_alike(
        primary_length in proptest::option::of(40..64_usize),
        batches in proptest::collection::vec(
            (proptest::collection::vec(change(), 1..5), proptest::collection::vec((asked(), any::<bool>()), 20..60)),
            1..6,
        ),
    ) {
        let mut follower = ZoneFollower::new(&config(primary_length), &[[127, 0, 0, 1].into()]).expect("default settings");
        let guard = Guard::new(&PolicyConfig::default()).expect("a guard");
        let client = [127, 0, 0, 1].into();
        let served = ArcSwap::from_pointee(FastZone::new());
        let mut zones = FastZones::new();
        let mut view = ClusterView::empty(ClusterId::new("c"));
        let mut next = start();
        for (changes, queries) in batches {
            for change in &changes {
                make(&mut next, change);
            }
            let changed = follower.apply(&next, &Delta::between(&view, &next));
            view = next.clone();
            let zone = follower.zone();
            zones.follow(&zone, &changed, |_| ZoneLabel::NONE, &served);
            let fast = served.load();
            let mut anew = FastZone::new();
            anew.follow(&zone, None, |_| ZoneLabel::NONE);
            prop_assert_eq!(fast.name_count(), anew.name_count());
            for (asked, is_stale) in queries {
                let packet = packet(&zone, &asked);
                let Some(found) = fast_answer(&fast, is_stale, &packet) else {
                    let is_plain = asked.variant > 6 && asked.class == 1 && asked.kind == 1
                        && asked.flags == 0x0100 && asked.edns.is_none()
                        && is_for_fast_path(&zone, &asked, primary_length.is_none());
                    prop_assert!(!is_plain, "left to the full path: {asked:?}");
                    continue;
                };
                let freshness = if is_stale { Freshness::Stale } else { Freshness::Current };
                let outcome = respond(&Sources { zone: &zone, freshness, forwarder: None, guard: &guard, client }, &packet, Transport::Udp);
                let Step::Done(Outcome::Answer { message: expected, .. }) = outcome else {
                    panic!("{outcome:?} to {asked:?}");
                };
                prop_assert_eq!(normalised(&found), normalised(&expected), "{:?}", asked);
                if expected[8..10] == [0, 0] {
                    // Pointers may be to another place with the same name; only SOA records are compressed otherwise.
                    prop_assert_eq!(found.len(), expected.len(), "{:?}", asked);
                }
            }
        }
    }
}
