//! Reaching a master.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesonet_netlink::is_here;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AsyncUdpSocket as _, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime,
    TransportErrorCode,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::peer_socket::PeerSocket;
use crate::pki::{MASTER_DNS_NAME, TlsError};
use crate::reason::Reason;
use crate::wire::ReceiveError;
use crate::{AuthorityError, IdentityError, clock, transport};

/// Addresses of one master that are tried; a name that has more is none of one host.
const ADDRESSES_MAX: usize = 8;

/// How long an address may take to answer before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// How often it is looked whether this end still has the address that a connection comes from.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// A master cannot give itself a certificate.
    #[error("cannot make this master's own certificate")]
    OwnCertificate(#[source] Box<AuthorityError>),
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
    /// The master stands by.
    #[error("the master stands by; {}", leader.as_ref().map_or_else(|| "nobody leads".to_owned(), |it| format!("{it} leads")))]
    NotLeader {
        /// Who leads, `HOST:PORT`, if it knows.
        leader: Option<String>,
    },
    /// The master was elected before one that the node has heard of: it has been deposed and may not know.
    #[error("the master is of term {term}, and there was one of term {newest}")]
    Deposed {
        /// Its term.
        term: u64,
        /// The newest that the node has heard of.
        newest: u64,
    },
    /// The host of the master says that nobody listens there.
    #[error("nobody listens at the master's address")]
    NobodyThere,
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
            Self::NotLeader { .. }
            | Self::Deposed { .. }
            | Self::OwnCertificate(_)
            | Self::Resolve { .. }
            | Self::Socket(_)
            | Self::Connect(_)
            | Self::NobodyThere
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
        let unknown_authority = TransportErrorCode::crypto(transport::ALERT_UNKNOWN_AUTHORITY);
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = Reason::of_code(close.error_code.into_inner());
                let text = String::from_utf8_lossy(&close.reason).into_owned();
                match reason {
                    Some(Reason::NotLeader) => {
                        Self::NotLeader { leader: Some(text).filter(|it| !it.is_empty()) }
                    }
                    reason => Self::Refused { reason, text },
                }
            }
            ConnectionError::TransportError(error) if error.code == unknown_authority => Self::OtherCluster,
            ConnectionError::ConnectionClosed(close) if close.error_code == unknown_authority => {
                Self::OtherCluster
            }
            ConnectionError::TransportError(error)
                if error.code == TransportErrorCode::crypto(transport::ALERT_CERTIFICATE_EXPIRED) =>
            {
                Self::MasterCertificateTime { now: clock::now(), detail: error.reason }
            }
            ConnectionError::TimedOut => Self::Silent,
            // Nothing else closes a connection on this side before it is left.
            ConnectionError::LocallyClosed => Self::NobodyThere,
            error => Self::Lost(error.to_string()),
        }
    }
}

/// What a connection lives on.
#[derive(Debug)]
pub(crate) struct Ground {
    endpoint: Endpoint,
    /// What notices that nobody listens at the other end, or that this end is elsewhere.
    _watch: JoinSet<()>,
}

impl Ground {
    /// Waits until the peer has heard of the connection's end.
    pub(crate) async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// Connects to a master. The ground must live as long as the connection.
pub(crate) async fn dial(
    master: &str,
    tls: QuicClientConfig,
    idle_timeout: Duration,
) -> Result<(Ground, Connection), LinkError> {
    let resolve = |source| LinkError::Resolve { master: master.to_owned(), source };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host(master).await.map_err(resolve)?.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(resolve(io::ErrorKind::NotFound.into()));
    }
    dial_any(&addresses, Arc::new(tls), idle_timeout).await
}

/// Connects to whichever of a host's addresses answers first. Each is tried as soon as the one before has failed, or has
/// not answered for a while: a host may have a name of both families and listen to one.
pub(crate) async fn dial_any(
    addresses: &[SocketAddr],
    tls: Arc<QuicClientConfig>,
    idle_timeout: Duration,
) -> Result<(Ground, Connection), LinkError> {
    let mut attempts = JoinSet::new();
    let mut left = addresses.iter().copied();
    let mut failure = LinkError::NobodyThere;
    loop {
        match left.next() {
            Some(address) => drop(attempts.spawn(dial_address(address, tls.clone(), idle_timeout))),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let head_start = if left.len() == 0 { idle_timeout } else { HEAD_START };
        let ended = tokio::time::timeout(head_start, attempts.join_next()).await;
        match ended.ok().flatten() {
            Some(Ok(Ok(connected))) => return Ok(connected),
            // That nobody is there says less than anything that somebody has said.
            Some(Ok(Err(LinkError::NobodyThere))) | None => {}
            Some(Ok(Err(error))) => failure = error,
            Some(Err(error)) => failure = LinkError::Connect(error.to_string()),
        }
    }
}

async fn dial_address(
    address: SocketAddr,
    tls: Arc<QuicClientConfig>,
    idle_timeout: Duration,
) -> Result<(Ground, Connection), LinkError> {
    let runtime = Arc::new(TokioRuntime);
    let socket = PeerSocket::connect(address, runtime.as_ref()).map_err(LinkError::Socket)?;
    let (socket, mut refused) = (Arc::new(socket.0), socket.1);
    let endpoint = Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)
        .map_err(LinkError::Socket)?;
    let mut config = quinn::ClientConfig::new(tls);
    config.transport_config(Arc::new(transport::of_node(idle_timeout)));
    let connecting = endpoint.connect_with(config, address, MASTER_DNS_NAME);
    let connecting = connecting.map_err(|error| LinkError::Connect(error.to_string()))?;
    let connection = tokio::select! {
        connected = connecting => connected?,
        Ok(_) = refused.wait_for(|refused| *refused) => return Err(LinkError::NobodyThere),
    };
    let mut watch = JoinSet::new();
    watch.spawn(look_after(endpoint.clone(), connection.clone(), address, refused));
    Ok((Ground { endpoint, _watch: watch }, connection))
}

/// The end of a master's process is noticed with the next packet, and not only by its silence. When this machine's
/// address is another one, the connection goes on from there, which saves both ends from waiting for that silence.
async fn look_after(
    endpoint: Endpoint,
    connection: Connection,
    peer: SocketAddr,
    mut refused: watch::Receiver<bool>,
) {
    loop {
        let moved = tokio::select! {
            _ = connection.closed() => return,
            Ok(_) = refused.wait_for(|refused| *refused) => return connection.close(0_u32.into(), b""),
            () = tokio::time::sleep(LOOK_INTERVAL) => move_on(&endpoint, peer),
        };
        if let Some(moved) = moved {
            refused = moved;
        }
    }
}

/// Gives an endpoint another socket if the address of its own is not this machine's any more. Until there is another way
/// to the peer, there is nothing to move to.
fn move_on(endpoint: &Endpoint, peer: SocketAddr) -> Option<watch::Receiver<bool>> {
    let own = endpoint.local_addr().ok()?.ip();
    if is_here(own) {
        return None;
    }
    let (socket, refused) = PeerSocket::connect(peer, &TokioRuntime).ok()?;
    // In a VRF, the host's addresses are not among those of the routes that are asked.
    if socket.local_addr().ok()?.ip() == own {
        return None;
    }
    endpoint.rebind_abstract(Arc::new(socket)).ok()?;
    tracing::info!(from = %own, "This machine's address is gone; the connection goes on from another");
    Some(refused)
}
