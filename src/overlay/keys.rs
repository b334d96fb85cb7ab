//! The node's own key pair. The private key is in a file that only its user can read, and nowhere else.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesonet_overlay_wg::PrivateKey;

/// The file, in the node's directory.
const KEY_FILE: &str = "overlay.key";

/// The node's private key, which is made if there is none.
pub(super) fn own_key(dir: &Path) -> anyhow::Result<PrivateKey> {
    let path = &dir.join(KEY_FILE);
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(|error| anyhow!("{error}: {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key =
                PrivateKey::generate().map_err(|_| anyhow!("the system has no randomness for a key"))?;
            let text = format!("{}\n", STANDARD.encode(key.expose()));
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
                .with_context(|| format!("cannot write the node's key to {}", path.display()))?;
            Ok(key)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot read the node's key from {}", path.display()))
        }
    }
}
