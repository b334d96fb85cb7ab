//! The life of a process that plays a role: logging, the runtime, the start, and the end by a signal.

use std::future::Future;

use anyhow::{Context as _, bail};

use crate::config::LogFormat;
use crate::signals::Signals;
use crate::telemetry;

/// What runs until the process is told to end.
pub trait Running {
    /// Ends when a part has ended that the rest cannot do without; says which.
    fn broken(&mut self) -> impl Future<Output = anyhow::Error>;

    /// Ends it.
    fn end(self) -> impl Future<Output = ()>;
}

/// Starts something, says that it has started, and ends it when SIGINT or SIGTERM comes.
///
/// # Errors
/// When it cannot start, or a part of it breaks.
pub fn run<R: Running>(
    log: &str,
    format: LogFormat,
    start: impl Future<Output = anyhow::Result<R>>,
    started: impl FnOnce(&R),
) -> anyhow::Result<()> {
    telemetry::start(log, format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut running = tokio::select! {
            running = start => running?,
            signal = signals.received() => bail!("told to end by {signal} before everything had started"),
        };
        started(&running);
        let broken = tokio::select! {
            signal = signals.received() => {
                tracing::info!(signal, "Told to end");
                Ok(())
            }
            error = running.broken() => Err(error),
        };
        running.end().await;
        broken
    });
    // Whatever still runs on a thread of its own holds nothing that a sudden end would damage.
    runtime.shutdown_background();
    ended
}

/// The program that runs a task's process, with its arguments: this one.
///
/// # Errors
/// When the system does not tell.
pub fn supervisor() -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    Ok(vec![program.display().to_string(), "supervise".to_owned()])
}
