//! Both paths without sockets, for fuzzing and for the replay of its corpus.

use std::net::{IpAddr, Ipv4Addr};

use mesonet_dns_zone::{Config, Zone, ZoneFollower};
use mesonet_model::{ClusterView, Delta};

use crate::fast::{Circumstances, FastQuery, FastZone, answer};
use crate::guard::Guard;
use crate::metrics::Transport;
use crate::query_metrics::ZoneLabel;
use crate::responder::{Freshness, Outcome, Sources, Step, respond};
use crate::{PolicyConfig, StartError};

/// Who asks. Default settings treat all clients alike.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Octets of the place for an answer: more than the longest one over UDP.
const ANSWER_LENGTH_MAX: usize = 1280;

/// A zone with both ways to answer from it, with default settings.
#[derive(Debug)]
pub struct Probe {
    zone: Zone,
    fast: FastZone,
    guard: Guard,
}

impl Probe {
    /// Makes the zone of a view.
    pub fn new(view: &ClusterView) -> Result<Self, StartError> {
        let mut follower = ZoneFollower::new(&Config::default(), &[]).map_err(StartError::Zone)?;
        follower.apply(view, &Delta::between(&ClusterView::empty(view.cluster.clone()), view));
        let zone = follower.zone();
        let mut fast = FastZone::new();
        fast.follow(&zone, None, |_| ZoneLabel::NONE);
        let guard = Guard::new(&PolicyConfig::default()).map_err(StartError::Policy)?;
        Ok(Self { zone, fast, guard })
    }

    /// Whether the fast path knows the query.
    pub fn is_known(&self, packet: &[u8]) -> bool {
        let mut query = FastQuery::new();
        query.read(packet).and_then(|()| query.locate(&self.fast)).is_some()
    }

    /// What the fast path answers; nothing if it leaves the packet to the full path.
    pub fn fast(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut query = FastQuery::new();
        query.read(packet)?;
        query.locate(&self.fast)?;
        let circumstances = Circumstances { is_stale: false, recursion_available: false };
        let mut buffer = [0; ANSWER_LENGTH_MAX];
        let reply = answer(&self.fast, circumstances, &query, query.entry(&self.fast), packet, &mut buffer)?;
        Some(buffer.get(..reply.length)?.to_vec())
    }

    /// What the full path answers over UDP, if anything.
    pub fn full(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let sources = Sources {
            zone: &self.zone,
            freshness: Freshness::Current,
            forwarder: None,
            guard: &self.guard,
            client: CLIENT,
        };
        match respond(&sources, packet, Transport::Udp) {
            Step::Done(Outcome::Answer { message, .. }) => Some(message),
            Step::Done(Outcome::Malformed(message)) => message,
            Step::Done(Outcome::Ignore) | Step::Wait(_) | Step::Transfer(_) => None,
        }
    }
}
