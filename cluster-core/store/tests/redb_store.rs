//! The embedded store on a real file system: what a commit promises, and what an unusable file is called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesonet_model::{Revision, Table, Write};
use mesonet_store::{CommitError, Contents, FORMAT, OpenError, RedbStore, Store};
use redb::{Database, TableDefinition};

const FILE: &str = "state.redb";

fn open(directory: &Path) -> (RedbStore, Contents) {
    RedbStore::open(directory).expect("opens")
}

fn put(table: Table, key: &str, value: &str) -> Write {
    Write { table, key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[test]
fn a_commit_survives_without_a_close() {
    let directory = directory();
    let (mut store, _) = open(directory.path());
    store.commit(Revision(1), &[put(Table::Cluster, "id", "first")]).expect("commits");
    store.commit(Revision(2), &[put(Table::Cluster, "id", "second")]).expect("commits");

    let copy = self::directory();
    fs::copy(directory.path().join(FILE), copy.path().join(FILE)).expect("copies");
    let (_, contents) = open(copy.path());
    assert_eq!(contents.revision, Revision(2));
    assert_eq!(contents.records, [(Table::Cluster, "id".to_owned(), b"second".to_vec())]);
    drop(store);
}

#[test]
fn state_of_a_newer_version_is_refused_and_kept() {
    let directory = directory();
    let (mut store, _) = open(directory.path());
    store.commit(Revision(1), &[put(Table::Apps, "/web", "{}")]).expect("commits");
    drop(store);
    let set_format = |format: u64| {
        let database = Database::open(directory.path().join(FILE)).expect("opens");
        let transaction = database.begin_write().expect("begins");
        let meta = TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(meta).expect("table").insert("format", format).expect("inserts");
        transaction.commit().expect("commits");
    };

    set_format(FORMAT + 2);
    let error = RedbStore::open(directory.path()).expect_err("newer");
    let expected = format!(
        "state directory {} was written by a newer version: format 3, this program reads up to 1",
        directory.path().display()
    );
    assert_eq!(error.to_string(), expected);

    set_format(FORMAT);
    assert_eq!(open(directory.path()).1.records.len(), 1);
}

#[test]
fn a_file_in_use_is_named() {
    let directory = directory();
    let (_store, _) = open(directory.path());
    let error = RedbStore::open(directory.path()).expect_err("locked");
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("state.redb is in use by another process"), "{error}");
}

#[test]
fn a_file_that_is_about_to_be_free_is_waited_for() {
    let directory = directory();
    let (mut store, _) = open(directory.path());
    store.commit(Revision(1), &[put(Table::Apps, "/web", "1")]).expect("committed");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(store);
    });
    let (_store, contents) = open(directory.path());
    assert_eq!(contents.revision, Revision(1));
    ending.join().expect("ended");
}

#[test]
fn a_damaged_file_is_named_and_not_overwritten() {
    let original = directory();
    let (mut store, _) = open(original.path());
    store.commit(Revision(1), &[put(Table::Apps, "/web", "{}")]).expect("commits");
    drop(store);
    let sound = fs::read(original.path().join(FILE)).expect("reads");

    let no_database = b"this is a text file, not a database".repeat(1000);
    let cut_short = sound[..sound.len() / 2].to_vec();
    let mut bad_header = sound.clone();
    bad_header[9..320].fill(0xff);
    let mut bad_pages = sound.clone();
    bad_pages.iter_mut().skip(2 * 4096).step_by(37).for_each(|byte| *byte ^= 0x5a);
    for (name, bytes) in [
        ("text", no_database),
        ("cut short", cut_short),
        ("bad header", bad_header),
        ("bad pages", bad_pages),
    ] {
        let directory = directory();
        let path = directory.path().join(FILE);
        fs::write(&path, &bytes).expect("writes");
        let error = RedbStore::open(directory.path()).expect_err(name);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("state.redb is damaged"), "{name}: {error}");
        assert_eq!(fs::read(&path).expect("reads").len(), bytes.len(), "{name}");
    }
}

#[test]
fn a_place_that_cannot_hold_a_directory_is_named() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "").expect("writes");
    let error = RedbStore::open(&file.join("state")).expect_err("no directory");
    assert!(matches!(error, OpenError::CreateDirectory { .. }), "{error}");

    fs::create_dir_all(directory.path().join("taken").join(FILE)).expect("creates");
    let error = RedbStore::open(&directory.path().join("taken")).expect_err("not writable");
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
}

#[test]
fn only_the_owner_can_read_the_state() {
    let parent = directory();
    let directory = parent.path().join("a/b");
    let (_store, _) = open(&directory);
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join(FILE)), 0o600);
}

/// Set in the process that [`a_commit_without_room_leaves_everything_as_it_was`] runs itself in.
const LIMITED: &str = "MESONET_TEST_FILE_SIZE_IS_LIMITED";

/// Runs itself again in a process that may not write files beyond 4 MiB.
#[test]
fn a_commit_without_room_leaves_everything_as_it_was() {
    if std::env::var_os(LIMITED).is_some() {
        return commit_without_room();
    }
    let limited = "trap '' XFSZ; ulimit -f 8192 && exec \"$0\" --exact \"$1\"";
    let program = std::env::current_exe().expect("path");
    let output = Command::new("sh")
        .args(["-c", limited])
        .arg(program)
        .arg("a_commit_without_room_leaves_everything_as_it_was")
        .env(LIMITED, "1")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn commit_without_room() {
    let directory = directory();
    let (mut store, _) = open(directory.path());
    store.commit(Revision(1), &[put(Table::Apps, "/web", "old")]).expect("commits");

    let large = "x".repeat(16 << 20);
    let writes = [put(Table::Apps, "/web", "new"), put(Table::Apps, "/large", &large)];
    let error = store.commit(Revision(2), &writes).expect_err("full");
    assert!(matches!(error, CommitError::Full { .. }), "{error:?}");

    store.commit(Revision(2), &[put(Table::Apps, "/small", "1")]).expect("commits");
    drop(store);
    let (_, contents) = open(directory.path());
    let expected = vec![
        (Table::Apps, "/small".to_owned(), b"1".to_vec()),
        (Table::Apps, "/web".to_owned(), b"old".to_vec()),
    ];
    assert_eq!(contents, Contents { revision: Revision(2), records: expected });
}
