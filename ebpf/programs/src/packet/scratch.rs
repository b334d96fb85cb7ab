//! Memory beyond the stack, which is 512 octets: one packet at a time on each processor.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use mesonet_ebpf_abi::{Hop, PacketEvent, Place, Track, Tuple};

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What a packet needs in between.
pub struct Scratch {
    pub lookup: bpf_fib_lookup,
    pub route: Hop,
    pub track: Track,
    pub key: Tuple,
    pub ends: TunnelEnds,
}

/// Where a tunnel leads.
pub struct TunnelEnds {
    /// This node.
    pub source: [u32; 4],
    /// The endpoint on another one.
    pub endpoint: Place,
    /// Its number.
    pub number: u32,
}

/// The memory of this processor. A caller must not use a part that one of its callers uses.
#[inline(always)]
pub fn scratch() -> Result<*mut Scratch, PacketEvent> {
    SCRATCH.get_ptr_mut(0).ok_or(PacketEvent::NoFlow)
}
