//! The command line against a live cluster.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::harness::cluster::mesonet;
use crate::harness::{Cluster, PATIENCE, app, equal, eventually, program};

#[test]
fn an_app_lives_its_life_from_the_command_line() {
    let cluster = Cluster::start();
    let file = cluster.dir().join("web.json");
    std::fs::write(&file, app::web("/web", 1).to_string()).expect("file");
    let file = file.display().to_string();
    let ok = |arguments: &[&str]| cluster.mesonet(arguments).success();

    assert_eq!(ok(&["app", "add", &file]), "/web runs 1 instance\n");
    assert!(cluster.mesonet(&["app", "add", &file]).failure(1).contains("already exists"));
    assert_eq!(ok(&["app", "scale", "web", "2"]), "/web runs 2 instances\n");
    assert_eq!(cluster.tasks("/web").len(), 2);
    assert_eq!(ok(&["app", "update", "/web", "cpus=0.2", "env.GREETING=hello"]), "/web runs 2 instances\n");
    let shown = json_of(&ok(&["app", "show", "web", "--json"]));
    assert_eq!((&shown["cpus"], &shown["env"]), (&json!(0.2), &json!({ "GREETING": "hello" })));
    assert!(ok(&["app", "show", "web"]).contains("GREETING=hello"));
    let listed = ok(&["app", "list"]);
    assert!(listed.lines().any(|line| line.starts_with("/web") && line.contains("2/2")), "{listed}");

    let before = task_ids(&cluster);
    ok(&["app", "restart", "web"]);
    let after = task_ids(&cluster);
    assert!(after.iter().all(|task| !before.contains(task)), "{before:?} {after:?}");
    ok(&["task", "kill", &after[0]]);
    eventually("the killed task is replaced", || {
        let tasks = task_ids(&cluster);
        if tasks.len() == 2 && !tasks.contains(&after[0]) { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    cluster.wait_until_deployed();
    let tasks = ok(&["task", "list", "web"]);
    assert!(tasks.contains(&after[1]) && tasks.contains("running"), "{tasks}");

    assert_eq!(ok(&["app", "scale", "web", "0"]), "/web is suspended\n");
    assert_eq!(ok(&["app", "remove", "web"]), "/web is removed\n");
    assert!(cluster.mesonet(&["app", "show", "web"]).failure(1).contains("App '/web' does not exist"));
}

#[test]
fn an_app_comes_from_standard_input_and_a_part_of_it_too() {
    let cluster = Cluster::start();
    let from_input = |arguments: &[&str], input: &Value| {
        program::run_with_input(&mut cluster.command(arguments), &input.to_string())
    };
    let apps = json!([app::idle("/group/a", 1), app::idle("/group/b", 1)]);
    assert_eq!(
        from_input(&["app", "add", "-"], &apps).success(),
        "/group/a runs 1 instance\n/group/b runs 1 instance\n"
    );
    from_input(&["app", "update", "/group/a", "-"], &json!({ "labels": { "tier": "front" } })).success();
    let shown = json_of(&cluster.mesonet(&["--json", "app", "show", "/group/a"]).success());
    assert_eq!(shown["labels"], json!({ "tier": "front" }));
    let error = program::run_with_input(&mut cluster.command(&["app", "add", "-"]), "{ \"id\": ").failure(1);
    assert!(error.contains("- is not JSON: EOF"), "{error}");
    let error = cluster.mesonet(&["app", "add", "/nowhere/web.json"]).failure(1);
    assert!(error.contains("cannot read /nowhere/web.json: No such file"), "{error}");
}

#[test]
fn a_deployment_that_does_not_end_says_what_keeps_it() {
    let cluster = Cluster::start();
    let mut greedy = app::idle("/greedy", 1);
    greedy["cpus"] = json!(1e6);
    let mut command = cluster.command(&["app", "add", "-", "--timeout", "3s"]);
    let error = program::run_with_input(&mut command, &greedy.to_string()).failure(1);
    for expected in ["/greedy is not done after 3s", "0 of 1 instances", "InsufficientCpus"] {
        assert!(error.contains(expected), "{expected} in {error}");
    }
    let deployments = cluster.mesonet(&["deployment", "list"]).success();
    assert!(deployments.contains("/greedy"), "{deployments}");
    let error = cluster.mesonet(&["app", "scale", "greedy", "2"]).failure(1);
    assert!(error.contains("locked") && error.contains("--force"), "{error}");
    cluster.mesonet(&["app", "update", "greedy", "cpus=0.1", "--force"]).success();
    assert_eq!(cluster.tasks("/greedy").len(), 1);
    let accepted = cluster.mesonet(&["app", "remove", "greedy", "--no-wait"]).success();
    assert_eq!(accepted, "/greedy is being removed\n");
    cluster.wait_until_deployed();
}

#[test]
fn an_app_that_fails_says_why_and_its_last_words_are_kept() {
    let cluster = Cluster::start();
    let mut app = app::idle("/crash", 1);
    app["cmd"] = json!("echo last words; exit 3");
    // Longer than the test, so that only one task fails.
    app["backoffSeconds"] = json!(300);
    cluster.send(ureq::http::Method::POST, "/v2/apps", Some(&app.to_string())).expect(201);
    eventually("the failure is shown", || {
        let shown = cluster.mesonet(&["app", "show", "crash"]).success();
        let is_shown = shown.contains("TASK_FAILED: Command exited with status 3");
        if is_shown && cluster.tasks("/crash").is_empty() { Ok(()) } else { Err(shown) }
    });
    assert_eq!(cluster.mesonet(&["task", "log", "crash"]).success(), "last words\n");
}

#[test]
fn what_a_task_writes_is_shown_whole_in_part_and_as_it_comes() {
    let cluster = Cluster::start();
    let mut app = app::idle("/talk", 1);
    app["cmd"] =
        json!("seq 1 5; echo oops >&2; while ! test -e go; do sleep 0.1; done; echo more; exec sleep 3600");
    cluster.deploy(&app);
    let task = task_ids(&cluster)[0].clone();
    eventually("the output is there", || {
        equal(&cluster.mesonet(&["task", "log", "talk"]).success(), &"1\n2\n3\n4\n5\n".to_owned())
    });
    assert_eq!(cluster.mesonet(&["task", "log", &task, "-n", "2"]).success(), "4\n5\n");
    assert_eq!(cluster.mesonet(&["task", "log", "/talk", "--stderr"]).success(), "oops\n");
    assert!(cluster.mesonet(&["task", "log", "nobody"]).failure(1).contains("nobody"));

    let mut follow = cluster.command(&["task", "log", "talk", "-f", "-n", "1"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().expect("mesonet runs");
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(follow.stdout.take().expect("piped"));
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    assert_eq!(lines.recv_timeout(PATIENCE).as_deref(), Ok("5"), "it begins with the last line");
    let sandbox = sandbox_of(&cluster, &task).expect("the sandbox");
    std::fs::write(sandbox.join("go"), "").expect("file");
    assert_eq!(lines.recv_timeout(PATIENCE).as_deref(), Ok("more"));
    follow.kill().expect("kill");
    follow.wait().expect("wait");
}

#[test]
fn the_network_is_inspected() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    let vip = cluster.vip("web").to_string();
    let services = cluster.mesonet(&["service", "list"]).success();
    assert!(services.contains(&vip) && services.contains("2 ready"), "{services}");
    let nodes = cluster.mesonet(&["node", "list"]).success();
    assert!(nodes.contains("active") && nodes.contains("0.2/64"), "{nodes}");

    let server = cluster.dns().to_string();
    let query =
        |arguments: &[&str]| cluster.mesonet(&[&["dns", "query", "--server", &server], arguments].concat());
    let answer = query(&["web.marathon.mesos"]).success();
    assert!(answer.lines().any(|line| line.ends_with("127.0.0.1")), "{answer}");
    let answer = json_of(&query(&["_http._web._tcp.marathon.mesos", "srv", "--json"]).success());
    assert_eq!(answer["answers"].as_array().map(Vec::len), Some(2), "{answer}");
    assert!(query(&["nothing.marathon.mesos"]).failure(1).contains("NXDOMAIN"));

    let converged = json_of(&cluster.mesonet(&["converge", "--json"]).success());
    let revision = converged["revision"].as_u64().expect("revision");
    assert!(
        cluster.mesonet(&["converge", "--revision", &revision.to_string()]).success().contains("in effect")
    );
    let future = (revision + 1_000_000).to_string();
    let error = cluster.mesonet(&["converge", "--revision", &future, "--timeout", "200ms"]).failure(1);
    assert!(error.contains("dns of node") && error.contains("lb of node"), "{error}");
}

#[test]
fn programs_get_json_from_every_command() {
    let cluster = Cluster::start();
    cluster.deploy(&app::idle("/job", 1));
    for arguments in [
        &["app", "list"][..],
        &["app", "show", "job"],
        &["app", "scale", "job", "2"],
        &["task", "list"],
        &["deployment", "list"],
        &["service", "list"],
        &["node", "list"],
        &["converge"],
        &["app", "remove", "job"],
    ] {
        let arguments = [arguments, &["--json"]].concat();
        json_of(&cluster.mesonet(&arguments).success());
    }
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let cluster = Cluster::start();
    let mut child =
        cluster.command(&["app", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
    drop(child.stdout.take());
    let ended = program::outcome("mesonet", child.wait_with_output());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn bad_usage_and_a_missing_cluster_are_told_apart() {
    let run = |arguments: &[&str]| program::outcome("mesonet", mesonet().args(arguments).output());
    run(&["app", "scale", "web"]).failure(2);
    run(&["app", "update", "web", "=1"]).failure(2);
    run(&["dev", "--http", "nowhere"]).failure(2);
    // Nothing listens on port 1 of loopback.
    let error = run(&["--api", "http://127.0.0.1:1", "app", "list"]).failure(1);
    assert_eq!(
        error,
        "error: cannot reach the API at http://127.0.0.1:1: connection refused; is `mesonet dev` running?\n"
    );
    let help = run(&["--help"]).success();
    for command in [
        "dev",
        "app",
        "task",
        "deployment",
        "service",
        "dns",
        "node",
        "converge",
        "completions",
        "init",
        "join-token",
        "master",
        "agent",
        "net",
        "config",
    ] {
        assert!(help.contains(command), "{command} in {help}");
    }
}

#[test]
fn settings_come_from_flag_environment_and_file() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("mesonet.toml");
    let mut text = std::fs::File::create(&file).expect("file");
    writeln!(text, "http = \"nowhere\"\nhttps = true").expect("write");
    let run = |mut command: std::process::Command| program::outcome("mesonet", command.output()).failure(1);
    let mut command = mesonet();
    command.arg("dev").arg("--config").arg(&file);
    let error = run(command);
    assert!(error.contains("http: ") && error.contains("unknown key 'https'"), "{error}");
    let mut command = mesonet();
    command.args(["dev", "--config", "/nowhere/mesonet.toml"]);
    assert!(run(command).contains("/nowhere/mesonet.toml"));
}

#[test]
fn completions_are_scripts_that_shells_accept() {
    let script = program::outcome("mesonet", mesonet().args(["completions", "bash"]).output()).success();
    let mut bash = std::process::Command::new("bash");
    let checked = program::run_with_input(bash.args(["--norc", "-n"]), &script);
    assert_eq!(checked.stderr, "");
    checked.success();
    for shell in ["zsh", "fish"] {
        let script = program::outcome("mesonet", mesonet().args(["completions", shell]).output()).success();
        assert!(script.contains("converge"), "{shell}");
    }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

fn task_ids(cluster: &Cluster) -> Vec<String> {
    let tasks = json_of(&cluster.mesonet(&["task", "list", "--json"]).success());
    let tasks = tasks.as_array().expect("list").iter();
    tasks.map(|task| task["id"].as_str().expect("id").to_owned()).collect()
}

/// The sandbox of a task: the directory that its processes work in.
fn sandbox_of(cluster: &Cluster, task: &str) -> Option<std::path::PathBuf> {
    let pids = crate::harness::process::working_in(&cluster.dir());
    let mut dirs = pids.iter().filter_map(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).ok());
    dirs.find(|dir| dir.starts_with(cluster.dir()) && dir.to_string_lossy().contains(task))
}

#[test]
fn an_app_in_a_network_that_there_is_not_says_so_while_it_waits() {
    let cluster = Cluster::start();
    let app = json!({
        "id": "/lost", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 32,
        "networks": [{ "mode": "container", "name": "blu" }],
        "container": { "type": "MESOS", "portMappings": [] },
    });
    program::run_with_input(&mut cluster.command(&["app", "add", "-", "--no-wait"]), &app.to_string())
        .success();
    eventually("it says what is missing", || {
        let shown = cluster.mesonet(&["app", "show", "lost"]).success();
        if shown.contains("there is no virtual network blu") { Ok(()) } else { Err(shown) }
    });
}
