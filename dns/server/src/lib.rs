//! Serves the zone over UDP and TCP.
//!
//! [`Server`] owns the sockets and the zone that is served. Each query is answered from an immutable snapshot that
//! [`Server::apply`] swaps, so that queries and changes never wait for each other. Which records a name has is
//! decided by `mesonet-dns-zone`; here is what goes over the wire: message ids, EDNS, truncation, connections.
//!
//! Tasks: per address one UDP loop for each core and one TCP accept loop, and one task for each TCP connection. All
//! end when the [`Server`] is dropped; a query that is being answered is answered first.

mod datagram;
mod listener;
mod metrics;
mod responder;
mod server;
mod tcp;
mod udp;
mod wire;

pub use server::{Config, Server, StartError};
