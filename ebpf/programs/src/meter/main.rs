//! For measurements only: a source of packets and a sink for them.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Octets of a frame.
const LENGTH: usize = 64;

/// Where a frame of IPv4 has the source port.
const PORT: usize = 14 + 20;

/// Frames differ in so many source ports.
const FLOWS: u64 = 256;

/// The interface that frames are sent through.
#[map]
static TARGET: Array<u32> = Array::with_max_entries(1, 0);

/// The frame that is sent.
#[map]
static FRAME: Array<[u64; LENGTH / 8]> = Array::with_max_entries(1, 0);

/// How many were sent.
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// How many have arrived.
#[map]
static RECEIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Makes whatever comes a frame to be sent: the kernel hands out the same memory again and again.
#[xdp]
pub fn mesonet_source(context: XdpContext) -> u32 {
    send(&context).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Counts what comes and lets go of it.
#[xdp]
pub fn mesonet_sink(_: XdpContext) -> u32 {
    count(&RECEIVED);
    xdp_action::XDP_DROP
}

/// The same for what is a packet of the kernel's stack.
#[classifier]
pub fn mesonet_sink_tc(_: TcContext) -> i32 {
    count(&RECEIVED);
    TC_ACT_SHOT as i32
}

#[inline(always)]
fn send(context: &XdpContext) -> Option<u32> {
    let (start, end) = (context.data(), context.data_end());
    if start + LENGTH > end {
        return None;
    }
    let frame = FRAME.get(0)?;
    // The remainder fits.
    let port = ((count(&SENT)? % FLOWS) as u16 + 1024).to_be();
    // SAFETY: both are within the frame, and BPF has no alignment.
    unsafe {
        let to = start as *mut u64;
        let mut at = 0;
        while at < LENGTH / 8 {
            to.add(at).write_volatile(frame[at]);
            at += 1;
        }
        *((start + PORT) as *mut u16) = port;
    }
    // SAFETY: the helper takes any number.
    Some(unsafe { bpf_redirect(*TARGET.get(0)?, 0) } as u32)
}

#[inline(always)]
fn count(counter: &PerCpuArray<u64>) -> Option<u64> {
    let count = counter.get_ptr_mut(0)?;
    // SAFETY: the value is this processor's own, and programs of one processor do not interrupt each other.
    unsafe {
        *count += 1;
        Some(*count)
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
