//! A packet at an interface's hook (tc).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_head, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use mesonet_ebpf_abi::{Hop, LOOPBACK_INTERFACE, PacketEvent, TCP, Tuple};

use crate::context::context_word;
use crate::packet::{ChecksumChange, Family, Packet, read, write};
use crate::route::{Question, Route, redirect_to_neighbour};
use crate::{Action, ETHERNET};

/// Says that addresses of IPv6 have changed, whose header has no checksum that makes up for it (Linux 6.16).
const BPF_F_IPV6: u64 = 1 << 7;

/// With so many octets of link headers.
pub struct Buffer<const LINK: usize>(pub TcContext);

/// Reads a word of the context.
macro_rules! word {
    ($buffer:ident, $field:ident) => {
        context_word!($buffer.0.skb.skb, __sk_buff, $field)
    };
}

impl<const LINK: usize> Packet for Buffer<LINK> {
    const LINK: usize = LINK;
    const IS_EARLY: bool = false;
    const HOP: u32 = Hop::TC;

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (word!(self, data) as usize, word!(self, data_end) as usize)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        word!(self, ifindex) as u32
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (word!(self, len) as u32).wrapping_sub(LINK as u32)
    }

    #[inline(always)]
    fn segments(&self, family: Family, protocol: u32) -> u32 {
        let (segments, size) = (word!(self, gso_segs) as u32, self.segment());
        if segments != 0 {
            return segments;
        }
        if size == 0 {
            return 1;
        }
        // The driver of a network card, or a virtual machine, has made the bundle and has not said of how many.
        let headers = family.header() as u32 + self.transport(family, protocol);
        self.length().saturating_sub(headers).div_ceil(size)
    }

    #[inline(always)]
    fn longest(&self, family: Family, protocol: u32) -> u32 {
        if self.segment() == 0 {
            return self.length();
        }
        self.segment() + family.header() as u32 + self.transport(family, protocol)
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        word!(self, vlan_present) != 0
    }

    #[inline(always)]
    fn pull(&self, octets: usize) {
        let (start, end) = self.bounds();
        let length = word!(self, len) as u32;
        let wanted = if length < octets as u32 { length } else { octets as u32 };
        if end - start < wanted as usize {
            // SAFETY: the context is this program's. If it fails, what is missing is found to be missing.
            unsafe { bpf_skb_pull_data(self.0.skb.skb, wanted) };
        }
    }

    #[inline(always)]
    fn change_checksum(&self, change: &ChecksumChange) -> Result<(), PacketEvent> {
        let optional = if change.is_optional { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let family = match change.family {
            Family::V4 => 0,
            Family::V6 => BPF_F_IPV6,
        };
        let pseudo = optional | BPF_F_PSEUDO_HDR as u64;
        let replace = |difference: u32, flags: u64| {
            // SAFETY: the helper checks its arguments.
            unsafe { bpf_l4_csum_replace(self.0.skb.skb, change.at as u32, 0, difference as u64, flags) }
        };
        if replace(change.addresses.bits(), pseudo | family) != 0
            && replace(change.addresses.bits(), pseudo) != 0
        {
            return Err(PacketEvent::Malformed);
        }
        match replace(change.ports.bits(), optional) {
            0 => Ok(()),
            _ => Err(PacketEvent::Malformed),
        }
    }

    #[inline(always)]
    fn way(&self, family: Family, tuple: &Tuple, length: u32, route: &mut Route) -> bool {
        if self.interface() == LOOPBACK_INTERFACE {
            return false;
        }
        let Some(question) = Question::new(family, tuple, self.interface(), length) else { return false };
        question.ask(self.0.as_ptr(), route)
    }

    #[inline(always)]
    fn send(&self, family: Family, way: &Route) -> Action {
        if LINK == 0 && self.push_link(family, way).is_err() {
            return Action(TC_ACT_SHOT as u32);
        }
        let verdict = if way.mtu != 0 {
            // SAFETY: the helper takes any number.
            unsafe { bpf_redirect(way.interface, 0) }
        } else {
            redirect_to_neighbour(way)
        };
        Action(verdict as u32)
    }
}

impl<const LINK: usize> Buffer<LINK> {
    /// Octets of the header of TCP or UDP.
    #[inline(always)]
    fn transport(&self, family: Family, protocol: u32) -> u32 {
        match protocol == TCP as u32 {
            true => {
                let offset: u8 = read(self, LINK + family.header() + 12).unwrap_or_default();
                (offset >> 4) as u32 * 4
            }
            false => 8,
        }
    }

    /// Octets of the payload of each packet that a bundle consists of; none if it is no bundle.
    #[inline(always)]
    pub fn segment(&self) -> u32 {
        word!(self, gso_size) as u32
    }

    /// Gives a packet link headers, which helpers expect whatever kind of interface it comes from and goes to.
    #[inline(always)]
    fn push_link(&self, family: Family, way: &Route) -> Result<(), PacketEvent> {
        // SAFETY: the helper checks its arguments.
        if unsafe { bpf_skb_change_head(self.0.skb.skb, ETHERNET as u32, 0) } != 0 {
            return Err(PacketEvent::Malformed);
        }
        if way.mtu != 0 {
            write(self, 0, way.addresses)?;
        }
        write(self, ETHERNET - 2, family.kind())
    }
}
