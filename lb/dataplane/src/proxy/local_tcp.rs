//! How TCP runs on connections that never leave the node.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketType, socket, sockopt};

/// Congestion control that sends as soon as the window allows, and that every kernel has for every user.
const UNPACED: &str = "reno";

/// What a connection between loopback addresses needs.
///
/// Congestion control that paces, BBR above all, sets a timer for nearly every packet of bulk data, which costs more than
/// to carry it. Loopback has no link that could be congested.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalTcp {
    congestion_control: Option<&'static str>,
}

impl LocalTcp {
    /// As the system's default demands.
    pub(super) fn of_system() -> Self {
        let default = socket(AddressFamily::INET, SocketType::STREAM, None).and_then(sockopt::tcp_congestion);
        let is_unpaced = default.is_ok_and(|name| name == UNPACED || name == "cubic");
        Self { congestion_control: (!is_unpaced).then_some(UNPACED) }
    }

    /// Prepares a socket before it connects to an address or listens there; what it accepts inherits it.
    pub(super) fn prepare(self, socket: impl AsFd, address: &SocketAddr) -> io::Result<()> {
        match self.congestion_control.filter(|_| address.ip().is_loopback()) {
            Some(name) => Ok(sockopt::set_tcp_congestion(socket, name)?),
            None => Ok(()),
        }
    }
}
