//! Takes up what an earlier agent has left in the work directory.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use mesonet_model::{TaskKey, TaskState, UuidSource};

use crate::addresses::Addresses;
use crate::agent::Agent;
use crate::cgroup::Hierarchies;
use crate::checkpoint::{self, FileError};
use crate::ended::EndedTasks;
use crate::health::Probes;
use crate::joined::Joined;
use crate::layout::{LAUNCH_FILE, Layout, STATUSES_FILE};
use crate::link::Notice;
use crate::listening::HostListeners;
use crate::protocol::Launch;
use crate::status_queue::StatusQueue;
use crate::task::{AgentTask, Finding, Run};
use crate::{Config, StartError, clock, rights};

const LOCK_FILE: &str = "meta/lock";

/// How long a directory that is in use is waited for. An agent that was killed while it started a supervisor is gone,
/// but the new process has the lock until it runs its own program.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether the directory is free.
const LOCK_TICK: Duration = Duration::from_millis(10);

/// An agent as its directory has it, connected to the supervisors that live.
pub(crate) fn recover(
    config: Config,
    notices: tokio::sync::mpsc::Sender<Notice>,
) -> Result<Agent, StartError> {
    let layout = open_directory(&config.dir)?;
    let lock = lock(&layout)?;
    let id = checkpoint::read(&layout.agent_file())?;
    let mut uuids = UuidSource::from_seed(seed()?);
    let mut tasks = std::collections::BTreeMap::new();
    for directory in layout.checkpoints_there()? {
        match read_task(&directory, &mut uuids) {
            Ok(Some(task)) => {
                tasks.insert(task.spec.key.clone(), task);
            }
            Ok(None) => discard(&directory),
            Err(error) => {
                tracing::error!(error = checkpoint::in_full(&error), "A task's checkpoint is discarded");
                discard(&directory);
            }
        }
    }
    let hierarchies = Hierarchies::detect(&config.cgroups);
    hierarchies.sweep(std::time::SystemTime::now());
    let ended = EndedTasks::default();
    let outbox = std::collections::VecDeque::new();
    let lacking = rights::lacking();
    if !lacking.is_empty() {
        tracing::info!(lacking, "Tasks cannot have addresses of their own, for want of rights");
    }
    let addresses = addresses_of(&tasks);
    let mut agent = Agent {
        config,
        layout,
        _lock: lock,
        id,
        hierarchies,
        uuids,
        tasks,
        ended,
        outbox,
        notices,
        addresses,
        lacking,
        probes: Probes::new(),
        listeners: HostListeners::default(),
        joined: Joined::default(),
    };
    let unfinished: Vec<TaskKey> = agent
        .tasks
        .iter()
        .filter(|(_, task)| !task.statuses.latest().state.is_terminal())
        .map(|(key, _)| key.clone())
        .collect();
    tracing::info!(tasks = unfinished.len(), "The agent takes up tasks");
    unfinished.iter().for_each(|key| agent.reconnect(key));
    // What was found goes out with the registration, where every status that is pending is sent.
    agent.outbox.clear();
    Ok(agent)
}

/// The addresses that tasks which have not ended have.
fn addresses_of(tasks: &std::collections::BTreeMap<TaskKey, AgentTask>) -> Addresses {
    let mut addresses = Addresses::default();
    let living = tasks.values().filter(|task| !task.statuses.latest().state.is_terminal());
    for run in living.filter_map(|task| task.run.as_ref()) {
        let of_run = run.launch.network.iter().flat_map(|network| network.addresses());
        of_run.for_each(|address| addresses.restore(address, run.launch.container));
    }
    addresses
}

/// Makes the work directory, and its path absolute, since supervisors run elsewhere.
fn open_directory(directory: &Path) -> Result<Layout, StartError> {
    checkpoint::create_directory(directory, 0o711)?;
    let absolute = fs::canonicalize(directory).map_err(FileError::at("find", directory))?;
    let layout = Layout::new(&absolute);
    checkpoint::create_directory(&layout.dir().join("meta"), 0o700)?;
    checkpoint::create_directory(&layout.checkpoints(), 0o700)?;
    checkpoint::create_directory(&layout.agents(), 0o711)?;
    Ok(layout)
}

fn lock(layout: &Layout) -> Result<File, StartError> {
    let path = layout.dir().join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(FileError::at("open", &path))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_TICK),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StartError::InUse { directory: layout.dir().to_path_buf() });
            }
            Err(fs::TryLockError::Error(source)) => return Err(FileError::at("lock", &path)(source).into()),
        }
    }
}

fn seed() -> Result<u64, StartError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(FileError::at("read", path))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// What is written down of a task; `None` if there is nothing to be done about it any more.
fn read_task(directory: &Path, uuids: &mut UuidSource) -> Result<Option<AgentTask>, FileError> {
    let Some(launch) = checkpoint::read::<Launch>(&directory.join(LAUNCH_FILE))? else { return Ok(None) };
    let first = |uuids: &mut UuidSource| {
        let finding = Finding::step(TaskState::Starting, clock::now());
        StatusQueue::new(finding.status(&launch.spec, Some(uuids.next_uuid())), Instant::now())
    };
    let statuses = match checkpoint::read::<StatusQueue>(&directory.join(STATUSES_FILE)) {
        Ok(Some(statuses)) => statuses,
        Ok(None) => first(uuids),
        Err(error) => {
            tracing::warn!(error = checkpoint::in_full(&error), "The statuses of a task are made anew");
            first(uuids)
        }
    };
    if statuses.is_settled() {
        return Ok(None);
    }
    let spec = launch.spec.clone();
    Ok(Some(AgentTask {
        spec,
        statuses,
        run: Some(Run { launch, link: None, supervisor: None, watch: None, lookout: None }),
    }))
}

fn discard(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(%error, directory = %directory.display(), "Cannot remove a checkpoint");
    }
}
