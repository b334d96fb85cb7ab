//! The environment of a task's process.

use std::collections::BTreeMap;
use std::path::Path;

use mesonet_model::TaskSpec;

/// Where programs are looked for if the agent itself has no `PATH`; that of a Debian login shell.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the agent adds to the environment that the framework has given; nothing else of the agent's own environment
/// is passed on. The framework wins, except for what only the agent knows: where the sandbox is and who runs it.
/// Names are those of Mesos (spec/client-surface.md §7).
pub(crate) fn of_task(
    spec: &TaskSpec,
    sandbox: &Path,
    hostname: &str,
    agent_path: Option<String>,
) -> BTreeMap<String, String> {
    let mut environment = spec.command.environment.clone();
    let mut suggest = |name: &str, value: String| {
        environment.entry(name.to_owned()).or_insert(value);
    };
    suggest("PATH", agent_path.unwrap_or_else(|| DEFAULT_PATH.to_owned()));
    suggest("MESOS_TASK_ID", spec.key.task.to_string());
    suggest("HOST", hostname.to_owned());
    let sandbox = sandbox.to_string_lossy();
    for (name, value) in [
        ("MESOS_SANDBOX", &*sandbox),
        ("MESOS_DIRECTORY", &*sandbox),
        ("MESOS_SLAVE_ID", spec.agent.as_str()),
        ("MESOS_AGENT_ID", spec.agent.as_str()),
        ("MESOS_FRAMEWORK_ID", spec.key.framework.as_str()),
        ("MESOS_EXECUTOR_ID", spec.key.task.as_str()),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    environment
}
