//! Settings of QUIC connections. Every window is a bound on memory.

use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::files::FILES_AT_ONCE;

/// What a master keeps for one node of what it has sent and the node has not acknowledged: further deltas wait, and
/// become one.
pub(crate) const SEND_WINDOW_BYTES: u64 = 1 << 20;

/// What one side may send before the other has read it.
pub(crate) const RECEIVE_WINDOW_BYTES: u32 = 1 << 20;

/// The same for a node that has not been let in: several first messages.
const NEWCOMER_WINDOW_BYTES: u32 = 64 << 10;

/// TLS alert: the certificate is not valid at this time.
pub(crate) const ALERT_CERTIFICATE_EXPIRED: u8 = 45;

/// TLS alert: the certificate is of an authority that is not trusted.
pub(crate) const ALERT_UNKNOWN_AUTHORITY: u8 = 48;

/// Silence is broken so many times before it counts as loss.
const KEEP_ALIVES_PER_TIMEOUT: u32 = 4;

/// The round trip that is assumed before one is measured. Three of them are how soon a node says again what a master
/// that was not there has not heard; QUIC's own assumption is for the world, not for a site.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(100);

/// A master's side: one stream opened by the node.
pub(crate) fn of_master(idle_timeout: Duration) -> TransportConfig {
    let mut config = base(idle_timeout);
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.receive_window(VarInt::from_u32(NEWCOMER_WINDOW_BYTES));
    config
}

/// A node's side: one stream opened by the master, those on which it asks for files, and the duty to keep the connection
/// alive.
pub(crate) fn of_node(idle_timeout: Duration) -> TransportConfig {
    let mut config = base(idle_timeout);
    config.max_concurrent_bidi_streams(VarInt::from_u32(FILES_AT_ONCE));
    config.max_concurrent_uni_streams(VarInt::from_u32(1));
    config.keep_alive_interval(Some(idle_timeout / KEEP_ALIVES_PER_TIMEOUT));
    config
}

fn base(idle_timeout: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    // Only fails beyond the range of QUIC's numbers, where there is no timeout.
    config.max_idle_timeout(IdleTimeout::try_from(idle_timeout).ok());
    config.send_window(SEND_WINDOW_BYTES);
    config.stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES));
    config.receive_window(VarInt::from_u32(2 * RECEIVE_WINDOW_BYTES));
    config.initial_rtt(INITIAL_ROUND_TRIP);
    config.datagram_receive_buffer_size(None);
    config
}
