//! The zones that are served, with their SOA records encoded as far as they can be.

use mesonet_dns_zone::{Apex, Data, Name, Record, Zone};

use super::answer::Out;
use super::entry::wire_form;
use super::key::Key;
use crate::query_metrics::ZoneLabel;

/// The longest SOA record with names not compressed that is known to fit into every answer: the smallest limit less
/// a header, the longest question and an EDNS record with an extended error.
const START_LENGTH_MAX: usize = 512 - 12 - 259 - 17;

/// Octets of a SOA record's data after its names.
const NUMBERS_LENGTH: usize = 20;

/// A zone that is served.
#[derive(Debug, Clone)]
pub(crate) struct FastApex {
    name: Name,
    label: ZoneLabel,
    /// Under which name its names are kept, if under another one.
    moved: Option<Moved>,
    /// Nothing if negative answers may not fit into every datagram: they are for the full path.
    start: Option<Start>,
}

#[derive(Debug, Clone)]
struct Moved {
    stored: Name,
    /// The encoded end of names that are kept, and what is shown instead.
    wire_stored: Vec<u8>,
    wire_shown: Vec<u8>,
}

/// A SOA record.
#[derive(Debug, Clone)]
struct Start {
    owner: Vec<u8>,
    ttl: u32,
    primary: Compressed,
    mailbox: Compressed,
    numbers: [u8; NUMBERS_LENGTH],
}

/// A name as it goes into a message.
#[derive(Debug, Clone)]
struct Compressed {
    octets: Vec<u8>,
    /// Whether a pointer to another name of the record follows.
    continues: bool,
}

impl FastApex {
    /// The zones, those further down first.
    pub(crate) fn all(zone: &Zone, label_of: impl Fn(&Name) -> ZoneLabel) -> Vec<Self> {
        let apexes = zone.apexes().into_iter();
        let mut all: Vec<Self> = apexes.map(|apex| Self::of(zone, apex, &label_of)).collect();
        all.sort_by_key(|apex| std::cmp::Reverse(apex.name.octets().len()));
        all
    }

    fn of(zone: &Zone, apex: Apex, label_of: impl Fn(&Name) -> ZoneLabel) -> Self {
        let start = zone.start_of(&apex).as_ref().and_then(Start::of);
        let Apex { name, stored } = apex;
        let moved = (name != stored).then(|| Moved {
            wire_stored: wire_form(&stored),
            wire_shown: wire_form(&name),
            stored,
        });
        Self { label: label_of(&name), name, moved, start }
    }

    /// Its metric label.
    pub(crate) fn label(&self) -> ZoneLabel {
        self.label
    }

    /// Whether a name is within it.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        key.starts_with(self.name.octets())
    }

    /// Whether a name is its own.
    pub(crate) fn is(&self, key: &[u8]) -> bool {
        key == self.name.octets()
    }

    /// Makes the key of a name in this zone the one that it is kept under. Nothing if no name can be so long.
    pub(crate) fn make_stored(&self, key: &mut Key) -> Option<()> {
        match &self.moved {
            Some(moved) => key.replace_front(self.name.octets().len(), moved.stored.octets()),
            None => Some(()),
        }
    }

    /// How the host of an SRV record is shown: what of its encoded form stays, and what comes behind.
    pub(crate) fn shown<'name>(&'name self, target: &'name [u8]) -> (&'name [u8], &'name [u8]) {
        let Some(moved) = &self.moved else {
            return (target, &[]);
        };
        match target.strip_suffix(&moved.wire_stored[..]) {
            Some(relative) if ends_with_label(relative) => (relative, &moved.wire_shown),
            _ => (target, &[]),
        }
    }

    /// Whether the hosts of SRV records may have addresses here: where names are moved, only those that are moved too.
    pub(crate) fn has_addresses_of(&self, target: &[u8]) -> bool {
        self.moved.is_none() || !self.shown(target).1.is_empty()
    }

    /// Appends its SOA record to an answer whose question ends here. Nothing if it is too long.
    pub(crate) fn put_start(&self, out: &mut Out<'_>, question_end: usize) -> Option<()> {
        let start = self.start.as_ref()?;
        let suffix_at = (question_end - QUESTION_TAIL_LENGTH).checked_sub(start.owner.len())?;
        let owner_at =
            if out.written().get(suffix_at..question_end - QUESTION_TAIL_LENGTH)? == &start.owner[..] {
                out.put_pointer(suffix_at)?;
                suffix_at
            } else {
                let at = out.len();
                out.put(&start.owner)?;
                at
            };
        out.put(&[0, 6, 0, 1])?;
        out.put(&start.ttl.to_be_bytes())?;
        let length_at = out.len();
        out.put(&[0, 0])?;
        let primary_at = out.len();
        out.put(&start.primary.octets)?;
        if start.primary.continues {
            out.put_pointer(owner_at)?;
        }
        out.put(&start.mailbox.octets)?;
        if start.mailbox.continues {
            out.put_pointer(primary_at)?;
        }
        out.put(&start.numbers)?;
        let length = u16::try_from(out.len() - length_at - 2).ok()?;
        out.patch(length_at, length)
    }
}

/// Octets of a question after its name.
const QUESTION_TAIL_LENGTH: usize = 4;

/// Whether octets are whole labels, so that what follows is the end of the name.
fn ends_with_label(mut octets: &[u8]) -> bool {
    while let Some((length, rest)) = octets.split_first() {
        match rest.get(usize::from(*length)..) {
            Some(rest) => octets = rest,
            None => return false,
        }
    }
    true
}

impl Start {
    /// Nothing if it is no SOA record or so long that an answer with it may not fit.
    fn of(record: &Record) -> Option<Self> {
        let Data::Soa(soa) = &record.data else {
            return None;
        };
        let owner = wire_form(&record.owner);
        let primary = compressed(&soa.primary, &record.owner);
        let mailbox = compressed(&soa.mailbox, &soa.primary);
        let names = owner.len() + wire_form(&soa.primary).len() + wire_form(&soa.mailbox).len();
        let mut numbers = [0; NUMBERS_LENGTH];
        let fields = [soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum];
        for (place, field) in numbers.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        (names + NUMBERS_LENGTH + 10 <= START_LENGTH_MAX).then_some(Self {
            owner,
            ttl: record.ttl,
            primary,
            mailbox,
            numbers,
        })
    }
}

fn compressed(name: &Name, other: &Name) -> Compressed {
    let whole = wire_form(name);
    if name.is_within(other) {
        let relative = whole.len() - wire_form(other).len();
        Compressed { octets: whole[..relative].to_vec(), continues: true }
    } else {
        Compressed { octets: whole, continues: false }
    }
}
