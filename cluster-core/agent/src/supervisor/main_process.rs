//! Starts the task's main process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use thiserror::Error;

use super::network::NetworkError;
use super::output::{Pump, RotatingFile};
use super::signals;
use super::user::{self, UserError};
use crate::protocol::Launch;

/// What runs lines.
const SHELL: &str = "/bin/sh";

/// What a started task is watched by.
#[derive(Debug)]
pub(super) struct MainProcess {
    pub(super) pid: Pid,
    pub(super) outputs: Vec<Pump>,
}

/// The task's program cannot be started. Nothing of it runs.
#[derive(Debug, Error)]
pub(super) enum StartTaskError {
    #[error("the command has neither a shell line nor arguments")]
    NoCommand,
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Network(NetworkError),
    #[error("cannot use sandbox {}", path.display())]
    Sandbox { path: PathBuf, source: io::Error },
    #[error("cannot use control group {}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("cannot execute '{program}'")]
    Execute { program: String, source: io::Error },
}

/// Starts the program of a launch. Returns once the program runs, not merely a process that is going to become it.
pub(super) fn start(launch: &Launch) -> Result<MainProcess, StartTaskError> {
    let at_sandbox = |source| StartTaskError::Sandbox { path: launch.sandbox.clone(), source };
    if let Some(identity) = user::identity_for(launch.spec.command.user.as_deref())? {
        std::os::unix::fs::chown(&launch.sandbox, Some(identity.uid), Some(identity.gid))
            .map_err(at_sandbox)?;
    }
    let stdout = RotatingFile::create(launch.sandbox.join("stdout"), launch.logs).map_err(at_sandbox)?;
    let stderr = RotatingFile::create(launch.sandbox.join("stderr"), launch.logs).map_err(at_sandbox)?;

    let (program, mut command) = command(launch)?;
    put_in_place(&mut command, launch)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| StartTaskError::Execute { program, source })?;
    let outputs = pumps(&mut child, [stdout, stderr]).map_err(at_sandbox)?;
    Ok(MainProcess { pid: Pid::from_child(&child), outputs })
}

/// Starts a shell with a line beside the main process, where that is and as whom it runs. Its output goes nowhere.
pub(super) fn start_beside(launch: &Launch, line: &str) -> Result<Pid, StartTaskError> {
    let mut command = Command::new(SHELL);
    command.arg("-c").arg(line);
    put_in_place(&mut command, launch)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child =
        command.spawn().map_err(|source| StartTaskError::Execute { program: SHELL.to_owned(), source })?;
    Ok(Pid::from_child(&child))
}

/// Gives a command the task's environment, directory, user, control groups and a process group of its own.
fn put_in_place(command: &mut Command, launch: &Launch) -> Result<(), StartTaskError> {
    let identity = user::identity_for(launch.spec.command.user.as_deref())?;
    let groups = open_groups(&launch.cgroups)?;
    command
        .env_clear()
        .envs(&launch.environment)
        .current_dir(&launch.sandbox)
        .process_group(0)
        .stdin(Stdio::null());
    let supervisor = rustix::process::getpid();
    let open_files = launch.open_files;
    let prepare = move || {
        signals::reset_in_child();
        if open_files.is_some() {
            limit_open_files(open_files)?;
        }
        for group in &groups {
            rustix::io::write(group, b"0")?;
        }
        if let Some(identity) = &identity {
            identity.assume()?;
        }
        // Changing the user clears the death signal, so it comes after. A supervisor that died before has sent none.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() {
            Some(parent) if parent == supervisor => Ok(()),
            _ => Err(io::Error::from(rustix::io::Errno::SRCH)),
        }
    };
    // SAFETY: this process has one thread, and the closure makes system calls only; it allocates nothing, since its
    // errors are plain numbers.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

/// Sets the soft limit, as far as the hard one lets.
fn limit_open_files(soft: Option<u64>) -> rustix::io::Result<()> {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let current = soft.map(|soft| maximum.map_or(soft, |maximum| soft.min(maximum)));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum })
}

fn command(launch: &Launch) -> Result<(String, Command), StartTaskError> {
    let description = &launch.spec.command;
    if let Some(line) = &description.shell {
        let mut command = Command::new(SHELL);
        command.arg("-c").arg(line);
        return Ok((SHELL.to_owned(), command));
    }
    let (program, arguments) = description.arguments.split_first().ok_or(StartTaskError::NoCommand)?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok((program.clone(), command))
}

/// Opens the groups for the new process to enter by itself, so that nothing of it is ever outside.
fn open_groups(groups: &[PathBuf]) -> Result<Vec<File>, StartTaskError> {
    let open = |group: &PathBuf| {
        let path = group.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path);
        file.map_err(|source| StartTaskError::Cgroup { path, source })
    };
    groups.iter().map(open).collect()
}

fn pumps(child: &mut Child, files: [RotatingFile; 2]) -> io::Result<Vec<Pump>> {
    let [stdout, stderr] = files;
    let pipes =
        [(child.stdout.take().map(OwnedFd::from), stdout), (child.stderr.take().map(OwnedFd::from), stderr)];
    pipes.into_iter().filter_map(|(pipe, file)| Some(Pump::new(pipe?, file))).collect()
}
