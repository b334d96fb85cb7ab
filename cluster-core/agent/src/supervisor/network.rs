//! Gives a task a network namespace of its own.
//!
//! The supervisor itself moves into the namespace and a mount namespace, before the task's program starts. So both live
//! exactly as long as something of the task does, whatever becomes of the agent, and nothing is left to be cleared up:
//! the kernel removes the interfaces with the namespace. The control socket is a file and goes on to work.

use std::io;
use std::path::{Path, PathBuf};

use mesonet_netlink::{Link, Netlink, NetlinkError};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::forward::{self, ForwardError, Forwarding};
use super::name_server::NameServer;
use crate::container_network::{inside_name, port_name};
use crate::interfaces::{self, InterfaceError, Names};
use crate::protocol::Launch;

/// The task's interfaces cannot be made.
#[derive(Debug, Error)]
pub(super) enum NetworkError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot make the task's namespaces")]
    Namespaces { source: io::Error },
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// What is to be kept going for a task with interfaces of its own.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What leads from ports of the node to the task.
    pub(super) forwarding: Option<Forwarding>,
    pub(super) name_server: Option<NameServer>,
}

/// Moves this process into namespaces with the interfaces of a launch; does nothing on the host's network. `directory`
/// is the task's checkpoint.
pub(super) fn set_up(launch: &Launch, directory: &Path) -> Result<Kept, NetworkError> {
    let Some(network) = &launch.network else { return Ok(Kept::default()) };
    let mut host = Netlink::open()?;
    let bridges: Vec<Link> = network
        .interfaces
        .iter()
        .map(|each| interfaces::bridge(&mut host, each))
        .collect::<Result<_, _>>()?;
    let forwarding = forward::start(network)?;
    // SAFETY: this process has one thread, and what is unshared are namespaces, not the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .map_err(|error| NetworkError::Namespaces { source: error.into() })?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation)
        .map_err(|error| NetworkError::Namespaces { source: error.into() })?;
    let name_server = NameServer::put_in_place(network, directory)?;
    let mut own = Netlink::open()?;
    interfaces::turn_on(&mut own, "lo")?;
    for (index, (interface, bridge)) in network.interfaces.iter().zip(&bridges).enumerate() {
        let name = port_name(launch.container, index);
        let names = Names { port: &name, inside: &inside_name(index) };
        interfaces::connect(&mut host, &mut own, interface, bridge, names, &network.default_gateways(index))?;
    }
    Ok(Kept { forwarding, name_server: Some(name_server) })
}
