//! Data planes that balance VIPs.
//!
//! [`LoadBalancer`] follows the view: it plans the difference with `mesonet-lb-plan` and has a [`Dataplane`] apply it.
//! [`Proxy`] is the data plane that needs no rights: it accepts at the virtual addresses and copies bytes.
//! [`Ebpf`] is the one that costs nothing per packet: hooks in the kernel choose an endpoint when a socket connects.
//! [`PacketBalancer`] stands beside any of them: it gives packets from outside an endpoint's address.
//! [`Memory`] only keeps the table.
//!
//! What is decided here is only what needs the moment: whether a connection attempt succeeded, and what to do if not.

mod balancer;
mod bpf_call;
mod busy;
mod dataplane;
mod ebpf;
mod endpoint_metrics;
mod inspect;
mod ledger;
mod listening;
mod local_route;
mod mapped_array;
mod memory;
mod metrics;
mod packet;
mod pinning;
mod pins;
mod proxy;
mod proxy_beside;
mod silence;
mod tracked_table;
mod word_map;

pub use balancer::{LoadBalancer, Missing};
pub use dataplane::Dataplane;
pub use ebpf::{Ebpf, EbpfError, EbpfSettings, KernelTypesError, cleanup, remove_hooks};
pub use inspect::{
    Carrier, Connection, Datapath, Explained, Inspector, Question, Routes, ServiceRoutes, inspection,
};
pub use memory::Memory;
pub use metrics::Metrics;
pub use packet::{
    PacketAnswer, PacketBalancer, PacketError, PacketHook, PacketMode, PacketQuestion, PacketRun,
    PacketSettings,
};
pub use pinning::{KernelHold, PinningError};
pub use proxy::Proxy;
