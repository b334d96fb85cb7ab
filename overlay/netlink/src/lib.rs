//! Links, addresses and routes of a network namespace, by rtnetlink (RFC 3549, `man 7 rtnetlink`), the translation of
//! sources, by nftables, and the switches of its interfaces.
//!
//! A [`Netlink`] speaks to the namespace in which it was opened, wherever its thread goes afterwards. Calls block for
//! as long as the kernel takes, which is microseconds. What is there already is no error where the caller wants it to
//! be there.
//!
//! Written by hand rather than with the crate rtnetlink: the dozen of requests that are needed fit on two pages, and
//! the task supervisors that use them have one thread and no runtime.

#![forbid(unsafe_code)]

mod message;
mod nat;
mod pair;
mod routes;
mod socket;
mod switch;

use std::io;
use std::net::IpAddr;

use thiserror::Error;

use message::{Message, attributes, be_address, text, u32_of};
use socket::Socket;

pub use nat::{Nat, NatRule};
pub use pair::LinkKind;
pub use routes::{MAIN_TABLE, Route, Rule, is_here};
pub use switch::{set_switch, switch};

/// Kinds of requests (`linux/rtnetlink.h`).
mod kind {
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const DELETE_LINK: u16 = 17;
    pub(crate) const GET_LINK: u16 = 18;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const DELETE_ADDRESS: u16 = 21;
    pub(crate) const GET_ADDRESS: u16 = 22;
    pub(crate) const NEW_ROUTE: u16 = 24;
}

/// Attributes of links (`linux/if_link.h`).
mod link {
    pub(crate) const HARDWARE_ADDRESS: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const PEER: u16 = 5;
    pub(crate) const MASTER: u16 = 10;
    pub(crate) const INFO: u16 = 18;
    pub(crate) const NAMESPACE_OF: u16 = 19;
    pub(crate) const OF_FAMILIES: u16 = 26;
    pub(crate) const GSO_IPV4_MAX_SIZE: u16 = 63;
    pub(crate) const INFO_KIND: u16 = 1;
    pub(crate) const INFO_DATA: u16 = 2;
    pub(crate) const VETH_PEER: u16 = 1;
    pub(crate) const UP: u32 = 1;
    pub(crate) const NO_ARP: u32 = 0x80;
}

/// Attributes of addresses (`linux/if_addr.h`).
mod address {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const LOCAL: u16 = 2;
    /// No duplicate address detection: the address is given once and is to be used at once.
    pub(crate) const NO_DETECTION: u8 = 2;
}

/// Attributes of routes.
mod route {
    pub(crate) const LINK: u16 = 4;
    pub(crate) const GATEWAY: u16 = 5;
    pub(crate) const MAIN_TABLE: u8 = 254;
    /// `RTPROT_STATIC`.
    pub(crate) const STATIC: u8 = 4;
    pub(crate) const UNICAST: u8 = 1;
}

/// Something could not be done to the network.
#[derive(Debug, Error)]
#[error("cannot {action} {what}")]
pub struct NetlinkError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub what: String,
    /// The system's words.
    pub source: io::Error,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// The number of its bridge, if it is a port of one.
    pub master: Option<u32>,
    /// Its address on the wire, if it is one of Ethernet.
    pub hardware_address: Option<[u8; 6]>,
    /// Of which kind it is, if it is made by software.
    pub kind: Option<LinkKind>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
}

/// The network of one namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// The network of the namespace that the thread is in.
    ///
    /// # Errors
    /// When the kernel does not let.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(None).map_err(|source| NetlinkError {
            action: "open",
            what: "a netlink socket".to_owned(),
            source,
        })?;
        Ok(Self { socket })
    }

    /// An interface by its name.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut request = Message::of_link(kind::GET_LINK, 0, 0);
        request.attribute(link::NAME, &text(name));
        match self.socket.ask(request) {
            Ok(answers) => Ok(answers.iter().find_map(|body| parse_link(body))),
            Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(None),
            Err(source) => Err(failed("look for interface", name, source)),
        }
    }

    /// All addresses.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let request = Message::of_address(kind::GET_ADDRESS, 0, 0, 0, 0);
        let answers = self.socket.dump(request);
        let answers = answers.map_err(|source| failed("list", "addresses", source))?;
        Ok(answers.iter().filter_map(|body| parse_address(body)).collect())
    }

    /// Makes a bridge, unless there is one of this name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_bridge(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, 0, 0).creates();
        request.attribute(link::NAME, &text(name));
        let info = request.begin(link::INFO);
        request.attribute(link::INFO_KIND, b"bridge");
        request.end(info);
        self.socket.order(request).or_else(is_there).map_err(|source| failed("make bridge", name, source))?;
        self.present(name)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join_bridge(&mut self, port: &Link, bridge: &Link) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, port.index, 0);
        request.attribute(link::MASTER, &bridge.index.to_ne_bytes());
        self.socket.order(request).map_err(|source| failed("add to its bridge interface", &port.name, source))
    }

    /// Sets the longest packet of an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&mut self, target: &Link, mtu: u32) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, target.index, 0);
        request.attribute(link::MTU, &mtu.to_ne_bytes());
        self.socket.order(request).map_err(|source| failed("set the MTU of interface", &target.name, source))
    }

    /// Turns an interface on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&mut self, target: &Link) -> Result<(), NetlinkError> {
        let request = Message::of_link(kind::NEW_LINK, target.index, link::UP);
        self.socket.order(request).map_err(|source| failed("turn on interface", &target.name, source))
    }

    /// Removes an interface, if there is one of the name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::DELETE_LINK, 0, 0);
        request.attribute(link::NAME, &text(name));
        match self.socket.order(request) {
            Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(()),
            other => other.map_err(|source| failed("remove interface", name, source)),
        }
    }

    /// Gives an interface an address, unless it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&mut self, to: &Link, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let flags = if address.is_ipv6() { address::NO_DETECTION } else { 0 };
        let family = family_of(address);
        let mut request = Message::of_address(kind::NEW_ADDRESS, family, prefix, flags, to.index).creates();
        request.attribute(address::LOCAL, &be_address(address));
        request.attribute(address::ADDRESS, &be_address(address));
        let done = self.socket.order(request).or_else(is_there);
        done.map_err(|source| failed("give an address to interface", &to.name, source))
    }

    /// Takes an address from an interface, if it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_address(&mut self, from: &Link, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let family = family_of(address);
        let mut request = Message::of_address(kind::DELETE_ADDRESS, family, prefix, 0, from.index);
        request.attribute(address::LOCAL, &be_address(address));
        let done = self.socket.order(request).or_else(routes::is_gone);
        done.map_err(|source| failed("take an address from interface", &from.name, source))
    }

    /// Makes an address the way to everything of its family that has no other way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_default_route(&mut self, through: &Link, gateway: IpAddr) -> Result<(), NetlinkError> {
        let mut request = Message::of_route(
            kind::NEW_ROUTE,
            [family_of(gateway), 0, 0, 0, route::MAIN_TABLE, route::STATIC, 0, route::UNICAST],
        )
        .creates();
        request.attribute(route::GATEWAY, &be_address(gateway));
        request.attribute(route::LINK, &through.index.to_ne_bytes());
        self.socket
            .order(request)
            .or_else(is_there)
            .map_err(|source| failed("set the default route through", &gateway.to_string(), source))
    }

    fn present(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.link(name)?.ok_or_else(|| failed("find interface", name, io::ErrorKind::NotFound.into()))
    }
}

/// `ENODEV`.
const NO_DEVICE: i32 = 19;

fn is_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn failed(action: &'static str, what: &str, source: io::Error) -> NetlinkError {
    NetlinkError { action, what: what.to_owned(), source }
}

/// `AF_INET` and `AF_INET6`.
fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// A link as the kernel describes it: a header of 16 bytes, and attributes.
fn parse_link(body: &[u8]) -> Option<Link> {
    let index = u32_of(body.get(4..8)?)?;
    let flags = u32_of(body.get(8..12)?)?;
    let is_up = flags & link::UP != 0;
    let mut found =
        Link { index, name: String::new(), is_up, master: None, hardware_address: None, kind: None };
    let mut peer = None;
    for (attribute, value) in attributes(body.get(16..)?) {
        match attribute {
            link::NAME => found.name = String::from_utf8_lossy(value.strip_suffix(&[0])?).into_owned(),
            link::MASTER => found.master = u32_of(value),
            link::HARDWARE_ADDRESS => found.hardware_address = value.try_into().ok(),
            link::PEER => peer = u32_of(value),
            link::INFO => found.kind = LinkKind::parse(value),
            _ => {}
        }
    }
    if let Some(LinkKind::Veth { peer: of_pair }) = &mut found.kind {
        *of_pair = peer;
    }
    Some(found)
}

/// An address as the kernel describes it: a header of 8 bytes, and attributes.
fn parse_address(body: &[u8]) -> Option<Address> {
    let prefix = *body.get(1)?;
    let link = u32_of(body.get(4..8)?)?;
    let mut found = None;
    for (attribute, value) in attributes(body.get(8..)?) {
        // On a link with two ends, the other attribute is the other end's address.
        if attribute == address::LOCAL || (attribute == address::ADDRESS && found.is_none()) {
            found = message::address_of(value);
        }
    }
    found.map(|address| Address { link, address, prefix })
}
