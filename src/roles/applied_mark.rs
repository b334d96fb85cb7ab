//! Which view the node's balancer has begun to carry out, on disk.
//!
//! What is in the kernel outlives the process, and may be newer than the last view on disk, which is kept once a second.
//! To begin with that view would take away what newer tasks have, connections included, until a master answers.

use std::path::{Path, PathBuf};
use std::{fs, io};

use mesonet_model::{ClusterId, ClusterView, Revision};

/// In the node's directory.
const FILE_NAME: &str = "applied";

/// A file with a cluster and a revision.
#[derive(Debug)]
pub struct AppliedMark {
    file: PathBuf,
    is_failing: bool,
}

impl AppliedMark {
    /// The mark of a node's directory.
    pub fn of(dir: &Path) -> Self {
        Self { file: dir.join(FILE_NAME), is_failing: false }
    }

    /// The newest revision of the cluster that a balancer has begun to carry out; the first one if none is known.
    pub fn read(&self, cluster: &ClusterId) -> Revision {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let known = text.trim_end().split_once(' ').filter(|(of, _)| *of == cluster.as_str());
        known.and_then(|(_, revision)| revision.parse().ok()).map_or(Revision::ZERO, Revision)
    }

    /// Notes a view that is about to be carried out. Without the note, a start is as if the view on disk were the newest.
    pub fn write(&mut self, view: &ClusterView) {
        let written = self.replace(&format!("{} {}\n", view.cluster, view.revision.0));
        if let Err(error) = &written
            && !self.is_failing
        {
            tracing::warn!(%error, file = %self.file.display(), "Cannot note which view is carried out");
        }
        self.is_failing = written.is_err();
    }

    /// Needs not survive the machine: what is in the kernel does not either.
    fn replace(&self, text: &str) -> io::Result<()> {
        let unfinished = self.file.with_extension("new");
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_view_noted_is_that_of_its_cluster_only() {
        let dir = tempfile::tempdir().expect("directory");
        let (ours, other) = (ClusterId::new("c"), ClusterId::new("d"));
        let mut mark = AppliedMark::of(dir.path());
        assert_eq!(mark.read(&ours), Revision::ZERO);
        for revision in [7, 8] {
            let mut view = ClusterView::empty(ours.clone());
            view.revision = Revision(revision);
            mark.write(&view);
        }
        assert_eq!((mark.read(&ours), mark.read(&other)), (Revision(8), Revision::ZERO));
        for unusable in ["", "c", "c x\n", "c -1\n"] {
            fs::write(&mark.file, unusable).expect("written");
            assert_eq!(mark.read(&ours), Revision::ZERO, "{unusable:?}");
        }
    }
}
