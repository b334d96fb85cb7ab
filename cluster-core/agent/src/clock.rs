//! Wall time.

use std::time::SystemTime;

use mesonet_model::Timestamp;

/// The time, in milliseconds; before 1970 counts as 1970.
pub(crate) fn now() -> Timestamp {
    from_system(SystemTime::now())
}

/// A file's time.
pub(crate) fn from_system(time: SystemTime) -> Timestamp {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
