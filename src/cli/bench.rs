//! Measurements on the machine of who asks.

mod overlay;
mod steps;
mod tunnels;
mod two_ends;

use clap::Subcommand;

/// `mesonet bench …`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure the tunnel between two network namespaces, beside other implementations that are installed; as root
    Overlay {
        /// Only these: mesonet, wireguard-go, boringtun-cli, gotatun
        names: Vec<String>,
        /// Say whether what is promised is reached
        #[arg(long, hide = true)]
        bars: bool,
    },
    /// One end of the tunnel that is measured, until its input ends
    #[command(hide = true)]
    OverlayEnd(tunnels::EndArguments),
}

/// Carries out a command.
pub fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Overlay { names, bars } => overlay::measure(names, *bars),
        BenchCommand::OverlayEnd(end) => tunnels::run_end(end),
    }
}
