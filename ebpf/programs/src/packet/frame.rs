//! A packet at a driver's hook (XDP).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::map;
use aya_ebpf::maps::DevMapHash;
use aya_ebpf::programs::XdpContext;
use mesonet_ebpf_abi::{DEVICES_MAX, Hop, LOOPBACK_INTERFACE, PacketEvent, Tuple};

use crate::context::context_word;
use crate::packet::{ChecksumChange, Family, Packet, at};
use crate::route::{Question, Route};
use crate::{Action, ETHERNET};

/// Interfaces whose drivers take packets from here.
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(DEVICES_MAX, 0);

pub struct Frame(pub XdpContext);

impl Packet for Frame {
    const LINK: usize = ETHERNET;
    const IS_EARLY: bool = true;
    const HOP: u32 = Hop::XDP;

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (
            context_word!(self.0.ctx, xdp_md, data) as usize,
            context_word!(self.0.ctx, xdp_md, data_end) as usize,
        )
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        context_word!(self.0.ctx, xdp_md, ingress_ifindex) as u32
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        let (start, end) = self.bounds();
        (end - start - Self::LINK) as u32
    }

    #[inline(always)]
    fn segments(&self, _: Family, _: u32) -> u32 {
        1
    }

    #[inline(always)]
    fn longest(&self, _: Family, _: u32) -> u32 {
        self.length()
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // It would not be of a type that is looked at.
        false
    }

    #[inline(always)]
    fn pull(&self, _: usize) {}

    #[inline(always)]
    fn change_checksum(&self, change: &ChecksumChange) -> Result<(), PacketEvent> {
        let pointer: *mut u16 = at(self, change.at)?;
        // SAFETY: within bounds.
        let checksum = unsafe { *pointer };
        if change.is_optional && checksum == 0 {
            return Ok(());
        }
        let changed = change.ports.add(change.addresses.bits()).apply(checksum);
        // Zero would mean that there is none; this is its other form.
        let changed = if change.is_optional && changed == 0 { !0 } else { changed };
        // SAFETY: as above.
        unsafe { *pointer = changed };
        Ok(())
    }

    #[inline(always)]
    fn way(&self, family: Family, tuple: &Tuple, length: u32, route: &mut Route) -> bool {
        if self.interface() == LOOPBACK_INTERFACE {
            return false;
        }
        let Some(question) = Question::new(family, tuple, self.interface(), length) else { return false };
        let is_lasting = question.ask(self.0.as_ptr(), route);
        if route.mtu == 0 || DEVICES.get_ifindex(route.interface).is_none() {
            route.interface = 0;
        }
        is_lasting
    }

    #[inline(always)]
    fn send(&self, _: Family, way: &Route) -> Action {
        Action(DEVICES.redirect(way.interface, 0).unwrap_or(xdp_action::XDP_DROP))
    }
}
