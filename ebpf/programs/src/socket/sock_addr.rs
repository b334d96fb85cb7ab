//! The address that a system call is about.

use aya_ebpf::programs::SockAddrContext;
use mesonet_ebpf_abi::Place;

/// Reads a word of the context.
macro_rules! word {
    ($context:ident, $($field:tt)+) => {
        // SAFETY: the kernel allows reads of whole words; a volatile one is neither joined nor split.
        unsafe { (&raw const (*$context.sock_addr).$($field)+).read_volatile() }
    };
}

/// The family of the socket's hook, which says what fields of the context are valid.
#[derive(Clone, Copy)]
pub enum Family {
    V4,
    V6,
}

/// The number of the protocol.
#[inline(always)]
pub fn protocol(context: &SockAddrContext) -> u32 {
    word!(context, protocol)
}

/// The address and port.
#[inline(always)]
pub fn place(context: &SockAddrContext, family: Family) -> Place {
    let port = word!(context, user_port) & 0xffff;
    match family {
        Family::V4 => Place::ipv4(word!(context, user_ip4), port),
        Family::V6 => Place {
            address: [
                word!(context, user_ip6[0]),
                word!(context, user_ip6[1]),
                word!(context, user_ip6[2]),
                word!(context, user_ip6[3]),
            ],
            port,
        },
    }
}

/// Changes the address and port.
#[inline(always)]
pub fn set_place(context: &SockAddrContext, family: Family, place: &Place) {
    let address = context.sock_addr;
    // SAFETY: the kernel allows writes of whole words to these fields; volatile ones are neither joined nor split.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*address).user_ip4).write_volatile(place.address[3]),
            Family::V6 => {
                (&raw mut (*address).user_ip6[0]).write_volatile(place.address[0]);
                (&raw mut (*address).user_ip6[1]).write_volatile(place.address[1]);
                (&raw mut (*address).user_ip6[2]).write_volatile(place.address[2]);
                (&raw mut (*address).user_ip6[3]).write_volatile(place.address[3]);
            }
        }
        (&raw mut (*address).user_port).write_volatile(place.port);
    }
}
