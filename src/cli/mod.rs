//! The command line: what the arguments mean, and the client commands that talk to the API of a running cluster.

mod answers;
mod app;
mod app_table;
mod app_update;
mod bench;
mod client;
mod converge;
mod deployment;
mod dns;
mod duration;
mod error;
mod explain;
mod master;
mod network;
mod node;
mod operate;
mod output;
mod overlay;
mod role;
mod route;
mod service;
mod store;
mod table;
mod task;
mod task_log;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use mesonet::config::{AgentSettings, DevSettings};
use mesonet_model::Timestamp;
use serde_json::Value;
use ureq::http::Method;

use self::client::Client;
use self::error::CommandError;
use self::output::Output;
use self::role::{MasterArguments, MasterCommand};

/// Service discovery and networking with its own compact cluster core
#[derive(Debug, Parser)]
#[command(name = "mesonet", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    global: GlobalArguments,
    #[command(subcommand)]
    command: Command,
}

/// What every client command takes.
#[derive(Debug, clap::Args)]
struct GlobalArguments {
    /// The cluster's API
    #[arg(
        long,
        global = true,
        env = "MESONET_API",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a local cluster: master, agent and network daemon in one process
    Dev(Box<role::RoleArguments<DevSettings>>),
    /// Make a new cluster in a master's directory, and say what to do next
    Init(operate::InitArguments),
    /// Tokens with which nodes join; on the master's host
    #[command(subcommand)]
    JoinToken(operate::TokenCommand),
    /// The state of a cluster whose masters are stopped
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Run a master; list: the masters of a cluster
    Master(MasterArguments),
    /// Run this node's agent
    Agent(role::NodeArguments<AgentSettings>),
    /// Run this node's network daemon
    Net(Box<role::NetArguments>),
    /// Configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Apps: add, list, show, update, scale, restart, remove
    #[command(subcommand)]
    App(app::AppCommand),
    /// Tasks: list, log, kill
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Deployments: changes of apps that are under way
    #[command(subcommand)]
    Deployment(deployment::DeploymentCommand),
    /// Services: virtual addresses and what is behind them
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Virtual networks: where tasks have addresses of their own
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Routes: what a node does with the connections to each service
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Where a connection would go, and why
    Explain(explain::ExplainArguments),
    /// The overlay: tunnels between nodes
    #[command(subcommand)]
    Overlay(overlay::OverlayCommand),
    /// Names of the cluster
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Wait until every node has applied a revision
    Converge(converge::ConvergeArguments),
    /// Measure on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Be a CNI plugin: give a container of another runtime an interface in a virtual network
    Cni,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `mesonet config …`
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the file that says what is so without it, with the meaning of every setting
    Default {
        /// The role that reads it
        #[arg(value_enum, default_value = "dev")]
        role: role::Role,
    },
}

/// What a client command works with.
struct Session {
    client: Client,
    output: Output,
    /// When the command was given.
    now: Timestamp,
}

/// Reads the arguments and does what they say.
pub fn run() -> ExitCode {
    let Arguments { global, command } = Arguments::parse_from(std::env::args_os().map(explain::arrow));
    let session = Session { client: Client::new(&global.api), output: Output::new(global.json), now: now() };
    let result = match command {
        Command::Dev(arguments) => return ended(role::run_dev(*arguments)),
        Command::Master(MasterArguments { command: None, role }) => return ended(role::run_master(role)),
        Command::Master(MasterArguments { command: Some(MasterCommand::List), .. }) => master::list(&session),
        Command::Agent(arguments) => return ended(role::run_agent(arguments)),
        Command::Net(arguments) => return ended(role::run_net(*arguments)),
        Command::Bench(command) => return ended(bench::run(&command)),
        Command::Cni => return mesonet::run_cni(),
        Command::Init(arguments) => operate::init(&arguments, &session.output),
        Command::JoinToken(command) => operate::run_token(&command, &session),
        Command::Store(command) => store::run(command, &session.output),
        Command::Config(ConfigCommand::Default { role }) => {
            session.output.bytes(role::default_file(role).as_bytes())
        }
        Command::App(command) => app::run(command, &session),
        Command::Task(command) => task::run(command, &session),
        Command::Deployment(command) => deployment::run(&command, &session),
        Command::Service(command) => service::run(&command, &session),
        Command::Network(command) => network::run(&command, &session),
        Command::Route(command) => route::run(&command, &session),
        Command::Explain(arguments) => explain::run(&arguments, &session),
        Command::Overlay(command) => overlay::run(&command, &session),
        Command::Dns(command) => dns::run(command, &session),
        Command::Node(command) => node::run(&command, &session),
        Command::Converge(arguments) => converge::run(&arguments, &session),
        Command::Completions { shell } => session.output.bytes(&completions(shell)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::OutputClosed) => CommandError::OutputClosed.exit_code(),
        Err(error) => {
            output::warn(&format!("error: {}", error.message()));
            error.exit_code()
        }
    }
}

/// How a process ends that has run a role.
fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::warn(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mesonet", &mut script);
    script
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The time between two points, for people.
fn age(now: Timestamp, then: Timestamp) -> String {
    duration::short(now.since(then))
}

impl Session {
    /// Sends a change and passes on what the API warns of.
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CommandError> {
        let answer = self.client.send(method, path, body)?;
        for warning in answer.warnings {
            output::warn(&format!("warning: {warning}"));
        }
        Ok(answer.body)
    }

    /// How long ago something was; nothing if it has not happened.
    fn age(&self, then: Option<Timestamp>) -> String {
        then.map(|then| age(self.now, then)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_are_taken_after_the_command() {
        let arguments =
            Arguments::try_parse_from(["mesonet", "app", "list", "--json", "--api", "http://[::1]:1"]);
        let Arguments { global, .. } = arguments.expect("valid");
        assert!(global.json);
        assert_eq!(global.api, "http://[::1]:1");
    }

    #[test]
    fn an_arrow_is_no_option_and_options_may_follow_it() {
        for arguments in [&["10.0.0.1", "->", "a.b:80"][..], &["10.0.0.1", "a.b:80"], &["10.0.0.1"]] {
            let arguments =
                ["mesonet", "explain"].iter().chain(arguments).chain(&["--protocol", "udp", "--json"]);
            let arguments = Arguments::try_parse_from(arguments.map(|word| explain::arrow(word.into())));
            assert!(arguments.expect("valid").global.json);
        }
    }

    #[test]
    fn bad_arguments_are_bad_usage() {
        for arguments in [
            &["app", "scale", "web", "many"][..],
            &["app", "show", "/Web"],
            &["app", "update", "web", "=3"],
            &["app", "update", "web"],
            &["converge", "--timeout", "soon"],
            &["dns", "query", "a", "XYZ"],
            &["agent", "--join", "no-token"],
            &["net", "--master", "nowhere"],
            &["join-token", "create", "--uses", "0"],
            &["store", "copy", "--from", "redb:/a", "--to", "sqlite:/b"],
            &["store", "copy", "--from", "redb:", "--to", "etcd:http://a:1"],
            &["store", "copy", "--from", "etcd:a:1", "--to", "redb:/a"],
            &["config", "default", "king"],
            &["nonsense"],
        ] {
            let error =
                Arguments::try_parse_from(["mesonet"].iter().chain(arguments)).expect_err("bad usage");
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn every_shell_gets_a_script_with_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).expect("text");
            assert!(script.contains("converge"), "{shell}");
        }
    }
}
