//! The wall clock, as the control plane sees it.

use std::time::{SystemTime, UNIX_EPOCH};

use mesonet_model::Timestamp;

/// A wall clock that never goes back: when the system's clock is set back, it stands still until that has caught up.
#[derive(Debug, Default)]
pub struct WallClock {
    last: Timestamp,
}

impl WallClock {
    /// The time.
    pub fn now(&mut self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last = self.last.max(Timestamp::from_millis(0).plus(since_epoch));
        self.last
    }
}
