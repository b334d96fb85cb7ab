//! What a connection is for: the channels of an agent, or of a network daemon.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AgentCommand, AgentId, AgentReport, ClusterId, ClusterView, Outage, Plane, PlaneReport, Revision,
    Timestamp,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::KnownView;
use super::dial::LinkError;
use crate::wire::{FromNode, ViewMessage};
use crate::{Files, PlaneNews, Publisher, Report, clock};

/// How often a master that stands by tells the leader which revision it has, at most: it is for people to look at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// A shorter time without a master is not worth telling: another one took over.
const OUTAGE_MIN: Duration = Duration::from_secs(5);

/// What each plane has said last.
type Latest = BTreeMap<(AgentId, Plane), PlaneReport>;

/// This side of a connection. It outlives each connection.
#[derive(Debug)]
pub(super) enum Ends {
    Agent {
        commands: mpsc::Sender<AgentCommand>,
        reports: mpsc::Receiver<AgentReport>,
        /// Those of its tasks, if the master may ask for them.
        files: Option<Arc<dyn Files>>,
        /// Whether a registration of the agent was taken, and perhaps lost with its connection.
        has_registered: bool,
    },
    Net {
        known: Option<Box<ClusterView>>,
        views: Publisher,
        reports: mpsc::Receiver<PlaneNews>,
        /// To be said again to the next master.
        latest: Latest,
        /// Whether the planes are those of nodes that are connected to this master.
        is_relay: bool,
        masters: Masters,
    },
}

/// When masters were there to confirm the view of a node.
#[derive(Debug, Default)]
pub(super) struct Masters {
    /// When one did for the last time, while none is connected.
    confirmed: Option<Timestamp>,
    outage: Option<Outage>,
}

/// Where what the master says goes.
pub(super) enum Inward<'ends> {
    Agent(&'ends mpsc::Sender<AgentCommand>),
    Net { known: &'ends mut Option<Box<ClusterView>>, views: &'ends Publisher },
}

/// Where what is said to the master comes from.
pub(super) enum Outward<'ends> {
    Agent {
        reports: &'ends mut mpsc::Receiver<AgentReport>,
        has_registered: &'ends mut bool,
        /// Up to the next registration, reports are of the time before: the agent repeats what is not acknowledged.
        is_stale: bool,
    },
    Net {
        reports: &'ends mut mpsc::Receiver<PlaneNews>,
        latest: &'ends mut Latest,
        is_relay: bool,
        repeat: VecDeque<PlaneReport>,
        /// Of masters only.
        progress: Option<Progress>,
        outage: Option<Outage>,
    },
}

/// Which revision this master has.
pub(super) struct Progress {
    views: watch::Receiver<Option<Arc<ClusterView>>>,
    not_before: Instant,
}

impl Ends {
    pub(super) fn agent(
        commands: mpsc::Sender<AgentCommand>,
        reports: mpsc::Receiver<AgentReport>,
        files: Option<Arc<dyn Files>>,
    ) -> Self {
        Self::Agent { commands, reports, files, has_registered: false }
    }

    pub(super) fn net(
        known: Option<KnownView>,
        views: Publisher,
        reports: mpsc::Receiver<PlaneNews>,
    ) -> Self {
        let confirmed = known.as_ref().map(|known| clock::timestamp(known.confirmed));
        Self::Net {
            known: known.map(|known| Box::new(known.view)),
            views,
            reports,
            latest: BTreeMap::new(),
            is_relay: false,
            masters: Masters { confirmed, outage: None },
        }
    }

    pub(super) fn relay(
        known: Option<ClusterView>,
        views: Publisher,
        reports: mpsc::Receiver<PlaneNews>,
    ) -> Self {
        Self::Net {
            known: known.map(Box::new),
            views,
            reports,
            latest: BTreeMap::new(),
            is_relay: true,
            masters: Masters::default(),
        }
    }

    /// The newest view that is here.
    pub(super) fn known(&self) -> Option<(ClusterId, Revision)> {
        match self {
            Self::Agent { .. } => None,
            Self::Net { known, .. } => known.as_ref().map(|view| (view.cluster.clone(), view.revision)),
        }
    }

    /// The files that the master may ask for.
    pub(super) fn files(&self) -> Option<Arc<dyn Files>> {
        match self {
            Self::Agent { files, .. } => files.clone(),
            Self::Net { .. } => None,
        }
    }

    /// The two directions of a new connection.
    pub(super) async fn open(&mut self) -> Result<(Inward<'_>, Outward<'_>), LinkError> {
        match self {
            Self::Agent { commands, reports, has_registered, .. } => {
                let is_stale = *has_registered;
                if is_stale {
                    commands.send(AgentCommand::Reregister).await.map_err(|_| LinkError::Closed)?;
                }
                Ok((Inward::Agent(commands), Outward::Agent { reports, has_registered, is_stale }))
            }
            Self::Net { known, views, reports, latest, is_relay, masters } => {
                let repeat = latest.values().cloned().collect();
                let is_relay = *is_relay;
                let outage = masters.connected(clock::now());
                let progress = is_relay.then(|| {
                    let mut views = views.subscribe();
                    views.mark_changed();
                    Progress { views, not_before: Instant::now() }
                });
                Ok((
                    Inward::Net { known, views },
                    Outward::Net { reports, latest, is_relay, repeat, progress, outage },
                ))
            }
        }
    }

    /// The connection that was opened has ended; the master was heard for the last time then.
    pub(super) fn close(&mut self, heard: Timestamp) {
        match self {
            Self::Net { masters, is_relay: false, .. } => masters.confirmed = Some(heard),
            Self::Agent { .. } | Self::Net { .. } => {}
        }
    }

    /// Waits without a connection. Planes go on: what they say replaces what they said before. Agents wait.
    pub(super) async fn idle(&mut self, until: impl Future<Output = ()>) -> Result<(), LinkError> {
        tokio::pin!(until);
        loop {
            match self {
                Self::Agent { commands, .. } => tokio::select! {
                    () = &mut until => return Ok(()),
                    () = commands.closed() => return Err(LinkError::Closed),
                },
                Self::Net { reports, latest, is_relay, .. } => tokio::select! {
                    () = &mut until => return Ok(()),
                    news = reports.recv() => {
                        note(news.ok_or(LinkError::Closed)?, *is_relay, None, latest);
                    }
                },
            }
        }
    }
}

impl Masters {
    /// A master is there. Returns the last outage, which may have ended just now.
    fn connected(&mut self, now: Timestamp) -> Option<Outage> {
        if let Some(since) = self.confirmed.take()
            && now.since(since) >= OUTAGE_MIN
        {
            self.outage = Some(Outage { since, until: now });
        }
        self.outage
    }
}

impl Inward<'_> {
    pub(super) async fn command(&self, command: AgentCommand) -> Result<(), LinkError> {
        match self {
            Self::Agent(commands) => commands.send(command).await.map_err(|_| LinkError::Closed),
            Self::Net { .. } => {
                Err(LinkError::Message("a command for an agent reaches a network daemon".into()))
            }
        }
    }

    /// Takes a view. Returns whether it was a snapshot.
    pub(super) fn view(&mut self, message: ViewMessage) -> Result<bool, LinkError> {
        let Self::Net { known, views } = self else {
            return Err(LinkError::Message("a view reaches an agent".into()));
        };
        let is_snapshot = matches!(message, ViewMessage::Snapshot(_));
        let view = match message {
            ViewMessage::Snapshot(view) => {
                if known.as_ref().is_some_and(|known| known.revision > view.revision) {
                    tracing::warn!(revision = %view.revision, "The master is behind this node, whose view stays");
                }
                view
            }
            ViewMessage::Delta(delta) => {
                let known = known.as_deref().cloned();
                let mut view =
                    known.ok_or_else(|| LinkError::Message("a delta without a view".to_owned()))?;
                view.apply(&delta).map_err(|error| LinkError::Message(error.to_string()))?;
                view
            }
        };
        // Revisions never go back on a node: the publisher ignores an older one.
        views.publish(view.clone());
        **known = Some(Box::new(view));
        Ok(is_snapshot)
    }
}

impl Outward<'_> {
    /// The next thing to say; `None` when there will be nothing more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<FromNode> {
        match self {
            Self::Agent { reports, has_registered, is_stale } => loop {
                let report = reports.recv().await?;
                if matches!(report, AgentReport::Register { .. }) {
                    **has_registered = true;
                    *is_stale = false;
                }
                if !*is_stale {
                    return Some(FromNode::Agent(report));
                }
            },
            Self::Net { reports, latest, is_relay, repeat, progress, outage } => {
                if let Some(report) = repeat.pop_front() {
                    return Some(said(report, *is_relay, *outage));
                }
                loop {
                    tokio::select! {
                        biased;
                        news = reports.recv() => {
                            if let Some(message) = note(news?, *is_relay, *outage, latest) {
                                return Some(message);
                            }
                        }
                        revision = next_revision(progress) => return Some(FromNode::Standby { revision }),
                    }
                }
            }
        }
    }
}

/// When the next revision may be told. Never, for who does not tell revisions.
async fn next_revision(progress: &mut Option<Progress>) -> Revision {
    let Some(progress) = progress else { return std::future::pending().await };
    tokio::time::sleep_until(progress.not_before).await;
    loop {
        if progress.views.changed().await.is_err() {
            return std::future::pending().await;
        }
        let revision = progress.views.borrow_and_update().as_ref().map(|view| view.revision);
        if let Some(revision) = revision {
            progress.not_before = Instant::now() + PROGRESS_INTERVAL;
            return revision;
        }
    }
}

/// Keeps what a plane says, for the next master. Returns what this one is told.
fn note(news: PlaneNews, is_relay: bool, outage: Option<Outage>, latest: &mut Latest) -> Option<FromNode> {
    match news {
        PlaneNews::Report(Report { report, .. }) => {
            latest.insert((report.node.clone(), report.plane), report.clone());
            Some(said(report, is_relay, outage))
        }
        PlaneNews::Gone { node, plane } => {
            latest.remove(&(node.clone(), plane));
            // A plane of this node ends with the node's daemon, and the master sees that.
            is_relay.then_some(FromNode::RelayedGone { node, plane })
        }
        // The leader looks at the authority's records itself, and at what planes report.
        PlaneNews::Revoked { .. } | PlaneNews::Ahead { .. } => None,
    }
}

/// A master passes on what nodes say of their own outages.
fn said(report: PlaneReport, is_relay: bool, outage: Option<Outage>) -> FromNode {
    if is_relay { FromNode::Relayed(report) } else { FromNode::Plane(PlaneReport { outage, ..report }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_time_without_a_master_is_told_until_the_next_one() {
        let mut masters = Masters::default();
        assert_eq!(masters.connected(at(10)), None, "a node that had no view");
        masters.confirmed = Some(at(20));
        assert_eq!(masters.connected(at(23)), None, "another master took over");
        masters.confirmed = Some(at(30));
        let outage = Outage { since: at(30), until: at(90) };
        assert_eq!(masters.connected(at(90)), Some(outage));
        masters.confirmed = Some(at(100));
        assert_eq!(masters.connected(at(101)), Some(outage), "the last that was worth telling");
    }
}
