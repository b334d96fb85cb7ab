//! View to services and endpoints, and the operations that make a data plane match.
//!
//! [`desired`] reads from a view what a service should be, [`touched`] says which services a delta may have changed,
//! [`plan`] turns the difference between a desired and an actual [`RouteTable`] into ordered [`Op`]s, and [`choose`]
//! picks the endpoint of a new connection, or a [`MaglevTable`] does. Executors make no decision of their own.
//!
//! The crate is pure: no clock, no randomness, no I/O. Randomness is a number that callers pass in.

#![forbid(unsafe_code)]

mod choice;
mod desired;
mod kernel;
mod maglev;
mod packet_rows;
mod packet_table;
mod plan;
mod route_table;

pub use choice::{chances, choose, choose_least};
pub use desired::{desired, touched};
pub use kernel::{Candidate, FoundMaps, KernelTable, MapWrite, shares};
pub use maglev::{MAGLEV_SLOTS, MaglevTable};
pub use mesonet_model::{Algorithm, ServicePolicy};
pub use packet_table::{PacketCandidate, PacketSpec, PacketTable, PacketTableError, PacketWrite};
pub use plan::{Op, plan};
pub use route_table::{EndpointId, EndpointSpec, RouteState, RouteTable, ServiceSpec};
