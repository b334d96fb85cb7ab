//! The clients that Marathon's users have: the `dcos` command line and the `marathon` library for Python.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, Outcome, app, eventually, program};

/// Where both clients are installed, once for all tests: `MESONET_CLIENTS`, else below `target`.
static CLIENTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("MESONET_CLIENTS").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| root.join("target/clients"));
    let script = root.join("tests/clients/setup.sh");
    let installed = program::outcome("sh", Command::new("sh").arg(script).arg(&dir).output());
    assert_eq!(installed.code, Some(0), "the clients cannot be installed: {}", installed.stderr);
    dir
});

#[test]
fn the_dcos_command_line_runs_an_app() {
    let dcos = Dcos::connect();
    let app = app::idle("/cli", 1);
    dcos.with_input(&["marathon", "app", "add"], &app);
    dcos.cluster.wait_until_deployed();
    let listed = dcos.run(&["marathon", "app", "list"]);
    assert!(listed.lines().any(|line| line.starts_with("/cli") && line.contains("1/1")), "{listed}");
    assert_eq!(dcos.json(&["marathon", "app", "show", "/cli"])["instances"], 1);

    dcos.with_input(&["marathon", "app", "update", "/cli"], &json!({ "env": { "LEVEL": "debug" } }));
    dcos.cluster.wait_until_deployed();
    assert_eq!(dcos.json(&["marathon", "app", "show", "/cli"])["env"]["LEVEL"], "debug");
    let versions = dcos.json(&["marathon", "app", "version", "list", "/cli"]);
    assert_eq!(versions.as_array().map(Vec::len), Some(2), "{versions}");

    dcos.run(&["marathon", "app", "update", "/cli", "instances=3"]);
    dcos.cluster.wait_until_deployed();
    let before = dcos.tasks();
    assert_eq!(before.len(), 3, "{before:?}");

    dcos.run(&["marathon", "app", "restart", "/cli"]);
    dcos.cluster.wait_until_deployed();
    let restarted = dcos.tasks();
    assert!(restarted.iter().all(|task| !before.contains(task)), "{before:?} {restarted:?}");

    dcos.run(&["marathon", "task", "kill", &restarted[0]]);
    eventually("the killed task is replaced", || {
        let tasks = dcos.tasks();
        if tasks.len() == 3 && !tasks.contains(&restarted[0]) { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    dcos.run(&["marathon", "app", "kill", "/cli"]);
    dcos.cluster.wait_until_deployed();
    dcos.run(&["marathon", "app", "stop", "/cli"]);
    dcos.cluster.wait_until_deployed();
    assert_eq!(dcos.tasks().len(), 0);

    dcos.run(&["marathon", "app", "remove", "/cli"]);
    dcos.cluster.wait_until_deployed();
    assert_eq!(dcos.json(&["marathon", "app", "list", "--json"]), json!([]));
    dcos.run(&["marathon", "about"]);
    dcos.run(&["marathon", "ping", "--once"]);
    let unknown = dcos.outcome(&["marathon", "app", "show", "/cli"], None);
    assert!(unknown.failure(1).contains("does not exist"));
}

#[test]
fn the_dcos_command_line_shows_readiness_checks() {
    let dcos = Dcos::connect();
    // Nobody listens on its port.
    let mut late = app::idle("/late", 1);
    late["portDefinitions"] = json!([{ "name": "web", "port": 0 }]);
    late["readinessChecks"] = json!([{ "portName": "web" }]);
    dcos.with_input(&["marathon", "app", "add"], &late);
    eventually("the deployment waits for it", || {
        let deployments = dcos.json(&["marathon", "deployment", "list", "--json"]);
        let results = &deployments[0]["currentActions"][0]["readinessCheckResults"];
        if results[0]["ready"] == json!(false) { Ok(()) } else { Err(deployments.to_string()) }
    });
    let check = dcos.json(&["marathon", "app", "show", "/late"])["readinessChecks"][0].clone();
    assert_eq!((&check["portName"], &check["intervalSeconds"]), (&json!("web"), &json!(30)));
    dcos.run(&["marathon", "app", "remove", "--force", "/late"]);
    dcos.cluster.wait_until_deployed();
}

#[test]
fn the_marathon_library_runs_an_app_and_follows_the_events() {
    let cluster = Cluster::start();
    let script = format!("{}/tests/clients/marathon_life.py", env!("CARGO_MANIFEST_DIR"));
    let python = CLIENTS.join("marathon/bin/python");
    let url = format!("http://{}", cluster.api());
    let outcome = program::outcome("python", Command::new(python).arg(script).arg(url).output());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// The dcos command line, connected to a cluster of its own.
struct Dcos {
    cluster: Cluster,
    config: TempDir,
}

impl Dcos {
    fn connect() -> Self {
        let config = tempfile::tempdir().expect("directory");
        let dcos = Self { cluster: Cluster::start(), config };
        dcos.run(&["cluster", "setup", &format!("http://{}", dcos.cluster.api())]);
        dcos
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        self.outcome(arguments, None).success()
    }

    #[track_caller]
    fn with_input(&self, arguments: &[&str], input: &Value) -> String {
        self.outcome(arguments, Some(input)).success()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
    }

    #[track_caller]
    fn tasks(&self) -> Vec<String> {
        let tasks = self.json(&["marathon", "task", "list", "--json", "/cli"]);
        let tasks = tasks.as_array().expect("list").iter();
        tasks.map(|task| task["id"].as_str().expect("id").to_owned()).collect()
    }

    #[track_caller]
    fn outcome(&self, arguments: &[&str], input: Option<&Value>) -> Outcome {
        let mut command = Command::new(CLIENTS.join("dcos/bin/dcos"));
        command.args(arguments).env("DCOS_DIR", self.config.path()).env("NO_PROXY", "*");
        match input {
            Some(input) => program::run_with_input(&mut command, &input.to_string()),
            None => program::run_with_input(&mut command, ""),
        }
    }
}
