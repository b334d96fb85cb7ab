//! Packet balancing: packets for virtual addresses that come in through an interface get an endpoint's address, and the
//! replies get the virtual one back.
//!
//! A flow's endpoint is looked up in a Maglev table once and then kept in a map of flows, one entry per direction: each
//! says what addresses and ports a packet gets. Everything that is not understood goes to the rest of the kernel as it
//! came: fragments, IP options, extension headers, VLANs, whatever is malformed.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod buffer;
mod context;
mod endpoints;
mod flows;
mod frame;
mod headers;
mod icmp;
mod packet;
mod rewrite;
mod route;
mod scratch;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{TcContext, XdpContext};
use mesonet_ebpf_abi::PacketEvent;

use buffer::Buffer;
use frame::Frame;
use headers::Direction;
use packet::Packet;

/// How often packets were not translated though they may have been meant to be.
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(PacketEvent::ALL.len() as u32, 0);

/// What to do with a packet.
pub enum Action {
    /// The rest of the kernel goes on with it, translated or not.
    Pass,
    /// It leaves at once, with this verdict of the helper that sends it.
    Send(u32),
    /// It goes nowhere.
    Drop,
}

/// Octets before the IP header on an interface like Ethernet.
const ETHERNET: usize = 14;

/// Packets of the network card's driver, before the kernel makes anything of them.
#[xdp]
pub fn mesonet_xdp(context: XdpContext) -> u32 {
    match headers::balance(&Frame(context), Direction::In) {
        Ok(Action::Pass) => xdp_action::XDP_PASS,
        Ok(Action::Send(verdict)) => verdict,
        Ok(Action::Drop) => xdp_action::XDP_DROP,
        Err(event) => {
            count(event);
            if is_passed(event) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
        }
    }
}

/// Packets that come in through an interface like Ethernet.
#[classifier]
pub fn mesonet_in(context: TcContext) -> i32 {
    finish(&Buffer::<ETHERNET>(context), Direction::In)
}

/// Packets that go out through an interface like Ethernet: replies of endpoints.
#[classifier]
pub fn mesonet_out(context: TcContext) -> i32 {
    finish(&Buffer::<ETHERNET>(context), Direction::Out)
}

/// Packets that come in through an interface without link headers, such as a tunnel.
#[classifier]
pub fn mesonet_tunnel_in(context: TcContext) -> i32 {
    finish(&Buffer::<0>(context), Direction::In)
}

/// Packets that go out through an interface without link headers.
#[classifier]
pub fn mesonet_tunnel_out(context: TcContext) -> i32 {
    finish(&Buffer::<0>(context), Direction::Out)
}

#[inline(always)]
fn finish<P: Packet>(packet: &P, direction: Direction) -> i32 {
    match headers::balance(packet, direction) {
        // Other programs of the interface have their turn.
        Ok(Action::Pass) => TC_ACT_UNSPEC,
        Ok(Action::Send(verdict)) => verdict as i32,
        Ok(Action::Drop) => TC_ACT_SHOT as i32,
        Err(event) => {
            count(event);
            if is_passed(event) { TC_ACT_UNSPEC } else { TC_ACT_SHOT as i32 }
        }
    }
}

/// Whether the rest of the kernel may make something of such a packet. A service's packet that has no endpoint must not
/// go on: where the node forwards, it would come back.
#[inline(always)]
fn is_passed(event: PacketEvent) -> bool {
    match event {
        PacketEvent::Malformed | PacketEvent::Fragment | PacketEvent::Options => true,
        PacketEvent::NoEndpoint | PacketEvent::NoPort | PacketEvent::NoFlow => false,
    }
}

#[inline(always)]
fn count(event: PacketEvent) {
    if let Some(counter) = EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: the value is this processor's own, and programs of one processor do not interrupt each other.
        unsafe { *counter += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
