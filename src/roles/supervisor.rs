//! Carries out what [`Leadership`] decides: stands for election, begins to lead, stops.
//!
//! One task, one loop. What takes long, an election and the recovery of the state, runs in tasks of its own, whose
//! results are news like any other, so that the loss of the lease is never waited for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_api::{Context, Duty, Leading, Standing};
use mesonet_bus::{LeaderAddress, MasterEnds, Server};
use mesonet_store::{Candidate, EtcdReplica, Leader, Term, TermLease};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::leadership_metrics::LeadershipMetrics;
use crate::driver::{Ended, Ending};
use crate::leadership::{Event, Leadership, Order, Stage};
use crate::master_role::{AgentLink, Instruments, MasterRole, MasterSettings};

/// Between attempts to stand for election that have failed at once.
const CAMPAIGN_PAUSE: Duration = Duration::from_secs(1);

/// News under way: a handful per term.
pub const NEWS_MAX: usize = 16;

/// How long giving leadership up may take; without it, the lease runs out.
const RESIGN_MAX: Duration = Duration::from_secs(2);

/// What the supervisor is told.
#[derive(Debug)]
pub enum News {
    /// This master is elected.
    Elected(Box<Term>),
    /// The control plane of this term runs.
    Ready(u64, Box<MasterRole>, AgentLink),
    /// The control plane of this term cannot be started.
    Failed(u64, anyhow::Error),
    /// The store has found another leader while the control plane was started.
    Deposed(u64),
    /// The lease of this term is lost.
    Lost(u64),
    /// An operator wants another master to lead.
    Abdicate,
    /// The process is to end.
    End,
}

/// What leadership is made of.
pub struct Supervisor {
    /// The records, and who leads.
    pub replica: EtcdReplica,
    /// This master.
    pub me: Candidate,
    /// What a control plane is made from.
    pub settings: MasterSettings,
    /// What shows how it does.
    pub instruments: Instruments,
    /// Nodes.
    pub bus: Arc<Server>,
    /// Users.
    pub duty: watch::Sender<Duty>,
    /// The API of a master that stands by.
    pub standing: Standing,
    /// Who leads, for nodes.
    pub bus_leader: watch::Sender<Option<LeaderAddress>>,
    /// Who leads, for users.
    pub api_leader: watch::Sender<Option<SocketAddr>>,
    /// Since when this master is what it is.
    pub stage: watch::Sender<(Stage, Instant)>,
    /// What is shown.
    pub metrics: LeadershipMetrics,
    /// Told what happens.
    pub news: mpsc::Sender<News>,
}

/// What belongs to one term.
#[derive(Default)]
struct Reign {
    number: u64,
    term: Option<Box<Term>>,
    lease: Option<TermLease>,
    role: Option<Box<MasterRole>>,
    link: Option<AgentLink>,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Runs until it is told to end.
    pub async fn run(self, mut news: mpsc::Receiver<News>) {
        let mut leader = self.replica.leader();
        let mut leadership = Leadership::default();
        let mut reign = Reign::default();
        let mut campaign = self.campaign(Duration::ZERO);
        loop {
            self.show(leadership.stage(), leader.borrow_and_update().as_ref());
            let event = tokio::select! {
                Some(news) = news.recv() => take(news, &mut reign),
                ended = reign.ended() => Some(match ended {
                    Ended::Deposed => Event::Deposed(reign.number),
                    // It ends by itself only by a bug, which it has logged. Another master may do better.
                    Ended::Told => Event::Abdicate,
                }),
                changed = leader.changed() => {
                    if changed.is_err() {
                        tracing::error!("BUG: nothing follows the leader any more");
                        return;
                    }
                    None
                }
            };
            let Some(event) = event else { continue };
            let (orders, cause) = leadership.handle(event);
            if let Some(cause) = cause {
                tracing::warn!(term = reign.number, cause = cause.as_str(), "This master stops leading");
                self.metrics.stepped_down(cause);
            }
            for order in orders {
                match order {
                    Order::Campaign(wait) => {
                        reign.lease = None;
                        campaign = self.campaign(wait);
                    }
                    Order::Withdraw => campaign.abort(),
                    order => self.carry_out(order, &mut reign).await,
                }
            }
            if leadership.stage() == Stage::Ended {
                return;
            }
        }
    }

    async fn carry_out(&self, order: Order, reign: &mut Reign) {
        match order {
            Order::TakeOver => self.take_over(reign),
            Order::Lead => self.lead(reign).await,
            Order::StandBy => self.stand_by(),
            Order::Finish => {
                if let Some(role) = reign.role.take() {
                    role.end(Ending::LeaveTasks).await;
                }
                self.instruments.forget_state();
            }
            Order::Drop => {
                reign.tasks.abort_all();
                if let Some(role) = reign.role.take() {
                    role.abort();
                }
                reign.link = None;
                self.instruments.forget_state();
            }
            Order::Resign => {
                // What waits for the lease to be lost holds on to it.
                reign.tasks.shutdown().await;
                if let Some(lease) = reign.lease.take()
                    && tokio::time::timeout(RESIGN_MAX, lease.resign()).await.is_err()
                {
                    tracing::warn!("Leadership could not be given up, it ends with its lease");
                }
            }
            Order::Campaign(_) | Order::Withdraw => {}
        }
    }

    /// Stands for election in the background.
    fn campaign(&self, wait: Duration) -> AbortHandle {
        let (replica, me, news) = (self.replica.clone(), self.me.clone(), self.news.clone());
        let campaign = async move {
            tokio::time::sleep(wait).await;
            let term = loop {
                match replica.campaign(&me).await {
                    Ok(term) => break term,
                    Err(error) => tracing::error!(%error, "Cannot stand for election, trying again"),
                }
                tokio::time::sleep(CAMPAIGN_PAUSE).await;
            };
            // Fails only when the process ends.
            drop(news.send(News::Elected(Box::new(term))).await);
        };
        tokio::spawn(campaign).abort_handle()
    }

    /// Recovers the state and starts the control plane in the background.
    fn take_over(&self, reign: &mut Reign) {
        let Some(term) = reign.term.take() else { return };
        let Term { number, store, contents, lease } = *term;
        tracing::info!(term = number, revision = %contents.revision, "This master is elected, taking over");
        self.metrics.elected();
        reign.tasks = JoinSet::new();
        reign.lease = Some(lease.clone());
        let news = self.news.clone();
        reign.tasks.spawn(async move {
            lease.lost().await;
            drop(news.send(News::Lost(number)).await);
        });
        let (settings, instruments, news) =
            (self.settings.clone(), self.instruments.clone(), self.news.clone());
        reign.tasks.spawn(async move {
            let starting = move || MasterRole::start(store, &contents, &settings, &instruments);
            let started = tokio::task::spawn_blocking(starting).await;
            let result = match started.map_err(anyhow::Error::from).and_then(|started| started) {
                Err(error) => News::Failed(number, error),
                Ok((mut role, link)) => {
                    let mut state = role.state.clone();
                    tokio::select! {
                        _ = state.wait_for(Option::is_some) => News::Ready(number, Box::new(role), link),
                        _ = role.ended() => News::Deposed(number),
                    }
                }
            };
            drop(news.send(result).await);
        });
    }

    async fn lead(&self, reign: &mut Reign) {
        let (Some(role), Some(link)) = (&reign.role, reign.link.take()) else { return };
        let context = Context {
            state: role.state.clone(),
            requests: role.requests.clone(),
            nodes: role.nodes.clone(),
            events: role.events.clone(),
            clock: Arc::new(role.clock.clone()),
            metrics: self.standing.metrics.clone(),
            sandboxes: self.standing.sandboxes.clone(),
            masters: self.standing.masters.clone(),
            address: self.standing.address,
        };
        let ends = MasterEnds { feed: role.feed.clone(), reports: link.reports, commands: link.commands };
        let own = LeaderAddress { bus: self.me.bus.clone(), term: reign.number };
        self.duty.send_replace(Duty::Leading(Leading::new(context)));
        if let Err(error) = self.bus.lead(reign.number, ends, &own) {
            let error = anyhow::Error::new(error);
            tracing::error!(error = format!("{error:#}"), "Cannot lead");
            drop(self.news.send(News::Abdicate).await);
            return;
        }
        tracing::info!(term = reign.number, "This master leads");
    }

    fn stand_by(&self) {
        // Users would be sent back to this master until its record in the store is gone.
        self.api_leader.send_if_modified(|known| known.take_if(|leader| *leader == self.me.api).is_some());
        self.duty.send_replace(Duty::Standing(self.standing.clone()));
        if let Err(error) = self.bus.stand_by(self.bus_leader.subscribe()) {
            let error = anyhow::Error::new(error);
            tracing::error!(error = format!("{error:#}"), "Cannot stand by for nodes");
        }
    }

    /// Lets everybody know who leads. That this master is elected is nobody's business before it is ready.
    fn show(&self, stage: Stage, leader: Option<&Leader>) {
        let other = leader.filter(|leader| leader.candidate.master != self.me.master);
        let bus = other.map(|it| LeaderAddress { bus: it.candidate.bus.clone(), term: it.term });
        let is_leading = matches!(stage, Stage::Leading(_));
        let api = if is_leading { Some(self.me.api) } else { other.map(|leader| leader.candidate.api) };
        let has_changed = self.bus_leader.send_if_modified(|known| {
            let has_changed = *known != bus;
            *known = bus;
            has_changed
        });
        if has_changed && !is_leading {
            match other {
                Some(Leader { candidate, term }) => {
                    tracing::info!(term, api = %candidate.api, "Another master leads");
                }
                None => tracing::warn!("No master leads"),
            }
        }
        self.api_leader.send_if_modified(|known| std::mem::replace(known, api) != api);
        self.metrics.show(stage, leader.map(|leader| leader.term));
        self.stage.send_if_modified(|(known, since)| {
            let is_new = std::mem::replace(known, stage) != stage;
            if is_new {
                *since = Instant::now();
            }
            is_new
        });
    }
}

/// Keeps what the news bring for later orders.
fn take(news: News, reign: &mut Reign) -> Option<Event> {
    match news {
        News::Elected(term) => {
            let number = term.number;
            reign.number = number;
            reign.term = Some(term);
            Some(Event::Elected(number))
        }
        News::Ready(number, role, link) if number == reign.number => {
            reign.role = Some(role);
            reign.link = Some(link);
            Some(Event::Ready(number))
        }
        // Of a term that is over: its control plane ends with its handle.
        News::Ready(..) => None,
        News::Failed(number, error) => {
            tracing::error!(term = number, error = format!("{error:#}"), "Cannot take over");
            Some(Event::Failed(number))
        }
        News::Deposed(number) => Some(Event::Deposed(number)),
        News::Lost(number) => Some(Event::Lost(number)),
        News::Abdicate => Some(Event::Abdicate),
        News::End => Some(Event::End),
    }
}

impl Reign {
    /// Waits until the control plane ends by itself.
    async fn ended(&mut self) -> Ended {
        let ended = match &mut self.role {
            Some(role) => role.ended().await,
            None => return std::future::pending().await,
        };
        self.role = None;
        ended
    }
}
