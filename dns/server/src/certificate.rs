//! The certificate that clients of encrypted listeners see, and the TLS settings with it.
//!
//! The files are read again every minute: certificates are renewed while the server runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

/// How often the files are read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Where a certificate and its key are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and those that lead to one that clients know.
    pub chain: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

/// The certificate cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read, or is no PEM.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{path} holds no certificate")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Key and certificate do not belong together, or are of a kind that is not known.
    #[error("the key in {key} cannot be used with the certificate in {chain}")]
    Unusable {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The TLS library refuses its settings.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// The certificate that is shown.
pub(crate) struct Certificate {
    files: CertificateFiles,
    shown: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// Reads it.
    pub(crate) fn load(files: CertificateFiles) -> Result<Arc<Self>, CertificateError> {
        let shown = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self { files, shown }))
    }

    /// Reads the files again every minute until the server is gone. What cannot be used changes nothing.
    pub(crate) async fn keep(self: Arc<Self>, mut stop: watch::Receiver<()>) {
        loop {
            tokio::select! {
                _ = stop.changed() => return,
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
            }
            match read(&self.files) {
                Ok(key) if key.cert != self.shown.load().cert => {
                    self.shown.store(Arc::new(key));
                    info!("The certificate of the DNS server has changed");
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "The certificate of the DNS server cannot be read again"),
            }
        }
    }

    /// Settings of TLS that offer these protocols.
    pub(crate) fn tls(
        self: &Arc<Self>,
        protocols: &[&[u8]],
    ) -> Result<rustls::ServerConfig, CertificateError> {
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CertificateError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

/// Without the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey, CertificateError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        |source| CertificateError::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(error(&files.chain))?;
    if chain.is_empty() {
        return Err(CertificateError::Empty { path: files.chain.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(error(&files.key))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|source| CertificateError::Unusable {
        chain: files.chain.clone(),
        key: files.key.clone(),
        source,
    })
}
