//! What the master is asked to run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_marathon::NoMatchReason;
use mesonet_model::{
    AppDefinition, Container, ContainerKind, DiscoveryPort, EnvironmentValue, Network, NetworkMode,
    NetworkName, PortMapping, Protocol, TaskSpec, TaskState, Visibility,
};

use crate::cluster::{Cluster, agent, app, id, port};

fn launched(definition: AppDefinition) -> TaskSpec {
    let mut cluster = Cluster::new();
    cluster.put(definition).expect("accepted");
    cluster.launches.remove(0).1
}

fn host_ports(spec: &TaskSpec) -> Vec<u16> {
    spec.resources.ports.iter().collect()
}

fn mapping(container_port: u16, host_port: Option<u16>, name: &str) -> PortMapping {
    PortMapping {
        container_port,
        host_port,
        service_port: 0,
        protocols: vec![Protocol::Udp, Protocol::Tcp],
        name: Some(name.into()),
        labels: BTreeMap::from([("VIP_0".into(), "/web:80".into())]),
        network_names: Vec::new(),
    }
}

fn in_container(networks: &[(NetworkMode, Option<&str>)], mappings: Vec<PortMapping>) -> AppDefinition {
    let mut definition = app("/group/web", 1);
    let network = |(mode, name): &(NetworkMode, Option<&str>)| Network {
        mode: *mode,
        name: name.map(str::to_owned),
        labels: BTreeMap::new(),
    };
    definition.networks = networks.iter().map(network).collect();
    definition.port_definitions.clear();
    definition.container = Some(Container {
        kind: ContainerKind::Docker,
        docker: Some(BTreeMap::from([("image", "nginx:1")]).into_iter().collect()),
        volumes: Vec::new(),
        port_mappings: mappings,
    });
    definition
}

#[test]
fn a_task_is_named_after_its_app() {
    let mut definition = app("/group/web", 1);
    definition.labels.insert("tier".into(), "front".into());
    definition.user = Some("www".into());
    let spec = launched(definition);
    let task = spec.key.task.as_str();
    let uuid = task.strip_prefix("group_web.instance-").and_then(|rest| rest.strip_suffix("._app.1"));
    assert_eq!(uuid.map(str::len), Some(36), "{task}");
    assert_eq!(spec.name, "web.group");
    let discovery = spec.discovery.expect("present");
    assert_eq!((discovery.visibility, discovery.name.as_deref()), (Visibility::Framework, Some("web.group")));
    assert_eq!(spec.labels["tier"], "front");
    assert_eq!(spec.command.shell.as_deref(), Some("sleep 1000"));
    assert_eq!(spec.command.user.as_deref(), Some("www"));
    assert_eq!((spec.kill_grace, spec.image, spec.health_checked), (Duration::from_secs(3), None, false));
}

#[test]
fn the_environment_tells_the_task_about_itself() {
    let mut definition = app("/group/web", 1);
    definition.port_definitions = vec![port(10_005, Some("http")), port(0, None)];
    definition.labels = BTreeMap::from([
        ("a-b c".into(), "1".into()),
        ("long".into(), "x".repeat(512)),
        ("Up_9".into(), "2".into()),
    ]);
    definition.env = BTreeMap::from([
        ("PORT".into(), EnvironmentValue::Text("mine".into())),
        ("KEY".into(), EnvironmentValue::Secret { secret: "s".into() }),
        ("A".into(), EnvironmentValue::Text("b".into())),
    ]);
    let spec = launched(definition);
    let environment = spec.command.environment;
    let discovered: Vec<u16> =
        spec.discovery.expect("present").ports.iter().map(|port| port.number).collect();
    let [p0, p1] = [discovered[0].to_string(), discovered[1].to_string()];
    let expected = [
        ("A", "b"),
        ("HOST", "a0"),
        ("MARATHON_APP_ID", "/group/web"),
        ("MARATHON_APP_LABELS", "UP_9 A_B_C"),
        ("MARATHON_APP_LABEL_A_B_C", "1"),
        ("MARATHON_APP_LABEL_UP_9", "2"),
        ("MARATHON_APP_RESOURCE_CPUS", "0.1"),
        ("MARATHON_APP_RESOURCE_DISK", "0.0"),
        ("MARATHON_APP_RESOURCE_GPUS", "0"),
        ("MARATHON_APP_RESOURCE_MEM", "32.0"),
        ("MARATHON_APP_VERSION", "2026-11-18T11:06:40.000Z"),
        ("MESOS_TASK_ID", spec.key.task.as_str()),
        ("PORT", "mine"),
        ("PORT0", &p0),
        ("PORT1", &p1),
        ("PORTS", &format!("{p0},{p1}")),
        ("PORT_10000", &p1),
        ("PORT_10005", &p0),
        ("PORT_HTTP", &p0),
        (&format!("PORT_{p0}"), &p0),
        (&format!("PORT_{p1}"), &p1),
    ];
    let expected: BTreeMap<String, String> =
        expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(environment, expected);
}

#[test]
fn required_ports_are_taken_exactly() {
    let mut definition = app("/web", 1);
    definition.require_ports = true;
    definition.port_definitions = vec![port(31_500, None), port(31_007, None)];
    let spec = launched(definition);
    assert_eq!(host_ports(&spec), [31_007, 31_500]);
    let numbers: Vec<u16> = spec.discovery.expect("present").ports.iter().map(|port| port.number).collect();
    assert_eq!(numbers, [31_500, 31_007], "in the app's order");
    assert_eq!(spec.command.environment["PORT_31500"], "31500");
}

fn summary(port: &DiscoveryPort) -> (u16, &str, String) {
    let labels = port.labels.iter().map(|(name, value)| format!("{name}={value}"));
    (port.number, &port.protocol, labels.collect::<Vec<_>>().join(" "))
}

#[test]
fn mapped_ports_are_published_where_they_are_reached() {
    let definition = in_container(
        &[(NetworkMode::Bridge, None)],
        vec![mapping(80, Some(0), "http"), mapping(0, Some(31_100), "admin")],
    );
    let spec = launched(definition);
    assert_eq!(spec.image.as_deref(), Some("nginx:1"));
    let environment = &spec.command.environment;
    let dynamic = environment["PORT0"].parse().expect("a number");
    assert_eq!(environment["PORT_80"], environment["PORT0"]);
    assert_eq!(environment["PORT_31100"], "31100");
    assert_eq!(environment["MARATHON_APP_DOCKER_IMAGE"], "nginx:1");
    let discovery = spec.discovery.expect("present");
    let ports: Vec<_> = discovery.ports.iter().map(summary).collect();
    let labels = || "VIP_0=/web:80 network-scope=host".to_owned();
    let expected = [(dynamic, "udp"), (dynamic, "tcp"), (31_100, "udp"), (31_100, "tcp")];
    assert_eq!(ports, expected.map(|(number, protocol)| (number, protocol, labels())));
}

#[test]
fn ports_without_host_port_are_published_per_network() {
    let networks = [(NetworkMode::Container, Some("blue")), (NetworkMode::Container, Some("green"))];
    let mut only_green = mapping(9000, None, "admin");
    only_green.network_names = vec!["green".into()];
    let spec = launched(in_container(&networks, vec![mapping(80, None, "http"), only_green]));
    assert!(host_ports(&spec).is_empty());
    let environment = &spec.command.environment;
    assert_eq!((environment["PORT0"].as_str(), environment["PORT_9000"].as_str()), ("80", "9000"));
    assert!(!environment.contains_key("PORT"));
    let discovery = spec.discovery.expect("present");
    let tcp: Vec<_> = discovery.ports.iter().filter(|port| port.protocol == "tcp").map(summary).collect();
    let labels = |name: &str| format!("VIP_0=/web:80 network-name={name} network-scope=container");
    assert_eq!(
        tcp,
        [(80, "tcp", labels("blue")), (80, "tcp", labels("green")), (9000, "tcp", labels("green")),]
    );
}

#[test]
fn odd_ports_and_networks_are_survived() {
    let mut cluster = Cluster::new();
    let mut none = app("/none", 1);
    none.networks.clear();
    none.port_definitions = vec![port(65_535, None), port(65_535, None)];
    none.require_ports = true;
    cluster.put(none).expect("accepted");
    assert_eq!(cluster.app("/none").counts().running, 0);
    cluster
        .put(in_container(&[(NetworkMode::Container, Some("n"))], vec![mapping(0, None, "x")]))
        .expect("accepted");
    let mut bare = in_container(&[(NetworkMode::Container, Some("n"))], Vec::new());
    bare.id = id("/bare");
    bare.container = None;
    cluster.put(bare).expect("accepted");
    assert_eq!(cluster.app("/bare").counts().running, 1);
}

#[test]
fn a_host_port_comes_back_as_late_as_possible() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    for _ in 1..1000 {
        let task = cluster.live("/web").remove(0);
        cluster.report(&task, TaskState::Killed);
    }
    let ports: BTreeSet<u16> =
        cluster.launches.iter().flat_map(|(_, spec)| spec.resources.ports.iter()).collect();
    assert_eq!(ports.len(), 1000, "the whole range is used before a port is used again");
    assert_ne!(host_ports(&cluster.launches[0].1), [31_000], "the round does not begin at the range's start");
}

#[test]
fn the_view_knows_the_ports_in_order() {
    let mut cluster = Cluster::new();
    let networks = [(NetworkMode::Container, Some("blue"))];
    let mappings = vec![mapping(80, None, "a"), mapping(81, Some(31_010), "b")];
    cluster.put(in_container(&networks, mappings)).expect("accepted");
    let app = cluster.app("/group/web");
    let instance = app.instances.values().next().expect("it runs");
    assert_eq!(
        (instance.ports.as_slice(), instance.service_ports.as_slice()),
        (&[0, 31_010][..], &[10_000, 10_001][..])
    );
    assert_eq!(instance.addresses, [instance.host_address]);
}

fn why_it_waits(cluster: &Cluster, app: &AppDefinition) -> Vec<NoMatchReason> {
    let queue = cluster.app(&app.id.to_string()).queue.expect("it waits");
    queue.unused.iter().flat_map(|offer| offer.reasons.clone()).collect()
}

#[test]
fn a_task_in_a_network_goes_where_there_is_an_address_for_it() {
    let joined = |name| in_container(&[(NetworkMode::Container, Some(name))], Vec::new());
    let mut cluster = Cluster::new();
    let (first, mut second) = (joined("full"), joined("full"));
    second.id = id("/group/second");
    cluster.networks = [("full".parse().expect("name"), 0)].into();
    cluster.put(second.clone()).expect("accepted");
    assert_eq!(why_it_waits(&cluster, &second), [NoMatchReason::InsufficientAddresses]);
    let mut cluster = Cluster::new();
    cluster.networks = [("full".parse().expect("name"), 1)].into();
    cluster.put(first).expect("accepted");
    let networking = cluster.launches.last().expect("it is launched").1.networking.clone();
    let attachments = networking.expect("its own interfaces").attachments;
    assert_eq!(attachments[0].network.as_ref().map(NetworkName::as_str), Some("full"));

    for name in ["unknown", "this-name-has-no-bridge"] {
        let mut cluster = Cluster::new();
        let app = joined(name);
        cluster.put(app.clone()).expect("accepted");
        assert_eq!(why_it_waits(&cluster, &app), [NoMatchReason::UnfulfilledNetwork], "{name}");
    }

    let mut unable = agent("a0", 64, &[]);
    unable.container_networks = false;
    let mut cluster = Cluster::with_agents([unable]);
    let bridge = in_container(&[(NetworkMode::Bridge, None)], Vec::new());
    cluster.put(bridge.clone()).expect("accepted");
    assert_eq!(why_it_waits(&cluster, &bridge), [NoMatchReason::UnfulfilledNetwork]);
}
