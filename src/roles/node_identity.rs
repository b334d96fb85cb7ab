//! Who a node is: found in its directory, or got by joining.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mesonet_bus::{Identity, JoinToken, NodeName};

use crate::config::Masters;

/// How long joining may take: a few round trips to each master, and its disk.
const JOIN_MAX: Duration = Duration::from_secs(30);

/// What a node needs to know who it is.
#[derive(Debug)]
pub struct Node<'options> {
    /// The node's directory.
    pub dir: &'options Path,
    /// Where masters are reached.
    pub masters: Option<&'options Masters>,
    /// To join with.
    pub token: Option<&'options JoinToken>,
    /// The name to join under; the host's if absent.
    pub name: Option<&'options NodeName>,
}

impl Node<'_> {
    /// Where the identity is.
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// The masters, if any are named.
    ///
    /// # Errors
    /// When none is.
    pub fn masters(&self) -> anyhow::Result<&[String]> {
        let masters = self.masters.context("no master is named: give --master HOST:PORT")?;
        Ok(&masters.0)
    }

    /// The node's identity. Joins if there is none and a token is given.
    ///
    /// # Errors
    /// When there is none and none is to be had.
    pub async fn identity(&self) -> anyhow::Result<Identity> {
        let dir = self.identity_dir();
        if Identity::exists(&dir) {
            if self.token.is_some() {
                tracing::info!("The node has joined before; the join token is not used");
            }
            return Identity::load(&dir)
                .with_context(|| format!("cannot use the node's identity in {}", dir.display()));
        }
        let token = self.token.with_context(|| {
            format!(
                "this node has not joined a cluster ({} has no identity): give --join TOKEN",
                dir.display()
            )
        })?;
        let name = match self.name {
            Some(name) => name.clone(),
            None => own_name()?,
        };
        std::fs::create_dir_all(self.dir)
            .with_context(|| format!("cannot make the node's directory {}", self.dir.display()))?;
        crate::overlay::forget_keys(self.dir)?;
        let joining = mesonet_bus::join(self.masters()?, token, &name, &dir);
        let identity = tokio::time::timeout(JOIN_MAX, joining)
            .await
            .map_err(|_| anyhow!("no master has answered within {} s", JOIN_MAX.as_secs()))
            .and_then(|joined| Ok(joined?))
            .with_context(|| format!("cannot join the cluster as node '{name}'"))?;
        tracing::info!(node = %identity.name(), cluster = %identity.cluster(), "The node has joined");
        Ok(identity)
    }

    /// This machine's address on the way to the first master whose name resolves. Nothing is sent.
    ///
    /// # Errors
    /// When there is no way to any.
    pub fn address_towards_masters(&self) -> anyhow::Result<IpAddr> {
        address_towards(self.masters()?).context("cannot find this node's address: give --address IP")
    }
}

/// This machine's address on the way to the first of these masters whose name resolves.
///
/// # Errors
/// When there is no way to any.
pub fn address_towards(masters: &[String]) -> anyhow::Result<IpAddr> {
    let mut failure = anyhow!("no master is named");
    for master in masters {
        match address_towards_one(master) {
            Ok(address) => return Ok(address),
            Err(error) => failure = anyhow!(error).context(format!("there is no way to {master}")),
        }
    }
    Err(failure)
}

fn address_towards_one(master: &str) -> std::io::Result<IpAddr> {
    let mut failure = std::io::Error::from(std::io::ErrorKind::NotFound);
    for master in master.to_socket_addrs()? {
        let any: SocketAddr =
            if master.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let found = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(master)?;
            socket.local_addr()
        });
        match found {
            Ok(address) => return Ok(address.ip()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The host's name as the system has it, which is also the node's if it does not say otherwise.
pub fn own_name() -> anyhow::Result<NodeName> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    name.parse().context("the host's name cannot be the node's: give --node NAME")
}
