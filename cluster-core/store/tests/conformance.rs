//! What every store does, for each of them.

use mesonet_model::{ClusterId, MasterId, Revision, Table, Write};
use mesonet_store::{Candidate, CommitError, Contents, EtcdReplica, EtcdSettings, RedbStore, Store};
use mesonet_test_etcd::Etcd;
use tempfile::TempDir;

/// A kind of store, which can be closed and opened again.
trait Kind {
    fn open(&mut self) -> (Box<dyn Store>, Contents);
}

struct Redb(TempDir);

struct InEtcd {
    etcd: Etcd,
    runtime: tokio::runtime::Runtime,
    /// Of the store that is open.
    lease: Option<mesonet_store::TermLease>,
}

impl Kind for Redb {
    fn open(&mut self) -> (Box<dyn Store>, Contents) {
        let (store, contents) = RedbStore::open(self.0.path()).expect("opens");
        (Box::new(store), contents)
    }
}

impl Kind for InEtcd {
    fn open(&mut self) -> (Box<dyn Store>, Contents) {
        let settings = EtcdSettings {
            endpoints: self.etcd.endpoints(),
            cluster: ClusterId::new("c1"),
            tls: None,
            // A busy machine may let nobody renew it for seconds.
            lease: std::time::Duration::from_secs(20),
        };
        let me = Candidate {
            master: MasterId::new("m1"),
            api: ([127, 0, 0, 1], 8080).into(),
            bus: "localhost:7070".to_owned(),
        };
        let before = self.lease.take();
        let (lease, store, contents) = self.runtime.block_on(async {
            if let Some(lease) = before {
                lease.resign().await;
            }
            let replica = EtcdReplica::open(settings).await.expect("opens");
            let term = replica.campaign(&me).await.expect("elected");
            (term.lease, term.store, term.contents)
        });
        self.lease = Some(lease);
        (Box::new(store), contents)
    }
}

fn for_each_kind(test: impl Fn(&mut dyn Kind)) {
    test(&mut Redb(tempfile::tempdir().expect("temporary directory")));
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    test(&mut InEtcd { etcd: Etcd::start(1), runtime, lease: None });
}

fn put(table: Table, key: &str, value: &str) -> Write {
    Write { table, key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

fn record(table: Table, key: &str, value: &str) -> (Table, String, Vec<u8>) {
    (table, key.to_owned(), value.as_bytes().to_vec())
}

#[test]
fn a_new_store_is_empty() {
    for_each_kind(|kind| assert_eq!(kind.open().1, Contents::default()));
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    for_each_kind(|kind| {
        let (mut store, _) = kind.open();
        let first =
            [put(Table::Tasks, "f/a", "1"), put(Table::Tasks, "f/b", "2"), put(Table::Apps, "/web", "{}")];
        store.commit(Revision(1), &first).expect("commits");
        let second = [Write::delete(Table::Tasks, "f/b"), put(Table::Tasks, "f/a", "3")];
        store.commit(Revision(7), &second).expect("commits");
        drop(store);

        let records = vec![record(Table::Tasks, "f/a", "3"), record(Table::Apps, "/web", "{}")];
        assert_eq!(kind.open().1, Contents { revision: Revision(7), records });
    });
}

#[test]
fn every_table_keeps_its_own_records() {
    for_each_kind(|kind| {
        let writes = Table::ALL.map(|table| put(table, "key", table.as_str()));
        let (mut store, _) = kind.open();
        store.commit(Revision(1), &writes).expect("commits");
        drop(store);
        let expected = Table::ALL.map(|table| record(table, "key", table.as_str()));
        assert_eq!(kind.open().1.records, expected);
    });
}

#[test]
fn the_last_of_several_writes_to_a_key_counts() {
    for_each_kind(|kind| {
        let (mut store, _) = kind.open();
        let writes =
            [put(Table::Vips, "a", "1"), Write::delete(Table::Vips, "a"), put(Table::Vips, "a", "2")];
        store.commit(Revision(1), &writes).expect("commits");
        drop(store);
        assert_eq!(kind.open().1.records, [record(Table::Vips, "a", "2")]);
    });
}

#[test]
fn a_revision_is_never_committed_twice() {
    for_each_kind(|kind| {
        let (mut store, _) = kind.open();
        store.commit(Revision(5), &[put(Table::Vips, "a", "1")]).expect("commits");
        for revision in [Revision(0), Revision(4), Revision(5)] {
            let error = store.commit(revision, &[put(Table::Vips, "a", "2")]).expect_err("not newer");
            assert!(matches!(error, CommitError::NotNewer { last: Revision(5), .. }), "{error}");
        }
        drop(store);
        let (mut store, contents) = kind.open();
        assert_eq!(contents.records, [record(Table::Vips, "a", "1")]);
        let error = store.commit(Revision(5), &[]).expect_err("not newer");
        assert!(matches!(error, CommitError::NotNewer { last: Revision(5), .. }), "{error}");
    });
}

#[test]
fn records_of_any_length_are_kept_and_replaced() {
    for_each_kind(|kind| {
        let (mut store, _) = kind.open();
        let mut revision = 0;
        for lengths in [[3 << 20, 10], [600 << 10, 0], [1 << 20, 2 << 20], [1, 1], [0, 700 << 10]] {
            revision += 1;
            let values = lengths.map(|length| "x".repeat(length));
            // The second key begins like the first.
            let writes = [put(Table::Apps, "/a", &values[0]), put(Table::Apps, "/a/b", &values[1])];
            store.commit(Revision(revision), &writes).expect("commits");
            drop(store);
            let (reopened, contents) = kind.open();
            let read: Vec<_> =
                contents.records.iter().map(|(_, key, value)| (key.as_str(), value.len())).collect();
            assert_eq!(read, [("/a", lengths[0]), ("/a/b", lengths[1])]);
            store = reopened;
        }
        store.commit(Revision(revision + 1), &[Write::delete(Table::Apps, "/a")]).expect("commits");
        drop(store);
        assert_eq!(kind.open().1.records.len(), 1);
    });
}

#[test]
fn a_commit_without_writes_counts() {
    for_each_kind(|kind| {
        let (mut store, _) = kind.open();
        store.commit(Revision(3), &[]).expect("commits");
        drop(store);
        assert_eq!(kind.open().1, Contents { revision: Revision(3), records: Vec::new() });
    });
}
