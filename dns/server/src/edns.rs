//! The EDNS record of answers (RFC 6891) and its options.

use std::time::Duration;

use hickory_proto::op::Edns;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::connections::IDLE_TIMEOUT;
use crate::metrics::Transport;

/// The largest UDP message that is sent, and the size that is advertised: fits into any path's MTU, so that answers
/// are never fragmented (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD_MAX: u16 = 1232;

/// Numbers of options (IANA registry of EDNS0 option codes).
const KEEPALIVE: u16 = 11;
const PADDING: u16 = 12;
const EXTENDED_ERROR: u16 = 15;

/// Octets of an option before its data.
const OPTION_HEAD_LENGTH: usize = 4;

/// Answers of encrypted connections are padded to a multiple of this, if the client pads (RFC 8467 §4.1).
const PADDING_BLOCK: usize = 468;

/// The unit of keepalive times (RFC 7828 §3.1).
const KEEPALIVE_UNIT: Duration = Duration::from_millis(100);

/// The EDNS record of the answer to a query with this one.
pub(crate) fn answering(asked: &Edns, transport: Transport) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_MAX);
    // It comes back even though nothing is signed here (RFC 3225 §3).
    edns.flags_mut().dnssec_ok = asked.flags().dnssec_ok;
    // Only over TCP and TLS; HTTP and QUIC have their own idle times (RFC 9250 §5.5.2).
    let has_keepalive = matches!(transport, Transport::Tcp | Transport::Tls);
    if has_keepalive && asked.option(EdnsCode::Keepalive).is_some() {
        let units = IDLE_TIMEOUT.as_millis() / KEEPALIVE_UNIT.as_millis();
        let units = u16::try_from(units).unwrap_or(u16::MAX);
        edns.options_mut().insert(EdnsOption::Unknown(KEEPALIVE, units.to_be_bytes().to_vec()));
    }
    edns
}

/// Whether the answer to a query with this record is to be padded.
pub(crate) fn wants_padding(asked: Option<&Edns>, transport: Transport) -> bool {
    let is_encrypted = matches!(transport, Transport::Tls | Transport::Https | Transport::Quic);
    is_encrypted && asked.is_some_and(|asked| asked.option(EdnsCode::Padding).is_some())
}

/// Pads an answer that has so many octets without, within a limit.
pub(crate) fn pad(edns: &mut Edns, length: usize, limit: usize) {
    let unpadded = length + OPTION_HEAD_LENGTH;
    let padded = unpadded.next_multiple_of(PADDING_BLOCK).min(limit);
    if let Some(padding) = padded.checked_sub(unpadded) {
        edns.options_mut().insert(EdnsOption::Unknown(PADDING, vec![0; padding]));
    }
}

/// Says why, without text (RFC 8914 §2).
pub(crate) fn explain(edns: &mut Edns, reason: u16) {
    debug_assert_eq!(EdnsCode::from(EXTENDED_ERROR), EdnsCode::Unknown(EXTENDED_ERROR));
    edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, reason.to_be_bytes().to_vec()));
}

/// Octets of a record.
pub(crate) fn octet_count(edns: &Edns) -> usize {
    /// Root, type, payload, code and flags, length.
    const OPT_LENGTH: usize = 11;
    let options = edns.options().options.iter();
    OPT_LENGTH + options.map(|(_, option)| OPTION_HEAD_LENGTH + usize::from(option.len())).sum::<usize>()
}
