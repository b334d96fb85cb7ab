//! The node's own addresses on the way to endpoints: asked for when an endpoint is new, and again from time to time,
//! since interfaces get their addresses and routes when they get them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How often some are asked for again: at each look of the caller, who looks about once a second.
const INTERVAL: Duration = Duration::from_millis(900);

/// All are asked for within so many looks: a node that gets its address is of use within seconds.
const INTERVALS: usize = 5;

/// Asked for at once at most, which takes some milliseconds. Of more than five times as many, each is asked for later.
const ASKED_MAX: usize = 1_000;

/// Packets to nowhere in particular ask as well as any (the discard protocol's port).
const PORT: u16 = 9;

/// What is known of the node's own addresses.
#[derive(Debug)]
pub(super) struct Sources {
    known: BTreeMap<IpAddr, Option<IpAddr>>,
    /// Those of a round that are to be asked for again.
    due: VecDeque<IpAddr>,
    next: Instant,
}

impl Sources {
    /// Knows these to begin with, each with the answer before.
    pub(super) fn new(before: BTreeMap<IpAddr, Option<IpAddr>>) -> Self {
        let known = before.into_iter().map(|(to, before)| (to, source_towards(to).ok().or(before)));
        Self { known: known.collect(), due: VecDeque::new(), next: Instant::now() + INTERVAL }
    }

    /// What address a packet to another one would come from; `None` if no way has led there so far.
    pub(super) fn towards(&mut self, to: IpAddr) -> Option<IpAddr> {
        *self.known.entry(to).or_insert_with(|| source_towards(to).ok())
    }

    /// Asks again for some, if it is time for that. Returns those whose answer is another one. A way that is lost changes
    /// nothing: it may come back, and the kernel drops what has none.
    pub(super) fn ask_again(&mut self, used: impl FnOnce() -> BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        if Instant::now() < self.next {
            return BTreeSet::new();
        }
        self.next = Instant::now() + INTERVAL;
        if self.due.is_empty() {
            let used = used();
            self.known.retain(|to, _| used.contains(to));
            self.due.extend(self.known.keys());
        }
        let some = self.known.len().div_ceil(INTERVALS).clamp(1, ASKED_MAX).min(self.due.len());
        let due: Vec<IpAddr> = self.due.drain(..some).collect();
        due.into_iter().filter(|to| self.is_other(*to)).collect()
    }

    fn is_other(&mut self, to: IpAddr) -> bool {
        let Ok(found) = source_towards(to) else { return false };
        self.known.insert(to, Some(found)) != Some(Some(found))
    }
}

/// What address a packet of this node to another one would come from. Nothing is sent.
fn source_towards(to: IpAddr) -> io::Result<IpAddr> {
    let any = match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(to, PORT))?;
    socket.local_addr().map(|address| address.ip())
}
