//! What is counted, exactly: on each processor by itself, and by single additions, since a state may change in an
//! interrupt in the middle of a hook.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use mesonet_ebpf_abi::{Count, Flow, Load, Origin, Place};

use crate::{COUNTS, LOADS, ORIGINS, halves};

/// Reads a field of the context.
macro_rules! field {
    ($context:ident, $($field:tt)+) => {
        // SAFETY: the kernel allows reads of whole fields; a volatile one is neither joined nor split.
        unsafe { (&raw const (*$context.ops).$($field)+).read_volatile() }
    };
}

/// Adds to a field of what is counted.
macro_rules! add {
    ($count:ident, $field:ident, $more:expr) => {{
        let more: u64 = $more;
        // SAFETY: the pointer is to a value of the map, which is aligned to eight octets.
        unsafe { increase(&raw mut (*$count).$field, more) }
    }};
}

/// States of a TCP connection (net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// Only if the key is new.
const NO_EXIST: u64 = 1;

const AF_INET: u32 = 2;

/// A flow of datagrams begins.
#[inline(always)]
pub fn count_flow(counter: u32) {
    if let Some(count) = count(counter) {
        add!(count, connections, 1);
    }
}

/// A datagram goes to an endpoint.
#[inline(always)]
pub fn count_datagram(counter: u32) {
    if let Some(count) = count(counter) {
        add!(count, packets_out, 1);
    }
}

/// A client is refused.
#[inline(always)]
pub fn count_failure(counter: u32) {
    if let Some(count) = count(counter) {
        add!(count, failures, 1);
    }
}

/// A connection is about to begin, or its state is about to change.
#[inline(always)]
pub fn observe(context: &SockOpsContext) {
    match field!(context, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begin(context),
        BPF_SOCK_OPS_STATE_CB => change(context),
        _ => {}
    }
}

#[inline(always)]
fn begin(context: &SockOpsContext) {
    // SAFETY: values are copied at once.
    let Some(origin) = (unsafe { ORIGINS.get(&flow(context)) }).copied() else { return };
    let flags = field!(context, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the context is this program's.
    if unsafe { bpf_sock_ops_cb_flags_set(context.ops, flags as i32) } != 0 {
        return;
    }
    count_flow(origin.counter);
    if origin.flags & Origin::LOAD != 0
        && let Some(load) = load(origin.counter)
    {
        // SAFETY: a value of the map.
        unsafe { increase(load, 1) };
    }
}

#[inline(always)]
fn change(context: &SockOpsContext) {
    let (old, new) = (field!(context, __bindgen_anon_1.args[0]), field!(context, __bindgen_anon_1.args[1]));
    if new != CLOSE && new != CLOSE_WAIT {
        return;
    }
    let flow = flow(context);
    // SAFETY: values are copied at once.
    let Some(origin) = (unsafe { ORIGINS.get(&flow) }).copied() else { return };
    if origin.flags & Origin::UNCOUNTED != 0 {
        return;
    }
    let Some(count) = count(origin.counter) else { return };
    // The endpoint's end comes first, or both at once.
    if new == CLOSE_WAIT || (old != CLOSE_WAIT && old != LAST_ACK) {
        add!(count, ended, 1);
        if origin.flags & Origin::LOAD != 0
            && let Some(load) = load(origin.counter)
        {
            // SAFETY: a value of the map. What is added makes it one less.
            unsafe { increase(load, u32::MAX) };
        }
    }
    if new == CLOSE_WAIT {
        return;
    }
    match old {
        SYN_SENT => add!(count, failures, 1),
        ESTABLISHED => add!(count, resets, 1),
        _ => {}
    }
    if old != SYN_SENT {
        // TCP counts each end of a connection, and the client's beginning, as an octet.
        let sent = 1 + matches!(old, FIN_WAIT2 | LAST_ACK | CLOSING) as u64;
        let received = matches!(old, CLOSE_WAIT | LAST_ACK | CLOSING) as u64;
        add!(count, bytes_out, field!(context, bytes_acked).saturating_sub(sent));
        add!(count, bytes_in, field!(context, bytes_received).saturating_sub(received));
    }
    add!(count, packets_out, field!(context, segs_out) as u64);
    add!(count, packets_in, field!(context, segs_in) as u64);
    let _ = ORIGINS.remove(&flow);
}

/// Adds in one step, whatever else happens on any processor. The target has no atomic types, only the instruction.
///
/// # Safety
/// The number must be there, aligned, and written by nobody in another way.
#[inline(always)]
unsafe fn increase<T: Copy>(number: *mut T, more: T) {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(number, more) };
}

/// The socket and its endpoint.
#[inline(always)]
fn flow(context: &SockOpsContext) -> Flow {
    // SAFETY: the context is this program's.
    let socket = halves(unsafe { bpf_get_socket_cookie(context.as_ptr()) });
    // All are read, and one is taken: a read at an address that depends on the family is refused by the verifier.
    let ipv4 = field!(context, remote_ip4);
    let ipv6 = [
        field!(context, remote_ip6[0]),
        field!(context, remote_ip6[1]),
        field!(context, remote_ip6[2]),
        field!(context, remote_ip6[3]),
    ];
    // In network byte order, in the upper half.
    let port = field!(context, remote_port) >> 16;
    let place = match field!(context, family) {
        AF_INET => Place::ipv4(ipv4, port),
        _ => Place { address: ipv6, port },
    };
    Flow { socket, place }
}

/// Where to count, made when first needed.
#[inline(always)]
fn count(counter: u32) -> Option<*mut Count> {
    if let Some(count) = COUNTS.get_ptr_mut(&counter) {
        return Some(count);
    }
    // Another processor may have made it.
    let _ = COUNTS.insert(&counter, &Count::default(), NO_EXIST);
    COUNTS.get_ptr_mut(&counter)
}

#[inline(always)]
fn load(counter: u32) -> Option<*mut u32> {
    let load = match LOADS.get_ptr_mut(&counter) {
        Some(load) => load,
        None => {
            let _ = LOADS.insert(&counter, &Load::default(), NO_EXIST);
            LOADS.get_ptr_mut(&counter)?
        }
    };
    // SAFETY: a value of the map has this field.
    Some(unsafe { &raw mut (*load).connections })
}
