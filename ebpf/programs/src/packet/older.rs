//! The programs of another version, which these ones take over from: they come after these, and go on with the flows that
//! they know until those are copied.

use aya_ebpf::btf_maps::{ArrayOfMaps, LruHashMap};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::Array;
use mesonet_ebpf_abi::{OlderVersion, PACKET_FLOWS_MAX, Track, Tuple};

use crate::headers::Segment;
use crate::packet::Packet;

/// What is theirs: [`OlderVersion::NOTHING`] or more.
#[map]
static OLDER: Array<u32> = Array::with_max_entries(1, 0);

/// The flows that they know, if the form of their map is the same.
#[btf_map]
static OLDER_FLOWS: ArrayOfMaps<Flows, 1> = ArrayOfMaps::new();

type Flows = LruHashMap<Tuple, Track, { PACKET_FLOWS_MAX as usize }>;

/// Whether a packet of no flow that is known here is theirs, because they know it or begin all new ones. A connection that
/// is over is not: they would begin the next one of the same client. Who comes first leaves it to the program that looks.
#[inline(always)]
pub fn take<P: Packet>(segment: &Segment) -> bool {
    // SAFETY: one word, read at once.
    let share = OLDER.get_ptr(0).map_or(OlderVersion::NOTHING, |word| unsafe { word.read_volatile() });
    match share {
        OlderVersion::NOTHING => false,
        OlderVersion::KNOWN_FLOWS if !P::IS_EARLY => goes_on(segment),
        _ => true,
    }
}

#[inline(always)]
fn goes_on(segment: &Segment) -> bool {
    let Some(track) = OLDER_FLOWS.get_value_ptr_mut(0, &segment.tuple) else { return false };
    // SAFETY: one word of a value of the map, read at once.
    let seen = unsafe { (&raw const (*track).seen).read_volatile() };
    !(segment.begins() && seen & Track::OVER != 0)
}

/// Whether they know packets with such addresses and ports.
#[inline(always)]
pub fn know<P: Packet>(tuple: &Tuple) -> bool {
    !P::IS_EARLY && OLDER_FLOWS.get_value_ptr_mut(0, tuple).is_some()
}
