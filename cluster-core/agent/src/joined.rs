//! Which containers of other runtimes have joined virtual networks here, for the master.
//!
//! The plugin writes them down whether or not the agent runs, so it is looked again and again. Nobody holds the lock for
//! that: each file is written as a whole, and one that goes meanwhile is of a container that goes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mesonet_model::{AgentId, AgentReport, JOINED_MAX, JoinedContainer};

use crate::agent::Agent;
use crate::attachments::{self, Attachment, AttachmentError};
use crate::checkpoint::{self, FileError};

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    files: BTreeSet<Seen>,
    attachments: Vec<Attachment>,
    /// Why it could not be looked the last time, of which the log says nothing new.
    trouble: Option<String>,
}

/// A file as it was, which is another one after it was written again: by its name, number and time of writing.
type Seen = (OsString, u64, i64, i64);

impl Joined {
    /// Looks at a directory of attachments. Whether something has changed.
    pub(crate) fn look(&mut self, directory: &Path) -> Result<bool, AttachmentError> {
        let files = files_in(directory).map_err(FileError::at("list", directory))?;
        if files == self.files {
            return Ok(false);
        }
        let found = if files.is_empty() { Vec::new() } else { attachments::read_all(directory)? };
        self.files = files;
        let has_changed = found != self.attachments;
        self.attachments = found;
        Ok(has_changed)
    }

    /// All that were there.
    pub(crate) fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// They, as the master is told.
    pub(crate) fn containers(&self, agent: &AgentId) -> Vec<JoinedContainer> {
        let told = |attachment: &Attachment| {
            let addresses: Vec<IpAddr> = attachment.addresses().map(|each| each.address).collect();
            Some(JoinedContainer {
                agent: agent.clone(),
                network: attachment.network()?,
                container: attachment.key.container.clone(),
                interface: attachment.key.interface.clone(),
                addresses,
            })
        };
        self.attachments.iter().filter_map(told).take(JOINED_MAX).collect()
    }
}

impl Agent {
    /// Tells the master of containers that have come or gone.
    pub(crate) fn look_at_containers(&mut self) {
        let looked = self.joined.look(&self.layout.attachments());
        let trouble = looked.as_ref().err().map(|error| checkpoint::in_full(error));
        if let Some(error) = trouble.as_ref().filter(|_| trouble != self.joined.trouble) {
            tracing::warn!(error, "Cannot tell which containers have joined networks");
        }
        self.joined.trouble = trouble;
        match looked {
            Ok(false) | Err(_) => {}
            Ok(true) => {
                let Some(agent) = self.id.clone() else { return };
                let containers = self.joined.containers(&agent);
                // What has not been said yet says less.
                self.outbox.retain(|report| !matches!(report, AgentReport::Containers { .. }));
                self.outbox.push_back(AgentReport::Containers { agent, containers });
            }
        }
    }
}

fn files_in(directory: &Path) -> io::Result<BTreeSet<Seen>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut files = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        if !attachments::is_attachment(&entry.path()) {
            continue;
        }
        match entry.metadata() {
            Ok(file) => {
                files.insert((entry.file_name(), file.ino(), file.mtime(), file.mtime_nsec()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, container: &str, address: &str) {
        let (bridge, subnet) = ("m-dcos", "9.0.1.0/24");
        let text = format!(
            r#"{{"key":{{"container":"{container}","interface":"eth0"}},"label":"net","port":"mc0",
            "interface":{{"bridge":"{bridge}","addresses":[{{"address":"{address}","subnet":"{subnet}"}}]}}}}"#
        );
        let path = directory.join(format!("{container}@eth0.json"));
        let unfinished = directory.join("new");
        fs::write(&unfinished, text).expect("written");
        fs::rename(unfinished, path).expect("renamed");
    }

    fn seen(joined: &Joined) -> Vec<String> {
        let containers = joined.containers(&AgentId::new("a"));
        let text = |each: &JoinedContainer| {
            format!("{} {} {} {:?}", each.container, each.interface, each.network, each.addresses)
        };
        containers.iter().map(text).collect()
    }

    #[test]
    fn what_the_plugin_writes_and_removes_is_seen_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let cni = directory.path().join("cni");
        let mut joined = Joined::default();
        assert!(!joined.look(&cni).expect("nothing is no error"), "there is no directory yet");
        fs::create_dir(&cni).expect("a directory");
        fs::write(cni.join("last.json"), "[]").expect("written");
        fs::write(cni.join("lock"), "").expect("written");
        assert!(!joined.look(&cni).expect("looked"), "these are no containers");
        write(&cni, "c1", "9.0.1.2");
        write(&cni, "c2", "9.0.1.3");
        assert!(joined.look(&cni).expect("looked"));
        assert_eq!(seen(&joined), ["c1 eth0 dcos [9.0.1.2]", "c2 eth0 dcos [9.0.1.3]"]);
        assert!(!joined.look(&cni).expect("looked"), "it is told once");
        // The same container, gone and back before anybody looked.
        write(&cni, "c2", "9.0.1.4");
        fs::remove_file(cni.join("c1@eth0.json")).expect("removed");
        assert!(joined.look(&cni).expect("looked"));
        assert_eq!(seen(&joined), ["c2 eth0 dcos [9.0.1.4]"]);
        fs::remove_file(cni.join("c2@eth0.json")).expect("removed");
        assert!(joined.look(&cni).expect("looked"));
        assert_eq!(seen(&joined), Vec::<String>::new());
    }
}
