//! The supervisor process: one per task, small, and independent of the agent's life.
//!
//! ```text
//!   Running ──main process ends──► Ending ──no child is left──► Ended ──exit record written──► gone
//!      └───────not startable───────────────────────────────────►┘
//! ```
//!
//! It is a session leader of its own, blocks the signals that a terminal or a service manager sends around, and is the
//! subreaper of everything that the task starts: whatever loses its parent becomes its child. So "no child is left"
//! means that nothing of the task is left, however often it has forked, and a child's process id cannot be reused
//! before this process has reaped it. Commands that check the task's health are such children too. One thread, one `poll` loop, no runtime.

mod command_checks;
mod control;
mod forward;
mod main_process;
mod name_server;
mod network;
mod offspring;
mod output;
mod run;
mod signals;
mod user;

pub use run::supervise;
