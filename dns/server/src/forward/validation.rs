//! Upstream servers with or without a check of signatures (RFC 4035).

use std::fmt;

use futures_util::StreamExt;
use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::xfer::DnsHandle;
use hickory_net::{DnsError, NetError};
use hickory_proto::dnssec::Proof;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query, ResponseCode};

use super::Failure;
use super::cache::{Key, Resolved};
use super::pool::Pool;

/// Upstream servers, and whether what they say is checked.
#[derive(Clone)]
pub(crate) struct Resolver {
    pool: Pool,
    validating: Option<DnssecDnsHandle<Pool>>,
}

impl Resolver {
    pub(crate) fn new(pool: Pool, validate: bool) -> Self {
        let validating = validate.then(|| DnssecDnsHandle::new(pool.clone()));
        Self { pool, validating }
    }

    /// Asks. With the answer comes how many octets it had.
    pub(crate) async fn ask(&self, key: &Key) -> Result<(Resolved, usize), Failure> {
        let query = Query::query(key.name.clone().into(), key.kind);
        let mut options = DnsRequestOptions::default();
        options.edns_set_dnssec_ok = key.dnssec_ok;
        let mut request = DnsRequest::from_query(query, options);
        request.metadata.checking_disabled = key.checking_disabled;
        match &self.validating {
            Some(validating) if !key.checking_disabled => checked(key, validating.send(request)).await,
            _ => {
                let answer = self.pool.ask(request).await.map_err(|_| Failure::Unreachable)?;
                Ok(resolved(key, answer, false))
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_validating = self.validating.is_some();
        f.debug_struct("Resolver").field("pool", &self.pool).field("validating", &is_validating).finish()
    }
}

async fn checked(
    key: &Key,
    mut answers: <DnssecDnsHandle<Pool> as DnsHandle>::Response,
) -> Result<(Resolved, usize), Failure> {
    match answers.next().await {
        Some(Ok(answer)) => {
            let mut proofs = answer.answers.iter().chain(&answer.authorities).map(|record| record.proof);
            if proofs.clone().any(|proof| proof == Proof::Bogus) {
                return Err(Failure::Bogus);
            }
            let is_signed = proofs.clone().next().is_some() && proofs.all(|proof| proof == Proof::Secure);
            Ok(resolved(key, answer, is_signed))
        }
        Some(Err(NetError::Dns(DnsError::Nsec { response, proof, .. }))) => match proof {
            Proof::Bogus => Err(Failure::Bogus),
            Proof::Secure => Ok(resolved(key, *response, true)),
            Proof::Insecure | Proof::Indeterminate => Ok(resolved(key, *response, false)),
        },
        Some(Err(NetError::Dns(DnsError::DnssecBogus))) => Err(Failure::Bogus),
        Some(Err(_)) | None => Err(Failure::Unreachable),
    }
}

/// What an answer comes down to. Additional records are left out, and so are what only signatures need and the
/// authority section of positive answers, unless signatures are wanted.
fn resolved(key: &Key, answer: DnsResponse, authentic: bool) -> (Resolved, usize) {
    let octets = answer.as_buffer().len();
    let message = answer.into_message().maybe_strip_dnssec_records(key.dnssec_ok);
    let is_negative = message.answers.is_empty() || message.metadata.response_code == ResponseCode::NXDomain;
    let authorities = if is_negative || key.dnssec_ok { message.authorities } else { Vec::new() };
    let code = message.metadata.response_code;
    (Resolved { code, authentic, answers: message.answers, authorities }, octets)
}
