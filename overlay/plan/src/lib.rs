//! What the overlay decides, without touching anything.
//!
//! * [`plan`] says whom a node has tunnels to and which way packets go, from the view; [`difference`], what is to be done.
//! * [`outward`] says what becomes of the source of packets that leave for elsewhere.
//! * [`NodeKeys`] says when a node's key changes, and when the one before is dropped.
//! * [`PathMtu`] finds the largest packet that reaches a peer, by probing (RFC 8899).
//! * [`PrefixTable`] says whom an address belongs to: where a packet goes, and whether a peer may send from there.

#![forbid(unsafe_code)]

mod keys;
mod nodes;
mod outward;
mod path_mtu;
mod prefix_table;

pub use keys::{Dated, KeySituation, KeyStep, NodeKeys, age_max_of};
pub use nodes::{Difference, NodeOverlay, PlannedPeer, PlannedRoute, RouteScope, difference, plan};
pub use outward::{Outward, outward};
pub use path_mtu::{PathMtu, Probe, ProbeSizes, Reach};
pub use prefix_table::{Prefix, PrefixError, PrefixTable};
