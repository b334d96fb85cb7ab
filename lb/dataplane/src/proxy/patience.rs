//! How long a worker waits for others.

use std::time::Duration;

use super::stalls::HALF_CLOSED_IDLE;
use super::udp::SessionIdle;

/// Times that tests have shorter or longer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For another datagram of a session.
    pub(super) session: SessionIdle,
    /// For anything to move on a connection that its endpoint has ended.
    pub(super) half_closed: Duration,
}

impl Patience {
    pub(super) const STANDARD: Self = Self { session: SessionIdle::STANDARD, half_closed: HALF_CLOSED_IDLE };
}
