//! Health and readiness checks of tasks.
//!
//! `check` and `readiness` decide, on given time, when a task is probed and what of it others are told. Each check that
//! runs is a small task on the agent's thread (`watch`), which waits, probes (`probe`), and passes what is to be told to
//! the agent's loop. It is dropped with its run, and what is lost then is a probe under way. Commands are run by the
//! task's supervisor, who is in the task's namespaces already; the loop passes them on.
//!
//! What this agent or its machine lacks is held against no task: time (`patience`), descriptors, ports.
//!
//! What was told is in the task's statuses, so the next agent goes on with it.

mod check;
mod patience;
mod probe;
mod readiness;
mod statuses;
mod watch;

pub(crate) use probe::Probes;
pub(crate) use watch::{News, Watch};
