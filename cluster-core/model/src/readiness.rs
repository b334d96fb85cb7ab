//! Readiness checks of tasks, and what they have found.
//!
//! Source: Marathon's documentation of readiness checks and spec/client-surface.md §6.1.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The check whether a task is ready, as its agent runs it: until it is, once, or until nobody waits for it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessCheck {
    /// The port that is asked, at the task's own address or at its node's if it is on the host's network.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Whether over TLS; certificates are not verified.
    pub tls: bool,
    /// From the end of a request to the next one.
    pub interval: Duration,
    /// A request that takes longer has failed.
    pub timeout: Duration,
    /// The statuses of an answer that mean that the task is ready.
    pub ready_statuses: Vec<u16>,
    /// Whether the last answer is told, too.
    pub keeps_response: bool,
}

/// What a readiness check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessResult {
    /// Whether the task is ready.
    pub ready: bool,
    /// The last answer, if it is to be kept and there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_response: Option<ReadinessResponse>,
}

/// The answer to a readiness check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessResponse {
    /// Its status; 504, as in Marathon, if there was no answer.
    pub status: u16,
    /// The media type that it says it has; empty if it says none.
    pub content_type: String,
    /// Its beginning, as text.
    pub body: String,
}
