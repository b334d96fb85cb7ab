//! Why packets are dropped, and how many were.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// Nobody has the destination.
    NoPeer,
    /// The peer's address is not known (yet).
    NoEndpoint,
    /// Too many packets wait for a handshake.
    QueueFull,
    /// No handshake succeeded in time.
    HandshakeTimeout,
    /// The system refused to send.
    Send,
    /// The packet does not fit through the path, and must not be cut. Its sender was told.
    TooBig,
    /// It is no message of the protocol, or what was inside is no IP packet.
    Malformed,
    /// A handshake message by somebody who does not know this node's key.
    WrongMac,
    /// A handshake by a key that no peer has.
    UnknownKey,
    /// A data message of a session that there is not.
    UnknownSession,
    /// A message that is not what the session's peer encrypted.
    WrongTag,
    /// A message that came before, or is too old to tell.
    Replayed,
    /// The source address is not the peer's.
    WrongSource,
    /// More handshake messages than this node works on.
    HandshakeFlood,
    /// The system refused to take the packet.
    Device,
    /// Packets of the system come faster than this node encrypts them.
    DeviceQueue,
}

impl Drop {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::NoPeer,
        Self::NoEndpoint,
        Self::QueueFull,
        Self::HandshakeTimeout,
        Self::Send,
        Self::TooBig,
        Self::Malformed,
        Self::WrongMac,
        Self::UnknownKey,
        Self::UnknownSession,
        Self::WrongTag,
        Self::Replayed,
        Self::WrongSource,
        Self::HandshakeFlood,
        Self::Device,
        Self::DeviceQueue,
    ];

    /// Its name in lists and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPeer => "no_peer",
            Self::NoEndpoint => "no_endpoint",
            Self::QueueFull => "queue_full",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Send => "send",
            Self::TooBig => "too_big",
            Self::Malformed => "malformed",
            Self::WrongMac => "wrong_mac",
            Self::UnknownKey => "unknown_key",
            Self::UnknownSession => "unknown_session",
            Self::WrongTag => "wrong_tag",
            Self::Replayed => "replayed",
            Self::WrongSource => "wrong_source",
            Self::HandshakeFlood => "handshake_flood",
            Self::Device => "device",
            Self::DeviceQueue => "device_queue",
        }
    }
}

/// How many packets were dropped for each reason.
#[derive(Debug, Default)]
pub(crate) struct DropCounters([AtomicU64; Drop::ALL.len()]);

impl DropCounters {
    pub(crate) fn count(&self, reason: Drop) {
        self.add(reason, 1);
    }

    pub(crate) fn add(&self, reason: Drop, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// The reasons that occurred.
    pub(crate) fn read(&self) -> std::collections::BTreeMap<Drop, u64> {
        Drop::ALL
            .into_iter()
            .map(|reason| (reason, self.0[reason as usize].load(Ordering::Relaxed)))
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_and_a_name_of_its_own() {
        for (place, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(place, reason as usize);
        }
        let names: std::collections::BTreeSet<_> = Drop::ALL.into_iter().map(Drop::name).collect();
        assert_eq!(names.len(), Drop::ALL.len());
    }
}
