//! What is remembered of sockets that are connected to endpoints, until they are closed.
//!
//! A socket has a position in an array, which nobody else looks at unless their numbers are far apart. The few that meet
//! somebody there are in a map.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use mesonet_ebpf_abi::{CONNECTIONS_NEAR, Connection, FLOWS_MAX, Origin, Place};

use crate::NO_PREALLOC;

/// The user side maps the array into its memory.
const MMAPABLE: u32 = 1 << 10;

/// By the last bits of sockets' cookies.
#[map]
static CONNECTIONS: Array<Connection> = Array::with_max_entries(CONNECTIONS_NEAR, MMAPABLE);

/// Those whose position another one has, by sockets' cookies.
#[map]
static MORE_CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(FLOWS_MAX, NO_PREALLOC);

/// How many there are in that map, so that it is not searched in vain. It may be one too many while one comes or goes.
#[map]
static MORE_COUNT: Array<u64> = Array::with_max_entries(1, 0);

/// What is known of a socket.
#[inline(always)]
pub fn find(socket: u64) -> Option<*mut Connection> {
    let near = near(socket)?;
    // SAFETY: a value of the map, whose first word is written at once.
    if unsafe { (&raw const (*near).socket).read_volatile() } == socket {
        return Some(near);
    }
    // SAFETY: one word, read at once.
    if unsafe { MORE_COUNT.get_ptr(0)?.read_volatile() } == 0 {
        return None;
    }
    MORE_CONNECTIONS.get_ptr_mut(&socket)
}

/// Remembers a socket of which nothing is known. If there is no room for it, the client sees the endpoint's address.
#[inline(always)]
pub fn insert(socket: u64, endpoint: &Place, origin: &Origin) -> bool {
    let Some(near) = near(socket) else { return false };
    // SAFETY: a value of the map, aligned to eight octets. The target has no atomic types, only the instruction.
    let (_, is_free) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(
            &raw mut (*near).socket,
            0,
            socket,
        )
    };
    if is_free {
        // SAFETY: the position is this socket's.
        unsafe { set(near, endpoint, origin) };
        return true;
    }
    change_count(1);
    let connection = Connection { socket, endpoint: *endpoint, origin: *origin };
    let is_known = MORE_CONNECTIONS.insert(&socket, &connection, 0).is_ok();
    if !is_known {
        change_count(u64::MAX);
    }
    is_known
}

/// Changes what is known of a socket.
///
/// # Safety
/// It must be the socket's, which is used by nobody else meanwhile.
#[inline(always)]
pub unsafe fn set(connection: *mut Connection, endpoint: &Place, origin: &Origin) {
    // SAFETY: the caller's.
    unsafe {
        (&raw mut (*connection).endpoint).write(*endpoint);
        (&raw mut (*connection).origin).write(*origin);
    }
}

/// Forgets a socket.
#[inline(always)]
pub fn remove(socket: u64) {
    let Some(near) = near(socket) else { return };
    // SAFETY: as in `find`. Who finds a zero may take the position.
    unsafe {
        let owner = &raw mut (*near).socket;
        if owner.read_volatile() == socket {
            owner.write_volatile(0);
            return;
        }
    }
    if MORE_CONNECTIONS.remove(&socket).is_ok() {
        // One less.
        change_count(u64::MAX);
    }
}

#[inline(always)]
fn change_count(more: u64) {
    if let Some(count) = MORE_COUNT.get_ptr_mut(0) {
        // SAFETY: a value of the map, changed in no other way.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, more) };
    }
}

#[inline(always)]
fn near(socket: u64) -> Option<*mut Connection> {
    CONNECTIONS.get_ptr_mut(socket as u32 % CONNECTIONS_NEAR)
}
