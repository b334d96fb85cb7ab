//! Socket balancing: hooks of a cgroup that choose an endpoint once per connection or datagram flow.
//!
//! `connect` and `sendmsg` replace a virtual address by an endpoint's before the kernel looks for a route; `recvmsg`
//! and `getpeername` put the virtual one back, so that the client never sees another. Packets are not touched at all.
//! Every address that is not virtual passes unchanged.

#![no_std]
#![no_main]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock_addr, map};
use aya_ebpf::maps::{HashMap, LruHashMap, LruPerCpuHashMap};
use aya_ebpf::programs::SockAddrContext;
use mesonet_ebpf_abi::{
    COUNTERS_MAX, Count, FLOWS_MAX, FRONTENDS_MAX, Flow, Frontend, Member, Place, SLOTS_MAX, Service, Slot,
    SlotKey, choose_slot,
};

/// Reads a word of the context.
macro_rules! word {
    ($context:ident, $($field:tt)+) => {
        // SAFETY: the kernel allows reads of whole words; a volatile one is neither joined nor split.
        unsafe { (&raw const (*$context.sock_addr).$($field)+).read_volatile() }
    };
}

/// Goes on with the system call.
const PASS: i32 = 1;

/// Ends the system call with the error set.
const REFUSE: i32 = 0;

/// What a client gets from a service without endpoints, as from a host without a listener.
const ECONNREFUSED: i32 = 111;

/// Memory is only taken for what is there: most nodes have few services.
const NO_PREALLOC: u32 = 1;

/// How often a choice is tried anew if the service changes while it is made.
const ATTEMPTS: usize = 3;

/// Virtual addresses.
#[map]
static SERVICES: HashMap<Frontend, Service> = HashMap::with_max_entries(FRONTENDS_MAX, NO_PREALLOC);

/// Endpoints that take new connections.
#[map]
static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(SLOTS_MAX, NO_PREALLOC);

/// Endpoints that keep the flows they have.
#[map]
static MEMBERS: HashMap<Member, u32> = HashMap::with_max_entries(SLOTS_MAX, NO_PREALLOC);

/// From a socket and an endpoint to the virtual address that the client knows.
#[map]
static ORIGINS: LruHashMap<Flow, Place> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

/// From a socket and a virtual address to the endpoint of its datagrams.
#[map]
static FLOWS: LruHashMap<Flow, Slot> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

/// Connections by endpoint.
#[map]
static COUNTS: LruPerCpuHashMap<u32, Count> = LruPerCpuHashMap::with_max_entries(COUNTERS_MAX, 0);

/// What to do with an address.
enum Verdict {
    /// It is not virtual, or has been replaced.
    Pass,
    /// It is virtual and nobody is behind it.
    Refuse,
}

#[cgroup_sock_addr(connect4)]
pub fn mesonet_connect4(context: SockAddrContext) -> i32 {
    finish(connect(&context, Family::V4))
}

#[cgroup_sock_addr(connect6)]
pub fn mesonet_connect6(context: SockAddrContext) -> i32 {
    finish(connect(&context, Family::V6))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn mesonet_sendmsg4(context: SockAddrContext) -> i32 {
    finish(send(&context, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn mesonet_sendmsg6(context: SockAddrContext) -> i32 {
    finish(send(&context, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn mesonet_recvmsg4(context: SockAddrContext) -> i32 {
    restore(&context, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mesonet_recvmsg6(context: SockAddrContext) -> i32 {
    restore(&context, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn mesonet_getpeername4(context: SockAddrContext) -> i32 {
    restore(&context, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesonet_getpeername6(context: SockAddrContext) -> i32 {
    restore(&context, Family::V6)
}

/// The family of the socket's hook, which says what fields of the context are valid.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// Chooses the endpoint of a connection.
#[inline(always)]
fn connect(context: &SockAddrContext, family: Family) -> Verdict {
    let frontend = frontend(context, family);
    // SAFETY: values are copied at once; one that is replaced meanwhile is found by its generation.
    let Some(service) = (unsafe { SERVICES.get(&frontend) }).copied() else { return Verdict::Pass };
    let Some(slot) = choose(&frontend, service) else { return Verdict::Refuse };
    send_to(context, family, &frontend.place, &slot)
}

/// Chooses the endpoint of a datagram flow, or finds the one chosen before.
#[inline(always)]
fn send(context: &SockAddrContext, family: Family) -> Verdict {
    let frontend = frontend(context, family);
    // SAFETY: as in `connect`.
    let Some(service) = (unsafe { SERVICES.get(&frontend) }).copied() else { return Verdict::Pass };
    let flow = Flow { socket: socket(context), place: frontend.place };
    // SAFETY: as in `connect`.
    if let Some(slot) = (unsafe { FLOWS.get(&flow) }).copied() {
        let member = Member { service: service.id, place: slot.place };
        // SAFETY: only its presence counts.
        if unsafe { MEMBERS.get(&member) }.is_some() {
            set_place(context, family, &slot.place);
            remember(context, &slot.place, &frontend.place);
            return Verdict::Pass;
        }
    }
    let Some(slot) = choose(&frontend, service) else { return Verdict::Refuse };
    // A full map forgets its oldest flow; if even that fails, the next datagram chooses anew.
    let _ = FLOWS.insert(&flow, &slot, 0);
    send_to(context, family, &frontend.place, &slot)
}

/// Draws a slot. A service that changes meanwhile is looked up anew.
#[inline(always)]
fn choose(frontend: &Frontend, mut service: Service) -> Option<Slot> {
    for _ in 0..ATTEMPTS {
        if service.slots == 0 {
            return None;
        }
        if let Some(slot) = draw(service) {
            return Some(slot);
        }
        // SAFETY: as in `connect`.
        service = unsafe { SERVICES.get(frontend) }.copied()?;
    }
    None
}

#[inline(always)]
fn draw(service: Service) -> Option<Slot> {
    let key = |index| SlotKey { service: service.id, generation: service.generation, index };
    // SAFETY: the helper has no preconditions.
    let (first, second) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let mut drawn = None;
    let index = choose_slot(service.slots, first, second, |index| {
        // SAFETY: slots are written before the service that names their generation, and never changed.
        let slot = unsafe { SLOTS.get(&key(index)) }.copied()?;
        drawn = Some((index, slot));
        Some(slot.share)
    })?;
    match drawn {
        Some((at, slot)) if at == index => Some(slot),
        // SAFETY: as above.
        _ => unsafe { SLOTS.get(&key(index)) }.copied(),
    }
}

/// Puts the endpoint's address in the place of the virtual one.
#[inline(always)]
fn send_to(context: &SockAddrContext, family: Family, origin: &Place, slot: &Slot) -> Verdict {
    if matches!(family, Family::V4) && !slot.place.is_ipv4() {
        return Verdict::Refuse;
    }
    remember(context, &slot.place, origin);
    count(slot.counter);
    set_place(context, family, &slot.place);
    Verdict::Pass
}

#[inline(always)]
fn remember(context: &SockAddrContext, endpoint: &Place, origin: &Place) {
    let flow = Flow { socket: socket(context), place: *endpoint };
    // A full map forgets its oldest flow; if even that fails, the client sees the endpoint's address.
    let _ = ORIGINS.insert(&flow, origin, 0);
}

#[inline(always)]
fn count(counter: u32) {
    match COUNTS.get_ptr_mut(&counter) {
        // SAFETY: the value is this processor's own, and hooks of one processor do not interrupt each other.
        Some(count) => unsafe { (*count).connections += 1 },
        // As above: a full map forgets, and the user side reads often.
        None => drop(COUNTS.insert(&counter, &Count { connections: 1 }, 0)),
    }
}

/// Puts the virtual address back.
#[inline(always)]
fn restore(context: &SockAddrContext, family: Family) -> i32 {
    let flow = Flow { socket: socket(context), place: place(context, family) };
    // SAFETY: as in `connect`.
    if let Some(origin) = unsafe { ORIGINS.get(&flow) }.copied() {
        set_place(context, family, &origin);
    }
    PASS
}

#[inline(always)]
fn finish(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => PASS,
        Verdict::Refuse => {
            // SAFETY: the helper takes any error number.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            REFUSE
        }
    }
}

#[inline(always)]
fn frontend(context: &SockAddrContext, family: Family) -> Frontend {
    Frontend { place: place(context, family), protocol: word!(context, protocol) }
}

#[inline(always)]
fn socket(context: &SockAddrContext) -> [u32; 2] {
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// The address and port that the system call is about.
#[inline(always)]
fn place(context: &SockAddrContext, family: Family) -> Place {
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

/// Changes the address and port that the system call is about.
#[inline(always)]
fn set_place(context: &SockAddrContext, family: Family, place: &Place) {
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

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
