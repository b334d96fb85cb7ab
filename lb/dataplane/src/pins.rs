//! What this process has pinned. It has a descriptor of each, so that what loses its name goes on, and gets it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crate::bpf_call;
use crate::pinning::{self, Identity, PinningError};

/// Programs' links and maps with their names in one directory of a BPF file system.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
    objects: BTreeMap<String, Pinned>,
}

#[derive(Debug)]
struct Pinned {
    object: OwnedFd,
    name: Identity,
}

impl Pins {
    /// None yet.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), objects: BTreeMap::new() }
    }

    /// Takes what has a name now, instead of what had it before.
    pub(crate) fn keep(&mut self, name: &str) -> Result<(), PinningError> {
        let path = self.directory.join(name);
        let open = || Ok(Pinned { object: bpf_call::open_pinned(&path)?, name: Identity::of(&path)? });
        let pinned = open().map_err(pinning::directory_error(&path))?;
        self.objects.insert(name.to_owned(), pinned);
        Ok(())
    }

    /// Lets go of some of them.
    pub(crate) fn forget(&mut self, is_unwanted: impl Fn(&str) -> bool) {
        self.objects.retain(|name, _| !is_unwanted(name));
    }

    /// The names that somebody has taken away, or given to something else.
    pub(crate) fn missing(&self) -> Vec<String> {
        let is_missing = |(name, pinned): &(&String, &Pinned)| {
            Identity::of(&self.directory.join(name)).ok() != Some(pinned.name)
        };
        self.objects.iter().filter(is_missing).map(|(name, _)| name.clone()).collect()
    }

    /// Gives them back.
    pub(crate) fn restore(&mut self) -> Result<(), PinningError> {
        let missing = self.missing();
        if missing.is_empty() {
            return Ok(());
        }
        pinning::check_file_system(&self.directory)?;
        pinning::make_directory(&self.directory)?;
        for name in missing {
            let path = self.directory.join(&name);
            let Some(pinned) = self.objects.get_mut(&name) else { continue };
            // Of somebody who must not change what is here while this process runs.
            let _ = fs::remove_file(&path);
            let pin = || bpf_call::pin(pinned.object.as_fd(), &path).and_then(|()| Identity::of(&path));
            pinned.name = pin().map_err(pinning::directory_error(&path))?;
        }
        Ok(())
    }

    /// The number of the cgroup or interface that a link is attached to; 0 if it is not any more.
    pub(crate) fn target(&self, link: &str) -> io::Result<u64> {
        let pinned = self.objects.get(link).ok_or(io::ErrorKind::NotFound)?;
        bpf_call::link_target(pinned.object.as_fd())
    }

    /// The names that begin so.
    pub(crate) fn names(&self, beginning: &str) -> impl Iterator<Item = &str> {
        self.objects.keys().map(String::as_str).filter(move |name| name.starts_with(beginning))
    }
}
