//! Socket balancing: hooks of a cgroup that choose an endpoint once per connection or datagram flow.
//!
//! `connect` and `sendmsg` replace a virtual address by an endpoint's before the kernel looks for a route; `recvmsg`
//! and `getpeername` put the virtual one back, so that the client never sees another. Packets are not touched at all:
//! what is counted of a TCP connection is read when its socket is closed. Every address that is not virtual passes
//! unchanged.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic types")]

mod connections;
mod ledger;
mod sock_addr;
mod socket_fields;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, map};
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuHashMap};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use mesonet_ebpf_abi::{
    AFFINITIES_MAX, Affinity, AffinityKey, COUNTERS_MAX, Count, FLOWS_MAX, FRONTENDS_MAX, Flow, Frontend,
    Load, MAGLEV_CHUNK, MAGLEV_CHUNKS_MAX, MaglevChunk, MaglevKey, Member, MemberState, Origin, Place,
    SLOTS_MAX, Service, Slot, SlotKey, TCP, choose_slot, hash_slot, netns_hash, refusals,
};

use sock_addr::{Family, place, set_place};
use socket_fields::Socket;

/// The state of a TCP socket that is about to connect (net/tcp_states.h).
const CLOSE: u32 = 7;

/// Goes on with the system call.
const PASS: i32 = 1;

/// Ends the system call with the error set.
const REFUSE: i32 = 0;

/// What a client gets from a service without endpoints, as from a host without a listener.
const ECONNREFUSED: i32 = 111;

/// Memory is only taken for what is there: most nodes have few services.
pub const NO_PREALLOC: u32 = 1;

/// How often a choice is tried anew if the service changes while it is made.
const ATTEMPTS: usize = 3;

const SECOND_NS: u64 = 1_000_000_000;

/// Virtual addresses.
#[map]
static SERVICES: HashMap<Frontend, Service> = HashMap::with_max_entries(FRONTENDS_MAX, NO_PREALLOC);

/// Endpoints that take new connections.
#[map]
static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(SLOTS_MAX, NO_PREALLOC);

/// For services that choose by the client, which slot a hash leads to.
#[map]
static MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::with_max_entries(MAGLEV_CHUNKS_MAX, NO_PREALLOC);

/// Endpoints that keep the flows they have.
#[map]
static MEMBERS: HashMap<Member, MemberState> = HashMap::with_max_entries(SLOTS_MAX, NO_PREALLOC);

/// Endpoints that clients stay with.
#[map]
static AFFINITIES: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(AFFINITIES_MAX, 0);

/// From a socket and the endpoint of its datagrams to the virtual address that the client knows.
#[map]
static ORIGINS: LruHashMap<Flow, Origin> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

/// From a socket and a virtual address to the endpoint of its datagrams.
#[map]
static FLOWS: LruHashMap<Flow, Slot> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

/// What is counted, by endpoint and by service.
#[map]
static COUNTS: PerCpuHashMap<u32, Count> = PerCpuHashMap::with_max_entries(COUNTERS_MAX, NO_PREALLOC);

/// Open connections by endpoint, of services that choose by them.
#[map]
static LOADS: HashMap<u32, Load> = HashMap::with_max_entries(COUNTERS_MAX, NO_PREALLOC);

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
    restore(&context, Family::V4, false)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mesonet_recvmsg6(context: SockAddrContext) -> i32 {
    restore(&context, Family::V6, false)
}

#[cgroup_sock_addr(getpeername4)]
pub fn mesonet_getpeername4(context: SockAddrContext) -> i32 {
    restore(&context, Family::V4, true)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesonet_getpeername6(context: SockAddrContext) -> i32 {
    restore(&context, Family::V6, true)
}

#[cgroup_sock(sock_release)]
pub fn mesonet_release(context: SockContext) -> i32 {
    release(&context);
    // The kernel goes on in any case.
    PASS
}

/// Chooses the endpoint of a connection.
#[inline(always)]
fn connect(context: &SockAddrContext, family: Family) -> Verdict {
    let frontend = frontend(context, family);
    // SAFETY: values are copied at once; one that is replaced meanwhile is found by its generation.
    let Some(service) = (unsafe { SERVICES.get(&frontend) }).copied() else { return Verdict::Pass };
    let netns = netns(context);
    let Some((id, slot)) = choose(&frontend, service, netns) else { return refuse(service.id) };
    if !is_reachable(family, &slot) {
        return refuse(id);
    }
    let is_tcp = frontend.protocol == TCP as u32;
    let is_load = is_tcp && service.algorithm == Service::LEAST_CONNECTIONS;
    let flags = if is_tcp { Origin::TCP } else { 0 } | if is_load { Origin::LOAD } else { 0 };
    let origin = Origin { place: frontend.place, counter: slot.counter, flags, netns };
    let is_known = remember(context, &slot, &origin);
    ledger::count_begin(slot.counter);
    if !is_known {
        // Nobody will know when it ends.
        ledger::count_end(slot.counter);
    } else if is_load {
        ledger::add_load(slot.counter);
    }
    set_place(context, family, &slot.place);
    Verdict::Pass
}

/// Chooses the endpoint of a datagram flow, or finds the one chosen before.
#[inline(always)]
fn send(context: &SockAddrContext, family: Family) -> Verdict {
    let frontend = frontend(context, family);
    // SAFETY: as in `connect`.
    let Some(service) = (unsafe { SERVICES.get(&frontend) }).copied() else { return Verdict::Pass };
    let socket = halves(socket(context));
    let flow = Flow { socket, place: frontend.place };
    let netns = netns(context);
    // SAFETY: as in `connect`.
    let known = (unsafe { FLOWS.get(&flow) }).copied();
    let stays = known.and_then(|slot| Some((slot, member(service.id, &slot.place)?)));
    let slot = match stays {
        // Another one may have come to its place, which has a counter of its own.
        Some((slot, state)) => Slot { counter: state.counter, ..slot },
        None => {
            let Some((id, slot)) = choose(&frontend, service, netns) else { return refuse(service.id) };
            if !is_reachable(family, &slot) || is_mapped(family, &slot) {
                return refuse(id);
            }
            // A full map forgets its oldest flow; if even that fails, the next datagram chooses anew.
            let _ = FLOWS.insert(&flow, &slot, 0);
            ledger::count_begin(slot.counter);
            slot
        }
    };
    ledger::count_datagram(slot.counter);
    let origin = Origin { place: frontend.place, counter: slot.counter, flags: 0, netns };
    // As above; if that fails, the client sees the endpoint's address.
    let _ = ORIGINS.insert(&Flow { socket, place: slot.place }, &origin, 0);
    set_place(context, family, &slot.place);
    Verdict::Pass
}

/// Chooses a slot. A service that changes meanwhile is looked up anew. Returns the number of the service, too.
#[inline(always)]
fn choose(frontend: &Frontend, mut service: Service, netns: [u32; 2]) -> Option<(u32, Slot)> {
    for _ in 0..ATTEMPTS {
        if service.slots == 0 {
            return None;
        }
        if service.affinity_seconds > 0
            && let Some(slot) = stay(service, netns)
        {
            return Some((service.id, slot));
        }
        if let Some(slot) = pick(service, netns) {
            if service.affinity_seconds > 0 {
                keep(service, netns, &slot);
            }
            return Some((service.id, slot));
        }
        // SAFETY: as in `connect`.
        service = unsafe { SERVICES.get(frontend) }.copied()?;
    }
    None
}

/// Chooses a slot as the service's policy says; nothing if the service has changed meanwhile.
#[inline(always)]
fn pick(service: Service, netns: [u32; 2]) -> Option<Slot> {
    match service.algorithm {
        Service::MAGLEV => by_client(service, netns),
        Service::LEAST_CONNECTIONS => {
            let first = draw(service)?;
            let second = draw(service)?;
            Some(if second.has_fewer(load(&second), &first, load(&first)) { second } else { first })
        }
        _ => draw(service),
    }
}

/// Draws a slot by weight.
#[inline(always)]
fn draw(service: Service) -> Option<Slot> {
    if service.slots == 1 {
        return slot(service, 0);
    }
    // SAFETY: the helper has no preconditions.
    let (first, second) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let mut drawn = None;
    let index = choose_slot(service.slots, first, second, |index| {
        let slot = slot(service, index)?;
        drawn = Some((index, slot));
        Some(slot.share)
    })?;
    match drawn {
        Some((at, slot)) if at == index => Some(slot),
        _ => slot(service, index),
    }
}

/// The slot of all connections from a network namespace.
#[inline(always)]
fn by_client(service: Service, netns: [u32; 2]) -> Option<Slot> {
    let point = hash_slot(netns_hash(netns), service.points);
    let key = MaglevKey { service: service.id, generation: service.generation, chunk: point / MAGLEV_CHUNK };
    let chunk = MAGLEV.get_ptr(&key)?;
    // SAFETY: the pointer is to a value of the map, and the remainder is within it.
    let index =
        unsafe { (&raw const (*chunk).pairs).cast::<u16>().add((point % MAGLEV_CHUNK) as usize).read() };
    slot(service, index as u32)
}

#[inline(always)]
fn slot(service: Service, index: u32) -> Option<Slot> {
    let key = SlotKey { service: service.id, generation: service.generation, index };
    // SAFETY: slots are written before the service that names their generation, and never changed.
    unsafe { SLOTS.get(&key) }.copied()
}

#[inline(always)]
fn load(slot: &Slot) -> u32 {
    // SAFETY: one word, read at once.
    (unsafe { LOADS.get(&slot.counter) }).map_or(0, |load| load.connections)
}

/// The endpoint that the client had last, if it may stay with it.
#[inline(always)]
fn stay(service: Service, netns: [u32; 2]) -> Option<Slot> {
    let affinity = AFFINITIES.get_ptr_mut(&AffinityKey { service: service.id, netns })?;
    // SAFETY: a value of the map; one that is replaced meanwhile is as good.
    let known = unsafe { affinity.read() };
    let now = seconds();
    let state = member(service.id, &known.slot.place)?;
    if now.wrapping_sub(known.used) > service.affinity_seconds || !state.keeps_clients() {
        return None;
    }
    // SAFETY: as above; whoever writes last was here last.
    unsafe { (&raw mut (*affinity).used).write(now) };
    // As in `send`.
    Some(Slot { counter: state.counter, ..known.slot })
}

#[inline(always)]
fn keep(service: Service, netns: [u32; 2], slot: &Slot) {
    let affinity = Affinity { slot: *slot, used: seconds() };
    // A full map forgets the client that came least recently.
    let _ = AFFINITIES.insert(&AffinityKey { service: service.id, netns }, &affinity, 0);
}

/// Since the machine's start; a word is enough for 136 years.
#[inline(always)]
fn seconds() -> u32 {
    // SAFETY: the helper has no preconditions.
    (unsafe { bpf_ktime_get_ns() } / SECOND_NS) as u32
}

/// The state of an endpoint that is ready or drains.
#[inline(always)]
fn member(service: u32, place: &Place) -> Option<MemberState> {
    // SAFETY: as in `connect`.
    unsafe { MEMBERS.get(&Member { service, place: *place }) }.copied()
}

/// Whether a socket of the family can talk to the endpoint.
#[inline(always)]
fn is_reachable(family: Family, slot: &Slot) -> bool {
    matches!(family, Family::V6) || slot.place.is_ipv4()
}

/// An IPv4 endpoint behind an IPv6 address, which the kernel takes for connections but not for single datagrams.
#[inline(always)]
fn is_mapped(family: Family, slot: &Slot) -> bool {
    matches!(family, Family::V6) && slot.place.is_ipv4()
}

/// Remembers where a socket goes that connects. An attempt that it has made before is over.
#[inline(always)]
fn remember(context: &SockAddrContext, slot: &Slot, origin: &Origin) -> bool {
    let socket = socket(context);
    if let Some(connection) = connections::find(socket) {
        // SAFETY: this socket's, which is locked by the system call.
        unsafe {
            let before = (&raw const (*connection).origin).read();
            ledger::settle(&before, Socket::of_call(context), CLOSE);
            connections::set(connection, &slot.place, origin);
        }
        return true;
    }
    connections::insert(socket, &slot.place, origin)
}

/// Counts what a socket has done that is closed now, and forgets it.
#[inline(always)]
fn release(context: &SockContext) {
    let kernels = Socket::of_release(context);
    let socket = kernels.known_cookie();
    if socket == 0 {
        return;
    }
    if let Some(connection) = connections::find(socket) {
        // SAFETY: this socket's; the kernel allows a read of the whole field.
        let (origin, state) = unsafe {
            ((&raw const (*connection).origin).read(), (&raw const (*context.sock).state).read_volatile())
        };
        ledger::settle(&origin, kernels, state);
        connections::remove(socket);
    }
}

/// Puts the virtual address back. Datagrams may come from others than the one that the socket is connected to.
#[inline(always)]
fn restore(context: &SockAddrContext, family: Family, is_peer: bool) -> i32 {
    let socket = Socket::of_call(context).known_cookie();
    // Most are those that servers have accepted.
    if socket == 0 {
        return PASS;
    }
    let place = place(context, family);
    let connected = || {
        let connection = connections::find(socket)?;
        // SAFETY: this socket's; all of it is copied.
        let (endpoint, origin) = unsafe {
            ((&raw const (*connection).endpoint).read(), (&raw const (*connection).origin.place).read())
        };
        (endpoint == place).then_some(origin)
    };
    let flow = Flow { socket: halves(socket), place };
    // SAFETY: as in `connect`.
    let sent = || unsafe { ORIGINS.get(&flow) }.map(|origin| origin.place);
    let origin = if is_peer { connected().or_else(sent) } else { sent().or_else(connected) };
    if let Some(origin) = origin {
        set_place(context, family, &origin);
    }
    PASS
}

#[inline(always)]
fn refuse(service: u32) -> Verdict {
    ledger::count_failure(refusals(service));
    Verdict::Refuse
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
    Frontend { place: place(context, family), protocol: sock_addr::protocol(context) }
}

#[inline(always)]
fn socket(context: &SockAddrContext) -> u64 {
    // SAFETY: the context is this program's.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// The network namespace of the socket, which stands for the client: its address is not chosen yet.
#[inline(always)]
fn netns(context: &SockAddrContext) -> [u32; 2] {
    // SAFETY: the context is this program's.
    halves(unsafe { bpf_get_netns_cookie(context.as_ptr()) })
}

/// Low word first.
#[inline(always)]
fn halves(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
