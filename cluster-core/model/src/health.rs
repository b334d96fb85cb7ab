//! Health checks of tasks, and what they have found.
//!
//! Source: Marathon's documentation of health checks and spec/client-surface.md §6.4.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One check of a task, as its agent runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is done.
    pub probe: HealthProbe,
    /// From the task's start to the first probe.
    pub delay: Duration,
    /// So long after the task's start failures do not count, unless a probe has succeeded before.
    pub grace: Duration,
    /// From the end of a probe to the next one.
    pub interval: Duration,
    /// A probe that takes longer has failed.
    pub timeout: Duration,
    /// After so many failures in a row the task is to be killed; never if 0.
    pub failures_max: u32,
    /// Which of the task's addresses is probed; the first one, and rather one of IPv4, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_protocol: Option<IpProtocol>,
}

/// A version of IP, as Marathon names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpProtocol {
    /// Version 4.
    #[serde(rename = "IPv4")]
    V4,
    /// Version 6.
    #[serde(rename = "IPv6")]
    V6,
}

/// How a task is probed: at an address of its own, or at its node's if it is on the host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// A request; an answer with a status from 200 to 399 is a success.
    Http {
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// Whether over TLS; certificates are not verified.
        tls: bool,
        /// Whether an answer with a status below 200 means neither success nor failure.
        ignore_informational: bool,
    },
    /// A connection that is made is a success.
    Tcp {
        /// The port.
        port: u16,
    },
    /// A line for `/bin/sh -c`, run as the task is; exit status 0 is a success.
    Command {
        /// The line.
        shell: String,
    },
}

/// What a check has found, from its first probe on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// The first success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_success: Option<Timestamp>,
    /// The last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    /// The last failure that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Timestamp>,
    /// Why it failed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_cause: Option<String>,
}

impl IpProtocol {
    /// Whether an address is one of this version.
    pub fn is_of(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    /// The name in Marathon's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl HealthResult {
    /// Whether the last probe that counts was a success; `None` if none has counted.
    pub fn is_alive(&self) -> Option<bool> {
        match (self.consecutive_failures, self.first_success) {
            (0, None) => None,
            (0, Some(_)) => Some(true),
            (_, _) => Some(false),
        }
    }

    /// Whether the task is to be killed for it, given the check's bound.
    pub fn is_hopeless(&self, failures_max: u32) -> bool {
        failures_max > 0 && self.consecutive_failures >= failures_max
    }

    /// What all checks of a task say together: failing if one fails, healthy if all succeed, `None` before that.
    pub fn of_all(results: &[Self]) -> Option<bool> {
        let alive = |result: &Self| result.is_alive();
        if results.iter().any(|result| alive(result) == Some(false)) {
            return Some(false);
        }
        (!results.is_empty() && results.iter().all(|result| alive(result) == Some(true))).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_healthy_if_every_check_says_so() {
        let unknown = HealthResult::default();
        let well = HealthResult { first_success: Some(Timestamp::default()), ..HealthResult::default() };
        let ill = HealthResult { consecutive_failures: 1, ..well.clone() };
        for (results, expected) in [
            (vec![], None),
            (vec![unknown.clone()], None),
            (vec![well.clone()], Some(true)),
            (vec![ill.clone()], Some(false)),
            (vec![well.clone(), unknown.clone()], None),
            (vec![well.clone(), well.clone()], Some(true)),
            (vec![well, ill.clone()], Some(false)),
            (vec![unknown, ill], Some(false)),
        ] {
            assert_eq!(HealthResult::of_all(&results), expected, "{results:?}");
        }
    }

    #[test]
    fn a_bound_of_zero_is_never_reached() {
        let failed = |consecutive_failures| HealthResult { consecutive_failures, ..HealthResult::default() };
        assert!(!failed(1000).is_hopeless(0));
        assert!(!failed(2).is_hopeless(3));
        assert!(failed(3).is_hopeless(3));
        assert!(failed(4).is_hopeless(3));
    }
}
