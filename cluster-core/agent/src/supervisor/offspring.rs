//! Everything that descends from the task's main process.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use crate::protocol::ExitCause;

/// How often it is looked for what a process that is to be killed has started. One that is faster is killed with the task.
const STOP_ROUNDS_MAX: usize = 8;

/// What was found when ended children were taken note of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reaped {
    /// How the main process ended, if it is among them.
    pub(super) main: Option<ExitCause>,
    /// How others ended.
    pub(super) others: Vec<(Pid, ExitCause)>,
    /// Whether there is no child any more, hence nothing of the task.
    pub(super) none_left: bool,
}

/// Takes note of all children that have ended.
pub(super) fn reap(main: Pid) -> Reaped {
    let mut reaped = Reaped { main: None, others: Vec::new(), none_left: false };
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == main => reaped.main = Some(cause(status)),
            Ok(Some((pid, status))) => reaped.others.push((pid, cause(status))),
            Err(Errno::INTR) => {}
            Ok(None) => return reaped,
            Err(_) => {
                reaped.none_left = true;
                return reaped;
            }
        }
    }
}

fn cause(status: WaitStatus) -> ExitCause {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitCause::Exited(code),
        (None, Some(signal)) => ExitCause::Signalled(signal),
        (None, None) => ExitCause::Signalled(libc::SIGKILL),
    }
}

/// Whether a child has ended. Until [`reap`] is called it keeps its process id, and thereby that of its group, from being
/// reused.
pub(super) fn has_ended(child: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::Pid(child), options), Ok(Some(_)))
}

/// Sends a signal to a child that leads a group, such as the main process, and its group. Only before it is reaped.
pub(super) fn signal_group(main: Pid, signal: Signal) {
    // A group that has ended is no failure, and there is nothing to be done about one that may not be signalled.
    let _ = rustix::process::kill_process_group(main, signal);
    // It may have moved to another group, but one in its own must not get a signal twice: many programs take the second
    // SIGTERM for impatience.
    if rustix::process::getpgid(Some(main)) != Ok(main) {
        let _ = rustix::process::kill_process(main, signal);
    }
}

/// Whether a child belongs to the group of the main process. Once that has ended, what it leaves are children of this
/// process.
pub(super) fn group_is_alive(main: Pid) -> bool {
    children().iter().any(|child| rustix::process::getpgid(Some(*child)) == Ok(main))
}

/// Kills every child. What the killed leave become children in their turn, so this is repeated until none is left.
/// Says whether there are children and none of them may be killed.
pub(super) fn kill_children() -> bool {
    let results: Vec<rustix::io::Result<()>> =
        children().into_iter().map(|child| rustix::process::kill_process(child, Signal::KILL)).collect();
    !results.is_empty() && results.iter().all(|result| *result == Err(Errno::PERM))
}

/// Kills a child that is not reaped, its group, and everything that descends from it. They are stopped before, since what
/// a killed one has started is not seen to be its own any more.
pub(super) fn kill_tree(root: Pid) {
    let mut stopped = BTreeSet::new();
    // Each round finds what was started while the one before looked.
    for _ in 0..STOP_ROUNDS_MAX {
        let found: Vec<Pid> =
            tree(root).into_iter().filter(|pid| stopped.insert(pid.as_raw_nonzero())).collect();
        if found.is_empty() {
            break;
        }
        for pid in found {
            let _ = rustix::process::kill_process(pid, Signal::STOP);
        }
    }
    for pid in stopped.into_iter().filter_map(|pid| Pid::from_raw(pid.get())) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    signal_group(root, Signal::KILL);
}

/// A process and everything that descends from it, at this moment.
fn tree(root: Pid) -> Vec<Pid> {
    let parents = parents().unwrap_or_default();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        next += 1;
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
    }
    tree
}

/// The children of this process. They may be too few while processes come and go, which `wait` does not get wrong.
fn children() -> Vec<Pid> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(text) => text.split_ascii_whitespace().filter_map(parse_pid).collect(),
        Err(_) => children_by_status().unwrap_or_default(),
    }
}

/// For kernels without the file above.
fn children_by_status() -> io::Result<Vec<Pid>> {
    let own = rustix::process::getpid();
    Ok(parents()?.into_iter().filter(|(_, parent)| *parent == own).map(|(child, _)| child).collect())
}

/// Asks every process for its parent.
fn parents() -> io::Result<Vec<(Pid, Pid)>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(parse_pid) else { continue };
        let Ok(status) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { continue };
        // The name in parentheses may hold anything; after it come the state and the parent.
        let parent = status.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
        parents.extend(parent.and_then(parse_pid).map(|parent| (pid, parent)));
    }
    Ok(parents)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}
