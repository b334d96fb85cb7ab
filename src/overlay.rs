//! The overlay of a node: the tunnel, and the kernel's routes into it.
//!
//! It follows the view like the other planes. What is to be is planned purely (`mesonet_overlay_plan`); what is there
//! is asked of the kernel, each time and every half minute, so that what somebody else removed is put back and what a
//! departed node left is removed, also after a restart. The device stays when the daemon ends, and with it the routes;
//! `--cleanup` takes them away.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use mesonet_bus::Subscriber;
use mesonet_model::{AgentId, ClusterView, Revision, Subnet, Timestamp, TunnelEnd, TunnelReport};
use mesonet_overlay_plan::{
    KeySituation, KeyStep, NodeKeys, NodeOverlay, PlannedPeer, Prefix, age_max_of, outward, plan,
};
use mesonet_overlay_wg::{
    OwnKeys, PeerSettings, PeerStats, Peers, PrivateKey, PublicKey, Tunnel, TunnelSettings, TunnelStats,
};
use prometheus::{IntGaugeVec, Registry};
use tokio::sync::watch;
use tokio::time::Instant;

use self::inspect::{SharedOmissions, in_words};
use self::kernel::{Omission, Outcome, Wanted};
use self::keys::KeyFile;
use self::metrics::{KeyMetrics, TunnelCollector};

mod inspect;
mod kernel;
mod keys;
mod metrics;

pub use self::inspect::{OverlayInspector, TunnelWay};
pub use self::kernel::{clean_up, wait_until_left};
pub use self::keys::forget_keys;

/// How often the kernel is asked whether everything is as it should be.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);

/// How soon it is tried again after the kernel has refused something.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How soon it is looked again whether a key is out of use.
const KEY_INTERVAL: Duration = Duration::from_millis(500);

/// A peer that has not answered for so long does not answer: by the protocol it has 10 s for that, and then it is asked
/// for another handshake.
const SILENCE: Duration = Duration::from_secs(15);

/// A node's overlay.
#[derive(Debug)]
pub struct Overlay {
    key_file: KeyFile,
    keys: NodeKeys<PrivateKey>,
    key_age_max: Duration,
    /// Whether packets from the networks to elsewhere get the node's own address.
    masquerades: bool,
    port: u16,
    tunnel: SharedTunnel,
    metrics: KeyMetrics,
    /// What the kernel has not got.
    omissions: SharedOmissions,
    /// How much that is, by kind.
    omitted: IntGaugeVec,
    /// What it had not got when all of it was looked at for the last time.
    last_omissions: BTreeSet<Omission>,
}

/// How a node's overlay is to be.
#[derive(Debug, Clone, Copy)]
pub struct OverlaySettings {
    /// UDP port of the tunnels.
    pub port: u16,
    /// Age at which the node's key is changed.
    pub key_age_max: Duration,
    /// Whether packets from the networks to elsewhere get the node's own address.
    pub masquerades: bool,
}

/// The tunnel, which is another one after somebody removed its device, and none while it cannot be opened.
#[derive(Debug, Clone, Default)]
struct SharedTunnel(Arc<Mutex<Option<Tunnel>>>);

impl Overlay {
    /// Opens the tunnel, with the node's own keys, of which the first is made if it has none. It has no peers yet.
    ///
    /// # Errors
    /// When the keys cannot be used, or the device or the port cannot be had.
    pub fn open(dir: &Path, settings: OverlaySettings, registry: &Registry) -> anyhow::Result<Self> {
        let OverlaySettings { port, key_age_max, masquerades } = settings;
        let key_file = KeyFile::of(dir);
        let keys = key_file.read_or_make(now())?;
        let metrics = KeyMetrics::new()?;
        let tunnel = SharedTunnel::default();
        let port = tunnel.open(&tunnel_settings(port, &keys))?;
        let collector = TunnelCollector::new(tunnel.clone(), metrics.clone())?;
        registry.register(Box::new(collector)).context("cannot register metrics")?;
        let omissions = SharedOmissions::default();
        let omitted = metrics::omissions(registry).context("cannot register metrics")?;
        Ok(Self {
            key_file,
            keys,
            key_age_max,
            masquerades,
            port,
            tunnel,
            metrics,
            omissions,
            omitted,
            last_omissions: BTreeSet::new(),
        })
    }

    /// Lets the tunnels to the peers of the last view carry packets again, through what the daemon before has left in the
    /// kernel.
    pub fn resume(&self, view: &ClusterView, node: &AgentId) {
        self.tunnel.set_peers(peers_of(&plan(view, node)), true);
    }

    /// What may be asked of it while it follows.
    pub fn inspector(&self) -> OverlayInspector {
        OverlayInspector { tunnel: self.tunnel.clone(), omissions: self.omissions.clone() }
    }

    /// Follows the cluster for a node of this name, until the control plane is gone.
    pub async fn follow(mut self, node: AgentId, mut subscriber: Subscriber) {
        self.key_age_max = age_max_of(&node, self.key_age_max);
        let mut view: Option<Arc<ClusterView>> = None;
        let mut last: Option<Wanted> = None;
        let mut look_at = Instant::now() + RECONCILE_INTERVAL;
        let mut keys_at = look_at;
        let mut changes = self.tunnel.changes();
        let mut is_new = true;
        let mut anew_at = Instant::now();
        let (mut applied, mut is_in_effect) = (Revision::ZERO, false);
        loop {
            tokio::select! {
                update = subscriber.next() => {
                    let Some(update) = update else { return };
                    view = Some(update.view);
                }
                () = tokio::time::sleep_until(look_at.min(keys_at)) => {}
                () = changed(&mut changes) => {}
                () = self.key_file.removed(anew_at) => anew_at = self.begin_anew(),
            }
            match self.mend().await {
                Ok(false) => {}
                Ok(true) => {
                    changes = self.tunnel.changes();
                    last = None;
                    is_new = true;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "There is no tunnel");
                    look_at = Instant::now() + RETRY_INTERVAL;
                    keys_at = look_at;
                    last = None;
                    continue;
                }
            }
            let Some(view) = &view else {
                look_at = look_at.max(Instant::now() + RETRY_INTERVAL);
                keys_at = look_at;
                continue;
            };
            let desired = self.wanted(view, &node);
            if look_at <= Instant::now() || last.as_ref() != Some(&desired) {
                self.tunnel.set_peers(peers_of(&desired.overlay), std::mem::take(&mut is_new));
                let pause;
                (is_in_effect, pause) = self.carry_out(&desired).await;
                look_at = Instant::now() + pause;
                last = Some(desired);
            }
            if is_in_effect {
                applied = view.revision;
            }
            keys_at = self.change_keys(view.tunnels.get(&node).map(Arc::as_ref));
            self.metrics.set(view.clone());
            let omissions = self.omissions.in_words();
            let report = TunnelReport { end: self.end(), silent: self.tunnel.silent(), omissions };
            subscriber.report_tunnel(applied, report).await;
        }
    }

    fn wanted(&self, view: &ClusterView, node: &AgentId) -> Wanted {
        let overlay = plan(view, node);
        let outward = if self.masquerades { outward(view, &overlay) } else { Vec::new() };
        Wanted { overlay, outward }
    }

    /// Makes the kernel what it is to be, as far as it lets. Whether all but the omissions is in effect, and how soon to
    /// look again.
    async fn carry_out(&mut self, wanted: &Wanted) -> (bool, Duration) {
        let wanted = wanted.clone();
        let outcome = blocking(move || Ok(kernel::reconcile(&wanted))).await;
        let Outcome { mut omissions, is_carried_out } = outcome.unwrap_or_else(Outcome::failed);
        if is_carried_out {
            self.last_omissions.clone_from(&omissions);
        } else {
            omissions.extend(self.last_omissions.iter().cloned());
        }
        for kind in Omission::KINDS {
            let count = omissions.iter().filter(|omission| omission.kind() == kind).count();
            self.omitted.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let interval = if omissions.is_empty() { RECONCILE_INTERVAL } else { RETRY_INTERVAL };
        tell_omissions(&self.omissions.replace(omissions.clone()), &omissions);
        (is_carried_out, interval)
    }

    /// Takes the next step of a change of keys, if one is due. When to look again. `known` is what the others know.
    fn change_keys(&mut self, known: Option<&TunnelEnd>) -> Instant {
        let known = known.filter(|known| known.says_the_same(&self.end()));
        let situation = KeySituation {
            now: now(),
            age_max: self.key_age_max,
            is_acknowledged: known.is_some_and(|known| known.is_acknowledged),
            is_last_in_use: self.is_last_in_use(),
        };
        let at = Instant::now();
        if let Some(step) = self.keys.step(&situation)
            && let Err(error) = self.take_step(step, situation.now)
        {
            tracing::warn!(error = format!("{error:#}"), "The keys of the node's tunnels are not changed");
            return at + RETRY_INTERVAL;
        }
        match self.keys.due(self.key_age_max) {
            Some(due) => at + due.since(situation.now),
            None if situation.is_acknowledged && situation.is_last_in_use => at + KEY_INTERVAL,
            // What the others do is in the view.
            None => at + RECONCILE_INTERVAL,
        }
    }

    fn take_step(&mut self, step: KeyStep, now: Timestamp) -> anyhow::Result<()> {
        let keys = self.keys.after(step, || keys::fresh(now))?;
        self.key_file.write(&keys)?;
        self.tunnel.set_keys(&own_keys(&keys));
        self.keys = keys;
        tracing::debug!(?step, key = %self.keys.primary().key.public(), "A step of a change of keys");
        if step == KeyStep::Drop {
            tracing::info!(key = %self.keys.primary().key.public(), "The key of the node's tunnels has changed");
            self.metrics.changes.inc();
        }
        Ok(())
    }

    /// Makes a key in the place of all that were in force, of which somebody has removed the file: the node has joined anew, or
    /// others may have had it. When to look at the file again.
    fn begin_anew(&mut self) -> Instant {
        let keys = keys::fresh(now()).map(NodeKeys::One);
        match keys.and_then(|keys| self.key_file.write(&keys).map(|()| keys)) {
            Ok(keys) => {
                tracing::info!(key = %keys.primary().key.public(), "The keys of the node's tunnels begin anew");
                self.tunnel.set_keys(&own_keys(&keys));
                self.keys = keys;
                Instant::now()
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "The keys of the node's tunnels do not begin anew"
                );
                Instant::now() + RETRY_INTERVAL
            }
        }
    }

    /// Whether a session with some peer is by the key that is to go.
    fn is_last_in_use(&self) -> bool {
        let NodeKeys::Last { last, .. } = &self.keys else { return false };
        let last = last.key.public();
        let is_in_use = |stats: TunnelStats| stats.peers.values().any(|peer| peer.own_key == Some(last));
        self.tunnel.stats().is_some_and(is_in_use)
    }

    /// What the others are to know.
    fn end(&self) -> TunnelEnd {
        let primary = self.keys.primary();
        TunnelEnd {
            key: primary.key.public().to_string(),
            other_key: self.keys.other().map(|other| other.key.public().to_string()),
            port: self.port,
            made: primary.made,
            is_acknowledged: false,
        }
    }

    /// Opens the tunnel again if it carries nothing any more. Whether it is a new one.
    async fn mend(&self) -> anyhow::Result<bool> {
        if self.tunnel.is_usable() {
            return Ok(false);
        }
        let (tunnel, settings) = (self.tunnel.clone(), tunnel_settings(self.port, &self.keys));
        blocking(move || tunnel.open(&settings)).await.map(|_| true)
    }
}

fn tunnel_settings(port: u16, keys: &NodeKeys<PrivateKey>) -> TunnelSettings {
    let primary = keys.primary().key.clone();
    TunnelSettings { keys: own_keys(keys), ..TunnelSettings::new(kernel::DEVICE, port, primary) }
}

fn own_keys(keys: &NodeKeys<PrivateKey>) -> OwnKeys {
    OwnKeys { primary: keys.primary().key.clone(), other: keys.other().map(|other| other.key.clone()) }
}

impl SharedTunnel {
    /// Opens the tunnel in the place of the one before, if there was one, which ends first. The port that it has.
    fn open(&self, settings: &TunnelSettings) -> anyhow::Result<u16> {
        let mut tunnel = self.get();
        drop(tunnel.take());
        let opened = Tunnel::open(settings).context("there is no overlay")?;
        let port = opened.port().context("cannot tell the overlay's port")?;
        // What is left out is told when the rest is looked at.
        kernel::prepare();
        *tunnel = Some(opened);
        Ok(port)
    }

    fn is_usable(&self) -> bool {
        self.stats().is_some_and(|stats| !stats.is_device_gone)
    }

    /// Tells it the peers. One that is new may have forgotten sessions with them.
    fn set_peers(&self, peers: Peers, is_new: bool) {
        if let Some(tunnel) = &*self.get() {
            tunnel.set_peers(peers);
            if is_new {
                tunnel.greet();
            }
        }
    }

    fn stats(&self) -> Option<TunnelStats> {
        self.get().as_ref().map(Tunnel::stats)
    }

    /// The peers that do not answer.
    fn silent(&self) -> BTreeSet<AgentId> {
        let peers = self.stats().into_iter().flat_map(|stats| stats.peers);
        let is_silent = |peer: &PeerStats| peer.silent.is_some_and(|time| time >= SILENCE);
        peers.filter(|(_, peer)| is_silent(peer)).map(|(name, _)| AgentId::new(name)).collect()
    }

    fn set_keys(&self, keys: &OwnKeys) {
        if let Some(tunnel) = &*self.get() {
            tunnel.set_keys(keys);
        }
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.get().as_ref().map(Tunnel::changes)
    }

    fn get(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says once what this host goes without, and when it does not any more.
fn tell_omissions(before: &BTreeSet<Omission>, found: &BTreeSet<Omission>) {
    for omission in in_words(found.difference(before)) {
        tracing::warn!(omission, "The overlay does without a part of it");
    }
    for omission in in_words(before.difference(found)) {
        tracing::info!(omission, "The overlay does not go without a part of it any more");
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
        let key = planned.key.parse::<PublicKey>();
        let Ok(key) = key.inspect_err(|error| tracing::warn!(%error, node = %name, "A node has no key"))
        else {
            return None;
        };
        let prefix = |subnet: &Subnet| Prefix::new(subnet.first(), subnet.prefix()).ok();
        let settings = PeerSettings {
            key,
            other_key: planned.other_key.as_ref().and_then(|key| key.parse().ok()),
            endpoint: Some(planned.endpoint),
            addresses: planned.addresses.iter().filter_map(prefix).collect(),
            keepalive: None,
        };
        Some((name.to_string(), settings))
    };
    overlay.peers.iter().filter_map(peer).collect()
}

fn now() -> Timestamp {
    Timestamp::from_millis(0).plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
