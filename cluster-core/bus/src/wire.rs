//! What travels on a connection.
//!
//! A node opens one stream in both directions and says who it is; the master answers, and from there both speak on it
//! as they have to. Views have a stream of their own from the master to the node, so that a large one delays no
//! command. Each message is a frame: length (4 bytes, big endian, of all that follows), form (1 byte), and the message
//! in JSON with named fields, which other versions can read.

use bytes::{BufMut as _, Bytes, BytesMut};
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, ClusterId, ClusterView, Delta, Plane, PlaneReport, Revision,
    Timestamp,
};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{NodeName, Role};

/// The version that this program speaks best.
pub(crate) const VERSION_NEWEST: u32 = 1;

/// The oldest version that it can still speak.
pub(crate) const VERSION_OLDEST: u32 = 1;

/// The largest first message, before it is known who speaks. The largest thing in one is a certificate request.
pub(crate) const FIRST_FRAME_BYTES_MAX: usize = 16 << 10;

/// The largest message of an agent or plane, and the largest command: a registration with some ten thousand tasks.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// The largest view or delta on the wire: some million tasks, compressed.
pub(crate) const VIEW_FRAME_BYTES_MAX: usize = 128 << 20;

/// The largest view or delta when it is expanded, which bounds what a small frame can make of itself.
const VIEW_BYTES_MAX: usize = 1 << 30;

/// From this size on a message is compressed; below, it is not worth the time.
const COMPRESS_BYTES_MIN: usize = 4 << 10;

/// From this size on a message is decoded on a thread of its own, so that nothing else waits for it.
const APART_BYTES_MIN: usize = 64 << 10;

/// zstd's fastest ordinary level: JSON of a view shrinks to a tenth at hundreds of megabytes per second.
const COMPRESSION_LEVEL: i32 = 1;

const FORM_JSON: u8 = 0;
const FORM_JSON_ZSTD: u8 = 1;

/// What a node says first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum First {
    /// It has joined.
    Hello(Hello),
    /// It wants to join.
    Join(Join),
}

/// Who connects.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Oldest and newest version that it speaks.
    pub(crate) versions: (u32, u32),
    pub(crate) role: Role,
    pub(crate) node: NodeName,
    /// The newest view that it has.
    pub(crate) known: Option<(ClusterId, Revision)>,
    /// By its clock.
    pub(crate) time: Timestamp,
}

/// A request to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) versions: (u32, u32),
    pub(crate) token: String,
    pub(crate) secret: String,
    pub(crate) node: NodeName,
    /// PKCS #10, DER.
    pub(crate) request: Vec<u8>,
}

/// What a node says afterwards.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromNode {
    Agent(AgentReport),
    Plane(PlaneReport),
    /// It wants a new certificate for its key.
    Renew {
        request: Vec<u8>,
    },
    /// A master that stands by passes on what a plane says that is connected to it.
    Relayed(PlaneReport),
    /// The same of a plane that is not connected to it any more.
    RelayedGone {
        node: AgentId,
        plane: Plane,
    },
    /// A master that stands by has this revision.
    Standby {
        revision: Revision,
    },
}

/// What a master says, except for views.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromMaster {
    /// The answer to `Hello`.
    Welcome {
        version: u32,
        /// By its clock.
        time: Timestamp,
        /// Of the leader's election, where masters are elected: this master's, or that of the one that it follows.
        #[serde(default)]
        term: Option<u64>,
    },
    /// The answer to `Join`.
    Joined {
        certificate: Vec<u8>,
        authority: Vec<u8>,
    },
    /// The answer to `Renew`.
    Renewed {
        certificate: Vec<u8>,
    },
    Command(AgentCommand),
}

/// What the stream of views carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ViewMessage {
    Snapshot(ClusterView),
    Delta(Delta),
}

/// A message cannot be received.
#[derive(Debug, Error)]
pub(crate) enum ReceiveError {
    #[error("a message of {length} bytes is larger than the {max} that are allowed")]
    TooLarge { length: usize, max: usize },
    #[error("a message has the unknown form {0}")]
    UnknownForm(u8),
    #[error("a message cannot be read: {0}")]
    Malformed(serde_json::Error),
    #[error("a message cannot be expanded: {0}")]
    Expand(std::io::Error),
    #[error("the stream has ended")]
    Ended(#[from] ReadExactError),
}

/// The newest version that is spoken by both sides.
pub(crate) fn common_version((oldest, newest): (u32, u32)) -> Option<u32> {
    let version = newest.min(VERSION_NEWEST);
    (version >= oldest.max(VERSION_OLDEST)).then_some(version)
}

/// A message as a frame.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    let json = serde_json::to_vec(message).expect("BUG: a message has a map key that is no text");
    let compressed = (json.len() >= COMPRESS_BYTES_MIN)
        .then(|| zstd::bulk::compress(&json, COMPRESSION_LEVEL).ok())
        .flatten();
    let (form, content) = match compressed {
        Some(compressed) => (FORM_JSON_ZSTD, compressed),
        None => (FORM_JSON, json),
    };
    let length = u32::try_from(content.len() + 1).expect("BUG: a message of 4 GiB");
    let mut frame = BytesMut::with_capacity(content.len() + 5);
    frame.put_u32(length);
    frame.put_u8(form);
    frame.put_slice(&content);
    frame.freeze()
}

/// Receives the next message, of at most `max` bytes.
pub(crate) async fn receive<T: DeserializeOwned + Send + 'static>(
    stream: &mut RecvStream,
    max: usize,
) -> Result<T, ReceiveError> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let [a, b, c, d, form] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length == 0 || length > max {
        return Err(ReceiveError::TooLarge { length, max });
    }
    let mut content = vec![0; length - 1];
    stream.read_exact(&mut content).await?;
    if length < APART_BYTES_MIN {
        return decode(form, content, max);
    }
    let decoding = tokio::task::spawn_blocking(move || decode(form, content, max));
    decoding.await.expect("BUG: a message cannot be decoded")
}

fn decode<T: DeserializeOwned>(form: u8, content: Vec<u8>, max: usize) -> Result<T, ReceiveError> {
    let json = match form {
        FORM_JSON => content,
        FORM_JSON_ZSTD => expand(&content, max).map_err(ReceiveError::Expand)?,
        form => return Err(ReceiveError::UnknownForm(form)),
    };
    serde_json::from_slice(&json).map_err(ReceiveError::Malformed)
}

/// Expands to at most eight times the largest frame, and only views to more.
fn expand(content: &[u8], frame_bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let max = frame_bytes_max.saturating_mul(8).min(VIEW_BYTES_MAX);
    let mut json = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(content)?;
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(&mut decoder, max as u64 + 1), &mut json)?;
    if read > max { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(json) }
}

/// Sends a message. Returns when all of it is in the stream's bounded window.
pub(crate) async fn send<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), WriteError> {
    stream.write_chunk(encode(message)).await
}
