//! The network daemon's process.
//!
//! Tasks of the runtime: one per plane, the keeper of the view, the HTTP server and the bus client. None holds anything
//! that a sudden end would damage: the view on disk is replaced as a whole.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use mesonet_bus::{Client, ClientSettings, Identity, JoinToken};
use mesonet_dns_server::CertificateFiles;
use mesonet_model::{AgentId, Plane, Revision};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::node_identity::Node;
use super::view_age::{ViewKeeper, ViewMetrics};
use super::view_cache::{CachedView, ViewCache};
use crate::config::{Grace, NetOptions};
use crate::process::{self, Running};
use crate::{http, http_server, open_files, planes, process_metrics};

/// Runs the node's network daemon until SIGINT or SIGTERM. `token` is needed if neither it nor the agent has joined.
///
/// # Errors
/// When it cannot start: the node has not joined, the token is refused, an address is taken.
pub fn run_net(options: &NetOptions, token: Option<&JoinToken>) -> anyhow::Result<()> {
    let start = NetProcess::start(options, token);
    process::run(&options.log, options.log_format, start, |net| {
        println!("mesonet network daemon of node {} is up", net.identity.name());
        println!("  DNS      {}, UDP and TCP", net.dns);
        println!("  metrics  http://{}/metrics", net.http);
    })
}

#[derive(Debug)]
struct NetProcess {
    identity: Identity,
    dns: SocketAddr,
    http: SocketAddr,
    tasks: JoinSet<()>,
    /// Held so that the connection is kept up.
    _bus: Client,
}

impl NetProcess {
    async fn start(options: &NetOptions, token: Option<&JoinToken>) -> anyhow::Result<Self> {
        planes::refuse_missing(options.datapath)?;
        open_files::raise_limit();
        let node =
            Node { dir: &options.dir, masters: options.master.as_ref(), token, name: options.node.as_ref() };
        let masters = node.masters()?.to_vec();
        let identity = node.identity().await?;
        let metrics = Registry::new();
        process_metrics::register(&metrics).context("cannot register metrics")?;
        let view_metrics = ViewMetrics::register(&metrics).context("cannot register metrics")?;
        let listener = http::listen(options.http, "metrics").await?;
        let http = listener.local_addr().context("cannot tell the metrics' address")?;
        let own = Identity::files(&node.identity_dir());
        let own = CertificateFiles { chain: own.certificate, key: own.key };
        let dns_server = planes::start_dns(options.dns, &options.names, Some(own), &metrics).await?;
        let dns = dns_server.addresses().first().copied().unwrap_or(options.dns);

        let cache = ViewCache::of(&options.dir);
        let known = known_view(&cache, &identity);
        let kept = known.as_ref().map_or(Revision::ZERO, |known| known.view.revision);
        let (views, feed, reports) = mesonet_bus::channel();
        let (known, confirmed_before) = match known {
            Some(CachedView { view, confirmed }) => (Some(view), Some(confirmed)),
            None => (None, None),
        };
        if let Some(view) = &known {
            tracing::info!(revision = %view.revision, "Serving the last view until a master has a newer one");
            views.publish(view.clone());
        }
        let (stale, is_stale) = watch::channel(false);
        let name = AgentId::new(identity.name().as_str());
        let mut tasks = JoinSet::new();
        let dns_plane = feed.subscribe(name.clone(), Plane::Dns);
        tasks.spawn(planes::follow_with_dns(dns_server, dns_plane, is_stale));
        planes::start_lb(options.datapath, &feed, &name, &metrics, &mut tasks);
        let Grace(idle_timeout) = options.master_timeout;
        let settings = ClientSettings { masters, identity: node.identity_dir(), idle_timeout };
        let bus = Client::start_net(settings, known, views, reports).context("cannot use the bus")?;
        let Grace(stale_after) = options.stale_after;
        let keeper = ViewKeeper {
            feed,
            link: bus.state(),
            cache,
            confirmed_before,
            stale_after,
            stale,
            metrics: view_metrics,
        };
        tasks.spawn(keeper.run(kept));
        tasks.spawn(http_server::serve(listener, http::metrics_only(metrics)));
        Ok(Self { identity, dns, http, tasks, _bus: bus })
    }
}

impl Running for NetProcess {
    async fn broken(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Err(error)) => anyhow!(error).context("BUG: a part of the network daemon has failed"),
            Some(Ok(())) | None => anyhow!("BUG: a part of the network daemon has ended by itself"),
        }
    }

    async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What the node has from before. Anything else than a view of its cluster is as good as nothing.
fn known_view(cache: &ViewCache, identity: &Identity) -> Option<CachedView> {
    cache.read(identity.cluster()).unwrap_or_else(|error| {
        let error = anyhow!(error);
        tracing::warn!(error = format!("{error:#}"), "Starting without the last view");
        None
    })
}
