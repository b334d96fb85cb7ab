//! What the zone says, as a message.

use hickory_proto::op::{Message, Query, ResponseCode as WireCode};
use hickory_proto::rr::{DNSClass, RecordType};
use mesonet_dns_zone::{Answer, ExtendedError, Name, Question, QuestionType, ResponseCode};

use super::Freshness;
use super::extended_error::{STALE_ANSWER, STALE_NXDOMAIN_ANSWER, explain};
use crate::metrics::CodeLabel;
use crate::wire;

/// What the zone is asked. Nothing for classes other than IN, which are refused.
pub(super) fn question(query: &Query) -> Option<Question> {
    if query.query_class != DNSClass::IN {
        return None;
    }
    let kind = match query.query_type {
        RecordType::A => QuestionType::A,
        RecordType::AAAA => QuestionType::Aaaa,
        RecordType::SRV => QuestionType::Srv,
        RecordType::CNAME => QuestionType::Cname,
        RecordType::PTR => QuestionType::Ptr,
        RecordType::TXT => QuestionType::Txt,
        RecordType::SOA => QuestionType::Soa,
        RecordType::NS => QuestionType::Ns,
        RecordType::ANY => QuestionType::Any,
        _ => QuestionType::Other,
    };
    let name = Name::from_labels(query.name.iter()).ok()?;
    Some(Question { name, kind })
}

/// Puts the zone's answer into the message. Nothing if a name cannot be encoded.
pub(super) fn fill(
    response: &mut Message,
    query: &Query,
    freshness: Freshness,
    answer: Answer,
) -> Option<CodeLabel> {
    response.metadata.authoritative = answer.authoritative;
    response.metadata.truncation = answer.truncated;
    // The client's spelling of the name comes back, as clients that check it expect (0x20).
    for record in &answer.answers {
        let owner = wire::name(&record.owner)?;
        let owner = if owner == query.name { query.name.clone() } else { owner };
        response.answers.push(wire::record(owner, record)?);
    }
    for record in &answer.authority {
        response.authorities.push(wire::record(wire::name(&record.owner)?, record)?);
    }
    for record in &answer.additional {
        response.additionals.push(wire::record(wire::name(&record.owner)?, record)?);
    }
    let reason = answer.reason.map(ExtendedError::code).or_else(|| staleness(freshness, answer.code));
    if let Some(reason) = reason {
        explain(response, reason);
    }
    let (wire_code, label) = match answer.code {
        ResponseCode::NoError => (WireCode::NoError, CodeLabel::NoError),
        ResponseCode::ServerFailure => (WireCode::ServFail, CodeLabel::ServFail),
        ResponseCode::NameError => (WireCode::NXDomain, CodeLabel::NxDomain),
        ResponseCode::Refused => (WireCode::Refused, CodeLabel::Refused),
    };
    response.metadata.response_code = wire_code;
    Some(label)
}

/// The extended error of an answer that may be out of date (RFC 8914 §4.4 and §4.20).
fn staleness(freshness: Freshness, code: ResponseCode) -> Option<u16> {
    match (freshness, code) {
        (Freshness::Stale, ResponseCode::NoError) => Some(STALE_ANSWER),
        (Freshness::Stale, ResponseCode::NameError) => Some(STALE_NXDOMAIN_ANSWER),
        (Freshness::Stale, ResponseCode::ServerFailure | ResponseCode::Refused) | (Freshness::Current, _) => {
            None
        }
    }
}
