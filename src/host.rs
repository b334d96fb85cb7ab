//! What the network daemon changes on its host, and takes back: an address on loopback, the resolver's configuration.
//!
//! Each change is a value that takes it back when it is dropped. What a process that was killed has left is found by
//! the notes in the daemon's directory, and taken over or taken back by the next start.

mod loopback;
mod resolv_conf;
mod resolved;
mod whole_file;

pub use loopback::LoopbackAddress;
pub use resolv_conf::ResolvConf;
pub use resolved::ResolvedDropIn;
