//! The last view on disk, so that a node serves names and addresses from its start on, whether or not a master is
//! there.
//!
//! One JSON file, `{"format": 1, "view": …}`, replaced as a whole. Its modification time says when a master last
//! confirmed that the view is the newest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mesonet_bus::KnownView;
use mesonet_model::{AgentId, ClusterId, ClusterView, NodeSubnets};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The format that is written, and the newest that is read. It grows when older programs would misread the view.
const FORMAT: u32 = 1;

const FILE_NAME: &str = "view.json";

/// The file.
#[derive(Debug, Clone)]
pub struct ViewCache {
    file: PathBuf,
}

/// The file cannot be used; it is left as it is.
#[derive(Debug, Error)]
pub enum ReadViewError {
    /// It cannot be read.
    #[error("cannot read the last view from {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It is no view.
    #[error("the last view in {} cannot be understood", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error("the last view in {} has format {format}, from a newer version; this one reads up to {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It is of another cluster.
    #[error("the last view in {} is of cluster {found}, not of {expected}", path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// The view's cluster.
        found: ClusterId,
        /// The node's cluster.
        expected: ClusterId,
    },
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

#[derive(Deserialize)]
struct Content {
    view: ClusterView,
}

#[derive(Deserialize)]
struct ContentOfNetworks {
    view: NetworksOfView,
}

#[derive(Deserialize)]
struct NetworksOfView {
    #[serde(default)]
    subnets: BTreeMap<AgentId, NodeSubnets>,
}

#[derive(Serialize)]
struct Written<'view> {
    format: u32,
    view: &'view ClusterView,
}

impl ViewCache {
    /// The file of a node's directory.
    pub fn of(dir: &Path) -> Self {
        Self { file: dir.join(FILE_NAME) }
    }

    /// The view of this cluster, if there is one.
    ///
    /// # Errors
    /// When there is something else.
    pub fn read(&self, cluster: &ClusterId) -> Result<Option<KnownView>, ReadViewError> {
        let io = |source| ReadViewError::Io { path: self.file.clone(), source };
        let text = match fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io)?,
        };
        let Content { view } = self.parse(&text)?;
        if view.cluster != *cluster {
            let (found, expected) = (view.cluster, cluster.clone());
            return Err(ReadViewError::Cluster { path: self.file.clone(), found, expected });
        }
        let confirmed = fs::metadata(&self.file).and_then(|file| file.modified()).map_err(io)?;
        Ok(Some(KnownView { view, confirmed }))
    }

    /// The parts of virtual networks that an agent gives addresses from, by the last view; none if there is no view.
    /// The rest of it is not looked at.
    ///
    /// # Errors
    /// When there is something else.
    pub fn subnets(&self, agent: &AgentId) -> Result<NodeSubnets, ReadViewError> {
        let mut view = match fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NodeSubnets::default()),
            Err(source) => return Err(ReadViewError::Io { path: self.file.clone(), source }),
            Ok(text) => self.parse::<ContentOfNetworks>(&text)?.view,
        };
        Ok(view.subnets.remove(agent).unwrap_or_default())
    }

    fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, ReadViewError> {
        let content = |source| ReadViewError::Content { path: self.file.clone(), source };
        let Header { format } = serde_json::from_slice(text).map_err(content)?;
        if format > FORMAT {
            return Err(ReadViewError::Format { path: self.file.clone(), format });
        }
        serde_json::from_slice(text).map_err(content)
    }

    /// Replaces the view, which is confirmed by that. After an error, the one before is still there.
    ///
    /// # Errors
    /// As the system says, such as when the disk is full.
    pub fn write(&self, view: &ClusterView) -> io::Result<()> {
        let unfinished = self.file.with_extension("new");
        let written = write_new(&unfinished, view).and_then(|()| fs::rename(&unfinished, &self.file));
        if written.is_err() {
            // What is left of it takes room that the disk may lack. If there is nothing, all is well.
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Takes note that the view is still the newest.
    ///
    /// # Errors
    /// As the system says.
    pub fn confirm(&self) -> io::Result<()> {
        File::options().append(true).open(&self.file)?.set_modified(SystemTime::now())
    }
}

fn write_new(path: &Path, view: &ClusterView) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    serde_json::to_writer(&mut out, &Written { format: FORMAT, view })?;
    out.flush()?;
    out.into_inner()?.sync_data()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesonet_model::Revision;

    use super::*;

    fn view(cluster: &str, revision: u64) -> ClusterView {
        let mut view = ClusterView::empty(ClusterId::new(cluster));
        view.revision = Revision(revision);
        view
    }

    #[test]
    fn the_last_view_written_is_read_with_the_time_of_its_confirmation() {
        let dir = tempfile::tempdir().expect("directory");
        let cache = ViewCache::of(dir.path());
        let cluster = ClusterId::new("c");
        assert_eq!(cache.read(&cluster).expect("nothing is no error"), None);
        cache.write(&view("c", 1)).expect("written");
        cache.write(&view("c", 2)).expect("written");
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        let file = File::options().append(true).open(dir.path().join(FILE_NAME)).expect("file");
        file.set_modified(long_ago).expect("time");
        let read = cache.read(&cluster).expect("read").expect("a view");
        assert_eq!((read.view, read.confirmed), (view("c", 2), long_ago));
        cache.confirm().expect("confirmed");
        assert!(cache.read(&cluster).expect("read").expect("a view").confirmed > long_ago);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing else is left");
    }

    #[test]
    fn what_is_no_view_of_this_cluster_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("directory");
        let cache = ViewCache::of(dir.path());
        let mut texts = vec![
            ("{\"format\":1,\"vi".to_owned(), "cannot be understood"),
            ("{\"format\":2,\"view\":[]}".to_owned(), "newer version"),
        ];
        let other = serde_json::to_string(&Written { format: 1, view: &view("other", 1) }).expect("json");
        texts.push((other, "of cluster other, not of c"));
        for (text, expected) in texts {
            fs::write(dir.path().join(FILE_NAME), &text).expect("written");
            let error = cache.read(&ClusterId::new("c")).expect_err(&text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_view_that_cannot_be_written_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("directory");
        let cache = ViewCache::of(dir.path());
        cache.write(&view("c", 1)).expect("written");
        fs::create_dir(dir.path().join("view.new")).expect("in the way");
        cache.write(&view("c", 2)).expect_err("a directory is in the way");
        let read = cache.read(&ClusterId::new("c")).expect("read").expect("a view");
        assert_eq!(read.view.revision, Revision(1));
    }
}
