//! The task event bus: carries views from the control plane to the planes, and their reports back.
//!
//! Here both ends live in one process. A [`Subscriber`] sees a snapshot and then deltas; a slow one sees fewer,
//! larger deltas, because what it has missed is merged by taking the difference to the newest view. So nothing queues
//! per subscriber, and nobody slows the others.

#![forbid(unsafe_code)]

mod commit_log;
mod feed;
mod subscriber;

pub use feed::{Feed, Publisher, REPORTS_MAX, Report, channel};
pub use subscriber::{Subscriber, Update};
