//! The authority's records in files: `nodes/NAME.json`, `tokens/ID.json` and `revocations`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, FileError};
use super::records::{RecordError, Records};

const LOCK_FILE: &str = "lock";
const JSON: &str = ".json";

/// Records in files below a directory, each read anew, so a command may work on them beside a running master.
#[derive(Debug)]
pub struct FileRecords {
    dir: PathBuf,
}

impl FileRecords {
    /// The records below a directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        // Those in folders are JSON.
        self.dir.join(if name.contains('/') { format!("{name}{JSON}") } else { name.to_owned() })
    }

    /// Held while a record is changed, also against other processes.
    fn lock(&self) -> Result<File, FileError> {
        files::lock(&self.dir.join(LOCK_FILE))
    }
}

impl Records for FileRecords {
    fn read(&self, name: &str) -> Result<Option<String>, RecordError> {
        Ok(files::read_if_present(&self.path(name))?)
    }

    fn list(&self, folder: &str) -> Result<Vec<(String, String)>, RecordError> {
        let dir = self.dir.join(folder);
        let names = || {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
                // A directory with nothing but key and certificate has no records.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.filter_map(|name| Some(format!("{folder}/{}", name.strip_suffix(JSON)?))).collect())
        };
        let names: io::Result<Vec<String>> = names();
        let mut names = names.map_err(|source| FileError { action: "list", path: dir, source })?;
        names.sort();
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            // One that is gone has been removed meanwhile.
            if let Some(content) = self.read(&name)? {
                records.push((name, content));
            }
        }
        Ok(records)
    }

    fn swap(&self, name: &str, old: Option<&str>, new: Option<&str>) -> Result<bool, RecordError> {
        let _lock = self.lock()?;
        if self.read(name)?.as_deref() != old {
            return Ok(false);
        }
        let path = self.path(name);
        match new {
            Some(new) => {
                files::make_dir(path.parent().unwrap_or(&self.dir))?;
                files::write(&path, new.as_bytes())?;
            }
            None if old.is_some() => {
                fs::remove_file(&path).map_err(|source| FileError { action: "remove", path, source })?;
            }
            None => {}
        }
        Ok(true)
    }
}
