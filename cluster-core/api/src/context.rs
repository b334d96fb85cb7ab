//! What the API sees of the rest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use mesonet_marathon::{Command, Event, MarathonView, Rejection, Reply};
use mesonet_model::{
    AgentId, ClusterView, NetworkName, NetworkRefusal, Plane, PlaneReport, Revision, TaskKey, Timestamp,
    VirtualNetwork,
};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::PlaneHistory;
use crate::masters::Masters;

/// Everything that answers are made from.
#[derive(Clone)]
pub struct Context {
    /// The newest committed state; `None` until the control plane has started.
    pub state: watch::Receiver<Option<Arc<State>>>,
    /// Where commands go.
    pub requests: mpsc::Sender<Request>,
    /// Where operators' orders for nodes go.
    pub nodes: mpsc::Sender<NodeRequest>,
    /// Marathon's events; each subscriber to the event stream gets a receiver of its own.
    pub events: broadcast::Sender<Arc<Event>>,
    /// The control plane's time, by which it waits.
    pub clock: Arc<dyn Clock>,
    /// What `/metrics` shows.
    pub metrics: prometheus::Registry,
    /// Files of tasks.
    pub sandboxes: Arc<dyn SandboxReader>,
    /// Who leads and who stands by.
    pub masters: Arc<dyn Masters>,
    /// Where this API is reached, as `/v2/leader` and `/v2/info` say it.
    pub address: SocketAddr,
}

/// Tells the time.
pub trait Clock: Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;
}

/// The time of a host without a control plane.
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().plus(since_epoch)
    }
}

/// The committed state of the control plane.
#[derive(Debug, Clone)]
pub struct State {
    /// The cluster.
    pub cluster: ClusterView,
    /// Marathon.
    pub marathon: MarathonView,
    /// The latest report of each plane of each node that is connected.
    pub planes: Planes,
    /// Since when planes lag or are away.
    pub plane_history: PlaneHistory,
}

/// Reports of planes. Shares its structure with its clones: there is one after every turn of the control plane, and
/// planes are twice as many as nodes.
pub type Planes = OrdMap<(AgentId, Plane), Arc<PlaneReport>>;

/// A command on its way to Marathon.
#[derive(Debug)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Where the answer goes, after the change is committed and visible in [`Context::state`].
    pub answer: oneshot::Sender<Result<Answer, Rejection>>,
}

/// What an operator wants of nodes and of the networks between their tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeOrder {
    /// To be empty: its tasks move elsewhere, and nothing new is placed on it.
    Drain(AgentId),
    /// To be used again.
    Undrain(AgentId),
    /// To be forgotten with all that ran on it, because it is gone for good.
    Remove(AgentId),
    /// That all nodes that are lost are given up, although they are many.
    ConfirmRemoval,
    /// That there is another virtual network.
    CreateNetwork(VirtualNetwork),
    /// That there is no such virtual network any more.
    RemoveNetwork(NetworkName),
}

/// An order on its way to the master.
#[derive(Debug)]
pub struct NodeRequest {
    /// The order.
    pub order: NodeOrder,
    /// Where the revision goes that the order is in effect with, after it is committed and visible in
    /// [`Context::state`]; or why it is not carried out.
    pub answer: oneshot::Sender<Result<Revision, NetworkRefusal>>,
}

/// The answer to a command that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Marathon's answer.
    pub reply: Reply,
    /// The revision at which the change is committed.
    pub revision: Revision,
}

/// Reads files in the sandboxes of tasks.
pub trait SandboxReader: Send + Sync {
    /// Reads up to `length` bytes from `offset` on; without an offset, only tells the file's size. `agent` runs the
    /// task, or has run it, if that is known.
    fn read(
        &self,
        agent: Option<&AgentId>,
        task: &TaskKey,
        file: &str,
        offset: Option<u64>,
        length: Option<u64>,
    ) -> Result<SandboxChunk, SandboxError>;
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxChunk {
    /// Where it begins; the file's size if no offset was asked for.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A sandbox file cannot be read.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// There is no such task or file.
    #[error("task '{task}' has no file '{file}'")]
    NotFound {
        /// The task.
        task: String,
        /// The file.
        file: String,
    },
    /// The file is on the task's node, and this process is not.
    #[error("file '{file}' of task '{task}' is on the task's node: {reason}")]
    Elsewhere {
        /// Why it cannot be had from there.
        reason: String,
        /// The task.
        task: String,
        /// The file.
        file: String,
    },
    /// Reading failed.
    #[error("cannot read file '{file}' of task '{task}'")]
    Io {
        /// The task.
        task: String,
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
}
