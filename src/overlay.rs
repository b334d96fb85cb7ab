//! The overlay of a node: the tunnel, and the kernel's routes into it.
//!
//! It follows the view like the other planes. What is to be is planned purely (`mesonet_overlay_plan`); what is there
//! is asked of the kernel, each time and every half minute, so that what somebody else removed is put back and what a
//! departed node left is removed, also after a restart. The device stays when the daemon ends, and with it the routes;
//! `--cleanup` takes them away.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mesonet_bus::Subscriber;
use mesonet_model::{AgentId, ClusterView, Subnet, TunnelEnd};
use mesonet_overlay_plan::{NodeOverlay, PlannedPeer, Prefix, plan};
use mesonet_overlay_wg::{PeerSettings, Peers, PrivateKey, PublicKey, Tunnel, TunnelSettings, TunnelStats};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use self::metrics::TunnelCollector;

mod kernel;
mod keys;
mod metrics;

pub use self::kernel::clean_up;

/// How often the kernel is asked whether everything is as it should be.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);

/// How soon it is tried again after the kernel has refused something.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A node's overlay.
#[derive(Debug)]
pub struct Overlay {
    key: PrivateKey,
    port: u16,
    tunnel: SharedTunnel,
}

/// The tunnel, which is another one after somebody removed its device, and none while it cannot be opened.
#[derive(Debug, Clone, Default)]
struct SharedTunnel(Arc<Mutex<Option<Tunnel>>>);

impl Overlay {
    /// Opens the tunnel, with the node's own key, which is made if it has none. It has no peers yet.
    ///
    /// # Errors
    /// When the key cannot be used, or the device or the port cannot be had.
    pub fn open(dir: &Path, port: u16, registry: &Registry) -> anyhow::Result<Self> {
        let key = keys::own_key(dir)?;
        let tunnel = SharedTunnel::default();
        let port = tunnel.open(&TunnelSettings::new(kernel::DEVICE, port, key.clone()))?;
        registry
            .register(Box::new(TunnelCollector::new(tunnel.clone())?))
            .context("cannot register metrics")?;
        Ok(Self { key, port, tunnel })
    }

    /// Follows the cluster for a node of this name, until the control plane is gone.
    pub async fn follow(self, node: AgentId, mut subscriber: Subscriber) {
        let end = TunnelEnd { key: self.key.public().to_string(), other_key: None, port: self.port };
        let mut view: Option<Arc<ClusterView>> = None;
        let mut last: Option<NodeOverlay> = None;
        let mut look_at = Instant::now() + RECONCILE_INTERVAL;
        let mut changes = self.tunnel.changes();
        loop {
            let is_due = tokio::select! {
                update = subscriber.next() => {
                    let Some(update) = update else { return };
                    view = Some(update.view);
                    false
                }
                () = tokio::time::sleep_until(look_at) => true,
                () = changed(&mut changes) => false,
            };
            let is_new = match self.mend().await {
                Ok(is_new) => is_new,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "There is no tunnel");
                    look_at = Instant::now() + RETRY_INTERVAL;
                    last = None;
                    continue;
                }
            };
            if is_new {
                changes = self.tunnel.changes();
            }
            let Some(view) = &view else { continue };
            let desired = plan(view, &node);
            if is_due || is_new || last.as_ref() != Some(&desired) {
                self.tunnel.set_peers(peers_of(&desired));
                let wanted = desired.clone();
                let done = blocking(move || kernel::reconcile(&wanted)).await;
                look_at = Instant::now() + RECONCILE_INTERVAL;
                last = Some(desired);
                if let Err(error) = done {
                    tracing::warn!(error = format!("{error:#}"), "The overlay is not fully in effect");
                    look_at = Instant::now() + RETRY_INTERVAL;
                    last = None;
                    continue;
                }
            }
            subscriber.report_tunnel(view.revision, end.clone()).await;
        }
    }

    /// Opens the tunnel again if it carries nothing any more. Whether it is a new one.
    async fn mend(&self) -> anyhow::Result<bool> {
        if self.tunnel.is_usable() {
            return Ok(false);
        }
        let (tunnel, settings) =
            (self.tunnel.clone(), TunnelSettings::new(kernel::DEVICE, self.port, self.key.clone()));
        blocking(move || tunnel.open(&settings)).await.map(|_| true)
    }
}

impl SharedTunnel {
    /// Opens the tunnel in the place of the one before, if there was one, which ends first. The port that it has.
    fn open(&self, settings: &TunnelSettings) -> anyhow::Result<u16> {
        let mut tunnel = self.get();
        drop(tunnel.take());
        let opened = Tunnel::open(settings).context("there is no overlay")?;
        let port = opened.port().context("cannot tell the overlay's port")?;
        kernel::prepare()?;
        *tunnel = Some(opened);
        Ok(port)
    }

    fn is_usable(&self) -> bool {
        self.stats().is_some_and(|stats| !stats.is_device_gone)
    }

    fn set_peers(&self, peers: Peers) {
        if let Some(tunnel) = &*self.get() {
            tunnel.set_peers(peers);
        }
    }

    fn stats(&self) -> Option<TunnelStats> {
        self.get().as_ref().map(Tunnel::stats)
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.get().as_ref().map(Tunnel::changes)
    }

    fn get(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until something changed that the owner of a tunnel may want to act on.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    let has_changed = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        std::future::pending::<()>().await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(anyhow!(error)))
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
