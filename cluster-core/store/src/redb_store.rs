//! The embedded store: one redb file in the state directory.
//!
//! Layout: one table per [`Table`], named by [`Table::as_str`], from key to JSON value; and the table `meta` with the
//! numbers `format` and `revision`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesonet_model::{Revision, Table, Write};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, TableError,
};

use crate::{CommitError, Contents, OpenError, Store};

/// The newest record format that this program reads, and the one that it writes. It grows when older programs
/// would misread the records.
pub const FORMAT: u64 = 1;

const FILE_NAME: &str = "state.redb";

/// Pages kept in memory by the engine. The control plane holds all records itself and reads only at start, so the
/// cache serves the inner pages of the trees; 100,000 task records are about 100 MB.
const CACHE_BYTES: usize = 32 << 20;

/// How long a file that is in use is waited for. A process that was killed while it started a child is gone, but the
/// child has the lock until it runs its own program, which takes milliseconds, on a busy machine more.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether the file is free.
const LOCK_TICK: Duration = Duration::from_millis(10);

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";

/// The embedded store: one redb file.
#[derive(Debug)]
pub struct RedbStore {
    directory: PathBuf,
    /// `None` after a failure, until the next commit opens the file again: the engine refuses to go on by itself.
    database: Option<Database>,
    /// The last revision whose commit has returned without an error.
    last: Revision,
}

/// Anything the engine says.
type EngineError = redb::Error;

// === impl RedbStore ===

impl RedbStore {
    /// Opens or creates the file in the directory, which is created as well, and reads everything in it. Both are
    /// accessible to their owner alone, since launch descriptions may hold secrets. Blocks for a moment if another
    /// process has the file, which may be one that is just ending.
    pub fn open(directory: &Path) -> Result<(Self, Contents), OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| OpenError::CreateDirectory { path: directory.to_path_buf(), source })?;
        let (database, contents) = open_and_read(directory)?;
        let store =
            Self { directory: directory.to_path_buf(), database: Some(database), last: contents.revision };
        Ok((store, contents))
    }

    /// Whether a directory holds a store.
    pub fn is_in(directory: &Path) -> bool {
        directory.join(FILE_NAME).exists()
    }

    /// The open database, opened again if a failure has closed it.
    fn database(&mut self) -> Result<&Database, Failure> {
        if self.database.is_none() {
            let database = open_database(&self.directory).map_err(|error| match error {
                OpenError::Storage { source, .. } => Failure { full: false, source },
                error => Failure { full: false, source: Box::new(error) },
            })?;
            tracing::info!("Opened the state file again after a failure");
            self.database = Some(database);
        }
        Ok(self.database.as_ref().expect("BUG: opened above"))
    }

    /// Whether a commit that has failed is there all the same: the device may fail between making it durable and
    /// saying so.
    fn holds(&mut self, revision: Revision) -> bool {
        let Ok(database) = self.database() else { return false };
        read_meta(database).is_ok_and(|meta| meta.revision == Some(revision.0))
    }
}

impl Store for RedbStore {
    fn commit(&mut self, revision: Revision, writes: &[Write]) -> Result<(), CommitError> {
        if revision <= self.last {
            return Err(CommitError::NotNewer { revision, last: self.last });
        }
        let result = match self.database() {
            Ok(database) => write_all(database, revision, writes).map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = result {
            self.database = None;
            if !self.holds(revision) {
                return Err(failure.into_commit_error(revision, &self.directory.join(FILE_NAME)));
            }
        }
        self.last = revision;
        Ok(())
    }
}

fn write_all(database: &Database, revision: Revision, writes: &[Write]) -> Result<(), EngineError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    for name in Table::ALL {
        let mut of_table = writes.iter().filter(|write| write.table == name).peekable();
        if of_table.peek().is_none() {
            continue;
        }
        let mut table = transaction.open_table(definition(name))?;
        for write in of_table {
            match &write.value {
                Some(value) => drop(table.insert(write.key.as_str(), value.as_slice())?),
                None => drop(table.remove(write.key.as_str())?),
            }
        }
    }
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT)?;
        meta.insert(META_REVISION, revision.0)?;
    }
    transaction.commit()?;
    Ok(())
}

fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.as_str())
}

// === Opening and reading ===

/// The engine panics on pages whose header is sound and whose contents are not; such a file is damaged as well.
fn open_and_read(directory: &Path) -> Result<(Database, Contents), OpenError> {
    let opening = std::panic::catch_unwind(|| {
        let database = open_unlocked_database(directory)?;
        let contents = read_contents(&database, directory)?;
        Ok((database, contents))
    });
    opening.unwrap_or_else(|_| {
        let detail = "a page of it cannot be read".to_owned();
        Err(OpenError::Corrupt { path: directory.join(FILE_NAME), detail })
    })
}

fn open_unlocked_database(directory: &Path) -> Result<Database, OpenError> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match open_database(directory) {
            Err(OpenError::Locked { .. }) if Instant::now() < until => std::thread::sleep(LOCK_TICK),
            result => return result,
        }
    }
}

fn open_database(directory: &Path) -> Result<Database, OpenError> {
    let path = directory.join(FILE_NAME);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| OpenError::NotWritable { path: directory.to_path_buf(), source })?;
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)
        .map_err(|error| database_error(error, path))?;
    sync_directory(directory)?;
    Ok(database)
}

/// Makes the file's entry in the directory durable, without which a crash loses the file as a whole.
fn sync_directory(directory: &Path) -> Result<(), OpenError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| OpenError::Storage { path: directory.to_path_buf(), source: Box::new(source) })
}

fn read_contents(database: &Database, directory: &Path) -> Result<Contents, OpenError> {
    let path = || directory.join(FILE_NAME);
    let meta = read_meta(database).map_err(|error| engine_error(error, path()))?;
    match meta.format {
        None => return Ok(Contents::default()),
        Some(found) if found > FORMAT => {
            return Err(OpenError::Newer { path: directory.to_path_buf(), found, supported: FORMAT });
        }
        Some(_) => {}
    }
    let revision = meta.revision.ok_or_else(|| OpenError::Corrupt {
        path: path(),
        detail: format!("it has no '{META_REVISION}' in table '{META}'"),
    })?;
    let records = read_records(database).map_err(|error| engine_error(error, path()))?;
    Ok(Contents { revision: Revision(revision), records })
}

/// The numbers of the table `meta`; none of them before the first commit.
#[derive(Debug, Default)]
struct Meta {
    format: Option<u64>,
    revision: Option<u64>,
}

fn read_meta(database: &Database) -> Result<Meta, EngineError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(META) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Meta::default()),
        Err(error) => return Err(error.into()),
    };
    let number = |key| table.get(key).map(|value| value.map(|value| value.value()));
    Ok(Meta { format: number(META_FORMAT)?, revision: number(META_REVISION)? })
}

fn read_records(database: &Database) -> Result<Vec<(Table, String, Vec<u8>)>, EngineError> {
    let transaction = database.begin_read()?;
    let mut records = Vec::new();
    for name in Table::ALL {
        let table = match transaction.open_table(definition(name)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        for entry in table.iter()? {
            let (key, value) = entry?;
            records.push((name, key.value().to_owned(), value.value().to_vec()));
        }
    }
    Ok(records)
}

// === Errors of the engine ===

/// Why a commit failed.
struct Failure {
    full: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Failure {
    fn into_commit_error(self, revision: Revision, path: &Path) -> CommitError {
        let place = format!("state file {}", path.display());
        match self {
            Self { full: true, source } => CommitError::Full { revision, place, source },
            Self { full: false, source } => CommitError::Storage { revision, place, source },
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Io(error) => Self { full: is_full(&error), source: Box::new(error) },
            error => Self { full: false, source: Box::new(error) },
        }
    }
}

/// Whether a write failed for want of room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn database_error(error: DatabaseError, path: PathBuf) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        DatabaseError::Storage(StorageError::Io(error)) => io_error(error, path),
        error => engine_error(error.into(), path),
    }
}

fn engine_error(error: EngineError, path: PathBuf) -> OpenError {
    match error {
        EngineError::Io(error) => io_error(error, path),
        EngineError::Corrupted(detail) => OpenError::Corrupt { path, detail },
        EngineError::DatabaseAlreadyOpen => OpenError::Locked { path },
        error @ (EngineError::UpgradeRequired(_)
        | EngineError::RepairAborted
        | EngineError::TableTypeMismatch { .. }
        | EngineError::TableIsMultimap(_)
        | EngineError::TypeDefinitionChanged { .. }) => {
            OpenError::Corrupt { path, detail: error.to_string() }
        }
        error => OpenError::Storage { path, source: Box::new(error) },
    }
}

/// A file that ends before its own header says so is damaged, not unreadable.
fn io_error(error: io::Error, path: PathBuf) -> OpenError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
            OpenError::Corrupt { path, detail: error.to_string() }
        }
        _ => OpenError::Storage { path, source: Box::new(error) },
    }
}
