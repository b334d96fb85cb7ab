//! An etcd that is away, full, of another version, or knows who may use it.

use super::*;

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
    assert!(error.to_string().contains("no space left for etcd at http://127.90.14.1:"), "{error}");
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
    let leader = open(settings(&etcd)).await;
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
