//! What certificates say, written and read.
//!
//! A certificate names its holder in one URI per role: `mesonet://<cluster>/<role>/<name>`. A master's has
//! [`MASTER_DNS_NAME`] too, by which the TLS library of a node tells masters from other nodes of the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use mesonet_model::{ClusterId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::hex;
use crate::{NodeName, Role};

/// What nodes ask for when they connect to a master, whatever its address.
pub(crate) const MASTER_DNS_NAME: &str = "master.mesonet.internal";

/// Certificates begin so much in the past, for nodes whose clock is behind.
const VALID_BEFORE: Duration = Duration::from_secs(3600);

/// The authority outlives the hardware; replacing it means that all nodes join anew.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// The path segment that stands in the place of a role in the authority's own certificate.
const AUTHORITY_SEGMENT: &str = "authority";

/// Bytes of a serial number: what RFC 5280 allows at most is 20.
const SERIAL_BYTES: usize = 16;

/// The system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("cannot get randomness from the system")]
pub struct NoRandomness;

/// A certificate is not one of this program's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// It cannot be read at all.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// It names nobody.
    #[error("the certificate names no node of a mesonet cluster")]
    NamesNobody,
}

/// Who a certificate is for, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) cluster: ClusterId,
    pub(crate) name: NodeName,
    pub(crate) roles: BTreeSet<Role>,
    /// In hexadecimal digits.
    pub(crate) serial: String,
    /// Of the public key.
    pub(crate) key: Fingerprint,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// A SHA-256 hash in hexadecimal digits.
pub(crate) type Fingerprint = String;

/// The fingerprint of bytes.
pub(crate) fn fingerprint(bytes: &[u8]) -> Fingerprint {
    hex::encode(digest(&SHA256, bytes).as_ref())
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// A certificate for the authority itself, to be self-signed.
pub(crate) fn authority_params(cluster: &ClusterId, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time(now).saturating_sub(signed(VALID_BEFORE));
    params.not_after = date_time(now).saturating_add(signed(AUTHORITY_LIFETIME));
    params.distinguished_name = distinguished_name(&format!("mesonet cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let uri = format!("mesonet://{cluster}/{AUTHORITY_SEGMENT}/{AUTHORITY_SEGMENT}");
    params.subject_alt_names.extend(uri.try_into().ok().map(SanType::URI));
    params
}

/// A certificate for a node.
pub(crate) fn node_params(
    cluster: &ClusterId,
    name: &NodeName,
    roles: &BTreeSet<Role>,
    now: Timestamp,
    lifetime: Duration,
) -> Result<CertificateParams, NoRandomness> {
    let mut serial = random::<SERIAL_BYTES>()?;
    // A positive number of full length reads back as it was written.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date_time(now).saturating_sub(signed(VALID_BEFORE));
    params.not_after = date_time(now).saturating_add(signed(lifetime));
    params.distinguished_name = distinguished_name(name.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uris = roles.iter().map(|role| format!("mesonet://{cluster}/{role}/{name}"));
    params.subject_alt_names = uris.filter_map(|uri| uri.try_into().ok().map(SanType::URI)).collect();
    if roles.contains(&Role::Master) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names.extend(MASTER_DNS_NAME.try_into().ok().map(SanType::DnsName));
    }
    Ok(params)
}

impl Holder {
    /// Reads a node's certificate. Whether it is genuine is for the TLS library to say.
    pub(crate) fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let mut holder: Option<(ClusterId, NodeName)> = None;
        let mut roles = BTreeSet::new();
        for (cluster, segment, name) in uris(&certificate)? {
            let (Ok(role), Ok(name)) = (segment.parse(), name.parse()) else { continue };
            holder = Some((ClusterId::new(cluster), name));
            roles.insert(role);
        }
        let (cluster, name) = holder.ok_or(CertificateError::NamesNobody)?;
        let validity = certificate.validity();
        let millis =
            |time: x509_parser::time::ASN1Time| Timestamp::from_millis(time.timestamp().saturating_mul(1000));
        Ok(Self {
            cluster,
            name,
            roles,
            serial: hex::encode(certificate.raw_serial()),
            key: fingerprint(&certificate.public_key().subject_public_key.data),
            not_before: millis(validity.not_before),
            not_after: millis(validity.not_after),
        })
    }

    /// When it is time to ask for a new one.
    pub(crate) fn renew_at(&self) -> Timestamp {
        // What is in the past at the start is no part of the lifetime.
        let issued = self.not_before.plus(VALID_BEFORE);
        issued.plus(self.not_after.since(issued).mul_f64(RENEW_AFTER))
    }
}

/// The part of its lifetime after which a certificate is renewed: a third is left for masters that are away.
const RENEW_AFTER: f64 = 2.0 / 3.0;

/// The cluster that an authority's certificate is for.
pub(crate) fn authority_cluster(der: &[u8]) -> Result<ClusterId, CertificateError> {
    let certificate = parse(der)?;
    let named = uris(&certificate)?.into_iter().find(|(_, segment, _)| segment == AUTHORITY_SEGMENT);
    named.map(|(cluster, ..)| ClusterId::new(cluster)).ok_or(CertificateError::NamesNobody)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let parsed = X509Certificate::from_der(der);
    parsed.map(|(_, certificate)| certificate).map_err(|error| CertificateError::Malformed(error.to_string()))
}

/// Cluster, role and name of each URI that has this program's form.
fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<(String, String, String)>, CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| CertificateError::Malformed(error.to_string()))?
        .ok_or(CertificateError::NamesNobody)?;
    let parts = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => {
            let mut parts = uri.strip_prefix("mesonet://")?.splitn(3, '/').map(str::to_owned);
            Some((parts.next()?, parts.next()?, parts.next()?))
        }
        _ => None,
    });
    Ok(parts.collect())
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn date_time(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_millis().div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn signed(duration: Duration) -> time::Duration {
    duration.try_into().unwrap_or(time::Duration::MAX)
}
