//! The nodes' end of the bus: many nodes in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use mesonet_bus::{Client, ClientSettings, JOINING_MAX, JoinToken, NodeName, Subscriber, channel, join};
use mesonet_model::{AgentId, Plane};
use tokio::task::JoinSet;

use super::Order;
use super::master::IDLE_TIMEOUT;
use super::tally::{self, Tally};

/// Joins, connects and follows.
pub(super) fn run(order: &Order) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(follow(order))
}

async fn follow(order: &Order) -> anyhow::Result<()> {
    let names: Vec<NodeName> =
        (0..order.subscribers).map(|number| format!("n{number}").parse()).collect::<Result<_, _>>()?;
    join_all(order, &names).await?;
    println!("joined");
    let mut input = tally::input();
    input.next_line().await?.context("nobody waits for the nodes")?;
    let tally = Arc::new(Tally::new(order));
    let mut subscribers = JoinSet::new();
    let mut clients = Vec::new();
    for name in &names {
        let (publisher, feed, reports) = channel();
        let subscriber = feed.subscribe(AgentId::new(name.as_str()), Plane::Dns);
        let settings = ClientSettings {
            masters: vec![order.server.clone()],
            identity: identity_dir(&order.dir, name),
            idle_timeout: IDLE_TIMEOUT,
        };
        clients.push(Client::start_net(settings, None, publisher, reports)?);
        subscribers.spawn(subscribe(subscriber, tally.clone(), order.acknowledge));
    }
    tally.converse(&mut input).await
}

async fn join_all(order: &Order, names: &[NodeName]) -> anyhow::Result<()> {
    let token: JoinToken = order.token.parse()?;
    let mut joining = JoinSet::new();
    for name in names {
        if joining.len() == JOINING_MAX {
            joining.join_next().await.context("nobody joins")???;
        }
        let (master, token, name) = ([order.server.clone()], token.clone(), name.clone());
        let dir = identity_dir(&order.dir, &name);
        joining.spawn(async move {
            join(&master, &token, &name, &dir).await.with_context(|| format!("{name} cannot join")).map(drop)
        });
    }
    while let Some(joined) = joining.join_next().await {
        joined??;
    }
    Ok(())
}

async fn subscribe(mut subscriber: Subscriber, tally: Arc<Tally>, acknowledge: bool) {
    let mut known = 0;
    while let Some(update) = subscriber.next().await {
        let revision = update.view.revision;
        tally.applied(known, revision.0);
        known = revision.0;
        if acknowledge {
            subscriber.report(revision, BTreeSet::new(), BTreeMap::new()).await;
        }
    }
}

fn identity_dir(dir: &str, name: &NodeName) -> PathBuf {
    Path::new(dir).join("nodes").join(name.as_str())
}
