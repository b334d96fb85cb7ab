//! The cluster's own authority, tokens to join it, and the identities that it gives.

mod authority;
mod identity;
mod token;

pub use authority::{Authority, AuthorityError, NodeRecord};
pub use identity::{Identity, IdentityError};
pub use token::{JoinToken, JoinTokenError, TokenTerms};
