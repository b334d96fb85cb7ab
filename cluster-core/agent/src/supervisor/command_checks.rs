//! Commands that check the task's health, while they run.

use std::time::{Duration, Instant};

use mesonet_model::HealthProbe;
use rustix::process::{Pid, Signal};
use uuid::Uuid;

use super::main_process;
use super::offspring;
use crate::checkpoint;
use crate::protocol::{Event, ExitCause, Launch};

/// Commands that run at a time. An agent asks for one per check of the app at a time; more come only from agents that
/// have died meanwhile. Further ones count as failed.
const COMMANDS_MAX: usize = 16;

/// The commands that run.
#[derive(Debug, Default)]
pub(super) struct CommandChecks {
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    id: Uuid,
    pid: Pid,
    timeout: Duration,
    /// When it is ended.
    until: Instant,
}

impl CommandChecks {
    /// Starts the command of a check. Returns what became of it if it does not run.
    pub(super) fn start(&mut self, launch: &Launch, id: Uuid, check: usize, now: Instant) -> Option<Event> {
        let failed = |failure: String| Some(Event::Checked { id, failure: Some(failure) });
        let settings = launch.spec.health_checks.get(check)?;
        let HealthProbe::Command { shell } = &settings.probe else { return None };
        if self.running.len() >= COMMANDS_MAX {
            return failed(format!("{COMMANDS_MAX} commands that check the task are running"));
        }
        match main_process::start_beside(launch, shell) {
            Ok(pid) => {
                let timeout = settings.timeout;
                let until = now.checked_add(timeout).unwrap_or(now);
                self.running.push(Running { id, pid, timeout, until });
                None
            }
            Err(error) => failed(checkpoint::in_full(&error)),
        }
    }

    /// When [`CommandChecks::end_late`] is to be called.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.running.iter().map(|each| each.until).min()
    }

    /// Ends what has taken too long, with its children, and what those that have ended have left in their groups. To be
    /// called before children are reaped.
    pub(super) fn end_late(&mut self, now: Instant) -> Vec<Event> {
        let mut late = Vec::new();
        self.running.retain(|Running { id, pid, timeout, until }| {
            if offspring::has_ended(*pid) {
                offspring::signal_group(*pid, Signal::KILL);
                return true;
            }
            if *until > now {
                return true;
            }
            offspring::kill_tree(*pid);
            let failure = format!("the command did not end within {} s", timeout.as_secs_f64());
            late.push(Event::Checked { id: *id, failure: Some(failure) });
            false
        });
        late
    }

    /// Takes those out that have ended.
    pub(super) fn take_ended(&mut self, reaped: Vec<(Pid, ExitCause)>) -> Vec<Event> {
        let mut ended = Vec::new();
        for (pid, cause) in reaped {
            let Some(index) = self.running.iter().position(|each| each.pid == pid) else { continue };
            let id = self.running.swap_remove(index).id;
            let failure = (cause != ExitCause::Exited(0)).then(|| cause.to_string());
            ended.push(Event::Checked { id, failure });
        }
        ended
    }
}
