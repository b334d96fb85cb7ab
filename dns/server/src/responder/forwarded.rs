//! Queries that upstream servers answer.

use std::sync::Arc;

use hickory_proto::op::{Message, Query, ResponseCode as WireCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name as WireName, RData, Record};
use mesonet_dns_zone::Answer;
use tokio::sync::OwnedSemaphorePermit;

use super::extended_error::{
    DNSSEC_BOGUS, NO_REACHABLE_AUTHORITY, PROHIBITED, STALE_ANSWER, STALE_NXDOMAIN_ANSWER, explain,
};
use super::zone_answer::fill;
use super::{Freshness, Outcome, Request, kind_label};
use crate::forward::{Age, Failure, Forwarder, Key, Overload, Reply};
use crate::metrics::{CodeLabel, Transport};

/// For how many seconds a client may take a name with a domain of its search list for the name without: as long as a
/// record of the zones by default, because the name may come into being.
const COLLAPSED_TTL: u32 = 5;

/// A query that upstream servers answer.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(super) request: Request,
    pub(super) response: Message,
    pub(super) key: Key,
    pub(super) forwarder: Arc<Forwarder>,
    /// Held until the answer is there.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) collapsed: Option<Collapsed>,
}

/// What is asked instead of a question that exists because of a search list only.
#[derive(Debug)]
pub(super) struct Collapsed {
    pub(super) sought: WireName,
    /// The answer if that does not exist either.
    pub(super) absent: Answer,
}

impl Forwarded {
    /// Waits for the answer, which takes some seconds at most.
    pub(crate) async fn finish(self) -> Outcome {
        match self.forwarder.resolve(&self.key).await {
            Err(Failure::Busy) => self.overloaded(),
            reply => self.replied(reply),
        }
    }

    /// What becomes of it when too many queries wait, or too much is being asked.
    pub(super) fn overloaded(self) -> Outcome {
        match self.forwarder.overload() {
            // Over a connection silence would be taken for the end of it.
            Overload::Drop if self.request.transport == Transport::Udp => Outcome::Ignore,
            Overload::Drop | Overload::Refuse => self.replied(Err(Failure::Busy)),
        }
    }

    pub(super) fn replied(self, reply: Result<Reply, Failure>) -> Outcome {
        let Self { request, mut response, collapsed, .. } = self;
        if let Some(Collapsed { sought, absent }) = collapsed {
            let code = match reply {
                Ok(reply) if reply.resolved.code == WireCode::NoError => {
                    let code = fill_forwarded(&mut response, &request.query, &reply);
                    let alias = RData::CNAME(CNAME(sought));
                    let alias = Record::from_rdata(request.query.name.clone(), COLLAPSED_TTL, alias);
                    response.answers.insert(0, alias);
                    Some(code)
                }
                // Freshness was looked at before.
                Ok(_) | Err(_) => fill(&mut response, &request.query, Freshness::Current, absent),
            };
            return match code {
                Some(code) => request.encoded(response, code),
                None => request.header.failed(kind_label(request.query.query_type)),
            };
        }
        let code = match reply {
            Ok(reply) => fill_forwarded(&mut response, &request.query, &reply),
            Err(failure) => {
                let (code, label, reason) = match failure {
                    Failure::Unreachable => (WireCode::ServFail, CodeLabel::ServFail, NO_REACHABLE_AUTHORITY),
                    Failure::Bogus => (WireCode::ServFail, CodeLabel::ServFail, DNSSEC_BOGUS),
                    Failure::Busy => (WireCode::Refused, CodeLabel::Refused, PROHIBITED),
                };
                response.metadata.response_code = code;
                explain(&mut response, reason);
                label
            }
        };
        request.encoded(response, code)
    }
}

fn fill_forwarded(response: &mut Message, query: &Query, reply: &Reply) -> CodeLabel {
    let Reply { resolved, age } = reply;
    let shown = |record: &Record| {
        let mut record = record.clone();
        record.ttl = age.ttl_of(record.ttl);
        // The client's spelling comes back, whoever asked first.
        if record.name == query.name {
            record.name = query.name.clone();
        }
        record
    };
    response.answers = resolved.answers.iter().map(shown).collect();
    response.authorities = resolved.authorities.iter().map(shown).collect();
    response.metadata.authentic_data = resolved.authentic;
    response.metadata.response_code = resolved.code;
    let is_negative = resolved.code == WireCode::NXDomain;
    match (age, is_negative) {
        (Age::Stale, false) => explain(response, STALE_ANSWER),
        (Age::Stale, true) => explain(response, STALE_NXDOMAIN_ANSWER),
        (Age::Seconds(_), _) => {}
    }
    if is_negative { CodeLabel::NxDomain } else { CodeLabel::NoError }
}
