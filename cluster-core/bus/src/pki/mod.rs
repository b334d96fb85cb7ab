//! The cluster's own authority, tokens to join it, and the identities that it gives.

mod authority;
mod certificate;
mod file_records;
mod files;
mod hex;
mod identity;
mod records;
mod tls;
mod token;

pub use authority::{Authority, AuthorityError, NodeRecord, TOKEN_USES_MAX, TokenRecord};
pub use certificate::{CertificateError, NoRandomness};
pub use file_records::FileRecords;
pub use files::FileError;
pub use identity::{Identity, IdentityError, IdentityFiles};
pub use records::{RecordError, Records};
pub use tls::TlsError;
pub use token::{JoinToken, JoinTokenError, TokenTerms};

pub(crate) use authority::CertifyError;
pub(crate) use certificate::{Holder, MASTER_DNS_NAME};
pub(crate) use identity::Applicant;
pub(crate) use tls::{client_config, joining_config, server_config};

/// A number that nobody can guess, to seed what need not be secret.
pub(crate) fn seed() -> Result<u64, NoRandomness> {
    certificate::random().map(u64::from_le_bytes)
}
