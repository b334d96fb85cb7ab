//! The planes of a node: each follows the bus, puts what it sees into effect, and reports back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{anyhow, bail};
use mesonet_bus::{Feed, Subscriber};
use mesonet_dns_server::{Server, StartError};
use mesonet_lb_dataplane::{LoadBalancer, RETRY_INTERVAL};
use mesonet_model::{AgentId, Plane, Revision};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Datapath;

/// Refuses a data path that this version does not have.
///
/// # Errors
/// When it is one.
pub fn refuse_missing(datapath: Datapath) -> anyhow::Result<()> {
    match datapath {
        Datapath::Ebpf => bail!("data path ebpf is not part of this version: use --datapath proxy"),
        Datapath::Proxy | Datapath::Auto | Datapath::None => Ok(()),
    }
}

/// Starts to answer for names: SERVFAIL until the plane follows.
///
/// # Errors
/// When an address is taken or not this machine's, or the settings are wrong.
pub async fn start_dns(config: mesonet_dns_server::Config, metrics: &Registry) -> anyhow::Result<Server> {
    let addresses: Vec<String> = config.listen.iter().map(SocketAddr::to_string).collect();
    Server::start(config, metrics).await.map_err(|error| {
        let hint = match &error {
            StartError::Bind { .. } => " (choose another address with --dns)",
            _ => "",
        };
        anyhow!(error).context(format!("cannot serve names on {}{hint}", addresses.join(" and ")))
    })
}

/// Starts to balance, if a data path is wanted.
pub fn start_lb(
    datapath: Datapath,
    feed: &Feed,
    node: &AgentId,
    metrics: &Registry,
    tasks: &mut JoinSet<()>,
) {
    match datapath {
        Datapath::None => {}
        Datapath::Proxy | Datapath::Auto | Datapath::Ebpf => {
            let subscriber = feed.subscribe(node.clone(), Plane::Lb);
            tasks.spawn(follow_with_lb(LoadBalancer::proxy(metrics), subscriber));
        }
    }
}

/// What a plane beside its control plane is told of its view's age.
pub fn always_fresh() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// Serves names until the control plane is gone. Answers are marked while `stale` says so.
pub async fn follow_with_dns(
    mut server: Server,
    mut subscriber: Subscriber,
    mut stale: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                server.apply(&update.view, &update.delta);
                subscriber.report(update.view.revision, BTreeSet::new(), BTreeMap::new()).await;
            }
            Ok(()) = stale.changed() => server.set_stale(*stale.borrow_and_update()),
        }
    }
}

/// Balances services until the control plane is gone. Reports also when connections of draining endpoints end, and
/// when services that failed are in effect after all.
pub async fn follow_with_lb(mut balancer: LoadBalancer, mut subscriber: Subscriber) {
    let mut busy = balancer.busy();
    let mut failed = BTreeMap::new();
    let mut applied = Revision::ZERO;
    loop {
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                failed = balancer.apply(&update.view, &update.delta).await;
                applied = update.view.revision;
            }
            Ok(()) = busy.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !failed.is_empty() => {
                let failed_before = failed;
                failed = balancer.retry().await;
                if failed == failed_before {
                    continue;
                }
            }
        }
        let busy = busy.borrow_and_update().clone();
        subscriber.report(applied, busy, failed.clone()).await;
    }
}
