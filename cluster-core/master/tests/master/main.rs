//! Scenarios of a whole master on virtual time.

mod cluster;
mod drains;
mod lifecycle;
mod offers;
mod random_script;
mod recovery;
mod vips;
