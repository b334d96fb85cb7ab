//! Which endpoint takes a new flow.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use mesonet_ebpf_abi::{
    FRONTENDS_MAX, Frontend, PACKET_ENDPOINTS_MAX, PacketCount, PacketEndpoint, PacketEvent, PacketMember,
    PacketService, Place, ROW_SLOTS, ROWS_MAX, Row, Tuple, flow_hash, hash_slot, source_hash,
};

/// Memory is only taken for what is there: most nodes have few services.
const NO_PREALLOC: u32 = 1;

/// How often a choice is tried anew if the service changes while it is made.
const ATTEMPTS: usize = 3;

/// Virtual addresses.
#[map]
static SERVICES: HashMap<Frontend, PacketService> = HashMap::with_max_entries(FRONTENDS_MAX, NO_PREALLOC);

/// The table of choices. Each service has some rows of it.
#[map]
static TABLE: Array<Row> = Array::with_max_entries(ROWS_MAX, 0);

/// Endpoints by number.
#[map]
static ENDPOINTS: Array<PacketEndpoint> = Array::with_max_entries(PACKET_ENDPOINTS_MAX, 0);

/// The endpoints of services, by their numbers.
#[map]
static MEMBERS: HashMap<PacketMember, u32> = HashMap::with_max_entries(PACKET_ENDPOINTS_MAX, NO_PREALLOC);

/// What is counted of them.
#[map]
static COUNTS: PerCpuArray<PacketCount> = PerCpuArray::with_max_entries(PACKET_ENDPOINTS_MAX, 0);

/// The endpoint that takes a new flow; nothing if its destination is not virtual.
#[inline(always)]
pub fn choose(tuple: &Tuple) -> Result<Option<(u32, &'static PacketEndpoint)>, PacketEvent> {
    let frontend = Frontend { place: tuple.destination(), protocol: tuple.protocol };
    for _ in 0..ATTEMPTS {
        // SAFETY: values are copied at once; one that is replaced meanwhile is found by its endpoint's service.
        let Some(service) = (unsafe { SERVICES.get(&frontend) }).copied() else { return Ok(None) };
        if service.slots == 0 {
            return Err(PacketEvent::NoEndpoint);
        }
        let is_by_source = service.flags & PacketService::BY_SOURCE != 0;
        let client = tuple.source();
        let hash = if is_by_source {
            source_hash(&client)
        } else {
            flow_hash(&client, &frontend.place, tuple.protocol)
        };
        let slot = hash_slot(hash, service.slots);
        let row = TABLE.get(service.row + slot / ROW_SLOTS).ok_or(PacketEvent::NoEndpoint)?;
        let number = row.endpoints[(slot % ROW_SLOTS) as usize];
        let endpoint = endpoint(number).ok_or(PacketEvent::NoEndpoint)?;
        if endpoint.service == service.id && endpoint.flags & PacketEndpoint::READY != 0 {
            return Ok(Some((number, endpoint)));
        }
    }
    // The client tries again.
    Err(PacketEvent::NoFlow)
}

/// The endpoint of this node that a packet for a virtual address is for, if it is told by a tunnel.
#[inline(always)]
pub fn here(tuple: &Tuple, place: Place) -> Option<(u32, &'static PacketEndpoint)> {
    const ELSEWHERE: u32 = PacketEndpoint::DIRECT | PacketEndpoint::MASQUERADE;
    let frontend = Frontend { place: tuple.destination(), protocol: tuple.protocol };
    // SAFETY: the value is copied at once, as below.
    let service = unsafe { SERVICES.get(&frontend) }.copied()?;
    let member = PacketMember { service: service.id, place };
    // SAFETY: as above.
    let number = unsafe { MEMBERS.get(&member) }.copied()?;
    let endpoint = endpoint(number)?;
    let is_here = endpoint.flags & PacketEndpoint::PRESENT != 0 && endpoint.flags & ELSEWHERE == 0;
    (is_here && endpoint.service == service.id && endpoint.place == place).then_some((number, endpoint))
}

/// The endpoint with a number.
#[inline(always)]
pub fn endpoint(number: u32) -> Option<&'static PacketEndpoint> {
    ENDPOINTS.get(number)
}

/// The endpoint's counters.
#[inline(always)]
pub fn count(number: u32, change: impl FnOnce(&mut PacketCount)) {
    if let Some(count) = COUNTS.get_ptr_mut(number) {
        // SAFETY: the value is this processor's own, and programs of one processor do not interrupt each other.
        change(unsafe { &mut *count });
    }
}
