//! What a balancer has in the kernel stays there for as long as it runs, whatever others do to it.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Executor, LoadBalancer, error_text};
use crate::Metrics;

/// How often the kernel is asked whether everything is there: some dozens of calls, which take a fraction of a millisecond.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is tried again to put something back. The kernel may take tenths of a second to look at programs.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How much of what a balancer has in the kernel is not where it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    /// Hooks that are not attached to the cgroup.
    pub hooks: usize,
    /// Programs for packets that are not attached to their interface.
    pub packet_programs: usize,
    /// Names in the BPF file system, without which it would all end with the process.
    pub pins: usize,
}

/// What was found at the last look, after what could be put back was.
#[derive(Debug)]
pub(super) struct Upkeep {
    next: Instant,
    missing: Missing,
    problem: Option<String>,
}

impl Missing {
    /// Whether everything is there.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// With the names that metrics have.
    pub(crate) fn by_kind(self) -> [(&'static str, usize); 3] {
        [("hook", self.hooks), ("packet_program", self.packet_programs), ("pin", self.pins)]
    }

    fn plus(self, other: Self) -> Self {
        Self {
            hooks: self.hooks + other.hooks,
            packet_programs: self.packet_programs + other.packet_programs,
            pins: self.pins + other.pins,
        }
    }

    /// What of it is there by now.
    fn without(self, still: Self) -> Self {
        Self {
            hooks: self.hooks.saturating_sub(still.hooks),
            packet_programs: self.packet_programs.saturating_sub(still.packet_programs),
            pins: self.pins.saturating_sub(still.pins),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hooks, packet_programs, pins } = self;
        let all = [(hooks, "hooks"), (packet_programs, "programs for packets"), (pins, "pins")];
        let there = all.iter().filter(|(count, _)| **count > 0);
        let list: Vec<String> = there.map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(&list.join(", "))
    }
}

impl Upkeep {
    pub(super) fn new() -> Self {
        Self { next: Instant::now(), missing: Missing::default(), problem: None }
    }

    /// Whether hooks are not attached that should be.
    pub(super) fn lacks_hooks(&self) -> bool {
        self.missing.hooks > 0
    }

    /// What is not in its place in the kernel, and why.
    pub(super) fn trouble(&self) -> Option<String> {
        let reason = self.problem.as_ref()?;
        Some(format!("not in their places in the kernel: {} ({reason})", self.missing))
    }

    /// Takes note of a look, and says what is new.
    fn note(&mut self, found: Missing, missing: Missing, problem: Option<String>, metrics: &Metrics) {
        if !found.is_nothing() && self.missing.is_nothing() {
            let Missing { hooks, packet_programs, pins } = found;
            warn!(hooks, packet_programs, pins, "Somebody has taken away what balances in the kernel");
        }
        if let Some(error) = problem.as_ref().filter(|problem| self.problem.as_ref() != Some(*problem)) {
            warn!(error, "Cannot put back what balances in the kernel");
        }
        if missing.is_nothing() && !(found.is_nothing() && self.missing.is_nothing()) {
            info!("What balances in the kernel is in its place again");
        }
        metrics.set_missing(missing, found.without(missing));
        let pause = if problem.is_some() { RETRY_INTERVAL } else { LOOK_INTERVAL };
        *self = Self { next: Instant::now() + pause, missing, problem };
    }
}

impl LoadBalancer {
    /// Asks the kernel from time to time whether everything is there, and puts back what is not.
    pub(super) fn look_after_kernel(&mut self) {
        if !self.outlives_process() || Instant::now() < self.upkeep.next {
            return;
        }
        let found = self.missing();
        let problem = if found.is_nothing() { None } else { self.restore().err() };
        let missing = if found.is_nothing() { found } else { self.missing() };
        let again = || (!missing.is_nothing()).then(|| "it is taken away again and again".to_owned());
        self.upkeep.note(found, missing, problem.or_else(again), &self.metrics);
    }

    fn missing(&self) -> Missing {
        let hooks = match &self.executor {
            Executor::Ebpf(ebpf) => ebpf.missing(),
            Executor::Memory(_) | Executor::Proxy(_) => Missing::default(),
        };
        self.packets.iter().fold(hooks, |sum, packets| sum.plus(packets.missing()))
    }

    fn restore(&mut self) -> Result<(), String> {
        if let Some(hold) = &mut self.hold {
            hold.renew().map_err(|error| error_text(&error))?;
        }
        let hooks = match &mut self.executor {
            Executor::Ebpf(ebpf) => ebpf.restore().map_err(|error| error_text(&error)),
            Executor::Memory(_) | Executor::Proxy(_) => Ok(()),
        };
        let packets = self.packets.as_mut().map_or(Ok(()), |packets| packets.restore());
        hooks.and(packets.map_err(|error| error_text(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_until_it_is_there() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry);
        let value = |name: &str, kind: &str| {
            let families = registry.gather();
            let metrics = families.iter().filter(|family| family.name() == name);
            let of_kind = metrics
                .flat_map(|family| family.get_metric())
                .filter(|metric| metric.get_label().iter().any(|label| label.value() == kind));
            of_kind
                .map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
                .sum::<f64>()
        };
        let mut upkeep = Upkeep::new();
        let found = Missing { hooks: 9, pins: 2, ..Missing::default() };
        let still = Missing { hooks: 9, ..Missing::default() };
        upkeep.note(found, still, Some("no cgroup".to_owned()), &metrics);
        let trouble = "not in their places in the kernel: 9 hooks (no cgroup)";
        assert_eq!(upkeep.trouble().as_deref(), Some(trouble));
        assert!(upkeep.lacks_hooks());
        assert_eq!(value("mesonet_lb_missing_attachments", "hook"), 9.0);
        assert_eq!(value("mesonet_lb_restored_attachments_total", "pin"), 2.0);

        upkeep.note(still, Missing::default(), None, &metrics);
        assert_eq!(upkeep.trouble(), None);
        assert!(!upkeep.lacks_hooks());
        assert_eq!(value("mesonet_lb_missing_attachments", "hook"), 0.0);
        assert_eq!(value("mesonet_lb_restored_attachments_total", "hook"), 9.0);
    }
}
