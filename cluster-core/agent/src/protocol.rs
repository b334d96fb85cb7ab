//! What the agent and a task's supervisor say to each other.
//!
//! The agent listens on the task's control socket before the supervisor exists and hands the listening socket to it as
//! standard input. Whoever connects is told at once how things are, and then what changes. Messages are lines of
//! JSON. The socket answers exactly as long as the supervisor lives, so no process id has to be trusted.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use mesonet_model::{TaskSpec, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::LogLimits;
use crate::container_network::ContainerNetwork;
use crate::layout::CONTROL_SOCKET;

/// The longest message, newline included. The longest text in one is an error of the system with a path.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Everything that a supervisor needs to know. It may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) spec: TaskSpec,
    /// Names this run of the task.
    pub(crate) container: Uuid,
    pub(crate) sandbox: PathBuf,
    /// The process' complete environment.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) logs: LogLimits,
    /// The task's own control groups, one per hierarchy, created by the agent.
    pub(crate) cgroups: Vec<PathBuf>,
    /// The process' soft limit on open files, unless it is to be the supervisor's.
    #[serde(default)]
    pub(crate) open_files: Option<u64>,
    /// Its own interfaces; the host's network if absent.
    #[serde(default)]
    pub(crate) network: Option<ContainerNetwork>,
    /// Whether the task is to end when the agent dies.
    #[serde(default)]
    pub(crate) ends_with_agent: bool,
}

/// Supervisor to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The task's program runs.
    Running { pid: i32 },
    /// The task has ended and nothing is left of it.
    Ended(Exit),
    /// A command that checks the task has ended, or was ended.
    Checked {
        /// The request's.
        id: Uuid,
        /// Why it counts as a failure.
        failure: Option<String>,
    },
    /// The process that forwards ports of the node to the task has ended, and another one is started.
    ForwarderEnded { cause: ExitCause },
}

/// Agent to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// End the task: SIGTERM, and SIGKILL after the grace.
    Kill { grace_millis: u64 },
    /// Run the command of one of the task's health checks.
    Check {
        /// Chosen by the agent.
        id: Uuid,
        /// Which check of the launch.
        check: usize,
    },
}

/// How a task has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) cause: ExitCause,
    /// Whether it was told to end.
    pub(crate) killed: bool,
    /// Whether the kernel killed a process of it for want of memory.
    pub(crate) out_of_memory: bool,
    pub(crate) at: Timestamp,
}

/// What ended the task's main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExitCause {
    /// It never ran.
    NotStarted(String),
    /// It ended by itself with this status.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(reason) => f.write_str(reason),
            Self::Exited(status) => write!(f, "Command exited with status {status}"),
            Self::Signalled(signal) => write!(f, "Command terminated with signal {}", SignalName(*signal)),
        }
    }
}

/// A signal as `strsignal` describes it, which is how Mesos words its messages.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::SIGHUP => "Hangup",
            libc::SIGINT => "Interrupt",
            libc::SIGQUIT => "Quit",
            libc::SIGILL => "Illegal instruction",
            libc::SIGTRAP => "Trace/breakpoint trap",
            libc::SIGABRT => "Aborted",
            libc::SIGBUS => "Bus error",
            libc::SIGFPE => "Floating point exception",
            libc::SIGKILL => "Killed",
            libc::SIGUSR1 => "User defined signal 1",
            libc::SIGSEGV => "Segmentation fault",
            libc::SIGUSR2 => "User defined signal 2",
            libc::SIGPIPE => "Broken pipe",
            libc::SIGALRM => "Alarm clock",
            libc::SIGTERM => "Terminated",
            libc::SIGXCPU => "CPU time limit exceeded",
            libc::SIGXFSZ => "File size limit exceeded",
            libc::SIGSYS => "Bad system call",
            number => return write!(f, "{number}"),
        };
        f.write_str(name)
    }
}

/// Listens on the control socket of a task's directory.
pub(crate) fn listen(directory: &Path) -> io::Result<UnixListener> {
    with_short_path(directory, |path| UnixListener::bind(path))
}

/// Connects to the supervisor of a task's directory. `ConnectionRefused` and `NotFound` mean that there is none.
pub(crate) fn connect(directory: &Path) -> io::Result<UnixStream> {
    with_short_path(directory, |path| UnixStream::connect(path))
}

/// Task directories are longer than the 108 bytes that an address can have, so the socket is named by way of the
/// opened directory.
fn with_short_path<T>(directory: &Path, use_path: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let opened = std::fs::File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", opened.as_raw_fd()));
    use_path(&path)
}

/// A message as a line.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("BUG: messages have no map with keys that are no text");
    line.push(b'\n');
    line
}

/// Takes complete lines out of a buffer. A line that is no message is an error.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Vec<T>> {
    let mut messages = Vec::new();
    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = buffer.drain(..=end).collect();
        messages.push(serde_json::from_slice(&line)?);
    }
    match buffer.len() {
        length if length > MESSAGE_BYTES_MAX => Err(io::ErrorKind::InvalidData.into()),
        _ => Ok(messages),
    }
}
