//! The task event bus: carries views from the control plane to the planes, and their reports back.
//!
//! Here both ends live in one process. A [`Subscriber`] sees a snapshot and then deltas; a slow one sees fewer,
//! larger deltas, because what it has missed is merged by taking the difference to the newest view. So nothing queues
//! per subscriber, and nobody slows the others.

#![forbid(unsafe_code)]

mod client;
mod clock;
mod commit_log;
mod feed;
mod pki;
mod reason;
mod role;
mod server;
mod subscriber;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use client::{
    BACKOFF_FIRST, BACKOFF_LAST, Client, ClientSettings, ClientStats, JoinError, LinkError, LinkState, join,
};
pub use feed::{Feed, PlaneNews, Publisher, REPORTS_MAX, Report, channel};
pub use pki::{
    Authority, AuthorityError, CertificateError, FileError, Identity, IdentityError, JoinToken,
    JoinTokenError, NoRandomness, NodeRecord, RecordError, TOKEN_USES_MAX, TlsError, TokenTerms,
};
pub use reason::Reason;
pub use role::{NODE_NAME_LENGTH_MAX, NodeName, NodeNameError, Role, RoleError};
pub use server::{
    COMMANDS_MAX, JOINING_MAX, MasterEnds, NEWCOMERS_MAX, Server, ServerError, ServerSettings, ServerStats,
};
pub use subscriber::{Subscriber, Update};
