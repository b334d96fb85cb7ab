//! Ends connections that their endpoint has ended and on which nothing moves any more.
//!
//! A client that has been told the end of its endpoint's side may still send, and an endpoint that has ended only its side
//! may still read; but most of such clients have forgotten their connection, and it would take up a place for ever. A
//! client that has ended its own side and waits for an answer is another matter: the endpoint is at work for it.

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::ioctl::{Getter, Opcode, ioctl};

use super::slots::SlotKey;
use super::tcp::Ending;
use super::worker::Worker;

/// For how long nothing may move once the endpoint has ended its side: as long as any address translation on the way must
/// keep such a connection (RFC 5382 §5, REQ-5), and about as long as a kernel tries to deliver the last words of a server
/// to a client that does not take them.
pub(super) const HALF_CLOSED_IDLE: Duration = Duration::from_secs(240);

/// In how many parts of that time it is looked: a connection is ended that much later at most, and to look through all
/// costs as much as a few of them.
const LOOKS: u32 = 8;

/// Octets that the kernel has not delivered yet, to the client and to the endpoint.
pub(super) type Queued = [c_int; 2];

/// Since when nothing has moved on a connection.
#[derive(Debug, Default)]
pub(super) struct Stall(Option<Standstill>);

#[derive(Debug)]
struct Standstill {
    /// All octets that were moved until then.
    moved: u64,
    /// What the kernel had, if that is known.
    queued: Option<Queued>,
    since: Instant,
}

impl Stall {
    /// Whether nothing has moved for so long, neither by the proxy nor, out of its buffers, by the kernel.
    pub(super) fn is_over(
        &mut self,
        moved: u64,
        queued: impl FnOnce() -> Queued,
        idle: Duration,
        now: Instant,
    ) -> bool {
        let Some(still) = self.0.as_ref().filter(|still| still.moved == moved) else {
            self.0 = Some(Standstill { moved, queued: None, since: now });
            return false;
        };
        if now.saturating_duration_since(still.since) < idle {
            return false;
        }
        let queued = queued();
        if queued == Queued::default() || still.queued == Some(queued) {
            return true;
        }
        // A slow peer takes minutes for what fits into a buffer.
        self.0 = Some(Standstill { moved, queued: Some(queued), since: now });
        false
    }
}

impl Worker {
    /// There is a connection that its endpoint has ended.
    pub(super) fn watch_stalls(&mut self) {
        self.next_stall_look.get_or_insert(self.now + self.patience.half_closed / LOOKS);
    }

    /// Ends connections that have stalled.
    pub(super) fn end_stalled(&mut self) {
        if self.next_stall_look.is_none_or(|at| at > self.now) {
            return;
        }
        let (idle, now) = (self.patience.half_closed, self.now);
        let mut others = 0;
        let mut stalled: Vec<SlotKey> = Vec::new();
        for (key, connection) in self.connections.iter_mut().filter(|(_, each)| each.is_half_closed()) {
            if connection.has_stalled(idle, now) {
                stalled.push(key);
            } else {
                others += 1;
            }
        }
        stalled.into_iter().for_each(|key| self.close(key, Ending::Stalled));
        self.next_stall_look = (others > 0).then(|| now + idle / LOOKS);
    }
}

/// What the kernel has not delivered; nothing where the connection is lost.
pub(super) fn queued(socket: impl AsFd) -> c_int {
    // SAFETY: for this request the kernel writes one int.
    unsafe { ioctl(socket, Getter::<{ libc::TIOCOUTQ as Opcode }, c_int>::new()) }.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found at looks that are one part apart: octets moved, and octets in the kernel. Returns at which look the
    /// connection is ended.
    fn ended_at(looks: impl IntoIterator<Item = (u64, c_int)>) -> Option<usize> {
        let start = Instant::now();
        let mut stall = Stall::default();
        looks.into_iter().enumerate().position(|(look, (moved, queued))| {
            let now = start + HALF_CLOSED_IDLE / LOOKS * look as u32;
            stall.is_over(moved, || [queued, 0], HALF_CLOSED_IDLE, now)
        })
    }

    #[test]
    fn a_connection_is_ended_when_nothing_has_moved_for_long() {
        assert_eq!(ended_at([(5, 0); 40]), Some(8));
        assert_eq!(ended_at((0..40).map(|look| (look / 7, 0))), None, "an octet now and then");
        assert_eq!(ended_at((0..40).map(|look| (look.min(10), 0))), Some(18));
        assert_eq!(ended_at((0..40).map(|look| (5, 400 - 10 * look))), None, "the kernel delivers");
        assert_eq!(ended_at((0..80).map(|look| (5, 400 - 10 * look.min(20)))), Some(32));
        assert_eq!(ended_at([(5, 400); 40]), Some(16), "nobody takes what the kernel has");
    }
}
