//! Zone transfers (RFC 5936): a whole zone as a row of messages.

use std::sync::Arc;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Record as WireRecord, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use mesonet_dns_zone::{Name, Zone};

use crate::wire;

/// Octets of records in a message before names are compressed: large enough for few messages, small enough for a
/// connection's fair share.
const MESSAGE_LENGTH: usize = 16 * 1024;

/// A transfer that was asked for and is allowed.
#[derive(Debug)]
pub(crate) struct Transfer {
    zone: Arc<Zone>,
    apex: Name,
    /// A response without records.
    response: Message,
}

impl Transfer {
    /// Nothing if the name is no zone's, or the zone is not known yet.
    pub(crate) fn new(zone: Arc<Zone>, apex: Name, mut response: Message) -> Option<Self> {
        zone.transfer(&apex)?.next()?;
        response.metadata.authoritative = true;
        response.metadata.recursion_available = false;
        Some(Self { zone, apex, response })
    }

    /// Whether a question asks for one. One for changes since a serial is answered with the whole zone, as RFC 1995 §4
    /// allows.
    pub(crate) fn is_asked_by(query: &Query) -> bool {
        matches!(query.query_type, RecordType::AXFR | RecordType::IXFR)
    }

    /// The messages in their order. Records whose names would not be valid are left out, as they are in answers.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let records = self.zone.transfer(&self.apex).into_iter().flatten();
        let mut records = records
            .filter_map(|record| wire::record(wire::name(&record.owner)?, &record))
            .filter_map(|record| Some((record.to_bytes().ok()?.len(), record)))
            .peekable();
        std::iter::from_fn(move || {
            let mut message = self.response.clone();
            let mut octets = 0;
            while let Some((length, record)) =
                records.next_if(|(length, _)| octets == 0 || octets + length <= MESSAGE_LENGTH)
            {
                octets += length;
                let record: WireRecord = record;
                message.answers.push(record);
            }
            if message.answers.is_empty() { None } else { message.to_vec().ok() }
        })
    }
}
