//! Reaching a master.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use thiserror::Error;

use crate::pki::{MASTER_DNS_NAME, TlsError};
use crate::reason::Reason;
use crate::wire::ReceiveError;
use crate::{IdentityError, clock, transport};

/// TLS alert: the certificate is not valid at this time.
const ALERT_CERTIFICATE_EXPIRED: u8 = 45;

/// TLS alert: the certificate is of an authority that is not trusted.
const ALERT_UNKNOWN_AUTHORITY: u8 = 48;

/// Why a node is not connected to a master.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The name of the master has no address.
    #[error("cannot find the address of master '{master}', which must be HOST:PORT")]
    Resolve {
        /// As configured.
        master: String,
        /// The system's words.
        source: io::Error,
    },
    /// No socket can be had.
    #[error("cannot open a socket")]
    Socket(#[source] io::Error),
    /// The node's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node's identity cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection cannot be made, for a cause in this program.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The master has another authority than the node.
    #[error("the master and this node belong to different clusters")]
    OtherCluster,
    /// The master's certificate is not valid at this node's time.
    #[error("the master's certificate is not valid at {now}, the time of this node's clock: {detail}")]
    MasterCertificateTime {
        /// This node's time.
        now: mesonet_model::Timestamp,
        /// What the certificate says.
        detail: String,
    },
    /// The master has refused the node or ended the connection.
    #[error("the master says: {text}")]
    Refused {
        /// Why, if this version knows the reason.
        reason: Option<Reason>,
        /// The master's words.
        text: String,
    },
    /// The connection is lost.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The master says what this version does not understand.
    #[error("the master's message cannot be used: {0}")]
    Message(String),
    /// The master does not answer.
    #[error("the master does not answer")]
    Silent,
    /// What the connection is for has ended on this side.
    #[error("this node's end is closed")]
    Closed,
}

impl LinkError {
    /// Whether trying again soon is of no use.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => matches!(
                reason,
                Some(
                    Reason::Version
                        | Reason::Role
                        | Reason::Revoked
                        | Reason::CertificateTime
                        | Reason::Cluster
                        | Reason::Token
                        | Reason::NameTaken
                        | Reason::ForeignAgent
                )
            ),
            Self::OtherCluster | Self::MasterCertificateTime { .. } | Self::Identity(_) | Self::Tls(_) => {
                true
            }
            Self::Resolve { .. }
            | Self::Socket(_)
            | Self::Connect(_)
            | Self::Lost(_)
            | Self::Message(_)
            | Self::Silent
            | Self::Closed => false,
        }
    }

    /// What a failed message means: the connection's end says more than the stream's.
    pub(crate) fn of_receive(connection: &Connection, error: &ReceiveError) -> Self {
        match (connection.close_reason(), error) {
            (Some(reason), _) => reason.into(),
            (None, ReceiveError::Ended(_)) => Self::Lost("the master has ended the stream".to_owned()),
            (None, error) => Self::Message(error.to_string()),
        }
    }

    /// Waits for the end of a connection whose stream has failed, which follows or has come already.
    pub(crate) async fn of_end(connection: &Connection) -> Self {
        connection.closed().await.into()
    }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        let unknown_authority = TransportErrorCode::crypto(ALERT_UNKNOWN_AUTHORITY);
        match error {
            ConnectionError::ApplicationClosed(close) => Self::Refused {
                reason: Reason::of_code(close.error_code.into_inner()),
                text: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::TransportError(error) if error.code == unknown_authority => Self::OtherCluster,
            ConnectionError::ConnectionClosed(close) if close.error_code == unknown_authority => {
                Self::OtherCluster
            }
            ConnectionError::TransportError(error)
                if error.code == TransportErrorCode::crypto(ALERT_CERTIFICATE_EXPIRED) =>
            {
                Self::MasterCertificateTime { now: clock::now(), detail: error.reason }
            }
            ConnectionError::TimedOut => Self::Silent,
            error => Self::Lost(error.to_string()),
        }
    }
}

/// Connects to a master. The endpoint must live as long as the connection.
pub(crate) async fn dial(
    master: &str,
    tls: QuicClientConfig,
    idle_timeout: Duration,
) -> Result<(Endpoint, Connection), LinkError> {
    let resolve = |source| LinkError::Resolve { master: master.to_owned(), source };
    let mut addresses = tokio::net::lookup_host(master).await.map_err(resolve)?;
    let address = addresses.next().ok_or_else(|| resolve(io::ErrorKind::NotFound.into()))?;
    let local: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint = Endpoint::client(local).map_err(LinkError::Socket)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport::of_node(idle_timeout)));
    let connecting = endpoint.connect_with(config, address, MASTER_DNS_NAME);
    let connection = connecting.map_err(|error| LinkError::Connect(error.to_string()))?.await?;
    Ok((endpoint, connection))
}
