//! Commands that run a role in this process: `mesonet dev`, `master`, `agent`, `net`; and the files that they read.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use mesonet::config::{AgentSettings, DevSettings, MasterSettings, NetSettings, Settings};
use mesonet::{JoinToken, NetPlan};

/// A flag wins over its environment variable, which wins over the configuration file.
#[derive(Debug, Clone, Args)]
pub struct RoleArguments<S: Args> {
    /// Configuration file (TOML) with these settings, named as the flags
    #[arg(long, env = "MESONET_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: S,
}

/// What a node's daemon takes besides its settings.
#[derive(Debug, Clone, Args)]
pub struct NodeArguments<S: Args> {
    /// Token to join the cluster with, needed only the first time
    #[arg(long, env = "MESONET_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    join: Option<JoinToken>,
    #[command(flatten)]
    role: RoleArguments<S>,
}

/// `mesonet master`, and what operators ask about masters.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MasterArguments {
    /// What is asked; without it, a master is run.
    #[command(subcommand)]
    pub command: Option<MasterCommand>,
    #[command(flatten)]
    pub role: RoleArguments<MasterSettings>,
}

/// `mesonet master …`
#[derive(Debug, Clone, Subcommand)]
pub enum MasterCommand {
    /// List the masters: who leads, since when, and how far the others are behind
    List,
}

/// What the network daemon takes besides.
#[derive(Debug, Clone, Args)]
pub struct NetArguments {
    /// Removes everything of mesonet from the kernel, and ends
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    node: NodeArguments<NetSettings>,
}

/// A role with settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything in one process
    Dev,
    /// A master
    Master,
    /// A node's agent
    Agent,
    /// A node's network daemon
    Net,
}

impl<S: Args + Settings> RoleArguments<S> {
    fn resolve(self) -> anyhow::Result<S::Options> {
        Ok(self.settings.resolve(self.config.as_deref())?)
    }
}

/// Runs a local cluster until SIGINT or SIGTERM.
pub fn run_dev(arguments: RoleArguments<DevSettings>) -> anyhow::Result<()> {
    mesonet::run_dev(&arguments.resolve()?)
}

/// Runs a master until SIGINT or SIGTERM.
pub fn run_master(arguments: RoleArguments<MasterSettings>) -> anyhow::Result<()> {
    mesonet::run_master(&arguments.resolve()?)
}

/// Runs a node's agent until SIGINT or SIGTERM.
pub fn run_agent(arguments: NodeArguments<AgentSettings>) -> anyhow::Result<()> {
    mesonet::run_agent(&arguments.role.resolve()?, arguments.join.as_ref())
}

/// Runs a node's network daemon until SIGINT or SIGTERM.
pub fn run_net(arguments: NetArguments) -> anyhow::Result<()> {
    let NetArguments { cleanup, node: NodeArguments { join, role } } = arguments;
    let plan = NetPlan::resolve(role.settings, role.config.as_deref())?;
    if cleanup { mesonet::clean_up_net(&plan) } else { mesonet::run_net(&plan, join.as_ref()) }
}

/// The configuration file that says what is so without it.
pub fn default_file(role: Role) -> String {
    match role {
        Role::Dev => DevSettings::documented(),
        Role::Master => MasterSettings::documented(),
        Role::Agent => AgentSettings::documented(),
        Role::Net => NetSettings::documented(),
    }
}
