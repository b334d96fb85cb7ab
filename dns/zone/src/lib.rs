//! View to records, question to answer.

#![forbid(unsafe_code)]

/// The zone's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The mesos-dns zone, without dots at its ends.
    pub domain: String,
    /// Time to live of records in seconds.
    pub ttl: u32,
}
