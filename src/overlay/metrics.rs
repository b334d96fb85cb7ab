//! What `/metrics` shows of the tunnel.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesonet_model::ClusterView;
use mesonet_overlay_wg::{Drop, TunnelStats};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounter, IntGaugeVec, Opts, Registry};

use super::SharedTunnel;

/// Peers that are shown one by one. Beyond these a sum would say as much, and there is one for packets that are dropped.
const PEERS_MAX: usize = 256;

/// What is known of keys.
#[derive(Debug, Clone)]
pub(super) struct KeyMetrics {
    /// Keys of this node that are not used any more.
    pub(super) changes: IntCounter,
    view: Arc<Mutex<Option<Arc<ClusterView>>>>,
}

/// Reads the tunnel whenever somebody looks.
pub(super) struct TunnelCollector {
    tunnel: SharedTunnel,
    keys: KeyMetrics,
    /// Of those who look at the same time: each has the numbers set anew.
    turn: Mutex<()>,
    key_age: GaugeVec,
    octets: IntGaugeVec,
    packets: IntGaugeVec,
    handshake_age: GaugeVec,
    path_mtu: IntGaugeVec,
    drops: IntGaugeVec,
}

/// What a host goes without, by kind.
pub(super) fn omissions(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
    let about = Opts::new(
        "mesonet_overlay_omissions",
        "What of the overlay this host goes without: IPv6, routes to where it has an address and to where others have a route, \
         and what the kernel refuses.",
    );
    let gauge = IntGaugeVec::new(about, &["kind"])?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

impl KeyMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let changes = IntCounter::new(
            "mesonet_overlay_key_changes_total",
            "Changes of this node's key that every node has followed.",
        )?;
        Ok(Self { changes, view: Arc::default() })
    }

    /// Takes the keys of a newer view.
    pub(super) fn set(&self, view: Arc<ClusterView>) {
        *self.view() = Some(view);
    }

    fn view(&self) -> MutexGuard<'_, Option<Arc<ClusterView>>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TunnelCollector {
    pub(super) fn new(tunnel: SharedTunnel, keys: KeyMetrics) -> Result<Self, prometheus::Error> {
        let gauge = |name, help, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let ways = ["peer", "direction"];
        Ok(Self {
            tunnel,
            keys,
            turn: Mutex::default(),
            key_age: GaugeVec::new(
                Opts::new(
                    "mesonet_overlay_key_age_seconds",
                    "Time since the key of a node's tunnels was made; one peer is the node itself.",
                ),
                &["peer"],
            )?,
            octets: gauge(
                "mesonet_overlay_octets",
                "Octets of packets through the tunnel to a node.",
                &ways,
            )?,
            packets: gauge("mesonet_overlay_packets", "Packets through the tunnel to a node.", &ways)?,
            handshake_age: GaugeVec::new(
                Opts::new(
                    "mesonet_overlay_handshake_age_seconds",
                    "Time since the last handshake with a node.",
                ),
                &["peer"],
            )?,
            path_mtu: gauge(
                "mesonet_overlay_path_mtu_octets",
                "The longest packet that reaches a node through its tunnel.",
                &["peer"],
            )?,
            drops: gauge(
                "mesonet_overlay_drops",
                "Packets that were dropped, by reason, to or from a node; no peer: they belong to none.",
                &["peer", "reason"],
            )?,
        })
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        let Self { octets, packets, handshake_age, path_mtu, drops, key_age, keys, .. } = self;
        [octets, packets, handshake_age, path_mtu, drops, key_age, &keys.changes]
    }
}

impl Collector for TunnelCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.octets.reset();
        self.packets.reset();
        self.handshake_age.reset();
        self.path_mtu.reset();
        self.drops.reset();
        self.key_age.reset();
        let now = super::now();
        let view = self.keys.view().clone();
        for (name, end) in view.iter().flat_map(|view| &view.tunnels).take(PEERS_MAX) {
            let age = now.since(end.made).as_secs_f64();
            self.key_age.with_label_values(&[name.as_str()]).set(age);
        }
        let Some(stats) = self.tunnel.stats() else { return Vec::new() };
        for (name, peer) in stats.peers.iter().take(PEERS_MAX) {
            for (direction, packets, octets) in [
                ("sent", peer.sent_packets, peer.sent_octets),
                ("received", peer.received_packets, peer.received_octets),
            ] {
                self.octets.with_label_values(&[name, direction]).set(as_gauge(octets));
                self.packets.with_label_values(&[name, direction]).set(as_gauge(packets));
            }
            if let Some(age) = peer.handshake_age {
                self.handshake_age.with_label_values(&[name]).set(age.as_secs_f64());
            }
            self.path_mtu.with_label_values(&[name]).set(i64::from(peer.path_mtu));
        }
        for (peer, reason, count) in drops(&stats) {
            self.drops.with_label_values(&[peer, reason.name()]).add(as_gauge(count));
        }
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

impl fmt::Debug for TunnelCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelCollector").finish_non_exhaustive()
    }
}

/// What was dropped: of which peer, why, and how often. What belongs to no peer, or to one beyond the bound, has no name.
fn drops(stats: &TunnelStats) -> impl Iterator<Item = (&str, Drop, u64)> {
    let of_none = stats.drops.iter().map(|drops| ("", drops));
    let of_peers = stats.peers.iter().enumerate().flat_map(|(at, (name, peer))| {
        let name = if at < PEERS_MAX { name.as_str() } else { "" };
        peer.drops.iter().map(move |drops| (name, drops))
    });
    of_none.chain(of_peers).map(|(peer, (reason, count))| (peer, *reason, *count))
}

fn as_gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesonet_overlay_wg::{Offloads, PeerStats};

    use super::*;

    fn peer(drops: &[(Drop, u64)]) -> PeerStats {
        PeerStats {
            endpoint: None,
            sent_packets: 0,
            sent_octets: 0,
            received_packets: 0,
            received_octets: 0,
            sessions: 0,
            handshake_age: None,
            own_key: None,
            path_mtu: 1420,
            silent: None,
            drops: drops.iter().copied().collect(),
        }
    }

    #[test]
    fn what_is_dropped_has_the_name_of_its_peer_if_there_is_room() {
        let many = (0..PEERS_MAX).map(|number| (format!("a{number:03}"), peer(&[])));
        let stats = TunnelStats {
            offloads: Offloads::ALL,
            is_device_gone: false,
            peers: many.chain([("b".to_owned(), peer(&[(Drop::Replayed, 4)]))]).collect(),
            drops: [(Drop::NoPeer, 2)].into(),
        };
        let beyond: Vec<_> = drops(&stats).collect();
        assert_eq!(beyond, [("", Drop::NoPeer, 2), ("", Drop::Replayed, 4)]);

        let few = TunnelStats {
            peers: BTreeMap::from([("b".to_owned(), peer(&[(Drop::Replayed, 4), (Drop::TooBig, 1)]))]),
            ..stats
        };
        let shown: Vec<_> = drops(&few).collect();
        assert_eq!(shown, [("", Drop::NoPeer, 2), ("b", Drop::TooBig, 1), ("b", Drop::Replayed, 4)]);
    }
}
