//! The listeners whose connections nobody on the way can read: over TLS, HTTPS and QUIC.

use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::info;

use crate::certificate::{Certificate, CertificateError, CertificateFiles};
use crate::listener;
use crate::quic::EndpointError;
use crate::server::{Shared, StartError};
use crate::tcp::{self, Carried};
use crate::{https, quic};

/// The protocol that is offered in the TLS handshake of queries over TLS.
const TLS_PROTOCOL: &[u8] = b"dot";

/// Where encrypted connections are accepted. By default nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptedConfig {
    /// Over TLS (RFC 7858).
    pub tls: Option<SocketAddr>,
    /// Over HTTPS (RFC 8484), at the path `/dns-query`.
    pub https: Option<SocketAddr>,
    /// Over QUIC (RFC 9250).
    pub quic: Option<SocketAddr>,
    /// The certificate of all of them.
    pub certificate: Option<CertificateFiles>,
}

/// The addresses with the ports that were chosen for port 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncryptedAddresses {
    /// Over TLS.
    pub tls: Option<SocketAddr>,
    /// Over HTTPS.
    pub https: Option<SocketAddr>,
    /// Over QUIC.
    pub quic: Option<SocketAddr>,
}

/// There are no encrypted listeners.
#[derive(Debug, Error)]
pub enum EncryptedError {
    /// There are listeners but no certificate.
    #[error("no certificate is given for it")]
    NoCertificate,
    /// The certificate cannot be used.
    #[error("its certificate cannot be used")]
    Certificate(#[from] CertificateError),
    /// QUIC cannot be served.
    #[error("QUIC cannot be served")]
    Quic(#[from] EndpointError),
}

/// What is bound and ready to be served.
pub(crate) struct Encrypted {
    certificate: Option<Arc<Certificate>>,
    streams: Vec<(tokio::net::TcpListener, Carried)>,
    quic: Option<quinn::Endpoint>,
    pub(crate) addresses: EncryptedAddresses,
}

impl Encrypted {
    /// Binds the sockets and reads the certificate.
    pub(crate) fn bind(config: &EncryptedConfig) -> Result<Self, StartError> {
        let addresses = EncryptedAddresses::default();
        let mut encrypted = Self { certificate: None, streams: Vec::new(), quic: None, addresses };
        if config.tls.or(config.https).or(config.quic).is_none() {
            return Ok(encrypted);
        }
        let files = config.certificate.clone().ok_or(EncryptedError::NoCertificate)?;
        let certificate = Certificate::load(files).map_err(EncryptedError::from)?;
        let acceptor = |protocols: &[&[u8]]| {
            let config = certificate.tls(protocols).map_err(EncryptedError::from)?;
            Ok::<_, EncryptedError>(TlsAcceptor::from(Arc::new(config)))
        };
        if let Some(address) = config.tls {
            let carried = Carried::Tls(acceptor(&[TLS_PROTOCOL])?);
            encrypted.addresses.tls = Some(encrypted.bind_stream(address, carried)?);
        }
        if let Some(address) = config.https {
            let carried = Carried::Https(acceptor(&https::PROTOCOLS)?);
            encrypted.addresses.https = Some(encrypted.bind_stream(address, carried)?);
        }
        if let Some(address) = config.quic {
            let failed = |source| StartError::Bind { address, protocol: "QUIC", source };
            let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
            let tls = certificate.tls(&[quic::PROTOCOL]).map_err(EncryptedError::from)?;
            let endpoint = quic::endpoint(socket, tls).map_err(EncryptedError::from)?;
            encrypted.addresses.quic = Some(endpoint.local_addr().map_err(failed)?);
            encrypted.quic = Some(endpoint);
        }
        encrypted.certificate = Some(certificate);
        Ok(encrypted)
    }

    fn bind_stream(&mut self, address: SocketAddr, carried: Carried) -> Result<SocketAddr, StartError> {
        let failed = |source| StartError::Bind { address, protocol: "TCP", source };
        let listener = listener::bind_tcp(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        self.streams.push((listener, carried));
        Ok(address)
    }

    /// Serves it until the server is gone.
    pub(crate) fn serve(self, shared: &Arc<Shared>, stop: &watch::Receiver<()>) {
        let EncryptedAddresses { tls, https, quic } = self.addresses;
        for (address, protocol) in [(tls, "TLS"), (https, "HTTPS"), (quic, "QUIC")] {
            if let Some(address) = address {
                info!(%address, protocol, "DNS is served");
            }
        }
        for (listener, carried) in self.streams {
            tokio::spawn(tcp::serve(listener, carried, shared.clone(), stop.clone()));
        }
        if let Some(endpoint) = self.quic {
            tokio::spawn(quic::serve(endpoint, shared.clone(), stop.clone()));
        }
        if let Some(certificate) = self.certificate {
            tokio::spawn(certificate.keep(stop.clone()));
        }
    }
}
