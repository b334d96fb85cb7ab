//! The store on etcd against real etcd processes, with what goes wrong.

mod leaders;
mod members;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesonet_model::{ClusterId, MasterId, Revision, Table, Write};
use mesonet_store::{
    Candidate, CommitError, Contents, EtcdKeys, EtcdReplica, EtcdSettings, EtcdStore, EtcdTls, Leader,
    OpenError, Store, Swap, Term,
};
use mesonet_test_etcd::{Cable, Etcd, base64};

const CLUSTER: &str = "0d7e5bd2-7ab1-4a5c-8a3e-2a4f7f1b0c11";

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a leader may be without a processor on a busy machine, where no test waits for its lease to run out.
const LONG_LEASE: Duration = Duration::from_secs(20);

/// The same where one does.
const SHORT_LEASE: Duration = Duration::from_secs(6);

/// Ends what runs beside a test, also when the test fails.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn settings(etcd: &Etcd) -> EtcdSettings {
    let cluster = ClusterId::new(CLUSTER);
    EtcdSettings { endpoints: etcd.endpoints(), cluster, tls: None, lease: LONG_LEASE }
}

fn by_cable(etcd: &Etcd, cable: &Cable) -> EtcdSettings {
    EtcdSettings { endpoints: vec![cable.url()], ..settings(etcd) }
}

fn candidate(name: &str) -> Candidate {
    let bus = format!("{name}:7070");
    Candidate { master: MasterId::new(name), api: ([127, 0, 0, 1], 8080).into(), bus }
}

async fn open(settings: EtcdSettings) -> EtcdReplica {
    EtcdReplica::open(settings).await.expect("opens")
}

async fn lead(replica: &EtcdReplica, name: &str) -> Term {
    let me = candidate(name);
    within(replica.campaign(&me)).await.expect("elected")
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

async fn reach(replica: &EtcdReplica, revision: u64) -> Contents {
    let mut known = replica.revision();
    within(known.wait_for(|known| *known >= Revision(revision))).await.expect("followed");
    replica.contents()
}

fn put(key: &str, value: &str) -> Write {
    Write { table: Table::Tasks, key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

fn count(etcd: &Etcd, place: &str) -> usize {
    let [key, end] = [place.to_owned(), format!("{}0", place.trim_end_matches('/'))]
        .map(|name| base64(format!("/mesonet/{CLUSTER}/{name}").as_bytes()));
    let answer =
        etcd.call("kv/range", &format!(r#"{{"key":"{key}","range_end":"{end}","count_only":true}}"#));
    let count = answer.split(r#""count":""#).nth(1).and_then(|rest| rest.split('"').next());
    count.map_or(0, |count| count.parse().expect("number"))
}

fn put_key(etcd: &Etcd, name: &str, value: &str) {
    let [key, value] =
        [format!("/mesonet/{CLUSTER}/{name}"), value.to_owned()].map(|text| base64(text.as_bytes()));
    etcd.call("kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#));
}

fn delete_key(etcd: &Etcd, name: &str) {
    let key = base64(format!("/mesonet/{CLUSTER}/{name}").as_bytes());
    etcd.call("kv/deleterange", &format!(r#"{{"key":"{key}"}}"#));
}

/// Writes that leave `size` records that all have one value, and none of the `before` others.
fn generation(value: u64, size: usize, before: usize) -> Vec<Write> {
    let puts = (0..size).map(|n| put(&format!("{n:05}"), &value.to_string()));
    puts.chain((size..before).map(|n| Write::delete(Table::Tasks, format!("{n:05}")))).collect()
}

/// What is seen of a generation is all of it.
#[track_caller]
fn assert_whole(contents: &Contents, sizes: &[usize]) {
    let Some(size) =
        contents.revision.0.checked_sub(1).map(|index| sizes[usize::try_from(index).expect("small")])
    else {
        return;
    };
    assert_eq!(contents.records.len(), size, "revision {}", contents.revision);
    let value = contents.revision.to_string().into_bytes();
    let torn = contents.records.iter().find(|(_, _, found)| *found != value);
    assert_eq!(torn, None, "revision {}", contents.revision);
}
