//! The process of one of several masters, which share their state in etcd and of which one leads.
//!
//! Tasks of the runtime: the supervisor, which ends after a commit under way and gives leadership up; the bus server's
//! and the HTTP server, which serve whether this master leads or not and hold nothing that a sudden end would damage.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};
use mesonet_api::{Duty, MasterList, MasterState, Masters, Standing};
use mesonet_bus::{NodeName, Server};
use mesonet_model::{ClusterId, MasterId, UuidSource};
use mesonet_store::{Candidate, EtcdReplica, EtcdSettings, EtcdTls};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::authority::authority_dir;
use super::bus_metrics;
use super::leadership_metrics::LeadershipMetrics;
use super::master::{Groundwork, bus_settings, cannot_serve};
use super::node_identity::own_name;
use super::records_reader::RecordsReader;
use super::supervisor::{NEWS_MAX, News, Supervisor};
use crate::config::MasterOptions;
use crate::etcd_records::shared_authority;
use crate::http_server;
use crate::leadership::Stage;
use crate::master_role::seed;
use crate::process::{self, Running};
use crate::sandboxes::RemoteSandboxes;

/// Runs a master that leads when it is elected, until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start: there is no cluster in the directory, etcd is not reached, an address is taken.
pub fn run_elected_master(options: &MasterOptions) -> anyhow::Result<()> {
    let start = ElectedMaster::start(options);
    process::run(&options.log, options.log_format, start, |master| {
        println!("mesonet master {} of cluster {} is up", master.name, master.cluster);
        println!("  API    http://{}", master.http);
        println!("  nodes  {}, UDP", master.bus.address());
    })
}

#[derive(Debug)]
struct ElectedMaster {
    name: NodeName,
    cluster: ClusterId,
    http: SocketAddr,
    bus: Arc<Server>,
    news: mpsc::Sender<News>,
    supervisor: JoinHandle<()>,
    others: JoinSet<()>,
}

impl ElectedMaster {
    async fn start(options: &MasterOptions) -> anyhow::Result<Self> {
        let Groundwork { authority: local, listener, http, settings, metrics, instruments } =
            Groundwork::lay(options).await?;
        let cluster = local.cluster().clone();
        let name = match &options.name {
            Some(name) => name.clone(),
            None => own_name()?,
        };
        let ip = reachable_ip(options, http)?;
        let replica = EtcdReplica::open(etcd_settings(options, &cluster)?).await?;
        let (dir, keys) = (authority_dir(&options.dir), replica.keys());
        let authority = tokio::task::spawn_blocking(move || shared_authority(&dir, keys)).await??;
        let (bus_leader, bus_follows) = watch::channel(None);
        let (api_leader, api_follows) = watch::channel(None);
        let (stage, stage_shown) = watch::channel((Stage::default(), Instant::now()));
        let (news, news_in) = mpsc::channel(NEWS_MAX);
        let bus = Server::start_standing(bus_settings(options, name.clone()), authority, bus_follows)
            .with_context(|| cannot_serve(options))?;
        let bus = Arc::new(bus);
        bus_metrics::register(&metrics, bus.clone()).context("cannot register metrics")?;
        let me = Candidate {
            master: MasterId::new(UuidSource::from_seed(seed()?).next_uuid().to_string()),
            api: SocketAddr::new(ip, http.port()),
            bus: SocketAddr::new(ip, bus.address().port()).to_string(),
        };
        let masters = Arc::new(KnownMasters {
            name: name.clone(),
            bus: bus.clone(),
            stage: stage_shown,
            news: news.clone(),
        });
        let standing = Standing {
            leader: api_follows,
            replica: Arc::new(RecordsReader::new(settings.clone(), replica.clone())),
            metrics: metrics.clone(),
            sandboxes: Arc::new(RemoteSandboxes::new(bus.clone())),
            masters,
            address: me.api,
        };
        let (duty, on_duty) = watch::channel(Duty::Standing(standing.clone()));
        let supervisor = Supervisor {
            replica,
            me,
            settings,
            instruments,
            bus: bus.clone(),
            duty,
            standing,
            bus_leader,
            api_leader,
            stage,
            metrics: LeadershipMetrics::register(&metrics).context("cannot register metrics")?,
            news: news.clone(),
        };
        let mut others = JoinSet::new();
        others.spawn(http_server::serve(listener, mesonet_api::router_on_duty(on_duty)));
        let supervisor = tokio::spawn(supervisor.run(news_in));
        Ok(Self { name, cluster, http, bus, news, supervisor, others })
    }
}

impl Running for ElectedMaster {
    async fn broken(&mut self) -> anyhow::Error {
        match (&mut self.supervisor).await {
            Ok(()) => anyhow!("BUG: nobody looks after leadership any more"),
            Err(error) => anyhow!(error).context("BUG: whoever looks after leadership has failed"),
        }
    }

    async fn end(mut self) {
        // Fails only when the supervisor has ended.
        if self.news.send(News::End).await.is_ok() && !self.supervisor.is_finished() {
            drop((&mut self.supervisor).await);
        }
        self.others.shutdown().await;
    }
}

/// Where other masters and the nodes reach this one.
fn reachable_ip(options: &MasterOptions, http: SocketAddr) -> anyhow::Result<IpAddr> {
    let specific = [http.ip(), options.listen.ip()].into_iter().find(|ip| !ip.is_unspecified());
    let Some(ip) = options.address.or(specific) else {
        bail!("other masters and nodes have to reach this one: say where with --address IP");
    };
    if http.ip().is_loopback() && !ip.is_loopback() {
        bail!(
            "the API listens on {http}, where other masters cannot reach it to pass requests on: \
             let it listen on {ip} with --http {ip}:{}",
            http.port()
        );
    }
    Ok(ip)
}

/// How the shared state is reached.
pub(super) fn etcd_settings(options: &MasterOptions, cluster: &ClusterId) -> anyhow::Result<EtcdSettings> {
    let endpoints = options.etcd.clone().unwrap_or_default();
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {} for etcd", path.display()));
    let identity = match (&options.etcd_cert, &options.etcd_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => bail!("etcd-cert and etcd-key belong together"),
    };
    let tls = match &options.etcd_ca {
        Some(authority) => Some(EtcdTls { authority: read(authority)?, identity }),
        None if identity.is_some() => bail!("etcd-cert is of no use without etcd-ca"),
        None => None,
    };
    Ok(EtcdSettings { endpoints: endpoints.0, cluster: cluster.clone(), tls, lease: EtcdSettings::LEASE })
}

/// The masters, as this one knows them.
#[derive(Debug)]
struct KnownMasters {
    name: NodeName,
    bus: Arc<Server>,
    stage: watch::Receiver<(Stage, Instant)>,
    news: mpsc::Sender<News>,
}

impl Masters for KnownMasters {
    fn list(&self) -> MasterList {
        let (stage, since) = *self.stage.borrow();
        let own = MasterState { name: self.name.to_string(), since: since.elapsed(), revision: None };
        match stage {
            Stage::Leading(term) => {
                let standbys = self.bus.standbys().into_iter().map(|standby| MasterState {
                    name: standby.name.to_string(),
                    since: standby.since.elapsed(),
                    revision: Some(standby.revision),
                });
                MasterList { term: Some(term), leader: Some(own), standbys: standbys.collect() }
            }
            Stage::Standing | Stage::TakingOver(_) | Stage::Ended => {
                MasterList { term: None, leader: None, standbys: vec![own] }
            }
        }
    }

    fn abdicate(&self) {
        // A full queue means that leadership changes anyway.
        drop(self.news.try_send(News::Abdicate));
    }
}
