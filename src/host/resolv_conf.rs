//! resolv.conf (resolv.conf(5)): this host's programs ask the name server here.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::whole_file;

/// Name servers that the C library looks at.
const NAMESERVERS_MAX: usize = 3;

/// The first line, by which what was written here is known.
const MARK: &str = "# Written by mesonet net, which puts back what was here before when it ends.";

/// In the daemon's directory, what was there before.
const BACKUP: &str = "resolv-conf-before.json";

/// The largest file that is taken for a resolv.conf.
const SIZE_MAX: u64 = 64 * 1024;

/// A resolv.conf that leads here. What was there before is put back when this is dropped.
#[derive(Debug)]
pub struct ResolvConf {
    backup_path: PathBuf,
    backup: Backup,
}

/// What was there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Backup {
    path: PathBuf,
    before: Before,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Before {
    Nothing,
    Link { target: PathBuf, content: String },
    File { content: String },
}

/// The file cannot be used. It is as it was.
#[derive(Debug, Error)]
pub enum ResolvConfError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("{} has {size} bytes, too many for a resolv.conf (at most {SIZE_MAX})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// What is there cannot be kept.
    #[error("cannot keep what is in {} in {}", path.display(), backup.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Where it is kept.
        backup: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ResolvConf {
    /// Puts back what a run that was killed has left changed. Without such a run nothing happens.
    pub fn recover(dir: &Path) {
        let backup_path = dir.join(BACKUP);
        let Ok(text) = fs::read(&backup_path) else {
            return;
        };
        match serde_json::from_slice(&text) {
            Ok(backup) => drop(Self { backup_path, backup }),
            Err(error) => {
                tracing::warn!(%error, backup = %backup_path.display(), "What resolv.conf was before cannot be read");
            }
        }
    }

    /// Writes the file so that `server` is asked first. With `is_only`, nobody else is asked; otherwise those that
    /// were there before are asked when it refuses or says nothing. Search list and options stay.
    ///
    /// # Errors
    /// When what is there cannot be kept, or the file cannot be written.
    pub fn write(path: &Path, server: IpAddr, is_only: bool, dir: &Path) -> Result<Self, ResolvConfError> {
        Self::recover(dir);
        let before = Before::read(path)?;
        let backup = Backup { path: path.to_owned(), before };
        let backup_path = dir.join(BACKUP);
        let keep =
            |source| ResolvConfError::Keep { path: path.to_owned(), backup: backup_path.clone(), source };
        let text = serde_json::to_vec(&backup).map_err(|error| keep(error.into()))?;
        whole_file::replace(&backup_path, &text).map_err(keep)?;
        let content = content(backup.before.content(), server, is_only);
        // From here on, dropping it puts everything back.
        let written = Self { backup_path, backup };
        whole_file::replace(path, content.as_bytes())
            .map_err(|source| ResolvConfError::Write { path: path.to_owned(), source })?;
        tracing::info!(path = %path.display(), %server, "Names of this host are asked for here");
        Ok(written)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let path = &self.backup.path;
        if !fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK)) {
            // Somebody, such as a DHCP client, has written it since: theirs is newer than what was before.
            tracing::debug!(path = %path.display(), "The resolver's configuration is not ours and stays");
        } else if let Err(error) = self.backup.before.put_back(path) {
            // The backup stays, so that the next start can try again.
            tracing::warn!(%error, path = %path.display(), "Cannot put back the resolver's configuration");
            return;
        } else {
            tracing::info!(path = %path.display(), "Put back the resolver's configuration");
        }
        if let Err(error) = fs::remove_file(&self.backup_path) {
            tracing::warn!(%error, backup = %self.backup_path.display(), "Cannot remove what resolv.conf was before");
        }
    }
}

impl Before {
    fn read(path: &Path) -> Result<Self, ResolvConfError> {
        let failed = |source| ResolvConfError::Read { path: path.to_owned(), source };
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Nothing),
            found => found.map_err(failed)?,
        };
        if found.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            // A link to nowhere, such as one to a service that does not run, comes back as well.
            let content = fs::read_to_string(path).unwrap_or_default();
            return Ok(Self::Link { target, content });
        }
        if found.len() > SIZE_MAX {
            return Err(ResolvConfError::TooLarge { path: path.to_owned(), size: found.len() });
        }
        let content = fs::read(path).map_err(failed)?;
        Ok(Self::File { content: String::from_utf8_lossy(&content).into_owned() })
    }

    fn content(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Link { content, .. } | Self::File { content } => content,
        }
    }

    fn put_back(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Nothing => fs::remove_file(path),
            Self::Link { target, .. } => whole_file::replace_by_link(path, target),
            Self::File { content } => whole_file::replace(path, content.as_bytes()),
        }
    }
}

fn content(before: &str, server: IpAddr, is_only: bool) -> String {
    let mut text = format!("{MARK}\nnameserver {server}\n");
    let mut nameservers = 1;
    for line in before.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let is_other = words.next().is_some_and(|word| word.parse() != Ok(server));
                if !is_only && is_other && nameservers < NAMESERVERS_MAX {
                    nameservers += 1;
                    text.push_str(line);
                    text.push('\n');
                }
            }
            Some("search" | "domain" | "options" | "sortlist") => {
                text.push_str(line);
                text.push('\n');
            }
            Some(_) | None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n\
                          search example.com\noptions ndots:2\n";

    fn server() -> IpAddr {
        "198.51.100.1".parse().expect("address")
    }

    #[test]
    fn the_server_is_first_and_search_and_options_stay() {
        let with_others = content(BEFORE, server(), false);
        assert_eq!(
            with_others,
            format!(
                "{MARK}\nnameserver 198.51.100.1\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n\
                 search example.com\noptions ndots:2\n"
            )
        );
        let only = content(BEFORE, server(), true);
        assert_eq!(only.matches("nameserver").count(), 1, "{only}");
        assert!(only.contains("search example.com"));
    }

    #[test]
    fn what_was_there_before_comes_back() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("resolv.conf");
        let write = || ResolvConf::write(&path, server(), true, dir.path()).expect("written");

        drop(write());
        assert!(!path.exists(), "there was nothing before");

        fs::write(&path, BEFORE).expect("written");
        drop(write());
        assert_eq!(fs::read_to_string(&path).expect("read"), BEFORE);

        // As if the process had been killed.
        std::mem::forget(write());
        assert!(fs::read_to_string(&path).expect("read").contains("198.51.100.1"));
        drop(write());
        assert_eq!(fs::read_to_string(&path).expect("read"), BEFORE);
        std::mem::forget(write());
        ResolvConf::recover(dir.path());
        assert_eq!(fs::read_to_string(&path).expect("read"), BEFORE);

        let written = write();
        fs::write(&path, "nameserver 192.0.2.9\n").expect("written by somebody else");
        drop(written);
        assert_eq!(fs::read_to_string(&path).expect("read"), "nameserver 192.0.2.9\n");

        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("../run/stub.conf", &path).expect("link");
        drop(write());
        assert_eq!(fs::read_link(&path).expect("a link again"), Path::new("../run/stub.conf"));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing else is left");
    }
}
