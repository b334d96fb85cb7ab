//! The node's own keys. The private ones are in a file that only its user can read, and nowhere else.
//!
//! A step of a change of keys is in the file before it is in effect: a daemon that ends in between goes on with what
//! the other nodes may have heard of.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesonet_model::Timestamp;
use mesonet_overlay_plan::{Dated, NodeKeys};
use mesonet_overlay_wg::PrivateKey;
use tokio::time::Instant;

/// The file, in the node's directory.
const KEY_FILE: &str = "overlay.key";

/// How often it is looked whether it is there: sooner than a node that has joined anew is connected, as a rule.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What lines of it begin with.
const KEY: &str = "key";
const NEXT: &str = "next";
const LAST: &str = "last";

/// Forgets the keys in a node's directory, for a node that joins: those of an earlier membership may have ended with it, as
/// after a revocation. A daemon that runs makes new ones.
///
/// # Errors
/// When they are there and cannot be removed.
pub fn forget_keys(dir: &Path) -> anyhow::Result<()> {
    let KeyFile { path } = KeyFile::of(dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove the keys of an earlier membership, {}", path.display())),
        _ => Ok(()),
    }
}

/// The node's keys on disk.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    pub(super) fn of(dir: &Path) -> Self {
        Self { path: dir.join(KEY_FILE) }
    }

    /// The node's keys, of which the first is made if there is none.
    pub(super) fn read_or_make(&self, now: Timestamp) -> anyhow::Result<NodeKeys<PrivateKey>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => parse(&text).with_context(|| format!("{} has no keys", self.path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = NodeKeys::One(fresh(now)?);
                self.write(&keys)?;
                Ok(keys)
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot read the node's keys from {}", self.path.display())),
        }
    }

    /// Keeps keys, or changes nothing.
    pub(super) fn write(&self, keys: &NodeKeys<PrivateKey>) -> anyhow::Result<()> {
        self.replace(&text_of(keys))
            .with_context(|| format!("cannot write the node's keys to {}", self.path.display()))
    }

    /// Waits until somebody has removed it; looks from a time on.
    pub(super) async fn removed(&self, from: Instant) {
        tokio::time::sleep_until(from).await;
        while !matches!(fs::exists(&self.path), Ok(false)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let part = self.path.with_extension("part");
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &self.path)
    }
}

/// A new key.
pub(super) fn fresh(now: Timestamp) -> anyhow::Result<Dated<PrivateKey>> {
    let key = PrivateKey::generate().map_err(|_| anyhow!("the system has no randomness for a key"))?;
    Ok(Dated { key, made: now })
}

fn text_of(keys: &NodeKeys<PrivateKey>) -> String {
    let line = |name: &str, Dated { key, made }: &Dated<PrivateKey>| {
        format!("{name} {} {}\n", STANDARD.encode(key.expose()), made.as_millis())
    };
    match keys {
        NodeKeys::One(key) => line(KEY, key),
        NodeKeys::Next { key, next } => line(KEY, key) + &line(NEXT, next),
        NodeKeys::Last { key, last } => line(KEY, key) + &line(LAST, last),
    }
}

fn parse(text: &str) -> anyhow::Result<NodeKeys<PrivateKey>> {
    let lines: Vec<(&str, Dated<PrivateKey>)> = text.lines().map(parse_line).collect::<Result<_, _>>()?;
    match lines.as_slice() {
        [(KEY, key)] => Ok(NodeKeys::One(key.clone())),
        [(KEY, key), (NEXT, next)] => Ok(NodeKeys::Next { key: key.clone(), next: next.clone() }),
        [(KEY, key), (LAST, last)] => Ok(NodeKeys::Last { key: key.clone(), last: last.clone() }),
        _ => bail!("its lines are not those of a key and maybe another one"),
    }
}

/// The text of a line is not part of errors: it is secret.
fn parse_line(line: &str) -> anyhow::Result<(&str, Dated<PrivateKey>)> {
    let mut words = line.split(' ');
    let (Some(name), Some(key), Some(made), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        bail!("a line is not a name, a key and a time");
    };
    let made = made.parse().context("the time of a key is no number of milliseconds")?;
    Ok((name, Dated { key: key.parse()?, made: Timestamp::from_millis(made) }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_outlive_the_daemon_in_every_state_and_only_their_user_can_read_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = KeyFile::of(dir.path());
        let first = file.read_or_make(Timestamp::from_millis(5)).expect("made");
        let one = first.primary().clone();
        let other = fresh(Timestamp::from_millis(7)).expect("a key");
        for keys in [
            first,
            NodeKeys::Next { key: one.clone(), next: other.clone() },
            NodeKeys::Last { key: other, last: one },
        ] {
            file.write(&keys).expect("written");
            assert_eq!(file.read_or_make(Timestamp::from_millis(9)).expect("read"), keys);
            let mode = fs::metadata(&file.path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = KeyFile::of(dir.path());
        for text in ["", "secret", "key secret 5", "next secret 5\nkey secret 5", "key secret secret"] {
            fs::write(&file.path, text).expect("written");
            let error = file.read_or_make(Timestamp::from_millis(0)).expect_err("refused");
            assert!(!format!("{error:#}").contains("secret"), "{error:#}");
        }
    }
}
