//! Why an answer is what it is (RFC 8914).

use hickory_proto::op::Message;

use crate::edns;

pub(super) const STALE_ANSWER: u16 = 3;
pub(super) const DNSSEC_BOGUS: u16 = 6;
pub(super) const PROHIBITED: u16 = 18;
pub(super) const STALE_NXDOMAIN_ANSWER: u16 = 19;
pub(super) const NOT_AUTHORITATIVE: u16 = 20;
pub(super) const NO_REACHABLE_AUTHORITY: u16 = 22;

/// Says why, to whoever understands.
pub(super) fn explain(response: &mut Message, reason: u16) {
    if let Some(edns) = &mut response.edns {
        edns::explain(edns, reason);
    }
}
