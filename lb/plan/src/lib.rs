//! View to services and endpoints, and the operations that make a data plane match.
//!
//! [`NodePlanner`] follows views and says what each service should be on one node: [`weigh`] turns policies and health
//! into one weight per endpoint, [`desired`] makes a [`ServiceSpec`] of them. [`explain`] says where a connection goes.
//! [`plan`] turns the difference between a desired and an actual [`RouteTable`] into ordered [`Op`]s, and [`choose`]
//! picks the endpoint of a new connection, or a [`MaglevTable`] does. Executors make no decision of their own.
//!
//! The crate is pure: no clock, no randomness, no I/O. Randomness is a number that callers pass in.

#![forbid(unsafe_code)]

mod choice;
mod desired;
mod explain;
mod kernel;
mod maglev;
mod node_planner;
mod outliers;
mod packet_rows;
mod packet_table;
mod plan;
mod route_table;
mod sorted_map;
mod starting;
mod weights;

pub use choice::{chances, choose, choose_least};
pub use desired::{desired, lack_of_address, touched};
pub use explain::{Choice, KnownBy, explain};
pub use kernel::{Candidate, Entries, FoundMaps, KernelMap, KernelTable, MapWrite, NoRoom, shares};
pub use maglev::{MAGLEV_SLOTS, MaglevTable};
pub use mesonet_model::{Algorithm, ServicePolicy};
pub use node_planner::NodePlanner;
pub use outliers::{EndpointCount, Outliers};
pub use packet_table::{PacketCandidate, PacketSpec, PacketTable, PacketTableError, PacketWrite};
pub use plan::{Op, plan};
pub use route_table::{EndpointId, EndpointSpec, RouteState, RouteTable, ServiceSpec};
pub use sorted_map::SortedMap;
pub use starting::{Deviation, Shares, Starting};
pub use weights::{Observed, Reach, Standing, Vantage, Weighed, WeighedEndpoint, weigh};
