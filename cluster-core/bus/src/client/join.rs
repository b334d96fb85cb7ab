//! Joining a cluster.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::dial::{LinkError, dial};
use crate::pki::{self, Applicant};
use crate::wire::{self, First, FromMaster, Join};
use crate::{Identity, IdentityError, JoinToken, NodeName};

/// How long a master may be silent while a node joins.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long all of it may take with one master.
const JOIN_MAX: Duration = Duration::from_secs(15);

/// Why a node cannot join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The node's files cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No master is given.
    #[error("no master is given to join")]
    NoMaster,
    /// A master has refused the node, or is none of the token's cluster.
    #[error("master {master} does not let the node join")]
    Refused {
        /// `HOST:PORT`.
        master: String,
        /// Why.
        source: LinkError,
    },
    /// No master can be reached.
    #[error("no master can be reached; the last one tried was {master}")]
    Unreachable {
        /// `HOST:PORT`.
        master: String,
        /// Why.
        source: LinkError,
    },
}

/// Joins a cluster: makes a key, has it certified and keeps both in a new identity directory. The first master that
/// answers decides.
///
/// # Errors
/// When no master can be reached, the token is refused, or the files cannot be written. Only the key is kept then, so
/// that the node is the same when it tries again.
pub async fn join(
    masters: &[String],
    token: &JoinToken,
    name: &NodeName,
    dir: &Path,
) -> Result<Identity, JoinError> {
    let applicant = Applicant::new(dir)?;
    let request = applicant.request()?;
    let mut last = Err(JoinError::NoMaster);
    for master in masters {
        let ask = Join {
            versions: (wire::VERSION_OLDEST, wire::VERSION_NEWEST),
            token: token.id.clone(),
            secret: token.secret.clone(),
            node: name.clone(),
            request: request.clone(),
        };
        let asked = tokio::time::timeout(JOIN_MAX, ask_master(master, token, ask)).await;
        match asked.unwrap_or(Err(LinkError::Silent)) {
            Ok((certificate, authority)) => return Ok(applicant.keep(&certificate, &authority)?),
            Err(source @ (LinkError::Refused { .. } | LinkError::OtherCluster)) => {
                return Err(JoinError::Refused { master: master.clone(), source });
            }
            Err(source) => last = Err(JoinError::Unreachable { master: master.clone(), source }),
        }
    }
    last
}

/// The node's certificate and the authority's.
async fn ask_master(master: &str, token: &JoinToken, ask: Join) -> Result<(Vec<u8>, Vec<u8>), LinkError> {
    let tls = pki::joining_config(token.authority.clone())?;
    let (ground, connection) = dial(master, tls, IDLE_MAX).await?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        if wire::send(&mut send, &First::Join(ask)).await.is_err() {
            return Err(LinkError::of_end(&connection).await);
        }
        let answer = wire::receive(&mut receive, wire::FIRST_FRAME_BYTES_MAX).await;
        answer.map_err(|error| LinkError::of_receive(&connection, &error))
    };
    let answer = exchange.await;
    connection.close(0_u32.into(), b"");
    ground.wait_idle().await;
    match answer? {
        FromMaster::Joined { certificate, authority } => Ok((certificate, authority)),
        FromMaster::Welcome { .. } | FromMaster::Renewed { .. } | FromMaster::Command(_) => {
            Err(LinkError::Message("it is no answer to a request to join".to_owned()))
        }
    }
}
