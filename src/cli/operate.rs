//! What an operator does on the master's host, in the master's directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use mesonet::{NewToken, NodeName, TokenRecord, TokenRoles};
use mesonet_model::ClusterId;
use serde_json::json;

use super::Session;
use super::duration;
use super::error::CommandError;
use super::output::Output;
use super::table::{Column, Table};

/// Where the master's directory is unless it is said.
pub const DIR_DEFAULT: &str = "/var/lib/mesonet/master";

/// `mesonet init`
#[derive(Debug, Clone, clap::Args)]
pub struct InitArguments {
    /// The master's directory
    #[arg(long, env = "MESONET_DIR", value_name = "DIR", default_value = DIR_DEFAULT)]
    dir: PathBuf,
}

/// `mesonet join-token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which nodes can join
    Create {
        /// The master's directory; the master may be running
        #[arg(long, env = "MESONET_DIR", value_name = "DIR", default_value = DIR_DEFAULT)]
        dir: PathBuf,
        /// How long it can be used
        #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1h")]
        ttl: Duration,
        /// How many nodes can join with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// What they can be
        #[arg(long, value_enum, value_name = "ROLE", default_value_t)]
        role: TokenRole,
    },
    /// List the tokens that can still be used
    List {
        /// The master's directory
        #[arg(long, env = "MESONET_DIR", value_name = "DIR", default_value = DIR_DEFAULT)]
        dir: PathBuf,
    },
    /// Make a token useless; nodes that have joined with it stay
    Revoke {
        /// The token's id, as the list has it
        id: String,
        /// The master's directory
        #[arg(long, env = "MESONET_DIR", value_name = "DIR", default_value = DIR_DEFAULT)]
        dir: PathBuf,
    },
}

/// Who may join with a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// A node with agent and network daemon
    #[default]
    Node,
    /// A node with a network daemon alone
    Net,
}

/// Makes a cluster and says what to do next.
pub fn init(arguments: &InitArguments, output: &Output) -> Result<(), CommandError> {
    let (cluster, token) =
        mesonet::init(&arguments.dir).map_err(|error| CommandError::Operate(Box::new(error)))?;
    let token = token.to_string();
    let next = next_steps(&arguments.dir, &cluster, &token);
    output.value_or_line(&json!({ "cluster": cluster, "dir": arguments.dir, "token": token }), &next)
}

fn next_steps(dir: &Path, cluster: &ClusterId, token: &str) -> String {
    let dir = dir.display();
    format!(
        "cluster {cluster} is made in {dir}
next, on this host:
  mesonet master --dir {dir}
then, on the first node, within an hour (HOST is this host):
  mesonet agent --master HOST:7070 --join {token}
  mesonet net --master HOST:7070
for each further node, a token:
  mesonet join-token create --ttl 1h --dir {dir}"
    )
}

/// Carries out a command.
pub fn run_token(command: &TokenCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        TokenCommand::Create { dir, ttl, uses, role } => {
            let roles = match role {
                TokenRole::Node => TokenRoles::Node,
                TokenRole::Net => TokenRoles::Net,
            };
            create(dir, NewToken { ttl: *ttl, uses: *uses, roles }, &session.output)
        }
        TokenCommand::List { dir } => list(dir, session),
        TokenCommand::Revoke { id, dir } => {
            mesonet::revoke_token(dir, id).map_err(|error| CommandError::Operate(Box::new(error)))?;
            session.output.value_or_line(&json!({ "revoked": id }), &format!("join token {id} is revoked"))
        }
    }
}

/// Declares all certificates of a node void.
pub fn revoke_node(dir: &Path, node: &NodeName, output: &Output) -> Result<(), CommandError> {
    mesonet::revoke_node(dir, node).map_err(|error| CommandError::Operate(Box::new(error)))?;
    let line = format!(
        "{node} is revoked: it is cut off within a second, and its tasks are replaced as if it were lost; \
         a node of that name can join again with a token"
    );
    output.value_or_line(&json!({ "revoked": node.as_str() }), &line)
}

fn list(dir: &Path, session: &Session) -> Result<(), CommandError> {
    let tokens = mesonet::tokens(dir).map_err(|error| CommandError::Operate(Box::new(error)))?;
    let roles = |token: &TokenRecord| token.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>();
    if session.output.is_json() {
        let tokens = tokens.iter().map(|token| {
            json!({ "id": token.id, "usesLeft": token.uses_left, "expires": token.expires, "roles": roles(token) })
        });
        return session.output.value(&tokens.collect::<Vec<_>>());
    }
    let mut table = Table::new([
        Column::text("ID", 20),
        Column::number("USES LEFT"),
        Column::text("ROLES", 40),
        Column::number("ENDS IN"),
    ]);
    for token in &tokens {
        let left = duration::short(token.expires.since(session.now));
        table.row([token.id.clone(), token.uses_left.to_string(), roles(token).join(","), left]);
    }
    session.output.table(&table)
}

fn create(dir: &Path, wanted: NewToken, output: &Output) -> Result<(), CommandError> {
    let NewToken { ttl, uses, .. } = wanted;
    let token =
        mesonet::create_token(dir, &wanted).map_err(|error| CommandError::Operate(Box::new(error)))?;
    let token = token.to_string();
    output.value_or_line(&json!({ "token": token, "uses": uses, "ttlSeconds": ttl.as_secs() }), &token)
}
