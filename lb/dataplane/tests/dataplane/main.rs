//! The data planes as their users see them: a view goes in, traffic goes through.

mod addresses;
mod clients;
mod ebpf;
mod fixture;
mod http;
mod memory;
mod policies;
mod tcp;
mod udp;
