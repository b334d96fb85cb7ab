//! TLS 1.3 with the cluster's authority as the only one that is trusted.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme, version,
};
use thiserror::Error as ThisError;

use super::certificate::{self, Fingerprint, Holder};
use super::identity::Identity;

/// The application protocol: what is spoken inside is versioned by its own first message.
const ALPN: &[u8] = b"mesonet-bus";

/// Keys and certificates cannot be used for TLS.
#[derive(Debug, ThisError)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    fn of(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// The master's side. Nodes without certificate are let in as far as the bus' first message.
pub(crate) fn server_config(
    authority: &CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<QuicServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::of)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::of)?
        .with_client_cert_verifier(Arc::new(AnyTime(verifier)))
        // A node that joins finds the authority by its fingerprint in here.
        .with_single_cert(vec![certificate, authority.clone()], key)
        .map_err(TlsError::of)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    QuicServerConfig::try_from(config).map_err(TlsError::of)
}

/// The side of a node that has joined.
pub(crate) fn client_config(identity: Identity) -> Result<QuicClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&identity.authority)?, provider())
        .build()
        .map_err(TlsError::of)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::of)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate], identity.key)
        .map_err(TlsError::of)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    QuicClientConfig::try_from(config).map_err(TlsError::of)
}

/// The side of a node that joins and knows only the authority's fingerprint.
pub(crate) fn joining_config(authority: Fingerprint) -> Result<QuicClientConfig, TlsError> {
    let verifier = ByFingerprint { authority, algorithms: provider().signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::of)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    QuicClientConfig::try_from(config).map_err(TlsError::of)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(TlsError::of)?;
    Ok(Arc::new(roots))
}

/// Takes the authority out of what the master presents, by its fingerprint, and then checks as always.
#[derive(Debug)]
struct ByFingerprint {
    authority: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_authority = |der: &&CertificateDer<'_>| certificate::fingerprint(der) == self.authority;
        let authority = intermediates.iter().find(is_authority);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let unusable = |error: TlsError| Error::General(error.to_string());
        let roots = roots(&authority.clone().into_owned()).map_err(unusable)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC has no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Leaves it to the bus whether a certificate is valid at this time: the bus can tell the node both clocks, TLS cannot.
#[derive(Debug)]
struct AnyTime(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyTime {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let at = Holder::of(end_entity).map_or(now, |holder| {
            let seconds = u64::try_from(holder.not_before.as_millis() / 1000).unwrap_or(0);
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        });
        self.0.verify_client_cert(end_entity, intermediates, at)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
