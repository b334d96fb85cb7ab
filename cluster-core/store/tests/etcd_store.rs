//! The store on etcd against real etcd processes, with what goes wrong.

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
const PATIENCE: Duration = Duration::from_secs(20);

fn settings(etcd: &Etcd) -> EtcdSettings {
    let cluster = ClusterId::new(CLUSTER);
    EtcdSettings { endpoints: etcd.endpoints(), cluster, tls: None, lease: EtcdSettings::LEASE }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_any_size_are_seen_whole() {
    const SIZES: [usize; 9] = [1, 127, 128, 10_000, 129, 3, 2000, 1, 500];
    let etcd = Etcd::start(1);
    let leader = open(settings(&etcd)).await;
    let follower = open(settings(&etcd)).await;
    let mut term = lead(&leader, "one").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let (looks, ends) = (follower.clone(), is_over.clone());
    let watching = tokio::task::spawn_blocking(move || {
        while !ends.load(Ordering::Relaxed) {
            assert_whole(&looks.contents(), &SIZES);
        }
    });
    let (newcomers, ends) = (settings(&etcd), is_over.clone());
    let coming = tokio::spawn(async move {
        let mut seen = 0;
        while !ends.load(Ordering::Relaxed) {
            assert_whole(&open(newcomers.clone()).await.contents(), &SIZES);
            seen += 1;
        }
        seen
    });
    let mut before = 0;
    for (index, size) in SIZES.into_iter().enumerate() {
        let revision = index as u64 + 1;
        let writes = generation(revision, size, before);
        term = tokio::task::spawn_blocking(move || {
            term.store.commit(Revision(revision), &writes).expect("commits");
            term
        })
        .await
        .expect("joined");
        before = size;
    }
    assert_whole(&reach(&follower, SIZES.len() as u64).await, &SIZES);
    is_over.store(true, Ordering::Relaxed);
    watching.await.expect("never torn");
    assert!(coming.await.expect("never torn") > 0);
    assert_eq!(count(&etcd, "pending/"), 0);
}

#[tokio::test]
async fn a_deposed_leader_commits_nothing() {
    let etcd = Etcd::start(1);
    let one = open(settings(&etcd)).await;
    let two = open(settings(&etcd)).await;
    let mut first = lead(&one, "one").await;
    first.store.commit(Revision(1), &[put("a", "1")]).expect("commits");

    delete_key(&etcd, "leader");
    let second = lead(&two, "two").await;
    assert!(second.number > first.number);
    assert_eq!(second.contents, reach(&one, 1).await);
    for writes in [vec![put("a", "2")], generation(2, 1000, 0)] {
        let error = first.store.commit(Revision(2), &writes).expect_err("deposed");
        assert!(matches!(error, CommitError::Deposed { revision: Revision(2), .. }), "{error:?}");
    }
    within(first.lease.lost()).await;
    assert_eq!(open(settings(&etcd)).await.contents(), second.contents);
    let leader = within(one.leader().wait_for(Option::is_some)).await.expect("followed").clone();
    assert_eq!(leader, Some(Leader { candidate: candidate("two"), term: second.number }));
}

/// Two masters lead in turns that end without notice, each adding one to a number with each commit. If a commit that
/// was refused took effect, or one that was acknowledged did not, the number is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_is_lost_or_made_in_secret_when_leaders_change() {
    const COMMITS: u64 = 300;
    let etcd = Arc::new(Etcd::start(1));
    let commit_one = |store: &mut EtcdStore, number: u64| {
        store.commit(Revision(number), &[put("number", &number.to_string())])
    };
    let (observer, deposing) = (open(settings(&etcd)).await, etcd.clone());
    let chaos = tokio::spawn(async move {
        let mut known = observer.revision();
        for next in (1..COMMITS).step_by(7) {
            within(known.wait_for(|known| *known >= Revision(next))).await.expect("followed");
            let deposing = deposing.clone();
            tokio::task::spawn_blocking(move || delete_key(&deposing, "leader")).await.expect("deposed");
        }
    });
    let mut masters = Vec::new();
    for name in ["one", "two"] {
        let replica = open(settings(&etcd)).await;
        masters.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            while acknowledged.last().is_none_or(|last| *last < COMMITS) {
                let mut term = lead(&replica, name).await;
                let mut number = term.contents.revision.0;
                if number >= COMMITS {
                    term.lease.resign().await;
                    break;
                }
                acknowledged = tokio::task::spawn_blocking(move || {
                    while number < COMMITS {
                        number += 1;
                        match commit_one(&mut term.store, number) {
                            Ok(()) => acknowledged.push(number),
                            Err(CommitError::Deposed { .. }) => break,
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    acknowledged
                })
                .await
                .expect("joined");
            }
            acknowledged
        }));
    }
    let mut all = Vec::new();
    for master in masters {
        all.extend(tokio::time::timeout(3 * PATIENCE, master).await.expect("in time").expect("joined"));
    }
    chaos.await.expect("joined");
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=COMMITS), "each is acknowledged once");
    let contents = open(settings(&etcd)).await.contents();
    assert_eq!(contents.records, [(Table::Tasks, "number".to_owned(), b"300".to_vec())]);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_made_once() {
    let etcd = Etcd::start(1);
    let cable = Cable::to(etcd.address(0));
    let patient = EtcdSettings { lease: Duration::from_secs(10), ..by_cable(&etcd, &cable) };
    let replica = open(patient).await;
    let follower = open(settings(&etcd)).await;
    let mut term = lead(&replica, "one").await;
    for (revision, size) in [(1, 1), (2, 300)] {
        cable.lose_answers();
        let committing = tokio::task::spawn_blocking(move || {
            let result = term.store.commit(Revision(revision), &generation(revision, size, 0));
            (term, result)
        });
        if size == 1 {
            // It takes effect, and nobody has said so.
            reach(&follower, revision).await;
        }
        cable.mend();
        let result;
        (term, result) = within(committing).await.expect("joined");
        result.expect("committed");
        let contents = reach(&follower, revision).await;
        assert_eq!((contents.revision, contents.records.len()), (Revision(revision), size));
    }
}

#[tokio::test]
async fn a_leader_outlives_a_short_absence_of_etcd() {
    let mut etcd = Etcd::start(1);
    let replica = open(EtcdSettings { lease: Duration::from_secs(10), ..settings(&etcd) }).await;
    let mut term = lead(&replica, "one").await;
    etcd.kill(0);
    within(replica.is_current().wait_for(|is_current| !is_current)).await.expect("followed");
    let committing = tokio::task::spawn_blocking(move || {
        let result = term.store.commit(Revision(1), &[put("a", "1")]);
        (term, result)
    });
    etcd.restart(0);
    let (_term, result) = within(committing).await.expect("joined");
    result.expect("committed");
    assert_eq!(reach(&replica, 1).await.records.len(), 1);
    within(replica.is_current().wait_for(|is_current| *is_current)).await.expect("followed");
}

#[tokio::test]
async fn a_leader_without_etcd_knows_that_its_term_may_be_over() {
    let mut etcd = Etcd::start(1);
    let leader = open(settings(&etcd)).await;
    let standby = open(settings(&etcd)).await;
    let mut term = lead(&leader, "one").await;
    term.store.commit(Revision(1), &[put("a", "1")]).expect("commits");
    reach(&standby, 1).await;

    etcd.kill(0);
    let committing = tokio::task::spawn_blocking(move || {
        let result = term.store.commit(Revision(2), &[put("a", "2")]);
        (term, result)
    });
    let (term, result) = within(committing).await.expect("joined");
    assert!(matches!(result, Err(CommitError::Deposed { .. })), "{result:?}");
    within(term.lease.lost()).await;
    assert_eq!(standby.contents().revision, Revision(1), "still there to be read");

    etcd.restart(0);
    let next = lead(&standby, "two").await;
    assert!(next.number > term.number);
    assert_eq!(next.contents.records, [(Table::Tasks, "a".to_owned(), b"1".to_vec())]);
}

#[tokio::test]
async fn the_lease_of_a_leader_that_is_cut_off_passes_to_the_next() {
    let etcd = Etcd::start(1);
    let cable = Cable::to(etcd.address(0));
    let one = open(by_cable(&etcd, &cable)).await;
    let two = open(settings(&etcd)).await;
    let mut first = lead(&one, "one").await;
    let me = candidate("two");
    let standing = two.campaign(&me);
    tokio::pin!(standing);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut standing).await;
    assert!(early.is_err(), "one leads");

    cable.cut();
    within(first.lease.lost()).await;
    let second = within(standing).await.expect("elected");
    assert!(second.number > first.number);
    cable.mend();
    let error = first.store.commit(Revision(1), &[put("a", "1")]).expect_err("deposed");
    assert!(matches!(error, CommitError::Deposed { .. }), "{error:?}");
    let is_second =
        |leader: &Option<Leader>| leader.as_ref().is_some_and(|leader| leader.term == second.number);
    within(one.leader().wait_for(is_second)).await.expect("the healed master knows the leader");
}

/// A lease that ran out takes seconds; the test's patience is shorter than the lease.
#[tokio::test]
async fn who_resigns_is_followed_at_once() {
    let etcd = Etcd::start(1);
    let settings = EtcdSettings { lease: 3 * PATIENCE, ..settings(&etcd) };
    let (one, two) = (open(settings.clone()).await, open(settings).await);
    let first = lead(&one, "one").await;
    let clone = first.lease.clone();
    within(first.lease.resign()).await;
    drop(clone);
    let second = lead(&two, "two").await;
    // A leader that is dropped, as when its driver panics, holds on to nothing.
    drop(second);
    lead(&one, "one").await;
}

#[tokio::test]
async fn an_etcd_that_cannot_be_reached_is_named() {
    let endpoints = vec!["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
    let cluster = ClusterId::new(CLUSTER);
    let settings = EtcdSettings { endpoints, cluster, tls: None, lease: EtcdSettings::LEASE };
    let error = within(EtcdReplica::open(settings.clone())).await.expect_err("unreachable");
    assert_eq!(error.to_string(), "cannot read from etcd at http://127.0.0.1:1, http://127.0.0.1:2");
    let source = std::error::Error::source(&error).expect("says why").to_string();
    assert!(source.contains("does not answer") && source.contains("refused"), "{source}");

    for (endpoints, words) in [
        (vec![], "no endpoint of etcd is given"),
        (vec!["ftp://a".to_owned()], "etcd's endpoint ftp://a cannot be used: it must start with http"),
        (vec!["https://a:1".to_owned()], "https needs the certificate of etcd's authority"),
    ] {
        let error = EtcdReplica::open(EtcdSettings { endpoints, ..settings.clone() }).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_replica_that_has_missed_too_much_reads_everything_again() {
    let etcd = Etcd::start(1);
    let cable = Cable::to(etcd.address(0));
    let follower = open(by_cable(&etcd, &cable)).await;
    let leader = open(settings(&etcd)).await;
    let mut term = lead(&leader, "one").await;
    cable.cut();
    for revision in 1..=20 {
        let writes = generation(revision, 20 - usize::try_from(revision).expect("small"), 20);
        term.store.commit(Revision(revision), &writes).expect("commits");
    }
    let answer = etcd.call("kv/range", r#"{"key":"AA=="}"#);
    let newest =
        answer.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("revision");
    etcd.call("kv/compaction", &format!(r#"{{"revision":"{newest}"}}"#));
    cable.mend();
    assert_eq!(reach(&follower, 20).await, reach(&leader, 20).await);
    term.store.commit(Revision(21), &[put("z", "21")]).expect("commits");
    assert_eq!(reach(&follower, 21).await.records.len(), 1);
}

/// The leader is cut off between the moment in which a large commit is true and that in which it is carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_commit_is_completed_by_the_next_leader() {
    const SIZE: usize = 20_000;
    let etcd = Etcd::start(1);
    let mut revision = 0;
    let mut was_in_the_middle = false;
    for _ in 0..5 {
        let cable = Arc::new(Cable::to(etcd.address(0)));
        let one = open(by_cable(&etcd, &cable)).await;
        let two = open(settings(&etcd)).await;
        let mut first = lead(&one, "one").await;
        revision += 1;
        let committing = tokio::task::spawn_blocking(move || {
            // Whether its answer arrives is of no interest.
            let _ = first.store.commit(Revision(revision), &generation(revision, SIZE, 0));
        });
        let seen = reach(&two, revision).await;
        cable.cut();
        drop(one);
        let left = count(&etcd, "pending/");
        was_in_the_middle |= left > 0;
        let whole = |contents: &Contents| {
            let value = revision.to_string().into_bytes();
            contents.records.len() == SIZE && contents.records.iter().all(|(_, _, found)| *found == value)
        };
        assert!(whole(&seen), "{left} parts left");
        assert!(whole(&open(settings(&etcd)).await.contents()), "{left} parts left");
        let second = lead(&two, "two").await;
        assert!(whole(&second.contents), "{left} parts left");
        assert_eq!((second.contents.revision, count(&etcd, "pending/")), (Revision(revision), 0));
        assert_eq!(count(&etcd, "records/"), SIZE);
        committing.await.expect("joined");
        second.lease.resign().await;
        if was_in_the_middle {
            return;
        }
    }
    panic!("the leader was never cut off in the middle");
}

/// The leader dies before a large commit is true.
#[tokio::test]
async fn a_large_commit_that_is_not_true_yet_never_is() {
    let etcd = Etcd::start(1);
    let one = open(settings(&etcd)).await;
    let mut first = lead(&one, "one").await;
    first.store.commit(Revision(1), &[put("a", "1")]).expect("commits");
    first.lease.resign().await;
    // As a leader leaves it: parts of a commit that `revision` does not name.
    put_key(&etcd, "pending/1700000000000-7/000000", "whatever it is, nobody is to read it");
    put_key(&etcd, "pending/1700000000000-7/000001", "");
    let two = open(settings(&etcd)).await;
    let second = lead(&two, "two").await;
    assert_eq!(second.contents.records, [(Table::Tasks, "a".to_owned(), b"1".to_vec())]);
    assert_eq!(count(&etcd, "pending/"), 0);
}

#[tokio::test]
async fn state_of_a_newer_version_or_of_nobody_is_refused() {
    let etcd = Etcd::start(1);
    put_key(&etcd, "format", "2");
    for error in [
        EtcdReplica::open(settings(&etcd)).await.expect_err("newer"),
        EtcdKeys::open(&settings(&etcd)).expect_err("newer"),
    ] {
        assert!(matches!(error, OpenError::Etcd(_)), "{error:?}");
        let words = "the state in etcd was written by a newer version: format 2, this program reads up to 1";
        assert_eq!(error.to_string(), words);
    }
    for (key, value) in [("format", "one"), ("revision", "{}"), ("leader", "me"), ("term", "-1")] {
        put_key(&etcd, "format", "1");
        put_key(&etcd, key, value);
        let error = EtcdReplica::open(settings(&etcd)).await.expect_err("damaged");
        assert!(error.to_string().contains(&format!("damaged: key {key}: ")), "{error}");
        delete_key(&etcd, key);
    }
    open(settings(&etcd)).await;
}

#[tokio::test]
async fn a_full_etcd_leaves_everything_as_it_was() {
    let etcd = Etcd::with_arguments(1, "http", &["--quota-backend-bytes", "4194304"]);
    let replica = open(settings(&etcd)).await;
    let mut term = lead(&replica, "one").await;
    let mut revision = 0;
    let error = loop {
        let size = if revision % 2 == 0 { 1 } else { 300 };
        let value = format!("{revision}{}", "x".repeat((400 << 10) / size));
        let writes: Vec<Write> = (0..size).map(|n| put(&n.to_string(), &value)).collect();
        match term.store.commit(Revision(revision + 1), &writes) {
            Ok(()) => revision += 1,
            Err(error) => break error,
        }
        assert!(revision < 100, "etcd is never full");
    };
    assert!(matches!(error, CommitError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left for etcd at http://127.0.0.1:"), "{error}");
    let before = reach(&replica, revision).await;
    assert_eq!(open(settings(&etcd)).await.contents(), before);
    let error = term.store.commit(Revision(revision + 1), &generation(1, 400, 0)).expect_err("still full");
    assert!(matches!(error, CommitError::Full { .. }), "{error:?}");

    // What an operator does then.
    let answer = etcd.call("kv/range", r#"{"key":"AA=="}"#);
    let newest =
        answer.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("revision");
    etcd.call("kv/compaction", &format!(r#"{{"revision":"{newest}","physical":true}}"#));
    etcd.call("maintenance/defragment", "{}");
    let alarms = etcd.call("maintenance/alarm", "{}");
    let member =
        alarms.split(r#""memberID":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("member");
    let disarm = format!(r#"{{"action":"DEACTIVATE","alarm":"NOSPACE","memberID":"{member}"}}"#);
    etcd.call("maintenance/alarm", &disarm);
    term.store.commit(Revision(revision + 1), &[put("small", "1")]).expect("commits again");
    let contents = reach(&replica, revision + 1).await;
    assert_eq!(contents.records.len(), before.records.len() + 1);
}

#[tokio::test]
async fn one_of_three_members_may_be_gone() {
    let mut etcd = Etcd::start(3);
    let leader = open(EtcdSettings { lease: Duration::from_secs(10), ..settings(&etcd) }).await;
    let follower = open(settings(&etcd)).await;
    let mut term = lead(&leader, "one").await;
    let mut revision = 0;
    for member in 0..3 {
        etcd.kill(member);
        for _ in 0..20 {
            revision += 1;
            let write = put("a", &revision.to_string());
            let result;
            (term, result) = tokio::task::spawn_blocking(move || {
                let result = term.store.commit(Revision(revision), &[write]);
                (term, result)
            })
            .await
            .expect("joined");
            result.expect("commits");
        }
        reach(&follower, revision).await;
        etcd.restart(member);
    }
}

#[tokio::test]
async fn etcd_is_known_by_its_certificate_and_knows_masters_by_theirs() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let authority_key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("certificate").pem();
    let issuer = rcgen::Issuer::from_params(&params, &authority_key);
    let sign = |names: Vec<String>| {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(names).expect("names");
        (params.signed_by(&key, &issuer).expect("certificate").pem(), key.serialize_pem())
    };
    let (certificate, key) = sign(vec!["127.0.0.1".to_owned()]);
    for (name, text) in [("ca.pem", &authority), ("etcd.pem", &certificate), ("etcd.key", &key)] {
        std::fs::write(file(name), text).expect("written");
    }
    let arguments = [
        "--cert-file".to_owned(),
        file("etcd.pem"),
        "--key-file".to_owned(),
        file("etcd.key"),
        "--trusted-ca-file".to_owned(),
        file("ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let etcd = Etcd::with_arguments(1, "https", &arguments);
    let (certificate, key) = sign(vec!["m1".to_owned()]);
    let authority = authority.into_bytes();
    let identity = Some((certificate.into_bytes(), key.into_bytes()));
    let with = |tls| EtcdSettings { tls: Some(tls), ..settings(&etcd) };

    let replica = open(with(EtcdTls { authority: authority.clone(), identity: identity.clone() })).await;
    let mut term = lead(&replica, "one").await;
    term.store.commit(Revision(1), &[put("a", "1")]).expect("commits");

    let other_key = rcgen::KeyPair::generate().expect("key");
    let other = rcgen::CertificateParams::default().self_signed(&other_key).expect("certificate").pem();
    for tls in [
        EtcdTls { authority: authority.clone(), identity: None },
        EtcdTls { authority: other.into_bytes(), identity },
    ] {
        let error = EtcdReplica::open(with(tls)).await.expect_err("refused");
        assert!(error.to_string().contains("cannot read from etcd at https://127.0.0.1:"), "{error}");
    }
    let error = EtcdReplica::open(with(EtcdTls { authority: b"none".to_vec(), identity: None })).await;
    assert!(error.expect_err("no certificate").to_string().contains("cannot be used"));
}

#[tokio::test]
async fn facts_are_changed_by_one_at_a_time() {
    let etcd = Etcd::start(1);
    let replica = open(settings(&etcd)).await;
    let keys = [replica.keys(), EtcdKeys::open(&settings(&etcd)).expect("opens")];
    let [one, two] = &keys;
    assert_eq!(one.swap("nodes/a", None, Some(b"1")).expect("asked"), Swap::Made);
    assert_eq!(one.read("nodes/a").expect("read"), Some(b"1".to_vec()), "who has written reads it");
    assert_eq!(two.swap("nodes/a", None, Some(b"2")).expect("asked"), Swap::Refused);
    assert_eq!(two.swap("nodes/a", Some(b"1"), Some(b"2")).expect("asked"), Swap::Made);
    assert_eq!(one.swap("nodes/a", Some(b"1"), Some(b"3")).expect("asked"), Swap::Refused);
    assert_eq!(one.read("nodes/a").expect("read"), Some(b"2".to_vec()), "who is refused reads why");
    assert_eq!(one.swap("nodes/b", None, Some(b"")).expect("asked"), Swap::Made);
    assert_eq!(one.swap("tokens/a", None, Some(b"t")).expect("asked"), Swap::Made);
    for keys in &keys {
        let listed = keys.list("nodes/").expect("listed");
        assert_eq!(listed, [("nodes/a".to_owned(), b"2".to_vec()), ("nodes/b".to_owned(), Vec::new())]);
    }
    assert_eq!(two.swap("nodes/a", Some(b"2"), None).expect("asked"), Swap::Made);
    assert_eq!(two.read("nodes/a").expect("read"), None);

    // Each of these adds one, as often as it is not refused.
    assert_eq!(one.swap("number", None, Some(b"0")).expect("asked"), Swap::Made);
    let made = Arc::new(Mutex::new(0));
    let adding = keys.map(|keys| {
        let made = made.clone();
        std::thread::spawn(move || {
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                let old = keys.read("number").expect("read").expect("there");
                let number: u32 = String::from_utf8(old.clone()).expect("text").parse().expect("number");
                let new = (number + 1).to_string();
                if keys.swap("number", Some(&old), Some(new.as_bytes())).expect("asked") == Swap::Made {
                    *made.lock().expect("count") += 1;
                }
            }
        })
    });
    adding.into_iter().for_each(|thread| thread.join().expect("joined"));
    let direct = EtcdKeys::open(&settings(&etcd)).expect("opens");
    let number = direct.read("number").expect("read").expect("there");
    assert_eq!(String::from_utf8(number).expect("text"), made.lock().expect("count").to_string());
}
