//! Makes the interfaces that are written down: a bridge on the node, and a pair of interfaces from it into a network
//! namespace.

use std::io;
use std::net::IpAddr;

use mesonet_model::Subnet;
use mesonet_netlink::{Link, Netlink, NetlinkError, set_switch, switch};
use thiserror::Error;

use crate::container_network::{Interface, InterfaceAddress};

/// An interface cannot be made.
#[derive(Debug, Error)]
pub(crate) enum InterfaceError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the addresses {subnet} of the task's network overlap the host's own address {address}")]
    Overlap { subnet: Subnet, address: IpAddr },
}

/// The names of both ends of a pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'names> {
    /// On the node.
    pub(crate) port: &'names str,
    /// In the namespace.
    pub(crate) inside: &'names str,
}

/// The bridge of an interface on the node, made if it is not there.
pub(crate) fn bridge(host: &mut Netlink, interface: &Interface) -> Result<Link, InterfaceError> {
    let name = &interface.bridge;
    let known = host.link(name)?.map(|link| link.index);
    for address in host.addresses()? {
        let is_foreign = |own: &&InterfaceAddress| {
            own.subnet.contains(address.address) && own.gateway() != Some(address.address)
        };
        let inside = interface.addresses.iter().find(is_foreign);
        if let Some(own) = inside.filter(|_| known != Some(address.link)) {
            return Err(InterfaceError::Overlap { subnet: own.subnet, address: address.address });
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
    set_switch(&forwarding(name), "1")?;
    Ok(bridge)
}

/// Whether what comes from a bridge is forwarded.
pub(crate) fn forwards(bridge: &str) -> bool {
    switch(&forwarding(bridge)).is_some_and(|value| value == "1")
}

/// The switch of that.
fn forwarding(bridge: &str) -> String {
    format!("ipv4/conf/{bridge}/forwarding")
}

/// Makes an interface in the namespace of this thread, `own`, which leads to a bridge on the node, and by these gateways to
/// everything else.
pub(crate) fn connect(
    host: &mut Netlink,
    own: &mut Netlink,
    interface: &Interface,
    bridge: &Link,
    names: Names<'_>,
    gateways: &[IpAddr],
) -> Result<(), InterfaceError> {
    let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let port = host.make_veth(names.port, names.inside, hardware_address(names.port), thread)?;
    if let Some(mtu) = interface.mtu {
        host.set_mtu(&port, mtu)?;
    }
    host.join_bridge(&port, bridge)?;
    host.set_up(&port)?;
    attach(own, interface, names.inside, gateways)?;
    Ok(())
}

/// The address on the wire of a port's inner end: one of those that anybody may choose. It is the same for an interface
/// that is made again, so that its neighbours go on to find it.
fn hardware_address(port: &str) -> [u8; 6] {
    let [.., a, b, c, d, e] = hash(port.bytes()).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// FNV-1a.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The inner end of an interface.
fn attach(
    own: &mut Netlink,
    interface: &Interface,
    name: &str,
    gateways: &[IpAddr],
) -> Result<(), NetlinkError> {
    let link = turn_on(own, name)?;
    if let Some(mtu) = interface.mtu {
        own.set_mtu(&link, mtu)?;
    }
    for address in &interface.addresses {
        own.add_address(&link, address.address, address.subnet.prefix())?;
    }
    gateways.iter().try_for_each(|gateway| own.add_default_route(&link, *gateway))
}

/// Turns on an interface that must be there.
pub(crate) fn turn_on(own: &mut Netlink, name: &str) -> Result<Link, NetlinkError> {
    let missing = || NetlinkError {
        action: "find interface",
        what: name.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    };
    let link = own.link(name)?.ok_or_else(missing)?;
    own.set_up(&link)?;
    Ok(link)
}
