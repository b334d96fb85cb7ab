//! What a master is there for at present: it leads, or it stands by and sends agents to the one that leads.

use std::time::Duration;

use mesonet_model::AgentReport;
use tokio::sync::{mpsc, watch};

use crate::LinkState;
use crate::reason::Refusal;

/// How long an agent is kept waiting for a leader to be elected: rather than ask all masters again and again, it hears
/// of the new leader at once. An election takes about as long as the leader's lease, which is 2 s.
const ELECTION_MAX: Duration = Duration::from_secs(4);

/// Who leads, as a master that stands by knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderAddress {
    /// Where nodes reach it: `HOST:PORT`.
    pub bus: String,
    /// Its term.
    pub term: u64,
}

/// What the master is there for.
#[derive(Debug)]
pub(crate) enum Duty {
    /// It decides.
    Leading {
        /// Of its election, where masters are elected.
        term: Option<u64>,
        /// Where agents' reports go.
        reports: mpsc::Sender<AgentReport>,
    },
    /// Another one decides.
    Standing(Standing),
}

/// What is known while another master leads.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) leader: watch::Receiver<Option<LeaderAddress>>,
    /// The connection to the leader.
    pub(crate) link: watch::Receiver<LinkState>,
    /// A leader that has not been connected for so long is not followed any more.
    pub(crate) patience: Duration,
}

impl Duty {
    /// The term of the one who decides.
    pub(crate) fn term(&self) -> Option<u64> {
        match self {
            Self::Leading { term, .. } => *term,
            Self::Standing(standing) => standing.leader.borrow().as_ref().map(|leader| leader.term),
        }
    }
}

impl Standing {
    /// Where to go instead, as soon as somebody leads.
    pub(crate) async fn elsewhere(&self) -> Refusal {
        let mut leader = self.leader.clone();
        let elected = leader.wait_for(Option::is_some);
        let elected = tokio::time::timeout(ELECTION_MAX, elected).await;
        let bus = elected.ok().and_then(Result::ok).and_then(|leader| Some(leader.as_ref()?.bus.clone()));
        Refusal::not_leader(bus)
    }

    /// Whether views still come from the leader, or have until lately.
    pub(crate) fn is_followed(&self) -> bool {
        match &*self.link.borrow() {
            LinkState::Connected { .. } => true,
            LinkState::Disconnected { since, .. } => since.elapsed() < self.patience,
        }
    }
}
