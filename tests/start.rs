//! What `mesonet dev` says when it cannot start, and that it comes back where it was.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesonet::LocalCluster;
use mesonet::config::{DevOptions, Listen};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesonet");

/// Any free port of this machine alone.
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn options(dir: &Path) -> DevOptions {
    DevOptions { dir: Some(dir.to_owned()), http: ANYWHERE, dns: ANYWHERE, ..DevOptions::default() }
}

async fn start(options: &DevOptions) -> anyhow::Result<LocalCluster> {
    LocalCluster::start(options, vec![PROGRAM.to_owned(), "supervise".to_owned()]).await
}

async fn refusal(options: &DevOptions) -> String {
    match start(options).await {
        Ok(_) => panic!("started with {options:?}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The ids of the cluster's nodes.
async fn nodes(cluster: &LocalCluster) -> Vec<String> {
    let url = format!("http://{}/v1/view", cluster.http());
    let body = tokio::task::spawn_blocking(move || ureq::get(url).call()?.body_mut().read_json::<Value>());
    let view = body.await.expect("asked").expect("answered");
    let agents = view["agents"].as_object().expect("agents by id");
    agents.keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_is_named_with_the_flag_that_changes_it() {
    let first_dir = tempfile::tempdir().expect("directory");
    let other_dir = tempfile::tempdir().expect("directory");
    let cluster = start(&options(first_dir.path())).await.expect("started");

    let said = refusal(&options(first_dir.path())).await;
    assert!(said.contains("in use") && said.contains(&*first_dir.path().to_string_lossy()), "{said}");

    let said = refusal(&DevOptions { http: cluster.http(), ..options(other_dir.path()) }).await;
    assert!(said.contains("--http") && said.contains(&cluster.http().to_string()), "{said}");

    let said = refusal(&DevOptions { dns: cluster.dns(), ..options(other_dir.path()) }).await;
    assert!(said.contains("--dns") && said.contains(&cluster.dns().to_string()), "{said}");

    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_of_mesos_dns_is_there_if_it_is_wanted() {
    let dir = tempfile::tempdir().expect("directory");
    let without = start(&options(dir.path())).await.expect("started");
    assert_eq!(without.dns_http(), None);
    without.end().await;
    let wanted = DevOptions { dns_http: Listen::At(ANYWHERE), ..options(dir.path()) };
    let cluster = start(&wanted).await.expect("started");
    let url = format!("http://{}/v1/hosts/leader.mesos", cluster.dns_http().expect("an address"));
    let deadline = Instant::now() + Duration::from_secs(30);
    let hosts = loop {
        let url = url.clone();
        let body =
            tokio::task::spawn_blocking(move || ureq::get(url).call()?.body_mut().read_json::<Value>());
        match body.await.expect("asked") {
            Ok(hosts) => break hosts,
            // The first view may still be on its way.
            Err(ureq::Error::StatusCode(503)) if Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(hosts, serde_json::json!([{ "host": "leader.mesos.", "ip": "127.0.0.1" }]));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_gives_the_same_node_again() {
    let dir = tempfile::tempdir().expect("directory");
    let cluster = start(&options(dir.path())).await.expect("started");
    let before = nodes(&cluster).await;
    cluster.end().await;

    let cluster = start(&options(dir.path())).await.expect("started again");
    assert_eq!(nodes(&cluster).await, before);
    assert_eq!(before.len(), 1);
    cluster.end().await;
}

#[test]
fn all_mistakes_of_a_configuration_file_are_reported() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("mesonet.toml");
    fs::write(&file, "htttp = \"127.0.0.1:1\"\ncpus = -1\n").expect("written");
    let output = Command::new(PROGRAM).arg("dev").arg("--config").arg(&file).output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("'htttp'") && said.contains("cpus: "), "{said}");
}

/// Looks until there is something to see.
fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tasks_of_a_cluster_without_a_directory_end_with_it_also_when_it_is_killed() {
    let dir = tempfile::tempdir().expect("directory");
    let mut node = Command::new(PROGRAM)
        .args(["dev", "--http", "127.0.0.1:0", "--dns", "127.0.0.1:0"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let greeting = BufReader::new(node.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut api =
        greeting.filter_map(|line| line.trim().strip_prefix("API").map(|api| api.trim().to_owned()));
    let url = format!("{}/v2/apps", api.next().expect("the greeting names the API"));

    let (main, other) = (dir.path().join("main"), dir.path().join("other"));
    let cmd = format!(
        "sleep 1000 & echo $! > {other}.new; mv {other}.new {other}; echo $$ > {main}.new; mv {main}.new {main}; wait",
        main = main.display(),
        other = other.display()
    );
    let app = serde_json::json!({"id": "lasting", "cmd": cmd, "cpus": 0.01, "mem": 1});
    ureq::post(&url).send(app.to_string()).expect("accepted");
    let process = |file: &Path| {
        let pid = eventually("the task runs", || fs::read_to_string(file).ok());
        Path::new("/proc").join(pid.trim())
    };
    let processes = [process(&main), process(&other)];

    node.kill().expect("kills");
    node.wait().expect("ends");
    eventually("both processes have ended", || processes.iter().all(|path| !path.exists()).then_some(()));
}

#[test]
fn the_files_that_are_shipped_are_the_documented_defaults() {
    for role in ["master", "agent", "net"] {
        let output = Command::new(PROGRAM).args(["config", "default", role]).output().expect("run");
        assert!(output.status.success(), "{output:?}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("deploy/config/{role}.toml"));
        let shipped = fs::read_to_string(&file).expect("the file");
        let printed = String::from_utf8(output.stdout).expect("text");
        assert_eq!(shipped, printed, "mesonet config default {role} > {}", file.display());
    }
}

#[test]
fn a_node_that_cannot_join_says_what_it_lacks() {
    let dir = tempfile::tempdir().expect("directory");
    for (role, arguments, expected) in [
        ("agent", &["--master", "127.0.0.1:1"][..], "give --join TOKEN"),
        ("net", &["--dns", "127.0.0.1:0"], "give --master HOST:PORT"),
        ("master", &["--http", "127.0.0.1:0"], "mesonet init --dir DIR"),
    ] {
        let mut command = Command::new(PROGRAM);
        let output = command.arg(role).arg("--dir").arg(dir.path()).args(arguments).output().expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{role}: {said}");
    }
}

#[test]
fn tokens_are_listed_and_revoked_in_the_masters_directory() {
    let dir = tempfile::tempdir().expect("directory");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        let output = command.args(arguments).arg("--dir").arg(dir.path().join("m")).output().expect("run");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
        (output.status.success(), said.concat())
    };
    assert!(!run(&["join-token", "list"]).0, "there is no cluster");
    let (made, said) = run(&["init"]);
    assert!(made && said.contains("--join mesonet1."), "{said}");
    assert!(!run(&["init"]).0, "a cluster is made once");
    let (_, token) = run(&["join-token", "create", "--ttl", "2h", "--uses", "7"]);
    let id = token.trim().split('.').nth(2).expect("an id").to_owned();
    let (_, list) = run(&["join-token", "list"]);
    assert!(list.lines().any(|line| line.contains(&id) && line.contains('7')), "{list}");
    assert!(run(&["join-token", "revoke", &id]).0);
    assert!(!run(&["join-token", "list"]).1.contains(&id));
    let (again, said) = run(&["join-token", "revoke", &id]);
    assert!(!again && said.contains(&id), "{said}");
}
