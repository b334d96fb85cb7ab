//! Serves the zone over UDP and TCP.
//!
//! [`Server`] owns the sockets and the zone that is served. Each query is answered from an immutable snapshot that
//! [`Server::apply`] swaps, so that queries and changes never wait for each other. Which records a name has is
//! decided by `mesonet-dns-zone`; here is what goes over the wire: message ids, EDNS, truncation, connections.
//!
//! Names outside the zone are asked of upstream servers, if there are any ([`ForwardConfig`]).
//!
//! Queries come over UDP and TCP, and if wanted over TLS, HTTPS and QUIC ([`EncryptedConfig`]).
//!
//! Threads: per address one for each core, which answers what nearly all UDP queries ask. Tasks: one for each of these
//! threads, which answers its other queries, one for each address that accepts connections, one for each connection, for
//! each QUIC stream, for each UDP query that waits for an upstream server, and for each question that upstream servers
//! are asked. All but the
//! last two, which end within seconds, end when the [`Server`] is dropped; a query that is being answered is answered
//! first.

mod certificate;
mod connections;
mod cookies;
mod datagram;
mod edns;
mod encrypted;
mod fast;
mod forward;
mod guard;
mod https;
mod interfaces;
mod limiter;
mod listener;
mod metrics;
mod network;
mod own_address;
mod policy;
mod probe;
mod query_metrics;
mod quic;
mod responder;
mod server;
mod stream;
mod tcp;
mod transfer;
mod udp;
mod wire;

pub use certificate::{CertificateError, CertificateFiles};
pub use encrypted::{EncryptedAddresses, EncryptedConfig, EncryptedError};
pub use forward::{ForwardConfig, ForwardError, Overload};
pub use guard::GuardError;
pub use interfaces::server_addresses;
pub use network::{Network, NetworkError};
pub use own_address::leads_to;
pub use policy::{PolicyConfig, PolicyError, View};
pub use probe::Probe;
pub use quic::EndpointError;
pub use server::{Config, ServedZone, Server, StartError};
