//! The way of a packet that this node forwards.

use core::ffi::c_void;
use core::mem::{size_of, zeroed};

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as Lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_jiffies64, bpf_redirect_neigh};
use mesonet_ebpf_abi::{Difference, Hop, PacketEvent, Tuple};

use crate::headers::{Direction, Header};
use crate::packet::{Family, Packet, octets};
use crate::scratch::scratch;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// How long a flow's way is not asked for again, in ticks of the kernel's clock: from 25 to 250 milliseconds.
pub const TICKS: u32 = 25;

/// Where a packet goes from here: to the rest of the kernel, if there is no interface; to a neighbour whose link address
/// is not known, if there is no length. With a length and no interface, it is too long for the way.
pub type Route = Hop;

/// What the kernel's table of routes says.
pub struct Question(*mut Lookup);

impl Question {
    /// About a packet of such a length that came in through an interface. Because of the length, the kernel tells what the
    /// route takes rather than the interface.
    #[inline(always)]
    pub fn new(family: Family, tuple: &Tuple, interface: u32, length: u32) -> Option<Self> {
        let scratch = scratch().ok()?;
        // SAFETY: there is one route at a time, and it is made of integers.
        let lookup = unsafe { &mut (*scratch).lookup };
        lookup.ifindex = interface;
        lookup.l4_protocol = tuple.protocol as u8;
        lookup.sport = tuple.source_port() as u16;
        lookup.dport = tuple.destination_port() as u16;
        lookup.__bindgen_anon_1.tot_len = length as u16;
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
        Some(Self(lookup))
    }

    /// The answer. Returns whether other packets of the flow go the same way for now.
    #[inline(always)]
    pub fn ask(self, context: *mut c_void, route: &mut Route) -> bool {
        // SAFETY: the context is this program's, and the kernel knows the structure by its size.
        let result = unsafe { bpf_fib_lookup(context, self.0, size_of::<Lookup>() as i32, 0) };
        // SAFETY: it is this processor's, and there is one route at a time.
        let lookup = unsafe { &*self.0 };
        route.interface = lookup.ifindex;
        if result == BPF_FIB_LKUP_RET_SUCCESS as i64 {
            // SAFETY: both are numbers.
            route.mtu = unsafe { lookup.__bindgen_anon_1.mtu_result } as u32;
            let addresses = route.addresses.as_mut_ptr().cast::<[u16; 3]>();
            // SAFETY: an address is three halves of a word, and two of them are three words.
            unsafe {
                *addresses = *lookup.dmac.as_ptr().cast();
                *addresses.add(1) = *lookup.smac.as_ptr().cast();
            }
            return true;
        }
        route.mtu = 0;
        if result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
            return false;
        }
        route.interface = 0;
        if result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64 {
            // SAFETY: as above.
            route.mtu = unsafe { lookup.__bindgen_anon_1.mtu_result } as u32;
        }
        // Another packet of the flow may be short enough.
        result > 0 && result != BPF_FIB_LKUP_RET_FRAG_NEEDED as i64
    }
}

/// The way of a packet that gets such addresses and has such a length. The kernel is asked if it is not known any more of the flow.
#[inline(always)]
pub fn find<'a, P: Packet>(
    packet: &P,
    header: &Header,
    new: &Tuple,
    length: u32,
    known: &'a mut Hop,
) -> Result<&'a Route, PacketEvent> {
    // SAFETY: there is one route at a time.
    let route = unsafe { &mut (*scratch()?).route };
    (route.interface, route.mtu) = (0, 0);
    // One that has no hop left is the kernel's, which tells the sender.
    if header.direction != Direction::In || header.hops <= 1 {
        return Ok(route);
    }
    let now = ticks();
    let is_short = length <= known.mtu || known.interface == 0;
    if now.wrapping_sub(known.since) < TICKS && known.place == P::HOP && is_short {
        return Ok(known);
    }
    if packet.way(header.family, new, length, route) {
        // Another processor may read it meanwhile. What it reads is wrong at most if the way has just changed.
        known.since = now;
        known.place = P::HOP;
        known.interface = route.interface;
        known.mtu = route.mtu;
        known.addresses = route.addresses;
    }
    Ok(route)
}

/// The longest packet that the way takes that the kernel was asked for last.
#[inline(always)]
pub fn longest() -> u32 {
    // SAFETY: there is one route at a time.
    scratch().map_or(0, |scratch| unsafe { (*scratch).route.mtu })
}

/// Has the kernel find the link address of the next hop first. Only of the way that was asked for last.
#[inline(always)]
pub fn redirect_to_neighbour(route: &Route) -> i64 {
    let Ok(scratch) = scratch() else { return 0 };
    // SAFETY: there is one route at a time.
    let lookup = unsafe { &(*scratch).lookup };
    // SAFETY: it is made of integers.
    let mut next: bpf_redir_neigh = unsafe { zeroed() };
    next.nh_family = u32::from(lookup.family);
    // SAFETY: both are as long, and the kernel has written the address of the next hop there.
    next.__bindgen_anon_1.ipv6_nh = unsafe { lookup.__bindgen_anon_4.ipv6_dst };
    // SAFETY: the kernel knows the structure by its size.
    unsafe { bpf_redirect_neigh(route.interface, &raw mut next, size_of::<bpf_redir_neigh>() as i32, 0) }
}

/// Gives the packet the neighbour's address, and one hop less to live.
#[inline(always)]
pub fn address<P: Packet>(route: &Route, packet: &P, family: Family) -> Result<(), PacketEvent> {
    let start = octets(packet, 0, P::LINK + 12)?;
    // SAFETY: all that is read and written is within what was found to be there. BPF has no alignment.
    unsafe {
        let header = start.add(P::LINK);
        match family {
            Family::V4 => {
                let word = header.add(8).cast::<u16>();
                let [hops, protocol] = (*word).to_ne_bytes();
                let fewer = u16::from_ne_bytes([hops.wrapping_sub(1), protocol]);
                let change = Difference::default().replace(*word as u32, fewer as u32);
                let checksum = header.add(10).cast::<u16>();
                *checksum = change.apply(*checksum);
                *word = fewer;
            }
            Family::V6 => *header.add(7) = (*header.add(7)).wrapping_sub(1),
        }
        if P::LINK > 0 && route.mtu != 0 {
            *start.cast::<[u32; 3]>() = route.addresses;
        }
    }
    Ok(())
}

/// The kernel's clock, which turns 100 to 1,000 times a second.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper has no arguments. The lower half is enough for differences.
    unsafe { bpf_jiffies64() as u32 }
}
