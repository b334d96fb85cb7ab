//! Composes the roles of the binary from the capabilities.

use crate::config::DevOptions;

/// Runs master, agent and network daemon in this process until it is told to end by SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start: an address is taken, the directory is in use or was written by a newer version.
pub fn run_dev(_options: DevOptions) -> anyhow::Result<()> {
    Ok(())
}
