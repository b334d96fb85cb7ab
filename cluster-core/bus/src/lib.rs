//! The task event bus: carries views from the control plane to the planes, and their reports back.
//!
//! Within a process, [`channel`] joins the two: a [`Subscriber`] sees a snapshot and then deltas; a slow one sees fewer,
//! larger deltas, because what it has missed is merged by taking the difference to the newest view. So nothing queues
//! per subscriber, and nobody slows the others.
//!
//! Between processes, a [`Server`] at the master and a [`Client`] at each node's daemons carry the same over QUIC, so
//! that planes and agents do not see the difference. The cluster's [`Authority`] says who may connect: a node joins
//! with a [`JoinToken`] and gets an [`Identity`], a certificate with its name and roles, which each message is checked
//! against.
//!
//! Main entries: [`channel`], [`Authority`], [`Server::start`], [`join`], [`Client::start_agent`],
//! [`Client::start_net`].

#![forbid(unsafe_code)]

mod client;
mod clock;
mod commit_log;
mod feed;
mod files;
mod pki;
mod plane_paths;
mod reason;
mod role;
mod server;
mod subscriber;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use client::{
    BACKOFF_FIRST, BACKOFF_LAST, Client, ClientSettings, ClientStats, JoinError, KnownView, LinkError,
    LinkState, join,
};
pub use feed::{Feed, PlaneNews, Publisher, REPORTS_MAX, Report, channel};
pub use files::{FILE_ANSWER_MAX, FILE_BYTES_MAX, FileFailure, FilePiece, FileQuestion, Files};
pub use pki::{
    Authority, AuthorityError, CertificateError, FileError, FileRecords, Identity, IdentityError,
    IdentityFiles, JoinToken, JoinTokenError, NoRandomness, NodeRecord, RecordError, Records, TOKEN_USES_MAX,
    TlsError, TokenRecord, TokenTerms,
};
pub use plane_paths::{PlaneKnown, PlanePaths};
pub use reason::Reason;
pub use role::{NODE_NAME_LENGTH_MAX, NodeName, NodeNameError, Role, RoleError};
pub use server::{
    COMMANDS_MAX, JOINING_MAX, LeaderAddress, MasterEnds, NEWCOMERS_MAX, Server, ServerError, ServerSettings,
    ServerStats, StandbyState,
};
pub use subscriber::{Subscriber, Update};
