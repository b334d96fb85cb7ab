//! What is committed while leaders come and go.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_any_size_are_seen_whole() {
    const SIZES: [usize; 9] = [1, 127, 128, 10_000, 129, 3, 2000, 1, 500];
    let etcd = Etcd::start(1);
    let leader = open(settings(&etcd)).await;
    let follower = open(settings(&etcd)).await;
    let mut term = lead(&leader, "one").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let end = End(is_over.clone());
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
    drop(end);
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
/// was refused took effect, or one that was acknowledged did not, the number is wrong. A store that is too slow to tell
/// may say that it does not know.
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
            let (mut acknowledged, mut undecided) = (Vec::new(), Vec::new());
            loop {
                let mut term = lead(&replica, name).await;
                let mut number = term.contents.revision.0;
                if number >= COMMITS {
                    term.lease.resign().await;
                    return (acknowledged, undecided);
                }
                let commit_all = move || {
                    while number < COMMITS {
                        number += 1;
                        match commit_one(&mut term.store, number) {
                            Ok(()) => acknowledged.push(number),
                            Err(CommitError::Deposed { .. }) => break,
                            Err(CommitError::Undecided { .. }) => {
                                undecided.push(number);
                                break;
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    (acknowledged, undecided)
                };
                (acknowledged, undecided) = tokio::task::spawn_blocking(commit_all).await.expect("joined");
            }
        }));
    }
    let (mut all, mut doubted) = (Vec::new(), Vec::new());
    for master in masters {
        let (acknowledged, undecided) =
            tokio::time::timeout(3 * PATIENCE, master).await.expect("in time").expect("joined");
        all.extend(acknowledged);
        doubted.extend(undecided);
    }
    chaos.await.expect("joined");
    doubted.retain(|number| !all.contains(number));
    doubted.sort_unstable();
    doubted.dedup();
    assert!(doubted.len() < 10, "hardly ever not known: {doubted:?}");
    all.extend(doubted);
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=COMMITS), "each is acknowledged once, or not known");
    let contents = open(settings(&etcd)).await.contents();
    assert_eq!(contents.records, [(Table::Tasks, "number".to_owned(), b"300".to_vec())]);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_made_once() {
    let etcd = Etcd::start(1);
    let cable = Cable::to(etcd.address(0));
    let patient = EtcdSettings { lease: PATIENCE, ..by_cable(&etcd, &cable) };
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
    let replica = open(EtcdSettings { lease: PATIENCE, ..settings(&etcd) }).await;
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
    let leader = open(EtcdSettings { lease: SHORT_LEASE, ..settings(&etcd) }).await;
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
    assert!(matches!(result, Err(CommitError::Undecided { .. })), "{result:?}");
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
    let one = open(EtcdSettings { lease: SHORT_LEASE, ..by_cable(&etcd, &cable) }).await;
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

/// The leader is cut off between the moment in which a large commit is true and that in which it is carried out, which
/// takes it a while over a slow way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_commit_is_completed_by_the_next_leader() {
    const SIZE: usize = 20_000;
    let etcd = Etcd::start(1);
    let mut revision = 0;
    let mut was_in_the_middle = false;
    for _ in 0..5 {
        let cable = Arc::new(Cable::to(etcd.address(0)));
        let one = open(EtcdSettings { lease: SHORT_LEASE, ..by_cable(&etcd, &cable) }).await;
        let two = open(settings(&etcd)).await;
        let mut first = lead(&one, "one").await;
        cable.slow_down();
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
