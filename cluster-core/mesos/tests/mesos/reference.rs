//! mesos-dns' rules once more, as plainly as they can be written, and random states on which both must agree.
//!
//! The rules are those of spec/dcos-networking.md §1.2 to §1.4, applied to the JSON itself. Where names go further
//! here than in mesos-dns, that is done here, too: published names are in lower case, no label ends in a hyphen after
//! it was cut, canonical names are cut to 63 characters, and what is no domain name is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesonet_dns_zone::{Config, Data, IpSource, LabelRule, Name};
use mesonet_mesos::{Options, StateFollower};
use mesonet_model::ClusterView;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::state::NOW;
use crate::zones::{mesos_dns, zone_of};

/// Ids of tasks and their hashes, from the specification's vectors.
const TASK_IDS: [(&str, &str); 4] = [
    ("test", "iffe9"),
    ("liquor-store.b8db9f73-562f-11e4-a088-c20493233aa5", "4dfjd"),
    ("liquor-store.b71166c1-562f-11e4-a088-c20493233aa5", "zasmd"),
    ("car-store.43758382-562f-11e4-a088-c20493233aa5", "zinaz"),
];

/// How the rules are applied.
#[derive(Debug, Clone, Copy)]
struct Rules<'rules> {
    masters: &'rules [String],
    sources: &'rules [&'static str],
    rfc952: bool,
}

/// The records of a state as `owner type value` without the domain, by the rules.
#[derive(Default)]
struct Reference(BTreeSet<String>);

impl Reference {
    fn of(state: &Value, rules: Rules<'_>) -> BTreeSet<String> {
        let mut records = Self::default();
        records.masters(state["leader"].as_str().expect("leader"), rules.masters);
        let mut agents = BTreeMap::new();
        for agent in state["slaves"].as_array().expect("agents") {
            let (address, port) = host_and_port(after_at(agent["pid"].as_str().expect("pid")).expect("host"));
            records.address("slave", address);
            records.port("_slave._tcp", "slave", &port);
            agents.insert(agent["id"].as_str().expect("id"), address);
        }
        for framework in state["frameworks"].as_array().expect("frameworks") {
            let name = fragment(framework["name"].as_str().expect("name"), rules.rfc952);
            let (address, port) = match framework["pid"].as_str() {
                Some(pid) => {
                    let (address, port) = host_and_port(after_at(pid).expect("host"));
                    (Some(address), Some(port))
                }
                None => (framework["hostname"].as_str().and_then(|host| host.parse().ok()), None),
            };
            if let Some(address) = address {
                records.address(&name, address);
                if let Some(port) = port {
                    records.port(&format!("_framework._tcp.{name}"), &name, &port);
                }
            }
            for task in framework["tasks"].as_array().expect("tasks") {
                let agent = agents.get(task["slave_id"].as_str().expect("agent"));
                if let (Some(agent), "TASK_RUNNING") = (agent, task["state"].as_str().expect("state")) {
                    records.task(task, *agent, &name, rules);
                }
            }
        }
        records.0
    }

    fn masters(&mut self, leader: &str, list: &[String]) {
        let Some(leader) = after_at(leader) else { return };
        let (leading, port) = host_and_port(leader);
        self.address("leader", leading);
        self.address("master", leading);
        self.port("_leader._tcp", "leader", &port);
        self.port("_leader._udp", "leader", &port);
        let (mut seen, mut number, mut has_leader) = (BTreeSet::from([leading]), 0, false);
        for master in list {
            let (address, _) = host_and_port(master);
            let is_leader = master == leader;
            let is_new = if is_leader { !has_leader } else { seen.insert(address) };
            if is_new {
                self.address("master", address);
                self.address(&format!("master{number}"), address);
                number += 1;
                has_leader |= is_leader;
            }
        }
        if !has_leader {
            self.address(&format!("master{number}"), leading);
        }
    }

    fn task(&mut self, task: &Value, agent: IpAddr, framework: &str, rules: Rules<'_>) {
        let id = task["id"].as_str().expect("id");
        let hash = TASK_IDS.iter().find(|(other, _)| *other == id).expect("one of ours").1;
        let tail = task["slave_id"].as_str().expect("agent").rsplit('-').next().expect("tail").to_lowercase();
        let published = task["discovery"]["name"].as_str().filter(|name| !name.is_empty());
        let own = published.unwrap_or(task["name"].as_str().expect("name"));
        let mut names = BTreeSet::from([label(own, rules.rfc952)]);
        names.extend(published.map(str::to_ascii_lowercase));
        for name in names {
            let canonical = canonical(&name, &format!("-{hash}-{tail}"));
            for name in [&name, &canonical] {
                for address in addresses(task, agent, rules.sources) {
                    self.address(&format!("{name}.{framework}"), address);
                }
                self.address(&format!("{name}.{framework}.slave"), agent);
            }
            for port in host_ports(task) {
                for protocol in ["tcp", "udp"] {
                    let owner = format!("_{name}._{protocol}.{framework}");
                    let target = format!("{canonical}.{framework}.slave");
                    self.port(&format!("{owner}.slave"), &target, &port);
                    if published.is_none() {
                        self.port(&owner, &target, &port);
                    }
                }
            }
            let ports = task["discovery"]["ports"]["ports"].as_array();
            for port in ports.into_iter().flatten().filter(|_| published.is_some()) {
                self.published(port, &name, framework, &canonical, rules);
            }
        }
    }

    fn published(&mut self, port: &Value, name: &str, framework: &str, canonical: &str, rules: Rules<'_>) {
        let text = |key: &str| label(port[key].as_str().unwrap_or_default(), rules.rfc952);
        let (protocol, port_name) = (text("protocol"), text("name"));
        let target = format!("{canonical}.{framework}");
        let number = port["number"].to_string();
        for protocol in if protocol.is_empty() { vec!["tcp", "udp"] } else { vec![protocol.as_str()] } {
            let owner = format!("_{name}._{protocol}.{framework}");
            self.port(&owner, &target, &number);
            if !port_name.is_empty() {
                self.port(&format!("_{port_name}.{owner}"), &target, &number);
            }
        }
    }

    fn address(&mut self, owner: &str, address: IpAddr) {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        if is_name(owner) {
            self.0.insert(format!("{} {kind} {address}", escaped(owner)));
        }
    }

    fn port(&mut self, owner: &str, target: &str, port: &str) {
        if is_name(owner) && is_name(target) {
            self.0.insert(format!("{} SRV {}:{port}", escaped(owner), escaped(target)));
        }
    }
}

fn after_at(pid: &str) -> Option<&str> {
    Some(pid.split('@').nth(1)?).filter(|place| place.contains(':'))
}

fn host_and_port(text: &str) -> (IpAddr, String) {
    let (host, port) = text.rsplit_once(':').expect("host and port");
    (host.trim_matches(['[', ']']).parse().expect("address"), port.to_owned())
}

/// The addresses by the first source that has any.
fn addresses(task: &Value, agent: IpAddr, sources: &[&str]) -> Vec<IpAddr> {
    let mut running: Option<&Value> = None;
    for status in task["statuses"].as_array().into_iter().flatten() {
        let time = |status: &Value| status["timestamp"].as_f64().unwrap_or(0.0);
        if status["state"] == "TASK_RUNNING" && running.is_none_or(|best| time(status) > time(best)) {
            running = Some(status);
        }
    }
    let labelled = |key: &str| {
        let labels = running.and_then(|status| status["labels"].as_array()).into_iter().flatten();
        labels.filter(|label| label["key"] == key).filter_map(|label| label["value"].as_str()).collect()
    };
    let netinfo = || {
        let infos = running.and_then(|status| status["container_status"]["network_infos"].as_array());
        let of = |info: &'_ Value| match info["ip_addresses"].as_array().filter(|list| !list.is_empty()) {
            Some(list) => {
                list.iter().filter_map(|each| each["ip_address"].as_str().map(str::to_owned)).collect()
            }
            None => Vec::from_iter(info["ip_address"].as_str().map(str::to_owned)),
        };
        infos.into_iter().flatten().flat_map(of).collect::<Vec<String>>()
    };
    for source in sources {
        let found: Vec<String> = match *source {
            "host" => vec![agent.to_string()],
            "netinfo" => netinfo(),
            "mesos" => owned(labelled("MesosContainerizer.NetworkSettings.IPAddress")),
            _ => owned(labelled("Docker.NetworkSettings.IPAddress")),
        };
        let found: Vec<IpAddr> = found.iter().filter_map(|text| text.parse().ok()).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

fn host_ports(task: &Value) -> Vec<String> {
    let ranges = task["resources"]["ports"].as_str().unwrap_or_default().trim_matches(['[', ']']);
    let mut ports = Vec::new();
    for range in ranges.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.trim().split_once('-').expect("a range");
        let (first, last): (u32, u32) = (first.parse().expect("port"), last.parse().expect("port"));
        ports.extend((first..=last).map(|port| port.to_string()));
    }
    ports
}

fn label(text: &str, rfc952: bool) -> String {
    let (max, trimmed) = if rfc952 { (24, "-0123456789") } else { (63, "-") };
    let mut clean = String::new();
    for character in text.chars() {
        match character {
            'a'..='z' | '0'..='9' => clean.push(character),
            'A'..='Z' => clean.push(character.to_ascii_lowercase()),
            '-' | '_' | '.' => clean.push('-'),
            _ => {}
        }
    }
    let clean = clean.trim_start_matches(|character| trimmed.contains(character));
    let cut = &clean[..clean.len().min(max)];
    let mut result = cut.trim_end_matches('-').to_owned();
    if clean.len() > max {
        let freed = cut.len() - result.len();
        result.extend(clean[max..].trim_start_matches('-').chars().take(freed));
    }
    result.trim_end_matches('-').to_owned()
}

fn fragment(text: &str, rfc952: bool) -> String {
    let labels: Vec<String> = text.split('.').map(|part| label(part, rfc952)).collect();
    labels.into_iter().filter(|label| !label.is_empty()).collect::<Vec<_>>().join(".")
}

fn canonical(name: &str, suffix: &str) -> String {
    let (front, last) = name.rsplit_once('.').map_or(("", name), |(front, last)| (front, last));
    let mut last = last.to_owned();
    let is_cut = last.len() + suffix.len() > 63;
    while last.len() + suffix.len() > 63 {
        last.pop();
    }
    let last = if is_cut { last.trim_end_matches('-') } else { &last };
    if name.contains('.') { format!("{front}.{last}{suffix}") } else { format!("{last}{suffix}") }
}

fn is_name(relative: &str) -> bool {
    let labels = relative.split('.').chain(["mesos"]);
    labels.clone().all(|label| (1..=63).contains(&label.len()))
        && labels.map(|label| label.len() + 1).sum::<usize>() < 255
}

/// As names are printed.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => text.extend(['\\', char::from(byte)]),
            b'!'..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:03}")),
        }
    }
    text
}

/// What is served, in the same form.
fn served(view: &ClusterView, config: &Config) -> BTreeSet<String> {
    let short = |name: &Name| {
        let text = name.to_string();
        text.strip_suffix(".mesos.").unwrap_or(&text).to_owned()
    };
    let domain = Name::root().below("mesos").expect("domain");
    let zone = zone_of(view, config);
    let line = |record: mesonet_dns_zone::Record| match &record.data {
        Data::A(address) => Some(format!("{} A {address}", short(&record.owner))),
        Data::Aaaa(address) => Some(format!("{} AAAA {address}", short(&record.owner))),
        Data::Srv { port, target, .. } => {
            Some(format!("{} SRV {}:{port}", short(&record.owner), short(target)))
        }
        _ => None,
    };
    zone.transfer(&domain).expect("the zone is served").filter_map(line).collect()
}

// === random states ===

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("web".to_owned()),
        Just("slave".to_owned()),
        Just("_._".to_owned()),
        "[a-zA-Z0-9_.-]{0,12}",
        "[a-z0-9./ é$日()-]{0,14}",
        "[a-z-]{56,70}",
        "[0-9-]{0,4}[a-z-]{20,30}",
        "[a-z]{1,3}(\\.[a-z]{50,70}){1,4}",
    ]
}

fn any_address() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..4_u8).prop_map(|at| format!("9.0.0.{at}")),
        (0..3_u8).prop_map(|at| format!("fd01:b::{at}")),
        Just("bogus".to_owned()),
        Just(String::new()),
    ]
}

fn any_status() -> impl Strategy<Value = Value> {
    let label = (0..3_usize, any_address()).prop_map(|(key, value)| {
        let keys =
            ["Docker.NetworkSettings.IPAddress", "MesosContainerizer.NetworkSettings.IPAddress", "other"];
        json!({"key": (keys[key]), "value": value})
    });
    let info = (proptest::collection::vec(any_address(), 0..3), proptest::option::of(any_address()))
        .prop_map(|(addresses, old)| {
            let list: Vec<Value> = addresses.iter().map(|address| json!({"ip_address": address})).collect();
            match old {
                Some(old) => json!({"ip_addresses": list, "ip_address": old}),
                None => json!({"ip_addresses": list}),
            }
        });
    let states = prop_oneof![
        3 => Just("TASK_RUNNING"),
        1 => Just("TASK_STARTING"),
        1 => Just("TASK_KILLED"),
    ];
    let parts = (
        states,
        proptest::option::of(0..4_u8),
        proptest::collection::vec(label, 0..3),
        proptest::option::of(proptest::collection::vec(info, 0..3)),
        proptest::option::of(any::<bool>()),
    );
    parts.prop_map(|(state, time, labels, infos, healthy)| {
        let mut status = json!({"state": state, "labels": labels});
        if let Some(time) = time {
            status["timestamp"] = json!(f64::from(time) + 0.5);
        }
        if let Some(infos) = infos {
            status["container_status"] = json!({"network_infos": infos});
        }
        if let Some(healthy) = healthy {
            status["healthy"] = json!(healthy);
        }
        status
    })
}

fn any_discovery() -> impl Strategy<Value = Value> {
    let protocols = prop_oneof![Just("tcp"), Just("UDP"), Just(""), Just("sc.tp"), Just("tcp,udp")];
    let port = (0..3_u16, proptest::option::of(any_name()), proptest::option::of(protocols));
    let port = port.prop_map(|(number, name, protocol)| {
        let mut port = json!({"number": (number * 443)});
        if let Some(name) = name {
            port["name"] = json!(name);
        }
        if let Some(protocol) = protocol {
            port["protocol"] = json!(protocol);
        }
        port
    });
    let visibility = prop_oneof![Just("FRAMEWORK"), Just("CLUSTER"), Just("EXTERNAL")];
    let ports = proptest::option::of(proptest::collection::vec(port, 0..3));
    (proptest::option::of(any_name()), ports, visibility).prop_map(|(name, ports, visibility)| {
        let mut discovery = json!({"visibility": visibility, "environment": "e", "version": "v"});
        if let Some(name) = name {
            discovery["name"] = json!(name);
        }
        if let Some(ports) = ports {
            discovery["ports"] = json!({"ports": ports});
        }
        discovery
    })
}

fn any_task() -> impl Strategy<Value = Value> {
    let states = prop_oneof![
        4 => Just("TASK_RUNNING"),
        1 => Just("TASK_STAGING"),
        1 => Just("TASK_KILLING"),
        1 => Just("TASK_KILLED"),
        1 => Just("TASK_LOST"),
    ];
    let agents = prop_oneof![Just("c-S0"), Just("20150101-120000-2410-0"), Just("Solo"), Just("c-S9")];
    let ports = prop_oneof![Just(""), Just("[]"), Just("[31000-31002]"), Just("[31000-31000, 31005-31006]")];
    let parts = (
        0..TASK_IDS.len(),
        any_name(),
        agents,
        states,
        ports,
        proptest::collection::vec(any_status(), 0..4),
        proptest::option::of(any_discovery()),
    );
    parts.prop_map(|(id, name, agent, state, ports, statuses, discovery)| {
        let mut task = json!({
            "id": (TASK_IDS[id].0), "name": name, "slave_id": agent, "state": state, "statuses": statuses,
            "resources": {"cpus": 0.1, "ports": ports},
        });
        if let Some(discovery) = discovery {
            task["discovery"] = discovery;
        }
        task
    })
}

fn any_place() -> impl Strategy<Value = String> {
    prop_oneof![Just("10.0.0.1:5050"), Just("10.0.0.2:5050"), Just("10.0.0.2:5051"), Just("[fd00::3]:5050")]
        .prop_map(str::to_owned)
}

fn any_state() -> impl Strategy<Value = Value> {
    let agents = proptest::collection::vec((any_place(), any::<bool>()), 3..4).prop_map(|places| {
        let ids = ["c-S0", "20150101-120000-2410-0", "Solo"];
        let agent = |(id, (place, active)): (&str, &(String, bool))| {
            json!({"id": id, "pid": format!("slave(1)@{place}"), "hostname": "h.example", "active": active})
        };
        ids.into_iter().zip(&places).map(agent).collect::<Vec<Value>>()
    });
    let framework = (
        any_name(),
        proptest::option::of(any_place()),
        prop_oneof![Just("10.1.0.1"), Just("fd00::9"), Just("")],
        any::<bool>(),
        proptest::collection::vec(any_task(), 0..5),
    );
    let leader = prop_oneof![
        8 => any_place().prop_map(|place| format!("master@{place}")),
        1 => Just("master".to_owned()),
        1 => any_place().prop_map(|place| format!("a@{place}@b")),
    ];
    let parts = (leader, agents, proptest::collection::vec(framework, 0..4));
    parts.prop_map(|(leader, agents, frameworks)| {
        let frameworks = frameworks.into_iter().enumerate();
        let frameworks = frameworks.map(|(at, (name, pid, hostname, active, tasks))| {
            let mut framework = json!({
                "id": format!("f{at}"), "name": name, "hostname": hostname, "active": active, "tasks": tasks,
                "completed_tasks": [{"id": "test", "name": "past", "slave_id": "c-S0", "state": "TASK_RUNNING"}],
            });
            if let Some(pid) = pid {
                framework["pid"] = json!(format!("scheduler-1@{pid}"));
            }
            framework
        });
        json!({"leader": leader, "slaves": agents, "frameworks": (frameworks.collect::<Vec<Value>>()),
            "completed_frameworks": [{"id": "p", "name": "gone", "hostname": "10.1.0.9", "tasks": []}]})
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn states_have_the_records_of_the_rules(
        state in any_state(),
        masters in proptest::collection::vec(any_place(), 0..4),
        sources in proptest::sample::subsequence(vec!["netinfo", "mesos", "docker", "host"], 1..=4).prop_shuffle(),
        rfc952 in any::<bool>(),
    ) {
        let mut follower = StateFollower::new(Options { masters: masters.clone(), ..Options::default() });
        let view = follower.apply_state(state.to_string().as_bytes(), NOW).expect("a state");
        prop_assert_eq!(follower.rejected(), 0);
        let config = Config {
            ip_sources: sources.iter().filter_map(|name| IpSource::named(name)).collect(),
            label_rule: if rfc952 { LabelRule::Rfc952 } else { LabelRule::Rfc1123 },
            ..mesos_dns()
        };
        let expected = Reference::of(&state, Rules { masters: &masters, sources: &sources, rfc952 });
        let found = served(&view, &config);
        let missing: Vec<&String> = expected.difference(&found).collect();
        let extra: Vec<&String> = found.difference(&expected).collect();
        prop_assert!(missing.is_empty() && extra.is_empty(), "missing {:?}, extra {:?}", missing, extra);
    }
}
