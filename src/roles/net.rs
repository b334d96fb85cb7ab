//! The network daemon's process.
//!
//! Tasks of the runtime: one per plane, the keeper of the view, the HTTP servers, and the bus client or whatever else
//! the view comes from. None holds anything that a sudden end would damage: the view on disk is replaced as a whole,
//! and what is changed on the host is noted there.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use mesonet_bus::{Client, ClientSettings, Identity, JoinToken, KnownView, PlaneNews, Publisher};
use mesonet_dns_server::{CertificateFiles, EncryptedAddresses};
use mesonet_lb_dataplane::{KernelHold, PacketBalancer};
use mesonet_model::{AgentId, ClusterId, ClusterView, Plane, Revision};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::node_identity::Node;
use super::resolver_plan::ResolverPlan;
use super::view_age::{Confirmation, ViewKeeper, ViewMetrics};
use super::view_cache::ViewCache;
use crate::config::{Datapath, Grace, NetOptions, Source, Switch};
use crate::dns_api::{self, DnsApi};
use crate::host::{LoopbackAddress, ResolvConf};
use crate::lb_api::LbApi;
use crate::net_plan::NetPlan;
use crate::overlay::{self, Overlay, OverlaySettings};
use crate::planes::{self, Resumption};
use crate::process::{self, Running};
use crate::sources::{self, Sink, SourceMetrics};
use crate::{http, http_server, open_files, process_metrics};

/// Runs the node's network daemon until SIGINT or SIGTERM. `token` is needed if the view comes from masters of mesonet
/// and neither it nor the agent has joined.
///
/// # Errors
/// When it cannot start: the node has not joined, the token is refused, an address is taken.
pub fn run_net(plan: &NetPlan, token: Option<&JoinToken>) -> anyhow::Result<()> {
    let start = NetProcess::start(plan, token);
    process::run(&plan.options.log, plan.options.log_format, start, |net| {
        println!("{} is up", net.about);
        for dns in &net.dns {
            println!("  DNS      {dns}, UDP and TCP");
        }
        let EncryptedAddresses { tls, https, quic } = net.encrypted;
        for (name, address) in [("DoT", tls), ("DoH", https), ("DoQ", quic)] {
            if let Some(address) = address {
                println!("  {name}      {address}");
            }
        }
        if let Some(dns_http) = net.dns_http {
            println!("  DNS API  http://{dns_http}/v1/records");
        }
        println!("  metrics  http://{}/metrics", net.http);
    })
}

/// Takes everything that network daemons have left in the kernel out of it.
///
/// # Errors
/// When it cannot be removed, or a daemon uses it; then nothing has changed.
pub fn clean_up_net(plan: &NetPlan) -> anyhow::Result<()> {
    let bpffs = &plan.options.sockets.bpffs;
    let _hold = KernelHold::take_present(bpffs)?;
    overlay::wait_until_left()?;
    PacketBalancer::cleanup(bpffs)
        .and_then(|()| mesonet_lb_dataplane::cleanup(bpffs))
        .with_context(|| format!("cannot remove the programs that are pinned in {}", bpffs.display()))?;
    overlay::clean_up()
}

#[derive(Debug)]
struct NetProcess {
    about: String,
    dns: Vec<SocketAddr>,
    encrypted: EncryptedAddresses,
    dns_http: Option<SocketAddr>,
    http: SocketAddr,
    tasks: JoinSet<()>,
    /// Held so that the connection is kept up.
    _bus: Option<Client>,
    /// Held so that it is taken away at the end.
    _address: Option<LoopbackAddress>,
}

/// Where the view comes from, and what of it.
enum Origin<'plan> {
    Bus { identity_dir: PathBuf, masters: Vec<String>, identity: Box<Identity> },
    Foreign(&'plan Source),
}

/// What each way to get views is given.
struct Supply {
    known: Option<KnownView>,
    views: Publisher,
    reports: mpsc::Receiver<PlaneNews>,
}

impl NetProcess {
    async fn start(plan: &NetPlan, token: Option<&JoinToken>) -> anyhow::Result<Self> {
        let options = &plan.options;
        warn_of_unused(plan);
        let origin = Origin::of(plan, token).await?;
        let datapath = options.datapath.unwrap_or(origin.default_datapath());
        open_files::raise_limit();
        let metrics = Registry::new();
        process_metrics::register(&metrics).context("cannot register metrics")?;
        let view_metrics = ViewMetrics::register(&metrics).context("cannot register metrics")?;
        let listener = http::listen(options.http, "metrics").await?;
        let http = listener.local_addr().context("cannot tell the metrics' address")?;
        let cache = ViewCache::of(&options.dir);
        let known = known_view(&cache, &origin.cluster());
        // Before what takes longer: streams of containers stand still until the tunnels are there again.
        let overlay = origin.overlay(options, known.as_ref(), &metrics)?;
        let api_listener = dns_api::listen(options.dns_http).await?;
        let dns_http =
            api_listener.as_ref().map(TcpListener::local_addr).transpose().context("no API address")?;
        ResolvConf::recover(&options.dir);
        let address = options.dns_address.map(|address| LoopbackAddress::add(address, &options.dir));
        let address = address.transpose()?;
        let balancer = planes::load_balancer(datapath, &options.sockets, &metrics)?;
        let dns_server = planes::start_dns(plan.dns(origin.certificate())?, &metrics).await?;
        let (dns, encrypted) = (dns_server.addresses().to_vec(), dns_server.encrypted_addresses());

        let kept = known.as_ref().map_or(Revision::ZERO, |known| known.view.revision);
        let (views, feed, reports) = mesonet_bus::channel();
        let confirmed_before = known.as_ref().map(|known| known.confirmed);
        if let Some(KnownView { view, .. }) = &known {
            tracing::info!(revision = %view.revision, "Serving the last view until there is a newer one");
            views.publish(view.clone());
        }
        let (stale, is_stale) = watch::channel(false);
        let name = origin.node_name();
        let mut tasks = JoinSet::new();
        if let Some(listener) = api_listener {
            let api = DnsApi { zone: dns_server.served(), feed: feed.clone(), settings: plan.api() };
            tasks.spawn(http_server::serve(listener, api.router()));
        }
        let zone = dns_server.served();
        tasks.spawn(planes::follow_with_dns(dns_server, feed.subscribe(name.clone(), Plane::Dns), is_stale));
        let resumption = Resumption::of(&options.dir, known.as_ref().map(|known| &known.view));
        let inspector = overlay.as_ref().map(Overlay::inspector);
        if let Some(overlay) = overlay {
            tasks.spawn(overlay.follow(name.clone(), feed.subscribe(name.clone(), Plane::Overlay)));
        }
        let supply = Supply { known, views, reports };
        let about = origin.about();
        let (bus, confirmation) = supply.start(origin, plan, &metrics, &mut tasks)?;
        let resumption = Some(resumption.confirmed_by(confirmation.source()));
        let balancer = planes::start_lb(balancer, &feed, &name, resumption, &mut tasks);
        let lb_api = LbApi { node: name, balancer, feed: feed.clone(), zone, overlay: inspector };
        if let Some(resolver) = ResolverPlan::of(plan, &dns)? {
            tasks.spawn(resolver.carry_out(feed.clone()));
        }
        let keeper = ViewKeeper {
            feed,
            confirmation,
            cache,
            confirmed_before,
            stale_after: options.stale_after.0,
            stale,
            metrics: view_metrics,
        };
        tasks.spawn(keeper.run(kept));
        tasks.spawn(http_server::serve(
            listener,
            http::metrics_only(metrics).merge(lb_api.router_with_services()),
        ));
        Ok(Self { about, dns, encrypted, dns_http, http, tasks, _bus: bus, _address: address })
    }
}

impl Origin<'_> {
    async fn of<'plan>(
        plan: &'plan NetPlan,
        token: Option<&'plan JoinToken>,
    ) -> anyhow::Result<Origin<'plan>> {
        let options = &plan.options;
        let masters = match &options.source {
            None => options.master.as_ref(),
            Some(Source::Mesonet(masters)) => Some(masters),
            Some(source) => {
                // Without it the last view is not kept, which the keeper says.
                if let Err(error) = std::fs::create_dir_all(&options.dir) {
                    tracing::warn!(%error, dir = %options.dir.display(), "Cannot make the daemon's directory (--dir)");
                }
                return Ok(Origin::Foreign(source));
            }
        };
        let node = Node { dir: &options.dir, masters, token, name: options.node.as_ref() };
        let masters = node.masters()?.to_vec();
        let identity = node.identity().await?;
        Ok(Origin::Bus { identity_dir: node.identity_dir(), masters, identity: Box::new(identity) })
    }

    fn about(&self) -> String {
        match self {
            Origin::Bus { identity, .. } => format!("mesonet network daemon of node {}", identity.name()),
            Origin::Foreign(source) => format!("mesonet network daemon for {source}"),
        }
    }

    /// The cluster whose view on disk is of use. That of another source is not.
    fn cluster(&self) -> ClusterId {
        match self {
            Origin::Bus { identity, .. } => identity.cluster().clone(),
            Origin::Foreign(source) => ClusterId::new(source.to_string()),
        }
    }

    /// Whom the planes report for.
    fn node_name(&self) -> AgentId {
        match self {
            Origin::Bus { identity, .. } => AgentId::new(identity.name().as_str()),
            Origin::Foreign(_) => AgentId::new("local"),
        }
    }

    /// The node's certificate, if it has one.
    fn certificate(&self) -> Option<CertificateFiles> {
        match self {
            Origin::Bus { identity_dir, .. } => {
                let own = Identity::files(identity_dir);
                Some(CertificateFiles { chain: own.certificate, key: own.key })
            }
            Origin::Foreign(_) => None,
        }
    }

    /// The node's tunnels, if it is to have any. A cluster of others has no place where nodes say their keys.
    fn overlay(
        &self,
        options: &NetOptions,
        known: Option<&KnownView>,
        metrics: &Registry,
    ) -> anyhow::Result<Option<Overlay>> {
        match (self, options.overlay) {
            (_, Switch::Off) => Ok(None),
            (Origin::Bus { .. }, Switch::On) => {
                let Grace(key_age_max) = options.overlay_key_age;
                let masquerades = options.overlay_masquerade == Switch::On;
                let settings = OverlaySettings { port: options.overlay_port, key_age_max, masquerades };
                let overlay = Overlay::open(&options.dir, settings, metrics)?;
                if let Some(known) = known {
                    overlay.resume(&known.view, &self.node_name());
                }
                Ok(Some(overlay))
            }
            (Origin::Foreign(_), Switch::On) => {
                bail!("the overlay needs a cluster of mesonet: use --overlay off")
            }
        }
    }

    /// A Mesos cluster has its own balancer, or none: names are what is asked for.
    fn default_datapath(&self) -> Datapath {
        match self {
            Origin::Bus { .. } => Datapath::Proxy,
            Origin::Foreign(_) => Datapath::None,
        }
    }
}

impl Supply {
    /// Lets views come.
    fn start(
        self,
        origin: Origin<'_>,
        plan: &NetPlan,
        metrics: &Registry,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<(Option<Client>, Confirmation)> {
        let Self { known, views, mut reports } = self;
        match origin {
            Origin::Bus { identity_dir, masters, .. } => {
                let Grace(idle_timeout) = plan.options.master_timeout;
                let settings = ClientSettings { masters, identity: identity_dir, idle_timeout };
                let bus = Client::start_net(settings, known, views, reports).context("cannot use the bus")?;
                let confirmation = Confirmation::Bus(bus.state());
                Ok((Some(bus), confirmation))
            }
            Origin::Foreign(source) => {
                let known = known.map_or_else(|| ClusterView::empty(origin.cluster()), |known| known.view);
                let source_metrics = SourceMetrics::register(metrics).context("cannot register metrics")?;
                let (sink, state) = Sink::new(views, known, source_metrics);
                sources::start(source, plan, sink, tasks)?;
                // There is nobody who wants to know what the planes have applied.
                tasks.spawn(async move { while reports.recv().await.is_some() {} });
                Ok((None, Confirmation::Source(state)))
            }
        }
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

/// Says what of a configuration of mesos-dns has no effect.
fn warn_of_unused(plan: &NetPlan) {
    for warning in plan.warnings() {
        tracing::warn!(warning, "A part of the configuration of mesos-dns is not used");
    }
}

/// What the node has from before. Anything else than a view of its cluster is as good as nothing.
fn known_view(cache: &ViewCache, cluster: &ClusterId) -> Option<KnownView> {
    cache.read(cluster).unwrap_or_else(|error| {
        let error = anyhow!(error);
        tracing::warn!(error = format!("{error:#}"), "Starting without the last view");
        None
    })
}
