//! The flows that have an endpoint.

use core::intrinsics::{AtomicOrdering, atomic_or};
use core::mem::offset_of;

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use mesonet_ebpf_abi::{
    Hop, LOOPBACK_INTERFACE, MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, PACKET_FLOWS_MAX, PacketEndpoint,
    PacketEvent, Place, Track, Tuple, UDP, flow_hash, hash_slot,
};

use crate::Action;
use crate::endpoints;
use crate::headers::{Direction, Segment};
use crate::older;
use crate::packet::{Family, Packet, own_length};
use crate::rewrite;
use crate::route::{TICKS, ticks};
use crate::scratch::scratch;

/// What addresses and ports the packets of a flow get, one entry per direction.
#[map]
static FLOWS: LruHashMap<Tuple, Track> = LruHashMap::with_max_entries(PACKET_FLOWS_MAX, 0);

/// Fails if there is such an entry.
const ONLY_NEW: u64 = 1;

/// How many ports are tried for a client that the node stands for.
const PORT_ATTEMPTS: u32 = 16;

/// A step from port to port that meets every one of them, since their number is no multiple of it.
const PORT_STEP: u32 = 1_009;

/// How many of those that are taken are looked at.
const RELEASE_ATTEMPTS: u32 = 4;

/// How long flows must have been silent before others may have their port, in ticks of the kernel's clock: 5 to 50
/// seconds, and some quarters of an hour at least.
const SILENCE_OF_DATAGRAMS: u32 = 5_000;
const SILENCE_OF_CONNECTIONS: u32 = 1_000_000;

/// What becomes of a packet of a flow.
struct Decision {
    /// The addresses and ports that it gets, and the way.
    track: &'static mut Track,
    /// The endpoint that it counts for; none if that is gone.
    endpoint: Option<u32>,
    is_reply: bool,
}

/// Gives a packet of a flow the addresses that it has to have, and begins flows to virtual addresses.
#[inline(always)]
pub fn translate<P: Packet>(packet: &P, segment: &Segment) -> Result<Action, PacketEvent> {
    let Some(decision) = decide(packet, segment)? else { return Ok(Action::PASS) };
    let counted = decision.endpoint.filter(|_| packet.interface() != LOOPBACK_INTERFACE);
    let Some(action) = rewrite::apply(packet, segment, decision.track, counted)? else {
        return Ok(Action::PASS);
    };
    if let Some(endpoint) = counted
        && segment.ends()
    {
        note_end(segment, &decision, endpoint);
    }
    Ok(action)
}

#[inline(always)]
fn decide<P: Packet>(packet: &P, segment: &Segment) -> Result<Option<Decision>, PacketEvent> {
    let direction = segment.header.direction;
    if let Some(track) = find(&segment.tuple) {
        let endpoint = endpoints::endpoint(track.endpoint);
        let current = endpoint.filter(|each| each.stamp == track.stamp && each.flags != 0);
        let is_reply = track.direction == Track::TO_CLIENT;
        let goes_on = is_reply || current.is_some_and(|endpoint| goes_on(segment, track, endpoint));
        let is_whole = goes_on && (is_reply || has_way_back(packet, segment, track));
        if goes_on && !is_whole && P::IS_EARLY {
            // Another program sees to it.
            return Ok(None);
        }
        if is_whole {
            // What an endpoint that is gone has sent still tells its client of the end.
            let endpoint = current.map(|_| track.endpoint);
            let is_meant = is_reply || direction == Direction::In;
            return Ok(is_meant.then(|| Decision { track, endpoint, is_reply }));
        }
        if direction == Direction::In {
            forget(packet, &segment.tuple, track);
        }
    }
    match direction {
        Direction::In => begin(packet, segment),
        Direction::Out => Ok(None),
    }
}

/// What becomes of the packets with such addresses and ports.
#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<&'static mut Track> {
    // SAFETY: entries are not freed while a program runs; one that is used anew meanwhile belongs to the flow that was
    // unused for the longest time.
    FLOWS.get_ptr_mut(tuple).map(|track| unsafe { &mut *track })
}

/// Whether a packet belongs to the connection that the entry was made for. A client may use its port again; while an
/// endpoint drains it takes no new connections, but those that another node has sent to it.
#[inline(always)]
fn goes_on(segment: &Segment, track: &Track, endpoint: &PacketEndpoint) -> bool {
    let takes_none = endpoint.flags & PacketEndpoint::READY == 0 && track.seen & Track::TUNNELLED == 0;
    let is_anew = track.seen & Track::OVER != 0 || takes_none;
    !(segment.begins() && is_anew)
}

/// Whether the answers to a request find their way, too: the kernel may have forgotten it, since it forgets entries one by
/// one. Looked at as often as the request's way, so that both entries count as used; what is not there is noted again, unless
/// another flow has got the port meanwhile.
#[inline(always)]
fn has_way_back<P: Packet>(packet: &P, segment: &Segment, track: &Track) -> bool {
    let is_known = track.direction == Track::DIRECT || ticks().wrapping_sub(track.hop.since) < TICKS;
    if is_known || segment.resets() || packet.interface() == LOOPBACK_INTERFACE {
        return true;
    }
    let Ok(scratch) = scratch() else { return true };
    // SAFETY: nothing else uses these parts.
    let (key, reply) = unsafe { (&mut (*scratch).key, &mut (*scratch).track) };
    *key = track.tuple.flip();
    match find(key) {
        Some(found) => return answers(found, &segment.tuple),
        None if P::IS_EARLY => return false,
        None => {}
    }
    *reply = Track { tuple: segment.tuple.flip(), seen: 0, direction: Track::TO_CLIENT, ..*track };
    FLOWS.insert(&*key, &*reply, ONLY_NEW).is_ok()
}

/// Whether packets with such a key are answers to those of a client.
#[inline(always)]
fn is_answer(key: &Tuple, request: &Tuple) -> bool {
    find(key).is_some_and(|reply| answers(reply, request))
}

#[inline(always)]
fn answers(reply: &Track, request: &Tuple) -> bool {
    let Tuple { from, to, ports, .. } = reply.tuple;
    ports == request.ports.rotate_left(16) && to == request.from && from == request.to
}

/// A connection is over when both sides have ended it or one has reset it.
#[inline(always)]
fn note_end(segment: &Segment, decision: &Decision, endpoint: u32) {
    const BOTH: u32 = Track::CLIENT_ENDED | Track::ENDPOINT_ENDED;
    // The entry of the direction from the client knows of both.
    let (key, half) = if decision.is_reply {
        (decision.track.tuple.flip(), Track::ENDPOINT_ENDED)
    } else {
        (segment.tuple, Track::CLIENT_ENDED)
    };
    let Some(track) = FLOWS.get_ptr_mut(&key) else { return };
    // Both sides may end it at the same moment, on two processors.
    let seen = mark(track, half) | half;
    if (segment.resets() || seen & BOTH == BOTH) && mark(track, Track::OVER) & Track::OVER == 0 {
        endpoints::count(endpoint, |count| count.ended += 1);
    }
}

/// Adds to what has been seen of a flow, in one step. Returns what had been before.
#[inline(always)]
fn mark(track: *mut Track, more: u32) -> u32 {
    const {
        assert!(offset_of!(Track, seen).is_multiple_of(size_of::<u64>()));
    }
    // SAFETY: a value of the map, aligned to eight octets, as in `find`. The target has no atomic types, only the instruction,
    // and that only for two words, of which the first is the lower one: the direction behind it stays as it is.
    let before = unsafe {
        let words = (&raw mut (*track).seen).cast::<u64>();
        atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(words, u64::from(more))
    };
    before as u32
}

#[inline(always)]
fn forget<P: Packet>(packet: &P, tuple: &Tuple, track: &Track) {
    if packet.interface() == LOOPBACK_INTERFACE {
        return;
    }
    let Ok(scratch) = scratch() else { return };
    // SAFETY: nothing else uses this part.
    let answer = unsafe { &mut (*scratch).key };
    *answer = track.tuple.flip();
    // Another flow may have got the port. What is not there is forgotten already.
    if is_answer(answer, tuple) {
        let _ = FLOWS.remove(&*answer);
    }
    let _ = FLOWS.remove(tuple);
}

/// Chooses an endpoint for a flow and notes it for both directions.
#[inline(always)]
fn begin<P: Packet>(packet: &P, segment: &Segment) -> Result<Option<Decision>, PacketEvent> {
    if older::take::<P>(segment) {
        return Ok(None);
    }
    let Some((number, endpoint)) = endpoints::choose(&segment.tuple)? else { return Ok(None) };
    if segment.resets() {
        // There is nothing to reset, and nobody to tell.
        return Err(PacketEvent::NoFlow);
    }
    let track = reply(&segment.tuple, number, endpoint)?;
    let is_question = packet.interface() == LOOPBACK_INTERFACE;
    let mut direction = Track::FROM_CLIENT;
    let tuple = if endpoint.flags & PacketEndpoint::MASQUERADE != 0 {
        masquerade::<P>(&segment.tuple, endpoint, track, is_question)?
    } else {
        let tuple = Tuple::between(&segment.tuple.source(), &endpoint.place, segment.tuple.protocol);
        if !is_question {
            if endpoint.flags & PacketEndpoint::DIRECT != 0 {
                direction = Track::DIRECT;
            } else {
                insert(&tuple.flip(), track)?;
            }
        }
        tuple
    };
    track.tuple = tuple;
    track.direction = direction;
    let track = if is_question { track } else { note_request(&segment.tuple, track)? };
    Ok(Some(Decision { endpoint: Some(track.endpoint), track, is_reply: false }))
}

/// Notes a request, and counts its flow. Another processor may begin the same one at this moment: the first one counts it, and
/// both go by what that has noted.
#[inline(always)]
fn note_request(tuple: &Tuple, track: &'static mut Track) -> Result<&'static mut Track, PacketEvent> {
    if FLOWS.insert(tuple, &*track, ONLY_NEW).is_err() {
        return find(tuple).ok_or(PacketEvent::NoFlow);
    }
    endpoints::count(track.endpoint, |count| count.flows += 1);
    Ok(track)
}

/// Notes a flow to an endpoint of this node, whose packets have come through a tunnel, unless it is known. Returns whether
/// it is these programs' flow.
#[inline(always)]
pub fn begin_here<P: Packet>(
    segment: &Segment,
    number: u32,
    endpoint: &PacketEndpoint,
) -> Result<bool, PacketEvent> {
    let found = find(&segment.tuple);
    let is_stale = found.is_some();
    if let Some(track) = found
        && track.endpoint == number
        && track.stamp == endpoint.stamp
        && track.direction == Track::FROM_CLIENT
        && !(segment.begins() && track.seen & Track::OVER != 0)
    {
        return Ok(true);
    }
    if older::take::<P>(segment) {
        return Ok(false);
    }
    if segment.resets() {
        return Err(PacketEvent::NoFlow);
    }
    let track = reply(&segment.tuple, number, endpoint)?;
    let tuple = Tuple::between(&segment.tuple.source(), &endpoint.place, segment.tuple.protocol);
    insert(&tuple.flip(), track)?;
    track.tuple = tuple;
    track.direction = Track::FROM_CLIENT;
    track.seen = Track::TUNNELLED;
    if is_stale {
        let _ = FLOWS.remove(&segment.tuple);
    }
    note_request(&segment.tuple, track)?;
    Ok(true)
}

/// What becomes of the answers to packets of a new flow.
#[inline(always)]
fn reply(tuple: &Tuple, number: u32, endpoint: &PacketEndpoint) -> Result<&'static mut Track, PacketEvent> {
    // SAFETY: nothing else uses this part.
    let track = unsafe { &mut (*scratch()?).track };
    *track = Track {
        tuple: tuple.flip(),
        endpoint: number,
        stamp: endpoint.stamp,
        seen: 0,
        direction: Track::TO_CLIENT,
        hop: Hop { since: ticks(), ..Hop::default() },
    };
    Ok(track)
}

#[inline(always)]
fn insert(key: &Tuple, track: &Track) -> Result<(), PacketEvent> {
    FLOWS.insert(key, track, 0).map_err(|_| PacketEvent::NoFlow)
}

/// Finds a port of the node that stands for the client, and notes the way back. Those that were never used come first,
/// so that an endpoint has forgotten a connection before another one looks like it.
#[inline(always)]
fn masquerade<P: Packet>(
    tuple: &Tuple,
    endpoint: &PacketEndpoint,
    reply: &Track,
    is_question: bool,
) -> Result<Tuple, PacketEvent> {
    let hash = flow_hash(&tuple.source(), &tuple.destination(), tuple.protocol);
    let mut port = hash_slot(hash, MASQUERADE_PORTS);
    // SAFETY: nothing else uses this part.
    let key = unsafe { &mut (*scratch()?).key };
    for _ in 0..PORT_ATTEMPTS {
        let new = stand_in(tuple, endpoint, port);
        *key = new.flip();
        if is_question || (!older::know::<P>(key) && FLOWS.insert(&*key, reply, ONLY_NEW).is_ok()) {
            return Ok(new);
        }
        if P::IS_EARLY {
            // Another program looks further.
            return Err(PacketEvent::NoPort);
        }
        // Its own, whose request was forgotten.
        if is_answer(key, tuple) && FLOWS.insert(&*key, reply, 0).is_ok() {
            return Ok(new);
        }
        port = next(port);
    }
    // A client that tries again looks elsewhere.
    port = hash_slot(hash ^ ticks().wrapping_mul(PORT_STEP << 16 | 1), MASQUERADE_PORTS);
    for _ in 0..RELEASE_ATTEMPTS {
        let new = stand_in(tuple, endpoint, port);
        *key = new.flip();
        if !older::know::<P>(key) && is_released(key) {
            *key = new.flip();
            // Who else takes it at this moment is the only one that gets it.
            let _ = FLOWS.remove(&*key);
            FLOWS.insert(&*key, reply, ONLY_NEW).map_err(|_| PacketEvent::NoPort)?;
            return Ok(new);
        }
        port = next(port);
    }
    Err(PacketEvent::NoPort)
}

#[inline(always)]
fn next(port: u32) -> u32 {
    let next = port + PORT_STEP;
    if next >= MASQUERADE_PORTS { next - MASQUERADE_PORTS } else { next }
}

/// The packets of a client that a port of the node stands for.
#[inline(always)]
fn stand_in(tuple: &Tuple, endpoint: &PacketEndpoint, port: u32) -> Tuple {
    let port = u16::to_be((MASQUERADE_PORT_FIRST + port) as u16) as u32;
    Tuple::between(&Place { address: endpoint.source, port }, &endpoint.place, tuple.protocol)
}

/// Whether the flow that replies with such a key belong to needs it no more: it is over, forgotten, or silent for long.
/// Overwrites the key.
#[inline(always)]
fn is_released(key: &mut Tuple) -> bool {
    let Some(reply) = find(key) else { return true };
    let ports = key.ports;
    *key = reply.tuple.flip();
    let Some(track) = find(key) else { return true };
    let is_its = track.tuple.ports.rotate_left(16) == ports;
    let current = endpoints::endpoint(track.endpoint).is_some_and(|each| each.stamp == track.stamp);
    let silence = if key.protocol == UDP as u32 { SILENCE_OF_DATAGRAMS } else { SILENCE_OF_CONNECTIONS };
    let now = ticks();
    let is_silent = |track: &Track| now.wrapping_sub(track.hop.since) > silence;
    !is_its || !current || track.seen & Track::OVER != 0 || (is_silent(track) && is_silent(reply))
}

/// Counts a packet, before it is sent on.
#[inline(always)]
pub fn count<P: Packet>(packet: &P, family: Family, protocol: u32, endpoint: u32, is_reply: bool) {
    let (packets, bytes) = (packet.segments(family, protocol) as u64, own_length(packet, family) as u64);
    endpoints::count(endpoint, |count| {
        if is_reply {
            count.packets_out += packets;
            count.bytes_out += bytes;
        } else {
            count.packets_in += packets;
            count.bytes_in += bytes;
        }
    });
}
