//! Switches of a network namespace: files below `/proc/sys/net`.

use std::fs;
use std::path::PathBuf;

use crate::{NetlinkError, failed};

/// What a switch of the namespace that the thread is in is set to, such as `ipv4/ip_forward`; nothing if there is none.
pub fn switch(name: &str) -> Option<String> {
    let value = fs::read_to_string(path_of(name)).ok()?;
    Some(value.trim().to_owned())
}

/// Sets a switch of the namespace that the thread is in, unless it is set so: where nothing can be written somebody may
/// have set it.
///
/// # Errors
/// When the kernel has none of this name, or refuses.
pub fn set_switch(name: &str, value: &str) -> Result<(), NetlinkError> {
    if switch(name).is_some_and(|found| found == value) {
        return Ok(());
    }
    let path = path_of(name);
    fs::write(&path, value).map_err(|source| failed("write", &path.display().to_string(), source))
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
