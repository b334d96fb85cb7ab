//! Why a connection is refused or ended, as both sides know it.

use std::fmt;

/// The reason that a master gives with the end of a connection. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No version is spoken by both sides.
    Version,
    /// A message is larger than its kind may be.
    TooLarge,
    /// A message cannot be read, or not at this point.
    BadMessage,
    /// The certificate or the connection is not for messages of this kind.
    Role,
    /// The node's certificates are revoked.
    Revoked,
    /// The node's certificate is not valid at the master's time.
    CertificateTime,
    /// The certificate is of another cluster, or of nobody.
    Cluster,
    /// The join token is unknown, expired or used up.
    Token,
    /// Another key has the node's name.
    NameTaken,
    /// The node does not take what it is sent.
    TooSlow,
    /// The same node has connected anew.
    Superseded,
    /// Too many connections wait to prove who they are.
    Busy,
    /// The node has not said in time who it is.
    Timeout,
    /// The agent belongs to another node.
    ForeignAgent,
    /// The master ends.
    Closing,
    /// The master cannot do what it is asked.
    Internal,
    /// The master stands by. The text of the refusal is where the leader is reached, `HOST:PORT`, if that is known.
    NotLeader,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::Version,
        Self::TooLarge,
        Self::BadMessage,
        Self::Role,
        Self::Revoked,
        Self::CertificateTime,
        Self::Cluster,
        Self::Token,
        Self::NameTaken,
        Self::TooSlow,
        Self::Superseded,
        Self::Busy,
        Self::Timeout,
        Self::ForeignAgent,
        Self::Closing,
        Self::Internal,
        Self::NotLeader,
    ];

    /// The name, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::TooLarge => "too_large",
            Self::BadMessage => "bad_message",
            Self::Role => "role",
            Self::Revoked => "revoked",
            Self::CertificateTime => "certificate_time",
            Self::Cluster => "cluster",
            Self::Token => "token",
            Self::NameTaken => "name_taken",
            Self::TooSlow => "too_slow",
            Self::Superseded => "superseded",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::ForeignAgent => "foreign_agent",
            Self::Closing => "closing",
            Self::Internal => "internal",
            Self::NotLeader => "not_leader",
        }
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::TooLarge => 2,
            Self::BadMessage => 3,
            Self::Role => 4,
            Self::Revoked => 5,
            Self::CertificateTime => 6,
            Self::Cluster => 7,
            Self::Token => 8,
            Self::NameTaken => 9,
            Self::TooSlow => 10,
            Self::Superseded => 11,
            Self::Busy => 12,
            Self::Timeout => 13,
            Self::ForeignAgent => 14,
            Self::Closing => 15,
            Self::Internal => 16,
            Self::NotLeader => 17,
        }
    }

    pub(crate) fn of_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| u64::from(reason.code()) == code)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal, as it travels with the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// To be asked of another master: of this one, if any.
    pub(crate) fn not_leader(leader: Option<String>) -> Self {
        Self::new(Reason::NotLeader, leader.unwrap_or_default())
    }
}
