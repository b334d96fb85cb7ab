//! The supervisor's life.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};
use thiserror::Error;

use super::command_checks::CommandChecks;
use super::control::Control;
use super::forward::Forwarding;
use super::main_process::{self, MainProcess, StartTaskError};
use super::name_server::NameServer;
use super::network::Kept;
use super::output::Pump;
use super::signals::Signals;
use super::{network, offspring};
use crate::cgroup;
use crate::checkpoint::{self, Durability, FileError};
use crate::clock;
use crate::layout::{CONTROL_SOCKET, EXIT_FILE, LAUNCH_FILE, SUPERVISOR_FILE};
use crate::protocol::{Event, Exit, ExitCause, Launch, Request};

/// How often an ending task is looked at. The end of a child is signalled; this is for grandchildren, and for
/// children that were missed while they came and went.
const ENDING_TICK: Duration = Duration::from_millis(20);

/// How often a main process that SIGKILL does not end is killed again. Its end is signalled; this is for what it may have
/// in its group since.
const KILL_INTERVAL: Duration = Duration::from_secs(1);

/// From SIGTERM to SIGKILL when the agent has died and the task is to end with it.
const ABANDONED_GRACE_MILLIS: u64 = 2000;

/// How often it is tried to write an exit record for which there was no room.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// After this time, processes that may not be killed (a task may run programs that become root) are left alone.
const UNKILLABLE_PATIENCE: Duration = Duration::from_secs(5);

/// How many pieces of output are read once the task is gone. A pipe holds one; a process outside of the task may have
/// got hold of the pipe's other end and never stop.
const LAST_CHUNKS: usize = 64;

/// A supervisor cannot begin. The agent sees its socket close.
#[derive(Debug, Error)]
enum BeginError {
    #[error("standard input is no listening socket: this command is for the agent only")]
    NoSocket { source: io::Error },
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is no {LAUNCH_FILE} in {}", directory.display())]
    NoLaunch { directory: PathBuf },
}

/// Runs the task whose checkpoint is in the directory, which must be an absolute path, until everything of it has
/// ended. The process must have a single thread, and the control socket that the agent has made as standard input.
pub fn supervise(directory: &Path) -> ExitCode {
    let supervisor =
        begin(directory).inspect_err(|error| eprintln!("mesonet: {}", checkpoint::in_full(error)));
    let Ok(mut supervisor) = supervisor else { return ExitCode::FAILURE };
    while !supervisor.is_done() {
        supervisor.turn();
    }
    ExitCode::SUCCESS
}

fn begin(directory: &Path) -> Result<Supervisor, BeginError> {
    let system = |action| move |source: io::Error| BeginError::System { action, source };
    let signals = Signals::take().map_err(system("take over signals"))?;
    // It is a group leader, hence cannot make a session, if it was started by hand from a shell.
    let _ = rustix::process::setsid();
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .map_err(|error| system("become the parent of orphans")(error.into()))?;
    std::env::set_current_dir("/").map_err(system("leave the current directory"))?;

    let control = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|socket| Control::new(UnixListener::from(socket)))
        .map_err(|source| BeginError::NoSocket { source })?;
    let pid_file = directory.join(SUPERVISOR_FILE);
    fs::write(&pid_file, format!("{}\n", own.as_raw_nonzero())).map_err(FileError::at("write", &pid_file))?;
    let launch: Launch = checkpoint::read(&directory.join(LAUNCH_FILE))?
        .ok_or_else(|| BeginError::NoLaunch { directory: directory.to_path_buf() })?;
    Ok(Supervisor::start(directory.to_path_buf(), launch, signals, control))
}

struct Supervisor {
    directory: PathBuf,
    launch: Launch,
    signals: Signals,
    control: Control,
    outputs: Vec<Pump>,
    checks: CommandChecks,
    /// What leads from ports of the node to the task.
    forwarding: Option<Forwarding>,
    /// Of a task with a network of its own.
    name_server: Option<NameServer>,
    phase: Phase,
    /// When the grace of a kill ends.
    kill_at: Option<Instant>,
    /// When the main process was killed last after that.
    killed_at: Option<Instant>,
    /// Since when nothing that is left may be killed.
    unkillable_since: Option<Instant>,
}

/// What a wait has ended with.
struct Ready {
    /// Which of the outputs have something.
    outputs: Vec<bool>,
    /// Whether the mounts of the namespace have changed.
    mounts: bool,
}

#[derive(Debug)]
enum Phase {
    /// The main process runs.
    Running { main: Pid },
    /// The main process has ended.
    Ending { main: Pid, cause: ExitCause },
    /// Nothing is left of the task.
    Ended { exit: Exit, retry_at: Instant },
    /// The record of it is written.
    Recorded,
}

impl Supervisor {
    fn start(directory: PathBuf, launch: Launch, signals: Signals, control: Control) -> Self {
        let started = network::set_up(&launch, &directory)
            .map_err(StartTaskError::Network)
            .and_then(|kept| Ok((main_process::start(&launch)?, kept)));
        let mut supervisor = Self {
            directory,
            launch,
            signals,
            control,
            outputs: Vec::new(),
            checks: CommandChecks::default(),
            forwarding: None,
            name_server: None,
            phase: Phase::Recorded,
            kill_at: None,
            killed_at: None,
            unkillable_since: None,
        };
        match started {
            Ok((MainProcess { pid, outputs }, Kept { forwarding, name_server })) => {
                supervisor.name_server = name_server;
                supervisor.outputs = outputs;
                supervisor.forwarding = forwarding;
                supervisor.phase = Phase::Running { main: pid };
            }
            Err(error) => supervisor.end(ExitCause::NotStarted(checkpoint::in_full(&error))),
        }
        supervisor
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Recorded)
    }

    /// Waits for something to happen and deals with it. A kill goes first, output last.
    fn turn(&mut self) {
        let Ready { outputs: ready, mounts } = self.wait();
        self.signals.clear();
        let state = self.state();
        self.control.accept(state.as_ref());
        for request in self.control.requests() {
            self.handle(&request);
        }
        if self.launch.ends_with_agent && self.kill_at.is_none() && self.control.is_abandoned() {
            self.handle(&Request::Kill { grace_millis: ABANDONED_GRACE_MILLIS });
        }
        self.look_after_processes();
        if let Some(name_server) = &mut self.name_server
            && (mounts || name_server.next_wake().is_some_and(|wake| wake <= Instant::now()))
        {
            name_server.keep_in_place();
        }
        let mut index = 0;
        self.outputs.retain_mut(|output| {
            index += 1;
            !ready.get(index - 1).copied().unwrap_or(false) || output.copy_turn()
        });
        self.record();
    }

    /// Waits until something is ready, or something is due.
    fn wait(&self) -> Ready {
        let others = std::iter::once(self.signals.as_fd()).chain(self.control.descriptors());
        let outputs = self.outputs.iter().map(|output| output.as_fd());
        let mut descriptors: Vec<PollFd<'_>> = outputs
            .chain(others)
            .map(|descriptor: BorrowedFd<'_>| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .chain(self.name_server.iter().map(|each| PollFd::new(each, PollFlags::PRI)))
            .collect();
        let timeout = self.next_wake().map(|wake| {
            // Rounded up, since waking too early means waking twice.
            let left = wake.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // An interrupted wait looks at everything, as any other does.
        let _ = rustix::event::poll(&mut descriptors, timeout.as_ref());
        let mut ready = descriptors.iter().map(|polled| !polled.revents().is_empty());
        Ready {
            outputs: ready.by_ref().take(self.outputs.len()).collect(),
            mounts: self.name_server.is_some() && ready.next_back().unwrap_or(false),
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running { .. } => {
                let forwarding = self.forwarding.as_ref().and_then(Forwarding::next_wake);
                let name_server = self.name_server.as_ref().and_then(NameServer::next_wake);
                let others = self.checks.next_wake().into_iter().chain(forwarding).chain(name_server);
                next_kill(self.kill_at, self.killed_at).into_iter().chain(others).min()
            }
            Phase::Ending { .. } => Some(Instant::now() + ENDING_TICK),
            Phase::Ended { retry_at, .. } => Some(*retry_at),
            Phase::Recorded => None,
        }
    }

    /// What someone who connects should know.
    fn state(&self) -> Option<Event> {
        match &self.phase {
            Phase::Running { main } | Phase::Ending { main, .. } => {
                Some(Event::Running { pid: main.as_raw_nonzero().get() })
            }
            Phase::Ended { exit, .. } => Some(Event::Ended(exit.clone())),
            Phase::Recorded => None,
        }
    }

    fn handle(&mut self, request: &Request) {
        match request {
            Request::Kill { grace_millis } => self.kill(Duration::from_millis(*grace_millis)),
            Request::Check { id, check } => {
                if let Phase::Running { .. } = self.phase
                    && let Some(event) = self.checks.start(&self.launch, *id, *check, Instant::now())
                {
                    self.control.tell(&event);
                }
            }
        }
    }

    fn kill(&mut self, grace: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now);
        if self.kill_at.is_none()
            && let Phase::Running { main } = self.phase
        {
            offspring::signal_group(main, Signal::TERM);
        }
        self.kill_at = Some(self.kill_at.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    fn look_after_processes(&mut self) {
        let grace_is_over = self.kill_at.is_some_and(|kill_at| kill_at <= Instant::now());
        let is_in_grace = self.kill_at.is_some() && !grace_is_over;
        match &self.phase {
            Phase::Running { main } => {
                let main = *main;
                // The group is killed while its leader is not yet reaped and its number cannot mean another one.
                if grace_is_over || (!is_in_grace && offspring::has_ended(main)) {
                    offspring::signal_group(main, Signal::KILL);
                    self.killed_at = grace_is_over.then(Instant::now);
                }
                let late = self.checks.end_late(Instant::now());
                let reaped = offspring::reap(main);
                if reaped.main.is_none() {
                    self.renew_forwarding(&reaped.others);
                }
                let ended = self.checks.take_ended(reaped.others);
                late.iter().chain(&ended).for_each(|event| self.control.tell(event));
                if let Some(cause) = reaped.main {
                    self.forwarding = None;
                    self.phase = Phase::Ending { main, cause };
                    self.finish_processes(main, is_in_grace);
                }
            }
            Phase::Ending { main, .. } => self.finish_processes(*main, is_in_grace),
            Phase::Ended { .. } | Phase::Recorded => {}
        }
    }

    /// Goes on to forward ports, and says what has happened once somebody listens.
    fn renew_forwarding(&mut self, ended: &[(Pid, ExitCause)]) {
        let Some(forwarding) = &mut self.forwarding else { return };
        forwarding.renew(ended, Instant::now());
        if self.control.is_connected()
            && let Some(cause) = forwarding.take_ended()
        {
            self.control.tell(&Event::ForwarderEnded { cause });
        }
    }

    /// Ends what the main process has left behind. What has got its SIGTERM has until the end of the grace.
    fn finish_processes(&mut self, main: Pid, is_in_grace: bool) {
        let mut none_left = offspring::reap(main).none_left;
        let may_still_end = is_in_grace && offspring::group_is_alive(main);
        if !none_left && !may_still_end {
            cgroup::kill(&self.launch.cgroups);
            let since = self.unkillable_since.take();
            if offspring::kill_children() {
                self.unkillable_since = since.or(Some(Instant::now()));
            }
            none_left = offspring::reap(main).none_left;
        }
        let gave_up = self.unkillable_since.is_some_and(|since| since.elapsed() >= UNKILLABLE_PATIENCE);
        if (none_left || gave_up)
            && let Phase::Ending { cause, .. } = &self.phase
        {
            self.end(cause.clone());
        }
    }

    /// Nothing is left: saves the last output and makes the exit known.
    fn end(&mut self, cause: ExitCause) {
        for output in &mut self.outputs {
            output.copy(LAST_CHUNKS);
        }
        self.outputs.clear();
        let exit = Exit {
            cause,
            killed: self.kill_at.is_some(),
            out_of_memory: cgroup::is_out_of_memory(&self.launch.cgroups),
            at: clock::now(),
        };
        cgroup::remove(&self.launch.cgroups);
        self.phase = Phase::Ended { exit, retry_at: Instant::now() };
    }

    /// Writes the exit record and tells who is connected, also if it cannot be written. A power failure would end the
    /// agent as well, so the news does not wait for the disk.
    fn record(&mut self) {
        let Phase::Ended { exit, retry_at } = &mut self.phase else { return };
        if *retry_at > Instant::now() {
            return;
        }
        let written = checkpoint::write(&self.directory.join(EXIT_FILE), exit, Durability::Process);
        let event = Event::Ended(exit.clone());
        self.control.accept(None);
        self.control.tell(&event);
        let directory_is_gone = !self.directory.exists();
        if written.is_ok() || directory_is_gone {
            // The agent may have been quick to acknowledge the end and remove the directory.
            let _ = checkpoint::sync(&self.directory.join(EXIT_FILE));
            let _ = fs::remove_file(self.directory.join(CONTROL_SOCKET));
            self.phase = Phase::Recorded;
        } else if let Phase::Ended { retry_at, .. } = &mut self.phase {
            *retry_at = Instant::now() + RECORD_RETRY;
        }
    }
}

/// When the main process is to be killed, the end of whose grace and whose last kill are given.
fn next_kill(kill_at: Option<Instant>, killed_at: Option<Instant>) -> Option<Instant> {
    killed_at.map(|last| last + KILL_INTERVAL).or(kill_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_end_is_killed_after_the_grace_and_then_once_a_second() {
        let asked = Instant::now();
        let kill_at = asked + Duration::from_secs(20);
        assert_eq!(next_kill(None, None), None);
        let mut killed_at = None;
        let kills = std::iter::from_fn(|| {
            killed_at = next_kill(Some(kill_at), killed_at);
            killed_at.map(|at| (at - asked).as_secs())
        });
        assert_eq!(kills.take(4).collect::<Vec<_>>(), [20, 21, 22, 23]);
    }
}
