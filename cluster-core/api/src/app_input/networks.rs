//! Networks, and the ports and container that depend on them.

use std::collections::BTreeMap;

use mesonet_model::{Container, ContainerKind, Network, NetworkMode, PortDefinition, PortMapping};

use super::container::{self, ContainerInput};
use super::ports;
use crate::json_reader::Object;

/// The longest name of a network, as in Marathon.
const NETWORK_NAME_LENGTH_MAX: usize = 63;

/// How an app is connected.
pub(super) struct Wiring {
    /// Networks; never empty.
    pub(super) networks: Vec<Network>,
    /// Whether they are the host's.
    pub(super) is_on_host: bool,
    /// Ports with host networking.
    pub(super) port_definitions: Vec<PortDefinition>,
    /// Container with its port mappings.
    pub(super) container: Option<Container>,
}

/// Reads networks, container and ports, in old and new forms.
pub(super) fn read(app: &Object<'_>) -> Wiring {
    let input = container::open(app);
    let address = app.object("ipAddress", &["networkName", "labels", "groups", "discovery"]);
    let networks = read_networks(app, input.as_ref(), address.as_ref());
    let mode = networks.first().map_or(NetworkMode::Host, |network| network.mode);
    let is_on_host = mode == NetworkMode::Host;
    let mut container = input.as_ref().map(container::read);
    let mappings = read_mappings(input.as_ref(), address.as_ref(), mode);
    if is_on_host {
        if mappings.is_some_and(|mappings| !mappings.is_empty()) {
            app.invalid("container/portMappings", "portMappings are not allowed with host-networking");
        }
    } else {
        let container = container.get_or_insert_with(|| Container {
            kind: ContainerKind::Mesos,
            docker: None,
            volumes: Vec::new(),
            port_mappings: Vec::new(),
        });
        container.port_mappings = mappings.unwrap_or_else(|| ports::default_mappings(mode));
    }
    Wiring { port_definitions: read_definitions(app, is_on_host), networks, is_on_host, container }
}

fn read_definitions(app: &Object<'_>, is_on_host: bool) -> Vec<PortDefinition> {
    if is_on_host {
        return ports::read_definitions(app);
    }
    if app.list("portDefinitions").is_some_and(|definitions| !definitions.is_empty()) {
        app.invalid("portDefinitions", "portDefinitions are only allowed with host-networking");
    }
    Vec::new()
}

/// Mappings of the container, of its old docker form, or of the old address form.
fn read_mappings(
    input: Option<&ContainerInput<'_>>,
    address: Option<&Object<'_>>,
    mode: NetworkMode,
) -> Option<Vec<PortMapping>> {
    let of_container = input.and_then(|input| ports::read_mappings(&input.object, "portMappings", mode));
    let docker = input.and_then(|input| input.docker.as_ref());
    let of_docker = docker.and_then(|docker| ports::read_mappings(docker, "portMappings", mode));
    if let (Some(_), Some(docker), Some(_)) = (&of_container, docker, &of_docker) {
        docker.invalid("portMappings", "must not be given together with container.portMappings");
    }
    let discovery = address.and_then(|address| address.object("discovery", &["ports"]));
    let of_address = discovery.and_then(|discovery| ports::read_discovery_ports(&discovery));
    of_container.or(of_docker).or(of_address)
}

fn read_networks(
    app: &Object<'_>,
    input: Option<&ContainerInput<'_>>,
    address: Option<&Object<'_>>,
) -> Vec<Network> {
    let docker = input.and_then(|input| input.docker.as_ref());
    let old_mode = docker.and_then(|docker| {
        let modes = [
            ("HOST", NetworkMode::Host),
            ("NONE", NetworkMode::Host),
            ("BRIDGE", NetworkMode::Bridge),
            ("USER", NetworkMode::Container),
        ];
        docker.choice("network", &modes)
    });
    let given = app.objects("networks", &["mode", "name", "labels"]).filter(|given| !given.is_empty());
    if let Some(given) = given {
        if address.is_some() {
            app.invalid("networks", "must not specify both networks and ipAddress");
        }
        if old_mode.is_some() {
            app.invalid("networks", "must not specify both networks and container.docker.network");
        }
        let networks: Vec<Network> = given.iter().map(read_network).collect();
        check_together(app, &networks);
        return networks;
    }
    let mode = match (old_mode, address) {
        (Some(mode @ (NetworkMode::Host | NetworkMode::Bridge)), None) => mode,
        (Some(NetworkMode::Host | NetworkMode::Bridge), Some(_)) => {
            app.invalid("ipAddress", "must not be given with docker networks other than USER");
            NetworkMode::Container
        }
        (Some(NetworkMode::Container), _) | (None, Some(_)) => NetworkMode::Container,
        (None, None) => NetworkMode::Host,
    };
    let name = address.and_then(|address| address.text_like("networkName", is_network_name));
    if mode == NetworkMode::Container && !address.is_some_and(|address| address.has("networkName")) {
        app.invalid("ipAddress/networkName", NAME_MISSING);
    }
    let labels = address.map_or_else(BTreeMap::new, |address| address.text_map("labels"));
    vec![Network { mode, name, labels }]
}

const NAME_MISSING: &str = "Network name must be specified when container network is selected.";

fn read_network(object: &Object<'_>) -> Network {
    let modes = [
        ("host", NetworkMode::Host),
        ("container/bridge", NetworkMode::Bridge),
        ("container", NetworkMode::Container),
    ];
    let mode = object.choice("mode", &modes).unwrap_or(NetworkMode::Container);
    let network =
        Network { mode, name: object.text_like("name", is_network_name), labels: object.text_map("labels") };
    match mode {
        NetworkMode::Container if !object.has("name") => object.invalid("name", NAME_MISSING),
        NetworkMode::Host if object.has("name") || !network.labels.is_empty() => {
            object.findings().invalid(object.path(), "a host network has neither name nor labels");
        }
        NetworkMode::Bridge if object.has("name") => {
            object.invalid("name", "a bridge network has no name");
        }
        NetworkMode::Host | NetworkMode::Bridge | NetworkMode::Container => {}
    }
    network
}

fn check_together(app: &Object<'_>, networks: &[Network]) {
    let count = |mode| networks.iter().filter(|network| network.mode == mode).count();
    let (hosts, bridges) = (count(NetworkMode::Host), count(NetworkMode::Bridge));
    if hosts + bridges > 1 || (hosts + bridges == 1 && networks.len() > 1) {
        app.invalid(
            "networks",
            "must contain exactly one host network, or one bridge network, or one or more container networks",
        );
    }
    let mut names: Vec<&str> = networks.iter().filter_map(|network| network.name.as_deref()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    if names.len() != count {
        app.invalid("networks", "Network names must be unique.");
    }
}

/// `^[a-z0-9]([-a-z0-9_]*[a-z0-9])?$`, at most 63 characters.
fn is_network_name(text: &str) -> bool {
    text.len() <= NETWORK_NAME_LENGTH_MAX && ports::is_name(&text.replace('_', "-"))
}
