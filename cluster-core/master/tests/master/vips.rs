//! Services, their endpoints and addresses.

use std::time::Duration;

use mesonet_master::Config;
use mesonet_model::{AgentId, DiscoveryPort, ServiceKey, Table, TaskState};

use crate::cluster::{Cluster, agent_info, config, host_port};

const WEB: &str = "tcp/web@marathon:80";
const LINGER: Duration = Duration::from_secs(600);
const RESERVATION: Duration = Duration::from_secs(24 * 60 * 60);

fn cluster_with_agent() -> (Cluster, AgentId) {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    (cluster, agent)
}

fn address(cluster: &Cluster, service: &str) -> Option<String> {
    let key: ServiceKey = service.parse().expect("service key");
    let service = cluster.view().services.get(&key)?;
    service.ipv4.map(|address| address.to_string())
}

#[test]
fn a_named_vip_has_the_address_of_its_hash() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    assert_eq!(address(&cluster, WEB).as_deref(), Some("11.225.36.193"));
    cluster.run(&agent, "b", 31001, "web:443");
    assert_eq!(address(&cluster, "tcp/web@marathon:443").as_deref(), Some("11.225.36.193"));
}

#[test]
fn a_static_vip_of_another_family_is_warned_of() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "[fd00::5]:80");
    cluster.report("a", TaskState::Running);
    assert_eq!(
        cluster.warnings(),
        [
            "VIP label '[fd00::5]:80' does not lead to the task: expected an IPv6 address of the task, which has \
          10.0.0.1"
        ]
    );
    cluster.run(&agent, "b", 31001, "10.9.9.9:80");
    assert_eq!(cluster.warnings(), Vec::<String>::new());
}

#[test]
fn nobody_takes_the_address_and_port_of_another_service() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.run(&agent, "b", 31001, "11.225.36.193:80");
    let rival = "tcp/11.225.36.193:80";
    assert_eq!(
        cluster.warnings(),
        [format!("service {rival} has no address: 11.225.36.193 with this port is that of {WEB}")]
    );
    assert_eq!(address(&cluster, rival), None);
    cluster.report("b", TaskState::Running);
    assert_eq!(cluster.warnings(), Vec::<String>::new(), "it is said once");
    // Another port is free, and then the name's service has to do without it.
    cluster.run(&agent, "c", 31002, "11.225.36.193:443");
    assert_eq!(address(&cluster, "tcp/11.225.36.193:443").as_deref(), Some("11.225.36.193"));
    cluster.run(&agent, "d", 31003, "/web:443");
    assert_eq!(address(&cluster, "tcp/web@marathon:443"), None);
    assert_eq!(cluster.warnings().len(), 1);
    // Once the service is gone, the other one has the address, under another leader, too.
    cluster.report("a", TaskState::Failed);
    cluster.pass(LINGER - Duration::from_millis(1));
    cluster.restart();
    assert_eq!(address(&cluster, rival), None);
    cluster.pass(Duration::from_millis(1));
    assert_eq!(address(&cluster, rival).as_deref(), Some("11.225.36.193"));
    let before = cluster.view().services.clone();
    cluster.restart();
    assert_eq!(cluster.view().services, before);
}

#[test]
fn names_that_collide_get_different_addresses_that_stay() {
    let narrow = Config { vip_range_v4: ([11, 0, 0, 1].into(), [11, 0, 0, 2].into()), ..config() };
    let mut cluster = Cluster::without_framework(narrow);
    cluster.framework = cluster.subscribe("marathon");
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/a:80");
    cluster.run(&agent, "b", 31001, "/b:80");
    assert_eq!(cluster.warnings(), Vec::<String>::new());
    cluster.run(&agent, "c", 31002, "/c:80");
    cluster.report("c", TaskState::Killing);
    assert_eq!(
        cluster.warnings(),
        ["service tcp/c@marathon:80 has no address: all 2 addresses from 11.0.0.1 to 11.0.0.2 are taken"]
    );
    assert_eq!(address(&cluster, "tcp/a@marathon:80").as_deref(), Some("11.0.0.1"));
    assert_eq!(address(&cluster, "tcp/b@marathon:80").as_deref(), Some("11.0.0.2"));
    assert_eq!(address(&cluster, "tcp/c@marathon:80"), None);
    assert_eq!(cluster.endpoints("tcp/c@marathon:80").len(), 1);
    // One that is free again goes to whoever waits for it.
    cluster.report("a", TaskState::Failed);
    cluster.pass(LINGER);
    cluster.pass(RESERVATION);
    assert_eq!(address(&cluster, "tcp/c@marathon:80").as_deref(), Some("11.0.0.1"));
}

#[test]
fn a_dead_task_has_no_endpoint_and_its_service_lingers() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.report("a", TaskState::Failed);
    assert_eq!(cluster.endpoint_texts(WEB), Vec::<String>::new());
    let service = cluster.view().services[&WEB.parse::<ServiceKey>().expect("service key")].clone();
    assert_eq!(service.empty_since, Some(cluster.now));
    cluster.pass(LINGER - Duration::from_millis(1));
    assert!(address(&cluster, WEB).is_some());
    cluster.pass(Duration::from_millis(1));
    assert!(cluster.view().services.is_empty());
    assert!(cluster.records.contains_key(&(Table::Vips, "web.marathon".to_owned())));
    cluster.pass(RESERVATION);
    assert!(!cluster.records.contains_key(&(Table::Vips, "web.marathon".to_owned())));
    assert_eq!(cluster.records.keys().filter(|(table, _)| *table == Table::Services).count(), 0);
}

#[test]
fn a_service_that_comes_back_in_time_is_as_it_was() {
    let (mut cluster, agent) = cluster_with_agent();
    cluster.run(&agent, "a", 31000, "/web:80");
    let before = cluster.view().services.clone();
    cluster.report("a", TaskState::Failed);
    cluster.pass(LINGER / 2);
    cluster.run(&agent, "b", 31001, "/web:80");
    assert_eq!(cluster.view().services, before);
    cluster.pass(LINGER * 2);
    assert_eq!(cluster.view().services, before);
}

#[test]
fn bad_labels_are_told_once_and_touch_nothing_else() {
    let (mut cluster, agent) = cluster_with_agent();
    let mut port = host_port(31000, "/web:80");
    port.labels.insert("VIP_1".to_owned(), "no-port".to_owned());
    port.labels.insert("VIP_2".to_owned(), "/:80".to_owned());
    let spec = cluster.spec(&agent, "a", vec![port, host_port(31001, "/api:81")]);
    cluster.launch(spec);
    cluster.report("a", TaskState::Running);
    assert_eq!(
        cluster.warnings(),
        [
            "VIP label 'no-port' has no port: expected NAME:PORT or ADDRESS:PORT",
            "VIP label '/:80' has no name: expected letters or digits before the port",
        ]
    );
    let services: Vec<String> = cluster.view().services.keys().map(ToString::to_string).collect();
    assert_eq!(services, ["tcp/api@marathon:81", "tcp/web@marathon:80"]);
}

/// Launches a task that has an address of each family, with these labels.
fn run_with_both(cluster: &mut Cluster, agent: &AgentId, task: &str, labels: &[&str]) {
    let labels = labels.iter().enumerate();
    let port = DiscoveryPort {
        number: 8080,
        name: None,
        protocol: "tcp".to_owned(),
        labels: labels.map(|(number, label)| (format!("VIP_{number}"), (*label).to_owned())).collect(),
    };
    let mut spec = cluster.spec(agent, task, vec![port]);
    spec.resources.ports = mesonet_model::PortRanges::empty();
    cluster.launch(spec);
    let mut status = cluster.status(agent, task, TaskState::Running);
    status.addresses = vec!["9.0.1.5".parse().expect("address"), "fd01:b::5".parse().expect("address")];
    cluster.handle(mesonet_master::Input::Agent(mesonet_model::AgentReport::Status(Box::new(status))));
}

#[test]
fn an_address_of_one_family_is_waited_for_whatever_happens_to_the_other() {
    let only = "fd01:c::1".parse().expect("address");
    for is_restarted in [false, true] {
        let mut cluster = Cluster::without_framework(Config { vip_range_v6: (only, only), ..config() });
        cluster.framework = cluster.subscribe("marathon");
        let agent = cluster.register(None, agent_info(1, 8), Vec::new());
        run_with_both(&mut cluster, &agent, "a", &["/a:80"]);
        run_with_both(&mut cluster, &agent, "b", &["/b:80"]);
        let warning =
            "service tcp/b@marathon:80 has no address: all 1 addresses from fd01:c::1 to fd01:c::1 are taken";
        assert_eq!(cluster.warnings(), [warning]);
        // It is served by the other family, and has a task that needs no more.
        assert!(address(&cluster, "tcp/b@marathon:80").is_some());
        cluster.run(&agent, "c", 31000, "/b:80");
        cluster.report("a", TaskState::Failed);
        cluster.pass(LINGER);
        cluster.pass(RESERVATION - Duration::from_millis(1));
        if is_restarted {
            cluster.restart();
        }
        cluster.pass(Duration::from_millis(1));
        let service = &cluster.view().services[&"tcp/b@marathon:80".parse::<ServiceKey>().expect("key")];
        assert_eq!(service.ipv6, Some(only), "after a restart: {is_restarted}");
    }
}

#[test]
fn a_task_with_addresses_of_its_own_is_reached_there_by_family() {
    let (mut cluster, agent) = cluster_with_agent();
    run_with_both(&mut cluster, &agent, "a", &["/web:80", "1.2.3.4:80", "fd01:c::1:80"]);
    assert_eq!(cluster.endpoint_texts(WEB), ["9.0.1.5:8080 ready 1", "[fd01:b::5]:8080 ready 1"]);
    assert_eq!(cluster.endpoint_texts("tcp/1.2.3.4:80"), ["9.0.1.5:8080 ready 1"]);
    assert_eq!(cluster.endpoint_texts("tcp/[fd01:c::1]:80"), ["[fd01:b::5]:8080 ready 1"]);
    let service = &cluster.view().services[&WEB.parse::<ServiceKey>().expect("service key")];
    assert!(service.ipv4.is_some() && service.ipv6.is_some());
    assert_eq!(address(&cluster, "tcp/1.2.3.4:80").as_deref(), Some("1.2.3.4"));
}
