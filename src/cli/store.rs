//! `mesonet store …`: the state of a cluster whose masters are stopped.

use std::path::PathBuf;

use clap::Subcommand;
use mesonet::{EtcdTls, StoreCopy, StorePlace};
use serde_json::json;

use super::error::CommandError;
use super::output::Output;

/// `mesonet store …`
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Move a cluster from redb to etcd or back, while its masters are stopped
    Copy {
        /// The store that is copied: redb:DIR or etcd:URL[,URL…]
        #[arg(long, value_name = "STORE")]
        from: StorePlace,
        /// The store that it is copied to; for redb:DIR, a copy of the directory that mesonet init has made
        #[arg(long, value_name = "STORE")]
        to: StorePlace,
        /// Replace what the target holds
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        tls: TlsArguments,
    },
}

/// What `https` endpoints of etcd need.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsArguments {
    /// Certificates (PEM) of the authority that signs etcd's, for https
    #[arg(long, env = "MESONET_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate (PEM) to show to etcd
    #[arg(long, env = "MESONET_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate
    #[arg(long, env = "MESONET_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
}

/// Carries out a command.
pub fn run(command: StoreCommand, output: &Output) -> Result<(), CommandError> {
    let StoreCommand::Copy { from, to, overwrite, tls } = command;
    let copy = StoreCopy { from, to, tls: tls.read()?, overwrite };
    let copied = mesonet::copy_store(&copy).map_err(|error| CommandError::Operate(error.into()))?;
    let value = json!({
        "cluster": copied.cluster,
        "revision": copied.revision,
        "revisionAtTarget": copied.revision_at_target,
        "records": copied.records,
        "authorityRecords": copied.authority_records,
        "overwritten": copied.overwritten,
    });
    let (from, to) = (&copy.from, &copy.to);
    let mut text = format!(
        "copied cluster {} from {from} to {to}\n  {} records and {} of the authority, read back and equal\n",
        copied.cluster, copied.records, copied.authority_records
    );
    if copied.overwritten > 0 {
        text += &format!("  {} records that were there are replaced\n", copied.overwritten);
    }
    text += &format!("  revision {}", copied.revision_at_target);
    if copied.revision_at_target != copied.revision {
        text += &format!(", after {} of the source, since that of the target was higher", copied.revision);
    }
    text += &format!("\nstart masters on {to} only: what is in {from} is old from now on");
    output.value_or_line(&value, &text)
}

impl TlsArguments {
    fn read(&self) -> Result<Option<EtcdTls>, CommandError> {
        let Some(authority) = &self.etcd_ca else { return Ok(None) };
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        Ok(Some(EtcdTls { authority: read(authority)?, identity }))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, CommandError> {
    std::fs::read(path).map_err(|source| CommandError::ReadFile { path: path.clone(), source })
}
