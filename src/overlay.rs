//! The overlay of a node: the tunnel, and the kernel's routes into it.
//!
//! It follows the view like the other planes. What is to be is planned purely (`mesonet_overlay_plan`); what is there
//! is asked of the kernel, each time and every half minute, so that what somebody else removed is put back and what a
//! departed node left is removed, also after a restart. The device stays when the daemon ends, and with it the routes;
//! `--cleanup` takes them away.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesonet_bus::Subscriber;
use mesonet_model::{AgentId, ClusterView, Subnet, TunnelEnd};
use mesonet_netlink::{MAIN_TABLE, Netlink, NetlinkError, Route, Rule};
use mesonet_overlay_plan::{NodeOverlay, PlannedPeer, PlannedRoute, Prefix, RouteScope, difference, plan};
use mesonet_overlay_wg::{PeerSettings, Peers, PrivateKey, PublicKey, Tunnel, TunnelSettings};
use prometheus::Registry;
use tokio::time::Instant;

use self::metrics::TunnelCollector;

mod metrics;

/// The tunnel's network device.
const DEVICE: &str = "mesonet-wg";

/// The node's private key, in its directory.
const KEY_FILE: &str = "overlay.key";

/// Routes and rules of ours have this number in the kernel (`rtm_protocol`); none of `/etc/iproute2/rt_protos`.
const MARK: u8 = 77;

/// The table of routes for packets of tasks, as in DC/OS (spec/dcos-networking.md §2.4.3).
const TASKS_TABLE: u32 = 42;

/// How often the kernel is asked whether everything is as it should be.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);

/// How soon it is tried again after the kernel has refused something.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A node's overlay.
#[derive(Debug)]
pub struct Overlay {
    tunnel: Arc<Tunnel>,
    end: TunnelEnd,
}

impl Overlay {
    /// Opens the tunnel, with the node's own key, which is made if it has none. It has no peers yet.
    ///
    /// # Errors
    /// When the key cannot be used, or the device or the port cannot be had.
    pub fn open(dir: &Path, port: u16, registry: &Registry) -> anyhow::Result<Self> {
        let key = own_key(&dir.join(KEY_FILE))?;
        let public = key.public().to_string();
        let tunnel = Tunnel::open(&TunnelSettings::new(DEVICE, port, key)).context("there is no overlay")?;
        let port = tunnel.port().context("cannot tell the overlay's port")?;
        set(&format!("net/ipv4/conf/{DEVICE}/forwarding"), "1")?;
        // Packets of other nodes themselves come by the tunnel, and go another way where they are not answers.
        set(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "2")?;
        let tunnel = Arc::new(tunnel);
        registry
            .register(Box::new(TunnelCollector::new(tunnel.clone())?))
            .context("cannot register metrics")?;
        Ok(Self { tunnel, end: TunnelEnd { key: public, other_key: None, port } })
    }

    /// Follows the cluster for a node of this name, until the control plane is gone.
    pub async fn follow(self, node: AgentId, mut subscriber: Subscriber) {
        let mut view: Option<Arc<ClusterView>> = None;
        let mut last: Option<NodeOverlay> = None;
        let mut look_at = Instant::now() + RECONCILE_INTERVAL;
        loop {
            let is_due = tokio::select! {
                update = subscriber.next() => {
                    let Some(update) = update else { return };
                    view = Some(update.view);
                    false
                }
                () = tokio::time::sleep_until(look_at), if view.is_some() => true,
            };
            let Some(view) = &view else { continue };
            let desired = plan(view, &node);
            if is_due || last.as_ref() != Some(&desired) {
                self.tunnel.set_peers(peers_of(&desired));
                let wanted = desired.clone();
                let done = tokio::task::spawn_blocking(move || reconcile(&wanted)).await;
                let done = done.unwrap_or_else(|error| Err(anyhow!(error)));
                look_at = Instant::now() + RECONCILE_INTERVAL;
                last = Some(desired);
                if let Err(error) = done {
                    tracing::warn!(error = format!("{error:#}"), "The overlay is not fully in effect");
                    look_at = Instant::now() + RETRY_INTERVAL;
                    last = None;
                    continue;
                }
            }
            subscriber.report_tunnel(view.revision, self.end.clone()).await;
        }
    }
}

/// Removes what an overlay leaves when its daemon ends.
///
/// # Errors
/// When the kernel refuses.
pub fn clean_up() -> anyhow::Result<()> {
    let mut kernel = Netlink::open()?;
    for route in kernel.routes(MARK)? {
        kernel.remove_route(&route, MARK)?;
    }
    for rule in kernel.rules(MARK)? {
        kernel.remove_rule(&rule, MARK)?;
    }
    match kernel.link(DEVICE)? {
        Some(_) => kernel.remove_link(DEVICE).context("cannot remove the overlay's device"),
        None => Ok(()),
    }
}

/// The node's private key. It is in a file that only its user can read, and nowhere else.
fn own_key(path: &PathBuf) -> anyhow::Result<PrivateKey> {
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(|error| anyhow!("{error}: {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key =
                PrivateKey::generate().map_err(|_| anyhow!("the system has no randomness for a key"))?;
            let text = format!("{}\n", STANDARD.encode(key.expose()));
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
                .with_context(|| format!("cannot write the node's key to {}", path.display()))?;
            Ok(key)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot read the node's key from {}", path.display()))
        }
    }
}

/// What the tunnel is told. A node whose key is none has no tunnel.
fn peers_of(overlay: &NodeOverlay) -> Peers {
    let peer = |(name, planned): (&AgentId, &PlannedPeer)| {
        let key = planned.end.key.parse::<PublicKey>();
        let Ok(key) = key.inspect_err(|error| tracing::warn!(%error, node = %name, "A node has no key"))
        else {
            return None;
        };
        let prefix = |subnet: &Subnet| Prefix::new(subnet.first(), subnet.prefix()).ok();
        let settings = PeerSettings {
            key,
            other_key: planned.end.other_key.as_ref().and_then(|key| key.parse().ok()),
            endpoint: Some(planned.endpoint),
            addresses: planned.addresses.iter().filter_map(prefix).collect(),
            keepalive: None,
        };
        Some((name.to_string(), settings))
    };
    overlay.peers.iter().filter_map(peer).collect()
}

/// Makes the kernel's routes and rules what they are to be. Routes come before rules, and go after them.
fn reconcile(overlay: &NodeOverlay) -> anyhow::Result<()> {
    let mut kernel = Netlink::open()?;
    let device = kernel.link(DEVICE)?.context("the overlay's device is gone")?;
    kernel.set_up(&device)?;
    if overlay.own.iter().any(|part| !part.is_ipv4()) {
        // For IPv6 there is no switch for one interface alone before Linux 6.17.
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    let routes: BTreeSet<Route> = overlay.routes.iter().map(|each| route(each, device.index)).collect();
    let rules: BTreeSet<Rule> = rules(overlay);
    let routes = difference(&routes, &kernel.routes(MARK)?.into_iter().collect());
    let rules = difference(&rules, &kernel.rules(MARK)?.into_iter().collect());
    each(&rules.remove, |rule| kernel.remove_rule(rule, MARK))?;
    each(&routes.remove, |route| kernel.remove_route(route, MARK))?;
    each(&routes.add, |route| kernel.add_route(route, MARK))?;
    each(&rules.add, |rule| kernel.add_rule(rule, MARK))
}

/// Does it for each, also after a failure; the first failure counts.
fn each<T>(all: &[T], mut act: impl FnMut(&T) -> Result<(), NetlinkError>) -> anyhow::Result<()> {
    let failures: Vec<NetlinkError> = all.iter().filter_map(|each| act(each).err()).collect();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

fn route(planned: &PlannedRoute, link: u32) -> Route {
    let table = match planned.scope {
        RouteScope::All => MAIN_TABLE,
        RouteScope::Tasks => TASKS_TABLE,
    };
    let (destination, prefix) = (planned.destination.first(), planned.destination.prefix());
    Route { table, destination, prefix, link, source: planned.source, mtu: None }
}

/// Packets from the node's own parts look into the table of tasks first, if it has a route of their family.
fn rules(overlay: &NodeOverlay) -> BTreeSet<Rule> {
    let of_tasks = overlay.routes.iter().filter(|route| route.scope == RouteScope::Tasks);
    let families: BTreeSet<bool> = of_tasks.map(|route| route.destination.is_ipv4()).collect();
    let own = overlay.own.iter().filter(|part| families.contains(&part.is_ipv4()));
    own.map(|part| Rule { source: part.first(), prefix: part.prefix(), table: TASKS_TABLE }).collect()
}

fn set(name: &str, value: &str) -> anyhow::Result<()> {
    let path = PathBuf::from("/proc/sys").join(name);
    fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
}
