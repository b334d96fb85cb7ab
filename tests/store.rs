//! `mesonet store copy` and `mesonet join-token` with the built binary and real etcd.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use mesonet_model::{ClusterId, MasterId, Revision, Table, Write};
use mesonet_store::{Candidate, EtcdReplica, EtcdSettings, RedbStore, Store};
use mesonet_test_etcd::Etcd;
use serde_json::Value;
use tempfile::TempDir;

fn mesonet(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mesonet")).args(arguments).output().expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let (success, text) = mesonet(arguments);
    assert!(success, "{arguments:?}: {text}");
    text
}

#[track_caller]
fn fail(arguments: &[&str], words: &str) {
    let (success, text) = mesonet(arguments);
    assert!(!success && text.contains(words), "{arguments:?}: {text}");
}

fn copy(from: &str, to: &str, further: &[&str]) -> Vec<String> {
    let arguments = [&["store", "copy", "--from", from, "--to", to], further].concat();
    arguments.into_iter().map(str::to_owned).collect()
}

fn refs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// A master's directory with a cluster, and its id.
fn site() -> (TempDir, ClusterId) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let text = succeed(&["init", "--json", "--dir", path(dir.path())]);
    let made: Value = serde_json::from_str(&text).expect("json");
    (dir, ClusterId::new(made["cluster"].as_str().expect("cluster")))
}

/// What an operator brings to another master's host.
fn second_site(first: &TempDir) -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(dir.path().join("authority")).expect("made");
    for file in ["authority/ca.key", "authority/ca.pem"] {
        fs::copy(first.path().join(file), dir.path().join(file)).expect("copied");
    }
    dir
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn place(dir: &TempDir) -> String {
    format!("redb:{}", path(dir.path()))
}

fn settings(etcd: &Etcd, cluster: &ClusterId) -> EtcdSettings {
    let (endpoints, cluster) = (etcd.endpoints(), cluster.clone());
    EtcdSettings { endpoints, cluster, tls: None, lease: EtcdSettings::LEASE }
}

fn token_ids(arguments: &[&str]) -> Vec<String> {
    let list = [&["join-token", "list", "--json"], arguments].concat();
    let tokens: Vec<Value> = serde_json::from_str(&succeed(&list)).expect("json");
    tokens.iter().map(|token| token["id"].as_str().expect("id").to_owned()).collect()
}

#[test]
fn a_cluster_moves_to_etcd_and_back() {
    let etcd = Etcd::start(1);
    let (home, cluster) = site();
    let away = second_site(&home);
    let urls = format!("etcd:{}", etcd.endpoints().join(","));
    // More than one transaction, one record longer than etcd takes, and all tables.
    let mut writes: Vec<Write> =
        (0..300).map(|n| Write::put(Table::Tasks, format!("web/{n:04}"), &n)).collect();
    writes.extend(Table::ALL.map(|table| Write::put(table, "a key/with@all.sorts", &table.as_str())));
    writes.push(Write::put(Table::Apps, "/large", &"x".repeat(3 << 20)));
    let (mut store, _) = RedbStore::open(home.path()).expect("opens");
    fail(&refs(&copy(&place(&home), &urls, &[])), "in use by another process");
    store.commit(Revision(41), &writes).expect("commits");
    drop(store);
    let (_, original) = RedbStore::open(home.path()).expect("opens");
    let count = writes.len();

    fail(&refs(&copy(&place(&away), &urls, &[])), "there is no state in");
    let text = succeed(&refs(&copy(&place(&home), &urls, &[])));
    assert!(text.contains(&format!("{count} records and 1 of the authority, read back and equal")), "{text}");
    let held = format!("the target holds {count} records of revision 41");
    fail(&refs(&copy(&place(&home), &urls, &[])), &held);
    succeed(&refs(&copy(&urls, &place(&away), &[])));
    assert_eq!(RedbStore::open(away.path()).expect("opens").1, original);
    assert_eq!(token_ids(&["--dir", path(away.path())]), token_ids(&["--dir", path(home.path())]));

    // A revision never goes back, also when older state replaces newer one.
    let text = succeed(&refs(&copy(&place(&home), &urls, &["--overwrite"])));
    assert!(text.contains("revision 42, after 41 of the source"), "{text}");

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let replica = runtime.block_on(EtcdReplica::open(settings(&etcd, &cluster))).expect("opens");
    let master = Candidate {
        master: MasterId::new("m1"),
        api: ([127, 0, 0, 1], 8080).into(),
        bus: "localhost:7070".to_owned(),
    };
    let _term = runtime.block_on(replica.campaign(&master)).expect("elected");
    for arguments in
        [copy(&place(&home), &urls, &["--overwrite"]), copy(&urls, &place(&away), &["--overwrite"])]
    {
        fail(&refs(&arguments), "master m1 at 127.0.0.1:8080 leads on this etcd: stop all masters first");
    }
}

#[test]
fn masters_on_etcd_share_their_tokens() {
    let etcd = Etcd::start(1);
    let (home, _) = site();
    let away = second_site(&home);
    let urls = etcd.endpoints().join(",");
    let config = away.path().join("master.toml");
    let text = format!(
        "dir = \"{}\"\nstore = \"etcd\"\netcd = [\"{urls}\"]\nhttp = \"127.0.0.1:0\"\n",
        path(away.path())
    );
    fs::write(&config, text).expect("written");
    let at_home = ["--dir", path(home.path()), "--store", "etcd", "--etcd", &urls];
    let elsewhere = ["--config", path(&config)];

    let first = token_ids(&at_home);
    assert_eq!(first.len(), 1, "the one of init");
    assert_eq!(token_ids(&elsewhere), first);
    let token = succeed(&[&["join-token", "create"][..], &elsewhere].concat());
    let id = token.trim().split('.').nth(2).expect("id").to_owned();
    assert!(token_ids(&at_home).contains(&id));

    let revoke = [&["join-token", "revoke", &first[0]][..], &elsewhere].concat();
    succeed(&revoke);
    assert_eq!(token_ids(&at_home), [id]);
    fail(&revoke, "there is no join token");
}

#[test]
fn an_etcd_that_is_not_there_is_named() {
    let (home, _) = site();
    let arguments =
        ["join-token", "list", "--dir", path(home.path()), "--store", "etcd", "--etcd", "http://127.0.0.1:1"];
    fail(&arguments, "cannot read from etcd at http://127.0.0.1:1: http://127.0.0.1:1 does not answer: ");
    let arguments = [
        "join-token",
        "list",
        "--dir",
        path(home.path()),
        "--store",
        "etcd",
        "--etcd",
        "https://127.0.0.1:1",
    ];
    fail(&arguments, "etcd's endpoint https://127.0.0.1:1 cannot be used: https needs the certificate");
}
