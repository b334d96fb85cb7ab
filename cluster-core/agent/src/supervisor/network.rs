//! Gives a task a network namespace of its own.
//!
//! The supervisor itself moves into the namespace and a mount namespace, before the task's program starts. So both live
//! exactly as long as something of the task does, whatever becomes of the agent, and nothing is left to be cleared up:
//! the kernel removes the interfaces with the namespace. The control socket is a file and goes on to work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesonet_model::Subnet;
use mesonet_netlink::{Link, Netlink, NetlinkError};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::forward::{self, ForwardError};
use crate::container_network::{ContainerNetwork, Interface, InterfaceAddress};
use crate::protocol::Launch;

/// What programs ask for the name server.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The task's interfaces cannot be made.
#[derive(Debug, Error)]
pub(super) enum NetworkError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the addresses {subnet} of the task's network overlap the host's own address {address}")]
    Overlap { subnet: Subnet, address: std::net::IpAddr },
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot make the task's namespaces")]
    Namespaces { source: io::Error },
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// Moves this process into namespaces with the interfaces of a launch; does nothing on the host's network. `directory`
/// is the task's checkpoint.
pub(super) fn set_up(launch: &Launch, directory: &Path) -> Result<(), NetworkError> {
    let Some(network) = &launch.network else { return Ok(()) };
    let mut host = Netlink::open()?;
    let bridges: Vec<Link> =
        network.interfaces.iter().map(|each| bridge(&mut host, each)).collect::<Result<_, _>>()?;
    forward::start(network)?;
    // SAFETY: this process has one thread, and what is unshared are namespaces, not the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .map_err(|error| NetworkError::Namespaces { source: error.into() })?;
    name_server(network, directory)?;
    let mut own = Netlink::open()?;
    turn_on(&mut own, "lo")?;
    let names = launch.container.simple().to_string();
    for (index, (interface, bridge)) in network.interfaces.iter().zip(&bridges).enumerate() {
        // At most 15 characters: two, ten of the run's id, and the number.
        let name = format!("mn{}{index}", &names[..10]);
        let inside = format!("eth{index}");
        let port = host.make_veth(&name, &inside, std::process::id())?;
        if let Some(mtu) = interface.mtu {
            host.set_mtu(&port, mtu)?;
        }
        host.join_bridge(&port, bridge)?;
        host.set_up(&port)?;
        attach(&mut own, interface, &inside, index == 0)?;
    }
    Ok(())
}

/// The bridge of an interface on the node, made if it is not there.
fn bridge(host: &mut Netlink, interface: &Interface) -> Result<Link, NetworkError> {
    let name = &interface.bridge;
    let known = host.link(name)?.map(|link| link.index);
    for address in host.addresses()? {
        let is_foreign = |own: &&InterfaceAddress| {
            own.subnet.contains(address.address) && own.gateway() != Some(address.address)
        };
        let inside = interface.addresses.iter().find(is_foreign);
        if let Some(own) = inside.filter(|_| known != Some(address.link)) {
            return Err(NetworkError::Overlap { subnet: own.subnet, address: address.address });
        }
    }
    let bridge = host.make_bridge(name)?;
    for own in &interface.addresses {
        if let Some(gateway) = own.gateway() {
            host.add_address(&bridge, gateway, own.subnet.prefix())?;
        }
    }
    host.set_up(&bridge)?;
    // Only what comes from the bridge is forwarded; the rest of the host stays as it is.
    let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"));
    fs::write(&path, "1").map_err(|source| NetworkError::File { action: "write", path, source })?;
    Ok(bridge)
}

/// The inner end of an interface.
fn attach(own: &mut Netlink, interface: &Interface, name: &str, is_first: bool) -> Result<(), NetworkError> {
    let link = turn_on(own, name)?;
    if let Some(mtu) = interface.mtu {
        own.set_mtu(&link, mtu)?;
    }
    for address in &interface.addresses {
        own.add_address(&link, address.address, address.subnet.prefix())?;
        if let Some(gateway) = address.gateway().filter(|_| is_first) {
            own.add_default_route(&link, gateway)?;
        }
    }
    Ok(())
}

fn turn_on(own: &mut Netlink, name: &str) -> Result<Link, NetworkError> {
    let missing = || NetlinkError {
        action: "find interface",
        what: name.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    };
    let link = own.link(name)?.ok_or_else(missing)?;
    own.set_up(&link)?;
    Ok(link)
}

/// Makes the task ask the node's name server, by a file that only this mount namespace has in its place.
fn name_server(network: &ContainerNetwork, directory: &Path) -> Result<(), NetworkError> {
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source: io::Error| NetworkError::File { action, path, source }
    };
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation)
        .map_err(|error| NetworkError::Namespaces { source: error.into() })?;
    let own = directory.join("resolv.conf");
    fs::write(&own, format!("nameserver {}\n", network.name_server)).map_err(failed("write", &own))?;
    let place = Path::new(RESOLV_CONF);
    if !place.exists() {
        // Programs ask the name server on their own host then, and there is none in the namespace.
        return Ok(());
    }
    rustix::mount::mount_bind(&own, place).map_err(|error| failed("mount over", place)(error.into()))
}
