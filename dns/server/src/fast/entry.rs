//! What one name has, as it goes over the wire.

use std::sync::Arc;

use mesonet_dns_zone::{Data, Name, Zone};

use super::table::prefetch;

/// A pointer to the question's name, which begins after the header (RFC 1035 §4.1.4).
const QUESTION_POINTER: [u8; 2] = [0xc0, 12];

/// Octets of an encoded A record whose owner is a pointer.
pub(crate) const A_LENGTH: usize = 16;

/// Octets of an encoded AAAA record whose owner is a pointer.
pub(crate) const AAAA_LENGTH: usize = 28;

/// Octets of an encoded SRV record before its target, with an owner that is a pointer.
pub(crate) const SRV_HEAD_LENGTH: usize = 18;

/// Where an encoded record with a pointer as its owner has the length of its data.
pub(crate) const DATA_LENGTH_AT: usize = 10;

/// Most records of a name here. A change of one copies all of them; larger sets never fit into a datagram, and the
/// full path makes its selection from them at no such cost.
const RECORDS_MAX: usize = 2048;

/// The class IN.
const CLASS_IN: u16 = 1;

/// Octets before the key: its length, flags, the three counts.
const HEAD_LENGTH: usize = 8;

/// Behind a key of so many octets the records are in the second cache line.
const KEY_LENGTH_TYPICAL: usize = 56;

/// Flag: the name has what only the full path can answer.
const FOR_FULL_PATH: u8 = 1;

/// What one name has: a single allocation, so that a lookup touches little memory.
///
/// It begins with the length of the key, flags, and the numbers of A, AAAA and SRV records; then come the key, which
/// is the name's octets from the root on, and the records in this order.
#[derive(Debug, Clone)]
pub(crate) struct Entry(Arc<[u8]>);

/// Encoded records of one type; all but SRV records have the same length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Records<'entry> {
    pub(crate) count: usize,
    pub(crate) octets: &'entry [u8],
}

impl Entry {
    /// What a name of the zone has; nothing if neither it nor one below it has records.
    pub(crate) fn of(zone: &Zone, name: &Name) -> Option<Self> {
        let (count, values) = zone.values(name);
        if count == 0 {
            return zone.has_below(name).then(|| Self::bare(name.octets(), false));
        }
        if count > RECORDS_MAX {
            return Some(Self::bare(name.octets(), true));
        }
        let ttl = zone.ttl_of(name);
        let mut counts = [0_u16; 3];
        let mut octets = Vec::with_capacity(HEAD_LENGTH + name.octets().len() + count * AAAA_LENGTH);
        octets.extend([0; HEAD_LENGTH]);
        octets.extend_from_slice(name.octets());
        for value in values {
            match value {
                Data::A(address) => {
                    counts[0] += 1;
                    push_record(&mut octets, 1, ttl, &[&address.octets()]);
                }
                // Values are sorted by their types, so that this does not come before an A record.
                Data::Aaaa(address) => {
                    counts[1] += 1;
                    push_record(&mut octets, 28, ttl, &[&address.octets()]);
                }
                Data::Srv { priority, weight, target, port } => {
                    counts[2] += 1;
                    let [priority, weight] = [*priority, *weight].map(u16::to_be_bytes);
                    let target = wire_form(target);
                    push_record(&mut octets, 33, ttl, &[&priority, &weight, &port.to_be_bytes(), &target]);
                }
                _ => return Some(Self::bare(name.octets(), true)),
            }
        }
        octets[..HEAD_LENGTH].copy_from_slice(&head(name.octets(), 0, counts));
        Some(Self(Arc::from(octets)))
    }

    /// A name without records. With `for_full_path`, what it has is left to the full path.
    pub(crate) fn bare(key: &[u8], for_full_path: bool) -> Self {
        let flags = if for_full_path { FOR_FULL_PATH } else { 0 };
        Self(Arc::from([&head(key, flags, [0; 3])[..], key].concat()))
    }

    /// The name's octets from the root on.
    pub(crate) fn key(&self) -> &[u8] {
        self.0.get(HEAD_LENGTH..self.records_at()).unwrap_or_default()
    }

    /// Whether only the full path can answer.
    pub(crate) fn is_for_full_path(&self) -> bool {
        self.0[1] & FOR_FULL_PATH != 0
    }

    /// Whether it only says that there is a name below.
    pub(crate) fn is_bare(&self) -> bool {
        self.0[1..HEAD_LENGTH] == [0; HEAD_LENGTH - 1]
    }

    pub(crate) fn ipv4(&self) -> Records<'_> {
        let count = self.count(0);
        self.records(self.records_at(), count, count * A_LENGTH)
    }

    pub(crate) fn ipv6(&self) -> Records<'_> {
        let count = self.count(1);
        self.records(self.records_at() + self.count(0) * A_LENGTH, count, count * AAAA_LENGTH)
    }

    pub(crate) fn ports(&self) -> Records<'_> {
        let start = self.records_at() + self.count(0) * A_LENGTH + self.count(1) * AAAA_LENGTH;
        self.records(start, self.count(2), self.0.len().saturating_sub(start))
    }

    /// Octets of the counters in front of shared values.
    pub(crate) const OVERHEAD_LENGTH: usize = 16;

    /// Has its records brought into the cache.
    pub(crate) fn prefetch(&self) {
        let records = HEAD_LENGTH + KEY_LENGTH_TYPICAL;
        for at in [0, records] {
            if let Some(octet) = self.0.get(at) {
                prefetch(octet);
            }
        }
    }

    /// How much memory its octets take.
    pub(crate) fn octet_count(&self) -> usize {
        self.0.len()
    }

    fn records_at(&self) -> usize {
        HEAD_LENGTH + usize::from(self.0[0])
    }

    fn count(&self, kind: usize) -> usize {
        usize::from(u16::from_be_bytes([self.0[2 + 2 * kind], self.0[3 + 2 * kind]]))
    }

    fn records(&self, start: usize, count: usize, length: usize) -> Records<'_> {
        Records { count, octets: self.0.get(start..start + length).unwrap_or_default() }
    }
}

fn head(key: &[u8], flags: u8, counts: [u16; 3]) -> [u8; HEAD_LENGTH] {
    // Names have at most 254 octets without the root's.
    let length = u8::try_from(key.len()).unwrap_or(u8::MAX);
    let [a, b, c] = counts.map(u16::to_be_bytes);
    [length, flags, a[0], a[1], b[0], b[1], c[0], c[1]]
}

fn push_record(octets: &mut Vec<u8>, kind: u16, ttl: u32, data: &[&[u8]]) {
    octets.extend(QUESTION_POINTER);
    octets.extend(kind.to_be_bytes());
    octets.extend(CLASS_IN.to_be_bytes());
    octets.extend(ttl.to_be_bytes());
    let length: usize = data.iter().map(|part| part.len()).sum();
    octets.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    for part in data {
        octets.extend_from_slice(part);
    }
}

/// A name as it goes over the wire, not compressed.
pub(crate) fn wire_form(name: &Name) -> Vec<u8> {
    let mut octets = Vec::with_capacity(name.octets().len() + 1);
    for label in name.labels() {
        // A label has at most 63 octets.
        octets.push(u8::try_from(label.len()).unwrap_or(0));
        octets.extend_from_slice(label);
    }
    octets.push(0);
    octets
}
