//! An encrypted tunnel between nodes: the protocol of WireGuard on a data path that moves many packets at a time.
//!
//! [`Tunnel`] is all there is to use. It speaks with any implementation of WireGuard.
//!
//! # Why its own data path
//!
//! What makes a tunnel in user space slow is what it does once per packet: a call of the system, a passage through the
//! kernel's stack, a lock, a copy, a wake-up of another thread. So nothing is done per packet here but encryption:
//! the kernel hands over streams in pieces of up to 256 KiB (TSO, USO), which are cut and encrypted where they are sent from,
//! and leave as one message that the kernel cuts apart (`UDP_SEGMENT`), in most cases only in the other node's
//! kernel, or never. The other way, datagrams come joined (`UDP_GRO`), are decrypted where they are, and are handed to
//! the kernel joined again.
//!
//! # Why its own protocol core
//!
//! boringtun's `Tunn` keeps the keys of its sessions to itself, wants to be borrowed exclusively for every packet and
//! copies each, knows no limit of messages and reads the clock. On that, several cores cannot work for one peer, and
//! nothing can be encrypted in place. So the handshake is that of the crate `snow`, the Noise framework itself, with
//! the keys of which [`cipher`] encrypts packets; what WireGuard has besides Noise (timers, cookies, the replay window) is
//! decided here, in code that is given the time.
//!
//! # Threads
//!
//! * A worker for each queue of the device: [`ingress`] and [`egress`], alternately. It waits for both. Ending it
//!   between two batches loses nothing.
//! * One control thread: [`control`] decides about handshakes and timers. Workers tell it by a bounded queue.

mod checksum;
mod cipher;
mod claim;
mod control;
mod cookies;
mod cut;
mod device;
mod drops;
mod egress;
mod entry;
mod features;
mod flood;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ingress;
mod interfaces;
mod ip;
mod join;
#[cfg(test)]
mod join_tests;
mod key;
mod message;
mod noise;
#[cfg(any(test, feature = "fuzzing"))]
mod pair;
mod peer;
mod peer_control;
mod probe;
#[cfg(test)]
mod protocol_tests;
mod replay;
#[cfg(test)]
mod sample;
mod send_batch;
mod session;
mod settings;
#[cfg(test)]
mod silence_tests;
mod socket;
mod stats;
mod tables;
mod too_big;
mod tunnel;
mod vnet;

pub use device::{DeviceError, QUEUES_MAX};
pub use drops::Drop;
pub use interfaces::is_in_use;
pub use key::{KEY_LENGTH, KeyError, PrivateKey, PublicKey};
pub use settings::{
    Limits, MTU_DEFAULT, Offloads, OwnKeys, PeerSettings, Peers, TunnelSettings, default_workers,
};
pub use stats::{PeerStats, TunnelStats};
pub use tunnel::{OpenError, Tunnel};
