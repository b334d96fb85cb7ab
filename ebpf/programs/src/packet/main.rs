//! Packet balancing: packets for virtual addresses that come in through an interface get an endpoint's address, and the
//! replies get the virtual one back.
//!
//! A flow's endpoint is looked up in a Maglev table once and then kept in a map of flows, one entry per direction: each
//! says what addresses and ports a packet gets. Everything that is not understood goes to the rest of the kernel as it
//! came: fragments, IP options, extension headers, VLANs, whatever is malformed.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic types")]

mod buffer;
mod context;
mod endpoints;
mod flows;
mod frame;
mod headers;
mod icmp;
mod older;
mod packet;
mod refusal;
mod rewrite;
mod route;
mod scratch;
mod tunnel;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{TcContext, XdpContext};
use mesonet_ebpf_abi::{NextProgram, PacketEvent};

use buffer::Buffer;
use frame::Frame;
use headers::Direction;

/// How often packets were not translated though they may have been meant to be.
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(PacketEvent::ALL.len() as u32, 0);

/// What to do with a packet: it leaves at once with the verdict of the helper that sends it, or [`Action::PASS`]. No enum,
/// because the compiler computes with what a variant does not have, which the verifier does not allow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Action(u32);

impl Action {
    /// The rest of the kernel goes on with it, translated or not.
    pub const PASS: Self = Self(u32::MAX);
    /// It goes through a tunnel to the endpoint's node.
    pub const ENCAPSULATE: Self = Self(u32::MAX - 1);
    /// It may have come through such a tunnel.
    pub const DECAPSULATE: Self = Self(u32::MAX - 2);
}

/// Octets before the IP header on an interface like Ethernet.
const ETHERNET: usize = 14;

/// Packets of the network card's driver, before the kernel makes anything of them.
#[xdp]
pub fn mesonet_xdp(context: XdpContext) -> u32 {
    match headers::balance(&Frame(context), Direction::In) {
        // Tunnels are tc's.
        Ok(Action::PASS | Action::ENCAPSULATE | Action::DECAPSULATE) => xdp_action::XDP_PASS,
        Ok(Action(verdict)) => verdict,
        // tc meets it next, which looks for other ports, and can answer.
        Err(PacketEvent::NoPort) => xdp_action::XDP_PASS,
        Err(PacketEvent::NoEndpoint) if refusal::has_room() => xdp_action::XDP_PASS,
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

/// Goes on with packets that are to leave through a tunnel, of an interface like Ethernet.
#[classifier]
pub fn mesonet_encapsulate(context: TcContext) -> i32 {
    tunnel::encapsulate(&Buffer::<ETHERNET>(context))
}

/// The same of an interface without link headers.
#[classifier]
pub fn mesonet_tunnel_encapsulate(context: TcContext) -> i32 {
    tunnel::encapsulate(&Buffer::<0>(context))
}

/// Goes on with packets that have come through a tunnel, of an interface like Ethernet.
#[classifier]
pub fn mesonet_decapsulate(context: TcContext) -> i32 {
    tunnel::decapsulate(&Buffer::<ETHERNET>(context))
}

/// The same of an interface without link headers.
#[classifier]
pub fn mesonet_tunnel_decapsulate(context: TcContext) -> i32 {
    tunnel::decapsulate(&Buffer::<0>(context))
}

/// Tells who has sent a packet why it reaches nobody, by an interface like Ethernet.
#[classifier]
pub fn mesonet_refuse(context: TcContext) -> i32 {
    refusal::tell(&Buffer::<ETHERNET>(context)).unwrap_or(TC_ACT_SHOT as i32)
}

/// The same by an interface without link headers.
#[classifier]
pub fn mesonet_tunnel_refuse(context: TcContext) -> i32 {
    refusal::tell(&Buffer::<0>(context)).unwrap_or(TC_ACT_SHOT as i32)
}

#[inline(always)]
fn finish<const LINK: usize>(packet: &Buffer<LINK>, direction: Direction) -> i32 {
    match headers::balance(packet, direction) {
        // Other programs of the interface have their turn.
        Ok(Action::PASS) => TC_ACT_UNSPEC,
        Ok(Action::ENCAPSULATE) => {
            tunnel::go_on(packet, NextProgram::Encapsulate);
            TC_ACT_SHOT as i32
        }
        Ok(Action::DECAPSULATE) => {
            tunnel::go_on(packet, NextProgram::Decapsulate);
            TC_ACT_UNSPEC
        }
        Ok(Action(verdict)) => verdict as i32,
        Err(event @ (PacketEvent::NoEndpoint | PacketEvent::TooLong)) => {
            count(event);
            let most = if event == PacketEvent::TooLong { route::longest() } else { 0 };
            refusal::refuse(packet, most)
        }
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
        PacketEvent::NoEndpoint
        | PacketEvent::NoPort
        | PacketEvent::NoFlow
        | PacketEvent::TooLong
        | PacketEvent::NoWay => false,
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
