//! Scenarios of a whole master on virtual time.

mod cluster;
mod drains;
mod failures;
mod lifecycle;
mod networks;
mod node_drain;
mod offers;
mod policies;
mod random_script;
mod recovery;
mod reference;
mod tunnels;
mod vips;
