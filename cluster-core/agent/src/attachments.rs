//! Interfaces of containers that others run, who ask for them by CNI: from the same parts of networks as those of
//! tasks.
//!
//! ```text
//! cni/lock                              held by whoever chooses an address or removes a bridge: agent and plugin
//! cni/last.json                         the last address given from each part
//! cni/<container>@<interface>.json      one interface
//! ```
//!
//! No daemon is asked: containers come and go while the agent restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesonet_model::{AgentId, NetworkName, Subnet};
use mesonet_netlink::{Netlink, NetlinkError};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::addresses::Addresses;
use crate::checkpoint::{self, Durability, FileError};
use crate::container_network::{Interface, InterfaceAddress, TUNNEL_MTU};
use crate::interfaces::{self, InterfaceError, Names};
use crate::layout::{LAUNCH_FILE, Layout};
use crate::protocol::Launch;

/// Whom the addresses of all attachments belong to, among those of tasks.
pub(crate) const OWNER: Uuid = Uuid::nil();

const LOCK_FILE: &str = "lock";
const LAST_FILE: &str = "last.json";

/// How long the lock is waited for. Whoever has it needs some milliseconds, for a few calls of the kernel; who gets none
/// can try again, and a runtime that waits for its plugin for ever cannot.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Which interface of which container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The container, as its runtime calls it.
    pub container: String,
    /// The interface in the container.
    pub interface: String,
}

/// An interface that is wanted.
#[derive(Debug, Clone)]
pub struct AttachmentRequest {
    /// Which one.
    pub key: AttachmentKey,
    /// What the runtime calls the network.
    pub label: String,
    /// The virtual network.
    pub network: NetworkName,
    /// The node's parts of it.
    pub parts: Vec<Subnet>,
    /// The container's network namespace.
    pub namespace: PathBuf,
}

/// An interface of a container, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which one.
    pub key: AttachmentKey,
    /// What the runtime calls the network.
    pub label: String,
    /// The interface's other end, on the node.
    pub port: String,
    interface: Interface,
    /// The interface's address on the wire, known to whoever has made it.
    #[serde(skip)]
    pub hardware_address: Option<[u8; 6]>,
}

/// An address of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix of the node's part of the network.
    pub prefix: u8,
    /// The node's own address in it.
    pub gateway: Option<IpAddr>,
}

/// Something about a container's interface cannot be done, or is not so.
#[derive(Debug, Error)]
pub enum AttachmentError {
    /// The container has the interface.
    #[error("container '{}' has the interface '{}' from this node", .0.container, .0.interface)]
    Exists(AttachmentKey),
    /// It has no such interface.
    #[error("container '{}' has no interface '{}' from this node", .0.container, .0.interface)]
    Unknown(AttachmentKey),
    /// The node has no part of the network.
    #[error("this node has no part of network '{0}'")]
    NoPart(NetworkName),
    /// No address is left.
    #[error("every address of {0} is taken")]
    Exhausted(Subnet),
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The interface cannot be made.
    #[error(transparent)]
    Interface(Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refuses something else.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file of the node's directory cannot be used.
    #[error(transparent)]
    File(Box<dyn std::error::Error + Send + Sync>),
    /// Something is not as it was made.
    #[error("{0}")]
    Altered(String),
    /// Somebody else gives or takes addresses, and does not come to an end.
    #[error("the lock {} is held by another process", .0.display())]
    Busy(PathBuf),
}

impl From<FileError> for AttachmentError {
    fn from(error: FileError) -> Self {
        Self::File(Box::new(error))
    }
}

impl From<InterfaceError> for AttachmentError {
    fn from(error: InterfaceError) -> Self {
        match error {
            InterfaceError::Netlink(error) => Self::Netlink(error),
            other => Self::Interface(Box::new(other)),
        }
    }
}

/// The attachments of a node. While it is there, nobody else gives or takes back addresses there.
#[derive(Debug)]
pub struct Attachments {
    layout: Layout,
    directory: PathBuf,
    /// Held until it is dropped.
    _lock: File,
}

impl Attachments {
    /// Opens those in an agent's directory, which must be there. Waits until nobody else has them, but not for ever.
    ///
    /// # Errors
    /// When the directory cannot be used, or somebody else does not come to an end.
    pub fn open(agent: &Path) -> Result<Self, AttachmentError> {
        Self::hold(&Layout::new(agent))
    }

    pub(crate) fn hold(layout: &Layout) -> Result<Self, AttachmentError> {
        Self::hold_within(layout, LOCK_PATIENCE)
    }

    fn hold_within(layout: &Layout, patience: Duration) -> Result<Self, AttachmentError> {
        let directory = layout.attachments();
        checkpoint::create_directory(&directory, 0o700)?;
        let path = directory.join(LOCK_FILE);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(FileError::at("open", &path))?;
        let deadline = Instant::now() + patience;
        while let Err(refusal) = lock.try_lock() {
            match refusal {
                TryLockError::Error(error) => return Err(FileError::at("lock", &path)(error).into()),
                TryLockError::WouldBlock if Instant::now() >= deadline => {
                    return Err(AttachmentError::Busy(path));
                }
                TryLockError::WouldBlock => std::thread::sleep(LOCK_INTERVAL),
            }
        }
        Ok(Self { layout: layout.clone(), directory, _lock: lock })
    }

    /// The agent's id, if it has one already.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn agent(&self) -> Result<Option<AgentId>, AttachmentError> {
        Ok(checkpoint::read(&self.layout.agent_file())?)
    }

    /// All of them.
    ///
    /// # Errors
    /// When the directory or what is in it cannot be read.
    pub fn list(&self) -> Result<Vec<Attachment>, AttachmentError> {
        read_all(&self.directory)
    }

    /// The addresses of all attachments.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, AttachmentError> {
        Ok(self.list()?.iter().flat_map(Attachment::addresses).map(|each| each.address).collect())
    }

    /// Gives a container an interface.
    ///
    /// # Errors
    /// When it has it already, when there is no address, when the interface cannot be made. Nothing is left then.
    pub fn attach(&self, request: &AttachmentRequest) -> Result<Attachment, AttachmentError> {
        let path = self.file(&request.key);
        if checkpoint::read::<Attachment>(&path)?.is_some() {
            return Err(AttachmentError::Exists(request.key.clone()));
        }
        let interface = self.choose(request)?;
        let port = port_name(&request.key);
        let key = request.key.clone();
        let label = request.label.clone();
        let attachment = Attachment { key, label, port, interface, hardware_address: None };
        checkpoint::write(&path, &attachment, Durability::Disk)?;
        match make(&attachment, &request.namespace) {
            Ok(hardware_address) => Ok(Attachment { hardware_address, ..attachment }),
            Err(error) => {
                self.remove(&attachment)?;
                Err(error)
            }
        }
    }

    /// Chooses addresses that neither a task nor another container has.
    fn choose(&self, request: &AttachmentRequest) -> Result<Interface, AttachmentError> {
        if request.parts.is_empty() {
            return Err(AttachmentError::NoPart(request.network.clone()));
        }
        let mut addresses = Addresses::default();
        for address in self.addresses()?.into_iter().chain(self.addresses_of_tasks()?) {
            addresses.restore(address, OWNER);
        }
        let path = self.directory.join(LAST_FILE);
        let mut last: BTreeMap<Subnet, IpAddr> =
            checkpoint::read::<Vec<_>>(&path)?.unwrap_or_default().into_iter().collect();
        let mut chosen = Vec::new();
        for subnet in &request.parts {
            if let Some(address) = last.get(subnet) {
                addresses.go_on_after(*subnet, *address);
            }
            let address = addresses.take(*subnet, OWNER).ok_or(AttachmentError::Exhausted(*subnet))?;
            last.insert(*subnet, address);
            chosen.push(InterfaceAddress { address, subnet: *subnet });
        }
        checkpoint::write(&path, &last.into_iter().collect::<Vec<_>>(), Durability::Process)?;
        Ok(Interface { bridge: request.network.bridge(), addresses: chosen, mtu: Some(TUNNEL_MTU) })
    }

    /// The addresses of tasks that are written down, also of those that have just ended.
    fn addresses_of_tasks(&self) -> Result<Vec<IpAddr>, FileError> {
        let mut addresses = Vec::new();
        for directory in self.layout.checkpoints_there()? {
            // A task whose checkpoint goes at this moment has no address any more.
            if let Ok(Some(launch)) = checkpoint::read::<Launch>(&directory.join(LAUNCH_FILE)) {
                addresses.extend(launch.network.iter().flat_map(|network| network.addresses()));
            }
        }
        Ok(addresses)
    }

    /// Takes an interface from a container, if it has it.
    ///
    /// # Errors
    /// When the kernel or the directory refuses.
    pub fn detach(&self, key: &AttachmentKey) -> Result<(), AttachmentError> {
        match checkpoint::read::<Attachment>(&self.file(key))? {
            Some(attachment) => self.remove(&attachment),
            None => Ok(()),
        }
    }

    /// Takes all interfaces of a network, as runtimes call it, from containers but those that are named.
    ///
    /// # Errors
    /// The first one, after all have been tried.
    pub fn keep_only(&self, label: &str, kept: &BTreeSet<AttachmentKey>) -> Result<(), AttachmentError> {
        let attachments = self.list()?.into_iter();
        let stale = attachments.filter(|each| each.label == label && !kept.contains(&each.key));
        stale.map(|attachment| self.remove(&attachment)).fold(Ok(()), Result::and)
    }

    fn remove(&self, attachment: &Attachment) -> Result<(), AttachmentError> {
        let mut host = Netlink::open()?;
        // Its other end goes with it, if the namespace is still there.
        host.remove_link(&attachment.port)?;
        let path = self.file(&attachment.key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::at("remove", &path)(error).into());
            }
            _ => {}
        }
        let used: Vec<IpAddr> = self.addresses()?.into_iter().chain(self.addresses_of_tasks()?).collect();
        let is_used = |own: &InterfaceAddress| used.iter().any(|address| own.subnet.contains(*address));
        if !attachment.interface.addresses.iter().any(is_used) {
            host.remove_link(&attachment.interface.bridge)?;
        }
        Ok(())
    }

    /// Whether a container's interface is as it was made.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self, key: &AttachmentKey, namespace: &Path) -> Result<Attachment, AttachmentError> {
        let attachment = checkpoint::read::<Attachment>(&self.file(key))?
            .ok_or_else(|| AttachmentError::Unknown(key.clone()))?;
        let mut host = Netlink::open()?;
        let bridge_name = &attachment.interface.bridge;
        let Some(bridge) = host.link(bridge_name)?.filter(|bridge| bridge.is_up) else {
            return Err(altered(format!("the bridge {bridge_name} of the node is not there or not up")));
        };
        let port = host.link(&attachment.port)?;
        if port.is_none_or(|port| !port.is_up || port.master != Some(bridge.index)) {
            return Err(altered(format!("{} is not there, not up or not in {bridge_name}", attachment.port)));
        }
        inside(namespace, |own| {
            let Some(link) = own.link(&key.interface)?.filter(|link| link.is_up) else {
                return Err(altered(format!("the interface {} is not there or not up", key.interface)));
            };
            let present = own.addresses()?;
            for wanted in attachment.addresses() {
                let is_it = |each: &mesonet_netlink::Address| {
                    each.link == link.index && each.address == wanted.address && each.prefix == wanted.prefix
                };
                if !present.iter().any(is_it) {
                    let AttachedAddress { address, prefix, .. } = wanted;
                    return Err(altered(format!("the interface {} lacks {address}/{prefix}", key.interface)));
                }
            }
            Ok(())
        })?;
        Ok(attachment)
    }

    fn file(&self, key: &AttachmentKey) -> PathBuf {
        self.directory.join(format!("{}@{}.json", key.container, key.interface))
    }
}

impl Attachment {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = AttachedAddress> + '_ {
        self.interface.addresses.iter().map(|each| AttachedAddress {
            address: each.address,
            prefix: each.subnet.prefix(),
            gateway: each.gateway(),
        })
    }

    /// The virtual network, whose name is in that of its bridge.
    pub fn network(&self) -> Option<NetworkName> {
        self.interface.bridge.strip_prefix("m-")?.parse().ok()
    }

    pub(crate) fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The bridge on the node.
    pub fn bridge(&self) -> &str {
        &self.interface.bridge
    }

    /// The longest packet.
    pub fn mtu(&self) -> Option<u32> {
        self.interface.mtu
    }
}

/// All attachments in a directory, by the names of their files.
pub(crate) fn read_all(directory: &Path) -> Result<Vec<Attachment>, AttachmentError> {
    let entries = fs::read_dir(directory).map_err(FileError::at("list", directory))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| is_attachment(path));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        found.extend(checkpoint::read::<Attachment>(&path)?);
    }
    Ok(found)
}

/// Whether a file is that of an attachment.
pub(crate) fn is_attachment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
        && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains('@'))
}

/// Makes an interface that is written down. Its address on the wire.
fn make(attachment: &Attachment, namespace: &Path) -> Result<Option<[u8; 6]>, AttachmentError> {
    let Attachment { key, port, interface, .. } = attachment;
    let mut host = Netlink::open()?;
    let bridge = interfaces::bridge(&mut host, interface)?;
    inside(namespace, |own| {
        if own.link(&key.interface)?.is_some() {
            return Err(AttachmentError::Exists(key.clone()));
        }
        let names = Names { port, inside: &key.interface };
        let gateways: Vec<IpAddr> = attachment.addresses().filter_map(|each| each.gateway).collect();
        interfaces::connect(&mut host, own, interface, &bridge, names, &gateways)?;
        Ok(own.link(&key.interface)?.and_then(|link| link.hardware_address))
    })
}

/// Does something in another network namespace, on a thread that ends with it.
pub(crate) fn inside<T: Send>(
    namespace: &Path,
    act: impl FnOnce(&mut Netlink) -> Result<T, AttachmentError> + Send,
) -> Result<T, AttachmentError> {
    let failed = |source| AttachmentError::Namespace { path: namespace.to_path_buf(), source };
    let file = File::open(namespace).map_err(failed)?;
    let act = || {
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| failed(error.into()))?;
        act(&mut Netlink::open()?)
    };
    std::thread::scope(|scope| match scope.spawn(act).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

pub(crate) fn altered(text: String) -> AttachmentError {
    AttachmentError::Altered(text)
}

/// The name of an interface's end on the node: of at most 15 characters, and another one for each interface.
fn port_name(key: &AttachmentKey) -> String {
    let AttachmentKey { container, interface } = key;
    let hash = interfaces::hash(container.bytes().chain([b'@']).chain(interface.bytes()));
    format!("mc{:013x}", hash >> 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_them_and_another_does_not_wait_for_ever() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(directory.path());
        let held = Attachments::hold_within(&layout, Duration::ZERO).expect("nobody has them");
        let refused = Attachments::hold_within(&layout, LOCK_INTERVAL).expect_err("somebody has them");
        assert!(matches!(refused, AttachmentError::Busy(_)), "{refused}");
        drop(held);
        Attachments::hold_within(&layout, Duration::ZERO).expect("nobody has them any more");
    }
}
