//! The way of a packet that this node forwards.

use core::ffi::c_void;
use core::mem::{size_of, zeroed};

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh};
use mesonet_ebpf_abi::{Difference, PacketEvent, Tuple};

use crate::packet::{Family, Packet, read, write};
use crate::scratch::scratch;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What the kernel's table of routes says.
pub struct Route {
    lookup: *mut Lookup,
    has_neighbour: bool,
}

impl Route {
    /// Asks for the way of a packet that came in through an interface.
    #[inline(always)]
    pub fn new(family: Family, tuple: &Tuple, interface: u32) -> Option<Self> {
        let scratch = scratch().ok()?;
        // SAFETY: there is one route at a time, and it is made of integers.
        let lookup = unsafe { &mut (*scratch).lookup };
        lookup.ifindex = interface;
        lookup.l4_protocol = tuple.protocol as u8;
        lookup.sport = tuple.source_port() as u16;
        lookup.dport = tuple.destination_port() as u16;
        lookup.__bindgen_anon_1.tot_len = 0;
        lookup.__bindgen_anon_2.flowinfo = 0;
        match family {
            Family::V4 => {
                lookup.family = AF_INET;
                lookup.__bindgen_anon_3.ipv4_src = tuple.from[3];
                lookup.__bindgen_anon_4.ipv4_dst = tuple.to[3];
            }
            Family::V6 => {
                lookup.family = AF_INET6;
                lookup.__bindgen_anon_3.ipv6_src = tuple.from;
                lookup.__bindgen_anon_4.ipv6_dst = tuple.to;
            }
        }
        Some(Self { lookup, has_neighbour: false })
    }

    #[inline(always)]
    fn lookup(&self) -> &Lookup {
        // SAFETY: it is this processor's, and there is one route at a time.
        unsafe { &*self.lookup }
    }

    /// Asks for a way that takes a packet of a length.
    #[inline(always)]
    pub fn set_length(&mut self, length: u32) {
        // SAFETY: as in `lookup`.
        unsafe { (*self.lookup).__bindgen_anon_1.tot_len = length as u16 };
    }

    /// Whether there is a way that leads out of this node.
    #[inline(always)]
    pub fn find(&mut self, context: *mut c_void) -> bool {
        // SAFETY: the context is this program's, and the kernel knows the structure by its size.
        let result = unsafe { bpf_fib_lookup(context, self.lookup, size_of::<Lookup>() as i32, 0) };
        self.has_neighbour = result == BPF_FIB_LKUP_RET_SUCCESS as i64;
        self.has_neighbour || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64
    }

    /// Whether the link address of the next hop is known.
    #[inline(always)]
    pub fn has_neighbour(&self) -> bool {
        self.has_neighbour
    }

    /// Has the kernel find the link address of the next hop first.
    #[inline(always)]
    pub fn redirect_to_neighbour(&self) -> i64 {
        // SAFETY: it is made of integers.
        let mut next: bpf_redir_neigh = unsafe { zeroed() };
        next.nh_family = u32::from(self.lookup().family);
        // SAFETY: both are as long, and the kernel has written the address of the next hop there.
        next.__bindgen_anon_1.ipv6_nh = unsafe { self.lookup().__bindgen_anon_4.ipv6_dst };
        // SAFETY: the kernel knows the structure by its size.
        unsafe { bpf_redirect_neigh(self.interface(), &raw mut next, size_of::<bpf_redir_neigh>() as i32, 0) }
    }

    /// The interface that it leads to.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.lookup().ifindex
    }

    /// Gives the packet the neighbour's address, and one hop less to live.
    #[inline(always)]
    pub fn address<P: Packet>(&self, packet: &P, family: Family) -> Result<(), PacketEvent> {
        match family {
            Family::V4 => {
                let word: u16 = read(packet, P::LINK + 8)?;
                let [hops, protocol] = word.to_ne_bytes();
                let fewer = u16::from_ne_bytes([hops.wrapping_sub(1), protocol]);
                let change = Difference::default().replace(word as u32, fewer as u32);
                let checksum: u16 = read(packet, P::LINK + 10)?;
                write(packet, P::LINK + 10, change.apply(checksum))?;
                write(packet, P::LINK + 8, fewer)?;
            }
            Family::V6 => {
                let hops: u8 = read(packet, P::LINK + 7)?;
                write(packet, P::LINK + 7, hops.wrapping_sub(1))?;
            }
        }
        if P::LINK > 0 && self.has_neighbour {
            write(packet, 0, self.lookup().dmac)?;
            write(packet, 6, self.lookup().smac)?;
        }
        Ok(())
    }
}

/// Whether a packet may be forwarded. One that has no hop left is the kernel's, which tells the sender.
#[inline(always)]
pub fn has_hops<P: Packet>(packet: &P, family: Family) -> Result<bool, PacketEvent> {
    let at = match family {
        Family::V4 => 8,
        Family::V6 => 7,
    };
    Ok(read::<P, u8>(packet, P::LINK + at)? > 1)
}
