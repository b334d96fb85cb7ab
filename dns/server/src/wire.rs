//! Records and messages in wire form.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name as WireName, RData, Record as WireRecord};
use mesonet_dns_zone::{Data, Name, Record};

use crate::edns;

/// Octets of a message's header.
pub(crate) const HEADER_LENGTH: usize = 12;

/// Octets of a question after its name: type and class.
const QUESTION_LENGTH: usize = 4;

/// Octets of a record between its name and its data: type, class, time to live and the data's length.
const RECORD_HEAD_LENGTH: usize = 10;

/// A name; nothing if it is not valid.
pub(crate) fn name(name: &Name) -> Option<WireName> {
    WireName::from_labels(name.labels()).ok()
}

/// A record under a name; nothing if its value is not valid.
pub(crate) fn record(owner: WireName, record: &Record) -> Option<WireRecord> {
    let data = match &record.data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, name(target)?))
        }
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Txt(strings) => RData::TXT(TXT::from_bytes(strings.iter().map(|string| &**string).collect())),
        Data::Ns(server) => RData::NS(NS(name(server)?)),
        Data::Soa(soa) => RData::SOA(SOA::new(
            name(&soa.primary)?,
            name(&soa.mailbox)?,
            soa.serial,
            i32::try_from(soa.refresh).ok()?,
            i32::try_from(soa.retry).ok()?,
            i32::try_from(soa.expire).ok()?,
            soa.minimum,
        )),
        Data::AnyRefused => RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())),
    };
    Some(WireRecord::from_rdata(owner, record.ttl, data))
}

/// Encodes a message in so many octets. What does not fit is cut: the additional section first, then answers from the
/// end on; then the message says so. Nothing if not even a message without answers can be encoded.
pub(crate) fn encode_within(message: &mut Message, limit: u16) -> Option<Vec<u8>> {
    let additional = message.additionals.len() + usize::from(message.edns.is_some());
    let whole = [message.answers.len(), message.authorities.len(), additional];
    // The encoder itself ends at 65,535 octets, and tells by the counts.
    let encoded = message.to_vec().ok()?;
    if encoded.len() <= usize::from(limit) && record_counts(&encoded) == Some(whole) {
        return Some(encoded);
    }
    let reserved = message.edns.as_ref().map_or(0, edns::octet_count);
    let fitting = answers_within(&encoded, usize::from(limit).saturating_sub(reserved))?;
    message.additionals.clear();
    message.answers.truncate(fitting);
    message.metadata.truncation = true;
    let fits = |encoded: &Vec<u8>| encoded.len() <= usize::from(limit);
    if let Some(encoded) = message.to_vec().ok().filter(fits) {
        return Some(encoded);
    }
    // Authority records that take the room of the answers are of no use.
    message.authorities.clear();
    message.to_vec().ok().filter(fits)
}

/// An answer without records that says that it is cut.
pub(crate) fn cut(encoded: &[u8]) -> Option<Vec<u8>> {
    const TRUNCATED: u8 = 0x02;
    let end = name_end(encoded, HEADER_LENGTH)? + QUESTION_LENGTH;
    let mut cut = encoded.get(..end)?.to_vec();
    cut[2] |= TRUNCATED;
    cut[6..HEADER_LENGTH].fill(0);
    Some(cut)
}

/// How many answers, authority and additional records an encoded message says that it has.
fn record_counts(encoded: &[u8]) -> Option<[usize; 3]> {
    let [a, b, c, d, e, f] = *encoded.get(6..)?.first_chunk()?;
    Some([[a, b], [c, d], [e, f]].map(|count| usize::from(u16::from_be_bytes(count))))
}

/// How many answers of an encoded message with one question end within so many octets.
///
/// Names are compressed by what comes before them only, so that a message of the first answers has the same octets.
fn answers_within(encoded: &[u8], limit: usize) -> Option<usize> {
    let [answers, ..] = record_counts(encoded)?;
    let mut end = name_end(encoded, HEADER_LENGTH)? + QUESTION_LENGTH;
    for fitting in 0..answers {
        let data = name_end(encoded, end)? + RECORD_HEAD_LENGTH;
        let length: [u8; 2] = *encoded.get(data - 2..)?.first_chunk()?;
        end = data + usize::from(u16::from_be_bytes(length));
        if end > limit {
            return Some(fitting);
        }
    }
    Some(answers)
}

/// Where a name ends: after the root's label or after the first pointer.
fn name_end(encoded: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match usize::from(*encoded.get(at)?) {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + length,
        }
    }
}
