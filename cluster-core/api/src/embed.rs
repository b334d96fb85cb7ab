//! What clients want to see of apps and groups besides their definitions (`embed=`).

use crate::call::Call;

/// Parts of an app's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AppEmbed {
    /// Numbers of tasks.
    pub(crate) counts: bool,
    /// Ids of deployments.
    pub(crate) deployments: bool,
    /// Tasks.
    pub(crate) tasks: bool,
    /// The last failure.
    pub(crate) last_task_failure: bool,
    /// Readiness check results.
    pub(crate) readiness: bool,
    /// Numbers of tasks by version.
    pub(crate) task_stats: bool,
}

/// Parts of a group's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupEmbed {
    /// Its apps.
    pub(crate) apps: bool,
    /// Its groups.
    pub(crate) groups: bool,
    /// Parts of its apps.
    pub(crate) app: AppEmbed,
}

impl AppEmbed {
    /// For lists: counts and deployments always.
    pub(crate) fn for_list(call: &Call) -> Self {
        Self { counts: true, deployments: true, ..Self::default() }.with(call)
    }

    /// For a single app: also tasks and the last failure.
    pub(crate) fn for_one(call: &Call) -> Self {
        let always = Self { tasks: true, last_task_failure: true, ..Self::default() };
        Self { counts: true, deployments: true, ..always }.with(call)
    }

    /// Adds what the request asks for, with any of the prefixes that clients use.
    fn with(mut self, call: &Call) -> Self {
        for part in call.parameters("embed") {
            match part.rsplit('.').next().unwrap_or(part) {
                "tasks" => self.tasks = true,
                "count" | "counts" => self.counts = true,
                "deployments" => self.deployments = true,
                "lastTaskFailure" => self.last_task_failure = true,
                "failures" => (self.tasks, self.last_task_failure) = (true, true),
                "readiness" => self.readiness = true,
                "taskStats" => self.task_stats = true,
                _ => {}
            }
        }
        self
    }
}

impl GroupEmbed {
    /// Groups and apps unless the request names what it wants.
    pub(crate) fn of(call: &Call) -> Self {
        let is_open = call.parameter("embed").is_none();
        let asks = |name: &str| {
            call.parameters("embed").any(|part| part == name || part.starts_with(&format!("{name}.")))
        };
        let wants = |plain: &str, prefixed: &str| is_open || asks(plain) || asks(prefixed);
        Self {
            apps: wants("apps", "group.apps"),
            groups: wants("groups", "group.groups"),
            app: AppEmbed::default().with(call),
        }
    }
}
