//! Prepares a task's directories and starts its supervisor.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mesonet_model::TaskSpec;
use thiserror::Error;
use uuid::Uuid;

use crate::cgroup::Hierarchies;
use crate::checkpoint::{self, Durability, FileError};
use crate::container_network::ContainerNetwork;
use crate::layout::{self, InvalidId, LATEST, LAUNCH_FILE, Layout};
use crate::protocol::{self, Launch};
use crate::task_networks::PlanNetworkError;
use crate::{Config, environment};

/// What a supervisor has to say when it cannot even begin, in the task's checkpoint.
const SUPERVISOR_ERRORS_FILE: &str = "supervisor.err";

/// Nothing is told about a failed supervisor beyond so many bytes of what it said.
const SUPERVISOR_ERRORS_BYTES: usize = 2048;

/// Directories on the way to sandboxes let others pass, so that a task of another user gets to its own, but not look.
const WAY_MODE: u32 = 0o711;
const PRIVATE_MODE: u32 = 0o700;

/// A task is refused by what it says of itself; no agent like this one can run it.
#[derive(Debug, Error)]
pub(crate) enum RefusedTask {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("the task is for agent '{0}', whose id cannot be the name of a directory")]
    Agent(String),
}

/// A task cannot be started here and at this time.
#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    #[error("this agent cannot run container images, and the task wants '{0}'")]
    Image(String),
    #[error(transparent)]
    Network(#[from] PlanNetworkError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot start the supervisor '{program}'")]
    Supervisor { program: String, source: io::Error },
}

/// Refuses what could harm the agent's own files.
pub(crate) fn check(spec: &TaskSpec) -> Result<(), RefusedTask> {
    layout::check_ids(&spec.key)?;
    layout::check_id("agent", spec.agent.as_str()).map_err(|_| RefusedTask::Agent(spec.agent.to_string()))
}

/// Writes down what is to run, so that it can be recovered from here on.
pub(crate) fn prepare(
    config: &Config,
    layout: &Layout,
    spec: TaskSpec,
    container: Uuid,
    network: Option<ContainerNetwork>,
) -> Result<Launch, LaunchError> {
    let directory = layout.checkpoint(&spec.key);
    let sandbox = layout.sandbox(&spec.agent, &spec.key, container);
    let path = std::env::var("PATH").ok();
    let environment = environment::of_task(&spec, &sandbox, &config.hostname, path);
    let launch = Launch {
        spec,
        container,
        sandbox,
        environment,
        logs: config.logs,
        cgroups: Vec::new(),
        open_files: config.open_files,
        network,
        ends_with_agent: config.tasks_end_with_agent,
    };
    checkpoint::create_directory(&directory, PRIVATE_MODE)?;
    checkpoint::write(&directory.join(LAUNCH_FILE), &launch, Durability::Process)?;
    Ok(launch)
}

/// Makes the sandbox and starts the supervisor of a prepared task. The connection is to a supervisor that is about to
/// begin.
pub(crate) fn start(
    config: &Config,
    layout: &Layout,
    hierarchies: &Hierarchies,
    launch: &mut Launch,
) -> Result<(Child, UnixStream), LaunchError> {
    if let Some(image) = &launch.spec.image {
        return Err(LaunchError::Image(image.clone()));
    }
    let directory = layout.checkpoint(&launch.spec.key);
    create_sandbox(&launch.sandbox)?;
    launch.cgroups = hierarchies.create(launch.container, &launch.spec.resources)?;
    if !launch.cgroups.is_empty() {
        checkpoint::write(&directory.join(LAUNCH_FILE), launch, Durability::Process)?;
    }
    let listener = protocol::listen(&directory).map_err(FileError::at("listen in", &directory))?;
    // Before there is a supervisor: that of a short task may be gone when this process gets to run again.
    let stream = protocol::connect(&directory).map_err(FileError::at("connect to", &directory))?;
    let errors = directory.join(SUPERVISOR_ERRORS_FILE);
    let errors = File::create(&errors).map_err(FileError::at("create", &errors))?;
    let (program, arguments) = config.supervisor.split_first().expect("BUG: checked when the agent started");
    let child = Command::new(program)
        .args(arguments)
        .arg(&directory)
        .env_clear()
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|source| LaunchError::Supervisor { program: program.clone(), source })?;
    Ok((child, stream))
}

fn create_sandbox(sandbox: &Path) -> Result<(), FileError> {
    let runs = sandbox.parent().expect("BUG: a sandbox has a parent");
    checkpoint::create_directory(runs, WAY_MODE)?;
    checkpoint::create_directory(sandbox, PRIVATE_MODE)?;
    let latest = runs.join(LATEST);
    let temporary = runs.join(".latest");
    let name: PathBuf = sandbox.file_name().map(PathBuf::from).unwrap_or_default();
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::at("remove", &temporary)(error));
        }
        Ok(()) | Err(_) => {}
    }
    std::os::unix::fs::symlink(name, &temporary)
        .and_then(|()| fs::rename(&temporary, &latest))
        .map_err(FileError::at("link", &latest))
}

/// What the supervisor of a task has said before it ended unexpectedly.
pub(crate) fn last_words(directory: &Path) -> Option<String> {
    let text = fs::read(directory.join(SUPERVISOR_ERRORS_FILE)).ok()?;
    let text = String::from_utf8_lossy(&text[..text.len().min(SUPERVISOR_ERRORS_BYTES)]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
