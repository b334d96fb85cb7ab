//! A node's key and certificate.

use std::path::{Path, PathBuf};

use mesonet_model::ClusterId;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::certificate::{CertificateError, Holder};
use super::files::{self, FileError};
use crate::NodeName;

const KEY_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.pem";
const AUTHORITY_FILE: &str = "ca.pem";
const LOCK_FILE: &str = "lock";

/// A node's key, its certificate and the authority's, as they lie in the node's directory.
#[derive(Debug)]
pub struct Identity {
    pub(crate) holder: Holder,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) authority: CertificateDer<'static>,
}

/// The files of an identity that TLS needs, in PEM. The certificate's is replaced when it is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A node's identity cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The node has not joined.
    #[error("{} holds no node identity: the node has not joined a cluster", .0.display())]
    Missing(PathBuf),
    /// There is one already.
    #[error("{} holds a node identity already", .0.display())]
    Exists(PathBuf),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificate is none of a node.
    #[error("the node's certificate cannot be used")]
    Certificate(#[from] CertificateError),
}

impl Identity {
    /// Whether a directory holds an identity.
    pub fn exists(dir: &Path) -> bool {
        dir.join(CERTIFICATE_FILE).exists()
    }

    /// Where the certificate and its key of an identity in a directory are.
    pub fn files(dir: &Path) -> IdentityFiles {
        IdentityFiles { certificate: dir.join(CERTIFICATE_FILE), key: dir.join(KEY_FILE) }
    }

    /// Reads the identity of a directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        if !Self::exists(dir) {
            return Err(IdentityError::Missing(dir.to_owned()));
        }
        let certificate = read_certificate(dir.join(CERTIFICATE_FILE))?;
        let path = dir.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_slice(files::read(&path)?.as_bytes())
            .map_err(|error| IdentityError::Unusable { path, reason: error.to_string() })?;
        let authority = read_certificate(dir.join(AUTHORITY_FILE))?;
        Ok(Self { holder: Holder::of(&certificate)?, certificate, key, authority })
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.holder.name
    }

    /// The cluster that the node belongs to.
    pub fn cluster(&self) -> &ClusterId {
        &self.holder.cluster
    }
}

/// A node that asks for a certificate: its directory, with a key in it.
#[derive(Debug)]
pub(crate) struct Applicant {
    dir: PathBuf,
    key: KeyPair,
}

impl Applicant {
    /// A node that has not joined. A key from an attempt whose answer was lost is used again, so that the master
    /// knows the node.
    pub(crate) fn new(dir: &Path) -> Result<Self, IdentityError> {
        if Identity::exists(dir) {
            return Err(IdentityError::Exists(dir.to_owned()));
        }
        files::make_dir(dir)?;
        // The daemons of a node may join at the same time: both take the key of whichever is first.
        let _lock = files::lock(&dir.join(LOCK_FILE))?;
        if dir.join(KEY_FILE).exists() {
            return Self::renewing(dir);
        }
        let path = dir.join(KEY_FILE);
        let key = KeyPair::generate()
            .map_err(|error| IdentityError::Unusable { path: path.clone(), reason: error.to_string() })?;
        files::write(&path, key.serialize_pem().as_bytes())?;
        Ok(Self { dir: dir.to_owned(), key })
    }

    /// A node that has a key.
    pub(crate) fn renewing(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(KEY_FILE);
        let key = KeyPair::from_pem(&files::read(&path)?)
            .map_err(|error| IdentityError::Unusable { path, reason: error.to_string() })?;
        Ok(Self { dir: dir.to_owned(), key })
    }

    /// The request for a certificate (PKCS #10, DER).
    pub(crate) fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateParams::default().serialize_request(&self.key);
        let request = request.map_err(|error| IdentityError::Unusable {
            path: self.dir.join(KEY_FILE),
            reason: error.to_string(),
        })?;
        Ok(request.der().to_vec())
    }

    /// Keeps what the master has certified. The authority's certificate is kept first, so that an identity is whole
    /// as soon as it exists.
    pub(crate) fn keep(&self, certificate: &[u8], authority: &[u8]) -> Result<Identity, IdentityError> {
        let authority_file = self.dir.join(AUTHORITY_FILE);
        if !authority_file.exists() {
            files::write(&authority_file, &certificate_pem(authority))?;
        }
        self.renew(certificate)
    }

    /// Keeps a newer certificate.
    pub(crate) fn renew(&self, certificate: &[u8]) -> Result<Identity, IdentityError> {
        let holder = Holder::of(certificate)?;
        files::write(&self.dir.join(CERTIFICATE_FILE), &certificate_pem(certificate))?;
        tracing::info!(node = %holder.name, until = %holder.not_after, "The node's certificate is kept");
        Identity::load(&self.dir)
    }
}

fn read_certificate(path: PathBuf) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(files::read(&path)?.as_bytes())
        .map_err(|error| IdentityError::Unusable { path, reason: error.to_string() })
}

fn certificate_pem(der: &[u8]) -> Vec<u8> {
    pem::encode(&pem::Pem::new("CERTIFICATE", der)).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn those_who_join_at_the_same_time_have_the_same_key() {
        let dir = tempfile::tempdir().expect("directory");
        let start = Barrier::new(8);
        let join = || {
            start.wait();
            Applicant::new(dir.path()).expect("applies").key.serialize_pem()
        };
        let keys: BTreeSet<String> = thread::scope(|scope| {
            let joining: Vec<_> = (0..8).map(|_| scope.spawn(join)).collect();
            joining.into_iter().map(|joining| joining.join().expect("joins")).collect()
        });
        assert_eq!(keys.len(), 1);
    }
}
