//! A drop-in for systemd-resolved (resolved.conf(5)): names of the cluster are asked for here, all others as before.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use super::whole_file;

/// The drop-in. Removed when dropped.
#[derive(Debug)]
pub struct ResolvedDropIn {
    path: PathBuf,
}

/// The drop-in cannot be written.
#[derive(Debug, Error)]
#[error("cannot write the drop-in for systemd-resolved {}", path.display())]
pub struct ResolvedError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl ResolvedDropIn {
    /// Writes the drop-in and has systemd-resolved read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(path: &Path, server: SocketAddr, zones: &[String]) -> Result<Self, ResolvedError> {
        let failed = |source| ResolvedError { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        whole_file::replace(path, content(server, zones).as_bytes()).map_err(failed)?;
        tracing::info!(path = %path.display(), "Wrote the drop-in for systemd-resolved");
        reload();
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for ResolvedDropIn {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Ok(()) => tracing::info!(path = %self.path.display(), "Removed the drop-in for systemd-resolved"),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "Cannot remove the drop-in for systemd-resolved");
            }
        }
        reload();
    }
}

fn content(server: SocketAddr, zones: &[String]) -> String {
    let domains: Vec<String> = zones.iter().map(|zone| format!("~{zone}")).collect();
    format!(
        "# Written by mesonet net, which removes it when it ends.\n[Resolve]\nDNS={server}\nDomains={}\n",
        domains.join(" ")
    )
}

fn reload() {
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["--no-ask-password", "try-reload-or-restart", "systemd-resolved.service"]);
    let ran = systemctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match ran {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(%status, "systemd-resolved could not be told to read its configuration"),
        Err(error) => tracing::warn!(%error, "systemd-resolved could not be told to read its configuration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_cluster_are_asked_for_here() {
        let zones = ["mesos".to_owned(), "thisdcos.directory".to_owned()];
        let text = content("127.0.0.1:8053".parse().expect("address"), &zones);
        assert!(
            text.ends_with("[Resolve]\nDNS=127.0.0.1:8053\nDomains=~mesos ~thisdcos.directory\n"),
            "{text}"
        );
    }
}
