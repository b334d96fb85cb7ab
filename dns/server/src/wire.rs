//! Records and messages in wire form.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA, SRV};
use hickory_proto::rr::{Name as WireName, RData, Record as WireRecord};
use mesonet_dns_zone::{Data, Name, Record};

/// Where the flag that says that an answer was cut is in a message, and its bit.
const TRUNCATION_FLAG: (usize, u8) = (2, 0x02);

/// A name; nothing if it is not valid.
pub(crate) fn name(name: &Name) -> Option<WireName> {
    WireName::from_labels(name.labels()).ok()
}

/// A record under a name; nothing if its value is not valid.
pub(crate) fn record(owner: WireName, record: &Record) -> Option<WireRecord> {
    let data = match &record.data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Srv { target, port } => {
            RData::SRV(SRV::new(Data::SRV_PRIORITY, Data::SRV_WEIGHT, *port, name(target)?))
        }
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
    if let Some(encoded) = encode_whole(message, limit) {
        return Some(encoded);
    }
    message.additionals.clear();
    let all = std::mem::take(&mut message.answers);
    // The number of answers that fit is between `fitting` and `all.len()`.
    let mut fitting = 0;
    let mut too_many = all.len() + 1;
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        message.answers = all[..middle].to_vec();
        match encode_whole(message, limit) {
            Some(_) => fitting = middle,
            None => too_many = middle,
        }
    }
    message.answers = all;
    message.answers.truncate(fitting);
    message.metadata.truncation = true;
    message.to_vec().ok().filter(|encoded| encoded.len() <= usize::from(limit))
}

/// The encoded message if all of it fits.
fn encode_whole(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let encoded = message.to_vec().ok()?;
    let (at, bit) = TRUNCATION_FLAG;
    // The encoder cuts by itself what exceeds 65,535 octets, and says so.
    let was_cut = !message.metadata.truncation && encoded.get(at).is_some_and(|flags| flags & bit != 0);
    (encoded.len() <= usize::from(limit) && !was_cut).then_some(encoded)
}
