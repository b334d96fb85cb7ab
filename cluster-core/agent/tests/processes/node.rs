//! An agent under test, with the master's side of its channels.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mesonet_agent::{AgentMetrics, CgroupMode, Config, LogLimits};
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, FrameworkId, Resources, RunningTask, Scalar, TaskId, TaskKey,
    TaskSpec, TaskState, TaskStatus,
};
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Until then something must have happened. Generous, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running agent.
pub struct Node {
    pub directory: PathBuf,
    runtime: Runtime,
    commands: mpsc::Sender<AgentCommand>,
    reports: mpsc::Receiver<AgentReport>,
    /// What it registered with.
    pub registered: Vec<RunningTask>,
    pub registered_id: Option<AgentId>,
    /// Kills what the test leaves, at the end of the test.
    owner: bool,
}

/// Settings for tests.
pub fn config(directory: &Path) -> Config {
    let program = std::env::current_exe().expect("path of this program");
    Config {
        dir: directory.to_path_buf(),
        hostname: "host.test".to_owned(),
        address: [127, 0, 0, 1].into(),
        places: None,
        resources: Resources::default(),
        attributes: Vec::new(),
        supervisor: vec![program.to_string_lossy().into_owned(), "supervise".to_owned()],
        logs: LogLimits::default(),
        port: 0,
        cgroups: CgroupMode::Off,
        open_files: None,
        container_dns: [198, 51, 100, 1].into(),
        tasks_end_with_agent: false,
        metrics: AgentMetrics::register(&Registry::new()).expect("nothing has their names"),
    }
}

/// Settings for tests that look at what is counted, and where it is shown.
pub fn counted(directory: &Path) -> (Config, Registry) {
    let registry = Registry::new();
    let metrics = AgentMetrics::register(&registry).expect("nothing has their names");
    (Config { metrics, ..config(directory) }, registry)
}

/// What is shown under a name and with the values of its labels, in the order of the labels' names.
pub fn shown(registry: &Registry, name: &str, labels: &[&str]) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).expect(name);
    let is_wanted = |metric: &&prometheus::proto::Metric| {
        metric.get_label().iter().map(|label| label.value()).eq(labels.iter().copied())
    };
    let metric = family.get_metric().iter().find(is_wanted).unwrap_or_else(|| panic!("{name} {labels:?}"));
    metric.get_counter().get_value() + metric.get_gauge().get_value()
}

/// A task that runs a shell line.
pub fn shell(task: &str, line: &str) -> TaskSpec {
    TaskSpec {
        key: TaskKey::new(FrameworkId::new("framework-1"), TaskId::new(task)),
        name: task.to_owned(),
        agent: AgentId::new("cluster-S0"),
        resources: Resources { cpus: Scalar::from_f64(0.1), ..Resources::default() },
        command: mesonet_model::Command { shell: Some(line.to_owned()), ..mesonet_model::Command::default() },
        image: None,
        discovery: None,
        labels: BTreeMap::new(),
        health_checked: false,
        health_checks: Vec::new(),
        readiness_check: None,
        kill_grace: Duration::from_secs(20),
        networking: None,
    }
}

/// Waits until something is there.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and has not ended.
pub fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Ends a process at once.
pub fn kill_9(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kills");
}

impl Node {
    pub fn start(directory: &Path) -> Self {
        Self::with(config(directory))
    }

    pub fn with(config: Config) -> Self {
        let directory = config.dir.clone();
        let runtime = Runtime::new().expect("runtime");
        let (commands, commands_receiver) = mpsc::channel(64);
        let (reports_sender, reports) = mpsc::channel(64);
        runtime.block_on(mesonet_agent::start(config, commands_receiver, reports_sender)).expect("starts");
        let mut node = Self {
            directory,
            runtime,
            commands,
            reports,
            registered: Vec::new(),
            registered_id: None,
            owner: true,
        };
        match node.report("a registration") {
            AgentReport::Register { agent, tasks, .. } => {
                node.registered = tasks;
                node.registered_id = agent;
            }
            other => panic!("{other:?} comes before the registration"),
        }
        node
    }

    /// Ends the agent as the end of its process would, but for the process.
    pub fn stop(mut self) {
        self.owner = false;
    }

    pub fn send(&self, command: AgentCommand) {
        self.runtime.block_on(self.commands.send(command)).expect("the agent listens");
    }

    pub fn launch(&self, spec: &TaskSpec) {
        self.send(AgentCommand::Launch(Box::new(spec.clone())));
    }

    pub fn kill(&self, spec: &TaskSpec) {
        self.send(AgentCommand::Kill { task: spec.key.clone(), grace: None });
    }

    /// Where it says that it is when it registers again.
    pub fn next_place(&mut self) -> (IpAddr, String) {
        loop {
            match self.report("a registration") {
                AgentReport::Register { info, .. } => return (info.address, info.hostname),
                AgentReport::Status(status) => self.acknowledge(&status),
                other => panic!("{other:?} instead of a registration"),
            }
        }
    }

    fn report(&mut self, what: &str) -> AgentReport {
        let report =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.reports.recv()).await });
        report.unwrap_or_else(|_| panic!("waited in vain for {what}")).expect("the agent speaks")
    }

    /// The next status, not acknowledged.
    pub fn next_status(&mut self, what: &str) -> TaskStatus {
        match self.report(what) {
            AgentReport::Status(status) => *status,
            other => panic!("{other:?} instead of {what}"),
        }
    }

    pub fn acknowledge(&self, status: &TaskStatus) {
        if let Some(uuid) = status.uuid {
            self.send(AgentCommand::Acknowledge { task: status.task.clone(), uuid });
        }
    }

    /// Acknowledges statuses of a task up to one with this state.
    pub fn until(&mut self, spec: &TaskSpec, state: TaskState) -> TaskStatus {
        loop {
            let status = self.next_status(state.as_str());
            self.acknowledge(&status);
            if status.task == spec.key && status.state == state {
                return status;
            }
            assert!(!status.state.is_terminal(), "{status:?} instead of {state}");
        }
    }

    /// Launches a task, waits for its end and returns all of its statuses.
    pub fn run(&mut self, spec: &TaskSpec) -> Vec<TaskStatus> {
        self.launch(spec);
        let mut statuses: Vec<TaskStatus> = Vec::new();
        while !statuses.last().is_some_and(|status| status.state.is_terminal()) {
            let status = self.next_status("the end of the task");
            self.acknowledge(&status);
            statuses.push(status);
        }
        statuses
    }

    pub fn sandbox(&self, spec: &TaskSpec) -> PathBuf {
        let TaskKey { framework, task } = &spec.key;
        let agent = &spec.agent;
        self.directory.join(format!("slaves/{agent}/frameworks/{framework}/executors/{task}/runs/latest"))
    }

    pub fn stdout(&self, spec: &TaskSpec) -> String {
        fs::read_to_string(self.sandbox(spec).join("stdout")).unwrap_or_default()
    }

    /// The first number in a file of the task's sandbox.
    pub fn number(&self, spec: &TaskSpec, file: &str) -> i32 {
        let path = self.sandbox(spec).join(file);
        wait_for(file, || {
            let text = fs::read_to_string(&path).ok()?;
            text.ends_with('\n').then(|| text.trim().parse().ok()).flatten()
        })
    }

    pub fn checkpoint(&self, spec: &TaskSpec) -> PathBuf {
        let TaskKey { framework, task } = &spec.key;
        self.directory.join(format!("meta/tasks/{framework}/{task}"))
    }

    pub fn supervisor(&self, spec: &TaskSpec) -> i32 {
        let text = fs::read_to_string(self.checkpoint(spec).join("supervisor")).expect("reads");
        text.trim().parse().expect("a process id")
    }
}

impl Drop for Node {
    /// A failed test must not leave processes: the main process of a task dies with its supervisor.
    fn drop(&mut self) {
        if !self.owner {
            return;
        }
        let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        for task in list(&self.directory.join("meta/tasks"))
            .flat_map(|framework| list(&framework).collect::<Vec<_>>())
        {
            let pid =
                fs::read_to_string(task.join("supervisor")).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

// === An agent in a process of its own ===

/// Starts an agent as a process, with one task.
pub fn spawn_agent(directory: &Path, spec: &TaskSpec) -> (Child, Vec<TaskState>) {
    let mut child = Command::new(std::env::current_exe().expect("path of this program"))
        .args(["agent".as_ref(), directory.as_os_str()])
        .arg(serde_json::to_string(spec).expect("encodes"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut states = Vec::new();
    let output = BufReader::new(child.stdout.take().expect("piped"));
    for line in output.lines() {
        let status: TaskStatus = serde_json::from_str(&line.expect("reads")).expect("decodes");
        states.push(status.state);
        if status.state == TaskState::Running {
            break;
        }
    }
    (child, states)
}

/// What that process does: it launches the task, acknowledges nothing and prints every status.
pub fn run_agent(directory: &Path, spec: &str) -> ExitCode {
    let spec: TaskSpec = serde_json::from_str(spec).expect("decodes");
    let mut node = Node::start(directory);
    node.owner = false;
    node.launch(&spec);
    loop {
        let status = node.next_status("a status");
        println!("{}", serde_json::to_string(&status).expect("encodes"));
    }
}
