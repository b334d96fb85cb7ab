//! Reads the queries that the fast path knows.

use super::entry::Entry;
use super::key::Key;
use super::zone::FastZone;
use crate::metrics::KindLabel;
use crate::wire::HEADER_LENGTH;

/// Octets of a question after its name.
const QUESTION_TAIL_LENGTH: usize = 4;

/// Octets of an EDNS record without options.
pub(crate) const OPT_LENGTH: usize = 11;

/// The largest UDP message that is sent, see the full path.
pub(crate) const PAYLOAD_MAX: u16 = 1232;

/// The size that every client can receive (RFC 1035 §4.2.1).
const PAYLOAD_MIN: u16 = 512;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    Aaaa,
    Srv,
    /// A type that no name has which the fast path answers.
    Absent,
}

/// A query that the fast path knows. Made once for each thread and used again, because it holds the key.
#[derive(Debug)]
pub(crate) struct FastQuery {
    /// The name, after [`Self::locate`] as it is kept.
    key: Key,
    hash: u64,
    /// The number of the zone that it is in.
    pub(crate) apex: usize,
    /// Whether it is the zone's own name.
    pub(crate) is_apex: bool,
    /// Where the question ends in the packet.
    pub(crate) question_end: usize,
    pub(crate) kind: Kind,
    pub(crate) kind_label: KindLabel,
    /// The client's EDNS record, if there is one: whether it wants DNSSEC records.
    pub(crate) dnssec_ok: Option<bool>,
    /// Octets of the largest answer.
    pub(crate) limit: usize,
}

impl FastQuery {
    /// A place for queries.
    pub(crate) fn new() -> Self {
        Self {
            key: Key::new(),
            hash: 0,
            apex: 0,
            is_apex: false,
            question_end: 0,
            kind: Kind::Absent,
            kind_label: KindLabel::Other,
            dnssec_ok: None,
            limit: 0,
        }
    }

    /// Reads a packet. Nothing if it is one for the full path.
    pub(crate) fn read(&mut self, packet: &[u8]) -> Option<()> {
        let header: &[u8; HEADER_LENGTH] = packet.first_chunk()?;
        let [_, _, flags, more_flags, q0, q1, a0, a1, n0, n1, r0, additional] = *header;
        // A query of opcode QUERY that is not cut; only the wishes for recursion, for checked data and for unchecked
        // data may be there.
        let is_plain = flags & !0x01 == 0 && more_flags & !0x30 == 0;
        if !is_plain || [q0, q1, a0, a1, n0, n1, r0] != [0, 1, 0, 0, 0, 0, 0] || additional > 1 {
            return None;
        }
        let end = HEADER_LENGTH + self.key.read(packet.get(HEADER_LENGTH..)?)?;
        let tail: &[u8; QUESTION_TAIL_LENGTH] = packet.get(end..)?.first_chunk()?;
        let [kind_high, kind_low, 0, 1] = *tail else {
            return None;
        };
        (self.kind, self.kind_label) = kind(u16::from_be_bytes([kind_high, kind_low]))?;
        self.question_end = end + QUESTION_TAIL_LENGTH;
        let rest = packet.get(self.question_end..)?;
        if additional == 0 {
            self.dnssec_ok = None;
            self.limit = usize::from(PAYLOAD_MIN);
            return rest.is_empty().then_some(());
        }
        let rest: &[u8; OPT_LENGTH] = rest.try_into().ok()?;
        // Root, type OPT, no extended code, version 0, no flag but DO, no options.
        let [0, 0, 41, payload_high, payload_low, 0, 0, dnssec_ok @ (0 | 0x80), 0, 0, 0] = *rest else {
            return None;
        };
        self.dnssec_ok = Some(dnssec_ok != 0);
        let payload = u16::from_be_bytes([payload_high, payload_low]);
        self.limit = usize::from(payload.clamp(PAYLOAD_MIN, PAYLOAD_MAX));
        Some(())
    }

    /// Finds the zone of the query that was read last, and has the memory of its entry brought into the cache. Nothing
    /// if it is in none.
    pub(crate) fn locate(&mut self, zone: &FastZone) -> Option<()> {
        let (number, apex) = zone.apex_of(self.key.octets())?;
        self.apex = number;
        self.is_apex = apex.is(self.key.octets());
        apex.make_stored(&mut self.key)?;
        self.hash = zone.table().hash(self.key.octets());
        zone.table().prefetch(self.hash);
        Some(())
    }

    /// What the name has, after [`Self::locate`] in the same zone.
    pub(crate) fn entry<'zone>(&self, zone: &'zone FastZone) -> Option<&'zone Entry> {
        zone.table().get(self.hash, self.key.octets())
    }

    /// Labels of the name that is asked for.
    pub(crate) fn label_count(&self) -> usize {
        self.key.label_count()
    }
}

/// The types of which the fast path knows all that there is.
fn kind(number: u16) -> Option<(Kind, KindLabel)> {
    match number {
        1 => Some((Kind::A, KindLabel::A)),
        28 => Some((Kind::Aaaa, KindLabel::Aaaa)),
        33 => Some((Kind::Srv, KindLabel::Srv)),
        12 => Some((Kind::Absent, KindLabel::Ptr)),
        // CNAME, MX, TXT, NAPTR, SVCB and HTTPS, which resolvers and mailers ask for.
        5 | 15 | 16 | 35 | 64 | 65 => Some((Kind::Absent, KindLabel::Other)),
        _ => None,
    }
}
