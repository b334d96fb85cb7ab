//! A network of namespaces: one per host, joined by a bridge in a namespace of its own. Needs root.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::process::Command;

use super::program;

/// Hosts with one address each on one wire. Nobody else is on it, so that addresses may repeat in other networks.
/// Removed when dropped; whatever runs in it has to be ended before.
pub struct Network {
    name: String,
    hosts: Vec<String>,
}

impl Network {
    /// Makes the network; the first host has the address 10.77.0.1.
    #[track_caller]
    pub fn new(hosts: &[&str]) -> Self {
        // Not a process id: these come again, also that of a test that was killed and has left something.
        let name = format!("mesonet-{:016x}", RandomState::new().build_hasher().finish());
        // Owned from here on, so that a failure on the way removes what is there.
        let network = Self { name, hosts: hosts.iter().map(|&host| host.to_owned()).collect() };
        let bridge = network.bridge();
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", "wire", "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", "wire", "up"]);
        for host in hosts {
            let namespace = network.namespace(host);
            let address = format!("{}/24", network.address(host));
            ip(&["netns", "add", &namespace]);
            ip(&[
                "-n", &namespace, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns",
                &bridge,
            ]);
            ip(&["-n", &bridge, "link", "set", "dev", host, "master", "wire", "up"]);
            ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> String {
        let position = self.hosts.iter().position(|name| name == host).expect("a host of the network");
        format!("10.77.0.{}", position + 1)
    }

    /// A program that will run on a host. Its process id is that of the program.
    pub fn command(&self, host: &str, program: &str) -> Command {
        within(&self.namespace(host), program)
    }

    /// A program that will run in the middle, where it sees what hosts send to each other.
    pub fn on_wire(&self, program: &str) -> Command {
        within(&self.bridge(), program)
    }

    /// The file of a host's namespace.
    pub fn file(&self, host: &str) -> String {
        format!("/run/netns/{}", self.namespace(host))
    }

    /// Takes a host's address away and gives it another one.
    #[track_caller]
    pub fn move_to(&self, host: &str, address: &str) {
        let namespace = self.namespace(host);
        ip(&["-n", &namespace, "addr", "del", &format!("{}/24", self.address(host)), "dev", "eth0"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
    }

    /// Pulls a host's cable.
    #[track_caller]
    pub fn cut(&self, host: &str) {
        ip(&["-n", &self.bridge(), "link", "set", "dev", host, "down"]);
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn heal(&self, host: &str) {
        ip(&["-n", &self.bridge(), "link", "set", "dev", host, "up"]);
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn bridge(&self) -> String {
        format!("{}-wire", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().map(|host| self.namespace(host)).chain([self.bridge()]) {
            // It may not have been made yet.
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
}

fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    // Only the network: control groups and files are those of the machine.
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

#[track_caller]
fn ip(arguments: &[&str]) {
    program::run("ip", arguments).success();
}
