//! What is counted, exactly: on each processor by itself, and by single additions, since a program may be interrupted by
//! another one.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use mesonet_ebpf_abi::{Count, Load, Origin};

use crate::socket_fields::Socket;
use crate::{COUNTS, LOADS};

/// Adds to a field of what is counted.
macro_rules! add {
    ($count:ident, $field:ident, $more:expr) => {{
        let more: u64 = $more;
        // SAFETY: the pointer is to a value of the map, which is aligned to eight octets.
        unsafe { increase(&raw mut (*$count).$field, more) }
    }};
}

/// Only if the key is new.
const NO_EXIST: u64 = 1;

/// A connection or a flow of datagrams begins.
#[inline(always)]
pub fn count_begin(counter: u32) {
    if let Some(count) = count(counter) {
        add!(count, connections, 1);
    }
}

/// A connection counts as one that has ended.
#[inline(always)]
pub fn count_end(counter: u32) {
    if let Some(count) = count(counter) {
        add!(count, ended, 1);
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

/// A connection begins that endpoints are chosen by.
#[inline(always)]
pub fn add_load(counter: u32) {
    if LOADS.get_ptr_mut(&counter).is_none() {
        let _ = LOADS.insert(&counter, &Load::default(), NO_EXIST);
    }
    change_load(counter, 1);
}

/// A connection is closed, or tried anew. Where its endpoint has been gone for long, nobody counts any more.
#[inline(always)]
pub fn settle(origin: &Origin, socket: Socket, state: u32) {
    if origin.flags & Origin::TCP == 0 {
        return;
    }
    if let Some(count) = COUNTS.get_ptr_mut(&origin.counter) {
        let more = socket.end(state).count();
        add!(count, ended, more.ended);
        if more.failures != 0 {
            add!(count, failures, more.failures);
        }
        if more.resets != 0 {
            add!(count, resets, more.resets);
        }
        add!(count, bytes_out, more.bytes_out);
        add!(count, bytes_in, more.bytes_in);
        add!(count, packets_out, more.packets_out);
        add!(count, packets_in, more.packets_in);
    }
    if origin.flags & Origin::LOAD != 0 {
        // What is added makes it one less.
        change_load(origin.counter, u32::MAX);
    }
}

#[inline(always)]
fn change_load(counter: u32, more: u32) {
    if let Some(load) = LOADS.get_ptr_mut(&counter) {
        // SAFETY: a value of the map.
        unsafe { increase(&raw mut (*load).connections, more) };
    }
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
