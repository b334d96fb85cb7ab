//! Puts answers together.

use super::apex::FastApex;
use super::entry::{A_LENGTH, AAAA_LENGTH, DATA_LENGTH_AT, Entry, Records, SRV_HEAD_LENGTH};
use super::key::{Key, NAME_LENGTH_MAX};
use super::query::{FastQuery, Kind, OPT_LENGTH, PAYLOAD_MAX};
use super::zone::FastZone;
use crate::metrics::CodeLabel;
use crate::query_metrics::ZoneLabel;
use crate::wire::HEADER_LENGTH;

/// The system's answers differ where a message stores more label sequences than these for compression: its encoder
/// uses no further ones. Such answers are left to the full path.
const LABELS_COMPRESSED_MAX: usize = 64;

/// Octets of the EDNS option with an extended error (RFC 8914 §2).
const EXTENDED_ERROR_LENGTH: usize = 6;

/// Where a pointer can point to at most (RFC 1035 §4.1.4).
const POINTER_MAX: usize = 0x3fff;

/// Most hosts in one answer: each takes at least 19 octets of the largest one.
const TARGETS_MAX: usize = PAYLOAD_MAX as usize / (SRV_HEAD_LENGTH + 1);

/// What all answers have in common for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances {
    /// Whether the zone may be out of date.
    pub(crate) is_stale: bool,
    /// Whether names outside the zone are resolved, too.
    pub(crate) recursion_available: bool,
}

/// An answer that was put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Its octets.
    pub(crate) length: usize,
    pub(crate) code: CodeLabel,
    /// The zone it comes from.
    pub(crate) zone: ZoneLabel,
}

/// Answers a query that was read from the packet, with what its name has. Nothing if only the full path can.
pub(crate) fn answer(
    zone: &FastZone,
    circumstances: Circumstances,
    query: &FastQuery,
    entry: Option<&Entry>,
    packet: &[u8],
    buffer: &mut [u8],
) -> Option<Reply> {
    let apex = zone.apex(query.apex)?;
    if entry.is_some_and(Entry::is_for_full_path) {
        return None;
    }
    let mut out = Out { octets: buffer, length: 0 };
    out.put(packet.get(..query.question_end)?)?;
    let mut making = Making { zone, apex, query, circumstances, rotation: rotation(packet), out };
    let (code, counts, is_cut) = making.records(entry)?;
    let length = making.finish(packet, code, counts, is_cut)?;
    Some(Reply { length, code, zone: apex.label() })
}

/// The message id chooses which record comes first.
fn rotation(packet: &[u8]) -> usize {
    packet.first_chunk().map_or(0, |id| usize::from(u16::from_be_bytes(*id)))
}

/// Numbers of answers, authority and additional records.
type Counts = [u16; 3];

/// One answer in the making.
struct Making<'query> {
    zone: &'query FastZone,
    apex: &'query FastApex,
    query: &'query FastQuery,
    circumstances: Circumstances,
    rotation: usize,
    out: Out<'query>,
}

impl Making<'_> {
    fn records(&mut self, entry: Option<&Entry>) -> Option<(CodeLabel, Counts, bool)> {
        let Some(entry) = entry else {
            return self.negative(if self.query.is_apex { CodeLabel::NoError } else { CodeLabel::NxDomain });
        };
        let (put, cut) = match self.query.kind {
            Kind::A => self.addresses(entry.ipv4(), A_LENGTH)?,
            Kind::Aaaa => self.addresses(entry.ipv6(), AAAA_LENGTH)?,
            Kind::Srv => return self.ports(entry.ports()),
            Kind::Absent => (0, false),
        };
        if put == 0 && !cut {
            return self.negative(CodeLabel::NoError);
        }
        Some((CodeLabel::NoError, [put, 0, 0], cut))
    }

    /// Without answers, with the zone's SOA record.
    fn negative(&mut self, code: CodeLabel) -> Option<(CodeLabel, Counts, bool)> {
        self.apex.put_start(&mut self.out, self.query.question_end)?;
        Some((code, [0, 1, 0], false))
    }

    /// As many addresses as may be, and whether some are missing.
    fn addresses(&mut self, records: Records<'_>, length: usize) -> Option<(u16, bool)> {
        let room = self.room();
        let fitting = records.count.min(room / length);
        let (tail, head) = split(records, self.rotation, length);
        let wanted = fitting * length;
        let first = wanted.min(head.len());
        self.out.put(head.get(..first)?)?;
        self.out.put(tail.get(..wanted - first)?)?;
        Some((u16::try_from(fitting).ok()?, fitting < records.count))
    }

    /// As many ports as may be, and the addresses of their hosts if all fit.
    fn ports(&mut self, records: Records<'_>) -> Option<(CodeLabel, Counts, bool)> {
        if records.count == 0 {
            return self.negative(CodeLabel::NoError);
        }
        let mut targets = Targets::new(self.query.label_count());
        let limit = self.out.len() + self.room();
        let mut put = 0_u16;
        for record in rotated_ports(records, self.rotation) {
            let Some(host) = self.port(record, limit)? else {
                return Some((CodeLabel::NoError, [put, 0, 0], true));
            };
            targets.add(self.out.written(), host)?;
            put += 1;
        }
        let end = self.out.len();
        let additional = self.addresses_of(&targets, limit)?;
        if additional.is_none() {
            self.out.length = end;
        }
        Some((CodeLabel::NoError, [put, 0, additional.unwrap_or(0)], additional.is_none()))
    }

    /// Puts an SRV record and says where its host is. Nothing in the inner place if it does not fit before `end`.
    fn port<'entry>(&mut self, record: &'entry [u8], end: usize) -> Option<Option<Host<'entry>>> {
        let (head, target) = record.split_at_checked(SRV_HEAD_LENGTH)?;
        let (stays, follows) = self.apex.shown(target);
        let length = stays.len() + follows.len();
        if length > NAME_LENGTH_MAX {
            return None;
        }
        let at = self.out.len();
        if at + SRV_HEAD_LENGTH + length > end {
            return Some(None);
        }
        self.out.put(head)?;
        self.out.put(stays)?;
        if !follows.is_empty() {
            self.out.put(follows)?;
            self.out.patch(at + DATA_LENGTH_AT, u16::try_from(6 + length).ok()?)?;
        }
        Some(Some(Host { at: at + SRV_HEAD_LENGTH, length, stored: target }))
    }

    /// Puts the addresses of the hosts. Nothing in the inner place if not all fit before `limit`.
    fn addresses_of(&mut self, targets: &Targets<'_>, limit: usize) -> Option<Option<u16>> {
        let mut count = 0_u16;
        let mut key = Key::new();
        for host in targets.found.get(..targets.count)? {
            if !self.apex.has_addresses_of(host.stored) {
                continue;
            }
            key.read(host.stored)?;
            let table = self.zone.table();
            let Some(entry) = table.get(table.hash(key.octets()), key.octets()) else {
                continue;
            };
            if entry.is_for_full_path() || targets.labels > LABELS_COMPRESSED_MAX {
                return None;
            }
            for (set, length) in [(entry.ipv4(), A_LENGTH), (entry.ipv6(), AAAA_LENGTH)] {
                if self.out.len() + set.octets.len() > limit {
                    return Some(None);
                }
                let (tail, head) = split(set, self.rotation, length);
                for record in head.chunks_exact(length).chain(tail.chunks_exact(length)) {
                    self.out.put_pointer(host.at)?;
                    self.out.put(record.get(2..)?)?;
                }
                count += u16::try_from(set.count).ok()?;
            }
        }
        Some(Some(count))
    }

    /// Octets that are left for records.
    fn room(&self) -> usize {
        let edns = if self.query.dnssec_ok.is_some() { OPT_LENGTH } else { 0 };
        let reason = if edns > 0 && self.circumstances.is_stale { EXTENDED_ERROR_LENGTH } else { 0 };
        self.query.limit.saturating_sub(self.out.len() + edns + reason)
    }

    /// Puts the EDNS record and the header, and says how long the answer is.
    fn finish(&mut self, packet: &[u8], code: CodeLabel, counts: Counts, is_cut: bool) -> Option<usize> {
        let [answers, authority, mut additional] = counts;
        if let Some(dnssec_ok) = self.query.dnssec_ok {
            additional += 1;
            self.put_edns(dnssec_ok, code)?;
        }
        let [_, _, flags, more_flags, ..] = *packet.first_chunk::<HEADER_LENGTH>()?;
        let truncation = if is_cut { 0x02 } else { 0 };
        let wire_code = if code == CodeLabel::NxDomain { 3 } else { 0 };
        // A response with authority; the wishes for recursion and for unchecked data come back.
        let available = if self.circumstances.recursion_available { 0x80 } else { 0 };
        let flags = [0x84 | truncation | (flags & 0x01), available | (more_flags & 0x10) | wire_code];
        self.out.patch(2, u16::from_be_bytes(flags))?;
        self.out.patch(6, answers)?;
        self.out.patch(8, authority)?;
        self.out.patch(10, additional)?;
        (self.out.len() <= self.query.limit).then_some(self.out.len())
    }

    fn put_edns(&mut self, dnssec_ok: bool, code: CodeLabel) -> Option<()> {
        let [high, low] = PAYLOAD_MAX.to_be_bytes();
        let wants = if dnssec_ok { 0x80 } else { 0 };
        self.out.put(&[0, 0, 41, high, low, 0, 0, wants, 0])?;
        if self.circumstances.is_stale {
            // Stale answer or stale NXDOMAIN answer (RFC 8914 §4.4 and §4.20).
            let reason = if code == CodeLabel::NxDomain { 19 } else { 3 };
            self.out.put(&[0, 6, 0, 15, 0, 2, 0, reason])
        } else {
            self.out.put(&[0, 0])
        }
    }
}

/// The records before and from the one that comes first.
fn split(records: Records<'_>, rotation: usize, length: usize) -> (&[u8], &[u8]) {
    let turned = rotation.checked_rem(records.count).unwrap_or(0);
    records.octets.split_at_checked(turned * length).unwrap_or((records.octets, &[]))
}

/// SRV records, beginning with the one that comes first.
fn rotated_ports(records: Records<'_>, rotation: usize) -> impl Iterator<Item = &[u8]> {
    let turned = rotation.checked_rem(records.count).unwrap_or(0);
    let all = || PortIterator(records.octets);
    all().skip(turned).chain(all().take(turned))
}

/// SRV records, one after the other.
struct PortIterator<'entry>(&'entry [u8]);

impl<'entry> Iterator for PortIterator<'entry> {
    type Item = &'entry [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let length: &[u8; 2] = self.0.get(DATA_LENGTH_AT..)?.first_chunk()?;
        let end = DATA_LENGTH_AT + 2 + usize::from(u16::from_be_bytes(*length));
        let (record, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        Some(record)
    }
}

/// The host of an SRV record.
#[derive(Debug, Clone, Copy)]
struct Host<'entry> {
    /// Where it is in the message.
    at: usize,
    /// How long it is there.
    length: usize,
    /// Its name as the zone keeps it.
    stored: &'entry [u8],
}

/// The different hosts of an answer.
struct Targets<'entry> {
    found: [Host<'entry>; TARGETS_MAX],
    count: usize,
    /// Labels of the question and of all hosts, also of equal ones.
    labels: usize,
}

impl<'entry> Targets<'entry> {
    fn new(question_labels: usize) -> Self {
        Self {
            found: [Host { at: 0, length: 0, stored: &[] }; TARGETS_MAX],
            count: 0,
            labels: question_labels,
        }
    }

    fn add(&mut self, message: &[u8], host: Host<'entry>) -> Option<()> {
        self.labels += label_count(message.get(host.at..host.at + host.length)?);
        if self.found.get(..self.count)?.iter().any(|known| known.stored == host.stored) {
            return Some(());
        }
        *self.found.get_mut(self.count)? = host;
        self.count += 1;
        Some(())
    }
}

fn label_count(mut name: &[u8]) -> usize {
    let mut count = 0;
    while let Some((length, rest)) = name.split_first()
        && *length > 0
    {
        count += 1;
        name = rest.get(usize::from(*length)..).unwrap_or_default();
    }
    count
}

/// A message that is being written.
pub(crate) struct Out<'buffer> {
    octets: &'buffer mut [u8],
    length: usize,
}

impl Out<'_> {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn written(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }

    /// Appends octets; nothing if the buffer is full.
    pub(crate) fn put(&mut self, octets: &[u8]) -> Option<()> {
        let end = self.length + octets.len();
        self.octets.get_mut(self.length..end)?.copy_from_slice(octets);
        self.length = end;
        Some(())
    }

    /// Appends a pointer to a name (RFC 1035 §4.1.4).
    pub(crate) fn put_pointer(&mut self, at: usize) -> Option<()> {
        let pointer = u16::try_from(at).ok().filter(|_| at <= POINTER_MAX)?;
        self.put(&(0xc000 | pointer).to_be_bytes())
    }

    /// Replaces two octets.
    pub(crate) fn patch(&mut self, at: usize, value: u16) -> Option<()> {
        self.octets.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
        Some(())
    }
}
