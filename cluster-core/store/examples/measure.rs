//! `./x bench store`: what a commit costs with each store, and how long a new leader takes to have all records.

use std::time::{Duration, Instant};

use mesonet_model::{ClusterId, MasterId, Revision, Table, Write};
use mesonet_store::{Candidate, Contents, EtcdReplica, EtcdSettings, RedbStore, Store};
use mesonet_test_etcd::Etcd;

/// Commits that are measured, one after the other.
const COMMITS: u64 = 2000;

/// Records of a large cluster.
const RECORDS: u64 = 100_000;

/// Bytes of a record: about a task with its launch description.
const RECORD_BYTES: usize = 1000;

type Measured<T> = Result<T, Box<dyn std::error::Error>>;

/// Measures redb, and etcd with one member, both on the disk of the temporary directory.
fn main() -> Measured<()> {
    println!(
        "{COMMITS} commits of one record of {RECORD_BYTES} bytes each; then {RECORDS} records in one commit"
    );
    println!(
        "{:8} {:>10} {:>9} {:>9} {:>11} {:>9}",
        "store", "commits/s", "p50 ms", "p99 ms", "fill s", "load s"
    );
    let dir = tempfile::tempdir()?;
    let (mut store, _) = RedbStore::open(dir.path())?;
    let written = write(&mut store)?;
    drop(store);
    let begun = Instant::now();
    let (_store, contents) = RedbStore::open(dir.path())?;
    written.show("redb", begun.elapsed(), &contents);

    let runtime = tokio::runtime::Runtime::new()?;
    let etcd = Etcd::start(1);
    let settings = EtcdSettings {
        endpoints: etcd.endpoints(),
        cluster: ClusterId::new("bench"),
        tls: None,
        lease: EtcdSettings::LEASE,
    };
    let me = Candidate {
        master: MasterId::new("bench"),
        api: ([127, 0, 0, 1], 8080).into(),
        bus: "localhost:7070".to_owned(),
    };
    let replica = runtime.block_on(EtcdReplica::open(settings.clone()))?;
    let mut term = runtime.block_on(replica.campaign(&me))?;
    let written = write(&mut term.store)?;
    let begun = Instant::now();
    let contents = runtime.block_on(EtcdReplica::open(settings))?.contents();
    written.show("etcd", begun.elapsed(), &contents);

    let begun = Instant::now();
    runtime.block_on(term.lease.resign());
    let term = runtime.block_on(replica.campaign(&me))?;
    println!(
        "a standby that has the records in memory leads {} s after a resignation",
        seconds(begun.elapsed())
    );
    assert!(term.contents == contents, "the standby has other records");
    Ok(())
}

struct Written {
    latencies: Vec<Duration>,
    fill: Duration,
}

fn write(store: &mut impl Store) -> Measured<Written> {
    let value = "x".repeat(RECORD_BYTES);
    let mut latencies = Vec::new();
    for revision in 1..=COMMITS {
        let write = Write::put(Table::Tasks, format!("one/{}", revision % 100), &value);
        let begun = Instant::now();
        store.commit(Revision(revision), &[write])?;
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();
    let writes: Vec<Write> =
        (0..RECORDS).map(|n| Write::put(Table::Tasks, format!("all/{n:06}"), &value)).collect();
    let begun = Instant::now();
    store.commit(Revision(COMMITS + 1), &writes)?;
    Ok(Written { latencies, fill: begun.elapsed() })
}

impl Written {
    fn show(&self, name: &str, load: Duration, contents: &Contents) {
        assert_eq!(contents.records.len() as u64, RECORDS + 100, "records are missing");
        let total: Duration = self.latencies.iter().sum();
        let at = |share: usize| self.latencies[self.latencies.len() * share / 100].as_secs_f64() * 1e3;
        println!(
            "{name:8} {:>10.0} {:>9.2} {:>9.2} {:>11} {:>9}",
            COMMITS as f64 / total.as_secs_f64(),
            at(50),
            at(99),
            seconds(self.fill),
            seconds(load)
        );
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}
