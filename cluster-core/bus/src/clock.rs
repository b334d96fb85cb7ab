//! The wall clock of this machine.

use std::time::{SystemTime, UNIX_EPOCH};

use mesonet_model::Timestamp;

/// The time by this machine's clock.
pub(crate) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// The same for another time of it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from_millis(0).plus(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
