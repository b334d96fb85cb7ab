//! The store on etcd against real etcd processes.

#[path = "etcd_process/mod.rs"]
mod etcd_process;

use std::time::Duration;

use etcd_process::Etcd;
use mesonet_model::{ClusterId, MasterId, Revision, Table, Write};
use mesonet_store::{Candidate, CommitError, Contents, EtcdReplica, EtcdSettings, Store, Term};

fn settings(etcd: &Etcd) -> EtcdSettings {
    let cluster = ClusterId::new("0d7e5bd2-7ab1-4a5c-8a3e-2a4f7f1b0c11");
    EtcdSettings { endpoints: etcd.endpoints(), cluster, tls: None, lease: EtcdSettings::LEASE }
}

fn candidate(name: &str) -> Candidate {
    Candidate { master: MasterId::new(name), api: ([127, 0, 0, 1], 8080).into(), bus: format!("{name}:7070") }
}

async fn open(etcd: &Etcd) -> EtcdReplica {
    EtcdReplica::open(settings(etcd)).await.expect("opens")
}

async fn lead(replica: &EtcdReplica, name: &str) -> Term {
    let me = candidate(name);
    let campaign = replica.campaign(&me);
    tokio::time::timeout(Duration::from_secs(20), campaign).await.expect("in time").expect("elected")
}

fn put(key: &str, value: &str) -> Write {
    Write { table: Table::Tasks, key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

async fn reach(replica: &EtcdReplica, revision: u64) -> Contents {
    let mut known = replica.revision();
    let reach = known.wait_for(|known| *known >= Revision(revision));
    tokio::time::timeout(Duration::from_secs(20), reach).await.expect("in time").expect("open");
    replica.contents()
}

#[tokio::test]
async fn a_new_leader_has_what_the_one_before_has_committed() {
    let etcd = Etcd::start(1);
    let replica = open(&etcd).await;
    let mut term = lead(&replica, "one").await;
    term.store.commit(Revision(1), &[put("a", "1")]).expect("commits");
    let writes: Vec<Write> = (0..10_000).map(|i| put(&format!("{i:06}"), "x")).collect();
    term.store.commit(Revision(2), &writes).expect("commits");
    let contents = reach(&replica, 2).await;
    assert_eq!(contents.records.len(), 10_001);
    let other = open(&etcd).await;
    assert_eq!(other.contents(), contents);
    term.lease.resign().await;
    let error = term.store.commit(Revision(3), &writes).expect_err("deposed");
    assert!(matches!(error, CommitError::Deposed { .. }), "{error:?}");
    let term = lead(&other, "two").await;
    assert_eq!(term.contents, contents);
}

#[tokio::test]
async fn a_leader_outlives_a_short_absence_of_etcd() {
    let mut etcd = Etcd::start(1);
    let settings = EtcdSettings { lease: Duration::from_secs(10), ..settings(&etcd) };
    let replica = EtcdReplica::open(settings).await.expect("opens");
    let mut term = lead(&replica, "one").await;
    etcd.kill(0);
    let commit = tokio::task::spawn_blocking(move || term.store.commit(Revision(1), &[put("a", "1")]));
    etcd.restart(0);
    commit.await.expect("joined").expect("commits");
    assert_eq!(reach(&replica, 1).await.records.len(), 1);
}
