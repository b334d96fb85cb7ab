//! What an operator does on the master's host, in the master's directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use mesonet::config::{Endpoints, MasterOptions, MasterSettings, Settings as _, StoreKind};
use mesonet::{NewToken, NodeName, TokenRecord, TokenRoles};
use mesonet_model::ClusterId;
use serde_json::json;

use super::Session;
use super::duration;
use super::error::CommandError;
use super::output::Output;
use super::store::TlsArguments;
use super::table::{Column, Table};

/// Where the master's directory is unless it is said.
const DIR_DEFAULT: &str = "/var/lib/mesonet/master";

/// `mesonet init`
#[derive(Debug, Clone, clap::Args)]
pub struct InitArguments {
    /// The master's directory
    #[arg(long, env = "MESONET_DIR", value_name = "DIR", default_value = DIR_DEFAULT)]
    dir: PathBuf,
}

/// Where the cluster's authority is: the settings of a master that say so.
#[derive(Debug, Clone, clap::Args)]
pub struct PlaceArguments {
    /// A master's configuration file (TOML); what follows wins over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A master's directory [default: /var/lib/mesonet/master]
    #[arg(long, env = "MESONET_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the state is: redb or etcd
    #[arg(long, env = "MESONET_STORE", value_name = "KIND")]
    store: Option<StoreKind>,
    /// Where etcd is reached, with --store etcd
    #[arg(long, env = "MESONET_ETCD", value_name = "URL,...")]
    etcd: Option<Endpoints>,
    #[command(flatten)]
    tls: TlsArguments,
}

/// `mesonet join-token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which nodes can join
    Create {
        #[command(flatten)]
        place: PlaceArguments,
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
        #[command(flatten)]
        place: PlaceArguments,
    },
    /// Make a token useless; nodes that have joined with it stay
    Revoke {
        /// The token's id, as the list has it
        id: String,
        #[command(flatten)]
        place: PlaceArguments,
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
        TokenCommand::Create { place, ttl, uses, role } => {
            let roles = match role {
                TokenRole::Node => TokenRoles::Node,
                TokenRole::Net => TokenRoles::Net,
            };
            create(&place.resolve()?, NewToken { ttl: *ttl, uses: *uses, roles }, &session.output)
        }
        TokenCommand::List { place } => list(&place.resolve()?, session),
        TokenCommand::Revoke { id, place } => {
            mesonet::revoke_token(&place.resolve()?, id)
                .map_err(|error| CommandError::Operate(error.into()))?;
            session.output.value_or_line(&json!({ "revoked": id }), &format!("join token {id} is revoked"))
        }
    }
}

impl PlaceArguments {
    fn resolve(&self) -> Result<MasterOptions, CommandError> {
        let TlsArguments { etcd_ca, etcd_cert, etcd_key } = self.tls.clone();
        let settings = MasterSettings {
            dir: self.dir.clone(),
            store: self.store,
            etcd: self.etcd.clone(),
            etcd_ca,
            etcd_cert,
            etcd_key,
            ..MasterSettings::default()
        };
        settings.resolve(self.config.as_deref()).map_err(|error| CommandError::Operate(error.into()))
    }
}

/// Declares all certificates of a node void.
pub fn revoke_node(place: &PlaceArguments, node: &NodeName, output: &Output) -> Result<(), CommandError> {
    mesonet::revoke_node(&place.resolve()?, node).map_err(|error| CommandError::Operate(error.into()))?;
    let line = format!(
        "{node} is revoked: it is cut off within a second, and its tasks are replaced as if it were lost; \
         a node of that name can join again with a token, and without identity/ in its directory"
    );
    output.value_or_line(&json!({ "revoked": node.as_str() }), &line)
}

fn list(options: &MasterOptions, session: &Session) -> Result<(), CommandError> {
    let tokens = mesonet::tokens(options).map_err(|error| CommandError::Operate(error.into()))?;
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

fn create(options: &MasterOptions, wanted: NewToken, output: &Output) -> Result<(), CommandError> {
    let NewToken { ttl, uses, .. } = wanted;
    let token =
        mesonet::create_token(options, &wanted).map_err(|error| CommandError::Operate(error.into()))?;
    let token = token.to_string();
    output.value_or_line(&json!({ "token": token, "uses": uses, "ttlSeconds": ttl.as_secs() }), &token)
}
