//! What is promised of tasks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mesonet_agent::{LogLimits, ReadSandboxError, StartError, read_sandbox};
use mesonet_model::{AgentCommand, AgentId, StatusReason, TaskState, TaskStatus};
use rustix::process::Signal;

use crate::Case;
use crate::node::{self, Node, is_alive, kill_9, shell, wait_for};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// What needs no rights.
        pub const ALL: &[Case] = &[$((stringify!($name), None, $name)),*];
    };
}

cases![
    a_task_runs_and_finishes,
    a_failure_has_its_exit_status,
    a_missing_program_is_named,
    arguments_are_passed_as_they_are,
    the_environment_is_the_frameworks_and_little_more,
    sigterm_gives_time_to_end,
    children_of_a_shell_get_the_same_time,
    sigkill_follows_the_grace,
    nothing_is_left_of_a_task,
    a_killed_agent_leaves_its_tasks_running,
    an_end_without_agent_is_delivered,
    a_killed_supervisor_takes_everything_along,
    output_is_bounded,
    tasks_have_their_own_limit_on_open_files,
    ids_that_could_leave_the_sandbox_are_refused,
    what_the_agent_cannot_run_is_refused,
    statuses_are_repeated_by_the_next_agent,
    commands_may_arrive_twice,
    the_agents_id_is_kept,
    a_directory_that_is_about_to_be_free_is_waited_for,
    a_directory_has_one_agent,
    a_full_disk_fails_the_launch_alone,
    secrets_are_private,
    sandboxes_are_read_and_not_left,
    signals_to_a_supervisor_do_not_end_its_task,
    a_process_that_cleared_its_environment_does_not_escape_a_living_supervisor,
];

pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

fn states(statuses: &[TaskStatus]) -> Vec<TaskState> {
    statuses.iter().map(|status| status.state).collect()
}

fn a_task_runs_and_finishes() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "echo out; echo err >&2; pwd");
    let statuses = node.run(&spec);
    let expected = [TaskState::Starting, TaskState::Running, TaskState::Finished];
    assert_eq!(states(&statuses), expected, "{statuses:?}");
    assert!(statuses.iter().all(|status| status.agent == Some(spec.agent.clone()) && status.uuid.is_some()));

    let sandbox = fs::canonicalize(node.sandbox(&spec)).expect("exists");
    assert_eq!(node.stdout(&spec), format!("out\n{}\n", sandbox.display()));
    assert_eq!(fs::read_to_string(sandbox.join("stderr")).expect("reads"), "err\n");
    wait_for("the checkpoint to go", || (!node.checkpoint(&spec).exists()).then_some(()));
}

fn a_failure_has_its_exit_status() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    for (task, line, message) in [
        ("t1", "exit 3", "Command exited with status 3"),
        ("t2", "kill -9 $$", "Command terminated with signal Killed"),
    ] {
        let statuses = node.run(&shell(task, line));
        let last = statuses.last().expect("ended");
        assert_eq!((last.state, last.message.as_str()), (TaskState::Failed, message));
        assert_eq!(last.reason, Some(StatusReason::ReasonCommandExecutorFailed));
    }
}

fn a_missing_program_is_named() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = shell("t1", "");
    spec.command.shell = None;
    spec.command.arguments = vec!["/no/such/program".to_owned()];
    let statuses = node.run(&spec);
    assert_eq!(states(&statuses), [TaskState::Starting, TaskState::Failed]);
    let last = statuses.last().expect("ended");
    assert_eq!(last.reason, Some(StatusReason::ReasonContainerLaunchFailed));
    assert_eq!(last.message, "cannot execute '/no/such/program': No such file or directory (os error 2)");
}

fn arguments_are_passed_as_they_are() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = shell("t1", "");
    spec.command.shell = None;
    spec.command.arguments = ["printf", "%s|", "a b", "$HOME", ""].map(str::to_owned).to_vec();
    assert_eq!(node.run(&spec).last().expect("ended").state, TaskState::Finished);
    assert_eq!(node.stdout(&spec), "a b|$HOME||");
}

fn the_environment_is_the_frameworks_and_little_more() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = shell("t1", "");
    spec.command.shell = None;
    spec.command.arguments = vec!["env".to_owned()];
    spec.command.environment =
        [("PORT0", "31000"), ("HOST", "mine")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    node.run(&spec);
    let sandbox = fs::canonicalize(node.sandbox(&spec)).expect("exists");
    let mut lines: Vec<String> = node.stdout(&spec).lines().map(str::to_owned).collect();
    lines.sort();
    let path = format!("PATH={}", std::env::var("PATH").expect("a path"));
    let expected = [
        "HOST=mine".to_owned(),
        "MESOS_AGENT_ID=cluster-S0".to_owned(),
        format!("MESOS_DIRECTORY={}", sandbox.display()),
        "MESOS_EXECUTOR_ID=t1".to_owned(),
        "MESOS_FRAMEWORK_ID=framework-1".to_owned(),
        format!("MESOS_SANDBOX={}", sandbox.display()),
        "MESOS_SLAVE_ID=cluster-S0".to_owned(),
        "MESOS_TASK_ID=t1".to_owned(),
        path,
        "PORT0=31000".to_owned(),
    ];
    assert_eq!(lines, expected);
}

fn sigterm_gives_time_to_end() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    wait_for("the trap", || (node.stdout(&spec) == "ready\n").then_some(()));
    node.kill(&spec);
    node.until(&spec, TaskState::Killing);
    let killed = node.until(&spec, TaskState::Killed);
    assert_eq!(killed.message, "Command exited with status 5");
    assert_eq!(node.stdout(&spec), "ready\nbye\n");
}

fn children_of_a_shell_get_the_same_time() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let server = "trap 'sleep 0.3; echo child is done; exit' TERM; echo ready; while :; do sleep 0.05; done";
    let spec = shell("t1", &format!("sh -c \"{server}\"; echo never"));
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    wait_for("the trap", || (node.stdout(&spec) == "ready\n").then_some(()));
    node.kill(&spec);
    node.until(&spec, TaskState::Killed);
    assert_eq!(node.stdout(&spec), "ready\nchild is done\n");
}

fn sigkill_follows_the_grace() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done");
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    let pid = node.number(&spec, "pid");
    let grace = Some(Duration::from_millis(200));
    node.send(AgentCommand::Kill { task: spec.key.clone(), grace });
    let killed = node.until(&spec, TaskState::Killed);
    assert_eq!(killed.message, "Command terminated with signal Killed");
    assert!(!is_alive(pid));
}

/// A daemon has its own session, a parent that has ended, and no signal from the group reaches it.
const DAEMON: &str = "(setsid sh -c 'echo $$ > daemon; exec sleep 1000' &) ; sleep 1000 & echo $! > child;";

fn nothing_is_left_of_a_task() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let ends_itself = shell("t1", &format!("{DAEMON} while ! [ -s daemon ]; do sleep 0.01; done"));
    node.run(&ends_itself);
    let is_killed = shell("t2", &format!("{DAEMON} wait"));
    node.launch(&is_killed);
    node.until(&is_killed, TaskState::Running);
    for file in ["daemon", "child"] {
        assert!(is_alive(node.number(&is_killed, file)));
    }
    node.kill(&is_killed);
    node.until(&is_killed, TaskState::Killed);
    for spec in [ends_itself, is_killed] {
        for file in ["daemon", "child"] {
            assert!(!is_alive(node.number(&spec, file)), "{} of {}", file, spec.key);
        }
    }
}

fn a_killed_agent_leaves_its_tasks_running() {
    let directory = directory();
    let spec = shell("t1", "echo $$ > pid; sleep 1000");
    let (mut agent, states) = node::spawn_agent(directory.path(), &spec);
    assert_eq!(states, [TaskState::Starting, TaskState::Running]);
    agent.kill().expect("kills");
    agent.wait().expect("ends");

    let mut node = Node::start(directory.path());
    let registered: Vec<_> =
        node.registered.iter().map(|task| (task.spec.clone(), task.status.state)).collect();
    assert_eq!(registered, [(spec.clone(), TaskState::Running)]);
    let pid = node.number(&spec, "pid");
    assert!(is_alive(pid));

    node.kill(&spec);
    node.until(&spec, TaskState::Killed);
    assert!(!is_alive(pid));
}

fn an_end_without_agent_is_delivered() {
    let directory = directory();
    let spec = shell("t1", "echo $$ > pid; while ! [ -e end ]; do sleep 0.02; done; exit 4");
    let (mut agent, _) = node::spawn_agent(directory.path(), &spec);
    agent.kill().expect("kills");
    agent.wait().expect("ends");
    let task = directory.path().join("meta/tasks/framework-1/t1");
    let sandbox = directory.path().join("slaves/cluster-S0/frameworks/framework-1/executors/t1/runs/latest");
    fs::write(sandbox.join("end"), "").expect("writes");
    wait_for("the exit record", || task.join("exit.json").exists().then_some(()));

    let mut node = Node::start(directory.path());
    assert_eq!(node.registered.first().map(|task| task.status.state), Some(TaskState::Failed));
    let failed = loop {
        let status = node.next_status("the end");
        node.acknowledge(&status);
        if status.state.is_terminal() {
            break status;
        }
    };
    assert_eq!((failed.state, failed.message.as_str()), (TaskState::Failed, "Command exited with status 4"));
}

fn a_killed_supervisor_takes_everything_along() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", &format!("echo $$ > main; {DAEMON} wait"));
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    let pids = ["main", "daemon", "child"].map(|file| node.number(&spec, file));
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    kill_9(node.supervisor(&spec));
    let failed = node.until(&spec, TaskState::Failed);
    assert_eq!(failed.message, "The task's supervisor ended unexpectedly");
    assert_eq!(pids.map(is_alive), [false; 3]);
}

fn output_is_bounded() {
    let directory = directory();
    let logs = LogLimits { file_bytes: 10_000, old_files: 2 };
    let mut node = Node::with(mesonet_agent::Config { logs, ..node::config(directory.path()) });
    let spec = shell("t1", "i=0; while [ $i -lt 10000 ]; do echo line $i; i=$((i+1)); done");
    assert_eq!(node.run(&spec).last().expect("ended").state, TaskState::Finished);
    let mut files: Vec<String> = fs::read_dir(node.sandbox(&spec))
        .expect("lists")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, ["stderr", "stdout", "stdout.1", "stdout.2"]);
    for file in files {
        assert!(
            fs::metadata(node.sandbox(&spec).join(&file)).expect("exists").len() <= logs.file_bytes,
            "{file}"
        );
    }
    assert!(node.stdout(&spec).ends_with("line 9999\n"));
}

fn tasks_have_their_own_limit_on_open_files() {
    let directory = directory();
    let open_files = Some(77);
    let mut node = Node::with(mesonet_agent::Config { open_files, ..node::config(directory.path()) });
    let spec = shell("t1", "ulimit -Sn; ulimit -Hn");
    assert_eq!(node.run(&spec).last().expect("ended").state, TaskState::Finished);
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let hard = own.map_or("unlimited".to_owned(), |own| own.to_string());
    assert_eq!(node.stdout(&spec), format!("77\n{hard}\n"));
}

fn ids_that_could_leave_the_sandbox_are_refused() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let long = "x".repeat(300);
    for (id, rule) in [
        ("../../escape", "must not contain '/'"),
        ("..", "must not be '.' or '..'"),
        ("a\0b", "control characters"),
        (long.as_str(), "must not be longer than 255 bytes"),
    ] {
        let spec = shell(id, "true");
        let statuses = node.run(&spec);
        assert_eq!(states(&statuses), [TaskState::Error], "{id}");
        assert_eq!(statuses[0].reason, Some(StatusReason::ReasonTaskInvalid));
        assert!(statuses[0].message.contains(rule), "{}", statuses[0].message);
    }
    let mut spec = shell("t1", "true");
    spec.agent = AgentId::new("../x");
    assert_eq!(states(&node.run(&spec)), [TaskState::Error]);
    assert_eq!(fs::read_dir(directory.path().join("slaves")).expect("lists").count(), 0);
}

fn what_the_agent_cannot_run_is_refused() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut image = shell("t1", "true");
    image.image = Some("nginx".to_owned());
    let mut user = shell("t2", "true");
    user.command.user = Some("no-such-user".to_owned());
    let mut nothing = shell("t3", "");
    nothing.command.shell = None;
    for (spec, message) in [
        (image, "this agent cannot run container images, and the task wants 'nginx'"),
        (user, "user 'no-such-user' does not exist on this agent"),
        (nothing, "the command has neither a shell line nor arguments"),
    ] {
        let statuses = node.run(&spec);
        assert_eq!(states(&statuses), [TaskState::Starting, TaskState::Failed]);
        assert_eq!(statuses[1].message, message);
        assert_eq!(statuses[1].reason, Some(StatusReason::ReasonContainerLaunchFailed));
    }
}

fn statuses_are_repeated_by_the_next_agent() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "sleep 1000");
    node.launch(&spec);
    let starting = node.next_status("starting");
    let running = node.next_status("running");
    assert_eq!([starting.state, running.state], [TaskState::Starting, TaskState::Running]);
    node.acknowledge(&starting);
    node.stop();

    let mut node = wait_for("the lock", || start_if_free(directory.path()));
    assert_eq!(node.next_status("running"), running);
    node.acknowledge(&running);
    node.stop();

    let mut node = wait_for("the lock", || start_if_free(directory.path()));
    node.kill(&spec);
    assert_eq!(node.next_status("killing").state, TaskState::Killing);
    node.until(&spec, TaskState::Killed);
}

/// The agent before may still be about to end.
fn start_if_free(directory: &std::path::Path) -> Option<Node> {
    let lock = fs::File::options().write(true).open(directory.join("meta/lock")).expect("opens");
    lock.try_lock().is_ok().then(|| {
        drop(lock);
        Node::start(directory)
    })
}

fn commands_may_arrive_twice() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "echo started; exec sleep 1000");
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    node.launch(&spec);
    assert_eq!(node.next_status("the known state").state, TaskState::Running);
    // Running is said before the shell has come to its first command.
    wait_for("the first line", || (node.stdout(&spec) == "started\n").then_some(()));
    node.kill(&spec);
    node.kill(&spec);
    node.until(&spec, TaskState::Killed);
    node.launch(&spec);
    assert_eq!(node.next_status("the known end").state, TaskState::Killed);
    node.kill(&spec);
    assert_eq!(node.next_status("the known end").state, TaskState::Killed);
    assert_eq!(node.stdout(&spec), "started\n");

    let unknown = shell("unknown", "true");
    node.kill(&unknown);
    let gone = node.next_status("gone");
    assert_eq!((gone.task, gone.state), (unknown.key, TaskState::Gone));
}

fn the_agents_id_is_kept() {
    let directory = directory();
    let node = Node::start(directory.path());
    assert_eq!(node.registered_id, None);
    node.send(AgentCommand::Registered { agent: AgentId::new("cluster-S7") });
    wait_for("the id", || directory.path().join("meta/agent").exists().then_some(()));
    node.stop();
    let node = wait_for("the lock", || start_if_free(directory.path()));
    assert_eq!(node.registered_id, Some(AgentId::new("cluster-S7")));
}

fn a_directory_that_is_about_to_be_free_is_waited_for() {
    let directory = directory();
    drop(Node::start(directory.path()));
    let lock = fs::File::open(directory.path().join("meta/lock")).expect("opens");
    lock.lock().expect("locks");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(lock);
    });
    drop(Node::start(directory.path()));
    ending.join().expect("ended");
}

fn a_directory_has_one_agent() {
    let directory = directory();
    let _node = Node::start(directory.path());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (_commands, receiver) = tokio::sync::mpsc::channel(1);
    let (sender, _reports) = tokio::sync::mpsc::channel(1);
    let second = runtime.block_on(mesonet_agent::start(node::config(directory.path()), receiver, sender));
    assert!(matches!(second, Err(StartError::InUse { .. })));
}

/// A directory that cannot be made fails in the same way as a full disk.
fn a_full_disk_fails_the_launch_alone() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    fs::create_dir(directory.path().join("slaves/cluster-S0")).expect("creates");
    fs::write(directory.path().join("slaves/cluster-S0/frameworks"), "").expect("writes");
    let spec = shell("t1", "true");
    let failed = node.run(&spec).pop().expect("ended");
    assert_eq!(failed.state, TaskState::Failed);
    assert!(failed.message.contains("slaves/cluster-S0/frameworks/framework-1"), "{}", failed.message);

    fs::write(directory.path().join("meta/tasks/blocked"), "").expect("writes");
    let mut spec = shell("t2", "true");
    spec.key.framework = mesonet_model::FrameworkId::new("blocked");
    let failed = node.run(&spec).pop().expect("ended");
    assert_eq!(failed.state, TaskState::Failed);
    assert!(failed.message.contains("meta/tasks/blocked"), "{}", failed.message);

    let mut spec = shell("t3", "true");
    spec.agent = AgentId::new("cluster-S1");
    assert_eq!(node.run(&spec).pop().expect("ended").state, TaskState::Finished);
}

fn secrets_are_private() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "sleep 1000");
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    let mode = |path: &std::path::Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("meta")), 0o700);
    assert_eq!(mode(&node.checkpoint(&spec)), 0o700);
    assert_eq!(mode(&node.checkpoint(&spec).join("launch.json")), 0o600);
    let sandbox = fs::canonicalize(node.sandbox(&spec)).expect("exists");
    assert_eq!(mode(&sandbox), 0o700);
    assert_eq!(mode(&sandbox.join("stdout")), 0o600);
    node.kill(&spec);
    node.until(&spec, TaskState::Killed);
}

fn sandboxes_are_read_and_not_left() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell(
        "t1",
        "printf 0123456789; mkdir sub; echo deep > sub/file; ln -s /etc/passwd absolute; ln -s ../../../.. up; \
         ln -s sub/file inside; mkfifo pipe",
    );
    node.run(&spec);
    let read = |file: &str, offset, length| read_sandbox(directory.path(), &spec.key, file, offset, length);
    let data = |file: &str, offset, length| read(file, Some(offset), length).expect(file).data;
    assert_eq!(data("stdout", 0, None), b"0123456789");
    assert_eq!(data("stdout", 3, Some(4)), b"3456");
    assert_eq!(data("stdout", 8, Some(100)), b"89");
    assert_eq!(data("stdout", 100, Some(100)), b"");
    let size = read("stdout", None, None).expect("size");
    assert_eq!((size.offset, size.data.len()), (10, 0));
    assert_eq!(data("sub/file", 0, None), b"deep\n");
    assert_eq!(data("inside", 0, None), b"deep\n");

    for file in ["absolute", "up/meta/agent", "../latest/stdout", "/etc/passwd"] {
        let error = read(file, Some(0), None).expect_err(file);
        assert!(matches!(error, ReadSandboxError::Outside { .. }), "{file}: {error:?}");
    }
    for file in ["missing", "sub", "pipe", ""] {
        let error = read(file, Some(0), None).expect_err(file);
        assert!(matches!(error, ReadSandboxError::NotFound { .. }), "{file}: {error:?}");
    }
    let mut other = spec.key.clone();
    for task in ["other", "..", "../t1"] {
        other.task = mesonet_model::TaskId::new(task);
        let error = read_sandbox(directory.path(), &other, "stdout", Some(0), None).expect_err("no task");
        assert!(matches!(error, ReadSandboxError::NotFound { .. }), "{error:?}");
    }
}

fn signals_to_a_supervisor_do_not_end_its_task() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", "trap 'echo got a signal' HUP INT TERM; while ! [ -e end ]; do sleep 0.02; done");
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    let supervisor = rustix::process::Pid::from_raw(node.supervisor(&spec)).expect("a process id");
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        rustix::process::kill_process(supervisor, signal).expect("signals");
    }
    fs::write(node.sandbox(&spec).join("end"), "").expect("writes");
    assert_eq!(node.until(&spec, TaskState::Finished).message, "Command exited with status 0");
    assert_eq!(node.stdout(&spec), "");
}

fn a_process_that_cleared_its_environment_does_not_escape_a_living_supervisor() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = shell("t1", CLEAN_DAEMON);
    node.run(&spec);
    assert!(!is_alive(node.number(&spec, "daemon")));
}

/// A daemon that has nothing in common with its task but a control group.
pub const CLEAN_DAEMON: &str = "(setsid env -i /bin/sh -c 'echo $$ > daemon; exec /bin/sleep 1000' &) ; \
    while ! [ -s daemon ]; do sleep 0.01; done;";
